"""What every store of budgets promises: lent before it is spent, settled once, whatever is repeated, late or lost."""

from __future__ import annotations

import asyncio

import pytest

from policies.budgets import METRICS, Conflict, Mode, Raised, Short, Store
from policies.money import NANO, nano
from tests.support.stores import DAY, NOW, Place, ask, budget, paying, spent, standing, unseen

TEAM = budget("acme", 100)
AGENT = budget("acme/bot", 60)
BOTH = paying(TEAM, AGENT)
ALONE = paying(AGENT)


# Lending


async def test_a_call_is_lent_what_it_wants_by_every_account(store: Store) -> None:
    loan = await store.reserve(ask("c1", BOTH, 40))
    assert (loan.call, loan.tenant, loan.accounts, loan.amount) == ("c1", "acme", BOTH, 40)
    assert await standing(store, BOTH) == [(0, 40), (0, 40)]


async def test_a_call_is_lent_what_is_left_where_that_is_enough(store: Store) -> None:
    await store.reserve(ask("c1", ALONE, 40))
    loan = await store.reserve(ask("c2", BOTH, 50, least=20))
    assert loan.amount == 20
    assert await standing(store, BOTH) == [(0, 20), (0, 60)]


async def test_a_call_that_wants_more_than_is_left_leaves_no_trace(store: Store) -> None:
    with pytest.raises(Short):
        await store.reserve(ask("c1", BOTH, 90, least=61))
    assert await standing(store, BOTH) == [(0, 0), (0, 0)]


async def test_money_that_is_spent_is_exhausted(store: Store) -> None:
    store.post("c1", "acme", ALONE, 50, [])
    with pytest.raises(Short) as refused:
        await store.reserve(ask("c2", BOTH, 20, least=11))
    assert not refused.value.contended
    balance = refused.value.balance
    assert (balance.account, balance.limit, balance.posted, balance.pending) == (ALONE[0], 60, 50, 0)


async def test_money_that_is_lent_to_others_is_contended(store: Store) -> None:
    store.post("c0", "acme", ALONE, 30, [])
    other = await store.reserve(ask("c1", ALONE, 20))
    with pytest.raises(Short) as refused:
        await store.reserve(ask("c2", BOTH, 30))
    assert refused.value.contended
    balance = refused.value.balance
    assert (balance.account, balance.limit, balance.posted, balance.pending) == (ALONE[0], 60, 30, 20)
    store.void(other)
    assert (await store.reserve(ask("c2", BOTH, 30))).amount == 30


async def test_one_account_that_has_spent_too_much_is_enough_to_be_exhausted_and_is_named(store: Store) -> None:
    store.post("c0", "acme", paying(TEAM), 80, [])
    await store.reserve(ask("c1", ALONE, 50))
    with pytest.raises(Short) as refused:
        await store.reserve(ask("c2", BOTH, 30))
    assert not refused.value.contended
    assert refused.value.balance.account == BOTH[0], "the other one has less left, and gets it back"


@pytest.mark.parametrize("mode", [Mode.SOFT, Mode.SHADOW])
async def test_a_soft_account_counts_but_neither_refuses_nor_lends_less(store: Store, mode: Mode) -> None:
    accounts = paying(budget("acme", 10, mode=mode), AGENT)
    assert (await store.reserve(ask("c1", accounts, 50))).amount == 50
    assert await standing(store, accounts) == [(0, 50), (0, 50)]
    assert (await store.reserve(ask("c2", accounts, 50, least=1))).amount == 10
    soft = paying(budget("acme", 10, mode=mode))
    assert (await store.reserve(ask("c3", soft, 5000))).amount == 5000


async def test_a_loan_of_nothing_is_never_refused(store: Store) -> None:
    store.post("c0", "acme", ALONE, 100, [])
    loan = await store.reserve(ask("c1", ALONE, 0))
    assert loan.amount == 0
    assert (await store.reserve(ask("c2", ALONE, 50, least=0))).amount == 0
    store.settle(loan, 1, [])
    assert await standing(store, ALONE) == [(101, 0)]


async def test_a_loan_may_be_large(store: Store) -> None:
    accounts = paying(budget(limit=nano(9_000_000)))
    loan = await store.reserve(ask("c1", accounts, nano(9_000_000)))
    store.settle(loan, nano(9_000_000) - 1, [])
    assert (await store.reserve(ask("c2", accounts, nano(5), least=1))).amount == 1


