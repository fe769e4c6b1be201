"""Results with less in them: what must not be seen is in none of the two forms in which a result says it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.mcp.results import Unredactable, failed, is_task, redacted, told


def answer(**result: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": 1, "result": result})


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    ("said", "has_failed"),
    [
        (answer(content=[], isError=True), True),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}', True),
        (answer(content=[], isError=False), False),
        (answer(content=[text('"isError": true, "error"')]), False),
        (answer(structuredContent={"isError": True}), False),
        (b'{"error"', False),
    ],
)
def test_a_failure_is_told_by_the_result_itself(said: bytes, has_failed: bool) -> None:
    assert failed(said) is has_failed


def test_the_result_is_told_as_it_stands_and_an_error_by_its_name() -> None:
    assert told(b'{"id":1, "result": {"a": 1.50}}') == b'{"a": 1.50}'
    assert told(b'{"id":1,"error":{"code":7}}') == b'{"error":{"code":7}}'


@pytest.mark.parametrize(
    "odd", [b"", b"[]", b'{"result":1,"result":2}', b'{"result":{"a":1,"a":2}}', b'{"result":1,"error":2}', b'{"id":1}']
)
def test_what_two_readers_could_read_differently_is_not_told(odd: bytes) -> None:
    assert told(odd) is None


def test_a_result_that_comes_later_is_known_by_both_of_its_shapes() -> None:
    assert is_task(answer(resultType="task", taskId="t"))
    assert is_task(answer(task={"taskId": "t"}))
    assert not is_task(answer(content=[text('"task"')]))


@pytest.mark.parametrize(
    ("result", "path", "why"),
    [
        ({"content": [text("a secret")], "structuredContent": {"a": "secret"}}, ("content", "0", "text"), "may say"),
        ({"content": [], "structuredContent": {"a": "no"}}, ("structuredContent", "a"), "too short"),
        ({"content": [], "structuredContent": {"a": 7}}, ("structuredContent", "a"), "too short"),
        ({"content": [7], "structuredContent": {"a": "secret"}}, ("structuredContent", "a"), "blocks"),
        ({"content": {}, "structuredContent": {"a": "secret"}}, ("structuredContent", "a"), "blocks"),
        ({"content": []}, (), "as a whole"),
    ],
)
def test_what_may_still_say_it_is_not_let_pass(result: dict[str, Any], path: tuple[str, ...], why: str) -> None:
    with pytest.raises(Unredactable) as raised:
        redacted(answer(**result), [path])
    assert why in str(raised.value)


def test_every_member_and_every_element_can_be_meant() -> None:
    rows = [{"ssn": "111-11", "n": "Ada"}, {"ssn": "222-22", "n": "Bob"}]
    given = answer(content=[text(orjson.dumps({"rows": rows}).decode())], structuredContent={"rows": rows})
    result = orjson.loads(redacted(given, [("structuredContent", "rows", "*", "ssn")]))["result"]
    assert [each["ssn"] for each in result["structuredContent"]["rows"]] == ["***", "***"]
    assert orjson.loads(result["content"][0]["text"]) == result["structuredContent"]


def test_a_redaction_of_what_is_not_there_changes_nothing() -> None:
    given = answer(content=[text("hello")], structuredContent={"a": "hello"})
    assert orjson.loads(redacted(given, [("structuredContent", "b")])) == orjson.loads(given)


_SECRET = 's\u00fcper-"secret"-42'
_around = st.text("ab \n", max_size=5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.sampled_from([1, "x", None, True, _SECRET]),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=3),
        max_leaves=6,
    ),
    _around,
    _around,
    st.booleans(),
)
def test_the_value_is_nowhere_in_what_passes(other: Any, before: str, after: str, escaped: bool) -> None:
    structured = {"secret": _SECRET, "other": {"public": 1}}
    said = orjson.dumps(_SECRET).decode() if escaped else _SECRET
    blocks = [
        text(orjson.dumps(structured).decode()),
        text(before + said + after),
        {"type": "resource", "resource": {"uri": "a://b", "text": before + said}},
        text(orjson.dumps(other).decode()),
        {"type": "x", "any": other},
    ]
    passed = redacted(answer(content=blocks, structuredContent=structured), [("structuredContent", "secret")])
    assert _SECRET not in _all_texts(orjson.loads(passed))
    assert "42" not in passed.decode()


def _all_texts(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(map(_all_texts, value.values()))
    if isinstance(value, list):
        return " ".join(map(_all_texts, value))
    return str(value)
