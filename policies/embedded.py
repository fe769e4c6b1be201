"""The engine in this process: a warmed interpreter, cloned for every call so that no call sees another's input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from threading import get_ident
from types import MappingProxyType
from typing import Any, Final

import orjson

from policies.decision import Decision, parse
from policies.document import Question
from policies.engine import ENTRY
from policies.errors import EngineUnavailable, InputRefused, Undecided
from policies.interpreter import Clock, Interpreter, failure, without_values
from policies.log_mask import RULE
from policies.projection import Projection, projection
from policies.reads import BUDGETS, ESTIMATE, KINDS, Reads, Reason, everything
from policies.reuse import LONGEST, Reuse

_UNFIT: Final = (
    ("recursion limit", "it nests too deep"),
    ("number out of range", "it holds a number out of range"),
    ("", "it is not JSON"),
)
"""How the interpreter's complaint begins, and what the caller is told instead: that complaint counts our own bytes."""

_NO_RULE: Final = "not a valid rule path"
_UNDEFINED: Final = '"<undefined>"'

_REMEMBERED: Final = 2048
_LONGEST_REMEMBERED: Final = 1024
_MOST_AGENTS: Final = 16_384
STOPS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
"""Never an answer about a policy: someone wants this process or task to stop."""


class EmbeddedEngine:
    """Decides in 20 to 90 microseconds, or in 3 what it has decided before, holding the thread. Used only in the thread
    that built it.

    `bundles` has the revisions that bundles were given by those who built them, by name.
    `reads` says what the policy can read; calls are put before it without the rest. `reuse` are the decisions made so
    far, and counts; it stays empty where every call is to be evaluated afresh.
    """

    failure: str | None = None

    def __init__(
        self,
        base: Interpreter,
        clock: Clock,
        revision: str,
        rungs: Sequence[Interpreter] = (),
        *,
        reads: Reads | None = None,
        reuse: bool = True,
        bundles: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`rungs` are clones of `base` from while its data grew, from the first to the last."""
        self.revision = revision
        self.bundles = bundles
        self.reads = reads or everything("nobody has looked at what this policy reads")
        self.reuse = Reuse()
        self._ways = {kind: _Way(self.reads, kind, reuse=reuse) for kind in KINDS}
        self._base: Interpreter | None = base
        self._rungs = list(rungs)
        self._clock = clock
        self._thread = get_ident()
        self._parsed: dict[str, Decision] = {}
        self.masks = _knows(base, RULE)

    def __repr__(self) -> str:
        return f"<EmbeddedEngine {self.revision[:12]}>"

    async def decide(self, question: Question) -> Decision:
        """See `policies.engine.Engine`."""
        way, reuse = self._ways[question.kind], self.reuse
        shut = bool(way.guards) and question.money is not None and self._is_shut(way, question.agent)
        document = way.project_otherwise(question) if shut else way.project(question)
        if document is None:
            document = question.document()
        elif len(document) <= LONGEST and (shut or way.lasting(question)):
            decision = reuse.find(document)
            if decision is None:
                decision = self.answer(document, question.now_ns)
                reuse.keep(document, decision)
            return decision
        reuse.unsuited += 1
        return self.answer(document, question.now_ns)

    async def evaluate(self, document: bytes, now_ns: int) -> Decision:
        """See `policies.engine.Engine`."""
        return self.answer(document, now_ns)

    def answer(self, document: bytes, now_ns: int) -> Decision:
        """Evaluates afresh, without ever giving way: the clock that the policy sees is this call's."""
        if get_ident() != self._thread:
            raise EngineUnavailable("The policy engine belongs to another thread.")
        if self._base is None:
            raise EngineUnavailable("The policy engine has retired.")
        interpreter = self._base.clone()
        self._clock.now_ns = now_ns
        try:
            interpreter.set_input_json(document.decode())
        except STOPS:
            raise
        except BaseException as error:
            raise _unfit(str(error)) from None
        try:
            result = interpreter.eval_rule_as_json(ENTRY)
        except STOPS:
            raise
        except BaseException as error:  # a panic of the interpreter is not an Exception
            raise _failed(error) from None
        decision = self._parsed.get(result)
        if decision is None:
            decision = parse(result, self.revision)
            self._remember(result, decision)
        return decision

    async def mask(self, event: bytes) -> Any:
        """See `policies.engine.Engine`."""
        interpreter, _ = self.interpreter()
        try:
            interpreter.set_input_json(event.decode())
            result = interpreter.eval_rule_as_json(RULE)
        except STOPS:
            raise
        except BaseException as error:  # a panic of the interpreter is not an Exception
            raise _failed(error) from None
        return None if result == _UNDEFINED else orjson.loads(result)

    def unstable(self, kind: str, payer: bytes | None) -> tuple[Reason, ...]:
        """Why decisions on calls of a kind are not used again; none where they are.

        `payer` is the agent as in a question, None for calls without money. Raises EngineUnavailable.
        """
        reads = self.reads.of(kind)
        if reads.unstable or payer is None or not reads.money:
            return reads.unstable
        return () if reads.guards and self._are_shut(reads.guards, payer) else reads.money

    def _is_shut(self, way: _Way, agent: bytes) -> bool:
        """Whether nothing of the money of this agent's calls can be read. `agent` is as in a question."""
        shut = way.shut.get(agent)
        if shut is None:
            if len(way.shut) >= _MOST_AGENTS:
                way.shut.clear()
            shut = way.shut[agent] = self._are_shut(way.guards, agent)
        return shut

    def _are_shut(self, guards: Iterable[Sequence[str]], agent: bytes) -> bool:
        interpreter, _ = self.interpreter()
        interpreter.set_input_json((b'{"agent":%b}' % agent).decode())
        return all(any(_is_undefined(interpreter, query) for query in way) for way in guards)

    def interpreter(self) -> tuple[Interpreter, Clock]:
        """A copy of the interpreter, to be let go before the engine retires, and the clock that policies see.

        Raises EngineUnavailable.
        """
        if get_ident() != self._thread or self._base is None:
            raise EngineUnavailable("The policy engine belongs to another thread, or has retired.")
        return self._base.clone(), self._clock

    async def retire(self) -> None:
        """See `policies.engine.Engine`. Frees a piece of the data at a time; all at once would hold up every call."""
        await asyncio.sleep(0)
        self._base = None
        self._parsed.clear()
        self.reuse.clear()
        while self._rungs:
            await asyncio.sleep(0)
            self._rungs.pop()

    def _remember(self, result: str, decision: Decision) -> None:
        if len(result) > _LONGEST_REMEMBERED:
            return
        if len(self._parsed) >= _REMEMBERED:
            self._parsed.clear()
        self._parsed[result] = decision


class _Way:
    """How calls of one kind are put before the policy, and whether their decisions last.

    `guards` are those of `policies.reads.KindReads`, none where nothing is reused; `project_otherwise` is for agents
    for whom they are shut, and `shut` says of agents whether they are.
    """

    __slots__ = ("_always", "_budgets", "_estimate", "_ever", "guards", "project", "project_otherwise", "shut")

    def __init__(self, reads: Reads, kind: str, *, reuse: bool) -> None:
        told = reads.of(kind)
        self.project: Projection = projection(told.reads, kind)
        self.project_otherwise: Projection = projection(told.otherwise, kind)
        self._ever = reuse and not told.unstable
        self._always = self._ever and not told.money
        self._budgets = any(read.path[:1] == BUDGETS for read in told.reads)
        self._estimate = any(read.path[:2] == ESTIMATE for read in told.reads)
        self.guards = told.guards if self._ever else ()
        self.shut: dict[bytes, bool] = {}

    def lasting(self, question: Question) -> bool:
        """Whether the decision on this question is worth keeping: what the policy reads of it may come again."""
        if self._always or not self._ever:
            return self._always
        return question.money is None or not (
            (self._budgets and question.budgets() is not None)
            or (self._estimate and question.estimated_cost() is not None)
        )


def _knows(base: Interpreter, rule: str) -> bool:
    """Whether there is such a rule, whatever it says."""
    interpreter = base.clone()
    try:
        interpreter.set_input_json("{}")
        interpreter.eval_rule_as_json(rule)
    except STOPS:
        raise
    except BaseException as error:
        return _NO_RULE not in str(error)
    return True


def _is_undefined(interpreter: Interpreter, query: str) -> bool:
    """Whether a query has no value for the input that is set. Whatever else comes of it is taken for one."""
    try:
        result = interpreter.eval_query_as_json(query)
    except STOPS:
        raise
    except BaseException:  # a panic of the interpreter is not an Exception
        return False
    return bool(orjson.loads(result) == {})


def _failed(error: BaseException) -> Undecided:
    return Undecided(failure(error), without_values(error))


def _unfit(complaint: str) -> InputRefused:
    cause = next(cause for begins, cause in _UNFIT if complaint.startswith(begins))
    return InputRefused(f"The call cannot be put before the policy: {cause}.", complaint)
