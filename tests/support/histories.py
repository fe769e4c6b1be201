"""A store of budgets beside a model of a few lines: steps repeated, reordered and given up, processes killed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from policies.budgets import Account, Ask, Conflict, Mode, Raised, Short, Store
from tests.support.stores import DAY, NOW, Place, ask, budget, paying, spent, standing, unseen

T = TypeVar("T")

TENANT = budget("acme", 300)
AGENT = budget("acme/bot", 200, mode=Mode.ADAPTIVE)
SOFT = budget("acme/team", 30, mode=Mode.SOFT)
EVERY = paying(TENANT, AGENT, SOFT)
HARD = EVERY[:2]
PAYERS = {"all": EVERY, "hard": HARD, "tenant": EVERY[:1]}
"""The tenant always pays: what it has posted is what the cost ledger has."""

calls = st.sampled_from([f"call-{number}" for number in range(30)])
payers = st.sampled_from(list(PAYERS))
amounts = st.integers(0, 70)
which = st.integers(0, 29)


@dataclass
class Call:
    """One call, and what it has come to: `charged` is in the accounts' posted, `lent` in their pending."""

    accounts: tuple[Account, ...]
    asked: Ask | None = None
    state: str = "over"
    lent: int = 0
    charged: int = 0
    beyond: int = 0
    """What it has cost beyond what it was lent."""


@dataclass
class Model:
    """What should be true, said plainly: every number is a sum over calls."""

    calls: dict[str, Call] = field(default_factory=dict)
    posts: dict[str, Call] = field(default_factory=dict)
    raised: dict[str, int] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=lambda: {each.key: each.budget.limit for each in EVERY})
    ledger: int = 0

    def sum(self, what: str, account: Account) -> int:
        every = (*self.calls.values(), *self.posts.values())
        return sum(getattr(call, what) for call in every if account in call.accounts)

    def limit(self, account: Account) -> int:
        return self.raised.get(account.key, account.budget.limit)

    def left(self, account: Account) -> int:
        return self.limit(account) - self.sum("charged", account) - self.sum("lent", account)

    def reserve(self, asked: Ask) -> int | str:
        known = self.calls.get(asked.call)
        if known is not None:
            return known.lent if known.state == "lent" and known.asked == asked else "conflict"
        hard = [each for each in asked.accounts if each.hard]
        lent = max(0, min([asked.want, *map(self.left, hard)]))
        if lent < asked.least:
            fits = all(self.limit(each) - self.sum("charged", each) >= asked.least for each in hard)
            return "contended" if fits else "exhausted"
        self.calls[asked.call] = Call(asked.accounts, asked, "lent", lent)
        return lent

    def extend(self, name: str, amount: int) -> bool:
        call = self.calls.get(name)
        if call is None or call.state != "lent":
            return False
        if amount > call.lent and any(each.hard and self.left(each) < amount - call.lent for each in call.accounts):
            return False
        call.lent = max(call.lent, amount)
        return True

    def settle(self, name: str, accounts: tuple[Account, ...], cost: int) -> None:
        call = self.calls.setdefault(name, Call(accounts, state="unknown"))
        if call.state != "over":
            call.beyond = max(0, cost - call.lent - call.charged)
            call.state, call.lent, call.charged = "over", 0, cost
            self.ledger += cost

    def void(self, name: str) -> None:
        call = self.calls.setdefault(name, Call(()))
        if call.state == "lent":
            call.state, call.lent = "over", 0

    def expire(self) -> None:
        for call in self.calls.values():
            if call.state == "lent":
                call.state, call.lent, call.charged = "expired", 0, call.lent

    def post(self, name: str, accounts: tuple[Account, ...], cost: int) -> None:
        if name not in self.posts:
            self.posts[name] = Call(accounts, charged=cost, beyond=cost)
            self.ledger += cost


