"""`adapters.sse` and `adapters.meter`: however a stream is cut, what came passes and what was said is noted."""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.base import AgentCall, StreamMeter, Usage
from adapters.registry import ANTHROPIC, OPENAI, endpoint
from adapters.sse import LONGEST_EVENT, Framing, data, events


def call(path: str = "/v1/chat/completions", **arguments: Any) -> AgentCall:
    adapter = ANTHROPIC if path.startswith("/v1/messages") else OPENAI
    body = {"model": "m", "messages": [], "prompt": "p", "input": "i", "stream": True} | arguments
    return adapter.read(endpoint(adapter, "POST", path)[0], orjson.dumps(body), "")


def meter(path: str = "/v1/chat/completions", **arguments: Any) -> StreamMeter:
    adapter = ANTHROPIC if path.startswith("/v1/messages") else OPENAI
    return adapter.meter(call(path, **arguments))


def event(value: object, name: str = "", end: str = "\n") -> bytes:
    head = f"event: {name}{end}".encode() if name else b""
    return head + b"data: " + orjson.dumps(value) + 2 * end.encode()


def chunk(content: str = "", finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
USAGE_CHUNK = {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
DONE = b"data: [DONE]\n\n"
ASKING: dict[str, Any] = {"stream_options": {"include_usage": True}}


@dataclass
class Told:
    """What a meter let pass and what it noted."""

    passed: bytes
    usage: Usage | None
    complete: bool
    failed: bool


def told(meter: StreamMeter, *pieces: bytes) -> Told:
    passed = b"".join([meter.feed(piece) for piece in pieces])
    passed += meter.rest()
    return Told(passed, meter.usage, meter.complete, meter.failed)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(stream), *(place % (len(stream) + 1) for place in at)})
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


TRICKS = [
    '"usage":{"prompt_tokens":99999}',
    "data: [DONE]",
    "\n\ndata: [DONE]\n\n",
    '"finish_reason":"stop"',
    '","finish_reason":"stop","x":"',
    '{"error":{"message":"no"}}',
    '\\"usage\\":{"prompt_tokens":1}',
    "event: error",
    '"type":"response.completed"',
    '"type":"message_stop"',
    "\ufeff",
    "\r\n\r\n",
]

