"""What never reaches a record: values at configured places of a call's arguments are replaced by stars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

STARS: Final = "***"
_EVERY: Final = "*"


class Mask:
    """RFC 6901 pointers, compiled once; a segment `*` stands for every key or index at its level.

    What they found is told as pointers into a larger document, in which `place` leads to the arguments.
    """

    def __init__(self, pointers: Sequence[str], place: str = "") -> None:
        """Raises ValueError for a text that is no pointer."""
        paths = [(place + pointer, segments(pointer)) for pointer in pointers]
        self._whole = [pointer for pointer, path in paths if not path]
        deep = [(pointer, path) for pointer, path in paths if path]
        self._top = {path[0]: pointer for pointer, path in deep} if _all_plain_and_top(deep) else None
        self._paths = deep

    def apply(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A copy with the pointed-at values replaced, and the pointers that found something.

        What is not replaced is shared with `arguments`, which is never changed.
        """
        if self._whole:
            return dict.fromkeys(arguments, STARS), list(self._whole)
        top = self._top
        masked, hits = dict(arguments), []
        if top is not None:
            for key in arguments:
                if key in top:
                    masked[key] = STARS
                    hits.append(top[key])
            return masked, hits
        for pointer, path in self._paths:
            masked, hit = _replace(masked, path, 0)
            if hit:
                hits.append(pointer)
        return masked, hits


def _all_plain_and_top(paths: list[tuple[str, tuple[str, ...]]]) -> bool:
    return all(len(path) == 1 and path[0] != _EVERY for _, path in paths)


def segments(pointer: str) -> tuple[str, ...]:
    """The names in an RFC 6901 pointer, unescaped; none for the whole. Raises ValueError for a text that is none."""
    if pointer == "":
        return ()
    if not pointer.startswith("/"):
        raise ValueError(f"{pointer!r} is no JSON pointer: it must begin with /")
    segments = pointer[1:].split("/")
    for segment in segments:
        if "~" in segment.replace("~0", "").replace("~1", ""):
            raise ValueError(f"{pointer!r} is no JSON pointer: ~ must be written ~0, and / within a name ~1")
    return tuple(segment.replace("~1", "/").replace("~0", "~") for segment in segments)


def _replace(value: Any, path: tuple[str, ...], depth: int) -> tuple[Any, bool]:
    """`value` with the rest of the path replaced, copied along the way only, and whether anything was there."""
    if depth == len(path):
        return STARS, True
    copy: Any
    if isinstance(value, dict):
        keys: list[Any] = [key for key in value if path[depth] in (_EVERY, key)]
        copy = value.copy
    elif isinstance(value, list):
        keys = _indices(path[depth], len(value))
        copy = value.copy
    else:
        return value, False
    hit, result = False, value
    for key in keys:
        inner, inner_hit = _replace(value[key], path, depth + 1)
        if inner_hit:
            result = result if hit else copy()
            hit = True
            result[key] = inner
    return result, hit


def _indices(segment: str, length: int) -> list[int]:
    if segment == _EVERY:
        return list(range(length))
    if segment.isascii() and segment.isdecimal() and (segment == "0" or segment[0] != "0") and len(segment) < 10:
        return [int(segment)] if int(segment) < length else []
    return []
