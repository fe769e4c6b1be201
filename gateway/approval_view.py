"""An approval as it is shown to people, agents and their systems: all that will run, with nothing hidden in it."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import orjson

from policies import binding
from policies.approvals import Approval, State
from policies.money import usd_text

WIDTH: Final = 100
"""Characters of a line, where nothing else is asked for."""

_SECOND: Final = 1_000_000_000
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp", "Zs"})
"""Categories of Unicode of which nothing is seen, which pass for a space, or which change how others are seen."""
_UNSEEN: Final = frozenset(
    [
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0xFFFC, 0x16FE4, 0x1D159),
        *range(0x180B, 0x1810),
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    ]
)
"""Letters, marks and symbols that are not seen either: those which Unicode has fonts ignore, and those drawn blank."""
_MOST_MARKS: Final = 3
"""Marks above and below one letter, of which no living language needs more."""
_LONGEST_RUN: Final = 100
"""How often the same character follows itself before its number is told: a screen of it would hide what comes after."""
_RUN: Final = re.compile(rf"(.)\1{{{_LONGEST_RUN},}}", re.DOTALL)
_UNIT: Final = re.compile(r"\\u\{[^}]*\}|\\u[0-9a-f]{4}|\\.|.", re.DOTALL)
_MOST_SEEN: Final = 4096
"""Characters of which it is remembered how they are shown."""
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class _Seen(dict[int, str]):
    """What is shown of a character, by its number, worked out when it is first needed."""

    def __missing__(self, number: int) -> str:
        char = chr(number)
        hidden = number in _UNSEEN or (char != " " and unicodedata.category(char) in _HIDDEN)
        shown = _NAMED.get(char, f"\\u{{{number:x}}}") if hidden else char
        if len(self) < _MOST_SEEN:
            self[number] = shown
        return shown


_seen: Final = _Seen()


class Number:
    """A number of a JSON text, as it came: `1`, `1.0` and `1e0` are three."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Number({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def parsed(text: str | bytes) -> Any:
    """A JSON text, its numbers as `Number`. Raises ValueError, also for a key that is there twice, and for NaN."""
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_once,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError("it nests too deep") from None


def json_text(value: Any) -> bytes:
    """What `parsed` has read, in one line, numbers as they came. Raises TypeError for what no JSON text can hold."""
    return orjson.dumps(value, default=_digits)


def visible(text: str) -> str:
    """One line in which everything is seen: what has no shape of its own, or reorders others, as `\\u{...}`; marks that
    pile up, too; and a character that follows itself for long as `\\u{NUMBER*TIMES}`.

    A backslash stays as it is: in JSON, which is what calls say, it is doubled already.
    """
    if text.isascii() and text.isprintable() and len(text) <= _LONGEST_RUN:
        return text
    return _in_pieces(text, _each)


def lines(value: Any, width: int = WIDTH) -> Iterator[str]:
    """A JSON value for people, two spaces a level, everything in it visible.

    A text that is long, or has line ends, goes on in lines that begin with `| `; no other line does, whatever it says.
    """
    return _lines(value, "", "", "", width)


def arguments(approval: Approval) -> Any:
    """What is asked for, as the policy has seen it, with numbers as `Number`; None where it is no JSON."""
    text = binding.arguments(approval.call)
    return parsed(text) if text else None


def beside(approval: Approval) -> str | bytes | None:
    """The body that will be sent where it is no JSON, so that arguments are at best told of it; None for none."""
    if not approval.call.body or binding.is_json(approval.call):
        return None
    try:
        return approval.call.body.decode()
    except UnicodeDecodeError:
        return approval.call.body


def shown(approval: Approval) -> dict[str, Any]:
    """As the contract has it; times in Unix seconds. Amounts and arguments are JSON texts, exact to the digit."""
    call = approval.call
    facts: dict[str, Any] = {
        "id": approval.id,
        "state": approval.state.value,
        "agent": call.agent,
        "tenant": call.tenant,
        "session": call.session,
        "kind": call.kind,
        "protocol": call.protocol,
        "target": call.target,
        "operation": call.operation,
        "arguments": None,
        "body": None,
        "body_base64": None,
        "method": call.method,
        "path": call.path,
        "query": call.query.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in call.headers],
        "stream": call.stream,
        "required_approvals": list(approval.needs),
        "missing_approvals": list(approval.missing),
        "votes": [
            {
                "person": each.person,
                "approve": each.yes,
                "roles": list(each.roles),
                "at": each.at / _SECOND,
                "comment": each.comment,
            }
            for each in approval.votes
        ],
        "risk_level": approval.risk_level,
        "explanation": approval.explanation,
        "reason": approval.reason,
        "earlier": approval.earlier,
        "estimated_cost_usd": orjson.Fragment(usd_text(call.cost)) if call.cost is not None else None,
        "policy": approval.revision,
        "binding": approval.binding,
        "call": approval.call_id,
        "used_by": approval.claimed_by,
        "instead_of": approval.instead_of,
        "became": approval.became,
        "version": approval.version,
        "created": approval.created / _SECOND,
        "changed": approval.changed / _SECOND,
        "decide_by": approval.decide_by / _SECOND,
        "use_by": approval.use_by / _SECOND if approval.use_by is not None else None,
    }
    if text := binding.arguments(call):
        facts["arguments"] = orjson.Fragment(text)
    body = beside(approval)
    if isinstance(body, str):
        facts["body"] = body
    elif body is not None:
        facts["body_base64"] = base64.b64encode(body).decode()
    return facts


