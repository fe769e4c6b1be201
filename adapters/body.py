"""JSON bodies: read once and strictly, changed by splicing, so that bytes nobody means to change stay as they came."""

import re
from collections.abc import Mapping, Sequence, Set
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
_PERHAPS_TORN_STRING: Final = re.compile(_STRING + b"?", re.DOTALL)
_DUPLICATE: Final = re.compile(r'Detected duplicate key "(.*)" at line (\d+) column (\d+)', re.DOTALL)
_ELEMENT: Final = re.compile(rb"[ \t\r\n,]*+(?=[^\]])")
_CLOSING: Final = re.compile(rb"[ \t\r\n]*+[}\]]")
_BACKSLASH: Final = ord("\\")
_OPENING_BRACE: Final = ord("{")
EVERY: Final = "*"
"""The segment of a path that stands for every name or index."""

_NEAR: Final = 1024
"""Bytes at the end of a long body in which a member is looked for first."""

_EXCERPT: Final = 40
"""Characters of a body that an error message may show."""

HEAVIEST: Final = 320_000
"""What a body may weigh (see `weight`).

The heaviest 32 MiB that pass hold the loop for about half a second until the embedded engine has read them too, and
half of that is for their length alone (two shared cores). An embeddings call of the 300,000 tokens that OpenAI takes
at once is lighter.
"""

