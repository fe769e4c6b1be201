"""Limits on a real Redis server, whose time is moved on by the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from config.redis_url import RedisUrl
from gateway.state.redis_limits import RedisLimits
from gateway.state.redis_servers import RedisServers
from policies.budgets import LEASE
from tests.gateway.state.limits_suite import LimitsSuite, Stage
from tests.support.redis_places import ServerTime, reached
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


class RedisStage:
    """Limits of one gateway, which renews what it holds as time goes on."""

    def __init__(self, server: RedisServer, time: ServerTime) -> None:
        self._time = time
        self.servers = RedisServers(RedisUrl.parse(server.url), scripts=time.scripts())
        self.store = RedisLimits(self.servers)

    def now(self) -> float:
        return self._time.now_ns() / 10**9

    async def advance(self, seconds: float) -> None:
        while seconds > 0:
            step = min(seconds, LEASE / 2) if self.store.inside else seconds
            self._time.advance(step)
            seconds -= step
            await self.store.renew()  # in real time it is done more often

    async def settled(self) -> None:
        while len(self.store.outbox):
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.store.close()
        await self.servers.close()


@pytest.fixture
async def stage(server: RedisServer) -> AsyncIterator[Stage]:
    server.command("FLUSHALL")
    opened = RedisStage(server, ServerTime())
    await reached(opened.servers)
    yield opened
    await opened.close()


class TestRedisLimits(LimitsSuite):
    """The suite of all stores."""
