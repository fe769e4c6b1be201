"""Every kind of reply, cut at every byte and split at every pair of bytes: the exact body or the right error.

The transport is scripted here, so that each piece reaches the carrier in a turn of its own, which no kernel promises.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.carrier import Carrier, Limits, Origin, Reply, ReplyBroken, ReplyMalformed

ORIGIN = Origin("http", "target", 80)


class ScriptedTransport(asyncio.Transport):
    """Answers a write with the given pieces, one a turn of the loop, then ends as told (or stays open)."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, pieces: Sequence[bytes], end: str | None
    ) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.pieces = list(pieces)
        self.end = end
        self.gone = False
        self.paused = False

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.loop.call_soon(self._next)

    def _next(self) -> None:
        if self.gone:
            return
        if self.pieces:
            self.protocol.data_received(self.pieces.pop(0))
            self.loop.call_soon(self._next)
        elif self.end == "eof":
            self.protocol.eof_received()
            self.abort()
        elif self.end == "reset":
            self._lose(ConnectionResetError())

    def abort(self) -> None:
        self.loop.call_soon(self._lose, None)

    def _lose(self, error: Exception | None) -> None:
        if not self.gone:
            self.gone = True
            self.protocol.connection_lost(error)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        assert name == "socket"
        return NoSocket()


class NoSocket:
    def fileno(self) -> int:
        return -1


@dataclass
class Outcome:
    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    error: Exception | None = None
    reusable: bool = False


