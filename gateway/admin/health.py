"""Whether the gateway is well: liveness, readiness, metrics, and what it was configured with."""

from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.responses import Response

from gateway.admin.operation import Loading, Operation, View, Visit, shown
from gateway.app import App
from policies.embedded import EmbeddedEngine


class Health(View):
    status: Literal["ok", "unready"]
    reasons: list[str] = Field(default_factory=list, description="Why calls cannot be served now.")


class ConfigView(View):
    file: str
    warnings: list[str]
    restart_needed: list[str] = Field(description="Sections whose change takes effect at the next start.")
    loading: Loading


async def healthz(visit: Visit) -> Response:
    return shown(Health(status="ok"))


async def readyz(visit: Visit) -> Response:
    return ready(visit.app)


def ready(app: App) -> Response:
    reasons = app.unready
    return shown(Health(status="unready" if reasons else "ok", reasons=reasons), 503 if reasons else 200)


async def metrics(visit: Visit) -> Response:
    engine = visit.app.pipeline.engine
    # What decides on an OPA server changes without a reload, so it is looked at now.
    visit.app.telemetry.revision = engine.revision if engine is not None else ""
    visit.app.telemetry.reuse = engine.reuse if isinstance(engine, EmbeddedEngine) else None
    visit.app.telemetry.ledger_failing = visit.app.ledger.failure is not None
    lender, plan = visit.app.pipeline.lender, visit.app.pipeline.assembly.plan
    visit.app.telemetry.balances = lender.standing(plan)
    return Response(visit.app.telemetry.render(), media_type=CONTENT_TYPE_LATEST)


async def config(visit: Visit) -> Response:
    app = visit.app
    return shown(
        ConfigView(
            file=str(app.path),
            warnings=list(app.warnings),
            restart_needed=list(app.restart_needed),
            loading=Loading.of(app.config),
        )
    )


OPERATIONS = (
    Operation("GET", "/healthz", "Whether the process answers.", Health, healthz, open=True),
    Operation("GET", "/readyz", "Whether calls can be served: 200, or 503 with reasons.", Health, readyz, open=True),
    Operation("GET", "/metrics", "Prometheus metrics.", None, metrics, open=True),
    Operation("GET", "/config", "The configuration's file and how its last reload ended.", ConfigView, config),
)
