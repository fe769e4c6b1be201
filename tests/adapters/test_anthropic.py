"""`adapters.anthropic`: calls are read as Anthropic's servers would, and refusals reach its SDK as what they are."""

import json
from typing import Any

import anthropic
import orjson
import pytest
from anthropic.types import beta, message_count_tokens_params, message_create_params

from adapters.anthropic import MEMBERS, Anthropic
from adapters.base import AgentCall, Refusal, Usage
from adapters.body import check_spelling
from adapters.errors import MalformedCall
from adapters.registry import ANTHROPIC, endpoint
from tests.adapters.stock import EVENTS, JSON, Answers

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
GOOD: dict[str, Any] = {"model": "claude", "messages": [{"role": "user", "content": "hi"}]}
ABSENT = object()


def read(path: str, changes: dict[str, Any]) -> AgentCall:
    body = {key: value for key, value in (GOOD | changes).items() if value is not ABSENT}
    return Anthropic().read(endpoint(ANTHROPIC, "POST", path)[0], orjson.dumps(body), "")


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field, values in [
            ("model", [ABSENT, None, "", 1, True, [], {}, ["m"], "a\nb", "m" * 257]),
            ("messages", [ABSENT, None, "hi", 1, True, {}]),
            ("stream", [0, 1, "true", "", [], {}]),
        ]
        for value in values
    ],
)
def test_a_member_of_the_wrong_type_is_refused_by_its_name(path: str, field: str, value: Any) -> None:
    with pytest.raises(MalformedCall, match=f"^`{field}` must be"):
        read(path, {field: value})


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
@pytest.mark.parametrize("key", ["Model", "MESSAGES", "System", "Stream", "Max_Tokens", "toolS"])
def test_a_member_spelled_in_another_letter_case_is_refused(path: str, key: str) -> None:
    with pytest.raises(MalformedCall, match=f"^The key '{key}' must be spelled '{key.lower()}'"):
        read(path, {key: "x"})


@pytest.mark.parametrize(
    "known",
    [
        message_create_params.MessageCreateParamsStreaming,
        message_count_tokens_params.MessageCountTokensParams,
        beta.message_create_params.MessageCreateParamsStreaming,
        beta.message_count_tokens_params.MessageCountTokensParams,
    ],
)
def test_every_member_that_the_sdk_can_send_passes_in_its_own_spelling_alone(known: type) -> None:
    for member in known.__annotations__:
        check_spelling({member: None}, MEMBERS)
        with pytest.raises(MalformedCall, match="must be spelled"):
            check_spelling({member.title(): None}, MEMBERS)


@pytest.mark.parametrize(
    ("path", "changes", "operation", "stream"),
    [
        (MESSAGES, {}, "messages", False),
        (MESSAGES, {"messages": []}, "messages", False),
        (MESSAGES, {"stream": True}, "messages", True),
        (MESSAGES, {"stream": None}, "messages", False),
        (COUNT, {}, "count_tokens", None),
    ],
)
def test_a_good_call_is_read(path: str, changes: dict[str, Any], operation: str, stream: bool | None) -> None:
    call = read(path, changes)
    assert (call.kind, call.protocol, call.target) == ("llm", "anthropic", "claude")
    assert (call.operation, call.stream, call.wants_usage) == (operation, stream, True)
    assert call.arguments == json.loads(call.body)


def test_what_is_not_a_json_object_is_refused() -> None:
    with pytest.raises(MalformedCall, match="twice"):
        Anthropic().read(endpoint(ANTHROPIC, "POST", MESSAGES)[0], b'{"model":"a","model":"b"}', "")


def test_only_the_model_name_changes_on_the_way_to_a_target() -> None:
    body = b'{"messages":[ {"model":"m"} ],\t"model" : "m", "stream":true}'
    call = Anthropic().read(endpoint(ANTHROPIC, "POST", MESSAGES)[0], body, "")
    assert Anthropic().onward(call, None) is body
    assert Anthropic().onward(call, "m") is body
    assert Anthropic().onward(call, "claude-x") == body.replace(b'"model" : "m"', b'"model" : "claude-x"')


@pytest.mark.parametrize(
    ("status", "raised", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (405, anthropic.APIStatusError, "invalid_request_error"),
        (408, anthropic.APIStatusError, "invalid_request_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (502, anthropic.InternalServerError, "api_error"),
        (503, anthropic.InternalServerError, "overloaded_error"),
        (504, anthropic.InternalServerError, "timeout_error"),
    ],
)
def test_a_refusal_is_raised_by_the_sdk_and_is_not_repeated(
    status: int, raised: type[anthropic.APIStatusError], kind: str
) -> None:
    headers, body = Anthropic().refusal(Refusal(status, "the_code", "Why, and what next.", "01CALL"))
    answers = Answers(status, headers, body)
    with pytest.raises(raised, match="Why, and what next") as caught:
        answers.anthropic().messages.create(model="m", messages=[], max_tokens=5)
    assert caught.value.body == json.loads(body)
    assert caught.value.request_id == "01CALL"
    assert len(answers.requests) == 1
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": kind, "message": "Why, and what next.", "code": "the_code"},
        "request_id": "01CALL",
    }


