"""The switch that stops an agent: what becomes of calls that come, wait and run, at one gateway and at all of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway import standings
from gateway.assembly import assemble
from gateway.holding import Holds
from gateway.identity import ACTIVE, Agent, Directory
from gateway.standings import PAUSED, QUARANTINED, RULES, NotWritten, Outrun, Standings
from policies.approval_store import Standing, StoreUnavailable
from policies.approvals import Approval, State
from policies.decision import Decision, Effect
from policies.document import Question
from policies.errors import EngineUnavailable
from tests.support.door import RawClient, connected, post
from tests.support.exchanges import AGENT_KEY, ALLOWED, settings
from tests.support.gate import AUTHORIZED, Gate, ScriptedEngine, gate
from tests.support.people import deciding
from tests.support.register import Register, by_way_of
from tests.support.target import target

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
DENIED = dataclasses.replace(ALLOWED, effect=Effect.DENY, explanation="Support may not do this.")
ASKED = dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))
STOPS = [PAUSED, QUARANTINED]
DAY = {"node": "acme/support-bot", "window": "day", "limit_usd": 500}
PRICED = {"price": {"input_usd_per_mtok": 10, "output_usd_per_mtok": 100}}


def script(document: Mapping[str, Any]) -> Decision:
    return ALLOWED if "approval" in document else ASKED


def chat(**more: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], **more})


def message() -> bytes:
    return orjson.dumps({"model": "claude-x", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]})


async def asked(g: Gate, body: bytes = chat(), path: str = CHAT) -> tuple[int, dict[bytes, bytes], Any]:
    async with connected(g.port) as client:
        await client.say(post(path, body, AUTHORIZED, "anthropic-version: 1" if path == MESSAGES else "x-none: 1"))
        status, headers, content = await asyncio.wait_for(client.answer(), 10)
        return status, headers, orjson.loads(content)


def bot(g: Gate) -> Agent:
    return g.pipeline.assembly.directory.named("acme", "support-bot")


async def say(g: Gate, state: str, reason: str = "it spends too much") -> Standing:
    """Dana's word, at this gateway."""
    return await g.pipeline.standings.set(bot(g), state, reason, "dana")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def only(register: Register) -> Approval:
    (approval,) = register.kept.values()
    return approval


@asynccontextmanager
async def streaming(g: Gate, body: bytes = chat(stream=True)) -> AsyncIterator[RawClient]:
    """A client whose streamed answer has begun."""
    async with connected(g.port) as client:
        await client.say(post(CHAT, body, AUTHORIZED))
        assert b"200 OK" in await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 10)
        yield client


