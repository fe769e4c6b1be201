"""An approval as the console's templates show it: all that will run, line by line, with nothing hidden in it."""

from __future__ import annotations

import base64
import datetime
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.approval_view import Number, beside, json_text, lines, parsed, visible
from policies.approvals import Approval, State
from policies.binding import Change, Unbindable, arguments, changes

LONGEST_EDITED: Final = 256 * 1024
"""Characters of arguments that can be changed on the page; for longer ones there is the API."""
MOST_PINNED: Final = 40
"""Arguments of a call that a grant can be about one by one."""

STATES: Final = {
    State.PENDING: "it waits for people",
    State.APPROVED: "it runs when its agent comes for it",
    State.DENIED: "somebody who may has said no",
    State.EXPIRED: "nobody, or not enough people, decided in time",
    State.CANCELLED: "it was taken back before it was decided",
    State.SUPERSEDED: "the same call with other arguments has its place",
    State.CONSUMED: "it is running now",
    State.DONE: "it ran",
    State.UNKNOWN: "it may have run, and is never sent again by itself; look at its target",
    State.LAPSED: "its agent did not come for it in time",
    State.REVOKED: "it was taken back after people had said yes",
}
"""What a state's name leaves open."""

_SECOND: Final = 1_000_000_000
_MOST_LOOK_ALIKES: Final = 20
_SHORT: Final = 120
"""Bytes of an argument where it only is to be recognised."""
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})
_ALPHABETS: Final = ("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU", "FULLWIDTH")
"""Those of which some letters look like letters of another one."""
_WORD: Final = re.compile(r"\w+")
_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*"?')

Piece = tuple[str, bool]
"""A part of a line, and whether it is written in its own direction, apart from the rest."""


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent. `kind` says how it is shown; a line is a text, or pieces where some run from right to left."""

    kind: str
    size: int
    lines: Sequence[str | Sequence[Piece]]
    look_alikes: Sequence[str]


def body_of(approval: Approval) -> Body:
    """Takes time with the body's length, about 1 s for 10 MB: a long one is for a thread."""
    said, body = arguments(approval.call), beside(approval)
    if not said and body is None:
        return Body("none", 0, (), ())
    shown = list(lines(parsed(said))) if said else []
    if said and body is not None:
        shown.append("The body, as it is sent:")
    kind = "json" if said else "text" if isinstance(body, str) else "base64"
    if body is not None:
        shown += lines(body if isinstance(body, str) else base64.b64encode(body).decode())
    size = len(approval.call.body) if body is not None else len(said)
    return Body(kind, size, [in_pieces(each) for each in shown], look_alikes(shown))


def in_pieces(line: str) -> str | Sequence[Piece]:
    """A line whose texts cannot move what stands between them, though they run from right to left."""
    if line.isascii() or not any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in line):
        return line
    if line.startswith("| "):
        return [("| ", False), (line[2:], True)]
    pieces: list[Piece] = []
    place = 0
    for text in _TEXT.finditer(line):
        pieces += (line[place : text.start()], False), (text[0], True)
        place = text.end()
    return [*pieces, (line[place:], False)]


def described(definition: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """What a tool's server says of it, under the names of the protocol: words that nobody here has written."""
    notes = definition.get("annotations")
    title = definition.get("title") or (notes.get("title") if isinstance(notes, dict) else None)
    said = (("Title", title), ("Description", definition.get("description")))
    return [(name, text) for name, text in said if isinstance(text, str) and text]


def look_alikes(texts: Collection[str]) -> Sequence[str]:
    """What is said of words that mix letters of alphabets which look like each other, as of `pay` with a Cyrillic a."""
    found: dict[str, str] = {}
    for text in texts:
        if text.isascii():
            continue
        for word in _WORD.findall(text):
            if word.isascii() or word in found:
                continue
            odd = [char for char in dict.fromkeys(word) if _alphabet(char) not in (None, "LATIN")]
            if not odd or {_alphabet(char) for char in word} - {None} == {_alphabet(odd[0])} != {"FULLWIDTH"}:
                continue
            names = ", ".join(f"U+{ord(char):04X} {unicodedata.name(char, '')}" for char in odd[:3])
            found[word] = f"{visible(word[:40])} has {names}"
            if len(found) == _MOST_LOOK_ALIKES:
                return list(found.values())
    return list(found.values())


def _alphabet(char: str) -> str | None:
    name = unicodedata.name(char, "")
    return next((each for each in _ALPHABETS if name.startswith(each)), None)


def has_arguments(approval: Approval) -> bool:
    return arguments(approval.call) != b""


def editable(approval: Approval) -> str | None:
    """The arguments as a person may change them; None where the page cannot."""
    said = arguments(approval.call)
    if not said or len(said) > LONGEST_EDITED:
        return None
    value = parsed(said)
    if not isinstance(value, dict):
        return None
    text = orjson.dumps(value, default=_digits, option=orjson.OPT_INDENT_2).decode()
    seen = text.translate({ord(char): _escaped(char) for char in set(text)})
    return seen if len(seen) <= LONGEST_EDITED else None


def _escaped(char: str) -> str:
    """As JSON may also write it, where nothing is seen of it as it is."""
    seen = char == "\n" or visible(f"a{char}") == f"a{char}"
    return char if seen else json.dumps(char)[1:-1]


def _digits(value: object) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    raise TypeError


def members(approval: Approval) -> Sequence[tuple[str, str]]:
    """The arguments one by one, each as its JSON Pointer and its value in short; none where there are too many."""
    if not has_arguments(approval):
        return ()
    value = parsed(arguments(approval.call))
    if not isinstance(value, dict) or len(value) > MOST_PINNED:
        return ()
    return [(pointer(key), visible(json_text(each)[:_SHORT].decode("utf-8", "replace"))) for key, each in value.items()]


def pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")


def pinned(approval: Approval, pointers: Collection[str]) -> dict[str, Any]:
    """Those of the arguments that a grant is to be about: all of them as one where all are."""
    value = parsed(arguments(approval.call))
    chosen = {pointer(key): each for key, each in value.items() if pointer(key) in pointers}
    return {"": value} if len(chosen) == len(value) else chosen


def differences(before: bytes, after: bytes) -> Sequence[Change] | None:
    """What is another, in texts fit to be shown; None where nobody can tell."""
    try:
        found = changes(before, after)
    except Unbindable:
        return None
    return [Change(visible(each.pointer) or "(everything)", _seen(each.old), _seen(each.new)) for each in found]


def _seen(text: str | None) -> str | None:
    return "\n".join(lines(parsed(text))) if text is not None else None


def left(seconds: float) -> str:
    """How much time there is: two units, the smaller one whole; console.js says the same each second."""
    whole = max(0, int(seconds))
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def moment(ns: int) -> str:
    """RFC 3339, in UTC."""
    at = datetime.datetime.fromtimestamp(ns // _SECOND, datetime.UTC)
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def still_wanted(approval: Approval, people: Iterator[tuple[str, Collection[str]]]) -> Sequence[tuple[str, list[str]]]:
    """Each slot that nobody has filled, and who could."""
    voted = {vote.person for vote in approval.votes}
    others = [(name, roles) for name, roles in people if name not in voted and name not in approval.requesters]
    return [(role, [name for name, roles in others if role in roles]) for role in approval.missing]
