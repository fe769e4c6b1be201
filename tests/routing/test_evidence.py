"""`routing.evidence`: the promises of the statistics, by exact enumeration where they are small enough for it."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.evidence import (
    BETA,
    Bets,
    Detector,
    Onset,
    Seen,
    Units,
    above,
    below,
    detector,
    in_common,
    likeliest,
    onsets,
    share_expected,
    skewed,
    trials_needed,
    units,
)
from routing.simulation import binomial

TWELVE = 12


def bets(rate: float, alternatives: list[float]) -> Bets:
    return Bets(
        tuple(math.log(each / rate) for each in alternatives),
        tuple(math.log((1 - each) / (1 - rate)) for each in alternatives),
    )


def fires(before: Detector, stakes: Bets, alpha: float, chances: tuple[float, ...]) -> float:
    """The exact probability that the detector ever finds enough, over all patterns of errors with these chances."""
    if before.evidence >= math.log(1 / alpha):
        return 1.0
    if not chances:
        return 0.0
    failed = fires(before.after(1, 1, stakes), stakes, alpha, chances[1:])
    fine = fires(before.after(1, 0, stakes), stakes, alpha, chances[1:])
    return chances[0] * failed + (1 - chances[0]) * fine


@pytest.mark.parametrize("part", [1.0, 0.7])
@pytest.mark.parametrize(("limit", "alternatives", "alpha"), [(0.3, [0.5, 0.8], 0.2), (0.1, [0.3, 0.6], 0.1)])
def test_over_all_patterns_of_twelve_calls_a_detector_fires_with_at_most_its_alpha(
    limit: float, alternatives: list[float], alpha: float, part: float
) -> None:
    found = fires(Detector(1, TWELVE), bets(limit, alternatives), alpha, (limit * part,) * TWELVE)
    assert 0 < found <= alpha


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.integers(1, 3), st.integers(1, 12))
def test_no_order_of_calls_within_the_limit_makes_it_fire_more_often(
    parts: list[float], spacing: int, starts: int
) -> None:
    found = fires(Detector(spacing, starts), bets(0.3, [0.5, 0.8]), 0.2, tuple(0.3 * part for part in parts))
    assert found <= 0.2


@pytest.mark.parametrize("sizes", [(12,), (3, 1, 4, 4), (2, 2, 2, 2, 2, 2)])
def test_it_does_not_matter_how_calls_fall_into_buckets(sizes: tuple[int, ...]) -> None:
    limit, alpha, stakes = 0.1, 0.1, bets(0.1, [0.3, 0.6])
    found = 0.0
    for errors in itertools.product(*(range(size + 1) for size in sizes)):
        state, chance, fired = Detector(1, TWELVE), 1.0, False
        for size, failed in zip(sizes, errors, strict=True):
            state = state.after(size, failed, stakes)
            chance *= math.comb(size, failed) * limit**failed * (1 - limit) ** (size - failed)
            fired = fired or state.evidence >= math.log(1 / alpha)
        found += chance if fired else 0.0
    assert 0 < found <= alpha


@given(
    st.sampled_from([0.01, 0.005, 0.003, 0.002, 0.3]),
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1)), max_size=6),
    st.integers(0, 5000),
)
def test_the_next_call_adds_nothing_on_average_but_what_is_put_down(
    limit: float, part: float, before: list[tuple[int, float]], planned: int
) -> None:
    state, stakes, rate = detector(limit, planned), above(limit), limit * part
    for calls, failed in before:
        state = state.after(calls, int(calls * failed * 0.1), stakes)
    money = math.exp(state.evidence) if state.money else 0.0
    failed_, fine = (math.exp(state.after(1, errors, stakes).evidence) for errors in (1, 0))
    first = math.exp(detector(limit, planned).after(1, 0, Bets((0.0,), (0.0,))).evidence)
    put_down = 0.0 if state.trials % state.spacing else first
    assert rate * failed_ + (1 - rate) * fine <= (money + put_down) * (1 + 1e-9) + 1e-12


@given(st.integers(1, 20), st.integers(1, 50), st.lists(st.integers(1, 5000), max_size=30))
def test_all_that_is_ever_put_down_is_less_than_all_the_money_there_is(
    spacing: int, starts: int, buckets: list[int]
) -> None:
    state, even = Detector(spacing, starts), Bets((0.0,), (0.0,))
    for calls in buckets:
        before = state
        state = state.after(calls, 0, even)
        assert state.evidence >= before.evidence
    assert state.evidence < 0.0


def test_good_days_do_not_weigh_against_a_bad_hour() -> None:
    state, stakes = detector(0.01, 140_000), above(0.01)
    for _ in range(5000):
        state = state.after(12, 0, stakes)
    errors = 0
    for calls in itertools.count():
        state = state.after(12, calls % 2, stakes)
        errors += calls % 2
        if state.evidence >= math.log(100):
            break
    assert errors <= 25


def test_more_traffic_than_was_planned_for_does_not_make_it_blind() -> None:
    rng, stakes = random.Random(5), above(0.01)
    state = detector(0.01, 0)
    for _ in range(10_000):
        state = state.after(10, binomial(rng, 10, 0.005), stakes)
    errors = 0
    while state.evidence < math.log(100):
        failed = binomial(rng, 10, 0.05)
        state, errors = state.after(10, failed, stakes), errors + failed
    assert errors <= 40


@pytest.mark.parametrize("limit", [0.01, 0.005, 0.003, 0.002])
def test_the_first_calls_of_a_step_are_not_waited_out(limit: float) -> None:
    state, failed = detector(limit, 100_000), 0
    while state.evidence < math.log(100):
        state, failed = state.after(1, 1, above(limit)), failed + 1
    assert failed < 15


@pytest.mark.parametrize("limit", [0.98, 0.985, 0.999, 1e-9])
def test_a_limit_at_the_edge_breaks_nothing(limit: float) -> None:
    state = detector(limit, 1e6).after(100_000, 100_000, above(limit)).after(1, 0, above(limit))
    assert math.isfinite(state.evidence)
    assert math.isfinite(below(10**6, 10**6, limit))


def test_over_all_patterns_of_twelve_errors_the_other_arms_are_not_blamed_on_the_canary() -> None:
    """Each error is the canary's with the largest share that is allowed, which differs from one to the next."""
    shares = [0.2, 0.5, 0.35] * 4
    found = 0.0
    for labels in itertools.product((0, 1), repeat=TWELVE):
        state, chance, fired = Detector(1, TWELVE), 1.0, False
        for share, label in zip(shares, labels, strict=True):
            state = state.after(1, label, skewed(share))
            chance *= share if label else 1 - share
            fired = fired or state.evidence >= math.log(1 / 0.2)
        found += chance if fired else 0.0
    assert 0 < found <= 0.2


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(1, 10))
def test_the_canarys_share_of_errors_grows_with_its_calls(mine: int, theirs: int, ratio: float) -> None:
    share = share_expected(Units(mine, 0, theirs, 0), ratio)
    assert 0 <= share <= 1
    if mine and theirs:
        assert share / (1 - share) == pytest.approx(ratio * mine / theirs)


