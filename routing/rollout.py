"""How far the canary of a route has come: steps with a growing share of the calls, each kept until the canary is known
to be good enough for the next, and the way back where it is not.

Everything here is a pure function of a rollout's state, its plan and closed buckets of counts: whoever works it out
finds the same, so every gateway may, and a compare and set of the route's course decides which of them was first.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from config.settings import RolloutSettings, RolloutStepSettings
from routing import promotion
from routing.course import BUCKET, CALLS, SET_BACK, Bucket
from routing.evidence import BETA, below, units
from routing.phrases import listed
from routing.promotion import Missing
from routing.watch import (
    Facts,
    Terms,
    Verdict,
    Watch,
    begun,
    begun_again,
    failed,
    found,
    may_reject,
    sides,
    so_far,
    suspicion,
    taken,
    told_of_rejected,
)

ITSELF: Final = "weighbridge"
"""Who has made a move that no person made."""

_MEMORY: Final = 7 * 86_400
"""Seconds over which traffic is averaged."""
_HISTORY: Final = 50
_TOLD_AT_MOST: Final = 100.0
_MOST_ODDS: Final = 1e6
_MOST_HALVED: Final = 10


class State(enum.StrEnum):
    """Where a rollout is."""

    DRAFT = "DRAFT"
    """Not begun: the arms have the weights of the configuration."""
    RUNNING = "RUNNING"
    """The canary has its step's weight, and is judged."""
    PAUSED = "PAUSED"
    """The canary keeps its weight and is judged, but not promoted until a person resumes."""
    PROMOTED = "PROMOTED"
    """All steps are passed; the canary has `promoted_weight` and is watched a while longer."""
    ROLLED_BACK = "ROLLED_BACK"
    """The canary gets no new calls until a person starts again."""


Step = Literal["start", "pause", "resume", "promote", "abort"]
"""What a person may ask for."""
Move = Literal["start", "pause", "resume", "promote", "complete", "rollback", "abort"]
"""`complete` is the promotion out of the last step, `rollback` the one for what was found."""

TRANSITIONS: Final[Mapping[tuple[State, Move], State]] = {
    (State.DRAFT, "start"): State.RUNNING,
    (State.RUNNING, "promote"): State.RUNNING,
    (State.RUNNING, "complete"): State.PROMOTED,
    (State.RUNNING, "pause"): State.PAUSED,
    (State.RUNNING, "rollback"): State.ROLLED_BACK,
    (State.RUNNING, "abort"): State.ROLLED_BACK,
    (State.PAUSED, "resume"): State.RUNNING,
    (State.PAUSED, "rollback"): State.ROLLED_BACK,
    (State.PAUSED, "abort"): State.ROLLED_BACK,
    (State.PROMOTED, "rollback"): State.ROLLED_BACK,
    (State.PROMOTED, "abort"): State.ROLLED_BACK,
    (State.ROLLED_BACK, "start"): State.RUNNING,
}
"""Every move there is. Only a person starts and resumes, and a start is always at step 1."""

_ENTERED_WITH: Final = {
    State.RUNNING: Verdict.HOLD,
    State.PAUSED: Verdict.PAUSE,
    State.PROMOTED: Verdict.PROMOTE,
    State.ROLLED_BACK: Verdict.ROLLBACK,
}

_DONE: Final[Mapping[Move, str]] = {
    "start": "started",
    "pause": "paused",
    "resume": "resumed",
    "promote": "promoted",
    "complete": "promoted",
    "rollback": "rolled back",
    "abort": "aborted",
}


class MoveRefused(Exception):
    """A person asked for what the rollout's state does not allow; the message says what it does."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a rollout, for the ledger, the webhook and the history; `at` is in Unix seconds.

    `what` is a move, `ready` (only a person's promotion is missing) or `plan` (it was edited). `by` is a person's name,
    or ITSELF. State, step and verdict are those afterwards. `without_evidence` says what was missing when a person has
    promoted nevertheless.
    """

    at: int
    what: str
    by: str
    state: State
    step: int
    verdict: Verdict
    text: str
    facts: Facts | None = None
    without_evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """The whole state of a rollout. Times are Unix seconds.

    `step` counts from 1 to `steps`, 0 before the first start; `tries` counts the starts. `began` is when the step
    began, `moved` when the last move was made, `paused` for how many seconds of the step it was paused before. `cursor`
    is the last bucket that was taken in; `calls` in `seconds` are the route's lately. `reason` says what has paused
    it; `ratio_accepted` that a person resumed it though the canary is the worse arm, `rejections_accepted` that one did
    though it rejects more calls than the others; `told` that `ready` was told.
    `plan` is the one that it is judged by, in the words of `_words`; empty where that was not noted.
    """

    canary: str
    steps: int
    state: State = State.DRAFT
    verdict: Verdict = Verdict.HOLD
    step: int = 0
    tries: int = 0
    began: int = 0
    moved: int = 0
    paused: int = 0
    cursor: int = -1
    calls: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    ratio_accepted: bool = False
    told: bool = False
    watch: Watch | None = None
    history: tuple[Event, ...] = ()
    plan: str = ""
    rejections_accepted: bool = False

    @property
    def pace(self) -> float:
        """Calls of the whole route in a second; 0.0 where none are known."""
        return self.calls / self.seconds if self.seconds else 0.0


