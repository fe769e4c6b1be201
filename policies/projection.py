"""From a question to the part of its document that the policy can read: what the policy is asked, and what a decision
is remembered by.

Leaving out what is not read changes no decision. What is put in is exactly what the whole document holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jiter
import orjson

from policies.document import Question, json_text, time_member
from policies.errors import InputRefused
from policies.reads import Path, Read

Projection = Callable[[Question], bytes | None]
"""The part that is read, as JSON text in UTF-8; None where only the whole document says it exactly. Raises
InputRefused."""

_MOST_REMEMBERED: Final = 16_384
_LONGEST_REMEMBERED: Final = 256
"""How many beginnings are remembered, and of how many characters that the caller has chosen."""
_MINUS_ZERO: Final = re.compile(rb"-0(?![0-9.])")
_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**64 - 1
_PLAIN: Final = (str, bool, type(None))
_SCALARS: Final = frozenset((str, bool, type(None), int, float))


@dataclass(slots=True)
class Shape:
    """What is read of one value: all of it, or some members by name, or something of each member.

    Where it is neither object nor list it is all read: that it has no members is seen by looking for one.
    """

    whole: bool = False
    members: dict[str, Shape] = field(default_factory=dict)
    each: Shape | None = None

    def __or__(self, other: Shape) -> Shape:
        """What is read when both are."""
        if self.whole or other.whole:
            return Shape(whole=True)
        members = {
            name: (self.members.get(name) or Shape()) | (other.members.get(name) or Shape())
            for name in (*self.members, *other.members)
        }
        return Shape(False, members, _either(self.each, other.each))

    def of(self, value: Any) -> Any:
        """The part of a JSON value that is read. An object keeps the keys, and a list the places, that can be asked
        for."""
        if self.whole or type(value) in _SCALARS:
            return value
        if isinstance(value, Mapping):
            if self.each is None:
                return {name: shape.of(value[name]) for name, shape in self.members.items() if name in value}
            return {name: self.members.get(name, self.each).of(inner) for name, inner in value.items()}
        if isinstance(value, list) and self.each is not None:
            return [self.each.of(inner) for inner in value]
        return value


def shape(reads: Iterable[tuple[Path, bool]]) -> Shape:
    """What is read, given paths and for each whether all that stands there is, or only whether it is there."""
    root = Shape()
    for path, whole in reads:
        root |= _along(path, whole)
    return _told_apart(root)


def projection(reads: Iterable[Read], kind: str) -> Projection:
    """How questions about calls of this kind are put before a policy that reads so much."""
    root = shape((read.path, read.whole) for read in reads)
    if root.whole or root.each is not None:
        return _everything
    begin = _beginning(kind, root)
    call = root.members.get("call", Shape())
    session, estimated, phase = (_reads(call, name) for name in ("session", "estimated_cost_usd", "phase"))
    result = call.members.get("result") if call.each is None and not call.whole else Shape(whole=True)
    read = call.members.get("arguments") if call.each is None and not call.whole else Shape(whole=True)
    arguments = None if read is None else _arguments(read)
    closing = b"}" if "call" in root.members else b""
    later = [
        (b',"%b":' % name.encode(), part, root.members[name])
        for name, part in (("budgets", _budgets), ("approval", _approval))
        if name in root.members
    ]
    timed = "time" in root.members
    begun: dict[tuple[object, ...], bytes] = {}

    def project(question: Question) -> bytes | None:
        key = (question.agent, question.target, question.operation, question.protocol, question.stream)
        beginning = begun.get(key)
        if beginning is None:
            beginning = begin(question)
            # What is long was chosen by the caller and would only fill the memory.
            if len(question.target) + len(question.operation) <= _LONGEST_REMEMBERED:
                if len(begun) >= _MOST_REMEMBERED:
                    begun.clear()
                begun[key] = beginning
        parts = [beginning]
        if arguments is not None:
            told = arguments(question)
            if told is None:
                return None
            parts += (b',"arguments":', told)
        if session and question.session is not None:
            parts += (b',"session":', json_text(question.session))
        if estimated:
            cost = question.estimated_cost()
            if cost is not None:
                parts += (b',"estimated_cost_usd":', cost)
        if question.phase is not None:
            if phase:
                parts += (b',"phase":', json_text(question.phase))
            if result is not None and question.result is not None:
                told = question.result if result.whole else _exact(result.of(_parsed(question.result)), question.result)
                if told is None:
                    return None
                parts += (b',"result":', told)
        parts.append(closing)
        for name, part, inner in later:
            given = part(question)
            if given is not None:
                parts += (name, given if inner.whole else orjson.dumps(inner.of(orjson.loads(given))))
        if timed:
            parts.append(time_member(question.now_ns))
        parts.append(b"}")
        text = b"".join(parts)
        # Where there is neither agent nor call, the first member has a comma before it.
        return text if beginning != b"{" or text == b"{}" else b"{" + text[2:]

    return project


def _parsed(text: bytes) -> Any:
    return jiter.from_json(text, allow_inf_nan=False)


def _everything(question: Question) -> bytes:
    return question.document()


def _budgets(question: Question) -> bytes | None:
    return question.budgets()


def _approval(question: Question) -> bytes | None:
    return question.approval


def _reads(call: Shape, name: str) -> bool:
    return call.whole or call.each is not None or name in call.members


def _beginning(kind: str, root: Shape) -> Callable[[Question], bytes]:
    """The part that calls have in common: the agent, and the call without what is in it. It is not closed yet."""
    agent = root.members.get("agent")
    call = root.members.get("call")
    protocol, target, operation, stream = (
        call is not None and _reads(call, name) for name in ("protocol", "target", "operation", "stream")
    )

    def begin(question: Question) -> bytes:
        parts = [b"{"]
        if agent is not None:
            told = question.agent if agent.whole else orjson.dumps(agent.of(orjson.loads(question.agent)))
            parts += (b'"agent":', told)
        if call is not None:
            parts += (b"," if agent is not None else b"", b'"call":{"kind":', orjson.dumps(kind))
        if protocol:
            parts += (b',"protocol":', json_text(question.protocol))
        if target and question.target:
            parts += (b',"target":', json_text(question.target))
        if operation:
            parts += (b',"operation":', json_text(question.operation))
        if stream and question.stream is not None:
            parts.append(b',"stream":true' if question.stream else b',"stream":false')
        return b"".join(parts)

    return begin


def _arguments(read: Shape) -> Callable[[Question], bytes | None]:
    if read.whole or read.each is not None:
        return lambda question: question.body or b"{}"
    fields = [(name, b'"%b":' % _name(name), inner) for name, inner in read.members.items()]

    def arguments(question: Question) -> bytes | None:
        given = question.arguments
        parts = []
        for name, label, inner in fields:
            if name in given:
                text = _exact(inner.of(given[name]), question.body)
                if text is None:
                    return None
                parts.append(label + text)
        return b"{%b}" % b",".join(parts)

    return arguments


def _name(name: str) -> bytes:
    # The quotes are the label's own.
    return orjson.dumps(name)[1:-1]


def _exact(value: Any, body: bytes) -> bytes | None:
    """A parsed value as JSON text that a reader takes for the same as its own text in `body`; None if there is none.

    Numbers are read as 64 bits or binary fractions here as there. But the parsed value has lost the sign of `-0`, and
    what lies beyond both is up to the reader. Raises InputRefused for a text that is not Unicode.
    """
    if type(value) is int:
        if value:
            return b"%d" % value if _SMALLEST <= value <= _LARGEST else None
        return None if b"-0" in body and _MINUS_ZERO.search(body) else b"0"
    if isinstance(value, _PLAIN):
        try:
            return orjson.dumps(value)
        except TypeError:
            raise InputRefused("The call holds a text that is not valid Unicode.") from None
    try:
        text = orjson.dumps(value)
    except (TypeError, RecursionError):
        return None
    if b"null" in text and orjson.loads(text) != value:
        return None
    if b"0" in text and b"-0" in body and _MINUS_ZERO.search(body):
        return None
    return text


def _along(path: Path, whole: bool) -> Shape:
    made = Shape(whole=whole)
    for step in reversed(path):
        made = Shape(each=made) if step is None else Shape(members={step: made})
    return made


def _told_apart(made: Shape) -> Shape:
    """What is read of each member is read of those with a name as well."""
    each = None if made.each is None else _told_apart(made.each)
    members = {
        name: _told_apart(inner if made.each is None else inner | made.each) for name, inner in made.members.items()
    }
    return Shape(made.whole, members, each)


def _either(one: Shape | None, other: Shape | None) -> Shape | None:
    if one is None or other is None:
        return one or other
    return one | other
