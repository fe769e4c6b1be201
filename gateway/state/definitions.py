"""Pins of definitions in one process: in the file of the budgets, whose connection the event loop owns."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from gateway.state.embedded import EmbeddedStore
from policies.definitions import Pin, StoreUnavailable, read, written

T = TypeVar("T")

_FIND: Final = "SELECT tool, pin FROM definitions WHERE server = ?"
_FIND_ONE: Final = "SELECT pin FROM definitions WHERE server = ? AND tool = ?"
_TEXT: Final = "SELECT text FROM definitions WHERE server = ? AND tool = ?"
_SERVERS: Final = "SELECT DISTINCT server FROM definitions"
_FIRST: Final = "INSERT OR IGNORE INTO definitions VALUES (?, ?, ?, ?)"
_SET: Final = "INSERT OR REPLACE INTO definitions VALUES (?, ?, ?, ?)"


class EmbeddedDefinitions:
    """Implements `policies.definitions.DefinitionStore`."""

    shared: bool = False

    def __init__(self, store: EmbeddedStore) -> None:
        """`store` has the file, and is closed by whoever has made it."""
        self._store = store
        self._versions: dict[str, int] | None = None

    async def versions(self) -> Mapping[str, int]:
        if self._versions is None:
            self._versions = {server: 1 for (server,) in self._rows(_SERVERS, ())}
        return dict(self._versions)

    async def pins(self, server: str) -> list[Pin]:
        return [read(server, tool, text) for tool, text in self._rows(_FIND, (server,))]

    async def first(self, server: str, seen: Sequence[tuple[Pin, bytes]]) -> list[Pin]:
        def work(cursor: sqlite3.Cursor) -> list[Pin]:
            found = []
            for pin, text in seen:
                cursor.execute(_FIRST, (server, pin.tool, written(pin), text))
                ((kept,),) = cursor.execute(_FIND_ONE, (server, pin.tool)).fetchall()
                found.append(read(server, pin.tool, kept))
            return found

        return await self._change(server, work, sum(len(text) for _, text in seen))

    async def change(self, pin: Pin, text: bytes, before: Pin | None) -> bool:
        def work(cursor: sqlite3.Cursor) -> bool:
            rows = cursor.execute(_FIND_ONE, (pin.server, pin.tool)).fetchall()
            if (rows[0][0] if rows else None) != (written(before) if before is not None else None):
                return False
            cursor.execute(_SET, (pin.server, pin.tool, written(pin), text))
            return True

        return await self._change(pin.server, work, len(text))

    async def text(self, server: str, tool: str) -> bytes | None:
        rows = self._rows(_TEXT, (server, tool))
        found: bytes | None = rows[0][0] if rows else None
        return found

    async def _change(self, server: str, work: Callable[[sqlite3.Cursor], T], size: int) -> T:
        store = self._store
        await self.versions()
        if store.failure is not None:
            raise StoreUnavailable(store.failure)
        try:
            result = store.change(work, size)
            await asyncio.to_thread(store.journal.sync)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{store.path} cannot be used: {error}.") from None
        assert self._versions is not None, "they were asked for above"
        self._versions[server] = self._versions.get(server, 0) + 1
        return result

    def _rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._store.failure is not None:
            raise StoreUnavailable(self._store.failure)
        try:
            return self._store.journal.rows(query, values)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._store.path} cannot be used: {error}.") from None
