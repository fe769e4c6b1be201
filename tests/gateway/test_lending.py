"""Money on a call's way: what is lent before anything is sent, what is given back, and what the agent is told."""

import asyncio
import dataclasses
import gc
from typing import Any, cast

import orjson
import pytest

from gateway.exchange import Exchange
from gateway.lending import Lending
from policies.approvals import State
from policies.budgets import Loan
from policies.decision import Decision, Effect
from policies.money import nano
from tests.policies.support import engine
from tests.support.door import RawClient, connected, post
from tests.support.exchanges import ALLOWED
from tests.support.gate import AUTHORIZED, gate
from tests.support.http_tools import http_tool
from tests.support.people import deciding
from tests.support.target import Target, target
from tests.support.till import Till, Turnstile

CHAT = "/v1/chat/completions"
PRICED = {"price": {"input_usd_per_mtok": 10, "output_usd_per_mtok": 100}}
INPUT, OUTPUT = 10_000, 100_000
"""Nano-dollars of a token."""
REPORTED = 7 * INPUT + 3 * OUTPUT
"""What the target's usual answer costs."""
DAY: dict[str, Any] = {"node": "acme/support-bot", "window": "day", "limit_usd": 5}
DENIED = dataclasses.replace(ALLOWED, effect=Effect.DENY, explanation="No.")
ASKED = dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))


def chat(**more: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], **more})


async def ask(client: RawClient, body: bytes, *headers: str) -> tuple[int, dict[bytes, bytes], Any]:
    await client.say(post(CHAT, body, AUTHORIZED, *headers))
    status, answered, content = await client.answer()
    return status, answered, orjson.loads(content)


def budgeted(upstream: Target, *budgets: dict[str, Any], **more: Any) -> Any:
    return gate(target_url=upstream.url, target={**PRICED, **more.pop("target", {})}, budgets=list(budgets), **more)


async def test_what_a_call_has_cost_is_posted_and_the_rest_is_given_back() -> None:
    async with target() as upstream, budgeted(upstream, DAY) as g, connected(g.port) as client:
        await ask(client, chat(max_tokens=50))
        record = await g.ledger.outcome()
        (asked,) = g.till.asked
        assert asked.want >= 50 * OUTPUT + len(chat(max_tokens=50)) * INPUT
        assert set(g.till.pending.values()) == {0}
        assert set(g.till.posted.values()) == {REPORTED}
        assert record["cost_usd"] == REPORTED / 1e9
        assert record["lent_usd"] == asked.want / 1e9
        (spent,) = g.till.ledger
        assert (spent.agent, spent.target, spent.input_tokens, spent.output_tokens) == ("support-bot", "primary", 7, 3)


async def test_a_call_that_no_budget_pays_for_is_in_the_cost_ledger_all_the_same() -> None:
    async with target() as upstream, budgeted(upstream) as g, connected(g.port) as client:
        await ask(client, chat())
        await g.ledger.outcome()
        assert g.till.asked == []
        assert [each.cost for each in g.till.ledger] == [REPORTED]


async def test_money_is_lent_before_anything_is_sent_and_not_while_the_policy_says_no() -> None:
    async with target() as upstream, budgeted(upstream, DAY, script=DENIED) as g, connected(g.port) as client:
        assert (await ask(client, chat()))[0] == 403
        assert g.till.asked == []
        assert g.till.over == {}


async def test_a_call_that_waits_for_people_borrows_nothing() -> None:
    held = {"approvals": {"hold_for": 0}}
    async with target() as upstream, budgeted(upstream, DAY, script=ASKED, **held) as g, connected(g.port) as client:
        _, _, body = await ask(client, chat())
        assert body["error"]["code"] == "approval_pending"
        assert g.till.asked == []


async def test_an_exhausted_budget_refuses_and_says_which_how_much_and_until_when() -> None:
    budget = {**DAY, "limit_usd": 0.0001}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        status, headers, body = await ask(client, chat())
        assert (status, body["error"]["code"]) == (429, "budget_exhausted")
        assert headers[b"x-should-retry"] == b"false"
        assert b"retry-after" not in headers
        assert "acme/support-bot" in body["error"]["message"]
        assert body["error"]["budget"]["limit_usd"] == "0.0001"
        assert body["error"]["budget"]["resets_at"].endswith("T00:00:00Z")
        assert upstream.received == []
        outcome = await g.ledger.outcome()
        assert "The budget of acme/support-bot for the day " in outcome["detail"]
        assert outcome["detail"] in body["error"]["message"]


