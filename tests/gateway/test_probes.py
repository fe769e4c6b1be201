"""Probes: what a node says of itself is heard, who is only slow is left alone, and nobody is asked too often."""

import asyncio
import datetime
import ipaddress
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config.errors import SecretMissing
from config.settings import TargetSettings
from gateway.probes import LEAST_PAUSE, Node, Probes
from tests.support.misbehaving import Misbehaving, Wire, says
from tests.support.parallax import running_parallax
from tests.support.standins import ANTHROPIC_KEY, OPENAI_KEY, running_standins_here

MODELS = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"data":[]}'


class Rests:
    """Time that passes when a test says so: how long each probe rests, and until when."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[float] = []
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def rest(self, seconds: float) -> None:
        self.asked.append(seconds)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((self.now + seconds, waiter))
        self._changed.set()
        await waiter

    async def resting(self, count: int = 1) -> None:
        """Until so many probes rest."""
        async with asyncio.timeout(20):
            while sum(not waiter.done() for _, waiter in self._waiting) < count:
                self._changed.clear()
                await self._changed.wait()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for until, waiter in self._waiting:
            if until <= self.now and not waiter.done():
                waiter.set_result(None)
        self._waiting = [(until, waiter) for until, waiter in self._waiting if not waiter.done()]


class Watched:
    """Probes on a clock that a test holds, and what they have told."""

    def __init__(self) -> None:
        self.rests = Rests()
        self.told: list[tuple[Node, bool, str]] = []
        self.chance = 0.0
        self.probes = Probes(
            lambda node, ok, what: self.told.append((node, ok, what)),
            clock=self.rests.clock,
            rest=self.rests.rest,
            chance=lambda: self.chance,
        )

    @property
    def said(self) -> list[tuple[bool, str]]:
        return [(ok, what) for _, ok, what in self.told]

    async def once(self, count: int = 1) -> None:
        """The next probe of each of so many nodes."""
        self.rests.advance(3600)
        await self.rests.resting(count)


@asynccontextmanager
async def watching(*targets: TargetSettings, nodes: int = 1) -> AsyncIterator[Watched]:
    """Each node asked once."""
    watched = Watched()
    watched.probes.watch(targets)
    try:
        await watched.rests.resting(nodes)
        yield watched
    finally:
        await watched.probes.close()


def target(kind: str, *urls: str, health: dict[str, Any] | None = None, **more: Any) -> TargetSettings:
    return TargetSettings.model_validate({"name": kind, "kind": kind, "urls": urls, "health": health or {}, **more})


async def test_a_parallax_node_is_well_when_its_cluster_is_available() -> None:
    with running_parallax() as cluster:
        async with watching(target("parallax", cluster.url)) as watched:
            assert watched.told == [(Node("parallax", cluster.url), True, "available")]
            cluster.standin.available = False
            await watched.once()
            assert watched.said[-1] == (False, "waiting"), "it says so itself, so it holds at once"
            cluster.standin.available = True
            await watched.once()
            assert watched.said[-1] == (True, "available")
        assert {seen.path for seen in cluster.standin.requests} == {"/cluster/status_json"}


async def test_a_node_that_stands_still_for_a_while_is_well() -> None:
    with running_parallax(scale=0.1) as cluster:
        async with watching(target("parallax", cluster.url, health={"probe_timeout": "8s"})) as watched:
            cluster.standin.will("routing-not-ready")
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()
            began = asyncio.get_running_loop().time()
            while len(cluster.standin.requests) < 2:  # another thread's list tells nobody when it grows
                await asyncio.sleep(0.005)
            await watched.once()
            assert watched.said == [(True, "available"), (True, "available")]
            assert asyncio.get_running_loop().time() - began > 0.3, "it did stand still"
            assert (await reader.readline()).startswith(b"HTTP/1.1 503")
            writer.close()


@pytest.mark.parametrize(
    ("path", "script", "what"),
    [
        ("/cluster/status_json", Wire.hang, "timeout"),
        ("/cluster/status_json", says(b"", Wire.close), "broken"),
        ("/cluster/status_json", says(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", Wire.close), "broken"),
        ("/cluster/status_json", says(b"<html>", Wire.close), "broken"),
        ("/cluster/status_json", says(MODELS), "broken"),
        ("/cluster/status_json", says(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), "status 503"),
        ("/cluster/status_json", says(b"HTTP/1.1 429 No\r\ncontent-length: 0\r\n\r\n"), "status 429"),
    ],
)
async def test_a_node_is_unwell_after_it_has_failed_several_times(
    path: str, script: Callable[[Wire], Any], what: str
) -> None:
    async with Misbehaving() as upstream:
        upstream.on(path, script)
        patience = "0.3s" if what == "timeout" else "20s"
        settings = target("parallax", f"http://127.0.0.1:{upstream.port}", health={"probe_timeout": patience})
        async with watching(settings) as watched:
            await watched.once()
            assert watched.said == []
            await watched.once()
            assert watched.said == [(False, what)]
            await watched.once()
            assert watched.said == [(False, what)] * 2
            answer = b'{"data":{"status":"available"}}'
            upstream.on(path, says(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer)))
            await watched.once()
            assert watched.said[-1] == (True, "available"), "one sign of health is enough"


async def test_failures_that_are_not_in_a_row_are_forgiven() -> None:
    async with Misbehaving() as upstream:
        well, unwell = says(MODELS), says(b"", Wire.reset)
        async with watching(target("openai", f"http://127.0.0.1:{upstream.port}")) as watched:
            for script in (unwell, unwell, well, unwell, unwell, well):
                upstream.on("/models", script)
                await watched.once()
            assert watched.said == [(True, "alive")] * 3


async def test_a_node_that_takes_no_connection_is_unreachable() -> None:
    async with Misbehaving() as upstream:
        port = upstream.port
    async with watching(target("anthropic", f"http://127.0.0.1:{port}", key="k")) as watched:
        await watched.once()
        await watched.once()
        assert watched.said == [(False, "unreachable")]


async def test_hosted_apis_are_asked_for_their_models_with_their_key(caplog: pytest.LogCaptureFixture) -> None:
    async with running_standins_here() as standins:
        targets = (
            target("openai", f"{standins.openai_url}/v1", key=OPENAI_KEY),
            target("anthropic", f"{standins.anthropic_url}/", key=ANTHROPIC_KEY),
        )
        async with watching(*targets, nodes=2) as watched:
            assert sorted(watched.said) == [(True, "alive")] * 2
        assert [seen.path for seen in standins.openai.probes] == ["/v1/models"]
        assert standins.openai.probes[0].header("authorization") == f"Bearer {OPENAI_KEY}"
        assert [seen.path for seen in standins.anthropic.probes] == ["/v1/models"]
        assert standins.anthropic.probes[0].header("x-api-key") == ANTHROPIC_KEY
    assert not caplog.records


@pytest.mark.parametrize(
    ("status", "ok", "what"), [(200, True, "alive"), (429, True, "alive"), (500, False, "status 500")]
)
async def test_any_answer_below_500_is_a_sign_of_life(status: int, ok: bool, what: str) -> None:
    async with Misbehaving() as upstream:
        upstream.on("/v1/models", says(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status))
        async with watching(target("openai", f"http://127.0.0.1:{upstream.port}/v1")) as watched:
            await watched.once()
            await watched.once()
            assert watched.said[-1] == (ok, what)


async def test_a_refused_key_is_told_to_the_operator_once_and_ejects_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with running_standins_here() as standins:
        async with watching(target("openai", f"{standins.openai_url}/v1", key="an-old-key")) as watched:
            await watched.once()
            await watched.once()
            assert watched.said == [(True, "config")] * 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "key" in record.getMessage()
    assert "an-old-key" not in record.getMessage()


@pytest.mark.parametrize("kind", ["openai", "parallax", "anthropic"])
@pytest.mark.parametrize("status", [404, 405, 308])
async def test_a_wrong_url_is_told_to_the_operator_once_and_ejects_nobody(
    kind: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with Misbehaving() as upstream:
        refusal = says(b"HTTP/1.1 %d X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n" % status)
        for path in ("/wrong/models", "/wrong/v1/models", "/wrong/cluster/status_json"):
            upstream.on(path, refusal)
        async with watching(target(kind, f"http://127.0.0.1:{upstream.port}/wrong")) as watched:
            await watched.once()
            await watched.once()
            assert watched.said == [(True, "not_found")] * 3
        assert "/elsewhere" not in upstream.requests
    (record,) = caplog.records
    assert f"http://127.0.0.1:{upstream.port}/wrong" in record.getMessage()


async def test_what_was_told_once_is_not_told_again_after_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    async with Misbehaving() as upstream:
        async with watching(target("openai", f"http://127.0.0.1:{upstream.port}")) as watched:
            for script in (says(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n"), says(MODELS)) * 2:
                upstream.on("/models", script)
                await watched.once()
            assert [what for _, what in watched.said[1:]] == ["not_found", "alive"] * 2
    assert len(caplog.records) == 1


def stumbles(node: Node, ok: bool, what: str) -> None:
    raise RuntimeError("whoever is told has stumbled")


async def test_whoever_is_told_may_fail_and_the_probes_go_on(caplog: pytest.LogCaptureFixture) -> None:
    with running_parallax() as cluster:
        watched = Watched()
        failing = Probes(stumbles, clock=watched.rests.clock, rest=watched.rests.rest)
        failing.watch([target("parallax", cluster.url)])
        await watched.rests.resting()
        await watched.once()
        await failing.close()
        assert len(cluster.standin.requests) == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


async def test_a_parallax_node_without_a_scheduler_is_asked_for_its_models() -> None:
    async with Misbehaving() as upstream:
        upstream.on("/cluster/status_json", says(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n"))
        upstream.on("/v1/models", says(MODELS))
        async with watching(target("parallax", f"http://127.0.0.1:{upstream.port}")) as watched:
            assert watched.said == [(True, "alive")]


async def test_no_node_is_asked_more_often_than_every_ten_seconds() -> None:
    with running_parallax() as cluster:
        settings = target("parallax", cluster.url, health={"probe_every": "0.1s"})
        async with watching(settings) as watched:
            for watched.chance in (0.0, 0.5, 0.999):
                await watched.once()
    assert watched.rests.asked[0] == LEAST_PAUSE
    assert watched.rests.asked[1:] == pytest.approx([10.0, 11.0, 12.0], abs=0.01)


async def test_a_longer_pause_is_kept_and_none_is_asked_where_the_operator_wants_none() -> None:
    with running_parallax() as cluster, running_parallax() as other:
        targets = (
            target("parallax", cluster.url, health={"probe_every": "60s"}),
            target("openai", other.url, health={"probe_every": 0}),
        )
        async with watching(*targets) as watched:
            assert watched.rests.asked == [60.0]
        assert not other.standin.requests


async def test_a_reload_asks_the_new_nodes_and_leaves_the_others_alone() -> None:
    with running_parallax() as first, running_parallax() as second, running_parallax() as third:
        async with watching(target("parallax", first.url, second.url), nodes=2) as watched:
            watched.rests.advance(4)
            watched.probes.watch([target("parallax", first.url, second.url, health={"probe_timeout": "7s"})])
            await watched.rests.resting(2)
            assert len(watched.told) == 2, "what has changed waits until ten seconds are over, too"
            assert watched.rests.asked[2:] == [6.0, 6.0]
            watched.rests.advance(6)
            await watched.rests.resting(2)
            assert len(watched.told) == 4
            watched.probes.watch([target("parallax", first.url, third.url, health={"probe_timeout": "7s"})])
            await watched.rests.resting(2)
            assert watched.told[-1] == (Node("parallax", third.url), True, "available")
            watched.rests.advance(3600)
            await watched.rests.resting(2)
        assert [len(each.standin.requests) for each in (first, second, third)] == [3, 2, 2]


async def test_a_key_that_cannot_be_had_changes_nothing() -> None:
    with running_parallax() as cluster:
        async with watching(target("parallax", cluster.url)) as watched:
            with pytest.raises(SecretMissing):
                watched.probes.watch([target("openai", cluster.url, key="env:NO_SUCH_VARIABLE_ANYWHERE")])
            await watched.once()
            assert watched.said == [(True, "available")] * 2


def certificate(folder: Path) -> Path:
    """A key and its own certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a node for one test")])
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - hour, now + hour)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = folder / "node.pem"
    file.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return file


