"""Calls that people have to decide on: opened or joined, decided on, watched by the clock, and told of.

What one gateway does to an approval all others see: each change is a compare and set in the store, so whoever comes
second finds it changed and looks again. What a crash leaves behind:

    before an approval is opened      nothing; the identical call opens it
    after it                          the approval; what people are to be told of it waits in the store
    after a vote                      the vote: gateways with waiting calls hear of it, or look within seconds

What becomes of one that is approved, from its use on, is `gateway.claims`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from adapters.base import AgentCall, ToolCall
from config.settings import ApprovalSettings, Settings
from gateway.callids import CallIds
from gateway.exchange import Exchange
from gateway.headers import meaningful
from policies import approvals
from policies.approval_store import ANSWERS_KEPT, HEAR, Answer, ApprovalStore, Message, StoreUnavailable
from policies.approvals import Approval, HeldCall, Move, Refused, State
from policies.binding import binding, hold_key
from policies.decision import Decision
from policies.grants import Grant, allows, still_valid

log = logging.getLogger("weighbridge.holding")

DENIED_FOR: Final = 900.0
"""Seconds for which a no answers identical calls, too."""
REPEATED_WITHIN: Final = 600.0
"""Seconds in which a call that says it is a repetition gets the answer of the first."""
LATELY: Final = 3600.0
"""Seconds for which people are told that an identical call has run."""
LOOK: Final = 1.0
"""Seconds between two looks at what the clock has made of approvals."""

_SECOND: Final = 1_000_000_000
_SETTLED: Final = 1_000_000_000
"""Nanoseconds after which people are asked about other arguments: whoever wants them may have approved them by then."""
_TRIES: Final = 8
_SHORT: Final = 16 * 1024
"""Bytes of a body that is looked through in less than a millisecond."""
NAMELESS: Final = ("admin",)
"""Who decides where the policy names nobody."""


class Waiter:
    """One call that waits for an approval to change."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def woken(self, seconds: float) -> bool:
        """Whether something may have changed since the last time this was True; False when the time is over."""
        done, _ = await asyncio.wait([self._future], timeout=max(seconds, 0.0))
        if not done:
            return False
        self._future = asyncio.get_running_loop().create_future()
        return True