fragments = st.sampled_from(
    [
        event(chunk("hello")),
        event(chunk("hello", usage=None)),
        event(chunk("hello", usage=USAGE)),
        event(chunk(finish="stop")),
        event(chunk(finish="length", index=1)),
        event(USAGE_CHUNK),
        event({"error": {"message": "overloaded"}}),
        event({"type": "message_start", "message": {"usage": {"input_tokens": 3}}}, "message_start"),
        event({"type": "message_delta", "usage": {"output_tokens": 5}}, "message_delta"),
        event({"type": "message_stop"}, "message_stop"),
        event({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, "error"),
        event({"type": "response.completed", "response": {"usage": {"input_tokens": 4}}}, "response.completed"),
        event(USAGE_CHUNK, end="\r\n"),
        event(chunk(finish="stop"), end="\r"),
        DONE,
        *(event(chunk(trick)) for trick in TRICKS),
        b": a comment\n\n",
        b":\r\n\r\n",
        b"event: ping\n\n",
        b"data:\n\n",
        b"data\n\n",
        b"data:" + orjson.dumps(USAGE_CHUNK) + b"\n\n",
        b'data: {"choices": [],\ndata: "usage":\ndata: {"prompt_tokens": 7}}\n\n',
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\r",
        b"\xef\xbb\xbf",
        b"data: x",
        b"id: 1\nretry: 5\n",
    ]
)
streams = st.lists(fragments | st.binary(max_size=8), max_size=8).map(b"".join)
cuts = st.lists(st.integers(0, 4000), max_size=12)
calls = st.sampled_from(
    [
        call(),
        call(**ASKING),
        call(n=2),
        call("/v1/completions"),
        call("/v1/responses"),
        call("/v1/messages"),
    ]
)


def reference_events(stream: bytes) -> list[bytes]:
    """The data of each event that a reader line by line would dispatch.

    As an event, unlike in the standard, counts also what stands behind a byte order mark in the middle of a stream.
    """
    found: list[bytes] = []
    lines: list[bytes] = []
    for line in stream.splitlines(keepends=True):
        said = line.rstrip(b"\r\n")
        if said == line:
            break
        if said:
            lines.append(said if lines else said.removeprefix(b"\xef\xbb\xbf"))
        else:
            found.append(b"\n".join(each[5:].removeprefix(b" ") for each in lines if each.startswith(b"data:")))
            lines = []
    return [said for said in found if said]


@settings(max_examples=200)
@given(calls, streams, cuts)
@example(call(), b"data: a\r\r" + event(USAGE_CHUNK, end="\r") + b"\n", [9])
@example(call(), event(USAGE_CHUNK, end="\r\n"), list(range(200)))
def test_no_cutting_of_a_stream_changes_what_passes_or_what_is_noted(
    asked: AgentCall, stream: bytes, at: list[int]
) -> None:
    adapter = ANTHROPIC if asked.protocol == "anthropic" else OPENAI
    whole = told(adapter.meter(asked), stream)
    assert told(adapter.meter(asked), *cut(stream, at)) == whole
    assert told(adapter.meter(asked), *(stream[i : i + 1] for i in range(len(stream)))) == whole


@settings(max_examples=200)
@given(streams, cuts)
def test_a_stream_passes_byte_for_byte_but_for_a_torn_end(stream: bytes, at: list[int]) -> None:
    watching = meter(**ASKING)
    passed = b"".join(watching.feed(piece) for piece in cut(stream, at))
    assert stream.startswith(passed)
    held = stream[len(passed) :]
    rest = watching.rest()
    assert rest in (held[: len(held) - len(held.lstrip(b"\r\n"))], held + b"\n\n")
    assert held or reference_events(stream) == reference_events(passed)
    assert watching.rest() == b"", "nothing is left behind"


@settings(max_examples=200)
@given(streams, cuts)
def test_framing_finds_the_events_that_a_reader_line_by_line_finds(stream: bytes, at: list[int]) -> None:
    framing = Framing()
    run = b"".join(framing.whole(piece) for piece in cut(stream, at))
    found = [(start, end, said) for start, end, said in events(run) if said]
    assert [said for _, _, said in found] == reference_events(run)
    assert all(reference_events(run[start:end]) == [said] for start, end, said in found)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([chunk("a"), chunk("b", usage=None), USAGE_CHUNK]), max_size=6), cuts)
def test_only_the_usage_chunk_is_kept_from_an_agent_that_did_not_ask(
    chunks: list[dict[str, Any]], at: list[int]
) -> None:
    stream = b"".join(map(event, chunks)) + DONE
    expected = b"".join(event(each) for each in chunks if each is not USAGE_CHUNK) + DONE
    assert told(meter(), *cut(stream, at)).passed == expected
    assert told(meter(**ASKING), *cut(stream, at)).passed == stream


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_stream_is_understood_with_every_kind_of_line_end(end: str) -> None:
    stream = event(chunk("hi"), end=end) + event(chunk(finish="stop"), end=end)
    usage = event(USAGE_CHUNK, end=end)
    done = f"data: [DONE]{end}{end}".encode()
    assert told(meter(), stream + usage + done) == Told(stream + done, Usage(9, 12), complete=True, failed=False)


