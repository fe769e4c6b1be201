"""The decision log: what an event holds, what is kept out of it, and what OPA's own events look like beside it."""

import asyncio
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from gateway.decision_log import DecisionLog
from gateway.exchange import Asked, Exchange
from gateway.records import concluded, event_of, intended
from policies.build import build
from policies.decision import Decision, Effect, parse
from policies.errors import EngineUnavailable, Undecided
from policies.money import nano
from tests.policies.support import rego, sources
from tests.support.collector import collecting
from tests.support.door import connected, post
from tests.support.exchanges import ALLOWED, exchange
from tests.support.gate import AUTHORIZED, ScriptedEngine, gate
from tests.support.opa import needs_opa, opa_server
from tests.support.target import target

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def decided(x: Exchange, *answers: Mapping[str, Any] | None) -> Exchange:
    """The same call, decided so many times."""
    question = x.asked[0].question
    x.asked = [
        Asked(question, parse(orjson.dumps(answer), "r2") if answer is not None else None, "r2", None)
        for answer in answers
    ]
    x.decision = x.asked[-1].decision
    return x


def event(x: Exchange) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(event_of(intended(x, DecisionLog({"zone": "a"}))[-1]))
    return found


def test_an_event_names_the_bundles_that_its_policy_came_in() -> None:
    x = decided(exchange(), {"decision": "ALLOW"})
    x.asked[0].bundles = {"policy.tar.gz": "v42"}
    assert event(x)["bundles"] == {"weighbridge": {"revision": "r2"}, "policy.tar.gz": {"revision": "v42"}}


def test_an_event_says_who_asked_what_and_what_was_answered() -> None:
    x = decided(exchange(session="s-1"), {"decision": "ALLOW", "risk_level": "low", "explanation": "why not"})
    told = event(x)
    assert told["decision_id"] == f"{x.id}-1"
    assert (told["labels"]["zone"], told["labels"].keys()) == ("a", {"zone", "id", "version"})
    assert told["bundles"] == {"weighbridge": {"revision": "r2"}}
    assert told["path"] == "weighbridge/decision"
    assert told["requested_by"] == "support-bot"
    assert told["result"] == {"decision": "ALLOW", "risk_level": "low", "explanation": "why not"}
    document = orjson.loads(x.asked[0].question.document())
    document["call"]["arguments"]["messages"] = "***"
    assert told["input"] == document
    assert told["masked"] == ["/input/call/arguments/messages"]
    assert not told.keys() & {"record", "call", "erased", "error", "trace_id"}


def test_the_time_of_an_event_is_the_policys_to_the_nanosecond() -> None:
    told = event(exchange())
    whole, fraction = told["timestamp"].rstrip("Z").split(".")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", whole)
    assert whole + "Z" == told["input"]["time"]["utc"]
    assert int(fraction) == told["input"]["time"]["unix_ns"] % 1_000_000_000


def test_every_event_of_a_process_has_its_own_number() -> None:
    events = DecisionLog()
    numbers = [orjson.loads(intended(exchange(), events)[0])["req_id"] for _ in range(3)]
    assert numbers == [1, 2, 3]


def test_an_event_belongs_to_the_callers_trace() -> None:
    x = exchange()
    x.own = {b"traceparent": TRACE}
    assert (event(x)["trace_id"], event(x)["span_id"]) == (TRACE[3:35].decode(), TRACE[36:52].decode())


def test_a_call_that_nobody_decided_has_an_event_with_the_reason() -> None:
    x = decided(exchange(), None)
    x.code, x.detail = "policy_unavailable", "weighbridge.rego:3: conflict \ud800"
    first, outcome = map(orjson.loads, concluded(x, DecisionLog()))
    assert first["error"] == {"code": "policy_unavailable", "message": "weighbridge.rego:3: conflict \\ud800"}
    assert "result" not in first
    assert outcome["code"] == "policy_unavailable"


