"""The policy's input is what one would write as a plain dict, whatever callers put into their texts."""

import dataclasses
import datetime
import json
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budgets import Account, Balance, Budget, Mode
from policies.document import Question, agent_fragment, budgets_document, render
from policies.errors import InputRefused
from policies.money import nano, usd_text
from tests.policies.support import NOW, Purse

text = st.text(st.characters(codec="utf-8"), max_size=300)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(text, values, max_size=4)


@given(
    target=text,
    operation=text,
    session=st.none() | text,
    stream=st.none() | st.booleans(),
    arguments=objects,
    budgets=st.none() | st.lists(objects, max_size=2),
    cost=st.none() | st.integers(0, 10**18),
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
    cost: int | None,
    approval: dict[str, Any] | None,
    now: int,
) -> None:
    call: dict[str, Any] = {"kind": "llm", "protocol": "openai", "operation": operation}
    if target:
        call["target"] = target
    call |= {"arguments": arguments}
    call |= {} if stream is None else {"stream": stream}
    call |= {} if session is None else {"session": session}
    call |= {} if cost is None else {"estimated_cost_usd": cost / 10**9}
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
        None if cost is None else usd_text(cost).encode(),
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


# --- money ----------------------------------------------------------------------------------------------------------


def balance(limit: int, posted: int, pending: int, *, node: str = "acme/a", mode: Mode = Mode.ADAPTIVE) -> Balance:
    return Balance(
        Account(Budget(node, "day", limit, mode), "2026-11-21", f"{node}|day|2026-11-21"), limit, posted, pending
    )


def test_a_budget_is_told_as_in_the_manual() -> None:
    told = budgets_document([balance(nano(5), nano(1.2), 0)])
    assert orjson.loads(told) == [
        {
            "node": "acme/a",
            "window": "day",
            "limit_usd": 5.0,
            "posted_usd": 1.2,
            "pending_usd": 0.0,
            "used_percent": 24,
            "state": "ok",
            "mode": "adaptive",
        }
    ]


@given(st.lists(st.tuples(*[st.integers(0, 2**53 - 1)] * 3), max_size=3), text)
def test_amounts_are_told_exactly_and_without_exponent(amounts: list[tuple[int, int, int]], node: str) -> None:
    told = budgets_document(balance(*each, node=node) for each in amounts)
    assert b"e-" not in told.replace(orjson.dumps(node), b"").lower()
    names = ("limit_usd", "posted_usd", "pending_usd")
    found = [{name: nano(Decimal(each[name])) for name in names} for each in json.loads(told, parse_float=str)]
    assert found == [dict(zip(names, each, strict=True)) for each in amounts]
    assert all(each["node"] == node for each in orjson.loads(told))


QUESTION = Question(b"{}", "llm", "openai", "m", "chat", None, None, b'{"a":1}', {"a": 1}, NOW)


def test_the_whole_document_has_the_money_of_the_call() -> None:
    read = orjson.loads(dataclasses.replace(QUESTION, money=Purse(b'[{"state":"ok"}]', 1_200_000)).document())
    assert read["budgets"] == [{"state": "ok"}]
    assert read["call"]["estimated_cost_usd"] == 0.0012


@pytest.mark.parametrize("money", [None, Purse()], ids=["no money", "no budgets, no price"])
def test_money_that_is_not_there_is_absent(money: Purse | None) -> None:
    read = orjson.loads(dataclasses.replace(QUESTION, money=money).document())
    assert "budgets" not in read
    assert "estimated_cost_usd" not in read["call"]


def test_what_is_recorded_of_a_calls_money_is_what_was_asked_for() -> None:
    purse = Purse(b'[{"state":"ok"}]', 5)
    question = dataclasses.replace(QUESTION, money=purse)
    assert orjson.loads(question.recorded(b"{}")).keys() == {"agent", "call", "time"}
    assert question.budgets() == b'[{"state":"ok"}]'
    assert orjson.loads(question.recorded(None)) == {
        "agent": {},
        "call": {"kind": "llm", "protocol": "openai", "target": "m", "operation": "chat"},
        "budgets": [{"state": "ok"}],
        "time": orjson.loads(question.document())["time"],
    }
    assert orjson.loads(question.recorded(None))["call"]["estimated_cost_usd"] == 0.000000005
    assert purse.asked == ["budgets", "estimated_cost"]
