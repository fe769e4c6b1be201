"""How a held call of MCP waits for people: each client as long, and in the way, that it can bear; and what of its
answer is kept for the identical ones.

A client that can lead its user to the approval's page is asked to at once, and what it comes back with says where it
was; one that knows tasks gets one, and asks after it. All others wait. See `adapters.mcp.held` for what they are told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import orjson

from adapters.base import Headers
from adapters.errors import ProtocolBreach
from adapters.mcp import held, mirrors
from adapters.mcp.answers import Mcp
from adapters.mcp.held import Way
from adapters.mcp.messages import INVALID_PARAMS, Asked, McpCall, with_kept
from adapters.sse import Framing, events
from config.settings import ApprovalSettings
from gateway.approval_view import visible
from gateway.exchange import Exchange
from gateway.holding import Holds
from gateway.mcp.sessions import Seals, SealsUnavailable
from gateway.mcp.tasks import facts
from gateway.waiting import COMMENT_EVERY, Patience, asynchronous, longest
from policies.approval_store import MOST_ANSWER, Answer
from policies.approvals import Approval, HeldCall
from policies.errors import ApprovalPending

LONGEST: Final = 55.0
"""Seconds that a client without news of progress is kept waiting at most: many give up after sixty, whatever comes."""
ROUNDS: Final = 3
"""How often a client is asked to lead its user to the page; stock clients give up after ten answers that are none."""

_LARGEST: Final = 8192
"""Bytes of what is kept for a server's own question; a client with more of it waits instead of being asked."""
_PURPOSE: Final = b"held call"
_SECOND: Final = 1_000_000_000


def reopened(call: McpCall, seals: Seals) -> McpCall:
    """The call as it was before the gateway asked its client something, where `call` is what came back. Any other state
    is the server's own, and stays. Raises ProtocolBreach."""
    if not call.state:
        return call
    text = seals.text(call.state, _PURPOSE)
    if text is None:
        return call
    key, until, asked, state, responses = orjson.loads(text)
    if until < time.time():
        raise ProtocolBreach("This `requestState` is too old. Send the call again without it.", INVALID_PARAMS)
    went = held.went(call.responses)
    return with_kept(call, state, responses.encode(), Asked(key, until, asked, went))


def restored(x: Exchange, call: HeldCall, *, free: bool) -> McpCall:
    """A held call as a message of the gateway's own, with the headers of one. Raises MalformedCall."""
    message = held.restored(
        call.target, call.operation, call.body, list(call.headers), x.id, definition=call.definition, free=free
    )
    x.headers = mirrors.onward([], message.method, message.version, message.name, (), {})
    return message


async def check_asked(x: Exchange, holds: Holds) -> None:
    """What the client brings back is of this call: its server's own state, which was kept with it, as well. Raises
    ProtocolBreach, Unbindable."""
    if isinstance(x.call, McpCall) and x.call.asked is not None and x.call.asked.key != await holds.key(x):
        raise ProtocolBreach(
            "This `requestState` belongs to another call, or to another definition of the tool. Send the call again "
            "without it.",
            INVALID_PARAMS,
        )


async def patience(x: Exchange, holds: Holds) -> Patience:
    """As the operator and the client say. Raises ProtocolBreach for what was asked for another call, Unbindable."""
    call, settings = x.call, holds.settings
    assert isinstance(call, McpCall), "whoever speaks MCP makes such calls"
    await check_asked(x, holds)
    way = held.way(call, settings.link is not None)
    detached = way is Way.TASK
    led = way is Way.PAGE and (call.asked is None or not call.asked.went) and not _too_much(call)
    if detached or led or asynchronous(x.headers):
        return Patience(x.began, None, detached=detached)
    if not held.takes_events(x.headers):
        return Patience(x.began + min([settings.hold_for, LONGEST, *longest(x.headers)]), None)
    if call.progress:
        until = x.began + min([settings.hold_streams_for, *longest(x.headers)])
        return Patience(until, COMMENT_EVERY, _progress(call.progress, x), framed=_framed(call))
    until = x.began + min([settings.hold_for, LONGEST, *longest(x.headers)])
    return Patience(until, COMMENT_EVERY, framed=_framed(call))


