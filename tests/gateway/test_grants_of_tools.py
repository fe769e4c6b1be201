"""Grants that people write by hand for tools, over the admin API, on a gateway that serves calls meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.held_calls import KEY, Held, holding, written
from tests.support.http_tools import HttpTool, http_tool
from tests.support.scripted_mcp import ScriptedServer, scripted, tool
from tests.support.stores import in_memory

POLICY = """package weighbridge

decision := {
    "decision": "NEEDS_APPROVAL",
    "required_approvals": ["finance"],
    "explanation": "Held. Repeat the identical call after approval.",
}
"""
DOCUMENT = """
openapi: 3.1.0
info: {title: crm, version: "1"}
paths:
  /tickets/{id}/refund:
    parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
    post:
      operationId: refund
      parameters: [{name: note, in: query, schema: {type: string}}]
      requestBody:
        content: {application/json: {schema: {type: object, properties: {amount: {type: integer}}}}}
"""
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
PUBLISH = tool("publish", "Publishes it.")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer(PUBLISH, tool("broken", inputSchema=7))


@asynccontextmanager
async def started(folder: Path, server: ScriptedServer, **settings: Any) -> AsyncIterator[tuple[Held, HttpTool]]:
    async with scripted(server) as url, http_tool() as crm:
        (folder / "crm.yaml").write_text(DOCUMENT)
        tools = [
            {"name": "notes", "kind": "mcp", "url": url, **settings},
            {"name": "crm", "kind": "http", "url": crm.url, "openapi": "crm.yaml", "offer_as_mcp": True},
            {"name": "web", "kind": "http", "url": crm.url},
        ]
        path = written(folder, "http://127.0.0.1:9", tools=tools, approvals={"hold_for": "0.05s"})
        (folder / "main.rego").write_text(POLICY)
        async with holding(path) as gateway:
            yield gateway, crm


@pytest.fixture
async def both(folder: Path, server: ScriptedServer) -> AsyncIterator[tuple[Held, HttpTool]]:
    async with started(folder, server) as running:
        yield running


async def called(gateway: Held, server: str, name: str, **arguments: Any) -> dict[str, Any]:
    """The result of a call that a client of MCP makes."""
    params = {"name": name, "arguments": arguments, "_meta": META}
    answer = await gateway.agent.post(
        f"/mcp/{server}",
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params},
        headers={
            "authorization": f"Bearer {KEY}",
            "accept": "application/json",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/call",
            "mcp-name": name,
        },
    )
    result: dict[str, Any] = answer.json()["result"]
    return result


async def runs(gateway: Held, server: str, name: str, **arguments: Any) -> bool:
    return not (await called(gateway, server, name, **arguments)).get("isError", False)


async def refunded(gateway: Held, ticket: int, amount: int, query: str = "") -> Any:
    headers = {"authorization": f"Bearer {KEY}", "prefer": "respond-async"}
    path = f"/tools/crm/tickets/{ticket}/refund{query}"
    return await gateway.agent.post(path, json={"amount": amount}, headers=headers)


async def allowed(gateway: Held, target: str, operation: str, status: int = 200, **more: Any) -> Any:
    """A grant of finn's, which the gateway goes by."""
    facts = {"agent": "support-bot", "target": target, "operation": operation, "expires_in": 600, "max_uses": 9}
    before = len(gateway.app.holds._grants)
    made = await gateway.post("/grants", "finn", status, **{**facts, "any_arguments": "where" not in more, **more})
    async with asyncio.timeout(10):
        while status == 200 and len(gateway.app.holds._grants) == before:
            await asyncio.sleep(0.001)
    return made


@pytest.mark.parametrize("settings", [{}, {"definitions": "any", "check_arguments": "off"}])
async def test_a_grant_that_is_written_by_hand_is_good_for_calls_of_mcp(
    folder: Path, server: ScriptedServer, settings: dict[str, Any]
) -> None:
    async with started(folder, server, **settings) as (gateway, _):
        made = await allowed(gateway, "notes", "publish", where={"/title": "w1"})
        assert await runs(gateway, "notes", "publish", title="w1")
        assert await runs(gateway, "all", "notes__publish", title="w1")
        assert not await runs(gateway, "notes", "publish", title="w2")
        assert (await gateway.get(f"/grants/{made['id']}"))["uses"] == 2


async def test_a_grant_is_for_the_definition_that_the_tool_had_when_it_was_made(
    both: tuple[Held, HttpTool], server: ScriptedServer
) -> None:
    gateway, _ = both
    made = await allowed(gateway, "notes", "publish")
    assert made["definition"] == (await gateway.get("/tools/notes/publish"))["definition"]
    assert await runs(gateway, "notes", "publish")
    server.tools[0] = {**PUBLISH, "description": "Publishes everything."}
    digest = (await gateway.get("/tools/notes/publish"))["definition"]
    assert "accept it first" in (await allowed(gateway, "notes", "publish", 409))["detail"]
    await gateway.post("/tools/notes/publish/accept", "dana", definition=digest)
    assert not await runs(gateway, "notes", "publish", title="again"), "nobody has allowed that one"
    await allowed(gateway, "notes", "publish")
    assert await runs(gateway, "notes", "publish", title="once more")


async def test_a_tool_that_is_offered_as_mcp_has_grants_for_each_way_that_says_which_one_it_means(
    both: tuple[Held, HttpTool],
) -> None:
    gateway, _ = both
    problem = await allowed(gateway, "crm", "refund", 400)
    assert problem["detail"] == "Calls of crm come by http and by mcp: say in `protocol` which of them you mean."
    await allowed(gateway, "crm", "refund", protocol="mcp", where={"/id": 1})
    assert await runs(gateway, "crm", "refund", id=1, amount=5)
    assert await runs(gateway, "all", "crm__refund", id=1, amount=5)
    assert not await runs(gateway, "crm", "refund", id=2, amount=5)
    assert (await refunded(gateway, 1, 5)).status_code == 202
    await allowed(gateway, "crm", "refund", protocol="http", where={"/id": 1})
    assert (await refunded(gateway, 1, 6)).status_code == 200


