"""Redis servers as places of state, whose time begins when a test says and is moved on by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from config.redis_url import RedisUrl
from gateway.state.redis import RedisStore
from gateway.state.redis_scripts import Script, Scripts
from gateway.state.redis_servers import RedisServers
from policies.budgets import LEASE, Store
from tests.support.redis_server import RedisServer

_TIME: Final = "return time[1] * 1000000 + time[2]"
"""Where scripts take the server's time from."""
REACHED_WITHIN: Final = 30.0


class ServerTime:
    """What scripts take for the server's time: `begins`, in Unix nanoseconds, and what has passed since."""

    def __init__(self, begins: int | None = None) -> None:
        self.ahead = begins // 1000 - time.time_ns() // 1000 if begins is not None else 0
        """Microseconds."""

    def scripts(self) -> Scripts:
        """Scripts that go by this time."""
        scripts = Scripts()
        for name, script in list(vars(scripts).items()):
            assert _TIME in script.text
            setattr(scripts, name, _Ahead(name, script.text.replace(_TIME, f"{_TIME} + ask.ahead"), self))
        return scripts

    def now_ns(self) -> int:
        return time.time_ns() + self.ahead * 1000

    def advance(self, seconds: float) -> None:
        self.ahead += round(seconds * 1_000_000)


class _Ahead(Script):
    """A script that is told how far its time is ahead."""

    __slots__ = ("_time",)

    def __init__(self, name: str, text: str, server_time: ServerTime) -> None:
        super().__init__(name, text)
        self._time = server_time

    def call(self, keys: Sequence[str], ask: dict[str, Any], bulk: bytes | None = None) -> bytes:
        return super().call(keys, {**ask, "ahead": self._time.ahead}, bulk)


class RedisPlace:
    """A server, or the nodes of a cluster, with nothing in it."""

    def __init__(self, servers: Sequence[RedisServer], begins: int | None = None, **store: Any) -> None:
        """`store` are arguments of the stores that are opened."""
        for server in servers:
            server.command("FLUSHALL")
        self.time = ServerTime(begins)
        self.url = self._server = servers[0].url
        self._arguments = store
        self._left = False

    async def open(self) -> RedisStore:
        if self._left:
            await self._expire()
        store = RedisStore(RedisUrl.parse(self.url), scripts=self.time.scripts(), **self._arguments)
        await reached(store.servers)
        return store

    async def _expire(self) -> None:
        """Whatever becomes of the connection of who comes next, and however slow the machine is."""
        patient = RedisStore(RedisUrl.parse(self._server), scripts=self.time.scripts(), patience=REACHED_WITHIN)
        await reached(patient.servers)
        while await patient.expire():
            pass
        await patient.close()

    async def leave(self, store: Store) -> None:
        assert isinstance(store, RedisStore)
        await store.close(within=0)
        self.time.advance(LEASE + 1)
        self._left = True


async def reached(servers: RedisServers) -> None:
    """Returns once all servers can be asked."""
    servers.begin()
    async with asyncio.timeout(REACHED_WITHIN):
        while servers.failure is not None:
            await asyncio.sleep(0.005)
