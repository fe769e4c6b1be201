"""The front door: one agent's connection, with limits that keep a bad client from being anybody else's trouble."""

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.lifeline import BodyTooSlow, ClientGone, Gone


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Open connections; bytes of a request's head; seconds for the head, the body, and a client that does not read."""

    connections: int
    header_bytes: int
    header_timeout: float
    body_timeout: float
    write_timeout: float


_IDLE, _HEAD, _BODY = range(3)
_ONE_WRITE = 64 * 1024


class Corked:
    """A connection's transport that sends what is written in one turn of the event loop at once.

    The server writes an answer's head and its body one after the other; sent apart they cost two system calls here and
    wake the client twice.
    """

    __slots__ = ("_loop", "_size", "_transport", "_waiting")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)
        self._size += len(data)
        if self._size > _ONE_WRITE:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._waiting.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class FrontDoor(HttpToolsProtocol):
    """uvicorn's protocol with less trust: it lets clients send as many headers and take as much time as they like.

    No timer is made for a request that arrives whole, which is nearly all of them.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: DoorLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.hangup: Gone | None = None
        self._limits = limits
        self._phase = _IDLE
        self._head_bytes = 0
        self._refused = False
        self._patience: asyncio.TimerHandle | None = None
        self._patience_phase = _IDLE
        self._unread: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(Corked(transport, self.loop))  # type: ignore[arg-type]  # all that uvicorn uses of one
        if len(self.connections) > self._limits.connections:
            self._refuse(b"503 Service Unavailable", b"The gateway has no connection left. Try again later.")
        else:
            self._expect(_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(_IDLE)
        if self._unread is not None:
            self._unread.cancel()
        hangup, self.hangup = self.hangup, None
        super().connection_lost(exc)
        if hangup is not None:
            hangup(ClientGone)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        before = self._head_bytes
        super().data_received(data)
        if self._phase == _HEAD:
            # on_header only sees finished lines; a line that never ends has to be counted as it comes.
            self._head_bytes = max(self._head_bytes, before + len(data))
            if self._head_bytes > self._limits.header_bytes:
                self._refuse(b"431 Request Header Fields Too Large", b"The request's headers are too long.")
                return
        if self._phase != self._patience_phase and not self._refused:
            self._expect(self._phase)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _HEAD
        self._head_bytes = 0
        self.scope["door"] = self  # type: ignore[typeddict-unknown-key]  # ours, beside the keys ASGI names

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._phase = _BODY
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._phase = _IDLE
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.write_timeout, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes > self._limits.header_bytes:
            self._refuse(b"431 Request Header Fields Too Large", b"The request's headers are too long.")
        else:
            self._refuse(b"400 Bad Request", b"This is not an HTTP/1.1 request that can be relied on.")

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            raise ValueError("head too long")

    def _expect(self, phase: int) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._patience_phase = phase
        if phase == _HEAD:
            self._patience = self.loop.call_later(self._limits.header_timeout, self._head_overdue)
        elif phase == _BODY:
            self._patience = self.loop.call_later(self._limits.body_timeout, self._body_overdue)

    def _head_overdue(self) -> None:
        self._refuse(b"408 Request Timeout", b"The request's headers took too long.")

    def _body_overdue(self) -> None:
        # With pipelined requests the call that is being answered is not the one whose body is missing.
        if self.hangup is not None and not self.pipeline and not self.cycle.response_started:
            self.cycle.keep_alive = False
            self.hangup(BodyTooSlow)
        else:
            self.transport.abort()

    def _refuse(self, status: bytes, message: bytes) -> None:
        """Answers what never became a call, and is done with the connection."""
        self._refused = True
        self._expect(_IDLE)
        if self.pipeline or (self.cycle is not None and self.cycle.response_started != self.cycle.response_complete):
            # A call of this connection is being answered: words between its bytes would be garbage.
            self.transport.abort()
            return
        body = (
            b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":"malformed_call"}}' % message
        )
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()
