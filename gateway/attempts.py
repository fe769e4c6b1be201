"""Which node takes a call, and which takes it next when that one fails: before the agent has a byte, and paid for."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from config.settings import RetrySettings
from gateway.exchange import Attempt, Exchange, Reached
from gateway.lending import Lender
from routing.errors import NoHealthyTarget
from routing.health import Fleet, Node, Pick, State
from routing.outcomes import OUTCOMES, Facts, classify
from routing.pins import Pin, Pins
from routing.retry import RetryBudget, again, remaining, retry_after
from routing.table import Arm, Table

if TYPE_CHECKING:
    from adapters.base import Headers
    from gateway.assembly import Assembly

log = logging.getLogger("weighbridge.routing")

_ANSWERED: Final = 200
_OK: Final = OUTCOMES["ok"]
_REFUSED: Final = OUTCOMES["refused"]
_NOBODY: Final = "No target of this route can take the call now."


class Attempts:
    """Hands out nodes to the calls of one process, and gives them back."""

    def __init__(self, fleet: Fleet, lender: Lender) -> None:
        self.fleet = fleet
        self._lender = lender
        self.pins = Pins()
        self._settings: dict[str, RetrySettings] = {}
        self._budgets: dict[str, RetryBudget] = {}
        self._table: Table | None = None

    def under(self, assembly: Assembly) -> None:
        """From now on these are the targets and routes."""
        self.fleet.under(assembly.settings.targets, assembly.table.routes)
        self._table = assembly.table
        before, now = self._budgets, time.monotonic()
        self._settings = {route.name: route.retry for route in assembly.settings.routes}
        self._budgets = {}
        for name, settings in self._settings.items():
            known = before.get(name)
            kept = known is not None and known.share == settings.share
            self._budgets[name] = known if known is not None and kept else RetryBudget(settings.share, now)

    def first(self, x: Exchange) -> Attempt:
        """The node that gets the call. Raises NoHealthyTarget, NoRoute."""
        assert x.route is not None, "a call is routed before it is sent"
        now = time.monotonic()
        budget = self._budgets.get(x.route.name)
        if budget is not None:
            budget.called(now)
        if x.pin is not None:
            pick = self.fleet.pinned(x.order[0], x.pin.url, now)
        else:
            pick = self.fleet.pick(x.order, now)
        if pick is None:
            raise NoHealthyTarget(_NOBODY)
        return _begun(x, pick, now)

    async def next(self, x: Exchange, failed: Attempt, *, begun: bool) -> Attempt | None:
        """Another attempt in place of one that has `ended`; None where none is due, possible or paid for.

        `begun` says whether the agent has got something of an answer.
        """
        assert x.route is not None, "a call is routed before it is sent"
        assert x.call is not None, "a call is read before it is sent"
        assert failed.outcome is not None, "an attempt ends before there is another"
        settings, budget = self._settings.get(x.route.name), self._budgets.get(x.route.name)
        if settings is None or budget is None:  # a reload has removed the route meanwhile
            return None
        retry = again(
            failed.outcome,
            made=sum(each.outcome is not _REFUSED for each in x.attempts),
            attempts=settings.attempts,
            begun=begun,
            acted=x.reached is not Reached.NO,
            repeatable=x.call.kind == "llm" and x.approval is None,  # people have approved one call, not two
            pinned=x.bound,
        )
        arms = self._permitted(x, remaining(x.order, failed.pick.index, retry))
        now = time.monotonic()
        if not arms or not budget.spend(now):
            return None
        other: Attempt | None = None
        try:
            pick = self.fleet.pick(arms, now, _tried(x))
            other = await self._paid(x, pick, arms) if pick is not None else None
        finally:
            if other is None:
                budget.returned()
        return other

    async def elsewhere(self, x: Exchange, unable: Attempt) -> Attempt | None:
        """An attempt on another arm, for a call that this one cannot be told in its words; None where there is none."""
        arms = self._permitted(x, remaining(x.order, unable.pick.index, "arm")) if not x.bound else ()
        now = time.monotonic()
        pick = self.fleet.pick(arms, now) if arms else None
        other = await self._paid(x, pick, arms) if pick is not None else None
        assert x.route is not None, "a call is routed before it is sent"
        budget = self._budgets.get(x.route.name)
        if other is None and budget is not None and any(each.outcome is not _REFUSED for each in x.attempts):
            budget.returned()  # by `next`, which had taken it for this one
        return other

    def ended(self, x: Exchange, attempt: Attempt, *, client_gone: bool = False, refused: bool = False) -> None:
        """What became of an attempt; a second time it does nothing."""
        if attempt.outcome is not None:
            return
        now = attempt.ended = time.monotonic()
        if (
            attempt.status == _ANSWERED
            and attempt.complete
            and not (attempt.error or attempt.hidden or client_gone or refused)
        ):
            attempt.outcome = _OK  # as nearly all are, and `classify` would say
        else:
            facts = Facts(
                attempt.arm.target.settings.kind,
                attempt.stage,
                attempt.status,
                attempt.error,
                attempt.hidden,
                attempt.complete,
                client_gone=client_gone,
                refused=refused,
            )
            attempt.outcome = classify(facts)
        attempt.usage, attempt.detail = x.usage, x.detail
        self.fleet.ended(attempt.pick, attempt.outcome, now, attempt.status)

    def keep(self, x: Exchange, attempt: Attempt, handles: Sequence[str]) -> None:
        """An agent was given something that only this node's target knows."""
        if handles and x.agent is not None:
            pin = Pin(attempt.arm.target.name, attempt.node)
            self.pins.keep(x.agent.tenant, x.agent.name, handles, pin, time.monotonic())

    def rest(self, attempt: Attempt, headers: Headers) -> None:
        """A target that has refused a call may say when to come again."""
        said = dict(headers)
        after_ms, after = said.get(b"retry-after-ms"), said.get(b"retry-after")
        if after_ms is None and after is None:
            return
        seconds = retry_after(
            after_ms.decode("latin-1") if after_ms is not None else None,
            after.decode("latin-1") if after is not None else None,
            time.time(),
        )
        if seconds is not None:
            self.fleet.asks_for_rest(attempt.pick, seconds, time.monotonic())

    async def _paid(self, x: Exchange, pick: Pick, arms: Sequence[Arm]) -> Attempt | None:
        """The attempt that this pick of some arms is for, once there is money for it; None where there is none.

        What was taken back while the money was lent gets no call: then another of the arms does, or nobody.
        """
        given: Pick | None = pick
        begun = False
        try:
            if not await self._lender.again(x):
                return None
            now = time.monotonic()
            if not self._permitted(x, (pick.arm,)):
                self.fleet.ended(pick, _REFUSED, now)
                arms = self._permitted(x, arms)
                given = self.fleet.pick(arms, now, _tried(x))
            if given is None:
                return None
            begun = True
        finally:
            if given is not None and not begun:
                self.fleet.ended(given, _REFUSED, time.monotonic())
        x.reached, x.target_status, x.whole, x.usage, x.detail = Reached.NO, None, False, None, ""
        x.sent_at = x.first_byte_at = None
        x.order = arms
        return _begun(x, given, now)

    def _permitted(self, x: Exchange, arms: Sequence[Arm]) -> Sequence[Arm]:
        """Those that nobody has taken back since the call was routed, be it over a reload."""
        assert x.route is not None, "a call is routed before it is sent"
        route = (self._table.named(x.route.name) if self._table is not None else None) or x.route
        weights = route.weights
        if weights is x.weights:
            return arms
        takers = weights.takers
        return [
            arm
            for arm in arms
            if arm.target.name in takers and (arm is x.meant or arm.target.name not in weights.aside)
        ]


def told_of_a_node(node: Node) -> None:
    """A line of the log for a node that is used no more, or again."""
    if node.state is State.USED:
        log.info("target %s: %s takes calls again, after %.0f s", node.target, node.url, node.since - node.out_since)
        return
    seconds = node.due - node.since
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    log.warning("target %s: %s is ejected for %.0f s, until %s: %s", node.target, node.url, seconds, until, node.why)


def _tried(x: Exchange) -> Sequence[Node]:
    return [each.pick.node for each in x.attempts]


def _begun(x: Exchange, pick: Pick, now: float) -> Attempt:
    attempt = Attempt(pick, now)
    x.attempts.append(attempt)
    x.arm = pick.arm
    return attempt
