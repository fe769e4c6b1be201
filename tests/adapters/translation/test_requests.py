"""`adapters.translation`, requests: what both protocols know goes over, what one does not know is refused by name."""

import json
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import anthropic as anthropic_adapter
from adapters import openai as openai_adapter
from adapters.base import AgentCall
from adapters.errors import MalformedCall
from adapters.registry import ANTHROPIC, OPENAI, endpoint
from adapters.translation import to_anthropic, to_openai, translation
from tests.adapters.translation.support import (
    CHAT,
    DOWN,
    LONGEST,
    MESSAGES,
    UP,
    USER,
    chat,
    down,
    everywhere,
    judge_chat_body,
    judge_messages_body,
    messages,
    names,
    somewhere,
    up,
    values,
    words,
)

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PIXELS = "iVBORw0KGgo="
PNG = {"type": "base64", "media_type": "image/png", "data": PIXELS}
ANSWER_SHAPE = {"type": "object", "properties": {"a": {"type": "number"}}, "additionalProperties": False}

WHOLE_CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Use tools."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is the weather here, and there?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXELS}", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://pictures.test/there.jpg"}},
                {"type": "file", "file": {"filename": "map.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
            ],
        },
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
                {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
        {"role": "user", "content": "And tomorrow?"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA, "strict": True},
        },
        {"type": "function", "function": {"name": "time"}},
    ],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_completion_tokens": 300,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": "END",
    "user": "u-1",
    "stream": True,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "sum", "description": "The sum.", "schema": ANSWER_SHAPE, "strict": True},
    },
}
WHOLE_CHAT_AS_MESSAGES: dict[str, Any] = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 300,
    "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Use tools."}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is the weather here, and there?"},
                {"type": "image", "source": PNG},
                {"type": "image", "source": {"type": "url", "url": "https://pictures.test/there.jpg"}},
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
                    "title": "map.pdf",
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": "noon"},
                {"type": "text", "text": "And tomorrow?"},
            ],
        },
    ],
    "stream": True,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop_sequences": ["END"],
    "tools": [
        {"name": "weather", "description": "Says it.", "input_schema": SCHEMA, "strict": True},
        {"name": "time", "input_schema": {"type": "object", "properties": {}}},
    ],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "metadata": {"user_id": "u-1"},
    "output_config": {"format": {"type": "json_schema", "schema": {**ANSWER_SHAPE, "description": "The sum."}}},
}

WHOLE_MESSAGES: dict[str, Any] = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 300,
    "system": [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Use tools."},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": PNG},
                {"type": "image", "source": {"type": "url", "url": "https://pictures.test/there.jpg"}},
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "eHg="},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
                {"type": "tool_use", "id": "toolu_3", "name": "look", "input": {}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such city", "is_error": True},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [{"type": "text", "text": "seen:"}, {"type": "image", "source": PNG}],
                },
                {"type": "tool_result", "tool_use_id": "toolu_3"},
                {"type": "text", "text": "And now?"},
            ],
        },
        {"role": "system", "content": "Hurry."},
        {"role": "assistant", "content": "Moment."},
        {"role": "user", "content": "Yes?"},
    ],
    "tools": [
        {"name": "weather", "description": "Says it.", "input_schema": SCHEMA, "strict": True},
        {"name": "look", "type": "custom", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
    ],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 40,
    "stop_sequences": ["END", "STOP"],
    "metadata": {"user_id": "u-1"},
    "stream": True,
    "thinking": {"type": "adaptive"},
    "service_tier": "auto",
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": ANSWER_SHAPE}},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}
WHOLE_MESSAGES_AS_CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [
        {
            "role": "system",
            "content": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Use tools."}],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXELS}"}},
                {"type": "image_url", "image_url": {"url": "https://pictures.test/there.jpg"}},
                {
                    "type": "file",
                    "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
                },
            ],
        },
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
                {"id": "toolu_3", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: no such city"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "seen:"},
        {"role": "tool", "tool_call_id": "toolu_3", "content": ""},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Image in the result of toolu_2:"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXELS}"}},
                {"type": "text", "text": "And now?"},
            ],
        },
        {"role": "system", "content": "Hurry."},
        {"role": "assistant", "content": "Moment."},
        {"role": "user", "content": "Yes?"},
    ],
    "max_completion_tokens": 300,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 40,
    "stop": ["END", "STOP"],
    "tools": [
        {
            "type": "function",
            "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA, "strict": True},
        },
        {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "parallel_tool_calls": False,
    "user": "u-1",
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": ANSWER_SHAPE, "strict": True},
    },
}


