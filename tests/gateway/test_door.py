"""What a badly behaved client may do, and what it may not do to anybody else."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.lifeline import BodyTooSlow, ClientGone
from tests.support.door import RawClient, connected, door, post

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


async def names(scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    """Answers with the names of the headers, as they are when the body was read."""
    while (await receive()).get("more_body", False):
        pass
    body = b" ".join(name for name, _ in scope["headers"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def curt(scope: Message, receive: Any, send: Send) -> None:
    """Refuses without looking at the body."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def keep_sending(client: RawClient, data: bytes, times: int, pause: float = 0) -> None:
    for _ in range(times):
        await client.say(data)
        await asyncio.sleep(pause)  # the client's pace is what is being tested


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
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n",
        b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost : a\r\n\r\n",
        b"POST / HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n",
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


CHUNKED = b"POST / HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n"
TRAILERS = b"0\r\nauthorization: Bearer key\r\nx-late: 1\r\n\r\n"


@pytest.mark.parametrize(
    "parts", [(CHUNKED + TRAILERS,), (CHUNKED, TRAILERS), (CHUNKED + TRAILERS[:20], TRAILERS[20:])]
)
async def test_trailers_never_become_headers(parts: tuple[bytes, ...]) -> None:
    async with door(names) as port, connected(port) as client:
        for _ in range(2):
            for part in parts:
                await client.say(part)
            assert (await client.answer())[2] == b"host transfer-encoding"


