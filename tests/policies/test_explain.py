"""Why a decision was made: the branch that answered is named rightly, and so are the rules that it stands on."""

import re
from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from policies.build import build
from policies.embedded import EmbeddedEngine
from policies.errors import PolicyError
from policies.explain import LARGEST, MOST_STEPS, Outline, Step, explain, outline, outlined, told
from policies.interpreter import Clock, create
from policies.sources import Module, Sources, read
from tests.policies.support import ENVELOPES, NOW, SHIPPED, call, llm, rego, sources

_POLICY = (SHIPPED / "weighbridge.rego").read_text().splitlines()


@pytest.fixture
async def shipped() -> EmbeddedEngine:
    return await build(read([SHIPPED, ENVELOPES]))


def outline_of(modules: Iterable[Module]) -> Outline:
    """As `outlined` makes it, but in this process, which takes a tenth of the time."""
    base = create(Clock())
    for module in modules:
        base.add_policy(module.name, module.text)
    return outline(orjson.loads(base.get_ast_as_json()))


async def steps(policy: str, document: Any = None, data: dict[str, Any] | None = None, *more: str) -> list[Step]:
    whole = sources(rego(policy), *more, data=data)
    return list(explain(await build(whole), outline_of(whole.modules), orjson.dumps(document or {}), NOW))


def shown(found: list[Step]) -> list[tuple[str, tuple[int, ...], bool | None, str | None]]:
    return [(step.name.rpartition(".")[2], step.lines, step.holds, step.value) for step in found]


@pytest.mark.parametrize(
    ("document", "begins", "others"),
    [
        (llm("gpt-4o-mini"), 'input.call.kind == "llm"', set()),
        (call("tool", "github", "list_issues", {}), 'input.call.kind != "llm"', {"section"}),
        (
            llm("nothing-like-it"),
            "refusal",
            {"refusal", "not_granted", "grant", "envelope", "what", "instead", "agent"},
        ),
        (llm("llama-3"), "grant", {"grant", "risk", "unattended", "envelope"}),
        (llm("gpt-4o-mini", state="paused"), "refusal", {"refusal", "agent"}),
        (
            call("tool", "github", "merge_pr", {}),
            "grant",
            {"grant", "risk", "approvers", "what", "agent", "operations"},
        ),
        (call("tool", "github", "create_pr", {"base": "x"}), "refusal", {"refusal", "violations", "broken", "present"}),
        (b"{}", "default decision := {", set()),
    ],
)
async def test_the_branch_of_the_shipped_policy_that_answered_is_named(
    shipped: EmbeddedEngine, document: bytes, begins: str, others: set[str]
) -> None:
    found = explain(shipped, outline_of(read([SHIPPED]).modules), document, NOW)
    assert found[0].name == "data.weighbridge.decision"
    (line,) = found[0].lines
    # The line of a branch is where it begins; its body begins on the next line, or after the answer.
    text = "\n".join(_POLICY[line - 1 :])
    body = text if text.startswith("default") else re.split(r" if \{\n\s*(?:#.*\n\s*)*", text, maxsplit=1)[1]
    assert body.startswith(begins)
    assert others <= {step.name.rpartition(".")[2] for step in found[1:]}


async def test_each_way_to_a_value_is_told_apart() -> None:
    policy = """
        decision := {"decision": word}
        word := "DENY" if input.a == "no"
        else := "NEEDS_APPROVAL" if {
            some level in levels
            level > 1
        } else := "ALLOW"
        levels contains 1
        levels contains 2 if input.b
        levels contains input.c
        """
    assert shown(await steps(policy, {"a": "no"})) == [
        ("decision", (5,), True, '{"decision":"DENY"}'),
        ("word", (6,), True, '"DENY"'),
    ]
    assert shown(await steps(policy, {"b": 1})) == [
        ("decision", (5,), True, '{"decision":"NEEDS_APPROVAL"}'),
        ("word", (7,), True, '"NEEDS_APPROVAL"'),
        ("levels", (11, 12), True, "[1,2]"),
    ]
    assert shown(await steps(policy)) == [
        ("decision", (5,), True, '{"decision":"ALLOW"}'),
        ("word", (10,), True, '"ALLOW"'),
    ]


async def test_rules_of_other_files_are_found_by_path_and_by_import() -> None:
    lib = rego('banned contains "x"\nlimits[name] := 5 if name := input.name\nf(x) := x + base\nbase := 1', "lib")
    policy = """
        import data.lib.limits as most
        decision := {"decision": "ALLOW"} if {
            count(data.lib.banned) == 1
            most.a == 5
            data.lib.f(1) == 2
            not none
        }
        none if input.none
        """
    found = await steps(policy, {"name": "a"}, None, lib)
    assert shown(found) == [
        ("decision", (6,), True, '{"decision":"ALLOW"}'),
        ("banned", (5,), True, '["x"]'),
        ("limits", (6,), True, '{"a":5}'),
        ("f", (7,), None, None),
        ("base", (8,), True, "1"),
        ("none", (12,), False, None),
    ]
    assert {step.file for step in found} == {"policy0.rego", "policy1.rego"}
    assert [step.depth for step in found] == [0, 1, 1, 1, 2, 1]


