"""A model server whose paths are behaviours: `http://127.0.0.1:PORT/cut` is a target that cuts its streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

_DELTA = orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": "hello "}, "finish_reason": None}]})
_LAST = orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass
class Received:
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    raw: bytes


class Target:
    """What arrived at the server, and what it does about it."""

    answer = orjson.dumps(
        {"id": "c", "choices": [{"message": {"role": "assistant", "content": "hi"}}], "usage": _USAGE}
    )
    usage_event = b"data: " + orjson.dumps({"id": "c", "choices": [], "usage": _USAGE}) + b"\n\n"

    def __init__(self, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.url = ""
        self.received: list[Received] = []
        self.open = 0
        self.sent = 0
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()
        self.stuck = asyncio.Event()
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers)

    def stream(self, *, include_usage: bool) -> bytes:
        usage = self.usage_event if include_usage else b""
        return b"data: " + _DELTA + b"\n\ndata: " + _LAST + b"\n\n" + usage + b"data: [DONE]\n\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._one(reader, writer):
                    pass
        finally:
            self.open -= 1
            self.left.set()
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        body = await reader.readexactly(int(dict(headers).get(b"content-length", b"0")))
        path = first.split()[1].decode()
        self.received.append(Received(path, headers, body, head + body))
        self.arrived.set()
        behaviour = path.split("/")[1]
        streams = b'"stream":true' in body
        if behaviour == "silence":
            await reader.read()
            return False
        if behaviour == "pace":
            await asyncio.sleep(0.01)  # a target takes its time
        return await self._answer(behaviour, streams, reader, writer)

    async def _answer(
        self, behaviour: str, streams: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        say = writer.write
        ok = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{self._headers}".encode()
        sse = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        match behaviour:
            case "reset":
                return False
            case "garbage":
                say(b"SMTP 220 hello\r\n\r\n")
                return False
            case "short-body":
                say(ok + b"content-length: 1000\r\n\r\n{}")
                await writer.drain()
                writer.close()
                return False
            case "encoded":
                say(ok + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b")
            case "redirect":
                say(b"HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1:9/elsewhere\r\ncontent-length: 0\r\n\r\n")
            case "status-799":
                say(b"HTTP/1.1 799 Odd\r\ncontent-length: 2\r\n\r\n{}")
            case "not-a-stream":
                say(ok + b"content-length: %d\r\n\r\n" % len(self.answer) + self.answer)
            case "odd-case":
                say(sse.replace(b"text/event-stream", b"Text/Event-Stream; charset=utf-8"))
                say(_chunk(self.stream(include_usage=True)) + b"0\r\n\r\n")
            case "echo":
                key = dict(self.received[-1].headers)[b"authorization"]
                body = b'{"headers":{"authorization":"%s"},"choices":[{"finish_reason":"stop"}]}' % key
                say(ok + b"x-echo: " + key + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            case "nothing-said":
                say(ok + b"content-length: 2\r\n\r\n{}")
            case "named-hop":
                say(ok + b"connection: x-secret\r\nx-secret: 1\r\nx-open: 2\r\n")
                say(b"content-length: %d\r\n\r\n" % len(self.answer) + self.answer)
            case "status-429":
                body = b'{"error":{"message":"slow down"}}'
                head = b"HTTP/1.1 429 Too Many\r\ncontent-type: application/json\r\nretry-after: 7\r\n"
                say(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            case "status-404":
                body = b'{"error":{"message":"Not Found"}}'
                say(b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\n")
                say(b"content-length: %d\r\n\r\n" % len(body) + body)
            case "large" | "large-cut":
                usage = b',"usage":{"prompt_tokens":9,"total_tokens":9}}'
                data = b'{"data":[' + b"1," * 2_999_999 + b"1]"
                say(ok + b"content-length: %d\r\n\r\n" % (len(data) + len(usage)) + data)
                if behaviour == "large-cut":
                    await writer.drain()
                    writer.close()
                    return False
                say(usage)
            case "cut" | "cut-mid-event" | "end-early" | "cut-at-once" | "endless" | "flood":
                return await self._misbehaving_stream(behaviour, sse, reader, writer)
            case "unterminated":
                say(sse + _chunk(self.stream(include_usage=True).removesuffix(b"\n\n")) + b"0\r\n\r\n")
            case _ if streams:
                say(sse + _chunk(self.stream(include_usage=True)) + b"0\r\n\r\n")
            case _:
                say(ok + b"content-length: %d\r\n\r\n" % len(self.answer) + self.answer)
        await writer.drain()
        return True

    async def _misbehaving_stream(
        self, behaviour: str, sse: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        delta = _chunk(b"data: " + _DELTA + b"\n\n")
        match behaviour:
            case "cut-at-once":
                writer.write(sse)
            case "cut":
                writer.write(sse + delta)
            case "cut-mid-event":
                writer.write(sse + delta + _chunk(b'data: {"half'))
            case "end-early":
                writer.write(sse + delta + b"0\r\n\r\n")
                await writer.drain()
                return True
            case "endless":
                writer.write(sse)
                gone = asyncio.ensure_future(reader.read())
                while not gone.done():
                    writer.write(delta)
                    await asyncio.sleep(0.01)  # a target takes its time
                return False
            case "flood":
                writer.write(sse)
                block = _chunk((b"data: " + _DELTA + b"\n\n") * 500)
                while True:
                    writer.write(block)
                    self.sent += len(block)
                    try:
                        await asyncio.wait_for(writer.drain(), 0.5)
                    except TimeoutError:
                        self.stuck.set()
                        return False
        await writer.drain()
        writer.close()
        return False


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


@asynccontextmanager
async def target(headers: Sequence[tuple[str, str]] = ()) -> AsyncIterator[Target]:
    """A target on a free port. Append `/BEHAVIOUR` to its url."""
    it = Target(headers)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield it
