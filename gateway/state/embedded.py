"""Budgets of one process: accounts in memory, every step of which is in the journal of one SQLite file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from policies.budgets import Account, Ask, Balance, Budget, Loan, Raised, Spent, Window


class EmbeddedStore:
    """Keeps accounts, loans and the cost ledger of one process. Implements `policies.budgets.Store`."""

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns) -> None:
        """Raises StateUnusable."""
        self.path = path
        self.now_ns = clock

    @property
    def shared(self) -> bool:
        return False

    @property
    def failure(self) -> str | None:
        raise NotImplementedError

    async def reserve(self, ask: Ask) -> Loan:
        raise NotImplementedError

    async def extend(self, loan: Loan, amount: int) -> bool:
        raise NotImplementedError

    def settle(self, loan: Loan, cost: int, spent: Sequence[Spent]) -> None:
        raise NotImplementedError

    def void(self, loan: Loan) -> None:
        raise NotImplementedError

    def post(self, call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> None:
        raise NotImplementedError

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        raise NotImplementedError

    def known(self, accounts: Sequence[Account]) -> list[Balance] | None:
        raise NotImplementedError

    async def sessions(self, budget: Budget, most: int) -> list[Balance]:
        raise NotImplementedError

    async def raise_limit(self, raised: Raised) -> None:
        raise NotImplementedError

    async def reset_limit(self, tenant: str, node: str, window: Window) -> None:
        raise NotImplementedError

    async def raised(self, tenant: str) -> list[Raised]:
        raise NotImplementedError

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
