"""Reads the ledger's file back: for people at a shell, for explanations, and for tests."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from gateway.records import DECISIONS

LONGEST_LINE: Final = 1024 * 1024
"""Bytes of the longest line that is read back; no record comes near it."""


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


def decision_of(records: Iterable[Mapping[str, Any]], call_id: str) -> Mapping[str, Any] | None:
    """The last decision taken on a call, as its decision log event; None for a call that nobody decided.

    A call is decided more than once where the policy wanted it changed, or asked people.
    """
    last = None
    for record in records:
        if record.get("call") == call_id and record.get("record") in DECISIONS:
            last = record
    return last
