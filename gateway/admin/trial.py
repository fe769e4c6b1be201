"""A policy on trial: how it differs from the one that decides, and which of the two decides."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.admin.operation import Loading, Operation, Parameter, View, Visit, shown
from gateway.admin.policy import files
from gateway.app import App
from gateway.reload import Reload
from gateway.trial import Trial, TrialRefused
from policies.engine import Engine


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


async def shadow(visit: Visit) -> Response:
    app, trial = visit.app, _trial(visit.app)
    policy = app.settings.policy
    comparison = trial.comparison
    return shown(
        ShadowView(
            stage=trial.stage,
            decides="on_trial" if trial.stage.promoted else "configured",
            reason=trial.reason,
            until=trial.until,
            share=trial.settings.share,
            configured=_revision(trial.configured, files(policy), app.deciding.fallen_back, app.deciding.loading),
            on_trial=_revision(
                trial.on_trial,
                files(trial.settings),
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
            recent=[DifferenceView.model_validate({"at": each.at, **each.facts()}) for each in reversed(trial.recent)],
        )
    )


async def promote(visit: Visit) -> Response:
    revision = visit.request.query_params.get("revision", "")

    async def promote(trial: Trial, who: str) -> None:
        await trial.promote(who, revision)

    return await _move(visit, promote)


async def rollback(visit: Visit) -> Response:
    return await _move(visit, Trial.roll_back)


async def _move(visit: Visit, move: Callable[[Trial, str], Awaitable[None]]) -> Response:
    try:
        await move(_trial(visit.app), visit.person.name)
    except TrialRefused as error:
        raise HTTPException(409, str(error)) from None
    except OSError as error:
        raise HTTPException(503, f"Nothing was changed, because it could not be kept: {error.strerror}.") from None
    return await shadow(visit)


def _trial(app: App) -> Trial:
    if app.deciding.trial is None:
        raise HTTPException(404, "There is no policy on trial. Name one under `policy.shadow` in the configuration.")
    return app.deciding.trial


def _revision(engine: Engine | None, files: list[str], fallen_back: bool, reload: Reload) -> RevisionView:
    return RevisionView(
        revision=engine.revision if engine is not None else None,
        files=files,
        fallen_back=fallen_back,
        loading=Loading.of(reload),
    )


OPERATIONS = (
    Operation("GET", "/policy/shadow", "The policy on trial and how it differs.", ShadowView, shadow),
    Operation(
        "POST",
        "/policy/promote",
        "Let the policy on trial decide.",
        ShadowView,
        promote,
        role="admin",
        query=(Parameter("revision", "How its revision must begin; a newer one is not promoted then."),),
    ),
    Operation("POST", "/policy/rollback", "Let the configured policy decide.", ShadowView, rollback, role="admin"),
)
