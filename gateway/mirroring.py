"""A share of a route's calls is sent to a second target as well, after their own answers: what comes is compared, and
nobody gets it.

The agent's call is over by then, so a mirror cannot delay or fail it: at most MOST copies are under way, what comes
beyond them is dropped and counted, and each is given up after PATIENCE. A copy says to its target what the call said to
its own, but for the model's name. No budget pays for it; the cost ledger and the record have it.

Not copied are calls that the policy has sent to a certain route, that people have approved, whose agent has left, that
go on from something a target keeps, and that cost nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from orjson import Fragment

from adapters.base import AgentCall, Headers, Usage
from adapters.errors import MalformedCall
from adapters.parallax import Failure, Sniffed, Sniffer, hidden
from adapters.translation import Translation, translation
from config.errors import SecretMissing
from config.settings import MirrorSettings
from gateway import carrier
from gateway.exchange import Attempt, Exchange
from gateway.headers import onward, parameters, replaced
from gateway.usage import TRANSLATED, used
from policies.budgets import METRICS, Spent, Store
from policies.money import MOST as MOST_MONEY
from policies.money import usd_text
from routing.figures import ArmFigures
from routing.health import Fleet, Node
from routing.outcomes import FIRST_TOKEN_LATE, Facts, Outcome, Stage, classify
from routing.target import Target, target

if TYPE_CHECKING:
    from gateway.assembly import Assembly, Way

log = logging.getLogger("weighbridge.mirroring")

MOST: Final = 32
"""Copies under way in one process."""
MOST_BYTES: Final = 32 * 1024 * 1024
"""Bytes of calls of which copies are under way."""
PATIENCE: Final = 120.0
"""Seconds after which a copy is given up."""

_KEPT: Final = 256
"""Mirrors whose comparison is kept: of routes that are configured no more, too."""
_HELD: Final = 1024 * 1024
_TAIL: Final = 4096
"""Bytes of an answer that are kept to be looked at: all of a shorter one, the end of a longer one."""
_USUAL_LONGEST: Final = 4096
"""Tokens of an answer's limit where a target wants one and nobody says it."""
_KEPT_THERE: Final = ("previous_response_id", "conversation", "background")
"""Members of a call by which it is of use at one target only."""
_ONCE: Final = b"idempotency-key"
"""By this a target tells a call from its repetition, and a copy is neither."""


@dataclass(slots=True)
class Compared:
    """What calls and their copies amount to. `figures` are of pairs alone: of the route's own answers and of the
    mirror's."""

    settings: MirrorSettings
    since: float
    own: ArmFigures
    mirrored: ArmFigures
    dropped: int = 0
    """Calls that were chosen and not copied: too many were under way, or the target could take none."""
    unfit: int = 0
    """Calls that cannot be put in the words of the target's protocol."""
    pairs: dict[tuple[bool, bool], int] = field(default_factory=dict)
    """By whether the route's own answer, and the mirror's, was good."""


@dataclass(slots=True)
class _Copy:
    """What became of one copy. Times are seconds of the monotonic clock; see `routing.outcomes.Facts` for the rest."""

    sent: float
    ended: float = 0.0
    first_byte_at: float | None = None
    stage: Stage = "unsent"
    status: int | None = None
    error: str = ""
    hidden: str = ""
    complete: bool = True
    size: int = 0
    """Bytes of the answer's body."""
    usage: Usage | None = None
    cost: int = 0
    unpriced: bool = False


