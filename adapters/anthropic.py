"""The Anthropic API: messages and their token count."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from adapters.allowances import anthropic_headers
from adapters.anthropic_streams import MessagesMeter
from adapters.base import (
    ERROR_TYPES,
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
from adapters.body import check_spelling, parse, replace
from adapters.errors import MalformedCall
from adapters.meter import json_object, tokens_of
from adapters.openai import read_model, read_stream
from adapters.sizes import of_anthropic

_ENDPOINTS = (
    Endpoint("messages", "POST", "/v1/messages", "/messages", streams=True),
    Endpoint("count_tokens", "POST", "/v1/messages/count_tokens", "/messages/count_tokens", free=True),
    Endpoint("models", "GET", "/v1/models", answered_here=True, free=True),
    Endpoint("models", "GET", "/v1/models/", answered_here=True, free=True),
)

MEMBERS = frozenset(
    """
    betas billing_policy cache_control compaction container context_management diagnostics fallback_credit_token
    fallbacks inference_geo max_tokens mcp_servers messages metadata model output_config output_format service_tier
    speed stop_sequences stream system temperature thinking thread tool_choice tools top_k top_p user_profile_id
    workspace_id
    """.split()
)
"""What calls are made of at the top. Beside these only what the target alone understands, which passes as well."""

_ERROR_TYPES: Mapping[int, str] = {
    **ERROR_TYPES,
    404: "not_found_error",
    413: "request_too_large",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Anthropic:
    """Anthropic's wire format."""

    protocol = "anthropic"
    endpoints: Sequence[Endpoint] = _ENDPOINTS
    limit_headers = staticmethod(anthropic_headers)

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        if endpoint.answered_here:
            return AgentCall("llm", self.protocol, argument, endpoint.operation, None, {}, b"{}", endpoint)
        arguments = parse(body)
        check_spelling(arguments, MEMBERS)
        model = read_model(arguments)
        stream = "stream" in arguments and read_stream(arguments)
        if not isinstance(arguments.get("messages"), list):
            raise MalformedCall("`messages` must be a list.")
        return AgentCall(
            "llm",
            self.protocol,
            model,
            endpoint.operation,
            stream if endpoint.streams else None,
            arguments,
            body,
            endpoint,
        )

    def edited(self, call: AgentCall, body: bytes) -> AgentCall:
        return self.read(call.endpoint, body, call.target)

    def onward(self, call: AgentCall, model: str | None) -> bytes:
        if model is None or model == call.target:
            return call.body
        return replace(call.body, "model", orjson.dumps(model))

    def token_caps(self, call: AgentCall) -> Sequence[str]:
        return ("max_tokens",) if call.operation == "messages" else ()

    def size(self, call: AgentCall) -> Size:
        return of_anthropic(call, self.token_caps(call))

    def usage(self, call: AgentCall, answer: bytes) -> Usage | None:
        return _usage(reported_usage(answer))

    def referred(self, call: AgentCall) -> Sequence[str]:
        return ()

    def made(self, call: AgentCall, answer: bytes) -> Sequence[str]:
        return ()

    def counted(self, call: AgentCall, answer: bytes) -> int:
        blocks = json_object(answer).get("content") if call.operation == "messages" else None
        size = 0
        for block in blocks if isinstance(blocks, list) else ():
            match block:
                case {"type": "text", "text": str(said)} | {"type": "thinking", "thinking": str(said)}:
                    size += len(said.encode())
                case {"type": "tool_use" | "server_tool_use" | "mcp_tool_use", "input": dict(arguments)}:
                    size += len(orjson.dumps(arguments))
        return tokens_of(size)

    def meter(self, call: AgentCall) -> StreamMeter:
        return MessagesMeter(call, _usage)

    def status(self, refusal: Refusal) -> int:
        return refusal.status

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        return refusal_headers(refusal, b"request-id"), orjson.dumps(_error(refusal))

    def broken_stream(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(_error(refusal)) + b"\n\n"

    def catalogue(self, models: Sequence[str], argument: str) -> bytes | None:
        cards = [
            {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"} for name in models
        ]
        if not argument:
            ends = {"first_id": models[0] if models else None, "last_id": models[-1] if models else None}
            return orjson.dumps({"data": cards, "has_more": False, **ends})
        return next((orjson.dumps(card) for card in cards if card["id"] == argument), None)


def _error(refusal: Refusal) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(refusal.status, "invalid_request_error")
    error = {"type": kind, "message": refusal.message, "code": refusal.code}
    return {"type": "error", "error": {**error, **refusal.details, **error}, "request_id": refusal.call_id}


def _usage(usage: Mapping[str, Any]) -> Usage | None:
    """Anthropic counts cached tokens beside `input_tokens`; here they are part of it, as everywhere else.

    What is read and written to shorten a conversation, or by a model that advises, is counted beside it all.
    """
    if not usage:
        return None
    counted = _counted(usage)
    iterations = usage.get("iterations")
    for each in iterations if isinstance(iterations, list) else ():
        if isinstance(each, dict) and each.get("type") in ("compaction", "advisor_message"):
            further = _counted(each)
            counted.input_tokens += further.input_tokens
            counted.output_tokens += further.output_tokens
            counted.cache_read_tokens += further.cache_read_tokens
            counted.cache_write_tokens += further.cache_write_tokens
            counted.cache_write_1h_tokens += further.cache_write_1h_tokens
    if usage.get("server_tool_use") is not None:
        counted.web_searches = whole(member(usage, "server_tool_use").get("web_search_requests"))
    if usage.get("speed") == "fast":
        counted.tier = "fast"
    return counted


def _counted(usage: Mapping[str, Any]) -> Usage:
    given, made = whole(usage.get("input_tokens")), whole(usage.get("output_tokens"))
    read, written = whole(usage.get("cache_read_input_tokens")), whole(usage.get("cache_creation_input_tokens"))
    counted = Usage(given + read + written, made, read, written)
    if usage.get("cache_creation") is not None:
        kept = member(usage, "cache_creation")
        counted.cache_write_1h_tokens = for_an_hour = whole(kept.get("ephemeral_1h_input_tokens"))
        counted.cache_write_tokens = max(written, whole(kept.get("ephemeral_5m_input_tokens")) + for_an_hour)
        counted.input_tokens += counted.cache_write_tokens - written
    if usage.get("output_tokens_details") is not None:
        thought = member(usage, "output_tokens_details")
        counted.reasoning_tokens = whole(thought.get("thinking_tokens", thought.get("reasoning_tokens")))
    return counted
