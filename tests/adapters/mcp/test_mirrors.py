"""Headers that repeat what a message says: read, held against it, and written again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Headers
from adapters.errors import ProtocolBreach
from adapters.mcp import mirrors
from adapters.mcp.mirrors import MISMATCH, Parameter

VERSION = "2026-07-28"
SCHEMA = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "dry": {"type": "boolean", "x-mcp-header": "Dry"},
        "place": {"type": "object", "properties": {"city": {"type": "string", "x-mcp-header": "City"}}},
        "free": {"type": "string"},
    },
}


def headers(**changed: str | None) -> Headers:
    said: dict[str, str | None] = {
        "mcp-protocol-version": VERSION,
        "mcp-method": "tools/call",
        "mcp-name": "echo",
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    return [(name.encode(), value.encode()) for name, value in said.items() if value is not None]


def check(lines: Headers, method: str = "tools/call", name: object = "echo") -> None:
    mirrors.check(lines, method, VERSION, name)


def test_headers_that_say_what_the_message_says_pass() -> None:
    check(headers())


def test_spaces_around_a_value_are_no_part_of_it() -> None:
    check(headers(mcp_name=" echo\t ", mcp_method="tools/call  "))


@pytest.mark.parametrize(
    "changed",
    [
        {"mcp_protocol_version": None},
        {"mcp_protocol_version": "2025-11-25"},
        {"mcp_method": None},
        {"mcp_method": "tools/list"},
        {"mcp_method": "TOOLS/CALL"},
        {"mcp_name": None},
        {"mcp_name": "other"},
        {"mcp_name": "Echo"},
        {"mcp_name": "=?base64?b3RoZXI=?="},
        {"mcp_name": "=?base64?ZWNobw?="},
        {"mcp_name": "=?base64?ZWNob/==?="},
        {"mcp_name": "=?base64?/w==?="},
    ],
)
def test_headers_that_say_something_else_are_refused(changed: dict[str, str | None]) -> None:
    with pytest.raises(ProtocolBreach) as refused:
        check(headers(**changed))
    assert refused.value.breach == MISMATCH == (-32020, 400, None)


@pytest.mark.parametrize("name", ["mcp-protocol-version", "mcp-method", "mcp-name"])
def test_a_routing_header_that_comes_twice_is_refused_even_if_both_say_the_same(name: str) -> None:
    lines = headers()
    with pytest.raises(ProtocolBreach, match="twice"):
        check([*lines, next(line for line in lines if line[0] == name.encode())])


def test_a_name_in_base64_is_the_same_name() -> None:
    check(headers(mcp_name="=?base64?ZWNobw==?="))
    check(headers(mcp_name="=?base64?w6k=?="), name="\u00e9")


def test_what_has_no_name_needs_no_header_for_it() -> None:
    check(headers(mcp_method="tools/list", mcp_name=None), "tools/list", None)


def test_tasks_are_named_where_a_client_names_them() -> None:
    check(headers(mcp_method="tasks/get", mcp_name=None), "tasks/get", "t-1")
    check(headers(mcp_method="tasks/get", mcp_name="t-1"), "tasks/get", "t-1")
    with pytest.raises(ProtocolBreach):
        check(headers(mcp_method="tasks/get", mcp_name="t-2"), "tasks/get", "t-1")


@given(st.text(max_size=60))
def test_any_name_survives_its_header(name: str) -> None:
    value = mirrors.encoded(name)
    assert value == value.strip()
    assert value.isascii()
    assert b"\n" not in value
    assert b"\r" not in value
    if name.isascii() or value.startswith(b"=?base64?"):
        assert mirrors.decoded(value) == name


def test_marked_arguments_are_found_wherever_properties_lead() -> None:
    assert set(mirrors.parameters(SCHEMA)) == {
        Parameter(b"mcp-param-region", ("region",), "string"),
        Parameter(b"mcp-param-count", ("count",), "integer"),
        Parameter(b"mcp-param-dry", ("dry",), "boolean"),
        Parameter(b"mcp-param-city", ("place", "city"), "string"),
    }


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": ["string"], "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "not a token"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": ""}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": 1}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A"}, "b": {"type": "string", "x-mcp-header": "a"}}},
        {"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
        {"allOf": [{"properties": {"a": {"type": "string", "x-mcp-header": "A"}}}]},
        {"$defs": {"a": {"type": "string", "x-mcp-header": "A"}}},
        {"type": "string", "x-mcp-header": "A"},
    ],
)
def test_a_schema_with_a_mark_against_the_rules_has_none(schema: object) -> None:
    assert mirrors.parameters(schema) == ()


def test_a_schema_of_any_size_is_looked_through_in_bounds() -> None:
    deep: dict[str, Any] = {"type": "string", "x-mcp-header": "A"}
    for _ in range(5000):
        deep = {"properties": {"a": deep}}
    assert mirrors.parameters(deep) == ()


MARKED = mirrors.parameters(SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, {}),
        ({"free": "x"}, {"other": "y"}),
        ({"region": "eu"}, {"region": "eu"}),
        ({"region": "\u00e9"}, {"region": "=?base64?w6k=?="}),
        ({"region": None}, {}),
        ({"region": ["eu"]}, {}),
        ({"count": 42}, {"count": "42"}),
        ({"count": 42}, {"count": "42.0"}),
        ({"count": 42.0}, {"count": "42"}),
        ({"count": 9007199254740993}, {"count": "9007199254740993"}),
        ({"dry": True}, {"dry": "true"}),
        ({"place": {"city": "Rome"}}, {"city": "Rome"}),
    ],
)
def test_arguments_that_stand_in_their_headers_pass(arguments: dict[str, Any], said: dict[str, str]) -> None:
    lines = [(b"mcp-param-" + name.encode(), value.encode()) for name, value in said.items()]
    mirrors.check_parameters(lines, MARKED, arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"region": "eu"}, {}),
        ({"region": "eu"}, {"region": "us"}),
        ({}, {"region": "eu"}),
        ({"region": None}, {"region": ""}),
        ({"region": ["eu"]}, {"region": "eu"}),
        ({"count": 42}, {"count": "43"}),
        ({"count": 42}, {"count": "42.5"}),
        ({"count": 42}, {"count": "4.2e1"}),
        ({"count": True}, {"count": "1"}),
        ({"dry": True}, {"dry": "True"}),
        ({"place": "Rome"}, {"city": "Rome"}),
        ({"region": "eu"}, {"region": "=?base64?!?="}),
    ],
)
def test_arguments_that_do_not_are_refused(arguments: dict[str, Any], said: dict[str, str]) -> None:
    lines = [(b"mcp-param-" + name.encode(), value.encode()) for name, value in said.items()]
    with pytest.raises(ProtocolBreach) as refused:
        mirrors.check_parameters(lines, MARKED, arguments)
    assert refused.value.breach == MISMATCH


def test_an_argument_in_two_headers_is_refused() -> None:
    lines = [(b"mcp-param-region", b"eu"), (b"mcp-param-region", b"eu")]
    with pytest.raises(ProtocolBreach, match="twice"):
        mirrors.check_parameters(lines, MARKED, {"region": "eu"})


def test_what_goes_on_repeats_what_is_sent_and_not_what_came() -> None:
    came = [*headers(mcp_name="renamed__echo"), (b"mcp-param-region", b"eu"), (b"mcp-param-unknown", b" kept ")]
    sent = mirrors.onward(came, "tools/call", VERSION, "\u00e9cho", MARKED, {"region": "us", "dry": False})
    assert sorted(sent) == [
        (b"mcp-method", b"tools/call"),
        (b"mcp-name", b"=?base64?w6ljaG8=?="),
        (b"mcp-param-dry", b"false"),
        (b"mcp-param-region", b"us"),
        (b"mcp-param-unknown", b"kept"),
        (b"mcp-protocol-version", VERSION.encode()),
    ]
    mirrors.check(sent, "tools/call", VERSION, "\u00e9cho")
    mirrors.check_parameters(sent, MARKED, {"region": "us", "dry": False})
