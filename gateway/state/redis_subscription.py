"""What gateways tell one another through a Redis server, as it is published: by one connection of each, beside the one
by which it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from gateway.state.redis_scripts import packed
from gateway.state.redis_servers import RedisServers
from policies.budgets import StoreUnavailable

log = logging.getLogger("weighbridge.state")

ALIVE: Final = 1.0
"""Seconds between two signs of life: one that says nothing for three times as long is given up."""

_PING: Final = packed("PING")


class Subscription:
    """Hears what is published on a channel, by a connection that is made anew whenever it is lost.

    `heard` is called in the event loop with what was published; with None once it is connected, for what was published
    before may be missed. `up` says whether it hears.
    """

    def __init__(self, servers: RedisServers, channel: str, heard: Callable[[bytes | None], None]) -> None:
        self.up = False
        self._servers = servers
        self._channel = channel
        self._heard = heard
        self._task: asyncio.Task[None] | None = None
        self._refused = ""

    def begin(self) -> None:
        """Begins to connect. Does nothing the second time. Needs a running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name=f"subscription to {self._channel}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _keep(self) -> None:
        while True:
            try:
                await self._connection()
            except (StoreUnavailable, TimeoutError):
                pass  # whoever asks the server is told
            except (RedisError, OSError) as error:
                self._tell(str(error))
            except Exception as error:
                log.error("the subscription to %s failed", self._channel, exc_info=error)
            self.up = False
            await asyncio.sleep(self._servers.pause)

    def _tell(self, reason: str) -> None:
        if reason != self._refused:
            self._refused = reason
            log.warning("changes are not heard, but looked for every few seconds: %s", reason)

    async def _connection(self) -> None:
        """One connection, until it ends. Raises StoreUnavailable, TimeoutError, RedisError, OSError."""
        connection = self._servers.connection("")
        pinging: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(3 * ALIVE) as limit:
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(packed("SUBSCRIBE", self._channel), check_health=False)
                await connection.read_response()
                self.up, self._refused = True, ""
                self._heard(None)

                async def ping() -> None:
                    while True:
                        await asyncio.sleep(ALIVE)
                        await connection.send_packed_command(_PING, check_health=False)

                pinging = asyncio.create_task(ping(), name="signs of life")
                while True:
                    limit.reschedule(loop.time() + 3 * ALIVE)
                    said = await connection.read_response()
                    if said[0] == b"message":
                        self._heard(said[2])
        finally:
            if pinging is not None:
                pinging.cancel()
                await asyncio.gather(pinging, return_exceptions=True)
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
