"""How long answers usually are, by agent and model: what an adaptive budget lends at a time."""

from __future__ import annotations

from typing import Final

SMALLEST: Final = 512
LARGEST: Final = 4096
"""Tokens that are lent at a time: enough that most answers need one loan, and little enough to be spared."""

MOST_UNSEEN: Final = 128 * 1024
"""Tokens that are lent at most beside those of the answer, for what a model thinks and does not show."""

_BUCKETS: Final = 24
"""Lengths are told apart by powers of two."""
_MEMORY: Final = 128
"""Answers that count: older ones fade."""
_FADES: Final = 16
"""Of what was not seen, this part is forgotten with every answer that shows all it is made of."""
_MOST: Final = 32
"""Models of one agent that are told apart. They are its text: one that makes them up makes nobody else forget."""


class Chunks:
    """Lengths of answers seen so far, in tokens."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, _Lengths]] = {}

    def saw(self, agent: str, model: str, tokens: int, unseen: int = 0) -> None:
        """An answer of so many tokens was made, of which so many did not pass while it was streamed."""
        models = self._seen.get(agent)
        if models is None:
            models = self._seen[agent] = {}
        lengths = models.get(model)
        if lengths is None:
            if len(models) >= _MOST:
                models.clear()
            lengths = models[model] = _Lengths()
        lengths.saw(tokens - unseen, unseen if unseen < MOST_UNSEEN else MOST_UNSEEN)

    def usual(self, agent: str, model: str) -> int:
        """Tokens that nine answers out of ten stay below, from SMALLEST to LARGEST; SMALLEST where nothing is known.

        To these come as many as lately were not seen: nobody can borrow for them as they pass.
        """
        models = self._seen.get(agent)
        lengths = models.get(model) if models is not None else None
        return SMALLEST if lengths is None else lengths.usual


class _Lengths:
    """Of the answers to one agent by one model. What is usual is worked out now and then, not for every answer."""

    __slots__ = ("_counts", "_due", "_seen", "_total", "_unseen", "usual")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        """How many were shorter than 2**index, and not than half of that."""
        self._total = 0
        self._due = 1
        self._seen = SMALLEST
        self._unseen = 0
        self.usual = SMALLEST

    def saw(self, tokens: int, unseen: int) -> None:
        bits = tokens.bit_length()
        self._counts[bits if bits < _BUCKETS else -1] += 1
        self._total += 1
        if self._total >= self._due:
            if self._total >= _MEMORY:
                self._counts = [count // 2 for count in self._counts]
                self._total = sum(self._counts)
            self._due = self._total + max(1, self._total // 8)
            self._seen = self._worked_out()
        if unseen or self._unseen:
            self._unseen = max(unseen, self._unseen - -(-self._unseen // _FADES))
        self.usual = self._seen + self._unseen

    def _worked_out(self) -> int:
        longer = self._total // 10
        index = _BUCKETS - 1
        while index > 0 and longer >= self._counts[index]:
            longer -= self._counts[index]
            index -= 1
        return min(max(1 << index, SMALLEST), LARGEST)
