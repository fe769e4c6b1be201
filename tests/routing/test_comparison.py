"""Go, no-go, not enough data: each answer where it belongs, with true numbers, and seldom the wrong one."""

import itertools
import random
from collections.abc import Callable

import pytest

from routing.comparison import (
    Answer,
    Comparison,
    Criteria,
    Finding,
    Question,
    Side,
    added_p95,
    availability,
    compare,
    saving,
)
from routing.figures import ArmFigures, Figures
from routing.histogram import Histogram


def figures(calls: int, errors: int = 0, overflow: int = 0) -> Figures:
    return Figures(calls=calls, errors={"connect": errors} if errors else {}, overflow=overflow)


def measured(
    calls: int, seconds: Callable[[], float] = lambda: 1.0, cost: Callable[[], int | None] = lambda: 100
) -> Figures:
    arm = ArmFigures(0)
    for _ in range(calls):
        arm.observe(0, seconds(), first_token=0.2, input_tokens=10, output_tokens=10, cost=cost())
    return arm.total


# --- availability ----------------------------------------------------------------------------------------------------


def test_what_an_arm_rejects_and_the_baseline_takes_is_not_answered() -> None:
    everything = Figures(calls=782, rejected=782)
    assert everything.availability is None, "nobody can say"
    assert availability(everything, 0.995).answer is Answer.NOT_ENOUGH_DATA
    found = availability(everything, 0.995, Figures(calls=280))
    assert (found.answer, found.value) == (Answer.NO_GO, 0.0)
    found = availability(Figures(calls=10_000, rejected=1000), 0.995, Figures(calls=5000, rejected=250))
    assert (found.answer, found.value) == (Answer.NO_GO, 9000 / 9500)


def test_mistakes_that_every_arm_rejects_are_no_calls_that_are_not_answered() -> None:
    found = availability(Figures(calls=5000, rejected=500), 0.995, Figures(calls=5000, rejected=490))
    assert (found.answer, found.value) == (Answer.GO, 1.0)
    assert availability(Figures(calls=5000, rejected=500), 0.995, Figures()).answer is Answer.GO


@pytest.mark.parametrize(
    ("arm", "answer"),
    [
        (figures(0), Answer.NOT_ENOUGH_DATA),
        (figures(700), Answer.NOT_ENOUGH_DATA),
        (figures(800), Answer.GO),
        (figures(10_000, errors=30), Answer.GO),
        (figures(10_000, errors=45), Answer.NOT_ENOUGH_DATA),
        (figures(10_000, errors=50), Answer.NOT_ENOUGH_DATA),
        (figures(10_000, errors=80), Answer.NO_GO),
        (figures(10_000, overflow=80), Answer.NO_GO),
        (figures(3, errors=3), Answer.NO_GO),
    ],
)
def test_availability_is_answered_when_its_whole_interval_is_on_one_side(arm: Figures, answer: Answer) -> None:
    found = availability(arm, 0.995)
    assert found.answer is answer
    assert found.value == arm.availability
    if found.low is not None and found.high is not None and found.value is not None:
        assert found.low <= found.value <= found.high
        assert (found.low > 0.995, found.high < 0.995) == (answer is Answer.GO, answer is Answer.NO_GO)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.003, 0.008, 0.01])
def test_the_calls_said_to_be_missing_are_those_that_are(share: float) -> None:
    found = availability(_scaled(500, share), 0.995)
    share = round(500 * share) / 500
    assert found.answer is Answer.NOT_ENOUGH_DATA
    assert found.missing is not None
    then = 500 + found.missing
    assert availability(_scaled(round(then * 1.3), share), 0.995).answer is (
        Answer.GO if share < 0.005 else Answer.NO_GO
    )
    assert availability(_scaled(round(then * 0.8), share), 0.995).answer is Answer.NOT_ENOUGH_DATA


def _scaled(calls: int, share: float) -> Figures:
    return figures(calls, errors=round(calls * share))


def test_exactly_at_the_limit_no_number_of_calls_is_named() -> None:
    found = availability(figures(1000, errors=5), 0.995)
    assert (found.answer, found.missing) == (Answer.NOT_ENOUGH_DATA, None)


