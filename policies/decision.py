"""What the policy answered, and the one parser of its answers: whatever is not clearly a decision is none."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import orjson

from policies.errors import Undecided

LARGEST: Final = 64 * 1024
"""Characters of the longest answer that is read; a decision is recorded, and shown to people."""


class Effect(enum.StrEnum):
    """The three words a policy may say."""

    ALLOW = "ALLOW"
    NEEDS_APPROVAL = "NEEDS_APPROVAL"
    DENY = "DENY"


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's answer to one call.

    `explanation` is for the agent and the approver, empty when the policy gave none. `obligations` are conditions of
    the yes. `revision` names the policy text that decided.
    """

    effect: Effect
    risk_level: str | None
    required_approvals: tuple[str, ...]
    explanation: str
    obligations: Mapping[str, object]
    revision: str


RISK_LEVELS: Final = ("low", "medium", "high", "critical")

_EFFECTS: Final[Mapping[str, Effect]] = {effect.value: effect for effect in Effect}
_NONE: Final[Mapping[str, object]] = MappingProxyType({})
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_FIELD_VALUE: Final = re.compile(r"[\x20-\x7e]*", re.ASCII)


def parse(result: str | bytes, revision: str) -> Decision:
    """Reads the JSON text of `data.weighbridge.decision`. Raises Undecided for anything but a well-formed decision.

    Fields this version does not know are passed over; a known field of the wrong type makes the whole answer invalid,
    because a policy that means a condition and mistypes it must not be read as if it had none.
    """
    if len(result) > LARGEST:
        raise Undecided(f"the decision is longer than {LARGEST} characters")
    try:
        answer = orjson.loads(result)
    except orjson.JSONDecodeError:
        raise Undecided("the decision is not JSON") from None
    if answer == "<undefined>" or answer is None:
        raise Undecided("the decision is undefined")
    if not isinstance(answer, dict):
        raise Undecided("the decision is not an object")
    word = answer.get("decision")
    effect = _EFFECTS.get(word) if isinstance(word, str) else None
    if effect is None:
        raise Undecided("`decision` is not one of ALLOW, NEEDS_APPROVAL, DENY")
    for name, (wanted, fits) in _FIELDS.items():
        if name in answer and not fits(answer[name]):
            raise Undecided(f"`{name}` is not {wanted}")
    obligations = answer.get("obligations")
    return Decision(
        effect,
        answer.get("risk_level"),
        tuple(dict.fromkeys(answer.get("required_approvals", ()))),
        answer.get("explanation", ""),
        MappingProxyType(obligations) if obligations else _NONE,
        revision,
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _obligations(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name not in _OBLIGATIONS or _OBLIGATIONS[name](wanted) for name, wanted in value.items()
    )


def _headers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _FIELD_NAME.fullmatch(name) and isinstance(text, str) and _FIELD_VALUE.fullmatch(text)
        for name, text in value.items()
    )


def _tokens(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "risk_level": (f"one of {', '.join(RISK_LEVELS)}", lambda value: value in RISK_LEVELS),
    "required_approvals": ("a list of role names", _texts),
    "explanation": ("a text", lambda value: isinstance(value, str)),
    "obligations": ("an object of well-formed obligations", _obligations),
}
_OBLIGATIONS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "max_tokens": _tokens,
    "redact": lambda value: _texts(value) and all(pointer.startswith("/") for pointer in value),
    "headers": _headers,
    "route": lambda value: isinstance(value, str) and value != "",
}
