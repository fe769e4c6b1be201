"""One MCP server behind `/mcp/{server}`: messages become calls, and what comes back is looked through as it passes."""

from __future__ import annotations

import time
from typing import Final

import orjson

from adapters.base import Headers, ToolCall
from adapters.errors import MethodNotAllowed, UnknownEndpoint
from adapters.mcp import messages
from adapters.mcp.answers import Mcp
from adapters.mcp.messages import McpCall
from adapters.sse import Framing, events
from config.settings import ToolSettings
from gateway import carrier
from gateway.exchange import Exchange, Reached
from gateway.headers import homeward
from gateway.lifeline import Lifeline
from gateway.mcp import tasks, waiting
from gateway.mcp.catalogue import Catalogue
from gateway.mcp.upstream import Answer, Upstream, reached
from gateway.problems import TargetFailed, TargetTimeout
from gateway.reply import Reply
from gateway.tools.desk import Desk
from policies.approvals import HeldCall

_EVENTS: Final = b"text/event-stream"
_ACCEPTED: Final[Headers] = [
    (b"accept", b"application/json, text/event-stream"),
    (b"content-type", b"application/json"),
    (b"accept-encoding", b"identity"),
]
_ONWARD: Final = frozenset({b"last-event-id", b"traceparent", b"tracestate", b"user-agent"})
_MIRRORS: Final = (b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"mcp-param-")


class McpServer:
    """Implements `gateway.tools.desk.Tool`."""

    def __init__(self, settings: ToolSettings) -> None:
        """Raises SecretMissing, OSError."""
        self.settings = settings
        self.upstream: Upstream = reached(settings)
        self.catalogue = Catalogue(settings)

    async def read(self, x: Exchange, body: bytes, rest: str, desk: Desk) -> ToolCall:
        if rest:
            raise UnknownEndpoint(f"Nothing is served below the MCP server {self.settings.name}.")
        version = next((value.decode("latin-1") for name, value in x.headers if name == b"mcp-protocol-version"), "")
        adapter = x.adapter
        assert isinstance(adapter, Mcp), "whoever asks at /mcp/ speaks MCP"
        if x.method in ("GET", "DELETE"):
            call = messages.bare(self.settings.name, x.method, "legacy", version)
        elif x.method == "POST":
            call = messages.read(self.settings.name, body, version, free=self.settings.price is None)
            call = waiting.reopened(call, desk.seals)
        else:
            raise MethodNotAllowed("POST")
        x.adapter = adapter.answering(call)
        return call if call.endpoint.passes else await self.catalogue.check(x, call, desk)

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
        told = await tasks.answered(x, call, desk.holds)
        if told is not None:
            await reply.whole(200, [(b"content-type", b"application/json")], told)
            return

        def leaving() -> None:
            x.reached = Reached.MAYBE

        headers = [*_ACCEPTED, *self._onward(x)]
        x.sent_at = time.monotonic()
        try:
            answer = await self.upstream.send(x.method.encode(), headers, messages.onward(call), leaving, _whose(x))
        except carrier.CarrierTimeout as error:
            raise TargetTimeout(f"The tool server {self.settings.name} did not answer in time.") from error
        except carrier.CarrierError as error:
            raise TargetFailed(f"The tool server {self.settings.name} could not be reached.") from error
        try:
            x.reached, x.target_status = Reached.ANSWERED, answer.status
            await self._answered(x, call, answer, reply, desk)
        finally:
            answer.close()

    async def _answered(self, x: Exchange, call: McpCall, answer: Answer, reply: Reply, desk: Desk) -> None:
        kind = next((value for name, value in answer.headers if name == b"content-type"), b"")
        headers = [line for line in homeward(answer.headers) if line[0] not in (b"content-length",)]
        if kind.partition(b";")[0].strip().lower() != _EVENTS:
            pieces = []
            while piece := await answer.read():
                pieces.append(piece)
            x.whole = True
            body = b"".join(pieces)
            await reply.whole(answer.status, headers, await self._seen(x, call, body, desk) if body else body)
            return
        framing = Framing()
        await reply.start(answer.status, headers, events=True)
        while piece := await answer.read():
            run = framing.whole(piece)
            for start, end, data in events(run):
                if b'"result"' in data and orjson.loads(data).get("id") is not None:
                    await reply.piece(b"event: message\ndata: %s\n\n" % await self._seen(x, call, data, desk))
                else:
                    await reply.piece(run[start:end])
        x.whole = True
        await reply.end()

    async def _seen(self, x: Exchange, call: McpCall, answer: bytes, desk: Desk) -> bytes:
        """An answer as its agent may have it."""
        if not call.endpoint.passes:
            return await self.catalogue.returned(x, call, answer, desk)
        return await self.catalogue.listed(x, call, answer, desk) if call.method.endswith("/list") else answer

    def _onward(self, x: Exchange) -> Headers:
        return [
            line
            for line in x.headers
            if line[0] in _ONWARD or line[0].startswith(_MIRRORS) or line[0] == b"mcp-session-id"
        ]

    async def close(self) -> None:
        await self.upstream.close()

    def retire(self) -> None:
        self.upstream.retire()

    def dismiss(self, whose: str) -> None:
        self.upstream.dismiss(whose)


def _whose(x: Exchange) -> str:
    """The agent, as upstreams tell agents apart."""
    return f"{x.agent.tenant}/{x.agent.name}" if x.agent is not None else ""
