"""Approvals on real Redis servers: several gateways, connections that fail, servers that lose what they were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from config.redis_url import RedisUrl
from gateway.state.redis_approvals import PIECE, UNKNOWN_KEPT, RedisApprovals
from gateway.state.redis_servers import RedisServers
from gateway.state.redis_subscription import ALIVE
from policies.approval_store import ANSWERS_KEPT, KEPT, Answer, StoreUnavailable
from policies.approvals import ENDED, Approval, State, claimed, finished, moved, superseded
from policies.approvals import Move as Moved
from tests.gateway.state.approvals_suite import (
    EVER,
    LEASE,
    NOW,
    SECOND,
    ApprovalsSuite,
    Ear,
    Stage,
    approval,
    approved,
    call,
    grant,
    in_state,
    message,
    name,
    opened,
    standing,
    told,
)
from tests.support.redis_places import ServerTime, reached
from tests.support.redis_proxy import Fault, FaultProxy, Plan, fault_proxy
from tests.support.redis_server import RedisServer, needs_redis, redis_server

pytestmark = needs_redis

BASE = "wb:{t:}:approvals"
FAULTS = [each for each in Fault if each is not Fault.NONE]
Found = TypeVar("Found")


class ServerStage:
    """Two gateways' at a server whose time begins where the tests say."""

    def __init__(self, servers: Sequence[RedisServer]) -> None:
        for each in servers:
            each.command("FLUSHALL")
        self._urls = [each.url for each in servers]
        self._time = ServerTime(NOW)
        self._servers: list[RedisServers] = []
        self.handles: list[RedisApprovals] = []

    async def open(self) -> None:
        self._servers = [
            RedisServers(RedisUrl.parse(self._urls[number % len(self._urls)]), scripts=self._time.scripts())
            for number in range(2)
        ]
        self.handles = [RedisApprovals(each) for each in self._servers]
        await asyncio.gather(*map(reached, self._servers))

    def advance(self, seconds: float) -> None:
        self._time.advance(seconds)

    async def restart(self) -> None:
        await self.close()
        await self.open()

    async def close(self) -> None:
        for store, servers in zip(self.handles, self._servers, strict=True):
            await store.close()
            await servers.close()


@asynccontextmanager
async def staged(servers: Sequence[RedisServer]) -> AsyncIterator[ServerStage]:
    opened = ServerStage(servers)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


class TestRedisApprovals(ApprovalsSuite):
    """The suite of all stores, at a server."""

    @pytest.fixture
    async def stage(self, server: RedisServer) -> AsyncIterator[Stage]:
        async with staged([server]) as opened:
            yield opened


class TestClusterApprovals(ApprovalsSuite):
    """The same at a cluster."""

    @pytest.fixture
    async def stage(self, cluster: list[RedisServer]) -> AsyncIterator[Stage]:
        async with staged(cluster) as opened:
            yield opened


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[FaultProxy]:
    server.command("FLUSHALL")
    async with fault_proxy(server, delay=0.2) as found:
        yield found


@asynccontextmanager
async def gateway(
    url: str, server_time: ServerTime | None = None, patience: float = 5.0, **store: int
) -> AsyncIterator[RedisApprovals]:
    """One of several at a server."""
    scripts = (server_time or ServerTime(NOW)).scripts()
    servers = RedisServers(RedisUrl.parse(url), scripts=scripts, patience=patience, pause=0.01)
    opened_here = RedisApprovals(servers, **store)
    try:
        await reached(servers)
        yield opened_here
    finally:
        await opened_here.close()
        await servers.close()


def for_scripts(fault: Callable[[], Fault]) -> Plan:
    """What becomes of steps, and not of what a connection begins with."""
    return lambda words: fault() if words[0] == b"EVALSHA" and int(words[2]) else Fault.NONE


