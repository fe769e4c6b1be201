"""What clients of MCP are told of held calls, and how a held call becomes a message again."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import CallToolResult, InputRequiredResult

from adapters.errors import MalformedCall, ProtocolBreach
from adapters.mcp import held, messages
from adapters.mcp.held import Way
from adapters.mcp.messages import McpCall

LEADS: dict[str, Any] = {"elicitation": {"url": {}}}
TASKS: dict[str, Any] = {"extensions": {held.TASKS: {}}}


def call(method: str = "tools/call", *, modern: bool = True, version: str = "2025-11-25", **params: Any) -> McpCall:
    meta = {
        "io.modelcontextprotocol/protocolVersion": messages.MODERN,
        "io.modelcontextprotocol/clientCapabilities": params.pop("abilities", {}),
    }
    said: dict[str, Any] = {"name": "pay", "arguments": {"amount": 7}} if method == "tools/call" else {}
    said |= {**params, **({"_meta": meta} if modern else {})}
    body = orjson.dumps({"jsonrpc": "2.0", "id": "x", "method": method, "params": said})
    read = messages.read("bank", body, messages.MODERN if modern else version, free=True)
    if not modern:
        read.abilities = meta["io.modelcontextprotocol/clientCapabilities"]
    return read


@pytest.mark.parametrize(
    ("read", "page", "way"),
    [
        (call(), True, Way.WORDS),
        (call(abilities=LEADS), True, Way.PAGE),
        (call(abilities=LEADS), False, Way.WORDS),
        (call("prompts/get", name="p", abilities=LEADS), True, Way.PAGE),
        (call("resources/read", uri="a:b", abilities=LEADS), True, Way.PAGE),
        (call("completion/complete", ref={}, abilities=LEADS), True, Way.WORDS),
        (call(abilities={**LEADS, **TASKS}), True, Way.TASK),
        (call(abilities=TASKS), False, Way.TASK),
        (call("prompts/get", name="p", abilities=TASKS), True, Way.WORDS),
        (call("prompts/get", name="p", abilities={**LEADS, **TASKS}), True, Way.PAGE),
        (call(abilities={"elicitation": {}}), True, Way.WORDS),
        (call(abilities={"elicitation": "url", "extensions": "all"}), True, Way.WORDS),
        (call(modern=False, abilities=LEADS), True, Way.PAGE_ERROR),
        (call(modern=False, abilities=LEADS), False, Way.WORDS),
        (call(modern=False, abilities=TASKS), True, Way.WORDS),
        (call(modern=False, version="2025-06-18", abilities=LEADS), True, Way.WORDS),
    ],
)
def test_a_client_is_told_in_words_that_it_has_said_it_knows(read: McpCall, page: bool, way: Way) -> None:
    assert held.way(read, page) is way


def test_what_a_client_is_asked_is_as_the_stock_types_have_it() -> None:
    message = orjson.loads(held.response(call(), held.input_required("Decide.", "https://gate/approvals/apr", "kept")))
    assert message["id"] == "x"
    read = InputRequiredResult.model_validate(message["result"])
    assert read.request_state == "kept"
    assert read.input_requests is not None
    question = read.input_requests["approval"]
    assert question.model_dump(by_alias=True, exclude_none=True)["params"] == {
        "mode": "url",
        "message": "Decide.",
        "url": "https://gate/approvals/apr",
    }


@pytest.mark.parametrize(
    ("responses", "went"),
    [
        (b"", True),
        (b"{}", True),
        (b'{"approval":{"action":"accept"}}', True),
        (b'{"approval":{"action":"decline"}}', False),
        (b'{"approval":{"action":"cancel"},"other":{}}', False),
        (b'{"approval":"decline"}', True),
    ],
)
def test_who_declines_is_not_led_there_again(responses: bytes, went: bool) -> None:
    assert held.went(responses) is went


def test_progress_increases_and_stays_below_that_of_the_tool() -> None:
    said = [orjson.loads(held.progress(b'"t"', step, "held").split(b"data: ")[1]) for step in (1, 2, 10, 999_999)]
    done = [each["params"]["progress"] for each in said]
    assert done == sorted(set(done))
    assert done[-1] < 1
    assert said[0]["params"] == {"progressToken": "t", "progress": 1e-6, "message": "held"}


@pytest.mark.parametrize(
    ("accept", "events", "json"),
    [
        (b"application/json, text/event-stream", True, True),
        (b"Application/JSON;q=0.9 , Text/Event-Stream", True, True),
        (b"*/*", True, True),
        (b"text/*", True, False),
        (b"application/*", False, True),
        (b"text/event-stream", True, False),
        (b"application/json", False, True),
        (b"text/html", False, False),
    ],
)
def test_a_client_is_answered_in_a_form_that_it_takes(accept: bytes, events: bool, json: bool) -> None:
    headers = [(b"accept", accept)]
    assert (held.takes_events(headers), held.takes_json(headers)) == (events, json)


def test_without_a_word_a_client_takes_one_piece() -> None:
    assert (held.takes_events([]), held.takes_json([])) == (False, True)


def test_what_is_kept_is_said_again_as_the_revision_of_the_call_has_it() -> None:
    old, new = call(modern=False), call()
    plain, marked = b'{"result":{"content":[], "n": 1.0}}', b'{"result":{"resultType":"complete","content":[]}}'
    said = b'"content":[],"n":1.0,"_meta":{"weighbridge/repeated":{"approval":"apr_1"}}'
    assert held.again(old, plain, "apr_1") == b'{"jsonrpc":"2.0","id":"x","result":{%s}}' % said
    about = {"weighbridge/repeated": {"approval": "apr_1"}}
    modern = {"resultType": "complete", "content": [], "_meta": about}
    assert orjson.loads(held.again(new, marked, "apr_1"))["result"] == modern
    assert orjson.loads(held.again(old, marked, "apr_1"))["result"] == {"content": [], "_meta": about}
    assert orjson.loads(held.again(new, plain, "apr_1"))["result"] == {**modern, "n": 1.0}
    own = b'{"result":{"content":[],"_meta":{"a":1.0,"weighbridge/repeated":7}}}'
    assert b'"_meta":{"a":1.0,"weighbridge/repeated":{"approval":"apr_1"}}' in held.again(old, own, "apr_1")
    error = b'{"error":{"code":-1,"message":"no"}}'
    assert held.again(old, error, "apr_1") == b'{"jsonrpc":"2.0","id":"x","error":{"code":-1,"message":"no"}}'


def test_a_question_for_a_client_that_knows_none_is_told_to_be_one() -> None:
    asked = orjson.loads(held.again(call(modern=False), b'{"result":{"resultType":"input_required"}}', "a"))["result"]
    assert CallToolResult.model_validate(asked).is_error is True


@pytest.mark.parametrize("method", ["tools/call", "resources/read", "prompts/get", "completion/complete"])
def test_a_held_call_becomes_a_message_again_that_says_the_same(method: str) -> None:
    names: dict[str, Any] = {
        "resources/read": {"uri": "a:b"},
        "prompts/get": {"name": "p", "arguments": {"é": "\u2028"}},
        "completion/complete": {"ref": {"type": "x"}},
    }
    read = call(method, **names.get(method, {}))
    again = held.restored("bank", read.operation, read.kept, [], "new", definition="d", free=True)
    assert (again.operation, again.arguments, again.kept) == (read.operation, read.arguments, read.kept)
    assert (again.method, again.name, again.era, again.definition) == (method, read.name, "modern", "d")
    assert orjson.loads(again.message)["id"] == "new"
    assert again.abilities == {}


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), json_texts, max_size=4), st.dictionaries(st.text(), json_texts))
def test_what_stands_beside_the_arguments_is_restored_as_it_was(
    state: str, responses: dict[str, Any], arguments: dict[str, Any]
) -> None:
    try:
        read = call(requestState=state, inputResponses=responses, arguments=arguments)
    except ProtocolBreach:
        return  # a spelling that two readers might take for different ones
    for _, value in read.headers:
        assert value.isascii()
    again = held.restored("bank", "pay", read.kept, read.headers, "new", definition="", free=True)
    assert (again.state, again.arguments) == (state, arguments)
    assert orjson.loads(again.responses or b"{}") == responses
    assert again.headers == read.headers
    bare = messages.with_kept(read, "", b"")
    params = orjson.loads(bare.message)["params"]
    assert "requestState" not in params
    assert "inputResponses" not in params
    assert (params["arguments"], bare.headers) == (arguments, [])


@pytest.mark.parametrize("kept", [b"[]", b"7", b"{", b""])
def test_what_is_no_call_is_no_message(kept: bytes) -> None:
    for operation in ("pay", "prompts/get"):
        with pytest.raises(MalformedCall):
            held.restored("bank", operation, kept, [], "new", definition="", free=True)
