"""Which route a call takes and which of its arms: compiled at every change, asked once per call, without I/O."""

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from config.settings import RouteSettings
from routing.errors import GONE, NoRoute, WeightsRefused
from routing.target import KINDS, Target

_MOST_MATCHED = 1024
"""Models whose route is remembered: agents choose names, but few that a route knows."""

_WILDCARD = re.compile(r"[*?\[]")

_OPERATIONS: Final[Mapping[str, frozenset[str]]] = {
    protocol: frozenset(each for other in KINDS.values() for each in other.operations.get(protocol, ()))
    for kind in KINDS.values()
    for protocol in kind.operations
}
"""What anybody serves, by protocol."""

POINTS: Final = 2**64
"""A call's point on a route is a whole number from 0 to below this."""

_WORD: Final = POINTS - 1
_UNIT: Final = 2.0**-53
_PERSON: Final = b"weighbridge.arm"
_HUNDRED: Final = 100.0
_ROUNDING: Final = 1e-6
_TOLD: Final = 256
"""Characters at either end of a piece of an opening that tell it from others."""


def sticky_key(tenant: str, agent: str, session: str | None, opening: Iterable[str] = ()) -> bytes | None:
    """What brings the calls of one session to the same arm; None where nothing does, and chance may decide.

    A session comes first. Without one a conversation is known by its `opening`: what every later turn repeats, such as
    the system prompt, the first message and the first answer. A call that no other will follow up needs none. Calls
    whose answers are of use only together, as embeddings are, have their operation for an opening: then the agent's
    name decides. What is bound to the target that made it is pinned instead: see `routing.pins`.
    """
    if session is not None:
        return f"{tenant}\0{session}".encode("utf-8", "surrogatepass")
    pieces = [
        f"{len(each)} {each}" if len(each) <= 2 * _TOLD else f"{len(each)} {each[:_TOLD]}{each[-_TOLD:]}"
        for each in opening
    ]
    # No session holds a zero byte, so none can be taken for an agent's.
    return "\0".join((tenant, "", agent, *pieces)).encode("utf-8", "surrogatepass") if pieces else None


@dataclass(frozen=True, slots=True)
class Arm:
    """One weighted side of a route. `model` is the name its target knows, None where that is the one asked for.

    `fallback` says whether it takes calls that were meant for another arm; None is for as long as it has weight.
    """

    target: Target
    weight: float
    model: str | None
    fallback: bool | None = None

    @property
    def takes_part(self) -> bool:
        """Whether calls can come here that are not pinned to it."""
        return self.weight > 0 or self.fallback is True


@dataclass(frozen=True, slots=True)
class _Field:
    """The arms that run for one operation: (seed, -1/weight, arm) of those with weight, and those that stand by."""

    runners: tuple[tuple[int, float, Arm], ...]
    spare: tuple[Arm, ...]
    able: tuple[Arm, ...]
    choosy: bool
    """Whether one of the runners takes no calls that were meant for others."""
    settled: tuple[Arm, ...] | None
    """The order where it is the same for every point."""


