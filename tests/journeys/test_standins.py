"""The stand-ins must be faithful before anything is proven with them: stock clients talk to them directly."""

import asyncio
import base64
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from deploy.demo.models import bound
from tests.support.standins import (
    ANTHROPIC_KEY,
    OPENAI_KEY,
    Standins,
    only,
    running_standins,
    running_standins_here,
)

HELLO: Any = [{"role": "user", "content": "Hello there, model"}]
TOOL_QUESTION: Any = [{"role": "user", "content": "Please use the weather tool"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
OPENAI_TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
ANTHROPIC_TOOLS: Any = [{"name": "weather", "input_schema": PARAMETERS}]
RESPONSES_TOOLS: Any = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]


@pytest.fixture(scope="module")
def served() -> Iterator[Standins]:
    with running_standins(slow=0.2) as standins:
        yield standins


@pytest.fixture
def standins(served: Standins) -> Standins:
    served.forget()
    return served


@pytest.fixture
def gpt(standins: Standins) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{standins.openai_url}/v1", api_key=OPENAI_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(standins: Standins) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=standins.anthropic_url, api_key=ANTHROPIC_KEY, max_retries=0) as client:
        yield client


def test_a_chat_is_answered_and_its_words_are_its_tokens(gpt: openai.OpenAI) -> None:
    answer = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    said = answer.choices[0].message.content
    assert said is not None
    assert said.endswith("You said: Hello there, model")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == len(said.split())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_says_the_same_as_a_plain_one(gpt: openai.OpenAI) -> None:
    plain = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    chunks = list(gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_usage_only_where_it_was_asked_for(gpt: openai.OpenAI, standins: Standins) -> None:
    options: Any = {"include_usage": True}
    stream = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True, stream_options=options)
    *before, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == sum(bool(chunk.choices[0].delta.content) for chunk in before)
    frames = bytes(only(standins.openai.requests).sent).decode().strip().split("\n\n")
    assert frames[-1] == "data: [DONE]"
    assert all(json.loads(frame.removeprefix("data: "))["usage"] is None for frame in frames[:-2])


def test_max_tokens_cuts_an_answer_short_and_says_so(gpt: openai.OpenAI) -> None:
    answer = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=3)
    assert answer.choices[0].message.content == "This is the"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_several_choices_are_given_when_asked_for(gpt: openai.OpenAI) -> None:
    answer = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    chunks = list(gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, n=2, stream=True))
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_calls_a_tool_when_offered_one_and_asked_to(gpt: openai.OpenAI, streamed: bool) -> None:
    if streamed:
        asked = {"model": "gpt-4o-mini", "messages": TOOL_QUESTION, "tools": OPENAI_TOOLS}
        with gpt.chat.completions.stream(**asked) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        answer = gpt.chat.completions.create(model="gpt-4o-mini", messages=TOOL_QUESTION, tools=OPENAI_TOOLS)
        choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    called = choice.message.tool_calls[0]
    assert called.function.name == "weather"
    assert json.loads(called.function.arguments) == {"city": "stand-in", "days": 1}


def test_after_a_tools_result_the_chat_goes_on_in_words(gpt: openai.OpenAI) -> None:
    result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "the tool says sunny"}
    answer = gpt.chat.completions.create(model="gpt-4o-mini", messages=[*TOOL_QUESTION, result], tools=OPENAI_TOOLS)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_legacy_completion_is_answered(gpt: openai.OpenAI, streamed: bool) -> None:
    if streamed:
        chunks = gpt.completions.create(model="gpt-4o-mini", prompt="Once upon", stream=True)
        said = "".join(chunk.choices[0].text for chunk in chunks)
    else:
        said = gpt.completions.create(model="gpt-4o-mini", prompt="Once upon").choices[0].text
    assert said.endswith("Once upon")


def test_embeddings_are_the_same_as_floats_and_as_base64(gpt: openai.OpenAI, standins: Standins) -> None:
    decoded = gpt.embeddings.create(model="text-embedding-3-small", input=["a b", "c"])
    floats = gpt.embeddings.create(model="text-embedding-3-small", input=["a b", "c"], encoding_format="float")
    sent = json.loads(standins.openai.requests[0].sent)["data"][0]["embedding"]
    assert isinstance(sent, str)
    unpacked = struct.unpack("<64f", base64.b64decode(sent))
    assert list(unpacked) == pytest.approx(floats.data[0].embedding)
    assert decoded.data[1].embedding == pytest.approx(floats.data[1].embedding)
    assert floats.data[0].embedding != floats.data[1].embedding
    assert floats.usage.prompt_tokens == 3


