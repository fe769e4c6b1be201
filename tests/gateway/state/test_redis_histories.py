"""Redis servers in any history: alone, as a cluster, and behind a connection that fails at random."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from tests.support.histories import agree
from tests.support.redis_places import RedisPlace
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.stores import NOW, Place

pytestmark = needs_redis


def there(servers: Sequence[RedisServer]) -> Callable[[Path], AbstractAsyncContextManager[Place]]:
    @asynccontextmanager
    async def place(_: Path) -> AsyncIterator[Place]:
        yield RedisPlace(servers, NOW)

    return place


def test_a_server_agrees_with_the_model_in_any_history(server: RedisServer) -> None:
    agree(there([server]))


def test_a_cluster_agrees_with_the_model_in_any_history(cluster: list[RedisServer]) -> None:
    agree(there(cluster), examples=10)