async def said(scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    """Answers with what the header `x-said` says."""
    body = next(value for name, value in scope["headers"] if name == b"x-said")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def test_spaces_around_a_value_are_no_part_of_it() -> None:
    async with door(said) as port, connected(port) as client:
        await client.say(b"GET / HTTP/1.1\r\nhost: h\r\nx-said: \t a b \t \r\n\r\n")
        assert (await client.answer())[2] == b"a b"


@pytest.mark.parametrize(
    "endless",
    [b"0\r\nx-trailer: " + b"a" * 200_000, b"0\r\n" + b"x: 1\r\n" * 40_000, b"5;" + b"a" * 200_000],
    ids=["a trailer", "trailers", "a chunk's extension"],
)
async def test_what_comes_between_and_behind_chunks_has_an_end(endless: bytes) -> None:
    async with door(echo) as port, connected(port) as client:
        await client.say(CHUNKED + endless)
        assert (await client.answer())[0] == 431
        assert await client.silence() == b""


@pytest.mark.parametrize("step", [1, 10, 1_000_000])
@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_a_request_that_offers_another_protocol_is_answered_in_this_one(protocol: str, step: int) -> None:
    calls = 0

    async def counting(scope: Message, receive: Any, send: Send) -> None:
        nonlocal calls
        calls += 1
        assert {b"upgrade", b"http2-settings"}.isdisjoint(name for name, _ in scope["headers"])
        await echo(scope, receive, send)

    inner = post("/", b"this is no call")
    offer = ("connection: Upgrade, HTTP2-Settings", f"upgrade: {protocol}", "http2-settings: AAMAAABkAAQ")
    said = post("/", inner, *offer) + post("/", b"1")
    async with door(counting) as port, connected(port) as client:
        for start in range(0, len(said), step):
            await client.say(said[start : start + step])
        assert (await client.answer())[2] == b"%d" % len(inner)
        assert (await client.answer())[2] == b"1"
    assert calls == 2


async def test_an_offer_of_another_protocol_keeps_the_wish_to_close() -> None:
    async with door(echo) as port, connected(port) as client:
        await client.say(post("/", b"1", "connection: upgrade, close", "upgrade: h2c"))
        assert (await client.answer())[1][b"connection"] == b"close"
        assert await client.silence() == b""


async def test_an_answer_before_the_end_of_the_request_is_read_and_is_the_last() -> None:
    body = b"x" * 500_000
    async with door(curt) as port, connected(port) as client:
        await client.say(post("/", body)[:-1])
        status, headers, _ = await client.answer()
        assert (status, headers[b"connection"]) == (401, b"close")
        await client.say(b"x" + post("/", b""))
        assert await client.silence() == b""


async def test_an_answered_request_is_not_read_to_its_end() -> None:
    async with door(curt) as port, connected(port) as client:
        await client.say(b"POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000000000\r\n\r\n")
        assert (await client.answer())[0] == 401
        with pytest.raises(ConnectionError):
            await keep_sending(client, b"x" * 1_000_000, 1000)


async def test_an_answered_client_that_sends_slowly_is_left_after_a_while() -> None:
    async with door(curt) as port, connected(port) as client:
        await client.say(b"POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000000000\r\n\r\n")
        assert (await client.answer())[0] == 401
        with pytest.raises(ConnectionError):
            await keep_sending(client, b"x", 100, pause=0.05)


async def test_a_broken_chunk_ends_the_call_that_waits_for_it() -> None:
    waiting = Waiting()
    async with door(waiting) as port, connected(port) as client:
        await client.say(CHUNKED + b"1\r\na\r\n")
        await waiting.entered.wait()
        await client.say(b"no size\r\n")
        assert (await client.answer())[0] == 400
        assert await waiting.reason is ClientGone
        assert await client.silence() == b""


async def test_a_body_in_very_many_pieces_is_read() -> None:
    async with door(echo) as port, connected(port) as client:
        await client.say(CHUNKED + b"2\r\nab\r\n" * 20_000 + b"0\r\n\r\n")
        assert (await client.answer())[2] == b"40000"
        await client.say(post("/", b"1"))
        assert (await client.answer())[2] == b"1"


async def test_a_body_in_absurdly_many_pieces_is_refused() -> None:
    async with door(echo) as port, connected(port) as client:
        await client.say(CHUNKED + b"1\r\na\r\n" * 60_000 + b"0\r\n\r\n")
        assert (await client.answer())[0] == 400
        assert await client.silence() == b""


async def test_a_client_that_makes_much_work_of_few_bytes_waits_for_others() -> None:
    ended: list[str] = []

    async def noting(scope: Message, receive: Any, send: Send) -> None:
        await echo(scope, receive, send)
        ended.append(scope["path"])

    async with door(noting) as port, connected(port) as busy, connected(port) as other:
        await busy.say(CHUNKED.replace(b"/", b"/busy", 1) + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n")
        for _ in range(3):
            await other.say(post("/other", b""))
            await other.answer()
        await busy.answer()
        assert ended == ["/other"] * 3 + ["/busy"]


@pytest.mark.parametrize("count", [64, 65, 100, 1000])
async def test_many_requests_in_one_packet_are_answered_in_order(count: int) -> None:
    async with door(echo) as port, connected(port) as client:
        for _ in range(2):
            await client.say(b"GET / HTTP/1.1\r\n\r\n" * (count - 1) + post("/", b"last"))
            assert [(await client.answer())[2] for _ in range(count)] == [b"0"] * (count - 1) + [b"4"]


@pytest.mark.parametrize("step", [1, 100, 3000, 70_000, 1_000_000])
async def test_however_requests_are_cut_they_are_the_same_requests(step: int) -> None:
    sizes = [0, 10, 150_000, 1, 70_000]
    said = b"".join(post("/", b"x" * size) + CHUNKED + b"3\r\nabc\r\n" + TRAILERS for size in sizes)
    said = said[:1000] if step == 1 else said
    async with door(echo) as port, connected(port) as client:

        async def say() -> None:
            for start in range(0, len(said), step):
                await client.say(said[start : start + step])

        saying = asyncio.create_task(say())
        for size in sizes[: 2 if step == 1 else None]:
            assert (await client.answer())[2] == b"%d" % size
            assert (await client.answer())[2] == b"3"
        await saying


async def test_empty_lines_win_no_time() -> None:
    limits = {"header_timeout": 0.1}
    async with door(echo, **limits) as port, connected(port) as client:
        await client.say(b"\r\n")
        assert (await client.answer())[0] == 408


async def test_a_head_behind_a_long_body_is_not_counted_with_it() -> None:
    limits = {"max_header": 2048}
    async with door(echo, **limits) as port, connected(port) as client:
        await client.say(post("/", b"x" * 5000) + b"GET / HTTP/1.1\r\nhost: ")
        assert (await client.answer())[2] == b"5000"
        await client.say(b"gateway\r\n\r\n")
        assert (await client.answer())[2] == b"0"


async def test_a_connection_may_idle_for_a_while_after_its_last_answer() -> None:
    loop = asyncio.get_running_loop()
    async with door(echo, keep_alive=0.3) as port, connected(port) as client:
        for _ in range(4):
            await client.say(post("/", b"12345"))
            await client.answer()
            answered = loop.time()
            await asyncio.sleep(0.15)  # less than it may idle, and more than that altogether
        assert await client.silence() == b""
        assert 0.29 < loop.time() - answered < 2


async def test_a_call_may_take_longer_than_a_connection_may_idle() -> None:
    slow, entered = asyncio.Event(), asyncio.Event()

    async def app(scope: Message, receive: Any, send: Send) -> None:
        if scope["path"] == "/slow":
            entered.set()
            await slow.wait()
        await echo(scope, receive, send)

    async with door(app, keep_alive=0.1) as port, connected(port) as client:
        await client.say(post("/", b"1"))
        await client.answer()
        await client.say(post("/slow", b"12"))
        await entered.wait()
        await asyncio.sleep(0.3)  # the timer of the first answer has run out by now
        slow.set()
        assert (await client.answer())[2] == b"2"
        assert await client.silence() == b""
