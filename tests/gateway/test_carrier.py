"""The carrier over real sockets, against an upstream whose paths are misbehaviours; on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.carrier import (
    Carrier,
    CarrierError,
    ConnectFailed,
    ConnectTimeout,
    FirstByteTimeout,
    IdleTimeout,
    Limits,
    Origin,
    Reply,
    ReplyBroken,
    ReplyMalformed,
    Timeouts,
    TotalTimeout,
)
from tests.support.misbehaving import HEAD, OK, Misbehaving, Wire


@pytest.fixture
async def upstream() -> AsyncIterator[Misbehaving]:
    async with Misbehaving() as server:
        yield server


@pytest.fixture
async def carrier(upstream: Misbehaving) -> AsyncIterator[Carrier]:
    carrier = carrier_to(upstream)
    yield carrier
    await carrier.close()
    await upstream.all_gone()


def carrier_to(upstream: Misbehaving, timeouts: Timeouts | None = None, limits: Limits | None = None) -> Carrier:
    origin = Origin("http", "127.0.0.1", upstream.port)
    return Carrier(origin, timeouts=timeouts or Timeouts(first_byte=5, idle=5, total=20), limits=limits or Limits())


async def whole(reply: Reply) -> bytes:
    pieces = []
    while piece := await reply.read():
        pieces.append(piece)
    reply.close()
    return b"".join(pieces)


async def get(carrier: Carrier, path: str, method: bytes = b"GET") -> tuple[int, bytes]:
    reply = await carrier.send(method, path.encode(), [])
    try:
        return reply.status, await whole(reply)
    finally:
        reply.close()


async def until_idle(carrier: Carrier, connections: int = 0) -> None:
    async with asyncio.timeout(5):
        while carrier.statistics().open > connections:
            await asyncio.sleep(0.001)


# Well-behaved exchanges.


async def test_a_reply_has_its_status_its_headers_in_order_and_its_body(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    async def script(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 207 Odd\r\nX-B: 1 \t\r\nx-a:\r\nX-B:\t2\r\nContent-Length: 3\r\n\r\nabc")

    upstream.on("/headers", script)
    reply = await carrier.send(b"GET", b"/headers", [])
    assert reply.status == 207
    assert reply.headers == [(b"x-b", b"1"), (b"x-a", b""), (b"x-b", b"2"), (b"content-length", b"3")]
    assert await reply.read() == b"abc"
    assert reply.complete
    assert await reply.read() == b""


async def test_the_request_is_written_with_host_length_and_the_given_headers_only(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    seen: list[tuple[str, str, dict[str, str], bytes]] = []

    async def script(wire: Wire) -> None:
        seen.append((wire.method, wire.path, wire.headers, await wire.body()))
        await wire.send(OK)

    upstream.on("/v1/x?y=%20z", script)
    for method, body in [(b"POST", b"abc"), (b"POST", b""), (b"PUT", b""), (b"PATCH", b""), (b"GET", b"")]:
        await whole(await carrier.send(method, b"/v1/x?y=%20z", [(b"X-Key", b"v \xe9")], body))
    host = {"host": f"127.0.0.1:{upstream.port}", "x-key": "v \xe9"}
    assert seen == [
        ("POST", "/v1/x?y=%20z", {**host, "content-length": "3"}, b"abc"),
        ("POST", "/v1/x?y=%20z", {**host, "content-length": "0"}, b""),
        ("PUT", "/v1/x?y=%20z", {**host, "content-length": "0"}, b""),
        ("PATCH", "/v1/x?y=%20z", {**host, "content-length": "0"}, b""),
        ("GET", "/v1/x?y=%20z", host, b""),
    ]


@pytest.mark.parametrize("size", [1, 65536, 65537, 3_000_000])
async def test_a_body_of_any_size_arrives_unchanged(carrier: Carrier, size: int) -> None:
    body = os.urandom(size)
    assert await whole(await carrier.send(b"POST", b"/echo", [], body)) == body
    assert carrier.statistics().idle == 1


async def test_a_body_given_in_pieces_arrives_unchanged(carrier: Carrier) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for size in (0, 1, 0, 100_000, 17, 2_000_000):
            yield b"x" * size

    assert await whole(await carrier.send(b"POST", b"/echo", [], pieces())) == b"x" * 2_100_018
    assert carrier.statistics().idle == 1


async def test_a_body_given_in_no_pieces_is_empty(carrier: Carrier) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        nothing: list[bytes] = []
        for piece in nothing:
            yield piece

    assert await whole(await carrier.send(b"POST", b"/echo", [], pieces())) == b""


async def test_replies_to_head_have_no_body_and_leave_the_connection_usable(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    async def chunked(wire: Wire) -> None:
        await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")

    upstream.on("/chunked", chunked)
    for path in ("/ok", "/chunked", "/ok"):
        reply = await carrier.send(b"HEAD", path.encode(), [])
        assert reply.complete
        assert await reply.read() == b""
    assert await get(carrier, "/ok") == (200, b"ok")
    assert upstream.accepted == 1


async def test_a_body_behind_a_reply_to_head_costs_the_connection(carrier: Carrier, upstream: Misbehaving) -> None:
    async def script(wire: Wire) -> None:
        await wire.send(OK)

    upstream.on("/body", script)
    assert await get(carrier, "/body", b"HEAD") == (200, b"")
    assert await get(carrier, "/ok") == (200, b"ok")
    assert upstream.accepted == 2


@pytest.mark.parametrize("status", [204, 304])
async def test_replies_that_cannot_have_a_body_have_none(carrier: Carrier, upstream: Misbehaving, status: int) -> None:
    async def script(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 %d X\r\ncontent-length: 5\r\n\r\n" % status)

    upstream.on("/bodiless", script)
    assert await get(carrier, "/bodiless") == (status, b"")
    assert await get(carrier, "/ok") == (200, b"ok")
    assert upstream.accepted == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/interim", b"ok"),
        ("/trickle", b"hello"),
        ("/close-delimited", b"hello"),
        ("/http-1.0", b"hello"),
        ("/http-1.0-keep-alive", b"hello"),
        ("/http-1.0-chunked", b"hello"),
        ("/connection-close", b"hello"),
        ("/length-too-short", b"hel"),
        ("/second-reply", b"hello"),
        ("/one-byte-more", b"hello"),
        ("/chunks-and-more", b"hello"),
        ("/keep-alive-then-close", b"ok"),
    ],
)
async def test_an_odd_but_whole_reply_is_handed_out_whole(carrier: Carrier, path: str, body: bytes) -> None:
    assert await get(carrier, path) == (200, body)


@pytest.mark.parametrize(
    "path",
    [
        "/close-delimited",
        "/http-1.0",
        "/http-1.0-chunked",
        "/connection-close",
        "/length-too-short",
        "/second-reply",
        "/one-byte-more",
        "/chunks-and-more",
        "/body-on-204",
        "/keep-alive-then-close",
    ],
)
async def test_a_connection_of_doubtful_state_is_not_used_again(
    carrier: Carrier, upstream: Misbehaving, path: str
) -> None:
    await get(carrier, path)
    await until_idle(carrier)
    assert await get(carrier, "/ok") == (200, b"ok")
    assert upstream.accepted == 2


@pytest.mark.parametrize("path", ["/ok", "/interim", "/trickle", "/http-1.0-keep-alive"])
async def test_a_connection_of_certain_state_is_used_again(carrier: Carrier, upstream: Misbehaving, path: str) -> None:
    for _ in range(3):
        await get(carrier, path)
    assert upstream.accepted == 1


# Misbehaviours.


@pytest.mark.parametrize(
    "path",
    [
        "/close-at-once",
        "/reset-at-once",
        "/close-in-head",
        "/close-in-body",
        "/reset-in-body",
        "/close-in-chunk",
        "/close-between-chunks",
        "/close-after-last-chunk-size",
        "/half-close-in-body",
    ],
)
async def test_a_reply_that_stops_early_is_broken(carrier: Carrier, path: str) -> None:
    with pytest.raises(ReplyBroken) as caught:
        await get(carrier, path)
    assert caught.value.sent
    assert caught.value.unanswered is (path in ("/close-at-once", "/reset-at-once"))
    await until_idle(carrier)


async def test_what_came_before_a_reply_broke_is_handed_out_first(carrier: Carrier, upstream: Misbehaving) -> None:
    reply = await carrier.send(b"GET", b"/close-in-body", [])
    await until_idle(carrier)
    assert await reply.read() == b"hello"
    assert not reply.complete
    for _ in range(2):
        with pytest.raises(ReplyBroken):
            await reply.read()


@pytest.mark.parametrize(
    "path",
    [
        "/interim-flood",
        "/switches-protocols",
        "/garbage",
        "/http-0.9",
        "/http-2",
        "/rtsp",
        "/rtsp-after-interim",
        "/status-099",
        "/status-letters",
        "/conflicting-lengths",
        "/negative-length",
        "/length-and-chunks",
        "/gzip-coding",
        "/gzip-then-chunked",
        "/chunked-then-gzip",
        "/chunked-twice",
        "/folded-header",
        "/space-in-name",
        "/bare-lf",
        "/nul-in-value",
        "/chunk-size-letters",
        "/chunk-size-negative",
        "/chunk-size-overflow",
        "/chunk-longer-than-its-size",
        "/huge-header",
        "/endless-header",
        "/endless-status-line",
        "/many-headers",
        "/length-in-trailers",
        "/endless-trailers",
        "/endless-chunk-extension",
    ],
)
async def test_what_is_not_a_reply_is_malformed(carrier: Carrier, path: str) -> None:
    with pytest.raises(ReplyMalformed) as caught:
        await get(carrier, path)
    assert caught.value.sent
    await until_idle(carrier)


async def test_errors_name_the_origin_and_nothing_that_was_sent_or_received(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    async def script(wire: Wire) -> None:
        await wire.body()
        await wire.send(HEAD + b"x-secret: hunter2\0\r\n\r\n")

    upstream.on("/secret", script)
    with pytest.raises(ReplyMalformed) as caught:
        await carrier.send(b"POST", b"/secret", [(b"authorization", b"Bearer hunter3")], b"hunter4")
    assert str(carrier.origin) in str(caught.value)
    assert "hunter" not in str(caught.value) + repr(caught.value) + repr(carrier)


async def test_nothing_listening_is_a_failed_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        carrier = Carrier(Origin("http", "127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(ConnectFailed) as caught:
            await carrier.send(b"GET", b"/", [])
        assert not caught.value.sent
        assert carrier.statistics().open == carrier.statistics().waiting == 0
        await carrier.close()


# Early replies.


@pytest.mark.parametrize("size", [10, 20_000_000])
async def test_an_answer_given_before_the_body_was_read_is_handed_out(
    carrier: Carrier, upstream: Misbehaving, size: int
) -> None:
    assert await whole_or_status(carrier, b"x" * size) == (413, b"large")
    await until_idle(carrier)
    assert upstream.accepted == 1


async def test_an_early_answer_stops_a_body_given_in_pieces_and_closes_it(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 10_000
        finally:
            closed.set()

    assert await whole_or_status(carrier, endless()) == (413, b"large")
    assert closed.is_set()
    await until_idle(carrier)


async def test_an_answer_that_came_before_a_write_failed_is_still_read() -> None:
    """The loop is kept busy until the answer and the reset behind it have arrived, so that the write fails first."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        closed = threading.Event()

        def answer_and_reset() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(10)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
            closed.set()

        thread = threading.Thread(target=answer_and_reset)
        thread.start()

        async def blocks_the_loop() -> AsyncIterator[bytes]:
            yield b"x" * 1000
            closed.wait(5)
            for _ in range(20):
                yield b"x" * 10_000

        carrier = Carrier(Origin("http", "127.0.0.1", listening.getsockname()[1]))
        reply = await carrier.send(b"POST", b"/", [], blocks_the_loop())
        assert (reply.status, await whole(reply)) == (413, b"large")
        await carrier.close()
        thread.join()


