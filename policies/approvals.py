"""May this call happen, by people: what becomes of a call that the policy wants approved, from the moment it is held to
the record of what came of it.

Everything here is a pure function of an approval, the clock and what somebody wants; a compare and set of the stored
approval decides who was first. Times are Unix nanoseconds by the clock of the store.

    PENDING ---- enough votes ----> APPROVED ---- claim ----> CONSUMED ---- finish ----> DONE
       | deny: DENIED                  | nobody came: LAPSED     | nobody knows: UNKNOWN ---- late truth ----> DONE
       | time is over: EXPIRED         | taken back: REVOKED     | surely not sent: APPROVED again
       | taken back: CANCELLED
       | with other arguments: SUPERSEDED
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from policies.quorum import missing


class State(enum.StrEnum):
    """Where an approval is. Agents, people and the record have the same words."""

    PENDING = "pending"
    """People are asked."""
    APPROVED = "approved"
    """All slots are filled; the call may run once, until `use_by`."""
    DENIED = "denied"
    """Somebody who may has said no."""
    EXPIRED = "expired"
    """Nobody, or not enough, said anything in time."""
    CANCELLED = "cancelled"
    """The call was taken back before it was decided: by its agent, a person, or because its agent was stopped."""
    SUPERSEDED = "superseded"
    """A person wanted other arguments: another approval has its place."""
    CONSUMED = "consumed"
    """The call is about to be sent, or is under way."""
    DONE = "done"
    """The call was sent, and what came of it is known."""
    UNKNOWN = "unknown"
    """The call may have been sent, and nobody knows what came of it. It is never sent again by itself."""
    LAPSED = "lapsed"
    """Nobody came to use it in time."""
    REVOKED = "revoked"
    """It was taken back after it was given: by a person, also one who has found out that its call did not run; by the
    policy, or because an approver may no longer."""


class Move(enum.StrEnum):
    """What can happen to an approval."""

    APPROVE = "approve"
    DENY = "deny"
    EXPIRE = "expire"
    CANCEL = "cancel"
    SUPERSEDE = "supersede"
    CLAIM = "claim"
    LAPSE = "lapse"
    REVOKE = "revoke"
    FINISH = "finish"
    RELEASE = "release"
    """It was claimed, and is surely not sent."""
    LOSE = "lose"
    """It was claimed, and nobody has told what came of it in time."""


TRANSITIONS: Final[Mapping[tuple[State, Move], State]] = {
    (State.PENDING, Move.APPROVE): State.APPROVED,
    (State.PENDING, Move.DENY): State.DENIED,
    (State.PENDING, Move.EXPIRE): State.EXPIRED,
    (State.PENDING, Move.CANCEL): State.CANCELLED,
    (State.PENDING, Move.SUPERSEDE): State.SUPERSEDED,
    (State.APPROVED, Move.CLAIM): State.CONSUMED,
    (State.APPROVED, Move.LAPSE): State.LAPSED,
    (State.APPROVED, Move.REVOKE): State.REVOKED,
    (State.CONSUMED, Move.FINISH): State.DONE,
    (State.CONSUMED, Move.RELEASE): State.APPROVED,
    (State.CONSUMED, Move.LOSE): State.UNKNOWN,
    (State.UNKNOWN, Move.FINISH): State.DONE,
    (State.UNKNOWN, Move.REVOKE): State.REVOKED,
}
"""Every move there is."""

ACTIVE: Final = frozenset({State.PENDING, State.APPROVED, State.CONSUMED})
"""States in which an identical call is the same call: it waits for what becomes of this one."""
ENDED: Final = frozenset(State) - ACTIVE


class Refused(Exception):
    """Somebody asked for what an approval's state or its rules do not allow; the text says what they do."""