def test_what_is_to_be_redacted_is_not_in_the_record_of_how_that_was_decided() -> None:
    x = exchange(arguments={"model": "m", "messages": [], "ssn": "078-05-1120", "deep": {"ssn": "078-05-1120"}})
    decided(x, {"decision": "ALLOW"}, {"decision": "ALLOW", "obligations": {"redact": ["/arguments/*/ssn"]}})
    decided(x, *[asked.decision.facts() for asked in x.asked if asked.decision], {"decision": "DENY"})
    x.asked[0].decision = parse(b'{"decision":"ALLOW","obligations":{"redact":["/arguments/ssn"]}}', "r2")
    lines = concluded(x, DecisionLog())
    assert b"078-05-1120" not in b"".join(lines)
    assert orjson.loads(lines[1])["masked"] == [
        "/input/call/arguments/messages",
        "/input/call/arguments/ssn",
        "/input/call/arguments/*/ssn",
    ]


def test_what_a_policy_puts_into_headers_and_calls_is_named_and_not_shown() -> None:
    obligations = {"headers": {"x-key": "hush"}, "replace": {"/arguments/a": "hush"}, "max_tokens": 5}
    told = event(decided(exchange(), {"decision": "ALLOW", "obligations": obligations}))
    assert told["result"]["obligations"] == {
        "headers": {"x-key": "***"},
        "replace": {"/arguments/a": "***"},
        "max_tokens": 5,
    }
    assert told["masked"][-2:] == ["/result/obligations/headers/x-key", "/result/obligations/replace/~1arguments~1a"]


@pytest.mark.parametrize("size", [8 * 1024, 100_000])
def test_arguments_too_long_to_record_are_erased(size: int) -> None:
    told = event(exchange(arguments={"model": "m", "padding": "x" * size}))
    assert told["erased"] == ["/input/call/arguments"]
    assert "arguments" not in told["input"]["call"]


def test_arguments_that_are_short_once_masked_are_recorded() -> None:
    told = event(exchange(arguments={"model": "m", "messages": ["x" * 100_000], "n": 1}))
    assert told["input"]["call"]["arguments"] == {"model": "m", "messages": "***", "n": 1}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: setattr(x.asked[0].question, "target", "\ud800"),
        lambda x: x.asked[0].question.arguments.update(n={1: {2}}),
    ],
    ids=["half a character", "no JSON"],
)
def test_an_input_that_json_cannot_hold_is_erased(spoil: Any) -> None:
    x = decided(exchange(), {"decision": "DENY", "explanation": "you said so"})
    spoil(x)
    first, outcome = map(orjson.loads, concluded(x, DecisionLog()))
    assert first["erased"] == ["/input", "/result/explanation"]
    assert first["result"] == {"decision": "DENY"}
    assert outcome["record"] == "outcome"


CHAT = b'{"model":"gpt-4o-mini","messages":[],"ssn":"078-05-1120"}'
DENIED = dataclasses.replace(ALLOWED, effect=Effect.DENY, explanation="078-05-1120 may not.")


async def test_what_the_policy_masks_does_not_reach_the_ledger() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        g.engine.masks = True
        g.engine.masked = [
            "/input/call/arguments/ssn",
            {"op": "upsert", "path": "/input/agent/name", "value": "someone"},
        ]
        await client.say(post("/v1/chat/completions", CHAT, AUTHORIZED))
        assert (await client.answer())[0] == 200
        intent, _ = g.ledger.records
        assert intent["record"] == "intent"
        assert intent["input"]["call"]["arguments"].keys() == {"model", "messages"}
        assert intent["input"]["agent"]["name"] == "someone"
        assert intent["erased"] == ["/input/call/arguments/ssn"]
        assert intent["masked"] == ["/input/call/arguments/messages", "/input/agent/name"]
        (seen,) = g.engine.events
        assert seen["input"]["call"]["arguments"]["ssn"] == "078-05-1120"
        assert not seen.keys() & {"record", "call"}


@pytest.mark.parametrize("came", [None, ScriptedEngine()], ids=["none", "one without masks"])
async def test_a_policy_that_is_swapped_while_it_is_asked_masks_what_it_decided(came: ScriptedEngine | None) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:

        def swapping(_: Mapping[str, Any]) -> Decision:
            g.pipeline.engine = came
            return ALLOWED

        g.engine.script, g.engine.masks, g.engine.masked = swapping, True, ["/input"]
        await client.say(post("/v1/chat/completions", CHAT, AUTHORIZED))
        status, _, _ = await client.answer()
        assert status == 200
        await g.ledger.outcome()
        assert "078-05-1120" not in str(g.ledger.records)


