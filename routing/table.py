"""Which route a call takes and which of its arms: compiled at every reload, asked once per call, without I/O."""

import bisect
import fnmatch
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from config.settings import RouteSettings
from routing.errors import NoRoute
from routing.target import Target

_MOST_MATCHED = 1024
"""Models whose route is remembered: agents choose names, but few that a route knows."""

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Arm:
    """One weighted side of a route. `model` is the name its target knows, None where that is the one asked for."""

    target: Target
    weight: float
    model: str | None


class Route:
    """A named set of arms. Arms that cannot serve an operation take no part in its choice, whatever their weight."""

    def __init__(self, name: str, models: Sequence[str], arms: Sequence[Arm]) -> None:
        self.name = name
        self.models = tuple(models)
        self.arms = tuple(arms)
        self._wheels: dict[tuple[str, str], tuple[list[Arm], list[float]]] = {}

    def able(self, protocol: str, operation: str) -> Sequence[Arm]:
        """The arms that can be chosen for an operation, in the operator's order."""
        wheel = self._wheels.get((protocol, operation))
        if wheel is None:
            wheel = self._wheels[protocol, operation] = self._wheel(protocol, operation)
        return wheel[0]

    def choose(self, protocol: str, operation: str, chance: float) -> Arm:
        """The arm that `chance`, uniform in [0, 1), falls on. Raises NoRoute when no arm serves the operation."""
        arms = self.able(protocol, operation)
        bounds = self._wheels[protocol, operation][1]
        if not arms:
            raise NoRoute(f"Route {self.name!r} has no target that serves {operation} of the {protocol} API.")
        if len(arms) == 1:
            return arms[0]
        return arms[bisect.bisect_right(bounds, chance * bounds[-1], hi=len(arms) - 1)]

    def serves(self, protocol: str, operation: str) -> bool:
        """Whether any arm that can be chosen serves this operation."""
        return bool(self._wheel(protocol, operation)[0])

    def speaks(self, protocol: str) -> bool:
        """Whether any arm that can be chosen serves something of `protocol`."""
        return any(arm.weight > 0 and protocol in arm.target.kind.operations for arm in self.arms)

    def _wheel(self, protocol: str, operation: str) -> tuple[list[Arm], list[float]]:
        arms = [arm for arm in self.arms if arm.weight > 0 and arm.target.serves(protocol, operation)]
        return arms, list(itertools.accumulate(arm.weight for arm in arms))


class Table:
    """All routes in the operator's order; the first that knows a model wins."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
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
        return next((route for route in self.routes if route.name == name), None)

    def names(self, protocol: str) -> list[str]:
        """The models that `protocol` can ask for by name, in route order: those with a wildcard have none."""
        return [model for model in self._exact if self.match(model).speaks(protocol)]


def table(routes: Sequence[RouteSettings], targets: Mapping[str, Target]) -> Table:
    """The compiled table; every arm's target must be among `targets` (the configuration has checked it)."""
    return Table(
        [
            Route(route.name, route.models, [Arm(targets[arm.target], arm.weight, arm.model) for arm in route.arms])
            for route in routes
        ]
    )
