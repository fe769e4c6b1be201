"""Calls that are left with the gateway as tasks: made once people have approved them, asked after by their agent."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from adapters.mcp.messages import McpCall
from gateway.exchange import Exchange
from gateway.mcp.catalogue import Catalogue
from gateway.mcp.server import McpServer
from gateway.tools.desk import Desk
from policies.approvals import Approval, State
from policies.decision import Effect
from tests.support.bank import TASKS, Stage, staged
from tests.support.exchanges import ALLOWED

LONG: dict[str, Any] = {"hold_for": "30s", "hold_streams_for": "30s"}


async def left(stage: Stage, amount: int = 7, tool: str = "pay") -> dict[str, Any]:
    """A task, for a call that is held."""
    status, _, message = await stage.say(tool, {"amount": amount}, TASKS)
    assert status == 200
    task: dict[str, Any] = message["result"]
    return task


async def told(stage: Stage, name: str) -> dict[str, Any]:
    _, _, message = await stage.say("tasks/get", None, TASKS, taskId=name)
    result: dict[str, Any] = message["result"]
    assert result["resultType"] == "complete"
    return result


class Redefined(Catalogue):
    """Of a server that has changed what its tools are said to do."""

    async def check(self, x: Exchange, call: McpCall, desk: Desk) -> McpCall:
        return dataclasses.replace(call, definition="another")


async def until(stage: Stage, name: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while (task := await told(stage, name))["status"] != status:
            await asyncio.sleep(0.01)
    return task


async def test_a_client_that_knows_tasks_gets_one_at_once_and_its_call_is_made_once_it_is_approved() -> None:
    async with staged(**LONG) as stage:
        task = await left(stage)
        assert (task["resultType"], task["status"], task["taskId"]) == ("task", "working", stage.id)
        assert task["statusMessage"] == f"Held for finance as {stage.id}."
        assert task["pollIntervalMs"] == 3000
        assert task["ttlMs"] >= 3600_000
        assert task["createdAt"].endswith("Z")
        assert (await told(stage, task["taskId"]))["status"] == "working"
        await stage.decide(True)
        over = await until(stage, task["taskId"], "completed")
        assert over["result"]["content"] == [{"type": "text", "text": "paid 7, payment 1"}]
        assert over["result"]["isError"] is False
        assert "pollIntervalMs" not in over
        assert stage.bank.paid == [7]
        outcomes = [each for each in stage.gate.ledger.outcomes() if each["operation"] == "pay"]
        assert [each["code"] for each in outcomes] == ["approval_pending", "ok"]
        assert outcomes[1]["approval"] == stage.id
        assert await told(stage, task["taskId"]) == over


async def test_a_task_and_a_call_that_waits_are_one_call() -> None:
    async with staged(**LONG) as stage:
        waiting = asyncio.create_task(stage.say("pay", {"amount": 7}))
        async with asyncio.timeout(10):
            while not stage.store.kept:
                await asyncio.sleep(0.005)
        task = await left(stage)
        await stage.decide(True)
        _, _, message = await waiting
        assert message["result"]["content"][0]["text"] == "paid 7, payment 1"
        assert (await until(stage, task["taskId"], "completed"))["result"]["content"][0]["text"] == "paid 7, payment 1"
        _, _, message = await stage.say("pay", {"amount": 7}, TASKS)
        assert message["result"]["content"][0]["text"] == "paid 7, payment 1", "what is known needs no task"
        assert stage.bank.paid == [7]


async def test_a_task_that_people_deny_is_completed_with_what_they_said() -> None:
    async with staged(**LONG) as stage:
        task = await left(stage)
        await stage.decide(False)
        over = await until(stage, task["taskId"], "completed")
        assert over["result"]["isError"] is True
        assert "A person has denied this call (Not this one.)" in over["result"]["content"][0]["text"]
        assert over["result"]["_meta"]["weighbridge/refusal"]["code"] == "approval_denied"
        assert stage.bank.paid == []


async def test_a_task_that_nobody_decides_on_in_time_says_so() -> None:
    async with staged(decide_within="0.05s") as stage:
        task = await left(stage)
        over = await until(stage, task["taskId"], "completed")
        assert over["result"]["_meta"]["weighbridge/refusal"]["code"] == "approval_expired"


async def test_a_task_that_its_agent_cancels_is_taken_back() -> None:
    async with staged(**LONG) as stage:
        task = await left(stage)
        _, _, message = await stage.say("tasks/update", None, TASKS, taskId=task["taskId"], inputResponses={})
        assert message["result"] == {"resultType": "complete"}
        _, _, message = await stage.say("tasks/cancel", None, TASKS, taskId=task["taskId"])
        assert message["result"] == {"resultType": "complete"}
        over = await told(stage, task["taskId"])
        assert (over["status"], stage.state) == ("cancelled", State.CANCELLED)
        assert "its agent wants it no more" in over["statusMessage"]
        _, _, message = await stage.say("tasks/cancel", None, TASKS, taskId=task["taskId"])
        assert message["result"] == {"resultType": "complete"}


async def test_tasks_are_told_of_to_nobody_else() -> None:
    others = {"name": "other-bot", "tenant": "acme", "key": "other-bots-own-key"}
    async with staged(**LONG, agents=[others]) as stage:
        task = await left(stage)
        own, stage.key = stage.key, "other-bots-own-key"
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            status, _, message = await stage.say(method, None, TASKS, taskId=task["taskId"], inputResponses={})
            assert (status, message["error"]["code"]) == (400, -32602)
        stage.key = own
        assert stage.state is State.PENDING
        status, _, message = await stage.say("tasks/get", None, {}, taskId=task["taskId"])
        assert (status, message["error"]["code"]) == (400, -32021)
        assert message["error"]["data"] == {"requiredCapabilities": TASKS}


async def test_a_call_that_waits_is_no_task_and_what_is_no_task_of_ours_is_none() -> None:
    async with staged(hold_for="0.05s") as stage:
        await stage.say("pay", {"amount": 7})
        status, _, message = await stage.say("tasks/get", None, TASKS, taskId=stage.id)
        assert (status, message["error"]["code"]) == (400, -32602)
        status, _, message = await stage.say("tasks/get", None, TASKS, taskId="the-servers-own")
        assert (status, message["error"]["code"]) == (400, -32602), "nobody carries tasks of servers here"


async def test_what_a_task_does_with_other_arguments_is_told_under_its_own_name() -> None:
    async with staged(**LONG) as stage:
        task = await left(stage)
        changed = await stage.gate.pipeline.holds.change(
            task["taskId"], "fay", ["finance"], b'{"amount": 3}', stage.gate.pipeline.reconsider, "less"
        )
        assert changed.detached
        over = await until(stage, task["taskId"], "completed")
        assert over["taskId"] == task["taskId"]
        assert over["result"]["content"][0]["text"] == "paid 3, payment 1"
        assert stage.bank.paid == [3]


async def test_a_call_whose_server_fails_as_json_rpc_does_is_a_failed_task() -> None:
    async with staged(**LONG) as stage:
        task = await left(stage, tool="fail")
        await stage.decide(True)
        over = await until(stage, task["taskId"], "failed")
        assert over["error"] == {"code": -31000, "message": "The vault is shut."}
        assert stage.bank.paid == [7]


async def test_a_server_that_asks_for_more_where_nobody_is_left_to_answer_is_no_success() -> None:
    async with staged(**LONG) as stage:
        task = await left(stage, tool="ask")
        await stage.decide(True)
        over = await until(stage, task["taskId"], "completed")
        assert over["result"]["isError"] is True
        assert stage.bank.paid == []


async def test_tasks_of_joined_servers_are_asked_after_where_they_were_left() -> None:
    async with staged(**LONG) as stage:
        stage.path = "/mcp/all"
        task = await left(stage, tool="bank__pay")
        (held,) = stage.store.kept.values()
        assert (held.call.target, held.call.operation, held.call.path) == ("bank", "pay", "/mcp/all")
        await stage.decide(True)
        over = await until(stage, task["taskId"], "completed")
        assert over["result"]["content"][0]["text"] == "paid 7, payment 1"
        _, _, message = await stage.say("bank__pay", {"amount": 7})
        assert message["result"]["content"][0]["text"] == "paid 7, payment 1"
        status, _, message = await stage.say("tasks/get", None, TASKS, taskId="somebody-elses")
        assert (status, message["error"]["code"]) == (400, -32602)
        stage.path = "/mcp/bank"
        status, _, message = await stage.say("tasks/get", None, TASKS, taskId=task["taskId"])
        assert (status, message["error"]["code"]) == (400, -32602)
        assert stage.bank.paid == [7]


async def test_another_gateway_makes_the_call_that_a_dead_one_was_left_with() -> None:
    async with staged(**LONG) as first:
        task = await left(first)
        async with first.beside() as second:
            await first.gate.errands.end(0.0)  # it hears of nothing any more
            await second.decide(True)
            over = await until(second, task["taskId"], "completed")
            assert over["result"]["content"][0]["text"] == "paid 7, payment 1"
            assert first.bank.paid == [7]


async def test_of_several_gateways_that_hear_of_a_yes_one_makes_the_call() -> None:
    async with staged(**LONG) as first, first.beside() as second, first.beside() as third:
        tasks = [(await left(each, amount))["taskId"] for each in (first, second, third) for amount in range(1, 6)]
        assert len(set(tasks)) == 5
        everybody: list[Approval] = list(first.store.kept.values())
        for each in everybody:
            await third.gate.pipeline.holds.vote(each.id, "fay", ["finance"], True)
        looking = [asyncio.create_task(each.gate.errands.look()) for each in (first, second, third) for _ in range(3)]
        await asyncio.gather(*looking)
        for name in tasks:
            await until(second, name, "completed")
        assert sorted(first.bank.paid) == [1, 2, 3, 4, 5]


async def test_the_call_of_a_paused_agent_waits_until_it_may_go_on() -> None:
    async with staged(**LONG) as stage:
        task = await left(stage)
        agent = stage.gate.pipeline.assembly.directory.named("acme", "support-bot")
        await stage.gate.pipeline.standings.set(agent, "paused", "lunch", "dana")
        await stage.decide(True)
        await stage.gate.errands.look()
        assert (stage.state, stage.bank.paid) == (State.APPROVED, [])
        await stage.gate.pipeline.standings.set(agent, "active", "", "dana")
        await stage.gate.errands.look()
        await until(stage, task["taskId"], "completed")
        assert stage.bank.paid == [7]


@pytest.mark.parametrize("word", ["policy", "definition"])
async def test_what_speaks_against_a_call_when_it_is_made_takes_the_yes_back(word: str) -> None:
    async with staged(**LONG) as stage:
        task = await left(stage)
        if word == "policy":
            stage.gate.engine.script = dataclasses.replace(ALLOWED, effect=Effect.DENY, explanation="Not any more.")
        else:
            tool = stage.gate.pipeline.assembly.toolbox.find("mcp", "bank")
            assert isinstance(tool, McpServer)
            tool.catalogue = Redefined(tool.settings, tool.upstream)
        await stage.decide(True)
        over = await until(stage, task["taskId"], "cancelled")
        assert "taken back" in over["statusMessage"]
        assert (stage.state, stage.bank.paid) == (State.REVOKED, [])
