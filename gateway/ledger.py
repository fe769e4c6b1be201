"""What happened and why: one intent before a call's bytes leave, one outcome when it is over, one JSON line each.

The intent is with the operating system before the first byte goes to a target, so a killed process leaves at most an
intent without an outcome: "recorded but not sent" is visible, "sent but not recorded" cannot be. Outcomes may wait for
the end of the event loop's turn, so that many calls share one write.
"""

import asyncio
import errno
import fcntl
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import orjson

from adapters.base import AgentCall
from gateway.exchange import Exchange

log = logging.getLogger("weighbridge.ledger")

FILE_NAME = "calls.jsonl"

LONGEST_PATH: Final = 256
"""Characters of a call's path that are recorded: whoever has no key can make paths of any length."""

LONGEST_LINE: Final = 1024 * 1024
"""Bytes of the longest line that is read back; no record comes near it."""

MOST_WAITING: Final = 16 * 1024 * 1024
"""Bytes of outcomes that wait in memory while the ledger cannot be written."""

_MOST_ARGUMENTS: Final = 8 * 1024
"""Bytes of a call's body up to which its arguments are recorded."""

_LOOK_EVERY: Final = 1.0
"""Seconds between two looks whether the file is still where it belongs, and between two attempts when it fails."""

_AT_ONCE: Final = 64
"""Lines that are tried in one write after a failure: every refused call tries again, so trying has to be cheap."""

_NOT_IN_FULL: Final = "the full record could not be written"


class LedgerUnavailable(Exception):
    """The record cannot be written, so nothing may happen that would have to be recorded."""


class Ledger(Protocol):
    """Where calls are recorded."""

    def intend(self, x: Exchange) -> None:
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

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.failure: str | None = None
        self._turn: list[bytes] = []
        """The lines of this turn of the event loop."""
        self._scheduled = False
        self._backlog = Backlog()
        self._torn = False
        """Whether the file ends in a part of a line."""
        self._trusted = False
        """Whether there is nothing to do but write: the file is where it belongs, and nothing waits."""
        self._look: asyncio.TimerHandle | None = None
        self._file = _opened(self.path)
        self._known_size = os.fstat(self._file).st_size

    def intend(self, x: Exchange) -> None:
        line = _line(intent(x))
        self._turn.append(line)
        self.flush()
        if self.failure is not None:
            self._backlog.withdraw(line)
            raise LedgerUnavailable("The call cannot be recorded, so it was not made.")
        x.intended = True

    def conclude(self, x: Exchange) -> None:
        try:
            line = _line(outcome(x))
        except Exception as error:
            # Whatever a target or a call made of the exchange: that it happened has to be on record.
            log.error("call %s: %s: %s", x.id, _NOT_IN_FULL, type(error).__name__)
            line = _line(_least(x))
        self._append(line)

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        record = {"record": kind, "at": time.time_ns()}
        try:
            line = _line({**record, **facts})
        except TypeError:
            line = _line({**record, "detail": _NOT_IN_FULL})
        self._append(line)

    def flush(self) -> None:
        """Hands everything to the operating system; keeps it and sets `failure` when that is impossible."""
        self._scheduled = False
        turn = self._turn
        if not turn:
            return
        if self._trusted:
            data = b"".join(turn)
            try:
                written = os.write(self._file, data)
            except OSError:
                written = 0  # and once more below, where what is wrong with it is dealt with
            if written == len(data):
                turn.clear()
                return
            self._backlog.add(turn)
            self._torn = self._backlog.remove(written)
        else:
            self._backlog.add(turn)
        turn.clear()
        self._write_backlog()

    def close(self) -> None:
        self.flush()
        if self._look is not None:
            self._look.cancel()
        if self._backlog:
            log.error("%d records could not be written", len(self._backlog) + self._backlog.lost)
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        self._turn.append(line)
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


