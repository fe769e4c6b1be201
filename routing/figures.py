"""What is known of an arm from the calls that are over: how many, how they ended, how long they took, what they cost.

All of it is integers that only ever grow by adding, so the figures of minutes, of arms and of gateways can be put
together in any order, with the same result. Counting a call touches the running minute alone; ended minutes are kept
packed, and lose detail as they age: minutes for a day, hours for a month, days for half a year.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from routing.histogram import LONGEST, Histogram, bucket

_TIERS: Final = ((60, 1440), (3600, 720), (86_400, 180))
"""(seconds of a slot, how many are kept), the finest first."""

_MINUTE: Final = _TIERS[0][0]

_MILLION: Final = 10**6


@dataclass(frozen=True, slots=True)
class Figures:
    """What a number of calls to one arm amount to. `Figures()` is nothing.

    A call counts once, on the arm that it ended on or failed on. Durations are those of calls without an error: an arm
    that fails at once would seem to be quick. Amounts are nano-dollars.
    """

    calls: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    """Calls that count as the arm's errors, by class."""
    rejected: int = 0
    """Calls answered with that they are mistaken; in `calls`, and no errors."""
    overflow: int = 0
    """Calls meant for this arm that another one took, because this one was full or out of service; not in `calls`."""
    latency: Histogram = field(default_factory=Histogram)
    """From sending a call to the end of its answer."""
    first_token: Histogram = field(default_factory=Histogram)
    """From sending a call to the first token, of those whose answer is a stream."""
    input_tokens: int = 0
    output_tokens: int = 0
    generated: int = 0
    """Output tokens of calls without an error, and"""
    generating: int = 0
    """the microseconds that writing them took: from the first token on where it is known."""
    cost: int = 0
    """Of all calls whose price is known, those with an error included."""
    squares: int = 0
    """The sum of the squares of their costs: how much costs differ from call to call."""
    priced: int = 0
    """Calls without an error whose price is known."""
    priced_tokens: int = 0
    """Input and output tokens of all calls whose price is known."""

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def answered(self) -> int:
        return self.calls - self.failed

    @property
    def error_rate(self) -> float | None:
        """The share of calls that count as errors; None without a call."""
        return self.failed / self.calls if self.calls else None

    @property
    def availability(self) -> float | None:
        """The share of calls meant for the arm that it answered: neither failed nor overflowed; None without any.

        Those that it rejected say nothing of that: who asks for what is not there has been answered, and so has who
        asked an arm that takes nothing.
        """
        meant = self.calls - self.rejected + self.overflow
        return (self.answered - self.rejected) / meant if meant else None

    @property
    def rejected_share(self) -> float:
        """The share of calls that it rejected; 0.0 without any."""
        return self.rejected / self.calls if self.calls else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        return self.generated * _MILLION / self.generating if self.generating else None

    @property
    def cost_per_call(self) -> int | None:
        """What an answered call costs, in nano-dollars, with what failed ones have cost; None where it is not known."""
        return _divided(self.cost, self.priced)

    @property
    def cost_per_mtok(self) -> int | None:
        """What a million tokens cost, input and output together, in nano-dollars; None where it is not known."""
        return _divided(self.cost * _MILLION, self.priced_tokens)

    @property
    def unpriced(self) -> bool:
        """Whether nobody can say what its calls have cost, though they were some work: of none there is a price."""
        used = self.input_tokens or self.output_tokens or self.latency.total
        return bool(used) and not (self.priced or self.priced_tokens or self.cost)

    def __add__(self, other: Figures) -> Figures:
        return merged((self, other))

    def to_json(self) -> dict[str, Any]:
        """Only JSON's own types. The sum of squares is a text: it outgrows what all readers of JSON can hold."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in _SUMS}
        facts["squares"] = str(self.squares)
        facts["errors"] = dict(self.errors)
        return facts | {name: getattr(self, name).to_json() for name in _HISTOGRAMS}

    @classmethod
    def from_json(cls, facts: Any) -> Figures:
        """Raises ValueError for what `to_json` has not made."""
        try:
            sums: dict[str, Any] = {name: _count(facts[name]) for name in _SUMS}
            errors = {name: _count(count) for name, count in facts["errors"].items()}
            sums |= {name: Histogram.from_json(facts[name]) for name in _HISTOGRAMS}
            squares = facts["squares"]
            if not (squares.isascii() and squares.isdecimal()) or sum(errors.values()) > sums["calls"]:
                raise ValueError("are no figures")
        except (TypeError, LookupError, AttributeError):
            raise ValueError("are no figures") from None
        return cls(errors=errors, squares=int(squares), **sums)


_SUMS: Final = (
    *("calls", "rejected", "overflow", "input_tokens", "output_tokens", "generated", "generating", "cost", "priced"),
    "priced_tokens",
)
_HISTOGRAMS: Final = ("latency", "first_token")


def merged(parts: Iterable[Figures]) -> Figures:
    """All parts as one: equal to having observed their calls together."""
    sums = dict.fromkeys((*_SUMS, "squares"), 0)
    errors: dict[str, int] = {}
    latency: dict[int, int] = {}
    first_token: dict[int, int] = {}
    for part in parts:
        for name in sums:
            sums[name] += getattr(part, name)
        for name, count in part.errors.items():
            errors[name] = errors.get(name, 0) + count
        part.latency.add_to(latency)
        part.first_token.add_to(first_token)
    return Figures(errors=errors, latency=Histogram.of(latency), first_token=Histogram.of(first_token), **sums)


class Slot(NamedTuple):
    """The figures of the calls that ended from `start`, in seconds since the epoch, for `seconds`."""

    start: int
    seconds: int
    figures: Figures


class ArmFigures:
    """The figures of one arm since the gateway has started, and how they came to be.

    Times are seconds since the epoch. Where the clock is turned back, calls count to the minute that was the last.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self._ended = Figures()
        """All minutes but the running one."""
        self._tiers: tuple[deque[Slot], ...] = tuple(deque() for _ in _TIERS)
        self._start = int(since) // _MINUTE * _MINUTE
        self._until = self._start + _MINUTE
        self._begin()

    def _begin(self) -> None:
        """A minute without a call."""
        self._latency: dict[int, int] = {}
        self._first_token: dict[int, int] = {}
        self._errors: dict[str, int] = {}
        self._calls = self._rejected = self._overflow = 0
        self._input_tokens = self._output_tokens = self._generated = self._generating = 0
        self._cost = self._squares = self._priced = self._priced_tokens = 0

    def observe(
        self,
        at: float,
        seconds: float | None,
        *,
        error: str | None = None,
        first_token: float | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost: int | None = None,
        rejected: bool = False,
    ) -> None:
        """Counts one call that has ended at `at`. Durations are in seconds, `cost` in nano-dollars; None is not known.

        `seconds` is None, too, where it says nothing of how quick the arm is: the call was refused, by no fault of it.
        `rejected` is whether it was answered that the call is mistaken. `error` is its class, a word of the gateway's
        own: each is kept for as long as the gateway runs.
        """
        if at >= self._until:
            self._turn(at)
        self._calls += 1
        self._rejected += rejected
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens
        if cost is not None:
            self._cost += cost
            self._squares += cost * cost
            self._priced_tokens += input_tokens + output_tokens
            if error is None:
                self._priced += 1
        if error is not None:
            self._errors[error] = self._errors.get(error, 0) + 1
            return
        if seconds is None:
            return
        taken = int(seconds * 1e6)
        if not 0 <= taken <= LONGEST:
            taken = 0 if taken < 0 else LONGEST
        latency = self._latency
        index = bucket(taken)
        latency[index] = latency.get(index, 0) + 1
        if first_token is not None:
            waited = int(first_token * 1e6)
            if not 0 <= waited <= taken:
                waited = 0 if waited < 0 else taken
            first = self._first_token
            index = bucket(waited)
            first[index] = first.get(index, 0) + 1
            taken -= waited
        self._generated += output_tokens
        self._generating += taken

    def overflowed(self, at: float) -> None:
        """Counts a call meant for this arm that another one takes."""
        if at >= self._until:
            self._turn(at)
        self._overflow += 1

    @property
    def total(self) -> Figures:
        """Since the gateway has started."""
        return merged((self._ended, self._running()))

    @property
    def began(self) -> int | None:
        """When the oldest slot begins; None before the first call."""
        for tier in reversed(self._tiers):
            if tier:
                return tier[0].start
        return self._start if self._calls or self._overflow else None

    def copied(self) -> ArmFigures:
        """What there is now, to be read while calls are counted."""
        found = copy.copy(self)
        found._tiers = tuple(tier.copy() for tier in self._tiers)
        found._latency, found._first_token = self._latency.copy(), self._first_token.copy()
        found._errors = self._errors.copy()
        return found

    def window(self, since: float, until: float = math.inf) -> Figures:
        """Of the slots that overlap a span of time: of whole minutes in the last day, of hours or days before."""
        return merged(slot.figures for slot in self.slots(since, until))

    def slots(self, since: float = 0.0, until: float = math.inf) -> list[Slot]:
        """All slots with a call that overlap a span of time, the oldest first."""
        running = Slot(self._start, _MINUTE, self._running())
        return [
            slot
            for slot in (*(slot for tier in reversed(self._tiers) for slot in tier), running)
            if slot.start < until and slot.start + slot.seconds > since and _any(slot.figures)
        ]

    def timeline(self, since: float, until: float, seconds: int) -> list[Slot]:
        """Slots of at least so many seconds, aligned to them; what is only known of longer ones stays as long."""
        groups: dict[tuple[int, int], list[Figures]] = {}
        for slot in self.slots(since, until):
            length = max(seconds, slot.seconds)
            groups.setdefault((slot.start // length * length, length), []).append(slot.figures)
        return [Slot(*key, merged(parts)) for key, parts in sorted(groups.items())]

    def _turn(self, at: float) -> None:
        """Ends the running minute and begins the one of `at`."""
        running = self._running()
        if _any(running):
            self._ended = merged((self._ended, running))
            _put(self._tiers[0], _MINUTE, Slot(self._start, _MINUTE, running))
        self._start = int(at) // _MINUTE * _MINUTE
        self._until = self._start + _MINUTE
        self._begin()
        self._age()

    def _age(self) -> None:
        """Slots too old for their tier become part of the next one's; those of the last are only in the total."""
        for number, (seconds, most) in enumerate(_TIERS):
            tier, oldest = self._tiers[number], self._until - seconds * most
            while tier and tier[0].start + tier[0].seconds <= oldest:
                slot = tier.popleft()
                if number + 1 < len(_TIERS):
                    _put(self._tiers[number + 1], _TIERS[number + 1][0], slot)

    def _running(self) -> Figures:
        return Figures(
            calls=self._calls,
            rejected=self._rejected,
            errors=dict(self._errors),
            overflow=self._overflow,
            latency=Histogram.of(self._latency),
            first_token=Histogram.of(self._first_token),
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            generated=self._generated,
            generating=self._generating,
            cost=self._cost,
            squares=self._squares,
            priced=self._priced,
            priced_tokens=self._priced_tokens,
        )

    def to_json(self) -> dict[str, Any]:
        """Only JSON's own types; what another gateway needs to put these figures together with its own."""
        slots = [[slot.start, slot.seconds, slot.figures.to_json()] for slot in self.slots()]
        return {"version": 1, "since": self.since, "total": self.total.to_json(), "slots": slots}

    @classmethod
    def from_json(cls, facts: Any) -> ArmFigures:
        """Raises ValueError for what `to_json` has not made."""
        try:
            if facts["version"] != 1:
                raise ValueError("are figures of another version")
            found = cls(float(facts["since"]))
            found._ended = Figures.from_json(facts["total"])
            slots = [
                Slot(_count(start), _count(length), Figures.from_json(each)) for start, length, each in facts["slots"]
            ]
        except (TypeError, LookupError, OverflowError):
            raise ValueError("are no figures") from None
        found._place(slots)
        return found

    def _place(self, slots: Iterable[Slot]) -> None:
        """Takes slots, the oldest first, that are in the total already, and begins a minute after the last."""
        lengths = [seconds for seconds, _ in _TIERS]
        for slot in slots:
            if slot.seconds not in lengths or slot.start % slot.seconds:
                raise ValueError("are no figures")
            _put(self._tiers[lengths.index(slot.seconds)], slot.seconds, slot)
            self._start = max(self._start, slot.start // _MINUTE * _MINUTE)
        self._until = self._start + _MINUTE
        self._age()


def together(replicas: Iterable[ArmFigures]) -> ArmFigures:
    """The figures that several gateways have of the same arm, as one's, to be read and not to be counted on."""
    parts = list(replicas)
    whole = ArmFigures(min((part.since for part in parts), default=0.0))
    whole._ended = merged(part.total for part in parts)
    whole._place(sorted((slot for part in parts for slot in part.slots()), key=lambda slot: slot[:2]))
    return whole


def _put(tier: deque[Slot], seconds: int, slot: Slot) -> None:
    """Adds a slot to a tier of slots of `seconds`, most often as a part of its last."""
    start = slot.start // seconds * seconds
    place = len(tier)
    while place and tier[place - 1].start > start:
        place -= 1
    if place and tier[place - 1].start == start:
        tier[place - 1] = Slot(start, seconds, merged((tier[place - 1].figures, slot.figures)))
    else:
        tier.insert(place, Slot(start, seconds, slot.figures))


def _any(figures: Figures) -> bool:
    return bool(figures.calls or figures.overflow)


def _divided(amount: int, by: int) -> int | None:
    """To the nearest."""
    return (2 * amount + by) // (2 * by) if by else None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("are no figures")
    return value