async def test_windows_and_sessions_are_accounts_of_their_own(store: Store) -> None:
    session, month = budget(window="session"), budget(window="month")
    accounts = (*paying(session, session="a"), *paying(session, session="b"), *paying(session), *paying(month))
    for number, each in enumerate(accounts):
        store.post(f"c{number}", "acme", (each,), number + 1, [])
    assert await standing(store, accounts) == [(1, 0), (2, 0), (3, 0), (4, 0)]


# Asked again


async def test_the_same_call_that_asks_again_is_told_the_same_and_lent_nothing_more(store: Store) -> None:
    first = await store.reserve(ask("c1", BOTH, 90, least=10))
    store.post("c2", "acme", ALONE, 60, [])
    again = await store.reserve(ask("c1", BOTH, 90, least=10))
    assert again.amount == first.amount == 60
    assert await standing(store, ALONE) == [(60, 60)]


async def test_calls_that_ask_twice_at_once_are_lent_once(store: Store) -> None:
    loans = await asyncio.gather(*(store.reserve(ask("c1", ALONE, 10)) for _ in range(3)))
    assert [loan.amount for loan in loans] == [10] * 3
    assert await standing(store, ALONE) == [(0, 10)]


async def test_a_call_that_asks_for_something_else_is_a_conflict(store: Store) -> None:
    await store.reserve(ask("c1", ALONE, 10))
    for other in (ask("c1", ALONE, 11, 10), ask("c1", ALONE, 10, 9), ask("c1", BOTH, 10)):
        with pytest.raises(Conflict):
            await store.reserve(other)
    assert await standing(store, BOTH) == [(0, 0), (0, 10)]


async def test_a_call_whose_loan_is_settled_or_paid_back_is_lent_nothing_again(store: Store) -> None:
    store.settle(await store.reserve(ask("c1", ALONE, 10)), 5, [])
    store.void(await store.reserve(ask("c2", ALONE, 10)))
    for call in ("c1", "c2"):
        with pytest.raises(Conflict):
            await store.reserve(ask(call, ALONE, 10))
    assert await standing(store, ALONE) == [(5, 0)]


async def test_a_refused_call_may_ask_again(store: Store) -> None:
    other = await store.reserve(ask("c1", ALONE, 60))
    for _ in range(2):
        with pytest.raises(Short):
            await store.reserve(ask("c2", ALONE, 60))
    store.void(other)
    assert (await store.reserve(ask("c2", ALONE, 60))).amount == 60


# More


async def test_a_loan_is_raised_to_an_amount_once(store: Store) -> None:
    loan = await store.reserve(ask("c1", BOTH, 10))
    for _ in range(2):
        assert await store.extend(loan, 30)
        assert loan.amount == 30
        assert await standing(store, BOTH) == [(0, 30), (0, 30)]


async def test_a_late_wish_for_less_lowers_nothing(store: Store) -> None:
    loan = await store.reserve(ask("c1", ALONE, 30))
    assert await store.extend(loan, 20)
    assert loan.amount == 30
    assert await standing(store, ALONE) == [(0, 30)]


async def test_a_loan_is_not_raised_beyond_what_any_account_has_left(store: Store) -> None:
    loan = await store.reserve(ask("c1", BOTH, 10))
    assert not await store.extend(loan, 61)
    assert loan.amount == 10
    assert await standing(store, BOTH) == [(0, 10), (0, 10)]
    assert await store.extend(loan, 60)


async def test_soft_accounts_never_refuse_to_raise_a_loan(store: Store) -> None:
    accounts = paying(budget(limit=10, mode=Mode.SOFT))
    loan = await store.reserve(ask("c1", accounts, 10))
    assert await store.extend(loan, 1000)
    assert await standing(store, accounts) == [(0, 1000)]


async def test_what_is_not_lent_cannot_be_raised(store: Store) -> None:
    settled, paid_back = await store.reserve(ask("c1", ALONE, 1)), await store.reserve(ask("c2", ALONE, 1))
    store.settle(settled, 1, [])
    store.void(paid_back)
    for loan in (settled, paid_back, unseen("c3", ALONE)):
        assert not await store.extend(loan, 2)
    assert await standing(store, ALONE) == [(1, 0)]


# Settling


