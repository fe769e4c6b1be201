"""Calls cancelled at random moments leave no task, no socket, no dirty connection and no lost place in the queue."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator

import pytest

from gateway.carrier import Carrier, CarrierError, Limits, Origin, Timeouts
from tests.support.misbehaving import HEAD, Misbehaving, Wire


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def settle(upstream: Misbehaving) -> None:
    async with asyncio.timeout(10):
        await upstream.all_gone()
    for _ in range(5):
        await asyncio.sleep(0)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 5000):
        yield body[at : at + 5000]
        await asyncio.sleep(0)


async def numbered(wire: Wire) -> None:
    """Echo the body in chunks with a turn between them, so that there are many moments to be cancelled at."""
    body = await wire.body()
    await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    for at in range(0, len(body), 4000):
        piece = body[at : at + 4000]
        await wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await asyncio.sleep(0)
    await wire.send(b"0\r\n\r\n")


@pytest.mark.parametrize("seed", range(4))
async def test_a_thousand_calls_cancelled_at_random_leave_nothing_behind(seed: int) -> None:
    chance = random.Random(seed)
    async with Misbehaving() as upstream:
        upstream.on("/numbered", numbered)
        before = open_descriptors()
        tasks_before = len(asyncio.all_tasks())
        limits = Limits(connections=8, idle_connections=4)
        carrier = Carrier(Origin("http", "127.0.0.1", upstream.port), limits=limits, timeouts=Timeouts(connect=30))
        paths = [b"/numbered"] * 6 + [
            b"/ok",
            b"/close-in-body",
            b"/answers-early",
            b"/keep-alive-then-close",
            b"/interim",
        ]

        async def call(number: int) -> None:
            body = b"%06d" % number * 3000
            path = chance.choice(paths)
            reply = await carrier.send(b"POST", path, [], in_pieces(body) if number % 3 == 0 else body)
            try:
                got = b""
                while piece := await reply.read():
                    got += piece
            finally:
                reply.close()
            if path == b"/numbered":
                assert got == body  # a connection given back dirty would hand out somebody else's bytes

        async def cancelled(number: int) -> None:
            task = asyncio.create_task(call(number))
            for _ in range(chance.randrange(60)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except (asyncio.CancelledError, CarrierError):
                pass

        for start in range(0, 250, 25):
            await asyncio.gather(*(cancelled(number) for number in range(start, start + 25)))
            statistics = carrier.statistics()
            assert statistics.waiting == 0
            assert statistics.idle <= 4
        async with asyncio.timeout(10):  # nobody's place was lost: as many calls as fit still get through
            for number in range(1, 20, 3):
                try:
                    await call(number)
                except CarrierError:
                    continue
        await carrier.close()
        await settle(upstream)
        assert carrier.statistics().open == carrier.statistics().waiting == 0
        assert len(asyncio.all_tasks()) == tasks_before
        assert open_descriptors() == before


async def test_a_call_cancelled_in_every_turn_of_its_life_gives_its_slot_back() -> None:
    async with Misbehaving() as upstream:
        upstream.on("/numbered", numbered)
        carrier = Carrier(Origin("http", "127.0.0.1", upstream.port), limits=Limits(connections=1))
        for turns in range(60):
            task = asyncio.create_task(carrier.send(b"POST", b"/numbered", [], in_pieces(b"x" * 20000)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                task.result().close()
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with asyncio.timeout(2):
                (await carrier.send(b"GET", b"/ok", [])).close()
        await carrier.close()
        await settle(upstream)


async def test_a_waiting_call_that_is_cancelled_as_it_is_served_passes_the_connection_on() -> None:
    async with Misbehaving() as upstream:
        carrier = Carrier(Origin("http", "127.0.0.1", upstream.port), limits=Limits(connections=1))
        busy = await carrier.send(b"GET", b"/falls-silent", [])
        waiting = [asyncio.create_task(carrier.send(b"GET", b"/ok", [])) for _ in range(3)]
        while carrier.statistics().waiting < 3:
            await asyncio.sleep(0)
        busy.close()
        while carrier.statistics().open:
            await asyncio.sleep(0)
        waiting[0].cancel()  # its slot has been handed to it, and it has not run since
        async with asyncio.timeout(2):
            for task in waiting[1:]:
                reply = await task
                assert reply.status == 200
                reply.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await carrier.close()


async def test_a_cancelled_read_loses_nothing() -> None:
    go_on = asyncio.Event()

    async def two_halves(wire: Wire) -> None:
        await wire.send(HEAD + b"content-length: 4\r\n\r\nab")
        await go_on.wait()
        await wire.send(b"cd")

    async with Misbehaving() as upstream:
        upstream.on("/halves", two_halves)
        carrier = Carrier(Origin("http", "127.0.0.1", upstream.port))
        reply = await carrier.send(b"GET", b"/halves", [])
        assert await reply.read() == b"ab"
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await reply.read()
        go_on.set()
        assert await reply.read() == b"cd"
        assert reply.complete
        await carrier.close()
