"""The servers of a state: nodes of a cluster that go and hand slots over, encrypted ones, ones that will not do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config.redis_url import RedisUrl
from gateway.state.redis import RedisStore
from gateway.state.redis_limits import RedisLimits
from gateway.state.redis_scripts import Scripts, packed
from gateway.state.redis_servers import RedisServers, ServerClock
from policies.budgets import LEASE, Account, Ask, Loan, Raised, StoreUnavailable, Window
from policies.limits import Limit
from tests.support.redis_places import RedisPlace, reached
from tests.support.redis_server import RedisServer, free_port, needs_redis, redis_server
from tests.support.stores import DAY, NOW, ask, budget, paying, spent, standing

pytestmark = needs_redis

TENANTS = [f"tenant-{number}" for number in range(30)]


def of(tenant: str, limit: int = 100) -> tuple[Account, ...]:
    """Accounts of every kind."""
    windows: tuple[Window, ...] = ("day", "month", "session")
    return paying(*(budget(f"{tenant}/bot", limit, window=window) for window in windows), session="s")


def asked(tenant: str, call: str, want: int) -> Ask:
    return ask(call, of(tenant), want)._replace(tenant=tenant)


async def settled(store: RedisStore) -> None:
    async with asyncio.timeout(10):
        while len(store.outbox):
            await asyncio.sleep(0.001)


@pytest.fixture
def place(cluster: list[RedisServer]) -> RedisPlace:
    return RedisPlace(cluster, NOW)


@pytest.fixture
async def store(place: RedisPlace) -> AsyncIterator[RedisStore]:
    opened = await place.open()
    yield opened
    await opened.close()


# Clusters


async def test_every_tenant_is_kept_by_one_node_and_all_nodes_keep_some(
    cluster: list[RedisServer], store: RedisStore
) -> None:
    limits = RedisLimits(store.servers)
    for node in cluster:
        node.command("CONFIG", "RESETSTAT")
    for tenant in TENANTS:
        loan = await store.reserve(asked(tenant, "c1", 40))
        assert await store.extend(loan, 50)
        store.settle(loan, 15, [spent(15)._replace(tenant=tenant)])
        store.void(await store.reserve(asked(tenant, "c2", 40)))
        store.post("c3", tenant, of(tenant), 5, [spent(5)._replace(tenant=tenant)])
        every = tuple(
            Limit(f"{tenant}/bot", what, 5)
            for what in ("calls_per_session", "concurrent", "calls_per_minute", "tokens_per_minute")
        )
        held = await limits.enter("c1", tenant, every, "=s", 1)
        await limits.renew()
        limits.leave(held, 2)
    await store.renew()
    assert await store.expire() == 0
    everyone = tuple(account for tenant in TENANTS for account in of(tenant))
    assert await standing(store, everyone) == [(20, 0)] * len(everyone)
    rows = await store.spend(TENANTS, DAY, DAY, ["tenant"], {})
    assert {row["tenant"]: row["cost"] for row in rows} == dict.fromkeys(TENANTS, 20)
    await settled(store)
    for node in cluster:
        assert len(node.command("KEYS", "wb:{t:tenant-*}:account:*")) > 0
        errors = node.command("INFO", "errorstats")
        assert "errorstat_CROSSSLOT" not in errors
        assert "errorstat_MOVED" not in errors, "the map is known"
    await limits.close()


async def test_a_cluster_may_be_named_by_any_of_its_nodes_or_by_several_of_which_one_is_gone(
    cluster: list[RedisServer], store: RedisStore
) -> None:
    for url in (
        f"redis://127.0.0.1:{cluster[2].port}",
        f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster[1].port}",
    ):
        servers = RedisServers(RedisUrl.parse(url))
        await reached(servers)
        for tenant in TENANTS:
            assert await servers.command(tenant, "EXISTS", f"wb:{{t:{tenant}}}:limits") == 0
        await servers.close()


async def test_calls_go_on_while_a_slot_moves_to_another_node(
    cluster: list[RedisServer], store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Key by key, as it is done to a cluster in use; at last the new owner is known to all."""
    tenant = TENANTS[0]
    slot = int(cluster[0].command("CLUSTER", "KEYSLOT", f"{{t:{tenant}}}"))
    loan = await store.reserve(asked(tenant, "c1", 40))
    (owner,) = (node for node in cluster if _counts(node, slot))
    other = next(node for node in cluster if node is not owner)
    names = {node.port: str(node.command("CLUSTER", "MYID")) for node in cluster}
    other.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[owner.port])
    owner.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[other.port])

    store.settle(loan, 15, [spent(15)._replace(tenant=tenant)])
    keys = owner.command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    for number, key in enumerate(keys):
        owner.command("MIGRATE", "127.0.0.1", other.port, key, 0, 1000)
        store.post(f"p{number}", tenant, of(tenant), 1, [])
        with contextlib.suppress(StoreUnavailable):
            await store.balances(of(tenant))
    for key in owner.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        owner.command("MIGRATE", "127.0.0.1", other.port, key, 0, 1000)
    raised = Raised(f"{tenant}/bot", "day", 200, 100, "dana", NOW)
    await store.raise_limit(raised)
    assert await store.raised(tenant) == [raised], "what is in one place can be asked for there"
    for node in (other, owner, *cluster):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", names[other.port])
    await settled(store)
    await reached(store.servers)
    assert await standing(store, of(tenant)) == [(15 + len(keys), 0)] * 3
    assert _counts(other, slot)
    assert not _counts(owner, slot)
    assert "refuses" not in caplog.text, "that keys are moving is no mistake of anybody's"
    # Back, so that the next test finds a cluster like the first.
    for node in cluster:
        node.command("FLUSHALL")
    for node in (owner, other, *cluster):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", names[owner.port])


