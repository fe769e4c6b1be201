"""What every store of approvals, messages, grants and standings promises. A test file inherits the suite and says, by
its fixture `stage`, which store.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import pytest

from gateway.callids import CallIds
from policies.approval_store import ANSWERS_KEPT, KEPT, Answer, ApprovalStore, Message, Standing
from policies.approvals import (
    ACTIVE,
    ENDED,
    TRANSITIONS,
    Approval,
    HeldCall,
    Move,
    State,
    Vote,
    claimed,
    due,
    heard,
    moved,
    passed,
    superseded,
    voted,
)
from policies.grants import Grant

SECOND: Final = 1_000_000_000
NOW: Final = 1_763_700_000 * SECOND
"""When tests begin."""
HOUR: Final = 3600 * SECOND
EVER: Final = NOW + 10**6 * HOUR
LEASE: Final = 30 * SECOND

_numbers = itertools.count()


class Stage(Protocol):
    """A store, and the time that passes for it: it begins at NOW."""

    @property
    def handles(self) -> Sequence[ApprovalStore]:
        """The store as each of the gateways has it: several where it can be shared."""
        ...

    def advance(self, seconds: float) -> None: ...

    async def restart(self) -> None:
        """The processes that have the store end, and others begin at the same place."""
        ...


def name(prefix: str) -> str:
    """One that no other test knows; what was named later sorts later, as ULIDs do."""
    return f"{prefix}_{next(_numbers):026d}"


def call(**facts: Any) -> HeldCall:
    plain: dict[str, Any] = {
        "tenant": "acme",
        "agent": "bot",
        "session": "s-1",
        "kind": "tool",
        "protocol": "http",
        "target": "crm",
        "operation": "POST /refunds",
        "method": "POST",
        "path": "/tools/crm/refunds",
        "query": b"",
        "headers": ((b"content-type", b"application/json"),),
        "body": b'{"amount": 100}',
        "stream": False,
    }
    return HeldCall(**{**plain, **facts})


def approval(**facts: Any) -> Approval:
    """Somebody's call that waits for one person of finance, its key its own."""
    which = name("apr")
    plain: dict[str, Any] = {
        "id": which,
        "version": 1,
        "state": State.PENDING,
        "call": call(),
        "call_id": name("call"),
        "binding": f"binding of {which}",
        "key": f"key of {which}",
        "needs": ("finance",),
        "requesters": ("bot's owner",),
        "risk_level": "high",
        "explanation": "A refund of more than 50.",
        "revision": "r-1",
        "created": NOW,
        "decide_by": NOW + HOUR,
        "use_within": 900 * SECOND,
        "changed": NOW,
    }
    return Approval(**{**plain, **facts})


def message(at: int = NOW, **facts: Any) -> Message:
    plain: dict[str, Any] = {
        "id": name("msg"),
        "what": "approval.pending",
        "approval": "apr_1",
        "facts": {"to": ["größer"], "n": 1.5},
        "at": at,
    }
    return Message(**{**plain, **facts})


def grant(**facts: Any) -> Grant:
    plain: dict[str, Any] = {
        "id": name("grt"),
        "tenant": "acme",
        "agent": "bot",
        "session": None,
        "protocol": "http",
        "target": "crm",
        "operation": "POST /refunds",
        "where": {},
        "definition": "",
        "roles": ("finance",),
        "by": ("dana",),
        "created": NOW,
        "expires": NOW + HOUR,
        "max_uses": None,
        "max_cost": None,
    }
    return Grant(**{**plain, **facts})


def standing(epoch: int, **facts: Any) -> Standing:
    return Standing(**{"state": "paused", "reason": "odd", "by": "dana", "at": NOW + epoch, "epoch": epoch, **facts})


def approved(given: Approval, person: str = "dana") -> Approval:
    return voted(given, person, ["finance"], True, NOW + SECOND, "fine")


def in_state(given: Approval, wanted: State) -> list[Approval]:
    """The versions by which a pending one comes there."""
    if wanted is State.PENDING:
        return []
    ways: dict[State, list[Approval]] = {State.PENDING: []}
    while wanted not in ways:
        for (before, move), after in TRANSITIONS.items():
            if before in ways and after not in ways:
                ways[after] = [*ways[before], _step([given, *ways[before]][-1], move)]
    return ways[wanted]


def _step(before: Approval, move: Move) -> Approval:
    match move:
        case Move.APPROVE:
            return approved(before)
        case Move.CLAIM:
            return claimed(before, "call-1", 60 * SECOND, NOW + 2 * SECOND)
        case _:
            return moved(before, move, NOW + 3 * SECOND, "so")


async def opened(store: ApprovalStore, fresh: Approval, state: State = State.PENDING) -> Approval:
    """An approval that was opened and has come to a state."""
    assert await store.open(fresh) == fresh
    for each in in_state(fresh, state):
        assert await store.replace(each)
        fresh = each
    return fresh


async def told(store: ApprovalStore, at: int = EVER) -> list[str]:
    """The ids of all messages whose time has come, which somebody else has to give up meanwhile."""
    return [each.id for each in await store.messages(at, 0, 1000)]


@dataclass
class Ear:
    """What a listener was told."""

    ids: list[str | None] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, changed: Collection[str] | None) -> None:
        self.ids += [None] if changed is None else list(changed)
        self._news.set()

    async def hears(self, *wanted: str) -> None:
        """Returns once it was told of these, or that it may have missed something."""
        async with asyncio.timeout(20):
            while not (None in self.ids or set(wanted) <= set(self.ids)):
                self._news.clear()
                await self._news.wait()
        self.ids.clear()


