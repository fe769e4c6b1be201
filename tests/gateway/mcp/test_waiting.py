"""How held calls of MCP wait, what their clients hear meanwhile, and what identical ones are answered with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from mcp.server import MCPServer

from adapters.mcp import held, messages
from gateway.holding import Holds
from gateway.mcp import waiting
from gateway.mcp.server import McpServer
from gateway.mcp.sessions import Seals
from policies.approval_store import MOST_ANSWER
from policies.approvals import State
from tests.support.bank import LEADS, LINK, TASKS, staged, text
from tests.support.console import open_offices, visiting
from tests.support.exchanges import exchange, settings
from tests.support.mcp_servers import serving
from tests.support.register import Register

BOTH = "application/json, text/event-stream"
LONG: dict[str, Any] = {"hold_for": "30s", "hold_streams_for": "30s"}


def called(
    abilities: Mapping[str, Any] | None = None, *, token: object = None, version: str = messages.MODERN, **params: Any
) -> messages.McpCall:
    meta: dict[str, Any] = {} if token is None else {"progressToken": token}
    if version == messages.MODERN:
        meta["io.modelcontextprotocol/protocolVersion"] = version
        meta["io.modelcontextprotocol/clientCapabilities"] = abilities or {}
    said = {"name": "pay", "arguments": {"amount": 7}, "_meta": meta, **params}
    body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": said})
    call = messages.read("bank", body, version, free=True)
    if version != messages.MODERN:
        call.abilities = abilities or {}
    return call


# For how long


@pytest.mark.parametrize(
    ("call", "headers", "link", "seconds", "every"),
    [
        (called(), {"accept": BOTH}, LINK, 50, 2.5),
        (called(version="2025-06-18"), {"accept": BOTH}, LINK, 50, 2.5),
        (called(version="2025-11-25"), {"accept": "*/*"}, LINK, 50, 2.5),
        (called(), {"accept": "application/json"}, LINK, 50, None),
        (called(), {}, LINK, 50, None),
        (called(token=1), {"accept": "application/json"}, LINK, 50, None),
        (called(token=1), {"accept": BOTH}, LINK, 1800, 2.5),
        (called(token="a", version="2025-06-18"), {"accept": BOTH}, LINK, 1800, 2.5),
        (called(token=1), {"accept": BOTH, "prefer": "wait=7"}, LINK, 7, 2.5),
        (called(token=1), {"accept": BOTH, "prefer": "respond-async"}, LINK, 0, None),
        (called(LEADS), {"accept": BOTH}, LINK, 0, None),
        (called(LEADS), {"accept": BOTH}, None, 50, 2.5),
        (called({"elicitation": {"form": {}}}), {"accept": BOTH}, LINK, 50, 2.5),
        (called({"elicitation": {"url": True}}), {"accept": BOTH}, LINK, 50, 2.5),
        (called(LEADS, version="2025-11-25"), {"accept": BOTH}, LINK, 50, 2.5),
        (called(TASKS), {"accept": BOTH}, None, 0, None),
        (called(TASKS, version="2025-11-25"), {"accept": BOTH}, None, 50, 2.5),
        (called({"extensions": []}), {"accept": BOTH}, None, 50, 2.5),
    ],
)
async def test_a_call_waits_as_long_as_its_client_can_bear(
    call: messages.McpCall, headers: Mapping[str, str], link: str | None, seconds: float, every: float | None
) -> None:
    x = exchange()
    x.call, x.began = call, time.monotonic()
    x.headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    holds = Holds(Register(), lambda *_: None)
    holds.under(settings(approvals={"link": link} if link else {}))
    found = await waiting.patience(x, holds)
    assert found.until - x.began == pytest.approx(seconds, abs=0.5)
    assert found.every == every


async def test_no_setting_makes_a_client_without_news_wait_beyond_a_minute() -> None:
    x = exchange()
    x.call, x.began, x.headers = called(), time.monotonic(), [(b"accept", BOTH.encode())]
    holds = Holds(Register(), lambda *_: None)
    holds.under(settings(approvals={"hold_for": "10m"}))
    assert (await waiting.patience(x, holds)).until - x.began == pytest.approx(55, abs=0.5)


# The stream that is kept open


async def test_an_answer_in_one_piece_is_an_event_of_the_stream_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "COMMENT_EVERY", 0.05)
    async with staged(**LONG) as stage:
        asking = asyncio.create_task(stage.say("pay", {"amount": 7}))
        await stage.decide(True, 0.12)
        status, headers, body = await asking
        assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
        assert headers[b"x-weighbridge-approval"].decode() == stage.id
        *comments, last = body.split(b"\n\n")[:-1]
        assert set(comments) == {b": held %s" % stage.id.encode()}
        assert 1 <= len(comments) <= 3
        first, second = last.split(b"\n")
        assert first == b"event: message"
        message = orjson.loads(second.removeprefix(b"data: "))
        assert (message["id"], message["result"]["resultType"]) == (1, "complete")
        assert message["result"]["content"][0]["text"] == "paid 7, payment 1"


async def test_a_no_is_told_in_the_stream_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "COMMENT_EVERY", 0.05)
    async with staged(**LONG) as stage:
        asking = asyncio.create_task(stage.say("pay", {"amount": 7}))
        await stage.decide(False, 0.12)
        _, _, body = await asking
        message = orjson.loads(body.split(b"\n\n")[-2].split(b"data: ")[1])
        assert (message["id"], message["result"]["isError"]) == (1, True)
        assert stage.bank.paid == []


async def test_an_error_of_the_server_is_told_in_the_stream_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "COMMENT_EVERY", 0.05)
    async with staged(**LONG) as stage:
        asking = asyncio.create_task(stage.say("fail", {"amount": 7}))
        await stage.decide(True, 0.12)
        _, _, body = await asking
        message = orjson.loads(body.split(b"\n\n")[-2].split(b"data: ")[1])
        assert message["error"] == {"code": -31000, "message": "The vault is shut."}


async def test_an_answer_that_no_client_reads_as_an_event_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "COMMENT_EVERY", 0.05)
    monkeypatch.setattr(held, "MOST_EVENT", 60)
    async with staged(**LONG) as stage:
        asking = asyncio.create_task(stage.say("pay", {"amount": 7}))
        await stage.decide(True, 0.12)
        _, _, body = await asking
        message = orjson.loads(body.split(b"\n\n")[-2].split(b"data: ")[1])
        assert message["result"]["isError"] is True
        assert "too long for the stream" in message["result"]["content"][0]["text"]
        await stage.over()
        _, _, again = await stage.say("pay", {"amount": 7})
        assert again["result"]["content"][0]["text"] == "paid 7, payment 1", "in one piece it can be had"


async def test_a_client_that_wants_no_waiting_is_told_at_once() -> None:
    async with staged(**LONG) as stage:
        status, headers, message = await stage.say("pay", {"amount": 7}, {}, "prefer: respond-async")
        assert (status, headers[b"preference-applied"]) == (200, b"respond-async")
        assert headers[b"location"].decode() == f"/approvals/{stage.id}"
        assert message["result"]["isError"] is True


# Clients that lead their user to the page


def state_of(message: Any) -> str:
    result = message["result"]
    assert result["resultType"] == "input_required"
    state: str = result["requestState"]
    return state


WENT = {"approval": {"action": "accept"}}


async def test_what_a_client_brings_back_goes_on_where_its_call_was() -> None:
    async with staged(LINK, **LONG) as stage:
        _, _, message = await stage.say("pay", {"amount": 7}, LEADS)
        (question,) = message["result"]["inputRequests"].values()
        assert question["method"] == "elicitation/create"
        assert question["params"]["url"] == f"{LINK}/approvals/{stage.id}"
        assert question["params"]["mode"] == "url"
        await stage.decide(True)
        state = state_of(message)
        assert stage.id not in state
        _, _, message = await stage.say("pay", {"amount": 7}, LEADS, requestState=state, inputResponses=WENT)
        assert message["result"]["content"][0]["text"] == "paid 7, payment 1"
        assert (stage.bank.paid, len(stage.store.kept)) == ([7], 1)
        outcomes = [each["code"] for each in stage.gate.ledger.outcomes() if each["operation"] == "pay"]
        assert outcomes == ["approval_pending", "ok"]


async def test_another_gateway_reads_what_this_one_has_asked() -> None:
    async with staged(LINK, **LONG) as stage, stage.beside() as other:
        _, _, message = await stage.say("pay", {"amount": 7}, LEADS)
        await stage.decide(True)
        _, _, message = await other.say(
            "pay", {"amount": 7}, LEADS, requestState=state_of(message), inputResponses=WENT
        )
        assert message["result"]["content"][0]["text"] == "paid 7, payment 1"


async def test_what_was_asked_for_one_call_is_refused_for_another() -> None:
    others = {"name": "other-bot", "tenant": "acme", "key": "other-bots-own-key"}
    async with staged(LINK, agents=[others], **LONG) as stage:
        _, _, message = await stage.say("pay", {"amount": 7}, LEADS)
        state = state_of(message)
        again = {"requestState": state, "inputResponses": WENT}
        status, _, message = await stage.say("pay", {"amount": 8}, LEADS, **again)
        assert (status, message["error"]["code"]) == (400, -32602)
        assert "belongs to another call" in message["error"]["message"]
        stage.key = "other-bots-own-key"
        status, _, message = await stage.say("pay", {"amount": 7}, LEADS, **again)
        assert (status, message["error"]["code"]) == (400, -32602)
        assert (len(stage.store.kept), stage.bank.paid) == (1, [])


async def test_what_was_asked_for_one_call_is_refused_with_one_that_nobody_has_to_allow() -> None:
    async with staged(LINK) as stage:
        _, _, message = await stage.say("pay", {"amount": 7}, LEADS)
        headers = ("accept: application/json, text/event-stream", "mcp-name: memo://a")
        again = {"uri": "memo://a", "requestState": state_of(message), "inputResponses": WENT}
        status, _, message = await stage.say("resources/read", None, LEADS, *headers, **again)
        assert (status, message["error"]["code"]) == (400, -32602)
        assert "belongs to another call" in message["error"]["message"]


async def test_what_was_asked_too_long_ago_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(LINK, decide_within="10s") as stage:
        _, _, message = await stage.say("pay", {"amount": 7}, LEADS)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 20)
        status, _, message = await stage.say(
            "pay", {"amount": 7}, LEADS, requestState=state_of(message), inputResponses=WENT
        )
        assert (status, message["error"]["code"]) == (400, -32602)
        assert "too old" in message["error"]["message"]


async def test_what_was_not_asked_here_is_the_servers_and_is_part_of_what_people_approve() -> None:
    async with staged(LINK, hold_for="0.05s") as stage:
        _, _, message = await stage.say("pay", {"amount": 7}, LEADS)
        forged = state_of(message)[:-2] + "AA"
        await stage.say("pay", {"amount": 7}, {}, requestState=forged, inputResponses=WENT)
        first, second = stage.store.kept.values()
        assert first.call.headers == ()
        assert second.call.headers == (
            (b"request-state", orjson.dumps(forged)),
            (b"input-responses", orjson.dumps(WENT)),
        )
        assert first.binding != second.binding


async def test_a_server_that_asks_something_itself_is_answered_beside_the_gateways_own_question() -> None:
    """Its question comes after a first approval, and what its client's user answers is a call that is approved anew."""
    async with staged(LINK, **LONG) as stage, stage.client("auto", leads=True) as client:
        asking = asyncio.create_task(client.call_tool("ask", {"amount": 7}))
        await stage.decide(True)
        async with asyncio.timeout(10):
            while len(stage.store.kept) < 2:
                await asyncio.sleep(0.01)
        first, second = stage.store.kept.values()
        assert (first.state, second.state) == (State.DONE, State.PENDING)
        assert [name for name, _ in second.call.headers] == [b"request-state", b"input-responses"]
        assert second.call.headers[1][1] == b'{"sure":{"action":"accept"}}'
        await stage.gate.pipeline.holds.vote(second.id, "fay", ["finance"], True)
        assert text(await asyncio.wait_for(asking, 10)) == "paid 7 after asked, payment 1"
        assert [each.mode for each in stage.led] == ["url", "form", "url"]
        assert stage.bank.paid == [7]


