"""What gateways know of one another's word on tools: at once, after a while, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.mcp.definitions import Definition, read
from config.redis_url import RedisUrl
from gateway.mcp.definitions import Definitions, DefinitionsUnavailable
from gateway.state.redis_definitions import RedisDefinitions
from gateway.state.redis_servers import RedisServers
from policies.definitions import Pin, StoreUnavailable
from tests.support.redis_places import reached
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.scripted_mcp import tool

ECHO = read(tool("echo"))
OTHER = read(tool("echo", "another"))


class Shelf:
    """A store in memory that can be out of reach."""

    shared = True

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Pin] = {}
        self.texts: dict[tuple[str, str], bytes] = {}
        self.version = 0
        self.reachable = True
        self.asked = asyncio.Event()

    def _reach(self) -> None:
        self.asked.set()
        if not self.reachable:
            raise StoreUnavailable("out of reach")

    async def versions(self) -> Mapping[str, int]:
        self._reach()
        return {server: self.version for server, _ in self.kept}

    async def pins(self, server: str) -> list[Pin]:
        self._reach()
        return [pin for (each, _), pin in self.kept.items() if each == server]

    async def first(self, server: str, seen: Sequence[tuple[Pin, bytes]]) -> list[Pin]:
        self._reach()
        self.version += 1
        return [self.kept.setdefault((server, pin.tool), pin) for pin, _ in seen]

    async def change(self, pin: Pin, text: bytes, before: Pin | None) -> bool:
        self._reach()
        if self.kept.get((pin.server, pin.tool)) != before:
            return False
        self.kept[pin.server, pin.tool] = pin
        self.texts[pin.server, pin.tool] = text
        self.version += 1
        return True

    async def text(self, server: str, tool: str) -> bytes | None:
        self._reach()
        return self.texts.get((server, tool))


@asynccontextmanager
async def listening(
    store: Any, note: Callable[[str, Mapping[str, Any]], None] | None = None
) -> AsyncIterator[Definitions]:
    definitions = Definitions(store, note)
    await definitions.begin()
    try:
        yield definitions
    finally:
        await definitions.end()


async def said(definitions: Definitions, definition: Definition, word: Any = "accepted") -> Pin | None:
    before = definitions.pin("github", definition.name)
    return await definitions.say("github", definition.name, word, definition.digest, definition.text, "dana", before)


async def test_what_is_seen_first_is_kept_and_recorded_once() -> None:
    notes: list[tuple[str, Mapping[str, Any]]] = []
    async with listening(Shelf(), lambda kind, facts: notes.append((kind, facts))) as definitions:
        assert definitions.pin("github", "echo") is None
        await definitions.first("github", [ECHO])
        await definitions.first("github", [OTHER])
        pin = definitions.pin("github", "echo")
        assert pin is not None
        assert (pin.digest, pin.by, pin.word) == (ECHO.digest, "", "accepted")
        definitions.changed("github", "echo", OTHER.digest, ECHO.digest)
        definitions.changed("github", "echo", OTHER.digest, ECHO.digest)
    first, changed = notes
    assert first == ("tool", {"event": "first_seen", "server": "github", "definitions": {"echo": ECHO.digest}})
    assert changed[1]["event"] == "changed"


async def test_until_it_has_heard_what_there_is_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.mcp.definitions._BEGUN_WITHIN", 0.01)
    monkeypatch.setattr("gateway.mcp.definitions.HEAR", 0.01)
    shelf = Shelf()
    shelf.reachable = False
    async with listening(shelf) as definitions:
        with pytest.raises(DefinitionsUnavailable):
            definitions.pin("github", "echo")
        shelf.reachable = True
        async with asyncio.timeout(5):
            for _ in range(2):
                shelf.asked.clear()
                await shelf.asked.wait()
        assert definitions.pin("github", "echo") is None


async def test_what_was_heard_holds_while_the_store_is_out_of_reach_and_nothing_new_is_used() -> None:
    shelf = Shelf()
    async with listening(shelf) as definitions:
        await definitions.first("github", [ECHO])
        shelf.reachable = False
        known = definitions.pin("github", "echo")
        assert known is not None
        with pytest.raises(DefinitionsUnavailable):
            await definitions.first("github", [read(tool("new"))])
        assert definitions.pin("github", "new") is None
        with pytest.raises(StoreUnavailable):
            await said(definitions, OTHER)
        assert definitions.pin("github", "echo") == known


async def test_a_word_that_comes_after_another_one_changes_nothing() -> None:
    shelf = Shelf()
    async with listening(shelf) as one, listening(shelf) as other:
        await one.first("github", [ECHO])
        before = one.pin("github", "echo")
        assert await other.say("github", "echo", "refused", ECHO.digest, b"", "sam", before) is not None
        assert await said(one, OTHER) is None
        pin = one.pin("github", "echo")
        assert pin is not None
        assert (pin.word, pin.by) == ("refused", "sam")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder: Path = tmp_path_factory.mktemp("redis")
    with redis_server(folder) as running:
        yield running


@needs_redis
async def test_a_word_said_at_one_gateway_holds_at_all_within_a_second(server: RedisServer) -> None:
    servers = [RedisServers(RedisUrl.parse(server.url)) for _ in range(3)]
    for each in servers:
        await reached(each)
    stores = [RedisDefinitions(each) for each in servers]
    try:
        async with listening(stores[0]) as one, listening(stores[1]) as other:
            await one.first("github", [ECHO])
            await said(one, OTHER)
            async with asyncio.timeout(1.0):
                while (pin := other.pin("github", "echo")) is None or pin.digest != OTHER.digest:
                    await asyncio.sleep(0.02)
            async with listening(stores[2]) as later:
                assert later.pin("github", "echo") == one.pin("github", "echo")
    finally:
        for each in servers:
            await each.close()
