"""Budgets on real Redis servers: several gateways at once, clocks that are wrong, servers that go and come back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.redis_url import RedisUrl
from gateway.state import open_state, redis_wire
from gateway.state.redis import RedisStore
from gateway.state.redis_limits import RedisLimits
from policies.budgets import (
    LEASE,
    Account,
    Conflict,
    Raised,
    Short,
    StoreUnavailable,
    account,
)
from policies.limits import Limit, LimitReached
from policies.money import NANO, nano
from tests.support.redis_places import RedisPlace, ServerTime, reached
from tests.support.redis_proxy import Fault, fault_proxy
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.stores import DAY, NOW, ask, budget, paying, spent, standing, unseen

pytestmark = needs_redis

ACCOUNTS = paying(budget("acme", nano(500)), budget("acme/bot", nano(50)))
AT_MOST = 0.25
SLACK = 0.15
"""Seconds by which a loaded machine may be late."""
HOUR = 3600.0


@asynccontextmanager
async def opened(url: str, server_time: ServerTime | None = None, **arguments: Any) -> AsyncIterator[RedisStore]:
    """One gateway's store."""
    scripts = (server_time or ServerTime(NOW)).scripts()
    store = RedisStore(RedisUrl.parse(url), scripts=scripts, **arguments)
    try:
        await reached(store.servers)
        yield store
    finally:
        await store.close()


@pytest.fixture
def place(server: RedisServer) -> RedisPlace:
    return RedisPlace([server], NOW)


@pytest.fixture
async def store(place: RedisPlace) -> AsyncIterator[RedisStore]:
    opened = await place.open()
    yield opened
    await opened.close()


@pytest.fixture
async def other(store: RedisStore, place: RedisPlace) -> AsyncIterator[RedisStore]:
    """Another gateway's, at the same place."""
    opened = await place.open()
    yield opened
    await opened.close()


async def settled(store: RedisStore) -> None:
    """Returns once all that was told has happened."""
    async with asyncio.timeout(10):
        while len(store.outbox):
            await asyncio.sleep(0.001)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


