"""The OpenAI API: chat completions, completions, embeddings, responses, models."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from adapters.base import AgentCall, Endpoint, Headers, Refusal, Usage, member, reported_usage, whole
from adapters.body import parse, replace
from adapters.errors import MalformedCall
from adapters.sse import Framing, events

_ENDPOINTS = (
    Endpoint("chat", "POST", "/v1/chat/completions", "/chat/completions", streams=True),
    Endpoint("completions", "POST", "/v1/completions", "/completions", streams=True),
    Endpoint("embeddings", "POST", "/v1/embeddings", "/embeddings"),
    Endpoint("responses", "POST", "/v1/responses", "/responses", streams=True),
    Endpoint("models", "GET", "/v1/models", answered_here=True),
    Endpoint("models", "GET", "/v1/models/", answered_here=True),
)

_REQUIRED: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "chat": ("messages", (list,)),
    "completions": ("prompt", (str, list)),
    "embeddings": ("input", (str, list)),
}

_ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    502: "api_error",
    503: "api_error",
    504: "api_error",
}

_HEADERS: Headers = [(b"content-type", b"application/json")]
_HEADERS_NO_RETRY: Headers = [*_HEADERS, (b"x-should-retry", b"false")]


class OpenAI:
    """OpenAI's wire format, as spoken by its SDKs and by every server that calls itself compatible."""

    protocol = "openai"
    endpoints: Sequence[Endpoint] = _ENDPOINTS

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        if endpoint.answered_here:
            return AgentCall("llm", self.protocol, argument, endpoint.operation, None, {}, b"{}", endpoint)
        arguments = parse(body)
        model, stream = read_model(arguments), read_stream(arguments)
        required = _REQUIRED.get(endpoint.operation)
        if required is not None and not isinstance(arguments.get(required[0]), required[1]):
            raise MalformedCall(f"`{required[0]}` is missing or of the wrong type.")
        wants_usage = True
        if stream and endpoint.operation in _USAGE_ON_REQUEST:
            options = arguments.get("stream_options")
            if options is not None and not isinstance(options, dict):
                raise MalformedCall("`stream_options` must be an object.")
            wants_usage = bool(options) and options.get("include_usage") is True
        return AgentCall(
            "llm",
            self.protocol,
            model,
            endpoint.operation,
            stream if endpoint.streams else None,
            arguments,
            body,
            endpoint,
            wants_usage,
        )

    def onward(self, call: AgentCall, model: str | None) -> bytes:
        body = call.body
        if model is not None and model != call.target:
            body = replace(body, "model", orjson.dumps(model))
        if not call.wants_usage:
            options = call.arguments.get("stream_options") or {}
            body = replace(body, "stream_options", orjson.dumps({**options, "include_usage": True}))
        return body

    def usage(self, call: AgentCall, answer: bytes) -> Usage | None:
        return _usage(reported_usage(answer))

    def meter(self, call: AgentCall) -> "_Meter":
        if call.operation == "responses":
            return _Meter(_RESPONSES_SIGNS, _watch_responses, strip_usage=False)
        return _Meter(_COMPLETIONS_SIGNS, _watch_completions, strip_usage=not call.wants_usage)

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        headers = _HEADERS if refusal.retry else _HEADERS_NO_RETRY
        return headers, orjson.dumps(_error(refusal))

    def broken_stream(self, refusal: Refusal) -> bytes:
        return b"data: " + orjson.dumps(_error(refusal)) + b"\n\n"

    def catalogue(self, models: Sequence[str], argument: str) -> bytes | None:
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "weighbridge"} for name in models]
        if not argument:
            return orjson.dumps({"object": "list", "data": cards})
        return next((orjson.dumps(card) for card in cards if card["id"] == argument), None)


_USAGE_ON_REQUEST = frozenset({"chat", "completions"})


def read_model(arguments: Mapping[str, Any]) -> str:
    """The requested model. Raises MalformedCall unless it is a non-empty string of at most 256 printable characters."""
    model = arguments.get("model")
    if not isinstance(model, str) or not model or len(model) > 256 or not model.isprintable():
        raise MalformedCall("`model` must be the name of a model, as a string.")
    return model


def read_stream(arguments: Mapping[str, Any]) -> bool:
    """Whether a streamed answer is wanted. Raises MalformedCall for anything but true, false, null or nothing."""
    stream = arguments.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise MalformedCall("`stream` must be true or false.")
    return bool(stream)


def _error(refusal: Refusal) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(refusal.status, "invalid_request_error")
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}}


def _usage(usage: Mapping[str, Any]) -> Usage | None:
    if not usage:
        return None
    read = member(usage, "prompt_tokens_details") or member(usage, "input_tokens_details")
    written = member(usage, "completion_tokens_details") or member(usage, "output_tokens_details")
    return Usage(
        input_tokens=whole(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=whole(usage.get("completion_tokens", usage.get("output_tokens"))),
        cache_read_tokens=whole(read.get("cached_tokens")),
        cache_write_tokens=whole(read.get("cache_write_tokens")),
        reasoning_tokens=whole(written.get("reasoning_tokens")),
    )


# Inside a JSON string every quote is escaped, so these can only match keys and values of the event itself, never text
# that a model wrote.
_COMPLETIONS_SIGNS = re.compile(rb'"(?:usage"\s*:\s*\{|finish_reason"\s*:\s*"|error"\s*:\s*[{"])|^data: ?\[DONE\]', re.M)
_RESPONSES_SIGNS = re.compile(rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed)|error)"')


class _Meter:
    """Looks closely only at events that carry a sign of the end, of usage or of failure; all others just pass."""

    __slots__ = ("_framing", "_signs", "_strip_usage", "_watch", "complete", "failed", "usage")

    def __init__(
        self, signs: re.Pattern[bytes], watch: "Callable[[_Meter, bytes], bool]", *, strip_usage: bool
    ) -> None:
        self._framing = Framing()
        self._signs = signs
        self._watch = watch
        self._strip_usage = strip_usage
        self.usage: Usage | None = None
        self.complete = False
        self.failed = False

    def feed(self, piece: bytes) -> bytes:
        run = self._framing.whole(piece)
        if self._signs.search(run) is None:
            return run
        stripped = [(start, end) for start, end, data in events(run) if data and self._watch(self, data)]
        if not self._strip_usage or not stripped:
            return run
        kept, position = [], 0
        for start, end in stripped:
            kept.append(run[position:start])
            position = end
        return b"".join([*kept, run[position:]])


def _watch_completions(meter: _Meter, data: bytes) -> bool:
    """Notes what one event says; True when it is the usage chunk, which carries nothing else."""
    if data == b"[DONE]":
        meter.complete = True
        return False
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(chunk, dict):
        return False
    if chunk.get("error"):
        meter.failed = True
    choices = chunk.get("choices")
    if isinstance(choices, list) and any(isinstance(c, dict) and c.get("finish_reason") for c in choices):
        meter.complete = True
    usage = _usage(member(chunk, "usage"))
    if usage is not None:
        meter.usage = usage
    return usage is not None and choices == []


def _watch_responses(meter: _Meter, data: bytes) -> bool:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    kind = event.get("type") if isinstance(event, dict) else None
    if kind in ("response.completed", "response.incomplete", "response.failed"):
        meter.complete = True
        meter.failed = kind == "response.failed"
        meter.usage = _usage(member(member(event, "response"), "usage")) or meter.usage
    elif kind == "error":
        meter.complete = meter.failed = True
    return False
