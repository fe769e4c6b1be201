"""Durations as counts in buckets whose width grows with what they hold, so that any percentile is known within 3.2 %.

Gil Tene's HdrHistogram, in integers: whole microseconds, 32 buckets to every doubling, one bucket each below 64. Two
histograms become one by adding, so those of minutes, arms and gateways can be put together in any order.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LONGEST: Final = 2**32 - 1
"""Microseconds, some 71 minutes: what takes longer counts as that long."""

BUCKETS: Final = 896
"""How many buckets there are."""

_EXACT: Final = 64
_BITS: Final = 5
"""Of a duration's leading bit, those below it that choose its bucket."""


def bucket(microseconds: int) -> int:
    """The bucket of a duration from 0 to LONGEST."""
    if microseconds < _EXACT:
        return microseconds
    shift = microseconds.bit_length() - 1 - _BITS
    return (shift << _BITS) + (microseconds >> shift)


def bounds(index: int) -> tuple[int, int]:
    """The shortest duration of a bucket, and the shortest that is too long for it."""
    if index < _EXACT:
        return index, index + 1
    shift = (index >> _BITS) - 1
    leading = index - (shift << _BITS)
    return leading << shift, (leading + 1) << shift


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations fell into which bucket; `indices` ascend, and no count is 0."""

    indices: array[int] = field(default_factory=lambda: array("H"))
    counts: array[int] = field(default_factory=lambda: array("Q"))

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Histogram:
        """From counts by bucket."""
        indices = sorted(counts)
        return cls(array("H", indices), array("Q", [counts[index] for index in indices]))

    @classmethod
    def observed(cls, durations: Iterable[int]) -> Histogram:
        """From durations in microseconds."""
        counts: dict[int, int] = {}
        for each in durations:
            index = bucket(min(max(each, 0), LONGEST))
            counts[index] = counts.get(index, 0) + 1
        return cls.of(counts)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def add_to(self, counts: dict[int, int]) -> None:
        """Adds these counts to those."""
        for index, count in zip(self.indices, self.counts, strict=True):
            counts[index] = counts.get(index, 0) + count

    def at_rank(self, rank: int) -> int | None:
        """The duration that so many are not longer than, in microseconds; None where there are not so many.

        Within its bucket durations are taken to lie evenly.
        """
        if rank < 1:
            return None
        before = 0
        for index, count in zip(self.indices, self.counts, strict=True):
            if before + count >= rank:
                low, high = bounds(index)
                return low + (high - low) * (2 * (rank - before) - 1) // (2 * count)
            before += count
        return None

    def percentile(self, percent: int) -> int | None:
        """By nearest rank, in microseconds; None where nothing was observed."""
        return self.at_rank(max(1, -(-self.total * percent // 100)))

    def rebinned(self, edges: Iterable[int]) -> list[int]:
        """How many are below the first edge, from each edge to the next, and at or above the last.

        A bucket that an edge cuts goes where its middle is.
        """
        ascending = list(edges)
        bins = [0] * (len(ascending) + 1)
        place = 0
        for index, count in zip(self.indices, self.counts, strict=True):
            low, high = bounds(index)
            while place < len(ascending) and (low + high) // 2 >= ascending[place]:
                place += 1
            bins[place] += count
        return bins

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(from, to, count) of each bucket that has any."""
        for index, count in zip(self.indices, self.counts, strict=True):
            yield *bounds(index), count

    def to_json(self) -> list[list[int]]:
        return [self.indices.tolist(), self.counts.tolist()]

    @classmethod
    def from_json(cls, facts: Any) -> Histogram:
        """Raises ValueError."""
        try:
            indices, counts = array("H", facts[0]), array("Q", facts[1])
        except (TypeError, OverflowError, LookupError):
            raise ValueError("is no histogram") from None
        ascending = all(one < other for one, other in itertools.pairwise(indices))
        if len(facts) != 2 or len(indices) != len(counts) or not ascending or (indices and indices[-1] >= BUCKETS):
            raise ValueError("is no histogram")
        if not all(counts):
            raise ValueError("is no histogram")
        return cls(indices, counts)
