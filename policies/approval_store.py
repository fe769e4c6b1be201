"""Where approvals, grants and what people are to be told are kept: the seam that one process and several implement.

Nothing is announced before it is durable: when a method returns, a kill -9 of every gateway takes nothing of it away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from policies.approvals import Approval, State
from policies.grants import Grant

KEPT: Final = 7 * 86_400
"""Seconds for which an approval that has ended can be looked up."""
ANSWERS_KEPT: Final = 3600
"""Seconds for which an answer can be given again."""
MOST_ANSWER: Final = 1024 * 1024
"""Bytes of an answer that is kept for others who wait for the same call."""
HEAR: Final = 2.0
"""Seconds after which a change is noticed though nobody has told of it."""


class StoreUnavailable(Exception):
    """The store cannot be asked now; what was wanted may have happened or not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent of an approved call was answered with."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """Something to tell people's systems, until it was taken or given up: `id` is the same at every try.

    `facts` are JSON values. `at` is when it happened, in Unix nanoseconds.
    """

    id: str
    what: str
    approval: str
    facts: Mapping[str, Any]
    at: int
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How an agent stands, by a person's word: `active`, `paused` or `quarantined`. `epoch` counts the changes."""

    state: str
    reason: str
    by: str
    at: int
    epoch: int


class ApprovalStore(Protocol):
    """All methods raise StoreUnavailable. Times are Unix nanoseconds by `now_ns`."""

    @property
    def failure(self) -> str | None:
        """Why it cannot be asked; None when it can."""
        ...

    def now_ns(self) -> int:
        """The clock that all gateways of this store have in common."""
        ...

    def begin(self) -> None:
        """Begins to connect and to listen, in a running event loop. What is asked earlier begins it, too."""
        ...

    def listen(self, changed: Callable[[Collection[str] | None], None]) -> None:
        """From now on `changed` is called, in the event loop, with the ids of approvals that were changed here or
        elsewhere; with None where some may have been missed. A listener then asks for those it waits for."""
        ...

    # Approvals

    async def open(self, fresh: Approval, messages: Sequence[Message] = ()) -> Approval:
        """Keeps a new approval, with its messages, in one step; the one that is ACTIVE with the same key where there is
        one, and then nothing has changed. Tried again, it is opened once."""
        ...

    async def get(self, approval: str) -> Approval | None:
        """One, by its id."""
        ...

    async def versions(self, approvals: Collection[str]) -> Mapping[str, int]:
        """The versions of those that there are: what somebody who waits for many asks for."""
        ...

    async def last(self, key: str) -> Approval | None:
        """The approval that was opened last with this key, active or not; None where it is forgotten."""
        ...

    async def replace(self, after: Approval, messages: Sequence[Message] = (), *, answer: Answer | None = None) -> bool:
        """Puts the next version in the place of the one before, with its messages and the answer, in one step. False
        where somebody else was first: nothing has changed then. The same change tried again is made once, and True."""
        ...

    async def supersede(self, before: Approval, fresh: Approval, messages: Sequence[Message] = ()) -> bool:
        """`replace` of one and `open` of the one that has its place, in one step. False, and nothing has changed, also
        where another approval is ACTIVE with the key of the fresh one. The same tried again is done once, and True."""
        ...

    async def answer(self, approval: str) -> Answer | None:
        """What its call was answered with; None where nothing is kept, or no longer."""
        ...

    async def listed(
        self, states: Collection[State], tenant: str | None = None, after: str | None = None, most: int = 100
    ) -> Sequence[Approval]:
        """Those in these states, the oldest first, from behind the id `after` on, which need not be there."""
        ...

    async def due(self, now: int, most: int = 100) -> Sequence[Approval]:
        """Those of which `approvals.due` is not later than `now`, in its order."""
        ...

    # What people are to be told

    async def messages(self, now: int, lease: int, most: int = 20) -> Sequence[Message]:
        """Messages whose time has come, in order, those of one moment by their ids; nobody else gets them for `lease`
        nanoseconds."""
        ...

    async def delivered(self, message: str) -> None:
        """It was taken, or is given up."""
        ...

    async def postponed(self, message: str, until: int) -> None:
        """It was not taken, and is tried again at `until`: `tries` is one more then. The same again counts once."""
        ...

    # Grants

    async def grant(self, grant: Grant) -> None:
        """Keeps a new one. Tried again, it is kept once; one that was revoked does not come back."""
        ...

    async def grants(self) -> Sequence[Grant]:
        """All that are neither used up, expired nor revoked, of all tenants: asked for every HEAR seconds, and when a
        listener is told of an id that begins with `grt_`."""
        ...

    async def use(self, grant: str, call: str, cost: int) -> bool:
        """Counts one use of a grant by a call, with its estimated cost in nano-dollars; False where it allows no more,
        or less than that. The same call counts once."""
        ...

    async def give_back(self, grant: str, call: str) -> None:
        """The use of a call that was not sent."""
        ...

    async def revoke(self, grant: str) -> bool:
        """Ends a grant at once; False where there is none."""
        ...

    # How agents stand

    async def standings(self) -> Mapping[tuple[str, str], Standing]:
        """Of all agents of which a person has said something, by (tenant, name); asked for twice a second."""
        ...

    async def stand(self, tenant: str, agent: str, standing: Standing) -> bool:
        """Sets how an agent stands; False where its epoch is not the next one. The same again is set once, and True."""
        ...

    async def close(self) -> None: ...
