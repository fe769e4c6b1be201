"""What is counted while a canary is on trial, and the verdict on it, after every bucket.

Three pieces of evidence make the verdict (`routing.evidence`): that the canary fails more often than the step's limit,
that it fails more often than the other arms, and how those have done since it began to fail. See `verdict`. Besides,
a canary is suspected that rejects what the others take: one such call says nothing, being mistaken perhaps.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from config.settings import RolloutSettings
from routing import window
from routing.course import ABSENT, CALLS, ERROR, RAW_ERRORS, RAW_REJECTED, SAMPLE, Bucket
from routing.evidence import (
    BETA,
    Detector,
    Onset,
    Units,
    above,
    added,
    detector,
    in_common,
    likeliest,
    onsets,
    rejected_units,
    share_expected,
    skewed,
    units,
)
from routing.phrases import moment, odds, percent

_CONTROL: Final = 5.0
"""Per cent of calls with which the other arms tell something."""
_REFUSALS: Final = 5
"""Calls that the canary's target refused for its credentials, without a success in between, that pause a rollout."""
_REFUSED: Final = f"{ERROR}config"
_PATIENCE: Final = 12
"""Errors after which it is not waited any longer for other arms that have had fewer calls than this:"""
_FEW: Final = 2
_TELLING: Final = math.log(30)
"""How much likelier one explanation has to be than the other, as a logarithm."""
_ABSENCES: Final = 3
"""Buckets with calls that fell to the canary, all taken by others, that pause a rollout."""
_HARDLY_ANY: Final = 0.5
"""The share of calls beyond which an arm that rejects them is of hardly any use, where it was at least so many:"""
_REJECTIONS: Final = 5
_MINUTE: Final = 60
_SHOWN: Final = 5


class Verdict(enum.StrEnum):
    """What should happen to a rollout now."""

    HOLD = "HOLD"
    PROMOTE = "PROMOTE"
    PAUSE = "PAUSE"
    ROLLBACK = "ROLLBACK"


class Others(enum.Enum):
    """How the other arms have done since the canary began to fail."""

    ABSENT = "they have hardly any calls, or are not to be asked"
    WELL = "they do not fail as it does"
    FAILING = "they fail, too"
    UNCLEAR = "their calls do not tell yet"


def verdict(above_limit: bool, worse: bool, others: Others) -> Verdict:
    """The verdict on a canary that is above its limit or not, worse than the other arms or not.

    above, and worse or the others are well or absent: ROLLBACK
    above, not worse, and the others fail, too: PAUSE, since taking it back would not help
    above, and nothing tells yet whether they do: HOLD, until something does
    not above, but worse: PAUSE
    neither: HOLD, or PROMOTE where nothing is missing (`routing.promotion`)
    """
    if above_limit and (worse or others in (Others.ABSENT, Others.WELL)):
        return Verdict.ROLLBACK
    if worse or (above_limit and others is Others.FAILING):
        return Verdict.PAUSE
    return Verdict.HOLD


class Facts(NamedTuple):
    """What a verdict is about: since when (Unix seconds) how many of how many of the canary's calls have failed.

    `rate` and `limit` are from 0 to 1. `odds` to one is the evidence; None where the rule is not about evidence.
    `other_errors` of `other_calls` are the other arms' in the same time, `classes` the canary's most frequent classes
    of errors with every error in them, `samples` ids of some of its failed calls.
    """

    since: int
    errors: int
    calls: int
    rate: float
    limit: float
    odds: float | None
    other_errors: int
    other_calls: int
    classes: tuple[tuple[str, int], ...] = ()
    samples: tuple[str, ...] = ()


class Absence(NamedTuple):
    """Since when the canary has had no call of its own though some fell to it: in how many buckets, and how many."""

    since: int = 0
    buckets: int = 0
    calls: int = 0


class Terms(NamedTuple):
    """By what a canary is judged: limit and alpha from 0 to 1, how many times the others' rate its own may be."""

    limit: float
    alpha: float
    ratio: float

    @property
    def enough(self) -> float:
        """The evidence that is enough, as a logarithm."""
        return math.log(1 / self.alpha)


