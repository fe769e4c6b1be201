"""Pins of definitions, shared by several gateways: on a Redis server or cluster.

    wb:{t:}:definitions               hash  server -> a number, which grows with each change, read twice a second
    wb:{t:}:definitions:SERVER        hash  tool -> pin
    wb:{t:}:definition_texts:SERVER   hash  tool -> the text of the definition that it was said of

How durable an answered step is, the server's configuration decides; see redis.py. What a failover loses was pinned a
moment before: it is pinned again as it is seen again, or asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.state.redis_servers import RedisServers, tag
from policies import budgets
from policies.definitions import Pin, StoreUnavailable, read, written

_VERSIONS: Final = f"{tag('')}definitions"
_AT_ONCE: Final = 1024 * 1024
"""Bytes of definitions that one script is given: it holds up the server while it reads them."""


class RedisDefinitions:
    """Implements `policies.definitions.DefinitionStore`."""

    shared: bool = True

    def __init__(self, servers: RedisServers) -> None:
        """`servers` are closed by whoever has made them."""
        self._servers = servers

    async def versions(self) -> Mapping[str, int]:
        found = await self._command("HGETALL", _VERSIONS)
        return {name.decode(errors="replace"): int(number) for name, number in _pairs(found)}

    async def pins(self, server: str) -> list[Pin]:
        found = await self._command("HGETALL", f"{_VERSIONS}:{server}")
        return [read(server, name.decode(errors="replace"), text) for name, text in _pairs(found)]

    async def first(self, server: str, seen: Sequence[tuple[Pin, bytes]]) -> list[Pin]:
        found: list[Pin] = []
        batch: list[tuple[Pin, bytes]] = []
        size = 0
        for pin, text in seen:
            if batch and size + len(text) > _AT_ONCE:
                found += (await self._pin(server, batch))[1]
                batch, size = [], 0
            batch.append((pin, text))
            size += len(text)
        return found + (await self._pin(server, batch))[1] if batch else found

    async def change(self, pin: Pin, text: bytes, before: Pin | None) -> bool:
        wanted = [written(before)] if before is not None else []
        changed, _ = await self._pin(pin.server, [(pin, text)], wanted)
        return changed > 0

    async def text(self, server: str, tool: str) -> bytes | None:
        found: bytes | None = await self._command("HGET", f"{tag('')}definition_texts:{server}", tool)
        return found

    async def _pin(
        self, server: str, seen: Sequence[tuple[Pin, bytes]], before: list[str] | None = None
    ) -> tuple[int, list[Pin]]:
        keys = [_VERSIONS, f"{_VERSIONS}:{server}", f"{tag('')}definition_texts:{server}"]
        ask: dict[str, Any] = {
            "server": server,
            "tools": [[pin.tool, written(pin), text.decode()] for pin, text in seen],
        }
        if before is not None:
            ask["before"] = before
        try:
            changed, now, found = await self._servers.run("", self._servers.scripts.pin, keys, ask)
        except budgets.StoreUnavailable as error:
            raise StoreUnavailable(str(error)) from None
        self._servers.clock.heard(now)
        return changed, [read(server, pin.tool, kept) for (pin, _), kept in zip(seen, found, strict=True)]

    async def _command(self, *words: str) -> Any:
        self._servers.begin()
        try:
            return await self._servers.command("", *words)
        except budgets.StoreUnavailable as error:
            raise StoreUnavailable(str(error)) from None


def _pairs(found: list[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(found[::2], found[1::2], strict=True)
