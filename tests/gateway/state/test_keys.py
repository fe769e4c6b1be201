"""Keys that all gateways of one state share: made once, by whoever asks first, and there for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from config.redis_url import RedisUrl
from gateway.state.embedded import EmbeddedStore
from gateway.state.keys import LENGTH, EmbeddedKeys, Keys, RedisKeys
from gateway.state.redis_servers import RedisServers, tag
from policies.budgets import Store, StoreUnavailable
from tests.support.redis_places import RedisPlace, reached
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.stores import Place, as_of_version, in_memory


def of(store: Store) -> Keys:
    if isinstance(store, EmbeddedStore):
        return EmbeddedKeys(store)
    servers = getattr(store, "servers", None)
    assert isinstance(servers, RedisServers)
    return RedisKeys(servers)


@pytest.fixture
async def keys(store: Store) -> Keys:
    return of(store)


async def test_a_key_is_random_and_as_long_as_a_cipher_wants_it(keys: Keys) -> None:
    key = await keys.key("sessions")
    assert len(key) == LENGTH
    assert len(set(key)) > 8


async def test_who_asks_again_gets_the_same_key(keys: Keys) -> None:
    assert await keys.key("sessions") == await keys.key("sessions")


async def test_each_name_has_a_key_of_its_own(keys: Keys) -> None:
    assert await keys.key("sessions") != await keys.key("tasks")


async def test_those_who_ask_at_the_same_time_get_the_same_key(store: Store) -> None:
    asked = await asyncio.gather(*(of(store).key("sessions") for _ in range(8)))
    assert len(set(asked)) == 1


async def test_a_key_is_there_for_the_process_that_comes_next(place: Place) -> None:
    first = await place.open()
    key = await of(first).key("sessions")
    await place.leave(first)
    second = await place.open()
    try:
        assert await of(second).key("sessions") == key
    finally:
        await second.close()


async def test_a_file_of_an_earlier_version_gets_a_place_for_keys(tmp_path: Path) -> None:
    with in_memory(tmp_path) as folder:
        path = folder / "state.db"
        await EmbeddedStore(path).close()
        as_of_version(path, 3)  # which knew nothing of keys
        store = EmbeddedStore(path)
        try:
            assert len(await EmbeddedKeys(store).key("sessions")) == LENGTH
        finally:
            await store.close()


async def test_a_file_that_fails_gives_no_key(tmp_path: Path) -> None:
    with in_memory(tmp_path) as folder:
        store = EmbeddedStore(folder / "state.db")
        store.failure = "the disk is full"
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            await EmbeddedKeys(store).key("sessions")
        store.failure = None
        await store.close()


@needs_redis
async def test_what_is_no_key_on_the_server_is_not_used_as_one(server: RedisServer) -> None:
    RedisPlace([server])
    server.command("HSET", f"{tag('')}keys", "sessions", "abcd")
    servers = RedisServers(RedisUrl.parse(server.url))
    await reached(servers)
    try:
        with pytest.raises(StoreUnavailable, match="length"):
            await RedisKeys(servers).key("sessions")
    finally:
        await servers.close()


@needs_redis
async def test_without_its_server_nobody_has_a_key() -> None:
    servers = RedisServers(RedisUrl.parse("redis://127.0.0.1:9"))
    try:
        with pytest.raises(StoreUnavailable):
            await RedisKeys(servers).key("sessions")
    finally:
        await servers.close()
