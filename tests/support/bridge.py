"""Where a gateway's routes are steered from, on a clock that is held: by hand, a beat or a bucket at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from config.settings import RolloutSettings
from gateway.assembly import Assembly
from gateway.state.embedded import EmbeddedStore
from gateway.state.routes import EmbeddedRoutes
from gateway.steering import Steering
from gateway.webhooks import Webhooks
from routing.course import BUCKET, LEASE, Bucket, Course, RouteStore
from routing.errors import StoreUnavailable
from routing.table import Route
from tests.routing.buckets import CANARY, OTHER, START, bucket
from tests.support.exchanges import assembly
from tests.support.gate import MemoryLedger

ROUTE = "chat"
TARGETS = [{"name": name, "kind": "openai", "url": "http://127.0.0.1:9"} for name in (CANARY, OTHER, "claude")]
STEPS = [
    {"weight": 10, "hold": "10m", "max_error_rate": 0.01},
    {"weight": 30, "hold": "10m", "max_error_rate": 0.005},
]
PLAN: Mapping[str, Any] = {"canary": CANARY, "steps": STEPS}


class Clock(Protocol):
    """Unix time and a monotonic one, in nanoseconds; the first is put forward by a test."""

    def now_ns(self) -> int: ...

    def monotonic_ns(self) -> int: ...

    def advance(self, seconds: float) -> None: ...


class HeldClock:
    """Unix time, and a monotonic one beside it, that pass when they are told to."""

    def __init__(self) -> None:
        self._ns = START * 10**9

    def now_ns(self) -> int:
        return self._ns

    def monotonic_ns(self) -> int:
        return self._ns

    def advance(self, seconds: float) -> None:
        self._ns += round(seconds * 10**9)


class Faulty:
    """A store of courses before which something stands: it `refuses` all, or all that is written (`read_only`), or
    loses the answers to changes."""

    shared = True

    def __init__(self, store: RouteStore, clock: HeldClock) -> None:
        self.refuses = False
        self.read_only = False
        self.loses_answers = False
        self.tried: list[Course] = []
        self.asked = 0
        """How often it was asked for buckets."""
        self._store = store
        self._clock = clock
        self._heard_ns = clock.monotonic_ns() - int(LEASE * 10**9) - 1

    @property
    def failure(self) -> str | None:
        return "out of reach" if self.refuses else None

    @property
    def heard_ns(self) -> int:
        return self._heard_ns

    def begin(self) -> None:
        self._store.begin()

    async def courses(self) -> Mapping[str, Course]:
        self._check()
        found = await self._store.courses()
        self._heard_ns = self._clock.monotonic_ns()
        return found

    async def steer(self, route: str, course: Course, expected_epoch: int) -> bool:
        self.tried.append(course)
        self._check(writing=True)
        made = await self._store.steer(route, course, expected_epoch)
        if self.loses_answers:
            raise StoreUnavailable("the answer was lost")
        return made

    def count(self, route: str, counts: Mapping[str, int]) -> None:
        self._store.count(route, counts)

    async def flush(self) -> None:
        self._check(writing=True)
        await self._store.flush()

    async def buckets(self, route: str, since: int, until: int) -> list[Bucket]:
        self.asked += 1
        self._check()
        return await self._store.buckets(route, since, until)

    async def close(self) -> None:
        await self._store.close()

    def _check(self, *, writing: bool = False) -> None:
        if self.refuses or (writing and self.read_only):
            raise StoreUnavailable("out of reach")


def configured(rollout: Mapping[str, Any] | None = PLAN, *, canary: float = 10, **more: Any) -> Assembly:
    """A route whose arms are the canary, with this weight, and another; and a second route, without a rollout."""
    arms = [{"target": OTHER, "weight": 100 - canary}, {"target": CANARY, "weight": canary}]
    route: dict[str, Any] = {"name": ROUTE, "models": ["gpt-*"], "arms": arms, **more}
    if rollout is not None:
        route["rollout"] = rollout
    halves = [{"target": OTHER, "weight": 50}, {"target": "claude", "weight": 50}]
    plain = {"name": "plain", "models": ["*"], "arms": halves}
    return assembly(targets=TARGETS, routes=[route, plain])


class Bridge:
    """One gateway's steering. `samples` are the calls that its canary has failed."""

    def __init__(self, store: RouteStore, clock: Clock, under: Assembly | None = None) -> None:
        self.store = store
        self.clock = clock
        self.ledger = MemoryLedger()
        self.webhooks = Webhooks(pauses=())
        self.failed: list[str] = ["call-1", "call-2"]
        self.steering = Steering(
            store,
            self.ledger,
            self.webhooks,
            samples=lambda route: self.failed,
            now_ns=clock.now_ns,
            monotonic_ns=clock.monotonic_ns,
        )
        self.under(under if under is not None else configured())

    def under(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.steering.under(assembly)

    @property
    def route(self) -> Route:
        found = self.assembly.table.named(ROUTE)
        assert found is not None
        return found

    @property
    def weights(self) -> dict[str, float]:
        return {arm.target.name: arm.weight for arm in self.route.arms}

    @property
    def barred(self) -> frozenset[str]:
        return self.route.weights.barred

    @property
    def plan(self) -> RolloutSettings:
        return self.steering.rollout(ROUTE)[1]

    @property
    def state(self) -> str:
        return self.steering.rollout(ROUTE)[0].state.value

    def told(self, kind: str = "rollout") -> list[Mapping[str, Any]]:
        """What the ledger has of this kind."""
        return [each for each in self.ledger.records if each["record"] == kind]

    async def beat(self) -> None:
        """What is done twice a second."""
        with suppress(StoreUnavailable):
            await self.steering.hear()
        await self.steering.judge()

    async def traffic(self, canary: tuple[int, int], other: tuple[int, int], buckets: int = 1) -> None:
        """So many buckets of (calls, errors) at the two arms, each taken in when it is closed."""
        for _ in range(buckets):
            self.store.count(ROUTE, bucket(0, canary, other).counts)
            await self.store.flush()
            self.clock.advance(BUCKET)
            await self.steering.hear()
            await self.steering.judge()


@asynccontextmanager
async def kept(folder: Path, clock: HeldClock) -> AsyncIterator[EmbeddedRoutes]:
    """The courses and counts of one process after the other, in one file."""
    budgets = EmbeddedStore(folder / "state.db", clock.now_ns)
    routes = EmbeddedRoutes(budgets, clock.now_ns)
    try:
        yield routes
    finally:
        await routes.close()
        await budgets.close()
