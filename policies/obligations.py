"""What a yes may demand: conditions that the gateway fulfils before anything leaves, or the yes becomes a no.

    {"max_tokens": 512, "redact": ["/arguments/ssn"], "replace": {"/arguments/base": "develop"},
     "headers": {"x-team": "a"}, "route": "cheap", "sample": true}

Pointers (RFC 6901) point into the call as the policy sees it in `input.call`; a segment `*` stands for every key or
index at its level. Here they are read; `gateway.obligations` fulfils them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from policies.masks import STARS, segments

Path = tuple[str, ...]

REDACTED: Final = orjson.dumps(STARS)
"""The JSON text that a redacted value is replaced by, whatever it was."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One value of the call that is to be another.

    `pointer` is what the policy wrote, `path` its segments, `value` a JSON text. `adds` says whether a member that is
    not there has to be put there.
    """

    pointer: str
    path: Path
    value: bytes
    adds: bool


@dataclass(frozen=True, slots=True)
class Obligations:
    """The conditions of one decision; the names are those that policies use. Nothing in it can be changed.

    `headers` are lower-cased names with their values. `unknown` are the names of those that this version does not
    know, and so cannot fulfil, with their values as JSON texts.
    """

    max_tokens: int | None = None
    redact: tuple[Edit, ...] = ()
    replace: tuple[Edit, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    route: str | None = None
    sample: bool = False
    unknown: tuple[tuple[str, bytes], ...] = ()

    def __bool__(self) -> bool:
        return self != NONE

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is replaced in the call, in the order in which it is done: what is redacted stays redacted."""
        return (*self.replace, *self.redact)

    def facts(self) -> dict[str, Any]:
        """As the policy wrote them, for people and records."""
        facts: dict[str, Any] = {}
        if self.max_tokens is not None:
            facts["max_tokens"] = self.max_tokens
        if self.redact:
            facts["redact"] = [edit.pointer for edit in self.redact]
        if self.replace:
            facts["replace"] = {edit.pointer: orjson.loads(edit.value) for edit in self.replace}
        if self.headers:
            facts["headers"] = dict(self.headers)
        if self.route is not None:
            facts["route"] = self.route
        if self.sample:
            facts["sample"] = True
        facts.update((name, orjson.loads(value)) for name, value in self.unknown)
        return facts


NONE: Final = Obligations()
"""What a decision without obligations has: the same object, so that asking costs nothing."""


def read(obligations: Mapping[str, Any]) -> Obligations:
    """The `obligations` of an answer, as parsed from JSON. Raises ValueError, saying which is malformed."""
    given: dict[str, Any] = {}
    unknown = []
    for name, value in obligations.items():
        reader = _READERS.get(name)
        if reader is None:
            unknown.append((name, orjson.dumps(value)))
        else:
            given[name] = reader(name, value)
    return Obligations(**given, unknown=tuple(unknown)) if obligations else NONE


def _tokens(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is no whole number above 0")
    return value


def _redactions(name: str, value: Any) -> tuple[Edit, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list of pointers")
    return tuple(Edit(pointer, _path(name, pointer), REDACTED, adds=False) for pointer in value)


def _replacements(name: str, value: Any) -> tuple[Edit, ...]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object of pointers and values")
    return tuple(
        Edit(pointer, _path(name, pointer), orjson.dumps(wanted), adds=True) for pointer, wanted in value.items()
    )


def _path(name: str, pointer: Any) -> Path:
    if not isinstance(pointer, str) or not pointer.startswith("/"):
        raise ValueError(f"{name} names something that is no JSON pointer")
    return segments(pointer)


_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_FIELD_VALUE: Final = re.compile(r"[\x20-\x7e]*", re.ASCII)


def _headers(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object of header names and texts")
    lines = []
    for field, text in value.items():
        if not _FIELD_NAME.fullmatch(field) or not isinstance(text, str) or not _FIELD_VALUE.fullmatch(text):
            raise ValueError(f"{name} holds something that is no header")
        lines.append((field.lower(), text.strip()))
    if len(dict(lines)) < len(lines):
        raise ValueError(f"{name} holds one header twice")
    return tuple(lines)


def _route(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is no name of a route")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value


_READERS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "max_tokens": _tokens,
    "redact": _redactions,
    "replace": _replacements,
    "headers": _headers,
    "route": _route,
    "sample": _flag,
}
"""Every obligation that can be fulfilled, and how its value is read."""
