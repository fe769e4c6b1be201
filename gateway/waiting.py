"""How a held call waits for people: each client as long, and in the way, that it can bear.

A stream is begun after a moment and kept alive by comments, which stock clients pass over. Other calls wait silently,
for as long as the operator says and the client has patience; then the agent is told how to come back, and the identical
call goes on where this one was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from adapters.base import Headers
from gateway.claims import Claims
from gateway.exchange import Exchange
from gateway.holding import DENIED_FOR, Holds
from gateway.identity import ACTIVE
from gateway.reply import Reply
from policies.approval_store import Answer, StoreUnavailable
from policies.approvals import ACTIVE as ACTIVE_STATES
from policies.approvals import Approval, State
from policies.errors import (
    AnswerNotKept,
    ApprovalDenied,
    ApprovalEnded,
    ApprovalExpired,
    ApprovalPending,
    ApprovalUnknown,
)

COMMENT_EVERY: Final = 2.5
"""Seconds between the signs of life of a held stream: some clients give up after five without one."""
MARGIN: Final = 10.0
"""Seconds before the end of a client's patience at which it is answered."""

_STATED: Final = (b"x-stainless-read-timeout", b"x-stainless-timeout")
"""Headers in which the SDKs of OpenAI and Anthropic say after how many silent seconds they give up."""
_SECONDS: Final = re.compile(rb"\d{1,9}(?:\.\d{1,9})?")
_LEAST: Final = 0.1
"""Seconds between signs of life where a client has hardly any patience."""
_WAIT: Final = re.compile(rb"wait\s*=\s*\"?(\d{1,6})")
_ASYNCHRONOUS: Final = re.compile(rb"(?:^|[,;\s])respond-async(?:$|[,;\s=])")
_SAID_ANYWAY: Final = "Repeat the identical call after approval."
"""What policies say at the end of why a call is held, and the gateway after it to every agent."""


def _comment(approval: Approval) -> bytes:
    return b": held %s\n\n" % approval.id.encode()


@dataclass(frozen=True, slots=True)
class Patience:
    """Until when a call may wait, by the monotonic clock, and how often its client has to hear something meanwhile."""

    until: float
    every: float | None
    """Seconds; None where it cannot be told anything."""
    sign: Callable[[Approval], bytes] = _comment
    """What it hears."""
    framed: Callable[[int, bytes], bytes | None] | None = None
    """How an answer in one piece, with its status, stands in the stream that has begun so."""
    detached: bool = False
    """Whether the call is left with the gateway where it has to wait."""


@dataclass(frozen=True, slots=True)
class MayRun:
    """People have approved the call, which has taken the approval: no other of this process uses it now.

    It belongs into `Exchange.approval` at once, for it is given back by that.
    """

    approval: Approval


@dataclass(frozen=True, slots=True)
class Answered:
    """An identical call has run by the same approval, and this is its answer."""

    answer: Answer


async def wait(
    x: Exchange, holds: Holds, claims: Claims, reply: Reply, patience: Patience, approval: Approval | None = None
) -> MayRun | Answered:
    """Holds a call until people have decided and it may run, or an identical one has. `x.held` and `x.changed` say
    meanwhile what it waits for.

    `approval` is one that the call waits for already. Raises ApprovalPending, ApprovalDenied, ApprovalExpired,
    ApprovalUnknown, AnswerNotKept, Unbindable, StoreUnavailable.
    """
    approval = approval or await holds.admit(x)
    while True:
        x.held, x.changed = approval.id, await _own(holds, approval)
        approval = await _decided(x, holds, claims, approval, patience, reply)
        if approval.state is State.APPROVED:
            return MayRun(approval)
        if approval.state is State.DONE:
            await holds.heard(approval)
            answer = await holds.store.answer(approval.id)
            if answer is None:
                why = f" {approval.reason.rstrip('.')}." if approval.reason else ""
                raise AnswerNotKept(f"This call was approved and has run; its answer is not kept.{why}", approval.id)
            return Answered(answer)
        other = await _next(holds, approval)
        if other is None:
            raise ended(approval)
        approval = other


async def follow(holds: Holds, approval: Approval) -> Approval:
    """The one that has its place by now. Raises StoreUnavailable."""
    while (other := await _next(holds, approval)) is not None:
        approval = await holds.now(other)
    return approval


async def _next(holds: Holds, approval: Approval) -> Approval | None:
    if approval.state is not State.SUPERSEDED or approval.became is None:
        return None
    return await holds.store.get(approval.became)


async def _own(holds: Holds, approval: Approval) -> str | None:
    """The approval with the agent's own arguments, where people have put others in their place, once or more often."""
    first = approval
    while first.instead_of is not None and (before := await holds.store.get(first.instead_of)) is not None:
        first = before
    return first.instead_of or (first.id if first is not approval else None)


