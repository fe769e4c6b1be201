"""`adapters.translation`, whole answers: the agent's own SDK and adapter read what the target has said."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import Usage
from adapters.registry import ANTHROPIC, OPENAI
from adapters.translation.reading import written
from tests.adapters.translation.support import (
    DOWN,
    NOW,
    UP,
    chat,
    everywhere,
    judge_completion,
    judge_message,
    messages,
    somewhere,
    strange,
)

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "eHg="},
        {"type": "text", "text": "Let me "},
        {"type": "text", "text": "look."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "toolu_2", "name": "time", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 7,
        "output_tokens": 42,
        "output_tokens_details": {"thinking_tokens": 5},
    },
}
MESSAGE_AS_COMPLETION: dict[str, Any] = {
    "id": "msg_1",
    "object": "chat.completion",
    "created": NOW,
    "model": "claude-sonnet-4-5",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Let me look.",
                "refusal": None,
                "reasoning_content": "Hm.",
                "tool_calls": [
                    {
                        "id": "toolu_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
                    },
                    {"id": "toolu_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 42,
        "total_tokens": 62,
        "prompt_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 5},
    },
}
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": NOW,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Let me look.",
                "refusal": None,
                "annotations": [],
                "reasoning_content": "Hm.",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    },
                    {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": ""}},
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 42,
        "total_tokens": 62,
        "prompt_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 3, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5},
    },
    "service_tier": "default",
    "system_fingerprint": "fp",
}
COMPLETION_AS_MESSAGE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "type": "message",
    "role": "assistant",
    "model": "gpt-4o-mini-2024-07-18",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 7,
        "output_tokens": 42,
        "output_tokens_details": {"thinking_tokens": 5},
    },
}


def completed(status: int = 200, /, **members: Any) -> Any:
    """A message as a chat completion."""
    return orjson.loads(UP.answer(chat(), status, orjson.dumps(MESSAGE | members)))


def messaged(status: int = 200, /, message: Any = None, choice: Any = None, **members: Any) -> Any:
    """A chat completion as a message."""
    said = COMPLETION["choices"][0]["message"] if message is None else {"role": "assistant"} | message
    answer = COMPLETION | {"choices": [COMPLETION["choices"][0] | {"message": said} | (choice or {})]} | members
    return orjson.loads(DOWN.answer(messages(stop_sequences=["END"]), status, orjson.dumps(answer)))


def test_a_message_is_a_chat_completion() -> None:
    answer = UP.answer(chat(), 200, orjson.dumps(MESSAGE))
    assert orjson.loads(answer) == MESSAGE_AS_COMPLETION
    assert judge_completion(answer).choices[0].message.content == "Let me look."


def test_a_chat_completion_is_a_message() -> None:
    answer = DOWN.answer(messages(), 200, orjson.dumps(COMPLETION))
    assert orjson.loads(answer) == COMPLETION_AS_MESSAGE
    assert judge_message(answer).stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_every_stop_reason_is_a_finish_reason(reason: Any, finish: str) -> None:
    assert completed(stop_reason=reason)["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    ("choice", "message", "reason", "sequence"),
    [
        ({"finish_reason": "stop"}, {"content": "x"}, "end_turn", None),
        ({"finish_reason": "length"}, {"content": "x"}, "max_tokens", None),
        ({"finish_reason": "tool_calls"}, None, "tool_use", None),
        ({"finish_reason": "function_call"}, None, "tool_use", None),
        ({"finish_reason": "content_filter"}, {"content": "x"}, "refusal", None),
        ({"finish_reason": "stop"}, None, "tool_use", None),  # as OpenAI says it of a tool that was asked for by name
        ({"finish_reason": "stop", "stop_reason": "END"}, {"content": "x"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "stop_reason": "OTHER"}, {"content": "x"}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": 151645}, {"content": "x"}, "end_turn", None),
        ({"finish_reason": "stop"}, {"content": None, "refusal": "I cannot."}, "refusal", None),
        ({"finish_reason": None}, {"content": "x"}, "end_turn", None),
        ({"finish_reason": "something_new"}, {"content": "x"}, "end_turn", None),
    ],
)
def test_every_finish_reason_is_a_stop_reason(choice: Any, message: Any, reason: str, sequence: str | None) -> None:
    answer = messaged(message=message, choice=choice)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)


def test_a_refusal_says_why() -> None:
    why = {"type": "refusal", "category": "cyber", "explanation": "Too dangerous."}
    message = completed(content=[], stop_reason="refusal", stop_details=why)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "refusal": "Too dangerous."}
    assert messaged(message={"refusal": "I cannot."})["content"] == [{"type": "text", "text": "I cannot."}]


def test_arguments_that_were_cut_go_as_far_as_they_came() -> None:
    cut = {"tool_calls": [{"id": "c", "function": {"name": "t", "arguments": '{"a": 1, "b": [2'}}]}
    block = messaged(message=cut, choice={"finish_reason": "length"})["content"][0]
    assert block["input"]["a"] == 1
    with pytest.raises(ValueError, match="arguments"):
        messaged(message=cut)


def test_a_tool_call_without_an_id_gets_one_of_its_own() -> None:
    calls = {"tool_calls": [{"function": {"name": "t", "arguments": {}}}, {"function": {"name": "t"}}]}
    ids = [block["id"] for block in messaged(message=calls)["content"]]
    assert ids == ["call_chatcmpl-1_0", "call_chatcmpl-1_1"]


def test_numbers_of_any_length_keep_their_digits() -> None:
    big = b'{"id":"i","content":[{"type":"tool_use","id":"c","name":"t","input":{"n":%b}}]}' % (b"9" * 40)
    called = orjson.loads(UP.answer(chat(), 200, big))["choices"][0]["message"]["tool_calls"][0]
    assert called["function"]["arguments"] == '{"n":' + "9" * 40 + "}"
    cut = orjson.dumps({"choices": [{"message": {"tool_calls": [{"id": "c", **called}]}}]})
    assert b'{"n":' + b"9" * 40 + b"}" in DOWN.answer(messages(), 200, cut)


def test_an_answer_in_parts_is_one_text() -> None:
    parts = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert messaged(message=parts)["content"] == [{"type": "text", "text": "ab"}]


def test_what_nobody_has_counted_stays_uncounted() -> None:
    assert "usage" not in completed(usage=None)
    silent = messaged(usage=None)
    assert silent["usage"]["input_tokens"] == silent["usage"]["output_tokens"] == 0
    judge_message(orjson.dumps(silent))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"<html>",
        b'{"content":5}',
        b'{"content":["x"]}',
        b'{"content":[{"type":"server_tool_use","id":"s","name":"web_search","input":{}}]}',
        b'{"content":[{"type":"text"}]}',
        b'{"error":"Internal server error"}',
    ],
)
def test_what_is_no_message_is_no_answer(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        UP.answer(chat(), 200, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"<html>",
        b'{"choices":[]}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":{"content":5}}]}',
        b'{"choices":[{"message":{"content":[{"type":"image_url"}]}}]}',
        b'{"choices":[{"message":{"tool_calls":[{"id":"c"}]}}]}',
        b'{"error":"Internal server error"}',
        b'{"__parallax_http_response__":true,"status_code":502}',
    ],
)
def test_what_is_no_chat_completion_is_no_answer(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        DOWN.answer(messages(), 200, body)


def _error(kind: str, message: str) -> bytes:
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"})


@pytest.mark.parametrize(
    ("status", "kind", "named"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (402, "billing_error", "insufficient_quota"),
        (403, "permission_error", "permission_error"),
        (404, "not_found_error", "invalid_request_error"),
        (413, "request_too_large", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "server_error"),
        (504, "timeout_error", "server_error"),
        (529, "overloaded_error", "server_error"),
    ],
)
def test_an_error_of_anthropics_is_one_of_openais(status: int, kind: str, named: str) -> None:
    answer = orjson.loads(UP.answer(chat(), status, _error(kind, "Because.")))
    assert answer == {"error": {"message": "Because.", "type": named, "param": None, "code": kind}}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_an_error_of_openais_is_one_of_anthropics(status: int, kind: str) -> None:
    error = {"error": {"message": "Because.", "type": "x", "param": None, "code": "server_not_ready"}}
    answer = orjson.loads(DOWN.answer(messages(), status, orjson.dumps(error)))
    assert answer == {"type": "error", "error": {"type": kind, "message": "Because.", "code": "server_not_ready"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":"Internal server error"}', "Internal server error"),
        (b'{"object":"error","message":"too long","code":400}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body"]}]}', "The target answered with status 500."),
        (b"<html>Bad gateway</html>", "The target answered with status 500."),
        (b"", "The target answered with status 500."),
        (b"[1]", "The target answered with status 500."),
        (b'{"error":{"message":5}}', "The target answered with status 500."),
    ],
)
def test_an_error_of_any_shape_is_told(body: bytes, message: str) -> None:
    assert orjson.loads(DOWN.answer(messages(), 500, body))["error"]["message"] == message
    assert orjson.loads(UP.answer(chat(), 500, body))["error"]["message"] == message


counts = st.integers(0, 10**7)


@given(counts, counts, counts, counts, counts)
def test_the_agents_adapter_reads_the_tokens_that_the_targets_would(
    given: int, read: int, stored: int, made: int, thought: int
) -> None:
    details = {"thinking_tokens": min(thought, made)}
    usage = {
        "input_tokens": given,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": stored,
        "output_tokens": made,
        "output_tokens_details": details,
    }
    body = orjson.dumps(MESSAGE | {"usage": usage})
    assert OPENAI.usage(chat(), UP.answer(chat(), 200, body)) == ANTHROPIC.usage(messages(), body)

    prompt = given + read + stored
    asked = {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": stored},
        "completion_tokens_details": {"reasoning_tokens": min(thought, made)},
    }
    body = orjson.dumps(COMPLETION | {"usage": asked})
    assert ANTHROPIC.usage(messages(), DOWN.answer(messages(), 200, body)) == OPENAI.usage(chat(), body)


def test_cached_tokens_that_stand_beside_the_prompts_are_counted_once() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 8}}
    body = DOWN.answer(messages(), 200, orjson.dumps(COMPLETION | {"usage": usage}))
    assert ANTHROPIC.usage(messages(), body) == Usage(input_tokens=13, output_tokens=1, cache_read_tokens=8)


def test_an_answer_counts_as_much_in_either_shape() -> None:
    body = orjson.dumps(MESSAGE)
    assert OPENAI.counted(chat(), UP.answer(chat(), 200, body)) == ANTHROPIC.counted(messages(), body)


def _tried(body: bytes, upwards: bool, status: int = 200) -> bool:
    """Whether there is an answer; if so, the agent's SDK knows its types."""
    try:
        answer = UP.answer(chat(), status, body) if upwards else DOWN.answer(messages(), status, body)
    except ValueError:
        assert status < 300
        return False
    if status < 300:
        (judge_completion if upwards else judge_message)(answer)
    else:
        assert isinstance(orjson.loads(answer)["error"]["message"], str)
    return True


