"""All joined MCP servers behind `/mcp/all`: whose a call is, what all of them list, and each message in their own era.

A call of a tool, a prompt or a resource becomes one of the server that has it, before anybody decides about it: target,
operation, definition, budgets and records are as if it had come to that server. What concerns all of them (what they
offer, their lists, who listens) is put together here: as what each would answer this agent, were it asked alone.
Towards each server the gateway is a client then: a legacy server has a session for each session here, or for each agent
whose client knows no sessions. Such sessions are this gateway's own; another replica makes its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import orjson

from adapters.base import Breach, Headers, ToolCall
from adapters.errors import MethodNotAllowed, ProtocolBreach, UnknownEndpoint
from adapters.mcp import joined, lists, messages, mirrors
from adapters.mcp.answers import Mcp
from adapters.mcp.held import NO_SUCH_TASK, TASK_METHODS
from adapters.mcp.joined import ALL
from adapters.mcp.messages import LEGACY, MODERN, Era, McpCall
from adapters.sse import Framing, events
from config.settings import ToolSettings
from gateway.callids import CallIds
from gateway.exchange import Exchange
from gateway.lifeline import Lifeline
from gateway.mcp import tasks
from gateway.mcp.server import McpServer, check_single
from gateway.mcp.sessions import Session
from gateway.problems import TargetFailed, problem_for
from gateway.reply import Reply
from gateway.tools.desk import Desk
from policies.approvals import HeldCall

log = logging.getLogger("weighbridge.mcp")

Told = TypeVar("Told")

AGAIN: Final = 5.0
"""Seconds after which a server that has ended its stream is listened to again."""
_LOOK_AGAIN: Final = 30.0
"""Seconds after which a resource that nobody lists is looked for again."""
_TELLING: Final = 5.0
"""Seconds for what a server is told when nobody waits any more."""
_MOST_PAGES: Final = 50
_MOST_SESSIONS: Final = 10_000
_MOST_LEARNT: Final = 10_000

_SESSION: Final = b"mcp-session-id"
_JSON: Final[Headers] = [(b"content-type", b"application/json")]
_EVENTS: Final[Headers] = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
_ASKED: Final[Headers] = [
    (b"accept", b"application/json, text/event-stream"),
    (b"content-type", b"application/json"),
]
_NO_METHOD: Final = -32601

_BY_NAME: Final = frozenset({"tools/call", "prompts/get"})
_BY_URI: Final = frozenset({"resources/read", "resources/subscribe", "resources/unsubscribe"})
_OFFERED_BY: Final[Mapping[str, str]] = {
    "tools/list": "tools",
    "resources/list": "resources",
    "resources/templates/list": "resources",
    "prompts/list": "prompts",
}


@dataclass(slots=True)
class Known:
    """What was learnt of one server: whether it speaks an era (no word where that is not known), what it offers, and
    what stands in its lists."""

    speaks: dict[Era, bool] = field(default_factory=dict)
    capabilities: Mapping[str, Any] | None = None
    shortened: dict[str, str] = field(default_factory=dict)
    """Names that were too long -> what they were."""
    uris: dict[str, None] = field(default_factory=dict)
    templates: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Within:
    """The gateway's own way to one server, for one client: `sealed` is its session there, empty in the modern era."""

    era: Era
    sealed: str = ""
    upstream: str = ""
    session: str = ""
    version: str = MODERN


class Absent(Exception):
    """A server that has no part in an answer. The text says why."""


class SessionLost(Exception):
    """A server does not know the gateway's session any more."""


