"""MCP servers of the stock SDK that know one era only, as many in the world do, and one that answers nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import orjson
from mcp.server import MCPServer

MODERN = b"2026-07-28"


class OneEra:
    """A server in front of which the other era is refused, as by one that has never heard of it."""

    def __init__(self, server: MCPServer, era: str) -> None:
        self._server = server
        self._modern = era == "modern"
        self.cancelled = asyncio.Event()

    def streamable_http_app(self, **options: Any) -> Any:
        app = self._server.streamable_http_app(**options)

        async def serve(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            modern = (b"mcp-protocol-version", MODERN) in scope.get("headers", ())
            if scope["type"] != "http" or modern is self._modern:
                await app(scope, receive, send)
                return
            error = {"code": -32600, "message": "Bad Request: Unsupported protocol version"}
            body = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": error})
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return serve


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """The URL of a server that takes connections, and says nothing."""
    leaving = asyncio.Event()

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await leaving.wait()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    finally:
        leaving.set()
        server.close()
        await server.wait_closed()