@pytest.mark.parametrize("rate", [0.3, 0.4])
def test_over_all_patterns_of_twelve_calls_a_rate_at_the_limit_is_not_taken_for_one_below(rate: float) -> None:
    found = 0.0
    for pattern in itertools.product((0, 1), repeat=TWELVE):
        if any(below(n, sum(pattern[:n]), 0.3) >= math.log(1 / BETA) for n in range(1, TWELVE + 1)):
            found += math.prod(rate if failed else 1 - rate for failed in pattern)
    assert 0 < found <= BETA


@pytest.mark.parametrize(("limit", "calls"), [(0.01, 380), (0.005, 770), (0.003, 1280), (0.002, 1925)])
def test_how_many_calls_without_an_error_promote(limit: float, calls: int) -> None:
    needed = trials_needed(0, 0, limit)
    assert needed is not None
    assert 0.985 * calls <= needed <= calls
    assert below(needed, 0, limit) >= math.log(1 / BETA) > below(needed - 1, 0, limit)


@given(st.integers(0, 20_000), st.integers(0, 60), st.sampled_from([0.01, 0.003]))
def test_what_is_said_to_be_needed_is_enough_and_no_more(calls: int, errors: int, limit: float) -> None:
    errors = min(errors, calls)
    needed = trials_needed(calls, errors, limit)
    rate = errors / calls if calls else 0.0
    if needed is None:
        assert rate > limit * 0.75
    elif needed == 0:
        assert below(calls, errors, limit) >= math.log(1 / BETA)
    else:
        assert below(calls + needed, errors + needed * rate, limit) >= math.log(1 / BETA)
        assert below(calls + needed - 1, errors + (needed - 1) * rate, limit) < math.log(1 / BETA)


