"""Wherever a process is killed, who comes next finds every account exact."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.state import journal
from gateway.state.embedded import EmbeddedStore
from policies import books
from policies.books import State
from policies.budgets import Spent, StoreUnavailable
from tests.support import lender
from tests.support.histories import EVERY, PAYERS, Model
from tests.support.process import ROOT
from tests.support.stores import DAY, ask, copied, in_memory, spent, standing, unseen

LATE = 3
"""What a call has cost, in truth, that was under way."""


@dataclass
class Killed:
    """The files as they are before one statement is carried out, and what may be true of them."""

    statement: str
    path: Path
    before: Model
    """If the step that was under way is lost."""
    after: Model


class Life:
    """Random steps, one after the other, each done to a store and to a model, by two processes.

    With each statement that changes the file `at` is called before it is carried out.
    """

    def __init__(self, path: Path, seed: int, at: Callable[[Life, str], None]) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.before = self.model = Model()
        self.at = at

    async def lived(self, steps: int) -> None:
        kinds = [self.lend, self.lend, self.more, self.more, self.settle, self.void, self.post, self.post, self.late]
        for life in range(2):  # the second one begins with what the first has left
            self.store = EmbeddedStore(self.path, fold_every=0.0)
            self.model.expire()
            self.done()
            self.database.set_trace_callback(self.traced)
            for number in range(steps):
                step = self.chance.choice(kinds)
                await step(f"call-{life}-{number}")
                for _ in range(self.chance.choice([0, 0, 0, 1, 3, 40])):
                    await asyncio.sleep(0)
            async with asyncio.timeout(20):
                while self.store.failure is not None:
                    await asyncio.sleep(0)
            self.database.set_trace_callback(None)
            assert await state(self.store) == expected(self.model)
            self.path = copied(self.path)
            await self.store.close()

    @property
    def database(self) -> sqlite3.Connection:
        return self.store._journal._db

    def traced(self, statement: str) -> None:
        if not statement.startswith(("SELECT", "--")):
            self.at(self, statement)

    async def lend(self, name: str) -> None:
        accounts = PAYERS[self.chance.choice(list(PAYERS))]
        asked = ask(name, accounts, self.chance.randint(0, 5))
        self.model.reserve(asked)
        try:
            await self.store.reserve(asked)
        except StoreUnavailable:
            self.model.void(name)
            self.store.void(unseen(name, accounts))
        self.done()

    async def more(self, _: str) -> None:
        for name in self.some("lent"):
            amount = self.model.calls[name].lent + self.chance.randint(1, 3)
            if self.store.failure is None:  # else it is not even tried
                self.model.extend(name, amount)
            with contextlib.suppress(StoreUnavailable):
                await self.store.extend(unseen(name, ()), amount)
            self.done()

    async def settle(self, _: str) -> None:
        for name in self.some("lent"):
            await self.told(name, self.chance.randint(0, 6))

    async def late(self, _: str) -> None:
        for name in self.some("expired"):
            await self.told(name, LATE)

    async def void(self, name: str) -> None:
        for each in self.some("lent") or [name]:
            self.model.void(each)
            self.store.void(unseen(each, ()))
            await self.turn()

    async def post(self, name: str) -> None:
        """Several at once: they are one turn, of which all survives or nothing."""
        for number in range(self.chance.randint(1, 4)):
            call, cost = f"{name}-{number}", self.chance.randint(0, 3)
            self.model.post(call, EVERY, cost)
            self.store.post(call, "acme", EVERY, cost, [self.line(cost)])
        await self.turn()

    async def told(self, name: str, cost: int) -> None:
        accounts = self.model.calls[name].accounts
        self.model.settle(name, accounts, cost)
        self.store.settle(unseen(name, accounts), cost, [self.line(cost)])
        await self.turn()

    async def turn(self) -> None:
        await asyncio.sleep(0)
        self.done()

    def line(self, cost: int) -> Spent:
        return spent(cost, session=self.chance.choice("abcd"))

    def done(self) -> None:
        self.before = copy.deepcopy(self.model)

    def some(self, state: str) -> list[str]:
        found = [name for name, call in self.model.calls.items() if call.state == state]
        return [self.chance.choice(found)] if found else []


async def state(store: EmbeddedStore) -> tuple[list[tuple[int, int]], int]:
    """How the accounts stand, and what the cost ledger has in all."""
    rows = await store.spend(["acme"], DAY, DAY, [], {})
    return await standing(store, EVERY), sum(int(row["cost"]) for row in rows)


def expected(model: Model) -> tuple[list[tuple[int, int]], int]:
    return [(model.sum("charged", each), model.sum("lent", each)) for each in EVERY], model.ledger


async def audit(killed: Killed) -> None:
    store = EmbeddedStore(killed.path)
    found = await state(store)
    possible = []
    for model in copy.deepcopy((killed.before, killed.after)):
        model.expire()
        if expected(model) == found:
            possible.append(model)
    assert possible, killed.statement
    # Now every call is told the truth, those that are over for the second time.
    for name, call in [*killed.after.calls.items()]:
        store.settle(unseen(name, call.accounts), LATE, [spent(LATE)])
        for model in possible:
            model.settle(name, call.accounts, LATE)
    for name, call in [*killed.after.posts.items()]:
        store.post(name, "acme", call.accounts, LATE, [spent(LATE)])
        for model in possible:
            model.post(name, call.accounts, LATE)
    assert await state(store) in [expected(model) for model in possible], killed.statement
    await store.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where every fold goes a row at a time, and nothing stays in memory that need not."""
    monkeypatch.setattr(journal, "FOLDED_AT_ONCE", 1)
    monkeypatch.setattr(journal, "DROPPED_AT_ONCE", 1)
    monkeypatch.setattr(books, "KEPT", 1)
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.mark.parametrize("seed", range(2))
async def test_whichever_statement_a_process_is_killed_at_every_account_is_exact(folder: Path, seed: int) -> None:
    kills: list[Killed] = []

    def kill(life: Life, statement: str) -> None:
        kills.append(Killed(statement, copied(life.path), life.before, copy.deepcopy(life.model)))

    await Life(folder / "state.db", seed, kill).lived(30)
    assert len({each.statement[:24] for each in kills}) > 8, "all kinds of statements"
    for killed in kills:
        await audit(killed)


