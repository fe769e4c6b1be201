"""Calls that are sent to a second target as well: what it gets, what is made of its answers, and that nobody waits."""

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import orjson
import pytest

from gateway.mirroring import Compared, Mirrors
from policies.decision import Decision, Effect
from tests.gateway.test_pipeline import demanding
from tests.support.door import RawClient, connected, post
from tests.support.exchanges import ALLOWED
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.people import deciding
from tests.support.standins import ANTHROPIC_KEY, running_standins_here
from tests.support.target import target

CHAT, MESSAGES, COUNT, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
PRICE = {"input_usd_per_mtok": 10, "output_usd_per_mtok": 100}


class Stage(NamedTuple):
    gate: Gate
    mirrors: Mirrors
    client: RawClient

    async def say(self, body: bytes, path: str = CHAT, *headers: str) -> int:
        """One call from its first byte to its answer's last; gives the status."""
        await self.client.say(post(path, body, AUTHORIZED, *headers))
        return (await self.client.answer())[0]

    async def call(self, *headers: str, **more: Any) -> int:
        return await self.say(chat(**more), CHAT, *headers)

    async def compared(self) -> Compared:
        """What has come of the mirror once nothing is under way."""
        await self.mirrors.settled()
        settings = self.gate.pipeline.assembly.settings.routes[0].mirror
        assert settings is not None, "the route is mirrored"
        found = self.mirrors.compared("chat", settings)
        assert found is not None, "the mirror has had a call"
        return found

    def notes(self) -> list[Mapping[str, Any]]:
        return [record for record in self.gate.ledger.records if record["record"] == "mirror"]


def chat(**more: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], **more})


@asynccontextmanager
async def stage(
    own: str,
    mirror: str,
    *,
    share: float = 1.0,
    model: str | None = "small",
    limits: Mapping[str, Any] | None = None,
    second: Mapping[str, Any] | None = None,
    arms: Sequence[Mapping[str, Any]] = ({"target": "primary"},),
    **given: Any,
) -> AsyncIterator[Stage]:
    """A gateway whose calls go to the target at `own`, and to the one at `mirror` as well."""
    targets = [
        {"name": "primary", "kind": "openai", "url": own, "key": "the-operators-own-key", "price": PRICE},
        {"name": "claude", "kind": "anthropic", "url": own, "price": PRICE},
        {"name": "second", "kind": "openai", "url": mirror, "key": "the-seconds-own-key", "price": PRICE}
        | dict(second or {}),
    ]
    mirrored = {"target": "second", "share": share} | ({"model": model} if model is not None else {})
    routes = [
        {"name": "chat", "models": ["gpt-*"], "arms": list(arms), "mirror": mirrored},
        {"name": "claude", "models": ["claude-*"], "arms": [{"target": "claude"}], "mirror": mirrored},
    ]
    async with AsyncExitStack() as stack:
        g = await stack.enter_async_context(gate(targets=targets, routes=routes, **given))
        mirrors = Mirrors(g.till, g.pipeline.attempts.fleet, g.ledger.note, **{"chance": lambda: 0.5, **(limits or {})})
        g.pipeline.mirrors = mirrors
        stack.push_async_callback(mirrors.close)
        yield Stage(g, mirrors, await stack.enter_async_context(connected(g.port)))


async def test_a_copy_says_what_the_call_said_but_for_the_models_name() -> None:
    async with target() as own, target() as other, stage(own.url, other.url) as its:
        body = b'{ "messages":[ ], "model" : "gpt-4o-mini" , "x":1.10 }'
        headers = ("x-request-id: r-1", "idempotency-key: once", "cookie: mine")
        assert await its.say(body, CHAT, *headers) == 200
        await its.mirrors.settled()
        assert own.received[0].body == body
        (copy,) = other.received
        assert copy.body == b'{ "messages":[ ], "model" : "small" , "x":1.10 }'
        told = dict(copy.headers)
        assert (told[b"authorization"], told[b"x-request-id"]) == (b"Bearer the-seconds-own-key", b"r-1")
        assert not {b"idempotency-key", b"cookie"} & told.keys()


