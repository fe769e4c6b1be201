"""Two policies on the same calls: the one that decides and the other, what they differ in, and when to turn back.

    shadowing -- promote --> watching -- time is over --> kept
        ^                      |  |                         |
        |                      |  +-- departs --> rolled back
        +---- roll back -------+----------------------------+

In `shadowing` and `rolled back` the configured policy decides and its shadow is compared with it; in `watching` and
`kept` it is the other way round. Nothing here loads, swaps or records: `gateway.trial` does.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from config.settings import RollbackSettings
from policies.decision import Decision, Effect
from policies.document import Question
from policies.engine import Engine
from policies.errors import EngineUnavailable, InputRefused, Undecided


class Stage(enum.StrEnum):
    """How far a policy on trial has come."""

    SHADOWING = "shadowing"
    WATCHING = "watching"
    KEPT = "kept"
    ROLLED_BACK = "rolled_back"

    @property
    def promoted(self) -> bool:
        """Whether the policy on trial decides."""
        return self in (Stage.WATCHING, Stage.KEPT)


class Event(enum.StrEnum):
    """What moves a trial on."""

    PROMOTE = "promote"
    ROLL_BACK = "rollback"
    DEPART = "depart"
    TIME_OVER = "time_over"


TRANSITIONS: Final[Mapping[tuple[Stage, Event], Stage]] = {
    (Stage.SHADOWING, Event.PROMOTE): Stage.WATCHING,
    (Stage.ROLLED_BACK, Event.PROMOTE): Stage.WATCHING,
    (Stage.WATCHING, Event.ROLL_BACK): Stage.SHADOWING,
    (Stage.WATCHING, Event.DEPART): Stage.ROLLED_BACK,
    (Stage.WATCHING, Event.TIME_OVER): Stage.KEPT,
    (Stage.KEPT, Event.ROLL_BACK): Stage.SHADOWING,
}
"""Whatever is not here changes nothing."""

UNDECIDED: Final = "UNDECIDED"
"""The word for a policy that gave no valid decision: the call is refused, as by DENY."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one policy says of a call, as far as two policies are compared.

    `effect` is a decision's word or UNDECIDED; `conditions` are risk level, required approvals and obligations, which
    matter when both allow.
    """

    effect: str
    conditions: tuple[Any, ...]
    explanation: str
    revision: str

    @property
    def refuses(self) -> bool:
        return self.effect in (Effect.DENY, UNDECIDED)

    @property
    def holds(self) -> bool:
        return self.effect == Effect.NEEDS_APPROVAL


def verdict(decision: Decision | None, revision: str) -> Verdict:
    """The verdict that a decision is; None is a policy that could not decide."""
    if decision is None:
        return Verdict(UNDECIDED, (), "", revision)
    conditions: tuple[Any, ...] = ()
    if decision.effect is not Effect.DENY:
        conditions = (decision.risk_level, decision.required_approvals, decision.obligations)
    return Verdict(decision.effect, conditions, decision.explanation, decision.revision)


async def other_verdict(engine: Engine, question: Question) -> Verdict | None:
    """What the policy that does not decide says, None where it could not be asked: a server that is away says nothing
    about its policies. Never raises for what a policy can do wrong."""
    try:
        return verdict(await engine.decide(question), engine.revision)
    except (Undecided, InputRefused):
        return verdict(None, engine.revision)
    except EngineUnavailable:
        return None


def differ(one: Verdict, other: Verdict) -> bool:
    """Whether a caller would notice: another word, or the same yes under other conditions. Wording does not count."""
    return one.effect != other.effect or one.conditions != other.conditions


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of the same calls, from 0 to 1, refused and held by the configured policy and by the one on trial."""

    calls: int
    denied: float
    denied_on_trial: float
    held: float
    held_on_trial: float


class Comparison:
    """Counts of the calls that both policies were asked about, since one of them last changed.

    `pairs` counts (word of the configured policy, word of the one on trial). The rates are those of the last `window`
    calls, so that a late change is not drowned by a long calm.
    """

    def __init__(self, window: int) -> None:
        self.calls = 0
        self.differences = 0
        self.pairs: Counter[tuple[str, str]] = Counter()
        self._last: deque[tuple[bool, bool, bool, bool]] = deque(maxlen=window)
        self._sums = [0, 0, 0, 0]

    def add(self, configured: Verdict, on_trial: Verdict) -> bool:
        """Counts one call and returns whether the policies differ on it."""
        self.calls += 1
        self.pairs[configured.effect, on_trial.effect] += 1
        each = (configured.refuses, on_trial.refuses, configured.holds, on_trial.holds)
        if len(self._last) == self._last.maxlen:
            for place, was in enumerate(self._last[0]):
                self._sums[place] -= was
        self._last.append(each)
        for place, now in enumerate(each):
            self._sums[place] += now
        different = differ(configured, on_trial)
        self.differences += different
        return different

    def rates(self) -> Rates:
        calls = len(self._last)
        return Rates(calls, *(count / calls if calls else 0.0 for count in self._sums))

    def departure(self, limits: RollbackSettings) -> str:
        """Why the policy on trial must not go on deciding, in words; empty when it may.

        Both policies were asked about the same calls, so that a difference of their rates is one of the policies, not
        of the traffic.
        """
        rates = self.rates()
        if rates.calls < limits.min_calls:
            return ""
        for what, before, now, tolerated in (
            ("refuses", rates.denied, rates.denied_on_trial, limits.max_deny_change),
            ("holds", rates.held, rates.held_on_trial, limits.max_approval_change),
        ):
            # Counts are compared, because a difference of two fractions may be a hair above what it should be.
            if abs(round(now * rates.calls) - round(before * rates.calls)) > tolerated * rates.calls + 1e-9:
                return (
                    f"it {what} {now:.2%} of the last {rates.calls} calls, the policy before it {before:.2%}; "
                    f"tolerated is a difference of {tolerated:.2%}"
                )
        return ""
