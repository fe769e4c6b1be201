"""Second attempts, over real sockets: what is tried elsewhere, what each try costs, and what is left afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final

import orjson
import pytest

from gateway.assembly import assemble
from gateway.reply import Reply
from policies.budgets import Ask, Loan
from routing.health import State
from tests.support.door import connected, post
from tests.support.exchanges import settings
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.misbehaving import Misbehaving, Script, Wire, says
from tests.support.till import Till

CHAT: Final = "/v1/chat/completions"
MESSAGES: Final = "/v1/messages"
PRICE: Final = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
BUDGET: Final = {"node": "acme/support-bot", "window": "day", "limit_usd": 5}
SSE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
HELLO: Final = [{"role": "user", "content": "Hello"}]
USAGE: Final = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def json_answer(document: Any, status: int = 200, kind: str = "application/json", *lines: str) -> Script:
    body = orjson.dumps(document)
    head = [f"HTTP/1.1 {status} So", f"content-type: {kind}", f"content-length: {len(body)}", *lines]
    return says("\r\n".join(head).encode() + b"\r\n\r\n" + body)


def choice(finish: str | None = "stop", content: str = "hello") -> Mapping[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}


def stream(text: str, finish: str = "stop") -> bytes:
    chunks = [
        {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
        for delta, end in (({"content": text}, None), ({}, finish))
    ]
    return b"".join(b"data: %b\n\n" % orjson.dumps(each) for each in chunks) + b"data: [DONE]\n\n"


ANSWER: Final = {"id": "c", "object": "chat.completion", "choices": [choice()], "usage": USAGE}
ANSWERS: Final = json_answer(ANSWER)
FULL: Final = json_answer({"error": {"message": "no room", "type": "server_error"}}, 503)


@asynccontextmanager
async def places(
    *scripts: Script,
    kinds: tuple[str, ...] = ("openai", "openai"),
    suffix: str = "chat/completions",
    target: Mapping[str, Any] = MappingProxyType({}),
    route: Mapping[str, Any] = MappingProxyType({}),
    unpriced: str = "",
    **sections: Any,
) -> AsyncIterator[tuple[Gate, Misbehaving]]:
    """A gate whose calls are meant for the first of some targets, and then for the next; each does as its script."""
    async with Misbehaving() as upstream:
        targets, arms = [], []
        for number, (script, kind) in enumerate(zip(scripts, kinds, strict=False)):
            root = {"openai": "", "parallax": "/v1", "anthropic": "/v1"}[kind]
            upstream.on(f"/{number}{root}/{'messages' if kind == 'anthropic' else suffix}", script)
            url = f"http://127.0.0.1:{upstream.port}/{number}"
            name = f"t{number}"
            price = {} if name == unpriced else {"price": PRICE}
            targets.append({"name": name, "kind": kind, "url": url, "key": f"key-{number}", **price, **target})
            arms.append({"target": name, "weight": 0 if number else 100, "fallback": bool(number)})
        routes = [{"name": "all", "models": ["*"], "arms": arms, **route}]
        async with gate(targets=targets, routes=routes, **sections) as found:
            yield found, upstream
            await nobody_is_left(found)


async def nobody_is_left(found: Gate) -> None:
    async with asyncio.timeout(5):
        while found.telemetry.in_flight:
            await asyncio.sleep(0)
    for pool in found.pipeline.attempts.fleet.pools.values():
        assert (pool.in_flight, [node.in_flight for node in pool.nodes]) == (0, [0] * len(pool.nodes))
    assert not any(found.till.pending.values())
    assert sum(each.cost for each in found.till.ledger) == sum(found.till.over.values())


def chat(**more: Any) -> bytes:
    return post(CHAT, orjson.dumps({"model": "gpt-4o-mini", "messages": HELLO, **more}), AUTHORIZED)


def messages(**more: Any) -> bytes:
    said = {"model": "gpt-4o-mini", "max_tokens": 9, "messages": HELLO, **more}
    return post(MESSAGES, orjson.dumps(said), AUTHORIZED)


async def asked(found: Gate, call: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    async with connected(found.port) as client:
        await client.say(call)
        return await asyncio.wait_for(client.answer(), 5)


async def test_a_streamed_call_without_even_a_head_in_time_is_begun_elsewhere() -> None:
    late = {"timeouts": {"first_token": 0.1}}
    async with places(Wire.hang, says(SSE + stream("hello"), Wire.close), target=late) as (found, _):
        status, _, body = await asked(found, chat(stream=True))
        record = await found.ledger.outcome()
    assert (status, b"hello" in body) == (200, True)
    assert [each["outcome"] for each in record["attempts"]] == ["first_token", "ok"]


async def test_a_streamed_call_that_nobody_begins_in_time_is_told_so() -> None:
    async with places(Wire.hang, target={"timeouts": {"first_token": 0.1}}) as (found, _):
        status, _, _ = await asked(found, chat(stream=True))
        record = await found.ledger.outcome()
    assert (status, record["code"]) == (504, "target_timeout")


async def test_what_a_failed_attempt_has_cost_is_the_same_whether_or_not_another_is_paid_for() -> None:
    """A strict budget pays all that was lent where nobody knows what the target has done."""
    broken = says(SSE, Wire.close)
    costs = []
    for lends in (True, False):
        async with places(broken, broken, budgets=[{**BUDGET, "mode": "strict"}]) as (found, upstream):
            found.till.lend_no_more = not lends
            await asked(found, chat(stream=True, max_tokens=1000))
            assert len(upstream.requests) == 1 + lends
            costs.append(found.till.ledger[0].cost)
    assert costs[0] == costs[1]


async def test_a_rejection_behind_a_success_is_a_whole_answer_that_nobody_was_lent_a_long_one_for() -> None:
    said = orjson.dumps({"error": {"message": "too long", "type": "invalid_request_error", "code": 400}})
    async with places(says(SSE + b"data: " + said + b"\n\n", Wire.close), budgets=[{**BUDGET, "mode": "strict"}]) as (
        found,
        _,
    ):
        status, _, body = await asked(found, chat(stream=True, max_tokens=1000))
        (paid,) = found.till.ledger
    assert (status, orjson.loads(body)["error"]["message"]) == (400, "too long")
    assert (paid.output_tokens, paid.cost < 1000 * 2000) == (0, True)


async def test_a_node_on_trial_that_is_still_not_there_stays_away() -> None:
    async with places(FULL, target={"health": {"ejected_for": "1s"}}, route={"retry": {"attempts": 1}}) as (found, _):
        (node,) = found.pipeline.attempts.fleet.pools["t0"].nodes
        node.state = State.EJECTED
        assert (await asked(found, chat()))[0] == 503
        await nobody_is_left(found)
        assert node.state is State.EJECTED


@pytest.mark.parametrize("change", ["removed", "moved"])
async def test_a_call_from_before_a_reload_goes_where_it_was_to_go(change: str) -> None:
    """It waited while its target was taken out of the configuration, or given another URL."""
    asks, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(Till):
        async def reserve(self, ask: Ask) -> Loan:
            asks.set()
            await goes_on.wait()
            return await super().reserve(ask)

    async with places(ANSWERS, till=Slow(), budgets=[BUDGET]) as (found, upstream):
        asking = asyncio.create_task(asked(found, chat()))
        await asyncio.wait_for(asks.wait(), 5)
        url = f"http://127.0.0.1:{upstream.port}/elsewhere"
        name = {"removed": "other", "moved": "t0"}[change]
        found.pipeline.assembly = assemble(
            settings(
                targets=[{"name": name, "kind": "openai", "url": url}],
                routes=[{"name": "all", "models": ["*"], "arms": [{"target": name}]}],
            ),
            found.pipeline.assembly,
        )
        goes_on.set()
        assert (await asking)[0] == 200
    assert upstream.requests == ["/0/chat/completions"]


async def test_a_call_that_only_the_failed_target_has_words_for_has_met_its_failure_and_is_no_mistake() -> None:
    async with places(FULL, ANSWERS, kinds=("openai", "anthropic")) as (found, upstream):
        status, headers, body = await asked(found, chat(n=2))
        record = await found.ledger.outcome()
    assert (status, record["code"]) == (502, "target_failed")
    assert orjson.loads(body)["error"]["code"] == "target_failed"
    assert [each["outcome"] for each in record["attempts"]] == ["upstream_5xx", "refused"]
    assert record["detail"] == "the protocol of t1 has no words for the call's `n`"
    assert record["attempts"][1]["detail"] == record["detail"]
    tried = record["attempts"][0]
    assert (record["target"], record["node"], record["target_status"]) == ("t0", tried["node"], 503)
    assert headers[b"x-weighbridge-arm"] == headers[b"x-weighbridge-target"] == b"t0"
    assert upstream.requests == ["/0/chat/completions"]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"n": 2}, "the call's `n`"),
        ({"messages": [*HELLO, {"role": "user", "content": [{"type": "secret"}]}]}, "the call's `messages`"),
        ({"secret": 1}, "a member of the call"),
    ],
)
async def test_a_record_names_what_has_no_words_but_repeats_none_of_an_agent(more: Any, what: str) -> None:
    async with places(ANSWERS, kinds=("anthropic",)) as (found, _):
        assert (await asked(found, chat(**more)))[0] == 400
        record = await found.ledger.outcome()
    assert record["detail"] == f"the protocol of t0 has no words for {what}"
    assert "secret" not in str(record)


async def test_a_call_that_somebody_else_has_words_for_names_the_one_that_answered() -> None:
    async with places(ANSWERS, ANSWERS, kinds=("anthropic", "openai")) as (found, upstream):
        status, headers, _ = await asked(found, chat(n=2))
        record = await found.ledger.outcome()
    assert (status, headers[b"x-weighbridge-arm"], record["target"]) == (200, b"t1", "t1")
    assert record["node"] == f"http://127.0.0.1:{upstream.port}/1"
    assert "detail" not in record
    assert record["attempts"][0]["detail"] == "the protocol of t0 has no words for the call's `n`"


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_the_gateway_itself_never_waits_before_it_tries_again_or_says_no(status: int, others: int) -> None:
    refuses = json_answer({"error": {"message": "later"}}, status, "application/json", "retry-after: 5")
    async with places(*[refuses] * (others + 1)) as (found, upstream):
        answered, headers, _ = await asked(found, chat())
        record = await found.ledger.outcome()
    assert (answered, headers[b"retry-after"], len(upstream.requests)) == (status, b"5", others + 1)
    assert record["seconds"] < 2


async def test_every_outcome_of_a_call_that_a_node_has_taken_names_the_node() -> None:
    async with places(ANSWERS) as (found, upstream):
        await asked(found, chat())
        record = await found.ledger.outcome()
    assert (record["node"], "attempts" in record) == (f"http://127.0.0.1:{upstream.port}/0", False)
    async with places(FULL, ANSWERS) as (found, upstream):
        await asked(found, chat())
        record = await found.ledger.outcome()
    assert record["node"] == record["attempts"][1]["node"] == f"http://127.0.0.1:{upstream.port}/1"


async def test_what_went_wrong_is_told_in_words() -> None:
    async with places(Wire.hang, target={"timeouts": {"first_token": 0.1}}) as (found, _):
        await asked(found, chat(stream=True))
        assert (await found.ledger.outcome())["detail"] == "nothing of an answer came within 0.1 s"
    async with places(says(SSE + b"data: [DONE]\n\n", Wire.close)) as (found, _):
        await asked(found, chat(stream=True))
        detail = (await found.ledger.outcome())["detail"]
        assert detail == "behind status 200 stood something that is no answer, worth a status 502"
    async with places(says(b"", Wire.close)) as (found, upstream):
        await asked(found, chat())
        detail = (await found.ledger.outcome())["detail"]
        assert detail == f"http://127.0.0.1:{upstream.port}: the target closed the connection before any reply"


@pytest.mark.parametrize(
    "answer",
    [
        {**ANSWER, "choices": [choice("error")]},
        {"id": "c", "choices": [choice(None, "")]},
        {"error": {"message": "boom", "code": 500}},
    ],
    ids=["ends in an error", "empty", "error"],
)
async def test_a_failure_behind_a_success_is_none_in_another_protocol_either(answer: Mapping[str, Any]) -> None:
    async with places(json_answer(answer), ANSWERS, kinds=("parallax", "openai")) as (found, _):
        status, _, body = await asked(found, messages())
        record = await found.ledger.outcome()
    assert (status, orjson.loads(body)["content"][0]["text"]) == (200, "hello")
    assert record["attempts"][0]["outcome"] == "protocol"


async def test_a_rejection_behind_a_success_keeps_its_status_in_another_protocol() -> None:
    said = {"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}
    async with places(json_answer(said), kinds=("parallax",)) as (found, _):
        status, headers, body = await asked(found, messages())
    assert (status, orjson.loads(body)["error"]["type"]) == (400, "invalid_request_error")
    assert headers[b"content-type"] == b"application/json"


async def test_a_translated_answer_is_told_as_what_it_has_become() -> None:
    oops = says(b"HTTP/1.1 502 Bad\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>")
    async with places(oops, kinds=("openai",)) as (found, _):
        status, headers, body = await asked(found, messages())
    assert (status, headers[b"content-type"]) == (502, b"application/json")
    assert orjson.loads(body)["type"] == "error"


async def test_a_price_that_is_not_known_is_that_targets_alone() -> None:
    async with places(says(b"", Wire.close), ANSWERS, unpriced="t0") as (found, _):
        said = orjson.dumps({"model": "nobody/knows", "messages": HELLO})
        assert (await asked(found, post(CHAT, said, AUTHORIZED)))[0] == 200
        assert [(each.target, each.unpriced) for each in found.till.ledger] == [("t0", 1), ("t1", 0)]
        record = await found.ledger.outcome()
        assert (record["unpriced"], record["cost_usd"] * 10**9) == (True, sum(each.cost for each in found.till.ledger))


async def test_a_fault_of_the_gateway_speaks_against_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    async with places(ANSWERS) as (found, _):
        monkeypatch.setattr(type(found.pipeline.assembly.lines["t0"].ways[node_url(found)].carrier), "send", fails)
        assert (await asked(found, chat()))[0] == 500
        await nobody_is_left(found)
        (node,) = found.pipeline.attempts.fleet.pools["t0"].nodes
        assert node.failures == 0


def node_url(found: Gate) -> str:
    return found.pipeline.attempts.fleet.pools["t0"].nodes[0].url


async def fails(*_: object, **__: object) -> None:
    raise KeyError("ours")


async def test_a_long_response_is_remembered_too() -> None:
    """A picture makes it longer than what is held back."""
    answer = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "output": [{"type": "image_generation_call", "id": "ig_1", "result": "x" * 1_500_000}],
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    async with places(json_answer(answer), ANSWERS, suffix="responses") as (found, _):
        call = post("/v1/responses", orjson.dumps({"model": "gpt-4o-mini", "input": "a cat"}), AUTHORIZED)
        assert (await asked(found, call))[0] == 200
        assert found.pipeline.attempts.pins.find("acme", "support-bot", ["resp_1"], 0.0) is not None


class SlowTill(Till):
    """Lends more only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for_more, self.lends_more = asyncio.Event(), asyncio.Event()

    async def extend(self, loan: Loan, amount: int) -> bool:
        self.asked_for_more.set()
        await self.lends_more.wait()
        return await super().extend(loan, amount)


