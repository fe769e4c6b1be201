"""A stand-in of the demonstration inside a test, in a thread of its own, because some stand still on request."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.demo.models import StandinServer, bound, url_of


@contextmanager
def in_a_thread(app: Any, name: str) -> Iterator[str]:
    """Serves `app` until the end of the block. Gives its URL, which has no path."""
    listener = bound("127.0.0.1", 0)
    server: StandinServer | None = None
    ready = threading.Event()

    async def serve() -> None:
        nonlocal server
        server = StandinServer(app)
        async with asyncio.TaskGroup() as running:
            running.create_task(server.serve([listener]))
            await server.ready.wait()
            ready.set()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()  # a failure to start must not leave the test waiting

    thread = threading.Thread(target=run, name=name)
    thread.start()
    ready.wait()
    try:
        assert server is not None, "the stand-in did not start"
        assert server.started, "the stand-in did not start"
        yield url_of(listener)
    finally:
        if server is not None:
            server.stop()  # the server looks at this flag ten times a second
        thread.join()
