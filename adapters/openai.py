"""The OpenAI API: chat completions, completions, embeddings, responses, models."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import Any

import orjson

from adapters import handles
from adapters.allowances import openai_headers
from adapters.base import (
    ERROR_TYPES,
    MOST_TOKENS,
    AgentCall,
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
from adapters.meter import beginning, json_object, tokens_of, told_in
from adapters.openai_streams import ChatMeter, CompletionsMeter, Reads, ResponsesMeter
from adapters.sizes import of_openai

_ENDPOINTS = (
    Endpoint("chat", "POST", "/v1/chat/completions", "/chat/completions", streams=True),
    Endpoint("completions", "POST", "/v1/completions", "/completions", streams=True),
    Endpoint("embeddings", "POST", "/v1/embeddings", "/embeddings"),
    Endpoint("responses", "POST", "/v1/responses", "/responses", streams=True, keeps=True),
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
    modalities model moderation n n_predict parallel_tool_calls prediction presence_penalty previous_response_id prompt
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning reasoning_effort response_format
    safety_identifier seed service_tier stop store stream stream_options suffix temperature text tool_choice tools
    top_k top_logprobs top_p truncation user verbosity web_search_options
    """.split()
)
"""What calls are made of at the top. Beside these only what the target alone understands, which passes as well."""

_MADE: Mapping[str, str] = {"chat": "choices", "completions": "choices", "responses": "output"}
"""Operations that are answered in text -> the member of an unstreamed answer that holds it."""
_SAID = frozenset("arguments code content input reasoning reasoning_content refusal text thinking transcript".split())
"""Names of what a model has written, wherever in an answer it stands."""
_QUOTED = frozenset({"annotations", "logprobs", "outputs", "results"})
"""Names of what it has not."""

_METERS: Mapping[str, Callable[[AgentCall, Reads], StreamMeter]] = {
    "chat": ChatMeter,
    "completions": CompletionsMeter,
    "responses": ResponsesMeter,
}

_BILLED_OTHERWISE = frozenset({"service_tier", "tools"})
"""Members of a call that can make it cost something beside its tokens, or its tokens cost something else."""
_DEARER = b'"priority"'
"""What an answer says near its end where its project is billed by other terms than the call has asked for."""
_NEAR_END = 4096

_DETAILS = frozenset(
    """
    cached_tokens completion_tokens_details input_tokens_details output_tokens_details prompt_tokens_details
    """.split()
)
"""Members of a `usage` that say what its tokens are parts of."""

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
    limit_headers = staticmethod(openai_headers)

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        if endpoint.answered_here:
            return AgentCall("llm", self.protocol, argument, endpoint.operation, None, {}, b"{}", endpoint)
        arguments = parse(body)
        check_spelling(arguments, MEMBERS)
        model = read_model(arguments)
        stream = "stream" in arguments and read_stream(arguments)
        field, types, remedy = _CONTENT[endpoint.operation]
        if not isinstance(arguments.get(field), types):
            raise MalformedCall(f"`{field}` {remedy}.")
        asks_usage = "stream_options" in arguments and _asks_usage(arguments)
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

    def edited(self, call: AgentCall, body: bytes) -> AgentCall:
        return self.read(call.endpoint, body, call.target)

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
        return of_openai(call, _TOKEN_CAPS.get(call.operation, ()))

    def usage(self, call: AgentCall, answer: bytes) -> Usage | None:
        usage = reported_usage(answer)
        if _BILLED_OTHERWISE.isdisjoint(call.arguments) and answer.find(_DEARER, -_NEAR_END) < 0:
            return _usage(usage)
        asked = call.arguments.get("service_tier")
        # Where only an answer's end is at hand, nobody knows that it is billed by cheaper terms than the usual ones.
        return _usage(usage, json_object(answer) or {"service_tier": asked if asked != "flex" else None})

    def referred(self, call: AgentCall) -> Sequence[str]:
        return handles.referred(call.arguments)

    def made(self, call: AgentCall, answer: bytes) -> Sequence[str]:
        return handles.made(json_object(answer) or beginning(answer))

    def counted(self, call: AgentCall, answer: bytes) -> int:
        made = json_object(answer).get(_MADE.get(call.operation, ""))
        answers = made if isinstance(made, list) else []
        # Some servers send the same text under two names.
        size = sum(len(text.encode()) for one in answers for text in dict.fromkeys(told_in(one, _SAID, _QUOTED)))
        if call.arguments.get("echo"):  # every answer begins with its prompt, which is no longer than the body
            size -= len(call.body) * len(answers)
        return tokens_of(size)

    def meter(self, call: AgentCall) -> StreamMeter:
        return _METERS.get(call.operation, ChatMeter)(call, _usage)

    def status(self, refusal: Refusal) -> int:
        return refusal.status

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        return refusal_headers(refusal, b"x-request-id"), orjson.dumps(_error(refusal))

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
    given, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (
        type(given) is type(made) is int
        and given >= 0 <= made
        and given + made == usage.get("total_tokens")
        and given + made <= MOST_TOKENS
    ):
        given, made = _totals(usage)
    if not around and _DETAILS.isdisjoint(usage):
        return Usage(given, made)
    read = member(usage, "prompt_tokens_details") or member(usage, "input_tokens_details")
    written = member(usage, "completion_tokens_details") or member(usage, "output_tokens_details")
    if not (around or any(read.values()) or any(written.values()) or "cached_tokens" in usage):
        return Usage(given, made)
    cached, stored = whole(read.get("cached_tokens", usage.get("cached_tokens"))), whole(read.get("cache_write_tokens"))
    found = Usage(
        input_tokens=given if max(cached, stored) <= given else given + cached + stored,
        output_tokens=made,
        cache_read_tokens=cached,
        cache_write_tokens=stored,
        reasoning_tokens=whole(written.get("reasoning_tokens")),
        audio_input_tokens=whole(read.get("audio_tokens")),
        audio_output_tokens=whole(written.get("audio_tokens")),
        image_input_tokens=whole(read.get("image_tokens")),
    )
    if around:
        counted = whole(member(member(around, "tool_usage"), "web_search").get("num_requests"))
        found.web_searches = max(_items(around, "web_search_call"), counted)
        found.file_searches = _items(around, "file_search_call")
        tier = around.get("service_tier")
        found.tier = tier if isinstance(tier, str) and tier != "default" else ""
    return found


def _totals(usage: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens read and made, where a server tells them in its own way."""
    given = whole(usage.get("prompt_tokens", usage.get("input_tokens")))
    made = whole(usage.get("completion_tokens", usage.get("output_tokens")))
    total = whole(usage.get("total_tokens"))
    if total > given + made:
        given, made = (given, total - given) if given else (total - made, made)
    return given, made


def _items(answer: Mapping[str, Any], kind: str) -> int:
    """How many items of a response are of a kind. To open a page that was found is no search."""
    items = answer.get("output")
    return sum(
        isinstance(item, dict)
        and item.get("type") == kind
        and member(item, "action").get("type") not in ("open_page", "find", "find_in_page")
        for item in (items if isinstance(items, list) else ())
    )
