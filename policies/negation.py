"""Negations that the embedded engine and OPA answer differently, found before a policy is put to use.

OPA evaluates what stands inside `not` before it negates: in `not startswith(input.call.target, "x")` without a target
the rule does not apply. The interpreter negates the whole, and it does. Where the two could part, the author is asked
to bind the value first, which both understand alike. A reference alone, or compared by `==`, is no such case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from policies.trees import Node, static

Reference = tuple[str, ...]
"""The names a reference begins with, up to the first computed one."""

ALWAYS_THERE: Final = frozenset(
    {
        ("input",),
        ("input", "agent"),
        *(("input", "agent", name) for name in ("name", "tenant", "roles", "autonomy_tier", "state")),
        ("input", "call"),
        *(("input", "call", name) for name in ("kind", "protocol", "operation", "arguments")),
        ("input", "time"),
        ("input", "time", "unix_ns"),
        ("input", "time", "utc"),
    }
)
"""What every input has: see policies/document.py."""

_REFERENCES: Final = frozenset(("Var", "RefDot", "RefBrack"))
_CONSTANTS: Final = frozenset(("Number", "String", "RawString", "Bool", "Null", "True", "False"))
_COMPREHENSIONS: Final = frozenset(("ArrayCompr", "SetCompr", "ObjectCompr"))


def parting(
    rule: Node,
    source: bytes,
    may_be_undefined: Callable[[Reference, bool], bool],
    may_fail: Callable[[Node], bool],
) -> Iterator[tuple[int, str]]:
    """Line and text of everything in a rule's negations that may be undefined and is bound nowhere before.

    `may_be_undefined` judges a reference, told whether it is written in full; `may_fail` a call of a function.
    """
    todo: list[tuple[Node, frozenset[str]]] = [(rule, _member(rule, source))]
    while todo:
        node, bound = todo.pop()
        if isinstance(node, list):
            todo += ((each, bound) for each in node)
        elif isinstance(node, dict):
            statements = node.get("stmts")
            if isinstance(statements, list):
                bound |= _evaluated(statements, source)
                for statement in statements:
                    negated = statement["literal"].get("NotExpr")
                    if negated is not None:
                        yield from _unbound(negated["expr"], source, bound, may_be_undefined, may_fail)
            todo += ((each, bound) for name, each in node.items() if name != "span")


def _member(rule: Node, source: bytes) -> frozenset[str]:
    """What a set's rule has to evaluate for the member it adds: were it undefined, nothing would be added on both."""
    head = rule.get("Spec", {}).get("head", {}).get("Set")
    return _references([head["key"]], source) if head and head.get("key") else frozenset()


def _text(node: Node, source: bytes) -> str:
    return "".join(source[node["span"]["start"] : node["span"]["end"]].decode("utf-8", "replace").split())


def _evaluated(statements: Collection[Node], source: bytes) -> frozenset[str]:
    """The references that a body evaluates outside negations: were one undefined, the body would fail on both."""
    positive = [each for each in statements if "NotExpr" not in each["literal"] and not each.get("with_mods")]
    return _references([each["literal"] for each in positive], source)


def _references(nodes: Collection[Node], source: bytes) -> frozenset[str]:
    found = set()
    todo: list[Node] = [*nodes]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            for name, inner in node.items():
                if name in _REFERENCES:
                    found.add(_text(inner, source))
                if name != "span" and name != "query" and name not in _COMPREHENSIONS:
                    todo.append(inner)
    return frozenset(found)


def is_defined(
    value: Node, may_be_undefined: Callable[[Reference, bool], bool], may_fail: Callable[[Node], bool]
) -> bool:
    """Whether an expression has a value whatever the input is, given how references and calls are judged."""
    return not any(_undefined([value], may_be_undefined, may_fail))


def _unbound(
    negated: Node,
    source: bytes,
    bound: Collection[str],
    may_be_undefined: Callable[[Reference, bool], bool],
    may_fail: Callable[[Node], bool],
) -> Iterator[tuple[int, str]]:
    # What is negated itself may be undefined on both engines; what has to be evaluated for it may not.
    def is_bound(node: Node) -> bool:
        return _text(node, source) in bound

    for node in _undefined(_inside(negated), may_be_undefined, may_fail, is_bound):
        yield node["span"]["line"], _text(node, source)


def _undefined(
    values: list[Node],
    may_be_undefined: Callable[[Reference, bool], bool],
    may_fail: Callable[[Node], bool],
    is_bound: Callable[[Node], bool] = lambda node: False,
) -> Iterator[Node]:
    """The references and calls among the parts of `values` that may have none."""
    todo = values
    while todo:
        ((form, node),) = todo.pop().items()
        if form in _CONSTANTS or form in _COMPREHENSIONS:
            continue
        if form in _REFERENCES:
            names, whole = static({form: node})
            if not is_bound(node) and may_be_undefined(names, whole):
                yield node
            else:
                todo += _indexes({form: node})
        elif form == "Call":
            if may_fail(node):
                yield node
            todo += node["params"]
        else:
            todo += _parts(node)


def _inside(negated: Node) -> list[Node]:
    ((form, node),) = negated.items()
    if form in _REFERENCES:
        return _indexes(negated)
    if form == "Call":
        return list(node["params"])
    if (form == "BoolExpr" or form == "AssignExpr") and node["op"] == "Eq":
        sides = (node["lhs"], node["rhs"])
        return [each for side in sides for each in (_indexes(side) if _is_reference(side) else [side])]
    return _parts(node)


def _parts(node: Node) -> list[Node]:
    """The operands of an operator, the members of a composite value."""
    if "items" in node:
        return list(node["items"])
    if "fields" in node:
        return [part for _, *pair in node["fields"] for part in pair]
    return [
        node[name] for name in ("lhs", "rhs", "key", "value", "collection", "expr") if isinstance(node.get(name), dict)
    ]


def _is_reference(node: Node) -> bool:
    return not _REFERENCES.isdisjoint(node)


def _indexes(reference: Node) -> list[Node]:
    """What stands in the brackets of a reference and has to be evaluated for it."""
    found = []
    while True:
        ((form, node),) = reference.items()
        if form == "RefBrack" and _CONSTANTS.isdisjoint(node["index"]) and "Var" not in node["index"]:
            found.append(node["index"])
        if form not in ("RefDot", "RefBrack"):
            return found if form == "Var" else [*found, reference]
        reference = node["refr"]
