"""Several gateways on one Redis server: a change acts in all of them, one of them tells of it, and one that cannot hear
gives its canary nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.redis_url import RedisUrl
from gateway.state.redis_routes import RedisRoutes
from gateway.state.redis_servers import RedisServers
from gateway.state.redis_wire import PATIENCE
from routing import course
from routing.course import BUCKET, HEAR
from tests.routing.buckets import CANARY, OTHER, START, bucket
from tests.support.bridge import ROUTE, Bridge
from tests.support.redis_places import ServerTime, reached
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.steered import Steered, steered, written
from tests.support.stores import in_memory
from tests.support.target import Target, target

pytestmark = needs_redis


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.command("FLUSHALL")
    return running


@pytest.fixture
async def model() -> AsyncIterator[Target]:
    async with target() as it:
        yield it


@pytest.fixture
async def pair(server: RedisServer, model: Target, tmp_path: Path) -> AsyncIterator[tuple[Steered, Steered]]:
    """Two gateways with the same configuration."""
    with in_memory(tmp_path) as quick:
        one, two = (written(quick / name, model.url, state=server.url) for name in ("one", "two"))
        async with steered(one) as first, steered(two) as second:
            yield first, second


def weights(gateway: Steered) -> list[float]:
    route = gateway.app.pipeline.assembly.table.named("chat")
    assert route is not None
    return [arm.weight for arm in route.arms]


def barred(gateway: Steered) -> set[str]:
    route = gateway.app.pipeline.assembly.table.named("chat")
    assert route is not None
    return set(route.weights.barred)


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.02)  # what is heard by a task of its own tells nobody


def test_a_gateway_looks_often_enough_for_changes_to_act_within_a_second() -> None:
    assert HEAR + 2 * PATIENCE <= 1.0


async def test_weights_that_are_set_at_one_gateway_act_at_the_other(pair: tuple[Steered, Steered]) -> None:
    one, two = pair
    assert weights(one) == weights(two) == [90.0, 10.0]
    assert (await one.weigh(0, 100)).status_code == 200
    assert await one.call("s-1") == "own"
    await until(lambda: weights(two) == [0.0, 100.0])
    assert await two.call("s-1") == "own"
    assert (await two.weigh(100, 0)).status_code == 200
    await until(lambda: weights(one) == [100.0, 0.0])
    assert [each["old"]["own"] for each in two.recorded("weights")] == [100.0]


async def test_what_is_taken_back_at_one_gateway_is_taken_back_at_both_and_told_once(
    pair: tuple[Steered, Steered],
) -> None:
    one, two = pair
    assert (await two.step("start")).status_code == 200
    await until(lambda: weights(one) == [50.0, 50.0])
    assert (await one.rollout())["state"] == "RUNNING"
    assert (await one.step("abort")).status_code == 200
    await until(lambda: barred(two) == {"own"})
    assert (await one.calls(20), await two.calls(20)) == ({"hosted": 20}, {"hosted": 20})
    told = [[each["event"] for each in gateway.recorded("rollout")] for gateway in pair]
    assert told == [["abort"], ["start"]]
    assert (await two.step("resume")).status_code == 409


async def test_of_steps_at_two_gateways_at_once_one_is_taken(pair: tuple[Steered, Steered]) -> None:
    answers = await asyncio.gather(*(gateway.step("start") for gateway in pair))
    assert sorted(each.status_code for each in answers) == [200, 409]
    assert sum(len(gateway.recorded("rollout")) for gateway in pair) == 1


async def test_a_server_that_forgets_does_not_bring_a_canary_back(
    pair: tuple[Steered, Steered], server: RedisServer
) -> None:
    one, two = pair
    await one.step("start")
    await one.step("abort")
    await until(lambda: barred(two) == {"own"})
    server.command("FLUSHALL")
    await until(lambda: server.command("HLEN", "wb:{t:}:courses") == 1)
    assert (barred(one), barred(two)) == ({"own"}, {"own"})


async def test_what_nobody_can_use_is_not_written_again_once_somebody_has_deleted_it(
    pair: tuple[Steered, Steered], server: RedisServer
) -> None:
    server.command("HSET", "wb:{t:}:courses", "chat", f"{10**20}:somebody:{{}}")
    await until(lambda: all(each.app.steering.trouble("chat") for each in pair))
    assert [weights(each) for each in pair] == [[100.0, 0.0]] * 2
    assert (await pair[0].step("start")).status_code == 503
    server.command("HDEL", "wb:{t:}:courses", "chat")
    await until(lambda: not any(each.app.steering.trouble("chat") for each in pair))
    assert server.command("HLEN", "wb:{t:}:courses") == 0
    assert (await pair[0].step("start")).status_code == 200
    await until(lambda: weights(pair[1]) == [50.0, 50.0])


async def test_a_gateway_that_cannot_hear_gives_its_canary_no_new_session(
    pair: tuple[Steered, Steered], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    monkeypatch.setattr(course, "LEASE", 1.0)  # fifteen seconds, sooner
    await one.step("start")
    await until(lambda: weights(two) == [50.0, 50.0])
    server.freeze()
    try:
        await until(lambda: weights(one) == weights(two) == [100.0, 0.0])
        assert (await one.calls(20), await two.calls(20)) == ({"hosted": 20}, {"hosted": 20})
    finally:
        server.thaw()
    await until(lambda: weights(one) == weights(two) == [50.0, 50.0])


async def test_a_gateway_that_starts_without_its_server_gives_its_canary_nothing_until_it_is_there(
    model: Target, tmp_path: Path
) -> None:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as server:
        server.kill()
        async with steered(written(tmp_path / "one", model.url, state=server.url)) as gateway:
            assert weights(gateway) == [100.0, 0.0]
            server.start()
            await until(lambda: weights(gateway) == [90.0, 10.0])


class AtServer:
    """A server's time, which begins where the tests say."""

    def __init__(self) -> None:
        self.server = ServerTime(START * 10**9)

    def now_ns(self) -> int:
        return self.server.now_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def advance(self, seconds: float) -> None:
        self.server.advance(seconds)