def draft(plan: RolloutSettings) -> Rollout:
    """A rollout that has not begun."""
    return Rollout(plan.canary, len(plan.steps), plan=_words(plan))


def _words(plan: RolloutSettings) -> str:
    """What decides on a state by a plan: two that differ in it cannot both judge a rollout."""
    limits = ", ".join(f"{each.max_error_rate!r}" for each in plan.steps)
    return f"{plan.canary}: {limits}; alpha {plan.alpha!r}, ratio {plan.max_ratio!r}"


@functools.cache
def _adapter() -> TypeAdapter[Rollout]:
    return TypeAdapter(Rollout)


def to_json(rollout: Rollout) -> dict[str, Any]:
    """The state as JSON values; what `from_json` makes of it is equal."""
    document: dict[str, Any] = _adapter().dump_python(rollout, mode="json")
    return document


def from_json(document: Mapping[str, Any]) -> Rollout:
    """Raises ValueError for what is no rollout's state."""
    return _adapter().validate_python(document)


def share(rollout: Rollout, plan: RolloutSettings) -> float | None:
    """The canary's share of new calls, in per cent; None where it is as configured."""
    if rollout.state is State.DRAFT or rollout.canary != plan.canary:
        return None
    if rollout.state is State.ROLLED_BACK:
        return 0.0
    return plan.promoted_weight if rollout.state is State.PROMOTED else _planned(rollout, plan).weight


def weights(rollout: Rollout, plan: RolloutSettings, configured: Mapping[str, float]) -> Mapping[str, float]:
    """The weights in force, by target; where the rollout has begun they sum up to 100.

    The other arms share what the canary leaves in proportion to their configured weights, equally where they have none.
    """
    mine = share(rollout, plan)
    if mine is None or plan.canary not in configured or len(configured) < 2:
        return configured
    others = {arm: weight for arm, weight in configured.items() if arm != plan.canary}
    if not any(others.values()):
        others = dict.fromkeys(others, 1.0)
    together = sum(others.values())
    return {arm: mine if arm == plan.canary else (100.0 - mine) * (others[arm] / together) for arm in configured}


def step(
    rollout: Rollout, what: Step, by: str, now: int, comment: str = "", lacking: Sequence[Missing] = ()
) -> Rollout:
    """The state after a person's step; what happened is the last of its history. Raises MoveRefused.

    Who promotes has the last word, whatever is `lacking` (`missing`): that is told. Whether the person may is for the
    caller to know.
    """
    last = what == "promote" and rollout.step >= rollout.steps
    move: Move = "complete" if last else what
    if (rollout.state, move) not in TRANSITIONS:
        may = [_DONE[each] for state, each in TRANSITIONS if state is rollout.state]
        may = [each for each in dict.fromkeys(may) if each != _DONE["rollback"]]
        raise MoveRefused(f"The rollout is {rollout.state}: it cannot be {_DONE[move]} now, only {listed(may)}.")
    text, facts = f"{by} {_DONE[move]} the rollout.", None
    overridden: tuple[str, ...] = ()
    if what == "promote":
        passed = f"{by} promoted step {rollout.step} of {rollout.steps}"
        overridden = tuple(each.text for each in lacking if each.what != "approval")
        if overridden:
            passed = f"{passed} without the evidence ({'; '.join(overridden)})"
        text = f"{passed}." if rollout.verdict is Verdict.PROMOTE else f"{passed}; the verdict was {rollout.verdict}."
        facts = so_far(rollout.watch) if rollout.watch else None
    if comment:
        text = f"{text.removesuffix('.')}: {comment}"
    return _moved(rollout, move, by, now, text, facts, overridden=overridden)


