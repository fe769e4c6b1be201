"""Is the new place good enough, by number: what counts of calls and errors say, at any moment that one cares to look.

Four questions are asked of counts that come in buckets, and each is answered by betting. A bettor puts a unit of money
on the answer yes, and the stakes are such that nobody gains, on average, where it is no. By Ville's inequality the
money then ever becomes 1/alpha with a probability of alpha at most, whatever the traffic, and however often one looks.
What the money has become is the evidence: "12,000:1".

- Has the error rate risen above a limit? `Detector`, an e-detector of the Shiryaev-Roberts kind: a little money is put
  down again and again, so that good days do not weigh against a bad hour (Shin, Ramdas, Rinaldo, "E-detectors", 2024).
- Do the canary's calls fail more often than those of the other arms at the same time? The same detector, asked of each
  error whose it is (after Lindon, Malek, "Anytime-valid inference for multinomial count data", 2022). What hits all
  arms alike says nothing to it.
- Do its calls meet with that they are mistaken more often than those of the other arms? The same again.
- Is a rate below its limit, so that the canary may grow? `below`: money put down once, at the beginning.

Nothing is assumed of the order of calls, nor that they are alike: only that a call fails with at most the limit's
probability, whatever happened before it. Failures of one session in one minute are one failure, see `Seen` and `Units`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from routing.course import CALLS, ERRORS, RAW_ERRORS, RAW_REJECTED, REJECTED

BETA: Final = 0.05
"""The largest probability that a rate which is not below its limit is taken for one that is."""

_RISEN: Final = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
_FAILING: Final = (0.5, 0.98)
"""Rates that are bet on: multiples of the limit, and these; none is higher than the last."""
_SKEWED: Final = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_FALLEN: Final = (0.02, 0.1, 0.25, 0.5, 0.75)

_FEWEST_STARTS: Final = 10
_GROWTH: Final = 8
_LEAST, _MOST = -1000.0, 100.0
"""Between these a logarithm of money is kept. What is above it is not needed, and would take long to lose again."""

_MINUTE: Final = 60.0


class Bets(NamedTuple):
    """Several alternatives to one rate: by what each multiplies its money at an error and at a success, in logs."""

    error: tuple[float, ...]
    success: tuple[float, ...]


def _bets(rate: float, alternatives: list[float]) -> Bets:
    return Bets(
        tuple(math.log(each / rate) for each in alternatives),
        tuple(math.log((1 - each) / (1 - rate)) for each in alternatives),
    )


@functools.lru_cache(maxsize=256)
def above(limit: float) -> Bets:
    """That a rate is above `limit`, which is between 0 and 1. There are none where it could not be by much."""
    most = _FAILING[-1]
    return _bets(limit, sorted(q for q in {min(x * limit, most) for x in _RISEN} | set(_FAILING) if q > limit))


@functools.lru_cache(maxsize=1024)
def skewed(share: float) -> Bets:
    """That more than `share` of the errors, between 0 and 1, are the canary's."""
    odds = share / (1 - share)
    return _bets(share, [odds * x / (1 + odds * x) for x in _SKEWED])


@functools.lru_cache(maxsize=256)
def _under(limit: float) -> Bets:
    return _bets(limit, [limit * x for x in _FALLEN])


