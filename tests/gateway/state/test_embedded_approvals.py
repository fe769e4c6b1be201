"""Approvals, grants and standings of one process, on a clock that is held, in a file that may fail under them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.state import StateUnusable, journal, open_state
from gateway.state.approvals import GRANTS_KEPT, MESSAGES_KEPT, UNKNOWN_KEPT, EmbeddedApprovals
from gateway.state.embedded import EmbeddedStore
from policies.approval_store import ANSWERS_KEPT, KEPT, Answer, ApprovalStore, StoreUnavailable
from policies.approvals import ENDED, State
from tests.gateway.state.approvals_suite import (
    EVER,
    LEASE,
    NOW,
    SECOND,
    ApprovalsSuite,
    approval,
    approved,
    call,
    grant,
    message,
    opened,
    standing,
)
from tests.support.process import ROOT
from tests.support.steps import longest_step
from tests.support.stores import as_of_version, ask, budget, copied, in_memory, paying, spent
from tests.support.stores import standing as stands

ANSWER = Answer(200, (), b"done")
ASKS: dict[str, Callable[[ApprovalStore], Coroutine[Any, Any, Any]]] = {
    "open": lambda store: store.open(approval()),
    "get": lambda store: store.get("apr_1"),
    "versions": lambda store: store.versions(["apr_1"]),
    "last": lambda store: store.last("key"),
    "replace": lambda store: store.replace(approved(approval())),
    "supersede": lambda store: store.supersede(approved(approval()), approval()),
    "answer": lambda store: store.answer("apr_1"),
    "listed": lambda store: store.listed([State.PENDING]),
    "due": lambda store: store.due(EVER),
    "messages": lambda store: store.messages(EVER, LEASE),
    "delivered": lambda store: store.delivered("msg_1"),
    "postponed": lambda store: store.postponed("msg_1", EVER),
    "grant": lambda store: store.grant(grant()),
    "grants": lambda store: store.grants(),
    "use": lambda store: store.use("grt_1", "call", 1),
    "give_back": lambda store: store.give_back("grt_1", "call"),
    "revoke": lambda store: store.revoke("grt_1"),
    "standings": lambda store: store.standings(),
    "stand": lambda store: store.stand("acme", "bot", standing(1)),
}


class HeldStage:
    """Time passes when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ns = NOW
        self._open()

    def _open(self) -> None:
        self.budgets = EmbeddedStore(self.path, fold_every=0.005)
        self.store = EmbeddedApprovals(self.budgets, lambda: self.ns)

    @property
    def handles(self) -> Sequence[ApprovalStore]:
        return [self.store]

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * 10**9)

    async def restart(self) -> None:
        await self.close()
        self._open()

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


class TestEmbeddedApprovals(ApprovalsSuite):
    """The suite of all stores."""


# The disk


