"""The answer on its way to the agent: started once, with the gateway's own headers on it."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from adapters.base import Headers
from gateway.allowances import limit_headers
from gateway.exchange import Exchange
from gateway.headers import replaced

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Reply:
    """Writes one answer. `started` decides whether an error can still be told as a status."""

    __slots__ = ("_send", "_x", "started")

    def __init__(self, x: Exchange, send: Send) -> None:
        self._x = x
        self._send = send
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        await self._send(self._head(status, headers))

    async def piece(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer in one piece, with its length."""
        await self._send(self._head(status, [*headers, (b"content-length", b"%d" % len(body))]))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _head(self, status: int, headers: Headers) -> dict[str, Any]:
        x = self._x
        x.status = status
        self.started = True
        if x.standings:
            headers = replaced(headers, limit_headers(x.adapter, x.standings, time.time_ns()))
        return {"type": "http.response.start", "status": status, "headers": headers + marks(x)}


def marks(x: Exchange) -> Headers:
    """The gateway's own headers: which call this was, what was decided, where it went."""
    lines = [(b"x-weighbridge-call", x.id.encode())]
    if x.decision is not None:
        lines.append((b"x-weighbridge-decision", x.decision.effect.encode()))
    if x.arm is not None:
        name = x.arm.target.name.encode()
        lines.append((b"x-weighbridge-target", name))
        lines.append((b"x-weighbridge-arm", name))
    if x.clamped is not None:
        lines.append((b"x-weighbridge-max-tokens-clamped", b"%d" % x.clamped))
    if x.warnings:
        lines.append((b"x-weighbridge-budget", ", ".join(x.warnings).encode()))
    return lines
