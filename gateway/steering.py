"""Keeps every route on its course: what people and rollouts have made of its weights, at all gateways of one state.

    hear    twice a second: the courses, put in force where they have changed
    flush   each second: what was counted at the routes goes into the buckets
    judge   when ten seconds are over: what was counted is taken in by the rollouts under way

No call waits for any of this: it asks its route, which has its weights. Whichever gateway takes a bucket in first has
moved the rollout, and that one tells of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from config.settings import RolloutSettings, WebhookSettings
from gateway.ledger import Ledger
from gateway.webhooks import Webhooks
from routing import course, rollout
from routing.course import BUCKET, FLUSH, HEAR, KEPT, Bucket, Course, RouteStore, behind, lapsed
from routing.errors import NoRoute, StoreUnavailable
from routing.rollout import ITSELF, Event, MoveRefused, Rollout, State, Step
from routing.table import Route, Table

if TYPE_CHECKING:
    from gateway.assembly import Assembly

log = logging.getLogger("weighbridge.routes")

CANNOT_WAIT: Final = frozenset[Step]({"pause", "abort"})
"""Steps that are made even while nothing can be recorded: they only take from a canary."""

_ATTEMPTS: Final = 5
"""How often a change is begun anew where others are first."""
_TOGETHER: Final = 60 * BUCKET
"""Seconds of buckets that are taken in at once, so that calls are not held up after a long rest."""
_TRAFFIC: Final = 86_400
"""Seconds before a start whose calls say what is to be expected of a step."""
_START: Final = 1.0
"""Seconds in which a gateway that starts waits for the courses."""
_ENDING: Final = 5.0
_NANO: Final = 1_000_000_000
_SHORT: Final = 1e-6
_BY_HAND: Final = "To set weights by hand, take `rollout` out of the route's configuration."
_WORTH_A_LOOK: Final = frozenset({"pause", "rollback", "abort"})


def nobody(route: str) -> Sequence[str]:
    """Samples of failed calls, where none are kept."""
    return ()


def in_force(
    configured: Mapping[str, float],
    known: Course | None,
    plan: RolloutSettings | None,
    state: Rollout | None,
    *,
    leased: bool,
) -> tuple[Mapping[str, float], frozenset[str]]:
    """The weights of a route's arms by target, and the targets that take no call whatever.

    `plan` is the configured one, None where there is none; `state` is None where nobody can say how the rollout stands.
    Without a lease, or without a state, the canary has no new sessions: its share goes to the other arms.
    """
    weights = course.weights(known, configured)
    if plan is None:
        return weights, frozenset()
    if state is not None:
        weights = rollout.weights(state, plan, weights)
        if state.state is State.ROLLED_BACK and state.canary == plan.canary:
            return weights, frozenset({plan.canary})
    if leased and state is not None:
        return weights, frozenset()
    together = math.fsum(weights.values())
    others = {arm: weight for arm, weight in weights.items() if arm != plan.canary}
    if not any(others.values()):
        others = {arm: configured.get(arm, 0.0) for arm in others}
    if not any(others.values()):
        others = dict.fromkeys(others, 1.0)
    rest = math.fsum(others.values())
    return {plan.canary: 0.0, **{arm: weight * (together / rest) for arm, weight in others.items()}}, frozenset()


def standing_by(
    configured: Mapping[str, float], known: Course | None, plan: RolloutSettings | None, state: Rollout | None
) -> frozenset[str]:
    """The targets that still take what a canary cannot, though its rollout may have left them no weight.

    Who gives an arm 0 by hand, or in the file, means that it takes nothing.
    """
    if plan is None or state is None or rollout.share(state, plan) is None or state.state is State.ROLLED_BACK:
        return frozenset()
    wanted = course.weights(known, configured)
    return frozenset(arm for arm, weight in wanted.items() if weight > 0 and arm != plan.canary)


def under_way(state: Rollout, plan: RolloutSettings, now: int) -> bool:
    """Whether something can still become of a rollout by what is counted, at a time in Unix seconds."""
    if state.state is State.PROMOTED:
        return now < state.began + plan.watch_for + 2 * BUCKET
    return state.state in (State.RUNNING, State.PAUSED)


@dataclass(slots=True)
class _Doubtful:
    """A change of which it is not known whether it was made, and what is to be told once it is."""

    course: Course
    events: list[Event]


class Steering:
    """The courses of all routes of this process.

    `under` before the first call and after each reload; `begin` and `end` around the whole. `moves` counts what this
    gateway was the first to do, by route and move.
    """

    def __init__(
        self,
        store: RouteStore,
        ledger: Ledger,
        webhooks: Webhooks,
        *,
        samples: Callable[[str], Sequence[str]] = nobody,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`samples` gives ids of calls that a route's canary has failed lately, the latest last. `now_ns` is the time
        that the store goes by, in Unix nanoseconds."""
        self.moves: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._store = store
        self._ledger = ledger
        self._webhooks = webhooks
        self._samples = samples
        self._now_ns = now_ns
        self._monotonic_ns = monotonic_ns
        self._table = Table(())
        self._earlier: weakref.WeakSet[Route] = weakref.WeakSet()
        """Routes of tables before this one, for as long as calls go by them: these may have begun long ago."""
        self._plans: dict[str, RolloutSettings] = {}
        self._webhook: dict[str, WebhookSettings] = {}
        self._courses: Mapping[str, Course] = {}
        self._states: dict[str, tuple[Course, Rollout | None]] = {}
        """What the rollouts in the courses are."""
        self._heard = False
        self._untold_since: int | None = None
        """When the state first took nothing of what was counted, by the monotonic clock; None where it does."""
        self._told_of_silence = False
        self._judged_at: dict[str, int] = {}
        """The bucket of time in which all that was closed of a route was taken in."""
        self._doubtful: dict[str, _Doubtful] = {}
        self._troubles: set[str] = set()
        self._new: set[str] = set()
        """Routes whose plan was loaded, and no rollout was of it since: such a plan may begin one anew."""
        self._reweighed: set[str] = set()
        """Routes whose configured weights are new to this process: whether those that people have set are over has to
        be found out, once."""
        self._told: dict[str, str] = {}
        """What was said last of a route that is in trouble."""
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # The courses, as they are known here

    def under(self, assembly: Assembly) -> None:
        """From now on these are the routes; they are on their courses when this returns."""
        settings = assembly.settings
        weighed = {each.name: each.configured for each in self._table.routes}
        self._reweighed |= {each.name for each in assembly.table.routes if weighed.get(each.name) != each.configured}
        if assembly.table is not self._table:
            self._earlier.update(self._table.routes)
        self._table = assembly.table
        before = self._plans
        self._plans = {each.name: each.rollout for each in settings.routes if each.rollout is not None}
        self._new |= {name for name, plan in self._plans.items() if before.get(name) != plan}
        hooks = {name: plan.webhook or settings.approvals.webhook for name, plan in self._plans.items()}
        self._webhook = {name: hook for name, hook in hooks.items() if hook is not None}
        self._judged_at.clear()
        for route in self._known:
            self._put_in_force(route)

    def rollout(self, name: str) -> tuple[Rollout, RolloutSettings]:
        """How a route's rollout stands, and its plan. Raises NoRoute where it has none, StoreUnavailable.

        One of another canary than the plan's is a draft to the plan, with a history.
        """
        plan = self._plan(name)
        return _seen(self._readable(name, plan), plan), plan

    def trouble(self, name: str) -> str | None:
        """Why a route does not go by what people or its rollout have set, in a sentence; None where it does."""
        found, plan = self._unfit(name), self._plans.get(name)
        if found is not None or plan is None or self._has_lease(name, plan):
            return found
        return f"The state does not answer, or does not take what was counted: {plan.canary} gets no new sessions here."

    def _unfit(self, name: str) -> str | None:
        """Why what is kept of a route cannot be gone by here."""
        known, plan = self._courses.get(name), self._plans.get(name)
        if known is not None and known.trouble:
            canary = f", and {plan.canary} gets no new sessions" if plan is not None else ""
            return f"What is kept of it cannot be used ({known.trouble}): it goes by its configured weights{canary}."
        if plan is None or not self._heard:
            return None
        state = self._state(name, plan)
        if state is None:
            return (
                "What is kept of its rollout is of another version of the gateway, which this one cannot read: "
                f"{plan.canary} gets no new sessions."
            )
        if not self._gives_way(name, state, plan):
            return None
        aside = f": {plan.canary} gets no new sessions here" if _apart(state, plan) else ""
        return (
            f"Its rollout is of another plan than this gateway's, for {state.canary}, and is judged elsewhere{aside}."
        )

    @property
    def rollouts(self) -> Iterator[tuple[str, Rollout, RolloutSettings]]:
        """Those of all routes, as far as anybody can say how they stand."""
        for name, plan in self._plans.items():
            state = self._state(name, plan)
            if state is not None:
                yield name, _seen(state, plan), plan

    @property
    def routes(self) -> Sequence[Route]:
        """All of them, with the weights that are in force."""
        return self._table.routes

    @property
    def _known(self) -> Sequence[Route]:
        """All that any call goes by."""
        return (*self._table.routes, *self._earlier)

    def now(self) -> int:
        """Unix seconds, as the store counts them."""
        return self._now_ns() // _NANO

    @property
    def leased(self) -> bool:
        """Whether canaries may be given new sessions: the courses are known well enough, and what the canaries meet
        with is told, so that somebody can judge them."""
        now, untold = self._monotonic_ns(), self._untold_since
        return self._heard and not lapsed(self._store.heard_ns, now) and (untold is None or not lapsed(untold, now))

    def _route(self, name: str) -> Route:
        route = self._table.named(name)
        if route is None:
            raise NoRoute("There is no such route; GET /routes lists them.")
        return route

    def _plan(self, name: str) -> RolloutSettings:
        """Raises NoRoute where the route has no rollout."""
        self._route(name)
        plan = self._plans.get(name)
        if plan is None:
            raise NoRoute(f"The route {name} has no rollout; `rollout` in its configuration gives it one.")
        return plan

    def _gives_way(self, name: str, state: Rollout, plan: RolloutSettings) -> bool:
        """Whether another gateway, with another plan, has the say over a rollout.

        Each plan may begin a rollout anew once after it was loaded, or two gateways whose plans differ would do so in
        turn, for ever. So that one has the say which was loaded last.
        """
        if rollout.is_of(state, plan) or not (under_way(state, plan, self.now()) or _edited(state, plan)):
            self._new.discard(name)
            return False
        return name not in self._new

    def _state(self, name: str, plan: RolloutSettings) -> Rollout | None:
        """The state that a course tells of; None where it cannot be used, or nothing was heard yet."""
        known = self._courses.get(name)
        return self._kept(name, plan) if known is None or not known.trouble else None

    def _kept(self, name: str, plan: RolloutSettings) -> Rollout | None:
        """The state that a course tells of, even where its weights are none."""
        if not self._heard:
            return None
        known = self._courses.get(name)
        if known is None or known.rollout is None:
            return rollout.draft(plan)
        found = self._states.get(name)
        if found is None or found[0] is not known:
            state = None
            try:
                state = _usable(known.rollout, plan, self.now())
            except (ValueError, ArithmeticError, TypeError):
                pass  # `trouble` tells it
            found = self._states[name] = (known, state)
        return found[1]

    def _readable(self, name: str, plan: RolloutSettings) -> Rollout:
        state = self._state(name, plan)
        if not self._heard:
            raise StoreUnavailable(
                f"How the rollout of {name} stands is not known here yet: the state does not answer."
            )
        if state is None:
            raise StoreUnavailable(f"The route {name}: {self._unfit(name)}")
        return state

    def _has_lease(self, name: str, plan: RolloutSettings) -> bool:
        """Whether a route's canary may have new sessions: one that was promoted, and is watched no more, is none."""
        if self.leased:
            return True
        state = self._state(name, plan)
        return state is not None and state.state is State.PROMOTED and not under_way(state, plan, self.now())

    def _put_in_force(self, route: Route) -> None:
        plan = self._plans.get(route.name)
        state = self._state(route.name, plan) if plan is not None else None
        if plan is not None and state is not None and self._gives_way(route.name, state, plan) and _apart(state, plan):
            state = None
        leased = plan is None or self._has_lease(route.name, plan)
        shares, barred = in_force(route.configured, self._courses.get(route.name), plan, state, leased=leased)
        stands_by = standing_by(route.configured, self._courses.get(route.name), plan, state)
        aside = frozenset[str]()
        if plan is not None and (state is None or not leased):
            aside = frozenset({plan.canary}) - barred
        now = route.weights
        other = any(arm.weight != shares.get(arm.target.name, 0.0) for arm in now.arms)
        if other or now.barred != barred or now.aside != aside or now.standing_by != stands_by:
            route.weigh(shares, barred, aside, stands_by)

    def _learn(self, heard: Mapping[str, Course]) -> None:
        """Puts in force what is new in it: none goes back that was heard or made here meanwhile."""
        before = self._courses
        newer = behind(before, heard)
        self._courses = {**heard, **newer} if newer else heard
        for route in self._known:
            name = route.name
            if name in self._plans or self._courses.get(name) is not before.get(name):
                self._put_in_force(route)
        self._tell_of_trouble()

    def _tell_of_trouble(self) -> None:
        """To the log, where it is another one than before."""
        for route in self._table.routes:
            name = route.name
            trouble, told = self._unfit(name), self._told.get(name)
            if trouble is not None and trouble != told:
                log.warning("the route %s: %s", name, trouble)
                self._told[name] = trouble
            elif trouble is None and told is not None:
                log.info("the route %s goes by what is kept of it again", name)
                del self._told[name]

    # What goes on beside the calls

    async def begin(self) -> None:
        """Hears of the courses before the first call, as far as that is possible in a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START):
                while not await self._succeeds("hear", self.hear):
                    await asyncio.sleep(HEAR / 10)
        for name, do, pause in (("hear", self.hear, HEAR), ("flush", self.flush, FLUSH), ("judge", self.judge, HEAR)):
            self._tasks.append(asyncio.create_task(self._keep(name, do, pause), name=f"courses of routes: {name}"))

    async def end(self) -> None:
        """Ends what it began. Calls go on by the weights that are in force."""
        self._stop.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_ENDING)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            self._tasks.clear()

    async def _keep(self, name: str, do: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self._stop.is_set():
            await self._succeeds(name, do)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    async def _succeeds(self, name: str, do: Callable[[], Awaitable[None]]) -> bool:
        """Does it once. Whatever goes wrong is not the last time; what nobody has foreseen is logged, once in a row."""
        try:
            await do()
        except StoreUnavailable:
            return False  # the store's own failure tells it
        except Exception:
            if name not in self._troubles:
                log.exception("to %s the courses of routes has failed in the gateway itself", name)
            self._troubles.add(name)
            return False
        self._troubles.discard(name)
        return True

    async def hear(self) -> None:
        """Learns the courses. Raises StoreUnavailable, after which canaries have lost their lease where it is due."""
        heard = self._courses
        try:
            heard = await self._store.courses()
            self._heard = True
        finally:
            self._learn(heard)
            self._tell_of_silence()
        await self._end_what_is_overruled()

    async def _end_what_is_overruled(self) -> None:
        """Weights that people have set are over once others are configured: for good, or they would be in force again
        when the configuration is put back.

        Each gateway looks once after it has loaded weights that were others before. So gateways whose files differ, as
        while an edit is on its way, do not end in turn what is set at each of them. Raises StoreUnavailable.
        """
        for name in list(self._reweighed):
            route, known = self._table.named(name), self._courses.get(name)
            if route is not None and known is not None and _is_overruled(known, route):
                cleared = replace(known, weights=None, instead_of=None, by=ITSELF, comment="")
                after = replace(cleared, epoch=known.epoch + 1, at=self._now_ns())
                if not await self._store.steer(name, after, known.epoch):
                    continue  # whoever was first is heard of the next time
                self._learn({**self._courses, name: after})
                facts = {"event": "ended", "who": ITSELF, "route": name, "old": dict(known.weights or {})}
                new = dict(route.configured)
                self._ledger.note("weights", {**facts, "new": new, "comment": "", "result": "ok"})
                text = "the weights of %s that %s set are over, since others are configured: %s"
                log.warning(text, name, known.by, _said(route.configured))
            self._reweighed.discard(name)

    def _tell_of_silence(self) -> None:
        silent = not self.leased
        if silent and not self._told_of_silence and self._plans:
            log.warning(
                "the state has not answered or taken anything for a while: canaries of routes get no new sessions"
            )
        elif self._told_of_silence and not silent:
            log.info("the state answers again: canaries of routes get new sessions")
        self._told_of_silence = silent and bool(self._plans)

    async def flush(self) -> None:
        """Brings what was counted to the others. Raises StoreUnavailable."""
        try:
            await self._store.flush()
        except StoreUnavailable:
            if self._untold_since is None:
                self._untold_since = self._monotonic_ns()
            raise
        self._untold_since = None

    async def judge(self) -> None:
        """Takes what was counted into each rollout under way, once a bucket was closed; again where that has failed.

        Trouble with one is none of the others'.
        """
        at = self.now() // BUCKET
        for name, plan in list(self._plans.items()):
            if self._judged_at.get(name) == at:
                continue
            if await self._succeeds(f"judge {name}", functools.partial(self._judge, name, plan)):
                self._judged_at[name] = at

    async def _judge(self, name: str, plan: RolloutSettings) -> None:
        """Raises StoreUnavailable; what may have been changed then is tried again the next time, so that it is told."""
        doubtful = self._doubtful.pop(name, None)
        for _ in range(_ATTEMPTS):
            if doubtful is None:
                known, state, now = self._courses.get(name), self._state(name, plan), self.now()
                if known is None or state is None or not (under_way(state, plan, now) or _edited(state, plan)):
                    return
                if self._gives_way(name, state, plan):
                    return
                set_back = rollout.set_back(state, now)
                since = max(set_back.cursor + BUCKET, set_back.began - BUCKET, now - KEPT)
                fresh, events = await self._taken(name, set_back, plan, since, now)
                if fresh is state:
                    return
                doubtful = _Doubtful(self._after(known, fresh), events)
            try:
                if await self._make(name, doubtful.course, doubtful.events):
                    return
            except StoreUnavailable:
                self._doubtful[name] = doubtful
                raise
            doubtful = None

    async def _taken(
        self, name: str, state: Rollout, plan: RolloutSettings, since: int, now: int
    ) -> tuple[Rollout, list[Event]]:
        """A rollout after all buckets that were closed since then. Raises StoreUnavailable."""
        events: list[Event] = []
        at = since - since % BUCKET
        while True:
            until = min(at + _TOGETHER, now)
            buckets = await self._store.buckets(name, at, until)
            state, more = rollout.advance(state, plan, buckets, until, self._samples(name))
            events += more
            if until >= now:
                return state, events
            at = until
            await asyncio.sleep(0)

    def _after(self, known: Course | None, state: Rollout, by: str = ITSELF, comment: str = "") -> Course:
        """The course with a rollout's next state."""
        before = known or Course(0)
        kept = rollout.to_json(state)
        return replace(before, epoch=before.epoch + 1, rollout=kept, by=by, at=self._now_ns(), comment=comment)

    async def _make(self, name: str, after: Course, events: Sequence[Event] = ()) -> bool:
        """Sets a course and tells of it; False where somebody else was first, and is heard now.

        Raises StoreUnavailable.
        """
        if not await self._store.steer(name, after, after.epoch - 1):
            with contextlib.suppress(StoreUnavailable):
                await self.hear()
            return False
        self._learn({**self._courses, name: after})
        self._tell(name, events, after.comment)
        return True

    def _tell(self, name: str, events: Sequence[Event], comment: str) -> None:
        """To the ledger, the log, the metrics and the webhook."""
        for event in events:
            self.moves[name, event.what] += 1
            self._record(name, event, comment, "ok")
            level = logging.WARNING if event.what in _WORTH_A_LOOK else logging.INFO
            log.log(level, "rollout of %s: %s", name, event.text)
            hook = self._webhook.get(name)
            if hook is not None:
                self._webhooks.send(hook, f"rollout.{event.what}", {"route": name, **rollout.event_json(event)})

    def _record(self, name: str, event: Event, comment: str, result: str) -> None:
        """In the ledger, whose records have an `at` of their own: when they were written."""
        facts = rollout.event_json(event)
        who, what, at = facts.pop("by"), facts.pop("what"), facts.pop("at")
        record = {"event": what, "who": who, "route": name, "moved_at": at, **facts}
        self._ledger.note("rollout", {**record, "comment": comment, "result": result})

    # What people want

    async def move(self, name: str, what: Step, who: str, comment: str = "") -> Rollout:
        """A person's step in a rollout: it is in force here when this returns, and everywhere within a second.

        Raises NoRoute, MoveRefused, and StoreUnavailable, after which it may have been made or not.
        """
        for _ in range(_ATTEMPTS):
            plan = self._plan(name)
            state = self._readable(name, plan)
            if what != "start" and state.canary != plan.canary and self._gives_way(name, state, plan):
                raise MoveRefused(
                    f"The rollout under way is of {state.canary}, by another gateway's plan: ask there. Here one of "
                    f"{plan.canary} can be started in its place."
                )
            known, now, events = self._courses.get(name), self.now(), list[Event]()
            state = rollout.set_back(state, now)
            if what == "start":
                state, events = await self._taken(name, state, plan, max(state.cursor + BUCKET, now - _TRAFFIC), now)
            elif _edited(state, plan):
                state, events = rollout.advance(state, plan, (), now)
            lacking = rollout.missing(state, plan, now) if what == "promote" else ()
            state = rollout.step(state, what, who, now, comment, lacking)
            event = state.history[-1]
            try:
                if await self._make(name, self._after(known, state, who, comment), [*events, event]):
                    return state
            except StoreUnavailable:
                self._record(name, event, comment, "unknown")
                raise
        raise MoveRefused("Others are changing this route at the same time. Look, and ask again.")

    async def weigh(self, name: str, asked: Mapping[str, object], who: str, comment: str = "") -> None:
        """Other weights for a route, by a person: in force here when this returns, and everywhere within a second.

        They hold until others are written into the configuration. Raises NoRoute, WeightsRefused, MoveRefused where the
        route's rollout would overrule them, and StoreUnavailable, after which they may be in force or not.
        """
        for _ in range(_ATTEMPTS):
            route, plan = self._route(name), self._plans.get(name)
            wanted = route.checked(asked)
            state = None
            if plan is not None:
                state = self._kept(name, plan) or self._readable(name, plan)
                _check_not_overruled(state, plan, wanted)
            known = self._courses.get(name)
            old, _ = in_force(route.configured, known, plan, state, leased=True)
            before = known or Course(0)
            as_configured = wanted == route.configured
            after = replace(
                before,
                epoch=before.epoch + 1,
                trouble="",
                weights=None if as_configured else wanted,
                instead_of=None if as_configured else dict(route.configured),
                by=who,
                at=self._now_ns(),
                comment=comment,
            )
            facts = {"event": "set", "who": who, "route": name, "old": dict(old), "new": dict(wanted)}
            try:
                made = await self._make(name, after)
            except StoreUnavailable:
                self._ledger.note("weights", {**facts, "comment": comment, "result": "unknown"})
                raise
            if made:
                self._ledger.note("weights", {**facts, "comment": comment, "result": "ok"})
                log.warning("%s set the weights of %s: %s, were %s", who, name, _said(wanted), _said(old))
                return
        raise MoveRefused("Others are changing this route at the same time. Look, and ask again.")