async def test_a_variable_is_not_taken_for_the_rule_of_its_name() -> None:
    policy = """
        decision := {"decision": "ALLOW"} if {
            a := 1
            some b in [2]
            every c in [3] { c > a }
            f(b)
        }
        f(e) if e > 1
        a := 1
        c := 1
        e := 1
        """
    found = await steps(policy)
    assert [step.name for step in found] == ["data.weighbridge.decision", "data.weighbridge.f"]


@pytest.mark.parametrize("read", ["input", "input.call", "input.call.arguments.key", 'input["call"][x]'])
async def test_values_that_may_hold_arguments_are_left_out(read: str) -> None:
    policy = f"""
        decision := {{"decision": "ALLOW", "explanation": via}}
        via := sprintf("%v", [direct])
        direct := {read} if x := "arguments"
        harmless := 1
        """
    document = {"call": {"arguments": {"key": "hunter2"}}}
    found = await steps(policy, document)
    assert [step.value for step in found] == [None, None, None]
    assert "hunter2" not in told(found)


async def test_long_values_are_left_out() -> None:
    (first, second) = await steps('decision := {"decision": word}\nword := concat("", ["ALL", "OW"])')
    assert (first.value, second.value) == ('{"decision":"ALLOW"}', '"ALLOW"')
    (_, second) = await steps('decision := {"decision": "DENY", "explanation": long}\nlong := "' + 200 * "x" + '"')
    assert second.value is None


async def test_a_rule_that_fails_is_left_out_and_the_rest_stands() -> None:
    policy = """
        decision := {"decision": "ALLOW"} if not other
        other if 1 / input.zero > 0
        """
    assert shown(await steps(policy, {})) == [
        ("decision", (5,), True, '{"decision":"ALLOW"}'),
        ("other", (6,), False, None),
    ]


async def test_explaining_changes_no_decision(shipped: EmbeddedEngine) -> None:
    told_rules = await outlined(shipped)
    assert told_rules == outline_of(read([SHIPPED]).modules)
    for document in (llm("gpt-4o"), llm("x"), call("tool", "github", "merge_pr", {}), b"{}"):
        before = await shipped.evaluate(document, NOW)
        assert explain(shipped, told_rules, document, NOW)
        assert await shipped.evaluate(document, NOW) == before


async def test_an_input_that_is_none_has_no_explanation(shipped: EmbeddedEngine) -> None:
    assert explain(shipped, await outlined(shipped), b"{", NOW) == ()


async def test_the_longest_explanation_ends() -> None:
    chain = "\n".join(f"r{n} := r{n + 1}" for n in range(200))
    found = await steps(f'decision := {{"decision": "ALLOW"}} if r0\n{chain}\nr200 := true')
    assert len(found) == MOST_STEPS


async def test_too_much_policy_is_not_explained() -> None:
    engine = await build(
        sources(rego('decision := {"decision": "ALLOW"}') + ("#" + 1000 * "x" + "\n") * (LARGEST // 5000))
    )
    with pytest.raises(PolicyError, match="not explained"):
        await outlined(engine, largest=LARGEST // 10)


def test_an_outline_survives_being_told_as_json() -> None:
    made = outline_of(read([SHIPPED]).modules)
    assert Outline.from_json(orjson.loads(orjson.dumps(made.as_json()))) == made
    assert all(not name.startswith("data.library.") for name in made.rules), "what cannot be reached costs nothing"


async def test_a_policy_for_people_reads_like_an_explanation() -> None:
    text = told(await steps('decision := {"decision": "DENY"} if not allowed\nallowed if input.yes\n'))
    assert text.splitlines() == [
        'weighbridge.decision = {"decision":"DENY"}  (policy0.rego:5)',
        "  weighbridge.allowed does not hold  (policy0.rego:6)",
    ]


async def test_text_of_every_form_can_stand_at_the_end_of_a_branch() -> None:
    policy = """
        decision := {"decision": word}
        word := `DENY` if input.a == `x`
        else := "ALLOW" if "é" in input.b
        else := "NEEDS_APPROVAL" if input.a != "y"
        else := ""
        """
    for document, line in (({"a": "x"}, 6), ({"b": ["é"]}, 7), ({"a": "q"}, 8)):
        found = await steps(policy, document)
        assert found[1].lines == (line,)


async def test_modules_of_one_package_in_several_files_are_one() -> None:
    engine = await build(
        Sources(
            (
                Module("a.rego", rego('decision := {"decision": "ALLOW"} if flags')),
                Module("b.rego", rego('flags contains "b" if input.b')),
                Module("c.rego", rego('flags contains "c"')),
            ),
            (),
            {},
            "0" * 64,
            (),
        )
    )
    found = explain(engine, await outlined(engine), b'{"b":1}', NOW)
    assert [(step.file, step.lines) for step in found] == [("a.rego", (5,)), ("b.rego", (5,))]
