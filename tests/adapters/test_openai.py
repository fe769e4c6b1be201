"""`adapters.openai`: calls are read as OpenAI's servers would, and refusals reach its SDK as what they are."""

import json
import time
from typing import Any

import openai
import orjson
import pytest
from openai.types import chat, completion_create_params, embedding_create_params, responses

from adapters.base import AgentCall, Refusal, Usage
from adapters.body import check_spelling
from adapters.errors import MalformedCall
from adapters.openai import MEMBERS, OpenAI
from adapters.registry import OPENAI, endpoint
from tests.adapters.stock import EVENTS, JSON, Answers

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES = "/v1/embeddings", "/v1/responses"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "m", "prompt": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
    RESPONSES: {"model": "m", "input": "hi"},
}
ABSENT = object()


def read(path: str, changes: dict[str, Any]) -> AgentCall:
    body = {key: value for key, value in (GOOD[path] | changes).items() if value is not ABSENT}
    return OpenAI().read(endpoint(OPENAI, "POST", path)[0], orjson.dumps(body), "")


WRONG = [
    (path, field, value)
    for path in GOOD
    for field, values in {
        "model": [ABSENT, None, "", 1, True, [], {}, ["m"], "a\nb", "a\x00b", "m" * 257, "\u202em"],
        "stream": [0, 1, "true", "", [], {}],
    }.items()
    for value in values
] + [
    (path, field, value)
    for path, field, values in [
        (CHAT, "messages", [ABSENT, None, "hi", 1, True, {}]),
        (COMPLETIONS, "prompt", [ABSENT, None, 1, True, {}]),
        (EMBEDDINGS, "input", [ABSENT, None, 1, True, {}]),
        (RESPONSES, "input", [1, True, {}]),
        *((path, "stream_options", ["yes", 1, True, [], [{"include_usage": True}]]) for path in GOOD),
    ]
    for value in values
]


@pytest.mark.parametrize(("path", "field", "value"), WRONG)
def test_a_member_of_the_wrong_type_is_refused_by_its_name(path: str, field: str, value: Any) -> None:
    with pytest.raises(MalformedCall, match=f"^`{field}` must be"):
        read(path, {field: value})


@pytest.mark.parametrize("value", ["true", 1, [], {}])
def test_an_include_usage_of_the_wrong_type_is_refused_rather_than_overwritten(value: Any) -> None:
    with pytest.raises(MalformedCall, match=r"^`stream_options.include_usage` must be"):
        read(CHAT, {"stream": True, "stream_options": {"include_usage": value}})


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("key", ["Model", "MESSAGES", "Prompt", "Input", "Stream", "Stream_Options", "toolS"])
def test_a_member_spelled_in_another_letter_case_is_refused(path: str, key: str) -> None:
    with pytest.raises(MalformedCall, match=f"^The key '{key}' must be spelled '{key.lower()}'"):
        read(path, {key: "x"})


@pytest.mark.parametrize(
    "known",
    [
        chat.completion_create_params.CompletionCreateParamsStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
        embedding_create_params.EmbeddingCreateParams,
        responses.response_create_params.ResponseCreateParamsStreaming,
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
        (CHAT, {}, "chat", False),
        (CHAT, {"messages": []}, "chat", False),
        (CHAT, {"stream": None}, "chat", False),
        (CHAT, {"stream": False}, "chat", False),
        (CHAT, {"stream": True}, "chat", True),
        (CHAT, {"model": "Qwen/Qwen3-0.6B"}, "chat", False),
        (CHAT, {"model": "ft:gpt-4o:org::id"}, "chat", False),
        (CHAT, {"model": "mod\u00e8le fran\u00e7ais"}, "chat", False),
        (CHAT, {"stream": True, "stream_options": None}, "chat", True),
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}}, "chat", True),
        (COMPLETIONS, {"prompt": ["a", "b"], "stream": True}, "completions", True),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, "completions", False),
        (COMPLETIONS, {"prompt": ""}, "completions", False),
        (EMBEDDINGS, {"input": ["a"]}, "embeddings", None),
        (EMBEDDINGS, {"input": [[1, 2]]}, "embeddings", None),
        (RESPONSES, {"input": [{"role": "user", "content": "hi"}], "stream": True}, "responses", True),
        (RESPONSES, {"input": ABSENT, "previous_response_id": "resp_1"}, "responses", False),
        (RESPONSES, {"input": None}, "responses", False),
    ],
)
def test_a_good_call_is_read(path: str, changes: dict[str, Any], operation: str, stream: bool | None) -> None:
    call = read(path, changes)
    assert (call.kind, call.protocol, call.operation, call.stream) == ("llm", "openai", operation, stream)
    assert call.target == changes.get("model", "m")
    assert call.arguments == json.loads(call.body)


