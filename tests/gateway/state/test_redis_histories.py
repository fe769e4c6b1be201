"""Redis servers in any history: alone, as a cluster, and behind a connection that fails at random."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from gateway.state.redis import RedisStore
from policies.budgets import Account, Ask, Balance, Budget, Loan, Raised, Short, Store, StoreUnavailable, Window
from tests.support.histories import History, agree
from tests.support.redis_places import RedisPlace
from tests.support.redis_proxy import Fault, FaultProxy, fault_proxy
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.stores import DAY, NOW, Place, ask, budget, paying, spent, standing, unseen

pytestmark = [needs_redis, pytest.mark.timeout(300)]  # a history that fails is made short first

T = TypeVar("T")

ACCOUNTS = paying(budget("acme", 900), budget("acme/bot", 800))

PATIENT = 30.0
"""Seconds, for stores that are to be answered however slow the machine is."""

_FAULTS = [*Fault, Fault.DROP_REPLY]
_FAULTY = 0.15


def there(servers: Sequence[RedisServer]) -> Callable[[Path], AbstractAsyncContextManager[Place]]:
    @asynccontextmanager
    async def place(_: Path) -> AsyncIterator[Place]:
        yield RedisPlace(servers, NOW, patience=PATIENT)

    return place


def test_a_server_agrees_with_the_model_in_any_history(server: RedisServer) -> None:
    agree(there([server]), examples=15)


def test_a_cluster_agrees_with_the_model_in_any_history(cluster: list[RedisServer]) -> None:
    agree(there(cluster), examples=5)


class Insistent:
    """A store whose every answer is asked for until it comes: then a failing connection must make no difference.

    What has a meaning at any time, when it arrives once more or late, may do so: a loan that is granted, and the end of
    a call. A wish that was refused has not, as long as it is not given back, nor has a limit that a person sets: these
    are over when there is nothing of them on its way any more.
    """

    shared = True

    def __init__(self, store: RedisStore, proxy: FaultProxy) -> None:
        self.store = store
        self.proxy = proxy
        self.failures = 0
        self.settle, self.void, self.post = store.settle, store.void, store.post

    @property
    def failure(self) -> str | None:
        return self.store.failure

    def begin(self) -> None:
        return None

    def now_ns(self) -> int:
        return self.store.now_ns()

    async def reserve(self, ask: Ask) -> Loan:
        try:
            return await self.until_answered(lambda: self.store.reserve(ask))
        except Short:
            await self.proxy.arrived()
            raise

    async def extend(self, loan: Loan, amount: int) -> bool:
        extended = await self.until_answered(lambda: self.store.extend(loan, amount))
        if not extended:
            await self.proxy.arrived()
        return extended

    async def balances(self, accounts: Sequence[Account]) -> list[Balance]:
        return await self.until_answered(lambda: self.store.balances(accounts))

    def known(self, accounts: Sequence[Account]) -> list[Balance] | None:
        return self.store.known(accounts)

    async def sessions(self, budget: Budget, most: int) -> list[Balance]:
        return await self.until_answered(lambda: self.store.sessions(budget, most))

    async def raise_limit(self, raised: Raised) -> None:
        await self.until_answered(lambda: self.store.raise_limit(raised))
        await self.proxy.arrived()

    async def reset_limit(self, tenant: str, node: str, window: Window) -> None:
        await self.until_answered(lambda: self.store.reset_limit(tenant, node, window))
        await self.proxy.arrived()

    async def raised(self, tenant: str) -> list[Raised]:
        return await self.until_answered(lambda: self.store.raised(tenant))

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        return await self.until_answered(lambda: self.store.spend(tenants, since, until, group_by, where))

    async def close(self) -> None:
        await self.told()
        await self.store.close()

    async def told(self) -> None:
        """Returns once all has happened that is to happen sooner or later."""
        while len(self.store.outbox):
            await asyncio.sleep(0.001)

    async def until_answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What was told before comes first."""
        while True:
            await self.told()
            try:
                return await ask()
            except StoreUnavailable:
                self.failures += 1
                await asyncio.sleep(0.002)


