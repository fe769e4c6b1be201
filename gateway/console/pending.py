"""The calls that wait for people, in the order somebody wants to see them in: their own first, then by urgency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.approval_view import visible
from gateway.callids import CallIds
from policies.approval_store import HEAR, ApprovalStore
from policies.approvals import ENDED, Approval, State
from policies.binding import arguments

MOST: Final = 5000
"""Calls in one state that are looked at; where there are more, the oldest are shown."""

ENOUGH: Final = 100
"""Calls that have ended, of which a list shows the last."""
OVER: Final = ENDED - {State.UNKNOWN}

_AT_ONCE: Final = 100
_FIRST_BACK: Final = 60_000_000_000
_FURTHER: Final = 8
"""How far back is looked for what has ended: first a minute, in nanoseconds, then so many times as far."""
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
        self._ids = CallIds()
        self._found: dict[State | None, tuple[float, Sequence[Held]]] = {}
        self.changes = 0
        """How often an approval was changed, as far as this process has heard."""
        self._lock = asyncio.Lock()
        store.listen(self._changed)

    async def listed(self, state: State) -> Sequence[Held]:
        """Those in this state, the oldest first. Raises StoreUnavailable."""
        return await self._kept(state, lambda: self._look([state]))

    async def ended(self) -> Sequence[Held]:
        """Of those with which it is over the ones that ended last, the latest first. Raises StoreUnavailable."""
        return await self._kept(None, self._look_back)

    async def _kept(self, what: State | None, look: Callable[[], Awaitable[Sequence[Held]]]) -> Sequence[Held]:
        async with self._lock:
            at, held = self._found.get(what, (0.0, ()))
            if what in self._found and self._clock() - at < HEAR:
                return held
            changes, began = self.changes, self._clock()
            held = await look()
            if changes == self.changes:
                self._found[what] = began, held
            return held

    async def _look_back(self) -> Sequence[Held]:
        """The store lists the oldest first: further and further back, until there are enough."""
        now, back = self._store.now_ns(), _FIRST_BACK
        while (begin := now - back) > 0:
            held = await self._look(OVER, f"apr_{self._ids.next(begin)}")
            if len(held) >= ENOUGH:
                break
            back *= _FURTHER
        else:
            held = await self._look(OVER)
        return sorted(held, key=lambda each: (each.approval.changed, each.approval.id), reverse=True)[:ENOUGH]

    async def _look(self, states: Collection[State], after: str | None = None) -> Sequence[Held]:
        held: list[Held] = []
        while len(held) < MOST:
            batch = await self._store.listed(states, None, after, _AT_ONCE)
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
    body = arguments(approval.call) or approval.call.body
    excerpt = visible(body[:_EXCERPT].decode("utf-8", "replace")) + (" ..." if len(body) > _EXCERPT else "")
    return Held(replace(approval, call=replace(approval.call, body=b"", arguments=b"")), excerpt)
