"""How a held call waits for people: each client as long, and in the way, that it can bear.

A stream is begun after a moment and kept alive by comments, which stock clients pass over. Other calls wait silently,
for as long as the operator says and the client has patience; then the agent is told how to come back, and the identical
call goes on where this one was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Final

from adapters.base import Headers
from gateway.exchange import Exchange
from gateway.holding import Holds
from gateway.reply import Reply
from policies.approval_store import Answer
from policies.approvals import Approval, State
from policies.errors import ApprovalDenied, ApprovalEnded, ApprovalExpired, ApprovalPending, ApprovalUnknown

COMMENT_EVERY: Final = 2.5
"""Seconds between the signs of life of a held stream: some clients give up after five without one."""
MARGIN: Final = 10.0
"""Seconds before the end of a client's patience at which it is answered."""

_STATED: Final = (b"x-stainless-read-timeout", b"x-stainless-timeout")
"""Headers in which the SDKs of OpenAI and Anthropic say after how many silent seconds they give up."""
_WAIT: Final = re.compile(rb"wait\s*=\s*\"?(\d{1,6})")
_ASYNCHRONOUS: Final = re.compile(rb"(?:^|[,;\s])respond-async(?:$|[,;\s=])")


async def wait(x: Exchange, holds: Holds, reply: Reply) -> Answer | None:
    """Holds a call until people have decided. None when it may run, by `x.approval`; else what an identical call, which
    ran by the same approval, was answered with.

    Raises ApprovalPending, ApprovalDenied, ApprovalExpired, ApprovalUnknown, Unbindable, StoreUnavailable.
    """
    approval = await holds.admit(x)
    until = time.monotonic() + _patience(x, holds)
    while True:
        x.held = approval.id
        approval = await _decided(x, holds, approval, until, reply)
        if approval.state is State.APPROVED:
            x.approval = approval
            return None
        if approval.state is State.DONE:
            answer = await holds.store.answer(approval.id)
            if answer is None:
                raise ApprovalExpired("It was approved and has run; its answer is not kept any longer.", approval.id)
            return answer
        other = await holds.store.get(approval.became) if approval.became is not None else None
        if approval.state is not State.SUPERSEDED or other is None:
            raise ended(approval)
        approval = other


async def _decided(x: Exchange, holds: Holds, approval: Approval, until: float, reply: Reply) -> Approval:
    """The approval once there is nothing to wait for: one that is approved is this call's to use."""
    assert x.call is not None, "a call is read before it is held"
    streams = bool(x.call.stream)
    with holds.waits(approval.id) as waiter:
        while True:
            approval = await holds.now(approval)
            if approval.state is State.APPROVED and holds.take(approval.id):
                return approval
            if approval.state not in (State.PENDING, State.APPROVED, State.CONSUMED):
                return approval
            changed = False
            while not changed:
                left = until - time.monotonic()
                if left <= 0:
                    raise ApprovalPending(_pending(approval), approval.id)
                changed = await waiter.woken(min(left, COMMENT_EVERY) if streams else left)
                if streams and not changed:
                    await reply.keep_open(b": held %s\n\n" % approval.id.encode())


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
            return ApprovalDenied(f"A person has denied this call{why}.", approval.id)


def asynchronous(headers: Headers) -> bool:
    """Whether a client wants to be told at once that its call waits (RFC 7240 section 4.1)."""
    return any(_ASYNCHRONOUS.search(value) is not None for value in _preferred(headers))


def _patience(x: Exchange, holds: Holds) -> float:
    """Seconds from now on for which this call's connection may wait."""
    assert x.call is not None, "a call is read before it is held"
    if asynchronous(x.headers):
        return 0.0
    if x.call.stream:
        return holds.settings.hold_streams_for
    stated = [float(value) for name, value in x.headers if name in _STATED and value.isdigit()]
    longest = [each - MARGIN if each > 2 * MARGIN else each / 2 for each in stated]
    for value in _preferred(x.headers):
        longest += [float(found) for found in _WAIT.findall(value)]
    return max(0.0, min([holds.settings.hold_for, *longest]) - (time.monotonic() - x.began))


def _preferred(headers: Headers) -> Iterator[bytes]:
    return (value.lower() for name, value in headers if name == b"prefer")


def _pending(approval: Approval) -> str:
    who = " and ".join(approval.missing) or "somebody to run it"
    if approval.state is State.CONSUMED:
        return "An identical call is under way, and this one gets its answer."
    return f"This call is held for {who} as {approval.id}. {approval.explanation}".rstrip()