async def test_each_decision_is_masked_by_the_policy_that_took_it() -> None:
    """Two policies take the two decisions on a call: the first wants it changed, the other comes meanwhile."""
    wanting = parse(b'{"decision":"ALLOW","obligations":{"max_tokens":5}}', "r1")
    came = ScriptedEngine()
    came.masks, came.masked = True, ["/input/agent/tenant"]
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:

        def swapping(_: Mapping[str, Any]) -> Decision:
            g.pipeline.engine = came
            return wanting

        g.engine.script, g.engine.masks, g.engine.masked = swapping, True, ["/input/agent/name"]
        came.script = wanting
        await client.say(post("/v1/chat/completions", CHAT, AUTHORIZED))
        assert (await client.answer())[0] == 200
        await g.ledger.outcome()
        first, second = g.ledger.decisions()
        assert (first["erased"], second["erased"]) == (["/input/agent/name"], ["/input/agent/tenant"])
        assert [len(engine.events) for engine in (g.engine, came)] == [1, 1]


async def test_a_policy_has_no_say_in_the_record_of_what_another_has_decided() -> None:
    came = ScriptedEngine()
    came.masks, came.masked = True, ["/input"]
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:

        def swapping(_: Mapping[str, Any]) -> Decision:
            g.pipeline.engine = came
            return ALLOWED

        g.engine.script = swapping
        await client.say(post("/v1/chat/completions", CHAT, AUTHORIZED))
        assert (await client.answer())[0] == 200
        await g.ledger.outcome()
        (decision,) = g.ledger.decisions()
        assert decision["input"]["agent"]["name"] == "support-bot"
        assert not came.events


@pytest.mark.parametrize("masked", [Undecided("conflict"), EngineUnavailable("no"), "/input", [{"op": "shred"}], {}])
async def test_a_record_that_cannot_be_masked_is_erased(masked: Any) -> None:
    async with gate(script=DENIED) as g, connected(g.port) as client:
        g.engine.masks, g.engine.masked = True, masked
        await client.say(post("/v1/chat/completions", CHAT, AUTHORIZED))
        assert (await client.answer())[0] == 403
        await g.ledger.outcome()
        (decision,) = g.ledger.decisions()
        assert decision["erased"] == ["/input", "/result/explanation"]
        assert decision["result"] == {"decision": "DENY"}
        assert "078-05-1120" not in repr(g.ledger.records)


async def test_a_call_that_could_not_be_decided_is_erased_where_the_policy_masks() -> None:
    async with gate(script=Undecided("conflict")) as g, connected(g.port) as client:
        g.engine.masks, g.engine.masked = True, []
        await client.say(post("/v1/chat/completions", CHAT, AUTHORIZED))
        await client.answer()
        await g.ledger.outcome()
        (decision,) = g.ledger.decisions()
        assert decision["erased"] == ["/input"]
        assert decision["error"]["code"] == "policy_unavailable"


BUDGET = {"node": "acme/support-bot", "window": "day", "limit_usd": 5}
SHORT = b'{"model":"gpt-4o-mini","messages":[],"max_tokens":16}'