class FaultyPlace:
    """A server behind a proxy that does something to every seventh command or so."""

    def __init__(self, place: RedisPlace, proxy: FaultProxy) -> None:
        place.url = proxy.url
        self.luck = 0
        """Decides what becomes of which command."""
        self._place = place
        self._proxy = proxy
        self._times: Counter[bytes] = Counter()

    async def open(self) -> Store:
        self._proxy.restore()
        store = await self._place.open()
        self._proxy.plan = self._plan
        return Insistent(store, self._proxy)

    async def leave(self, store: Store) -> None:
        assert isinstance(store, Insistent)
        await self._place.leave(store.store)

    def _plan(self, words: list[bytes]) -> Fault:
        """Depends on what it is, all but what may hang on the time, and on how often it has come: on a slow machine the
        same history has the same luck. Scripts arrive: there are so many that hardly a connection would come about.
        """
        if words[0] == b"SCRIPT":
            return Fault.NONE
        what = b" ".join(words[:-1])
        self._times[what] += 1
        chance = random.Random(f"{self.luck} {self._times[what]} {what!r}")
        return chance.choice(_FAULTS) if chance.random() < _FAULTY else Fault.NONE


class UnluckyHistory(History):
    """A history at a FaultyPlace."""

    @initialize(luck=st.integers(0, 2**16))
    def the_connection_fails_as_it_does(self, luck: int) -> None:
        assert isinstance(self.place, FaultyPlace)
        self.place.luck = luck


def test_a_failing_connection_makes_no_difference_to_who_asks_until_it_is_answered(server: RedisServer) -> None:
    faults = 0

    @asynccontextmanager
    async def place(_: Path) -> AsyncIterator[Place]:
        nonlocal faults
        async with fault_proxy(server, delay=0.2) as proxy:
            yield FaultyPlace(RedisPlace([server], NOW, patience=0.08, pause=0.001), proxy)
            faults += sum(fault is not Fault.NONE for _, fault in proxy.seen)

    agree(place, examples=5, history=UnluckyHistory)
    assert faults > 30


@pytest.mark.parametrize("seed", range(3))
async def test_calls_at_once_over_failing_connections_pass_no_limit_and_are_settled_by_their_truths(
    server: RedisServer, seed: int
) -> None:
    """Two gateways, each with its own bad luck; a limit that holds meanwhile, and sums that are right in the end."""
    chance = random.Random(seed)
    patient = RedisPlace([server], NOW, patience=PATIENT)
    place = RedisPlace([server], NOW, patience=0.03, pause=0.005)
    truths: dict[str, int] = {}
    answers: Counter[str] = Counter()

    def plan(words: list[bytes]) -> Fault:
        return chance.choice(_FAULTS) if chance.random() < 0.03 else Fault.NONE

    async def call(store: RedisStore, name: str) -> None:
        await asyncio.sleep(chance.random())
        want = chance.randint(1, 30)
        try:
            async with asyncio.timeout(chance.choice([None, None, None, 0.001])):
                loan = await store.reserve(ask(name, ACCOUNTS, want, chance.randint(1, want)))
                if chance.random() < 0.3:
                    await store.extend(loan, loan.amount + chance.randint(0, 10))
                await asyncio.sleep(chance.choice([0.0, 0.01, 0.05]))
        except (StoreUnavailable, TimeoutError, Short) as error:
            answers["unavailable" if isinstance(error, StoreUnavailable) else type(error).__name__] += 1
            store.void(unseen(name, ACCOUNTS))
            return
        answers["lent"] += 1
        cost = truths[name] = chance.randint(0, loan.amount)
        for _ in range(chance.choice([1, 1, 2])):
            store.settle(loan, cost, [spent(cost)])

    async def watch(store: RedisStore) -> None:
        while True:
            for each in await store.balances(ACCOUNTS):
                assert each.posted + each.pending <= each.limit
            await asyncio.sleep(0.001)

    watcher = await patient.open()
    watching = asyncio.ensure_future(watch(watcher))
    async with fault_proxy(server, delay=0.06) as one, fault_proxy(server, delay=0.06) as other:
        stores = []
        for proxy in (one, other):
            place.url = proxy.url
            stores.append(await place.open())
            proxy.plan = plan
        await asyncio.gather(*(call(stores[number % 2], f"call-{number}") for number in range(300)))
        one.restore()
        other.restore()
        for store in stores:
            while len(store.outbox):
                await asyncio.sleep(0.001)
            await store.close()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    total = sum(truths.values())
    assert await standing(watcher, ACCOUNTS) == [(total, 0), (total, 0)]
    (row,) = await watcher.spend(["acme"], DAY, DAY, [], {})
    assert (row["cost"], row["calls"]) == (total, len(truths))
    assert min(answers["lent"], answers["unavailable"]) > 10, answers
    await watcher.close()