class Backlog:
    """Lines that could not be written yet, oldest first, MOST_WAITING bytes at most: beyond that the oldest are lost.

    Never forgets how many: they leave as one line that says so, before those that were kept.
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

    def withdraw(self, line: bytes) -> None:
        """Takes the last line back."""
        if self._lines and self._lines[-1][0] is line:
            self._lines.pop()
            self._size -= len(line)

    def next(self) -> bytes:
        """What is to be written next, whole lines; `remove` takes away what was."""
        if self.lost:
            line = _line({"record": "lost", "at": time.time_ns(), "outcomes": self.lost})
            self._lines.appendleft((line, self.lost))
            self._size += len(line)
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
            self.lost += lost or 1


def intent(x: Exchange) -> dict[str, Any]:
    """What is about to happen, and why it may."""
    call, decision = x.call, x.decision
    assert call is not None, "a call is read before it is intended"
    assert decision is not None, "a call is decided before it is intended"
    return {
        "record": "intent",
        "call": x.id,
        "at": x.arrived_ns,
        "agent": x.agent.name if x.agent else None,
        "tenant": x.agent.tenant if x.agent else None,
        "protocol": call.protocol,
        "operation": call.operation,
        "model": call.target,
        "decision": decision.effect,
        "revision": decision.revision,
    }


def outcome(x: Exchange) -> dict[str, Any]:
    """Everything about a call that is over. Fields that do not apply are absent."""
    agent, call, decision, arm, usage = x.agent, x.call, x.decision, x.arm, x.usage
    record: dict[str, Any] = {
        "record": "outcome",
        "call": x.id,
        "at": x.arrived_ns,
        "code": x.code,
        "status": x.status,
        "protocol": x.adapter.protocol,
        "method": x.method,
        "path": x.path[:LONGEST_PATH],
        "seconds": _seconds(x.began, x.ended),
    }
    if agent is not None:
        record["agent"] = agent.name
        record["tenant"] = agent.tenant
    if x.session is not None:
        record["session"] = x.session
    if call is not None:
        record["operation"] = call.operation
        record["model"] = call.target
        if call.stream is not None:
            record["stream"] = call.stream
        record["arguments"], record["masked"] = _arguments(x, call)
        record["request_bytes"] = len(call.body)
    if decision is not None:
        record["decision"] = decision.effect
        record["revision"] = decision.revision
        if decision.explanation:
            record["explanation"] = decision.explanation
        if decision.risk_level:
            record["risk_level"] = decision.risk_level
    if arm is not None and x.route is not None:
        record["route"] = x.route.name
        record["target"] = arm.target.name
        if arm.model is not None:
            record["target_model"] = arm.model
    if x.target_status is not None:
        record["target_status"] = x.target_status
    if x.sent_at is not None:
        record["target_seconds"] = _seconds(x.sent_at, x.ended)
        if x.first_byte_at is not None:
            record["first_byte_seconds"] = _seconds(x.sent_at, x.first_byte_at)
    if usage is not None:
        record["usage"] = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        }
    if x.detail:
        record["detail"] = x.detail
    return record


def _least(x: Exchange) -> dict[str, Any]:
    """An outcome of nothing but what the gateway itself has made."""
    return {
        "record": "outcome",
        "call": x.id,
        "at": x.arrived_ns,
        "code": x.code,
        "status": x.status,
        "agent": x.agent.name if x.agent is not None else None,
        "detail": _NOT_IN_FULL,
    }


def _seconds(began: float, ended: float) -> float:
    return int((ended - began) * 1e6 + 0.5) / 1e6  # a third of what round() takes


def _arguments(x: Exchange, call: AgentCall) -> tuple[Any, list[str]]:
    arguments, masked = x.assembly.mask.apply(call.arguments)
    try:
        rendered = orjson.dumps(arguments)
    except (TypeError, ValueError, RecursionError):
        return None, [*masked, ""]
    return (orjson.Fragment(rendered), masked) if len(rendered) <= _MOST_ARGUMENTS else (None, [*masked, ""])


def _line(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


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


class Reader:
    """The records of a ledger file, oldest first; what is no record is passed over.

    Iterating ends with the file; iterating again goes on with what has come since. Raises OSError when the file cannot
    be read, or is none.
    """

    def __init__(self, path: Path) -> None:
        # Opening a pipe would wait for someone to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "this is not a regular file", str(path))
        self._file = open(descriptor, "rb")  # closed by `__exit__`
        self._skipping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while line := self._file.readline(LONGEST_LINE):
            ended = line.endswith(b"\n")
            passed_over, self._skipping = self._skipping, not ended and (self._skipping or len(line) == LONGEST_LINE)
            if passed_over or self._skipping:
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                if not ended:
                    self._file.seek(-len(line), os.SEEK_CUR)
                    return
                continue
            if isinstance(record, dict):
                yield record

    def is_at(self, path: Path) -> bool:
        """Whether the path still leads to this file."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._file.fileno()))
        except OSError:
            return False


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ledger file, oldest first; what is no record is passed over. Raises OSError."""
    with Reader(path) as reader:
        yield from reader
