"""The calls that wait for people, in the order somebody wants to see them in: their own first, then by urgency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.approval_view import visible
from policies.approval_store import HEAR, ApprovalStore
from policies.approvals import Approval, State

MOST: Final = 5000
"""Calls in one state that are looked at; where there are more, the oldest are shown."""

_AT_ONCE: Final = 100
_EXCERPT: Final = 200
"""Bytes of a body that a list shows the beginning of."""


@dataclass(frozen=True, slots=True)
class Held:
    """One call of a list: the approval without its body, and how that begins."""

    approval: Approval
    excerpt: str


class Pending:
    """Looks approvals up once for everybody who looks at the list, and again when one has changed."""

    def __init__(self, store: ApprovalStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._found: dict[State, tuple[float, Sequence[Held]]] = {}
        self.changes = 0
        """How often an approval was changed, as far as this process has heard."""
        self._lock = asyncio.Lock()
        store.listen(self._changed)

    async def listed(self, state: State) -> Sequence[Held]:
        """Those in this state, the oldest first. Raises StoreUnavailable."""
        async with self._lock:
            at, held = self._found.get(state, (0.0, ()))
            if state in self._found and self._clock() - at < HEAR:
                return held
            changes, began = self.changes, self._clock()
            held = await self._look(state)
            if changes == self.changes:
                self._found[state] = began, held
            return held

    async def _look(self, state: State) -> Sequence[Held]:
        held: list[Held] = []
        after: str | None = None
        while len(held) < MOST:
            batch = await self._store.listed([state], None, after, _AT_ONCE)
            held += map(_short, batch)
            if len(batch) < _AT_ONCE:
                break
            after = batch[-1].id
        return held

    def _changed(self, ids: Collection[str] | None) -> None:
        self.changes += 1
        self._found.clear()


def in_order(held: Sequence[Held], mine: Callable[[Approval], bool]) -> list[tuple[Held, bool]]:
    """Those that somebody can decide first, each with whether it is one, then by deadline."""
    found = [(each, mine(each.approval)) for each in held]
    return sorted(found, key=lambda pair: (not pair[1], pair[0].approval.decide_by, pair[0].approval.id))


def _short(approval: Approval) -> Held:
    body = approval.call.body
    excerpt = visible(body[:_EXCERPT].decode("utf-8", "replace")) + (" ..." if len(body) > _EXCERPT else "")
    return Held(replace(approval, call=replace(approval.call, body=b"")), excerpt)
