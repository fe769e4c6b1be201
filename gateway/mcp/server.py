"""One MCP server behind `/mcp/{server}`: messages become calls, and what comes back is looked through as it passes.

legacy   `initialize` begins a session; its id is sealed, so that every gateway can read it, and nobody else
         the client's leaving cancels nothing: what it has asked for comes to its end, and can be resumed
modern   each request stands for itself, and its headers say what it says; its client's leaving cancels it
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from adapters.base import Headers, ToolCall
from adapters.errors import MethodNotAllowed, ProtocolBreach, UnknownEndpoint
from adapters.mcp import messages, mirrors
from adapters.mcp.answers import Mcp
from adapters.mcp.held import NO_SUCH_TASK
from adapters.mcp.messages import McpCall
from config.settings import ToolSettings
from gateway import carrier, trace
from gateway.callids import CallIds
from gateway.exchange import Exchange, Reached
from gateway.headers import replaced
from gateway.lifeline import Lifeline
from gateway.mcp import tasks, waiting
from gateway.mcp.answers import Answering
from gateway.mcp.catalogue import Catalogue
from gateway.mcp.child import ChildUpstream
from gateway.mcp.sessions import SealsUnavailable
from gateway.mcp.upstream import Answer, HttpUpstream, Upstream, reached
from gateway.problems import TargetFailed, TargetTimeout
from gateway.reply import Reply
from gateway.tools.conceal import spellings
from gateway.tools.desk import Desk
from policies.approvals import HeldCall

_ACCEPT: Final = (b"accept", b"application/json, text/event-stream")
_ALWAYS: Final[Headers] = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
_ONWARD: Final = frozenset({b"accept", b"accept-language", b"last-event-id", b"tracestate", b"user-agent"})
_SINGLE: Final = frozenset({b"mcp-session-id", b"mcp-protocol-version", b"last-event-id"})
"""Headers of which two readers might believe different ones if they came twice."""
_NOT_DEMANDED: Final = (b"mcp-", b"accept", b"last-event-id")
"""Headers that are the protocol's own, which no policy sets."""

_MOST_UNANSWERED: Final = 4096

_LISTS: Final[Mapping[str, str]] = {
    "tools": "tools/list",
    "resources": "resources/list",
    "resourceTemplates": "resources/templates/list",
    "prompts": "prompts/list",
}