async def test_both_answers_are_compared_and_recorded() -> None:
    async with target() as own, target() as other, stage(own.url, f"{other.url}/pace") as its:
        await its.call()
        compared = await its.compared()
        assert compared.pairs == {(True, True): 1}
        mine, theirs = compared.own.total, compared.mirrored.total
        assert (mine.calls, mine.output_tokens, mine.cost) == (theirs.calls, theirs.output_tokens, theirs.cost)
        assert theirs.cost == 7 * 10_000 + 3 * 100_000
        assert (theirs.latency.percentile(50) or 0) >= 10_000, "the second target takes its time"
        (note,) = its.notes()
        outcome = await its.gate.ledger.outcome()
        assert (note["call"], note["route"]) == (outcome["call"], "chat")
        assert (note["own"]["target"], note["own"]["outcome"], note["own"]["target_status"]) == ("primary", "ok", 200)
        copy = dict(note["mirror"])
        assert copy.pop("seconds") >= copy.pop("first_byte_seconds") > 0.009
        assert orjson.loads(orjson.dumps(copy)) == {
            "target": "second",
            "target_model": "small",
            "outcome": "ok",
            "target_status": 200,
            "usage": {"input_tokens": 7, "output_tokens": 3},
            "cost_usd": 0.00037,
            "answer_bytes": len(own.answer),
        }


async def test_a_stream_is_copied_as_a_stream() -> None:
    async with target() as own, target() as other, stage(own.url, other.url) as its:
        assert await its.call(stream=True) == 200
        compared = await its.compared()
        assert orjson.loads(other.received[0].body)["stream"] is True
        assert compared.pairs == {(True, True): 1}
        assert compared.own.total.first_token.total == compared.mirrored.total.first_token.total == 1
        assert compared.mirrored.total.output_tokens == 3


async def test_no_budget_pays_for_a_copy_and_the_cost_ledger_has_it() -> None:
    budget = {"node": "acme/support-bot", "window": "day", "limit_usd": 1}
    async with target() as own, target() as other, stage(own.url, other.url, budgets=[budget]) as its:
        await its.call("x-weighbridge-session: s-1")
        await its.mirrors.settled()
        call, copy = its.gate.till.ledger
        assert (call.target, call.calls, copy.target, copy.calls) == ("primary", 1, "second", 0)
        assert (copy.tenant, copy.agent, copy.session, copy.model) == ("acme", "support-bot", "s-1", "gpt-4o-mini")
        assert copy.day == call.day != ""
        assert copy.cost == call.cost == 370_000
        assert its.gate.till.posted[its.gate.account(budget).key] == call.cost


async def test_only_the_share_that_is_wanted_is_copied() -> None:
    chances = iter([0.24, 0.25, 0.9, 0.0])
    limits = {"chance": lambda: next(chances)}
    async with target() as own, target() as other, stage(own.url, other.url, share=0.25, limits=limits) as its:
        for _ in range(4):
            await its.call()
        await its.mirrors.settled()
        assert (len(own.received), len(other.received)) == (4, 2)


async def test_a_second_target_that_is_silent_delays_nobody_and_is_given_up() -> None:
    async with target() as own, target() as other:
        async with stage(own.url, f"{other.url}/silence", limits={"patience": 0.05}) as its:
            assert await its.call() == 200
            await other.arrived.wait()
            assert (await its.gate.ledger.outcome())["code"] == "ok"
            compared = await its.compared()
            assert compared.pairs == {(True, False): 1}
            assert compared.mirrored.total.errors == {"first_token": 1}
            assert its.notes()[0]["mirror"]["usage"]["estimated"] is True


