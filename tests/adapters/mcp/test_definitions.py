"""The hash of a definition: the same for the same words, another for any other."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.mcp.definitions import LARGEST, MEMBERS, UnusableDefinition, read, sound

ECHO: dict[str, Any] = {
    "name": "echo",
    "title": "Echo",
    "description": "Says it again.",
    "inputSchema": {"type": "object", "properties": {"a": {"minimum": 1}, "b": {}}},
    "outputSchema": {"type": "object"},
    "annotations": {"readOnlyHint": True},
}


def test_the_hash_is_of_the_canonical_form() -> None:
    text = orjson.dumps(ECHO, option=orjson.OPT_SORT_KEYS)
    assert read(ECHO).digest == hashlib.sha256(text).hexdigest()
    assert read(ECHO).text == text


def test_the_order_of_keys_and_what_is_no_part_of_it_change_nothing() -> None:
    other = {name: ECHO[name] for name in reversed(ECHO)} | {"icons": [], "_meta": {"x": 1}, "execution": {}}
    assert read(other).digest == read(ECHO).digest


@pytest.mark.parametrize("member", MEMBERS)
def test_every_part_of_it_counts(member: str) -> None:
    value = {"x": 1} if isinstance(ECHO[member], dict) else "other"
    assert read({**ECHO, member: value}).digest != read(ECHO).digest


def test_a_member_that_is_null_is_as_one_that_is_not_there() -> None:
    assert read({**ECHO, "title": None}).digest == read({k: v for k, v in ECHO.items() if k != "title"}).digest


@pytest.mark.parametrize(
    "odd",
    [
        {"inputSchema": None},
        {"inputSchema": [1]},
        {"inputSchema": {"maximum": 2**60}},
        {"inputSchema": {"maximum": float("inf")}},
        {"description": "\ud800"},
        {"description": "x" * LARGEST},
    ],
)
def test_what_cannot_be_told_apart_for_certain_is_no_definition(odd: dict[str, Any]) -> None:
    with pytest.raises(UnusableDefinition):
        read({**ECHO, **odd})


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.text("ab\n\u00fc\u202e", max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text("abc", max_size=2), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(_json, _json)
def test_two_definitions_have_one_hash_where_they_are_the_same_and_only_there(one: Any, other: Any) -> None:
    first, second = (read({**ECHO, "inputSchema": {"x": each}}) for each in (one, other))
    same = orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)
    assert (first.digest == second.digest) is same


@pytest.mark.parametrize("name", ["echo", "a/b.c-d_e", "größe", "with space", "x" * 256])
def test_names_that_can_be_seen_are_sound(name: str) -> None:
    assert sound(name)


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a\tb", "a\x00", "a\u200b", "\u202ea", "a\u2028", "\U000e0041", "x" * 257, 7, None]
)
def test_names_that_show_as_others_are_not(name: object) -> None:
    assert not sound(name)
