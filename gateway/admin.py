"""The operators' door: health, metrics, and what is loaded, on a listener of its own."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Path

from config.settings import PolicySettings, ShadowSettings
from gateway.app import App
from gateway.explanations import Again, Explained, Explainer, Recorded, recorded, replayable
from gateway.identity import Person
from gateway.reload import Reload
from gateway.trial import Trial, TrialRefused
from policies import load as policy
from policies.embedded import EmbeddedEngine
from policies.engine import Engine
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided
from routing.table import Route

_LONGEST_INPUT = 1024 * 1024
_LARGEST_EXPLAINED = 200_000
"""Characters of policy: explaining a decision on more holds up calls for too long. The command line has the time."""

_MOST_DIGITS = 15
"""Digits of a length that is worth reading as a number."""


class View(BaseModel):
    """An answer of the admin API. Its JSON schema is what /openapi.json shows."""


class Health(View):
    status: Literal["ok", "unready"]
    reasons: list[str] = Field(default_factory=list, description="Why calls cannot be served now.")


class Loading(View):
    loaded_at: float = Field(description="When the one in use was loaded, seconds since the epoch; 0 is never.")
    tried_at: float = Field(description="When loading was last tried.")
    errors: list[str] = Field(description="What was wrong with the last try; empty when it succeeded.")


class PolicyView(View):
    engine: str = Field(description="Who evaluates: `embedded` or `opa`.")
    url: str | None = Field(description="The OPA server that is asked; null for `embedded`.")
    failure: str | None = Field(description="Why calls cannot be decided now; null when they can.")
    revision: str | None = Field(description="Hash of the policy that decides now; null when none is loaded.")
    decides: Literal["configured", "on_trial"] = Field(
        description="Whether the configured policy decides or the one on trial, which was promoted; all here is of it."
    )
    files: list[str] = Field(description="Its paths as configured, and the URL of a bundle.")
    bundles: dict[str, str] = Field(description="The revisions that loaded bundles give themselves, by name.")
    fallen_back: bool = Field(
        description="Whether what decides was kept from before the last start, since when no policy could be loaded."
    )
    loading: Loading


class ConfigView(View):
    file: str
    warnings: list[str]
    restart_needed: list[str] = Field(description="Sections whose change takes effect at the next start.")
    loading: Loading


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


class RuleView(View):
    """A rule that a decision stands on. Its value is not told."""

    name: str
    file: str
    lines: list[int]
    depth: int = Field(description="0 is the rule that is asked; what it rests on is deeper.")
    holds: bool | None = Field(description="Whether it has a value; null for a function.")


class DecisionView(View):
    decision: str
    risk_level: str | None
    required_approvals: list[str]
    explanation: str
    obligations: dict[str, Any]
    revision: str
    rules: list[RuleView] = Field(description="The rules that made it, the one that answered first.")
    unknown: str = Field(description="Why no rules can be told; empty when they can.")
    reads: list[str] = Field(description="What the policy can read of calls of this kind.")
    unstable: list[str] = Field(description="Why this decision is not reused; empty when it is.")


class ExplanationView(View):
    call: str
    code: str | None = Field(description="How the call ended; null while it is under way.")
    reasons: list[str] = Field(description="Why it ended so, in the gateway's words, where it was not the policy's no.")
    timestamp: str | None = Field(description="When it was decided.")
    revision: str | None = Field(description="The policy that decided; null when none did.")
    recorded: dict[str, Any] | None = Field(description="The decision as it was recorded.")
    input: dict[str, Any] | None = Field(description="What the policy was asked, as it was recorded.")
    missing: list[str] = Field(description="JSON pointers to what was masked or left out when it was recorded.")
    again: DecisionView | None = Field(description="The decision on the recorded input now, as it would be recorded.")
    verdict: Literal["same", "differs", "cannot be told"] = Field(description="Whether it comes about again.")
    note: str = Field(description="What is to be known about it.")


class RevisionView(View):
    """One of two policies on trial against each other."""

    revision: str | None = Field(description="Hash of the policy; null when none is loaded.")
    files: list[str] = Field(description="Configured paths.")
    fallen_back: bool = Field(
        description="Whether it was kept from before the last start, since when none could be loaded; of the policy on "
        "trial only where it was promoted."
    )
    loading: Loading


class VerdictView(View):
    decision: str = Field(description="A decision's word, or UNDECIDED when the policy gave none.")
    explanation: str
    revision: str


class DifferenceView(View):
    at: float = Field(description="When the call was over, seconds since the epoch.")
    call: str
    agent: str
    tenant: str
    kind: str
    target: str
    operation: str
    configured: VerdictView
    on_trial: VerdictView


class PairView(View):
    configured: str
    on_trial: str
    calls: int


class RatesView(View):
    calls: int = Field(description="Calls that the rates are taken over.")
    denied: float
    denied_on_trial: float
    held: float
    held_on_trial: float


class ShadowView(View):
    stage: str = Field(description="`shadowing`, `watching` (promoted and watched), `kept` or `rolled_back`.")
    decides: Literal["configured", "on_trial"]
    reason: str = Field(description="Why the policy on trial was turned back; empty when it was not.")
    until: float = Field(description="When the watch over a promoted policy ends, seconds since the epoch; 0 is never.")
    share: float = Field(description="Per cent of calls that both are asked about.")
    configured: RevisionView
    on_trial: RevisionView
    since: float = Field(
        description="When one of the two last changed, or began to decide, seconds since the epoch; what is counted is "
        "from then on, and what is recent may be older."
    )
    compared: int = Field(description="Calls compared since then.")
    differences: int
    pairs: list[PairView] = Field(description="Calls by what each policy said.")
    rates: RatesView
    recent: list[DifferenceView] = Field(description="The last differences, newest first.")


class Problem(View):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the admin API: the route and its documentation."""

    method: str
    path: str
    summary: str
    answer: type[View] | None
    handle: Callable[["Admin", Request, Person | None], Awaitable[Response]]
    open: bool = False
    takes_json: bool = False