_NOT_A_SIGN: Final = bytes(set(range(256)) - set(b",:[{"))


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Duplicate keys are refused because two readers may pick different ones: the policy would see the one and the target
    act on the other. NaN, infinities and lone surrogates are not JSON (RFC 8259), whatever Python's own reader thinks.
    Raises MalformedCall, whose message shows at most a short excerpt.
    """
    # Each stage is dearer than the one before, and few bodies get past the first.
    if len(body) > HEAVIEST and _signs(body) > HEAVIEST and weight(body) > HEAVIEST:
        raise MalformedCall(
            f"The body holds too many JSON keys and values: more than {HEAVIEST}, where a key counts as three. "
            "Send less in one call."
        )
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise MalformedCall(f"The body is not JSON that can be relied on: {_reason(str(error))}.") from None
    if not isinstance(value, dict):
        raise MalformedCall("The body must be a JSON object.")
    return value


def weight(body: bytes) -> int:
    """What it takes to read a JSON text, beside its length: 1 for a value, 3 for a key, 1 for a bracket pair around
    nothing. The outermost value is not counted.

    Above HEAVIEST the answer may be too low, but never so low as HEAVIEST. In a text that is no JSON, at least what
    stands before the mistake is counted.
    """
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    strings = bare.count(b'"') // 2
    if strings > HEAVIEST + 1:  # cutting at so many quotes would take the time that weighing is there to save
        return strings - 1
    return _signs(b"".join(bare.split(b'"')[::2]))


def check_spelling(arguments: Mapping[str, Any], members: Set[str]) -> None:
    """Refuses keys that differ only in letter case from one of the known `members`, or from one another.

    Go's JSON reader and others like it take `Model` for `model`, so that the target would act on a member that the
    policy has not seen. `members` are in lower case. Raises MalformedCall.
    """
    if members >= arguments.keys():
        return
    seen: dict[str, str] = {}
    for key in arguments.keys() - members:
        plain = without_case(key)
        if plain in members:
            raise MalformedCall(
                f"The key {_excerpt(key)} must be spelled {plain!r}: some readers take the two for one."
            )
        if (other := seen.setdefault(plain, key)) is not key:
            both = " and ".join(sorted((_excerpt(key), _excerpt(other))))
            raise MalformedCall(f"The keys {both} differ only in letter case: some readers take the two for one.")


def find(body: bytes, key: str) -> tuple[int, int] | None:
    """Where the value of the top-level member `key` starts and ends in a valid JSON object; None if there is none."""
    wanted = orjson.dumps(key)  # as most write it; quotes within it must not pass for the quotes around keys
    if len(body) > 4 * _NEAR and (span := _find_near_end(body, wanted)):
        return span
    position = body.index(b"{") + 1
    while member := _MEMBER.match(body, position):
        name, start = member.group(1), member.end()
        position = _end_of_value(body, start)
        if name == wanted or (b"\\" in name and orjson.loads(name) == key):
            return start, position
    return None


def members(body: bytes) -> list[tuple[str, bytes]]:
    """The top-level members of a valid JSON object, in order: names, and the JSON texts of their values."""
    found = []
    position = body.index(b"{") + 1
    while member := _MEMBER.match(body, position):
        start = member.end()
        position = _end_of_value(body, start)
        found.append((orjson.loads(member.group(1)), body[start:position]))
    return found


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
    return b"".join((body[:opening], orjson.dumps(key), b":", value, comma, body[opening:]))


def places(body: bytes, path: Sequence[str]) -> list[tuple[int, int]]:
    """Where the values at `path` start and end in a valid JSON text, from left to right; none where there is nothing.

    A segment is a member's name or an index; `*` is every one of them. The text is walked through once.
    """
    found: list[tuple[int, int]] = []
    _walk(body, len(body) - len(body.lstrip(b" \t\r\n")), path, 0, found)
    return found


def leads(body: bytes, path: Sequence[str]) -> bool:
    """Whether `path` leads to anything in a valid JSON text. `*` leads to all that is in an empty list or object."""
    if places(body, path):
        return True
    stars = [depth for depth, segment in enumerate(path) if segment == EVERY]
    return any(
        (found := places(body, path[:depth])) and all(_is_empty(body, span) for span in found) for depth in stars
    )


def splice(body: bytes, spans: Sequence[tuple[int, int]], value: bytes) -> bytes:
    """`body` with the JSON text `value` in place of each of `spans`, which are disjoint and from left to right."""
    pieces: list[bytes] = []
    position = 0
    for start, end in spans:
        pieces += (body[position:start], value)
        position = end
    return b"".join((*pieces, body[position:]))


def balance(text: bytes) -> int:
    """How many brackets `text` opens without closing them; it must begin outside of strings."""
    bare = _PERHAPS_TORN_STRING.sub(b"", text)
    return bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")


def _signs(text: bytes) -> int:
    """The weight of `text` if none of it is inside of strings: every key brings a colon, every value but the first of
    its list or object a comma, and the first a bracket.
    """
    signs = text.translate(None, _NOT_A_SIGN)
    return len(signs) + 2 * signs.count(b":")


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


def _walk(text: bytes, start: int, path: Sequence[str], depth: int, found: list[tuple[int, int]]) -> int:
    """Adds what the rest of the path leads to, and returns where the value ends."""
    if depth == len(path) or text[start] not in b"{[":
        end = _end_of_value(text, start)
        if depth == len(path):
            found.append((start, end))
        return end
    wanted, position, index = path[depth], start + 1, 0
    if text[start] == _OPENING_BRACE:
        while member := _MEMBER.match(text, position):
            hit = wanted in (EVERY, orjson.loads(member.group(1)))
            position = member.end()
            position = _walk(text, position, path, depth + 1, found) if hit else _end_of_value(text, position)
    else:
        while element := _ELEMENT.match(text, position):
            hit = wanted in (EVERY, str(index))
            position = element.end()
            position = _walk(text, position, path, depth + 1, found) if hit else _end_of_value(text, position)
            index += 1
    closing = _CLOSING.match(text, position)
    assert closing is not None, "what was parsed is closed"
    return closing.end()


def _is_empty(text: bytes, span: tuple[int, int]) -> bool:
    start, end = span
    return text[start] in b"{[" and not text[start + 1 : end - 1].strip(b" \t\r\n")


def _reason(text: str) -> str:
    duplicate = _DUPLICATE.fullmatch(text)
    if duplicate is None:
        return text[:100]
    key, line, column = duplicate.groups()
    return f"the key {_excerpt(key)} is given twice in one object, the second time at line {line} column {column}"


def without_case(key: str) -> str:
    """The one spelling of all that some reader takes for the same: even the long s, the Kelvin sign, i without its dot
    and I with one."""
    return key.upper().casefold().replace("\u0307", "")


def _excerpt(key: str) -> str:
    return repr(key if len(key) <= _EXCERPT else key[:_EXCERPT] + "...")
