"""What is asked of the policy beside a call of a tool: what could be called, and what may be shown of an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from adapters.base import AgentCall
from gateway.decision_log import DecisionLog
from gateway.exchange import Asked, Exchange
from policies.decision import Decision, Effect
from policies.document import Phase, Question
from policies.embedded import EmbeddedEngine
from policies.engine import Engine
from policies.errors import EngineUnavailable, InputRefused, Undecided

_TOGETHER: Final = 16
"""Questions that are put at once."""
_SESSIONS: Final = ("call", "session")


class Inquiries:
    """Put before the policy in force, whichever that is by then."""

    def __init__(self, engine: Callable[[], Engine | None], events: DecisionLog) -> None:
        self._engine = engine
        self._events = events

    async def could_each(self, x: Exchange, calls: Sequence[AgentCall], phase: Phase | None = None) -> list[Effect]:
        """What the policy says of calls that nobody makes yet: for lists of what there is. Nothing is recorded.

        DENY for those that it has no answer to. Raises EngineUnavailable.
        """
        engine = self._deciding()

        async def one(call: AgentCall) -> Effect:
            try:
                return (await engine.decide(_question(x, call, phase))).effect
            except (Undecided, InputRefused):
                return Effect.DENY

        found: list[Effect] = []
        for begin in range(0, len(calls), _TOGETHER):
            found += await asyncio.gather(*map(one, calls[begin : begin + _TOGETHER]))
            await asyncio.sleep(0)
        return found

    def lasting(self, x: Exchange) -> tuple[object, ...] | None:
        """What answers on tools that cost nothing follow from, beside the calls; None where they may change without
        any of it."""
        engine, agent = self._engine(), x.agent
        if not isinstance(engine, EmbeddedEngine) or agent is None or engine.unstable("tool", None):
            return None
        return engine.revision, agent.fragment, x.session if _reads_sessions(engine) else None

    async def judge(self, x: Exchange, call: AgentCall, result: bytes) -> Decision:
        """What the policy says of what a tool has answered; it is recorded as what it said of the call is.

        Raises Undecided, InputRefused, EngineUnavailable.
        """
        engine = self._deciding()
        question = _question(x, call, "result")
        question.now_ns, question.result = time.time_ns(), result
        try:
            return await put(x, question, engine)
        finally:
            if engine.masks:
                await self._events.mask(x)

    def _deciding(self) -> Engine:
        engine = self._engine()
        if engine is None:
            raise EngineUnavailable("No policy is loaded, so every call is refused.")
        return engine


async def put(x: Exchange, question: Question, engine: Engine) -> Decision:
    """The answer to a question that belongs to the call's record. Raises Undecided, InputRefused, EngineUnavailable."""
    asked = Asked(question, None, engine.revision, engine)
    x.asked.append(asked)
    asked.decision = decision = await engine.decide(question)
    asked.revision = decision.revision
    if engine.bundles and engine.revision == decision.revision:
        asked.bundles = engine.bundles
    return decision


def _question(x: Exchange, call: AgentCall, phase: Phase | None) -> Question:
    assert x.agent is not None, "an agent is known before anything is said of what it could do"
    return Question(
        x.agent.fragment,
        call.kind,
        call.protocol,
        call.target,
        call.operation,
        call.stream,
        x.session,
        call.body,
        call.arguments,
        x.arrived_ns,
        phase=phase,
    )


def _reads_sessions(engine: EmbeddedEngine) -> bool:
    """Whether what is decided of tools may be another thing in another session."""
    return any(
        all(step in (None, name) for step, name in zip(read.path, _SESSIONS, strict=False))
        for read in engine.reads.of("tool").reads
    )
