"""Histograms: within 3.2 % of the exact percentile, whatever is observed, and the same however it is put together."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.histogram import BUCKETS, LONGEST, Histogram, bounds, bucket

DURATIONS = st.lists(
    st.one_of(st.integers(0, LONGEST), st.integers(0, 5000), st.integers(200_000, 300_000)), min_size=1, max_size=300
)


def exact(durations: list[int], percent: int) -> int:
    """By nearest rank."""
    return sorted(durations)[max(1, -(-len(durations) * percent // 100)) - 1]


@given(st.integers(0, LONGEST))
def test_a_duration_lies_in_its_bucket_and_the_bucket_is_narrow(duration: int) -> None:
    low, high = bounds(bucket(duration))
    assert low <= duration < high
    assert high - low <= max(1, low / 32)


def test_buckets_follow_each_other_without_a_gap_or_an_overlap() -> None:
    ends = [bounds(index) for index in range(BUCKETS)]
    assert ends[0][0] == 0
    assert ends[-1][1] == LONGEST + 1
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ends))
    assert [bucket(low) for low, _ in ends] == list(range(BUCKETS))


@given(DURATIONS, st.integers(1, 100))
def test_a_percentile_is_within_a_thirtysecond_of_the_exact_one(durations: list[int], percent: int) -> None:
    found, wanted = Histogram.observed(durations).percentile(percent), exact(durations, percent)
    assert found is not None
    assert abs(found - wanted) <= wanted / 32


@given(st.lists(DURATIONS, max_size=5))
def test_put_together_is_observed_together(parts: list[list[int]]) -> None:
    counts: dict[int, int] = {}
    for part in parts:
        Histogram.observed(part).add_to(counts)
    assert Histogram.of(counts) == Histogram.observed([each for part in parts for each in part])


@given(DURATIONS)
def test_what_went_through_json_is_the_same(durations: list[int]) -> None:
    histogram = Histogram.observed(durations)
    assert Histogram.from_json(json.loads(json.dumps(histogram.to_json()))) == histogram


@given(DURATIONS, st.lists(st.integers(0, LONGEST), max_size=6, unique=True).map(sorted))
def test_bins_hold_everything_once_and_are_right_up_to_a_bucket(durations: list[int], edges: list[int]) -> None:
    bins = Histogram.observed(durations).rebinned(edges)
    assert sum(bins) == len(durations)
    for place, edge in enumerate(edges):
        surely = sum(each * 33 < edge * 32 for each in durations)
        perhaps = sum(each * 32 <= edge * 33 + 32 for each in durations)
        assert surely <= sum(bins[: place + 1]) <= perhaps


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile(50) is None
    assert Histogram.observed([7]).at_rank(0) is None
    assert Histogram.observed([7]).at_rank(2) is None
    assert list(Histogram()) == []


def test_what_is_longer_than_the_longest_counts_as_that() -> None:
    histogram = Histogram.observed([LONGEST * 9, -5])
    assert [(low, count) for low, _, count in histogram] == [(0, 1), (bounds(BUCKETS - 1)[0], 1)]


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        [[1]],
        [[1], [2], []],
        [[2, 1], [1, 1]],
        [[1, 1], [1, 1]],
        [[BUCKETS], [1]],
        [[1], [0]],
        [[1], [-1]],
        [[1.5], [1]],
        [["1"], [1]],
        [[1, 2], [1]],
        {"0": 1},
    ],
)
def test_what_is_no_histogram_is_refused(facts: object) -> None:
    with pytest.raises(ValueError, match="is no histogram"):
        Histogram.from_json(facts)
