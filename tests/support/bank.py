"""A bank behind the gate: an MCP server whose payments people decide on, which counts what it does."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import httpx2
import orjson
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from policies.approvals import State
from policies.decision import Decision, Effect
from tests.support.door import connected, post
from tests.support.exchanges import AGENT_KEY, ALLOWED
from tests.support.gate import Gate, gate
from tests.support.mcp_servers import serving
from tests.support.register import Register

LINK: Final = "https://gate.example.com"
MODERN: Final = "2026-07-28"
TASKS: Final[Mapping[str, Any]] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
HELD: Final = ("pay", "ask", "fail")
LEADS: Final[Mapping[str, Any]] = {"elicitation": {"form": {}, "url": {}}}
"""What clients say that they can do."""


def script(document: Mapping[str, Any]) -> Decision:
    asked = dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))
    waits = document["call"]["operation"] in HELD and "approval" not in document
    return asked if waits else ALLOWED


class Bank:
    """A server with one tool, which counts what it does."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.server = MCPServer("bank")

        @self.server.tool()
        def pay(amount: int) -> str:
            """Pays so much."""
            self.paid.append(amount)
            return f"paid {amount}, payment {len(self.paid)}"

        @self.server.tool()
        def fail(amount: int) -> str:
            """Never works."""
            self.paid.append(amount)
            raise MCPError(-31000, "The vault is shut.")

        @self.server.tool()
        def ask(amount: int, ctx: Context) -> str | InputRequiredResult:
            """Asks its client's user before it pays."""
            responses = ctx.input_responses
            if responses is None:
                schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}}
                form = ElicitRequestFormParams(message="Sure?", requested_schema=schema)
                return InputRequiredResult(input_requests={"sure": ElicitRequest(params=form)}, request_state="asked")
            self.paid.append(amount)
            return f"paid {amount} after {ctx.request_state}, payment {len(self.paid)}"


class Stage:
    """A gate before the bank, and the one approval that it opens."""

    def __init__(self, g: Gate, bank: Bank, store: Register, sections: Mapping[str, Any]) -> None:
        self.gate, self.bank, self.store = g, bank, store
        self._sections = sections
        self.led: list[Any] = []
        """What the client's user was asked."""
        self.answer = "accept"
        self.asked = 0
        """How many messages were sent."""
        self.key = AGENT_KEY
        self.path = "/mcp/bank"

    @asynccontextmanager
    async def client(self, mode: str, *, leads: bool = False) -> AsyncIterator[Client]:
        """As its manual has it. One that `leads` can lead its user to a page."""

        async def lead(_: Any, params: Any) -> ElicitResult:
            self.led.append(params)
            return ElicitResult(action=self.answer)  # type: ignore[arg-type]

        async with AsyncExitStack() as stack:
            headers = {"authorization": f"Bearer {AGENT_KEY}"}
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=60))
            transport = streamable_http_client(f"http://127.0.0.1:{self.gate.port}/mcp/bank", http_client=http)
            able: Any = {"elicitation_callback": lead} if leads else {}
            yield await stack.enter_async_context(Client(transport, mode=mode, **able))

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[Stage]:
        """Another gateway with the same approvals and the same key."""
        async with gate(script=script, register=self.store, **self._sections) as g:
            g.pipeline.seals = self.gate.pipeline.seals
            yield Stage(g, self.bank, self.store, self._sections)

    async def say(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        abilities: Mapping[str, Any] | None = None,
        *headers: str,
        **params: Any,
    ) -> tuple[int, dict[bytes, bytes], Any]:
        """A modern message, byte for byte: a tool's call, or another method where `name` has a slash."""
        method = name if "/" in name else "tools/call"
        said = {**params, "_meta": {f"io.modelcontextprotocol/{key}": value for key, value in (
            ("protocolVersion", MODERN), ("clientCapabilities", abilities or {}),
        )}}  # fmt: skip
        if method == "tools/call":
            said |= {"name": name, "arguments": arguments or {}}
        self.asked += 1
        identity = self.asked
        body = orjson.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": said})
        named = params.get("taskId", name)
        lines = [
            f"authorization: Bearer {self.key}",
            "content-type: application/json",
            f"mcp-protocol-version: {MODERN}",
            f"mcp-method: {method}",
            *([f"mcp-name: {named}"] if named != method else []),
            *(headers or ("accept: application/json, text/event-stream",)),
        ]
        async with connected(self.gate.port) as client:
            await client.say(post(self.path, body, *lines))
            status, answered, content = await asyncio.wait_for(client.answer(), 10)
        if answered.get(b"content-type") == b"text/event-stream":
            return status, answered, content
        message = orjson.loads(content)
        assert message["id"] == identity
        return status, answered, message

    async def decide(self, yes: bool, after: float = 0.0) -> None:
        """A person, so many seconds after they were asked."""
        await self.held()
        await asyncio.sleep(after)
        await self.gate.pipeline.holds.vote(self.id, "fay", ["finance"], yes, "Not this one." if not yes else "")

    async def held(self) -> None:
        """Until a call is."""
        async with asyncio.timeout(10):
            while not self.store.kept:
                await asyncio.sleep(0.005)

    @property
    def id(self) -> str:
        (which,) = self.store.kept
        return which

    @property
    def state(self) -> State:
        return self.store.kept[self.id].state

    async def over(self) -> None:
        async with asyncio.timeout(10):
            while self.state is not State.DONE:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def staged(
    link: str | None = None, *, agents: Sequence[Mapping[str, Any]] = (), **approvals: Any
) -> AsyncIterator[Stage]:
    bank, store = Bank(), Register()
    approvals = {**approvals, **({"link": link} if link else {})}
    async with serving(bank.server) as url:
        own = {"name": "support-bot", "tenant": "acme", "key": AGENT_KEY, "roles": ["support"], "autonomy_tier": 2}
        sections: Mapping[str, Any] = {
            "tools": [{"name": "bank", "kind": "mcp", "url": url}],
            "approvals": approvals,
            "agents": [own, *agents],
        }
        async with gate(script=script, register=store, **sections) as g:
            yield Stage(g, bank, store, sections)


def text(result: CallToolResult) -> str:
    (block,) = result.content
    return str(getattr(block, "text", block))
