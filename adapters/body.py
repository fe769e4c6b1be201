"""JSON bodies: read once and strictly, and changed by splicing, so that bytes nobody means to change stay as they came."""

import re
from typing import Any

import jiter
import orjson

from adapters.errors import MalformedCall

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_SPACE = b" \t\r\n"
_AFTER_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb"[^,}\] \t\r\n]+")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Duplicate keys are refused because two readers may pick different ones: the policy would see the one and the target
    act on the other. NaN, infinities and lone surrogates are not JSON (RFC 8259), whatever Python's own reader thinks.
    Raises MalformedCall.
    """
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise MalformedCall(f"The body is not JSON that can be relied on: {error}.") from None
    if not isinstance(value, dict):
        raise MalformedCall("The body must be a JSON object.")
    return value


def find(body: bytes, key: str) -> tuple[int, int] | None:
    """Where the value of the top-level member `key` starts and ends in a valid JSON object; None if there is none."""
    depth = 0
    position = 0
    wanted = b'"' + key.encode() + b'"'
    while token := _TOKEN.search(body, position):
        position = token.end()
        text = token.group()
        if text in (b"{", b"["):
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
        elif depth == 1:
            colon = _skip(body, position)
            if body[colon : colon + 1] == b":" and (text == wanted or (b"\\" in text and orjson.loads(text) == key)):
                start = _skip(body, colon + 1)
                return start, _end_of_value(body, start)
    return None


def replace(body: bytes, key: str, value: bytes) -> bytes:
    """`body` with the value of its top-level member `key` replaced by the JSON text `value`, or with the member put first."""
    span = find(body, key)
    if span is not None:
        return body[: span[0]] + value + body[span[1] :]
    opening = body.index(b"{") + 1
    rest = body[opening:]
    comma = b"" if rest.lstrip(_SPACE).startswith(b"}") else b","
    return body[:opening] + b'"' + key.encode() + b'":' + value + comma + rest


def _skip(body: bytes, position: int) -> int:
    space = _AFTER_SPACE.match(body, position)
    return space.end() if space else position


def _end_of_value(body: bytes, start: int) -> int:
    depth = 0
    position = start
    if body[start] not in b'"{[':
        scalar = _SCALAR.match(body, start)
        return scalar.end() if scalar else start
    while token := _TOKEN.search(body, position):
        position = token.end()
        first = body[token.start()]
        depth += (first in b"{[") - (first in b"}]")
        if depth == 0:
            return position
    return position