# --- calls that come -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STOPS)
async def test_a_stopped_agents_calls_are_refused_in_its_own_protocol_and_reach_nobody(state: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g:
        await say(g, state)
        status, headers, body = await asked(g)
        assert (status, body["error"]["code"]) == (403, f"agent_{state}")
        assert body["error"]["message"].startswith(f"A person has {state} this agent: it spends too much. ")
        assert headers[b"x-should-retry"] == b"false"
        status, headers, body = await asked(g, message(), MESSAGES)
        assert (status, body["error"]["type"], body["error"]["code"]) == (403, "permission_error", f"agent_{state}")
        assert headers[b"x-should-retry"] == b"false"
        assert [each["code"] for each in g.ledger.outcomes()][:2] == [f"agent_{state}"] * 2
        assert upstream.received == []
        await say(g, ACTIVE)
        assert (await asked(g))[0] == 200
        assert len(upstream.received) == 1


@pytest.mark.parametrize("state", STOPS)
async def test_the_policy_is_asked_with_the_state_and_a_stopped_agent_is_told_so_whatever_it_says(state: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g:
        await say(g, state)
        await asked(g)
        assert g.engine.documents[-1]["agent"]["state"] == state
        (decision,) = g.ledger.decisions()
        assert decision["input"]["agent"]["state"] == state
        g.engine.script = DENIED
        _, _, body = await asked(g)
        assert body["error"]["code"] == f"agent_{state}"
        assert g.ledger.decisions()[-1]["result"]["decision"] == "DENY"
        await say(g, ACTIVE)
        await asked(g)
        assert g.engine.documents[-1]["agent"]["state"] == ACTIVE


@pytest.mark.parametrize("state", STOPS)
async def test_a_stopped_agent_is_told_so_where_the_policy_cannot_answer(state: str) -> None:
    async with gate(script=EngineUnavailable("It is away.")) as g:
        assert (await asked(g))[2]["error"]["code"] == "policy_unavailable"
        await say(g, state)
        assert (await asked(g))[2]["error"]["code"] == f"agent_{state}"


@pytest.mark.parametrize("state", STOPS)
async def test_nobody_is_asked_to_approve_a_stopped_agents_call(state: str) -> None:
    register = Register()
    async with gate(register=register, script=ASKED) as g:
        await say(g, state)
        assert (await asked(g))[2]["error"]["code"] == f"agent_{state}"
        assert register.kept == {}


async def test_other_agents_are_served_meanwhile() -> None:
    agents = [
        {"name": "support-bot", "tenant": "acme", "key": "another-key"},
        {"name": "support-bot", "tenant": "globex", "key": AGENT_KEY},
    ]
    async with target() as upstream, gate(target_url=upstream.url, agents=agents) as g:
        await say(g, QUARANTINED)
        assert (await asked(g))[0] == 200
        assert g.pipeline.standings.counts() == {"active": 1, "paused": 0, "quarantined": 1}


async def test_another_key_and_another_configuration_do_not_lift_a_quarantine() -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g:
        await say(g, QUARANTINED)
        sections = g.pipeline.assembly.settings.model_dump(include={"targets", "routes"})
        before = g.pipeline.assembly
        without = [{"name": "other-bot", "key": "other-bots-own-key"}]
        g.pipeline.assembly = assemble(settings(**sections, agents=without), before)
        assert (await asked(g))[0] == 401
        new = [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY, "roles": ["other"]}]
        g.pipeline.assembly = assemble(settings(**sections, agents=new), before)
        assert (await asked(g))[2]["error"]["code"] == "agent_quarantined"
        assert upstream.received == []


# --- calls under way -------------------------------------------------------------------------------------------------


async def test_a_quarantine_ends_a_stream_with_an_error_event_and_what_it_has_cost_is_billed() -> None:
    async with (
        target() as upstream,
        gate(target_url=f"{upstream.url}/endless", target=PRICED, budgets=[DAY]) as g,
        streaming(g, chat(stream=True, max_tokens=100_000)) as client,
    ):
        await client.reader.readuntil(b"hello")
        began = time.monotonic()
        await say(g, QUARANTINED)
        rest = await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), 10)
        assert time.monotonic() - began < 1.0
        *_, last = (line for line in rest.splitlines() if line.startswith(b"data: "))
        assert orjson.loads(last.removeprefix(b"data: "))["error"]["code"] == "agent_quarantined"
        await asyncio.wait_for(upstream.left.wait(), 10)
        record = await g.ledger.outcome()
        assert (record["code"], record["status"]) == ("agent_quarantined", 200)
        assert record["usage"]["output_tokens"] > 0
        assert record["cost_usd"] > 0
        assert set(g.till.pending.values()) == {0}
        assert set(g.till.posted.values()) == {round(record["cost_usd"] * 1e9)}
        assert g.pipeline.standings.under_way() == {}


async def test_a_quarantine_refuses_a_call_whose_target_has_not_answered_and_bills_it() -> None:
    async with target() as upstream, gate(target_url=f"{upstream.url}/silence", target=PRICED) as g:
        answer = asyncio.create_task(asked(g))
        await asyncio.wait_for(upstream.arrived.wait(), 10)
        assert g.pipeline.standings.under_way() == {("acme", "support-bot"): 1}
        await say(g, QUARANTINED)
        status, _, body = await answer
        assert (status, body["error"]["code"]) == (403, "agent_quarantined")
        await asyncio.wait_for(upstream.left.wait(), 10)
        assert (await g.ledger.outcome())["cost_usd"] > 0


async def test_an_answer_that_is_no_stream_and_has_begun_is_dropped_by_a_quarantine() -> None:
    async with target() as upstream, gate(target_url=f"{upstream.url}/large") as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(), AUTHORIZED))
        await client.reader.readuntil(b"\r\n\r\n")
        await say(g, QUARANTINED)
        await asyncio.wait_for(client.silence(), 10)
        record = await g.ledger.outcome()
        assert record["code"] == "agent_quarantined"
        assert record["usage"]["estimated"]


