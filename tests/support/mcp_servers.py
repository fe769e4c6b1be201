"""Real MCP servers, of the stock SDK, on ports of their own: what the gateway is put in front of in tests."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from mcp.server import MCPServer


@contextlib.asynccontextmanager
async def serving(server: MCPServer, **options: Any) -> AsyncIterator[str]:
    """The URL of a server that speaks both eras until the block ends."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    config = uvicorn.Config(server.streamable_http_app(**options), log_config=None, lifespan="on")
    running = uvicorn.Server(config)
    running.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(running.serve([sock]))
    try:
        while not running.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        running.should_exit = True
        await task
