"""Redis servers as places of state, whose time begins when a test says and is moved on by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from config.redis_url import RedisUrl
from gateway.state.redis import RedisStore
from gateway.state.redis_scripts import Script, Scripts
from policies.budgets import LEASE, Store
from tests.support.redis_server import RedisServer

_TIME: Final = "return time[1] * 1000000 + time[2]"
"""Where scripts take the server's time from."""
REACHED_WITHIN: Final = 10.0


class ServerTime:
    """What scripts take for the server's time: `begins`, in Unix nanoseconds, and what has passed since."""

    def __init__(self, begins: int | None = None) -> None:
        self._ahead = begins // 1000 - time.time_ns() // 1000 if begins is not None else 0
        self._told: list[Scripts] = []

    def scripts(self) -> Scripts:
        """Scripts that go by this time."""
        scripts = Scripts()
        self._told.append(scripts)
        self._tell(scripts)
        return scripts

    def advance(self, seconds: float) -> None:
        self._ahead += round(seconds * 1_000_000)
        for scripts in self._told:
            self._tell(scripts)

    def _tell(self, scripts: Scripts) -> None:
        original = Scripts()
        for name, script in vars(original).items():
            assert _TIME in script.text
            setattr(scripts, name, Script(name, script.text.replace(_TIME, f"{_TIME} + ({self._ahead})")))


class RedisPlace:
    """A server, or the nodes of a cluster, with nothing in it."""

    def __init__(self, servers: Sequence[RedisServer], begins: int | None = None) -> None:
        for server in servers:
            server.command("FLUSHALL")
        self.time = ServerTime(begins)
        self._url = RedisUrl.parse(servers[0].url)
        self._left = False

    async def open(self) -> RedisStore:
        store = RedisStore(self._url, scripts=self.time.scripts())
        await reached(store)
        while self._left and await store.expire():
            pass
        return store

    async def leave(self, store: Store) -> None:
        assert isinstance(store, RedisStore)
        await store.close(within=0)
        self.time.advance(LEASE + 1)
        self._left = True


async def reached(store: RedisStore) -> None:
    """Returns once all servers of a store can be asked."""
    store.begin()
    async with asyncio.timeout(REACHED_WITHIN):
        while store.failure is not None:
            await asyncio.sleep(0.005)
