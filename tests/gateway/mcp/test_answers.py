"""What servers answer, however they misbehave, and what becomes of it: over raw sockets, in front of a scripted one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
import pytest

from adapters.sse import events
from gateway.mcp.sessions import Seals, Session
from policies.decision import Decision, Effect
from policies.obligations import NONE
from tests.support.door import connected, post
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import Gate, gate
from tests.support.mcp_servers import Say, Scripted, scripted

MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
JSON = {"content-type": "application/json"}
STREAM = {"content-type": "text/event-stream"}
KEY = bytes(32)
DENIED = Decision(Effect.DENY, None, (), "Nobody may ask that.", NONE, "r1")
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}


def answer(result: Any = None, identity: Any = 1, **members: Any) -> bytes:
    said = {"content": [{"type": "text", "text": "done"}]} if result is None else result
    return orjson.dumps({"jsonrpc": "2.0", "id": identity, "result": said, **members})


def event(data: bytes, more: bytes = b"") -> bytes:
    return b"%sevent: message\ndata: %s\n\n" % (more, data)


def request(method: str = "tools/call", *, modern: bool = False, identity: Any = 1, **params: Any) -> bytes:
    said: dict[str, Any] = {"name": "echo", "arguments": {"text": "hi"}} if method == "tools/call" else {}
    said |= params
    if modern:
        said["_meta"] = META
    return orjson.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": said})


class Front:
    """A client's side of a gateway: what it says, byte for byte, and what it is told."""

    def __init__(self, running: Gate, server: Scripted) -> None:
        self.gate = running
        self.server = server

    def session(self, *, server: str = "up", tenant: str = "acme", agent: str = "support-bot") -> str:
        """The name of a session."""
        return Seals(KEY).sealed(Session(server, tenant, agent, "s-1", "2025-11-25", "01S"))

    def headers(self, *, modern: bool = False, named: str = "echo", method: str = "tools/call") -> list[str]:
        common = [f"authorization: Bearer {AGENT_KEY}", "accept: application/json, text/event-stream"]
        if modern:
            return [*common, f"mcp-protocol-version: {MODERN}", f"mcp-method: {method}", f"mcp-name: {named}"]
        return [*common, f"mcp-session-id: {self.session()}"]

    async def say(
        self, body: bytes, headers: list[str] | None = None, *, modern: bool = False
    ) -> tuple[int, Mapping[bytes, bytes], bytes]:
        async with connected(self.gate.port) as client:
            lines = self.headers(modern=modern) if headers is None else headers
            await client.say(post("/mcp/up", body, *lines).replace(b"host: gateway", b"host: localhost"))
            return await client.answer()

    async def verb(self, verb: str, *headers: str) -> tuple[int, Mapping[bytes, bytes], bytes]:
        async with connected(self.gate.port) as client:
            lines = [f"{verb} /mcp/up HTTP/1.1", "host: localhost", f"authorization: Bearer {AGENT_KEY}", *headers]
            await client.say("\r\n".join(lines).encode() + b"\r\n\r\n")
            return await client.answer()


@contextlib.asynccontextmanager
async def front(
    *answers: tuple[int, Mapping[str, str], Any],
    script: Any = ALLOWED,
    sections: Mapping[str, Any] | None = None,
    **tool: Any,
) -> AsyncIterator[Front]:
    settings = {"name": "up", "kind": "mcp", "definitions": "any", "check_arguments": "off", **tool}
    async with (
        scripted(*(answers or [(200, JSON, answer())])) as server,
        gate(script=script, tools=[{**settings, "url": server.url}], **(sections or {})) as running,
    ):
        running.pipeline.seals = Seals(KEY)
        yield Front(running, server)


def error(body: bytes) -> tuple[int, Any]:
    message = orjson.loads(body)
    return message["error"]["code"], message["id"]


def said(body: bytes) -> list[Any]:
    return [orjson.loads(data) for _, _, data in events(body) if data]


