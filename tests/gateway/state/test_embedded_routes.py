"""Courses and counts of one process, on a clock that is held, in a file that may fail or be killed under them."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.state import StateUnusable, journal, open_state
from gateway.state.embedded import EmbeddedStore
from gateway.state.routes import EmbeddedRoutes
from routing.course import BUCKET, KEPT, Bucket, Course
from routing.errors import StoreUnavailable
from tests.gateway.state.routes_suite import AT, CALL, ERROR, EVER, RoutesSuite, course, total
from tests.support import teller
from tests.support.process import ROOT
from tests.support.steps import longest_step
from tests.support.stores import as_of_version, ask, budget, copied, in_memory, paying, spent, standing


class HeldStage:
    """Time passes when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ns = AT * 10**9
        self.budgets = EmbeddedStore(path, fold_every=0.005)
        self.store = EmbeddedRoutes(self.budgets, lambda: self._ns)

    def advance(self, seconds: float) -> None:
        self._ns += round(seconds * 10**9)

    async def restart(self) -> None:
        await self.close()
        self.budgets = EmbeddedStore(self.path, fold_every=0.005)
        self.store = EmbeddedRoutes(self.budgets, lambda: self._ns)

    async def kill(self) -> None:
        """What a kill would leave here and now is what goes on; the stores themselves end elsewhere, in peace."""
        self.path = copied(self.path)
        await self.restart()

    async def close(self) -> None:
        await self.store.close()
        await self.budgets.close()

    async def mended(self) -> None:
        async with asyncio.timeout(20):
            while self.store.failure is not None:
                await asyncio.sleep(0.005)

    @property
    def database(self) -> sqlite3.Connection:
        return self.budgets._journal._db


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
async def stage(folder: Path) -> AsyncIterator[HeldStage]:
    opened = HeldStage(folder / "state.db")
    yield opened
    await opened.close()


class TestEmbeddedRoutes(RoutesSuite):
    """The suite of all stores."""


async def test_a_process_of_its_own_shares_with_nobody_and_always_knows(stage: HeldStage) -> None:
    assert not stage.store.shared
    assert stage.store.failure is None
    before = stage.store.heard_ns
    assert stage.store.heard_ns >= before


async def test_what_is_flushed_is_there_after_a_kill_and_what_is_not_is_gone(stage: HeldStage) -> None:
    assert await stage.store.steer("r", course(1), 0)
    stage.store.count("r", {CALL: 1})
    await stage.store.flush()
    stage.store.count("r", {CALL: 2})
    await stage.kill()
    assert await stage.store.courses() == {"r": course(1)}
    stage.store.count("r", {CALL: 4})
    await stage.store.flush()
    stage.advance(BUCKET)
    assert await stage.store.buckets("r", 0, EVER) == [Bucket(AT, {CALL: 5})]


async def test_wherever_a_process_is_killed_a_step_is_there_whole_or_not_at_all(stage: HeldStage) -> None:
    epoch, flushed = 0, Counter[str]()
    left: list[tuple[Path, set[int], list[Counter[str]]]] = []
    """What may be true of the files as they are before a statement is carried out."""

    def traced(statement: str) -> None:
        if not statement.startswith(("SELECT", "--")):
            left.append((copied(stage.path), {epoch, epoch + steering}, [flushed, flushed + flushing]))

    stage.database.set_trace_callback(traced)
    for number in range(6):
        flushing, steering = Counter({CALL: 1, ERROR: number + 1}), 0
        stage.store.count("r", flushing)
        await stage.store.flush()
        flushed, flushing, steering = flushed + flushing, Counter(), 1
        assert await stage.store.steer("r", course(epoch + 1), epoch)
        epoch += 1
        stage.advance(4)
    stage.database.set_trace_callback(None)
    assert len(left) > 30
    for path, epochs, counts in left:
        budgets = EmbeddedStore(path)
        store = EmbeddedRoutes(budgets, lambda: (AT + 3600) * 10**9)
        assert (await store.courses()).get("r", Course(0)).epoch in epochs
        assert total(await store.buckets("r", 0, EVER)) in counts
        await budgets.close()