async def test_an_agent_that_names_no_session_is_told_of_which_calls_the_budget_is_and_until_when() -> None:
    budget = {**DAY, "window": "session", "limit_usd": 0.0001}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        _, _, body = await ask(client, chat())
        assert "for all calls without an x-weighbridge-session on 20" in body["error"]["message"]
        assert "the call needs at least 0.00" in body["error"]["message"]
        assert body["error"]["budget"]["resets_at"].endswith("T00:00:00Z")
        _, _, body = await ask(client, chat(), "x-weighbridge-session: s-1")
        assert "The budget of acme/support-bot for this session does not pay" in body["error"]["message"]
        assert "resets_at" not in body["error"]["budget"]


async def test_a_call_waits_for_money_that_others_have_borrowed() -> None:
    budget = {**DAY, "limit_usd": 0.05}
    body = chat(max_tokens=150)
    async with (
        target() as upstream,
        budgeted(upstream, budget, target={"url": f"{upstream.url}/silence"}) as g,
        connected(g.port) as second,
    ):
        async with connected(g.port) as first:
            await first.say(post(CHAT, body, AUTHORIZED))
            await asyncio.wait_for(upstream.arrived.wait(), 10)
            key = g.account(budget).key
            g.till.pending[key] += nano(0.025)  # and another call has borrowed the rest
            await second.say(post(CHAT, body, AUTHORIZED))
            while g.telemetry.in_flight < 2 or not g.pipeline.lender.queues.waiting:
                await asyncio.sleep(0)
            upstream.arrived.clear()
            g.till.pending[key] -= nano(0.025)
        await asyncio.wait_for(upstream.arrived.wait(), 10)
        assert len(upstream.received) == 2


async def test_a_call_that_waited_in_vain_is_told_to_come_again() -> None:
    till = Till()
    budget = {**DAY, "limit_usd": 0.02}
    async with target() as upstream, budgeted(upstream, budget, till=till, patience=0.05) as g:
        async with connected(g.port) as client:
            key = g.account(budget).key
            till.pending[key] = nano(0.02)
            status, headers, body = await ask(client, chat())
            assert (status, body["error"]["code"]) == (429, "budget_contended")
            assert headers[b"retry-after"] == b"1"
            assert b"x-should-retry" not in headers
            assert body["error"]["budget"]["pending_usd"] == "0.02"


async def test_a_strict_budget_lowers_max_tokens_to_what_is_left_and_says_so() -> None:
    budget = {**DAY, "mode": "strict", "limit_usd": 0.01}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        _, headers, _ = await ask(client, chat(max_tokens=1000))
        lowered = int(headers[b"x-weighbridge-max-tokens-clamped"])
        assert 16 <= lowered < 100
        assert orjson.loads(upstream.received[0].body)["max_tokens"] == lowered
        assert [each["call"]["arguments"]["max_tokens"] for each in g.engine.documents] == [1000, lowered]
        assert (await g.ledger.outcome())["max_tokens_clamped"] == lowered


async def test_what_the_policy_forbids_once_it_is_lowered_is_not_sent_and_costs_nothing() -> None:
    def stubborn(document: Any) -> Decision:
        return ALLOWED if document["call"]["arguments"]["max_tokens"] == 1000 else DENIED

    budget = {**DAY, "mode": "strict", "limit_usd": 0.01}
    async with target() as upstream, budgeted(upstream, budget, script=stubborn) as g, connected(g.port) as client:
        assert (await ask(client, chat(max_tokens=1000)))[0] == 403
        await g.ledger.outcome()
        assert upstream.received == []
        assert set(g.till.pending.values()) == set(g.till.posted.values()) == {0}


