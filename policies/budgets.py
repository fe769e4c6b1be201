"""May this call happen, by money: who has to pay for a call, and the seam at which a call borrows its cost before it
runs and settles it afterwards.

A budget limits what one node (a tenant, a team, an agent) may spend in one window (a session, a day, a month). In each
window it is an account of its own: the window's id is part of the account's key, so nothing ever has to be reset. What
a call borrows is pending in every account that has to pay; what it has cost is posted. Amounts are nano-dollars.

    PENDING -> POSTED (settled) | VOIDED (nothing was sent) | EXPIRED (nobody came back; the whole loan is posted)
    EXPIRED -> POSTED (the truth, late)

Every other step is none: it changes nothing and is answered as before. For accounts of hard budgets, posted + pending
<= limit holds after every step in which a call's cost stays within its loan. See docs/budgets.md.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol

from config.settings import BudgetSettings
from policies.money import nano

Window = Literal["session", "day", "month"]

LEASE: Final = 60.0
"""Seconds after which a loan that nobody renews expires."""
RENEW: Final = 10.0
"""Seconds between two renewals."""


class Mode(enum.StrEnum):
    """What a budget does near its limit."""

    STRICT = "strict"
    ADAPTIVE = "adaptive"
    SOFT = "soft"
    SHADOW = "shadow"

    @property
    def hard(self) -> bool:
        """Whether the limit can refuse a call."""
        return self in (Mode.STRICT, Mode.ADAPTIVE)


@dataclass(frozen=True, slots=True)
class Budget:
    """What one node may spend in one window, as configured. `warn_at` is in per cent of the limit."""

    node: str
    window: Window
    limit: int
    mode: Mode
    warn_at: float = 80.0


@dataclass(frozen=True, slots=True)
class Account:
    """A budget in one of its windows. `key` names it in every store: node, window and the window's id."""

    budget: Budget
    window_id: str
    key: str

    @property
    def hard(self) -> bool:
        return self.budget.mode.hard


@dataclass(frozen=True, slots=True)
class Raised:
    """A limit that a person has set in place of the configured one.

    It holds for as long as the configured limit is `instead_of`: whoever writes another one into the configuration has
    the last word. `at` is in Unix nanoseconds.
    """

    node: str
    window: Window
    limit: int
    instead_of: int
    by: str
    at: int
    comment: str = ""


class Balance(NamedTuple):
    """How an account stands. `limit` is the one in force."""

    account: Account
    limit: int
    posted: int
    pending: int

    @property
    def used_percent(self) -> int:
        """Spent and lent, in whole per cent of the limit, rounded down; 100 where nothing may be spent."""
        used = self.posted + self.pending
        return used * 100 // self.limit if self.limit > 0 else 100

    @property
    def state(self) -> Literal["ok", "warning", "exhausted"]:
        used = self.posted + self.pending
        if used >= self.limit:
            return "exhausted"
        return "warning" if used * 100 >= self.limit * self.account.budget.warn_at else "ok"


class Ask(NamedTuple):
    """A call's wish for a loan: as much as `want`, at least `least`, from all of `accounts` (of one tenant)."""

    call: str
    tenant: str
    accounts: tuple[Account, ...]
    want: int
    least: int


ask_of: Callable[[tuple[str, str, tuple[Account, ...], int, int]], Ask] = partial(tuple.__new__, Ask)
"""An Ask of all its fields. Every call makes one, and the class's own constructor costs several times as much."""


@dataclass(slots=True)
class Loan:
    """What was lent to a call: the same amount by every one of its accounts.

    `balances` are the accounts as they stood right afterwards, where the store says.
    """

    call: str
    tenant: str
    accounts: tuple[Account, ...]
    amount: int
    balances: tuple[Balance, ...] = field(default=(), repr=False)


class Short(Exception):
    """There is not enough money.

    `contended` says that it would be enough if what other calls have borrowed came back. `balance` is then of the
    account that has the least left, else of the one that has the least that is not spent.
    """

    def __init__(self, balance: Balance, contended: bool) -> None:
        super().__init__(balance.account.key)
        self.balance = balance
        self.contended = contended


class Conflict(Exception):
    """The same call has asked before, for something else; or what it borrowed is settled already."""


class StoreUnavailable(Exception):
    """The store cannot be asked, or did not answer in time; what it was asked may or may not have happened.

    Whoever gets this gives the loan back with `void`, which holds even where the loan arrives later.
    """


class Spent(NamedTuple):
    """What one attempt of a call has cost, and whom: one line of the cost ledger. Texts are empty where none applies.

    `calls` is 1 for the first attempt of a call and 0 for further ones. `day` is the UTC day of the call's admission,
    `2026-11-21`. `cost` and `tool_cost` (a part of it) are in nano-dollars; `unpriced` counts calls whose price is not
    known, which have no cost here.
    """

    day: str
    tenant: str
    team: str
    agent: str
    session: str
    model: str
    target: str
    tool: str
    calls: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: int = 0
    tool_cost: int = 0
    unpriced: int = 0


spent_of: Callable[[tuple[str | int, ...]], Spent] = partial(tuple.__new__, Spent)
"""A Spent of all its fields, as `ask_of`."""

DIMENSIONS: Final = ("day", "tenant", "team", "agent", "session", "model", "target", "tool")
METRICS: Final = ("calls", "input_tokens", "output_tokens", "cached_tokens", "cost", "tool_cost", "unpriced")


