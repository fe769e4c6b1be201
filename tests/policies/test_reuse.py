"""A decision is used again for a call in which all that the policy reads is the same, and for no other."""

import asyncio
import dataclasses
from typing import Any

import orjson
import pytest

from policies import reuse
from policies.build import build
from policies.decision import Decision, Effect, parse
from policies.document import Kind, Question, agent_fragment
from policies.embedded import EmbeddedEngine
from policies.errors import EngineUnavailable, InputRefused, Undecided
from policies.obligations import Obligations
from policies.reuse import Reuse
from policies.sources import read
from tests.policies.support import ENVELOPES, NOW, SHIPPED, Purse, engine, rego, sources

AGENT = agent_fragment("support-bot", "acme", ["support"], 2, "active")


def question(arguments: dict[str, Any] | None = None, *, kind: Kind = "llm", target: str = "gpt-4o-mini") -> Question:
    given = {} if arguments is None else arguments
    return Question(AGENT, kind, "openai", target, "chat", None, None, orjson.dumps(given), given, NOW)


async def asking(body: str) -> EmbeddedEngine:
    return await engine(f'decision := {{"decision": "ALLOW"}} if {{ {body} }} else := {{"decision": "DENY"}}')


def counts(made: EmbeddedEngine) -> tuple[int, int, int]:
    return made.reuse.hits, made.reuse.misses, made.reuse.unsuited


async def test_the_same_again_gets_the_very_decision_that_was_made() -> None:
    made = await asking('input.call.arguments.a == "x"')
    first = await made.decide(question({"a": "x", "prompt": "one"}))
    assert await made.decide(question({"prompt": "two", "a": "x"})) is first
    assert counts(made) == (1, 1, 0)


@pytest.mark.parametrize(
    "other",
    [{"a": "y"}, {}, {"a": None}, {"a": True}, {"a": 1.0}, {"a": "1"}, {"a": [1]}, {"a": {}}, {"b": 1}],
    ids=str,
)
async def test_what_differs_in_what_is_read_is_evaluated(other: dict[str, Any]) -> None:
    made = await asking("input.call.arguments.a == 1")
    assert (await made.decide(question({"a": 1}))).effect is Effect.ALLOW
    await made.decide(question(other))
    assert counts(made) == (0, 2, 0)


async def test_kinds_of_call_do_not_share_decisions() -> None:
    made = await asking('input.call.kind == "llm"')
    assert (await made.decide(question())).effect is Effect.ALLOW
    assert (await made.decide(question(kind="tool"))).effect is Effect.DENY


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent", agent_fragment("support-bot", "acme", ["support"], 2, "paused")),
        ("approval", b'{"id":"01A"}'),
        ("target", "gpt-4o"),
        ("operation", "embeddings"),
        ("session", "s-1"),
        ("stream", True),
        ("money", Purse(b'[{"state": "ok"}]')),
    ],
)
async def test_every_part_of_a_call_that_is_read_makes_another_question(field: str, value: Any) -> None:
    made = await asking(
        "input.agent.state; not input.approval; input.call.target; input.call.operation\n"
        "not input.call.session; not input.call.stream; not input.budgets"
    )
    before = await made.decide(question())
    after = await made.decide(dataclasses.replace(question(), **{field: value}))
    assert made.reuse.misses == 2
    assert before.effect is Effect.ALLOW
    reads_whether = field in ("approval", "session", "stream", "money")
    assert after.effect is (Effect.DENY if reads_whether else Effect.ALLOW)


@pytest.mark.parametrize("body", ["time.now_ns() > 1", "input.time.unix_ns > 1", "input == input"])
async def test_decisions_by_the_time_are_made_afresh(body: str) -> None:
    made = await asking(body)
    await made.decide(question())
    await made.decide(question())
    assert counts(made) == (0, 0, 2)
    assert len(made.reuse) == 0


async def test_the_time_of_the_call_decides_although_the_rest_is_the_same() -> None:
    made = await asking(f"time.now_ns() == {NOW}")
    assert (await made.decide(question())).effect is Effect.ALLOW
    assert (await made.decide(dataclasses.replace(question(), now_ns=NOW + 1))).effect is Effect.DENY


async def test_decisions_by_exact_money_are_made_afresh_where_there_is_any() -> None:
    made = await asking("every budget in input.budgets { budget.posted_usd < 1 }")
    rich = dataclasses.replace(question(), money=Purse(b'[{"posted_usd": 0.5}]'))
    for _ in range(2):
        assert (await made.decide(rich)).effect is Effect.ALLOW
        await made.decide(question())
    assert counts(made) == (1, 1, 2)


async def test_decisions_by_the_state_of_budgets_are_used_again_whatever_was_spent() -> None:
    made = await asking('every budget in input.budgets { budget.state == "ok" }')
    budgets = [{"posted_usd": 0.1, "state": "ok"}, {"posted_usd": 0.2, "state": "ok"}, {"state": "warning"}]
    asked = [dataclasses.replace(question(), money=Purse(orjson.dumps([budget]))) for budget in budgets]
    effects = [(await made.decide(each)).effect for each in asked]
    assert effects == [Effect.ALLOW, Effect.ALLOW, Effect.DENY]
    assert counts(made) == (1, 2, 0)


