"""Limits by number: which hold for a call, and the rule by which rates are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from aiolimiter import AsyncLimiter
from hypothesis import example, given
from hypothesis import strategies as st

from config.settings import LimitSettings
from policies.limits import MINUTE, MOST_OWED, Limit, LimitPlan, correct, remaining, session_of, take

SECOND = 1_000_000_000
NOW = 1_763_700_000 * SECOND

paces = st.one_of(st.integers(1, 1000), st.integers(1, 10**12))
amounts = st.one_of(st.integers(1, 100), st.integers(1, 10**13))
moments = st.integers(NOW - 3 * MINUTE, NOW + 3 * MINUTE)


# --- which limits hold ------------------------------------------------------------------------------------------------


def plan() -> LimitPlan:
    written = [
        {"node": "acme", "calls_per_minute": 600, "concurrent": 50},
        {"node": "acme/support", "tokens_per_minute": 1000},
        {"node": "acme/bot", "calls_per_session": 9},
        {"node": "umbrella/bot", "concurrent": 1},
    ]
    return LimitPlan([LimitSettings.model_validate(each) for each in written])


def test_a_call_is_limited_from_its_tenant_down_to_its_agent() -> None:
    assert plan().of("acme", "support", "bot") == (
        Limit("acme", "concurrent", 50),
        Limit("acme", "calls_per_minute", 600),
        Limit("acme/support", "tokens_per_minute", 1000),
        Limit("acme/bot", "calls_per_session", 9),
    )


def test_limits_of_others_are_none_of_a_calls_business() -> None:
    assert {limit.node for limit in plan().of("acme", None, "other")} == {"acme"}
    assert plan().of("initech", None, "bot") == ()


def test_limits_are_found_once_for_each_agent() -> None:
    limits = plan()
    assert limits.of("acme", None, "bot") is limits.of("acme", None, "bot")
    assert limits.of("acme", None, "bot") != limits.of("acme", "support", "bot")


def test_what_two_limits_count_differs_in_its_key() -> None:
    limits = [*plan().of("acme", "support", "bot"), *plan().of("umbrella", None, "bot")]
    assert len({limit.key for limit in limits}) == len(limits)


def test_calls_without_a_session_are_one_a_day_for_each_agent() -> None:
    today = session_of(None, "bot", "2026-11-21")
    assert today == session_of(None, "bot", "2026-11-21")
    assert len({today, session_of(None, "bot", "2026-11-22"), session_of(None, "other", "2026-11-21")}) == 3


@given(st.text(max_size=50))
def test_no_session_can_pass_for_calls_without_one(session: str) -> None:
    assert session_of(session, "bot", "2026-11-21") != session_of(None, "bot", "2026-11-21")
    assert session_of(session, "bot", "2026-11-21") == session_of(session, "other", "2026-11-22")


# --- the rule of rates ------------------------------------------------------------------------------------------------


class HeldLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until it is moved."""

    moment = 0.0

    def time(self) -> float:
        return self.moment


@pytest.fixture(scope="module")
def held_loop() -> Iterator[HeldLoop]:
    loop = HeldLoop()
    yield loop
    loop.close()


async def bucket(loop: HeldLoop, per_minute: int, arrivals: Sequence[tuple[float, int]]) -> list[bool]:
    """Which arrivals aiolimiter has capacity for, each of which it then takes. Times are in seconds."""
    limiter = AsyncLimiter(per_minute)
    taken = []
    for moment, amount in arrivals:
        loop.moment = moment
        taken.append(limiter.has_capacity(amount))
        if taken[-1]:
            await limiter.acquire(amount)
    return taken


