"""The policy that decides: what is loaded, what it says of an input, why it decided a call as it did."""

import asyncio
import time
from typing import Any, Literal

from pydantic import ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from config.settings import PolicySettings, ShadowSettings
from gateway.admin.operation import Loading, Operation, View, Visit, body, shown
from gateway.explanations import Again, Explained, Recorded, recorded, replayable
from policies import load as policies
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided


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


class InputView(View):
    """What a policy is asked; see docs/policy.md."""

    model_config = ConfigDict(extra="allow")


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


async def policy(visit: Visit) -> Response:
    app, deciding = visit.app, visit.app.deciding
    engine = app.pipeline.engine
    settings = policies.on_trial(app.settings.policy) if deciding.promoted else app.settings.policy
    assert settings is not None, "what was promoted is configured"
    return shown(
        PolicyView(
            engine=settings.engine,
            url=settings.opa.url if settings.engine == "opa" and settings.opa is not None else None,
            failure=engine.failure if engine is not None else deciding.failure,
            revision=engine.revision if engine is not None else None,
            decides="on_trial" if deciding.promoted else "configured",
            files=files(settings),
            bundles=dict(engine.bundles) if engine is not None else {},
            fallen_back=deciding.fallen_back_on_trial if deciding.promoted else deciding.fallen_back,
            loading=Loading.of(deciding.loading_shadow if deciding.promoted else deciding.loading),
        )
    )


async def reload(visit: Visit) -> Response:
    await visit.app.deciding.reload(visit.person.name)
    await visit.app.deciding.reload_shadow(visit.person.name)
    return await policy(visit)


async def evaluate(visit: Visit) -> Response:
    document = await body(visit.request)
    engine = visit.app.pipeline.engine
    if engine is None:
        raise HTTPException(503, "No policy is loaded; GET /policy says why.")
    try:
        found = await visit.desk.explainer.explain(engine, document, time.time_ns())
    except InputRefused as error:
        raise HTTPException(400, f"The input cannot be evaluated: {error}") from None
    except EngineUnavailable as error:
        raise HTTPException(503, f"The policy cannot be asked: {error.internal}") from None
    view = _decision(found)
    if view is None:
        raise HTTPException(422, f"The policy gives no valid decision on this input: {Undecided()}")
    return shown(view)


async def explain(visit: Visit) -> Response:
    app, call = visit.app, visit.request.path_params["call"]
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
            now, note = await _decided_again(visit, before, *question)
        except (InputRefused, EngineUnavailable) as error:
            note = str(error)
    if now is not None and now.result is None:
        note = f"{note} Decided again, there is no decision to be shown: {now.failure}.".lstrip()
    result, document = before.event.get("result"), before.event.get("input")
    return shown(
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


async def _decided_again(visit: Visit, before: Recorded, document: bytes, now_ns: int) -> tuple[Again | None, str]:
    """The decision on the policy that took it, or else on the one that decides now."""
    engine = visit.app.pipeline.engine
    if engine is not None and engine.revision == before.revision:
        return await visit.desk.explainer.again(engine, before, document, now_ns), ""
    kept = visit.app.deciding.history.find(before.revision)
    if kept is not None:
        try:
            old = await policies.again(visit.app.settings.policy, kept)
        except PolicyError as error:
            return None, f"The policy that decided cannot be loaded any more: {error.problems[0]}"
        try:
            return await visit.desk.explainer.again(old, before, document, now_ns), ""
        finally:
            await old.retire()
    if engine is None:
        return None, "The policy that decided is not kept any more, and none is loaded."
    note = "The policy that decided is not kept any more; this is the one that decides now."
    return await visit.desk.explainer.again(engine, before, document, now_ns), note


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


def files(settings: PolicySettings | ShadowSettings) -> list[str]:
    bundle = settings.bundle if isinstance(settings, PolicySettings) else None
    return [*map(str, settings.paths), *([bundle.url] if bundle is not None else [])]


OPERATIONS = (
    Operation("GET", "/policy", "Engine, revision, paths and how the last reload ended.", PolicyView, policy),
    Operation("POST", "/policy/reload", "Load the policy again now.", PolicyView, reload, role="admin"),
    Operation(
        "POST",
        "/policy/evaluate",
        "The decision on an input, without making a call.",
        DecisionView,
        evaluate,
        takes=InputView,
    ),
    Operation(
        "GET",
        "/policy/explain/{call}",
        "Why a call was decided so: its decision as recorded, and taken again.",
        ExplanationView,
        explain,
    ),
)
