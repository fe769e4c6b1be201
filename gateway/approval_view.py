"""An approval as it is shown to people, agents and their systems: all that will run, with nothing hidden in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

import orjson

from policies.approvals import Approval
from policies.money import usd_text

_SECOND: Final = 1_000_000_000
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"})
"""Categories of Unicode of which nothing is seen, or which change how what is beside them is seen."""
_PLAIN: Final = frozenset("\n\t")


def visible(text: str) -> str:
    """The text with everything visible: what has no shape of its own, or reorders others, as `\\u{...}`.

    A backslash stays as it is: in JSON text, which is what this is used on, it is escaped already.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in _PLAIN or (unicodedata.category(char) not in _HIDDEN) else f"\\u{{{ord(char):x}}}"
        for char in text
    )


def arguments(approval: Approval) -> Any:
    """What is asked for, as JSON: the body that will be sent; None where that is no JSON."""
    try:
        return orjson.loads(approval.call.body) if approval.call.body else None
    except orjson.JSONDecodeError:
        return None


def shown(approval: Approval) -> dict[str, Any]:
    """As the contract has it; times in Unix seconds."""
    call = approval.call
    facts: dict[str, Any] = {
        "id": approval.id,
        "state": approval.state.value,
        "agent": call.agent,
        "tenant": call.tenant,
        "session": call.session,
        "kind": call.kind,
        "protocol": call.protocol,
        "target": call.target,
        "operation": call.operation,
        "arguments": arguments(approval),
        "required_approvals": list(approval.needs),
        "missing_approvals": list(approval.missing),
        "votes": [
            {
                "person": each.person,
                "approve": each.yes,
                "roles": list(each.roles),
                "at": each.at / _SECOND,
                "comment": each.comment,
            }
            for each in approval.votes
        ],
        "risk_level": approval.risk_level,
        "explanation": approval.explanation,
        "reason": approval.reason,
        "estimated_cost_usd": orjson.Fragment(usd_text(call.cost)) if call.cost is not None else None,
        "policy": approval.revision,
        "binding": approval.binding,
        "call": approval.call_id,
        "used_by": approval.claimed_by,
        "instead_of": approval.instead_of,
        "became": approval.became,
        "version": approval.version,
        "created": approval.created / _SECOND,
        "changed": approval.changed / _SECOND,
        "decide_by": approval.decide_by / _SECOND,
        "use_by": approval.use_by / _SECOND if approval.use_by is not None else None,
    }
    return facts


_FOR_AGENTS: Final = (
    "id", "state", "agent", "tenant", "protocol", "target", "operation", "required_approvals", "missing_approvals",
    "explanation", "reason", "became", "created", "decide_by", "use_by",
)  # fmt: skip


def shown_to_agent(approval: Approval) -> Mapping[str, Any]:
    """The same without who has said what, and without what the agent has sent itself."""
    facts = shown(approval)
    return {name: facts[name] for name in _FOR_AGENTS}
