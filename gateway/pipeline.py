"""The journey of one call, from top to bottom. Every protocol takes this road; read `carry` first.

    identify -> read -> decide -> hold (decide again) -> reserve -> claim -> record the intent
             -> choose -> forward (or answer what needs no target) -> settle -> record the outcome

Nothing is reserved while a person thinks. A reservation can be given back and a used-up approval cannot, so money comes
before the claim. An arm is chosen last, so money is lent for the dearest that can get the call. The intent is recorded
before a byte leaves. Settling and recording happen on every way out.
"""

import asyncio
import dataclasses
import functools
import logging
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from adapters import registry
from adapters.base import OVERRIDES, AgentCall, Headers
from adapters.errors import BodyTooLarge, MalformedCall
from adapters.mcp.messages import LISTENS, QUESTIONS, McpCall
from gateway import obligations
from gateway.assembly import Assembly
from gateway.attempts import Attempts, told_of_a_node
from gateway.callids import CallIds
from gateway.claims import Claims, NotUsable
from gateway.decision_log import DecisionLog
from gateway.exchange import Exchange, Reached
from gateway.failures import Failures
from gateway.forward import forward
from gateway.holding import NAMELESS, Holds, held_call, seen_by_policy
from gateway.identity import ACTIVE, Unauthenticated
from gateway.ledger import Ledger
from gateway.lending import Lender
from gateway.lifeline import ClientGone, Lifeline, Stopping
from gateway.mcp import waiting as mcp_waiting
from gateway.mcp.definitions import Definitions
from gateway.mcp.requests import Aside
from gateway.mcp.sessions import Seals
from gateway.mirroring import Mirrors
from gateway.oauth.tokens import ScopeMissing
from gateway.problems import UNEXPECTED, problem_for, refusal_for
from gateway.reply import Reply
from gateway.standings import AgentStopped, Standings, StandingsUnknown
from gateway.telemetry import Telemetry
from gateway.tools.inquiries import Inquiries, put
from gateway.tools.toolbox import TOOLS
from gateway.traffic import Traffic
from gateway.trial import Trial
from gateway.waiting import Answered, MayRun, Patience, asynchronous, patience, wait
from policies.approval_store import Answer, StoreUnavailable
from policies.approvals import Approval, HeldCall, Refused
from policies.binding import Unbindable
from policies.decision import Decision, Effect
from policies.document import Question
from policies.engine import Engine
from policies.errors import (
    ApprovalDenied,
    ApprovalEnded,
    ApprovalPending,
    ApprovalsUnavailable,
    ApprovalUnknown,
    Denied,
    EngineUnavailable,
    Undecided,
)
from policies.obligations import NONE
from routing.errors import NoRoute
from routing.health import Fleet
from routing.table import POINTS, Route, sticky_key

log = logging.getLogger("weighbridge.pipeline")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OWN_HEADERS = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"host",
        b"origin",
        b"x-weighbridge-session",
        b"traceparent",
        b"content-length",
        b"content-encoding",
        b"anthropic-version",
    }
)
_KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})
_NOTHING: frozenset[bytes] = frozenset()
_NOWHERE = ("", 0)
_SESSION = re.compile(rb"[ -~]{1,256}")


