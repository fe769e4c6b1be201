"""YAML text -> plain data, with the place of every key and value kept, and everything refused that misleads a reader.

Built on the parser's events rather than its object constructor: nothing recursive, nothing expanded, no tag run.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.resolver import Resolver

LARGEST: Final = 4 * 2**20
"""Bytes of the largest configuration file; ten thousand agents take about one and a half million."""
MOST_NODES: Final = 400_000
DEEPEST: Final = 32

Path = tuple[str | int, ...]
"""Where a value stands: ("routes", 2, "arms", 0, "weight")."""
Mark = tuple[int, int]
"""Line and column, both from 1."""

_BOOLEANS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DECIMAL: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})", re.ASCII)
_EXPONENT: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", re.ASCII)
_TEXT_TAG: Final = "tag:yaml.org,2002:str"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong at one place of the document; `path` is that of the value concerned."""

    mark: Mark
    path: Path
    message: str
    remedy: str


@dataclass(slots=True)
class Document:
    """What was read: dicts, lists, str, int, float and bool in `data` (None when there is nothing to use)."""

    data: Any = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    keys: dict[Path, Mark] = field(default_factory=dict)
    booleans: dict[Path, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def mark(self, path: Path) -> Mark:
        """The place of a value, or of the nearest thing around it."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, (1, 1))


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been met."""

    path: Path
    value: dict[str, Any] | list[Any]
    key: str | None = None
    usable: bool = True
    skip: bool = False
    """The value that comes next is read but kept nowhere."""


def read(content: bytes) -> Document:
    """Read one YAML document. Never raises: what is wrong is in `faults`, and never repeats the text."""
    document = Document()
    text = _decoded(content, document)
    if text is None:
        return document
    try:
        _compose(text, document)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = (place.line + 1, place.column + 1) if place is not None else (1, 1)
        # The parser's own problem texts are fixed phrases; context and snippet would show the file.
        problem = re.sub(r"['\"].*['\"]", "that", error.problem or "cannot be read as YAML", flags=re.DOTALL)
        document.faults.append(
            Fault(mark, (), f"is not YAML: {problem}", "Check indentation, quotes and brackets here.")
        )
        document.data = None
    except yaml.YAMLError:
        document.faults.append(Fault((1, 1), (), "is not YAML", "Check indentation, quotes and brackets."))
        document.data = None
    return document


def _decoded(content: bytes, document: Document) -> str | None:
    def refuse(offset: int, message: str, remedy: str) -> None:
        before = content[:offset]
        column = offset - (before.rfind(b"\n") + 1) + 1
        document.faults.append(Fault((before.count(b"\n") + 1, column), (), message, remedy))

    if len(content) > LARGEST:
        refuse(0, f"is larger than {LARGEST} bytes", "Keep data such as envelopes in files of their own.")
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(error.start, "is not UTF-8 text", "Save the file as UTF-8.")
        return None
    unfit = yaml.reader.Reader.NON_PRINTABLE.search(text) or re.search("[\x7f-\x9f\ufeff]", text)
    if unfit is not None:
        refuse(len(text[: unfit.start()].encode()), "has a control character", "Remove it.")
        return None
    return text


def _compose(text: str, document: Document) -> None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    # Marks arrive as the text's own lines; scalars are resolved by the rules that other YAML 1.1 readers apply.
    resolver = Resolver()
    stack: list[_Open] = []
    mark: Mark = (1, 1)
    nodes = documents = 0
    for event in yaml.parse(text, Loader=loader):
        if event.start_mark is not None:
            mark = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                document.faults.append(
                    Fault(mark, (), "is a second document", "Keep one document; remove the --- line.")
                )
                return
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if nodes > MOST_NODES or len(stack) >= DEEPEST:
                document.faults.append(Fault(mark, (), "is nested too deep or has too many values", "Simplify it."))
                document.data = None
                return
            _node(event, mark, stack, document, resolver)
    if document.data is None and not document.faults:
        document.faults.append(Fault((1, 1), (), "is empty", "Write at least policy, agents, targets and routes."))
    elif documents and not isinstance(document.data, dict):
        if not document.faults:
            message = "does not have sections at its top"
            document.faults.append(Fault((1, 1), (), message, "Begin with keys such as listen:, agents: and routes:."))
        document.data = None


def _node(event: yaml.NodeEvent, mark: Mark, stack: list[_Open], document: Document, resolver: Resolver) -> None:
    """Put one scalar or the beginning of one collection where it belongs."""
    parent = stack[-1] if stack else None
    if parent is not None and isinstance(parent.value, dict) and parent.key is None:
        _key(event, mark, parent, stack, document)
        return
    path, usable = _place(parent)
    if usable:
        # A section is found by its key; its first item may stand lines below.
        document.marks[path] = document.keys.get(path, mark) if isinstance(event, yaml.CollectionStartEvent) else mark
    fault = _unwanted(event)
    value: Any = None
    if isinstance(event, yaml.MappingStartEvent):
        value = {}
        stack.append(_Open(path, value, usable=usable and fault is None))
    elif isinstance(event, yaml.SequenceStartEvent):
        value = []
        stack.append(_Open(path, value, usable=usable and fault is None))
    elif isinstance(event, yaml.ScalarEvent) and fault is None:
        value, fault = _scalar(event, resolver)
        if isinstance(value, bool):
            document.booleans[path] = event.value
    if usable and fault is not None:
        document.faults.append(Fault(mark, path, *fault))
    _attach(parent, value if fault is None else None, document, usable)


def _key(event: yaml.NodeEvent, mark: Mark, parent: _Open, stack: list[_Open], document: Document) -> None:
    refusal = _unwanted(event)
    if isinstance(event, yaml.ScalarEvent) and refusal is None:
        parent.key = event.value
        path = (*parent.path, event.value)
        if not parent.usable:
            return
        if path in document.keys:
            first = document.keys[path][0]
            document.faults.append(Fault(mark, path, f"is written twice, first in line {first}", "Keep one of them."))
            parent.skip = True
        else:
            document.keys[path] = mark
        return
    message, remedy = refusal or ("has a key that is not plain text", "Write ordinary keys.")
    if parent.usable:
        document.faults.append(Fault(mark, parent.path, message, remedy))
    # A key may itself be a collection: it is read to its end, then its value, and neither is kept.
    parent.skip = True
    parent.key = ""
    if isinstance(event, yaml.MappingStartEvent):
        stack.append(_Open((*parent.path, ""), {}, usable=False))
    elif isinstance(event, yaml.SequenceStartEvent):
        stack.append(_Open((*parent.path, ""), [], usable=False))


def _place(parent: _Open | None) -> tuple[Path, bool]:
    if parent is None:
        return (), True
    if isinstance(parent.value, list):
        return (*parent.path, len(parent.value)), parent.usable
    return (*parent.path, parent.key or ""), parent.usable and not parent.skip


def _attach(parent: _Open | None, value: Any, document: Document, usable: bool) -> None:
    if parent is None:
        document.data = value
    elif isinstance(parent.value, list):
        parent.value.append(value)
    else:
        if usable and value is not None:
            parent.value[parent.key or ""] = value
        parent.key = None
        parent.skip = False


def _unwanted(event: yaml.NodeEvent) -> tuple[str, str] | None:
    if isinstance(event, yaml.AliasEvent):
        return "is an alias (*), which is not supported", "Write the value out."
    if event.anchor is not None:
        return "has an anchor (&), which is not supported", "Remove it; quote a text that begins with &."
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag not in (None, "!", _TEXT_TAG):
        return "has a tag (!), which is not supported", "Remove it; quote a text that begins with !."
    return None


def _scalar(
    event: yaml.ScalarEvent, resolver: Resolver
) -> tuple[str | int | float | bool | None, tuple[str, str] | None]:
    """The value of a scalar as other YAML readers see it, or why they might see different things."""
    text: str = event.value
    if not event.implicit[0] or event.tag is not None:
        return text, None
    tag: str = resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # stubs lack it
    kind = tag.removeprefix("tag:yaml.org,2002:")
    if kind == "null":
        return None, ("has no value", "Write one, or remove the key.")
    if kind == "bool":
        return _BOOLEANS[text.lower()], None
    if kind == "int" or (kind == "str" and re.fullmatch(r"0o[0-7]+", text)):
        if _DECIMAL.fullmatch(text):
            return int(text), None
        return None, (
            "is a number that YAML readers understand differently",
            "Write it in plain decimal digits, or quote it if it is text.",
        )
    if kind == "float" or _EXPONENT.fullmatch(text):
        try:
            number = float(text)
        except ValueError:
            number = math.nan  # .nan and .inf, and base 60 (1:30.5)
        if math.isfinite(number):
            return number, None
        return None, ("is not a finite number", "Write an ordinary number, or quote it if it is text.")
    if kind not in ("str", "timestamp"):
        return None, ("is written in a way that is not supported", "Quote it if it is text.")
    return text, None