async def test_an_agent_that_leaves_while_a_second_attempt_is_paid_for_pays_for_the_first_and_that_is_all() -> None:
    till = SlowTill()
    async with places(says(b"", Wire.close), ANSWERS, till=till, budgets=[BUDGET]) as (found, upstream):
        async with connected(found.port) as client:
            await client.say(chat())
            await asyncio.wait_for(till.asked_for_more.wait(), 5)
            assert found.pipeline.attempts.fleet.pools["t1"].in_flight == 1
            client.hang_up()
            record = await found.ledger.outcome()
        assert (record["code"], [each.target for each in till.ledger]) == ("client_gone", ["t0"])
        assert upstream.requests == ["/0/chat/completions"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "first",
    [
        Wire.hang,
        says(b"", Wire.close),
        FULL,
        says(SSE + b": ping\n\n", None),
        says(SSE + b"data: internal server error", Wire.close),
        says(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{", None),
    ],
    ids=["silent", "closed", "full", "alive", "raw", "half"],
)
async def test_whenever_an_agent_leaves_nothing_stays_behind(first: Script, streamed: bool) -> None:
    async with places(first, Wire.hang, budgets=[BUDGET]) as (found, _):
        for turns in (*range(0, 60, 6), 200):
            async with connected(found.port) as client:
                await client.say(chat(stream=streamed))
                for _turn in range(turns):
                    await asyncio.sleep(0)
                client.hang_up()
                await gone(found)


async def gone(found: Gate) -> None:
    async with asyncio.timeout(5):
        for _turn in range(5):
            await asyncio.sleep(0.002)
        while found.telemetry.in_flight:
            await asyncio.sleep(0)


async def test_the_time_that_a_failed_attempt_takes_is_none_of_the_gateways_own() -> None:
    late = {"timeouts": {"first_token": 0.3}}
    async with places(Wire.hang, says(SSE + stream("hello"), Wire.close), target=late) as (found, _):
        assert (await asked(found, chat(stream=True)))[0] == 200
        await nobody_is_left(found)
        assert found.telemetry.overhead["openai"].total < 0.2


async def test_metrics_hold_what_a_call_has_cost_that_was_not_sent_a_second_time() -> None:
    async with places(says(b"", Wire.close), ANSWERS, kinds=("openai", "anthropic")) as (found, _):
        assert (await asked(found, chat(n=2)))[0] == 502
        await nobody_is_left(found)
        assert found.telemetry.cost["t0"] == sum(found.till.over.values()) > 0


async def test_a_key_that_a_target_repeats_in_words_without_counterpart_is_not_recorded() -> None:
    said = {"type": "message", "content": [{"type": "key-0"}], "stop_reason": "end_turn"}
    async with places(json_answer(said), kinds=("anthropic",)) as (found, _):
        assert (await asked(found, chat()))[0] == 502
        record = await found.ledger.outcome()
    assert "key-0" not in str(record)
    assert "counterpart" in record["detail"]


def saved(found: Gate) -> float:
    """What the route has for second attempts: 100 or more as long as none was made lately."""
    return found.pipeline.attempts._budgets["all"]._balance


@pytest.mark.parametrize("why", ["nobody is left", "nobody pays"])
async def test_a_second_attempt_that_is_not_made_uses_up_nothing_of_what_a_route_has_for_them(why: str) -> None:
    scripts = [says(b"", Wire.close), ANSWERS][: 1 if why == "nobody is left" else 2]
    async with places(*scripts, budgets=[BUDGET]) as (found, _):
        found.till.lend_no_more = True
        assert (await asked(found, chat()))[0] == 502
        assert saved(found) >= 100


async def test_a_second_attempt_that_is_made_is_taken_from_what_its_route_has_for_them() -> None:
    async with places(FULL, ANSWERS) as (found, _):
        assert (await asked(found, chat()))[0] == 200
        assert 99 < saved(found) < 100


async def test_an_agent_that_leaves_before_its_second_attempt_uses_up_none() -> None:
    till = SlowTill()
    async with places(says(b"", Wire.close), ANSWERS, till=till, budgets=[BUDGET]) as (found, _):
        async with connected(found.port) as client:
            await client.say(chat())
            await asyncio.wait_for(till.asked_for_more.wait(), 5)
            client.hang_up()
            await found.ledger.outcome()
        assert saved(found) >= 100


BARRED: Final[Any] = ({"t0": 100.0}, ["t1"])
WITHOUT_WEIGHT: Final[Any] = ({"t0": 100.0}, [])
STANDING_ASIDE: Final[Any] = ({"t0": 99.0, "t1": 1.0}, [], ["t1"])
CHANGES: Final = pytest.mark.parametrize(
    "change", [BARRED, WITHOUT_WEIGHT, STANDING_ASIDE], ids=["barred", "without weight", "aside"]
)


@CHANGES
async def test_an_arm_that_is_taken_back_while_a_second_attempt_is_paid_for_does_not_get_it(change: Any) -> None:
    till = SlowTill()
    arms = [{"target": "t0", "weight": 99}, {"target": "t1", "weight": 1}, {"target": "t2", "weight": 0}]
    arms[2]["fallback"] = True
    kinds = ("openai", "openai", "openai")
    async with places(
        says(b"", Wire.close), ANSWERS, ANSWERS, kinds=kinds, till=till, budgets=[BUDGET], route={"arms": arms}
    ) as (found, upstream):
        asking = asyncio.create_task(asked(found, chat()))
        await asyncio.wait_for(till.asked_for_more.wait(), 5)
        assert found.pipeline.attempts.fleet.pools["t1"].in_flight == 1
        route = found.pipeline.assembly.table.named("all")
        assert route is not None
        route.weigh(*change)
        till.lends_more.set()
        assert (await asking)[0] == 200
        record = await found.ledger.outcome()
        assert [each.target for each in till.ledger] == ["t0", "t2"]
    assert upstream.requests == ["/0/chat/completions", "/2/chat/completions"]
    assert [each["target"] for each in record["attempts"]] == ["t0", "t2"]


@CHANGES
async def test_where_the_only_arm_left_is_taken_back_meanwhile_the_call_has_failed_and_costs_what_it_did(
    change: Any,
) -> None:
    costs, records = [], []
    for taken_back in (True, False):
        till = SlowTill()
        arms = [{"target": "t0", "weight": 99}, {"target": "t1", "weight": 1}]
        strict = [{**BUDGET, "mode": "strict"}]
        async with places(says(b"", Wire.close), ANSWERS, till=till, budgets=strict, route={"arms": arms}) as (
            found,
            upstream,
        ):
            asking = asyncio.create_task(asked(found, chat(max_tokens=1000)))
            await asyncio.wait_for(till.asked_for_more.wait(), 5)
            route = found.pipeline.assembly.table.named("all")
            assert route is not None
            if taken_back:
                route.weigh(*change)
            till.lend_no_more = not taken_back
            till.lends_more.set()
            assert (await asking)[0] == 502
            record = await found.ledger.outcome()
            costs.append([(each.target, each.calls, each.cost) for each in till.ledger])
            records.append({name: record.get(name) for name in ("target", "usage", "code")})
            assert "closed the connection" in record["detail"]
            assert saved(found) >= 100
        assert upstream.requests == ["/0/chat/completions"]
    assert costs[0] == costs[1]
    assert records[0] == records[1]


async def test_a_reload_does_not_bring_back_what_was_taken_back() -> None:
    """The route of a call that is under way is then no longer the one that weights are set on."""
    till = SlowTill()
    async with places(says(b"", Wire.close), ANSWERS, till=till, budgets=[BUDGET]) as (found, upstream):
        asking = asyncio.create_task(asked(found, chat()))
        await asyncio.wait_for(till.asked_for_more.wait(), 5)
        before = found.pipeline.assembly
        found.pipeline.assembly = assemble(before.settings, before)
        route = found.pipeline.assembly.table.named("all")
        assert route is not None
        assert route is not before.table.named("all")
        route.weigh(*BARRED)
        till.lends_more.set()
        assert (await asking)[0] == 502
    assert upstream.requests == ["/0/chat/completions"]


TOKENS: Final[Mapping[str, Any]] = {"limits": [{"node": "acme", "tokens_per_minute": 50_000}]}


async def left_with(found: Gate) -> int:
    """The tokens that the one call counts as against limits, once it is over."""
    await nobody_is_left(found)
    ((_, tokens),) = found.turnstile.left
    return tokens


async def test_what_every_attempt_has_used_counts_against_a_limit_on_tokens() -> None:
    empty = json_answer({**ANSWER, "choices": [choice("error")], "usage": {**USAGE, "completion_tokens": 30}})
    async with places(empty, ANSWERS, kinds=("parallax", "openai"), **TOKENS) as (found, _):
        assert (await asked(found, chat()))[0] == 200
        assert await left_with(found) == sum(each.input_tokens + each.output_tokens for each in found.till.ledger) > 10
    async with places(ANSWERS, **TOKENS) as (found, _):
        assert (await asked(found, chat()))[0] == 200
        assert await left_with(found) == 10


async def test_what_the_only_attempt_has_used_counts_once_though_another_was_paid_for() -> None:
    till = SlowTill()
    async with places(says(b"", Wire.close), ANSWERS, till=till, budgets=[BUDGET], **TOKENS) as (found, _):
        asking = asyncio.create_task(asked(found, chat()))
        await asyncio.wait_for(till.asked_for_more.wait(), 5)
        route = found.pipeline.assembly.table.named("all")
        assert route is not None
        route.weigh(*BARRED)
        till.lends_more.set()
        assert (await asking)[0] == 502
        (paid,) = found.till.ledger
        assert await left_with(found) == paid.input_tokens + paid.output_tokens > 0


STRICT: Final[Mapping[str, Any]] = {"budgets": [{**BUDGET, "mode": "strict"}]}
CLAUDES: Final[Mapping[str, Any]] = {"type": "message", "role": "assistant", "stop_reason": "end_turn"}
UNTOLD: Final = {"type": "picture", "data": "x"}
TWELVE: Final = {"input_tokens": 12, "output_tokens": 34}


@pytest.mark.parametrize(
    "answer",
    [
        {**CLAUDES, "content": [UNTOLD], "usage": TWELVE},
        {**CLAUDES, "content": [{**UNTOLD, "data": "x" * 1_500_000}], "usage": TWELVE},
    ],
    ids=["without counterpart", "long"],
)
async def test_an_answer_that_cannot_be_translated_is_paid_for_by_what_it_says_it_has_used(answer: Any) -> None:
    kinds = ("anthropic", "openai")
    async with places(json_answer(answer), ANSWERS, kinds=kinds, **STRICT) as (found, _):
        assert (await asked(found, chat(max_tokens=1000)))[0] == 200
        first, second = found.till.ledger
        assert (first.input_tokens, first.output_tokens, first.cost) == (12, 34, 12 * 1000 + 34 * 2000)
        assert (second.input_tokens, second.output_tokens) == (7, 3)
        assert found.telemetry.tokens["t0", "output"] == 34


async def test_an_answer_in_the_other_protocol_that_cannot_be_translated_is_so_paid_for_too() -> None:
    """By an agent that speaks messages, at a target that speaks chat completions and has called what is no function."""
    said = {"role": "assistant", "content": None, "tool_calls": [{"id": "t", "type": "custom", "custom": {}}]}
    answer = {**ANSWER, "choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}]}
    kinds = ("openai", "anthropic")
    async with places(json_answer(answer), json_answer({**CLAUDES, "content": []}), kinds=kinds, **STRICT) as (
        found,
        _,
    ):
        assert (await asked(found, messages()))[0] == 200
        assert (found.till.ledger[0].input_tokens, found.till.ledger[0].output_tokens) == (7, 3)


async def test_an_answer_that_cannot_be_translated_and_does_not_count_costs_what_it_probably_did() -> None:
    answer = {**CLAUDES, "content": [{"type": "text", "text": "word " * 80}, UNTOLD]}
    async with places(json_answer(answer), ANSWERS, kinds=("anthropic", "openai"), **STRICT) as (found, _):
        assert (await asked(found, chat(max_tokens=1000)))[0] == 200
        assert found.till.ledger[0].output_tokens == 100


async def test_an_answer_without_end_that_cannot_be_translated_is_given_up_and_costs_what_came_at_least() -> None:
    async def endless(wire: Wire) -> None:
        await wire.body()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await wire.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    rich = [{**BUDGET, "limit_usd": 50}]
    async with places(endless, ANSWERS, kinds=("anthropic", "openai"), budgets=rich) as (found, _):
        assert (await asked(found, chat(max_tokens=1000)))[0] == 200
        assert found.till.ledger[0].output_tokens > 100_000


async def test_a_whole_answer_to_a_streamed_call_is_paid_for_by_what_it_says_it_has_used() -> None:
    async with places(ANSWERS, says(SSE + stream("hello"), Wire.close), **STRICT) as (found, _):
        assert (await asked(found, chat(stream=True, max_tokens=1000)))[0] == 200
        assert (found.till.ledger[0].input_tokens, found.till.ledger[0].output_tokens) == (7, 3)


async def test_a_failure_behind_a_success_that_says_what_it_has_used_is_paid_for_by_that() -> None:
    failed = json_answer({**ANSWER, "choices": [choice("error")]})
    for said in (chat(), messages()):
        answers = ANSWERS if said == chat() else json_answer(ANSWER)
        async with places(failed, answers, kinds=("parallax", "openai")) as (found, _):
            assert (await asked(found, said))[0] == 200
            assert [(each.input_tokens, each.output_tokens) for each in found.till.ledger] == [(7, 3)] * 2


async def test_an_agent_that_leaves_while_a_whole_answer_comes_instead_of_its_stream_pays_for_it() -> None:
    begins = says(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{")
    async with places(begins, **STRICT) as (found, upstream):
        async with connected(found.port) as client:
            await client.say(chat(stream=True, max_tokens=1000))
            async with asyncio.timeout(5):
                while not upstream.requests:
                    await asyncio.sleep(0)
            for _turn in range(50):
                await asyncio.sleep(0)
            client.hang_up()
            record = await found.ledger.outcome()
        assert (record["code"], record["target_status"]) == ("client_gone", 200)
        assert found.till.ledger[0].cost > 1000 * 1000


async def test_a_second_attempt_that_a_target_has_no_words_for_uses_up_none_either() -> None:
    async with places(FULL, ANSWERS, kinds=("openai", "anthropic")) as (found, _):
        assert (await asked(found, chat(n=2)))[0] == 502
        assert saved(found) >= 100


async def test_a_failed_attempt_asks_once_who_else_could_take_the_call() -> None:
    """An answer that failed and that nobody may be given, besides."""
    redirect = says(b"HTTP/1.1 307 Go\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n")
    async with places(redirect, ANSWERS) as (found, _):
        full = found.pipeline.attempts.fleet.pools["t1"]
        full.most = 0
        assert (await asked(found, chat()))[0] == 502
        assert full.overflowed == 1


async def test_an_error_behind_a_success_costs_the_same_whether_or_not_another_attempt_follows() -> None:
    said = orjson.dumps({"error": {"message": "no room", "type": "rate_limit_error", "code": 429}})
    hides = says(SSE + b"data: " + said + b"\n\n", Wire.close)
    costs = []
    for scripts in ((hides,), (hides, ANSWERS)):
        async with places(*scripts, kinds=("parallax", "openai"), **STRICT) as (found, _):
            await asked(found, chat(stream=True, max_tokens=1000))
            costs.append((found.till.ledger[0].output_tokens, found.till.ledger[0].cost))
    assert costs[0] == costs[1]


async def test_what_a_stream_has_used_that_a_budget_cut_after_a_failover_is_in_the_metrics() -> None:
    words = b"".join(
        b"data: %b\n\n" % orjson.dumps({"choices": [{"index": 0, "delta": {"content": "word "}}]}) for _ in range(900)
    )
    till = Till()
    async with places(FULL, says(SSE + words, None), till=till, budgets=[BUDGET]) as (found, _):
        till.lend_no_more = True
        status, _, body = await asked(found, chat(stream=True))
        record = await found.ledger.outcome()
        assert (status, record["code"], b"length" in body) == (200, "budget_exhausted", True)
        assert found.telemetry.tokens["t1", "output"] == record["usage"]["output_tokens"] > 0
        assert found.telemetry.tokens["t1", "input"] == record["usage"]["input_tokens"] > 0


@pytest.mark.parametrize("budgets", [[], [BUDGET]], ids=["nobody lends", "somebody lends"])
async def test_what_is_known_of_a_calls_cost_is_posted_where_the_rest_cannot_be_worked_out(
    budgets: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = says(b"", Wire.close)
    async with places(broken, broken, budgets=budgets) as (found, upstream):
        priced = found.pipeline.assembly.prices.of

        def of(target: str, model: str) -> Any:
            if target == "t1" and len(upstream.requests) > 1:
                raise KeyError("ours")
            return priced(target, model)

        monkeypatch.setattr(found.pipeline.assembly.prices, "of", of)
        assert (await asked(found, chat(max_tokens=9)))[0] == 502
        record = await found.ledger.outcome()
        (paid,) = found.till.ledger
        assert (paid.target, paid.cost > 0) == ("t0", True)
        ((_, posted),) = found.till.over.items()
        assert record["cost_usd"] * 10**9 == posted == max(paid.cost, sum(found.till.extended))
        found.till.over.clear()
        found.till.ledger.clear()  # which need not add up here


async def test_an_answer_that_a_fault_of_the_gateway_loses_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with places(json_answer({**ANSWER, "more": "x" * 1_500_000})) as (found, _):
        monkeypatch.setattr(Reply, "piece", fails)
        async with connected(found.port) as client:
            await client.say(chat())
            record = await found.ledger.outcome()
        assert (record["code"], found.till.ledger[0].cost > 0) == ("internal_error", True)
