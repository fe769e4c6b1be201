"""Which of the calls that were left with a gateway are made, by whom, and how often they are tried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway import errands
from gateway.errands import LATEST, SOONEST, Errands
from gateway.holding import Holds
from policies.approvals import Approval, State
from tests.gateway.state.approvals_suite import SECOND, approval
from tests.support.register import Register


class Office:
    """What makes calls, and writes down which."""

    def __init__(self) -> None:
        self.register = Register()
        self.holds = Holds(self.register, lambda *_: None)
        self.now = 1000.0
        self.made: list[str] = []
        self.lets: Collection[str] | None = None
        """Those whose agents may have calls made; all of them where it is None."""
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.errands = Errands(self.holds, self._make, self._ready, lambda: self.now)

    async def _make(self, approval: Approval) -> None:
        self.made.append(approval.id)
        await self.goes_on.wait()

    def _ready(self, approval: Approval) -> bool:
        return self.lets is None or approval.id in self.lets

    async def approved(self, name: str, *, detached: bool = True) -> None:
        soon = self.register.now_ns() + 3600 * SECOND
        await self.register.open(approval(id=name, key=name, state=State.APPROVED, detached=detached, use_by=soon))

    async def look(self, only: Collection[str] | None = None) -> None:
        await self.errands.look(only)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@asynccontextmanager
async def office() -> AsyncIterator[Office]:
    opened = Office()
    try:
        yield opened
    finally:
        opened.goes_on.set()
        await opened.errands.end(0.0)


async def test_what_was_left_and_is_approved_is_made_and_nothing_else() -> None:
    async with office() as one:
        await one.approved("apr_left")
        await one.approved("apr_waits", detached=False)
        await one.look()
        assert one.made == ["apr_left"]


async def test_what_could_not_be_done_is_tried_again_more_and_more_seldom() -> None:
    async with office() as one:
        await one.approved("apr_left")
        pauses, pause = [], SOONEST
        await one.look()
        while pause < LATEST:
            one.now += pause - 0.01
            await one.look()
            pauses.append(pause)
            assert len(one.made) == len(pauses), "not before its time"
            one.now += 0.02
            await one.look()
            assert len(one.made) == len(pauses) + 1
            pause = min(2 * pause, LATEST)
        assert pauses == [2, 4, 8, 16, 32]


async def test_a_call_that_is_under_way_is_made_once() -> None:
    async with office() as one:
        one.goes_on.clear()
        await one.approved("apr_left")
        for _ in range(3):
            one.now += LATEST
            await one.look()
        assert (one.made, one.errands.under_way) == (["apr_left"], 1)


async def test_the_calls_of_an_agent_that_may_not_wait_for_nothing_but_that() -> None:
    async with office() as one:
        one.lets = ()
        await one.approved("apr_left")
        await one.look()
        assert one.made == []
        one.lets = None
        await one.look()
        assert one.made == ["apr_left"]


async def test_more_than_a_gateway_makes_at_once_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands, "_MOST", 2)
    async with office() as one:
        one.goes_on.clear()
        for number in range(3):
            await one.approved(f"apr_{number}")
        await one.look()
        assert one.errands.under_way == 2
        one.goes_on.set()
        await asyncio.sleep(0)
        await one.look()
        assert sorted(one.made) == ["apr_0", "apr_1", "apr_2"]


async def test_the_gateway_that_a_call_was_left_with_makes_it_as_soon_as_it_hears_of_the_yes() -> None:
    async with office() as one:
        soon = one.register.now_ns() + 3600 * SECOND
        pending = approval(id="apr_left", decide_by=soon)
        await one.register.open(pending)
        left = await one.holds.detach(pending)
        assert left.detached
        assert await one.holds.detach(left) is left
        one.errands.begin()
        await asyncio.sleep(0)
        await one.register.replace(replace(left, version=left.version + 1, state=State.APPROVED, use_by=soon))
        async with asyncio.timeout(1):
            while not one.made:
                await asyncio.sleep(0.001)


async def test_a_gateway_that_stops_begins_nothing_more() -> None:
    async with office() as one:
        await one.approved("apr_left")
        one.holds.let_go()
        await one.look()
        assert one.made == []


async def test_what_is_under_way_when_the_time_to_finish_is_over_is_cut() -> None:
    async with office() as one:
        one.goes_on.clear()
        await one.approved("apr_left")
        await one.look()
        await one.errands.end(0.0)
        assert one.errands.under_way == 0