# The same again


@pytest.mark.parametrize(("accept", "kind"), [(BOTH, "application/json"), ("text/event-stream", "text/event-stream")])
async def test_a_repetition_gets_the_result_under_its_own_id_in_the_form_that_it_takes(accept: str, kind: str) -> None:
    async with staged(hold_for="0.05s") as stage:
        await stage.say("pay", {"amount": 7})
        await stage.decide(True)
        _, _, first = await stage.say("pay", {"amount": 7})
        await stage.over()
        _, headers, again = await stage.say("pay", {"amount": 7}, {}, f"accept: {accept}")
        assert headers[b"content-type"].decode() == kind
        if isinstance(again, bytes):
            again = orjson.loads(again.removeprefix(b"event: message\ndata: "))
        about = {**first["result"].get("_meta", {}), "weighbridge/repeated": {"approval": stage.id}}
        assert again == {**first, "id": stage.asked, "result": {**first["result"], "_meta": about}}
        assert stage.bank.paid == [7]
        assert stage.gate.ledger.outcomes()[-1]["repeated"] is True


async def test_a_repetition_after_the_approvals_time_asks_people_anew() -> None:
    async with staged(hold_for="0.05s", use_within="0.5s") as stage:
        await stage.say("pay", {"amount": 7})
        await stage.decide(True)
        await stage.say("pay", {"amount": 7})
        await stage.over()
        await asyncio.sleep(0.55)
        _, _, message = await stage.say("pay", {"amount": 7})
        assert message["result"]["_meta"]["weighbridge/refusal"]["code"] == "approval_pending"
        assert len(stage.store.kept) == 2