class Mirrors:
    """All mirrors of one process. `note` writes to the ledger."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        note: Callable[[str, Mapping[str, Any]], None],
        *,
        chance: Callable[[], float] = random.random,
        most: int = MOST,
        most_bytes: int = MOST_BYTES,
        patience: float = PATIENCE,
    ) -> None:
        """`chance` is uniform in [0, 1), `patience` in seconds."""
        self._store = store
        self._fleet = fleet
        self._note = note
        self._chance = chance
        self._most = most
        self._most_bytes = most_bytes
        self._patience = patience
        self._assembly: Assembly | None = None
        self._plans: dict[str, tuple[MirrorSettings, Target]] = {}
        """What `_assembly` says, by route."""
        self._compared: dict[tuple[str, str, str | None], Compared] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._at: Counter[str] = Counter()
        """Copies under way, by target."""
        self._closed = False

    def consider(self, x: Exchange) -> None:
        """Sends a copy of a call that is over, if its route wants one. Never raises, never waits."""
        route = x.route
        if route is None:
            return
        if x.assembly is not self._assembly:
            self._under(x.assembly)
        plan = self._plans.get(route.name)
        if plan is not None:
            try:
                self._consider(x, route.name, *plan)
            except Exception:
                log.exception("call %s could not be mirrored", x.id)

    def compared(self, route: str, settings: MirrorSettings) -> Compared | None:
        """What has come of a route's mirror; None where that had no call yet."""
        return self._compared.get(_key(route, settings))

    def all(self) -> list[tuple[str, Compared]]:
        """(route, what has come of a mirror of it), for metrics."""
        return [(route, each) for (route, _, _), each in self._compared.items()]

    async def settled(self) -> None:
        """Waits until no copy is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends what is under way; no more copies are made."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await self.settled()

    def _under(self, assembly: Assembly) -> None:
        self._assembly, self._plans = assembly, {}
        known = {each.name: each for each in assembly.settings.targets}
        for route in assembly.settings.routes:
            if route.mirror is None or not route.mirror.share:
                continue
            try:
                self._plans[route.name] = route.mirror, target(known[route.mirror.target])
            except (SecretMissing, LookupError) as error:
                log.error("route %s is not mirrored: %s", route.name, error)

    def _consider(self, x: Exchange, route: str, settings: MirrorSettings, to: Target) -> None:
        call = x.call
        if call is None or self._closed or not _may_be_copied(x, call) or self._chance() >= settings.share:
            return
        served = x.attempts[-1].arm
        if not to.serves(call.protocol, call.operation):
            return
        if (served.target.name, served.model or call.target) == (to.name, settings.model or call.target):
            return
        compared = self._about(route, settings)
        size = len(call.body)
        way = self._way(x, to.name)
        if way is None or len(self._tasks) >= self._most or (self._tasks and self._bytes + size > self._most_bytes):
            compared.dropped += 1
            return
        self._bytes += size
        self._at[to.name] += 1
        task = asyncio.get_running_loop().create_task(self._mirror(x, call, compared, to, way))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._done, size, to.name))

    def _done(self, size: int, to: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._bytes -= size
        self._at[to] -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a mirrored call failed in the gateway", exc_info=error)

    def _about(self, route: str, settings: MirrorSettings) -> Compared:
        key = _key(route, settings)
        found = self._compared.pop(key, None)
        if found is None:
            now = time.time()
            found = Compared(settings, now, ArmFigures(now), ArmFigures(now))
            if len(self._compared) >= _KEPT:
                del self._compared[next(iter(self._compared))]
        found.settings = settings
        self._compared[key] = found  # in the order of their last use
        return found

    def _way(self, x: Exchange, name: str) -> Way | None:
        """The way to the node with the least to do. A copy takes no place that a call could have."""
        ways, pool = x.assembly.lines[name].ways, self._fleet.pools.get(name)
        if pool is None or (pool.most is not None and pool.in_flight + self._at[name] >= pool.most):
            return None
        now = time.monotonic()
        nodes: list[Node] = [node for node in pool.nodes if node.takes(now) and node.url in ways]
        return ways[min(nodes, key=lambda node: node.in_flight).url] if nodes else None

    async def _mirror(self, x: Exchange, call: AgentCall, compared: Compared, to: Target, way: Way) -> None:
        model = compared.settings.model
        crossing = _crossing(call.protocol, call.operation, to.kind.protocol)
        try:
            path, headers, body = _told(x, call, model, to, way, crossing)
        except (MalformedCall, ValueError):
            compared.unfit += 1
            return
        copy = _Copy(time.monotonic())
        try:
            async with asyncio.timeout(self._patience):
                await _exchanged(x, call, copy, to, way, crossing, path, headers, body)
        except carrier.CarrierError as error:
            copy.error = type(error).__name__
        except TimeoutError:
            copy.error = copy.error or "TotalTimeout"
        except (MalformedCall, ValueError):
            copy.error = "ReplyMalformed"
        finally:  # what was sent is paid for, also where the gateway ends
            copy.ended = time.monotonic()
            begun = copy.stage == "headed" and copy.status is not None and 200 <= copy.status <= 299
            if copy.usage is None and (begun or copy.stage == "sent"):  # nobody knows what was made of it
                copy.usage = Usage(estimated=True)
            self._pay(x, call, copy, to, model)
        facts = Facts(to.settings.kind, copy.stage, copy.status, copy.error, copy.hidden, copy.complete)
        self._compare(x, compared, copy, classify(facts), to)

    def _pay(self, x: Exchange, call: AgentCall, copy: _Copy, to: Target, model: str | None) -> None:
        """Writes the cost ledger; nobody's budget has anything to do with it."""
        agent, usage = x.agent, copy.usage
        if usage is None or agent is None:
            return
        if usage.estimated and not usage.input_tokens:
            usage.input_tokens = len(call.body) // 4 + 1
        price = x.assembly.prices.of(to.name, model or call.target)
        copy.unpriced = price is None
        copy.cost = min(price.cost(usage), MOST_MONEY) if price is not None else 0
        metrics = (
            0,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            copy.cost,
            0,
            int(price is None),
        )
        spent = Spent(
            x.day,
            agent.tenant,
            agent.team or "",
            agent.name,
            x.session or "",
            call.target,
            to.name,
            "",
            **dict(zip(METRICS, metrics, strict=True)),
        )
        self._store.post(f"{x.id}-mirror", agent.tenant, (), copy.cost, (spent,))

    def _compare(self, x: Exchange, compared: Compared, copy: _Copy, outcome: Outcome, to: Target) -> None:
        own = x.attempts[-1]
        assert own.outcome is not None, "a call that is mirrored is over"
        now, call = time.time(), x.call
        streams = call is not None and bool(call.stream)
        good = own.outcome.name == "ok", outcome.name == "ok"
        compared.pairs[good] = compared.pairs.get(good, 0) + 1
        _count(compared.own, now, own.outcome, own.arm.target, own, own.usage or x.usage, streams, known=not x.unpriced)
        _count(compared.mirrored, now, outcome, to, copy, copy.usage, streams, known=not copy.unpriced)
        self._note(
            "mirror",
            {
                "call": x.id,
                "route": x.route.name if x.route is not None else "",
                "own": _facts(own.arm.target.name, own.arm.model, own.outcome, own, own.usage or x.usage, x.unpriced),
                "mirror": _facts(to.name, compared.settings.model, outcome, copy, copy.usage, copy.unpriced)
                | {"answer_bytes": copy.size},
            },
        )


