"""uvicorn as this gateway runs it: our front door, no trust in forwarded headers, no signals of its own."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from config.settings import ListenSettings
from gateway.door import DoorLimits, FrontDoor


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: there are two, and one signal has to end both."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def server(application: Any, listen: ListenSettings) -> Server:
    """One listener's server, with the limits of `listen`."""
    limits = DoorLimits(
        listen.max_connections, listen.max_header, listen.header_timeout, listen.body_timeout, listen.write_timeout
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
        timeout_keep_alive=int(listen.keep_alive),
        timeout_graceful_shutdown=int(listen.drain),
    )
    return Server(config)