class Store(Protocol):
    """Keeps accounts, loans and the cost ledger.

    Each step is atomic, idempotent on the call's id, and repeatable: asked again it answers as before, for an hour as a
    rule.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes use it, too: then knowing how an account stands takes asking."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the store cannot be used now, for the operator; None when it can."""
        ...

    def begin(self) -> None:
        """Begins to connect to wherever it is kept, in a running event loop; a second time it does nothing."""
        ...

    def now_ns(self) -> int:
        """The time by the clock that decides windows and leases, in Unix nanoseconds."""
        ...

    def reserve(self, ask: Ask) -> Awaitable[Loan]:
        """Lends as much as `want` and no less than `least`, and returns once that will survive this process.

        Soft accounts never refuse and never lower the amount. Raises Short, Conflict, StoreUnavailable.
        """
        ...

    async def extend(self, loan: Loan, amount: int) -> bool:
        """Raises a loan to `amount` in all, durably, and `loan.amount` with it; False where it does not fit.

        Raises StoreUnavailable.
        """
        ...

    def settle(self, loan: Loan, cost: int, spent: Sequence[Spent]) -> None:
        """Posts what the call has cost, in full, whatever was lent; pays the rest back; writes the cost ledger. Never
        raises, never waits: the store sees to it that it happens, once, however often it has to try.
        """
        ...

    def void(self, loan: Loan) -> None:
        """Pays everything back, for a call of which nothing was sent. Like `settle`."""
        ...

    def post(self, call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> None:
        """Posts the cost of a call that has no loan: because no hard budget pays, or the store could not be asked. Like
        `settle`.
        """
        ...

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        """How accounts stand, in their order. Raises StoreUnavailable."""
        ...

    def known(self, accounts: Sequence[Account]) -> list[Balance] | None:
        """The same as far as it is known without asking: at most a second old; None where it is not."""
        ...

    async def sessions(self, budget: Budget, most: int) -> list[Balance]:
        """The accounts of a session budget that were used last, newest first. Raises StoreUnavailable."""
        ...

    async def raise_limit(self, raised: Raised) -> None:
        """Puts another limit in place of a configured one, durably. Raises StoreUnavailable."""
        ...

    async def reset_limit(self, tenant: str, node: str, window: Window) -> None:
        """Lets the configured limit hold again. Raises StoreUnavailable."""
        ...

    async def raised(self, tenant: str) -> list[Raised]:
        """The limits that people have set for a tenant's nodes. Raises StoreUnavailable."""
        ...

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        """The cost ledger from day `since` to day `until` inclusive, summed by the dimensions of `group_by`.

        Each row has these dimensions and all METRICS. `where` keeps only what has these values. Raises
        StoreUnavailable.
        """
        ...

    async def close(self) -> None:
        """Carries out what is under way, as far as that is possible in a few seconds."""
        ...


_NONE: Final = "none-"
"""Stands before the day in the window's id of what is called without a session; a name has `=` before it."""


def window_id(window: Window, now_ns: int, session: str | None) -> str:
    """The window a call belongs to that is admitted now: `2026-11-21`, `2026-11`, or its session.

    Calls without a session are together one a day, so that leaving the header out is no way around a limit.
    """
    day = time.strftime("%Y-%m-%d", time.gmtime(now_ns // 1_000_000_000))
    match window:
        case "day":
            return day
        case "month":
            return day[:7]
        case "session":
            return f"={session}" if session is not None else _NONE + day


def account(budget: Budget, now_ns: int, session: str | None) -> Account:
    """The account of a budget that a call pays from which is admitted now."""
    found = window_id(budget.window, now_ns, session)
    return Account(budget, found, f"{budget.node}|{budget.window}|{found}")


def unnamed(paying: Account) -> str | None:
    """The day of which an account holds what was called without a session; None for all other accounts."""
    nameless = paying.budget.window == "session" and paying.window_id.startswith(_NONE)
    return paying.window_id.removeprefix(_NONE) if nameless else None


def resets_at(paying: Account) -> str | None:
    """When an account's window ends, as RFC 3339 writes it; None for a session with a name, of which nobody knows."""
    if paying.budget.window == "month":
        ends = (datetime.fromisoformat(f"{paying.window_id}-01") + timedelta(days=31)).replace(day=1)
    else:
        day = paying.window_id if paying.budget.window == "day" else unnamed(paying)
        if day is None:
            return None
        ends = datetime.fromisoformat(day) + timedelta(days=1)
    return f"{ends:%Y-%m-%dT%H:%M:%SZ}"


class Plan:
    """The budgets of one configuration."""

    def __init__(self, settings: Iterable[BudgetSettings]) -> None:
        self.budgets = tuple(
            Budget(each.node, each.window, nano(each.limit_usd), Mode(each.mode), each.warn_at) for each in settings
        )
        self.hard = any(budget.mode.hard for budget in self.budgets)
        """Whether anything depends on the budgets' state."""
        self._by_node: dict[str, list[Budget]] = {}
        for budget in self.budgets:
            self._by_node.setdefault(budget.node, []).append(budget)

    def of(self, tenant: str, team: str | None, agent: str) -> tuple[Budget, ...]:
        """The budgets that pay for an agent's calls, from the tenant's down to its own."""
        if not self.budgets:
            return ()
        nodes = [tenant, f"{tenant}/{team}", f"{tenant}/{agent}"] if team else [tenant, f"{tenant}/{agent}"]
        return tuple(budget for node in nodes for budget in self._by_node.get(node, ()))

    def find(self, node: str, window: str) -> Budget | None:
        return next((each for each in self._by_node.get(node, ()) if each.window == window), None)
