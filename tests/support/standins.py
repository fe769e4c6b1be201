"""The stand-in model servers inside a test: on free ports, with everything they received within reach.

with running_standins() as standins:          # in a thread: for blocking clients, or a gateway of its own process
async with running_standins_here() as standins:   # in the test's own loop
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from deploy.demo.anthropic_like import anthropic_standin
from deploy.demo.models import StandinServer, bound, url_of
from deploy.demo.openai_like import openai_standin
from deploy.demo.standin import Seen, Standin

OPENAI_KEY = "the-gateways-own-openai-key"
ANTHROPIC_KEY = "the-gateways-own-anthropic-key"


@dataclass(frozen=True)
class Standins:
    """Both stand-ins, serving. The URLs have no path: clients and targets of the OpenAI kind add `/v1`."""

    openai: Standin
    anthropic: Standin
    openai_url: str
    anthropic_url: str

    def forget(self) -> None:
        """Start a test with no requests remembered."""
        for each in (self.openai, self.anthropic):
            each.requests.clear()
            each.probes.clear()


def only(requests: list[Seen]) -> Seen:
    """The one request that arrived; fails where there were none or several."""
    assert len(requests) == 1, f"expected one request, got {[(seen.method, seen.path) for seen in requests]}"
    return requests[0]


@asynccontextmanager
async def running_standins_here(*, slow: float = 5.0) -> AsyncIterator[Standins]:
    """Both stand-ins in the running loop. `slow`: the silence of the model `slow-first-byte`, in seconds."""
    openai, anthropic = openai_standin(OPENAI_KEY, slow=slow), anthropic_standin(ANTHROPIC_KEY, slow=slow)
    listeners: list[socket.socket] = [bound("127.0.0.1", 0), bound("127.0.0.1", 0)]
    servers = [StandinServer(openai), StandinServer(anthropic)]
    async with asyncio.TaskGroup() as running:
        for server, listener in zip(servers, listeners, strict=True):
            running.create_task(server.serve([listener]))
        try:
            for server in servers:
                await server.ready.wait()
            yield Standins(openai, anthropic, url_of(listeners[0]), url_of(listeners[1]))
        finally:
            for server in servers:
                server.stop()


@contextmanager
def running_standins(*, slow: float = 5.0) -> Iterator[Standins]:
    """Both stand-ins in a thread of their own. `slow`: the silence of the model `slow-first-byte`, in seconds."""
    started: list[Standins] = []
    ready = threading.Event()
    loop: asyncio.AbstractEventLoop | None = None
    stop: asyncio.Event | None = None

    async def serve() -> None:
        nonlocal loop, stop
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        async with running_standins_here(slow=slow) as standins:
            started.append(standins)
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()  # a failure to start must not leave the test waiting

    thread = threading.Thread(target=run, name="stand-ins")
    thread.start()
    ready.wait()
    try:
        assert started, "the stand-ins did not start"
        yield started[0]
    finally:
        if loop is not None and stop is not None and thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
