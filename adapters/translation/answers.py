"""Whole answers of a target in the other protocol's shape, and its errors, whatever they look like."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jiter

from adapters.anthropic import Anthropic
from adapters.base import AgentCall, Usage, member
from adapters.errors import GivenUp
from adapters.meter import GIVEN_UP, json_object
from adapters.openai import OpenAI
from adapters.translation.reading import Json, arguments_of, written
from adapters.translation.words import FINISH_REASONS, OPENAI_ERRORS, STOP_REASONS, error_type

_OPENAI: Final = OpenAI()
_ANTHROPIC: Final = Anthropic()
_TYPE: Final = re.compile("[a-z_]{1,40}")
"""A word of a protocol. What else a target says does not get into records."""
_LONGEST: Final = 2000
"""Characters of a target's own words about an error."""


def chat_answer(call: AgentCall, status: int, body: bytes, now: int) -> bytes:
    """A message as a chat completion, made at `now`, in Unix seconds. Raises ValueError."""
    if not 200 <= status <= 299:
        return written(chat_error(body, status))
    message = _parsed(body)
    said: list[str] = []
    thought: list[str] = []
    calls: list[Json] = []
    for block in _objects(message.get("content")):
        match block:
            case {"type": "text", "text": str(text)}:
                said.append(text)
            case {"type": "thinking", "thinking": str(text)}:
                thought.append(text)
            case {"type": "tool_use", "id": str(call_id), "name": str(name), "input": dict(given)}:
                function = {"name": name, "arguments": written(given).decode()}
                calls.append({"id": call_id, "type": "function", "function": function})
            case {"type": "redacted_thinking"}:  # no other model can read it
                pass
            case _:
                kind = str(block.get("type"))
                named = f" of type {kind!r}" if _TYPE.fullmatch(kind) else ""
                raise ValueError(f"a block{named} that has no counterpart")
    answer: Json = {"role": "assistant", "content": "".join(said) if said else None, "refusal": declined(message)}
    if thought:
        answer["reasoning_content"] = "".join(thought)
    if calls:
        answer["tool_calls"] = calls
    finish = finish_reason(message.get("stop_reason"))
    completion: Json = {
        "id": _string(message.get("id"), ""),
        "object": "chat.completion",
        "created": now,
        "model": _string(message.get("model"), call.target),
        "choices": [{"index": 0, "message": answer, "logprobs": None, "finish_reason": finish}],
    }
    if (usage := _ANTHROPIC.usage(call, body)) is not None:
        completion["usage"] = chat_counts(usage)
    return written(completion)


def message_answer(call: AgentCall, status: int, body: bytes) -> bytes:
    """A chat completion as a message. Raises ValueError."""
    if not 200 <= status <= 299:
        return written(message_error(body, status))
    completion = _parsed(body)
    choices = _objects(completion.get("choices"))
    if not choices:
        raise ValueError("an answer without choices")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError("a choice without a message")
    answer_id = _string(completion.get("id"), "")
    finish = ended(choice)
    blocks: list[Json] = []
    if thought := message.get("reasoning_content") or message.get("reasoning"):
        blocks.append({"type": "thinking", "thinking": _text(thought), "signature": ""})
    refused = _text(message.get("refusal"))
    for said in (_text(message.get("content")), refused):
        if said:
            blocks.append({"type": "text", "text": said})
    called = _objects(message.get("tool_calls") or [])
    for index, each in enumerate(called):
        blocks.append(_use(each, tool_id(each.get("id"), answer_id, index), finish == "length"))
    reason, sequence = stop_reason(call, choice, bool(called), bool(refused))
    usage = _OPENAI.usage(call, body)
    return written(
        {
            "id": answer_id,
            "type": "message",
            "role": "assistant",
            "model": _string(completion.get("model"), call.target),
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": message_counts(usage if usage is not None else Usage()),
        }
    )


def _use(called: Json, call_id: str, cut: bool) -> Json:
    match called.get("function"):
        case {"name": str(name), "arguments": str() | dict() as given}:
            pass
        case {"name": str(name)}:
            given = {}
        case _:
            raise ValueError("a tool call without a function")
    if isinstance(given, str):
        given = _given(given, cut)
    return {"type": "tool_use", "id": call_id, "name": name, "input": given}


def _given(arguments: str, cut: bool) -> Json:
    """The arguments of a tool call; as far as they came, where the answer was `cut`."""
    try:
        return arguments_of(arguments)
    except ValueError:
        if not cut:
            raise ValueError("a tool call whose arguments are no JSON object") from None
    value = jiter.from_json(arguments.encode(), allow_inf_nan=False, partial_mode=True)
    return value if isinstance(value, dict) else {}