async def test_a_grant_that_would_never_be_used_is_refused(both: tuple[Held, HttpTool]) -> None:
    gateway, _ = both
    for target, operation, status, words in (
        ("notes", "publsh", 409, "The server notes has no tool 'publsh'."),
        ("notes", "broken", 409, "it has no input schema"),
        ("all", "notes__publish", 400, "There is no MCP server 'all'"),
        ("nots", "publish", 400, "There is no MCP server 'nots'"),
    ):
        assert words in (await allowed(gateway, target, operation, status, protocol="mcp"))["detail"]
    await allowed(gateway, "notes", "resources/read")


async def test_no_grant_is_made_of_a_tool_whose_definition_nobody_can_tell(
    both: tuple[Held, HttpTool], server: ScriptedServer
) -> None:
    gateway, _ = both
    server.raw = b"nothing"
    problem = await allowed(gateway, "notes", "publish", 503)
    assert problem["detail"] == "The tool server notes does not say which tools it has. No grant was made."


async def test_a_tool_that_is_free_of_charge_costs_nothing_and_fits_any_limit(both: tuple[Held, HttpTool]) -> None:
    gateway, _ = both
    await called(gateway, "notes", "publish")
    (held,) = (await gateway.get("/approvals"))["items"]
    assert held["estimated_cost_usd"] == 0
    await allowed(gateway, "notes", "publish", where={"/title": "w1"}, max_uses=None, max_cost_usd=1)
    assert await runs(gateway, "notes", "publish", title="w1")


async def test_a_refusal_says_once_how_to_come_back_and_where_to_ask(both: tuple[Held, HttpTool]) -> None:
    gateway, _ = both
    result = await called(gateway, "notes", "publish")
    said, held = result["content"][0]["text"], result["_meta"]["weighbridge/refusal"]["approval"]
    assert said.lower().count("repeat the identical call") == 1
    assert f"/approvals/{held}?wait=50" in said
    told = await gateway.agent.get(f"/approvals/{held}", headers={"authorization": f"Bearer {KEY}"})
    assert told.json()["state"] == "pending"


async def test_a_result_that_is_repeated_says_of_which_approval(both: tuple[Held, HttpTool]) -> None:
    gateway, _ = both
    held = (await called(gateway, "notes", "publish"))["_meta"]["weighbridge/refusal"]["approval"]
    await gateway.post(f"/approvals/{held}/approve", "finn")
    first = await called(gateway, "notes", "publish")
    assert "weighbridge/repeated" not in first.get("_meta", {})
    again = await called(gateway, "notes", "publish")
    assert again["content"] == first["content"]
    assert again["_meta"]["weighbridge/repeated"] == {"approval": held}


# What people are shown of a call of plain HTTP


async def asked_for(gateway: Held, answer: Any) -> Any:
    assert answer.status_code == 202, answer.text
    return await gateway.get(answer.headers["location"])


async def test_people_see_the_arguments_that_the_policy_saw(both: tuple[Held, HttpTool]) -> None:
    gateway, _ = both
    told = await asked_for(gateway, await refunded(gateway, 1, 120, "?note=late"))
    assert told["arguments"] == {"id": 1, "note": "late", "amount": 120}
    headers = {"authorization": f"Bearer {KEY}", "prefer": "respond-async"}
    told = await asked_for(gateway, await gateway.agent.get("/tools/web/a?q=x", headers=headers))
    assert (told["arguments"], told["body"]) == ({"q": "x"}, None)
    told = await asked_for(gateway, await gateway.agent.post("/tools/web/a?q=x", data={"b": "y z"}, headers=headers))
    assert (told["arguments"], told["body"]) == ({"q": "x", "b": "y z"}, "b=y%20z")


async def test_a_grant_from_such_a_call_is_for_the_arguments_that_were_shown(both: tuple[Held, HttpTool]) -> None:
    gateway, crm = both
    told = await asked_for(gateway, await refunded(gateway, 1, 120))
    made = await gateway.post("/grants", "finn", **{"from": told["id"]}, expires_in=600, max_uses=9)
    assert made["where"] == {"": {"id": 1, "amount": 120}}
    assert made["uses"] == 1, "it is the yes to the call that waits"
    assert (await refunded(gateway, 1, 120)).status_code == 200
    assert (await refunded(gateway, 2, 120)).status_code == 202
    assert [each.target for each in crm.came] == ["/tickets/1/refund"]


async def test_a_person_changes_arguments_where_they_stand(both: tuple[Held, HttpTool]) -> None:
    gateway, crm = both
    told = await asked_for(gateway, await refunded(gateway, 1, 120, "?note=late"))
    change = f"/approvals/{told['id']}/change"
    problem = await gateway.post(change, "finn", 400, arguments={"id": 2, "note": "late", "amount": 120})
    assert "stands in the path, which stays as it is" in problem["detail"]
    after = await gateway.post(change, "finn", arguments={"id": 1, "note": "soon", "amount": 5})
    assert after["arguments"] == {"id": 1, "note": "soon", "amount": 5}
    assert [each["pointer"] for each in after["changes"]] == ["/note", "/amount"]
    assert (await refunded(gateway, 1, 120, "?note=late")).status_code == 200
    (came,) = crm.came
    assert (came.target, came.body) == ("/tickets/1/refund?note=soon", b'{"amount":5}')
