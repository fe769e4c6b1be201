"""The accounting of budgets: what every step does to a loan, and that the books can be made again from their steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import books
from policies.books import BECOMES, MOST_REMEMBERED, REMEMBERED, Books, Kind, Page, State
from policies.budgets import Account, Ask, Budget, Conflict, Mode, Short, Spent, account
from policies.money import MOST

HARD = account(Budget("acme", "day", 100, Mode.STRICT), 0, None)
SOFT = account(Budget("acme/bot", "day", 100, Mode.SOFT), 0, None)
BOTH = (HARD, SOFT)


def ask(call: str = "c", want: int = 10, least: int = 1, accounts: tuple[Account, ...] = BOTH) -> Ask:
    return Ask(call, "acme", accounts, want, least)


def spent(cost: int = 1, model: str = "m") -> Spent:
    return Spent("2026-11-21", "acme", "", "bot", "", model, "t", "", cost=cost)


def stands(kept: Books) -> list[tuple[int, int]]:
    return [(each.posted, each.pending) for each in map(kept.balance, BOTH)]


def do(kept: Books, kind: Kind) -> None:
    """A step, as it would be for any call."""
    match kind:
        case Kind.LEND:
            kept.reserve(ask(), 1)
        case Kind.MORE:
            kept.extend("c", 20, 1)
        case Kind.SETTLE:
            kept.settle("c", BOTH, 3, [spent(3)], 1)
        case Kind.VOID:
            kept.void("c", 1)
        case Kind.EXPIRE:
            kept.expire("c", 1)
        case Kind.POST:
            kept.post("c", BOTH, 3, [spent(3)], 1)


TO: dict[State | None, list[Kind]] = {
    None: [],
    State.PENDING: [Kind.LEND],
    State.POSTED: [Kind.LEND, Kind.SETTLE],
    State.VOIDED: [Kind.LEND, Kind.VOID],
    State.EXPIRED: [Kind.LEND, Kind.EXPIRE],
}
"""How a loan comes into each state."""
LOANS = [kind for kind in Kind if kind is not Kind.POST]
COMES_TO = {
    (None, Kind.LEND): (0, 10),
    (State.PENDING, Kind.MORE): (0, 20),
    (State.PENDING, Kind.SETTLE): (3, 0),
    (State.PENDING, Kind.VOID): (0, 0),
    (State.PENDING, Kind.EXPIRE): (10, 0),
    (State.EXPIRED, Kind.SETTLE): (3, 0),
    (None, Kind.SETTLE): (3, 0),
    (None, Kind.VOID): (0, 0),
}
"""What every account has posted and pending after a step of BECOMES."""


@pytest.mark.parametrize("state", list(TO))
@pytest.mark.parametrize("kind", LOANS)
def test_a_step_does_what_the_table_says_and_no_other_does_anything(state: State | None, kind: Kind) -> None:
    kept = Books()
    for each in TO[state]:
        do(kept, each)
    assert kept.state("c") is state
    kept.steps.clear()
    kept.take(1)
    before = stands(kept)
    try:
        do(kept, kind)
    except Conflict:
        assert kind is Kind.LEND
    becomes = BECOMES.get((state, kind))
    assert kept.state("c") is (becomes or state)
    assert [step[:2] for step in kept.steps] == ([(kind, "c")] if becomes else [])
    assert stands(kept) == ([COMES_TO[state, kind]] * 2 if becomes else before)
    assert [line[1][4] for line in kept.lines()] == ([3] if becomes is State.POSTED else [])


def test_the_table_has_no_step_that_is_not_tried() -> None:
    assert COMES_TO.keys() == BECOMES.keys()
    assert {kind for _, kind in BECOMES} == set(LOANS)


def test_books_that_cannot_find_an_account_stay_as_they_were() -> None:
    kept = Books(_lost)
    for kind in (Kind.LEND, Kind.SETTLE, Kind.POST):
        with pytest.raises(OSError, match="unreadable"):
            do(kept, kind)
    assert kept.state("c") is None
    assert (kept.steps, kept.lines(), kept.pages()) == ([], [], [])


def _lost(key: str) -> Page:
    raise OSError(f"{key} is unreadable")


@pytest.mark.parametrize("absurd", [-5, MOST + 1, 10**40])
def test_whatever_a_target_says_of_itself_the_books_can_be_kept(absurd: int) -> None:
    kept = Books()
    kept.post("c1", BOTH, absurd, [spent(absurd)._replace(input_tokens=10**30)], 1)
    assert [0 <= balance.posted <= MOST for balance in map(kept.balance, BOTH)] == [True, True]
    (_, sums) = kept.lines()[0]
    assert max(sums) <= MOST
    assert kept.reserve(ask("c2", absurd, 0, (SOFT,)), 1) == min(max(absurd, 0), MOST)


def test_a_text_that_utf_8_cannot_hold_becomes_one_that_it_can() -> None:
    kept = Books()
    for call in ("c1", "c2"):
        kept.post(call, (), 1, [spent(model="m-\ud800")], 1)
    ((line, sums),) = kept.lines()
    assert (line[5], sums[4]) == ("m-?", 2)
    assert [step[5][0][0] for step in kept.steps] == [line, line]


# What is remembered


def test_what_became_of_a_call_is_known_for_an_hour() -> None:
    kept = Books()
    kept.settle("c", BOTH, 5, [], 0)
    kept.post("c", BOTH, 5, [], 0)
    kept.take(0)
    kept.take(REMEMBERED)
    kept.settle("c", BOTH, 5, [], 1)
    kept.post("c", BOTH, 5, [], 1)
    assert stands(kept) == [(10, 0)] * 2
    assert kept.state("c") is State.POSTED
    kept.take(REMEMBERED + 1)
    assert kept.state("c") is None


def test_no_more_calls_are_remembered_than_there_is_room_for() -> None:
    kept = Books()
    for batch in range(12):
        for number in range(MOST_REMEMBERED // 10):
            kept.void(f"c-{batch}-{number}", 0)
        kept.take(0)
        kept.steps.clear()
        assert len(kept.ended) <= MOST_REMEMBERED
    assert kept.state("c-0-0") is None
    assert kept.state("c-2-0") is State.VOIDED


def test_a_loan_that_is_open_is_never_forgotten_and_its_accounts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "KEPT", 2)
    found: list[str] = []

    def find(key: str) -> Page:
        found.append(key)
        return Page(key)

    kept = Books(find)
    kept.reserve(ask(), 0)
    for number in range(10):
        other = account(Budget(f"acme/{number}", "day", 100, Mode.STRICT), 0, None)
        kept.post(f"c-{number}", (other,), 1, [], 0)
    for page in kept.take(10 * REMEMBERED).pages:
        page.changed = False
    kept.sweep(100)
    assert {page.key for page in kept.pages()} > {each.key for each in BOTH}
    assert len(kept.pages()) == books.KEPT + len(BOTH)
    kept.settle("c", BOTH, 3, [], 0)
    assert stands(kept) == [(3, 0)] * 2
    assert len(found) == len(set(found)), "no account is looked for that is here"


# Made again

calls = st.sampled_from("abcde")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), calls, st.integers(0, 40)),
        st.tuples(st.just("extend"), calls, st.integers(0, 60)),
        st.tuples(st.sampled_from(["settle", "void", "expire", "post"]), calls, st.integers(0, 40)),
    ),
    max_size=40,
)


def done(kept: Books, name: str, call: str, amount: int) -> None:
    match name:
        case "reserve":
            try:
                kept.reserve(ask(call, amount, 0), 1)
            except (Short, Conflict):
                pass
        case "extend":
            kept.extend(call, amount, 1)
        case "settle":
            kept.settle(call, BOTH, amount, [spent(amount)], 1)
        case "void":
            kept.void(call, 1)
        case "expire":
            kept.expire(call, 1)
        case "post":
            kept.post(call, BOTH, amount, [spent(amount)], 1)


@given(steps)
def test_books_can_be_made_again_from_their_steps(history: list[tuple[str, str, int]]) -> None:
    kept = Books()
    for step in history:
        done(kept, *step)
    again = Books()
    for each in kept.steps:
        again.again(each, each[2], True, each[5], 1)
    assert stands(again) == stands(kept)
    assert [again.state(call) for call in "abcde"] == [kept.state(call) for call in "abcde"]
    assert [call in again.posts for call in "abcde"] == [call in kept.posts for call in "abcde"]
    assert again.lines() == kept.lines()
    lending = {page.key: page.lending for page in kept.pages()}
    assert {page.key: page.lending for page in again.pages() if page.key in lending} == lending
    for call in "abcde":  # what is open ends in both alike
        for either in (kept, again):
            either.expire(call, 2)
            either.settle(call, BOTH, 1, [], 2)
    assert stands(again) == stands(kept)
    assert {page.lending for page in again.pages()} <= {0}


@given(steps, st.lists(st.integers(0, 40), max_size=3))
def test_what_is_taken_from_the_books_is_all_that_has_changed(
    history: list[tuple[str, str, int]], taken_at: list[int]
) -> None:
    """Somebody who only ever writes down what is taken has the same accounts, loans and cost ledger."""
    kept = Books()
    accounts: dict[str, tuple[int, int]] = {}
    loans: dict[str, tuple[State, int]] = {}
    costs = 0

    def write() -> None:
        nonlocal costs
        changes = kept.take(1)
        for page in changes.pages:
            accounts[page.key] = page.posted, page.pending
            page.changed = False
        for call in changes.gone:
            del loans[call]
        for debt in changes.debts:
            loans[debt.call] = debt.state, debt.amount
            debt.kept, debt.stale = True, False
        costs += sum(sums[4] for _, sums in changes.lines)

    for number, step in enumerate(history):
        done(kept, *step)
        if number in taken_at:
            write()
    write()
    assert not kept.take(1)
    assert [accounts.get(each.key, (0, 0)) for each in BOTH] == stands(kept)
    assert loans == {debt.call: (debt.state, debt.amount) for debt in kept.debts()}
    assert costs == sum(sums[4] for step in kept.steps for _, sums in step[5])
