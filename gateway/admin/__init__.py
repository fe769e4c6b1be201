"""The operators' door, on a listener of its own: one table of what people may ask, and the way in.

operation    a row of the table, and what all rows share
description  the table as OpenAPI
health       liveness, readiness, metrics, configuration
policy       the policy that decides
trial        the policy on trial
routes       where calls go
steering     other weights for arms, and the steps of rollouts
budgets      how budgets stand, and another limit for one of them
spend        the cost ledger
approvals    calls that people decide on
grants       calls that they have allowed beforehand
news         what happens to approvals, as it happens
agents       how agents stand, and the switch that stops one
tools        definitions of tools, and which of them agents may use
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path

from gateway.admin import agents, approvals, budgets, grants, health, policy, routes, spend, steering, tools, trial
from gateway.admin.description import openapi
from gateway.admin.news import News
from gateway.admin.operation import Desk, Operation, Problem, Visit
from gateway.app import App
from gateway.console import pages
from gateway.explanations import Explainer

_LARGEST_EXPLAINED: Final = 200_000
"""Characters of policy: explaining a decision on more holds up calls for too long. The command line has the time."""


async def description(visit: Visit) -> Response:
    return Response(_DESCRIPTION, media_type="application/json")


OPERATIONS: Final[tuple[Operation, ...]] = (
    *health.OPERATIONS,
    Operation("GET", "/openapi.json", "This description.", None, description, open=True),
    *policy.OPERATIONS,
    *trial.OPERATIONS,
    *routes.OPERATIONS,
    *steering.OPERATIONS,
    *budgets.OPERATIONS,
    *spend.OPERATIONS,
    *approvals.OPERATIONS,
    *grants.OPERATIONS,
    *agents.OPERATIONS,
    *tools.OPERATIONS,
)

_DESCRIPTION: Final = orjson.dumps(openapi(OPERATIONS))


def admin_app(app: App) -> Starlette:
    """The ASGI application of the admin listener."""
    desk = Desk(app, Explainer(_LARGEST_EXPLAINED), News(app.holds.store, app.ending))
    paths: dict[str, dict[str, Operation]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = each
    return Starlette(
        routes=[
            *pages.routes(desk),
            *(Path(_pattern(path), _endpoint(desk, found), methods=[*found]) for path, found in paths.items()),
        ],
        exception_handlers={HTTPException: _problem, 500: _problem},
    )


def _pattern(path: str) -> str:
    """A path for Starlette: the names of nodes and of tools can have slashes."""
    return path.replace("{node}", "{node:path}").replace("{tool}", "{tool:path}")


def _endpoint(desk: Desk, operations: Mapping[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        person = None
        if not operation.open:
            person = desk.app.pipeline.assembly.people.recognise(request.headers.get("authorization"))
            if person is None:
                raise HTTPException(
                    401,
                    "Show the token of one of `admin.people` as `Authorization: Bearer TOKEN`.",
                    {"www-authenticate": "Bearer"},
                )
            if operation.role is not None and operation.role not in person.roles:
                raise HTTPException(403, f"This needs the role `{operation.role}`, which {person.name} does not have.")
            operation.check(request)
        return await operation.handle(Visit(desk, request, person))

    return endpoint


async def _problem(request: Request, error: Exception) -> Response:
    status, detail, headers = 500, "The gateway failed on this request; its log says how.", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(problem.model_dump_json(), status, headers, "application/problem+json")