def test_before_the_first_call_it_says_how_many_would_do_without_an_error() -> None:
    missing = availability(Figures(), 0.995).missing
    assert missing is not None
    assert availability(figures(missing), 0.995).answer is Answer.GO
    assert availability(figures(missing - 2), 0.995).answer is Answer.NOT_ENOUGH_DATA


# --- latency ---------------------------------------------------------------------------------------------------------


def test_added_latency_is_answered_by_how_far_the_percentiles_are_apart() -> None:
    chance = random.Random(1)
    base = measured(4000, lambda: chance.uniform(0.5, 1.5))
    for more, answer in ((-0.3, Answer.GO), (0.05, Answer.GO), (0.15, Answer.NOT_ENOUGH_DATA), (0.3, Answer.NO_GO)):
        arm = measured(4000, lambda more=more: more + chance.uniform(0.5, 1.5))  # type: ignore[misc]
        found = added_p95(arm, base, 0.150)
        assert found.answer is answer, more
        assert found.value == pytest.approx(more, abs=0.03)
        assert found.low is not None
        assert found.high is not None
        assert found.low < more < found.high


def test_added_latency_of_few_calls_says_whose_are_missing() -> None:
    few, many = measured(20), measured(500)
    found = added_p95(few, many, 0.15)
    assert found == Finding(Question.ADDED_P95, 0.15, Answer.NOT_ENOUGH_DATA, found.value, missing=54, of=Side.ARM)
    assert found.value == pytest.approx(0, abs=0.01)
    assert (added_p95(many, few, 0.15).of, added_p95(many, few, 0.15).missing) == (Side.BASELINE, 54)
    assert added_p95(Figures(), few, 0.15).value is None
    assert added_p95(measured(74), many, 0.15).answer is Answer.GO


def test_wide_intervals_ask_for_more_calls_of_the_wider_one() -> None:
    chance = random.Random(2)
    base = measured(20_000, lambda: chance.lognormvariate(0, 0.6))
    found = added_p95(measured(150, lambda: chance.lognormvariate(0.03, 0.6)), base, 0.15)
    assert (found.answer, found.of) == (Answer.NOT_ENOUGH_DATA, Side.ARM)
    assert found.missing is not None
    assert found.missing > 0


# --- saving ----------------------------------------------------------------------------------------------------------


def test_saving_is_answered_by_the_ratio_of_costs() -> None:
    chance = random.Random(4)
    base = measured(2000, cost=lambda: chance.randrange(500, 1500))
    for share, answer in (
        (0.3, Answer.GO),
        (0.7, Answer.GO),
        (0.8, Answer.NOT_ENOUGH_DATA),
        (0.9, Answer.NO_GO),
        (1.5, Answer.NO_GO),
    ):
        arm = measured(2000, cost=lambda share=share: round(share * chance.randrange(500, 1500)))  # type: ignore[misc]
        found = saving(arm, base, 0.20)
        assert found.answer is answer, share
        assert found.value == pytest.approx(1 - share, abs=0.04)
        assert found.low is not None
        assert found.high is not None
        assert found.low < 1 - share < found.high


def test_a_saving_from_few_calls_or_without_a_price_is_not_known() -> None:
    base = measured(100)
    assert saving(measured(10, cost=lambda: 10), base, 0.2).missing == 20
    unpriced = saving(measured(100, cost=lambda: None), base, 0.2)
    assert (unpriced.answer, unpriced.value, unpriced.missing) == (Answer.NOT_ENOUGH_DATA, None, None)
    assert unpriced.unpriced == (Side.ARM,)
    neither = saving(measured(100, cost=lambda: None), measured(100, cost=lambda: None), 0.2)
    assert neither.unpriced == (Side.ARM, Side.BASELINE)
    assert saving(figures(100), base, 0.2).unpriced == (), "counting tokens is free of charge, and has no price"
    assert saving(base, Figures(), 0.2).of is Side.BASELINE


def test_an_arm_that_costs_nothing_saves_all_and_one_cannot_save_from_nothing() -> None:
    free, paid = measured(100, cost=lambda: 0), measured(100)
    assert (saving(free, paid, 0.2).answer, saving(free, paid, 0.2).value) == (Answer.GO, 1.0)
    assert saving(paid, free, 0.2).answer is Answer.NO_GO
    assert saving(free, free, 0.2).answer is Answer.NO_GO