def test_no_text_about_a_call_shows_what_it_says() -> None:
    assert "hunter2" not in repr(read(CHAT, {"messages": [{"role": "user", "content": "my password is hunter2"}]}))


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"", "EOF"), (b"[]", "JSON object"), (b'{"model":"a","model":"b"}', "twice"), (b'{"model":NaN}', "expected")],
)
def test_what_is_not_a_json_object_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(MalformedCall, match=reason):
        OpenAI().read(endpoint(OPENAI, "POST", CHAT)[0], body, "")


@pytest.mark.parametrize("model", [None, "m"])
@pytest.mark.parametrize("path", GOOD)
def test_a_call_that_needs_no_change_goes_on_as_the_very_bytes_that_came(path: str, model: str | None) -> None:
    call = read(path, {})
    assert OpenAI().onward(call, model) is call.body


def onward(body: bytes, model: str | None = None, path: str = CHAT) -> bytes:
    return OpenAI().onward(OpenAI().read(endpoint(OPENAI, "POST", path)[0], body, ""), model)


@pytest.mark.parametrize(
    ("body", "model", "sent"),
    [
        (b'{ "model" : "m" ,"messages":[ ]}', "l", b'{ "model" : "l" ,"messages":[ ]}'),
        (b'{"messages":[{"model":"m"}],\n"mod\\u0065l":"m"}', "l", b'{"messages":[{"model":"m"}],\n"mod\\u0065l":"l"}'),
        (b'{"model":"m","messages":[]}', 'a"b\\', b'{"model":"a\\"b\\\\","messages":[]}'),
        (b'{"model":"m","messages":[1e2,1E400000,"\\/"]}', "l", None),
        (
            b'{"model":"m","messages":[],"stream":true}',
            None,
            b'{"stream_options":{"include_usage":true},"model":"m","messages":[],"stream":true}',
        ),
        (
            b'{"model":"m","messages":[],"stream":true,"stream_options":null}',
            None,
            b'{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"model":"m","messages":[],"stream":true,"stream_options":{ }}',
            None,
            b'{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true }}',
        ),
        (
            b'{"model":"m","messages":[],"stream":true,"stream_options":{"x":1.50, "include_usage": false, "y":"\\/"}}',
            "l",
            b'{"model":"l","messages":[],"stream":true,"stream_options":{"x":1.50, "include_usage": true, "y":"\\/"}}',
        ),
        (
            b'{"model":"m","messages":[],"stream":true,"stream_options":{"n":99999999999999999999999}}',
            None,
            b'{"model":"m","messages":[],"stream":true,"stream_options":'
            b'{"include_usage":true,"n":99999999999999999999999}}',
        ),
    ],
)
def test_only_what_must_change_changes_on_the_way_to_a_target(
    body: bytes, model: str | None, sent: bytes | None
) -> None:
    assert onward(body, model) == (sent if sent is not None else body.replace(b'"m"', b'"l"', 1))


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"stream": False, "stream_options": {"include_usage": False}}),
        (RESPONSES, {"stream": True}),
        (EMBEDDINGS, {"stream": True}),
    ],
)
def test_token_counts_are_asked_for_only_where_they_would_not_come_by_themselves(
    path: str, changes: dict[str, Any]
) -> None:
    call = read(path, changes)
    assert call.wants_usage
    assert OpenAI().onward(call, None) is call.body


