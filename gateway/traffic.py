"""What the arms of routes meet with, counted as each call ends: for people who compare them, for the evidence on which
a canary grows or is taken back, and for metrics.

A call can meet several arms. What it was tried on one arm in a row is one call of that arm, and its last attempt says
how that ended: another node of the same arm made good, or nobody did. What `routing.outcomes` does not count, as the
call of an agent that left, counts nowhere. Failures of one session in one minute are one failure to the evidence, and
failures still. A rejected call is nobody's failure, being mistaken perhaps: such calls are counted apart, one of a
session and hour, since only an arm that rejects more of them than others says anything.

An arm whose nodes have failed, and failed again when they were tried, meets with hardly any call: others take them. To
the evidence those that were meant for it have failed there, or a canary that is down would never be found out. Where
it is probes that keep calls from it, none has failed: they are counted apart.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from config.settings import RolloutSettings
from gateway.exchange import Attempt, Exchange
from routing.course import (
    ABSENT,
    BUCKET,
    CALLS,
    COST,
    ERROR,
    ERRORS,
    OUTPUT_TOKENS,
    OVERFLOW,
    RAW_ERRORS,
    RAW_REJECTED,
    REJECTED,
    SAMPLE,
    SLOW,
    UNPRICED,
    RouteStore,
    counted,
)
from routing.evidence import Seen
from routing.figures import ArmFigures
from routing.health import Fleet, Pool, State
from routing.outcomes import QUOTA_EXCUSED, UNANSWERED, Outcome
from routing.table import Arm, Route

log = logging.getLogger("weighbridge.traffic")

SAMPLES: Final = 5
"""Failed calls of an arm that are remembered, the last ones."""
_TOLD: Final = 2
"""Failed calls of a canary that the other gateways are told of in one bucket, the first ones."""
FORGOTTEN: Final = 86_400.0
"""Seconds after its last call at which an arm is forgotten that is configured no more."""

_REJECTED_AGAIN: Final = 3600.0
"""Seconds in which a rejected call of the same session says nothing new: what is mistaken stays so."""
_REJECTED: Final = "rejected"
_NOBODY: Final = "no_healthy_target"
_DOWN: Final = "ejected"
"""The class of errors that calls are which an arm did not get because it is down."""


class Met(NamedTuple):
    """What one arm has met with since the start. `attempts` are by outcome; `overflow` is as of `routing.figures`."""

    route: str
    target: str
    attempts: Mapping[str, int]
    overflow: int


class _Met:
    """One arm of one route; the rest are the keys of its counts."""

    __slots__ = (
        "attempts",
        "calls",
        "cost",
        "errors",
        "figures",
        "last",
        "output_tokens",
        "overflow",
        "overflowed",
        "place",
        "quota_since",
        "raw_errors",
        "samples",
        "slow",
        "target",
        "told",
        "told_in",
        "unpriced",
    )

    def __init__(self, route: str, target: str, since: float, now: float) -> None:
        self.target = target
        self.place = f"{route}\0{target}"
        self.figures = ArmFigures(since)
        self.attempts: dict[str, int] = {}
        self.overflowed = 0
        self.samples: deque[str] = deque(maxlen=SAMPLES)
        self.told_in = self.told = 0
        """A bucket, and how many failed calls the other gateways were told of in it."""
        self.quota_since = 0.0
        """Since when its answers say that a quota is used up, and nothing else; 0.0 while they do not."""
        self.last = now
        self.calls = counted(target, CALLS)
        self.errors = counted(target, ERRORS)
        self.raw_errors = counted(target, RAW_ERRORS)
        self.slow = counted(target, SLOW)
        self.overflow = counted(target, OVERFLOW)
        self.cost = counted(target, COST)
        self.unpriced = counted(target, UNPRICED)
        self.output_tokens = counted(target, OUTPUT_TOKENS)


class _Watched:
    """A route as it was configured for the last call: its canary, and after how many seconds a first token is late,
    where it has a rollout that says so; whether it is `compared`, having several arms."""

    __slots__ = ("arms", "canary", "compared", "retries", "route", "slow_after")

    def __init__(self, route: Route, arms: dict[str, _Met], retries: int, rollout: RolloutSettings | None) -> None:
        self.route: Route | None = route
        self.arms = arms
        self.retries = retries
        self.canary = rollout.canary if rollout is not None else None
        self.slow_after = rollout.gates.max_first_token if rollout is not None else None
        self.compared = len(route.arms) > 1


class Traffic:
    """All routes of one process since its start. What is known outlives reloads.

    Figures are this process's own; counts go to `store`, where those of all gateways come together.
    """

    def __init__(self, store: RouteStore, since: float | None = None, fleet: Fleet | None = None) -> None:
        """`since` is when the gateway started, in seconds since the epoch. `fleet` has the nodes of all targets."""
        self.since = since if since is not None else time.time()
        self._store = store
        self._fleet = fleet
        self._routes: dict[str, _Watched] = {}
        self._seen = Seen()
        self._seen_rejected = Seen(seconds=_REJECTED_AGAIN)

    def observe(self, x: Exchange) -> None:
        """Counts a call that is over and paid for, once. Never raises."""
        try:
            if x.attempts:
                self._met(x)
            elif x.code == _NOBODY and x.meant is not None and x.route is not None:  # nobody had room
                at = _at(x, x.ended)
                self._not_taken(self._watched(x, x.route, at).arms[x.meant.target.name], at)
        except Exception:
            log.exception("call %s could not be counted at its route", x.id)

    def figures(self, route: str) -> Mapping[str, ArmFigures]:
        """What is known of a route's arms, by target; some may be configured no more."""
        watched = self._routes.get(route)
        return {name: met.figures for name, met in watched.arms.items()} if watched is not None else {}

    def samples(self, route: str) -> Sequence[str]:
        """The ids of the last calls that failed on a route's canary, the latest last; on any arm where it has none."""
        watched = self._routes.get(route)
        if watched is None:
            return ()
        canary = watched.arms.get(watched.canary or "")
        asked = watched.arms.values() if canary is None else (canary,)
        # Ids are in the order of time.
        return sorted(each for met in asked for each in met.samples)[-SAMPLES:]

    def met(self) -> Iterator[Met]:
        """Every arm's attempts, for metrics."""
        for name, watched in self._routes.items():
            for target, met in watched.arms.items():
                yield Met(name, target, met.attempts, met.overflowed)

    def retries(self) -> Iterator[tuple[str, int]]:
        """(route, attempts that were made because one before had failed)."""
        for name, watched in self._routes.items():
            yield name, watched.retries

    def _met(self, x: Exchange) -> None:
        route, attempts = x.route, x.attempts
        assert route is not None, "a call is routed before it is attempted"
        last = attempts[-1]
        at = _at(x, last.ended)
        watched = self._routes.get(route.name)
        if watched is None or watched.route is not route:
            watched = self._watched(x, route, at)
        counts: dict[str, int] = {}
        first = attempts[0]
        if first.pick.index and x.meant is not None:
            met = watched.arms[x.meant.target.name]
            self._not_taken(met, at)
            if first.overflow:
                counts[met.overflow] = 1
            elif (pool := self._out_of_service(met.target)) is None:
                pass
            elif not _is_down(pool, last.ended):
                if any(node.by_probe for node in pool.nodes):
                    counts[counted(met.target, ABSENT)] = 1
            else:
                counts[met.calls] = counts[counted(met.target, ERROR + _DOWN)] = counts[met.raw_errors] = 1
                if self._first(x, met, at):
                    counts[met.errors] = 1
        if first is last:
            met = watched.arms[first.pick.arm.target.name]
            outcome = first.outcome
            if outcome is not None:
                met.attempts[outcome.name] = met.attempts.get(outcome.name, 0) + 1
                if outcome.counted:
                    self._ended(x, watched, met, outcome, first, first, first.cost, counts, at)
        else:
            self._several(x, watched, counts)
        if counts and watched.compared:
            self._store.count(route.name, counts)

    def _several(self, x: Exchange, watched: _Watched, counts: dict[str, int]) -> None:
        """Attempts in a row on one arm are one call of that arm."""
        attempts = x.attempts
        began, cost = attempts[0], 0
        for attempt, following in zip(attempts, [*attempts[1:], None], strict=True):
            outcome, name = attempt.outcome, attempt.arm.target.name
            met = watched.arms[name]
            if outcome is not None:
                met.attempts[outcome.name] = met.attempts.get(outcome.name, 0) + 1
                watched.retries += following is not None and outcome.counted
            cost += attempt.cost
            if following is not None and following.arm.target.name == name:
                continue
            if outcome is not None and outcome.counted:
                at = _at(x, attempt.ended)
                self._ended(x, watched, met, outcome, began, attempt, cost, counts, at)
            if following is not None:
                began, cost = following, 0

    def _ended(
        self,
        x: Exchange,
        watched: _Watched,
        met: _Met,
        outcome: Outcome,
        first: Attempt,
        last: Attempt,
        cost: int,
        counts: dict[str, int],
        at: float,
    ) -> None:
        """One call of one arm, which began with the `first` of some attempts and ended with the `last`."""
        met.last = at
        usage, call = last.usage, x.call
        if usage is None and last is x.attempts[-1]:
            usage = x.usage
        tokens_in, tokens_out = (usage.input_tokens, usage.output_tokens) if usage is not None else (0, 0)
        known: int | None = cost
        if x.unpriced and _unpriced(x, last.arm):
            known = None
            if outcome.name == "ok":
                counts[met.unpriced] = counts.get(met.unpriced, 0) + 1
        elif usage is None and not cost:
            known = None  # it is free of charge, nothing was made, or nobody can say
        elif cost:
            counts[met.cost] = counts.get(met.cost, 0) + cost
        first_token: float | None = None
        if last.first_byte_at is not None and call is not None and call.stream:
            first_token = last.first_byte_at - first.began
            if watched.slow_after is not None and first_token > watched.slow_after:
                counts[met.slow] = counts.get(met.slow, 0) + 1
        counts[met.calls] = counts.get(met.calls, 0) + 1
        if tokens_out:
            counts[met.output_tokens] = counts.get(met.output_tokens, 0) + tokens_out
        if outcome.name == "ok":
            # To count tokens is no work: arms that are asked to would seem to be quick.
            error, seconds = None, last.ended - first.began if call is None or not call.endpoint.free else None
            met.quota_since = 0.0
        elif _is_error(outcome, last.arm.target.settings.kind, met, at):
            error, seconds = outcome.name, 0.0
            self._failed(x, watched, met, error, counts, at)
        else:
            error, seconds = None, None
            if outcome.name == _REJECTED:
                self._rejected(x, met, counts, at)
        met.figures.observe(
            at,
            seconds,
            error=error,
            first_token=first_token,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cost=known,
            rejected=outcome.name == _REJECTED,
        )

    def _failed(self, x: Exchange, watched: _Watched, met: _Met, error: str, counts: dict[str, int], at: float) -> None:
        met.samples.append(x.id)
        if met.target == watched.canary:
            bucket = int(at) // BUCKET
            met.told_in, met.told = bucket, (met.told + 1 if bucket == met.told_in else 1)
            if met.told <= _TOLD:
                counts[counted(met.target, SAMPLE + x.id)] = 1
        key = counted(met.target, ERROR + error)
        counts[key] = counts.get(key, 0) + 1
        counts[met.raw_errors] = counts.get(met.raw_errors, 0) + 1
        if self._first(x, met, at):
            counts[met.errors] = counts.get(met.errors, 0) + 1

    def _rejected(self, x: Exchange, met: _Met, counts: dict[str, int], at: float) -> None:
        every, one = counted(met.target, RAW_REJECTED), counted(met.target, REJECTED)
        counts[every] = counts.get(every, 0) + 1
        tenant, name = (x.agent.tenant, x.agent.name) if x.agent is not None else ("", "")
        what = x.session if x.session is not None else f"\0{name}\0{hash(x.call.body) if x.call is not None else 0}"
        if self._seen_rejected.first(met.place, f"{tenant}\0{what}", int(at)):
            counts[one] = counts.get(one, 0) + 1

    def _first(self, x: Exchange, met: _Met, at: float) -> bool:
        """Whether a failure is no repetition of another one in the same minute.

        Without a session only what its client says is a repetition is one: the same words alone may be anybody's.
        """
        agent, now = x.agent, int(at)
        tenant, name = (agent.tenant, agent.name) if agent is not None else ("", "")
        if x.session is not None:
            return self._seen.first(met.place, f"{tenant}\0{x.session}", now)
        said = hash(x.call.body) if x.call is not None else 0
        new = self._seen.first(met.place, f"{tenant}\0\0{name}\0{said}", now)
        return new or not _repeated(x)

    def _out_of_service(self, target: str) -> Pool | None:
        """The target's nodes where none of them is used."""
        pool = self._fleet.pools.get(target) if self._fleet is not None else None
        return None if pool is None or any(node.state is State.USED for node in pool.nodes) else pool

    def _not_taken(self, met: _Met, at: float) -> None:
        """A call was meant for this arm, and the arm was full or out of service."""
        met.overflowed += 1
        met.figures.overflowed(at)
        met.last = at

    def _watched(self, x: Exchange, route: Route, at: float) -> _Watched:
        """The route as this call knows it. Arms that are gone, and had no call for long, are forgotten."""
        known = self._routes.get(route.name)
        if known is not None and known.route is route:
            return known
        configured = x.assembly.table
        for name, each in list(self._routes.items()):
            now = configured.named(name)
            names = {arm.target.name for arm in now.arms} if now is not None else set[str]()
            gone = [name for name, met in each.arms.items() if name not in names and at - met.last > FORGOTTEN]
            for target in gone:
                del each.arms[target]
                each.route = None  # looked at anew by the next call
            if now is None and not each.arms:
                del self._routes[name]
        arms = known.arms if known is not None else {}
        for arm in route.arms:
            if arm.target.name not in arms:
                arms[arm.target.name] = _Met(route.name, arm.target.name, self.since, at)
        settings = next((each for each in x.assembly.settings.routes if each.name == route.name), None)
        watched = self._routes[route.name] = _Watched(
            route,
            arms,
            known.retries if known is not None else 0,
            settings.rollout if settings is not None else None,
        )
        return watched


