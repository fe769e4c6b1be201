"""Random calls of random agents, who leave when they like, under random budgets that change meanwhile, to a target that
does and reports whatever it likes, at every attempt anew: and afterwards every nano-dollar is accounted for.

`python -m tests.gateway.weather SECONDS [SEED]` goes on for so long and prints its figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.assembly import assemble, retired
from gateway.exchange import Exchange, Reached
from gateway.holding import Holds
from gateway.lending import Lender
from gateway.pipeline import Pipeline
from gateway.standings import Standings
from gateway.state.embedded import EmbeddedStore
from gateway.state.limits import EmbeddedLimits
from gateway.telemetry import Telemetry
from policies.approvals import Approval
from policies.budgets import Account, Ask, Loan, Raised, Short, Spent
from policies.decision import Decision, Effect
from policies.money import usd_text
from policies.obligations import Obligations
from routing.table import Route, Table
from tests.support.door import door, post
from tests.support.exchanges import ALLOWED, settings
from tests.support.gate import MemoryLedger, ScriptedEngine
from tests.support.people import deciding
from tests.support.register import Register
from tests.support.stores import copied, in_memory

SECRET: Final = "the-operators-own-key"
_TENANTS: Final = ("acme", "zeta")
_AGENTS: Final = {"ann": "acme", "bob": "acme", "cyd": "zeta"}
_TEAMS: Final = ("red", "blue")
_NODES: Final = ("acme", "acme/red", "acme/ann", "acme/bob", "zeta", "zeta/cyd")
_SESSIONS: Final = (None, None, "s-1", "s-2", "none-2025-11-21", "=s-1")
_NONCE: Final = re.compile(rb"nonce-(\d+)-")
_DAYS: Final = 86_400 * 10**9

_PRICES: Final[Sequence[Mapping[str, Any]]] = (
    {"input_usd_per_mtok": 10, "output_usd_per_mtok": 100},
    {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0, "usd_per_call": 0.01},
    {"input_usd_per_mtok": 3, "output_usd_per_mtok": 15, "cache_read_usd_per_mtok": 0.3, "reasoning_usd_per_mtok": 20},
    {
        "input_usd_per_mtok": 1,
        "output_usd_per_mtok": 2,
        "tiers": [{"above_input_tokens": 500, "input_usd_per_mtok": 2, "output_usd_per_mtok": 4}],
    },
    {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
)
_REFUSALS: Final = frozenset(
    {
        "malformed_call",
        "policy_denied",
        "approval_pending",
        "approval_denied",
        "budget_exhausted",
        "budget_contended",
        "ledger_unavailable",
        "unpriced_model",
        "rate_limited",
        "no_route",
    }
)


@dataclass
class Plan:
    """What the target does with one call."""

    kind: str
    status: int
    report: str
    words: int
    a_piece: int
    """Words in one event."""
    pause: float
    read: int
    """Input tokens that an honest report tells."""
    arrived: bool = False
    finished: bool = False

    @property
    def said(self) -> str:
        return "word " * self.words

    @property
    def honest(self) -> bool:
        return self.report == "honest" and self.kind in ("whole", "stream")


def planned(chance: random.Random) -> Plan:
    kinds = (
        ["whole"] * 6
        + ["stream"] * 20
        + [
            "cut",
            "reset",
            "late-reset",
            "silent",
            "head-only",
            "garbage",
            "encoded",
            "redirect",
            "wrong-shape",
            "error",
        ]
        + [
            "error-event",
            "comments",
            "endless",
            "one-giant-event",
            "no-text",
            "no-end",
            "odd-json",
            "many-choices",
            "foreign",
        ]
    )
    return Plan(
        chance.choice(kinds),
        chance.choice([200] * 24 + [201, 299, 400, 429, 500, 503, 529]),
        chance.choice(
            ["honest"] * 6 + ["none", "none", "zero", "negative", "huge", "text", "float", "parts", "every", "middle"]
        ),
        chance.choice([0, 1, 3, 10, 40, 300, 1500, 3000, 9000]),
        chance.choice([1, 1, 1, 4, 50]),
        chance.choice([0.0, 0.0, 0.0, 0.001, 0.01]),
        chance.choice([0, 1, 7, 600, 5000]),
    )


class Liar:
    """A target, of OpenAI's kind and of Anthropic's."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.url = ""
        self.serving: set[asyncio.Task[Any]] = set()
        self.plans: dict[int, Plan] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None, "a connection is served by a task"
        self.serving.add(serving)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self.serving.discard(serving)

    async def end(self) -> None:
        """Leaves every connection."""
        left = list(self.serving)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(found[1]) if found else 0)
        nonce = _NONCE.search(body)
        assert nonce is not None, "every call has a number"
        plan = self.plans[int(nonce[1])]
        if plan.arrived:
            plan = self.plans[int(nonce[1])] = planned(self._chance)
        plan.arrived = True
        asked = orjson.loads(body)
        claude = b"/messages " in head
        if plan.pause:
            await asyncio.sleep(plan.pause)
        match plan.kind:
            case "reset":
                return False
            case "garbage":
                writer.write(b"SMTP 220 hello\r\n\r\n")
                return False
            case "silent":
                await reader.read()
                return False
            case "head-only":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n")
                await reader.read()
                return False
            case "redirect":
                writer.write(b"HTTP/1.1 307 Go\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")
                return True
        streams = bool(asked.get("stream"))
        if plan.kind == "wrong-shape":
            streams = not streams
        if plan.status not in (200, 201, 299) and plan.kind != "wrong-shape":
            streams = False
        if streams:
            return await self._stream(plan, claude, writer)
        return await self._whole(plan, claude, writer)

    async def _whole(self, plan: Plan, claude: bool, writer: asyncio.StreamWriter) -> bool:
        report = reported(plan, claude)
        told: dict[str, Any] = {} if report is None else {"usage": report}
        if plan.kind == "error":
            answer: Any = {"error": {"message": f"no {SECRET}"}, **told}
        elif plan.kind == "foreign":  # the other protocol has no word for it
            called = {"tool_calls": [{"id": "t", "type": "custom", "custom": {"name": "x", "input": plan.said}}]}
            answer = (
                {"type": "message", "content": [{"type": "picture"}]} if claude else {"choices": [{"message": called}]}
            )
            answer |= told
        elif claude:
            answer = {"type": "message", "content": [{"type": "text", "text": plan.said}], **told}
        else:
            count = 9 if plan.kind == "many-choices" else 1
            answer = {"choices": [{"index": n, "message": {"content": plan.said}} for n in range(count)], **told}
        body = json.dumps(answer).encode()
        if plan.kind == "odd-json":
            body = body[:-2]
        encoding = b"content-encoding: gzip\r\n" if plan.kind == "encoded" else b""
        head = b"HTTP/1.1 %d Odd\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        writer.write(head % (plan.status, encoding, len(body)))
        if plan.kind in ("cut", "late-reset"):
            writer.write(body[: len(body) // 2])
            await writer.drain()
            return False
        writer.write(body)
        await writer.drain()
        plan.finished = True
        return True

    async def _stream(self, plan: Plan, claude: bool, writer: asyncio.StreamWriter) -> bool:
        head = b"HTTP/1.1 %d Odd\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head % plan.status)
        for event in streamed(plan, claude):
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(plan.pause)
            await writer.drain()
        if plan.kind in ("cut", "late-reset"):
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        plan.finished = True
        return True


def reported(plan: Plan, claude: bool) -> Any:
    """What the target says that it has used."""
    names = ("input_tokens", "output_tokens") if claude else ("prompt_tokens", "completion_tokens")
    given, made = names
    match plan.report:
        case "none":
            return None
        case "zero":
            return {given: 0, made: 0}
        case "negative":
            return {given: -5, made: -(10**6)}
        case "huge":
            return {given: 2**62, made: 2**80}
        case "text":
            return {given: "5", made: "many"}
        case "float":
            return {given: 5.5, made: 1e300}
        case "parts":
            return {
                given: plan.read,
                made: plan.words,
                "total_tokens": 3 * plan.words,
                "cache_read_input_tokens": 10**6,
                "prompt_tokens_details": {"cached_tokens": 10**6, "audio_tokens": 10**7},
                "completion_tokens_details": {"reasoning_tokens": 10**6},
            }
    return {given: plan.read, made: plan.words}


def streamed(plan: Plan, claude: bool) -> Iterator[bytes]:
    """The events of a stream; without end where the plan has none."""
    words = ["word " * plan.a_piece] * (plan.words // plan.a_piece)
    if plan.kind == "no-text":
        words = []
    if plan.kind == "one-giant-event":
        words = ["word " * 20_000]
    usage = reported(plan, claude)
    if claude:
        yield event({"type": "message_start", "message": {"usage": {"input_tokens": plan.read, "output_tokens": 1}}})
        yield event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    count = 0
    while True:
        for word in words:
            if plan.kind == "odd-json" and count % 7 == 3:
                yield b'data: {"type": ["response.completed"], "choices": {"delta": [1, {}]}, "usage": [{}]}\n\n'
                yield b'data: {"half\n\n'
            if plan.kind == "comments" or count % 50 == 9:
                yield b": still here\n\n"
            else:
                yield spoken(word, claude, usage if plan.report == "every" else None)
            count += 1
            if plan.report == "middle" and count == len(words) // 2:
                yield spoken("", claude, usage)
        if plan.kind != "endless":
            break
        words = words or ["", "word "]
    if plan.kind in ("cut", "late-reset"):
        yield b'data: {"ha'
        return
    if plan.kind == "error-event":
        yield event({"type": "error", "error": {"message": f"no {SECRET}"}})
        return
    if claude:
        yield event({"type": "content_block_stop", "index": 0})
        last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
        yield event(last if usage is None else {**last, "usage": usage})
        if plan.kind != "no-end":
            yield event({"type": "message_stop"})
        return
    yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if plan.report not in ("none", "every", "middle"):
        yield event({"choices": [], "usage": usage})
    if plan.kind != "no-end":
        yield b"data: [DONE]\n\n"


def spoken(word: str, claude: bool, usage: Any) -> bytes:
    told = {} if usage is None else {"usage": usage}
    if claude:
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        return event({**delta, **told})
    return event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}], **told})