async def test_sessions_of_the_protocol_make_no_difference_and_those_that_agents_name_do() -> None:
    async with staged(hold_for="0.05s") as stage:
        for name in ("one", "two", "one"):
            headers = (f"accept: {BOTH}", f"x-weighbridge-session: {name}")
            await stage.say("pay", {"amount": 7}, {}, *headers)
        assert [each.call.session for each in stage.store.kept.values()] == ["one", "two"]
        async with stage.client("legacy") as client:
            await client.call_tool("pay", {"amount": 7})
        async with stage.client("legacy") as client:
            await client.call_tool("pay", {"amount": 7})
        assert [each.call.session for each in stage.store.kept.values()] == ["one", "two", None]


async def test_what_a_person_changes_is_what_the_call_that_waits_runs_with() -> None:
    async with staged(**LONG) as stage:
        asking = asyncio.create_task(stage.say("pay", {"amount": 7}))
        await stage.held()
        before = stage.id
        pipeline = stage.gate.pipeline
        after = await pipeline.holds.change(before, "fay", ["finance"], b'{"amount":3}', pipeline.reconsider, "less")
        assert after.call.headers == ()
        _, headers, message = await asking
        assert message["result"]["content"][0]["text"] == "paid 3, payment 1"
        assert headers[b"x-weighbridge-changed"].decode() == before
        assert stage.bank.paid == [3]


