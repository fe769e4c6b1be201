"""The shipped policy's rule for the common case decides nothing that the rules below it would decide otherwise."""

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.engine import ENTRY
from policies.interpreter import Clock, Interpreter, create
from policies.prove import PROBLEMS
from tests.policies.support import SHIPPED, call, llm

_WHOLE = (SHIPPED / "weighbridge.rego").read_text()
_ABOVE, _BEGIN, _FROM_COMMON = _WHOLE.partition('decision := {"decision": "ALLOW"')
_COMMON, _NEXT, _BELOW = _FROM_COMMON.partition('} else := {"decision": "DENY", "explanation": refusal}')
_WITHOUT = f'{_ABOVE}decision := {{"decision": "DENY", "explanation": refusal}}{_BELOW}'
_ALONE = f'{_ABOVE}{_BEGIN}{_COMMON}}}\n\nothers := {{"decision": "DENY", "explanation": refusal}}{_BELOW}'


def interpreter(text: str) -> Interpreter:
    made = create(Clock())
    made.add_policy("weighbridge.rego", text)
    made.add_policy("envelopes.rego", (SHIPPED / "envelopes.rego").read_text())
    return made


WHOLE, WITHOUT, ALONE = interpreter(_WHOLE), interpreter(_WITHOUT), interpreter(_ALONE)


def accepted(envelopes: object) -> bool:
    asked = WHOLE.clone()
    asked.add_data_json(orjson.dumps({"envelopes": envelopes}).decode())
    return bool(orjson.loads(asked.eval_rule_as_json(PROBLEMS)) == [])


def decided(base: Interpreter, envelopes: object, document: bytes) -> Any:
    asked = base.clone()
    asked.add_data_json(orjson.dumps({"envelopes": envelopes}).decode())
    asked.set_input_json(document.decode())
    try:
        return orjson.loads(asked.eval_rule_as_json(ENTRY))
    except RuntimeError:  # a line of it would differ, the refusal that it means does not
        return "undecided"


LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
ENVELOPE = {
    "models": {"m": {}, "n": {"risk": "high"}},
    "max_output_tokens": 100,
    "allowed_tools": {"github": {"operations": {"list": {}}}},
    "allowed_agents": {"planner": {"operations": {"SendMessage": {}}}},
    "allowed_environments": {"grid": {"operations": {"step": {}}}},
}
COMMON = [
    llm("m"),
    llm("m", {"max_tokens": 100}),
    llm("m", {"max_completion_tokens": 1, "max_output_tokens": 0.5}),
    call("tool", "github", "list", {"any": [1]}),
    call("message", "planner", "SendMessage", {}),
    call("environment", "grid", "step", {"action": 1}),
]


@pytest.mark.parametrize("document", COMMON)
def test_the_common_case_is_decided_without_the_other_rules(document: bytes) -> None:
    assert decided(ALONE, {"support-bot": ENVELOPE}, document)["decision"] == "ALLOW"


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("asked", [101, 100.5, -1, True, False, None, "1", [1], {"a": 1}, 2**64 - 1])
def test_a_length_that_is_no_number_within_the_limit_is_left_to_the_other_rules(name: str, asked: object) -> None:
    assert decided(ALONE, {"support-bot": ENVELOPE}, llm("m", {name: asked}))["decision"] == "DENY"


@pytest.mark.parametrize(
    "document",
    [
        llm("m", state="paused"),
        llm("m", state=""),
        llm("m", agent="stranger"),
        llm("n"),
        llm("other"),
        call("tool", "github", "drop", {}),
        call("tool", "planner", "SendMessage", {}),
        call("tool", "github", "list", {}, state="paused"),
    ],
)
def test_what_is_not_plainly_granted_is_left_to_the_other_rules(document: bytes) -> None:
    assert decided(ALONE, {"support-bot": ENVELOPE}, document)["decision"] == "DENY"


@pytest.mark.parametrize("document", COMMON)
@pytest.mark.parametrize("cap", [0, 5])
def test_a_daily_cost_cap_is_left_to_the_other_rules(document: bytes, cap: float) -> None:
    assert decided(ALONE, {"support-bot": ENVELOPE | {"daily_cost_cap_usd": cap}}, document)["decision"] == "DENY"


Strategy = st.SearchStrategy[Any]
SECTIONS = ("allowed_tools", "allowed_agents", "allowed_environments")
REMOVED = object()


