"""Limits of one process, on a clock that is held."""

from __future__ import annotations

import pytest

from gateway.state.limits import EmbeddedLimits
from tests.gateway.state.limits_suite import LimitsSuite, Stage


class HeldStage:
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self._ns = 5_000_000_000
        self.store = EmbeddedLimits(lambda: self._ns)

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
