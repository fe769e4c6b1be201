"""Calls that agents have left with the gateway: once people have approved one, it is made here, with nobody waiting.

    left, and pending      whoever approves it, every gateway hears of that or looks within seconds
    approved               the first that hears of it makes the call, by the same claim as any other: once
    a gateway died         before the claim: the next one makes it; after it: UNKNOWN, as with any other call

The gateway that the call was left with looks at once, the others a little later, so that they seldom come at the same
time. A call that something stands in the way of, such as a budget, is tried again for as long as its approval lasts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from gateway.holding import Holds
from policies.approval_store import HEAR, StoreUnavailable
from policies.approvals import ACTIVE, Approval, State

log = logging.getLogger("weighbridge.errands")

SOONEST: Final = 2.0
LATEST: Final = 60.0
"""Seconds after which a call is tried again: at first, and in the end."""
_MOST: Final = 64
"""Calls that one gateway makes at the same time."""
_PAGE: Final = 100


class Errands:
    """Those of one gateway. `make` makes the call of an approval and never raises; `ready` says whether its agent may
    have calls made now."""

    def __init__(
        self,
        holds: Holds,
        make: Callable[[Approval], Awaitable[None]],
        ready: Callable[[Approval], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holds = holds
        self._make = make
        self._ready = ready
        self._clock = clock
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, tuple[float, float]] = {}
        """When a call is tried again, and the pause after that."""
        self._heard = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._holds.store.listen(self._changed)
        self._looking = asyncio.create_task(self._keep_looking(), name="calls left with the gateway")

    async def end(self, seconds: float) -> None:
        """Those under way are cut so many seconds after the gateway was told to stop."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=max(0.0, seconds - self._holds.stopping_for))
        left = list(self._under_way.values())
        for task in left:
            task.cancel("the time to finish is over")
        await asyncio.gather(*left, return_exceptions=True)

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    async def look(self, only: Collection[str] | None = None) -> None:
        """Begins what can begin: of all, or of these. Raises StoreUnavailable."""
        for approval in await self._approved(only):
            due, _ = self._again.get(approval.id, (0.0, 0.0))
            if len(self._under_way) >= _MOST or self._holds.stopping:
                return
            if approval.id not in self._under_way and self._clock() >= due and self._ready(approval):
                task = asyncio.create_task(self._run(approval), name=f"call of {approval.id}")
                self._under_way[approval.id] = task

    async def _approved(self, only: Collection[str] | None) -> Collection[Approval]:
        store, found = self._holds.store, list[Approval]()
        if only is not None:
            for name in only:
                approval = await store.get(name)
                if approval is None or approval.state not in ACTIVE:
                    self._holds.left.discard(name)
                elif approval.became is None and approval.state is State.APPROVED and approval.detached:
                    found.append(approval)
            return found
        after: str | None = None
        while page := await store.listed([State.APPROVED], after=after, most=_PAGE):
            found += [each for each in page if each.detached]
            after = page[-1].id
        self._again = {name: again for name, again in self._again.items() if any(each.id == name for each in found)}
        return found

    async def _run(self, approval: Approval) -> None:
        _, pause = self._again.get(approval.id, (0.0, 0.0))
        try:
            await self._make(approval)
        finally:
            pause = min(max(2 * pause, SOONEST), LATEST)
            self._again[approval.id] = (self._clock() + pause, pause)
            del self._under_way[approval.id]

    def _changed(self, ids: Collection[str] | None) -> None:
        if ids is None or not self._holds.left.isdisjoint(ids):
            self._heard.set()

    async def _keep_looking(self) -> None:
        looked = -HEAR
        while True:
            try:
                if self._clock() - looked >= HEAR:
                    looked = self._clock()
                    await self.look()
                else:
                    await self.look(list(self._holds.left))
            except StoreUnavailable:
                pass  # the store's own failure tells it
            except Exception:
                log.exception("to look for approved calls has failed in the gateway itself")
            self._heard.clear()
            try:
                async with asyncio.timeout(HEAR):
                    await self._heard.wait()
            except TimeoutError:
                looked = -HEAR
