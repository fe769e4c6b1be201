"""Fills the "disk" under a store of budgets, in a process that may have a file size limit; see test_embedded."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from pathlib import Path

from gateway.state.embedded import EmbeddedStore
from policies.budgets import StoreUnavailable
from tests.support.stores import DAY, ask, budget, copied, paying, spent, standing, unseen

ACCOUNTS = paying(budget("acme", 10**6))


def leave_room(size: int) -> None:
    """Files of this process may have so many bytes from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def mended(store: EmbeddedStore) -> None:
    async with asyncio.timeout(20):
        while store.failure is not None:
            await asyncio.sleep(0.005)


async def main(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = EmbeddedStore(folder / "state.db", fold_every=0.01)
    log = store.path.with_name("state.db-wal")
    await store.reserve(ask("first", ACCOUNTS, 100))
    posted = 0
    leave_room(max(log.stat().st_size, 40_000) + 20_000)
    for number in range(10_000):
        try:
            loan = await store.reserve(ask(f"c-{number}", ACCOUNTS, 2))
        except StoreUnavailable:
            store.void(unseen(f"c-{number}", ACCOUNTS))
            break
        store.settle(loan, 1, [spent(1, model="m" * 500)])
        posted += 1
    leave_room(4000)  # less than one page, also for a log that begins anew
    assert store.failure is not None
    sys.stdout.write("refused\n")
    for number in range(20):
        store.post(f"late-{number}", "acme", ACCOUNTS, 1, [spent(1)])
        posted += 1
        await asyncio.sleep(0.002)
    assert store.failure is not None
    leave_room(resource.RLIM_INFINITY)
    await mended(store)
    await store.reserve(ask("last", ACCOUNTS, 10))
    killed = copied(store.path)
    await store.close()
    store = EmbeddedStore(killed)
    assert await standing(store, ACCOUNTS) == [(posted + 110, 0)]
    (row,) = await store.spend(["acme"], DAY, DAY, [], {})
    assert row["cost"] == posted
    await store.close()
    sys.stdout.write("recovered\n")


asyncio.run(main(Path(sys.argv[1])))