def _counts(node: RedisServer, slot: int) -> bool:
    return int(node.command("CLUSTER", "COUNTKEYSINSLOT", slot)) > 0


async def test_a_node_that_is_gone_stops_only_the_tenants_that_it_keeps(
    cluster: list[RedisServer], store: RedisStore
) -> None:
    loans: dict[str, Loan] = {tenant: await store.reserve(asked(tenant, "c1", 40)) for tenant in TENANTS}
    gone = cluster[1]
    theirs = {tenant for tenant in TENANTS if gone.command("KEYS", f"wb:{{t:{tenant}}}:loan:*")}
    assert 0 < len(theirs) < len(TENANTS)
    gone.freeze()
    try:
        refused = set()
        for tenant in TENANTS:
            try:
                await store.reserve(asked(tenant, "c2", 5))
            except StoreUnavailable:
                refused.add(tenant)
                store.void(Loan("c2", tenant, of(tenant), 0))
        assert refused == theirs
        assert str(gone.port) in str(store.failure)
        for loan in loans.values():
            store.settle(loan, 15, [])
        async with asyncio.timeout(10):
            while len(store.outbox) > 2 * len(theirs):
                await asyncio.sleep(0.001)
    finally:
        gone.thaw()
    await settled(store)
    everyone = tuple(of(tenant)[0] for tenant in TENANTS)
    assert await standing(store, everyone) == [(15, 0 if tenant in theirs else 5) for tenant in TENANTS]


async def test_while_a_node_is_gone_what_others_have_lent_is_renewed(
    cluster: list[RedisServer], place: RedisPlace, store: RedisStore
) -> None:
    for tenant in TENANTS:
        await store.reserve(asked(tenant, f"call of {tenant}", 40))
    theirs = [tenant for tenant in TENANTS if cluster[1].command("KEYS", f"wb:{{t:{tenant}}}:loan:*")]
    cluster[1].freeze()
    try:
        for _ in range(2):
            place.time.advance(LEASE - 5)
            await store.renew()
    finally:
        cluster[1].thaw()
    await reached(store.servers)
    assert await store.expire() >= len(theirs) - 1, "what was asked before it was frozen, it has done late"
    others = tuple(of(tenant)[0] for tenant in TENANTS if tenant not in theirs)
    assert await standing(store, others) == [(0, 40)] * len(others)