def tool_id(given: object, answer_id: str, index: int) -> str:
    """A tool call's id; where a server makes none, one that no other answer has."""
    return given if type(given) is str and given else f"call_{answer_id}_{index}"


def finish_reason(reason: object) -> str:
    """OpenAI's word for why an answer ended."""
    return FINISH_REASONS.get(reason, "stop") if type(reason) is str else "stop"


def declined(message: Mapping[str, Any]) -> str | None:
    """Why the target refused, where it says so."""
    why = member(message, "stop_details").get("explanation")
    return why if message.get("stop_reason") == "refusal" and type(why) is str and why else None


def ended(choice: Mapping[str, Any]) -> object:
    """The finish reason of a choice. Raises GivenUp."""
    reason = choice.get("finish_reason")
    if type(reason) is str and reason in GIVEN_UP:
        raise GivenUp("an answer that the target has given up")
    return reason


def stop_reason(call: AgentCall, choice: Mapping[str, Any], called: bool, refused: bool) -> tuple[str, str | None]:
    """Anthropic's word for why an answer ended, and the stop sequence that ended it.

    OpenAI says `stop` where a tool was asked for by name and called. vLLM says which stop sequence it was.
    """
    finish, sequence = choice.get("finish_reason"), choice.get("stop_reason")
    reason = STOP_REASONS.get(finish, "end_turn") if type(finish) is str else "end_turn"
    if reason == "end_turn":
        if refused:
            return "refusal", None
        if called:
            return "tool_use", None
        stops = call.arguments.get("stop_sequences")
        if type(sequence) is str and isinstance(stops, list) and sequence in stops:
            return "stop_sequence", sequence
    return reason, None


def chat_counts(usage: Usage) -> Json:
    """A `usage` of OpenAI's, in which cached tokens are part of the prompt's."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def message_counts(usage: Usage) -> Json:
    """A `usage` of Anthropic's, in which cached tokens stand beside those of the input."""
    read = min(usage.cache_read_tokens, usage.input_tokens)
    stored = min(usage.cache_write_tokens, usage.input_tokens - read)
    counts: Json = {
        "input_tokens": usage.input_tokens - read - stored,
        "cache_creation_input_tokens": stored,
        "cache_read_input_tokens": read,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts


def chat_error(body: bytes, status: int) -> Json:
    """An error of Anthropic's as one of OpenAI's."""
    told = json_object(body)
    error = member(told, "error")
    kind = _string(error.get("type"), "") or error_type(status)
    message = _reason(told) or f"The target answered with status {status}."
    return {"error": {"message": message, "type": OPENAI_ERRORS.get(kind, kind), "param": None, "code": kind}}


def message_error(body: bytes, status: int) -> Json:
    """An error of OpenAI's, or of a server like it, as one of Anthropic's."""
    told = json_object(body)
    message = _reason(told) or f"The target answered with status {status}."
    return as_message_error(message, error_type(status), member(told, "error").get("code"))


def as_message_error(message: str, kind: str, code: object) -> Json:
    error = {"type": kind, "message": message}
    if type(code) is str and code:
        error["code"] = code
    return {"type": "error", "error": error}


def _reason(told: Mapping[str, Any]) -> str:
    """What servers say of an error: most in an object, some in a text, and some without either."""
    for said in (member(told, "error").get("message"), told.get("error"), told.get("message"), told.get("detail")):
        if type(said) is str and said:
            return said[:_LONGEST]
    return ""


def _parsed(body: bytes) -> Json:
    value = jiter.from_json(body, allow_inf_nan=False)
    if type(value) is not dict:
        raise ValueError("an answer that is no object")
    return value


def _objects(value: object) -> Sequence[Json]:
    if type(value) is not list or not all(type(each) is dict for each in value):
        raise ValueError("a list of objects is missing")
    return value


def _string(value: object, otherwise: str) -> str:
    return value if type(value) is str else otherwise


def _text(value: object) -> str:
    """A text, or the texts of a list of parts, which some servers answer with."""
    if value is None:
        return ""
    if type(value) is str:
        return value
    said = []
    for part in _objects(value):
        match part:
            case {"type": "text", "text": str(text)}:
                said.append(text)
            case _:
                raise ValueError("an answer with a part that is no text")
    return "".join(said)
