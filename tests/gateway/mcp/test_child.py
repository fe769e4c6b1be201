"""Local MCP servers: real children, which do as they are asked and what they should not."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters.mcp.messages import Era
from config.settings import ToolSettings
from gateway.carrier import FirstByteTimeout, IdleTimeout, ReplyBroken, TotalTimeout
from gateway.mcp.asking import offered
from gateway.mcp.child import ChildUpstream, Streamed, Told
from gateway.problems import TargetFailed
from tests.support.exchanges import AGENT_KEY
from tests.support.gate import gate
from tests.support.mcp_clients import MODES, Someone, client

SERVER = str(Path(__file__).parents[2] / "support" / "stdio_server.py")
STOCK = str(Path(__file__).parents[2] / "support" / "stdio_stock.py")
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


@asynccontextmanager
async def upstream(*arguments: str, server: str = SERVER, **settings: Any) -> AsyncIterator[ChildUpstream]:
    isolated = ["-I", "-S"] if server is SERVER else []
    command = [sys.executable, *isolated, server, *arguments]
    written = {"name": "local", "kind": "mcp", "command": command, "timeout": 10.0, **settings}
    made = ChildUpstream(ToolSettings.model_validate(written))
    try:
        yield made
    finally:
        await made.close()


async def whole(answer: Told | Streamed) -> bytes:
    pieces = []
    while piece := await answer.read():
        pieces.append(piece)
    return b"".join(pieces)


async def said(up: ChildUpstream, message: dict[str, Any], session: str = "", whose: str = "acme/bot") -> Any:
    headers = [(b"mcp-session-id", session.encode())] if session else []
    return await up.send(b"POST", headers, orjson.dumps({"jsonrpc": "2.0", **message}), whose=whose)


async def begun(up: ChildUpstream, whose: str = "acme/bot") -> str:
    """A session."""
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    answer = await said(up, {"id": 1, "method": "initialize", "params": params}, whose=whose)
    assert orjson.loads(await whole(answer))["result"]["protocolVersion"] == "2025-11-25"
    session: str = dict(answer.headers)[b"mcp-session-id"].decode()
    assert (await said(up, {"method": "notifications/initialized"}, session, whose)).status == 202
    return session


def calling(name: str, identity: int | str = 5, token: object = None, **arguments: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if token is not None:
        params["_meta"] = {"progressToken": token}
    return {"id": identity, "method": "tools/call", "params": params}


async def called(up: ChildUpstream, session: str, name: str, whose: str = "acme/bot", **arguments: Any) -> str:
    answer = orjson.loads(await whole(await said(up, calling(name, **arguments), session, whose)))
    assert answer["id"] == 5
    return str(answer["result"]["content"][0]["text"])


def alive(pid: int) -> bool:
    try:
        return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
    except FileNotFoundError:
        return False


def below(pid: int) -> Iterator[int]:
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((each / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            yield int(each.name)
            yield from below(int(each.name))


def keepers() -> Iterator[int]:
    for pid in below(os.getpid()):
        if b"keeper" in Path(f"/proc/{pid}/cmdline").read_bytes():
            yield pid


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.01)


async def test_a_session_has_a_child_of_its_own_and_its_end_is_the_childs() -> None:
    async with upstream() as up:
        one, two = await begun(up), await begun(up)
        first, second = int(await called(up, one, "whoami")), int(await called(up, two, "whoami"))
        assert first != second
        answer = await up.send(b"DELETE", [(b"mcp-session-id", one.encode())], b"", whose="acme/bot")
        assert answer.status == 200
        await gone(first)
        assert (await said(up, calling("whoami"), one)).status == 404
        assert int(await called(up, two, "whoami")) == second
    await gone(second)


async def test_fifty_sessions_are_served_at_once_and_leave_nothing() -> None:
    async with upstream(count=50) as up:
        sessions = await asyncio.gather(*(begun(up) for _ in range(50)))
        pids = await asyncio.gather(*(called(up, each, "whoami") for each in sessions))
        assert len(set(pids)) == 50
        with pytest.raises(TargetFailed, match="as many children as it may have, 50"):
            await begun(up)
    assert not any(alive(int(pid)) for pid in pids)
    assert not list(keepers())


async def test_a_session_is_unknown_to_another_agent_and_without_one_nothing_is_answered() -> None:
    async with upstream() as up:
        session = await begun(up)
        assert (await said(up, calling("echo", text="x"), session, "acme/other")).status == 404
        assert (await said(up, calling("echo", text="x"))).status == 400
        for method in (b"GET", b"DELETE"):
            answer = await up.send(method, [(b"mcp-session-id", session.encode())], b"", whose="acme/other")
            assert answer.status == 404


async def test_ids_and_tokens_come_back_as_their_client_wrote_them() -> None:
    async with upstream() as up:
        session = await begun(up)
        answer = await said(up, calling("raw_progress", "mine \u00e9", token="t\u00f6ken"), session)
        assert dict(answer.headers)[b"content-type"] == b"text/event-stream"
        events = [orjson.loads(each[len("event: message\ndata: ") :]) for each in
                  (await whole(answer)).decode().split("\n\n") if each]  # fmt: skip
        tokens = [each["params"]["progressToken"] for each in events[:-1]]
        assert tokens == ["t\u00f6ken"] * 2
        assert events[-1]["id"] == "mine \u00e9"


async def test_a_message_of_several_lines_is_one_for_the_child() -> None:
    async with upstream() as up:
        session = await begun(up)
        body = b'{\n "jsonrpc": "2.0",\r\n "id": 5,\n "method": "tools/call",\n "params":\n'
        body += b'{"name": "echo",\n"arguments": {"text": "a\\nb"}}}\n'
        answer = await up.send(b"POST", [(b"mcp-session-id", session.encode())], body, whose="acme/bot")
        assert orjson.loads(await whole(answer))["result"]["content"][0]["text"] == "a\nb"


async def test_what_agents_without_sessions_ask_goes_to_a_child_of_each_agent() -> None:
    async with upstream(server=STOCK) as up:

        async def one(whose: str) -> Any:
            message = calling("echo", text=whose)
            message["params"]["_meta"] = MODERN
            return orjson.loads(await whole(await said(up, message, whose=whose)))

        answers = await asyncio.gather(*(one(whose) for whose in ("acme/a", "acme/b", "acme/a")))
        assert [each["result"]["structuredContent"]["result"] for each in answers] == ["acme/a", "acme/b", "acme/a"]
        assert {each["result"]["resultType"] for each in answers} == {"complete"}
        assert len(up) == 2


async def test_a_subscription_keeps_the_id_of_its_client_and_ends_with_it() -> None:
    async with upstream(server=STOCK) as up:
        params = {"_meta": MODERN, "notifications": {"toolsListChanged": True}}
        answer = await said(up, {"id": "sub", "method": "subscriptions/listen", "params": params})
        event = orjson.loads((await answer.read()).removeprefix(b"event: message\ndata: "))
        assert event["method"] == "notifications/subscriptions/acknowledged"
        assert event["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "sub"
        answer.close()


async def test_a_shared_child_serves_all_and_answers_each_its_own() -> None:
    async with upstream(shared=True) as up:
        agents = [f"acme/{number}" for number in range(20)]
        sessions = await asyncio.gather(*(begun(up, whose) for whose in agents))
        pids = [await called(up, session, "whoami", whose) for session, whose in zip(sessions, agents, strict=True)]
        assert len(set(pids)) == 1
        texts = await asyncio.gather(
            *(called(up, session, "echo", whose, text=whose) for session, whose in zip(sessions, agents, strict=True))
        )
        assert texts == agents
        assert (await said(up, calling("echo", text="x"), sessions[0], agents[1])).status == 404


async def test_a_shared_child_cannot_ask_anybody_and_tells_everybody_only_what_concerns_all() -> None:
    async with upstream(shared=True) as up:
        one, two = await begun(up, "acme/1"), await begun(up, "acme/2")
        assert '"code": -32601' in await called(up, one, "ask", "acme/1")
        streams = []
        for session, whose in ((one, "acme/1"), (two, "acme/2")):
            streams.append(await up.send(b"GET", [(b"mcp-session-id", session.encode())], b"", whose=whose))
        assert await called(up, one, "announce", "acme/1") == "announced"
        for stream in streams:
            event = await stream.read()
            assert b"tools/list_changed" in event
            assert b"psst" not in event
            stream.close()


async def test_a_question_of_a_childs_reaches_its_client_and_the_answer_the_child() -> None:
    async with upstream() as up:
        session = await begun(up)
        answer = await said(up, calling("ask"), session)
        asked = orjson.loads((await answer.read()).removeprefix(b"event: message\ndata: "))
        assert asked["method"] == "sampling/createMessage"
        assert (await said(up, {"id": asked["id"], "result": {"model": "m"}}, session)).status == 202
        assert b'\\"model\\": \\"m\\"' in await whole(answer)


async def test_what_a_child_says_by_itself_waits_for_its_client_to_listen() -> None:
    async with upstream() as up:
        session = await begun(up)
        stream = await up.send(b"GET", [(b"mcp-session-id", session.encode())], b"", whose="acme/bot")
        later = await up.send(b"GET", [(b"mcp-session-id", session.encode())], b"", whose="acme/bot")
        assert await stream.read() == b"", "who listens again has lost the stream before"
        waiting = await asyncio.gather(said(up, calling("slow", 6, seconds=0.2), session),
                                       said(up, calling("announce", 7), session))  # fmt: skip
        assert b"tools/list_changed" in await later.read()
        assert [len(await whole(each)) > 0 for each in waiting] == [True, True]


async def test_a_call_that_is_never_answered_ends_in_time_and_is_taken_back() -> None:
    async with upstream(timeout=0.2) as up:
        session = await begun(up)
        with pytest.raises(FirstByteTimeout):
            await said(up, calling("never"), session)
        answer = orjson.loads(await whole(await said(up, {"id": 9, "method": "tests/cancelled"}, session)))
        assert len(answer["result"]["cancelled"]) == 1


async def test_a_stream_that_goes_on_for_too_long_is_broken_off() -> None:
    async with upstream(longest=0.3, idle=5.0) as up:
        session = await begun(up)
        answer = await said(up, calling("ask"), session)
        assert b"sampling/createMessage" in await answer.read()
        with pytest.raises(TotalTimeout):
            await answer.read()
        answer.close()


async def test_a_stream_that_falls_silent_is_broken_off() -> None:
    async with upstream(longest=5.0, idle=0.3) as up:
        session = await begun(up)
        answer = await said(up, calling("ask"), session)
        await answer.read()
        with pytest.raises(IdleTimeout):
            await answer.read()
        answer.close()


async def test_a_client_takes_its_own_call_back_and_no_other() -> None:
    async with upstream(shared=True) as up:
        one, two = await begun(up, "acme/1"), await begun(up, "acme/2")
        waiting = asyncio.create_task(said(up, calling("never", 5), one, "acme/1"))
        await asyncio.sleep(0)
        assert await called(up, one, "echo", "acme/1", text="x") == "x"
        taken_back = {"method": "notifications/cancelled", "params": {"requestId": 5}}
        assert (await said(up, taken_back, two, "acme/2")).status == 202
        listed = {"id": 9, "method": "tests/cancelled"}
        assert orjson.loads(await whole(await said(up, listed, two, "acme/2")))["result"]["cancelled"] == []
        await said(up, taken_back, one, "acme/1")
        assert len(orjson.loads(await whole(await said(up, listed, two, "acme/2")))["result"]["cancelled"]) == 1
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_a_child_that_dies_fails_its_calls_at_once_and_its_session_is_unknown() -> None:
    async with upstream() as up:
        session = await begun(up)
        waiting = asyncio.create_task(said(up, calling("never", 6), session))
        with pytest.raises(ReplyBroken, match="it has ended"):
            await said(up, calling("die"), session)
        with pytest.raises(ReplyBroken):
            await waiting
        assert (await said(up, calling("echo", text="x"), session)).status == 404


async def test_a_server_that_keeps_dying_is_started_again_after_longer_and_longer_pauses_and_others_are_not_kept() -> (
    None
):
    async with upstream("dies", restart=600.0) as up:
        for _ in range(2):
            with pytest.raises(ReplyBroken):
                await begun(up)
        for _ in range(3):
            with pytest.raises(TargetFailed, match=r"keeps ending; it is started again in 0\.[1-5] s"):
                await begun(up)
        up._misfortunes["acme/bot"].until = 0
        with pytest.raises(ReplyBroken):
            await begun(up)
        with pytest.raises(TargetFailed, match=r"started again in (0\.9|1\.0) s"):
            await begun(up)
        with pytest.raises(ReplyBroken):
            await begun(up, "acme/other")


async def test_a_shared_child_that_died_is_started_again_and_its_clients_begin_again() -> None:
    async with upstream(shared=True) as up:
        session = await begun(up)
        with pytest.raises(ReplyBroken):
            await said(up, calling("die"), session)
        assert (await said(up, calling("echo", text="x"), session)).status == 404
        assert await called(up, await begun(up), "echo", text="again") == "again"


async def test_a_program_that_is_not_there_is_a_failure_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "weighbridge.mcp")
    settings = ToolSettings.model_validate({"name": "local", "kind": "mcp", "command": ["/no/such/program"]})
    up = ChildUpstream(settings)
    with pytest.raises(ReplyBroken):
        await begun(up)
    await up.close()
    assert "/no/such/program cannot be started: No such file or directory" in caplog.text


async def test_garbage_is_passed_over_and_a_child_that_says_nothing_else_is_ended() -> None:
    async with upstream() as up:
        session = await begun(up)
        assert await called(up, session, "garbage") == "after all"
        with pytest.raises(ReplyBroken, match="nonsense"):
            await said(up, calling("nonsense"), session)


async def test_a_line_longer_than_an_answer_may_be_ends_the_child() -> None:
    async with upstream(largest_answer=100_000) as up:
        session = await begun(up)
        with pytest.raises(ReplyBroken, match="largest_answer"):
            await said(up, calling("long_line", bytes=1_000_000), session)


async def test_standard_error_is_told_in_part_and_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "weighbridge.mcp")
    async with upstream(env=[{"name": "TOKEN", "value": "s3cret-token"}]) as up:
        session = await begun(up)
        assert await called(up, session, "flood_stderr", lines=50_000, secret="s3cret-token") == "flooded"
    lines = [each.getMessage() for each in caplog.records if "line " in each.getMessage()]
    assert len(lines) == 20
    assert lines[0].endswith("line 0 \\x1b[31m ***")
    assert "s3cret" not in caplog.text


async def test_a_child_has_no_more_of_the_environment_than_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPERATORS_KEY", "not for children")
    async with upstream(env=[{"name": "TOKEN", "value": "theirs"}], directory=str(tmp_path)) as up:
        told = orjson.loads(await called(up, await begun(up), "environment"))
    assert told["environ"].keys() - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", "TOKEN"}
    assert told["environ"]["TOKEN"] == "theirs"
    assert told["cwd"] == str(tmp_path)


async def test_a_child_has_no_more_memory_than_it_may() -> None:
    async with upstream(memory=64 * 2**20) as up:
        session = await begun(up)
        assert await called(up, session, "eat", bytes=2**20) == f"ate {2**20}"
        assert await called(up, session, "eat", bytes=256 * 2**20) == "no memory"


async def test_a_child_that_ignores_sigterm_is_killed_with_all_that_it_has_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "weighbridge.mcp")
    async with upstream("stubborn", "children") as up:
        pid = int(await called(up, await begun(up), "whoami"))
        line = next(each.getMessage() for each in caplog.records if "children " in each.getMessage())
        others = [int(each) for each in line.split()[-2:]]
        assert all(map(alive, (pid, *others)))
        started = asyncio.get_running_loop().time()
    assert not any(map(alive, (pid, *others)))
    assert asyncio.get_running_loop().time() - started < 4.5


async def test_what_nobody_uses_ends_and_what_somebody_listens_to_does_not() -> None:
    async with upstream(session_idle=0.3) as up:
        quiet, heard = await begun(up), await begun(up)
        stream = await up.send(b"GET", [(b"mcp-session-id", heard.encode())], b"", whose="acme/bot")
        pid = int(await called(up, quiet, "whoami"))
        await gone(pid)
        assert (await said(up, calling("whoami"), quiet)).status == 404
        assert await called(up, heard, "echo", text="here") == "here"
        stream.close()


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_what_the_gateway_has_started_to_ask_for_itself_ends_when_it_has_answered(era: Era) -> None:
    async with upstream() as up:
        session = await begun(up)
        own = await called(up, session, "whoami")
        found, _ = await offered(up, era, 1_000_000)
        assert found
        async with asyncio.timeout(10):
            while len(up) > 1:
                await asyncio.sleep(0.01)
        assert await called(up, session, "whoami") == own


async def test_an_agent_that_is_stopped_loses_its_children_and_others_keep_theirs() -> None:
    async with upstream() as up:
        mine, theirs = await begun(up), await begun(up, "acme/other")
        pid = int(await called(up, mine, "whoami"))
        waiting = asyncio.create_task(said(up, calling("never", 6), mine))
        await asyncio.sleep(0)
        up.dismiss("acme/bot")
        with pytest.raises(ReplyBroken, match="its agent was stopped"):
            await waiting
        await gone(pid)
        assert await called(up, theirs, "echo", "acme/other", text="here") == "here"


async def test_a_retired_server_finishes_what_is_under_way_and_takes_nothing_new() -> None:
    async with upstream() as up:
        busy, idle = await begun(up), await begun(up)
        pids = [int(await called(up, each, "whoami")) for each in (busy, idle)]
        waiting = asyncio.create_task(said(up, calling("slow", seconds=0.3), busy))
        await asyncio.sleep(0)
        up.retire()
        await gone(pids[1])
        assert b"at last" in await whole(await waiting)
        await gone(pids[0])
        with pytest.raises(TargetFailed, match="not served any more"):
            await begun(up)


async def test_a_child_that_does_not_read_is_asked_no_more() -> None:
    async with upstream() as up:
        session = await begun(up)
        waiting = [asyncio.create_task(said(up, calling("sleep", 1), session))]
        for number in range(2, 5):
            waiting.append(asyncio.create_task(said(up, calling("echo", number, text="x" * 900_000), session)))
            await asyncio.sleep(0)
        with pytest.raises(TargetFailed, match="takes no request now"):
            await said(up, calling("echo", 6, text="x"), session)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)


@pytest.mark.parametrize(("mode", "shared"), [(MODES[0], False), (MODES[1], True)])
async def test_the_stock_client_is_served_in_both_eras_as_if_the_server_were_at_a_url(mode: str, shared: bool) -> None:
    local = {"name": "local", "kind": "mcp", "command": [sys.executable, STOCK], "shared": shared}
    async with gate(tools=[local]) as running:
        try:
            async with client(f"http://127.0.0.1:{running.port}/mcp/local", AGENT_KEY, mode, Someone()) as one:
                assert [each.name for each in (await one.list_tools()).tools] == ["echo", "steps"]
                assert (await one.call_tool("echo", {"text": "h\u00e9"})).structured_content == {"result": "h\u00e9"}
                heard: list[float] = []

                async def hear(progress: float, total: float | None, message: str | None) -> None:
                    heard.append(progress)

                await one.call_tool("steps", {"count": 3}, progress_callback=hear)
                assert heard == [1.0, 2.0, 3.0]
                assert [str(each.uri) for each in (await one.list_resources()).resources] == ["memo://local"]
                told = await one.get_prompt("greet", {"name": "Ann"})
                assert told.messages[0].content.text == "Greet Ann."  # type: ignore[union-attr]
        finally:
            await running.pipeline.assembly.toolbox.close()
