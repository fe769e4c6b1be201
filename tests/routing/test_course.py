"""What follows from a route's course, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.course import (
    BUCKET,
    LAST_EPOCH,
    LEASE,
    SET_BACK,
    Course,
    behind,
    bucket_at,
    checked,
    counted,
    lapsed,
    weights,
)

CONFIGURED = {"openai": 90.0, "parallax": 10.0}
STEERED = Course(1, weights={"openai": 70.0, "parallax": 30.0}, instead_of=CONFIGURED)
SECOND = 1_000_000_000


def test_a_count_is_named_by_its_arm_and_what_it_counts() -> None:
    assert counted("parallax", "error:stream_cut") == "parallax|error:stream_cut"


def test_weights_are_as_configured_until_somebody_sets_others() -> None:
    assert weights(None, CONFIGURED) == CONFIGURED
    assert weights(Course(3, rollout={"state": "DRAFT"}), CONFIGURED) == CONFIGURED
    assert weights(STEERED, CONFIGURED) == {"openai": 70.0, "parallax": 30.0}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(["openai", "parallax", "x"]), each),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["epoch", "weights", "instead_of", "rollout", "by", "at", "comment", "x"]), _json),
    st.integers(0, LAST_EPOCH),
)
def test_whatever_is_kept_of_a_course_the_weights_are_some_and_what_is_wrong_is_said(
    facts: dict[str, Any], epoch: int
) -> None:
    with suppress(ValueError):
        assert 0 <= checked(facts).epoch <= LAST_EPOCH
    course = checked({**facts, "epoch": epoch})
    found = weights(course, CONFIGURED)
    assert found.keys() == CONFIGURED.keys()
    assert all(math.isfinite(each) and each >= 0 for each in found.values())
    assert sum(found.values()) > 0
    assert course.rollout is None or isinstance(course.rollout, Mapping)
    assert (course.weights is None) or not course.trouble
    known = facts.keys() & {"weights", "rollout", "by", "at", "comment"}
    assert course.trouble == "" or known


@pytest.mark.parametrize(
    "changed", [{"openai": 80.0, "parallax": 20.0}, {"openai": 90.0, "claude": 10.0}, {"openai": 100.0}]
)
def test_whoever_writes_other_weights_into_the_configuration_has_the_last_word(changed: dict[str, float]) -> None:
    assert weights(STEERED, changed) == changed


def test_a_canary_is_given_no_new_sessions_when_nothing_was_heard_for_fifteen_seconds() -> None:
    heard = 1000 * SECOND
    assert not lapsed(heard, heard)
    assert not lapsed(heard, heard + int(LEASE) * SECOND)
    assert lapsed(heard, heard + int(LEASE) * SECOND + 1)


_courses = st.dictionaries(st.sampled_from("abc"), st.integers(1, 4).map(Course))


@given(_courses, _courses)
def test_what_is_in_force_never_goes_back_whatever_a_server_tells(
    known: dict[str, Course], told: dict[str, Course]
) -> None:
    lost = behind(known, told)
    after = told | lost
    assert after.keys() == known.keys() | told.keys()
    for route, course in after.items():
        assert course.epoch == max(each[route].epoch for each in (known, told) if route in each)
    assert all(lost[route] is known[route] for route in lost)
    assert not behind(known, after)


@given(st.lists(st.integers(-90, 90), max_size=30), st.integers(0, 10**6))
def test_no_clock_that_goes_back_a_little_opens_a_closed_bucket(steps: list[int], now: int) -> None:
    newest = latest = 0
    for step in steps:
        now = max(0, now + step)
        latest = max(latest, now)
        at = bucket_at(now, newest)
        assert at % BUCKET == 0
        assert at >= now - now % BUCKET
        if at < newest:
            assert newest > now + SET_BACK
        newest = at


def test_a_clock_that_was_far_ahead_is_not_followed_for_ever() -> None:
    assert bucket_at(1005, 1060) == 1060
    assert bucket_at(1005, 1070) == 1000