@pytest.mark.parametrize(
    ("reading", "budgets", "cost"),
    [
        ("input.budgets", True, False),
        ("[each.state | some each in input.budgets]", True, False),
        ("input.call.estimated_cost_usd", False, True),
        ("[input.budgets, input.call.estimated_cost_usd]", True, True),
        ("input.call.target", False, False),
        ("[each | data.caps[input.agent.name]; some each in input.budgets]", True, False),
        ("[each | data.other[input.agent.name]; some each in input.budgets]", False, False),
    ],
)
async def test_money_is_recorded_where_the_policy_could_read_it_and_as_it_read_it(
    reading: str, budgets: bool, cost: bool
) -> None:
    policy = f'decision := {{"decision": "ALLOW", "explanation": json.marshal({reading})}}'
    engine = await build(sources(rego(policy), data={"caps": {"support-bot": 1}}))
    async with target() as upstream, gate(target_url=upstream.url, budgets=[BUDGET]) as g, connected(g.port) as client:
        g.pipeline.engine = engine
        g.till.posted[g.account(BUDGET).key] = nano(4.2)
        await client.say(post("/v1/chat/completions", SHORT, AUTHORIZED))
        assert (await client.answer())[0] == 200
        await g.ledger.outcome()
        (decision,) = g.ledger.decisions()
        told = decision["input"]
        assert ("budgets" in told, "estimated_cost_usd" in told["call"]) == (budgets, cost)
        if budgets:
            assert [each["posted_usd"] for each in told["budgets"]] == [4.2]
        document = orjson.dumps(told)
        assert engine.answer(document, told["time"]["unix_ns"]).facts() == decision["result"]


REPORTING = ("min_delay_seconds=1", "max_delay_seconds=1")
MASKS = ["/input/call/arguments/ssn", {"op": "upsert", "path": "/input/agent/name", "value": "someone"}]
POLICY = """package weighbridge

decision := {"decision": "ALLOW", "risk_level": "low", "obligations": {"sample": true}}
"""
MASKING = f"""package system.log

mask := {orjson.dumps(MASKS).decode()}
"""


def shape(value: Any) -> Any:
    """Names and types; lists by their first element."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return [shape(each) for each in value[:1]] if isinstance(value, list) else type(value)


@needs_opa
async def test_an_event_has_the_shape_of_opas_own(tmp_path: Path) -> None:
    """Of the same decision on the same input, masked by the same rule."""
    (tmp_path / ".manifest").write_text('{"revision": "r1", "roots": ["weighbridge", "system"]}')
    (tmp_path / "main.rego").write_text(POLICY)
    (tmp_path / "mask.rego").write_text(MASKING)
    async with target() as upstream, gate(target_url=upstream.url) as g, connected(g.port) as client:
        g.engine.masks, g.engine.masked = True, MASKS
        g.engine.script = parse(b'{"decision": "ALLOW", "risk_level": "low", "obligations": {"sample": true}}', "r1")
        await client.say(post("/v1/chat/completions", CHAT, AUTHORIZED))
        assert (await client.answer())[0] == 200
        ours = {name: value for name, value in g.ledger.records[0].items() if name not in ("record", "call")}
        asked = dict(g.engine.documents[0])
    async with collecting() as it:
        sets = [f"services.c.url=http://127.0.0.1:{it.port}", "decision_logs.service=c"]
        sets += [f"decision_logs.reporting.{each}" for each in REPORTING]
        arguments = [part for each in sets for part in ("--set", each)]
        with opa_server(tmp_path, arguments=[*arguments, "--log-level", "info", "--bundle"]) as opa:
            async with httpx2.AsyncClient(trust_env=False) as http:
                await http.post(opa.url + "/v1/data/weighbridge/decision", json={"input": asked})
            async with asyncio.timeout(20):
                await it.asked.wait()
                while not it.events:
                    await asyncio.sleep(0.01)
    (theirs,) = it.events
    assert it.heads[0].startswith(b"POST /logs ")
    # OPA tells its timings, which we do not; we tell the trace of a sampled call, which OPA does where it traces.
    assert theirs.keys() - ours.keys() == {"metrics"}
    assert ours.keys() - theirs.keys() == {"trace_id", "span_id"}
    assert (theirs["path"], theirs["erased"], theirs["masked"]) == (ours["path"], ours["erased"], ours["masked"][-1:])
    for name in theirs.keys() & ours.keys() - {"labels", "bundles", "input"}:
        assert shape(ours[name]) == shape(theirs[name]), name
    assert set(ours["labels"]) == set(theirs["labels"]) == {"id", "version"}
    assert shape(list(ours["bundles"].values())) == shape(list(theirs["bundles"].values()))
    ours["input"]["call"]["arguments"]["messages"] = []
    assert ours["input"] == theirs["input"]
    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d+Z", theirs["timestamp"])
