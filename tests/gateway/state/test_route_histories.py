"""Every store of courses and counts in any history, against a plain model: several gateways, connections that fail,
processes that are killed, clocks that are set back.

    what was counted     is in exactly one bucket once its flush has succeeded, and in at most one before
    a bucket             does not change any more once it was told
    a course             has one change for each epoch, of whoever was first, and never goes back
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from config.redis_url import RedisUrl
from gateway.state.embedded import EmbeddedStore
from gateway.state.redis_routes import RedisRoutes
from gateway.state.redis_servers import RedisServers
from gateway.state.routes import EmbeddedRoutes
from routing.course import BUCKET, SET_BACK, Bucket, Course, RouteStore, counted
from routing.errors import StoreUnavailable
from tests.gateway.state.routes_suite import AT, EVER
from tests.support.redis_places import ServerTime, reached
from tests.support.redis_proxy import Fault, FaultProxy, fault_proxy
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.stores import copied, in_memory

ROUTES = ("chat", "code")
KEYS = tuple(counted(arm, what) for arm in ("openai", "parallax") for what in ("calls", "error:stream_cut"))
T = TypeVar("T")

_FAULTS = [Fault.NONE, Fault.NONE, *Fault]


class Place(Protocol):
    """Where gateways keep what they agree on."""

    gateways: int

    async def opened(self, number: int) -> RouteStore:
        """The store of a gateway that begins."""
        ...

    async def killed(self, number: int) -> None:
        """A gateway ends without another word."""
        ...

    def fail(self, number: int, faults: list[Fault]) -> None:
        """What becomes of the next commands of a gateway."""
        ...

    async def mended(self, number: int) -> None:
        """Returns once everything works again."""
        ...

    def advance(self, seconds: float) -> None: ...


class FilePlace:
    """A file, which one gateway has at a time."""

    gateways = 1

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.db"
        self._ns = AT * 10**9
        self._budgets: EmbeddedStore | None = None

    async def opened(self, number: int) -> RouteStore:
        self._budgets = EmbeddedStore(self._path, fold_every=0.001)
        return EmbeddedRoutes(self._budgets, lambda: self._ns)

    async def killed(self, number: int) -> None:
        assert self._budgets is not None
        self._path = copied(self._path)
        await self._budgets.close()

    def fail(self, number: int, faults: list[Fault]) -> None:
        """The statement at which nothing is done is interrupted."""
        assert self._budgets is not None
        database = self._budgets._journal._db
        left = faults.index(Fault.NONE) if Fault.NONE in faults else 0

        def interrupt() -> bool:
            database.set_progress_handler(None, 1)
            return True

        def traced(statement: str) -> None:
            nonlocal left
            left -= not statement.startswith(("SELECT", "--"))
            if left == 0:
                database.set_progress_handler(interrupt, 1)

        database.set_trace_callback(traced)

    async def mended(self, number: int) -> None:
        assert self._budgets is not None
        self._budgets._journal._db.set_trace_callback(None)
        self._budgets._journal._db.set_progress_handler(None, 1)
        async with asyncio.timeout(20):
            while self._budgets.failure is not None:
                await asyncio.sleep(0.001)

    def advance(self, seconds: float) -> None:
        self._ns += round(seconds * 10**9)


class ServersPlace:
    """A server, or a cluster of them, and a way of its own from each gateway to it."""

    gateways = 3

    def __init__(self, urls: list[str], proxies: list[FaultProxy]) -> None:
        self._urls = urls
        self._proxies = proxies
        self._time = ServerTime(AT * 10**9)
        self._stores: dict[int, tuple[RedisRoutes, RedisServers]] = {}

    async def opened(self, number: int) -> RouteStore:
        servers = RedisServers(
            RedisUrl.parse(self._urls[number]), scripts=self._time.scripts(), patience=0.1, pause=0.005
        )
        store = RedisRoutes(servers)
        self._stores[number] = store, servers
        await reached(servers)
        return store

    async def killed(self, number: int) -> None:
        store, servers = self._stores.pop(number)
        await store.close(within=0)
        await servers.close()

    def fail(self, number: int, faults: list[Fault]) -> None:
        left = list(faults)
        if self._proxies:
            script = b"EVALSHA"
            self._proxies[number].plan = lambda words: left.pop() if words[0] == script and left else Fault.NONE

    async def mended(self, number: int) -> None:
        if self._proxies:
            self._proxies[number].restore()
        await reached(self._stores[number][1])

    def advance(self, seconds: float) -> None:
        self._time.advance(seconds)


class History(RuleBasedStateMachine):
    """`where` gives a place, with nothing in it."""

    where: Callable[[], Any]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.places = AsyncExitStack()
        self.place: Place = self.runner.run(self.places.enter_async_context(self.where()))
        self.stores: list[RouteStore] = [
            self.runner.run(self.place.opened(number)) for number in range(self.place.gateways)
        ]
        self.courses: dict[str, Course] = {}
        self.known: list[dict[str, int]] = [{} for _ in self.stores]
        """Epochs that each gateway has heard of."""
        self.waiting: list[Counter[tuple[str, str]]] = [Counter() for _ in self.stores]
        """What each gateway has counted and not flushed for certain."""
        self.flushed: Counter[tuple[str, str]] = Counter()
        self.unsure: Counter[tuple[str, str]] = Counter()
        """What killed gateways have left, which may be counted or not."""
        self.told: dict[str, list[Bucket]] = {route: [] for route in ROUTES}
        self.names = 0
        self.back = 0.0
        """Seconds by which the clock is behind where it was."""

    def teardown(self) -> None:
        self.runner.run(self.settled())
        self.runner.run(self.all_is_in_exactly_one_bucket())
        for number in range(len(self.stores)):
            self.runner.run(self.place.killed(number))
        self.runner.run(self.places.aclose())
        self.runner.close()

    gateway = st.integers(0, 2)
    route = st.sampled_from(ROUTES)
    faults = st.lists(st.sampled_from(_FAULTS), min_size=1, max_size=3)

    @initialize()
    def begins(self) -> None:
        assert self.runner.run(self.stores[0].courses()) == {}

    @rule(number=gateway, route=route, counts=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 2**40)))
    def count(self, number: int, route: str, counts: dict[str, int]) -> None:
        number %= len(self.stores)
        self.stores[number].count(route, counts)
        self.waiting[number].update({(route, key): amount for key, amount in counts.items()})

    @rule(number=gateway, faults=st.none() | faults, at_once=st.integers(1, 2))
    def flush(self, number: int, faults: list[Fault] | None, at_once: int) -> None:
        number %= len(self.stores)
        if faults is not None:
            self.place.fail(number, faults)

        async def flush() -> bool:
            done = await asyncio.gather(*(self.stores[number].flush() for _ in range(at_once)), return_exceptions=True)
            for each in done:
                assert each is None or isinstance(each, StoreUnavailable), each
            return done[-1] is None

        if self.runner.run(flush()):
            self.flushed += self.waiting[number]
            self.waiting[number].clear()
        self.runner.run(self.place.mended(number))

    @rule(number=gateway, route=route, back=st.sampled_from([0, 0, 0, 1, 2]), faults=st.none() | faults)
    def steer(self, number: int, route: str, back: int, faults: list[Fault] | None) -> None:
        """Somebody changes what they have seen, which may be what was there before."""
        number %= len(self.stores)
        current = self.courses.get(route, Course(0))
        expected = max(0, current.epoch - back)
        self.names += 1
        change = Course(expected + 1, rollout={"stage": self.names}, by=f"gateway-{number}", at=self.names)
        if faults is not None:
            self.place.fail(number, faults)

        async def steer() -> bool | None:
            try:
                return await self.stores[number].steer(route, change, expected)
            except StoreUnavailable:
                return None

        made: bool | None = self.runner.run(steer())
        self.runner.run(self.place.mended(number))
        if made is None:  # it may be made: who tries again is told so
            made = self.runner.run(self.again(number, route, change, expected))
        assert made == (expected == current.epoch)
        if made:
            self.courses[route] = change
            self.known[number][route] = change.epoch

    async def again(self, number: int, route: str, change: Course, expected: int) -> bool:
        await asyncio.sleep(0.02)  # what was on its way has arrived
        return await self.insist(number, lambda: self.stores[number].steer(route, change, expected))

    @rule(route=route)
    def all_steer_at_once(self, route: str) -> None:
        current = self.courses.get(route, Course(0))
        changes = [Course(current.epoch + 1, by=f"gateway-{number}") for number in range(len(self.stores))]

        async def steer() -> list[bool]:
            return await asyncio.gather(
                *(store.steer(route, change, current.epoch) for store, change in zip(self.stores, changes, strict=True))
            )

        made = self.runner.run(steer())
        assert made.count(True) == 1
        self.courses[route] = changes[made.index(True)]
        self.known[made.index(True)][route] = current.epoch + 1

    @rule(number=gateway)
    def look(self, number: int) -> None:
        number %= len(self.stores)
        heard = self.runner.run(self.insist(number, self.stores[number].courses))
        assert heard == self.courses
        self.known[number] = {route: course.epoch for route, course in heard.items()}

    @rule(seconds=st.sampled_from([0.5, 1, 3, 9, 10, 31, -1, -12, -SET_BACK / 2]))
    def time_passes(self, seconds: float) -> None:
        """A clock that is set back further than SET_BACK opens buckets again."""
        if self.back - seconds < SET_BACK - BUCKET:
            self.back = max(0.0, self.back - seconds)
            self.place.advance(seconds)

    @rule(number=gateway, route=route)
    def read(self, number: int, route: str) -> None:
        number %= len(self.stores)
        self.runner.run(self.look_into(number, route))

    @rule(number=gateway)
    def kill(self, number: int) -> None:
        number %= len(self.stores)
        self.runner.run(self.place.killed(number))
        self.unsure += self.waiting[number]
        self.waiting[number].clear()
        self.known[number] = {}
        self.stores[number] = self.runner.run(self.place.opened(number))

    @invariant()
    def nobody_knows_what_nobody_has_done(self) -> None:
        for known in self.known:
            assert all(epoch <= self.courses[route].epoch for route, epoch in known.items())

    async def look_into(self, number: int, route: str) -> list[Bucket]:
        """What is told of closed buckets is what was told of them before, and what has closed since."""
        found = await self.insist(number, lambda: self.stores[number].buckets(route, 0, EVER))
        before = self.told[route]
        assert found[: len(before)] == before
        self.told[route] = found
        return found

    async def settled(self) -> None:
        for number, store in enumerate(self.stores):
            await self.insist(number, store.flush)
            self.flushed += self.waiting[number]
            self.waiting[number].clear()
        await asyncio.sleep(0.02)  # what arrives twice does so a little later
        self.place.advance(2 * SET_BACK)

    async def all_is_in_exactly_one_bucket(self) -> None:
        found: Counter[tuple[str, str]] = Counter()
        for route in ROUTES:
            for at, counts in await self.look_into(0, route):
                assert at % BUCKET == 0
                found.update({(route, key): amount for key, amount in counts.items()})
        for each in {*found, *self.flushed, *self.unsure}:
            assert self.flushed[each] <= found[each] <= self.flushed[each] + self.unsure[each]
            if not self.unsure[each]:
                assert found[each] == self.flushed[each]

    async def insist(self, number: int, ask: Callable[[], Awaitable[T]]) -> T:
        """A machine that is busy may be late."""
        async with asyncio.timeout(20):
            while True:
                try:
                    return await ask()
                except StoreUnavailable:
                    await self.place.mended(number)


def agree(where: Callable[[], Any], examples: int, *phases: Phase) -> None:
    """Raises AssertionError for a history in which store and model differ."""
    run_state_machine_as_test(
        type("HistoryThere", (History,), {"where": staticmethod(where)}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.generate, *phases],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(300)  # a history that fails is made short first
def test_a_file_agrees_with_the_model_in_any_history(tmp_path: Path) -> None:
    with in_memory(tmp_path) as quick:
        number = 0

        @asynccontextmanager
        async def place() -> AsyncIterator[Place]:
            nonlocal number
            number += 1
            folder = quick / str(number)
            folder.mkdir()
            yield FilePlace(folder)

        agree(place, 40, Phase.shrink)


@needs_redis
@pytest.mark.timeout(300)
def test_a_server_agrees_with_the_model_in_any_history_over_connections_that_fail(server: RedisServer) -> None:
    @asynccontextmanager
    async def place() -> AsyncIterator[Place]:
        server.command("FLUSHALL")
        async with AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(fault_proxy(server, delay=0.15)) for _ in range(ServersPlace.gateways)
            ]
            yield ServersPlace([proxy.url for proxy in proxies], proxies)

    agree(place, 5)


@needs_redis
@pytest.mark.timeout(300)
def test_a_cluster_agrees_with_the_model_in_any_history(cluster: list[RedisServer]) -> None:
    @asynccontextmanager
    async def place() -> AsyncIterator[Place]:
        for node in cluster:
            node.command("FLUSHALL")
        yield ServersPlace([node.url for node in cluster], [])

    agree(place, 6)


@needs_redis
async def test_whoever_reads_the_buckets_and_however_often_finds_the_same(server: RedisServer) -> None:
    """What is worked out from closed buckets comes out the same at every gateway, however their looks interleave."""
    server.command("FLUSHALL")
    place = ServersPlace([server.url] * 5, [])
    chance = random.Random(7)
    stores = [await place.opened(number) for number in range(5)]
    cursors, found = [0] * 5, [list[Bucket]() for _ in stores]
    for _ in range(300):
        number = chance.randrange(5)
        match chance.choice(["count", "flush", "read", "time"]):
            case "count":
                stores[number].count("chat", {KEYS[0]: 1})
            case "flush":
                await stores[number].flush()
            case "read":
                some = await stores[number].buckets("chat", cursors[number], EVER)
                found[number] += some
                cursors[number] = some[-1].at + BUCKET if some else cursors[number]
            case "time":
                place.advance(chance.choice([1, 4, 11]))
    place.advance(BUCKET)
    whole = await stores[0].buckets("chat", 0, EVER)
    assert len(whole) > 10
    for number, store in enumerate(stores):
        assert found[number] + await store.buckets("chat", cursors[number], EVER) == whole
        await place.killed(number)
