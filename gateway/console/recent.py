"""What a session has called before, as far as the end of the ledger's file tells."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

LOOKED_AT: Final = 1024 * 1024
"""Bytes at the end of the ledger that are looked through: some thousand calls, read in milliseconds."""
MOST: Final = 10


def calls_of(path: Path, tenant: str, agent: str, session: str | None) -> Sequence[Mapping[str, Any]]:
    """The outcomes of the last calls of a session, or of what the agent calls without one, the latest first.

    Reads a file: for a thread. A ledger that cannot be read tells of none.
    """
    found: deque[Mapping[str, Any]] = deque(maxlen=MOST)
    for line in _tail(path):
        if b'"outcome"' not in line[:24]:
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if (record.get("tenant"), record.get("agent"), record.get("session")) == (tenant, agent, session):
            found.appendleft(record)
    return found


def _tail(path: Path) -> Sequence[bytes]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOOKED_AT))
            lines = file.read(LOOKED_AT).split(b"\n")
    except OSError:
        return ()
    return lines if size <= LOOKED_AT else lines[1:]
