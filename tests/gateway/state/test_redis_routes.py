"""Courses and counts on real Redis servers: several gateways, connections that fail, servers that lose what they were
told.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.redis_url import RedisUrl
from gateway.state import open_state
from gateway.state.redis_routes import RedisRoutes
from gateway.state.redis_scripts import packed
from gateway.state.redis_servers import RedisServers, tag
from gateway.state.routes import written
from routing.course import BUCKET, HEAR, KEPT, LEASE, Bucket, RouteStore, lapsed
from routing.errors import StoreUnavailable
from tests.gateway.state.routes_suite import AT, CALL, ERROR, EVER, RoutesSuite, Stage, course, total
from tests.support.redis_places import ServerTime, reached
from tests.support.redis_proxy import Fault, FaultProxy, Plan, fault_proxy
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.stores import in_memory

pytestmark = needs_redis

COURSES = f"{tag('')}courses"
SECOND = 1_000_000_000


class ServerStage:
    """One gateway's, at a server whose time begins where the tests say."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._time = ServerTime(AT * 10**9)
        self._open()

    def _open(self) -> None:
        self.servers = RedisServers(RedisUrl.parse(self._url), scripts=self._time.scripts())
        self.store = RedisRoutes(self.servers)

    def advance(self, seconds: float) -> None:
        self._time.advance(seconds)

    async def restart(self) -> None:
        await self.close()
        self._open()
        await reached(self.servers)

    async def close(self) -> None:
        await self.store.close()
        await self.servers.close()


@asynccontextmanager
async def staged(url: str) -> AsyncIterator[ServerStage]:
    opened = ServerStage(url)
    await reached(opened.servers)
    try:
        yield opened
    finally:
        await opened.close()


def empty(servers: Sequence[RedisServer]) -> None:
    for server in servers:
        server.command("FLUSHALL")


class TestRedisRoutes(RoutesSuite):
    """The suite of all stores, at a server."""

    @pytest.fixture
    async def stage(self, server: RedisServer) -> AsyncIterator[Stage]:
        empty([server])
        async with staged(server.url) as opened:
            yield opened


class TestClusterRoutes(RoutesSuite):
    """The same at a cluster."""

    @pytest.fixture
    async def stage(self, cluster: list[RedisServer]) -> AsyncIterator[Stage]:
        empty(cluster)
        async with staged(cluster[0].url) as opened:
            yield opened


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[FaultProxy]:
    empty([server])
    async with fault_proxy(server) as found:
        yield found


@asynccontextmanager
async def gateway(
    url: str, monotonic: Callable[[], int] = time.monotonic_ns, server_time: ServerTime | None = None
) -> AsyncIterator[RedisRoutes]:
    """One of several at a server."""
    scripts = (server_time or ServerTime(AT * 10**9)).scripts()
    servers = RedisServers(RedisUrl.parse(url), scripts=scripts, pause=0.01)
    store = RedisRoutes(servers, monotonic)
    try:
        await reached(servers)
        yield store
    finally:
        await store.close(within=0)
        await servers.close()


async def heard(store: RouteStore, route: str, epoch: int) -> float:
    """Seconds until a gateway that looks as often as it should knows of a change."""
    began = time.monotonic()
    async with asyncio.timeout(10):
        while (known := (await store.courses()).get(route)) is None or known.epoch < epoch:
            await asyncio.sleep(HEAR)
    return time.monotonic() - began


# Several gateways


async def test_a_change_at_one_gateway_is_known_at_the_other_within_a_second(server: RedisServer) -> None:
    empty([server])
    first, second = open_state(server.url), open_state(server.url)
    first.begin()
    second.begin()
    for each in (first, second):
        assert isinstance(each.routes, RedisRoutes)
        await reached(each.routes._servers)
        assert each.routes.shared
    looking = asyncio.create_task(heard(second.routes, "chat", 1))
    await asyncio.sleep(0.05)
    assert await first.routes.steer("chat", course(1, rollout={"state": "ROLLED_BACK"}), 0)
    assert await looking < 1
    assert await second.routes.courses() == await first.routes.courses()
    await first.close()
    await second.close()


