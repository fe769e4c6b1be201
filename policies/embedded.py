"""The engine in this process: a warmed interpreter, cloned for every call so that no call sees another's input."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import get_ident
from typing import Any, Final

import orjson

from policies.decision import Decision, parse
from policies.engine import ENTRY
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided
from policies.interpreter import Clock, Interpreter, create, problem
from policies.sources import Sources

SLICE: Final = 200
"""Keys of one top-level object that are handed to the interpreter at once: about 3 ms of work for envelopes."""

_UNFIT: Final = (
    ("recursion limit", "it nests too deep"),
    ("number out of range", "it holds a number out of range"),
    ("", "it is not JSON"),
)
"""How the interpreter's complaint begins, and what the caller is told instead: that complaint counts our own bytes."""

_REMEMBERED: Final = 2048
_LONGEST_REMEMBERED: Final = 1024
# Never an answer about a policy: someone wants this process or task to stop.
_STOPS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)


class EmbeddedEngine:
    """Decides in 20 to 90 microseconds, holding the thread. Built by `build`; used only in the thread that built it."""

    def __init__(self, base: Interpreter, clock: Clock, revision: str) -> None:
        self.revision = revision
        self._base = base
        self._clock = clock
        self._thread = get_ident()
        self._parsed: dict[str, Decision] = {}

    def __repr__(self) -> str:
        return f"<EmbeddedEngine {self.revision[:12]}>"

    def evaluate(self, document: bytes, now_ns: int) -> Decision:
        """See `policies.engine.Engine`."""
        if get_ident() != self._thread:
            raise EngineUnavailable("The policy engine belongs to another thread.")
        interpreter = self._base.clone()
        self._clock.now_ns = now_ns
        try:
            interpreter.set_input_json(document.decode())
        except _STOPS:
            raise
        except BaseException as error:
            raise _unfit(str(error)) from None
        try:
            result = interpreter.eval_rule_as_json(ENTRY)
        except _STOPS:
            raise
        except BaseException as error:  # a panic of the interpreter is not an Exception
            raise Undecided(str(error).strip() or type(error).__name__) from None
        decision = self._parsed.get(result)
        if decision is None:
            decision = parse(result, self.revision)
            self._remember(result, decision)
        return decision

    def _remember(self, result: str, decision: Decision) -> None:
        # A decision with obligations holds objects that someone may change, so it is never shared between calls.
        if decision.obligations or len(result) > _LONGEST_REMEMBERED:
            return
        if len(self._parsed) >= _REMEMBERED:
            self._parsed.clear()
        self._parsed[result] = decision


def _unfit(complaint: str) -> InputRefused:
    cause = next(cause for begins, cause in _UNFIT if complaint.startswith(begins))
    return InputRefused(f"The call cannot be put before the policy: {cause}.", complaint)


async def build(sources: Sources) -> EmbeddedEngine:
    """An engine for these policies, warmed. They must have been proven: what kills an interpreter kills this process.

    Gives way to other work between slices of data. Raises PolicyError.
    """
    clock = Clock()
    base = create(clock)
    for module in sources.modules:
        try:
            base.add_policy(module.name, module.text)
        except _STOPS:
            raise
        except BaseException as error:
            raise PolicyError([problem(error, module.name, "Correct the policy.")]) from None
        await asyncio.sleep(0)
    for text in slices(sources.data):
        base.add_data_json(text)
        await asyncio.sleep(0)
    warm(base)
    return EmbeddedEngine(base, clock, sources.revision)


def warm(base: Interpreter) -> None:
    """Evaluates once on the empty input: a clone of an interpreter that never evaluated takes twice as long."""
    base.set_input_json("{}")
    try:
        base.eval_rule_as_json(ENTRY)
    except _STOPS:
        raise
    except BaseException:  # a policy may well fail on no input; proving has judged it
        pass


def slices(data: dict[str, Any]) -> Iterator[str]:
    """The data as JSON texts that merge to the whole."""
    for root, value in data.items():
        if not isinstance(value, dict) or not value:
            yield orjson.dumps({root: value}).decode()
            continue
        keys = list(value)
        for start in range(0, len(keys), SLICE):
            yield orjson.dumps({root: {key: value[key] for key in keys[start : start + SLICE]}}).decode()