# What is kept of an answer


def copied(*pieces: bytes, kind: bytes = b"application/json", whole: bool = True) -> Any:
    copy = waiting.Copy(called())
    copy.begin(200, [(b"content-type", kind)])
    for piece in pieces:
        copy.add(piece)
    copy.whole = whole
    return copy.answer.body if copy.answer is not None else None


EVENTS = b"text/event-stream; charset=utf-8"
RESPONSE = b'{"jsonrpc":"2.0","id":1,"result":{"content":[], "n":1.0}}'


@pytest.mark.parametrize(
    ("pieces", "kind", "kept"),
    [
        ([RESPONSE], b"application/json", b'{"result":{"content":[], "n":1.0}}'),
        ([RESPONSE[:9], RESPONSE[9:]], b"application/json", b'{"result":{"content":[], "n":1.0}}'),
        (
            [b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}'],
            b"",
            b'{"error":{"code":-1,"message":"no"}}',
        ),
        ([b'{"jsonrpc":"2.0","id":2,"result":{}}'], b"application/json", None),
        ([b'{"jsonrpc":"2.0","id":"1","result":{}}'], b"application/json", None),
        ([b"<html>"], b"text/html", None),
        ([b"[]"], b"application/json", None),
        ([b": hi\n\n", b"data: %b\n\n" % RESPONSE], EVENTS, b'{"result":{"content":[], "n":1.0}}'),
        (
            [b'data: {"method":"notifications/progress","params":{"result":1}}\n\ndata: ', RESPONSE, b"\n\n"],
            EVENTS,
            b'{"result":{"content":[], "n":1.0}}',
        ),
        ([b'data: {"id":1,"method":"ping","result":1}\n\n'], EVENTS, None),
        ([b"data: %b" % RESPONSE], EVENTS, None),
        ([b"x" * (MOST_ANSWER + 1)], b"application/json", None),
    ],
)
def test_of_an_answer_the_result_is_kept_and_not_its_envelope(
    pieces: list[bytes], kind: bytes, kept: bytes | None
) -> None:
    assert copied(*pieces, kind=kind) == kept