class History(RuleBasedStateMachine):
    """Whatever is done is done to the store and to the model, and both have to agree."""

    where: ClassVar[Callable[[Path], AbstractAsyncContextManager[Place]]]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.loop = asyncio.new_event_loop()
        self.open = AsyncExitStack()
        folder = Path(self.open.enter_context(tempfile.TemporaryDirectory()))
        self.place: Place = self.run(self.open.enter_async_context(type(self).where(folder)))
        self.store: Store = self.run(self.place.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @rule(call=calls, who=payers, want=amounts, least=amounts)
    def a_call_asks(self, call: str, who: str, want: int, least: int) -> None:
        asked = ask(call, PAYERS[who], want, min(want, least))
        assert self.run(self.answer(asked)) == self.model.reserve(asked)

    @rule(call=calls)
    def a_call_whose_answer_was_lost_asks_again(self, call: str) -> None:
        known = self.model.calls.get(call)
        if known is not None and known.asked is not None:
            assert self.run(self.answer(known.asked)) == self.model.reserve(known.asked)

    @rule(call=calls, who=payers, want=amounts, turns=st.integers(0, 5))
    def a_call_gives_up_waiting(self, call: str, who: str, want: int, turns: int) -> None:
        async def given_up() -> None:
            waiting = asyncio.ensure_future(self.store.reserve(ask(call, PAYERS[who], want, 0)))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            self.store.void(unseen(call, PAYERS[who]))

        self.run(given_up())
        self.model.void(call)

    @rule(which=which, more=st.integers(-5, 10))
    def a_loan_that_is_there_grows(self, which: int, more: int) -> None:
        for call in self.one_that_is("lent", which):
            self.a_loan_grows(call, max(0, self.model.calls[call].lent + more), 1)

    @rule(call=calls, amount=amounts, times=st.integers(1, 2))
    def a_loan_grows(self, call: str, amount: int, times: int) -> None:
        expected = self.model.extend(call, amount)
        for _ in range(times):
            loan = unseen(call, EVERY)
            assert self.run(self.store.extend(loan, amount)) == expected
            assert loan.amount == (self.model.calls[call].lent if expected else 0)

    @rule(call=calls, who=payers, cost=amounts, times=st.integers(1, 2))
    def a_call_is_settled(self, call: str, who: str, cost: int, times: int) -> None:
        for _ in range(times):
            self.settle(call, PAYERS[who], cost)

    @rule(which=which, cost=st.integers(0, 5))
    def a_loan_that_is_there_is_settled(self, which: int, cost: int) -> None:
        for call in self.one_that_is("lent", which):
            self.settle(call, self.model.calls[call].accounts, min(cost, self.model.calls[call].lent))

    @rule(which=which, cost=amounts)
    def the_truth_comes_late(self, which: int, cost: int) -> None:
        for call in self.one_that_is("expired", which):
            self.settle(call, self.model.calls[call].accounts, cost)

    @rule(call=calls, times=st.integers(1, 2))
    def a_loan_is_paid_back(self, call: str, times: int) -> None:
        for _ in range(times):
            self.in_loop(lambda: self.store.void(unseen(call, EVERY)))
            self.model.void(call)

    @rule(call=calls, who=payers, cost=st.integers(0, 10), times=st.integers(1, 2))
    def a_cost_is_posted(self, call: str, who: str, cost: int, times: int) -> None:
        for _ in range(times):
            self.in_loop(lambda: self.store.post(call, "acme", PAYERS[who], cost, [spent(cost)]))
            self.model.post(call, PAYERS[who], cost)

    @rule(account=st.sampled_from(HARD), limit=st.integers(0, 400))
    def a_limit_is_set(self, account: Account, limit: int) -> None:
        budget = account.budget
        raised = Raised(budget.node, budget.window, limit, budget.limit, "dana", NOW)
        self.run(self.store.raise_limit(raised))
        self.model.raised[account.key] = limit
        self.model.highest[account.key] = max(limit, self.model.highest[account.key])

    @rule(account=st.sampled_from(HARD))
    def a_limit_is_taken_back(self, account: Account) -> None:
        self.run(self.store.reset_limit("acme", account.budget.node, account.budget.window))
        self.model.raised.pop(account.key, None)

    @rule(seconds=st.sampled_from([0.0, 0.01]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def the_process_ends_and_another_comes(self) -> None:
        for name, call in self.model.calls.items():
            if call.state == "lent":
                self.settle(name, call.accounts, call.lent)
        self.run(self.store.close())
        self.store = self.run(self.place.open())

    @rule()
    def the_process_is_killed_and_another_comes(self) -> None:
        self.run(self.place.leave(self.store))
        self.model.expire()
        self.store = self.run(self.place.open())

    @invariant()
    def accounts_stand_as_the_sums_of_their_calls(self) -> None:
        expected = [(self.model.sum("charged", each), self.model.sum("lent", each)) for each in EVERY]
        assert self.run(standing(self.store, EVERY)) == expected

    @invariant()
    def hard_limits_hold(self) -> None:
        for each, (posted, pending) in zip(HARD, self.run(standing(self.store, HARD)), strict=True):
            assert posted + pending <= self.model.highest[each.key] + self.model.sum("beyond", each)

    def teardown(self) -> None:
        try:
            for name, call in self.model.calls.items():
                if call.state != "over":
                    self.settle(name, call.accounts, 1)
            posted, pending = zip(*self.run(standing(self.store, EVERY)), strict=True)
            assert pending == (0, 0, 0)
            rows = self.run(self.store.spend(["acme"], DAY, DAY, [], {}))
            assert sum(int(row["cost"]) for row in rows) == self.model.ledger
            assert posted[0] == self.model.ledger
        finally:
            self.run(self.store.close())
            self.run(self.open.aclose())
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()

    def one_that_is(self, state: str, which: int) -> list[str]:
        """One call in this state, if there are any."""
        found = [name for name, call in self.model.calls.items() if call.state == state]
        return found[which % len(found) :][:1] if found else []

    def settle(self, call: str, accounts: tuple[Account, ...], cost: int) -> None:
        self.in_loop(lambda: self.store.settle(unseen(call, accounts), cost, [spent(cost)]))
        self.model.settle(call, accounts, cost)

    def in_loop(self, act: Any) -> None:
        async def acting() -> None:
            act()

        self.run(acting())

    async def answer(self, asked: Ask) -> int | str:
        try:
            return (await self.store.reserve(asked)).amount
        except Conflict:
            return "conflict"
        except Short as short:
            return "contended" if short.contended else "exhausted"


def agree(
    where: Callable[[Path], AbstractAsyncContextManager[Place]], examples: int = 60, history: type[History] = History
) -> None:
    """Raises AssertionError for a history, as short as it can be found, in which store and model differ."""
    run_state_machine_as_test(
        type("HistoryThere", (history,), {"where": staticmethod(where)}),
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
