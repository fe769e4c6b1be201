"""How long a held call waits for people, what its client hears meanwhile, and what it is told in the end."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
import tracemalloc
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import openai
import pytest

from gateway.holding import Holds
from gateway.waiting import asynchronous, patience
from policies.approvals import State
from policies.decision import Decision
from tests.gateway.test_holding import ASKED, CHAT, asked, chat, held, only, register, until
from tests.gateway.test_second_attempts import FULL
from tests.support.door import connected, post
from tests.support.exchanges import AGENT_KEY, ALLOWED, exchange, settings
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.misbehaving import Misbehaving
from tests.support.people import deciding
from tests.support.register import Register
from tests.support.target import target

SOON = {"hold_for": "30s", "hold_streams_for": "30s"}
REPEATED = "x-stainless-retry-count: 1"


def openai_client(g: Gate, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=AGENT_KEY, base_url=f"http://127.0.0.1:{g.port}/v1", **more)


def anthropic_client(g: Gate, **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key=AGENT_KEY, base_url=f"http://127.0.0.1:{g.port}", **more)


# For how long


@pytest.mark.parametrize(
    ("headers", "streams", "seconds", "every"),
    [
        ({}, False, 50, None),
        ({"x-stainless-read-timeout": "600"}, False, 50, None),
        ({"x-stainless-read-timeout": "45"}, False, 35, None),
        ({"x-stainless-timeout": "20.0"}, False, 10, None),
        ({"x-stainless-timeout": "0.5"}, False, 0.25, None),
        ({"x-stainless-read-timeout": "NOT_GIVEN"}, False, 50, None),
        ({"x-stainless-read-timeout": "1e99"}, False, 50, None),
        ({"x-stainless-read-timeout": "-5"}, False, 50, None),
        ({"prefer": "wait=7"}, False, 7, None),
        ({"prefer": 'handling=lenient, WAIT="7"'}, False, 7, None),
        ({"prefer": "wait=99999999999"}, False, 50, None),
        ({"prefer": "wait=7"}, True, 7, 2.5),
        ({"prefer": "respond-async"}, False, 0, None),
        ({"prefer": "respond-async, wait=10"}, True, 0, None),
        ({"prefer": "no-respond-async-please"}, False, 50, None),
        ({}, True, 1800, 2.5),
        ({"x-stainless-read-timeout": "600"}, True, 1800, 2.5),
        ({"x-stainless-read-timeout": "1.5"}, True, 1800, 0.5),
        ({"x-stainless-read-timeout": "0"}, True, 1800, 0.1),
    ],
)
def test_a_call_waits_as_long_as_its_client_can_bear(
    headers: Mapping[str, str], streams: bool, seconds: float, every: float | None
) -> None:
    x = exchange()
    assert x.call is not None
    x.call = dataclasses.replace(x.call, stream=streams)
    x.headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    x.began = time.monotonic()
    holds = Holds(Register(), lambda *_: None)
    holds.under(settings())
    found = patience(x, holds)
    assert found.until - x.began == pytest.approx(seconds, abs=0.5)
    assert found.every == every
    assert asynchronous(x.headers) is (seconds == 0)


async def test_a_call_that_nobody_decides_on_in_time_is_told_how_to_come_back() -> None:
    async with target() as upstream, held(upstream.url, approvals={"hold_for": 0.05}) as g:
        status, headers, body = await asked(g)
        assert (status, body["error"]["code"]) == (403, "approval_pending")
        assert headers[b"x-should-retry"] == b"false"
        assert headers[b"location"].decode() == f"/approvals/{only(g).id}"
        assert body["error"]["approval"] == only(g).id
        assert "held for finance" in body["error"]["message"]
        assert "repeat the identical call" in body["error"]["message"]
        (outcome,) = g.ledger.outcomes()
        assert outcome["approval"] == only(g).id
        await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
        assert (await asked(g))[0] == 200
        assert len(upstream.received) == 1


async def test_a_client_that_wants_no_waiting_is_told_at_once() -> None:
    async with target() as upstream, held(upstream.url) as g:
        status, headers, body = await asked(g, chat(), "prefer: respond-async")
        assert (status, body["error"]["code"]) == (202, "approval_pending")
        assert headers[b"preference-applied"] == b"respond-async"
        assert headers[b"location"].decode() == f"/approvals/{only(g).id}"
        assert body["error"]["approval"] == only(g).id
        assert (await asked(g, chat(stream=True), "prefer: respond-async"))[0] == 202
        for each in list(register(g).kept):
            await g.pipeline.holds.vote(each, "fay", ["finance"], True)
        status, headers, body = await asked(g, chat(), "prefer: respond-async")
        assert (status, b"preference-applied" in headers) == (200, False)


async def test_a_call_that_cannot_be_told_for_certain_is_denied_and_not_held() -> None:
    async with target() as upstream, held(upstream.url) as g:
        status, _, answer = await asked(g, b'{"model":"gpt-4o","messages":[],"seed":9007199254740993}')
        assert (status, answer["error"]["code"]) == (403, "policy_denied")
        assert "Nobody can be asked to approve this call: " in answer["error"]["message"]
        assert (register(g).kept, upstream.received) == ({}, [])


# Streams


async def events(g: Gate, body: bytes = chat(stream=True), *headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    async with connected(g.port) as client:
        await client.say(post(CHAT, body, AUTHORIZED, "x-stainless-read-timeout: 0.03", *headers))
        return await asyncio.wait_for(client.answer(), 10)


async def test_a_held_stream_is_kept_alive_by_comments_and_then_is_what_the_target_says() -> None:
    async with target() as upstream, held(upstream.url, approvals=SOON) as g:
        call = asyncio.create_task(events(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        await asyncio.sleep(0.35)
        await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
        status, headers, body = await call
        assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
        assert headers[b"x-weighbridge-approval"].decode() == only(g).id
        comment = b": held %s\n\n" % only(g).id.encode()
        comments, rest = body.count(comment), body.replace(comment, b"")
        assert 2 <= comments <= 4
        assert rest == upstream.stream(include_usage=False)


async def read(g: Gate, client: str) -> None:
    """A whole stream, by a client that gives up after three tenths of a second of silence."""
    messages: Any = [{"role": "user", "content": "hello"}]
    if client == "openai":
        async with openai_client(g, timeout=0.3, max_retries=0) as stock:
            async for _ in await stock.chat.completions.create(model="gpt-4o", messages=messages, stream=True):
                pass
        return
    async with anthropic_client(g, timeout=0.3, max_retries=0) as claude:
        async for _ in await claude.messages.create(model="claude-x", max_tokens=5, messages=messages, stream=True):
            pass


@pytest.mark.parametrize("client", ["openai", "anthropic"])
@pytest.mark.parametrize("end", ["denied", "expired", "never", "target"])
async def test_a_stream_that_was_kept_open_tells_its_end_so_that_stock_clients_raise_it(client: str, end: str) -> None:
    more: dict[str, Any] = {"approvals": {"hold_streams_for": "700ms" if end == "never" else "30s"}}
    ns = [1_763_700_000_000_000_000]
    store = Register(lambda: ns[0])
    async with target() as upstream, held(f"{upstream.url}/status-429", register=store, **more) as g:

        async def later() -> None:
            await until(lambda: g.pipeline.holds.waiting == 1)
            await asyncio.sleep(0.15)
            if end == "expired":
                ns[0] += 3600 * 10**9
                await g.pipeline.holds.look()
            elif end != "never":
                await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], end == "target", "Not today.")

        telling = asyncio.create_task(later())
        with pytest.raises((openai.APIError, anthropic.APIError)) as raised:
            await read(g, client)
        await telling
        words = {"denied": "Not today.", "expired": "in time", "never": "held for finance", "target": "slow down"}
        assert words[end] in str(raised.value)
        assert len(upstream.received) == (end == "target")
        (outcome,) = g.ledger.outcomes()
        codes = {"denied": "approval_denied", "expired": "approval_expired", "never": "approval_pending"}
        assert outcome["code"] == codes.get(end, "ok")
        assert outcome["status"] == 200


async def test_a_target_can_fail_and_another_answer_while_a_stream_has_only_had_comments() -> None:
    async with Misbehaving() as broken, target() as upstream:
        broken.on("/chat/completions", FULL)
        targets = [
            {"name": "nobody", "kind": "openai", "url": "http://127.0.0.1:9"},
            {"name": "well", "kind": "openai", "url": upstream.url},
        ]
        arms = [{"target": "nobody"}, {"target": "well", "weight": 0, "fallback": True}]
        routes = [{"name": "all", "models": ["*"], "arms": arms}]

        def script(document: Mapping[str, Any]) -> Decision:
            return ALLOWED if "approval" in document else ASKED

        async with gate(targets=targets, routes=routes, script=script, approvals=SOON) as g:
            call = asyncio.create_task(events(g))
            await until(lambda: g.pipeline.holds.waiting == 1)
            await asyncio.sleep(0.15)
            await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
            status, _, body = await call
            assert status == 200
            assert body.endswith(upstream.stream(include_usage=False))
            assert b": held" in body


async def test_a_failure_in_a_stream_that_was_kept_open_is_told_to_all_who_wait_for_it() -> None:
    """One has had comments and learns of it in the stream; the others get the answer as it was."""
    async with target() as upstream, held(f"{upstream.url}/status-429", approvals=SOON) as g:
        first = asyncio.create_task(events(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        await asyncio.sleep(0.15)
        second = asyncio.create_task(asked(g, chat(stream=True)))
        await until(lambda: g.pipeline.holds.waiting == 2)
        await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
        status, _, body = await first
        assert (status, b"slow down" in body) == (200, True)
        status, _, answer = await second
        assert (status, answer) == (429, {"error": {"message": "slow down"}})
        assert len(upstream.received) == 1
        assert only(g).state is State.DONE


async def test_a_repeated_stream_is_told_again_from_its_beginning() -> None:
    async with target() as upstream, held(upstream.url, approvals=SOON) as g, deciding(g.pipeline.holds):
        _, _, first = await events(g)
        await until(lambda: only(g).state is State.DONE)
        status, headers, again = await events(g, chat(stream=True), REPEATED)
        assert (status, headers[b"content-type"], again) == (200, b"text/event-stream", first)
        assert len(upstream.received) == 1
        assert [each.get("repeated") for each in g.ledger.outcomes()] == [None, True]


async def test_news_that_come_faster_than_signs_of_life_put_none_off() -> None:
    async with held("http://127.0.0.1:9", approvals=SOON) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED, "x-stainless-read-timeout: 0.3"))
        await until(lambda: g.pipeline.holds.waiting == 1)
        heard = asyncio.create_task(client.reader.readuntil(b": held"))
        until_then = time.monotonic() + 5
        while not heard.done() and time.monotonic() < until_then:
            g.pipeline.holds.look_again()
            await asyncio.sleep(0.01)
        assert heard.done()


async def test_a_gateway_that_begins_to_stop_lets_those_who_wait_go_at_once() -> None:
    async with held("http://127.0.0.1:9", approvals=SOON) as g, AsyncExitStack() as outer:
        one, other, another = [await outer.enter_async_context(connected(g.port)) for _ in range(3)]
        await one.say(post(CHAT, chat(), AUTHORIZED))
        await other.say(post(CHAT, chat(stream=True), AUTHORIZED, "x-stainless-read-timeout: 0.03"))
        await until(lambda: g.pipeline.holds.waiting == 2)
        await other.reader.readuntil(b": held")
        g.pipeline.holds.let_go()
        status, headers, _ = await asyncio.wait_for(one.answer(), 5)
        assert (status, headers[b"location"][:11]) == (403, b"/approvals/")
        await asyncio.wait_for(other.reader.readuntil(b"approval_pending"), 5)
        await another.say(post(CHAT, chat(), AUTHORIZED))
        assert (await asyncio.wait_for(another.answer(), 5))[0] == 403
        assert {each.state for each in register(g).kept.values()} == {State.PENDING}


async def test_a_gateway_that_is_stopped_lets_those_who_wait_go_and_keeps_what_they_wait_for() -> None:
    store = Register()
    limits = {"drain": 0.05}
    async with AsyncExitStack() as outer:
        async with held("http://127.0.0.1:9", register=store, door_limits=limits, approvals=SOON) as g:
            one, other = [await outer.enter_async_context(connected(g.port)) for _ in range(2)]
            await one.say(post(CHAT, chat(), AUTHORIZED))
            await other.say(post(CHAT, chat(stream=True), AUTHORIZED, "x-stainless-read-timeout: 0.03"))
            await until(lambda: g.pipeline.holds.waiting == 2)
            await asyncio.sleep(0.15)
        status, headers, _ = await one.answer()
        assert (status, headers[b"retry-after"]) == (503, b"1")
        status, _, body = await other.answer()
        assert (status, b"no_healthy_target" in body) == (200, True)
    assert {each.state for each in store.kept.values()} == {State.PENDING}


# Many


class Nowhere:
    """A call that comes without a socket: what `Pipeline` is given, and what it says."""

    def __init__(self, number: int) -> None:
        self.body = chat(user=str(number))
        self.status = 0
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {AGENT_KEY}".encode()), (b"user-agent", b"stock")],
        }

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


async def test_many_held_calls_cost_little_memory_and_no_time_while_nothing_happens() -> None:
    """A tenth of what the manual tells of, measured as the allocator sees it; it has the figures of all."""
    count = 1000
    async with gate(script=ASKED, approvals={"hold_for": "1h"}) as g:
        store = register(g)
        calls = [Nowhere(number) for number in range(count)]
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tasks = [asyncio.create_task(g.pipeline(each.scope, each.receive, each.send)) for each in calls]
            await until(lambda: g.pipeline.holds.waiting == count)
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) / count
        finally:
            tracemalloc.stop()
        assert each < 30_000
        asks = len(g.engine.documents)
        await g.pipeline.holds._poll()
        await asyncio.sleep(0.1)  # each waiter has looked once
        spent = time.process_time()
        await g.pipeline.holds._poll()
        await asyncio.sleep(0.5)
        assert time.process_time() - spent < 0.1
        assert len(g.engine.documents) == asks
        store.miss()  # everybody looks
        for each_id in list(store.kept):
            await g.pipeline.holds.vote(each_id, "fay", ["finance"], False)
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
        assert {call.status for call in calls} == {403}
        assert g.pipeline.holds.waiting == 0
