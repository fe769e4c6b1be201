"""Two gateways, agents that repeat themselves and leave, people who say yes and no, a store that fails and forgets to
answer, gateways that are killed, and a clock that jumps: in any order, what runs is what people saw, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import orjson
import pytest

from gateway import claims, holding
from gateway.lifeline import ClientGone
from policies.approval_store import StoreUnavailable
from policies.approvals import TRANSITIONS, Approval, Refused, State
from policies.decision import Decision, Effect
from policies.quorum import missing
from tests.support.exchanges import AGENT_KEY, ALLOWED, settings
from tests.support.gate import Gate, gate
from tests.support.misbehaving import Misbehaving, Wire
from tests.support.register import Register, by_way_of

SECOND: Final = 1_000_000_000
CHAT: Final = "/v1/chat/completions"
BODIES: Final = tuple(
    orjson.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]})
    for text in ("one", "two", "for both")
)
PEOPLE: Final[Mapping[str, Collection[str]]] = {
    "fay": ("finance",),
    "ned": ("finance", "security"),
    "sid": ("security",),
    "olga": ("finance",),
    "tom": ("sales",),
}
"""Olga owns the agent."""
_STEPS: Final = (
    *["call"] * 8,
    *["vote"] * 12,
    *["pass"] * 12,
    *["leave"] * 3,
    *["tick"] * 3,
    *("jump", "roles", "mood", "kill"),
)
_MOVES: Final = frozenset((before, after) for (before, _), after in TRANSITIONS.items())


class NoDoor:
    """The connection of a call that comes without one."""

    hangup: Callable[[type[Exception]], None] | None = None
    task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        return None


class Call:
    """One call of the agent, from whichever gateway it is made of."""

    def __init__(self, number: int, body: bytes, session: str, repeated: bool) -> None:
        self.body, self.session = body, session
        self.status, self.answer = 0, b""
        self.door = NoDoor()
        self.name = f"try-{number}".encode()
        headers = [
            (b"authorization", f"Bearer {AGENT_KEY}".encode()),
            (b"x-weighbridge-session", session.encode()),
            (b"x-request-id", self.name),
            (b"x-stainless-retry-count", b"%d" % repeated),
        ]
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": headers,
            "door": self.door,
        }

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.answer += message.get("body", b"")

    def leave(self) -> None:
        hangup, self.door.hangup = self.door.hangup, None
        if hangup is not None:
            hangup(ClientGone)


class History:
    """One order of things. `wrong` has what must not be."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.wrong: list[str] = []
        self.ns = 1_763_700_000 * SECOND
        self.shared = Register(lambda: self.ns)
        self.shared.listen(self._changed)
        self.known: dict[str, Approval] = {}
        self.people = dict(PEOPLE)
        self.earlier = self.people
        """As they were before the last change: a claim may have been checked just before it."""
        self.arrived: Counter[bytes] = Counter()
        self.sent: dict[bytes, bytes] = {}
        self.saw: list[tuple[str, bytes]] = []
        self.calls: dict[asyncio.Task[None], Call] = {}
        self.over: list[Call] = []
        self.made = 0
        self.calm = False
        self.denies = False
        self.states: Counter[State] = Counter()

    # What must hold

    def _changed(self, ids: Collection[str] | None) -> None:
        for name in ids or ():
            after = self.shared.kept.get(name)
            before = self.known.get(name)
            if after is None:
                continue
            self.known[name] = after
            if before is None or before.state is after.state:
                continue
            self.states[after.state] += 1
            if (before.state, after.state) not in _MOVES:
                self.wrong.append(f"{name} went from {before.state} to {after.state}")
            if after.call != before.call:
                self.wrong.append(f"{name} is another call now")
            if after.state is State.CONSUMED and not any(map(self._quorum(after), (self.people, self.earlier))):
                self.wrong.append(f"{name} was used with {after.votes}, where {self.people}")

    def _quorum(self, approval: Approval) -> Callable[[Mapping[str, Collection[str]]], bool]:
        def there(people: Mapping[str, Collection[str]]) -> bool:
            said = [vote for vote in approval.votes if vote.yes]
            if len({vote.person for vote in said}) < len(said) or any(not vote.yes for vote in approval.votes):
                return False
            if {"support-bot", "olga"} & {vote.person for vote in said}:
                return False
            claimed = (approval.lease_until or 0) - int(claims.LEASE * SECOND)  # the store may have been slow since
            if approval.use_by is None or claimed >= approval.use_by:
                return False
            return not missing(approval.needs, {vote.person: people.get(vote.person, ()) for vote in said})

        return there

    def audit(self) -> None:
        opened = {dict(each.call.headers)[b"x-request-id"]: each for each in self.shared.kept.values()}
        for name, count in self.arrived.items():
            approval = opened.get(name)
            if approval is None or approval.call.body != self.sent[name]:
                self.wrong.append(f"{name!r} was sent, and nobody has seen it")
            elif approval.state not in (State.DONE, State.UNKNOWN):
                self.wrong.append(f"{name!r} was sent, and its approval is {approval.state}")
            if count > 1:
                self.wrong.append(f"{name!r} was sent {count} times")
        for which, body in self.saw:
            if self.shared.kept[which].call.body != body:
                self.wrong.append(f"who voted on {which} saw something else")
        for approval in opened.values():
            if approval.state is State.CONSUMED:
                self.wrong.append(f"{approval.id} is still in use")
            if approval.state is State.DONE and not self.arrived[dict(approval.call.headers)[b"x-request-id"]]:
                self.wrong.append(f"{approval.id} is done, and was not sent")
        for call in self.over:
            if call.status == 200:
                told = orjson.loads(call.answer)["id"].encode()
                if (opened[told].call.body, opened[told].call.session) != (call.body, call.session):
                    self.wrong.append(f"{call.name!r} was told the answer of another call")
            elif call.status not in (0, 401, 403, 429, 502, 503):
                self.wrong.append(f"{call.name!r} was told {call.status} {call.answer!r}")

    # What happens

    async def target(self, wire: Wire) -> None:
        body = await wire.body()
        name = wire.headers["x-request-id"].encode()
        self.arrived[name] += 1
        self.sent[name] = body
        await asyncio.sleep(self.chance.choice([0, 0, 0.001, 0.01]))
        kind = self.chance.random()
        if kind < 0.1:
            wire.reset()
            return
        answer = orjson.dumps({"id": name.decode(), "choices": [], "usage": {"total_tokens": 1}})
        status = b"429 Busy" if kind < 0.2 else b"200 OK"
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        await wire.send(head % (status, len(answer)) + answer)

    def decides(self, document: Mapping[str, Any]) -> Decision:
        both = "for both" in document["call"]["arguments"]["messages"][0]["content"]
        if "approval" in document:
            return dataclasses.replace(ALLOWED, effect=Effect.DENY) if self.denies else ALLOWED
        needs = ("finance", "security") if both else ("finance",)
        return dataclasses.replace(ALLOWED, effect=Effect.NEEDS_APPROVAL, required_approvals=needs)

    def weather(self, alive: list[bool]) -> Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]:
        async def around(name: str, question: Callable[[], Awaitable[Any]]) -> Any:
            for _ in range(self.chance.choice([0, 0, 1, 3])):
                await asyncio.sleep(0)
            if not alive[0] or (not self.calm and self.chance.random() < 0.02):
                raise StoreUnavailable("away")
            answer = await question()
            for _ in range(self.chance.choice([0, 0, 1, 3])):
                await asyncio.sleep(0)
            if not alive[0] or (not self.calm and self.chance.random() < 0.02):
                raise StoreUnavailable("the answer was lost")
            return answer

        return around

    async def open(self, stack: AsyncExitStack, url: str) -> tuple[Gate, list[bool]]:
        alive = [True]
        store = by_way_of(self.shared, self.weather(alive), deaf=self.chance.random() < 0.2)
        opened = await stack.enter_async_context(
            gate(target_url=url, script=self.decides, register=store, **self._sections())
        )
        return opened, alive

    def _sections(self) -> dict[str, Any]:
        people = [
            {"name": name, "token": f"the-token-of-{name}", "roles": list(roles)} for name, roles in self.people.items()
        ]
        return {
            "agents": [{"name": "support-bot", "tenant": "acme", "key": AGENT_KEY, "owner": "olga"}],
            "admin": {"people": people},
            "approvals": {"hold_for": "1s", "use_within": "5m"},
        }

    async def lived(self, steps: int) -> None:
        chance = self.chance
        async with Misbehaving() as upstream, AsyncExitStack() as stack:
            upstream.on("/chat/completions", self.target)
            url = f"http://127.0.0.1:{upstream.port}"
            self.calm = True  # until both have heard how agents stand
            gates = [await self.open(stack, url) for _ in range(2)]
            await self.begin(gates[0][0])
            killed = 0
            for _ in range(steps):
                g, alive = here = chance.choice(gates)
                match chance.choice(_STEPS):
                    case "call":
                        self.call(g, chance.choice(BODIES))
                    case "vote":
                        await self.vote(g)
                    case "leave" if self.calls:
                        chance.choice(list(self.calls.values())).leave()
                    case "tick":
                        self.ns += chance.choice([1, 5, 12]) * SECOND
                        await self.renew(gates)
                    case "jump":
                        self.ns += chance.choice([31, 301, 3601]) * SECOND
                        await self.renew(gates)
                    case "roles":
                        self.earlier, self.people = self.people, dict(PEOPLE)
                        if chance.random() < 0.5:
                            self.people["fay"] = ("sales",)
                        for each, _ in gates:
                            each.pipeline.holds.under(settings(**self._sections()))
                    case "mood":
                        self.denies = chance.random() < 0.2
                    case "kill" if killed < 3:
                        killed += 1
                        alive[0] = False
                        for task, call in list(self.calls.items()):
                            if call.scope["gate"] is g:
                                task.cancel()
                        gates[gates.index(here)] = await self.open(stack, url)
                    case _:
                        await asyncio.sleep(chance.choice([0, 0.001, 0.005]))
            await self.end(gates)

    async def begin(self, g: Gate) -> None:
        """One call that nothing happens to, so that no history is empty."""
        self.calm = True
        call = self.call(g, BODIES[0])
        async with asyncio.timeout(10):
            while not self.shared.kept:
                await asyncio.sleep(0.001)
            (which,) = self.shared.kept
            await g.pipeline.holds.vote(which, "ned", PEOPLE["ned"], True)
            self.saw.append((which, BODIES[0]))
            await call
        self.calm = False

    async def end(self, gates: list[tuple[Gate, list[bool]]]) -> None:
        """Everybody leaves, and what was begun comes to its end."""
        self.calm = True
        await asyncio.sleep(0.01)  # the last calls have begun
        for call in self.calls.values():
            call.leave()
        async with asyncio.timeout(10):
            await asyncio.gather(*self.calls, return_exceptions=True)
            for g, alive in gates:
                while alive[0] and g.pipeline.holds._told_later:
                    await asyncio.sleep(0.005)
        for _ in range(2):
            self.ns += 31 * SECOND
            await self.renew(gates)
        for g, _ in gates:
            if g.pipeline.claims._uses:
                self.wrong.append("something is still in use, and nobody uses it")
            if g.pipeline.holds.waiting:
                self.wrong.append("somebody still waits, who has left")

    async def renew(self, gates: list[tuple[Gate, list[bool]]]) -> None:
        for g, _ in gates:
            for do in (g.pipeline.claims.renew, g.pipeline.holds.look, g.pipeline.holds._poll):
                with contextlib.suppress(StoreUnavailable):
                    await do()

    def call(self, g: Gate, body: bytes) -> asyncio.Task[None]:
        self.made += 1
        call = Call(self.made, body, self.chance.choice(["s-1", "s-2"]), self.chance.random() < 0.3)
        call.scope["gate"] = g
        task = asyncio.create_task(g.pipeline(call.scope, call.receive, call.send))
        call.door.task = task
        self.calls[task] = call
        task.add_done_callback(lambda done: self.over.append(self.calls.pop(done)))
        return task

    async def vote(self, g: Gate) -> None:
        pending = [each for each in self.shared.kept.values() if each.state is State.PENDING]
        if not pending:
            return
        shown = self.chance.choice(pending)
        person = self.chance.choice([*self.people, "fay", "ned", "ned", "support-bot"])
        roles = self.people.get(person, ("finance", "security"))
        yes = self.chance.random() < 0.93
        try:
            await g.pipeline.holds.vote(shown.id, person, roles, yes)
        except (Refused, StoreUnavailable):
            return
        self.saw.append((shown.id, shown.call.body))


@pytest.mark.parametrize("seed", range(6))
async def test_in_any_order_what_runs_is_what_people_saw_and_runs_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "LOOK", 0.02)
    monkeypatch.setattr(claims, "AGAIN", 0.02)
    logging.getLogger("weighbridge").setLevel(logging.CRITICAL)
    try:
        history = History(seed)
        await history.lived(300)
        history.audit()
    finally:
        logging.getLogger("weighbridge").setLevel(logging.NOTSET)
    assert history.wrong == []
    assert sum(history.arrived.values()) > 0
    assert len(history.saw) > 5
