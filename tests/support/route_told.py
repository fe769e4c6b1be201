"""What the admin API tells of a route on trial, for tests of those who show it: nine days of a canary, taken back."""

import functools
import json
import random
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson

from config.settings import RolloutSettings
from gateway.admin.route_views import (
    ArmView,
    ComparisonView,
    RolloutView,
    RouteView,
    timeline,
    utc,
)
from routing.comparison import compare
from routing.figures import ArmFigures, Figures
from routing.promotion import Missing
from routing.rollout import ITSELF, Event, Rollout, State, draft, standing, step
from routing.watch import Facts, Verdict

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
    """Started by a person, promoted by itself, and, where it fell, taken back for what is `bad`."""
    begun = step(draft(_plan(canary)), "start", "dana", BEGUN + 60)
    held = Facts(BEGUN + 60, 1, 600, 1 / 600, 0.01, None, 4, 5400)
    text = "Step 1 of 4 is passed: 1 of 600 calls failed, 0.167 %."
    at = BEGUN + 3 * _DAY
    rollout = _after(begun, Event(at, "promote", ITSELF, State.RUNNING, 2, Verdict.HOLD, text, held))
    evidence = {"limit": 0.005, "above_limit": 0.02, "needed": 100.0, "below_limit": 3.4, "needed_to_promote": 20.0}
    missing = [
        Missing("time", "18 d more at this step", 18.0 * _DAY),
        Missing("calls", "needs ~1,310 more calls", 1310.0),
    ]
    if fell is not None:
        rate, classes = bad.failed / bad.calls, tuple(bad.errors.items())
        facts = Facts(fell - 5000, bad.failed, bad.calls, rate, 0.005, 12_400.0, 1, 70, classes, ("01KAZ0", "01KAZ1"))
        text = f"Since 2025-11-26 13:00:40 UTC {bad.failed} of {bad.calls} calls failed, where 0.5 % may."
        rollout = _after(rollout, Event(fell, "rollback", ITSELF, State.ROLLED_BACK, 2, Verdict.ROLLBACK, text, facts))
    told = standing(rollout, _plan(canary), at)
    if fell is None:
        told |= {"evidence": evidence, "missing": [each._asdict() for each in missing]}
    return RolloutView.of(told, _plan(canary))


def _plan(canary: str) -> RolloutSettings:
    return RolloutSettings(canary=canary)


def _after(rollout: Rollout, event: Event) -> Rollout:
    return replace(
        rollout,
        state=event.state,
        step=event.step,
        verdict=event.verdict,
        moved=event.at,
        history=(*rollout.history, event),
    )
