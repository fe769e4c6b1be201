"""What a policy is asked is a part of the whole document, and all that it reads of it."""

import dataclasses
from typing import Any

import jiter
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.document import Question, agent_fragment
from policies.errors import InputRefused
from policies.interpreter import Clock, create
from policies.projection import Shape, projection, shape
from policies.reads import KINDS, Path, Read, minimal
from tests.policies.support import NOW, Purse

FULL = Question(
    agent_fragment("a", "t", ["r"], 2, "active"),
    "tool",
    "mcp",
    "github",
    "create_pr",
    True,
    "s-1",
    b'{"a": {"b": [1, {"c": 2.50}], "d": "x"}, "e": null, "f": ""}',
    {"a": {"b": [1, {"c": 2.5}], "d": "x"}, "e": None, "f": ""},
    NOW,
    Purse(b'[{"node": "t/a", "state": "ok", "posted_usd": 1.20}, {"node": "t", "state": "warning"}]', 1_200_000),
    b'{"id": "01A", "roles": ["finance"]}',
    "result",
    b'{"content": [{"type": "text", "text": "x"}], "structuredContent": {"n": 1.50}}',
)
WHOLE: dict[str, Any] = orjson.loads(FULL.document())


def reading(*paths: Path, there: tuple[Path, ...] = ()) -> tuple[Read, ...]:
    told = [Read(path, True, "f", 1) for path in paths] + [Read(path, False, "f", 1) for path in there]
    return minimal(told)


def asked(question: Question, *paths: Path, there: tuple[Path, ...] = ()) -> Any:
    document = projection(reading(*paths, there=there), question.kind)(question)
    return None if document is None else orjson.loads(document)


def every_path(value: Any, before: Path = ()) -> list[Path]:
    inner = value.items() if isinstance(value, dict) else ()
    return [before, *(path for name, each in inner for path in every_path(each, (*before, name)))]


def at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def test_the_question_used_here_has_every_part() -> None:
    assert all(getattr(FULL, each.name) is not None for each in dataclasses.fields(FULL) if each.init)


@pytest.mark.parametrize("path", every_path(WHOLE), ids=".".join)
def test_whatever_is_read_is_there_as_in_the_whole_document(path: Path) -> None:
    part = asked(FULL, path)
    assert at(part, path) == at(WHOLE, path)
    assert part == WHOLE or len(orjson.dumps(part)) < len(orjson.dumps(WHOLE))


@pytest.mark.parametrize("path", every_path(WHOLE), ids=".".join)
def test_whether_something_is_there_is_told_without_what_is_in_it(path: Path) -> None:
    part, whole = at(asked(FULL, there=(path,)), path), at(WHOLE, path)
    assert type(part) is type(whole)
    # The kind of the call is told with the call and `time` as a whole: neither varies on its own.
    known = {"kind"} if path == ("call",) else {"unix_ns", "utc"} if path == ("time",) else set()
    assert (
        part == whole if not isinstance(whole, dict) else set(part) == known | (set() if path else set(part) & {"call"})
    )


@given(
    st.lists(st.sampled_from(every_path(WHOLE)), max_size=6), st.lists(st.sampled_from(every_path(WHOLE)), max_size=3)
)
def test_whatever_is_read_together_is_there(paths: list[Path], there: list[Path]) -> None:
    part = asked(FULL, *paths, there=tuple(there))
    for path in paths:
        assert at(part, path) == at(WHOLE, path)
    for path in there:
        assert type(at(part, path)) is type(at(WHOLE, path))


@pytest.mark.parametrize("path", [("nothing",), ("call", "nothing"), ("call", "arguments", "z"), ("agent", "z", "y")])
def test_what_is_not_there_is_not_there(path: Path) -> None:
    assert at(asked(FULL, path), path[:-2]) in (
        {},
        {"agent": {}},
        {"kind": "tool"},
        {"kind": "tool", "arguments": {}},
        {"call": {"kind": "tool"}},
    )


@pytest.mark.parametrize(
    ("part", "value", "path"),
    [
        ("target", "", ("call", "target")),
        ("stream", None, ("call", "stream")),
        ("session", None, ("call", "session")),
        ("money", None, ("budgets",)),
        ("money", None, ("call", "estimated_cost_usd")),
        ("money", Purse(), ("budgets",)),
        ("money", Purse(), ("call", "estimated_cost_usd")),
        ("approval", None, ("approval",)),
    ],
)
def test_what_does_not_apply_is_absent(part: str, value: Any, path: Path) -> None:
    question = dataclasses.replace(FULL, **{part: value})
    assert path[-1] not in at(asked(question, path), path[:-1])


@pytest.mark.parametrize(
    ("paths", "asked_for"),
    [
        ((("agent",), ("call", "arguments"), ("approval",)), []),
        ((("budgets", None, "state"),), ["budgets"]),
        ((("call", "estimated_cost_usd"),), ["estimated_cost"]),
        ((("call", None, "a"), ("budgets",)), ["estimated_cost", "budgets"]),
    ],
)
def test_money_is_asked_for_where_it_is_read_and_once(paths: tuple[Path, ...], asked_for: list[str]) -> None:
    purse = Purse(b'[{"state": "ok"}]', 1)
    question = dataclasses.replace(FULL, money=purse)
    for _ in range(2):
        asked(question, *paths)
    assert purse.asked == asked_for


def test_nothing_read_is_an_empty_document() -> None:
    assert projection(reading(), "tool")(FULL) == b"{}"


