"""The answer on its way to the agent: started once, with the gateway's own headers on it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import orjson

from adapters.base import Headers, Refusal
from gateway.allowances import limit_headers
from gateway.exchange import Exchange
from gateway.headers import replaced
from policies.approval_store import MOST_ANSWER, Answer

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Framed = Callable[[int, bytes], bytes | None]

_EVENTS: Headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


class Reply:
    """Writes one answer. `started` says whether something of it was sent: then nobody can give another one.

    A stream can be `kept_open` before there is an answer; what then comes of the call is told within the stream.
    """

    __slots__ = ("_copy", "_failed", "_framed", "_send", "_shape", "_x", "events", "kept_open", "started")

    def __init__(self, x: Exchange, send: Send) -> None:
        self._x = x
        self._send = send
        self._copy: Copy | None = None
        self._framed: Framed | None = None
        self._shape: Shape | None = None
        self._failed: int | None = None
        """The status of an answer that cannot be told as such, because the stream has begun."""
        self.started = False
        self.events = False
        """Whether what was started is a stream of events, to which one can be added at any time."""
        self.kept_open = False

    async def start(self, status: int, headers: Headers, *, events: bool = False) -> None:
        if self._shape is not None:
            headers = self._shape.headers(status, headers)
        if self._copy is not None:
            self._copy.begin(status, headers)
        if not self.kept_open:
            await self._send(self._head(status, headers))
        else:
            self.started = True
            if status >= 300:
                self._failed = status
        self.events = events

    async def piece(self, piece: bytes) -> None:
        if self._shape is not None:
            piece = self._shape.piece(piece)
        if self._copy is not None:
            self._copy.add(piece)
        if self._failed is None:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes = b"") -> None:
        if self._shape is not None and piece:
            piece = self._shape.piece(piece)
        if self._copy is not None:
            self._copy.add(piece)
            self._copy.whole = True
        if self._failed is not None:
            piece = self._event(self._failed, b"")
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer in one piece, with its length."""
        if self._shape is not None:
            headers, body = self._shape.headers(status, headers), self._shape.whole(body)
        if self._copy is not None:
            self._copy.begin(status, headers)
            self._copy.add(body)
            self._copy.whole = True
        if self.kept_open:
            self.started = True
            body = self._in_stream(status, body)
        else:
            await self._send(self._head(status, [*headers, (b"content-length", b"%d" % len(body))]))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def keep_open(self, sign: bytes, framed: Framed | None = None) -> None:
        """Begins a stream for which there is no answer yet, or shows that it is still alive, by whole events.

        `framed` is how an answer in one piece, with its status, stands in it; None for what cannot.
        """
        if not self.kept_open:
            await self._send(self._head(200, _EVENTS))
            self.started, self.kept_open, self._framed = False, True, framed
        await self._send({"type": "http.response.body", "body": sign, "more_body": True})

    async def refuse(self, refusal: Refusal) -> None:
        """The end of a stream that was kept open for nothing."""
        self.started = True
        await self._send(
            {"type": "http.response.body", "body": self._x.adapter.broken_stream(refusal), "more_body": False}
        )

    def shaped(self, shape: Shape) -> None:
        """From here on what comes of a target is sent, and kept, as `shape` makes it."""
        self._shape = shape

    def copied(self, copy: Copy | None = None) -> None:
        """From here on the answer is kept, for others who wait for it: as it is, or what `copy` makes of it."""
        self._copy = copy or _Copy()

    def forgotten(self) -> None:
        """What comes now is the gateway's own word to this agent alone."""
        self._copy = self._shape = None

    @property
    def answer(self) -> Answer | None:
        """What was kept; None where that is nothing, broke off, or is too long to be kept."""
        return self._copy.answer if self._copy is not None else None

    def _in_stream(self, status: int, body: bytes) -> bytes:
        framed = self._framed(status, body) if self._framed is not None else None
        if framed is not None:
            return framed
        return body if status < 300 and self._framed is None else self._event(status, body)

    def _event(self, status: int, body: bytes) -> bytes:
        """An answer that is no success, within a stream."""
        refusal = Refusal(status, "target_failed", _told(status, body), self._x.id, False, None, {})
        return self._x.adapter.broken_stream(refusal)

    def _head(self, status: int, headers: Headers) -> dict[str, Any]:
        x = self._x
        x.status = status
        self.started = True
        if x.standings:
            headers = replaced(headers, limit_headers(x.adapter, x.standings, time.time_ns()))
        return {"type": "http.response.start", "status": status, "headers": headers + marks(x)}


class Shape(Protocol):
    """Makes an answer into another one; of a stream it is given whole events."""

    def headers(self, status: int, headers: Headers) -> Headers: ...
    def piece(self, piece: bytes) -> bytes: ...
    def whole(self, body: bytes) -> bytes: ...


class Copy(Protocol):
    """Sees an answer go by, and says what is to be kept of it."""

    whole: bool
    """Whether it has come to its end."""

    def begin(self, status: int, headers: Headers) -> None: ...
    def add(self, piece: bytes) -> None: ...

    @property
    def answer(self) -> Answer | None: ...


class _Copy:
    """An answer as it goes by, for as long as it is short enough."""

    __slots__ = ("_headers", "_pieces", "_size", "_status", "whole")

    def __init__(self) -> None:
        self._status = 0
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._size = 0
        self.whole = False

    def begin(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= MOST_ANSWER:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    @property
    def answer(self) -> Answer | None:
        if not self.whole or self._size > MOST_ANSWER:
            return None
        return Answer(self._status, tuple(self._headers), b"".join(self._pieces))


def marks(x: Exchange) -> Headers:
    """The gateway's own headers: which call this was, what was decided, where it went."""
    lines = [(b"x-weighbridge-call", x.id.encode())]
    if x.decision is not None:
        lines.append((b"x-weighbridge-decision", x.decision.effect.encode()))
    if x.arm is not None:
        name = x.arm.target.name.encode()
        lines.append((b"x-weighbridge-target", name))
        lines.append((b"x-weighbridge-arm", name))
    elif x.sent_at is not None and x.call is not None:
        lines.append((b"x-weighbridge-target", x.call.target.encode()))
    if x.held is not None:
        lines.append((b"x-weighbridge-approval", x.held.encode()))
        if x.changed is not None:
            lines.append((b"x-weighbridge-changed", x.changed.encode()))
    if x.clamped is not None:
        lines.append((b"x-weighbridge-max-tokens-clamped", b"%d" % x.clamped))
    if x.warnings:
        lines.append((b"x-weighbridge-budget", ", ".join(x.warnings).encode()))
    return lines


def _told(status: int, body: bytes) -> str:
    """What an answer says that is no success; the protocols agree on where it says it."""
    try:
        error = orjson.loads(body)["error"]
        said = error["message"]
    except (ValueError, TypeError, LookupError):
        said = None
    return said if isinstance(said, str) and said else f"The target answered {status}."
