"""`adapters.meter` and `adapters.likeness`: how much of an answer has passed, whatever it says and however it came."""

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import AgentCall, StreamMeter, Usage
from adapters.likeness import Likeness
from adapters.registry import ANTHROPIC, OPENAI
from adapters.sse import events
from tests.adapters.test_streams import ASKING, DONE, USAGE, USAGE_CHUNK, calls, chunk, cut, cuts, event, meter
from tests.adapters.test_streams import streams as any_streams

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"


@dataclass(frozen=True)
class Style:
    """How a server writes its events."""

    escapes: bool = False
    spaces: bool = False
    padded: bool = False
    end: str = "\n"
    numbered: bool = True

    def write(self, document: dict[str, Any], name: str, number: int) -> bytes:
        if self.numbered and name.startswith("response."):
            document = {"type": name, "sequence_number": number, **document}
        if self.padded and name != "content_block_delta":
            document = {**document, "obfuscation": "x" * (number % 7)}
        separators = (", ", ": ") if self.spaces else (",", ":")
        said = json.dumps(document, ensure_ascii=self.escapes, separators=separators).encode()
        if self.padded and name == "content_block_delta":
            said = said.removesuffix(b"}") + b" " * (number % 5) + b"}"
        head = f"event: {name}{self.end}".encode() if name else b""
        return head + b"data: " + said + 2 * self.end.encode()


def chat(delta: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "choices": [choice], "usage": None}


def tool(arguments: str) -> dict[str, Any]:
    return chat({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]})


def first_tool(arguments: str) -> dict[str, Any]:
    function = {"name": "content", "arguments": arguments}
    return chat({"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "t", "function": function}]})


def block(kind: str, member: str, text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, member: text}}


def response(text: str) -> dict[str, Any]:
    return {"item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": text, "logprobs": []}


CARRIERS: dict[str, list[tuple[str, Any]]] = {
    CHAT: [
        ("", lambda text: chat({"content": text})),
        ("", lambda text: chat({"role": "assistant", "content": text, "refusal": None})),
        ("", lambda text: chat({"content": "", "reasoning_content": text})),
        ("", lambda text: chat({"content": None, "reasoning": text})),
        ("", lambda text: chat({"refusal": text})),
        ("", lambda text: chat({"function_call": {"arguments": text}})),
        ("", lambda text: chat({"content": [{"type": "text", "text": text}]})),
        ("", lambda text: chat({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]})),
        ("", lambda text: chat({"audio": {"id": "a", "transcript": text}})),
        ("", lambda text: chat({"tool_calls": [{"index": 0, "custom": {"input": text}}]})),
        ("", tool),
        ("", first_tool),
    ],
    COMPLETIONS: [("", lambda text: {"id": "c", "choices": [{"text": text, "index": 0, "finish_reason": None}]})],
    RESPONSES: [
        ("response.output_text.delta", response),
        ("response.function_call_arguments.delta", response),
        ("response.reasoning_summary_text.delta", response),
        ("response.refusal.delta", response),
    ],
    MESSAGES: [
        ("content_block_delta", lambda text: block("text_delta", "text", text)),
        ("content_block_delta", lambda text: block("thinking_delta", "thinking", text)),
        ("content_block_delta", lambda text: block("input_json_delta", "partial_json", text)),
        ("content_block_delta", lambda text: {"delta": {"text": text, "type": "text_delta"}, "index": 0}),
    ],
}
"""Per endpoint the events that carry text: name, and the document that a text is put in."""

