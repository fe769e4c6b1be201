"""A collector of decision logs that a test scripts, written by hand: what it is sent is kept as it came."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson


class Server:
    """A collector that answers as it is told: a status, or a word for what it does instead; the last one stays."""

    def __init__(self) -> None:
        self.answers: list[int | str] = [200]
        self.batches: list[list[Any]] = []
        self.heads: list[bytes] = []
        self.asked = asyncio.Event()
        self.said = 0
        self.port = 0
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = asyncio.current_task()
        assert served is not None, "a connection is served by a task"
        self._connections[writer] = served
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:")
                body = await reader.readexactly(length)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                self.heads.append(head)
                self.asked.set()
                if answer == "hangs":
                    await reader.read()
                if answer in ("rambles", "trickles"):
                    await self._talk(writer, answer)
                if isinstance(answer, str):
                    return
                if answer == 200:
                    self.batches.append(orjson.loads(gzip.decompress(body)))
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _talk(self, writer: asyncio.StreamWriter, how: str) -> None:
        """An answer without end: as fast as it is taken, or by a byte now and then."""
        writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 1000000000000\r\n\r\n")
        while True:
            writer.write(b" " if how == "trickles" else b" " * 65536)
            await writer.drain()
            self.said += 1
            await asyncio.sleep(0.01 if how == "trickles" else 0)

    async def close(self) -> None:
        for writer in self._connections:
            writer.close()
        await asyncio.gather(*self._connections.values())

    @property
    def events(self) -> list[Any]:
        return [event for batch in self.batches for event in batch]


@asynccontextmanager
async def collecting() -> AsyncIterator[Server]:
    it = Server()
    listening = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = listening.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        await it.close()
        listening.close()
        await listening.wait_closed()
