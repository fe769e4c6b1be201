"""The store in memory that tests of held calls stand on promises what the real ones do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from policies.approval_store import ApprovalStore
from tests.gateway.state.approvals_suite import NOW, SECOND, ApprovalsSuite
from tests.support.register import Register


class HeldStage:
    def __init__(self) -> None:
        self.ns = NOW
        self.register = Register(lambda: self.ns)

    @property
    def handles(self) -> Sequence[ApprovalStore]:
        return [self.register]

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * SECOND)

    async def restart(self) -> None:
        """What is in memory of this process stays."""


@pytest.fixture
def stage() -> HeldStage:
    return HeldStage()


class TestTheRegister(ApprovalsSuite):
    """Nothing but what all promise."""
