"""Stock MCP clients of both eras talk to a stock server through a real gateway process, as they would without it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp_types import PromptReference

from tests.support.everything import everything
from tests.support.mcp_clients import MODES, Someone, client
from tests.support.process import Gateway, serving
from tests.support.redis_server import needs_redis, redis_server

KEY = "inspectors-own-key"
POLICY = """package weighbridge

default decision := {"decision": "ALLOW"}

decision := {"decision": "DENY", "explanation": "Nobody adds here."} if input.call.operation == "add"

decision := {"decision": "ALLOW", "obligations": {"redact": ["/arguments/said"]}} if {
	input.call.operation == "echo"
	input.call.arguments.said == "a secret"
}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("mcp")
    policy = folder / "policy.rego"
    policy.write_text(POLICY, encoding="utf-8")
    with everything(folder / "server.log") as url:
        config: dict[str, Any] = {
            "ledger": {"path": "ledger"},
            "policy": {"paths": [str(policy)]},
            "agents": [{"name": "inspector", "key": KEY}],
            "tools": [{"name": "everything", "kind": "mcp", "url": url}],
        }
        with serving(config, folder) as running:
            yield running


@contextlib.asynccontextmanager
async def talking(gateway: Gateway, mode: str, someone: Someone | None = None, **options: Any) -> AsyncIterator[Client]:
    async with client(f"{gateway.url}/mcp/everything", KEY, mode, someone or Someone(), **options) as begun:
        yield begun


def text(result: Any) -> str:
    return str(result.content[0].text)


async def cancelled(begun: Client, name: str) -> None:
    """Begins a call, cancels it once it is under way, and asks the server what has become of it."""
    under_way = asyncio.Event()

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        under_way.set()

    calling = asyncio.create_task(begun.call_tool("linger", {"name": name}, progress_callback=reported))
    await asyncio.wait_for(under_way.wait(), 20)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    assert text(await begun.call_tool("fate", {"name": name})) == "cancelled"


def records(gateway: Gateway) -> list[dict[str, Any]]:
    files = sorted(Path(gateway.folder, "ledger").rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("mode", MODES)
async def test_a_session_from_its_beginning_to_its_end(gateway: Gateway, mode: str) -> None:
    heard: list[float] = []

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    someone = Someone()
    async with talking(gateway, mode, someone) as begun:
        tools = [tool.name for tool in (await begun.list_tools()).tools]
        assert {"echo", "test_sampling"} <= set(tools)
        assert text(await begun.call_tool("echo", {"said": "h\u00e9"})) == "h\u00e9"
        assert text(await begun.call_tool("echo", {"said": "a secret"})) != "a secret"
        refused = await begun.call_tool("add", {"a": 1, "b": 2})
        assert refused.is_error
        assert text(refused) == "Nobody adds here."
        result = await begun.call_tool("test_tool_with_progress", {}, progress_callback=reported)
        assert (text(result), heard) == ("done", [0, 50, 100])
        assert (await begun.call_tool("test_error_handling", {})).is_error
        resources = (await begun.list_resources()).resources
        assert (await begun.read_resource(str(resources[0].uri))).contents
        assert (await begun.list_resource_templates()).resource_templates
        assert (await begun.list_prompts()).prompts
        assert (await begun.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})).messages
        reference = PromptReference(type="ref/prompt", name="test_prompt_with_arguments")
        await begun.complete(reference, {"name": "arg1", "value": "te"})


async def test_an_old_client_is_asked_resumes_pings_and_cancels(gateway: Gateway) -> None:
    someone = Someone()
    async with talking(gateway, "legacy", someone) as begun:
        await begun.session.send_ping()
        assert "Paris" in text(await begun.call_tool("test_sampling", {"prompt": "The capital?"}))
        assert not (await begun.call_tool("test_elicitation", {"message": "Sure?"})).is_error
        assert len(someone.asked) == 2
        assert text(await begun.call_tool("test_reconnection", {})) == "Reconnection test completed"
        assert someone.logged == ["before the stream ends", "after the stream has ended"]
        await cancelled(begun, "old")


async def test_a_new_client_is_asked_listens_and_cancels(gateway: Gateway) -> None:
    someone = Someone()
    async with talking(gateway, "auto", someone) as begun:
        assert "Paris" in text(await begun.call_tool("test_input_required_result_sampling", {}))
        assert not (await begun.call_tool("test_input_required_result_elicitation", {})).is_error
        assert not (await begun.call_tool("test_input_required_result_list_roots", {})).is_error
        assert len(someone.asked) == 2
        async with begun.listen(tools_list_changed=True) as changes:
            await begun.call_tool("test_trigger_tool_change", {})
            await asyncio.wait_for(anext(aiter(changes)), 10)
        await cancelled(begun, "new")


