"""The policy's input is what one would write as a plain dict, whatever callers put into their texts."""

import datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.document import agent_fragment, render
from policies.errors import InputRefused
from tests.policies.support import NOW

text = st.text(st.characters(codec="utf-8"), max_size=300)
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(text, json, max_size=4)


@given(
    target=text,
    operation=text,
    session=st.none() | text,
    stream=st.none() | st.booleans(),
    arguments=objects,
    budgets=st.none() | st.lists(objects, max_size=2),
    approval=st.none() | objects,
    now=st.integers(0, 2**62),
)
def test_the_document_is_the_plain_dict(
    target: str,
    operation: str,
    session: str | None,
    stream: bool | None,
    arguments: dict[str, Any],
    budgets: list[Any] | None,
    approval: dict[str, Any] | None,
    now: int,
) -> None:
    call: dict[str, Any] = {"kind": "llm", "protocol": "openai", "operation": operation}
    if target:
        call["target"] = target
    call |= {"arguments": arguments}
    call |= {} if stream is None else {"stream": stream}
    call |= {} if session is None else {"session": session}
    utc = datetime.datetime.fromtimestamp(now // 10**9, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    plain: dict[str, Any] = {
        "agent": {"name": "a", "tenant": "t", "roles": ["r"], "autonomy_tier": 2, "state": "active"},
        "call": call,
        "time": {"unix_ns": now, "utc": utc},
    }
    plain |= {} if budgets is None else {"budgets": budgets}
    plain |= {} if approval is None else {"approval": approval}
    rendered = render(
        agent_fragment("a", "t", ("r",), 2, "active"),
        "llm",
        "openai",
        target,
        operation,
        stream,
        orjson.dumps(arguments),
        session,
        now,
        None if budgets is None else orjson.dumps(budgets),
        None if approval is None else orjson.dumps(approval),
    )
    assert orjson.loads(rendered) == plain


@pytest.mark.parametrize(
    "hostile",
    [
        '"}, "agent": {"name": "root"}, "x": {"y":"',
        "\\",
        "\x00\x1f\x7f",
        '\\"',
        "\u2028",
        "😀" * 200,
        "</script>",
        "\n",
    ],
)
def test_hostile_texts_stay_texts(hostile: str) -> None:
    agent = agent_fragment(hostile, hostile, [hostile], 0, hostile)
    read = orjson.loads(render(agent, "tool", "mcp", hostile, hostile, None, b"{}", hostile, NOW))
    assert read["agent"] | {"roles": hostile, "autonomy_tier": 0} == dict.fromkeys(
        ("name", "tenant", "roles", "state"), hostile
    ) | {"autonomy_tier": 0}
    assert (read["call"]["target"], read["call"]["operation"], read["call"]["session"]) == (hostile,) * 3


@pytest.mark.parametrize("where", ["target", "operation", "session"])
def test_a_lone_surrogate_is_refused(where: str) -> None:
    texts = {"target": "t", "operation": "o", "session": "s", where: "\ud800"}
    agent = agent_fragment("a", "t", [], 0, "active")
    with pytest.raises(InputRefused):
        render(agent, "tool", "mcp", texts["target"], texts["operation"], None, b"{}", texts["session"], NOW)


def test_what_does_not_apply_is_absent() -> None:
    read = orjson.loads(render(b"{}", "llm", "openai", "", "models", None, b"", None, NOW))
    assert set(read) == {"agent", "call", "time"}
    assert read["call"] == {"kind": "llm", "protocol": "openai", "operation": "models", "arguments": {}}


def test_arguments_go_in_as_they_are() -> None:
    arguments = b'{"b":1.10,  "a":1e2}'
    assert arguments in render(b"{}", "tool", "mcp", "t", "o", None, arguments, None, NOW)
