"""Approvals, grants and standings of one process, on a clock that is held, in a file that may fail under them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from gateway.state.approvals import EmbeddedApprovals
from gateway.state.embedded import EmbeddedStore
from policies.approval_store import ApprovalStore
from tests.gateway.state.approvals_suite import NOW, ApprovalsSuite
from tests.support.stores import copied, in_memory


class HeldStage:
    """Time passes when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ns = NOW
        self._open()

    def _open(self) -> None:
        self.budgets = EmbeddedStore(self.path, fold_every=0.005)
        self.store = EmbeddedApprovals(self.budgets, lambda: self.ns)

    @property
    def handles(self) -> Sequence[ApprovalStore]:
        return [self.store]

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * 10**9)

    async def restart(self) -> None:
        await self.close()
        self._open()

    async def kill(self) -> None:
        """What a kill would leave here and now is what goes on; the stores themselves end elsewhere, in peace."""
        self.path = copied(self.path)
        await self.restart()

    async def close(self) -> None:
        await self.store.close()
        await self.budgets.close()

    async def mended(self) -> None:
        async with asyncio.timeout(20):
            while self.store.failure is not None:
                await asyncio.sleep(0.005)

    @property
    def database(self) -> sqlite3.Connection:
        return self.budgets._journal._db


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
async def stage(folder: Path) -> AsyncIterator[HeldStage]:
    opened = HeldStage(folder / "state.db")
    yield opened
    await opened.close()


class TestEmbeddedApprovals(ApprovalsSuite):
    """The suite of all stores."""