def _is_error(outcome: Outcome, kind: str, met: _Met, at: float) -> bool:
    """Whether a call that did not go well is an error of its arm: a used-up quota is one only after a while."""
    if outcome.name != "quota":
        if outcome.name not in UNANSWERED:
            met.quota_since = 0.0
        return outcome.error(kind)
    if not met.quota_since:
        met.quota_since = at
    return at - met.quota_since > QUOTA_EXCUSED


def _is_down(pool: Pool, now: float) -> bool:
    """Whether all nodes were ejected for calls that they failed, and their first time is over without a good one.

    What a probe says of a node, and a failure that passes within that time, is nothing that an agent would have met.
    """
    first = pool.health.ejected_for
    return all(
        node.state is not State.USED and not node.by_probe and (node.ejections > 1 or now - node.since > first)
        for node in pool.nodes
    )


def _at(x: Exchange, ended: float) -> float:
    """A moment of the call in seconds since the epoch, by the clock that it arrived at."""
    return x.arrived_ns / 1e9 + (ended - x.began)


def _repeated(x: Exchange) -> bool:
    """Whether a client says that it tries again: the SDKs of OpenAI and Anthropic count how often they have."""
    return any(name == b"x-stainless-retry-count" and value.strip(b"0 ") for name, value in x.headers)


def _unpriced(x: Exchange, arm: Arm) -> bool:
    model = arm.model or (x.call.target if x.call is not None else "")
    return x.assembly.prices.of(arm.target.name, model) is None
