"""How large a call can get, in tokens, before anybody has counted: bounds from above for what may be lent to it.

A tokenizer that works on bytes never makes more tokens of a text than it has bytes, and a JSON body is never shorter
than the texts in it: so the body's length bounds what the body holds. What is read beside it is either bounded by what
providers publish (images, the words they put around tools), or makes the call open-ended. What is not known to be
text is not taken for it.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import orjson

from adapters.base import OVERRIDES, AgentCall, Size, size_of, whole

TEMPLATE: Final = 512
"""Tokens that a server puts around messages. The longest default system prompts of open models' chat templates have
about a hundred; what stands for a message's role is shorter than the JSON that names it."""

TOOLS: Final = 2048
"""Tokens that a server adds to a call with tools to say how they are used. Anthropic's documentation of tool use has
530 for Claude 3 Opus and less for most others, up to 935 for later ones; templates of open models have about 200."""

OWN_TOOL: Final = 2048
"""Tokens of a tool that the provider describes itself, and the caller runs. Anthropic's documentation has 245 for bash,
700 for the text editor, 735 for computer use and 499 for its system prompt."""

OPENAI_IMAGE: Final = 2833 + 8 * 5667
"""Tokens of an image on OpenAI's wire: the dearest that OpenAI's vision guide has, which is gpt-4o-mini's with all of
eight tiles. Qwen-VL models count at most 16,384 by default."""

ANTHROPIC_IMAGE: Final = 5000
"""Tokens of an image on Anthropic's wire: its vision guide has at most 4,784."""

SEARCHES: Final = 10
"""Searches that a target may make where the call does not say: Anthropic's servers pause a turn after ten rounds."""

_MOST: Final = 2**53
"""More answers, or tokens of one, than this nobody can mean; texts of numbers with thousands of digits take their time,
and some are refused."""

_SHORT: Final = 16 * 1024
"""Bytes of a body in which it is cheaper to count everywhere than to write the tools."""

_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"})
_AUDIO_PARTS: Final = frozenset({"input_audio"})
_IMAGE_PARTS: Final = frozenset({"image_url", "input_image"})

_TEXT_ITEMS: Final = frozenset(
    """
    function_call custom_tool_call local_shell_call local_shell_call_output shell_call shell_call_output
    apply_patch_call apply_patch_call_output mcp_approval_response
    """.split()
)
_OUTPUT_ITEMS: Final = frozenset({"function_call_output", "custom_tool_call_output"})
_IMAGE_ITEMS: Final = frozenset({"computer_call_output", "image_generation_call"})
_SEALED_ITEMS: Final = frozenset({"reasoning", "compaction"})
"""What the server has encrypted, which is not shorter than its tokens are many; or kept, and told only the id of."""

_OPENAI_OPEN: Final = frozenset(
    """
    chat_template context_management conversation data_sources fallbacks media_io_kwargs mm_processor_kwargs models
    plugins preset previous_response_id search_parameters search_settings web_search_options
    """.split()
)
"""Members that make a server read, or do, more than the body says: OpenAI's, and those of servers like it."""

_OPENAI_BESIDE: Final = _OPENAI_OPEN | {"functions", "n", "service_tier", "tools"}
"""Members that can make a chat call more than its messages are."""

_LOOK_UP: Final = re.compile("compound|deep-research|:online|search|sonar")
"""Parts of the names of models that search the web, unasked."""

_OPENAI_TEXT_TOOLS: Final = frozenset({"", "function", "custom"})
_OPENAI_OWN_TOOLS: Final = frozenset({"apply_patch", "computer", "computer_use_preview", "local_shell"})
_USUAL_TIERS: Final = frozenset({"auto", "default", "standard"})

_TEXT_BLOCKS: Final = frozenset(
    """
    text thinking redacted_thinking tool_use server_tool_use mcp_tool_use tool_reference compaction
    web_search_tool_result tool_search_tool_result code_execution_tool_result bash_code_execution_tool_result
    text_editor_code_execution_tool_result
    """.split()
)
_NESTED_BLOCKS: Final = frozenset({"tool_result", "mcp_tool_result", "search_result"})
_ANTHROPIC_OPEN: Final = frozenset(
    {"compaction", "container", "context_management", "fallbacks", "mcp_servers", "thread"}
)
_ANTHROPIC_BESIDE: Final = _ANTHROPIC_OPEN | {"speed", "tools"}
_ANTHROPIC_TEXT_TOOLS: Final = frozenset({"", "custom"})
_ANTHROPIC_OWN_TOOLS: Final = ("bash_2", "text_editor_2", "computer_2", "memory_2")


