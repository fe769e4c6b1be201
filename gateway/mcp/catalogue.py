"""What one MCP server offers, as its agents may see it: definitions of tools, held against what people have accepted.

The server's lists pass through here on their way to an agent, and calls on their way to the server: what an agent is
not shown it cannot call either.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.mcp.messages import McpCall
from adapters.mcp.mirrors import Parameter
from config.settings import ToolSettings
from gateway.exchange import Exchange
from gateway.tools.desk import Desk


class Catalogue:
    """The definitions of one server, as they were seen last."""

    def __init__(self, settings: ToolSettings) -> None:
        self.settings = settings

    async def check(self, x: Exchange, call: McpCall, desk: Desk) -> McpCall:
        """The call with the definition of its tool, before anybody decides on it. Raises MalformedCall where its
        arguments are not what the definition wants."""
        return call

    def mirrored(self, call: McpCall) -> Sequence[Parameter]:
        """The arguments of its tool that stand in headers, too, as the definition says that `check` has held it
        against; none where that is not known."""
        return ()

    def noticed(self, method: str) -> None:
        """The server tells that one of its lists has changed: `method` is `notifications/tools/list_changed` or its
        like."""

    async def listed(self, x: Exchange, call: McpCall, answer: bytes, desk: Desk) -> bytes:
        """The JSON-RPC answer to `tools/list` and its like, with what this agent could ever be allowed."""
        return answer

    async def returned(self, x: Exchange, call: McpCall, answer: bytes, desk: Desk) -> bytes:
        """The JSON-RPC answer to a call that was decided on, as the agent may have it."""
        return answer
