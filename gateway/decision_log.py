"""Each decision as an event in the shape of Open Policy Agent's decision log, so that its collectors can read it.

    {"labels", "bundles", "path", "decision_id", "input", "result", "erased", "masked", "requested_by", "timestamp",
     "req_id", "trace_id", "span_id", "error"}

What is JSON already is spliced in as it is: every call pays for its event. Source: OPA 1.22, v1/plugins/logs (EventV1).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway import trace
from policies import log_mask
from policies.decision import Decision
from policies.engine import Engine
from policies.errors import EngineUnavailable, InputRefused, Undecided
from policies.masks import Mask
from policies.obligations import NONE

if TYPE_CHECKING:
    from gateway.exchange import Asked, Exchange

log = logging.getLogger("weighbridge.decisions")

PATH: Final = "weighbridge/decision"
"""What was asked, as OPA writes the path of `data.weighbridge.decision`."""

BUNDLE: Final = "weighbridge"
"""The name under which the revision of the policy stands."""


_MOST_ARGUMENTS: Final = 8 * 1024
"""Bytes of a call's arguments up to which they are recorded."""

_LONGEST_ERROR: Final = 500
ARGUMENTS: Final = "/input/call/arguments"
"""Where a call's arguments are in an event."""


class DecisionLog:
    """Makes events for one process. `labels` say which gateway decided; `id` and `version` are added."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        named = {**(labels or {}), "id": str(uuid.uuid4()), "version": _version()}
        self._labels = orjson.Fragment(orjson.dumps(named))
        self._count = 0

    def event(self, x: Exchange, index: int, record: str) -> dict[str, Any]:
        """The event of the decision `x.asked[index]`, behind the ledger's own words for it, ready to be written."""
        asked = x.asked[index]
        if not asked.masks:
            return self._whole(x, index, record)
        event = asked.event or self.erased(x, index, record)
        event["record"] = record
        return event

    async def mask(self, x: Exchange, engine: Engine) -> None:
        """Lets the policy take out of the events so far what must not be recorded; in doubt that is everything."""
        for index, asked in enumerate(x.asked):
            if asked.masks:
                continue
            asked.masks = True
            if asked.decision is None:
                continue
            try:
                event = orjson.loads(orjson.dumps(self._whole(x, index, "decision")))
                told = {name: value for name, value in event.items() if name not in ("record", "call")}
                log_mask.apply(log_mask.read(await engine.mask(orjson.dumps(told))), event)
                asked.event = event
            except (TypeError, ValueError, Undecided, InputRefused, EngineUnavailable) as error:
                why = getattr(error, "recorded", getattr(error, "internal", "")) or type(error).__name__
                log.error("call %s: its decision cannot be masked, so its record is erased: %s", x.id, why)

    def _whole(self, x: Exchange, index: int, record: str) -> dict[str, Any]:
        asked = x.asked[index]
        question, decision = asked.question, asked.decision
        arguments, erased, masked = _arguments(x, asked)
        call: dict[str, Any] = {"kind": question.kind, "protocol": question.protocol}
        if question.target:
            call["target"] = question.target
        call["operation"] = question.operation
        if question.stream is not None:
            call["stream"] = question.stream
        if question.session is not None:
            call["session"] = question.session
        if not erased:
            call["arguments"] = arguments
        event = self._event(x, index, record)
        told = event["input"] = {"agent": orjson.Fragment(question.agent), "call": call}
        if question.budgets is not None:
            told["budgets"] = orjson.Fragment(question.budgets)
        if question.approval is not None:
            told["approval"] = orjson.Fragment(question.approval)
        told["time"] = {"unix_ns": question.now_ns, "utc": _second(question.now_ns // 1_000_000_000) + "Z"}
        if decision is None:
            event["error"] = _error(x)
        else:
            event["result"] = orjson.Fragment(decision.answer)
            if decision.obligations is not NONE:
                masked += _values(decision)
        if erased:
            event["erased"] = erased
        if masked:
            event["masked"] = masked
        return event

    def erased(self, x: Exchange, index: int, record: str) -> dict[str, Any]:
        """The event without anything that a caller or a policy wrote freely: who was decided on, and how."""
        event = self._event(x, index, record)
        decision = x.asked[index].decision
        event["erased"] = ["/input"]
        if decision is None:
            event["error"] = {"code": x.code, "message": ""}
            return event
        event["result"] = decision.facts()
        for name in ("explanation", "obligations"):
            if event["result"].pop(name, None) is not None:
                event["erased"].append(f"/result/{name}")
        return event

    def _event(self, x: Exchange, index: int, record: str) -> dict[str, Any]:
        asked = x.asked[index]
        second, rest = divmod(asked.question.now_ns, 1_000_000_000)
        self._count += 1
        event: dict[str, Any] = {
            "record": record,
            "call": x.id,
            "labels": self._labels,
            "bundles": _bundles(asked.revision),
            "path": PATH,
            "decision_id": f"{x.id}-{index + 1}",
            "requested_by": x.agent.name if x.agent is not None else "",
            "timestamp": f"{_second(second)}.{rest:09}Z",
            "req_id": self._count,
        }
        if x.duties is not None or b"traceparent" in x.own:
            event.update(_trace(x))
        return event


def _version() -> str:
    try:
        return metadata.version("weighbridge")
    except metadata.PackageNotFoundError:  # run from its folders, as in the container
        return "unknown"


def _arguments(x: Exchange, asked: Asked) -> tuple[Any, tuple[str, ...], list[str]]:
    """The arguments as they are recorded, and pointers into the event at what was erased and masked of them."""
    decision = asked.decision
    arguments, masked = x.assembly.mask.apply(asked.question.arguments)
    if len(x.asked) > 1 or (decision is not None and decision.obligations is not NONE):
        # What must not go to the target has no business in the record of how that was decided.
        arguments, redacted = _redacted(x, arguments)
        masked += redacted
    if len(asked.question.body) <= _MOST_ARGUMENTS:
        return arguments, (), masked
    try:
        rendered = orjson.dumps(arguments)
    except TypeError:
        return None, (ARGUMENTS,), []
    if len(rendered) > _MOST_ARGUMENTS:
        return None, (ARGUMENTS,), []
    return orjson.Fragment(rendered), (), masked


def _redacted(x: Exchange, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    pointers = {
        edit.pointer.removeprefix("/arguments"): None
        for asked in x.asked
        if asked.decision is not None
        for edit in asked.decision.obligations.redact
        if edit.path[0] == "arguments"
    }
    return Mask(tuple(pointers), ARGUMENTS).apply(arguments) if pointers else (arguments, [])


def _error(x: Exchange) -> dict[str, str]:
    return {"code": x.code, "message": _writable(x.detail[:_LONGEST_ERROR])}


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _values(decision: Decision) -> list[str]:
    """Pointers at what `Decision.answer` masks of the policy's own words."""
    obligations = decision.obligations
    names = [f"headers/{_segment(name)}" for name, _ in obligations.headers]
    names += [f"replace/{_segment(edit.pointer)}" for edit in obligations.replace]
    return [f"/result/obligations/{name}" for name in names]


def _segment(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _trace(x: Exchange) -> dict[str, str]:
    found = (x.duties.sampled if x.duties is not None else None) or trace.read(x.own.get(b"traceparent"))
    return {"trace_id": found.trace_id, "span_id": found.span_id} if found is not None else {}


@lru_cache(maxsize=64)
def _bundles(revision: str) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps({BUNDLE: {"revision": revision}}))


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
