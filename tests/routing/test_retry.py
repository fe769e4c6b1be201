"""`routing.retry`: what is tried again and where, and never more of it than the budget has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.outcomes import OUTCOMES, Retry
from routing.retry import ALWAYS, MEMORY, RetryBudget, again, remaining, retry_after
from routing.table import Arm
from tests.routing.places import place

ARMS = [Arm(place(name, "openai"), 1.0, None) for name in "abc"]


def retried(
    outcome: str,
    *,
    made: int = 1,
    begun: bool = False,
    acted: bool = True,
    repeatable: bool = True,
    pinned: bool = False,
) -> Retry:
    return again(
        OUTCOMES[outcome], made=made, attempts=3, begun=begun, acted=acted, repeatable=repeatable, pinned=pinned
    )


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_a_failure_is_worth_stands_in_its_class(outcome: str) -> None:
    assert retried(outcome) == OUTCOMES[outcome].retry


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_nothing_is_tried_again_once_the_agent_has_a_byte_or_attempts_are_used_up(outcome: str) -> None:
    assert retried(outcome, begun=True) == "no"
    assert retried(outcome, made=3) == "no"
    assert retried(outcome, pinned=True) == "no"


def test_what_may_have_acted_is_only_repeated_where_that_harms_nobody() -> None:
    assert retried("reset", repeatable=False) == "no"
    assert retried("connect", repeatable=False, acted=False) == "node"
    assert retried("reset", made=2) == "node"


def test_another_node_of_the_same_arm_comes_before_the_next_arm() -> None:
    assert remaining(ARMS, 1, "node") == ARMS[1:]
    assert remaining(ARMS, 1, "arm") == ARMS[2:]
    assert list(remaining(ARMS, 1, "no")) == []


@given(
    st.floats(0.01, 1),
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60), st.floats(0, 30), st.floats(0, 1)), max_size=60),
)
def test_retries_never_exceed_their_budget(share: float, sequence: list[tuple[int, int, float, float]]) -> None:
    """Some of those that were taken are not made, and come back after a while."""
    now, calls, retries = 50.0, 0, 0
    budget = RetryBudget(share, now)
    unmade = 0
    for called, wanted, pause, failing in sequence:
        now += pause
        for _ in range(unmade):
            budget.returned()
        for _ in range(called):
            budget.called(now)
        calls += called
        taken = sum(budget.spend(now) for _ in range(wanted))
        unmade = int(taken * failing)
        retries += taken - unmade
        assert retries <= share * calls + ALWAYS * (now - 50.0) + ALWAYS * MEMORY + 1e-6


def test_where_every_call_fails_retries_settle_at_their_share_of_the_calls() -> None:
    now, spent = 0.0, 0
    budget = RetryBudget(0.2, now)
    for second in range(60):
        for _ in range(1000):
            now += 0.001
            budget.called(now)
            spent += budget.spend(now) if second >= 30 else 0
    # 200 a second from the calls and 10 in any case, and what the quiet seconds before have left.
    assert 30 * 210 <= spent <= 30 * 210 + MEMORY * 210 + 1


def test_a_few_calls_can_be_tried_again_from_the_start_and_none_where_the_share_is_0() -> None:
    budget = RetryBudget(0.2, 0.0)
    assert sum(budget.spend(0.0) for _ in range(200)) == 100
    never = RetryBudget(0.0, 0.0)
    never.called(0.0)
    assert not never.spend(1000.0)


def test_a_retry_that_was_not_made_can_be_made_later() -> None:
    budget = RetryBudget(0.2, 0.0)
    assert sum(budget.spend(0.0) for _ in range(200)) == 100
    budget.returned()
    assert sum(budget.spend(0.0) for _ in range(200)) == 1


def test_waiting_leaves_no_more_than_the_budget_always_has() -> None:
    budget = RetryBudget(1.0, 0.0)
    for _ in range(1000):
        budget.called(0.0)
    assert sum(budget.spend(1000.0) for _ in range(2000)) == 100


@pytest.mark.parametrize(
    ("after_ms", "after", "seconds"),
    [
        (None, None, None),
        (None, "5", 5.0),
        (None, " 1.5 ", 1.5),
        ("250", "5", 0.25),
        ("soon", "5", 5.0),
        (None, "-1", None),
        (None, "nan", None),
        (None, "inf", 86_400.0),
        (None, "99999999", 86_400.0),
        (None, "\u0665", None),
        (None, "Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        (None, "Wed, 21 Oct 2015 07:27:30 GMT", 0.0),
        (None, "Wed, 21 Oct 2015 07:28:30 -0000", 30.0),
        (None, "Wed, 99 Oct 2015", None),
        (None, "in a while", None),
    ],
)
def test_when_a_target_wants_to_be_asked_again_is_read_from_its_headers(
    after_ms: str | None, after: str | None, seconds: float | None
) -> None:
    assert retry_after(after_ms, after, 1_445_412_480.0) == seconds
