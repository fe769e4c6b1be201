"""What becomes of a held call: every state, every move, every refusal, and any interleaving of what people do."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from policies.approvals import (
    ACTIVE,
    ENDED,
    REMINDERS,
    TRANSITIONS,
    Approval,
    HeldCall,
    Move,
    NotEntitled,
    Refused,
    State,
    approves,
    claimed,
    due,
    entitled,
    finished,
    moved,
    passed,
    released,
    seen_by_policy,
    still_valid,
    superseded,
    voted,
)

CALL = HeldCall("acme", "bot", "s", "tool", "mcp", "crm", "refund", "POST", "/mcp/crm", b"", (), b"{}", stream=False)
OPENED = Approval(
    id="apr_1",
    version=1,
    state=State.PENDING,
    call=CALL,
    call_id="call-1",
    binding="b" * 64,
    key="k" * 64,
    needs=("finance", "security"),
    requesters=("bot", "olga"),
    risk_level="high",
    explanation="why",
    revision="r1",
    created=1000,
    decide_by=2000,
    use_within=500,
    changed=1000,
)
APPROVED = replace(OPENED, state=State.APPROVED, use_by=1800)
CONSUMED = replace(OPENED, state=State.CONSUMED, use_by=1800, claimed_by="call-1", lease_until=1900)
FAR = 10**18


def in_state(state: State) -> Approval:
    """An approval as it may be found in a state, with everything set that any move looks at."""
    return replace(OPENED, state=state, use_by=1800, claimed_by="call-1", lease_until=1900)


# States and moves


def test_what_is_active_waits_for_somebody_and_what_has_ended_does_not_move_but_for_a_late_truth() -> None:
    assert {before for before, _ in TRANSITIONS} == {*ACTIVE, State.UNKNOWN}
    assert {move for state, move in TRANSITIONS if state in ENDED} == {Move.FINISH, Move.REVOKE}
    assert frozenset(State) == ACTIVE | ENDED
    assert not ACTIVE & ENDED


def test_every_state_but_the_first_is_reached_and_every_move_is_some_states() -> None:
    assert set(TRANSITIONS.values()) == set(State) - {State.PENDING}
    assert {move for _, move in TRANSITIONS} == set(Move)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("move", Move)
def test_a_move_goes_where_the_table_says_or_nowhere(state: State, move: Move) -> None:
    before = in_state(state)
    if (state, move) not in TRANSITIONS:
        with pytest.raises(Refused, match=f"It is {state}"):
            moved(before, move, 1500)
        return
    after = moved(before, move, 1500, "so")
    assert (after.state, after.version, after.changed, after.reason) == (TRANSITIONS[state, move], 2, 1500, "so")
    untouched = {field.name for field in fields(Approval)} - {"state", "version", "changed", "reason"}
    assert all(getattr(after, name) == getattr(before, name) for name in untouched)


ACTIONS: dict[str, tuple[Callable[[Approval], Approval], set[State]]] = {
    "approve": (lambda a: voted(a, "dana", ["finance"], True, 1500), {State.PENDING}),
    "deny": (lambda a: voted(a, "dana", ["finance"], False, 1500), {State.PENDING}),
    "claim": (lambda a: claimed(a, "call-2", 100, 1500), {State.APPROVED}),
    "finish": (lambda a: finished(a, "call-1", 1500), {State.CONSUMED, State.UNKNOWN}),
    "release": (lambda a: released(a, "call-1", 1500), {State.CONSUMED}),
    "supersede": (lambda a: superseded(a, replace(OPENED, id="apr_2"), 1500), {State.PENDING}),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("action", ACTIONS)
def test_whatever_anybody_wants_is_refused_outside_of_its_states(action: str, state: State) -> None:
    do, allowed = ACTIONS[action]
    if state in allowed:
        assert do(in_state(state)).version == 2
    else:
        with pytest.raises(Refused, match=f"It is {state}"):
            do(in_state(state))


@pytest.mark.parametrize("state", sorted(set(State) - ACTIVE))
def test_time_makes_nothing_of_what_has_ended(state: State) -> None:
    ended = in_state(state)
    assert due(ended) is None
    assert passed(ended, FAR) is ended


# People


def test_the_last_slot_filled_approves_and_the_time_to_use_it_begins() -> None:
    first = voted(OPENED, "dana", ["finance"], True, 1200, "fine")
    assert (first.state, first.version, first.missing) == (State.PENDING, 2, ("security",))
    second = voted(first, "sam", ["security", "admin"], True, 1300)
    assert (second.state, second.version, second.missing, second.use_by) == (State.APPROVED, 3, (), 1800)
    assert [(vote.person, vote.yes, vote.roles, vote.at, vote.comment) for vote in second.votes] == [
        ("dana", True, ("finance",), 1200, "fine"),
        ("sam", True, ("security",), 1300, ""),
    ]


def test_one_person_with_all_the_roles_fills_one_slot() -> None:
    assert voted(OPENED, "dana", ["finance", "security"], True, 1200).state is State.PENDING


def test_a_person_with_two_roles_makes_room_for_one_with_one() -> None:
    first = voted(OPENED, "dana", ["finance", "security"], True, 1200)
    assert voted(first, "sam", ["finance"], True, 1300).state is State.APPROVED


def test_a_role_that_stands_twice_wants_two_people() -> None:
    twice = replace(OPENED, needs=("finance", "finance"))
    first = voted(twice, "dana", ["finance"], True, 1200)
    assert first.missing == ("finance",)
    assert voted(first, "kim", ["finance"], True, 1300).state is State.APPROVED


def test_one_no_denies_whatever_was_said_before() -> None:
    first = voted(OPENED, "dana", ["finance"], True, 1200)
    after = voted(first, "sam", ["security"], False, 1300, "not today")
    assert (after.state, after.version, after.reason, after.use_by) == (State.DENIED, 3, "not today", None)


def test_a_person_has_one_word() -> None:
    first = voted(OPENED, "dana", ["finance"], True, 1200)
    for yes in (True, False):
        with pytest.raises(Refused, match="said yes already, and cannot take it back"):
            voted(first, "dana", ["security"], yes, 1300)


@pytest.mark.parametrize("yes", [True, False])
def test_who_asks_for_a_call_does_not_decide_on_it(yes: bool) -> None:
    for person in OPENED.requesters:
        who = "Who asks" if person == OPENED.call.agent else f"You own {OPENED.call.agent}"
        with pytest.raises(NotEntitled, match=who):
            voted(OPENED, person, ["finance", "security"], yes, 1200)


@pytest.mark.parametrize("roles", [[], ["admin"], ["Finance"], ["fin"], ["finance "]])
@pytest.mark.parametrize("yes", [True, False])
def test_who_has_none_of_the_roles_says_nothing(roles: list[str], yes: bool) -> None:
    with pytest.raises(NotEntitled, match="finance, security"):
        voted(OPENED, "max", roles, yes, 1200)


def test_without_any_needed_role_nobody_decides() -> None:
    with pytest.raises(NotEntitled):
        voted(replace(OPENED, needs=()), "dana", ["finance"], True, 1200)


def test_nobody_decides_when_the_time_is_over() -> None:
    assert voted(OPENED, "dana", ["finance"], True, 1999).version == 2
    for now in (2000, 2001, FAR):
        with pytest.raises(Refused, match="over"):
            voted(OPENED, "dana", ["finance"], True, now)


def test_who_escalates_decides_for_any_role_but_only_once_they_were_told() -> None:
    opened = replace(OPENED, escalated=("lead",))
    assert entitled(opened, ["lead"]) == ()
    with pytest.raises(NotEntitled):
        voted(opened, "max", ["lead"], True, 1400)
    told = passed(opened, 1500)
    first = voted(told, "max", ["lead"], True, 1600)
    assert first.missing == ("security",)
    assert voted(first, "kim", ["lead"], True, 1700).state is State.APPROVED
    assert voted(first, "dana", ["finance"], True, 1700).state is State.APPROVED
    with pytest.raises(NotEntitled):
        voted(told, "olga", ["lead"], True, 1600)


def test_who_said_yes_also_fills_what_the_policy_wants_later_or_does_not() -> None:
    after = voted(voted(OPENED, "dana", ["finance"], True, 1200), "sam", ["security"], True, 1300)
    roles_of = {"dana": ["finance"], "sam": ["security", "legal"]}.get
    assert approves(after, ["security", "finance"], roles_of)
    assert approves(after, ["security"], roles_of)
    assert approves(after, [], roles_of)
    assert not approves(after, ["finance", "finance"], roles_of)
    assert not approves(after, ["finance", "security", "legal"], roles_of)
    assert not approves(OPENED, ["finance"], roles_of)
    assert not approves(after, ["finance"], {"dana": ["sales"], "sam": ["security"]}.get)
    assert not approves(after, ["security"], {"dana": ["finance"]}.get)


# When it is used


BY_DANA_AND_SAM = voted(voted(OPENED, "dana", ["finance"], True, 1200), "sam", ["security"], True, 1300)


@pytest.mark.parametrize(
    ("now", "valid"),
    [
        ({"dana": ["finance"], "sam": ["security"]}, True),
        ({"dana": ["finance", "security"], "sam": ["admin", "security"]}, True),
        ({"dana": ["finance"], "sam": []}, False),
        ({"dana": ["finance"], "sam": ["admin"]}, False),
        ({"dana": ["finance"]}, False),
        ({"dana": ["finance", "security"]}, False),
        ({"dana": ["security"], "sam": ["finance"]}, False),
        ({}, False),
    ],
)
def test_an_approval_stands_as_long_as_its_people_have_the_roles_they_spoke_in(
    now: dict[str, list[str]], valid: bool
) -> None:
    assert still_valid(BY_DANA_AND_SAM, now.get) is valid


def test_a_third_yes_keeps_an_approval_alive() -> None:
    three = voted(voted(OPENED, "kim", ["finance"], True, 1100), "dana", ["finance"], True, 1200)
    approved = voted(three, "sam", ["security"], True, 1300)
    assert still_valid(approved, {"kim": ["finance"], "sam": ["security"]}.get)
    assert not still_valid(approved, {"kim": ["finance"], "dana": ["finance"]}.get)


def test_an_approver_who_became_a_requester_does_not_count_any_more() -> None:
    roles = {"dana": ["finance"], "sam": ["security"]}
    assert not still_valid(replace(BY_DANA_AND_SAM, requesters=("sam",)), roles.get)


def test_who_decided_by_escalation_has_to_have_that_role_still_or_the_one_that_was_asked_for() -> None:
    told = passed(replace(OPENED, needs=("finance",), escalated=("lead",)), 1500)
    approved = voted(told, "max", ["lead"], True, 1600)
    assert still_valid(approved, {"max": ["lead"]}.get)
    assert still_valid(approved, {"max": ["finance"]}.get)
    assert not still_valid(approved, {"max": ["security"]}.get)


def test_a_no_never_counts_as_a_yes() -> None:
    denied = voted(replace(OPENED, needs=("finance",)), "dana", ["finance"], False, 1200)
    assert not still_valid(denied, {"dana": ["finance"]}.get)
    assert denied.missing == ("finance",)


def test_a_claim_is_made_in_time_and_by_one_call() -> None:
    after = claimed(APPROVED, "call-7", 60, 1799)
    assert (after.state, after.claimed_by, after.lease_until, after.version) == (State.CONSUMED, "call-7", 1859, 2)
    for now in (1800, FAR):
        with pytest.raises(Refused, match="over"):
            claimed(APPROVED, "call-7", 60, now)
    with pytest.raises(Refused, match="over"):
        claimed(replace(APPROVED, use_by=None), "call-7", 60, 1500)
    with pytest.raises(Refused, match="consumed"):
        claimed(after, "call-8", 60, 1500)


def test_only_the_call_that_claimed_it_says_what_came_of_it() -> None:
    for late in (CONSUMED, passed(CONSUMED, 1900)):
        with pytest.raises(Refused, match="Another call"):
            finished(late, "call-2", 1500)
        assert finished(late, "call-1", 1500, "200").state is State.DONE
    with pytest.raises(Refused, match="Another call"):
        released(CONSUMED, "call-2", 1500)
    with pytest.raises(Refused, match="Another call"):
        finished(replace(CONSUMED, claimed_by=None), "", 1500)


def test_what_was_surely_not_sent_may_be_used_by_another_call_until_its_time_is_over() -> None:
    again = released(CONSUMED, "call-1", 1500)
    assert (again.state, again.claimed_by, again.lease_until, again.use_by) == (State.APPROVED, None, None, 1800)
    assert claimed(again, "call-2", 10, 1600).claimed_by == "call-2"
    assert passed(again, 1800).state is State.LAPSED


def test_a_lost_call_is_not_given_back_but_its_truth_is_heard_late() -> None:
    lost = passed(CONSUMED, 1900)
    assert (lost.state, lost.lease_until, lost.claimed_by) == (State.UNKNOWN, None, "call-1")
    with pytest.raises(Refused, match="unknown"):
        released(lost, "call-1", 2000)
    with pytest.raises(Refused, match="unknown"):
        claimed(lost, "call-1", 60, 1700)


def test_other_arguments_are_another_approval_which_the_first_one_names() -> None:
    after = superseded(OPENED, replace(OPENED, id="apr_2", instead_of="apr_1"), 1500)
    assert (after.state, after.became, after.version) == (State.SUPERSEDED, "apr_2", 2)


# What the policy sees


def test_the_policy_sees_who_approved_and_the_slots_that_are_filled() -> None:
    assert seen_by_policy(BY_DANA_AND_SAM) == {
        "id": "apr_1",
        "roles": ["finance", "security"],
        "approvers": ["dana", "sam"],
        "expires": 1800,
    }


def test_the_policy_sees_no_role_that_nobody_fills_and_never_a_null() -> None:
    both = voted(OPENED, "dana", ["finance", "security"], True, 1200)
    assert seen_by_policy(both) == {"id": "apr_1", "roles": ["finance"], "approvers": ["dana"]}
    twice = replace(BY_DANA_AND_SAM, needs=("security", "security"))
    assert seen_by_policy(twice)["roles"] == ["security"]


# Time


def test_those_who_can_decide_are_reminded_at_half_and_at_nine_tenths_and_then_it_expires() -> None:
    assert REMINDERS == (0.5, 0.9)
    steps = [OPENED]
    times = []
    while (at := due(steps[-1])) is not None:
        times.append(at)
        assert passed(steps[-1], at - 1) is steps[-1]
        steps.append(passed(steps[-1], at))
    assert times == [1500, 1900, 2000]
    assert [(step.state, step.told, step.version) for step in steps] == [
        (State.PENDING, 0, 1),
        (State.PENDING, 1, 2),
        (State.PENDING, 2, 3),
        (State.EXPIRED, 2, 4),
    ]


def test_a_clock_that_jumps_over_the_deadline_expires_without_reminders() -> None:
    assert passed(OPENED, 2000).state is State.EXPIRED
    for early in (1000, 900):
        assert due(replace(OPENED, decide_by=early)) == early
        assert passed(replace(OPENED, decide_by=early), early).state is State.EXPIRED


def test_what_is_approved_and_not_used_lapses() -> None:
    assert due(APPROVED) == 1800
    assert passed(APPROVED, 1799) is APPROVED
    assert passed(APPROVED, 1800).state is State.LAPSED


# Any interleaving


NEEDED = ["finance", "security", "ops"]
PEOPLE = ["dana", "sam", "kim", "lee", "olga"]
people = st.sampled_from(PEOPLE)
some_roles = st.lists(st.sampled_from([*NEEDED, "lead"]), unique=True, max_size=3)
calls = st.sampled_from(["call-1", "call-2"])
seldom = st.sampled_from([*[False] * 11, True])


class Interleaved(RuleBasedStateMachine):
    """One approval, people whose roles change, calls that come and go, and a clock that may step back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.roles: dict[str, list[str]] = {}
        self.unreleased = 0
        self.sent = 0

    @initialize(
        needs=st.lists(st.sampled_from(NEEDED), min_size=1, max_size=3),
        requesters=st.lists(people, max_size=1),
        escalated=st.sampled_from([(), ("lead",)]),
        roles=st.fixed_dictionaries({name: st.just(NEEDED) | some_roles for name in PEOPLE}),
    )
    def opened(self, needs: list[str], requesters: list[str], escalated: tuple[str, ...], roles: Any) -> None:
        self.roles = roles
        self.approval = replace(
            OPENED,
            needs=tuple(needs),
            requesters=tuple(requesters),
            escalated=escalated,
            decide_by=3000,
            use_within=900,
        )

    def try_to(self, do: Callable[[], Approval]) -> bool:
        """What a store does: the next version in place of the one before, or nothing."""
        before = self.approval
        try:
            after = do()
        except Refused:
            return False
        assert after.version == before.version + 1
        assert after.votes[: len(before.votes)] == before.votes
        assert len(after.votes) <= len(before.votes) + 1
        assert after.votes == before.votes or before.state is State.PENDING
        if after.state is not before.state:
            assert after.state in [to for (state, _), to in TRANSITIONS.items() if state is before.state]
            assert before.state in ACTIVE or (before.state, after.state) == (State.UNKNOWN, State.DONE)
            assert after.changed == self.now
        assert (after.id, after.call, after.binding, after.key, after.needs) == (
            (before.id, before.call, before.binding, before.key, before.needs)
        )
        self.approval = after
        return True

    @rule(person=people, no=seldom, comment=st.text(max_size=2))
    def vote(self, person: str, no: bool, comment: str) -> None:
        before, roles = self.approval, self.roles.get(person, [])
        useful = set(roles) & {*before.needs, *(before.escalated if before.told else ())}
        expected = (
            before.state is State.PENDING
            and self.now < before.decide_by
            and person not in before.requesters
            and person not in [vote.person for vote in before.votes]
            and bool(useful)
        )
        assert self.try_to(lambda: voted(before, person, roles, not no, self.now, comment)) is expected
        if expected:
            assert (self.approval.state is State.DENIED) is no

    def quorum(self) -> bool:
        """Whether any way to give each slot a person of its own works, with the roles of then and of now."""

        def may(person: str, role: str) -> bool:
            (vote,) = (vote for vote in self.approval.votes if vote.person == person)
            now = self.roles.get(person)
            lead = self.approval.told > 0 and bool(set(now or ()) & set(self.approval.escalated))
            return (
                vote.yes
                and now is not None
                and person not in self.approval.requesters
                and role in vote.roles
                and (role in now or lead)
            )

        voters = [vote.person for vote in self.approval.votes]
        return any(
            all(may(person, role) for person, role in zip(chosen, self.approval.needs, strict=True))
            for chosen in itertools.permutations(voters, len(self.approval.needs))
        )

    @rule(call=calls, lease=st.integers(1, 300))
    def claim(self, call: str, lease: int) -> None:
        before = self.approval
        assert still_valid(before, self.roles.get) is self.quorum()
        if not still_valid(before, self.roles.get):
            self.try_to(lambda: moved(before, Move.REVOKE, self.now, "an approver may no longer"))
            assert self.approval.state is not State.APPROVED
            return
        if self.try_to(lambda: claimed(before, call, lease, self.now)):
            assert before.state is State.APPROVED
            assert before.use_by is not None
            assert self.now < before.use_by
            assert all(vote.at < before.decide_by for vote in before.votes)
            assert self.unreleased == 0
            self.unreleased = 1
            self.sent += 1

    @rule(call=calls)
    def release(self, call: str) -> None:
        before = self.approval
        if self.try_to(lambda: released(before, call, self.now)):
            assert before.claimed_by == call
            self.unreleased = 0
            self.sent -= 1

    @rule(call=calls)
    def finish(self, call: str) -> None:
        before = self.approval
        if self.try_to(lambda: finished(before, call, self.now)):
            assert before.claimed_by == call
            assert self.unreleased == 1

    @rule(move=st.sampled_from([Move.CANCEL, Move.REVOKE]), really=seldom)
    def take_back(self, move: Move, really: bool) -> None:
        if really:
            self.try_to(lambda: moved(self.approval, move, self.now, "taken back"))

    @rule(really=seldom)
    def change_arguments(self, really: bool) -> None:
        if really:
            self.try_to(lambda: superseded(self.approval, replace(OPENED, id="apr_2"), self.now))

    @rule(person=people, roles=st.none() | some_roles, really=seldom)
    def person_changes(self, person: str, roles: list[str] | None, really: bool) -> None:
        if really:
            self.roles = {name: had for name, had in self.roles.items() if name != person}
            if roles is not None:
                self.roles[person] = roles

    @rule(person=people, really=seldom)
    def approver_becomes_requester(self, person: str, really: bool) -> None:
        if really:
            self.approval = replace(self.approval, requesters=(*self.approval.requesters, person))

    @rule(step=st.integers(-50, 200))
    def clock(self, step: int) -> None:
        self.now += step

    @precondition(lambda self: due(self.approval) is not None and due(self.approval) <= self.now)
    @rule()
    def time_passes(self) -> None:
        assert self.try_to(lambda: passed(self.approval, self.now))

    @invariant()
    def what_is_due_is_what_time_makes_of_it(self) -> None:
        at = due(self.approval)
        if at is None:
            assert passed(self.approval, FAR) is self.approval
        else:
            assert passed(self.approval, at - 1) is self.approval
            assert passed(self.approval, at).version == self.approval.version + 1
            assert passed(self.approval, self.now) is self.approval or at <= self.now

    @invariant()
    def at_most_one_call_is_ever_sent(self) -> None:
        assert self.sent in (0, 1)
        used = self.approval.state in (State.CONSUMED, State.DONE, State.UNKNOWN)
        assert used is (self.sent == 1)
        assert (self.approval.claimed_by is not None) is used

    @invariant()
    def a_person_has_one_word_and_who_asks_has_none_at_the_time(self) -> None:
        voters = [vote.person for vote in self.approval.votes]
        assert len(voters) == len(set(voters))
        assert [vote.yes for vote in self.approval.votes[:-1]] == [True] * (len(voters) - 1)
        if self.approval.state in (State.APPROVED, *(State.CONSUMED, State.DONE, State.UNKNOWN)):
            assert self.approval.missing == ()


test_whatever_people_calls_and_clocks_do = Interleaved.TestCase
