"""From messages to chat completions: what an agent asks of Anthropic, put to a target that speaks OpenAI's protocol.

Left behind, because they are mere hints: `thinking` and the effort in `output_config`, `diagnostics`, `service_tier`,
marks for caches; of tools `defer_loading`, `eager_input_streaming` and `input_examples`; of messages the thinking of
earlier answers, with its signatures, citations, and what became of thinking in `context_management`. A `speed` of
`standard` asks for nothing. All else that has no counterpart is refused.

`top_k` goes as it is: most servers of OpenAI's protocol take it, and those that do not say so themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from adapters.base import AgentCall, Headers
from adapters.translation.answers import message_answer
from adapters.translation.reading import (
    Json,
    check,
    flag,
    name_in,
    number,
    objects,
    refuse,
    sent,
    text,
    tokens,
    written,
)
from adapters.translation.streams import MessagesConverter
from adapters.translation.words import IMAGE_TYPES, OPENAI_HEADERS, WITHHELD

_CARRIED: Final = frozenset(
    """
    max_tokens messages metadata model output_config output_format stop_sequences stream system temperature tool_choice
    tools top_k top_p
    """.split()
)
HINTS: Final = frozenset({"cache_control", "diagnostics", "service_tier", "thinking"})
_KNOWN: Final = _CARRIED | HINTS
_NEUTRAL: Final[Mapping[str, Sequence[object]]] = {
    "betas": ([],),
    "fallbacks": ([],),
    "mcp_servers": ([],),
    "speed": ("standard",),
}
_OTHERWISE: Final = "cannot be carried to this target, which speaks the OpenAI API: leave it out"
_REMEDIES: Final[Mapping[str, str]] = {
    "container": "cannot be carried to this target, which has no containers: leave it out",
    "context_management": "can only be about thinking for this target, which reads all that it is sent: leave it out",
    "inference_geo": "cannot be promised of this target: leave it out",
    "mcp_servers": "cannot be carried to this target, which calls no servers: offer their tools in `tools`",
    "speed": "must be standard for this target, which has one speed",
}
_NO_TOOL: Final = "must be a tool of your own, with an `input_schema`: this target runs no tools itself"

_MESSAGE_CARRIED: Final = frozenset({"role", "content"})
_TOOL_CARRIED: Final = frozenset(
    """
    cache_control defer_loading description eager_input_streaming input_examples input_schema name strict type
    """.split()
)
_TOOL_NEUTRAL: Final[Mapping[str, Sequence[object]]] = {"allowed_callers": (["direct"], [])}
_BLOCK_CARRIED: Final[Mapping[str, frozenset[str]]] = {
    "text": frozenset({"type", "text", "cache_control", "citations"}),
    "image": frozenset({"type", "source", "cache_control"}),
    "document": frozenset({"type", "source", "title", "cache_control"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
}
_BLOCK_NEUTRAL: Final[Mapping[str, Sequence[object]]] = {
    "caller": ({"type": "direct"},),
    "citations": ({"enabled": False},),
    "transformations": ({},),
}
_THOUGHT: Final = ("thinking", "redacted_thinking")
_FAILED: Final = "Error: "
"""What the result of a tool that failed begins with: OpenAI's protocol has no other sign for it."""


class ToOpenAI:
    """A Translation."""

    suffix = "/chat/completions"
    headers: Headers = OPENAI_HEADERS
    withheld: Sequence[bytes] = WITHHELD

    def request(self, call: AgentCall, model: str | None, longest: int) -> bytes:
        arguments = call.arguments
        if not _KNOWN >= arguments.keys():
            _check(arguments)
        messages = _conversation(arguments)
        cap = arguments.get("max_tokens")
        body: Json = {
            "model": model if model is not None else call.target,
            "messages": messages,
            "max_completion_tokens": longest if cap is None else tokens(cap, "max_tokens"),
        }
        if call.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        for name in ("temperature", "top_p"):
            if (value := arguments.get(name)) is not None:
                body[name] = number(value, 0, 1, name)
        if (top_k := arguments.get("top_k")) is not None:
            body["top_k"] = tokens(top_k, "top_k")
        if stops := arguments.get("stop_sequences"):
            if type(stops) is not list or not all(type(each) is str for each in stops):
                refuse("stop_sequences", "must be a list of strings")
            body["stop"] = stops
        _tools(arguments, body)
        if (metadata := arguments.get("metadata")) is not None and (user := _user(metadata)) is not None:
            body["user"] = user
        if (shape := _format(arguments)) is not None:
            body["response_format"] = shape
        return sent(body)

    def answer(self, call: AgentCall, status: int, body: bytes) -> bytes:
        return message_answer(call, status, body)

    def stream(self, call: AgentCall) -> MessagesConverter:
        return MessagesConverter(call)


