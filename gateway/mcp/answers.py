"""One answer of an MCP server on its way to the client: in one piece or event by event, as it came, but for what the
agent may not have.

What passes keeps its form: nothing in one piece becomes a stream, for clients take no event of more than a megabyte and
any answer in one piece. What is no message of the protocol does not pass at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from adapters.base import Breach, Headers
from adapters.body import check_spelling, parse, replace
from adapters.errors import MalformedCall, ProtocolBreach
from adapters.mcp import messages
from adapters.mcp.messages import McpCall
from adapters.sse import Framing, events, with_data
from gateway.carrier import CarrierError, CarrierTimeout
from gateway.exchange import Exchange, Reached
from gateway.mcp.requests import Questions, granted
from gateway.mcp.sessions import Session
from gateway.mcp.upstream import Answer
from gateway.problems import UNEXPECTED, TargetFailed, TargetTimeout, problem_for, refusal_for
from gateway.reply import Reply
from policies.errors import ApprovalUnknown

if TYPE_CHECKING:
    from gateway.lifeline import Lifeline
    from gateway.mcp.server import McpServer
    from gateway.tools.desk import Desk

log = logging.getLogger("weighbridge.mcp")

_EVENTS: Final = b"text/event-stream"
_JSON: Final[Headers] = [(b"content-type", b"application/json")]
_HOMEWARD: Final = frozenset({b"content-type", b"cache-control", b"retry-after", b"x-accel-buffering", b"allow"})
"""What clients are told of an answer besides its messages: all else is between the gateway and the server."""
_OURS: Final = frozenset({401, 403, 407, 421, 429})
"""Statuses that are about the gateway, not about its client."""
_LINGERS: Final = 2.0
"""Seconds that a server has to end a stream in which it has answered."""
_LONGEST_ID: Final = 1024
"""Characters of a server's own id of a session."""
_MEMBERS: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})


_LATER: Final = frozenset({"tasks/get", "tasks/list", "tasks/result"})
"""Methods whose answers hold results of other calls."""


class NoMessage(Exception):
    """What came from a server is none of the protocol's messages. The text says why, for the record."""


def _asks(result: Mapping[str, Any]) -> bool:
    """Whether a modern server wants its client's input: as the answer, or in what it tells of a task."""
    return result.get("resultType") == "input_required" or "inputRequests" in result