def event(data: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(data).encode()


class Watched(EmbeddedStore):
    """The store, and after every step a look at what must hold."""

    def __init__(self, path: Path, clock: Any) -> None:
        super().__init__(path, clock)
        self.wrong: list[str] = []
        self.accounts: dict[str, Account] = {}
        self.highest: dict[str, int] = {}
        """The highest limit that was ever in force, by account."""
        self.beyond: defaultdict[str, int] = defaultdict(int)
        """By account, what calls have cost beyond what they were lent."""
        self.ended: Counter[str] = Counter()
        self.lent: set[str] = set()
        self.grown = 0
        self.soft: set[str] = set()
        """Accounts that did not limit what was lent when it was."""

    async def reserve(self, ask: Ask) -> Loan:
        for each in ask.accounts:
            self.accounts.setdefault(each.key, each)
            if not each.hard:
                self.soft.add(each.key)
        self._limits(ask.accounts)
        loan = await super().reserve(ask)
        if not ask.least <= loan.amount <= ask.want:
            self.wrong.append(f"{ask} was lent {loan.amount}")
        self.lent.add(ask.call)
        self._look(ask.accounts)
        return loan

    def _lend(self, asked: Sequence[tuple[Ask, asyncio.Future[Loan]]]) -> list[tuple[Loan, asyncio.Future[Loan]]]:
        loans = super()._lend(asked)
        for ask, lent in asked:
            if lent.done() and not lent.cancelled() and isinstance(short := lent.exception(), Short):
                self._refused(ask, short)
        return loans

    async def extend(self, loan: Loan, amount: int) -> bool:
        self._limits(loan.accounts)
        lent = await super().extend(loan, amount)
        self.grown += lent
        self._look(loan.accounts)
        return lent

    def settle(self, loan: Loan, cost: int, spent: Sequence[Spent]) -> None:
        self.ended[loan.call] += 1
        for each in loan.accounts:
            self.beyond[each.key] += max(0, cost - loan.amount)
        super().settle(loan, cost, spent)
        self._look(loan.accounts)

    def post(self, call: str, tenant: str, accounts: Sequence[Account], cost: int, spent: Sequence[Spent]) -> None:
        for each in accounts:
            self.accounts.setdefault(each.key, each)
            self.beyond[each.key] += cost
        super().post(call, tenant, accounts, cost, spent)

    async def raise_limit(self, raised: Raised) -> None:
        await super().raise_limit(raised)
        self._limits(tuple(self.accounts.values()))

    def _limits(self, accounts: Sequence[Account]) -> None:
        for each in self.known(accounts) or ():
            key = each.account.key
            self.highest[key] = max(self.highest.get(key, 0), each.limit)

    def _look(self, accounts: Sequence[Account]) -> None:
        for each in self.known(accounts) or ():
            key = each.account.key
            if (
                each.account.hard
                and key not in self.soft
                and each.posted + each.pending > self.highest[key] + self.beyond[key]
            ):
                self.wrong.append(f"{each} is over its limit by what nobody was lent")

    def _refused(self, ask: Ask, short: Short) -> None:
        stands = [each for each in self.known(ask.accounts) or () if each.account.hard]
        used_up = [each for each in stands if max(each.limit - each.posted, 0) < ask.least]
        if short.contended is bool(used_up):
            self.wrong.append(f"{ask} is told that it is {short.contended=} where {stands}")
        if used_up and short.balance.account.key not in [each.account.key for each in used_up]:
            self.wrong.append(f"{ask} is told of {short.balance} where {used_up}")


class Witness(MemoryLedger):
    """The ledger, and every call that is over."""

    def __init__(self) -> None:
        super().__init__()
        self.over: list[Exchange] = []

    def conclude(self, x: Exchange) -> None:
        super().conclude(x)
        self.over.append(x)


@dataclass
class Figures:
    """What has happened, for whoever reads it."""

    rounds: int = 0
    calls: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lowered: int = 0
    overruns: int = 0
    grown: int = 0
    cut: int = 0
    left: int = 0
    spent: int = 0
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        codes = ", ".join(f"{code} {count}" for code, count in self.codes.most_common())
        return (
            f"{self.rounds} rounds, {self.calls} calls ({codes}), {self.lowered} lowered, {self.overruns} overruns, "
            f"{self.grown} grown, {self.cut} cut, {self.left} left early, {usd_text(self.spent)} USD, "
            f"{self.attempts} attempts"
        )


class Weather:
    """One round: a gateway, its agents, its operator, and the audit."""

    def __init__(self, seed: int, figures: Figures, folder: Path) -> None:
        self.seed = seed
        self.figures = figures
        self.chance = random.Random(seed)
        self.moods = random.Random(seed)
        """Of the people who decide."""
        self.offset = 0
        self.store = Watched(folder / f"{seed}.db", lambda: time.time_ns() + self.offset)
        self.limits = EmbeddedLimits()
        self.ledger = Witness()
        self.engine = ScriptedEngine(self._decides)
        self.engine_words = self.chance.choice(["yes", "yes", "yes", "any"])
        self.target = Liar(random.Random(seed))
        self.heard: list[tuple[str, bytes]] = []
        """By agent, what it was answered."""
        self.barred: list[tuple[Route, str, float, float]] = []
        """(route, target that was to get no call of it, since, until), by the monotonic clock."""

    def wrong(self, text: str) -> None:
        self.figures.wrong.append(f"seed {self.seed}: {text}")

    def sections(self) -> dict[str, Any]:
        chance = self.chance
        nodes = [f"{self.target.url}/{name}" for name in "abc"] + ["http://127.0.0.1:9"]
        common: dict[str, Any] = {
            "urls": chance.sample(nodes, chance.choice([1, 2, 4])),
            "key": SECRET,
            "health": {"failures": chance.choice([1, 5, 1000]), "ejected_for": 1.0},
            "max_concurrent": chance.choice([None, None, None, None, 1, 5]),
            "timeouts": {"first_token": chance.choice([0.01, 1.0, 30.0])},
        }
        if chance.random() < 0.9:
            common["price"] = dict(chance.choice(_PRICES))
        if chance.random() < 0.4:
            common["max_output_tokens"] = chance.choice([5, 100, 4000, 100_000])
        limits: list[float] = chance.choice([[0, 0.0001, 0.01], [0.05, 0.2], [0.1, 0.5, 2], [0.3, 5, 100], [20, 100]])
        modes = chance.choice(
            [["adaptive"], ["adaptive"], ["strict"], ["strict", "adaptive", "soft", "shadow"], ["soft"]]
        )
        places = [(node, window) for node in _NODES for window in ("session", "day", "month")]
        budgets = [
            {
                "node": node,
                "window": window,
                "limit_usd": chance.choice(limits),
                "mode": chance.choice(modes),
            }
            for node, window in chance.sample(places, chance.choice([0, 1, 1, 2, 3, 6]))
        ]
        rates = [
            {"node": node, "concurrent": chance.choice([3, 50]), "tokens_per_minute": chance.choice([10**5, 10**9])}
            for node in chance.sample(_NODES, chance.choice([0, 0, 0, 1, 2]))
        ]
        others = chance.choice(
            [
                [],
                [{"target": "claude", "weight": 0, "fallback": True}, {"target": "own", "weight": 0, "fallback": True}],
                [{"target": "claude", "weight": 20}, {"target": "own", "weight": 20}],
            ]
        )
        retry = {"attempts": chance.choice([1, 2, 3, 6]), "share": chance.choice([0, 0.2, 1])}
        return {
            "agents": [
                {"name": name, "tenant": tenant, "team": chance.choice(_TEAMS), "key": f"the-key-of-{name}"}
                for name, tenant in _AGENTS.items()
            ],
            "targets": [
                {"name": "primary", "kind": "openai", **common},
                {"name": "spare", "kind": "openai", **common, "price": dict(chance.choice(_PRICES))},
                {"name": "claude", "kind": "anthropic", **common},
                {"name": "own", "kind": "parallax", **common},
            ][: 4 if others else 3],
            "routes": [
                {
                    "name": "chat",
                    "models": ["gpt-*"],
                    "arms": [{"target": "primary"}, {"target": "spare", "weight": 30}, *others],
                    "retry": retry,
                },
                {"name": "cheap", "models": ["cheap"], "arms": [{"target": "spare", "model": "real"}]},
                {"name": "claude", "models": ["claude-*"], "arms": [{"target": "claude"}, *others[1:]], "retry": retry},
            ],
            "budgets": budgets,
            "limits": rates,
            "approvals": {
                "hold_for": self.moods.choice([0, 0.05, 0.5]),
                "hold_streams_for": self.moods.choice([0, 0.5]),
            },
        }

    def _moody(self, _: Approval) -> bool | None:
        """People who sometimes say yes, and sometimes nothing."""
        return self.moods.choice([True, True, False, None])

    def _decides(self, document: Mapping[str, Any]) -> Decision:
        for each in document.get("budgets", ()):
            if each["pending_usd"] < 0 or each["posted_usd"] < 0:
                self.wrong(f"the policy is told {each}")
        if self.engine_words == "yes":
            return ALLOWED
        match self.chance.randrange(12):
            case 0:
                return replace(ALLOWED, effect=Effect.DENY)
            case 1:
                return replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=("finance",))
            case 2 | 3:
                return replace(ALLOWED, obligations=Obligations(max_tokens=self.chance.choice([1, 50, 5000])))
            case 4 if document["call"]["protocol"] == "openai":
                return replace(ALLOWED, obligations=Obligations(route=self.chance.choice(["chat", "cheap"])))
        return ALLOWED

    async def run(self) -> None:
        server = await asyncio.start_server(self.target.serve, "127.0.0.1", 0)
        self.target.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            async with self._gate() as port:
                callers = [asyncio.create_task(self._caller(port)) for _ in range(self.chance.choice([1, 5, 20, 40]))]
                operator = asyncio.create_task(self._operator())
                # In some rounds the gateway is stopped in the middle.
                await asyncio.wait(callers, timeout=self.chance.choice([None, None, None, 0.1, 0.5]))
            operator.cancel()
            await asyncio.gather(*callers, operator, return_exceptions=True)
            async with asyncio.timeout(20):
                while self.pipeline.lender.queues.waiting or self.telemetry.in_flight:
                    await asyncio.sleep(0.005)
            await self.target.end()
            await self._audit()
        await self.store.close()

    @asynccontextmanager
    async def _gate(self) -> AsyncIterator[int]:
        self.telemetry = Telemetry()
        built = assemble(settings(**self.sections()))
        holds = Holds(Register(), self.ledger.note)
        holds.under(built.settings)
        standings = Standings(holds.store, holds)
        await standings.hear()
        self.pipeline = Pipeline(
            built,
            self.engine,
            holds=holds,
            standings=standings,
            lender=Lender(self.store, self.limits, self.chance.choice([0.02, 0.2])),
            ledger=self.ledger,
            events=self.ledger.events,
            telemetry=self.telemetry,
            chance=self.chance.random,
        )
        carriers = []
        async with (
            deciding(holds, self._moody),
            door(self.pipeline, write_timeout=self.chance.choice([0.2, 60.0]), drain=0.05) as port,
        ):
            try:
                yield port
            finally:
                await holds.end()
                lines = self.pipeline.assembly.lines.values()
                carriers += [carrier for line in lines for carrier in line.carriers]
                for carrier in carriers:
                    await carrier.close()

    async def _operator(self) -> None:
        chance = self.chance
        while True:
            await asyncio.sleep(chance.random() * 0.2)
            before = self.pipeline.assembly
            match chance.randrange(9):
                case 0 | 1:
                    after = assemble(settings(**self.sections()), before)
                    self._steer(before.table, {})
                    self.pipeline.assembly = after
                    for carrier in retired(before, after):
                        carrier.retire()
                case 2:
                    self.offset += chance.choice([-1, 1, 1, 31]) * _DAYS
                case 3 if before.plan.budgets:
                    budget = chance.choice(before.plan.budgets)
                    limit = chance.choice([0, budget.limit // 2, budget.limit * 2])
                    raised = Raised(budget.node, budget.window, limit, budget.limit, "dana", self.store.now_ns())
                    await self.store.raise_limit(raised)
                case 4 if before.plan.budgets:
                    budget = chance.choice(before.plan.budgets)
                    await self.store.reset_limit(budget.node.partition("/")[0], budget.node, budget.window)
                case 5 | 6 | 7:
                    names = [arm.target.name for arm in before.table.routes[0].arms]
                    shares = {name: chance.choice([0.0, 0.0, 10.0, 50.0]) for name in names}
                    self._steer(before.table, shares, chance.sample(names, chance.choice([0, 1, 1, len(names) - 1])))

    def _steer(self, table: Table, shares: Mapping[str, float], barred: Sequence[str] = ()) -> None:
        """Weighs the first route, which nobody weighs after a reload any more."""
        now, route = time.monotonic(), table.routes[0]
        self.barred = [(*each[:3], min(each[3], now)) for each in self.barred]
        if shares:
            route.weigh(shares, barred)
            self.barred += [(route, name, now, math.inf) for name in barred]

    async def _caller(self, port: int) -> None:
        for _ in range(self.chance.choice([1, 3, 10])):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError, ValueError):
                await self._call(port)

    async def _call(self, port: int) -> None:
        chance = self.chance
        number = len(self.target.plans)
        self.target.plans[number] = planned(chance)
        agent = chance.choice(list(_AGENTS))
        path, body = self._body(number)
        lines = [f"authorization: Bearer the-key-of-{agent}"]
        session = chance.choice(_SESSIONS)
        if session is not None:
            lines.append(f"x-weighbridge-session: {session}")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self.figures.calls += 1
        heard = b""
        try:
            writer.write(post(path, body, *lines))
            mood = chance.choice(["stays"] * 5 + ["leaves", "leaves", "reads-slowly"])
            if mood == "leaves":
                self.figures.left += 1
                await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005, 0.02, 0.1]))
                if chance.random() < 0.5:
                    async with asyncio.timeout(0.5):
                        heard = await reader.read(chance.choice([1, 500, 10_000]))
                return
            async with asyncio.timeout(chance.choice([0.3, 1.5])):
                head = await reader.readuntil(b"\r\n\r\n")
                heard += head
                while b"\r\n0\r\n\r\n" not in heard[-7:]:
                    length = re.search(rb"content-length: (\d+)", head)
                    if length is not None and len(heard) >= len(head) + int(length[1]):
                        break
                    if mood == "reads-slowly":
                        await asyncio.sleep(0.01)
                    piece = await reader.read(2000 if mood == "reads-slowly" else 65536)
                    if not piece:
                        break
                    heard += piece
        finally:
            self.heard.append((agent, heard))
            writer.transport.abort()

    def _body(self, number: int) -> tuple[str, bytes]:
        chance = self.chance
        nonce = f"nonce-{number}-"
        odd = chance.random() < 0.2
        arguments: dict[str, Any] = {"messages": [{"role": "user", "content": "hello " * chance.choice([1, 1, 100])}]}
        if chance.random() < 0.6:
            arguments["stream"] = chance.choice([True, True, True, False])
        if chance.random() < 0.6:
            arguments["max_tokens"] = chance.choice([1, 100, 1000, 50_000])
        if odd:
            name, value = chance.choice(
                [
                    ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", "9"), ("max_tokens", 10**18),
                    ("max_tokens", 2.5), ("max_tokens", None), ("max_completion_tokens", 5), ("n", 3), ("n", "7"),
                    ("n", 10**15), ("n", 0), ("n", -4), ("best_of", 10**12), ("service_tier", "priority"),
                    ("previous_response_id", "r"), ("tools", [{"type": "web_search"}]), ("tools", [{"type": {}}]),
                    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                    ("messages", [{"content": {"a": 1}}, 5, None]), ("stream", "yes"), ("model", ""),
                ]
            )  # fmt: skip
            arguments[name] = value
        protocol = chance.choice(["chat", "chat", "messages", "completions", "embeddings", "responses", "count"])
        model = chance.choice(
            [
                "gpt-4o-mini",
                "gpt-4o-mini",
                "gpt-unknown",
                "gpt-4o",
                "cheap",
                f"gpt-{number}",
                chance.choice(["gpt-4o", "nobody-serves"]),
            ]
        )
        if protocol in ("messages", "count"):
            model = "claude-sonnet-4-5"
        arguments = {"model": model, "user": nonce, **arguments}
        match protocol:
            case "completions":
                arguments["prompt"] = chance.choice(["hello", ["a", "b"], [1, 2], [[1], [2]]])
                return "/v1/completions", orjson.dumps(arguments)
            case "embeddings":
                arguments["input"] = ["a", "b"]
                return "/v1/embeddings", orjson.dumps(arguments)
            case "responses":
                arguments["input"] = "hello"
                return "/v1/responses", orjson.dumps(arguments)
            case "messages":
                return "/v1/messages", orjson.dumps(arguments)
            case "count":
                return "/v1/messages/count_tokens", orjson.dumps(arguments)
        return "/v1/chat/completions", orjson.dumps(arguments)

    # The audit

    async def _audit(self) -> None:
        figures, store = self.figures, self.store
        figures.rounds += 1
        for text in store.wrong:
            self.wrong(text)
        posted: defaultdict[str, int] = defaultdict(int)
        by_agent: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for x in self.ledger.over:
            figures.codes[x.code] += 1
            figures.lowered += x.clamped is not None
            figures.overruns += x.overrun > 0
            figures.spent += x.cost or 0
            figures.attempts += len(x.attempts)
            self._one(x)
            paid = x.reached is not Reached.NO and x.arm is not None and x.call is not None and not x.call.endpoint.free
            if not (paid or x.bills) or x.agent is None:
                continue
            by_agent[x.agent.name] += x.cost or 0
            calls[x.agent.name] += 1
            for account in x.payers:
                posted[account.key] += x.cost or 0
        figures.grown += store.grown
        figures.cut += self.pipeline.lender.cut_streams
        accounts = list(store.accounts.values())
        for each in await store.balances(accounts):
            if each.pending:
                self.wrong(f"{each.account.key} has {each.pending} pending and nobody calls")
            if each.posted != posted[each.account.key]:
                self.wrong(f"{each.account.key} has {each.posted} posted, its calls cost {posted[each.account.key]}")
        rows = await store.spend(_TENANTS, "2000-01-01", "2999-12-31", ["agent"], {})
        spent = {str(row["agent"]): (row["cost"], row["calls"]) for row in rows}
        if spent != {agent: (by_agent[agent], calls[agent]) for agent in calls}:
            self.wrong(f"the cost ledger has {spent}, the calls {by_agent}, {calls}")
        recorded = sum(round(each.get("cost_usd", 0) * 10**9) for each in self.ledger.outcomes())
        if abs(recorded - sum(by_agent.values())) > 1e-6 * recorded:
            self.wrong(f"records say {recorded}, calls cost {by_agent}")
        if set(store.lent) - set(store.ended) - {x.id for x in self.ledger.over if x.reached is Reached.NO}:
            self.wrong("a loan was never settled")
        if any(count > 1 for count in store.ended.values()):
            self.wrong("a loan was settled twice")
        if self.limits._inside or any(self.limits._running.values()):
            self.wrong("somebody is still inside, who has left")
        if self.pipeline.lender.queues.waiting or self.telemetry.in_flight:
            self.wrong("somebody still waits, who has left")
        for pool in self.pipeline.attempts.fleet.pools.values():
            if pool.in_flight or any(node.in_flight for node in pool.nodes):
                self.wrong(f"{pool.name} has {pool.in_flight} calls under way: {pool.nodes}")
        for agent, heard in self.heard:
            foreign = {"acme": b"zeta", "zeta": b"acme"}[_AGENTS[agent]]
            if foreign in heard or SECRET.encode() in heard:
                self.wrong(f"{agent} was told {heard!r}")
        await self._killed()

    def _one(self, x: Exchange) -> None:
        """What has to be true of each call."""
        if x.code in ("internal_error", "ledger_unavailable"):
            self.wrong(f"call {x.id} failed in the gateway: {x.call and x.call.body!r}")
        if x.call is None:
            return
        if any(each.outcome is None for each in x.attempts):
            self.wrong(f"call {x.id} has an attempt that has not ended: {x.attempts}")
        for number, each in enumerate(x.attempts):
            for route, target, since, until in self.barred:
                # A first attempt goes by the routes of the configuration that the call came in under.
                same = x.route is route or (number and x.route is not None and x.route.name == route.name)
                if same and each.arm.target.name == target and since < each.began < until and not x.bound:
                    self.wrong(f"call {x.id} went to {target} as attempt {number}, which was taken back")
        if sum(each.cost for each in x.attempts) != (x.cost or 0):
            self.wrong(f"call {x.id} cost {x.cost} for {x.attempts}")
        nonce = _NONCE.search(x.call.body)
        plan = self.target.plans[int(nonce[1])] if nonce is not None else None
        if x.code in _REFUSALS and not x.status == 200 and x.reached is not Reached.NO and x.target_status is None:
            self.wrong(f"call {x.id} was refused ({x.code}) after it was sent")
        if x.bills and x.reached is Reached.NO and x.cost != sum(each.cost for each in x.bills):
            self.wrong(f"call {x.id} cost {x.cost} for {x.bills}")
        if x.reached is Reached.NO:
            if x.cost is not None and not x.bills:
                self.wrong(f"call {x.id} was not sent and cost {x.cost}")
            if plan is not None and plan.arrived and not x.bills and not x.call.endpoint.free:
                self.wrong(f"call {x.id} was not sent, and arrived")
            return
        if any(each.hard for each in x.payers) and x.loan is None and not x.call.endpoint.free:
            self.wrong(f"call {x.id} was sent without a loan")
        if x.usage is None or plan is None:
            return
        if plan.honest and plan.finished and x.code == "ok" and plan.words and x.status == 200:
            if (x.usage.input_tokens, x.usage.output_tokens) != (plan.read, plan.words) and x.call.operation in (
                "chat",
                "messages",
            ):
                self.wrong(f"call {x.id} is settled as {x.usage} where {plan}")

    async def _killed(self) -> None:
        """What a kill would leave now is what there is."""
        balances = await self.store.balances(list(self.store.accounts.values()))
        await asyncio.sleep(0.01)
        after = EmbeddedStore(copied(self.store.path))
        try:
            for before, now in zip(balances, await after.balances([each.account for each in balances]), strict=True):
                if (now.posted, now.pending) != (before.posted, 0):
                    self.wrong(f"a kill makes {now} of {before}")
        finally:
            await after.close()


async def rounds(seeds: Sequence[int] | None, figures: Figures, ends: float, folder: Path, first: int = 0) -> int:
    """Runs the seeds that are given, or all from `first` on until it is time; the next one."""
    seed = first
    with in_memory(folder) as quick:
        while seeds is None or seed - first < len(seeds):
            if seeds is None and (time.monotonic() > ends or len(figures.wrong) > 20):
                break
            await Weather(seeds[seed - first] if seeds is not None else seed, figures, quick).run()
            seed += 1
    return seed


def main() -> None:
    """The long way."""
    seconds = float(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    logging.disable(logging.CRITICAL)
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        last = asyncio.run(rounds(None, figures, time.monotonic() + seconds, Path(folder), first))
    sys.stdout.write("\n\n".join((f"seeds {first} to {last - 1}: {figures.text()}", *figures.wrong, "")))
    sys.exit(1 if figures.wrong else 0)


if __name__ == "__main__":
    main()
