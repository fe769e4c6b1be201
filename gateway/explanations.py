"""Why a call was refused: its decision as it was recorded, and what the same policy says of the recorded input again.

What was masked or erased when the decision was recorded is not there to be decided on again. Where the answer differs
then, nothing follows from it, and that is what is said. The second answer is shown as it would be recorded: whoever may
read records must not learn more by asking again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from gateway.decision_log import LONGEST_ERROR
from gateway.reader import decision_of
from policies import log_mask
from policies.decision import Decision
from policies.embedded import EmbeddedEngine
from policies.engine import Engine
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided
from policies.explain import LARGEST, Outline, Step, explain, outlined
from policies.obligations import NONE

Verdict = Literal["same", "differs", "cannot be told"]
"""What comes of deciding again: the recorded answer, another one, or nothing that could be compared."""

_MOST_OUTLINES: Final = 4
_COMPARED: Final = ("decision", "risk_level", "required_approvals", "explanation")
"""What of an answer is recorded as it was; the values of obligations are masked."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as the ledger has it. `event` is in the shape of OPA's decision log; `code` is how the call ended,
    None while it is under way. `reasons` are the gateway's own words for that."""

    event: Mapping[str, Any]
    code: str | None
    reasons: tuple[str, ...] = ()

    @property
    def revision(self) -> str:
        """The policy that decided; empty where none did."""
        bundles = self.event.get("bundles")
        first = next(iter(bundles.values()), None) if isinstance(bundles, dict) else None
        revision = first.get("revision") if isinstance(first, dict) else None
        return revision if isinstance(revision, str) else ""

    @property
    def missing(self) -> list[str]:
        """JSON pointers to what of the event is not as it was."""
        return [pointer for pointer in self._hidden if pointer.startswith("/input")]

    @property
    def hides_result(self) -> bool:
        """Whether anything of the decision itself is not as it was."""
        return any(pointer.startswith("/result") for pointer in self._hidden)

    @property
    def _hidden(self) -> list[str]:
        listed = [each for name in ("erased", "masked") if isinstance(each := self.event.get(name), list)]
        return list(dict.fromkeys(pointer for each in listed for pointer in each if isinstance(pointer, str)))


@dataclass(frozen=True, slots=True)
class Explained:
    """An answer with what led to it. `rules` is empty where `unknown` says why nobody can tell.

    `failure` may quote the input; `recorded_failure` is what is recorded of it. `reads` says what a policy reads to
    decide calls of this kind; `unstable` why its decisions are not reused.
    """

    decision: Decision | None
    failure: str
    rules: tuple[Step, ...]
    unknown: str
    reads: tuple[str, ...]
    unstable: tuple[str, ...]
    recorded_failure: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """A recorded decision taken a second time, in no more words than were recorded of the first.

    `result` is None where there is none, or nothing of it may be shown: then `failure` says why.
    """

    result: Mapping[str, Any] | None
    failure: str
    revision: str
    explained: Explained
    verdict: Verdict


class Explainer:
    """Explains decisions of one process, keeping the outlines of the last revisions."""

    def __init__(self, largest: int = LARGEST) -> None:
        """`largest`: characters of policy whose decisions are explained."""
        self._largest = largest
        self._outlines: dict[str, Outline] = {}

    async def explain(self, engine: Engine, document: bytes, now_ns: int) -> Explained:
        """Decides on `document`, and says why. Raises InputRefused, EngineUnavailable."""
        decision: Decision | None = None
        failure = recorded_failure = ""
        try:
            decision = await engine.evaluate(document, now_ns)
        except Undecided as error:
            failure, recorded_failure = error.internal, error.recorded
        if not isinstance(engine, EmbeddedEngine):
            unknown = "An OPA server does not tell which rules decided."
            return Explained(decision, failure, (), unknown, (), (), recorded_failure)
        kind, payer = _asked(document)
        reads = engine.reads.of(kind)
        rules: tuple[Step, ...] = ()
        unknown = ""
        try:
            rules = explain(engine, await self._outline(engine), document, now_ns)
        except PolicyError as error:
            unknown = str(error.problems[0])
        return Explained(
            decision,
            failure,
            rules,
            unknown,
            tuple(map(str, reads.reads)),
            tuple(map(str, engine.unstable(kind, payer))),
            recorded_failure,
        )

    async def again(self, engine: Engine, before: Recorded, document: bytes, now_ns: int) -> Again:
        """Takes a decision again, on what `replayable` gives. Raises InputRefused, EngineUnavailable."""
        found = await self.explain(engine, document, now_ns)
        result: Mapping[str, Any] | None = None
        failure, revision = found.recorded_failure, engine.revision
        if found.decision is not None:
            revision = found.decision.revision
            result = await _as_recorded(engine, before, found.decision)
            failure = "" if result is not None else "it was kept out of the record"
        open_ = found.decision is not None and found.decision.obligations is NONE
        if not open_ or engine.masks or before.hides_result:
            # A rule may hold what goes into headers, calls and explanations, wherever that is masked.
            found = replace(found, rules=tuple(replace(step, value=None) for step in found.rules))
        found = replace(found, decision=None, failure=failure)
        return Again(result, failure, revision, found, _verdict(before, result, found.recorded_failure))

    async def _outline(self, engine: EmbeddedEngine) -> Outline:
        found = self._outlines.get(engine.revision)
        if found is None:
            found = await outlined(engine, self._largest)
            while len(self._outlines) >= _MOST_OUTLINES:
                del self._outlines[next(iter(self._outlines))]
            self._outlines[engine.revision] = found
        return found