class NotEntitled(Refused):
    """The person has none of the roles that are asked for, or is the one who asks."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What one person said. `roles` are those of the approval's slots that the person had then."""

    person: str
    yes: bool
    roles: tuple[str, ...]
    at: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call as it will run: `body`, `path`, `query` and `headers` are the bytes that came, and no others are sent.

    `path` is below the gateway. `headers` are those that go on to a target and mean something to it; none that is a
    secret. `stream` is how its agent wants the answer. `definition` is the hash of the tool's definition, empty where
    there is none. `cost` is its estimate in nano-dollars, None where nobody knows. `arguments` are what the policy has
    seen of it, as a JSON text, where that is not the body alone: a plain HTTP tool's path and query have some, too.
    """

    tenant: str
    agent: str
    session: str | None
    kind: str
    protocol: str
    target: str
    operation: str
    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    stream: bool
    definition: str = ""
    cost: int | None = None
    arguments: bytes = b""


@dataclass(frozen=True, slots=True)
class Approval:
    """One call and what people say of it.

    `id` is `apr_` and a ULID. `version` counts its changes, from 1. `call_id` names the call that was held first,
    `claimed_by` the one that uses it. `binding` says what was approved (see `policies.binding`), and `key` which calls
    are identical to it: those of the same binding in the same session. `needs` are roles, one or more: one person for
    each, and two people where a role stands twice. `requesters` are people who must not decide. `escalated` are roles
    of people who may decide as if they had any of the needed ones, once half of the time is over and they were told.
    `revision` names the policy that wanted it; `recorded` is what of the call may be shown in a record, where the
    policy masks it. `lease_until` is until when a claim is believed to be under way.
    """

    id: str
    version: int
    state: State
    call: HeldCall
    call_id: str
    binding: str
    key: str
    needs: tuple[str, ...]
    requesters: tuple[str, ...]
    risk_level: str | None
    explanation: str
    revision: str
    created: int
    decide_by: int
    use_within: int
    use_by: int | None = None
    votes: tuple[Vote, ...] = ()
    changed: int = 0
    """When it came to its state."""
    reason: str = ""
    """Why it came to it, for the agent and for people."""
    instead_of: str | None = None
    """The approval whose arguments a person has changed into these."""
    became: str | None = None
    """The approval that has its place, with other arguments."""
    claimed_by: str | None = None
    lease_until: int | None = None
    told: int = 0
    """How many reminders were sent."""
    escalated: tuple[str, ...] = ()
    earlier: str = ""
    """What people have to know of the identical call before: that it may have run, or has run lately."""
    unheard: bool = False
    """Whether the agent left before it had the answer: the next identical call gets it."""
    detached: bool = False
    """Whether the gateway makes the call itself once it is approved: its agent asks what became of it."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The slots that nobody has filled yet."""
        return missing(self.needs, {vote.person: vote.roles for vote in self.votes if vote.yes})


def moved(approval: Approval, move: Move, now: int, reason: str = "") -> Approval:
    """The next version. Raises Refused for a move that its state does not allow."""
    after = TRANSITIONS.get((approval.state, move))
    if after is None:
        raise Refused(f"It is {approval.state}: nobody can {move} it now.")
    return replace(approval, version=approval.version + 1, state=after, changed=now, reason=reason)


def voted(approval: Approval, person: str, roles: Collection[str], yes: bool, now: int, comment: str = "") -> Approval:
    """After one person's word: approved when the last slot is filled, denied at the first no.

    Raises NotEntitled, Refused.
    """
    if approval.state is not State.PENDING:
        raise Refused(f"It is {approval.state}: there is nothing to decide any more.")
    if now >= approval.decide_by:
        raise Refused("The time to decide is over.")
    if person == approval.call.agent:
        raise NotEntitled("Who asks for a call does not decide on it.")
    if person in approval.requesters:
        raise NotEntitled(f"You own {approval.call.agent}, or did when the call was held: others decide on it.")
    mine = entitled(approval, roles)
    if not mine:
        raise NotEntitled(f"This needs {', '.join(approval.needs)}; you have none of these roles.")
    if any(vote.person == person for vote in approval.votes):
        # a no has ended it, so it was a yes
        raise Refused(
            "You have said yes already, and cannot take it back. A no of anybody else who may decide still denies the "
            "call, and `admin` can cancel it."
        )
    vote = Vote(person, yes, mine, now, comment)
    after = replace(approval, votes=(*approval.votes, vote))
    if not yes:
        return moved(after, Move.DENY, now, comment)
    if after.missing:
        return replace(after, version=approval.version + 1)
    return replace(moved(after, Move.APPROVE, now), use_by=now + approval.use_within)


def entitled(approval: Approval, roles: Collection[str]) -> tuple[str, ...]:
    """Those of the approval's slots that somebody with these roles can fill; empty for none."""
    if approval.told and any(role in approval.escalated for role in roles):
        return tuple(dict.fromkeys(approval.needs))
    return tuple(dict.fromkeys(role for role in approval.needs if role in roles))


def may_decide(approval: Approval, person: str, roles: Collection[str]) -> bool:
    """Whether this person, with these roles, has a word on it that they have not said yet."""
    return (
        person not in approval.requesters
        and all(vote.person != person for vote in approval.votes)
        and bool(entitled(approval, roles))
    )


def still_valid(approval: Approval, roles_of: Callable[[str], Collection[str] | None]) -> bool:
    """Whether those who said yes may still say it: with the roles they said it in, as far as they have these now, they
    fill every slot. `roles_of` gives a person's roles as of now, None for who is gone."""
    return approves(approval, approval.needs, roles_of)


