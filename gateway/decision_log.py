"""Each decision as an event in the shape of Open Policy Agent's decision log, so that its collectors can read it.

    {"labels", "bundles", "path", "decision_id", "input", "result", "erased", "masked", "requested_by", "timestamp",
     "req_id", "trace_id", "span_id", "error"}

What is JSON already is spliced in as it is: every call pays for its event. Source: OPA 1.22, v1/plugins/logs (EventV1).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway import trace
from policies import log_mask
from policies.decision import Decision
from policies.document import second_in_utc
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

LONGEST_ERROR: Final = 500
"""Characters that an event has of what went wrong."""
ARGUMENTS: Final = "/input/call/arguments"
"""Where a call's arguments are in an event."""

_RESULT: Final = "/input/call/result"
_BEGINNING: Final = (
    b'{"record":"%%b","call":"%%b","labels":%%b,"bundles":%%b,"path":"%b","decision_id":"%%b-%%d",'
    b'"requested_by":%%b,"timestamp":"%%b.%%09dZ","req_id":%%d%%b'
) % PATH.encode()


class DecisionLog:
    """Makes events for one process. `labels` say which gateway decided; `id` and `version` are added."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        named = {**(labels or {}), "id": str(uuid.uuid4()), "version": _version()}
        self._labels = orjson.dumps(named)
        self._count = 0

    def line(self, x: Exchange, index: int, record: bytes) -> bytes:
        """The event of the decision `x.asked[index]`, behind the ledger's own words for it, as a line of the ledger."""
        asked = x.asked[index]
        try:
            if not asked.masks:
                return self._whole(x, index, record)
            if asked.event is not None:
                return _line({**asked.event, "record": record.decode()})
        except (TypeError, ValueError, InputRefused):  # what JSON cannot hold: half a character, or what nests too deep
            pass
        return self._erased(x, index, record)

    async def mask(self, x: Exchange) -> None:
        """Lets each policy take out of the events of its decisions what must not be recorded; in doubt that is
        everything."""
        for index, asked in enumerate(x.asked):
            engine = asked.engine
            if asked.masks or engine is None or not engine.masks:
                continue
            asked.masks = True
            if asked.decision is None:
                continue
            try:
                event = orjson.loads(self._whole(x, index, b"decision"))
                told = {name: value for name, value in event.items() if name not in ("record", "call")}
                log_mask.apply(log_mask.read(await engine.mask(orjson.dumps(told))), event)
                asked.event = event
            except (TypeError, ValueError, Undecided, InputRefused, EngineUnavailable) as error:
                why = getattr(error, "recorded", getattr(error, "internal", "")) or type(error).__name__
                log.error("call %s: its decision cannot be masked, so its record is erased: %s", x.id, why)

    def _whole(self, x: Exchange, index: int, record: bytes) -> bytes:
        asked = x.asked[index]
        decision = asked.decision
        arguments, masked = _arguments(x, asked)
        parts = [self._beginning(x, index, record), b',"input":', asked.question.recorded(arguments)]
        if decision is None:
            parts += (b',"error":', orjson.dumps(_error(x)))
        else:
            parts += (b',"result":', decision.answer)
            if decision.obligations is not NONE:
                masked += _values(decision)
        erased = [ARGUMENTS] if arguments is None else []
        if asked.question.result is not None:  # it is the tool's, and nobody has said what of it must be masked
            erased.append(_RESULT)
        if erased:
            parts += (b',"erased":', orjson.dumps(erased))
        if masked:
            parts += (b',"masked":', orjson.dumps(masked))
        parts.append(b"}\n")
        return b"".join(parts)

    def _erased(self, x: Exchange, index: int, record: bytes) -> bytes:
        """The event without anything that a caller or a policy wrote freely: who was decided on, and how."""
        event: dict[str, Any] = orjson.loads(self._beginning(x, index, record) + b"}")
        decision = x.asked[index].decision
        event["erased"] = ["/input"]
        if decision is None:
            event["error"] = {"code": x.code, "message": ""}
            return _line(event)
        event["result"] = decision.facts()
        for name in ("explanation", "obligations"):
            if event["result"].pop(name, None) is not None:
                event["erased"].append(f"/result/{name}")
        return _line(event)

    def _beginning(self, x: Exchange, index: int, record: bytes) -> bytes:
        """What every event has; not closed yet."""
        asked = x.asked[index]
        second, rest = divmod(asked.question.now_ns, 1_000_000_000)
        self._count += 1
        call = x.id.encode()
        return _BEGINNING % (
            record,
            call,
            self._labels,
            _bundles(asked.revision) if asked.bundles is None else _with_bundles(asked.revision, asked.bundles),
            call,
            index + 1,
            orjson.dumps(x.agent.name if x.agent is not None else ""),
            second_in_utc(second),
            rest,
            self._count,
            _trace(x) if x.fulfilled is not None or b"traceparent" in x.own else b"",
        )


def _version() -> str:
    try:
        return metadata.version("weighbridge")
    except metadata.PackageNotFoundError:  # run from its folders, as in the container
        return "unknown"


def _arguments(x: Exchange, asked: Asked) -> tuple[bytes | None, list[str]]:
    """The arguments as they are recorded, None where they are not, and pointers into the event at what is masked."""
    decision = asked.decision
    arguments, masked = x.assembly.mask.apply(asked.question.arguments)
    if len(x.asked) > 1 or (decision is not None and decision.obligations is not NONE):
        # What must not go to the target has no business in the record of how that was decided.
        arguments, redacted = _redacted(x, arguments)
        masked += redacted
    rendered = orjson.dumps(arguments)
    return (rendered, masked) if len(rendered) <= _MOST_ARGUMENTS else (None, [])


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
    return {"code": x.code, "message": _writable(x.detail[:LONGEST_ERROR])}


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


def _trace(x: Exchange) -> bytes:
    found = (x.fulfilled.sampled if x.fulfilled is not None else None) or trace.read(x.own.get(b"traceparent"))
    return f',"trace_id":"{found.trace_id}","span_id":"{found.span_id}"'.encode() if found is not None else b""


@lru_cache(maxsize=16)
def _bundles(revision: str) -> bytes:
    return orjson.dumps({BUNDLE: {"revision": revision}})


def _with_bundles(revision: str, bundles: Mapping[str, str]) -> bytes:
    told = {name: {"revision": given} for name, given in bundles.items() if name != BUNDLE}
    return orjson.dumps({BUNDLE: {"revision": revision}, **told})


def _line(event: Mapping[str, Any]) -> bytes:
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