def test_arguments_that_are_read_whole_go_in_as_they_are() -> None:
    document = projection(reading(("call", "arguments")), "tool")(FULL)
    assert document is not None
    assert FULL.body in document


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_that_of_the_call(kind: Any) -> None:
    assert asked(dataclasses.replace(FULL, kind=kind), ("call", "kind")) == {"call": {"kind": kind}}


def test_an_agent_changed_in_state_is_another() -> None:
    project = projection(reading(("agent", "state")), "tool")
    paused = dataclasses.replace(FULL, agent=agent_fragment("a", "t", ["r"], 2, "paused"))
    assert project(FULL) != project(paused)
    assert project(FULL) == project(dataclasses.replace(FULL, agent=agent_fragment("b", "t", ["r"], 2, "active")))


members = st.sampled_from(["a", "b", "c"])
values = st.recursive(
    st.integers(0, 3) | st.none() | st.text("ab", max_size=1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members, inner, max_size=3),
    max_leaves=12,
)
patterns: st.SearchStrategy[list[Path]] = st.lists(st.lists(members | st.none(), max_size=4).map(tuple), max_size=4)


def found(value: Any, path: Path) -> list[Any]:
    """All values at a path, with the keys and places that lead there."""
    if not path:
        return [value]
    step, rest = path[0], path[1:]
    if step is not None:
        return found(value[step], rest) if isinstance(value, dict) and step in value else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, each) for key, one in inner for each in found(one, rest)]


@given(values, patterns)
def test_a_part_has_at_every_path_what_the_whole_has(value: Any, paths: list[Path]) -> None:
    part = shape((path, True) for path in paths).of(value)
    for path in paths:
        assert found(part, path) == found(value, path)
        for length in range(len(path)):
            # Whoever looks for a member of what has none must find none, and of the same type.
            assert [type(each) for each in found(part, path[:length])] == [
                type(each) for each in found(value, path[:length])
            ]


def test_shapes_of_nothing_and_of_all() -> None:
    assert Shape().of({"a": 1}) == {}
    assert Shape().of([1, {"a": 1}]) == [1, {"a": 1}]
    assert shape([((), True), (("a",), True)]).of({"a": 1, "b": 2}) == {"a": 1, "b": 2}


# --- numbers: what is put in must be read as the caller's own text would be -----------------------------------------

_ECHO = create(Clock())
_ECHO.add_policy("p.rego", "package p\n\nimport rego.v1\n\nresult := json.marshal(input.call.arguments)\n")


def seen(document: bytes) -> str:
    asked = _ECHO.clone()
    asked.set_input_json(document.decode())
    return asked.eval_rule_as_json("data.p.result")


numbers = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.integers().map(str)
    | st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
    | st.sampled_from(
        ["-0", "-0.0", "-0e0", "0", "1e0", "100e-2", "1e22", "18446744073709551615", "18446744073709551616"]
    )
    | st.sampled_from(["-9223372036854775808", "-9223372036854775809", "1e-400", "4.9e-324", "1.7976931348623157e308"])
)


@settings(max_examples=500, deadline=None)
@given(numbers, st.sampled_from(["%s", "[1, %s]", '{"c": %s, "d": null}', '"%s"', '"-0 %s"']))
def test_a_number_is_read_as_in_the_callers_own_text(number: str, around: str) -> None:
    body = f'{{"a": {around % number}}}'.encode()
    question = dataclasses.replace(FULL, body=body, arguments=jiter.from_json(body, allow_inf_nan=False))
    document = projection(reading(("call", "arguments", "a")), "tool")(question)
    if document is not None:
        assert seen(document) == seen(question.document())


@pytest.mark.parametrize(
    "text",
    [
        "1e999",
        "-1e999",
        '{"b": 1e999}',
        "[1e999, null]",
        "1" + "0" * 400,
        "-0",
        "[-0]",
        '{"b": [-0]}',
        "18446744073709551616",
    ],
)
def test_what_only_the_callers_own_text_says_exactly_is_asked_with_the_whole_document(text: str) -> None:
    body = f'{{"a": {text}}}'.encode()
    question = dataclasses.replace(FULL, body=body, arguments=jiter.from_json(body, allow_inf_nan=False))
    assert asked(question, ("call", "arguments", "a")) is None
    assert asked(question, ("call", "arguments", "b")) == {"call": {"kind": "tool", "arguments": {}}}


@pytest.mark.parametrize("text", ["0", "[0]", "null", "[null]", '{"b": null}', "-0.5", "10"])
def test_what_merely_looks_so_is_asked_without_the_rest(text: str) -> None:
    body = f'{{"a": {text}, "date": "2026-01-02"}}'.encode()
    question = dataclasses.replace(FULL, body=body, arguments=orjson.loads(body))
    assert asked(question, ("call", "arguments", "a"))["call"]["arguments"] == {"a": orjson.loads(text)}


@pytest.mark.parametrize("part", ["target", "operation", "session"])
def test_a_lone_surrogate_is_refused_where_it_is_read(part: str) -> None:
    value: Any = "\ud800"
    question = dataclasses.replace(FULL, **{part: value})
    with pytest.raises(InputRefused):
        asked(question, ("call", part))
    assert asked(question, ("call", "protocol")) == {"call": {"kind": "tool", "protocol": "mcp"}}


def test_a_lone_surrogate_in_an_argument_is_refused_where_it_is_read() -> None:
    question = dataclasses.replace(FULL, arguments={"a": "\ud800"})
    with pytest.raises(InputRefused):
        asked(question, ("call", "arguments", "a"))
