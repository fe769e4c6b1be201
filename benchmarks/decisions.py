"""How long one decision takes: in this process, evaluated or reused, and from an OPA server over TCP and a socket."""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks import fleet
from benchmarks.machine import CONTESTANT_CORE, LOAD_CORE, on
from benchmarks.scenarios import MODEL, request_body
from benchmarks.table import markdown, number, quantile
from config.settings import OpaSettings
from gateway.opa import OpaLine
from policies.build import build
from policies.document import Question, agent_fragment
from policies.engine import Engine
from policies.opa import OpaEngine
from policies.sources import read
from tests.support.opa import OPA, opa_server

AGENTS = (10, 10_000)
SIZE = 1024
"""Bytes of the call that is decided: a chat that its agent's envelope allows."""

_PATIENCE = 5.0
_LOOK = 60.0
"""Seconds for one answer, so that a slow one is measured and not refused; and between looks at the OPA server."""


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of each decision of one engine."""

    engine: str
    agents: int
    seconds: Sequence[float]

    def cells(self) -> tuple[str, ...]:
        p50, p99 = (quantile(self.seconds, share) * 1e6 for share in (0.5, 0.99))
        return self.engine, f"{self.agents:,}", number(p50), number(p99), f"{len(self.seconds):,}"


def questions(agents: int) -> Iterator[Question]:
    """The same call by each agent in turn, without end."""
    body = request_body(SIZE)
    arguments = json.loads(body)
    fragments = [agent_fragment(name, "default", [], 1, "active") for name in fleet.names(agents)]
    for fragment in itertools.cycle(fragments):
        yield Question(fragment, "llm", "openai", MODEL, "chat", False, None, body, arguments, time.time_ns())


async def timed(engine: Engine, agents: int, warm_up: int, count: int) -> list[float]:
    """Seconds of `count` decisions, one after the other, after some that do not count."""
    asked = questions(agents)
    seconds = []
    for each in itertools.islice(asked, warm_up + count):
        began = time.perf_counter()
        decision = await engine.decide(each)
        seconds.append(time.perf_counter() - began)
        assert decision.effect == "ALLOW", decision
    return seconds[warm_up:]


async def _embedded(paths: Sequence[Path], agents: int, count: int, *, reuse: bool) -> list[float]:
    engine = await build(read(paths), reuse=reuse)
    try:
        return await timed(engine, agents, agents if reuse else count // 10, count)
    finally:
        await engine.retire()


async def _asked(url: str, agents: int, count: int) -> list[float]:
    engine = OpaEngine(OpaLine(OpaSettings(url=url)), timeout=_PATIENCE, every=_LOOK)
    await engine.begin()
    try:
        return await timed(engine, agents, count // 10, count)
    finally:
        await engine.retire()


def _measured(paths: Sequence[Path], agents: int, count: int, say: Callable[[str], None]) -> Iterator[Row]:
    for name, reuse in (("embedded, evaluated", False), ("embedded, reused", True)):
        say(f"{name}, {agents} envelopes")
        yield Row(name, agents, uvloop.run(_embedded(paths, agents, count, reuse=reuse)))
    if OPA is None:
        return
    with on(CONTESTANT_CORE), opa_server(*paths) as server:
        for name, url in (("OPA over HTTP", server.url), ("OPA over a Unix socket", f"unix://{server.socket}")):
            say(f"{name}, {agents} envelopes")
            with on(LOAD_CORE):
                yield Row(name, agents, uvloop.run(_asked(url, agents, count)))


def run(count: int, say: Callable[[str], None]) -> str:
    """The table, in Markdown."""
    rows: list[Row] = []
    for agents in AGENTS:
        with tempfile.TemporaryDirectory(prefix="weighbridge-decisions-") as folder:
            envelopes = Path(folder) / "envelopes.json"
            envelopes.write_text(json.dumps({"envelopes": {name: fleet.envelope() for name in fleet.names(agents)}}))
            rows += _measured([fleet.POLICY, envelopes], agents, count, say)
    head = ("engine", "envelopes", "p50 us", "p99 us", "decisions")
    missing = "" if OPA is not None else "\n\nThere is no opa here: `make opa` builds it where Go is."
    return markdown(head, [row.cells() for row in rows]) + missing
