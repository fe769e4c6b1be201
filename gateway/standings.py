"""How agents stand by a person's word: whether the calls of this gateway are let in, wait, or are cut.

    active        calls are let in
    paused        calls are refused; those that people decide on wait on, and those that have begun come to their end
    quarantined   calls are refused; those that wait are taken back, approved or not, and those under way are cut

The word is kept in the store, for all gateways: the one that was asked acts before it answers, the others hear of it
within a second. What was heard last stays in force whatever becomes of the store: who stops an agent is obeyed at once,
and who lets it go on only once that is durable. A gateway that has never heard how agents stand lets nobody in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gateway.exchange import Exchange, Reached
from gateway.holding import Holds
from gateway.identity import ACTIVE, Agent, Directory
from gateway.lifeline import Lifeline
from policies.approval_store import ApprovalStore, Standing, StoreUnavailable
from policies.approvals import Refused, State

log = logging.getLogger("weighbridge.standings")

PAUSED: Final = "paused"
QUARANTINED: Final = "quarantined"

HEAR: Final = 0.5
"""Seconds between two looks at how agents stand: others act on a person's word within a second."""
AGAIN: Final = 3.0
"""Seconds after which what waits is looked through once more: a gateway that had not heard may have opened something,
and the one that was asked may be gone."""
_TRIES: Final = 8
_WAITING: Final = (State.PENDING, State.APPROVED)

_Key = tuple[str, str]
"""(tenant, name)"""


class AgentStopped(Exception):
    """A person has stopped the agent; the text says why, as far as the person has said so."""


class AgentPaused(AgentStopped):
    """For now: what people have approved runs later."""


class AgentQuarantined(AgentStopped):
    """With all that it had begun."""


class StandingsUnknown(Exception):
    """Nobody has told this gateway yet which agents are stopped."""


class Outrun(Exception):
    """Somebody else has stopped the agent in the same moment, or more than is wanted now."""


class NotWritten(Exception):
    """An agent is stopped at this gateway, and the store does not answer: it is told as soon as it does."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a state means. `cuts` says which calls under way end; `takes_back`, that none of those that wait may run."""

    strictness: int
    refusal: type[AgentStopped] | None
    cuts: Literal["none", "not begun", "all"]
    takes_back: bool


RULES: Final[Mapping[str, Rule]] = {
    ACTIVE: Rule(0, None, "none", False),
    PAUSED: Rule(1, AgentPaused, "not begun", False),
    QUARANTINED: Rule(2, AgentQuarantined, "all", True),
}


