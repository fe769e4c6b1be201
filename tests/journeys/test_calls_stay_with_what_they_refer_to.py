"""A call that refers to an earlier answer goes where that was made, whatever the weights say by then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import orjson
import pytest

from tests.support.exchanges import AGENT_KEY
from tests.support.gate import Gate, gate
from tests.support.misbehaving import HEAD, Misbehaving, Wire

RESPONSES = "/v1/responses"


def answers(name: str) -> Any:
    """A target whose every response is its own."""

    async def script(wire: Wire) -> None:
        body = orjson.loads(await wire.body())
        response = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": 1,
            "model": "gpt-4o",
            "status": "completed",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 1,
                "output_tokens": 1,
                "total_tokens": 2,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        }
        if body.get("stream"):
            event = {"type": "response.completed", "sequence_number": 1, "response": response}
            said, kind = b"event: response.completed\ndata: " + orjson.dumps(event) + b"\n\n", b"text/event-stream"
        else:
            said, kind = orjson.dumps(response), b"application/json"
        await wire.send(HEAD + b"content-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(said), said))

    return script


@asynccontextmanager
async def two(**sections: Any) -> AsyncIterator[tuple[Gate, openai.AsyncOpenAI, Misbehaving, Misbehaving]]:
    async with Misbehaving() as one, Misbehaving() as other:
        one.on(RESPONSES, answers("one"))
        other.on(RESPONSES, answers("other"))
        targets = [
            {"name": name, "kind": "openai", "url": f"http://127.0.0.1:{each.port}/v1"}
            for name, each in (("one", one), ("other", other))
        ]
        arms = [{"target": "one", "weight": 100}, {"target": "other", "weight": 0, "fallback": True}]
        routes = [{"name": "chat", "models": ["*"], "arms": arms}]
        async with gate(targets=targets, routes=routes, **sections) as found:
            base = f"http://127.0.0.1:{found.port}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key=AGENT_KEY, max_retries=0) as client:
                yield found, client, one, other


async def target_of(found: Gate) -> str:
    return str(found.ledger.outcomes()[-1]["target"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_where_it_began(stream: bool) -> None:
    async with two() as (found, client, _, _):
        if stream:
            async for _ in await client.responses.create(model="gpt-4o", input="hi", stream=True):
                pass
        else:
            assert (await client.responses.create(model="gpt-4o", input="hi")).id == "resp_one"
        (route,) = found.pipeline.assembly.table.routes
        route.weigh({"one": 0.0, "other": 100.0})
        assert (await client.responses.create(model="gpt-4o", input="new")).id == "resp_other"
        again = await client.responses.create(model="gpt-4o", input="go on", previous_response_id="resp_one")
        assert again.id == "resp_one"
        assert await target_of(found) == "one"


async def test_a_conversation_with_an_arm_that_was_taken_back_is_refused_in_words() -> None:
    async with two() as (found, client, _, _):
        await client.responses.create(model="gpt-4o", input="hi")
        (route,) = found.pipeline.assembly.table.routes
        route.weigh({"one": 0.0, "other": 100.0}, barred={"one"})
        with pytest.raises(openai.NotFoundError, match="Send the conversation itself"):
            await client.responses.create(model="gpt-4o", input="go on", previous_response_id="resp_one")


async def test_a_call_that_refers_to_what_is_not_known_here_is_tried_nowhere_else() -> None:
    async def refuses(wire: Wire) -> None:
        await wire.body()
        wire.reset()

    async with two() as (found, client, one, _):
        one.on(RESPONSES, refuses)
        with pytest.raises(openai.APIStatusError):
            await client.responses.create(model="gpt-4o", input="go on", previous_response_id="resp_unknown")
        assert "attempts" not in found.ledger.outcomes()[-1]