@asynccontextmanager
async def listening(stage: Stage) -> AsyncIterator[list[Ear]]:
    ears = [Ear() for _ in stage.handles]
    for store, ear in zip(stage.handles, ears, strict=True):
        store.listen(ear)
        store.begin()
    yield ears


class ApprovalsSuite:
    """To be inherited, with a fixture `stage`."""

    async def test_a_store_that_can_be_asked_has_no_failure(self, stage: Stage) -> None:
        for store in stage.handles:
            store.begin()
            assert await store.get("apr_0") is None
            assert store.failure is None
            assert abs(store.now_ns() - NOW) < 60 * SECOND

    # Opening

    async def test_what_nobody_has_opened_is_not_there(self, stage: Stage) -> None:
        store = stage.handles[0]
        assert await store.get(name("apr")) is None
        assert await store.last("no such key") is None
        assert await store.versions([name("apr")]) == {}
        assert await store.versions([]) == {}
        assert await store.answer(name("apr")) is None
        assert await store.listed(list(State)) == []
        assert await store.due(EVER) == []
        assert await store.messages(EVER, 0) == []

    async def test_an_approval_is_told_byte_for_byte_as_it_was_opened(self, stage: Stage) -> None:
        whole = approval(
            call=call(
                session=None,
                query=b"q=\xff\x00%20",
                headers=((b"x-odd", b"\xe4\xff"), (b"x-odd", b"")),
                body=bytes(range(256)) * 40,
                stream=True,
                definition="d" * 64,
                cost=2**62,
                operation="größer — “go” \x00€",
            ),
            needs=("finance", "security", "finance"),
            requesters=(),
            risk_level=None,
            explanation="eine Zeile\n\u202eund \U0001f600",
            use_by=NOW + 1,
            votes=(Vote("dana", True, ("finance",), NOW + 7, "ja"), Vote("sam", False, (), NOW + 2**40)),
            reason="so",
            instead_of="apr_before",
            became="apr_after",
            claimed_by="call",
            lease_until=NOW + 3,
            told=2,
            escalated=("boss",),
        )
        plain = approval(call=call(body=b""), needs=())
        for each in (whole, plain):
            assert await stage.handles[0].open(each) == each
            for store in stage.handles:
                assert await store.get(each.id) == each
                assert await store.last(each.key) == each

    async def test_an_approval_and_its_messages_outlive_the_processes(self, stage: Stage) -> None:
        first, note, answer = approval(), message(), Answer(200, ((b"x", b"\xff"),), b"\x00done")
        await stage.handles[0].open(first, [note])
        second = await opened(stage.handles[0], approval(), State.CONSUMED)
        done = moved(second, Move.FINISH, NOW)
        assert await stage.handles[0].replace(done, answer=answer)
        await stage.restart()
        store = stage.handles[0]
        assert await store.get(first.id) == first
        assert await store.get(done.id) == done
        assert await store.answer(done.id) == answer
        assert await store.messages(EVER, LEASE) == [note]
        assert await store.open(replace(approval(), key=first.key)) == first

    @pytest.mark.parametrize("state", sorted(ACTIVE))
    async def test_an_identical_call_attaches_while_the_first_is_under_way(self, stage: Stage, state: State) -> None:
        first = await opened(stage.handles[0], approval(), state)
        again = replace(approval(), key=first.key)
        assert await stage.handles[-1].open(again, [message()]) == first
        assert await stage.handles[0].get(again.id) is None
        assert await told(stage.handles[0]) == []

    @pytest.mark.parametrize("state", sorted(ENDED))
    async def test_an_identical_call_is_a_new_one_when_the_first_has_ended(self, stage: Stage, state: State) -> None:
        first = await opened(stage.handles[0], approval(), state)
        again, note = replace(approval(), key=first.key), message()
        assert await stage.handles[-1].open(again, [note]) == again
        assert await stage.handles[0].get(first.id) == first
        assert await stage.handles[0].last(first.key) == again
        assert await told(stage.handles[0]) == [note.id]

    async def test_an_approval_whose_opening_is_tried_again_is_opened_once(self, stage: Stage) -> None:
        fresh, note = approval(), message()
        for _ in range(2):
            assert await stage.handles[0].open(fresh, [note]) == fresh
        assert await told(stage.handles[0]) == [note.id]
        await stage.handles[0].delivered(note.id)
        for after in in_state(fresh, State.DONE):
            assert await stage.handles[0].replace(after)
            assert await stage.handles[0].open(fresh, [note]) == after
        assert await told(stage.handles[0]) == []

    @pytest.mark.parametrize("round_", range(3))
    async def test_of_many_identical_calls_at_once_one_is_opened_and_all_have_it(
        self, stage: Stage, round_: int
    ) -> None:
        wishes = [replace(approval(), key=f"key {round_}") for _ in range(30)]
        random.Random(round_).shuffle(wishes)
        found = await asyncio.gather(
            *(
                stage.handles[number % len(stage.handles)].open(each, [message(what=each.id)])
                for number, each in enumerate(wishes)
            )
        )
        assert len({each.id for each in found}) == 1
        assert [each.what for each in await stage.handles[0].messages(EVER, 0)] == [found[0].id]

    # Changes

    async def test_a_change_takes_the_place_of_what_was_there(self, stage: Stage) -> None:
        fresh, note = approval(), message()
        await stage.handles[0].open(fresh)
        after = approved(fresh)
        assert await stage.handles[-1].replace(after, [note])
        for store in stage.handles:
            assert await store.get(fresh.id) == after
            assert await store.last(fresh.key) == after
            assert await store.versions([fresh.id, name("apr")]) == {fresh.id: 2}
        assert await told(stage.handles[0]) == [note.id]

    async def test_who_builds_on_what_has_changed_meanwhile_changes_nothing(self, stage: Stage) -> None:
        store = stage.handles[-1]
        fresh = await opened(store, approval())
        first, second = approved(fresh, "dana"), approved(fresh, "sam")
        answer = Answer(200, (), b"")
        assert await store.replace(first)
        assert not await store.replace(second, [message()], answer=answer)
        assert not await store.replace(replace(second, version=1), [message()], answer=answer)
        assert not await store.replace(replace(second, version=4), [message()], answer=answer)
        assert await store.get(fresh.id) == first
        assert await told(store) == []
        assert await store.answer(fresh.id) is None

    async def test_what_was_never_opened_is_not_changed(self, stage: Stage) -> None:
        for version in (1, 2):
            never = replace(approval(), version=version)
            assert not await stage.handles[0].replace(never, [message()], answer=Answer(200, (), b""))
            assert await stage.handles[0].get(never.id) is None
            assert await stage.handles[0].answer(never.id) is None
        assert await told(stage.handles[0]) == []

    async def test_of_many_who_change_one_approval_at_once_exactly_one_does(self, stage: Stage) -> None:
        fresh = await opened(stage.handles[0], approval(needs=("finance",) * 5))
        for turn in range(4):
            wishes = [approved(fresh, f"{turn}-{number}") for number in range(20)]
            made = await asyncio.gather(
                *(
                    stage.handles[number % len(stage.handles)].replace(each, [message(what=each.votes[-1].person)])
                    for number, each in enumerate(wishes)
                )
            )
            assert made.count(True) == 1
            fresh = wishes[made.index(True)]
            assert await stage.handles[0].get(fresh.id) == fresh
        notes = await stage.handles[0].messages(EVER, 0)
        assert sorted(each.what for each in notes) == [vote.person for vote in fresh.votes]

    async def test_a_change_that_is_tried_again_is_made_once(self, stage: Stage) -> None:
        store = stage.handles[0]
        fresh, note = await opened(store, approval()), message()
        after, other = approved(fresh), approved(fresh, "sam")
        answer = Answer(200, (), b"done")
        for each in stage.handles:
            assert await each.replace(after, [note], answer=answer)
        assert await told(store) == [note.id]
        await store.delivered(note.id)
        assert await store.replace(after, [note], answer=answer)
        assert await told(store) == []
        later = claimed(after, "c", SECOND, NOW + 2 * SECOND)
        assert await store.replace(later)
        assert not await store.replace(after, [note])
        assert not await store.replace(other)
        assert await store.get(fresh.id) == later

    async def test_arguments_that_a_person_has_changed_are_another_approval_in_one_step(self, stage: Stage) -> None:
        store = stage.handles[-1]
        first = await opened(store, approval())
        fresh, note = approval(instead_of=first.id, call=call(body=b'{"amount": 50}')), message()
        before = superseded(first, fresh, NOW)
        for _ in range(2):
            assert await store.supersede(before, fresh, [note])
        assert await stage.handles[0].get(first.id) == before
        assert await stage.handles[0].get(fresh.id) == fresh
        assert await stage.handles[0].last(fresh.key) == fresh
        assert await told(stage.handles[0]) == [note.id]
        await store.delivered(note.id)
        assert await store.replace(approved(fresh))
        assert await store.supersede(before, fresh, [note])
        assert await store.get(fresh.id) == approved(fresh)
        assert await told(stage.handles[0]) == []

    async def test_an_approval_that_was_decided_meanwhile_is_not_superseded(self, stage: Stage) -> None:
        store = stage.handles[0]
        first = await opened(store, approval())
        fresh = approval(instead_of=first.id)
        assert await store.replace(approved(first))
        assert not await store.supersede(superseded(first, fresh, NOW), fresh, [message()])
        never = approval()
        assert not await store.supersede(superseded(never, fresh, NOW), fresh, [message()])
        assert await store.get(first.id) == approved(first)
        assert await store.get(fresh.id) is None
        assert await store.last(fresh.key) is None
        assert await store.get(never.id) is None
        assert await told(store) == []

    async def test_nothing_is_superseded_by_a_call_that_others_make_already(self, stage: Stage) -> None:
        store = stage.handles[0]
        first, other = await opened(store, approval()), await opened(store, approval())
        fresh = approval(instead_of=first.id, key=other.key)
        assert not await store.supersede(superseded(first, fresh, NOW), fresh, [message()])
        assert await store.get(first.id) == first
        assert await store.get(fresh.id) is None
        assert await store.last(other.key) == other
        assert await told(store) == []

    async def test_an_approval_can_be_superseded_by_one_of_the_same_key(self, stage: Stage) -> None:
        store = stage.handles[0]
        first = await opened(store, approval())
        fresh = approval(instead_of=first.id, key=first.key)
        for _ in range(2):
            assert await store.supersede(superseded(first, fresh, NOW), fresh)
        assert await store.last(first.key) == fresh
        assert await store.open(approval(key=first.key)) == fresh

    # Looking up

    async def test_the_versions_of_those_that_are_there_are_told(self, stage: Stage) -> None:
        store = stage.handles[0]
        some = [await opened(store, approval()) for _ in range(5)]
        assert await store.replace(approved(some[1]))
        ended = await opened(store, approval(), State.DONE)
        wanted = {each.id: 1 for each in some} | {some[1].id: 2, ended.id: 4}
        assert await store.versions([*wanted, *(name("apr") for _ in range(1000))]) == wanted
        assert await store.versions({some[0].id}) == {some[0].id: 1}

    async def test_the_last_of_a_key_is_the_one_that_was_opened_last(self, stage: Stage) -> None:
        store = stage.handles[0]
        early, late = approval(key="k"), approval(key="k")
        late_first = await opened(store, late, State.DENIED)
        assert await store.last("k") == late_first
        assert await store.open(early) == early
        assert await store.last("k") == early
        assert await store.last("K") is None

    async def test_lists_have_the_oldest_first_and_only_what_was_asked_for(self, stage: Stage) -> None:
        store = stage.handles[-1]
        made = [approval(call=call(tenant=["acme", "zeta"][number % 2])) for number in range(12)]
        for each in random.Random(1).sample(made, 12):
            await store.open(each)
        after = {each.id: each for each in made}
        for each in made[:4]:
            after[each.id] = in_state(each, State.DENIED)[0]
        for each in made[4:6]:
            after[each.id] = approved(each)
        for each in made[:6]:
            assert await store.replace(after[each.id])
        pending, denied, given = made[6:], [after[each.id] for each in made[:4]], [after[each.id] for each in made[4:6]]
        assert await store.listed([State.PENDING]) == pending
        assert await store.listed([State.APPROVED, State.PENDING]) == [*given, *pending]
        assert await store.listed({State.DENIED}) == denied
        assert await store.listed(list(State)) == [*denied, *given, *pending]
        assert await store.listed([State.DONE]) == []
        assert await store.listed([]) == []
        assert await store.listed([State.PENDING], "zeta") == pending[1::2]
        assert await store.listed([State.PENDING, State.DENIED], "acme") == [*denied[::2], *pending[::2]]
        assert await store.listed([State.PENDING], "nobody") == []

    async def test_lists_are_told_a_page_at_a_time(self, stage: Stage) -> None:
        store = stage.handles[0]
        made = [await opened(store, approval()) for _ in range(7)]
        states = [State.PENDING, State.APPROVED]
        assert await store.replace(approved(made[3]))
        made[3] = approved(made[3])
        assert await store.listed(states, most=3) == made[:3]
        assert await store.listed(states, after=made[2].id, most=3) == made[3:6]
        assert await store.listed(states, "acme", made[5].id, 3) == made[6:]
        assert await store.listed(states, after=made[6].id) == []
        assert await store.replace(in_state(made[0], State.DENIED)[0])
        assert await store.listed(states, after=made[0].id) == made[1:]

    async def test_lists_begin_behind_an_id_that_nobody_has(self, stage: Stage) -> None:
        store, ids = stage.handles[0], CallIds()
        early, late = (approval(id=f"apr_{ids.next(at)}", created=at) for at in (NOW, NOW + 60 * SECOND))
        for each in (early, late):
            await store.open(each)
        assert await store.listed([State.PENDING], after=f"apr_{ids.next(NOW + 30 * SECOND)}") == [late]

    async def test_what_is_due_is_told_in_the_order_in_which_it_is(self, stage: Stage) -> None:
        store = stage.handles[-1]
        made = [approval(decide_by=NOW + minutes * 60 * SECOND) for minutes in (40, 10, 30, 20)]
        for each in made:
            await store.open(each)
        in_order = [made[1], made[3], made[2], made[0]]
        assert [due(each) for each in in_order] == [NOW + minutes * 60 * SECOND for minutes in (5, 10, 15, 20)]
        assert await store.due(EVER) == in_order
        assert await store.due(EVER, 2) == in_order[:2]
        assert await store.due(NOW + 600 * SECOND) == in_order[:2]
        assert await store.due(NOW + 600 * SECOND - 1_000_000) == in_order[:1]
        assert await store.due(NOW) == []

    async def test_what_is_due_follows_every_change(self, stage: Stage) -> None:
        store = stage.handles[0]
        fresh = await opened(store, approval())
        seen = []
        for _ in range(4):
            at = due(fresh)
            assert at is not None
            assert await store.due(at - 1_000_000) == []
            assert await store.due(at) == [fresh]
            fresh = passed(fresh, at)
            seen.append((fresh.state, fresh.told))
            assert await store.replace(fresh)
            if fresh.state in ENDED:
                break
        assert seen == [(State.PENDING, 1), (State.PENDING, 2), (State.EXPIRED, 2)]
        assert await store.due(EVER) == []

    @pytest.mark.parametrize("state", sorted(State))
    async def test_only_what_time_can_change_is_ever_due(self, stage: Stage, state: State) -> None:
        found = await opened(stage.handles[0], approval(), state)
        assert await stage.handles[-1].due(EVER) == ([] if due(found) is None else [found])

    async def test_an_answer_is_kept_with_the_change_that_brings_it(self, stage: Stage) -> None:
        store = stage.handles[0]
        claim = await opened(store, approval(), State.CONSUMED)
        assert await store.answer(claim.id) is None
        answer = Answer(418, ((b"content-type", b"text/plain"), (b"x", b"\xff"), (b"x", b"")), bytes(range(256)) * 100)
        done = moved(claim, Move.FINISH, NOW)
        assert await store.replace(done, answer=answer)
        for each in stage.handles:
            assert await each.answer(claim.id) == answer
        stage.advance(ANSWERS_KEPT - 60)
        await store.open(approval())
        assert await stage.handles[-1].answer(claim.id) == answer

    async def test_a_change_of_what_has_ended_leaves_its_answer(self, stage: Stage) -> None:
        store = stage.handles[0]
        claim = await opened(store, approval(), State.CONSUMED)
        done = replace(moved(claim, Move.FINISH, NOW), unheard=True)
        assert await store.replace(done, answer=Answer(200, (), b"done"))
        assert await store.replace(heard(done))
        assert await stage.handles[-1].get(claim.id) == heard(done)
        assert await stage.handles[-1].last(claim.key) == heard(done)
        assert await stage.handles[-1].answer(claim.id) == Answer(200, (), b"done")

    async def test_an_approval_can_be_looked_up_for_a_week_after_its_end(self, stage: Stage) -> None:
        store = stage.handles[0]
        ended = [await opened(store, approval(), state) for state in sorted(ENDED)]
        waiting = [await opened(store, approval(), state) for state in sorted(ACTIVE)]
        stage.advance(KEPT - 60)
        for each in await asyncio.gather(*(store.open(approval()) for _ in range(3))):
            assert await store.get(each.id) == each
        for each in (*ended, *waiting):
            assert await store.get(each.id) == each
            assert await store.last(each.key) == each
        unknown = next(each for each in ended if each.state is State.UNKNOWN)
        stage.advance(KEPT)
        await store.open(approval())
        for each in (*waiting, unknown):  # people have to see it
            assert await store.get(each.id) == each
        assert await store.listed([State.UNKNOWN]) == [unknown]

    # What people are to be told

    async def test_messages_are_told_in_order_once_their_time_has_come(self, stage: Stage) -> None:
        notes = [message(NOW + number * SECOND, approval="apr_7", what=f"w{number}") for number in range(5)]
        await stage.handles[0].open(approval(), notes[:2])
        await stage.handles[-1].open(approval(), notes[2:])
        assert await stage.handles[0].messages(NOW - SECOND, 0) == []
        assert await stage.handles[0].messages(NOW + 2 * SECOND, 0) == notes[:3]
        assert await stage.handles[-1].messages(EVER, 0, 4) == notes[:4]
        assert await stage.handles[0].messages(EVER, 0) == notes

    async def test_of_one_moment_messages_are_told_in_the_order_of_their_names(self, stage: Stage) -> None:
        notes = [message() for _ in range(6)]
        await stage.handles[0].open(approval(), notes)
        assert await stage.handles[0].messages(NOW, 0) == notes

    async def test_a_message_that_somebody_has_is_nobody_elses_until_the_lease_is_over(self, stage: Stage) -> None:
        first, second = stage.handles[0], stage.handles[-1]
        notes = [message(NOW + number) for number in range(3)]
        await first.open(approval(), notes)
        at = NOW + SECOND
        assert await first.messages(at, LEASE, 2) == notes[:2]
        assert await second.messages(at, LEASE, 2) == notes[2:]
        assert await first.messages(at, LEASE) == []
        assert await second.messages(at + LEASE - 1_000_000, LEASE) == []
        assert await second.messages(at + LEASE, LEASE, 2) == notes[:2]
        assert await first.messages(at + LEASE, LEASE) == notes[2:]

    async def test_of_many_who_ask_at_once_each_gets_other_messages(self, stage: Stage) -> None:
        notes = [message(NOW + number) for number in range(50)]
        for note in notes:
            await stage.handles[0].open(approval(), [note])
        found = await asyncio.gather(
            *(stage.handles[number % len(stage.handles)].messages(EVER, LEASE, 7) for number in range(10))
        )
        assert sorted(each.id for some in found for each in some) == [each.id for each in notes]

    async def test_a_message_that_was_taken_is_never_told_again(self, stage: Stage) -> None:
        store = stage.handles[0]
        notes = [message(NOW + number) for number in range(3)]
        await store.open(approval(), notes)
        await store.messages(EVER, LEASE, 1)
        for _ in range(2):
            await stage.handles[-1].delivered(notes[0].id)
            await store.delivered(name("msg"))
        await store.postponed(notes[0].id, NOW)
        assert await told(store) == [each.id for each in notes[1:]]
        await stage.restart()
        assert await told(stage.handles[0]) == [each.id for each in notes[1:]]

    async def test_a_message_that_was_not_taken_is_tried_again_later_and_says_how_often(self, stage: Stage) -> None:
        store = stage.handles[0]
        note, other = message(), message()
        await store.open(approval(), [note, other])
        at = NOW
        for tries in range(1, 4):
            assert note in await store.messages(at, 10 * LEASE)
            at += 60 * SECOND
            for each in stage.handles:
                await each.postponed(note.id, at)
            await store.postponed(name("msg"), at)
            note = replace(note, tries=tries)
            assert await store.messages(at - 1_000_000, 0) == []
        assert await store.messages(at, 0) == [note]
        await stage.restart()
        assert await stage.handles[0].messages(EVER, 0) == [other, note]

    # Grants

    async def test_a_grant_is_told_as_it_was_made(self, stage: Stage) -> None:
        plain = grant()
        whole = grant(
            tenant="zeta",
            session="s",
            where={"/amount": 100, "/to": ["a", {"b": None}], "/größe": 1.5},
            roles=("finance", "security"),
            by=("dana", "sam"),
            definition="d" * 64,
            max_uses=7,
            max_cost=2**60,
            comment="für heute",
        )
        for each in (plain, whole):
            await stage.handles[0].grant(each)
        for store in stage.handles:
            assert sorted(await store.grants(), key=lambda each: each.id) == [plain, whole]
        await stage.restart()
        assert sorted(await stage.handles[0].grants(), key=lambda each: each.id) == [plain, whole]

    async def test_a_use_of_a_grant_counts_once_for_each_call(self, stage: Stage) -> None:
        given = grant()
        await stage.handles[0].grant(given)
        for store in stage.handles:
            for which in ("a", "b", "a"):
                assert await store.use(given.id, which, 5)
        await stage.handles[-1].grant(given)
        assert await stage.handles[0].grants() == [replace(given, uses=2, cost=10)]
        await stage.restart()
        assert await stage.handles[0].use(given.id, "b", 5)
        assert await stage.handles[0].grants() == [replace(given, uses=2, cost=10)]

    async def test_a_grant_is_used_no_more_often_than_it_allows(self, stage: Stage) -> None:
        given, other = grant(max_uses=3), grant()
        await stage.handles[0].grant(given)
        await stage.handles[0].grant(other)
        used = await asyncio.gather(
            *(stage.handles[number % len(stage.handles)].use(given.id, f"c{number // 2}", 1) for number in range(40))
        )
        assert used.count(True) == 6
        assert await stage.handles[0].grants() == [other]
        assert not await stage.handles[-1].use(given.id, "late", 0)

    async def test_a_grant_is_used_for_no_more_than_it_may_cost(self, stage: Stage) -> None:
        given, store = grant(max_cost=100), stage.handles[-1]
        await store.grant(given)
        assert await store.use(given.id, "a", 60)
        assert not await store.use(given.id, "b", 41)
        assert await store.grants() == [replace(given, uses=1, cost=60)]
        assert await store.use(given.id, "c", 40)
        assert await store.grants() == []
        assert not await store.use(given.id, "d", 0)
        assert await store.use(given.id, "c", 40)

    async def test_who_has_not_sent_a_call_gives_its_use_back(self, stage: Stage) -> None:
        given, store = grant(max_uses=1, max_cost=10), stage.handles[0]
        await store.grant(given)
        await store.give_back(given.id, "never")
        assert await store.use(given.id, "a", 10)
        assert not await store.use(given.id, "b", 10)
        for each in stage.handles:
            await each.give_back(given.id, "a")
            await each.give_back(given.id, "b")
            await each.give_back(name("grt"), "a")
        assert await store.grants() == [given]
        assert await store.use(given.id, "b", 10)
        assert not await store.use(given.id, "a", 0)

    async def test_a_grant_that_was_revoked_allows_nothing_at_once(self, stage: Stage) -> None:
        given, other = grant(), grant()
        await stage.handles[0].grant(given)
        await stage.handles[0].grant(other)
        assert await stage.handles[0].use(given.id, "a", 1)
        assert await stage.handles[-1].revoke(given.id)
        for store in stage.handles:
            assert not await store.use(given.id, "b", 1)
            assert await store.grants() == [other]
            assert not await store.revoke(given.id)
            await store.give_back(given.id, "a")
        assert not await stage.handles[0].revoke(name("grt"))
        await stage.handles[0].grant(given)  # an answer was lost, and somebody tries again
        assert await stage.handles[0].grants() == [other]
        assert not await stage.handles[0].use(given.id, "b", 1)

    async def test_a_grant_ends_when_its_time_is_over(self, stage: Stage) -> None:
        given, other, store = grant(expires=NOW + 100 * SECOND), grant(), stage.handles[0]
        await store.grant(given)
        await store.grant(other)
        stage.advance(90)
        assert await store.use(given.id, "a", 1)
        stage.advance(11)
        assert not await store.use(given.id, "b", 1)
        assert await store.grants() == [other]
        await store.grant(given)
        assert await store.grants() == [other]

    async def test_a_grant_that_nobody_has_made_allows_nothing(self, stage: Stage) -> None:
        assert not await stage.handles[0].use(name("grt"), "a", 0)
        assert await stage.handles[0].grants() == []

    # How agents stand

    async def test_how_an_agent_stands_is_told_as_it_was_set(self, stage: Stage) -> None:
        store = stage.handles[0]
        assert await store.standings() == {}
        first, second = standing(1, reason="ünlike it\n"), standing(2, state="active", reason="", by="sam")
        assert await store.stand("acme", "bot", first)
        assert await store.stand("acme", "other", first)
        assert await store.stand("zeta", "bot", first)
        assert await store.stand("acme", "bot", second)
        expected = {("acme", "bot"): second, ("acme", "other"): first, ("zeta", "bot"): first}
        for each in stage.handles:
            assert await each.standings() == expected
        await stage.restart()
        assert await stage.handles[0].standings() == expected

    async def test_who_has_not_seen_how_an_agent_stands_sets_nothing(self, stage: Stage) -> None:
        store = stage.handles[-1]
        assert not await store.stand("acme", "bot", standing(2))
        assert await store.standings() == {}
        for _ in range(2):  # the second time an answer was lost
            assert await store.stand("acme", "bot", standing(1))
        for wrong in (standing(1, by="sam"), standing(3, by="sam"), standing(0)):
            assert not await store.stand("acme", "bot", wrong)
        assert await store.standings() == {("acme", "bot"): standing(1)}

    async def test_of_many_who_say_at_once_how_an_agent_stands_exactly_one_does(self, stage: Stage) -> None:
        for epoch in (1, 2, 3):
            wishes = [standing(epoch, by=f"p{number}") for number in range(20)]
            made = await asyncio.gather(
                *(
                    stage.handles[number % len(stage.handles)].stand("acme", "bot", each)
                    for number, each in enumerate(wishes)
                )
            )
            assert made.count(True) == 1
            assert await stage.handles[0].standings() == {("acme", "bot"): wishes[made.index(True)]}

    # Listening

    async def test_who_listens_is_told_of_every_change_wherever_it_was_made(self, stage: Stage) -> None:
        async with listening(stage) as ears:
            for store in stage.handles:
                fresh = approval()
                await store.open(fresh)
                for ear in ears:
                    await ear.hears(fresh.id)
                assert await store.replace(approved(fresh))
                for ear in ears:
                    await ear.hears(fresh.id)
                first, other = await opened(store, approval()), approval()
                assert await store.supersede(superseded(first, other, NOW), other)
                for ear in ears:
                    await ear.hears(first.id, other.id)

    async def test_who_was_told_of_a_change_finds_it(self, stage: Stage) -> None:
        fresh = await opened(stage.handles[-1], approval(needs=("finance",) * 4))
        async with listening(stage) as ears:
            for person in "abc":
                fresh = approved(fresh, person)
                assert await stage.handles[0].replace(fresh)
                for ear, store in zip(ears, stage.handles, strict=True):
                    await ear.hears(fresh.id)
                    assert await store.get(fresh.id) == fresh

    async def test_who_listens_is_told_of_grants_that_begin_and_end(self, stage: Stage) -> None:
        given = grant()
        async with listening(stage) as ears:
            await stage.handles[0].grant(given)
            for ear in ears:
                await ear.hears(given.id)
            assert await stage.handles[-1].revoke(given.id)
            for ear in ears:
                await ear.hears(given.id)

    # Any history

    @pytest.mark.parametrize("seed", range(4))
    async def test_in_any_history_every_gateway_finds_what_a_dictionary_would_hold(
        self, stage: Stage, seed: int
    ) -> None:
        await History(stage, seed).lived(250)