async def test_who_wants_a_cluster_is_not_content_with_less(server: RedisServer) -> None:
    servers = RedisServers(RedisUrl.parse(f"redis+cluster://127.0.0.1:{server.port}"))
    servers.begin()
    async with asyncio.timeout(5):
        while "no node of a cluster" not in str(servers.failure):
            await asyncio.sleep(0.005)
    await servers.close()


# Encrypted connections


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A certificate for the loopback, which vouches for itself, and its key: one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server of one test")])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(hours=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.add_extension(loopback, critical=False).sign(key, hashes.SHA256())
    file = tmp_path / "identity.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


async def test_a_connection_can_be_encrypted_and_the_server_has_to_be_vouched_for(
    tmp_path: Path, identity: Path
) -> None:
    port = free_port()
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for name in ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file"):
        arguments += [name, str(identity)]
    with redis_server(tmp_path, *arguments):
        servers = RedisServers(RedisUrl.parse(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={identity}"))
        await reached(servers)
        assert await servers.command("acme", "EXISTS", "wb:{t:acme}:limits") == 0
        await servers.close()
        strangers = RedisServers(RedisUrl.parse(f"rediss://127.0.0.1:{port}/0"))
        strangers.begin()
        async with asyncio.timeout(5):
            while "certificate" not in str(strangers.failure).lower():
                await asyncio.sleep(0.005)
        await strangers.close()


# Servers that will not do


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[RedisServers]:
    """A server that gives to every piece of what it is asked the answer that it is told to give."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(answer(piece))
        writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    servers = RedisServers(RedisUrl.parse(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"))
    try:
        yield servers
    finally:
        await servers.close()
        listener.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (("server", "redis", "version", "6.2.14", "mode", "standalone"), "7.0 or newer"),
        (("server", "redis", "version", "7.2.4", "mode", "sentinel"), "name the server that it watches"),
    ],
)
async def test_a_server_that_will_not_do_is_told_apart_from_one_that_is_not_there(
    facts: tuple[str, ...], said: str
) -> None:
    async with answering(lambda asked: packed(*facts) if b"HELLO" in asked else b"+OK\r\n") as servers:
        servers.begin()
        async with asyncio.timeout(5):
            while said not in str(servers.failure):
                await asyncio.sleep(0.005)


async def test_an_answer_that_nobody_has_asked_for_ends_the_connection() -> None:
    """Every answer after it would be taken for another's."""
    greeting = packed("server", "redis", "version", "7.0.0", "mode", "standalone")
    greeting += b"$40\r\n%s\r\n" % (b"a" * 40) * len(Scripts().all()) + b"*2\r\n+OK\r\n:1763700000000000\r\n"

    def answer(asked: bytes) -> bytes:
        return b"+OK\r\n" if b"SETNAME" in asked else greeting if b"HELLO" in asked else b"+PONG\r\n+PONG\r\n"

    async with answering(answer) as servers:
        assert await servers.command("acme", "PING") == b"PONG"
        async with asyncio.timeout(5):
            while "not asked" not in str(servers.failure):
                await asyncio.sleep(0.005)


# Their clock


def test_the_latest_word_of_the_time_is_the_truest() -> None:
    now = 1_000 * 10**9
    clock = ServerClock(lambda: now)
    assert clock.now_ns() == now
    clock.heard(2_000_000_000)  # said at once
    assert clock.now_ns() == 2_000 * 10**9
    now += 10**9
    clock.heard(2_000_900_000)  # said a tenth of a second ago
    assert clock.now_ns() == 2_001 * 10**9
    now -= 500 * 10**9  # somebody has set the local clock
    clock.heard(2_002_000_000)
    assert clock.now_ns() == 2_002 * 10**9
