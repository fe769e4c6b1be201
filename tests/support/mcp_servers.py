"""Real MCP servers, of the stock SDK, on ports of their own: what the gateway is put in front of in tests."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
from mcp.server import MCPServer

from tests.support.door import door


@contextlib.asynccontextmanager
async def serving(server: MCPServer, **options: Any) -> AsyncIterator[str]:
    """The URL of a server that speaks both eras until the block ends."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    config = uvicorn.Config(server.streamable_http_app(**options), log_config=None, lifespan="on")
    running = uvicorn.Server(config)
    running.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(running.serve([sock]))
    try:
        while not running.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        running.should_exit = True
        await task


@dataclass
class Asked:
    """One request as the scripted server got it."""

    method: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> Any:
        return orjson.loads(self.body)


Say = Callable[[bytes], Awaitable[None]]


class Scripted:
    """A server that answers as a test says, and remembers what it was asked.

    `answers` are used up one after the other, the last for all that follow: (status, headers, body), where a body is
    bytes or a coroutine function that is given what sends a piece.
    """

    def __init__(self, *answers: tuple[int, Mapping[str, str], Any]) -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self.left = asyncio.Event()
        """Set once a client has gone before its answer was over."""
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.asked.append(Asked(scope["method"], headers, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status, told, content = answer
        lines = [(name.encode(), value.encode()) for name, value in told.items()]
        if isinstance(content, bytes):
            lines.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": lines})
        if isinstance(content, bytes):
            await send({"type": "http.response.body", "body": content, "more_body": False})
            return

        async def say(piece: bytes) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        saying, leaving = asyncio.ensure_future(content(say)), asyncio.ensure_future(receive())
        await asyncio.wait([saying, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not saying.done():
            self.left.set()
            saying.cancel()
            return
        saying.result()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextlib.asynccontextmanager
async def scripted(*answers: tuple[int, Mapping[str, str], Any]) -> AsyncIterator[Scripted]:
    """A scripted server on a port of its own."""
    server = Scripted(*answers)
    async with door(server, drain=0.0) as port:
        server.url = f"http://127.0.0.1:{port}/mcp"
        yield server
