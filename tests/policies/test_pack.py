"""Data cut into pieces is the same data."""

from functools import reduce
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.interpreter import Clock, create
from policies.pack import SLICE, pack, slices
from tests.policies.support import rego, sources

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=6),
    max_leaves=30,
)


def merged(one: Any, other: Any) -> Any:
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise AssertionError(f"{one} and {other} are in each other's place")
    both = one.keys() & other.keys()
    return {**one, **other, **{key: merged(one[key], other[key]) for key in both}}


@given(st.dictionaries(st.text(max_size=4), _VALUES, max_size=6), st.integers(1, 40))
def test_slices_merge_to_the_whole(data: dict[str, Any], size: int) -> None:
    assert reduce(merged, map(orjson.loads, slices(data, size)), {}) == data


def test_no_slice_is_much_larger_than_asked_for_however_deep_the_data_lies() -> None:
    envelopes: dict[str, Any] = {f"agent-{number}": {"models": {"m": {}}} for number in range(20_000)}
    for data in (envelopes, {"envelopes": envelopes}, {"tenants": {"acme": {"envelopes": envelopes}}}):
        assert max(map(len, slices(data))) < SLICE + 200
        assert pack(sources(rego("x := 1"), data=data)).widest == len(envelopes)


def test_what_fits_into_one_slice_is_not_cut() -> None:
    packed = pack(sources(rego("x := 1"), data={"a": {"b": 1}, "c": {}}))
    assert packed.slices == ('{"a":{"b":1},"c":{}}',)
    assert packed.widest == 0


@pytest.mark.parametrize("value", [{}, {"b": {}, "c": []}, {"b": {"c": {}}, "d": 1}])
def test_the_interpreter_puts_the_slices_together(value: dict[str, Any]) -> None:
    interpreter = create(Clock())
    interpreter.add_policy("p.rego", rego("value := data.a"))
    for text in slices({"a": value}, 1):
        interpreter.add_data_json(text)
    assert orjson.loads(interpreter.eval_rule_as_json("data.weighbridge.value")) == value
