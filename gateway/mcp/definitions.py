"""What has been accepted of tools' definitions, as this gateway has heard it: a person's word given at another one is
heard within a second.

What was heard last stays in force whatever becomes of the store. A tool that nobody has seen before is pinned there
first and used afterwards; where that cannot be, it is not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from adapters.mcp.definitions import Definition
from policies.definitions import DefinitionStore, Pin, StoreUnavailable, Word

log = logging.getLogger("weighbridge.definitions")

HEAR: Final = 0.5
"""Seconds between two looks at what others have changed."""
_BEGUN_WITHIN: Final = 2.0

Note = Callable[[str, Mapping[str, Any]], None]


class DefinitionsUnavailable(Exception):
    """What has been accepted of a tool cannot be read, or cannot be kept."""


class DefinitionRefused(Exception):
    """The tool is there and may not be used as it is now: its definition is not one that anybody has accepted. The text
    is fit for the agent, and for the record."""

    @property
    def recorded(self) -> str:
        return str(self)


class Definitions:
    """The pins of all servers. Without a store they last as long as this does."""

    def __init__(
        self, store: DefinitionStore | None = None, note: Note | None = None, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """`note` records what nobody has said, and `clock` gives Unix nanoseconds."""
        self._store = store
        self._note = note
        self._clock = clock
        self._versions: dict[str, int] = {}
        self._pins: dict[str, dict[str, Pin]] = {}
        self._heard = store is None
        self._task: asyncio.Task[None] | None = None
        self._told: dict[tuple[str, str, str], int] = {}
        """Changed definitions, and when they were seen here first."""

    async def begin(self) -> None:
        """Begins to listen; waits a moment for what there is."""
        if self._store is None:
            return
        first = asyncio.Event()
        self._task = asyncio.create_task(self._listen(self._store, first), name="definitions of tools")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(first.wait(), _BEGUN_WITHIN)

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def pin(self, server: str, tool: str) -> Pin | None:
        """Raises DefinitionsUnavailable where nobody has told yet what there is."""
        if not self._heard:
            raise DefinitionsUnavailable("Which definitions of tools were accepted is not known yet.")
        return self._pins.get(server, {}).get(tool)

    def pins(self, server: str) -> Mapping[str, Pin]:
        """By tool; as far as they are known."""
        return dict(self._pins.get(server, {}))

    async def first(self, server: str, seen: Sequence[Definition]) -> None:
        """Pins definitions of tools that have no pin. Raises DefinitionsUnavailable."""
        now = self._clock()
        pins = [(Pin(server, each.name, "accepted", each.digest, "", now), each.text) for each in seen]
        if self._store is None:
            kept = [self.pin(server, pin.tool) or pin for pin, _ in pins]
        else:
            try:
                kept = await self._store.first(server, pins)
            except StoreUnavailable as error:
                raise DefinitionsUnavailable("What is seen of tools for the first time cannot be kept now.") from error
        self._keep(kept)
        new = {pin.tool: pin.digest for (pin, _), now_kept in zip(pins, kept, strict=True) if pin == now_kept}
        if new and self._note is not None:
            self._note("tool", {"event": "first_seen", "server": server, "definitions": new})

    async def say(
        self, server: str, tool: str, word: Word, digest: str, text: bytes, who: str, before: Pin | None
    ) -> Pin | None:
        """A person's word on a tool; None where somebody else has said something since `before`.

        Raises StoreUnavailable.
        """
        pin = Pin(server, tool, word, digest, who, self._clock())
        if self._store is None:
            if self.pin(server, tool) != before:
                return None
        elif not await self._store.change(pin, text, before):
            with contextlib.suppress(StoreUnavailable):
                await self._look(self._store)
            return None
        self._keep([pin])
        return pin

    async def text(self, server: str, tool: str) -> bytes | None:
        """The definition that was said of last. Raises StoreUnavailable."""
        return await self._store.text(server, tool) if self._store is not None else None

    def changed(self, server: str, tool: str, digest: str, was: str) -> None:
        """A tool says something else of itself than what was accepted: told once."""
        key = (server, tool, digest)
        if key in self._told:
            return
        if len(self._told) > 10_000:
            self._told.clear()
        self._told[key] = self._clock()
        log.warning("%s: the definition of the tool %.200r has changed; a person has to accept it", server, tool)
        if self._note is not None:
            self._note("tool", {"event": "changed", "server": server, "tool": tool, "digest": digest, "old": was})

    def changed_at(self, server: str, tool: str, digest: str) -> int | None:
        """When `changed` was told of it here for the first time, in Unix nanoseconds."""
        return self._told.get((server, tool, digest))

    def _keep(self, pins: Sequence[Pin]) -> None:
        for pin in pins:
            self._pins.setdefault(pin.server, {})[pin.tool] = pin

    async def _listen(self, store: DefinitionStore, first: asyncio.Event) -> None:
        told = ""
        while True:
            try:
                await self._look(store)
                told = ""
                first.set()
                if not store.shared:
                    return
            except StoreUnavailable as error:
                if told != str(error):
                    told = str(error)
                    log.warning("what others say of tools' definitions is not heard: %s", error)
            await asyncio.sleep(HEAR)

    async def _look(self, store: DefinitionStore) -> None:
        versions = await store.versions()
        for server, version in versions.items():
            if self._versions.get(server) != version:
                pins = await store.pins(server)
                self._pins[server] = {**self._pins.get(server, {}), **{pin.tool: pin for pin in pins}}
                self._versions[server] = version
        self._heard = True