class JoinedServer:
    """Implements `gateway.tools.desk.Tool`."""

    def __init__(self, servers: Iterable[McpServer], previous: JoinedServer | None = None) -> None:
        self.settings = ToolSettings.model_construct(name=ALL, kind="mcp", joined=False)
        self._servers = {each.settings.name: each for each in servers}
        before = previous._servers if previous is not None else {}
        same = {name for name, each in self._servers.items() if before.get(name) is each}
        self._known: dict[str, Known] = {
            name: previous._known[name] if previous is not None and name in same else Known() for name in self._servers
        }
        self._sessions: OrderedDict[tuple[str, str, str], Within] = OrderedDict()
        """(agent, session here, server) -> the way there."""
        if previous is not None:
            self._sessions |= {key: each for key, each in previous._sessions.items() if key[2] in same}
        self._opening: dict[tuple[str, str, str], asyncio.Task[Within]] = {}
        self._running: dict[tuple[str, str, bytes], asyncio.Task[None]] = {}
        """(agent, session here, id) -> what a legacy client takes back by a message, and its server by the end of a
        connection."""
        self._absent: set[str] = set()
        """Servers that had no part in the last answer they were wanted for."""
        self._looked: OrderedDict[str, float] = OrderedDict()
        self._ids = CallIds()
        self._telling: set[asyncio.Task[None]] = set()

    def joins(self, servers: Iterable[McpServer]) -> bool:
        """Whether it is these that it joins."""
        return list(map(id, self._servers.values())) == list(map(id, servers))

    # Messages become calls

    async def read(self, x: Exchange, body: bytes, rest: str, desk: Desk) -> ToolCall:
        if rest:
            raise UnknownEndpoint(f"Nothing is served below /mcp/{ALL}.")
        adapter = x.adapter
        assert isinstance(adapter, Mcp), "whoever asks at /mcp/ speaks MCP"
        version = mirrors.version_in(x.headers)
        era = messages.era_of(version)
        if x.method in ("GET", "DELETE") and era == "legacy":
            call = messages.bare(ALL, x.method, era, version)
        elif x.method == "POST":
            try:
                call = messages.read(ALL, body, version, free=True)
            except ProtocolBreach as error:
                x.adapter = adapter.answering_to(error.id)
                raise
        else:
            raise MethodNotAllowed("POST" if era == "modern" else "GET, POST, DELETE")
        x.adapter = adapter.answering(call)
        check_single(x.headers, era)
        if call.era == "modern":
            if call.id:
                mirrors.check(x.headers, call.method, call.version, call.name or None)
        else:
            self._attach(x, call, desk)
        if not call.method and call.message:
            return await self._answer(x, call, adapter, desk)
        if call.id and (call.method in _BY_NAME | _BY_URI or call.method == "completion/complete"):
            return await self._directed(x, call, adapter, desk)
        if not call.endpoint.passes or (call.id and not self._is_answered_here(call)):
            raise ProtocolBreach(
                f"{call.method[:100]} is not offered here.", Breach(_NO_METHOD, 404 if era == "modern" else 200)
            )
        return call

    def stored(self, x: Exchange, held: HeldCall) -> ToolCall:
        server = self._servers.get(held.target)
        if server is None:
            raise UnknownEndpoint(f"There is no server {held.target[:100]!r} any more.")
        return server.stored(x, held)

    def _is_answered_here(self, call: McpCall) -> bool:
        if call.method in _OFFERED_BY or (call.method in TASK_METHODS and call.era == "modern"):
            return True
        return call.method in (
            ("server/discover",) if call.era == "modern" else ("initialize", "ping", "logging/setLevel")
        )

    def _attach(self, x: Exchange, call: McpCall, desk: Desk) -> None:
        """As of any server: Raises ProtocolBreach, SealsUnavailable."""
        assert x.agent is not None, "a call is identified before it is read"
        said = next((value for name, value in x.headers if name == _SESSION), None)
        if said is not None:
            session = desk.seals.opened(said.decode("latin-1"))
            if session is None or (session.server, session.tenant, session.agent) != (
                ALL,
                x.agent.tenant,
                x.agent.name,
            ):
                raise ProtocolBreach("Session not found. Initialize a new one.", messages.NO_SESSION)
            call.session = session.id
            call.abilities = call.abilities or orjson.loads(session.abilities)
        elif call.method == "initialize" and call.id:
            call.session = self._ids.next(x.arrived_ns)
            call.abilities = messages.initializes(call)
        else:
            raise ProtocolBreach("The header Mcp-Session-Id is missing. Initialize a session.", messages.INVALID)
        if x.session is None:
            x.session = call.session

    async def _directed(self, x: Exchange, call: McpCall, adapter: Mcp, desk: Desk) -> ToolCall:
        """The call as one of the server that has what it names. Raises ProtocolBreach, and as `McpServer.read`."""
        params = orjson.loads(call.message).get("params", {})
        path: list[str] = ["params"]
        if call.method == "completion/complete":
            path.append("ref")
            params = params.get("ref")
        key = "uri" if call.method in _BY_URI or (isinstance(params, dict) and "uri" in params) else "name"
        wanted = params.get(key) if isinstance(params, dict) else None
        if not isinstance(wanted, str):
            raise ProtocolBreach(f"`{'.'.join([*path, key])}` must be a text.", messages.INVALID_PARAMS)
        if key == "uri":
            server, own = await self._having(x, call, wanted, desk), wanted
        else:
            server, own = await self._named(x, call, wanted, desk)
        message = call.message if own == wanted else joined.directed(call.message, [*path, key], own)
        named = own if call.method in mirrors.NAMED else ""
        try:
            return await self._read_there(x, call, adapter, server, message, named, desk)
        finally:
            if own != wanted and isinstance(x.adapter, Mcp):
                x.adapter = x.adapter.hinting(joined.naming(server.settings.name, wanted))

    async def _read_there(
        self, x: Exchange, call: McpCall, adapter: Mcp, server: McpServer, message: bytes, named: str, desk: Desk
    ) -> ToolCall:
        """The message as this server reads it, in its client's era; what it is sent is another matter."""
        headers = [line for line in x.headers if line[0] not in (_SESSION, mirrors.NAME)]
        if call.era == "modern":
            headers += [(mirrors.NAME, mirrors.encoded(named))] if named else []
        else:
            assert x.agent is not None, "a call is identified before it is read"
            session = Session(
                server.settings.name,
                x.agent.tenant,
                x.agent.name,
                "",
                call.version,
                call.session,
                messages.abilities_kept(call),
            )
            headers.append((_SESSION, desk.seals.sealed(session).encode()))
        x.headers, x.adapter = headers, adapter
        return await server.read(x, message, "", desk)

    async def _named(self, x: Exchange, call: McpCall, name: str, desk: Desk) -> tuple[McpServer, str]:
        """The server of a joined name, and its own name. Raises ProtocolBreach."""
        parted = joined.parted(name)
        server = self._servers.get(parted[0]) if parted is not None else None
        if parted is None or server is None:
            raise ProtocolBreach(
                f"Unknown name: {name[:100]!r}. Names here are SERVER{joined.SEPARATOR}NAME.", messages.INVALID_PARAMS
            )
        if joined.is_shortened(name):
            known = self._known[parted[0]]
            if name not in known.shortened:
                method = "tools/list" if call.method == "tools/call" else "prompts/list"
                with suppress(Absent):
                    await self._listed(x, call, server, method, desk)
            return server, known.shortened.get(name, parted[1])
        return server, parted[1]

    async def _having(self, x: Exchange, call: McpCall, uri: str, desk: Desk) -> McpServer:
        """The server that lists this resource, or a template of it; the first of them, as they are configured. Raises
        ProtocolBreach."""
        found = self._lists(uri)
        whose, now = _whose(x), time.monotonic()
        if found is None and now - self._looked.get(whose, -_LOOK_AGAIN) >= _LOOK_AGAIN:
            self._looked[whose] = now
            if len(self._looked) > _MOST_LEARNT:
                self._looked.popitem(last=False)
            for method in ("resources/list", "resources/templates/list"):
                await self._all(self._list_or_none(x, call, each, method, desk) for each in self._servers.values())
            found = self._lists(uri)
        if found is None:
            code = Breach(-32602, 400) if call.era == "modern" else Breach(-32002, 200)
            raise ProtocolBreach("Resource not found: none of the joined servers lists it.", code)
        return found

    def _lists(self, uri: str) -> McpServer | None:
        for name, known in self._known.items():
            if uri in known.uris:
                return self._servers[name]
        best = max(
            (
                (joined.likeness(template, uri), name)
                for name, known in self._known.items()
                for template in known.templates
            ),
            key=lambda each: each[0],
            default=(-1, ""),
        )
        return self._servers[best[1]] if best[0] >= 0 else None

    async def _answer(self, x: Exchange, call: McpCall, adapter: Mcp, desk: Desk) -> ToolCall:
        """What a client answers to a server's question: for the server that has asked."""
        whose = joined.answer(call.message)
        server = self._servers.get(whose[0]) if whose is not None else None
        if whose is None or server is None:
            return call
        return await self._read_there(x, call, adapter, server, whose[1], "", desk)

    # Calls are carried

    async def forward(self, x: Exchange, reply: Reply, lifeline: Lifeline, desk: Desk) -> None:
        call = x.call
        assert isinstance(call, McpCall), "what is sent to MCP servers was read as a message"
        if call.target != ALL:
            await self._forward_there(x, call, reply, lifeline, desk)
        elif x.method == "GET":
            await self._listen(x, call, reply, desk)
        elif x.method == "DELETE":
            self._leave(x, call, desk)
            await reply.whole(200, [], b"")
        elif not call.id:
            await self._tell(x, call, desk)
            await reply.whole(202, [], b"")
        elif call.method == "initialize":
            await self._initialize(x, call, reply, desk)
        elif call.method == "server/discover":
            capabilities, absent = await self._capabilities(x, call, desk)
            told = joined.offers(capabilities, missing=bool(absent), modern=True)
            result = {"supportedVersions": [MODERN], "capabilities": told, "serverInfo": _INFO}
            await _result(reply, call, {**result, **_kept(), **joined.missing(absent)})
        elif call.method in _OFFERED_BY:
            await self._list(x, call, reply, desk)
        elif call.method in TASK_METHODS:
            found = await tasks.answered(x, call, desk.holds)
            if found is None:
                raise ProtocolBreach("There is no such task.", NO_SUCH_TASK)
            await reply.whole(200, _JSON, found)
        else:
            if call.method == "logging/setLevel":
                await self._tell(x, call, desk)
            await _result(reply, call, {})

    async def _forward_there(self, x: Exchange, call: McpCall, reply: Reply, lifeline: Lifeline, desk: Desk) -> None:
        server = self._servers.get(call.target)
        if server is None:
            raise UnknownEndpoint(f"There is no server {call.target[:100]!r} any more.")
        if not call.method and self._way(x, call, server) is None:
            await reply.whole(202, [], b"")  # the session in which it was asked has gone
            return
        if call.era == "legacy":
            lifeline.go_on_alone()
        for last in (False, True):
            try:
                way = await self._within(x, call, server, desk)
            except Absent as error:
                raise TargetFailed(f"The tool server {server.settings.name} cannot be used: {error}.") from None
            headers, there = x.headers, self._translated(call, way)
            x.call, x.headers = there, _with_session(headers, way)
            apart = replace(x) if way.era == "legacy" and call.era == "modern" else x

            def answer(body: bytes, apart: Exchange = apart, there: McpCall = there) -> None:
                self._later(server.tell(apart, there, body))

            shape = Shape(server.settings.name, call.era, way.era, last=last, answer=answer)
            if shape.changes:
                reply.shaped(shape)
            try:
                if call.era == way.era:
                    await server.forward(x, reply, lifeline, desk)
                elif call.era == "legacy":
                    await self._until_taken_back(x, call, server.forward(x, reply, _Apart(), desk), reply)
                else:
                    await server.forward(x, reply, _Apart(), desk)
            except (SessionLost, ProtocolBreach) as error:
                if isinstance(error, ProtocolBreach) and (last or error.breach is not messages.NO_SESSION):
                    raise
                self._sessions.pop((_whose(x), call.session, server.settings.name), None)
            except asyncio.CancelledError:
                if way.era == "legacy" and call.era == "modern":
                    self._take_back(server, apart, there, call.id)
                raise
            else:
                return
            finally:
                x.call, x.headers = call, headers

    async def _until_taken_back(
        self, x: Exchange, call: McpCall, carried: Coroutine[Any, Any, None], reply: Reply
    ) -> None:
        """A legacy client takes a call back by a message; a modern server hears of it by the end of the connection."""
        key = (_whose(x), call.session, call.id)
        task = self._running[key] = asyncio.get_running_loop().create_task(carried, name="a call of a joined server")
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not task.cancelled() or (current is not None and current.cancelling()):
                raise
            if reply.started:
                await reply.end()
            else:
                error = {"code": -32800, "message": "Its client has taken the request back."}
                await reply.whole(200, _JSON, b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (call.id, orjson.dumps(error)))
        finally:
            self._running.pop(key, None)

    def _translated(self, call: McpCall, way: Within) -> McpCall:
        """The call as the server's era has it."""
        message = call.message
        if way.era == "legacy":
            if call.era == "modern":
                message = joined.to_legacy(message)
            return replace(
                call, message=message, era="legacy", version=way.version, session=way.session, upstream=way.upstream
            )
        if call.era == "legacy":
            message = joined.to_modern(message, {})
        return replace(call, message=message, era="modern", version=MODERN, session="", upstream="")

    def _take_back(self, server: McpServer, x: Exchange, call: McpCall, identity: bytes) -> None:
        """A legacy server does not take the end of a connection for the end of a call."""
        body = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%s}}' % identity
        self._later(server.tell(x, call, body))

    def _later(self, what: Coroutine[Any, Any, None]) -> None:
        async def told() -> None:
            with suppress(Exception):
                async with asyncio.timeout(_TELLING):
                    await what

        task = asyncio.get_running_loop().create_task(told(), name="telling a joined server")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, x: Exchange, call: McpCall, desk: Desk) -> None:
        """A notification that may concern each of them: those with which a session was begun."""
        if call.era == "modern" or call.method == "notifications/initialized":
            return
        if call.method == "notifications/cancelled":
            wanted = orjson.dumps(orjson.loads(call.message).get("params", {}).get("requestId"))
            running = self._running.get((_whose(x), call.session, wanted))
            if running is not None:
                running.cancel()
                return

        async def one(server: McpServer) -> None:
            way = self._way(x, call, server)
            if way is not None and way.era == "legacy":
                with suppress(Absent):
                    await self._ask(x, server, call.message, way, desk)

        await self._all(one(server) for server in self._servers.values())

    # What concerns all

    async def _initialize(self, x: Exchange, call: McpCall, reply: Reply, desk: Desk) -> None:
        assert x.agent is not None, "a call is identified before it is sent"
        params = orjson.loads(call.message).get("params", {})
        wanted = params.get("protocolVersion")
        version = wanted if wanted in LEGACY else LEGACY[-1]
        capabilities, absent = await self._capabilities(x, call, desk)
        result = {
            "protocolVersion": version,
            "capabilities": joined.offers(capabilities, missing=bool(absent), modern=False),
            "serverInfo": _INFO,
            **joined.missing(absent),
        }
        session = Session(ALL, x.agent.tenant, x.agent.name, "", version, call.session, messages.abilities_kept(call))
        body = orjson.dumps({"jsonrpc": "2.0", "id": orjson.loads(call.id), "result": result})
        await reply.whole(200, [*_JSON, (_SESSION, desk.seals.sealed(session).encode())], body)

    async def _capabilities(self, x: Exchange, call: McpCall, desk: Desk) -> tuple[list[Mapping[str, Any]], list[str]]:
        """Of those that say theirs in time, and the names of the others."""

        async def one(server: McpServer) -> Mapping[str, Any] | None:
            name = server.settings.name
            try:
                async with asyncio.timeout(server.settings.lists_within):
                    await self._within(x, call, server, desk)
            except Exception as error:
                self._missed(name, error)
                return None
            self._absent.discard(name)
            return self._known[name].capabilities or {}

        told = await self._all(one(server) for server in self._servers.values())
        absent = [name for name, each in zip(self._servers, told, strict=True) if each is None]
        return [each for each in told if each is not None], absent

    async def _list(self, x: Exchange, call: McpCall, reply: Reply, desk: Desk) -> None:
        params = orjson.loads(call.message).get("params", {})
        if params.get("cursor") is not None:
            raise ProtocolBreach("Unknown cursor: lists are given whole here.", messages.INVALID_PARAMS)
        told = await self._all(
            self._list_or_none(x, call, server, call.method, desk) for server in self._servers.values()
        )
        absent = [name for name, each in zip(self._servers, told, strict=True) if each is None]
        items = [item for each in told for item in each or ()]
        member = lists.KINDS[call.method].member
        await _result(reply, call, {member: items, **_kept(), **joined.missing(absent)})

    async def _list_or_none(
        self, x: Exchange, call: McpCall, server: McpServer, method: str, desk: Desk
    ) -> list[dict[str, Any]] | None:
        name = server.settings.name
        try:
            async with asyncio.timeout(server.settings.lists_within):
                items = await self._listed(x, call, server, method, desk)
        except Exception as error:
            self._missed(name, error)
            return None
        self._absent.discard(name)
        return items

    def _missed(self, name: str, error: Exception) -> None:
        if name in self._absent:
            return
        self._absent.add(name)
        why = str(error) if isinstance(error, Absent) else problem_for(error).code
        why = "it is too slow" if isinstance(error, TimeoutError) else why
        log.warning("%s has no part in what is joined at /mcp/%s: %s", name, ALL, why)

    async def _listed(
        self, x: Exchange, call: McpCall, server: McpServer, method: str, desk: Desk
    ) -> list[dict[str, Any]]:
        """One server's whole list, as this agent may have it, under joined names. Raises Absent, and what hinders."""
        way, known = await self._within(x, call, server, desk), self._known[server.settings.name]
        if known.capabilities is not None and _OFFERED_BY[method] not in known.capabilities:
            return []
        kind, items, cursor = lists.KINDS[method], list[dict[str, Any]](), None
        for _ in range(_MOST_PAGES):
            params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
            body = joined.request(method, params, modern=way.era == "modern", abilities={})
            message = await self._ask(x, server, body, way, desk)
            if "error" in message:
                if message["error"].get("code") == _NO_METHOD:
                    break
                raise Absent("it answers with an error")
            page = lists.read(method, orjson.dumps(message))
            if page is None:
                raise Absent("it answers with nothing")
            items += [dict(item) for item in page.items]
            cursor = page.cursor
            if cursor is None:
                break
        self._learn(server, kind, items)
        return items

    def _learn(self, server: McpServer, kind: lists.Kind, items: list[dict[str, Any]]) -> None:
        """Names become joined names; what they and the URIs lead back to is remembered."""
        name = server.settings.name
        known = self._known[name]
        for item in items:
            own = str(item[kind.key])
            if kind.key == "name":
                item["name"] = outward = joined.outward(name, own)
                if joined.is_shortened(outward) and outward != f"{name}{joined.SEPARATOR}{own}":
                    _remember(known.shortened, outward, own)
            elif kind.key == "uri":
                _remember(known.uris, own, None)
            else:
                _remember(known.templates, own, None)

    async def _listen(self, x: Exchange, call: McpCall, reply: Reply, desk: Desk) -> None:
        """What all legacy servers with a session have to say by themselves, in one stream, until its client leaves."""
        await reply.start(200, _EVENTS, events=True)
        ways = [(server, way) for server in self._servers.values() if (way := self._way(x, call, server)) is not None]
        heard = [self._hear(x, server, way, reply, desk) for server, way in ways if way.era == "legacy"]
        if heard:
            await self._all(heard)
        else:
            await asyncio.Event().wait()
        await reply.end()

    async def _hear(self, x: Exchange, server: McpServer, way: Within, reply: Reply, desk: Desk) -> None:
        shape = Shape(server.settings.name, "legacy", "legacy", last=True)

        async def pass_on(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.body" and event.get("body") and shape.streaming:
                await reply.piece(shape.piece(event["body"]))
            elif event["type"] == "http.response.start":
                shape.streaming = event["status"] == 200

        while True:
            apart = _apart(x, "GET", _with_session([(mirrors.VERSION, way.version.encode()), *_ASKED[:1]], way))
            try:
                apart.call = await server.read(apart, b"", "", desk)
                await server.forward(apart, Reply(apart, pass_on), _Apart(), desk)
            except Exception as error:
                log.debug("%s cannot be listened to: %s", server.settings.name, type(error).__name__)
            if not shape.streaming:
                await asyncio.Event().wait()  # it has no such stream
            await asyncio.sleep(AGAIN)

    def _leave(self, x: Exchange, call: McpCall, desk: Desk) -> None:
        for name, server in self._servers.items():
            way = self._sessions.pop((_whose(x), call.session, name), None)
            if way is not None and way.sealed:
                self._later(self._end_there(x, server, way, desk))

    async def _end_there(self, x: Exchange, server: McpServer, way: Within, desk: Desk) -> None:
        apart = _apart(x, "DELETE", _with_session([(mirrors.VERSION, way.version.encode())], way))
        apart.call = await server.read(apart, b"", "", desk)
        await server.forward(apart, Reply(apart, _nowhere), _Apart(), desk)

    # The gateway as a client

    def _way(self, x: Exchange, call: McpCall, server: McpServer) -> Within | None:
        """The one that is there already."""
        return self._sessions.get((_whose(x), call.session, server.settings.name))

    async def _within(self, x: Exchange, call: McpCall, server: McpServer, desk: Desk) -> Within:
        """The way to a server for this client, begun if need be: in the client's own era if the server speaks it.

        Raises Absent, and what stands in the way.
        """
        key = (_whose(x), call.session, server.settings.name)
        known = self._sessions.get(key)
        if known is not None:
            self._sessions.move_to_end(key)
            return known
        opening = self._opening.get(key)
        if opening is None:
            opening = asyncio.get_running_loop().create_task(
                self._begun(x, call, server, desk), name="joining a server"
            )
            self._opening[key] = opening
            opening.add_done_callback(lambda done: self._opened(key, done))
        return await asyncio.shield(opening)  # who is too slow for this call is there for the next one

    def _opened(self, key: tuple[str, str, str], opening: asyncio.Task[Within]) -> None:
        del self._opening[key]
        if opening.cancelled() or opening.exception() is not None:
            return
        self._sessions[key] = opening.result()
        if len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)

    async def _begun(self, x: Exchange, call: McpCall, server: McpServer, desk: Desk) -> Within:
        other: Era = "modern" if call.era == "legacy" else "legacy"
        known = self._known[server.settings.name]
        for era in (call.era, other):
            if known.speaks.get(era, True):
                begin = self._discovered if era == "modern" else self._initialized
                way = await begin(x, call, server, desk)
                if way is not None:
                    known.speaks[era] = True
                    return way
                if known.speaks.get(other if era == call.era else call.era, True):
                    known.speaks[era] = False
        known.speaks.clear()
        raise Absent("it speaks no era that the gateway knows")

    async def _discovered(self, x: Exchange, call: McpCall, server: McpServer, desk: Desk) -> Within | None:
        way = Within("modern")
        body = joined.request("server/discover", {}, modern=True, abilities={})
        result = (await self._ask(x, server, body, way, desk)).get("result")
        if not isinstance(result, dict) or MODERN not in result.get("supportedVersions", ()):
            return None
        self._offers(server, result)
        return way

    async def _initialized(self, x: Exchange, call: McpCall, server: McpServer, desk: Desk) -> Within | None:
        """A client of the legacy era can be asked through the gateway; another one cannot."""
        abilities = call.abilities if call.era == "legacy" else {}
        hello = {"protocolVersion": LEGACY[-1], "capabilities": dict(abilities), "clientInfo": _INFO}
        body = joined.request("initialize", hello, modern=False, abilities={})
        status, headers, message = await self._exchanged(x, server, "POST", body, [*_ASKED], desk)
        result = message.get("result")
        sealed = next((value.decode() for name, value in headers if name == _SESSION), "")
        session = desk.seals.opened(sealed) if sealed else None
        if status != 200 or not isinstance(result, dict) or session is None:
            return None
        self._offers(server, result)
        assert x.agent is not None, "a call is identified before it is sent"
        own = replace(session, id=call.session or session.id)
        way = Within("legacy", desk.seals.sealed(own), session.upstream, own.id, session.version)
        await self._ask(x, server, b'{"jsonrpc":"2.0","method":"notifications/initialized"}', way, desk)
        return way

    def _offers(self, server: McpServer, result: Mapping[str, Any]) -> None:
        told = result.get("capabilities")
        self._known[server.settings.name].capabilities = told if isinstance(told, dict) else {}

    async def _ask(self, x: Exchange, server: McpServer, body: bytes, way: Within, desk: Desk) -> Mapping[str, Any]:
        """What the server answers to a message of the gateway's own, as this agent may have it."""
        headers = [*_ASKED, (mirrors.VERSION, way.version.encode())]
        if way.era == "modern":
            headers.append((mirrors.METHOD, orjson.loads(body)["method"].encode()))
        status, _, message = await self._exchanged(x, server, "POST", body, _with_session(headers, way), desk)
        if status == 404 and way.sealed:
            self._sessions.pop((_whose(x), way.session, server.settings.name), None)
            raise Absent("it has lost the gateway's session")
        return message

    async def _exchanged(
        self, x: Exchange, server: McpServer, method: str, body: bytes, headers: Headers, desk: Desk
    ) -> tuple[int, Headers, Mapping[str, Any]]:
        """One exchange with a server, on the road of all: status, headers, and the answer that is in it."""
        apart = _apart(x, method, headers)
        heard = Heard()
        try:
            apart.call = await server.read(apart, body, "", desk)
            await server.forward(apart, Reply(apart, heard.take), _Apart(), desk)
        except ProtocolBreach as error:
            breach = error.breach if isinstance(error.breach, Breach) else Breach(-32600, 400)
            return breach.status, [], {"error": {"code": breach.code, "message": str(error)}}
        return heard.status, heard.headers, heard.message()

    async def _all(self, what: Iterable[Awaitable[Told]]) -> list[Told]:
        return list(await asyncio.gather(*what))

    async def close(self) -> None:
        left = [*self._telling, *self._opening.values()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    def retire(self) -> None:
        """The servers themselves are told."""

    def dismiss(self, whose: str) -> None:
        for key in [key for key in self._sessions if key[0] == whose]:
            del self._sessions[key]


class Shape:
    """An answer of one server as the client of all has it: in its own era, and with whose question it is."""

    def __init__(
        self, server: str, client: Era, era: Era, *, last: bool, answer: Callable[[bytes], None] | None = None
    ) -> None:
        """`last` says that nothing is left to be tried where the server knows the session no more. `answer` tells the
        server what its client, of the modern era, cannot be asked."""
        self._server = server
        self._client = client
        self._era = era
        self._last = last
        self._answer = answer
        self.streaming = True

    @property
    def changes(self) -> bool:
        return self._client == "legacy" or self._era == "legacy"

    def headers(self, status: int, headers: Headers) -> Headers:
        """Raises SessionLost."""
        if status == 404 and self._era == "legacy" and not self._last:
            raise SessionLost
        return [line for line in headers if line[0] != _SESSION]

    def whole(self, body: bytes) -> bytes:
        return self._message(body) if body else body

    def piece(self, piece: bytes) -> bytes:
        out: list[bytes] = []
        for start, end, data in events(piece):
            if not data.strip():
                out.append(piece[start:end] if piece[start:end].startswith(b":") else b"")
            elif message := self._message(data):
                out.append(b"event: message\ndata: %s\n\n" % message)
        return b"".join(out)

    def _message(self, data: bytes) -> bytes:
        message = orjson.loads(data)
        if "method" in message:
            if "id" not in message:
                return data
            if self._client == "legacy":
                return joined.question(self._server, data)
            if self._answer is not None:
                self._answer(joined.unasked(data, message["method"]))
            return b""
        if self._client == self._era:
            return data
        return joined.from_legacy(data) if self._era == "legacy" else joined.from_modern(data)


class Heard:
    """What the gateway itself is answered."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self._pieces: list[bytes] = []

    async def take(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.status, self.headers = event["status"], event["headers"]
        else:
            self._pieces.append(event.get("body", b""))

    def message(self) -> Mapping[str, Any]:
        """The answer; empty where there is none. Raises ValueError."""
        body = b"".join(self._pieces)
        if not body.strip():
            return {}
        if body.lstrip()[:1] == b"{":
            return _object(body)
        for _, _, data in events(Framing().whole(body)):
            if data.strip() and "method" not in (message := _object(data)):
                return message
        return {}


class _Apart(Lifeline):
    """For what nobody's leaving ends but that of the call which it is a part of."""

    def __init__(self) -> None:
        super().__init__({})

    def go_on_alone(self) -> None:
        """It cannot."""


_INFO: Final = {"name": "weighbridge", "version": "1"}


def _object(data: bytes) -> Mapping[str, Any]:
    message = orjson.loads(data)
    if not isinstance(message, dict):
        raise Absent("it answers with no message")
    return message


def _apart(x: Exchange, method: str, headers: Headers) -> Exchange:
    """An exchange of the gateway's own, for the same agent: nothing of it is recorded."""
    return replace(
        x,
        method=method,
        headers=headers,
        own={name: value for name, value in x.own.items() if name == b"traceparent"},
        adapter=Mcp(),
        call=None,
        asked=[],
        bills=[],
        attempts=[],
        warnings=[],
        fulfilled=None,
    )


def _with_session(headers: Headers, way: Within) -> Headers:
    lines = [line for line in headers if line[0] != _SESSION]
    if way.era == "legacy":
        lines = [line for line in lines if line[0] not in (mirrors.VERSION, mirrors.METHOD, mirrors.NAME)]
        lines += [(mirrors.VERSION, way.version.encode()), (_SESSION, way.sealed.encode())]
    return lines


def _remember(known: dict[str, Any], key: str, value: Any) -> None:
    known[key] = value
    if len(known) > _MOST_LEARNT:
        del known[next(iter(known))]


def _kept() -> dict[str, Any]:
    """For how long, and by whom, an answer may be kept: it was made for one agent."""
    return {"ttlMs": 0, "cacheScope": "private"}


async def _result(reply: Reply, call: McpCall, result: dict[str, Any]) -> None:
    if call.era == "modern":
        meta = {**result.get("_meta", {}), "io.modelcontextprotocol/serverInfo": _INFO}
        result = {**result, "resultType": "complete", "_meta": meta}
    else:
        result = {key: value for key, value in result.items() if key not in ("ttlMs", "cacheScope")}
    body = orjson.dumps({"jsonrpc": "2.0", "id": orjson.loads(call.id), "result": result})
    await reply.whole(200, _JSON, body)


async def _nowhere(_: MutableMapping[str, Any]) -> None:
    """Nobody waits for it."""


def _whose(x: Exchange) -> str:
    return f"{x.agent.tenant}/{x.agent.name}" if x.agent is not None else ""
