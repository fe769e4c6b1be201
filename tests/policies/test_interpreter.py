"""Our own builtins answer like the stock ones they replace, as far as these answer at all."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.builtins import BOUNDED, FORBIDDEN
from policies.interpreter import Clock, builtins, create, sprintf_is_bounded


def value(expression: str, **given_input: Any) -> Any:
    interpreter = create(Clock())
    interpreter.add_policy("p.rego", f"package p\nx := {expression}")
    interpreter.set_input_json(orjson.dumps(given_input).decode())
    return orjson.loads(interpreter.eval_rule_as_json("data.p.x"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("numbers.range(1, 3)", [1, 2, 3]),
        ("numbers.range(3, 1)", [3, 2, 1]),
        ("numbers.range(2, 2)", [2]),
        ("count(numbers.range(1, 10000))", 10_000),
        ("numbers.range_step(0, 10, 4)", [0, 4, 8]),
        ("numbers.range_step(10, 0, 4)", [10, 6, 2]),
        ("bits.lsh(1, 5)", 32),
        ("bits.lsh(-1, 3)", -8),
        ("bits.lsh(1, 62)", 2**62),
        ('strings.count("banana", "an")', 2),
        ('strings.count("abc", "")', 4),
        ('replace("banana", "an", "x")', "bxxa"),
        ('replace("a.b", ".", "")', "ab"),
        ('strings.replace_n({"<": "&lt;", ">": "&gt;"}, "<b>")', "&lt;b&gt;"),
        ('strings.replace_n({"a": "b", "b": "a"}, "ab")', "ba"),
        ('strings.replace_n({}, "ab")', "ab"),
        ('trim("[ä]b[", "][")', "ä]b"),
        ('trim_left("xyab", "yx")', "ab"),
        ('trim_right("abxy", "yx")', "ab"),
        ('trim("aba", "ab")', ""),
        ('trim(" a ", "")', " a "),
        ('strings.replace_n({"": "x"}, "ab")', "xaxbx"),
    ],
)
def test_a_bounded_builtin_answers(expression: str, expected: Any) -> None:
    assert value(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "numbers.range(1, 10001)",
        "numbers.range(1, 1.5)",
        'numbers.range("a", 1)',
        "numbers.range(true, 1)",
        "numbers.range_step(1, 5, 0)",
        "numbers.range_step(1, 5, -1)",
        "bits.lsh(1, 63)",
        "bits.lsh(1, -1)",
        "bits.lsh(1.5, 1)",
        'strings.count(1, "a")',
        'replace("abc", "", "x")',
        'replace(1, "a", "x")',
        "replace(input.long, `a`, input.long)",
        'strings.replace_n({"a": 1}, "abc")',
        'strings.replace_n(["a"], "abc")',
        'strings.replace_n({"a": "b"}, 1)',
        "strings.replace_n({`a`: input.long}, input.long)",
        "trim(input.long, input.long)",
        "trim_left(input.long, input.long)",
        "trim_right(input.long, input.long)",
    ],
)
def test_beyond_its_bounds_it_is_an_error(expression: str) -> None:
    with pytest.raises(RuntimeError):
        value(expression, long="a" * 5_000)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_builtin_raises_even_where_the_linter_did_not_look(name: str) -> None:
    arguments = ", ".join(["{}"] * FORBIDDEN[name][0])
    with pytest.raises(RuntimeError, match="may not be called"):
        value(f"{name}({arguments})")


def test_what_is_forbidden_or_bounded_exists() -> None:
    # The one the embedded interpreter lacks is in the table for policies that an OPA server would run.
    assert {*BOUNDED} < builtins()
    assert {"count", "print", "sprintf", "time.now_ns"} < builtins()


@pytest.mark.parametrize(
    ("template", "is_bounded"),
    [
        ("plain", True),
        ("%d%%%s%v", True),
        ("%-10s|%05d|%.2f|%999d", True),
        ("100%, 12345", True),
        ("%1000d", False),
        ("%-01000d", False),
        ("%.1000f", False),
        ("%5.1000f", False),
        ("%*d", False),
        ("%.*f", False),
        ("%[1]*d", False),
        ("%#99999999x", False),
    ],
)
def test_the_width_of_a_format_is_bounded(template: str, is_bounded: bool) -> None:
    assert sprintf_is_bounded(template) is is_bounded


@settings(max_examples=50, deadline=None)
@given(st.text("ab", max_size=8), st.text("ab", min_size=1, max_size=2), st.text("abc", max_size=3))
def test_replace_is_that_of_the_language(text: str, old: str, new: str) -> None:
    assert value("replace(input.t, input.o, input.n)", t=text, o=old, n=new) == text.replace(old, new)
