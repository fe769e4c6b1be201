"""Which node of an arm takes a call, and which nodes get none for a while: asked once per attempt, without I/O.

A node that fails is ejected, and returns by itself; STEPS says how. No ejection leaves a route without a target of
which at least half of the nodes are in use: so the last place that a route has is never ejected, and a fault of our own
cannot take more than half of it. Targets that have others beside them may go as a whole.

Times are seconds of a monotonic clock, given by whoever asks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from config.settings import HealthSettings, TargetSettings
from routing.errors import GONE, NoRoute
from routing.outcomes import Outcome
from routing.table import Arm, Route

_DYING: Final = 10.0
"""Seconds within which dead streams count together."""
_OF_A_GATEWAY: Final = frozenset({502, 503, 504})
"""Statuses by which something says of the node behind it, or a node of itself, that it is not there."""


class State(enum.Enum):
    """Whether a node takes calls."""

    USED = "used"
    EJECTED = "ejected"
    TRYING = "trying"
    """One call is there, and says by how it ends whether more may come."""


class Event(enum.Enum):
    """What can happen to a node's state."""

    TRIPPED = "tripped"
    """Failures in a row, dead streams or a probe speak against it, and its routes can do without it."""
    TRIED = "tried"
    """A call was sent to find out: its time is over, or nothing else is left to try."""
    WORKED = "worked"
    """A call that was sent to find out was answered."""
    FAILED = "failed"
    """A call that was sent to find out failed by the node's fault."""
    SAID_NOTHING = "said_nothing"
    """A call that was sent to find out has ended for another reason: its agent has left, for example."""
    RECOVERED = "recovered"
    """It was ejected because a probe found it unwell, and a probe has found it well."""


STEPS: Final[Mapping[tuple[State, Event], State]] = {
    (State.USED, Event.TRIPPED): State.EJECTED,
    (State.EJECTED, Event.TRIED): State.TRYING,
    (State.EJECTED, Event.RECOVERED): State.USED,
    (State.EJECTED, Event.WORKED): State.USED,
    (State.TRYING, Event.WORKED): State.USED,
    (State.TRYING, Event.RECOVERED): State.USED,
    (State.TRYING, Event.FAILED): State.EJECTED,
    (State.TRYING, Event.SAID_NOTHING): State.EJECTED,
    (State.TRYING, Event.TRIPPED): State.EJECTED,
}
"""(state, event) -> the next state; what is not here changes nothing."""


@dataclass(slots=True, eq=False)
class Node:
    """One place of a target: how it stands, and how much goes on there."""

    target: str
    url: str
    state: State = State.USED
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    deaths: list[float] = field(default_factory=list)
    """When the last streams died."""
    ejections: int = 0
    """How many led to each other: the last one was so much longer than the first."""
    due: float = 0.0
    """When an ejected node is tried."""
    since: float = 0.0
    """When it changed its state."""
    unwell: bool = False
    """Whether the last probe has found it so."""
    by_probe: bool = False
    """Whether it was a probe that ejected it."""
    why: str = ""
    """What it was ejected for, in words; empty while it is used."""
    out_since: float = 0.0
    """When it was used last before it was ejected."""
    rests_until: float = 0.0
    """Until when it has asked to be left alone."""

    def takes(self, now: float) -> bool:
        """Whether calls go to it as a matter of course."""
        return self.state is State.USED and self.rests_until <= now


class Pool:
    """The nodes of one target."""

    __slots__ = ("_turn", "health", "in_flight", "most", "name", "nodes", "overflowed", "settings")

    def __init__(self, name: str) -> None:
        self.name = name
        self.settings: TargetSettings | None = None
        self.nodes: tuple[Node, ...] = ()
        self.health = HealthSettings()
        self.most: int | None = None
        self.in_flight = 0
        """Calls under way, at nodes that are configured no more, too."""
        self.overflowed = 0
        """Calls that found it full, since the start."""
        self._turn = 0

    def under(self, settings: TargetSettings) -> None:
        """From now on it is configured like this."""
        known = {node.url: node for node in self.nodes}
        self.nodes = tuple(known.get(url) or Node(settings.name, url) for url in settings.nodes)
        self.health, self.most, self.settings = settings.health, settings.max_concurrent, settings

    @property
    def full(self) -> bool:
        return self.most is not None and self.in_flight >= self.most

    def next(self, nodes: Sequence[Node], now: float, tried: Collection[Node] = ()) -> Node | None:
        """Of these, one that is due to be tried, else that with the fewest calls under way: in turn where equal.

        A call that has failed elsewhere tries nothing out as long as there is something else.
        """
        if len(nodes) == 1 and nodes[0].state is State.USED and nodes[0].rests_until <= now and nodes[0] not in tried:
            return nodes[0]
        best: Node | None = None
        due: Node | None = None
        self._turn = turn = (self._turn + 1) % len(nodes)
        for index in range(len(nodes)):
            node = nodes[turn + index - len(nodes)]
            if node.rests_until > now or node in tried:
                continue
            if node.state is State.USED:
                if best is None or node.in_flight < best.in_flight:
                    best = node
            elif node.state is State.EJECTED and node.due <= now:
                due = due or node
        return (best or due) if tried else (due or best)