async def test_a_pause_lets_what_has_begun_come_to_its_end() -> None:
    async with target() as upstream, gate(target_url=f"{upstream.url}/endless") as g, streaming(g) as client:
        await client.reader.readuntil(b"hello")
        await say(g, PAUSED)
        assert (await asked(g))[2]["error"]["code"] == "agent_paused"
        for _ in range(3):
            await asyncio.wait_for(client.reader.readuntil(b"hello"), 10)
        await say(g, QUARANTINED)
        assert b"agent_quarantined" in await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), 10)


class Thoughtful(ScriptedEngine):
    """Decides when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.decides = asyncio.Event(), asyncio.Event()

    async def decide(self, question: Question) -> Decision:
        self.asked.set()
        await self.decides.wait()
        return await super().decide(question)


@pytest.mark.parametrize("state", STOPS)
async def test_a_call_that_is_being_decided_when_its_agent_is_stopped_does_not_begin(state: str) -> None:
    async with target() as upstream, gate(target_url=upstream.url) as g:
        g.pipeline.engine = engine = Thoughtful()
        answer = asyncio.create_task(asked(g))
        await asyncio.wait_for(engine.asked.wait(), 10)
        await say(g, state)
        assert (await answer)[2]["error"]["code"] == f"agent_{state}"
        engine.decides.set()
        assert upstream.received == []


@pytest.mark.parametrize("state", STOPS)
@pytest.mark.parametrize("seed", range(5))
async def test_no_call_begins_after_the_agent_was_stopped(state: str, seed: int) -> None:
    chance = random.Random(seed)
    async with target() as upstream, gate(target_url=f"{upstream.url}/pace", budgets=[DAY]) as g:

        async def caller() -> None:
            while True:
                await asyncio.sleep(chance.random() * 0.005)
                if (await asked(g))[0] == 403:
                    return

        callers = [asyncio.create_task(caller()) for _ in range(20)]
        await asyncio.sleep(0.02 + chance.random() * 0.05)
        await say(g, state)
        begun = sum(record["record"] == "intent" for record in g.ledger.records)
        sent = {each["call"] for each in g.ledger.outcomes() if "target_status" in each}
        under_way = {x.id for x in g.pipeline.standings.calls.values() if x.sent_at is not None}
        await asyncio.gather(*callers)
        assert sum(record["record"] == "intent" for record in g.ledger.records) == begun
        assert {each["call"] for each in g.ledger.outcomes() if "target_status" in each} <= sent | under_way


# --- calls that wait for people --------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_approved_while_its_agent_is_paused_runs_once_when_it_is_resumed(
    streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.holding.HEAR", 3600.0)
    register = Register()
    async with target() as upstream, gate(target_url=upstream.url, register=register, script=script) as g:
        async with connected(g.port) as client:
            await client.say(post(CHAT, chat(stream=streams), AUTHORIZED))
            await until(lambda: g.pipeline.holds.waiting == 1)
            await say(g, PAUSED)
            async with deciding(g.pipeline.holds):
                await until(lambda: only(register).state is State.APPROVED)
            await asyncio.sleep(0.05)
            assert (only(register).state, upstream.received) == (State.APPROVED, [])
            await say(g, ACTIVE)
            status, _, body = await asyncio.wait_for(client.answer(), 10)
            assert status == 200
            assert b"error" not in body
        await until(lambda: only(register).state is State.DONE)
        assert len(upstream.received) == 1


async def test_a_pause_is_for_calls_that_were_held_before_a_reload_too() -> None:
    register = Register()
    async with target() as upstream, gate(target_url=upstream.url, register=register, script=script) as g:
        answer = asyncio.create_task(asked(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        g.pipeline.assembly = assemble(g.pipeline.assembly.settings, g.pipeline.assembly)
        await say(g, PAUSED)
        async with deciding(g.pipeline.holds):
            await until(lambda: only(register).state is State.APPROVED)
        await asyncio.sleep(0.05)
        assert upstream.received == []
        await say(g, ACTIVE)
        assert (await answer)[0] == 200


async def test_an_agent_whose_patience_ends_while_it_is_paused_is_told_why_its_approved_call_has_not_run() -> None:
    register, hasty = Register(), {"hold_for": 0.3}
    async with gate(register=register, script=script, approvals=hasty) as g:
        answer = asyncio.create_task(asked(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        await say(g, PAUSED)
        async with deciding(g.pipeline.holds):
            _, _, body = await answer
        assert body["error"]["code"] == "approval_pending"
        assert "its agent is paused" in body["error"]["message"]
        assert only(register).state is State.APPROVED


async def test_an_approved_call_that_has_not_been_sent_when_its_agent_is_paused_keeps_its_approval() -> None:
    register = Register()
    async with target() as upstream, gate(target_url=upstream.url, register=register, script=script) as g:
        thoughtful = Thoughtful()
        thoughtful.script = script
        answer = asyncio.create_task(asked(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        g.pipeline.engine = thoughtful  # which is asked again once people have approved
        async with deciding(g.pipeline.holds):
            await asyncio.wait_for(thoughtful.asked.wait(), 10)
        await say(g, PAUSED)
        assert (await answer)[2]["error"]["code"] == "agent_paused"
        assert only(register).state is State.APPROVED
        thoughtful.decides.set()
        await say(g, ACTIVE)
        assert (await asked(g))[0] == 200
        assert len(upstream.received) == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_a_quarantine_takes_back_what_waits_and_tells_those_who_wait_at_once(streams: bool) -> None:
    register = Register()
    async with gate(register=register, script=script) as g, connected(g.port) as client:
        await client.say(post(CHAT, chat(stream=streams), AUTHORIZED))
        await until(lambda: g.pipeline.holds.waiting == 1)
        await say(g, QUARANTINED)
        approval = only(register)
        assert (approval.state, approval.reason) == (
            State.CANCELLED,
            "Its agent was quarantined: it spends too much",
        )
        _, _, body = await asyncio.wait_for(client.answer(), 10)
        assert b"agent_quarantined" in body
        assert any(note.get("who") == "dana" for note in g.ledger.records if note["record"] == "approval")


@pytest.mark.parametrize("running", [False, True])
async def test_a_held_stream_that_was_kept_open_ends_with_an_error_event(running: bool) -> None:
    register = Register()
    async with (
        target() as upstream,
        gate(target_url=f"{upstream.url}/endless", register=register, script=script) as g,
        connected(g.port) as client,
    ):
        await client.say(post(CHAT, chat(stream=True), AUTHORIZED, "x-stainless-read-timeout: 0.3"))
        await asyncio.wait_for(client.reader.readuntil(b": held"), 10)
        if running:
            async with deciding(g.pipeline.holds):
                await asyncio.wait_for(client.reader.readuntil(b"hello"), 10)
        await say(g, QUARANTINED)
        assert b"agent_quarantined" in await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), 10)
        await until(lambda: only(register).state is (State.UNKNOWN if running else State.CANCELLED))
        assert not running or "agent_quarantined" in only(register).reason
        assert await register.answer(only(register).id) is None


async def test_a_quarantine_takes_back_a_yes_that_was_not_used() -> None:
    register, hasty = Register(), {"hold_for": 0}
    async with gate(register=register, script=script, approvals=hasty) as g:
        assert (await asked(g))[2]["error"]["code"] == "approval_pending"
        async with deciding(g.pipeline.holds):
            await until(lambda: only(register).state is State.APPROVED)
        await say(g, QUARANTINED)
        assert only(register).state is State.REVOKED


async def test_what_a_gateway_opened_that_had_not_heard_is_taken_back_before_the_agent_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standings, "HEAR", 3600.0)
    register, hasty = Register(), {"hold_for": 0}
    async with (
        gate(register=register, script=script, approvals=hasty) as one,
        gate(register=register, script=script, approvals=hasty) as other,
    ):
        await say(one, QUARANTINED)
        assert (await asked(other))[2]["error"]["code"] == "approval_pending"
        assert only(register).state is State.PENDING
        await say(one, ACTIVE)
        assert only(register).state is State.CANCELLED


async def test_every_gateway_that_hears_of_a_quarantine_sees_to_it_that_nothing_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standings, "AGAIN", 0.01)
    register, hasty = Register(), {"hold_for": 0}
    async with gate(register=register, script=script, approvals=hasty) as g:
        await asked(g)
        # The gateway that was asked is gone before it has taken anything back.
        assert await register.stand("acme", "support-bot", Standing(QUARANTINED, "", "dana", 1, 1))
        await g.pipeline.standings.hear()
        await until(lambda: only(register).state is State.CANCELLED)


async def test_a_grant_is_of_no_use_to_an_agent_that_is_stopped() -> None:
    register = Register()
    async with gate(register=register, script=script) as g:
        await say(g, QUARANTINED)
        assert (await asked(g))[2]["error"]["code"] == "agent_quarantined"
        assert g.pipeline.holds.moves == {}


# --- several gateways, and their store -------------------------------------------------------------------------------


async def test_a_quarantine_at_one_gateway_cuts_a_stream_at_another_within_a_second() -> None:
    register = Register()
    async with (
        target() as upstream,
        gate(register=register) as one,
        gate(register=register, target_url=f"{upstream.url}/endless") as other,
        streaming(other) as client,
    ):
        await client.reader.readuntil(b"hello")
        await say(one, QUARANTINED)
        async with asyncio.timeout(1.0):
            assert b"agent_quarantined" in await client.reader.readuntil(b"\r\n0\r\n\r\n")
        assert (await asked(other))[2]["error"]["code"] == "agent_quarantined"


async def test_a_gateway_that_has_never_heard_how_agents_stand_lets_no_call_in() -> None:
    register = Register()
    register.failure = "away"
    async with target() as upstream, gate(target_url=upstream.url, register=register) as g:
        status, headers, body = await asked(g)
        assert (status, body["error"]["code"]) == (503, "ledger_unavailable")
        assert headers[b"retry-after"] == b"2"
        assert (upstream.received, g.engine.documents) == ([], [])
        register.failure = None
        await until(lambda: g.pipeline.standings.heard)
        assert (await asked(g))[0] == 200


async def test_what_was_heard_last_stays_in_force_while_the_store_is_away() -> None:
    register = Register()
    async with target() as upstream, gate(target_url=upstream.url, register=register) as g:
        await say(g, PAUSED)
        register.failure = "away"
        assert (await asked(g))[2]["error"]["code"] == "agent_paused"
        with pytest.raises(StoreUnavailable):
            await say(g, ACTIVE)
        assert (await asked(g))[2]["error"]["code"] == "agent_paused"
        register.failure = None
        await say(g, ACTIVE)
        assert (await asked(g))[0] == 200


async def test_an_agent_is_stopped_while_the_store_is_away_and_others_hear_of_it_afterwards() -> None:
    register = Register()
    async with gate(register=register) as one, gate(register=register) as other:
        register.failure = "away"
        with pytest.raises(NotWritten):
            await say(one, QUARANTINED)
        assert (await asked(one))[2]["error"]["code"] == "agent_quarantined"
        register.failure = None
        await until(lambda: bot(other).state == QUARANTINED)
        assert (await register.standings())["acme", "support-bot"].by == "dana"


async def test_a_stop_that_could_not_be_written_is_not_undone_by_what_others_said_meanwhile() -> None:
    register = Register()
    away = asyncio.Event()

    async def weather(_: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        if away.is_set():
            raise StoreUnavailable("away")
        return await ask()

    async with gate(register=register) as one, gate(register=by_way_of(register, weather)) as cut_off:
        away.set()
        with pytest.raises(NotWritten):
            await say(cut_off, QUARANTINED)
        await say(one, PAUSED)
        await say(one, ACTIVE)
        away.clear()
        await until(lambda: bot(one).state == QUARANTINED)
        assert (bot(cut_off).state, (await register.standings())["acme", "support-bot"].epoch) == (QUARANTINED, 3)


async def test_a_store_that_has_lost_a_quarantine_does_not_lift_it() -> None:
    register = Register()
    async with gate(register=register) as g:
        await say(g, PAUSED)
        await say(g, QUARANTINED)
        register._standings.clear()
        await g.pipeline.standings.hear()
        assert bot(g).state == QUARANTINED
        # Somebody else's first word has the place of what is lost.
        assert await register.stand("acme", "support-bot", Standing(PAUSED, "", "sam", 1, 1))
        assert await register.stand("acme", "support-bot", Standing(ACTIVE, "", "sam", 2, 2))
        await g.pipeline.standings.hear()
        assert bot(g).state == QUARANTINED
        assert (await register.standings())["acme", "support-bot"].state == QUARANTINED


@pytest.mark.parametrize("milder", [ACTIVE, PAUSED])
async def test_who_says_something_milder_does_not_undo_a_quarantine_that_he_has_not_seen(
    milder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standings, "HEAR", 3600.0)
    register = Register()
    async with gate(register=register) as one, gate(register=register) as other:
        await say(one, PAUSED)
        await other.pipeline.standings.hear()
        await say(one, QUARANTINED)
        with pytest.raises(Outrun):
            await say(other, milder)
        assert bot(other).state == QUARANTINED
        await say(other, milder)
        await one.pipeline.standings.hear()
        assert bot(one).state == milder


async def test_nor_does_who_spoke_before_it_was_heard_here_and_had_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "HEAR", 3600.0)
    register = Register()

    async def slowly(_: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        await asyncio.sleep(0)
        return await ask()

    async with gate(register=register) as one, gate(register=by_way_of(register, slowly)) as other:
        await say(one, QUARANTINED)
        words = await asyncio.gather(say(other, ACTIVE), say(other, PAUSED), return_exceptions=True)
        assert [type(each) for each in words] == [Outrun, Outrun]
        assert bot(other).state == QUARANTINED


async def test_who_stops_an_agent_is_obeyed_whoever_was_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "HEAR", 3600.0)
    register = Register()
    async with gate(register=register) as one, gate(register=register) as other:
        await say(one, PAUSED)
        await say(one, ACTIVE)
        assert (await say(other, QUARANTINED)).epoch == 3
        await one.pipeline.standings.hear()
        assert bot(one).state == QUARANTINED


@pytest.mark.parametrize("seed", range(100))
async def test_whatever_is_said_where_and_whatever_is_lost_all_gateways_agree_in_the_end(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standings, "HEAR", 0.001)
    chance, register, calm = random.Random(seed), Register(), False

    async def weather(_: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        luck = chance.random() if not calm else 1.0
        if luck < 0.15:
            raise StoreUnavailable("away")
        told = await ask()
        await asyncio.sleep(0)
        if luck < 0.3:
            raise StoreUnavailable("its reply was lost")
        return told

    gateways = []
    for _ in range(3):
        holds = Holds(by_way_of(register, weather), lambda *_: None)
        gateways.append(Standings(holds.store, holds))
        gateways[-1].under(Directory(settings().agents))

    async def person() -> None:
        for _ in range(10):
            at, state = chance.choice(gateways), chance.choice(list(RULES))
            (agent,) = at._directory
            with contextlib.suppress(StoreUnavailable, NotWritten, Outrun):
                await at.set(agent, state, f"word {chance.random()}", "dana")
            with contextlib.suppress(StoreUnavailable):
                await chance.choice(gateways).hear()

    await asyncio.gather(*(person() for _ in range(3)))
    calm = True
    for each in gateways * 3:
        await each.hear()
    for each in gateways:
        await each.end()
        assert each._known == await register.standings()
        assert each._unwritten == set()
        assert [agent.state for agent in each._directory] == [said.state for said in each._known.values()]


async def test_a_word_of_a_later_version_stops_the_agent() -> None:
    register = Register()
    async with gate(register=register) as g:
        assert await register.stand("acme", "support-bot", Standing("banished", "", "dana", 1, 1))
        await g.pipeline.standings.hear()
        assert (await asked(g))[2]["error"]["code"] == "agent_paused"


async def test_thousands_of_agents_that_stand_somehow_are_heard_in_no_time() -> None:
    register = Register()
    for number in range(10_000):
        register._standings["acme", f"bot-{number}"] = Standing(PAUSED, "", "dana", 1, 1)
    async with gate(register=register) as g:
        began = time.monotonic()
        await g.pipeline.standings.hear()
        assert time.monotonic() - began < 0.5
        assert bot(g).state == ACTIVE


def test_the_states_are_those_of_the_contract() -> None:
    assert list(RULES) == ["active", "paused", "quarantined"]
    assert [rule.strictness for rule in RULES.values()] == [0, 1, 2]