async def test_of_several_gateways_that_change_one_course_at_once_exactly_one_does(server: RedisServer) -> None:
    empty([server])
    async with gateway(server.url) as a, gateway(server.url) as b, gateway(server.url) as c:
        for epoch in range(20):
            same = course(epoch + 1)
            made = await asyncio.gather(*(each.steer("chat", same, epoch) for each in (a, b, c)))
            assert made.count(True) == 1, "it is told even of the same change who has made it"
        assert (await a.courses())["chat"].epoch == 20


async def test_counts_of_all_gateways_are_in_one_bucket(server: RedisServer) -> None:
    empty([server])
    clock = ServerTime(AT * 10**9)
    async with gateway(server.url, server_time=clock) as a, gateway(server.url, server_time=clock) as b:
        for number, each in itertools.product(range(5), (a, b)):
            each.count("chat", {CALL: 1, ERROR: number})
            await each.flush()
        clock.advance(BUCKET)
        assert await a.buckets("chat", 0, EVER) == await b.buckets("chat", 0, EVER)
        assert await a.buckets("chat", 0, EVER) == [Bucket(AT, {CALL: 10, ERROR: 20})]


async def test_a_flush_is_one_command_for_each_route_that_has_counts(proxy: FaultProxy) -> None:
    async with gateway(proxy.url) as store:
        await store.flush()
        proxy.seen.clear()
        for number in range(1000):
            store.count(f"route-{number % 3}", {CALL: 1, ERROR: 1})
        await store.flush()
        await store.flush()
        assert [words[0] for words, _ in proxy.seen] == [b"EVALSHA"] * 3


# Connections that fail


@pytest.mark.parametrize("fault", [each for each in Fault if each is not Fault.NONE])
async def test_a_flush_is_counted_once_whatever_becomes_of_it(proxy: FaultProxy, fault: Fault) -> None:
    clock = ServerTime(AT * 10**9)
    async with gateway(proxy.url, server_time=clock) as store:
        faults = [fault, Fault.NONE, fault]
        proxy.plan = _for_scripts(lambda: faults.pop(0) if faults else Fault.NONE)
        for _ in range(3):
            store.count("chat", {CALL: 1, ERROR: 2})
            await _until_flushed(store)
        assert not faults
        await asyncio.sleep(0.02)  # one that arrives twice does so a little later
        clock.advance(BUCKET)
        await reached(store._servers)
        assert total(await store.buckets("chat", 0, EVER)) == {CALL: 3, ERROR: 6}


def _for_scripts(fault: Callable[[], Fault]) -> Plan:
    return lambda words: fault() if words[0] == b"EVALSHA" and int(words[2]) else Fault.NONE


async def _until_flushed(store: RedisRoutes) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            await store.flush()
            return
        except StoreUnavailable:
            assert time.monotonic() < deadline, store.failure
            await asyncio.sleep(0.005)


async def test_flushes_that_arrive_again_later_and_in_any_order_change_nothing(proxy: FaultProxy) -> None:
    clock = ServerTime(AT * 10**9)
    async with gateway(proxy.url, server_time=clock) as a, gateway(proxy.url, server_time=clock) as b:
        proxy.seen.clear()
        for number in range(20):
            for each in (a, b):
                each.count(f"route-{number % 2}", {CALL: 1, ERROR: number})
                await each.flush()
        arrived = [words for words, _ in proxy.seen]
        assert len(arrived) == 40
        random.Random(3).shuffle(arrived)
        for words in arrived:
            assert isinstance(await a._servers.ask("", packed(*words)), list)
        clock.advance(BUCKET)
        counts = [total(await b.buckets(f"route-{number}", 0, EVER)) for number in range(2)]
        assert counts == [{CALL: 20, ERROR: 180}, {CALL: 20, ERROR: 200}]


@pytest.mark.parametrize("fault", [Fault.DROP_REPLY, Fault.CUT_REPLY, Fault.DELAY])
async def test_who_was_not_answered_can_try_the_same_change_again(proxy: FaultProxy, fault: Fault) -> None:
    async with gateway(proxy.url) as store:
        faults = [fault]
        proxy.plan = _for_scripts(lambda: faults.pop() if faults else Fault.NONE)
        with pytest.raises(StoreUnavailable):
            await store.steer("chat", course(1), 0)
        await reached(store._servers)
        assert await store.steer("chat", course(1), 0)
        assert await store.courses() == {"chat": course(1)}