def test_a_response_streams_its_events_in_order(gpt: openai.OpenAI) -> None:
    plain = gpt.responses.create(model="gpt-4o-mini", input="Hello there", instructions="Be brief")
    events = list(gpt.responses.create(model="gpt-4o-mini", input="Hello there", instructions="Be brief", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1]
    assert final.type == "response.completed"
    assert final.response.output_text == plain.output_text
    assert final.response.usage == plain.usage
    assert plain.usage is not None
    assert plain.usage.input_tokens == 4


def test_a_response_cut_by_its_limit_is_incomplete(gpt: openai.OpenAI) -> None:
    events = list(gpt.responses.create(model="gpt-4o-mini", input="Hello", max_output_tokens=2, stream=True))
    final = events[-1]
    assert final.type == "response.incomplete"
    assert final.response.incomplete_details is not None
    assert final.response.incomplete_details.reason == "max_output_tokens"


def test_a_response_calls_a_tool(gpt: openai.OpenAI) -> None:
    asked = "use the weather tool"
    with gpt.responses.stream(model="gpt-4o-mini", input=asked, tools=RESPONSES_TOOLS) as stream:
        final = stream.get_final_response()
    called = final.output[0]
    assert called.type == "function_call"
    assert json.loads(called.arguments) == {"city": "stand-in", "days": 1}


def test_models_are_listed_by_both(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    assert "gpt-4o-mini" in [model.id for model in gpt.models.list()]
    assert gpt.models.retrieve("gpt-4o").id == "gpt-4o"
    assert "claude-haiku-4-5" in [model.id for model in claude.models.list()]


def test_a_message_is_answered_and_its_words_are_its_tokens(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=HELLO, system="Be kind")
    block = answer.content[0]
    assert block.type == "text"
    assert block.text.endswith("You said: Hello there, model")
    assert answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, len(block.text.split()))
    counted = claude.messages.count_tokens(model="claude-haiku-4-5", messages=HELLO, system="Be kind")
    assert counted.input_tokens == answer.usage.input_tokens


def test_a_streamed_message_says_the_same_as_a_plain_one(claude: anthropic.Anthropic, standins: Standins) -> None:
    plain = claude.messages.create(model="claude-haiku-4-5", max_tokens=100, messages=HELLO)
    standins.forget()
    with claude.messages.stream(model="claude-haiku-4-5", max_tokens=100, messages=HELLO) as stream:
        final = stream.get_final_message()
    said, also_said = plain.content[0], final.content[0]
    assert said.type == also_said.type == "text"
    assert also_said.text == said.text
    assert (final.usage.input_tokens, final.usage.output_tokens) == (3, plain.usage.output_tokens)
    frames = bytes(only(standins.anthropic.requests).sent).decode().strip().split("\n\n")
    kinds = [frame.split("\n")[0].removeprefix("event: ") for frame in frames]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_message_cut_by_its_limit_says_so(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="claude-haiku-4-5", max_tokens=2, messages=HELLO)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 2)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_calls_a_tool(claude: anthropic.Anthropic, streamed: bool) -> None:
    asked: Any = {
        "model": "claude-haiku-4-5",
        "max_tokens": 100,
        "messages": TOOL_QUESTION,
        "tools": ANTHROPIC_TOOLS,
    }
    if streamed:
        with claude.messages.stream(**asked) as stream:
            answer = stream.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    called = answer.content[0]
    assert called.type == "tool_use"
    assert called.input == {"city": "stand-in", "days": 1}
    assert answer.stop_reason == "tool_use"