_FOR_AGENTS: Final = (
    "id", "state", "agent", "tenant", "protocol", "target", "operation", "required_approvals", "missing_approvals",
    "explanation", "reason", "earlier", "became", "created", "decide_by", "use_by",
)  # fmt: skip
_IN_SHORT: Final = (
    "id", "state", "agent", "tenant", "session", "kind", "protocol", "target", "operation", "required_approvals",
    "missing_approvals", "risk_level", "explanation", "reason", "earlier", "estimated_cost_usd", "instead_of", "became",
    "version", "created", "changed", "decide_by", "use_by",
)  # fmt: skip


def shown_to_agent(approval: Approval) -> Mapping[str, Any]:
    """The same without who has said what, and without what the agent has sent itself.

    Nothing is missing any more once people are not asked any more: an agent that polls has nobody to wait for.
    """
    facts = _some(approval, _FOR_AGENTS)
    return facts if approval.state is State.PENDING else {**facts, "missing_approvals": []}


def shown_in_short(approval: Approval) -> Mapping[str, Any]:
    """The same without what can be long: for those who follow many."""
    return _some(approval, _IN_SHORT)


def _some(approval: Approval, names: tuple[str, ...]) -> Mapping[str, Any]:
    facts = shown(approval)
    return {name: facts[name] for name in names}


def _lines(value: Any, indent: str, lead: str, tail: str, width: int) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        begin, end = "{}" if isinstance(value, dict) else "[]"
        yield from _folded(indent, f"{lead}{begin}", width)
        inside = value.items() if isinstance(value, dict) else ((None, each) for each in value)
        for place, (key, each) in enumerate(inside, 1):
            named = f"{_quoted(key)}: " if key is not None else ""
            yield from _lines(each, indent + "  ", named, "," if place < len(value) else "", width)
        yield f"{indent}{end}{tail}"
    else:
        yield from _folded(indent, f"{lead}{_scalar(value)}{tail}", width)


def _folded(indent: str, text: str, width: int) -> Iterator[str]:
    if len(text) <= width and "\\n" not in text:
        yield indent + text
        return
    line, began, ended = "", indent, False
    for unit in _UNIT.findall(text):
        full = len(line) + len(unit) > width and unicodedata.category(unit[0])[0] != "M"
        if line and (full or (ended and unit not in ("\\n", '"', ","))):
            yield began + line
            line, began = "", f"| {indent}"
        line += unit
        ended = unit == "\\n"
    yield began + line


def _scalar(value: Any) -> str:
    if isinstance(value, Number):
        return value.text
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """A text as JSON has it, with everything in it visible."""
    return f'"{_in_pieces(text, _in_json)}"'


def _in_json(text: str) -> str:
    return _each(json.dumps(text, ensure_ascii=False)[1:-1])


def _in_pieces(text: str, shown: Callable[[str], str]) -> str:
    """What stands between long runs of one character, as it is shown, and how long these are."""
    said: list[str] = []
    place = 0
    for run in _RUN.finditer(text):
        said += shown(text[place : run.start()]), f"\\u{{{ord(run[1]):x}*{len(run[0])}}}"
        place = run.end()
    return "".join([*said, shown(text[place:])])


def _each(text: str) -> str:
    seen = text.translate(_seen)
    return seen if seen.isascii() else _with_few_marks(seen)


def _with_few_marks(text: str) -> str:
    """A mark stays where it is one of a few on something that can bear one: not on a quote, nor on the line's edge."""
    if not any(unicodedata.category(char)[0] == "M" for char in set(text)):
        return text
    said, left = [], 0
    for char in text:
        kind = unicodedata.category(char)[0]
        if kind != "M":
            left = _MOST_MARKS if kind in "LN" else 0
        elif left:
            left -= 1
        else:
            char = f"\\u{{{ord(char):x}}}"
        said.append(char)
    return "".join(said)


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        raise ValueError("it has a key twice in one object")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"it has {text}, which is no JSON")


def _digits(value: object) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    raise TypeError
