"""A plain HTTP tool behind a real gateway process: denied, held and approved, paid for, limited, recorded, stopped."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.http_tools import Came, HttpTool, http_tool
from tests.support.misbehaving import Wire
from tests.support.process import Gateway, serving_beside

KEY, OTHER = "support-bots-own-key", "busy-bots-own-key"
TOKEN = "danas-own-token"
SECRET = "the-tools-own-secret"
POLICY = """package weighbridge

default decision := {"decision": "DENY", "explanation": "Nobody allows that."}

decision := {"decision": "ALLOW"} if input.call.operation in {"getTicket", "search", "GET /slow"}

decision := {"decision": "ALLOW"} if {
    input.call.operation == "refund"
    input.call.arguments.amount <= 100
}

decision := {
    "decision": "NEEDS_APPROVAL",
    "required_approvals": ["finance"],
    "explanation": "Refunds above 100 wait for finance.",
} if {
    input.call.operation == "refund"
    input.call.arguments.amount > 100
}
"""
DOCUMENT = """
openapi: 3.1.0
info: {title: crm, version: "1"}
paths:
  /tickets/{id}:
    get:
      operationId: getTicket
      parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
  /tickets/{id}/refund:
    post:
      operationId: refund
      parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
      requestBody:
        required: true
        content:
          application/json:
            schema: {type: object, required: [amount], properties: {amount: {type: number}}}
  /search:
    get: {operationId: search, parameters: [{name: q, in: query, schema: {type: string}}]}