def _check(arguments: Mapping[str, Any]) -> None:
    kept = arguments.get("context_management")
    if isinstance(kept, dict) and isinstance(edits := kept.get("edits", []), list) and kept.keys() <= {"edits"}:
        # The thinking of earlier answers is left behind anyway.
        if all(isinstance(edit, dict) and str(edit.get("type")).startswith("clear_thinking") for edit in edits):
            arguments = {name: value for name, value in arguments.items() if name != "context_management"}
    check(arguments, _KNOWN, _NEUTRAL, _REMEDIES, "", _OTHERWISE)


def _user(metadata: object) -> str | None:
    if type(metadata) is not dict:
        refuse("metadata", "must be an object")
    check(metadata, frozenset({"user_id"}), {}, {}, "metadata.", _OTHERWISE)
    user = metadata.get("user_id")
    return None if user is None else text(user, "metadata.user_id")


def _format(arguments: Mapping[str, Any]) -> Json | None:
    config = arguments.get("output_config")
    if config is None:
        config = {}
    elif type(config) is not dict:
        refuse("output_config", "must be an object")
    check(config, frozenset({"format", "effort"}), {}, {}, "output_config.", _OTHERWISE)
    where, wanted = "output_config.format", config.get("format")
    if wanted is None:
        where, wanted = "output_format", arguments.get("output_format")
    match wanted:
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        case _:
            refuse(where, "must be of type json_schema, with a schema")


