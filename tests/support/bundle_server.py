"""A server of one bundle, as OPA's bundle services are; its other paths are ways to misbehave.

/bundle.tar.gz  the bundle, with ETag and 304; with `holds`, long polls are held until there is another bundle
/plain          the bundle without an ETag
/redirect       points to `elsewhere`
/endless        a body without end
/encoded        the bundle in a content encoding
/cut            breaks off in the middle
/silent         never answers
/status/NNN     that status
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

LONG_POLLS = "application/vnd.openpolicyagent.bundles"


@dataclass
class Request:
    """What was asked for; header names are in lower case."""

    path: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def wait(self) -> float:
        found = re.search(r"wait=(\d+)", self.headers.get("prefer", ""))
        return float(found[1]) if found else 0.0


class BundleServer:
    def __init__(self) -> None:
        self.content = b""
        self.holds = False
        self.token: str | None = None
        self.elsewhere = ""
        self.address = ""
        self.requests: list[Request] = []
        self._changed = asyncio.Condition()

    async def publish(self, content: bytes) -> None:
        async with self._changed:
            self.content = content
            self._changed.notify_all()

    async def asked(self, times: int) -> None:
        """Waits until so many requests have come."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= times)

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    request = Request(head[0].split(" ")[1], dict(map(_header, head[1:-2])))
                    async with self._changed:
                        self.requests.append(request)
                        self._changed.notify_all()
                    await self._answer(request, writer)
                    await writer.drain()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            writer.write(_head(401))
            return
        match request.path.split("/")[1:]:
            case ["bundle.tar.gz"]:
                await self._bundle(request, writer)
            case ["plain"]:
                writer.write(_head(200, length=len(self.content)) + self.content)
            case ["redirect"]:
                writer.write(_head(302, location=self.elsewhere))
            case ["encoded"]:
                writer.write(_head(200, content_encoding="gzip", length=len(self.content)) + self.content)
            case ["cut"]:
                writer.write(_head(200, length=len(self.content) + 10) + self.content)
                raise ConnectionAbortedError
            case ["endless"]:
                writer.write(_head(200, length=2**40))
                while True:
                    writer.write(bytes(1024 * 1024))
                    await writer.drain()
            case ["silent"]:
                await asyncio.Event().wait()
            case ["status", status]:
                writer.write(_head(int(status)))

    async def _bundle(self, request: Request, writer: asyncio.StreamWriter) -> None:
        known = request.headers.get("if-none-match")
        if self.holds and request.wait and known == self.etag:
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(request.wait):
                        await self._changed.wait_for(lambda: known != self.etag)
        kind = LONG_POLLS if self.holds else "application/gzip"
        if known == self.etag:
            writer.write(_head(304, etag=self.etag))
            return
        writer.write(_head(200, etag=self.etag, content_type=kind, length=len(self.content)) + self.content)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _head(status: int, length: int = 0, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if status != 304:
        lines.append(f"content-length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def bundle_server() -> AsyncIterator[BundleServer]:
    """A server at `address`, on a free port of the loopback."""
    server = BundleServer()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports end in the loop's next turn
