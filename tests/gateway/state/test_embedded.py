"""The store of one process: its file, what shares a write, what leaves memory, and what happens when the file fails."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.state import StateUnusable, embedded, journal, open_state
from gateway.state.embedded import EmbeddedStore
from policies.books import KEPT, MOST_REMEMBERED
from policies.budgets import Conflict, Loan, Raised, Short, StoreUnavailable
from policies.money import MOST
from tests.support.process import ROOT
from tests.support.stores import DAY, NOW, ask, budget, copied, in_memory, paying, spent, standing, unseen

ACCOUNTS = paying(budget("acme", 10**6), budget("acme/bot", 10**6))
SESSIONS = budget("acme/bot", 100, window="session")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
async def store(folder: Path) -> AsyncIterator[EmbeddedStore]:
    opened = EmbeddedStore(folder / "state.db", fold_every=0.0)
    yield opened
    await opened.close()


async def until_folded(store: EmbeddedStore) -> None:
    await asyncio.sleep(0)  # in which the last turn is written
    async with asyncio.timeout(20):
        while store._taken or store._journal.seq > store._up_to:
            await asyncio.sleep(0.001)


# The file


async def test_state_is_opened_by_its_url_and_its_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "var" / "weighbridge.db"
    state = open_state(f"sqlite:///{path}")
    state.budgets.post("c1", "acme", ACCOUNTS, 5, [])
    await asyncio.sleep(0)
    files = sorted(path.parent.iterdir())
    assert [each.name for each in files] == [f"weighbridge.db{suffix}" for suffix in ("", "-lock", "-shm", "-wal")]
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    await state.close()
    await state.close()


def test_a_place_that_nobody_knows_is_refused() -> None:
    with pytest.raises(StateUnusable):
        open_state("postgres://localhost/weighbridge")


async def test_no_two_processes_have_one_file(folder: Path) -> None:
    store = EmbeddedStore(folder / "state.db")
    with pytest.raises(StateUnusable, match="another process has it") as refused:
        EmbeddedStore(folder / "state.db")
    assert refused.value.held
    await store.close()
    await EmbeddedStore(folder / "state.db").close()


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    other = sqlite3.connect(path, isolation_level=None)
    yield other
    other.close()


def _nothing_of_ours(path: Path) -> None:
    path.write_bytes(b"What is this? " * 1000)


def _of_something_else(path: Path) -> None:
    with opened(path) as other:
        other.execute("CREATE TABLE customers (name TEXT)")


def _newer(path: Path) -> None:
    with opened(path) as other:
        other.execute(f"PRAGMA user_version = {journal._VERSION + 1}")


def _overwritten(path: Path) -> None:
    """A page of it has gone bad, in the middle of the accounts."""
    whole = path.read_bytes()
    page = whole.index(b"acme/bot|session|=s250") // 4096 * 4096
    path.write_bytes(whole[:page] + b"\xff" * 4096 + whole[page + 4096 :])


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _emptied_journal(path: Path) -> None:
    with opened(path) as other:
        other.execute("DELETE FROM journal")


def _nonsense(path: Path) -> None:
    with opened(path) as other:
        other.execute("UPDATE journal SET steps = 'nonsense'")


def _of_another_shape(path: Path) -> None:
    with opened(path) as other:
        other.execute("""UPDATE journal SET steps = '[{}, [], [["lend", "c", "accounts", 1, 0, []]]]'""")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_nothing_of_ours, "is damaged"),
        (_newer, "newer version"),
        (_overwritten, "is damaged"),
        (_cut, "is damaged"),
        (_a_folder, "Is a directory"),
        (_emptied_journal, "is damaged"),
        (_nonsense, "is damaged"),
        (_of_another_shape, "is damaged"),
    ],
)
async def test_a_file_that_cannot_be_trusted_is_refused_and_left_alone(
    folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    path = folder / "state.db"
    store = EmbeddedStore(path)
    for number in range(500):
        store.post(f"c{number}", "acme", paying(SESSIONS, session=f"s{number}"), 1, [spent(1, session=f"s{number}")])
    await store.close()
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    for _ in range(2):  # it is given back, too
        with pytest.raises(StateUnusable, match=words) as refused:
            EmbeddedStore(path)
        assert str(path) in str(refused.value)
        assert not refused.value.held
    assert not before or path.read_bytes() == before


async def test_a_database_of_something_else_is_refused(folder: Path) -> None:
    _of_something_else(folder / "state.db")
    with pytest.raises(StateUnusable, match="something else"):
        EmbeddedStore(folder / "state.db")


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file")
    with pytest.raises(StateUnusable, match=r"exists|directory"):
        EmbeddedStore(tmp_path / "var" / "weighbridge.db")


# Turns


async def test_what_calls_are_lent_in_one_turn_shares_one_write_and_they_wait_for_it(store: EmbeddedStore) -> None:
    before = store._journal.seq
    waiting = [asyncio.ensure_future(store.reserve(ask(f"c{number}", ACCOUNTS, 5))) for number in range(10)]
    assert store._journal.seq == before
    assert not any(each.done() for each in waiting)
    await asyncio.gather(*waiting)
    assert store._journal.seq == before + 1


async def test_what_is_settled_is_written_in_the_same_turn_although_nobody_waits(store: EmbeddedStore) -> None:
    loans = [await store.reserve(ask(f"c{number}", ACCOUNTS, 5)) for number in range(3)]
    before = store._journal.seq
    for loan in loans:
        store.settle(loan, 1, [])
    await asyncio.sleep(0)
    assert store._journal.seq == before + 1


async def test_what_no_budget_pays_is_written_a_little_later(folder: Path) -> None:
    store = EmbeddedStore(folder / "state.db", fold_every=60.0)
    before = store._journal.seq
    for number in range(3):
        store.post(f"c{number}", "acme", (), 1, [spent(1)])
        await asyncio.sleep(0)
    assert store._journal.seq == before
    async with asyncio.timeout(10):
        while store._journal.seq == before:
            await asyncio.sleep(0.001)
    left = EmbeddedStore(copied(store.path))
    (row,) = await left.spend(["acme"], DAY, DAY, [], {})
    assert (row["cost"], store._journal.seq) == (3, before + 1)
    await left.close()
    await store.close()


async def test_time_is_told_by_the_clock_that_was_given(folder: Path) -> None:
    store = EmbeddedStore(folder / "state.db", lambda: NOW)
    assert store.now_ns() == NOW
    await store.close()


# Memory


async def test_a_hundred_thousand_sessions_leave_memory_and_nothing_of_them_is_lost(store: EmbeddedStore) -> None:
    count, most = 100_000, 0
    for number in range(count):
        accounts = paying(SESSIONS, session=f"s-{number}")
        store.post(f"c-{number}", "acme", accounts, 1, [spent(1, session=f"s-{number}")])
        if number % 500 == 0:
            await until_folded(store)
            most = max(most, len(store._books.pages()))
    await until_folded(store)
    assert most <= KEPT + 2000
    assert len(store._books.posts) <= MOST_REMEMBERED + 1000
    assert store._books.lines() == []
    for number in (0, 777, count - 1):
        assert await standing(store, paying(SESSIONS, session=f"s-{number}")) == [(1, 0)]
    assert [each.account.window_id for each in await store.sessions(SESSIONS, 2)] == ["=s-99999", "=s-99998"]
    rows = await store.spend(["acme"], DAY, DAY, ["model"], {})
    assert [(row["calls"], row["cost"]) for row in rows] == [(count, count)]


async def test_sessions_that_are_only_refused_or_looked_at_leave_memory(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policies.books.KEPT", 100)
    for number in range(2000):
        accounts = paying(SESSIONS, session=f"s-{number}")
        with pytest.raises(Short):
            await store.reserve(ask(f"c-{number}", accounts, 101))
        assert store.known(paying(SESSIONS, session=f"t-{number}")) is not None
    assert len(store._books.pages()) <= 110


async def test_the_log_of_the_database_begins_anew_under_load(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr(embedded, "_LONG_LOG", 200)
    log, pages, longest = store.path.with_name("state.db-wal"), 0, 0
    for number in range(4000):
        loan = await store.reserve(ask(f"c-{number}", ACCOUNTS, 1))
        store.settle(loan, 1, [spent(1, model="m" * 2000)])
        pages += 3  # at least: a new one, the one above it, and the first
        longest = max(longest, log.stat().st_size)
    assert longest < pages * 4096 / 2
    assert await standing(store, ACCOUNTS) == [(4000, 0)] * 2


# Questions


async def test_what_was_spent_is_told_exactly_while_it_is_being_folded(store: EmbeddedStore) -> None:
    total = 0
    for number in range(300):
        for each in range(3):
            store.post(f"c-{number}-{each}", "acme", ACCOUNTS, 1, [spent(1, session=f"s-{number % 7}")])
        total += 3
        if number % 5 == 0:
            asked = asyncio.ensure_future(store.spend(["acme"], DAY, DAY, [], {}))
            await asyncio.sleep(0)  # in which the question is put
            store.post(f"d-{number}", "acme", ACCOUNTS, 1, [spent(1)])
            (row,) = await asked
            assert row["cost"] == total
            total += 1
        await asyncio.sleep(0)
    assert await standing(store, ACCOUNTS) == [(total, 0)] * 2


async def test_costs_that_make_no_sense_can_still_be_summed_up(store: EmbeddedStore) -> None:
    for number in range(1100):
        store.post(f"c{number}", "acme", (), MOST, [spent(MOST, session=f"s-{number}")])
    await until_folded(store)
    (row,) = await store.spend(["acme"], DAY, DAY, ["agent"], {})
    assert (row["cost"], row["calls"]) == (1100 * MOST, 1100)


async def test_a_question_about_what_the_cost_ledger_does_not_have_is_refused(store: EmbeddedStore) -> None:
    for group_by, where in ((["cost"], {}), ([], {"1 = 1; --": "x"})):
        with pytest.raises(ValueError, match="has no"):
            await store.spend(["acme"], DAY, DAY, group_by, where)


# Where the file fails


async def until_mended(store: EmbeddedStore) -> None:
    async with asyncio.timeout(20):
        while store.failure is not None:
            await asyncio.sleep(0.001)


async def test_while_the_file_cannot_be_written_nobody_is_lent_anything_and_nothing_is_lost(folder: Path) -> None:
    store = EmbeddedStore(folder / "state.db", fold_every=0.01)
    loan, other = await store.reserve(ask("c1", ACCOUNTS, 50)), await store.reserve(ask("c2", ACCOUNTS, 50))
    store._journal._db.execute("PRAGMA query_only = ON")
    for call in ("c3", "c4"):  # the first one finds it out
        with pytest.raises(StoreUnavailable, match="readonly"):
            await store.reserve(ask(call, ACCOUNTS, 5))
        store.void(unseen(call, ACCOUNTS))
    with pytest.raises(StoreUnavailable):
        await store.extend(other, 60)
    with pytest.raises(StoreUnavailable):
        await store.raise_limit(Raised("acme", "day", 1, 10**6, "dana", NOW))
    assert store.failure is not None
    assert str(store.path) in store.failure
    store.settle(loan, 20, [spent(20)])
    store.void(other)
    store.post("c5", "acme", ACCOUNTS, 3, [spent(3)])
    await asyncio.sleep(0.05)
    assert await standing(store, ACCOUNTS) == [(23, 0)] * 2
    assert (await store.balances(ACCOUNTS))[0].limit == 10**6
    (row,) = await store.spend(["acme"], DAY, DAY, [], {})
    assert row["cost"] == 23
    store._journal._db.execute("PRAGMA query_only = OFF")
    await until_mended(store)
    assert (await store.reserve(ask("c6", ACCOUNTS, 5))).amount == 5
    with pytest.raises(Conflict):
        await store.reserve(ask("c3", ACCOUNTS, 5))
    killed = copied(store.path)
    await store.close()
    after = EmbeddedStore(killed)
    assert await standing(after, ACCOUNTS) == [(28, 0)] * 2
    for call in ("c1", "c2", "c3"):
        after.settle(unseen(call, ACCOUNTS), 50, [spent(50)])
    assert await standing(after, ACCOUNTS) == [(28, 0)] * 2
    await after.close()


async def test_a_fold_that_fails_halfway_is_made_up_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FOLDED_AT_ONCE", 1)
    store = EmbeddedStore(folder / "state.db", fold_every=0.0)
    lines = [spent(1, session=f"s-{number}") for number in range(5)]
    loan = await store.reserve(ask("c1", ACCOUNTS, 5))
    store.post("c2", "acme", ACCOUNTS, 5, lines)
    async with asyncio.timeout(20):
        while not (store._taken and 0 < len(store._taken[0].lines) < 5):
            await asyncio.sleep(0)
    store._journal._db.execute("PRAGMA query_only = ON")
    async with asyncio.timeout(20):
        while store.failure is None:
            await asyncio.sleep(0)
    store.settle(loan, 5, lines)
    store._journal._db.execute("PRAGMA query_only = OFF")
    await until_mended(store)
    killed = copied(store.path)
    await store.close()
    after = EmbeddedStore(killed)
    assert await standing(after, ACCOUNTS) == [(10, 0)] * 2
    rows = await after.spend(["acme"], DAY, DAY, ["session"], {})
    assert [row["cost"] for row in rows] == [2] * 5
    await after.close()


async def test_a_file_that_is_taken_away_is_missed_and_used_again_when_it_is_back(store: EmbeddedStore) -> None:
    loan = await store.reserve(ask("c1", ACCOUNTS, 5))
    store.path.rename(store.path.with_name("elsewhere"))
    store.settle(loan, 5, [])
    async with asyncio.timeout(20):
        while store.failure is None:
            await asyncio.sleep(0.001)
    assert "moved or deleted" in store.failure
    with pytest.raises(StoreUnavailable):
        await store.reserve(ask("c2", ACCOUNTS, 5))
    with pytest.raises(StoreUnavailable):
        await store.spend(["acme"], DAY, DAY, [], {})
    assert not store.path.exists()
    store.path.with_name("elsewhere").rename(store.path)
    await until_mended(store)
    assert (await store.reserve(ask("c2", ACCOUNTS, 5))).amount == 5


async def test_an_account_that_cannot_be_read_stops_all_lending_and_its_costs_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddedStore(folder / "state.db")
    for number in range(500):
        store.post(f"c{number}", "acme", paying(SESSIONS, session=f"s{number}"), 1, [])
    await store.close()
    _overwritten(store.path)
    monkeypatch.setattr(journal, "_QUICKLY_CHECKED", 0)  # as a larger file
    store = EmbeddedStore(folder / "state.db", fold_every=0.01)
    accounts = paying(SESSIONS, session="s250")
    with pytest.raises(StoreUnavailable, match="malformed"):
        await store.reserve(ask("c1", accounts, 1))
    assert store.known(accounts) is None
    with pytest.raises(StoreUnavailable):
        await store.balances(accounts)
    store.settle(unseen("c2", accounts), 1, [])
    store.post("c3", "acme", accounts, 1, [])
    with pytest.raises(StoreUnavailable):
        await store.reserve(ask("c4", ACCOUNTS, 1))
    await asyncio.sleep(0.05)
    assert store.failure is not None
    await store.close()


async def test_whatever_goes_wrong_with_one_wish_those_of_the_same_turn_are_answered(store: EmbeddedStore) -> None:
    nobodys = paying(SESSIONS, session="\ud800")  # SQLite cannot even be asked for it
    asks = ask("c1", ACCOUNTS, 5), ask("c2", nobodys, 5), ask("c3", ACCOUNTS, 5)
    async with asyncio.timeout(5):
        first, odd, last = await asyncio.gather(*map(store.reserve, asks), return_exceptions=True)
    assert isinstance(odd, UnicodeEncodeError)
    for lent in (first, last):
        assert isinstance(lent, Loan)
        store.settle(lent, 5, [])
    assert await standing(store, ACCOUNTS) == [(10, 0)] * 2


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.full_state", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "refused\nrecovered\n"), ended.stderr


# The end


async def test_after_its_end_a_store_lends_nothing_and_never_raises_where_it_must_not(folder: Path) -> None:
    store = EmbeddedStore(folder / "state.db")
    loan = await store.reserve(ask("c1", ACCOUNTS, 5))
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.reserve(ask("c2", ACCOUNTS, 5))
    with pytest.raises(StoreUnavailable):
        await store.extend(loan, 6)
    store.settle(loan, 5, [])
    store.void(loan)
    store.post("c3", "acme", ACCOUNTS, 5, [])
    await asyncio.sleep(0)
    await store.close()


async def test_what_is_lent_and_settled_in_the_last_turn_is_there_afterwards(folder: Path) -> None:
    store = EmbeddedStore(folder / "state.db")
    lending = asyncio.ensure_future(store.reserve(ask("c1", ACCOUNTS, 5)))
    store.post("c2", "acme", ACCOUNTS, 3, [spent(3)])
    await asyncio.sleep(0)
    await store.close()
    assert (await lending).amount == 5
    store = EmbeddedStore(folder / "state.db")
    assert await standing(store, ACCOUNTS) == [(8, 0)] * 2
    await store.close()
