"""`routing.simulation`: what the owner's plan promises, by canaries whose quality is known."""

import math
import random

from config.settings import RolloutSettings
from routing.simulation import binomial, simulate
from tests.routing.buckets import PLAN, plan


def test_a_canary_at_half_its_limit_is_taken_back_in_at_most_one_of_a_hundred_steps() -> None:
    rows = simulate(PLAN, 10_000, multiples=(0.5,), runs=25, seed=1)
    assert [row.weight for row in rows] == [10, 30, 50, 80]
    assert sum(row.taken_back for row in rows) * 25 <= 1


def test_five_times_the_limit_is_found_within_about_25_errors_and_a_total_failure_before_15() -> None:
    rows = simulate(PLAN, 10_000, multiples=(5.0, math.inf), runs=15, seed=2)
    for row in rows:
        assert row.taken_back == 1.0
        assert row.errors is not None
        assert row.errors[0] <= 25
        assert row.errors[1] <= (14 if row.rate == 1.0 else 40)
        assert row.seconds is not None
        assert 0 < row.seconds[0] <= row.seconds[1]


def test_a_short_window_takes_back_good_canaries_where_evidence_does_not() -> None:
    window = plan(0.01, hold=7 * 86_400.0, mode="window", window=3600.0, min_calls=50)
    evidence = RolloutSettings.model_validate({**dict(window), "mode": "evidence"})
    [literal] = simulate(window, 20_000, multiples=(0.5,), runs=10, seed=3)
    [proven] = simulate(evidence, 20_000, multiples=(0.5,), runs=10, seed=3)
    assert literal.taken_back >= 0.9
    assert proven.taken_back == 0.0


def test_the_same_seed_gives_the_same_table() -> None:
    first, again = (simulate(plan(0.05, hold=3600.0), 50_000, runs=3, seed=7) for _ in range(2))
    assert first == again
    assert [row.rate for row in first] == [0.025, 0.05, 0.1, 0.25, 1.0]


def test_successes_are_drawn_as_often_as_they_are_likely() -> None:
    rng = random.Random(4)
    assert (binomial(rng, 7, 0.0), binomial(rng, 7, 1.0), binomial(rng, 0, 0.5)) == (0, 7, 0)
    drawn = [binomial(rng, 20, 0.3) for _ in range(5000)]
    assert abs(sum(drawn) / 5000 - 6.0) < 0.15
    spread = sum((each - 6.0) ** 2 for each in drawn) / 5000
    assert abs(spread - 4.2) < 0.5