# What agents may not say


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[" + request() + b"]", 400, -32600),
        (b"{", 400, -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":1}}', 400, -32602),
    ],
)
async def test_what_is_no_message_is_refused_and_goes_nowhere(body: bytes, status: int, code: int) -> None:
    async with front() as at:
        found, _, told = await at.say(body)
        assert (found, error(told)[0]) == (status, code)
        assert at.server.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        ["mcp-method: tools/call", "mcp-name: other", f"mcp-protocol-version: {MODERN}"],
        ["mcp-method: tools/list", "mcp-name: echo", f"mcp-protocol-version: {MODERN}"],
        ["mcp-name: echo", f"mcp-protocol-version: {MODERN}"],
        ["mcp-method: tools/call", f"mcp-protocol-version: {MODERN}"],
        ["mcp-method: tools/call", "mcp-name: echo"],
        ["mcp-method: tools/call", "mcp-name: echo", "mcp-protocol-version: 2025-11-25"],
        ["mcp-method: tools/call", "mcp-name: echo", "mcp-protocol-version: 2027-01-01"],
        ["mcp-method: tools/call", "mcp-name: echo", "mcp-name: echo", f"mcp-protocol-version: {MODERN}"],
        ["mcp-method: tools/call", "mcp-method: tools/call", "mcp-name: echo", f"mcp-protocol-version: {MODERN}"],
        ["mcp-method: tools/call", "mcp-name: echo", *[f"mcp-protocol-version: {MODERN}"] * 2],
    ],
)
async def test_headers_that_do_not_say_what_the_message_says_are_refused(headers: list[str]) -> None:
    async with front() as at:
        status, _, told = await at.say(
            request(modern=True, identity=7), [f"authorization: Bearer {AGENT_KEY}", *headers]
        )
        assert (status, error(told)) == (400, (-32020, 7))
        assert at.server.asked == []
        assert at.gate.engine.documents == []


async def test_in_the_legacy_era_mirrors_are_not_heeded_and_go_nowhere() -> None:
    async with front() as at:
        status, _, _ = await at.say(request(), [*at.headers(), "mcp-name: other", "mcp-method: x", "mcp-param-a: b"])
        assert status == 200
        assert not [name for name in at.server.asked[0].headers if name.startswith("mcp-") and name != "mcp-session-id"]


async def test_mirrors_that_nobody_knows_go_on() -> None:
    async with front() as at:
        await at.say(
            request(modern=True), [*at.headers(modern=True), "mcp-param-who: \u00e9".encode().decode("latin-1")]
        )
        (asked,) = at.server.asked
        assert asked.headers["mcp-method"] == "tools/call"
        assert asked.headers["mcp-name"] == "echo"
        assert "mcp-param-who" in asked.headers


@pytest.mark.parametrize("verb", ["GET", "DELETE"])
async def test_the_modern_era_has_nothing_but_post(verb: str) -> None:
    async with front() as at:
        status, headers, _ = await at.verb(verb, f"mcp-protocol-version: {MODERN}")
        assert (status, headers[b"allow"]) == (405, b"POST")
        assert at.server.asked == []


async def test_a_modern_notification_is_taken_and_dropped() -> None:
    async with front() as at:
        body = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}'
        status, _, told = await at.say(body, [f"authorization: Bearer {AGENT_KEY}", f"mcp-protocol-version: {MODERN}"])
        assert (status, told) == (202, b"")
        assert at.server.asked == []


# Sessions


async def test_a_session_has_a_name_of_the_gateways_own() -> None:
    async with front((200, {**JSON, "mcp-session-id": "s-9"}, answer(HELLO))) as at:
        hello = request("initialize", capabilities={"elicitation": {}, "else": {}})
        status, headers, _ = await at.say(hello, [f"authorization: Bearer {AGENT_KEY}"])
        assert status == 200
        session = Seals(KEY).opened(headers[b"mcp-session-id"].decode())
        assert session is not None
        assert (session.server, session.tenant, session.agent) == ("up", "acme", "support-bot")
        assert (session.upstream, session.version, session.abilities) == ("s-9", "2025-11-25", b'{"elicitation":{}}')
        name = headers[b"mcp-session-id"].decode()
        at.server.answers = [(200, {**JSON, "mcp-session-id": "s-9"}, answer())]
        status, headers, _ = await at.say(request(), [f"authorization: Bearer {AGENT_KEY}", f"mcp-session-id: {name}"])
        assert headers[b"mcp-session-id"].decode() == name
        assert at.server.asked[1].headers["mcp-session-id"] == "s-9"
        assert {each["session"] for each in at.gate.ledger.outcomes()} == {session.id}


