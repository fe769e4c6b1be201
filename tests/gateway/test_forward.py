"""`gateway.forward`: what is known of an answer on every way out, and streams that somebody has to lend money for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, cast

import anthropic
import openai
import orjson
import pytest

from adapters import registry
from adapters.base import Usage
from adapters.sse import events
from gateway.attempts import Attempts
from gateway.carrier import Carrier, Limits, Origin
from gateway.exchange import Exchange, Reached
from gateway.forward import forward
from gateway.lending import Lender
from gateway.lifeline import ClientGone, Lifeline
from gateway.problems import TargetFailed, TargetTimeout
from gateway.reply import Reply
from routing.health import Fleet
from tests.support.door import RawClient, connected, door, post
from tests.support.exchanges import assembly, exchange
from tests.support.misbehaving import HEAD, Misbehaving, Script, Wire, says
from tests.support.standins import ANTHROPIC_KEY, OPENAI_KEY, running_standins_here
from tests.support.till import Till, Turnstile

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
SSE = HEAD + b"content-type: text/event-stream\r\nconnection: close\r\n\r\n"
JSON = HEAD + b"content-type: application/json\r\n"
NEVER = 2**62
THE_KEY = "the-operators-own-key"
HELLO: Any = [{"role": "user", "content": "Hello there"}]


class Loan:
    """Lends as a test says: to each mark in turn, then no more."""

    def __init__(self, *marks: int, limit: int = NEVER) -> None:
        self.mark, *self._marks = marks or (NEVER,)
        self.limit = limit
        self.passed = 0
        self.asked: list[int] = []
        self.waits: asyncio.Event | None = None
        """What `more` waits for, if anything."""
        self.waiting = asyncio.Event()

    async def more(self, produced: int) -> bool:
        self.asked.append(produced)
        self.waiting.set()
        if self.waits is not None:
            await self.waits.wait()
        if not self._marks:
            return False
        self.mark = self._marks.pop(0)
        return True


class Forwarding:
    """An ASGI application that carries every call to one target, under the loan it was given, and remembers how."""

    def __init__(self, target_url: str, loan: Loan | None, key: str, timeouts: Mapping[str, float]) -> None:
        common = {"key": key, "timeouts": timeouts}
        self.assembly = assembly(
            targets=[
                {"name": "openai", "kind": "openai", "url": f"{target_url}/v1", **common},
                {"name": "anthropic", "kind": "anthropic", "url": target_url, **common},
            ],
            routes=[{"name": "all", "models": ["*"], "arms": [{"target": "openai"}, {"target": "anthropic"}]}],
        )
        self.attempts = Attempts(Fleet(), Lender(Till(), Turnstile()))
        self.attempts.under(self.assembly)
        self.loan = loan
        self.exchanges: list[Exchange] = []
        self.errors: list[Exception] = []
        self.over = asyncio.Event()
        self.port = 0

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        x = exchange()
        x.headers = scope["headers"]
        x.adapter, x.assembly = registry.speaking(scope["path"], False), self.assembly
        x.call = x.adapter.read(registry.endpoint(x.adapter, "POST", scope["path"])[0], body, "")
        x.route = self.assembly.table.match(x.call.target)
        arms = x.route.able(x.adapter.protocol, x.call.operation)
        x.order = [arm for arm in arms if arm.target.kind.protocol == x.adapter.protocol]
        x.lending = cast(Any, self.loan)
        self.exchanges.append(x)
        reply, lifeline = Reply(x, send), Lifeline(scope)
        try:
            await forward(x, reply, lifeline, self.attempts)
        except asyncio.CancelledError:
            self.errors.append(lifeline.caught())
        except Exception as error:
            self.errors.append(error)
            await reply.whole(502, [], b"")
        finally:
            self.over.set()

    def forget(self) -> None:
        """Begin anew with no call remembered."""
        self.exchanges.clear()
        self.errors.clear()
        self.over.clear()

    async def ended(self) -> Exchange:
        """The one call, when it is over."""
        await asyncio.wait_for(self.over.wait(), 10)
        (x,) = self.exchanges
        return x


@asynccontextmanager
async def forwarding(
    target_url: str,
    loan: Loan | None = None,
    *,
    key: str = "the-operators-own-key",
    timeouts: Mapping[str, float] | None = None,
) -> AsyncIterator[tuple[Forwarding, int]]:
    """The application, served, and its port."""
    app = Forwarding(target_url, loan, key, timeouts or {})
    try:
        async with door(app) as app.port:
            yield app, app.port
    finally:
        for line in app.assembly.lines.values():
            for carrier in line.carriers:
                await carrier.close()


@asynccontextmanager
async def scripted(
    script: Script, loan: Loan | None = None, **timeouts: float
) -> AsyncIterator[tuple[Forwarding, RawClient, Misbehaving]]:
    """The application in front of a target that does this for chats, and a client of it."""
    async with Misbehaving() as upstream:
        for path in (CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, COUNT):
            upstream.on(path, script)
        url = f"http://127.0.0.1:{upstream.port}"
        async with forwarding(url, loan, timeouts=timeouts) as (app, port), connected(port) as client:
            yield app, client, upstream


def streams(*pieces: bytes, then: Callable[[Wire], Awaitable[None]] | None = None) -> Script:
    """Sends these pieces of a stream, and closes or does what comes `then`."""

    async def script(wire: Wire) -> None:
        await wire.body()
        await wire.send(SSE)
        for piece in pieces:
            await wire.send(piece)
        if then is not None:
            await then(wire)
        wire.close()

    return script


def chunk(content: str = "", finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content else {}, "finish_reason": finish}
    document = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}
    return b"data: " + orjson.dumps(document) + b"\n\n"


def usage_chunk(given: int, made: int) -> bytes:
    return chunk(usage={"prompt_tokens": given, "completion_tokens": made}).replace(
        b'"choices":[{', b'"choices":[],"x":[{'
    )


LAST, DONE = chunk(finish="stop"), b"data: [DONE]\n\n"


def chat(path: str = CHAT, **more: Any) -> bytes:
    content = (
        {"input": "hi"} if path == EMBEDDINGS else {"prompt": "hi"} if path == COMPLETIONS else {"messages": HELLO}
    )
    return post(path, orjson.dumps({"model": "m", **content, **more}))


STREAMED = chat(stream=True)


async def passed(client: RawClient, count: int) -> bytes:
    """The next `count` events of a stream whose head was read."""
    got = b""
    while got.count(b"\n\n") < count:
        size = int(await client.reader.readuntil(b"\r\n"), 16)
        got += (await client.reader.readexactly(size + 2))[:-2]
    return got


# --- streams that somebody lends money for ----------------------------------------------------------------------------


@pytest.mark.parametrize("loan", [None, Loan(), Loan(4, limit=4), Loan(100, limit=100)])
async def test_a_stream_within_its_loan_passes_as_it_is_and_asks_for_nothing(loan: Loan | None) -> None:
    words = [chunk("word") * 2, chunk("more") + chunk("end")]
    async with scripted(streams(*words, LAST, DONE), loan) as (app, client, _):
        await client.say(STREAMED)
        assert (await client.answer())[2] == b"".join(words) + LAST + DONE
        x = await app.ended()
        assert (x.code, x.usage, x.reached) == ("ok", Usage(0, 4, estimated=True), Reached.ANSWERED)
        assert loan is None or loan.asked == []


async def test_nothing_behind_the_event_that_crosses_the_mark_passes_before_more_is_lent() -> None:
    words = [chunk(f"w{i}") for i in range(20)]
    loan = Loan(3, 7, 11)
    loan.waits = asyncio.Event()
    async with scripted(streams(b"".join(words), then=Wire.hang), loan) as (app, client, upstream):
        await client.say(STREAMED)
        await client.reader.readuntil(b"\r\n\r\n")
        assert await passed(client, 4) == b"".join(words[:4])
        await loan.waiting.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.05)
        loan.waits.set()
        assert await passed(client, 8) == b"".join(words[4:12])
        x = await app.ended()
        assert loan.asked == [4, 8, 12]
        assert (x.code, x.usage) == ("budget_exhausted", Usage(0, 12, estimated=True))
        end = await passed(client, 2)
        assert b'"finish_reason":"length"' in end
        assert end.endswith(DONE)
        await upstream.all_gone()


async def test_a_target_that_floods_is_left_when_nobody_lends_more() -> None:
    flood = chunk("x" * 1000) * 100

    async def forever(wire: Wire) -> None:
        while True:
            await wire.send(flood)

    async with scripted(streams(then=forever), Loan(100_000)) as (app, client, upstream):
        await client.say(STREAMED)
        await client.reader.readuntil(b"\r\n\r\n")
        while not (await passed(client, 1)).endswith(DONE):
            pass
        await app.ended()
        await upstream.all_gone()


@pytest.mark.parametrize("pace", ["endless", "endless+big-events", "endless+big-events+no-usage"])
async def test_stock_clients_see_a_stream_that_is_cut_as_one_that_reached_its_limit(pace: str) -> None:
    async with running_standins_here() as standins:
        loan = Loan(5, 9)
        async with (
            forwarding(standins.openai_url, loan, key=OPENAI_KEY) as (app, port),
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as gpt,
        ):
            options: Any = {"include_usage": True}
            stream = await gpt.chat.completions.create(model=pace, messages=HELLO, stream=True, stream_options=options)
            chunks = [each async for each in stream]
            assert [choice.finish_reason for each in chunks for choice in each.choices][-1] == "length"
            said = "".join(choice.delta.content or "" for each in chunks for choice in each.choices)
            told = chunks[-1].usage
            x = await app.ended()
            assert x.usage is not None
            assert told is not None
            assert told.completion_tokens == x.usage.output_tokens >= len(said) // 4
        async with (
            forwarding(standins.openai_url, Loan(5), key=OPENAI_KEY) as (app, port),
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as gpt,
        ):
            async with gpt.responses.stream(model=pace, input="Hello") as helper:
                seen = [each async for each in helper]
            last = seen[-1]
            assert last.type == "response.incomplete"
            deltas = [each.delta for each in seen if each.type == "response.output_text.delta"]
            assert last.response.output_text == "".join(deltas) != ""
        async with (
            forwarding(standins.anthropic_url, Loan(5), key=ANTHROPIC_KEY) as (app, port),
            anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="k", max_retries=0) as claude,
        ):
            async with claude.messages.stream(model=pace, max_tokens=9999, messages=HELLO) as messages:
                texts = [text async for text in messages.text_stream]
                final = await messages.get_final_message()
            assert final.stop_reason == "max_tokens"
            assert [block.text for block in final.content if block.type == "text"] == ["".join(texts)]
            x = await app.ended()
            assert x.code == "budget_exhausted"
            assert x.usage is not None
            assert x.usage.estimated
            assert x.usage.input_tokens == (0 if "no-usage" in pace else 2)
        for standin in (standins.openai, standins.anthropic):
            for seen_there in standin.requests:
                assert await asyncio.to_thread(seen_there.over.wait, 5)
                assert seen_there.client_gone


@pytest.mark.parametrize(
    ("events_of", "limit", "most"),
    [(chunk("hi"), 5, 6), (chunk("x" * 50), 5, 6), (chunk("x" * 4000), 100, 1), (chunk("x" * 4000), 300, 2)],
    ids=["tokens", "long tokens", "many tokens an event", "two events"],
)
async def test_a_target_that_ignores_max_tokens_is_cut_for_it(events_of: bytes, limit: int, most: int) -> None:
    loan = Loan(limit=limit)
    async with scripted(streams(events_of * 50, LAST, DONE), loan) as (app, client, upstream):
        await client.say(STREAMED)
        _, _, body = await client.answer()
        assert body.startswith(events_of * most)
        assert body.count(events_of) == most
        x = await app.ended()
        assert (x.code, loan.asked) == ("ok", [])
        assert f"beyond the {limit} tokens" in x.detail
        assert x.usage is not None
        assert x.usage.estimated
        await upstream.all_gone()


@pytest.mark.parametrize(
    "tokens",
    [
        [" " * 128],
        [" \u043f\u043e\u043b\u044c\u0437\u043e\u0432\u0430\u0442\u0435\u043b\u044f"] * 40,
        [" \u0909\u092a\u092f\u094b\u0917"] * 500,
        [" responsibilities"] * 300,
        [" the"] * 2000,
        ["\U0001f600"] * 100,
        ["-" * 64] * 10,
    ],
    ids=["spaces", "russian", "hindi", "long words", "words", "faces", "rules"],
)
async def test_an_answer_of_exactly_its_limit_is_never_cut_for_it(tokens: list[str]) -> None:
    words = [chunk(token) for token in tokens]
    async with scripted(streams(*words, LAST, DONE), Loan(limit=len(tokens))) as (app, client, _):
        await client.say(STREAMED)
        assert (await client.answer())[2] == b"".join(words) + LAST + DONE
        assert (await app.ended()).detail == ""


async def test_an_agent_that_leaves_while_more_is_asked_for_leaves_what_had_passed() -> None:
    loan = Loan(2, 99)
    loan.waits = asyncio.Event()
    async with scripted(streams(chunk("word") * 9, then=Wire.hang), loan) as (app, client, upstream):
        await client.say(STREAMED)
        await loan.waiting.wait()
        client.hang_up()
        x = await app.ended()
        assert [type(error) for error in app.errors] == [ClientGone]
        assert x.usage == Usage(0, 3, estimated=True)
        await upstream.all_gone()


async def test_the_end_of_a_cut_stream_does_not_tell_a_key_that_the_target_repeats() -> None:
    word = chunk("word").replace(b'"id":"c"', b'"id":"%b"' % THE_KEY.encode())
    async with scripted(streams(word * 9, then=Wire.hang), Loan(2)) as (_, client, _):
        await client.say(STREAMED)
        body = (await client.answer())[2]
        assert THE_KEY.encode() not in body
        assert len({event["id"] for event in map(orjson.loads, texts_of(body))}) == 1


def texts_of(stream: bytes) -> list[bytes]:
    return [said for _, _, said in events(stream) if said != b"[DONE]"]


async def test_what_the_target_has_reported_itself_counts_and_not_what_passed() -> None:
    running = [chunk("word", usage={"prompt_tokens": 9, "completion_tokens": 2 * i}) for i in (1, 2, 3)]
    async with scripted(streams(b"".join(running), then=Wire.hang), Loan(1)) as (app, client, _):
        await client.say(STREAMED)
        await client.answer()
        assert (await app.ended()).usage == Usage(9, 4)


# --- what was used, on every way out ----------------------------------------------------------------------------------


def error_chunk(wire: Wire) -> Awaitable[None]:
    return wire.send(b'data: {"error":{"message":"overloaded"}}\n\n')


async def resets(wire: Wire) -> None:
    wire.reset()


STREAMS = {
    "reported": (streams(chunk("word") * 3, LAST, usage_chunk(9, 12), DONE), Usage(9, 12), "ok"),
    "not reported": (streams(chunk("word") * 3, LAST, DONE), Usage(0, 3, estimated=True), "ok"),
    "many tokens": (streams(chunk("word" * 9) * 3, LAST, DONE), Usage(0, 27, estimated=True), "ok"),
    "zeros": (streams(chunk("word") * 3, LAST, usage_chunk(0, 0), DONE), Usage(0, 3, estimated=True), "ok"),
    "cut": (streams(chunk("word") * 3), Usage(0, 3, estimated=True), "target_failed"),
    "torn": (streams(chunk("word") * 3, b'data: {"torn'), Usage(0, 3, estimated=True), "target_failed"),
    "error": (streams(chunk("word") * 3, then=error_chunk), Usage(0, 3, estimated=True), "target_failed"),
    "silence": (streams(chunk("word") * 3, then=Wire.hang), Usage(0, 3, estimated=True), "target_timeout"),
    "silence at the end": (streams(LAST, usage_chunk(9, 12), then=Wire.hang), Usage(9, 12), "target_timeout"),
    "nothing": (streams(), Usage(estimated=True), "ok"),
}
"""What a target does -> what is known to be used of it, and how the call ends. Without an event it is refused."""


@pytest.mark.parametrize("loan", [None, Loan()], ids=["alone", "lent"])
async def test_a_streams_tokens_are_known_however_it_ends(loan: Loan | None) -> None:
    async with scripted(Wire.hang, loan, idle=0.2) as (app, client, upstream):
        for name, (script, usage, code) in STREAMS.items():
            upstream.on(CHAT, script)
            app.forget()
            await client.say(STREAMED)
            await client.answer()
            x = await app.ended()
            assert (x.usage, x.code, x.reached) == (usage, code, Reached.ANSWERED), name


async def test_an_agent_that_leaves_in_the_middle_of_a_stream_has_used_what_passed() -> None:
    async with scripted(streams(chunk("word") * 3, then=Wire.hang)) as (app, client, _):
        await client.say(STREAMED)
        await client.reader.readuntil(b"\r\n\r\n")
        await passed(client, 3)
        client.hang_up()
        assert (await app.ended()).usage == Usage(0, 3, estimated=True)


def answers(body: bytes, status: bytes = b"200 OK", then: Callable[[Wire], None] | None = None) -> Script:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    return says(head + body, then)


def cut_off(size: int) -> Script:
    """An answer of whose 9 MB only so many bytes come."""
    return says(JSON + b"content-length: 9000000\r\n\r\n" + b" " * size, Wire.close)


ANSWER = {"choices": [{"message": {"content": "hello"}}]}
LONG = b'{"x":"' + b"x" * 2_000_000 + b'"%b}'
REPORTED = b',"usage":{"prompt_tokens":7,"completion_tokens":3}'


WHOLE: list[tuple[str, Script, Usage | None]] = [
    (CHAT, answers(orjson.dumps({**ANSWER, "usage": {"prompt_tokens": 7, "completion_tokens": 3}})), Usage(7, 3)),
    (CHAT, answers(orjson.dumps(ANSWER)), Usage(0, 2, estimated=True)),
    (CHAT, answers(orjson.dumps({**ANSWER, "usage": {"prompt_tokens": 7}})), Usage(7, 2, estimated=True)),
    (CHAT, answers(orjson.dumps({"choices": [], "usage": {"prompt_tokens": 7}})), Usage(7)),
    (CHAT, answers(b""), Usage(estimated=True)),
    (CHAT, answers(b"<html>"), Usage(estimated=True)),
    (COMPLETIONS, answers(orjson.dumps({"choices": [{"text": "hello"}]})), Usage(0, 2, estimated=True)),
    (EMBEDDINGS, answers(orjson.dumps({"data": []})), Usage(estimated=True)),
    (EMBEDDINGS, answers(orjson.dumps({"data": [], "usage": {"prompt_tokens": 7}})), Usage(7)),
    (CHAT, answers(LONG % b""), Usage(0, 500_002, estimated=True)),
    (
        CHAT,
        answers(LONG % REPORTED),
        Usage(7, 3),
    ),
    (EMBEDDINGS, answers(LONG % b""), Usage(estimated=True)),
    (CHAT, cut_off(40), Usage(0, 10, estimated=True)),
    (CHAT, cut_off(2_000_000), Usage(0, 500_000, estimated=True)),
    (EMBEDDINGS, cut_off(40), Usage(estimated=True)),
    (CHAT, answers(orjson.dumps({**ANSWER, "usage": {"prompt_tokens": 7}}), b"429 Too Many"), None),
    (CHAT, answers(orjson.dumps(ANSWER), b"500 Oops"), None),
    (COUNT, answers(b'{"input_tokens":7}'), None),
]
"""What is asked and what the target answers -> what that is known to have used."""


async def test_what_an_answer_has_used_is_known_however_it_ends() -> None:
    async with scripted(Wire.hang) as (app, _, upstream):
        for number, (path, script, usage) in enumerate(WHOLE):
            upstream.on(path, script)
            app.forget()
            async with connected(app.port) as client:
                await client.say(chat(path))
                with contextlib.suppress(asyncio.IncompleteReadError):
                    await client.answer()
                x = await app.ended()
            assert (x.usage, x.reached) == (usage, Reached.ANSWERED), number


@pytest.mark.parametrize(
    ("script", "usage"),
    [
        (says(JSON + b"content-length: 2\r\n\r\n{}"), Usage(estimated=True)),
        (says(SSE.replace(b"connection: close", b"content-encoding: gzip"), Wire.close), Usage(estimated=True)),
        (says(b"HTTP/1.1 307 Go\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n"), None),
    ],
    ids=["no stream", "encoded", "redirect"],
)
async def test_an_answer_that_nobody_may_read_has_used_something_all_the_same(
    script: Script, usage: Usage | None
) -> None:
    async with scripted(script) as (app, client, _):
        await client.say(STREAMED)
        assert (await client.answer())[0] == 502
        x = await app.ended()
        assert (x.usage, x.reached) == (usage, Reached.ANSWERED)


async def test_an_agent_that_leaves_before_its_answer_is_whole_has_used_what_came() -> None:
    waits = asyncio.Event()

    async def half(wire: Wire) -> None:
        await wire.body()
        await wire.send(JSON + b"content-length: 90\r\n\r\n" + b" " * 40)
        waits.set()
        await wire.hang()

    async with scripted(half) as (app, client, upstream):
        await client.say(chat())
        await waits.wait()
        await until(lambda: app.exchanges[0].first_byte_at is not None)
        client.hang_up()
        assert (await app.ended()).usage == Usage(0, 10, estimated=True)
        await upstream.all_gone()


async def until(holds: Callable[[], bool]) -> None:
    """Lets everything else go on until something holds."""
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0)


# --- whether the target was reached -----------------------------------------------------------------------------------


async def test_a_target_that_is_not_there_was_not_reached() -> None:
    for url in ("http://127.0.0.1:9", "https://127.0.0.1:9"):
        async with forwarding(url) as (app, port), connected(port) as client:
            await client.say(chat())
            assert (await client.answer())[0] == 502
            x = await app.ended()
            assert (x.reached, x.usage, x.target_status) == (Reached.NO, None, None)
            assert [type(error) for error in app.errors] == [TargetFailed]


async def test_a_target_that_nobody_trusts_was_not_reached() -> None:
    async def speaks_no_tls(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(speaks_no_tls, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()[1]
        async with forwarding(f"https://127.0.0.1:{address}") as (app, port), connected(port) as client:
            await client.say(chat())
            await client.answer()
            x = await app.ended()
            assert x.reached is Reached.NO
            assert x.detail.startswith(f"https://127.0.0.1:{address}: TLS: ")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Wire.hang, TargetTimeout),
        (says(b"", Wire.close), TargetFailed),
        (says(b"", Wire.reset), TargetFailed),
        (says(b"HTTP/1.1 200"), TargetTimeout),
        (says(b"SMTP 220 hello\r\n\r\n"), TargetFailed),
    ],
)
async def test_a_target_that_took_a_call_and_did_not_answer_may_have_acted_on_it(
    script: Script, error: type[Exception]
) -> None:
    async with scripted(script, first_byte=0.2) as (app, client, _):
        await client.say(chat())
        await client.answer()
        x = await app.ended()
        assert (x.reached, x.usage, x.target_status) == (Reached.MAYBE, None, None)
        assert [type(each) for each in app.errors] == [error]


async def test_an_agent_that_leaves_before_its_call_was_sent_has_reached_nobody() -> None:
    """The one connection there may be is taken, so the call waits for it."""
    async with Misbehaving() as upstream:
        carrier = Carrier(Origin("http", "127.0.0.1", upstream.port), limits=Limits(connections=1))
        left: list[str] = []
        taken = asyncio.create_task(carrier.send(b"POST", b"/never-answers", [], leaving=lambda: left.append("first")))
        await until(lambda: upstream.requests == ["/never-answers"])
        waits = asyncio.create_task(carrier.send(b"POST", b"/ok", [], leaving=lambda: left.append("second")))
        await until(lambda: carrier.statistics().waiting == 1)
        waits.cancel()
        taken.cancel()
        await asyncio.gather(waits, taken, return_exceptions=True)
        assert left == ["first"]
        await carrier.close()


async def test_an_agent_that_leaves_before_an_answer_began_may_have_reached_the_target() -> None:
    async with scripted(Wire.hang) as (app, client, upstream):
        await client.say(chat())
        await until(lambda: upstream.requests == [CHAT])
        client.hang_up()
        x = await app.ended()
        assert (x.reached, x.usage) == (Reached.MAYBE, None)
