"""Carries a call's bytes to its target and the reply's bytes back: an HTTP/1.1 client for one origin.

The journey reaches this file last (`choose -> forward`): everything has been decided, and what is left is to be quick
and exact. A `Carrier` keeps a pool of connections to one origin; `send` writes one request and returns a `Reply` whose
pieces are read as they come. Message syntax is llhttp's (through httptools); framing, pooling, timeouts and
back-pressure are here. Sources: RFC 9110 (methods, fields) and RFC 9112 (messages, connections).

    CarrierError            something between here and the target went wrong; `sent` says whether a byte may have left
    +-- ConnectFailed       no connection: refused, unreachable, unknown host, or this carrier is closed
    +-- TlsFailed           no trust: certificate, name or protocol refused
    +-- ReplyBroken         the target stopped early: closed, reset, or short of its own length
    +-- ReplyMalformed      the target does not speak HTTP/1.1 here, or exceeds a limit
    +-- CarrierTimeout      the target took too long
        +-- ConnectTimeout      to be connected to, waiting for a free connection included
        +-- FirstByteTimeout    to begin its reply
        +-- IdleTimeout         between two pieces, of the reply or of what it accepts of the request
        +-- TotalTimeout        altogether

What is promised of lengths: a reply with a content-length or in chunks is handed out whole or raises. A reply delimited
by the end of the connection ends where the target closed: over plain TCP a truncation of such a reply cannot be told
from its end; over TLS it can, and an end without close_notify raises.

A request is written at most once, unless a reused connection turns out to have been closed before any byte of a reply
and the method is safe (GET, HEAD, OPTIONS, TRACE) or the caller says that it is `repeatable`. RFC 9110 section 9.2.2
would also allow PUT and DELETE; an approved action is sent at most once, so they are not repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

SAFE_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})

REFUSED_HEADERS: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    }
)
"""Names `send` refuses: they frame the message or belong to one connection, and the carrier writes its own."""

INTERIM_REPLIES: Final = 100
"""How many 1xx replies may precede the final one: a target that reports progress for half an hour stays below."""

_READY_CHECK_AFTER: Final = 1.0  # seconds of idling after which the socket itself is asked whether it is still open
_ONE_WRITE: Final = 65536  # bytes of body up to which copying it behind the head is cheaper than a second write
_NAMES_KEPT: Final = 1024  # header names remembered as checked
_HEADS_KEPT: Final = 256  # request heads remembered as checked, per carrier
_HEAD_KEPT: Final = 4096  # bytes of the longest of them

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"/[!\"$-~]*|\*")
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9.])?|[0-9a-f:.]*:[0-9a-f:.]*")
# What a head may consist of besides its line ends: visible characters, space, tab, and the upper half.
_FIELD_BYTES: Final = bytes(byte for byte in range(256) if byte == 9 or (byte >= 32 and byte != 127))
_FINAL_REPLY: Final = frozenset(b"HTTP/1.%d %d" % (minor, digit) for minor in (0, 1) for digit in range(2, 10))
_VERSIONS: Final = (b"HTTP/1.1 ", b"HTTP/1.0 ")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"keep-alive"})
_LENGTH_EVEN_IF_EMPTY: Final = frozenset({b"POST", b"PUT", b"PATCH"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a target listens: scheme (`http` or `https`), host (lower case, no brackets) and port.

    With `socket`, the path of a Unix socket, connections are made there, and host and port are only spoken of.
    """

    scheme: str
    host: str
    port: int
    socket: str = ""

    @classmethod
    def parse(cls, url: str) -> tuple[Origin, str]:
        """Split a URL into its origin and its base path (no trailing slash; empty for the root).

        Raises ValueError, without repeating the URL (it may hold a credential), for anything but
        `http[s]://host[:port][/path]` and `unix:///path/of/a/socket`.
        """
        if url.startswith("unix:///"):
            return cls("http", "localhost", 80, url.removeprefix("unix://")), ""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("not a URL: host or port cannot be read") from None
        if parts.scheme not in ("http", "https"):
            raise ValueError("a target's URL begins with http:// or https://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a target's URL carries no user name or password; configure a key")
        if parts.query or parts.fragment:
            raise ValueError("a target's URL carries no query and no fragment")
        host = parts.hostname or ""
        if not host.isascii():
            try:
                host = host.encode("idna").decode("ascii")
            except UnicodeError:
                raise ValueError("a target's URL needs a valid host name") from None
        if not _HOST.fullmatch(host):
            raise ValueError("a target's URL needs a valid host name")
        path = parts.path.rstrip("/")
        if path and not (path.isascii() and _TARGET.fullmatch(path.encode("ascii"))):
            raise ValueError("a target's URL has a path with characters that need percent-encoding")
        if port is None:
            port = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, host, port), path

    @property
    def authority(self) -> str:
        """As the Host header has it: brackets around IPv6, no port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"unix://{self.socket}" if self.socket else f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Patience with a target, in seconds; kept to within 5 % or 50 ms, whichever is more, and never short.

    `connect` includes waiting for a free connection. `first_byte` runs from the request being written to the reply's
    head being complete. `idle` is a silence within a reply, or a request body of which nothing more is accepted; it
    does not run while the reader here is the slow one. `total` begins when there is a connection.
    """

    connect: float = 5.0
    first_byte: float = 600.0
    idle: float = 60.0
    total: float = 1800.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per carrier: bytes and number of header fields in a reply, open and idle connections, seconds a connection
    may idle, and bytes of a reply that may wait unread before the target is made to wait."""

    header_bytes: int = 64 * 1024
    header_count: int = 256
    connections: int = 1024
    idle_connections: int = 256
    keep_alive: float = 30.0
    high_water: int = 256 * 1024


@dataclass(frozen=True, slots=True)
class Statistics:
    """Connections open (idle + busy), and calls waiting for one (being opened or to become free)."""

    open: int
    idle: int
    busy: int
    waiting: int


class CarrierError(Exception):
    """Something between here and the target went wrong.

    `sent` is whether any byte of the request may have reached the target: False means that nobody can have acted on it.
    `unanswered` is whether not one byte of a reply came.
    """

    def __init__(self, origin: Origin, what: str, *, sent: bool, unanswered: bool = False) -> None:
        super().__init__(f"{origin}: {what}")
        self.origin = origin
        self.sent = sent
        self.unanswered = unanswered


class ConnectFailed(CarrierError):
    """There is no connection: refused, unreachable, unknown host, or this carrier is closed."""


class TlsFailed(CarrierError):
    """The target's certificate, name or protocol version was refused."""