async def test_a_session_that_begins_in_a_stream_has_one_too() -> None:
    async with front((200, {**STREAM, "mcp-session-id": "s-9"}, event(b"", b"id: 1\n") + event(answer(HELLO)))) as at:
        status, headers, body = await at.say(request("initialize"), [f"authorization: Bearer {AGENT_KEY}"])
        assert status == 200
        assert Seals(KEY).opened(headers[b"mcp-session-id"].decode()) is not None
        assert said(body) == [orjson.loads(answer(HELLO))]


async def test_a_server_without_sessions_does_not_hear_of_the_gateways() -> None:
    async with front((200, JSON, answer(HELLO))) as at:
        _, headers, _ = await at.say(request("initialize"), [f"authorization: Bearer {AGENT_KEY}"])
        name = headers[b"mcp-session-id"].decode()
        await at.say(request("tools/list"), [f"authorization: Bearer {AGENT_KEY}", f"mcp-session-id: {name}"])
        assert "mcp-session-id" not in at.server.asked[1].headers
        status, _, _ = await at.verb("DELETE", f"mcp-session-id: {name}")
        assert status == 200
        assert len(at.server.asked) == 2


@pytest.mark.parametrize(
    "changed",
    [{"agent": "other"}, {"tenant": "other"}, {"server": "other"}, None],
    ids=["agent", "tenant", "server", "x"],
)
async def test_a_session_that_is_another_ones_is_unknown(changed: dict[str, str] | None) -> None:
    async with front() as at:
        name = at.session(**changed) if changed is not None else "no-such-session"
        status, _, told = await at.say(request(), [f"authorization: Bearer {AGENT_KEY}", f"mcp-session-id: {name}"])
        assert (status, error(told)) == (404, (-32600, 1))
        for verb in ("GET", "DELETE"):
            status, _, told = await at.verb(verb, f"mcp-session-id: {name}")
            assert (status, error(told)[0]) == (404, -32600)
        assert at.server.asked == []


async def test_without_a_session_nothing_but_its_beginning_is_taken() -> None:
    async with front() as at:
        status, _, told = await at.say(request(), [f"authorization: Bearer {AGENT_KEY}"])
        assert (status, error(told)) == (400, (-32600, 1))
        assert at.server.asked == []


async def test_a_session_that_is_named_twice_is_refused() -> None:
    async with front() as at:
        status, _, told = await at.say(request(), [*at.headers(), f"mcp-session-id: {at.session()}"])
        assert (status, error(told)) == (400, (-32600, 1))


async def test_a_session_that_the_server_has_forgotten_begins_anew() -> None:
    async with front((404, {"content-type": "text/plain"}, b"gone")) as at:
        status, _, told = await at.say(request())
        assert (status, error(told)) == (404, (-32600, 1))


async def test_without_the_key_sessions_are_refused_and_not_left_unsealed() -> None:
    async with front((200, {**JSON, "mcp-session-id": "s-9"}, answer(HELLO))) as at:
        name = at.headers()
        at.gate.pipeline.seals = Seals(None)
        status, headers, told = await at.say(request(), name)
        assert (status, headers[b"retry-after"]) == (503, b"2")
        assert orjson.loads(told)["error"]["data"]["code"] == "ledger_unavailable"
        status, headers, told = await at.say(request("initialize"), [f"authorization: Bearer {AGENT_KEY}"])
        assert status == 503
        assert b"mcp-session-id" not in headers
        assert at.server.asked == []


# What servers answer