@dataclass(frozen=True, slots=True)
class Watch:
    """What was counted since `began`, a bucket in Unix seconds.

    `canary`, `others`, `ratio` and `rejecting` are the detectors; the last two are told of whole minutes, `pooled` and
    `pooled_rejected` being those of `minute`, because arms differ in how long their calls take to fail. `rejected` are
    all calls and the rejected ones, repeated ones included. `mine` and `theirs` are all counts by name, the canary's
    and those of the other arms, but for the time that the rollout was paused, since `since`, in Unix seconds: 0 is
    since `began`. `refusals` are the canary's calls that were refused for its credentials, since the last that
    succeeded. `cells` are the window's. `samples` are ids of the canary's failed calls, the latest last.
    """

    began: int
    terms: Terms
    canary: Detector
    others: Detector
    ratio: Detector
    onsets: tuple[Onset, ...] = ()
    minute: int = 0
    pooled: Units = field(default_factory=Units)
    mine: Mapping[str, int] = field(default_factory=dict)
    theirs: Mapping[str, int] = field(default_factory=dict)
    refusals: int = 0
    cells: tuple[window.Cell, ...] = ()
    absence: Absence = field(default_factory=Absence)
    samples: tuple[str, ...] = ()
    since: int = 0
    rejecting: Detector = field(default_factory=lambda: Detector(1, 10))
    pooled_rejected: Units = field(default_factory=Units)
    rejected: Units = field(default_factory=Units)


def begun(began: int, terms: Terms, share: float, planned: float, since: int = 0) -> Watch:
    """A watch over a canary with a share in per cent of about `planned` calls of its route."""
    part = share / 100
    expected = terms.ratio * part / (terms.ratio * part + 1 - part)
    return Watch(
        began,
        terms,
        canary=detector(terms.limit, planned * part),
        others=detector(terms.limit, planned * (1 - part)),
        ratio=detector(expected, planned * terms.limit),
        since=since,
        rejecting=detector(expected, planned * terms.limit),
    )


def begun_again(watch: Watch, now: int) -> Watch:
    """After a person has looked at what was found: it is looked for anew, and what was counted remains."""
    asked = (watch.canary, watch.others, watch.ratio, watch.rejecting)
    canary, others, ratio, rejecting = (replace(each, trials=0, money=()) for each in asked)
    since = watch.since or watch.began
    fresh = replace(watch, began=now, since=since, canary=canary, others=others, ratio=ratio, rejecting=rejecting)
    fresh = replace(fresh, onsets=(), cells=(), pooled=Units(), pooled_rejected=Units(), rejected=Units())
    return replace(fresh, refusals=0, absence=Absence(), samples=())