@pytest.mark.parametrize(
    ("behaviour", "stream", "outcome"),
    [
        ("reset", False, "reset"),
        ("garbage", False, "protocol"),
        ("short-body", False, "stream_cut"),
        ("status-429", False, "quota"),
        ("cut", True, "stream_cut"),
        ("end-early", True, "stream_cut"),
        ("not-a-stream", True, "protocol"),
        ("nothing-said", False, "protocol"),
    ],
)
async def test_whatever_becomes_of_a_copy_is_told_and_the_agent_has_its_answer(
    behaviour: str, stream: bool, outcome: str
) -> None:
    async with target() as own, target() as other, stage(own.url, f"{other.url}/{behaviour}") as its:
        assert await its.call(stream=stream) == 200
        compared = await its.compared()
        assert its.notes()[0]["mirror"]["outcome"] == outcome
        assert compared.pairs == {(True, False): 1}
        assert its.gate.ledger.outcomes()[0]["code"] == "ok"


async def test_a_second_target_that_is_not_there_is_told_too() -> None:
    async with target() as own, stage(own.url, "http://127.0.0.1:9") as its:
        assert await its.call() == 200
        assert (await its.compared()).mirrored.total.errors == {"connect": 1}
        assert [each.target for each in its.gate.till.ledger] == ["primary"], "what was never sent has cost nothing"


async def test_a_call_that_failed_is_copied_like_any_other() -> None:
    async with target() as own, target() as other, stage(f"{own.url}/reset", other.url) as its:
        assert await its.call() == 502
        compared = await its.compared()
        assert compared.pairs == {(False, True): 1}
        assert compared.own.total.errors == {"reset": 1}


async def test_copies_beyond_those_that_may_be_under_way_are_dropped_and_counted() -> None:
    async with target() as own, target() as other:
        async with stage(own.url, f"{other.url}/silence", limits={"most": 2}) as its:
            for _ in range(5):
                assert await its.call() == 200
            await other.arrived.wait()
            await its.mirrors.close()
            assert len(other.received) <= 2
            assert (await its.compared()).dropped == 3
            paid = [each for each in its.gate.till.ledger if each.target == "second"]
            assert len(paid) >= len(other.received), "what was sent has cost something, also where the gateway ends"
            assert all(each.cost > 0 for each in paid)
            assert await its.call() == 200
            assert len(its.gate.till.ledger) == 5 + len(paid) + 1, "a gateway that ends sends no more copies"


async def test_a_full_or_resting_second_target_gets_no_copy() -> None:
    second = {"max_concurrent": 1}
    async with target() as own, target() as other, stage(own.url, other.url, second=second) as its:
        pool = its.gate.pipeline.attempts.fleet.pools["second"]
        pool.in_flight = 1
        await its.call()
        pool.in_flight, pool.nodes[0].rests_until = 0, float("inf")
        await its.call()
        assert (await its.compared()).dropped == 2
        assert other.received == []


async def test_a_target_has_no_more_copies_at_once_than_it_may_have_calls() -> None:
    second = {"max_concurrent": 2}
    async with target() as own, target() as other:
        async with stage(own.url, f"{other.url}/silence", second=second) as its:
            for _ in range(5):
                assert await its.call() == 200
            await other.arrived.wait()
            await its.mirrors.close()
            assert (await its.compared()).dropped == 3
            await its.call()


async def test_a_call_that_the_policy_sent_to_a_route_is_not_copied() -> None:
    async with target() as own, target() as other, stage(own.url, other.url, script=demanding(route="chat")) as its:
        assert await its.call() == 200
        await its.mirrors.settled()
        assert (len(own.received), other.received) == (1, [])


async def test_a_call_that_people_approved_is_not_copied() -> None:
    asked = dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))

    def script(document: Mapping[str, Any]) -> Decision:
        return ALLOWED if "approval" in document else asked

    async with target() as own, target() as other:
        async with stage(own.url, other.url, script=script) as its, deciding(its.gate.pipeline.holds):
            assert await its.call() == 200
            await its.mirrors.settled()
            assert (len(own.received), other.received) == (1, [])


async def test_calls_that_are_refused_free_or_bound_to_what_a_target_keeps_are_not_copied() -> None:
    async with target() as own, target() as other, stage(own.url, other.url) as its:
        assert await its.say(b"{}") == 400
        claude = {"model": "claude-x", "messages": [{"role": "user", "content": "hello"}]}
        await its.say(orjson.dumps(claude), COUNT)
        goes_on = {"model": "gpt-4o", "input": "and then?", "previous_response_id": "resp_1"}
        await its.say(orjson.dumps(goes_on), RESPONSES)
        await its.mirrors.settled()
        assert len(own.received) == 2
        assert other.received == []


