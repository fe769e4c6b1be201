"""What a policy can read is found in its text, construct by construct; what is not understood reads everything."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import reads
from policies.build import build
from policies.builtins import NONDETERMINISTIC
from policies.decision import Decision
from policies.document import Question
from policies.interpreter import Clock, create
from policies.prove import prove
from policies.reads import KINDS, OTHER, Path, Read, Reads, analyse, everything, minimal, shown
from policies.sources import read as read_sources
from tests.policies.fuzz_reads import Figures, afresh, engine_of, reused, try_policy
from tests.policies.support import ENVELOPES, ROOT, SHIPPED, rego, sources


def analysed(*texts: str) -> Reads:
    base = create(Clock())
    for number, text in enumerate(texts):
        base.add_policy(f"p{number}.rego", text)
    return analyse(orjson.loads(base.get_ast_as_json()))


def read_by(*texts: str, kind: str = "tool") -> set[str]:
    return {str(each) for each in analysed(*texts).of(kind).reads}


def of_body(body: str, *, rules: str = "", kind: str = "tool") -> set[str]:
    """What a decision with this body reads, beside rules of its package."""
    return read_by(rego(f'decision := {{"decision": "ALLOW"}} if {{\n{body}\n}}\n{rules}'), kind=kind)


THERE = " (whether it is there)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("true", set()),
        ("input.agent.name == `a`", {"input.agent.name"}),
        ('input["agent"]["name"] == `a`', {"input.agent.name"}),
        ("input.agent.name", {f"input.agent.name{THERE}"}),
        ("not input.approval", {f"input.approval{THERE}"}),
        ("input.agent == {}", {"input.agent"}),
        ("input.agent.name == `a`; input.agent == {}", {"input.agent"}),
        ("input.agent.name; input.agent.name == `a`", {"input.agent.name"}),
        ("input == {}", {"input"}),
        ("input[input.call.target]", {"input"}),
        ("input[_].name == 1", {"input"}),
        ("input.call[input.call.target] == 1", {"input.call.*", "input.call.target"}),
        ("input.call[`target`] == 1", {"input.call.*"}),
        (r'input.call["t\u0061rget"] == 1', {"input.call.*"}),
        ("input.call.arguments.a[0] == 1", {"input.call.arguments.a.*"}),
        ("input.call.arguments.a[_].b == 1", {"input.call.arguments.a.*.b"}),
        ("some i; input.call.arguments[i].b == 1", {"input.call.arguments.*.b"}),
        ("some x in input.agent.roles; x == 1", {"input.agent.roles.*"}),
        ("some b in input.budgets; b.state == `ok`", {"input.budgets.*.state"}),
        ("some i, b in input.budgets; b.state == i", {"input.budgets.*.state"}),
        ("some b in input.budgets; f(b)", {"input.budgets.*"}),
        ("some {`a`: x} in input.budgets; x == 1", {"input.budgets"}),
        ("some _ in input.budgets", {f"input.budgets.*{THERE}"}),
        ("every b in input.budgets { b.state == `ok` }", {"input.budgets.*.state"}),
        ("every i, b in input.budgets { b[i] == `ok` }", {"input.budgets.*.*"}),
        ("every b in f(input.agent) { b == 1 }", {"input.agent"}),
        ("x := input.call; x.target == 1", {"input.call.target"}),
        ("x := input.call; y := x.arguments; y.a == 1", {"input.call.arguments.a"}),
        ("x := input.call; x == 1", {"input.call"}),
        ("x := input.call", {f"input.call{THERE}"}),
        ("x := input.budgets[_]; x.state == 1", {"input.budgets.*.state"}),
        ("x = input.call; x.target == 1", {"input.call"}),
        ("[x, y] := input.call.arguments.a; x == 1", {"input.call.arguments.a"}),
        ("x := {`a`: input.agent.name}; x.a == 1", {"input.agent.name"}),
        ("count([x | some x in input.agent.roles]) == 0", {"input.agent.roles.*"}),
        ("count({x.a | x := input.agent}) == 0", {"input.agent.a"}),
        ("count({k: v.b | some k, v in input.agent}) == 0", {"input.agent.*.b"}),
        ("`a` in input.agent.roles", {"input.agent.roles"}),
        ("`a`, `b` in input.agent.roles", {"input.agent.roles"}),
        ("input.agent.autonomy_tier + 1 > 3", {"input.agent.autonomy_tier"}),
        ("{input.agent.name} | {`a`} == set()", {"input.agent.name"}),
        ("walk(input.call.arguments, [p, v])", {"input.call.arguments"}),
        ("object.get(input.call, `target`, 0) == 1", {"input.call"}),
        ('object.get(input.call, "target", 0) == 1', {"input.call.target"}),
        ('object.get(input.call, ["arguments", "a"], 0) == 1', {"input.call.arguments.a"}),
        ('object.get(input.call, ["arguments", 0], 0) == 1', {"input.call"}),
        ('object.get(input.call, [input.agent.name], input.approval.id) == 1',
         {"input.agent.name", "input.approval.id", "input.call"}),
        ('x := input.call; object.get(x, "a", 0) == 1', {"input.call.a"}),
        ("is_object(input.call.arguments)", {f"input.call.arguments{THERE}"}),
        ("is_object(input.call.arguments); count(input.call.arguments.a) > 1", {"input.call.arguments.a"}),
        ("f(input.call.arguments.a)", {"input.call.arguments.a"}),
        ("count(input.call.arguments.a) > 1", {"input.call.arguments.a"}),
        ("data.table[input.agent.name][input.call.target]", {"input.agent.name", "input.call.target"}),
        ("data.table.a with input as {}", {"input"}),
        ("data.table.a with data.table as input.agent", {"input"}),
        ("f(input.agent.name)[0]", {"input.agent.name"}),
        ('input.call["a b"] == 1', {'input.call["a b"]'}),
    ],
)  # fmt: skip
def test_what_a_body_reads(body: str, expected: set[str]) -> None:
    assert of_body(body, rules="f(x) if x == 1") == expected


def test_only_rules_that_can_be_asked_for_count() -> None:
    beside = "aside if input.call.arguments.a == 1\nproblems contains input.agent.name"
    assert of_body("asked", rules=f"asked if input.call.target == `t`\n{beside}") == {"input.call.target"}


@pytest.mark.parametrize(
    "reference",
    [
        "asked",
        "asked.a",
        "data.weighbridge.asked",
        "data.weighbridge[`asked`]",
        "data.weighbridge[input.nothing]",
        "data[`weighbridge`].asked",
        'data["weighbridge.asked"]',
        "data.weighbridge",
        "data == {}",
        "not asked",
        "x := asked",
        "count([1 | asked]) == 0",
        "every x in [1] { asked == x }",
        "data.table[asked]",
        "object.get(asked, `a`, 0) == 1",
        "through",
        "call(1)",
        "data.weighbridge.call(1)",
        "data.lib.rule",
    ],
)
def test_every_way_to_ask_for_a_rule_counts(reference: str) -> None:
    asked = "asked := input.call.target\nthrough if asked == 1\ncall(x) if asked == x\n"
    lib = rego("rule := data.weighbridge.asked", "lib")
    decision = rego(f'{asked}decision := {{"decision": "ALLOW"}} if {{ {reference} }}')
    assert "input.call.target" in read_by(decision, lib)


@pytest.mark.parametrize(
    "reference", ["asked.other", "data.weighbridge.asked.other", "asked.other.deep", "asked.some.x"]
)
@pytest.mark.parametrize("name", ["asked.some", 'asked["some"]', "asked.some[1]", "asked[input.agent.name]"])
def test_who_asks_for_one_part_of_a_rule_has_its_other_parts_evaluated(reference: str, name: str) -> None:
    """Nothing of their value is seen, but what goes wrong in them is."""
    policy = rego(f"""
        decision := {{"decision": "ALLOW"}} if not {reference}
        {name} := 1 / input.call.arguments.a if input.call.kind == "tool"
    """)
    assert "input.call.arguments.a" in read_by(policy)
    engine = engine_of([policy])
    for a in (1, 0):
        body = orjson.dumps({"a": a})
        call = Question(b'{"name":"n"}', "tool", "mcp", "t", "o", None, None, body, {"a": a}, 1)
        assert reused(engine, call) == afresh(engine, call)


@pytest.mark.parametrize(
    ("imported", "reference", "expected"),
    [
        ("input.call", "call.target == 1", "input.call.target"),
        ("input.call as c", "c.target == 1", "input.call.target"),
        ("input.call as c", "c == 1", "input.call"),
        ("input.call.arguments as a", "some x in a; x.b == 1", "input.call.arguments.*.b"),
        ("data.lib", "lib.rule == 1", "input.agent.name"),
        ("data.lib as l", "l.other == 1", "input.agent.name"),
        ("data.lib.rule", "rule == 1", "input.agent.name"),
        ("data.lib.fun", "fun(1)", "input.agent.tenant"),
        ("data.lib", "lib.fun(1)", "input.agent.tenant"),
    ],
)
def test_imports_are_followed_in_every_file_of_the_package(imported: str, reference: str, expected: str) -> None:
    lib = rego("rule := input.agent.name\nother := 1\nfun(x) if x == input.agent.tenant", "lib")
    decision = f'decision := {{"decision": "ALLOW"}} if {{ {reference} }}'
    one_file = f"package weighbridge\n\nimport rego.v1\nimport {imported}\n\n{decision}\n"
    assert expected in read_by(one_file, lib)
    other_file = f"package weighbridge\n\nimport rego.v1\nimport {imported}\n"
    assert expected in read_by(rego(decision), other_file, lib)


@pytest.mark.parametrize(
    ("imported", "package", "reference"),
    [
        (r'input["c\u0061ll"] as c', "lib", "c.target"),
        (r'input["c\u0061ll"]', "lib", "call.target"),
        (r'input["c\u0061ll"]["arguments"] as c', "lib", "c.a"),
        (r'data["l\u0069b"]', "lib", "lib.rule"),
        ("data.lib", r'lib["s\u0075b"]', "data.lib.sub.rule"),
        ("data.lib", r'weighbridge["s\u0075b"]', "data.weighbridge.sub.rule"),
    ],
)
def test_names_of_packages_and_imports_written_with_escapes_read_everything(
    imported: str, package: str, reference: str
) -> None:
    decision = f'decision := {{"decision": "ALLOW", "explanation": json.marshal({reference})}}'
    policy = f"package weighbridge\n\nimport rego.v1\nimport {imported}\n\n{decision}\n"
    lib = rego("rule := input.call.target", package)
    found = analysed(policy, lib).of("tool")
    assert found.everything
    assert "written with an escape" in str(found.unstable[0])
    engine = engine_of([policy, lib])
    for target in ("t", "u"):
        body = orjson.dumps({"a": target})
        call = Question(b"{}", "tool", "mcp", target, "o", None, None, body, {"a": target}, 1)
        decided = reused(engine, call)
        assert decided == afresh(engine, call)
        assert isinstance(decided, Decision)
        assert decided.explanation == f'"{target}"'


@pytest.mark.parametrize(
    "rules",
    [
        "asked contains input.call.target",
        "asked contains 1 if input.call.target == 1",
        "asked[input.call.target] := 1",
        "asked[x] := 1 if x := input.call.target",
        "asked := 1 if input.nothing else := 2 if input.call.target == 1",
        "asked := 1 if input.nothing else := input.call.target",
        "asked := x if x := input.call.target",
        "asked := [x.target | x := input.call]",
        "asked := 1 if { input.nothing } else := x.target if { x := input.call }",
        "asked.a := input.call.target",
        "asked := 1 if { false }\nasked := 2 if input.call.target == 1",
    ],
)
def test_every_part_of_a_rule_counts(rules: str) -> None:
    assert "input.call.target" in {each.removesuffix(THERE) for each in of_body("asked", rules=rules)}


def test_a_name_given_its_value_in_two_places_stands_for_nothing() -> None:
    assert of_body("x := input.call; x.target == 1; every x in input.budgets { x.state == 1 }") >= {
        "input.budgets",
        "input.call",
    }


def test_a_name_that_body_and_answer_both_give_a_value_stands_for_nothing() -> None:
    answer = '{"decision": "ALLOW", "explanation": json.marshal([x.target, [x.state | some x in input.budgets]])}'
    assert read_by(rego(f"decision := {answer} if {{ x := input.call }}")) == {"input.budgets", "input.call"}
    answer = answer.replace("some x in input.budgets", "true")
    assert "input.call.target" in read_by(rego(f"decision := {answer} if {{ x := input.call }}"))


def test_a_parameter_of_a_function_stands_for_nothing() -> None:
    assert of_body("f(input.agent)", rules="f(x) if x.name == 1\ng(x) if x == 1") == {"input.agent"}


@pytest.mark.parametrize("name", ["input", "data"])
def test_a_variable_named_like_the_documents_reads_everything(name: str) -> None:
    found = analysed(rego(f'decision := {{"decision": "ALLOW"}} if f(1)\nf({name}) if {name} == 1')).of("tool")
    assert found.everything
    assert f"a variable is called `{name}`" in str(found.unstable[0])


GUARDED = [
    ('input.call.kind == "llm"', {"llm"}),
    ('"llm" == input.call.kind', {"llm"}),
    ('input.call.kind != "llm"', {"tool", "message", "environment"}),
    ('not input.call.kind == "llm"', {"tool", "message", "environment"}),
    ('not input.call.kind != "llm"', {"llm"}),
    ('input.call.kind in {"llm", "tool"}', {"llm", "tool"}),
    ('input.call.kind in ["llm", "tool"]', {"llm", "tool"}),
    ('not input.call.kind in {"llm", "tool"}', {"message", "environment"}),
    ('input.call.kind != "llm"\ninput.call.kind != "tool"', {"message", "environment"}),
    ('input.call.kind == "dance"', set()),
    # These look like guards and are none that can be relied on.
    ('input.call.target == 1\ninput.call.kind == "llm"', set(KINDS)),
    ('kind := input.call.kind\nkind == "llm"', set(KINDS)),
    ('input.call.kind == `llm`', set(KINDS)),
    ('input.call.kind in {"llm", input.agent.name}', set(KINDS)),
    ('input.call.kind > "llm"', set(KINDS)),
    ('input.call.kind == input.agent.name', set(KINDS)),
    ('input.agent.kind == "llm"', set(KINDS)),
    ('call.kind == "llm"', set(KINDS)),
    ('input.call.kind = "llm"', set(KINDS)),
]  # fmt: skip


@pytest.mark.parametrize(("guard", "kinds"), GUARDED)
def test_a_body_that_begins_by_asking_for_a_kind_is_read_for_that_kind(guard: str, kinds: set[str]) -> None:
    found = analysed(
        rego(f'decision := {{"decision": "ALLOW"}} if {{\n{guard}\ninput.call.arguments.a == 1\n}}\ncall := input.call')
    )
    reading = {kind for kind in (*KINDS, OTHER) if "input.call.arguments.a" in _covered(found, kind)}
    assert reading == kinds | {OTHER}


def _covered(found: Reads, kind: str) -> set[str]:
    told = {str(each) for each in found.of(kind).reads}
    return told | ({"input.call.arguments.a"} if "input.call" in told else set())


@pytest.mark.parametrize(("guard", "kinds"), [pair for pair in GUARDED if pair[1] != set(KINDS)])
def test_behind_such_a_question_nothing_is_evaluated_for_other_kinds(guard: str, kinds: set[str]) -> None:
    base = create(Clock())
    # Whatever order the statements could be put in, an error would be seen.
    body = f"{guard}\nx := 1 / input.zero\ny := count(input.zero)\nevery z in [1] {{ z / input.zero == x }}\ny == x"
    base.add_policy("p.rego", rego(f"decision := 1 if {{\n{body}\n}}"))
    for kind in KINDS:
        asked = base.clone()
        asked.set_input_json(orjson.dumps({"call": {"kind": kind}, "zero": 0}).decode())
        if kind in kinds:
            with pytest.raises(RuntimeError):
                asked.eval_rule_as_json("data.weighbridge.decision")
        else:
            assert asked.eval_rule_as_json("data.weighbridge.decision") == '"<undefined>"'


def test_what_is_asked_before_the_kind_is_known_to_differ_is_read_for_all() -> None:
    rules = 'asked := {"a": input.agent.name} if input.call.kind == "llm" else := input.agent.tenant'
    assert of_body("asked == 1", rules=rules, kind="llm") == {
        "input.agent.name",
        "input.agent.tenant",
        "input.call.kind",
    }
    assert of_body("asked == 1", rules=rules, kind="tool") == {"input.agent.tenant", "input.call.kind"}


@pytest.mark.parametrize("name", sorted(NONDETERMINISTIC))
def test_decisions_by_a_builtin_that_changes_by_itself_are_not_reused(name: str) -> None:
    found = analysed(rego(f'decision := {{"decision": "ALLOW"}} if {{\n\tinput.agent.name\n\t{name}(1)\n}}'))
    assert [str(reason) for reason in found.of("tool").unstable] == [f"p0.rego:7: `{name}` changes by itself"]


@pytest.mark.parametrize("body", ["input.time.unix_ns > 1", "input.time", "x := input.time; x.utc == 1"])
def test_decisions_by_the_time_are_not_reused(body: str) -> None:
    (reason,) = analysed(rego(f'decision := {{"decision": "ALLOW"}} if {{ {body} }}')).of("tool").unstable
    assert "input.time" in str(reason)
    assert reason.line == 5


@pytest.mark.parametrize(
    ("body", "exact"),
    [
        ("some b in input.budgets; b.state == `ok`; b.node == 1; b.window == 1; b.used_percent < 80", False),
        ("some b in input.budgets; b.limit_usd > 1; b.mode == 1", False),
        ("count([1 | some _ in input.budgets]) > 1", False),
        ("input.budgets", False),
        ("some b in input.budgets; b.posted_usd < 1", True),
        ("input.budgets[0].pending_usd < 1", True),
        ("count(input.budgets) > 1", True),
        ("input.budgets[_] == {}", True),
        ("input.budgets[_][`state`] == 1", True),
    ],
)
def test_who_reads_exact_money_is_told_apart_from_who_reads_the_state_of_a_budget(body: str, exact: bool) -> None:
    found = analysed(rego(f'decision := {{"decision": "ALLOW"}} if {{ {body} }}')).of("tool")
    assert bool(found.money) is exact
    assert not found.unstable


def test_the_reads_of_the_shipped_policy() -> None:
    found = analysed(*(module.text for module in read_sources([SHIPPED / "weighbridge.rego", ENVELOPES]).modules))
    common = {"agent.autonomy_tier", "agent.name", "agent.state", "agent.tenant", "call.estimated_cost_usd"}
    common |= {"call.kind", "call.operation", "call.target", "approval.id", "approval.roles"}
    common |= {f"budgets.*.{name}" for name in ("node", "window", "posted_usd", "pending_usd")}
    lengths = {f"call.arguments.{name}" for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")}
    for kind in KINDS:
        told = {str(each).removeprefix("input.").removesuffix(THERE) for each in found.of(kind).reads}
        assert told == common | (lengths if kind == "llm" else {"call.arguments", "call.phase"}), kind
        assert not found.of(kind).unstable


def test_what_is_read_survives_a_way_through_json() -> None:
    found = analysed(
        rego('decision := {"decision": "ALLOW"} if {\n\ttime.now_ns() > input.budgets[_].posted_usd\n\tinput.agent\n}')
    )
    assert found.of("tool").unstable
    assert found.of("tool").money
    assert Reads.from_json(orjson.loads(orjson.dumps(found.as_json()))) == found


async def test_what_a_proven_policy_reads_comes_with_its_proof() -> None:
    policy = rego('decision := {"decision": "ALLOW"} if input.call.target == data.target')
    proof = await prove(sources(policy, data={"target": "t"}), 20)
    assert {str(each) for each in proof.reads.of("tool").reads} == {"input.call.target"}
    assert (await build(proof.packed, proof.reads)).reads == proof.reads == (await build(proof.packed)).reads


def test_people_are_told_what_is_read_and_why_decisions_are_not_reused() -> None:
    guard = 'input.call.kind == "llm"'
    policy = rego(f'decision := {{"decision": "ALLOW"}} if {{\n\t{guard}\n\ttime.now_ns() > input.agent.since\n}}')
    told = analysed(policy).text()
    assert (
        "calls of kind llm\n  read input.agent.since, input.call.kind\n"
        "  decisions are not reused:\n    p0.rego:7: `time.now_ns` changes by itself\n"
        "calls of kind tool\n  read input.call.kind\n  decisions are reused\n"
    ) in told
    assert "read nothing of the input" in analysed(rego('decision := {"decision": "ALLOW"}')).text()


def test_the_manual_shows_what_people_are_told() -> None:
    policy = """\