class Bench:
    """Runs exchanges over scripted transports on one private loop."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.pieces: Sequence[bytes] = ()
        self.end: str | None = None
        self.loop.create_connection = self._connection  # type: ignore[method-assign, assignment]  # the scripted seam

    async def _connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        protocol = factory()
        transport = ScriptedTransport(self.loop, protocol, self.pieces, self.end)
        protocol.connection_made(transport)
        return transport, protocol

    def run(self, pieces: Sequence[bytes], end: str | None, method: bytes = b"POST") -> Outcome:
        return self.loop.run_until_complete(self._exchange(pieces, end, method))

    async def _exchange(self, pieces: Sequence[bytes], end: str | None, method: bytes) -> Outcome:
        self.pieces, self.end = pieces, end
        carrier = Carrier(ORIGIN, limits=Limits(header_bytes=4096))
        outcome = Outcome()
        reply: Reply | None = None
        try:
            reply = await carrier.send(method, b"/", [], b"x")
            outcome.status, outcome.headers = reply.status, reply.headers
            while piece := await reply.read():
                outcome.body += piece
            assert reply.complete
        except (ReplyBroken, ReplyMalformed) as error:
            outcome.error = error
            assert reply is None or not reply.complete
        finally:
            if reply is not None:
                reply.close()
        for _ in range(3):  # what the script has left to say, and the connection's end
            await asyncio.sleep(0)
        outcome.reusable = carrier.statistics().idle == 1
        await carrier.close()
        return outcome

    def close(self) -> None:
        self.loop.close()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@dataclass(frozen=True)
class Kind:
    """A whole reply, the body it carries, and how its end is known."""

    wire: bytes
    status: int
    body: bytes
    until_close: bool = False
    reusable: bool = True
    method: bytes = b"POST"


OK = b"HTTP/1.1 200 OK\r\n"
KINDS = {
    "length": Kind(OK + b"Content-Length: 5\r\nX-A: b\r\n\r\nhello", 200, b"hello"),
    "length-zero": Kind(OK + b"content-length: 0\r\n\r\n", 200, b""),
    "chunked": Kind(OK + b"transfer-encoding: Chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", 200, b"hello"),
    "chunked-empty": Kind(OK + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 200, b""),
    "trailers": Kind(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-trailer: 9\r\n\r\n", 200, b"hello"),
    "until-close": Kind(OK + b"x-a: b\r\n\r\nhello", 200, b"hello", until_close=True, reusable=False),
    "no-content": Kind(b"HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n", 204, b""),
    "not-modified": Kind(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b""),
    "no-reason": Kind(b"HTTP/1.1 500\r\ncontent-length: 1\r\n\r\nx", 500, b"x"),
    "interim": Kind(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: a\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok",
        200,
        b"ok",
    ),
    "interim-with-length": Kind(
        b"HTTP/1.1 102 P\r\ncontent-length: 7\r\nconnection: close\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok",
        200,
        b"ok",
    ),
    "http-1.0": Kind(b"HTTP/1.0 200 OK\r\n\r\nhello", 200, b"hello", until_close=True, reusable=False),
    "http-1.0-length": Kind(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", reusable=False),
    "http-1.0-kept": Kind(b"HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
    "closing": Kind(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", reusable=False),
    "head": Kind(OK + b"content-length: 500\r\n\r\n", 200, b"", method=b"HEAD"),
    "head-chunked": Kind(OK + b"transfer-encoding: chunked\r\n\r\n", 200, b"", method=b"HEAD"),
    "head-bare": Kind(OK + b"x-a: b\r\n\r\n", 200, b"", method=b"HEAD", reusable=False),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_reply_split_at_every_pair_of_bytes_is_the_same_reply(bench: Bench, kind: Kind) -> None:
    wire = kind.wire
    end = "eof" if kind.until_close else None
    whole = bench.run([wire], end, kind.method)
    assert (whole.status, whole.body, whole.error) == (kind.status, kind.body, None)
    assert whole.reusable is kind.reusable
    for first in range(1, len(wire)):
        for second in range(first, len(wire)):
            pieces = [piece for piece in (wire[:first], wire[first:second], wire[second:]) if piece]
            assert bench.run(pieces, end, kind.method) == whole, (first, second)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_reply_that_comes_byte_by_byte_is_the_same_reply(bench: Bench, kind: Kind) -> None:
    end = "eof" if kind.until_close else None
    pieces = [kind.wire[at : at + 1] for at in range(len(kind.wire))]
    assert bench.run(pieces, end, kind.method) == bench.run([kind.wire], end, kind.method)


@pytest.mark.parametrize("end", ["eof", "reset"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_reply_cut_at_any_byte_is_broken_and_never_short(bench: Bench, kind: Kind, end: str) -> None:
    """Except where the end of the connection is the end of the reply: there a clean end cannot be told from a cut."""
    head = kind.wire.rindex(b"\r\n\r\n") + 4 if kind.until_close else None
    for cut in range(len(kind.wire)):
        outcome = bench.run([kind.wire[:cut]] if cut else [], end, kind.method)
        if head is not None and cut >= head and end == "eof":
            assert (outcome.body, outcome.error) == (kind.wire[head:cut], None), cut
        else:
            assert isinstance(outcome.error, ReplyBroken), cut
            assert outcome.error.sent
            assert outcome.error.unanswered is (cut == 0)
            assert kind.body.startswith(outcome.body)
        assert not outcome.reusable


@pytest.mark.parametrize("extra", [b"H", b"x", b"\0", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"0\r\n\r\n"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if not kind.until_close])
def test_bytes_behind_a_reply_cost_the_connection_and_change_nothing(bench: Bench, kind: Kind, extra: bytes) -> None:
    for pieces in ([kind.wire + extra], [kind.wire, extra], [kind.wire[:-1], kind.wire[-1:] + extra]):
        outcome = bench.run(pieces, None, kind.method)
        assert (outcome.status, outcome.body, outcome.error) == (kind.status, kind.body, None)
        assert not outcome.reusable


def chunks(body: bytes, sizes: list[int]) -> bytes:
    out = b""
    for size in sizes:
        piece, body = body[:size], body[size:]
        if piece:
            out += b"%X\r\n%b\r\n" % (len(piece), piece)
    if body:
        out += b"%x\r\n%b\r\n" % (len(body), body)
    return out + b"0\r\n\r\n"


NAMES = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789-_", min_size=1, max_size=20).map(
    lambda name: f"x-{name}".encode()
)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map(str.encode)


@settings(max_examples=300, deadline=None)
@given(
    status=st.sampled_from([200, 201, 299, 404, 429, 500, 599]),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=10),
    body=st.binary(max_size=3000),
    framing=st.sampled_from(["length", "chunked", "close"]),
    sizes=st.lists(st.integers(1, 500), max_size=8),
    interims=st.integers(0, 3),
    splits=st.lists(st.floats(0, 1), max_size=8),
    cut=st.none() | st.floats(0, 1, exclude_max=True),
)
def test_any_reply_however_framed_split_and_cut_is_whole_or_broken(
    bench: Bench,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    framing: str,
    sizes: list[int],
    interims: int,
    splits: list[float],
    cut: float | None,
) -> None:
    fields = {"length": [(b"content-length", b"%d" % len(body))], "chunked": [(b"transfer-encoding", b"chunked")]}
    sent = headers + fields.get(framing, [])
    head = b"HTTP/1.1 100 Continue\r\n\r\n" * interims + b"HTTP/1.1 %d X\r\n" % status
    head += b"".join(b"%b: %b\r\n" % pair for pair in sent) + b"\r\n"
    wire = head + (chunks(body, sizes) if framing == "chunked" else body)
    whole_length = len(wire)
    if cut is not None:
        wire = wire[: int(cut * whole_length)]
    places = sorted({0, len(wire), *(int(split * len(wire)) for split in splits)})
    pieces = [wire[start:stop] for start, stop in itertools.pairwise(places)]
    outcome = bench.run(pieces, "eof")
    if len(wire) == whole_length or (framing == "close" and len(wire) >= len(head)):
        assert outcome.error is None
        assert outcome.status == status
        assert outcome.headers == [(name.lower(), value) for name, value in sent]
        assert outcome.body == (wire[len(head) :] if framing == "close" else body)
    else:
        assert isinstance(outcome.error, ReplyBroken)
        assert body.startswith(outcome.body)


@settings(max_examples=500, deadline=None)
@given(
    junk=st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: OK + tail),
    splits=st.lists(st.floats(0, 1), max_size=4),
)
def test_no_bytes_whatever_escape_the_error_tree(bench: Bench, junk: bytes, splits: list[float]) -> None:
    """Random bytes are refused, or, behind a good status line, at worst a reply that lasts until the close."""
    places = sorted({0, len(junk), *(int(split * len(junk)) for split in splits)})
    outcome = bench.run([junk[start:stop] for start, stop in itertools.pairwise(places)], "eof")
    assert outcome.error is not None or outcome.status is not None
    assert not outcome.reusable
