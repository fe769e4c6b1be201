"""Where an MCP server is reached: its credential, its own host, and streams that say nothing for long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from config.settings import ToolSettings
from gateway.carrier import FirstByteTimeout, IdleTimeout
from gateway.mcp.upstream import Answer, HttpUpstream
from tests.support.mcp_servers import Say, scripted

STREAM = {"content-type": "text/event-stream"}


def settings(url: str, **more: object) -> ToolSettings:
    return ToolSettings.model_validate({"name": "up", "kind": "mcp", "url": url, **more})


async def silent(say: Say) -> None:
    await say(b": begun\n\n")
    await asyncio.sleep(0.6)
    await say(b": late\n\n")


async def test_the_servers_own_host_and_key_are_sent() -> None:
    async with scripted((200, {}, b"{}")) as server:
        upstream = HttpUpstream(settings(server.url, key="the-servers-key"))
        answer = await upstream.send(b"POST", [], b"{}")
        assert (answer.status, await answer.read()) == (200, b"{}")
        answer.close()
        await upstream.close()
        (asked,) = server.asked
        assert asked.headers["host"] == server.url.removeprefix("http://").removesuffix("/mcp")
        assert asked.headers["authorization"] == "Bearer the-servers-key"


@pytest.mark.parametrize(("method", "headers"), [(b"GET", []), (b"POST", [(b"mcp-method", b"subscriptions/listen")])])
async def test_a_stream_of_the_servers_own_may_be_silent(method: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    async with scripted((200, STREAM, silent)) as server:
        upstream = HttpUpstream(settings(server.url, idle="200ms", longest="400ms"))
        answer = await upstream.send(method, headers, b"")
        assert b"".join([piece async for piece in _pieces(answer)]) == b": begun\n\n: late\n\n"
        answer.close()
        await upstream.close()


async def test_an_answer_to_a_call_may_not() -> None:
    async with scripted((200, STREAM, silent)) as server:
        upstream = HttpUpstream(settings(server.url, idle="200ms"))
        answer = await upstream.send(b"POST", [], b"")
        with pytest.raises(IdleTimeout):
            _ = [piece async for piece in _pieces(answer)]
        answer.close()
        await upstream.close()


async def test_a_server_that_does_not_begin_to_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = HttpUpstream(settings(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", timeout="200ms"))
        with pytest.raises(FirstByteTimeout):
            await upstream.send(b"POST", [], b"")
        await upstream.close()


def test_slow_tools_have_more_time_than_plain_http_has() -> None:
    assert settings("http://localhost/mcp").timeout == 300.0
    assert settings("http://localhost/mcp", timeout="7s").timeout == 7.0
    plain = ToolSettings.model_validate({"name": "up", "kind": "http", "url": "http://localhost"})
    assert plain.timeout == 8.0


async def _pieces(answer: Answer) -> AsyncIterator[bytes]:
    while piece := await answer.read():
        yield piece