def some_of(**fields: Strategy) -> Strategy:
    return st.fixed_dictionaries({}, optional=fields)


risk = st.sampled_from(["low", "medium", "high", "critical"])
roles = st.lists(st.sampled_from(["finance", "security"]), min_size=1, max_size=2)
length = st.sampled_from([100, 0, 1, 99.5, 101, 2**31, 1e12])
anything = length | st.sampled_from([-1, 2**64 - 1, 1e300, True, False, None, "", "1", "m", [], ["m"], {}, {"a": 1}])
name = st.sampled_from(["m", "n", "*", ""])
operation = some_of(
    risk=risk,
    required_approvals=roles,
    required=st.just(["max_tokens"]),
    parameters=st.just(["max_tokens"]),
    max=st.just({"max_tokens": 50}),
    one_of=st.just({"max_tokens": [1, None]}),
)
operations = st.dictionaries(name, operation, max_size=2)
day = {"node": "acme/a", "window": "day", "posted_usd": 0.25, "pending_usd": 0.25}
may_change: dict[tuple[str, ...], Strategy] = {
    ("envelopes",): st.just({"b": {}}),
    ("envelopes", "a", "models"): st.dictionaries(name, st.just({}), max_size=2),
    ("envelopes", "a", "models", "m"): some_of(risk=risk, max_output_tokens=length, required_approvals=roles),
    ("envelopes", "a", "model_patterns"): st.just(["m*"]),
    ("envelopes", "a", "max_output_tokens"): length,
    ("envelopes", "a", "daily_cost_cap_usd"): st.sampled_from([0, 0.5, 5]),
    ("envelopes", "a", "required_approvals"): roles,
    **{("envelopes", "a", section, "m"): some_of(operations=operations) for section in SECTIONS},
    **{("envelopes", "a", section, "m", "operations", "m"): operation for section in SECTIONS},
    ("input", "agent"): anything,
    ("input", "agent", "name"): name | anything,
    ("input", "agent", "state"): st.just("paused") | anything,
    ("input", "agent", "autonomy_tier"): anything,
    ("input", "call"): anything,
    ("input", "call", "kind"): st.just("dance") | anything,
    ("input", "call", "target"): name | anything,
    ("input", "call", "operation"): name | st.sampled_from(["models", "count_tokens"]) | anything,
    ("input", "call", "arguments"): anything,
    **{("input", "call", "arguments", name): anything for name in LENGTHS},
    ("input", "call", "estimated_cost_usd"): length,
    ("input", "budgets"): st.sampled_from([[], [day]]),
    ("input", "approval"): st.just({"id": "1", "roles": ["finance"]}) | anything,
}
changes = st.lists(
    st.sampled_from(list(may_change)).flatmap(
        lambda path: st.tuples(st.just(path), may_change[path] | st.just(REMOVED))
    ),
    max_size=3,
)


def common(kind: str) -> dict[str, Any]:
    """An agent `a` whose envelope grants everything called `m`, and its call of this kind."""
    granted: dict[str, Any] = {section: {"m": {"operations": {"m": {}}}} for section in SECTIONS}
    return {
        "envelopes": {"a": {"models": {"m": {}}, "max_output_tokens": 100, **granted}},
        "input": {
            "agent": {"name": "a", "tenant": "acme", "roles": [], "autonomy_tier": 1, "state": "active"},
            "call": {"kind": kind, "target": "m", "operation": "m", "arguments": {"max_tokens": 100}},
        },
    }


def change(whole: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Sets or removes what is at `path`, if there still is such a place.

    What is set is a copy: examples share their values, and a later change may be within this one.
    """
    *above, last = path
    inner: Any = whole
    for step in above:
        inner = inner.get(step) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        return
    if value is REMOVED:
        inner.pop(last, None)
    else:
        inner[last] = copy.deepcopy(value)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["llm", "llm", "tool", "message", "environment"]), changes)
def test_the_decision_is_the_same_without_the_common_case(
    kind: str, made: list[tuple[tuple[str, ...], object]]
) -> None:
    whole = common(kind)
    for path, value in made:
        change(whole, path, value)
    envelopes, document = whole.get("envelopes", {}), orjson.dumps(whole.get("input", {}))
    assert accepted(envelopes)
    assert decided(WHOLE, envelopes, document) == decided(WITHOUT, envelopes, document)
