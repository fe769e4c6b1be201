"""Fills the "disk" under a ledger, in a process that may have a file size limit; see test_ledger."""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

from gateway.backlog import MOST_WAITING
from gateway.ledger import FileLedger, LedgerUnavailable
from gateway.reader import records
from tests.support.exchanges import exchange

ROOM_FOR_ALL = resource.RLIM_INFINITY


def leave_room(size: int) -> None:
    """Files of this process may have so many bytes from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def a_refused_intent(folder: Path) -> None:
    """What was refused is never recorded as if it had been about to happen."""
    ledger = FileLedger(folder)
    first, refused, last = exchange(), exchange(), exchange()
    await ledger.intend(first)
    leave_room(ledger.path.stat().st_size + 100)
    try:
        await ledger.intend(refused)
    except LedgerUnavailable:
        print("refused")  # noqa: T201  # the test reads it
    assert not refused.intended
    ledger.conclude(refused)
    await asyncio.sleep(0)
    leave_room(ROOM_FOR_ALL)
    await ledger.intend(last)
    ledger.close()
    expected = [("intent", first.id), ("decision", refused.id), ("outcome", refused.id), ("intent", last.id)]
    assert [(record["record"], record["call"]) for record in records(ledger.path)] == expected
    print("recovered")  # noqa: T201  # the test reads it


async def refused_intents_of_one_turn(folder: Path) -> None:
    """They are withdrawn together, and what is over already is not lost with them."""
    ledger = FileLedger(folder)
    over, *refused = exchange(), exchange(), exchange()
    leave_room(100)
    ledger.conclude(over)
    ends = await asyncio.gather(*map(ledger.intend, refused), return_exceptions=True)
    assert [type(end) for end in ends] == [LedgerUnavailable] * 2
    leave_room(ROOM_FOR_ALL)
    ledger.note("mended", {})
    ledger.close()
    found = [(record["record"], record.get("call")) for record in records(ledger.path)]
    assert found == [("decision", over.id), ("outcome", over.id), ("mended", None)]


async def every_cut(folder: Path) -> None:
    """Wherever the disk ends, each record is there once, whole, and in its order."""
    ledger = FileLedger(folder)
    calls = [exchange() for _ in range(4)]
    ledger.conclude(calls[0])
    ledger.conclude(calls[1])
    ledger.flush()
    longest = ledger.path.stat().st_size + 1
    for room in range(longest):
        os.truncate(ledger.path, 0)
        leave_room(room)
        for pair in (calls[:2], calls[2:]):
            for x in pair:
                ledger.conclude(x)
            ledger.flush()
        reason = ledger.failure
        leave_room(ROOM_FOR_ALL)
        ledger.note("mended", {})
        ledger.flush()
        assert reason is not None
        assert ledger.failure is None
        *written, mended = [(record["record"], record.get("call")) for record in records(ledger.path)]
        assert mended == ("mended", None), room
        assert written == [(record, x.id) for x in calls for record in ("decision", "outcome")], room
    ledger.close()
    print("whole")  # noqa: T201  # the test reads it


async def more_than_may_wait(folder: Path) -> None:
    """What is lost is the oldest, and is counted: by the record, too."""
    ledger = FileLedger(folder)
    leave_room(100)
    calls = [exchange() for _ in range(200)]
    for x in calls:
        x.detail = "x" * (MOST_WAITING // 100)
        ledger.conclude(x)
        ledger.flush()
    leave_room(ROOM_FOR_ALL)
    ledger.note("mended", {})
    ledger.flush()
    ledger.close()
    lost, *others, mended = records(ledger.path)
    outcomes = [record for record in others if record["record"] == "outcome"]
    assert lost["record"] == "lost"
    assert mended["record"] == "mended"
    assert len(outcomes) > 90
    assert [record["call"] for record in outcomes] == [x.id for x in calls[lost["outcomes"] :]]
    print("counted")  # noqa: T201  # the test reads it


async def main(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    await a_refused_intent(folder / "refused")
    await refused_intents_of_one_turn(folder / "turn")
    await every_cut(folder / "cut")
    await more_than_may_wait(folder / "lost")


asyncio.run(main(Path(sys.argv[1])))