def approves(approval: Approval, needs: Sequence[str], roles_of: Callable[[str], Collection[str] | None]) -> bool:
    """As `still_valid`, of these slots: what the policy wants when it is asked again."""
    left: dict[str, tuple[str, ...]] = {}
    for vote in approval.votes:
        roles = roles_of(vote.person)
        if vote.yes and roles is not None and vote.person not in approval.requesters:
            left[vote.person] = tuple(role for role in entitled(approval, roles) if role in vote.roles)
    return not missing(needs, left)


def claimed(approval: Approval, call_id: str, lease: int, now: int) -> Approval:
    """Used up by a call, which has `lease` nanoseconds to tell what came of it. Raises Refused."""
    after = moved(approval, Move.CLAIM, now)
    if after.use_by is None or now >= after.use_by:
        raise Refused("The time to use this approval is over.")
    return replace(after, claimed_by=call_id, lease_until=now + lease)


def finished(approval: Approval, call_id: str, now: int, reason: str = "") -> Approval:
    """After the call that has claimed it has told what came of it. Raises Refused for any other."""
    if approval.claimed_by != call_id:
        raise Refused("Another call has claimed this approval.")
    return replace(moved(approval, Move.FINISH, now, reason), lease_until=None)


def heard(approval: Approval) -> Approval:
    """After an identical call has got the answer that its agent had not waited for."""
    return replace(approval, version=approval.version + 1, unheard=False)


def detached(approval: Approval) -> Approval:
    """After its agent has left the call with the gateway."""
    return replace(approval, version=approval.version + 1, detached=True)


def resolved(approval: Approval, by: str, ran: bool, now: int, comment: str) -> Approval:
    """After a person has found out whether an UNKNOWN call ran: DONE, or REVOKED, so that an identical call is held
    anew. Raises Refused."""
    if approval.state is not State.UNKNOWN:
        raise Refused(f"It is {approval.state}: whether it ran is a question only where that is unknown.")
    if not comment:
        raise Refused("How this was found out has to be said, in a comment.")
    why = f"{by} says that it {'ran' if ran else 'did not run'}: {comment}"
    return moved(approval, Move.FINISH if ran else Move.REVOKE, now, why)


def released(approval: Approval, call_id: str, now: int) -> Approval:
    """Given back by the call that has claimed it, of which nothing was sent. Raises Refused."""
    if approval.claimed_by != call_id:
        raise Refused("Another call has claimed this approval.")
    return replace(moved(approval, Move.RELEASE, now), claimed_by=None, lease_until=None)


def superseded(approval: Approval, by: Approval, now: int) -> Approval:
    """After a person wanted other arguments; `by` is the approval of these. Raises Refused."""
    return replace(moved(approval, Move.SUPERSEDE, now), became=by.id)


REMINDERS: Final = (0.5, 0.9)
"""Shares of the time to decide after which those who can decide are reminded."""


def passed(approval: Approval, now: int) -> Approval:
    """What time alone makes of it: the same object where it makes nothing."""
    if approval.state is State.PENDING and now >= approval.decide_by:
        return moved(approval, Move.EXPIRE, now)
    if approval.state is State.APPROVED and approval.use_by is not None and now >= approval.use_by:
        return moved(approval, Move.LAPSE, now)
    if approval.state is State.CONSUMED and approval.lease_until is not None and now >= approval.lease_until:
        why = "The gateway that ran this call has not told what came of it."
        return replace(moved(approval, Move.LOSE, now, why), lease_until=None)
    if approval.state is State.PENDING and approval.told < len(REMINDERS) and now >= _reminder(approval):
        return replace(approval, version=approval.version + 1, told=approval.told + 1)
    return approval


def due(approval: Approval) -> int | None:
    """When `passed` next makes something of it; None for never."""
    if approval.state is State.PENDING:
        return min(approval.decide_by, _reminder(approval)) if approval.told < len(REMINDERS) else approval.decide_by
    if approval.state is State.APPROVED:
        return approval.use_by
    return approval.lease_until if approval.state is State.CONSUMED else None


def _reminder(approval: Approval) -> int:
    return approval.created + int((approval.decide_by - approval.created) * REMINDERS[approval.told])


def seen_by_policy(approval: Approval) -> Mapping[str, object]:
    """`approval` in the policy's input, when it is asked again: `roles` are the slots that were filled."""
    roles = Counter(approval.needs) - Counter(approval.missing)
    facts: dict[str, object] = {
        "id": approval.id,
        "roles": list(roles.elements()),
        "approvers": [vote.person for vote in approval.votes if vote.yes],
    }
    if approval.use_by is not None:
        facts["expires"] = approval.use_by
    return facts
