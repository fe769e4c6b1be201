"""A plain HTTP tool: keeps each request as it came, and answers what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from tests.support.misbehaving import Wire


@dataclass
class Came:
    """One request. `target` is the path and the query as they stood in its first line."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class HttpTool:
    """`url` is where it listens. Without an `answer` it says what it was asked."""

    url: str = ""
    came: list[Came] = field(default_factory=list)
    connections: int = 0
    answer: Callable[[Wire, Came], Awaitable[None]] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        wire = Wire(reader, writer)
        try:
            # Cancelled when the test is over.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await wire.next_request():
                    came = Came(wire.method, wire.path, wire.headers, await wire.body())
                    self.came.append(came)
                    await (self.answer or echoed)(wire, came)
        finally:
            writer.transport.abort()


async def echoed(wire: Wire, came: Came) -> None:
    body = json.dumps({"method": came.method, "target": came.target, "body": came.body.decode("latin-1")}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    await wire.send(head if came.method == "HEAD" else head + body)


def says(data: bytes) -> Callable[[Wire, Came], Awaitable[None]]:
    """Answers with these bytes, whatever comes."""

    async def answer(wire: Wire, came: Came) -> None:
        await wire.send(data)

    return answer


@contextlib.asynccontextmanager
async def http_tool(answer: Callable[[Wire, Came], Awaitable[None]] | None = None) -> AsyncIterator[HttpTool]:
    """One on a free port."""
    tool = HttpTool(answer=answer)
    server = await asyncio.start_server(tool.serve, "127.0.0.1", 0)
    tool.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield tool
