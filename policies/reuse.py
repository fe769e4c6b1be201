"""Decisions already made, by what they were made of: the same part of an input that is read gets the same decision."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from policies.decision import Decision
from policies.obligations import NONE

MOST: Final = 16_384
LONGEST: Final = 2048
"""How many decisions are remembered, and the bytes of the longest input that one is remembered by, and of the longest
answer."""


class Reuse:
    """The decisions of one revision. When there are too many, the one longest unasked for goes.

    `hits` and `misses` count the questions that could be answered so; `unsuited` those that could not: because their
    decision may change without them, because they are long, or because nobody wants it.
    """

    __slots__ = ("_decisions", "hits", "misses", "unsuited")

    def __init__(self) -> None:
        self._decisions: OrderedDict[bytes, Decision] = OrderedDict()
        self.hits = self.misses = self.unsuited = 0

    def __len__(self) -> int:
        return len(self._decisions)

    def find(self, document: bytes) -> Decision | None:
        """What was decided on exactly this. Counts."""
        decision = self._decisions.get(document)
        if decision is None:
            self.misses += 1
            return None
        self._decisions.move_to_end(document)
        self.hits += 1
        return decision

    def keep(self, document: bytes, decision: Decision) -> None:
        """Remembers a decision, unless it is long. It must have been made of `document` and of nothing else."""
        if _length(decision) > LONGEST:
            return
        self._decisions[document] = decision
        if len(self._decisions) > MOST:
            self._decisions.popitem(last=False)

    def clear(self) -> None:
        """Forgets all decisions, and counts on."""
        self._decisions.clear()


def _length(decision: Decision) -> int:
    """Bytes of what the policy answered. What is recorded of it leaves out the values that it puts into calls."""
    told = len(decision.answer)
    if decision.obligations is not NONE:
        told += sum(len(edit.value) for edit in decision.obligations.replace)
        told += sum(len(text) for _, text in decision.obligations.headers)
    return told