def recorded(file: Path, call: str) -> Recorded | None:
    """The last decision on a call, None for a call that is not in this ledger. Blocks on the disk. Raises OSError."""
    found = list(_about(file, call))
    event = decision_of(found, call)
    outcome = next(
        (record for record in found if record.get("call") == call and record.get("record") == "outcome"), None
    )
    if event is None and outcome is None:
        return None
    outcome = outcome or {}
    told = event.get("error") if event is not None else None
    said = told.get("message") if isinstance(told, dict) else None
    words = [outcome.get(name) for name in ("explanation", "detail")]
    reasons = tuple(each for each in words if isinstance(each, str) and each and each[:LONGEST_ERROR] != said)
    return Recorded(event or {}, str(outcome["code"]) if "code" in outcome else None, reasons)


def _about(file: Path, call: str) -> Iterator[dict[str, Any]]:
    wanted = call.encode("utf-8", "replace")
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as lines:
        for line in lines:
            if wanted not in line:
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


async def _as_recorded(engine: Engine, before: Recorded, decision: Decision) -> Mapping[str, Any] | None:
    """What the record of this decision would say, had it been taken instead; None for nothing."""
    left_out = ("record", "call", "erased", "masked", "error")
    event = orjson.loads(orjson.dumps({name: each for name, each in before.event.items() if name not in left_out}))
    event["result"] = orjson.loads(decision.answer)
    try:
        if engine.masks:
            log_mask.apply(log_mask.read(await engine.mask(orjson.dumps(event))), event)
    except (TypeError, ValueError, Undecided, InputRefused, EngineUnavailable):
        event["result"] = {"decision": decision.effect.value}
    log_mask.follow(before.event, event)
    result = event.get("result")
    return result if isinstance(result, dict) else None


def _verdict(before: Recorded, again: Mapping[str, Any] | None, failure: str) -> Verdict:
    """Whether a recorded decision, or the failure to take one, comes about again."""
    then = before.event.get("result")
    if isinstance(then, dict) and again is not None:
        if all(then.get(field) == again.get(field) for field in _COMPARED):
            return "same"
        return "cannot be told" if before.missing else "differs"
    error = before.event.get("error")
    told = error.get("message") if isinstance(error, dict) else None
    return "same" if told and told == failure[:LONGEST_ERROR] else "cannot be told"


def replayable(before: Recorded) -> tuple[bytes, int] | None:
    """The recorded input and its time in Unix nanoseconds; None where the input was erased."""
    document = before.event.get("input")
    if not isinstance(document, dict):
        return None
    now_ns = document["time"].get("unix_ns") if isinstance(document.get("time"), dict) else None
    return orjson.dumps(document), now_ns if isinstance(now_ns, int) else 0


def _asked(document: bytes) -> tuple[str, bytes | None]:
    """The kind of call, and the agent where the call has money."""
    try:
        whole = orjson.loads(document)
        kind = whole["call"]["kind"]
        money = "budgets" in whole or "estimated_cost_usd" in whole["call"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return "", None
    return kind if isinstance(kind, str) else "", orjson.dumps(whole.get("agent")) if money else None
