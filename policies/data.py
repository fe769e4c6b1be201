"""Data files for policies (YAML, JSON) -> plain JSON values; what two readers might understand differently is refused.

YAML is read from the parser's events: nothing recursive, nothing expanded, no tag run.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

import jiter
import orjson
import yaml
from yaml.resolver import Resolver

from policies.errors import Problem

DEEPEST: Final = 64
"""Levels of the deepest data; the interpreter and the JSON writer have limits of their own beyond it."""
MOST_VALUES: Final = 5_000_000

_DECIMAL: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})", re.ASCII)
_FRACTION: Final = re.compile(r"[-+]?[0-9]+\.[0-9]*", re.ASCII)
_EXPONENT: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", re.ASCII)
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_BOOLEANS: Final = {"true": True, "false": False}
_PLACE: Final = re.compile(r" at line (?P<line>[0-9]+) column [0-9]+$")


class _Refused(Exception):
    def __init__(self, line: int | None, message: str, remedy: str) -> None:
        super().__init__(message)
        self.line, self.message, self.remedy = line, message, remedy


def read(file: str, content: bytes) -> tuple[dict[str, Any], list[Problem]]:
    """The object in a data file called `file` (its ending tells how to read it); empty when there are problems."""
    value, wrong = anything(file, content)
    if value is None or wrong:
        return {}, wrong
    if not isinstance(value, dict):
        remedy = "Write keys at the top, such as `envelopes:`; each is mounted as data.KEY."
        return {}, [Problem(file, 1, "holds no object", remedy)]
    return value, []


def anything(file: str, content: bytes) -> tuple[Any, list[Problem]]:
    """The value in a data file, of whatever type; None when there are problems, or nothing in it."""
    try:
        value = _json(content) if file.endswith(".json") else _yaml(content)
        _check(value)
    except _Refused as refused:
        return None, [Problem(file, refused.line, refused.message, refused.remedy)]
    return value, []


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Refused(line, "is not UTF-8 text", "Save the file as UTF-8.") from None


def _json(content: bytes) -> Any:
    try:
        return jiter.from_json(_text(content).encode(), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        place = _PLACE.search(str(error))
        # The reader's text may quote a key; keys are the operator's own words.
        message = _PLACE.sub("", str(error))
        raise _Refused(int(place["line"]) if place else None, f"is not JSON: {message}", "Correct the file.") from None


def _check(value: Any) -> None:
    """Refuses what JSON's readers disagree about: whole numbers beyond 64 bits, and nesting without end."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for each in level:
            inner += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        if not inner:
            break
        level = inner
    else:
        raise _Refused(None, f"nests deeper than {DEEPEST} levels", "Simplify it.")
    try:
        orjson.dumps(value)
    except (TypeError, ValueError) as error:
        raise _Refused(None, f"cannot be data: {error}", "Correct the value, or quote it.") from None


@dataclass(slots=True)
class _Open:
    value: dict[str, Any] | list[Any]
    key: str | None = None


def _yaml(content: bytes) -> Any:
    text = _text(content)
    resolver = Resolver()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    stack: list[_Open] = []
    top: Any = None
    values = documents = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _Refused(line, "holds a second document", "Keep one document; remove the --- line.")
            elif isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
            elif isinstance(event, yaml.NodeEvent):
                values += 1
                if values > MOST_VALUES or len(stack) > DEEPEST:
                    raise _Refused(line, "nests too deep or has too many values", "Simplify it.")
                value = _value(event, line, resolver, parent=stack[-1] if stack else None)
                if not stack:
                    top = value
                if isinstance(event, yaml.CollectionStartEvent):
                    stack.append(_Open(value))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = mark.line + 1 if mark is not None else None
        raise _Refused(place, f"is not YAML: {error.problem}", "Check indentation, quotes and brackets.") from None
    except yaml.YAMLError:
        raise _Refused(None, "is not YAML", "Look for control characters.") from None
    return top


def _value(event: yaml.NodeEvent, line: int, resolver: Resolver, parent: _Open | None) -> Any:
    """The value of one node, put where it belongs; for a key, the key is noted and None given."""
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _Refused(
            line, "has an anchor (&) or alias (*)", "Write the value out; quote a text that begins with them."
        )
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag not in (None, "!", _TEXT_TAG):
        raise _Refused(line, "has a tag (!)", "Remove it; quote a text that begins with !.")
    if parent is not None and isinstance(parent.value, dict) and parent.key is None:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Refused(line, "has a key that is no text", "Write ordinary keys.")
        if event.value in parent.value:
            raise _Refused(line, f"has the key `{event.value}` twice", "Keep one of them.")
        if event.value == "<<":
            raise _Refused(line, "has a merge key (<<)", "Write the keys out.")
        parent.key = event.value
        return None
    value: Any
    if isinstance(event, yaml.MappingStartEvent):
        value = {}
    elif isinstance(event, yaml.SequenceStartEvent):
        value = []
    else:
        assert isinstance(event, yaml.ScalarEvent), "a node is a mapping, a list or a scalar"
        value = _scalar(event, line, resolver)
    if parent is not None and isinstance(parent.value, list):
        parent.value.append(value)
    elif parent is not None and isinstance(parent.value, dict) and parent.key is not None:
        parent.value[parent.key] = value
        parent.key = None
    return value


def _scalar(event: yaml.ScalarEvent, line: int, resolver: Resolver) -> str | int | float | bool | None:
    text: str = event.value
    if not event.implicit[0] or event.tag is not None:
        return text
    tag: str = resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # stubs lack it
    kind = tag.removeprefix("tag:yaml.org,2002:")
    if kind == "float" or _EXPONENT.fullmatch(text):
        number = float(text) if _FRACTION.fullmatch(text) or _EXPONENT.fullmatch(text) else math.inf
        if math.isfinite(number):
            return number
    elif kind in ("str", "timestamp"):
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if kind == "int" and _DECIMAL.fullmatch(text):
        return int(text)
    raise _Refused(
        line,
        f"`{text[:40]}` is understood differently by different readers of YAML",
        "Write true or false, or a plain decimal number; put it in quotes if it is text.",
    )