REFUSED = [
    (400, openai.BadRequestError, "invalid_request_error"),
    (401, openai.AuthenticationError, "authentication_error"),
    (403, openai.PermissionDeniedError, "permission_error"),
    (404, openai.NotFoundError, "invalid_request_error"),
    (405, openai.APIStatusError, "invalid_request_error"),
    (408, openai.APIStatusError, "invalid_request_error"),
    (413, openai.APIStatusError, "invalid_request_error"),
    (429, openai.RateLimitError, "rate_limit_error"),
    (500, openai.InternalServerError, "server_error"),
    (502, openai.InternalServerError, "server_error"),
    (503, openai.InternalServerError, "server_error"),
    (504, openai.InternalServerError, "server_error"),
]


def ask(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="m", messages=[])


@pytest.mark.parametrize(("status", "raised", "kind"), REFUSED)
def test_a_refusal_is_raised_by_the_sdk_with_its_code_and_is_not_repeated(
    status: int, raised: type[openai.APIStatusError], kind: str
) -> None:
    headers, body = OpenAI().refusal(Refusal(status, "the_code", "Why, and what next.", "01CALL"))
    answers = Answers(status, headers, body)
    with pytest.raises(raised) as caught:
        ask(answers.openai())
    assert (caught.value.code, caught.value.type, caught.value.param) == ("the_code", kind, None)
    assert "Why, and what next." in str(caught.value)
    assert caught.value.request_id == "01CALL"
    assert len(answers.requests) == 1
    assert json.loads(body) == {
        "error": {"message": "Why, and what next.", "type": kind, "param": None, "code": "the_code"}
    }


DETAILS = {"node": "acme/bot", "limit_usd": 5.0, "resets_at": "2026-11-22T00:00:00Z"}
POSING = {"message": "x", "type": "x", "param": "x", "code": "x"}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("budget_exhausted", "insufficient_quota"),
        ("budget_contended", "rate_limit_error"),
        ("rate_limited", "rate_limit_error"),
    ],
)
def test_the_details_of_a_refusal_stand_beside_its_message_and_never_in_its_place(code: str, kind: str) -> None:
    refusal = Refusal(429, code, "Why, and what next.", "01CALL", details=DETAILS | POSING)
    error = {"message": "Why, and what next.", "type": kind, "param": None, "code": code}
    headers, body = OpenAI().refusal(refusal)
    assert json.loads(body) == {"error": error | DETAILS}
    with pytest.raises(openai.RateLimitError, match="Why, and what next") as caught:
        ask(Answers(429, headers, body).openai())
    assert (caught.value.code, caught.value.type) == (code, kind)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["resets_at"] == DETAILS["resets_at"]
    assert json.loads(OpenAI().broken_stream(refusal).removeprefix(b"data: ")) == {"error": error | DETAILS}


def test_a_refusal_that_may_pass_later_is_repeated_by_the_sdk() -> None:
    headers, body = OpenAI().refusal(Refusal(503, "no_healthy_target", "Later.", "01CALL", retry=True))
    answers = Answers(503, [*headers, (b"retry-after-ms", b"1")], body)
    with pytest.raises(openai.InternalServerError):
        ask(answers.openai())
    assert len(answers.requests) == 2


def test_the_headers_of_one_refusal_do_not_reach_the_next() -> None:
    for retry in (True, False):
        headers, _ = OpenAI().refusal(Refusal(403, "c", "m", "01", retry=retry))
        before = list(headers)
        headers += [(b"retry-after", b"5")]
        assert OpenAI().refusal(Refusal(403, "c", "m", "01", retry=retry))[0] == before


BROKEN = OpenAI().broken_stream(Refusal(502, "target_failed", "The target broke off.", "01CALL"))


