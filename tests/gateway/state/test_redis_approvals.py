"""Approvals on real Redis servers: several gateways, connections that fail, servers that lose what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from config.redis_url import RedisUrl
from gateway.state.redis_approvals import RedisApprovals
from gateway.state.redis_servers import RedisServers
from tests.gateway.state.approvals_suite import NOW, ApprovalsSuite, Stage
from tests.support.redis_places import ServerTime, reached
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


class ServerStage:
    """Two gateways' at a server whose time begins where the tests say."""

    def __init__(self, servers: Sequence[RedisServer]) -> None:
        for each in servers:
            each.command("FLUSHALL")
        self._urls = [each.url for each in servers]
        self._time = ServerTime(NOW)
        self._servers: list[RedisServers] = []
        self.handles: list[RedisApprovals] = []

    async def open(self) -> None:
        self._servers = [
            RedisServers(RedisUrl.parse(self._urls[number % len(self._urls)]), scripts=self._time.scripts())
            for number in range(2)
        ]
        self.handles = [RedisApprovals(each) for each in self._servers]
        await asyncio.gather(*map(reached, self._servers))

    def advance(self, seconds: float) -> None:
        self._time.advance(seconds)

    async def restart(self) -> None:
        await self.close()
        await self.open()

    async def close(self) -> None:
        for store, servers in zip(self.handles, self._servers, strict=True):
            await store.close()
            await servers.close()


@asynccontextmanager
async def staged(servers: Sequence[RedisServer]) -> AsyncIterator[ServerStage]:
    opened = ServerStage(servers)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


class TestRedisApprovals(ApprovalsSuite):
    """The suite of all stores, at a server."""

    @pytest.fixture
    async def stage(self, server: RedisServer) -> AsyncIterator[Stage]:
        async with staged([server]) as opened:
            yield opened


class TestClusterApprovals(ApprovalsSuite):
    """The same at a cluster."""

    @pytest.fixture
    async def stage(self, cluster: list[RedisServer]) -> AsyncIterator[Stage]:
        async with staged(cluster) as opened:
            yield opened