async def test_no_decision_is_used_again_where_nobody_wants_it() -> None:
    policy = sources(rego('decision := {"decision": "ALLOW"} if input.call.target'))
    made = await build(policy, reuse=False)
    first = await made.decide(question())
    assert await made.decide(question()) == first
    assert counts(made) == (0, 0, 2)


async def test_a_refusal_to_decide_is_not_remembered() -> None:
    made = await asking("input.call.arguments.a + 1 > 1")
    for _ in range(2):
        with pytest.raises(Undecided):
            await made.decide(question({"a": "text"}))
    assert counts(made) == (0, 2, 0)
    assert len(made.reuse) == 0


async def test_long_questions_are_not_remembered() -> None:
    made = await asking("input.call.arguments.a != 1")
    for _ in range(2):
        await made.decide(question({"a": "x" * reuse.LONGEST}))
    assert counts(made) == (0, 0, 2)


async def test_a_decision_with_obligations_is_shared_and_cannot_be_changed() -> None:
    made = await engine('decision := {"decision": "ALLOW", "obligations": {"redact": ["/arguments/a"]}}')
    first = await made.decide(question())
    assert await made.decide(question({"a": 1})) is first
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.obligations.redact = ()  # type: ignore[misc]  # that it is refused is the point
    assert hash(first.obligations) is not None


async def test_a_retired_engine_has_forgotten_its_decisions() -> None:
    made = await asking("input.call.target")
    await made.decide(question())
    await made.retire()
    with pytest.raises(EngineUnavailable):
        await made.decide(question())


async def test_what_cannot_be_read_is_refused_where_it_is_read() -> None:
    made = await asking("input.call.arguments.a != 1")
    arguments = {"a": float("inf")}
    unreadable = dataclasses.replace(question(), body=b'{"a": 1e999}', arguments=arguments)
    with pytest.raises(InputRefused):
        await made.decide(unreadable)
    elsewhere = dataclasses.replace(question(), body=b'{"b": 1e999}', arguments={"b": float("inf")})
    assert (await made.decide(elsewhere)).effect is Effect.DENY


async def test_the_whole_document_is_decided_on_afresh_by_those_who_bring_it() -> None:
    made = await asking("input.call.target")
    assert (await made.evaluate(question().document(), NOW)).effect is Effect.ALLOW
    assert counts(made) == (0, 0, 0)


# --- the shipped policy -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> EmbeddedEngine:
    return asyncio.run(build(read([SHIPPED / "weighbridge.rego", SHIPPED / "envelopes.rego", ENVELOPES])))


def _decided(made: EmbeddedEngine, asked: Question) -> Decision:
    async def decide() -> Decision:
        return await made.decide(asked)

    return asyncio.run(decide())


def test_chats_that_differ_in_their_prompts_share_a_decision_of_the_shipped_policy(shipped: EmbeddedEngine) -> None:
    def chat(prompt: str) -> Question:
        return question({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}], "max_tokens": 100})

    first = _decided(shipped, chat("one"))
    assert first.effect is Effect.ALLOW
    assert _decided(shipped, chat("two")) is first


@pytest.mark.parametrize("asked", [1, 256, 257, 10**6, 2**64, -1, 0.5, None, "1", True])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens", "messages"])
def test_the_shipped_policy_decides_on_a_part_as_on_the_whole(shipped: EmbeddedEngine, name: str, asked: Any) -> None:
    arguments = {name: asked}
    agent = agent_fragment("intern-bot", "acme", ["support"], 1, "active")
    body = f'{{"{name}": {asked}}}' if isinstance(asked, int) and not isinstance(asked, bool) else None
    given = dataclasses.replace(question(arguments) if body is None else question(), agent=agent, arguments=arguments)
    if body is not None:
        given = dataclasses.replace(given, body=body.encode())
    for _ in range(2):
        assert _decided(shipped, given) == shipped.answer(given.document(), NOW)


# --- what is remembered -------------------------------------------------------------------------------------------


def decision(number: int) -> Decision:
    return Decision(Effect.ALLOW, None, (), str(number), Obligations(), "r")


def test_the_decision_longest_unasked_for_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MOST", 3)
    kept = Reuse()
    for number in range(3):
        kept.keep(b"%d" % number, decision(number))
    assert kept.find(b"0") is not None
    kept.keep(b"3", decision(3))
    assert len(kept) == 3
    assert [kept.find(b"%d" % number) is not None for number in range(4)] == [True, False, True, True]
    assert (kept.hits, kept.misses) == (4, 1)


@pytest.mark.parametrize(
    "answer",
    [
        {"explanation": "x" * 2048},
        {"obligations": {"replace": {"/arguments/a": "x" * 2048}}},
        {"obligations": {"headers": {"x-a": "x" * 2048}}},
    ],
)
def test_long_decisions_are_not_remembered(answer: dict[str, Any]) -> None:
    kept = Reuse()
    kept.keep(b"1", parse(orjson.dumps({"decision": "ALLOW", **answer}), "r"))
    assert len(kept) == 0


def test_what_is_forgotten_is_still_counted() -> None:
    kept = Reuse()
    kept.keep(b"1", decision(1))
    assert kept.find(b"1") is not None
    kept.clear()
    assert kept.find(b"1") is None
    assert (kept.hits, kept.misses, len(kept)) == (1, 1, 0)
