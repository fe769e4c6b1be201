"""What every store of limits promises. A test file inherits the suite and says, by its fixture `stage`, which store.

Rates are so slow that a second, which a real server may take for a test's steps, changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.limits import Limit, LimitReached, LimitStore, Pass, Standing, What

MINUTE = 60.0
HOUR = 3600.0
DAY = 86_400.0

_numbers = itertools.count()

_MIXTURES: list[Mapping[str, int]] = [
    {"tokens_per_minute": 60},
    {"calls_per_minute": 6},
    {"concurrent": 2},
    {"calls_per_minute": 20, "tokens_per_minute": 120, "concurrent": 4},
]
_STEPS = [
    *(("enter", tokens, 0) for tokens in (10, 10, 30, 30, 60, 60, 60, 90)),
    *(("leave", which, percent) for which in (0, 1, 2) for percent in (0, 100, 150)),
    *(("advance", seconds, 0) for seconds in (5, 30, 50)),
]
"""A call of so many tokens comes; one of those inside leaves, having used so much of them; seconds pass."""


class Stage(Protocol):
    """A store, and the time that passes for it."""

    @property
    def store(self) -> LimitStore: ...

    def now(self) -> float:
        """Seconds by the store's clock, since any moment."""
        ...

    async def advance(self, seconds: float) -> None:
        """Lets time pass."""
        ...

    async def settled(self) -> None:
        """Returns once everything that was told the store by `leave` has happened."""
        ...


@dataclass
class Node:
    """A node that no other test knows, and its calls."""

    stage: Stage
    limits: tuple[Limit, ...]

    async def enter(self, tokens: int = 0, *, session: str | None = "=s", call: str | None = None) -> Pass:
        return await self.stage.store.enter(call or _name("call"), "acme", self.limits, session, tokens)

    async def refused(self, tokens: int = 0, *, session: str | None = "=s") -> LimitReached:
        with pytest.raises(LimitReached) as caught:
            await self.enter(tokens, session=session)
        return caught.value

    async def leave(self, held: Pass, tokens: int = 0) -> None:
        self.stage.store.leave(held, tokens)
        await self.stage.settled()

    def under(self, **limits: int) -> Node:
        """The same node with other limits, as after a reload."""
        return Node(self.stage, _limits(self.limits[0].node, limits))


def node(stage: Stage, **limits: int) -> Node:
    return Node(stage, _limits(_name("acme/agent"), limits))


def _name(kind: str) -> str:
    return f"{kind}-{next(_numbers)}"


def _limits(name: str, limits: Mapping[Any, int]) -> tuple[Limit, ...]:
    return tuple(Limit(name, what, most) for what, most in limits.items())


def standing(told: Pass | LimitReached, what: What) -> Standing:
    return next(each for each in told.standings if each.limit.what == what)


def about(seconds: float) -> Any:
    """What a real server, on which time goes on, may say in place of this."""
    return pytest.approx(seconds, abs=1.0)


