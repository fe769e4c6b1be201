"""Servers of all kinds behind /mcp/all, spoken to by the stock client in both eras."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import MCPError
from mcp.client import Client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import PromptReference
from pydantic import BaseModel

from policies.decision import Decision, Effect
from policies.obligations import NONE
from tests.support.bank import TASKS, staged
from tests.support.eras import OneEra, silent
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import Gate, gate
from tests.support.mcp_clients import MODES, Someone, client
from tests.support.mcp_servers import serving

SUPPORT = Path(__file__).parents[2] / "support"
STOCK = {"name": "local", "kind": "mcp", "command": [sys.executable, str(SUPPORT / "stdio_stock.py")]}
BY_HAND = {"name": "hand", "kind": "mcp", "command": [sys.executable, "-I", "-S", str(SUPPORT / "stdio_server.py")]}
LONG = "a_tool_with_a_name_that_is_much_too_long_to_stand_behind_another_name"
DENIED = Decision(Effect.DENY, None, (), "Nobody may ask that.", NONE, "r1")


class Named(BaseModel):
    name: str


class Behind:
    """One server over HTTP, and what it has noticed."""

    def __init__(self, name: str) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.server = server = MCPServer(name)

        @server.tool()
        def echo(text: str) -> str:
            return f"{name}: {text}"

        @server.tool(name=LONG)
        def long() -> str:
            return f"{name} long"

        @server.tool()
        async def waits() -> str:
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
            return "never"

        @server.tool()
        async def asks(ctx: Context) -> str:
            answer = await ctx.elicit("What is your name?", Named)
            return f"{name} heard {answer.data.name}"  # type: ignore[union-attr]

        @server.tool()
        async def steps(ctx: Context) -> str:
            for step in (1, 2):
                await ctx.report_progress(step, 2)
            return "done"

        @server.resource(f"memo://{name}")
        def memo() -> str:
            return f"memo of {name}"

        @server.resource(f"note://{name}/{{day}}")
        def note(day: str) -> str:
            return f"note of {name} on {day}"

        @server.prompt()
        def greet(who: str) -> str:
            return f"{name} greets {who}"


def tool(name: str, url: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "kind": "mcp", "url": url, **settings}


@contextlib.asynccontextmanager
async def joined(*more: Mapping[str, Any], script: Any = ALLOWED) -> AsyncIterator[tuple[Gate, Behind, Behind]]:
    """A gateway in front of a legacy server, a modern one, and `more`."""
    old, new = Behind("old"), Behind("new")
    async with (
        serving(OneEra(old.server, "legacy")) as old_url,  # type: ignore[arg-type]  # as much of one as is needed
        serving(OneEra(new.server, "modern")) as new_url,  # type: ignore[arg-type]
        gate(script=script, tools=[tool("old", old_url), tool("new", new_url), *more]) as running,
    ):
        try:
            yield running, old, new
        finally:
            await running.pipeline.assembly.toolbox.close()


def begun(running: Gate, mode: str, someone: Someone | None = None) -> contextlib.AbstractAsyncContextManager[Client]:
    return client(f"http://127.0.0.1:{running.port}/mcp/all", AGENT_KEY, mode, someone or Someone())


def text(result: Any) -> str:
    return str(result.content[0].text)


@pytest.mark.parametrize("mode", MODES)
async def test_what_servers_of_both_eras_and_a_local_one_have_is_served_as_one(mode: str) -> None:
    async with joined(STOCK) as (running, _, _), begun(running, mode) as one:
        names = [each.name for each in (await one.list_tools()).tools]
        assert {"old__echo", "new__echo", "local__echo"} <= set(names)
        for server in ("old", "new"):
            assert text(await one.call_tool(f"{server}__echo", {"text": "hi"})) == f"{server}: hi"
        assert text(await one.call_tool("local__echo", {"text": "hi"})) == "hi"
        uris = {str(each.uri) for each in (await one.list_resources()).resources}
        assert uris == {"memo://old", "memo://new", "memo://local"}
        for server in ("old", "new"):
            assert (await one.read_resource(f"memo://{server}")).contents[0].text == f"memo of {server}"  # type: ignore[union-attr]
            read = await one.read_resource(f"note://{server}/monday")
            assert read.contents[0].text == f"note of {server} on monday"  # type: ignore[union-attr]
        templates = {each.uri_template for each in (await one.list_resource_templates()).resource_templates}
        assert templates == {"note://old/{day}", "note://new/{day}"}
        prompts = [each.name for each in (await one.list_prompts()).prompts]
        assert prompts == ["old__greet", "new__greet", "local__greet"]
        told = await one.get_prompt("new__greet", {"who": "Ann"})
        assert told.messages[0].content.text == "new greets Ann"  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_is_decided_and_recorded_as_if_it_had_come_to_its_server(mode: str) -> None:
    def script(document: Mapping[str, Any]) -> Decision:
        call = document["call"]
        return DENIED if call["target"] == "old" and call["operation"] == "echo" else ALLOWED

    async with joined(script=script) as (running, _, _), begun(running, mode) as one:
        assert text(await one.call_tool("new__echo", {"text": "hi"})) == "new: hi"
        refused = await one.call_tool("old__echo", {"text": "hi"})
        assert refused.is_error
        assert "Nobody may ask that." in text(refused)
        assert text(refused).endswith("At this URL names of old begin with old__: this one is old__echo.")
        calls = [record for record in running.ledger.records if record.get("operation") == "echo"]
        assert [(each["target"], each["code"]) for each in calls] == [("new", "ok"), ("old", "policy_denied")]
        assert not any(document["call"]["target"] == "all" for document in running.engine.documents)


@pytest.mark.parametrize("mode", MODES)
async def test_a_dead_server_and_a_silent_one_do_not_keep_the_others(mode: str) -> None:
    async with silent() as url:
        absent = (tool("dead", "http://127.0.0.1:9/mcp"), tool("slow", url, lists_within=0.3))
        async with joined(*absent) as (running, _, _), begun(running, mode) as one:
            listed = await one.list_tools()
            assert {each.name.partition("__")[0] for each in listed.tools} == {"old", "new"}
            assert listed.meta is not None
            assert listed.meta["weighbridge/missing"] == ["dead", "slow"]
            assert text(await one.call_tool("old__echo", {"text": "hi"})) == "old: hi"
            assert (await one.call_tool("dead__echo", {"text": "hi"})).is_error


def hearing(heard: list[float]) -> ProgressFnT:
    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    return hear


@pytest.mark.parametrize("mode", MODES)
async def test_progress_reaches_the_client_from_servers_of_both_eras(mode: str) -> None:
    async with joined(BY_HAND) as (running, _, _), begun(running, mode) as one:
        for server in ("old", "new", "hand"):
            heard: list[float] = []

            named = "raw_progress" if server == "hand" else "steps"
            told = await one.call_tool(f"{server}__{named}", {}, progress_callback=hearing(heard))
            assert text(told) == "done"
            assert heard == [1.0, 2.0]


@pytest.mark.parametrize("mode", MODES)
async def test_a_name_that_is_too_long_is_shown_shorter_and_can_be_called(mode: str) -> None:
    async with joined() as (running, _, _), begun(running, mode) as one:
        (shown,) = (each.name for each in (await one.list_tools()).tools if each.name.startswith("old__a_tool"))
        assert len(shown) == 64
        assert text(await one.call_tool(shown)) == "old long"
        # a gateway that has listed nothing yet
        running.pipeline.assembly.toolbox.find("mcp", "all")._known["old"].shortened.clear()  # type: ignore[attr-defined]
        assert text(await one.call_tool(shown)) == "old long"


@pytest.mark.parametrize("mode", MODES)
async def test_what_no_server_has_is_refused_in_words(mode: str) -> None:
    async with joined() as (running, _, _), begun(running, mode) as one:
        for name in ("echo", "nobody__echo", "__echo"):
            with pytest.raises(MCPError, match="Names here are SERVER__NAME"):
                await one.call_tool(name, {"text": "hi"})
        with pytest.raises(MCPError, match="none of the joined servers lists it"):
            await one.read_resource("memo://nowhere")
        with pytest.raises(MCPError, match="Unknown name"):
            await one.complete(PromptReference(type="ref/prompt", name="greet"), {"name": "who", "value": "A"})


async def test_a_legacy_servers_question_comes_to_its_client_and_the_answer_to_the_server() -> None:
    someone = Someone()
    async with joined() as (running, _, _), begun(running, "legacy", someone) as one:
        assert text(await one.call_tool("old__asks")) == "old heard Alice"
        assert len(someone.asked) == 1
        asked = [document["call"] for document in running.engine.documents]
        assert [(each["target"], each["operation"]) for each in asked][:2] == [
            ("old", "asks"),
            ("old", "elicitation/create"),
        ]


async def test_a_client_of_the_other_era_cannot_be_asked_and_the_tool_is_told() -> None:
    async with joined() as (running, _, _), begun(running, "auto") as one:
        with pytest.raises(MCPError, match="This client cannot be asked"):
            await one.call_tool("old__asks")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("server", ["old", "new"])
async def test_a_call_that_its_client_takes_back_ends_at_its_server(mode: str, server: str) -> None:
    async with joined() as (running, old, new), begun(running, mode) as one:
        behind = old if server == "old" else new
        waiting = asyncio.create_task(one.call_tool(f"{server}__waits"))
        async with asyncio.timeout(10):
            await behind.begun.wait()
            waiting.cancel()
            await behind.cancelled.wait()
        await asyncio.wait([waiting])


@pytest.mark.parametrize("mode", MODES)
async def test_a_local_server_that_died_is_begun_again_for_the_next_call(mode: str) -> None:
    async with joined(BY_HAND) as (running, _, _), begun(running, mode) as one:
        pid = int(text(await one.call_tool("hand__whoami")))
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while Path(f"/proc/{pid}").exists():  # noqa: ASYNC240
                await asyncio.sleep(0.01)
        assert int(text(await one.call_tool("hand__whoami"))) != pid


async def test_a_session_of_all_is_none_of_one_and_the_other_way_round() -> None:
    hello: dict[str, Any] = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "c", "version": "1"},
    }
    async with joined() as (running, _, _):
        root = f"http://127.0.0.1:{running.port}/mcp/"
        headers = {"authorization": f"Bearer {AGENT_KEY}", "accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(headers=headers) as http:

            async def post(server: str, method: str, session: str = "", **params: Any) -> httpx2.Response:
                message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                more = {"mcp-session-id": session} if session else {}
                return await http.post(root + server, json=message, headers=more)

            of_all = (await post("all", "initialize", **hello)).headers["mcp-session-id"]
            of_one = (await post("old", "initialize", **hello)).headers["mcp-session-id"]
            assert (await post("all", "tools/list", of_all)).status_code == 200
            assert (await post("all", "tools/list", of_one)).status_code == 404
            assert (await post("old", "tools/list", of_all)).status_code == 404
            assert (await post("all", "tools/list")).status_code == 400
            twice = [("mcp-session-id", of_all), ("mcp-session-id", of_one)]
            message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            assert (await http.post(root + "all", json=message, headers=twice)).status_code == 400
            answer = await post("all", "tools/call", of_all, name="old__echo", arguments={"text": "x"})
            assert answer.headers.get("mcp-session-id", of_all) == of_all, "no server's session is told outside"
            assert (await http.delete(root + "all", headers={"mcp-session-id": of_all})).status_code == 200
            assert (await post("all", "tasks/list", of_all)).json()["error"]["code"] == -32601
            assert (await post("all", "tools/list", of_all, cursor="x")).json()["error"]["code"] == -32602


@pytest.mark.parametrize("mode", MODES)
async def test_people_decide_on_a_call_that_came_by_way_of_all_and_it_runs_once(mode: str) -> None:
    async with staged(hold_for="30s", hold_streams_for="30s") as stage, begun(stage.gate, mode) as one:
        asking = asyncio.create_task(one.call_tool("bank__pay", {"amount": 7}))
        await stage.decide(True, 0.1)
        assert text(await asyncio.wait_for(asking, 10)) == "paid 7, payment 1"
        await stage.over()
        assert text(await one.call_tool("bank__pay", {"amount": 7})) == "paid 7, payment 1", "a repetition"
        assert stage.bank.paid == [7]


async def test_a_call_left_with_the_gateway_by_way_of_all_is_asked_after_there() -> None:
    async with staged(hold_for="30s", hold_streams_for="30s") as stage:
        stage.path = "/mcp/all"
        _, _, made = await stage.say("bank__pay", {"amount": 7}, TASKS)
        task = made["result"]["taskId"]
        await stage.decide(True)
        async with asyncio.timeout(10):
            while True:
                _, _, told = await stage.say("tasks/get", None, TASKS, taskId=task)
                if (result := told["result"])["status"] != "working":
                    break
        assert (result["status"], stage.bank.paid) == ("completed", [7])
        _, _, told = await stage.say("tasks/get", None, TASKS, taskId="another")
        assert "no such task" in told["error"]["message"]