class Answering:
    """Carries one answer."""

    def __init__(
        self,
        server: McpServer,
        x: Exchange,
        call: McpCall,
        answer: Answer,
        reply: Reply,
        lifeline: Lifeline,
        desk: Desk,
    ) -> None:
        self._server = server
        self._settings = server.settings
        self._x = x
        self._call = call
        self._answer = answer
        self._reply = reply
        self._lifeline = lifeline
        self._desk = desk
        self._headers = [line for line in answer.headers if line[0] in _HOMEWARD]
        self._answered = False
        """Whether the answer to the client's own message has passed."""
        self._until = 0.0
        """When the rest of a stream that has answered is given up, by the loop's clock."""
        self._kept: list[bytes] | None = None
        """Events that wait for what the head of the answer has to say."""
        self.resumable = False
        """Whether events have names, by which a client can ask for what follows them once it has come back."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody listens any more to a stream that can be resumed."""
        return self.resumable and self._lifeline.left

    def close(self) -> None:
        """The server ends it, too: so what follows can be resumed elsewhere."""
        self._answer.close()

    async def carry(self) -> None:
        """Raises TargetFailed, TargetTimeout, ProtocolBreach and what the policy says, while nothing has passed."""
        x, status = self._x, self._answer.status
        x.reached, x.target_status = Reached.ANSWERED, status
        kind = next((value for name, value in self._answer.headers if name == b"content-type"), b"")
        kind = kind.partition(b";")[0].strip().lower()
        try:
            if not 200 <= status < 300:
                await self._refused(status, kind)
            elif kind == _EVENTS:
                await self._stream()
            else:
                await self._whole(status, kind)
        except (CarrierError, NoMessage) as error:
            raise self._failure(error) from error

    # In one piece

    async def _whole(self, status: int, kind: bytes) -> None:
        x, call = self._x, self._call
        body = await self._body(self._settings.largest_answer)
        x.whole = True
        if not call.id:
            await self._reply.whole(status, self._session(), b"")
            return
        if not body.strip():
            raise TargetFailed(f"The tool server {self._settings.name} gave no answer.")
        if kind != b"application/json":
            raise self._strange("it is no JSON")
        message = self._parsed(body)
        if "method" in message:
            raise self._strange("a request, and no answer")
        headers = [*_JSON, *await self._opening(message)]
        await self._reply.whole(status, headers, await self._seen(message, body))

    async def _refused(self, status: int, kind: bytes) -> None:
        name = self._settings.name
        body = await self._body(self._settings.largest_answer)
        self._x.whole = True
        if not 400 <= status < 500 or status in _OURS:
            raise TargetFailed(f"The tool server {name} answered {status}.")
        message: Mapping[str, Any] = {}
        if kind == b"application/json":
            with contextlib.suppress(NoMessage):
                message = self._parsed(body)
        if isinstance(message.get("error"), dict):
            allowed = [line for line in self._headers if line[0] == b"allow"]
            if messages.identity(message.get("id")) != self._call.id:  # some servers have an id of their own for these
                body = replace(body, "id", self._call.id or b"null")
                message = self._parsed(body)
            await self._reply.whole(status, [*_JSON, *allowed], await self._seen(message, body))
            return
        if status == 404:
            if self._call.upstream:
                raise ProtocolBreach("The session is over. Initialize a new one.", messages.NO_SESSION)
            raise TargetFailed(f"The tool server {name} answered {status}.")
        raise ProtocolBreach(f"The tool server {name} answered {status}.", Breach(status, status))

    async def _body(self, most: int) -> bytes:
        pieces, size = [], 0
        while piece := await self._answer.read():
            if self._x.first_byte_at is None:
                self._x.first_byte_at = time.monotonic()
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise TargetFailed(f"The answer of the tool server {self._settings.name} has more than {most} bytes.")
        return b"".join(pieces)

    # Event by event

    async def _stream(self) -> None:
        x, call = self._x, self._call
        framing = Framing(self._settings.largest_event)
        questions = Questions(x, call, self._desk, self._passed, self._to_server)
        if call.method == "initialize" and call.id:
            self._kept = []
        else:
            await self._start([])
        self._server.streams.setdefault(call.session, set()).add(self)
        try:
            while piece := await self._piece():
                if x.first_byte_at is None:
                    x.first_byte_at = time.monotonic()
                await self._run(framing.whole(piece), questions)
            if call.id and not self._answered and not self._may_pause():
                raise TargetFailed(f"The tool server {self._settings.name} ended its answer too early.")
        except Exception as error:
            await questions.end()
            await self._break_off(error)
            return
        finally:
            self._forget()
            await questions.end()
        if self._kept is not None:
            raise self._strange("nothing in it answers")
        x.whole = True
        await self._reply.end()

    async def _piece(self) -> bytes:
        """The next of it; behind the answer itself only what comes soon."""
        if not self._answered:
            return await self._answer.read()
        try:
            async with asyncio.timeout_at(self._until):
                return await self._answer.read()
        except TimeoutError:
            return b""

    def _may_pause(self) -> bool:
        """A legacy server may end a stream before it has answered, and wait for its client to come and ask."""
        if not (self._call.era == "legacy" and self.resumable):
            return False
        self._server.unanswered(self._call)
        return True

    def _forget(self) -> None:
        others = self._server.streams.get(self._call.session, set())
        others.discard(self)
        if not others:
            self._server.streams.pop(self._call.session, None)

    async def _start(self, more: Headers) -> None:
        self._headers = [line for line in self._headers if line[0] != b"allow"]
        await self._reply.start(self._answer.status, [*self._headers, *self._session(), *more], events=True)

    async def _run(self, run: bytes, questions: Questions) -> None:
        out: list[bytes] = []
        for start, end, data in events(run):
            raw = run[start:end]
            if self._call.era == "legacy" and (raw.startswith(b"id:") or b"\nid:" in raw or b"\rid:" in raw):
                self.resumable = True
            if len(data) > self._settings.largest_event:
                raise ValueError(f"an event of more than {self._settings.largest_event} bytes")
            if not data.strip():
                out.append(raw)
                continue
            message = self._parsed(data)
            method = message.get("method")
            if method is None:
                more = await self._opening(message) if self._kept is not None else []
                seen = await self._seen(message, data)
                out.append(raw if seen is data else with_data(raw, seen))
                if self._kept is not None:
                    out, self._kept = [*self._kept, *out], None
                    await self._start(more)
            elif "id" in message and self._call.era == "modern":
                raise NoMessage("a server of this version asks nothing within a stream")
            elif "id" in message and method in messages.QUESTIONS:
                await self._passed(b"".join(out))
                out.clear()
                await questions.ask(message, data, partial(with_data, raw), refusal_for)
            else:
                if method.endswith("/list_changed"):
                    self._server.catalogue.noticed(method)
                concealed = self._concealed(data)
                out.append(raw if concealed is data else with_data(raw, concealed))
        if out:
            await self._passed(b"".join(out))

    async def _passed(self, piece: bytes) -> None:
        if not piece:
            return
        if self._kept is not None:
            self._kept.append(piece)
        else:
            await self._reply.piece(piece)

    async def _to_server(self, body: bytes) -> None:
        await self._server.tell(self._x, self._call, body)

    async def _break_off(self, error: Exception) -> None:
        """The end of a stream that does not come to its own."""
        x, call, reply = self._x, self._call, self._reply
        if self._answered:  # what is wrong behind it harms no answer
            x.whole = True
            await reply.end()
            return
        if isinstance(error, CarrierError) and self._may_pause():
            x.detail = f"{type(error).__name__}: {error}"
            if not self._lifeline.left:
                x.code = problem_for(self._failure(error)).code
            if reply.started:
                await reply.end()
                return
        failure = self._failure(error)
        if not reply.started:
            raise failure from error
        x.code = problem_for(failure).code
        if problem_for(failure) is UNEXPECTED:
            x.detail = f"{type(failure).__name__} in the gateway"
            log.error("call %s failed in the gateway", x.id, exc_info=failure)
        if not call.id:
            await reply.end()
            return
        if x.used_up and x.approval is not None:
            failure = ApprovalUnknown(str(failure), x.approval.id)
        await reply.end(x.adapter.broken_stream(refusal_for(failure, x.id)))

    def _failure(self, error: Exception) -> Exception:
        """The agent's word for it: a carrier's own text names addresses, and is for the record."""
        name = self._settings.name
        if isinstance(error, CarrierError | NoMessage | ValueError):
            self._x.detail = f"{type(error).__name__}: {error}"
        if isinstance(error, CarrierTimeout):
            return TargetTimeout(f"The tool server {name} fell silent in the middle of its answer.")
        if isinstance(error, CarrierError):
            return TargetFailed(f"The tool server {name} broke off its answer.")
        if isinstance(error, NoMessage | ValueError):
            return TargetFailed(f"The answer of the tool server {name} cannot be understood, or is too long.")
        return error

    # What is in it

    def _parsed(self, data: bytes) -> dict[str, Any]:
        """Raises NoMessage, TargetFailed."""
        try:
            message = parse(data)
            check_spelling(message, _MEMBERS)
        except MalformedCall as error:
            raise NoMessage(str(error)) from None
        method = message.get("method")
        if message.get("jsonrpc") != "2.0" or not (method is None or isinstance(method, str)):
            raise NoMessage("it is no JSON-RPC 2.0")
        if method is not None and messages.passes_for(method, messages.QUESTIONS):
            raise NoMessage("its method is almost that of a question")
        if method is None and ("result" in message) == ("error" in message):
            raise NoMessage("it is neither an answer nor a request")
        return message

    def _strange(self, what: str) -> TargetFailed:
        self._x.detail = f"an answer that is none: {what}"
        return TargetFailed(f"The answer of the tool server {self._settings.name} cannot be understood.")

    async def _seen(self, message: Mapping[str, Any], data: bytes) -> bytes:
        """An answer as the agent may have it; the same object where nothing in it has to change."""
        x, call, catalogue = self._x, self._call, self._server.catalogue
        data = self._concealed(data)
        if x.method == "GET":
            found = self._server.asked(call, message)
            if found is None:
                return await catalogue.resumed(x, call, data, self._desk)
            call = found
        elif messages.identity(message.get("id")) != call.id:  # its client would take it for the answer to another one
            raise NoMessage("it answers another request")
        else:
            self._answered = True
            if not self._until:  # many clients leave now: what they have got is theirs
                self._until = asyncio.get_running_loop().time() + _LINGERS
                self._lifeline.release()
        if self._settings.results == "checked" and call.method in _LATER:
            return catalogue.late(x, call)
        if "error" in message:
            return data if call.endpoint.passes else await catalogue.returned(x, call, data, self._desk)
        result = message["result"]
        if call.era == "modern" and isinstance(result, dict) and _asks(result):
            try:
                await granted(x, call, result, self._desk)
            except Exception as error:
                problem = problem_for(error)
                if problem is UNEXPECTED:
                    log.error("call %s failed in the gateway", x.id, exc_info=error)
                x.code = problem.code
                return x.adapter.refusal(refusal_for(error, x.id))[1]
        if not call.endpoint.passes:
            return await catalogue.returned(x, call, data, self._desk)
        return await catalogue.listed(x, call, data, self._desk) if call.method.endswith("/list") else data

    def _concealed(self, data: bytes) -> bytes:
        """A server that repeats the key it was sent must not tell it to an agent."""
        for secret in self._server.secrets:
            if secret in data:
                data = data.replace(secret, b"*" * len(secret))
        return data

    def _session(self) -> Headers:
        """The client's own name for the session, which it may expect to be told again."""
        if self._call.era != "legacy":
            return []
        return [line for line in self._x.headers if line[0] == b"mcp-session-id"]

    async def _opening(self, message: Mapping[str, Any]) -> Headers:
        """What the head of an answer has to say: the name of a session that begins, or that of the one it is in."""
        x, call = self._x, self._call
        result = message.get("result")
        if call.method != "initialize" or not call.id or call.upstream or not isinstance(result, dict):
            return self._session() if self._kept is None else []
        upstream = next((value for name, value in self._answer.headers if name == b"mcp-session-id"), b"")
        if len(upstream) > _LONGEST_ID:
            raise self._strange("its session has too long a name")
        assert x.agent is not None, "a call is identified before it is sent"
        session = Session(
            self._settings.name,
            x.agent.tenant,
            x.agent.name,
            upstream.decode("latin-1"),
            str(result.get("protocolVersion", "")),
            call.session,
            messages.abilities_kept(call),
        )
        return [(b"mcp-session-id", self._desk.seals.sealed(session).encode())]