class ReplyBroken(CarrierError):
    """The target stopped early: closed, reset, or short of the length it gave."""


class ReplyMalformed(CarrierError):
    """What came is not an HTTP/1.1 reply to this request, or exceeds a limit."""


class CarrierTimeout(CarrierError):
    """The target took too long."""


class ConnectTimeout(CarrierTimeout):
    """No connection in time, whether none could be opened or none became free."""


class FirstByteTimeout(CarrierTimeout):
    """The request was written and no reply began in time."""


class IdleTimeout(CarrierTimeout):
    """The target fell silent within its reply, or stopped accepting the request's body."""


class TotalTimeout(CarrierTimeout):
    """The exchange as a whole took too long."""


class Reply:
    """A target's final reply: `status`, `headers` (lower-cased names, in order) and a body to `read`.

    `complete` turns True when everything has arrived and been handed out, so that the last `read` can be skipped.
    """

    __slots__ = ("_connection", "_ended", "_fault", "_pieces", "_size", "_waiter", "complete", "headers", "status")

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self._connection: _Connection | None = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """All of the body that has come since the last read, waiting for some; b"" at the true end.

        One reader at a time. A read that is cancelled loses nothing and may be repeated.
        Raises CarrierError when the reply breaks; what came before has been handed out by then.
        """
        pieces = self._pieces
        while not pieces:
            if self._ended:
                self.complete = True
                return b""
            connection = self._connection
            if connection is None:
                assert self._fault is not None  # a reply leaves its connection by ending, breaking or being closed
                raise self._fault
            if self._waiter is not None:
                raise RuntimeError("a reply has one reader at a time")
            self._waiter = waiter = connection.carrier.loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        connection = self._connection
        if connection is not None:
            if connection.read_paused:
                connection.resume()
        elif self._ended:
            self.complete = True
        return body

    def close(self) -> None:
        """Be done with the reply. Its connection is kept where the exchange was complete, and dropped otherwise."""
        connection = self._connection
        if not self.complete and self._fault is None:
            origin = connection.carrier.origin if connection is not None else None
            self._fault = _closed_unread(origin)
            self._ended = False
        self._pieces.clear()
        if connection is not None:
            self._connection = None
            connection.reply = None
            connection.abort()
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "broken" if self._fault else "ended" if self._ended else "open"
        return f"<Reply {self.status} {state}, {self._size} bytes unread>"


