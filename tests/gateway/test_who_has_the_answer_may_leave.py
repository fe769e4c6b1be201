"""A stream is answered with its protocol's last event: whoever leaves then has got it, whenever the target ends it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final

import anthropic
import openai
import orjson
import pytest

from gateway.mirroring import Mirrors
from gateway.traffic import Traffic
from tests.support.door import connected, post
from tests.support.exchanges import AGENT_KEY
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.misbehaving import Misbehaving, Script, Wire
from tests.support.till import Till
from tests.support.tried import Counted

CHAT: Final = "/v1/chat/completions"
HELLO: Final[Any] = [{"role": "user", "content": "Hello"}]
SSE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PRICE: Final = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
COST: Final = 7 * 1000 + 3 * 2000
"""Nano-dollars of every answer here."""
BUDGET: Final = {"node": "acme/support-bot", "window": "day", "limit_usd": 5, "mode": "strict"}
GAPS: Final = (0.001, 0.01, 0.2)
"""Seconds from an answer's last event to the end of its body."""
LONGER: Final = GAPS[1:]


def chunk(**more: Any) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + orjson.dumps({**head, **more}) + b"\n\n"


def choice(content: str | None, finish: str | None = None) -> Mapping[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content} if content else {}, "finish_reason": finish}]}


def event(**more: Any) -> bytes:
    return f"event: {more['type']}\n".encode() + b"data: " + orjson.dumps(more) + b"\n\n"


SAID: Final = chunk(**choice("hello ")) + chunk(**choice("there"))
FINISHED: Final = chunk(**choice(None, "stop"))
USAGE: Final = chunk(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})
DONE: Final = b"data: [DONE]\n\n"
CHATS: Final = SAID + FINISHED + USAGE + DONE
FAILED: Final = SAID + chunk(error={"message": "out of memory", "type": "server_error"})
MESSAGE: Final = (
    event(
        type="message_start",
        message={
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": 7, "output_tokens": 1},
        },
    )
    + event(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
    + event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "hello there"})
    + event(type="content_block_stop", index=0)
    + event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
    + event(type="message_stop")
)
RESPONSE: Final = {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [], "tools": []}
RESPONSES: Final = event(type="response.output_text.delta", delta="hello there", item_id="i") + event(
    type="response.completed",
    response={
        **RESPONSE,
        "status": "completed",
        "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
    },
)


def in_a_chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def streams(*pieces: bytes, gap: float) -> Script:
    """Sends the pieces, each by itself, and ends the body so many seconds later; never where that is infinite."""

    async def script(wire: Wire) -> None:
        await wire.body()
        await wire.send(SSE)
        for piece in pieces:
            await wire.send(in_a_chunk(piece))
        if gap == float("inf"):
            await wire.hang()
        else:
            await asyncio.sleep(gap)  # a target takes its time
            await wire.send(b"0\r\n\r\n")

    return script


class Place(Gate):
    """A gate whose route has one target, and who is told of its calls."""

    upstream: Misbehaving
    traffic: Traffic

    def counted(self) -> Mapping[str, int]:
        """The attempts at the target, by outcome."""
        return {word: count for met in self.traffic.met() for word, count in met.attempts.items()}

    async def rest(self) -> None:
        """Waits until no call is under way; asserts that nothing of one is left."""
        async with asyncio.timeout(5):
            while self.telemetry.in_flight:
                await asyncio.sleep(0)
        for pool in self.pipeline.attempts.fleet.pools.values():
            assert (pool.in_flight, [node.in_flight for node in pool.nodes]) == (0, [0] * len(pool.nodes))
        assert not any(self.till.pending.values())
        assert self.turnstile.inside == {}


@asynccontextmanager
async def place(
    script: Script, kind: str = "openai", others: Sequence[Any] = (), route: Mapping[str, Any] = MappingProxyType({})
) -> AsyncIterator[Place]:
    """The target does this for every call."""
    async with Misbehaving() as upstream:
        for path in (CHAT, "/v1/responses", "/v1/messages"):
            upstream.on(path, script)
        url = f"http://127.0.0.1:{upstream.port}" + ("/v1" if kind == "openai" else "")
        targets = [{"name": "t", "kind": kind, "url": url, "key": "the-operators-own-key", "price": PRICE}, *others]
        routes = [{"name": "all", "models": ["*"], "arms": [{"target": "t"}], **route}]
        async with gate(till=Till(), targets=targets, routes=routes, budgets=[BUDGET]) as found:
            here = Place(**vars(found))
            here.upstream = upstream
            here.traffic = here.pipeline.traffic = here.telemetry.traffic = Traffic(Counted())
            yield here


