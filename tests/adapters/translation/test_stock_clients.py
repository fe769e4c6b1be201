"""`adapters.translation` in front of the stock SDKs, over real sockets: each talks to a target of the other kind."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic.types import ToolParam
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from pydantic import BaseModel

from deploy.demo.anthropic_like import messages as say_messages
from deploy.demo.openai_like import chat as say_chat
from deploy.demo.standin import Events, Json
from tests.adapters.translation.crossing import Crossing
from tests.adapters.translation.support import typed
from tests.adapters.translation.test_answers import COMPLETION, MESSAGE
from tests.adapters.translation.test_streams import CHUNK_STREAM, MESSAGE_STREAM

SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA},
}
OWN_TOOL: ToolParam = {"name": "weather", "description": "Says it.", "input_schema": SCHEMA}
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Use the tool, please."}]


@pytest.fixture(scope="module")
def shared() -> Iterator[Crossing]:
    crossing = Crossing()
    yield crossing
    crossing.close()


@pytest.fixture
def crossing(shared: Crossing) -> Crossing:
    shared.asked.clear()
    return shared


@pytest.fixture
def gpt(crossing: Crossing) -> Iterator[openai.OpenAI]:
    """A client of OpenAI's; the target is Anthropic's."""
    crossing.answer = say_messages
    with openai.OpenAI(base_url=f"{crossing.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def async_gpt(crossing: Crossing) -> AsyncIterator[openai.AsyncOpenAI]:
    crossing.answer = say_messages
    async with openai.AsyncOpenAI(base_url=f"{crossing.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(crossing: Crossing) -> Iterator[anthropic.Anthropic]:
    """A client of Anthropic's; the target is OpenAI's."""
    crossing.answer = say_chat
    with anthropic.Anthropic(base_url=crossing.url, api_key="k", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def async_claude(crossing: Crossing) -> AsyncIterator[anthropic.AsyncAnthropic]:
    crossing.answer = say_chat
    async with anthropic.AsyncAnthropic(base_url=crossing.url, api_key="k", max_retries=0) as client:
        yield client


def test_a_client_of_openais_goes_through_a_whole_tool_call(gpt: openai.OpenAI, crossing: Crossing) -> None:
    first = gpt.chat.completions.create(model="m", messages=ASKED, tools=[TOOL])
    called = first.choices[0].message.tool_calls
    assert called is not None
    assert first.choices[0].finish_reason == "tool_calls"
    assert called[0].type == "function"
    assert called[0].function.name == "weather"
    assert "city" in json.loads(called[0].function.arguments)

    answer: Any = first.choices[0].message.model_dump()
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": called[0].id, "content": "rain"}
    second = gpt.chat.completions.create(model="m", messages=[*ASKED, answer, result], tools=[TOOL])
    assert second.choices[0].message.content
    assert second.usage is not None
    assert second.usage.total_tokens == second.usage.prompt_tokens + second.usage.completion_tokens > 0
    turns = crossing.asked[1]["messages"]
    assert turns[1]["content"][0]["id"] == turns[2]["content"][0]["tool_use_id"] == called[0].id


def test_a_client_of_anthropics_goes_through_a_whole_tool_call(claude: anthropic.Anthropic, crossing: Crossing) -> None:
    asked: Any = {"role": "user", "content": "Use the tool, please."}
    first = claude.messages.create(model="m", max_tokens=100, messages=[asked], tools=[OWN_TOOL])
    assert first.stop_reason == "tool_use"
    block = first.content[0]
    assert block.type == "tool_use"
    assert "city" in block.input

    result: Any = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "no", "is_error": True}],
    }
    second = claude.messages.create(
        model="m", max_tokens=100, messages=[asked, first.to_param(), result], tools=[OWN_TOOL]
    )
    assert second.content[0].type == "text"
    assert second.stop_reason == "end_turn"
    assert second.usage.input_tokens > 0
    sent = crossing.asked[1]["messages"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == block.id


@pytest.mark.parametrize("step", [1, 10**6])
def test_openais_accumulator_puts_a_stream_together(gpt: openai.OpenAI, crossing: Crossing, step: int) -> None:
    crossing.answer, crossing.step = (lambda _: Events(tuple(MESSAGE_STREAM))), step
    with gpt.chat.completions.stream(
        model="m", messages=ASKED, tools=[TOOL], stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    crossing.step = 7
    choice = final.choices[0]
    assert choice.message.content == "Let me loök.\n"
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert [(c.id, c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == [
        ("t_1", "w", {"city": "Oslo"}),
        ("t_2", "now", {}),
    ]
    assert "content.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
    assert final.usage is not None
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (20, 42)


@pytest.mark.parametrize("step", [1, 10**6])
def test_anthropics_accumulator_puts_a_stream_together(
    claude: anthropic.Anthropic, crossing: Crossing, step: int
) -> None:
    crossing.answer, crossing.step = (lambda _: Events(tuple(CHUNK_STREAM))), step
    with claude.messages.stream(
        model="m", max_tokens=100, messages=[{"role": "user", "content": "hi"}], tools=[OWN_TOOL]
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    crossing.step = 7
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.text for block in final.content if block.type == "text"] == ["Let me loök.\n"]
    assert [(block.id, block.name, block.input) for block in final.content if block.type == "tool_use"] == [
        ("c_1", "w", {"city": "Oslo"}),
        ("c_2", "now", {}),
    ]
    assert final.stop_reason == "tool_use"
    assert (final.usage.input_tokens, final.usage.cache_read_input_tokens, final.usage.output_tokens) == (10, 7, 42)
    assert {"text", "input_json", "thinking", "message_stop"} <= set(kinds)


async def test_asynchronous_clients_are_answered_alike(
    async_gpt: openai.AsyncOpenAI, async_claude: anthropic.AsyncAnthropic, crossing: Crossing
) -> None:
    crossing.answer = say_messages
    whole = await async_gpt.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello there"}])
    said = ""
    async for chunk in await async_gpt.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Hello there"}], stream=True
    ):
        assert chunk.choices, "nobody asked for a chunk of token counts"
        said += chunk.choices[0].delta.content or ""
    assert said == whole.choices[0].message.content

    crossing.answer = say_chat
    message = await async_claude.messages.create(
        model="m", max_tokens=100, messages=[{"role": "user", "content": "Hello there"}]
    )
    async with async_claude.messages.stream(
        model="m", max_tokens=100, messages=[{"role": "user", "content": "Hello there"}]
    ) as stream:
        streamed = await stream.get_final_message()
    assert streamed.content[0].type == message.content[0].type == "text"
    assert streamed.content[0].text == message.content[0].text
    assert streamed.usage.output_tokens == message.usage.output_tokens > 0


def test_a_picture_and_instructions_reach_the_other_side(gpt: openai.OpenAI, crossing: Crossing) -> None:
    gpt.chat.completions.create(
        model="m",
        messages=[
            {"role": "developer", "content": "Look closely."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
        ],
    )
    assert crossing.asked[0]["system"] == "Look closely."
    assert crossing.asked[0]["messages"][0]["content"][1]["source"]["media_type"] == "image/png"


class Sum(BaseModel):
    total: int


def test_structured_outputs_are_parsed_on_both_sides(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, crossing: Crossing
) -> None:
    text = {"type": "text", "text": '{"total": 4}'}
    crossing.answer = lambda _: Json(MESSAGE | {"content": [text], "stop_reason": "end_turn"})
    parsed = gpt.chat.completions.parse(model="m", messages=[{"role": "user", "content": "2 + 2"}], response_format=Sum)
    assert parsed.choices[0].message.parsed == Sum(total=4)
    assert crossing.asked[0]["output_config"]["format"]["schema"]["properties"]["total"]["type"] == "integer"

    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"total": 4}'}}
    crossing.answer = lambda _: Json(COMPLETION | {"choices": [choice]})
    message = claude.messages.parse(
        model="m", max_tokens=100, messages=[{"role": "user", "content": "2 + 2"}], output_format=Sum
    )
    assert message.parsed_output == Sum(total=4)
    shape = crossing.asked[1]["response_format"]["json_schema"]
    assert shape["strict"]
    assert shape["schema"]["properties"]["total"]["type"] == "integer"


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (529, openai.InternalServerError),
    ],
)
def test_an_error_of_anthropics_is_raised_by_openais_client(
    gpt: openai.OpenAI, crossing: Crossing, status: int, raised: type[openai.APIStatusError]
) -> None:
    crossing.answer = lambda _: Json({"type": "error", "error": {"type": "x_error", "message": "Because."}}, status)
    with pytest.raises(raised, match=r"Because\.") as refused:
        gpt.chat.completions.create(model="m", messages=ASKED)
    assert refused.value.code == "x_error"


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (404, anthropic.NotFoundError),
        (429, anthropic.RateLimitError),
        (503, anthropic.InternalServerError),
    ],
)
def test_an_error_of_openais_is_raised_by_anthropics_client(
    claude: anthropic.Anthropic, crossing: Crossing, status: int, raised: type[anthropic.APIStatusError]
) -> None:
    crossing.answer = lambda _: Json(
        {"error": {"message": "Because.", "type": "x", "param": None, "code": None}}, status
    )
    with pytest.raises(raised, match=r"Because\."):
        claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])


def test_a_failure_inside_a_stream_is_raised_by_either_client(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, crossing: Crossing
) -> None:
    failure = typed("error", error={"type": "overloaded_error", "message": "Overloaded"})
    crossing.answer = lambda _: Events((*MESSAGE_STREAM[:8], failure))
    chunks = gpt.chat.completions.create(model="m", messages=ASKED, stream=True)
    said: list[str] = []
    with pytest.raises(openai.APIError, match="Overloaded"):
        said.extend(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "".join(said) == "Let me "

    crossing.answer = lambda _: Events((*CHUNK_STREAM[:4], b'data: {"error":{"message":"Overloaded"}}\n\n'))
    said.clear()
    with claude.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream:
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            said.extend(stream.text_stream)
    assert "".join(said) == "Let me "


def test_what_cannot_be_carried_is_told_before_anybody_is_asked(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, crossing: Crossing
) -> None:
    with pytest.raises(openai.BadRequestError, match="`n` must be 1"):
        gpt.chat.completions.create(model="m", messages=ASKED, n=2)
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match=r"`tools\[0\]` must be a tool of your own"):
        claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}], tools=[search])
    assert crossing.asked == []
