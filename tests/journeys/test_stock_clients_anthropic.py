"""A stock Anthropic client whose base URL is the gateway: everything works, and every refusal is understood."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from tests.journeys.stock_clients import CALL_ID, CLERK_KEY, GUEST_KEY
from tests.support.process import Gateway
from tests.support.standins import ANTHROPIC_KEY, Standins, only

MODEL = "claude-haiku-4-5"
HELLO: Any = [{"role": "user", "content": "Hello there, model"}]
TOOL_QUESTION: Any = [{"role": "user", "content": "Please use the weather tool"}]
TOOLS: Any = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]
SAID = f"This is the stand-in for {MODEL}. You said: Hello there, model"


@pytest.fixture
def claude(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=CLERK_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def aclaude(gateway: Gateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=CLERK_KEY, max_retries=0) as client:
        yield client


class CountedClient(httpx2.Client):
    """The HTTP client of a stock SDK, counting what really leaves."""

    def __init__(self) -> None:
        self.sent = 0
        super().__init__(event_hooks={"request": [self._count]})

    def _count(self, _: httpx2.Request) -> None:
        self.sent += 1


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def error_of(failed: anthropic.APIStatusError) -> Any:
    assert isinstance(failed.body, dict)
    return failed.body["error"]


# --- what works -------------------------------------------------------------------------------------------------------


def test_a_message_is_answered(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=MODEL, max_tokens=100, messages=HELLO, system="Be kind")
    assert text_of(answer) == SAID
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, len(SAID.split()))


async def test_a_message_is_answered_to_an_async_client(aclaude: anthropic.AsyncAnthropic) -> None:
    assert text_of(await aclaude.messages.create(model=MODEL, max_tokens=100, messages=HELLO)) == SAID


def test_a_message_is_streamed(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == text_of(final) == SAID
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(SAID.split())


async def test_a_message_is_streamed_to_an_async_client(aclaude: anthropic.AsyncAnthropic) -> None:
    async with aclaude.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        said = "".join([piece async for piece in stream.text_stream])
    assert said == SAID


async def test_raw_events_are_streamed_to_an_async_client(aclaude: anthropic.AsyncAnthropic) -> None:
    stream = await aclaude.messages.create(model=MODEL, max_tokens=100, messages=HELLO, stream=True)
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_calls_tools(claude: anthropic.Anthropic, streamed: bool) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 100, "messages": TOOL_QUESTION, "tools": TOOLS}
    if streamed:
        with claude.messages.stream(**asked) as stream:
            answer: Any = stream.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    assert answer.content[0].input == {"city": "stand-in"}


def test_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    assert claude.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens == 3


async def test_tokens_are_counted_for_an_async_client(aclaude: anthropic.AsyncAnthropic) -> None:
    assert (await aclaude.messages.count_tokens(model=MODEL, messages=HELLO)).input_tokens == 3


def test_models_are_listed_in_the_shape_this_client_knows(claude: anthropic.Anthropic) -> None:
    listed = [model.id for model in claude.models.list()]
    assert "claude-trickle" in listed


def test_a_key_in_either_header_is_accepted(gateway: Gateway, standins: Standins) -> None:
    headers = {"x-api-key": CLERK_KEY, "anthropic-version": "2023-06-01", "content-type": "application/json"}
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO}
    answer = httpx2.post(f"{gateway.url}/v1/messages", headers=headers, json=body, trust_env=False)
    assert answer.status_code == 200
    assert only(standins.anthropic.requests).header("anthropic-version") == "2023-06-01"


async def test_many_calls_at_once_each_get_their_own_answer(aclaude: anthropic.AsyncAnthropic) -> None:
    async def ask(number: int) -> str:
        asked: Any = [{"role": "user", "content": f"number {number}"}]
        if number % 2:
            return text_of(await aclaude.messages.create(model=MODEL, max_tokens=99, messages=asked))
        async with aclaude.messages.stream(model=MODEL, max_tokens=99, messages=asked) as stream:
            return text_of(await stream.get_final_message())

    answers = await asyncio.gather(*(ask(number) for number in range(30)))
    assert [answer.rpartition(" ")[2] for answer in answers] == [str(number) for number in range(30)]


def test_an_answer_in_crumbs_arrives_whole(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="claude-trickle", max_tokens=100, messages=HELLO) as stream:
        final = stream.get_final_message()
    assert text_of(final).endswith("You said: Hello there, model")


def test_every_response_says_which_call_it_was_and_where_it_went(claude: anthropic.Anthropic) -> None:
    raw = claude.messages.with_raw_response.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert CALL_ID.fullmatch(raw.headers["x-weighbridge-call"])
    assert raw.headers["x-weighbridge-decision"] == "ALLOW"
    assert raw.headers["x-weighbridge-target"] == "anthropic"
    assert raw.headers["x-weighbridge-arm"] == "anthropic"
    assert text_of(raw.parse()) == SAID


def test_the_targets_own_request_id_reaches_the_client(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_a_denied_call_says_why_is_not_repeated_and_reaches_nobody(
    gateway: Gateway, standins: Standins, streamed: bool
) -> None:
    http = CountedClient()
    with anthropic.Anthropic(base_url=gateway.url, api_key=GUEST_KEY, http_client=http) as guest:
        with pytest.raises(anthropic.PermissionDeniedError) as denied:
            guest.messages.create(model=MODEL, max_tokens=100, messages=HELLO, stream=streamed)
    assert error_of(denied.value)["type"] == "permission_error"
    assert f"Guests may not use {MODEL}. Ask for gpt-4o-mini instead." in error_of(denied.value)["message"]
    assert isinstance(denied.value.body, dict)
    assert denied.value.body["request_id"] == denied.value.response.headers["x-weighbridge-call"]
    assert denied.value.response.headers["x-weighbridge-decision"] == "DENY"
    assert http.sent == 1
    assert standins.anthropic.requests == []


async def test_a_denied_call_is_understood_by_an_async_client(gateway: Gateway) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=GUEST_KEY) as guest:
        with pytest.raises(anthropic.PermissionDeniedError) as denied:
            await guest.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert error_of(denied.value)["type"] == "permission_error"


def test_an_unknown_key_is_refused_and_not_repeated_in_the_answer(gateway: Gateway, standins: Standins) -> None:
    http = CountedClient()
    with anthropic.Anthropic(base_url=gateway.url, api_key="stranger-key-77aa", http_client=http) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            stranger.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert error_of(refused.value)["type"] == "authentication_error"
    assert "stranger-key-77aa" not in refused.value.response.text
    assert http.sent == 1
    assert standins.anthropic.requests == []


def test_a_call_without_a_key_is_told_how_to_send_one(gateway: Gateway) -> None:
    headers = {"anthropic-version": "2026-10-21"}
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO}
    refused = httpx2.post(f"{gateway.url}/v1/messages", headers=headers, json=body, trust_env=False)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert "x-api-key" in refused.json()["error"]["message"]


def test_a_model_that_no_route_serves_is_not_found(claude: anthropic.Anthropic, standins: Standins) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        claude.messages.create(model="unheard-of", max_tokens=100, messages=HELLO)
    assert error_of(refused.value)["type"] == "not_found_error"
    assert "unheard-of" in error_of(refused.value)["message"]
    assert standins.anthropic.requests == []


def test_a_body_that_makes_no_sense_is_a_bad_request(claude: anthropic.Anthropic, standins: Standins) -> None:
    nonsense: Any = "not a list"
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(model=MODEL, max_tokens=100, messages=nonsense)
    assert error_of(refused.value)["type"] == "invalid_request_error"
    assert standins.anthropic.requests == []


# --- what goes wrong behind the gateway -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "raised", "kind"),
    [
        ("claude-fail-400", anthropic.BadRequestError, "invalid_request_error"),
        ("claude-fail-429", anthropic.RateLimitError, "rate_limit_error"),
        ("claude-fail-500", anthropic.InternalServerError, "api_error"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_providers_error_arrives_as_the_provider_wrote_it(
    claude: anthropic.Anthropic,
    standins: Standins,
    model: str,
    raised: type[anthropic.APIStatusError],
    kind: str,
    streamed: bool,
) -> None:
    with pytest.raises(raised) as failed:
        claude.messages.create(model=model, max_tokens=100, messages=HELLO, stream=streamed)
    assert error_of(failed.value)["type"] == kind
    assert failed.value.response.content == bytes(only(standins.anthropic.requests).sent)


def test_a_whole_answer_that_is_cut_is_a_bad_gateway(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.InternalServerError) as failed:
        claude.messages.create(model="claude-cut-stream", max_tokens=100, messages=HELLO)
    assert failed.value.status_code == 502
    assert error_of(failed.value)["type"] == "api_error"


@pytest.mark.parametrize("model", ["claude-cut-stream", "claude-short-stream", "claude-no-done"])
def test_a_stream_without_its_end_raises_and_is_never_a_short_success(claude: anthropic.Anthropic, model: str) -> None:
    stream = claude.messages.create(model=model, max_tokens=100, messages=HELLO, stream=True)
    arrived: list[Any] = []
    with pytest.raises(anthropic.APIStatusError) as failed:
        arrived.extend(stream)
    assert error_of(failed.value)["type"] == "api_error"
    assert arrived, "what came before the cut is passed on"


async def test_a_stream_that_is_cut_raises_in_an_async_client(aclaude: anthropic.AsyncAnthropic) -> None:
    async with aclaude.messages.stream(model="claude-cut-stream", max_tokens=100, messages=HELLO) as stream:
        with pytest.raises(anthropic.APIStatusError):
            await stream.get_final_message()


def test_a_providers_error_inside_a_stream_is_the_providers_own(claude: anthropic.Anthropic) -> None:
    stream = claude.messages.create(model="claude-error-in-stream", max_tokens=100, messages=HELLO, stream=True)
    with pytest.raises(anthropic.APIStatusError) as failed:
        list(stream)
    assert error_of(failed.value)["type"] == "overloaded_error"


def test_a_client_that_leaves_ends_the_call_to_the_target_too(claude: anthropic.Anthropic, standins: Standins) -> None:
    began = time.monotonic()
    with pytest.raises(anthropic.APITimeoutError):
        claude.messages.create(model="claude-slow-first-byte", max_tokens=100, messages=HELLO, timeout=0.5)
    assert time.monotonic() - began < 5
    seen = only(standins.anthropic.requests)
    assert seen.over.wait(5)
    assert seen.client_gone


# --- byte for byte ----------------------------------------------------------------------------------------------------

ODD_BODY = (
    b'{ "max_tokens" : 100,\n\t"messages" : [ {"role":"user", "content":"caf\\u00e9 \xe2\x98\x95 \\/"} ],'
    b'"model":\r\n  "%s" , "max_tokens_note": null, "metadata":{"user_id":"model"}%s}'
)
CLERK = {
    "authorization": f"Bearer {CLERK_KEY}",
    "anthropic-version": "2026-10-21",
    "anthropic-beta": "tools-2026-01-01",
    "content-type": "application/json",
}


@pytest.mark.parametrize("rest", [b"", b', "stream" : true '])
def test_bytes_pass_unchanged_both_ways(gateway: Gateway, standins: Standins, rest: bytes) -> None:
    body = ODD_BODY % (MODEL.encode(), rest)
    url = f"{gateway.url}/v1/messages?beta=true"
    answer = httpx2.post(url, headers=CLERK, content=body, trust_env=False)
    seen = only(standins.anthropic.requests)
    assert (seen.method, seen.path, seen.query, seen.body) == ("POST", "/v1/messages", "beta=true", body)
    assert (answer.status_code, answer.content) == (200, bytes(seen.sent))
    assert seen.header("anthropic-beta") == "tools-2026-01-01"


def test_only_the_models_name_changes_where_the_arm_renames_it(gateway: Gateway, standins: Standins) -> None:
    body = ODD_BODY % (b"claude-trickle", b"")
    httpx2.post(f"{gateway.url}/v1/messages", headers=CLERK, content=body, trust_env=False)
    assert only(standins.anthropic.requests).body == ODD_BODY % (b"trickle", b"")


def test_the_gateways_own_key_replaces_the_agents(gateway: Gateway, standins: Standins) -> None:
    headers = {**CLERK, "x-api-key": CLERK_KEY, "cookie": "a=b", "x-weighbridge-session": "s-1"}
    body = ODD_BODY % (MODEL.encode(), b"")
    answer = httpx2.post(f"{gateway.url}/v1/messages", headers=headers, content=body, trust_env=False)
    assert answer.status_code == 200
    seen = only(standins.anthropic.requests)
    assert ANTHROPIC_KEY in (seen.header("x-api-key"), (seen.header("authorization") or "").removeprefix("Bearer "))
    assert CLERK_KEY not in str(seen.headers)
    assert seen.header("cookie") is None
    assert seen.header("x-weighbridge-session") is None
    assert ANTHROPIC_KEY not in answer.text + str(answer.headers)