async def test_whichever_statement_fails_every_account_is_exact_when_the_file_can_be_written_again(
    folder: Path,
) -> None:
    statements, failures = 0, 0

    def fail(life: Life, statement: str) -> None:
        nonlocal statements
        if statements == failing:
            life.database.set_progress_handler(interrupt, 1)
            interrupted.append(life)
        statements += 1

    def interrupt() -> bool:
        nonlocal failures
        interrupted[-1].database.set_progress_handler(None, 1)
        failures += 1
        return True

    interrupted: list[Life] = []
    for failing in itertools.count(0, 4):
        statements = 0
        life = Life(folder / f"{failing}.db", 7, fail)
        await life.lived(25)
        store = EmbeddedStore(life.path)
        life.model.expire()
        assert await state(store) == expected(life.model)
        await store.close()
        if failing >= statements:
            break
    assert failures > 40


def run_until_killed(path: Path, generation: str, lines: int, *at: str) -> list[list[str]]:
    """What a lender has told before it was killed: after so many lines, unless it dies earlier by itself."""
    command = [sys.executable, "-m", "tests.support.lender", str(path), generation, *at]
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


async def audit_lender(path: Path, told: list[list[str]]) -> None:
    """Nothing that was acknowledged is lost, nothing is there twice, and the limit holds."""
    said = [tuple(line) for line in told]
    asked = [call for word, call in said if word == "asks"]
    last_lent = max((number for number, (word, _) in enumerate(said) if word == "lent"), default=0)
    asked_last = said.index(("asks", said[last_lent][1]))
    certain = set(said[:asked_last])
    """Who asked after these, was lent something: so they were written."""
    store = EmbeddedStore(path)
    became = {call: store._books.state(call) for call in asked}
    for word, call in said:
        match word:
            case "lent":
                assert became[call] is not None, call
            case "settled":
                assert became[call] in ({State.POSTED} if (word, call) in certain else {State.POSTED, State.EXPIRED})
            case "voided":
                assert became[call] in ({State.VOIDED} if (word, call) in certain else {State.VOIDED, State.EXPIRED})
            case "refused":
                assert became[call] is None
    rows = await store.spend(["acme"], DAY, DAY, ["session"], {})
    posted = {str(row["session"]): int(row["cost"]) for row in rows}
    assert {call for call, state in became.items() if state is State.POSTED} <= posted.keys()
    assert posted == {call: lender.cost(call) for call in posted}
    late = sum(lender.AMOUNT for debt in store._books.debts() if debt.state is State.EXPIRED)
    total = sum(posted.values()) + late
    assert total <= lender.LIMIT
    assert await standing(store, lender.EVERY) == [(total, 0), (total, 0)]
    await store.close()


@pytest.mark.parametrize("lines", [50, 5000])
async def test_a_lender_that_is_killed_at_any_time_leaves_every_account_exact(tmp_path: Path, lines: int) -> None:
    for generation in range(2):
        told = await asyncio.to_thread(run_until_killed, tmp_path / "state.db", str(generation), lines)
        assert len(told) >= lines
        await audit_lender(tmp_path / "state.db", told)


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("INSERT OR REPLACE INTO journal", "100"),
        ("INSERT OR REPLACE INTO accounts", "5"),
        ("INSERT INTO spent", "30"),
        ("INSERT OR REPLACE INTO over", "4"),
        ("COMMIT", "25"),
        ("DELETE FROM journal", "10"),
        ("PRAGMA wal_checkpoint", "2"),
    ],
)
async def test_a_lender_that_is_killed_at_a_certain_point_leaves_every_account_exact(
    tmp_path: Path, statement: str, number: str
) -> None:
    told = await asyncio.to_thread(run_until_killed, tmp_path / "state.db", "0", 10**5, statement, number)
    assert 0 < len(told) < 10**5, "it dies in the middle of its work"
    await audit_lender(tmp_path / "state.db", told)
