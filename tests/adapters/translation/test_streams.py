"""`adapters.translation`, streams: the agent's own meter and SDK read the target's events as if they were its own."""

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import StreamMeter
from adapters.registry import ANTHROPIC, OPENAI
from adapters.sse import data, events
from adapters.translation import Converter
from adapters.translation.reading import written
from tests.adapters.translation.support import (
    DONE,
    DOWN,
    NOW,
    UP,
    chat,
    chunk,
    everywhere,
    judge_chunk,
    judge_event,
    messages,
    somewhere,
    strange,
    typed,
)

START: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 3, "output_tokens": 1},
}
MESSAGE_STREAM = [
    typed("message_start", message=START),
    typed("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
    typed("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."}),
    typed("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "c2ln"}),
    typed("content_block_stop", index=0),
    typed("ping"),
    typed("content_block_start", index=1, content_block={"type": "text", "text": ""}),
    typed("content_block_delta", index=1, delta={"type": "text_delta", "text": "Let me "}),
    typed("content_block_delta", index=1, delta={"type": "text_delta", "text": "loök.\n"}),
    typed("content_block_stop", index=1),
    typed("content_block_start", index=2, content_block={"type": "tool_use", "id": "t_1", "name": "w", "input": {}}),
    typed("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ""}),
    typed("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"city":'}),
    typed("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ' "Oslo"}'}),
    typed("content_block_stop", index=2),
    typed("content_block_start", index=3, content_block={"type": "tool_use", "id": "t_2", "name": "now", "input": {}}),
    typed("content_block_stop", index=3),
    typed("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 42}),
    typed("message_stop"),
]
HEAD = {"id": "msg_1", "object": "chat.completion.chunk", "created": NOW, "model": "claude-sonnet-4-5"}


def _told(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + orjson.dumps({**HEAD, "choices": [choice]}) + b"\n\n"


def _called(index: int, **members: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **members}]}


CHAT_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 42,
    "total_tokens": 62,
    "prompt_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
MESSAGE_STREAM_AS_CHUNKS = [
    _told({"role": "assistant", "content": ""}),
    b"",
    _told({"reasoning_content": "Hm."}),
    b"",
    b"",
    b": ping\n\n",
    b"",
    _told({"content": "Let me "}),
    _told({"content": "loök.\n"}),
    b"",
    _told(_called(0, id="t_1", type="function", function={"name": "w", "arguments": ""})),
    b"",
    _told(_called(0, function={"arguments": '{"city":'})),
    _told(_called(0, function={"arguments": ' "Oslo"}'})),
    b"",
    _told(_called(1, id="t_2", type="function", function={"name": "now", "arguments": ""})),
    _told(_called(1, function={"arguments": "{}"})),
    b"",
    _told({}, "tool_calls") + b"data: " + orjson.dumps({**HEAD, "choices": [], "usage": CHAT_USAGE}) + b"\n\n" + DONE,
]
"""What each event of MESSAGE_STREAM becomes."""

CHUNK_STREAM = [
    b": connected\n\n",
    chunk({"role": "assistant", "content": ""}, usage=None),
    chunk({"reasoning_content": "Hm."}),
    chunk({"content": "Let me "}),
    chunk({"content": "loök.\n"}),
    chunk(_called(0, id="c_1", type="function", function={"name": "w", "arguments": ""})),
    chunk(_called(0, function={"arguments": '{"city":'})),
    chunk(_called(0, function={"arguments": ' "Oslo"}'})),
    chunk(_called(1, id="c_2", type="function", function={"name": "now", "arguments": ""})),
    chunk({}, "tool_calls"),
    chunk(usage=CHAT_USAGE),
    DONE,
]
NO_TOKENS = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
TOKENS = {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 42}
CHUNK_STREAM_AS_MESSAGE = [
    typed("ping"),
    typed("message_start", message=START | {"id": "chatcmpl-1", "model": "gpt-4o-mini", "usage": NO_TOKENS}),
    typed("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""})
    + typed("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."}),
    typed("content_block_stop", index=0)
    + typed("content_block_start", index=1, content_block={"type": "text", "text": ""})
    + typed("content_block_delta", index=1, delta={"type": "text_delta", "text": "Let me "}),
    typed("content_block_delta", index=1, delta={"type": "text_delta", "text": "loök.\n"}),
    typed("content_block_stop", index=1)
    + typed("content_block_start", index=2, content_block={"type": "tool_use", "id": "c_1", "name": "w", "input": {}}),
    typed("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"city":'}),
    typed("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ' "Oslo"}'}),
    typed("content_block_stop", index=2)
    + typed(
        "content_block_start", index=3, content_block={"type": "tool_use", "id": "c_2", "name": "now", "input": {}}
    ),
    b"",
    b"",
    typed("content_block_stop", index=3)
    + typed("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage=TOKENS)
    + typed("message_stop"),
]
"""What each event of CHUNK_STREAM becomes."""

WAYS = {"up": (MESSAGE_STREAM, MESSAGE_STREAM_AS_CHUNKS), "down": (CHUNK_STREAM, CHUNK_STREAM_AS_MESSAGE)}


def converter(way: str) -> Converter:
    return UP.stream(chat(stream=True)) if way == "up" else DOWN.stream(messages(stream=True, stop_sequences=["END"]))


def converted(way: str, *pieces: bytes) -> bytes:
    found = converter(way)
    return b"".join([*[found.feed(piece) for piece in pieces], found.rest()])


def agents_meter(way: str, **members: Any) -> StreamMeter:
    return OPENAI.meter(chat(stream=True, **members)) if way == "up" else ANTHROPIC.meter(messages(stream=True))


def targets_meter(way: str) -> StreamMeter:
    asking = chat(stream=True, stream_options={"include_usage": True})
    return ANTHROPIC.meter(messages(stream=True)) if way == "up" else OPENAI.meter(asking)


def watched(meter: StreamMeter, stream: bytes) -> tuple[bytes, StreamMeter]:
    return meter.feed(stream) + meter.rest(), meter


@pytest.mark.parametrize("way", WAYS)
def test_every_event_becomes_its_counterpart_at_once(way: str) -> None:
    found = converter(way)
    stream, told = WAYS[way]
    assert [found.feed(event) for event in stream] == told
    assert found.rest() == b""


@pytest.mark.parametrize("way", WAYS)
def test_wherever_a_stream_is_cut_into_pieces_the_events_are_the_same(way: str) -> None:
    stream, told = (b"".join(side) for side in WAYS[way])
    for border in range(len(stream) + 1):
        assert converted(way, stream[:border], stream[border:]) == told
    assert converted(way, *[bytes([byte]) for byte in stream]) == told


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
@pytest.mark.parametrize("way", WAYS)
def test_lines_may_end_as_the_standard_allows(way: str, end: bytes) -> None:
    stream, told = (b"".join(side[1:]) if way == "down" else b"".join(side) for side in WAYS[way])
    assert converted(way, b"\xef\xbb\xbf" + stream.replace(b"\n", end)) == told


@pytest.mark.parametrize("way", WAYS)
def test_the_sdks_know_every_event(way: str) -> None:
    seen = 0
    stream = b"".join(WAYS[way][1])
    for start, end, said in events(stream):
        if not said or said == b"[DONE]":
            continue
        seen += 1
        if way == "up":
            judge_chunk(said)
        else:
            kind = orjson.loads(said)["type"]
            assert stream[start:end].startswith(b"event: %b\n" % kind.encode())
            if kind != "ping":
                judge_event(said)
    assert seen > 8


@pytest.mark.parametrize("way", WAYS)
def test_the_agents_meter_sees_what_the_targets_would_have_seen(way: str) -> None:
    """After every event, so that a stream that ends there is the same to both: whole, cut or failed."""
    stream, told = WAYS[way]
    for count in range(len(stream) + 1):
        _, native = watched(targets_meter(way), b"".join(stream[:count]))
        asking = {"stream_options": {"include_usage": True}} if way == "up" else {}
        passed, own = watched(agents_meter(way, **asking), converted(way, *stream[:count]))
        assert passed.startswith(b"".join(told[:count]))
        assert (own.complete, own.failed) == (native.complete, native.failed), count
        # Tools without arguments get an empty object of them; nothing else is added.
        extra = 2 if way == "up" and count >= 17 else 0
        assert own.said == native.said + extra, count
    assert own.complete
    assert own.usage == native.usage
    assert own.spent() == native.spent()


def test_token_counts_stay_here_where_the_agent_did_not_ask_for_them() -> None:
    stream = converted("up", *MESSAGE_STREAM)
    passed, meter = watched(agents_meter("up"), stream)
    assert b'"usage"' not in passed
    assert meter.usage is not None
    assert meter.usage.input_tokens == 20
    passed, _ = watched(agents_meter("up", stream_options={"include_usage": True}), stream)
    assert passed == stream


@pytest.mark.parametrize("way", WAYS)
def test_a_converted_stream_can_be_cut_like_any_other(way: str) -> None:
    stream = converted(way, *WAYS[way][0])
    meter = agents_meter(way)
    meter.stop_beyond(1, 10**9)
    passed = meter.feed(stream)
    assert meter.stopped
    passed += meter.cut()
    _, after = watched(agents_meter(way), passed)
    assert after.complete


def test_what_the_agents_error_event_is_put_behind_are_whole_events() -> None:
    for way, (stream, _) in WAYS.items():
        whole = b"".join(stream)
        for border in range(0, len(whole), 7):
            passed = converted(way, whole[:border])
            assert not passed or passed.endswith(b"\n\n")


@pytest.mark.parametrize("way", WAYS)
def test_a_last_event_counts_where_only_its_blank_line_is_missing(way: str) -> None:
    stream, told = (b"".join(side) for side in WAYS[way])
    assert converted(way, stream.removesuffix(b"\n")) == told
    assert converted(way, stream.removesuffix(b"\n\n")) == told
    assert not watched(agents_meter(way), converted(way, stream[:-40]))[1].complete or way == "down"


def test_a_stream_without_done_is_whole_where_its_finish_reason_was_told() -> None:
    assert converted("down", *CHUNK_STREAM[:-1]) == b"".join(CHUNK_STREAM_AS_MESSAGE)
    cut = converted("down", *CHUNK_STREAM[:5])
    assert b"message_stop" not in cut
    assert not watched(agents_meter("down"), cut)[1].complete


def test_nothing_follows_the_end_of_a_stream() -> None:
    late = chunk({"content": "more"})
    assert converted("down", *CHUNK_STREAM, late, DONE) == b"".join(CHUNK_STREAM_AS_MESSAGE)
    late = typed("content_block_delta", index=1, delta={"type": "text_delta", "text": "more"})
    assert converted("up", *MESSAGE_STREAM, late, typed("message_stop"), DONE) == b"".join(MESSAGE_STREAM_AS_CHUNKS)


def test_an_empty_stream_stays_empty() -> None:
    assert converted("up") == converted("down") == b""
    assert converted("down", DONE) == b""
    assert converted("down", b'{"error":{"message":"not a stream"}}') == b""


def test_a_failure_inside_a_stream_of_anthropics_is_one_of_openais() -> None:
    failure = typed("error", error={"type": "overloaded_error", "message": "Overloaded"})
    for stream in ([failure], [*MESSAGE_STREAM[:8], failure, typed("message_stop")]):
        told = converted("up", *stream)
        last = orjson.loads(data(told.split(b"\n\n")[-2]))
        assert last["error"] == {
            "message": "Overloaded",
            "type": "server_error",
            "param": None,
            "code": "overloaded_error",
        }
        _, meter = watched(agents_meter("up"), told)
        assert meter.failed
        assert not meter.complete


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ({"message": "no", "type": "server_error"}, "api_error", "no"),
        ({"message": "no", "type": "rate_limit_error"}, "rate_limit_error", "no"),
        ({"message": "no", "type": "BadRequestError", "code": 400}, "invalid_request_error", "no"),
        ({"message": "no", "type": "x", "code": 503}, "overloaded_error", "no"),
        ({"message": "no", "type": "x", "code": True}, "api_error", "no"),
        ("no", "api_error", "no"),
        ({"a": 1}, "api_error", "The target reported an error inside its stream."),
    ],
)
def test_a_failure_inside_a_stream_of_openais_is_one_of_anthropics(error: Any, kind: str, message: str) -> None:
    failure = b"event: error\ndata: " + orjson.dumps({"error": error}) + b"\n\n"
    for stream in ([failure], [*CHUNK_STREAM[:4], failure, DONE]):
        told = converted("down", *stream)
        last = told.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\n")
        assert orjson.loads(data(last))["error"] == {"type": kind, "message": message}
        _, meter = watched(agents_meter("down"), told)
        assert meter.failed
        assert not meter.complete


def _stop_reason(*stream: bytes) -> tuple[Any, Any]:
    for _, _, said in events(converted("down", *stream)):
        event = orjson.loads(said)
        if event["type"] == "message_delta":
            return event["delta"]["stop_reason"], event["delta"]["stop_sequence"]
    return None, None


def _finish_reason(reason: str, **members: Any) -> list[Any]:
    stream = [MESSAGE_STREAM[0], typed("message_delta", delta={"stop_reason": reason, **members}, usage={})]
    told = converted("up", *stream, typed("message_stop"))
    return [orjson.loads(said) for _, _, said in events(told) if said != b"[DONE]"]


def test_a_stream_ends_for_the_reason_that_a_whole_answer_would() -> None:
    text = chunk({"content": "x"})
    assert _stop_reason(text, chunk({}, "stop"), DONE) == ("end_turn", None)
    assert _stop_reason(text, chunk({}, "length"), DONE) == ("max_tokens", None)
    assert _stop_reason(text, chunk({}, "content_filter"), DONE) == ("refusal", None)
    assert _stop_reason(text, DONE) == ("end_turn", None)
    assert _stop_reason(chunk({"refusal": "I cannot."}), chunk({}, "stop"), DONE) == ("refusal", None)
    called = chunk(_called(0, id="c", function={"name": "t", "arguments": "{}"}))
    assert _stop_reason(called, chunk({}, "stop"), DONE) == ("tool_use", None)
    ended = orjson.loads(data(chunk({}, "stop")))
    ended["choices"][0]["stop_reason"] = "END"
    assert _stop_reason(text, b"data: " + orjson.dumps(ended) + b"\n\n", DONE) == ("stop_sequence", "END")

    assert _finish_reason("max_tokens")[1]["choices"][0]["finish_reason"] == "length"
    assert _finish_reason("stop_sequence", stop_sequence="END")[1]["choices"][0]["finish_reason"] == "stop"
    refused = _finish_reason("refusal", stop_details={"type": "refusal", "explanation": "Too dangerous."})
    assert refused[1]["choices"][0]["delta"] == {"refusal": "Too dangerous."}
    assert refused[2]["choices"][0]["finish_reason"] == "content_filter"


def test_tool_calls_without_numbers_or_ids_are_told_apart() -> None:
    def blocks(*deltas: dict[str, Any]) -> list[Any]:
        told = converted("down", *[chunk({"tool_calls": [delta]}) for delta in deltas])
        found = [orjson.loads(said) for _, _, said in events(told)]
        return [event["content_block"]["id"] for event in found if event["type"] == "content_block_start"]

    begun = {"function": {"name": "t", "arguments": "{"}}
    goes_on = {"function": {"arguments": "}"}}
    assert blocks({"id": "a"} | begun, goes_on, {"id": "b"} | begun, goes_on) == ["a", "b"]
    assert blocks({"index": 0} | begun, {"index": 0} | goes_on, {"index": 1} | begun) == [
        "call_chatcmpl-1_0",
        "call_chatcmpl-1_1",
    ]
    assert blocks({"index": 0, "id": "a"} | begun, {"index": 0, "id": "a"} | begun) == ["a"]


@pytest.mark.parametrize(
    "stream",
    [
        [chunk({"content": 5})],
        [chunk({"content": ["x"]})],
        [chunk({"tool_calls": 5})],
        [chunk({"tool_calls": [5]})],
        [chunk(_called(0, function={"arguments": "{}"}))],
        [chunk({"tool_calls": [{"function": {"arguments": "{}"}}]})],
        [
            chunk(_called(0, id="a", function={"name": "t"})),
            chunk(_called(1, id="b", function={"name": "t"})),
            chunk(_called(0, function={"arguments": "{}"})),
        ],
        [
            chunk(_called(0, id="a", function={"name": "t"})),
            chunk(_called(1, id="b", function={"name": "t"})),
            chunk(_called(0, id="a", function={"name": "t", "arguments": "{}"})),
        ],
        [b"data: [1]\n\n"],
        [b"data: {nonsense\n\n"],
        [b'data: {"choices":5}\n\n'],
        [b'data: {"choices":[{"delta":5}]}\n\n'],
    ],
)
def test_what_is_no_chunk_is_not_passed_over(stream: list[bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        converted("down", *stream)


@pytest.mark.parametrize(
    "event",
    [
        typed(
            "content_block_start", index=0, content_block={"type": "server_tool_use", "id": "s", "name": "web_search"}
        ),
        typed("content_block_start", index=0),
        typed("content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "w", "input": {}})
        * 2,
        typed("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "{"}),
        typed("content_block_delta", index=0, delta={"type": "text_delta"}),
        typed("content_block_delta", index=0, delta={"type": "something_new"}),
        b"event: x\ndata: [1]\n\n",
        b"event: x\ndata: {nonsense\n\n",
    ],
)
def test_what_is_no_event_of_a_message_is_not_passed_over(event: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        converted("up", MESSAGE_STREAM[0], event)


def test_events_that_say_nothing_are_passed_over() -> None:
    silent = [typed("something_new", value=1), b"event: ping\n\n", b": c\n\n", DONE]
    told = converted("up", *MESSAGE_STREAM[:8], *silent, *MESSAGE_STREAM[8:])
    assert told.replace(b": ping\n\n", b"") == b"".join(MESSAGE_STREAM_AS_CHUNKS).replace(b": ping\n\n", b"")
    first = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'  # as Azure's streams begin
    assert converted("down", first, *CHUNK_STREAM) == b"".join(CHUNK_STREAM_AS_MESSAGE)


def test_a_text_that_comes_with_its_beginning_is_said() -> None:
    begun = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "Yes"}]
    stream = [typed("content_block_start", index=index, content_block=block) for index, block in enumerate(begun)]
    deltas = [orjson.loads(said)["choices"][0]["delta"] for _, _, said in events(converted("up", *stream))]
    assert deltas[1:] == [{"reasoning_content": "Hm."}, {"content": "Yes"}]


def test_a_tool_whose_arguments_come_with_its_beginning_has_them_once() -> None:
    block = {"type": "tool_use", "id": "t", "name": "w", "input": {"a": 1}}
    told = converted(
        "up", typed("content_block_start", index=0, content_block=block), typed("content_block_stop", index=0)
    )
    called = [orjson.loads(said) for _, _, said in events(told)][1:]
    assert [each["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for each in called] == ['{"a":1}']


pieces = st.one_of(
    st.sampled_from([*MESSAGE_STREAM, *CHUNK_STREAM, b"data: x\n\n", b": c\n\n", b"\r\n", b"event: e\n\n"]),
    strange.map(lambda value: b"data: " + written(value) + b"\n\n"),
)


def _tried(way: str, stream: list[bytes]) -> bool:
    """Whether a stream can be converted; as far as it can, the agent's SDK knows the events."""
    found, told = converter(way), []
    failed = False
    try:
        for event in stream:
            told.append(found.feed(event))
        told.append(found.rest())
    except ValueError:
        failed = True
    for _, _, said in events(b"".join(told)):
        if said and said != b"[DONE]":
            value = orjson.loads(said)
            if "error" not in value and value.get("type") != "ping":
                (judge_chunk if way == "up" else judge_event)(said)
    return not failed


@pytest.mark.parametrize("way", WAYS)
def test_a_strange_value_in_any_place_of_an_event_is_a_fault_or_makes_no_difference_to_types(way: str) -> None:
    stream, outcomes = WAYS[way][0], []
    for index, event in enumerate(stream):
        said = event.partition(b"data: ")[2].strip()
        for changed in everywhere(orjson.loads(said)) if said.startswith(b"{") else ():
            before = stream[max(0, index - 1) : index]
            outcomes.append(
                _tried(way, [*before, b"data: " + written(changed) + b"\n\n", *stream[index + 1 : index + 2]])
            )
    assert 100 < outcomes.count(False) < len(outcomes)


@settings(max_examples=100)
@given(st.data(), st.sampled_from(sorted(WAYS)))
def test_no_stream_makes_a_converter_raise_anything_but_value_error(data: st.DataObject, way: str) -> None:
    stream = []
    for event in WAYS[way][0]:
        said = event.partition(b"data: ")[2].strip()
        if said.startswith(b"{") and not data.draw(st.integers(0, 5)):
            event = b"data: " + written(somewhere(orjson.loads(said), data.draw)) + b"\n\n"
        stream.append(event)
    _tried(way, stream)


@settings(max_examples=100)
@given(st.lists(pieces, max_size=8), st.lists(st.integers(0, 2000), max_size=6), st.sampled_from(sorted(WAYS)))
def test_the_pieces_that_a_stream_comes_in_change_nothing(stream: list[bytes], at: list[int], way: str) -> None:
    whole = b"".join(stream)
    bounds = sorted({0, len(whole), *(place % (len(whole) + 1) for place in at)})
    cut = [whole[start:end] for start, end in itertools.pairwise(bounds)]

    def outcome(pieces: list[bytes]) -> bytes:
        found, told = converter(way), b""
        try:
            for piece in pieces:
                told += found.feed(piece)
            return told + found.rest()
        except ValueError:
            return b"!"

    assert outcome(cut) == outcome([whole])


def test_a_converter_belongs_to_one_answer() -> None:
    call = chat(stream=True)
    first, second = UP.stream(call), UP.stream(call)
    assert first.feed(MESSAGE_STREAM[0]) == second.feed(MESSAGE_STREAM[0])