@pytest.mark.parametrize("code", ["budget_exhausted", "budget_contended", "rate_limited"])
def test_the_details_of_a_refusal_stand_beside_its_message_and_never_in_its_place(code: str) -> None:
    details = {"node": "acme/bot", "resets_at": "2026-11-22T00:00:00Z"}
    posing = {"message": "x", "type": "x", "code": "x"}
    headers, body = Anthropic().refusal(Refusal(429, code, "Why, and what next.", "01CALL", details=details | posing))
    error = {"type": "rate_limit_error", "message": "Why, and what next.", "code": code}
    assert json.loads(body) == {"type": "error", "error": error | details, "request_id": "01CALL"}
    with pytest.raises(anthropic.RateLimitError, match="Why, and what next"):
        Answers(429, headers, body).anthropic().messages.create(model="m", messages=[], max_tokens=5)


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"content": [{"type": "text", "text": "Caf\u00e9"}]}, 2),
        ({"content": [{"type": "thinking", "thinking": "Hmm", "signature": "c2ln" * 99}]}, 1),
        ({"content": [{"type": "tool_use", "name": "f", "input": {"city": "Paris"}}]}, 4),
        ({"content": [{"type": "text", "text": "a" * 7}, {"type": "tool_use", "input": {}}]}, 3),
        ({"content": [{"type": "web_search_tool_result", "content": [{"title": "x" * 99, "text": "y" * 99}]}]}, 0),
        ({"content": [{"type": "text", "text": None}, "text", {}]}, 0),
        ({"content": "text"}, 0),
        ([], 0),
    ],
)
def test_an_answer_that_came_without_its_tokens_is_counted_by_its_texts(answer: Any, tokens: int) -> None:
    assert Anthropic().counted(read(MESSAGES, {}), json.dumps(answer).encode()) == tokens
    assert Anthropic().counted(read(COUNT, {}), json.dumps(answer).encode()) == 0


def test_a_refusal_that_may_pass_later_is_repeated_by_the_sdk() -> None:
    headers, body = Anthropic().refusal(Refusal(503, "no_healthy_target", "Later.", "01CALL", retry=True))
    answers = Answers(503, [*headers, (b"retry-after-ms", b"1")], body)
    with pytest.raises(anthropic.InternalServerError):
        answers.anthropic().messages.create(model="m", messages=[], max_tokens=5)
    assert len(answers.requests) == 2


def test_a_broken_stream_raises_in_the_sdk_after_what_had_come() -> None:
    begun = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
    broken = Anthropic().broken_stream(Refusal(502, "target_failed", "The target broke off.", "01CALL"))
    body = b"event: content_block_delta\ndata: " + orjson.dumps(begun) + b"\n\n" + broken
    client = Answers(200, EVENTS, body).anthropic()
    stream = client.messages.create(model="m", messages=[], max_tokens=5, stream=True)
    assert next(stream).type == "content_block_delta"
    with pytest.raises(anthropic.APIStatusError, match="The target broke off"):
        next(stream)
    meter = Anthropic().meter(read(MESSAGES, {"stream": True}))
    assert meter.feed(broken) == broken
    assert meter.failed, "a gateway in front of us recognises it too"


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"type": "message", "usage": {"input_tokens": 10, "output_tokens": 5}}, Usage(10, 5)),
        (
            {
                "usage": {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 100,
                    "cache_creation_input_tokens": 20,
                    "cache_creation": {"ephemeral_5m_input_tokens": 20},
                    "output_tokens": 5,
                    "output_tokens_details": {"reasoning_tokens": 3},
                }
            },
            Usage(130, 5, 100, 20, 3),
        ),
        ({"usage": {"input_tokens": 10, "cache_read_input_tokens": None}}, Usage(10, 0)),
        (
            {"usage": {"input_tokens": 2**64 - 1, "cache_read_input_tokens": 2**64 - 1, "output_tokens": 1}},
            Usage(2 * 10**9, 1, 10**9),
        ),
        ({"input_tokens": 12}, None),
        ({"usage": None}, None),
        ([], None),
    ],
)
def test_cached_tokens_are_counted_as_input(answer: Any, usage: Usage | None) -> None:
    assert Anthropic().usage(read(MESSAGES, {}), orjson.dumps(answer)) == usage


def test_the_sdk_lists_and_retrieves_the_catalogue() -> None:
    names = ["claude-sonnet", "org/model:1"]
    listed = Anthropic().catalogue(names, "")
    assert listed is not None
    assert [model.id for model in Answers(200, JSON, listed).anthropic().models.list()] == names
    for name in names:
        card = Anthropic().catalogue(names, name)
        assert card is not None
        assert Answers(200, JSON, card).anthropic().models.retrieve(name).display_name == name
    assert Anthropic().catalogue(names, "claude-none") is None
    empty = Anthropic().catalogue([], "")
    assert empty is not None
    assert list(Answers(200, JSON, empty).anthropic().models.list()) == []
