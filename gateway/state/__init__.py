"""What outlives a call or is counted across calls: in one process's own file, or on a server for several."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.state.embedded import EmbeddedStore
from gateway.state.errors import StateUnusable
from gateway.state.limits import EmbeddedLimits
from policies.budgets import Store
from policies.limits import LimitStore

__all__ = ["State", "StateUnusable", "open_state"]

_FILE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is kept at one place."""

    budgets: Store
    limits: LimitStore

    async def close(self) -> None:
        """Carries out what is under way, as far as that is possible in a few seconds."""
        await self.budgets.close()


def open_state(url: str, clock: Callable[[], int] = time.time_ns) -> State:
    """The state at a place as the setting `state` names it; `clock` gives Unix nanoseconds. Raises StateUnusable."""
    if url.startswith(_FILE):
        return State(EmbeddedStore(Path(url.removeprefix(_FILE)), clock), EmbeddedLimits())
    raise StateUnusable(f"There is no way to keep state at {url.partition('://')[0]}.")
