"""A stand-in model server in the shapes of the OpenAI API: chat, completions, embeddings, responses, models."""

import base64
import hashlib
import struct
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import orjson

from deploy.demo.standin import (
    CREATED,
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

MODELS = ("gpt-4o", "gpt-4o-mini", "llama-3.1-8b", "text-embedding-3-small")
DONE = b"data: [DONE]\n\n"
DEFAULT_DIMENSIONS = 64  # real models have hundreds; a demonstration is read by people
COMPLETION_MAX_TOKENS = 16  # the legacy endpoint's own default


def openai_standin(key: str | None = "standin-openai-key", *, pace: float = 0.0, slow: float = 5.0) -> Standin:
    """A stand-in that accepts `key` only. See `Standin` for `pace` and `slow`."""
    return Standin(DIALECT, key, pace=pace, slow=slow)


def chat(document: Document) -> Reply:
    """POST /v1/chat/completions"""
    model, messages = _model(document), document.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise _invalid("messages must be a list of at least one message object.", "messages")
    last = messages[-1]
    asked = text_of(last.get("content"))
    tool = _tool_to_call(document.get("tools"), asked) if last.get("role") == "user" else None
    limit = document.get("max_completion_tokens", document.get("max_tokens"))
    said, cut = say(model, asked, limit)
    arguments = orjson.dumps(arguments_for(tool.get("parameters"))).decode() if tool else ""
    n = document.get("n") or 1
    tokens = n * len(words(arguments if tool else said))
    usage = _usage(model, count_tokens(messages), tokens)
    base: Document = {
        "id": identifier("chatcmpl-", document),
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_standin",
    }
    call_id = identifier("call_", document)
    finish = "tool_calls" if tool else "length" if cut else "stop"
    if not document.get("stream"):
        message: Document = {"role": "assistant", "content": said, "refusal": None, "annotations": []}
        if tool:
            function = {"name": tool["name"], "arguments": arguments}
            message |= {"content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]}
        choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": finish} for i in range(n)]
        return Json(base | {"choices": choices} | usage)

    deltas: list[Document] = [{"role": "assistant", "content": None if tool else "", "refusal": None}]
    if tool:
        function = {"name": tool["name"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": 0, "id": call_id, "type": "function", "function": function}]})
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in words(arguments)]
    else:
        deltas += [{"content": piece} for piece in in_events(model, said)]
    options = document.get("stream_options") or {}
    extra: Document = {"usage": None} if options.get("include_usage") else {}
    if options.get("include_obfuscation", True):
        extra |= {"obfuscation": "standin"}
    base["object"] = "chat.completion.chunk"
    frames = [
        event(base | {"choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}]} | extra)
        for delta in deltas
        for i in range(n)
    ]
    frames += [
        event(base | {"choices": [{"index": i, "delta": {}, "logprobs": None, "finish_reason": finish}]} | extra)
        for i in range(n)
    ]
    if options.get("include_usage") and usage:
        frames.append(event(base | {"choices": []} | usage))
    return Events((*frames, DONE))


def completions(document: Document) -> Reply:
    """POST /v1/completions"""
    model, prompt = _model(document), document.get("prompt", "")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not all(isinstance(one, str) for one in prompts):
        raise _invalid("prompt must be a string or a list of strings.", "prompt")
    limit = document.get("max_tokens", COMPLETION_MAX_TOKENS)
    answers = [say(model, one, limit) for one in prompts for _ in range(document.get("n") or 1)]
    usage = _usage(model, count_tokens(prompts), sum(len(words(said)) for said, _ in answers))
    base: Document = {
        "id": identifier("cmpl-", document),
        "object": "text_completion",
        "created": CREATED,
        "model": model,
        "system_fingerprint": "fp_standin",
    }

    def choice(i: int, text: str, finish: str | None) -> Document:
        return {"text": text, "index": i, "logprobs": None, "finish_reason": finish}

    finishes = ["length" if cut else "stop" for _, cut in answers]
    if not document.get("stream"):
        choices = [choice(i, said, finishes[i]) for i, (said, _) in enumerate(answers)]
        return Json(base | {"choices": choices} | usage)
    include_usage = (document.get("stream_options") or {}).get("include_usage")
    extra: Document = {"usage": None} if include_usage else {}
    frames = []
    for i, (said, _) in enumerate(answers):
        frames += [event(base | {"choices": [choice(i, piece, None)]} | extra) for piece in in_events(model, said)]
        frames.append(event(base | {"choices": [choice(i, "", finishes[i])]} | extra))
    if include_usage and usage:
        frames.append(event(base | {"choices": []} | usage))
    return Events((*frames, DONE))


def embeddings(document: Document) -> Reply:
    """POST /v1/embeddings: unit vectors drawn from a hash of the input, so equal inputs have equal vectors."""
    model, given = _model(document), document.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise _invalid("input must be a string, a list of strings, or tokens.", "input")
    dimensions = document.get("dimensions", DEFAULT_DIMENSIONS)
    as_base64 = document.get("encoding_format") == "base64"
    data = []
    for i, one in enumerate(given):
        packed = _vector(one, dimensions)
        vector = base64.b64encode(packed).decode() if as_base64 else list(struct.unpack(f"<{dimensions}f", packed))
        data.append({"object": "embedding", "index": i, "embedding": vector})
    tokens = sum(count_tokens(one) if isinstance(one, str) else len(one) for one in given)
    usage = {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if tells_usage(model) else {}
    return Json({"object": "list", "data": data, "model": model} | usage)


def responses(document: Document) -> Reply:
    """POST /v1/responses"""
    model, given = _model(document), document.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise _invalid("input must be a string or a list of at least one item.", "input")
    last = items[-1]
    asked = text_of(last.get("content"))
    tool = _tool_to_call(document.get("tools"), asked) if last.get("role") == "user" else None
    said, cut = say(model, asked, document.get("max_output_tokens"))
    status = "incomplete" if cut and not tool else "completed"
    arguments = orjson.dumps(arguments_for(tool.get("parameters"))).decode() if tool else ""
    if tool:
        item: Document = {
            "id": identifier("fc_", document),
            "type": "function_call",
            "status": status,
            "call_id": identifier("call_", document),
            "name": tool["name"],
            "arguments": arguments,
        }
    else:
        part = {"type": "output_text", "text": said, "annotations": [], "logprobs": []}
        item = {
            "id": identifier("msg_", document),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [part],
        }
    tokens_in = count_tokens(document.get("instructions")) + count_tokens(items)
    tokens_out = len(words(arguments if tool else said))
    final: Document = {
        "id": identifier("resp_", document),
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": document.get("instructions"),
        "max_output_tokens": document.get("max_output_tokens"),
        "metadata": document.get("metadata") or {},
        "model": model,
        "output": [item],
        "parallel_tool_calls": document.get("parallel_tool_calls", True),
        "previous_response_id": document.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": document.get("store", True),
        "temperature": document.get("temperature", 1.0),
        "text": document.get("text") or {"format": {"type": "text"}},
        "tool_choice": document.get("tool_choice", "auto"),
        "tools": document.get("tools") or [],
        "top_p": document.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": tokens_in,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_in + tokens_out,
        }
        if tells_usage(model)
        else None,
    }
    if not document.get("stream"):
        return Json(final)
    return Events(tuple(_response_events(final, item, arguments if tool else said)))


def _response_events(final: Document, item: Document, content: str) -> Iterator[bytes]:
    numbers = count()

    def typed(kind: str, **fields: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(numbers)} | fields, kind)

    begun = final | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield typed("response.created", response=begun)
    yield typed("response.in_progress", response=begun)
    at: Document = {"item_id": item["id"], "output_index": 0}
    if item["type"] == "function_call":
        opened = item | {"status": "in_progress", "arguments": ""}
        yield typed("response.output_item.added", output_index=0, item=opened)
        for piece in words(content):
            yield typed("response.function_call_arguments.delta", **at, delta=piece)
        yield typed("response.function_call_arguments.done", **at, name=item["name"], arguments=content)
    else:
        at["content_index"] = 0
        part = item["content"][0]
        opened = item | {"status": "in_progress", "content": []}
        yield typed("response.output_item.added", output_index=0, item=opened)
        yield typed("response.content_part.added", **at, part=part | {"text": ""})
        for piece in in_events(final["model"], content):
            yield typed("response.output_text.delta", **at, delta=piece, logprobs=[])
        yield typed("response.output_text.done", **at, text=content, logprobs=[])
        yield typed("response.content_part.done", **at, part=part)
    yield typed("response.output_item.done", output_index=0, item=item)
    yield typed(f"response.{final['status']}", response=final)


def models(_: Document) -> Reply:
    """GET /v1/models"""
    return Json({"object": "list", "data": [_described(model) for model in MODELS]})


def _model_card(model: str, _: Document) -> Reply:
    return Json(_described(model))


def _described(model: str) -> Document:
    return {"id": model, "object": "model", "created": CREATED, "owned_by": "weighbridge-demo"}


def _model(document: Document) -> str:
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise _invalid("model must be a non-empty string.", "model")
    return model


def _invalid(message: str, param: str) -> Refused:
    return Refused(Fault(400, "invalid_request_error", message, param=param))


def _tool_to_call(tools: Any, asked: str) -> Document | None:
    """The first function offered, if the question mentions a tool. Chat nests the function, responses does not."""
    if not isinstance(tools, list) or not tools or not mentions_tool(asked):
        return None
    tool: Document = tools[0].get("function", tools[0])
    return tool


def _usage(model: str, tokens_in: int, tokens_out: int) -> Document:
    """The member of an answer that tells it, where the model tells it."""
    if not tells_usage(model):
        return {}
    usage = {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    return {"usage": usage}


def _vector(given: Any, dimensions: int) -> bytes:
    """A unit vector as little-endian 32-bit floats."""
    drawn = struct.unpack(f"<{dimensions}h", hashlib.shake_256(orjson.dumps(given)).digest(2 * dimensions))
    length = sum(value * value for value in drawn) ** 0.5 or 1.0
    return struct.pack(f"<{dimensions}f", *(value / length for value in drawn))


def _error_document(fault: Fault, request_id: str) -> Document:
    return {"error": {"message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code}}


def _error_event(path: str) -> bytes:
    message = "The stand-in broke this stream off, as its model's name asks."
    if path == "/v1/responses":
        broken = {"type": "error", "sequence_number": 99, "code": "server_error", "message": message, "param": None}
        return event(broken, "error")
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


FAULTS = {
    "unauthenticated": Fault(
        401, "invalid_request_error", "The stand-in does not know this API key.", code="invalid_api_key"
    ),
    "not_found": Fault(404, "invalid_request_error", "The stand-in serves nothing at this URL.", code="unknown_url"),
    "method": Fault(405, "invalid_request_error", "This URL does not answer this method.", code="method_not_supported"),
    "malformed": Fault(400, "invalid_request_error", "The body is not a JSON object."),
    "fail-400": Fault(
        400,
        "invalid_request_error",
        "The stand-in finds this too long.",
        code="context_length_exceeded",
        param="messages",
    ),
    "fail-429": Fault(
        429, "requests", "The stand-in is asked too often.", code="rate_limit_exceeded", headers={"retry-after": "1"}
    ),
    "fail-500": Fault(500, "server_error", "The stand-in failed, as its model's name asks."),
}

DIALECT = Dialect(
    answers={
        ("POST", "/v1/chat/completions"): chat,
        ("POST", "/v1/completions"): completions,
        ("POST", "/v1/embeddings"): embeddings,
        ("POST", "/v1/responses"): responses,
        ("GET", "/v1/models"): models,
        **{("GET", f"/v1/models/{model}"): partial(_model_card, model) for model in MODELS},
    },
    faults=FAULTS,
    error_document=_error_document,
    error_event=_error_event,
    request_id_header="x-request-id",
)