async def test_what_a_call_has_cost_is_posted_and_the_rest_paid_back(store: Store) -> None:
    loan = await store.reserve(ask("c1", BOTH, 40))
    store.settle(loan, 15, [spent(15)])
    assert await standing(store, BOTH) == [(15, 0), (15, 0)]


async def test_a_call_that_has_cost_more_than_it_was_lent_is_posted_in_full(store: Store) -> None:
    loan = await store.reserve(ask("c1", ALONE, 40))
    store.settle(loan, 75, [])
    assert await standing(store, ALONE) == [(75, 0)]


async def test_a_loan_is_settled_once_however_often_that_is_said(store: Store) -> None:
    loan = await store.reserve(ask("c1", ALONE, 40))
    for cost in (15, 15, 16):
        store.settle(loan, cost, [spent(cost)])
    store.void(loan)
    assert await standing(store, ALONE) == [(15, 0)]
    assert [row["cost"] for row in await store.spend(["acme"], DAY, DAY, ["tenant"], {})] == [15]


async def test_what_is_paid_back_stays_paid_back(store: Store) -> None:
    loan = await store.reserve(ask("c1", ALONE, 40))
    store.void(loan)
    store.void(loan)
    store.settle(loan, 15, [spent(15)])
    assert await standing(store, ALONE) == [(0, 0)]
    assert await store.spend(["acme"], DAY, DAY, ["tenant"], {}) == []


async def test_a_loan_that_arrives_after_it_was_paid_back_is_refused(store: Store) -> None:
    store.void(unseen("c1", ALONE))
    with pytest.raises(Conflict):
        await store.reserve(ask("c1", ALONE, 40))
    assert await standing(store, ALONE) == [(0, 0)]


async def test_a_loan_that_arrives_after_it_was_settled_is_refused(store: Store) -> None:
    store.settle(unseen("c1", ALONE), 15, [spent(15)])
    with pytest.raises(Conflict):
        await store.reserve(ask("c1", ALONE, 40))
    store.settle(unseen("c1", ALONE), 15, [spent(15)])
    assert await standing(store, ALONE) == [(15, 0)]


async def test_a_cost_without_a_loan_is_posted_once(store: Store) -> None:
    for _ in range(2):
        store.post("c1", "acme", BOTH, 15, [spent(15)])
    assert await standing(store, BOTH) == [(15, 0), (15, 0)]
    assert [row["cost"] for row in await store.spend(["acme"], DAY, DAY, ["tenant"], {})] == [15]


async def test_a_cost_is_posted_although_a_loan_of_the_same_call_was_paid_back(store: Store) -> None:
    """As where the store did not answer in time and only soft budgets pay."""
    store.void(unseen("c1", ALONE))
    store.post("c1", "acme", ALONE, 15, [])
    with pytest.raises(Conflict):
        await store.reserve(ask("c1", ALONE, 40))
    assert await standing(store, ALONE) == [(15, 0)]


async def test_a_call_without_accounts_only_has_its_cost_recorded(store: Store) -> None:
    store.post("c1", "acme", (), 15, [spent(15)])
    assert [row["cost"] for row in await store.spend(["acme"], DAY, DAY, ["tenant"], {})] == [15]


async def test_a_refused_wait_for_a_loan_gives_everything_back(store: Store) -> None:
    """Whoever stops waiting does not know what it was lent."""
    for turns in range(6):
        call = f"c{turns}"
        waiting = asyncio.ensure_future(store.reserve(ask(call, ALONE, 60)))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        store.void(unseen(call, ALONE))
    assert await standing(store, ALONE) == [(0, 0)]
    assert (await store.reserve(ask("last", ALONE, 60))).amount == 60


async def test_a_thousand_calls_at_once_spend_a_cap_to_the_cent(store: Store) -> None:
    accounts = paying(budget("acme", nano(5)), budget("acme/bot", nano(500)))

    async def call(number: int) -> bool:
        try:
            loan = await store.reserve(ask(f"c{number}", accounts, nano(0.10)))
        except Short:
            return False
        await asyncio.sleep(0)
        store.settle(loan, nano(0.10), [spent(nano(0.10))])
        return True

    passed = await asyncio.gather(*map(call, range(1000)))
    assert sum(passed) == 50
    assert await standing(store, accounts) == [(5 * NANO, 0), (5 * NANO, 0)]
    assert [(row["calls"], row["cost"]) for row in await store.spend(["acme"], DAY, DAY, ["tenant"], {})] == [
        (50, 5 * NANO)
    ]


