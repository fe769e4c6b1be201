"""From chat completions to messages: what an agent asks of OpenAI, put to a target that speaks Anthropic's protocol.

Left behind, because they are mere hints: `metadata`, `prediction`, `prompt_cache_*`, `reasoning_effort`, `seed`,
`stream_options`, `verbosity`; of messages `name`, `annotations`, and the reasoning of earlier answers, which Anthropic
takes from nobody without its own signature; of parts `detail` and marks for caches. A `service_tier` of `auto` or
`default` asks for nothing. All else that has no counterpart is refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from adapters.base import AgentCall, Headers
from adapters.translation.answers import chat_answer
from adapters.translation.reading import (
    Json,
    arguments_of,
    check,
    flag,
    name_in,
    number,
    objects,
    refuse,
    sent,
    text,
    tokens,
)
from adapters.translation.streams import ChatConverter
from adapters.translation.words import ANTHROPIC_HEADERS, IMAGE_TYPES, WITHHELD

_CARRIED: Final = frozenset(
    """
    max_completion_tokens max_tokens messages model parallel_tool_calls response_format safety_identifier stop stream
    temperature tool_choice tools top_k top_p user
    """.split()
)
HINTS: Final = frozenset(
    """
    metadata prediction prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort seed
    stream_options verbosity
    """.split()
)
_KNOWN: Final = _CARRIED | HINTS
_NEUTRAL: Final[Mapping[str, Sequence[object]]] = {
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "top_logprobs": (0,),
}
_OTHERWISE: Final = "cannot be carried to this target, which speaks the Anthropic API: leave it out"
_REMEDIES: Final[Mapping[str, str]] = {
    "audio": "cannot be carried to this target, which answers in text: leave it out",
    "frequency_penalty": "must be 0 for this target, which speaks the Anthropic API and has no penalties",
    "function_call": "cannot be carried to this target, which speaks the Anthropic API: use `tool_choice`",
    "functions": "cannot be carried to this target, which speaks the Anthropic API: use `tools`",
    "logprobs": "must be false for this target, which speaks the Anthropic API and tells no probabilities",
    "modalities": 'must be ["text"] for this target, which answers in text',
    "n": "must be 1 for this target, which makes one answer a call: call once for each answer",
    "presence_penalty": "must be 0 for this target, which speaks the Anthropic API and has no penalties",
    "service_tier": "must be auto or default for this target, which speaks the Anthropic API and has other terms",
    "store": "must be false for this target, which keeps no answers",
    "web_search_options": "cannot be carried to this target, which speaks the Anthropic API: search with a tool",
}
_CUSTOM: Final = "must be a function: this target, which speaks the Anthropic API, knows no other kind of tool"

_MESSAGE_CARRIED: Final = frozenset({"role", "content", "name"})
_ANSWER_CARRIED: Final = _MESSAGE_CARRIED | {
    "tool_calls",
    "refusal",
    "annotations",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
}
_RESULT_CARRIED: Final = _MESSAGE_CARRIED | {"tool_call_id"}
_NOTHING: Final[Mapping[str, Sequence[object]]] = {"tool_calls": ([],), "refusal": ("",), "annotations": ([],)}
_MARKS: Final = frozenset({"cache_control", "prompt_cache_breakpoint"})
_PART_CARRIED: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset({"type", kind}) | _MARKS for kind in ("text", "refusal", "image_url", "file")
}

_DATA_URL: Final = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)(?:;[a-z]+=[^;,]*)*;base64,", re.IGNORECASE)
_NOT_IN_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")


class ToAnthropic:
    """A Translation. `now` is the wall clock in seconds."""

    suffix = "/messages"
    headers: Headers = ANTHROPIC_HEADERS
    withheld: Sequence[bytes] = WITHHELD

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def request(self, call: AgentCall, model: str | None, longest: int) -> bytes:
        arguments = call.arguments
        check(arguments, _KNOWN, _NEUTRAL, _REMEDIES, "", _OTHERWISE)
        system, messages = _conversation(arguments["messages"])
        body: Json = {
            "model": model if model is not None else call.target,
            "max_tokens": _longest(arguments, longest),
            "messages": messages,
        }
        if system:
            body["system"] = _shortened(system)
        if call.stream:
            body["stream"] = True
        _sampling(arguments, body)
        if (stop := arguments.get("stop")) is not None and (sequences := _stops(stop)):
            body["stop_sequences"] = sequences
        _tools(arguments, body)
        for name in ("safety_identifier", "user"):
            if (user := arguments.get(name)) is not None:
                body["metadata"] = {"user_id": text(user, name)}
                break
        if (wanted := arguments.get("response_format")) is not None and (shape := _format(wanted)):
            body["output_config"] = {"format": shape}
        return sent(body)

    def answer(self, call: AgentCall, status: int, body: bytes) -> bytes:
        return chat_answer(call, status, body, int(self._now()))

    def stream(self, call: AgentCall) -> ChatConverter:
        return ChatConverter(call, int(self._now()))


def _longest(arguments: Mapping[str, Any], longest: int) -> int:
    """The least of what the agent has set: OpenAI has had two names for it."""
    caps = [
        tokens(cap, name)
        for name in ("max_completion_tokens", "max_tokens")
        if (cap := arguments.get(name)) is not None
    ]
    return min(caps, default=longest)


def _sampling(arguments: Mapping[str, Any], body: Json) -> None:
    """Temperatures go to 2 there and to 1 here. What is 1 is what both do unasked; some models take no two of these."""
    top_p = arguments.get("top_p")
    if top_p is not None and number(top_p, 0, 1, "top_p") != 1:
        body["top_p"] = top_p
    temperature = arguments.get("temperature")
    if temperature is not None:
        temperature = min(number(temperature, 0, 2, "temperature"), 1)
        if temperature != 1 or "top_p" not in body:
            body["temperature"] = temperature
    if (top_k := arguments.get("top_k")) is not None:
        body["top_k"] = tokens(top_k, "top_k")


def _stops(stop: object) -> list[str]:
    sequences: object = [stop] if type(stop) is str else stop
    if type(sequences) is not list or not all(type(each) is str for each in sequences):
        refuse("stop", "must be a string or a list of strings")
    if not all(each.strip() for each in sequences):
        refuse("stop", "must hold something beside white space for this target, which speaks the Anthropic API")
    return sequences


def _format(wanted: object) -> Json | None:
    """Anthropic's structured outputs are what OpenAI's are; there is no JSON without a schema."""
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **more}}:
            # OpenAI's models read the description; here the schema is all that a model sees.
            if type(said := more.get("description")) is str and "description" not in schema:
                schema = {**schema, "description": said}
            return {"type": "json_schema", "schema": schema}
        case {"type": "json_object"}:
            refuse(
                "response_format",
                "of type json_object cannot be carried to this target, which speaks the Anthropic API: "
                "say which JSON, with type json_schema and a schema",
            )
        case _:
            refuse("response_format", "must be of type text, or of type json_schema with a schema")


def _tools(arguments: Mapping[str, Any], body: Json) -> None:
    tools = arguments.get("tools")
    choice = arguments.get("tool_choice")
    parallel = arguments.get("parallel_tool_calls")
    alone = parallel is not None and not flag(parallel, "parallel_tool_calls")
    if not tools:
        if tools is not None and type(tools) is not list:
            refuse("tools", "must be a list")
        if choice not in (None, "none", "auto"):
            refuse("tool_choice", "asks for a tool where `tools` has none")
        return
    body["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(objects(tools, "tools"))]
    chosen = _choice(choice)
    if alone and chosen.get("type") != "none":
        chosen = {"type": "auto", **chosen, "disable_parallel_tool_use": True}
    if chosen:
        body["tool_choice"] = chosen


def _tool(tool: Json, where: str) -> Json:
    function = tool.get("function")
    if tool.get("type") != "function" or type(function) is not dict:
        refuse(where, _CUSTOM)
    made: Json = {"name": name_in(function, f"{where}.function")}
    if (said := function.get("description")) is not None:
        made["description"] = text(said, f"{where}.function.description")
    schema = function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}}
    elif type(schema) is not dict:
        refuse(f"{where}.function.parameters", "must be a JSON schema, as an object")
    elif "type" not in schema:
        schema = {"type": "object", **schema}
    made["input_schema"] = schema
    if flag(function.get("strict"), f"{where}.function.strict"):
        made["strict"] = True
    return made


def _choice(choice: object) -> Json:
    match choice:
        case None:
            return {}
        case "auto" | "none":
            return {"type": choice}
        case "required":
            return {"type": "any"}
        case {"type": "function", "function": function}:
            return {"type": "tool", "name": name_in(function, "tool_choice.function")}
        case {"type": "allowed_tools"}:
            refuse(
                "tool_choice", "of type allowed_tools cannot be carried to this target: leave the others out of `tools`"
            )
        case _:
            refuse("tool_choice", "must be none, auto, required, or name a function")


def _conversation(messages: Sequence[Any]) -> tuple[list[Json], list[Json]]:
    """The system's text blocks, and the turns.

    Instructions are hoisted: most of Anthropic's models take none between turns. Turns alternate, so messages of one
    role in a row become one; the results of tools are the user's. Texts without a letter say nothing, and are refused.
    """
    system: list[Json] = []
    turns: list[Json] = []
    said: list[Json] = []
    """The blocks of the last turn."""
    last = ""
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if type(message) is not dict:
            refuse(where, "must be an object")
        role = message.get("role")
        if role == "user":
            check(message, _MESSAGE_CARRIED, {}, {}, f"{where}.", _OTHERWISE)
            blocks = _blocks(message.get("content"), f"{where}.content")
        elif role == "assistant":
            blocks = _said(message, where)
        elif role == "tool":
            blocks = [_result(message, where)]
            role = "user"
        elif role in ("system", "developer"):
            check(message, _MESSAGE_CARRIED, {}, {}, f"{where}.", _OTHERWISE)
            system += _texts(message.get("content"), f"{where}.content")
            continue
        elif role == "function":
            refuse(f"{where}.role", "function cannot be carried to this target: use `tools`, and the role tool")
        else:
            refuse(f"{where}.role", "must be developer, system, user, assistant or tool")
        if not blocks:
            continue
        if role == last:
            said += blocks
        else:
            said, last = blocks, role
            turns.append({"role": role, "content": blocks})
    if not turns or turns[0]["role"] != "user":
        refuse("messages", "must begin, after any instructions, with a message of the user: this target wants it so")
    if last != "user":
        refuse("messages", "must end with the user or a tool: this target would go on with the last message instead")
    for turn in turns:
        turn["content"] = _shortened(turn["content"])
    return system, turns


def _shortened(blocks: list[Json]) -> str | list[Json]:
    """One text is written as what it is."""
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        said: str = blocks[0]["text"]
        return said
    return blocks


def _texts(content: object, where: str) -> list[Json]:
    blocks = _blocks(content, where)
    if not all(block["type"] == "text" for block in blocks):
        refuse(where, "must be text")
    return blocks


def _blocks(content: object, where: str) -> list[Json]:
    if type(content) is str:
        return [{"type": "text", "text": content}] if content.strip() else []
    if type(content) is not list:
        refuse(where, "must be a string or a list")
    blocks = []
    for index, part in enumerate(objects(content, where)):
        block = _block(part, f"{where}[{index}]")
        if block is not None:
            blocks.append(block)
    return blocks


def _block(part: Json, where: str) -> Json | None:
    kind = part.get("type")
    known = _PART_CARRIED.get(kind) if type(kind) is str else None
    if known is None:
        refuse(
            where, "must be a text, an image or a PDF: this target, which speaks the Anthropic API, reads nothing else"
        )
    check(part, known, {}, {}, f"{where}.", _OTHERWISE)
    if kind in ("text", "refusal"):
        said = text(part.get(kind), f"{where}.{kind}")
        return {"type": "text", "text": said} if said.strip() else None
    if kind == "file":
        return _document(part.get("file"), f"{where}.file")
    image = part.get("image_url")
    url = image.get("url") if type(image) is dict else image
    if type(url) is not str:
        refuse(f"{where}.image_url.url", "must be a string")
    return {"type": "image", "source": _source(url, f"{where}.image_url.url")}


def _source(url: str, where: str) -> Json:
    if url[:8].lower().startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    data = _DATA_URL.match(url)
    kind = data.group(1).lower() if data is not None else ""
    kind = "image/jpeg" if kind == "image/jpg" else kind
    if data is None or kind not in IMAGE_TYPES:
        refuse(where, f"must be an https URL, or a base64 data URL of {', '.join(sorted(IMAGE_TYPES))}")
    return {"type": "base64", "media_type": kind, "data": url[data.end() :]}


def _document(file: object, where: str) -> Json:
    match file:
        case {"file_data": str(url), **more} if (data := _DATA_URL.match(url)) and data[1].lower() == "application/pdf":
            if not more.keys() <= {"filename"}:
                refuse(where, "must hold a file's data, and its name")
            source = {"type": "base64", "media_type": "application/pdf", "data": url[data.end() :]}
            block: Json = {"type": "document", "source": source}
            if (name := more.get("filename")) is not None:
                block["title"] = text(name, f"{where}.filename")
            return block
        case _:
            refuse(where, "must hold a PDF, as a base64 data URL in `file_data`: this target knows no other files")


def _said(message: Json, where: str) -> list[Json]:
    """What the assistant has said and asked for."""
    check(message, _ANSWER_CARRIED, _NOTHING, {}, f"{where}.", _OTHERWISE)
    content = message.get("content")
    blocks = _texts(content, f"{where}.content") if content is not None else []
    if (refusal := message.get("refusal")) is not None and text(refusal, f"{where}.refusal").strip():
        blocks.append({"type": "text", "text": refusal})
    calls = message.get("tool_calls")
    if calls is not None:
        for index, call in enumerate(objects(calls, f"{where}.tool_calls")):
            blocks.append(_use(call, f"{where}.tool_calls[{index}]"))
    return blocks


def _use(call: Json, where: str) -> Json:
    function = call.get("function")
    if call.get("type", "function") != "function" or type(function) is not dict:
        refuse(where, _CUSTOM)
    name = name_in(function, f"{where}.function")
    try:
        given = arguments_of(text(function.get("arguments"), f"{where}.function.arguments"))
    except ValueError:
        refuse(f"{where}.function.arguments", "must be a JSON object, as a string")
    return {"type": "tool_use", "id": _id(call.get("id"), f"{where}.id"), "name": name, "input": given}


def _result(message: Json, where: str) -> Json:
    check(message, _RESULT_CARRIED, {}, {}, f"{where}.", _OTHERWISE)
    block: Json = {"type": "tool_result", "tool_use_id": _id(message.get("tool_call_id"), f"{where}.tool_call_id")}
    if blocks := _blocks(message.get("content"), f"{where}.content"):
        block["content"] = _shortened(blocks)
    return block


def _id(given: object, where: str) -> str:
    """The same for the same. Anthropic takes letters, digits, - and _; a few servers make ids of more than that."""
    if type(given) is not str or not given:
        refuse(where, "must be a string that is not empty")
    return _NOT_IN_ID.sub(lambda found: f"_{ord(found.group()):x}_", given)
