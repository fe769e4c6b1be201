"""A front door before any ASGI application, on a free port of the running loop; and a client that can misbehave."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from config.settings import ListenSettings
from gateway.server import server as build

LISTEN = ListenSettings(drain=1.0)


@asynccontextmanager
async def door(application: Any, **limits: Any) -> AsyncIterator[int]:
    """Serves `application` with these settings of `listen` and yields the port; ends what it began."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = build(application, LISTEN.model_copy(update=limits))
    with listener:
        async with asyncio.TaskGroup() as serving:
            serving.create_task(server.serve([listener]))
            await server.listening.wait()
            try:
                yield listener.getsockname()[1]
            finally:
                server.stop()


@dataclass
class RawClient:
    """One TCP connection, byte for byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of the next answer. Raises asyncio.IncompleteReadError when there is none."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        return int(first.split()[1]), headers, body

    async def silence(self) -> bytes:
        """Everything until the server closes."""
        return await self.reader.read()

    def hang_up(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
