"""No masked value survives, nothing else changes, and the call's own arguments are never touched."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.masks import STARS, Mask

names = st.sampled_from(["a", "b", "a/b", "a~b", "*", "0", "1", "", "é"])
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
arguments = st.dictionaries(names, json, max_size=4)
pointers = st.lists(
    st.lists(names, min_size=1, max_size=3).map(
        lambda path: "".join("/" + each.replace("~", "~0").replace("/", "~1") for each in path)
    ),
    max_size=3,
)


@pytest.mark.parametrize(
    ("given", "masked", "hits"),
    [
        (["/ssn"], {"ssn": STARS, "a": {"b": [{"c": 1}, {"c": 2}]}}, ["/ssn"]),
        (["/nope"], {"ssn": "1-2", "a": {"b": [{"c": 1}, {"c": 2}]}}, []),
        (["/a/b/1/c"], {"ssn": "1-2", "a": {"b": [{"c": 1}, {"c": STARS}]}}, ["/a/b/1/c"]),
        (["/a/b/01/c", "/a/b/-/c", "/a/b/2/c"], {"ssn": "1-2", "a": {"b": [{"c": 1}, {"c": 2}]}}, []),
        (["/a/b/*/c"], {"ssn": "1-2", "a": {"b": [{"c": STARS}, {"c": STARS}]}}, ["/a/b/*/c"]),
        (["/*"], {"ssn": STARS, "a": STARS}, ["/*"]),
        ([""], {"ssn": STARS, "a": STARS}, [""]),
        (["/a", "/a/b"], {"ssn": "1-2", "a": STARS}, ["/a"]),
        (["/a/b", "/a"], {"ssn": "1-2", "a": STARS}, ["/a/b", "/a"]),
        (["/ssn/x"], {"ssn": "1-2", "a": {"b": [{"c": 1}, {"c": 2}]}}, []),
        ([], {"ssn": "1-2", "a": {"b": [{"c": 1}, {"c": 2}]}}, []),
    ],
)
def test_a_pointer_replaces_what_it_points_at(given: list[str], masked: dict[str, Any], hits: list[str]) -> None:
    whole = {"ssn": "1-2", "a": {"b": [{"c": 1}, {"c": 2}]}}
    assert Mask(given).apply(whole) == (masked, hits)
    assert whole == {"ssn": "1-2", "a": {"b": [{"c": 1}, {"c": 2}]}}


@pytest.mark.parametrize("pointer", ["ssn", "a/b", "/a~", "/a~2b", "/~~1"])
def test_a_text_that_is_no_pointer_is_refused(pointer: str) -> None:
    with pytest.raises(ValueError, match="no JSON pointer"):
        Mask([pointer])


def test_names_with_a_slash_or_tilde_are_reached() -> None:
    assert Mask(["/a~1b", "/c~0d", "/~01"]).apply({"a/b": 1, "c~d": 2, "~1": 3})[0] == {
        "a/b": STARS,
        "c~d": STARS,
        "~1": STARS,
    }


def _reached(value: Any, path: list[str]) -> list[Any]:
    """The plain reading of a pointer, to compare with."""
    if not path:
        return [value]
    found: list[Any] = []
    if isinstance(value, dict):
        found = [inner for key, inner in value.items() if path[0] in ("*", key)]
    elif isinstance(value, list):
        found = [inner for index, inner in enumerate(value) if path[0] in ("*", str(index))]
    return [deep for inner in found for deep in _reached(inner, path[1:])]


@given(arguments, pointers)
def test_no_masked_value_survives_and_the_input_is_untouched(whole: dict[str, Any], given_pointers: list[str]) -> None:
    before = copy.deepcopy(whole)
    masked, hits = Mask(given_pointers).apply(whole)
    assert whole == before
    assert masked is not whole
    for pointer in given_pointers:
        path = [each.replace("~1", "/").replace("~0", "~") for each in pointer[1:].split("/")]
        assert all(value == STARS for value in _reached(masked, path))
        assert (pointer in hits) <= bool(_reached(whole, path))
    if not hits:
        assert masked == whole
