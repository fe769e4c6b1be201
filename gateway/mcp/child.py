"""A local MCP server, spoken to over standard input and output, presented as one that is reached over HTTP.

Who asks is told apart by ids of the gateway's own, so that several can ask one child at once:

    legacy   a session has a child of its own, which its `initialize` starts; or all share one, to which the gateway
             itself has introduced itself, and which hears of agents only what they ask
    modern   there are no sessions: an agent has a child, or all share one

What a child says by itself goes to where it belongs as far as that can be told: by the token of its progress, by the
id of its subscription; else to the only call under way, to whoever listens, or to the newest call. Of a shared child
none of that is passed on that may be meant for one agent alone. Sources: MCP 2025-11-25, basic/transports; 2026-07-28,
basic/transports/stdio and basic/patterns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson

from adapters.base import Headers
from adapters.body import find, places, splice
from adapters.mcp.messages import LEGACY, MODERN
from config.settings import ToolSettings
from gateway.carrier import ConnectFailed, FirstByteTimeout, IdleTimeout, Origin, ReplyBroken, TotalTimeout
from gateway.mcp.process import Child, Murmur, environment
from gateway.problems import TargetFailed

log = logging.getLogger("weighbridge.mcp")

_JSON: Final[Headers] = [(b"content-type", b"application/json")]
_EVENTS: Final[Headers] = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
_SESSION: Final = b"mcp-session-id"
_META: Final = "_meta"
_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
_SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"

_MOST_WAITING: Final = 4 * 1024 * 1024
"""Bytes of an answer that nobody takes; with more it breaks."""
_MOST_KEPT: Final = 256
"""Messages of a child that are kept for a client that does not listen yet."""
_MOST_NONSENSE: Final = 1000
"""Lines in a row that are no messages; a child that says more is ended."""
_STARTING: Final = 60.0
"""Seconds that a server may take to answer `initialize`: many of them are fetched before they start."""
_FIRST_PAUSE: Final = 0.5
_STEADY: Final = 60.0
"""Seconds after which the end of a child counts as a first one."""
_LOOK: Final = 5.0
_MOST_REMEMBERED: Final = 10_000
_LEAST_SECRET: Final = 8
"""Bytes of a value that is looked for in answers: shorter ones stand in all kinds of texts."""

Era = Literal["legacy", "modern"]


class Told:
    """An answer that is known as a whole."""

    def __init__(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.complete = not body
        self._body = body

    async def read(self) -> bytes:
        body, self._body, self.complete = self._body, b"", True
        return body

    def close(self) -> None:
        """Nothing is kept for it."""


class Streamed:
    """An answer that is made as its reader waits: events, or one message where that is all there is."""

    status = 200

    def __init__(self, origin: Origin, idle: float | None, longest: float | None, leave: Callable[[], None]) -> None:
        """`idle` and `longest` are in seconds, None for without end. `leave` is called where it is closed before its
        end."""
        self.headers: Headers = _EVENTS
        self.complete = False
        self._origin = origin
        self._idle = idle
        self._until = time.monotonic() + longest if longest is not None else None
        self._leave: Callable[[], None] | None = leave
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._streams = False
        """Whether something was told."""
        self._plain = False
        self._broken: str | None = None
        self._changed = asyncio.Event()

    async def begun(self, within: float) -> None:
        """Waits until it is known of which kind it is. Raises FirstByteTimeout, ReplyBroken."""
        try:
            async with asyncio.timeout(within):
                await self._changed.wait()
        except TimeoutError:
            self.close()
            raise FirstByteTimeout(self._origin, "no answer in time", sent=True, unanswered=True) from None
        except asyncio.CancelledError:
            self.close()
            raise
        if self._broken is not None and not self._pieces:
            raise ReplyBroken(self._origin, self._broken, sent=True, unanswered=True)
        if self._plain:
            self.headers = [*_JSON, *self.headers[len(_EVENTS) :]]

    def tell(self, message: bytes, *, last: bool = False) -> bool:
        """One more message; False where its reader is too slow."""
        if self._ended or self._broken is not None:
            return False
        if self._size > _MOST_WAITING:
            self.fail("it was read too slowly")
            return False
        self._plain = last and not self._streams
        self._streams = True
        piece = message if self._plain else b"event: message\ndata: %s\n\n" % message
        self._pieces.append(piece)
        self._size += len(piece)
        self._ended = last
        self._changed.set()
        return True

    @property
    def refused(self) -> bool:
        """Whether it is an error and nothing else."""
        return self._plain and "error" in orjson.loads(self._pieces[0])

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def fail(self, why: str) -> None:
        if not self._ended and self._broken is None:
            self._broken = why
            self._changed.set()

    async def read(self) -> bytes:
        while not self._pieces:
            if self._ended:
                self.complete = True
                self._leave = None
                return b""
            if self._broken is not None:
                raise ReplyBroken(self._origin, self._broken, sent=True)
            self._changed.clear()
            left = self._until - time.monotonic() if self._until is not None else None
            if left is not None and left <= 0:
                raise TotalTimeout(self._origin, "an answer that does not end", sent=True)
            try:
                async with asyncio.timeout(left if self._idle is None else min(self._idle, left or self._idle)):
                    await self._changed.wait()
            except TimeoutError:
                if left is not None and (self._idle is None or left < self._idle):
                    continue
                raise IdleTimeout(self._origin, "silence within an answer", sent=True) from None
        pieces = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return pieces

    def close(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            self.end()
            leave()


@dataclass(slots=True)
class _Call:
    """One request under way: `id` and `progress` are the JSON texts by which its client knows it."""

    number: int
    method: str
    id: bytes
    progress: bytes
    session: str
    answer: Streamed


@dataclass(slots=True, eq=False)
class _Listener:
    """A client of a legacy session, as far as a child has something to say to it by itself."""

    whose: str
    child: int = 0
    """Of which child it is a client, by the number of its start."""
    stream: Streamed | None = None
    kept: deque[bytes] = field(default_factory=lambda: deque(maxlen=_MOST_KEPT))
    subscribed: set[str] = field(default_factory=set)
    used: float = 0.0

    def tell(self, message: bytes, *, keep: bool = True) -> None:
        if self.stream is None or not self.stream.tell(message):
            if keep:
                self.kept.append(message)


@dataclass(slots=True, eq=False)
class _Line:
    """One child, and who speaks to it."""

    key: str
    era: Era
    whose: str
    """Whose it is alone; empty where it is shared."""
    shared: bool
    child: Child
    number: int
    calls: dict[int, _Call] = field(default_factory=dict)
    listener: _Listener | None = None
    ready: asyncio.Task[None] | None = None
    greeting: dict[str, Any] = field(default_factory=dict)
    """What a shared child has answered to `initialize`."""
    used: float = 0.0
    nonsense: int = 0
    ended: bool = False


@dataclass(slots=True)
class _Misfortune:
    """That children of somebody end by themselves."""

    times: int
    until: float


class ChildUpstream:
    """Implements `gateway.mcp.upstream.Upstream`."""

    def __init__(self, settings: ToolSettings) -> None:
        """Raises SecretMissing."""
        self._settings = settings
        self._variables = environment(settings)
        values = [each.value.reveal() for each in settings.env]
        self._murmur = Murmur(settings.name, values)
        self.secrets = tuple(each.encode() for each in values if len(each) >= _LEAST_SECRET)
        """What the server is given, and no agent may see."""
        self._origin = Origin("stdio", settings.name, 0)
        self._lines: dict[str, _Line] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._listeners: dict[str, _Listener] = {}
        """Of shared children, by their sessions."""
        self._misfortunes: dict[str, _Misfortune] = {}
        self._numbers = 0
        self._retired = False
        self._closed = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many children there are, those that are ending among them."""
        return len(self._lines) + len(self._ending)

    async def send(
        self,
        method: bytes,
        headers: Headers,
        body: bytes,
        leaving: Callable[[], None] | None = None,
        whose: str = "",
    ) -> Told | Streamed:
        """As `Upstream.send`. Raises TargetFailed where there is no child and none can be started."""
        given = dict(headers)
        session = given.get(_SESSION, b"").decode("latin-1")
        if method == b"GET":
            return self._listen(session, whose)
        if method == b"DELETE":
            return self._leave(session, whose)
        message = orjson.loads(body)
        line = body.replace(b"\n", b" ").replace(b"\r", b" ")  # within JSON these stand between values only
        params = message.get("params") or {}
        meta = params.get(_META) or {}
        version = meta.get(_VERSION, given.get(b"mcp-protocol-version", b"").decode("latin-1"))
        if version == MODERN:
            return await self._modern(message, line, leaving, whose)
        if message.get("method") == "initialize":
            return await self._initialize(message, line, leaving, whose)
        return await self._legacy(session, message, line, leaving, whose)

    async def close(self) -> None:
        self._closed.set()
        for line in list(self._lines.values()):
            self._end(line, "the gateway is being stopped")
        for listener in self._listeners.values():
            if listener.stream is not None:
                listener.stream.end()
        if self._tending is not None:
            await asyncio.wait([self._tending])
        while self._ending:
            await asyncio.wait(list(self._ending))

    def retire(self) -> None:
        self._retired = True
        for line in list(self._lines.values()):
            self._end_if_unused(line)
        for listener in self._listeners.values():
            if listener.stream is not None:
                listener.stream.end()

    def dismiss(self, whose: str) -> None:
        """Ends what this agent alone has, or the gateway itself where it is empty."""
        for line in list(self._lines.values()):
            if not line.shared and line.whose == whose:
                self._end(line, "its agent was stopped" if whose else "the gateway has its answer")
        for name, listener in list(self._listeners.items()):
            if listener.whose == whose:
                del self._listeners[name]
                if listener.stream is not None:
                    listener.stream.end()

    # What clients say

    async def _modern(
        self, message: Mapping[str, Any], line: bytes, leaving: Callable[[], None] | None, whose: str
    ) -> Told | Streamed:
        if "id" not in message or "method" not in message:
            return Told(202, [])  # clients have nothing to announce over HTTP
        key = "modern" if self._settings.shared else f"modern {whose}"
        place = await self._place(key, "modern", "" if self._settings.shared else whose)
        return await self._ask(place, "", message, line, leaving)

    async def _initialize(
        self, message: Mapping[str, Any], line: bytes, leaving: Callable[[], None] | None, whose: str
    ) -> Told | Streamed:
        name = secrets.token_hex(16)
        if self._settings.shared:
            place = await self._place("shared", "legacy", "")
            self._listener(f"shared-{name}", whose).child = place.number
            headers = [*_JSON, (_SESSION, f"shared-{name}".encode())]
            return Told(200, headers, _greeted(message, place.greeting))
        place = await self._place(f"session {name}", "legacy", whose)
        place.listener = _Listener(whose)
        try:
            answer = await self._ask(place, name, message, line, leaving, within=_STARTING)
        except BaseException:
            self._end(place, "it was not initialized")
            raise
        if answer.refused:
            self._end(place, "it was not initialized")
        else:
            answer.headers = [*answer.headers, (_SESSION, name.encode())]
        return answer

    async def _legacy(
        self,
        session: str,
        message: Mapping[str, Any],
        line: bytes,
        leaving: Callable[[], None] | None,
        whose: str,
    ) -> Told | Streamed:
        identity = _raw_id(line) if "id" in message else b"null"
        if not session:
            return _refused(400, identity, -32600, "Bad Request: Missing session ID")
        place = await self._at(session, whose)
        if place is None:
            return _refused(404, identity, -32600, "Session not found")
        method = message.get("method")
        if method is None or "id" not in message:
            self._pass(place, session, message, line)
            return Told(202, [])
        if place.shared and method == "logging/setLevel":
            return Told(200, _JSON, b'{"jsonrpc":"2.0","id":%s,"result":{}}' % identity)
        if place.shared and method in ("resources/subscribe", "resources/unsubscribe"):
            uri = str((message.get("params") or {}).get("uri", ""))
            if not self._subscribes(session, uri, method == "resources/subscribe"):
                return Told(200, _JSON, b'{"jsonrpc":"2.0","id":%s,"result":{}}' % identity)
        return await self._ask(place, session, message, line, leaving)

    def _pass(self, place: _Line, session: str, message: Mapping[str, Any], line: bytes) -> None:
        """A notification, or the answer to something that the child has asked."""
        if message.get("method") == "notifications/cancelled":
            wanted = (message.get("params") or {}).get("requestId")
            for call in place.calls.values():
                if call.session == session and orjson.loads(call.id) == wanted:
                    place.child.write(splice(line, places(line, ("params", "requestId")), b"%d" % call.number))
        elif not place.shared:
            place.child.write(line)

    def _subscribes(self, session: str, uri: str, wants: bool) -> bool:
        """Whether the child has to know of it: others may have said the same before, or still want it."""
        mine = self._listeners[session].subscribed
        others = any(uri in each.subscribed for name, each in self._listeners.items() if name != session)
        if wants and len(mine) < _MOST_REMEMBERED:
            mine.add(uri)
        elif not wants:
            mine.discard(uri)
        return not others

    async def _ask(
        self,
        place: _Line,
        session: str,
        message: Mapping[str, Any],
        line: bytes,
        leaving: Callable[[], None] | None,
        within: float | None = None,
    ) -> Streamed:
        """Raises TargetFailed where the child does not take the request, FirstByteTimeout, ReplyBroken."""
        self._numbers += 1
        number = self._numbers
        method = str(message["method"])
        identity = _raw_id(line)
        line = splice(line, [find(line, "id") or (0, 0)], b"%d" % number)
        spans = places(line, ("params", _META, "progressToken"))
        progress = line[slice(*spans[0])] if spans else b""
        line = splice(line, spans, b"%d" % number)
        endless = method == "subscriptions/listen"
        idle, longest = (None, None) if endless else (self._settings.idle, self._settings.longest)
        answer = Streamed(self._origin, idle, longest, lambda: self._left(place, number))
        if not place.child.write(line):
            raise TargetFailed(f"The tool server {self._settings.name} takes no request now.")
        place.calls[number] = _Call(number, method, identity, progress, session, answer)
        place.used = time.monotonic()
        if leaving is not None:
            leaving()
        await answer.begun(within or self._settings.timeout)
        return answer

    def _left(self, place: _Line, number: int) -> None:
        """Nobody waits for the answer any more."""
        call = place.calls.pop(number, None)
        if call is None:
            return
        if call.method == "initialize":
            self._end(place, "it was not initialized")
        else:
            place.child.write(
                b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}' % number
            )
        self._end_if_unused(place)

    def _listen(self, session: str, whose: str) -> Told | Streamed:
        if not session:
            return _refused(400, b"null", -32600, "Bad Request: Missing session ID")
        found = self._found(session, whose)
        if found is None:
            return _refused(404, b"null", -32600, "Session not found")
        listener = found
        if listener.stream is not None:
            listener.stream.end()  # the client has lost it, or else it would not ask

        def leave() -> None:
            if listener.stream is stream:
                listener.stream = None
                listener.used = time.monotonic()
                if (place := self._lines.get(f"session {session}")) is not None:
                    place.used = listener.used
                    self._end_if_unused(place)

        stream = listener.stream = Streamed(self._origin, None, None, leave)
        while listener.kept:
            stream.tell(listener.kept.popleft())
        return stream

    def _leave(self, session: str, whose: str) -> Told:
        if self._found(session, whose) is None:
            return _refused(404, b"null", -32600, "Session not found")
        listener = self._listeners.pop(session, None)
        if listener is not None and listener.stream is not None:
            listener.stream.end()
        place = self._lines.get(f"session {session}")
        if place is not None:
            self._end(place, "its session has ended")
        return Told(200, [])

    def _found(self, session: str, whose: str) -> _Listener | None:
        """The client of a session, if it is this agent's."""
        if self._settings.shared:
            listener = self._listener(session, whose) if session.startswith("shared-") else None
            shared = self._lines.get("shared")
            if listener is not None and listener.child and (shared is None or shared.number != listener.child):
                del self._listeners[session]  # of a child that has died: what was subscribed to is lost
                listener = None
        else:
            place = self._lines.get(f"session {session}")
            listener = place.listener if place is not None else None
        return listener if listener is not None and listener.whose == whose else None

    def _listener(self, session: str, whose: str) -> _Listener:
        """Sessions with a shared child need nothing but their ids, so that one that began elsewhere goes on here."""
        listener = self._listeners.get(session)
        if listener is None:
            while len(self._listeners) >= _MOST_REMEMBERED:
                del self._listeners[next(iter(self._listeners))]
            listener = self._listeners[session] = _Listener(whose)
        listener.used = time.monotonic()
        return listener

    async def _at(self, session: str, whose: str) -> _Line | None:
        listener = self._found(session, whose)
        if listener is None:
            return None
        if not self._settings.shared:
            return self._lines.get(f"session {session}")
        place = await self._place("shared", "legacy", "")
        listener.child = place.number
        return place

    # Children

    async def _place(self, key: str, era: Era, whose: str) -> _Line:
        """The child of that key, started if need be. Raises TargetFailed, ConnectFailed."""
        place = self._lines.get(key)
        if place is None:
            place = self._new(key, era, whose)
        assert place.ready is not None, "a child is being started from its beginning"
        await asyncio.shield(place.ready)
        place.used = time.monotonic()
        return place

    def _new(self, key: str, era: Era, whose: str) -> _Line:
        name, now = self._settings.name, time.monotonic()
        if self._closed.is_set() or self._retired:
            raise TargetFailed(f"The tool server {name} is not served any more.")
        misfortune = self._misfortunes.get(whose)
        if misfortune is not None and now < misfortune.until:
            pause = misfortune.until - now
            raise TargetFailed(f"The tool server {name} keeps ending; it is started again in {pause:.1f} s.")
        if len(self) >= self._settings.count:
            raise TargetFailed(f"The tool server {name} has as many children as it may have, {self._settings.count}.")
        self._numbers += 1

        def heard(line: bytes) -> None:
            self._heard(place, line)

        def ended(why: str) -> None:
            self._died(place, why)

        child = Child(self._settings, self._murmur, heard, ended)
        place = _Line(key, era, whose, self._settings.shared, child, self._numbers, used=now)
        self._lines[key] = place
        place.ready = asyncio.get_running_loop().create_task(self._begin(place), name=f"starting {name}")
        place.ready.add_done_callback(_heed)
        if self._tending is None:
            self._tending = asyncio.get_running_loop().create_task(self._tend(), name=f"tending {name}")
        return place

    async def _begin(self, place: _Line) -> None:
        name = self._settings.name
        try:
            await place.child.start(self._variables)
        except OSError as error:
            self._died(place, "it could not be started")
            log.error("%s cannot be started: %s", name, error.strerror)
            raise ConnectFailed(self._origin, "it cannot be started", sent=False) from None
        log.debug("%s: child %d began", name, place.child.pid)
        if place.ended:
            raise TargetFailed(f"The tool server {name} is not served any more.")
        if place.shared and place.era == "legacy":
            await self._introduce(place)

    async def _introduce(self, place: _Line) -> None:
        """The gateway is the client of a shared child: it can nothing that a client may offer."""
        hello = {
            "jsonrpc": "2.0",
            "id": 0,
            "method": "initialize",
            "params": {
                "protocolVersion": LEGACY[-1],
                "capabilities": {},
                "clientInfo": {"name": "weighbridge", "version": "1"},
            },
        }
        try:
            answer = await self._ask(place, "", hello, orjson.dumps(hello), None, within=_STARTING)
            said = b""
            while piece := await answer.read():
                said += piece
            result = orjson.loads(said[said.index(b"{") :])["result"]
            place.greeting = {**result, "capabilities": {**result["capabilities"]}}
        except (ValueError, LookupError, TypeError) as error:
            self._end(place, "it was not initialized")
            raise TargetFailed(f"The tool server {self._settings.name} did not agree on how to speak.") from error
        except BaseException:
            self._end(place, "it was not initialized")
            raise
        for one_for_all in ("logging", "tasks"):
            place.greeting["capabilities"].pop(one_for_all, None)
        place.child.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')

    def _died(self, place: _Line, why: str) -> None:
        """Its child says nothing more: what was asked of it is not answered any more."""
        if place.ended:
            return
        log.warning("%s: child %d: %s", self._settings.name, place.child.pid, why)
        now = time.monotonic()
        before = self._misfortunes.pop(place.whose, None)
        steady = before is None or now - place.child.began > _STEADY
        times = 1 if steady or before is None else before.times + 1
        pause = min(_FIRST_PAUSE * 2 ** min(times - 2, 30), self._settings.restart) if times > 1 else 0.0
        self._misfortunes[place.whose] = _Misfortune(times, now + pause)
        while len(self._misfortunes) > _MOST_REMEMBERED:
            del self._misfortunes[next(iter(self._misfortunes))]
        self._end(place, why)

    def _end(self, place: _Line, why: str) -> None:
        if place.ended:
            return
        place.ended = True
        if self._lines.get(place.key) is place:
            del self._lines[place.key]
        for call in place.calls.values():
            call.answer.fail(why)
        place.calls.clear()
        if place.listener is not None and place.listener.stream is not None:
            place.listener.stream.end()
        ending = asyncio.get_running_loop().create_task(self._buried(place), name=f"ending {self._settings.name}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _buried(self, place: _Line) -> None:
        if place.ready is not None and not place.ready.done():
            with contextlib.suppress(Exception):  # whoever waits for it is told
                await asyncio.wait([place.ready], timeout=_LOOK)
        await place.child.end()

    def _end_if_unused(self, place: _Line) -> None:
        if self._retired and not place.calls:
            self._end(place, "its configuration has changed")

    async def _tend(self) -> None:
        """Ends what nobody uses any more."""
        idle = self._settings.session_idle
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK, idle / 4)):
                    await self._closed.wait()
            since = time.monotonic() - idle
            for place in list(self._lines.values()):
                heard = place.listener is not None and place.listener.stream is not None
                if not place.calls and not heard and place.used < since and place.ready and place.ready.done():
                    self._end(place, "nobody uses it")
            for session, listener in list(self._listeners.items()):
                if listener.stream is None and listener.used < since:
                    del self._listeners[session]

    # What children say

    def _heard(self, place: _Line, line: bytes) -> None:
        try:
            message = orjson.loads(line)
            if not isinstance(message, dict):
                raise ValueError("no object")
        except ValueError:
            self._nonsense(place, line)
            return
        place.nonsense = 0
        line = line.strip()
        method, params = message.get("method"), message.get("params")
        if not isinstance(method, str):
            self._answered(place, message, line)
        elif "id" in message:
            self._asked(place, message, line)
        else:
            self._noticed(place, method, params if isinstance(params, dict) else {}, line)

    def _nonsense(self, place: _Line, line: bytes) -> None:
        place.nonsense += 1
        if place.nonsense == 1:
            log.warning("%s: child %d says what is no message", self._settings.name, place.child.pid)
            self._murmur.tell(place.child.pid, line)
        elif place.nonsense > _MOST_NONSENSE:
            place.child.give_up("it says nothing but nonsense")

    def _answered(self, place: _Line, message: Mapping[str, Any], line: bytes) -> None:
        number = message.get("id")
        call = place.calls.pop(number, None) if type(number) is int else None
        if call is None:
            return
        place.used = time.monotonic()
        spans = places(line, ("result", _META, _SUBSCRIPTION)) if call.method == "subscriptions/listen" else []
        line = splice(line, spans, call.id)
        span = find(line, "id")
        assert span is not None, "an answer was found by its id"
        call.answer.tell(splice(line, [span], call.id), last=True)
        self._end_if_unused(place)

    def _asked(self, place: _Line, message: Mapping[str, Any], line: bytes) -> None:
        """Something that its client is to answer."""
        stream = None if place.shared or place.era == "modern" else self._stream(place)
        if stream is None or not stream.tell(line):
            why = "Nobody can be asked: this server is shared, or its client does not listen."
            error = {"code": -32601, "message": why}
            place.child.write(b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (_raw_id(line), orjson.dumps(error)))

    def _noticed(self, place: _Line, method: str, params: Mapping[str, Any], line: bytes) -> None:
        meta = params.get(_META)
        if method == "notifications/progress":
            call = _numbered(place, params.get("progressToken"))
            if call is not None and call.progress:
                call.answer.tell(splice(line, places(line, ("params", "progressToken")), call.progress))
        elif isinstance(meta, dict) and _SUBSCRIPTION in meta:
            call = _numbered(place, meta[_SUBSCRIPTION])
            if call is not None:
                call.answer.tell(splice(line, places(line, ("params", _META, _SUBSCRIPTION)), call.id))
        elif method == "notifications/cancelled" and place.era == "modern":
            call = _numbered(place, params.get("requestId"))
            if call is not None:  # the end of a subscription
                del place.calls[call.number]
                call.answer.end()
        elif place.era == "modern":
            if len(place.calls) == 1 and method == "notifications/message":
                next(iter(place.calls.values())).answer.tell(line)
        elif not place.shared:
            stream = self._stream(place)
            if stream is not None:
                stream.tell(line)
            elif place.listener is not None:
                place.listener.kept.append(line)
        else:
            for listener in self._listeners.values():
                if method.endswith("/list_changed") or (
                    method == "notifications/resources/updated" and params.get("uri") in listener.subscribed
                ):
                    listener.tell(line)

    def _stream(self, place: _Line) -> Streamed | None:
        """Where a child's own words belong, most likely."""
        calls = list(place.calls.values())
        if len(calls) == 1 and calls[0].method != "initialize":
            return calls[0].answer
        if place.listener is not None and place.listener.stream is not None:
            return place.listener.stream
        return calls[-1].answer if calls and calls[-1].method != "initialize" else None


def _numbered(place: _Line, number: object) -> _Call | None:
    return place.calls.get(number) if type(number) is int else None


def _raw_id(line: bytes) -> bytes:
    span = find(line, "id")
    return line[slice(*span)] if span is not None else b"null"


def _greeted(message: Mapping[str, Any], greeting: Mapping[str, Any]) -> bytes:
    """The answer to `initialize` at a shared child: as it has answered the gateway, in the client's version."""
    wanted = (message.get("params") or {}).get("protocolVersion")
    version = wanted if wanted in LEGACY and wanted < greeting["protocolVersion"] else greeting["protocolVersion"]
    return orjson.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": {**greeting, "protocolVersion": version}})


def _refused(status: int, identity: bytes, code: int, why: str) -> Told:
    error = orjson.dumps({"code": code, "message": why})
    return Told(status, _JSON, b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (identity, error))


def _heed(task: asyncio.Task[None]) -> None:
    """Whoever waits for a start is told of its failure; where nobody does, nobody has to be."""
    if not task.cancelled():
        task.exception()
