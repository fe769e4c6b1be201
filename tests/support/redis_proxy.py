"""What can go wrong between a gateway and its Redis server, done on purpose to chosen commands.

async with fault_proxy(server, plan) as proxy:
    RedisStore(RedisUrl.parse(proxy.url))
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.support.redis_server import RedisServer

_SWALLOW = 0.005
"""Seconds in which a server has answered what it was asked."""


class Fault(enum.Enum):
    """What becomes of a command."""

    NONE = "is carried"
    DROP_REQUEST = "never arrives; the connection is cut"
    DROP_REPLY = "arrives; its answer does not, the connection is cut"
    CUT_REPLY = "arrives; the connection is cut in the middle of its answer"
    DUPLICATE = "arrives a second time, by another way and a little later"
    DELAY = "arrives; its answer comes too late"


Plan = Callable[[list[bytes]], Fault]
"""What becomes of a command, by its words."""


def carry_all(words: list[bytes]) -> Fault:
    return Fault.NONE


class FaultProxy:
    """Stands before a server. `plan` can be replaced at any time; `refuses` cuts everything and lets nobody connect."""

    def __init__(self, server: RedisServer, plan: Plan, delay: float) -> None:
        self.plan = plan
        self.refuses = False
        self.seen: list[tuple[list[bytes], Fault]] = []
        self._server = server
        self._delay = delay
        self._listener: asyncio.Server | None = None
        self._connections: list[asyncio.Task[None]] = []
        """In the order in which they were made."""
        self._ends: set[asyncio.StreamWriter] = set()
        self._again: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._listener is not None
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"

    def cut(self) -> None:
        """Ends every connection there is."""
        for each in self._ends:
            each.transport.abort()

    def refuse(self) -> None:
        self.refuses = True
        self.cut()

    def restore(self) -> None:
        self.refuses = False
        self.plan = carry_all

    async def begin(self) -> None:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def arrived(self) -> None:
        """Returns once all has happened at the server that came by connections before the newest, or is repeated.

        For one gateway, which has ended one connection before it makes the next, this is all it was not answered, too.
        """
        while late := [*self._connections[:-1], *self._again]:
            await asyncio.wait(late)

    async def end(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._connections, *self._again, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.append(task)
        ends = [writer]
        try:
            if not self.refuses:
                answer, upstream = await asyncio.open_connection("127.0.0.1", self._server.port)
                ends.append(upstream)
                self._ends.update(ends)
                await self._carry(reader, writer, answer, upstream)
        except OSError:
            pass  # what the gateway sees of it is the point
        finally:
            self._connections.remove(task)
            self._ends.difference_update(ends)
            for each in ends:
                each.transport.abort()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> None:
        """Carries commands and answers until the connection is cut, and sees what was carried happen at the server."""
        way = _Way(writer)
        answers = asyncio.create_task(way.carry(answer))
        try:
            while await self._command(reader, upstream, way):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
        upstream.write_eof()
        while await answer.read(65536):  # the server ends it when it has done all
            pass

    async def _command(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, way: _Way) -> bool:
        """Carries one command; False when the connection is to be cut."""
        raw, words = await _read(reader)
        fault = self.plan(words)
        self.seen.append((words, fault))
        if fault is Fault.DROP_REQUEST:
            return False
        if fault in (Fault.DROP_REPLY, Fault.CUT_REPLY):
            way.bytes_left = 0 if fault is Fault.DROP_REPLY else 9
        if fault is Fault.DELAY:
            way.delay = self._delay
        upstream.write(raw)
        await upstream.drain()
        if fault is Fault.DUPLICATE:
            again = asyncio.create_task(self._repeat(raw))
            self._again.add(again)
            again.add_done_callback(self._again.discard)
        if way.bytes_left is not None:
            await way.carried.wait()
            return False
        return True

    async def _repeat(self, raw: bytes) -> None:
        await asyncio.sleep(_SWALLOW)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        writer.write(raw)
        await reader.read(1)
        writer.transport.abort()


class _Way:
    """The way of answers back to the gateway."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.bytes_left: int | None = None
        """How many bytes may still pass, of what comes from now on."""
        self.delay = 0.0
        self.carried = asyncio.Event()
        """Set once something was held back."""
        self._writer = writer

    async def carry(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                if self.delay:
                    delay, self.delay = self.delay, 0.0
                    await asyncio.sleep(delay)
                self._writer.write(piece if self.bytes_left is None else piece[: self.bytes_left])
                await self._writer.drain()
                if self.bytes_left is not None:
                    break
        self.carried.set()
        if self.bytes_left is None:
            self._writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """One command as it was written, and its words."""
    raw = [await reader.readuntil(b"\r\n")]
    words = []
    for _ in range(int(raw[0][1:])):
        length = await reader.readuntil(b"\r\n")
        word = await reader.readexactly(int(length[1:]) + 2)
        raw += [length, word]
        words.append(word[:-2])
    return b"".join(raw), words


@asynccontextmanager
async def fault_proxy(server: RedisServer, plan: Plan = carry_all, delay: float = 1.0) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy(server, plan, delay)
    await proxy.begin()
    try:
        yield proxy
    finally:
        await proxy.end()
