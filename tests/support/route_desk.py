"""An admin API that knows routes alone, behind a real listener, for tests of the commands that ask it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.remote import as_json
from tests.support.door import door

TOKEN = "danas-own-token"
MOVES = {"start": "RUNNING", "pause": "PAUSED", "resume": "RUNNING", "promote": "RUNNING", "abort": "ROLLED_BACK"}


@dataclass
class RouteDesk:
    """`routes` are what it tells, one a page; `asked` is what was asked, with `queries`; `answer` is told in place of
    all else, and `raw` is, as it stands."""

    routes: list[dict[str, Any]]
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    answer: tuple[int, Any] | None = None
    queries: list[dict[str, str]] = field(default_factory=list)
    raw: bytes = b""

    async def handle(self, request: Request) -> Response:
        body = await request.body()
        self.queries.append(dict(request.query_params))
        self.asked.append((request.method, request.url.path, orjson.loads(body) if body else None))
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _problem(401, "Show the token of one of `admin.people`.")
        if self.raw:
            return Response(self.raw)
        if self.answer is not None:
            return Response(as_json(self.answer[1]), self.answer[0], media_type="application/json")
        name = request.path_params.get("route")
        if name is None:
            place = int(request.query_params.get("after", "0"))
            more = str(place + 1) if place + 1 < len(self.routes) else None
            return _told({"items": self.routes[place : place + 1], "next": more})
        route = next((route for route in self.routes if route["name"] == name), None)
        if route is None:
            return _problem(404, "There is no such route. There are: chat, drafts.")
        return self._about(route, request, orjson.loads(body) if body else None)

    def _about(self, route: dict[str, Any], request: Request, body: Any) -> Response:
        move = request.path_params.get("move")
        if request.url.path.endswith("/weights"):
            if sum(body["weights"].values()) != 100:
                return _problem(400, "The weights must sum to 100.")
            for arm in route["arms"]:
                arm["weight"] = body["weights"].get(arm["target"], 0)
            return _told(route)
        if "/rollout" in request.url.path:
            if route["rollout"] is None:
                return _problem(404, "This route has no rollout.")
            if move is not None:
                route["rollout"]["state"] = MOVES[move]
            return _told(route["rollout"])
        return _told(route)


def _told(facts: Any) -> Response:
    return Response(as_json(facts), media_type="application/json")


def _problem(status: int, detail: str) -> Response:
    return Response(as_json({"status": status, "detail": detail}), status, media_type="application/problem+json")


@asynccontextmanager
async def open_desk(desk: RouteDesk) -> AsyncIterator[str]:
    """Yields its address."""
    paths = {
        "/routes": "GET",
        "/routes/{route}": "GET",
        "/routes/{route}/weights": "PUT",
        "/routes/{route}/rollout": "GET",
        "/routes/{route}/rollout/{move}": "POST",
    }
    async with door(
        Starlette(routes=[Route(path, desk.handle, methods=[verb]) for path, verb in paths.items()])
    ) as port:
        yield f"http://127.0.0.1:{port}"
