"""What an agent is told of its limits: which of them, and what stock clients make of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import orjson
import pytest

from adapters import registry
from adapters.base import Refusal
from gateway.allowances import limit_headers
from gateway.state.limits import EmbeddedLimits
from policies.limits import Limit, LimitReached, Standing
from tests.support.door import door

NOW = 1_795_235_400 * 10**9
HELLO: Any = [{"role": "user", "content": "Hello"}]


def test_of_limits_on_the_same_the_one_with_the_least_left_is_told() -> None:
    standings = [
        Standing(Limit("acme", "calls_per_minute", 600), 300, 30.0),
        Standing(Limit("acme/bot", "calls_per_minute", 60), 40, 20.0),
        Standing(Limit("acme/team", "calls_per_minute", 100), 70, 18.0),
        Standing(Limit("acme/bot", "concurrent", 5), 0, 0.0),
        Standing(Limit("acme/bot", "calls_per_session", 5), 0, 0.0),
        Standing(Limit("acme/bot", "tokens_per_minute", 1000), 900, 6.0),
        Standing(Limit("acme", "tokens_per_minute", 2000), 500, 45.0),
    ]
    for order in (standings, standings[::-1]):
        told = dict(limit_headers(registry.OPENAI, order, NOW))
        assert (told[b"x-ratelimit-limit-requests"], told[b"x-ratelimit-remaining-requests"]) == (b"60", b"40")
        assert (told[b"x-ratelimit-limit-tokens"], told[b"x-ratelimit-remaining-tokens"]) == (b"2000", b"500")


def test_nothing_is_told_where_no_limit_is_by_the_minute() -> None:
    assert limit_headers(registry.OPENAI, [Standing(Limit("acme", "concurrent", 5), 3, 0.0)], NOW) == []
    assert limit_headers(registry.ANTHROPIC, [], NOW) == []


# --- stock clients ----------------------------------------------------------------------------------------------------


class Limited:
    """An application that lets calls in within its limits and answers them with nothing in particular."""

    def __init__(self, *limits: Limit) -> None:
        self.limits = limits
        self.store = EmbeddedLimits()
        self.came = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        self.came += 1
        adapter = registry.speaking(scope["path"], any(name == b"anthropic-version" for name, _ in scope["headers"]))
        status, headers, body = 200, [(b"content-type", b"application/json")], b"{}"
        try:
            held = await self.store.enter(f"call {self.came}", "acme", self.limits, "=s", 1)
        except LimitReached as reached:
            retry_after = math.ceil(reached.retry_after) if reached.retry_after is not None else None
            refusal = Refusal(429, "rate_limited", "Too many.", "01CALL", retry_after is not None, retry_after)
            status, (headers, body) = 429, adapter.refusal(refusal)
            headers = headers + limit_headers(adapter, reached.standings, time.time_ns())
            if retry_after is not None:
                headers.append((b"retry-after", b"%d" % retry_after))
        else:
            headers += limit_headers(adapter, held.standings, time.time_ns())
            self.store.leave(held, 1)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def clients(application: Limited) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    async with (
        door(application) as port,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=1) as gpt,
        anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="k", max_retries=1) as claude,
    ):
        yield gpt, claude


async def test_stock_clients_wait_as_long_as_they_are_told_and_are_then_let_in() -> None:
    limited = Limited(Limit("acme", "calls_per_minute", 120))
    for number in range(120):
        await limited.store.enter(f"other {number}", "acme", limited.limits, "=s", 1)
    async with clients(limited) as (gpt, claude):
        began = time.monotonic()
        by_gpt, by_claude = await asyncio.gather(
            gpt.chat.completions.with_raw_response.create(model="m", messages=HELLO),
            claude.messages.with_raw_response.create(model="m", messages=HELLO, max_tokens=1),
        )
        assert time.monotonic() - began >= 1.0
    assert limited.came == 4, "each was refused once, and came again once"
    assert int(by_gpt.headers["x-ratelimit-remaining-requests"]) <= 1
    assert int(by_claude.headers["anthropic-ratelimit-requests-remaining"]) <= 1


async def test_stock_clients_do_not_come_again_where_waiting_does_not_help() -> None:
    limited = Limited(Limit("acme/bot", "calls_per_session", 1), Limit("acme", "calls_per_minute", 10))
    async with clients(limited) as (gpt, claude):
        await gpt.chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as openai_refused:
            await gpt.chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(anthropic.RateLimitError) as anthropic_refused:
            await claude.messages.create(model="m", messages=HELLO, max_tokens=1)
    assert limited.came == 3
    assert openai_refused.value.code == "rate_limited"
    told = openai_refused.value.response.headers
    assert (told["x-should-retry"], told["x-ratelimit-remaining-requests"]) == ("false", "9")
    assert "retry-after" not in told
    assert orjson.loads(anthropic_refused.value.response.content)["error"]["code"] == "rate_limited"
    assert anthropic_refused.value.response.headers["anthropic-ratelimit-requests-remaining"] == "9"