def test_a_chat_completions_call_goes_over_whole() -> None:
    body = up("claude-sonnet-4-5", **WHOLE_CHAT)
    assert body == WHOLE_CHAT_AS_MESSAGES
    judge_messages_body(body)


def test_a_messages_call_goes_over_whole() -> None:
    body = down("gpt-4o-mini", **WHOLE_MESSAGES)
    assert body == WHOLE_MESSAGES_AS_CHAT
    judge_chat_body(body)


def test_a_translation_says_where_and_how_its_target_is_asked() -> None:
    assert UP.suffix == endpoint(ANTHROPIC, "POST", MESSAGES)[0].suffix
    assert DOWN.suffix == endpoint(OPENAI, "POST", CHAT)[0].suffix
    assert UP.headers == [(b"anthropic-version", b"2023-06-01")]
    assert DOWN.headers == []
    assert b"anthropic-version" in DOWN.withheld
    assert b"openai-beta" in UP.withheld


@pytest.mark.parametrize(
    ("agent", "operation", "target"),
    [
        ("openai", "chat", "openai"),
        ("openai", "embeddings", "anthropic"),
        ("openai", "responses", "anthropic"),
        ("openai", "completions", "anthropic"),
        ("anthropic", "messages", "anthropic"),
        ("anthropic", "count_tokens", "openai"),
    ],
)
def test_there_is_no_way_for_any_other_operation(agent: str, operation: str, target: str) -> None:
    assert translation(agent, operation, target) is None


def test_the_model_is_the_one_that_the_target_knows_or_the_one_that_was_asked_for() -> None:
    assert up("claude")["model"] == "claude"
    assert up()["model"] == "m"
    assert down("gpt")["model"] == "gpt"
    assert down()["model"] == "m"


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({}, LONGEST),
        ({"max_tokens": None}, LONGEST),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 5),
    ],
)
def test_an_answer_is_as_long_as_the_agent_allows_or_as_the_gateway_does(members: dict[str, Any], tokens: int) -> None:
    assert up(**members)["max_tokens"] == tokens


def test_no_usage_is_asked_for_where_nothing_streams() -> None:
    assert "stream" not in up()
    assert "stream_options" not in down()


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 2}, {"temperature": 1}),
        ({"temperature": 1.01}, {"temperature": 1}),
        ({"temperature": 1, "top_p": 0.5}, {"top_p": 0.5}),
        ({"temperature": 1.5, "top_p": 0.5}, {"top_p": 0.5}),
        ({"temperature": 0.5, "top_p": 1}, {"temperature": 0.5}),
        ({"temperature": 0.5, "top_p": 0.5, "top_k": 3}, {"temperature": 0.5, "top_p": 0.5, "top_k": 3}),
        ({"temperature": None, "top_p": None, "top_k": None}, {}),
    ],
)
def test_temperatures_above_1_are_1_and_what_is_the_default_is_not_said_twice(
    given: dict[str, Any], sent: dict[str, Any]
) -> None:
    body = up(**given)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k") if name in body} == sent


TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "t", "parameters": SCHEMA}}]}
OWN_TOOLS: dict[str, Any] = {"tools": [{"name": "t", "input_schema": SCHEMA}]}
NAMED = {"type": "function", "function": {"name": "t"}}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, None),
        ({"tool_choice": None}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": NAMED}, {"type": "tool", "name": "t"}),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": None}, None),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        (
            {"parallel_tool_calls": False, "tool_choice": NAMED},
            {"type": "tool", "name": "t", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_every_choice_of_tools_has_its_counterpart(given: dict[str, Any], sent: Any) -> None:
    assert up(**TOOLS, **given).get("tool_choice") == sent


@pytest.mark.parametrize(
    ("given", "choice", "parallel"),
    [
        (None, None, None),
        ({"type": "auto"}, "auto", None),
        ({"type": "none"}, "none", None),
        ({"type": "any"}, "required", None),
        ({"type": "tool", "name": "t"}, NAMED, None),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any", "disable_parallel_tool_use": False}, "required", None),
    ],
)
def test_every_choice_of_tools_has_its_counterpart_the_other_way(given: Any, choice: Any, parallel: Any) -> None:
    body = down(**OWN_TOOLS, tool_choice=given)
    assert body.get("tool_choice") == choice
    assert body.get("parallel_tool_calls") == parallel


def test_a_choice_without_tools_is_none() -> None:
    assert "tool_choice" not in up(tool_choice="auto", tools=[])
    assert "tool_choice" not in down(tool_choice={"type": "none"})
    with pytest.raises(MalformedCall, match=r"^`tool_choice` asks for a tool"):
        up(tool_choice="required")
    with pytest.raises(MalformedCall, match=r"^`tool_choice` asks for a tool"):
        down(tool_choice={"type": "any"})


def test_messages_of_one_role_in_a_row_become_one_turn() -> None:
    turns = up(
        messages=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b", "name": "ann"},
            {"role": "system", "content": "s"},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "d"}], "refusal": None},
            {"role": "user", "content": "e"},
        ]
    )
    assert turns["system"] == "s"
    assert [turn["role"] for turn in turns["messages"]] == ["user", "assistant", "user"]
    assert [block["text"] for block in turns["messages"][0]["content"]] == ["a", "b"]
    assert [block["text"] for block in turns["messages"][1]["content"]] == ["c", "d"]


def test_texts_that_say_nothing_are_left_out_since_anthropic_refuses_them() -> None:
    turns = up(
        messages=[
            {"role": "system", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": " \n", "tool_calls": []},
            {"role": "user", "content": "there"},
        ]
    )
    assert "system" not in turns
    assert [turn["role"] for turn in turns["messages"]] == ["user"]
    assert [block["text"] for block in turns["messages"][0]["content"]] == ["hi", "there"]
    assert up(
        messages=[
            USER,
            {"role": "assistant", "content": None, "tool_calls": [_call("c")]},
            {"role": "tool", "tool_call_id": "c", "content": ""},
        ]
    )["messages"][1:] == [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "t", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
    ]


def _call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "t", "arguments": arguments}}


def test_the_reasoning_of_earlier_answers_stays_behind() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm",
        "annotations": [],
        "audio": None,
    }
    assert up(messages=[USER, answer, USER])["messages"][1] == {"role": "assistant", "content": "yes"}
    thought = [{"type": "thinking", "thinking": "hm", "signature": ""}]
    assert down(messages=[USER, {"role": "assistant", "content": thought}, USER])["messages"] == [USER, USER]


def test_an_id_of_a_tool_call_keeps_its_result_whatever_it_is_made_of() -> None:
    turns = up(
        messages=[
            USER,
            {"role": "assistant", "tool_calls": [_call("functions.t:0"), _call("functions.t:1"), _call("ok_-9")]},
            {"role": "tool", "tool_call_id": "functions.t:0", "content": "a"},
            {"role": "tool", "tool_call_id": "functions.t:1", "content": "b"},
            {"role": "tool", "tool_call_id": "ok_-9", "content": "c"},
        ]
    )["messages"]
    ids = [block["id"] for block in turns[1]["content"]]
    assert ids == [block["tool_use_id"] for block in turns[2]["content"]]
    assert len(set(ids)) == 3
    assert all(each.replace("-", "").replace("_", "").isalnum() for each in ids)
    assert ids[2] == "ok_-9"


def test_numbers_of_any_length_keep_their_digits() -> None:
    number = 123456789012345678901234567890
    arguments = f'{{"n":{number}}}'
    calls = [USER, {"role": "assistant", "tool_calls": [_call("c", arguments)]}, {**USER}]
    assert b'"input":%b' % arguments.encode() in UP.request(chat(messages=calls), None, LONGEST)
    body = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":[{"type":"tool_use","id":"c","name":"t","input":%b}]},{"role":"user","content":"hi"}]}'  # noqa: E501
    call = ANTHROPIC.read(endpoint(ANTHROPIC, "POST", MESSAGES)[0], body % arguments.encode(), "")
    sent = orjson.loads(DOWN.request(call, None, LONGEST))
    assert sent["messages"][1]["tool_calls"][0]["function"]["arguments"] == arguments


