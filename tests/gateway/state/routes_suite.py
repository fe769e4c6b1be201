"""What every store of courses and counts promises. A test file inherits the suite and says, by its fixture `stage`,
which store.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import pytest

from policies.money import MOST
from routing.course import BUCKET, CALLS, ERRORS, Bucket, Course, RouteStore, counted, lapsed

AT = 1_763_700_000
"""Unix seconds when tests begin: the beginning of a bucket."""
CONFIGURED = {"openai": 90.0, "parallax": 10.0}
CALL = counted("parallax", CALLS)
ERROR = counted("parallax", ERRORS)
EVER = 2**40

_numbers = itertools.count()


class Stage(Protocol):
    """A store, and the time that passes for it."""

    @property
    def store(self) -> RouteStore: ...

    def advance(self, seconds: float) -> None:
        """Lets time pass, or sets the clock back."""
        ...

    async def restart(self) -> None:
        """The process that has the store ends, and another begins at the same place."""
        ...


def route() -> str:
    """One that no other test knows."""
    return f"route-{next(_numbers)}"


def course(epoch: int, **facts: Any) -> Course:
    return Course(epoch, **{"by": "dana", "at": AT * 10**9 + epoch, **facts})


def total(buckets: list[Bucket]) -> Counter[str]:
    found: Counter[str] = Counter()
    for each in buckets:
        found.update(each.counts)
    return found


class RoutesSuite:
    """To be inherited, with a fixture `stage`."""

    # Courses

    async def test_a_route_that_nobody_has_steered_has_no_course(self, stage: Stage) -> None:
        assert route() not in await stage.store.courses()

    async def test_a_course_is_told_as_it_was_set(self, stage: Stage) -> None:
        some = route()
        whole = course(
            1,
            weights={"openai": 70.0, "parallax": 30.0},
            instead_of=CONFIGURED,
            rollout={"state": "RUNNING", "stage": 1, "salt": "ä\x00€", "evidence": [0.1, None, {"R": [1e-9, 2**60]}]},
            comment="größer — “go”",
        )
        assert await stage.store.steer(some, whole, 0)
        assert (await stage.store.courses())[some] == whole
        plain = course(2)
        assert await stage.store.steer(some, plain, 1)
        assert (await stage.store.courses())[some] == plain

    async def test_a_course_outlives_its_process(self, stage: Stage) -> None:
        some = route()
        last = course(2, weights={"openai": 100.0, "parallax": 0.0}, instead_of=CONFIGURED)
        assert await stage.store.steer(some, course(1), 0)
        assert await stage.store.steer(some, last, 1)
        await stage.restart()
        assert (await stage.store.courses())[some] == last
        assert not await stage.store.steer(some, course(2, by="sam"), 1)
        assert await stage.store.steer(some, course(3), 2)

    async def test_who_builds_on_what_has_changed_meanwhile_changes_nothing(self, stage: Stage) -> None:
        some = route()
        assert await stage.store.steer(some, course(1), 0)
        assert not await stage.store.steer(some, course(1, by="sam"), 0)
        assert not await stage.store.steer(some, course(3, by="sam"), 2)
        assert (await stage.store.courses())[some] == course(1)

    @pytest.mark.parametrize("round_", range(3))
    async def test_of_many_who_change_one_course_at_once_exactly_one_does(self, stage: Stage, round_: int) -> None:
        some = route()
        for epoch in range(4):
            wishes = [course(epoch + 1, by=f"person-{number}") for number in range(20)]
            random.Random(round_).shuffle(wishes)
            made = await asyncio.gather(*(stage.store.steer(some, each, epoch) for each in wishes))
            assert made.count(True) == 1
            assert (await stage.store.courses())[some] == wishes[made.index(True)]

    async def test_a_change_that_is_tried_again_is_made_once(self, stage: Stage) -> None:
        some = route()
        change = course(1, weights={"openai": 50.0, "parallax": 50.0}, instead_of=MappingProxyType(CONFIGURED))
        assert await stage.store.steer(some, change, 0)
        assert await stage.store.steer(some, change, 0)
        assert await stage.store.steer(some, course(2), 1)
        assert not await stage.store.steer(some, change, 0)
        assert (await stage.store.courses())[some] == course(2)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (course(2), 0),
            (course(1), 1),
            (course(1, rollout={"since": object()}), 0),
            (course(1, weights={"openai": float("nan")}), 0),
        ],
    )
    async def test_what_cannot_be_a_course_is_refused(self, stage: Stage, change: Course, expected: int) -> None:
        some = route()
        with pytest.raises(ValueError, match=r"epoch|JSON"):
            await stage.store.steer(some, change, expected)
        assert some not in await stage.store.courses()

    async def test_courses_that_were_asked_for_just_now_allow_a_canary(self, stage: Stage) -> None:
        await stage.store.courses()
        assert not lapsed(stage.store.heard_ns, asyncio.get_running_loop().time().__floor__() * 10**9)

    # Counts

    async def test_what_was_flushed_is_told_once_its_bucket_is_closed(self, stage: Stage) -> None:
        some = route()
        stage.store.count(some, {CALL: 2, ERROR: 1})
        stage.store.count(some, {CALL: 3})
        await stage.store.flush()
        await stage.store.flush()
        assert await stage.store.buckets(some, 0, EVER) == []
        stage.advance(BUCKET)
        assert await stage.store.buckets(some, 0, EVER) == [Bucket(AT, {CALL: 5, ERROR: 1})]

    async def test_flushes_of_ten_seconds_are_one_bucket_and_later_ones_another(self, stage: Stage) -> None:
        some = route()
        for number in (1, 2, 4, 8):
            stage.store.count(some, {CALL: number})
            await stage.store.flush()
            stage.advance(BUCKET / 2)
        assert await stage.store.buckets(some, 0, EVER) == [Bucket(AT, {CALL: 3}), Bucket(AT + 10, {CALL: 12})]

    async def test_what_was_counted_is_in_the_bucket_in_which_it_is_flushed(self, stage: Stage) -> None:
        """So that nothing is late in a bucket that is closed."""
        some = route()
        stage.store.count(some, {CALL: 1})
        stage.advance(3 * BUCKET)
        assert await stage.store.buckets(some, 0, EVER) == []
        await stage.store.flush()
        stage.advance(BUCKET)
        assert await stage.store.buckets(some, 0, EVER) == [Bucket(AT + 30, {CALL: 1})]

    async def test_only_what_is_asked_for_is_told(self, stage: Stage) -> None:
        some, other = route(), route()
        for _ in range(4):
            stage.store.count(some, {CALL: 1})
            stage.store.count(other, {CALL: 100})
            await stage.store.flush()
            stage.advance(2 * BUCKET)
        assert [each.at - AT for each in await stage.store.buckets(some, 0, EVER)] == [0, 20, 40, 60]
        assert [each.at - AT for each in await stage.store.buckets(some, AT + 20, AT + 60)] == [20, 40]
        assert [each.at - AT for each in await stage.store.buckets(some, AT + 11, AT + 61)] == [20, 40, 60]
        assert total(await stage.store.buckets(some, AT - 10**6, AT + 10**6)) == {CALL: 4}
        assert await stage.store.buckets(some, AT + 20, AT + 20) == []
        assert await stage.store.buckets(route(), 0, EVER) == []

    async def test_what_was_counted_outlives_its_process(self, stage: Stage) -> None:
        some = route()
        stage.store.count(some, {CALL: 1})
        await stage.store.flush()
        stage.store.count(some, {CALL: 2, ERROR: 2})
        await stage.restart()
        stage.store.count(some, {CALL: 4})
        await stage.store.flush()
        stage.advance(BUCKET)
        assert await stage.store.buckets(some, 0, EVER) == [Bucket(AT, {CALL: 7, ERROR: 2})]

    async def test_a_clock_that_is_set_back_a_little_changes_no_closed_bucket(self, stage: Stage) -> None:
        some = route()
        stage.store.count(some, {CALL: 1})
        await stage.store.flush()
        stage.advance(2 * BUCKET)
        stage.store.count(some, {CALL: 2})
        await stage.store.flush()
        closed = await stage.store.buckets(some, 0, EVER)
        assert closed == [Bucket(AT, {CALL: 1})]
        stage.advance(-2 * BUCKET)
        stage.store.count(some, {CALL: 4})
        await stage.store.flush()
        assert await stage.store.buckets(some, 0, EVER) == closed
        stage.advance(3 * BUCKET)
        assert await stage.store.buckets(some, 0, EVER) == [*closed, Bucket(AT + 20, {CALL: 6})]

    async def test_a_clock_that_is_set_back_far_is_followed_and_nothing_is_lost(self, stage: Stage) -> None:
        some = route()
        stage.store.count(some, {CALL: 1})
        await stage.store.flush()
        stage.advance(3600)
        stage.store.count(some, {CALL: 2})
        await stage.store.flush()
        stage.advance(-3600)
        stage.store.count(some, {CALL: 4})
        await stage.store.flush()
        stage.advance(3600)
        stage.store.count(some, {CALL: 8})
        await stage.store.flush()
        stage.advance(BUCKET)
        assert await stage.store.buckets(some, 0, EVER) == [Bucket(AT, {CALL: 5}), Bucket(AT + 3600, {CALL: 10})]

    async def test_numbers_that_make_no_sense_are_kept_within_what_can_be_counted(self, stage: Stage) -> None:
        some = route()
        stage.store.count(some, {"a|output_tokens": 2**80, "b|output_tokens": -7, "c|output_tokens": MOST})
        await stage.store.flush()
        stage.store.count(some, {"c|output_tokens": MOST})
        await stage.store.flush()
        stage.advance(BUCKET)
        (bucket,) = await stage.store.buckets(some, 0, EVER)
        assert bucket.counts == {"a|output_tokens": MOST, "b|output_tokens": 0, "c|output_tokens": 2 * MOST}

    async def test_an_hour_and_more_of_buckets_is_told_in_order(self, stage: Stage) -> None:
        some = route()
        for number in range(400):
            if number % 3 == 0:
                stage.store.count(some, {CALL: number})
                await stage.store.flush()
            stage.advance(BUCKET)
        found = await stage.store.buckets(some, AT, EVER)
        assert found == [Bucket(AT + number * BUCKET, {CALL: number}) for number in range(0, 400, 3)]

    async def test_flushes_at_the_same_time_count_everything_once(self, stage: Stage) -> None:
        some = [route() for _ in range(5)]
        chance = random.Random(1)
        flushes = []
        for _ in range(100):
            stage.store.count(chance.choice(some), {CALL: 1})
            if chance.random() < 0.3:
                flushes.append(asyncio.create_task(stage.store.flush()))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        await asyncio.gather(*flushes)
        await stage.store.flush()
        stage.advance(BUCKET)
        assert sum([total(await stage.store.buckets(each, 0, EVER)) for each in some], Counter()) == {CALL: 100}

    async def test_what_its_rollout_says_is_no_business_of_the_stores(self, stage: Stage) -> None:
        some = route()
        last = course(1, rollout={})
        assert await stage.store.steer(some, last, 0)
        for epoch in range(1, 6):
            following = replace(last, epoch=epoch + 1, rollout={"log_R": [epoch / 7] * 16, "cursor": AT + epoch})
            assert await stage.store.steer(some, following, epoch)
            last = (await stage.store.courses())[some]
            assert last == following
