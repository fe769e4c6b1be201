"""Secrets that all gateways of one state share, and that nobody has to configure: whoever asks first makes one.

With such a key the ids of MCP sessions are sealed, which every replica has to be able to open, also after a restart.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable
from typing import Final, Protocol

from gateway.state.embedded import EmbeddedStore
from gateway.state.redis_servers import RedisServers, tag
from policies.budgets import StoreUnavailable

LENGTH: Final = 32
"""Bytes of a key."""

_KEEP: Final = "INSERT OR IGNORE INTO keys VALUES (?, ?)"
_FIND: Final = "SELECT value FROM keys WHERE name = ?"


class Keys(Protocol):
    """Keeps keys."""

    async def key(self, name: str) -> bytes:
        """The 32 bytes of this name: the same for all who share the state, for good. Raises StoreUnavailable."""
        ...


class EmbeddedKeys:
    """In the file of the budgets, whose connection the event loop owns. Implements `Keys`."""

    def __init__(self, store: EmbeddedStore, fresh: Callable[[int], bytes] = secrets.token_bytes) -> None:
        """`store` has the file, and is closed by whoever has made it."""
        self._store = store
        self._fresh = fresh

    async def key(self, name: str) -> bytes:
        store = self._store
        if store.failure is not None:
            raise StoreUnavailable(store.failure)
        try:
            rows = store.journal.rows(_FIND, (name,))
            if not rows:
                store.write([(_KEEP, (name, self._fresh(LENGTH)))])
                rows = store.journal.rows(_FIND, (name,))
                await asyncio.to_thread(store.journal.sync)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{store.path} cannot be used: {error}.") from None
        return _whole(rows[0][0])


class RedisKeys:
    """On a server or cluster: `wb:{t:}:keys` is a hash of names and keys. Implements `Keys`."""

    def __init__(self, servers: RedisServers, fresh: Callable[[int], bytes] = secrets.token_bytes) -> None:
        """`servers` are closed by whoever has made them."""
        self._servers = servers
        self._fresh = fresh

    async def key(self, name: str) -> bytes:
        self._servers.begin()
        place = f"{tag('')}keys"
        found = await self._servers.command("", "HGET", place, name)
        if found is None:  # of two who make one at the same time, both get the first
            await self._servers.command("", "HSETNX", place, name, self._fresh(LENGTH).hex())
            found = await self._servers.command("", "HGET", place, name)
        try:
            return _whole(bytes.fromhex(found.decode()))
        except (ValueError, AttributeError):
            raise StoreUnavailable(f"the key {name} on the server is damaged") from None


def _whole(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != LENGTH:
        raise StoreUnavailable("a key that is kept has not the length of one")
    return value