def pending(x: Exchange, error: ApprovalPending, settings: ApprovalSettings, seals: Seals) -> None:
    """From now on `x.adapter` says in the client's words that its call waits for people."""
    call, approval, adapter = x.call, error.found, x.adapter
    if approval is None or not isinstance(call, McpCall) or not isinstance(adapter, Mcp):
        return
    page = f"{settings.link.rstrip('/')}/approvals/{approval.id}" if settings.link is not None else ""
    match held.way(call, bool(page)):
        case Way.TASK if approval.detached:
            x.adapter = adapter.waiting(held.task(facts(approval), "task"))
        case Way.PAGE if (asked := _next(call, approval)) is not None and not _too_much(call):
            text = orjson.dumps([asked.key, asked.until, asked.round, call.state, call.responses.decode()])
            with contextlib.suppress(SealsUnavailable):  # then it is told in words
                state = seals.sealed_text(text, _PURPOSE)
                x.adapter = adapter.waiting(held.input_required(words(approval, error), page, state))
        case Way.PAGE_ERROR:
            x.adapter = adapter.waiting(held.page_needed(words(approval, error), page, approval.id))
        case _:
            pass


def words(approval: Approval, error: ApprovalPending) -> str:
    """What is held for whom, for the client's user: they did not see the call, and need not be who decides."""
    call = approval.call
    what = f"{visible(call.agent)} wants to call {visible(call.operation)} of {visible(call.target)}."
    return f"{what} {error} Who may decide does so on the approval's page."


def _next(call: McpCall, approval: Approval) -> Asked | None:
    """What the client is asked for next; None where it has been asked often enough, or its user does not want to."""
    if call.asked is not None and not call.asked.went:
        return None
    before = call.asked.round if call.asked is not None else 0
    return Asked(approval.key, approval.decide_by // _SECOND + 1, before + 1, True) if before < ROUNDS else None


def _too_much(call: McpCall) -> bool:
    return len(call.state) + len(call.responses) > _LARGEST


def _progress(token: bytes, x: Exchange) -> Callable[[Approval], bytes]:
    step = 0

    def sign(approval: Approval) -> bytes:
        nonlocal step
        step += 1
        who = " and ".join(approval.missing)
        return held.progress(token, step, f"Held for {who} as {approval.id}." if who else f"Held as {approval.id}.")

    return sign


def _framed(call: McpCall) -> Callable[[int, bytes], bytes | None]:
    """How an answer in one piece stands in a stream that was begun before it came; None for what is no message."""

    def framed(status: int, body: bytes) -> bytes | None:
        member = held.outcome(body, call.id)
        if member is None:
            return None
        if len(body) > held.MOST_EVENT:
            body = held.response(call, held.too_long(call, len(body)))
        return held.event(body)

    return framed


# What came of a call, for the identical ones


class Copy:
    """The one message of an answer that answers, be the answer a stream or not; as `gateway.reply.Copy`."""

    def __init__(self, call: McpCall) -> None:
        self._identity = call.id
        self._status = 0
        self._framing: Framing | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._found: bytes | None = None
        self.whole = False

    def begin(self, status: int, headers: Headers) -> None:
        self._status = status
        kind = next((value for name, value in headers if name == b"content-type"), b"")
        if kind.partition(b";")[0].strip().lower() == b"text/event-stream":
            self._framing = Framing()

    def add(self, piece: bytes) -> None:
        if self._framing is None:
            self._size += len(piece)
            if self._size <= MOST_ANSWER:
                self._pieces.append(piece)
            else:
                self._pieces.clear()
        elif self._found is None:
            try:
                run = self._framing.whole(piece)
            except ValueError:  # what is longer than any event is not kept
                self._framing = None
                self._size = MOST_ANSWER + 1
                return
            for _, _, data in events(run):
                if b'"result"' in data or b'"error"' in data:
                    self._found = self._found or held.outcome(data, self._identity)

    @property
    def answer(self) -> Answer | None:
        found = self._found
        if found is None and self.whole and self._size <= MOST_ANSWER:
            found = held.outcome(b"".join(self._pieces), self._identity)
        if found is None or len(found) > MOST_ANSWER:
            return None
        return Answer(self._status, ((b"content-type", b"application/json"),), found)


def repeated(call: McpCall, answer: Answer, headers: Headers, approval: str) -> Answer:
    """What was kept of a call that ran by this approval, as the answer to another call that is identical, in the form
    that it asks for."""
    message = held.again(call, answer.body, approval)
    if held.takes_json(headers) or not held.takes_events(headers):
        return replace(answer, body=message)
    return Answer(200, ((b"content-type", b"text/event-stream"),), held.event(message))