def test_the_result_of_a_tool_that_failed_says_so_once() -> None:
    def result(**members: Any) -> Any:
        return down(messages=[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", **members}]}])[
            "messages"
        ][0]["content"]

    assert result(content="no", is_error=True) == "Error: no"
    assert result(content="ERROR: no", is_error=True) == "ERROR: no"
    assert result(is_error=True) == "Error"
    assert result(content="no", is_error=False) == "no"
    assert result(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], is_error=True) == [
        {"type": "text", "text": "Error: a"},
        {"type": "text", "text": "b"},
    ]


def test_what_a_hint_says_makes_no_difference() -> None:
    hints = {
        "metadata": {"a": "b"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "implicit"},
        "prompt_cache_retention": "24h",
        "reasoning_effort": "high",
        "seed": 7,
        "stream_options": {"include_usage": True},
        "verbosity": "low",
    }
    assert hints.keys() == to_anthropic.HINTS
    assert up(**hints, service_tier="auto") == up()
    marked: dict[str, Any] = {
        "cache_control": {"type": "ephemeral"},
        "diagnostics": {"previous_message_id": None},
        "service_tier": "standard_only",
        "thinking": {"type": "enabled", "budget_tokens": 2000},
    }
    assert marked.keys() == to_openai.HINTS
    assert down(**marked, speed="standard", output_config={"effort": "max"}) == down()


@pytest.mark.parametrize(
    "members",
    [
        {"n": 1, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0.0},
        {"logit_bias": {}, "store": False, "modalities": ["text"], "functions": [], "audio": None, "stop": None},
        {"response_format": {"type": "text"}, "web_search_options": None, "whatever": None},
    ],
)
def test_a_member_that_asks_for_nothing_is_no_obstacle(members: dict[str, Any]) -> None:
    assert up(**members) == up()


ASKED_TOO_MUCH: dict[str, Any] = {
    "n": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "logit_bias": {"50256": -100},
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "store": True,
    "service_tier": "flex",
    "web_search_options": {},
    "moderation": {"model": "omni"},
    "response_format": {"type": "json_object"},
    "chat_template_kwargs": {"enable_thinking": False},
    "n_predict": 5,
    "temperature": 2.5,
    "top_p": 1.5,
    "top_k": 0,
    "max_tokens": 0,
    "max_completion_tokens": "5",
    "stop": ["\n"],
    "user": 5,
    "safety_identifier": {},
    "parallel_tool_calls": "no",
    "tools": {},
}


@pytest.mark.parametrize("name", ASKED_TOO_MUCH)
def test_what_cannot_go_to_anthropic_is_refused_by_its_name(name: str) -> None:
    tools = {} if name == "tools" else TOOLS
    with pytest.raises(MalformedCall, match=f"^`{name}` .{{20,}}\\.$|^`{name}` must be"):
        up(**tools, **{name: ASKED_TOO_MUCH[name]})


OTHERS_ASKED_TOO_MUCH: dict[str, Any] = {
    "mcp_servers": [{"type": "url", "url": "https://a.test"}],
    "container": "c",
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    "inference_geo": "eu",
    "speed": "fast",
    "fallbacks": [{"model": "x"}],
    "workspace_id": "w",
    "user_profile_id": "u",
    "compaction": {},
    "anything_else": 1,
    "max_tokens": 0,
    "temperature": 1.5,
    "top_p": True,
    "top_k": 1.5,
    "stop_sequences": "END",
    "metadata": 5,
    "output_config": "low",
    "output_format": {"type": "text"},
    "tool_choice": "auto",
    "tools": [{"type": "web_search_20250305", "name": "web_search"}],
}


