"""What outlives a call or is counted across calls: in one process's own file, or on a server for several."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.redis_url import RedisUrl
from gateway.state.approvals import EmbeddedApprovals
from gateway.state.definitions import EmbeddedDefinitions
from gateway.state.embedded import EmbeddedStore
from gateway.state.errors import StateUnusable
from gateway.state.keys import EmbeddedKeys, Keys, RedisKeys
from gateway.state.limits import EmbeddedLimits
from gateway.state.redis import RedisStore
from gateway.state.redis_approvals import RedisApprovals
from gateway.state.redis_definitions import RedisDefinitions
from gateway.state.redis_limits import RedisLimits
from gateway.state.redis_routes import RedisRoutes
from gateway.state.routes import EmbeddedRoutes
from policies.approval_store import ApprovalStore
from policies.budgets import Store
from policies.definitions import DefinitionStore
from policies.limits import LimitStore
from routing.course import RouteStore

__all__ = ["State", "StateUnusable", "file_of", "open_state"]

_FILE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is kept at one place."""

    budgets: Store
    limits: LimitStore
    routes: RouteStore
    approvals: ApprovalStore
    keys: Keys
    definitions: DefinitionStore

    def begin(self) -> None:
        """Begins to connect to where it is kept, in a running event loop. What is asked earlier begins it, too."""
        self.budgets.begin()
        self.limits.begin()
        self.routes.begin()
        self.approvals.begin()

    async def close(self) -> None:
        """Carries out what is under way, as far as that is possible in a few seconds."""
        await self.approvals.close()
        await self.limits.close()
        await self.routes.close()
        await self.budgets.close()


def file_of(url: str) -> Path | None:
    """The file in which one process keeps its state; None where it is on a server."""
    return Path(url.removeprefix(_FILE)) if url.startswith(_FILE) else None


def open_state(url: str, clock: Callable[[], int] = time.time_ns) -> State:
    """The state at a place as the setting `state` names it; `clock` gives Unix nanoseconds. Raises StateUnusable."""
    file = file_of(url)
    if file is not None:
        embedded = EmbeddedStore(file, clock)
        routes: RouteStore = EmbeddedRoutes(embedded, clock)
        approvals: ApprovalStore = EmbeddedApprovals(embedded, clock)
        keys, definitions = EmbeddedKeys(embedded), EmbeddedDefinitions(embedded)
        return State(embedded, EmbeddedLimits(), routes, approvals, keys, definitions)
    try:
        address = RedisUrl.parse(url)
    except ValueError as error:
        raise StateUnusable(f"The place of the state {error}.") from None
    store = RedisStore(address, clock=clock)
    servers = store.servers
    routes, approvals = RedisRoutes(servers), RedisApprovals(servers)
    return State(store, RedisLimits(servers), routes, approvals, RedisKeys(servers), RedisDefinitions(servers))
