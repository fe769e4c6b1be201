"""From a question to the part of its document that the policy can read: what the policy is asked, and what a decision
is remembered by.

Leaving out what is not read changes no decision. What is put in is exactly what the whole document holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from policies.document import Question, json_text, quoted, time_member
from policies.errors import InputRefused
from policies.reads import KindReads, Path

Projection = Callable[[Question], bytes | None]
"""The part that is read, as JSON text in UTF-8; None where only the whole document says it exactly. Raises
InputRefused."""

_MOST_AGENTS: Final = 65_536
_MINUS_ZERO: Final = re.compile(rb"-0(?![0-9.])")
_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**64 - 1
_PLAIN: Final = (str, bool, type(None))


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
        if self.whole:
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


def projection(reads: KindReads, kind: str) -> Projection:
    """How questions about calls of this kind are put before a policy that reads so much."""
    root = shape((read.path, read.whole) for read in reads.reads)
    if root.whole or root.each is not None:
        return _everything
    head = _head(kind, root)
    call = _call(root.members["call"]) if "call" in root.members else None
    later = [
        (b',"%b":' % name.encode(), part, root.members[name])
        for name, part in (("budgets", _budgets), ("approval", _approval))
        if name in root.members
    ]
    timed = "time" in root.members
    # The first member stands in the head, when there is one, and needs no comma.
    bare = "agent" not in root.members and call is None

    def project(question: Question) -> bytes | None:
        parts = [head(question.agent)]
        if call is not None:
            told = call(question)
            if told is None:
                return None
            parts.append(told)
        for name, part, read in later:
            given = part(question)
            if given is not None:
                parts += (name, given if read.whole else orjson.dumps(read.of(orjson.loads(given))))
        if timed:
            parts.append(time_member(question.now_ns))
        parts.append(b"}")
        text = b"".join(parts)
        return b"{" + text[2:] if bare and text[1:2] == b"," else text

    return project


def _everything(question: Question) -> bytes:
    return question.document()


def _budgets(question: Question) -> bytes | None:
    return question.budgets


def _approval(question: Question) -> bytes | None:
    return question.approval


def _head(kind: str, root: Shape) -> Callable[[bytes], bytes]:
    """The beginning up to the kind of the call: the same for all calls of an agent, so made once for each."""
    agent = root.members.get("agent")
    opening = b'"call":{"kind":%b' % orjson.dumps(kind) if "call" in root.members else b""
    made: dict[bytes, bytes] = {}

    def head(fragment: bytes) -> bytes:
        known = made.get(fragment)
        if known is None:
            if len(made) >= _MOST_AGENTS:
                made.clear()
            comma = b"," if agent is not None and opening else b""
            made[fragment] = known = b"".join((b"{", _agent(agent, fragment), comma, opening))
        return known

    return head


def _agent(read: Shape | None, fragment: bytes) -> bytes:
    if read is None:
        return b""
    return b'"agent":%b' % (fragment if read.whole else orjson.dumps(read.of(orjson.loads(fragment))))


def _call(read: Shape) -> Callable[[Question], bytes | None]:
    """What stands between the kind of the call and the end of it."""
    some = not (read.whole or read.each is not None)
    protocol, target, operation, stream, session = (
        not some or name in read.members for name in ("protocol", "target", "operation", "stream", "session")
    )
    inner = read.members.get("arguments") if some else Shape(whole=True)
    arguments = None if inner is None else _arguments(inner)

    def call(question: Question) -> bytes | None:
        parts: list[bytes] = []
        if protocol:
            parts += (b',"protocol":', quoted(question.protocol))
        if target and question.target:
            parts += (b',"target":', quoted(question.target))
        if operation:
            parts += (b',"operation":', quoted(question.operation))
        if stream and question.stream is not None:
            parts.append(b',"stream":true' if question.stream else b',"stream":false')
        if session and question.session is not None:
            parts += (b',"session":', json_text(question.session))
        if arguments is not None:
            told = arguments(question)
            if told is None:
                return None
            parts += (b',"arguments":', told)
        parts.append(b"}")
        return b"".join(parts)

    return call


def _arguments(read: Shape) -> Callable[[Question], bytes | None]:
    if read.whole or read.each is not None:
        return lambda question: question.body or b"{}"
    fields = [(name, b'"%b":' % _name(name), inner) for name, inner in read.members.items()]

    def arguments(question: Question) -> bytes | None:
        given, body = question.arguments, question.body
        parts = []
        for name, label, inner in fields:
            if name in given:
                text = _exact(inner.of(given[name]), body)
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
    if isinstance(value, _PLAIN):
        try:
            return orjson.dumps(value)
        except TypeError:
            raise InputRefused("The call holds a text that is not valid Unicode.") from None
    if isinstance(value, int):
        if not value:
            return None if b"-0" in body and _MINUS_ZERO.search(body) else b"0"
        return b"%d" % value if _SMALLEST <= value <= _LARGEST else None
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