@pytest.mark.parametrize("upwards", [True, False])
def test_a_strange_value_in_any_place_is_no_answer_or_makes_no_difference_to_types(upwards: bool) -> None:
    outcomes = [_tried(written(said), upwards) for said in everywhere(MESSAGE if upwards else COMPLETION)]
    assert 100 < outcomes.count(False) < len(outcomes)


ERROR = {"type": "error", "error": {"type": "api_error", "message": "no", "code": 5}, "message": "n", "detail": "d"}


@pytest.mark.parametrize("upwards", [True, False])
def test_a_strange_value_in_any_place_of_an_error_is_still_an_error(upwards: bool) -> None:
    assert all(_tried(written(said), upwards, 500) for said in everywhere(ERROR))


@settings(max_examples=150)
@given(st.data(), st.booleans(), st.sampled_from([200, 200, 201, 400, 500]))
def test_no_answer_makes_a_translation_raise_anything_but_value_error(
    data: st.DataObject, upwards: bool, status: int
) -> None:
    said: Any = MESSAGE if upwards else COMPLETION
    for _ in range(data.draw(st.integers(1, 3))):
        said = somewhere(said, data.draw)
    if not data.draw(st.integers(0, 9)):
        said = data.draw(strange)
    body = written(said)
    if not data.draw(st.integers(0, 9)):
        body = body[: data.draw(st.integers(0, len(body)))]
    _tried(body, upwards, status)