def test_an_event_passes_as_soon_as_it_is_known_to_have_ended() -> None:
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"):
        assert meter().feed(b": hi" + end) == b": hi" + end
    mixed = meter()
    assert mixed.feed(b": hi\n\r") == b"", "this may become one line end of two characters"
    assert mixed.feed(b": more") == b": hi\n\r"


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_a_model_cannot_write_a_text_that_the_gateway_takes_for_the_protocol(path: str, trick: str) -> None:
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": trick}, "text": trick}
    tool = {"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"arguments": trick}}]}, "usage": trick}]}
    stream = event(chunk(trick)) + event({trick: trick}) + event(delta) + event(tool) + event(trick)
    assert told(meter(path), stream) == Told(stream, None, complete=False, failed=False)


@pytest.mark.parametrize(
    ("last", "complete"),
    [
        (DONE, True),
        (b"data:[DONE]\n\n", True),
        (event(chunk(finish="stop")), True),
        (event(chunk(finish="tool_calls")), True),
        (event(chunk("more")), False),
        (b": [DONE]\n\n", False),
        (b"event: [DONE]\n\n", False),
        (event("[DONE]"), False),
        (b"", False),
    ],
)
def test_a_completion_is_finished_by_a_finish_reason_or_by_done(last: bytes, complete: bool) -> None:
    assert told(meter(), event(chunk("hi")) + last).complete is complete


@pytest.mark.parametrize(
    ("path", "stream", "last"),
    [
        ("/v1/chat/completions", [chunk("hi"), chunk(finish="stop"), USAGE_CHUNK], DONE),
        (
            "/v1/responses",
            [{"type": "response.output_text.delta", "delta": "hi"}],
            event({"type": "response.completed"}, "response.completed"),
        ),
        (
            "/v1/messages",
            [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}],
            event({"type": "message_stop"}, "message_stop"),
        ),
    ],
)
def test_a_stream_has_ended_with_the_event_behind_which_clients_read_nothing(
    path: str, stream: list[Any], last: bytes
) -> None:
    watching = meter(path)
    for each in stream:
        watching.feed(event(each))
        assert not watching.ended
    watching.feed(last)
    assert watching.ended
    assert watching.complete


def test_nothing_behind_done_is_of_the_answer() -> None:
    watching = meter()
    behind = event(chunk(finish="abort")) + event({"error": {"message": "late"}})
    assert watching.feed(event(chunk("hi")) + DONE + behind).endswith(behind)
    assert (watching.complete, watching.failed) == (True, False)


@pytest.mark.parametrize(
    ("path", "arguments", "answers"),
    [
        ("/v1/chat/completions", {"n": 3}, 3),
        ("/v1/chat/completions", {"n": None}, 1),
        ("/v1/chat/completions", {"n": "2"}, 1),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, 4),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 1),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 2),
        ("/v1/completions", {"prompt": []}, 1),
    ],
)
def test_several_answers_are_finished_when_the_last_of_them_is(
    path: str, arguments: dict[str, Any], answers: int
) -> None:
    watching = meter(path, **arguments)
    for index in range(answers):
        assert not watching.complete
        for _ in range(2):
            watching.feed(event(chunk(finish="stop", index=index)))
    assert watching.complete


@pytest.mark.parametrize(
    "reported",
    [
        event(USAGE_CHUNK),
        event(chunk(usage={"prompt_tokens": 9, "completion_tokens": 1})) + event(chunk(finish="stop", usage=USAGE)),
        event(chunk(usage={"prompt_tokens": 1})) + event(USAGE_CHUNK) + event(chunk(usage=None)),
        event(USAGE_CHUNK) + event({"choices": [], "usage": {}}),
        b'data: {"choices": [], "usage" :\ndata: {"prompt_tokens": 9,\ndata:"completion_tokens": 12}}\n\n',
        b"\xef\xbb\xbf" + event(USAGE_CHUNK),
        b": comment\nid: 5\n" + event(USAGE_CHUNK, "chunk"),
    ],
)
def test_the_last_token_counts_of_a_stream_are_the_ones_that_count(reported: bytes) -> None:
    """Servers that count as they go report in every chunk; others at the end, in a chunk of its own."""
    assert told(meter(**ASKING), reported).usage == Usage(9, 12)


def test_chunks_with_choices_pass_even_when_they_report_usage_unasked() -> None:
    stream = event(chunk("hi", usage=USAGE)) + event(chunk(finish="stop", usage=USAGE))
    assert told(meter(), stream) == Told(stream, Usage(9, 12), complete=True, failed=False)


