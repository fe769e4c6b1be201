"""How long answers usually are, by agent and model: what an adaptive budget lends at a time."""

from __future__ import annotations

from typing import Final

SMALLEST: Final = 512
LARGEST: Final = 4096
"""Tokens that are lent at a time: enough that most answers need one loan, and little enough to be spared."""

_BUCKETS: Final = 24
"""Lengths are told apart by powers of two."""
_MEMORY: Final = 128
"""Answers that count: older ones fade."""
_MOST: Final = 8192
"""Agents and models that are told apart; models are callers' text."""


class Chunks:
    """Lengths of answers seen so far, in tokens."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[int]] = {}
        """How many were shorter than 2**index, and not than half of that; the last is their sum."""

    def saw(self, agent: str, model: str, tokens: int) -> None:
        """An answer of so many tokens was made."""
        counts = self._seen.get((agent, model))
        if counts is None:
            if len(self._seen) >= _MOST:
                self._seen.clear()
            counts = self._seen[agent, model] = [0] * (_BUCKETS + 1)
        counts[min(tokens.bit_length(), _BUCKETS - 1)] += 1
        counts[-1] += 1
        if counts[-1] >= _MEMORY:
            counts[:-1] = [count // 2 for count in counts[:-1]]
            counts[-1] = sum(counts[:-1])

    def usual(self, agent: str, model: str) -> int:
        """Tokens that nine answers out of ten stay below, from SMALLEST to LARGEST; SMALLEST where nothing is known."""
        counts = self._seen.get((agent, model))
        if counts is None:
            return SMALLEST
        above = counts[-1] // 10
        index = _BUCKETS - 1
        while index > 0 and above >= counts[index]:
            above -= counts[index]
            index -= 1
        return min(max(1 << index, SMALLEST), LARGEST)