def of_openai(call: AgentCall, caps: Sequence[str]) -> Size:
    """The size of a call on OpenAI's wire. `caps` are the members that can cap its answers."""
    if call.endpoint.free:
        return Size(0, False, 1, 0)
    arguments, body = call.arguments, call.body
    if call.operation == "chat" and _OPENAI_BESIDE.isdisjoint(arguments) and _are_texts(arguments["messages"]):
        return size_of((len(body) + TEMPLATE, looks_up(call.target), 1, _cap(arguments, caps, 1), 0, "", 0, False))
    if call.operation == "embeddings":
        return Size(len(body), _holds_objects(body) and _is_more_than_text(arguments.get("input")), 1, 0)
    found = _Found(OPENAI_IMAGE)
    tokens = len(body) + TEMPLATE
    answers = 1
    match call.operation:
        case "chat":
            found.messages(arguments.get("messages"))
            answers = _number(arguments.get("n"))
        case "completions":
            prompt = arguments.get("prompt")
            prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
            answers = prompts * max(_number(arguments.get("n")), _number(arguments.get("best_of")))
        case _:
            found.items(arguments.get("input"))
            found.open_ended |= arguments.get("prompt") is not None or _goes_over_it_again(arguments.get("reasoning"))
    if not _OPENAI_OPEN.isdisjoint(arguments):
        found.open_ended |= any(_given(arguments.get(name)) for name in _OPENAI_OPEN)
        found.searches += arguments.get("web_search_options") is not None
    tools = arguments.get("tools")
    if tools or (tools := arguments.get("functions")):
        tokens += _of_tools(call, tools)
        if isinstance(tools, list):
            found.openai_tools(tools, arguments.get("max_tool_calls"))
    found.open_ended = found.open_ended or looks_up(call.target)
    tier = arguments.get("service_tier")
    return Size(
        tokens + found.tokens,
        found.open_ended,
        answers,
        _cap(arguments, caps, 1),
        found.searches,
        tier if isinstance(tier, str) and tier not in _USUAL_TIERS else "",
        found.tokens,
        call.operation == "responses" and bool(arguments.get("background")),
    )


def of_anthropic(call: AgentCall, caps: Sequence[str]) -> Size:
    """The size of a call on Anthropic's wire."""
    if call.endpoint.free:
        return Size(0, False, 1, 0)
    arguments, body = call.arguments, call.body
    if _ANTHROPIC_BESIDE.isdisjoint(arguments) and _are_texts(arguments["messages"]):
        return size_of((len(body) + TEMPLATE, False, 1, _cap(arguments, caps, 0), 0, "", 0, False))
    found = _Found(ANTHROPIC_IMAGE)
    tokens = len(body) + TEMPLATE
    found.messages(arguments.get("messages"))
    if not _ANTHROPIC_OPEN.isdisjoint(arguments):
        found.open_ended |= any(_opens(name, arguments.get(name)) for name in _ANTHROPIC_OPEN)
    tools = arguments.get("tools")
    if tools:
        tokens += _of_tools(call, tools)
        if isinstance(tools, list):
            found.anthropic_tools(tools)
    return Size(
        tokens + found.tokens,
        found.open_ended,
        1,
        _cap(arguments, caps, 0),
        found.searches,
        "fast" if arguments.get("speed") == "fast" else "",
        found.tokens,
    )


@lru_cache(maxsize=256)
def looks_up(model: str) -> bool:
    """Whether a model of this name searches the web unasked, and so reads more than a call says."""
    return _LOOK_UP.search(model) is not None


