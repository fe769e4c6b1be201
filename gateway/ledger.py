"""What happened and why: the decision before a call's bytes leave, the outcome when it is over, one JSON line each.

The intent is with the operating system before the first byte goes to a target, so a killed process leaves at most an
intent without an outcome: "recorded but not sent" is visible, "sent but not recorded" cannot be. Both wait for the end
of the event loop's turn, so that many calls share one write.
"""

import asyncio
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from gateway import records
from gateway.backlog import Backlog
from gateway.decision_log import DecisionLog
from gateway.exchange import Exchange

log = logging.getLogger("weighbridge.ledger")

FILE_NAME = "calls.jsonl"

_LOOK_EVERY: Final = 1.0
"""Seconds between two looks whether the file is still where it belongs, and between two attempts when it fails."""


class LedgerUnavailable(Exception):
    """The record cannot be written, so nothing may happen that would have to be recorded."""


class Ledger(Protocol):
    """Where calls are recorded."""

    async def intend(self, x: Exchange) -> None:
        """Returns once the intent will survive this process. Raises LedgerUnavailable."""
        ...

    def conclude(self, x: Exchange) -> None:
        """Takes the outcome; never raises, for a call that has ended cannot be refused any more."""
        ...

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Records something that is not a call: a reload, a change made by a person. Never raises."""
        ...


class FileLedger:
    """Appends to one file that no other process has open. Raises LedgerUnavailable when it cannot be had.

    While it cannot be written, `failure` says why, intents are refused, and outcomes wait, up to MOST_WAITING. The
    oldest beyond that are lost: counted, and recorded as `{"record": "lost", "outcomes": N}` as soon as anything can
    be. A file that was deleted or moved is begun anew at its place within a second; what was written meanwhile to a
    deleted one is written again.
    """

    def __init__(
        self, folder: Path, events: DecisionLog | None = None, collect: Callable[[bytes], None] | None = None
    ) -> None:
        """`collect` is given each decision's event once it is recorded, or waits to be."""
        self._collect = collect
        self._events = events or DecisionLog()
        self.path = folder / FILE_NAME
        self.failure: str | None = None
        self._turn: list[bytes] = []
        """The lines of this turn of the event loop, but for intents."""
        self._intents: list[tuple[Exchange, list[bytes], asyncio.Future[None]]] = []
        """Those of this turn, whose calls wait for them to be written."""
        self._scheduled = False
        self._backlog = Backlog()
        self._torn = False
        """Whether the file ends in a part of a line."""
        self._trusted = False
        """Whether there is nothing to do but write: the file is where it belongs, and nothing waits."""
        self._look: asyncio.TimerHandle | None = None
        self._file = _opened(self.path)
        self._known_size = os.fstat(self._file).st_size

    async def intend(self, x: Exchange) -> None:
        written = asyncio.get_running_loop().create_future()
        self._intents.append((x, records.intended(x, self._events), written))
        self._flush_soon()
        await written
        if not x.intended:
            raise LedgerUnavailable("The call cannot be recorded, so it was not made.")

    def conclude(self, x: Exchange) -> None:
        lines = records.concluded(x, self._events)
        self._append(*lines)
        if self._collect is not None:
            for line in lines[:-1]:
                self._collect(records.event_of(line))

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        record = {"record": kind, "at": time.time_ns()}
        try:
            line = records.line({**record, **facts})
        except TypeError:
            line = records.line({**record, "detail": records.NOT_IN_FULL})
        self._append(line)

    def flush(self) -> None:
        """Hands everything to the operating system; keeps it and sets `failure` when that is impossible."""
        self._scheduled = False
        intents, self._intents = self._intents, []
        # Last, so that they can be withdrawn from the end of what waits.
        turn = [*self._turn, *(line for _, lines, _ in intents for line in lines)]
        self._turn.clear()
        recorded = False
        try:
            if turn:
                self._write(turn)
            recorded = self.failure is None
        finally:
            if not recorded:
                for _, lines, _ in reversed(intents):
                    self._backlog.withdraw(lines)
            for x, lines, written in intents:
                x.intended = recorded
                if recorded and self._collect is not None:
                    for line in lines:
                        self._collect(records.event_of(line))
                if not written.done():
                    written.set_result(None)

    def _write(self, turn: list[bytes]) -> None:
        if self._trusted:
            data = b"".join(turn)
            try:
                written = os.write(self._file, data)
            except OSError:
                written = 0  # and once more below, where what is wrong with it is dealt with
            if written == len(data):
                return
            self._backlog.add(turn)
            self._torn = self._backlog.remove(written)
        else:
            self._backlog.add(turn)
        self._write_backlog()

    def close(self) -> None:
        self.flush()
        if self._look is not None:
            self._look.cancel()
        if self._backlog:
            log.error("%d records could not be written", len(self._backlog) + self._backlog.lost)
        os.close(self._file)

    def _append(self, *lines: bytes) -> None:
        self._turn += lines
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _write_backlog(self) -> None:
        """The careful way to write: makes sure of the file first, and remembers how far it came."""
        try:
            if not self._trusted:
                self._find()
            while self._torn or self._backlog:
                # A torn line ends here, so that it does not swallow the next one; its record comes again, whole.
                data = b"\n" if self._torn else self._backlog.next()
                written = os.write(self._file, data)
                self._torn = written < len(data) if self._torn else self._backlog.remove(written)
        except (OSError, LedgerUnavailable) as error:
            self._failed(error)
        else:
            self._succeeded()
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_EVERY, self._look_again)

    def _look_again(self) -> None:
        """Ends when a second passed in which nothing was written: then the next write looks first."""
        self._look = None
        self._trusted = False
        if self.failure is not None or os.fstat(self._file).st_size != self._known_size:
            self._write_backlog()

    def _find(self) -> None:
        """Makes sure that what is written will be found. Raises LedgerUnavailable, OSError."""
        now = os.fstat(self._file)
        try:
            here = os.stat(self.path)
        except OSError:
            here = None
        if here is None or not os.path.samestat(here, now):
            file = _opened(self.path)
            log.warning("%s was taken away and is begun anew", self.path)
            if not now.st_nlink:
                tail = os.pread(self._file, now.st_size - self._known_size, self._known_size)
                self._backlog.restore(line for line in tail.splitlines(keepends=True) if line.endswith(b"\n"))
            os.close(self._file)
            self._file, self._torn = file, False
            now = os.fstat(file)
        self._known_size = now.st_size

    def _failed(self, error: OSError | LedgerUnavailable) -> None:
        self._trusted = False
        if self.failure is None:
            reason = errno.errorcode.get(error.errno or 0, "unknown") if isinstance(error, OSError) else error
            log.error("the ledger cannot be written: %s", reason)
        self.failure = str(error)

    def _succeeded(self) -> None:
        self._trusted = True
        if self.failure is not None:
            log.warning("the ledger can be written again")
            self.failure = None


def _opened(path: Path) -> int:
    """A descriptor that appends to the file and that no other process has. Raises LedgerUnavailable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        file = os.open(path, flags, 0o600)
    except OSError as error:
        raise LedgerUnavailable(f"{path}: {error.strerror}.") from None
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise LedgerUnavailable(f"{path}: this is not a regular file.")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A process killed in the middle of a line leaves a torn one; the next record must not continue it.
        if facts.st_size and os.pread(file, 1, facts.st_size - 1) != b"\n":
            os.write(file, b"\n")
    except BlockingIOError:
        os.close(file)
        raise LedgerUnavailable(f"{path}: another process writes here.") from None
    except OSError as error:
        os.close(file)
        raise LedgerUnavailable(f"{path}: {error.strerror}.") from None
    except LedgerUnavailable:
        os.close(file)
        raise
    return file