@pytest.mark.parametrize("name", OTHERS_ASKED_TOO_MUCH)
def test_what_cannot_go_to_openai_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(MalformedCall, match=f"^`{name}(\\[0\\])?` .{{10,}}\\.$"):
        down(**{name: OTHERS_ASKED_TOO_MUCH[name]})


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (5, "messages[1]"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "function", "name": "f", "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": [5]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}, "messages[1].content[0].y"),
        ({"role": "user", "content": "x", "tool_calls": [1]}, "messages[1].tool_calls"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0].image_url.url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/bmp;base64,AA"}}]},
            "messages[1].content[0].image_url.url",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]},
            "messages[1].content[0].image_url.url",
        ),
        ({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}, "messages[1].content[0].file"),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://a"}}]},
            "messages[1].content",
        ),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[1].function_call"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [_call("")]}, "messages[1].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [_call("c", "[]")]}, "messages[1].tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [_call("c", "{")]}, "messages[1].tool_calls[0].function.arguments"),
        (
            {"role": "assistant", "tool_calls": [_call("c", '{"a":1,"a":2}')]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
    ],
)
def test_what_is_wrong_with_a_message_is_told_by_its_place(message: Any, where: str) -> None:
    with pytest.raises(MalformedCall) as refused:
        up(messages=[USER, message, USER])
    assert str(refused.value).startswith(f"`{where}` ")


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (5, "messages[1]"),
        ({"role": "tool", "content": "x"}, "messages[1].role"),
        ({"role": "user", "content": "x", "name": "n"}, "messages[1].name"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "search_result"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text"),
        (
            {"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "https://a"}}]},
            "messages[1].content[0].source",
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "document", "source": {"type": "text", "data": "x"}, "citations": {"enabled": True}}
                ],
            },
            "messages[1].content[0].citations",
        ),
        (
            {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]},
            "messages[1].content[0].source",
        ),
        (
            {"role": "user", "content": [{"type": "tool_use", "id": "c", "name": "t", "input": {}}]},
            "messages[1].content[0].type",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "document"}]}],
            },
            "messages[1].content[0].content[0].type",
        ),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, "messages[1].content[0].type"),
        ({"role": "assistant", "content": [{"type": "image", "source": {}}]}, "messages[1].content[0].type"),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "t"}]},
            "messages[1].content[0].input",
        ),
        ({"role": "system", "content": [{"type": "image"}]}, "messages[1].content[0]"),
    ],
)
def test_what_is_wrong_with_a_message_is_told_by_its_place_the_other_way(message: Any, where: str) -> None:
    with pytest.raises(MalformedCall) as refused:
        down(messages=[USER, message, USER])
    assert str(refused.value).startswith(f"`{where}` ")


@pytest.mark.parametrize(
    "conversation",
    [
        [],
        [{"role": "system", "content": "s"}],
        [{"role": "assistant", "content": "a"}, USER],
        [USER, {"role": "assistant", "content": "I was saying"}],
    ],
)
def test_a_conversation_begins_and_ends_with_the_user_where_anthropic_wants_it_so(conversation: Any) -> None:
    with pytest.raises(MalformedCall, match=r"^`messages` must (begin|end)"):
        up(messages=conversation)


def test_an_answer_that_was_begun_cannot_be_gone_on_with() -> None:
    with pytest.raises(MalformedCall, match=r"^`messages` must end with the user"):
        down(messages=[USER, {"role": "assistant", "content": "I was saying"}])
    with pytest.raises(MalformedCall, match=r"^`messages` must hold"):
        down(messages=[])


def test_no_member_is_known_that_the_adapters_do_not_know() -> None:
    assert to_anthropic._KNOWN <= openai_adapter.MEMBERS
    assert to_openai._KNOWN <= anthropic_adapter.MEMBERS


# What both protocols know, in the words of the one and, by the way of the other, in its own again.

inputs = st.dictionaries(words, values, max_size=3)
schemas = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(names, st.just({}), max_size=2)}
)
fractions = st.floats(0, 1, exclude_max=True)


