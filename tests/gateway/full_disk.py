"""Fills the "disk" under a ledger, in a process that may have a file size limit; see test_ledger."""

import asyncio
import resource
import signal
import sys
from pathlib import Path

from gateway.ledger import FileLedger, LedgerUnavailable
from tests.support.exchanges import exchange


async def main(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ledger = FileLedger(folder)
    ledger.intend(exchange())
    room = ledger.path.stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    refused = exchange()
    try:
        ledger.intend(refused)
    except LedgerUnavailable:
        print("refused")  # noqa: T201  # the test reads it
    assert not refused.intended
    ledger.conclude(refused)
    await asyncio.sleep(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ledger.intend(exchange())
    if ledger.failure is None:
        print("recovered")  # noqa: T201  # the test reads it
    ledger.close()


asyncio.run(main(Path(sys.argv[1])))
