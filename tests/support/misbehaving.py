"""A model server that misbehaves on request: raw TCP, one script a path, so that clients can be proven against it.

`async with Misbehaving() as upstream:` listens on a free loopback port; `upstream.on("/path", script)` adds a script of
one's own. A script is given a `Wire` with the request already read up to the end of its head, and decides everything
else. Paths without a script answer `ok`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

Script = Callable[["Wire"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\n"


class Wire:
    """One connection as the server sees it: the request (`method`, `path`, `headers`) and verbs to misbehave with."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.method = ""
        self.path = ""
        self.headers: dict[str, str] = {}
        self.turn = 0  # how many requests this connection has brought, this one included

    async def next_request(self) -> bool:
        """Read the head of a request; False when the client is done with this connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        line, *fields = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.method, self.path, _ = line.split(" ")
        self.headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.turn += 1
        return True

    async def body(self) -> bytes:
        """The request's body, by its length or its chunks."""
        if "content-length" in self.headers:
            return await self.reader.readexactly(int(self.headers["content-length"]))
        if self.headers.get("transfer-encoding") != "chunked":
            return b""
        pieces = []
        while size := int(await self.reader.readline(), 16):
            pieces.append(await self.reader.readexactly(size))
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return b"".join(pieces)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def trickle(self, data: bytes, pause: float = 0.0) -> None:
        """Send byte by byte; a pause of 0 still gives the client a turn between two bytes."""
        for byte in data:
            await self.send(bytes((byte,)))
            await asyncio.sleep(pause)

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def hang(self) -> None:
        """Say nothing more until the client goes away."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


async def ok(wire: Wire) -> None:
    await wire.body()
    await wire.send(b"" if wire.method == "CONNECT" else OK[:-2] if wire.method == "HEAD" else OK)


async def echo(wire: Wire) -> None:
    body = await wire.body()
    await wire.send(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)


def says(data: bytes, then: Callable[[Wire], None] | None = None) -> Script:
    """A script that takes the whole request, answers with these bytes, and then closes, resets or stays."""

    async def script(wire: Wire) -> None:
        await wire.body()
        await wire.send(data)
        if then is not None:
            then(wire)

    return script


async def never_answers(wire: Wire) -> None:
    await wire.hang()


async def never_reads(wire: Wire) -> None:
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport is a full one
    await asyncio.Event().wait()


async def trickles(wire: Wire) -> None:
    await wire.trickle(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n")


async def falls_silent(wire: Wire) -> None:
    await wire.send(HEAD + b"content-length: 10\r\n\r\nhello")
    await wire.hang()


async def answers_early(wire: Wire) -> None:
    """Answer from the head of the request alone and close, leaving its body unread (the kernel makes that a reset)."""
    await wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
    wire.close()


async def answers_early_and_waits(wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\nno")
    await wire.hang()


async def floods(wire: Wire) -> None:
    """Interim replies without end."""
    with contextlib.suppress(ConnectionError):
        while True:
            await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)


async def half_closes(wire: Wire) -> None:
    await wire.body()
    await wire.send(HEAD + b"content-length: 10\r\n\r\nhello")
    wire.half_close()
    await wire.hang()


BEHAVIOURS: dict[str, Script] = {
    "/ok": ok,
    "/echo": echo,
    "/close-at-once": says(b"", Wire.close),
    "/reset-at-once": says(b"", Wire.reset),
    "/close-in-head": says(HEAD + b"content-le", Wire.close),
    "/close-in-body": says(HEAD + b"content-length: 10\r\n\r\nhello", Wire.close),
    "/reset-in-body": says(HEAD + b"content-length: 10\r\n\r\nhello", Wire.reset),
    "/close-in-chunk": says(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", Wire.close),
    "/close-between-chunks": says(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Wire.close),
    "/close-after-last-chunk-size": says(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", Wire.close),
    "/half-close-in-body": half_closes,
    "/close-delimited": says(HEAD + b"\r\nhello", Wire.close),
    "/http-1.0": says(b"HTTP/1.0 200 OK\r\n\r\nhello", Wire.close),
    "/http-1.0-keep-alive": says(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello"),
    "/http-1.0-chunked": says(
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "/keep-alive-then-close": says(OK, Wire.close),
    "/connection-close": says(HEAD + b"connection: close\r\ncontent-length: 5\r\n\r\nhello"),
    "/length-too-short": says(HEAD + b"content-length: 3\r\n\r\nhello"),
    "/second-reply": says(HEAD + b"content-length: 5\r\n\r\nhello" + OK),
    "/one-byte-more": says(HEAD + b"content-length: 5\r\n\r\nhelloH"),
    "/chunks-and-more": says(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP"),
    "/body-on-204": says(b"HTTP/1.1 204 No Content\r\n\r\nhello"),
    "/trickle": trickles,
    "/falls-silent": falls_silent,
    "/never-answers": never_answers,
    "/never-reads": never_reads,
    "/answers-early": answers_early,
    "/answers-early-and-waits": answers_early_and_waits,
    "/interim": says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK),
    "/interim-flood": floods,
    "/switches-protocols": says(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nraw"),
    "/garbage": says(b"<html>this is not HTTP</html>"),
    "/http-0.9": says(b"HTTP/0.9 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    "/http-2": says(b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    "/rtsp": says(b"RTSP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    "/rtsp-after-interim": says(b"HTTP/1.1 100 Continue\r\n\r\nRTSP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    "/status-099": says(b"HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok"),
    "/status-letters": says(b"HTTP/1.1 2xx OK\r\ncontent-length: 2\r\n\r\nok"),
    "/conflicting-lengths": says(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok!"),
    "/negative-length": says(HEAD + b"content-length: -2\r\n\r\nok"),
    "/length-and-chunks": says(HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    "/gzip-coding": says(HEAD + b"transfer-encoding: gzip\r\n\r\nok", Wire.close),
    "/gzip-then-chunked": says(HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    "/chunked-then-gzip": says(HEAD + b"transfer-encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n", Wire.close),
    "/chunked-twice": says(
        HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    ),
    "/folded-header": says(HEAD + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\nok"),
    "/space-in-name": says(HEAD + b"content-length : 2\r\n\r\nok"),
    "/bare-lf": says(b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok"),
    "/nul-in-value": says(HEAD + b"x: a\0b\r\ncontent-length: 2\r\n\r\nok"),
    "/chunk-size-letters": says(HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\nok\r\n0\r\n\r\n"),
    "/chunk-size-negative": says(HEAD + b"transfer-encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n"),
    "/chunk-size-overflow": says(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\nok\r\n0\r\n\r\n"),
    "/chunk-longer-than-its-size": says(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n"),
    "/length-in-trailers": says(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ncontent-length: 9\r\n\r\n"),
    "/huge-header": says(HEAD + b"x: " + b"a" * 100_000 + b"\r\ncontent-length: 2\r\n\r\nok"),
    "/endless-header": says(HEAD + b"x: " + b"a" * 2_000_000),
    "/endless-status-line": says(b"HTTP/1.1 200 " + b"O" * 2_000_000),
    "/many-headers": says(HEAD + b"x: y\r\n" * 300 + b"content-length: 2\r\n\r\nok"),
    "/endless-trailers": says(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + b"x: y\r\n" * 400_000),
    "/endless-chunk-extension": says(HEAD + b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * 2_000_000),
}
"""What each path does. "Malformed" and "broken" are for the client to say."""


class Misbehaving:
    """The server. Counts what a test wants to know: connections `accepted` and still `open`, and `requests` by path."""

    def __init__(self, tls: ssl.SSLContext | None = None, at: Path | None = None) -> None:
        """Listens on a free loopback port, or on the Unix socket `at`."""
        self.accepted = 0
        self.open = 0
        self.requests: list[str] = []
        self.port = 0
        self._tls = tls
        self._at = at
        self._scripts = dict(BEHAVIOURS)
        self._serving: set[asyncio.Task[None]] = set()
        self._all_gone = asyncio.Event()

    def on(self, path: str, script: Script) -> None:
        self._scripts[path] = script

    async def all_gone(self) -> None:
        """Until no connection is open any more; TimeoutError after five seconds."""
        async with asyncio.timeout(5):
            while self.open:
                self._all_gone.clear()
                await self._all_gone.wait()

    async def __aenter__(self) -> Self:
        if self._at is not None:
            self._server = await asyncio.start_unix_server(self._serve, self._at)
            return self
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # start_server runs this in a task
        self._serving.add(task)
        self.accepted += 1
        self.open += 1
        wire = Wire(reader, writer)
        try:
            while not writer.is_closing() and await wire.next_request():
                self.requests.append(wire.path)
                await self._scripts.get(wire.path, ok)(wire)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left in the middle, as clients do
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.transport.abort() if not writer.is_closing() else writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()
            self._serving.discard(task)
            self.open -= 1
            if not self.open:
                self._all_gone.set()
