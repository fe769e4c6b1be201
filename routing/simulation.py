"""What a plan would do to canaries of known quality, before anybody trusts it with one: how often it takes back a good
one, and how many errors a bad one makes until it is taken back.

It is the canary's own limit that is played through, with other arms that are well.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from config.settings import RolloutSettings, RolloutStepSettings
from routing import window
from routing.course import BUCKET
from routing.evidence import Detector, Units, above, detector

_FINENESS: Final = 5
"""Buckets, at least, from one start of a detector to the next: fine enough, and fewer where there is little traffic."""
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Row:
    """Canaries in one step of the plan whose calls fail at `rate`, from 0 to 1; `limit` is the step's.

    `taken_back` is the share of them that was, from 0 to 1. For those above the limit, which begin to fail in the
    middle of the step, `errors` and `seconds` are from then on until they were taken back: the median and the 95th
    percentile; None where none was.
    """

    step: int
    weight: float
    limit: float
    rate: float
    taken_back: float
    errors: tuple[float, float] | None = None
    seconds: tuple[float, float] | None = None


def simulate(
    plan: RolloutSettings,
    calls_per_day: float,
    *,
    multiples: Sequence[float] = (0.5, 1.0, 2.0, 5.0, math.inf),
    runs: int = 200,
    seed: int = 0,
) -> list[Row]:
    """So many canaries in each step for each multiple of its limit, of a route with so many calls a day.

    An infinite multiple is a canary all of whose calls fail. Before they begin to fail, canaries are at half the limit.
    It takes about ten microseconds of processor time for each bucket in which the canary has calls.
    """
    rng = random.Random(seed)
    rows = []
    for number, step in enumerate(plan.steps, start=1):
        pace = calls_per_day / _DAY * step.weight / 100
        for multiple in multiples:
            rate = min(1.0, step.max_error_rate * multiple)
            ends = [_run(plan, step, pace, rate, rng) for _ in range(runs)]
            rows.append(_row(number, step, rate, ends))
    return rows


class _End(NamedTuple):
    """Errors and seconds from the time that a canary began to fail until it was taken back."""

    errors: int
    seconds: int


def _row(number: int, step: RolloutStepSettings, rate: float, ends: Sequence[_End | None]) -> Row:
    taken = [end for end in ends if end is not None]
    row = Row(number, step.weight, step.max_error_rate, rate, len(taken) / len(ends))
    if rate <= step.max_error_rate or not taken:
        return row
    errors, seconds = ([float(end[part]) for end in taken] for part in (0, 1))
    return Row(number, row.weight, row.limit, rate, row.taken_back, _spread(errors), _spread(seconds))


def _spread(values: list[float]) -> tuple[float, float]:
    return statistics.median(values), sorted(values)[math.ceil(len(values) * 0.95) - 1]


def _run(plan: RolloutSettings, step: RolloutStepSettings, pace: float, rate: float, rng: random.Random) -> _End | None:
    """One canary in one step."""
    limit = step.max_error_rate
    rule = _Rule(plan, limit, detector(limit, pace * step.hold))
    good = rate <= limit
    begins = 0.0 if good else step.hold * (0.5 + 0.1 * rng.random())
    for at, calls in _buckets(pace, 0.0, step.hold if good else begins, rule.coarse(pace), rng):
        if rule.takes_back(at, calls, binomial(rng, calls, rate if good else limit / 2)):
            return _End(0, 0)
    if good:
        return None
    errors = 0
    for at, calls in _buckets(pace, begins, step.hold, BUCKET, rng):
        failed = binomial(rng, calls, rate)
        errors += failed
        if rule.takes_back(at, calls, failed):
            return _End(errors, round(at + BUCKET - begins))
    return None


class _Rule:
    """What the plan takes back by: evidence, or the window."""

    def __init__(self, plan: RolloutSettings, limit: float, begun: Detector) -> None:
        self._plan = plan
        self._limit = limit
        self._bets = above(limit)
        self._enough = math.log(1 / plan.alpha)
        self._detector = begun
        self._cells: tuple[window.Cell, ...] = ()

    def coarse(self, pace: float) -> int:
        """Seconds of a bucket that is fine enough while nothing is to be found."""
        fine = self._detector.spacing / _FINENESS / pace
        if self._plan.mode == "window":
            fine = min(fine, self._plan.window / _FINENESS)
        return max(1, int(fine / BUCKET)) * BUCKET

    def takes_back(self, at: int, calls: int, errors: int) -> bool:
        if self._plan.mode == "evidence":
            self._detector = self._detector.after(calls, errors, self._bets)
            return self._detector.evidence >= self._enough
        self._cells = window.after(self._cells, at, Units(calls, errors), {}, self._plan.window)
        seen = window.total(self._cells).counted
        return window.exceeded(seen.calls, seen.errors, self._limit, self._plan.min_calls)


def _buckets(pace: float, begin: float, end: float, seconds: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """(begin, calls) of those that have calls, as regular as calls of many agents are."""
    at, due = int(begin) - int(begin) % BUCKET, rng.random()
    while at < end:
        due += pace * seconds
        if due >= 1:
            yield at, int(due)
            due -= int(due)
        at += seconds


def binomial(rng: random.Random, trials: int, rate: float) -> int:
    """How many of so many trials succeed: by the gaps between successes, which are few here."""
    if rate >= 1:
        return trials
    if rate <= 0:
        return 0
    found, at, step = 0, -1, math.log1p(-rate)
    while True:
        at += 1 + int(math.log(1 - rng.random()) / step)
        if at >= trials:
            return found
        found += 1
