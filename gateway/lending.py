"""The money of one call: what it may cost, what it borrows before it runs, and what it has cost when it is over.

    reserve   limits let the call in; the budgets that pay for it lend its worst case, or a first piece of it
    more      a streamed answer grows: another piece, or the stream ends here
    settle    what the call has cost is posted, whatever was lent, on every way out

Nothing here waits while a person thinks, and settling never waits at all: the store sees to it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from adapters.base import AgentCall, Usage
from adapters.sizes import looks_up
from gateway.estimate import Estimate, Tariff, context
from gateway.exchange import Exchange, Reached
from gateway.queues import PATIENCE, Queues
from gateway.quote import Quote
from gateway.shortage import limited, when
from policies.budgets import (
    Account,
    Balance,
    Loan,
    Mode,
    Plan,
    Spent,
    Store,
    StoreUnavailable,
    account,
    ask_of,
    spent_of,
    window_id,
)
from policies.chunks import Chunks
from policies.errors import UnpricedModel
from policies.limits import Limit, LimitReached, LimitStore, Pass, session_of
from policies.money import MOST
from routing.errors import NoRoute
from routing.table import Weights

if TYPE_CHECKING:
    from gateway.assembly import Assembly
    from gateway.identity import Agent
    from policies.prices import Price

log = logging.getLogger("weighbridge.budgets")

FEWEST: Final = 16
"""Tokens of an answer below which lowering its limit would be no better than a refusal."""

_DAY_NS: Final = 86_400 * 10**9
_MOST_PAYERS: Final = 16_384
_MOST_TARIFFS: Final = 4096
_TARIFFS_HOLD: Final = 60.0
_QUIET: Final = 60.0
_MOST_TOLD: Final = 1000
_MOST_STANDING: Final = 1000
_NEVER: Final = 2**62
_LONGEST_TOOL: Final = 256
"""Characters of an operation in the cost ledger: agents choose those of tools that nothing describes."""


class Lending:
    """A loan while its answer streams by: see `gateway.forward`.

    `mark` is how many tokens may pass before `more` has to be asked; `limit` how many the call was granted at all;
    `passed` how many have passed in the end. `beside` is what the loan pays for besides: attempts that have failed.
    """

    __slots__ = (
        "_chunk",
        "_estimate",
        "_granted",
        "_lender",
        "_most",
        "beside",
        "cut",
        "limit",
        "loan",
        "mark",
        "passed",
    )

    def __init__(self, lender: Lender, loan: Loan, found: Estimate, granted: int, *, grows: bool) -> None:
        """`granted` are the tokens, of all answers together, that the loan pays for; it can be raised if it `grows`."""
        self._lender = lender
        self.loan = loan
        self._estimate = found
        self._granted = granted
        self._chunk = found.chunk * found.answers
        known = found.asked is not None or found.known
        self._most = found.longest * found.answers if known else _NEVER
        self.limit = self._most if grows else granted
        self.mark = granted - self._chunk // 2 if grows and granted < self._most else _NEVER
        self.cut = False
        self.passed = 0
        self.beside = 0

    async def more(self, produced: int) -> bool:
        """Borrows the next piece when half of the last one is used. False where the answer has to end here.

        What was lent is used up before anything less than a whole piece is asked for: more may come back meanwhile.
        """
        piece = self._chunk
        while self._granted < self._most:
            wanted = min(max(produced, self._granted) + piece, self._most)
            if await self._lender.extend(self.loan, self.beside + self._estimate.bound(wanted)):
                self._granted = wanted
                self.mark = wanted - piece // 2 if wanted < self._most else _NEVER
                return True
            piece //= 2
            if produced < self._granted or piece < FEWEST:
                break
        self.mark = self._granted
        self.cut = produced >= self._granted
        return not self.cut


class _Payers:
    """Who pays for the calls of one agent in one session, what their budgets demand of a loan, and what limits them.

    `session` is the one that limits count such calls in; `counts_tokens` says that one of them is by tokens.
    """

    __slots__ = ("accounts", "counts_tokens", "hard", "limits", "session", "strict", "watched")

    def __init__(self, accounts: tuple[Account, ...], limits: tuple[Limit, ...], session: str) -> None:
        modes = {each.budget.mode for each in accounts}
        self.accounts = accounts
        self.strict = Mode.STRICT in modes
        self.hard = self.strict or Mode.ADAPTIVE in modes
        self.watched = Mode.SOFT in modes or Mode.SHADOW in modes
        self.limits = limits
        self.session = session
        self.counts_tokens = any(each.what == "tokens_per_minute" for each in limits)


class Lender:
    """Lends to all calls of this process."""

    def __init__(self, store: Store, limits: LimitStore, patience: float = PATIENCE) -> None:
        """`patience` is in seconds."""
        self.store = store
        self._limits = limits
        self._chunks = Chunks()
        self.queues = Queues(store, patience)
        self._plan: Plan | None = None
        self._payers: dict[tuple[str, str | None, str | None], _Payers] = {}
        self._tariffs: dict[tuple[Weights, str, str], Tariff] = {}
        self._assembly: Assembly | None = None
        """The one that both are of."""
        self._day_number = -1
        self._day = ""
        self._tariffs_until = 0.0
        self._told: dict[str, float] = {}
        self.cut_streams = 0
        self.overruns = 0
        self.unlimited = 0
        """Calls let in because the limits' counts could not be had."""
        self.shadow_refusals: dict[tuple[str, str], int] = {}
        """What shadow budgets would have refused, by node and window."""

    def under(self, plan: Plan) -> None:
        """From now on these budgets pay, whatever was configured when a call began."""
        self._plan = plan
        self._payers.clear()

    async def quote(self, x: Exchange) -> Quote:
        """For the policy. Raises BudgetsUnavailable."""
        quote = Quote(self, x)
        if self.store.shared:
            await quote.look()
        return quote

    def payers(self, x: Exchange) -> _Payers:
        """Those that would pay for this call if it were admitted now, from the tenant's down to the agent's own."""
        agent = x.agent
        assert agent is not None, "a call is identified before anybody pays for it"
        now_ns = self.store.now_ns()
        if (
            now_ns // _DAY_NS != self._day_number
            or x.assembly is not self._assembly
            or len(self._payers) > _MOST_PAYERS
        ):
            self._begin_anew(x.assembly, now_ns)
        key = (agent.name, agent.team, x.session)
        found = self._payers.get(key)
        if found is None:
            budgets = (self._plan or x.assembly.plan).of(agent.tenant, agent.team, agent.name)
            found = self._payers[key] = _Payers(
                tuple(account(each, now_ns, x.session) for each in budgets),
                x.assembly.limit_plan.of(agent.tenant, agent.team, agent.name),
                session_of(x.session, agent.name, self._day),
            )
        return found

    def _begin_anew(self, assembly: Assembly, now_ns: int) -> None:
        if assembly is not self._assembly:
            self._tariffs.clear()
        self._payers.clear()
        self._assembly = assembly
        self._day_number = now_ns // _DAY_NS
        self._day = window_id("day", now_ns, None)

    def standing(self, plan: Plan) -> Sequence[Balance]:
        """How the budgets for days and months stand, of the first thousand, as far as it is known without asking."""
        now_ns = self.store.now_ns()
        lasting = [account(each, now_ns, None) for each in plan.budgets[:_MOST_STANDING] if each.window != "session"]
        return self.store.known(lasting) or ()

    def estimated(self, x: Exchange) -> Estimate | None:
        """What the call can cost as it stands; None where no route serves it."""
        call, agent = x.call, x.agent
        assert call is not None, "a call is read before anything is said of its cost"
        assert agent is not None, "a call is identified before anything is said of its cost"
        try:
            tariff = self._tariff(x, call)
        except NoRoute:
            return None
        return Estimate(x.adapter.size(call), tariff, self._chunks.usual(agent.name, call.target))

    def _tariff(self, x: Exchange, call: AgentCall) -> Tariff:
        """Raises NoRoute."""
        if call.kind == "tool":
            price = x.assembly.prices.tool(call.target)
            return Tariff.of(() if price is None else (price,))
        route = (x.fulfilled.route if x.fulfilled is not None else None) or x.assembly.table.match(call.target)
        now = time.monotonic()
        if now > self._tariffs_until or len(self._tariffs) > _MOST_TARIFFS:
            self._tariffs.clear()
            self._tariffs_until = now + _TARIFFS_HOLD
        if x.assembly is not self._assembly:
            self._begin_anew(x.assembly, self.store.now_ns())
        x.weights = weights = route.weights
        key = (weights, call.operation, call.target)
        found = self._tariffs.get(key)
        if found is None:
            arms = weights.able(call.protocol, call.operation)
            if call.endpoint.keeps:  # it may refer to what an arm keeps that takes no other calls any more
                arms = [arm for arm in weights.arms if arm.target.serves(call.protocol, call.operation)]
            if not arms:
                raise NoRoute(f"Route {route.name!r} has no target that serves {call.operation}.")
            found = self._tariffs[key] = Tariff(arms, call, x.assembly.prices)
        return found

    async def reserve(self, x: Exchange) -> int | None:
        """Lets the call in and lends it money.

        Gives the tokens that each answer has to be limited to, where that is less than the call asks for; None where it
        can run as it is. Raises RateLimited, BudgetExhausted, BudgetContended, BudgetsUnavailable, UnpricedModel.
        """
        call, agent = x.call, x.agent
        assert call is not None, "a call is read before money is lent for it"
        assert agent is not None, "a call is identified before money is lent to it"
        if call.endpoint.answered_here:
            return None
        payers = self.payers(x)
        x.day = self._day
        x.payers = accounts = payers.accounts
        found = None
        if (accounts or payers.counts_tokens) and not call.endpoint.free:
            found = self.estimated(x)
        if payers.limits:
            await self._enter(x, payers, found)
        if found is None or not accounts:  # it costs nothing, or no route serves it: that is said where one is chosen
            return None
        if not payers.hard:
            self._look_at_soft(x, accounts, found)
            return None
        if found.unpriced:
            raise UnpricedModel(f"The price of {call.target[:200]!r} is not known, and a budget has to pay for it.")
        grows = bool(call.stream) and not (payers.strict or found.outlasts)
        grows = grows and (found.longest > found.chunk or not found.known)
        # People have approved these very bytes; and some calls are not answered in tokens.
        lowers = x.approval is None and found.longest > 0 and bool(x.adapter.token_caps(call))
        first = found.chunk if grows else found.longest
        want = found.bound(first * found.answers)
        least = found.bound(min(FEWEST, first) * found.answers) if grows or lowers else want
        x.loan = loan = await self.queues.lend(ask_of((x.id, agent.tenant, accounts, want, least)))
        if payers.watched:
            self._look_at_soft(x, accounts, found)
        granted = first if loan.amount >= want else max(1, min(first, found.affords(loan.amount)))
        if call.stream:
            x.lending = Lending(self, loan, found, granted * found.answers, grows=grows)
        if grows or not lowers or (found.known and granted >= found.longest):
            return None
        return granted

    async def extend(self, loan: Loan, amount: int) -> bool:
        """Raises a loan to `amount`; False where that does not fit, be it into limits that were lowered meanwhile."""
        lower = [now for each in loan.accounts if (now := self._lowered(each)) is not None]
        more = amount - loan.amount
        if lower and any(each.posted + each.pending + more > each.limit for each in self.store.known(lower) or ()):
            return False
        try:
            return await self.store.extend(loan, amount)
        except StoreUnavailable:
            return False

    async def again(self, x: Exchange) -> bool:
        """Bills an attempt that has failed, and borrows as much for another one; False where nobody lends that.

        Then nothing has changed, and the attempt is billed when the call is settled. What is billed here is not billed
        again there, whether or not another attempt follows.
        """
        if x.reached is not Reached.NO and x.call is not None and not x.call.endpoint.free:
            reported = dataclasses.replace(x.usage) if x.usage is not None else None
            bill, paid = self._spent(x), False
            try:
                paid = x.loan is None or not bill.cost or await self.extend(x.loan, x.loan.amount + bill.cost)
            finally:
                if not paid:  # what is only likely must not be taken for what was seen when the call is settled
                    x.usage = reported
            if not paid:
                return False
            x.bills.append(bill)
            x.attempts[-1].cost = bill.cost
            if x.lending is not None:
                x.lending.beside += bill.cost
            x.reached = Reached.NO
        x.cost = None
        return True

    def _lowered(self, paying: Account) -> Account | None:
        """A hard account as it is configured now, where it has a lower limit than when the loan was made."""
        budget = paying.budget
        now = self._plan.find(budget.node, budget.window) if self._plan is not None else None
        if now is None or not (now.mode.hard and budget.mode.hard) or now.limit >= budget.limit:
            return None
        return Account(now, paying.window_id, paying.key)

    def settle(self, x: Exchange) -> None:
        """Posts what the call has cost, once, and gives everything else back. Never raises, never waits."""
        loan, admitted = x.loan, x.admitted
        try:
            if x.reached is not Reached.NO and x.call is not None and _counts(x.call):
                self._post(x, loan)
            elif x.bills:
                self._pay(x, loan, x.bills)
            elif loan is not None:
                self.store.void(loan)
            if loan is not None and self.queues.waited_for:
                self.queues.returned(loan.accounts)
        finally:
            if admitted is not None:
                usage = x.usage
                tokens = sum(each.input_tokens + each.output_tokens for each in x.bills) if x.bills else 0
                if x.reached is not Reached.NO:
                    tokens += usage.input_tokens + usage.output_tokens if usage is not None else admitted.tokens
                self._limits.leave(admitted, tokens)

    def _post(self, x: Exchange, loan: Loan | None) -> None:
        """For a call that may have cost something."""
        try:
            spent = self._spent(x)
        except Exception:
            log.exception("call %s: what it has cost cannot be worked out, so all that was lent counts", x.id)
            if loan is not None:
                x.cost = loan.amount
                if x.attempts:
                    x.attempts[-1].cost = loan.amount - sum(each.cost for each in x.bills)
                self.store.settle(loan, loan.amount, x.bills)
            elif x.bills:
                self._pay(x, None, x.bills)
        else:
            if x.attempts:
                x.attempts[-1].cost = spent.cost
            self._pay(x, loan, (*x.bills, spent))
        if x.lending is not None and x.lending.cut:
            self.cut_streams += 1

    def _pay(self, x: Exchange, loan: Loan | None, spent: Sequence[Spent]) -> None:
        """For all attempts together."""
        x.cost = cost = spent[0].cost if len(spent) == 1 else min(sum(each.cost for each in spent), MOST)
        if loan is None:
            free = x.call is not None and x.call.endpoint.free
            self.store.post(x.id, spent[0].tenant, () if free else x.payers, cost, spent)
            return
        if cost > loan.amount:
            self.overruns += 1
            x.overrun = cost - loan.amount
        self.store.settle(loan, cost, spent)

    def _spent(self, x: Exchange) -> Spent:
        """What the call has cost, and whom; notes it on the exchange, too."""
        call, agent, arm = x.call, x.agent, x.arm
        assert call is not None, "only calls that were read reach a target"
        assert agent is not None, "only calls that were identified reach a target"
        if arm is None:
            return self._spent_on_tool(x, call, agent)
        price = x.assembly.prices.of(arm.target.name, arm.model or call.target)
        usage = x.usage
        if usage is None and x.reached is Reached.MAYBE:
            usage = x.usage = Usage(estimated=True)
        cost = 0
        if price is None:
            x.unpriced = True
        elif usage is not None:
            cost = min(self._estimated_cost(x, price, usage) if usage.estimated else price.cost(usage), MOST)
        x.cost = cost
        dimensions = (
            x.day,
            agent.tenant,
            agent.team or "",
            agent.name,
            x.session or "",
            call.target,
            arm.target.name,
            "",
        )
        first = 0 if x.bills else 1
        if usage is None:
            return Spent(*dimensions, calls=first)
        if not usage.estimated:
            unseen = max(usage.output_tokens - x.lending.passed, 0) if x.lending is not None and x.whole else 0
            self._chunks.saw(agent.name, call.target, usage.output_tokens, unseen)
        unpriced = int(price is None)
        metrics = (first, usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, cost, 0, unpriced)
        return spent_of(dimensions + metrics)

    def _spent_on_tool(self, x: Exchange, call: AgentCall, agent: Agent) -> Spent:
        price = x.assembly.prices.tool(call.target)
        x.cost = cost = min(price.cost(Usage()), MOST) if price is not None else 0
        first = 0 if x.bills else 1
        tool = call.operation[:_LONGEST_TOOL]
        dimensions = (x.day, agent.tenant, agent.team or "", agent.name, x.session or "", "", call.target, tool)
        return spent_of((*dimensions, first, 0, 0, 0, cost, cost, 0))

    def _estimated_cost(self, x: Exchange, price: Price, usage: Usage) -> int:
        """What a call has cost of which the target has not said what it has used; notes in `usage` what is likely.

        Of a whole answer, and of a stream as far as it came, the output was seen. Where it was not, the target may have
        done anything that the loan was made for: that much is charged where a budget is strict, else what is usual.
        """
        call, agent, arm, loan = x.call, x.agent, x.arm, x.loan
        assert call is not None, "only calls that were read reach a target"
        assert agent is not None, "only calls that were identified reach a target"
        assert arm is not None, "only calls for which a target was chosen reach one"
        size = x.adapter.size(call)
        usage.tier = usage.tier or size.tier
        if not usage.input_tokens:
            usage.input_tokens = _probable_input(x) + size.unwritten
            model = arm.model or call.target
            if (size.open_ended or looks_up(model)) and not x.whole:
                usage.input_tokens = max(size.input_tokens, context(x.assembly.prices, arm.target.name, model))
        if not x.whole and not usage.web_searches:
            usage.web_searches = size.searches
        seen = price.cost(usage)
        lent = max(loan.amount - sum(each.cost for each in x.bills), 0) if loan is not None else 0
        if size.outlasts:
            return max(seen, lent)
        if x.whole or (call.stream and usage.output_tokens):
            return seen
        if x.adapter.token_caps(call):
            usage.output_tokens = max(usage.output_tokens, self._chunks.usual(agent.name, call.target))
        if loan is None:
            return price.cost(usage)
        strict = any(each.budget.mode is Mode.STRICT for each in loan.accounts)
        return max(seen, lent if strict else min(price.cost(usage), lent))

    async def _enter(self, x: Exchange, payers: _Payers, found: Estimate | None) -> None:
        call, agent = x.call, x.agent
        assert call is not None, "a call is read before it is let in"
        assert agent is not None, "a call is identified before it is let in"
        limits, session, tokens = payers.limits, payers.session, 0
        if payers.counts_tokens:
            tokens = _probable_input(x) + (found.chunk if found is not None else 0)
        try:
            x.admitted = await self._limits.enter(x.id, agent.tenant, limits, session, tokens)
            x.standings = x.admitted.standings
        except LimitReached as reached:
            x.standings = reached.standings
            raise limited(reached) from None
        except StoreUnavailable:
            self.unlimited += 1
            self._tell("limits", "calls are let in without their limits: the counts cannot be had")
            self._limits.leave(Pass(x.id, agent.tenant, limits, session, tokens), 0)
        except BaseException:
            self._limits.leave(Pass(x.id, agent.tenant, limits, session, tokens), 0)
            raise

    def _look_at_soft(self, x: Exchange, accounts: tuple[Account, ...], found: Estimate) -> None:
        """Soft budgets warn, shadow budgets count what they would have refused."""
        balances = self.store.known(accounts)
        if balances is None:
            if self.store.failure is not None:
                soft = [each.budget for each in accounts if each.budget.mode is Mode.SOFT]
                x.warnings += [f"{budget.node} {budget.window} unknown" for budget in soft]
            return
        lent = x.loan.amount if x.loan is not None else 0
        need = 0 if found.unpriced else found.bound(min(FEWEST, found.longest) * found.answers)
        for balance in balances:
            budget = balance.account.budget
            if budget.mode is Mode.SHADOW:
                if balance.posted + balance.pending - lent + need > balance.limit:
                    key = (budget.node, budget.window)
                    self.shadow_refusals[key] = self.shadow_refusals.get(key, 0) + 1
            elif budget.mode is Mode.SOFT and balance.state != "ok":
                x.warnings.append(f"{budget.node} {budget.window} {balance.state}")
                if balance.state == "exhausted":
                    self._tell(
                        balance.account.key,
                        f"the soft budget of {budget.node} for {when(balance.account)} is used up, and calls go on",
                    )

    def _tell(self, key: str, text: str) -> None:
        """To the operator's log, each at most once a minute."""
        now = time.monotonic()
        if now - self._told.get(key, -_QUIET) < _QUIET:
            return
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[key] = now
        log.warning("%s", text)


def _counts(call: AgentCall) -> bool:
    """Whether a call that has reached its target is in the cost ledger: one of a tool also where it is free."""
    return not call.endpoint.free or (call.kind == "tool" and not call.endpoint.passes)


def _probable_input(x: Exchange) -> int:
    """Tokens that a call's body probably is: for what is counted before, or without, the target's own word."""
    assert x.call is not None, "a call is read before its tokens are counted"
    return len(x.call.body) // 4 + 1
