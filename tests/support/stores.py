"""Places where budgets are kept, as tests of every store know them: opened, left by a killed process, taken over."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from gateway.state import journal
from gateway.state.embedded import FOLD_EVERY, EmbeddedStore
from policies import books
from policies.budgets import Account, Ask, Budget, Loan, Mode, Spent, Store, Window, account
from policies.money import NANO

NOW = 1_763_700_000 * NANO
"""2025-11-21, 04:40 UTC: when the calls of these tests are admitted."""
DAY = "2025-11-21"


class Place(Protocol):
    """Where one store keeps what it keeps."""

    async def open(self) -> Store:
        """The store, for the process that comes next: the one before has closed it, or has left it."""
        ...

    async def leave(self, store: Store) -> None:
        """The process that has this store ends without another word: whatever it had not been told is done is not.

        Once the place is open again its loans have expired.
        """
        ...


class EmbeddedPlace:
    """A database file."""

    def __init__(self, folder: Path, fold_every: float = FOLD_EVERY) -> None:
        self.path = folder / "state.db"
        self._fold_every = fold_every

    async def open(self) -> Store:
        return EmbeddedStore(self.path, fold_every=self._fold_every)

    async def leave(self, store: Store) -> None:
        """What a kill would leave here and now is what goes on; the store itself ends elsewhere, in peace."""
        self.path = copied(self.path)
        await store.close()


_copies = itertools.count()


def copied(path: Path) -> Path:
    """The files of a database, in use or not, as a kill would leave them here and now."""
    copy = path.with_name(f"copy-{next(_copies)}.db")
    for suffix in ("", "-wal"):
        if path.with_name(path.name + suffix).exists():
            shutil.copyfile(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
    return copy


_SINCE = {
    2: ("courses", "buckets"),
    3: ("approvals", "answers", "messages", "grants", "uses", "standings"),
    4: ("keys", "definitions"),
}
"""Tables by the version of the file that has brought them."""


def as_of_version(path: Path, version: int) -> None:
    """Makes a closed file what an earlier version would have left."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for table in (each for since, tables in _SINCE.items() if since > version for each in tables):
            other.execute(f"DROP TABLE {table}")
        other.execute(f"PRAGMA user_version = {version}")


@contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """A folder of which no disk knows, where the system has such: tests end hundreds of stores, which wait for it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as quick:
        yield Path(quick)


@asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[Place]:
    with in_memory(folder) as quick:
        yield EmbeddedPlace(quick)


@asynccontextmanager
async def embedded_folding(folder: Path) -> AsyncIterator[Place]:
    """What has changed is folded after each turn, a row at a time, and leaves memory."""
    with in_memory(folder) as quick, pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "FOLDED_AT_ONCE", 1)
        patch.setattr(journal, "DROPPED_AT_ONCE", 1)
        patch.setattr(books, "KEPT", 1)
        yield EmbeddedPlace(quick, 0.0)


PLACES: dict[str, Callable[[Path], AbstractAsyncContextManager[Place]]] = {
    "embedded": embedded,
    "embedded, folding": embedded_folding,
}
"""Every store there is: its name, and how a place is had that nobody has used before, with a folder for its files."""


def budget(
    node: str = "acme", limit: int = 100, *, window: Window = "day", mode: Mode = Mode.STRICT, warn_at: float = 80
) -> Budget:
    return Budget(node, window, limit, mode, warn_at)


def paying(*budgets: Budget, session: str | None = None) -> tuple[Account, ...]:
    """The accounts of a call that is admitted at NOW."""
    return tuple(account(each, NOW, session) for each in budgets)


def ask(call: str, accounts: tuple[Account, ...], want: int, least: int | None = None) -> Ask:
    """All of it or nothing, where `least` is not given."""
    return Ask(call, "acme", accounts, want, want if least is None else least)


def unseen(call: str, accounts: tuple[Account, ...]) -> Loan:
    """What a caller gives back that never learned what it was lent."""
    return Loan(call, "acme", accounts, 0)


def spent(cost: int = 0, *, agent: str = "bot", session: str = "", model: str = "m", day: str = DAY) -> Spent:
    """One line of the cost ledger."""
    return Spent(day, "acme", "", agent, session, model, "t", "", input_tokens=7, output_tokens=3, cost=cost)


async def standing(store: Store, accounts: tuple[Account, ...]) -> list[tuple[int, int]]:
    """Posted and pending of each account."""
    return [(each.posted, each.pending) for each in await store.balances(accounts)]