async def insisted(ask: Callable[[], Awaitable[Found]]) -> Found:
    """What somebody finds who tries again until there is an answer."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                await asyncio.sleep(0.005)


def of(which: Approval) -> str:
    return f"{BASE}:of:{which.id}"


# Connections that fail


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_step_is_done_once_whatever_becomes_of_it(proxy: FaultProxy, fault: Fault) -> None:
    """Every command fails the first time, and is tried again."""
    known: set[tuple[bytes, ...]] = set()

    def first_time(words: list[bytes]) -> Fault:
        if words[0] == b"EVALSHA" and int(words[2]) and tuple(words) not in known:
            known.add(tuple(words))
            return fault
        return Fault.NONE

    proxy.plan = first_time
    async with gateway(proxy.url, patience=0.05) as store:
        fresh = approval(call=call(body=random.Random(1).randbytes(2 * PIECE + 7)))
        notes = [message(NOW + number) for number in range(3)]
        assert await insisted(lambda: store.open(fresh, notes[:2])) == fresh
        given = approved(fresh)
        assert await insisted(lambda: store.replace(given, notes[2:]))
        claim = claimed(given, "c", LEASE, NOW)
        assert await insisted(lambda: store.replace(claim))
        done, answer = finished(claim, "c", NOW), Answer(200, (), b"done" * PIECE)
        assert await insisted(lambda: store.replace(done, answer=answer))
        first, other = approval(), approval(call=call(body=bytes(PIECE + 1)))
        assert await insisted(lambda: store.open(first)) == first
        assert await insisted(lambda: store.supersede(superseded(first, other, NOW), other))
        await insisted(lambda: store.delivered(notes[0].id))
        await insisted(lambda: store.postponed(notes[1].id, EVER))
        allowed = grant(max_uses=3)
        await insisted(lambda: store.grant(allowed))
        for user in "abc":
            assert await insisted(lambda user=user: store.use(allowed.id, user, 5))  # type: ignore[misc]
        await insisted(lambda: store.give_back(allowed.id, "b"))
        assert await insisted(lambda: store.stand("acme", "bot", standing(1)))

    await proxy.arrived()
    async with gateway(proxy._server.url) as store:
        for wanted in (done, other, superseded(first, other, NOW)):
            assert await store.get(wanted.id) == wanted
        assert await store.answer(done.id) == answer
        assert await store.messages(EVER, LEASE) == [notes[2], replace(notes[1], tries=1)]
        assert await store.grants() == [replace(allowed, uses=2, cost=10)]
        assert await store.standings() == {("acme", "bot"): standing(1)}
        assert await store.due(EVER) == [other]
        assert await store.listed(list(State)) == [done, superseded(first, other, NOW), other]


@pytest.mark.parametrize("fault", FAULTS)
async def test_messages_whose_way_was_lost_come_again_after_the_lease(proxy: FaultProxy, fault: Fault) -> None:
    async with gateway(proxy.url, patience=0.05) as store:
        notes = [message(NOW + number) for number in range(3)]
        await store.open(approval(), notes)
        fails = [fault]
        proxy.plan = for_scripts(lambda: fails.pop() if fails else Fault.NONE)
        found: list[str] = []
        for at in (EVER, EVER + LEASE, EVER + 2 * LEASE):

            async def taken(at: int = at) -> None:
                found.extend([each.id for each in await store.messages(at, LEASE)])

            await insisted(taken)
        assert {each.id for each in notes} == set(found)


@pytest.mark.parametrize("seed", range(3))
async def test_of_twelve_who_claim_over_bad_connections_one_does(proxy: FaultProxy, seed: int) -> None:
    chance = random.Random(seed)
    faults = [Fault.NONE] * 20 + [each for each in FAULTS if each is not Fault.DELAY]
    async with gateway(proxy.url) as a, gateway(proxy.url) as b, gateway(proxy.url) as c:
        stores = [a, b, c]
        for _ in range(6):
            proxy.restore()
            await asyncio.gather(*(reached(each._servers) for each in stores))
            given = await opened(a, approval(), State.APPROVED)
            proxy.plan = for_scripts(lambda: chance.choice(faults))
            claims = [claimed(given, f"call-{number}", LEASE, NOW) for number in range(12)]

            async def tried(number: int, claims: list[Approval] = claims) -> bool:
                return await insisted(lambda: stores[number % 3].replace(claims[number], [message(approval="x")]))

            won = await asyncio.gather(*map(tried, range(12)))
            assert won.count(True) == 1
            proxy.restore()
            await asyncio.gather(*(reached(each._servers) for each in stores))
            assert await c.get(given.id) == claims[won.index(True)]
        assert len(await told(a)) == 6


async def test_no_command_is_so_long_that_others_have_to_wait(proxy: FaultProxy) -> None:
    async with gateway(proxy.url) as store:
        proxy.seen.clear()
        bodies = [random.Random(number).randbytes(3 * PIECE + number) for number in range(4)]
        made = [approval(call=call(body=body)) for body in bodies]
        assert await asyncio.gather(*map(store.open, made)) == made
        assert await store.listed([State.PENDING]) == made
        assert await store.due(EVER) == made
        again = approval(key=made[0].key, call=made[0].call)
        brought = sum(len(words) == 7 for words, _ in proxy.seen)
        assert await store.open(again) == made[0]
        assert sum(len(words) == 7 for words, _ in proxy.seen) == brought, "who attaches brings nothing"
        assert max(len(word) for words, _ in proxy.seen for word in words) <= PIECE
        asked = [words for words, _ in proxy.seen if words[0] == b"GETRANGE"]
        assert all(int(last) - int(first) < PIECE for _, _, first, last in asked)


async def test_pieces_that_arrive_late_or_twice_make_no_other_body(proxy: FaultProxy) -> None:
    async with gateway(proxy.url) as store:
        body = random.Random(5).randbytes(3 * PIECE + 5)
        first = approval(call=call(body=body))
        await store.open(first)
        pieces = [words for words, _ in proxy.seen if len(words) == 7]
        assert len(pieces) == 4
        for words in reversed(pieces):
            await store._servers.command("", *(word for word in words))  # type: ignore[arg-type]
        second = approval(call=call(body=body))
        assert await store.open(second) == second
        assert await store.get(second.id) == second
        assert await store.get(first.id) == first


async def test_the_versions_of_ten_thousand_are_one_round_trip(proxy: FaultProxy) -> None:
    async with gateway(proxy.url) as store:
        first = await opened(store, approval())
        proxy.seen.clear()
        proxy._server.freeze()
        try:
            wanted = [first.id, *(name("apr") for _ in range(9_999))]
            asking = asyncio.create_task(store.versions(wanted))
            while sum(words[0] == b"EVALSHA" for words, _ in proxy.seen) < 10:
                await asyncio.sleep(0.001)
        finally:
            proxy._server.thaw()
        assert await asking == {first.id: 1}


async def test_while_no_server_answers_whoever_asks_is_told_at_once(proxy: FaultProxy) -> None:
    async with gateway(proxy.url) as store:
        first = await opened(store, approval())
        proxy.refuse()
        while store.failure is None:
            await asyncio.sleep(0.005)
        for ask in (
            lambda: store.get(first.id),
            lambda: store.open(approval()),
            lambda: store.replace(approved(first)),
            lambda: store.due(EVER),
            lambda: store.standings(),
            lambda: store.answer(first.id),
        ):
            with pytest.raises(StoreUnavailable):
                await ask()
        proxy.restore()
        await reached(store._servers)
        assert await store.get(first.id) == first


# Listening


async def heard(ear: Ear, wanted: str | None) -> None:
    async with asyncio.timeout(20):
        while wanted not in ear.ids:
            ear._news.clear()
            await ear._news.wait()
    ear.ids.clear()


async def test_who_listens_is_told_that_something_may_be_missed_when_the_connection_was_lost(proxy: FaultProxy) -> None:
    async with gateway(proxy.url) as store, gateway(proxy._server.url) as other:
        ear = Ear()
        store.listen(ear)
        store.begin()
        await heard(ear, None)
        first = await opened(other, approval())
        await heard(ear, first.id)
        proxy.cut()
        await heard(ear, None)
        assert await other.replace(approved(first))
        await heard(ear, first.id)


async def test_a_subscription_that_says_nothing_any_more_is_made_anew(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ALIVE <= 1
    monkeypatch.setattr("gateway.state.redis_subscription.ALIVE", 0.05)
    async with gateway(proxy.url) as store:
        ear = Ear()
        store.listen(ear)
        store.begin()
        await heard(ear, None)
        await asyncio.sleep(0.3)
        assert ear.ids == [], "one that only has nothing to tell is not given up"
        proxy.plan = lambda words: Fault.DELAY if words[0] == b"PING" else Fault.NONE
        await heard(ear, None)


async def test_a_listener_that_fails_hinders_neither_the_others_nor_what_comes_next(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.command("FLUSHALL")

    def fails(changed: object) -> None:
        raise ValueError("as a listener may")

    async with gateway(server.url) as store:
        ear = Ear()
        store.listen(fails)
        store.listen(ear)
        store.begin()
        await heard(ear, None)
        for _ in range(2):
            await heard(ear, (await opened(store, approval())).id)
        assert "as a listener may" in caplog.text


async def test_where_nothing_may_be_published_all_else_goes_on_and_it_is_told_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.command("FLUSHALL")
    server.command("ACL", "SETUSER", "quiet", "on", ">secret", "~*", "+@all", "resetchannels")
    try:
        async with gateway(server.url.replace("//", "//quiet:secret@")) as store:
            ear = Ear()
            store.listen(ear)
            store.begin()
            first = await opened(store, approval())
            await heard(ear, first.id)
            assert await store.replace(approved(first))
            await asyncio.sleep(0.05)
            assert await store.get(first.id) == approved(first)
        assert caplog.text.count("changes are not heard") == 1
    finally:
        server.command("ACL", "DELUSER", "quiet")


# Servers that lose what they were told


@asynccontextmanager
async def failing_over(
    folder: Path,
) -> AsyncIterator[tuple[FaultProxy, Callable[[], Awaitable[None]], Callable[[], None]]]:
    """A server with a replica: how the replica hears no more, and how it takes over from a server that is gone."""
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with (
        redis_server(folder / "a", "--repl-diskless-sync-delay", "0") as primary,
        redis_server(folder / "b") as replica,
    ):
        replica.command("REPLICAOF", "127.0.0.1", primary.port)

        async def lags() -> None:
            async with asyncio.timeout(20):
                while (replica.command("INFO", "replication")).get("master_link_status") != "up" or (
                    replica.command("INFO", "replication")["slave_repl_offset"]
                    < primary.command("INFO", "replication")["master_repl_offset"]
                ):
                    await asyncio.sleep(0.005)
            replica.command("REPLICAOF", "NO", "ONE")

        def takes_over() -> None:
            primary.kill()
            before._server = replica
            before.cut()

        async with fault_proxy(primary) as before:
            yield before, lags, takes_over


async def test_a_claim_that_a_failover_has_lost_is_not_made_again_and_people_are_asked_anew(tmp_path: Path) -> None:
    async with failing_over(tmp_path) as (proxy, lags, takes_over):
        async with gateway(proxy.url) as gone:
            given = await opened(gone, approval(), State.APPROVED)
            waiting = await opened(gone, approval())
            await lags()
            assert await gone.replace(claimed(given, "c1", LEASE, NOW))
            takes_over()
        async with gateway(proxy.url) as other:
            assert await other.get(given.id) == given, "the claim is lost"
            assert not await other.replace(claimed(given, "c2", LEASE, NOW))
            revoked = await other.get(given.id)
            assert revoked is not None
            assert (revoked.state, revoked.version) == (State.REVOKED, 3)
            assert "may have forgotten that the call was sent" in revoked.reason
            assert not await other.replace(claimed(given, "c3", LEASE, NOW))
            again = approval(key=given.key)
            assert await other.open(again) == again
            for each in (again, waiting):
                decided = approved(each)
                assert await other.replace(decided)
                assert await other.replace(claimed(decided, "c4", LEASE, NOW)), "it was given since"


async def test_who_has_a_call_under_way_tells_its_end_though_the_claim_was_lost(tmp_path: Path) -> None:
    async with failing_over(tmp_path) as (proxy, lags, takes_over), gateway(proxy.url) as store:
        given = await opened(store, approval(), State.APPROVED)
        claim = claimed(given, "c1", LEASE, NOW)
        await lags()
        assert await store.replace(claim)
        takes_over()
        done, answer = finished(claim, "c1", NOW), Answer(200, (), b"done")
        assert await insisted(lambda: store.replace(done, answer=answer))
        async with gateway(proxy.url) as other:
            assert await other.get(given.id) == done
            assert await other.answer(given.id) == answer


async def test_what_a_gateway_has_seen_and_a_failover_has_lost_is_written_again(tmp_path: Path) -> None:
    async with failing_over(tmp_path) as (proxy, lags, takes_over), gateway(proxy.url) as a, gateway(proxy.url) as b:
        every = [await opened(a, approval()) for _ in range(4)]
        await lags()
        denied = [in_state(each, State.DENIED)[0] for each in every]
        for each in denied:
            assert await a.replace(each)
        assert await b.listed([State.DENIED]) == denied
        await a.close()
        takes_over()
        async with gateway(proxy.url) as new:
            assert await new.get(every[0].id) == every[0]
            assert await insisted(lambda: b.get(denied[0].id)) == denied[0]
            assert await b.versions([denied[1].id]) == {denied[1].id: 2}
            assert await new.get(denied[1].id) == denied[1]
            assert await b.last(denied[2].key) == denied[2]
            assert denied[3] in await b.listed([State.PENDING])
            assert await new.listed([State.DENIED]) == denied
            assert not await new.replace(approved(every[0]))


def taken_back(server: RedisServer, which: Approval) -> None:
    """The server has lost what has happened to an approval since `kept_as_it_is`."""
    assert server.command("COPY", f"saved:{{t:}}:{which.id}", of(which), "REPLACE") == 1


def kept_as_it_is(server: RedisServer, which: Approval) -> None:
    assert server.command("COPY", of(which), f"saved:{{t:}}:{which.id}", "REPLACE") == 1


@pytest.mark.parametrize("after", sorted((ENDED | {State.CONSUMED}) - {State.SUPERSEDED}))
async def test_an_approval_that_was_seen_used_or_ended_never_comes_back(server: RedisServer, after: State) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store, gateway(server.url) as other:
        fresh = await opened(store, approval())
        before, last = fresh, fresh
        for each in in_state(fresh, after):
            kept_as_it_is(server, fresh)
            assert await store.replace(each)
            before, last = last, each
        taken_back(server, fresh)
        assert await other.get(fresh.id) == before
        assert await store.get(fresh.id) == last
        assert await other.get(fresh.id) == last
        if before.state is State.APPROVED:
            assert not await other.replace(claimed(before, "c9", LEASE, NOW))
            assert await store.due(EVER) == ([last] if after is State.CONSUMED else [])


async def test_an_approval_that_was_written_again_is_not_used_for_its_claim_may_be_lost_too(
    server: RedisServer,
) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store, gateway(server.url) as gone:
        fresh = await opened(store, approval())
        kept_as_it_is(server, fresh)
        given = approved(fresh)
        assert await store.replace(given)
        assert await gone.replace(claimed(given, "c1", LEASE, NOW))
        taken_back(server, fresh)
        assert await store.get(fresh.id) == given
        assert not await store.replace(claimed(given, "c2", LEASE, NOW))
        revoked = await store.get(fresh.id)
        assert revoked is not None
        assert revoked.state is State.REVOKED


async def test_of_two_decisions_of_which_one_was_lost_the_one_that_is_there_holds(server: RedisServer) -> None:
    """Whoever builds on the other is refused, though it would fit by its number."""
    server.command("FLUSHALL")
    async with gateway(server.url) as a, gateway(server.url) as b:
        fresh = await opened(a, approval(needs=("finance", "finance")))
        kept_as_it_is(server, fresh)
        one = approved(fresh, "dana")
        assert await a.replace(one)
        taken_back(server, fresh)
        no = moved(fresh, Moved.DENY, NOW)
        assert await b.replace(no)
        assert not await a.replace(approved(one, "lee"))
        assert await a.get(fresh.id) == no
        assert await b.get(fresh.id) == no


async def test_a_server_that_is_killed_and_comes_back_has_all_that_was_promised(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        async with gateway(server.url) as store:
            note, waiting = message(), approval(needs=("finance", "finance"))
            await store.open(waiting, [note])
            voted_once = approved(waiting, "sam")
            assert await store.replace(voted_once)
            given = await opened(store, approval(), State.APPROVED)
            used = await opened(store, approval(), State.CONSUMED)
            allowed = grant()
            await store.grant(allowed)
            assert await store.stand("acme", "bot", standing(1))
            server.kill()
            server.start()
            for each in (voted_once, given, used):
                assert await insisted(lambda each=each: store.get(each.id)) == each  # type: ignore[misc]
            assert await told(store) == [note.id]
            assert await store.grants() == [allowed]
            assert await store.standings() == {("acme", "bot"): standing(1)}
            assert await store.replace(finished(used, "call-1", NOW))
            decided = approved(voted_once)
            assert await store.replace(decided)
            assert await store.replace(claimed(decided, "c", LEASE, NOW))
            assert not await store.replace(claimed(given, "c", LEASE, NOW)), "nobody knows that nothing was lost"


async def test_a_call_that_was_surely_not_sent_can_be_claimed_again(server: RedisServer) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store:
        claim = await opened(store, approval(), State.CONSUMED)
        given = moved(claim, Moved.RELEASE, NOW)
        assert await store.replace(given)
        assert await store.replace(claimed(given, "c2", LEASE, NOW))


async def test_an_agent_that_was_stopped_stays_so_when_the_server_has_forgotten_it(server: RedisServer) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as a, gateway(server.url) as b, gateway(server.url) as new:
        assert await a.stand("acme", "bot", standing(1))
        await b.standings()
        assert await a.stand("acme", "bot", standing(2, state="quarantined"))
        server.command("FLUSHALL")
        assert await new.standings() == {}
        assert await b.standings() == {("acme", "bot"): standing(1)}
        assert await a.standings() == {("acme", "bot"): standing(2, state="quarantined")}
        assert await new.standings() == await b.standings() == await a.standings()


async def test_a_grant_that_was_revoked_stays_so_when_the_server_has_forgotten_it(server: RedisServer) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store, gateway(server.url) as other:
        allowed = grant()
        await store.grant(allowed)
        assert await store.revoke(allowed.id)
        server.command("FLUSHALL")
        await other.grant(allowed)
        assert not await store.use(allowed.id, "a", 0)
        assert await other.use(allowed.id, "a", 0)
        assert await store.grants() == []
        assert await other.grants() == []
        assert not await other.use(allowed.id, "b", 0)


async def test_where_a_gateway_may_not_see_which_history_a_server_has_claims_are_made_all_the_same(
    server: RedisServer,
) -> None:
    server.command("FLUSHALL")
    server.command("ACL", "SETUSER", "blind", "on", ">secret", "~*", "&*", "+@all", "-info")
    try:
        async with gateway(server.url.replace("//", "//blind:secret@")) as store:
            await opened(store, approval(), State.DONE)
    finally:
        server.command("ACL", "DELUSER", "blind")


# What others have put there


@pytest.mark.parametrize(
    "spoil",
    [
        ("SET", "{of}", "theirs"),
        ("HSET", "{of}", "doc", "{{"),
        ("HSET", "{of}", "doc", '{{"id": 1}}'),
        ("HSET", "{of}", "doc", ""),
        ("HSET", "{of}", "version", "nine"),
        ("HDEL", "{of}", "doc"),
        ("HDEL", "{of}", "length"),
        ("DEL", "{body}"),
        ("SETRANGE", "{body}", 10**6, "x"),
        ("SETRANGE", "{body}", 12, "9"),
        ("HSET", "{body}", "not", "text"),
    ],
)
async def test_an_approval_that_cannot_be_read_hinders_no_other_and_is_told_once(
    server: RedisServer, spoil: Sequence[str | int], caplog: pytest.LogCaptureFixture
) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as writer, gateway(server.url) as store:
        made = [await opened(writer, approval()) for _ in range(3)]
        odd = made.pop(0)
        if spoil[0] == "HSET" and "body" in str(spoil[1]):
            server.command("DEL", f"{BASE}:body:{odd.id}")
        words = [
            each.format(of=of(odd), body=f"{BASE}:body:{odd.id}") if isinstance(each, str) else each for each in spoil
        ]
        server.command(*words)
        for _ in range(2):
            assert await store.listed([State.PENDING]) == made
            assert await store.due(EVER) == made
            assert await store.due(EVER, 1) == made[:1]
            with pytest.raises(StoreUnavailable):
                await store.get(odd.id)
            with pytest.raises(StoreUnavailable):
                await store.last(odd.key)
            await store.versions([odd.id])
        assert caplog.text.count("is passed over") == 1
        assert await store.replace(approved(made[0]))


@pytest.mark.parametrize(
    "key", ["due", "outbox", "messages", "in:pending", "in:pending:acme", "share", "key:k", "ends"]
)
async def test_where_a_key_is_somebody_elses_nothing_is_half_done(server: RedisServer, key: str) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store:
        first = await opened(store, approval())
        server.command("DEL", f"{BASE}:{key}")
        server.command("SETBIT" if key != "key:k" else "LPUSH", f"{BASE}:{key}", 1, 1)
        before = sorted(server.command("KEYS", "*"))
        fresh = approval(key="k")
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await store.open(fresh, [message()])
        if key != "key:k":
            with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
                await store.replace(approved(first), [message()])
        assert sorted(server.command("KEYS", "*")) == before
        assert await store.get(first.id) == first
        server.command("DEL", f"{BASE}:{key}")
        assert await store.open(fresh, [message()]) == fresh


@pytest.mark.parametrize("words", [("SET", "{"), ("SET", "{}"), ("RPUSH", "theirs")])
async def test_an_answer_that_cannot_be_read_is_no_other_answer(server: RedisServer, words: tuple[str, str]) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store:
        server.command(words[0], f"{BASE}:answer:apr_1", words[1])
        if words[0] == "SET":
            with pytest.raises(StoreUnavailable, match="cannot be read"):
                await store.answer("apr_1")
        else:
            assert await store.answer("apr_1") is None


async def test_messages_grants_and_standings_that_cannot_be_read_hinder_no_others(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store:
        note, allowed = message(), grant()
        await store.open(approval(), [note])
        for which, text in (("a", "1 0 {"), ("b", "nonsense"), ("c", '1 0 {"id": 7}')):
            server.command("HSET", f"{BASE}:messages", which, text)
            server.command("ZADD", f"{BASE}:outbox", 1, which)
        server.command("ZADD", f"{BASE}:outbox", 1, "without a text")
        await store.grant(allowed)
        server.command("ZADD", f"{BASE}:grants", EVER, "grt_odd", EVER, "grt_text", EVER, "grt_none")
        server.command("HSET", f"{BASE}:grant:grt_odd", "text", "{")
        server.command("SET", f"{BASE}:grant:grt_text", "theirs")
        assert await store.stand("acme", "bot", standing(1))
        server.command("HSET", f"{BASE}:standings", "[1]", "1:{}", "nonsense", "1:{}", '["acme","odd"]', "7:{")
        for _ in range(2):
            assert note in await store.messages(EVER, 0)
            assert await store.grants() == [allowed]
            for which in ("grt_odd", "grt_none"):
                assert not await store.use(which, "c", 0)
            with pytest.raises(StoreUnavailable):
                await store.use("grt_text", "c", 0)
            stand = await store.standings()
            assert stand["acme", "bot"] == standing(1)
            assert stand["acme", "odd"].state == "paused", "it may be that it was stopped"
            assert len(stand) == 2
        assert caplog.text.count("is passed over") == 3 + 2 + 3, "of messages, grants, standings"
        assert await store.stand("acme", "odd", standing(8))
        assert (await store.standings())["acme", "odd"] == standing(8)


# What stays on the server


async def test_all_of_an_approval_is_gone_a_week_after_its_end(server: RedisServer) -> None:
    server.command("FLUSHALL")
    clock = ServerTime(NOW)
    async with gateway(server.url, clock) as store:
        for state in sorted(ENDED - {State.UNKNOWN}) * 8:
            await opened(store, approval(), state)
        unknown = await opened(store, approval(), State.UNKNOWN)
        clock.advance(KEPT + 1)
        while await store.due(EVER) or server.command("ZCOUNT", f"{BASE}:ends", 0, clock.now_ns() // 1000):
            pass
        left = {each.replace(unknown.id, "ID") for each in server.command("KEYS", f"{BASE}:*")}
        ending = f"key:key of {unknown.id}".replace(unknown.id, "ID")
        names = ["of:ID", "body:ID", ending, "in:unknown", "in:unknown:acme", "ends", "share"]
        assert left == {f"{BASE}:{each}" for each in names}
        assert await store.last(unknown.key) == unknown
        clock.advance(UNKNOWN_KEPT)
        assert await store.get(unknown.id) is None
        assert await store.versions([unknown.id]) == {}
        assert await store.listed([State.UNKNOWN]) == []
        await store.due(EVER)
        assert server.command("KEYS", f"{BASE}:*") == []


async def test_answers_parcels_uses_and_grants_go_by_themselves(server: RedisServer) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url) as store:
        done = await opened(store, approval(), State.CONSUMED)
        assert await store.replace(moved(done, Moved.FINISH, NOW), answer=Answer(200, (), bytes(2 * PIECE)))
        allowed = grant()
        await store.grant(allowed)
        assert await store.use(allowed.id, "c", 1)
        assert await store.revoke(allowed.id)
        await store._bring(b"nobody takes it")
        seconds = {
            key.removeprefix(f"{BASE}:").split(":")[0]: server.command("TTL", key)
            for key in server.command("KEYS", f"{BASE}:*")
        }
        assert ANSWERS_KEPT - 60 < seconds["answer"] <= ANSWERS_KEPT
        assert 0 < seconds["parcel"] <= 60
        assert 0 < seconds["use"] <= 600
        assert 86_400 < seconds["grant"] <= 86_400 + 3600
        assert seconds["of"] == seconds["body"] == seconds["in"] == -1


async def test_a_tenant_that_has_filled_its_share_forgets_its_own_ended_ones_and_nobody_elses(
    server: RedisServer,
) -> None:
    server.command("FLUSHALL")
    async with gateway(server.url, share=100_000) as store:

        def large(tenant: str = "acme", at: int = 0) -> Approval:
            return approval(call=call(tenant=tenant, body=bytes(20_000)), created=NOW + at * SECOND)

        theirs = await opened(store, large("zeta"), State.DENIED)
        unknown = await opened(store, large(), State.UNKNOWN)
        early = await opened(store, large(at=1), State.DONE)
        late = await opened(store, large(at=2), State.DENIED)
        active = [await opened(store, large(at=3))]
        active += [await opened(store, large(at=4))]
        assert [await store.get(each.id) for each in (early, late)] == [None, late]
        active += [await opened(store, large(at=5))]
        assert await store.get(late.id) is None
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="the tenant acme has as many approvals as it may"):
                await store.open(large(at=6))
        with pytest.raises(StoreUnavailable, match="as many"):
            await store.supersede(superseded(active[0], fresh := large(at=6), NOW), fresh)
        assert await store.open(replace(large(at=6), key=active[0].key)) == active[0]
        for each in (theirs, unknown, *active):
            assert await store.get(each.id) == each
        assert await opened(store, large("zeta")) is not None
        assert await store.replace(in_state(active[0], State.CANCELLED)[0])
        assert await opened(store, large(at=7)) is not None
        assert server.command("KEYS", f"{BASE}:parcel:*") == []


async def test_while_a_slot_moves_to_another_node_nobody_finds_half_of_anything(
    cluster: list[RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    for node in cluster:
        node.command("FLUSHALL")
    slot = int(cluster[0].command("CLUSTER", "KEYSLOT", "{t:}"))
    async with gateway(cluster[0].url) as store:
        first = await opened(store, approval())
        (owner,) = (node for node in cluster if node.command("CLUSTER", "COUNTKEYSINSLOT", slot))
        other = next(node for node in cluster if node is not owner)
        names = {node.port: str(node.command("CLUSTER", "MYID")) for node in cluster}
        other.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[owner.port])
        owner.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[other.port])
        for key in owner.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            for ask in (
                lambda: store.open(approval(key=first.key)),
                lambda: store.get(first.id),
                lambda: store.replace(approved(first)),
            ):
                with pytest.raises(StoreUnavailable):
                    await ask()
            owner.command("MIGRATE", "127.0.0.1", other.port, key, 0, 1000)
        for node in (other, owner, *cluster):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", names[other.port])
        found = await insisted(lambda: store.open(approval(key=first.key)))
        assert found.id == first.id
        assert await store.replace(approved(first))
        assert await store.listed(list(State)) == [approved(first)]
        assert "refuses" not in caplog.text, "that keys are moving is no mistake of anybody's"
        for node in cluster:
            node.command("FLUSHALL")
        for node in (owner, other, *cluster):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", names[owner.port])


async def test_what_is_told_in_a_cluster_is_heard_whichever_node_a_gateway_knows(cluster: list[RedisServer]) -> None:
    for node in cluster:
        node.command("FLUSHALL")
    async with gateway(cluster[0].url) as a, gateway(cluster[1].url) as b, gateway(cluster[2].url) as c:
        ears = [Ear(), Ear(), Ear()]
        for store, ear in zip((a, b, c), ears, strict=True):
            store.listen(ear)
            store.begin()
            await heard(ear, None)
        first = await opened(b, approval())
        for ear in ears:
            await heard(ear, first.id)