async def took(asking: Awaitable[object]) -> float:
    """Seconds until it was said that the store is not available."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await asking
    return time.monotonic() - began


# Several gateways


async def test_a_thousand_calls_of_two_gateways_spend_a_cap_to_the_cent(store: RedisStore, other: RedisStore) -> None:
    accounts = paying(budget("acme", nano(5)))

    async def call(number: int) -> bool:
        gateway = (store, other)[number % 2]
        try:
            loan = await gateway.reserve(ask(f"c{number}", accounts, nano(0.10)))
        except Short:
            return False
        gateway.settle(loan, nano(0.10), [spent(nano(0.10))])
        return True

    assert sum(await asyncio.gather(*map(call, range(1000)))) == 50
    await settled(store)
    await settled(other)
    assert await standing(store, accounts) == [(5 * NANO, 0)]
    assert [row["cost"] for row in await other.spend(["acme"], DAY, DAY, [], {})] == [5 * NANO]


async def test_a_limit_that_is_set_at_one_gateway_holds_at_the_other_for_the_next_call(
    store: RedisStore, other: RedisStore
) -> None:
    accounts = paying(budget(limit=100))
    await store.reserve(ask("c1", accounts, 100))
    with pytest.raises(Short):
        await other.reserve(ask("c2", accounts, 1))
    await store.raise_limit(Raised("acme", "day", 150, 100, "dana", NOW, "a launch"))
    assert (await other.reserve(ask("c2", accounts, 60, least=1))).amount == 50
    await other.raise_limit(Raised("acme", "day", 20, 100, "sam", NOW))
    with pytest.raises(Short) as refused:
        await store.reserve(ask("c3", accounts, 1))
    assert refused.value.balance.limit == 20


async def test_what_a_gateway_has_lent_is_renewed_while_it_lives_and_expires_after_it(
    store: RedisStore, other: RedisStore, place: RedisPlace
) -> None:
    loan = await store.reserve(ask("c1", ACCOUNTS, 40))
    for _ in range(3):
        place.time.advance(LEASE - 5)
        await store.renew()
        assert await other.expire() == 0
    await store.close(within=0)
    place.time.advance(LEASE + 1)
    assert await other.expire() == 1
    assert await standing(other, ACCOUNTS) == [(40, 0), (40, 0)]
    other.settle(loan, 15, [spent(15)])
    assert await standing(other, ACCOUNTS) == [(15, 0), (15, 0)]


async def test_many_loans_of_many_tenants_expire_in_small_batches(
    store: RedisStore, other: RedisStore, place: RedisPlace
) -> None:
    for number in range(150):
        tenant = f"t{number % 120}" if number < 120 else "busy"
        accounts = paying(budget(tenant))
        await store.reserve(ask(f"c{number}", accounts, 1)._replace(tenant=tenant))
    await store.close(within=0)
    place.time.advance(LEASE + 1)
    expired = 0
    async with asyncio.timeout(10):
        while expired < 150:
            expired += await other.expire()
    assert await standing(other, paying(budget("t0"), budget("t119"), budget("busy"))) == [(1, 0), (1, 0), (30, 0)]


async def test_a_loan_is_never_there_without_its_tenant_being_known_to_every_gateway(
    server: RedisServer, place: RedisPlace, other: RedisStore
) -> None:
    """The gateway dies right after it was lent something, and after the connection that should have told the tenant."""
    lost: list[list[bytes]] = []

    def plan(words: list[bytes]) -> Fault:
        if words[0] != b"SADD" or lost:
            return Fault.NONE
        lost.append(words)
        return Fault.DROP_REQUEST

    async with fault_proxy(server, plan) as proxy, opened(proxy.url, place.time, pause=0.01) as store:
        loan = None
        while loan is None:
            with contextlib.suppress(StoreUnavailable):
                loan = await store.reserve(ask("c1", ACCOUNTS, 40))
            await until(lambda: bool(lost))
            await reached(store.servers)
        assert await standing(other, ACCOUNTS) == [(0, 40), (0, 40)]
        await store.close(within=0)
    place.time.advance(LEASE + 1)
    assert await other.expire() == 1
    assert await standing(other, ACCOUNTS) == [(40, 0), (40, 0)]


async def test_who_is_refused_because_of_what_a_dead_gateway_was_lent_sees_to_it_that_it_expires(
    store: RedisStore, other: RedisStore, place: RedisPlace, server: RedisServer
) -> None:
    await store.reserve(ask("c1", ACCOUNTS, nano(50)))
    await store.close(within=0)
    server.command("DEL", "wb:{t:}:tenants")
    place.time.advance(LEASE + 1)
    assert await other.expire() == 0, "nobody knows of the tenant"
    with pytest.raises(Short):
        await other.reserve(ask("c2", ACCOUNTS, 1))
    assert await other.expire() == 1
    assert await standing(other, ACCOUNTS) == [(nano(50), 0), (nano(50), 0)]


# Clocks


@pytest.mark.parametrize("hours", [2, -2])
async def test_a_gateway_whose_clock_is_wrong_lends_from_the_servers_window(server: RedisServer, hours: int) -> None:
    """Half an hour before midnight or after it, by the server's clock."""
    truth = (NOW // (86_400 * NANO) + 1) * 86_400 * NANO + (-1800 if hours > 0 else 1800) * NANO
    server.command("FLUSHALL")
    server_time = ServerTime(truth)
    async with opened(server.url, server_time, clock=lambda: server_time.now_ns() + hours * 3600 * NANO) as store:
        daily, monthly, session = (budget("acme", window=window) for window in ("day", "month", "session"))
        right, wrong = (
            (account(daily, now, None), account(monthly, now, None), account(session, now, None))
            for now in (truth, truth + hours * 3600 * NANO)
        )
        assert right[0] != wrong[0]
        assert right[2] != wrong[2]
        assert abs(store.now_ns() - server_time.now_ns()) < NANO
        loan = await store.reserve(ask("c1", wrong, 40))
        assert loan.accounts == right
        assert await standing(store, right) == [(0, 40)] * 3
        store.settle(loan, 15, [])
        assert await standing(store, right) == [(15, 0)] * 3
        assert await standing(store, (wrong[0], wrong[2])) == [(0, 0), (0, 0)]


async def test_a_clock_that_is_set_meanwhile_is_seen_through_at_the_next_answer(server: RedisServer) -> None:
    ahead = 0
    async with opened(server.url, clock=lambda: time.time_ns() + ahead) as store:
        before = store.now_ns()
        for step in (7200 * NANO, -7200 * NANO):
            ahead += step
            await store.balances(ACCOUNTS)
            assert abs(store.now_ns() - before) < 10 * NANO


async def test_a_session_is_no_window_of_a_day(store: RedisStore, place: RedisPlace) -> None:
    accounts = paying(budget("acme", window="session"), session="s")
    await store.reserve(ask("c1", accounts, 40))
    place.time.advance(5 * 86_400)
    assert (await store.reserve(ask("c2", accounts, 40))).accounts == accounts


@pytest.mark.parametrize(
    ("unix", "day"),
    [
        (951_782_399, "2000-02-28"),
        (951_782_400, "2000-02-29"),
        (1_709_251_199, "2024-02-29"),
        (1_709_251_200, "2024-03-01"),
        (1_767_225_599, "2025-12-31"),
        (1_767_225_600, "2026-01-01"),
        (4_107_542_400, "2100-03-01"),
    ],
)
async def test_the_server_knows_what_day_it_is(server: RedisServer, unix: int, day: str) -> None:
    server.command("FLUSHALL")
    async with opened(server.url, ServerTime(unix * NANO + NANO // 2)) as store:
        loan = await store.reserve(ask("c1", paying(budget(window="day"), budget(window="month")), 1))
        assert [each.window_id for each in loan.accounts] == [day, day[:7]]


# Round trips


async def test_lending_and_settling_are_one_command_each(server: RedisServer) -> None:
    server.command("FLUSHALL")
    async with fault_proxy(server) as proxy, opened(proxy.url) as store:
        await store.reserve(ask("c0", ACCOUNTS, 40))
        await store.balances(ACCOUNTS)
        proxy.seen.clear()
        loan = await store.reserve(ask("c1", ACCOUNTS, 40))
        assert [words[0] for words, _ in proxy.seen] == [b"EVALSHA"]
        store.settle(loan, 15, [spent(15), spent(2, model="other")])
        await settled(store)
        assert [words[0] for words, _ in proxy.seen] == [b"EVALSHA"] * 2


async def test_scripts_that_a_server_has_forgotten_are_told_again(server: RedisServer) -> None:
    server.command("FLUSHALL")
    async with fault_proxy(server) as proxy, opened(proxy.url) as store:
        loan = await store.reserve(ask("c1", ACCOUNTS, 40))
        await store.balances(ACCOUNTS)
        server.command("SCRIPT", "FLUSH")
        proxy.seen.clear()
        await store.reserve(ask("c2", ACCOUNTS, 40))
        assert [words[0] for words, _ in proxy.seen] == [b"EVALSHA", b"SCRIPT", b"EVALSHA"]
        server.command("SCRIPT", "FLUSH")
        store.settle(loan, 15, [])
        await settled(store)
        assert await standing(store, ACCOUNTS) == [(15, 40), (15, 40)]


# Without a server


@pytest.mark.parametrize("fault", [Fault.DROP_REQUEST, Fault.DROP_REPLY, Fault.CUT_REPLY, Fault.DELAY])
async def test_a_call_is_told_in_time_that_there_is_no_answer_and_what_it_was_lent_is_paid_back(
    server: RedisServer, fault: Fault
) -> None:
    server.command("FLUSHALL")
    async with fault_proxy(server, delay=0.5) as proxy, opened(proxy.url) as store:
        await store.reserve(ask("c0", ACCOUNTS, 1))
        faults = iter([fault])
        proxy.plan = lambda words: next(faults, Fault.NONE)
        assert await took(store.reserve(ask("c1", ACCOUNTS, 40))) < AT_MOST + SLACK
        store.void(unseen("c1", ACCOUNTS))
        await settled(store)
        await reached(store.servers)
        assert await standing(store, ACCOUNTS) == [(0, 1), (0, 1)]
        with pytest.raises(Conflict):
            await store.reserve(ask("c1", ACCOUNTS, 40))


async def test_while_a_server_is_frozen_calls_are_refused_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url) as store:
            loans = [await store.reserve(ask(f"c{number}", ACCOUNTS, 10)) for number in range(20)]
            server.freeze()
            assert AT_MOST / 2 < await took(store.reserve(ask("late", ACCOUNTS, 10))) < AT_MOST + SLACK
            store.void(unseen("late", ACCOUNTS))
            assert "did not answer" in str(store.failure)
            for number in range(50):
                assert await took(store.reserve(ask(f"late{number}", ACCOUNTS, 10))) < 0.02
                assert await took(store.extend(loans[0], 20)) < 0.02
                store.void(unseen(f"late{number}", ACCOUNTS))
            for loan in loans:
                store.settle(loan, 7, [spent(7)])
            store.post("unlent", "acme", ACCOUNTS, 5, [spent(5)])
            assert len(store.outbox) == 72
            server.thaw()
            await settled(store)
            assert store.failure is None
            assert await standing(store, ACCOUNTS) == [(145, 0), (145, 0)]
            assert [row["cost"] for row in await store.spend(["acme"], DAY, DAY, [], {})] == [145]


async def test_a_server_that_is_killed_under_calls_comes_back_with_what_it_was_told(tmp_path: Path) -> None:
    accounts = paying(budget("acme", nano(1)))
    truths: dict[str, int] = {}
    slowest = 0.0

    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        async with opened(server.url, pause=0.02) as store:

            async def call(number: int) -> None:
                nonlocal slowest
                await asyncio.sleep(number * 0.002)
                name, began = f"c{number}", time.monotonic()
                try:
                    loan = await store.reserve(ask(name, accounts, 1000))
                except StoreUnavailable:
                    store.void(unseen(name, accounts))
                    slowest = max(slowest, time.monotonic() - began)
                    return
                await asyncio.sleep(0.05)
                truths[name] = number
                store.settle(loan, number, [spent(number)])

            calls = asyncio.gather(*map(call, range(300)))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.kill)
            await until(lambda: store.failure is not None)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
            await calls
            await settled(store)
            assert 0 < len(truths) < 300
            assert slowest < AT_MOST + SLACK
            assert await standing(store, accounts) == [(sum(truths.values()), 0)]
            (row,) = await store.spend(["acme"], DAY, DAY, [], {})
            assert (row["cost"], row["calls"]) == (sum(truths.values()), len(truths))


async def test_a_connection_that_was_idle_and_is_closed_costs_no_call(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "SHORT_LIVED", 0.0)
    server.command("FLUSHALL")
    async with fault_proxy(server) as proxy, opened(proxy.url, pause=10.0) as store:
        for number in range(3):
            proxy.cut()
            await asyncio.sleep(0.01)
            await store.reserve(ask(f"idle{number}", ACCOUNTS, 1))


async def test_a_store_can_be_opened_before_its_server_is_there(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        server.kill()
        state = open_state(server.url)
        assert isinstance(state.budgets, RedisStore)
        assert isinstance(state.limits, RedisLimits)
        state.begin()
        await until(lambda: "Connect" in str(state.budgets.failure) or "refused" in str(state.budgets.failure))
        assert await took(state.budgets.reserve(ask("c1", paying(budget()), 1))) < AT_MOST + SLACK
        limited = state.limits.enter("c1", "acme", (Limit("acme", "concurrent", 1),), None, 0)
        assert await took(limited) < AT_MOST + SLACK
        server.start()
        await until(lambda: state.budgets.failure is None)
        now = state.budgets.now_ns()
        assert (await state.budgets.reserve(ask("c1", (account(budget(), now, None),), 1))).amount == 1
        await state.close()


@pytest.mark.parametrize(
    ("setting", "value", "normally", "word"),
    [("maxmemory", "1", "0", "memory"), ("min-replicas-to-write", "1", "0", "NOREPLICAS")],
)
async def test_a_server_that_cannot_write_is_not_asked_until_it_can(
    tmp_path: Path, setting: str, value: str, normally: str, word: str
) -> None:
    with redis_server(tmp_path) as server:
        async with opened(server.url, pause=0.01) as store:
            loan = await store.reserve(ask("c1", ACCOUNTS, 40))
            server.command("CONFIG", "SET", setting, value)
            await took(store.reserve(ask("c2", ACCOUNTS, 40)))
            await asyncio.sleep(0.1)
            assert word in str(store.failure)
            store.settle(loan, 15, [spent(15)])
            server.command("CONFIG", "SET", setting, normally)
            await settled(store)
            await reached(store.servers)
            assert await standing(store, ACCOUNTS) == [(15, 0), (15, 0)]


async def test_a_wrong_password_is_told_without_the_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(tmp_path) as server:
        server.command("CONFIG", "SET", "requirepass", "right-password")
        with caplog.at_level(logging.DEBUG):
            for url in (f"redis://:wrong-password@127.0.0.1:{server.port}", server.url):
                store = RedisStore(RedisUrl.parse(url))
                store.begin()
                await until(lambda store=store: store.failure not in (None, "not reached yet"))  # type: ignore[misc]
                assert "password" in str(store.failure).lower() or "authentication" in str(store.failure).lower()
                said = f"{store.failure} {caplog.text} {store.servers.url!r}"
                with pytest.raises(StoreUnavailable) as refused:
                    await store.reserve(ask("c1", ACCOUNTS, 1))
                assert "wrong-password" not in f"{said} {refused.value!r}"
                await store.close()
        async with opened(f"redis://:right-password@127.0.0.1:{server.port}/0") as store:
            await store.reserve(ask("c1", ACCOUNTS, 1))


# What was told and what the server forgets


async def test_a_loan_that_the_server_has_lost_is_posted_all_the_same(store: RedisStore, server: RedisServer) -> None:
    loan = await store.reserve(ask("c1", ACCOUNTS, 40))
    server.command("FLUSHALL")
    store.settle(loan, 15, [spent(15)])
    assert await standing(store, ACCOUNTS) == [(15, 0), (15, 0)]


@pytest.mark.parametrize("first", ["settle", "post"])
async def test_what_is_tried_again_after_its_traces_are_gone_is_not_posted_twice(
    server: RedisServer, place: RedisPlace, first: str
) -> None:
    """A first attempt whose answer was lost, then an hour without a server, in which it has forgotten the call."""
    async with fault_proxy(server) as proxy, opened(proxy.url, place.time, patience=0.05, pause=0.01) as store:
        loan = await store.reserve(ask("c1", ACCOUNTS, 40))
        untold = await store.reserve(ask("c2", ACCOUNTS, 40))
        proxy.plan = lambda words: Fault.DROP_REPLY
        if first == "settle":
            store.settle(loan, 15, [spent(15)])
        else:
            store.post("c3", "acme", ACCOUNTS, 15, [spent(15)])
        await until(lambda: store.failure is not None)
        proxy.refuse()
        if first == "post":
            store.void(loan)
        store.settle(untold, 20, [spent(20)])
        store.post("c4", "acme", ACCOUNTS, 5, [spent(5)])
        assert await _told(server, ACCOUNTS) == (15, 40 if first == "settle" else 80)
        server.command("DEL", *server.command("KEYS", "*loan:c1" if first == "settle" else "*post:c3"))
        place.time.advance(HOUR)
        proxy.restore()
        await settled(store)
        assert await standing(store, ACCOUNTS) == [(40, 0), (40, 0)]
        assert [row["cost"] for row in await store.spend(["acme"], DAY, DAY, [], {})] == [40]


async def test_what_was_never_sent_is_posted_however_long_it_has_waited(tmp_path: Path) -> None:
    """Told while a connection is made, which then cannot be made for an hour."""
    server_time = ServerTime(NOW)
    with redis_server(tmp_path) as server:
        server.freeze()
        told: dict[str, Any] = {"clock": server_time.now_ns, "scripts": server_time.scripts()}
        store = RedisStore(RedisUrl.parse(server.url), **told, patience=0.05, pause=0.01)
        store.post("c1", "acme", ACCOUNTS, 5, [])
        await until(lambda: store.failure != "not reached yet")
        server_time.advance(HOUR)
        server.thaw()
        await settled(store)
        assert await standing(store, ACCOUNTS) == [(5, 0), (5, 0)]
        await store.close()


async def _told(server: RedisServer, accounts: tuple[Account, ...]) -> tuple[int, int]:
    """What the server has of the first account, asked past every gateway."""
    key = f"wb:{{t:acme}}:account:{accounts[0].key}"
    posted, pending = server.command("HMGET", key, "posted", "pending")
    return int(posted), int(pending)


async def test_how_a_call_has_ended_is_known_for_an_hour_and_accounts_stay_for_weeks(
    store: RedisStore, server: RedisServer
) -> None:
    store.settle(await store.reserve(ask("c1", ACCOUNTS, 40)), 15, [spent(15)])
    store.void(await store.reserve(ask("c2", ACCOUNTS, 40)))
    store.post("c3", "acme", ACCOUNTS, 5, [spent(5)])
    await store.reserve(ask("c4", ACCOUNTS, 40))
    await settled(store)
    kept = {key.partition("}:")[2]: server.command("TTL", key) for key in server.command("KEYS", "*")}
    for key in ("loan:c1", "loan:c2", "post:c3"):
        assert HOUR < kept[key] < 2 * HOUR
    assert kept["loan:c4"] == kept["leases"] == -1, "what is lent must not be forgotten"
    assert server.command("ZRANGE", "wb:{t:acme}:leases", 0, -1) == ["c4"]
    assert kept[f"account:{ACCOUNTS[0].key}"] > 30 * 86_400
    assert kept[f"ledger:{DAY}"] > 399 * 86_400


async def test_what_waits_is_bounded_and_loud(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with fault_proxy(server) as proxy, opened(proxy.url, patience=0.05, pause=0.01) as store:
        store.outbox._most = 10
        proxy.refuse()
        await until(lambda: store.failure is not None)
        for number in range(15):
            store.void(unseen(f"c{number}", ACCOUNTS))
        assert (len(store.outbox), store.outbox.lost) == (10, 5)
        assert "were lost" in caplog.text
        proxy.restore()
        await settled(store)


async def test_closing_carries_out_what_was_told_or_says_what_was_not(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.command("FLUSHALL")
    async with fault_proxy(server) as proxy:
        async with opened(proxy.url, patience=0.05, pause=0.01) as store:
            loan = await store.reserve(ask("c1", ACCOUNTS, 40))
            proxy.refuse()
            await until(lambda: store.failure is not None)
            store.settle(loan, 15, [])
            asyncio.get_running_loop().call_later(0.1, proxy.restore)
        assert await _told(server, ACCOUNTS) == (15, 0)
        async with opened(proxy.url, patience=0.05, pause=0.01) as store:
            proxy.refuse()
            await until(lambda: store.failure is not None)
            store.post("c2", "acme", ACCOUNTS, 15, [])
            await store.close(within=0.05)
        assert "were lost" in caplog.text
        lost = store.outbox.lost
        store.post("c3", "acme", ACCOUNTS, 15, [])
        assert store.outbox.lost == lost + 1
        assert await took(store.reserve(ask("c4", ACCOUNTS, 1))) < 0.02


# What is known


async def test_what_answers_tell_is_known_for_a_second(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.known(ACCOUNTS) is None
    loan = await store.reserve(ask("c1", ACCOUNTS, 40))
    assert store.known(ACCOUNTS) == list(loan.balances)
    assert [(each.posted, each.pending) for each in loan.balances] == [(0, 40), (0, 40)]
    await store.extend(loan, 50)
    store.settle(loan, 15, [])
    await settled(store)
    known = store.known(ACCOUNTS)
    assert known is not None
    assert [(each.posted, each.pending, each.limit) for each in known] == [
        (15, 0, each.budget.limit) for each in ACCOUNTS
    ]
    edited = tuple(dataclasses.replace(each, budget=dataclasses.replace(each.budget, limit=1)) for each in ACCOUNTS)
    assert store.known(edited) is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.1)
    assert store.known(ACCOUNTS) is None


# Limits


async def test_two_gateways_let_in_no_more_calls_than_one_would(store: RedisStore, other: RedisStore) -> None:
    gates = [RedisLimits(each.servers) for each in (store, other)]
    limits = (Limit("acme", "concurrent", 10), Limit("acme/bot", "calls_per_minute", 15))

    async def come(number: int) -> bool:
        try:
            await gates[number % 2].enter(f"c{number}", "acme", limits, "=s", 0)
        except LimitReached:
            return False
        return True

    assert sum(await asyncio.gather(*map(come, range(100)))) == 10
    for gate in gates:
        await gate.close()


async def test_the_places_of_a_gateway_that_is_gone_are_free_after_a_minute(
    store: RedisStore, other: RedisStore, place: RedisPlace
) -> None:
    limits = (Limit("acme", "concurrent", 1),)
    gone, here = RedisLimits(store.servers), RedisLimits(other.servers)
    held = await gone.enter("c1", "acme", limits, None, 0)
    for _ in range(3):
        place.time.advance(LEASE - 5)
        await gone.renew()
        with pytest.raises(LimitReached):
            await here.enter("c2", "acme", limits, None, 0)
    await gone.close(within=0)
    place.time.advance(LEASE + 1)
    await here.enter("c2", "acme", limits, None, 0)
    here.leave(held, 0)
    with pytest.raises(LimitReached):
        await here.enter("c3", "acme", limits, None, 0)
    await here.close()


async def test_a_renewal_that_comes_late_takes_no_place(store: RedisStore) -> None:
    limits = (Limit("acme", "concurrent", 1),)
    gate = RedisLimits(store.servers)
    held = await gate.enter("c1", "acme", limits, None, 0)
    gate.leave(held, 0)
    gate.inside["c1"] = held  # as one knows it that was under way when the call left
    await gate.renew()
    await gate.enter("c2", "acme", limits, None, 0)
    await gate.close()


async def test_a_loan_given_up_while_it_is_waited_for_is_paid_back(store: RedisStore) -> None:
    """Whoever is cancelled there cannot do it."""
    waiting = asyncio.ensure_future(store.reserve(ask("c1", ACCOUNTS, 40)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await settled(store)
    assert await standing(store, ACCOUNTS) == [(0, 0), (0, 0)]
