"""One approval, one use: what its call leaves behind when it ends at any moment, and what the store is told of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
import pytest

from gateway import claims
from gateway.claims import Claims, NotUsable, Stage
from gateway.exchange import Exchange, Reached
from gateway.holding import Holds
from gateway.lifeline import Stopping
from policies.approval_store import StoreUnavailable
from policies.approvals import Approval, Refused, State, claimed
from policies.decision import Decision
from tests.gateway.state.approvals_suite import NOW, approval, opened
from tests.gateway.test_holding import (
    CHAT,
    REPEATED,
    SAID,
    SECOND,
    Slow,
    asked,
    chat,
    held,
    only,
    register,
    script,
    until,
)
from tests.support.door import connected, post
from tests.support.exchanges import exchange, settings
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.misbehaving import Misbehaving
from tests.support.people import deciding
from tests.support.register import Register, Weather, by_way_of
from tests.support.target import target


async def fair(_: str, question: Callable[[], Awaitable[Any]]) -> Any:
    return await question()


# Stages


class Process:
    """What one process does with the one approval of a store. `asked` has its questions to the store, each with the
    stage that the use was at."""

    def __init__(self, shared: Register, weather: Weather = fair) -> None:
        async def noting(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
            self.asked += [(name, use.stage) for use in self.claims._uses.values()]
            return await weather(name, question)

        self.asked: list[tuple[str, Stage]] = []
        self.holds = Holds(by_way_of(shared, noting), lambda *_: None)
        self.holds.under(settings(admin={"people": [{"name": "dana", "token": "t" * 8, "roles": ["finance"]}]}))
        self.claims = Claims(self.holds)

    def call(self, which: Approval) -> Exchange:
        """One that has taken the approval."""
        x = exchange()
        assert self.claims.take(which.id, x.id)
        x.approval = which
        return x

    async def conclude(self, x: Exchange) -> None:
        self.claims.conclude(x, None)
        await self.holds.end()


async def approved() -> tuple[Register, Approval]:
    shared = Register(lambda: NOW + SECOND)
    return shared, await opened(shared, approval(), State.APPROVED)


LOOKED, CLAIMS, TELLS = ("get", Stage.CLAIMING), ("replace", Stage.DOUBTFUL), ("replace", Stage.TELLING)


@pytest.mark.parametrize(
    ("fate", "ends", "asked"),
    [
        ("runs", None, [LOOKED, CLAIMS, TELLS]),
        ("store away", StoreUnavailable, [LOOKED]),
        ("claim lost", StoreUnavailable, [LOOKED, CLAIMS, ("get", Stage.TELLING)]),
        ("reply lost", StoreUnavailable, [LOOKED, CLAIMS, ("get", Stage.TELLING), TELLS]),
        ("another is first", NotUsable, [LOOKED, CLAIMS, LOOKED]),
        ("its people may no longer", Refused, [LOOKED, ("replace", Stage.CLAIMING)]),
    ],
)
async def test_the_store_is_asked_what_the_stage_of_a_use_wants_and_the_use_is_given_back(
    fate: str, ends: type[Exception] | None, asked: list[tuple[str, Stage]]
) -> None:
    shared, which = await approved()

    async def weather(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
        claims_now = process.asked[-1] == CLAIMS
        if fate == "store away" or (fate == "claim lost" and claims_now):
            raise StoreUnavailable("away")
        if fate == "another is first" and claims_now:
            await shared.replace(claimed(which, "another", 60 * SECOND, NOW))
        answer = await question()
        if fate == "reply lost" and claims_now:
            raise StoreUnavailable("the answer was lost")
        return answer

    process = Process(shared, weather)
    if fate == "its people may no longer":
        process.holds.under(settings())
    x = process.call(which)
    with contextlib.nullcontext() if ends is None else pytest.raises(ends):
        await process.claims.claim(which.id)
    assert process.claims.still_claimed(which.id) is (fate == "runs")
    if ends is not NotUsable:
        await process.conclude(x)
    assert process.asked == asked
    after = {"another is first": State.CONSUMED, "its people may no longer": State.REVOKED}
    assert shared.kept[which.id].state is after.get(fate, State.APPROVED)
    assert process.claims.take(which.id, "the next one")


async def test_a_call_that_ends_while_its_approval_is_looked_at_has_nothing_to_tell() -> None:
    shared, which = await approved()
    looks, looked = asyncio.Event(), asyncio.Event()

    async def weather(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
        looks.set()
        await looked.wait()
        raise StoreUnavailable("away")

    process = Process(shared, weather)
    x = process.call(which)
    claiming = asyncio.create_task(process.claims.claim(which.id))
    await looks.wait()
    claiming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claiming
    process.claims.conclude(x, None)
    assert not process.claims.take(which.id, "the next one"), "what comes of the claim is not known yet"
    looked.set()
    await process.holds.end()
    assert process.asked == [LOOKED]
    assert process.claims.take(which.id, "the next one")


async def test_one_of_the_calls_that_wait_takes_the_approval_and_the_others_are_woken_when_it_is_given_back() -> None:
    shared, which = await approved()
    process = Process(shared)
    with process.holds.waits(which.id) as waiter:
        x = process.call(which)
        assert not process.claims.take(which.id, "another call")
        assert not await waiter.woken(0)
        await process.conclude(x)
        assert await waiter.woken(0)
        assert process.claims.take(which.id, "another call")
    assert process.asked == [], "a call that has claimed nothing has nothing to tell"


async def test_a_renewal_that_is_answered_late_is_not_taken_for_the_claim_of_the_next_call() -> None:
    shared, which = await approved()
    renewed, answered = asyncio.Event(), asyncio.Event()

    async def weather(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
        answer = await question()
        if asyncio.current_task() is renewing:
            renewed.set()
            await answered.wait()
        return answer

    renewing: asyncio.Task[None] | None = None
    process = Process(shared, weather)
    first = process.call(which)
    await process.claims.claim(which.id)
    renewing = asyncio.create_task(process.claims.renew())
    await renewed.wait()
    await process.conclude(first)
    second = process.call(shared.kept[which.id])
    await process.claims.claim(which.id)
    answered.set()
    await renewing
    second.reached = Reached.ANSWERED
    await process.conclude(second)
    assert (shared.kept[which.id].state, shared.kept[which.id].claimed_by) == (State.DONE, second.id)


# Leaving


@pytest.mark.parametrize("when", ["before", "after", "later"])
async def test_an_agent_that_leaves_in_the_middle_of_its_claim_takes_no_approval_with_it(when: str) -> None:
    shared, claiming, goes_on = Register(), asyncio.Event(), asyncio.Event()

    async def arriving(question: Callable[[], Awaitable[Any]]) -> Any:
        await goes_on.wait()
        return await question()

    async def weather(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
        if name != "replace" or claiming.is_set() or next(iter(shared.kept.values())).state is not State.APPROVED:
            return await question()
        claiming.set()
        if when == "later":  # it is on its way, whatever becomes of who has asked
            return await asyncio.shield(asyncio.create_task(arriving(question)))
        answer = await question() if when == "after" else None
        await goes_on.wait()
        return answer if when == "after" else await question()

    async with target() as upstream, held(upstream.url, register=by_way_of(shared, weather)) as g:
        async with deciding(g.pipeline.holds):
            async with connected(g.port) as client:
                await client.say(post(CHAT, chat(), AUTHORIZED))
                await asyncio.wait_for(claiming.wait(), 10)
            await g.ledger.outcome()
            assert upstream.received == []
            goes_on.set()
            (which,) = shared.kept
            await until(lambda: shared.kept[which].state is State.APPROVED and not g.pipeline.claims._uses)
            assert (await asked(g))[0] == 200
        assert (shared.kept[which].state, len(upstream.received)) == (State.DONE, 1)


async def test_a_call_that_has_used_its_approval_comes_to_its_end_without_its_agent() -> None:
    slow = Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        async with held(f"http://127.0.0.1:{upstream.port}") as g, deciding(g.pipeline.holds):
            async with connected(g.port) as first:
                await first.say(post(CHAT, chat(), AUTHORIZED))
                await asyncio.wait_for(slow.arrived.wait(), 10)
                second = asyncio.create_task(asked(g))
                await until(lambda: g.pipeline.holds.waiting == 1)
            await asyncio.sleep(0)
            slow.answers.set()
            status, headers, _ = await second
            assert (status, headers[b"x-weighbridge-approval"].decode()) == (200, only(g).id)
            await until(lambda: len(g.ledger.outcomes()) == 2)
            codes = {each["code"]: each.get("repeated", False) for each in g.ledger.outcomes()}
            assert codes == {"client_gone": False, "ok": True}
            # The agent itself, trying again, gets what it has missed.
            assert (await asked(g, chat(), REPEATED))[0] == 200
            assert (only(g).state, len(slow.received)) == (State.DONE, 1)


# What comes of calls


async def test_a_call_that_could_not_be_sent_gives_its_approval_back() -> None:
    async with held("http://127.0.0.1:9") as g, deciding(g.pipeline.holds) as fay:
        status, _, body = await asked(g)
        assert (status, body["error"]["code"]) == (502, "target_failed")
        await until(lambda: not g.pipeline.claims._uses)
        assert only(g).state is State.APPROVED
        assert (await asked(g))[0] == 502
        assert len(fay.seen) == 1, "nobody is asked twice for what was not done"


async def test_a_call_of_which_nobody_knows_whether_it_has_run_is_unknown_and_never_sent_again() -> None:
    async with target() as upstream, held(f"{upstream.url}/reset") as g, deciding(g.pipeline.holds) as fay:
        status, headers, body = await asked(g)
        assert (status, headers[b"x-should-retry"]) == (502, b"false")
        assert "Do not repeat it" in body["error"]["message"]
        await until(lambda: only(g).state is State.UNKNOWN)
        status, headers, body = await asked(g, chat(), REPEATED)
        assert (status, headers[b"x-should-retry"]) == (502, b"false")
        assert "nobody knows what came of it" in body["error"]["message"]
        assert len(upstream.received) == 1
        # One that does not say that it repeats is another call, and people are asked again.
        await asked(g)
        assert len(fay.seen) == 2


@pytest.mark.parametrize("how", ["cut", "cut-mid-event", "end-early"])
async def test_a_call_whose_answer_broke_off_is_unknown_and_its_agent_is_told_not_to_repeat_it(how: str) -> None:
    async with target() as upstream, held(f"{upstream.url}/{how}") as g, deciding(g.pipeline.holds):
        async with connected(g.port) as client:
            await client.say(post(CHAT, chat(stream=True), AUTHORIZED))
            status, _, body = await asyncio.wait_for(client.answer(), 10)
        assert (status, b"Do not repeat it" in body) == (200, True)
        await until(lambda: only(g).state is State.UNKNOWN)
        assert "target_failed" in only(g).reason
        status, headers, answer = await asked(g, chat(stream=True), REPEATED)
        assert (status, headers[b"x-should-retry"]) == (502, b"false")
        assert "nobody knows what came of it" in answer["error"]["message"]
        assert len(upstream.received) == 1


async def test_an_answer_that_was_cut_here_is_nobody_elses() -> None:
    shared, body = Register(), chat(stream=True)
    async with target() as upstream, held(f"{upstream.url}/endless", register=shared) as one:
        async with held(upstream.url, register=shared) as other:
            async with connected(one.port) as first, connected(other.port) as second:
                await first.say(post(CHAT, body, AUTHORIZED))
                await until(lambda: one.pipeline.holds.waiting == 1)
                (which,) = shared.kept
                await one.pipeline.holds.vote(which, "fay", ["finance"], True)
                await first.reader.readuntil(b"hello ")
                await second.say(post(CHAT, body, AUTHORIZED))
                await until(lambda: other.pipeline.holds.waiting == 1)
                for lifeline in one.pipeline.standings.calls:
                    lifeline.cut(Stopping)
                status, _, answer = await asyncio.wait_for(second.answer(), 5)
                assert (status, b"nobody knows what came of it" in answer) == (502, True)
                assert shared.kept[which].state is State.UNKNOWN
                why = "The call was on its way, and its answer did not come to its end (stopped)."
                assert shared.kept[which].reason == why
        assert len(upstream.received) == 1


async def test_an_approved_call_goes_to_another_target_only_where_the_first_has_got_nothing_of_it() -> None:
    def places(*urls: str) -> dict[str, Any]:
        targets = [{"name": f"t{n}", "kind": "openai", "url": url} for n, url in enumerate(urls)]
        arms = [{"target": f"t{n}", "weight": 0 if n else 100, "fallback": bool(n)} for n in range(len(urls))]
        return {"targets": targets, "routes": [{"name": "all", "models": ["*"], "arms": arms}]}

    async with target() as upstream:
        where = places("http://127.0.0.1:9", upstream.url)
        async with gate(script=script, **where) as g, deciding(g.pipeline.holds):
            assert (await asked(g))[0] == 200
        assert len(upstream.received) == 1
        where = places(f"{upstream.url}/reset", upstream.url)
        async with gate(script=script, **where) as g, deciding(g.pipeline.holds):
            assert (await asked(g))[0] == 502
        assert len(upstream.received) == 2


async def test_what_the_gateway_answers_itself_uses_an_approval_up_too() -> None:
    async def models(g: Gate) -> int:
        async with connected(g.port) as client:
            await client.say(f"GET /v1/models HTTP/1.1\r\nhost: g\r\n{AUTHORIZED}\r\n\r\n".encode())
            return (await asyncio.wait_for(client.answer(), 10))[0]

    async with held("http://127.0.0.1:9") as g, deciding(g.pipeline.holds) as fay:
        assert await models(g) == 200
        await until(lambda: only(g).state is State.DONE)
        assert await models(g) == 200
        assert len(fay.seen) == 2


async def test_what_came_of_a_call_is_told_once_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "AGAIN", 0.01)
    slow = Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        async with held(f"http://127.0.0.1:{upstream.port}") as g, deciding(g.pipeline.holds):
            call = asyncio.create_task(asked(g))
            await asyncio.wait_for(slow.arrived.wait(), 10)
            register(g).failure = "away"
            slow.answers.set()
            assert (await call)[0] == 200
            register(g).failure = None
            await until(lambda: only(g).state is State.DONE)
            assert (await asked(g, chat(), REPEATED))[0] == 200
            assert len(slow.received) == 1


# The same call, several times


async def test_identical_calls_of_two_gateways_run_once_and_all_get_the_answer() -> None:
    shared, slow = Register(), Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        url = f"http://127.0.0.1:{upstream.port}"
        async with held(url, register=shared) as one, held(url, register=shared) as other:
            calls = [asyncio.create_task(asked(g)) for g in (one, other) * 5]
            await until(lambda: one.pipeline.holds.waiting + other.pipeline.holds.waiting == 10)
            async with deciding(other.pipeline.holds) as fay:
                await asyncio.wait_for(slow.arrived.wait(), 10)
                slow.answers.set()
                answers = await asyncio.gather(*calls)
            assert {(status, orjson.dumps(body)) for status, _, body in answers} == {(200, SAID)}
            assert (len(slow.received), len(fay.seen), len(shared.kept)) == (1, 1, 1)
            outcomes = one.ledger.outcomes() + other.ledger.outcomes()
            await until(lambda: len(one.ledger.outcomes() + other.ledger.outcomes()) == 10)
            outcomes = one.ledger.outcomes() + other.ledger.outcomes()
            assert sum(each.get("repeated", False) for each in outcomes) == 9
            assert not one.pipeline.claims._uses.keys() | other.pipeline.claims._uses.keys()


async def test_when_the_one_that_runs_could_not_be_sent_another_one_runs() -> None:
    shared, slow = Register(), Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        url = f"http://127.0.0.1:{upstream.port}"
        async with held("http://127.0.0.1:9", register=shared) as cut_off, held(url, register=shared) as well:
            slow.answers.set()
            calls = [asyncio.create_task(asked(g)) for g in (cut_off, well)]
            await until(lambda: cut_off.pipeline.holds.waiting + well.pipeline.holds.waiting == 2)
            async with deciding(well.pipeline.holds):
                answers = await asyncio.gather(*calls)
            assert answers[1][0] == 200
            assert len(slow.received) == 1


async def test_a_claim_of_which_nothing_is_known_gives_no_claim_of_another_back() -> None:
    """Both had seen the same version, and the next one is the other's."""
    shared, slow, claims = Register(), Slow(), asyncio.Event()

    async def weather(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
        if name == "replace" and not claims.is_set():
            claims.set()
            await until(lambda: next(iter(shared.kept.values())).state is State.CONSUMED)
            raise StoreUnavailable("away")
        return await question()

    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        url = f"http://127.0.0.1:{upstream.port}"
        unlucky = by_way_of(shared, weather)
        async with held(url, register=unlucky) as one, held(url, register=shared) as other:
            first = asyncio.create_task(asked(one))
            await until(lambda: one.pipeline.holds.waiting == 1)
            (which,) = shared.kept
            await other.pipeline.holds.vote(which, "fay", ["finance"], True)
            await asyncio.wait_for(claims.wait(), 5)
            second = asyncio.create_task(asked(other))
            await asyncio.wait_for(slow.arrived.wait(), 5)
            assert (await first)[0] == 503
            await until(lambda: not one.pipeline.claims._uses)
            assert shared.kept[which].state is State.CONSUMED
            slow.answers.set()
            assert (await second)[0] == 200
            await until(lambda: shared.kept[which].state is State.DONE)
            assert len(slow.received) == 1


# In the moment of its use


async def test_a_yes_is_worth_what_its_people_may_say_when_it_is_used() -> None:
    async with target() as upstream, held(upstream.url, approvals={"hold_for": 0}) as g:
        await asked(g)
        await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
        g.pipeline.holds.under(settings(admin={"people": [{"name": "fay", "token": "t" * 8, "roles": ["sales"]}]}))
        status, _, body = await asked(g)
        assert (status, body["error"]["code"]) == (403, "approval_denied")
        assert (only(g).state, upstream.received) == (State.REVOKED, [])


async def test_an_approval_that_lapses_in_the_moment_of_its_use_is_not_used() -> None:
    ns = 1_763_700_000 * SECOND
    store = Register(lambda: ns)

    def late(document: Mapping[str, Any]) -> Decision:
        nonlocal ns
        if "approval" in document:
            ns = document["approval"]["expires"]
        return script(document)

    more = {"approvals": {"use_within": "5m"}, "script": late}
    async with target() as upstream, held(upstream.url, register=store, **more) as g, deciding(g.pipeline.holds):
        _, _, body = await asked(g)
        assert body["error"]["code"] == "approval_expired"
        assert (only(g).state, upstream.received) == (State.LAPSED, [])


# Leases


async def test_a_gateway_that_was_stopped_for_longer_than_its_lease_tells_the_truth_later() -> None:
    ns = 1_763_700_000 * SECOND
    store, slow = Register(lambda: ns), Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        async with held(f"http://127.0.0.1:{upstream.port}", register=store) as g, deciding(g.pipeline.holds):
            call = asyncio.create_task(asked(g))
            await asyncio.wait_for(slow.arrived.wait(), 10)
            ns += int(claims.LEASE * SECOND)
            await g.pipeline.holds.look()
            assert only(g).state is State.UNKNOWN
            await g.pipeline.claims.renew()
            assert only(g).lease_until is None
            slow.answers.set()
            assert (await call)[0] == 200
            await until(lambda: only(g).state is State.DONE)


async def test_a_gateway_that_stood_still_between_claim_and_sending_sends_nothing_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ns = 1_763_700_000 * SECOND
    store = Register(lambda: ns)
    async with target() as upstream, held(upstream.url, register=store) as g:
        intend = g.ledger.intend

        async def intend_late(x: Exchange) -> None:
            nonlocal ns
            await intend(x)
            ns += int(claims.LEASE * SECOND)
            await g.pipeline.holds.look()

        monkeypatch.setattr(g.ledger, "intend", intend_late)
        async with deciding(g.pipeline.holds):
            status, _, body = await asked(g)
            assert (status, body["error"]["code"]) == (503, "ledger_unavailable")
            await until(lambda: not g.pipeline.claims._uses)
            assert (upstream.received, only(g).state) == ([], State.UNKNOWN)


async def test_a_claim_is_renewed_for_as_long_as_its_call_is_under_way() -> None:
    ns = 1_763_700_000 * SECOND
    store, slow = Register(lambda: ns), Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        async with held(f"http://127.0.0.1:{upstream.port}", register=store) as g, deciding(g.pipeline.holds):
            call = asyncio.create_task(asked(g))
            await asyncio.wait_for(slow.arrived.wait(), 10)
            for _ in range(5):
                ns += int(claims.RENEW * SECOND)
                await g.pipeline.claims.renew()
                await g.pipeline.holds.look()
            assert only(g).state is State.CONSUMED
            renewing = asyncio.create_task(g.pipeline.claims.renew())
            slow.answers.set()
            assert (await call)[0] == 200
            await renewing
            await until(lambda: only(g).state is State.DONE)
            await g.pipeline.claims.renew()
            assert (only(g).state, g.pipeline.claims._uses) == (State.DONE, {})


async def test_a_call_whose_lease_ran_out_while_it_waited_for_a_connection_is_not_sent() -> None:
    ns = 1_763_700_000 * SECOND
    store, slow = Register(lambda: ns), Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        url, one = f"http://127.0.0.1:{upstream.port}", {"max_connections": 1}
        async with held(url, register=store, target=one) as g, deciding(g.pipeline.holds):
            first = asyncio.create_task(asked(g))
            await asyncio.wait_for(slow.arrived.wait(), 10)
            second = asyncio.create_task(asked(g, chat(user="another")))
            await until(lambda: any(each.statistics().waiting for each in g.carriers))
            ns += int(claims.LEASE * SECOND)
            await g.pipeline.holds.look()
            assert [each.state for each in store.kept.values()] == [State.UNKNOWN] * 2
            slow.answers.set()
            assert (await first)[0] == 200
            status, _, body = await second
            assert (status, body["error"]["code"]) == (503, "ledger_unavailable")
            assert len(slow.received) == 1
            assert (await asked(g, chat(user="a third")))[0] == 200
