"""Wherever a process is killed or its file fails, what somebody was told about approvals is so, and nothing is there by
halves."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.state.approvals import EmbeddedApprovals
from gateway.state.embedded import EmbeddedStore
from policies.approval_store import Answer, StoreUnavailable
from policies.approvals import Approval, Move, State, claimed, moved, superseded
from tests.gateway.state.approvals_suite import EVER, LEASE, NOW, SECOND, approval, approved, grant, message, standing
from tests.support import holder
from tests.support.process import ROOT
from tests.support.stores import copied, in_memory

Step = Callable[[EmbeddedApprovals], Awaitable[object]]


@dataclass
class Found:
    """Everything that a store holds."""

    approvals: list[Approval]
    answers: list[Answer | None]
    messages: list[Any]
    grants: list[Any]
    uses: list[Any]
    standings: dict[Any, Any]


async def found(store: EmbeddedApprovals) -> Found:
    approvals = list(await store.listed(list(State), most=10**6))
    return Found(
        approvals,
        [await store.answer(each.id) for each in approvals],
        list(await store.messages(EVER, 0, 10**6)),
        list(await store.grants()),
        await store._rows("SELECT * FROM uses ORDER BY 1, 2", ()),
        dict(await store.standings()),
    )


class Life:
    """The steps of a random life, one after the other; each says what it does, so that it can be tried again."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.approvals: list[Approval] = []
        self.messages: list[str] = []
        self.grants: list[str] = []
        self.epoch = 0

    def step(self, number: int) -> Step:
        kinds: list[Callable[[int], Step | None]] = [
            *[self.opens, self.changes, self.changes, self.changes, self.supersedes, self.messengers],
            *[self.grant, self.uses, self.uses, self.revokes, self.stands],
        ]
        while (step := self.chance.choice(kinds)(number)) is None:
            pass
        return step

    def notes(self) -> list[Any]:
        notes = [message(NOW + len(self.messages)) for _ in range(self.chance.choice([1, 2, 3]))]
        self.messages += [each.id for each in notes]
        return notes

    def opens(self, number: int) -> Step:
        fresh, notes = approval(), self.notes()
        self.approvals.append(fresh)
        return lambda store: store.open(fresh, notes)

    def changes(self, number: int) -> Step | None:
        if not self.approvals:
            return None
        which = self.chance.randrange(len(self.approvals))
        before, answer = self.approvals[which], None
        match before.state:
            case State.PENDING:
                after = approved(before)
            case State.APPROVED:
                after = claimed(before, "call", LEASE, NOW + 2 * SECOND)
            case State.CONSUMED:
                after, answer = moved(before, Move.FINISH, NOW), Answer(200, (), b"done" * number)
            case _:
                return None
        self.approvals[which], notes = after, self.notes()
        return lambda store: store.replace(after, notes, answer=answer)

    def supersedes(self, number: int) -> Step | None:
        pending = [each for each in self.approvals if each.state is State.PENDING]
        if not pending:
            return None
        first, fresh, notes = self.chance.choice(pending), approval(), self.notes()
        before = superseded(first, fresh, NOW)
        self.approvals[self.approvals.index(first)] = before
        self.approvals.append(fresh)
        return lambda store: store.supersede(before, fresh, notes)

    def messengers(self, number: int) -> Step | None:
        if not self.messages:
            return None
        which, until = self.chance.choice(self.messages), NOW + number * SECOND
        if self.chance.random() < 0.5:
            return lambda store: store.delivered(which)
        return lambda store: store.postponed(which, until)

    def grant(self, number: int) -> Step:
        fresh = grant(max_uses=3)
        self.grants.append(fresh.id)
        return lambda store: store.grant(fresh)

    def uses(self, number: int) -> Step | None:
        if not self.grants:
            return None
        which, call = self.chance.choice(self.grants), f"call {self.chance.randrange(3)}"
        if self.chance.random() < 0.7:
            return lambda store: store.use(which, call, 1)
        return lambda store: store.give_back(which, call)

    def revokes(self, number: int) -> Step | None:
        if not self.grants or self.chance.random() < 0.7:
            return None
        which = self.grants.pop(self.chance.randrange(len(self.grants)))
        return lambda store: store.revoke(which)

    def stands(self, number: int) -> Step:
        self.epoch += 1
        change = standing(self.epoch)
        return lambda store: store.stand("acme", "bot", change)


class Process:
    """One that has the file."""

    def __init__(self, path: Path) -> None:
        self.budgets = EmbeddedStore(path, fold_every=0.001)
        self.store = EmbeddedApprovals(self.budgets, lambda: NOW)

    @property
    def database(self) -> sqlite3.Connection:
        return self.budgets.journal._db

    async def mended(self) -> None:
        async with asyncio.timeout(20):
            while self.store.failure is not None:
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self.store.close()
        await self.budgets.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


async def test_whichever_statement_a_process_is_killed_at_a_step_is_there_whole_or_not_at_all(folder: Path) -> None:
    path = folder / "state.db"
    process, life = Process(path), Life(1)
    left: list[tuple[str, Path]] = []

    def traced(statement: str) -> None:
        if not statement.startswith(("SELECT", "--")):
            left.append((statement, copied(path)))

    kinds, before = set(), await found(process.store)
    for number in range(40):
        process.database.set_trace_callback(traced)
        await life.step(number)(process.store)
        process.database.set_trace_callback(None)
        left.append(("told", copied(path)))
        after = await found(process.store)
        for statement, copy in left:
            other = Process(copy)
            there = await found(other.store)
            assert there == after or (there == before and statement != "told"), statement
            await other.close()
            kinds.add(statement[:24])
        before = after
        left.clear()
    assert len(kinds) > 8, "all kinds of statements"
    await process.close()


