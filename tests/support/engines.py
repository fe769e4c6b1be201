"""The two engines side by side: one policy, one input, and what each makes of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from config.settings import OpaSettings
from gateway.opa import OpaLine
from policies.build import build
from policies.decision import Decision
from policies.embedded import EmbeddedEngine
from policies.engine import Engine
from policies.errors import EngineUnavailable, InputRefused, Undecided
from policies.opa import OpaEngine
from policies.sources import read
from tests.policies.support import NOW, sources
from tests.support.opa import OpaServer, opa_server

PATIENCE = 10.0
"""Seconds for one answer of a real OPA on a busy machine."""

Outcome = dict[str, Any] | type[Exception]
"""What the policy said, or the kind of refusal."""


class Answering(Protocol):
    """An engine that can be asked from a test without a loop."""

    def answer(self, document: bytes, now_ns: int) -> Decision: ...


@dataclass
class OnOpa:
    """An engine on an OPA server, with a loop of its own. It looks at the server once, at the start."""

    server: OpaServer
    engine: OpaEngine
    runner: asyncio.Runner

    def answer(self, document: bytes, now_ns: int) -> Decision:
        return self.runner.run(self.engine.evaluate(document, now_ns))


def engine_on(server: OpaServer) -> OpaEngine:
    return OpaEngine(OpaLine(OpaSettings(url=f"unix://{server.socket}")), timeout=PATIENCE, every=3600)


@contextlib.contextmanager
def on_opa(*paths: Path) -> Iterator[OnOpa]:
    """An OPA server that has loaded these paths, and the engine that asks it."""
    with opa_server(*paths) as server, asyncio.Runner() as runner:
        engine = engine_on(server)
        runner.run(engine.begin())
        assert engine.failure is None, engine.failure
        yield OnOpa(server, engine, runner)
        runner.run(engine.retire())


@contextlib.contextmanager
def embedded(*paths: Path) -> Iterator[EmbeddedEngine]:
    engine = asyncio.run(build(read(paths)))
    yield engine
    asyncio.run(engine.retire())  # now and here: the garbage collector may run in another thread


def outcome(engine: Answering, document: bytes) -> Outcome:
    """What an engine makes of an input."""
    try:
        return engine.answer(document, NOW).facts()
    except (Undecided, InputRefused, EngineUnavailable) as refusal:
        return type(refusal)


async def _outcome(engine: Engine, document: bytes) -> Outcome:
    try:
        return (await engine.evaluate(document, NOW)).facts()
    except (Undecided, InputRefused, EngineUnavailable) as refusal:
        return type(refusal)


async def on_both(server: OpaServer, text: str, data: dict[str, Any], document: bytes) -> tuple[Outcome, Outcome]:
    """What the embedded engine and `server` make of a policy of one module, the only one there, and an input."""
    here = await build(sources(text, data=orjson.loads(orjson.dumps(data))))
    server.put_data(data)
    server.put_policy("policy.rego", text)
    there = engine_on(server)
    await there.begin()
    try:
        return await _outcome(here, document), await _outcome(there, document)
    finally:
        await there.retire()
        await here.retire()
