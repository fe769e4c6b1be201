"""Where calls go, and how they fare there: routes, their arms, weights and figures, and how arms compare."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from config.settings import RolloutSettings, RouteSettings, seconds
from gateway.admin.operation import Operation, Parameter, Visit, shown_exactly
from gateway.admin.route_views import (
    ArmView,
    ComparisonView,
    MirrorView,
    NodeView,
    RolloutView,
    RouteSummaries,
    RouteSummary,
    RouteView,
    health,
    nodes_out,
    stranded,
    timeline,
    utc,
)
from gateway.app import App
from routing.comparison import Criteria, compare
from routing.errors import NoRoute, StoreUnavailable
from routing.figures import ArmFigures, Figures
from routing.rollout import Rollout, standing
from routing.table import Arm, Route

_THIS: Final = "Figures are those of the gateway that answers, since its start: of several, each has its own."
_WINDOW: Final = Parameter("window", "How far back figures go, as 1h or 7d; to the gateway's start when absent.")
_MOST_NAMED: Final = 20
_NUMBER: Final = re.compile(r"[0-9]{1,8}(\.[0-9]{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Standing:
    """A route at one moment, `now` in seconds since the epoch. `figures` are copies, `health` is as of `ArmView`.

    What they amount to is worked out in a thread: there may be half a year of them, and calls go on meanwhile.
    """

    route: Route
    arms: Sequence[Arm]
    health: Mapping[str, str]
    nodes_out: Mapping[str, Sequence[NodeView]]
    figures: Mapping[str, ArmFigures]
    since: float
    now: float


async def routes(visit: Visit) -> Response:
    app, window = visit.app, _window(visit.query)
    standings = [_standing(app, each) for each in app.pipeline.assembly.table.routes]
    return await asyncio.to_thread(_listed, standings, window)


async def route(visit: Visit) -> Response:
    app, name = visit.app, visit.request.path_params["route"]
    window, criteria = _window(visit.query), _criteria(visit.query)
    found = app.pipeline.assembly.table.named(name)
    if found is None:
        raise unknown_route(app)
    settings = next(each for each in app.settings.routes if each.name == name)
    canary = settings.rollout.canary if settings.rollout is not None else None
    compared = app.mirrors.compared(name, settings.mirror) if settings.mirror is not None else None
    mirror = MirrorView.of(compared) if compared is not None else None
    return await asyncio.to_thread(
        _shown,
        _standing(app, found),
        window,
        criteria,
        canary,
        _rollout(app, settings),
        app.steering.trouble(name),
        mirror,
    )


def unknown_route(app: App) -> HTTPException:
    """What is answered about a route that there is not, with the names of those that there are."""
    names = [each.name for each in app.settings.routes]
    more = [f"and {len(names) - _MOST_NAMED:,} more"] if len(names) > _MOST_NAMED else []
    known = f"There are: {', '.join([*names[:_MOST_NAMED], *more])}." if names else "None is configured."
    return HTTPException(404, f"There is no such route. {known}")


def _standing(app: App, found: Route) -> _Standing:
    arms, since = found.arms, app.traffic.since
    known, pools, now = app.traffic.figures(found.name), app.pipeline.attempts.fleet.pools, time.monotonic()
    names, at = [arm.target.name for arm in arms], time.time()
    return _Standing(
        found,
        arms,
        {name: health(pools[name], now) for name in names},
        {name: nodes_out(pools[name], now, at) for name in names},
        {name: known[name].copied() if name in known else ArmFigures(since) for name in names},
        since,
        at,
    )


def _rollout(app: App, settings: RouteSettings) -> RolloutView | None:
    try:
        state, plan = app.steering.rollout(settings.name)
    except (NoRoute, StoreUnavailable):  # it has none, or nobody here can read how it stands
        return None
    return rollout_view(app, state, plan)


def rollout_view(app: App, state: Rollout, plan: RolloutSettings) -> RolloutView:
    """How a rollout stands, as this gateway sees it."""
    pool = app.pipeline.attempts.fleet.pools.get(plan.canary)
    well = health(pool, time.monotonic()) if pool is not None else None
    return RolloutView.of(standing(state, plan, app.steering.now()), plan, well)


def _listed(standings: Sequence[_Standing], window: float | None) -> Response:
    items = [RouteSummary(**_summary(each, *_amounts(each, window))) for each in standings]
    return shown_exactly(RouteSummaries(items=items))


def _shown(
    now: _Standing,
    window: float | None,
    criteria: Criteria,
    canary: str | None,
    rollout: RolloutView | None,
    trouble: str | None,
    mirror: MirrorView | None,
) -> Response:
    since, amounts = _amounts(now, window)
    base = baseline(now.arms, canary)
    comparisons = []
    if base is not None:
        for name in amounts:
            if name == base:
                continue
            rest = [figures for other, figures in amounts.items() if other not in (name, base)]
            found = compare(amounts[name], amounts[base], rest, seconds=now.now - since, criteria=criteria)
            comparisons.append(ComparisonView.of(name, base, found))
    view = RouteView(
        **_summary(now, since, amounts),
        baseline=base,
        comparisons=comparisons,
        timeline=timeline(now.figures, since, now.now),
        rollout=rollout,
        trouble=trouble,
        mirror=mirror,
        warning=stranded(now.route.weights.alone) if len(now.arms) > 1 else None,
    )
    return shown_exactly(view)


def baseline(arms: Sequence[Arm], canary: str | None) -> str | None:
    """The target that the others are compared with: the first in the file that is no canary, whatever their weights.

    So it stays the same while calls move from one arm to the other. None where there is nothing to compare.
    """
    able = [arm.target.name for arm in arms if arm.target.name != canary]
    return able[0] if len(arms) > 1 and able else None


def _amounts(now: _Standing, window: float | None) -> tuple[float, dict[str, Figures]]:
    """Since when is told, and what the arms amount to from then on, by target."""
    # Before its first call a route may not have been there.
    oldest = min((began for each in now.figures.values() if (began := each.began) is not None), default=0)
    since = min(max(now.since, oldest), now.now)
    if window is None or now.now - window <= since:
        return since, {name: each.total for name, each in now.figures.items()}
    since = now.now - window
    return since, {name: each.window(since) for name, each in now.figures.items()}


def _summary(now: _Standing, since: float, amounts: Mapping[str, Figures]) -> dict[str, Any]:
    names, in_file = [(arm, arm.target.name) for arm in now.arms], now.route.configured
    return {
        "name": now.route.name,
        "models": list(now.route.models),
        "since": utc(since),
        "until": utc(now.now),
        "arms": [
            ArmView.of(name, arm.weight, arm.model, now.health[name], amounts[name], now.nodes_out[name], in_file[name])
            for arm, name in names
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
        wanted = "a share from 0 to 1: 20 per cent is 0.2" if most == 1 else f"a number from 0 to {most:,}"
        raise HTTPException(400, f"`{name}` is {wanted}.")
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
