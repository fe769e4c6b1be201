"""Held calls as tasks: a client of 2026-07-28 that knows the extension leaves its call with the gateway, which makes it
once people have approved it, and asks after it here.

A task is its approval, under the same id, so every gateway knows it: that it was left is kept with the approval before
the client is told. Source: SEP-2663, the extension `io.modelcontextprotocol/tasks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from adapters.errors import ProtocolBreach
from adapters.mcp import held
from adapters.mcp.answers import refused
from adapters.mcp.messages import McpCall
from gateway.exchange import Exchange
from gateway.holding import Holds
from gateway.problems import refusal_for
from gateway.waiting import ended, follow
from policies.approval_store import ANSWERS_KEPT, StoreUnavailable
from policies.approvals import Approval, Refused, State
from policies.errors import ApprovalsUnavailable, ApprovalUnknown

_ID: Final = re.compile(r"apr_[0-9A-HJKMNP-TV-Z]{26}")
_MS: Final = 1_000_000
_ASK_AGAIN: Final[Mapping[State, int]] = {State.PENDING: 3000, State.APPROVED: 1000, State.CONSUMED: 1000}
"""Milliseconds after which a client may ask again."""
_WITHDRAWN: Final = frozenset({State.CANCELLED, State.REVOKED})


async def answered(x: Exchange, call: McpCall, holds: Holds) -> bytes | None:
    """The response to a message about a task of this agent at this path; None where it is none of the gateway's.

    Raises ProtocolBreach, ApprovalsUnavailable.
    """
    if call.era != "modern" or call.method not in held.TASK_METHODS or not call.id:
        return None
    name = orjson.loads(call.message).get("params", {}).get("taskId")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        return None
    try:
        first = await holds.store.get(name)
        if first is None:
            return None
        assert x.agent is not None, "a message is read after its agent is known"
        mine = (first.call.tenant, first.call.agent, first.call.path) == (x.agent.tenant, x.agent.name, x.path)
        if not mine or not first.detached:
            raise ProtocolBreach("There is no such task.", held.NO_SUCH_TASK)
        if not held.knows_tasks(call.abilities):
            raise ProtocolBreach("The request does not declare that its client knows tasks.", held.NO_TASKS)
        if call.method == "tasks/cancel":
            await _cancel(first, holds)
        if call.method != "tasks/get":
            return held.response(call, held.nothing())
        return held.response(call, held.task(await _told(first, call, holds, x.id), "complete"))
    except StoreUnavailable as error:
        raise ApprovalsUnavailable("What has become of this task cannot be looked up now.") from error


def facts(approval: Approval, first: Approval | None = None) -> dict[str, Any]:
    """A task that is under way, as its client is told of it. `first` is the approval that it began with, where a person
    has changed the call since."""
    first = first or approval
    lasts = max(approval.decide_by + approval.use_within, approval.changed + ANSWERS_KEPT * 1000 * _MS)
    told: dict[str, Any] = {
        "taskId": first.id,
        "status": "working",
        "statusMessage": _status(approval),
        "createdAt": _time(first.created),
        "lastUpdatedAt": _time(max(approval.changed, first.created)),
        "ttlMs": (lasts - first.created) // _MS,
    }
    if approval.state in _ASK_AGAIN:
        told["pollIntervalMs"] = _ASK_AGAIN[approval.state]
    return told


async def _told(first: Approval, call: McpCall, holds: Holds, call_id: str) -> dict[str, Any]:
    """The task by now: what its call was, or would have been, answered with, once that is known."""
    approval = await follow(holds, await holds.now(first))
    told = facts(approval, first)
    if approval.state in _ASK_AGAIN:
        return told
    if approval.state in _WITHDRAWN:
        return {**told, "status": "cancelled"}
    if approval.state is not State.DONE:
        return {**told, "status": "completed", "result": refused(refusal_for(ended(approval), call_id), modern=True)}
    await holds.heard(approval)
    answer = await holds.store.answer(approval.id)
    if answer is None:
        lost = ApprovalUnknown("This call was approved and has run; its answer is not kept.", approval.id)
        return {**told, "status": "completed", "result": refused(refusal_for(lost, call_id), modern=True)}
    kept = orjson.loads(answer.body)
    if "error" in kept:
        return {**told, "status": "failed", "error": kept["error"]}
    if kept["result"].get("resultType", "complete") != "complete":
        asks = ApprovalUnknown("This call was made, and its server asks its client for more.", approval.id)
        return {**told, "status": "completed", "result": refused(refusal_for(asks, call_id), modern=True)}
    return {**told, "status": "completed", "result": kept["result"]}


async def _cancel(first: Approval, holds: Holds) -> None:
    """The agent wants its call no more; what is under way or over stays what it is."""
    approval = await follow(holds, await holds.now(first))
    try:
        await holds.cancel(approval.id, approval.call.agent, "its agent wants it no more")
    except (Refused, KeyError):
        return


def _status(approval: Approval) -> str:
    match approval.state:
        case State.PENDING:
            return f"Held for {' and '.join(approval.missing)} as {approval.id}."
        case State.APPROVED:
            return f"Approved as {approval.id}; the gateway makes the call."
        case State.CONSUMED:
            return "Approved, and under way."
        case State.DONE:
            return "Approved, and answered."
        case _:
            return str(ended(approval))


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