class Admin:
    """Handlers over one running gateway."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._explainer = Explainer(_LARGEST_EXPLAINED)

    async def healthz(self, request: Request, person: Person | None) -> Response:
        return _json(Health(status="ok"))

    async def readyz(self, request: Request, person: Person | None) -> Response:
        return ready(self._app)

    async def metrics(self, request: Request, person: Person | None) -> Response:
        engine = self._app.pipeline.engine
        # What decides on an OPA server changes without a reload, so it is looked at now.
        self._app.telemetry.revision = engine.revision if engine is not None else ""
        self._app.telemetry.reuse = engine.reuse if isinstance(engine, EmbeddedEngine) else None
        self._app.telemetry.ledger_failing = self._app.ledger.failure is not None
        return Response(self._app.telemetry.render(), media_type=CONTENT_TYPE_LATEST)

    async def config(self, request: Request, person: Person | None) -> Response:
        app = self._app
        return _json(
            ConfigView(
                file=str(app.path),
                warnings=list(app.warnings),
                restart_needed=list(app.restart_needed),
                loading=_loading(app.config),
            )
        )

    async def policy(self, request: Request, person: Person | None) -> Response:
        app, deciding = self._app, self._app.deciding
        engine = app.pipeline.engine
        settings = policy.on_trial(app.settings.policy) if deciding.promoted else app.settings.policy
        assert settings is not None, "what was promoted is configured"
        return _json(
            PolicyView(
                engine=settings.engine,
                url=settings.opa.url if settings.engine == "opa" and settings.opa is not None else None,
                failure=engine.failure if engine is not None else deciding.failure,
                revision=engine.revision if engine is not None else None,
                decides="on_trial" if deciding.promoted else "configured",
                files=_files(settings),
                bundles=dict(engine.bundles) if engine is not None else {},
                fallen_back=deciding.fallen_back_on_trial if deciding.promoted else deciding.fallen_back,
                loading=_loading(deciding.loading_shadow if deciding.promoted else deciding.loading),
            )
        )

    async def reload(self, request: Request, person: Person | None) -> Response:
        assert person is not None, "changing something needs a person"
        if "admin" not in person.roles:
            raise HTTPException(403, "Reloading the policy needs the role `admin`.")
        await self._app.deciding.reload(person.name)
        await self._app.deciding.reload_shadow(person.name)
        return await self.policy(request, person)

    async def shadow(self, request: Request, person: Person | None) -> Response:
        app, trial = self._app, _trial(self._app)
        policy = app.settings.policy
        comparison = trial.comparison
        return _json(
            ShadowView(
                stage=trial.stage,
                decides="on_trial" if trial.stage.promoted else "configured",
                reason=trial.reason,
                until=trial.until,
                share=trial.settings.share,
                configured=_revision(trial.configured, _files(policy), app.deciding.fallen_back, app.deciding.loading),
                on_trial=_revision(
                    trial.on_trial,
                    _files(trial.settings),
                    app.deciding.fallen_back_on_trial,
                    app.deciding.loading_shadow,
                ),
                since=trial.since,
                compared=comparison.calls,
                differences=comparison.differences,
                pairs=[
                    PairView(configured=one, on_trial=other, calls=calls)
                    for (one, other), calls in comparison.pairs.most_common()
                ],
                rates=RatesView(**dataclasses.asdict(comparison.rates())),
                recent=[
                    DifferenceView.model_validate({"at": each.at, **each.facts()}) for each in reversed(trial.recent)
                ],
            )
        )

    async def promote(self, request: Request, person: Person | None) -> Response:
        revision = request.query_params.get("revision", "")

        async def promote(trial: Trial, who: str) -> None:
            await trial.promote(who, revision)

        return await self._move(request, person, promote)

    async def rollback(self, request: Request, person: Person | None) -> Response:
        return await self._move(request, person, Trial.roll_back)

    async def _move(
        self, request: Request, person: Person | None, move: Callable[[Trial, str], Awaitable[None]]
    ) -> Response:
        assert person is not None, "changing something needs a person"
        if "admin" not in person.roles:
            raise HTTPException(403, "Changing which policy decides needs the role `admin`.")
        try:
            await move(_trial(self._app), person.name)
        except TrialRefused as error:
            raise HTTPException(409, str(error)) from None
        except OSError as error:
            raise HTTPException(503, f"Nothing was changed, because it could not be kept: {error.strerror}.") from None
        return await self.shadow(request, person)

    async def evaluate(self, request: Request, person: Person | None) -> Response:
        document = await _input(request)
        engine = self._app.pipeline.engine
        if engine is None:
            raise HTTPException(503, "No policy is loaded; GET /policy says why.")
        try:
            found = await self._explainer.explain(engine, document, time.time_ns())
        except InputRefused as error:
            raise HTTPException(400, f"The input cannot be evaluated: {error}") from None
        except EngineUnavailable as error:
            raise HTTPException(503, f"The policy cannot be asked: {error.internal}") from None
        view = _decision(found)
        if view is None:
            raise HTTPException(422, f"The policy gives no valid decision on this input: {Undecided()}")
        return _json(view)

    async def explain(self, request: Request, person: Person | None) -> Response:
        app, call = self._app, request.path_params["call"]
        try:
            before = await asyncio.to_thread(recorded, app.ledger.path, call)
        except OSError as error:
            raise HTTPException(503, f"The ledger cannot be read: {error.strerror}.") from None
        if before is None:
            raise HTTPException(404, "There is no such call in the ledger.")
        now: Again | None = None
        note = ""
        question = replayable(before)
        if question is None:
            note = "The input was not recorded, so it cannot be decided on again."
        else:
            try:
                now, note = await self._again(before, *question)
            except (InputRefused, EngineUnavailable) as error:
                note = str(error)
        if now is not None and now.result is None:
            note = f"{note} Decided again, there is no decision to be shown: {now.failure}.".lstrip()
        result, document = before.event.get("result"), before.event.get("input")
        return _json(
            ExplanationView(
                call=call,
                code=before.code,
                reasons=list(before.reasons),
                timestamp=before.event.get("timestamp"),
                revision=before.revision or None,
                recorded=result if isinstance(result, dict) else None,
                input=document if isinstance(document, dict) else None,
                missing=before.missing,
                again=_again(now) if now is not None else None,
                verdict=now.verdict if now is not None else "cannot be told",
                note=note,
            )
        )

    async def _again(self, before: Recorded, document: bytes, now_ns: int) -> tuple[Again | None, str]:
        """The decision on the policy that took it, or else on the one that decides now."""
        engine = self._app.pipeline.engine
        if engine is not None and engine.revision == before.revision:
            return await self._explainer.again(engine, before, document, now_ns), ""
        kept = self._app.deciding.history.find(before.revision)
        if kept is not None:
            try:
                old = await policy.again(self._app.settings.policy, kept)
            except PolicyError as error:
                return None, f"The policy that decided cannot be loaded any more: {error.problems[0]}"
            try:
                return await self._explainer.again(old, before, document, now_ns), ""
            finally:
                await old.retire()
        if engine is None:
            return None, "The policy that decided is not kept any more, and none is loaded."
        note = "The policy that decided is not kept any more; this is the one that decides now."
        return await self._explainer.again(engine, before, document, now_ns), note

    async def routes(self, request: Request, person: Person | None) -> Response:
        return _json(RouteList(items=[_route(route) for route in self._app.pipeline.assembly.table.routes]))

    async def route(self, request: Request, person: Person | None) -> Response:
        name = request.path_params["route"]
        for route in self._app.pipeline.assembly.table.routes:
            if route.name == name:
                return _json(_route(route))
        raise HTTPException(404, "There is no such route; GET /routes lists them.")

    async def openapi(self, request: Request, person: Person | None) -> Response:
        return Response(_OPENAPI, media_type="application/json")


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/healthz", "Whether the process answers.", Health, Admin.healthz, open=True),
    Operation(
        "GET", "/readyz", "Whether calls can be served: 200, or 503 with reasons.", Health, Admin.readyz, open=True
    ),
    Operation("GET", "/metrics", "Prometheus metrics.", None, Admin.metrics, open=True),
    Operation("GET", "/openapi.json", "This description.", None, Admin.openapi, open=True),
    Operation("GET", "/config", "The configuration's file and how its last reload ended.", ConfigView, Admin.config),
    Operation("GET", "/policy", "Engine, revision, paths and how the last reload ended.", PolicyView, Admin.policy),
    Operation("POST", "/policy/reload", "Load the policy again now (role admin).", PolicyView, Admin.reload),
    Operation(
        "POST",
        "/policy/evaluate",
        "The decision on an input, without making a call.",
        DecisionView,
        Admin.evaluate,
        takes_json=True,
    ),
    Operation("GET", "/policy/shadow", "The policy on trial and how it differs.", ShadowView, Admin.shadow),
    Operation("POST", "/policy/promote", "Let the policy on trial decide (role admin).", ShadowView, Admin.promote),
    Operation("POST", "/policy/rollback", "Let the configured policy decide (role admin).", ShadowView, Admin.rollback),
    Operation(
        "GET",
        "/policy/explain/{call}",
        "Why a call was decided so: its decision as recorded, and taken again.",
        ExplanationView,
        Admin.explain,
    ),
    Operation("GET", "/routes", "All routes with their arms and weights.", RouteList, Admin.routes),
    Operation("GET", "/routes/{route}", "One route.", RouteView, Admin.route),
)


def admin_app(app: App) -> Starlette:
    """The ASGI application of the admin listener."""
    admin = Admin(app)
    return Starlette(
        routes=[Path(each.path, _endpoint(app, admin, each), methods=[each.method]) for each in OPERATIONS],
        exception_handlers={HTTPException: _problem, ValidationError: _problem, 500: _problem},
    )


def ready(app: App) -> Response:
    reasons = app.unready
    return _json(Health(status="unready" if reasons else "ok", reasons=reasons), 503 if reasons else 200)


def _endpoint(app: App, admin: Admin, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        person = None
        if not operation.open:
            person = app.pipeline.assembly.people.recognise(request.headers.get("authorization"))
            if person is None:
                raise HTTPException(
                    401,
                    "Show the token of one of `admin.people` as `Authorization: Bearer TOKEN`.",
                    {"www-authenticate": "Bearer"},
                )
        return await operation.handle(admin, request, person)

    return endpoint


async def _input(request: Request) -> bytes:
    """The body. What is too long is refused before it is read, or as soon as it is."""
    too_long = HTTPException(413, f"The input is longer than {_LONGEST_INPUT} bytes.")
    announced = request.headers.get("content-length", "").lstrip("0")
    if len(announced) > _MOST_DIGITS or int(announced or 0) > _LONGEST_INPUT:
        raise too_long
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > _LONGEST_INPUT:
                raise too_long
    except ClientDisconnect:
        raise HTTPException(400, "The input did not arrive as a whole.") from None
    return bytes(body)


def _json(view: View, status: int = 200) -> Response:
    return Response(view.model_dump_json(), status, media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    status, detail, headers = 500, "The gateway failed on this request; its log says how.", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(problem.model_dump_json(), status, headers, "application/problem+json")


def _decision(found: Explained) -> DecisionView | None:
    decision = found.decision
    if decision is None:
        return None
    return DecisionView(
        decision=decision.effect,
        risk_level=decision.risk_level,
        required_approvals=list(decision.required_approvals),
        explanation=decision.explanation,
        obligations=decision.obligations.facts(),
        revision=decision.revision,
        **_why(found),
    )


def _again(now: Again) -> DecisionView | None:
    """The second decision; what masks have put in place of something may be of any type."""
    result = now.result
    if result is None:
        return None
    risk, roles, obligations = (result.get(name) for name in ("risk_level", "required_approvals", "obligations"))
    return DecisionView(
        decision=str(result.get("decision", "")),
        explanation=str(result.get("explanation", "")),
        risk_level=str(risk) if risk is not None else None,
        required_approvals=list(map(str, roles)) if isinstance(roles, list) else [],
        obligations=obligations if isinstance(obligations, dict) else {},
        revision=now.revision,
        **_why(now.explained),
    )


def _why(found: Explained) -> dict[str, Any]:
    return {
        "rules": [
            RuleView(name=step.name, file=step.file, lines=list(step.lines), depth=step.depth, holds=step.holds)
            for step in found.rules
        ],
        "unknown": found.unknown,
        "reads": list(found.reads),
        "unstable": list(found.unstable),
    }


def _loading(reload: Any) -> Loading:
    return Loading(loaded_at=reload.loaded_at, tried_at=reload.tried_at, errors=list(reload.errors))


def _trial(app: App) -> Trial:
    if app.deciding.trial is None:
        raise HTTPException(404, "There is no policy on trial. Name one under `policy.shadow` in the configuration.")
    return app.deciding.trial


def _files(settings: PolicySettings | ShadowSettings) -> list[str]:
    bundle = settings.bundle if isinstance(settings, PolicySettings) else None
    return [*map(str, settings.paths), *([bundle.url] if bundle is not None else [])]


def _revision(engine: Engine | None, files: list[str], fallen_back: bool, reload: Reload) -> RevisionView:
    return RevisionView(
        revision=engine.revision if engine is not None else None,
        files=files,
        fallen_back=fallen_back,
        loading=_loading(reload),
    )


def _route(route: Route) -> RouteView:
    arms = [ArmView(target=arm.target.name, weight=arm.weight, model=arm.model) for arm in route.arms]
    return RouteView(name=route.name, models=list(route.models), arms=arms)


def openapi(operations: tuple[Operation, ...] = OPERATIONS) -> dict[str, Any]:
    """OpenAPI 3.1 of the table above."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for each in (*(operation.answer for operation in operations), Problem):
        if each is not None:
            schema = each.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[each.__name__] = schema
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _description(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Weighbridge admin API", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _description(operation: Operation) -> dict[str, Any]:
    def content(media: str, view: type[View] | None) -> Mapping[str, Any]:
        return {media: {"schema": {"$ref": f"#/components/schemas/{view.__name__}"} if view else {}}}

    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": {"description": "OK", "content": content("application/json", operation.answer)},
            "default": {"description": "A problem", "content": content("application/problem+json", Problem)},
        },
        "security": [] if operation.open else [{"token": []}],
    }
    parameters = [part.strip("{}") for part in operation.path.split("/") if part.startswith("{")]
    if parameters:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if operation.takes_json:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    return described


_OPENAPI = orjson.dumps(openapi())
