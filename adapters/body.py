"""JSON bodies: read once and strictly, changed by splicing, so that bytes nobody means to change stay as they came."""

import re
from typing import Any, Final

import jiter
import orjson

from adapters.errors import MalformedCall

_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SPACE: Final = rb"[ \t\r\n]*+"
_MEMBER: Final = re.compile(rb"[ \t\r\n,]*+(" + _STRING + rb")" + _SPACE + b":" + _SPACE, re.DOTALL)
_COLON: Final = re.compile(_SPACE + b":" + _SPACE)
_SCALAR: Final = re.compile(_STRING + rb"|[^,}\] \t\r\n]++", re.DOTALL)
_TO_BRACKET: Final = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+([{}\[\]])", re.DOTALL)
_DUPLICATE: Final = re.compile(r'Detected duplicate key "(.*)" at line (\d+) column (\d+)', re.DOTALL)
_BACKSLASH: Final = ord("\\")
_NEAR: Final = 1024
"""Bytes at the end of a long body in which a member is looked for first."""

_EXCERPT: Final = 40
"""Characters of a body that an error message may show."""


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Duplicate keys are refused because two readers may pick different ones: the policy would see the one and the target
    act on the other. NaN, infinities and lone surrogates are not JSON (RFC 8259), whatever Python's own reader thinks.
    Raises MalformedCall, whose message shows at most a short excerpt.
    """
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise MalformedCall(f"The body is not JSON that can be relied on: {_reason(str(error))}.") from None
    if not isinstance(value, dict):
        raise MalformedCall("The body must be a JSON object.")
    return value


def find(body: bytes, key: str) -> tuple[int, int] | None:
    """Where the value of the top-level member `key` starts and ends in a valid JSON object; None if there is none."""
    wanted = b'"' + key.encode() + b'"'
    if len(body) > 4 * _NEAR and (span := _find_near_end(body, wanted)):
        return span
    position = body.index(b"{") + 1
    while member := _MEMBER.match(body, position):
        name, start = member.group(1), member.end()
        position = _end_of_value(body, start)
        if name == wanted or (b"\\" in name and orjson.loads(name) == key):
            return start, position
    return None


def replace(body: bytes, key: str, value: bytes) -> bytes:
    """`body` with the JSON text `value` as its top-level member `key`: in its place, or first where there was none."""
    span = find(body, key)
    if span is None:
        return put_first(body, key, value)
    return body[: span[0]] + value + body[span[1] :]


def put_first(body: bytes, key: str, value: bytes) -> bytes:
    """`body` with a new first member, for objects that are known to have no `key` yet."""
    opening = body.index(b"{") + 1
    comma = b"" if _MEMBER.match(body, opening) is None else b","
    return b"".join((body[:opening], b'"', key.encode(), b'":', value, comma, body[opening:]))


def balance(text: bytes) -> int:
    """How many brackets `text` opens without closing them; it must begin outside of strings."""
    return sum(1 if opened.group(1) in b"{[" else -1 for opened in _TO_BRACKET.finditer(text))


def _find_near_end(body: bytes, wanted: bytes) -> tuple[int, int] | None:
    """Saves walking through long messages that stand before a short member, which is how OpenAI's own client writes."""
    earliest = max(1, len(body) - _NEAR)
    at = body.rfind(wanted, earliest)
    while at > 0:
        # Behind a backslash the first quote would be part of a text. Otherwise this is a string, and with a colon a
        # key; it is a top-level one when all that is open behind it is the object itself.
        colon = _COLON.match(body, at + len(wanted)) if body[at - 1] != _BACKSLASH else None
        if colon is not None:
            end = _end_of_value(body, colon.end())
            if balance(body[end:]) == -1:
                return colon.end(), end
        at = body.rfind(wanted, earliest, at)
    return None


def _end_of_value(body: bytes, start: int) -> int:
    if body[start] not in b"{[":
        scalar = _SCALAR.match(body, start)
        return start if scalar is None else scalar.end()
    depth, position = 1, start + 1
    while depth and (bracket := _TO_BRACKET.match(body, position)):
        position = bracket.end()
        depth += 1 if bracket.group(1) in b"{[" else -1
    return position


def _reason(text: str) -> str:
    duplicate = _DUPLICATE.fullmatch(text)
    if duplicate is None:
        return text[:100]
    key, line, column = duplicate.groups()
    shown = repr(key if len(key) <= _EXCERPT else key[:_EXCERPT] + "...")
    return f"the key {shown} is given twice in one object, the second time at line {line} column {column}"