class Holds:
    """The approvals as one gateway sees them. What asks the store raises StoreUnavailable."""

    def __init__(self, store: ApprovalStore, note: Callable[[str, Mapping[str, Any]], None]) -> None:
        """`note` writes to the ledger."""
        self.store = store
        self.moves: Counter[str] = Counter()
        """What was brought about here, by the word for the state it led to."""
        self._note = note
        self._ids = CallIds()
        self.settings = ApprovalSettings()
        self._roles: Mapping[str, Collection[str]] = {}
        self._owners: Mapping[tuple[str, str], tuple[str, ...]] = {}
        self._no_grant: Collection[str] = ()
        self._waiting: dict[str, set[Waiter]] = {}
        self._told_later: set[asyncio.Task[None]] = set()
        """What has come of calls, on its way to the store."""
        self._versions: Mapping[str, int] = {}
        """Those of what is waited for, as of the last look."""
        self._grants: Sequence[Grant] = ()
        """Those of all agents, as they were told last."""
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._fetching: asyncio.Task[None] | None = None
        self._troubled: set[str] = set()
        self._warned: set[str] = set()
        """Roles of which it was told that nobody has them."""
        self.left: set[str] = set()
        """Approvals whose calls were left with this gateway, and may not be made yet."""
        self._stopped = 0.0
        self.stopping = False
        """Whether the gateway is being stopped: then nobody waits here any longer."""

    def under(self, settings: Settings) -> None:
        """From now on these are the people, and these the times that they have."""
        self.settings = settings.approvals
        self._roles = {person.name: person.roles for person in settings.admin.people}
        self._owners = {
            (agent.tenant, agent.name): (agent.name, *([agent.owner] if agent.owner else []))
            for agent in settings.agents
        }
        self._no_grant = frozenset(tool.name for tool in settings.tools if tool.no_grant)

    @property
    def waiting(self) -> int:
        """Calls that wait here."""
        return sum(map(len, self._waiting.values()))

    @property
    def stopping_for(self) -> float:
        """Seconds."""
        return time.monotonic() - self._stopped if self.stopping else 0.0

    async def begin(self) -> None:
        self.store.listen(self._changed)
        self.keep("look at", self.look, LOOK)
        self.keep("hear of", self._poll, HEAR)

    def keep(self, name: str, do: Callable[[], Awaitable[None]], pause: float) -> None:
        """From now on until the end this is done, `pause` seconds after it was done last. `name` says what it does to
        approvals."""
        self._tasks.append(asyncio.create_task(self._keep(name, do, pause), name=f"approvals: {name}"))

    @property
    def ending(self) -> bool:
        """Whether the end has begun: what the store cannot be told now, it is not told any more."""
        return self._ending.is_set()

    async def end(self) -> None:
        """After the last call: what has come of calls is told before it returns, as far as the store can be told."""
        self._ending.set()
        fetching = [self._fetching] if self._fetching is not None else []
        await asyncio.gather(*self._tasks, *self._told_later, *fetching, return_exceptions=True)
        self._tasks.clear()

    # What calls do

    async def admit(self, x: Exchange) -> Approval:
        """The approval that this call waits for: a new one, or that of an identical call. Raises Unbindable."""
        assert x.decision is not None, "a call is decided before it is held"
        call = held_call(x)
        bound = await _bound(call)
        key = hold_key(call, bound)
        now = self.store.now_ns()
        known = await self.store.last(key)
        if known is not None and _answers(known, now, _repeats(x, known)):
            return known
        settings = self.settings
        fresh = Approval(
            id=f"apr_{self._ids.next(now)}",
            version=1,
            state=State.PENDING,
            call=call,
            call_id=x.id,
            binding=bound,
            key=key,
            needs=x.decision.required_approvals or NAMELESS,
            requesters=self._owners.get((call.tenant, call.agent), (call.agent,)),
            risk_level=x.decision.risk_level,
            explanation=x.decision.explanation,
            revision=x.decision.revision,
            created=now,
            decide_by=now + int(settings.decide_within * _SECOND),
            use_within=int(settings.use_within * _SECOND),
            changed=now,
            earlier=_earlier(known, now) if known is not None else "",
        )
        opened = await self.store.open(fresh, [_message(fresh, "approval.requested", now)])
        if opened.id == fresh.id:
            self._tell(opened, "requested", call.agent)
            self._warn_of(opened)
        return opened

    def lacking(self, approval: Approval) -> Sequence[str]:
        """The roles that are missing and that nobody has, nor ever will by `escalate_to`."""
        there_are = {role for roles in self._roles.values() for role in roles}
        if not there_are.isdisjoint(self.settings.escalate_to):
            return ()
        return tuple(dict.fromkeys(role for role in approval.missing if role not in there_are))

    def _warn_of(self, approval: Approval) -> None:
        for role in self.lacking(approval):
            if role not in self._warned:
                self._warned.add(role)
                log.warning(
                    "calls are held for the role %s, which nobody in admin.people has: see %s", role, approval.id
                )

    async def key(self, x: Exchange) -> str:
        """What this call has in common with the identical ones. Raises Unbindable."""
        call = held_call(x)
        return hold_key(call, await _bound(call))

    async def detach(self, approval: Approval) -> Approval:
        """The approval as of now, with it kept that the gateway makes the call once it is approved."""
        for _ in range(_TRIES):
            if approval.detached or approval.state not in approvals.ACTIVE:
                return approval
            after = approvals.detached(approval)
            if await self.store.replace(after):
                self.left.add(after.id)
                return after
            approval = await self.now(approval)
        raise StoreUnavailable("Others are changing this approval at the same time.")

    async def heard(self, approval: Approval) -> None:
        """An identical call gets the answer that the agent had not waited for. Never raises."""
        if approval.unheard:
            with contextlib.suppress(StoreUnavailable):
                await self.store.replace(approvals.heard(approval))

    async def allow(self, x: Exchange) -> Grant | None:
        """The grant that a call uses now, in place of people's word on it; None for none, and where what becomes of an
        identical call is this one's as well. Raises Unbindable."""
        assert x.decision is not None, "a call is decided before it is allowed"
        if not self._grants:
            return None
        call = held_call(x)
        if call.target in self._no_grant:
            return None
        key = hold_key(call, await _bound(call))
        said, now = x.call.arguments if x.call is not None else None, self.store.now_ns()
        needs = x.decision.required_approvals
        good = [
            grant
            for grant in self._grants
            if allows(grant, call, said, needs, now) and still_valid(grant, self._roles_for(grant))
        ]
        known = await self.store.last(key) if good else None
        if known is not None and _comes_first(known, now, _repeats(x, known)):
            return None
        for grant in good:
            if await self.store.use(grant.id, x.id, call.cost or 0):
                self.moves["granted"] += 1
                return grant
        return None

    def give_back(self, grant: Grant, call: str) -> None:
        """The use of a call that was not sent. Never raises, never waits."""

        async def tell() -> None:
            try:
                await self.store.give_back(grant.id, call)
            except StoreUnavailable as error:
                log.error("the use of the grant %s by call %s stays counted: %s", grant.id, call, error)

        self.later(tell(), "the use of a grant")

    @contextlib.contextmanager
    def waits(self, approval: str) -> Iterator[Waiter]:
        """A waiter that is woken whenever the approval may have changed."""
        waiter = Waiter()
        self._waiting.setdefault(approval, set()).add(waiter)
        try:
            yield waiter
        finally:
            others = self._waiting[approval]
            others.discard(waiter)
            if not others:
                del self._waiting[approval]

    async def now(self, approval: Approval) -> Approval:
        """The approval as it is by now, what the clock has made of it included."""
        found = await self.store.get(approval.id)
        return await self.aged(found) if found is not None else approval

    def missed(self, approval: str) -> None:
        """Somebody who waits could not look: the next look that succeeds wakes them."""
        self._versions = {name: version for name, version in self._versions.items() if name != approval}

    def let_go(self) -> None:
        """The gateway is being stopped: whoever waits is told how to come back, and what they wait for stays."""
        self.stopping, self._stopped = True, time.monotonic()
        self._changed(None)

    def look_again(self) -> None:
        """Something else has changed that those who wait go by."""
        self._changed(None)

    def wake(self, approval: str) -> None:
        """Those who wait for it look again."""
        self._changed([approval])

    async def revoke(self, approval: Approval, why: str) -> None:
        """Takes an approval back that the policy, asked again, does not stand by. Never raises."""
        with contextlib.suppress(Refused, StoreUnavailable):
            await self.put(approvals.moved(approval, Move.REVOKE, self.store.now_ns(), why), "revoked")

    # What people do

    async def vote(self, approval: str, person: str, roles: Collection[str], yes: bool, comment: str = "") -> Approval:
        """One person's word. Raises KeyError for an unknown approval, NotEntitled, Refused."""

        def said(found: Approval, now: int) -> Approval:
            after = approvals.voted(self.by_now(found), person, roles, yes, now, comment)
            return replace(after, requesters=found.requesters)

        return await self._changed_by(approval, said, person)

    async def change(
        self,
        approval: str,
        person: str,
        roles: Collection[str],
        arguments: bytes,
        judge: Callable[[HeldCall], Awaitable[tuple[HeldCall, Decision]]],
        comment: str = "",
    ) -> Approval:
        """Approves a call with other arguments: a new approval, on what the policy says of these, with one vote.

        `judge` asks the policy, and gives the call as it may be sent. Raises KeyError, NotEntitled, Refused,
        Unbindable, and what `judge` raises.
        """
        for _ in range(_TRIES):
            found = await self.store.get(approval)
            if found is None:
                raise KeyError(approval)
            found, now = await self.aged(found), self.store.now_ns()
            approvals.voted(self.by_now(found), person, roles, True, now)  # who may not approve it may not change it
            in_body = not found.call.arguments
            wanted = replace(found.call, body=arguments) if in_body else replace(found.call, arguments=arguments)
            call, decision = await judge(wanted)
            if call.stream != found.call.stream:
                raise Refused("Whether the answer is streamed is its agent's to say.")
            bound = await _bound(call)
            if bound == found.binding:
                raise Refused("These are the arguments that it has.")
            fresh = replace(
                found,
                id=f"apr_{self._ids.next(now)}",
                version=1,
                call=call,
                binding=bound,
                needs=decision.required_approvals or found.needs,
                risk_level=decision.risk_level,
                explanation=decision.explanation,
                revision=decision.revision,
                votes=(),
                changed=now,
                instead_of=found.id,
            )
            before = approvals.superseded(found, fresh, now)
            messages = [
                _message(before, "approval.superseded", now, person),
                _message(fresh, "approval.requested", now + _SETTLED),
            ]
            if await self.store.supersede(before, fresh, messages):
                if fresh.detached:
                    self.left.add(fresh.id)
                self._tell(before, "superseded", person)
                self._tell(fresh, "requested", person)
                try:
                    return await self.vote(fresh.id, person, roles, True, comment)
                except approvals.NotEntitled:  # the policy wants others for these arguments
                    return fresh
        raise StoreUnavailable("Others are changing this approval at the same time.")

    async def cancel(self, approval: str, by: str, why: str = "") -> Approval:
        """Takes a call back that is not decided yet, or a yes that is not used yet. Raises KeyError, Refused."""

        def taken_back(found: Approval, now: int) -> Approval:
            move = Move.REVOKE if found.state is State.APPROVED else Move.CANCEL
            return approvals.moved(found, move, now, why or f"{by} has taken it back.")

        return await self._changed_by(approval, taken_back, by)

    async def resolve(self, approval: str, by: str, ran: bool, comment: str) -> Approval:
        """A person has found out whether a call ran of which nobody knew. Raises KeyError, Refused."""
        return await self._changed_by(approval, lambda found, now: approvals.resolved(found, by, ran, now, comment), by)

    async def _changed_by(self, approval: str, change: Callable[[Approval, int], Approval], by: str) -> Approval:
        for _ in range(_TRIES):
            found = await self.store.get(approval)
            if found is None:
                raise KeyError(approval)
            after = change(await self.aged(found), self.store.now_ns())
            if await self.put(after, "vote" if after.state is State.PENDING else after.state.value, by):
                return after
        raise StoreUnavailable("Others are changing this approval at the same time.")

    # What time does

    async def look(self) -> None:
        """Brings about what the clock has made due, whoever opened it."""
        while due := await self.store.due(self.store.now_ns()):
            before = [(each.id, each.version) for each in due]
            for each in due:
                await self.aged(each)
            if [(each.id, each.version) for each in await self.store.due(self.store.now_ns())] == before:
                return

    async def aged(self, found: Approval) -> Approval:
        """What the clock has made of it, brought about if nobody else was quicker."""
        now = self.store.now_ns()
        while (after := approvals.passed(found, now)) is not found:
            if after.told > found.told and self.settings.escalate_to:
                after = replace(after, escalated=self.settings.escalate_to)
            if not await self.put(after, "reminder" if after.state is found.state else after.state.value):
                fresh = await self.store.get(found.id)
                if fresh is None or fresh.version == found.version:
                    return found
                after = fresh
            found = after
        return found

    async def _poll(self) -> None:
        """Looks whether something was missed."""
        waiting = list(self._waiting)
        if waiting:
            versions = await self.store.versions(waiting)
            heard = self._versions  # as of now: somebody may have `missed` something meanwhile
            self._versions = {name: versions.get(name, 0) for name in waiting}
            self._changed([name for name in waiting if heard.get(name) != self._versions[name]])
        self._grants = await self.store.grants()

    # The store

    async def put(self, after: Approval, word: str, by: str = "", answer: Answer | None = None) -> bool:
        """Puts a next version in place, tells of it in the ledger and leaves word for people's systems."""
        message = _message(after, f"approval.{word}", self.store.now_ns(), by)
        if not await self.store.replace(after, [message], answer=answer):
            return False
        self._tell(after, word, by)
        return True

    def _tell(self, approval: Approval, word: str, by: str) -> None:
        self.moves[word] += 1
        call = approval.call
        self._note(
            "approval",
            {
                "approval": approval.id,
                "event": word,
                "state": approval.state.value,
                "version": approval.version,
                "who": by,
                "tenant": call.tenant,
                "agent": call.agent,
                "target": call.target,
                "operation": call.operation,
                "binding": approval.binding,
                "needs": approval.needs,
                "votes": [{"person": each.person, "yes": each.yes, "roles": each.roles} for each in approval.votes],
                "reason": approval.reason,
                "held": approval.call_id,
                "used_by": approval.claimed_by,
            },
        )

    def _changed(self, ids: Collection[str] | None) -> None:
        """Wakes those who wait. In the event loop."""
        if ids is not None and any(each.startswith("grt_") for each in ids):
            self._fetch()
        for each in self._waiting if ids is None else ids:
            for waiter in self._waiting.get(each, ()):
                waiter.wake()

    def _fetch(self) -> None:
        """Hears of grants that were made or taken back, at once."""

        async def fetch() -> None:
            with contextlib.suppress(StoreUnavailable):
                self._grants = await self.store.grants()

        self._fetching = asyncio.get_running_loop().create_task(fetch(), name="grants")

    async def _keep(self, name: str, do: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self._ending.is_set():
            try:
                await do()
                self._troubled.discard(name)
            except StoreUnavailable:
                pass  # the store's own failure tells it
            except Exception:
                if name not in self._troubled:
                    log.exception("to %s approvals has failed in the gateway itself", name)
                self._troubled.add(name)
            await self.pause(pause)

    async def pause(self, seconds: float) -> None:
        """So long, or until the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    def later(self, telling: Coroutine[Any, Any, None], name: str) -> None:
        """In a task of its own: the call it is about has ended, and whoever ends its task ends nothing of this."""
        task = asyncio.get_running_loop().create_task(telling, name=name)
        self._told_later.add(task)
        task.add_done_callback(self._told_later.discard)

    def approves(self, consent: Approval | Grant, needs: Sequence[str]) -> bool:
        """Whether those who have given it fill these slots, by the roles that they have now: what the policy wants when
        it is asked again."""
        if isinstance(consent, Approval):
            return approvals.approves(self.by_now(consent), needs, self._roles.get)
        return Counter(needs) <= Counter(consent.roles) and still_valid(consent, self._roles_for(consent))

    def by_now(self, approval: Approval) -> Approval:
        """The same, where nobody decides either who has come to own the agent since it was held."""
        owners = self._owners.get((approval.call.tenant, approval.call.agent), ())
        return replace(approval, requesters=tuple(dict.fromkeys((*approval.requesters, *owners))))

    def _roles_for(self, grant: Grant) -> Callable[[str], Collection[str] | None]:
        """The roles that people have for it: whoever has come to own its agent has none."""
        owners = self._owners.get((grant.tenant, grant.agent), ())
        return lambda person: self._roles.get(person) if person not in owners else None


def seen_by_policy(consent: Approval | Grant) -> bytes:
    """`approval` in the policy's input, when it is asked again."""
    if isinstance(consent, Approval):
        return orjson.dumps(approvals.seen_by_policy(consent))
    return orjson.dumps({"id": consent.id, "roles": consent.roles, "approvers": consent.by, "expires": consent.expires})


def held_call(x: Exchange) -> HeldCall:
    """A call as people are shown it, and as it is sent once they have approved it."""
    call, agent = x.call, x.agent
    assert call is not None, "a call is read before it is held"
    assert agent is not None, "a call is identified before it is held"
    tool = call if isinstance(call, ToolCall) else None
    return HeldCall(
        agent.tenant,
        agent.name,
        x.session if call.protocol != "mcp" else _given(x),
        call.kind,
        call.protocol,
        call.target,
        call.operation,
        x.method,
        x.path,
        x.query if tool is None else tool.query,
        tuple(meaningful(x.headers) if tool is None else tool.headers),
        call.body if tool is None else tool.kept,
        bool(call.stream),
        "" if tool is None else tool.definition,
        _cost(x, call),
        call.body if tool is not None and call.protocol == "http" and call.body != tool.kept else b"",
    )


def _cost(x: Exchange, call: AgentCall) -> int | None:
    """Nano-dollars, as they are estimated; None where nobody knows."""
    if call.endpoint.free:
        return 0
    money = x.asked[-1].question.money
    return money.estimated_cost() if money is not None else None


def _given(x: Exchange) -> str | None:
    """The session that a call of MCP names itself. That of the protocol is another one whenever a client connects anew,
    which is how clients come back."""
    given = x.own.get(b"x-weighbridge-session")
    return given.decode("ascii") if given is not None else None


async def _bound(call: HeldCall) -> str:
    """Raises Unbindable."""
    return binding(call) if len(call.body) <= _SHORT else await asyncio.to_thread(binding, call)


def _answers(known: Approval, now: int, repeated: bool) -> bool:
    """Whether an identical call gets what has become of this one, rather than being held anew."""
    if known.state in approvals.ACTIVE:
        return True
    age = now - known.changed
    if known.state is State.DENIED:
        return age < DENIED_FOR * _SECOND
    if known.state not in (State.DONE, State.UNKNOWN):
        return False
    if known.call.protocol == "mcp" and now < min(known.use_by or 0, known.changed + ANSWERS_KEPT * _SECOND):
        return True  # its clients have no way to say that they repeat themselves
    return (repeated or known.unheard) and age < REPEATED_WITHIN * _SECOND


def _comes_first(known: Approval, now: int, repeated: bool) -> bool:
    """Whether people's word on an identical call comes before a grant: it has been approved, and a grant would send it
    once more; or it may have run, and nobody has said yet what to do about that."""
    match known.state:
        case State.PENDING:
            return bool(known.earlier)
        case State.APPROVED | State.CONSUMED | State.UNKNOWN:
            return True
        case State.DONE:
            return _answers(known, now, repeated)
        case _:
            return False


def _repeats(x: Exchange, known: Approval) -> bool:
    """Whether a client says that it tries the same again: by the count that the SDKs of OpenAI and Anthropic keep, or
    by the `Idempotency-Key` of the call that was held."""
    for line in x.headers:
        if line[0] == b"x-stainless-retry-count" and line[1].strip(b"0 "):
            return True
        if line[0] == b"idempotency-key" and line[1] and line in known.call.headers:
            return True
    return False


def _earlier(known: Approval, now: int) -> str:
    """What people who are asked anew have to know of the identical call before; empty for nothing."""
    match known.state:
        case State.UNKNOWN:
            return f"An identical call may have run, and nobody knows what came of it: {known.id}."
        case State.DONE if now - known.changed < LATELY * _SECOND:
            return f"An identical call has run {(now - known.changed) // (60 * _SECOND)} minutes ago: {known.id}."
        case State.DONE:
            return ""
        case _:
            return known.earlier


def _message(approval: Approval, what: str, now: int, by: str = "") -> Message:
    """What people's systems are told; they are shown the approval as it is when it is sent."""
    facts: Mapping[str, Any] = {"version": approval.version, "by": by} if by else {"version": approval.version}
    return Message(f"msg_{approval.id}_{approval.version}", what, approval.id, facts, now)
