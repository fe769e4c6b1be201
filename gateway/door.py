"""The front door: one agent's connection, with limits that keep a bad client from being anybody else's trouble."""

import asyncio
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.cycle import Cycle
from gateway.lifeline import BodyTooSlow, ClientGone, Gone


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Open connections; bytes of a request's head; seconds for the head, the body, and a client that does not read;
    seconds that a connection may idle after an answer."""

    connections: int
    header_bytes: int
    header_timeout: float
    body_timeout: float
    write_timeout: float
    keep_alive: float


_IDLE, _HEAD, _BODY = range(3)
_ONE_WRITE = 64 * 1024

_PORTION = 2 * 1024
_LARGEST_PORTION = 32 * 1024
_BUSY = 64
_PAUSE = 0.002
"""Bytes are parsed in portions. One that held more than `_BUSY` requests and pieces of a body is work for this process
that cost its sender next to nothing; the connection is not read for `_PAUSE` seconds after it, so that others are."""

_CRUMBS = 50_000
_CRUMB = 16
"""A body of more than so many pieces that have fewer bytes than this on average is refused."""

_LINGER = 2.0
_LINGER_BYTES = 64 * 2**20
"""Seconds and bytes for which an ended connection takes and forgets what its client is still sending. Closed at once,
it would be reset, and the answer lost: clients on asyncio read nothing any more once they cannot send."""

_NOTED = frozenset({b"expect", b"transfer-encoding"})
_UPGRADING = frozenset({b"upgrade", b"http2-settings"})


_URL_REMEMBERED = 256
"""Bytes of the longest URL whose parts are remembered: the ones that matter are shorter, and come again and again."""


@lru_cache(maxsize=1024)
def _read_url(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as it came, and query. Raises httptools.HttpParserError, AttributeError where there is no path."""
    parts = httptools.parse_url(url)
    path = parts.path.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, parts.path, parts.query or b""


