"""What is true of every store is tested with every store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from policies.budgets import Store
from tests.support.redis_places import RedisPlace
from tests.support.redis_server import RedisServer, needs_redis, redis_cluster, redis_server
from tests.support.stores import NOW, PLACES, Place


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server that many tests use: each begins with nothing in it."""
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(params=[*PLACES, *(pytest.param(name, marks=needs_redis) for name in ("redis", "cluster"))])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    match request.param:
        case "redis":
            yield RedisPlace([request.getfixturevalue("server")], NOW)
        case "cluster":
            yield RedisPlace(request.getfixturevalue("cluster"), NOW)
        case name:
            async with PLACES[name](tmp_path) as found:
                yield found


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = await place.open()
    yield opened
    await opened.close()