def _key(route: str, settings: MirrorSettings) -> tuple[str, str, str | None]:
    return route, settings.target, settings.model


def _may_be_copied(x: Exchange, call: AgentCall) -> bool:
    attempts = x.attempts
    if not attempts or x.bound or x.consent is not None or call.endpoint.free:
        return False
    if any(call.arguments.get(name) for name in _KEPT_THERE):
        return False
    outcome = attempts[-1].outcome
    if outcome is None or not outcome.counted:
        return False
    return x.fulfilled is None or x.fulfilled.route is None


@functools.cache
def _crossing(protocol: str, operation: str, target_protocol: str) -> Translation | None:
    return translation(protocol, operation, target_protocol) if protocol != target_protocol else None


def _told(
    x: Exchange, call: AgentCall, model: str | None, to: Target, way: Way, crossing: Translation | None
) -> tuple[bytes, Headers, bytes]:
    """Path, headers and body for the target. Raises MalformedCall where they cannot be translated."""
    demanded = x.fulfilled.headers if x.fulfilled is not None else None
    if crossing is None:
        path = (way.root + call.endpoint.suffix).encode()
        if x.query and (query := parameters(x.query)):
            path += b"?" + query
        headers = onward([line for line in x.headers if line[0] != _ONCE], to.credentials, demanded)
        return path, headers, x.adapter.onward(call, model)
    longest = x.clamped or to.settings.max_output_tokens or _USUAL_LONGEST
    lines = [line for line in x.headers if line[0] != _ONCE and line[0] not in crossing.withheld]
    headers = replaced(onward(lines, to.credentials, demanded), crossing.headers)
    return (way.root + crossing.suffix).encode(), headers, crossing.request(call, model, longest)


async def _exchanged(
    x: Exchange,
    call: AgentCall,
    copy: _Copy,
    to: Target,
    way: Way,
    crossing: Translation | None,
    path: bytes,
    headers: Headers,
    body: bytes,
) -> None:
    """One exchange; notes in `copy` how far it came. Raises CarrierError, TimeoutError, ValueError."""

    def leaving() -> None:
        copy.stage = "sent"

    answer = await way.carrier.send(b"POST", path, headers, body, leaving=leaving)
    try:
        copy.stage, copy.status = "headed", answer.status
        kind = next((value for name, value in answer.headers if name == b"content-type"), b"")
        kind = kind.partition(b";")[0].strip().lower()
        if call.stream and 200 <= answer.status <= 299:
            await _streamed(x, call, copy, to, answer, kind, crossing)
        else:
            await _whole(x, call, copy, answer, kind, crossing, to)
    finally:
        answer.close()


