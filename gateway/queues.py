"""Where calls wait for money that others have borrowed: a queue for each account, first come, first served.

A call that needs less than the first one does not wait for it. Nobody waits longer than the patience of the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from gateway.shortage import contended, exhausted
from policies.budgets import Account, Ask, Conflict, Loan, Short, Store, StoreUnavailable
from policies.errors import BudgetsUnavailable

log = logging.getLogger("weighbridge.budgets")

PATIENCE: Final = 2.0
"""Seconds for which a call waits."""
_GLANCE: Final = 0.25
"""Seconds between two looks at a store where money comes back from other processes, too."""


class _Queue:
    """Calls that wait for money of one account, first come, first served.

    `least` is what the first one needs.
    """

    __slots__ = ("least", "returned", "turn", "waiting")

    def __init__(self, least: int) -> None:
        self.least = least
        self.turn = asyncio.Lock()
        self.returned = asyncio.Event()
        self.waiting = 0


class Queues:
    """Borrows from one store for all calls of this process."""

    def __init__(self, store: Store, patience: float) -> None:
        """`patience` is in seconds."""
        self._store = store
        self._patience = patience
        self._queues: dict[str, _Queue] = {}

    @property
    def waiting(self) -> int:
        """Calls that wait now."""
        return sum(queue.waiting for queue in self._queues.values())

    async def lend(self, ask: Ask) -> Loan:
        """Borrows, waiting for a while for what others may give back.

        Raises BudgetExhausted, BudgetContended, BudgetsUnavailable.
        """
        key = self._behind(ask) if self._queues else None
        if key is None:
            try:
                return await self._borrow(ask)
            except Short as short:
                if not short.contended:
                    raise exhausted(short, ask) from None
                key = short.balance.account.key
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(ask.least)
        queue.waiting += 1
        short_of: Short | None = None
        try:
            async with asyncio.timeout(self._patience), queue.turn:
                queue.least = ask.least
                while True:
                    queue.returned.clear()
                    try:
                        return await self._borrow(ask)
                    except Short as short:
                        short_of = short
                    if not short_of.contended:
                        raise exhausted(short_of, ask)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_GLANCE):
                            await queue.returned.wait()
        except TimeoutError:
            pass
        finally:
            queue.waiting -= 1
            if not queue.waiting:
                self._queues.pop(key, None)
        if short_of is None:  # its turn never came, and what it waited for may be there
            try:
                return await self._borrow(ask)
            except Short as short:
                short_of = short
        raise contended(short_of, ask) if short_of.contended else exhausted(short_of, ask)

    def _behind(self, ask: Ask) -> str | None:
        """The account whose queue a call has to join."""
        for each in ask.accounts:
            queue = self._queues.get(each.key)
            if queue is not None and ask.least >= queue.least:
                return each.key
        return None

    async def _borrow(self, ask: Ask) -> Loan:
        """Raises Short, BudgetsUnavailable."""
        try:
            return await self._store.reserve(ask)
        except Short:
            raise
        except (StoreUnavailable, Conflict) as error:
            self._store.void(Loan(ask.call, ask.tenant, ask.accounts, ask.want))
            log.log(logging.ERROR if isinstance(error, Conflict) else logging.DEBUG, "call %s: %r", ask.call, error)
            raise BudgetsUnavailable("Whether a budget can pay for this call cannot be found out now.") from None
        except BaseException:  # whoever leaves now may have been lent something
            self._store.void(Loan(ask.call, ask.tenant, ask.accounts, ask.want))
            self.returned(ask.accounts)
            raise

    def returned(self, accounts: Sequence[Account]) -> None:
        """Money came back: whoever waits for it looks again."""
        if self._queues:
            for each in accounts:
                queue = self._queues.get(each.key)
                if queue is not None:
                    queue.returned.set()
