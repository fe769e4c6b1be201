"""Whether an arm is good enough in place of another: what it saves, what it adds, and go or no-go, each with numbers.

For people who decide, and who look now and then: every measured value comes with the interval that it lies in with 95 %
confidence, and an answer is given once the whole interval is on one side of the limit. A rollout that looks all the
time has its own evidence, which allows for that.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from routing.figures import Figures
from routing.histogram import Histogram

MONTH: Final = 30 * 86_400
"""Seconds of a month."""

_Z: Final = 1.96
"""Standard deviations to either side of a mean that hold 95 % of a normal distribution."""

_FEWEST: Final = 30
"""Priced calls of which a mean has the distribution that its interval supposes."""

_MILLION: Final = 10**6


class Answer(enum.StrEnum):
    GO = "go"
    NO_GO = "no_go"
    NOT_ENOUGH_DATA = "not_enough_data"


class Question(enum.StrEnum):
    """What is asked of an arm."""

    ADDED_P95 = "added_p95"
    """Seconds that the 95th percentile of its latency is above the baseline's."""
    SAVING = "saving"
    """The share of the baseline's cost per call that it does not cost."""
    AVAILABILITY = "availability"
    """The share of calls meant for it that it answers."""


class Side(enum.StrEnum):
    """The two that are compared."""

    ARM = "arm"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Criteria:
    """What an arm must do to be good enough: add less, save more, answer more than this."""

    added_p95: float = 0.150
    """Seconds."""
    saving: float = 0.20
    availability: float = 0.995


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question, and its numbers, in the question's unit; None where there are none yet.

    `missing` is about how many more calls of `of` an answer takes if they are like those before; None where that cannot
    be told: nothing of the kind was measured, or it lies so close to the limit that no number of calls tells.
    `unpriced` are sides of whose calls nobody knows what they cost: no number of them answers what is saved.
    """

    question: Question
    limit: float
    answer: Answer
    value: float | None = None
    low: float | None = None
    high: float | None = None
    missing: int | None = None
    of: Side = Side.ARM
    unpriced: tuple[Side, ...] = ()


@dataclass(frozen=True, slots=True)
class Projection:
    """What a month of the route's present calls costs, in nano-dollars; None where a cost is not known."""

    calls: int
    baseline: int | None
    """Were all of them the baseline's."""
    arm: int | None
    """Were all of them the arm's."""
    present: int | None
    """As they were split among the arms."""

    @property
    def saving(self) -> int | None:
        """Between the first two."""
        return self.baseline - self.arm if self.baseline is not None and self.arm is not None else None


@dataclass(frozen=True, slots=True)
class Added:
    """By how many seconds an arm's percentiles are above the baseline's; None where one of them is not known."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    saving_per_call: float | None
    """The share of the baseline's cost that the arm does not cost; below 0 where it costs more."""
    saving_per_mtok: float | None
    latency: Added
    first_token: Added
    month: Projection
    findings: tuple[Finding, ...]

    @property
    def answer(self) -> Answer:
        """GO when every finding says so; NO_GO as soon as one does."""
        answers = [each.answer for each in self.findings]
        if Answer.NO_GO in answers:
            return Answer.NO_GO
        return Answer.NOT_ENOUGH_DATA if Answer.NOT_ENOUGH_DATA in answers else Answer.GO


def compare(
    arm: Figures, baseline: Figures, others: Iterable[Figures] = (), *, seconds: float, criteria: Criteria | None = None
) -> Comparison:
    """An arm against the baseline. All figures are of the same time, so many seconds; `others` are the route's other
    arms, whose calls are part of its present traffic."""
    wanted = criteria if criteria is not None else Criteria()
    return Comparison(
        saving_per_call=_saving(arm.cost_per_call, baseline.cost_per_call),
        saving_per_mtok=_saving(arm.cost_per_mtok, baseline.cost_per_mtok),
        latency=_added(arm.latency, baseline.latency),
        first_token=_added(arm.first_token, baseline.first_token),
        month=_month(arm, baseline, [arm, baseline, *others], seconds),
        findings=(
            added_p95(arm, baseline, wanted.added_p95),
            saving(arm, baseline, wanted.saving),
            availability(arm, wanted.availability, baseline),
        ),
    )