# After the process that lent


async def test_everything_is_found_again_by_who_comes_next(place: Place) -> None:
    store = await place.open()
    store.settle(await store.reserve(ask("c1", BOTH, 40)), 15, [spent(15)])
    store.post("c2", "acme", ALONE, 2, [spent(2)])
    await store.raise_limit(Raised("acme", "day", 500, 100, "dana", NOW, "a launch"))
    await store.close()
    store = await place.open()
    assert await standing(store, BOTH) == [(15, 0), (17, 0)]
    assert [row["cost"] for row in await store.spend(["acme"], DAY, DAY, ["tenant"], {})] == [17]
    assert [each.limit for each in await store.balances(BOTH)] == [500, 60]
    with pytest.raises(Conflict):
        await store.reserve(ask("c1", BOTH, 40))
    store.settle(unseen("c1", BOTH), 15, [spent(15)])
    store.post("c2", "acme", ALONE, 2, [spent(2)])
    assert await standing(store, BOTH) == [(15, 0), (17, 0)]
    await store.close()


async def test_a_loan_that_nobody_comes_back_for_is_posted_whole(place: Place) -> None:
    store = await place.open()
    loan = await store.reserve(ask("c1", BOTH, 10))
    assert await store.extend(loan, 40)
    await place.leave(store)
    store = await place.open()
    assert await standing(store, BOTH) == [(40, 0), (40, 0)]
    store.void(loan)
    assert not await store.extend(loan, 50)
    with pytest.raises(Conflict):
        await store.reserve(ask("c1", BOTH, 10))
    assert await standing(store, BOTH) == [(40, 0), (40, 0)]
    await store.close()


@pytest.mark.parametrize("truth", [0, 25, 40, 55])
async def test_a_late_truth_corrects_what_was_posted(place: Place, truth: int) -> None:
    store = await place.open()
    loan = await store.reserve(ask("c1", BOTH, 40))
    await place.leave(store)
    store = await place.open()
    for _ in range(2):
        store.settle(loan, truth, [spent(truth)])
    assert await standing(store, BOTH) == [(truth, 0), (truth, 0)]
    assert [row["cost"] for row in await store.spend(["acme"], DAY, DAY, ["tenant"], {})] == [truth]
    await store.close()


# Limits that people set


async def test_a_raised_limit_holds_until_it_is_taken_back(store: Store) -> None:
    raised = Raised("acme/bot", "day", 100, 60, "dana", NOW, "a launch")
    await store.raise_limit(raised)
    assert await store.raised("acme") == [raised]
    assert [each.limit for each in await store.balances(ALONE)] == [100]
    assert (await store.reserve(ask("c1", ALONE, 90))).amount == 90
    await store.reset_limit("acme", "acme/bot", "day")
    await store.reset_limit("acme", "acme/bot", "day")
    assert await store.raised("acme") == []
    with pytest.raises(Short) as refused:
        await store.reserve(ask("c2", ALONE, 1))
    assert refused.value.balance.limit == 60


async def test_a_loan_grows_into_a_raised_limit(store: Store) -> None:
    loan = await store.reserve(ask("c1", ALONE, 60))
    await store.raise_limit(Raised("acme/bot", "day", 100, 60, "dana", NOW))
    assert await store.extend(loan, 100)


async def test_a_lowered_limit_takes_nothing_back_but_lends_nothing_more(store: Store) -> None:
    loan = await store.reserve(ask("c1", ALONE, 50))
    await store.raise_limit(Raised("acme/bot", "day", 20, 60, "dana", NOW))
    assert not await store.extend(loan, 51)
    with pytest.raises(Short):
        await store.reserve(ask("c2", ALONE, 1))
    store.settle(loan, 50, [])
    assert await standing(store, ALONE) == [(50, 0)]


async def test_whoever_writes_another_limit_into_the_configuration_has_the_last_word(store: Store) -> None:
    await store.raise_limit(Raised("acme/bot", "day", 100, 60, "dana", NOW))
    edited = paying(budget("acme/bot", 70))
    assert [each.limit for each in await store.balances(edited)] == [70]
    assert (await store.reserve(ask("c1", edited, 90, least=1))).amount == 70


