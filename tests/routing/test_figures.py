"""Figures of an arm: what they say, that they add up in any order, and that they take a bounded place."""

import json
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.figures import ArmFigures, Figures, merged, together
from routing.histogram import BUCKETS, bounds, bucket

DAY = 86_400
NOON = 1_763_726_400
"""2025-11-21, 12:00 UTC."""


@dataclass(frozen=True)
class Call:
    at: float = NOON
    seconds: float = 1.0
    error: str | None = None
    first_token: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int | None = None

    def count(self, figures: ArmFigures) -> None:
        figures.observe(
            self.at,
            self.seconds,
            error=self.error,
            first_token=self.first_token,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cost=self.cost,
        )


CALLS = st.builds(
    Call,
    at=st.integers(NOON - 40 * DAY, NOON).map(float),
    seconds=st.floats(0, 100),
    error=st.sampled_from([None, None, None, "connect", "stream_cut"]),
    first_token=st.none() | st.floats(0, 50),
    input_tokens=st.integers(0, 10**6),
    output_tokens=st.integers(0, 10**5),
    cost=st.none() | st.integers(0, 10**11),
)


def counted(calls: Sequence[Call], since: float = NOON - 41 * DAY) -> ArmFigures:
    """In the order in which they ended."""
    figures = ArmFigures(since)
    for call in sorted(calls, key=lambda call: call.at):
        call.count(figures)
    return figures


def test_calls_make_rates_and_percentiles() -> None:
    calls = [Call(seconds=number / 100, first_token=number / 1000) for number in range(1, 101)]
    failures = [Call(error="connect"), Call(error="connect"), Call(error="stream_cut")]
    arm = counted([*calls, *failures])
    for _ in range(2):
        arm.overflowed(NOON)
    told = arm.total
    assert (told.calls, told.failed, told.overflow) == (103, 3, 2)
    assert told.errors == {"connect": 2, "stream_cut": 1}
    assert told.error_rate == 3 / 103
    assert told.availability == 100 / 105
    for histogram, unit in ((told.latency, 10_000), (told.first_token, 1000)):
        for percent in (50, 95, 99):
            assert histogram.percentile(percent) == pytest.approx(percent * unit, rel=0.032)


def test_a_call_that_fails_at_once_does_not_make_an_arm_quick() -> None:
    assert counted([Call(seconds=2), Call(seconds=0.001, error="connect")]).total.latency.total == 1


def test_tokens_per_second_are_those_of_the_time_of_writing() -> None:
    streamed = Call(seconds=3, first_token=1, output_tokens=200)
    assert counted([streamed]).total.tokens_per_second == 100
    assert counted([streamed, Call(seconds=2, output_tokens=0)]).total.tokens_per_second == 50
    assert counted([replace(streamed, error="stream_cut")]).total.tokens_per_second is None


def test_costs_are_exact_and_of_calls_that_have_been_answered() -> None:
    paid = [Call(cost=100, input_tokens=30, output_tokens=10), Call(cost=101, input_tokens=1)]
    told = counted([*paid, Call(cost=1, error="stream_cut"), Call(cost=None, input_tokens=999)]).total
    assert told.cost == 202
    assert told.cost_per_call == 101
    assert told.cost_per_mtok == round(202e6 / 41)
    assert (told.priced, told.priced_tokens, told.input_tokens) == (2, 41, 1030)


def test_nothing_is_known_of_nothing() -> None:
    told = ArmFigures(NOON).total
    assert told == Figures() == merged([])
    rates = (told.error_rate, told.availability, told.tokens_per_second, told.cost_per_call, told.cost_per_mtok)
    assert rates == (None,) * 5


def test_a_duration_that_cannot_be_is_counted_as_the_nearest_that_can() -> None:
    told = counted([Call(seconds=-1), Call(seconds=1e9), Call(seconds=1, first_token=5), Call(first_token=-5)]).total
    assert told.latency.total == 4
    assert [low for low, _, _ in told.first_token] == [0, bounds(bucket(1_000_000))[0]]
    assert told.generating >= 0


@given(st.lists(st.lists(CALLS, max_size=12), max_size=4))
def test_figures_of_parts_added_are_the_figures_of_all(parts: list[list[Call]]) -> None:
    whole = counted([call for part in parts for call in part]).total
    assert merged(counted(part).total for part in parts) == whole
    assert merged(counted(part).total for part in reversed(parts)) == whole


@given(st.lists(st.lists(CALLS, max_size=12), max_size=4))
def test_gateways_together_know_what_one_would(replicas: list[list[Call]]) -> None:
    one = counted([call for calls in replicas for call in calls])
    several = together([counted(calls) for calls in replicas])
    assert several.total == one.total
    assert merged(slot.figures for slot in several.slots()) == one.total
    assert several.timeline(0, NOON + 60, 7 * DAY) == one.timeline(0, NOON + 60, 7 * DAY)


