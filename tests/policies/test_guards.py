"""Data that has to be there before money is read: where it is not, decisions are made of the rest of the call alone."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import embedded
from policies.build import build
from policies.decision import Effect
from policies.document import Question, agent_fragment
from policies.embedded import EmbeddedEngine
from policies.errors import Undecided
from policies.guards import OPEN, Guard, Guards, opened, shut_with
from policies.interpreter import Clock, create
from policies.reads import Reads, analyse
from policies.sources import Sources, read
from tests.policies.support import ENVELOPES, NOW, SHIPPED, Purse, rego, sources

SPENT = "spent := sum([each.posted_usd | some each in input.budgets])"
CAP = "data.caps[input.agent.name]"


def analysed(*texts: str) -> Reads:
    base = create(Clock())
    for number, text in enumerate(texts):
        base.add_policy(f"p{number}.rego", text)
    return analyse(orjson.loads(base.get_ast_as_json()))


def guards_of(rules: str, *others: str, kind: str = "llm") -> tuple[tuple[str, ...], ...]:
    """What is in front of money in a policy that denies what `dear` says, beside other files."""
    decision = 'decision := {"decision": "DENY"} if dear else := {"decision": "ALLOW"}'
    return analysed(rego(f"{decision}\n{SPENT}\n{rules}"), *others).of(kind).guards


@pytest.mark.parametrize(
    ("rules", "guard"),
    [
        (f"dear if {{ {CAP}; spent > 1 }}", CAP),
        (f"dear if {{ {CAP}.cap; spent > 1 }}", f"{CAP}.cap"),
        (f"dear if {{ cap := {CAP}.cap; spent > cap }}", f"{CAP}.cap"),
        (f"dear if {{ {CAP} == 1; spent > 1 }}", CAP),
        (f"dear if {{ true != {CAP}; spent > 1 }}", CAP),
        (f"dear if {{ some cap in {CAP}; spent > cap }}", CAP),
        (f"dear if {{ some name, cap in {CAP}; spent > cap }}", CAP),
        ("dear if { data.caps.on; spent > 1 }", "data.caps.on"),
        ('dear if { data["caps"]["a b"]; spent > 1 }', 'data.caps["a b"]'),
        ("dear if { data.caps[input.agent.tenant][input.agent.name]; spent > 1 }",
         "data.caps[input.agent.tenant][input.agent.name]"),
        ("dear if { data.caps[data.names[input.agent.name]]; spent > 1 }", "data.caps[data.names[input.agent.name]]"),
        # By another name, of the body or of a rule.
        (f"dear if {{ own := {CAP}; own.cap; spent > 1 }}", f"{CAP} or {CAP}.cap"),
        ("dear if { name := input.agent.name; data.caps[name]; spent > 1 }", CAP),
        (f"own := {CAP}\ndear if {{ own.cap; spent > 1 }}", "data.weighbridge.own.cap"),
        (f"own := {CAP}\ndear if {{ data.weighbridge.own.cap; spent > 1 }}", "data.weighbridge.own.cap"),
        ("name := input.agent.name\ndear if { data.caps[name]; spent > 1 }", "data.caps[data.weighbridge.name]"),
        # Which rules there are does not matter as long as they look at nothing but the agent.
        (f"own := {CAP} if input.agent.state == `active` else := 1\ndear if {{ own; spent > 1 }}",
         "data.weighbridge.own"),
        (f"dear if {{ caps.b[input.agent.name]; spent > 1 }}\ncaps[each] := {CAP} if some each in input.agent.roles",
         "data.weighbridge.caps.b[input.agent.name]"),
        # What stands behind it may be anywhere.
        (f"dear if {{ {CAP}; over(1) }}\nover(x) if spent > x", CAP),
        (f"dear if {{ {CAP}; count([1 | spent > 1]) == 1 }}", CAP),
        (f"dear if {{ {CAP}; every each in input.budgets {{ each.posted_usd > 1 }} }}", CAP),
        (f"dear if {{ {CAP}; not spent > 1 }}", CAP),
        (f"dear := spent if {CAP}", CAP),
        (f"dear contains spent if {CAP}", CAP),
        (f"dear[1] := spent if {CAP}", CAP),
        (f"dear := [spent | {CAP}]", CAP),
        (f"dear := {{spent: 1 | {CAP}}}", CAP),
        (f"dear if {{ every each in [1] {{ {CAP}; spent > each }} }}", CAP),
        (f"dear if over(1)\nover(x) if {{ {CAP}; spent > x }}", CAP),
        (f"dear if not affordable\naffordable if {{ {CAP}; spent < 1 }}", CAP),
        (f"dear if {{ input.agent.state; {CAP}; spent > 1 }}", CAP),
        (f"dear if {{ {CAP}; input.call.estimated_cost_usd > 1 }}", CAP),
        (f"dear := spent if {{ false }} else := 1 if {{ {CAP}; spent > 1 }}", None),
        (f"dear := 1 if {{ false }} else := spent if {CAP}", CAP),
        (f"dear if {{ {CAP}; spent > 1 }}\ndear if {{ data.caps.on; spent > 2 }}", f"{CAP} and data.caps.on"),
        (f"dear if {{ {CAP}; data.caps.on; spent > 1 }}", f"data.caps.on or {CAP}"),
        (f"dear if {{ {CAP}; data.caps.on; spent > 1 }}\ndear if {{ data.caps.on; spent > 2 }}", "data.caps.on"),
    ],
)  # fmt: skip
def test_money_is_read_behind_a_guard(rules: str, guard: str | None) -> None:
    found = guards_of(rules)
    assert " and ".join(" or ".join(way) for way in sorted(found, key=lambda way: CAP not in way)) == (guard or "")


@pytest.mark.parametrize(
    "rules",
    [
        f"dear if {{ spent > 1; {CAP} }}",
        f"dear if {{ not {CAP}; spent > 1 }}",
        f"dear if {{ {CAP}; spent > 1 }} else if spent > 2",
        f"dear if {{ {CAP}; spent > 1 }}\ndear if spent > 2",
        f"dear if {{ {CAP}; spent > 1 }}\ndear if over(spent)\nover(x) if x > 1",
        f"dear if {{ {CAP}; over(1) }}\ndear if over(2)\nover(x) if spent > x",
        f"dear[spent] := 1 if {CAP}",
        f"dear if {{ count([1 | {CAP}]) == 0; spent > 1 }}",
        f"dear if {{ every each in input.agent.roles {{ {CAP}; each }}; spent > 1 }}",
        f"dear if {{ object.get({CAP}, `a`, 0) == 0; spent > 1 }}",
        f"dear if {{ is_number({CAP}); spent > 1 }}",
        f"dear if {{ {CAP} = x; spent > x }}",
        f"dear if {{ x := [{CAP}]; spent > x }}",
        f"dear if {{ {CAP} + 1 > 0; spent > 1 }}",
        f"dear if {{ spent > {CAP} }}",
        f"dear if {{ {CAP} with data.caps as {{}}; spent > 1 }}",
        f"dear if {{ {CAP}; spent > 1 with data.caps as {{}} }}",
        # Whether it is there depends on more than the agent.
        "dear if { data.caps[input.call.target]; spent > 1 }",
        "dear if { name := input.call.target; data.caps[name]; spent > 1 }",
        "name := input.call.target\ndear if { data.caps[name]; spent > 1 }",
        "dear if { data.caps[_]; spent > 1 }",
        "dear if { some name; data.caps[name]; spent > 1 }",
        "dear if { input.agent.cap; spent > 1 }",
        f"own := {CAP} if input.call.target == `t`\ndear if {{ own; spent > 1 }}",
        f"own := {CAP} if spent > 0\ndear if {{ own; spent > 1 }}",
        f"own := {CAP} if time.now_ns() > 0\ndear if {{ own; spent > 1 }}",
        f"own := {CAP}\nown := 1 if input.call.target == `t`\ndear if {{ own; spent > 1 }}",
        f"own.cap := {CAP}\nown[input.call.target] := 1\ndear if {{ own.cap; spent > 1 }}",
        "dear if { data.weighbridge[input.agent.name]; spent > 1 }",
        "dear if { data[input.agent.name]; spent > 1 }",
        # A name that means something else here.
        f"own := {CAP}\ndear if over(1)\nover(own) if {{ own.cap; spent > 1 }}",
        f"own := {CAP}\ndear if {{ own := input.agent; own.name; spent > 1 }}",
        f"own := {CAP}\ndear if {{ some own in input.agent.roles; own.cap; spent > 1 }}",
        f"dear if {{ some cap; cap = {CAP}; spent > cap }}",
        r"dear if { data.caps[input.agent.n\u0061me]; spent > 1 }".replace(r".n\u0061me", r'["n\u0061me"]'),
    ],
)
def test_what_is_no_guard_or_has_a_way_round_it_keeps_nothing(rules: str) -> None:
    assert guards_of(rules) == ()


@pytest.mark.parametrize(
    "rule",
    ["b.cap := 1 if input.call.target == `t`", "b.cap := 1 if input.budgets", "a if time.now_ns() > 0"],
)
def test_data_that_rules_compute_from_more_than_the_agent_is_no_guard(rule: str) -> None:
    rules = f"dear if {{ {CAP}; spent > 1 }}"
    assert guards_of(rules, rego("other := 1", "elsewhere")) == ((CAP,),)
    assert guards_of(rules, rego("b.cap := 1", "caps")) == ((CAP,),)
    assert guards_of(rules, rego(rule, "caps")) == ()


def test_what_is_imported_is_no_guard() -> None:
    policy = rego(f'decision := {{"decision": "ALLOW"}} if {{ caps[input.agent.name]; spent > 1 }}\n{SPENT}')
    assert analysed(policy.replace("import rego.v1", "import rego.v1\nimport data.caps")).of("llm").guards == ()


def test_guards_are_those_of_the_kind_of_call() -> None:
    rules = (
        f'dear if {{ input.call.kind == "llm"; spent > 1 }}\ndear if {{ input.call.kind != "llm"; {CAP}; spent > 1 }}'
    )
    assert guards_of(rules, kind="llm") == ()
    assert guards_of(rules, kind="tool") == ((CAP,),)


def test_what_is_read_behind_shut_guards_has_no_money_in_it() -> None:
    body = f"{CAP}; some each in input.budgets; each.posted_usd > 1; input.call.estimated_cost_usd > input.call.session"
    policy = rego(
        f'decision := {{"decision": "ALLOW"}} if dear\ndear if {{ {body} }}\ndear if input.budgets[_].state == 1'
    )
    found = analysed(policy).of("llm")
    assert {str(each) for each in found.otherwise} == {
        "input.agent.name",
        "input.budgets.*.state",
        "input.call.kind",
        "input.call.session",
    } - ({"input.call.kind"} if "input.call.kind" not in map(str, found.reads) else set())
    assert {"input.budgets.*.posted_usd", "input.call.estimated_cost_usd"} <= set(map(str, found.reads))


def test_of_more_ways_than_are_told_apart_the_guards_of_all_of_them_count() -> None:
    rules = [f"dear if {{ {CAP}; data.on.c{n}; spent > 1 }}" for n in range(20)]
    assert guards_of("\n".join(rules)) == ((CAP,),)


def test_ways_without_number_take_no_time_and_hide_nothing() -> None:
    steps = [f"r{n} if {{ data.{name}.c{n}; r{n + 1} }}" for n in range(200) for name in ("caps", "on")]
    rules = "\n".join([f"dear if {{ {CAP}; r0 }}", *steps, "r200 if { spent > 1; input.call.target }"])
    began = time.process_time()
    found = analysed(rego(f'decision := {{"decision": "DENY"}} if dear\n{SPENT}\n{rules}')).of("llm")
    assert time.process_time() - began < 5
    assert found.guards == ()
    assert {str(each).partition(" ")[0] for each in found.reads} == {
        "input.agent.name",
        "input.budgets.*.posted_usd",
        "input.call.target",
    }


def test_people_are_told_which_guards_there_are() -> None:
    policy = f'decision := {{"decision": "ALLOW"}} if dear\n{SPENT}\ndear if {{ {CAP}; data.on; spent > 1 }}\n'
    told = analysed(rego(policy + "dear if { data.caps.all; spent > 1 }")).text()
    assert (
        f"decisions are reused for agents without `data.caps.all` and without `{CAP}` or `data.on`, and for calls "
        "without budgets and price; for others not:\n    p0.rego:6: it reads `input.budgets.*.posted_usd`"
    ) in told


# --- the interpreter: what stands behind a guard is not evaluated ----------------------------------------------------

_BROKEN = "1 / input.zero"


@pytest.mark.parametrize(
    "guard",
    [
        CAP,
        f"{CAP}.cap",
        f"cap := {CAP}.cap",
        f"zz := {CAP}.cap",
        f"{CAP} == 1",
        f"null != {CAP}.cap",
        f"some cap in {CAP}.list",
        f"own := {CAP}\nown.cap",
        f"own := {CAP}\ncap := own.cap",
        "name := input.agent.name\ndata.caps[name].cap",
        "named",
        "cap := named",
        "data.weighbridge.named",
    ],
)
@pytest.mark.parametrize(
    "behind",
    [
        _BROKEN,
        f"{_BROKEN} > 0",
        f"a := {_BROKEN}",
        f"a := {_BROKEN}\na > 1",
        f"a := 1\nb := a + {_BROKEN}\nb > 0",
        f"some a in [{_BROKEN}]",
        f"every a in [1] {{ a > {_BROKEN} }}",
        f"not {_BROKEN} == 1",
        f"count([1 | {_BROKEN}]) == 0",
        "broken",
        "call(1)",
        "count(input.zero) == 1",
    ],
)
def test_behind_a_guard_nothing_is_evaluated_where_it_is_undefined(guard: str, behind: str) -> None:
    """Not even what would be an error: the interpreter must not put statements into an order that is not theirs."""
    base = create(Clock())
    rules = f"named := {CAP}.cap\nbroken := {_BROKEN}\ncall(x) := {_BROKEN} + x"
    base.add_policy("p.rego", rego(f"decision := {_BROKEN} if {{\n{guard}\n{behind}\n}}\n{rules}"))
    base.add_data_json('{"caps": {"a": {"cap": 1, "list": [1]}}}')

    def asked(name: str) -> str:
        clone = base.clone()
        clone.set_input_json(orjson.dumps({"agent": {"name": name}, "zero": 0}).decode())
        return clone.eval_rule_as_json("data.weighbridge.decision")

    assert asked("b") == '"<undefined>"'
    if guard != f"{CAP} == 1":
        with pytest.raises(RuntimeError):
            asked("a")


# --- the engine ------------------------------------------------------------------------------------------------------

RICH = b'[{"node":"acme/a","window":"day","posted_usd":1.5,"pending_usd":0,"used_percent":30,"state":"ok"}]'
POOR = b'[{"node":"acme/a","window":"day","posted_usd":4.5,"pending_usd":0,"used_percent":90,"state":"warning"}]'


def question(name: str, budgets: bytes = RICH, cost: int | None = 1000, *, tenant: str = "acme") -> Question:
    agent = agent_fragment(name, tenant, [], 2, "active")
    return Question(agent, "llm", "openai", "m", "chat", None, None, b"{}", {}, NOW, Purse(budgets, cost))


def built(rules: str, data: dict[str, Any]) -> EmbeddedEngine:
    decision = 'decision := {"decision": "DENY"} if dear else := {"decision": "ALLOW"}'
    return asyncio.run(build(sources(rego(f"{decision}\n{SPENT}\n{rules}"), data=data)))


def effects(engine: EmbeddedEngine, *asked: Question) -> list[Effect]:
    async def decide() -> list[Effect]:
        return [(await engine.decide(each)).effect for each in asked]

    return asyncio.run(decide())


def counts(engine: EmbeddedEngine) -> tuple[int, int, int]:
    return engine.reuse.hits, engine.reuse.misses, engine.reuse.unsuited


def test_an_agent_without_the_guard_shares_decisions_whatever_was_spent() -> None:
    engine = built(f"dear if {{ {CAP} < spent }}\ndear if {{ cap := {CAP}; spent > cap }}", {"caps": {"a": 3}})
    assert engine.reads.of("llm").guards == ()
    engine = built(f"dear if {{ cap := {CAP}; spent > cap }}", {"caps": {"a": 3}})
    asked = [question("b", RICH), question("b", POOR), question("b", b"[]", None)]
    assert effects(engine, *asked) == [Effect.ALLOW] * 3
    assert counts(engine) == (2, 1, 0)
    assert all(isinstance(each.money, Purse) and not each.money.asked for each in asked)


def test_an_agent_with_the_guard_is_decided_on_afresh() -> None:
    engine = built(f"dear if {{ cap := {CAP}; spent > cap }}", {"caps": {"a": 3}})
    assert effects(engine, question("a", RICH), question("a", POOR), question("a", RICH)) == [
        Effect.ALLOW,
        Effect.DENY,
        Effect.ALLOW,
    ]
    assert counts(engine) == (0, 0, 3)


def test_calls_that_turn_out_to_have_no_money_share_decisions() -> None:
    engine = built(f"dear if {{ cap := {CAP}; spent > cap }}", {"caps": {"a": 3}})
    assert effects(engine, question("a", b"[]"), question("a", b"[]", 7)) == [Effect.ALLOW] * 2
    assert counts(engine) == (1, 1, 0)


@pytest.mark.parametrize("value", [0, False, None, "", [], {}])
def test_a_guard_with_any_value_at_all_is_open(value: Any) -> None:
    engine = built(f"dear if {{ cap := {CAP}; cap != spent }}", {"caps": {"a": value}})
    effects(engine, question("a", RICH), question("a", POOR))
    assert counts(engine) == (0, 0, 2)


def test_data_that_stands_where_a_rule_is_opens_its_guard() -> None:
    rules = f"own := {CAP}\ndear if {{ cap := own.cap; spent > cap }}"
    engine = built(rules, {"weighbridge": {"own": {"cap": 3}}})
    assert engine.reads.of("llm").guards == (("data.weighbridge.own.cap",),)
    assert effects(engine, question("b", RICH), question("b", POOR)) == [
        engine.answer(question("b", each).document(), NOW).effect for each in (RICH, POOR)
    ]


def test_a_guard_that_a_rule_computes_is_open_for_those_for_whom_it_has_a_value() -> None:
    rules = f"own := {CAP} if input.agent.tenant == `acme`\ndear if {{ own; spent > own }}"
    engine = built(rules, {"caps": {"a": 3}})
    assert effects(engine, question("a", POOR), question("a", POOR, tenant="other")) == [Effect.DENY, Effect.ALLOW]
    assert counts(engine) == (0, 1, 1)


def test_a_guard_that_cannot_be_evaluated_is_open() -> None:
    engine = built(f"own := 1 / {CAP}\ndear if {{ own; spent > 1 }}", {"caps": {"a": 0}})
    assert engine.reads.of("llm").guards == (("data.weighbridge.own",),)
    assert engine.unstable("llm", question("a").agent) == engine.reads.of("llm").money
    assert engine.unstable("llm", question("b").agent) == ()


def test_every_guard_of_a_way_may_shut_it_and_every_way_has_to_be_shut() -> None:
    rules = f"dear if {{ {CAP}; data.on[input.agent.name]; spent > 3 }}\n"
    rules += "dear if { data.all[input.agent.name]; spent > 3 }"
    engine = built(rules, {"caps": {"a": 1, "b": 1, "d": 1}, "on": {"b": 1, "c": 1}, "all": {"c": 1, "d": 1}})
    names = "abcde"
    assert effects(engine, *[question(name, POOR) for name in names]) == [
        Effect.ALLOW,
        Effect.DENY,
        Effect.DENY,
        Effect.DENY,
        Effect.ALLOW,
    ]
    assert [engine.unstable("llm", question(name).agent) == () for name in names] == [True, False, False, False, True]
    assert counts(engine) == (0, 2, 3)


def test_more_agents_than_are_remembered_are_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_MOST_AGENTS", 2)
    engine = built(f"dear if {{ cap := {CAP}; spent > cap }}", {"caps": {"a": 3}})
    for _ in range(2):
        assert effects(engine, *[question(name, POOR) for name in "abcd"]) == [Effect.DENY, *[Effect.ALLOW] * 3]
    assert counts(engine) == (3, 3, 2)


def test_an_engine_that_reuses_nothing_shows_all_money() -> None:
    decision = f'decision := {{"decision": "ALLOW"}} if {{ {CAP}; spent > 1 }}\n{SPENT}'
    engine = asyncio.run(build(sources(rego(decision), data={"caps": {}}), reuse=False))
    asked = question("b")
    with pytest.raises(Undecided):
        effects(engine, asked)
    assert isinstance(asked.money, Purse)
    assert asked.money.asked == ["budgets"]


def test_what_is_recorded_of_a_decision_decides_the_same_again() -> None:
    engine = built(f"dear if {{ cap := {CAP}; spent > cap }}", {"caps": {"a": 3}})
    for asked in (question("a", POOR), question("b", POOR)):
        before = effects(engine, asked)
        recorded = asked.recorded(asked.body)
        assert [engine.answer(recorded, NOW).effect] == before
        assert (POOR in recorded) == (before == [Effect.DENY])


# --- the shipped policy ----------------------------------------------------------------------------------------------


def shipped_policy() -> Sources:
    found = read([SHIPPED / "weighbridge.rego", SHIPPED / "envelopes.rego", ENVELOPES])
    granted: dict[str, Any] = {"models": {"m": {}}}
    return dataclasses.replace(found, data={"envelopes": {"b": granted, "a": {**granted, "daily_cost_cap_usd": 4}}})


def test_with_budgets_the_shipped_policy_decides_afresh_on_agents_with_a_cap_alone() -> None:
    engine = asyncio.run(build(shipped_policy()))
    asked = [question(name, budgets, cost) for name in "ab" for budgets in (RICH, POOR) for cost in (1000, 2000)]
    assert effects(engine, *asked) == [Effect.ALLOW] * 2 + [Effect.DENY] * 2 + [Effect.ALLOW] * 4
    assert counts(engine) == (3, 1, 4)
    assert [bool(each.money.asked) for each in asked if isinstance(each.money, Purse)] == [True] * 4 + [False] * 4


# --- ways ------------------------------------------------------------------------------------------------------------

guards = st.sampled_from([Guard(name, frozenset()) for name in "abcde"])
ways: st.SearchStrategy[list[Guards]] = st.lists(st.frozensets(guards, max_size=4), max_size=16)


def shut(given_ways: Sequence[Guards] | set[Guards], undefined: Guards) -> bool:
    return all(way & undefined for way in given_ways)


@given(ways, st.frozensets(guards))
def test_a_part_is_shut_where_every_way_to_it_is(given_ways: list[Guards], undefined: Guards) -> None:
    kept: set[Guards] = set()
    for way in given_ways:
        opened(kept, way)
    if shut(kept, undefined):
        assert shut(given_ways, undefined)
    elif len(set(given_ways)) <= 8:
        assert not shut(given_ways, undefined)
    assert len(kept) <= 8
    assert not any(one < other for one in kept for other in kept)


@given(ways)
def test_a_way_is_followed_where_it_leads_further(given_ways: list[Guards]) -> None:
    kept: set[Guards] = set()
    for way in given_ways:
        further = not any(known <= way for known in kept)
        assert (opened(kept, way) is not None) == further
        assert any(known <= way for known in kept)


@given(ways, ways, st.frozensets(guards))
def test_what_is_shut_with_other_ways_is_shut_wherever_they_are(
    given_ways: list[Guards], others: list[Guards], undefined: Guards
) -> None:
    if shut_with(set(given_ways), set(others)) and shut(others, undefined):
        assert shut(given_ways, undefined)
    assert shut_with({OPEN}, set(others)) == (OPEN in others)
