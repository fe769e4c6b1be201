"""`adapters.parallax`: what targets hide behind a success is found, and a success is never taken for a failure."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import openai
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.parallax import EVENTS, MOST_HELD, SOUND, UNDECIDED, Failure, Sniffer, Verdict, hidden
from adapters.sse import events
from deploy.demo.anthropic_like import messages
from deploy.demo.openai_like import chat, completions, embeddings, responses
from deploy.demo.parallax_like import NODE_FAILS, NODE_LOST, NODE_REFUSES, answer, chunks, envelope
from deploy.demo.standin import Document, Events, Json, Reply
from tests.adapters.stock import EVENTS as EVENT_STREAM
from tests.adapters.stock import JSON as JSON_ANSWER
from tests.adapters.stock import Answers

JSON = b"application/json"


def verdict(*pieces: bytes, protocol: str = "openai", content_type: bytes = EVENTS) -> Verdict:
    """Over a stream that came in these pieces and ended."""
    sniffer = Sniffer(protocol, 200, content_type)
    for piece in pieces:
        said = sniffer.feed(piece)
        if said is not UNDECIDED:
            assert b"".join(pieces).startswith(sniffer.held)
            assert sniffer.end() is said, "a verdict stays"
            return said
    return sniffer.end()


def failure(*pieces: bytes, **options: Any) -> Failure:
    found = verdict(*pieces, **options)
    assert isinstance(found, Failure)
    return found


def byte_by_byte(stream: bytes) -> Iterable[bytes]:
    return (stream[at : at + 1] for at in range(len(stream)))


def event(document: object, name: str = "", end: bytes = b"\n") -> bytes:
    head = b"event: " + name.encode() + end if name else b""
    return head + b"data: " + orjson.dumps(document) + end + end


ASKED: Document = {
    "model": "m",
    "messages": [{"role": "user", "content": 'Say {"error": {"message": "no"}} and internal server error'}],
    "max_tokens": 50,
    "input": 'data: {"error": 1}',
    "prompt": '{"__parallax_http_response__":true}',
}
SCHEMA: Document = {"properties": {"error": {"type": "string"}}}
TOOL: Document = {"function": {"name": "error", "parameters": SCHEMA}, "name": "error", "input_schema": SCHEMA}
WITH_TOOL: Document = {**ASKED, "messages": [{"role": "user", "content": "use the tool"}], "tools": [TOOL]}


def streamed(answers: Callable[[Document], Reply], **more: Any) -> bytes:
    reply = answers({**ASKED, "stream": True, **more})
    assert isinstance(reply, Events)
    return b"".join(reply.frames)


def whole(answers: Callable[[Document], Reply], **more: Any) -> bytes:
    reply = answers({**ASKED, **more})
    assert isinstance(reply, Json)
    return orjson.dumps(reply.document)


USAGE = {"include_usage": True}
CHUNK: Document = {"id": "c", "object": "chat.completion.chunk", "choices": []}
ROLE: Document = {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}

SOUND_STREAMS: dict[str, tuple[str, bytes]] = {
    "OpenAI chat": ("openai", streamed(chat)),
    "OpenAI chat with usage": ("openai", streamed(chat, stream_options=USAGE)),
    "OpenAI chat that calls a tool": ("openai", streamed(chat, **WITH_TOOL)),
    "OpenAI completions": ("openai", streamed(completions)),
    "OpenAI responses": ("openai", streamed(responses)),
    "Parallax": ("openai", b"".join(chunks(ASKED))),
    "Parallax with usage": ("openai", b"".join(chunks({**ASKED, "stream_options": USAGE}))),
    "Parallax that calls a tool": ("openai", b"".join(chunks(WITH_TOOL))),
    "vLLM with its usage first": ("openai", event({**CHUNK, "usage": {"prompt_tokens": 9}}) + event(ROLE)),
    "Azure with what its filter found first": ("openai", event({"choices": [], "prompt_filter_results": []})),
    "a role alone first": ("openai", event(ROLE)),
    "an error that is none": ("openai", event({**ROLE, "error": None})),
    "an error that is none, written with spaces": ("openai", b'data: {"error" : null, "choices": []}\n\n'),
    "an empty error": ("openai", event({**ROLE, "error": {}})),
    "the word error as a name within": ("openai", event({**ROLE, "metadata": {"error": "x", "type": "error"}})),
    "heartbeats first": ("openai", b": ping\n\n:\n\n: OPENROUTER PROCESSING\n\n" + event(ROLE)),
    "empty data first": ("openai", b"data:\n\nretry: 3000\n\n" + event(ROLE)),
    "an id and a comment in the event": ("openai", b": x\nid: 7\nretry: 1\n" + event(ROLE)),
    "blank lines first": ("openai", b"\n\n\r\n" + event(ROLE)),
    "no space behind the colon": ("openai", b'data:{"choices":[]}\n\n'),
    "data in two lines": ("openai", b'data: {"choices":\ndata: []}\n\n'),
    "carriage returns and line feeds": ("openai", event(ROLE, end=b"\r\n") + b"data: [DONE]\r\n\r\n"),
    "carriage returns alone": ("openai", event(ROLE, end=b"\r") + event(ROLE, end=b"\r")),
    "a byte order mark": ("openai", b"\xef\xbb\xbf" + event(ROLE)),
    "a byte order mark before a heartbeat": ("openai", b"\xef\xbb\xbf: ping\n\n" + event(ROLE)),
    "no blank line at its end": ("openai", event(ROLE).rstrip(b"\n")),
    "a number that JSON does not have": ("openai", b'data: {"choices":[{"logprobs":NaN,"x":"error"}]}\n\n'),
    "Anthropic": ("anthropic", streamed(messages)),
    "Anthropic that calls a tool": ("anthropic", streamed(messages, **WITH_TOOL)),
    "Anthropic with a ping first": ("anthropic", event({"type": "ping"}, "ping") + streamed(messages)),
}

VLLM_ERROR: Document = {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}
OVERLOADED: Document = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
RESPONSES_ERROR: Document = {"type": "error", "code": "server_error", "message": "sorry", "param": None}
FAILED: Document = {"response": {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow"}}}

FAILED_STREAMS: dict[str, tuple[str, bytes, Failure]] = {
    "a node's refusal, bare": (
        "openai",
        NODE_REFUSES,
        Failure(400, "status", orjson.loads(NODE_REFUSES)["error"]["message"], NODE_REFUSES),
    ),
    "a node's failure, bare": (
        "openai",
        NODE_FAILS,
        Failure(500, "stream_cut", "EngineCore encountered an issue.", NODE_FAILS),
    ),
    "an unreachable node, in an envelope": (
        "openai",
        envelope(502, NODE_LOST),
        Failure(502, "stream_cut", "Internal server error", NODE_LOST),
    ),
    "a node's refusal, in an envelope": (
        "openai",
        envelope(400, NODE_REFUSES),
        Failure(400, "status", orjson.loads(NODE_REFUSES)["error"]["message"], NODE_REFUSES),
    ),
    "a full cluster, in an envelope": (
        "openai",
        envelope(429, b"full"),
        Failure(429, "status", "a JSON text in place of a stream"),
    ),
    "an envelope without a status": (
        "openai",
        b'{"__parallax_http_response__":true,"body_base64":"???"}',
        Failure(502, "stream_cut", "a JSON text in place of a stream"),
    ),
    "an envelope that tells of a success": (
        "openai",
        envelope(200, b"{}"),
        Failure(502, "stream_cut", "a JSON text in place of a stream"),
    ),
    "an envelope behind a heartbeat": (
        "openai",
        b": ping\n\n" + envelope(502, NODE_LOST),
        Failure(502, "stream_cut", "Internal server error", NODE_LOST),
    ),
    "an error behind a byte order mark and blank lines": (
        "openai",
        b"\xef\xbb\xbf \r\n\n" + NODE_FAILS + b"\n",
        Failure(500, "stream_cut", "EngineCore encountered an issue.", NODE_FAILS),
    ),
    "an error as a string": ("openai", b'{"error":"no node"}', Failure(502, "stream_cut", "no node")),
    "an error as older servers wrote it": (
        "openai",
        orjson.dumps({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}),
        Failure(400, "status", "too long"),
    ),
    "an error in an array": (
        "openai",
        b'[{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED"}}]',
        Failure(429, "status", "quota"),
    ),
    "a detail": ("openai", b'{"detail":"Not Found"}', Failure(502, "stream_cut", "Not Found")),
    "a whole answer in place of a stream": (
        "openai",
        whole(chat),
        Failure(502, "stream_cut", "a JSON text in place of a stream"),
    ),
    "the bytes of an exception": (
        "openai",
        b"internal server error",
        Failure(500, "stream_cut", "Internal server error"),
    ),
    "the bytes of an exception behind a heartbeat": (
        "openai",
        b": ping\n\ninternal server error",
        Failure(500, "stream_cut", "Internal server error"),
    ),
    "nothing": ("openai", b"", Failure(502, "stream_cut", "the stream ended before it began")),
    "blank lines": ("openai", b"\r\n\n", Failure(502, "stream_cut", "the stream ended before it began")),
    "a heartbeat and nothing else": (
        "openai",
        b": ping\n\n",
        Failure(502, "stream_cut", "the stream ended before it began"),
    ),
    "half an event": ("openai", b'data: {"choices":[{"del', Failure(502, "stream_cut", "the stream has no event")),
    "half a JSON text": (
        "openai",
        b'{"error":{"mess',
        Failure(502, "stream_cut", "a torn JSON text in place of a stream"),
    ),
    "an end without an answer": (
        "openai",
        b"data: [DONE]\n\n",
        Failure(502, "protocol", "the stream ended without an answer"),
    ),
    "a first event that is no JSON": (
        "openai",
        b"data: sorry\n\n",
        Failure(502, "stream_cut", "the first event is not a JSON object"),
    ),
    "an error as the first event": (
        "openai",
        event({"error": VLLM_ERROR}),
        Failure(400, "status", "too long", orjson.dumps({"error": VLLM_ERROR})),
    ),
    "an error as the first event, whole but for its blank line": (
        "openai",
        event({"error": VLLM_ERROR}).rstrip(b"\n"),
        Failure(400, "status", "too long", orjson.dumps({"error": VLLM_ERROR})),
    ),
    "an error event of a responses stream": (
        "openai",
        event(RESPONSES_ERROR, "error"),
        Failure(500, "stream_cut", "sorry"),
    ),
    "a response that failed": (
        "openai",
        event({"type": "response.failed", **FAILED}, "response.failed"),
        Failure(429, "status", "slow"),
    ),
    "an error event in words": ("openai", b"event: error\ndata: sorry\n\n", Failure(502, "stream_cut", "sorry")),
    "Anthropic's end without an answer": (
        "anthropic",
        event({"type": "message_stop"}, "message_stop"),
        Failure(502, "protocol", "the stream ended without an answer"),
    ),
    "Anthropic's events without the names by which clients know them": (
        "anthropic",
        event({"type": "message_start", "message": {}}),
        Failure(502, "protocol", "the first event has no name, without which clients do not see it"),
    ),
    "Anthropic, overloaded": (
        "anthropic",
        event(OVERLOADED, "error"),
        Failure(529, "stream_cut", "Overloaded", orjson.dumps(OVERLOADED)),
    ),
    "Anthropic, overloaded after a ping": (
        "anthropic",
        event({"type": "ping"}, "ping", b"\r\n") + event(OVERLOADED, "error", b"\r\n"),
        Failure(529, "stream_cut", "Overloaded", orjson.dumps(OVERLOADED)),
    ),
    "Anthropic, our key": (
        "anthropic",
        event({"type": "error", "error": {"type": "authentication_error", "message": "no"}}, "error"),
        Failure(
            401,
            "status",
            "no",
            orjson.dumps({"type": "error", "error": {"type": "authentication_error", "message": "no"}}),
        ),
    ),
}


@pytest.mark.parametrize("name", SOUND_STREAMS)
def test_a_sound_stream_is_sound_in_one_piece_and_in_bytes(name: str) -> None:
    protocol, stream = SOUND_STREAMS[name]
    assert verdict(stream, protocol=protocol) is SOUND
    assert verdict(*byte_by_byte(stream), protocol=protocol) is SOUND


@pytest.mark.parametrize("name", FAILED_STREAMS)
def test_a_hidden_failure_is_found_in_one_piece_and_in_bytes(name: str) -> None:
    protocol, stream, expected = FAILED_STREAMS[name]
    assert verdict(stream, protocol=protocol) == expected
    assert verdict(*byte_by_byte(stream), protocol=protocol) == expected


@pytest.mark.parametrize("name", [name for name, (_, stream, _) in FAILED_STREAMS.items() if b":" not in stream[:7]])
def test_what_is_no_stream_is_a_failure_under_another_content_type_too(name: str) -> None:
    protocol, stream, expected = FAILED_STREAMS[name]
    found = failure(stream, protocol=protocol, content_type=JSON)
    assert found.kind in ("status", "protocol")
    assert (found.kind == "status") == (expected.kind == "status")
    assert found == failure(*byte_by_byte(stream), protocol=protocol, content_type=JSON)


def test_a_stream_under_another_content_type_is_a_failure_at_its_first_byte() -> None:
    assert Sniffer("openai", 200, b"text/plain").feed(b"d") == failure(b"data: {}\n\n", content_type=b"text/plain")
    assert Sniffer("openai", 200, b"").end() == failure(content_type=b"text/plain")


def test_an_answer_that_does_not_say_it_succeeded_hides_nothing() -> None:
    for status in (199, 301, 400, 503):
        sniffer = Sniffer("openai", status, JSON)
        assert sniffer.feed(NODE_REFUSES) is SOUND
        assert sniffer.held == NODE_REFUSES
        assert Sniffer("openai", status, JSON).end() is SOUND
        assert hidden("chat", status, JSON, NODE_REFUSES) is None


@pytest.mark.parametrize(
    "name", [name for name, (_, stream) in SOUND_STREAMS.items() if stream.endswith((b"\n", b"\r"))]
)
def test_the_first_whole_event_that_is_no_sign_of_life_decides(name: str) -> None:
    protocol, stream = SOUND_STREAMS[name]
    sniffer = Sniffer(protocol, 200, EVENTS)
    assert SOUND in (sniffer.feed(byte) for byte in byte_by_byte(stream))
    said = [data for _, _, data in events(sniffer.held)]
    assert said[-1].startswith(b"{")
    assert not [data for data in said[:-1] if data and b'"ping"' not in data], "nothing else came before it"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (b"data: ", SOUND),  # one long event
        (b": ping\n\n", SOUND),
        (b"<p>no stream</p>\n\n", Failure(502, "stream_cut", "the stream has no events")),
        (b"x", Failure(502, "stream_cut", "the stream has no events")),
        (b'{"x": [', Failure(502, "stream_cut", "a long JSON text in place of a stream")),
    ],
)
@pytest.mark.parametrize("pieces", [1, 1000])
def test_64_kilobytes_are_always_enough(unit: bytes, expected: Verdict, pieces: int) -> None:
    stream = (unit * (MOST_HELD // len(unit) + 1))[:MOST_HELD]
    size = -(-MOST_HELD // pieces)
    sniffer = Sniffer("openai", 200, EVENTS)
    said = [sniffer.feed(stream[at : at + size]) for at in range(0, MOST_HELD, size)]
    assert said[-1] == expected
    assert all(one is UNDECIDED for one in said[:-1])
    assert sniffer.held == stream


def test_after_its_verdict_a_sniffer_holds_no_more() -> None:
    sniffer = Sniffer("openai", 200, EVENTS)
    assert sniffer.feed(event(ROLE)) is SOUND
    assert sniffer.feed(event(ROLE) * 1000) is SOUND
    assert sniffer.held == event(ROLE)


texts = st.text(max_size=30) | st.sampled_from(
    ["error", '{"error":{"code":500}}', "internal server error", "\n\ndata: [DONE]", "event: error", "response.failed"]
)
scalars = st.none() | st.booleans() | st.integers(-5, 600) | texts
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.sampled_from(["error", "type", "code"]), inner, max_size=3)
    ),
    max_leaves=8,
)
sound_chunks = st.builds(
    lambda more, delta, spaced: {**more, "choices": [{"index": 0, "delta": delta}], **spaced},
    st.dictionaries(st.sampled_from(["id", "usage", "metadata", "obfuscation"]), values, max_size=3),
    st.dictionaries(st.sampled_from(["content", "tool_calls", "role", "error"]), values, max_size=3),
    st.sampled_from([{}, {"error": None}, {"error": ""}]),
)
lines = st.sampled_from([b"\n", b"\r\n", b"\r"])
heartbeats = st.lists(st.sampled_from([b": ping", b":", b"retry: 1", b"data:", b"data: ", b"id: 1"]), max_size=4)


@given(st.lists(sound_chunks, min_size=1, max_size=3), lines, heartbeats, st.booleans(), st.lists(st.integers(0, 2000)))
@example([{"choices": [], "error": None}], b"\r\n", [b"data:"], True, [1, 2, 3])
def test_a_sound_stream_is_never_called_failed(
    said: list[Any], end: bytes, beats: list[bytes], marked: bool, cuts: list[int]
) -> None:
    stream = b"\xef\xbb\xbf" if marked else b""
    stream += b"".join(beat + end + end for beat in beats)
    stream += b"".join(event(each, end=end) for each in said) + b"data: [DONE]" + end + end
    bounds = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    assert verdict(*(stream[a:b] for a, b in itertools.pairwise(bounds))) is SOUND


@given(st.binary(max_size=60) | st.sampled_from([stream for _, stream, _ in FAILED_STREAMS.values()]), st.data())
def test_whatever_comes_there_is_a_verdict_in_the_end(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=5))
    bounds = sorted({0, len(stream), *cuts})
    found = verdict(*(stream[a:b] for a, b in itertools.pairwise(bounds)))
    assert found is SOUND or isinstance(found, Failure)
    if isinstance(found, Failure):
        assert 400 <= found.status <= 599
        assert (found.kind == "status") == (found.status < 500)


# Whole answers.

SOUND_ANSWERS: dict[str, tuple[str, bytes]] = {
    "OpenAI chat": ("chat", whole(chat)),
    "OpenAI chat that calls a tool": ("chat", whole(chat, **WITH_TOOL)),
    "Parallax": ("chat", orjson.dumps(answer(ASKED))),
    "Parallax that calls a tool": ("chat", orjson.dumps(answer(WITH_TOOL))),
    "nothing said, and why": ("chat", b'{"choices":[{"message":{"content":""},"finish_reason":"content_filter"}]}'),
    "only thought": ("chat", b'{"choices":[{"message":{"reasoning_content":"hm"},"finish_reason":null}]}'),
    "refused by the model": ("chat", b'{"choices":[{"message":{"refusal":"no"}}]}'),
    "one of two answers": ("chat", b'{"choices":[{"message":null},{"message":{"content":"x"}}]}'),
    "an error that is none": ("chat", b'{"error":null,"choices":[{"message":{"content":"x"}}]}'),
    "a long one": ("chat", b'{"choices":[{"message":{"content":"' + b"error " * 9000 + b'"},"finish_reason":"stop"}]}'),
    "OpenAI completions": ("completions", whole(completions)),
    "OpenAI responses": ("responses", whole(responses)),
    "a response that calls a tool": ("responses", whole(responses, input="use the tool", tools=[{**TOOL["function"]}])),
    "a response in the background": ("responses", b'{"status":"queued","output":[],"error":null}'),
    "OpenAI embeddings": ("embeddings", whole(embeddings, input=["a", "b"])),
    "Anthropic": ("messages", whole(messages)),
    "Anthropic that calls a tool": ("messages", whole(messages, **WITH_TOOL)),
    "Anthropic that has nothing to add": ("messages", b'{"type":"message","content":[],"stop_reason":"end_turn"}'),
    "a count": ("count_tokens", b'{"input_tokens":9}'),
}

FAILED_ANSWERS: dict[str, tuple[str, bytes, Failure]] = {
    "an error": ("chat", NODE_FAILS, Failure(500, "protocol", "EngineCore encountered an issue.", NODE_FAILS)),
    "a refusal": ("chat", orjson.dumps({"error": VLLM_ERROR}), Failure(400, "status", "too long", b'{"error":{"mess')),
    "a string": ("chat", b'{"error":"Internal server error"}', Failure(502, "protocol", "Internal server error")),
    "a word that tells": (
        "chat",
        b'{"error":{"message":"not yet","type":"server_unavailable","code":"server_not_ready"}}',
        Failure(503, "protocol", "not yet", b'{"error":{"message":"not yet'),
    ),
    "a number as a word": (
        "chat",
        b'{"error":{"code":"429"}}',
        Failure(429, "status", "an error in place", b'{"error"'),
    ),
    "an error with choices": (
        "chat",
        b'{"error":"x","choices":[{"finish_reason":"stop"}]}',
        Failure(502, "protocol", "x"),
    ),
    "an older error": ("chat", b'{"object":"error","message":"x","code":404}', Failure(404, "status", "x")),
    "an envelope": ("chat", envelope(502, NODE_LOST), Failure(502, "protocol", "Internal server error", NODE_LOST)),
    "bytes": ("chat", b"internal server error", Failure(500, "protocol", "Internal server error")),
    "nothing": ("chat", b"", Failure(502, "protocol", "the answer is not a JSON object")),
    "a page": ("chat", b"<html>", Failure(502, "protocol", "the answer is not a JSON object")),
    "half of it": ("chat", b'{"choices":[{"message":', Failure(502, "protocol", "the answer is not a JSON object")),
    "no choices": ("chat", b'{"id":"c","choices":[]}', Failure(502, "protocol", "the answer is empty")),
    "no member choices": ("chat", b'{"detail":"Not Found"}', Failure(502, "protocol", "Not Found")),
    "a choice of nothing": (
        "chat",
        b'{"choices":[{"message":{"role":"assistant","content":""},"finish_reason":null}]}',
        Failure(502, "protocol", "the answer is empty"),
    ),
    "choices that are none": ("completions", b'{"choices":[1]}', Failure(502, "protocol", "the answer is empty")),
    "an answer that broke off": (
        "chat",
        b'{"choices":[{"message":{"content":"Well"},"finish_reason":"error","error":{"code":502,"message":"lost"}}]}',
        Failure(502, "protocol", "lost"),
    ),
    "an error at the end of a long answer": (
        "chat",
        b'{"x":"' + b"x" * 9000 + b'","choices":[{"finish_reason":"stop"}],"error":"late"}',
        Failure(502, "protocol", "late"),
    ),
    "a response that failed": (
        "responses",
        b'{"status":"failed","error":{"code":"server_error","message":"sorry"}}',
        Failure(500, "protocol", "sorry", b'{"status"'),
    ),
    "a failed response without a word": (
        "responses",
        b'{"status":"failed","output":[{}]}',
        Failure(502, "protocol", "the answer is empty"),
    ),
    "no vectors": ("embeddings", b'{"model":"m"}', Failure(502, "protocol", "the answer is empty")),
    "Anthropic, overloaded": (
        "messages",
        orjson.dumps(OVERLOADED),
        Failure(529, "protocol", "Overloaded", orjson.dumps(OVERLOADED)),
    ),
    "Anthropic, empty": (
        "messages",
        b'{"type":"message","content":[],"stop_reason":null}',
        Failure(502, "protocol", "the answer is empty"),
    ),
    "no count": ("count_tokens", b"{}", Failure(502, "protocol", "the answer is empty")),
}


@pytest.mark.parametrize("name", SOUND_ANSWERS)
def test_a_sound_answer_hides_nothing(name: str) -> None:
    operation, body = SOUND_ANSWERS[name]
    assert hidden(operation, 200, JSON, body) is None
    assert hidden(operation, 200, b"application/vnd.api+json", b" " + body + b"\n") is None


@pytest.mark.parametrize("name", FAILED_ANSWERS)
def test_what_is_hidden_in_an_answer_is_found(name: str) -> None:
    operation, body, expected = FAILED_ANSWERS[name]
    found = hidden(operation, 200, JSON, body)
    assert found is not None
    assert found[:2] == expected[:2]
    assert found.message.startswith(expected.message)
    assert found.body.startswith(expected.body)
    assert bool(found.body) == bool(expected.body)


@pytest.mark.parametrize("content_type", [b"text/html", b"text/plain", b"text/event-stream", b""])
def test_an_answer_under_another_content_type_is_none(content_type: bytes) -> None:
    for operation, body in SOUND_ANSWERS.values():
        found = hidden(operation, 200, content_type, body)
        assert found is not None
        assert found.kind == "protocol"


@given(st.sampled_from(list(SOUND_ANSWERS.values())), st.dictionaries(texts, values, max_size=3))
def test_members_that_nobody_knows_make_no_answer_a_failure(given: tuple[str, bytes], more: dict[str, Any]) -> None:
    operation, body = given
    known = orjson.loads(body)
    unknown = {f"x-{name}": value for name, value in more.items()}
    assert hidden(operation, 200, JSON, orjson.dumps({**unknown, **known, "x": more})) is None


@given(st.sampled_from(["chat", "completions", "responses", "embeddings", "messages", "count_tokens", "x"]), values)
def test_whatever_an_answer_says_it_can_be_judged(operation: str, said: Any) -> None:
    found = hidden(operation, 200, JSON, orjson.dumps(said))
    assert found is None or 400 <= found.status <= 599


# Why all of this is needed: what stock clients make of such answers.


@pytest.mark.parametrize("name", ["a node's refusal, bare", "an unreachable node, in an envelope", "nothing"])
def test_a_stock_client_takes_a_hidden_failure_for_an_empty_stream(name: str) -> None:
    answers = Answers(200, EVENT_STREAM, FAILED_STREAMS[name][1])
    stream = answers.openai().chat.completions.create(model="m", messages=[], stream=True)
    assert list(stream) == []


def test_what_is_found_is_an_error_that_a_stock_client_reads() -> None:
    found = failure(NODE_REFUSES)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        Answers(found.status, JSON_ANSWER, found.body).openai().chat.completions.create(model="m", messages=[])