def test_a_broken_chat_stream_raises_in_the_sdk_after_what_had_come() -> None:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": None}
    begun = b"data: " + orjson.dumps(chunk | {"choices": [choice]}) + b"\n\n"
    stream = Answers(200, EVENTS, begun + BROKEN).openai().chat.completions.create(model="m", messages=[], stream=True)
    assert next(stream).choices[0].delta.content == "hi"
    with pytest.raises(openai.APIError, match="The target broke off") as caught:
        next(stream)
    assert caught.value.code == "target_failed"


def test_a_broken_response_stream_raises_in_the_sdk() -> None:
    begun = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"hi"}\n\n'
    stream = Answers(200, EVENTS, begun + BROKEN).openai().responses.create(model="m", input="hi", stream=True)
    assert next(stream).type == "response.output_text.delta"
    with pytest.raises(openai.APIError, match="The target broke off"):
        next(stream)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_our_own_broken_stream_is_recognised_by_a_gateway_in_front_of_us(path: str) -> None:
    meter = OpenAI().meter(read(path, {"stream": True}))
    assert meter.feed(BROKEN) == BROKEN
    assert meter.failed


CALL = read(CHAT, {})
USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"choices": [], "usage": USAGE}, Usage(9, 12)),
        ({"usage": {"prompt_tokens": 8, "total_tokens": 8}, "data": []}, Usage(8, 0)),
        (
            {
                "output": [],
                "usage": {
                    "input_tokens": 30,
                    "input_tokens_details": {"cached_tokens": 20, "cache_write_tokens_details": {"deep": {}}},
                    "output_tokens": 10,
                    "output_tokens_details": {"reasoning_tokens": 4},
                },
            },
            Usage(30, 10, 20, 0, 4),
        ),
        ({"usage": {"prompt_tokens": "9", "completion_tokens": -1, "prompt_tokens_details": []}}, Usage(0, 0)),
        ({"usage": {"prompt_tokens": True, "completion_tokens": 1.5}}, Usage(0, 0)),
        ({"usage": {}}, None),
        ({"usage": None}, None),
        ({"usage": [USAGE]}, None),
        ({"choices": [{"usage": USAGE}]}, None),
        ([USAGE], None),
        ("text", None),
    ],
)
def test_usage_is_read_from_a_whole_answer(answer: Any, usage: Usage | None) -> None:
    assert OpenAI().usage(CALL, orjson.dumps(answer)) == usage


def test_usage_is_read_from_the_tail_of_a_long_answer() -> None:
    vectors = [{"object": "embedding", "index": i, "embedding": [0.0123456789] * 1024} for i in range(100)]
    for answer in (
        orjson.dumps({"object": "list", "data": vectors, "model": "m", "usage": {"prompt_tokens": 800}}),
        json.dumps(
            {"data": vectors, "usage": {"prompt_tokens": 800, "prompt_tokens_details": {"a": 1}}, "x": [{}]}
        ).encode(),
        json.dumps({"data": vectors, "usage": {"prompt_tokens": 800}, "m": {"n": [1]}}, indent=2).encode() + b"\n",
    ):
        assert len(answer) > 1024 * 1024
        assert OpenAI().usage(CALL, answer) == Usage(800, 0)
        assert OpenAI().usage(CALL, answer[-4096:]) == Usage(800, 0)


