"""What is no whole answer, whatever its status and its words, and what agents get in its place: over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
import pytest

from tests.gateway.test_second_attempts import ANSWER, ANSWERS, SSE, asked, chat, choice, json_answer, messages, places
from tests.support.door import connected
from tests.support.misbehaving import Script, Wire, says

HEAD: Final = b"HTTP/1.1 %d So\r\ncontent-type: %b\r\nconnection: close\r\n\r\n"


def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: %b\n\n" % orjson.dumps({"id": "c", "object": "chat.completion.chunk", "choices": choices})


NO_ANSWERS: Final[Mapping[str, Script]] = {
    "a page": says(HEAD % (200, b"text/html") + b"<html>Back soon.</html>", Wire.close),
    "a word": says(HEAD % (200, b"text/plain") + b"OK", Wire.close),
    "nothing": says(HEAD % (200, b"application/json"), Wire.close),
    "no content": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "accepted": json_answer({"status": "accepted"}, 202),
    "a part": says(HEAD % (206, b"application/json") + orjson.dumps(ANSWER)[:40], Wire.close),
    "half of it": says(HEAD % (200, b"application/json") + orjson.dumps(ANSWER)[:-40], Wire.close),
    "a list of it": json_answer([ANSWER]),
    "no choices": json_answer({"id": "c", "choices": []}),
    "given up": json_answer({**ANSWER, "choices": [choice("abort")]}),
    "a stream": says(SSE + chunk({"content": "hello"}, "stop") + b"data: [DONE]\n\n", Wire.close),
}


@pytest.mark.parametrize("kind", ["openai", "parallax"])
@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_what_is_no_answer_of_a_hosted_api_is_none_either(name: str, kind: str) -> None:
    async with places(NO_ANSWERS[name], ANSWERS, kinds=(kind, "openai")) as (found, upstream):
        status, _, body = await asked(found, chat())
        record = await found.ledger.outcome()
    assert (status, orjson.loads(body)) == (200, ANSWER)
    assert [each["outcome"] for each in record["attempts"]] == ["protocol", "ok"]
    assert len(upstream.requests) == 2


async def test_our_own_nodes_have_said_something_where_they_have_and_not_where_they_count() -> None:
    counted = json_answer({**ANSWER, "choices": []})
    async with places(counted, ANSWERS, kinds=("parallax", "openai")) as (found, _):
        status, _, body = await asked(found, chat())
        record = await found.ledger.outcome()
        assert [each.output_tokens for each in found.till.ledger] == [3, 3], "both are paid for as they say"
    assert (status, orjson.loads(body)) == (200, ANSWER)
    assert [each["outcome"] for each in record["attempts"]] == ["protocol", "ok"]


@pytest.mark.parametrize("name", ["a stream", "given up", "a page"])
async def test_nor_is_it_one_in_another_protocol(name: str) -> None:
    async with places(NO_ANSWERS[name], ANSWERS, kinds=("openai", "openai")) as (found, _):
        status, _, body = await asked(found, messages())
        record = await found.ledger.outcome()
    assert (status, orjson.loads(body)["content"][0]["text"]) == (200, "hello")
    assert [each["outcome"] for each in record["attempts"]] == ["protocol", "ok"]


@pytest.mark.parametrize(
    "end",
    [
        chunk({}, "abort"),
        chunk({}, "error"),
        b'data: {"object":"error","message":"lost","type":"InternalServerError","code":500}\n\n',
    ],
    ids=["abort", "error", "an error like a chunk"],
)
@pytest.mark.parametrize("call", [chat, messages])
async def test_a_stream_that_is_given_up_in_the_words_of_an_end_has_been_broken_off(end: bytes, call: Any) -> None:
    """A node of a Parallax pipeline is gone: what its frontend says then is taken for the end of an answer."""

    async def answers(wire: Wire) -> None:
        await wire.body()
        await wire.send(SSE + chunk({"content": "hel"}))
        await goes_on.wait()
        await wire.send(end + b"data: [DONE]\n\n")
        wire.close()

    goes_on = asyncio.Event()
    async with places(answers, ANSWERS, kinds=("parallax", "openai")) as (found, upstream):
        async with connected(found.port) as client:
            await client.say(call(stream=True))
            head = await client.reader.readuntil(b"hel")
            goes_on.set()
            rest = await client.reader.readuntil(b"0\r\n\r\n")
        record = await found.ledger.outcome()
    assert b"error" in rest
    assert not [word for word in (b"abort", b"[DONE]", b"message_stop") if word in rest]
    assert (record["code"], record["status"], len(upstream.requests)) == ("target_failed", 200, 1)
    assert head.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("call", "end"), [(chat, chunk({}, "abort")), (messages, chunk({}, "abort")), (messages, b"")])
async def test_a_stream_that_is_given_up_before_an_agent_has_a_byte_of_it_is_begun_elsewhere(
    call: Any, end: bytes
) -> None:
    given_up = SSE + chunk({"role": "assistant"}) + end + b"data: [DONE]\n\n"
    whole = SSE + chunk({"content": "hello"}, "stop") + b"data: [DONE]\n\n"
    async with places(says(given_up, Wire.close), says(whole, Wire.close), kinds=("parallax", "openai")) as (found, _):
        status, _, body = await asked(found, call(stream=True))
        record = await found.ledger.outcome()
    assert (status, b"hello" in body, b"abort" in body) == (200, True, False)
    assert [each["outcome"] for each in record["attempts"]] == ["stream_cut", "ok"]


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("retry-after: 7", True),
        ("retry-after-ms: 7000", True),
        ("retry-after: -5", False),
        ("retry-after: 1e99", False),
        ("retry-after: inf", False),
        ("retry-after: soon", False),
        ("retry-after: Fri, 31 Dec 9999 23:59:59 GMT", False),
        ("retry-after-ms: 1e308", False),
        ("retry-after-ms: nan", False),
    ],
)
async def test_no_agent_is_told_to_wait_for_ever(line: str, passes: bool) -> None:
    """Stock clients sleep for as long as they are told."""
    async with places(json_answer({"error": {"message": "slow down"}}, 429, "application/json", line)) as (found, _):
        status, headers, _ = await asked(found, chat())
    assert (status, line.partition(":")[0].encode() in headers) == (429, passes)