@dataclass
class Told:
    """A message, when it is due, and until when somebody has it."""

    note: Message
    at: int
    leased: int = 0


class History:
    """Random steps, each done by some gateway to the store and to plain dictionaries, and sometimes done again, as by
    somebody who has had no answer."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.chance = random.Random(seed)
        self.now = NOW
        self.approvals: dict[str, Approval] = {}
        self.opened: dict[str, str] = {}
        """The last of each key."""
        self.answers: dict[str, Answer] = {}
        self.notes: dict[str, Told] = {}
        self.grants: dict[str, Grant] = {}
        self.uses: dict[tuple[str, str], int] = {}
        self.standings: dict[tuple[str, str], Standing] = {}

    @property
    def store(self) -> ApprovalStore:
        return self.chance.choice(self.stage.handles)

    async def lived(self, steps: int) -> None:
        kinds: list[Callable[[], Awaitable[None]]] = [
            *[self.opens, self.decides, self.decides, self.is_late, self.supersedes, self.takes_messages],
            *[self.grants_one, self.uses_one, self.uses_one, self.gives_back, self.revokes, self.stands],
        ]
        for number in range(steps):
            await self.chance.choice(kinds)()
            if number % 5 == 0:
                await self.agrees()
            if number % 60 == 59:
                await self.stage.restart()
                for each in self.notes.values():
                    each.leased = 0
                self.now += 100 * LEASE  # leases are over, whether or not they were forgotten
        await self.agrees()

    async def twice(self, ask: Callable[[ApprovalStore], Awaitable[object]], expected: Any) -> None:
        for _ in range(self.chance.choice([1, 1, 2])):
            assert await ask(self.store) == expected

    def messages(self) -> list[Message]:
        return [message(self.now) for _ in range(self.chance.choice([0, 1, 2]))]

    def keep(self, notes: Sequence[Message]) -> None:
        self.notes |= {each.id: Told(each, each.at) for each in notes}

    def some(self, states: Collection[State] = frozenset(State)) -> Approval | None:
        found = [each for each in self.approvals.values() if each.state in states]
        return self.chance.choice(found) if found else None

    async def opens(self) -> None:
        fresh = approval(key=f"key {self.chance.randrange(12)}", needs=("finance",) * self.chance.randint(1, 2))
        notes = self.messages()
        known = self.approvals.get(self.opened.get(fresh.key, ""))
        if known is not None and known.state in ACTIVE:
            await self.twice(lambda store: store.open(fresh, notes), known)
            return
        await self.twice(lambda store: store.open(fresh, notes), fresh)
        self.approvals[fresh.id] = fresh
        self.opened[fresh.key] = fresh.id
        self.keep(notes)

    def next_of(self, before: Approval) -> Approval:
        moves = [move for state, move in TRANSITIONS if state is before.state and move is not Move.SUPERSEDE]
        if not moves:
            return replace(before, version=before.version + 1, reason="once more")
        match self.chance.choice(moves):
            case Move.APPROVE if len(before.votes) < len(before.needs):
                return approved(before, f"person {len(before.votes)}")
            case Move.CLAIM:
                return claimed(before, name("call"), LEASE, NOW + 2 * SECOND)
            case move:
                return moved(before, move, self.now, f"by {move}")

    async def decides(self) -> None:
        before = self.some()
        if before is None:
            return
        after, notes = self.next_of(before), self.messages()
        answer = Answer(200, ((b"x", b"y"),), before.id.encode()) if after.state is State.DONE else None
        await self.twice(lambda store: store.replace(after, notes, answer=answer), True)
        self.approvals[after.id] = after
        self.keep(notes)
        if answer is not None:
            self.answers[after.id] = answer

    async def is_late(self) -> None:
        """Somebody decides on what they saw before others did."""
        before = self.some()
        if before is None or before.version == 1:
            return
        stale = replace(before, version=self.chance.randint(1, before.version), reason=name("late"))
        await self.twice(lambda store: store.replace(stale, self.messages(), answer=Answer(500, (), b"")), False)

    async def supersedes(self) -> None:
        first = self.some({State.PENDING})
        if first is None:
            return
        fresh, notes = approval(key=f"key {self.chance.randrange(12)}", instead_of=first.id), self.messages()
        before = superseded(first, fresh, self.now)
        other = self.approvals.get(self.opened.get(fresh.key, ""))
        free = other is None or other.state in ENDED or other.id == first.id
        await self.twice(lambda store: store.supersede(before, fresh, notes), free)
        if free:
            self.approvals |= {first.id: before, fresh.id: fresh}
            self.opened[fresh.key] = fresh.id
            self.keep(notes)

    async def takes_messages(self) -> None:
        self.now += self.chance.choice([0, SECOND, LEASE, 2 * LEASE])
        due = [each for each in self.notes.values() if each.at <= self.now and each.leased <= self.now]
        due.sort(key=lambda each: (each.at, each.note.id))
        most = self.chance.choice([1, 3, 20])
        found = await self.store.messages(self.now, LEASE, most)
        assert sorted(each.id for each in found) == sorted(each.note.id for each in due[:most])
        for each in found:
            known = self.notes[each.id]
            assert each == known.note
            known.leased = self.now + LEASE
            match self.chance.choice(["delivered", "postponed", "forgotten"]):
                case "delivered":
                    await self.twice(partial(_delivered, each.id), None)
                    del self.notes[each.id]
                case "postponed":
                    until = self.now + self.chance.choice([SECOND, LEASE, 3 * LEASE])
                    await self.twice(partial(_postponed, each.id, until), None)
                    known.note, known.at, known.leased = replace(each, tries=each.tries + 1), until, 0

    async def grants_one(self) -> None:
        fresh = grant(max_uses=self.chance.choice([None, 1, 3]), max_cost=self.chance.choice([None, 10]))
        await self.twice(lambda store: store.grant(fresh), None)
        self.grants[fresh.id] = fresh

    def one_grant(self) -> str:
        return self.chance.choice([*self.grants, name("grt")])

    async def uses_one(self) -> None:
        which, user, cost = self.one_grant(), f"call {self.chance.randrange(8)}", self.chance.choice([0, 0, 4, 7])
        known = self.grants.get(which)
        fits = (
            known is not None and known.lasts(NOW) and (known.max_cost is None or known.cost + cost <= known.max_cost)
        )
        before = known is not None and (which, user) in self.uses
        await self.twice(lambda store: store.use(which, user, cost), before or fits)
        if known is not None and fits and not before:
            self.uses[which, user] = cost
            self.grants[which] = replace(known, uses=known.uses + 1, cost=known.cost + cost)

    async def gives_back(self) -> None:
        which, user = self.chance.choice([*self.uses, (self.one_grant(), "call 0")])
        await self.twice(lambda store: store.give_back(which, user), None)
        cost = self.uses.pop((which, user), None)
        if cost is not None and which in self.grants:
            known = self.grants[which]
            self.grants[which] = replace(known, uses=known.uses - 1, cost=known.cost - cost)

    async def revokes(self) -> None:
        if self.chance.random() < 0.5:
            return
        which = self.one_grant()
        assert await self.store.revoke(which) == (which in self.grants)
        self.grants.pop(which, None)
        self.uses = {each: cost for each, cost in self.uses.items() if each[0] != which}

    async def stands(self) -> None:
        agent = self.chance.choice([("acme", "bot"), ("acme", "b"), ("zeta", "bot")])
        epoch = self.standings[agent].epoch if agent in self.standings else 0
        change = standing(epoch + self.chance.choice([0, 1, 1, 1, 2]), by=name("person"))
        await self.twice(lambda store: store.stand(*agent, change), change.epoch == epoch + 1)
        if change.epoch == epoch + 1:
            self.standings[agent] = change

    async def agrees(self) -> None:
        store = self.store
        assert await store.versions(self.approvals) == {each.id: each.version for each in self.approvals.values()}
        every = sorted(self.approvals.values(), key=lambda each: each.id)
        assert await store.listed(list(State), most=10**6) == every
        pending = {State.PENDING, State.UNKNOWN}
        assert await store.listed(pending, most=10**6) == [each for each in every if each.state in pending]
        wanted = sorted((at, each.id) for each in every if (at := due(each)) is not None)
        found = await store.due(EVER, 10**6)
        assert sorted((due(each), each.id) for each in found) == wanted
        assert [due(each) for each in found] == [at for at, _ in wanted]
        for key, last in self.opened.items():
            assert await store.last(key) == self.approvals[last]
        for each in self.approvals:
            assert await store.answer(each) == self.answers.get(each)
        lasting = [each for each in self.grants.values() if each.lasts(NOW)]
        assert sorted(await store.grants(), key=lambda each: each.id) == lasting
        assert await store.standings() == self.standings


async def _delivered(which: str, store: ApprovalStore) -> None:
    await store.delivered(which)


async def _postponed(which: str, until: int, store: ApprovalStore) -> None:
    await store.postponed(which, until)
