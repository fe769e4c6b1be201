"""What budgets have lent and what was spent, as arithmetic: no clock, no disk, no network; every step is written down.

A page is one account, a debt what one call owes to its accounts. BECOMES is the whole life of a debt; a step that is
not in it changes nothing. Every step that changes something is appended to `steps`, from which the books can be made
again, and what it changed can be taken with `take` by whoever keeps the books somewhere else.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import add
from typing import Final

from policies.budgets import Account, Ask, Balance, Budget, Conflict, Mode, Raised, Short, Spent
from policies.money import MOST


class State(enum.StrEnum):
    """What has become of what a call was lent."""

    PENDING = "PENDING"
    POSTED = "POSTED"
    VOIDED = "VOIDED"
    EXPIRED = "EXPIRED"


class Kind(enum.StrEnum):
    """What a step does."""

    LEND = "lend"
    MORE = "more"
    SETTLE = "settle"
    VOID = "void"
    EXPIRE = "expire"
    POST = "post"


BECOMES: Final[Mapping[tuple[State | None, Kind], State]] = {
    (None, Kind.LEND): State.PENDING,
    (State.PENDING, Kind.MORE): State.PENDING,
    (State.PENDING, Kind.SETTLE): State.POSTED,
    (State.PENDING, Kind.VOID): State.VOIDED,
    (State.PENDING, Kind.EXPIRE): State.EXPIRED,
    (State.EXPIRED, Kind.SETTLE): State.POSTED,
    # Told before the loan itself has arrived, which is refused when it does.
    (None, Kind.SETTLE): State.POSTED,
    (None, Kind.VOID): State.VOIDED,
}
"""What a debt becomes by a step; None where nothing is known of the call. Nothing else changes anything."""

Line = tuple[str, ...]
"""One line of the cost ledger: a value for each of DIMENSIONS."""
Sums = Sequence[int]
"""A number for each of METRICS."""
Keys = tuple[str, ...]
Step = tuple[str, str, Keys, int, int, Sequence[tuple[Line, Sums]]]
"""Kind, call, keys of the accounts, what is added to what each has pending and posted, and to the cost ledger."""

REMEMBERED: Final = 3600 * 10**9
"""Nanoseconds for which the books know what has become of a call that is over."""
MOST_REMEMBERED: Final = 100_000
"""Calls of which they know it: beyond, those that ended first are forgotten earlier."""
KEPT: Final = 10_000
"""Pages that stay although nothing is lent from them and nothing has changed. Agents name sessions as they like."""

_PENDING, _POSTED, _VOIDED, _EXPIRED = State.PENDING, State.POSTED, State.VOIDED, State.EXPIRED
_LEND, _MORE, _SETTLE, _VOID, _EXPIRE, _POST = (kind.value for kind in Kind)
_STRICT, _ADAPTIVE = Mode.STRICT, Mode.ADAPTIVE


class Page:
    """One account. `used` is when it last lent, got back or posted, in Unix nanoseconds."""

    __slots__ = ("changed", "key", "lending", "pending", "posted", "used")

    def __init__(self, key: str, posted: int = 0, pending: int = 0, used: int = 0) -> None:
        self.key = key
        self.posted = posted
        self.pending = pending
        self.used = used
        self.lending = 0
        """Debts that are pending here: as long as there are any, the page stays."""
        self.changed = False
        """Whether it is among what `take` has not taken yet, or what was taken is not written yet."""


class Debt:
    """What a call was lent: PENDING, or EXPIRED and waiting for a late truth.

    `ask` is None after a restart. `kept` and `stale` are for whoever keeps the books elsewhere: whether it has the
    debt, and whether what it has is out of date.
    """

    __slots__ = ("amount", "ask", "at", "call", "kept", "keys", "pages", "stale", "state")

    def __init__(self, call: str, ask: Ask | None, keys: Keys, pages: Sequence[Page], amount: int, at: int):
        self.call = call
        self.ask = ask
        self.keys = keys
        self.pages = pages
        self.amount = amount
        self.at = at
        self.state = _PENDING
        self.kept = False
        self.stale = True


class Remembered:
    """What has become of calls that are over: of the last MOST_REMEMBERED, for no longer than REMEMBERED."""

    def __init__(self) -> None:
        self._became: dict[str, State] = {}
        self._fresh: list[str] = []
        self._batches: deque[tuple[int, list[str]]] = deque()

    def __contains__(self, call: str) -> bool:
        return call in self._became

    def __len__(self) -> int:
        return len(self._became)

    def get(self, call: str) -> State | None:
        return self._became.get(call)

    def add(self, call: str, state: State) -> None:
        self._became[call] = state
        self._fresh.append(call)

    def restore(self, calls: Iterable[str], state: State, at: int) -> None:
        """Adds a batch that `take` has given, in the order in which it did."""
        batch = [call for call in calls if call not in self._became]
        self._became.update(dict.fromkeys(batch, state))
        self._batches.append((at, batch))

    def take(self, now: int) -> dict[State, list[str]]:
        """Those that were added since the last time; and forgets what is due."""
        fresh, self._fresh = self._fresh, []
        taken: dict[State, list[str]] = {}
        for call in fresh:
            taken.setdefault(self._became[call], []).append(call)
        if fresh:
            self._batches.append((now, fresh))
        while self._batches and (self._batches[0][0] < now - REMEMBERED or len(self._became) > MOST_REMEMBERED):
            for call in self._batches.popleft()[1]:
                del self._became[call]
        return taken


class Changes:
    """What has changed in the books since it was last taken. Whoever takes it empties the lists as it writes them."""

    __slots__ = ("debts", "gone", "lines", "over", "pages", "posts")

    def __init__(
        self,
        pages: list[Page],
        debts: list[Debt],
        gone: list[str],
        lines: list[tuple[Line, list[int]]],
        over: dict[State, list[str]],
        posts: list[str],
    ) -> None:
        self.pages = pages
        self.debts = debts
        """Those that were not ended when this was taken; by now they may be."""
        self.gone = gone
        """Calls whose debts were `kept` and are over."""
        self.lines = lines
        """What has to be added to the cost ledger."""
        self.over = over
        """Calls whose debts are over, by what they have become."""
        self.posts = posts
        """Calls whose cost was posted without a loan."""

    def __bool__(self) -> bool:
        return bool(self.pages or self.debts or self.gone or self.lines or self.over or self.posts)


def _blank(key: str) -> Page:
    return Page(key)


class Books:
    """The accounts, loans and cost ledger of some tenants. Amounts are nano-dollars, `now` is in Unix nanoseconds.

    `find` fetches the page of an account that is not here; whatever it raises leaves the books as they were.
    """

    def __init__(self, find: Callable[[str], Page] = _blank) -> None:
        self.limits: dict[tuple[str, str], Raised] = {}
        """The limits that people have set, by node and window."""
        self.steps: list[Step] = []
        """What has happened; whoever writes it down clears it."""
        self.ended = Remembered()
        self.posts = Remembered()
        self._find = find
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._debts: dict[str, Debt] = {}
        self._changed: list[Page] = []
        self._gone: list[str] = []
        self._lines: dict[Line, list[int]] = {}

    # Steps

    def reserve(self, ask: Ask, now: int) -> int:
        """Lends, and returns how much. Raises Short, Conflict."""
        call = ask.call
        if call in self._debts or call in self.ended:
            return self._again(ask)
        found = self._pages.get
        pages, names = [], []
        amount = ask.want if ask.want <= MOST else MOST
        for account in ask.accounts:
            key = account.key
            page = found(key) or self._fetched(key)
            pages.append(page)
            names.append(key)
            budget = account.budget
            mode = budget.mode
            if mode is _ADAPTIVE or mode is _STRICT:
                left = (self.limit(budget) if self.limits else budget.limit) - page.posted - page.pending
                if left < amount:
                    amount = left
        if amount < 0:
            amount = 0  # an overspent account has nothing left, and who wants nothing is not refused it
        if amount < ask.least:
            raise self._short(ask, pages)
        for page in pages:
            page.pending += amount
            page.lending += 1
            page.used = now
            if not page.changed:
                page.changed = True
                self._changed.append(page)
        keys = tuple(names)
        self._debts[call] = Debt(call, ask, keys, pages, amount, now)
        self.steps.append((_LEND, call, keys, amount, 0, ()))
        return amount

    def extend(self, call: str, amount: int, now: int) -> int | None:
        """Raises what a call is lent to `amount`, and returns how much it is lent now; None where that does not fit."""
        debt = self._debts.get(call)
        if debt is None or debt.state is not _PENDING or debt.ask is None:
            return None
        amount = min(amount, MOST)
        more = amount - debt.amount
        if more <= 0:
            return debt.amount
        for account, page in zip(debt.ask.accounts, debt.pages, strict=True):
            if account.hard and page.posted + page.pending + more > self.limit(account.budget):
                return None
        self._add(debt.pages, more, 0, now)
        debt.amount = amount
        debt.stale = True
        self.steps.append((_MORE, call, debt.keys, more, 0, ()))
        return amount

    def settle(self, call: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent], now: int) -> None:
        """Posts what a call has cost, and takes back what it was lent."""
        debt = self._debts.get(call)
        cost = _possible(cost)
        if debt is None:
            if call not in self.ended:
                self._end(_SETTLE, _POSTED, call, tuple(each.key for each in accounts), cost, spent, now)
        elif debt.state is _PENDING:
            self._repay(_SETTLE, _POSTED, debt, cost, spent, now)
        else:  # expired: all of the loan is posted
            self._end(_SETTLE, _POSTED, call, debt.keys, cost - debt.amount, spent, now)

    def void(self, call: str, now: int) -> None:
        """Takes back all that a call was lent."""
        debt = self._debts.get(call)
        if debt is not None:
            if debt.state is _PENDING:
                self._repay(_VOID, _VOIDED, debt, 0, (), now)
        elif call not in self.ended:
            self._end(_VOID, _VOIDED, call, (), 0, (), now)

    def expire(self, call: str, now: int) -> None:
        """Posts all that a call was lent, because nobody has come back to say what it has cost."""
        debt = self._debts.get(call)
        if debt is None or debt.state is not _PENDING:
            return
        for page in debt.pages:
            page.lending -= 1
        self._add(debt.pages, -debt.amount, debt.amount, now)
        debt.state, debt.at, debt.ask, debt.pages, debt.stale = _EXPIRED, now, None, (), True
        self.steps.append((_EXPIRE, call, debt.keys, -debt.amount, debt.amount, ()))

    def post(self, call: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent], now: int) -> None:
        """Posts what a call has cost that was lent nothing, whatever was lent to the same call and paid back."""
        if call in self.posts:
            return
        keys = tuple(each.key for each in accounts)
        cost = _possible(cost)
        self._add([self._pages.get(key) or self._fetched(key) for key in keys], 0, cost, now)
        self.posts.add(call, _POSTED)
        self.steps.append((_POST, call, keys, 0, cost, self._noted(spent)))

    # What is asked after

    def limit(self, budget: Budget) -> int:
        """The limit in force: what a person has set, unless the configuration has changed since."""
        raised = self.limits.get((budget.node, budget.window))
        return raised.limit if raised is not None and raised.instead_of == budget.limit else budget.limit

    def balance(self, account: Account) -> Balance:
        key = account.key
        page = self._pages.get(key)
        if page is None:
            page = self._fetched(key) if len(self._pages) < KEPT else self._find(key)
        limit = self.limit(account.budget) if self.limits else account.budget.limit
        return Balance(account, limit, page.posted, page.pending)

    def state(self, call: str) -> State | None:
        debt = self._debts.get(call)
        return debt.state if debt is not None else self.ended.get(call)

    def debts(self) -> list[Debt]:
        return list(self._debts.values())

    def pages(self) -> list[Page]:
        """Those that are here, which are all of which something is pending or has changed."""
        return list(self._pages.values())

    def lines(self) -> list[tuple[Line, Sums]]:
        """What has to be added to the cost ledger and was not taken yet."""
        return list(self._lines.items())

    # For whoever keeps them elsewhere

    def take(self, now: int) -> Changes:
        """What has changed since the last time. Pages stay `changed` until whoever takes them says otherwise."""
        pages, self._changed = self._changed, []
        gone, self._gone = self._gone, []
        lines, self._lines = self._lines, {}
        debts = [debt for debt in self._debts.values() if debt.stale]
        over, posts = self.ended.take(now), self.posts.take(now)
        return Changes(pages, debts, gone, list(lines.items()), over, posts.get(_POSTED, []))

    def sweep(self, most: int) -> None:
        """Looks at the pages that came first, and lets go of those that can be found again when they are needed."""
        for _ in range(min(most, len(self._pages) - KEPT)):
            key, page = self._pages.popitem(last=False)
            if page.changed or page.lending:
                self._pages[key] = page

    def owe(self, debt: Debt) -> None:
        """Enters a debt that was kept elsewhere; what its accounts have pending is on their pages already."""
        self._debts[debt.call] = debt
        if debt.state is _PENDING:
            debt.pages = [self._pages.get(key) or self._fetched(key) for key in debt.keys]
            for page in debt.pages:
                page.lending += 1

    def again(self, step: Step, keys: Iterable[str], owed: bool, lines: Iterable[tuple[Line, Sums]], at: int) -> None:
        """Does once more what a step of earlier books did: to the pages `keys`, to its debt if `owed`, to `lines`."""
        kind, call, all_keys, pending, posted, _ = step
        self._add([self._pages.get(key) or self._fetched(key) for key in keys], pending, posted, at)
        for line, sums in lines:
            self._sum(line, sums)
        if not owed:
            return
        debt = self._debts.get(call)
        match Kind(kind):
            case Kind.LEND:
                self.owe(Debt(call, None, all_keys, (), pending, at))
            case Kind.MORE if debt is not None:
                debt.amount += pending
                debt.stale = True
            case Kind.EXPIRE if debt is not None:
                for page in debt.pages:
                    page.lending -= 1
                debt.state, debt.at, debt.pages, debt.stale = _EXPIRED, at, (), True
            case Kind.POST:
                self.posts.add(call, _POSTED)
            case Kind.SETTLE | Kind.VOID:
                for page in debt.pages if debt is not None else ():
                    page.lending -= 1
                self._close(call, _POSTED if kind == Kind.SETTLE else _VOIDED)

    # How

    def _again(self, ask: Ask) -> int:
        debt = self._debts.get(ask.call)
        if debt is None or debt.state is not _PENDING or debt.ask is None:
            raise Conflict(f"What the call {ask.call} was lent is settled already.")
        before = debt.ask
        keys = tuple(each.key for each in ask.accounts)
        if (ask.tenant, ask.want, ask.least, keys) != (before.tenant, before.want, before.least, debt.keys):
            raise Conflict(f"The call {ask.call} has asked for something else before.")
        return debt.amount

    def _short(self, ask: Ask, pages: Sequence[Page]) -> Short:
        hard = [
            Balance(account, self.limit(account.budget), page.posted, page.pending)
            for account, page in zip(ask.accounts, pages, strict=True)
            if account.hard
        ]
        self.sweep(2 * len(pages))
        if all(max(each.limit - each.posted, 0) >= ask.least for each in hard):
            return Short(min(hard, key=lambda each: each.limit - each.posted - each.pending), True)
        return Short(min(hard, key=lambda each: each.limit - each.posted), False)

    def _fetched(self, key: str) -> Page:
        page = self._pages[key] = self._find(key)
        return page

    def _add(self, pages: Iterable[Page], pending: int, posted: int, now: int) -> None:
        for page in pages:
            page.pending += pending
            page.posted += posted
            page.used = now
            if not page.changed:
                page.changed = True
                self._changed.append(page)

    def _repay(self, kind: str, state: State, debt: Debt, cost: int, spent: Sequence[Spent], now: int) -> None:
        """Ends a debt that is pending."""
        amount = debt.amount
        for page in debt.pages:
            page.pending -= amount
            page.posted += cost
            page.lending -= 1
            page.used = now
            if not page.changed:
                page.changed = True
                self._changed.append(page)
        self._close(debt.call, state)
        self.steps.append((kind, debt.call, debt.keys, -amount, cost, self._noted(spent) if spent else ()))

    def _end(
        self, kind: str, state: State, call: str, keys: Keys, posted: int, spent: Sequence[Spent], now: int
    ) -> None:
        """Ends what is not pending, or was never known."""
        self._add([self._pages.get(key) or self._fetched(key) for key in keys], 0, posted, now)
        self._close(call, state)
        self.steps.append((kind, call, keys, 0, posted, self._noted(spent)))

    def _close(self, call: str, state: State) -> None:
        debt = self._debts.pop(call, None)
        if debt is not None:
            debt.state = state
            if debt.kept:
                self._gone.append(call)
        self.ended.add(call, state)

    def _noted(self, spent: Sequence[Spent]) -> list[tuple[Line, Sums]]:
        noted: list[tuple[Line, Sums]] = []
        for each in spent:
            line: Line = each[:8]  # DIMENSIONS, and METRICS after them
            sums: Sums = each[8:]
            if max(sums) > MOST:
                sums = tuple(map(_possible, sums))
            noted.append((self._sum(line, sums), sums))
        return noted

    def _sum(self, line: Line, sums: Sums) -> Line:
        found = self._lines.get(line)
        if found is None:
            line = tuple(map(_text, line))
            self._lines[line] = found = self._lines.get(line) or [0] * len(sums)
        found[:] = map(add, found, sums)
        return line


def _possible(amount: int) -> int:
    """An amount that can be kept. What a target says of itself may be anything."""
    return amount if 0 <= amount <= MOST else max(0, min(amount, MOST))


def _text(text: str) -> str:
    """A text that can be kept: JSON can name half of a pair of surrogates, which UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
