"""Budgets of one process: the books in memory, and in the journal of a file before anybody is told what they lend.

What happens in one turn of the event loop, or in a millisecond where many calls come, is one row of the journal, so
that they share one write. What has changed is folded into the file's tables now and then, a little at a time, and the
journal begun anew.

    killed                                 leaves
    before a turn is written               nothing of it: nobody was lent anything; what was settled in it is not, so
                                           that these loans are posted whole; what no budget pays is not in the sums
    after it, before its calls go on       their loans, which nobody will use: posted whole
    while calls are under way              their loans: posted whole, until somebody tells the truth
    in the middle of a fold                rows that are newer than others: each is brought up to date from its own turn
    before the journal is begun anew       turns that no row lacks any more, and none is given again
    during a checkpoint                    SQLite's log, which is still whole

The operating system has every turn before its calls go on, and the disk after the next checkpoint: a power cut can take
what happened in the last seconds, and nothing before that.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from gateway.state.journal import FOLDED_AT_ONCE, Journal
from gateway.state.spending import Spending
from policies.books import Books, Changes, Page, State
from policies.budgets import Account, Ask, Balance, Budget, Loan, Raised, Spent, StoreUnavailable, Window

log = logging.getLogger("weighbridge.state")

T = TypeVar("T")

_FEW: Final = 2
"""Calls that may ask in one turn before the next one is longer than a turn of the event loop."""
_GATHERED: Final = 0.001
"""Seconds that such a turn takes: what SQLite writes for a turn hardly depends on how many calls share it."""

_NOBODYS: Final = 0.05
"""Seconds after which costs are written that no budget pays: nothing depends on them but sums for people."""

FOLD_EVERY: Final = 1.0
"""Seconds between two folds, and between two looks whether a file that failed can be written again."""
_MOST_UNFOLDED: Final = 5000
"""Steps after which a fold begins earlier."""
_FOLD_PAUSE: Final = 0.005
"""Seconds between two parts of a fold."""
_CHECKPOINT_EVERY: Final = 5.0
"""Seconds after which what was written is brought to the disk."""
_CHECKPOINT_SIZE: Final = 16 * 1024 * 1024
"""Bytes of turns after which it is brought there earlier."""
_LONG_LOG: Final = 16 * 1024
"""Pages of SQLite's log, some 64 MB, beyond which turns are held back for a moment so that it can begin anew."""
_HELD_BACK: Final = 0.05
"""Seconds for which they are at most."""
_CLOSING: Final = 5.0
"""Seconds after which a checkpoint that does not end is left to itself."""
_PAGE: Final = 4096
"""Bytes that a small change adds to SQLite's log."""


