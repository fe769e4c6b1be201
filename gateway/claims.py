"""One approval, one use: what one call of this process does with an approval, from the moment that it goes on to use it
until the store knows what came of it.

    TAKEN ----- claim ----> CLAIMING ----- the store is asked ----> DOUBTFUL ----- and has it ----> CLAIMED
      | the call is over     | it cannot be claimed: TAKEN           | another was first: CLAIMING   | renewed: CLAIMED
      | or waits once more   |                                       | the call is over: TELLING     | over: TELLING
      +--> given back                                 TELLING ----- the store knows ----> given back

What is given back another call of this process may take; between processes the compare and set of the store decides.
What a crash leaves behind of a use that was

    TAKEN or CLAIMING          nothing: the approval can be used until its time is over
    CLAIMED, before sending    UNKNOWN once the lease is over: nobody can tell it from the next
    CLAIMED, after sending     UNKNOWN once the lease is over: shown to people, never sent again by itself
    DOUBTFUL or TELLING        what the store has got of it: as of the stage before, or of the one after
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from gateway.exchange import Exchange, Reached
from gateway.holding import Holds
from policies import approvals
from policies.approval_store import Answer, StoreUnavailable
from policies.approvals import Approval, Move, Refused, State

log = logging.getLogger("weighbridge.claims")

LEASE: Final = 30.0
"""Seconds without a word after which the gateway that has claimed an approval is taken for dead."""
RENEW: Final = 10.0
"""Seconds between two words."""
AGAIN: Final = 1.0
"""Seconds until the store, which was away, is told once more what came of a call."""

_LEASE_NS: Final = int(LEASE * 1_000_000_000)
_TRIES: Final = 8
_ENDED: Final = ("ok", "client_gone", "budget_exhausted")
"""How calls end whose agents are told, in their protocol's words, how the answer ended."""
_WORDS: Final = {Move.RELEASE: "released", Move.FINISH: "done", Move.LOSE: "unknown"}
"""The words for what can come of a call that has claimed an approval."""


class NotUsable(Exception):
    """The approval of a call is not what it was: an identical call was quicker, or it has ended. Look again."""


class Stage(enum.Enum):
    """How far the use of an approval is."""

    TAKEN = "taken"
    """A call goes on to use it, and the identical ones of this process wait for what comes of that."""
    CLAIMING = "claiming"
    """It is looked at once more, in a task that needs no call."""
    DOUBTFUL = "doubtful"
    """The store is asked to keep the claim, or was and has not answered: nobody knows whether it stands."""
    CLAIMED = "claimed"
    """The claim stands, as far as its lease goes, which is renewed."""
    TELLING = "telling"
    """The call is over, and what came of it is on its way to the store."""


FOLLOWS: Final[Mapping[Stage, frozenset[Stage]]] = {
    Stage.TAKEN: frozenset({Stage.CLAIMING}),
    Stage.CLAIMING: frozenset({Stage.TAKEN, Stage.DOUBTFUL}),
    Stage.DOUBTFUL: frozenset({Stage.CLAIMING, Stage.CLAIMED, Stage.TELLING}),
    Stage.CLAIMED: frozenset({Stage.TELLING}),
    Stage.TELLING: frozenset(),
}
"""What a stage can lead to. A use ends, and is given back, TAKEN or TELLING."""


@dataclass(slots=True, eq=False)
class Use:
    """Of one approval, by the call with this id."""

    call: str
    stage: Stage = Stage.TAKEN
    claiming: asyncio.Task[None] | None = None
    """A call may be ended while its claim is on its way, and what comes of that must be known."""
    claim: Approval | None = None
    """The approval as claimed, or renewed, last; None where no claim stands, or nobody knows."""

    def comes_to(self, stage: Stage) -> None:
        assert stage in FOLLOWS[self.stage], f"what is {self.stage.value} is not {stage.value} next"
        self.stage = stage


