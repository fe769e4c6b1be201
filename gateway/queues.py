"""Where calls wait for money that others have borrowed: a queue for each account, first come, first served.

A call that needs less than the first one does not wait for it. Nobody waits longer than the patience of the gateway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final

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
        self.waited_for: dict[str, _Queue] = {}
        """By account: none for those whose money nobody waits for."""

    @property
    def waiting(self) -> int:
        """Calls that wait now."""
        return sum(queue.waiting for queue in self.waited_for.values())

    async def lend(self, ask: Ask) -> Loan:
        """Borrows, waiting for a while for what others may give back.

        Raises BudgetExhausted, BudgetContended, BudgetsUnavailable.
        """
        key = self._behind(ask) if self.waited_for else None
        if key is None:
            try:
                return await self._store.reserve(ask)
            except Short as short:
                if not short.contended:
                    raise exhausted(short, ask) from None
                key = short.balance.account.key
            except BaseException as error:
                self._given_up(ask, error)
                raise
        queue = self.waited_for.get(key)
        if queue is None:
            queue = self.waited_for[key] = _Queue(ask.least)
        queue.waiting += 1
        ends = asyncio.get_running_loop().time() + self._patience
        try:
            if await _within(ends, queue.turn.acquire()):
                try:
                    return await self._when_returned(queue, ask, ends)
                finally:
                    queue.turn.release()
        finally:
            queue.waiting -= 1
            if not queue.waiting:
                self.waited_for.pop(key, None)
        # Its turn never came, and what it waited for may be there.
        try:
            return await self._borrow(ask)
        except Short as short:
            raise contended(short, ask) if short.contended else exhausted(short, ask) from None

    async def _when_returned(self, queue: _Queue, ask: Ask, ends: float) -> Loan:
        """Borrows for the call whose turn it is. No step of the store is cut short: one tried twice is a conflict."""
        queue.least = ask.least
        while True:
            queue.returned.clear()
            try:
                return await self._borrow(ask)
            except Short as short:
                if not short.contended:
                    raise exhausted(short, ask) from None
                now = asyncio.get_running_loop().time()
                if now >= ends:
                    raise contended(short, ask) from None
            await _within(min(ends, now + _GLANCE), queue.returned.wait())

    def _behind(self, ask: Ask) -> str | None:
        """The account whose queue a call has to join."""
        for each in ask.accounts:
            queue = self.waited_for.get(each.key)
            if queue is not None and ask.least >= queue.least:
                return each.key
        return None

    async def _borrow(self, ask: Ask) -> Loan:
        """Raises Short, BudgetsUnavailable."""
        try:
            return await self._store.reserve(ask)
        except Short:
            raise
        except BaseException as error:
            self._given_up(ask, error)
            raise

    def _given_up(self, ask: Ask, error: BaseException) -> None:
        """Whoever leaves without an answer may have been lent something. Raises BudgetsUnavailable, or nothing."""
        self._store.void(Loan(ask.call, ask.tenant, ask.accounts, ask.want))
        self.returned(ask.accounts)
        if isinstance(error, StoreUnavailable | Conflict):
            log.log(logging.ERROR if isinstance(error, Conflict) else logging.DEBUG, "call %s: %r", ask.call, error)
            raise BudgetsUnavailable("Whether a budget can pay for this call cannot be found out now.") from None

    def returned(self, accounts: Sequence[Account]) -> None:
        """Money came back: whoever waits for it looks again."""
        if self.waited_for:
            for each in accounts:
                queue = self.waited_for.get(each.key)
                if queue is not None:
                    queue.returned.set()


async def _within(ends: float, waiting: Coroutine[Any, Any, Any]) -> bool:
    """Whether something happened before a time of the event loop's clock."""
    try:
        async with asyncio.timeout_at(ends):
            await waiting
    except TimeoutError:
        return False
    return True
