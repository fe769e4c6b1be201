"""One request of a connection and the answer to it, as ASGI has them: what the front door hands to an application.

It takes the place of uvicorn's own cycle: an answer's head is checked as a whole instead of line by line, and the
pieces of a body are kept as they came instead of being copied together and out again.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

log = logging.getLogger("weighbridge.door")

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MOST_NAMES: Final = 1024
_LONGEST_NAME: Final = 64
"""How many names of headers are remembered as checked, and how long these may be."""

_IN_A_LINE: Final = bytes(byte for byte in range(256) if byte == 9 or (byte >= 32 and byte != 127))
"""What a head may consist of besides its line ends: visible characters, space, tab, and the upper half."""

_LENGTH: Final = b"content-length: "
_CODING: Final = b"transfer-encoding: "
_CONNECTION: Final = b"connection: "
_FRAMING: Final = frozenset({_LENGTH, _CODING, _CONNECTION})
_BODILESS: Final = frozenset({204, 304})
_CHUNKED: Final = -1


class _Openings(dict[bytes, bytes]):
    """How the line of a header begins, by the header's name: checked and put in lower case when it is first used."""

    def __missing__(self, name: bytes) -> bytes:
        if not _TOKEN.fullmatch(name):
            raise ValueError("an answer's header has a name that no header can have")
        opening = name.lower() + b": "
        if len(name) <= _LONGEST_NAME:
            if len(self) >= _MOST_NAMES:
                self.clear()
            self[name] = opening
        return opening


_openings: Final = _Openings()


class Flow(Protocol):
    """Whether the client takes what it is sent."""

    write_paused: bool

    async def drain(self) -> None: ...

    def resume_reading(self) -> None: ...


class Wire(Protocol):
    """The connection, as far as an answer needs it."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool: ...


class Cycle:
    """`keep_alive` is whether the connection serves another request afterwards; the door decides it as late as it can.

    `message_event` is set when something has happened that `receive` may be waiting for.
    """

    __slots__ = (
        "_default_headers",
        "_expects_100",
        "_flow",
        "_left",
        "_on_response",
        "_pieces",
        "_wire",
        "disconnected",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "waiting",
    )

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        wire: Wire,
        flow: Flow,
        default_headers: Iterable[tuple[bytes, bytes]],
        on_response: Callable[[], None],
        *,
        expects_100: bool,
    ) -> None:
        self.scope = scope
        self.disconnected = False
        self.keep_alive = False
        self.message_event = asyncio.Event()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.waiting = 0
        """Bytes of the body that came and were not received yet."""
        self._wire = wire
        self._flow = flow
        self._default_headers = default_headers
        self._on_response = on_response
        self._expects_100 = expects_100
        self._pieces: list[bytes] = []
        self._left = 0
        """Bytes of the answer's body still to be sent, or _CHUNKED."""

    def feed(self, piece: bytes) -> None:
        """Takes a piece of the request's body."""
        self._pieces.append(piece)
        self.waiting += len(piece)
        self.message_event.set()

    async def run(self, application: Application) -> None:
        """Has the application answer; sees to it that there is an answer, or no connection."""
        try:
            await application(self.scope, self.receive, self.send)
        except BaseException as error:
            log.error("an application failed on a request", exc_info=error)
        else:
            if self.response_complete or self.disconnected:
                return
            log.error("an application ended without completing its answer")
        if self.response_started or self.disconnected:
            self._wire.close()
            return
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body"})

    async def receive(self) -> Message:
        """ASGI's receive."""
        if self._expects_100 and not self._wire.is_closing():
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expects_100 = False
        if not self.disconnected and not self.response_complete:
            self._flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.waiting = 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """ASGI's send. Raises ValueError for a head that cannot be written, RuntimeError for messages out of turn."""
        if self._flow.write_paused and not self.disconnected:
            await self._flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.body" and self.response_started and not self.response_complete:
            self._write_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and not self.response_started:
            self._write_head(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"{kind} is out of turn")

    def _write_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        headers = (*self._default_headers, *headers)
        lines = [STATUS_LINE[status]]
        left: int | None = None
        closing = False
        for name, value in headers:
            opening = _openings[name]
            if opening in _FRAMING:
                if opening == _CONNECTION:
                    closing = closing or b"close" in [token.strip() for token in value.lower().split(b",")]
                elif opening == _CODING and value.lower() == b"chunked":
                    left = _CHUNKED
                elif opening == _LENGTH and left is None:
                    left = int(value)
            lines += (opening, value, b"\r\n")
        if closing:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if left is None and status not in _BODILESS and self.scope["method"] != "HEAD":
            left = _CHUNKED
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        # Deleting all that may stand in a line leaves the line ends, and those must be ours.
        if head.translate(None, _IN_A_LINE) != b"\r\n" * (len(lines) - 2 * len(headers)):
            raise ValueError("an answer's header has a value that no header can have")
        self._left = left or 0
        self._expects_100 = False
        self.response_started = True
        self._wire.write(head)

    def _write_body(self, body: bytes, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            pass
        elif self._left == _CHUNKED:
            if body:
                self._wire.write(b"%x\r\n%b\r\n" % (len(body), body))
            if not more:
                self._wire.write(b"0\r\n\r\n")
        else:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("an answer's body is not as long as its content-length says")
            if body:
                self._wire.write(body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self._wire.close()
            self._on_response()