async def _decided(
    x: Exchange, holds: Holds, claims: Claims, approval: Approval, patience: Patience, reply: Reply
) -> Approval:
    """The approval once there is nothing to wait for: one that is approved is this call's to use.

    What people have approved waits on while its agent is paused.
    """
    assert x.agent is not None, "a call is identified before it is held"
    heard = time.monotonic()
    with holds.waits(approval.id) as waiter:
        while True:
            try:
                approval = await holds.now(approval)
            except StoreUnavailable:  # what people say is kept all the same: this call may wait for it on
                holds.missed(approval.id)
            else:
                if approval.state is State.APPROVED and x.agent.state == ACTIVE and claims.take(approval.id, x.id):
                    return approval
                if approval.state not in (State.PENDING, State.APPROVED, State.CONSUMED):
                    return approval
            changed = False
            while not changed:
                now = time.monotonic()
                left = patience.until - now
                if left <= 0 or holds.stopping:
                    if patience.detached and not approval.detached and approval.state in ACTIVE_STATES:
                        approval = await holds.detach(approval)
                        break  # it may have been decided on meanwhile
                    said = _pending(approval, x.agent.state, holds.lacking(approval))
                    raise ApprovalPending(said, approval.id, approval)
                if patience.every is not None:
                    if now - heard >= patience.every:
                        await reply.keep_open(patience.sign(approval), patience.framed)
                        heard = now
                    left = min(left, heard + patience.every - now)
                changed = await waiter.woken(left)


def ended(approval: Approval) -> ApprovalEnded:
    """What the agent of a call is told that has waited in vain."""
    why = f" ({approval.reason})" if approval.reason else ""
    match approval.state:
        case State.EXPIRED:
            return ApprovalExpired("Nobody decided on this call in time.", approval.id)
        case State.LAPSED:
            return ApprovalExpired("This call was approved, but nobody came to use that in time.", approval.id)
        case State.UNKNOWN:
            return ApprovalUnknown(
                "This call was approved and may have run; nobody knows what came of it.", approval.id
            )
        case State.CANCELLED:
            return ApprovalDenied(f"This call was taken back before anybody decided on it{why}.", approval.id)
        case State.REVOKED:
            return ApprovalDenied(f"The approval of this call was taken back{why}.", approval.id)
        case _:
            again = datetime.fromtimestamp(approval.changed // 1_000_000_000 + DENIED_FOR, UTC)
            return ApprovalDenied(
                f"A person has denied this call{why}. Until {again:%H:%M:%S} UTC that answers identical calls, unless "
                "somebody who may makes a grant for it.",
                approval.id,
            )


def asynchronous(headers: Headers) -> bool:
    """Whether a client wants to be told at once that its call waits (RFC 7240 section 4.1)."""
    return any(_ASYNCHRONOUS.search(value) is not None for value in _preferred(headers))


def patience(x: Exchange, holds: Holds) -> Patience:
    """As the operator and the client say."""
    assert x.call is not None, "a call is read before it is held"
    if asynchronous(x.headers):
        return Patience(x.began, None)
    stated = [float(value) for name, value in x.headers if name in _STATED and _SECONDS.fullmatch(value)]
    if x.call.stream:
        until = time.monotonic() + min([holds.settings.hold_streams_for, *longest(x.headers)])
        return Patience(until, max(_LEAST, min([COMMENT_EVERY, *(each / 3 for each in stated)])))
    most = [each - MARGIN if each > 2 * MARGIN else each / 2 for each in stated]
    return Patience(x.began + min([holds.settings.hold_for, *longest(x.headers), *most]), None)


def longest(headers: Headers) -> list[float]:
    """Seconds that a client wants to wait at most, if it says so."""
    return [float(found) for value in _preferred(headers) for found in _WAIT.findall(value)]


def _preferred(headers: Headers) -> Iterator[bytes]:
    return (value.lower() for name, value in headers if name == b"prefer")


def _pending(approval: Approval, state: str, lacking: Sequence[str]) -> str:
    if approval.state is State.APPROVED and state != ACTIVE:
        return f"This call is approved as {approval.id}, and its agent is {state}: it runs once that is over."
    who = " and ".join(approval.missing) or "somebody to run it"
    if approval.state is State.CONSUMED:
        return "An identical call is under way, and this one gets its answer."
    nobody = f" Nobody has the role {' or '.join(lacking)}: tell the operator." if lacking else ""
    why = approval.explanation.rstrip().removesuffix(_SAID_ANYWAY)
    return f"This call is held for {who} as {approval.id}. {why}".rstrip() + nobody