async def test_what_a_server_asked_is_on_record_within_the_call_that_it_was_asked_in(gateway: Gateway) -> None:
    async with talking(gateway, "legacy") as begun:
        await begun.call_tool("test_sampling", {"prompt": "The capital?"})
    outcomes = [each for each in records(gateway) if each["record"] == "outcome"]
    questions = [each for each in outcomes if each.get("operation") == "sampling/createMessage"]
    assert questions
    calls = {each["call"] for each in outcomes}
    assert {each["within"] for each in questions} <= calls


async def test_a_session_outlives_the_gateway_that_began_it(tmp_path: Path) -> None:
    """Its name is sealed with a key that is kept with the state."""
    policy = tmp_path / "policy.rego"
    policy.write_text(POLICY, encoding="utf-8")
    with everything(tmp_path / "server.log") as url:
        config: dict[str, Any] = {
            "ledger": {"path": "ledger"},
            "policy": {"paths": [str(policy)]},
            "agents": [{"name": "inspector", "key": KEY}],
            "tools": [{"name": "everything", "kind": "mcp", "url": url}],
        }
        headers = {"authorization": f"Bearer {KEY}", "accept": "application/json, text/event-stream"}
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
        calling = {"name": "echo", "arguments": {"said": "still here"}}
        with serving(config, tmp_path) as first:
            message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            begun = httpx2.post(f"{first.url}/mcp/everything", headers=headers, json=message)
            session = {"mcp-session-id": begun.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
            note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            assert httpx2.post(f"{first.url}/mcp/everything", headers=headers | session, json=note).status_code == 202
        (tmp_path / "log" / "weighbridge.stderr").unlink()
        (tmp_path / "log").rmdir()
        with serving(config, tmp_path) as second:
            message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": calling}
            answer = httpx2.post(f"{second.url}/mcp/everything", headers=headers | session, json=message)
            assert answer.status_code == 200
            assert "still here" in answer.text
            other = {**session, "mcp-session-id": session["mcp-session-id"][:-4] + "AAAA"}
            assert httpx2.post(f"{second.url}/mcp/everything", headers=headers | other, json=message).status_code == 404


async def test_a_stop_does_not_wait_for_streams_that_have_no_end(tmp_path: Path) -> None:
    policy = tmp_path / "policy.rego"
    policy.write_text(POLICY, encoding="utf-8")
    with everything(tmp_path / "server.log") as url:
        config: dict[str, Any] = {
            "listen": {"drain": "25s"},
            "ledger": {"path": "ledger"},
            "policy": {"paths": [str(policy)]},
            "agents": [{"name": "inspector", "key": KEY}],
            "tools": [{"name": "everything", "kind": "mcp", "url": url}],
        }
        async with contextlib.AsyncExitStack() as stack:
            with serving(config, tmp_path) as gateway:
                old = await stack.enter_async_context(talking(gateway, "legacy"))
                new = await stack.enter_async_context(talking(gateway, "auto"))
                await old.call_tool("echo", {"said": "its own stream is open"})
                await stack.enter_async_context(new.listen(tools_list_changed=True))
                began = time.monotonic()
                await asyncio.to_thread(gateway.stop)
                assert time.monotonic() - began < 10


@needs_redis
async def test_a_session_that_one_replica_has_begun_goes_on_at_another(tmp_path: Path) -> None:
    policy = tmp_path / "policy.rego"
    policy.write_text(POLICY, encoding="utf-8")
    with everything(tmp_path / "server.log") as url, redis_server(tmp_path) as redis, contextlib.ExitStack() as stack:
        gateways = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            config: dict[str, Any] = {
                "state": redis.url,
                "ledger": {"path": "ledger"},
                "policy": {"paths": [str(policy)]},
                "agents": [{"name": "inspector", "key": KEY}],
                "tools": [{"name": "everything", "kind": "mcp", "url": url}],
            }
            gateways.append(stack.enter_context(serving(config, tmp_path / name)))
        turns = itertools.cycle(gateways)

        async def anywhere(request: httpx2.Request) -> None:
            """Each request to the next replica, as a load balancer without affinity sends them."""
            request.url = request.url.copy_with(port=httpx2.URL(next(turns).url).port)

        someone = Someone()
        async with talking(gateways[0], "legacy", someone, hooks=[anywhere]) as begun:
            assert text(await begun.call_tool("echo", {"said": "one"})) == "one"
            assert "Paris" in text(await begun.call_tool("test_sampling", {"prompt": "The capital?"}))
            assert text(await begun.call_tool("test_reconnection", {})) == "Reconnection test completed"
        sessions = [{each["session"] for each in records(gateway) if "session" in each} for gateway in gateways]
        assert sessions[0] == sessions[1]
        assert len(sessions[0]) == 1
