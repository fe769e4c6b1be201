"""What is missing until a canary may get a larger share: time, evidence that it is within its limit, the gates, and
somebody's word where the plan wants it.

Too little traffic is never a reason to promote, and never one to roll back: a step lasts until the evidence is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from config.settings import RolloutSettings, RolloutStepSettings
from routing.course import ABSENT, COST, OVERFLOW, SLOW, UNPRICED
from routing.evidence import BETA, below, trials_needed, units
from routing.phrases import duration, listed, percent
from routing.watch import calls_and_errors, has_control


class Missing(NamedTuple):
    """One thing that is missing. `amount` is in seconds for `time`, in calls for `calls`, None where nobody can say."""

    what: Literal["time", "calls", "rejected", "first_token", "cost", "overflow", "approval"]
    text: str
    amount: float | None = None


def missing(
    plan: RolloutSettings,
    step: RolloutStepSettings,
    lasted: float,
    mine: Mapping[str, int],
    theirs: Mapping[str, int],
    pace: float,
    rejected: str = "",
) -> Iterator[Missing]:
    """What is missing to leave a step that has lasted so many seconds.

    `mine` and `theirs` are the step's counts by name, of the canary and of the other arms; `pace` is how many calls the
    canary gets in a second, 0.0 where that is not known. `rejected` tells of calls that it has rejected, if it may be
    that others would have taken them.
    """
    left = step.hold - lasted
    if left > 0:
        yield Missing("time", f"{duration(left)} more at this step", left)
    if plan.mode == "window":
        yield from _calls_for_window(*calls_and_errors(mine), step.max_error_rate, plan.min_calls, pace)
    else:
        yield from _calls_for_evidence(*units(mine), step.max_error_rate, pace)
    if rejected:
        yield Missing("rejected", f"it may be that it rejects what others take: {rejected}")
    yield from _gates(plan, mine)
    if plan.gates.max_cost_ratio is not None and has_control(step.weight):
        yield from _cost(plan.gates.max_cost_ratio, mine, theirs)
    if plan.approval:
        yield Missing("approval", f"{whose(plan.approval)} has to promote it")


def whose(roles: tuple[str, ...]) -> str:
    """Who may promote, in words."""
    return f"somebody with the role {listed(roles)}"


def _calls_for_evidence(calls: int, errors: int, limit: float, pace: float) -> Iterator[Missing]:
    needed = trials_needed(calls, errors, limit)
    if needed is None:
        found = f"{percent(errors / calls)} of {calls:,} calls failed"
        yield Missing("calls", f"{found}, too close to {percent(limit)} for any number of calls to show it is below")
    elif needed:
        alike = f", if no more than {percent(errors / calls)} fail" if errors else ""
        yield Missing("calls", f"needs ~{needed:,} more calls{_when(needed, pace)}{alike}", float(needed))


def _calls_for_window(calls: int, errors: int, limit: float, least: int, pace: float) -> Iterator[Missing]:
    if calls < least:
        needed = least - calls
        yield Missing("calls", f"needs {needed:,} more calls{_when(needed, pace)}", float(needed))
    elif errors > limit * calls:
        yield Missing("calls", f"{percent(errors / calls)} of {calls:,} calls failed, where {percent(limit)} may")


def _when(needed: int, pace: float) -> str:
    return f", about {duration(needed / pace)} at the present rate" if pace > 0 else ""


def _gates(plan: RolloutSettings, mine: Mapping[str, int]) -> Iterator[Missing]:
    gates = plan.gates
    calls = calls_and_errors(mine)[0]
    slow = min(mine.get(SLOW, 0), calls)
    if gates.max_first_token is not None and below(calls, slow, gates.max_slow_share) < math.log(1 / BETA):
        found = f"the first token of {slow:,} of {calls:,} calls came later than {gates.max_first_token:g} s"
        yield Missing(
            "first_token", f"{found}, which does not show yet that less than {percent(gates.max_slow_share)} do"
        )
    overflow = mine.get(OVERFLOW, 0) + mine.get(ABSENT, 0)
    if overflow > gates.max_overflow * (calls + overflow):
        found = f"{overflow:,} of {calls + overflow:,} calls found it full or out of service and went elsewhere"
        yield Missing("overflow", f"{found}, where {percent(gates.max_overflow)} may")


def _cost(most: float, mine: Mapping[str, int], theirs: Mapping[str, int]) -> Iterator[Missing]:
    each, other = _cost_each(mine), _cost_each(theirs)
    if each is None or other is None:
        whose = " and ".join(
            name for name, counts in (("the canary", mine), ("the other arms", theirs)) if counts.get(UNPRICED)
        )
        unpriced = f": the price of {whose} is not known, see targets[].price" if whose else ""
        yield Missing("cost", f"there are no successful calls yet whose cost could be compared{unpriced}")
    elif each > most * other:
        found = f"{each / other:.3g} times as much as" if other else "something, and nothing"
        yield Missing("cost", f"a successful call costs {found} on the other arms, where {most:g} times may be")


def _cost_each(counts: Mapping[str, int]) -> float | None:
    """Nano-dollars for a call that succeeded, of those whose price is known; None where there is none."""
    calls, errors = calls_and_errors(counts)
    priced = calls - errors - counts.get(UNPRICED, 0)
    return counts.get(COST, 0) / priced if priced > 0 else None