def test_another_key_than_the_gateways_is_refused_in_the_providers_shape(standins: Standins) -> None:
    stranger = openai.OpenAI(base_url=f"{standins.openai_url}/v1", api_key="another", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert refused.value.code == "invalid_api_key"
    assert "another" not in str(refused.value.body)
    other = anthropic.Anthropic(base_url=standins.anthropic_url, api_key="another", max_retries=0)
    with other, pytest.raises(anthropic.AuthenticationError) as turned_away:
        other.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=HELLO)
    assert isinstance(turned_away.value.body, dict)
    assert turned_away.value.body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("model", "raised", "status"),
    [
        ("fail-400", openai.BadRequestError, 400),
        ("fail-429", openai.RateLimitError, 429),
        ("fail-500", openai.InternalServerError, 500),
    ],
)
def test_openai_like_failures_are_the_sdks_own_exceptions(
    gpt: openai.OpenAI, model: str, raised: type[openai.APIStatusError], status: int
) -> None:
    with pytest.raises(raised) as failed:
        gpt.chat.completions.create(model=model, messages=HELLO)
    assert failed.value.status_code == status
    assert isinstance(failed.value.body, dict)
    assert set(failed.value.body) == {"message", "type", "param", "code"}
    assert failed.value.request_id is not None