async def test_a_node_behind_tls_has_to_be_the_one_that_its_authority_knows(tmp_path: Path) -> None:
    file = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(file)
    async with Misbehaving(tls=tls) as upstream:
        upstream.on("/models", says(MODELS))
        trusted = target("openai", f"https://127.0.0.1:{upstream.port}", ca=str(file))
        async with watching(trusted) as watched:
            assert watched.said == [(True, "alive")]
        async with watching(target("openai", f"https://127.0.0.1:{upstream.port}")) as watched:
            await watched.once()
            await watched.once()
            assert watched.said == [(False, "unreachable")]


async def test_authorities_that_cannot_be_read_are_told_to_the_operator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = target("openai", "https://127.0.0.1:9").model_copy(update={"ca": tmp_path / "gone.pem"})
    watched = Watched()
    before = asyncio.all_tasks()
    watched.probes.watch([settings])
    (task,) = asyncio.all_tasks() - before
    await asyncio.wait_for(asyncio.shield(task), 10)
    await watched.probes.close()
    (record,) = caplog.records
    assert "not probed" in record.getMessage()
    assert not watched.told


async def test_the_end_waits_for_nobody_and_leaves_nothing_behind() -> None:
    async with Misbehaving() as upstream:
        upstream.on("/models", Wire.hang)
        before, tasks = len(os.listdir("/proc/self/fd")), asyncio.all_tasks()
        watched = Watched()
        watched.probes.watch([target("openai", f"http://127.0.0.1:{upstream.port}")])
        while not upstream.requests:  # the server tells nobody
            await asyncio.sleep(0.005)
        watched.probes.watch([])
        watched.probes.watch([target("openai", f"http://localhost:{upstream.port}")])
        async with asyncio.timeout(2):
            await watched.probes.close()
        await upstream.all_gone()
        assert asyncio.all_tasks() == tasks
        assert len(os.listdir("/proc/self/fd")) == before
        assert not watched.told