async def test_a_change_is_told_and_found_when_it_is_on_the_disk_and_not_before(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spinning = threading.Event()
    sync = stage.budgets.journal.sync

    def slow() -> None:
        assert spinning.wait(20)
        sync()

    monkeypatch.setattr(stage.budgets.journal, "sync", slow)
    fresh, note = approval(), message()
    heard: list[Collection[str] | None] = []
    stage.store.listen(heard.append)
    opening = asyncio.create_task(stage.store.open(fresh, [note]))
    while stage.database.execute("SELECT count(*) FROM approvals").fetchone() == (0,):
        await asyncio.sleep(0)
    asks = [asyncio.create_task(ASKS[each](stage.store)) for each in ("get", "last", "versions", "due", "messages")]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(each.done() for each in (opening, *asks))
    assert heard == []
    spinning.set()
    assert await opening == fresh
    assert (await asyncio.gather(*asks))[3:] == [[fresh], [note]]
    assert heard == [[fresh.id]]


async def test_while_the_disk_refuses_nothing_is_told_and_nothing_is_done_twice(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    broken = True

    def fsync(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        if broken:
            raise OSError(5, "Input/output error")

    fresh, note = approval(), message()
    heard: list[Collection[str] | None] = []
    stage.store.listen(heard.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="Input/output error"):
                await stage.store.open(fresh, [note])
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await stage.store.get(fresh.id)
        assert heard == [None, None], "they may be there"
        broken = False
        assert await stage.store.open(fresh, [note]) == fresh
        assert synced == [f"{stage.path}-wal"] * 4
    assert await stage.store.messages(EVER, 0) == [note]


async def test_what_comes_at_once_waits_for_the_disk_once_and_holds_the_loop_for_a_few_milliseconds(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [approval(call=call(body=b"x" * 2000)) for _ in range(200)]
    syncs = 0
    sync = stage.budgets.journal.sync

    def counted() -> None:
        nonlocal syncs
        syncs += 1
        sync()

    monkeypatch.setattr(stage.budgets.journal, "sync", counted)
    async with longest_step() as step:
        assert await asyncio.gather(*(stage.store.open(each, [message()]) for each in some)) == some
    assert syncs == 1
    assert step.seconds < 0.1
    many = (stage.store.replace(approved(each)) for each in some)
    assert await asyncio.gather(*many) == [True] * len(some)
    assert syncs == 2


async def test_a_change_that_is_in_the_file_although_it_is_said_to_have_failed_is_made_once(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = stage.budgets.journal.change

    def changed_and_failed(work: Any) -> None:
        change(work)
        raise sqlite3.OperationalError("disk I/O error")

    first = await opened(stage.store, approval())
    fresh, given, notes = approval(), grant(max_uses=2), [message(), message()]
    await stage.store.grant(given)
    steps: list[Callable[[], Awaitable[Any]]] = [
        lambda: stage.store.open(fresh, notes[:1]),
        lambda: stage.store.replace(approved(first), notes[1:]),
        lambda: stage.store.use(given.id, "call", 1),
    ]
    for step, expected in zip(steps, (fresh, True, True), strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(stage.budgets.journal, "change", changed_and_failed)
            with pytest.raises(StoreUnavailable, match="disk I/O error"):
                await step()
        await stage.mended()
        assert await step() == expected
    assert await stage.store.messages(EVER, 0) == notes
    assert await stage.store.grants() == [replace(given, uses=1, cost=1)]


@pytest.mark.parametrize("what", ASKS)
async def test_while_the_file_is_away_nothing_is_answered_and_afterwards_everything(
    stage: HeldStage, what: str
) -> None:
    fresh = await opened(stage.store, approval())
    away = stage.path.with_name("away")
    stage.path.rename(away)
    for _ in range(2):  # the second time it is known
        with pytest.raises(StoreUnavailable, match=r"state\.db"):
            await ASKS[what](stage.store)
    away.rename(stage.path)
    await stage.mended()
    await ASKS[what](stage.store)
    assert await stage.store.get(fresh.id) == fresh


async def test_while_somebody_else_locks_the_file_nothing_is_changed(stage: HeldStage) -> None:
    fresh, note = approval(), message()
    with closing(sqlite3.connect(stage.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await stage.store.open(fresh, [note])
        other.execute("ROLLBACK")
    await stage.mended()
    assert await stage.store.get(fresh.id) is None
    assert await stage.store.open(fresh, [note]) == fresh


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.full_approvals", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "refused\nrecovered\n"), ended.stderr


async def test_a_body_that_cannot_be_read_any_more_harms_nobody_else(stage: HeldStage) -> None:
    bad, good = await opened(stage.store, approval()), await opened(stage.store, approval())
    stage.database.execute("UPDATE approvals SET document = '{}' WHERE id = ?", (bad.id,))
    attaching = approval(key=bad.key)
    found = await asyncio.gather(
        *(stage.store.open(each) for each in (attaching, approval(key=good.key))),
        *(stage.store.get(each.id) for each in (bad, good)),
        stage.store.last(bad.key),
        stage.store.listed([State.PENDING]),
        return_exceptions=True,
    )
    assert found[1] == found[3] == good
    for each in (found[0], found[2], found[4], found[5]):
        assert isinstance(each, StoreUnavailable)
        assert "damaged" in str(each)
    assert stage.store.failure is None
    assert await stage.store.get(attaching.id) is None


async def test_nothing_is_called_what_sqlite_cannot_even_be_asked_for(stage: HeldStage) -> None:
    assert await stage.store.get("\ud800") is None
    assert await stage.store.last("\ud800") is None
    with pytest.raises(ValueError, match="surrogate"):
        await stage.store.open(approval(key="\ud800"))


# Listening


async def test_who_listens_is_told_of_what_has_changed_and_of_nothing_else(stage: HeldStage) -> None:
    heard: list[str | None] = []

    def broken(changed: Collection[str] | None) -> None:
        raise RuntimeError("a listener of somebody else")

    stage.store.listen(broken)
    stage.store.listen(lambda changed: heard.extend([None] if changed is None else changed))
    fresh = await opened(stage.store, approval())
    given = grant(max_uses=1)
    await stage.store.grant(given)
    assert heard == [fresh.id, given.id]
    assert await stage.store.open(approval(key=fresh.key)) == fresh
    assert not await stage.store.replace(replace(fresh, reason="late"))
    await stage.store.grant(given)
    await stage.store.delivered("msg_1")
    assert not await stage.store.revoke("grt_0")
    assert heard == [fresh.id, given.id]
    assert await stage.store.use(given.id, "call", 1)
    await stage.store.give_back(given.id, "call")
    assert heard[2:] == [given.id, given.id], "it can be used no more, and then again"


async def test_a_caller_that_gives_up_takes_nobody_with_it(stage: HeldStage) -> None:
    some = [approval() for _ in range(6)]
    waiting = [asyncio.create_task(stage.store.open(each)) for each in some]
    await asyncio.sleep(0)
    for each in waiting[::2]:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [await each for each in waiting[1::2]] == some[1::2]


# Keeping


async def test_what_has_ended_is_forgotten_a_few_at_a_time(stage: HeldStage) -> None:
    ended = [await opened(stage.store, approval(), State.DENIED) for _ in range(50)]
    waiting = await opened(stage.store, approval(), State.APPROVED)
    stage.advance(KEPT)
    left = []
    for _ in range(4):
        await stage.store.open(approval())
        left.append(len(await stage.store.versions([each.id for each in ended])))
    assert left == [30, 10, 0, 0]
    assert await stage.store.last(ended[0].key) is None
    assert await stage.store.get(waiting.id) == waiting


async def test_who_has_nothing_to_write_forgets_as_well(stage: HeldStage) -> None:
    ended = [await opened(stage.store, approval(), State.EXPIRED) for _ in range(30)]
    stage.advance(KEPT)
    for _ in range(3):
        await stage.store.due(NOW)
        stage.advance(1)
    assert await stage.store.versions([each.id for each in ended]) == {}


@pytest.mark.parametrize("state", sorted(ENDED))
async def test_people_see_for_longer_what_nobody_knows_the_end_of(stage: HeldStage, state: State) -> None:
    found = await opened(stage.store, approval(), state)
    for seconds, there in ((KEPT, state is State.UNKNOWN), (UNKNOWN_KEPT - KEPT, False)):
        assert await stage.store.get(found.id) == found
        stage.advance(seconds)
        await stage.store.open(approval())
        assert (await stage.store.get(found.id) is not None) == there
        if not there:
            break


async def test_a_late_truth_is_kept_from_when_it_came(stage: HeldStage) -> None:
    unknown = await opened(stage.store, approval(), State.UNKNOWN)
    stage.advance(2 * KEPT)
    done = replace(unknown, version=unknown.version + 1, state=State.DONE)
    assert await stage.store.replace(done, answer=ANSWER)
    stage.advance(KEPT - 1)
    await stage.store.open(approval())
    assert await stage.store.get(done.id) == done
    stage.advance(1)
    await stage.store.open(approval())
    assert await stage.store.get(done.id) is None


async def test_an_answer_is_given_again_for_an_hour_and_not_a_moment_longer(stage: HeldStage) -> None:
    first = await opened(stage.store, approval(), State.CONSUMED)
    assert await stage.store.replace(replace(first, version=4, state=State.DONE), answer=ANSWER)
    stage.advance(ANSWERS_KEPT - 0.001)
    assert await stage.store.answer(first.id) == ANSWER
    stage.advance(0.001)
    assert await stage.store.answer(first.id) is None
    await stage.store.open(approval())
    assert stage.database.execute("SELECT count(*) FROM answers").fetchone() == (0,)


async def test_messages_that_nobody_asks_for_do_not_pile_up(stage: HeldStage) -> None:
    """As where nothing is configured that could be told."""
    fresh, last = await stage.store.open(approval(), [message() for _ in range(30)]), message(NOW + 10 * SECOND)
    assert await stage.store.replace(approved(fresh), [last])
    stage.advance(MESSAGES_KEPT - 0.001)
    await stage.store.due(NOW)
    assert len(await stage.store.messages(EVER, 0, 100)) == 31
    for _ in range(2):
        stage.advance(1)
        await stage.store.due(NOW)
    assert await stage.store.messages(EVER, 0, 100) == [last]


async def test_a_grant_that_has_ended_is_forgotten_with_its_uses(stage: HeldStage) -> None:
    given = grant(expires=NOW + SECOND)
    await stage.store.grant(given)
    for number in range(50):
        assert await stage.store.use(given.id, f"c{number}", 1)
    stage.advance(GRANTS_KEPT + 1)
    left = []
    for _ in range(3):
        await stage.store.open(approval())
        left.append(
            stage.database.execute("SELECT (SELECT count(*) FROM uses), (SELECT count(*) FROM grants)").fetchone()
        )
    assert left == [(30, 1), (10, 1), (0, 0)]


async def test_ten_times_as_many_held_calls_take_no_more_memory(stage: HeldStage) -> None:
    """Their bodies are needed once, when they run."""
    tracemalloc.start()
    try:
        await asyncio.gather(*(stage.store.open(approval(call=call(body=b"x" * 3000))) for _ in range(50)))
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            await asyncio.gather(*(stage.store.open(approval(call=call(body=b"x" * 3000))) for _ in range(50)))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100 * 500


# The file


async def test_a_state_has_its_approvals_in_its_file_and_by_its_clock(folder: Path) -> None:
    fresh = approval()
    for _ in range(2):
        state = open_state(f"sqlite:///{folder / 'state.db'}", lambda: NOW)
        state.begin()
        assert state.approvals.now_ns() == NOW
        assert await state.approvals.open(fresh) == fresh
        await state.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await state.approvals.get(fresh.id)


async def test_a_disk_that_does_not_answer_does_not_keep_a_process_from_its_end(
    stage: HeldStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr("gateway.state.approvals._CLOSING", 0.01)
    monkeypatch.setattr(stage.budgets.journal, "sync", lambda: answers.wait(20))
    opening = asyncio.create_task(stage.store.open(approval()))
    await asyncio.sleep(0)
    await stage.store.close()
    assert not opening.done()
    answers.set()
    await opening


async def test_budgets_and_approvals_share_the_file_in_peace(stage: HeldStage) -> None:
    accounts = paying(budget("acme", 10_000))
    held = []
    for number in range(100):
        loan = await stage.budgets.reserve(ask(f"c{number}", accounts, 2))
        held.append(await stage.store.open(approval(), [message()]))
        stage.budgets.settle(loan, 1, [spent(1)])
        if number % 20 == 0:
            await asyncio.sleep(0.006)
    await asyncio.sleep(0.006)
    await stage.kill()
    assert await stands(stage.budgets, accounts) == [(100, 0)]
    assert await stage.store.listed([State.PENDING], most=1000) == held
    assert len(await stage.store.messages(EVER, LEASE, 1000)) == 100


async def test_a_message_that_somebody_had_who_was_killed_is_given_to_the_next(stage: HeldStage) -> None:
    note = message()
    await stage.store.open(approval(), [note])
    assert await stage.store.messages(NOW, LEASE) == [note]
    await stage.kill()
    assert await stage.store.messages(NOW, LEASE) == [note]


async def test_a_file_of_an_earlier_version_is_opened_with_all_that_is_in_it(stage: HeldStage) -> None:
    accounts = paying(budget("acme", 1000))
    stage.budgets.post("c", "acme", accounts, 7, [spent(7)])
    await stage.close()
    as_of_version(stage.path, 2)  # which knew nothing of approvals
    fresh = approval()
    for _ in range(2):
        await stage.restart()
        assert await stands(stage.budgets, accounts) == [(7, 0)]
        assert await stage.store.open(fresh) == fresh
        assert stage.database.execute("PRAGMA user_version").fetchone() == (journal._VERSION,)


async def test_a_process_that_dies_while_it_brings_a_file_up_to_date_leaves_it_as_it_was(folder: Path) -> None:
    path = folder / "state.db"
    await EmbeddedStore(path).close()
    as_of_version(path, 2)
    left: list[Path] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **named: Any) -> sqlite3.Connection:
        found: sqlite3.Connection = connect(*arguments, **named)
        found.set_trace_callback(lambda _: left.append(copied(path)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", traced)
        await EmbeddedStore(path).close()
    assert len(left) > 15
    for each in left:
        budgets = EmbeddedStore(each)
        assert await EmbeddedApprovals(budgets).get("apr_1") is None
        await budgets.close()


@pytest.mark.parametrize("table", ["approvals", "answers", "messages", "grants", "uses", "standings"])
async def test_a_file_that_has_lost_a_table_is_refused_and_given_back(folder: Path, table: str) -> None:
    path = folder / "state.db"
    await EmbeddedStore(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"DROP TABLE {table}")
    for _ in range(2):
        with pytest.raises(StateUnusable, match=r"state\.db") as refused:
            EmbeddedApprovals(EmbeddedStore(path))
        assert not refused.value.held


# The end


@pytest.mark.parametrize("what", ASKS)
async def test_after_its_end_a_store_says_so(stage: HeldStage, what: str) -> None:
    await stage.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await ASKS[what](stage.store)


async def test_at_its_end_nothing_more_is_begun(stage: HeldStage) -> None:
    await stage.store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await stage.store.open(approval())
    assert stage.store.failure is None, "the file is another's to close"


async def test_what_was_under_way_at_the_end_is_done(stage: HeldStage) -> None:
    some = [approval() for _ in range(120)]
    waiting = [asyncio.create_task(stage.store.open(each)) for each in some]
    await asyncio.sleep(0)
    await stage.restart()
    assert await asyncio.gather(*waiting) == some
    assert await stage.store.listed([State.PENDING], most=1000) == some