def _closed_unread(origin: Origin | None) -> Exception:
    if origin is None:
        return RuntimeError("this reply was closed before it was read")
    return ReplyBroken(origin, "the reply was closed here before its end", sent=True)


class _ExtraBytes(Exception):
    """Stops the parser where a second message begins on a connection that owed one."""


class _Connection(asyncio.Protocol):
    """One connection and the state of the one exchange on it; it is its own parser's target."""

    __slots__ = (
        "_fault",
        "_gathering",
        "_head_only",
        "_headers",
        "_held",
        "_interims",
        "_keep",
        "_parser",
        "_poll",
        "_unsent",
        "_writable",
        "carrier",
        "clean",
        "close_delimited",
        "closing",
        "done",
        "headed",
        "keep_alive",
        "read_paused",
        "released",
        "reply",
        "request_done",
        "seen",
        "since",
        "started",
        "transport",
        "used",
        "write_paused",
    )

    def __init__(self, carrier: Carrier) -> None:
        # Connection state.
        self.carrier = carrier
        self.transport: asyncio.Transport | None = None
        self.closing = False
        self.used = False
        self.read_paused = False
        self.write_paused = False
        self.released = 0.0
        self.keep_alive = carrier.limits.keep_alive
        self._writable: asyncio.Future[None] | None = None
        self._unsent = -1
        self._poll: select.poll | None = None
        self._parser: httptools.HttpResponseParser  # from being connected to being lost
        # Exchange state.
        self.reply: Reply | None = None
        self.request_done = True
        self.started = 0.0
        self.since = 0.0
        # Reply state.
        self.headed = False  # the final head is complete
        self.done = False  # the reply is complete
        self.clean = True  # nothing came that does not belong to the reply
        self.close_delimited = True
        self.seen = 0  # bytes fed since the last piece of body; -1: a piece came just now
        self._keep = False
        self._head_only = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._held = b""
        self._gathering = False
        self._interims = 0
        self._fault: CarrierError | None = None

    # The exchange, seen from the carrier.

    def begin(self, reply: Reply, *, head_only: bool, request_done: bool, started: float) -> None:
        self.headed = self.done = False
        self.clean = self.close_delimited = True
        self.seen = 0
        if self._headers:  # trailers of the reply before
            self._headers = []
        if self._interims:
            self._interims = 0
        self._head_only = self._gathering = head_only
        self.request_done = request_done
        self.started = started
        self.since = self.carrier.clock
        self.reply = reply

    async def pump(self, reply: Reply, body: AsyncIterable[bytes]) -> None:
        """Write a body in chunks, no faster than the target takes them, until it ends or the reply does."""
        transport = self.transport
        assert transport is not None  # an exchange begins on a connection that was made
        try:
            async for piece in body:
                if self.reply is not reply:
                    return
                if piece:
                    transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                if self.write_paused:
                    self._writable = self.carrier.loop.create_future()
                    await self._writable
                    if self.reply is not reply:
                        return
            if self.reply is reply:
                transport.write(b"0\r\n\r\n")
                self.request_done = True
                self.since = self.carrier.clock
        except Exception as error:
            if self.reply is reply:
                self.fail(error)
        finally:
            end = getattr(body, "aclose", None)
            if end is not None:
                with contextlib.suppress(Exception):
                    await end()

    def resume(self) -> None:
        self.read_paused = False
        self.since = self.carrier.clock
        if self.transport is not None:
            self.transport.resume_reading()

    def fail(self, fault: Exception) -> None:
        """End the exchange with an error and the connection with it."""
        reply = self.reply
        if reply is not None:
            self.reply = None
            reply._connection = None
            reply._fault = fault
            reply._wake()
        self.abort()

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self.carrier.idle.pop(self, None)
        if self.transport is not None:
            self.transport.abort()

    def overdue(self, clock: float, slack: float) -> CarrierError | None:
        """The timeout this exchange has run into, if any. `slack` is how far behind the stamps may be."""
        timeouts = self.carrier.timeouts
        origin = self.carrier.origin
        if clock - self.started > timeouts.total + slack:
            return TotalTimeout(origin, f"the exchange took more than {timeouts.total:g} s", sent=True)
        if self.read_paused:
            return None
        silence = clock - self.since - slack
        if self.headed:
            if silence > timeouts.idle:
                return IdleTimeout(origin, f"the reply paused for more than {timeouts.idle:g} s", sent=True)
        elif self.write_paused:
            assert self.transport is not None  # only a transport pauses writing
            unsent = self.transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent = unsent
                self.since = clock
            elif silence > timeouts.idle:
                return IdleTimeout(origin, f"none of the request was accepted for {timeouts.idle:g} s", sent=True)
        elif self.request_done and silence > timeouts.first_byte:
            return FirstByteTimeout(origin, f"no reply began within {timeouts.first_byte:g} s", sent=True)
        return None

    def ready(self, clock: float) -> bool:
        """Whether an idle connection can take a request, as far as this end knows."""
        if self.closing:
            return False
        if clock - self.released > _READY_CHECK_AFTER and self._readable():
            self.abort()  # an end, or bytes nobody asked for, that the loop has not seen yet
            return False
        return True

    def _readable(self) -> bool:
        if self._poll is None:
            assert self.transport is not None  # only connected ones idle
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self.carrier.opened()

    def data_received(self, data: bytes) -> None:
        reply = self.reply
        if reply is None:
            self.abort()
            return
        if not self.headed and (self._gathering or (not self.seen and data[:10] not in _FINAL_REPLY)):
            data = self._gather(data)
            if not data:
                return
        self.seen += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.done:
                self.fail(self._fault or self._malformed(str(error)))
                return
            self.clean = False
        if self.done:
            self._finish(reply)
            return
        if self.seen > self.carrier.limits.header_bytes:
            self.fail(self._malformed("more head, chunk extensions or trailers than allowed"))
            return
        if self.headed:
            if self.seen < 0:
                self.seen = 0
            self.since = self.carrier.clock
            if reply._size > self.carrier.limits.high_water and not self.read_paused:
                self.read_paused = True
                assert self.transport is not None  # data comes from a transport
                self.transport.pause_reading()
            waiter = reply._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def eof_received(self) -> None:
        if self.reply is not None:
            self._target_ended()
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        if self.reply is not None and isinstance(exc, OSError) and self.carrier.tls is None:
            self._read_what_is_left()
        if self.reply is not None:
            self.fail(self._broken("the connection was reset" if exc else "the connection was closed"))
        self.transport = None
        del self._parser  # it refers back to this connection
        self.resume_writing()
        self.carrier.lost(self)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unsent = -1

    def resume_writing(self) -> None:
        self.write_paused = False
        self.since = self.carrier.clock
        writable = self._writable
        if writable is not None and not writable.done():
            writable.set_result(None)

    # httptools

    def on_message_begin(self) -> None:
        if self.done:
            raise _ExtraBytes

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        value = value.rstrip(b" \t")
        if name in _FRAMING and not self.headed:
            self._note_framing(name, value)
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        reply = self.reply
        assert reply is not None  # bytes are only fed to an exchange
        headers = self._headers
        limits = self.carrier.limits
        if len(headers) > limits.header_count:
            self._refuse(f"more than {limits.header_count} header fields")
        if self.seen > limits.header_bytes:  # the head alone may still be small
            if sum([len(name) + len(value) + 4 for name, value in headers]) > limits.header_bytes:
                self._refuse(f"a head of more than {limits.header_bytes} bytes")
        reply.status = self._parser.get_status_code()
        reply.headers = headers
        self._headers = []  # trailers land here and are dropped
        self.headed = True
        self.seen = 0
        self.since = self.carrier.clock
        if self._head_only:
            self.done = True
            self._keep = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        reply = self.reply
        assert reply is not None  # bytes are only fed to an exchange
        reply._pieces.append(piece)
        reply._size += len(piece)
        self.seen = -1

    def on_message_complete(self) -> None:
        if not self.done:
            self.done = True
            self._keep = self._parser.should_keep_alive()

    # How a reply begins and ends.

    def _gather(self, data: bytes) -> bytes:
        """Hold back the beginning of a reply until it is known what it is; swallow interim replies.

        Returns the bytes that belong to the final reply, or none yet. The head of a reply to HEAD is returned alone:
        llhttp cannot know that no body follows.
        """
        self._gathering = True
        held = self._held + data
        while True:
            start = held[:10]
            final = start in _FINAL_REPLY
            if final and not self._head_only:
                break
            if not final and start != b"HTTP/1.1 1":
                if len(start) < 10 and any(version.startswith(start[:9]) for version in _VERSIONS):
                    self._held = held
                    return b""
                self.fail(self._malformed("the reply does not begin as HTTP/1.1 or HTTP/1.0"))
                return b""
            end = held.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(held) > self.carrier.limits.header_bytes:
                    self.fail(self._malformed("more head than allowed"))
                self._held = held
                return b""
            if final:
                self.clean = len(held) == end
                held = held[:end]
                break
            if not self._swallow(held[:end]):
                return b""
            held = held[end:]
            if not held:
                self._held = b""
                return b""
        self._held = b""
        self._gathering = False
        return held

    def _swallow(self, head: bytes) -> bool:
        """Take one interim reply; False when it ended the exchange."""
        self._interims += 1
        if head[9:13] == b"101 " or head[9:13] == b"101\r":
            self.fail(self._malformed("the target switched protocols unasked (101)"))
        elif self._interims > INTERIM_REPLIES:
            self.fail(self._malformed(f"more than {INTERIM_REPLIES} interim replies"))
        else:
            try:
                httptools.HttpResponseParser(object()).feed_data(head)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self.fail(self._malformed(str(error)))
        return self.reply is not None

    def _note_framing(self, name: bytes, value: bytes) -> None:
        if name == b"keep-alive":
            promised = re.search(rb"timeout=(\d{1,6})\b", value)
            if promised:  # leave a second for the way: the target counts from an earlier moment
                self.keep_alive = min(self.carrier.limits.keep_alive, max(0.0, int(promised[1]) - 1.0))
            return
        if name == b"transfer-encoding":
            if value.lower() != b"chunked" or not self.close_delimited:
                self._refuse("a transfer coding other than chunked")
            if self._parser.get_http_version() == "1.0":
                self.clean = False  # RFC 9112 section 6.1: faulty framing, so the connection ends with this reply
        self.close_delimited = False

    def _finish(self, reply: Reply) -> None:
        """The reply is whole: leave it to its reader, and the connection to the next call."""
        self.reply = None
        reply._connection = None
        reply._ended = True
        if not reply._pieces:
            reply.complete = True
        self.used = True
        if self._head_only:
            self._parser = httptools.HttpResponseParser(self)  # the old one may still expect a body
        if self._keep and self.clean and self.request_done and not self.write_paused and not self.closing:
            self.carrier.release(self)
        else:
            self.abort()
        waiter = reply._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _target_ended(self) -> None:
        reply = self.reply
        assert reply is not None  # asked only while an exchange is on
        if self.headed and self.close_delimited and (self.carrier.tls is None or self._notified()):
            self._keep = False
            self._finish(reply)
        else:
            self.fail(self._broken("the target closed the connection"))

    def _notified(self) -> bool:
        """Whether the target ended TLS itself (close_notify). asyncio reports a bare end of TCP as the same event."""
        assert self.transport is not None  # asked while the connection is up
        try:
            return not self.transport.get_extra_info("ssl_object").read(1)
        except ssl.SSLError:  # would wait for more, so the end was not announced
            return False

    def _read_what_is_left(self) -> None:
        """Take from the socket what came before a failed write ended the transport.

        A target that answers early and closes makes the next write fail while its answer still waits to be read. In
        connection_lost both event loops still own the descriptor.
        """
        assert self.transport is not None  # a connection that is lost was made
        descriptor = self.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError):
            while self.reply is not None and descriptor >= 0:
                data = os.read(descriptor, 65536)
                if data:
                    self.data_received(data)
                else:
                    self._target_ended()

    def _broken(self, how: str) -> ReplyBroken:
        silent = not (self.headed or self.seen or self._held or self._interims)
        when = "before any reply" if silent else "within its reply" if self.headed else "within the head of its reply"
        return ReplyBroken(self.carrier.origin, f"{how} {when}", sent=True, unanswered=silent)

    def _malformed(self, what: str) -> ReplyMalformed:
        return ReplyMalformed(self.carrier.origin, what, sent=True)

    def _refuse(self, what: str) -> None:
        self._fault = self._malformed(what)
        raise self._fault  # stops the parser; data_received reads it from self._fault


