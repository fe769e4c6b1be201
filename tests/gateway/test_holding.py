"""What becomes of a call that people decide on: who comes back to it, who has a say by now, what a store that is away
makes of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway.assembly import assemble
from gateway.holding import Holds
from policies.approval_store import MOST_ANSWER, StoreUnavailable
from policies.approvals import Approval, NotEntitled, Refused, State
from policies.decision import Decision, Effect
from policies.errors import EngineUnavailable
from policies.grants import Grant
from policies.obligations import read
from tests.support.door import RawClient, connected, post
from tests.support.exchanges import AGENT_KEY, ALLOWED, settings
from tests.support.gate import AUTHORIZED, Gate, gate
from tests.support.misbehaving import Misbehaving, Wire, says
from tests.support.people import Person, deciding
from tests.support.register import Register, by_way_of
from tests.support.target import target

CHAT = "/v1/chat/completions"
ASKED = dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))
REPEATED = "x-stainless-retry-count: 1"
SECOND = 1_000_000_000
SAID = b'{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


def script(document: Mapping[str, Any]) -> Decision:
    return ALLOWED if "approval" in document else ASKED


def chat(**more: Any) -> bytes:
    return orjson.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], **more})


async def ask(client: RawClient, body: bytes = chat(), *headers: str) -> tuple[int, dict[bytes, bytes], Any]:
    await client.say(post(CHAT, body, AUTHORIZED, *headers))
    status, answered, content = await asyncio.wait_for(client.answer(), 10)
    return status, answered, orjson.loads(content)


async def asked(g: Gate, body: bytes = chat(), *headers: str) -> tuple[int, dict[bytes, bytes], Any]:
    async with connected(g.port) as client:
        return await ask(client, body, *headers)


@asynccontextmanager
async def held(upstream: str, **more: Any) -> AsyncIterator[Gate]:
    async with gate(target_url=upstream, **{"script": script, **more}) as g:
        yield g


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def only(g: Gate) -> Approval:
    (approval,) = register(g).kept.values()
    return approval


def register(g: Gate) -> Register:
    store = g.pipeline.holds.store
    assert isinstance(store, Register), "this gate has the store itself"
    return store


class Slow:
    """A target that answers when it is told to."""

    def __init__(self) -> None:
        self.arrived, self.answers = asyncio.Event(), asyncio.Event()
        self.received: list[bytes] = []

    async def __call__(self, wire: Wire) -> None:
        self.received.append(b"")
        self.arrived.set()
        await self.answers.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(SAID))
        await wire.send(SAID)


# Leaving


async def test_an_agent_that_leaves_while_it_waits_leaves_the_question_and_comes_back_to_it() -> None:
    async with target() as upstream, held(upstream.url) as g:
        async with connected(g.port) as client:
            await client.say(post(CHAT, chat(), AUTHORIZED))
            await until(lambda: len(register(g).kept) == 1)
        await until(lambda: g.pipeline.holds.waiting == 0)
        assert only(g).state is State.PENDING
        async with deciding(g.pipeline.holds):
            assert (await asked(g))[0] == 200
        assert only(g).state is State.DONE
        assert len(upstream.received) == 1
        assert [each.what for each in register(g).told].count("approval.requested") == 1


async def test_who_is_asked_anew_is_told_of_the_identical_call_before() -> None:
    async with target() as upstream, held(f"{upstream.url}/reset", approvals={"hold_for": 0}) as g:
        holds, kept = g.pipeline.holds, register(g).kept
        await asked(g)
        (first,) = kept
        await holds.vote(first, "fay", ["finance"], True)
        assert (await asked(g))[0] == 502
        await until(lambda: kept[first].state is State.UNKNOWN)
        assert (await asked(g))[2]["error"]["code"] == "approval_pending"
        _, second = kept
        said = f"An identical call may have run, and nobody knows what came of it: {first}."
        assert kept[second].earlier == said
        await holds.cancel(second, "fay")
        await asked(g)
        assert [each.earlier for each in kept.values()] == ["", said, said]


async def test_who_left_without_the_answer_gets_it_by_the_next_identical_call_and_then_no_more() -> None:
    slow = Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        async with held(f"http://127.0.0.1:{upstream.port}", approvals={"hold_for": "5s"}) as g:
            async with deciding(g.pipeline.holds):
                async with connected(g.port) as client:
                    await client.say(post(CHAT, chat(), AUTHORIZED))
                    await asyncio.wait_for(slow.arrived.wait(), 10)
            await until(lambda: any(each.left for each in g.pipeline.standings.calls))
            slow.answers.set()
            await until(lambda: only(g).state is State.DONE)
            first = only(g)
            assert first.unheard
            assert (await asked(g))[0] == 200
            assert not only(g).unheard
            assert (await asked(g, chat(), "prefer: respond-async"))[2]["error"]["code"] == "approval_pending"
            assert len(slow.received) == 1
            second = register(g).kept[next(each for each in register(g).kept if each != first.id)]
            assert second.earlier == f"An identical call has run 0 minutes ago: {first.id}."


@pytest.mark.parametrize(("key", "status"), [("one", 200), ("other", 202)])
async def test_a_call_with_the_same_idempotency_key_gets_the_answer_again(key: str, status: int) -> None:
    async with target() as upstream, held(upstream.url) as g:
        async with deciding(g.pipeline.holds):
            assert (await asked(g, chat(), "idempotency-key: one"))[0] == 200
            await until(lambda: only(g).state is State.DONE)
        assert (await asked(g, chat(), f"idempotency-key: {key}", "prefer: respond-async"))[0] == status
        assert len(upstream.received) == 1


@pytest.mark.parametrize("ran", [True, False])
async def test_a_person_who_has_found_out_whether_an_unknown_call_ran_says_so(ran: bool) -> None:
    async with target() as upstream, held(f"{upstream.url}/reset") as g:
        async with deciding(g.pipeline.holds):
            assert (await asked(g))[0] == 502
            await until(lambda: only(g).state is State.UNKNOWN)
        first = only(g).id
        with pytest.raises(Refused, match="comment"):
            await g.pipeline.holds.resolve(first, "dana", ran, "")
        after = await g.pipeline.holds.resolve(first, "dana", ran, "looked at the books")
        assert after.state is (State.DONE if ran else State.REVOKED)
        word = "ran" if ran else "did not run"
        assert after.reason == f"dana says that it {word}: looked at the books"
        with pytest.raises(Refused, match="only where that is unknown"):
            await g.pipeline.holds.resolve(first, "dana", not ran, "or not")
        status, _, answer = await asked(g, chat(), REPEATED, "prefer: respond-async")
        assert (status, answer["error"]["approval"] == first) == ((502, True) if ran else (202, False))
        if ran:
            assert answer["error"]["message"] == (
                "This call was approved and has run; its answer is not kept. "
                "dana says that it ran: looked at the books. Do not repeat it; tell your user."
            )


# The same call, several times


async def test_a_gateway_that_hears_of_nothing_gives_the_answer_all_the_same_within_three_seconds() -> None:
    shared = Register()

    async def fair(_: str, question: Callable[[], Awaitable[Any]]) -> Any:
        return await question()

    async with target() as upstream:
        deaf = by_way_of(shared, fair, deaf=True)
        async with held(upstream.url, register=deaf) as g, held(upstream.url, register=shared) as other:
            call = asyncio.create_task(asked(g))
            await until(lambda: g.pipeline.holds.waiting == 1)
            (which,) = shared.kept
            await asyncio.sleep(0.5)
            await other.pipeline.holds.vote(which, "fay", ["finance"], True)
            assert (await asyncio.wait_for(call, 3))[0] == 200


async def test_an_answer_that_is_too_long_to_be_kept_is_the_callers_alone() -> None:
    body = b'{"choices":[{"message":{"content":"%b"}}]}' % (b"x" * MOST_ANSWER)
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", says(answer))
        async with held(f"http://127.0.0.1:{upstream.port}") as g:
            calls = [asyncio.create_task(asked(g)) for _ in range(2)]
            await until(lambda: g.pipeline.holds.waiting == 2)
            async with deciding(g.pipeline.holds):
                statuses = {status: (headers, body) for status, headers, body in await asyncio.gather(*calls)}
            assert set(statuses) == {200, 502}
            headers, refusal = statuses[502]
            assert headers[b"x-should-retry"] == b"false"
            assert refusal["error"]["message"] == (
                "This call was approved and has run; its answer is not kept. Do not repeat it; tell your user."
            )
            assert only(g).state is State.DONE


async def test_a_no_answers_identical_calls_for_a_quarter_of_an_hour() -> None:
    ns = 1_763_700_000 * SECOND
    store = Register(lambda: ns)
    async with held("http://127.0.0.1:9", register=store) as g, deciding(g.pipeline.holds, lambda _: False) as fay:
        for later in (0, 899, 900):
            ns = 1_763_700_000 * SECOND + later * SECOND
            _, headers, body = await asked(g)
            assert (body["error"]["code"], headers[b"x-should-retry"]) == ("approval_denied", b"false")
            assert len(fay.seen) == (2 if later == 900 else 1)
            assert f"Until {'05:10:00' if later == 900 else '04:55:00'} UTC" in body["error"]["message"]


# People, policies and configurations that change


async def test_what_the_policy_wants_when_it_is_asked_again_has_to_be_filled_by_roles_of_now() -> None:
    """It wants people still, and one of two that said yes has lost her role since."""
    double = dataclasses.replace(ASKED, required_approvals=("finance", "security"))
    more = {"approvals": {"hold_for": 0}, "script": double}
    async with target() as upstream, held(upstream.url, **more) as g:
        await asked(g)
        await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
        await g.pipeline.holds.vote(only(g).id, "ned", ["security", "finance"], True)
        g.pipeline.holds.under(settings(admin={"people": [{"name": "fay", "token": "t" * 8, "roles": ["finance"]}]}))
        _, _, body = await asked(g)
        assert body["error"]["code"] == "policy_denied"
        assert (only(g).state, upstream.received) == (State.REVOKED, [])


async def test_a_policy_that_always_wants_the_same_people_has_them() -> None:
    for wanted in (("finance",), ()):
        asks = dataclasses.replace(ASKED, required_approvals=wanted)
        async with target() as upstream, held(upstream.url, script=asks) as g:
            who, roles = ("fay", ["finance"]) if wanted else ("dana", ["admin"])
            async with deciding(g.pipeline.holds, name=who, roles=roles):
                assert (await asked(g))[0] == 200


@pytest.mark.parametrize(
    "then",
    [
        dataclasses.replace(ALLOWED, effect=Effect.DENY, explanation="No longer."),
        dataclasses.replace(ALLOWED, obligations=read({"max_tokens": 5})),
        dataclasses.replace(ASKED, required_approvals=("legal",)),
    ],
    ids=["denies", "lowers", "wants others"],
)
async def test_a_policy_that_thinks_otherwise_by_now_takes_the_approval_back(then: Decision) -> None:
    def changed(document: Mapping[str, Any]) -> Decision:
        return then if "approval" in document else ASKED

    async with target() as upstream, held(upstream.url, script=changed) as g, deciding(g.pipeline.holds):
        _, _, body = await asked(g, chat(max_tokens=50))
        assert body["error"]["code"] == "policy_denied"
        assert (only(g).state, upstream.received) == (State.REVOKED, [])


async def test_a_policy_that_cannot_be_asked_again_leaves_the_approval_for_later() -> None:
    broken = True

    def says_nothing(document: Mapping[str, Any]) -> Decision:
        if "approval" in document and broken:
            raise EngineUnavailable("The policy could not be asked.")
        return script(document)

    async with target() as upstream, held(upstream.url, script=says_nothing) as g, deciding(g.pipeline.holds) as fay:
        assert (await asked(g))[2]["error"]["code"] == "policy_unavailable"
        assert only(g).state is State.APPROVED
        broken = False
        assert (await asked(g))[0] == 200
        assert (len(fay.seen), len(upstream.received)) == (1, 1)


@pytest.mark.parametrize("change", ["agent gone", "key of another", "target moved"])
async def test_a_call_that_waited_goes_by_the_configuration_of_now(change: str) -> None:
    def configured(g: Gate, url: str) -> None:
        other = {"name": "other-bot", "tenant": "acme", "key": AGENT_KEY if change == "key of another" else "k" * 8}
        agents = [other] if change != "target moved" else [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY}]
        sections = {
            "agents": agents,
            "targets": [{"name": "new", "kind": "openai", "url": url}],
            "routes": [{"name": "all", "models": ["*"], "arms": [{"target": "new"}]}],
        }
        g.pipeline.assembly = assemble(settings(**sections), g.pipeline.assembly)

    async with target() as upstream, held("http://127.0.0.1:9") as g:
        call = asyncio.create_task(asked(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        configured(g, upstream.url)
        async with deciding(g.pipeline.holds):
            status, _, body = await call
        if change == "target moved":
            assert (status, len(upstream.received)) == (200, 1)
        else:
            assert (status, body["error"]["code"]) == (401, "unauthenticated")
            assert (upstream.received, only(g).state) == ([], State.APPROVED)
        (outcome,) = g.ledger.outcomes()
        assert outcome["agent"] == "support-bot"


# Time


async def test_nobody_deciding_in_time_is_told_apart_from_a_no() -> None:
    ns = 1_763_700_000 * SECOND
    store = Register(lambda: ns)
    async with held("http://127.0.0.1:9", register=store) as g:
        call = asyncio.create_task(asked(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        ns += 3600 * SECOND
        await g.pipeline.holds.look()
        status, headers, body = await call
        assert (status, body["error"]["code"]) == (403, "approval_expired")
        assert headers[b"location"].decode() == f"/approvals/{only(g).id}"
        with pytest.raises(Refused):
            await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)


# The store


@pytest.mark.parametrize("lost", [False, True], ids=["not asked", "answer lost"])
@pytest.mark.parametrize("step", ["last", "open", "get", "claim", "done", "answer"])
async def test_a_store_that_is_away_at_any_step_costs_no_approval_and_makes_no_second_send(
    step: str, lost: bool
) -> None:
    shared, failed = Register(), 0
    changes = {"claim": State.APPROVED, "done": State.CONSUMED}

    async def weather(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
        nonlocal failed
        due = name == step
        if step in changes:
            due = name == "replace" and changes[step] in {each.state for each in shared.kept.values()}
        if due and not failed:
            failed = 1
            if lost:
                await question()
            raise StoreUnavailable("away")
        return await question()

    async with target() as upstream, held(upstream.url, register=by_way_of(shared, weather)) as g:
        async with deciding(g.pipeline.holds) as fay:
            statuses = [(await asked(g))[0]]
            if statuses[0] != 200:
                await until(lambda: not g.pipeline.claims._uses)
                statuses.append((await asked(g))[0])
            assert statuses in ([200], [503, 200])
            await until(lambda: {each.state for each in shared.kept.values()} == {State.DONE})
            if step == "answer":
                assert (await asked(g, chat(), REPEATED))[0] == 503
                assert (await asked(g, chat(), REPEATED))[0] == 200
            assert failed == 1
            assert (len(upstream.received), len(shared.kept)) == (1, 1)
            assert len(fay.seen) == 1


async def test_who_could_not_look_while_others_looked_is_woken_all_the_same() -> None:
    """Its question was under way, and failed, while the versions of all were asked for."""
    shared, looks, asks = Register(), asyncio.Event(), asyncio.Event()
    polled = asyncio.Event()

    async def weather(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
        if name == "get" and looks.is_set() and not asks.is_set():
            asks.set()
            await polled.wait()
            raise StoreUnavailable("away")
        if name == "versions" and asks.is_set() and not polled.is_set():
            polled.set()
            await until(lambda: len(missed) == 1)
        return await question()

    async with target() as upstream, held(upstream.url, register=by_way_of(shared, weather, deaf=True)) as g:
        missed: list[str] = []
        note = g.pipeline.holds.missed

        def noting(approval: str) -> None:
            note(approval)
            missed.append(approval)

        g.pipeline.holds.missed = noting  # type: ignore[method-assign]  # it is only listened to
        call = asyncio.create_task(asked(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        (which,) = shared.kept
        await g.pipeline.holds._poll()
        await asyncio.sleep(0)
        other = Holds(shared, lambda *_: None)
        await other.vote(which, "fay", ["finance"], True)
        looks.set()
        await g.pipeline.holds._poll()
        await asyncio.wait_for(asks.wait(), 5)
        await g.pipeline.holds._poll()
        await g.pipeline.holds._poll()
        assert (await asyncio.wait_for(call, 1))[0] == 200


async def test_a_call_waits_on_while_the_store_is_away() -> None:
    async with target() as upstream, held(upstream.url) as g:
        call = asyncio.create_task(asked(g))
        await until(lambda: g.pipeline.holds.waiting == 1)
        register(g).failure = "away"
        register(g).miss()
        await asyncio.sleep(0.05)
        assert not call.done()
        register(g).failure = None
        await g.pipeline.holds.vote(only(g).id, "fay", ["finance"], True)
        assert (await call)[0] == 200


# Grants


async def granted(g: Gate, uses: int) -> None:
    """So many calls are allowed beforehand, with any arguments, and the gateway has heard of it."""
    now = g.pipeline.holds.store.now_ns()
    given = Grant(
        "grt_1", "acme", "support-bot", None, "openai", "gpt-4o-mini", "chat", {}, "", ("finance",), ("fay",),
        now, now + 3600 * SECOND, uses, None,
    )  # fmt: skip
    await register(g).grant(given)
    await until(lambda: g.pipeline.holds._grants != ())


async def test_a_grant_stands_in_for_people_until_it_is_used_up() -> None:
    async with target() as upstream, held(upstream.url, approvals={"hold_for": 0}) as g:
        await granted(g, 1)
        assert (await asked(g))[0] == 200
        assert (await g.ledger.outcome())["grant"] == "grt_1"
        assert g.engine.documents[-1]["approval"]["approvers"] == ["fay"]
        assert (await asked(g))[2]["error"]["code"] == "approval_pending"
        assert len(upstream.received) == 1


async def test_no_grant_lets_a_call_run_beside_an_identical_one_that_people_have_approved() -> None:
    slow = Slow()
    async with Misbehaving() as upstream:
        upstream.on("/chat/completions", slow)
        async with held(f"http://127.0.0.1:{upstream.port}") as g:
            async with deciding(g.pipeline.holds):
                first = asyncio.create_task(asked(g))
                await asyncio.wait_for(slow.arrived.wait(), 10)
            await granted(g, 5)
            others = [asyncio.create_task(asked(g, chat(), *more)) for more in ((), (REPEATED,))]
            await until(lambda: g.pipeline.holds.waiting == 2)
            slow.answers.set()
            assert [(await each)[0] for each in (first, *others)] == [200, 200, 200]
            assert len(slow.received) == 1
            assert [each.uses for each in await register(g).grants()] == [0]


@pytest.mark.parametrize(("headers", "runs"), [((REPEATED,), 1), ((), 2)])
async def test_a_repetition_gets_the_answer_of_what_people_approved_and_a_new_call_uses_the_grant(
    headers: tuple[str, ...], runs: int
) -> None:
    async with target() as upstream, held(upstream.url) as g:
        async with deciding(g.pipeline.holds):
            assert (await asked(g))[0] == 200
            await until(lambda: only(g).state is State.DONE)
        await granted(g, 5)
        assert (await asked(g, chat(), *headers))[0] == 200
        assert len(upstream.received) == runs


async def test_no_grant_repeats_a_call_that_may_have_run() -> None:
    async with target() as upstream, held(f"{upstream.url}/reset") as g:
        async with deciding(g.pipeline.holds):
            assert (await asked(g))[0] == 502
            await until(lambda: only(g).state is State.UNKNOWN)
        await granted(g, 5)
        assert (await asked(g, chat(), REPEATED))[0] == 502
        for _ in range(2):
            assert (await asked(g, chat(), "prefer: respond-async"))[2]["error"]["code"] == "approval_pending"
        assert [each.uses for each in await register(g).grants()] == [0]
        assert len(upstream.received) == 1


async def test_a_grant_is_not_used_up_by_a_call_that_was_not_sent() -> None:
    async with held("http://127.0.0.1:9", approvals={"hold_for": 0}) as g:
        await granted(g, 1)
        assert (await asked(g))[0] == 502
        await until(lambda: not g.pipeline.holds._told_later)
        assert [each.uses for each in await register(g).grants()] == [0]


async def test_a_role_that_nobody_has_is_told_once_to_the_operator_and_to_each_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    both = dataclasses.replace(ASKED, required_approvals=("finance", "treasurer"))
    async with held("http://127.0.0.1:9", script=lambda _: both, approvals={"hold_for": 0}) as g:
        for number in range(2):
            _, _, answer = await asked(g, chat(user=str(number)))
            assert " Nobody has the role treasurer: tell the operator." in answer["error"]["message"]
        told = [each.getMessage() for each in caplog.records if "nobody in admin.people has" in each.getMessage()]
        assert [each.partition(",")[0] for each in told] == ["calls are held for the role treasurer"]


# Changed arguments


async def changed(g: Gate, fay: Person, body: bytes, who: str = "fay") -> Approval:
    (before,) = fay.seen
    return await g.pipeline.holds.change(before, who, ["finance"], body, g.pipeline.reconsider, "smaller")


async def test_a_call_runs_with_the_arguments_that_a_person_gave_it() -> None:
    async with target() as upstream, held(upstream.url) as g, deciding(g.pipeline.holds, lambda _: None) as fay:
        call = asyncio.create_task(asked(g, chat(max_tokens=500)))
        await fay.asked()
        after = await changed(g, fay, chat(max_tokens=5))
        status, headers, _ = await call
        assert (status, headers[b"x-weighbridge-approval"].decode()) == (200, after.id)
        assert headers[b"x-weighbridge-changed"].decode() == after.instead_of
        assert (await g.ledger.outcome())["changed"] == after.instead_of
        assert orjson.loads(upstream.received[0].body)["max_tokens"] == 5
        assert register(g).kept[after.id].state is State.DONE


async def test_an_agent_is_told_of_its_own_arguments_however_often_people_have_changed_them() -> None:
    both = dataclasses.replace(ASKED, required_approvals=("finance", "security"))

    def script(document: Mapping[str, Any]) -> Decision:
        return ALLOWED if "approval" in document else both

    async with target() as upstream, held(upstream.url, script=script, approvals={"hold_for": 0}) as g:
        holds, kept = g.pipeline.holds, register(g).kept
        assert (await asked(g))[0] == 403
        (own,) = kept
        once = await holds.change(own, "fay", ["finance"], chat(max_tokens=9), g.pipeline.reconsider)
        twice = await holds.change(once.id, "ned", ["security"], chat(max_tokens=5), g.pipeline.reconsider)
        await holds.vote(twice.id, "fay", ["finance"], True)
        for headers in ((), (REPEATED,)):
            status, answered, _ = await asked(g, chat(), *headers)
            assert (status, answered[b"x-weighbridge-approval"].decode()) == (200, twice.id)
            assert answered[b"x-weighbridge-changed"].decode() == own
            await until(lambda: kept[twice.id].state is State.DONE)
        assert [orjson.loads(each.body)["max_tokens"] for each in upstream.received] == [5]


async def test_who_did_not_wait_for_other_arguments_gets_them_run_by_the_identical_call_too() -> None:
    async with target() as upstream, held(upstream.url, approvals={"hold_for": 0}) as g:
        async with deciding(g.pipeline.holds, lambda _: None) as fay:
            assert (await asked(g, chat(max_tokens=500)))[2]["error"]["code"] == "approval_pending"
            await fay.asked()
            after = await changed(g, fay, chat(max_tokens=5))
            status, headers, _ = await asked(g, chat(max_tokens=500))
            assert (status, headers[b"x-weighbridge-approval"].decode()) == (200, after.id)
            await until(lambda: register(g).kept[after.id].state is State.DONE)
            assert (await asked(g, chat(max_tokens=500), REPEATED))[0] == 200
            assert [orjson.loads(each.body)["max_tokens"] for each in upstream.received] == [5]
            assert (await asked(g, chat(max_tokens=500)))[2]["error"]["code"] == "approval_pending", "it has run"


async def test_a_changed_call_is_described_as_it_will_run() -> None:
    async with target() as upstream, held(upstream.url) as g, deciding(g.pipeline.holds, lambda _: None) as fay:
        call = asyncio.create_task(asked(g))
        await fay.asked()
        after = await changed(g, fay, chat(model="gpt-4o"))
        assert (after.call.target, after.call.body) == ("gpt-4o", chat(model="gpt-4o"))
        assert (await call)[0] == 200


async def test_nobody_makes_a_stream_of_a_call_that_is_none_or_approves_what_they_may_not() -> None:
    async with held("http://127.0.0.1:9", approvals={"hold_for": 0}) as g:
        async with deciding(g.pipeline.holds, lambda _: None) as fay:
            await asked(g)
            await fay.asked()
            with pytest.raises(Refused, match="streamed"):
                await changed(g, fay, chat(stream=True))
            with pytest.raises(NotEntitled):
                await changed(g, fay, chat(max_tokens=5), who="support-bot")
        assert only(g).state is State.PENDING
