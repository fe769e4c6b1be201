"""A system that listens for webhooks, written by hand: it keeps what it is told, and answers as scripted."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass
class Message:
    """What one request said."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)
        return found


class Listener:
    """`answers` are the statuses to come, one with a header (`503 retry-after: 7`), `hangs`, `taken, and hangs`, or
    `taken, and talks on` without an end; the last one stays."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[int | str] = [204]
        self.messages: list[Message] = []
        self._came = asyncio.Event()
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def told(self, count: int) -> list[Message]:
        """The first messages, as soon as so many are there."""
        async with asyncio.timeout(10):
            while len(self.messages) < count:
                self._came.clear()
                await self._came.wait()
        return self.messages[:count]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = asyncio.current_task()
        assert served is not None, "a connection is served by a task"
        self._connections[writer] = served
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().rstrip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.messages.append(Message(first.split()[1], headers, body))
                self._came.set()
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                status, _, header = str(answer).partition(" ")
                if not status.isdecimal():
                    if answer == "taken, and hangs":
                        writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 10\r\n\r\nhalf")
                    elif answer == "taken, and talks on":
                        writer.write(b"HTTP/1.1 200 x\r\n\r\n")
                        while True:
                            writer.write(bytes(64 * 1024))
                            await writer.drain()
                    await reader.read()
                    return
                lines = [f"HTTP/1.1 {status} x", "content-length: 0", *([header] if header else []), "", ""]
                writer.write("\r\n".join(lines).encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        for writer in self._connections:
            writer.close()
        await asyncio.gather(*self._connections.values())


@asynccontextmanager
async def listening(tls: ssl.SSLContext | None = None) -> AsyncIterator[Listener]:
    it = Listener()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0, ssl=tls)
    it.url = f"http{'s' if tls is not None else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield it
    finally:
        await it.close()
        server.close()
        await server.wait_closed()
