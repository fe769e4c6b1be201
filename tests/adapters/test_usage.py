"""What a target reports of a call's use is read whole: all that is billed at a price of its own, whole and streamed."""

from typing import Any

import orjson
import pytest

from adapters.base import AgentCall, Usage
from adapters.registry import ANTHROPIC, OPENAI, endpoint

CHAT, RESPONSES, EMBEDDINGS, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": []},
    RESPONSES: {"model": "m", "input": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
    MESSAGES: {"model": "m", "max_tokens": 9, "messages": []},
}
SEARCHED = [
    {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
    {"type": "web_search_call", "action": {"type": "open_page", "url": "https://example.com"}},
    {"type": "file_search_call", "queries": ["x"]},
    {"type": "web_search_call", "status": "completed"},
    {"type": "message", "content": [{"type": "output_text", "text": '"web_search_call"'}]},
    "odd",
]


def call(path: str, **changes: Any) -> AgentCall:
    adapter = ANTHROPIC if path == MESSAGES else OPENAI
    return adapter.read(endpoint(adapter, "POST", path)[0], orjson.dumps(GOOD[path] | changes), "")


def usage(path: str, answer: dict[str, Any], **changes: Any) -> Usage | None:
    return (ANTHROPIC if path == MESSAGES else OPENAI).usage(call(path, **changes), orjson.dumps(answer))


def streamed(path: str, *events: dict[str, Any], **changes: Any) -> Usage | None:
    meter = (ANTHROPIC if path == MESSAGES else OPENAI).meter(call(path, stream=True, **changes))
    for event in events:
        meter.feed(b"event: %b\ndata: %b\n\n" % (str(event.get("type", "")).encode(), orjson.dumps(event)))
    return meter.usage


REPORTED: list[tuple[str, dict[str, Any], Usage]] = [
    (CHAT, {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 20, "audio_tokens": 30,
                                      "image_tokens": 40, "text_tokens": 30},
            "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 6, "text_tokens": 39}},
     Usage(100, 50, 10, 20, 5, 30, 6, 40)),
    (RESPONSES, {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150,
                 "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 20},
                 "output_tokens_details": {"reasoning_tokens": 5}}, Usage(100, 50, 10, 20, 5)),
    # xAI counts reasoning beside the answer's tokens.
    (CHAT, {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 405,
            "completion_tokens_details": {"reasoning_tokens": 300}}, Usage(100, 305, reasoning_tokens=300)),
    (EMBEDDINGS, {"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0)),
    (EMBEDDINGS, {"total_tokens": 8}, Usage(8, 0)),
    # Moonshot tells cached tokens at the top; some servers count them beside the prompt's.
    (CHAT, {"prompt_tokens": 100, "completion_tokens": 5, "cached_tokens": 60}, Usage(100, 5, 60)),
    (CHAT, {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 60}},
     Usage(70, 5, 60)),
    # Gemini's cache, as OpenRouter reports it, reads what it has just written.
    (CHAT, {"prompt_tokens": 100, "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 90, "cache_write_tokens": 90}}, Usage(100, 5, 90, 90)),
    (MESSAGES, {"input_tokens": 10, "output_tokens": 50, "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 70,
                "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40},
                "output_tokens_details": {"thinking_tokens": 7}, "service_tier": "standard",
                "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 2}, "speed": "fast"},
     Usage(100, 50, 20, 70, 7, cache_write_1h_tokens=40, web_searches=3, tier="fast")),
    (MESSAGES, {"input_tokens": 10, "output_tokens": 5, "server_tool_use": None, "cache_creation": None,
                "speed": "standard", "iterations": None}, Usage(10, 5)),
    # Only what is not in the sums already: summaries of a long conversation, and advice by another model.
    (MESSAGES, {"input_tokens": 10, "output_tokens": 5, "iterations": [
        {"type": "compaction", "input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 30},
        {"type": "message", "input_tokens": 10, "output_tokens": 5},
        {"type": "advisor_message", "input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 4,
         "cache_creation": {"ephemeral_1h_input_tokens": 4}}, "odd"]},
     Usage(10 + 130 + 5, 27, 30, 4, cache_write_1h_tokens=4)),
]  # fmt: skip


@pytest.mark.parametrize(("path", "reported", "found"), REPORTED)
def test_every_part_that_has_a_price_is_read(path: str, reported: dict[str, Any], found: Usage) -> None:
    assert usage(path, {"usage": reported}) == found
    match path:
        case "/v1/chat/completions":
            assert streamed(path, {"choices": [], "usage": reported}) == found
        case "/v1/responses":
            assert streamed(path, {"type": "response.completed", "response": {"usage": reported}}) == found
        case "/v1/messages":
            assert streamed(path, {"type": "message_start", "message": {"usage": reported}}) == found
            assert streamed(path, {"type": "message_delta", "delta": {}, "usage": reported}) == found


@pytest.mark.parametrize(
    ("asked", "said", "tier"),
    [
        ("priority", "priority", "priority"),
        # The target decides what it grants.
        ("priority", "default", ""),
        ("flex", "default", ""),
        ("flex", "flex", "flex"),
        # A project can have other terms than the usual ones by itself.
        (None, "priority", "priority"),
        ("auto", "priority", "priority"),
        (None, "default", ""),
        (None, None, ""),
        ("priority", ["priority"], ""),
    ],
)
def test_the_terms_of_billing_are_the_answers_word(asked: str | None, said: Any, tier: str) -> None:
    changes = {} if asked is None else {"service_tier": asked}
    counts = {"prompt_tokens": 9, "completion_tokens": 1}
    found = usage(CHAT, {"choices": [], "usage": counts, "service_tier": said}, **changes)
    assert found == Usage(9, 1, tier=tier)
    assert streamed(CHAT, {"choices": [], "usage": counts, "service_tier": said}, **changes) == found


@pytest.mark.parametrize(("asked", "tier"), [("priority", "priority"), ("flex", "")])
def test_where_only_the_end_of_an_answer_is_left_it_is_billed_as_asked_unless_that_is_cheaper(
    asked: str, tier: str
) -> None:
    end = b'...", "usage": {"prompt_tokens": 9, "completion_tokens": 1}}'
    assert OPENAI.usage(call(CHAT, service_tier=asked), end) == Usage(9, 1, tier=tier)


def test_a_tier_in_what_a_caller_has_sent_along_is_not_the_answers() -> None:
    """Metadata comes back in the answer of a response."""
    counts = {"input_tokens": 9, "output_tokens": 1}
    answer = {"usage": counts, "service_tier": "default", "metadata": {"service_tier": "flex", "x": "priority"}}
    assert usage(RESPONSES, answer) == Usage(9, 1)


def test_searches_that_the_target_has_made_are_counted() -> None:
    counts = {"input_tokens": 9, "output_tokens": 1}
    found = Usage(9, 1, web_searches=2, file_searches=1)
    tools = [{"type": "web_search"}]
    assert usage(RESPONSES, {"output": SEARCHED, "usage": counts}, tools=tools) == found
    event = {"type": "response.completed", "response": {"output": SEARCHED, "usage": counts}}
    assert streamed(RESPONSES, event, tools=tools) == found
    told = {"usage": counts, "output": SEARCHED, "tool_usage": {"web_search": {"num_requests": 7}}}
    assert usage(RESPONSES, told, tools=tools) == Usage(9, 1, web_searches=7, file_searches=1)
