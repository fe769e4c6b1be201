"""`GET /approvals/{id}`: what an agent learns of its own held call, and nobody else's."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway.asking_after import PATH, ask_after
from policies.approvals import State
from tests.gateway.test_holding import asked, chat, only, register, script, until
from tests.support.door import RawClient, connected, door
from tests.support.exchanges import AGENT_KEY
from tests.support.gate import AUTHORIZED, Gate, gate

OTHER = "another-bots-own-key"
AGENTS = [
    {"name": "support-bot", "tenant": "acme", "key": AGENT_KEY},
    {"name": "other-bot", "tenant": "acme", "key": OTHER},
]


@asynccontextmanager
async def desk(**more: Any) -> AsyncIterator[tuple[Gate, int]]:
    """A gate with one held call, and the port where agents ask."""
    async with gate(script=script, agents=AGENTS, approvals={"hold_for": 0}, **more) as g:

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await ask_after(g.pipeline, scope, send)

        await asked(g)
        async with door(application) as port:
            yield g, port


async def after(
    client: RawClient, where: str, *headers: str, method: str = "GET"
) -> tuple[int, dict[bytes, bytes], Any]:
    lines = [f"{method} {where} HTTP/1.1", "host: gateway", *(headers or [AUTHORIZED])]
    await client.say("\r\n".join(lines).encode() + b"\r\n\r\n")
    if method == "HEAD":
        head = await client.reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1]), {}, None
    status, answered, body = await asyncio.wait_for(client.answer(), 10)
    return status, answered, orjson.loads(body)


async def test_an_agent_learns_how_its_call_stands() -> None:
    async with desk() as (g, port), connected(port) as client:
        status, headers, body = await after(client, PATH + only(g).id)
        assert (status, headers[b"content-type"]) == (200, b"application/json")
        assert (body["id"], body["state"], body["missing_approvals"]) == (only(g).id, "pending", ["finance"])
        assert "votes" not in body, "who has said what is not its business"
        assert (await after(client, PATH + only(g).id, method="HEAD"))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"authorization: Bearer {OTHER}"], 404),
        ([f"x-api-key: {OTHER}"], 404),
        (["authorization: Bearer nobodys"], 401),
        (["x-nothing: 1"], 401),
        ([AUTHORIZED, f"x-api-key: {OTHER}"], 401),
        ([AUTHORIZED, AUTHORIZED], 401),
        ([f"x-api-key: {AGENT_KEY}"], 200),
    ],
)
async def test_nobody_learns_of_the_calls_of_another_agent(headers: list[str], status: int) -> None:
    async with desk() as (g, port), connected(port) as client:
        found, _, body = await after(client, f"{PATH}{only(g).id}?wait=0.05", *headers)
        assert found == status
        assert status == 200 or only(g).id not in repr(body)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "apr_",
        "apr_01M80D04WTQB6YXZ6SYY7086J9",
        "apr_01M80D04WTQB6YXZ6SYY7086J9/votes",
        "grt_01M80D04WTQB6YXZ6SYY7086J9",
        "..%2f..%2fetc%2fpasswd",
        "apr_%7bt%7d:*",
        "apr_%0d%0aset-cookie:x",
        "apr_%00",
        "%ff%fe",
        "apr_" + "0" * 4000,
    ],
)
async def test_an_id_that_is_none_is_not_found_and_nobody_is_asked_for_it(name: str) -> None:
    async with desk() as (g, port), connected(port) as client:
        status, _, body = await after(client, PATH + name)
        assert (status, body["error"]["code"]) == (404, "no_route")
        assert g.pipeline.holds.waiting == 0


@pytest.mark.parametrize(
    "query",
    ["wait=-1", "wait=nan", "wait=inf", "wait=", "wait=1&wait=2", "wait=1e9", "wait=%D9%A3", "wait=1.2.3", "other=1",
     "wait=99999999999999", "wait=5;wait=6", "wait[]=5"],
)  # fmt: skip
async def test_a_query_that_says_something_else_is_refused(query: str) -> None:
    async with desk() as (g, port), connected(port) as client:
        status, _, body = await after(client, f"{PATH}{only(g).id}?{query}")
        assert (status, body["error"]["code"]) == (400, "malformed_call")


@pytest.mark.parametrize("query", ["", "&", "wait=0", "wait=0.01", "wait=" + urllib.parse.quote("0.01")])
async def test_a_query_that_says_hardly_anything_is_answered_at_once(query: str) -> None:
    async with desk() as (g, port), connected(port) as client:
        assert (await after(client, f"{PATH}{only(g).id}?{query}"))[0] == 200


async def test_other_methods_are_refused() -> None:
    async with desk() as (g, port), connected(port) as client:
        status, headers, _ = await after(client, PATH + only(g).id, AUTHORIZED, method="DELETE")
        assert (status, headers[b"allow"]) == (405, b"GET, HEAD")


async def test_who_asks_to_wait_hears_of_the_decision_when_it_is_taken() -> None:
    async with desk() as (g, port), connected(port) as client:
        asking = asyncio.create_task(after(client, f"{PATH}{only(g).id}?wait=60"))
        await until(lambda: g.pipeline.holds.waiting == 1)
        await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
        status, _, body = await asyncio.wait_for(asking, 1)
        assert (status, body["state"]) == (200, "approved")
        assert body["use_by"] > body["created"]
        assert g.pipeline.holds.waiting == 0
        status, _, body = await after(client, f"{PATH}{only(g).id}?wait=60")
        assert body["state"] == "approved", "nothing is left to wait for"


async def test_who_stops_listening_is_waited_for_no_longer() -> None:
    async with desk() as (g, port):
        async with connected(port) as client:
            await client.say(
                f"GET {PATH}{only(g).id}?wait=60 HTTP/1.1\r\nhost: gateway\r\n{AUTHORIZED}\r\n\r\n".encode()
            )
            await until(lambda: g.pipeline.holds.waiting == 1)
        await until(lambda: g.pipeline.holds.waiting == 0)
        assert only(g).state is State.PENDING


async def test_a_gateway_that_is_stopped_says_so_to_those_who_wait() -> None:
    async with gate(script=script, approvals={"hold_for": 0}) as g:
        await asked(g, chat())

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await ask_after(g.pipeline, scope, send)

        async with AsyncExitStack() as outer:
            async with door(application, drain=0.05) as port:
                client = await outer.enter_async_context(connected(port))
                asking = asyncio.create_task(after(client, f"{PATH}{only(g).id}?wait=60"))
                await until(lambda: g.pipeline.holds.waiting == 1)
            status, headers, body = await asking
        assert (status, headers[b"retry-after"]) == (503, b"2")
        assert "stopped" in body["error"]["message"]


async def test_a_store_that_is_away_is_no_missing_call() -> None:
    async with desk() as (g, port), connected(port) as client:
        register(g).failure = "away"
        status, headers, body = await after(client, f"{PATH}apr_01M80D04WTQB6YXZ6SYY7086J9")
        assert (status, headers[b"retry-after"], body["error"]["code"]) == (503, b"2", "ledger_unavailable")