async def test_an_answer_in_one_piece_stays_one_and_a_stream_a_stream() -> None:
    large = answer({"content": [{"type": "text", "text": "x" * 3_000_000}]})
    async with front((200, {**JSON, "x-secret": "s", "set-cookie": "a=b"}, large)) as at:
        status, headers, body = await at.say(request())
        assert (status, headers[b"content-type"], body) == (200, b"application/json", large)
        assert b"x-secret" not in headers
        assert b"set-cookie" not in headers


async def test_events_pass_as_they_came() -> None:
    progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}'
    stream = b": hello\n\nid: 7\nretry: 50\ndata: \n\n" + event(progress, b"id: 8\n") + event(answer(), b"id: 9\n")
    async with front((200, STREAM, stream)) as at:
        _, _, body = await at.say(request())
        assert body == stream


async def test_events_pass_when_they_come() -> None:
    more = asyncio.Event()

    async def slowly(say: Say) -> None:
        await say(event(b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}'))
        await asyncio.wait_for(more.wait(), 10)
        await say(event(answer()))

    async with front((200, STREAM, slowly)) as at, connected(at.gate.port) as client:
        await client.say(post("/mcp/up", request(), *at.headers()).replace(b"host: gateway", b"host: localhost"))
        head = await asyncio.wait_for(client.reader.readuntil(b"notifications/progress"), 10)
        assert b"200 OK" in head
        more.set()
        assert b"done" in await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 10)


@pytest.mark.parametrize("status", [301, 401, 403, 429, 500, 503])
async def test_what_a_server_has_against_the_gateway_is_no_answer_to_its_agent(status: int) -> None:
    told = {"content-type": "text/html", "location": "http://elsewhere/", "www-authenticate": "Bearer realm=inner"}
    async with front((status, told, b"<h1>internal</h1>")) as at:
        found, headers, body = await at.say(request())
        result = orjson.loads(body)["result"]
        assert (found, result["isError"]) == (200, True)
        assert b"internal" not in body
        assert b"location" not in headers
        assert b"www-authenticate" not in headers
        (made,) = at.gate.ledger.outcomes()
        assert (made["code"], made["target_status"]) == ("target_failed", status)


async def test_an_error_of_the_protocol_passes_with_its_status() -> None:
    body = orjson.dumps(
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -32022, "message": "no", "data": {"supported": []}}}
    )
    for status in (400, 404, 409):
        async with front((status, JSON, body)) as at:
            assert (await at.say(request(modern=True), modern=True))[::2] == (status, body)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b"{"),
        (JSON, b"[]"),
        (JSON, b""),
        (JSON, b'{"jsonrpc":"2.0","id":1}'),
        (JSON, b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}'),
        (JSON, b'{"jsonrpc":"2.0","id":1,"result":{},"result":{}}'),
        (JSON, b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage"}'),
        ({"content-type": "text/html"}, b"<html>"),
        ({}, b'{"jsonrpc":"2.0","id":1,"result":{}}'),
        (STREAM, b"data: {\n\n"),
        (STREAM, b"data: []\n\n"),
        (STREAM, b""),
        (STREAM, b": nothing\n\n"),
        (STREAM, event(b'{"jsonrpc":"2.0","method":"notifications/progress"}')),
        (STREAM, b"data: " + answer()),
    ],
)
async def test_what_is_no_answer_is_told_to_be_none(kind: Mapping[str, str], body: bytes) -> None:
    async with front((200, kind, body)) as at:
        status, headers, told = await at.say(request())
        assert status == 200
        message = said(told)[-1] if headers[b"content-type"] == STREAM["content-type"].encode() else orjson.loads(told)
        assert message["id"] == 1
        assert message["result"]["isError"]
        (made,) = at.gate.ledger.outcomes()
        assert made["code"] == "target_failed"


async def test_answers_and_events_have_a_largest_size() -> None:
    async with front((200, JSON, answer("x" * 5000)), largest_answer=4000) as at:
        _, _, told = await at.say(request())
        assert orjson.loads(told)["result"]["isError"]
    for stream in (event(answer("x" * 5000)), b"data: " + b"x" * 5000):
        async with front((200, STREAM, stream), largest_event=4000) as at:
            _, _, told = await at.say(request())
            assert said(told)[-1]["result"]["isError"]
            assert len(told) < 2000


