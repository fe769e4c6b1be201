"""Input schemas of servers that mean well, that make mistakes, and that want to keep the gateway busy."""

from __future__ import annotations

import time
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.mcp.schemas import LARGEST, MOST_SCHEMAS, Schema, UnusableSchema

ECHO = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 5}, "times": {"type": "integer", "minimum": 1}},
    "required": ["text"],
    "additionalProperties": False,
}


def mistakes(schema: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    return Schema(schema).mistakes(arguments, len(orjson.dumps(arguments)))


def test_arguments_that_fit_have_no_mistakes() -> None:
    assert mistakes(ECHO, {"text": "hi", "times": 2}) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, '"text" is a required property'),
        ({"text": "hi", "times": 0}, "at /times: the value is less than the minimum of 1"),
        ({"text": "hello there"}, "at /text: the value is longer than 5 characters"),
        ({"text": "hi", "a/b": 1}, "Additional properties are not allowed ('a/b' was unexpected)"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_without_its_value(arguments: dict[str, Any], said: str) -> None:
    assert mistakes(ECHO, arguments) == [said]


def test_only_the_first_few_mistakes_are_told() -> None:
    schema = {"properties": {str(each): {"type": "string"} for each in range(50)}}
    assert len(mistakes(schema, {str(each): each for each in range(50)})) == 3


def test_what_a_schema_of_draft_07_says_is_read_as_draft_07() -> None:
    lists = {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"items": [{"type": "string"}]}}}
    assert mistakes(lists, {"a": [1]}) == ['at /a/0: the value is not of type "string"']
    newer = {"properties": {"a": {"prefixItems": [{"type": "string"}]}}}
    assert mistakes(newer, {"a": [1]}) == ['at /a/0: the value is not of type "string"']


def test_definitions_within_a_schema_are_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    assert mistakes(schema, {"a": 1}) == []
    assert mistakes(schema, {"a": "1"}) == ['at /a: the value is not of type "integer"']


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "http://127.0.0.1:9/x"}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "file:///etc/hostname"}}}, "nothing is fetched"),
        ({"$ref": "#/$defs/none"}, "refers to what is not in it"),
        ({"$ref": 7}, "no text"),
        ({"$ref": "#"}, "without end"),
        ({"allOf": [{"anyOf": [{"$ref": "#"}]}]}, "without end"),
        ({"$dynamicRef": "#a"}, "dynamically"),
        ({"properties": {"a": {"$id": "http://other.example/", "type": "string"}}}, "`$id` of their own"),
        ({"type": "nonsense"}, "not valid"),
        ({"type": "object", "properties": []}, 'not of type "object"'),
        ({"$schema": "http://nobody.example/schema"}, "meta-schema"),
        ({"properties": {"a": {"pattern": "(a{1000}){1000}"}}}, "regex"),
        ({"properties": {"a": {"pattern": "("}}}, "regex"),
        ({"description": "x" * LARGEST}, "bytes"),
        ({"properties": {str(each): {} for each in range(MOST_SCHEMAS)}}, "more than 4000 schemas"),
    ],
)
def test_a_schema_that_nothing_can_be_held_against_is_told_to_be_one(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(UnusableSchema) as raised:
        Schema(schema)
    assert why in str(raised.value)


def doubling(levels: int) -> dict[str, Any]:
    """Each definition holds the next one twice against the same value."""
    definitions: dict[str, Any] = {
        f"d{each}": {"allOf": [{"$ref": f"#/$defs/d{each + 1}"}, {"$ref": f"#/$defs/d{each + 1}"}]}
        for each in range(levels)
    }
    return {"$defs": {**definitions, f"d{levels}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def test_a_schema_that_looks_too_often_at_one_value_is_not_used() -> None:
    assert mistakes(doubling(8), {}) == []
    with pytest.raises(UnusableSchema, match="more than 10000 times at one value"):
        Schema(doubling(60))


def test_arguments_too_deep_for_a_schema_that_branches_are_refused_at_once() -> None:
    twice = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "minProperties": 1}
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"a": deep}
    began = time.process_time()
    (said,) = mistakes(twice, deep)
    assert "it nests deeper than" in said
    assert time.process_time() - began < 1
    assert mistakes(twice, {"a": {"a": {"a": {"b": 1}}}}) == []


def test_a_tree_of_any_usual_depth_is_checked() -> None:
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "value": {"type": "integer"}},
        "additionalProperties": False,
    }
    one: dict[str, Any] = {"value": 1}
    for each in range(40):
        one = {"left" if each % 2 else "right": one, "value": each}
    assert mistakes(tree, one) == []
    for _ in range(40):
        one = {"left": one}
    assert mistakes(tree, one) == ["it nests deeper than 64 levels"]


def test_very_many_values_against_a_schema_that_looks_often_at_each_are_too_much() -> None:
    listed = {"properties": {"a": {"items": {"enum": list(range(20_000))}}}}
    assert mistakes(listed, {"a": [19_999] * 100}) == []
    assert mistakes(listed, {"a": [19_999] * 10_000}) == ["it is too large to be checked"]


def test_a_pattern_is_matched_in_linear_time_or_given_up() -> None:
    arguments = {"a": "a" * 50 + "b"}
    began = time.process_time()
    assert mistakes({"properties": {"a": {"pattern": "^(a+)+$"}}}, arguments) != []
    assert mistakes({"properties": {"a": {"pattern": "^(?!x)(a+)+$"}}}, arguments) != []
    assert time.process_time() - began < 1


_leaf = st.sampled_from(
    [{}, {"type": "string"}, {"type": "integer", "maximum": 3}, {"enum": [1, "a"]}, {"minLength": 2}, {"const": None}]
)
_schema = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.builds(lambda each: {"properties": each}, st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
        st.builds(lambda each: {"items": each}, inner),
        st.builds(lambda each: {"anyOf": each}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda each: {"not": each}, inner),
        st.builds(lambda each: {"additionalProperties": each}, inner),
    ),
    max_leaves=8,
)
_value = st.recursive(
    st.one_of(st.none(), st.integers(-2, 5), st.sampled_from(["", "a", "abc"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_schema, st.dictionaries(st.sampled_from("abc"), _value, max_size=3))
def test_another_validator_agrees_on_what_fits(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    fits = jsonschema.Draft202012Validator(schema).is_valid(arguments)
    assert (mistakes(schema, arguments) == []) is fits
