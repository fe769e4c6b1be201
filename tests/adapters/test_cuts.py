"""Streams that are cut: at whatever event it happens, stock clients see a short answer with everything that passed."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.registry import ANTHROPIC, OPENAI
from adapters.sse import data, events
from deploy.demo.anthropic_like import messages
from deploy.demo.openai_like import chat as say_chat
from deploy.demo.openai_like import completions, responses
from deploy.demo.standin import Events
from tests.adapters.test_streams import ASKING, call, event

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HUGE = 2**60


class Replay:
    """Answers every call with the stream it was given last, over a real socket."""

    def __init__(self) -> None:
        replay = self
        self.stream = b""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("content-length", str(len(replay.stream)))
                self.end_headers()
                self.wfile.write(replay.stream)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    replay = Replay()
    yield replay
    replay.close()


@pytest.fixture(scope="module")
def gpt(replay: Replay) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{replay.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(replay: Replay) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=replay.url, api_key="k", max_retries=0) as client:
        yield client


def standin_frames(answer: Callable[[dict[str, Any]], Any], **document: Any) -> list[bytes]:
    reply = answer({"model": "m", "stream": True, **document})
    assert isinstance(reply, Events)
    return list(reply.frames)


def cuts(path: str, frames: list[bytes], **arguments: Any) -> Iterator[tuple[bytes, bytes]]:
    """(what passed, the end that was put behind it), for a cut behind each event that lets an answer go on."""
    adapter = ANTHROPIC if path == MESSAGES else OPENAI
    for border in range(1, len(frames) + 1):
        found = set()
        for pieces in (frames[:border], [b"".join(frames[:border])]):
            meter = adapter.meter(call(path, **arguments))
            meter.stop_beyond(HUGE, HUGE)
            found.add((b"".join(map(meter.feed, pieces)), meter.cut()))
        (end,) = found
        yield end


def documents(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(said) for _, _, said in events(stream) if said != b"[DONE]"]


# --- chat completions -------------------------------------------------------------------------------------------------

ASKED: Any = [{"role": "user", "content": "Hello there"}]
TOOL_QUESTION: Any = [{"role": "user", "content": "Please use the weather tool"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]


def recorded(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """A chunk as OpenAI writes it."""
    base = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": 1763700000, "model": "gpt-4o-mini-2024"}
    return event({**base, "service_tier": "default", "system_fingerprint": "fp_1", "choices": choices, **more})


def delta(index: int = 0, finish: str | None = None, **said: Any) -> dict[str, Any]:
    return {"index": index, "delta": said, "logprobs": None, "finish_reason": finish}


def part(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    name = {"name": first.pop("name")} if first else {}
    return {"index": index, **first, "function": {**name, "arguments": arguments}}


TWO_TOOLS = [
    recorded([delta(role="assistant", content=None)]),
    recorded([delta(tool_calls=[part(0, "", id="call_a", type="function", name="weather")])]),
    recorded([delta(tool_calls=[part(0, '{"ci')])]),
    recorded([delta(tool_calls=[part(0, 'ty":"Paris"}')])]),
    recorded([delta(tool_calls=[part(1, "", id="call_b", type="function", name="weather")])]),
    recorded([delta(tool_calls=[part(1, '{"city":"Ro')])]),
    recorded([delta(tool_calls=[part(1, 'me"}')])]),
    recorded([delta(finish="tool_calls")]),
    recorded([], usage={"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}),
    b"data: [DONE]\n\n",
]
REFUSED = [
    recorded([delta(role="assistant", content="", refusal=None)]),
    *(recorded([delta(refusal=word)]) for word in ("I can", "not help", " with that.")),
    recorded([delta(finish="stop")]),
    b"data: [DONE]\n\n",
]
TWO_ANSWERS = [
    recorded([delta(0, role="assistant", content="")]),
    recorded([delta(1, role="assistant", content="")]),
    recorded([delta(0, content="One")]),
    recorded([delta(1, content="Uno")]),
    recorded([delta(0, finish="stop")]),
    recorded([delta(1, content=" dos")]),
    recorded([delta(1, finish="stop")]),
    b"data: [DONE]\n\n",
]
CHATS = {
    "words": (standin_frames(say_chat, messages=ASKED, **ASKING), ASKING),
    "unasked usage": (standin_frames(say_chat, messages=ASKED, **ASKING), {}),
    "tool": (standin_frames(say_chat, messages=TOOL_QUESTION, tools=TOOLS, **ASKING), ASKING),
    "two tools": (TWO_TOOLS, ASKING),
    "refusal": (REFUSED, {}),
    "two answers": (TWO_ANSWERS, {"n": 2}),
}


@dataclass
class Passed:
    """What the chunks that passed say, put together by hand."""

    content: dict[int, str]
    refusal: str
    arguments: dict[int, str]
    finished: dict[int, str]

    @classmethod
    def of(cls, stream: bytes) -> "Passed":
        found = cls({}, "", {}, {})
        for chunk in documents(stream):
            for choice in chunk["choices"]:
                said, index = choice["delta"], choice["index"]
                found.content[index] = found.content.get(index, "") + (said.get("content") or "")
                found.refusal += said.get("refusal") or ""
                for each in said.get("tool_calls", []):
                    at = each["index"]
                    found.arguments[at] = found.arguments.get(at, "") + each["function"]["arguments"]
                if choice["finish_reason"]:
                    found.finished[index] = choice["finish_reason"]
        return found


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_that_is_cut_ends_for_length_with_all_that_passed(name: str, gpt: openai.OpenAI, replay: Replay) -> None:
    frames, arguments = CHATS[name]
    for passed, end in cuts(CHAT, frames, **arguments):
        replay.stream = passed + end
        truth = Passed.of(passed)
        chunks = list(gpt.chat.completions.create(model="m", messages=ASKED, stream=True))
        finishes = {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}
        assert finishes == {index: truth.finished.get(index, "length") for index in range(arguments.get("n", 1))}
        for index, content in truth.content.items():
            said = [c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index]
            assert "".join(said) == content
        if truth.content[0] or truth.arguments or truth.refusal:
            assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
                (chunks[0].id, chunks[0].created, chunks[0].model)
            }
        told = [chunk.usage for chunk in chunks if chunk.usage]
        assert len(told) == bool(arguments.get("stream_options"))
        if told:
            assert chunks[-1].choices == []
            assert told[0].total_tokens == told[0].prompt_tokens + told[0].completion_tokens
            assert told[0].prompt_tokens > 0
        assert replay.stream.count(b"[DONE]") == 1
        assert replay.stream.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("name", CHATS)
def test_the_stream_helper_builds_a_chat_that_was_cut(name: str, gpt: openai.OpenAI, replay: Replay) -> None:
    """Its `get_final_completion` raises for every answer that ends for length, so the snapshot is looked at."""
    frames, arguments = CHATS[name]
    for passed, end in cuts(CHAT, frames, **arguments):
        replay.stream = passed + end
        truth = Passed.of(passed)
        with gpt.chat.completions.stream(model="m", messages=ASKED) as stream:
            assert list(stream)
            final = stream.current_completion_snapshot
            if "length" in [choice.finish_reason for choice in final.choices]:
                with pytest.raises(openai.LengthFinishReasonError):
                    stream.get_final_completion()
        for choice in final.choices:
            assert choice.finish_reason == truth.finished.get(choice.index, "length")
            assert (choice.message.content or "") == truth.content.get(choice.index, "")
        assert len(final.choices) == arguments.get("n", 1)
        assert (final.choices[0].message.refusal or "") == truth.refusal
        calls = final.choices[0].message.tool_calls or []
        assert [each.function.arguments for each in calls] == list(truth.arguments.values())


@pytest.mark.parametrize("asking", [{}, ASKING])
def test_a_completion_that_is_cut_ends_for_length(asking: dict[str, Any], gpt: openai.OpenAI, replay: Replay) -> None:
    prompts = ["Hello there", "Goodbye"]
    frames = standin_frames(completions, prompt=prompts, **ASKING)
    for passed, end in cuts(COMPLETIONS, frames, prompt=prompts, **asking):
        replay.stream = passed + end
        chunks = list(gpt.completions.create(model="m", prompt=prompts, stream=True))
        for index in range(len(prompts)):
            mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
            before = [c for d in documents(passed) for c in d["choices"] if c["index"] == index]
            assert "".join(choice.text for choice in mine) == "".join(choice["text"] for choice in before)
            assert [choice.finish_reason for choice in mine if choice.finish_reason] == (
                [c["finish_reason"] for c in before if c["finish_reason"]] or ["length"]
            )
        assert len([chunk for chunk in chunks if chunk.usage]) == bool(asking)
        assert len({(chunk.id, chunk.model) for chunk in chunks}) == 1


def test_an_answer_that_names_a_million_answers_is_ended_in_a_few() -> None:
    for path, arguments in ((CHAT, {"n": 10**6}), (COMPLETIONS, {"prompt": ["x"] * 10**4, "n": 10**6})):
        meter = OPENAI.meter(call(path, **arguments))
        meter.stop_beyond(1, HUGE)
        meter.feed(recorded([delta(content="hi")]))
        assert len(meter.cut()) < 300_000


# --- messages ---------------------------------------------------------------------------------------------------------


def typed(kind: str, **members: Any) -> bytes:
    return event({"type": kind, **members}, kind)


def opened(index: int, **block: Any) -> bytes:
    return typed("content_block_start", index=index, content_block=block)


def written(index: int, kind: str, **said: Any) -> bytes:
    return typed("content_block_delta", index=index, delta={"type": kind, **said})


THINKING = [
    typed(
        "message_start",
        message={
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-5",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 40, "cache_read_input_tokens": 300, "output_tokens": 1},
        },
    ),
    opened(0, type="thinking", thinking="", signature=""),
    typed("ping"),
    written(0, "thinking_delta", thinking="The user asks"),
    written(0, "thinking_delta", thinking=" for the weather."),
    written(0, "signature_delta", signature="c2lnbmVk"),
    typed("content_block_stop", index=0),
    opened(1, type="text", text=""),
    written(1, "text_delta", text="Let me"),
    written(1, "text_delta", text=" look."),
    typed("content_block_stop", index=1),
    opened(2, type="tool_use", id="toolu_1", name="weather", input={}),
    written(2, "input_json_delta", partial_json=""),
    written(2, "input_json_delta", partial_json='{"city": "Pa'),
    written(2, "input_json_delta", partial_json='ris", "days": 3'),
    written(2, "input_json_delta", partial_json="}"),
    typed("content_block_stop", index=2),
    typed("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 55}),
    typed("message_stop"),
]
MESSAGE_STREAMS = {
    "words": standin_frames(messages, messages=ASKED, max_tokens=99),
    "tool": standin_frames(
        messages, messages=TOOL_QUESTION, max_tokens=99, tools=[{"name": "weather", "input_schema": PARAMETERS}]
    ),
    "thinking": THINKING,
}


@pytest.mark.parametrize("name", MESSAGE_STREAMS)
def test_a_message_that_is_cut_ends_for_length_with_all_that_passed(
    name: str, claude: anthropic.Anthropic, replay: Replay
) -> None:
    for passed, end in cuts(MESSAGES, MESSAGE_STREAMS[name]):
        replay.stream = passed + end
        before = documents(passed)
        reason = next((d["delta"]["stop_reason"] for d in before if d["type"] == "message_delta"), "max_tokens")
        with claude.messages.create(model="m", messages=ASKED, max_tokens=9, stream=True) as raw:
            seen = list(raw)
        starts = [each.index for each in seen if each.type == "content_block_start"]
        assert [each.index for each in seen if each.type == "content_block_stop"] == starts
        assert [each.type for each in seen][-2:] == ["message_delta", "message_stop"]
        with claude.messages.stream(model="m", messages=ASKED, max_tokens=9) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == reason
        assert final.usage.input_tokens == before[0]["message"]["usage"]["input_tokens"]
        said = {"text": "", "thinking": "", "partial_json": ""}
        for each in before:
            for member in said:
                said[member] += each.get("delta", {}).get(member, "") if each["type"] == "content_block_delta" else ""
        assert "".join(block.text for block in final.content if block.type == "text") == said["text"]
        assert "".join(block.thinking for block in final.content if block.type == "thinking") == said["thinking"]
        tools = [block.input for block in final.content if block.type == "tool_use"]
        if reason == "max_tokens" and said["partial_json"] and tools:
            assert isinstance(tools[0], dict)
            assert all(f'"{key}"' in said["partial_json"] for key in tools[0])
            assert final.usage.output_tokens >= 1


# --- responses --------------------------------------------------------------------------------------------------------


def numbered(*documents: dict[str, Any]) -> list[bytes]:
    return [event({**each, "sequence_number": number}, each["type"]) for number, each in enumerate(documents)]


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1763700000,
    "status": "in_progress",
    "model": "gpt-5",
    "instructions": "Be brief.",
    "output": [],
    "usage": None,
    "tools": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "incomplete_details": None,
}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
TEXT_PART = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
FUNCTION = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "weather", "arguments": ""}
IN_MESSAGE = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
SUMMARY = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
FULL_TEXT = {**TEXT_PART, "text": 'Let me "look" \u00e9\U0001f600.'}
ITEMS: list[dict[str, Any]] = [
    {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Thinking hard"}]},
    {**MESSAGE, "status": "completed", "content": [FULL_TEXT]},
    {**FUNCTION, "status": "completed", "arguments": '{"city": "Paris"}'},
]
WHOLE_RESPONSE = numbered(
    {"type": "response.created", "response": RESPONSE},
    {"type": "response.in_progress", "response": RESPONSE},
    {"type": "response.output_item.added", "output_index": 0, "item": {**ITEMS[0], "summary": []}},
    {"type": "response.reasoning_summary_part.added", **SUMMARY, "part": {"type": "summary_text", "text": ""}},
    {"type": "response.reasoning_summary_text.delta", **SUMMARY, "delta": "Thinking"},
    {"type": "response.reasoning_summary_text.delta", **SUMMARY, "delta": " hard"},
    {"type": "response.reasoning_summary_text.done", **SUMMARY, "text": "Thinking hard"},
    {"type": "response.reasoning_summary_part.done", **SUMMARY, "part": ITEMS[0]["summary"][0]},
    {"type": "response.output_item.done", "output_index": 0, "item": ITEMS[0]},
    {"type": "response.output_item.added", "output_index": 1, "item": MESSAGE},
    {"type": "response.content_part.added", **IN_MESSAGE, "part": TEXT_PART},
    {"type": "response.output_text.delta", **IN_MESSAGE, "delta": 'Let me "', "logprobs": []},
    {"type": "response.output_text.delta", **IN_MESSAGE, "delta": 'look" ', "logprobs": []},
    {"type": "response.output_text.delta", **IN_MESSAGE, "delta": "\u00e9\U0001f600.", "logprobs": []},
    {"type": "response.output_text.done", **IN_MESSAGE, "text": FULL_TEXT["text"], "logprobs": []},
    {"type": "response.content_part.done", **IN_MESSAGE, "part": FULL_TEXT},
    {"type": "response.output_item.done", "output_index": 1, "item": ITEMS[1]},
    {"type": "response.output_item.added", "output_index": 2, "item": FUNCTION},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 2, "delta": '{"city": '},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 2, "delta": '"Paris"}'},
    {"type": "response.function_call_arguments.done", "item_id": "fc_1", "output_index": 2, "arguments": "..."},
    {"type": "response.output_item.done", "output_index": 2, "item": ITEMS[2]},
    {
        "type": "response.completed",
        "response": {
            **RESPONSE,
            "status": "completed",
            "output": ITEMS,
            "usage": {
                "input_tokens": 9,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 12,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 21,
            },
        },
    },
)
RESPONSE_STREAMS = {
    "whole": WHOLE_RESPONSE,
    "words": standin_frames(responses, input="Hello there"),
    "tool": standin_frames(responses, input=TOOL_QUESTION, tools=[{**TOOLS[0]["function"], "type": "function"}]),
}


@pytest.mark.parametrize("name", RESPONSE_STREAMS)
def test_a_response_that_is_cut_is_incomplete_with_all_that_passed(
    name: str, gpt: openai.OpenAI, replay: Replay
) -> None:
    for passed, end in cuts(RESPONSES, RESPONSE_STREAMS[name]):
        replay.stream = passed + end
        before = documents(passed)
        if before[-1]["type"] == "response.completed":
            assert end == b""
            continue
        with gpt.responses.stream(model="m", input="hi") as helper:
            helped = list(helper)
        for seen in (list(gpt.responses.create(model="m", input="hi", stream=True)), helped):
            last = seen[-1]
            assert last.type == "response.incomplete"
            response = last.response
            assert response.status == "incomplete"
            assert response.incomplete_details is not None
            assert response.incomplete_details.reason == "max_output_tokens"
            assert (response.id, response.model) == (before[0]["response"]["id"], before[0]["response"]["model"])
            assert response.usage is not None
            assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
            assert [each.sequence_number for each in seen] == list(range(len(seen)))
            deltas = {kind: "".join(d["delta"] for d in before if d["type"] == kind) for kind in DELTAS}
            assert response.output_text == deltas["response.output_text.delta"]
            calls = [item.arguments for item in response.output if item.type == "function_call"]
            assert "".join(calls) == deltas["response.function_call_arguments.delta"]
            thoughts = [part.text for item in response.output if item.type == "reasoning" for part in item.summary]
            assert "".join(thoughts) == deltas["response.reasoning_summary_text.delta"]
            added = [d for d in before if d["type"] == "response.output_item.added"]
            done = [each for each in seen if each.type == "response.output_item.done"]
            assert len(response.output) == len(added) == len(done)


DELTAS = (
    "response.output_text.delta",
    "response.function_call_arguments.delta",
    "response.reasoning_summary_text.delta",
)


DEEP = "deeper than most JSON writers go"
STREAMS_OF = {
    CHAT: [TWO_TOOLS, TWO_ANSWERS, CHATS["words"][0]],
    COMPLETIONS: [standin_frames(completions, prompt="Hello there", **ASKING)],
    MESSAGES: [THINKING],
    RESPONSES: [WHOLE_RESPONSE],
}
junk: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 2**63, 1.5, "", "x", [], ["x"], [None], {}, {"type": 1}, {"": {}}, DEEP]
)


def spoilt(frame: bytes, pick: int, other: Any) -> bytes:
    """The same event with another value for one of its members, however deep."""
    if b"[DONE]" in frame or b"[[[" in frame:
        return frame
    document = json.loads(data(frame))
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, member in inside:
            places.append((value, key))
            waiting.append(member)
    holder, key = places[pick % len(places)]
    holder[key] = other
    name = str(document["type"]) if frame.startswith(b"event: ") and "type" in document else ""
    return event(document, name).replace(orjson.dumps(DEEP), b"[" * 400 + b"]" * 400)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(STREAMS_OF)),
    st.integers(0, 9),
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99), junk), max_size=4),
)
def test_whatever_a_target_has_sent_its_stream_can_be_cut(
    path: str, pick: int, border: int, mischief: list[tuple[int, int, Any]]
) -> None:
    frames = list(STREAMS_OF[path][pick % len(STREAMS_OF[path])])[:border]
    for place, which, other in mischief:
        frames[place % len(frames)] = spoilt(frames[place % len(frames)], which, other)
    meter = (ANTHROPIC if path == MESSAGES else OPENAI).meter(call(path, **ASKING))
    meter.stop_beyond(HUGE, HUGE)
    for frame in frames:
        assert meter.feed(frame) == frame
    for _, _, said in events(meter.cut()):
        assert said == b"[DONE]" or isinstance(json.loads(said), dict)
    assert meter.spent().output_tokens >= 0


def test_an_end_is_made_of_whole_events_that_nothing_needs_to_follow() -> None:
    for path, frames in ((CHAT, TWO_TOOLS), (MESSAGES, THINKING), (RESPONSES, WHOLE_RESPONSE)):
        for _, end in cuts(path, frames):
            for _, _, said in events(end):
                assert said == b"[DONE]" or isinstance(json.loads(said), dict)
            assert end == b"" or end.endswith(b"\n\n")
            assert data(end) or not end


def test_a_stream_that_has_ended_by_itself_needs_no_other_end() -> None:
    for path, frames in ((CHAT, TWO_TOOLS), (MESSAGES, THINKING), (RESPONSES, WHOLE_RESPONSE)):
        assert list(cuts(path, frames, **ASKING))[-1] == (b"".join(frames), b"")


def test_a_gateway_in_front_of_us_takes_our_end_for_one() -> None:
    for path, frames in ((CHAT, TWO_TOOLS), (MESSAGES, THINKING), (RESPONSES, WHOLE_RESPONSE)):
        adapter = ANTHROPIC if path == MESSAGES else OPENAI
        for passed, end in cuts(path, frames, **ASKING):
            meter = adapter.meter(call(path, **ASKING))
            assert meter.feed(passed + end) + meter.rest() == passed + end
            assert (meter.complete, meter.failed) == (True, False)
            assert meter.usage is not None
