"""What a tool may ask of the gateway while a call of it is under way, and what it promises in turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from adapters.base import AgentCall, ToolCall
from config.settings import ToolSettings
from gateway.exchange import Exchange
from gateway.lifeline import Lifeline
from gateway.reply import Reply
from policies.approvals import HeldCall

if TYPE_CHECKING:
    from gateway.holding import Holds
    from gateway.mcp.definitions import Definitions
    from gateway.mcp.sessions import Seals
    from gateway.tools.inquiries import Inquiries


class Desk(Protocol):
    """The pipeline, as tools see it."""

    seals: Seals
    """What makes ids of sessions that every gateway can read, and nobody else."""
    holds: Holds
    """The calls that people decide on."""

    definitions: Definitions
    """What has been accepted of tools' definitions."""
    inquiries: Inquiries
    """What is asked of the policy beside calls."""

    async def within(
        self,
        x: Exchange,
        call: AgentCall,
        carry: Callable[[AgentCall], Awaitable[None]],
        alive: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """Another call that begins within this one, as when a server asks something of its client: decided, held,
        recorded and, once it may be made, carried by `carry`, which is given the call as it may be made.

        `alive` passes comments on while people decide; without it the call waits silently. Raises as `Pipeline.carry`
        does before it is sent, and as `carry` does.
        """
        ...


class Tool(Protocol):
    """One configured tool, ready to be used; a reload keeps it where its settings stay."""

    settings: ToolSettings

    async def read(self, x: Exchange, body: bytes, rest: str, desk: Desk) -> ToolCall:
        """The call that a request is. `rest` is what follows the tool's name in the path, with its slash.

        May set `x.adapter` and `x.session`. Raises MalformedCall and what else a call can be refused for.
        """
        ...

    def stored(self, x: Exchange, held: HeldCall) -> ToolCall:
        """The call that people have seen, within the request that comes to use it now; without one (`x.call` is None)
        as far as the policy has to know it. Raises MalformedCall."""
        ...

    async def forward(self, x: Exchange, reply: Reply, lifeline: Lifeline, desk: Desk) -> None:
        """The call's exchange with the tool. Raises as `gateway.forward.forward` does."""
        ...

    async def close(self) -> None:
        """Ends what was begun for it; calls under way break."""
        ...

    def retire(self) -> None:
        """No new call comes to it any more; those under way come to their end."""
        ...

    def dismiss(self, whose: str) -> None:
        """Ends what is kept for an agent (`tenant/agent`) that a person has quarantined."""
        ...
