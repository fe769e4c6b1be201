"""Stock openai and anthropic clients, with their default retries, whose calls people decide on: in two seconds, after
the hold, or never. Each ends with one execution, and the right answer or the right error.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anthropic
import openai
import orjson
import pytest

from policies.approvals import State
from policies.decision import Decision, Effect
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import Gate, gate
from tests.support.misbehaving import Misbehaving, Wire
from tests.support.register import Register

TEXT: Final = "It is done."
MESSAGES: Final[Any] = [{"role": "user", "content": "Pay the invoice."}]
CLIENTS: Final = ("openai", "anthropic")
REFUSED: Final = (openai.PermissionDeniedError, anthropic.PermissionDeniedError)


def script(document: Mapping[str, Any]) -> Decision:
    asked = dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))
    return ALLOWED if "approval" in document else asked


class Provider:
    """Both APIs, streaming and not; it counts what it does."""

    def __init__(self) -> None:
        self.done = 0

    async def chat(self, wire: Wire) -> None:
        if orjson.loads(await wire.body()).get("stream"):
            choice = {"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}
            event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            await self._say(wire, b"text/event-stream", b"data: %b\n\ndata: [DONE]\n\n" % orjson.dumps(event))
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        await self._say(wire, b"application/json", orjson.dumps(answer))

    async def messages(self, wire: Wire) -> None:
        usage = {"input_tokens": 1, "output_tokens": 1}
        message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": None, "usage": usage}
        if orjson.loads(await wire.body()).get("stream"):
            events: list[dict[str, Any]] = [
                {"type": "message_start", "message": {**message, "content": []}},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
                {"type": "message_stop"},
            ]
            said = b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in events)
            await self._say(wire, b"text/event-stream", said)
            return
        answer = {**message, "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn"}
        await self._say(wire, b"application/json", orjson.dumps(answer))

    async def _say(self, wire: Wire, kind: bytes, body: bytes) -> None:
        self.done += 1
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
        await wire.send(head % (kind, len(body)) + body)


async def say(g: Gate, client: str, streams: bool) -> str:
    """What a stock client is told, made as its manual has it."""
    root = f"http://127.0.0.1:{g.port}"
    if client == "openai":
        async with openai.AsyncOpenAI(api_key=AGENT_KEY, base_url=f"{root}/v1") as stock:
            if streams:
                text = ""
                async for chunk in await stock.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text
            whole = await stock.chat.completions.create(model="gpt-4o", messages=MESSAGES)
            return whole.choices[0].message.content or ""
    async with anthropic.AsyncAnthropic(api_key=AGENT_KEY, base_url=root) as claude:
        if streams:
            async with claude.messages.stream(model="claude-x", max_tokens=50, messages=MESSAGES) as stream:
                return await stream.get_final_text()
        message = await claude.messages.create(model="claude-x", max_tokens=50, messages=MESSAGES)
        return "".join(block.text for block in message.content if block.type == "text")


class Stage:
    """A gate before the provider, and the one approval that it opens."""

    def __init__(self, g: Gate, provider: Provider, store: Register) -> None:
        self.gate, self.provider, self.store = g, provider, store

    async def decide(self, yes: bool, after: float) -> None:
        """A person, so many seconds after they were asked."""
        async with asyncio.timeout(10):
            while not self.store.kept:
                await asyncio.sleep(0.005)
        await asyncio.sleep(after)
        (which,) = self.store.kept
        await self.gate.pipeline.holds.vote(which, "fay", ["finance"], yes, "Not this invoice.")

    @property
    def state(self) -> State:
        (approval,) = self.store.kept.values()
        return approval.state

    async def over(self) -> None:
        async with asyncio.timeout(10):
            while self.state is not State.DONE:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def staged(**approvals: Any) -> AsyncIterator[Stage]:
    provider, store = Provider(), Register()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", provider.chat)
        upstream.on("/v1/messages", provider.messages)
        url = f"http://127.0.0.1:{upstream.port}"
        async with gate(target_url=url, script=script, register=store, approvals=approvals) as g:
            yield Stage(g, provider, store)


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_call_that_a_person_allows_in_two_seconds_is_answered_as_if_nothing_had_been(
    client: str, streams: bool
) -> None:
    async with staged(hold_for="30s") as stage:
        asking = asyncio.create_task(say(stage.gate, client, streams))
        await stage.decide(True, 2.0)
        assert await asyncio.wait_for(asking, 1) == TEXT
        await stage.over()
        assert (stage.provider.done, len(stage.gate.ledger.outcomes())) == (1, 1)


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_call_that_a_person_denies_raises_what_they_said_and_is_not_tried_again(
    client: str, streams: bool
) -> None:
    async with staged(hold_for="30s") as stage:
        asking = asyncio.create_task(say(stage.gate, client, streams))
        await stage.decide(False, 0.1)
        with pytest.raises(REFUSED, match="Not this invoice"):
            await asking
        assert (stage.provider.done, stage.state, len(stage.gate.ledger.outcomes())) == (0, State.DENIED, 1)


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_call_that_a_person_allows_after_the_hold_runs_when_it_is_made_again(client: str) -> None:
    async with staged(hold_for="1s") as stage:
        with pytest.raises(REFUSED, match="held for finance"):
            await say(stage.gate, client, False)
        assert len(stage.gate.ledger.outcomes()) == 1, "no retry of its own could have helped"
        await stage.decide(True, 0.0)
        assert stage.provider.done == 0, "nothing runs without a caller"
        assert await say(stage.gate, client, False) == TEXT
        await stage.over()
        assert stage.provider.done == 1


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_stream_that_a_person_allows_after_the_hold_of_other_calls_has_waited_for_it(client: str) -> None:
    async with staged(hold_for="1s") as stage:
        asking = asyncio.create_task(say(stage.gate, client, True))
        await stage.decide(True, 3.0)
        assert await asyncio.wait_for(asking, 1) == TEXT
        await stage.over()
        assert stage.provider.done == 1


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_call_that_nobody_decides_on_raises_how_to_come_back_and_never_runs(client: str, streams: bool) -> None:
    async with staged(hold_for="1s", hold_streams_for="1s") as stage:
        with pytest.raises(REFUSED, match="repeat the identical call"):
            await say(stage.gate, client, streams)
        assert (stage.provider.done, stage.state, len(stage.gate.ledger.outcomes())) == (0, State.PENDING, 1)


async def test_a_client_that_gives_up_first_comes_back_by_itself_to_the_same_call() -> None:
    """Its time is shorter than a person's, and it repeats what timed out: the retry finds what the first has begun."""
    async with (
        staged(hold_for="30s") as stage,
        openai.AsyncOpenAI(api_key=AGENT_KEY, base_url=f"http://127.0.0.1:{stage.gate.port}/v1") as stock,
    ):
        # It says that it has ten minutes, and has half a second.
        patient = {"x-stainless-read-timeout": "600"}
        asking = asyncio.create_task(
            stock.with_options(timeout=0.5).chat.completions.create(
                model="gpt-4o", messages=MESSAGES, extra_headers=patient
            )
        )
        await stage.decide(True, 0.8)
        assert (await asking).choices[0].message.content == TEXT
        await stage.over()
        assert stage.provider.done == 1
        assert len(stage.store.kept) == 1