@pytest.mark.parametrize(
    ("counts", "trials"),
    [
        ({}, (0, 0)),
        ({"calls": 10}, (10, 0)),
        ({"calls": 10, "errors": 2, "raw_errors": 2}, (10, 2)),
        ({"calls": 60, "errors": 1, "raw_errors": 60}, (1, 1)),
        ({"calls": 60, "errors": 1, "raw_errors": 21}, (40, 1)),
        ({"calls": 1, "errors": 3, "raw_errors": 3}, (3, 3)),
    ],
)
def test_a_repeated_failure_is_neither_an_error_nor_a_success(counts: dict[str, int], trials: tuple[int, int]) -> None:
    assert units(counts) == trials


@pytest.mark.parametrize(
    ("counted", "says"),
    [
        (Units(9, 9, 40, 38), 1),
        (Units(9, 9, 40, 0), -1),
        (Units(9, 9, 0, 0), 0),
        (Units(319, 17, 2870, 9), -1),
        (Units(319, 17, 2870, 150), 1),
        (Units(1000, 1, 500, 400), 0),
    ],
)
def test_the_other_arms_calls_tell_whether_they_fail_too(counted: Units, says: int) -> None:
    found = in_common(counted, 0.01)
    assert found > math.log(30) if says > 0 else found < -math.log(30) if says < 0 else found == 0.0


def test_the_onset_is_when_it_began() -> None:
    found: tuple[Onset, ...] = ()
    for at in range(0, 36_000, 10):
        errors = 1 if at % 2000 == 1000 else 0
        found = onsets(found, at, Units(10, errors, 90, 0), {"connect": errors} if errors else {}, above(0.01))
    for at in range(36_000, 36_300, 10):
        found = onsets(found, at, Units(10, 2, 90, 1), {"connect": 1, "stream_cut": 1}, above(0.01))
    onset = likeliest(found)
    assert onset.since == 36_000
    assert onset.counted == Units(300, 60, 2700, 30)
    assert onset.classes == {"connect": 30, "stream_cut": 30}


def test_nothing_has_begun_where_nothing_failed() -> None:
    assert likeliest(()).since is None
    assert likeliest(onsets((), 0, Units(100, 0, 0, 0), {}, above(0.01))).since is None


def test_one_error_of_a_session_counts_in_a_minute() -> None:
    seen = Seen()
    assert seen.first("parallax", "s-1", 60)
    assert not seen.first("parallax", "s-1", 119)
    assert seen.first("parallax", "s-2", 119)
    assert seen.first("openai", "s-1", 119), "each arm has its own"
    assert seen.first("parallax", "s-1", 120)
    assert not seen.first("parallax", "s-1", 60), "a clock that goes back stays in its minute"


def test_what_is_remembered_of_sessions_is_bounded() -> None:
    seen = Seen(most=2)
    assert all(seen.first("a", str(number), 0) for number in range(5))
    assert not seen.first("a", "0", 0)
    assert seen.first("a", "4", 0), "beyond the bound each error counts"
