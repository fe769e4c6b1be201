"""What a policy keeps out of the record of its decisions: `data.system.log.mask`, as Open Policy Agent has it.

The rule is a set of pointers at what is to be removed, `"/input/call/arguments/ssn"`, or of objects `{"op": "remove" |
"upsert", "path": POINTER, "value": ANY}`; its input is the decision log event. Source: OPA 1.22, v1/plugins/logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import unquote

RULE: Final = "data.system.log.mask"

_MASKABLE: Final = ("input", "result")
_NEVER_THERE: Final = "nd_builtin_cache"
"""A part of OPA's events that ours do not have, so that masking it is done."""


@dataclass(frozen=True, slots=True)
class Mask:
    """One thing to be taken out of an event, or to be overwritten in it."""

    op: Literal["remove", "upsert"]
    pointer: str
    path: tuple[str, ...]
    value: Any = None


def read(value: Any) -> list[Mask]:
    """The rule's value as parsed from JSON; None, for undefined, masks nothing. Raises ValueError for what is none."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{RULE} is no set")
    return [_mask(each) for each in value]


def apply(masks: list[Mask], event: dict[str, Any]) -> None:
    """Changes the event, and adds to its `erased` and `masked` what was done; what is not there is passed over."""
    erased, masked = list(event.get("erased", ())), list(event.get("masked", ()))
    for mask in masks:
        if mask.path[0] not in event:
            continue
        if mask.op == "remove" and _remove(event, mask.path):
            erased.append(mask.pointer)
        if mask.op == "upsert" and _upsert(event, mask.path, mask.value):
            masked.append(mask.pointer)
    for name, pointers in (("erased", erased), ("masked", masked)):
        if pointers:
            event[name] = pointers


def follow(record: Mapping[str, Any], event: dict[str, Any]) -> None:
    """Hides of the `result` of an event what is hidden of the same one in a record, unless it was hidden by `apply`."""
    for name in ("erased", "masked"):
        for pointer in _pointers(record, name):
            path = tuple(pointer.split("/")[1:])
            if path[:1] != ("result",) or pointer in _pointers(event, name):
                continue
            around = _down(event, path[:-1])
            place = _place(around, path[-1])
            if place is not None and name == "erased":
                del around[place]
            elif place is not None:
                around[place] = _down(record, path)


def _pointers(event: Mapping[str, Any], name: str) -> list[str]:
    listed = event.get(name)
    return [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []


def _mask(given: Any) -> Mask:
    if isinstance(given, str):
        return Mask("remove", given, _path(given))
    if not isinstance(given, Mapping):
        raise ValueError("a mask is neither a pointer nor an object")
    op, pointer = given.get("op"), given.get("path")
    if op not in ("remove", "upsert") or not isinstance(pointer, str):
        raise ValueError("a mask needs `op`, remove or upsert, and `path`")
    return Mask(op, pointer, _path(pointer), given.get("value"))


def _path(pointer: str) -> tuple[str, ...]:
    path = tuple(pointer.split("/")[1:])
    if not pointer.startswith("/") or path[0] not in (*_MASKABLE, _NEVER_THERE):
        raise ValueError("a mask has to begin with /input or /result")
    return path


def _remove(event: dict[str, Any], path: tuple[str, ...]) -> bool:
    around, key = _down(event, path[:-1]), path[-1]
    place = _place(around, key)
    if place is None:
        return False
    del around[place]
    return True


def _upsert(event: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    around: Any = event
    for key in path[:-1]:
        place = _place(around, key)
        if place is None:
            if not isinstance(around, dict):
                return False
            place = key
            around[place] = {}
        around = around[place]
    place = _place(around, path[-1])
    if place is None:
        if not isinstance(around, dict):
            return False
        place = path[-1]
    around[place] = value
    return True


def _down(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        place = _place(value, key)
        if place is None:
            return None
        value = value[place]
    return value


def _place(container: Any, key: str) -> Any:
    """The key or index that a segment means in this object or list; None where it is not there."""
    if isinstance(container, dict):
        return next((name for name in (key, unquote(key)) if name in container), None)
    if (
        isinstance(container, list)
        and key.isascii()
        and key.isdecimal()
        and len(key) < 10
        and int(key) < len(container)
    ):
        return int(key)
    return None
