"""The stock Python client of MCP, with someone at it who answers what servers ask."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    LoggingMessageNotificationParams,
    Root,
    TextContent,
)
from pydantic import FileUrl

MODES: Final = ("auto", "legacy")
"""How the client begins: with the newest version, or with the handshake."""


@dataclass
class Someone:
    """The client's user, model and log."""

    asked: list[Any] = field(default_factory=list)
    logged: list[Any] = field(default_factory=list)

    async def elicited(self, _: Any, params: ElicitRequestParams) -> ElicitResult:
        self.asked.append(params)
        return ElicitResult(action="accept", content={"response": "yes", "name": "Alice", "answer": "yes"})

    async def sampled(self, _: Any, params: CreateMessageRequestParams) -> CreateMessageResult:
        self.asked.append(params)
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text="Paris"), model="m")

    async def rooted(self, _: Any) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri=FileUrl("file:///work"), name="work")])

    async def told(self, params: LoggingMessageNotificationParams) -> None:
        self.logged.append(params.data)


@contextlib.asynccontextmanager
async def client(url: str, key: str, mode: str, someone: Someone, **options: Any) -> AsyncIterator[Client]:
    """A client that has begun."""
    headers = {"authorization": f"Bearer {key}", **options.pop("headers", {})}
    hooks = {"request": options.pop("hooks", [])}
    async with httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(10, read=300), event_hooks=hooks) as http:
        asking: dict[str, Any] = {
            "elicitation_callback": someone.elicited,
            "sampling_callback": someone.sampled,
            "list_roots_callback": someone.rooted,
            "logging_callback": someone.told,
            **options,
        }
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, **asking) as begun:
            yield begun
