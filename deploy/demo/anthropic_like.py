"""A stand-in model server in the shapes of the Anthropic API: messages, token counts, models."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from deploy.demo.standin import (
    Dialect,
    Document,
    Events,
    Fault,
    Json,
    Refused,
    Reply,
    Standin,
    arguments_for,
    count_tokens,
    event,
    identifier,
    in_events,
    mentions_tool,
    say,
    tells_usage,
    text_of,
    words,
)

MODELS = ("claude-haiku-4-5", "claude-sonnet-4-5")


def anthropic_standin(key: str | None = "standin-anthropic-key", *, pace: float = 0.0, slow: float = 5.0) -> Standin:
    """A stand-in that accepts `key` only. See `Standin` for `pace` and `slow`."""
    return Standin(DIALECT, key, pace=pace, slow=slow)


def messages(document: Document) -> Reply:
    """POST /v1/messages"""
    model, conversation = _asked(document)
    limit = document.get("max_tokens")
    if not isinstance(limit, int) or limit < 1:
        raise _invalid("max_tokens: a whole number of at least 1 is required")
    last = conversation[-1]
    asked = text_of(last.get("content"))
    tool = _tool_to_call(document.get("tools"), asked) if last.get("role") == "user" else None
    if tool:
        arguments = arguments_for(tool.get("input_schema"))
        written = orjson.dumps(arguments).decode()
        block: Document = {
            "type": "tool_use",
            "id": identifier("toolu_", document),
            "name": tool["name"],
            "input": arguments,
        }
        stop_reason = "tool_use"
    else:
        written, cut = say(model, asked, limit)
        block = {"type": "text", "text": written}
        stop_reason = "max_tokens" if cut else "end_turn"
    usage: Document = {
        "input_tokens": _input_tokens(document),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": len(words(written)),
        "service_tier": "standard",
    }
    if not tells_usage(model):  # clients insist on the member itself
        usage |= {"input_tokens": 0, "output_tokens": 0}
    message: Document = {
        "id": identifier("msg_", document),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }
    if not document.get("stream"):
        return Json(message)

    begun = message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": int(tells_usage(model))}}
    empty: Document = {"input": {}} if tool else {"text": ""}
    opened = block | empty
    frames = [
        _typed("message_start", message=begun),
        _typed("content_block_start", index=0, content_block=opened),
        _typed("ping"),
    ]
    for piece in words(written) if tool else in_events(model, written):
        delta: Document = (
            {"type": "input_json_delta", "partial_json": piece} if tool else {"type": "text_delta", "text": piece}
        )
        frames.append(_typed("content_block_delta", index=0, delta=delta))
    final_usage = {name: count for name, count in usage.items() if name not in ("cache_creation", "service_tier")}
    frames += [
        _typed("content_block_stop", index=0),
        _typed("message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None}, usage=final_usage),
        _typed("message_stop"),
    ]
    return Events(tuple(frames))


def message_tokens(document: Document) -> Reply:
    """POST /v1/messages/count_tokens"""
    _asked(document)
    return Json({"input_tokens": _input_tokens(document)})


def models(_: Document) -> Reply:
    """GET /v1/models"""
    data = [_described(model) for model in MODELS]
    return Json({"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})


def _model_card(model: str, _: Document) -> Reply:
    return Json(_described(model))


def _described(model: str) -> Document:
    return {"type": "model", "id": model, "display_name": model, "created_at": "2025-11-21T04:40:00Z"}


def _typed(kind: str, **fields: Any) -> bytes:
    return event({"type": kind} | fields, kind)


def _asked(document: Document) -> tuple[str, list[Document]]:
    model, conversation = document.get("model"), document.get("messages")
    if not isinstance(model, str) or not model:
        raise _invalid("model: a non-empty string is required")
    if not isinstance(conversation, list) or not conversation or not all(isinstance(m, dict) for m in conversation):
        raise _invalid("messages: at least one message is required")
    return model, conversation


def _invalid(message: str) -> Refused:
    return Refused(Fault(400, "invalid_request_error", message))


def _tool_to_call(tools: Any, asked: str) -> Document | None:
    if not isinstance(tools, list) or not tools or not mentions_tool(asked):
        return None
    tool: Document = tools[0]
    return tool


def _input_tokens(document: Document) -> int:
    return count_tokens(document.get("system")) + count_tokens(document["messages"])


def _check_headers(headers: Mapping[str, str]) -> None:
    if "anthropic-version" not in headers:
        raise _invalid("anthropic-version: this header is required")


def _error_document(fault: Fault, request_id: str) -> Document:
    return {"type": "error", "error": {"type": fault.kind, "message": fault.message}, "request_id": request_id}


def _error_event(path: str) -> bytes:
    message = "The stand-in broke this stream off, as its model's name asks."
    return _typed("error", error={"type": "overloaded_error", "message": message})


FAULTS = {
    "unauthenticated": Fault(401, "authentication_error", "The stand-in does not know this API key."),
    "not_found": Fault(404, "not_found_error", "The stand-in serves nothing at this URL."),
    "method": Fault(405, "invalid_request_error", "This URL does not answer this method."),
    "malformed": Fault(400, "invalid_request_error", "The body is not a JSON object."),
    "fail-400": Fault(400, "invalid_request_error", "The stand-in finds this too long."),
    "fail-429": Fault(429, "rate_limit_error", "The stand-in is asked too often.", headers={"retry-after": "1"}),
    "fail-500": Fault(500, "api_error", "The stand-in failed, as its model's name asks."),
}

DIALECT = Dialect(
    answers={
        ("POST", "/v1/messages"): messages,
        ("POST", "/v1/messages/count_tokens"): message_tokens,
        ("GET", "/v1/models"): models,
        **{("GET", f"/v1/models/{model}"): partial(_model_card, model) for model in MODELS},
    },
    faults=FAULTS,
    error_document=_error_document,
    error_event=_error_event,
    request_id_header="request-id",
    check_headers=_check_headers,
)
