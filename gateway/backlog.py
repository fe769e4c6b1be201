"""Lines of the ledger that wait until they can be written; in order, bounded, and counted where they are lost."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from gateway import records

log = logging.getLogger("weighbridge.ledger")

MOST_WAITING: Final = 16 * 1024 * 1024
"""Bytes of outcomes that wait in memory while the ledger cannot be written."""

_AT_ONCE: Final = 64
"""Entries that are tried in one write after a failure: every refused call tries again, so trying has to be cheap."""


class Backlog:
    """Lines that could not be written yet, oldest first, MOST_WAITING bytes at most.

    Beyond that the oldest are lost. Never forgets how many: they leave as one line that says so, before those that were
    kept.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._size = 0
        self._lines: deque[tuple[bytes, int]] = deque()
        """Each with the number of lost outcomes it stands for; 0 when it stands for itself."""

    def __bool__(self) -> bool:
        return bool(self._lines) or self.lost > 0

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._lines.append((line, 0))
            self._size += len(line)
        self._shorten()

    def restore(self, lines: Iterable[bytes]) -> None:
        """Puts lines before all that wait."""
        older = [(line, 0) for line in lines]
        self._lines.extendleft(reversed(older))
        self._size += sum(len(line) for line, _ in older)
        self._shorten()

    def withdraw(self, lines: Sequence[bytes]) -> None:
        """Takes the last lines back, as far as they still wait."""
        for line in reversed(lines):
            if self._lines and self._lines[-1][0] is line:
                self._lines.pop()
                self._size -= len(line)

    def next(self) -> bytes:
        """What is to be written next, whole lines; `remove` takes away what was."""
        if self.lost:
            told = records.line({"record": "lost", "at": time.time_ns(), "outcomes": self.lost})
            self._lines.appendleft((told, self.lost))
            self._size += len(told)
            self.lost = 0
        return b"".join([line for line, _ in islice(self._lines, _AT_ONCE)])

    def remove(self, written: int) -> bool:
        """Forgets the records that these first bytes hold, and returns whether a line still has to be ended."""
        # A record that lacks nothing but the end of its line is there: written again, it would be there twice.
        while self._lines and written >= len(self._lines[0][0]) - 1:
            line, lost = self._lines.popleft()
            written -= len(line)
            self._size -= len(line)
            if lost:
                log.error("%d outcomes were lost while the ledger could not be written", lost)
        return written != 0

    def _shorten(self) -> None:
        while self._size > MOST_WAITING:
            line, lost = self._lines.popleft()
            self._size -= len(line)
            # A decision counts with the outcome that follows it.
            self.lost += lost or not line.startswith(records.DECISION)