class McpServer:
    """Implements `gateway.tools.desk.Tool`."""

    def __init__(self, settings: ToolSettings, upstream: Upstream | None = None) -> None:
        """Raises SecretMissing, OSError."""
        self.settings = settings
        self.upstream: Upstream = upstream if upstream is not None else reached(settings)
        self.catalogue = Catalogue(settings, self.upstream)
        self.streams: dict[str, set[Answering]] = {}
        """Streams that are under way, by session."""
        self._ids = CallIds()
        self._unanswered: OrderedDict[tuple[str, bytes], McpCall] = OrderedDict()
        """Calls whose answers will come in other streams, once their clients ask for those."""

    @property
    def secrets(self) -> Sequence[bytes]:
        """What the server is shown, and no agent may see."""
        known = self.upstream.secrets if isinstance(self.upstream, HttpUpstream | ChildUpstream) else ()
        return [spelled for each in known for spelled in spellings(each)]

    async def read(self, x: Exchange, body: bytes, rest: str, desk: Desk) -> ToolCall:
        if rest:
            raise UnknownEndpoint(f"Nothing is served below the MCP server {self.settings.name}.")
        adapter = x.adapter
        assert isinstance(adapter, Mcp), "whoever asks at /mcp/ speaks MCP"
        call = self._message(x, body, adapter)
        x.adapter = adapter.answering(call)
        if call.state:
            call = waiting.reopened(call, desk.seals)
            x.adapter = adapter.answering(call)
        if call.era == "modern":
            if call.id:
                mirrors.check(x.headers, call.method, call.version, call.name or None)
        else:
            try:
                self._attach(x, call, desk)
            except SealsUnavailable:
                x.adapter = adapter  # not an answer to this message: no message of a session can be answered now
                raise
        if call.trace and trace.read(said := call.trace.encode("ascii", "replace")) is not None:
            x.own[b"traceparent"] = said
        if call.endpoint.passes:
            return call
        call = await self.catalogue.check(x, call, desk)
        if call.era == "modern":
            mirrors.check_parameters(x.headers, self.catalogue.mirrored(call), call.arguments)
        return call

    def stored(self, x: Exchange, held: HeldCall) -> ToolCall:
        if isinstance(x.call, McpCall):
            return messages.edited(x.call, held.body)
        adapter = x.adapter
        assert isinstance(adapter, Mcp), "what was held at /mcp/ is made again there"
        call = waiting.restored(x, held, free=self.settings.price is None)
        x.adapter = adapter.answering(call)
        return call

    async def forward(self, x: Exchange, reply: Reply, lifeline: Lifeline, desk: Desk) -> None:
        call = x.call
        assert isinstance(call, McpCall), "what is sent to an MCP server was read as a message"
        if call.era == "modern" and not call.id and call.version == messages.MODERN:
            await reply.whole(202, [], b"")  # in this version clients tell servers nothing that way
            return
        if call.endpoint.passes and (told := await tasks.answered(x, call, desk.holds)) is not None:
            await reply.whole(200, [(b"content-type", b"application/json")], told)
            return
        if call.method.startswith("tasks/") and call.id and self.settings.server_tasks == "refused":
            raise ProtocolBreach("There is no such task: those of the server itself are not carried.", NO_SUCH_TASK)
        if x.method == "DELETE" and not call.upstream:
            await reply.whole(200, [], b"")  # of this session nobody knows but the client
            return
        if x.method == "GET":
            self._resume(x, call)
        elif call.era == "legacy":
            lifeline.go_on_alone()
        x.sent_at = time.monotonic()
        answer = await self._sent(x, call, self._body(x, call))
        try:
            await Answering(self, x, call, answer, reply, lifeline, desk).carry()
        finally:
            answer.close()

    async def tell(self, x: Exchange, call: McpCall, body: bytes) -> None:
        """Sends the server a message of the gateway's own within the call's session. Raises CarrierError."""
        headers: Headers = [_ACCEPT, *_ALWAYS, *self._protocol(x, call)]
        answer = await self.upstream.send(b"POST", headers, body, whose=_whose(x))
        try:
            while await answer.read():
                pass
        finally:
            answer.close()

    def unanswered(self, call: McpCall) -> None:
        """The answer to this one will come in another stream."""
        if call.id:
            self._unanswered[call.session, call.id] = call
            if len(self._unanswered) > _MOST_UNANSWERED:
                self._unanswered.popitem(last=False)

    def asked(self, stream: McpCall, message: Mapping[str, Any]) -> McpCall | None:
        """The call that is answered in a stream which its client has come back for. None where that is not known, and
        nothing depends on it. Raises TargetFailed."""
        found = self._unanswered.pop((stream.session, messages.identity(message.get("id"))), None)
        result = message.get("result")
        if found is not None or not isinstance(result, dict):
            return found
        for member, method in _LISTS.items():
            if member in result:
                return messages.bare(self.settings.name, method, "legacy", stream.version)
        return None

    async def close(self) -> None:
        await self.upstream.close()

    def retire(self) -> None:
        self.upstream.retire()

    def dismiss(self, whose: str) -> None:
        self.upstream.dismiss(whose)

    def _message(self, x: Exchange, body: bytes, adapter: Mcp) -> McpCall:
        """Raises ProtocolBreach, MethodNotAllowed."""
        version = mirrors.version_in(x.headers)
        era = messages.era_of(version)
        if x.method in ("GET", "DELETE") and era == "legacy":
            call = messages.bare(self.settings.name, x.method, era, version)
        elif x.method == "POST":
            try:
                call = messages.read(self.settings.name, body, version, free=self.settings.price is None)
            except ProtocolBreach as error:
                x.adapter = adapter.answering_to(error.id)
                raise
        else:
            raise MethodNotAllowed("POST" if era == "modern" else "GET, POST, DELETE")
        x.adapter = adapter.answering(call)
        check_single(x.headers, era)
        return call

    def _attach(self, x: Exchange, call: McpCall, desk: Desk) -> None:
        """Puts a legacy message into its session. Raises ProtocolBreach, SealsUnavailable."""
        said = next((value.strip() for name, value in x.headers if name == b"mcp-session-id"), None)
        if said is not None:
            assert x.agent is not None, "a call is identified before it is read"
            session = desk.seals.opened(said.decode("latin-1"))
            owner = (self.settings.name, x.agent.tenant, x.agent.name)
            if session is None or (session.server, session.tenant, session.agent) != owner:
                raise ProtocolBreach("Session not found. Initialize a new one.", messages.NO_SESSION)
            call.session, call.upstream = session.id, session.upstream
            call.abilities = call.abilities or orjson.loads(session.abilities)
        elif call.method == "initialize" and call.id:
            desk.seals.check()
            call.session = self._ids.next(x.arrived_ns)
            call.abilities = messages.initializes(call)
        else:
            raise ProtocolBreach("The header Mcp-Session-Id is missing. Initialize a session.", messages.INVALID)
        if x.session is None:
            x.session = call.session

    def _resume(self, x: Exchange, call: McpCall) -> None:
        """Servers hand what follows an event to one stream: not to one whose client has left it for this."""
        if any(name == b"last-event-id" for name, _ in x.headers):
            for stream in list(self.streams.get(call.session, ())):
                if stream.abandoned:
                    stream.close()

    async def _sent(self, x: Exchange, call: McpCall, body: bytes) -> Answer:
        def leaving() -> None:
            x.reached = Reached.MAYBE

        name = self.settings.name
        try:
            return await self.upstream.send(x.method.encode(), self._headers(x, call), body, leaving, _whose(x))
        except carrier.CarrierTimeout as error:
            x.detail = f"{type(error).__name__}: {error}"
            raise TargetTimeout(f"The tool server {name} did not answer in time.") from error
        except carrier.CarrierError as error:
            x.detail = f"{type(error).__name__}: {error}"
            raise TargetFailed(f"The tool server {name} could not be reached, or broke off.") from error

    def _body(self, x: Exchange, call: McpCall) -> bytes:
        if not call.id:
            return messages.onward(call)
        wanted = self._traceparent(x)
        members: dict[str, str] = {}
        if wanted and wanted.decode() != call.trace:
            members["traceparent"] = wanted.decode()
            state = next((value for name, value in x.headers if name == b"tracestate"), b"")
            if state and not call.trace:
                members["tracestate"] = state.decode("latin-1")
        return messages.onward(call, members)

    def _traceparent(self, x: Exchange) -> bytes:
        """Of the trace that the call belongs to, as its client or the policy says; empty for none."""
        if x.fulfilled is not None and x.fulfilled.sampled is not None:
            return x.fulfilled.sampled.header()
        said = x.own.get(b"traceparent", b"")
        return said if trace.read(said) is not None else b""

    def _headers(self, x: Exchange, call: McpCall) -> Headers:
        lines = [line for line in x.headers if line[0] in _ONWARD]
        if not any(name == b"accept" for name, _ in lines):
            lines.append(_ACCEPT)
        if x.fulfilled is not None and x.fulfilled.headers:
            demanded = [line for line in x.fulfilled.headers if not line[0].startswith(_NOT_DEMANDED)]
            lines = replaced(lines, demanded)
        lines = [line for line in lines if line[0] != b"traceparent"]
        if parent := self._traceparent(x):
            lines.append((b"traceparent", parent))
        return [*lines, *_ALWAYS, *self._protocol(x, call)]

    def _protocol(self, x: Exchange, call: McpCall) -> Headers:
        """The protocol's own headers: of the modern era as the message says, which may have been changed."""
        if call.era == "modern":
            parameters = self.catalogue.mirrored(call) if call.method == "tools/call" else ()
            return mirrors.onward(x.headers, call.method, call.version, call.name, parameters, call.arguments)
        lines = [line for line in x.headers if line[0] == mirrors.VERSION]
        if call.upstream:
            lines.append((b"mcp-session-id", call.upstream.encode("latin-1")))
        return lines


def check_single(headers: Headers, era: messages.Era) -> None:
    """Headers that must not come twice do not. Raises ProtocolBreach."""
    names = [name for name, _ in headers if name in _SINGLE]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1).decode()
        raise ProtocolBreach(
            f"The header {twice} is given twice.", mirrors.MISMATCH if era == "modern" else messages.INVALID
        )


def _whose(x: Exchange) -> str:
    """The agent, as upstreams tell agents apart."""
    return f"{x.agent.tenant}/{x.agent.name}" if x.agent is not None else ""