class LimitsSuite:
    """To be inherited, with a fixture `stage`."""

    # Calls in a minute

    async def test_a_minutes_worth_of_calls_may_come_at_once(self, stage: Stage) -> None:
        some = node(stage, calls_per_minute=3)
        left = [standing(await some.enter(), "calls_per_minute") for _ in range(3)]
        assert [each.remaining for each in left] == [2, 1, 0]
        assert [each.resets_in for each in left] == [about(20), about(40), about(60)]
        refusal = await some.refused()
        assert refusal.limit == some.limits[0]
        assert refusal.retry_after == about(20)

    async def test_who_comes_again_when_told_is_let_in_and_who_comes_earlier_is_not(self, stage: Stage) -> None:
        some = node(stage, calls_per_minute=3)
        for _ in range(3):
            await some.enter()
        refusal = await some.refused()
        assert refusal.retry_after is not None
        await stage.advance(refusal.retry_after - 2)
        assert (await some.refused()).retry_after == about(2)
        await stage.advance(2)
        await some.enter()
        assert (await some.refused()).retry_after == about(20)

    async def test_a_call_that_is_over_was_made_all_the_same(self, stage: Stage) -> None:
        some = node(stage, calls_per_minute=1)
        await some.leave(await some.enter())
        assert (await some.refused()).retry_after == about(60)

    async def test_idle_time_saves_up_no_more_than_a_minutes_worth(self, stage: Stage) -> None:
        some = node(stage, calls_per_minute=2)
        await some.enter()
        await stage.advance(HOUR)
        await some.enter()
        await some.enter()
        await some.refused()

    # Tokens in a minute

    async def test_a_call_takes_its_tokens(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        left = standing(await some.enter(450), "tokens_per_minute")
        assert left.remaining in range(150, 161)
        assert left.resets_in == about(45)
        refusal = await some.refused(200)
        assert refusal.retry_after == about(5)
        assert standing(refusal, "tokens_per_minute").remaining in range(150, 161)
        await some.enter(150)

    async def test_tokens_that_were_not_used_are_free_again(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        held = await some.enter(600)
        await some.refused(500)
        await some.leave(held, 100)
        await some.enter(500)
        await some.refused(100)

    async def test_what_has_drained_meanwhile_is_not_given_back(self, stage: Stage) -> None:
        """It would let two minutes' worth in at once."""
        some = node(stage, tokens_per_minute=600)
        first = await some.enter(600)
        await stage.advance(45)
        await some.enter(400)
        await some.leave(first, 0)
        assert standing(await some.enter(0), "tokens_per_minute").remaining in range(200, 211)

    async def test_no_more_is_given_back_than_is_left_to_drain_however_many_leave(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        first, second = await some.enter(300), await some.enter(300)
        await stage.advance(5)
        await some.leave(first, 0)
        await stage.advance(20)
        await some.enter(490)
        await some.leave(second, 0)
        await some.refused(130)
        await some.enter(90)

    async def test_tokens_used_beyond_the_estimate_are_taken_late(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        await some.leave(await some.enter(100), 700)
        refusal = await some.refused(100)
        assert refusal.retry_after == about(20)
        left = standing(refusal, "tokens_per_minute")
        assert (left.remaining, left.resets_in) == (0, about(70))

    async def test_a_call_larger_than_the_limit_is_let_in_when_all_is_free_and_paid_for(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        await some.enter(300)
        assert (await some.refused(900)).retry_after == about(30)
        await stage.advance(31)
        left = standing(await some.enter(900), "tokens_per_minute")
        assert (left.remaining, left.resets_in) == (0, about(90))
        assert (await some.refused(60)).retry_after == about(36)

    async def test_a_call_of_no_tokens_is_let_in_whatever_is_owed(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        await some.leave(await some.enter(1), 6000)
        await some.refused(1)
        await some.enter(0)

    async def test_nonsense_is_not_owed_for_ever(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        await some.leave(await some.enter(1), 2**53)
        assert (await some.refused(600)).retry_after == about(HOUR)
        await stage.advance(HOUR)
        await some.enter(600)

    async def test_calls_that_are_over_count_by_the_tokens_they_used(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        for used in (0, 100, 200):
            await some.leave(await some.enter(300), used)
        left = standing(await some.enter(0), "tokens_per_minute")
        assert left.remaining in range(300, 311)

    # Calls at the same time

    async def test_calls_at_the_same_time_are_counted_until_they_leave(self, stage: Stage) -> None:
        some = node(stage, concurrent=2)
        first, second = await some.enter(), await some.enter()
        assert [standing(each, "concurrent").remaining for each in (first, second)] == [1, 0]
        assert standing(second, "concurrent").resets_in == 0.0
        refusal = await some.refused()
        assert refusal.limit == some.limits[0]
        await some.leave(first)
        await some.enter()
        await some.refused()

    async def test_nobody_is_promised_when_a_call_will_end(self, stage: Stage) -> None:
        some = node(stage, concurrent=1)
        await some.enter()
        assert (await some.refused()).retry_after == 1.0

    async def test_time_alone_frees_no_place(self, stage: Stage) -> None:
        some = node(stage, concurrent=1)
        held = await some.enter()
        await stage.advance(20)
        await some.refused()
        await some.leave(held)
        await some.enter()

    async def test_of_many_that_come_at_once_no_more_get_in_than_may(self, stage: Stage) -> None:
        some = node(stage, concurrent=10)
        came = await asyncio.gather(*(some.enter() for _ in range(100)), return_exceptions=True)
        assert sum(isinstance(each, Pass) for each in came) == 10
        assert sum(isinstance(each, LimitReached) for each in came) == 90

    async def test_leaving_twice_frees_one_place(self, stage: Stage) -> None:
        some = node(stage, concurrent=2)
        first, _ = await some.enter(), await some.enter()
        await some.leave(first)
        await some.leave(first)
        await some.enter()
        await some.refused()

    async def test_leaving_twice_gives_tokens_back_once(self, stage: Stage) -> None:
        some = node(stage, tokens_per_minute=600)
        first, _ = await some.enter(200), await some.enter(400)
        await some.leave(first, 100)
        await some.leave(first, 0)
        await some.enter(100)
        await some.refused(100)

    async def test_a_call_leaves_that_never_learned_that_it_was_let_in(self, stage: Stage) -> None:
        some = node(stage, concurrent=1, tokens_per_minute=600)
        await some.enter(600, call=(call := _name("call")))
        await some.leave(Pass(call, "acme", some.limits, "=s", 600), 0)
        await some.enter(600)

    async def test_a_call_leaves_that_was_never_let_in(self, stage: Stage) -> None:
        some = node(stage, concurrent=1, tokens_per_minute=600)
        await some.leave(Pass(_name("call"), "acme", some.limits, "=s", 600), 0)
        await some.enter(600)
        await some.refused()

    # Calls in one session

    async def test_calls_of_a_session_are_counted_apart_from_those_of_others(self, stage: Stage) -> None:
        some = node(stage, calls_per_session=2)
        held = [await some.enter(session="=a") for _ in range(2)]
        assert [standing(each, "calls_per_session").remaining for each in held] == [1, 0]
        for each in held:
            await some.leave(each)
        assert (await some.refused(session="=a")).limit == some.limits[0]
        await some.enter(session="=b")

    async def test_waiting_does_not_help_a_session_that_has_made_its_calls(self, stage: Stage) -> None:
        some = node(stage, calls_per_session=1)
        await some.enter()
        assert (await some.refused()).retry_after is None
        await stage.advance(HOUR)
        assert (await some.refused()).retry_after is None

    async def test_a_session_is_forgotten_a_day_after_its_last_call(self, stage: Stage) -> None:
        some = node(stage, calls_per_session=2)
        await some.enter()
        await stage.advance(DAY - 10)
        await some.enter()
        await stage.advance(DAY - 10)
        await some.refused()
        await stage.advance(20)
        await some.enter()

    # All of them

    @pytest.mark.parametrize("what", ["calls_per_minute", "tokens_per_minute", "concurrent", "calls_per_session"])
    async def test_a_call_that_one_limit_refuses_leaves_no_trace_in_the_others(self, stage: Stage, what: What) -> None:
        most: dict[str, int] = {
            "calls_per_minute": 5,
            "tokens_per_minute": 500,
            "concurrent": 5,
            "calls_per_session": 5,
        }
        others = node(stage, **{name: number for name, number in most.items() if name != what})
        full = node(stage, **{what: 100 if what == "tokens_per_minute" else 1})
        await full.enter(100)
        for limits in ((*others.limits, *full.limits), (*full.limits, *others.limits)):
            for _ in range(7):
                assert (await Node(stage, limits).refused(100)).limit == full.limits[0]
        for left in reversed(range(5)):
            told = await others.enter(100)
            assert [
                each.remaining // (100 if each.limit.what == "tokens_per_minute" else 1) for each in told.standings
            ] == [left] * 3

    async def test_who_is_refused_twice_is_told_the_later_time(self, stage: Stage) -> None:
        some = node(stage, concurrent=1, calls_per_minute=2, tokens_per_minute=600)
        first = await some.enter(300)
        assert (await some.refused(1)).limit.what == "concurrent"
        await some.leave(first, 300)
        await some.enter(300)
        refusal = await some.refused(100)
        assert (refusal.limit.what, refusal.retry_after) == ("calls_per_minute", about(30))
        refusal = await some.refused(600)
        assert (refusal.limit.what, refusal.retry_after) == ("tokens_per_minute", about(60))

    async def test_a_refusal_for_good_is_told_before_all_others(self, stage: Stage) -> None:
        some = node(stage, concurrent=1, calls_per_minute=1, calls_per_session=1)
        await some.enter()
        refusal = await some.refused()
        assert (refusal.limit.what, refusal.retry_after) == ("calls_per_session", None)
        assert {each.limit.what: each.remaining for each in refusal.standings} == {
            "concurrent": 0,
            "calls_per_minute": 0,
            "calls_per_session": 0,
        }

    async def test_a_call_that_asks_again_while_it_is_inside_takes_once(self, stage: Stage) -> None:
        some = node(stage, calls_per_minute=2, tokens_per_minute=600, concurrent=2, calls_per_session=2)
        call = _name("call")
        came = [await some.enter(300, call=call) for _ in range(5)]
        assert {each.call for each in came} == {call}
        await some.enter(300)
        await some.refused()
        await some.leave(came[0], 300)
        assert (await some.refused()).limit.what == "calls_per_session"

    async def test_agents_share_the_limits_of_their_tenant_and_not_their_own(self, stage: Stage) -> None:
        tenant = node(stage, concurrent=3)
        one, other = (Node(stage, (*tenant.limits, *node(stage, concurrent=2).limits)) for _ in range(2))
        await one.enter()
        await one.enter()
        assert (await one.refused()).limit == one.limits[1]
        await other.enter()
        assert (await other.refused()).limit == tenant.limits[0]

    async def test_limits_that_a_reload_changes_go_on_from_what_was_counted(self, stage: Stage) -> None:
        before = node(stage, calls_per_minute=2, concurrent=2, calls_per_session=2)
        first, second = await before.enter(), await before.enter()
        wider = before.under(calls_per_minute=1200, concurrent=4, calls_per_session=4)
        await stage.advance(1)
        third = await wider.enter()
        assert {
            each.limit.what: each.remaining for each in third.standings if each.limit.what != "calls_per_minute"
        } == {
            "concurrent": 1,
            "calls_per_session": 1,
        }
        narrower = before.under(calls_per_minute=600, concurrent=2)
        for held in (first, second):
            assert (await narrower.refused()).limit.what == "concurrent"
            await before.leave(held)
        await stage.advance(1)
        await narrower.enter()

    async def test_a_call_without_limits_is_let_in(self, stage: Stage) -> None:
        held = await stage.store.enter(_name("call"), "acme", (), None, 5)
        assert held.standings == ()
        stage.store.leave(held, 5)

    @given(limits=st.sampled_from(_MIXTURES), steps=st.lists(st.sampled_from(_STEPS), min_size=20, max_size=60))
    # Every store runs the same history, each in a class of its own.
    @settings(
        deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
    )
    async def test_no_span_of_time_sees_more_than_the_rule_promises(
        self, stage: Stage, limits: Mapping[str, int], steps: list[tuple[str, int, int]]
    ) -> None:
        """In S seconds no more than limit * (1 + S / 60): of calls, and of tokens as far as they were known."""
        some = node(stage, **limits)
        inside: list[_Visit] = []
        visits: list[_Visit] = []
        for step, number, percent in steps:
            if step == "advance":
                await stage.advance(number)
            elif step == "enter":
                before = stage.now()
                with contextlib.suppress(LimitReached):
                    visits.append(_Visit(await some.enter(number), before, stage.now()))
                    inside.append(visits[-1])
            elif inside:
                visit = inside.pop(number % len(inside))
                visit.used = visit.held.tokens * percent // 100
                await some.leave(visit.held, visit.used)
                visit.left = len(visits)
            assert len(inside) <= limits.get("concurrent", len(inside))
        for first, last in itertools.combinations_with_replacement(range(len(visits)), 2):
            _keep_the_promise(limits, visits, first, last)
        for visit in inside:
            await some.leave(visit.held, 0)
        await stage.advance(HOUR)
        free = await some.enter(0)
        assert {each.limit.what: each.remaining for each in free.standings} == {
            what: most if what == "tokens_per_minute" else most - 1 for what, most in limits.items()
        }
        await some.leave(free, 0)


@dataclass
class _Visit:
    """A call that was let in between two moments, the tokens it used, and how many were let in before it left."""

    held: Pass
    before: float
    after: float
    used: int | None = None
    left: float = math.inf


def _keep_the_promise(limits: Mapping[str, int], visits: list[_Visit], first: int, last: int) -> None:
    span = visits[first : last + 1]
    minutes = (span[-1].after - span[0].before) / MINUTE
    if (calls := limits.get("calls_per_minute")) is not None:
        assert len(span) <= calls * (1 + minutes) + 1e-6
    if (tokens := limits.get("tokens_per_minute")) is not None:
        known = 0
        for visit in span:
            took = visit.held.tokens
            used = took if visit.used is None else visit.used
            known += used if visit.left <= last else min(used, took)
        larger = max(span[-1].held.tokens - tokens, 0)
        assert known <= tokens * (1 + minutes) + larger + 1e-6
