"""What is asked of every contestant, and what a right answer looks like."""

import json
from dataclasses import dataclass

MODEL = "gpt-4o-mini"
PATH = "/v1/chat/completions"
COUNT = "00000000"
"""Stands in a request, once or twice, where each call has its own number: no two calls ask the same."""
SHORT, LONG = 50, 500
"""Events of streamed answers, each written to the socket on its own. A call asks for them as `max_tokens`."""

_REWRITTEN = 0.5
"""Share of the upstream's bytes that an answer has at least: peers rewrite answers and drop fields they do not know."""

_WORDS = "Weigh what an agent asks before it passes, and keep a record of what was said and why. "


def request_body(size: int, events: int = 0) -> bytes:
    """A chat completion request of exactly `size` bytes, as the stock clients write them; with events it streams."""
    request: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": ""}]}
    request["max_tokens"] = events or 256
    if events:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    room = size - len(_compact(request))
    if room <= len(COUNT):
        raise ValueError(f"a request takes {len(_compact(request)) + len(COUNT) + 1} bytes or more")
    words = COUNT + " " + _WORDS * (room // len(_WORDS) + 1)
    request["messages"] = [{"role": "user", "content": words[:room]}]
    return _compact(request)


def answer_body() -> bytes:
    """A whole chat completion of about 1 KB."""
    message: dict[str, object] = {"role": "assistant", "content": _WORDS * 8, "refusal": None, "annotations": []}
    return _compact(
        {
            "id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012",
            "object": "chat.completion",
            "created": 1763700000,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": _USAGE,
            "service_tier": "default",
            "system_fingerprint": "fp_0123456789",
        }
    )


def answer_events(count: int) -> list[bytes]:
    """A streamed chat completion in so many events, the last two being the usage and [DONE]."""

    def event(choices: list[object], usage: object) -> bytes:
        chunk = {
            "id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012",
            "object": "chat.completion.chunk",
            "created": 1763700000,
            "model": MODEL,
            "service_tier": "default",
            "system_fingerprint": "fp_0123456789",
            "choices": choices,
            "usage": usage,
        }
        return b"data: " + _compact(chunk) + b"\n\n"

    def piece(delta: object, finish: str | None) -> bytes:
        return event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], None)

    words = [piece({"content": word}, None) for word in _said(count)]
    opening = piece({"role": "assistant", "content": ""}, None)
    return [opening, *words, piece({}, "stop"), event([], _USAGE), b"data: [DONE]\n\n"]


def _said(count: int) -> list[str]:
    """The words of a stream of `count` events, four of which say nothing."""
    return [f" word{number}" for number in range(count - 4)]


_USAGE = {"prompt_tokens": 200, "completion_tokens": 46, "total_tokens": 246}


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of call: a request body and the number of events in its answer, 0 for one that does not stream."""

    name: str
    title: str
    body: bytes
    events: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    """What its calls have beside the contestant's own headers."""
    in_session: bool = False
    """Whether its calls belong to sessions."""

    def shortest(self) -> int:
        """Bytes on the wire that an answer has at least when nothing is missing from it."""
        whole = sum(map(len, answer_events(self.events))) if self.events else len(answer_body())
        return int(whole * _REWRITTEN)

    def mistake(self, status: int, body: bytes) -> str:
        """What is wrong with an answer, or nothing. Contestants may rewrite JSON, but not lose any of it."""
        if status != 200:
            return f"status {status}: {body[:200].decode(errors='replace')}"
        return self._stream_mistake(body) if self.events else self._whole_mistake(body)

    def _whole_mistake(self, body: bytes) -> str:
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return f"not a chat completion: {body[:200].decode(errors='replace')}"
        return "" if content == _WORDS * 8 else "the answer's text is not what the upstream sent"

    def _stream_mistake(self, body: bytes) -> str:
        events = [line.removeprefix("data:").strip() for line in body.decode(errors="replace").splitlines() if line]
        if not events or events[-1] != "[DONE]":
            return "the stream does not end with [DONE]"
        try:
            deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
        except (ValueError, LookupError, TypeError):
            return "the stream has an event that is not a chunk"
        text = "".join(delta.get("content") or "" for delta in deltas)
        return "" if text == "".join(_said(self.events)) else "the stream's text is not what the upstream sent"

    def arrived(self, body: bytes) -> str:
        """What is wrong with the request as the upstream received it, or nothing."""
        try:
            sent, got = json.loads(self.body), json.loads(body)
        except ValueError:
            return "the upstream received something that is not JSON"
        same = got.get("messages") == sent["messages"] and bool(got.get("stream")) == bool(self.events)
        return "" if same else "the upstream received other messages than were sent"


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("small", "whole answers, 1 KB requests", request_body(1024)),
        Scenario("large", "whole answers, 200 KB requests", request_body(200 * 1024)),
        Scenario("stream", f"answers in {SHORT} events, 1 KB requests", request_body(1024, SHORT), SHORT),
        Scenario("long", f"answers in {LONG} events, 1 KB requests", request_body(1024, LONG), LONG),
    )
}