async def test_whichever_statement_fails_nothing_is_counted_twice_and_nothing_is_lost(stage: HeldStage) -> None:
    epoch, failed = 0, Counter[str]()
    left = 0

    def interrupt() -> bool:
        stage.database.set_progress_handler(None, 1)
        return True

    def traced(statement: str) -> None:
        nonlocal left
        left -= not statement.startswith(("SELECT", "--"))
        if left == 0:
            stage.database.set_progress_handler(interrupt, 1)

    for number in range(60):
        stage.store.count("r", {CALL: 1})
        stage.store.count("s" if number % 3 else "r", {ERROR: 1})
        for what in ("flush", "steer"):
            left = number % 6 + 1
            stage.database.set_trace_callback(traced)
            try:
                if what == "flush":
                    await stage.store.flush()
                else:
                    epoch += await stage.store.steer("r", course(epoch + 1), epoch)
            except StoreUnavailable:
                failed[what] += 1
            stage.database.set_trace_callback(None)
            stage.database.set_progress_handler(None, 1)
            if number % 4:
                await stage.mended()
        stage.advance(3)
    await stage.mended()
    await stage.store.flush()
    stage.advance(BUCKET)
    assert min(failed["flush"], failed["steer"]) > 10
    for _ in range(2):
        assert (await stage.store.courses())["r"].epoch == epoch > 0
        assert total(await stage.store.buckets("r", 0, EVER)) == {CALL: 60, ERROR: 20}
        assert total(await stage.store.buckets("s", 0, EVER)) == {ERROR: 40}
        await stage.restart()


