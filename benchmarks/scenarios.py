"""What is asked of every contestant, and what a right answer looks like."""

import json
from dataclasses import dataclass

MODEL = "gpt-4o-mini"
PATH = "/v1/chat/completions"
CHUNKS = 50
"""Pieces of a streamed answer, each written to the socket on its own."""

_WORDS = "Weigh what an agent asks before it passes, and keep a record of what was said and why. "


def request_body(size: int, *, stream: bool) -> bytes:
    """A chat completion request of exactly `size` bytes, as the stock clients write them."""
    request: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": ""}], "max_tokens": 256}
    if stream:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    room = size - len(_compact(request))
    if room < 1:
        raise ValueError(f"a request takes {len(_compact(request)) + 1} bytes or more")
    request["messages"] = [{"role": "user", "content": (_WORDS * (room // len(_WORDS) + 1))[:room]}]
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


def answer_events() -> list[bytes]:
    """A streamed chat completion: CHUNKS pieces, the last two being the usage and [DONE]."""

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

    words = [piece({"content": f" word{number}"}, None) for number in range(CHUNKS - 4)]
    opening = piece({"role": "assistant", "content": ""}, None)
    return [opening, *words, piece({}, "stop"), event([], _USAGE), b"data: [DONE]\n\n"]


_USAGE = {"prompt_tokens": 200, "completion_tokens": 46, "total_tokens": 246}


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of call: a request body and whether its answer streams."""

    name: str
    title: str
    body: bytes
    stream: bool = False

    def mistake(self, status: int, body: bytes) -> str:
        """What is wrong with an answer, or nothing. Contestants may rewrite JSON, but not lose any of it."""
        if status != 200:
            return f"status {status}: {body[:200].decode(errors='replace')}"
        return self._stream_mistake(body) if self.stream else self._whole_mistake(body)

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
        wanted = "".join(f" word{number}" for number in range(CHUNKS - 4))
        return "" if text == wanted else "the stream's text is not what the upstream sent"

    def arrived(self, body: bytes) -> str:
        """What is wrong with the request as the upstream received it, or nothing."""
        try:
            sent, got = json.loads(self.body), json.loads(body)
        except ValueError:
            return "the upstream received something that is not JSON"
        same = got.get("messages") == sent["messages"] and bool(got.get("stream")) == self.stream
        return "" if same else "the upstream received other messages than were sent"


SCENARIOS = {
    "small": Scenario("small", "whole answers, 1 KB requests", request_body(1024, stream=False)),
    "large": Scenario("large", "whole answers, 200 KB requests", request_body(200 * 1024, stream=False)),
    "stream": Scenario(
        "stream", f"streamed answers, {CHUNKS} events, 1 KB requests", request_body(1024, stream=True), True
    ),
}