async def test_an_early_answer_interrupts_waiting_for_the_next_piece(carrier: Carrier, upstream: Misbehaving) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    reply = await carrier.send(b"POST", b"/answers-early-and-waits", [], stuck())
    assert (reply.status, await whole(reply)) == (401, b"no")
    await until_idle(carrier)


async def test_a_body_that_was_not_wholly_taken_costs_the_connection(carrier: Carrier, upstream: Misbehaving) -> None:
    async def answers_and_stops_reading(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport is a full one
        await wire.send(OK)
        await asyncio.sleep(0.2)

    upstream.on("/enough", answers_and_stops_reading)
    reply = await carrier.send(b"POST", b"/enough", [], b"x" * 20_000_000)
    assert await whole(reply) == b"ok"
    assert carrier.statistics().idle == 0
    await until_idle(carrier)


async def test_a_call_cancelled_while_its_body_is_being_stopped_drops_its_reply(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    stopping = asyncio.Event()
    stopped = asyncio.Event()

    async def slow_to_stop() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await stopped.wait()

    async def unfinished(wire: Wire) -> None:
        await wire.send(HEAD + b"content-length: 10\r\n\r\nhello")
        await wire.hang()

    upstream.on("/unfinished", unfinished)
    call = asyncio.create_task(carrier.send(b"POST", b"/unfinished", [], slow_to_stop()))
    await stopping.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until_idle(carrier)
    stopped.set()


async def whole_or_status(carrier: Carrier, body: bytes | AsyncIterator[bytes]) -> tuple[int, bytes]:
    reply = await carrier.send(b"POST", b"/answers-early", [], body)
    return reply.status, await whole(reply)


async def test_an_error_in_the_body_given_in_pieces_is_the_callers_own(carrier: Carrier, upstream: Misbehaving) -> None:
    class ClientGone(Exception):
        pass

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x"
        raise ClientGone

    with pytest.raises(ClientGone):
        await carrier.send(b"POST", b"/echo", [], breaks())
    await until_idle(carrier)


# Back-pressure.


async def test_a_slow_reader_holds_the_target_back(carrier: Carrier, upstream: Misbehaving) -> None:
    written = 0

    async def endless(wire: Wire) -> None:
        nonlocal written
        await wire.send(HEAD + b"\r\n")
        for _ in range(1000):
            await wire.send(b"x" * 65536)
            written += 65536
        wire.close()

    upstream.on("/endless", endless)
    reply = await carrier.send(b"GET", b"/endless", [])
    before = -1
    while written > before:  # until the target stands still
        before = written
        await asyncio.sleep(0.05)
    assert written < 20_000_000  # what sockets hold, out of 65 MB
    first = await reply.read()
    assert len(first) <= Limits().high_water + 2 * 262_144  # one read of the loop beyond the mark, at most
    assert len(first) + len(await whole(reply)) == 65_536_000


async def test_a_target_that_does_not_read_holds_the_body_back(upstream: Misbehaving) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 65536
            yield b"x" * 65536

    carrier = carrier_to(upstream, Timeouts(idle=0.3))
    with pytest.raises(IdleTimeout):
        await carrier.send(b"POST", b"/never-reads", [], endless())
    assert given < 20_000_000
    await carrier.close()


# Timeouts.


async def seconds_until(error: type[CarrierError], carrier: Carrier, path: str, body: bytes = b"") -> float:
    began = time.monotonic()
    with pytest.raises(error) as caught:
        await whole(await carrier.send(b"POST", path.encode(), [], body))
    assert caught.value.sent
    await until_idle(carrier)
    await carrier.close()
    return time.monotonic() - began


async def test_a_target_that_never_answers_is_given_up(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, Timeouts(first_byte=0.2))
    assert 0.2 <= await seconds_until(FirstByteTimeout, carrier, "/never-answers") < 0.5


async def test_a_trickled_head_does_not_extend_the_wait_for_it(upstream: Misbehaving) -> None:
    async def slow_head(wire: Wire) -> None:
        await wire.trickle(HEAD + b"x: " + b"y" * 1000, 0.02)

    upstream.on("/slow-head", slow_head)
    assert (
        0.2 <= await seconds_until(FirstByteTimeout, carrier_to(upstream, Timeouts(first_byte=0.2)), "/slow-head") < 0.5
    )


async def test_a_reply_that_falls_silent_is_given_up(upstream: Misbehaving) -> None:
    assert 0.2 <= await seconds_until(IdleTimeout, carrier_to(upstream, Timeouts(idle=0.2)), "/falls-silent") < 0.5


async def test_a_target_that_takes_nothing_of_a_large_body_is_given_up(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, Timeouts(idle=0.2))
    assert 0.2 <= await seconds_until(IdleTimeout, carrier, "/never-reads", b"x" * 20_000_000) < 1.0


async def test_an_exchange_may_not_take_longer_than_its_total(upstream: Misbehaving) -> None:
    async def drip(wire: Wire) -> None:
        await wire.send(HEAD + b"\r\n")
        await wire.trickle(b"x" * 1000, 0.01)

    upstream.on("/drip", drip)
    assert 0.2 <= await seconds_until(TotalTimeout, carrier_to(upstream, Timeouts(total=0.2)), "/drip") < 0.5


async def test_a_slow_reader_is_not_the_targets_silence(upstream: Misbehaving) -> None:
    async def big(wire: Wire) -> None:
        await wire.send(HEAD + b"content-length: 20000000\r\n\r\n")
        await wire.send(b"x" * 20_000_000)

    upstream.on("/big", big)
    carrier = carrier_to(upstream, Timeouts(idle=0.1))
    reply = await carrier.send(b"GET", b"/big", [])
    await asyncio.sleep(0.4)
    assert len(await whole(reply)) == 20_000_000
    await carrier.close()


async def test_a_slow_body_given_in_pieces_is_not_the_targets_silence(upstream: Misbehaving) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.4)
        yield b"b"

    carrier = carrier_to(upstream, Timeouts(idle=0.1, first_byte=0.1))
    assert await whole(await carrier.send(b"POST", b"/echo", [], slow())) == b"ab"
    await carrier.close()


async def test_a_target_that_does_not_accept_connections_is_given_up() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        carrier = Carrier(Origin("http", *address), timeouts=Timeouts(connect=0.2))
        with pytest.raises(ConnectTimeout) as caught:
            await carrier.send(b"GET", b"/", [])
        assert not caught.value.sent
        assert carrier.statistics().open == carrier.statistics().waiting == 0
        await carrier.close()
        for filler in fillers:
            filler.close()


async def test_time_this_process_stood_still_is_not_charged_to_the_target(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, Timeouts(idle=0.2, first_byte=0.2))
    await get(carrier, "/ok")
    exchange = asyncio.create_task(get(carrier, "/echo"))
    await asyncio.sleep(0)
    time.sleep(0.6)  # noqa: ASYNC251 - the stall itself
    assert await exchange == (200, b"")
    await carrier.close()


# The pool.


async def test_calls_in_turn_share_one_connection_and_calls_at_once_do_not(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    for _ in range(3):
        await get(carrier, "/ok")
    assert upstream.accepted == 1
    await asyncio.gather(*(get(carrier, "/ok") for _ in range(5)))
    assert upstream.accepted == 5
    assert carrier.statistics().idle == carrier.statistics().open == 5


async def test_calls_beyond_the_limit_wait_and_are_served_in_order(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, limits=Limits(connections=2))
    order: list[int] = []

    async def call(number: int) -> None:
        await get(carrier, "/ok")
        order.append(number)

    calls = [asyncio.create_task(call(number)) for number in range(20)]
    await asyncio.sleep(0)
    assert carrier.statistics().waiting == 20
    await asyncio.gather(*calls)
    assert upstream.accepted <= 2
    assert all(abs(number - place) <= 1 for place, number in enumerate(order))
    await carrier.close()


async def test_a_call_that_waits_too_long_for_a_connection_is_given_up(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, Timeouts(connect=0.2), Limits(connections=1))
    busy = await carrier.send(b"GET", b"/falls-silent", [])
    with pytest.raises(ConnectTimeout) as caught:
        await get(carrier, "/ok")
    assert not caught.value.sent
    busy.close()
    assert await get(carrier, "/ok") == (200, b"ok")
    await carrier.close()


async def test_a_waiting_call_gets_the_slot_of_a_connection_that_breaks(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, limits=Limits(connections=1))
    first = asyncio.create_task(get(carrier, "/close-at-once"))
    second = asyncio.create_task(get(carrier, "/ok"))
    with pytest.raises(ReplyBroken):
        await first
    assert await second == (200, b"ok")
    await carrier.close()


async def test_a_waiting_call_gets_the_slot_of_a_connection_that_cannot_be_opened() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        carrier = Carrier(Origin("http", "127.0.0.1", taken.getsockname()[1]), limits=Limits(connections=1))
        results = await asyncio.gather(*(get(carrier, "/") for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ConnectFailed] * 5
        await carrier.close()


async def test_no_more_than_the_allowed_connections_idle(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, limits=Limits(idle_connections=2))
    await asyncio.gather(*(get(carrier, "/ok") for _ in range(6)))
    await until_idle(carrier, 2)
    assert carrier.statistics().idle == 2
    await carrier.close()


async def test_the_connection_used_last_is_used_first(carrier: Carrier, upstream: Misbehaving) -> None:
    turns: list[int] = []

    async def count(wire: Wire) -> None:
        turns.append(wire.turn)
        await wire.send(OK)

    upstream.on("/count", count)
    await asyncio.gather(*(get(carrier, "/ok") for _ in range(3)))
    for _ in range(3):
        await get(carrier, "/count")
    assert turns == [2, 3, 4]


async def test_a_connection_that_idles_too_long_is_closed(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, limits=Limits(keep_alive=0.2))
    await get(carrier, "/ok")
    assert carrier.statistics().idle == 1
    async with asyncio.timeout(1):
        await upstream.all_gone()
    assert carrier.statistics().open == 0
    await carrier.close()


async def test_a_target_that_announces_its_patience_is_left_before_it_runs_out(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    async def impatient(wire: Wire) -> None:
        await wire.send(HEAD + b"keep-alive: timeout=1, max=100\r\ncontent-length: 0\r\n\r\n")

    upstream.on("/impatient", impatient)
    await get(carrier, "/impatient")
    async with asyncio.timeout(1):
        await upstream.all_gone()


async def test_an_idle_connection_the_target_closes_leaves_the_pool(carrier: Carrier, upstream: Misbehaving) -> None:
    close = asyncio.Event()

    async def later(wire: Wire) -> None:
        await wire.send(OK)
        await close.wait()
        wire.close()

    upstream.on("/later", later)
    await get(carrier, "/later")
    assert carrier.statistics().idle == 1
    close.set()
    await until_idle(carrier)
    assert carrier.statistics().idle == 0


async def test_a_byte_nobody_asked_for_closes_an_idle_connection(carrier: Carrier, upstream: Misbehaving) -> None:
    speak = asyncio.Event()

    async def talkative(wire: Wire) -> None:
        await wire.send(OK)
        await speak.wait()
        await wire.send(b"\r")
        await wire.hang()

    upstream.on("/talkative", talkative)
    await get(carrier, "/talkative")
    speak.set()
    await until_idle(carrier)


async def test_a_stale_connection_is_noticed_before_it_is_used(carrier: Carrier, upstream: Misbehaving) -> None:
    """The loop stands still while the target closes, so that only asking the socket can tell."""
    wires: list[Wire] = []

    async def keep(wire: Wire) -> None:
        wires.append(wire)
        await wire.send(OK)

    upstream.on("/keep", keep)
    await get(carrier, "/keep")
    await asyncio.sleep(1.5)
    os_socket = socket.socket(fileno=os.dup(wires[0].writer.get_extra_info("socket").fileno()))
    os_socket.shutdown(socket.SHUT_WR)
    os_socket.close()
    assert await get(carrier, "/ok", b"POST") == (200, b"ok")  # a POST is never repeated, so this one was sent once
    assert upstream.accepted == 2


async def close_on_second(wire: Wire) -> None:
    if wire.turn == 1:
        await wire.send(OK)
    else:
        wire.close()


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_a_safe_call_is_repeated_when_a_reused_connection_ends_unanswered(
    carrier: Carrier, upstream: Misbehaving, method: bytes
) -> None:
    upstream.on("/second", close_on_second)
    await get(carrier, "/second")
    reply = await carrier.send(method, b"/second", [])
    assert reply.status == 200
    reply.close()
    assert upstream.requests == ["/second"] * 3
    assert upstream.accepted == 2


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH"])
async def test_an_unsafe_call_is_sent_once_even_when_a_reused_connection_ends_unanswered(
    carrier: Carrier, upstream: Misbehaving, method: bytes
) -> None:
    upstream.on("/second", close_on_second)
    await get(carrier, "/second")
    with pytest.raises(ReplyBroken) as caught:
        await carrier.send(method, b"/second", [], b"x")
    assert caught.value.sent
    assert caught.value.unanswered
    assert upstream.requests == ["/second"] * 2


async def test_a_call_that_is_said_to_be_repeatable_is_repeated_as_a_safe_one(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    upstream.on("/second", close_on_second)
    await get(carrier, "/second")
    reply = await carrier.send(b"POST", b"/second", [], b"x", repeatable=True)
    assert reply.status == 200
    reply.close()
    assert upstream.accepted == 2


async def test_a_call_is_carried_over_a_unix_socket_on_kept_connections(tmp_path: Path) -> None:
    at = tmp_path / "s"
    async with Misbehaving(at=at) as upstream:
        origin, base = Origin.parse(f"unix://{at}")
        assert base == ""
        carrier = Carrier(origin)
        reply = await carrier.send(b"POST", b"/echo", [], b"hello")
        assert await whole(reply) == b"hello"
        assert await get(carrier, "/ok") == (200, b"ok")
        assert upstream.accepted == 1
        await carrier.close()


async def test_a_unix_socket_where_nobody_listens_is_no_connection(tmp_path: Path) -> None:
    carrier = Carrier(Origin.parse(f"unix://{tmp_path}/s")[0])
    with pytest.raises(ConnectFailed, match="no connection: No such file or directory") as caught:
        await carrier.send(b"GET", b"/", [])
    assert not caught.value.sent
    await carrier.close()


async def test_a_safe_call_is_not_repeated_once_a_byte_of_the_reply_has_come(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    async def half_an_answer(wire: Wire) -> None:
        await wire.send(b"H")
        wire.close()

    upstream.on("/half", half_an_answer)
    await get(carrier, "/ok")
    with pytest.raises(ReplyBroken):
        await get(carrier, "/half")
    assert upstream.requests == ["/ok", "/half"]


async def test_a_safe_call_is_repeated_once_and_not_more(carrier: Carrier, upstream: Misbehaving) -> None:
    await asyncio.gather(*(get(carrier, "/ok") for _ in range(4)))
    with pytest.raises(ReplyBroken):
        await get(carrier, "/close-at-once")
    assert upstream.requests.count("/close-at-once") == 2


async def test_a_safe_call_is_repeated_once_even_on_another_reused_connection(upstream: Misbehaving) -> None:
    carrier = carrier_to(upstream, limits=Limits(connections=1))
    await get(carrier, "/ok")
    first = asyncio.create_task(get(carrier, "/close-at-once"))
    await asyncio.sleep(0)
    second = asyncio.create_task(get(carrier, "/ok"))  # is next in line, and hands its connection to the repetition
    with pytest.raises(ReplyBroken):
        await first
    assert await second == (200, b"ok")
    assert upstream.requests == ["/ok", "/close-at-once", "/ok", "/close-at-once"]
    await carrier.close()


# Ends.


async def test_closing_a_reply_before_its_end_drops_the_connection(carrier: Carrier, upstream: Misbehaving) -> None:
    reply = await carrier.send(b"GET", b"/falls-silent", [])
    reply.close()
    reply.close()
    await upstream.all_gone()
    with pytest.raises(ReplyBroken):
        await reply.read()


async def test_closing_a_reply_that_has_arrived_unread_keeps_the_connection(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    reply = await carrier.send(b"GET", b"/ok", [])
    while carrier.statistics().busy:
        await asyncio.sleep(0)
    reply.close()
    with pytest.raises(RuntimeError):
        await reply.read()
    assert await get(carrier, "/ok") == (200, b"ok")
    assert upstream.accepted == 1


async def test_closing_the_carrier_ends_idle_busy_and_waiting_calls_and_returns_when_all_are_gone(
    upstream: Misbehaving,
) -> None:
    carrier = carrier_to(upstream, limits=Limits(connections=2))
    await get(carrier, "/ok")
    reading = await carrier.send(b"GET", b"/falls-silent", [])
    assert await reading.read() == b"hello"
    unanswered = asyncio.create_task(get(carrier, "/never-answers"))
    while carrier.statistics().busy < 2:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(get(carrier, "/ok"))
    read = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    assert carrier.statistics().waiting == 1
    await asyncio.gather(carrier.close(), carrier.close())
    assert carrier.statistics().open == carrier.statistics().waiting == 0
    for task, error in [(unanswered, ReplyBroken), (read, ReplyBroken), (waiting, ConnectFailed)]:
        with pytest.raises(error):
            await task
    with pytest.raises(ConnectFailed):
        await get(carrier, "/ok")
    await upstream.all_gone()


async def test_closing_the_carrier_while_calls_connect_leaves_nothing(upstream: Misbehaving) -> None:
    for turns in range(12):
        carrier = carrier_to(upstream, limits=Limits(connections=3))
        calls = [asyncio.create_task(get(carrier, "/ok")) for _ in range(6)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await carrier.close()
        assert carrier.statistics().open == carrier.statistics().waiting == 0
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert result == (200, b"ok") or isinstance(result, (ConnectFailed, ReplyBroken))
    await upstream.all_gone()


async def test_a_carrier_that_never_sent_closes_at_once() -> None:
    await Carrier(Origin("http", "127.0.0.1", 1)).close()


async def test_retiring_closes_idle_connections_now_and_busy_ones_after_their_reply(
    carrier: Carrier, upstream: Misbehaving
) -> None:
    go_on = asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.send(HEAD + b"content-length: 2\r\n\r\no")
        await go_on.wait()
        await wire.send(b"k")

    upstream.on("/slow", slow)
    await asyncio.gather(get(carrier, "/ok"), get(carrier, "/ok"))
    reply = await carrier.send(b"GET", b"/slow", [])
    carrier.retire()
    await until_idle(carrier, 1)
    go_on.set()
    assert await whole(reply) == b"ok"
    await until_idle(carrier)


async def test_a_carrier_says_what_it_is_doing(carrier: Carrier, upstream: Misbehaving) -> None:
    await get(carrier, "/ok")
    assert repr(carrier) == f"<Carrier http://127.0.0.1:{upstream.port}: 0 busy, 1 idle, 0 waiting>"


async def test_connections_send_small_writes_at_once(carrier: Carrier, upstream: Misbehaving) -> None:
    await get(carrier, "/ok")
    connection = next(iter(carrier.idle))
    assert connection.transport is not None
    raw = connection.transport.get_extra_info("socket")
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
