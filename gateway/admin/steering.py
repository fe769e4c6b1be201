"""What people change about where calls go: the weights of a route's arms, and the steps of its rollout."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from config.settings import RolloutSettings
from gateway.admin import routes
from gateway.admin.operation import Operation, View, Visit, body, shown
from gateway.admin.route_views import RolloutView, RouteView
from gateway.steering import CANNOT_WAIT
from routing.errors import NoRoute, StoreUnavailable, WeightsRefused
from routing.rollout import MoveRefused, Rollout, Step

_LONGEST_COMMENT: Final = 500
_NOT_RECORDED: Final = "The ledger cannot be written, and a change that is not on record is not made."
_NOT_KNOWN: Final = "The state does not answer; whether anything has changed is not known. Look, and ask again."


class WeightsChange(View):
    """Other weights for a route's arms. They hold until others are written into the configuration."""

    weights: dict[str, float] = Field(description="By target; an arm that is not named gets 0. 100 together.")
    comment: str = Field(default="", description="Why, for the record.", max_length=_LONGEST_COMMENT)


class RolloutStep(View):
    """A person's step in a rollout."""

    comment: str = Field(default="", description="Why, for the record.", max_length=_LONGEST_COMMENT)


async def set_weights(visit: Visit) -> Response:
    """In the state first, then in force here and on record, then answered."""
    name = _named(visit)
    wanted = _object(await body(visit.request), WeightsChange)
    weights = wanted.get("weights")
    if not isinstance(weights, dict):
        raise HTTPException(400, '`weights` are missing. Write for example {"weights": {"openai": 70, "own": 30}}.')
    comment = _comment(wanted)
    async with visit.desk.changing:
        _check_ledger(visit)
        try:
            await visit.app.steering.weigh(name, weights, visit.person.name, comment)
        except NoRoute as error:
            raise HTTPException(404, str(error)) from None
        except WeightsRefused as error:
            raise HTTPException(400, str(error)) from None
        except MoveRefused as error:
            raise HTTPException(409, str(error)) from None
        except StoreUnavailable:
            raise HTTPException(503, _NOT_KNOWN) from None
        visit.app.ledger.flush()
    return await routes.route(visit)


async def rollout(visit: Visit) -> Response:
    return _shown(visit, *_found(visit))


def _move(what: Step) -> Callable[[Visit], Awaitable[Response]]:
    async def move(visit: Visit) -> Response:
        name = _named(visit)
        _, plan = _found(visit)
        _check_may(visit, what, plan)
        comment = _comment(_object(await body(visit.request), RolloutStep))
        async with visit.desk.changing:
            if what not in CANNOT_WAIT:
                _check_ledger(visit)
            try:
                await visit.app.steering.move(name, what, visit.person.name, comment)
            except NoRoute as error:
                raise HTTPException(404, str(error)) from None
            except MoveRefused as error:
                raise HTTPException(409, str(error)) from None
            except StoreUnavailable:
                raise HTTPException(503, _NOT_KNOWN) from None
            visit.app.ledger.flush()
        return _shown(visit, *_found(visit))

    return move


def _named(visit: Visit) -> str:
    """The route that a path names. Raises HTTPException."""
    name: str = visit.request.path_params["route"]
    if visit.app.pipeline.assembly.table.named(name) is None:
        raise routes.unknown_route(visit.app)
    return name


def _found(visit: Visit) -> tuple[Rollout, RolloutSettings]:
    try:
        return visit.app.steering.rollout(visit.request.path_params["route"])
    except NoRoute as error:
        raise HTTPException(404, str(error)) from None
    except StoreUnavailable as error:
        raise HTTPException(503, str(error)) from None


def _shown(visit: Visit, state: Rollout, plan: RolloutSettings) -> Response:
    return shown(routes.rollout_view(visit.app, state, plan))


def _check_may(visit: Visit, what: Step, plan: RolloutSettings) -> None:
    """Promoting is for those whom the plan names, where it names any. Raises HTTPException."""
    if what != "promote":
        return
    roles = plan.approval or ("admin",)
    if visit.person.roles.isdisjoint(roles):
        needed = " or ".join(f"`{each}`" for each in roles)
        raise HTTPException(403, f"To promote this rollout needs the role {needed}, which {visit.person.name} lacks.")


def _check_ledger(visit: Visit) -> None:
    if visit.app.ledger.failure is not None:
        raise HTTPException(503, _NOT_RECORDED)


def _object(sent: bytes, view: type[View]) -> Mapping[str, Any]:
    """What a change asks for, by name; nothing where nothing was sent. Raises HTTPException."""
    try:
        change = json.loads(sent or b"{}", object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is no JSON object whose keys differ.") from None
    if not isinstance(change, dict):
        raise HTTPException(400, "The body is no JSON object.")
    unknown = next((name for name in change if name not in view.model_fields), None)
    if unknown is not None:
        known = ", ".join(view.model_fields)
        raise HTTPException(400, f"There is no {unknown[:64]!r} in this change. It takes {known}.")
    return change


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _comment(change: Mapping[str, Any]) -> str:
    comment = change.get("comment", "")
    if not isinstance(comment, str) or len(comment) > _LONGEST_COMMENT or not comment.isprintable():
        raise HTTPException(400, f"`comment` is no text of at most {_LONGEST_COMMENT} printable characters.")
    return comment


_PLACE: Final = "/routes/{route}/rollout"

OPERATIONS = (
    Operation(
        "PUT",
        "/routes/{route}/weights",
        "Other weights for a route's arms, from the next call on.",
        RouteView,
        set_weights,
        role="admin",
        takes=WeightsChange,
    ),
    Operation("GET", _PLACE, "How a route's rollout stands, and what is missing to promote.", RolloutView, rollout),
    Operation(
        "POST",
        f"{_PLACE}/start",
        "Begin a rollout at its first step, also after it was taken back.",
        RolloutView,
        _move("start"),
        role="admin",
        takes=RolloutStep,
    ),
    Operation(
        "POST",
        f"{_PLACE}/pause",
        "Keep a canary's weight as it is, and go on judging it.",
        RolloutView,
        _move("pause"),
        role="admin",
        takes=RolloutStep,
    ),
    Operation(
        "POST",
        f"{_PLACE}/resume",
        "Let a rollout go on.",
        RolloutView,
        _move("resume"),
        role="admin",
        takes=RolloutStep,
    ),
    Operation(
        "POST",
        f"{_PLACE}/promote",
        "End a step now, also without the evidence, which is then on record. For people with one of the roles of the "
        "plan's `approval`; else for `admin`.",
        RolloutView,
        _move("promote"),
        takes=RolloutStep,
    ),
    Operation(
        "POST",
        f"{_PLACE}/abort",
        "Take the canary back: it gets no more calls until a person starts the rollout again.",
        RolloutView,
        _move("abort"),
        role="admin",
        takes=RolloutStep,
    ),
)
