"""Data files: what they hold, and what two readers could understand differently is refused at its line."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import data
from policies.data import read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("a: 1", {"a": 1}),
        ("a: -7\nb: 1.5\nc: 1e3\nd: true\ne: False\nf: null\ng: ~\nh:\n", None),
        ("a: {b: [c, {d: e}], f: []}", {"a": {"b": ["c", {"d": "e"}], "f": []}}),
        ("a: '1'\nb: \"true\"\nc: |\n  text\n", {"a": "1", "b": "true", "c": "text\n"}),
        ("1: a\ntrue: b", {"1": "a", "true": "b"}),
        ("a: 2026-11-21", {"a": "2026-11-21"}),
        ("a: gpt-*\nb: 'llama-*'", {"a": "gpt-*", "b": "llama-*"}),
    ],
)
def test_yaml_is_read_as_plain_values(text: str, value: dict[str, Any] | None) -> None:
    expected = value
    if expected is None:
        expected = {"a": -7, "b": 1.5, "c": 1000.0, "d": True, "e": False, "f": None, "g": None, "h": None}
    assert read("d.yaml", text.encode()) == (expected, [])


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "twice"),
        ("a: {b: 1, b: 2}", 1, "twice"),
        ("a: &x 1\nb: *x\n", 1, "anchor"),
        ("a: 1\nb: *x\n", 2, "anchor"),
        ("a:\n  <<: {b: 1}\n", 2, "merge"),
        ("a: !!python/object:os.system x", 1, "tag"),
        ("a: yes", 1, "differently"),
        ("a: on", 1, "differently"),
        ("a: 10:30", 1, "differently"),
        ("a: 0x1f", 1, "differently"),
        ("a: 017", 1, "differently"),
        ("a: 1_000", 1, "differently"),
        ("a: 1e999", 1, "differently"),
        ("a: 1_0.5", 1, "differently"),
        ("a: .nan", 1, "differently"),
        ("a: .inf", 1, "differently"),
        ("a: 99999999999999999999", 1, "differently"),
        ("? [a]\n: 1", 1, "key"),
        ("- a", 1, "no object"),
        ("just text", 1, "no object"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("a: [1,\n", 2, "is not YAML"),
        ("a: b: c", 1, "is not YAML"),
        ("a: \x00", None, "is not YAML"),
        ("a: " + "[" * 100 + "]" * 100, 1, "nests too deep"),
    ],
)
def test_yaml_that_misleads_is_refused_at_its_line(text: str, line: int | None, message: str) -> None:
    value, (problem,) = read("d.yaml", text.encode())
    assert (value, problem.file, problem.line) == ({}, "d.yaml", line)
    assert message in problem.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "is not JSON"),
        ('{"a": {"b": 1, "b": 2}}', "is not JSON"),
        ('{"a": NaN}', "is not JSON"),
        ('{"a": Infinity}', "is not JSON"),
        ('{"a": "\\ud800"}', "is not JSON"),
        ('{"a": 1} x', "is not JSON"),
        ("{", "is not JSON"),
        ("[1]", "no object"),
        ("5", "no object"),
        ('{"a": 99999999999999999999}', "cannot be data"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nests deeper"),
        ('{"a": ' + "[" * 100_000, "is not JSON"),
    ],
)
def test_json_that_misleads_is_refused(text: str, message: str) -> None:
    value, (problem,) = read("d.json", text.encode())
    assert value == {}
    assert message in problem.message


def test_a_mistake_in_json_has_its_line() -> None:
    _, (problem,) = read("d.json", b'{\n "a": 1,\n "b": }')
    assert problem.line == 3


def test_text_that_is_not_utf_8_is_refused() -> None:
    for name in ("d.json", "d.yaml"):
        _, (problem,) = read(name, b'{"a": 1,\n"b": "\xff"}')
        assert (problem.line, problem.message) == (2, "is not UTF-8 text")


def test_the_number_of_values_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_VALUES", 100)
    _, (problem,) = read("d.yaml", b"a: [" + b"1, " * 200 + b"]")
    assert "too many values" in problem.message


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), plain, max_size=4))
def test_json_is_read_back(value: dict[str, Any]) -> None:
    try:
        content = orjson.dumps(value)
    except TypeError:
        return  # a lone surrogate: no file can hold it
    assert read("d.json", content) == (value, [])


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_an_object_or_a_problem(content: bytes) -> None:
    for name in ("d.yaml", "d.json"):
        value, problems = read(name, content)
        assert isinstance(value, dict)
        assert not (value and problems)