def availability(arm: Figures, limit: float, baseline: Figures | None = None) -> Finding:
    """By Wilson's score interval, E. B. Wilson 1927.

    A rejected call is its caller's mistake, and none of these, as far as the baseline rejects as many: what the arm
    rejects beyond that it does not answer.
    """
    unanswered = round(_rejected_beyond(arm, baseline)) if baseline is not None else 0
    calls = arm.calls - arm.rejected + unanswered + arm.overflow
    share = (arm.answered - arm.rejected) / calls if calls else None
    question = Question.AVAILABILITY
    if share is None:
        return Finding(question, limit, Answer.NOT_ENOUGH_DATA, missing=_told(_Z**2 * limit, 1 - limit, 0))
    square = _Z**2 / calls
    middle = (share + square / 2) / (1 + square)
    around = _Z / (1 + square) * math.sqrt(share * (1 - share) / calls + square / (4 * calls))
    low, high = max(0.0, middle - around), min(1.0, middle + around)
    answer = _answer(limit < low, high < limit)
    # The interval leaves the limit behind as soon as the distance is _Z deviations, taken at the limit.
    missing = _told(_Z**2 * limit * (1 - limit), (share - limit) ** 2, calls)
    return Finding(question, limit, answer, share, low, high, _if_open(answer, missing))


def _rejected_beyond(arm: Figures, baseline: Figures) -> float:
    """How many calls the arm has rejected that the baseline would not have; 0.0 where that can be chance.

    By the test of two proportions, K. Pearson 1900.
    """
    if min(arm.calls, baseline.calls) < _FEWEST:
        return 0.0
    mine, theirs = arm.rejected_share, baseline.rejected_share
    alike = (arm.rejected + baseline.rejected) / (arm.calls + baseline.calls)
    deviation = math.sqrt(alike * (1 - alike) * (1 / arm.calls + 1 / baseline.calls))
    return (mine - theirs) * arm.calls if mine - theirs > _Z * deviation else 0.0


def added_p95(arm: Figures, baseline: Figures, limit: float) -> Finding:
    """The interval of each percentile is by ranks, that of their difference by the square-and-add rule: G. Y. Zou and
    A. Donner, Statistics in Medicine 27, 2008."""
    question, mine, theirs = Question.ADDED_P95, _p95(arm.latency), _p95(baseline.latency)
    if mine is None or theirs is None:
        of, side = (Side.ARM, arm) if mine is None else (Side.BASELINE, baseline)
        fewest = _FEWEST_RANKED - side.latency.total
        seen = _added(arm.latency, baseline.latency).p95
        return Finding(question, limit, Answer.NOT_ENOUGH_DATA, seen, missing=fewest, of=of)
    value = mine[0] - theirs[0]
    low = value - math.hypot(mine[0] - mine[1], theirs[2] - theirs[0])
    high = value + math.hypot(mine[2] - mine[0], theirs[0] - theirs[1])
    answer = _answer(high < limit, limit < low)
    of, widest = max((mine[2] - mine[1], Side.ARM), (theirs[2] - theirs[1], Side.BASELINE))[::-1]
    calls = (arm if of is Side.ARM else baseline).latency.total
    # Intervals get narrower with the square root of the number of calls.
    missing = _told(calls * (widest / 2) ** 2, (limit - value) ** 2, calls)
    return Finding(question, limit, answer, value, low, high, _if_open(answer, missing), of)


