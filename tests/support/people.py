"""People who decide on held calls: somebody looks at each as soon as it is told, and says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.holding import Holds
from policies.approval_store import StoreUnavailable
from policies.approvals import Approval, Refused, State

Opinion = Callable[[Approval], bool | None]
"""Yes, no, or nothing for now."""


@dataclass
class Person:
    """Votes through one gateway. `seen` has every approval that they were asked for, as it was when they looked."""

    holds: Holds
    says: Opinion
    name: str
    roles: Collection[str]
    seen: dict[str, Approval] = field(default_factory=dict)
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    async def decide(self) -> None:
        """On all that comes, until cancelled."""
        self.holds.store.listen(lambda _: self._told.set())
        while True:
            self._told.clear()
            with contextlib.suppress(StoreUnavailable):
                for each in await self.holds.store.listed([State.PENDING]):
                    if all(vote.person != self.name for vote in each.votes):
                        await self._vote(each)
            await self._told.wait()

    async def _vote(self, approval: Approval) -> None:
        self.seen[approval.id] = approval
        word = self.says(approval)
        if word is not None:
            with contextlib.suppress(Refused):
                await self.holds.vote(approval.id, self.name, self.roles, word, "as the test wants")

    def asked_again(self) -> None:
        """Looks at all of them once more."""
        self._told.set()

    async def asked(self, count: int = 1) -> list[Approval]:
        """So many approvals, as soon as somebody was asked for them."""
        async with asyncio.timeout(10):
            while len(self.seen) < count:
                await asyncio.sleep(0.001)
        return list(self.seen.values())


@asynccontextmanager
async def deciding(
    holds: Holds, says: Opinion = lambda _: True, name: str = "fay", roles: Collection[str] = ("finance",)
) -> AsyncIterator[Person]:
    """Fay of finance, who says yes."""
    person = Person(holds, says, name, roles)
    task = asyncio.create_task(person.decide())
    try:
        yield person
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
