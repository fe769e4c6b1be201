"""Budgets in memory for those who look at them and set limits: accounts and the cost ledger as a test fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.budgets import (
    METRICS,
    Account,
    Ask,
    Balance,
    Budget,
    Loan,
    Raised,
    Spent,
    StoreUnavailable,
    Window,
    window_id,
)
from policies.money import nano

NOW = 1_795_235_400 * 10**9
"""2026-11-21 04:30 UTC, until a test moves on."""


class Purse:
    """A `policies.budgets.Store` that lends nothing."""

    def __init__(self) -> None:
        self.now = NOW
        self.failure: str | None = None
        self.fail_writing = False
        self.answers: int | None = None
        """How many questions about what was spent are still answered; any number where nothing is said."""
        self.shared = False
        self.asked = 0
        self.ledger: list[Spent] = []
        self._used: dict[str, tuple[str, str, tuple[int, int]]] = {}
        """Posted and pending by account, with its node and window; the one used last comes last."""
        self._raised: dict[tuple[str, Window], Raised] = {}

    def use(self, node: str, window: Window, posted: float, pending: float = 0, session: str | None = None) -> None:
        """So many dollars are spent and lent in the window that is now."""
        key = f"{node}|{window}|{window_id(window, self.now, session)}"
        self._used.pop(key, None)
        self._used[key] = (node, window, (nano(posted), nano(pending)))

    def begin(self) -> None:
        return None

    def now_ns(self) -> int:
        return self.now

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        self._answers()
        return [self._balance(each) for each in accounts]

    def known(self, accounts: Sequence[Account]) -> list[Balance] | None:
        return [self._balance(each) for each in accounts]

    async def sessions(self, budget: Budget, most: int) -> list[Balance]:
        self._answers()
        found = [key for key, (node, window, _) in self._used.items() if (node, window) == (budget.node, budget.window)]
        accounts = [Account(budget, key.split("|", 2)[2], key) for key in reversed(found)]
        return [self._balance(each) for each in accounts[:most]]

    async def raise_limit(self, raised: Raised) -> None:
        self._answers()
        if self.fail_writing:
            raise StoreUnavailable
        self._raised[raised.node, raised.window] = raised

    async def reset_limit(self, tenant: str, node: str, window: Window) -> None:
        self._answers()
        self._raised.pop((node, window), None)

    async def raised(self, tenant: str) -> list[Raised]:
        self._answers()
        return [each for each in self._raised.values() if each.node.split("/")[0] == tenant]

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        self._answers()
        if self.answers is not None:
            self.answers -= 1
            if self.answers < 0:
                raise StoreUnavailable
        self.asked += 1
        rows: dict[tuple[str, ...], dict[str, str | int]] = {}
        for spent in self.ledger:
            if spent.tenant not in tenants or not since <= spent.day <= until:
                continue
            if any(getattr(spent, name) != value for name, value in where.items()):
                continue
            key = tuple(getattr(spent, name) for name in group_by)
            row = rows.setdefault(key, {**dict(zip(group_by, key, strict=True)), **dict.fromkeys(METRICS, 0)})
            for name in METRICS:
                row[name] += getattr(spent, name)
        return list(rows.values())

    async def reserve(self, ask: Ask) -> Loan:
        raise NotImplementedError("a purse lends nothing")

    async def extend(self, loan: Loan, amount: int) -> bool:
        raise NotImplementedError("a purse lends nothing")

    def settle(self, loan: Loan, cost: int, spent: Sequence[Spent]) -> None:
        raise NotImplementedError("a purse lends nothing")

    def void(self, loan: Loan) -> None:
        raise NotImplementedError("a purse lends nothing")

    def post(self, call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> None:
        raise NotImplementedError("a purse lends nothing")

    async def close(self) -> None:
        return None

    def _answers(self) -> None:
        if self.failure is not None:
            raise StoreUnavailable

    def _balance(self, paying: Account) -> Balance:
        budget = paying.budget
        raised = self._raised.get((budget.node, budget.window))
        limit = raised.limit if raised is not None and raised.instead_of == budget.limit else budget.limit
        _, _, (posted, pending) = self._used.get(paying.key, ("", "", (0, 0)))
        return Balance(paying, limit, posted, pending)


def spent(day: str = "2026-11-21", cost: float = 0, **more: object) -> Spent:
    """A line of the cost ledger; `cost` is in dollars."""
    texts = {"tenant": "acme", "team": "", "agent": "support-bot", "session": "", "model": "gpt-4o-mini"}
    return Spent(day, **{**texts, "target": "openai", "tool": "", "cost": nano(cost), **more})  # type: ignore[arg-type]