SILENT: dict[str, list[bytes]] = {
    CHAT: [
        event(chat({"role": "assistant", "content": ""})),
        event(chat({})),
        event(chunk(finish="stop") | {"usage": USAGE}),
        event({"choices": [{"index": 0, "message": {"content": "all that was said"}, "delta": {"content": ""}}]}),
        event({"choices": [{"delta": {"annotations": [{"url_citation": {"content": "of a page", "text": "t"}}]}}]}),
        event({"choices": [{"delta": {"reasoning_details": [{"data": "sealed", "summary": "s"}]}}]}),
        event({"choices": [{"delta": {"audio": {"data": "c291bmQ="}}}]}),
        event({"choices": [], "search_results": [{"content": "of a page", "text": "t", "snippet": "s"}]}),
        event(USAGE_CHUNK),
        b": content\n\n",
    ],
    COMPLETIONS: [event({"choices": [{"text": "", "index": 0, "finish_reason": "stop"}]}), event(USAGE_CHUNK)],
    RESPONSES: [
        event({"type": "response.output_text.done", "text": "all that was said"}, "response.output_text.done"),
        event({"type": "response.audio.delta", "delta": "c291bmQ="}, "response.audio.delta"),
        event({"type": "response.image_generation_call.partial_image", "partial_image_b64": "aW1hZ2U="}),
        event({"type": "response.shell_call_output_content.delta", "delta": {"stdout": "of a program"}}),
        event({"type": "response.completed", "response": {"output": [{"content": [{"text": "all"}]}]}}),
    ],
    MESSAGES: [
        event({"type": "message_start", "message": {"usage": {"input_tokens": 9}}}, "message_start"),
        event({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, "content_block_start"),
        event({"type": "content_block_start", "content_block": {"type": "web_fetch_tool_result", "text": "a page"}}),
        event({"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "abc"}}),
        event({"type": "content_block_delta", "delta": {"type": "citations_delta", "citation": {"cited_text": "t"}}}),
        event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}),
        event({"type": "ping"}, "ping"),
    ],
}
"""Per endpoint events in which the model says nothing."""

styles = st.builds(
    Style, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["\n", "\n", "\r\n", "\r"]), st.booleans()
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "\\",
        '"',
        '\\"',
        "\n\n",
        "data: [DONE]\n\n",
        '"content":"x"',
        '"delta":{"content":"x"}',
        "\U0001f600",
        "\u2028",
        "}",
    ]
)
HUGE = 2**60


def length(said: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in said)


def tokens(pieces: int, said: int) -> int:
    return max(pieces, -(-said // 4))


@settings(max_examples=300)
@given(st.sampled_from(list(CARRIERS)), styles, st.lists(st.tuples(texts, st.integers(0, 99)), max_size=12), cuts)
def test_text_is_counted_whatever_it_says_and_however_it_is_written_and_cut(
    path: str, style: Style, said: list[tuple[str, int]], at: list[int]
) -> None:
    """Each number picks the event that carries its text, and one without text to come before."""
    written = []
    for number, (text, pick) in enumerate(said):
        name, document = CARRIERS[path][pick % len(CARRIERS[path]) if pick < 60 else 0]
        if pick % 3 == 0:
            written.append(SILENT[path][pick % len(SILENT[path])])
        written.append(style.write(document(text), name, number))
    stream = b"".join(written)
    expected = sum(text != "" for text, _ in said), length([text for text, _ in said])
    for pieces in ([stream], cut(stream, at), written, [stream[i : i + 1] for i in range(len(stream))]):
        for bounded in (False, True):
            watching = meter(path, **ASKING)
            if bounded:
                watching.stop_beyond(HUGE, HUGE)
            passed = b"".join([watching.feed(piece) for piece in pieces]) + watching.rest()
            assert passed == stream
            assert (watching.pieces, watching.said) == expected
            assert watching.produced == tokens(*expected)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 400), max_size=9), st.booleans())
def test_the_same_text_counts_the_same_bytes_in_any_number_of_events(text: str, at: list[int], escapes: bool) -> None:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in at)})
    for path, carriers in CARRIERS.items():
        watching = meter(path)
        for start, end in itertools.pairwise(bounds):
            watching.feed(Style(escapes).write(carriers[0][1](text[start:end]), carriers[0][0], start))
        assert watching.said == len(text.encode())
        assert watching.pieces == len(bounds) - 1


@settings(max_examples=300)
@given(calls, any_streams, cuts)
def test_no_cutting_of_any_stream_changes_what_is_counted(asked: AgentCall, stream: bytes, at: list[int]) -> None:
    adapter = ANTHROPIC if asked.protocol == "anthropic" else OPENAI

    def counted(*pieces: bytes) -> tuple[int, int, Usage]:
        watching = adapter.meter(asked)
        for piece in pieces:
            watching.feed(piece)
        watching.rest()
        return watching.pieces, watching.said, watching.spent()

    whole = counted(stream)
    assert counted(*cut(stream, at)) == whole
    assert counted(*(stream[i : i + 1] for i in range(len(stream)))) == whole