@dataclass(frozen=True, slots=True)
class Detector:
    """Money that is put down again after every `spacing` trials.

    The first `starts` starts share half of all money there is, eight times as many after them a sixth, then a twelfth
    and so on: more traffic than was planned for makes it slower, never blind. `money` is what each alternative's has
    become, in logs; none before the first trial. `trials` is how many there were.
    """

    spacing: int
    starts: int
    trials: int = 0
    money: tuple[float, ...] = ()

    def after(self, trials: int, errors: int, bets: Bets) -> Detector:
        """After so many more trials of which so many were errors: 0 <= errors <= trials.

        The bets may differ from one time to the next as long as there are equally many.
        """
        if not trials:
            return self
        begun, now = -(-self.trials // self.spacing), -(-(self.trials + trials) // self.spacing)
        money = self.money or (_LEAST,) * len(bets.error)
        successes = trials - errors
        if now == begun:
            grown = [m + errors * e + successes * s for m, e, s in zip(money, bets.error, bets.success, strict=True)]
        else:
            stake = math.log(_stake(self.starts, begun, now))
            grown = [
                max(m, stake) + math.log1p(math.exp(-abs(m - stake))) + errors * e + successes * s
                for m, e, s in zip(money, bets.error, bets.success, strict=True)
            ]
        kept = tuple(_LEAST if m < _LEAST else _MOST if m > _MOST else m for m in grown)
        return Detector(self.spacing, self.starts, self.trials + trials, kept)

    @property
    def evidence(self) -> float:
        """The logarithm of what a unit of money has become: at most log(1/alpha) but with probability alpha."""
        return _together(self.money)


def detector(rate: float, planned: float) -> Detector:
    """For trials of which up to `rate` are errors, about `planned` of them."""
    spacing = max(1, math.ceil(0.25 / rate))
    return Detector(spacing, max(_FEWEST_STARTS, round(planned / spacing)))


def _stake(first: int, begun: int, now: int) -> float:
    """The share of all money that is put down at starts `begun` to `now`, the latter not included."""
    share, begin, size, generation = 0.0, 0, first, 1
    while begin < now:
        within = min(now, begin + size) - max(begun, begin)
        if within > 0:
            share += within / size / (generation * (generation + 1))
        begin, size, generation = begin + size, size * _GROWTH, generation + 1
    return share


def _together(logs: tuple[float, ...]) -> float:
    """The logarithm of the mean of what these are the logarithms of."""
    if not logs:
        return _LEAST
    most = max(logs)
    return most + math.log(sum(math.exp(each - most) for each in logs) / len(logs))


def below(trials: float, errors: float, limit: float) -> float:
    """The evidence that a rate is below `limit`, as a logarithm; log(1/BETA) is enough."""
    bets = _under(limit)
    successes = trials - errors
    return _together(tuple(errors * e + successes * s for e, s in zip(bets.error, bets.success, strict=True)))


def trials_needed(trials: int, errors: int, limit: float) -> int | None:
    """How many more trials there have to be until `below` is evidence enough, with errors as often as so far.

    None where that will not be, so close to the limit is the rate.
    """
    enough, rate = math.log(1 / BETA), errors / trials if trials else 0.0
    if below(trials, errors, limit) >= enough:
        return 0
    few, many = 0, 1
    while below(trials + many, errors + many * rate, limit) < enough:
        few, many = many, many * 2
        if many > 10**9:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        if below(trials + middle, errors + middle * rate, limit) < enough:
            few = middle
        else:
            many = middle
    return many


class Units(NamedTuple):
    """Trials of the canary and of the other arms, and how many of them were errors."""

    calls: int = 0
    errors: int = 0
    other_calls: int = 0
    other_errors: int = 0

    def plus(self, more: Units) -> Units:
        return Units(*(mine + theirs for mine, theirs in zip(self, more, strict=True)))


def units(counts: Mapping[str, int]) -> tuple[int, int]:
    """(calls, errors) of one arm as the statistics take them.

    A failure that repeats another one of its session and minute counts neither as an error nor as a success, or one
    agent that tries again and again could both convict an arm and hide that it is down.
    """
    return _units(counts, ERRORS, RAW_ERRORS)


def rejected_units(counts: Mapping[str, int]) -> tuple[int, int]:
    """(calls, rejected ones) of one arm as the statistics take them, those that repeat another one left out."""
    return _units(counts, REJECTED, RAW_REJECTED)


def _units(counts: Mapping[str, int], what: str, every: str) -> tuple[int, int]:
    found = counts.get(what, 0)
    repeated = max(0, counts.get(every, found) - found)
    return max(found, counts.get(CALLS, 0) - repeated), found


def share_expected(counted: Units, ratio: float) -> float:
    """The largest share of the errors that is the canary's while it fails at most `ratio` times as often as others.

    1.0 where the others had no calls: nothing can then be told.
    """
    mine = ratio * counted.calls
    return mine / (mine + counted.other_calls) if mine or counted.other_calls else 1.0


def in_common(counted: Units, limit: float) -> float:
    """Since the canary fails: what speaks for the others failing as it does, against their being at the limit.

    The logarithm of how many times likelier the others' calls are; 0.0 where they say nothing. How often the canary
    fails is known only as well as its calls tell: its rate has Jeffreys' distribution after them.
    """
    if counted.errors <= limit * counted.calls:
        return 0.0
    errors, successes = counted.other_errors, counted.other_calls - counted.other_errors
    mine, spared = counted.errors + 0.5, counted.calls - counted.errors + 0.5
    alike = _log_beta(mine + errors, spared + successes) - _log_beta(mine, spared)
    return alike - errors * math.log(limit) - successes * math.log(1 - limit)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@dataclass(frozen=True, slots=True)
class Onset:
    """Since when one alternative has had the better of the limit, by Page's cumulative sum, and what was counted since.

    `since` is in Unix seconds, None while it has not. `classes` are the canary's errors by class.
    """

    gain: float = 0.0
    since: int | None = None
    counted: Units = field(default_factory=Units)
    classes: Mapping[str, int] = field(default_factory=dict)

    def after(self, at: int, gain: float, counted: Units, classes: Mapping[str, int]) -> Onset:
        """After a bucket that began `at` and in which the alternative gained so much on the limit."""
        total = min(_MOST, self.gain + gain)
        if total <= 0:
            return self if self.since is None else Onset()
        if self.since is None:
            return Onset(total, at, counted, classes)
        return Onset(
            total, self.since, self.counted.plus(counted), added(self.classes, classes) if classes else self.classes
        )


def onsets(
    before: tuple[Onset, ...], at: int, counted: Units, classes: Mapping[str, int], bets: Bets
) -> tuple[Onset, ...]:
    """One for each alternative, after a bucket of the canary's; `before` is empty before the first one."""
    successes = counted.calls - counted.errors
    return tuple(
        onset.after(at, counted.errors * error + successes * success, counted, classes)
        for onset, error, success in zip(before or (Onset(),) * len(bets.error), bets.error, bets.success, strict=True)
    )


def likeliest(found: tuple[Onset, ...]) -> Onset:
    """The onset that explains best what was counted; one without `since` where nothing has begun."""
    return max(found, key=lambda each: each.gain, default=Onset())


def added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Counts by name, summed up."""
    total = dict(counts)
    for name, number in more.items():
        total[name] = total.get(name, 0) + number
    return total


class Seen:
    """Which sessions have failed in the span of time that it is: one of a session's errors counts, the others repeat
    it.

    Beyond `most` sessions in one span each error counts: by then nothing hangs on telling them apart.
    """

    def __init__(self, most: int = 65_536, seconds: float = _MINUTE) -> None:
        self._most = most
        self._seconds = seconds
        self._span = 0
        self._failed: set[int] = set()
        """Hashes: sessions are named by agents, at any length."""

    def first(self, arm: str, session: str, now: int) -> bool:
        """Whether this is the first error of the session at this arm in this span; `now` in Unix seconds.

        A clock that goes back stays in the span where it was.
        """
        span = int(now // self._seconds)
        if span > self._span:
            self._span = span
            self._failed.clear()
        failed = hash((arm, session))
        if failed in self._failed:
            return False
        if len(self._failed) < self._most:
            self._failed.add(failed)
        return True