class Weights:
    """How the calls of one route are shared among its arms. It never changes: another takes its place, whole.

    Every point of the route has a race among the arms: each takes -ln(u) / weight, where u in (0, 1) is its own for
    this point, and they are asked in the order of arrival (weighted rendezvous hashing: Schindelhauer and Schomaker
    2005; as sampling without replacement: Efraimidis and Spirakis 2006). From that follows, for any number of arms:

    - An arm is first at a share of the points that is its weight's share of all weights; whatever becomes of the first,
      its points go to the others by their weights, and each point always to the same one.
    - A point goes over from arm A to arm B only where B's weight has grown in proportion to A's. So where one weight is
      raised and no other is, that arm keeps all points it has; where the others keep their proportions to each other,
      no point moves between them; and where there are two arms, points only ever move to the one that grows.

    No rule without a memory can promise more: with three arms, one whose weight grows has to lose points to one that
    grows faster (Bavarian et al. 2016, on correlated sampling).

    `barred` are targets that take no call whatever, those pinned to them included: a canary that was taken back. Those
    that stand `aside` take none that was meant for others, whatever their arms say: a canary of which nobody here knows
    how it stands. `standing_by` are targets that take such calls though they have no weight: a canary has all of it.
    """

    __slots__ = ("_fields", "_route", "arms", "aside", "barred", "standing_by")

    def __init__(
        self,
        route: str,
        arms: Sequence[Arm],
        barred: Iterable[str] = (),
        aside: Iterable[str] = (),
        standing_by: Iterable[str] = (),
    ) -> None:
        self.arms = tuple(arms)
        self.barred = frozenset(barred)
        self.aside = frozenset(aside)
        self.standing_by = frozenset(standing_by)
        self._route = route
        self._fields: dict[tuple[str, str], _Field] = {}

    @property
    def takers(self) -> Sequence[str]:
        """The targets that can get calls which are not pinned, whatever these ask for."""
        return [arm.target.name for arm in self.arms if arm.takes_part and arm.target.name not in self.barred]

    @property
    def alone(self) -> Sequence[str]:
        """The targets with weight whose calls no other arm takes where they cannot, whatever these ask for."""
        there = [arm for arm in self.arms if arm.takes_part and arm.target.name not in self.barred]
        takers = [arm for arm in there if arm.fallback is not False]
        return [arm.target.name for arm in there if arm.weight > 0 and not any(each is not arm for each in takers)]

    def able(self, protocol: str, operation: str) -> Sequence[Arm]:
        """The arms that can get such a call that is not pinned, in the operator's order."""
        return self._field(protocol, operation).able

    def settled(self, protocol: str, operation: str) -> Sequence[Arm] | None:
        """As `order`, where that is the same for every point; None where it is not, and where there is none."""
        field = self._fields.get((protocol, operation)) or self._field(protocol, operation)
        return field.settled

    def order(self, protocol: str, operation: str, point: int) -> Sequence[Arm]:
        """The arm that the point falls on, then those that take the call when it cannot, in the order to try them.

        Raises NoRoute when there is none.
        """
        field = self._fields.get((protocol, operation)) or self._field(protocol, operation)
        if field.settled is not None:
            return field.settled
        if not field.able:
            raise NoRoute(f"Route {self._route!r} has no target that serves {operation} of the {protocol} API.")
        arrivals = []
        for seed, pace, arm in field.runners:
            # The finalizer of splitmix64 (Steele et al. 2014), shortened: point and seed are hashes already.
            mixed = (point ^ seed) * 0x9E3779B97F4A7C15 & _WORD
            mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & _WORD
            arrivals.append((math.log((mixed >> 11 | 1) * _UNIT) * pace, seed, arm))
        arrivals.sort()
        if field.choosy:
            first, *others = [arm for _, _, arm in arrivals]
            return (first, *(arm for arm in others if arm.fallback is not False), *field.spare)
        return (*[arm for _, _, arm in arrivals], *field.spare)

    def pinned(self, target: str, protocol: str, operation: str) -> Arm:
        """The arm for a call that only this target can take, at weight 0, too. Raises NoRoute when it is gone."""
        for arm in self.arms:
            if arm.target.name == target and target not in self.barred and arm.target.serves(protocol, operation):
                return arm
        raise NoRoute(GONE)

    def _field(self, protocol: str, operation: str) -> _Field:
        field = self._fields.get((protocol, operation))
        if field is None:
            able = [
                arm
                for arm in self.arms
                if arm.takes_part and arm.target.name not in self.barred and arm.target.serves(protocol, operation)
            ]
            runners = [arm for arm in able if arm.weight > 0]
            spare = [arm for arm in able if arm.weight <= 0]
            field = self._fields[protocol, operation] = _Field(
                tuple((_seed(arm), -1 / max(arm.weight, 1e-300), arm) for arm in runners),
                tuple(spare),
                tuple(able),
                any(arm.fallback is False for arm in runners),
                (*runners, *spare) if able and len(runners) <= 1 else None,
            )
        return field


