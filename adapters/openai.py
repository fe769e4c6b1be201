"""The OpenAI API: chat completions, completions, embeddings, responses, models."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import Any

import orjson

from adapters.allowances import openai_headers
from adapters.base import (
    ERROR_TYPES,
    AgentCall,
    Allowance,
    Endpoint,
    Headers,
    Refusal,
    Size,
    StreamMeter,
    Usage,
    member,
    refusal_headers,
    reported_usage,
    whole,
)
from adapters.body import check_spelling, find, parse, put_first, replace
from adapters.errors import MalformedCall
from adapters.meter import DONE, Meter, Watch, json_object
from adapters.sizes import of_openai

_ENDPOINTS = (
    Endpoint("chat", "POST", "/v1/chat/completions", "/chat/completions", streams=True),
    Endpoint("completions", "POST", "/v1/completions", "/completions", streams=True),
    Endpoint("embeddings", "POST", "/v1/embeddings", "/embeddings"),
    Endpoint("responses", "POST", "/v1/responses", "/responses", streams=True),
    Endpoint("models", "GET", "/v1/models", answered_here=True, free=True),
    Endpoint("models", "GET", "/v1/models/", answered_here=True, free=True),
)

_TEXTS = "must be a string or a list"
_CONTENT: Mapping[str, tuple[str, tuple[type, ...], str]] = {
    "chat": ("messages", (list,), "must be a list"),
    "completions": ("prompt", (str, list), _TEXTS),
    "embeddings": ("input", (str, list), _TEXTS),
    # A response may go on from a stored conversation or prompt, without input of its own.
    "responses": ("input", (str, list, NoneType), _TEXTS),
}
"""Per operation the member that holds what the model is to read, and what it can be."""

_TOKEN_CAPS: Mapping[str, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}

MEMBERS = frozenset(
    """
    access_programs audio background background_options best_of chat_template_kwargs context_management conversation
    dimensions echo encoding_format frequency_penalty function_call functions image include input instructions
    logit_bias logprobs max_completion_tokens max_output_tokens max_tokens max_tool_calls messages metadata
    modalities model moderation n parallel_tool_calls prediction presence_penalty previous_response_id prompt
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning reasoning_effort response_format
    safety_identifier seed service_tier stop store stream stream_options suffix temperature text tool_choice tools
    top_k top_logprobs top_p truncation user verbosity web_search_options
    """.split()
)
"""What calls are made of at the top. Beside these only what the target alone understands, which passes as well."""

_BILLED_OTHERWISE = frozenset({"service_tier", "tools"})
"""Members of a call that can make it cost something beside its tokens, or its tokens cost something else."""
_DEARER = b'"priority"'
"""What an answer says near its end where its project is billed by other terms than the call has asked for."""
_NEAR_END = 4096

_USAGE_ON_REQUEST = frozenset({"chat", "completions"})
"""Operations that stream token counts only to those who ask."""

_ERROR_TYPES: Mapping[int, str] = {
    **ERROR_TYPES,
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}
_TYPES_BY_CODE: Mapping[str, str] = {"budget_exhausted": "insufficient_quota"}
"""Where OpenAI has a word that says more than the status does."""


class OpenAI:
    """OpenAI's wire format, as spoken by its SDKs and by every server that calls itself compatible."""

    protocol = "openai"
    endpoints: Sequence[Endpoint] = _ENDPOINTS

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        if endpoint.answered_here:
            return AgentCall("llm", self.protocol, argument, endpoint.operation, None, {}, b"{}", endpoint)
        arguments = parse(body)
        check_spelling(arguments, MEMBERS)
        model, stream = read_model(arguments), read_stream(arguments)
        field, types, remedy = _CONTENT[endpoint.operation]
        if not isinstance(arguments.get(field), types):
            raise MalformedCall(f"`{field}` {remedy}.")
        asks_usage = _asks_usage(arguments)
        return AgentCall(
            "llm",
            self.protocol,
            model,
            endpoint.operation,
            stream if endpoint.streams else None,
            arguments,
            body,
            endpoint,
            wants_usage=asks_usage or not stream or endpoint.operation not in _USAGE_ON_REQUEST,
        )

    def onward(self, call: AgentCall, model: str | None) -> bytes:
        body = call.body
        if model is not None and model != call.target:
            body = replace(body, "model", orjson.dumps(model))
        if not call.wants_usage:
            body = _asking_for_usage(body, call.arguments)
        return body

    def token_caps(self, call: AgentCall) -> Sequence[str]:
        return _TOKEN_CAPS.get(call.operation, ())

    def size(self, call: AgentCall) -> Size:
        return of_openai(call, self.token_caps(call))

    def usage(self, call: AgentCall, answer: bytes) -> Usage | None:
        usage = reported_usage(answer)
        if _BILLED_OTHERWISE.isdisjoint(call.arguments) and _DEARER not in answer[-_NEAR_END:]:
            return _usage(usage)
        asked = call.arguments.get("service_tier")
        # Where only an answer's end is at hand, nobody knows that it is billed by cheaper terms than the usual ones.
        return _usage(usage, json_object(answer) or {"service_tier": asked if asked != "flex" else None})

    def meter(self, call: AgentCall) -> StreamMeter:
        if call.operation == "responses":
            return Meter(_RESPONSES_SIGNS, _watch_responses)
        return Meter(_COMPLETIONS_SIGNS, _completions(_answers(call.arguments)), keep=call.wants_usage)

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        return refusal_headers(refusal), orjson.dumps(_error(refusal))

    def limit_headers(self, calls: Allowance | None, tokens: Allowance | None, now_ns: int) -> Headers:
        return openai_headers(calls, tokens)

    def broken_stream(self, refusal: Refusal) -> bytes:
        return b"data: " + orjson.dumps(_error(refusal)) + b"\n\n"

    def catalogue(self, models: Sequence[str], argument: str) -> bytes | None:
        cards = [{"id": name, "object": "model", "created": 0, "owned_by": "weighbridge"} for name in models]
        if not argument:
            return orjson.dumps({"object": "list", "data": cards})
        return next((orjson.dumps(card) for card in cards if card["id"] == argument), None)


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