def _moved(
    rollout: Rollout,
    move: Move,
    by: str,
    now: int,
    text: str,
    facts: Facts | None,
    reason: str = "",
    overridden: tuple[str, ...] = (),
) -> Rollout:
    """After a move that the table allows."""
    state = TRANSITIONS[rollout.state, move]
    moved = replace(rollout, state=state, verdict=_ENTERED_WITH[state], moved=now, reason=reason, told=False)
    if move == "start":
        moved = _at_step(replace(moved, tries=rollout.tries + 1), 1, now)
    elif move == "promote":
        moved = _at_step(moved, rollout.step + 1, now)
    elif move == "complete":
        moved = _at_step(replace(moved, tries=1), rollout.step, now)
    elif move == "resume":
        moved = replace(
            moved,
            paused=rollout.paused + max(0, now - rollout.moved),
            ratio_accepted=rollout.ratio_accepted or rollout.reason == "ratio",
            rejections_accepted=rollout.rejections_accepted or rollout.reason == "rejected",
            watch=begun_again(rollout.watch, now) if rollout.watch else None,
        )
    elif state is State.ROLLED_BACK:
        moved = replace(moved, watch=None)
    return _recorded(moved, Event(now, move, by, state, moved.step, moved.verdict, text, facts, overridden))


def _at_step(rollout: Rollout, number: int, now: int) -> Rollout:
    fresh = replace(rollout, step=number, began=now, paused=0, watch=None)
    return replace(fresh, ratio_accepted=False, rejections_accepted=False)


def _recorded(rollout: Rollout, event: Event) -> Rollout:
    return replace(rollout, history=(*rollout.history, event)[-_HISTORY:])


def advance(
    rollout: Rollout, plan: RolloutSettings, buckets: Sequence[Bucket], now: int, samples: Sequence[str] = ()
) -> tuple[Rollout, list[Event]]:
    """The state after closed buckets, in order, and what happened in them; the same object where nothing is new.

    Buckets that were taken in before are passed over. `now` is in Unix seconds. `samples` are ids of calls that the
    canary has lately failed, the latest last: a verdict tells some of them.
    """
    last = rollout.history[-1:]
    rollout = _replanned(rollout, plan, now)
    events = list(rollout.history[-1:]) if rollout.history[-1:] != last else []
    for bucket in buckets:
        if bucket.at > rollout.cursor:
            rollout = _judged(_taken(rollout, plan, bucket), plan, bucket.at + BUCKET, samples, events)
    return _judged(rollout, plan, now, samples, events), events


def set_back(rollout: Rollout, now: int) -> Rollout:
    """The state where the clock, in Unix seconds, went back further than buckets bear: nothing in it is yet to come.

    Otherwise nothing would be taken in until the clock is again where it was. The same object where it has not.
    """
    if max(rollout.cursor, rollout.began, rollout.moved) <= now + SET_BACK:
        return rollout
    at = now - now % BUCKET - BUCKET
    watch = rollout.watch
    if watch is not None:
        cells = tuple(cell for cell in watch.cells if cell.at <= at)
        watch = replace(watch, began=min(watch.began, at), since=min(watch.since, at), cells=cells)
    return replace(
        rollout,
        cursor=min(rollout.cursor, at),
        began=min(rollout.began, now),
        moved=min(rollout.moved, now),
        watch=watch,
    )


def is_of(rollout: Rollout, plan: RolloutSettings) -> bool:
    """Whether a rollout is of this plan, so that judging it by the plan would begin nothing anew."""
    if rollout.canary != plan.canary or rollout.steps != len(plan.steps) or rollout.plan not in ("", _words(plan)):
        return False
    return rollout.watch is None or rollout.watch.terms == _terms(rollout, plan)


def _replanned(rollout: Rollout, plan: RolloutSettings, now: int) -> Rollout:
    """What an edit of the plan means: another canary has everything to show yet, another limit has its own evidence."""
    if rollout.canary != plan.canary:
        text = f"The plan's canary is {plan.canary}, no longer {rollout.canary}."
        fresh = replace(draft(plan), moved=now, cursor=rollout.cursor, calls=rollout.calls, seconds=rollout.seconds)
        event = Event(now, "plan", ITSELF, fresh.state, fresh.step, fresh.verdict, text)
        return _recorded(replace(fresh, history=rollout.history), event)
    steps, words = len(plan.steps), _words(plan)
    if rollout.plan != words:
        rollout = replace(rollout, plan=words)
    if rollout.steps != steps:
        rollout = replace(rollout, steps=steps, step=min(rollout.step, steps))
    if rollout.watch is None or rollout.watch.terms == _terms(rollout, plan):
        return rollout
    verdict = Verdict.HOLD if rollout.state is State.RUNNING else rollout.verdict
    text = f"The plan of step {rollout.step} was edited: its evidence begins again."
    fresh = replace(rollout, watch=None, verdict=verdict, told=False)
    return _recorded(fresh, Event(now, "plan", ITSELF, fresh.state, fresh.step, verdict, text))