@pytest.mark.parametrize(
    ("model", "raised", "kind"),
    [
        ("fail-400", anthropic.BadRequestError, "invalid_request_error"),
        ("fail-429", anthropic.RateLimitError, "rate_limit_error"),
        ("fail-500", anthropic.InternalServerError, "api_error"),
    ],
)
def test_anthropic_like_failures_are_the_sdks_own_exceptions(
    claude: anthropic.Anthropic, model: str, raised: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(raised) as failed:
        claude.messages.create(model=model, max_tokens=9, messages=HELLO)
    assert isinstance(failed.value.body, dict)
    assert failed.value.body["error"]["type"] == kind
    assert failed.value.body["request_id"] == failed.value.request_id


def test_an_answer_cut_in_the_middle_breaks_the_connection(standins: Standins) -> None:
    url, headers = f"{standins.openai_url}/v1/chat/completions", {"authorization": f"Bearer {OPENAI_KEY}"}
    for streamed in (False, True):
        standins.forget()
        asked = {"model": "cut-stream", "messages": HELLO, "stream": streamed}
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.post(url, headers=headers, json=asked)
        seen = only(standins.openai.requests)
        assert seen.sent
        assert not seen.finished


def test_a_stream_without_its_end_is_otherwise_well_formed(standins: Standins) -> None:
    url, headers = f"{standins.openai_url}/v1/chat/completions", {"authorization": f"Bearer {OPENAI_KEY}"}
    text = httpx2.post(url, headers=headers, json={"model": "no-done", "messages": HELLO, "stream": True}).text
    assert text.endswith("\n\n")
    assert "[DONE]" not in text
    assert '"finish_reason":"stop"' in text


def test_an_error_inside_a_stream_raises_in_both_sdks(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.APIError):
        list(gpt.chat.completions.create(model="error-in-stream", messages=HELLO, stream=True))
    with pytest.raises(anthropic.APIStatusError):
        list(claude.messages.create(model="error-in-stream", max_tokens=99, messages=HELLO, stream=True))


def test_an_answer_in_crumbs_is_still_the_answer(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    said = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in gpt.chat.completions.create(model="trickle", messages=HELLO, stream=True)
    )
    assert said.endswith("You said: Hello there, model")
    answer = claude.messages.create(model="trickle", max_tokens=100, messages=HELLO)
    assert answer.usage.input_tokens == 3


def test_a_model_that_ignores_max_tokens_says_a_thousand_words(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    model = "ignores-max-tokens"
    chat = gpt.chat.completions.create(model=model, messages=HELLO, max_completion_tokens=5)
    assert len((chat.choices[0].message.content or "").split()) == 1000
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 1000
    chunks = gpt.chat.completions.create(model=model, messages=HELLO, max_tokens=5, stream=True)
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 1000
    assert len(gpt.responses.create(model=model, input="hi", max_output_tokens=5).output_text.split()) == 1000
    completion = gpt.completions.create(model=model, prompt="hi", max_tokens=5)
    assert len(completion.choices[0].text.split()) == 1000
    assert claude.messages.create(model=model, max_tokens=5, messages=HELLO).usage.output_tokens == 1000


def test_a_model_with_big_events_keeps_to_its_limit(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    chunks = gpt.chat.completions.create(model="big-events", messages=HELLO, max_tokens=120, stream=True)
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert [len(piece.split()) for piece in said] == [50, 50, 20]
    with claude.messages.stream(model="big-events", max_tokens=120, messages=HELLO) as stream:
        said = list(stream.text_stream)
        assert [len(piece.split()) for piece in said] == [50, 50, 20]
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_a_model_without_usage_tells_nobody_how_many_tokens_there_were(
    gpt: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    assert gpt.chat.completions.create(model="no-usage", messages=HELLO).usage is None
    assert gpt.completions.create(model="no-usage", prompt="hi").usage is None
    assert gpt.responses.create(model="no-usage", input="hi").usage is None
    options: Any = {"include_usage": True}
    for stream in (
        gpt.chat.completions.create(model="no-usage", messages=HELLO, stream=True, stream_options=options),
        gpt.completions.create(model="no-usage", prompt="hi", stream=True, stream_options=options),
    ):
        assert all(chunk.choices and chunk.usage is None for chunk in stream)
    message = claude.messages.create(model="no-usage", max_tokens=99, messages=HELLO)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (0, 0)


def test_misbehaviours_can_be_joined_and_an_endless_stream_begins_well(
    gpt: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    model = "endless+big-events+no-usage"
    with claude.messages.stream(model=model, max_tokens=9999, messages=HELLO) as stream:
        assert len(next(text for text in stream.text_stream if text).split()) == 50
    with gpt.responses.stream(model=model, input="hi") as events:
        delta = next(event for event in events if event.type == "response.output_text.delta")
        assert len(delta.delta.split()) == 50


async def test_a_client_that_leaves_a_slow_answer_is_noticed() -> None:
    async with running_standins_here(slow=30.0) as standins:
        url, headers = f"{standins.openai_url}/v1/chat/completions", {"authorization": f"Bearer {OPENAI_KEY}"}
        async with httpx2.AsyncClient() as client:
            with pytest.raises(httpx2.ReadTimeout):
                await client.post(
                    url, headers=headers, json={"model": "slow-first-byte", "messages": HELLO}, timeout=0.2
                )
    seen = only(standins.openai.requests)
    assert seen.client_gone
    assert not seen.sent


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{not json", 400),
        ("POST", "/v1/chat/completions", b'{"model":"gpt-4o-mini"}', 400),
        ("POST", "/v1/embeddings", b'{"model":"m","input":[]}', 400),
        ("POST", "/v1/responses", b'{"model":"m","input":[]}', 400),
        ("POST", "/v1/completions", b'{"prompt":"no model"}', 400),
        ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/v1/nothing", b"{}", 404),
    ],
)
def test_what_a_stand_in_cannot_answer_is_an_error_in_the_providers_shape(
    standins: Standins, method: str, path: str, body: bytes, status: int
) -> None:
    headers = {"authorization": f"Bearer {OPENAI_KEY}"}
    answer = httpx2.request(method, standins.openai_url + path, headers=headers, content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_anthropic_like_server_insists_on_its_version_header(standins: Standins) -> None:
    headers = {"x-api-key": ANTHROPIC_KEY}
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": HELLO}
    refused = httpx2.post(f"{standins.anthropic_url}/v1/messages", headers=headers, json=body)
    assert refused.status_code == 400
    headers["anthropic-version"] = "2023-06-01"
    assert httpx2.post(f"{standins.anthropic_url}/v1/messages", headers=headers, json=body).status_code == 200


def test_what_arrived_is_remembered_as_it_was(standins: Standins) -> None:
    body = b'{ "model" : "gpt-4o-mini", "messages": [{"role":"user","content":"a"}] }'
    headers = {"authorization": f"Bearer {OPENAI_KEY}", "x-odd": "1"}
    httpx2.post(f"{standins.openai_url}/v1/chat/completions?a=b", headers=headers, content=body)
    seen = only(standins.openai.requests)
    assert (seen.method, seen.path, seen.query, seen.body) == ("POST", "/v1/chat/completions", "a=b", body)
    assert seen.header("x-odd") == "1"


async def test_a_second_write_to_a_kept_connection_does_not_wait_until_the_first_is_acknowledged() -> None:
    at_once: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = bound("127.0.0.1", 0)
    async with await asyncio.start_server(look, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await at_once
        writer.close()