def listed(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Several parts, or one that is no text: a text alone is written as what it is."""
    return st.lists(parts, min_size=1, max_size=3).filter(lambda all: len(all) > 1 or all[0]["type"] != "text")


chat_text = st.fixed_dictionaries({"type": st.just("text"), "text": words})
chat_image = st.builds(
    lambda url: {"type": "image_url", "image_url": {"url": url}},
    st.sampled_from([f"data:image/png;base64,{PIXELS}", "data:image/webp;base64,AA==", "https://a.test/b"]),
)
chat_said = st.fixed_dictionaries({"role": st.just("user"), "content": words | listed(chat_text | chat_image)})


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@st.composite
def chat_turns(draw: st.DrawFn) -> list[Any]:
    """An answer, and what follows it."""
    calls = [
        {"id": call, "type": "function", "function": {"name": name, "arguments": _written(given)}}
        for call, (name, given) in draw(
            st.dictionaries(names, st.tuples(names, st.dictionaries(words, words, max_size=2)), max_size=3)
        ).items()
    ]
    answer: dict[str, Any] = {"role": "assistant", "content": draw(words | listed(chat_text))}
    if not calls:
        return [answer, draw(chat_said)]
    answer |= {"tool_calls": calls, "content": draw(st.none() | words)}
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": draw(st.just("") | words | listed(chat_text))}
        for call in calls
    ]
    return [answer, *results, *draw(st.lists(chat_said, max_size=1))]


@st.composite
def chat_calls(draw: st.DrawFn) -> dict[str, Any]:
    system = [{"role": "system", "content": said} for said in draw(st.lists(words | listed(chat_text), max_size=1))]
    turns = [turn for each in draw(st.lists(chat_turns(), max_size=3)) for turn in each]
    body: dict[str, Any] = {
        "model": "m",
        "messages": [*system, draw(chat_said), *turns],
        "max_completion_tokens": draw(st.integers(1, 10**6)),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "temperature": fractions,
                    "top_p": fractions,
                    "top_k": st.integers(1, 100),
                    "stop": st.lists(words, min_size=1, max_size=3),
                    "user": words,
                    "response_format": st.builds(
                        lambda schema: {
                            "type": "json_schema",
                            "json_schema": {"name": "answer", "schema": schema, "strict": True},
                        },
                        schemas,
                    ),
                },
            )
        ),
    }
    if draw(st.booleans()):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    functions = draw(
        st.lists(
            st.fixed_dictionaries(
                {"name": names, "parameters": schemas}, optional={"description": words, "strict": st.just(True)}
            ),
            max_size=2,
        )
    )
    if functions:
        body["tools"] = [{"type": "function", "function": function} for function in functions]
        named = {"type": "function", "function": {"name": functions[0]["name"]}}
        choice = draw(st.sampled_from([None, "auto", "none", "required", named]))
        if choice is not None:
            body["tool_choice"] = choice
            if choice != "none" and draw(st.booleans()):
                body["parallel_tool_calls"] = False
    return body


def read(path: str, body: Mapping[str, Any]) -> AgentCall:
    adapter = OPENAI if path == CHAT else ANTHROPIC
    return adapter.read(endpoint(adapter, "POST", path)[0], _written(body).encode(), "")


@settings(max_examples=150)
@given(chat_calls())
def test_a_chat_completions_call_comes_back_from_messages_as_what_it_was(body: dict[str, Any]) -> None:
    there = UP.request(read(CHAT, body), None, LONGEST)
    judge_messages_body(orjson.loads(there))
    call = ANTHROPIC.read(endpoint(ANTHROPIC, "POST", MESSAGES)[0], there, "")
    back = DOWN.request(call, None, LONGEST)
    judge_chat_body(orjson.loads(back))
    assert OPENAI.read(endpoint(OPENAI, "POST", CHAT)[0], back, "").arguments == body


own_text = st.fixed_dictionaries({"type": st.just("text"), "text": words})
own_image = st.builds(
    lambda source: {"type": "image", "source": source},
    st.sampled_from([PNG, {"type": "url", "url": "https://a.test/b"}]),
)


@st.composite
def own_calls(draw: st.DrawFn) -> dict[str, Any]:
    turns: list[Any] = [{"role": "user", "content": draw(words | listed(own_text | own_image))}]
    for _ in range(draw(st.integers(0, 3))):
        uses = [
            {"type": "tool_use", "id": call, "name": name, "input": given}
            for call, (name, given) in draw(st.dictionaries(names, st.tuples(names, inputs), max_size=2)).items()
        ]
        said = draw(st.lists(own_text, max_size=2, min_size=0 if uses else 2))
        turns.append({"role": "assistant", "content": said + uses})
        results = []
        for use in uses:
            result = {"type": "tool_result", "tool_use_id": use["id"]}
            if content := draw(st.just("") | words | listed(own_text)):
                result["content"] = content
            results.append(result)
        asked = draw(st.lists(own_text | own_image, max_size=2, min_size=0 if results else 2))
        turns.append({"role": "user", "content": results + asked})
    body: dict[str, Any] = {
        "model": "m",
        "messages": turns,
        "max_tokens": draw(st.integers(1, 10**6)),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "system": words | listed(own_text),
                    "temperature": fractions,
                    "top_p": fractions,
                    "top_k": st.integers(1, 100),
                    "stop_sequences": st.lists(words, min_size=1, max_size=3),
                    "metadata": st.fixed_dictionaries({"user_id": words}),
                    "stream": st.just(True),
                    "output_config": st.builds(
                        lambda schema: {"format": {"type": "json_schema", "schema": schema}}, schemas
                    ),
                },
            )
        ),
    }
    tools = draw(
        st.lists(
            st.fixed_dictionaries(
                {"name": names, "input_schema": schemas}, optional={"description": words, "strict": st.just(True)}
            ),
            max_size=2,
        )
    )
    if tools:
        body["tools"] = tools
        kinds: list[Any] = [None, {"type": "none"}]
        for alone in ({}, {"disable_parallel_tool_use": True}):
            kinds += [{"type": "auto", **alone}, {"type": "any", **alone}]
            kinds += [{"type": "tool", "name": tools[0]["name"], **alone}]
        if (choice := draw(st.sampled_from(kinds))) is not None:
            body["tool_choice"] = choice
    return body


@settings(max_examples=150)
@given(own_calls())
def test_a_messages_call_comes_back_from_chat_completions_as_what_it_was(body: dict[str, Any]) -> None:
    there = DOWN.request(read(MESSAGES, body), None, LONGEST)
    judge_chat_body(orjson.loads(there))
    call = OPENAI.read(endpoint(OPENAI, "POST", CHAT)[0], there, "")
    back = UP.request(call, None, LONGEST)
    judge_messages_body(orjson.loads(back))
    assert ANTHROPIC.read(endpoint(ANTHROPIC, "POST", MESSAGES)[0], back, "").arguments == body


def _tried(body: Any, upwards: bool) -> bool:
    """Whether a call is sent; if so, the other SDK knows its types."""
    try:
        call = read(CHAT if upwards else MESSAGES, body)
        sent = orjson.loads((UP if upwards else DOWN).request(call, None, LONGEST))
    except MalformedCall:
        return False
    (judge_messages_body if upwards else judge_chat_body)(sent)
    return True


@pytest.mark.parametrize("upwards", [True, False])
def test_a_strange_value_in_any_place_is_refused_or_makes_no_difference_to_types(upwards: bool) -> None:
    outcomes = [_tried(body, upwards) for body in everywhere(WHOLE_CHAT if upwards else WHOLE_MESSAGES)]
    assert len(outcomes) > 1000
    assert outcomes.count(False) > len(outcomes) / 2


@settings(max_examples=150)
@given(st.data(), st.booleans())
def test_nothing_that_an_adapter_reads_makes_a_translation_raise_anything_but_malformed_call(
    data: st.DataObject, upwards: bool
) -> None:
    body: Any = WHOLE_CHAT if upwards else WHOLE_MESSAGES
    for _ in range(data.draw(st.integers(1, 3))):
        body = somewhere(body, data.draw)
    _tried(body, upwards)


@pytest.mark.parametrize("depth", [150, 180, 190, 250, 5000])
def test_deep_arguments_go_over_or_are_refused_by_their_place(depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    call = chat(messages=[USER, {"role": "assistant", "tool_calls": [_call("c", deep)]}, USER])
    if depth < 195:
        assert deep.encode() in UP.request(call, None, LONGEST)
    else:
        with pytest.raises(MalformedCall, match="arguments"):
            UP.request(call, None, LONGEST)


def test_a_call_of_other_bytes_is_the_same_call() -> None:
    """Members in another order, escapes, white space."""
    body = orjson.dumps(WHOLE_MESSAGES, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    call = ANTHROPIC.read(endpoint(ANTHROPIC, "POST", MESSAGES)[0], body, "")
    assert orjson.loads(DOWN.request(call, "gpt-4o-mini", LONGEST)) == WHOLE_MESSAGES_AS_CHAT
    assert messages(**WHOLE_MESSAGES).arguments == call.arguments