async def test_what_the_policy_changed_is_copied_as_changed() -> None:
    script = demanding(redact=["/arguments/ssn"], headers={"x-team": "a"})
    async with target() as own, target() as other, stage(own.url, other.url, script=script) as its:
        await its.call(ssn="078-05-1120")
        await its.mirrors.settled()
        assert b"078" not in other.received[0].body
        assert (b"x-team", b"a") in other.received[0].headers


async def test_an_agent_that_leaves_is_not_copied() -> None:
    async with target() as own, target() as other, stage(f"{own.url}/silence", other.url) as its:
        await its.client.say(post(CHAT, chat(), AUTHORIZED))
        await own.arrived.wait()
        its.client.hang_up()
        await its.gate.ledger.outcome()
        await its.mirrors.settled()
        assert other.received == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_copy_is_translated_where_the_second_target_speaks_otherwise(stream: bool) -> None:
    async with target() as own, running_standins_here() as standins:
        second = {"kind": "anthropic", "key": ANTHROPIC_KEY}
        async with stage(own.url, standins.anthropic_url, model="claude-3-5-haiku-latest", second=second) as its:
            assert await its.call(stream=stream) == 200
            compared = await its.compared()
            (seen,) = standins.anthropic.requests
            assert (seen.path, seen.json()["model"]) == (MESSAGES, "claude-3-5-haiku-latest")
            assert compared.pairs == {(True, True): 1}
            assert compared.mirrored.total.output_tokens > 0


async def test_a_call_that_cannot_be_translated_is_counted_as_unfit() -> None:
    async with target() as own, target() as other:
        async with stage(own.url, other.url, second={"kind": "anthropic"}) as its:
            assert await its.call(n=3) == 200
            assert ((await its.compared()).unfit, other.received) == (1, [])


async def test_a_call_that_the_second_target_has_answered_itself_is_not_copied_to_it() -> None:
    arms = [{"target": "primary", "weight": 0}, {"target": "second", "weight": 100}]
    async with target() as own, target() as other, stage(own.url, other.url, model=None, arms=arms) as its:
        assert await its.call() == 200
        await its.mirrors.settled()
        assert (own.received, len(other.received)) == ([], 1)


async def test_the_bodies_of_copies_under_way_have_a_bound_and_one_copy_may_always_be() -> None:
    limits = {"most_bytes": 10}
    async with target() as own, target() as other:
        async with stage(own.url, f"{other.url}/silence", limits=limits) as its:
            for _ in range(2):
                assert await its.call() == 200
            await other.arrived.wait()
            await its.mirrors.close()
            assert (await its.compared()).dropped == 1
            assert len(other.received) == 1


async def test_a_copy_whose_answer_cannot_be_translated_costs_what_it_says_it_has_used() -> None:
    async with target() as own, target() as other:
        usage = {"input_tokens": 12, "output_tokens": 34}
        other.answer = orjson.dumps({"type": "message", "content": [{"type": "picture"}], "usage": usage})
        async with stage(own.url, other.url, second={"kind": "anthropic"}) as its:
            assert await its.call() == 200
            assert (await its.compared()).mirrored.total.errors == {"protocol": 1}
            paid = its.gate.till.ledger[-1]
            assert (paid.target, paid.input_tokens, paid.output_tokens) == ("second", 12, 34)


@pytest.mark.parametrize(("behaviour", "stream"), [("short-body", False), ("cut-at-once", True)])
async def test_a_copy_whose_answer_broke_off_has_cost_something(behaviour: str, stream: bool) -> None:
    async with target() as own, target() as other, stage(own.url, f"{other.url}/{behaviour}") as its:
        assert await its.call(stream=stream) == 200
        await its.compared()
        assert [each.target for each in its.gate.till.ledger] == ["primary", "second"]
        assert its.gate.till.ledger[-1].cost > 0