@given(st.lists(CALLS, max_size=20), st.lists(CALLS, max_size=5))
def test_what_went_through_json_is_the_same_and_can_be_counted_on(calls: list[Call], more: list[Call]) -> None:
    arm = counted(calls)
    again = ArmFigures.from_json(json.loads(json.dumps(arm.to_json())))
    assert (again.since, again.total, again.slots()) == (arm.since, arm.total, arm.slots())
    for call in sorted(more, key=lambda call: call.at):
        replace(call, at=call.at + 40 * DAY).count(again)
    assert again.total == merged((arm.total, counted(more).total))
    starts = [(slot.start, slot.seconds) for slot in again.slots()]
    assert len(starts) == len(set(starts))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"since": None},
        {"total": {}},
        {"slots": [[0, 61, Figures().to_json()]]},
        {"slots": [[30, 60, Figures().to_json()]]},
        {"slots": [[0, 60, {**Figures().to_json(), "calls": -1}]]},
        {"slots": [[0, 60, {**Figures().to_json(), "calls": True}]]},
        {"slots": [[0, 60, {**Figures().to_json(), "errors": {"connect": 1}}]]},
        {"slots": [[0, 60, {**Figures().to_json(), "squares": "-1"}]]},
        {"slots": [[0, 60, {**Figures().to_json(), "latency": []}]]},
        {"slots": [0]},
        {"slots": None},
    ],
)
def test_what_are_no_figures_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"are no figures|is no histogram|another version"):
        ArmFigures.from_json({**counted([]).to_json(), **change})
    with pytest.raises(ValueError, match="are no figures"):
        ArmFigures.from_json([])


def test_calls_are_known_by_the_minute_for_a_day_then_by_the_hour_then_by_the_day() -> None:
    first = Call(at=NOON + 90.0)
    arm = counted([first, replace(first, at=NOON + 150.0)])
    assert [(slot.start, slot.seconds) for slot in arm.slots()] == [(NOON + 60, 60), (NOON + 120, 60)]
    for days, slots in (
        (0.99, [(NOON + 60, 60), (NOON + 120, 60)]),
        (1.01, [(NOON, 3600)]),
        (29.9, [(NOON, 3600)]),
        (30.2, [(NOON - 12 * 3600, DAY)]),
        (179.0, [(NOON - 12 * 3600, DAY)]),
        (182.0, []),
    ):
        late = counted([first, replace(first, at=NOON + 150.0), Call(at=NOON + days * DAY)])
        assert [(slot.start, slot.seconds) for slot in late.slots()[:-1]] == slots
        assert late.total.calls == 3


def test_a_window_is_of_the_slots_that_it_touches() -> None:
    arm = counted([Call(at=NOON + 60.0 * minute) for minute in range(10)])
    assert arm.window(NOON).calls == 10
    assert arm.window(NOON + 290, NOON + 301).calls == 2
    assert arm.window(NOON + 600).calls == 0
    assert [(slot.start - NOON, slot.seconds, slot.figures.calls) for slot in arm.timeline(0, NOON + 480, 300)] == [
        (0, 300, 5),
        (300, 300, 3),
    ]


def test_a_clock_turned_back_loses_no_call() -> None:
    arm = ArmFigures(NOON)
    for at in (NOON + 100, NOON + 10, NOON - DAY, NOON + 170, NOON + 110, NOON + 200):
        arm.observe(at, 1.0)
    assert arm.total.calls == 6
    assert sum(slot.figures.calls for slot in arm.slots()) == 6


def test_the_place_they_take_has_a_bound_however_long_the_gateway_runs() -> None:
    chance = random.Random(3)
    arm = ArmFigures(0)
    tracemalloc.start()
    sizes = []
    for minutes in (range(1500), range(1500, 1900)):
        for minute in minutes:
            arm.observe(minute * 60, chance.lognormvariate(0, 1.5), first_token=0.3, output_tokens=5, cost=10**6)
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[0] < 3_000_000
    assert sizes[1] < sizes[0] * 1.1
    for day in range(2, 700):
        arm.observe(day * DAY + 5, 1.0)
    assert len(arm.slots()) < 181 + 30 + 2
    assert arm.total.calls == 1900 + 698


def test_the_buckets_of_a_histogram_are_few_however_calls_vary() -> None:
    arm = ArmFigures(0)
    for place in range(20_000):
        arm.observe(place, 1e-6 * 1.0012**place)
    assert arm.total.latency.total == 20_000
    assert len(arm.total.latency.indices) <= BUCKETS


def test_a_copy_stays_as_it_is_while_calls_are_counted() -> None:
    figures = counted([Call(at=NOON - 3600), Call(error="connect")])
    copied = figures.copied()
    before = copied.to_json()
    assert before == figures.to_json()
    for call in (Call(first_token=0.5), Call(error="connect"), Call(at=NOON + 120), Call(at=NOON + 2 * DAY)):
        call.count(figures)
    figures.overflowed(NOON + 2 * DAY)
    assert copied.to_json() == before
    assert (copied.total.calls, figures.total.calls) == (2, 6)


def test_figures_begin_with_the_oldest_slot_that_is_kept() -> None:
    assert ArmFigures(NOON).began is None
    figures = ArmFigures(NOON - 50 * DAY)
    Call(at=NOON + 5).count(figures)
    assert figures.began == NOON
    Call(at=NOON + 40 * DAY).count(figures)
    assert figures.began == NOON // DAY * DAY == figures.slots()[0].start


def test_a_call_whose_duration_says_nothing_is_counted_and_not_timed() -> None:
    figures = ArmFigures(NOON)
    figures.observe(NOON, None, input_tokens=3)
    told = figures.total
    assert (told.calls, told.failed, told.answered, told.latency.total, told.generating) == (1, 0, 1, 0, 0)