async def test_a_key_that_a_server_repeats_is_not_told() -> None:
    key = "the-key-of-the-server"
    for kind, body in ((JSON, answer(key)), (STREAM, event(answer(key)))):
        async with front((200, kind, body), key=key) as at:
            _, _, told = await at.say(request())
            assert key.encode() not in told
            assert at.server.asked[0].headers["authorization"] == f"Bearer {key}"


async def test_the_agents_own_key_and_cookies_stay_here() -> None:
    async with front() as at:
        await at.say(request(), [*at.headers(), "cookie: a=b", "x-forwarded-for: 1.2.3.4"])
        (asked,) = at.server.asked
        assert AGENT_KEY not in str(asked.headers)
        assert "cookie" not in asked.headers
        assert "x-forwarded-for" not in asked.headers
        assert asked.headers["host"] != "localhost"


async def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    async def broken(say: Say) -> None:
        await say(event(b'{"jsonrpc":"2.0","method":"notifications/progress"}'))
        raise ConnectionResetError

    async with front((200, STREAM, broken)) as at:
        _, _, told = await at.say(request())
        assert said(told)[-1]["result"]["isError"]


async def test_a_stream_that_can_be_resumed_ends_without_one() -> None:
    stream = event(b'{"jsonrpc":"2.0","method":"notifications/progress"}', b"id: 1\n")
    async with front((200, STREAM, stream)) as at:
        _, _, told = await at.say(request())
        assert told == stream
        assert at.gate.ledger.outcomes()[0]["code"] == "ok"


# Clients that leave


async def test_in_the_legacy_era_a_client_that_leaves_cancels_nothing() -> None:
    goes_on = asyncio.Event()

    async def slowly(say: Say) -> None:
        await say(event(b'{"jsonrpc":"2.0","method":"notifications/progress"}'))
        await goes_on.wait()
        await say(event(answer()))

    async with front((200, STREAM, slowly)) as at:
        async with connected(at.gate.port) as client:
            await client.say(post("/mcp/up", request(), *at.headers()).replace(b"host: gateway", b"host: localhost"))
            await client.reader.readuntil(b"progress")
            client.hang_up()
        await asyncio.sleep(0.1)
        assert not at.server.left.is_set()
        goes_on.set()
        made = await at.gate.ledger.outcome()
        assert (made["code"], made["target_status"]) == ("client_gone", 200)


async def test_in_the_modern_era_it_cancels_its_call() -> None:
    async def forever(say: Say) -> None:
        await say(event(b'{"jsonrpc":"2.0","method":"notifications/progress"}'))
        await asyncio.Event().wait()

    async with front((200, STREAM, forever)) as at:
        async with connected(at.gate.port) as client:
            message = post("/mcp/up", request(modern=True), *at.headers(modern=True))
            await client.say(message.replace(b"host: gateway", b"host: localhost"))
            await client.reader.readuntil(b"progress")
            client.hang_up()
        await asyncio.wait_for(at.server.left.wait(), 10)
        assert (await at.gate.ledger.outcome())["code"] == "client_gone"


@pytest.mark.parametrize("modern", [False, True])
async def test_who_has_the_answer_may_leave(modern: bool) -> None:
    """Stock clients do, before the server has ended its stream."""

    async def answering(say: Say) -> None:
        await say(event(answer()))
        await asyncio.Event().wait()

    async with front((200, STREAM, answering)) as at:
        async with connected(at.gate.port) as client:
            message = post("/mcp/up", request(modern=modern), *at.headers(modern=modern))
            await client.say(message.replace(b"host: gateway", b"host: localhost"))
            await client.reader.readuntil(b"done")
            client.hang_up()
        assert (await at.gate.ledger.outcome())["code"] == "ok"