@pytest.mark.parametrize(
    "other",
    [{"choices": [], "prompt_filter_results": []}, {"choices": [], "usage": None}, {"choices": [], "usage": "many"}],
)
def test_an_empty_chunk_that_reports_no_usage_is_not_ours_to_remove(other: dict[str, Any]) -> None:
    assert told(meter(), event(other)).passed == event(other)


def test_details_of_the_token_counts_are_kept() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    assert told(meter(), event({"choices": [], "usage": usage})).usage == Usage(100, 50, 80, 5, 40)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, False),
        (None, False),
        ({"include_usage": False}, False),
        ({"include_usage": None}, False),
        ({"include_usage": True}, True),
    ],
)
def test_the_usage_chunk_goes_to_those_who_asked_for_it(options: dict[str, Any] | None, passes: bool) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert told(meter(path, stream_options=options), event(USAGE_CHUNK)).passed == passes * event(USAGE_CHUNK)
        assert told(meter(path), event(USAGE_CHUNK)).passed == b""


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/chat/completions", {"error": {"message": "overloaded"}}),
        ("/v1/chat/completions", {"error": "overloaded"}),
        ("/v1/chat/completions", {"error": {"message": "overloaded"}, "choices": [], "usage": USAGE}),
        ("/v1/responses", {"type": "error", "code": "server_error", "message": "overloaded"}),
        ("/v1/responses", {"type": "response.failed", "response": {"error": {"code": "server_error"}}}),
        ("/v1/responses", {"error": {"message": "a gateway's word"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}),
    ],
)
def test_an_error_inside_a_stream_is_noted_and_passes(path: str, error: dict[str, Any]) -> None:
    seen = told(meter(path), event({"type": "ping"}) + event(error))
    assert seen.failed
    assert seen.passed.endswith(event(error))


def test_chunks_without_an_error_have_not_failed() -> None:
    for stream in (event(chunk("hi", error=None)), event({"type": "response.created", "response": {"error": None}})):
        assert not told(meter(), stream).failed
        assert not told(meter("/v1/responses"), stream).failed


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_a_response_is_finished_by_its_terminal_event(kind: str) -> None:
    usage = {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 3},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 4},
    }
    delta = event({"type": "response.output_text.delta", "delta": "hi"}, "response.output_text.delta")
    stream = delta + event({"type": kind, "response": {"status": "x", "usage": usage}}, kind)
    expected = Told(stream, Usage(30, 10, 20, 3, 4), complete=True, failed=kind == "response.failed")
    assert told(meter("/v1/responses"), stream) == expected


@pytest.mark.parametrize(
    "event_",
    [
        {"type": "response.output_text.done", "text": "x", "item": {"type": "response.completed"}},
        {"type": "response.output_text.done", "response": {"usage": {"input_tokens": 5}}, "x": "response.completed"},
    ],
)
def test_only_the_events_own_type_ends_a_response(event_: dict[str, Any]) -> None:
    stream = event(event_) + DONE
    assert told(meter("/v1/responses"), stream) == Told(stream, None, complete=False, failed=False)


START = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}


@pytest.mark.parametrize(
    ("reports", "usage"),
    [
        ([START], Usage(10, 1)),
        ([START, {"output_tokens": 5}], Usage(10, 5)),
        ([START, {"output_tokens": 5}, {"output_tokens": 50}], Usage(10, 50)),
        ([START, {"output_tokens": 5, "input_tokens": None}], Usage(10, 5)),
        ([START, {"output_tokens": 5, "input_tokens": 0}], Usage(10, 5)),
        ([START, {"output_tokens": 5, "input_tokens": 12}], Usage(12, 5)),
        ([START, {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}], Usage(130, 1, 100, 20)),
        ([START, {"output_tokens_details": {"reasoning_tokens": 7}}], Usage(10, 1, 0, 0, 7)),
        ([START, {"output_tokens": -4, "input_tokens": "many"}], Usage(0, 0)),
        ([], None),
    ],
)
def test_the_counts_of_a_message_are_cumulative(reports: list[dict[str, Any]], usage: Usage | None) -> None:
    told_ = meter("/v1/messages")
    for report in reports:
        told_.feed(event(report if report is START else {"type": "message_delta", "usage": report}, "message_delta"))
    assert told_.usage == usage