class Corked:
    """A connection's transport that sends what is written in one turn of the event loop at once.

    The server writes an answer's head and its body one after the other; sent apart they cost two system calls here and
    wake the client twice. It also knows two things that a transport does not: to `hold` reading whatever the server
    thinks of it, and to close only for writing while `lingers` says that the client is still sending.
    """

    __slots__ = ("_held", "_lingers", "_loop", "_paused", "_size", "_transport", "_waiting", "leaving")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, lingers: Callable[[], bool]
    ) -> None:
        self.leaving = False
        self._transport = transport
        self._loop = loop
        self._lingers = lingers
        self._waiting: list[bytes] = []
        self._size = 0
        self._paused = False
        self._held = False

    def write(self, data: bytes) -> None:
        if self.leaving:
            return
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
        """Ends the connection once everything is sent; asked a second time, without waiting for the client."""
        self.flush()
        if not self.leaving and not self._transport.is_closing() and self._lingers():
            self.leaving = True
            self._transport.write_eof()
            self._paused = False
            self.release()
        else:
            self._transport.close()

    def abort(self) -> None:
        self._waiting.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self.leaving or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        if not self._held:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if not self._held:
            self._transport.resume_reading()

    def hold(self) -> None:
        self._held = True
        self._transport.pause_reading()

    def release(self) -> None:
        self._held = False
        if not self._paused:
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class FrontDoor(HttpToolsProtocol):
    """uvicorn's protocol with less trust: it lets clients send as many headers and take as much time as they like.

    No timer is made and no byte is counted for a request that arrives whole, which is nearly all of them.
    """

    transport: Corked  # type: ignore[assignment]  # all that uvicorn uses of one
    cycle: Cycle  # type: ignore[assignment]  # as above

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
        self.task: asyncio.Task[None] | None = None
        self._limits = limits
        self._scope: dict[str, Any] = {}
        """What is the same for all requests of the connection."""
        self._idle_since = 0.0
        self._portion = min(_PORTION, limits.header_bytes)
        self._phase = _IDLE
        self._deaf = False
        """True when nothing the client sends can matter any more."""
        self._forgotten = 0
        self._events = 0
        """Requests begun and pieces of bodies in the portion being parsed."""
        self._head_bytes = 0
        """Of the head being read, as far as it came in earlier portions."""
        self._behind = False
        """True when another request ended in the same portion."""
        self._framing_bytes = 0
        """Since the last piece of the body: sizes and extensions of chunks, trailers."""
        self._body_bytes = 0
        self._pieces = 0
        self._chunked = False
        self._keep_alive = False
        self._held: bytes | memoryview | None = None
        """What was received and waits to be parsed; not None while the connection is not read."""
        self._turn: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._patience_phase = _IDLE
        self._unread: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(Corked(transport, self.loop, self._lingers))  # type: ignore[arg-type]  # as above
        self._scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "door": self,  # ours, beside the keys ASGI names
        }
        if len(self.connections) > self._limits.connections:
            self._refuse(b"503 Service Unavailable", b"The gateway has no connection left. Try again later.")
        else:
            self._expect(_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._phase = _IDLE
        self._expect(_IDLE)
        for timer in (self._unread, self._turn, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        hangup, self.hangup = self.hangup, None
        super().connection_lost(exc)
        if hangup is not None:
            hangup(ClientGone)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._forgotten += len(data)
            if self._forgotten > _LINGER_BYTES:
                self.transport.close()
        elif len(data) <= self._portion:
            self._parse(data)
            if self._events > _BUSY and not self._deaf:
                self._hold(b"")
        else:
            self._take(memoryview(data))

    def _take(self, data: bytes | memoryview) -> None:
        """Parses portion by portion, until one was so much work that the rest has to wait."""
        size = self._portion
        while data and not self._deaf:
            # A body of known length is a single piece, however much of it there is.
            now = size if self._phase != _BODY or self._chunked else max(size, self._left())
            self._parse(data[:now])
            data = data[now:]
            if self._events > _BUSY or (data and self.pipeline):
                self._hold(data)
                return
            size = min(2 * size, _LARGEST_PORTION)

    def _hold(self, data: bytes | memoryview) -> None:
        if self._deaf:
            return
        self._pieces += self._events
        if self._pieces > _CRUMBS and self._phase == _BODY and self._body_bytes < _CRUMB * self._pieces:
            self._refuse(b"400 Bad Request", b"The body comes in too many pieces. Send larger chunks.")
            return
        self._held = data
        self.transport.hold()
        self._go_on_soon()

    def _go_on_soon(self) -> None:
        # With requests waiting for their turn, the start of the last of them comes back here.
        if not self.pipeline and self._turn is None:
            self._turn = self.loop.call_later(_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._turn = None
        held, self._held = self._held, None
        if held is not None:
            self._take(held)
            if self._held is None and not self._deaf:
                self.transport.release()

    def _parse(self, data: bytes | memoryview) -> None:
        before = self._phase
        self._events = 0
        self._behind = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(bytes(data[upgrade.args[0] :]))
            return
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(b"400 Bad Request", b"This is not an HTTP/1.1 request that can be relied on.")
            return
        phase = self._phase
        if phase == _HEAD:
            if not self._behind:
                self._head_bytes += len(data)
            if self._head_bytes >= self._limits.header_bytes:
                self._refuse_head()
                return
        elif phase == _BODY == before and not self._events:
            # A line that never ends is seen by nobody but the parser, which keeps it.
            self._framing_bytes += len(data)
            if self._framing_bytes > self._limits.header_bytes:
                self._refuse_head()
                return
        elif phase == _IDLE == before and not self._events:
            return  # ends of lines between requests: they win nobody time
        if phase != self._patience_phase:
            self._expect(phase)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Reads a request that offers another protocol as the plain one that it is too.

        The parser takes whatever follows such a head for the other protocol. Clients that prefer HTTP/2 offer it with
        their ordinary requests, and have to be content with an ordinary answer (RFC 9110, 7.8).
        """
        if self.parser.get_method() == b"CONNECT":
            self._refuse(b"400 Bad Request", b"The gateway is not a forward proxy.")
            return
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(each for each in value.split(b",") if each.strip().lower() not in _UPGRADING)
            if name not in _UPGRADING:
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self.scope = {**self._scope, "headers": self.headers}  # type: ignore[typeddict-item]  # complete in a moment
        self._phase = _HEAD
        self._events += 1
        self._framing_bytes = 0
        self._body_bytes = 0
        self._pieces = 0
        self._chunked = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase != _HEAD:
            return  # a trailer: it came after everything that headers decide
        name = name.lower()
        if name in _NOTED:
            self._note(name, value)
        # The parser leaves the spaces behind a value to us; they are no part of it (RFC 9110, 5.5).
        self.headers.append((name, value.rstrip(b" \t")))

    def _note(self, name: bytes, value: bytes) -> None:
        value = value.strip().lower()
        if name == b"expect":
            self.expect_100_continue = value == b"100-continue"
        elif value != b"chunked" or self._chunked:
            raise self._unreadable(b"This transfer coding is not understood; send the body plain or chunked.")
        else:
            self._chunked = True

    def on_headers_complete(self) -> None:
        parser, scope = self.parser, self.scope
        if parser.should_upgrade():
            return  # `_parse_without_upgrade` comes next
        if (self._head_bytes or self._behind) and self._measured() > self._limits.header_bytes:
            self._refuse_head()
            raise ValueError("head too long")
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0" or self._chunked:
                raise self._unreadable(b"This is not an HTTP/1.1 request.")
            scope["http_version"] = version
        scope["method"] = parser.get_method().decode("ascii")
        url = self.url
        read = _read_url if len(url) <= _URL_REMEMBERED else _read_url.__wrapped__
        scope["path"], scope["raw_path"], scope["query_string"] = read(url)
        before = self.cycle
        self._phase = _BODY
        self._keep_alive = version == "1.1" and parser.should_keep_alive()
        # Not to be kept alive until the request has ended: an answer that starts before is the connection's last.
        self.cycle = cycle = Cycle(
            scope,  # type: ignore[arg-type]  # to applications it is any mapping
            self.transport,
            self.flow,
            self.server_state.default_headers,
            self.on_response_complete,
            expects_100=self.expect_100_continue,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]  # only we take it out again

    def _start_asgi_task(self, cycle: Cycle, app: Any) -> None:  # type: ignore[override]  # ours, not uvicorn's
        self.task = task = self.loop.create_task(cycle.run(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        if self._held is not None:
            self._go_on_soon()

    def on_body(self, body: bytes) -> None:
        self._events += 1
        self._framing_bytes = 0
        self._body_bytes += len(body)
        cycle = self.cycle
        cycle.feed(body)
        if cycle.waiting > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._phase != _BODY:
            return  # as in `on_headers_complete`
        self._phase = _IDLE
        self._behind = True
        self._head_bytes = 0
        cycle = self.cycle
        cycle.more_body = False
        if not cycle.response_started:
            cycle.keep_alive = self._keep_alive
        cycle.message_event.set()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)  # type: ignore[arg-type]  # as we put it in
        else:
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._idle_for(self._limits.keep_alive)

    def _idle_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Runs some time after an answer, however many came since: a timer for each would cost more than it is for."""
        self.timeout_keep_alive_task = None
        if self._phase != _IDLE or not self.cycle.response_complete:
            return  # the answer to come sets the next one
        left = self._idle_since + self._limits.keep_alive - self.loop.time()
        if left > 0:
            self._idle_for(left)
        elif not self.transport.is_closing():
            self.transport.close()

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.write_timeout, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _left(self) -> int:
        """Bytes still to come of a body that is not chunked. The parser has checked that its length has 64 bits."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        return int(length[-20:]) - self._body_bytes

    def _measured(self) -> int:
        """Bytes of the head, as far as it was read."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

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
            self.hangup(BodyTooSlow)
        else:
            self.transport.abort()

    def _lingers(self) -> bool:
        """Whether the client is in the middle of a request; then whatever is left of it will be forgotten."""
        sending = self._phase != _IDLE
        if sending:
            self._deaf = True
            self._held = None
            self._expect(_IDLE)
            self._patience = self.loop.call_later(_LINGER, self.transport.close)
        return sending

    def _refuse_head(self) -> None:
        self._refuse(b"431 Request Header Fields Too Large", b"The request's headers are too long.")

    def _unreadable(self, message: bytes) -> ValueError:
        """Refuses the request; raised in a callback, the answer stops the parser."""
        self._refuse(b"400 Bad Request", message)
        return ValueError("unreadable request")

    def _refuse(self, status: bytes, message: bytes) -> None:
        """Answers what never became a call, and is done with the connection."""
        self._deaf = True
        self._expect(_IDLE)
        cycle = self.cycle
        if self.pipeline or (cycle is not None and cycle.response_started != cycle.response_complete):
            # A call of this connection is being answered: words between its bytes would be garbage.
            self.transport.abort()
            return
        body = (
            b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":"malformed_call"}}' % message
        )
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()
        if cycle is not None and not cycle.response_complete:
            # The call that this was a part of has had its answer.
            cycle.disconnected = True
            cycle.message_event.set()
            hangup, self.hangup = self.hangup, None
            if hangup is not None:
                hangup(ClientGone)
