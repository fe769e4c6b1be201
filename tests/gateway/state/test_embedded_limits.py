"""Limits of one process, on a clock that is held."""

from __future__ import annotations

import pytest

from gateway.state.limits import EmbeddedLimits
from tests.gateway.state.limits_suite import LimitsSuite, Node, Stage, node


class HeldStage:
    """Time passes when it is told to."""

    def __init__(self, most_sessions: int = 1000) -> None:
        self._ns = 5 * 10**9
        self.store = EmbeddedLimits(lambda: self._ns, most_sessions)

    def now(self) -> float:
        return self._ns / 10**9

    async def advance(self, seconds: float) -> None:
        self._ns += round(seconds * 10**9)

    async def settled(self) -> None:
        """`leave` has done everything when it returns."""


@pytest.fixture
def stage() -> Stage:
    return HeldStage()


class TestEmbeddedLimits(LimitsSuite):
    """The suite of all stores."""


async def test_a_session_that_goes_in_circles_is_not_forgotten_however_many_others_come() -> None:
    some = node(HeldStage(most_sessions=10), calls_per_session=4)
    for number in range(4 * 8):
        await some.enter(session=f"=other {number}")
        if number % 8 == 0:
            await some.enter(session="=circling")
    await some.refused(session="=circling")


async def test_no_more_sessions_are_remembered_than_there_is_room_for() -> None:
    some = node(HeldStage(most_sessions=10), calls_per_session=1)
    for number in range(11):
        await some.enter(session=f"={number}")
    for number in range(1, 11):
        await some.refused(session=f"={number}")
    await some.enter(session="=0")


async def test_all_is_free_after_a_restart() -> None:
    before = node(HeldStage(), calls_per_minute=1, concurrent=1, calls_per_session=1)
    await before.enter()
    await before.refused()
    await Node(HeldStage(), before.limits).enter()