package weighbridge

import rego.v1

default decision := {"decision": "DENY"}

decision := {"decision": "ALLOW"} if {
	input.call.kind == "llm"
	input.call.arguments.max_tokens <= 512
	not exhausted
}

decision := {"decision": "ALLOW"} if {
	input.call.kind == "tool"
	is_object(input.call.arguments)
	time.now_ns() < data.closing[input.call.target]
}

exhausted if {
	some budget in input.budgets
	budget.state == "exhausted"
}
"""
    told = analysed(policy).text().replace("p0.rego", "policy.rego")
    assert told.partition("calls of kind message")[0] in (ROOT / "docs" / "policy.md").read_text()


@pytest.mark.parametrize("trees", [[], [{}], [{"ast": {}}], None, [{"source": {"file": "x.rego"}, "ast": 1}]])
def test_trees_that_are_not_understood_read_everything(trees: list[object]) -> None:
    found = analyse(trees)
    if trees == []:
        assert not found.of("tool").reads, "no rule reads nothing"
        return
    assert all(found.of(kind).everything and found.of(kind).unstable for kind in (*KINDS, OTHER))


@pytest.mark.parametrize("form", ["Literal", "Expr"])
def test_a_construct_of_a_later_language_reads_everything(form: str) -> None:
    base = create(Clock())
    base.add_policy("p.rego", rego('decision := {"decision": "ALLOW"} if {\n\tinput.a == 1\n}'))
    text = base.get_ast_as_json()
    later = text.replace('"BoolExpr"', '"NewExpr"') if form == "Expr" else text.replace('"Expr": {', '"Later": {')
    assert later != text
    found = analyse(orjson.loads(later))
    assert found.of("tool").everything
    assert "not known here" in str(found.of("tool").unstable[0])


def test_a_policy_nested_deeply_is_read_or_reads_everything() -> None:
    base = create(Clock())
    base.add_policy("p.rego", rego("decision := [input.agent.name]"))
    (tree,) = orjson.loads(base.get_ast_as_json())
    assign = tree["ast"]["rules"][0]["Spec"]["head"]["Compr"]["assign"]
    for deep, expected in ((50, "input.agent.name"), (5000, "input")):
        for _ in range(deep):
            assign["value"] = {"Array": {"span": tree["ast"]["package"]["span"], "items": [assign["value"]]}}
        assert [str(each) for each in analyse([tree]).of("tool").reads] == [expected]


steps = st.sampled_from(["a", "b", None])
paths: st.SearchStrategy[list[tuple[Path, bool]]] = st.lists(
    st.tuples(st.lists(steps, max_size=3).map(tuple), st.booleans()), max_size=6
)


@given(paths)
def test_the_least_that_says_what_is_read_leaves_nothing_out(given_paths: list[tuple[Path, bool]]) -> None:
    told = minimal(Read(path, whole, "f", 1) for path, whole in given_paths)
    for path, whole in given_paths:
        within = [each.path for each in told if each.whole and path[: len(each.path)] == each.path]
        assert within or (not whole and any(each.path[: len(path)] == path for each in told))
    assert len({each.path for each in told}) == len(told)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("input.call.arguments.f{}.a == 1", {"input.agent.name", "input.call.arguments"}),
        ("input.call.f{}.a == 1", {"input.agent", "input.call"}),
        ("input.f{}", {"input"}),
    ],
)
def test_what_is_read_in_hundreds_of_places_is_read_as_a_whole(reference: str, expected: set[str]) -> None:
    body = "\n".join(reference.format(number) for number in range(reads.MOST + 1))
    assert of_body(f"input.agent.name == 1\n{body}") == expected


def test_paths_are_shown_as_one_would_write_them() -> None:
    assert shown(("call", "a b", None, "c")) == 'input.call["a b"].*.c'
    assert everything("because").of("tool").everything


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_policies_decide_the_same_with_what_they_read_and_with_what_was_decided(seed: int) -> None:
    figures = Figures()
    try_policy(seed, figures)
    assert not figures.differences, figures.differences[0]


def test_the_random_policies_are_worth_trying() -> None:
    """Most load and decide, many decisions are reused, and a change of what is read often changes the decision."""
    figures = Figures()
    for seed in range(120):
        try_policy(seed, figures)
    assert not figures.differences, figures.differences[0]
    assert figures.policies > 100
    assert figures.narrow > 60
    assert figures.decided > figures.calls / 3
    assert figures.reused > 200
    assert figures.guarded > 5
    assert figures.shut > 40
    assert figures.outside > 300
    assert figures.changed > 100
