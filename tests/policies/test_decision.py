"""The one parser of decisions: a table of what is one, and a longer table of what is none."""

import dataclasses
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.decision import LARGEST, MOST_ROLES, Decision, Effect, parse
from policies.errors import Undecided


@pytest.mark.parametrize("effect", Effect)
def test_each_of_the_three_words_is_a_decision(effect: Effect) -> None:
    decision = parse(f'{{"decision": "{effect}"}}', "r1")
    assert (decision.effect, decision.revision) == (effect, "r1")
    assert (decision.risk_level, decision.required_approvals, decision.explanation) == (None, (), "")
    assert not decision.obligations


def test_every_field_is_read() -> None:
    text = orjson.dumps(
        {
            "decision": "NEEDS_APPROVAL",
            "risk_level": "high",
            "required_approvals": ["finance", "security", "finance"],
            "explanation": "a large amount",
            "obligations": {"max_tokens": 5, "redact": ["/a/b"], "headers": {"x-team": "a b"}, "route": "cheap"},
            "unheard_of": {"is": "passed over"},
        }
    )
    decision = parse(text, "r1")
    assert decision.risk_level == "high"
    assert decision.required_approvals == ("finance", "security", "finance")
    assert decision.explanation == "a large amount"
    assert decision.obligations.facts() == orjson.loads(text)["obligations"]


def test_a_role_that_stands_twice_asks_for_two_people_and_is_recorded_twice() -> None:
    decision = parse('{"decision": "NEEDS_APPROVAL", "required_approvals": ["finance", "finance"]}', "r1")
    assert decision.required_approvals == ("finance", "finance")
    assert orjson.loads(decision.answer)["required_approvals"] == ["finance", "finance"]


def test_at_most_sixteen_people_are_asked_for() -> None:
    said = {"decision": "NEEDS_APPROVAL", "required_approvals": ["finance"] * MOST_ROLES}
    assert len(parse(orjson.dumps(said), "r1").required_approvals) == MOST_ROLES


def test_an_obligation_this_version_does_not_know_is_kept_for_whoever_must_fulfil_it() -> None:
    assert parse('{"decision": "ALLOW", "obligations": {"sing": [3]}}', "r1").obligations.unknown == (("sing", b"[3]"),)


def test_nothing_in_a_decision_can_be_changed() -> None:
    decision = parse('{"decision": "ALLOW", "obligations": {"redact": ["/a"], "replace": {"/b": [1]}}}', "r1")
    decision.obligations.facts()["replace"]["/b"].append(2)
    assert decision.obligations.facts()["replace"] == {"/b": [1]}
    assert hash(decision) == hash(dataclasses.replace(decision))
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.obligations.sample = True  # type: ignore[misc]  # what cannot be done is what is tested


def test_a_decision_is_recorded_as_what_it_says_and_no_more() -> None:
    said = {"decision": "DENY", "explanation": "No.", "obligations": {"sample": True}}
    decision = parse(orjson.dumps({**said, "required_approvals": []}), "r1")
    assert orjson.loads(decision.answer) == said
    allowed = dataclasses.replace(decision, effect=Effect.ALLOW)
    assert orjson.loads(allowed.answer) == {**said, "decision": "ALLOW"}


@pytest.mark.parametrize(
    "result",
    [
        "",
        "nonsense",
        '"<undefined>"',
        "null",
        "true",
        "[]",
        '"ALLOW"',
        "{}",
        '{"decision": null}',
        '{"decision": true}',
        '{"decision": "allow"}',
        '{"decision": "ALLOW "}',
        '{"decision": ["ALLOW"]}',
        '{"decision": {"ALLOW": 1}}',
        '{"effect": "ALLOW"}',
        b"\xff",
        '{"decision": "ALLOW", "x": NaN}',
        '{"decision": "ALLOW", "explanation": "' + "a" * LARGEST + '"}',
        '{"decision": "ALLOW", "obligations": {"sing": ' + "[" * 300 + "]" * 300 + "}}",
    ],
)
def test_anything_else_is_undecided(result: str | bytes) -> None:
    with pytest.raises(Undecided):
        parse(result, "r1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("risk_level", "extreme"),
        ("risk_level", None),
        ("risk_level", ["high"]),
        ("required_approvals", "finance"),
        ("required_approvals", [""]),
        ("required_approvals", [1]),
        ("required_approvals", {"finance": True}),
        ("required_approvals", None),
        ("required_approvals", ["finance"] * (MOST_ROLES + 1)),
        ("explanation", ["a"]),
        ("explanation", None),
        ("obligations", []),
        ("obligations", None),
        ("obligations", {"max_tokens": "5"}),
        ("obligations", {"max_tokens": 5.5}),
        ("obligations", {"max_tokens": 0}),
        ("obligations", {"max_tokens": True}),
        ("obligations", {"redact": "/a"}),
        ("obligations", {"redact": ["a"]}),
        ("obligations", {"headers": {"x": 1}}),
        ("obligations", {"headers": {"x": "a\r\nset-cookie: b"}}),
        ("obligations", {"headers": {"x\n": "a"}}),
        ("obligations", {"headers": {"": "a"}}),
        ("obligations", {"headers": ["x"]}),
        ("obligations", {"route": ""}),
        ("obligations", {"route": 5}),
        ("obligations", {"redact": ["/a~2"]}),
        ("obligations", {"redact": [5]}),
        ("obligations", {"replace": ["/a"]}),
        ("obligations", {"replace": {"a": 1}}),
        ("obligations", {"headers": {"x-a": "1", "X-A": "2"}}),
        ("obligations", {"sample": 1}),
    ],
)
def test_a_known_field_of_the_wrong_type_makes_the_answer_invalid(field: str, value: Any) -> None:
    with pytest.raises(Undecided, match="no valid decision") as caught:
        parse(orjson.dumps({"decision": "ALLOW", field: value}), "r1")
    assert field in caught.value.internal


json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.sampled_from(list(Effect)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["decision", "risk_level", "required_approvals", "explanation", "obligations", "other"]


@given(st.dictionaries(st.sampled_from(_FIELDS), json))
def test_every_answer_is_a_decision_or_undecided_and_only_the_word_allows(answer: dict[str, Any]) -> None:
    try:
        decision = parse(orjson.dumps(answer), "r1")
    except Undecided:
        return
    assert isinstance(decision, Decision)
    assert answer["decision"] == decision.effect