class _Found:
    """What a call holds beside text."""

    __slots__ = ("_image", "open_ended", "searches", "tokens")

    def __init__(self, image: int) -> None:
        self._image = image
        self.tokens = 0
        self.open_ended = False
        self.searches = 0

    def messages(self, messages: Any) -> None:
        for message in messages:
            if not isinstance(message, dict):
                continue
            content = message.get("content")
            if type(content) is list:
                self._parts(content)
            elif content is not None and type(content) is not str:
                self.open_ended = True
            if message.get("audio") is not None:  # an earlier answer, spoken, that the server has kept
                self.open_ended = True

    def items(self, items: Any) -> None:
        """The input of a response: messages, and what came of tools."""
        if not isinstance(items, list):
            return
        for item in items:
            if not isinstance(item, dict):
                continue
            kind = item.get("type", "message")
            if kind == "message":
                self.messages((item,))
            elif type(kind) is not str:
                self.open_ended = True
            elif kind in _OUTPUT_ITEMS:
                if isinstance(output := item.get("output"), list):
                    self._parts(output)
            elif kind in _IMAGE_ITEMS:
                self.tokens += self._image
            elif kind not in _TEXT_ITEMS and not (kind in _SEALED_ITEMS and item.get("encrypted_content")):
                self.open_ended = True  # known by its id: the server has the rest

    def openai_tools(self, tools: Iterable[Any], most: object) -> None:
        for kind, _ in _kinds(tools):
            if kind in _OPENAI_TEXT_TOOLS:
                continue
            if kind in _OPENAI_OWN_TOOLS:
                self.tokens += OWN_TOOL
                continue
            self.open_ended = True
            if "search" in kind:
                self.searches = whole(most) or SEARCHES

    def anthropic_tools(self, tools: Iterable[Any]) -> None:
        for kind, tool in _kinds(tools):
            if kind in _ANTHROPIC_TEXT_TOOLS:
                continue
            if kind.startswith(_ANTHROPIC_OWN_TOOLS):
                self.tokens += OWN_TOOL
                continue
            self.open_ended = True
            if kind.startswith("web_search_"):
                self.searches += whole(tool.get("max_uses")) or SEARCHES

    def _parts(self, parts: Iterable[Any]) -> None:
        """Parts of a message, as OpenAI calls them, or blocks, as Anthropic does."""
        for part in parts:
            if type(part) is not dict:
                continue
            kind = part.get("type")
            if type(kind) is not str:
                self.open_ended = True
                continue
            if kind in _TEXT_PARTS or kind in _TEXT_BLOCKS:
                continue
            if kind in _NESTED_BLOCKS:
                if isinstance(content := part.get("content"), list):
                    self._parts(content)
            elif kind == "image" or (kind in _IMAGE_PARTS and not _is_no_image(part)):
                self.tokens += self._image
            elif kind == "document":
                self._document(part.get("source"))
            elif kind not in _AUDIO_PARTS:
                self.open_ended = True

    def _document(self, source: object) -> None:
        """A text, or parts; or a file, whose pages are packed."""
        match source:
            case {"type": "text"} | {"type": "content", "content": str()}:
                pass
            case {"type": "content", "content": list(parts)}:
                self._parts(parts)
            case _:
                self.open_ended = True


def _are_texts(messages: Iterable[Any]) -> bool:
    """Whether nothing but texts is to be read, as in most calls; False where that takes a closer look."""
    for message in messages:
        if type(message) is not dict or "audio" in message:
            return False
        content = message.get("content")
        if type(content) is not str and content is not None:
            return False
    return True


def _opens(name: str, value: Any) -> bool:
    """Whether a member of _ANTHROPIC_OPEN opens a call. To forget parts of a conversation makes nothing longer."""
    if name == "context_management" and isinstance(value, dict) and isinstance(value.get("edits"), list):
        return not all(isinstance(edit, dict) and str(edit.get("type")).startswith("clear_") for edit in value["edits"])
    return _given(value)


def _given(value: object) -> bool:
    return value is not None and value != []


def _goes_over_it_again(reasoning: Any) -> bool:
    """Whether several models read the call, as OpenAI's do in another mode than the standard one."""
    return isinstance(reasoning, dict) and reasoning.get("mode") not in (None, "standard")


def _is_no_image(part: Mapping[str, Any]) -> bool:
    """Whether what is called an image is a document or a film, which some servers take there."""
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    return isinstance(url, str) and url[:5].lower() == "data:" and url[5:11].lower() != "image/"


def _kinds(tools: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each tool's type, empty where it has none, and the tool."""
    for tool in tools:
        if isinstance(tool, dict):
            kind = tool.get("type")
            yield ("" if kind is None else str(kind)), tool


def _of_tools(call: AgentCall, tools: object) -> int:
    """Tokens that come to those of the tools' own text.

    Templates write the tools' JSON anew, with a space behind each comma and colon, which may be a token.
    """
    text = call.body if len(call.body) < _SHORT else orjson.dumps(tools)
    return TOOLS + text.count(b",") + text.count(b":")


def _holds_objects(body: bytes) -> bool:
    return body.find(b"{", body.find(b"{") + 1) >= 0


def _is_more_than_text(texts: Any) -> bool:
    return isinstance(texts, dict) or (isinstance(texts, list) and any(isinstance(each, dict) for each in texts))


def _number(value: object) -> int:
    """How many answers are asked for. Some servers read numbers from texts, and take 2.0 for 2."""
    if value is None:
        return 1
    if type(value) is int:
        return min(max(value, 1), _MOST)
    try:
        number = float(value) if isinstance(value, str | float) else 1.0
    except ValueError:
        return 1
    return min(max(math.ceil(number), 1), _MOST) if math.isfinite(number) else 1


def _cap(arguments: Mapping[str, Any], members: Sequence[str], least: int) -> int | None:
    """The tokens that the call caps each answer at.

    Of several caps the target may go by any, so the largest counts; one that is none may be understood as no limit.
    """
    found: int | None = None
    for name in members:
        value = arguments.get(name)
        if value is None:
            continue
        if type(value) is not int or value < least:
            return None
        if found is None or value > found:
            found = value
    if found is None:
        return None
    for name in OVERRIDES:
        value = arguments.get(name, found)
        if type(value) is not int or value < least:
            return None
        if value > found:
            found = value
    return found if found <= _MOST else _MOST