def gpt(here: Gate) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{here.port}/v1", api_key=AGENT_KEY, max_retries=0)


def claude(here: Gate) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{here.port}", api_key=AGENT_KEY, max_retries=0)


async def answered(here: Place) -> Mapping[str, Any]:
    """The one call's record; asserts that it, its attempt and its money are those of an answer."""
    record = await here.ledger.outcome()
    await here.rest()
    assert (record["code"], record["status"]) == ("ok", 200)
    assert (record["usage"]["input_tokens"], record["usage"]["output_tokens"]) == (7, 3)
    assert "estimated" not in record["usage"]
    assert "detail" not in record
    assert here.counted() == {"ok": 1}
    assert list(here.till.over.values()) == [COST]
    return record


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["", "usage"])
async def test_a_stock_client_that_closes_at_done_has_got_its_answer(options: Any, gap: float) -> None:
    async with place(streams(SAID, FINISHED, USAGE, DONE, gap=gap)) as here, gpt(here) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True, **options)
        said = [each async for each in stream]
        assert "".join(each.choices[0].delta.content or "" for each in said if each.choices) == "hello there"
        await answered(here)


@pytest.mark.parametrize("gap", LONGER)
async def test_a_stock_client_of_a_translated_stream_that_closes_at_done_has_got_its_answer(gap: float) -> None:
    async with place(streams(MESSAGE, gap=gap), "anthropic") as here, gpt(here) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        assert [each async for each in stream][-1].choices[0].finish_reason == "stop"
        await answered(here)


@pytest.mark.parametrize("gap", LONGER)
@pytest.mark.parametrize(("kind", "answer"), [("anthropic", MESSAGE), ("openai", CHATS)])
async def test_a_client_of_messages_that_closes_at_message_stop_has_got_its_answer(
    kind: str, answer: bytes, gap: float
) -> None:
    async with place(streams(answer, gap=gap), kind) as here, claude(here) as client:
        async with await client.messages.create(model="m", max_tokens=9, messages=HELLO, stream=True) as stream:
            async for each in stream:
                if each.type == "message_stop":
                    break
        await answered(here)


@pytest.mark.parametrize("gap", LONGER)
async def test_a_client_of_responses_that_closes_at_the_finished_one_has_got_its_answer(gap: float) -> None:
    async with place(streams(RESPONSES, gap=gap)) as here, gpt(here) as client:
        async with await client.responses.create(model="m", input="Hello", stream=True) as stream:
            async for each in stream:
                if each.type == "response.completed":
                    break
        await answered(here)


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def leaves(here: Gate, behind: bytes, how: Callable[[asyncio.StreamWriter], None]) -> None:
    """A client that leaves as soon as it has seen this."""
    said = orjson.dumps({"model": "m", "messages": HELLO, "stream": True})
    async with connected(here.port) as client:
        await client.say(post(CHAT, said, AUTHORIZED))
        await client.reader.readuntil(behind)
        how(client.writer)


@pytest.mark.parametrize("how", [reset, asyncio.StreamWriter.close, asyncio.StreamWriter.write_eof])
@pytest.mark.parametrize("gap", [0.01, float("inf")])
async def test_however_a_client_leaves_behind_the_last_event_it_has_got_its_answer(
    gap: float, how: Callable[[asyncio.StreamWriter], None]
) -> None:
    async with place(streams(SAID, FINISHED, USAGE, DONE, gap=gap)) as here:
        await leaves(here, DONE, how)
        await answered(here)


@pytest.mark.parametrize("how", [reset, asyncio.StreamWriter.close])
@pytest.mark.parametrize(
    ("pieces", "seen"),
    [((SAID,), b"there"), ((SAID, FINISHED), b'"stop"'), ((SAID, FINISHED, USAGE), b'"stop"')],
    ids=["in the middle", "at the finish reason", "at the token counts"],
)
async def test_a_client_that_leaves_before_the_last_event_has_left(
    pieces: Sequence[bytes], seen: bytes, how: Callable[[asyncio.StreamWriter], None]
) -> None:
    async with place(streams(*pieces, gap=float("inf"))) as here:
        await leaves(here, seen, how)
        record = await here.ledger.outcome()
        await here.rest()
        assert (record["code"], here.counted()) == ("client_gone", {"client_gone": 1})