async def test_what_a_call_has_borrowed_itself_is_nothing_that_others_have_when_the_policy_is_asked_again() -> None:
    budget = {**DAY, "mode": "strict", "limit_usd": 0.02}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        g.till.pending[g.account(budget).key] = nano(0.002)
        assert (await ask(client, chat(max_tokens=1000)))[0] == 200
        before, again = [each["budgets"] for each in g.engine.documents]
        assert before == again
        assert [each["pending_usd"] for each in again] == [0.002]


class Onlooker:
    """In the place of a trial: what its policy is told of the money of calls that are over."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def consider(self, x: Exchange) -> None:
        self.told += [orjson.loads(asked.question.budgets() or b"[]") for asked in x.asked]


async def test_a_policy_on_trial_is_told_how_budgets_stood_and_the_record_nothing_that_the_other_did_not_read() -> None:
    onlooker = Onlooker()
    async with target() as upstream, budgeted(upstream, DAY) as g, connected(g.port) as client:
        g.pipeline.engine = await engine('decision := {"decision": "ALLOW"} if input.agent.name')
        g.pipeline.trial = cast(Any, onlooker)
        assert (await ask(client, chat(max_tokens=50)))[0] == 200
        await g.ledger.outcome()
        assert set(g.till.posted.values()) == {REPORTED}
        assert [(each["posted_usd"], each["pending_usd"]) for (each,) in onlooker.told] == [(0.0, 0.0)]
        (decision,) = g.ledger.decisions()
        assert "budgets" not in decision["input"]


async def test_an_approved_call_is_not_lowered_because_people_approved_these_bytes() -> None:
    budget = {**DAY, "mode": "strict", "limit_usd": 0.01}

    def script(document: Any) -> Decision:
        return ALLOWED if "approval" in document else ASKED

    async with target() as upstream, budgeted(upstream, budget, script=script) as g, connected(g.port) as client:
        async with deciding(g.pipeline.holds) as fay:
            _, _, body = await ask(client, chat(max_tokens=1000))
            assert body["error"]["code"] == "budget_exhausted"
            assert upstream.received == []
            (asked,) = fay.seen
        assert (await g.pipeline.holds.store.get(asked)).state is State.APPROVED, "it may run once there is money"


async def test_a_call_that_asks_for_no_limit_gets_one_where_a_budget_has_to_know_the_worst() -> None:
    budget = {**DAY, "mode": "strict"}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        _, headers, _ = await ask(client, chat())
        assert headers[b"x-weighbridge-max-tokens-clamped"] == b"4096"
        assert orjson.loads(upstream.received[0].body)["max_completion_tokens"] == 4096


async def test_a_policy_that_allows_an_answer_of_any_length_is_not_asked_about_a_limit_that_is_ours() -> None:
    def brief(document: Any) -> Decision:
        return ALLOWED if document["call"]["arguments"].get("max_completion_tokens", 0) <= 256 else DENIED

    async with target() as upstream, budgeted(upstream, DAY, script=brief) as g, connected(g.port) as client:
        status, headers, _ = await ask(client, chat())
        assert (status, headers[b"x-weighbridge-max-tokens-clamped"]) == (200, b"4096")
        assert len(g.engine.documents) == 1


@pytest.mark.parametrize(
    ("path", "costs"), [("/reset", True), ("/garbage", True), ("/short-body", True), ("/redirect", False)]
)
async def test_a_call_that_may_have_run_is_paid_as_it_probably_was(path: str, costs: bool) -> None:
    async with target() as upstream, budgeted(upstream, DAY, target={"url": f"{upstream.url}{path}"}) as g:
        async with connected(g.port) as client:
            assert (await ask(client, chat(max_tokens=50)))[0] == 502
            await g.ledger.outcome()
            assert set(g.till.pending.values()) == {0}
            (asked,) = g.till.asked
            assert (max(g.till.posted.values()) > 0) is costs
            assert max(g.till.posted.values()) <= asked.want


async def test_a_call_that_nobody_can_have_received_costs_nothing() -> None:
    async with gate(target=PRICED, budgets=[DAY]) as g, connected(g.port) as client:
        assert (await ask(client, chat()))[0] == 502
        await g.ledger.outcome()
        assert set(g.till.over.values()) == {0}
        assert g.till.ledger == []


async def test_a_call_that_the_target_refuses_costs_nothing() -> None:
    async with target() as upstream, budgeted(upstream, DAY, target={"url": f"{upstream.url}/status-429"}) as g:
        async with connected(g.port) as client:
            assert (await ask(client, chat()))[0] == 429
            await g.ledger.outcome()
            assert set(g.till.over.values()) == {0}
            assert [each.cost for each in g.till.ledger] == [0]


async def test_an_unknown_price_is_refused_where_a_budget_pays() -> None:
    async with target() as upstream, gate(target_url=upstream.url, budgets=[DAY]) as g, connected(g.port) as client:
        body = orjson.dumps({"model": "gpt-nobody-knows", "messages": []})
        status, _, answer = await ask(client, body)
        assert (status, answer["error"]["code"]) == (403, "unpriced_model")
        assert upstream.received == []


@pytest.mark.parametrize("mode", ["soft", "shadow"])
async def test_an_unknown_price_passes_where_budgets_only_count_and_is_told(mode: str) -> None:
    budget = {**DAY, "mode": mode}
    async with target() as upstream, gate(target_url=upstream.url, budgets=[budget]) as g, connected(g.port) as client:
        assert (await ask(client, orjson.dumps({"model": "gpt-nobody-knows", "messages": []})))[0] == 200
        assert (await g.ledger.outcome())["unpriced"] is True
        assert [each.unpriced for each in g.till.ledger] == [1]


async def test_a_soft_budget_warns_and_lets_pass() -> None:
    budget = {**DAY, "mode": "soft", "limit_usd": 0.0005}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        _, first, _ = await ask(client, chat())
        _, _, _ = await ask(client, chat())
        _, third, _ = await ask(client, chat())
        assert b"x-weighbridge-budget" not in first
        assert third[b"x-weighbridge-budget"] == b"acme/support-bot day exhausted"


async def test_a_shadow_budget_counts_what_it_would_have_refused() -> None:
    budget = {**DAY, "mode": "shadow", "limit_usd": 0.0005}
    async with target() as upstream, budgeted(upstream, budget) as g, connected(g.port) as client:
        for _ in range(3):
            status, headers, _ = await ask(client, chat())
            assert status == 200
            assert b"x-weighbridge-budget" not in headers
        assert g.pipeline.lender.shadow_refusals == {("acme/support-bot", "day"): 3}


async def test_without_its_store_a_hard_budget_refuses_and_gives_back_what_may_have_been_lent() -> None:
    till = Till()
    till.failure = "gone"
    async with target() as upstream, budgeted(upstream, DAY, till=till) as g, connected(g.port) as client:
        status, headers, body = await ask(client, chat())
        assert (status, body["error"]["code"]) == (503, "ledger_unavailable")
        assert headers[b"retry-after"] == b"2"
        assert list(till.over.values()) == [0]
        assert upstream.received == []


async def test_without_its_store_a_soft_budget_lets_pass_and_posts_later() -> None:
    till = Till()
    till.failure = "gone"
    async with target() as upstream, budgeted(upstream, {**DAY, "mode": "soft"}, till=till) as g:
        async with connected(g.port) as client:
            assert (await ask(client, chat()))[0] == 200
            await g.ledger.outcome()
            assert list(till.over.values()) == [REPORTED]


async def test_an_agent_that_leaves_while_money_is_lent_leaves_nothing_lent() -> None:
    till = Till()
    till.slow = asyncio.Event()
    async with target() as upstream, budgeted(upstream, DAY, till=till) as g:
        async with connected(g.port) as client:
            await client.say(post(CHAT, chat(), AUTHORIZED))
            while not till.asked:
                await asyncio.sleep(0)
        await g.ledger.outcome()
        assert set(till.pending.values()) == {0}
        assert upstream.received == []


async def test_limits_refuse_with_a_time_that_clients_understand() -> None:
    turnstile = Turnstile()
    turnstile.refuses = 2.3
    limits = [{"node": "acme/support-bot", "calls_per_minute": 5}]
    async with target() as upstream, budgeted(upstream, DAY, turnstile=turnstile, limits=limits) as g:
        async with connected(g.port) as client:
            status, headers, body = await ask(client, chat())
            assert (status, body["error"]["code"]) == (429, "rate_limited")
            assert headers[b"retry-after"] == b"3"
            assert g.till.asked == []
            turnstile.refuses = None
            _, headers, _ = await ask(client, chat())
            assert headers[b"x-should-retry"] == b"false"
            assert b"retry-after" not in headers


async def test_whoever_was_let_in_leaves_with_the_tokens_that_were_used() -> None:
    limits = [{"node": "acme", "tokens_per_minute": 5000}]
    async with target() as upstream, budgeted(upstream, limits=limits) as g, connected(g.port) as client:
        await ask(client, chat())
        await g.ledger.outcome()
        assert g.turnstile.inside == {}
        assert [tokens for _, tokens in g.turnstile.left] == [10]


async def test_a_short_answer_counts_as_short_against_a_limit_on_tokens() -> None:
    turnstile = Turnstile()
    limits = [{"node": "acme", "tokens_per_minute": 5000}]
    async with target() as upstream, budgeted(upstream, turnstile=turnstile, limits=limits) as g:
        async with connected(g.port) as client:
            body = chat(max_tokens=5)
            await ask(client, body)
            assert turnstile.entered == [len(body) // 4 + 1 + 5]


class Piecemeal:
    """Lends up to an amount in all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    async def extend(self, loan: Loan, amount: int) -> bool:
        self.asked.append(amount)
        return amount <= self.most