"""


@dataclass
class Stage:
    gateway: Gateway
    tool: HttpTool
    agent: httpx2.AsyncClient
    admin: httpx2.AsyncClient

    def records(self) -> list[dict[str, Any]]:
        lines = (self.gateway.folder / "ledger" / "calls.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["record"] == "outcome"]

    async def waiting(self) -> str:
        """The id of the one call that waits for people."""
        async with asyncio.timeout(10):
            while True:
                listed = (await self.admin.get("/approvals?state=pending")).json()["items"]
                if listed:
                    return str(listed[0]["id"])
                await asyncio.sleep(0.02)  # another process holds it in its own time

    async def done(self, approval: str) -> None:
        """Until it is known what came of the call."""
        async with asyncio.timeout(10):
            while (await self.admin.get(f"/approvals/{approval}")).json()["state"] != "done":
                await asyncio.sleep(0.02)  # as above


async def answers(wire: Wire, came: Came) -> None:
    if came.target.endswith("/slow"):
        await wire.hang()
    body = json.dumps({"did": f"{came.method} {came.target}"}).encode()
    await wire.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )


def configuration(folder: Path, url: str) -> Mapping[str, Any]:
    (folder / "policy.rego").write_text(POLICY)
    (folder / "crm.yaml").write_text(DOCUMENT)
    agents = [
        {"name": "support-bot", "tenant": "acme", "key": KEY},
        {"name": "busy-bot", "tenant": "globex", "key": OTHER},
    ]
    crm = {
        "name": "crm",
        "kind": "http",
        "url": f"{url}/api",
        "key": SECRET,
        "openapi": "crm.yaml",
        "timeout": 30,
        "price": {"usd_per_call": 0.25},
    }
    return {
        "admin": {"people": [{"name": "dana", "token": TOKEN, "roles": ["admin", "finance"]}]},
        "state": f"sqlite:///{folder}/state.db",
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": ["policy.rego"]},
        "agents": agents,
        "tools": [crm],
        "budgets": [{"node": "acme", "window": "day", "limit_usd": 1}],
        "limits": [{"node": "globex/busy-bot", "calls_per_minute": 2}],
        "approvals": {"hold_for": 0},
    }


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    async with (
        http_tool(answers) as tool,
        serving_beside(configuration(folder, tool.url), folder) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as agent,
        httpx2.AsyncClient(base_url=gateway.admin, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30) as admin,
    ):
        yield Stage(gateway, tool, agent, admin)


async def curl(*arguments: str) -> tuple[int, Any]:
    """The status, and the JSON of the body."""
    command = ["curl", "-s", "--noproxy", "*", "--max-time", "20", "-w", "\n%{http_code}", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    body, _, status = said.decode().rpartition("\n")
    return int(status), json.loads(body)


async def test_calls_of_a_tool_are_decided_held_paid_for_limited_recorded_and_stopped(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        await _allowed_and_denied(it)
        await _held_and_run_once(it)
        await _changed_by_a_person(it)
        await _paid_for(it)
        await _limited(it)
        await _stopped(it)
        assert all(came.headers["authorization"] == f"Bearer {SECRET}" for came in it.tool.came)
        ledger = (it.gateway.folder / "ledger" / "calls.jsonl").read_text()
        assert SECRET not in ledger
        assert KEY not in ledger


async def _allowed_and_denied(it: Stage) -> None:
    answer = await it.agent.get("/tools/crm/tickets/7")
    assert (answer.status_code, answer.json()) == (200, {"did": "GET /api/tickets/7"})
    denied = await it.agent.delete("/tools/crm/tickets/7")
    assert (denied.status_code, denied.json()["error"]["code"]) == (403, "policy_denied")
    assert denied.json()["error"]["message"] == "Nobody allows that."
    assert [came.method for came in it.tool.came] == ["GET"]


async def _held_and_run_once(it: Stage) -> None:
    body = {"amount": 250.5}
    held = await it.agent.post("/tools/crm/tickets/7/refund", json=body)
    assert (held.status_code, held.json()["error"]["code"]) == (403, "approval_pending")
    approval = await it.waiting()
    shown = (await it.admin.get(f"/approvals/{approval}")).json()
    assert (shown["target"], shown["operation"], shown["arguments"]) == ("crm", "refund", {"id": 7, **body})
    assert shown["path"] == "/tools/crm/tickets/7/refund"
    await it.admin.post(f"/approvals/{approval}/approve", json={"comment": "fine"})
    ran = await it.agent.post("/tools/crm/tickets/7/refund", json=body)
    assert (ran.status_code, ran.json()) == (200, {"did": "POST /api/tickets/7/refund"})
    assert ran.headers["x-weighbridge-approval"] == approval
    await it.done(approval)
    again = await it.agent.post("/tools/crm/tickets/7/refund", json=body)
    assert again.json()["error"]["code"] == "approval_pending"
    await it.admin.post(f"/approvals/{await it.waiting()}/deny", json={"comment": "once was enough"})
    assert [came.body for came in it.tool.came if came.method == "POST"] == [b'{"amount":250.5}']


async def _changed_by_a_person(it: Stage) -> None:
    await it.agent.post("/tools/crm/tickets/8/refund?dry=1", json={"amount": 400})
    approval = await it.waiting()
    shown = (await it.admin.get(f"/approvals/{approval}")).json()["arguments"]
    changed = await it.admin.post(f"/approvals/{approval}/change", json={"arguments": {**shown, "amount": 300}})
    assert changed.status_code == 200, changed.text
    ran = await it.agent.post("/tools/crm/tickets/8/refund?dry=1", json={"amount": 400})
    assert ran.status_code == 200, ran.text
    assert it.tool.came[-1].target == "/api/tickets/8/refund?dry=1"
    assert json.loads(it.tool.came[-1].body) == {"amount": 300}


async def _paid_for(it: Stage) -> None:
    assert (await it.agent.get("/tools/crm/search?q=a")).status_code == 200  # the fourth that cost something
    poor = await it.agent.get("/tools/crm/search?q=b")
    assert (poor.status_code, poor.json()["error"]["code"]) == (429, "budget_exhausted")
    costs = [record["cost_usd"] for record in it.records() if record["code"] == "ok"]
    assert costs == [0.25] * 4
    raised = await it.admin.put("/budgets/acme", json={"window": "day", "limit_usd": 5})
    assert raised.status_code == 200, raised.text


async def _limited(it: Stage) -> None:
    busy = {"authorization": f"Bearer {OTHER}"}
    codes = [(await it.agent.get("/tools/crm/search", headers=busy)).status_code for _ in range(3)]
    assert codes == [200, 200, 429]


async def _stopped(it: Stage) -> None:
    slow = asyncio.create_task(it.agent.get("/tools/crm/slow"))
    while not it.tool.came[-1].target.endswith("/slow"):
        await asyncio.sleep(0.02)  # it is on its way through another process
    stopped = await it.admin.put("/agents/support-bot/state", json={"state": "quarantined", "reason": "a test"})
    assert stopped.status_code == 200, stopped.text
    assert (await slow).json()["error"]["code"] == "agent_quarantined"
    refused = await it.agent.get("/tools/crm/tickets/7")
    assert refused.json()["error"]["code"] == "agent_quarantined"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_and_a_mistaken_document(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        await it.admin.put("/budgets/acme", json={"window": "day", "limit_usd": 500})
        key = ["-H", f"authorization: Bearer {KEY}"]
        status, body = await curl(*key, "-G", f"{it.gateway.url}/tools/crm/search", "--data-urlencode", "q=two words")
        assert (status, body) == (200, {"did": "GET /api/search?q=two%20words"})
        paid = [*key, "-H", "content-type: application/json", f"{it.gateway.url}/tools/crm/tickets/9/refund"]
        assert await curl(*paid, "-d", '{"amount": 5}') == (200, {"did": "POST /api/tickets/9/refund"})
        status, body = await curl(*paid, "-d", '{"amount": "5"}')
        assert (status, body["error"]["code"]) == (400, "malformed_call")
        assert "refund" in body["error"]["message"]
        status, body = await curl(*key, "--path-as-is", f"{it.gateway.url}/tools/crm/../../admin")
        assert (status, body["error"]["code"]) == (400, "malformed_call")

        document = it.gateway.folder / "crm.yaml"
        document.write_text(DOCUMENT.replace("operationId: search", "operationId: lookUp"))
        async with asyncio.timeout(10):
            while (await curl(*key, f"{it.gateway.url}/tools/crm/search"))[0] != 403:
                await asyncio.sleep(0.05)  # an edit is seen within a second
        document.write_text(DOCUMENT.replace("operationId: search", "operationId: refund"))
        async with asyncio.timeout(10):
            while "crm.yaml:19: /paths/~1search/get/operationId" not in it.gateway.stderr():
                await asyncio.sleep(0.05)  # as above
        assert (await curl(*key, f"{it.gateway.url}/tools/crm/tickets/7"))[0] == 200