@pytest.mark.parametrize(
    "last",
    [
        {"content": '"usage":{"prompt_tokens":1}'},
        {"content": 'say "usage'},
        {'say "usage': {"prompt_tokens": 1}},
        {"nested": {"usage": {"prompt_tokens": 1}}},
        [{"usage": {"prompt_tokens": 1}}],
        {"usage": {"usage": {"prompt_tokens": 1}}},
        '}"usage":{"prompt_tokens":1}}',
    ],
)
def test_nothing_inside_an_answer_passes_for_its_usage(last: Any) -> None:
    long = {"data": "x" * 5000}
    for answer in (
        orjson.dumps(long | {"usage": USAGE, "last": last}),
        orjson.dumps(long | {"last": last, "usage": USAGE}),
    ):
        assert OpenAI().usage(CALL, answer) == Usage(9, 12)
        assert OpenAI().usage(CALL, answer[-4096:]) == Usage(9, 12)
    without = orjson.dumps(long | {"last": last})
    assert OpenAI().usage(CALL, without) is None
    assert OpenAI().usage(CALL, without[-4096:]) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"[" + b' "usage":{},' * 100_000,
        b"{" + b" " * 5000 + b' "usage":{},' * 170 + b'"a' * 1000,
        b"{" + b" " * 5000 + b' "usage":{},' * 170 + b'\\"' * 1000,
        b'[ "usage":{}' + b"a" * 1_000_000,
        b'"usage":' + b"{" * 1_000_000,
        b'"usage":' + b"{" * 4000 + b"}" * 4000,
        b'x "usage":' + b" " * 4000 + b"{}}",
        b'x "usage"' + b'"' * 4000 + b"}",
        b'x "usage"' + b'\\"' * 2000 + b'"}',
    ],
    ids=["many counts", "quotes", "escapes", "no brackets", "open", "closed", "spaces", "empty strings", "one string"],
)
def test_counts_are_looked_for_in_a_time_that_no_answer_can_stretch(answer: bytes) -> None:
    began = time.process_time()
    assert OpenAI().usage(CALL, answer) is None
    assert OpenAI().usage(CALL, answer[-4096:]) is None
    assert time.process_time() - began < 0.5


def test_wherever_the_tail_of_an_answer_begins_nothing_passes_for_its_usage() -> None:
    """The last two members only look like one, and do so most where a backslash is cut off."""
    last = {'say "usage': {"prompt_tokens": 1}, "x": ['"', '"usage":{}']}
    answer = json.dumps({"usage": USAGE} | last).encode()
    for start in range(len(answer)):
        usage = Usage(9, 12) if start < answer.index(b'"usage"') else None
        assert OpenAI().usage(CALL, answer[start:]) == usage


def test_of_two_usages_in_a_long_answer_the_last_counts_as_for_every_reader() -> None:
    answer = b'{"usage":{"prompt_tokens":1},"x":"' + b"x" * 3000 + b'","usage" : {"prompt_tokens":2},"y":[{}]}'
    for padding in (b"", b" " * 2000):
        assert OpenAI().usage(CALL, padding + answer) == Usage(2, 0)


def test_a_count_beyond_all_reason_stays_one_that_can_be_recorded() -> None:
    answer = {"usage": {"prompt_tokens": 2**64 - 1, "completion_tokens": 2**53 + 1}}
    assert OpenAI().usage(CALL, orjson.dumps(answer)) == Usage(10**9, 10**9)


def test_a_member_whose_name_ends_like_usage_is_not_usage() -> None:
    answer = orjson.dumps({"data": "x" * 5000, 'say "usage': {"prompt_tokens": 1}})
    assert OpenAI().usage(CALL, answer) is None
    assert OpenAI().usage(CALL, answer[-4096:]) is None


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"<html>", b'x"usage":{bad}}', b'x"usage":{"a":}}', b'"usage":{', b'x"usage":' + b"{" * 4000, b"\xff"],
)
def test_an_answer_that_cannot_be_read_has_no_usage(answer: bytes) -> None:
    assert OpenAI().usage(CALL, answer) is None