class Claims:
    """The approvals that calls of this process use. What asks the store raises StoreUnavailable."""

    def __init__(self, holds: Holds) -> None:
        self._holds = holds
        self._uses: dict[str, Use] = {}
        """By the approval's id."""

    def begin(self) -> None:
        """Claims are renewed until the end of the holds, which waits for what is being told."""
        self._holds.keep("renew the claims of", self.renew, RENEW)

    def take(self, approval: str, call: str) -> bool:
        """Whether the call may go on to use it: one of this process at a time, until `claim` has found it NotUsable or
        `conclude` is done with it."""
        if approval in self._uses:
            return False
        self._uses[approval] = Use(call)
        return True

    def taken(self, approval: str) -> bool:
        """Whether a call of this process uses it."""
        return approval in self._uses

    async def claim(self, approval: str) -> None:
        """Uses up, durably, what was taken. Raises NotUsable, Refused.

        After NotUsable it is given back, and other calls that wait for it look again. A call that is ended meanwhile
        takes no claim with it: `conclude` waits for what comes of it.
        """
        use = self._uses[approval]
        use.comes_to(Stage.CLAIMING)
        use.claiming = asyncio.create_task(self._claim(approval, use), name=f"claim of {approval}")
        use.claiming.add_done_callback(_seen)
        try:
            await asyncio.shield(use.claiming)
        except NotUsable:
            self._give_back(approval)
            raise

    async def _claim(self, approval: str, use: Use) -> None:
        holds, store = self._holds, self._holds.store
        try:
            for _ in range(_TRIES):
                found = await store.get(approval)
                if found is None:
                    raise Refused("This approval is not known any more.")
                found = await holds.aged(found)
                if found.state is not State.APPROVED:
                    raise NotUsable
                now = store.now_ns()
                if not holds.approves(found, found.needs):
                    why = "Those who have approved it may not any more."
                    if await holds.put(approvals.moved(found, Move.REVOKE, now, why), "revoked"):
                        raise Refused(why)
                    continue
                try:
                    claimed = approvals.claimed(found, use.call, _LEASE_NS, now)
                except Refused:
                    raise NotUsable from None
                # Where the store's reply is lost, the claim may stand, and has to be given back. What it would have
                # been is no ground to stand on: the next version may be another call's claim.
                use.comes_to(Stage.DOUBTFUL)
                if await holds.put(claimed, "consumed"):
                    use.comes_to(Stage.CLAIMED)
                    use.claim = claimed
                    return
                use.comes_to(Stage.CLAIMING)
            raise StoreUnavailable("Others are changing this approval at the same time.")
        finally:
            if use.stage is Stage.CLAIMING:
                use.comes_to(Stage.TAKEN)

    def still_claimed(self, approval: str) -> bool:
        """Whether a claim that was made here holds: nobody takes its call for lost, and people for one to be looked
        after."""
        use = self._uses.get(approval)
        claim = use.claim if use is not None else None
        return (
            claim is not None
            and claim.state is State.CONSUMED
            and claim.lease_until is not None
            and self._holds.store.now_ns() < claim.lease_until
        )

    async def renew(self) -> None:
        """Says that the calls which have claimed approvals are still under way."""
        store = self._holds.store
        for use in list(self._uses.values()):
            claim = use.claim
            if claim is None or claim.state is not State.CONSUMED:
                continue
            after: Approval | None = replace(claim, version=claim.version + 1, lease_until=store.now_ns() + _LEASE_NS)
            if after is not None and not await store.replace(after):
                after = await store.get(claim.id)
            if after is not None and after.claimed_by == use.call:
                use.claim = after

    def conclude(self, x: Exchange, answer: Answer | None) -> None:
        """Tells what came of a call that has taken an approval, and lets others have it. Never raises, never waits.

        `answer` is the target's, where it came to its end.
        """
        assert x.approval is not None, "only a call with an approval has something to tell of it"
        which = x.approval.id
        if self._uses[which].stage is Stage.TAKEN:
            self._give_back(which)
        else:
            self._holds.later(self._tell(which, self._uses[which], _outcome(x, answer)), "what came of a held call")

    async def _tell(self, approval: str, use: Use, came: _Came) -> None:
        assert use.claiming is not None, "a use that is further than TAKEN was claimed"
        try:
            await asyncio.wait([use.claiming])
            if use.stage is Stage.TAKEN:
                return
            use.comes_to(Stage.TELLING)
            while not await self._told(approval, use, came):
                if self._holds.ending:
                    log.error("what came of the approved call %s (%s) cannot be kept", came.call, came.move)
                    return
                await self._holds.pause(AGAIN)
        finally:
            self._give_back(approval)

    async def _told(self, approval: str, use: Use, came: _Came) -> bool:
        """Whether the store knows what came of a claim, or will not take it; False where it has to be told again."""
        store = self._holds.store
        try:
            found = use.claim or await store.get(approval)
            for _ in range(_TRIES):
                if found is None or found.claimed_by != came.call:
                    return True  # nothing was claimed, or it was another call
                if found.state is State.DONE or (found.state is State.UNKNOWN and came.move is not Move.FINISH):
                    return True  # it was told, and the reply was lost; or it took longer than its lease
                after = _after(found, came, store.now_ns())
                if await self._holds.put(after, _WORDS[came.move], answer=came.answer):
                    return True
                found = await store.get(approval)
        except StoreUnavailable:
            return False
        except Refused as error:
            log.error("what came of the approved call %s cannot be kept: %s", came.call, error)
            return True
        return False

    def _give_back(self, approval: str) -> None:
        """Another call may have it."""
        del self._uses[approval]
        self._holds.wake(approval)


def _seen(claiming: asyncio.Task[None]) -> None:
    """Whoever wanted to know what comes of it may have left."""
    if not claiming.cancelled():
        claiming.exception()


@dataclass(frozen=True, slots=True)
class _Came:
    """What came of a call that may have claimed an approval."""

    call: str
    move: Move
    why: str = ""
    answer: Answer | None = None
    left: bool = False
    """Whether its agent has gone without the whole answer."""


def _outcome(x: Exchange, answer: Answer | None) -> _Came:
    """An answer that broke off or was cut tells nobody what its target has done."""
    here = x.call is not None and x.call.endpoint.answered_here and x.code == "ok"
    if x.reached is Reached.NO and not x.bills and not here:
        return _Came(x.id, Move.RELEASE)
    ended = x.code in _ENDED or (x.whole and answer is not None)
    if here or (x.reached is Reached.ANSWERED and ended):
        return _Came(x.id, Move.FINISH, answer=answer, left=x.code == "client_gone")
    what = "its answer did not come to its end" if x.reached is Reached.ANSWERED else "no answer came"
    return _Came(x.id, Move.LOSE, f"The call was on its way, and {what} ({x.code}).")


def _after(claimed: Approval, came: _Came, now: int) -> Approval:
    """What a claimed approval becomes. Raises Refused."""
    match came.move:
        case Move.RELEASE:
            return approvals.released(claimed, came.call, now)
        case Move.FINISH:
            return replace(approvals.finished(claimed, came.call, now), unheard=came.left)
        case _:
            return replace(approvals.moved(claimed, Move.LOSE, now, came.why), lease_until=None)