def test_a_message_is_finished_by_message_stop_alone() -> None:
    almost = event(START, "message_start") + event(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}, "message_delta"
    )
    assert not told(meter("/v1/messages"), almost).complete
    assert told(meter("/v1/messages"), almost + event({"type": "message_stop"}, "message_stop")).complete


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r"])
def test_a_last_event_that_lacks_only_its_blank_line_is_completed(end: bytes) -> None:
    """Clients drop an event that no blank line ends, so the agent would miss it."""
    for path, last in [
        ("/v1/chat/completions", b"data: [DONE]"),
        ("/v1/chat/completions", event(chunk(finish="stop")).strip()),
        ("/v1/responses", event({"type": "response.completed", "response": {}}, "response.completed").strip()),
        ("/v1/messages", event({"type": "message_stop"}, "message_stop").strip()),
    ]:
        before = event({"type": "ping", "choices": [{"index": 0}]})
        seen = told(meter(path), before + last + end)
        assert seen.complete
        assert [said for _, _, said in events(seen.passed)][:2] == [data(before), data(last)]


@pytest.mark.parametrize(
    "torn",
    [
        b"d",
        b"data: ",
        b"data: [DO",
        b"data: [DONE"[:-1],
        b'data: {"choices":[{"index":0,"finish_reason":"stop"}',
        b"data: 12",
        b"data: [1]",
        b": comm",
        b"event: message_stop",
        b"event: message_stop\n",
    ],
)
def test_a_torn_last_event_is_dropped_so_that_an_error_can_follow(torn: bytes) -> None:
    stream = event({"type": "ping"})
    assert told(meter(), stream + torn) == Told(stream, None, complete=False, failed=False)


def test_the_usage_chunk_is_kept_back_even_as_a_torn_last_event() -> None:
    stream = event(chunk(finish="stop"))
    assert told(meter(), stream + event(USAGE_CHUNK).strip()) == Told(stream, Usage(9, 12), complete=True, failed=False)


def test_a_huge_event_passes_and_an_endless_one_does_not() -> None:
    huge = event(chunk("x" * (LONGEST_EVENT // 2)))
    assert told(meter(), *cut(huge, [i * 65536 for i in range(100)])).passed == huge
    endless = meter()
    for _ in range(LONGEST_EVENT // 65536):
        assert endless.feed(b"x" * 65536) == b""
    with pytest.raises(ValueError, match="an event of more than 8388608 bytes"):
        endless.feed(b"x")


def test_only_whole_events_pass_so_that_an_error_event_can_always_follow() -> None:
    first, second = event(chunk("a")), event(chunk("b"))
    watching = meter()
    assert watching.feed(first + second[:10]) == first
    assert watching.feed(second[10:-1]) == b""
    assert watching.feed(second[-1:]) == second


def test_watching_a_delta_go_by_costs_microseconds_at_most() -> None:
    """The bound is loose for busy machines; on a quiet one it takes about one microsecond."""
    for path, delta in [
        ("/v1/chat/completions", event(chunk(" hello", usage=None, model="gpt-4o-mini", created=1, system="fp"))),
        ("/v1/messages", event({"type": "content_block_delta", "delta": {"text": "x" * 100}}, "content_block_delta")),
    ]:
        feed = meter(path).feed

        def seconds(feed: Any = feed, delta: bytes = delta) -> float:
            began = time.perf_counter()
            for _ in range(1000):
                feed(delta)
            return time.perf_counter() - began

        assert min(seconds() for _ in range(10)) < 0.005