async def test_who_comes_back_for_a_stream_takes_the_place_of_the_one_that_was_left() -> None:
    async def forever(say: Say) -> None:
        await say(event(b'{"jsonrpc":"2.0","method":"notifications/progress"}', b"id: 1\n"))
        await asyncio.Event().wait()

    rest = (200, STREAM, event(answer(), b"id: 2\n"))
    async with front((200, STREAM, forever), rest) as at:
        async with connected(at.gate.port) as client:
            await client.say(post("/mcp/up", request(), *at.headers()).replace(b"host: gateway", b"host: localhost"))
            await client.reader.readuntil(b"progress")
            client.hang_up()
        await asyncio.sleep(0.1)
        status, _, body = await at.verb("GET", f"mcp-session-id: {at.session()}", "last-event-id: 1")
        assert (status, said(body)) == (200, [orjson.loads(answer())])
        assert at.server.asked[1].headers["last-event-id"] == "1"
        await asyncio.wait_for(at.server.left.wait(), 10)


# Servers that ask


QUESTION = b'{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":{"messages":[],"maxTokens":9}}'


async def test_a_question_in_a_servers_own_stream_is_decided_on_too() -> None:
    for script, passes in ((ALLOWED, True), (DENIED, False)):
        streaming = (200, STREAM, event(QUESTION, b"id: 4\n"))
        async with front(streaming, (202, {}, b""), script=script) as at:
            _, _, body = await at.verb("GET", f"mcp-session-id: {at.session()}")
            assert (body == event(QUESTION, b"id: 4\n")) is passes
            told = [each.message for each in at.server.asked[1:]]
            if passes:
                assert told == []
            else:
                assert told[0]["id"] == "q"
                assert "Nobody may ask that." in told[0]["error"]["message"]
                assert at.server.asked[1].headers["mcp-session-id"] == "s-1"
            (question,) = [each for each in at.gate.ledger.outcomes() if each["operation"] == "sampling/createMessage"]
            assert question["decision"] == ("ALLOW" if passes else "DENY")


async def test_a_modern_server_does_not_ask_within_a_stream() -> None:
    async with front((200, STREAM, event(QUESTION) + event(answer()))) as at:
        _, _, told = await at.say(request(modern=True), modern=True)
        assert [each.get("method") for each in said(told)] == [None]
        assert said(told)[0]["result"]["isError"]


async def test_what_answers_a_question_goes_to_its_session_alone() -> None:
    async with front((202, {}, b"")) as at:
        body = b'{"jsonrpc":"2.0","id":"q","result":{}}'
        status, _, told = await at.say(body)
        assert (status, told) == (202, b"")
        assert at.server.asked[0].body == body
        assert at.server.asked[0].headers["mcp-session-id"] == "s-1"
        status, _, _ = await at.say(body, [f"authorization: Bearer {AGENT_KEY}"])
        assert status == 400


# Traces


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_trace_is_carried_in_the_message() -> None:
    async with front() as at:
        await at.say(request(), [*at.headers(), f"traceparent: {PARENT}", "tracestate: a=b"])
        (asked,) = at.server.asked
        assert asked.message["params"]["_meta"] == {"traceparent": PARENT, "tracestate": "a=b"}
        assert asked.headers["traceparent"] == PARENT


async def test_a_trace_in_the_message_is_the_calls() -> None:
    async with front() as at:
        await at.say(request(_meta={"traceparent": PARENT}))
        (asked,) = at.server.asked
        assert asked.body == request(_meta={"traceparent": PARENT})
        assert asked.headers["traceparent"] == PARENT
        (intent,) = [each for each in at.gate.ledger.records if each["record"] == "intent"]
        assert intent["trace_id"] == PARENT[3:35]


# What is no answer to what was asked


def judged(document: Mapping[str, Any]) -> Decision:
    return DENIED if document["call"].get("phase") == "result" else ALLOWED


SECRET = {"content": [{"type": "text", "text": "a secret"}]}