def bounded_pass(watching: StreamMeter, pieces: list[bytes], bounds: tuple[int, int]) -> tuple[list[bytes], int]:
    """What passes between two stops, and where the first stop was. After each, as much again may pass."""
    watching.stop_beyond(*bounds)
    passed, most = [b""], list(bounds)
    for piece in pieces:
        passed[-1] += watching.feed(piece)
        while watching.stopped:
            assert watching.pieces > most[0] or watching.said > most[1]
            passed.append(b"")
            most = [watching.pieces + bounds[0], watching.said + bounds[1]]
            watching.stop_beyond(*most)
            passed[-1] += watching.feed(b"")
        assert watching.pieces <= most[0]
        assert watching.said <= most[1]
    passed[-1] += watching.rest()
    return passed, watching.pieces


@settings(max_examples=300)
@given(calls, any_streams, cuts, st.integers(0, 5) | st.just(HUGE), st.integers(0, 40) | st.just(HUGE))
def test_a_stream_stops_behind_the_event_that_goes_too_far_wherever_it_was_cut(
    asked: AgentCall, stream: bytes, at: list[int], pieces: int, said: int
) -> None:
    adapter = ANTHROPIC if asked.protocol == "anthropic" else OPENAI
    free = adapter.meter(asked)
    all_of_it = free.feed(stream) + free.rest()
    whole, counted = bounded_pass(adapter.meter(asked), [stream], (pieces, said))
    assert b"".join(whole) == all_of_it
    assert counted == free.pieces
    assert bounded_pass(adapter.meter(asked), cut(stream, at), (pieces, said)) == (whole, counted)
    for part in whole[:-1]:
        *_, (last, _, _) = events(part)
        for end, too_far in ((last, False), (len(part), True)):
            watching = adapter.meter(asked)
            watching.feed(part[:end])
            assert (watching.pieces > pieces or watching.said > said) is too_far


def test_a_stream_that_has_stopped_notes_nothing_of_what_waits() -> None:
    watching = meter(CHAT, **ASKING)
    watching.stop_beyond(1, HUGE)
    run = event(chunk("a")) + event(chunk("b")) + event(chunk(finish="stop")) + event(USAGE_CHUNK) + DONE
    assert watching.feed(run) == event(chunk("a")) + event(chunk("b"))
    assert (watching.stopped, watching.complete, watching.usage) == (True, False, None)
    watching.stop_beyond(2, HUGE)
    assert watching.feed(b"") == event(chunk(finish="stop")) + event(USAGE_CHUNK) + DONE
    assert (watching.stopped, watching.complete, watching.usage) == (False, True, Usage(9, 12))


def test_what_the_model_has_not_said_here_is_not_counted() -> None:
    for path, silent in SILENT.items():
        for each in silent:
            watching = meter(path, **ASKING)
            watching.feed(each)
            assert (watching.pieces, watching.said) == (0, 0), each


def test_the_same_text_under_two_names_counts_once() -> None:
    twice = chat({"reasoning": "hmm", "reasoning_details": [{"type": "reasoning.text", "text": "hmm"}]})
    watching = meter(CHAT)
    watching.feed(event(twice) + event(chat({"reasoning": "a", "reasoning_content": "a", "content": "bc"})))
    assert (watching.pieces, watching.said) == (2, 6)


def test_several_answers_in_one_chunk_are_one_event_with_all_their_text() -> None:
    watching = meter(CHAT, n=2)
    for first in ("abc", "abcdef", "a", "b", "c"):
        two = {"choices": [{"index": i, "delta": {"content": text}} for i, text in enumerate([first, "de"])]}
        watching.feed(event(two))
    assert (watching.pieces, watching.said) == (5, 22)


def test_a_prompt_that_is_repeated_is_not_produced() -> None:
    prompt = "Once upon a time " * 50
    watching = meter(COMPLETIONS, prompt=prompt, echo=True)
    watching.feed(event({"choices": [{"text": prompt, "index": 0}]}))
    assert (watching.pieces, watching.produced) == (1, 1)
    for _ in range(40):
        watching.feed(event({"choices": [{"text": "there was a king ", "index": 0}]}))
    assert 41 <= watching.produced <= 170


