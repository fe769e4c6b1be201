"""`adapters.sizes`: no call turns out larger than it was said to be able to get, and what may be larger says so."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import AgentCall, Size
from adapters.registry import ANTHROPIC, OPENAI, endpoint
from adapters.sizes import ANTHROPIC_IMAGE, OPENAI_IMAGE, OWN_TOOL, SEARCHES, TEMPLATE, TOOLS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES = "/v1/embeddings", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "m", "prompt": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
    RESPONSES: {"model": "m", "input": "hi"},
    MESSAGES: {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    COUNT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def call(path: str, changes: dict[str, Any]) -> AgentCall:
    adapter = ANTHROPIC if path in (MESSAGES, COUNT) else OPENAI
    return adapter.read(endpoint(adapter, "POST", path)[0], orjson.dumps(GOOD[path] | changes), "")


def size(path: str, **changes: Any) -> Size:
    return (ANTHROPIC if path in (MESSAGES, COUNT) else OPENAI).size(call(path, changes))


def said(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


WEATHER = {
    "type": "object",
    "properties": {
        "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["location", "unit"],
}
BOARDWALK = "https://upload.wikimedia.org/wikipedia/commons/thumb/d/dd/boardwalk.jpg/2560px-boardwalk.jpg"
PIXELS = "data:image/png;base64,iVBORw0="
RECORDED: list[tuple[str, dict[str, Any], int]] = [
    # The examples of OpenAI's API reference, with the usage it shows in their answers.
    (CHAT, {"messages": [{"role": "developer", "content": "You are a helpful assistant."},
                         {"role": "user", "content": "Hello!"}]}, 19),
    (CHAT, {"messages": [{"role": "user", "content": "What's the weather like in Boston today?"}],
            "tools": [{"type": "function", "function": {"name": "get_current_weather", "parameters": WEATHER,
                       "description": "Get the current weather in a given location"}}], "tool_choice": "auto"}, 82),
    (CHAT, {"messages": said({"type": "text", "text": "What is in this image?"},
                             {"type": "image_url", "image_url": {"url": BOARDWALK}}), "max_tokens": 300}, 1117),
    (RESPONSES, {"input": "Tell me a three sentence bedtime story about a unicorn."}, 36),
    (RESPONSES, {"input": said({"type": "input_text", "text": "what is in this image?"},
                               {"type": "input_image", "image_url": BOARDWALK})}, 328),
    (RESPONSES, {"input": "What is the weather like in Boston today?", "tool_choice": "auto",
                 "tools": [{"type": "function", "name": "get_current_weather", "parameters": WEATHER,
                            "description": "Get the current weather in a given location"}]}, 291),
    (RESPONSES, {"input": "How much wood would a woodchuck chuck?", "reasoning": {"effort": "high"}}, 81),
    (EMBEDDINGS, {"input": "The food was delicious and the waiter...", "encoding_format": "float"}, 8),
    # A one-tile image, billed to the dearest model, as people have measured it in OpenAI's forum.
    (CHAT, {"model": "gpt-4o-mini", "messages": said({"type": "text", "text": "repeat word from attached image"},
                                                     {"type": "image_url", "image_url": {"url": PIXELS}})}, 8512),
    # Anthropic's guide to counting tokens, as langchain-anthropic's reference repeats it.
    (MESSAGES, {"system": "You are a scientist", "messages": [{"role": "user", "content": "Hello, Claude"}]}, 14),
    (MESSAGES, {"messages": [{"role": "user", "content": "What's the weather like in San Francisco?"}],
                "tools": [{"name": "get_weather", "description": "Get the current weather in a given location",
                           "input_schema": {"type": "object", "required": ["location"], "properties": {
                               "location": {"type": "string",
                                            "description": "The city and state, e.g. San Francisco, CA"}}}}]}, 403),
    # Tools that Anthropic describes itself, from its documentation: with the system prompt for tools.
    (MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, 346 + 245),
    (MESSAGES, {"tools": [{"type": "text_editor_20250429", "name": "str_replace_based_edit_tool"}]}, 346 + 700),
    (MESSAGES, {"tools": [{"type": "computer_20250124", "name": "computer", "display_width_px": 1024,
                           "display_height_px": 768}]}, 499 + 735),
]  # fmt: skip
"""Calls, and the input tokens that their providers have counted in them."""


@pytest.mark.parametrize(("path", "changes", "counted"), RECORDED)
def test_what_providers_have_counted_is_within_the_bound(path: str, changes: dict[str, Any], counted: int) -> None:
    found = size(path, **changes)
    assert not found.open_ended
    assert counted <= found.input_tokens


def test_a_text_is_bounded_by_its_bytes_and_not_by_its_letters() -> None:
    plain, emoji = size(CHAT, messages=said("a" * 100)), size(CHAT, messages=said("\U0001f600" * 100))
    assert emoji.input_tokens - plain.input_tokens == 300


TEXTS = st.text(max_size=40)
PARTS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.just({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}),
    st.just({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}),
    st.just({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    st.just({"type": "document", "source": {"type": "file", "file_id": "f"}}),
    st.just({"type": "unheard_of"}),
    st.just({"text": "no type"}),
    st.just({"type": ["odd"]}),
    TEXTS.map(lambda text: {"type": "tool_result", "content": [{"type": "text", "text": text}]}),
)
CONTENTS = st.none() | TEXTS | st.lists(PARTS, max_size=3)
CONVERSATION = st.lists(
    st.builds(lambda content: {"role": "user", "content": content}, CONTENTS), min_size=1, max_size=4
)
TOOL_LISTS = st.lists(
    st.sampled_from(
        [
            {"type": "function", "function": {"name": "f", "parameters": {"enum": [1, 2, 3]}}},
            {"name": "f", "input_schema": {"type": "object"}},
            {"type": "web_search"},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
            {"type": "bash_20250124", "name": "bash"},
            {"type": None},
            {"type": {}},
        ]
    ),
    max_size=3,
)


@given(path=st.sampled_from([CHAT, MESSAGES]), messages=CONVERSATION, more=CONVERSATION, part=PARTS, tools=TOOL_LISTS)
def test_whatever_is_added_to_a_call_never_lowers_its_bound(
    path: str, messages: list[Any], more: list[Any], part: Any, tools: list[Any]
) -> None:
    before = size(path, messages=messages)
    after = [size(path, messages=messages + more), size(path, messages=messages + said(part))]
    after.append(size(path, messages=messages, tools=tools))
    for each in after:
        assert each.input_tokens > before.input_tokens
        assert each.open_ended >= before.open_ended


@given(texts=st.lists(TEXTS, max_size=5), path=st.sampled_from([CHAT, RESPONSES, MESSAGES]))
def test_a_body_bounds_the_texts_in_it(texts: list[str], path: str) -> None:
    kind = "input_text" if path == RESPONSES else "text"
    content = said(*({"type": kind, "text": text} for text in texts))
    found = size(path, **{"input" if path == RESPONSES else "messages": content})
    assert not found.open_ended
    assert found.input_tokens >= sum(len(text.encode()) for text in texts) + TEMPLATE


OPEN: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": said({"type": "file", "file": {"file_id": "f"}})}),
    (CHAT, {"messages": said({"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}})}),
    (CHAT, {"messages": said({"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}})}),
    (CHAT, {"messages": said({"type": "image_url", "image_url": {"url": "data:application/pdf;base64,AA"}})}),
    (CHAT, {"messages": said({"text": "no type"})}),
    (CHAT, {"messages": said({"type": ["text"]})}),
    (CHAT, {"messages": [{"role": "user", "content": {"type": "text"}}]}),
    (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
    (CHAT, {"web_search_options": {}}),
    (CHAT, {"model": "gpt-4o-search-preview"}),
    (CHAT, {"model": "compound-beta"}),
    (CHAT, {"chat_template": "{{ 'x' * 1000000 }}"}),
    (CHAT, {"plugins": [{"id": "web"}]}),
    (CHAT, {"tools": [{"type": "web_search"}]}),
    (CHAT, {"tools": [{"type": ["function"]}]}),
    (RESPONSES, {"previous_response_id": "resp_1"}),
    (RESPONSES, {"conversation": "conv_1"}),
    (RESPONSES, {"conversation": {"id": "conv_1"}}),
    (RESPONSES, {"prompt": {"id": "pmpt_1"}, "input": None}),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}),
    (RESPONSES, {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}),
    (RESPONSES, {"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]}),
    (RESPONSES, {"input": [{"type": ["message"]}]}),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://a.example/b"}]}]}),
    (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}]}),
    (RESPONSES, {"reasoning": {"mode": "pro"}}),
    (RESPONSES, {"tools": [{"type": "mcp", "server_url": "https://example.com"}]}),
    (RESPONSES, {"tools": [{"type": "file_search", "vector_store_ids": ["vs"]}]}),
    (EMBEDDINGS, {"input": [{"image": "https://example.com/a.png"}]}),
    (MESSAGES, {"messages": said({"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}})}),
    (MESSAGES, {"messages": said({"type": "document", "source": {"type": "base64", "data": "AA"}})}),
    (MESSAGES, {"messages": said({"type": "document", "source": {"type": "file", "file_id": "f"}})}),
    (MESSAGES, {"messages": said({"type": "tool_result", "content": [{"type": "document", "source": {}}]})}),
    (MESSAGES, {"messages": said({"type": "container_upload", "file_id": "f"})}),
    (MESSAGES, {"container": "c"}),
    (MESSAGES, {"mcp_servers": [{"type": "url", "url": "https://example.com", "name": "x"}]}),
    (MESSAGES, {"context_management": {"edits": [{"type": "compact_20260112"}]}}),
    (MESSAGES, {"fallbacks": "default"}),
    (MESSAGES, {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}),
    (MESSAGES, {"tools": [{"type": {}}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes"), OPEN)
def test_a_call_that_makes_more_be_read_than_its_body_holds_is_open_ended(path: str, changes: dict[str, Any]) -> None:
    assert size(path, **changes).open_ended


CLOSED: list[tuple[str, dict[str, Any]]] = [
    *((path, {}) for path in GOOD),
    (CHAT, {"web_search_options": None, "previous_response_id": None, "plugins": []}),
    (CHAT, {"messages": [{"role": "assistant", "content": None, "audio": None}, {"role": "tool", "content": "x"}]}),
    (CHAT, {"messages": ["x"]}),
    (CHAT, {"messages": said("text", {"type": "refusal", "refusal": "no"})}),
    (CHAT, {"functions": [{"name": "f", "parameters": {}}]}),
    (RESPONSES, {"prompt": None, "conversation": None, "reasoning": {"effort": "low", "mode": "standard"}}),
    (RESPONSES, {"input": [{"type": "function_call", "name": "f", "arguments": "{}"},
                           {"type": "function_call_output", "output": "x"}, "x"]}),
    (RESPONSES, {"input": [{"type": "reasoning", "encrypted_content": "gAAAA", "summary": []}]}),
    (EMBEDDINGS, {"input": ["a {", "b"]}),
    (EMBEDDINGS, {"input": [[1, 2], [3]]}),
    (MESSAGES, {"system": [{"type": "text", "text": "x"}]}),
    (MESSAGES, {"messages": said({"type": "document", "source": {"type": "text", "data": "x"}},
                                 {"type": "document", "source": {"type": "content", "content": "x"}},
                                 {"type": "document", "source": {"type": "content", "content": [{"type": "text"}]}})}),
    (MESSAGES, {"messages": said({"type": "thinking", "thinking": "x", "signature": "y"}, {"type": "tool_use"},
                                 {"type": "tool_result", "content": "x"})}),
    (MESSAGES, {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
    (MESSAGES, {"container": None, "mcp_servers": []}),
    (MESSAGES, {"tools": [{"type": "custom", "name": "f", "input_schema": {}}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes"), CLOSED)
def test_a_call_that_holds_all_that_is_read_is_not_open_ended(path: str, changes: dict[str, Any]) -> None:
    assert not size(path, **changes).open_ended


@pytest.mark.parametrize(
    ("path", "key", "part", "tokens"),
    [
        (CHAT, "messages", {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, OPENAI_IMAGE),
        (CHAT, "messages", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, OPENAI_IMAGE),
        (RESPONSES, "input", {"type": "input_image", "file_id": "f"}, OPENAI_IMAGE),
        (MESSAGES, "messages", {"type": "image", "source": {"type": "file", "file_id": "f"}}, ANTHROPIC_IMAGE),
    ],
)
def test_an_image_has_as_many_tokens_as_the_dearest_model_makes_of_one(
    path: str, key: str, part: dict[str, Any], tokens: int
) -> None:
    """An image of one pixel takes a hundred bytes in a body, and thousands of tokens."""
    found = size(path, **{key: said(part, part)})
    assert not found.open_ended
    assert found.input_tokens == len(call(path, {key: said(part, part)}).body) + TEMPLATE + 2 * tokens


def test_images_in_the_results_of_tools_count() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    content = said({"type": "tool_result", "tool_use_id": "t", "content": [image]})
    assert size(MESSAGES, messages=content).input_tokens > ANTHROPIC_IMAGE
    seen = {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}}
    assert size(RESPONSES, input=[seen]).input_tokens > OPENAI_IMAGE
    shown = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}
    assert size(RESPONSES, input=[shown]).input_tokens > OPENAI_IMAGE


@pytest.mark.parametrize("padding", [0, 32 * 1024])
def test_tools_count_with_the_words_around_them_and_the_spaces_that_templates_put_in(padding: int) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"enum": [1] * 100}}}]
    messages = [{"role": "user", "content": "x" * padding}]
    found = size(CHAT, messages=messages, tools=tools)
    body = len(call(CHAT, {"messages": messages, "tools": tools}).body)
    assert found.input_tokens >= body + TEMPLATE + TOOLS + 99
    assert found.input_tokens <= body + TEMPLATE + TOOLS + 150
    own = size(MESSAGES, tools=[{"type": "bash_20250124", "name": "bash"}])
    assert own.input_tokens >= TEMPLATE + TOOLS + OWN_TOOL


@pytest.mark.parametrize(
    ("path", "changes", "answers"),
    [
        (CHAT, {}, 1),
        (CHAT, {"n": 3}, 3),
        (CHAT, {"n": 3.0}, 3),
        (CHAT, {"n": "3"}, 3),
        (CHAT, {"n": 0}, 1),
        (CHAT, {"n": -1}, 1),
        (CHAT, {"n": True}, 1),
        (CHAT, {"n": "many"}, 1),
        (CHAT, {"n": "9" * 400}, 1),
        (CHAT, {"n": None}, 1),
        (CHAT, {"n": [3]}, 1),
        (CHAT, {"n": 1e300}, 2**53),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}, 4),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "best_of": 5}, 10),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, 2),
        (COMPLETIONS, {"prompt": []}, 1),
        (RESPONSES, {"n": 3}, 1),
        (EMBEDDINGS, {"input": ["a", "b"]}, 1),
    ],
)
def test_answers_are_counted_as_they_are_made(path: str, changes: dict[str, Any], answers: int) -> None:
    assert size(path, **changes).answers == answers


@pytest.mark.parametrize(
    ("path", "changes", "most"),
    [
        (CHAT, {}, None),
        (CHAT, {"max_tokens": 7}, 7),
        (CHAT, {"max_completion_tokens": 7}, 7),
        # vLLM goes by the first, others only know the second.
        (CHAT, {"max_completion_tokens": 7, "max_tokens": 9}, 9),
        (CHAT, {"max_completion_tokens": 9, "max_tokens": 7}, 9),
        (CHAT, {"max_completion_tokens": None, "max_tokens": 7}, 7),
        # llama.cpp goes by this one, others do not know it.
        (CHAT, {"max_tokens": 7, "n_predict": 9}, 9),
        (CHAT, {"max_tokens": 9, "n_predict": 7}, 9),
        (CHAT, {"max_tokens": 9, "n_predict": -1}, None),
        (CHAT, {"max_tokens": 9, "n_predict": None}, None),
        (CHAT, {"n_predict": 9}, None),
        # Some servers take these for no limit, or read a number in them.
        (CHAT, {"max_tokens": 0}, None),
        (CHAT, {"max_tokens": -1}, None),
        (CHAT, {"max_tokens": True}, None),
        (CHAT, {"max_tokens": 7.0}, None),
        (CHAT, {"max_completion_tokens": "700", "max_tokens": 7}, None),
        (CHAT, {"max_output_tokens": 7}, None),
        (COMPLETIONS, {"max_tokens": 7}, 7),
        (RESPONSES, {"max_output_tokens": 7}, 7),
        (RESPONSES, {"max_tokens": 7}, None),
        (EMBEDDINGS, {"max_tokens": 7}, 0),
        (MESSAGES, {"max_tokens": 7}, 7),
        # Fills the cache without an answer.
        (MESSAGES, {"max_tokens": 0}, 0),
        (MESSAGES, {"max_tokens": -1}, None),
        (COUNT, {}, 0),
    ],
)
def test_the_cap_of_an_answer_is_what_the_target_may_go_by(
    path: str, changes: dict[str, Any], most: int | None
) -> None:
    assert size(path, **changes).output_tokens == most


@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens"])
def test_numbers_that_nobody_can_mean_are_cut_to_what_can_be_reckoned_with(name: str) -> None:
    body = b'{"model": "m", "messages": [], "%b": %b}' % (name.encode(), b"9" * 4000)
    found = OPENAI.size(OPENAI.read(endpoint(OPENAI, "POST", CHAT)[0], body, ""))
    assert (found.answers, found.output_tokens) == ((2**53, None) if name == "n" else (1, 2**53))


def test_to_count_tokens_is_free() -> None:
    assert size(COUNT) == Size(0, False, 1, 0)


@pytest.mark.parametrize(
    ("path", "changes", "searches"),
    [
        (CHAT, {}, 0),
        (CHAT, {"web_search_options": {}}, 1),
        (RESPONSES, {"tools": [{"type": "web_search"}]}, SEARCHES),
        (RESPONSES, {"tools": [{"type": "web_search"}, {"type": "file_search"}], "max_tool_calls": 3}, 3),
        (RESPONSES, {"tools": [{"type": "mcp"}]}, 0),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, SEARCHES),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]}, 2),
        (MESSAGES, {"tools": [{"name": "web_search", "input_schema": {}}]}, 0),
    ],
)
def test_searches_that_the_target_may_make_are_counted(path: str, changes: dict[str, Any], searches: int) -> None:
    assert size(path, **changes).searches == searches


@pytest.mark.parametrize(
    ("path", "changes", "tier"),
    [
        (CHAT, {"service_tier": "auto"}, ""),
        (CHAT, {"service_tier": "default"}, ""),
        (CHAT, {"service_tier": None}, ""),
        (CHAT, {"service_tier": ["priority"]}, ""),
        (CHAT, {"service_tier": "priority"}, "priority"),
        (RESPONSES, {"service_tier": "flex"}, "flex"),
        (MESSAGES, {"speed": "fast"}, "fast"),
        (MESSAGES, {"speed": "standard", "service_tier": "standard_only"}, ""),
    ],
)
def test_the_terms_that_a_call_asks_for_are_told(path: str, changes: dict[str, Any], tier: str) -> None:
    assert size(path, **changes).tier == tier


CONTENTS = st.sampled_from(["hi", "", None, 7, [], [{"type": "image"}]])


@given(
    st.lists(
        st.fixed_dictionaries({}, optional={"content": CONTENTS, "audio": st.none()}) | st.just("odd"), max_size=4
    ),
    st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n_predict"]), st.integers(-1, 2**60)),
    st.sampled_from(["m", "sonar-pro"]),
)
def test_what_is_said_and_changes_nothing_makes_a_call_no_other_size(
    messages: list[Any], caps: dict[str, Any], model: str
) -> None:
    plain = {"messages": messages, "model": model, **caps}
    assert size(CHAT, **plain, x=1) == size(CHAT, **plain, n=1)
    assert size(MESSAGES, **plain, loots=[]) == size(MESSAGES, **plain, tools=[])