async def test_while_no_server_answers_counts_add_up_and_the_lease_of_a_canary_lapses(proxy: FaultProxy) -> None:
    now = 50 * SECOND
    clock = ServerTime(AT * 10**9)
    async with gateway(proxy.url, lambda: now, clock) as store:
        assert lapsed(store.heard_ns, now), "nothing was heard yet"
        assert await store.steer("chat", course(1), 0)
        await store.courses()
        assert store.heard_ns == now
        proxy.refuse()
        for _ in range(30):
            now += SECOND
            store.count("chat", {CALL: 1})
            with pytest.raises(StoreUnavailable):
                await store.flush()
            with pytest.raises(StoreUnavailable):
                await store.courses()
            assert lapsed(store.heard_ns, now) == (now - 50 * SECOND > LEASE * SECOND)
        with pytest.raises(StoreUnavailable):
            await store.steer("chat", course(2), 1)
        with pytest.raises(StoreUnavailable):
            await store.buckets("chat", 0, EVER)
        assert store.failure is not None
        proxy.restore()
        await reached(store._servers)
        await _until_flushed(store)
        assert await store.courses() == {"chat": course(1)}
        assert not lapsed(store.heard_ns, now)
        clock.advance(BUCKET)
        assert total(await store.buckets("chat", 0, EVER)) == {CALL: 30}


async def test_what_is_heard_is_as_old_as_the_question(proxy: FaultProxy) -> None:
    now = 50 * SECOND
    async with gateway(proxy.url, lambda: now) as store:
        asking = asyncio.create_task(store.courses())
        await asyncio.sleep(0)
        now += 3 * SECOND
        await asking
        assert store.heard_ns == 50 * SECOND


