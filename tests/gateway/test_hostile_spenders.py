"""Agents that want to spend more than they may, or the money of others; targets that lie; operators without luck."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from config.settings import BudgetSettings
from gateway.assembly import assemble
from gateway.exchange import Exchange
from policies.approvals import Approval
from policies.decision import Decision
from policies.money import MOST, nano
from policies.obligations import Obligations
from tests.gateway.test_lending import ASKED, CHAT, DAY, INPUT, OUTPUT, PRICED, ask, budgeted, chat
from tests.support.door import RawClient, connected, post
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.misbehaving import HEAD, Misbehaving, Script, Wire, says
from tests.support.people import deciding
from tests.support.target import target

JSON = HEAD + b"content-type: application/json\r\n"
SSE = HEAD + b"content-type: text/event-stream\r\nconnection: close\r\n\r\n"
HELLO = b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
RESPONSES = "/v1/responses"
STRICT = {**DAY, "mode": "strict"}
USUAL = 512
"""Tokens of an answer where nothing is known of any."""


@asynccontextmanager
async def behaving(script: Script, *budgets: dict[str, Any], **more: Any) -> AsyncIterator[Gate]:
    """A gate under these budgets, before a target that does this with every call."""
    priced = {**PRICED, **more.pop("target", {})}
    async with Misbehaving() as upstream:
        for path in ("/chat/completions", RESPONSES.removeprefix("/v1")):
            upstream.on(path, script)
        url = f"http://127.0.0.1:{upstream.port}"
        async with gate(target_url=url, target=priced, budgets=list(budgets), **more) as g:
            yield g


async def leaving(g: Gate, body: bytes, *, path: str = CHAT, when: Callable[[], bool]) -> Any:
    """The record of a call whose agent leaves once something holds."""
    async with connected(g.port) as client:
        await client.say(post(path, body, AUTHORIZED))
        async with asyncio.timeout(10):
            while not when():
                await asyncio.sleep(0)
    return await g.ledger.outcome()


def begun(g: Gate) -> Callable[[], bool]:
    """Whether the target has begun to answer."""
    exchanges: list[Exchange] = []
    reserve = g.pipeline.lender.reserve

    async def watched(x: Exchange) -> int | None:
        exchanges.append(x)
        return await reserve(x)

    g.pipeline.lender.reserve = watched  # type: ignore[method-assign]  # a look at what is under way
    return lambda: bool(exchanges) and exchanges[0].target_status is not None


def hangs_after(data: bytes) -> Script:
    async def script(wire: Wire) -> None:
        await wire.body()
        await wire.send(data)
        await wire.hang()

    return script


# --- agents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n", "max_tokens"])
async def test_a_number_that_nobody_can_pay_is_refused_in_few_words(name: str) -> None:
    budget = STRICT if name == "n" else {**STRICT, "limit_usd": 0.001}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        status, _, body = await ask(client, chat(**{name: 1e300 if name == "n" else 10**18}))
        assert (status, body["error"]["code"]) == (429, "budget_exhausted")
        assert len(body["error"]["message"]) < 500
        assert upstream.received == []


@pytest.mark.parametrize("budget", [DAY, STRICT])
async def test_whoever_leaves_before_an_answer_is_whole_pays_as_if_nothing_had_come(budget: dict[str, Any]) -> None:
    """Some servers send blanks while they think, and an answer that is not streamed is made when it comes."""
    async with behaving(hangs_after(JSON + b"content-length: 9999\r\n\r\n   "), budget) as g:
        record = await leaving(g, chat(max_tokens=2000), when=begun(g))
        (asked,) = g.till.asked
        (cost,) = g.till.over.values()
        assert record["usage"]["output_tokens"] == USUAL
        assert cost == (asked.want if budget is STRICT else USUAL * OUTPUT + record["usage"]["input_tokens"] * INPUT)


@pytest.mark.parametrize("said", [b"", b": thinking\n\n" * 9])
async def test_whoever_leaves_a_stream_before_it_says_anything_pays_for_what_the_model_may_have_thought(
    said: bytes,
) -> None:
    async with behaving(hangs_after(SSE + said), DAY) as g:
        record = await leaving(g, chat(stream=True), when=begun(g))
        assert record["usage"]["output_tokens"] == USUAL
        assert set(g.till.over.values()) == {USUAL * OUTPUT + record["usage"]["input_tokens"] * INPUT}


async def test_whoever_leaves_a_stream_in_the_middle_pays_for_what_has_passed() -> None:
    async with behaving(hangs_after(SSE + HELLO * 3), DAY) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        await client.reader.readuntil(b"hello")
        client.hang_up()
        assert (await g.ledger.outcome())["usage"]["output_tokens"] in (2, 3, 4)


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/1.png"}}]}]


@pytest.mark.parametrize(
    ("path", "body", "least"),
    [
        (CHAT, {"messages": IMAGE}, 40_000),
        (RESPONSES, {"input": "go on", "previous_response_id": "resp_1"}, 128_000),
        (RESPONSES, {"input": "go on", "tools": [{"type": "web_search"}]}, 128_000),
    ],
    ids=["an image", "a stored conversation", "what a search finds"],
)
async def test_whoever_leaves_early_pays_for_what_the_target_was_made_to_read(
    path: str, body: dict[str, Any], least: int
) -> None:
    more = {"context_window": 128_000}
    async with behaving(hangs_after(SSE + HELLO), {**DAY, "limit_usd": 50}, target=more) as g:
        arguments = {"model": "gpt-4o-mini", "stream": True, **body}
        record = await leaving(g, orjson.dumps(arguments), path=path, when=begun(g))
        assert record["usage"]["input_tokens"] >= least
        (asked,) = g.till.asked
        assert least * INPUT <= max(g.till.over.values()) <= asked.want


async def test_an_answer_that_is_made_in_the_background_costs_all_that_was_lent_for_it() -> None:
    answer = b'{"id":"resp_1","status":"queued","background":true,"output":[],"usage":null}'
    body = orjson.dumps({"model": "gpt-4o-mini", "input": "hi", "background": True, "max_output_tokens": 3000})
    async with behaving(says(JSON + b"content-length: %d\r\n\r\n" % len(answer) + answer), DAY) as g:
        async with connected(g.port) as client:
            await client.say(post(RESPONSES, body, AUTHORIZED))
            assert (await client.answer())[0] == 200
        await g.ledger.outcome()
        (asked,) = g.till.asked
        assert asked.want >= 3000 * OUTPUT
        assert set(g.till.over.values()) == {asked.want}


async def test_the_background_of_a_stream_is_paid_for_before_it_begins() -> None:
    body = {"model": "gpt-4o-mini", "input": "hi", "background": True, "max_output_tokens": 3000, "stream": True}
    async with behaving(hangs_after(SSE), DAY) as g:
        await leaving(g, orjson.dumps(body), path=RESPONSES, when=begun(g))
        (asked,) = g.till.asked
        assert asked.want >= 3000 * OUTPUT
        assert set(g.till.over.values()) == {asked.want}


async def test_leaving_early_is_no_way_around_a_limit_on_tokens() -> None:
    limits = [{"node": "acme", "tokens_per_minute": 5000}]
    async with behaving(hangs_after(SSE), limits=limits) as g:
        record = await leaving(g, chat(stream=True), when=begun(g))
        used = record["usage"]["input_tokens"] + record["usage"]["output_tokens"]
        assert [tokens for _, tokens in g.turnstile.left] == [used]
        assert used > USUAL


async def test_a_route_that_the_policy_wants_only_after_the_loan_was_made_is_not_taken() -> None:
    def fickle(document: Any) -> Decision:
        if document["call"]["arguments"]["max_tokens"] == 1000:
            return ALLOWED
        return dataclasses.replace(ALLOWED, obligations=Obligations(route="renamed"))

    async with target() as upstream, budgeted(upstream, {**STRICT, "limit_usd": 0.01}, script=fickle) as g:
        async with connected(g.port) as client:
            _, _, body = await ask(client, chat(max_tokens=1000))
            assert body["error"]["code"] == "policy_denied"
            await g.ledger.outcome()
            assert upstream.received == []
            assert set(g.till.over.values()) == {0}


# --- waiting for money ------------------------------------------------------------------------------------------------


async def waiting(g: Gate, count: int) -> None:
    async with asyncio.timeout(10):
        while g.pipeline.lender.queues.waiting < count:
            await asyncio.sleep(0)


def embedding(size: int) -> bytes:
    """A call that cannot be lowered, and needs what so many bytes cost."""
    body = orjson.dumps({"model": "text-1", "input": ""})
    return body.replace(b'""', b'"%b"' % (b"x" * (size - len(body))))


async def embed(client: RawClient, size: int) -> None:
    await client.say(post("/v1/embeddings", embedding(size), AUTHORIZED))


async def test_a_call_that_needs_little_does_not_wait_behind_one_that_needs_much() -> None:
    budget = {**DAY, "limit_usd": 0.1}
    async with target() as upstream, budgeted(upstream, budget, patience=30) as g:
        async with connected(g.port) as much, connected(g.port) as little:
            g.till.pending[g.account(budget).key] = nano(0.09)
            await embed(much, 2000)
            await waiting(g, 1)
            await embed(little, 500)
            assert (await asyncio.wait_for(little.answer(), 10))[0] == 200
            assert g.pipeline.lender.queues.waiting == 1


async def test_a_call_that_needs_as_much_as_those_who_wait_waits_behind_them() -> None:
    budget = {**DAY, "limit_usd": 0.1}
    async with target() as upstream, budgeted(upstream, budget, patience=30) as g:
        async with connected(g.port) as first, connected(g.port) as second:
            key = g.account(budget).key
            g.till.pending[key] = nano(0.1)
            await embed(first, 2000)
            await waiting(g, 1)
            g.till.pending[key] = nano(0.07)
            asked = len(g.till.asked)
            await embed(second, 2000)
            await waiting(g, 2)
            assert len(g.till.asked) == asked, "nobody has asked for the second one"
            assert (await asyncio.wait_for(first.answer(), 10))[0] == 200
            assert (await asyncio.wait_for(second.answer(), 10))[0] == 200


async def test_nobody_is_told_that_money_is_lent_to_others_before_somebody_has_looked() -> None:
    """All of these give up at the same time; what the first one needs is not there, what the others need is."""
    budget = {**DAY, "limit_usd": 0.1}
    async with target() as upstream, budgeted(upstream, budget, patience=0.3) as g:
        async with connected(g.port) as first, connected(g.port) as much, connected(g.port) as little:
            key = g.account(budget).key
            g.till.pending[key] = nano(0.1)
            await embed(first, 400)
            await waiting(g, 1)
            await embed(much, 5000)
            await waiting(g, 2)
            await embed(little, 600)
            await waiting(g, 3)
            g.till.pending[key] = nano(0.09)
            answers = await asyncio.wait_for(asyncio.gather(first.answer(), much.answer(), little.answer()), 10)
            assert [status for status, _, _ in answers] == [200, 429, 200]
            assert b"budget_contended" in answers[1][2]


async def test_a_loan_that_is_being_made_when_patience_ends_is_waited_for() -> None:
    budget = {**DAY, "limit_usd": 0.1}
    async with target() as upstream, budgeted(upstream, budget, patience=0.2) as g, connected(g.port) as client:
        key = g.account(budget).key
        g.till.pending[key] = nano(0.1)
        await embed(client, 400)
        await waiting(g, 1)
        g.till.slow = asyncio.Event()
        g.till.pending[key] = 0
        g.pipeline.lender.queues.returned((g.account(budget),))
        async with asyncio.timeout(10):
            while not g.till.loans:
                await asyncio.sleep(0)
        await asyncio.sleep(0.3)
        g.till.slow.set()
        assert (await asyncio.wait_for(client.answer(), 10))[0] == 200


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [b"201 Created", b"203 From Elsewhere", b"299 Odd"])
async def test_an_answer_costs_what_it_says_whatever_success_is_called(status: bytes) -> None:
    answer = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    head = JSON.replace(b"200 OK", status) + b"content-length: %d\r\n\r\n" % len(answer)
    async with behaving(says(head + answer), DAY) as g, connected(g.port) as client:
        await ask(client, chat())
        await g.ledger.outcome()
        assert set(g.till.over.values()) == {7 * INPUT + 3 * OUTPUT}


async def test_a_stream_is_cut_for_its_money_whatever_success_is_called() -> None:
    async def goes_on(wire: Wire) -> None:
        await wire.body()
        await wire.send(SSE.replace(b"200 OK", b"201 Created"))
        while True:
            await wire.send(HELLO * 10)

    async with behaving(goes_on, {**STRICT, "limit_usd": 0.1}) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True, max_tokens=50), AUTHORIZED))
        status, _, body = await asyncio.wait_for(client.answer(), 10)
        assert status == 201
        assert b'"finish_reason":"length"' in body
        assert (await g.ledger.outcome())["usage"]["output_tokens"] < 200


async def test_what_a_target_says_of_its_cost_is_no_more_than_can_be_kept() -> None:
    dear = {"price": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 1_000_000}}
    answer = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2**63}})
    script = says(JSON + b"content-length: %d\r\n\r\n" % len(answer) + answer)
    async with behaving(script, {**DAY, "limit_usd": 9_000_000}, target=dear) as g:
        async with connected(g.port) as client:
            await ask(client, chat())
        assert round((await g.ledger.outcome())["cost_usd"] * 1e9) == MOST
        assert g.telemetry.cost["primary"] == MOST
        assert set(g.till.over.values()) == {MOST}


async def test_what_a_model_thinks_unseen_is_lent_before_the_next_stream() -> None:
    """Else a thousand streams at once would each borrow for the few words that pass."""
    usage = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 20_003}})
    stream = SSE + HELLO * 3 + b"data: " + usage + b"\n\ndata: [DONE]\n\n"
    async with behaving(says(stream, Wire.close), {**DAY, "limit_usd": 50}) as g, connected(g.port) as client:
        for _ in range(2):
            await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
            await client.answer()
        async with asyncio.timeout(10):
            while len(g.till.over) < 2:
                await asyncio.sleep(0)
        first, second = g.till.asked
        assert first.want < 1000 * OUTPUT
        assert second.want > 20_000 * OUTPUT
        assert g.pipeline.lender.overruns == 1


# --- operators --------------------------------------------------------------------------------------------------------


async def test_an_answer_is_reckoned_with_that_one_of_its_targets_does_not_limit() -> None:
    url = "http://127.0.0.1:9"
    sections: dict[str, Any] = {
        "targets": [
            {"name": "short", "kind": "openai", "url": url, "max_output_tokens": 5, **PRICED},
            {"name": "long", "kind": "openai", "url": url, **PRICED},
        ],
        "routes": [{"name": "all", "models": ["*"], "arms": [{"target": "short"}, {"target": "long"}]}],
    }
    async with gate(budgets=[DAY], **sections) as g, connected(g.port) as client:
        await ask(client, chat(max_tokens=3000))
        await ask(client, chat())
        first, second = g.till.asked
        assert first.want >= 3000 * OUTPUT
        assert second.want >= 4096 * OUTPUT
        assert g.ledger.outcomes()[1]["max_tokens_clamped"] == 4096


async def test_no_more_is_lent_than_fits_into_the_models_context() -> None:
    more = {"context_window": 8000}
    async with target() as upstream, budgeted(upstream, DAY, target=more) as g, connected(g.port) as client:
        _, headers, _ = await ask(client, chat(max_tokens=10**9))
        assert b"x-weighbridge-max-tokens-clamped" not in headers
        (asked,) = g.till.asked
        assert 8000 * OUTPUT <= asked.want <= 8000 * OUTPUT + 1000 * INPUT


async def test_a_route_without_a_target_for_a_call_is_no_matter_of_its_price() -> None:
    targets = [{"name": "claude", "kind": "anthropic", "url": "http://127.0.0.1:9", **PRICED}]
    routes = [{"name": "all", "models": ["*"], "arms": [{"target": "claude"}]}]
    async with gate(budgets=[DAY], targets=targets, routes=routes) as g, connected(g.port) as client:
        await client.say(post("/v1/embeddings", orjson.dumps({"model": "claude-3", "input": "a"}), AUTHORIZED))
        _, _, answer = await client.answer()
        assert orjson.loads(answer)["error"]["code"] == "no_route"
        assert g.till.asked == []


def edited(g: Gate, *budgets: dict[str, Any]) -> None:
    """The operator writes these budgets in place of those that there were."""
    before = g.pipeline.assembly
    now = before.settings.model_copy(update={"budgets": tuple(map(BudgetSettings.model_validate, budgets))})
    g.pipeline.assembly = assemble(now, before)


async def test_a_stream_does_not_grow_beyond_a_limit_that_is_lowered_meanwhile() -> None:
    lowered = asyncio.Event()

    async def goes_on(wire: Wire) -> None:
        await wire.body()
        await wire.send(SSE + HELLO * 400)
        await lowered.wait()
        while True:
            await wire.send(HELLO * 10)

    async with behaving(goes_on, DAY) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
        async with asyncio.timeout(10):
            while not g.till.extended:
                await asyncio.sleep(0)
        edited(g, {**DAY, "limit_usd": 0.12})
        lowered.set()
        _, _, body = await asyncio.wait_for(client.answer(), 10)
        assert b'"finish_reason":"length"' in body
        assert (await g.ledger.outcome())["code"] == "budget_exhausted"
        assert max(g.till.extended) <= nano(0.12)


async def test_a_call_that_people_have_thought_about_is_paid_under_the_limits_of_now() -> None:
    def script(document: Any) -> Decision:
        return ALLOWED if "approval" in document else ASKED

    def lowers(_: Approval) -> bool:
        edited(g, {**DAY, "limit_usd": 0.0001})
        return True

    async with target() as upstream, budgeted(upstream, DAY, script=script) as g, connected(g.port) as client:
        async with deciding(g.pipeline.holds, lowers):
            _, _, body = await ask(client, chat())
        assert body["error"]["code"] == "budget_exhausted"
        assert body["error"]["budget"]["limit_usd"] == "0.0001"
        assert upstream.received == []


async def test_an_agent_that_moves_to_another_team_is_paid_for_by_that_one() -> None:
    team = {"node": "acme/red", "window": "day", "limit_usd": 5}
    agents = [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY}]
    async with target() as upstream, budgeted(upstream, agents=agents) as g, connected(g.port) as client:
        for number, name in enumerate((None, "red", "blue")):
            before = g.pipeline.assembly
            (agent,) = before.settings.agents
            budgets = (BudgetSettings.model_validate(team),)
            moved = {"agents": (agent.model_copy(update={"team": name}),), "budgets": budgets}
            g.pipeline.assembly = assemble(before.settings.model_copy(update=moved), before)
            assert (await ask(client, chat()))[0] == 200
            async with asyncio.timeout(10):
                while len(g.till.over) <= number:
                    await asyncio.sleep(0)
        assert len(g.till.asked) == 1


async def test_a_model_that_searches_unasked_is_known_by_the_name_that_its_target_has_for_it() -> None:
    sections: dict[str, Any] = {
        "targets": [{"name": "one", "kind": "openai", "url": "http://127.0.0.1:9", "context_window": 50_000, **PRICED}],
        "routes": [{"name": "all", "models": ["*"], "arms": [{"target": "one", "model": "sonar-pro"}]}],
    }
    async with gate(budgets=[DAY], **sections) as g, connected(g.port) as client:
        await ask(client, chat(max_tokens=10))
        (asked,) = g.till.asked
        assert asked.want >= 50_000 * INPUT


async def test_a_gateway_that_is_stopped_while_a_call_waits_for_money_refuses_it_and_lends_nothing() -> None:
    budget = {**DAY, "limit_usd": 0.1}
    async with AsyncExitStack() as later, target() as upstream:
        async with budgeted(upstream, budget, patience=30, door_limits={"drain": 0.05}) as g:
            g.till.pending[g.account(budget).key] = nano(0.1)
            client = await later.enter_async_context(connected(g.port))
            await embed(client, 400)
            await waiting(g, 1)
        assert (await client.answer())[0] == 503
        assert (await g.ledger.outcome())["code"] == "stopped"
        assert (g.till.loans, g.till.over, g.pipeline.lender.queues.waiting) == ({}, {}, 0)
