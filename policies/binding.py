"""What exactly people approve, as one hash: it tells a repeated call from another one, and votes what they are on.

    SHA-256("weighbridge-approval/1\\n" + the RFC 8785 form of
        {"tenant", "agent", "kind", "protocol", "target", "operation", "method", "path", "query", "headers",
         "definition", "arguments" and "numbers", or "bytes"})

`arguments` is the body, parsed. Two bodies are the same call when they differ in nothing but white space, the order of
keys, and how the same texts are escaped. RFC 8785 would also take `1.0` for `1`; so `numbers` has, by JSON Pointer,
each number that it would write otherwise than it came, as it came. A body that is no JSON has its SHA-256 in `bytes`.
`headers` are all that the call has, but for those that clients change from one try to the next.

What runs are the stored bytes of the call that was held first, never those of a repetition.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, Final, NamedTuple, NoReturn

import rfc8785

from policies.approvals import HeldCall

DEEPEST: Final = 128
"""Levels of the deepest body that can be approved."""
LARGEST: Final = 2**53 - 1
"""The largest whole number that every reader of JSON can hold."""

_OF_ONE_TRY: Final = frozenset(
    {b"idempotency-key", b"traceparent", b"tracestate", b"user-agent", b"x-request-id"},
)
_OF_ONE_TRY_PREFIX: Final = b"x-stainless-"
"""The SDKs of OpenAI and Anthropic count their tries in one of these."""

_EXCERPT: Final = 40
_JSON: Final = re.compile(
    rb"[ \t]*(?:application|text)/(?:[^;, \t]+\+)?json[ \t]*(?:[;,].*)?", re.IGNORECASE | re.DOTALL
)


class Unbindable(Exception):
    """Nobody can tell for certain what the call says, so it is denied and not held. Its text is fit for the agent."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Nobody can be asked to approve this call: {reason}.")


class Change(NamedTuple):
    """One value that is another, as JSON texts: `old` is None where there was none, `new` where there is none now."""

    pointer: str
    old: str | None
    new: str | None


class _Spelled(float):
    """A number that RFC 8785 would write otherwise than it came."""

    spelling: str


def binding(call: HeldCall) -> str:
    """The hash, in hexadecimal digits. Raises Unbindable."""
    return hashlib.sha256(b"weighbridge-approval/1\n" + canonical(call)).hexdigest()


def canonical(call: HeldCall) -> bytes:
    """What is hashed, without the line before it. Raises Unbindable.

    It takes time with what the body holds, about 1 us for each value and up to 6 us for one with a spelling of its own:
    what is long is for a thread.
    """
    document: dict[str, Any] = {
        "tenant": call.tenant,
        "agent": call.agent,
        "kind": call.kind,
        "protocol": call.protocol,
        "target": call.target,
        "operation": call.operation,
        "method": call.method,
        "path": call.path,
        "query": call.query.decode("latin-1"),
        "headers": [
            [name.decode("latin-1"), value.decode("latin-1")] for name, value in call.headers if not _of_one_try(name)
        ],
        "definition": call.definition,
    }
    if is_json(call):
        document["arguments"], document["numbers"] = _read(call.body)
    else:
        document["bytes"] = hashlib.sha256(call.body).hexdigest()
    try:
        return rfc8785.dumps(document)
    except ValueError:  # what its names and its path hold; the body has been looked through
        raise Unbindable("one of its texts is no Unicode") from None


def hold_key(call: HeldCall, binding: str) -> str:
    """What identical calls have in common: the binding and the session. Raises Unbindable."""
    try:
        return hashlib.sha256(b"weighbridge-hold/1\n" + rfc8785.dumps([binding, call.session])).hexdigest()
    except ValueError:
        raise Unbindable("its session is no Unicode") from None


def changes(before: bytes, after: bytes) -> list[Change]:
    """In what two bodies differ, from the first to the last: none where they are the same call.

    Both are JSON texts. Lists are compared place by place. Raises Unbindable.
    """
    found: list[Change] = []
    _compare(_read(before)[0], _read(after)[0], "", found)
    return found


def _of_one_try(header: bytes) -> bool:
    name = header.lower()
    return name in _OF_ONE_TRY or name.startswith(_OF_ONE_TRY_PREFIX)


def is_json(call: HeldCall) -> bool:
    """Whether the body has to be JSON. Of a plain HTTP tool only one that says so; no body at all is none."""
    if call.protocol != "http":
        return call.body != b""
    return any(name.lower() == b"content-type" and _JSON.fullmatch(value) for name, value in call.headers)


def arguments(call: HeldCall) -> bytes:
    """What the policy has seen of the call, as a JSON text; empty where that is not known."""
    return call.arguments or (call.body if is_json(call) else b"")


def _read(body: bytes) -> tuple[Any, dict[str, str]]:
    """A JSON text, and the spellings of those numbers in it that have a usual other one. Raises Unbindable."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_fraction,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise Unbindable("its body is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise Unbindable(f"its body is no JSON ({error.msg} at line {error.lineno} column {error.colno})") from None
    except RecursionError:
        raise Unbindable(f"its body nests deeper than {DEEPEST} levels") from None
    spellings: dict[str, str] = {}
    _look_through(value, "", 0, spellings)
    return value, spellings


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        seen: set[str] = set()
        twice = next(key for key, _ in members if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unbindable(f"its body has the key {_excerpt(twice)} twice in one object")
    return value


def _integer(text: str) -> int | float:
    if len(text) > len(str(-LARGEST)) or abs(number := int(text)) > LARGEST:
        raise Unbindable(f"not every reader can hold the whole number {text[:_EXCERPT]} in its body; send it as a text")
    return number if number or text == "0" else _spelled(-0.0, text)


def _fraction(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Unbindable(f"no reader can hold the number {text[:_EXCERPT]} in its body")
    return number if _text(number) == text else _spelled(number, text)


def _spelled(number: float, text: str) -> _Spelled:
    value = _Spelled(number)
    value.spelling = text
    return value


def _constant(text: str) -> NoReturn:
    raise Unbindable(f"its body has {text}, which is no JSON")


def _look_through(value: Any, pointer: str, level: int, spellings: dict[str, str]) -> None:
    if isinstance(value, _Spelled):
        spellings[pointer] = value.spelling
    elif isinstance(value, str):
        _check_text(value)
    elif isinstance(value, dict | list):
        if level == DEEPEST:
            raise Unbindable(f"its body nests deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            for key, member in value.items():
                _check_text(key)
                _look_through(member, f"{pointer}/{_segment(key)}", level + 1, spellings)
        else:
            for index, item in enumerate(value):
                _look_through(item, f"{pointer}/{index}", level + 1, spellings)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unbindable(f"its body has half of a surrogate pair in {_excerpt(text)}") from None


def _compare(old: Any, new: Any, pointer: str, found: list[Change]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            _compare(old.get(key, _NOTHING), new.get(key, _NOTHING), f"{pointer}/{_segment(key)}", found)
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            before, after = (each[index] if index < len(each) else _NOTHING for each in (old, new))
            _compare(before, after, f"{pointer}/{index}", found)
    elif (before := _text(old)) != (after := _text(new)):
        found.append(Change(pointer, before, after))


_NOTHING: Final = object()


def _text(value: Any) -> str | None:
    """A value that was read, as a JSON text with its numbers as they came; None for nothing."""
    if value is _NOTHING:
        return None
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)}: {_text(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"{_text(item)}" for item in value) + "]"
    if isinstance(value, _Spelled):
        return value.spelling
    return _quoted(value) if isinstance(value, str) else rfc8785.dumps(value).decode()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _segment(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "...")