# --- together --------------------------------------------------------------------------------------------------------


def test_one_no_go_decides_and_one_open_question_keeps_the_answer_open() -> None:
    good, base = measured(1000, cost=lambda: 40), measured(1000)
    comparison = compare(good, base, seconds=3600)
    assert [each.answer for each in comparison.findings] == [Answer.GO] * 3
    assert comparison.answer is Answer.GO
    assert compare(good, measured(50), seconds=3600).answer is Answer.NOT_ENOUGH_DATA
    assert compare(base, good, seconds=3600).answer is Answer.NO_GO
    strict = Criteria(added_p95=-0.1, saving=0.7, availability=0.9999)
    found = compare(good, base, seconds=3600, criteria=strict)
    assert [each.answer for each in found.findings] == [Answer.NO_GO, Answer.NO_GO, Answer.NOT_ENOUGH_DATA]
    assert [each.limit for each in found.findings] == [-0.1, 0.7, 0.9999]


def test_a_month_is_projected_from_the_calls_of_all_arms_in_exact_amounts() -> None:
    arm, base, third = measured(100, cost=lambda: 40), measured(300), measured(20, cost=lambda: 1000)
    comparison = compare(arm, base, [third], seconds=86_400)
    month = comparison.month
    assert month.calls == 420 * 30
    assert (month.baseline, month.arm, month.saving) == (1_260_000, 504_000, 756_000)
    assert month.present == 30 * (100 * 40 + 300 * 100 + 20 * 1000)
    assert comparison.saving_per_call == pytest.approx(0.6)
    assert comparison.saving_per_mtok == pytest.approx(0.6)


def test_a_month_with_an_arm_of_unknown_price_has_no_cost() -> None:
    priced, unpriced = measured(100), measured(100, cost=lambda: None)
    month = compare(unpriced, priced, seconds=86_400).month
    assert (month.baseline, month.arm, month.saving, month.present) == (30 * 200 * 100, None, None, None)
    assert compare(priced, priced, [unpriced], seconds=86_400).month.present is None
    costs = itertools.cycle([100, None])
    half = compare(measured(100, cost=lambda: next(costs)), Figures(), seconds=86_400).month
    assert half.present == 30 * 100 * 100, "those that have no price are as dear as the others"


def test_nothing_compared_with_nothing_is_not_enough() -> None:
    comparison = compare(Figures(), Figures(), seconds=0)
    assert comparison.answer is Answer.NOT_ENOUGH_DATA
    assert (comparison.month.baseline, comparison.month.saving, comparison.month.present) == (None, None, 0)
    assert (comparison.latency.p50, comparison.saving_per_call) == (None, None)


def test_arms_at_the_limits_are_seldom_called_good_and_good_ones_seldom_bad() -> None:
    """200 arms that answer 99.5 %, save 20 % and add 150 ms: 2.5 % of each go is what 95 % confidence allows."""
    chance = random.Random(11)

    def base() -> Figures:
        return _sampled(chance, 600, 0.0, 1000, 0.0)

    at_limit = [compare(_sampled(chance, 600, 0.005, 800, 0.15), base(), seconds=1) for _ in range(100)]
    better = [compare(_sampled(chance, 600, 0.002, 500, 0.0), base(), seconds=1) for _ in range(100)]
    for place in range(3):
        assert _answers(at_limit, place, Answer.GO) <= 9
        assert _answers(at_limit, place, Answer.NO_GO) <= 9
        assert _answers(better, place, Answer.NO_GO) <= 1


def _sampled(chance: random.Random, calls: int, failing: float, cost: int, added: float) -> Figures:
    """Such an arm, put together without counting its calls one by one."""
    errors = sum(chance.random() < failing for _ in range(calls))
    costs = [round(cost * chance.uniform(0.2, 1.8)) for _ in range(calls - errors)]
    durations = [round(1e6 * (added + chance.expovariate(2))) for _ in range(calls - errors)]
    return Figures(
        calls=calls,
        errors={"connect": errors},
        latency=Histogram.observed(durations),
        cost=sum(costs),
        squares=sum(each * each for each in costs),
        priced=len(costs),
    )


def _answers(comparisons: list[Comparison], place: int, answer: Answer) -> int:
    return sum(each.findings[place].answer is answer for each in comparisons)