@pytest.mark.parametrize(
    ("path", "stream", "spent"),
    [
        (CHAT, b"", Usage(estimated=True)),
        (CHAT, event(chunk("hello")) * 3, Usage(output_tokens=4, estimated=True)),
        (CHAT, event(chunk("hello")) + event(chunk(finish="stop")) + DONE, Usage(output_tokens=2, estimated=True)),
        (CHAT, event(chunk("hello")) + event(USAGE_CHUNK), Usage(9, 12)),
        (CHAT, event(chunk("hello", usage={"prompt_tokens": 9, "completion_tokens": 1})), Usage(9, 1)),
        (
            CHAT,
            event(chunk("hello", usage={"prompt_tokens": 9, "completion_tokens": 1})) + event(chunk("hello")) * 9,
            Usage(9, 13, estimated=True),
        ),
        (CHAT, event(chunk("hello")) + event(USAGE_CHUNK) + event(chunk("x")), Usage(9, 12, estimated=True)),
        (CHAT, event(chunk("hello", usage={"prompt_tokens": 0, "completion_tokens": 0})), Usage(0, 2, estimated=True)),
        (CHAT, event(chunk(usage={"prompt_tokens": 9, "completion_tokens": 0})), Usage(9)),
        (MESSAGES, SILENT[MESSAGES][0], Usage(9, 0, estimated=True)),
        (MESSAGES, SILENT[MESSAGES][0] + event(block("text_delta", "text", "hello")), Usage(9, 2, estimated=True)),
        (
            MESSAGES,
            SILENT[MESSAGES][0] + event(block("text_delta", "text", "hello")) + SILENT[MESSAGES][5],
            Usage(9, 9),
        ),
        (RESPONSES, event(response("hello") | {"type": "x"}), Usage(output_tokens=2, estimated=True)),
    ],
)
def test_what_was_spent_is_what_was_reported_of_it_all_or_else_an_estimate(
    path: str, stream: bytes, spent: Usage
) -> None:
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        watching = meter(path, **ASKING)
        for piece in pieces:
            watching.feed(piece)
        assert watching.spent() == spent


# --- likeness ---------------------------------------------------------------------------------------------------------


def test_events_that_differ_in_their_text_alone_are_told_at_a_glance() -> None:
    for path, carriers in CARRIERS.items():
        for name, document in carriers:
            for style in (Style(), Style(spaces=True), Style(padded=True), Style(escapes=True, padded=True)):
                written = [
                    style.write(document(text), name, i) for i, text in enumerate(["a 1", 'b"\u00e9', "\\c", "x" * 99])
                ]
                like = Likeness()
                like.learn(written[0], b"a 1")
                run = b"".join(written[1:])
                size = length(['b"\u00e9', "\\c", "x" * 99])
                if style.spaces and name.startswith("response."):
                    continue  # a number behind a space is not looked for
                assert like.follow(run, 0) == (len(run), 3, size), (path, style)


@pytest.mark.parametrize(
    "other",
    [
        event(chunk("")),
        event(chunk("hi", finish="stop")),
        event(chunk("hi", usage=USAGE)),
        event(chunk("hi")).replace(b"\n\n", b"\r\n\r\n"),
        event(chunk("hi")).replace(b'"hi"', b'"hi'),
        event(chunk("hi")).replace(b'"hi"', b'"h\ni"'),
        event(chunk("hi")).replace(b'"hi"', b'"hi\\"'),
        event(chunk("hi")).replace(b'"hi"', b'"hi","error":"x"'),
        event(chunk("hi"))[:-1],
        event(chunk("hi"))[:-2] + b"\ndata: more\n\n",
        event({"choices": []}),
        DONE,
    ],
)
def test_an_event_that_differs_in_anything_else_is_not_like_the_others(other: bytes) -> None:
    like = Likeness()
    like.learn(event(chunk("hello")), b"hello")
    alike = event(chunk("a")) * 2
    assert like.follow(alike + other + alike, 0) == (len(alike), 2, 2)


@pytest.mark.parametrize("text", ["content", "c", "chat.completion.chunk"])
def test_nothing_is_learnt_from_an_event_whose_text_stands_elsewhere_too(text: str) -> None:
    like = Likeness()
    like.learn(event(chunk(text)), text.encode())
    elsewhere = event(chunk(text)).replace(b'"%b"' % text.encode(), b'"other"', 1)
    for other in (event(chunk("a")), elsewhere):
        assert like.follow(other, 0) == (0, 0, 0)


