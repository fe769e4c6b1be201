"""What an agent POSTs to an MCP server, read strictly: what the policy sees is what the server gets."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import ProtocolBreach
from adapters.mcp import messages
from adapters.mcp.messages import McpCall

MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
}


def read(message: Any, version: str = "") -> McpCall:
    body = message if isinstance(message, bytes) else orjson.dumps(message)
    return messages.read("up", body, version, free=True)


def request(method: str = "tools/call", params: Any = None, **members: Any) -> dict[str, Any]:
    said = {"name": "echo", "arguments": {"text": "hi"}} if params is None else params
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": said, **members}


def breach(message: Any, version: str = "") -> tuple[int, int, bytes]:
    with pytest.raises(ProtocolBreach) as refused:
        read(message, version)
    found = refused.value.breach
    assert isinstance(found, tuple)
    return found[0], found[1], refused.value.id


def test_a_call_of_a_tool_is_named_by_the_tool() -> None:
    call = read(b'{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"echo","arguments":{ "b" : 1 }}}')
    assert (call.target, call.operation, call.body, call.arguments) == ("up", "echo", b'{ "b" : 1 }', {"b": 1})
    assert (call.era, call.id, call.name) == ("legacy", b'"a"', "echo")
    assert not call.endpoint.passes


@pytest.mark.parametrize("identity", [0, -1, 2**63, 10**40, "", "\u00e9", "1"])
def test_an_id_is_any_text_or_whole_number(identity: Any) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": identity, "method": "ping"}).encode()
    assert json.loads(read(body).id) == identity


@pytest.mark.parametrize("method", ["resources/read", "prompts/get", "completion/complete"])
def test_other_acts_are_named_by_their_method(method: str) -> None:
    call = read(request(method, {"uri": "file:///x", "name": "p", "_meta": {"progressToken": 1}}))
    assert (call.operation, call.arguments) == (method, {"uri": "file:///x", "name": "p"})
    assert not call.endpoint.passes


@pytest.mark.parametrize("method", ["initialize", "tools/list", "ping", "logging/setLevel", "server/discover"])
def test_what_is_the_protocols_own_passes(method: str) -> None:
    assert read(request(method, {})).endpoint.passes


@pytest.mark.parametrize("method", sorted(messages.ACTS))
def test_a_call_is_no_notification(method: str) -> None:
    with pytest.raises(ProtocolBreach, match="needs an `id`"):
        read({"jsonrpc": "2.0", "method": method, "params": {"name": "echo", "uri": "memo://a"}})


@pytest.mark.parametrize(
    "method",
    [
        "Tools/Call",
        "tools/call ",
        "tools/call\0",
        "tools//call",
        "\uff34ools/call",
        "tools/call\u200b",
        "resources/Read",
    ],
)
def test_what_is_almost_the_method_of_a_call_is_refused(method: str) -> None:
    with pytest.raises(ProtocolBreach, match="almost that of a call"):
        read(request(method, {"name": "echo"}))


@pytest.mark.parametrize(
    ("message", "version", "expected"),
    [
        (b"[]", "", (-32600, 400, b"")),
        (b' [{"jsonrpc":"2.0","id":1,"method":"ping"}]', "", (-32600, 400, b"")),
        (b"{", "", (-32700, 400, b"")),
        (b"nothing", "", (-32700, 400, b"")),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', "", (-32700, 400, b"")),
        ({"id": 1, "method": "ping"}, "", (-32600, 400, b"1")),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, "", (-32600, 400, b"1")),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, "", (-32600, 400, b"")),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, "", (-32600, 400, b"")),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "ping"}, "", (-32600, 400, b"")),
        ({"jsonrpc": "2.0", "id": [1], "method": "ping"}, "", (-32600, 400, b"")),
        ({"jsonrpc": "2.0", "id": 7}, "", (-32600, 400, b"")),
        ({"jsonrpc": "2.0", "id": 7, "result": {}, "error": {}}, "", (-32600, 400, b"")),
        ({"jsonrpc": "2.0", "id": 7, "method": 1}, "", (-32600, 400, b"7")),
        ({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": []}, "", (-32600, 400, b"7")),
        (request(params={"arguments": {}}), "", (-32602, 400, b"1")),
        (request(params={"name": 1}), "", (-32602, 400, b"1")),
        (request(params={"name": "echo", "arguments": []}), "", (-32602, 400, b"1")),
        (request(params={"name": "tools/call"}), "", (-32602, 400, b"1")),
        (request(params={"name": "echo", "_meta": 1}), "", (-32602, 400, b"1")),
        (request(params={"name": "echo", "Name": "other"}), "", (-32600, 400, b"1")),
        (request(params={"name": "echo", "Arguments": {}}), "", (-32600, 400, b"1")),
        (request(Method="tools/list"), "", (-32600, 400, b"1")),
        (request(params={"name": "echo"}), MODERN, (-32602, 400, b"1")),
        (request(params={"name": "echo", "_meta": {}}), MODERN, (-32602, 400, b"1")),
        (request(params={"name": "echo"}), "2027-01-01", (-32602, 400, b"1")),
        (request(params={"name": "echo", "_meta": META}), "", (-32020, 400, b"1")),
        (request(params={"name": "echo", "_meta": META}), "2025-11-25", (-32020, 400, b"1")),
        ({"jsonrpc": "2.0", "id": 7, "result": {}}, MODERN, (-32600, 400, b"")),
    ],
)
def test_what_is_against_the_rules_is_refused_by_the_protocols_number(
    message: Any, version: str, expected: tuple[int, int, bytes]
) -> None:
    assert breach(message, version) == expected


def test_a_modern_request_says_itself_what_it_is() -> None:
    call = read(
        request(params={"name": "echo", "_meta": {**META, "progressToken": "t", "traceparent": "00-x"}}), MODERN
    )
    assert (call.era, call.version, call.progress, call.trace) == ("modern", MODERN, b'"t"', "00-x")
    assert call.abilities == {"elicitation": {}}


def test_a_version_that_nobody_knows_yet_is_its_servers_to_refuse() -> None:
    meta = {**META, "io.modelcontextprotocol/protocolVersion": "2027-01-01"}
    call = read(request(params={"name": "echo", "_meta": meta}), "2027-01-01")
    assert (call.era, call.version) == ("modern", "2027-01-01")


def test_answers_of_clients_are_messages_of_the_legacy_era() -> None:
    call = read({"jsonrpc": "2.0", "id": 7, "result": {}})
    assert (call.endpoint.passes, call.method, call.id) == (True, "", b"")


def test_what_nobody_has_changed_goes_on_byte_by_byte() -> None:
    body = b' {"jsonrpc": "2.0", "id":1, "method":"tools/call","params":{"name":"echo"}} '
    assert messages.onward(read(body)) == body


def test_changed_arguments_stand_where_the_others_stood() -> None:
    call = messages.edited(read(request()), b'{"text":"***"}')
    assert orjson.loads(messages.onward(call)) == request(params={"name": "echo", "arguments": {"text": "***"}})
    bare = messages.edited(read(request(params={"name": "echo"})), b'{"text":"***"}')
    assert orjson.loads(messages.onward(bare))["params"]["arguments"] == {"text": "***"}


def test_a_changed_act_keeps_what_is_no_argument_of_it() -> None:
    params = {"uri": "file:///x", "_meta": META, "requestState": "s", "inputResponses": {"a": {}}}
    call = read(request("resources/read", params), MODERN)
    changed = orjson.loads(messages.onward(messages.edited(call, b'{"uri":"file:///y"}')))
    assert changed["params"] == {**params, "uri": "file:///y"}


@pytest.mark.parametrize(
    "params", [{"name": "echo", "arguments": {}, "_meta": {"traceparent": "old", "a": 1}}, {"name": "echo"}]
)
def test_the_trace_stands_in_the_message(params: dict[str, Any]) -> None:
    sent = orjson.loads(messages.onward(read(request(params=params)), {"traceparent": "new", "tracestate": "s"}))
    assert sent["params"]["_meta"] == {**params.get("_meta", {}), "traceparent": "new", "tracestate": "s"}
    assert sent["params"]["name"] == "echo"


def test_a_message_without_parameters_gets_some_for_its_trace() -> None:
    call = read({"jsonrpc": "2.0", "id": 1, "method": "ping"})
    assert orjson.loads(messages.onward(call, {"traceparent": "t"}))["params"] == {"_meta": {"traceparent": "t"}}


def test_a_servers_question_is_a_call_of_its_own() -> None:
    outer = read(request())
    asked = {
        "jsonrpc": "2.0",
        "id": 9,
        "method": "sampling/createMessage",
        "params": {"maxTokens": 5, "_meta": {"a": 1}},
    }
    call = messages.question("up", asked, orjson.dumps(asked), outer)
    assert (call.target, call.operation, call.arguments, call.id) == (
        "up",
        "sampling/createMessage",
        {"maxTokens": 5},
        b"9",
    )
    assert not call.endpoint.passes
    assert call.endpoint.free


def test_what_a_client_can_do_is_kept_as_far_as_it_matters_and_is_short() -> None:
    call = read(
        request("initialize", {"capabilities": {"elicitation": {"url": {}}, "sampling": {}, "other": {"x": 1}}})
    )
    call.abilities = messages.initializes(call)
    assert orjson.loads(messages.abilities_kept(call)) == {"elicitation": {"url": {}}, "sampling": {}}
    call.abilities = {"elicitation": {"x": "y" * 2000}}
    assert messages.abilities_kept(call) == b"{}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "id": JSON,
        "method": st.sampled_from([*messages.ACTS, "ping", "initialize"]) | JSON,
        "params": st.fixed_dictionaries({}, optional={"name": JSON, "uri": JSON, "arguments": JSON, "_meta": JSON})
        | JSON,
        "result": JSON,
    },
)


@given(MEMBERS | JSON, st.sampled_from(["", "2025-11-25", MODERN, "x"]))
def test_whatever_comes_is_read_or_refused_and_goes_on_as_it_came(value: Any, version: str) -> None:
    body = orjson.dumps(value)
    with contextlib.suppress(ProtocolBreach):
        assert messages.onward(messages.read("up", body, version, free=True)) == body
