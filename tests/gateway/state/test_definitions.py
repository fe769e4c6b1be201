"""What every store of pins promises: one process's own file, a Redis server, and a cluster of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from config.redis_url import RedisUrl
from gateway.state.definitions import EmbeddedDefinitions
from gateway.state.embedded import EmbeddedStore
from gateway.state.redis_definitions import RedisDefinitions
from gateway.state.redis_servers import RedisServers, tag
from policies.definitions import DefinitionStore, Pin, StoreUnavailable, read, standing, written
from tests.support.redis_places import reached
from tests.support.redis_server import RedisServer, needs_redis

_numbers = itertools.count()
_Opener = Callable[[], Awaitable[DefinitionStore]]


@pytest.fixture(params=["file", pytest.param("redis", marks=needs_redis), pytest.param("cluster", marks=needs_redis)])
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[_Opener]:
    """Opens the store of the next process, which sees what the ones before have kept."""
    opened: list[EmbeddedStore | RedisServers] = []

    async def on_file() -> DefinitionStore:
        for earlier in opened:
            await earlier.close()
        store = EmbeddedStore(tmp_path / "state.db")
        opened.append(store)
        return EmbeddedDefinitions(store)

    async def on_server() -> DefinitionStore:
        found = request.getfixturevalue("server" if request.param == "redis" else "cluster")
        server: RedisServer = found if request.param == "redis" else found[0]
        servers = RedisServers(RedisUrl.parse(server.url))
        opened.append(servers)
        await reached(servers)
        return RedisDefinitions(servers)

    yield on_file if request.param == "file" else on_server
    for each in opened:
        await each.close()


@pytest.fixture
def github() -> str:
    """A server that no other test knows."""
    return f"github-{next(_numbers)}"


def pin(server: str, tool: str, digest: str = "a" * 64, by: str = "") -> Pin:
    return Pin(server, tool, "accepted", digest, by, 1_763_700_000_000_000_000 + next(_numbers))


async def test_what_is_seen_first_is_kept_and_what_is_seen_later_is_not(opener: _Opener, github: str) -> None:
    store = await opener()
    one, two, other = pin(github, "echo"), pin(github, "ping"), pin(github, "echo", "b" * 64)
    assert await store.first(github, [(one, b"1"), (two, b"2")]) == [one, two]
    assert await store.first(github, [(other, b"3")]) == [one]
    again = await opener()
    assert sorted(await again.pins(github), key=lambda each: each.tool) == [one, two]
    assert await again.text(github, "echo") == b"1"
    assert await again.text(github, "nothing") is None


async def test_a_pin_is_changed_only_by_who_knows_the_one_that_holds(opener: _Opener, github: str) -> None:
    store = await opener()
    one = pin(github, "echo")
    await store.first(github, [(one, b"1")])
    dana, sam = pin(github, "echo", "b" * 64, "dana"), pin(github, "echo", "c" * 64, "sam")
    assert await store.change(dana, b"2", one)
    assert not await store.change(sam, b"3", one)
    assert await store.pins(github) == [dana]
    assert await store.text(github, "echo") == b"2"


async def test_a_tool_that_has_no_pin_can_be_given_one_once(opener: _Opener, github: str) -> None:
    store = await opener()
    refused = replace(pin(github, "rm"), word="refused", by="dana")
    assert await store.change(refused, b"1", None)
    assert not await store.change(pin(github, "rm"), b"2", None)
    assert await store.pins(github) == [refused]


async def test_the_number_of_a_server_changes_with_each_change_of_its_pins(opener: _Opener, github: str) -> None:
    store = await opener()
    assert github not in await store.versions()
    one = pin(github, "echo")
    seen = []
    for _ in range(2):  # what was pinned already changes nothing
        await store.first(github, [(one, b"1")])
        seen.append((await store.versions())[github])
    await store.change(pin(github, "echo", "b" * 64), b"2", one)
    seen.append((await store.versions())[github])
    assert seen[2] not in seen[:2]


async def test_of_many_who_see_a_tool_at_the_same_time_one_was_first(opener: _Opener, github: str) -> None:
    store = await opener()
    seen = [pin(github, "echo", f"{each:064x}") for each in range(20)]
    told = await asyncio.gather(*(store.first(github, [(each, b"x")]) for each in seen))
    assert len({each.digest for (each,) in told}) == 1
    assert await store.pins(github) == told[0]


async def test_names_and_definitions_can_be_of_any_characters_and_long(opener: _Opener, github: str) -> None:
    store = await opener()
    pins = [pin(github, f"a/b\\:{{}}ü{each}") for each in range(5)]
    texts = ["ü".encode() * 200_000] * 5
    assert await store.first(github, list(zip(pins, texts, strict=True))) == pins
    assert await store.text(github, pins[3].tool) == texts[3]
    assert {each.tool for each in await store.pins(github)} == {each.tool for each in pins}


async def test_a_file_that_cannot_be_used_is_told_and_pins_nothing(tmp_path: Path) -> None:
    under = EmbeddedStore(tmp_path / "state.db")
    store = EmbeddedDefinitions(under)
    await under.close()
    for asked in (store.versions(), store.pins("g"), store.first("g", [(pin("g", "t"), b"")]), store.text("g", "t")):
        with pytest.raises(StoreUnavailable):
            await asked


@needs_redis
async def test_a_server_that_is_gone_is_told_and_pins_nothing() -> None:
    servers = RedisServers(RedisUrl.parse("redis://127.0.0.1:9/0"))
    store = RedisDefinitions(servers)
    try:
        for asked in (store.versions(), store.pins("g"), store.first("g", [(pin("g", "t"), b"")])):
            with pytest.raises(StoreUnavailable):
                await asked
    finally:
        await servers.close()


@needs_redis
async def test_what_somebody_else_has_written_in_place_of_a_pin_refuses_the_tool(server: RedisServer) -> None:
    servers = RedisServers(RedisUrl.parse(server.url))
    await reached(servers)
    try:
        server.command("HSET", f"{tag('')}definitions:odd", "echo", "nonsense")
        (found,) = await RedisDefinitions(servers).pins("odd")
        assert standing(found, "a" * 64) == "refused"
    finally:
        await servers.close()


def test_a_pin_is_read_as_it_was_written() -> None:
    one = pin("github", "echo", by="dana")
    assert read("github", "echo", written(one)) == one