def _planned(rollout: Rollout, plan: RolloutSettings) -> RolloutStepSettings:
    """The step that the rollout is at, or was at last."""
    return plan.steps[max(1, min(rollout.step, len(plan.steps))) - 1]


def _terms(rollout: Rollout, plan: RolloutSettings) -> Terms:
    """Every start after a rollback has half the alpha of the one before, so that trying again does not wear it out."""
    halved = min(max(rollout.tries - 1, 0), _MOST_HALVED)
    return Terms(_planned(rollout, plan).max_error_rate, plan.alpha / 2**halved, plan.max_ratio)


def _taken(rollout: Rollout, plan: RolloutSettings, bucket: Bucket) -> Rollout:
    """After the counts of one bucket."""
    passed = min(bucket.at - rollout.cursor, _MEMORY) if rollout.cursor >= 0 else BUCKET
    faded = math.exp(-passed / _MEMORY)
    calls = sum(side.get(CALLS, 0) for side in sides(bucket.counts, plan.canary))
    fresh = replace(
        rollout, cursor=bucket.at, calls=rollout.calls * faded + calls, seconds=rollout.seconds * faded + passed
    )
    if not _watched(rollout, plan, bucket.at):
        return fresh
    watch = rollout.watch
    if watch is None:
        promoted = rollout.state is State.PROMOTED
        planned = rollout.pace * (plan.watch_for if promoted else _planned(rollout, plan).hold)
        since = max(bucket.at, rollout.began)
        watch = begun(bucket.at, _terms(rollout, plan), share(rollout, plan) or 0.0, planned, since)
    if bucket.at < watch.began:
        return fresh
    return replace(fresh, watch=taken(watch, plan, bucket, paused=rollout.state is State.PAUSED))


def _watched(rollout: Rollout, plan: RolloutSettings, at: int) -> bool:
    """Whether what is counted in this bucket is about the canary's present step."""
    if at + BUCKET <= rollout.began:
        return False
    if rollout.state is State.PROMOTED:
        return at < rollout.began + plan.watch_for
    return rollout.state in (State.RUNNING, State.PAUSED)


def _judged(rollout: Rollout, plan: RolloutSettings, at: int, samples: Sequence[str], events: list[Event]) -> Rollout:
    """After the verdict on all that is known at this time; what happens is added to `events`."""
    watch = rollout.watch
    if watch is None or not _watched(rollout, plan, at - BUCKET):
        return rollout
    finding = found(
        watch,
        plan,
        share(rollout, plan) or 0.0,
        tuple(samples),
        paused_for=rollout.reason,
        ratio_accepted=rollout.ratio_accepted,
        rejections_accepted=rollout.rejections_accepted,
    )
    if finding.verdict is Verdict.ROLLBACK:
        moved = _moved(rollout, "rollback", ITSELF, at, finding.text, finding.facts, finding.reason)
    elif rollout.state is not State.RUNNING:
        return rollout
    elif finding.verdict is Verdict.PAUSE:
        moved = _moved(rollout, "pause", ITSELF, at, finding.text, finding.facts, finding.reason)
    elif finding.reason:
        return rollout if rollout.verdict is Verdict.HOLD else replace(rollout, verdict=Verdict.HOLD)
    else:
        moved = _grown(rollout, plan, watch, at)
    if moved.history[-1:] != rollout.history[-1:]:
        events.append(moved.history[-1])
    return moved


