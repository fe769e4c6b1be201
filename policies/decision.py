"""What the policy answered, and the one parser of its answers: whatever is not clearly a decision is none."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from policies.errors import Undecided
from policies.masks import STARS
from policies.obligations import Obligations, read

LARGEST: Final = 64 * 1024
"""Characters of the longest answer that is read; a decision is recorded, and shown to people."""
MOST_ROLES: Final = 16
"""Of people whom a decision may ask for."""


class Effect(enum.StrEnum):
    """The three words a policy may say."""

    ALLOW = "ALLOW"
    NEEDS_APPROVAL = "NEEDS_APPROVAL"
    DENY = "DENY"


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's answer to one call. Nothing in it can be changed, so that calls may share one.

    `required_approvals` are roles, each for a person of its own: a role that stands twice asks for two people of it.
    `explanation` is for the agent and the approver, empty when the policy gave none. `obligations` are conditions of
    the yes. `revision` names the policy text that decided. `answer` is the decision as JSON text, as it is recorded:
    without the values that it puts into calls and headers, which may be anything.
    """

    effect: Effect
    risk_level: str | None
    required_approvals: tuple[str, ...]
    explanation: str
    obligations: Obligations
    revision: str
    answer: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made once per decision and not once per call that shares it.
        object.__setattr__(self, "answer", orjson.dumps(self._recorded()))

    def facts(self) -> dict[str, Any]:
        """What the policy said, without what it left out."""
        facts: dict[str, Any] = {"decision": self.effect.value}
        if self.risk_level is not None:
            facts["risk_level"] = self.risk_level
        if self.required_approvals:
            facts["required_approvals"] = self.required_approvals
        if self.explanation:
            facts["explanation"] = self.explanation
        if self.obligations:
            facts["obligations"] = self.obligations.facts()
        return facts

    def _recorded(self) -> dict[str, Any]:
        facts = self.facts()
        for values in ("headers", "replace"):
            if values in facts.get("obligations", ()):
                facts["obligations"][values] = dict.fromkeys(facts["obligations"][values], STARS)
        return facts


RISK_LEVELS: Final = ("low", "medium", "high", "critical")

_EFFECTS: Final[Mapping[str, Effect]] = {effect.value: effect for effect in Effect}


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
    try:
        return Decision(
            effect,
            answer.get("risk_level"),
            tuple(answer.get("required_approvals", ())),
            answer.get("explanation", ""),
            read(answer.get("obligations", {})),
            revision,
        )
    except (ValueError, TypeError) as error:  # the latter for what nests too deep to be written again
        raise Undecided(f"`obligations` are malformed: {error}") from None


def _roles(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= MOST_ROLES and all(isinstance(role, str) and role for role in value)
    )


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "risk_level": (f"one of {', '.join(RISK_LEVELS)}", lambda value: value in RISK_LEVELS),
    "required_approvals": (f"a list of at most {MOST_ROLES} role names", _roles),
    "explanation": ("a text", lambda value: isinstance(value, str)),
    "obligations": ("an object", lambda value: isinstance(value, dict)),
}
