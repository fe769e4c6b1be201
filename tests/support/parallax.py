"""The stand-in for a Parallax cluster inside a test: in a thread of its own, because it stands still on request.

with running_parallax(scale=0.01) as cluster:
    cluster.standin.will("node-dies")
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deploy.demo.models import StandinServer, bound, url_of
from deploy.demo.parallax_like import ParallaxStandin


@dataclass(frozen=True)
class Cluster:
    """The stand-in and its URL, which has no path: targets of the parallax kind take it as it is, clients add `/v1`."""

    standin: ParallaxStandin
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running_parallax(**options: Any) -> Iterator[Cluster]:
    """Serves until the end of the block. `options` are those of `ParallaxStandin`."""
    standin = ParallaxStandin(**options)
    listener = bound("127.0.0.1", 0)
    cluster = Cluster(standin, url_of(listener))
    server: StandinServer | None = None
    ready = threading.Event()

    async def serve() -> None:
        nonlocal server
        server = StandinServer(standin)
        async with asyncio.TaskGroup() as running:
            running.create_task(server.serve([listener]))
            await server.ready.wait()
            ready.set()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()  # a failure to start must not leave the test waiting

    thread = threading.Thread(target=run, name="parallax stand-in")
    thread.start()
    ready.wait()
    try:
        assert server is not None, "the stand-in did not start"
        assert server.started, "the stand-in did not start"
        yield cluster
    finally:
        if server is not None:
            server.stop()  # the server looks at this flag ten times a second
        thread.join()
