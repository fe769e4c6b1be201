"""Where an MCP server is reached: an exchange of one HTTP request, whatever stands behind it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from adapters.base import Headers
from adapters.mcp import messages, mirrors
from config.settings import ToolSettings
from gateway.carrier import Carrier, Limits, Origin, Timeouts
from gateway.mcp.child import ChildUpstream
from gateway.oauth.client_credentials import credential
from gateway.tools import addresses

_LASTING: Final = 24 * 3600.0
"""Seconds that a stream of a server's own messages may take, and may be silent."""
_LISTENS: Final = (mirrors.METHOD, messages.LISTENS.encode())


class Answer(Protocol):
    """What comes back, as `gateway.carrier.Reply` is: a head, and pieces of a body until an empty one."""

    status: int
    headers: Headers
    complete: bool

    async def read(self) -> bytes: ...
    def close(self) -> None: ...


class Upstream(Protocol):
    """A server that speaks MCP Streamable HTTP, or stands in for one that speaks something else."""

    async def send(
        self, method: bytes, headers: Headers, body: bytes, leaving: Callable[[], None] | None = None, whose: str = ""
    ) -> Answer:
        """One request; as `gateway.carrier.Carrier.send`. `whose` names the agent, `tenant/agent`: what is kept for one
        is no other's. Raises CarrierError, TargetFailed."""
        ...

    async def close(self) -> None: ...
    def retire(self) -> None: ...
    def dismiss(self, whose: str) -> None:
        """Ends what is kept for an agent that a person has stopped for good, or, where it is empty, what the gateway
        has begun to ask for itself."""


def reached(settings: ToolSettings) -> Upstream:
    """The server of these settings. Raises SecretMissing, OSError, ssl.SSLError."""
    return ChildUpstream(settings) if settings.command else HttpUpstream(settings)


class HttpUpstream:
    """A server at a URL."""

    def __init__(self, settings: ToolSettings) -> None:
        """Raises SecretMissing, OSError, ssl.SSLError for a CA file that cannot be used."""
        origin, path = Origin.parse(settings.url)
        self._path = (path or "/").encode()
        timeouts = Timeouts(connect=5.0, first_byte=settings.timeout, idle=settings.idle, total=settings.longest)
        tls = ssl.create_default_context() if origin.scheme == "https" else None
        allowed = addresses.checker(origin.host, settings.networks)
        self._carrier = Carrier(origin, timeouts=timeouts, limits=Limits(), tls=tls, allowed=allowed)
        lasting = Timeouts(connect=5.0, first_byte=settings.timeout, idle=_LASTING, total=_LASTING)
        self._lasting = Carrier(origin, timeouts=lasting, limits=Limits(), tls=tls, allowed=allowed)
        """For streams that say nothing for as long as nothing happens."""
        self._credential = credential(settings)

    async def send(
        self, method: bytes, headers: Headers, body: bytes, leaving: Callable[[], None] | None = None, whose: str = ""
    ) -> Answer:
        chosen = self._lasting if method == b"GET" or _LISTENS in headers else self._carrier
        shown = await self._credential.lines()
        answer = await chosen.send(method, self._path, [*headers, *shown], body, leaving=leaving)
        if answer.status == 401 and (fresh := await self._credential.renewed(shown)) is not None:
            answer.close()  # whoever is not let in has done nothing
            answer = await chosen.send(method, self._path, [*headers, *fresh], body, leaving=leaving)
        return answer

    @property
    def secrets(self) -> Sequence[bytes]:
        """What the server is shown, and no agent may see."""
        return self._credential.secrets

    async def close(self) -> None:
        await self._carrier.close()
        await self._lasting.close()

    def retire(self) -> None:
        self._carrier.retire()
        self._lasting.retire()

    def dismiss(self, whose: str) -> None:
        """Nothing is kept for an agent."""
