"""How budgets stand, and another limit in place of a configured one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.admin.operation import (
    AFTER,
    Operation,
    Parameter,
    Usd,
    View,
    Visit,
    asking,
    body,
    page_size,
    shown_exactly,
)
from policies.budgets import Balance, Budget, Plan, Raised, Store, StoreUnavailable, account, resets_at
from policies.money import NANO, nano, usd_text

log = logging.getLogger("weighbridge.budgets")

_PAGE: Final = 200
"""Budgets of one answer, where nothing else is asked for; each that is for sessions takes a question of its own."""
_LONGEST_PAGE: Final = 1000
_SESSIONS: Final = 100
"""Sessions of a budget that are looked at: those used last."""
_MOST_USD: Final = 9_000_000
_LONGEST_COMMENT: Final = 500

_Raised = dict[tuple[str, str, int], Raised]
"""Limits that people have set, by node, window, and the configured limit that each stands in for."""


class RaisedView(View):
    """Who has put the limit in force in place of the configured one."""

    by: str
    at: str = Field(description="RFC 3339.")
    comment: str


class BudgetView(View):
    node: str
    window: Literal["session", "day", "month"]
    window_id: str | None = Field(description="`2026-11-21`, `2026-11`, or of which session it is; null where none is.")
    session: str | None = Field(description="The session, where it is of one that has a name.")
    mode: Literal["strict", "adaptive", "soft", "shadow"]
    limit_usd: Usd = Field(description="The limit in force.")
    configured_usd: Usd
    posted_usd: Usd = Field(description="What calls have cost that are over.")
    pending_usd: Usd = Field(description="What is lent to calls under way.")
    used_percent: int = Field(description="Spent and lent, in whole per cent of the limit, rounded down.")
    state: Literal["ok", "warning", "exhausted"]
    resets_at: str | None = Field(description="When its window ends, RFC 3339; null for a session with a name.")
    raised: RaisedView | None = Field(description="Null while the configured limit holds.")


class BudgetItem(BudgetView):
    """A budget as it stands now; one for sessions as it stands for the session that is nearest its limit."""

    sessions: int | None = Field(
        description="How many sessions were looked at to find that one: those used last, at most 100. Null for others."
    )


class BudgetList(View):
    items: list[BudgetItem]
    next: str | None = Field(description="`after` of the next page; null at the end.")


class NodeView(View):
    node: str
    items: list[BudgetItem] = Field(description="The node's budgets.")
    sessions: list[BudgetView] = Field(
        description="Its budget for sessions in each of the last 100 used, newest first; with `session`, in that one."
    )


class LimitChange(View):
    """Another limit for a budget. It holds until the configured limit changes."""

    window: Literal["session", "day", "month"] | None = Field(
        default=None, description="Can be left out where the node has one budget."
    )
    limit_usd: Usd | None = Field(description="From 0 to 9000000, exact to a billionth; null: as configured.")
    comment: str = Field(default="", description="Why, for the record.", max_length=_LONGEST_COMMENT)


async def budgets(visit: Visit) -> Response:
    """One page, in the order of the configuration."""
    asked, found = visit.query, visit.app.pipeline.assembly.plan.budgets
    if "tenant" in asked:
        found = tuple(each for each in found if _tenant(each.node) == asked["tenant"])
    begin = 0
    if "after" in asked:
        keys = [_key(each) for each in found]
        if asked["after"] not in keys:
            raise HTTPException(400, "`after` names a budget that is not there any more. Begin again without it.")
        begin = keys.index(asked["after"]) + 1
    most = page_size(asked, _PAGE, _LONGEST_PAGE)
    page = found[begin : begin + most]
    more = begin + most < len(found)
    items = await _items(visit, page)
    return shown_exactly(BudgetList(items=items, next=_key(page[-1]) if more else None))


async def budgets_of_node(visit: Visit) -> Response:
    node, session = visit.request.path_params["node"], visit.query.get("session")
    found = _of(visit.app.pipeline.assembly.plan, node)
    store = visit.app.state.budgets
    sessions: list[BudgetView] = []
    by_session = [each for each in found if each.window == "session"]
    if session is not None and not by_session:
        raise HTTPException(404, f"{node} has no budget for sessions.")
    items = await _items(visit, found)
    for budget in by_session:
        with asking():
            if session is not None:
                balances = await store.balances([account(budget, store.now_ns(), session)])
            else:
                balances = await store.sessions(budget, _SESSIONS)
            set_by = await _raised(store, [budget])
        sessions += [BudgetView(**_facts(each, set_by)) for each in balances]
    return shown_exactly(NodeView(node=node, items=items, sessions=sessions))


async def set_limit(visit: Visit) -> Response:
    """Another limit, or the configured one again: in the store first, then on record, then answered."""
    node = visit.request.path_params["node"]
    found = _of(visit.app.pipeline.assembly.plan, node)
    wanted = _wanted(await body(visit.request))
    budget = _meant(node, found, wanted.window)
    app, store, who = visit.app, visit.app.state.budgets, visit.person.name
    async with visit.desk.changing:
        if app.ledger.failure is not None:
            raise HTTPException(503, "The ledger cannot be written, and a change that is not on record is not made.")
        with asking():
            before = _in_force(budget, await _raised(store, [budget]))
        after = wanted.limit if wanted.limit is not None else budget.limit
        result = "unknown"
        try:
            if wanted.limit is None:
                await store.reset_limit(_tenant(node), node, budget.window)
            else:
                now = store.now_ns()
                await store.raise_limit(Raised(node, budget.window, after, budget.limit, who, now, wanted.comment))
            result = "ok"
        except StoreUnavailable:
            raise HTTPException(
                503, "The store of budgets does not answer; whether the limit has changed is not known. Ask again."
            ) from None
        finally:
            record = {
                "event": "set" if wanted.limit is not None else "reset",
                "who": who,
                "node": node,
                "window": budget.window,
                "old_usd": usd_text(before),
                "new_usd": usd_text(after),
                "comment": wanted.comment,
                "result": result,
            }
            app.ledger.note("budget", record)
            app.ledger.flush()
        did = "set the limit" if wanted.limit is not None else "took back another limit"
        amounts = map(usd_text, (after, before))
        log.warning("%s %s of %s, %s: %s USD, was %s", who, did, node, budget.window, *amounts)
    if app.ledger.failure is not None:
        raise HTTPException(
            503, "The limit has changed, and the ledger cannot be written: it will be, as soon as it can."
        )
    (item,) = await _items(visit, [budget])
    return shown_exactly(item)


@dataclass(frozen=True, slots=True)
class _Wanted:
    window: str | None
    limit: int | None
    comment: str


def _wanted(sent: bytes) -> _Wanted:
    """What a change asks for; amounts are kept as they were written. Raises HTTPException."""
    try:
        change = json.loads(
            sent, parse_float=Decimal, parse_int=Decimal, parse_constant=Decimal, object_pairs_hook=_once
        )
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is no JSON object whose keys differ.") from None
    if not isinstance(change, dict):
        raise HTTPException(400, 'The body is no JSON object. Write for example {"limit_usd": 10}.')
    unknown = next((name for name in change if name not in LimitChange.model_fields), None)
    if unknown is not None:
        known = ", ".join(LimitChange.model_fields)
        raise HTTPException(400, f"There is no {unknown[:64]!r} in a change of a limit. It takes {known}.")
    if "limit_usd" not in change:
        raise HTTPException(400, "`limit_usd` is missing. Write an amount, or null for the configured one.")
    window, comment = change.get("window"), change.get("comment", "")
    if window is not None and not isinstance(window, str):
        raise HTTPException(400, "`window` is no text. Write session, day or month.")
    if not isinstance(comment, str) or len(comment) > _LONGEST_COMMENT or not comment.isprintable():
        raise HTTPException(400, f"`comment` is no text of at most {_LONGEST_COMMENT} printable characters.")
    return _Wanted(window, _amount(change["limit_usd"]), comment)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _amount(written: object) -> int | None:
    if written is None:
        return None
    if not isinstance(written, Decimal) or not written.is_finite() or not 0 <= written <= _MOST_USD:
        raise HTTPException(400, f"`limit_usd` is no number from 0 to {_MOST_USD}. Write dollars, or null.")
    if written.quantize(Decimal(1) / NANO) != written:
        raise HTTPException(400, "`limit_usd` has more than nine decimal places.")
    return nano(written)


def _of(plan: Plan, node: str) -> list[Budget]:
    found = [each for each in plan.budgets if each.node == node]
    if not found:
        raise HTTPException(
            404,
            f"There is no budget of {node[:130]!r}. GET /budgets lists them; `budgets` in the configuration adds one.",
        )
    return found


def _meant(node: str, found: Sequence[Budget], window: str | None) -> Budget:
    windows = ", ".join(each.window for each in found)
    if window is None and len(found) > 1:
        raise HTTPException(400, f"{node} has several budgets. Say which `window`: {windows}.")
    for each in found:
        if window in (None, each.window):
            return each
    raise HTTPException(404, f"There is no budget of {node} for {str(window)[:64]!r}, only for {windows}.")


async def _items(visit: Visit, found: Sequence[Budget]) -> list[BudgetItem]:
    store = visit.app.state.budgets
    now = store.now_ns()
    with asking():
        raised = await _raised(store, found)
        standing: dict[str, Balance] = {}
        for tenant in dict.fromkeys(_tenant(each.node) for each in found):
            accounts = [account(b, now, None) for b in found if b.window != "session" and _tenant(b.node) == tenant]
            standing |= {_key(each.account.budget): each for each in await store.balances(accounts)}
        sessions = {_key(each): await store.sessions(each, _SESSIONS) for each in found if each.window == "session"}
    items = []
    for budget in found:
        used = sessions.get(_key(budget))
        if used is None:
            facts = _facts(standing[_key(budget)], raised)
        elif used:
            facts = _facts(max(used, key=lambda each: (each.used_percent, each.posted + each.pending)), raised)
        else:
            nobody = Balance(account(budget, now, None), _in_force(budget, raised), 0, 0)
            facts = {**_facts(nobody, raised), "window_id": None}
        items.append(BudgetItem(**facts, sessions=len(used) if used is not None else None))
    return items


def _facts(balance: Balance, raised: _Raised) -> dict[str, Any]:
    budget, window_id = balance.account.budget, balance.account.window_id
    by = _set_by(budget, raised)
    return {
        "node": budget.node,
        "window": budget.window,
        "window_id": window_id,
        "session": window_id[1:] if budget.window == "session" and window_id.startswith("=") else None,
        "mode": str(budget.mode),
        "limit_usd": balance.limit,
        "configured_usd": budget.limit,
        "posted_usd": balance.posted,
        "pending_usd": balance.pending,
        "used_percent": balance.used_percent,
        "state": balance.state,
        "resets_at": resets_at(balance.account),
        "raised": RaisedView(by=by.by, at=_rfc_3339(by.at), comment=by.comment) if by is not None else None,
    }


async def _raised(store: Store, found: Iterable[Budget]) -> _Raised:
    """Limits set by people for the tenants of these budgets. Raises StoreUnavailable."""
    raised: _Raised = {}
    for tenant in dict.fromkeys(_tenant(each.node) for each in found):
        raised |= {(each.node, each.window, each.instead_of): each for each in await store.raised(tenant)}
    return raised


def _set_by(budget: Budget, raised: _Raised) -> Raised | None:
    """What a person has set in place of the limit that is configured now."""
    return raised.get((budget.node, budget.window, budget.limit))


def _in_force(budget: Budget, raised: _Raised) -> int:
    by = _set_by(budget, raised)
    return by.limit if by is not None else budget.limit


def _tenant(node: str) -> str:
    return node.partition("/")[0]


def _key(budget: Budget) -> str:
    return f"{budget.node}|{budget.window}"


def _rfc_3339(at: int) -> str:
    return f"{datetime.fromtimestamp(at // NANO, UTC):%Y-%m-%dT%H:%M:%SZ}"


OPERATIONS = (
    Operation(
        "GET",
        "/budgets",
        "How all budgets stand.",
        BudgetList,
        budgets,
        query=(
            Parameter("tenant", "Only those of this tenant."),
            Parameter("page_size", f"How many at most, up to {_LONGEST_PAGE}; {_PAGE} when absent."),
            AFTER,
        ),
    ),
    Operation(
        "GET",
        "/budgets/{node}",
        "The budgets of one node, `acme` or `acme/support-bot`.",
        NodeView,
        budgets_of_node,
        query=(Parameter("session", "How its budget for sessions stands in this one."),),
    ),
    Operation(
        "PUT",
        "/budgets/{node}",
        "Another limit for a budget, or the configured one again.",
        BudgetItem,
        set_limit,
        role="admin",
        takes=LimitChange,
    ),
)