async def test_a_limit_is_raised_for_one_node_and_window(store: Store) -> None:
    await store.raise_limit(Raised("acme/bot", "day", 100, 60, "dana", NOW))
    await store.raise_limit(Raised("acme/bot", "day", 200, 60, "sam", NOW + 1))
    others = paying(budget("acme/bot", 60, window="month"), budget("acme", 60), budget("acme/bott", 60))
    assert [each.limit for each in await store.balances(others)] == [60] * 3
    assert [(each.limit, each.by) for each in await store.raised("acme")] == [(200, "sam")]
    assert await store.raised("acm") == []


# What is asked after


async def test_balances_come_in_the_order_of_their_accounts(store: Store) -> None:
    store.post("c1", "acme", ALONE, 5, [])
    backwards = (*ALONE, *paying(TEAM))
    balances = await store.balances(backwards)
    assert [(each.account, each.posted) for each in balances] == [(ALONE[0], 5), (BOTH[0], 0)]
    assert await store.balances(()) == []


async def test_what_is_known_without_asking_is_what_asking_tells(store: Store) -> None:
    await store.reserve(ask("c1", BOTH, 5))
    asked = await store.balances(BOTH)
    known = store.known(BOTH)
    assert known is None or known == asked
    assert store.shared or known is not None


async def test_the_sessions_that_were_used_last_come_first(store: Store) -> None:
    each = budget("acme/bot", window="session")
    accounts = [paying(each, session=name)[0] for name in ("a", "b", "c", "d|e")]
    for number, account in enumerate(accounts):
        store.settle(await store.reserve(ask(f"c{number}", (account,), number)), number, [])
        await asyncio.sleep(0.002)
    await store.reserve(ask("again", (accounts[1],), 10))
    store.post("elsewhere", "acme", paying(budget("acme/bot2", window="session"), session="a"), 1, [])
    store.post("day", "acme", ALONE, 1, [])
    found = await store.sessions(each, 3)
    assert [(b.account.window_id, b.posted, b.pending) for b in found] == [("=b", 1, 10), ("=d|e", 3, 0), ("=c", 2, 0)]
    assert [b.account for b in found] == [accounts[1], accounts[3], accounts[2]]
    assert len(await store.sessions(each, 10)) == 4


async def test_the_cost_ledger_is_summed_by_what_is_asked_for(store: Store) -> None:
    loan = await store.reserve(ask("c1", ALONE, 40))
    store.settle(loan, 15, [spent(10, model="a"), spent(5, model="b")])
    store.post("c2", "acme", (), 3, [spent(3, model="a", agent="other", session="s")])
    store.post("c3", "acme", (), 1, [spent(1, model="a", day="2025-11-20")])
    store.post("c4", "beta", (), 99, [spent(99)._replace(tenant="beta")])

    async def costs(*group_by: str, since: str = "2025-11-20", **where: str) -> list[tuple[str | int, ...]]:
        rows = await store.spend(["acme"], since, DAY, group_by, where)
        assert all(row.keys() == {*group_by, *METRICS} for row in rows)
        return sorted(tuple(row[name] for name in (*group_by, "cost")) for row in rows)

    assert await costs() == [(19,)]
    assert await costs("model") == [("a", 14), ("b", 5)]
    assert await costs("day", "agent") == [("2025-11-20", "bot", 1), (DAY, "bot", 15), (DAY, "other", 3)]
    assert await costs(since=DAY) == [(18,)]
    assert await costs("model", agent="other", session="s") == [("a", 3)]
    assert await costs("model", agent="other", session="") == []
    both = await store.spend(["acme", "beta"], DAY, DAY, ["tenant"], {})
    assert {row["tenant"]: row["cost"] for row in both} == {"acme": 18, "beta": 99}
    (row,) = await store.spend(["beta"], DAY, DAY, [], {})
    counted = {"calls": 1, "input_tokens": 7, "output_tokens": 3, "cost": 99}
    assert row == {**counted, "cached_tokens": 0, "tool_cost": 0, "unpriced": 0}
    assert await store.spend(["acme"], "2025-11-22", "2025-11-23", [], {}) == []


async def test_texts_of_callers_are_only_texts(store: Store) -> None:
    """Models and sessions are named by agents."""
    for number, text in enumerate(("'; drop table spent; --", "\x00", "ü🎲", "\ud800", "a|b", '"')):
        store.post(f"c{number}", "acme", (), 1, [spent(1, model=text, session=text)])
    rows = await store.spend(["acme"], DAY, DAY, ["model"], {})
    assert sum(int(row["cost"]) for row in rows) == 6
    assert len(rows) == 6