def shares(route: Route) -> Iterator[tuple[str, float]]:
    """Targets of a route with their shares of new sessions, in per cent."""
    together = math.fsum(arm.weight for arm in route.arms)
    for arm in route.arms:
        yield arm.target.name, 100 * arm.weight / together if together else 0.0


def evidence(state: Rollout) -> float | None:
    """How near the evidence against a canary is to what takes it back: 1.0 is enough. None while it is not watched."""
    watch = state.watch
    return math.exp(watch.canary.evidence - watch.terms.enough) if watch is not None else None


def _usable(kept: Mapping[str, Any], plan: RolloutSettings, now: int) -> Rollout:
    """The state that is kept, if it is one which can be told of, and judged by.

    Anybody may have written it, and what has the right shape may still be none. Raises ValueError, ArithmeticError,
    TypeError.
    """
    state = rollout.from_json(kept)
    orjson.dumps(rollout.standing(state, plan, now))  # what cannot be told is not what a gateway has written
    evidence(state)
    arms = (plan.canary, f"not {plan.canary}")
    later = Bucket(max(state.cursor, state.began) + 60 * BUCKET, {course.counted(arm, course.CALLS): 1 for arm in arms})
    rollout.advance(state, plan, [later], later.at + BUCKET)
    return state


def _seen(state: Rollout, plan: RolloutSettings) -> Rollout:
    """A rollout as the plan has it: one of another canary says nothing of the plan's."""
    if state.canary == plan.canary:
        return state
    return replace(rollout.draft(plan), moved=state.moved, history=state.history)