def saving(arm: Figures, baseline: Figures, limit: float) -> Finding:
    """By the delta method: the logarithm of a ratio of means has about the sum of their relative variances."""
    question = Question.SAVING
    unpriced = tuple(name for name, each in ((Side.ARM, arm), (Side.BASELINE, baseline)) if each.unpriced)
    if unpriced:
        return Finding(question, limit, Answer.NOT_ENOUGH_DATA, unpriced=unpriced)
    of, side = min(((Side.ARM, arm), (Side.BASELINE, baseline)), key=lambda each: each[1].priced)
    share = _saving(arm.cost_per_call, baseline.cost_per_call)
    if side.priced < _FEWEST:
        has_price = bool(side.priced or not side.answered)
        fewest = _FEWEST - side.priced if has_price else None
        return Finding(question, limit, Answer.NOT_ENOUGH_DATA, share, missing=fewest, of=of)
    if share is None:  # nothing can be saved where nothing is paid
        return Finding(question, limit, Answer.NO_GO)
    if share == 1:
        return Finding(question, limit, _answer(limit < 1, True), share, share, share)
    spreads = _relative_variance(arm), _relative_variance(baseline)
    error = math.sqrt(sum(spreads))
    low, high = 1 - (1 - share) * math.exp(_Z * error), 1 - (1 - share) * math.exp(-_Z * error)
    answer = _answer(limit < low, high < limit)
    of, side = (Side.ARM, arm) if spreads[0] >= spreads[1] else (Side.BASELINE, baseline)
    distance = math.log((1 - limit) / (1 - share)) if limit < 1 else math.inf
    missing = _told(side.priced * (_Z * error) ** 2, distance**2, side.priced)
    return Finding(question, limit, answer, share, low, high, _if_open(answer, missing), of)


_FEWEST_RANKED: Final = math.ceil(_Z**2 * 0.95 / 0.05) + 1
"""Calls of which a 95th percentile's interval ends before the longest."""

_HOPELESS: Final = 10**9
"""Calls beyond which more of them are no way to an answer."""


def _p95(latency: Histogram) -> tuple[float, float, float] | None:
    """The 95th percentile and the bounds of its interval, in seconds; None where there are too few calls for one."""
    total = latency.total
    around = _Z * math.sqrt(total * 0.95 * 0.05)
    value = latency.percentile(95)
    low = latency.at_rank(max(1, math.floor(total * 0.95 - around)))
    high = latency.at_rank(math.ceil(total * 0.95 + around))
    if total < _FEWEST_RANKED or value is None or low is None or high is None:
        return None
    return value / _MILLION, low / _MILLION, high / _MILLION


def _added(arm: Histogram, baseline: Histogram) -> Added:
    def above(percent: int) -> float | None:
        mine, theirs = arm.percentile(percent), baseline.percentile(percent)
        return (mine - theirs) / _MILLION if mine is not None and theirs is not None else None

    return Added(above(50), above(95), above(99))


def _saving(arm: int | None, baseline: int | None) -> float | None:
    if arm is None or not baseline:
        return None
    return 1 - arm / baseline


def _relative_variance(figures: Figures) -> float:
    """Of the mean cost of a call."""
    mean = figures.cost / figures.priced
    if not mean:
        return 0.0
    return max(0.0, figures.squares / figures.priced / mean**2 - 1) / figures.priced


def _month(arm: Figures, baseline: Figures, present: Sequence[Figures], seconds: float) -> Projection:
    often = MONTH / seconds if seconds > 0 else 0.0
    calls = round(sum(each.calls for each in present) * often)
    costs = arm.cost_per_call, baseline.cost_per_call
    mine, theirs = (calls * each if each is not None else None for each in costs)
    return Projection(calls, theirs, mine, _together(present, often))


def _together(arms: Sequence[Figures], often: float) -> int | None:
    """What all calls of these cost, so many times; those of unknown price as much as the arm's others."""
    if any(each.unpriced for each in arms):
        return None
    costs = (
        each.cost * (each.input_tokens + each.output_tokens) / each.priced_tokens
        if 0 < each.priced_tokens < each.input_tokens + each.output_tokens
        else each.cost
        for each in arms
    )
    return round(sum(costs) * often)


def _answer(good: bool, bad: bool) -> Answer:
    if good:
        return Answer.GO
    return Answer.NO_GO if bad else Answer.NOT_ENOUGH_DATA


def _told(wanted: float, by: float, there_are: int) -> int | None:
    """How many calls are missing where `wanted / by` are needed; None where that is no number worth telling."""
    if wanted > _HOPELESS * by:
        return None
    return max(1, math.ceil(wanted / by) - there_are)


def _if_open(answer: Answer, missing: int | None) -> int | None:
    return missing if answer is Answer.NOT_ENOUGH_DATA else None