async def test_who_waits_for_the_end_of_a_body_that_never_ends_gets_it_soon() -> None:
    said = orjson.dumps({"model": "m", "messages": HELLO, "stream": True})
    async with place(streams(CHATS, gap=float("inf"))) as here, connected(here.port) as client:
        await client.say(post(CHAT, said, AUTHORIZED))
        status, _, body = await asyncio.wait_for(client.answer(), 5)
        assert (status, body) == (200, SAID + FINISHED + DONE)
        await answered(here)
        await here.upstream.all_gone()


@pytest.mark.parametrize(
    "more",
    [b": bye\n\n", chunk(error={"message": "late"}), chunk(**choice(None, "abort"))],
    ids=["a comment", "an error", "that it has given up"],
)
async def test_what_a_target_says_behind_the_last_event_passes_and_changes_nothing(more: bytes) -> None:
    said = orjson.dumps({"model": "m", "messages": HELLO, "stream": True})
    async with place(streams(CHATS, more, gap=0)) as here, connected(here.port) as client:
        await client.say(post(CHAT, said, AUTHORIZED))
        assert (await asyncio.wait_for(client.answer(), 5))[2].endswith(DONE + more)
        await answered(here)


async def test_a_target_that_never_stops_talking_is_left_all_the_same() -> None:
    async def talks(wire: Wire) -> None:
        await wire.body()
        await wire.send(SSE + in_a_chunk(CHATS))
        while True:
            await wire.send(in_a_chunk(b": more\n\n"))
            await asyncio.sleep(0.01)  # a target takes its time

    async with place(talks) as here:
        await leaves(here, DONE, reset)
        await answered(here)
        await here.upstream.all_gone()


async def test_a_target_that_breaks_off_behind_the_last_event_has_answered() -> None:
    async def breaks(wire: Wire) -> None:
        await wire.body()
        await wire.send(SSE + in_a_chunk(CHATS))
        wire.reset()

    said = orjson.dumps({"model": "m", "messages": HELLO, "stream": True})
    async with place(breaks) as here, connected(here.port) as client:
        await client.say(post(CHAT, said, AUTHORIZED))
        assert (await asyncio.wait_for(client.answer(), 5))[2].endswith(DONE)
        await answered(here)


async def test_what_an_answer_takes_is_counted_to_its_last_event() -> None:
    async with place(streams(CHATS, gap=float("inf"))) as here:
        await leaves(here, DONE, asyncio.StreamWriter.close)
        record = await answered(here)
        (figures,) = here.traffic.figures("all").values()
        took = figures.total.latency.percentile(50)
        assert took is not None
        assert took / 1e6 < record["seconds"] - 0.2


async def test_a_connection_whose_answer_ends_soon_is_used_again() -> None:
    async with place(streams(CHATS, gap=0.01)) as here, gpt(here) as client:
        for _call in range(3):
            stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
            assert [each async for each in stream]
            await here.rest()
        assert (here.counted(), here.upstream.accepted) == ({"ok": 3}, 1)


@pytest.mark.parametrize("gap", [0.01, float("inf")])
async def test_a_client_that_closes_at_an_error_inside_its_stream_leaves_the_error_with_the_target(gap: float) -> None:
    async with place(streams(FAILED, gap=gap)) as here, gpt(here) as client:
        with pytest.raises(openai.APIError, match="out of memory"):
            async for _chunk in await client.chat.completions.create(model="m", messages=HELLO, stream=True):
                pass
        record = await here.ledger.outcome()
        await here.rest()
        assert (record["code"], here.counted()) == ("target_failed", {"stream_cut": 1})


async def test_a_call_whose_client_closes_at_done_is_mirrored_like_others() -> None:
    other = {"name": "other", "kind": "openai", "url": "http://127.0.0.1:9", "key": "its-key"}
    mirrored = {"mirror": {"target": "other", "share": 1}}
    async with place(streams(CHATS, gap=0.01), others=[other], route=mirrored) as here, gpt(here) as client:
        mirrors = here.pipeline.mirrors = Mirrors(
            here.till, here.pipeline.attempts.fleet, here.ledger.note, chance=lambda: 0.0
        )
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        assert [each async for each in stream]
        await here.rest()
        await mirrors.settled()
        ((_, compared),) = mirrors.all()
        assert compared.pairs == {(True, False): 1}