# Of these paces and times binary fractions are exact, so that both have to agree in every last case.
@given(
    quarters=st.sampled_from([2**power for power in range(10)]),
    steps=st.lists(st.tuples(st.integers(0, 512 * 20), st.integers(1, 10**4)), max_size=60),
)
def test_the_rule_lets_in_exactly_what_aiolimiters_bucket_has_room_for(
    held_loop: HeldLoop, quarters: int, steps: list[tuple[int, int]]
) -> None:
    per_minute = 15 * quarters
    began = held_loop.moment
    arrivals: list[tuple[float, int]] = []
    elapsed = 0
    for gap, size in steps:
        elapsed += gap
        arrivals.append((began + elapsed / 512, 1 + size % per_minute))
    tat, ours = 0, []
    for moment, amount in arrivals:
        tat, wait = take(tat, int(moment * 512) * (SECOND // 512), amount, per_minute)
        ours.append(wait == 0)
    assert ours == held_loop.run_until_complete(bucket(held_loop, per_minute, arrivals))


@given(per_minute=paces, now=moments)
def test_a_whole_minutes_worth_may_come_at_once_and_no_more(per_minute: int, now: int) -> None:
    tat, wait = take(0, now, per_minute, per_minute)
    assert (tat, wait) == (now + MINUTE, 0)
    assert remaining(tat, now, per_minute) == (per_minute - 1) // MINUTE, "but for what drains in no whole nanosecond"
    if per_minute <= 500:
        tat = 0
        for left in reversed(range(per_minute)):
            tat, wait = take(tat, now, 1, per_minute)
            assert wait == 0
            assert remaining(tat, now, per_minute) == left
        assert take(tat, now, 1, per_minute)[1] > 0


@given(tat=moments, now=moments, amount=amounts, per_minute=paces)
@example(tat=NOW + MINUTE + 1, now=NOW, amount=1, per_minute=MINUTE + 1)
def test_what_is_refused_fits_when_it_was_said_to_and_not_before(
    tat: int, now: int, amount: int, per_minute: int
) -> None:
    after, wait = take(tat, now, amount, per_minute)
    if wait:
        assert after == tat, "a refusal takes nothing"
        assert take(tat, now + wait - 1, amount, per_minute)[1] == 1
        assert take(tat, now + wait, amount, per_minute)[1] == 0
        assert remaining(tat, now + wait, per_minute) >= min(amount, per_minute)
    else:
        assert after - max(tat, now) == min(amount * MINUTE // per_minute, now + MOST_OWED - max(tat, now))


@given(tat=moments, now=moments, per_minute=paces)
def test_what_remains_is_the_most_that_fits(tat: int, now: int, per_minute: int) -> None:
    left = remaining(tat, now, per_minute)
    assert 0 <= left <= per_minute
    assert take(tat, now, left, per_minute)[1] == 0
    if left < per_minute:
        assert take(tat, now, left + 1, per_minute)[1] > 0


@given(tat=moments, now=moments, per_minute=paces, excess=amounts)
def test_what_is_larger_than_the_limit_fits_when_all_is_free(tat: int, now: int, per_minute: int, excess: int) -> None:
    wait = take(tat, now, per_minute + excess, per_minute)[1]
    assert wait == max(tat - now, 0)


@given(tat=moments, now=moments, per_minute=paces)
def test_nothing_at_all_always_fits(tat: int, now: int, per_minute: int) -> None:
    assert take(tat, now, 0, per_minute)[1] == 0


@given(tat=moments, now=moments, later=st.integers(0, 2 * MINUTE), took=amounts, more=amounts, per_minute=paces)
def test_what_was_used_beyond_what_was_taken_is_owed_for_an_hour_at_most(
    tat: int, now: int, later: int, took: int, more: int, per_minute: int
) -> None:
    taken, _ = take(tat, now, took, per_minute)
    after, given_back = correct(taken, 0, taken, now + later, took, took + more, per_minute)
    share = (took + more) * MINUTE // per_minute - took * MINUTE // per_minute
    assert given_back == 0
    if share:
        assert after == min(max(taken, now + later) + share, now + later + MOST_OWED)
    else:
        assert after == taken


@given(now=moments, later=st.integers(0, 2 * MINUTE), took=st.integers(1, 10**5), part=st.floats(0, 1))
def test_what_was_not_used_is_given_back_as_far_as_it_has_not_drained(
    now: int, later: int, took: int, part: float
) -> None:
    per_minute, used = 10**5, int(took * part)
    tat, _ = take(0, now, took, per_minute)
    after, given_back = correct(tat, 0, tat, now + later, took, used, per_minute)
    assert after + given_back == tat
    unused = (took - used) * MINUTE // per_minute
    assert given_back == min(unused, max(tat - now - later, 0))
