"""Fills the "disk" under a store of approvals, in a process that has a file size limit; see test_embedded_approvals."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from pathlib import Path

from gateway.state.approvals import EmbeddedApprovals
from gateway.state.embedded import EmbeddedStore
from policies.approval_store import StoreUnavailable
from policies.approvals import State
from tests.gateway.state.approvals_suite import EVER, NOW, approval, approved, call, grant, message
from tests.support.stores import copied


def leave_room(size: int) -> None:
    """Files of this process may have so many bytes from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def main(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    budgets = EmbeddedStore(folder / "state.db", fold_every=0.01)
    store = EmbeddedApprovals(budgets, lambda: NOW)
    first = await store.open(approval())
    leave_room(1_000_000)
    kept, notes = [first], []
    for _ in range(1000):
        fresh, note = approval(call=call(body=b"b" * 5000)), message()
        try:
            kept.append(await store.open(fresh, [note]))
            notes.append(note)
        except StoreUnavailable:
            break
    assert 10 < len(kept) < 1000
    sys.stdout.write("refused\n")
    attempts = store.replace(approved(first)), store.get(first.id), store.grant(grant())
    ends = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(end) for end in ends] == [StoreUnavailable] * 3
    leave_room(resource.RLIM_INFINITY)
    async with asyncio.timeout(20):
        while store.failure is not None:
            await asyncio.sleep(0.005)
    assert await store.get(fresh.id) is None
    assert await store.open(fresh, [note]) == fresh
    assert await store.replace(approved(first))
    killed = copied(budgets.path)
    await store.close()
    await budgets.close()
    budgets = EmbeddedStore(killed)
    store = EmbeddedApprovals(budgets, lambda: NOW)
    assert await store.listed(list(State), most=10**4) == [approved(first), *kept[1:], fresh]
    assert await store.messages(EVER, 0, 10**4) == [*notes, note]
    assert await store.grants() == []
    await store.close()
    await budgets.close()
    sys.stdout.write("recovered\n")


asyncio.run(main(Path(sys.argv[1])))
