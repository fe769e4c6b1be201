"""Syntax trees as the interpreter prints them, and the two ways in which everybody looks at them.

A part of a tree is an object with one key that says what it is: `{"Var": {...}}`, `{"RefDot": {...}}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

Node = Any
Names = tuple[str, ...]
"""What a reference is made of, its root first: `input.call.kind` is ("input", "call", "kind")."""

TEXTS: Final = frozenset(("String", "RawString"))
"""The forms of a text that is written out."""

_NESTED: Final = (dict, list, tuple)


def static(node: Node) -> tuple[Names, bool]:
    """The names a reference is made of, up to the first computed one; and whether there is none."""
    steps: list[str | None] = []
    while True:
        (form, inner), *_ = node.items()
        if form == "RefDot":
            steps.append(inner["field"][1])
        elif form == "RefBrack":
            (kind, index), *_ = inner["index"].items()
            steps.append(index["value"] if kind in TEXTS else None)
        elif form == "Var":
            steps.append(inner["value"])
            break
        else:
            return (), False
        node = inner["refr"]
    names: list[str] = []
    for step in reversed(steps):
        if step is None:
            return tuple(names), False
        names.append(step)
    return tuple(names), True


def tagged(tree: Node) -> Iterator[tuple[str, Node]]:
    """Every part of a tree with its form, outermost first, without recursion: a policy may nest as deep as it likes."""
    todo: list[Node] = [tree]
    while todo:
        node = todo.pop()
        if type(node) is dict:
            parts = []
            for name, inner in node.items():
                if name in ("span", "field") or not isinstance(inner, _NESTED):
                    continue
                parts.append(inner)
                if type(inner) is dict and name[:1].isupper():
                    yield name, inner
            todo += reversed(parts)
        elif isinstance(node, _NESTED):
            todo += reversed(node)
