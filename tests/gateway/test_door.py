"""What a badly behaved client may do, and what it may not do to anybody else."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.lifeline import BodyTooSlow, ClientGone
from tests.support.door import connected, door, post

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


async def echo(scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    """Answers with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Waiting:
    """Waits for its hangup, and keeps the reason."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.reason: asyncio.Future[type[Exception]] = asyncio.get_running_loop().create_future()

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        scope["door"].hangup = self.reason.set_result
        self.entered.set()
        await self.reason
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def test_a_request_that_arrives_whole_is_served_and_the_connection_kept() -> None:
    async with door(echo) as port, connected(port) as client:
        for _ in range(3):
            await client.say(post("/", b"12345"))
            status, _, body = await client.answer()
            assert (status, body) == (200, b"5")


@pytest.mark.parametrize("step", [1, 7])
async def test_a_request_that_arrives_in_crumbs_is_served(step: int) -> None:
    request = post("/", b"x" * 50)
    async with door(echo) as port, connected(port) as client:
        for start in range(0, len(request), step):
            await client.say(request[start : start + step])
        assert (await client.answer())[2] == b"50"


@pytest.mark.parametrize(
    "flood",
    [
        b"x-flood: " + b"a" * 5000 + b"\r\n\r\n",
        b"".join(b"x-%d: a\r\n" % number for number in range(500)) + b"\r\n",
        b"x-endless: " + b"a" * 5000,
        b"a" * 5000,
    ],
    ids=["one long header", "many headers", "a header without end", "a name without end"],
)
async def test_a_flood_of_headers_is_refused(flood: bytes) -> None:
    limits = {"max_header": 2048}
    async with door(echo, **limits) as port, connected(port) as client:
        await client.say(b"GET / HTTP/1.1\r\nhost: gateway\r\n" + flood)
        status, headers, body = await client.answer()
        assert status == 431
        assert headers[b"connection"] == b"close"
        assert b"malformed_call" in body
        assert await client.silence() == b""


async def test_a_long_request_line_is_refused() -> None:
    limits = {"max_header": 2048}
    async with door(echo, **limits) as port, connected(port) as client:
        await client.say(b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\nhost: gateway\r\n\r\n")
        assert (await client.answer())[0] == 431


async def test_headers_within_the_limit_are_counted_for_each_request_anew() -> None:
    limits = {"max_header": 2048}
    async with door(echo, **limits) as port, connected(port) as client:
        for _ in range(5):
            await client.say(post("/", b"", "x-padding: " + "a" * 1500))
            assert (await client.answer())[0] == 200


@pytest.mark.parametrize("said", [b"", b"POST / HTT", b"POST / HTTP/1.1\r\nhost: gateway\r\n"])
async def test_a_head_that_takes_too_long_is_refused(said: bytes) -> None:
    limits = {"header_timeout": 0.1}
    async with door(echo, **limits) as port, connected(port) as client:
        await client.say(said)
        assert (await client.answer())[0] == 408
        assert await client.silence() == b""


async def test_a_byte_now_and_then_does_not_extend_the_time_for_a_head() -> None:
    limits = {"header_timeout": 0.3}
    async with door(echo, **limits) as port, connected(port) as client:

        async def trickle() -> None:
            for letter in b"GET / HTTP/1.1\r\nx-slow: " + b"a" * 1000:
                await client.say(bytes([letter]))
                await asyncio.sleep(0.02)  # the client's pace is what is being tested

        slow = asyncio.create_task(trickle())
        assert (await client.answer())[0] == 408
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_a_call_learns_that_its_body_does_not_come() -> None:
    limits = {"body_timeout": 0.1}
    waiting = Waiting()
    async with door(waiting, **limits) as port, connected(port) as client:
        await client.say(b"POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: 100\r\n\r\nonly this")
        status, headers, _ = await client.answer()
        assert (status, headers[b"connection"]) == (204, b"close")
        assert waiting.reason.result() is BodyTooSlow


async def test_a_call_learns_that_its_client_is_gone() -> None:
    waiting = Waiting()
    async with door(waiting) as port, connected(port) as client:
        await client.say(post("/", b"{}"))
        await waiting.entered.wait()
        client.hang_up()
        assert await waiting.reason is ClientGone


async def test_a_client_that_does_not_read_is_dropped() -> None:
    ended = asyncio.Event()

    async def endless(scope: Message, receive: Any, send: Send) -> None:
        gone = asyncio.Event()
        scope["door"].hangup = lambda reason: gone.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.is_set():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    limits = {"write_timeout": 0.2}
    async with door(endless, **limits) as port, connected(port) as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a client that stops reading has no public form
        await client.say(post("/", b""))
        await asyncio.wait_for(ended.wait(), 10)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n123456",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"POST / HTTP/1.1\r\nhost : a\r\n\r\n",
        b"POST / HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_and_the_connection_closed(request_bytes: bytes) -> None:
    async with door(echo) as port:
        async with connected(port) as client:
            await client.say(request_bytes)
            answer = await client.silence()
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"malformed_call" in answer
        async with connected(port) as client:
            await client.say(post("/", b"still here"))
            assert (await client.answer())[2] == b"10"


async def test_more_connections_than_allowed_are_refused() -> None:
    limits = {"max_connections": 2}
    async with door(echo, **limits) as port, connected(port) as one, connected(port) as two:
        for client in (one, two):
            await client.say(post("/", b"1"))
            assert (await client.answer())[0] == 200
        async with connected(port) as third:
            assert (await third.answer())[0] == 503
        await one.say(post("/", b"12"))
        assert (await one.answer())[2] == b"2"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with door(echo) as port, connected(port) as client:
        await client.say(post("/", b"1") + post("/", b"22") + post("/", b"333"))
        assert [(await client.answer())[2] for _ in range(3)] == [b"1", b"2", b"3"]