def _apart(state: Rollout, plan: RolloutSettings) -> bool:
    """Whether a canary whose rollout is another plan's must not have new sessions by its own."""
    return state.canary != plan.canary or state.state in (State.RUNNING, State.PAUSED)


def _is_overruled(known: Course, route: Route) -> bool:
    """Whether people have set a route's weights in place of others than those that are configured."""
    return known.weights is not None and not known.trouble and known.instead_of != route.configured


def _edited(state: Rollout, plan: RolloutSettings) -> bool:
    """Whether the plan is another than the one that the state is of, in what the state has of it."""
    return state.canary != plan.canary or state.steps != len(plan.steps)


def _check_not_overruled(state: Rollout, plan: RolloutSettings, wanted: Mapping[str, float]) -> None:
    """Raises MoveRefused for weights that would not be in force, because a rollout has the say."""
    canary, mine = plan.canary, rollout.share(state, plan)
    if mine is None:
        return
    if state.state in (State.RUNNING, State.PAUSED):
        raise MoveRefused(
            f"The rollout of {canary} is {state.state}, and its step decides the weights. `promote` gives {canary} the "
            f"next step's, `abort` takes it back to 0. {_BY_HAND}"
        )
    if abs(wanted.get(canary, 0.0) - mine) <= _SHORT:
        return
    if state.state is State.ROLLED_BACK:
        raise MoveRefused(
            f"{canary} was taken back, so its weight is 0. `start` begins its rollout again at step 1. {_BY_HAND}"
        )
    raise MoveRefused(
        f"{canary} was promoted to {mine:g} per cent, its plan's `promoted_weight`. `abort` takes it back to 0. "
        f"{_BY_HAND}"
    )


def _said(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{arm} {weight:g}" for arm, weight in weights.items())
