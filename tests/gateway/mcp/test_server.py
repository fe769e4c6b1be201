"""An MCP server of the stock SDK behind a front door, spoken to by the stock client in both eras."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from mcp import MCPError
from mcp.client import Client
from mcp_types import PromptReference

from policies.decision import Decision, Effect
from policies.obligations import NONE
from tests.support.everything import everything
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import Gate, gate
from tests.support.mcp_clients import MODES, Someone, client

DENIED = Decision(Effect.DENY, None, (), "Nobody may ask that.", NONE, "r1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with everything(tmp_path_factory.mktemp("everything") / "log") as url:
        yield url


@contextlib.asynccontextmanager
async def talking(
    server: str, mode: str, someone: Someone | None = None, *, script: Any = ALLOWED, **options: Any
) -> AsyncIterator[tuple[Gate, Client]]:
    async with (
        gate(script=script, tools=[{"name": "up", "kind": "mcp", "url": server}]) as running,
        client(f"http://127.0.0.1:{running.port}/mcp/up", AGENT_KEY, mode, someone or Someone(), **options) as begun,
    ):
        yield running, begun


def refusing(operation: str) -> Any:
    """A policy that denies one operation."""

    def script(document: Mapping[str, Any]) -> Decision:
        return DENIED if document["call"]["operation"] == operation else ALLOWED

    return script


def text(result: Any) -> str:
    return str(result.content[0].text)


@pytest.mark.parametrize("mode", MODES)
async def test_tools_are_listed_and_called(server: str, mode: str) -> None:
    async with talking(server, mode) as (running, begun):
        listed = await begun.list_tools()
        assert "echo" in [tool.name for tool in listed.tools]
        assert text(await begun.call_tool("echo", {"said": "h\u00e9"})) == "h\u00e9"
    asked = [document["call"] for document in running.engine.documents if document["call"]["operation"] == "echo"]
    assert asked[-1]["target"] == "up"
    assert asked[-1]["arguments"] == {"said": "h\u00e9"}
    (made,) = [each for each in running.ledger.outcomes() if each["operation"] == "echo"]
    assert (made["code"], made["status"], made["target_status"]) == ("ok", 200, 200)


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_tool_reports_on_its_way_is_heard(server: str, mode: str) -> None:
    heard: list[float] = []

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    async with talking(server, mode) as (_, begun):
        result = await begun.call_tool("test_tool_with_progress", {}, progress_callback=reported)
        assert text(result) == "done"
    assert heard == [0, 50, 100]


@pytest.mark.parametrize("mode", MODES)
async def test_resources_prompts_and_completions_are_calls_too(server: str, mode: str) -> None:
    async with talking(server, mode) as (running, begun):
        resources = await begun.list_resources()
        uri = str(resources.resources[0].uri)
        assert (await begun.read_resource(uri)).contents
        assert (await begun.list_resource_templates()).resource_templates
        assert (await begun.get_prompt("test_simple_prompt")).messages
        names = [prompt.name for prompt in (await begun.list_prompts()).prompts]
        assert "test_prompt_with_arguments" in names
        reference = PromptReference(type="ref/prompt", name="test_prompt_with_arguments")
        await begun.complete(reference, {"name": "arg1", "value": "te"})
    made = [each["operation"] for each in running.ledger.outcomes() if "decision" in each]
    assert made == ["resources/read", "prompts/get", "completion/complete"]


@pytest.mark.parametrize(
    ("mode", "tool"), [("legacy", "test_sampling"), ("auto", "test_input_required_result_sampling")]
)
async def test_a_server_may_ask_the_clients_model(server: str, mode: str, tool: str) -> None:
    someone = Someone()
    async with talking(server, mode, someone) as (running, begun):
        result = await begun.call_tool(tool, {"prompt": "The capital?"} if mode == "legacy" else {})
        assert "Paris" in text(result)
    assert len(someone.asked) == 1
    outcomes = running.ledger.outcomes()
    (question,) = [each for each in outcomes if each["operation"] == "sampling/createMessage"]
    calls = [each["call"] for each in outcomes if each["operation"] == tool]
    assert question["within"] in calls
    assert question["call"] not in calls
    assert (question["code"], question["target"], question["decision"]) == ("ok", "up", "ALLOW")
    assert [each["call"] for each in running.ledger.records if each["record"] == "intent"].count(question["call"]) == 1


@pytest.mark.parametrize(
    ("mode", "tool"), [("legacy", "test_elicitation"), ("auto", "test_input_required_result_elicitation")]
)
async def test_a_server_may_ask_the_clients_user(server: str, mode: str, tool: str) -> None:
    someone = Someone()
    async with talking(server, mode, someone) as (running, begun):
        result = await begun.call_tool(tool, {"message": "Sure?"} if mode == "legacy" else {})
        assert not result.is_error
    assert len(someone.asked) == 1
    assert "elicitation/create" in [each["operation"] for each in running.ledger.outcomes()]


async def test_a_question_that_the_policy_denies_never_reaches_the_client_and_its_server_is_told(server: str) -> None:
    someone = Someone()
    script = refusing("sampling/createMessage")
    async with talking(server, "legacy", someone, script=script) as (running, begun):
        with pytest.raises(MCPError, match="Nobody may ask that"):  # which is what the server's tool was told
            await begun.call_tool("test_sampling", {"prompt": "The capital?"})
    assert someone.asked == []
    (question,) = [each for each in running.ledger.outcomes() if each["operation"] == "sampling/createMessage"]
    assert (question["code"], question["decision"]) == ("policy_denied", "DENY")


async def test_an_answer_that_wants_what_the_policy_denies_becomes_one_that_says_so(server: str) -> None:
    someone = Someone()
    script = refusing("elicitation/create")
    async with talking(server, "auto", someone, script=script) as (running, begun):
        result = await begun.call_tool("test_input_required_result_elicitation", {})
        assert result.is_error
        assert "Nobody may ask that." in text(result)
    assert someone.asked == []
    (call,) = [each for each in running.ledger.outcomes() if each["operation"].startswith("test_input")]
    assert call["code"] == "policy_denied"


async def test_what_else_servers_ask_of_clients_passes(server: str) -> None:
    async with talking(server, "auto", script=refusing("roots/list")) as (_, begun):
        assert not (await begun.call_tool("test_input_required_result_list_roots", {})).is_error


async def test_a_server_keeps_its_own_state_over_several_rounds(server: str) -> None:
    async with talking(server, "auto") as (running, begun):
        assert not (await begun.call_tool("test_input_required_result_multi_round", {})).is_error
    rounds = [each for each in running.ledger.outcomes() if each["operation"].startswith("test_input")]
    assert len(rounds) > 1


async def test_a_stream_that_the_server_closes_early_is_resumed(server: str) -> None:
    someone = Someone()
    async with talking(server, "legacy", someone) as (running, begun):
        result = await begun.call_tool("test_reconnection", {})
        assert text(result) == "Reconnection test completed"
    assert someone.logged == ["before the stream ends", "after the stream has ended"]
    assert [each["code"] for each in running.ledger.outcomes() if each["operation"] == "test_reconnection"] == ["ok"]


@pytest.mark.parametrize(("mode", "code"), [("legacy", "ok"), ("auto", "client_gone")])
async def test_a_cancelled_call_is_cancelled_at_its_server(server: str, mode: str, code: str) -> None:
    """By a message in the legacy era, by the end of the stream in the modern one."""
    begun_to_work = asyncio.Event()

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        begun_to_work.set()

    async with talking(server, mode) as (running, begun):
        calling = asyncio.create_task(begun.call_tool("linger", {"name": mode}, progress_callback=reported))
        await asyncio.wait_for(begun_to_work.wait(), 10)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        assert text(await begun.call_tool("fate", {"name": mode})) == "cancelled"
        await asyncio.wait_for(running.ledger.concluded.wait(), 10)
    (call,) = [each for each in running.ledger.outcomes() if each["operation"] == "linger"]
    assert call["code"] in (code, "client_gone")


async def test_changes_are_heard_by_those_who_listen(server: str) -> None:
    async with talking(server, "auto") as (running, begun):
        async with begun.listen(tools_list_changed=True) as changes:
            await begun.call_tool("test_trigger_tool_change", {})
            change = await asyncio.wait_for(anext(aiter(changes)), 10)
        assert type(change).__name__ == "ToolsListChanged"
    (listened,) = [each for each in running.ledger.outcomes() if each["operation"] == "subscriptions/listen"]
    assert listened["code"] == "client_gone"


async def test_old_clients_may_ping_and_set_the_level_of_logs(server: str) -> None:
    someone = Someone()
    async with talking(server, "legacy", someone) as (running, begun):
        await begun.session.send_ping()
        assert text(await begun.call_tool("test_tool_with_logging", {})) == "logged"
    assert len(someone.logged) == 3
    assert "ping" in [each["operation"] for each in running.ledger.outcomes()]


async def test_a_refused_call_is_told_to_the_model(server: str) -> None:
    for mode in MODES:
        async with talking(server, mode, script=refusing("echo")) as (_, begun):
            result = await begun.call_tool("echo", {"said": "hello"})
            assert result.is_error
            assert text(result) == "Nobody may ask that."


async def test_a_refused_prompt_is_an_error(server: str) -> None:
    for mode in MODES:
        async with talking(server, mode, script=refusing("prompts/get")) as (_, begun):
            with pytest.raises(MCPError, match="Nobody may ask that"):
                await begun.get_prompt("test_simple_prompt")


async def test_calls_of_one_session_are_one_session_in_records_and_policies(server: str) -> None:
    async with talking(server, "legacy") as (running, begun):
        await begun.call_tool("echo", {"said": "one"})
        await begun.call_tool("echo", {"said": "two"})
    sessions = {each["session"] for each in running.ledger.outcomes()}
    assert len(sessions) == 1
    assert {document["call"]["session"] for document in running.engine.documents} == sessions


async def test_an_agent_names_its_sessions_itself_where_it_wants_to(server: str) -> None:
    async with talking(server, "legacy", headers={"x-weighbridge-session": "mine"}) as (running, begun):
        await begun.call_tool("echo", {"said": "one"})
    assert {each["session"] for each in running.ledger.outcomes()} == {"mine"}