@asynccontextmanager
async def steering(url: str, clock: AtServer) -> AsyncIterator[Bridge]:
    servers = RedisServers(RedisUrl.parse(url), scripts=clock.server.scripts())
    store = RedisRoutes(servers)
    try:
        await reached(servers)
        bridge = Bridge(store, clock)
        await bridge.steering.hear()
        yield bridge
        await bridge.webhooks.close(within=0)
    finally:
        await store.close(within=0)
        await servers.close()


@pytest.mark.parametrize("round_", range(3))
async def test_gateways_count_together_and_of_those_that_judge_one_tells(server: RedisServer, round_: int) -> None:
    clock = AtServer()
    async with (
        steering(server.url, clock) as one,
        steering(server.url, clock) as two,
        steering(server.url, clock) as three,
    ):
        gateways = [one, two, three]
        await gateways[round_].steering.move(ROUTE, "start", "dana")
        for each in gateways:
            await each.steering.hear()
            assert each.weights == {OTHER: 90.0, CANARY: 10.0}
            each.store.count(ROUTE, bucket(0, (4, 4), (40, 0)).counts)
            await each.store.flush()
        clock.advance(BUCKET)
        await asyncio.gather(*(each.steering.judge() for each in gateways))
        records = sorted((record for each in gateways for record in each.told()), key=lambda each: each["event"])
        assert [each["event"] for each in records] == ["rollback", "start"]
        assert records[0]["facts"]["errors"] == 12
        assert sum(each.steering.moves[ROUTE, "rollback"] for each in gateways) == 1
        for each in gateways:
            await each.steering.hear()
            assert each.barred == {CANARY}
