"""Money in memory: a store of budgets that does as a store has to, remembers what it was asked, and fails when told."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from policies.budgets import (
    METRICS,
    Account,
    Ask,
    Balance,
    Budget,
    Conflict,
    Loan,
    Raised,
    Short,
    Spent,
    StoreUnavailable,
    Window,
)
from policies.limits import Limit, LimitReached, Pass


class Till:
    """A `policies.budgets.Store`."""

    def __init__(self) -> None:
        self.shared = False
        self.failure: str | None = None
        self.posted: defaultdict[str, int] = defaultdict(int)
        self.pending: defaultdict[str, int] = defaultdict(int)
        self.loans: dict[str, int] = {}
        """What is lent now, by call."""
        self.over: dict[str, int] = {}
        """What calls that are over have cost; 0 where everything was given back."""
        self.asked: list[Ask] = []
        self.extended: list[int] = []
        self.ledger: list[Spent] = []
        self.set: list[Raised] = []
        self.slow: asyncio.Event | None = None
        """What loans wait for, after they are made and before they are told."""
        self.lend_no_more = False
        self.now = time.time_ns

    def begin(self) -> None:
        return None

    def now_ns(self) -> int:
        return self.now()

    async def reserve(self, ask: Ask) -> Loan:
        if self.failure is not None:
            raise StoreUnavailable
        if ask.call in self.over:
            raise Conflict
        self.asked.append(ask)
        left = [(self._limit(each) - self.posted[each.key] - self.pending[each.key], each) for each in ask.accounts]
        tight = [(room, each) for room, each in left if each.hard and room < ask.least]
        if tight:
            unspent = [(self._limit(each) - self.posted[each.key], each) for each in ask.accounts if each.hard]
            contended = all(amount >= ask.least for amount, _ in unspent)
            _, least = min(tight if contended else unspent, key=itemgetter(0))
            raise Short(self._balance(least), contended)
        amount = min([ask.want, *(room for room, each in left if each.hard)])
        loan = Loan(ask.call, ask.tenant, ask.accounts, 0)
        self._lend(loan, amount)
        if self.slow is not None:
            await self.slow.wait()
        return loan

    async def extend(self, loan: Loan, amount: int) -> bool:
        if self.failure is not None:
            raise StoreUnavailable
        more = amount - loan.amount
        if self.lend_no_more or any(
            each.hard and self._limit(each) - self.posted[each.key] - self.pending[each.key] < more
            for each in loan.accounts
        ):
            return False
        self.extended.append(amount)
        self._lend(loan, amount)
        return True

    def settle(self, loan: Loan, cost: int, spent: Sequence[Spent]) -> None:
        self.post(loan.call, loan.tenant, loan.accounts, cost, spent)

    def void(self, loan: Loan) -> None:
        self.post(loan.call, loan.tenant, loan.accounts, 0, ())

    def post(self, call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> None:
        assert call not in self.over, "a call is settled once"
        lent = self.loans.pop(call, 0)
        self.over[call] = cost
        for each in accounts:
            self.pending[each.key] -= lent
            self.posted[each.key] += cost
        self.ledger += spent

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        if self.failure is not None:
            raise StoreUnavailable
        return [self._balance(each) for each in accounts]

    def known(self, accounts: Sequence[Account]) -> list[Balance] | None:
        return None if self.shared else [self._balance(each) for each in accounts]

    async def sessions(self, budget: Budget, most: int) -> list[Balance]:
        raise NotImplementedError("no test of a call asks for sessions")

    async def raise_limit(self, raised: Raised) -> None:
        self.set = [each for each in self.set if (each.node, each.window) != (raised.node, raised.window)] + [raised]

    async def reset_limit(self, tenant: str, node: str, window: Window) -> None:
        self.set = [each for each in self.set if (each.node, each.window) != (node, window)]

    async def raised(self, tenant: str) -> list[Raised]:
        return list(self.set)

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for each in self.ledger:
            key = tuple(getattr(each, name) for name in group_by)
            row = rows.setdefault(key, {**dict(zip(group_by, key, strict=True)), **dict.fromkeys(METRICS, 0)})
            for name in METRICS:
                row[name] += getattr(each, name)
        return list(rows.values())

    async def close(self) -> None:
        return None

    def _lend(self, loan: Loan, amount: int) -> None:
        for each in loan.accounts:
            self.pending[each.key] += amount - loan.amount
        self.loans[loan.call] = loan.amount = amount

    def _limit(self, account: Account) -> int:
        budget = account.budget
        return next((each.limit for each in self.set if each.node == budget.node), budget.limit)

    def _balance(self, account: Account) -> Balance:
        return Balance(account, self._limit(account), self.posted[account.key], self.pending[account.key])


class Turnstile:
    """A `policies.limits.LimitStore` that lets everybody in until it is told not to, and counts who is inside."""

    def __init__(self) -> None:
        self.refuses: float | bool | None = False
        """Seconds after which to come again, None where that does not help; False where calls are let in."""
        self.failing = False
        self.inside: dict[str, int] = {}
        self.entered: list[int] = []
        self.left: list[tuple[str, int]] = []

    def begin(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def enter(self, call: str, tenant: str, limits: tuple[Limit, ...], session: str | None, tokens: int) -> Pass:
        if self.failing:
            raise StoreUnavailable
        if self.refuses is not False:
            raise LimitReached(limits[0], self.refuses)
        self.inside[call] = tokens
        self.entered.append(tokens)
        return Pass(call, tenant, limits, session, tokens)

    def leave(self, held: Pass, tokens: int) -> None:
        if self.inside.pop(held.call, None) is not None:
            self.left.append((held.call, tokens))
