"""A plain HTTP tool as an MCP server: the stock client calls its operations, decided once and by their names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from policies.decision import Decision, Effect
from policies.obligations import read as obligations
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import Gate, gate
from tests.support.http_tools import HttpTool, http_tool, says

DOCUMENT = """
openapi: 3.1.0
info: {title: crm, version: "1"}
paths:
  /tickets/{id}:
    parameters: [{name: id, in: path, required: true, schema: {type: string}}]
    get: {operationId: getTicket, description: Looks one up.}
    delete: {operationId: deleteTicket}
    patch:
      operationId: changeTicket
      requestBody:
        required: true
        content: {application/json: {schema: {type: object, required: [title], properties: {title: {type: string}}}}}
"""
Mode = Literal["auto", "legacy"]
MODES: tuple[Mode, ...] = ("auto", "legacy")


def script(document: Any) -> Decision:
    said = document["call"]
    name = said["arguments"].get("name") if said["operation"] == "list" else said["operation"]
    return replace(ALLOWED, effect=Effect.DENY, explanation="Not that.") if name == "deleteTicket" else ALLOWED


@asynccontextmanager
async def stage(
    folder: Path, mode: Mode, answer: bytes = b"", decide: Callable[[Any], Decision] = script, **settings: Any
) -> AsyncIterator[tuple[Client, HttpTool, Gate]]:
    document = folder / "crm.yaml"
    document.write_text(DOCUMENT)
    async with http_tool(says(answer) if answer else None) as tool:
        crm = {
            "name": "crm",
            "kind": "http",
            "url": f"{tool.url}/api",
            "openapi": document,
            "offer_as_mcp": True,
            "key": "crms-own-secret",
            "paths": ["/tickets/*"],
            **settings,
        }
        async with gate(tools=[crm], script=decide) as built:
            async with httpx2.AsyncClient(headers={"authorization": f"Bearer {AGENT_KEY}"}) as http:
                transport = streamable_http_client(f"http://127.0.0.1:{built.port}/mcp/crm", http_client=http)
                async with Client(transport, mode=mode) as client:
                    yield client, tool, built
            for each in built.pipeline.assembly.toolbox:
                await each.close()


@pytest.mark.parametrize("mode", MODES)
async def test_operations_are_listed_and_called_by_their_names(mode: Mode, tmp_path: Path) -> None:
    async with stage(tmp_path, mode) as (client, tool, built):
        listed = (await client.list_tools()).tools
        assert sorted(each.name for each in listed) == ["changeTicket", "getTicket"]
        result = await client.call_tool("changeTicket", {"id": "a b", "title": "hi"})
        assert result.structured_content == {
            "method": "PATCH",
            "target": "/api/tickets/a%20b",
            "body": '{"title":"hi"}',
        }
        assert tool.came[0].headers["authorization"] == "Bearer crms-own-secret"
        asked = [each["call"] for each in built.engine.documents if each["call"].get("phase") is None][-1]
        assert (asked["protocol"], asked["target"], asked["operation"]) == ("mcp", "crm", "changeTicket")
        assert asked["arguments"] == {"id": "a b", "title": "hi"}
        made = [record for record in built.ledger.outcomes() if record.get("operation") == "changeTicket"]
        assert [(record["code"], record["protocol"]) for record in made] == [("ok", "mcp")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("deleteTicket", {"id": "1"}, "Not that."),
        ("changeTicket", {"id": "1"}, "title"),
        ("getTicket", {"id": "../admin"}, "slash"),
        ("getTicket", {"id": ".."}, "dots"),
        ("getTicket", {"id": "a%2fb"}, "encoded twice"),
    ],
)
async def test_what_may_not_be_or_leads_out_never_reaches_the_tool(
    mode: Mode, name: str, arguments: dict[str, str], words: str, tmp_path: Path
) -> None:
    async with stage(tmp_path, mode) as (client, tool, _):
        result = await client.call_tool(name, arguments)
        assert result.is_error
        assert words in str(result.content)
        assert tool.came == []


async def test_an_error_of_the_tool_is_one_for_the_model_and_tells_no_secret(tmp_path: Path) -> None:
    said = b"no ticket for crms-own-secret"
    answer = b"HTTP/1.1 404 No\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(said), said)
    async with stage(tmp_path, "auto", answer) as (client, _, built):
        result = await client.call_tool("getTicket", {"id": "1"})
        assert result.is_error
        assert "HTTP 404" in str(result.content)
        assert "crms-own-secret" not in str(result.content)
        assert any(record.get("tool_error") for record in built.ledger.outcomes())


async def test_a_redaction_that_is_written_for_the_other_door_withholds_at_this_one(tmp_path: Path) -> None:
    said = b'{"card":"4111 1111"}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(said), said)
    path = "/result/body/card"

    def redacting(document: Any) -> Decision:
        if document["call"].get("phase") != "result":
            return script(document)
        return replace(ALLOWED, obligations=obligations({"redact": [path]}))

    async with stage(tmp_path, "auto", answer, decide=redacting, results="checked") as (client, _, built):
        agent = {"authorization": f"Bearer {AGENT_KEY}"}
        async with httpx2.AsyncClient(headers=agent) as http:
            plain = await http.get(f"http://127.0.0.1:{built.port}/tools/crm/tickets/1")
        assert plain.json() == {"card": "***"}
        result = await client.call_tool("getTicket", {"id": "1"})
        assert "withheld" in str(result.content)
        assert "4111" not in str(result)
        path = "/result/structuredContent/card"
        result = await client.call_tool("getTicket", {"id": "1"})
        assert result.structured_content == {"card": "***"}
        assert "4111" not in str(result)
