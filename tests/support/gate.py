"""A gateway inside a test: the real front door and pipeline, with a policy, money and people that a test scripts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway import records
from gateway.carrier import Carrier
from gateway.decision_log import DecisionLog
from gateway.errands import Errands
from gateway.exchange import Exchange
from gateway.holding import Holds
from gateway.ledger import LedgerUnavailable
from gateway.lending import Lender
from gateway.mcp.definitions import Definitions
from gateway.pipeline import Pipeline
from gateway.queues import PATIENCE
from gateway.standings import Standings
from gateway.telemetry import Telemetry
from policies.approval_store import ApprovalStore
from policies.budgets import Account, account
from policies.decision import Decision
from policies.document import Question
from policies.engine import Engine
from tests.support.door import door
from tests.support.exchanges import AGENT_KEY, ALLOWED, assembly
from tests.support.register import Register
from tests.support.till import Till, Turnstile

AUTHORIZED = f"authorization: Bearer {AGENT_KEY}"


class ScriptedEngine:
    """Decides as it is told: a decision, an error to raise, or a function of the input."""

    revision = "r1"
    failure: str | None = None
    bundles: Mapping[str, str] = {}  # one empty mapping for all

    def __init__(self, script: Decision | Exception | Callable[[Mapping[str, Any]], Decision] = ALLOWED) -> None:
        self.script = script
        self.documents: list[Mapping[str, Any]] = []
        self.masks = False
        self.masked: Any = None
        """What `data.system.log.mask` says, or raises."""
        self.events: list[Mapping[str, Any]] = []

    async def decide(self, question: Question) -> Decision:
        return await self.evaluate(question.document(), question.now_ns)

    async def evaluate(self, document: bytes, now_ns: int) -> Decision:
        self.documents.append(orjson.loads(document))
        if isinstance(self.script, Exception):
            raise self.script
        return self.script if isinstance(self.script, Decision) else self.script(self.documents[-1])

    async def mask(self, event: bytes) -> Any:
        self.events.append(orjson.loads(event))
        if isinstance(self.masked, Exception):
            raise self.masked
        return self.masked

    async def retire(self) -> None:
        return None


class MemoryLedger:
    """Keeps records in a list, and can be told to fail."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.failing = False
        self.events = DecisionLog()
        self.concluded = asyncio.Event()

    async def intend(self, x: Exchange) -> None:
        if self.failing:
            raise LedgerUnavailable("The call cannot be recorded, so it was not made.")
        self._keep(records.intended(x, self.events))
        x.intended = True

    def conclude(self, x: Exchange) -> None:
        self._keep(records.concluded(x, self.events))
        self.concluded.set()

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        self.records.append({"record": kind, **facts})

    def _keep(self, lines: list[bytes]) -> None:
        self.records += map(orjson.loads, lines)

    def decisions(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["record"] in ("intent", "decision")]

    def outcomes(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["record"] == "outcome"]

    async def outcome(self) -> Mapping[str, Any]:
        """The one outcome, as soon as it is there."""
        await asyncio.wait_for(self.concluded.wait(), 10)
        (record,) = self.outcomes()
        return record


@dataclass
class Gate:
    port: int
    pipeline: Pipeline
    engine: ScriptedEngine
    ledger: MemoryLedger
    telemetry: Telemetry
    till: Till
    turnstile: Turnstile
    errands: Errands
    carriers: list[Carrier] = field(default_factory=list)

    def account(self, budget: Mapping[str, Any]) -> Account:
        """The one that this budget of the configuration has now."""
        found = self.pipeline.assembly.plan.find(budget["node"], budget["window"])
        assert found is not None, "the budget is configured"
        return account(found, self.till.now_ns(), None)


@asynccontextmanager
async def gate(
    *,
    target_url: str = "http://127.0.0.1:9",
    script: Decision | Exception | Callable[[Mapping[str, Any]], Decision] = ALLOWED,
    register: ApprovalStore | None = None,
    till: Till | None = None,
    turnstile: Turnstile | None = None,
    patience: float = PATIENCE,
    door_limits: Mapping[str, Any] | None = None,
    loaded: bool = True,
    target: Mapping[str, Any] | None = None,
    **sections: Any,
) -> AsyncIterator[Gate]:
    """One openai target and one anthropic target at `target_url`, routes for `gpt-*` and `claude-*`."""
    common = {"url": target_url, "key": "the-operators-own-key", **(target or {})}
    sections = {
        "targets": [
            {"name": "primary", "kind": "openai", **common},
            {"name": "claude", "kind": "anthropic", **common},
        ],
        "routes": [
            {"name": "chat", "models": ["gpt-*", "text-*"], "arms": [{"target": "primary"}]},
            {"name": "renamed", "models": ["alias"], "arms": [{"target": "primary", "model": "real/name"}]},
            {"name": "claude", "models": ["claude-*"], "arms": [{"target": "claude"}]},
        ],
        **sections,
    }
    built = assembly(**sections)
    engine, ledger, telemetry = ScriptedEngine(script), MemoryLedger(), Telemetry()
    till, turnstile = till or Till(), turnstile or Turnstile()
    decides: Engine | None = engine if loaded else None
    holds = Holds(register or Register(), ledger.note)
    holds.under(built.settings)
    standings = Standings(holds.store, holds)
    pipeline = Pipeline(
        built,
        decides,
        holds=holds,
        standings=standings,
        lender=Lender(till, turnstile, patience),
        ledger=ledger,
        events=ledger.events,
        telemetry=telemetry,
        chance=lambda: 0.5,
    )
    pipeline.definitions = Definitions(note=ledger.note)
    carriers = [carrier for line in built.lines.values() for carrier in line.carriers]
    async with door(pipeline, **(door_limits or {})) as port:
        await holds.begin()
        pipeline.claims.begin()
        errands = Errands(holds, pipeline.make, pipeline.ready)
        errands.begin()
        await standings.begin()
        try:
            yield Gate(port, pipeline, engine, ledger, telemetry, till, turnstile, errands, carriers)
        finally:
            await errands.end(0.0)
            await standings.end()
            await holds.end()
            for tool in built.toolbox:
                await tool.close()
            for carrier in carriers:
                await carrier.close()
