"""What the tests of translations share: calls, the two ways, events, and the SDKs' own types as judges."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anthropic.types
import openai.types.chat
import orjson
from anthropic.types import message_create_params
from hypothesis import strategies as st
from openai.types.chat import completion_create_params
from pydantic import TypeAdapter

from adapters.base import AgentCall
from adapters.registry import ANTHROPIC, OPENAI, endpoint
from adapters.translation import Translation, translation

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
NOW = 1763700000
LONGEST = 4096
USER = {"role": "user", "content": "hi"}


def _there(agent: str, operation: str, target: str) -> Translation:
    found = translation(agent, operation, target, lambda: float(NOW))
    assert found is not None
    return found


UP = _there("openai", "chat", "anthropic")
"""From chat completions to messages."""
DOWN = _there("anthropic", "messages", "openai")
"""From messages to chat completions."""


def chat(**members: Any) -> AgentCall:
    body = {"model": "m", "messages": [USER]} | members
    return OPENAI.read(endpoint(OPENAI, "POST", CHAT)[0], orjson.dumps(body), "")


def messages(**members: Any) -> AgentCall:
    body = {"model": "m", "max_tokens": 100, "messages": [USER]} | members
    return ANTHROPIC.read(endpoint(ANTHROPIC, "POST", MESSAGES)[0], orjson.dumps(body), "")


def up(model: str | None = None, /, **members: Any) -> dict[str, Any]:
    """What a target of Anthropic's is sent for a chat completions call."""
    body = orjson.loads(UP.request(chat(**members), model, LONGEST))
    assert isinstance(body, dict)
    return body


def down(model: str | None = None, /, **members: Any) -> dict[str, Any]:
    """What a target of OpenAI's is sent for a messages call."""
    body = orjson.loads(DOWN.request(messages(**members), model, LONGEST))
    assert isinstance(body, dict)
    return body


def event(name: str, value: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(value))


def typed(kind: str, **members: Any) -> bytes:
    """One of Anthropic's events."""
    return event(kind, {"type": kind, **members})


def chunk(delta: Mapping[str, Any] | None = None, finish: str | None = None, **members: Any) -> bytes:
    """One of OpenAI's chunks; without a delta one without choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": NOW, "model": "gpt-4o-mini"}
    return b"data: " + orjson.dumps({**head, "choices": choices, **members}) + b"\n\n"


DONE = b"data: [DONE]\n\n"

_CHAT_BODY = TypeAdapter[Any](completion_create_params.CompletionCreateParams)
_MESSAGES_BODY = TypeAdapter[Any](message_create_params.MessageCreateParams)
_EVENT = TypeAdapter[Any](anthropic.types.RawMessageStreamEvent)


def _exhausted(value: Any) -> None:
    """Walks through what a judge has said: it looks at iterables only as they are walked through."""
    if isinstance(value, Mapping):
        for each in value.values():
            _exhausted(each)
    elif isinstance(value, Iterator | list | tuple):
        for each in value:
            _exhausted(each)


def judge_chat_body(body: Mapping[str, Any]) -> None:
    _exhausted(_CHAT_BODY.validate_python(body))


def judge_messages_body(body: Mapping[str, Any]) -> None:
    _exhausted(_MESSAGES_BODY.validate_python(body))


def judge_completion(answer: bytes) -> openai.types.chat.ChatCompletion:
    return openai.types.chat.ChatCompletion.model_validate_json(answer)


def judge_message(answer: bytes) -> anthropic.types.Message:
    return anthropic.types.Message.model_validate_json(answer)


def judge_chunk(said: bytes) -> openai.types.chat.ChatCompletionChunk:
    return openai.types.chat.ChatCompletionChunk.model_validate_json(said)


def judge_event(said: bytes) -> Any:
    return _EVENT.validate_json(said)


words = st.text("abc é\n", min_size=1, max_size=8).filter(str.strip)
names = st.text("abz_-09", min_size=1, max_size=6)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)

strange = st.one_of(
    values,
    st.sampled_from(
        [
            "user",
            "tool",
            "assistant",
            "text",
            "image",
            "tool_use",
            "tool_result",
            "",
            [],
            {},
            [[]],
            [{}],
            -1,
            2**70,
            1e308,
        ]
    ),
)


def somewhere(document: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The document with something else in one place of it: another value, one member less or one more."""
    document = copy.deepcopy(document)
    place = document
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return document
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
            continue
        match draw(st.integers(0, 3)):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[draw(names)] = draw(strange)
            case _:
                place[key] = draw(strange)
        return document


STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2.5,
    2**70,
    "",
    "x",
    "text",
    [],
    [None],
    ["x"],
    [[]],
    [{}],
    {},
    {"x": 1},
    {"type": []},
)


def everywhere(document: Any) -> Iterator[Any]:
    """The document with something else in each of its places: every STRANGE value, and nothing at all."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if path:
            yield path
        members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in members:
            yield from places(each, (*path, key))

    for path in list(places(document, ())):
        for other in (*STRANGE, places):
            changed = copy.deepcopy(document)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if other is places:
                del place[path[-1]]
            else:
                place[path[-1]] = other
            yield changed