@pytest.mark.parametrize("later", [0, BUCKET])
async def test_a_flush_that_is_in_the_file_although_it_is_said_to_have_failed_is_counted_once(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    write = stage.budgets._journal.write

    def written_and_failed(statements: Any) -> None:
        write(statements)
        raise sqlite3.OperationalError("disk I/O error")

    stage.store.count("r", {CALL: 1})
    await stage.store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(stage.budgets._journal, "write", written_and_failed)
        stage.store.count("r", {CALL: 2})
        stage.store.count("s", {CALL: 4})
        with pytest.raises(StoreUnavailable, match="disk I/O error"):
            await stage.store.flush()
    await stage.mended()
    stage.advance(later)
    await stage.store.flush()
    stage.advance(BUCKET)
    assert total(await stage.store.buckets("r", 0, EVER)) == {CALL: 3}
    assert total(await stage.store.buckets("s", 0, EVER)) == {CALL: 4}


async def test_a_change_is_told_when_it_is_on_the_disk_and_not_before(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    broken = True

    def fsync(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        if broken:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        await stage.store.steer("r", course(1), 0)
    broken = False
    assert await stage.store.steer("r", course(1), 0)
    assert synced == [f"{stage.path}-wal"] * 2


async def test_while_the_file_is_away_nothing_is_changed_and_what_is_counted_waits(stage: HeldStage) -> None:
    assert await stage.store.steer("r", course(1), 0)
    away = stage.path.with_name("away")
    stage.path.rename(away)
    stage.store.count("r", {CALL: 1})
    with pytest.raises(StoreUnavailable, match=r"state\.db cannot be used"):
        await stage.store.flush()
    with pytest.raises(StoreUnavailable, match="moved or deleted"):
        await stage.store.steer("r", course(2), 1)
    with pytest.raises(StoreUnavailable, match="moved or deleted"):
        await stage.store.buckets("r", 0, EVER)
    assert await stage.store.courses() == {"r": course(1)}
    stage.advance(5 * BUCKET)
    away.rename(stage.path)
    await stage.mended()
    await stage.store.flush()
    assert await stage.store.steer("r", course(2), 1)
    stage.advance(BUCKET)
    assert await stage.store.buckets("r", 0, EVER) == [Bucket(AT + 50, {CALL: 1})]


async def test_buckets_are_kept_for_three_days_and_then_deleted_a_few_at_a_time(stage: HeldStage) -> None:
    for _ in range(200):
        stage.store.count("r", {CALL: 1})
        await stage.store.flush()
        stage.advance(BUCKET)
    stage.advance(KEPT - 100 * BUCKET)
    left = []
    for _ in range(5):
        stage.store.count("s", {CALL: 1})
        await stage.store.flush()
        left.append(len(await stage.store.buckets("r", 0, EVER)))
        stage.advance(BUCKET)
    assert left == [140, 99, 98, 97, 96]


async def test_a_weeks_flushes_do_not_let_the_log_of_the_database_grow(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No budget is configured, so that nothing but flushes is ever written."""
    monkeypatch.setattr("gateway.state.embedded._CHECKPOINT_EVERY", 0.0)
    sizes = []
    for number in range(600):
        stage.store.count("r", {f"arm-{each}|{CALL}": number for each in range(30)})
        await stage.store.flush()
        stage.advance(1)
        if number % 10 == 9:
            await asyncio.sleep(0.01)
            sizes.append(stage.path.with_name("state.db-wal").stat().st_size)
    assert max(sizes[30:]) <= 2 * max(sizes[:30])


async def test_a_flush_of_many_routes_holds_the_event_loop_for_a_few_milliseconds(stage: HeldStage) -> None:
    counts = {f"arm-{arm}|{what}": 12_345 for arm in range(3) for what in range(12)}
    async with longest_step() as step:
        for _ in range(30):
            for number in range(20):
                stage.store.count(f"route-{number}", counts)
            await stage.store.flush()
            stage.advance(1)
            await asyncio.sleep(0)
    assert step.seconds < 0.05


async def test_budgets_and_routes_share_the_file_in_peace(stage: HeldStage) -> None:
    accounts = paying(budget("acme", 10_000))
    for number in range(200):
        loan = await stage.budgets.reserve(ask(f"c{number}", accounts, 2))
        stage.store.count("r", {CALL: 1})
        if number % 3 == 0:
            await stage.store.flush()
            assert await stage.store.steer("r", course(number // 3 + 1), number // 3)
        stage.budgets.settle(loan, 1, [spent(1)])
        if number % 20 == 0:
            await asyncio.sleep(0.006)
    await asyncio.sleep(0.006)
    await stage.kill()
    assert await standing(stage.budgets, accounts) == [(200, 0)]
    assert (await stage.store.courses())["r"].epoch == 67
    stage.advance(BUCKET)
    assert total(await stage.store.buckets("r", 0, EVER)) == {CALL: 199}


# Files


async def test_a_file_of_an_earlier_version_is_opened_with_all_that_is_in_it(folder: Path) -> None:
    path = folder / "state.db"
    accounts = paying(budget("acme", 1000))
    store = EmbeddedStore(path)
    store.post("c", "acme", accounts, 7, [spent(7)])
    await store.close()
    as_of_version(path, 1)  # which knew nothing of routes
    for epoch in range(2):
        state = open_state(f"sqlite:///{path}")
        state.begin()
        assert await standing(state.budgets, accounts) == [(7, 0)]
        assert await state.routes.steer("r", course(epoch + 1), epoch)
        state.routes.count("r", {CALL: 1})
        await state.close()
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (journal._VERSION,)
        assert other.execute("SELECT count(*) FROM buckets").fetchone()[0] in (1, 2)
    other.close()


async def test_a_process_that_dies_while_it_brings_a_file_up_to_date_leaves_it_as_it_was(folder: Path) -> None:
    path = folder / "state.db"
    await EmbeddedStore(path).close()
    as_of_version(path, 1)  # which knew nothing of routes
    left: list[Path] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **named: Any) -> sqlite3.Connection:
        found: sqlite3.Connection = connect(*arguments, **named)
        found.set_trace_callback(lambda _: left.append(copied(path)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", traced)
        store = EmbeddedStore(path)
    await store.close()
    assert len(left) > 5
    for each in left:
        budgets = EmbeddedStore(each)
        assert await EmbeddedRoutes(budgets).steer("r", course(1), 0)
        await budgets.close()


@pytest.mark.parametrize(
    "spoil",
    [
        "INSERT INTO courses VALUES ('r', 'nonsense')",
        "INSERT INTO courses VALUES ('r', '{}')",
        "INSERT INTO buckets VALUES (0, 'r', 'nonsense')",
        "DROP TABLE courses",
    ],
)
async def test_a_file_whose_courses_cannot_be_read_is_refused_and_given_back(folder: Path, spoil: str) -> None:
    path = folder / "state.db"
    await EmbeddedStore(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(spoil)
    other.close()
    for _ in range(2):
        with pytest.raises(StateUnusable, match=r"state\.db") as refused:
            open_state(f"sqlite:///{path}")
        assert not refused.value.held


async def test_what_a_newer_version_has_added_to_a_course_is_left_out(stage: HeldStage) -> None:
    assert await stage.store.steer("r", course(1), 0)
    stage.database.execute("UPDATE courses SET course = replace(course, '{', '{\"moon\": \"full\", ')")
    await stage.restart()
    assert await stage.store.courses() == {"r": course(1)}


# Killed in earnest


@pytest.mark.parametrize("lines", [20, 400])
async def test_a_process_that_is_killed_at_any_time_leaves_all_that_it_was_told_is_done(
    folder: Path, lines: int
) -> None:
    epochs = calls = 0
    for _ in range(2):
        said = Counter(await asyncio.to_thread(_run_until_killed, folder / "state.db", lines))
        budgets = EmbeddedStore(folder / "state.db")
        store = EmbeddedRoutes(budgets, lambda: teller.AFTER * 10**9)
        epoch = (await store.courses())[teller.ROUTE].epoch
        assert said["steered"] <= epoch - epochs <= said["steers"]
        found = total(await store.buckets(teller.ROUTE, 0, EVER))
        assert said["flushed"] <= found[CALL] - calls <= said["flushes"]
        assert found[ERROR] == found[CALL]
        epochs, calls = epoch, found[CALL]
        await budgets.close()


def _run_until_killed(path: Path, lines: int) -> list[str]:
    """What it has told, a word a line, before it was killed after so many."""
    command = [sys.executable, "-m", "tests.support.teller", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line.decode().strip())
                if len(said) == lines:
                    process.kill()
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    return said