def test_a_stream_whose_events_are_all_different_is_no_longer_compared() -> None:
    like = Likeness()
    for turn in range(4):
        assert not like.hopeless
        like.learn(event(chunk("hello", created=turn)), b"hello")
        assert like.follow(event(chunk("hello", created=turn + 1)), 0) == (0, 0, 0)
    assert like.hopeless


# --- time -------------------------------------------------------------------------------------------------------------

HOSTILE = [
    b'"delta":{',
    b'"delta":{"content":"',
    b'"delta":{"content":"x"',
    b'"delta":{"a":"b",',
    b'"delta":{"a":[',
    b'"delta":{"a":{"b":{"c":{"d":{"e":{"f":{',
    b'"delta": ',
    b'"delta"                :                 ',
    b'"delta":"',
    b'"delta":"x',
    b'"delta":"\\',
    b'"delta":{"type":"text_delta",',
    b'"text":"',
    b'"text":"x',
    b'"text":',
    b'"text":"\\"',
    b"[", b"{", b"]", b"}", b'"', b"\\", b'\\"', b" ", b"\t", b"x", b",", b":",
    b'"type":"response.audio.delta"',
    b'"delta":{"annotations"',
    b'"content":"x"',
    b'"usage"', b'"usage"                ', b'"error":null', b"[DONE]",
    b"\n", b"\r", b"\r\n", b"data:", b"data:\n",
    event(chunk("x")),
    event(chunk("x"))[:-2],
    event(chunk(finish="stop")),
    event(chunk("x", usage=USAGE)),
    event({"type": "content_block_start", "index": 1}),
]  # fmt: skip
PROLOGUES = [b"", b"data: ", b'data: {"choices":[{"delta":{"content":"', event(chunk("hello")) * 2]
BYTES = 150_000
BOUND = 0.4
"""Seconds of processor time for so many bytes: they take some milliseconds, and minutes where time is quadratic."""


def seconds(path: str, stream: bytes, size: int, *, bounded: bool) -> float:
    watching = meter(path)
    if bounded:
        watching.stop_beyond(HUGE, HUGE)
    began = time.process_time()
    for start in range(0, len(stream), size):
        watching.feed(stream[start : start + size])
    watching.rest()
    if bounded:
        watching.cut()
    return time.process_time() - began


@pytest.mark.parametrize("path", list(CARRIERS))
def test_no_repetition_takes_more_than_linear_time(path: str) -> None:
    for hostile, prologue in itertools.product(HOSTILE, PROLOGUES):
        stream = prologue + hostile * (BYTES // len(hostile)) + b"\n\n"
        assert seconds(path, stream, len(stream), bounded=False) < BOUND, (prologue, hostile)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(CARRIERS)),
    st.sampled_from(PROLOGUES),
    st.lists(st.sampled_from(HOSTILE) | st.binary(max_size=4), min_size=1, max_size=5).map(b"".join),
    st.sampled_from([BYTES, 16384, 1000]),
    st.booleans(),
)
def test_no_mixture_takes_more_than_linear_time(
    path: str, prologue: bytes, hostile: bytes, size: int, bounded: bool
) -> None:
    stream = prologue + hostile * (BYTES // max(1, len(hostile))) + b"\n\n"
    assert seconds(path, stream, size, bounded=bounded) < BOUND


@pytest.mark.parametrize("path", list(CARRIERS))
def test_events_that_say_nothing_pass_quickly_where_a_stream_may_have_to_stop(path: str) -> None:
    for nothing in (b"\n\n", b":\n\n"):
        watching = meter(path)
        watching.stop_beyond(1, HUGE)
        stream = nothing * (BYTES // len(nothing))
        began = time.process_time()
        assert watching.feed(stream) == stream
        assert time.process_time() - began < BOUND


def test_what_is_counted_of_a_stream_is_worth_its_time() -> None:
    """The bound is loose for busy machines; on a quiet one it is about one microsecond an event."""
    for path, carriers in CARRIERS.items():
        name, document = carriers[0]
        written = [Style(padded=True).write(document(f" word{i}"), name, i) for i in range(50)]

        def once(path: str = path, written: list[bytes] = written) -> float:
            watching = meter(path)
            began = time.perf_counter()
            for each in written:
                watching.feed(each)
            return time.perf_counter() - began

        assert min(once() for _ in range(20)) < 50 * 5e-6, path