class EmbeddedStore:
    """Keeps accounts, loans and the cost ledger of one process. Implements `policies.budgets.Store`.

    A loan is as good as renewed while the process lives that has it. Loans that are found at the start belong to one
    that has ended: they expire.

    While the file cannot be written, nobody is lent anything, and what is settled is kept in memory until it can.

    What has become of a call is known for an hour, of the last hundred thousand.
    """

    shared: Final = False

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns, *, fold_every: float = FOLD_EVERY) -> None:
        """`clock` gives Unix nanoseconds. Raises StateUnusable."""
        self.path = path
        self.now_ns = clock
        self._fold_every = fold_every
        self._fold_pause = min(_FOLD_PAUSE, fold_every)
        self.failure: str | None = None
        self._journal = Journal(path)
        self._books = Books(self._journal.find)
        self._steps = self._books.steps
        """Those of this turn."""
        self._asked: list[tuple[Ask, asyncio.Future[Loan]]] = []
        """What was asked for in this turn: it is lent at its end, when what others gave back in it is there."""
        self._waiting: list[asyncio.Future[bool]] = []
        """Calls that wait until it is written."""
        self._scheduled = False
        self._later: asyncio.TimerHandle | None = None
        """When costs are written that no budget pays."""
        self._many = False
        """Whether so many calls ask at once that it is worth to wait for more before they are written."""
        self._held = False
        """Whether turns are held back."""
        self._unread: list[Callable[[], object]] = []
        """What could not be done because an account could not be read."""
        self._taken: list[Changes] = []
        """What is being folded: one, or several where the file has failed."""
        self._up_to = 0
        """The turn up to which it was taken."""
        self._unfolded = 0
        """Steps since then."""
        self._next_fold: asyncio.TimerHandle | None = None
        self._size = 0
        """Bytes of turns since the last checkpoint."""
        self._checkpointed = 0.0
        self._checkpoint: asyncio.Task[None] | None = None
        self._closed = False
        with self._journal.beginning():
            self._begin()

    def _begin(self) -> None:
        now = self.now_ns()
        self._journal.restore(self._books)
        left = [debt.call for debt in self._books.debts() if debt.state is State.PENDING]
        for call in left:
            self._books.expire(call, now)
        if left:
            log.warning(
                "%d calls were under way when the process before ended: their loans are posted whole", len(left)
            )
        self._fold_all()

    def begin(self) -> None:
        """The file is there since this was made."""

    def reserve(self, ask: Ask) -> Awaitable[Loan]:
        lent: asyncio.Future[Loan] = asyncio.get_running_loop().create_future()
        self._asked.append((ask, lent))
        if not self._scheduled:
            self._flush_soon()
        return lent

    async def extend(self, loan: Loan, amount: int) -> bool:
        if self.failure is not None:
            raise StoreUnavailable(self.failure)
        lent = self._books.extend(loan.call, amount, self.now_ns())
        if lent is None:
            return False
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if not self._scheduled:
            self._flush_soon()
        if not await waiting:
            raise StoreUnavailable(self.failure)
        loan.amount = lent
        return True

    def settle(self, loan: Loan, cost: int, spent: Sequence[Spent]) -> None:
        now = self.now_ns()
        try:
            self._books.settle(loan.call, loan.accounts, cost, spent, now)
        except sqlite3.Error as error:
            self._unread.append(lambda: self._books.settle(loan.call, loan.accounts, cost, spent, now))
            self._failed(error)
        if not self._scheduled:
            self._flush_soon()

    def void(self, loan: Loan) -> None:
        self._books.void(loan.call, self.now_ns())
        if not self._scheduled:
            self._flush_soon()

    def post(self, call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> None:
        now = self.now_ns()
        try:
            self._books.post(call, accounts, cost, spent, now)
        except sqlite3.Error as error:
            self._unread.append(lambda: self._books.post(call, accounts, cost, spent, now))
            self._failed(error)
        if self._scheduled:
            return
        if accounts:
            self._flush_soon()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(_NOBODYS, self._flush)

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        found = self.known(accounts)
        if found is None:
            raise StoreUnavailable(self.failure)
        return found

    def known(self, accounts: Sequence[Account]) -> list[Balance] | None:
        try:
            return self._stands(accounts)
        except sqlite3.Error as error:
            self._unreadable(error, accounts)
            return None

    def _stands(self, accounts: Sequence[Account]) -> list[Balance]:
        return [self._books.balance(account) for account in accounts]

    async def sessions(self, budget: Budget, most: int) -> list[Balance]:
        prefix = f"{budget.node}|{budget.window}|"
        # The next letter after the last of the prefix ends what begins with it.
        query = "SELECT key, posted, pending, used FROM accounts WHERE key >= ? AND key < ? ORDER BY used DESC LIMIT ?"
        try:
            answer = self._journal.ask(query, (prefix, prefix[:-1] + "}", most))
            newer = {page.key: page for page in self._books.pages() if page.key.startswith(prefix) and page.used}
            found = {row[0]: Page(*row) for row in await asyncio.to_thread(answer)} | newer
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from None
        last = sorted(found.values(), key=lambda page: page.used, reverse=True)[:most]
        limit = self._books.limit(budget)
        return [
            Balance(Account(budget, page.key.removeprefix(prefix), page.key), limit, page.posted, page.pending)
            for page in last
        ]

    async def raise_limit(self, raised: Raised) -> None:
        try:
            self._journal.set_limit(raised)
        except sqlite3.Error as error:
            self._failed(error)
            raise StoreUnavailable(self.failure) from None
        self._books.limits[raised.node, raised.window] = raised

    async def reset_limit(self, tenant: str, node: str, window: Window) -> None:
        try:
            self._journal.drop_limit(node, window)
        except sqlite3.Error as error:
            self._failed(error)
            raise StoreUnavailable(self.failure) from None
        self._books.limits.pop((node, window), None)

    async def raised(self, tenant: str) -> list[Raised]:
        return [each for each in self._books.limits.values() if each.node.partition("/")[0] == tenant]

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        spending = Spending(tenants, since, until, group_by, where)
        try:
            answer = self._journal.ask(*spending.query())
            for line, sums in (*self._books.lines(), *(line for each in self._taken for line in each.lines)):
                spending.consider(line, sums)
            return await asyncio.to_thread(spending.whole, answer)
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from None

    @property
    def journal(self) -> Journal:
        """The file, for whoever else keeps something in it: only to read, and at the start."""
        return self._journal

    def write(self, statements: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Carries out what somebody else keeps in this file, in one transaction. Raises sqlite3.Error."""
        self._kept(lambda: self._journal.write(statements), _PAGE * len(statements))

    def change(self, work: Callable[[sqlite3.Cursor], T], size: int) -> T:
        """The same for whoever has to look at tables first; `size` is about how many bytes it writes."""
        return self._kept(lambda: self._journal.change(work), size)

    def _kept(self, write: Callable[[], T], size: int) -> T:
        try:
            result = write()
        except sqlite3.Error as error:
            self._failed(error)
            raise
        self._size += size
        if self._next_fold is None:
            self._fold_in(self._fold_every)
        return result

    async def close(self) -> None:
        if self._closed:
            return
        if self._checkpoint is not None:
            await asyncio.wait([self._checkpoint], timeout=_CLOSING)
        self._flush()
        if self._next_fold is not None:
            self._next_fold.cancel()
        try:
            self._read_again()
        except sqlite3.Error as error:
            log.error("%s: %d settlements are lost: %s", self.path, len(self._unread), error)
        try:
            self._fold_all()
        except sqlite3.Error as error:
            log.error("%s: what was settled last is lost: %s", self.path, error)
        self._closed = True
        self.failure = "The state is closed."
        if self._checkpoint is not None and not self._checkpoint.done():
            log.error("%s: the disk does not answer; what was written is brought to it at the next start", self.path)
            return
        await asyncio.to_thread(self._journal.close)

    # Turns

    def _flush_soon(self) -> None:
        self._scheduled = True
        loop = asyncio.get_running_loop()
        if self._many:
            loop.call_later(_GATHERED, self._flush)
        else:
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Writes this turn, and tells those who wait for it whether that was possible."""
        self._scheduled = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._held:
            return
        asked, self._asked = self._asked, []
        self._many = len(asked) > _FEW
        loans = self._lend(asked) if asked else []
        written = self.failure is None
        if self._steps:
            if written:
                try:
                    self._size += self._journal.append(self.now_ns(), self._steps)
                except Exception as error:  # whatever it is, calls wait for an answer
                    self._failed(error)
                    written = False
            elif self._closed:
                log.error("%s: something was settled after the end", self.path)
            self._unfolded += len(self._steps)
            # Where they could not be written, what they have changed will be: see `_mend`.
            self._steps.clear()
            if self._next_fold is None:
                self._fold_in(self._fold_every)
            elif self._unfolded > _MOST_UNFOLDED and not self._taken and written:
                self._fold_in(0.0)
        for loan, lent in loans:
            if lent.done():
                continue
            if written:
                lent.set_result(loan)
            else:
                lent.set_exception(StoreUnavailable(self.failure))
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(written)

    def _lend(self, asked: Sequence[tuple[Ask, asyncio.Future[Loan]]]) -> list[tuple[Loan, asyncio.Future[Loan]]]:
        """The loans, which are nobody's before they are written; whoever gets none is told at once."""
        now = self.now_ns()
        reserve = self._books.reserve
        loans = []
        for ask, lent in asked:
            if lent.done():  # whoever has asked is gone
                continue
            try:
                if self.failure is not None:
                    raise StoreUnavailable(self.failure)
                loans.append((Loan(ask.call, ask.tenant, ask.accounts, reserve(ask, now)), lent))
            except sqlite3.Error as error:
                self._unreadable(error, ask.accounts)
                lent.set_exception(StoreUnavailable(self.failure))
            except Exception as error:  # whatever it is, the others of this turn wait for an answer
                lent.set_exception(error)
        return loans

    # Where the file fails

    def _failed(self, error: Exception | str) -> None:
        """From now on nobody is lent anything, until `_mend` succeeds."""
        if self.failure is None:
            self.failure = f"{self.path} cannot be used: {error}."
            log.error("%s", self.failure)
        if self._next_fold is None:
            self._fold_in(self._fold_every)

    def _unreadable(self, error: sqlite3.Error, accounts: Sequence[Account]) -> None:
        if self.failure is None:
            self._unread.append(lambda: self._stands(accounts))
        self._failed(error)

    def _mend(self) -> None:
        """Does everything that could not be done. Raises sqlite3.Error where it still cannot be."""
        self._read_again()
        self._fold_all()
        self.failure = None
        log.warning("%s can be used again", self.path)

    def _read_again(self) -> None:
        while self._unread:
            self._unread[0]()
            del self._unread[0]

    def _fold_all(self) -> None:
        """Writes all that has changed, at once, whether or not it is in the journal."""
        now = self.now_ns()
        for each in self._taken:
            each.debts.clear()  # those that are still owed are taken again
        changes = self._books.take(now)
        if changes:
            self._taken.append(changes)
        self._steps.clear()
        self._journal.fold_all(self._taken, now)
        self._taken.clear()
        self._up_to = self._journal.seq

    # Folds

    def _fold_in(self, seconds: float) -> None:
        if self._next_fold is not None:
            self._next_fold.cancel()
        self._next_fold = None if self._closed else asyncio.get_running_loop().call_later(seconds, self._fold)

    def _fold(self) -> None:
        """Does one part of what is to be done now and then, and says when to come again."""
        self._next_fold = None
        if self._held:
            self._fold_in(self._fold_pause)
            return
        more = False
        try:
            if (self.failure is not None or not self._taken) and self._journal.moved:
                self._failed("it was moved or deleted")
            elif self.failure is not None:
                self._mend()
            else:
                self._flush()
                # What could not be written just now is on pages that a part of a fold would write without others.
                more = self.failure is None and self._fold_part()
        except Exception as error:
            self._failed(error)
        if more:
            self._fold_in(self._fold_pause)
            return
        self._checkpoint_when_due()
        if self.failure is not None or self._journal.seq > self._up_to or self._size:
            self._fold_in(self._fold_every)

    def _fold_part(self) -> bool:
        """Whether there is more to be done at once."""
        if not self._taken:
            if self._journal.seq == self._up_to:
                return False
            self._taken.append(self._books.take(self.now_ns()))
            self._up_to, self._unfolded = self._journal.seq, 0
        (changes,) = self._taken
        if changes:
            self._journal.fold(changes, self._up_to, self.now_ns())
            self._books.sweep(2 * FOLDED_AT_ONCE)
            return True
        if self._journal.drop(self._up_to):
            return True
        self._taken.clear()
        return False

    # Checkpoints

    def _checkpoint_when_due(self) -> None:
        now = asyncio.get_running_loop().time()
        due = self._size >= _CHECKPOINT_SIZE or now - self._checkpointed >= _CHECKPOINT_EVERY
        if self._size and due and (self._checkpoint is None or self._checkpoint.done()):
            self._size, self._checkpointed = 0, now
            self._checkpoint = asyncio.create_task(self._bring_to_disk(), name="checkpoint of the state")

    async def _bring_to_disk(self) -> None:
        try:
            if await asyncio.to_thread(self._journal.checkpoint) < _LONG_LOG:
                return
            # Under load there is always a turn that came after what was dealt with.
            self._held = True
            try:
                again = asyncio.ensure_future(asyncio.to_thread(self._journal.checkpoint))
                await asyncio.wait([again], timeout=_HELD_BACK)
            finally:
                self._held = False
                self._flush()
            await again
        except sqlite3.Error as error:
            self._failed(error)
