"""What the policy can ask about a call's money: worked out where it does, and only then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.exchange import Exchange
from policies.budgets import Account, Balance, StoreUnavailable
from policies.document import budgets_document
from policies.errors import BudgetsUnavailable

if TYPE_CHECKING:
    from gateway.lending import Lender


class Quote:
    """One question's money; implements `policies.document.Money`."""

    __slots__ = ("_accounts", "_balances", "_budgets", "_lender", "_own", "_x")

    def __init__(self, lender: Lender, x: Exchange) -> None:
        self._lender = lender
        self._x = x
        self._own = x.loan
        self._accounts: tuple[Account, ...] | None = None
        self._balances: Sequence[Balance] | None = None
        self._budgets: bytes | None = None

    def budgets(self) -> bytes:
        if self._budgets is None:
            if self._balances is None:
                self._balances = self._lender.store.known(self._lender.payers(self._x).accounts) or ()
            self._budgets = budgets_document(map(self._without_own, self._balances))
        return self._budgets

    def _without_own(self, balance: Balance) -> Balance:
        """As if the call had borrowed nothing yet: what it costs is told as its estimate, and once is enough."""
        own = self._own
        if own is None or balance.account not in own.accounts:
            return balance
        return balance._replace(pending=max(balance.pending - own.amount, 0))

    def estimated_cost(self) -> int | None:
        found = self._lender.estimated(self._x)
        if found is None or found.unpriced:
            return None
        return found.bound((found.longest if found.asked is not None else found.chunk) * found.answers)

    async def look(self) -> None:
        """Brings the balances up to date, where that takes asking. Raises BudgetsUnavailable."""
        store, accounts = self._lender.store, self._lender.payers(self._x).accounts
        if not accounts or store.known(accounts) is not None:
            return
        try:
            self._balances = await store.balances(accounts)
        except StoreUnavailable:
            if any(each.hard for each in accounts):
                raise BudgetsUnavailable("How the budgets stand cannot be found out now.") from None
