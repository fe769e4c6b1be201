"""`routing.promotion`: what is missing until a canary may grow."""

import pytest

from config.settings import GateSettings, RolloutSettings
from routing.promotion import Missing, missing
from tests.routing.buckets import plan

ENOUGH = {"calls": 5000, "cost": 5_000_000}


def lacking(
    settings: RolloutSettings, mine: dict[str, int], theirs: dict[str, int] | None = None, lasted: float = 600.0
) -> list[Missing]:
    return list(missing(settings, settings.steps[0], lasted, mine, theirs or {"calls": 45_000}, 0.5))


def test_nothing_is_missing_to_a_good_canary_after_its_time() -> None:
    assert lacking(plan(0.01), ENOUGH) == []


def test_time_is_missing() -> None:
    assert lacking(plan(0.01), ENOUGH, lasted=541.0) == [Missing("time", "59 s more at this step", 59.0)]


def test_calls_are_missing_at_the_rate_at_which_they_fail() -> None:
    [found] = lacking(plan(0.01), {"calls": 600, "errors": 3, "raw_errors": 3})
    assert found.what == "calls"
    assert found.amount is not None
    assert 1000 < found.amount < 3000
    assert found.text == (
        f"needs ~{int(found.amount):,} more calls, about 1 h 13 min at the present rate, if no more than 0.5 % fail"
    )


def test_no_number_of_calls_helps_a_canary_at_its_limit() -> None:
    [found] = lacking(plan(0.01), {"calls": 10_000, "errors": 99, "raw_errors": 99})
    assert found == Missing(
        "calls", "0.99 % of 10,000 calls failed, too close to 1 % for any number of calls to show it is below"
    )


def test_a_step_without_calls_is_never_passed() -> None:
    [found] = lacking(plan(0.01), {}, lasted=1e9)
    assert found == Missing("calls", "needs ~380 more calls, about 12 min at the present rate", 380)


@pytest.mark.parametrize(("slow", "passes"), [(0, True), (150, True), (250, False), (400, False)])
def test_slow_first_tokens_have_to_be_shown_to_be_few(slow: int, passes: bool) -> None:
    found = lacking(plan(0.01, gates=GateSettings(max_first_token=2.0)), {**ENOUGH, "slow": slow})
    assert [each.what for each in found] == ([] if passes else ["first_token"])
    assert lacking(plan(0.01), {**ENOUGH, "slow": slow}) == []


@pytest.mark.parametrize(("cost", "passes"), [(40_000_000, True), (45_000_000, True), (80_000_000, False)])
def test_a_successful_call_may_cost_so_many_times_what_it_costs_elsewhere(cost: int, passes: bool) -> None:
    settings = plan(0.01, gates=GateSettings(max_cost_ratio=1.0))
    mine = {"calls": 5000, "cost": cost // 10}
    found = lacking(settings, mine, {"calls": 46_000, "raw_errors": 1000, "cost": 45_000_000})
    assert [each.what for each in found] == ([] if passes else ["cost"])


def test_cost_is_missing_where_nothing_can_be_compared() -> None:
    settings = plan(0.01, gates=GateSettings(max_cost_ratio=1.0))
    assert [each.what for each in lacking(settings, ENOUGH, {"openai": 1})] == ["cost"]
    free = lacking(settings, ENOUGH, {"calls": 10})
    assert free[0].text == "a successful call costs something, and nothing on the other arms, where 1 times may be"
    assert lacking(settings, {"calls": 5000}, {"calls": 10}) == []


def test_a_canary_of_unknown_price_is_not_taken_for_one_that_costs_nothing() -> None:
    settings = plan(0.01, gates=GateSettings(max_cost_ratio=1.0))
    others = {"calls": 46_000, "cost": 46_000_000}
    (found,) = lacking(settings, {"calls": 5000, "unpriced": 5000}, others)
    assert found.what == "cost"
    assert found.text.endswith("could be compared: the price of the canary is not known, see targets[].price")
    assert lacking(settings, {"calls": 5000, "unpriced": 1000, "cost": 3_000_000}, others) == [], "4000 tell enough"
    (found,) = lacking(settings, {"calls": 5000, "unpriced": 1000, "cost": 5_000_000}, others)
    assert "1.25 times as much" in found.text


@pytest.mark.parametrize(("overflow", "absent", "passes"), [(50, 0, True), (51, 0, False), (30, 21, False)])
def test_few_calls_may_find_no_room_or_nobody_there(overflow: int, absent: int, passes: bool) -> None:
    found = lacking(plan(0.01), {"calls": 4950, "overflow": overflow, "absent": absent})
    assert [each.what for each in found] == ([] if passes else ["overflow"])


def test_a_person_is_missing() -> None:
    [found] = lacking(plan(0.01, approval=["finance", "admin"]), ENOUGH)
    assert found == Missing("approval", "somebody with the role finance or admin has to promote it")


def test_a_window_wants_its_calls_and_its_rate() -> None:
    settings = plan(0.01, mode="window", min_calls=1000)
    assert [each.text for each in lacking(settings, {"calls": 999})] == [
        "needs 1 more calls, about 2 s at the present rate"
    ]
    assert lacking(settings, {"calls": 1000, "errors": 1, "raw_errors": 10}) == []
    assert [each.what for each in lacking(settings, {"calls": 1000, "errors": 1, "raw_errors": 11})] == ["calls"]