def test_of_an_answer_that_breaks_off_nothing_is_kept() -> None:
    assert copied(RESPONSE[:20], whole=False) is None
    assert copied(b"data: %b\n" % RESPONSE, kind=EVENTS, whole=False) is None


def test_what_is_sealed_for_one_purpose_opens_for_no_other() -> None:
    seals = Seals(bytes(32))
    sealed = seals.sealed_text(b"text", b"held call")
    assert seals.text(sealed, b"held call") == b"text"
    assert seals.text(sealed, b"session") is None
    assert seals.opened(sealed) is None
    assert Seals(b"\x01" * 32).text(sealed, b"held call") is None
    for broken in ("", "a", "é", sealed[:-1], sealed[1:], sealed.swapcase()):
        assert seals.text(broken, b"held call") is None


async def test_the_page_shows_a_call_as_its_server_describes_the_tool_with_nothing_hidden(tmp_path: Path) -> None:
    server = MCPServer("bank")

    @server.tool(title="<b>Pay\u200b</b>")
    def pay(amount: int) -> str:
        """Pays so much."""
        return str(amount)

    async with serving(server) as url:
        tools = [{"name": "bank", "kind": "mcp", "url": url}]
        async with open_offices(tmp_path, tools=tools) as offices, visiting(offices, "dana") as dana:
            tool = offices.app.pipeline.assembly.toolbox.find("mcp", "bank")
            assert isinstance(tool, McpServer)
            found = (await tool.catalogue.tools())["pay"].definition
            assert found is not None
            call = {"kind": "tool", "protocol": "mcp", "target": "bank", "operation": "pay", "path": "/mcp/bank"}
            mine = await offices.held(b'{"amount":7}', call={**call, "headers": (), "definition": found.digest})
            page = (await dana.see(f"/console/approvals/{mine.id}")).text
            assert "&lt;b&gt;Pay\\u{200b}&lt;/b&gt;" in page
            assert "Pays so much." in page
            assert "<dt>Title, by its server</dt>" in page
            other = await offices.held(b'{"amount":8}', call={**call, "headers": (), "definition": "another"})
            assert "by its server" not in (await dana.see(f"/console/approvals/{other.id}")).text