@dataclass(slots=True, eq=False)
class Pick:
    """A node that one attempt goes to. Whoever has it tells the fleet how it `ended`, once.

    `index` is the arm's place in the order that was asked for. `overflow` says that an arm before it was full. A
    `trial` is to find out whether the node is well again.
    """

    arm: Arm
    node: Node
    index: int
    overflow: bool
    trial: bool
    pool: Pool = field(repr=False)
    over: bool = False


class Fleet:
    """The nodes of all targets of one process. They outlive a reload as long as target and URL stay."""

    def __init__(self, changed: Callable[[Node], None] | None = None) -> None:
        """`changed` is told of a node when it is used no more, and when it is used again."""
        self.pools: dict[str, Pool] = {}
        self._routes: tuple[Route, ...] = ()
        self._changed = changed

    def under(self, targets: Iterable[TargetSettings], routes: Iterable[Route]) -> None:
        """From now on these are the targets. `routes` are asked for their weights whenever a node may be ejected."""
        before, self.pools = self.pools, {}
        for settings in targets:
            pool = before.get(settings.name) or Pool(settings.name)
            pool.under(settings)
            self.pools[settings.name] = pool
        self._routes = tuple(routes)

    def pick(self, arms: Sequence[Arm], now: float, tried: Collection[Node] = ()) -> Pick | None:
        """A node for a call, of the first of `arms` that has one and is not full; none of those that it has `tried`.

        Where every node of all these arms is ejected or rests, a first attempt is sent to one of them all the same: the
        target's own refusal says more than one of ours. None when an arm is full and no other has a node in use; for a
        further attempt also when just nothing is in use.
        """
        overflow = False
        for index, arm in enumerate(arms):
            pool, nodes = self._places(arm)
            if pool.most is not None and pool.full:
                pool.overflowed += 1
                overflow = True
                continue
            if (node := pool.next(nodes, now, tried)) is not None:
                return self._taken(arm, node, index, overflow, pool, now)
        if tried or overflow or not arms:
            return None
        found = [(index, pool, _any(nodes)) for index, (pool, nodes) in enumerate(map(self._places, arms))]
        index, pool, node = next((each for each in found if each[2].state is State.USED), found[0])
        return self._taken(arms[index], node, index, False, pool, now)

    def pinned(self, arm: Arm, url: str | None, now: float) -> Pick | None:
        """The node with this URL, or any of the arm's, for a call that no other can take; None while it takes none.

        Raises NoRoute when there is no such node any more.
        """
        pool, nodes = self._places(arm)
        if url is not None and all(node.url != url for node in nodes):
            raise NoRoute(GONE)
        if pool.full:
            pool.overflowed += 1
            return None
        others = [node for node in nodes if url is not None and node.url != url]
        node = pool.next(nodes, now, others)
        return None if node is None else self._taken(arm, node, 0, False, pool, now)

    def answered(self, pick: Pick, now: float) -> None:
        """The first of an answer has come: whether the node is well need not wait for its end."""
        if pick.trial:
            pick.trial = False
            self._step(pick.node, Event.WORKED, now)

    def ended(self, pick: Pick, outcome: Outcome, now: float, status: int | None = None) -> None:
        """How an attempt ended; `status` is the answer's. A second time it does nothing."""
        if pick.over:
            return
        pick.over = True
        node, pool = pick.node, pick.pool
        node.in_flight -= 1
        pool.in_flight -= 1
        fails = bool(outcome.ejects) or (outcome.name == "upstream_5xx" and status in _OF_A_GATEWAY)
        if fails:
            node.failures += 1
            if outcome.ejects == "dead_stream":
                node.deaths = [*node.deaths, now][-pool.health.dead_streams :]
        elif outcome.counted:
            node.failures = 0
        if pick.trial:
            event = Event.FAILED if fails else Event.WORKED if outcome.counted else Event.SAID_NOTHING
            self._step(node, event, now)
        elif fails and node.state is State.USED and (why := _tripped(node, pool.health, outcome, now)):
            self._eject(node, now, why)

    def asks_for_rest(self, pick: Pick, seconds: float, now: float) -> None:
        """A target that answered Retry-After is left alone for so long, but not longer than it could be ejected for."""
        longest = pick.pool.health.ejected_at_most
        pick.node.rests_until = max(pick.node.rests_until, now + min(max(seconds, 0.0), longest))

    def probed(self, target: str, url: str, well: bool, now: float) -> None:
        """What a probe has found. Nothing happens to a node that is configured no more."""
        pool = self.pools.get(target)
        node = next((each for each in pool.nodes if each.url == url), None) if pool is not None else None
        if node is None or pool is None:
            return
        node.unwell = not well
        if not well and node.state is not State.EJECTED:
            self._eject(node, now, "a probe has found it unwell", by_probe=True)
        elif not well:
            node.due = max(node.due, now + pool.health.ejected_for)
        elif node.by_probe:
            self._step(node, Event.RECOVERED, now)

    def _places(self, arm: Arm) -> tuple[Pool, Sequence[Node]]:
        """Where an arm's calls can go: for one from before a reload, to the nodes that its target had then."""
        settings = arm.target.settings
        pool = self.pools.get(settings.name)
        if pool is not None and pool.settings is settings:
            return pool, pool.nodes
        known: Mapping[str, Node] = {}
        if pool is None:
            pool = Pool(settings.name)
            pool.under(settings)
        else:
            known = {node.url: node for node in pool.nodes}
        return pool, [known.get(url) or Node(settings.name, url) for url in settings.nodes]

    def _taken(self, arm: Arm, node: Node, index: int, overflow: bool, pool: Pool, now: float) -> Pick:
        node.in_flight += 1
        pool.in_flight += 1
        trial = node.state is not State.USED
        if trial:
            self._step(node, Event.TRIED, now)
        return Pick(arm, node, index, overflow, trial, pool)

    def _eject(self, node: Node, now: float, why: str, *, by_probe: bool = False) -> None:
        if node.state is State.TRYING or self._can_do_without(node):
            node.by_probe, node.why = by_probe, why
            self._step(node, Event.TRIPPED, now)

    def _can_do_without(self, node: Node) -> bool:
        """Whether each of the node's routes would still have a target of which at least half of the nodes are used."""
        alone = [[node.target]]
        routes = [names for names in (route.weights.takers for route in self._routes) if node.target in names] or alone
        return all(any(self._half_used(name, node) for name in names) for names in routes)

    def _half_used(self, target: str, without: Node) -> bool:
        nodes = self.pools[target].nodes if target in self.pools else ()
        used = sum(node.state is State.USED and node is not without for node in nodes)
        return used > 0 and 2 * used >= len(nodes)

    def _step(self, node: Node, event: Event, now: float) -> None:
        before = node.state
        after = STEPS.get((before, event), before)
        if after is before:
            return
        pool = self.pools.get(node.target)
        health = pool.health if pool is not None else HealthSettings()
        if after is State.EJECTED:
            if before is State.USED:
                node.out_since = now
            if before is State.USED or (event is not Event.SAID_NOTHING and now >= node.due):
                if before is State.USED and now - node.since >= health.ejected_at_most:
                    node.ejections = 0
                node.due = now + min(health.ejected_for * 2.0 ** min(node.ejections, 60), health.ejected_at_most)
                node.ejections += 1
        elif after is State.USED:
            node.by_probe, node.why = False, ""
            node.failures = 0
            node.deaths = []
        node.state, node.since = after, now
        if self._changed is not None and (before is State.USED or after is State.USED):
            self._changed(node)


def _tripped(node: Node, health: HealthSettings, outcome: Outcome, now: float) -> str:
    """What it is to be ejected for after such a failure; empty where it is not."""
    deaths = node.deaths
    if len(deaths) >= health.dead_streams and now - deaths[-health.dead_streams] <= _DYING:
        return f"{health.dead_streams} streams were broken off within {_DYING:g} s"
    if node.failures >= health.failures:
        return f"{node.failures} calls in a row failed, the last one as `{outcome.name}`"
    return ""


def _any(nodes: Sequence[Node]) -> Node:
    """One that only rests, else an ejected one, whenever it is due; the one with the fewest calls under way."""
    return min(nodes, key=lambda node: (node.state is not State.USED, node.in_flight, node.due))
