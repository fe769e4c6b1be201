"""Every store in any history: against a model, and with many calls at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from policies.budgets import Short, Store
from tests.support.histories import EVERY, HARD, PAYERS, agree
from tests.support.stores import DAY, PLACES, ask, spent, standing, unseen


@pytest.mark.timeout(300)  # a history that fails is made short first
@pytest.mark.parametrize("where", PLACES)
def test_a_store_agrees_with_the_model_in_any_history(where: str) -> None:
    agree(PLACES[where])


@pytest.mark.parametrize("seed", range(3))
async def test_calls_that_come_and_go_at_once_never_pass_a_limit_and_leave_nothing_pending(
    store: Store, seed: int
) -> None:
    chance = random.Random(seed)
    ledger = 0

    async def call(name: str) -> None:
        nonlocal ledger
        accounts = PAYERS[chance.choice(list(PAYERS))]
        want = chance.randint(0, 20)
        asked = ask(name, accounts, want, chance.randint(0, want))
        try:
            async with asyncio.timeout(chance.choice([None, None, 0.0, 0.001])):
                loan = await store.reserve(asked)
                if chance.random() < 0.3:
                    await store.extend(loan, loan.amount + chance.randint(0, 10))
                await asyncio.sleep(chance.choice([0.0, 0.002]))
        except (TimeoutError, Short):
            store.void(unseen(name, accounts))
            return
        cost = min(loan.amount, chance.randint(0, 3))
        for _ in range(chance.choice([1, 1, 2])):
            store.settle(loan, cost, [spent(cost)])
        ledger += cost

    async def watch() -> None:
        while True:
            for each, (posted, pending) in zip(HARD, await standing(store, HARD), strict=True):
                assert posted + pending <= each.budget.limit
            await asyncio.sleep(0)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(call(f"call-{number}") for number in range(300)))
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    (posted, pending), *others = await standing(store, EVERY)
    assert [pending, *(each[1] for each in others)] == [0, 0, 0]
    (row,) = await store.spend(["acme"], DAY, DAY, [], {})
    assert posted == row["cost"] == ledger > 0