class Standings:
    """How agents stand, as this gateway has heard it, and the calls that it carries.

    `calls` are those under way: each adds itself, and removes itself when nothing can end it any more.
    """

    def __init__(self, store: ApprovalStore, holds: Holds) -> None:
        self.calls: dict[Lifeline, Exchange] = {}
        self.heard = False
        """Whether it was ever heard how agents stand."""
        self.stopped: Callable[[str], None] = lambda _: None
        """Called with each agent that is quarantined, `tenant/agent`: what tools keep for it ends."""
        self._store = store
        self._holds = holds
        self._directory = Directory(())
        self._known: dict[_Key, Standing] = {}
        self._unwritten: set[_Key] = set()
        """Those that were stopped here while the store did not answer."""
        self._turn = asyncio.Lock()
        self._ending = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._taking_back: set[asyncio.Task[None]] = set()
        self._troubled = False

    def under(self, directory: Directory) -> None:
        """From now on these are the agents. One that comes again, or has another key, stands as it stood."""
        self._directory = directory
        for (tenant, name), standing in self._known.items():
            agent = directory.find(tenant, name)
            if agent is not None:
                agent.stand(standing.state)

    async def begin(self) -> None:
        """Hears how agents stand, if that can be had now, and from then on twice a second."""
        with contextlib.suppress(StoreUnavailable):
            await self.hear()
        self._listening = asyncio.create_task(self._listen(), name="how agents stand")

    async def end(self) -> None:
        self._ending.set()
        listening = [self._listening] if self._listening is not None else []
        await asyncio.gather(*listening, *self._taking_back, return_exceptions=True)

    # What calls do

    def check(self, agent: Agent) -> None:
        """Raises AgentPaused, AgentQuarantined."""
        if agent.state != ACTIVE:
            raise _refusal(self._known[agent.tenant, agent.name])

    # What people do

    def of(self, agent: Agent) -> Standing | None:
        """What was said last of this agent; None where nobody ever has."""
        return self._known.get((agent.tenant, agent.name))

    def under_way(self) -> Counter[_Key]:
        """How many calls each agent has under way here."""
        return Counter((x.agent.tenant, x.agent.name) for x in self.calls.values() if x.agent is not None)

    def counts(self) -> Mapping[str, int]:
        """How many of the configured agents stand in each way."""
        return {**dict.fromkeys(RULES, 0), **Counter(agent.state for agent in self._directory)}

    async def set(self, agent: Agent, state: str, reason: str, by: str) -> Standing:
        """A person's word, one of RULES: durable, then in force here, then answered.

        Where the store does not answer, a stop is in force here all the same, and NotWritten says so; what is milder
        than what holds raises StoreUnavailable then, and Outrun where it would undo what somebody else has just said.
        """
        key = agent.tenant, agent.name
        seen = self._known.get(key)  # when it was said: others may be heard while this waits for its turn
        async with self._turn:
            for _ in range(_TRIES):
                before = self._known.get(key)
                if before != seen and RULES[state].strictness < _strictness(before):
                    raise Outrun
                if before is not None and RULES[before.state].takes_back and not RULES[state].takes_back:
                    await self._take_back(key, before)  # also what nobody has come to yet
                epoch = before.epoch + 1 if before is not None else 1
                after = Standing(state, reason, by, self._store.now_ns(), epoch)
                try:
                    written = await self._store.stand(*key, after)
                except StoreUnavailable as error:
                    if _strictness(after) <= _strictness(before):
                        raise
                    self._unwritten.add(key)
                    self._take(key, after)
                    raise NotWritten from error
                if written:
                    self._unwritten.discard(key)
                    self._take(key, after)
                    break
                await self._hear()
            else:
                raise StoreUnavailable("Others are changing how this agent stands at the same time.")
        if RULES[state].takes_back:
            taking = self._later(self._taken_back(key, 0.0))
            await asyncio.wait([taking], timeout=1.0)
        return after

    # What is heard

    async def hear(self) -> None:
        """Acts on what others have said. Raises StoreUnavailable."""
        async with self._turn:
            await self._hear()

    async def _hear(self) -> None:
        told = await self._store.standings()
        for key in told.keys() | self._known.keys():
            mine, theirs = self._known.get(key), told.get(key)
            if theirs is not None and theirs.state not in RULES:  # a later version's word
                theirs = replace(theirs, state=PAUSED)
            if theirs == mine:
                self._unwritten.discard(key)
            elif theirs is not None and self._gives_way(key, mine, theirs):
                self._unwritten.discard(key)
                self._take(key, theirs)
            elif mine is not None:
                await self._write_again(key, mine, theirs)
        self.heard = True

    def _gives_way(self, key: _Key, mine: Standing | None, theirs: Standing) -> bool:
        """Whether what the store says holds, and not what is known here: a stop that it was never told of, or that it
        has lost, is not undone by what it has instead."""
        if mine is None:
            return True
        stricter = _strictness(mine) > _strictness(theirs)
        if key in self._unwritten:
            return not stricter
        return theirs.epoch > mine.epoch or (theirs.epoch == mine.epoch and not stricter)

    async def _write_again(self, key: _Key, mine: Standing, theirs: Standing | None) -> None:
        if theirs is not None and theirs.epoch >= mine.epoch:
            mine = replace(mine, epoch=theirs.epoch + 1)
        if await self._store.stand(*key, mine):
            self._known[key] = mine
            self._unwritten.discard(key)

    def _take(self, key: _Key, standing: Standing) -> None:
        """Acts on it: from here on no call of the agent begins that the state does not let in."""
        before, rule = self._known.get(key), RULES[standing.state]
        stood = before.state if before is not None else ACTIVE
        self._known[key] = standing
        agent = self._directory.find(*key)
        if agent is not None:
            agent.stand(standing.state)
        for lifeline, x in list(self.calls.items()):
            if x.agent is None or (x.agent.tenant, x.agent.name) != key:
                continue
            x.agent.stand(standing.state)  # that of an earlier configuration, too
            if rule.cuts == "all" or (rule.cuts == "not begun" and not _begun(x) and not _waits(x)):
                lifeline.cut(_refusal(standing))
        if rule.cuts == "all":
            self.stopped("/".join(key))
        if stood != standing.state:
            why = f": {standing.reason}" if standing.reason else ""
            log.warning("%s: the agent %s of %s is %s%s", standing.by, key[1], key[0], standing.state, why)
            self._holds.look_again()
            if rule.takes_back:
                self._later(self._taken_back(key, AGAIN))

    # What waits

    async def _taken_back(self, key: _Key, pause: float) -> None:
        """Nothing of the agent's that waits may run, as soon as the store can be told."""
        await self._pause(pause)
        while not self._ending.is_set() and RULES[(standing := self._known[key]).state].takes_back:
            try:
                await self._take_back(key, standing)
            except StoreUnavailable:
                await self._pause(HEAR)
            else:
                return

    async def _take_back(self, key: _Key, standing: Standing) -> None:
        tenant, name = key
        why = f"Its agent was quarantined: {standing.reason}" if standing.reason else "Its agent was quarantined."
        page = await self._store.listed(_WAITING, tenant)
        while page:
            for each in page:
                if each.call.agent == name:
                    with contextlib.suppress(Refused, KeyError):  # it has ended meanwhile
                        await self._holds.cancel(each.id, standing.by, why)
            page = await self._store.listed(_WAITING, tenant, page[-1].id)

    def _later(self, what: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(what, name="taking back what a stopped agent waits for")
        self._taking_back.add(task)
        task.add_done_callback(self._taking_back.discard)
        return task

    async def _listen(self) -> None:
        while not self._ending.is_set():
            await self._pause(HEAR)
            try:
                await self.hear()
                self._troubled = False
            except StoreUnavailable:
                pass  # the store's own failure tells it
            except Exception:
                if not self._troubled:
                    log.exception("to hear how agents stand has failed in the gateway itself")
                self._troubled = True

    async def _pause(self, seconds: float) -> None:
        """So long, or until the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()


def _begun(x: Exchange) -> bool:
    """Whether a target may know of the call."""
    return x.reached is not Reached.NO or bool(x.bills)


def _waits(x: Exchange) -> bool:
    """Whether the call waits for people."""
    return x.held is not None and x.approval is None


def _strictness(standing: Standing | None) -> int:
    return RULES[standing.state].strictness if standing is not None else 0


def _refusal(standing: Standing) -> AgentStopped:
    refusal = RULES[standing.state].refusal
    assert refusal is not None, "who is active is not refused"
    why = f": {standing.reason}" if standing.reason else ""
    text = f"A person has {'paused' if refusal is AgentPaused else 'quarantined'} this agent{why}"
    return refusal(text if text.endswith((".", "!", "?")) else f"{text}.")