async def _streamed(
    x: Exchange,
    call: AgentCall,
    copy: _Copy,
    to: Target,
    answer: carrier.Reply,
    kind: bytes,
    crossing: Translation | None,
) -> None:
    sniffer, meter = Sniffer(to.kind.protocol, answer.status, kind), x.adapter.meter(call)
    converter = crossing.stream(call) if crossing is not None else None
    found: Sniffed | Failure = Sniffed.UNDECIDED
    try:
        async with asyncio.timeout(max(to.settings.timeouts.first_token - (time.monotonic() - copy.sent), 0.0)):
            while found is Sniffed.UNDECIDED:
                piece = await answer.read()
                copy.size += len(piece)
                found = sniffer.feed(piece) if piece else sniffer.end()
    except TimeoutError:
        copy.error = FIRST_TOKEN_LATE
        raise
    copy.usage = Usage(estimated=True)
    if isinstance(found, Failure):
        copy.hidden = found.kind
        if found.kind == "status":
            copy.status = found.status
        return
    copy.stage, copy.first_byte_at = "begun", time.monotonic()
    try:
        piece = sniffer.held
        while piece:
            meter.feed(piece if converter is None else converter.feed(piece))
            piece = await answer.read()
            copy.size += len(piece)
        if converter is not None:
            meter.feed(converter.rest())
        meter.rest()
    finally:
        copy.usage, copy.complete = meter.spent(), meter.complete and not meter.failed


async def _whole(
    x: Exchange,
    call: AgentCall,
    copy: _Copy,
    answer: carrier.Reply,
    kind: bytes,
    crossing: Translation | None,
    to: Target,
) -> None:
    body, ended = b"", False
    try:
        while piece := await answer.read():
            if copy.first_byte_at is None:
                copy.first_byte_at = time.monotonic()
            copy.size += len(piece)
            body += piece
            if copy.size > _HELD:
                body = body[-_TAIL:]
        ended = True
    finally:
        if 200 <= answer.status <= 299:
            copy.usage = used(x.adapter, call, body if ended else b"", copy.size, to if crossing is not None else None)
    if not 200 <= answer.status <= 299 or copy.size > _HELD:
        return
    operation = call.operation if crossing is None else TRANSLATED[to.kind.protocol]
    failure = hidden(operation, answer.status, kind, body)
    if failure is not None:
        copy.hidden = failure.kind
        if failure.kind == "status":
            copy.status = failure.status
    elif crossing is not None:
        crossing.answer(call, answer.status, body)  # as it would have to be for the agent


def _count(
    figures: ArmFigures,
    at: float,
    outcome: Outcome,
    of: Target,
    tried: Attempt | _Copy,
    usage: Usage | None,
    streams: bool,
    *,
    known: bool,
) -> None:
    began = tried.sent if isinstance(tried, _Copy) else tried.began
    seconds, error = tried.ended - began, outcome.name if outcome.error(of.settings.kind) else None
    figures.observe(
        at,
        seconds if outcome.name == "ok" else None,
        error=error,
        first_token=tried.first_byte_at - began if streams and tried.first_byte_at is not None else None,
        input_tokens=usage.input_tokens if usage is not None else 0,
        output_tokens=usage.output_tokens if usage is not None else 0,
        cost=tried.cost if known and (usage is not None or tried.cost) else None,
    )


def _facts(
    name: str, model: str | None, outcome: Outcome, tried: Attempt | _Copy, usage: Usage | None, unpriced: bool
) -> dict[str, Any]:
    """One side of a pair, for the record."""
    began = tried.sent if isinstance(tried, _Copy) else tried.began
    facts: dict[str, Any] = {"target": name, "outcome": outcome.name, "seconds": round(tried.ended - began, 6)}
    if model is not None:
        facts["target_model"] = model
    if tried.status is not None:
        facts["target_status"] = tried.status
    if tried.first_byte_at is not None:
        facts["first_byte_seconds"] = round(tried.first_byte_at - began, 6)
    if usage is not None:
        facts["usage"] = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        if usage.estimated:
            facts["usage"]["estimated"] = True
        facts |= {"unpriced": True} if unpriced else {"cost_usd": Fragment(usd_text(tried.cost))}
    return facts