def _tools(arguments: Mapping[str, Any], body: Json) -> None:
    tools = arguments.get("tools")
    choice = arguments.get("tool_choice")
    chosen, alone = _choice(choice) if choice is not None else (None, False)
    if not tools:
        if tools is not None and type(tools) is not list:
            refuse("tools", "must be a list")
        if chosen not in (None, "auto", "none"):
            refuse("tool_choice", "asks for a tool where `tools` has none")
        return
    body["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(objects(tools, "tools"))]
    if chosen is not None:
        body["tool_choice"] = chosen
    if alone:
        body["parallel_tool_calls"] = False


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type") not in (None, "custom"):
        refuse(where, _NO_TOOL)
    check(tool, _TOOL_CARRIED, _TOOL_NEUTRAL, {}, f"{where}.", _OTHERWISE)
    made: Json = {"name": name_in(tool, where)}
    if (said := tool.get("description")) is not None:
        made["description"] = text(said, f"{where}.description")
    schema = tool.get("input_schema")
    if type(schema) is not dict:
        refuse(f"{where}.input_schema", "must be a JSON schema, as an object")
    made["parameters"] = schema
    if flag(tool.get("strict"), f"{where}.strict"):
        made["strict"] = True
    return {"type": "function", "function": made}


def _choice(choice: object) -> tuple[str | Json, bool]:
    """What OpenAI calls it, and whether tools are to be called one at a time."""
    if type(choice) is not dict:
        refuse("tool_choice", "must be an object")
    alone = flag(choice.get("disable_parallel_tool_use"), "tool_choice.disable_parallel_tool_use")
    match choice.get("type"):
        case "auto":
            return "auto", alone
        case "none":
            return "none", False
        case "any":
            return "required", alone
        case "tool":
            return {"type": "function", "function": {"name": name_in(choice, "tool_choice")}}, alone
        case _:
            refuse("tool_choice.type", "must be auto, any, tool or none")


def _conversation(arguments: Mapping[str, Any]) -> list[Json]:
    messages: list[Json] = []
    system = arguments.get("system")
    if system is not None:
        _instruct(system, "system", messages)
    role = None
    for index, message in enumerate(arguments["messages"]):
        where = f"messages[{index}]"
        if type(message) is not dict:
            refuse(where, "must be an object")
        check(message, _MESSAGE_CARRIED, {}, {}, f"{where}.", _OTHERWISE)
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            refuse(f"{where}.role", "must be user, assistant or system")
        where += ".content"
        if role == "system":
            _instruct(content, where, messages)
        elif type(content) is str:
            messages.append({"role": role, "content": content})
        elif role == "user":
            _ask(content, where, messages)
        elif (said := _said(content, where)) is not None:
            messages.append(said)
    if role == "assistant":
        refuse("messages", "must end with the user: this target does not go on with an answer that was begun for it")
    if role is None:
        refuse("messages", "must hold a message")
    return messages


def _instruct(content: object, where: str, messages: list[Json]) -> None:
    said = (
        content
        if type(content) is str
        else _shortened([_text(block, f"{where}[{index}]") for index, block in enumerate(objects(content, where))])
    )
    if said:
        messages.append({"role": "system", "content": said})


def _shortened(parts: list[Json]) -> str | list[Json]:
    """One text is written as what it is; and so is none."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        said: str = parts[0]["text"]
        return said
    return parts


def _known(block: Json, where: str) -> str:
    """A block's type; refuses what cannot be carried of it."""
    kind = block.get("type")
    known = _BLOCK_CARRIED.get(kind) if type(kind) is str else None
    if known is None:
        refuse(f"{where}.type", "must be text, image, document, tool_use or tool_result for this target")
    check(block, known, _BLOCK_NEUTRAL, {}, f"{where}.", _OTHERWISE)
    assert type(kind) is str, "what is known is a string"
    return kind


def _text(block: Json, where: str) -> Json:
    if _known(block, where) != "text":
        refuse(where, "must be a text")
    return {"type": "text", "text": text(block.get("text"), f"{where}.text")}


def _ask(content: object, where: str, messages: list[Json]) -> None:
    """What the user says: results of tools, which are messages of their own here, and before all else that was said.

    A tool's message holds text alone, so its images follow in the user's.
    """
    shown: list[Json] = []
    parts: list[Json] = []
    for index, block in enumerate(objects(content, where)):
        here = f"{where}[{index}]"
        match _known(block, here):
            case "text":
                parts.append({"type": "text", "text": text(block.get("text"), f"{here}.text")})
            case "image":
                parts.append(_image(block, here))
            case "document":
                parts.append(_document(block, here))
            case "tool_result":
                messages.append(_result(block, here, shown))
            case _:
                refuse(f"{here}.type", "must not be tool_use in a message of the user")
    if shown or parts:
        messages.append({"role": "user", "content": _shortened(shown + parts)})


def _result(block: Json, where: str, shown: list[Json]) -> Json:
    """A tool's message; the images go to `shown`."""
    call = text(block.get("tool_use_id"), f"{where}.tool_use_id")
    content = block.get("content")
    parts: list[Json] = []
    if type(content) is str:
        parts.append({"type": "text", "text": content})
    elif content is not None:
        for index, each in enumerate(objects(content, f"{where}.content")):
            here = f"{where}.content[{index}]"
            match _known(each, here):
                case "text":
                    parts.append({"type": "text", "text": text(each.get("text"), f"{here}.text")})
                case "image":
                    shown += ({"type": "text", "text": f"Image in the result of {call}:"}, _image(each, here))
                case _:
                    refuse(f"{here}.type", "must be text or image for this target, which speaks the OpenAI API")
    if flag(block.get("is_error"), f"{where}.is_error"):
        if not parts:
            parts.append({"type": "text", "text": _FAILED.rstrip(": ")})
        elif not parts[0]["text"].lstrip().lower().startswith("error"):
            parts[0] = {"type": "text", "text": _FAILED + parts[0]["text"]}
    return {"role": "tool", "tool_call_id": call, "content": _shortened(parts)}


def _image(block: Json, where: str) -> Json:
    match block.get("source"):
        case {"type": "url", "url": str(url)}:
            pass
        case {"type": "base64", "media_type": str(kind), "data": str(data)} if kind in IMAGE_TYPES:
            url = f"data:{kind};base64,{data}"
        case _:
            refuse(f"{where}.source", f"must be a URL, or base64 of {', '.join(sorted(IMAGE_TYPES))}")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Json, where: str) -> Json:
    match block.get("source"):
        case {"type": "base64", "media_type": "application/pdf", "data": str(data)}:
            title = block.get("title")
            name = "document.pdf" if title is None else text(title, f"{where}.title")
            return {"type": "file", "file": {"filename": name, "file_data": f"data:application/pdf;base64,{data}"}}
        case _:
            refuse(f"{where}.source", "must be the base64 of a PDF for this target: send other documents as text")


def _said(content: object, where: str) -> Json | None:
    """What the assistant has said and asked for; None where it has only thought."""
    parts: list[Json] = []
    calls: list[Json] = []
    for index, block in enumerate(objects(content, where)):
        if block.get("type") in _THOUGHT:
            continue
        here = f"{where}[{index}]"
        match _known(block, here):
            case "text":
                parts.append({"type": "text", "text": text(block.get("text"), f"{here}.text")})
            case "tool_use":
                calls.append(_call(block, here))
            case kind:
                refuse(f"{here}.type", f"must not be {kind} in a message of the assistant")
    if calls:
        return {"role": "assistant", "content": _shortened(parts) or None, "tool_calls": calls}
    return {"role": "assistant", "content": _shortened(parts)} if parts else None


def _call(block: Json, where: str) -> Json:
    given = block.get("input")
    if type(given) is not dict:
        refuse(f"{where}.input", "must be an object")
    try:
        arguments = written(given).decode()
    except ValueError:
        refuse(f"{where}.input", "is nested too deeply, or holds a number that is too long")
    call = text(block.get("id"), f"{where}.id")
    return {"id": call, "type": "function", "function": {"name": name_in(block, where), "arguments": arguments}}
