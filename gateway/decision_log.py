"""Each decision as an event in the shape of Open Policy Agent's decision log, so that its collectors can read it.

    {"labels", "bundles", "path", "decision_id", "input", "result", "erased", "masked", "requested_by", "timestamp",
     "req_id", "trace_id", "span_id", "error"}

Rendered by splicing what is JSON already: every call pays for it. Source: OPA 1.22, v1/plugins/logs (EventV1).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway import trace
from policies import document
from policies.decision import Decision
from policies.document import Question
from policies.errors import InputRefused
from policies.masks import Mask
from policies.obligations import NONE

if TYPE_CHECKING:
    from gateway.exchange import Asked, Exchange

PATH: Final = "weighbridge/decision"
"""What was asked, as OPA writes the path of `data.weighbridge.decision`."""

BUNDLE: Final = "weighbridge"
"""The name under which the revision of the policy stands."""


_MOST_ARGUMENTS: Final = 8 * 1024
"""Bytes of a call's arguments up to which they are recorded."""

_MOST_REVISIONS: Final = 64
_LONGEST_ERROR: Final = 500
_ARGUMENTS: Final = "/input/call/arguments"


class DecisionLog:
    """Renders events for one process. `labels` say which gateway decided; `id` and `version` are added."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = orjson.dumps({**(labels or {}), "id": str(uuid.uuid4()), "version": _version()})
        self._heads: dict[str, bytes] = {}
        self._count = 0

    def event(self, x: Exchange, index: int) -> bytes:
        """The event of the decision `x.asked[index]` without its opening brace, and with the end of its line.

        Never raises for what a caller chose: an input that JSON cannot hold is erased.
        """
        asked = x.asked[index]
        if asked.event is not None:
            return asked.event
        if asked.masks:
            return self.erased(x, index)
        question, decision = asked.question, asked.decision
        arguments, erased, masked = _arguments(x, asked)
        try:
            document = _input(question, arguments)
        except InputRefused:
            return self.erased(x, index)
        if decision is not None and decision.obligations is not NONE:
            masked += _values(decision)
        return self._event(x, index, b'"input":%b,' % document, _result(x, decision), _notes(erased, masked))

    def erased(self, x: Exchange, index: int) -> bytes:
        """The event without anything that a caller or a policy wrote freely: who was decided on, and how."""
        decision = x.asked[index].decision
        result = b""
        erased: tuple[str, ...] = ("/input",)
        if decision is not None:
            facts = decision.facts()
            free = [name for name in ("explanation", "obligations") if facts.pop(name, None) is not None]
            result = b'"result":%b,' % orjson.dumps(facts)
            erased = ("/input", *(f"/result/{name}" for name in free))
        return self._event(x, index, b"", result, _notes(erased, ()))

    def _event(self, x: Exchange, index: int, document: bytes, result: bytes, notes: bytes) -> bytes:
        asked = x.asked[index]
        head = self._heads.get(asked.revision) or self._head(asked.revision)
        now_ns = asked.question.now_ns
        self._count += 1
        return b'%b"decision_id":"%b-%d",%b%b%b"requested_by":%b,"timestamp":"%b.%09dZ","req_id":%d%b}\n' % (
            head,
            x.id.encode(),
            index + 1,
            document,
            result,
            notes,
            _who(x),
            _second(now_ns // 1_000_000_000),
            now_ns % 1_000_000_000,
            self._count,
            _trace(x) if x.duties is not None or b"traceparent" in x.own else b"",
        )

    def _head(self, revision: str) -> bytes:
        """What all events of one revision begin with."""
        if len(self._heads) >= _MOST_REVISIONS:
            self._heads.clear()
        bundles = b'"bundles":%b,' % orjson.dumps({BUNDLE: {"revision": revision}}) if revision else b""
        head = b'"labels":%b,%b"path":"%b",' % (self._labels, bundles, PATH.encode())
        self._heads[revision] = head
        return head


def _version() -> str:
    try:
        return metadata.version("weighbridge")
    except metadata.PackageNotFoundError:  # run from its folders, as in the container
        return "unknown"


def _arguments(x: Exchange, asked: Asked) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """The arguments as they are recorded, and pointers into the event at what was erased and masked of them."""
    question, decision = asked.question, asked.decision
    arguments, hits = x.assembly.mask.apply(question.arguments)
    if len(x.asked) > 1 or (decision is not None and decision.obligations is not NONE):
        # What must not go to the target has no business in the record of how that was decided.
        arguments, redacted = _redacted(x, arguments)
        hits += redacted
    if not hits and len(question.body) <= _MOST_ARGUMENTS and b"\n" not in question.body and b"\r" not in question.body:
        return question.body, (), ()
    try:
        rendered = orjson.dumps(arguments)
    except (TypeError, ValueError, RecursionError):
        return b"", (_ARGUMENTS,), ()
    if len(rendered) > _MOST_ARGUMENTS:
        return b"", (_ARGUMENTS,), ()
    return rendered, (), tuple([_ARGUMENTS + hit for hit in hits])


def _redacted(x: Exchange, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    pointers = {
        edit.pointer.removeprefix("/arguments"): None
        for asked in x.asked
        if asked.decision is not None
        for edit in asked.decision.obligations.redact
        if edit.path[0] == "arguments"
    }
    return Mask(tuple(pointers)).apply(arguments) if pointers else (arguments, [])


def _input(question: Question, arguments: bytes) -> bytes:
    """The policy's input with these arguments in place of the call's. Raises InputRefused."""
    return document.render(
        question.agent,
        question.kind,
        question.protocol,
        question.target,
        question.operation,
        question.stream,
        arguments,
        question.session,
        question.now_ns,
        question.budgets,
        question.approval,
    )


def _result(x: Exchange, decision: Decision | None) -> bytes:
    if decision is not None:
        return b'"result":%b,' % decision.answer
    return b'"error":%b,' % orjson.dumps({"code": x.code, "message": _writable(x.detail[:_LONGEST_ERROR])})


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _values(decision: Decision) -> tuple[str, ...]:
    """Pointers at what `Decision.answer` masks of the policy's own words."""
    obligations = decision.obligations
    names = [f"headers/{_segment(name)}" for name, _ in obligations.headers]
    names += [f"replace/{_segment(edit.pointer)}" for edit in obligations.replace]
    return tuple(f"/result/obligations/{name}" for name in names)


def _segment(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


@lru_cache(maxsize=256)
def _notes(erased: Sequence[str], masked: Sequence[str]) -> bytes:
    parts = []
    if erased:
        parts.append(b'"erased":%b,' % orjson.dumps(erased))
    if masked:
        parts.append(b'"masked":%b,' % orjson.dumps(masked))
    return b"".join(parts)


def _who(x: Exchange) -> bytes:
    return document.quoted(x.agent.name) if x.agent is not None else b'""'


def _trace(x: Exchange) -> bytes:
    found = (x.duties.sampled if x.duties is not None else None) or trace.read(x.own.get(b"traceparent"))
    if found is None:
        return b""
    return b',"trace_id":"%b","span_id":"%b"' % (found.trace_id.encode(), found.span_id.encode())


@lru_cache(maxsize=4)
def _second(second: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
