"""Real gateway processes before a real MCP server: they are killed between a call's being left and its answer, and what
people have approved runs once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2

from tests.support.bank import LEADS, LINK, MODERN, TASKS, Bank
from tests.support.mcp_servers import serving
from tests.support.process import Gateway, serving_beside
from tests.support.redis_server import needs_redis, redis_server

KEY: Final = "bots-own-key"
TOKEN: Final = "fays-own-token"
POLICY: Final = """package weighbridge
import rego.v1
decision := {"decision": "NEEDS_APPROVAL", "required_approvals": ["finance"]} if not input.approval
decision := {"decision": "ALLOW"} if input.approval
"""


class Agent:
    """What calls gateways, and the person who decides."""

    def __init__(self) -> None:
        self.http = httpx2.AsyncClient(timeout=30)
        self.said = 0

    async def say(self, gateway: Gateway, method: str, abilities: Any, **params: Any) -> Any:
        about = {"protocolVersion": MODERN, "clientCapabilities": abilities}
        self.said += 1
        meta = {f"io.modelcontextprotocol/{key}": value for key, value in about.items()}
        body = {"jsonrpc": "2.0", "id": self.said, "method": method, "params": {**params, "_meta": meta}}
        headers = {
            "authorization": f"Bearer {KEY}",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": MODERN,
            "mcp-method": method,
            "mcp-name": str(params.get("taskId", params.get("name"))),
        }
        answer = await self.http.post(f"{gateway.url}/mcp/bank", json=body, headers=headers)
        return answer.json()

    async def pay(self, gateway: Gateway, abilities: Any, **more: Any) -> Any:
        return (await self.say(gateway, "tools/call", abilities, name="pay", arguments={"amount": 7}, **more))["result"]

    async def task(self, gateway: Gateway, name: str) -> Any:
        return (await self.say(gateway, "tasks/get", TASKS, taskId=name))["result"]

    async def approve(self, gateway: Gateway, name: str) -> None:
        url = f"{gateway.admin}/approvals/{name}/approve"
        answer = await self.http.post(url, json={}, headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200, answer.text


def configured(folder: Path, bank: str, state: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "policy.rego").write_text(POLICY)
    return {
        "admin": {"people": [{"name": "fay", "token": TOKEN, "roles": ["finance"]}]},
        "state": state,
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": [str(folder / "policy.rego")]},
        "agents": [{"name": "bot", "tenant": "acme", "key": KEY}],
        "tools": [{"name": "bank", "kind": "mcp", "url": bank}],
        "approvals": {"link": LINK},
    }


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def stage() -> AsyncIterator[tuple[Bank, str, Agent]]:
    bank, agent = Bank(), Agent()
    async with agent.http, serving(bank.server) as url:
        yield bank, url, agent


@asynccontextmanager
async def killed(config: dict[str, Any], folder: Path) -> AsyncIterator[Gateway]:
    """One that is killed when the block ends."""
    async with serving_beside(config, made(folder)) as gateway:
        yield gateway
        os.kill(gateway.pid, signal.SIGKILL)
        await asyncio.to_thread(gateway.process.wait, 10)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def test_a_call_that_was_left_with_a_gateway_that_is_killed_is_made_by_the_next_one(tmp_path: Path) -> None:
    async with stage() as (bank, url, agent):
        config = configured(tmp_path / "common", url, f"sqlite:///{tmp_path}/common/state.db")
        async with killed(config, tmp_path / "one") as one:
            name = (await agent.pay(one, TASKS))["taskId"]
        async with killed(config, tmp_path / "two") as two:
            assert (await agent.task(two, name))["status"] == "working"
            led = await agent.pay(two, LEADS)
            assert led["resultType"] == "input_required"
            await agent.approve(two, name)

            async def over() -> bool:
                return bool((await agent.task(two, name))["status"] == "completed")

            await until(over)
        async with serving_beside(config, made(tmp_path / "three")) as three:
            task = await agent.task(three, name)
            assert task["result"]["content"][0]["text"] == "paid 7, payment 1"
            state = {"requestState": led["requestState"], "inputResponses": {"approval": {"action": "accept"}}}
            again = await agent.pay(three, LEADS, **state)
            assert again["content"][0]["text"] == "paid 7, payment 1", "what one has asked the next understands"
            assert (await agent.pay(three, {}))["content"][0]["text"] == "paid 7, payment 1"
        assert bank.paid == [7]


@needs_redis
async def test_of_two_gateways_on_redis_one_makes_the_call_and_both_tell_what_came_of_it(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with stage() as (bank, url, agent):
            async with (
                serving_beside(configured(tmp_path / "a", url, redis.url), made(tmp_path / "one")) as one,
                serving_beside(configured(tmp_path / "b", url, redis.url), made(tmp_path / "two")) as two,
            ):
                name = (await agent.pay(one, TASKS))["taskId"]
                assert (await agent.pay(two, TASKS))["taskId"] == name
                led = await agent.pay(one, LEADS)
                state = {"requestState": led["requestState"], "inputResponses": {"approval": {"action": "accept"}}}
                waiting = asyncio.create_task(agent.pay(two, LEADS, **state))
                await agent.approve(two, name)
                assert (await asyncio.wait_for(waiting, 20))["content"][0]["text"] == "paid 7, payment 1"
                for each in (one, two):

                    async def over(at: Gateway = each) -> bool:
                        return bool((await agent.task(at, name))["status"] == "completed")

                    await until(over)
                assert bank.paid == [7]
