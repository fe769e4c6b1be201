"""What an agent is told where money or a limit stands in its call's way: which, how much, and until when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from policies.budgets import Account, Ask, Balance, Short, resets_at, unnamed
from policies.errors import BudgetContended, BudgetExhausted, RateLimited
from policies.limits import LimitReached
from policies.money import usd_text


def when(paying: Account) -> str:
    """A window in words."""
    if (day := unnamed(paying)) is not None:
        return f"all calls without an x-weighbridge-session on {day} (UTC)"
    if paying.budget.window == "session":
        return "this session"
    return f"the {paying.budget.window} {paying.window_id} (UTC)"


def _facts(balance: Balance) -> Mapping[str, Any]:
    facts = {
        "node": balance.account.budget.node,
        "window": balance.account.budget.window,
        "limit_usd": usd_text(balance.limit),
        "posted_usd": usd_text(balance.posted),
        "pending_usd": usd_text(balance.pending),
    }
    if (begins_anew := resets_at(balance.account)) is not None:
        facts["resets_at"] = begins_anew
    return {"budget": facts}


def _described(balance: Balance) -> str:
    return (
        f"{usd_text(balance.limit)} USD, of which {usd_text(balance.posted)} are spent and {usd_text(balance.pending)} "
        "lent to calls under way"
    )


def _needed(ask: Ask) -> str:
    return f"the call needs {'at least ' if ask.least < ask.want else ''}{usd_text(ask.least)}"


def exhausted(short: Short, ask: Ask) -> BudgetExhausted:
    """No money, and none that comes back."""
    balance = short.balance
    begins_anew = resets_at(balance.account)
    until = f" It begins anew at {begins_anew}." if begins_anew is not None else ""
    return BudgetExhausted(
        f"The budget of {balance.account.budget.node} for {when(balance.account)} does not pay for this call: "
        f"{_described(balance)}; {_needed(ask)}.{until}",
        _facts(balance),
    )


def contended(short: Short, ask: Ask) -> BudgetContended:
    """No money until others give theirs back."""
    balance = short.balance
    return BudgetContended(
        f"The budget of {balance.account.budget.node} for {when(balance.account)} is lent to other calls for now: "
        f"{_described(balance)}; {_needed(ask)}.",
        _facts(balance),
    )


_LIMITS: Final[Mapping[str, str]] = {
    "calls_per_minute": "{node} may make {most} calls a minute.",
    "tokens_per_minute": "{node} may use {most} tokens a minute.",
    "concurrent": "{node} may have {most} calls under way at once.",
    "calls_per_session": "{node} may make {most} calls in one session. Stop here; a new task is a new session.",
}


def limited(reached: LimitReached) -> RateLimited:
    """Too much at once, or for one session."""
    limit = reached.limit
    message = _LIMITS[limit.what].format(node=limit.node, most=limit.most)
    if reached.retry_after is not None:
        message = f"{message} Repeat the call in {math.ceil(reached.retry_after)} s."
    return RateLimited(
        message, reached.retry_after, {"limit": {"node": limit.node, "what": limit.what, "most": limit.most}}
    )
