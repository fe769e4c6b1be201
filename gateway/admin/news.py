"""What happens to approvals, told to everybody who follows them at this gateway, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Iterator
from typing import Final

import orjson

from gateway.approval_view import shown_in_short
from policies.approval_store import ApprovalStore, StoreUnavailable

MOST_FOLLOWERS: Final = 100
"""Clients that follow at the same time."""
MISSED: Final = b"event: missed\ndata: {}\n\n"
"""Something has happened that is not told: whoever wants to know asks for the list."""

_MOST_WAITING: Final = 256
"""Events that wait for one client; beyond that they are missed."""
_MOST_CHANGED: Final = 1000
"""Approvals that are looked up at once; where more have changed, they are missed."""


class Follower:
    """One client: what it is still to be told."""

    def __init__(self) -> None:
        self._events: deque[bytes] = deque()
        self._woken = asyncio.Event()

    def tell(self, event: bytes) -> None:
        if len(self._events) >= _MOST_WAITING:
            self._events.clear()
            event = MISSED
        if event is not MISSED or MISSED not in self._events:
            self._events.append(event)
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    async def next(self, seconds: float) -> bytes | None:
        """The next event; None when there was none in this time, or there will be no more."""
        if not self._events:
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
        return self._events.popleft() if self._events else None


class News:
    """Looks changed approvals up once for all followers, while there are any; `ending` is set when the gateway ends."""

    def __init__(self, store: ApprovalStore, ending: asyncio.Event) -> None:
        self._store = store
        self._ending = ending
        self._followers: set[Follower] = set()
        self._changed: set[str] = set()
        self._missed = False
        self._woken = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        store.listen(self._hear)

    @property
    def full(self) -> bool:
        return len(self._followers) >= MOST_FOLLOWERS

    @contextlib.contextmanager
    def followed(self) -> Iterator[Follower]:
        """A follower that is told of all that happens from now on."""
        follower = Follower()
        self._followers.add(follower)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell(), name="news of approvals")
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            self._woken.set()

    def _hear(self, ids: Collection[str] | None) -> None:
        if not self._followers:
            return
        if ids is None:
            self._missed = True
        else:
            self._changed.update(each for each in ids if each.startswith("apr_"))
        if len(self._changed) > _MOST_CHANGED:
            self._changed.clear()
            self._missed = True
        self._woken.set()

    async def _tell(self) -> None:
        ended = asyncio.ensure_future(self._ending.wait())
        ended.add_done_callback(lambda _: self._woken.set())
        try:
            while self._followers and not self._ending.is_set():
                await self._woken.wait()
                self._woken.clear()
                changed, self._changed = sorted(self._changed), set()
                for each in changed:
                    await self._tell_of(each)
                if self._missed:
                    self._missed = False
                    self._say(MISSED)
        finally:
            ended.cancel()
            for follower in self._followers:
                follower.wake()

    async def _tell_of(self, approval: str) -> None:
        try:
            found = await self._store.get(approval)
        except StoreUnavailable:
            self._missed = True
            return
        if found is not None:
            self._say(b"event: approval\ndata: %s\n\n" % orjson.dumps(shown_in_short(found)))

    def _say(self, event: bytes) -> None:
        for follower in self._followers:
            follower.tell(event)
