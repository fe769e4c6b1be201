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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from gateway.exchange import Exchange

log = logging.getLogger("weighbridge.ledger")

FILE_NAME = "calls.jsonl"


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
    """Appends to one file that no other process has open. Raises LedgerUnavailable when it cannot be had."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._pending: list[bytes] = []
        self._scheduled = False
        self.failure: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerUnavailable(f"{self.path}: {error.strerror}.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise LedgerUnavailable(f"{self.path}: another process writes here.") from None
        self._mend()

    def intend(self, x: Exchange) -> None:
        self._pending.append(_line(intent(x)))
        self.flush()
        if self.failure is not None:
            raise LedgerUnavailable("The call cannot be recorded, so it was not made.")
        x.intended = True

    def conclude(self, x: Exchange) -> None:
        self._append(outcome(x))

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        self._append({"record": kind, **facts})

    def flush(self) -> None:
        """Hands everything to the operating system; keeps it and sets `failure` when that is impossible."""
        self._scheduled = False
        if not self._pending:
            return
        data = b"".join(self._pending)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:] if written else data)
        except OSError as error:
            self._failed(error, data[written:])
            return
        self._pending.clear()
        if self.failure is not None:
            log.warning("the ledger can be written again")
            self.failure = None

    def close(self) -> None:
        self.flush()
        os.close(self._file)

    def _append(self, record: Mapping[str, Any]) -> None:
        self._pending.append(_line(record))
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _failed(self, error: OSError, unwritten: bytes) -> None:
        # Outcomes wait for better times, up to a bound; the intent that could not be written was refused and is
        # written late or not at all, which is harmless: its outcome says so.
        self._pending = [unwritten] if len(unwritten) < _MOST_WAITING else []
        if self.failure is None:
            log.error("the ledger cannot be written: %s", errno.errorcode.get(error.errno or 0, "unknown"))
        self.failure = error.strerror or "unknown"

    def _mend(self) -> None:
        """A process killed in the middle of a line leaves a torn one; the next record must not continue it."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")


_MOST_WAITING = 16 * 1024 * 1024
_MOST_ARGUMENTS = 8 * 1024


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
    record: dict[str, Any] = {
        "record": "outcome",
        "call": x.id,
        "at": x.arrived_ns,
        "code": x.code,
        "status": x.status,
        "protocol": x.adapter.protocol,
        "method": x.method,
        "path": x.path,
        "seconds": round(x.ended - x.began, 6),
    }
    if x.agent is not None:
        record["agent"], record["tenant"] = x.agent.name, x.agent.tenant
    if x.session is not None:
        record["session"] = x.session
    if x.call is not None:
        record["operation"], record["model"] = x.call.operation, x.call.target
        if x.call.stream is not None:
            record["stream"] = x.call.stream
        record["arguments"], record["masked"] = _arguments(x)
        record["request_bytes"] = len(x.call.body)
    if x.decision is not None:
        record["decision"], record["revision"] = x.decision.effect, x.decision.revision
        if x.decision.explanation:
            record["explanation"] = x.decision.explanation
        if x.decision.risk_level:
            record["risk_level"] = x.decision.risk_level
    if x.arm is not None and x.route is not None:
        record["route"], record["target"] = x.route.name, x.arm.target.name
        if x.arm.model is not None:
            record["target_model"] = x.arm.model
    if x.target_status is not None:
        record["target_status"] = x.target_status
    if x.sent_at is not None:
        record["target_seconds"] = round(x.ended - x.sent_at, 6)
        if x.first_byte_at is not None:
            record["first_byte_seconds"] = round(x.first_byte_at - x.sent_at, 6)
    if x.usage is not None:
        record["usage"] = {
            "input_tokens": x.usage.input_tokens,
            "output_tokens": x.usage.output_tokens,
            "cache_read_tokens": x.usage.cache_read_tokens,
            "cache_write_tokens": x.usage.cache_write_tokens,
            "reasoning_tokens": x.usage.reasoning_tokens,
        }
    if x.detail:
        record["detail"] = x.detail
    return record


def _arguments(x: Exchange) -> tuple[Any, list[str]]:
    assert x.call is not None, "only called for a call that was read"
    arguments, masked = x.assembly.mask.apply(x.call.arguments)
    try:
        rendered = orjson.dumps(arguments)
    except (TypeError, ValueError, RecursionError):
        return None, [*masked, ""]
    return (orjson.Fragment(rendered), masked) if len(rendered) <= _MOST_ARGUMENTS else (None, [*masked, ""])


def _line(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ledger file, oldest first; torn lines are passed over."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record
