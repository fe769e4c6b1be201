"""Why a call was refused: its decision as it was recorded, and what the same policy says of the recorded input again.

What was masked or erased when the decision was recorded is not there to be decided on again. Where the answer differs
then, nothing follows from it, and that is what is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from gateway.reader import decision_of
from policies.decision import Decision
from policies.embedded import EmbeddedEngine
from policies.engine import Engine
from policies.errors import PolicyError, Undecided
from policies.explain import LARGEST, Outline, Step, explain, outlined

Verdict = Literal["same", "differs", "cannot be told"]
"""What comes of deciding again: the recorded answer, another one, or nothing that could be compared."""

_MOST_OUTLINES: Final = 4
_COMPARED: Final = ("decision", "risk_level", "required_approvals", "explanation")
"""What of an answer is recorded as it was; the values of obligations are masked."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as the ledger has it. `event` is in the shape of OPA's decision log; `code` is how the call ended,
    None while it is under way."""

    event: Mapping[str, Any]
    code: str | None

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
        listed = [each for name in ("erased", "masked") if isinstance(each := self.event.get(name), list)]
        pointers = [pointer for each in listed for pointer in each if isinstance(pointer, str)]
        return [pointer for pointer in pointers if pointer.startswith("/input")]


@dataclass(frozen=True, slots=True)
class Explained:
    """An answer with what led to it. `rules` is empty where `unknown` says why nobody can tell.

    `reads` says what a policy reads to decide calls of this kind; `unstable` why its decisions are not reused.
    """

    decision: Decision | None
    failure: str
    rules: tuple[Step, ...]
    unknown: str
    reads: tuple[str, ...]
    unstable: tuple[str, ...]


class Explainer:
    """Explains decisions of one process, keeping the outlines of the last revisions."""

    def __init__(self, largest: int = LARGEST) -> None:
        """`largest`: characters of policy whose decisions are explained."""
        self._largest = largest
        self._outlines: dict[str, Outline] = {}

    async def explain(self, engine: Engine, document: bytes, now_ns: int) -> Explained:
        """Decides on `document`, and says why. Raises InputRefused, EngineUnavailable."""
        decision: Decision | None = None
        failure = ""
        try:
            decision = await engine.evaluate(document, now_ns)
        except Undecided as error:
            failure = error.internal
        if not isinstance(engine, EmbeddedEngine):
            return Explained(decision, failure, (), "An OPA server does not tell which rules decided.", (), ())
        kind, has_budgets = _asked(document)
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
            tuple(map(str, (*reads.unstable, *(reads.money if has_budgets else ())))),
        )

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
    return Recorded(event or {}, str(outcome["code"]) if outcome is not None and "code" in outcome else None)


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


def verdict(before: Recorded, now: Explained) -> Verdict:
    """Whether a recorded decision comes about again."""
    then = before.event.get("result")
    if not isinstance(then, dict) or now.decision is None:
        return "cannot be told"
    again = orjson.loads(orjson.dumps(now.decision.facts()))
    if all(then.get(field) == again.get(field) for field in _COMPARED):
        return "same"
    return "cannot be told" if before.missing else "differs"


def replayable(before: Recorded) -> tuple[bytes, int] | None:
    """The recorded input and its time in Unix nanoseconds; None where the input was erased."""
    document = before.event.get("input")
    if not isinstance(document, dict):
        return None
    now_ns = document["time"].get("unix_ns") if isinstance(document.get("time"), dict) else None
    return orjson.dumps(document), now_ns if isinstance(now_ns, int) else 0


def _asked(document: bytes) -> tuple[str, bool]:
    """The kind of call, and whether it is paid from budgets."""
    try:
        whole = orjson.loads(document)
        kind = whole["call"]["kind"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return "", False
    return kind if isinstance(kind, str) else "", "budgets" in whole