def _asks_usage(arguments: Mapping[str, Any]) -> bool:
    options = arguments.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise MalformedCall("`stream_options` must be an object.")
    asks = options.get("include_usage")
    if asks is not None and not isinstance(asks, bool):
        raise MalformedCall("`stream_options.include_usage` must be true or false.")
    return bool(asks)


def _asking_for_usage(body: bytes, arguments: Mapping[str, Any]) -> bytes:
    if "stream_options" not in arguments:
        return put_first(body, "stream_options", b'{"include_usage":true}')
    span = find(body, "stream_options")
    assert span is not None, "a member that was parsed can be found"
    options = b"{}" if arguments["stream_options"] is None else body[slice(*span)]
    return replace(body, "stream_options", replace(options, "include_usage", b"true"))


def _error(refusal: Refusal) -> dict[str, Any]:
    kind = _TYPES_BY_CODE.get(refusal.code) or _ERROR_TYPES.get(refusal.status, "invalid_request_error")
    error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    return {"error": {**error, **refusal.details, **error}}


def _usage(usage: Mapping[str, Any], around: Mapping[str, Any] = MappingProxyType({})) -> Usage | None:
    """What a `usage` says, and the answer `around` it: the terms that it is billed by, the searches in it.

    Some servers count cached tokens beside those of the prompt, and reasoning beside the answer's: then the parts are
    more than the whole, or the total is more than its two parts.
    """
    if not usage:
        return None
    read = member(usage, "prompt_tokens_details") or member(usage, "input_tokens_details")
    written = member(usage, "completion_tokens_details") or member(usage, "output_tokens_details")
    given = whole(usage.get("prompt_tokens", usage.get("input_tokens")))
    made = whole(usage.get("completion_tokens", usage.get("output_tokens")))
    total = whole(usage.get("total_tokens"))
    if total > given + made:
        given, made = (given, total - given) if given else (total - made, made)
    cached, stored = whole(read.get("cached_tokens", usage.get("cached_tokens"))), whole(read.get("cache_write_tokens"))
    tier = around.get("service_tier")
    return Usage(
        input_tokens=given if cached + stored <= given else given + cached + stored,
        output_tokens=made,
        cache_read_tokens=cached,
        cache_write_tokens=stored,
        reasoning_tokens=whole(written.get("reasoning_tokens")),
        audio_input_tokens=whole(read.get("audio_tokens")),
        audio_output_tokens=whole(written.get("audio_tokens")),
        image_input_tokens=whole(read.get("image_tokens")),
        web_searches=max(
            _items(around, "web_search_call"),
            whole(member(member(around, "tool_usage"), "web_search").get("num_requests")),
        ),
        file_searches=_items(around, "file_search_call"),
        tier=tier if isinstance(tier, str) and tier != "default" else "",
    )


def _items(answer: Mapping[str, Any], kind: str) -> int:
    """How many items of a response are of a kind. To open a page that was found is no search."""
    items = answer.get("output")
    return sum(
        isinstance(item, dict)
        and item.get("type") == kind
        and member(item, "action").get("type") not in ("open_page", "find", "find_in_page")
        for item in (items if isinstance(items, list) else ())
    )


# Most chunks carry these members as null; only a value matters.
_COMPLETIONS_SIGNS = (
    re.compile(rb'"usage"(?!\s*:\s*null)'),
    re.compile(rb'"finish_reason"(?!\s*:\s*null)'),
    re.compile(rb'"error"(?!\s*:\s*null)'),
    re.compile(rb"\[DONE\]"),
)
_RESPONSES_SIGNS = (
    re.compile(rb'"response\.(?:completed|incomplete|failed)"'),
    re.compile(rb'"error"(?!\s*:\s*null)'),
)


def _completions(answers: int) -> Watch:
    """Usage comes in a chunk of its own, without choices, when asked for; some targets report it in every chunk.

    A stream is finished when each of its `answers` has a finish reason, or at the target's [DONE].
    """
    finished: set[int] = set()

    def watch(meter: Meter, said: bytes) -> bool:
        if said.startswith(DONE):
            meter.complete = True
            return False
        chunk = json_object(said)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("finish_reason"):
                finished.add(whole(choice.get("index")))
        if len(finished) >= answers:
            meter.complete = True
        if chunk.get("error"):
            meter.failed = True
            return False
        meter.usage = _usage(member(chunk, "usage")) or meter.usage
        return isinstance(chunk.get("usage"), dict) and not choices

    return watch


def _watch_responses(meter: Meter, said: bytes) -> bool:
    event = json_object(said)
    kind = event.get("type")
    if kind in ("response.completed", "response.incomplete", "response.failed"):
        meter.complete = True
        meter.failed = kind == "response.failed"
        meter.usage = _usage(member(member(event, "response"), "usage")) or meter.usage
    elif kind == "error" or event.get("error"):
        meter.failed = True
    return False


def _answers(arguments: Mapping[str, Any]) -> int:
    """How many answers one stream interleaves: `n` for every prompt. A prompt is a text, or a list of tokens."""
    prompt = arguments.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (whole(arguments.get("n")) or 1)