def tokens(said: str) -> int:
    return -(-len(said.encode()) // 4)


def chosen(*messages: Any) -> dict[str, Any]:
    return {"choices": [{"index": i, "message": message} for i, message in enumerate(messages)]}


SAID = 'Caf\u00e9 "\U0001f600"\n'
TOLD_BY_TOOL = {"type": "function", "function": {"name": "f", "arguments": SAID}}


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        (CHAT, chosen({"role": "assistant", "content": SAID}), SAID),
        (CHAT, chosen({"content": SAID}, {"content": SAID}), SAID * 2),
        (CHAT, chosen({"content": None, "tool_calls": [TOLD_BY_TOOL]}), SAID),
        (CHAT, chosen({"content": "", "function_call": {"arguments": SAID}}), SAID),
        (CHAT, chosen({"content": "a", "reasoning_content": "bcd", "refusal": "e"}), "abcde"),
        (CHAT, chosen({"reasoning": SAID, "reasoning_details": [{"type": "reasoning.text", "text": SAID}]}), SAID),
        (CHAT, chosen({"content": [{"type": "text", "text": SAID}]}), SAID),
        (CHAT, chosen({"content": "a", "annotations": [{"url_citation": {"content": "b" * 99}}]}), "a"),
        (CHAT, chosen({"audio": {"data": "c291bmQ=" * 99, "transcript": SAID}}), SAID),
        (CHAT, {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}}]}, "a"),
        (CHAT, {"choices": [], "usage": {}}, ""),
        (CHAT, {"choices": "many"}, ""),
        (CHAT, [], ""),
        (COMPLETIONS, {"choices": [{"text": SAID, "index": 0}, {"text": "b", "index": 1}]}, SAID + "b"),
        (RESPONSES, {"output": [{"type": "message", "content": [{"type": "output_text", "text": SAID}]}]}, SAID),
        (RESPONSES, {"output": [{"type": "function_call", "name": "f", "arguments": SAID}]}, SAID),
        (RESPONSES, {"output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": SAID}]}]}, SAID),
        (RESPONSES, {"output": [{"type": "file_search_call", "results": [{"text": "b" * 99}]}]}, ""),
        (RESPONSES, {"output": [{"type": "code_interpreter_call", "code": SAID, "outputs": [{"logs": "x"}]}]}, SAID),
        (EMBEDDINGS, {"data": [{"embedding": "QUJD" * 99}]}, ""),
    ],
)
def test_an_answer_that_came_without_its_tokens_is_counted_by_its_texts(path: str, answer: Any, said: str) -> None:
    call = read(path, {})
    assert OpenAI().counted(call, orjson.dumps(answer)) == tokens(said)
    assert OpenAI().counted(call, json.dumps(answer, indent=1).encode()) == tokens(said)


def test_a_repeated_prompt_is_not_counted_as_an_answer() -> None:
    call = read(COMPLETIONS, {"prompt": "Once upon a time" * 99, "echo": True})
    answer = orjson.dumps({"choices": [{"text": "Once upon a time" * 99 + " there was a king" * 99}]})
    assert 350 <= OpenAI().counted(call, answer) <= tokens(" there was a king" * 99)


@pytest.mark.parametrize("answer", [b"", b"{", b"<html>", b"[" * 100_000, b'{"choices":' * 900])
def test_an_answer_that_cannot_be_read_has_no_texts(answer: bytes) -> None:
    assert OpenAI().counted(CALL, answer) == 0


def test_texts_are_found_however_deep_they_stand() -> None:
    answer = b'{"choices":' + b'[{"message":' * 500 + b'{"content":"hello"}' + b"}]" * 500 + b"}"
    assert OpenAI().counted(CALL, answer) == 2


def test_the_sdk_lists_and_retrieves_the_catalogue() -> None:
    names = ["gpt-4o-mini", "ft:gpt-4o:org::id", "Qwen/Qwen3-0.6B"]
    listed = OpenAI().catalogue(names, "")
    assert listed is not None
    assert [model.id for model in Answers(200, JSON, listed).openai().models.list()] == names
    for name in names:
        card = OpenAI().catalogue(names, name)
        assert card is not None
        assert Answers(200, JSON, card).openai().models.retrieve(name).id == name
    assert OpenAI().catalogue(names, "gpt-5") is None
    empty = OpenAI().catalogue([], "")
    assert empty is not None
    assert list(Answers(200, JSON, empty).openai().models.list()) == []