def taken(watch: Watch, plan: RolloutSettings, bucket: Bucket, *, paused: bool) -> Watch:
    """After the counts of one bucket."""
    mine, theirs = sides(bucket.counts, plan.canary)
    failed = sorted(name.removeprefix(SAMPLE) for name in mine if name.startswith(SAMPLE))
    counted = Units(*units(mine), *units(theirs))
    rejected = Units(*rejected_units(mine), *rejected_units(theirs))
    classes = _classes(mine)
    bets = above(watch.terms.limit)
    watch = replace(
        _pooled(watch, bucket.at // _MINUTE, counted, rejected),
        rejected=watch.rejected.plus(Units(*_calls_and_rejected(mine), *_calls_and_rejected(theirs))),
        canary=watch.canary.after(counted.calls, counted.errors, bets),
        others=watch.others.after(counted.other_calls, counted.other_errors, bets),
        onsets=onsets(watch.onsets, bucket.at, counted, classes, bets),
        refusals=_refusals(watch.refusals, mine),
        absence=_absence(watch.absence, bucket.at, mine),
        samples=(*watch.samples, *failed)[-_SHOWN:] if failed else watch.samples,
    )
    if plan.mode == "window":
        every = Units(*calls_and_errors(mine), *calls_and_errors(theirs))
        watch = replace(watch, cells=window.after(watch.cells, bucket.at, every, classes, plan.window))
    if paused:
        return watch
    return replace(watch, mine=added(watch.mine, _numbers(mine)), theirs=added(watch.theirs, _numbers(theirs)))


def sides(counts: Mapping[str, int], canary: str) -> tuple[dict[str, int], dict[str, int]]:
    """A bucket's counts by name: the canary's, and those of all other arms together."""
    mine: dict[str, int] = {}
    theirs: dict[str, int] = {}
    for key, number in counts.items():
        arm, _, what = key.partition("|")
        side = mine if arm == canary else theirs
        side[what] = side.get(what, 0) + number
    return mine, theirs


def calls_and_errors(counts: Mapping[str, int]) -> tuple[int, int]:
    """Every call and every error of one side, repeated ones included."""
    errors = counts.get(RAW_ERRORS, 0)
    return max(errors, counts.get(CALLS, 0)), errors


def _calls_and_rejected(counts: Mapping[str, int]) -> tuple[int, int]:
    rejected = counts.get(RAW_REJECTED, 0)
    return max(rejected, counts.get(CALLS, 0)), rejected


def _classes(counts: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(ERROR): number for name, number in counts.items() if number and name.startswith(ERROR)}


def _numbers(counts: Mapping[str, int]) -> Mapping[str, int]:
    """Counts without the ids of calls, of which there is no end."""
    return {name: number for name, number in counts.items() if not name.startswith(SAMPLE)}


def _pooled(watch: Watch, minute: int, counted: Units, rejected: Units) -> Watch:
    """After more counts of a minute: of one that is over it is asked whose the errors are, and the rejected calls."""
    if minute == watch.minute:
        return replace(watch, pooled=watch.pooled.plus(counted), pooled_rejected=watch.pooled_rejected.plus(rejected))
    ratio = _told_apart(watch.ratio, watch.pooled, watch.terms.ratio)
    rejecting = _told_apart(watch.rejecting, watch.pooled_rejected, watch.terms.ratio)
    return replace(watch, ratio=ratio, rejecting=rejecting, minute=minute, pooled=counted, pooled_rejected=rejected)


def _told_apart(detector: Detector, over: Units, ratio: float) -> Detector:
    """After a minute whose errors were one side's or the other's."""
    expected = share_expected(over, ratio)
    # Where only one side had calls all errors are its own, and that says nothing.
    if not 0 < expected < 1:
        return detector
    return detector.after(over.errors + over.other_errors, over.errors, skewed(expected))


def _refusals(before: int, counts: Mapping[str, int]) -> int:
    calls, errors = calls_and_errors(counts)
    return 0 if calls > errors else before + counts.get(_REFUSED, 0)


def _absence(before: Absence, at: int, counts: Mapping[str, int]) -> Absence:
    """A bucket in which nothing fell to the canary says neither that it is there nor that it is not."""
    if counts.get(CALLS, 0):
        return Absence()
    absent = counts.get(ABSENT, 0)
    if not absent:
        return before
    return Absence(before.since if before.buckets else at, before.buckets + 1, before.calls + absent)


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, why, and what it is about. `reason` is one of limit, common, ratio, rejected, config and absent.

    HOLD has none, but for limit: then the canary is above it, and it is not known yet whether the others are as well.
    """

    verdict: Verdict
    reason: str = ""
    text: str = ""
    facts: Facts | None = None


def found(
    watch: Watch,
    plan: RolloutSettings,
    share: float,
    samples: tuple[str, ...],
    *,
    paused_for: str = "",
    ratio_accepted: bool = False,
    rejections_accepted: bool = False,
) -> Finding:
    """The verdict by all that was counted, where the canary has a share in per cent: never PROMOTE.

    `samples` are ids of the canary's failed calls. `paused_for` is the reason of a finding that has paused the rollout,
    `ratio_accepted` says that a person knows it is the worse arm, `rejections_accepted` that it rejects more calls.
    """
    above_limit, worse, others, facts = suspicion(watch, plan, share)
    if paused_for == "common" and others is not Others.ABSENT:
        # The arms recover one after the other: from here on only being the worse one tells against the canary.
        others = Others.FAILING
    samples = tuple(dict.fromkeys((*watch.samples, *samples)))[-_SHOWN:]
    ruling = verdict(above_limit, worse, others)
    if ruling is Verdict.ROLLBACK:
        facts = facts._replace(samples=samples)
        text = f"{plan.canary} is taken back: {told(facts)}"
        if watch.refusals >= _REFUSALS:
            text += f" It refused {watch.refusals:,} calls in a row for their credentials: check its key."
        return Finding(ruling, "limit", text, facts)
    if ruling is Verdict.PAUSE and above_limit:
        facts = facts._replace(samples=samples)
        text = f"{plan.canary} fails and so do the other arms, which taking it back would not help: {told(facts)}"
        return Finding(ruling, "common", text, facts)
    if ruling is Verdict.PAUSE and not ratio_accepted:
        facts = so_far(watch)._replace(odds=math.exp(watch.ratio.evidence), samples=samples)
        text = f"{plan.canary} fails more than {watch.terms.ratio:g} times as often as the other arms: {told(facts)}"
        return Finding(ruling, "ratio", text, facts)
    if rejects(watch, share, accepted=rejections_accepted):
        facts = _rejections(watch)
        text = f"{plan.canary} rejects what others take: {told_of_rejected(watch)}; evidence {odds(facts.odds or 0.0)}."
        return Finding(Verdict.PAUSE, "rejected", text, facts)
    if watch.refusals >= _REFUSALS:
        facts = so_far(watch)._replace(samples=samples)
        text = f"{plan.canary} refused {watch.refusals:,} calls in a row for their credentials: check its key."
        return Finding(Verdict.PAUSE, "config", text, facts)
    away = watch.absence
    if away.buckets >= _ABSENCES:
        text = (
            f"{plan.canary} is out of service since {moment(away.since)}: {away.calls:,} calls that fell to it were "
            "taken by others."
        )
        return Finding(Verdict.PAUSE, "absent", text, so_far(watch)._replace(samples=samples))
    return Finding(Verdict.HOLD, "limit" if above_limit else "")


def suspicion(watch: Watch, plan: RolloutSettings, share: float) -> tuple[bool, bool, Others, Facts]:
    """(whether it is above its limit, whether it is worse than the other arms, how those have done, the facts)."""
    asked = has_control(share) and not plan.strict_absolute
    if plan.mode == "window":
        seen = window.total(watch.cells)
        counted, limit = seen.counted, watch.terms.limit
        failing = window.exceeded(counted.other_calls, counted.other_errors, limit, plan.min_calls)
        others = (Others.FAILING if failing else Others.WELL) if asked else Others.ABSENT
        above_limit = window.exceeded(counted.calls, counted.errors, limit, plan.min_calls)
        since = max(seen.at, watch.began, watch.since)
        return above_limit, False, others, _facts(since, counted, limit, None, seen.classes)
    onset, enough = likeliest(watch.onsets), watch.terms.enough
    evidence = watch.canary.evidence
    worse = has_control(share) and watch.ratio.evidence >= enough
    since = watch.began if onset.since is None else max(onset.since, watch.since)
    facts = _facts(since, onset.counted, watch.terms.limit, math.exp(evidence), onset.classes)
    return evidence >= enough, worse, _others(watch, onset.counted) if asked else Others.ABSENT, facts


def rejects(watch: Watch, share: float, *, accepted: bool = False) -> bool:
    """Whether the canary, with a share in per cent, is known to reject more of its calls than the others of theirs.

    Where a person has `accepted` that, it still has to take most of what comes.
    """
    if not has_control(share) or watch.rejecting.evidence < watch.terms.enough:
        return False
    return not accepted or _hardly_takes_any(watch)


def may_reject(watch: Watch, share: float, *, accepted: bool = False) -> bool:
    """Whether it may be so, which is enough to let it grow no further."""
    if _hardly_takes_any(watch):
        return True
    return not accepted and has_control(share) and watch.rejecting.evidence >= math.log(1 / BETA)


def _hardly_takes_any(watch: Watch) -> bool:
    """Whether most of the canary's calls were rejected, and not nearly as many of the other arms'."""
    counted = watch.rejected
    most = counted.errors >= _REJECTIONS and counted.errors > _HARDLY_ANY * counted.calls
    return most and 2 * counted.other_errors * counted.calls <= counted.errors * counted.other_calls


def told_of_rejected(watch: Watch) -> str:
    """`782 of 782 calls, where the other arms have rejected 0 of 280`."""
    counted = watch.rejected
    return (
        f"{counted.errors:,} of {counted.calls:,} calls, where the other arms have rejected {counted.other_errors:,} "
        f"of {counted.other_calls:,}"
    )


def _rejections(watch: Watch) -> Facts:
    """The rejected calls as facts: they are the errors there."""
    classes = {"rejected": watch.rejected.errors}
    since, evidence = max(watch.began, watch.since), math.exp(watch.rejecting.evidence)
    return _facts(since, watch.rejected, watch.terms.limit, evidence, classes)


def has_control(share: float) -> bool:
    """Whether the canary, with a share in per cent, leaves the other arms enough calls to be compared with."""
    return share <= 100 - _CONTROL


def _others(watch: Watch, counted: Units) -> Others:
    """How the others have done, by what was counted since the canary began to fail.

    Their own detector alone would not do. In an outage common to all, the arm with fewer calls finds out later: until
    then it would look well. And others that have been a little above the limit for days do not excuse a canary that
    fails now.
    """
    enough = watch.terms.enough
    common = in_common(counted, watch.terms.limit)
    if common <= -enough:
        return Others.WELL
    if watch.others.evidence >= enough:
        return Others.FAILING
    waited = counted.errors >= _PATIENCE and counted.other_calls < _FEW and common <= 0
    if common <= -_TELLING or waited:
        return Others.WELL
    return Others.UNCLEAR


def _facts(since: int, counted: Units, limit: float, odds: float | None, classes: Mapping[str, int]) -> Facts:
    rate = counted.errors / counted.calls if counted.calls else 0.0
    top = tuple(sorted(classes.items(), key=lambda each: (-each[1], each[0]))[:_SHOWN])
    return Facts(
        since, counted.errors, counted.calls, rate, limit, odds, counted.other_errors, counted.other_calls, top
    )


def so_far(watch: Watch) -> Facts:
    """All that was counted in the step, but for the time that the rollout was paused."""
    counted = Units(*units(watch.mine), *units(watch.theirs))
    return _facts(watch.since or watch.began, counted, watch.terms.limit, None, _classes(watch.mine))


def told(facts: Facts) -> str:
    """Facts in a sentence, without its beginning."""
    evidence = "" if facts.odds is None else f" (evidence {odds(facts.odds)})"
    parts = [f"since {moment(facts.since)}, {failed(facts)}{evidence}"]
    if facts.other_calls:
        rate = percent(facts.other_errors / facts.other_calls)
        parts.append(f"of the other arms' {facts.other_errors:,} of {facts.other_calls:,}, {rate}")
    if facts.classes:
        parts.append(", ".join(f"{name} {number:,}" for name, number in facts.classes))
    if facts.samples:
        parts.append(f"for example {', '.join(facts.samples)}")
    return "; ".join(parts) + "."


def failed(facts: Facts) -> str:
    """`17 of 319 calls failed, 5.33 % where 1 % may`."""
    return f"{facts.errors:,} of {facts.calls:,} calls failed, {percent(facts.rate)} where {percent(facts.limit)} may"
