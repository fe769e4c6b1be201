"""uvicorn as this gateway runs it: our front door, no trust in forwarded headers, no signals of its own."""

import asyncio
import contextlib
import functools
import logging
import resource
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from config.settings import ListenSettings
from gateway.door import DoorLimits, FrontDoor

log = logging.getLogger("weighbridge.server")

_OWN_DESCRIPTORS = 64
"""For files, listeners, the watch over edits and the child that proves a policy."""


_TICK = 0.1
"""Seconds after which uvicorn looks whether a second has passed."""
_LOOK = 0.001
"""Seconds after which it is looked first whether the last connection is gone; then after twice as many each time."""


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: there are two, and one signal has to end both.

    It ends as soon as it is told to and nothing is under way, where uvicorn's own sleeps for two tenths of a second.
    """

    def __init__(self, config: uvicorn.Config, drain: float) -> None:
        """`drain` is in seconds: for so long calls under way may finish."""
        super().__init__(config)
        self._drain = drain
        self.listening = asyncio.Event()
        self._stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for each in (*self.servers, *(sockets or ())):
            each.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self._drain):
                await self._nothing_is_under_way()
        except TimeoutError:
            log.error("%d calls are cut: the time to finish is over", len(self.server_state.tasks))
            for task in self.server_state.tasks:
                task.cancel("the time to finish is over")

    async def _nothing_is_under_way(self) -> None:
        pause = _LOOK
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _TICK)
        for each in self.servers:
            await each.wait_closed()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def affordable(connections: int, descriptors: int) -> int:
    """How many of so many connections agents may have, so that the gateway never wants for a descriptor itself.

    A quarter stays for connections to targets and for the admin listener: whoever holds all the others open without a
    key keeps other agents from connecting, but not those that have connected from being served.
    """
    return max(1, min(connections, descriptors - _OWN_DESCRIPTORS - descriptors // 4))


@functools.cache
def descriptors() -> int:
    """How many descriptors this process may have open, after it has asked for as many as it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems refuse what they call their hard limit.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**31


@functools.cache
def _connections(wanted: int) -> int:
    """As `affordable`, of this process; says so in the log, once."""
    limit = descriptors()
    connections = affordable(wanted, limit)
    if connections < wanted:
        log.warning(
            "listen.max_connections is %d, but this process may open %d files and sockets: it takes %d connections. "
            "Raise the limit (ulimit -n, LimitNOFILE, --ulimit nofile) for more.",
            wanted,
            limit,
            connections,
        )
    return connections


def server(application: Any, listen: ListenSettings) -> Server:
    """One listener's server, with the limits of `listen`."""
    limits = DoorLimits(
        _connections(listen.max_connections),
        listen.max_header,
        listen.header_timeout,
        listen.body_timeout,
        listen.write_timeout,
        listen.keep_alive,
    )
    config = uvicorn.Config(
        application,
        http=functools.partial(FrontDoor, limits=limits),  # type: ignore[arg-type]  # a factory serves as the class
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    return Server(config, listen.drain)
