"""A plain HTTP tool that is an MCP server, too: what answers its messages, in place of a server, is this gateway.

It stands where any server does, behind `gateway.mcp.server`: there a call is decided, held and recorded, once, by the
name of its operation. Here it becomes a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from adapters.base import Headers
from adapters.errors import MalformedCall, UnknownEndpoint
from adapters.mcp import messages, offered
from gateway.tools.http import HttpTool

_JSON: Final[Headers] = [(b"content-type", b"application/json")]
_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
_SERVER: Final = "io.modelcontextprotocol/serverInfo"


class Said:
    """An answer that is there as a whole; implements `gateway.mcp.upstream.Answer`."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.complete = not body
        self._body = body

    async def read(self) -> bytes:
        body, self._body, self.complete = self._body, b"", True
        return body

    def close(self) -> None:
        """Nothing is held."""


class OfferedUpstream:
    """Implements `gateway.mcp.upstream.Upstream`."""

    def __init__(self, tool: HttpTool) -> None:
        self._tool = tool
        described = tool.operations
        assert described is not None, "only what a document describes is offered"
        usable = (each for each in described.operations.all if each.method in tool.settings.methods)
        self._operations = {each.name: each for each in usable if offered.offered(each)}
        self._tools = [offered.definition(each) for each in self._operations.values()]

    async def send(
        self, method: bytes, headers: Headers, body: bytes, leaving: Callable[[], None] | None = None, whose: str = ""
    ) -> Said:
        """As `gateway.carrier.Carrier.send`. Raises CarrierError, TargetFailed."""
        if method != b"POST":
            return Said(405, [(b"allow", b"POST"), *_JSON], b"{}")
        message = orjson.loads(body)
        if "id" not in message or "method" not in message:
            return Said(202, [], b"")
        params = message.get("params", {})
        modern = params.get("_meta", {}).get(_VERSION) == messages.MODERN
        found: dict[str, Any] | None
        if message["method"] == "tools/call":
            found = await self._called(params, leaving)
        else:
            found = self._known(message["method"], params, modern)
        if found is None:
            error = {"code": -32601, "message": "This server has tools, and nothing else."}
            told = {"jsonrpc": "2.0", "id": message["id"], "error": error}
            return Said(404 if modern else 200, _JSON, orjson.dumps(told))
        if modern:
            found = {"resultType": "complete", **found}
        return Said(200, _JSON, orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": found}))

    def _known(self, method: str, params: Mapping[str, Any], modern: bool) -> dict[str, Any] | None:
        """The result of a method that asks nothing of the tool; None for one that this server does not have."""
        about = {"name": self._tool.settings.name, "version": "1"}
        fresh = {"ttlMs": 0, "cacheScope": "private"} if modern else {}
        match method:
            case "initialize":
                wanted = params.get("protocolVersion")
                version = wanted if wanted in messages.LEGACY else messages.LEGACY[-1]
                return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
            case "server/discover":
                return {
                    "supportedVersions": [messages.MODERN],
                    "capabilities": {"tools": {}},
                    "_meta": {_SERVER: about},
                    **fresh,
                }
            case "tools/list":
                return {"tools": self._tools, **fresh}
            case "ping":
                return {}
        return None

    async def _called(self, params: Mapping[str, Any], leaving: Callable[[], None] | None) -> dict[str, Any]:
        operation = self._operations.get(str(params.get("name")))
        if operation is None:
            return _failed("There is no such tool.")
        try:
            wanted = offered.request(operation, params.get("arguments") or {})
            lines: Headers = [(b"content-type", wanted.kind)] if wanted.kind else []
            call = self._tool.request(wanted.method, wanted.path, wanted.query, lines, wanted.body)
            if call.operation != operation.name:  # an argument has made another path of its template
                return _failed("An argument leads to another operation.")
        except (MalformedCall, UnknownEndpoint) as error:
            return _failed(str(error))
        status, kind, body = await self._tool.fetch(call, leaving)
        return offered.result(status, kind, body)

    async def close(self) -> None:
        """The tool closes itself."""

    def retire(self) -> None:
        """The tool retires itself."""

    def dismiss(self, whose: str) -> None:
        """Nothing is kept for an agent."""


def _failed(why: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": why}], "isError": True}