class PerToken:
    """An estimate in which a token costs 1."""

    chunk, answers, asked, known, longest = 512, 1, None, False, 4096

    def bound(self, tokens: int) -> int:
        return tokens


async def test_a_stream_is_lent_the_rest_of_a_budget_before_it_is_cut() -> None:
    lender = Piecemeal(900)
    loan = Loan("c", "acme", (), 512)
    lending = Lending(lender, loan, PerToken(), 512, grows=True)  # type: ignore[arg-type]
    assert await lending.more(300)  # refused, and what was lent goes on
    assert (lending.mark, lender.asked) == (512, [1024])
    produced = 512
    while await lending.more(produced):
        produced = lending.mark
    assert 900 - 16 < produced <= 900
    assert lending.cut


async def test_without_their_counts_limits_let_pass_and_it_shows() -> None:
    turnstile = Turnstile()
    turnstile.failing = True
    limits = [{"node": "acme", "concurrent": 5}]
    async with target() as upstream, budgeted(upstream, turnstile=turnstile, limits=limits) as g:
        async with connected(g.port) as client:
            assert (await ask(client, chat()))[0] == 200
            assert g.pipeline.lender.unlimited == 1


async def test_nothing_of_a_call_is_left_to_the_collector_of_garbage() -> None:
    async with target() as upstream, budgeted(upstream, DAY) as g, connected(g.port) as client:
        await ask(client, chat())
        gc.collect()
        gc.disable()
        try:
            for more in ({}, {"stream": True}, {"max_tokens": 5}):
                await client.say(post(CHAT, chat(**more), AUTHORIZED))
                await client.answer()
            await asyncio.sleep(0)
            assert [each for each in gc.get_objects() if isinstance(each, Exchange)] == []
        finally:
            gc.enable()


@pytest.mark.parametrize(("price", "cost"), [(None, 0), ({"usd_per_call": 0.02}, 20_000_000)])
async def test_calls_of_tools_are_in_the_cost_ledger_by_tool_and_operation_also_where_they_are_free(
    price: dict[str, float] | None, cost: int
) -> None:
    async with http_tool() as tool:
        crm = {"name": "crm", "kind": "http", "url": tool.url, **({"price": price} if price is not None else {})}
        async with gate(tools=[crm]) as g, connected(g.port) as client:
            await client.say(f"GET /tools/crm/tickets HTTP/1.1\r\nhost: w\r\n{AUTHORIZED}\r\n\r\n".encode())
            await client.answer()
            await g.ledger.outcome()
            (spent,) = g.till.ledger
            assert (spent.agent, spent.model, spent.target, spent.tool) == ("support-bot", "", "crm", "GET /tickets")
            assert (spent.calls, spent.cost, spent.tool_cost, spent.unpriced) == (1, cost, cost, 0)
            for server in g.pipeline.assembly.toolbox:
                await server.close()
