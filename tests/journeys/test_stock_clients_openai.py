"""A stock OpenAI client whose base URL is the gateway: everything works, and every refusal is understood."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.journeys.stock_clients import CALL_ID, CLERK_KEY, GUEST_KEY
from tests.support.process import Gateway
from tests.support.standins import OPENAI_KEY, Standins, only

HELLO: Any = [{"role": "user", "content": "Hello there, model"}]
TOOL_QUESTION: Any = [{"role": "user", "content": "Please use the weather tool"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
SAID = "This is the stand-in for gpt-4o-mini. You said: Hello there, model"


@pytest.fixture
def gpt(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=CLERK_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def agpt(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=CLERK_KEY, max_retries=0) as client:
        yield client


class CountedClient(httpx2.Client):
    """The HTTP client of a stock SDK, counting what really leaves."""

    def __init__(self) -> None:
        self.sent = 0
        super().__init__(event_hooks={"request": [self._count]})

    def _count(self, _: httpx2.Request) -> None:
        self.sent += 1


def said_by(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# --- what works -------------------------------------------------------------------------------------------------------


def test_a_chat_is_answered(gpt: openai.OpenAI) -> None:
    answer = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert answer.choices[0].message.content == SAID
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(SAID.split())


async def test_a_chat_is_answered_to_an_async_client(agpt: openai.AsyncOpenAI) -> None:
    answer = await agpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert answer.choices[0].message.content == SAID


def test_a_chat_is_streamed(gpt: openai.OpenAI) -> None:
    chunks = list(gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True))
    assert said_by(chunks) == SAID
    assert all(chunk.choices for chunk in chunks), "nobody asked for a chunk without choices"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_chat_is_streamed_to_an_async_client(agpt: openai.AsyncOpenAI) -> None:
    stream = await agpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
    assert said_by([chunk async for chunk in stream]) == SAID


def test_a_stream_ends_with_usage_where_the_client_asked_for_it(gpt: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True, stream_options=options)
    *before, last = list(stream)
    assert said_by(before) == SAID
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(SAID.split())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_calls_tools(gpt: openai.OpenAI, streamed: bool) -> None:
    asked: Any = {"model": "gpt-4o-mini", "messages": TOOL_QUESTION, "tools": TOOLS}
    if streamed:
        with gpt.chat.completions.stream(**asked) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = gpt.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "stand-in"}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_legacy_completion_is_answered(gpt: openai.OpenAI, streamed: bool) -> None:
    if streamed:
        chunks = list(gpt.completions.create(model="gpt-4o-mini", prompt="Once upon", stream=True))
        assert all(chunk.choices for chunk in chunks)
        said = "".join(chunk.choices[0].text for chunk in chunks)
    else:
        said = gpt.completions.create(model="gpt-4o-mini", prompt="Once upon").choices[0].text
    assert said.endswith("Once upon")


def test_embeddings_are_the_same_in_both_encodings(gpt: openai.OpenAI) -> None:
    packed = gpt.embeddings.create(model="text-embedding-3-small", input=["a b", "c"])
    floats = gpt.embeddings.create(model="text-embedding-3-small", input=["a b", "c"], encoding_format="float")
    assert [one.embedding for one in packed.data] == [pytest.approx(one.embedding) for one in floats.data]
    assert packed.usage.prompt_tokens == 3


async def test_embeddings_are_given_to_an_async_client(agpt: openai.AsyncOpenAI) -> None:
    given = await agpt.embeddings.create(model="text-embedding-3-small", input="a b")
    assert len(given.data[0].embedding) == 64


def test_a_response_is_answered_and_streamed(gpt: openai.OpenAI) -> None:
    plain = gpt.responses.create(model="gpt-4o-mini", input="Hello there, model")
    assert plain.output_text == SAID
    *_, final = gpt.responses.create(model="gpt-4o-mini", input="Hello there, model", stream=True)
    assert final.type == "response.completed"
    assert final.response.output_text == SAID
    assert final.response.usage == plain.usage


async def test_a_response_is_streamed_to_an_async_client(agpt: openai.AsyncOpenAI) -> None:
    async with agpt.responses.stream(model="gpt-4o-mini", input="Hello there, model") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert final.output_text == SAID


def test_models_are_listed(gpt: openai.OpenAI, standins: Standins) -> None:
    listed = [model.id for model in gpt.models.list()]
    assert "house-small" in listed
    assert gpt.models.retrieve("house-small").id == "house-small"
    assert standins.openai.requests == [], "the gateway knows what it serves"


async def test_many_calls_at_once_each_get_their_own_answer(agpt: openai.AsyncOpenAI) -> None:
    async def ask(number: int) -> str:
        asked: Any = [{"role": "user", "content": f"number {number}"}]
        if number % 2:
            answer = await agpt.chat.completions.create(model="gpt-4o-mini", messages=asked)
            return answer.choices[0].message.content or ""
        stream = await agpt.chat.completions.create(model="gpt-4o-mini", messages=asked, stream=True)
        return said_by([chunk async for chunk in stream])

    answers = await asyncio.gather(*(ask(number) for number in range(40)))
    assert [answer.rpartition(" ")[2] for answer in answers] == [str(number) for number in range(40)]


def test_an_answer_in_crumbs_arrives_whole(gpt: openai.OpenAI) -> None:
    chunks = list(gpt.chat.completions.create(model="trickle", messages=HELLO, stream=True))
    assert said_by(chunks).endswith("You said: Hello there, model")
    assert all(chunk.choices for chunk in chunks), "the usage chunk is found across the borders of pieces"
    answer = gpt.chat.completions.create(model="trickle", messages=HELLO)
    assert answer.choices[0].finish_reason == "stop"


def test_every_response_says_which_call_it_was_and_where_it_went(gpt: openai.OpenAI) -> None:
    raw = gpt.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO)
    assert CALL_ID.fullmatch(raw.headers["x-weighbridge-call"])
    assert raw.headers["x-weighbridge-decision"] == "ALLOW"
    assert raw.headers["x-weighbridge-target"] == "openai"
    assert raw.headers["x-weighbridge-arm"] == "openai"
    assert raw.parse().choices[0].message.content == SAID
    again = gpt.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO, stream=True)
    assert CALL_ID.fullmatch(again.headers["x-weighbridge-call"])
    assert again.headers["x-weighbridge-call"] != raw.headers["x-weighbridge-call"]
    assert said_by(again.parse()) == SAID


def test_the_targets_own_request_id_reaches_the_client(gpt: openai.OpenAI) -> None:
    answer = gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_a_denied_call_says_why_is_not_repeated_and_reaches_nobody(
    gateway: Gateway, standins: Standins, streamed: bool
) -> None:
    http = CountedClient()
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=GUEST_KEY, http_client=http) as guest:
        with pytest.raises(openai.PermissionDeniedError) as denied:
            guest.chat.completions.create(model="gpt-4o", messages=HELLO, stream=streamed)
    assert denied.value.code == "policy_denied"
    assert "Guests may not use gpt-4o. Ask for gpt-4o-mini instead." in str(denied.value)
    assert denied.value.response.headers["x-weighbridge-decision"] == "DENY"
    assert CALL_ID.fullmatch(denied.value.response.headers["x-weighbridge-call"])
    assert http.sent == 1
    assert standins.openai.requests == []


async def test_a_denied_call_is_understood_by_an_async_client(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=GUEST_KEY) as guest:
        with pytest.raises(openai.PermissionDeniedError) as denied:
            await guest.responses.create(model="gpt-4o", input="Hello")
    assert denied.value.code == "policy_denied"


def test_the_same_agent_is_allowed_what_its_policy_allows(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=GUEST_KEY) as guest:
        assert guest.chat.completions.create(model="gpt-4o-mini", messages=HELLO).choices[0].message.content == SAID


def test_an_unknown_key_is_refused_and_not_repeated_in_the_answer(gateway: Gateway, standins: Standins) -> None:
    http = CountedClient()
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="stranger-key-77aa", http_client=http) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert refused.value.code == "unauthenticated"
    assert "stranger-key-77aa" not in refused.value.response.text
    assert http.sent == 1
    assert standins.openai.requests == []


def test_a_call_without_a_key_is_told_how_to_send_one(gpt: openai.OpenAI, standins: Standins) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO, extra_headers={"Authorization": openai.omit})
    assert refused.value.code == "unauthenticated"
    assert "Bearer" in str(refused.value)
    assert standins.openai.requests == []


def test_a_model_that_no_route_serves_is_not_found(gpt: openai.OpenAI, standins: Standins) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        gpt.chat.completions.create(model="unheard-of", messages=HELLO)
    assert refused.value.code == "no_route"
    assert "unheard-of" in str(refused.value)
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("unheard-of")
    assert standins.openai.requests == []


def test_an_endpoint_that_is_not_served_is_not_found(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        gpt.moderations.create(input="Hello")
    assert refused.value.code == "no_route"


def test_a_body_that_makes_no_sense_is_a_bad_request(gpt: openai.OpenAI, standins: Standins) -> None:
    nonsense: Any = "not a list"
    with pytest.raises(openai.BadRequestError) as refused:
        gpt.chat.completions.create(model="gpt-4o-mini", messages=nonsense)
    assert refused.value.code == "malformed_call"
    assert standins.openai.requests == []


# --- what goes wrong behind the gateway -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "raised", "status", "code"),
    [
        ("fail-400", openai.BadRequestError, 400, "context_length_exceeded"),
        ("fail-429", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("fail-500", openai.InternalServerError, 500, None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_providers_error_arrives_as_the_provider_wrote_it(
    gpt: openai.OpenAI,
    standins: Standins,
    model: str,
    raised: type[openai.APIStatusError],
    status: int,
    code: str | None,
    streamed: bool,
) -> None:
    with pytest.raises(raised) as failed:
        gpt.chat.completions.create(model=model, messages=HELLO, stream=streamed)
    assert (failed.value.status_code, failed.value.code) == (status, code)
    seen = only(standins.openai.requests)
    assert failed.value.response.content == bytes(seen.sent)
    assert failed.value.response.headers.get("retry-after") == ("1" if status == 429 else None)


def test_a_whole_answer_that_is_cut_is_a_bad_gateway(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        gpt.chat.completions.create(model="cut-stream", messages=HELLO)
    assert (failed.value.status_code, failed.value.code) == (502, "target_failed")


@pytest.mark.parametrize("model", ["cut-stream", "short-stream"])
def test_a_stream_that_is_cut_raises_and_is_never_a_short_success(gpt: openai.OpenAI, model: str) -> None:
    arrived: list[Any] = []
    stream = gpt.chat.completions.create(model=model, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as failed:
        arrived.extend(stream)
    assert failed.value.code == "target_failed"
    assert arrived, "what came before the cut is passed on"


@pytest.mark.parametrize("model", ["cut-stream", "short-stream"])
async def test_a_stream_that_is_cut_raises_in_an_async_client(agpt: openai.AsyncOpenAI, model: str) -> None:
    stream = await agpt.chat.completions.create(model=model, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError):
        [chunk async for chunk in stream]


@pytest.mark.parametrize("model", ["cut-stream", "short-stream", "no-done"])
def test_a_response_without_its_terminal_event_raises(gpt: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.APIError):
        list(gpt.responses.create(model=model, input="Hello there", stream=True))


@pytest.mark.parametrize("model", ["cut-stream", "short-stream"])
def test_a_legacy_completion_that_is_cut_raises(gpt: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.APIError):
        list(gpt.completions.create(model=model, prompt="Hello there", stream=True))


def test_a_providers_error_inside_a_stream_is_the_providers_own(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError) as failed:
        list(gpt.chat.completions.create(model="error-in-stream", messages=HELLO, stream=True))
    assert "The stand-in broke this stream off" in str(failed.value)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_target_that_stays_silent_is_given_up_after_its_timeout(
    gpt: openai.OpenAI, standins: Standins, streamed: bool
) -> None:
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as failed:
        gpt.chat.completions.create(model="hasty", messages=HELLO, stream=streamed)
    assert (failed.value.status_code, failed.value.code) == (504, "target_timeout")
    assert time.monotonic() - began < 5
    seen = only(standins.openai.requests)
    assert seen.over.wait(5)
    assert seen.client_gone, "the exchange that was given up is closed"


def test_a_client_that_leaves_ends_the_call_to_the_target_too(gpt: openai.OpenAI, standins: Standins) -> None:
    with pytest.raises(openai.APITimeoutError):
        gpt.chat.completions.create(model="slow-first-byte", messages=HELLO, timeout=0.5)
    seen = only(standins.openai.requests)
    assert seen.over.wait(5)
    assert seen.client_gone


def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_it_at_the_target_too(
    gpt: openai.OpenAI, standins: Standins
) -> None:
    with gpt.chat.completions.create(model="endless", messages=HELLO, stream=True) as stream:
        assert any(chunk.choices[0].delta.content for chunk in stream)
    seen = only(standins.openai.requests)
    assert seen.over.wait(5)
    assert seen.client_gone


# --- byte for byte ----------------------------------------------------------------------------------------------------

ODD_BODY = (
    b'{ "temperature":0.10,\n\t"messages" : [ {"role":"user", "content":"caf\\u00e9 \xe2\x98\x95 \\/ {\\"model\\": 1}"}'
    b"],"
    b'"model":\r\n  "%s" , "seed" : 1e2, "metadata":{"model":"inner","stream_options":null}%s}'
)
CLERK = {"authorization": f"Bearer {CLERK_KEY}", "content-type": "application/json"}


def post(gateway: Gateway, body: bytes, headers: dict[str, str] = CLERK) -> httpx2.Response:
    return httpx2.post(f"{gateway.url}/v1/chat/completions", headers=headers, content=body, trust_env=False)


def test_what_the_target_gets_is_what_the_client_sent(gateway: Gateway, standins: Standins) -> None:
    body = ODD_BODY % (b"gpt-4o-mini", b"")
    answer = post(gateway, body)
    seen = only(standins.openai.requests)
    assert (seen.method, seen.path, seen.body) == ("POST", "/v1/chat/completions", body)
    assert (answer.status_code, answer.content) == (200, bytes(seen.sent))


def test_only_the_models_name_changes_where_the_arm_renames_it(gateway: Gateway, standins: Standins) -> None:
    post(gateway, ODD_BODY % (b"house-small", b""))
    assert only(standins.openai.requests).body == ODD_BODY % (b"gpt-4o-mini", b"")


def test_a_stream_is_passed_on_as_it_is_where_usage_was_asked_for(gateway: Gateway, standins: Standins) -> None:
    body = ODD_BODY % (b"gpt-4o-mini", b', "stream":true,"stream_options": {"include_usage" : true }')
    answer = post(gateway, body)
    seen = only(standins.openai.requests)
    assert seen.body == body
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content == bytes(seen.sent)


def test_usage_is_asked_for_behind_the_clients_back_and_kept_from_it(gateway: Gateway, standins: Standins) -> None:
    body = ODD_BODY % (b"gpt-4o-mini", b', "stream" : true')
    answer = post(gateway, body)
    seen = only(standins.openai.requests)
    injected = re.compile(rb',?"stream_options":\{"include_usage":true\},?')
    assert injected.sub(b"", seen.body, count=1) == body
    frames = bytes(seen.sent).split(b"\n\n")
    extra = [frame for frame in frames if b'"choices":[]' in frame]
    assert len(extra) == 1
    assert answer.content == b"\n\n".join(frame for frame in frames if frame not in extra)


def test_other_stream_options_stay_when_usage_is_added(gateway: Gateway, standins: Standins) -> None:
    body = ODD_BODY % (b"gpt-4o-mini", b', "stream":true,"stream_options":{"include_obfuscation":false}')
    answer = post(gateway, body)
    options = only(standins.openai.requests).json()["stream_options"]
    assert options == {"include_obfuscation": False, "include_usage": True}
    assert b"obfuscation" not in answer.content


def test_no_secret_and_no_internal_name_of_the_client_reaches_the_target(gateway: Gateway, standins: Standins) -> None:
    unwelcome = {
        "x-api-key": CLERK_KEY,
        "cookie": "session=abc",
        "forwarded": "for=10.0.0.1",
        "x-forwarded-for": "10.0.0.1",
        "x-forwarded-host": "elsewhere.example",
        "x-real-ip": "10.0.0.1",
        "proxy-authorization": "Basic abc",
        "x-weighbridge-session": "s-1",
        "x-weighbridge-agent": "somebody",
    }
    welcome = {
        "openai-beta": "assistants=v2",
        "x-stainless-lang": "python",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }
    assert post(gateway, ODD_BODY % (b"gpt-4o-mini", b""), {**CLERK, **unwelcome, **welcome}).status_code == 200
    seen = only(standins.openai.requests)
    arrived = {name for name, _ in seen.headers}
    assert arrived.isdisjoint(unwelcome)
    assert not any(name.startswith("x-weighbridge-") for name in arrived)
    assert seen.header("authorization") == f"Bearer {OPENAI_KEY}"
    assert CLERK_KEY not in str(seen.headers)
    assert seen.header("host") == standins.openai_url.removeprefix("http://")
    assert welcome.items() <= dict(seen.headers).items()


def test_the_targets_own_key_never_reaches_the_client(gateway: Gateway) -> None:
    for model in (b"gpt-4o-mini", b"fail-500", b"cut-stream"):
        answer = post(gateway, ODD_BODY % (model, b""))
        assert OPENAI_KEY not in answer.text + str(answer.headers)
    assert OPENAI_KEY not in gateway.stderr()
    assert CLERK_KEY not in gateway.stderr()