class Carrier:
    """A pool of HTTP/1.1 connections to one origin, for one event loop; it may be made before the loop runs.

    `tls` is used for https origins (default: the system's trust, host name checked). Idle connections are reused last
    in, first out; calls beyond `limits.connections` wait in order. With `allowed` a connection is made only to such an
    address of the host as passes, and to the very one that was looked at.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        tls: ssl.SSLContext | None = None,
        allowed: Callable[[str], bool] | None = None,
    ) -> None:
        if origin.scheme == "https" and tls is None:
            tls = ssl.create_default_context()
            tls.set_alpn_protocols(["http/1.1"])
        self.origin = origin
        self.timeouts = timeouts
        self.limits = limits
        self.tls = tls if origin.scheme == "https" else None
        self._allowed = allowed
        self.idle: dict[_Connection, None] = {}  # in the order in which they became idle
        self.clock = 0.0  # the loop's time as of the last sweep: stamps cost no clock call
        self.loop: asyncio.AbstractEventLoop  # set by the first send
        self._running = False
        self._request_end = b" HTTP/1.1\r\nhost: %b\r\n" % origin.authority.encode("ascii")
        self._heads: dict[tuple[object, ...], bytes] = {}  # by method, path and header lines: callers repeat themselves
        self._connections: set[_Connection] = set()  # every slot taken, from before connecting until the socket is gone
        self._waiters: deque[asyncio.Future[_Connection]] = deque()
        self._opening: set[asyncio.Timeout] = set()
        self._closed = False
        self._retired = False
        self._gone: asyncio.Future[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        patience = min(timeouts.first_byte, timeouts.idle, timeouts.total, limits.keep_alive)
        self._interval = min(0.25, max(0.02, patience / 40))

    async def send(
        self,
        method: bytes,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | AsyncIterable[bytes] = b"",
        *,
        repeatable: bool = False,
        once: bool = False,
        leaving: Callable[[], None] | None = None,
    ) -> Reply:
        """Write one request and return its reply as soon as the head is there.

        With `once` it is never written again, whatever the method.

        `leaving` is called right before the first byte is written: whatever happens before that, a cancellation too,
        the target knows nothing of the request. What it raises keeps the request from being sent.

        Host and framing are the carrier's own: content-length for bytes, chunks for an iterable (which is closed when
        it is no longer wanted). When the target answers before it has taken an iterable's whole body, the rest stays
        unsent and the connection is not used again.

        Raises ValueError, before a byte is sent, for a method, path or header that cannot be written safely (see
        REFUSED_HEADERS), CarrierError for what happens on the way, and what the iterable and `leaving` raise.
        """
        whole = isinstance(body, bytes)
        request = self._head(method, path, headers, body)
        if not self._running:
            self.loop = asyncio.get_running_loop()
            self._running = True
        loop = self.loop
        connection = self._take_idle() or await self._acquire()
        started = self.clock
        while True:
            transport = connection.transport
            assert transport is not None  # _take_idle and _acquire return connected ones
            if leaving is not None:
                try:
                    leaving()
                except BaseException:
                    self.release(connection)
                    raise
            reply = Reply(connection)
            connection.begin(reply, head_only=method == b"HEAD", request_done=whole, started=started)
            transport.write(request)
            pump = None
            if isinstance(body, bytes):
                if len(body) > _ONE_WRITE:
                    transport.write(body)
            else:
                pump = loop.create_task(connection.pump(reply, body))
            reply._waiter = waiter = loop.create_future()
            try:
                await waiter
            except BaseException:
                reply.close()
                raise
            finally:
                reply._waiter = None
                if pump is not None and not pump.done():
                    await self._stop(pump, reply)
            if reply.status:
                return reply
            fault = reply._fault
            assert fault is not None  # a wait ends by a head or a fault
            reused = connection.used
            may_repeat = whole and not once and (repeatable or method in SAFE_METHODS)
            if reused and may_repeat and isinstance(fault, ReplyBroken) and fault.unanswered:
                connection = await self._acquire()  # opened now, or used a moment ago
                connection.used = False  # so that the second attempt is the last one
                continue
            raise fault

    async def _stop(self, pump: asyncio.Task[None], reply: Reply) -> None:
        """End a body that is no longer wanted; a reply nobody will be handed is closed."""
        pump.cancel()
        try:
            await asyncio.wait((pump,))
        except BaseException:
            reply.close()
            raise

    async def close(self) -> None:
        """End everything: idle connections, exchanges (their readers get ReplyBroken), calls waiting. Returns when the
        sockets are gone; `send` raises ConnectFailed from now on."""
        self._closed = self._retired = True
        if not self._running:
            return
        for deadline in list(self._opening):
            if not deadline.expired():
                deadline.reschedule(self.loop.time())
        for connection in list(self._connections):
            connection.fail(ReplyBroken(self.origin, "this carrier was closed", sent=True))
        while self._connections or self._opening:
            if self._gone is None:
                self._gone = self.loop.create_future()
            await asyncio.shield(self._gone)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def retire(self) -> None:
        """Let go of idle connections now and of busy ones after their reply; nothing in progress is disturbed."""
        self._retired = True
        for connection in list(self.idle):
            connection.abort()

    def statistics(self) -> Statistics:
        """How many connections and waiting calls there are just now."""
        connected = sum(connection.transport is not None for connection in self._connections)
        idle = len(self.idle)
        return Statistics(connected, idle, connected - idle, len(self._opening))

    def __repr__(self) -> str:
        now = self.statistics()
        state = " closed" if self._closed else " retired" if self._retired else ""
        return f"<Carrier {self.origin}{state}: {now.busy} busy, {now.idle} idle, {now.waiting} waiting>"

    # The request's head.

    def _head(
        self, method: bytes, path: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes | AsyncIterable[bytes]
    ) -> bytes:
        """The head, and behind it a body small enough to go in the same write. Raises ValueError."""
        known = (method, path, *headers)
        head = self._heads.get(known)
        if head is None:
            head = self._checked_head(method, path, headers)
            if len(head) <= _HEAD_KEPT:
                if len(self._heads) >= _HEADS_KEPT:
                    self._heads.clear()
                self._heads[known] = head
        if not isinstance(body, bytes):
            return head + b"transfer-encoding: chunked\r\n\r\n"
        if not body and method not in _LENGTH_EVEN_IF_EMPTY:
            return head + b"\r\n"
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body if len(body) <= _ONE_WRITE else b"")

    def _checked_head(self, method: bytes, path: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """All of a request's head but its framing. Raises ValueError."""
        parts = [method, b" ", path, self._request_end]
        names = _checked_names
        for name, value in headers:
            parts += (names.get(name) or _checked_name(name), value, b"\r\n")
        head = b"".join(parts)
        # Deleting all that may stand in a line leaves the line ends, and those must be ours.
        if head.translate(None, _FIELD_BYTES) != b"\r\n" * (2 + len(headers)):
            raise ValueError("a request's method, path or header value holds a control character")
        if method not in _checked_methods:
            _check_method(method)
        if not _TARGET.fullmatch(path):
            raise ValueError("a request's path begins with a slash and has no spaces, fragment or unencoded characters")
        return head

    # The pool.

    def _take_idle(self) -> _Connection | None:
        idle = self.idle
        while idle:
            connection, _ = idle.popitem()
            if connection.ready(self.clock):
                return connection
        return None

    async def _acquire(self) -> _Connection:
        """A connection nobody else has: opened, or handed over by a call that is done.

        Raises ConnectFailed, TlsFailed, ConnectTimeout or TotalTimeout, all with sent=False.
        """
        if self._closed:
            raise ConnectFailed(self.origin, "this carrier is closed", sent=False)
        patience = min(self.timeouts.connect, self.timeouts.total)
        try:
            async with asyncio.timeout(patience) as deadline:
                self._opening.add(deadline)
                try:
                    while True:
                        connection = await self._slot()
                        if connection.transport is None:
                            await self._connect(connection)
                            return connection
                        if not connection.closing:
                            return connection
                finally:
                    self._opening.discard(deadline)
                    self._tell_if_gone()
        except TimeoutError:
            if self._closed:
                raise ConnectFailed(self.origin, "this carrier was closed", sent=False) from None
            kind = ConnectTimeout if self.timeouts.connect <= self.timeouts.total else TotalTimeout
            raise kind(self.origin, f"no connection within {patience:g} s", sent=False) from None

    async def _slot(self) -> _Connection:
        """A place among `limits.connections`: a connection not yet opened, or one that became free."""
        if len(self._connections) < self.limits.connections:
            return self._new_connection()
        waiter = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            return cast(_Connection, await waiter)
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                connection = waiter.result()  # handed over in the moment of giving up: somebody else may want it
                if connection.transport is None:
                    self.lost(connection)
                elif not connection.closing:
                    self.release(connection)
            else:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
            raise

    def _new_connection(self) -> _Connection:
        connection = _Connection(self)
        self._connections.add(connection)
        return connection

    async def _connect(self, connection: _Connection) -> None:
        origin = self.origin
        try:
            if origin.socket:
                await self.loop.create_unix_connection(lambda: connection, origin.socket)
            elif self._allowed is None:
                await self._connect_to(connection, origin.host)
            else:
                await self._connect_to_allowed(connection, self._allowed)
            if connection.closing:
                raise ConnectFailed(origin, "the target closed the connection as soon as it was open", sent=False)
        except BaseException as error:
            connection.abort()
            self.lost(connection)  # uvloop does not call connection_lost when create_connection is cancelled late
            if isinstance(error, ssl.SSLError):
                why = getattr(error, "verify_message", None) or error.reason or "handshake failed"
                raise TlsFailed(origin, f"TLS: {why}", sent=False) from error
            if isinstance(error, (OSError, UnicodeError)):
                why = _why(error)
                raise ConnectFailed(origin, f"no connection: {why}", sent=False) from error
            raise

    async def _connect_to(self, connection: _Connection, host: str) -> None:
        if self.tls is None:
            await self.loop.create_connection(lambda: connection, host, self.origin.port)
        else:
            await self.loop.create_connection(
                lambda: connection, host, self.origin.port, ssl=self.tls, server_hostname=self.origin.host
            )

    async def _connect_to_allowed(self, connection: _Connection, allowed: Callable[[str], bool]) -> None:
        """The name is looked up once, here: a second look-up could say something else than what was checked."""
        origin = self.origin
        found = await self.loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        fit = [address for address in addresses if allowed(address)]
        if not fit:
            raise ConnectFailed(origin, "the host is at no address that it may be at", sent=False)
        for address in fit[:-1]:
            try:
                return await self._connect_to(connection, address)
            except OSError as error:
                if isinstance(error, ssl.SSLError):
                    raise
        await self._connect_to(connection, fit[-1])

    def release(self, connection: _Connection) -> None:
        """An exchange has left its connection fit for another one."""
        waiters = self._waiters
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                connection.released = self.clock
                waiter.set_result(connection)
                return
        if self._retired or len(self.idle) >= self.limits.idle_connections:
            connection.abort()
            return
        connection.released = self.clock
        self.idle[connection] = None

    def lost(self, connection: _Connection) -> None:
        """A connection's socket is gone, or was never opened: its slot goes to whoever waits longest."""
        if connection not in self._connections:
            return
        connection.closing = True
        self._connections.discard(connection)
        self.idle.pop(connection, None)
        waiters = self._waiters
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(self._new_connection())
                return
        self._tell_if_gone()

    def _tell_if_gone(self) -> None:
        if self._gone is not None and not self._connections and not self._opening:
            self._gone.set_result(None)
            self._gone = None

    # Time.

    def opened(self) -> None:
        """A connection was made: somebody has to watch the time."""
        if self._sweeper is None:
            self.clock = self.loop.time()
            self._sweeper = self.loop.call_later(self._interval, self._sweep)

    def _sweep(self) -> None:
        """Advance the clock; give up exchanges that are overdue and connections that idled too long."""
        before, self.clock = self.clock, self.loop.time()
        stalled = self.clock - before - 3 * self._interval
        for connection in list(self._connections):
            if connection.reply is not None:
                if stalled > 0:  # this process stood still, not the target: what it sent meanwhile is not read yet
                    connection.since += stalled
                    connection.started += stalled
                fault = connection.overdue(self.clock, self._interval)
                if fault is not None:
                    connection.fail(fault)
        for connection in list(self.idle):
            if self.clock - connection.released > connection.keep_alive:
                connection.abort()
        self._sweeper = self.loop.call_later(self._interval, self._sweep) if self._connections else None


_checked_names: dict[bytes, bytes] = {}
_checked_methods: set[bytes] = {b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"PATCH", b"DELETE"}


def _checked_name(name: bytes) -> bytes:
    """A header name as it begins its line. Raises ValueError when it is no token or not the caller's to set."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("a header's name holds a character that no name may hold")
    if name.lower() in REFUSED_HEADERS:
        raise ValueError(f"the carrier writes its own {name.decode('ascii').lower()} header")
    line = name + b": "
    if len(_checked_names) >= _NAMES_KEPT:
        _checked_names.clear()
    _checked_names[name] = line
    return line


def _check_method(method: bytes) -> None:
    """Methods beyond the common ones pass when they are tokens. Raises ValueError."""
    if method == b"CONNECT" or not _TOKEN.fullmatch(method):
        raise ValueError("a request's method is a token, and not CONNECT")


def _why(error: OSError | UnicodeError) -> str:
    """In the system's words: the event loops have their own, some with the address as Python writes it."""
    if not isinstance(error, OSError):
        return type(error).__name__
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__
