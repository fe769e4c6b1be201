"""Plans for a route with the arms `parallax`, on trial, and `openai`, and buckets of its calls and errors."""

import random
from collections.abc import Iterator

from config.settings import GateSettings, RolloutSettings, RolloutStepSettings
from routing.course import BUCKET, CALLS, ERROR, ERRORS, RAW_ERRORS, Bucket, counted
from routing.simulation import binomial

CANARY, OTHER = "parallax", "openai"
DAY = 86_400
START = 1_763_700_000

PLAN = RolloutSettings(canary=CANARY)
"""The owner's plan."""


def plan(
    *limits: float,
    hold: float = 600.0,
    mode: str = "evidence",
    gates: GateSettings | None = None,
    **more: object,
) -> RolloutSettings:
    """Steps of 10, 30, 50 and 80 per cent with these limits, as many as there are."""
    steps = tuple(
        RolloutStepSettings(weight=weight, hold=hold, max_error_rate=limit)
        for weight, limit in zip((10.0, 30.0, 50.0, 80.0), limits or (0.01,), strict=False)
    )
    settings = {"canary": CANARY, "steps": steps, "mode": mode, "gates": gates or GateSettings(), **more}
    return RolloutSettings.model_validate(settings)


def bucket(
    at: int,
    canary: tuple[int, int] = (0, 0),
    other: tuple[int, int] = (0, 0),
    *,
    kind: str = "connect",
    repeated: int = 0,
    **more: int,
) -> Bucket:
    """(calls, errors) of both arms; the canary's errors are of one kind, and `repeated` of them repeat another one."""
    counts = {
        counted(CANARY, CALLS): canary[0],
        counted(CANARY, ERRORS): canary[1] - repeated,
        counted(CANARY, RAW_ERRORS): canary[1],
        counted(CANARY, f"{ERROR}{kind}"): canary[1],
        counted(OTHER, CALLS): other[0],
        counted(OTHER, ERRORS): other[1],
        counted(OTHER, RAW_ERRORS): other[1],
        **{counted(CANARY, what): number for what, number in more.items()},
    }
    return Bucket(at, {key: number for key, number in counts.items() if number})


def traffic(
    rng: random.Random, at: int, seconds: int, per_bucket: float, share: float, canary: float, other: float
) -> Iterator[Bucket]:
    """Buckets of a route with so many calls each, a share of them the canary's; both arms fail at their rates."""
    due = rng.random()
    for begin in range(at, at + seconds, BUCKET):
        due += per_bucket
        calls, due = int(due), due - int(due)
        mine = binomial(rng, calls, share)
        found = (mine, binomial(rng, mine, canary)), (calls - mine, binomial(rng, calls - mine, other))
        if calls:
            yield bucket(begin, *found)