class Pipeline:
    """Carries calls. `assembly` and `engine` are replaced whole by a reload; a call sees one of each."""

    def __init__(
        self,
        assembly: Assembly,
        engine: Engine | None,
        *,
        holds: Holds,
        standings: Standings,
        lender: Lender,
        ledger: Ledger,
        telemetry: Telemetry,
        events: DecisionLog,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.lender = lender
        self.standings = standings
        self.attempts = Attempts(Fleet(told_of_a_node), lender)
        self.assembly = assembly
        self.engine = engine
        self.trial: Trial | None = None
        self.traffic: Traffic | None = None
        self.mirrors: Mirrors | None = None
        self.holds = holds
        self.claims = Claims(holds)
        self._ledger = ledger
        self._events = events
        self._telemetry = telemetry
        self._chance = chance
        self._ids = CallIds()
        self.seals = Seals(secrets.token_bytes(32))
        self.definitions = Definitions()
        self.inquiries = Inquiries(lambda: self.engine, events)
        self._failures = Failures()

    @property
    def assembly(self) -> Assembly:
        return self._assembly

    @assembly.setter
    def assembly(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self.attempts.under(assembly)
        self.lender.under(assembly.plan)
        self.standings.under(assembly.directory)

    async def carry(self, x: Exchange, receive: Receive, reply: Reply, lifeline: Lifeline) -> None:
        """The product, in the order that its promises need."""
        await self.identify(x)
        call = await self.read(x, receive)
        if not call.endpoint.passes:
            await self.admit(x)
            if not await self.hold(x, reply):
                return
            await self.reserve(x)
            if not await self.claim(x, reply, lifeline):
                return
            await self._ledger.intend(x)
        await self.send(x, reply, lifeline)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One HTTP request, as ASGI hands it over."""
        x = self._exchange(scope)
        reply, lifeline = Reply(x, send), Lifeline(scope)
        await self._to_its_end(x, self.carry(x, receive, reply, lifeline), reply, lifeline)

    async def make(self, approval: Approval) -> None:
        """A call that its agent has left with the gateway, now that people have approved it. What comes of it is kept
        with the approval; what stands in its way for now is recorded, and leaves the approval as it is. Never raises.
        """
        x = self._of_held(approval.call)
        reply, lifeline = Reply(x, _to_nobody), Lifeline({})
        await self._to_its_end(x, self._carry_held(x, approval, reply, lifeline), reply, lifeline)

    def ready(self, approval: Approval) -> bool:
        """Whether `make` can be of use now."""
        agent = self.assembly.directory.find(approval.call.tenant, approval.call.agent)
        there = self.standings.heard and agent is not None and agent.state == ACTIVE
        return there and not self.claims.taken(approval.id)

    async def _carry_held(self, x: Exchange, approval: Approval, reply: Reply, lifeline: Lifeline) -> None:
        """`carry` of a call that is held: as of what follows the hold."""
        held = approval.call
        x.agent = x.assembly.directory.named(held.tenant, held.agent)
        if not self.standings.heard:
            raise StandingsUnknown("Which agents are stopped is not known yet, so no call is made.")
        x.call = self._stored(x, held)
        self.standings.check(x.agent)
        x.patience = Patience(x.began, None)
        if not await self.wait_for_people(x, reply, approval):
            return
        await self.as_approved(x)
        await self.confirm(x)
        await self.reserve(x)
        if await self.claim(x, reply, lifeline):
            await self._ledger.intend(x)
            await self.send(x, reply, lifeline)

    async def _to_its_end(
        self, x: Exchange, carried: Coroutine[Any, Any, None], reply: Reply, lifeline: Lifeline
    ) -> None:
        self._telemetry.in_flight += 1
        self.standings.calls[lifeline] = x
        try:
            await carried
        except asyncio.CancelledError:
            reason = lifeline.caught()
            lifeline.release()
            await self.refuse(x, reason, reply, lifeline)
        except Exception as error:
            lifeline.release()
            await self.refuse(x, error, reply, lifeline)
        finally:
            lifeline.release()
            del self.standings.calls[lifeline]
            if lifeline.left and x.code == "ok":
                x.code = "client_gone"
            await self._over(x, reply)

    def let_go(self) -> None:
        """The gateway is being stopped: streams that have no end of their own end now, and their clients come back."""
        for lifeline, x in list(self.standings.calls.items()):
            if isinstance(x.call, McpCall) and (x.method == "GET" or x.call.method == LISTENS):
                lifeline.cut(Stopping("The gateway is being stopped."))

    async def _over(self, x: Exchange, reply: Reply) -> None:
        """What is owed at the end of every call, whatever has become of it."""
        self.settle(x)
        if x.approval is not None:
            self.claims.conclude(x, reply.answer)
        if x.grant is not None and x.reached is Reached.NO and not x.bills:
            self.holds.give_back(x.grant, x.id)
        if self.mirrors is not None:
            self.mirrors.consider(x)
        if self.trial is not None:
            await self.trial.consider(x)
        # A question knows its call by its money, and the call its questions: together they would stay for long.
        for asked in x.asked:
            asked.question.money = None

    async def identify(self, x: Exchange) -> None:
        """A key or a token becomes an agent. Raises Unauthenticated, ScopeMissing, StandingsUnknown; WrongHost,
        WrongOrigin.

        A token has to be valid when its call arrives: people may take longer to decide on it.
        """
        own = x.own
        if x.adapter is registry.MCP:
            x.assembly.doorway.check(own.get(b"host"), own.get(b"origin"), x.local)
        if x.doubled & _KEY_HEADERS:
            raise Unauthenticated("The call shows two keys. Send one, as `Authorization: Bearer KEY`.")
        x.agent = await x.assembly.login.identify(
            own.get(b"authorization"), own.get(b"x-api-key"), x.path, x.arrived_ns / 1e9
        )
        if not self.standings.heard:
            raise StandingsUnknown("Which agents are stopped is not known yet, so no call is let in.")

    async def read(self, x: Exchange, receive: Receive) -> AgentCall:
        """Bytes become a call. Raises MalformedCall, BodyTooLarge, UnknownEndpoint, MethodNotAllowed, ClientGone; and
        AgentPaused, AgentQuarantined where nobody will be asked."""
        endpoint, argument = registry.endpoint(x.adapter, x.method, x.path)
        own = x.own
        if x.doubled:
            raise MalformedCall("A header that this gateway reads is given twice. Send each once.")
        if own.get(b"content-encoding", b"identity") != b"identity":
            raise MalformedCall("The body is encoded; send it as plain JSON.")
        session = own.get(b"x-weighbridge-session")
        if session is not None:
            if not _SESSION.fullmatch(session):
                raise MalformedCall("`x-weighbridge-session` must be 1 to 256 printable ASCII characters.")
            x.session = session.decode("ascii")
        limit = x.assembly.settings.listen.max_body
        if _length(own.get(b"content-length", b"0")) > limit:
            raise BodyTooLarge(limit)
        body = await _body(receive, limit)
        if x.adapter.protocol in TOOLS:
            call: AgentCall = await x.assembly.toolbox.read(x, body, argument, self)
        else:
            call = x.adapter.read(endpoint, body, argument)
        x.call = call
        x.read_at = time.monotonic()
        if call.endpoint.passes:
            assert x.agent is not None, "a call is identified before it is read"
            self.standings.check(x.agent)
        return call

    async def admit(self, x: Exchange) -> None:
        """The policy's answer, which knows how the agent stands; then a person's, who may have stopped it whatever the
        policy says. Raises as `decide` does, AgentPaused, AgentQuarantined.

        A call that is further than this when its agent is stopped is cut.
        """
        assert x.agent is not None, "a call is identified before it is decided"
        try:
            await self.decide(x)
        except Exception:
            self.standings.check(x.agent)  # what else is against the call is nothing that its agent could act on
            raise
        self.standings.check(x.agent)

    async def decide(self, x: Exchange) -> None:
        """The policy's answer on what will be sent. Raises Denied, Undecided, InputRefused, EngineUnavailable.

        Where the answer demands that the call be changed, it is changed and the policy asked again, until it is content
        with the call as it stands.
        """
        try:
            for _ in range(obligations.MOST_ROUNDS):
                decision = await self.ask(x)
                if decision.effect is Effect.DENY:
                    raise Denied(decision)
                if decision.obligations is NONE and x.fulfilled is None:
                    return
                call = x.call
                try:
                    x.call, x.fulfilled = await obligations.fulfil(x, decision.obligations)
                except obligations.Unfulfilled as error:
                    x.decision = unmet(decision, str(error))
                    raise Denied(x.decision) from None
                if x.call is call:
                    return
            x.decision = unmet(decision, f"it still wants the call changed after {obligations.MOST_ROUNDS} changes")
            raise Denied(x.decision)
        finally:
            # A swap meanwhile must not take its say away from the policy that was asked.
            if any(asked.engine is not None and asked.engine.masks for asked in x.asked):
                await self._events.mask(x)

    async def ask(self, x: Exchange) -> Decision:
        """One question and its answer. Raises Undecided, InputRefused, EngineUnavailable, BudgetsUnavailable."""
        agent, call, engine = x.agent, x.call, self.engine
        assert agent is not None, "a call is identified before it is decided"
        assert call is not None, "a call is read before it is decided"
        if engine is None:
            raise EngineUnavailable("No policy is loaded, so every call is refused.")
        money = None if call.endpoint.free else await self.lender.quote(x)
        if money is not None and self.trial is not None:
            money.budgets()  # as they stand now: the policy on trial is asked when the call is paid for
        question = Question(
            agent.fragment,
            call.kind,
            call.protocol,
            call.target,
            call.operation,
            call.stream,
            x.session,
            call.body,
            call.arguments,
            x.arrived_ns if x.consent is None else time.time_ns(),
            money,
            approval=seen_by_policy(x.consent) if x.consent is not None else None,
        )
        x.decision = None
        x.decision = decision = await put(x, question, engine)
        return decision

    async def hold(self, x: Exchange, reply: Reply) -> bool:
        """People's answer, where the policy wants one, then the policy's again; False where an identical call has run
        meanwhile, whose answer is this one's.

        Raises ApprovalPending, ApprovalDenied, ApprovalExpired, ApprovalUnknown, AnswerNotKept,
        ApprovalsUnavailable, Denied.
        """
        assert x.decision is not None, "a call is decided before it is held"
        if x.decision.effect is not Effect.NEEDS_APPROVAL:
            if isinstance(x.call, McpCall) and x.call.asked is not None:
                await self._asked_for(x)
            return True
        try:
            x.grant = await self.holds.allow(x)
            x.patience = await self.patience(x)
            may_run = x.grant is not None or await self.wait_for_people(x, reply)
        except StoreUnavailable as error:
            raise ApprovalsUnavailable("Nobody can be asked for the approval of this call now.") from error
        except Unbindable as error:
            x.decision = _denied(x.decision, str(error))
            raise Denied(x.decision) from None
        if not may_run:
            return False
        await self.identify_again(x)
        if x.approval is not None:
            await self.as_approved(x)
        await self.confirm(x)
        return True

    async def _asked_for(self, x: Exchange) -> None:
        """What its client was asked for when it was held was for this call. Raises ProtocolBreach, Denied."""
        assert x.decision is not None, "a call is decided before it is held"
        try:
            await mcp_waiting.check_asked(x, self.holds)
        except Unbindable as error:
            x.decision = _denied(x.decision, str(error))
            raise Denied(x.decision) from None

    async def as_approved(self, x: Exchange) -> None:
        """The call is what people have seen, and so is its tool. Raises ApprovalDenied, MalformedCall, and where its
        tool may not be used any more."""
        assert x.approval is not None, "what people have seen is kept in an approval"
        held = x.approval.call
        x.call = self._stored(x, held)
        if isinstance(x.call, McpCall) and await x.assembly.toolbox.definition(x, self) != held.definition:
            why = "the definition of its tool has changed since people were asked"
            await self.holds.revoke(x.approval, why)
            raise ApprovalDenied(f"The approval of this call was taken back ({why}).", x.approval.id)

    async def patience(self, x: Exchange) -> Patience:
        """How long the call may wait, and how. Raises ProtocolBreach, Unbindable."""
        assert x.call is not None, "a call is read before it is held"
        if isinstance(x.call, McpCall) and x.call.method not in QUESTIONS:
            return await mcp_waiting.patience(x, self.holds)
        return patience(x, self.holds)

    async def wait_for_people(self, x: Exchange, reply: Reply, approval: Approval | None = None) -> bool:
        """Whether the call may run, by an approval that it has taken; False where it was answered as an identical one.

        `approval` is one that it waits for already. Raises as `gateway.waiting.wait` does.
        """
        assert x.patience is not None, "how long a call may wait is known before it does"
        match await wait(x, self.holds, self.claims, reply, x.patience, approval):
            case MayRun(taken):
                x.approval = taken
                return True
            case Answered(answer):
                await self.repeat(x, answer, reply)
                return False

    async def identify_again(self, x: Exchange) -> None:
        """It may have waited for long, and its agent may be known no more. Raises Unauthenticated, ScopeMissing."""
        if x.assembly is self.assembly:
            return
        agent, x.assembly = x.agent, self.assembly
        await self.identify(x)
        assert agent is not None, "a call is identified before it is held"
        if x.agent is None or (x.agent.tenant, x.agent.name) != (agent.tenant, agent.name):
            x.agent = agent
            raise Unauthenticated("The key of this call is another agent's by now.")

    async def confirm(self, x: Exchange) -> None:
        """The policy's word on a call that people allow; its no takes their approval back. Raises as `decide` does."""
        try:
            await self._confirm(x)
        except Denied as error:
            if x.approval is not None:
                await self.holds.revoke(x.approval, str(error))
            raise

    async def _confirm(self, x: Exchange) -> None:
        allowed, consent = x.call, x.consent
        assert consent is not None, "only what people allow is confirmed"
        await self.decide(x)
        assert x.decision is not None, "a call that was decided has a decision"
        if x.call is not allowed:
            x.decision = _denied(
                x.decision, "People have approved this call, and the policy, asked again, wants another one sent."
            )
            raise Denied(x.decision)
        needs = x.decision.required_approvals
        if not self._allows(x, x.decision):
            wanted = " and ".join(needs or NAMELESS)
            x.decision = _denied(
                x.decision,
                f"People have approved this call, and the policy, asked again, wants the approval of {wanted}, which it"
                " does not have. To ask them again would end in the same way: tell the operator.",
            )
            log.warning("call %s: approved, and the policy asked again wants the approval of %s", x.id, wanted)
            raise Denied(x.decision)

    def _allows(self, x: Exchange, decision: Decision) -> bool:
        """Whether nobody is needed whose word the call does not have."""
        if decision.effect is Effect.ALLOW:
            return True
        return x.consent is not None and self.holds.approves(x.consent, decision.required_approvals or NAMELESS)

    def _stored(self, x: Exchange, held: HeldCall) -> AgentCall:
        """The call that people saw, out of the bytes that they saw; those that have come now are put aside."""
        if held.kind == "tool":
            return x.assembly.toolbox.stored(x, held)
        endpoint, argument = registry.endpoint(x.adapter, held.method, held.path)
        x.query, x.headers = held.query, list(held.headers)
        return x.adapter.read(endpoint, held.body, argument)

    async def repeat(self, x: Exchange, answer: Answer, reply: Reply) -> None:
        """Answers a call as the identical one was answered that ran."""
        x.repeated = True
        if isinstance(x.call, McpCall):
            answer = mcp_waiting.repeated(x.call, answer, x.headers, x.held or "")
        await reply.whole(answer.status, list(answer.headers), answer.body)

    async def within(
        self,
        x: Exchange,
        call: AgentCall,
        carry: Callable[[AgentCall], Awaitable[None]],
        alive: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """A call that begins within another one, by the same agent. See `gateway.tools.desk.Desk.within`."""
        inner = self._inner(x, call)
        reply, lifeline = Aside(inner, alive), Lifeline({})
        self._telemetry.in_flight += 1
        try:
            await self.admit(inner)
            ours = await self.hold(inner, reply)
            if ours:
                await self.reserve(inner)
                ours = await self.claim(inner, reply, lifeline)
            if not ours:
                raise ApprovalUnknown("An identical one was approved, and has been asked already.", inner.held or "")
            await self._ledger.intend(inner)
            assert inner.call is not None, "a call that was decided is one"
            inner.sent_at, inner.reached = time.monotonic(), Reached.MAYBE
            await carry(inner.call)
            inner.reached, inner.whole, inner.status = Reached.ANSWERED, True, 200
        except asyncio.CancelledError:
            inner.code = "client_gone"
            raise
        except Exception as error:
            inner.code = problem_for(error).code
            inner.detail = str(getattr(error, "recorded", getattr(error, "internal", "")))
            if isinstance(error, Undecided):
                self._failures.tell(inner.id, error)
            raise
        finally:
            await self._over(inner, reply)

    def _inner(self, x: Exchange, call: AgentCall) -> Exchange:
        now = time.time_ns()
        inner = Exchange(
            self._ids.next(now), now, time.monotonic(), x.method, x.path, x.query, x.headers, x.own, _NOTHING,
            registry.MCP.answering(call) if isinstance(call, McpCall) else x.adapter, x.assembly, x.local, x.id,
        )  # fmt: skip
        inner.agent, inner.session, inner.call, inner.read_at = x.agent, x.session, call, inner.began
        return inner

    async def reserve(self, x: Exchange) -> None:
        """The money, before it is spent; a call that can be paid for only in part is lowered.

        Where that changes what the call says itself, the policy is asked again.

        Raises RateLimited, BudgetExhausted, BudgetContended, BudgetsUnavailable, UnpricedModel, Denied.
        """
        most = await self.lender.reserve(x)
        if most is None:
            return
        assert x.call is not None, "money is lent for a call"
        try:
            lowered = obligations.capped(x.call, most, x.adapter)
        except obligations.Unfulfilled as error:
            raise MalformedCall(f"Its answer cannot be limited to {most} tokens: {error}.") from None
        if lowered is x.call:
            return
        said = any(x.call.arguments.get(name) is not None for name in (*x.adapter.token_caps(x.call), *OVERRIDES))
        x.call, x.clamped = lowered, most
        if not said:  # the policy has allowed an answer of any length, and a limit of our own makes it no other call
            return
        route = _forced(x)
        await self.decide(x)
        assert x.decision is not None, "a call that was decided has a decision"
        if x.call is not lowered or not self._allows(x, x.decision):
            x.decision = unmet(x.decision, f"a budget pays for {most} tokens of its answer, and it wants another call")
            raise Denied(x.decision)
        if _forced(x) is not route:
            x.decision = unmet(x.decision, "a budget pays for the call on one route, and it wants another one")
            raise Denied(x.decision)

    async def reconsider(self, held: HeldCall) -> tuple[HeldCall, Decision]:
        """What the policy says of a call that a person has changed, and the call as it would be sent.

        Raises Denied, Undecided, InputRefused, EngineUnavailable, MalformedCall, Unauthenticated.
        """
        x = self._of_held(held)
        x.agent = x.assembly.directory.named(held.tenant, held.agent)
        x.call = self._stored(x, held)
        if held.arguments:
            x.call = x.adapter.edited(x.call, held.arguments)
        await self.decide(x)
        assert x.decision is not None, "a call that was decided has a decision"
        call = dataclasses.replace(held_call(x), session=held.session, headers=held.headers, definition=held.definition)
        for asked in x.asked:
            asked.question.money = None
        return call, x.decision

    async def claim(self, x: Exchange, reply: Reply, lifeline: Lifeline) -> bool:
        """One approval, one use; False where an identical call was quicker, whose answer is this one's.

        A call that has used its approval up goes on without its agent. Raises as `hold` does.
        """
        try:
            while x.approval is not None:
                approval = x.approval
                try:
                    await self.claims.claim(approval.id)
                except NotUsable:
                    x.approval = None
                    if not await self.wait_for_people(x, reply, approval):
                        return False
                    await self.identify_again(x)
                    await self.confirm(x)
                else:
                    x.still_claimed = functools.partial(self.claims.still_claimed, approval.id)
                    reply.copied(mcp_waiting.Copy(x.call) if isinstance(x.call, McpCall) else None)
                    lifeline.go_on_alone()
                    return True
        except Refused as error:
            raise ApprovalDenied(str(error), approval.id) from None
        except StoreUnavailable as error:
            raise ApprovalsUnavailable("The approval of this call cannot be used now.") from error
        return True

    async def send(self, x: Exchange, reply: Reply, lifeline: Lifeline) -> None:
        """To whoever has the answer: the gateway itself, the tool that the call names, or an arm of its route."""
        call = x.call
        assert call is not None, "a call is read before it is sent"
        if call.endpoint.answered_here:
            await self.answer(x, reply)
        elif call.kind == "tool":
            await x.assembly.toolbox.forward(x, reply, lifeline, self)
        else:
            self.choose(x)
            await forward(x, reply, lifeline, self.attempts)

    def choose(self, x: Exchange) -> None:
        """Sets the route, and `order`: its arms that may take the call, in the order to ask them. Raises NoRoute.

        The first is the one `meant`: the session's point of the route falls on it, or else a random one. The others are
        for when it is full, out of service or fails; `arm` is whichever has the call. A call that refers to what a
        target keeps is `bound`: no other arm is of use to it than that of its `pin`.
        """
        call, agent = x.call, x.agent
        assert call is not None, "a call is read before it is routed"
        assert agent is not None, "a call is identified before it is routed"
        x.route = route = _forced(x) or x.assembly.table.match(call.target)
        weights = x.weights = route.weights
        if call.endpoint.keeps and (handles := x.adapter.referred(call)):
            x.bound = True
            x.pin = self.attempts.pins.find(agent.tenant, agent.name, handles, time.monotonic())
            if x.pin is not None:
                x.order = (weights.pinned(x.pin.target, call.protocol, call.operation),)
                x.arm = x.meant = x.order[0]
                return
            # Made through another gateway, or before a restart: most likely where the session still goes.
        order = weights.settled(call.protocol, call.operation)
        if order is None:
            key = sticky_key(agent.tenant, agent.name, x.session)
            point = int(self._chance() * POINTS) if key is None else route.point(key)
            order = weights.order(call.protocol, call.operation, point)
        x.order = order
        x.arm = x.meant = order[0]

    async def answer(self, x: Exchange, reply: Reply) -> None:
        """What the gateway itself knows: which models it serves. Raises NoRoute for one that it does not."""
        assert x.call is not None, "a call is read before it is answered"
        body = x.adapter.catalogue(x.assembly.table.names(x.adapter.protocol), x.call.target)
        if body is None:
            raise NoRoute(f"No route serves the model {x.call.target[:200]!r}.")
        await reply.whole(200, [(b"content-type", b"application/json")], body)

    async def refuse(self, x: Exchange, error: Exception, reply: Reply, lifeline: Lifeline) -> None:
        """Tells the agent, in its own protocol, as far as it can still be told."""
        if isinstance(error, ClientGone):
            x.code = "client_gone"
            return
        problem = problem_for(error)
        x.code = problem.code if not isinstance(error, Stopping) else "stopped"
        if x.used_up and problem.retry:  # what people have approved once is not for its agent to repeat
            assert x.approval is not None, "what is used up is an approval"
            error = ApprovalUnknown(str(error), x.approval.id)
        x.detail = x.detail or str(getattr(error, "recorded", getattr(error, "internal", "")))
        if isinstance(error, Undecided):
            self._failures.tell(x.id, error)
        if problem is UNEXPECTED:
            x.detail = f"{type(error).__name__} in the gateway"
            log.error("call %s failed in the gateway", x.id, exc_info=error)
        if reply.started and not (reply.events and isinstance(error, AgentStopped)):
            lifeline.abort()
            return
        reply.forgotten()
        if isinstance(error, ApprovalPending):
            mcp_waiting.pending(x, error, self.holds.settings, self.seals)
        refusal = refusal_for(error, x.id)
        if reply.started or reply.kept_open:
            await reply.refuse(refusal)
            return
        headers, body = x.adapter.refusal(refusal)
        status = x.adapter.status(refusal)
        if isinstance(error, ApprovalEnded):
            headers = [*headers, (b"location", f"/approvals/{error.approval}".encode())]
            if isinstance(error, ApprovalPending) and asynchronous(x.headers):
                headers = [*headers, (b"preference-applied", b"respond-async")]
                status = 202 if status == refusal.status else status
        if refusal.retry_after is not None:
            headers = [*headers, (b"retry-after", b"%d" % refusal.retry_after)]
        if isinstance(error, Unauthenticated | ScopeMissing):
            headers = [*headers, (b"www-authenticate", x.assembly.login.challenge(x.path, error))]
        if refusal.status == 405:
            headers = [*headers, (b"allow", str(getattr(error, "allowed", "")).encode())]
        await reply.whole(status, headers, body)

    def settle(self, x: Exchange) -> None:
        """Pays back and records, once, whatever happened before and whoever has left since."""
        x.ended = time.monotonic()
        try:
            self.lender.settle(x)
        finally:
            self._telemetry.in_flight -= 1
            self._telemetry.observe(x)
            if self.traffic is not None:
                self.traffic.observe(x)
            self._ledger.conclude(x)

    def _of_held(self, held: HeldCall) -> Exchange:
        """One of the gateway's own, for a call that is held."""
        scope = {"headers": [], "method": held.method, "path": held.path, "query_string": held.query}
        x = self._exchange(scope)
        x.adapter = registry.speaking(held.path, any(name == b"anthropic-version" for name, _ in held.headers))
        x.session = held.session
        return x

    def _exchange(self, scope: MutableMapping[str, Any]) -> Exchange:
        headers = scope["headers"]
        lines = [line for line in headers if line[0] in _OWN_HEADERS]
        own = dict(lines)
        now = time.time_ns()
        return Exchange(
            self._ids.next(now),
            now,
            time.monotonic(),
            scope["method"],
            scope["path"],
            scope["query_string"],
            headers,
            own,
            _NOTHING if len(own) == len(lines) else _doubled(lines),
            registry.speaking(scope["path"], b"anthropic-version" in own),
            self.assembly,
            (scope.get("server") or _NOWHERE)[0],
            raw_path=scope.get("raw_path", b""),
        )


async def _to_nobody(_: MutableMapping[str, Any]) -> None:
    """The agent of a call that it has left with the gateway asks what became of it."""


def _doubled(lines: Headers) -> frozenset[bytes]:
    names = [name for name, _ in lines]
    return frozenset(name for name in names if names.count(name) > 1)


def _length(value: bytes) -> int:
    """A content-length, which the server has found to be digits; how many zeros lead them is nobody's business."""
    digits = value.strip().lstrip(b"0")[:19]
    return int(digits) if digits else 0


def _forced(x: Exchange) -> Route | None:
    """The route that the policy demands, if any."""
    return x.fulfilled.route if x.fulfilled is not None else None


def unmet(decision: Decision, why: str) -> Decision:
    """The refusal that an allowance becomes when its obligations cannot be fulfilled."""
    text = f"The policy allows this only with obligations that cannot be fulfilled: {why}."
    return dataclasses.replace(decision, effect=Effect.DENY, explanation=text)


def _denied(decision: Decision, why: str) -> Decision:
    """The gateway's own refusal of what the policy, with people's word, would allow."""
    return dataclasses.replace(decision, effect=Effect.DENY, explanation=why)


async def _body(receive: Receive, limit: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        pieces, size = [body], len(body)
        while message.get("more_body") and size <= limit:
            message = await receive()
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
        body = b"".join(pieces)
    if message["type"] == "http.disconnect":
        raise ClientGone
    if len(body) > limit:
        raise BodyTooLarge(limit)
    return body
