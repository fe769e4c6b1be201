"""What a call's records hold: each decision when it is taken, and what came of the call when it is over.

    {"record": "intent", "call": ID, ...}     the decision on which a call is made, before its bytes leave
    {"record": "decision", "call": ID, ...}   any other decision: refused, held, or taken again on the changed call
    {"record": "outcome", "call": ID, ...}    exactly one for every call that arrived

The first two are events of the decision log (`gateway.decision_log`).
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson
from orjson import Fragment

from gateway.decision_log import DecisionLog
from gateway.exchange import Attempt, Exchange
from policies.money import usd_text

log = logging.getLogger("weighbridge.ledger")

DECISIONS: Final = ("intent", "decision")

DECISION: Final = b'{"record":"decision",'
"""How the line of a decision begins that is no intent."""

LONGEST_PATH: Final = 256
"""Characters of a call's path that are recorded: whoever has no key can make paths of any length."""

NOT_IN_FULL: Final = "the full record could not be written"


def line(record: Mapping[str, Any]) -> bytes:
    """A record as it stands in the file. Raises TypeError for what JSON cannot hold."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def intended(x: Exchange, events: DecisionLog) -> list[bytes]:
    """The lines of a call that is about to be made."""
    last = len(x.asked) - 1
    intent = events.line(x, last, b"intent")
    return [*_decided(x, events, last), intent] if last else [intent]


def concluded(x: Exchange, events: DecisionLog) -> list[bytes]:
    """The lines of a call that is over: its outcome, and before it what is not on record yet. Never raises."""
    lines = []
    if x.asked and (not x.intended or x.asked[-1].question.phase is not None):
        try:
            lines = [
                events.line(x, index, b"decision")
                for index, asked in enumerate(x.asked)
                if not x.intended or asked.question.phase is not None  # what was said of the result comes afterwards
            ]
        except Exception as error:
            log.error("call %s: %s: %s", x.id, NOT_IN_FULL, type(error).__name__)
    try:
        lines.append(line(outcome(x)))
    except Exception as error:
        # Whatever a target or a call made of the exchange: that it happened has to be on record.
        log.error("call %s: %s: %s", x.id, NOT_IN_FULL, type(error).__name__)
        lines.append(line(_least(x)))
    return lines


def event_of(record: bytes) -> bytes:
    """The decision log event in the line of a decision, without what only the ledger adds to it."""
    return b"{" + record[record.index(b",", record.index(b",") + 1) + 1 : -1]


def _decided(x: Exchange, events: DecisionLog, count: int) -> list[bytes]:
    return [events.line(x, index, b"decision") for index in range(count)]


def outcome(x: Exchange) -> dict[str, Any]:
    """What came of a call. Fields that do not apply are absent; what was asked and why stands in its decision.

    Times are rounded to microseconds, by what takes a third of what round() does.
    """
    agent, call, decision, arm, usage = x.agent, x.call, x.decision, x.arm, x.usage
    record: dict[str, Any] = {
        "record": "outcome",
        "call": x.id,
        "at": x.arrived_ns,
        "code": x.code,
        "status": x.status,
        "protocol": x.adapter.protocol,
        "method": x.method,
        "path": x.path[:LONGEST_PATH],
        "seconds": int((x.ended - x.began) * 1e6 + 0.5) / 1e6,
    }
    if x.within is not None:
        record["within"] = x.within
    if agent is not None:
        record["agent"] = agent.name
        record["tenant"] = agent.tenant
    if x.session is not None:
        record["session"] = x.session
    if call is not None:
        record["operation"] = call.operation
        record["target" if call.kind == "tool" else "model"] = call.target
        record["request_bytes"] = len(call.body)
    if decision is not None:
        record["decision"] = decision.effect
        record["revision"] = decision.revision
        last = next((asked for asked in reversed(x.asked) if asked.question.phase is None), None)
        if last is not None and decision is not last.decision:  # a refusal in the gateway's own words
            record["explanation"] = decision.explanation
    if x.held is not None:
        record["approval"] = x.held
        if x.changed is not None:
            record["changed"] = x.changed
        if x.repeated:
            record["repeated"] = True
    if x.grant is not None:
        record["grant"] = x.grant.id
    if x.fulfilled is not None and (facts := x.fulfilled.facts()):
        record["obligations"] = facts
    if arm is not None and x.route is not None:
        record["route"] = x.route.name
        record["target"] = arm.target.name
        if arm.model is not None:
            record["target_model"] = arm.model
    attempts = x.attempts
    if len(attempts) == 1:
        record["node"] = attempts[0].pick.node.url
    elif attempts:
        record["node"] = next(each.node for each in reversed(attempts) if each.arm is arm)
        record["attempts"] = [_attempt(each) for each in attempts]
    if x.target_status is not None:
        record["target_status"] = x.target_status
    if x.sent_at is not None:
        record["target_seconds"] = int((x.ended - x.sent_at) * 1e6 + 0.5) / 1e6
        if x.first_byte_at is not None:
            record["first_byte_seconds"] = int((x.first_byte_at - x.sent_at) * 1e6 + 0.5) / 1e6
    if usage is not None:
        record["usage"] = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        }
        if usage.estimated:
            record["usage"]["estimated"] = True
    if x.cost is not None:
        if x.unpriced:
            record["unpriced"] = True
        if x.cost or not x.unpriced:  # of several attempts one may have a price
            record["cost_usd"] = Fragment(usd_text(x.cost))
    if x.loan is not None:
        record["lent_usd"] = Fragment(usd_text(x.loan.amount))
        if x.overrun:
            record["overrun_usd"] = Fragment(usd_text(x.overrun))
    if x.clamped is not None:
        record["max_tokens_clamped"] = x.clamped
    if x.warnings:
        record["budgets"] = x.warnings
    if x.tool_error:
        record["tool_error"] = True
    if x.result:
        record["result"] = x.result
    if x.detail:
        record["detail"] = x.detail
    return record


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """One of several tries."""
    record: dict[str, Any] = {
        "target": attempt.arm.target.name,
        "node": attempt.node,
        "outcome": attempt.outcome.name if attempt.outcome is not None else None,
        "seconds": int((attempt.ended - attempt.began) * 1e6 + 0.5) / 1e6,
    }
    if attempt.status is not None:
        record["status"] = attempt.status
    if attempt.cost:
        record["cost_usd"] = Fragment(usd_text(attempt.cost))
    if attempt.detail:
        record["detail"] = attempt.detail
    return record


def _least(x: Exchange) -> dict[str, Any]:
    """An outcome of nothing but what the gateway itself has made."""
    return {
        "record": "outcome",
        "call": x.id,
        "at": x.arrived_ns,
        "code": x.code,
        "status": x.status,
        "agent": x.agent.name if x.agent is not None else None,
        "detail": NOT_IN_FULL,
    }
