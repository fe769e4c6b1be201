"""What an application's messages become on the wire, and what a request becomes for it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.cycle import Message
from tests.support.door import RawClient, connected, door, post

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Line = tuple[bytes, bytes]

GET = b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n"


class Says:
    """An application that sends these messages, whatever it is asked."""

    def __init__(self, *messages: Message) -> None:
        self.messages = messages

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        for message in self.messages:
            await send(message)


def start(status: int = 200, *headers: Line) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(piece: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def everything(client: RawClient, request: bytes = GET) -> bytes:
    await client.say(request)
    return await client.silence()


async def test_an_answer_of_unknown_length_goes_out_in_chunks() -> None:
    app = Says(start(), body(b"one", more=True), body(b"", more=True), body(b"two"))
    async with door(app) as port, connected(port) as client:
        for _ in range(2):
            await client.say(GET)
            status, headers, text = await client.answer()
            assert (status, headers[b"transfer-encoding"], text) == (200, b"chunked", b"onetwo")


async def test_an_answer_of_known_length_goes_out_as_it_is() -> None:
    app = Says(start(201, (b"content-length", b"6"), (b"x-one", b"a\tb")), body(b"one", more=True), body(b"two"))
    async with door(app) as port, connected(port) as client:
        await client.say(GET)
        status, headers, text = await client.answer()
        assert (status, text, headers[b"x-one"]) == (201, b"onetwo", b"a\tb")
        assert b"transfer-encoding" not in headers


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_promises_none(status: int) -> None:
    async with door(Says(start(status), body())) as port, connected(port) as client:
        for _ in range(2):
            await client.say(GET)
            found, headers, _ = await client.answer()
            assert found == status
            assert not headers.keys() & {b"transfer-encoding", b"content-length"}


async def test_the_answer_to_a_head_request_ends_with_its_head() -> None:
    app = Says(start(200, (b"content-length", b"4")), body(b"text"))
    async with door(app) as port, connected(port) as client:
        await client.say(GET.replace(b"GET", b"HEAD"))
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        await client.say(GET)
        assert (await client.answer())[2] == b"text"


@pytest.mark.parametrize(
    "line",
    [
        (b"x-one", b"a\r\nx-two: b"),
        (b"x-one", b"a\nx-two: b"),
        (b"x-one", b"a\rx-two: b"),
        (b"x-one", b"a\0b"),
        (b"x-one: a\r\nx-two", b"b"),
        (b"x one", b"a"),
        (b"x-one:", b"a"),
        (b"", b"a"),
    ],
)
async def test_a_header_that_would_not_stay_one_is_never_written(line: Line) -> None:
    app = Says(start(200, line, (b"content-length", b"0")), body())
    async with door(app) as port, connected(port) as client:
        answer = await everything(client)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"x-" not in answer


async def test_a_name_that_was_fine_before_is_still_looked_at_with_its_value() -> None:
    headers = [(b"x-one", b"fine"), (b"content-length", b"0")]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(start(200, *headers))
        await send(body())

    async with door(app) as port, connected(port) as client:
        await client.say(GET)
        assert (await client.answer())[1][b"x-one"] == b"fine"
        headers[0] = (b"x-one", b"a\r\nset-cookie: b")
        assert b"set-cookie" not in await everything(client)


@pytest.mark.parametrize("text", [b"too long", b"so"])
async def test_a_body_of_another_length_than_promised_ends_the_connection(text: bytes) -> None:
    app = Says(start(200, (b"content-length", b"4")), body(text))
    async with door(app) as port, connected(port) as client:
        answer = await everything(client)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "messages",
    [(), (body(b"text"),), (start(), start())],
    ids=["no answer", "a body without a head", "two heads"],
)
async def test_an_application_that_does_not_answer_properly_costs_the_connection(messages: tuple[Message, ...]) -> None:
    async with door(Says(*messages)) as port, connected(port) as client:
        answer = await everything(client)
        assert answer.startswith(b"HTTP/1.1 200 " if len(messages) == 2 else b"HTTP/1.1 500 ")
        assert answer.count(b"HTTP/1.1") == 1


async def test_an_application_that_fails_within_its_answer_costs_the_connection() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"one", more=True))
        raise ValueError("of no interest to clients")

    async with door(app) as port, connected(port) as client:
        answer = await everything(client)
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n")


async def test_an_application_can_end_the_connection() -> None:
    app = Says(start(200, (b"content-length", b"2"), (b"connection", b"keep-alive, Close")), body(b"ok"))
    async with door(app) as port, connected(port) as client:
        answer = await everything(client)
        assert answer.endswith(b"\r\n\r\nok")
        assert answer.count(b"connection:") == 1


async def test_the_body_waits_for_the_permission_that_the_client_wants() -> None:
    async with door(received) as port, connected(port) as client:
        await client.say(b"POST / HTTP/1.1\r\nhost: gateway\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.say(b"12345")
        assert (await client.answer())[2] == b"12345"


async def received(scope: Message, receive: Receive, send: Send) -> None:
    """Answers with the body."""
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message["body"])
        more = message["more_body"]
    text = b"".join(pieces)
    await send(start(200, (b"content-length", b"%d" % len(text))))
    await send(body(text))


@pytest.mark.parametrize("size", [0, 1, 300_000])
@pytest.mark.parametrize("step", [7_000, 1_000_000])
async def test_a_body_arrives_as_it_was_sent(size: int, step: int) -> None:
    text = bytes(number % 251 for number in range(size))
    request = post("/", text)
    async with door(received) as port, connected(port) as client:
        for _ in range(2):
            for at in range(0, len(request), step):
                await client.say(request[at : at + step])
            assert (await client.answer())[2] == text


async def test_who_asks_on_after_the_answer_hears_that_it_is_over() -> None:
    heard: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send(start(200, (b"content-length", b"0")))
        await send(body())
        heard.set_result(await receive())

    async with door(app) as port, connected(port) as client:
        await client.say(GET)
        await client.answer()
        assert (await heard)["type"] == "http.disconnect"