@pytest.mark.parametrize("seed", range(2))
async def test_whichever_statement_fails_nothing_is_done_by_halves_and_it_can_be_done_again(
    folder: Path, seed: int
) -> None:
    process, life, chance = Process(folder / "state.db"), Life(seed), random.Random(seed)
    model = Process(folder / "model.db")
    left, failures = 0, 0

    def interrupt() -> bool:
        process.database.set_progress_handler(None, 1)
        return True

    def traced(statement: str) -> None:
        nonlocal left
        left -= not statement.startswith("--")
        if left == 0:
            process.database.set_progress_handler(interrupt, 1)

    before = await found(process.store)
    for number in range(60):
        step, left = life.step(number), chance.randint(1, 12)
        expected = await step(model.store)
        after = await found(model.store)
        process.database.set_trace_callback(traced)
        try:
            told = await step(process.store)
        except StoreUnavailable:
            failures += 1
            process.database.set_trace_callback(None)
            process.database.set_progress_handler(None, 1)
            await process.mended()
            assert await found(process.store) in (before, after)
            told = await step(process.store)
        process.database.set_trace_callback(None)
        process.database.set_progress_handler(None, 1)
        await process.mended()
        assert told == expected
        assert await found(process.store) == after
        before = after
    assert failures > 10
    await process.close()
    await model.close()


def run_until_killed(path: Path, generation: str, lines: int, *at: str) -> list[list[str]]:
    """What a holder has told before it was killed: after so many lines, unless it dies earlier by itself."""
    command = [sys.executable, "-m", "tests.support.holder", str(path), generation, *at]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            told = []
            for line in process.stdout:
                told.append(line.decode().split())
                if len(told) == lines:
                    process.kill()
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    return told


async def audit(path: Path, told: list[list[str]], generation: str) -> None:
    """Of each call that is there which was told last, or which was tried after that; with all that belongs to it."""
    process = Process(path)
    whole = await found(process.store)
    there = {each.id.removeprefix("apr_"): each for each in whole.approvals}
    answers = dict(zip(there, whole.answers, strict=True))
    messages = {each.id.removeprefix("msg_") for each in whole.messages}
    used = {call for given, call, _ in whole.uses if given == f"grt_{generation}"}
    done, tried = ({line[1]: line[2] for line in told if line[0] == word} for word in ("done", "tries"))
    said = {(line[0], line[1]) for line in told}
    assert len(done) > 3
    for which, last in tried.items():
        current, possible = there.get(which), {done.get(which), last}
        if current is None:
            assert None in possible
            assert f"{which}-1" not in messages
            continue
        assert ("superseded" if current.state is State.SUPERSEDED else str(current.version)) in possible
        for version in range(2, 5):
            assert (f"{which}-{version}" in messages) == (
                current.version >= version and current.state is not State.SUPERSEDED
            )
        if ("delivered", which) in said:
            assert f"{which}-1" not in messages
        elif current.version < 3 and ("used", which) not in said:
            assert f"{which}-1" in messages
        assert (which in used) or ("used", which) not in said
        if current.state is State.SUPERSEDED:
            fresh = replace(holder.held(f"{which}-b"), instead_of=current.id)
            assert _named(there[f"{which}-b"]) == _named(fresh)
        else:
            assert f"{which}-b" not in there
            assert _named(current) == _named(holder.life(which)[current.version - 1])
        assert (f"{which}-b" in messages) == (current.state is State.SUPERSEDED)
        assert answers[which] == (holder.answer(which) if current.state is State.DONE else None)
    (given,) = [each for each in whole.grants if each.id == f"grt_{generation}"]
    assert (given.uses, given.cost) == (len(used), len(used))
    await process.close()


def _named(given: Approval) -> Approval:
    return replace(given, call_id="")


@pytest.mark.parametrize("lines", [50, 1500])
async def test_a_process_that_is_killed_at_any_time_leaves_all_that_it_was_told_is_done(
    tmp_path: Path, lines: int
) -> None:
    for generation in ("a", "b"):
        told = await asyncio.to_thread(run_until_killed, tmp_path / "state.db", generation, lines)
        assert len(told) >= lines
        await audit(tmp_path / "state.db", told, generation)


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("INSERT INTO approvals", "40"),
        ("INSERT OR IGNORE INTO messages", "101"),
        ("INSERT OR REPLACE INTO answers", "12"),
        ("COMMIT", "40"),
        ("PRAGMA wal_checkpoint", "3"),
    ],
)
async def test_a_process_that_is_killed_at_a_certain_point_leaves_all_that_it_was_told_is_done(
    tmp_path: Path, statement: str, number: str
) -> None:
    told = await asyncio.to_thread(run_until_killed, tmp_path / "state.db", "a", 10**5, statement, number)
    assert 0 < len(told) < 10**5, "it dies in the middle of its work"
    await audit(tmp_path / "state.db", told, "a")
