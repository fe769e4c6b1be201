"""What the admin API tells of a route on trial, for tests of those who show it: nine days of a canary, taken back."""

import functools
import json
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson

from gateway.admin.route_views import (
    ArmView,
    ComparisonView,
    EventView,
    RolloutView,
    RouteView,
    StepView,
    timeline,
    utc,
)
from routing.comparison import compare
from routing.figures import ArmFigures, Figures

BEGUN = 1_763_510_400
"""2025-11-19, midnight UTC."""

_DAY = 86_400
_CLASSES = ("stream_cut", "capacity", "connect", "first_token_late")


def told(canary: str = "parallax", baseline: str = "openai", route: str = "chat", days: float = 9.0) -> dict[str, Any]:
    """As `GET /routes/{route}` answers, read with exact numbers. With `days` of 6 all is well; with 9 it was not."""
    answer: dict[str, Any] = json.loads(_answer(canary, baseline, route, days), parse_float=Decimal)
    return answer


@functools.cache
def _answer(canary: str, baseline: str, route: str, days: float) -> bytes:
    chance = random.Random(7)
    arms = {baseline: ArmFigures(BEGUN), canary: ArmFigures(BEGUN)}
    fell, until = BEGUN + int(7.6 * _DAY), BEGUN + int(days * _DAY)
    at = float(BEGUN)
    while at < until:
        busy = 1.2 + (at % _DAY > 8 * 3600) * (at % _DAY < 19 * 3600) * 3
        at += chance.expovariate(busy / 200)
        share = 0.1 if at < BEGUN + 3 * _DAY else 0.3 if at < fell else 0.0
        self_hosted = chance.random() < share
        failing = 0.16 if self_hosted and at > fell - 5000 else 0.0012 if self_hosted else 0.0007
        first = chance.lognormvariate(-1.2 if self_hosted else -1.0, 0.35)
        tokens_in, tokens_out = chance.randrange(200, 3000), chance.randrange(20, 700)
        price = (50, 100) if self_hosted else (150, 600)
        arms[canary if self_hosted else baseline].observe(
            at,
            first + tokens_out / chance.gauss(92 if self_hosted else 88, 8),
            error=chance.choice(_CLASSES) if chance.random() < failing else None,
            first_token=first,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cost=tokens_in * price[0] + tokens_out * price[1],
        )
        if self_hosted and chance.random() < 0.002:
            arms[canary].overflowed(at)
    totals = {name: arm.total for name, arm in arms.items()}
    comparison = compare(totals[canary], totals[baseline], seconds=until - BEGUN)
    back = until > fell
    weights = (100.0, 0.0) if back else (70.0, 30.0)
    view = RouteView(
        name=route,
        models=["gpt-4o-mini", "llama-*"],
        since=utc(BEGUN),
        until=utc(until),
        arms=[
            ArmView.of(baseline, weights[0], None, "ok", totals[baseline]),
            ArmView.of(canary, weights[1], "Qwen/Qwen3-0.6B", "ejected" if back else "ok", totals[canary]),
        ],
        baseline=baseline,
        comparisons=[ComparisonView.of(canary, baseline, comparison)],
        timeline=timeline(arms, BEGUN, until),
        rollout=_rollout(canary, fell if back else None, arms[canary].window(fell - 5000, fell)),
    )
    return orjson.dumps(view.model_dump())


def _rollout(canary: str, fell: int | None, bad: Figures) -> RolloutView:
    """`bad` is what made it fall."""
    history = [
        EventView(
            at=utc(BEGUN + 60), event="started", by="dana", step=0, weight=10.0, explanation="The plan is agreed."
        ),
        EventView(
            at=utc(BEGUN + 3 * _DAY),
            event="promoted",
            step=1,
            weight=30.0,
            explanation="Held for 3 days with evidence that the error rate is below 1 %.",
        ),
    ]
    if fell is not None:
        why = {"since": utc(fell - 5000), "errors": bad.failed, "calls": bad.calls, "classes": dict(bad.errors)}
        explanation = f"Since 13:00 {bad.failed} of {bad.calls} calls failed; the limit is 0.5 %."
        history.append(
            EventView(at=utc(fell), event="rolled_back", step=None, weight=0.0, explanation=explanation, evidence=why)
        )
    missing: Sequence[str] = ["about 1,310 more calls at the present rate", "12 more days"] if fell is None else []
    return RolloutView(
        canary=canary,
        state="rolled_back" if fell is not None else "running",
        step=None if fell is not None else 1,
        steps=[
            StepView(weight=weight, hold=days * _DAY, max_error_rate=limit)
            for weight, days, limit in ((10, 14, 0.01), (30, 21, 0.005), (50, 21, 0.003), (80, 28, 0.002))
        ],
        verdict="ROLLBACK" if fell is not None else "HOLD",
        evidence={"absolute": 12_400.0 if fell is not None else 0.02, "relative": 118.5, "threshold": 100},
        missing=list(missing),
        history=history,
    )