class Route:
    """A named set of arms. Arms that cannot serve an operation take no part in its choice, whatever their weight.

    `weights` is what is in force now. Whoever hears of a change calls `weigh`, and the next call goes by that; a call
    that wants the same from here to there takes `weights` once and asks it.
    """

    def __init__(self, name: str, models: Sequence[str], arms: Sequence[Arm], salt: bytes = b"") -> None:
        """`salt`, of at most 64 bytes, makes points that nobody can work out who does not know it; replicas of one
        gateway need the same, and it has to stay the same for sessions to stay where they are."""
        self.name = name
        self.models = tuple(models)
        self.weights = Weights(name, arms)
        self._arms = tuple(arms)
        self.configured: Mapping[str, float] = {arm.target.name: arm.weight for arm in arms}
        """Weights by target, as the configuration has them."""
        self._hash = blake2b(name.encode() + b"\0", digest_size=8, key=salt, person=_PERSON)

    @property
    def arms(self) -> Sequence[Arm]:
        """All of them, in the operator's order, as they weigh now."""
        return self.weights.arms

    def point(self, key: bytes) -> int:
        """Where a sticky key falls: the same in every process, and below POINTS."""
        hashed = self._hash.copy()
        hashed.update(key)
        return int.from_bytes(hashed.digest(), "little")

    def order(self, protocol: str, operation: str, point: int) -> Sequence[Arm]:
        """As of `Weights.order`, by the weights of now."""
        return self.weights.order(protocol, operation, point)

    def able(self, protocol: str, operation: str) -> Sequence[Arm]:
        """As of `Weights.able`, by the weights of now."""
        return self.weights.able(protocol, operation)

    def serves(self, protocol: str, operation: str) -> bool:
        """Whether any arm that can be chosen serves this operation."""
        return bool(self.weights.able(protocol, operation))

    def speaks(self, protocol: str) -> bool:
        """Whether any arm that can be chosen serves something of `protocol`."""
        return any(self.serves(protocol, each) for each in _OPERATIONS.get(protocol, ()))

    def checked(self, shares: Mapping[str, object]) -> Mapping[str, float]:
        """All weights by target as somebody asks for them: 0 where an arm is not named. Raises WeightsRefused."""
        known = [arm.target.name for arm in self.arms]
        for name in shares:
            if name not in known:
                raise WeightsRefused(f"{name[:100]!r} is no arm of this route; its arms are {', '.join(known)}.")
        asked: dict[str, float] = dict.fromkeys(known, 0.0)
        for name, share in shares.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= _HUNDRED:
                raise WeightsRefused(f"The weight of {name} is not a number from 0 to 100.")
            asked[name] = float(share)
        total = math.fsum(asked.values())
        if abs(total - _HUNDRED) > _ROUNDING:
            raise WeightsRefused(f"The weights add up to {total:g}, not to 100.")
        return asked

    def weigh(
        self,
        shares: Mapping[str, float],
        barred: Iterable[str] = (),
        aside: Iterable[str] = (),
        standing_by: Iterable[str] = (),
    ) -> None:
        """Puts other weights in force, by target: arms that are not named have 0, names that are no arms are nothing.

        `barred`, `aside` and `standing_by` are as of `Weights`, and every time anew.
        """
        aside, standing_by = frozenset(aside), frozenset(standing_by)

        def fallback(arm: Arm) -> bool | None:
            if arm.target.name in aside:
                return False
            return True if arm.fallback is None and arm.target.name in standing_by else arm.fallback

        arms = [replace(arm, weight=shares.get(arm.target.name, 0.0), fallback=fallback(arm)) for arm in self._arms]
        self.weights = Weights(self.name, arms, barred, aside, standing_by)


def _seed(arm: Arm) -> int:
    """By the target's name: an arm that is added, or moved in the file, changes nothing between the others."""
    return int.from_bytes(blake2b(arm.target.name.encode(), digest_size=8, person=_PERSON).digest(), "little")


class Table:
    """All routes in the operator's order; the first that knows a model wins."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._named = {route.name: route for route in reversed(self.routes)}
        self._exact: dict[str, int] = {}
        self._patterns: list[tuple[int, re.Pattern[str]]] = []
        self._matched: dict[str, Route] = {}
        """What was asked for before; the table never changes."""
        for index, route in enumerate(self.routes):
            for model in route.models:
                if _WILDCARD.search(model):
                    self._patterns.append((index, re.compile(fnmatch.translate(model))))
                else:
                    self._exact.setdefault(model, index)

    def match(self, model: str) -> Route:
        """The route for a requested model. Raises NoRoute."""
        route = self._matched.get(model)
        if route is None:
            route = self._first(model)
            if len(self._matched) >= _MOST_MATCHED:
                self._matched.clear()
            self._matched[model] = route
        return route

    def _first(self, model: str) -> Route:
        best = self._exact.get(model, len(self.routes))
        for index, pattern in self._patterns:
            if index >= best:
                break
            if pattern.match(model):
                best = index
        if best == len(self.routes):
            raise NoRoute(f"No route serves the model {model!r}.")
        return self.routes[best]

    def named(self, name: str) -> Route | None:
        """The route that the operator calls so."""
        return self._named.get(name)

    def names(self, protocol: str) -> list[str]:
        """The models that `protocol` can ask for by name, in route order: those with a wildcard have none."""
        return [model for model in self._exact if self.match(model).speaks(protocol)]


def table(routes: Sequence[RouteSettings], targets: Mapping[str, Target], salt: bytes = b"") -> Table:
    """The compiled table; every arm's target must be among `targets` (the configuration has checked it).

    `salt` is as of `Route`.
    """
    return Table(
        [
            Route(
                route.name,
                route.models,
                [Arm(targets[arm.target], arm.weight, arm.model, arm.fallback) for arm in route.arms],
                salt,
            )
            for route in routes
        ]
    )