@pytest.mark.parametrize("kind", [JSON, STREAM])
@pytest.mark.parametrize("modern", [False, True])
async def test_an_answer_to_another_request_does_not_pass(modern: bool, kind: Mapping[str, str]) -> None:
    body = answer(SECRET, identity=5)
    async with front((200, kind, event(body) if kind is STREAM else body), script=judged, results="checked") as at:
        headers = at.headers(modern=modern, method="ping")
        _, _, told = await at.say(request("ping", modern=modern), headers)
        assert b"a secret" not in told
        assert b"cannot be understood" in told


async def test_no_answer_comes_with_what_is_none_to_a_notification() -> None:
    async with front((200, STREAM, event(answer(SECRET, identity=5))), script=judged, results="checked") as at:
        _, _, told = await at.say(orjson.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))
        assert b"a secret" not in told


@pytest.mark.parametrize("identity", [1, None, "server-error", 5])
async def test_an_error_with_a_status_is_checked_as_any_answer_and_is_the_calls_own(identity: Any) -> None:
    body = orjson.dumps({"jsonrpc": "2.0", "id": identity, "error": {"code": -32603, "message": "a secret"}})
    async with front((400, JSON, body)) as at:
        assert error((await at.say(request()))[2]) == (-32603, 1)
        assert (await at.gate.ledger.outcome())["tool_error"]
    async with front((400, JSON, body), script=judged, results="checked") as at:
        assert b"a secret" not in (await at.say(request()))[2]


async def test_a_result_does_not_pass_beside_an_error() -> None:
    async with front((400, JSON, answer(SECRET, error={})), script=judged, results="checked") as at:
        assert b"a secret" not in (await at.say(request()))[2]


@pytest.mark.parametrize("method", ["tasks/get", "tasks/list", "tasks/result"])
async def test_what_came_of_a_servers_task_is_no_way_around_the_check_of_results(method: str) -> None:
    async with front((200, JSON, answer(SECRET)), script=judged, results="checked", server_tasks="carried") as at:
        _, _, told = await at.say(request(method, taskId="t-1"))
        assert error(told) == (403, 1)
        assert b"a secret" not in told


@pytest.mark.parametrize("method", ["tasks/get", "tasks/list", "tasks/result", "tasks/cancel"])
async def test_tasks_of_a_server_are_not_carried_unless_the_operator_says_so(method: str) -> None:
    async with front((200, JSON, answer(SECRET))) as at:
        _, _, told = await at.say(request(method, taskId="t-1"))
        assert "not carried" in orjson.loads(told)["error"]["message"]
        assert b"a secret" not in told


async def test_a_task_of_a_server_is_no_answer_unless_the_operator_says_so() -> None:
    begun = answer({"resultType": "task", "taskId": "t-1", "status": "working"})
    async with front((200, JSON, begun)) as at:
        assert b"t-1" not in (await at.say(request()))[2]
    async with front((200, JSON, begun), server_tasks="carried") as at:
        assert b"t-1" in (await at.say(request()))[2]


@pytest.mark.parametrize("method", ["Sampling/CreateMessage", "sampling/createMessage ", "elicitation//create"])
async def test_what_is_almost_a_question_does_not_pass(method: str) -> None:
    asks = orjson.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": {}})
    async with front((200, STREAM, event(asks) + event(answer()))) as at:
        assert method.encode() not in (await at.say(request()))[2]
    asked = answer({"resultType": "input_required", "inputRequests": {"a": {"method": method, "params": {}}}})
    async with front((200, JSON, asked)) as at:
        assert method.encode() not in (await at.say(request(modern=True), modern=True))[2]


async def test_what_a_servers_task_asks_for_is_decided_on_too() -> None:
    asks = {"a": {"method": "elicitation/create", "params": {"message": "Your key?"}}}
    told = answer({"resultType": "complete", "status": "input_required", "inputRequests": asks})
    async with front((200, JSON, told), script=DENIED, server_tasks="carried") as at:
        headers = at.headers(modern=True, method="tasks/get", named="t-1")
        _, _, body = await at.say(request("tasks/get", modern=True, taskId="t-1"), headers, modern=True)
        assert b"Your key?" not in body
        assert error(body) == (403, 1)