def _grown(rollout: Rollout, plan: RolloutSettings, watch: Watch, at: int) -> Rollout:
    """After a verdict that holds nothing against the canary."""
    lacking = {each.what for each in missing(rollout, plan, at)}
    verdict = Verdict.HOLD if lacking - {"approval"} else Verdict.PROMOTE
    if verdict is Verdict.HOLD or (lacking and rollout.told):
        return rollout if rollout.verdict is verdict else replace(rollout, verdict=verdict)
    facts = so_far(watch)
    text = f"Step {rollout.step} of {rollout.steps} is passed: {failed(facts)}."
    if lacking:
        text += f" It waits for {promotion.whose(plan.approval or ())} to promote it."
        ready = Event(at, "ready", ITSELF, rollout.state, rollout.step, verdict, text, facts)
        return _recorded(replace(rollout, verdict=verdict, told=True), ready)
    return _moved(rollout, "complete" if rollout.step >= rollout.steps else "promote", ITSELF, at, text, facts)


def missing(rollout: Rollout, plan: RolloutSettings, now: int) -> tuple[Missing, ...]:
    """What is missing to promote; nothing where nothing is, or where the rollout is not under way."""
    if rollout.state not in (State.RUNNING, State.PAUSED):
        return ()
    planned = _planned(rollout, plan)
    pausing = max(0, now - rollout.moved) if rollout.state is State.PAUSED else 0
    lasted = now - rollout.began - rollout.paused - pausing
    mine = rollout.watch.mine if rollout.watch else {}
    theirs = rollout.watch.theirs if rollout.watch else {}
    pace = rollout.pace * planned.weight / 100
    rejected = ""
    if rollout.watch and may_reject(rollout.watch, planned.weight, accepted=rollout.rejections_accepted):
        rejected = told_of_rejected(rollout.watch)
    return tuple(promotion.missing(plan, planned, lasted, mine, theirs, pace, rejected))


def standing(rollout: Rollout, plan: RolloutSettings, now: int) -> dict[str, Any]:
    """How a rollout stands, as JSON for people and scripts. `weight` is in per cent, evidence in odds to one.

    `unjudged_since` is when the time was over for which a promoted canary is watched; its evidence is history then.
    """
    unjudged = _unjudged_since(rollout, plan, now)
    watch = rollout.watch if unjudged is None else None
    return {
        "canary": plan.canary,
        "state": rollout.state.value,
        "step": rollout.step,
        "steps": len(plan.steps),
        "weight": share(rollout, plan),
        "verdict": rollout.verdict.value,
        "since": rollout.moved,
        "unjudged_since": unjudged,
        "explanation": rollout.history[-1].text if rollout.history else "",
        "evidence": _evidence(rollout, plan, watch) if watch else None,
        "missing": [each._asdict() for each in missing(rollout, plan, now)],
        "history": [event_json(each) for each in reversed(rollout.history)],
    }


def _unjudged_since(rollout: Rollout, plan: RolloutSettings, now: int) -> int | None:
    """Since when, in Unix seconds, nobody judges a canary that was promoted; None while somebody does."""
    until = math.ceil(rollout.began + plan.watch_for)
    return until if rollout.state is State.PROMOTED and now >= until else None


def _evidence(rollout: Rollout, plan: RolloutSettings, watch: Watch) -> dict[str, Any]:
    suspected = suspicion(watch, plan, share(rollout, plan) or 0.0)[-1]
    return {
        "limit": watch.terms.limit,
        "above_limit": _odds(watch.canary.evidence),
        "others_above_limit": _odds(watch.others.evidence),
        "worse_than_others": _odds(watch.ratio.evidence),
        "rejects_more_than_others": _odds(watch.rejecting.evidence),
        "needed": 1 / watch.terms.alpha,
        "below_limit": _odds(below(*units(watch.mine), watch.terms.limit)),
        "needed_to_promote": 1 / BETA,
        "so_far": facts_json(so_far(watch)),
        "suspected": facts_json(suspected) if suspected.errors else None,
    }


def _odds(evidence: float) -> float:
    """What is too much to be told apart is a million to one, and what is next to nothing is nothing."""
    told = math.exp(min(evidence, _TOLD_AT_MOST))
    return float(f"{min(told, _MOST_ODDS):.3g}") if told * _MOST_ODDS >= 1 else 0.0


def facts_json(facts: Facts) -> dict[str, Any]:
    """Facts by name."""
    return {**facts._asdict(), "classes": dict(facts.classes), "samples": list(facts.samples)}


def event_json(event: Event) -> dict[str, Any]:
    """An event by name."""
    return {
        "at": event.at,
        "what": event.what,
        "by": event.by,
        "state": event.state.value,
        "step": event.step,
        "verdict": event.verdict.value,
        "text": event.text,
        "facts": facts_json(event.facts) if event.facts else None,
        "without_evidence": list(event.without_evidence),
    }
