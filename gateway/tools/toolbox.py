"""The tools of one configuration, by their names: where a call of a tool is read, and where it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from adapters import http
from adapters.base import ToolCall
from adapters.errors import UnknownEndpoint
from adapters.mcp import messages
from adapters.mcp.joined import ALL
from adapters.mcp.messages import McpCall
from config.settings import ToolSettings
from gateway.exchange import Exchange
from gateway.lifeline import Lifeline
from gateway.mcp.joined import JoinedServer
from gateway.mcp.server import McpServer
from gateway.reply import Reply
from gateway.tools.desk import Desk, Tool
from gateway.tools.http import HttpTool
from gateway.tools.offered import OfferedUpstream
from policies.approvals import HeldCall

TOOLS: Final = frozenset({"http", "mcp"})
"""Protocols in which tools are called."""

_PATHS: Final[Mapping[str, str]] = {"http": http.PATH, "mcp": messages.PATH}
_KINDS: Final[Mapping[str, type[HttpTool] | type[McpServer]]] = {"http": HttpTool, "mcp": McpServer}


class Toolbox:
    """Tools that did not change keep their connections, their sessions and their children."""

    def __init__(self, tools: Iterable[ToolSettings], previous: Toolbox | None = None) -> None:
        """Raises SecretMissing, OSError, ConfigError."""
        self._tools: dict[tuple[str, str], Tool] = {}
        self._left: list[Tool] = []
        """Those of earlier configurations, which calls under way may still use."""
        for settings in tools:
            before = previous._tools.get((settings.kind, settings.name)) if previous is not None else None
            same = before is not None and before.settings == settings
            if isinstance(before, HttpTool) and not before.current():
                same = False
            tool = before if before and same else _KINDS[settings.kind](settings)
            self._tools[settings.kind, settings.name] = tool
            if settings.offer_as_mcp and isinstance(tool, HttpTool):
                offered = previous._tools.get(("mcp", settings.name)) if previous is not None and same else None
                self._tools["mcp", settings.name] = offered or McpServer(settings, OfferedUpstream(tool))

        members = [tool for tool in self._tools.values() if isinstance(tool, McpServer) and tool.settings.joined]
        if members:
            before = previous._tools.get(("mcp", ALL)) if previous is not None else None
            joined = before if isinstance(before, JoinedServer) else None
            same = joined is not None and joined.joins(members)
            self._tools["mcp", ALL] = joined if joined is not None and same else JoinedServer(members, joined)

    def succeed(self, previous: Toolbox) -> None:
        """From now on these are the tools; the others of the `previous` ones get no new calls."""
        kept = set(map(id, self._tools.values()))
        gone = [tool for tool in previous._tools.values() if id(tool) not in kept]
        for tool in gone:
            tool.retire()
        self._left = [*previous._left, *gone]

    def dismiss(self, whose: str) -> None:
        """Ends what is kept for an agent (`tenant/agent`) that a person has quarantined."""
        for tool in (*self._tools.values(), *self._left):
            tool.dismiss(whose)

    async def close(self) -> None:
        """Ends what was begun for the tools; calls under way break."""
        await asyncio.gather(*(tool.close() for tool in (*self._tools.values(), *self._left)))

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def find(self, protocol: str, name: str) -> Tool:
        """Raises UnknownEndpoint."""
        found = self._tools.get((protocol, name))
        if found is None:
            raise UnknownEndpoint(
                f"There is no tool {name[:100]!r} at {_PATHS[protocol]}{self._elsewhere(protocol, name)}"
            )
        return found

    def _elsewhere(self, protocol: str, name: str) -> str:
        """The end of the sentence that says that it is not here: where it is."""
        other = next((each for each in _PATHS if each != protocol and (each, name) in self._tools), None)
        if other is not None:
            return f": it is at {_PATHS[other]}{name}."
        every = f": {_PATHS[protocol]}{ALL} joins them" if (protocol, ALL) in self._tools else ""
        return f". Write its name behind that{every}." if not name else "."

    async def read(self, x: Exchange, body: bytes, argument: str, desk: Desk) -> ToolCall:
        """`argument` is what follows `/tools/` or `/mcp/`. Raises as `Tool.read` does, UnknownEndpoint."""
        name, slash, rest = argument.partition("/")
        return await self.find(x.adapter.protocol, name).read(x, body, slash + rest, desk)

    def stored(self, x: Exchange, held: HeldCall) -> ToolCall:
        """As `Tool.stored`. Raises UnknownEndpoint, MalformedCall."""
        return self._of(held.protocol, held.path).stored(x, held)

    def described(self, held: HeldCall) -> Mapping[str, Any]:
        """How its server defines the tool of a held call, as it was when the call was held; empty where that is not
        known here."""
        tool = self._tools.get((held.protocol, held.target))
        if not isinstance(tool, McpServer) or not held.definition:
            return {}
        return tool.catalogue.described(held.operation, held.definition)

    async def definition(self, x: Exchange, desk: Desk) -> str:
        """The hash of its tool's definition by now, of a call that nobody has just made; empty where there is none.

        Raises UnknownEndpoint, and as `Tool.read` does.
        """
        call = x.call
        tool = self.find(call.protocol, call.target) if isinstance(call, McpCall) else None
        if not isinstance(tool, McpServer) or not isinstance(call, McpCall):
            return ""
        return (await tool.catalogue.check(x, call, desk)).definition

    async def forward(self, x: Exchange, reply: Reply, lifeline: Lifeline, desk: Desk) -> None:
        """As `Tool.forward`. Raises UnknownEndpoint besides, where a reload has taken the tool away meanwhile."""
        await self._of(x.adapter.protocol, x.path).forward(x, reply, lifeline, desk)

    def _of(self, protocol: str, path: str) -> Tool:
        return self.find(protocol, path.removeprefix(_PATHS[protocol]).partition("/")[0])