async def test_a_flush_of_which_nobody_can_tell_whether_it_was_counted_is_given_up_after_three_days(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    now = 50 * SECOND
    clock = ServerTime(AT * 10**9)
    async with gateway(proxy.url, lambda: now, clock) as store:
        for fault in (Fault.DROP_REPLY, Fault.DROP_REQUEST):
            proxy.plan = _for_scripts(lambda fault=fault: fault)  # type: ignore[misc]
            store.count("chat", {CALL: 1})
            with pytest.raises(StoreUnavailable):
                await store.flush()
        now += KEPT * SECOND
        proxy.restore()
        await reached(store._servers)
        with caplog.at_level(logging.ERROR):
            await store.flush()
        assert "given up" in caplog.text
        clock.advance(BUCKET)
        assert total(await store.buckets("chat", 0, EVER)) == {CALL: 2}


async def test_a_flush_that_never_left_is_counted_however_long_it_has_waited(proxy: FaultProxy) -> None:
    now = 50 * SECOND
    clock = ServerTime(AT * 10**9)
    async with gateway(proxy.url, lambda: now, clock) as store:
        proxy.refuse()
        while store.failure is None:
            await asyncio.sleep(0.005)
        store.count("chat", {CALL: 1})
        with pytest.raises(StoreUnavailable):
            await store.flush()
        now += KEPT * SECOND
        proxy.restore()
        await _until_flushed(store)
        clock.advance(BUCKET)
        assert total(await store.buckets("chat", 0, EVER)) == {CALL: 1}


async def test_what_was_counted_last_is_flushed_at_the_end_or_its_loss_is_told(
    server: RedisServer, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ServerTime(AT * 10**9)
    for refuses in (False, True):
        servers = RedisServers(RedisUrl.parse(proxy.url), scripts=clock.scripts(), pause=0.01)
        store = RedisRoutes(servers)
        await reached(servers)
        store.count("chat", {CALL: 1})
        if refuses:
            proxy.refuse()
        with caplog.at_level(logging.ERROR):
            await store.close(within=0.2)
        await servers.close()
        assert ("is lost" in caplog.text) == refuses
    clock.advance(BUCKET)
    async with gateway(server.url, server_time=clock) as other:
        assert total(await other.buckets("chat", 0, EVER)) == {CALL: 1}


# Servers that lose what they were told


async def test_a_rollback_that_a_failover_has_lost_stays_in_force_and_is_written_again(server: RedisServer) -> None:
    empty([server])
    back = course(2, rollout={"state": "ROLLED_BACK"}, weights={"openai": 100.0}, instead_of={"parallax": 10.0})
    async with gateway(server.url) as a, gateway(server.url) as b, gateway(server.url) as new:
        assert await a.steer("chat", course(1), 0)
        before = server.command("HGET", COURSES, "chat")
        assert await a.steer("chat", back, 1)
        await b.courses()
        server.command("HSET", COURSES, "chat", before)
        assert (await new.courses())["chat"] == course(1)
        assert not await b.steer("chat", course(3), 2), "what is there is not what it builds on"
        assert (await b.courses())["chat"] == back
        assert (await new.courses())["chat"] == back
        assert await new.steer("chat", course(3), 2)
        assert (await a.courses())["chat"] == course(3)


async def test_a_server_that_has_lost_everything_is_told_every_course_again(server: RedisServer) -> None:
    empty([server])
    async with gateway(server.url) as a, gateway(server.url) as b:
        courses = {f"route-{number}": course(1, comment=str(number)) for number in range(5)}
        for route, each in courses.items():
            assert await a.steer(route, each, 0)
        server.command("FLUSHALL")
        assert await b.courses() == {}
        assert await a.courses() == courses
        assert await b.courses() == courses
        server.command("SCRIPT", "FLUSH")
        assert await b.steer("route-0", course(2), 1)


async def test_a_gateway_that_remembers_an_earlier_course_does_not_put_it_before_a_later_one(
    server: RedisServer,
) -> None:
    empty([server])
    async with gateway(server.url) as a, gateway(server.url) as b:
        assert await a.steer("chat", course(1), 0)
        await b.courses()
        server.command("FLUSHALL")
        assert await b.courses() == {"chat": course(1)}
        for epoch in range(1, 4):
            assert await b.steer("chat", course(epoch + 1), epoch)
        assert await a.courses() == {"chat": course(4)}


async def test_a_look_that_was_overtaken_by_a_change_of_ones_own_takes_nothing_back(proxy: FaultProxy) -> None:
    async with gateway(proxy.url) as store:
        assert await store.steer("chat", course(1), 0)
        looking, steering = store.courses(), store.steer("chat", course(2), 1)
        _, made = await asyncio.gather(looking, steering)
        assert made
        assert await store.courses() == {"chat": course(2)}


async def test_what_a_failover_has_lost_is_not_counted_twice_by_who_tries_again(proxy: FaultProxy) -> None:
    """A server that has lost the last flush has lost that it was counted, too."""
    clock = ServerTime(AT * 10**9)
    async with gateway(proxy.url, server_time=clock) as store:
        store.count("chat", {CALL: 1})
        await store.flush()
        proxy.plan = _for_scripts(lambda: Fault.DROP_REPLY)
        store.count("chat", {CALL: 2})
        with pytest.raises(StoreUnavailable):
            await store.flush()
        proxy.restore()
        proxy._server.command("FLUSHALL")
        await reached(store._servers)
        await _until_flushed(store)
        clock.advance(BUCKET)
        assert total(await store.buckets("chat", 0, EVER)) == {CALL: 2}


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        "1:g",
        "1:g:nonsense",
        '2:g:{"epoch":1}',
        "1:g:{}",
        '1:g:{"epoch":null}',
        "1:g:[]",
        "1:g:" + "[" * 100_000,
    ],
    ids=lambda value: ascii(value[:20]),
)
async def test_a_course_that_cannot_be_read_is_no_course_at_all_and_a_known_one_stays(
    server: RedisServer, value: str
) -> None:
    """It may be a rollback: nobody goes on as if there were none."""
    empty([server])
    async with gateway(server.url) as knows, gateway(server.url) as new:
        assert await knows.steer("chat", course(3), 2) is False
        for epoch in range(3):
            assert await knows.steer("chat", course(epoch + 1), epoch)
        server.command("HSET", COURSES, "chat", value)
        server.command("HSET", COURSES, "other", f"1:g:{written(course(1), 0)}")
        told = await new.courses()
        assert "cannot be read" in told["chat"].trouble
        assert told["other"] == course(1), "one that is no course takes nothing from the others"
        for each in (knows, new):
            assert (await each.courses())["chat"] == course(3)


