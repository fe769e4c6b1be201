"""Where calls go: routes, their arms and weights."""

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.admin.operation import Operation, View, Visit, shown
from routing.table import Route


class ArmView(View):
    target: str
    weight: float
    model: str | None = Field(description="The name this target knows the model by; null for the caller's.")


class RouteView(View):
    name: str
    models: list[str]
    arms: list[ArmView]


class RouteList(View):
    items: list[RouteView]
    next: str | None = None


async def routes(visit: Visit) -> Response:
    return shown(RouteList(items=[_route(route) for route in visit.app.pipeline.assembly.table.routes]))


async def route(visit: Visit) -> Response:
    name = visit.request.path_params["route"]
    for route in visit.app.pipeline.assembly.table.routes:
        if route.name == name:
            return shown(_route(route))
    raise HTTPException(404, "There is no such route; GET /routes lists them.")


def _route(route: Route) -> RouteView:
    arms = [ArmView(target=arm.target.name, weight=arm.weight, model=arm.model) for arm in route.arms]
    return RouteView(name=route.name, models=list(route.models), arms=arms)


OPERATIONS = (
    Operation("GET", "/routes", "All routes with their arms and weights.", RouteList, routes),
    Operation("GET", "/routes/{route}", "One route.", RouteView, route),
)
