"""Where calls go, and how they fare there: routes, their arms, weights and figures, and how arms compare."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from config.settings import RouteSettings, seconds
from gateway.admin.operation import Operation, Parameter, Visit, shown_exactly
from gateway.admin.route_views import (
    ArmView,
    ComparisonView,
    MirrorView,
    RolloutView,
    RouteSummaries,
    RouteSummary,
    RouteView,
    health,
    timeline,
    utc,
)
from gateway.app import App
from routing.comparison import Criteria, compare
from routing.errors import NoRoute, StoreUnavailable
from routing.figures import ArmFigures, Figures
from routing.rollout import standing
from routing.table import Arm, Route

_THIS: Final = "Figures are those of the gateway that answers, since its start: of several, each has its own."
_WINDOW: Final = Parameter("window", "How far back figures go, as 1h or 7d; to the gateway's start when absent.")
_NUMBER: Final = re.compile(r"[0-9]{1,8}(\.[0-9]{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Told:
    """A route, and what its arms amount to from `since` to `until`, in seconds since the epoch."""

    route: Route
    since: float
    until: float
    arms: Mapping[str, ArmFigures]
    figures: Mapping[str, Figures]

    @property
    def seconds(self) -> float:
        return self.until - self.since


async def routes(visit: Visit) -> Response:
    app, window = visit.app, _window(visit.query)
    told = [_told(app, route, window) for route in app.pipeline.assembly.table.routes]
    return shown_exactly(RouteSummaries(items=[RouteSummary(**_summary(app, each)) for each in told]))


async def route(visit: Visit) -> Response:
    app, name = visit.app, visit.request.path_params["route"]
    window, criteria = _window(visit.query), _criteria(visit.query)
    found = app.pipeline.assembly.table.named(name)
    if found is None:
        raise HTTPException(404, "There is no such route; GET /routes lists them.")
    return shown_exactly(_view(app, _told(app, found, window), criteria))


def _view(app: App, told: _Told, criteria: Criteria) -> RouteView:
    name = told.route.name
    settings = next(each for each in app.settings.routes if each.name == name)
    base = baseline(told.route.arms, settings.rollout.canary if settings.rollout is not None else None)
    others = [arm.target.name for arm in told.route.arms if arm.target.name != base]
    mirrored = app.mirrors.compared(name, settings.mirror) if settings.mirror is not None else None
    return RouteView(
        **_summary(app, told),
        baseline=base,
        comparisons=[_compared(told, each, base, others, criteria) for each in others] if base is not None else [],
        timeline=timeline(told.arms, told.since, told.until),
        rollout=_rollout(app, settings),
        mirror=MirrorView.of(mirrored) if mirrored is not None else None,
    )


def baseline(arms: Sequence[Arm], canary: str | None) -> str | None:
    """The target that the others are compared with: of those that are no canary the one with the most weight.

    None where there is nothing to compare.
    """
    able = [arm for arm in arms if arm.target.name != canary]
    return max(able, key=lambda arm: arm.weight).target.name if len(arms) > 1 and able else None


def _compared(told: _Told, arm: str, base: str, others: Sequence[str], criteria: Criteria) -> ComparisonView:
    rest = [told.figures[each] for each in others if each != arm]
    found = compare(told.figures[arm], told.figures[base], rest, seconds=told.seconds, criteria=criteria)
    return ComparisonView.of(arm, base, found)


def _rollout(app: App, settings: RouteSettings) -> RolloutView | None:
    try:
        state, plan = app.steering.rollout(settings.name)
    except (NoRoute, StoreUnavailable):  # it has none, or nobody here can read how it stands
        return None
    return RolloutView.of(standing(state, plan, app.steering.now()), plan)


def _told(app: App, found: Route, window: float | None) -> _Told:
    now = time.time()
    known = app.traffic.figures(found.name)
    arms = {arm.target.name: known.get(arm.target.name) or ArmFigures(app.traffic.since) for arm in found.arms}
    # Before its first call a route may not have been there.
    oldest = min((slot.start for each in arms.values() for slot in each.slots()[:1]), default=0)
    since = min(max(app.traffic.since, oldest), now)
    if window is None or now - window <= since:
        return _Told(found, since, now, arms, {name: each.total for name, each in arms.items()})
    return _Told(found, now - window, now, arms, {name: each.window(now - window) for name, each in arms.items()})


def _summary(app: App, told: _Told) -> dict[str, Any]:
    pools, now = app.pipeline.attempts.fleet.pools, time.monotonic()
    return {
        "name": told.route.name,
        "models": list(told.route.models),
        "since": utc(told.since),
        "until": utc(told.until),
        "arms": [
            ArmView.of(
                arm.target.name,
                arm.weight,
                arm.model,
                health(pools[arm.target.name], now),
                told.figures[arm.target.name],
            )
            for arm in told.route.arms
        ],
    }


def _window(query: Mapping[str, str]) -> float | None:
    written = query.get("window")
    if written is None:
        return None
    try:
        found = seconds(written)
    except PydanticCustomError:
        found = 0.0
    if found < 1:
        raise HTTPException(400, "`window` is no duration; write for example 15m, 1h or 7d.")
    return found


def _criteria(query: Mapping[str, str]) -> Criteria:
    usual = Criteria()
    return Criteria(
        added_p95=_number(query, "added_p95_ms", usual.added_p95 * 1000, 10**7) / 1000,
        saving=_number(query, "saving", usual.saving, 1),
        availability=_number(query, "availability", usual.availability, 1),
    )


def _number(query: Mapping[str, str], name: str, usual: float, most: int) -> float:
    written = query.get(name)
    if written is None:
        return usual
    if not _NUMBER.fullmatch(written) or float(written) > most:
        raise HTTPException(400, f"`{name}` is no number from 0 to {most:,}.")
    return float(written)


OPERATIONS = (
    Operation(
        "GET",
        "/routes",
        f"All routes with their arms, weights and figures. {_THIS}",
        RouteSummaries,
        routes,
        query=(_WINDOW,),
    ),
    Operation(
        "GET",
        "/routes/{route}",
        f"One route: its arms compared, its calls over time, its rollout and its mirror. {_THIS}",
        RouteView,
        route,
        query=(
            _WINDOW,
            Parameter("added_p95_ms", "What an arm may add to the baseline's 95th percentile of latency, else 150."),
            Parameter("saving", "The share of the baseline's cost per call that an arm has to save, else 0.2."),
            Parameter("availability", "The share of its calls that an arm has to answer, else 0.995."),
        ),
    ),
)
