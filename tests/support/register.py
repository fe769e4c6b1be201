"""Approvals, grants and standings in memory: a store that promises all but to last, and can be told to be away."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from policies.approval_store import Answer, ApprovalStore, Message, Standing, StoreUnavailable
from policies.approvals import ACTIVE, Approval, State, due
from policies.grants import Grant


class Register:
    """A `policies.approval_store.ApprovalStore`. `clock` gives Unix nanoseconds."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self.failure: str | None = None
        self.kept: dict[str, Approval] = {}
        self.told: list[Message] = []
        """Every message that was ever left, in order."""
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        self._outbox: dict[str, tuple[Message, int]] = {}
        self._keys: dict[str, str] = {}
        """The approval that was opened last, by its key."""
        self._due: dict[str, int] = {}
        """When a message is to be told, whoever has it meanwhile."""
        self._grants: dict[str, Grant] = {}
        self._revoked: set[str] = set()
        self._used: dict[str, dict[str, int]] = {}
        self._standings: dict[tuple[str, str], Standing] = {}
        self._listeners: list[Callable[[Collection[str] | None], None]] = []

    def now_ns(self) -> int:
        return self._clock()

    def begin(self) -> None:
        return None

    async def close(self) -> None:
        return None

    def listen(self, changed: Callable[[Collection[str] | None], None]) -> None:
        self._listeners.append(changed)

    def miss(self) -> None:
        """Something may have been missed."""
        self._tell(None)

    async def open(self, fresh: Approval, messages: Sequence[Message] = ()) -> Approval:
        self._there()
        if fresh.id in self.kept:
            return self.kept[fresh.id]
        last = self._last(fresh.key)
        if last is not None and last.state in ACTIVE:
            return last
        self._put(fresh, messages)
        return fresh

    async def get(self, approval: str) -> Approval | None:
        self._there()
        return self.kept.get(approval)

    async def versions(self, approvals: Collection[str]) -> Mapping[str, int]:
        self._there()
        return {name: self.kept[name].version for name in approvals if name in self.kept}

    async def last(self, key: str) -> Approval | None:
        self._there()
        return self._last(key)

    async def replace(self, after: Approval, messages: Sequence[Message] = (), *, answer: Answer | None = None) -> bool:
        self._there()
        known = self.kept.get(after.id)
        if known == after:
            return True
        if known is None or known.version != after.version - 1:
            return False
        if answer is not None:
            self._answers[after.id] = answer
        self._put(after, messages)
        return True

    async def supersede(self, before: Approval, fresh: Approval, messages: Sequence[Message] = ()) -> bool:
        self._there()
        known = self.kept.get(before.id)
        if known == before and fresh.id in self.kept:
            return True
        if known is None or known.version != before.version - 1:
            return False
        last = self._last(fresh.key)
        if last is not None and last.id != before.id and last.state in ACTIVE:
            return False
        self._put(before, ())
        self._put(fresh, messages)
        return True

    async def answer(self, approval: str) -> Answer | None:
        self._there()
        return self._answers.get(approval)

    async def listed(
        self, states: Collection[State], tenant: str | None = None, after: str | None = None, most: int = 100
    ) -> Sequence[Approval]:
        self._there()
        found = sorted(self.kept.values(), key=lambda each: each.id)
        return [
            each
            for each in found
            if each.state in states and tenant in (None, each.call.tenant) and (after is None or each.id > after)
        ][:most]

    async def due(self, now: int, most: int = 100) -> Sequence[Approval]:
        self._there()
        found = [(at, each) for each in self.kept.values() if (at := due(each)) is not None and at <= now]
        return [each for _, each in sorted(found, key=lambda pair: pair[0])][:most]

    async def messages(self, now: int, lease: int, most: int = 20) -> Sequence[Message]:
        self._there()
        due = [message for message, at in self._outbox.values() if at <= now]
        ready = sorted(due, key=lambda each: (self._due[each.id], each.id))[:most]
        for message in ready:
            self._outbox[message.id] = (message, now + lease)
        return ready

    async def delivered(self, message: str) -> None:
        self._there()
        self._outbox.pop(message, None)

    async def postponed(self, message: str, until: int) -> None:
        self._there()
        if message in self._outbox and self._due[message] != until:
            known, _ = self._outbox[message]
            self._outbox[message] = (replace(known, tries=known.tries + 1), until)
            self._due[message] = until

    async def grant(self, grant: Grant) -> None:
        self._there()
        if grant.id not in self._revoked:
            self._grants.setdefault(grant.id, grant)
        self._tell([grant.id])

    async def grants(self) -> Sequence[Grant]:
        self._there()
        return [each for each in self._grants.values() if each.lasts(self._clock())]

    async def use(self, grant: str, call: str, cost: int) -> bool:
        self._there()
        known = self._grants.get(grant)
        if known is None:
            return False
        used = self._used.setdefault(grant, {})
        if call in used:
            return True
        if not known.lasts(self._clock()) or (known.max_cost is not None and known.cost + cost > known.max_cost):
            return False
        used[call] = cost
        self._grants[grant] = replace(known, uses=known.uses + 1, cost=known.cost + cost)
        return True

    async def give_back(self, grant: str, call: str) -> None:
        self._there()
        cost = self._used.get(grant, {}).pop(call, None)
        if cost is not None and grant in self._grants:
            known = self._grants[grant]
            self._grants[grant] = replace(known, uses=known.uses - 1, cost=known.cost - cost)

    async def revoke(self, grant: str) -> bool:
        self._there()
        there = self._grants.pop(grant, None) is not None
        self._revoked.add(grant)
        self._tell([grant])
        return there

    async def standings(self) -> Mapping[tuple[str, str], Standing]:
        self._there()
        return dict(self._standings)

    async def stand(self, tenant: str, agent: str, standing: Standing) -> bool:
        self._there()
        known = self._standings.get((tenant, agent))
        if known == standing:
            return True
        if standing.epoch != (known.epoch if known is not None else 0) + 1:
            return False
        self._standings[tenant, agent] = standing
        return True

    def _there(self) -> None:
        if self.failure is not None:
            raise StoreUnavailable(self.failure)

    def _last(self, key: str) -> Approval | None:
        return self.kept[self._keys[key]] if key in self._keys else None

    def _put(self, approval: Approval, messages: Sequence[Message]) -> None:
        if approval.id not in self.kept:
            self._keys[approval.key] = approval.id
        self.kept[approval.id] = approval
        for message in messages:
            if message.id not in self._due:
                self.told.append(message)
                self._due[message.id] = message.at
                self._outbox[message.id] = (message, message.at)
        self._tell([approval.id])

    def _tell(self, ids: Collection[str] | None) -> None:
        for listener in self._listeners:
            listener(ids)


Weather = Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""What becomes of one question on its way: it is told which, and asks it when and if it likes."""


def by_way_of(register: Register, weather: Weather, *, deaf: bool = False) -> ApprovalStore:
    """The register as one gateway reaches it; one that is `deaf` is told of no change."""

    class Way:
        def __getattr__(self, name: str) -> Any:
            found = getattr(register, name)
            if name in ("now_ns", "begin", "failure") or not callable(found):
                return found
            if name == "listen":
                return (lambda _: None) if deaf else found

            async def ask(*given: Any, **named: Any) -> Any:
                return await weather(name, lambda: found(*given, **named))

            return ask

    return cast(ApprovalStore, Way())