@pytest.mark.parametrize("kept", ['{"epoch":7,"weights":{"openai":NaN}}', "nonsense"])
async def test_a_later_course_that_cannot_be_used_is_told_as_that_and_left_where_it_is(
    server: RedisServer, caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    """It may be a newer gateway's."""
    empty([server])
    async with gateway(server.url) as knows, gateway(server.url) as new:
        assert await knows.steer("chat", course(1), 0)
        server.command("HSET", COURSES, "chat", f"7:g:{kept}")
        for each in (knows, new, knows):
            told = (await each.courses())["chat"]
            assert (told.epoch, told.weights, bool(told.trouble)) == (7, None, True)
        assert server.command("HGET", COURSES, "chat") == f"7:g:{kept}"
        assert "written again" not in caplog.text
        assert await new.steer("chat", course(8), 7), "a person's change can take its place"
        assert await knows.courses() == {"chat": course(8)}


# What stays on the server


async def test_all_but_the_courses_is_gone_after_three_days(server: RedisServer) -> None:
    empty([server])
    async with gateway(server.url) as store:
        assert await store.steer("chat", course(1), 0)
        store.count("chat", {CALL: 1})
        await store.flush()
        left = {key: server.command("TTL", key) for key in server.command("KEYS", "*")}
        assert left.pop(COURSES) == -1
        assert len(left) == 3
        assert all(key.startswith(tag("chat")) for key in left)
        assert all(KEPT - 60 < seconds <= KEPT + BUCKET for seconds in left.values())


async def test_each_route_of_a_cluster_is_counted_where_its_slot_is(cluster: list[RedisServer]) -> None:
    empty(cluster)
    async with gateway(cluster[1].url) as store:
        for number in range(30):
            store.count(f"route-{number}", {CALL: 1})
        await store.flush()
        keys = [len(node.command("KEYS", "*:bucket:*")) for node in cluster]
        assert sum(keys) == 30
        assert min(keys) > 0


async def test_a_node_that_is_gone_holds_up_only_the_counts_of_its_own_routes(cluster: list[RedisServer]) -> None:
    empty(cluster)
    clock = ServerTime(AT * 10**9)
    async with gateway(cluster[0].url, server_time=clock) as store:
        routes = [f"route-{number}" for number in range(30)]

        async def counted(route: str) -> Counter[str]:
            return total(await store.buckets(route, AT, AT + 360 * BUCKET))  # three days of them would take long

        cluster[2].freeze()
        try:
            for _ in range(2):
                for each in routes:
                    store.count(each, {CALL: 1})
                with pytest.raises(StoreUnavailable):
                    await store.flush()
            clock.advance(BUCKET)
            told = [await counted(each) for each in routes if each not in store._sent]
            assert 0 < len(told) < 30
            assert all(each == {CALL: 2} for each in told)
        finally:
            cluster[2].thaw()
        await reached(store._servers)
        await _until_flushed(store)
        clock.advance(BUCKET)
        assert [await counted(each) for each in routes] == [{CALL: 2}] * 30


async def test_a_server_that_is_killed_and_comes_back_has_every_course_that_was_promised(tmp_path: Path) -> None:
    with (
        in_memory(tmp_path) as folder,
        redis_server(folder, "--appendonly", "yes", "--appendfsync", "always") as server,
    ):
        async with gateway(server.url) as a, gateway(server.url) as b:
            for epoch in range(10):
                assert await a.steer("chat", course(epoch + 1), epoch)
            server.kill()
            with pytest.raises(StoreUnavailable):
                await b.courses()
            server.start()
            await reached(b._servers)
            assert await b.courses() == {"chat": course(10)}


async def test_what_is_written_again_does_not_take_the_place_of_a_later_course(server: RedisServer) -> None:
    """Somebody else was quicker, after one had been told that it is lost."""
    empty([server])
    async with gateway(server.url) as a, gateway(server.url) as b:
        for epoch in range(2):
            assert await a.steer("chat", course(epoch + 1), epoch)
        assert await b.steer("chat", course(3), 2)
        await a._write_again("chat")
        async with gateway(server.url) as new:
            assert await new.courses() == {"chat": course(3)}
