"""One plain HTTP tool: its requests become calls, and its answers pass."""

from __future__ import annotations

from adapters.base import ToolCall
from adapters.errors import MalformedCall
from config.settings import ToolSettings
from gateway.exchange import Exchange
from gateway.lifeline import Lifeline
from gateway.reply import Reply
from gateway.tools.desk import Desk
from policies.approvals import HeldCall


class HttpTool:
    """Implements `gateway.tools.desk.Tool`."""

    def __init__(self, settings: ToolSettings) -> None:
        self.settings = settings

    async def read(self, x: Exchange, body: bytes, rest: str, desk: Desk) -> ToolCall:
        raise MalformedCall("Plain HTTP tools are not served yet.")

    def stored(self, x: Exchange, held: HeldCall) -> ToolCall:
        raise MalformedCall("Plain HTTP tools are not served yet.")

    async def forward(self, x: Exchange, reply: Reply, lifeline: Lifeline, desk: Desk) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is begun for it."""

    def retire(self) -> None:
        """Nothing is begun for it."""

    def dismiss(self, whose: str) -> None:
        """Nothing is kept for an agent."""
