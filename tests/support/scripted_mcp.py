"""An MCP server that says whatever a test wants: what it lists may change, lead in circles or be no list at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from tests.support.door import door

_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def tool(name: str, description: str = "does it", **members: Any) -> dict[str, Any]:
    return {"name": name, "description": description, "inputSchema": {"type": "object"}, **members}


class ScriptedServer:
    """Speaks both eras, or one. What it is asked stands in `asked`."""

    def __init__(self, *tools: Mapping[str, Any], eras: tuple[str, ...] = ("modern", "legacy")) -> None:
        self.tools: list[Any] = list(tools)
        self.eras = eras
        self.asked: list[Mapping[str, Any]] = []
        self.listed: Callable[[str | None], Mapping[str, Any]] | None = None
        """What a page of tools says, by its cursor."""
        self.others: dict[str, list[Any]] = {"resources": [], "resourceTemplates": [], "prompts": []}
        self.result: Any = {"content": [{"type": "text", "text": "done"}]}
        """What calls are answered with; an error where it has a `code`."""
        self.before: list[Mapping[str, Any]] = []
        """Notifications that come before an answer to a call, in a stream."""
        self.raw: bytes | None = None
        """What lists are answered with, whatever was asked."""
        self.released: asyncio.Event | None = None
        """Lists wait for it."""

    def count(self, method: str) -> int:
        return sum(1 for each in self.asked if each.get("method") == method)

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            received = await receive()
            body += received.get("body", b"")
            if not received.get("more_body"):
                break
        if scope["method"] != "POST":
            await _sent(send, 200 if scope["method"] == "DELETE" else 405, b"")
            return
        message = orjson.loads(body)
        self.asked.append(message)
        if "id" not in message or "method" not in message:
            await _sent(send, 202, b"")
            return
        modern = "io.modelcontextprotocol/protocolVersion" in message.get("params", {}).get("_meta", {})
        if ("modern" if modern else "legacy") not in self.eras:
            error = {"code": -32600, "message": "not spoken here"}
            await _sent(send, 400, orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}))
            return
        if message["method"].endswith("/list"):
            if self.released is not None:
                await self.released.wait()
            if self.raw is not None:
                await _sent(send, 200, self.raw)
                return
        result = self._result(message)
        if modern and isinstance(result, dict):
            result = {"resultType": "complete", **result}
        kind = "error" if isinstance(result, dict) and "code" in result else "result"
        answer = {"jsonrpc": "2.0", "id": message["id"], kind: result}
        session = [] if modern else [(b"mcp-session-id", b"s-1")]
        if self.before and message["method"] == "tools/call":
            events = [{"jsonrpc": "2.0", **each} for each in self.before] + [answer]
            text = b"".join(b"event: message\ndata: %b\n\n" % orjson.dumps(each) for each in events)
            await _sent(send, 200, text, b"text/event-stream", session)
        else:
            await _sent(send, 200, orjson.dumps(answer), extra=session)

    def _result(self, message: Mapping[str, Any]) -> Any:
        method, params = message["method"], message.get("params", {})
        if method == "initialize":
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "scripted", "version": "1"},
            }
        if method == "tools/list":
            return self.listed(params.get("cursor")) if self.listed is not None else {"tools": self.tools}
        member = {
            "resources/list": "resources", "resources/templates/list": "resourceTemplates", "prompts/list": "prompts",
        }.get(method)  # fmt: skip
        return {member: self.others[member]} if member is not None else self.result


async def _sent(
    send: _Send,
    status: int,
    body: bytes,
    kind: bytes = b"application/json",
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *(extra or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def scripted(server: ScriptedServer) -> AsyncIterator[str]:
    """Its URL, until the block ends."""
    async with door(server) as port:
        yield f"http://127.0.0.1:{port}/mcp"
