"""What a tool's arguments have to be, as JSON Schema: compiled once, and bounded before it is ever tried on a call.

A schema comes from a server that nobody here knows, and the arguments from an agent: together they may try to keep the
gateway busy. So nothing that a schema refers to is fetched, patterns are matched in linear time or given up, and how
often one value is looked at is counted beforehand.

    {"allOf": [A, A]} with A = {"allOf": [B, B]} ...    looks 2^n times at one value
    X = {"properties": {"a": {"anyOf": [X, X]}}}        looks 2^n times at a value n levels deep

Sources: JSON Schema 2020-12 and draft-07; MCP 2025-11-25 and 2026-07-28, server/tools.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

import jsonschema_rs
import orjson

LARGEST: Final = 256 * 1024
"""Bytes of a schema."""
DEEPEST: Final = 64
"""Levels of a schema, and of arguments whose schema has something to say at every level."""
MOST_SCHEMAS: Final = 4000
"""Schemas within a schema."""
MOST_LOOKS: Final = 10_000
"""How often one value may be looked at."""
MOST_WORK: Final = 2_000_000
"""How often all values of one call may be; less than half a second."""

_MOST_STEPS: Final = 1_000_000
"""What it may take to count, about a second."""
_MOST_MISTAKES: Final = 3
_LONGEST_MISTAKE: Final = 300
_PATTERN_SIZE: Final = 1024 * 1024
_BACKTRACKS: Final = 50_000

_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SAME_VALUE: Final = ("not", "if", "then", "else")
_MAPS: Final = ("dependentSchemas", "dependencies")
_BELOW: Final = (
    "additionalProperties", "unevaluatedProperties", "propertyNames", "additionalItems", "unevaluatedItems",
    "contains",
)  # fmt: skip
_DYNAMIC: Final = ("$dynamicRef", "$recursiveRef")

_Label = str | int | None
"""Which values below are meant: a member, a place in a list, None for any."""


class UnusableSchema(ValueError):
    """Nothing can be held against this schema. The text says why, for the operator."""


class Schema:
    """One tool's input schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises UnusableSchema."""
        looks = _Looks(schema)
        self._looks = looks.by_level
        """How often a value at each level is looked at, at most; a level that is not there is not looked at."""
        self._most = max(self._looks)
        self._open = looks.open
        """Whether more levels would follow."""
        try:
            self._validator = _compiled(schema)
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            raise UnusableSchema(_first_line(error)) from None

    def mistakes(self, arguments: Mapping[str, Any], size: int) -> list[str]:
        """What is wrong with arguments whose JSON text has `size` bytes, in words for a model; empty when nothing is.

        The words quote names and limits, and no values.
        """
        if (self._open or self._most * size > MOST_WORK) and (why := self._too_much(arguments)):
            return [why]
        try:
            if self._validator.is_valid(arguments):
                return []
            found = list(itertools.islice(self._validator.iter_errors(arguments), _MOST_MISTAKES))
        except ValueError as error:  # what lies beyond the numbers that a schema is held against
            return [_first_line(error)]
        return [_told(each) for each in found]

    def _too_much(self, arguments: Mapping[str, Any]) -> str | None:
        work = 0
        level: list[Any] = [arguments]
        for looks in itertools.chain(self._looks, itertools.repeat(None)):
            if not level:
                return None
            if looks is None:
                return f"it nests deeper than {len(self._looks)} levels" if self._open else None
            work += looks * len(level)
            if work > MOST_WORK:
                return "it is too large to be checked"
            level = [inner for value in level for inner in _inner(value)]
        return None


def _compiled(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    """Patterns are linear where they can be; those that look around are given up after so many steps."""
    common: dict[str, Any] = {"offline": True, "mask": "the value"}
    document = dict(schema)
    try:
        options = jsonschema_rs.RegexOptions(size_limit=_PATTERN_SIZE)
        return jsonschema_rs.validator_for(document, pattern_options=options, **common)
    except jsonschema_rs.ValidationError as error:
        if "regex" not in str(error.message):
            raise
    fancy = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS, size_limit=_PATTERN_SIZE)
    return jsonschema_rs.validator_for(document, pattern_options=fancy, **common)


def _told(error: jsonschema_rs.ValidationError) -> str:
    where = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in error.instance_path)
    return f"at {where}: {error.message}"[:_LONGEST_MISTAKE] if where else str(error.message)[:_LONGEST_MISTAKE]


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "message", error))
    return text.partition("\n")[0][:_LONGEST_MISTAKE]


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


class _Looks:
    """How often a schema looks at one value at each level, at most.

    The schemas within it are places of a graph: some are about the same value, others about what is in it. A value is
    looked at as often as there are ways to it; of ways into different members only those into one lead to it.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises UnusableSchema."""
        try:
            size = len(orjson.dumps(schema))
        except TypeError:
            raise UnusableSchema("it nests too deep, or holds what JSON cannot") from None
        if size > LARGEST:
            raise UnusableSchema(f"it has more than {LARGEST} bytes")
        self._root = schema
        self._anchors: dict[str, Mapping[str, Any]] | None = None
        self._same: dict[int, list[Mapping[str, Any]]] = {}
        self._below: dict[int, list[tuple[_Label, Mapping[str, Any]]]] = {}
        self._weight: dict[int, int] = {}
        self._steps = 0
        self._look_at(schema)
        self._order = self._in_order()
        self.by_level, self.open = self._counted()

    def _look_at(self, root: Mapping[str, Any]) -> None:
        todo = [root]
        while todo:
            schema = todo.pop()
            if id(schema) in self._same:
                continue
            if len(self._same) >= MOST_SCHEMAS:
                raise UnusableSchema(f"it holds more than {MOST_SCHEMAS} schemas")
            if schema is not self._root and isinstance(schema.get("$id"), str):
                raise UnusableSchema("it holds schemas with an `$id` of their own")
            if any(name in schema for name in _DYNAMIC):
                raise UnusableSchema("it refers to schemas dynamically")
            same = self._same[id(schema)] = list(self._about_the_value(schema))
            below = self._below[id(schema)] = list(_about_what_is_in_it(schema))
            listed = schema.get("enum")
            self._weight[id(schema)] = 1 + (len(listed) if isinstance(listed, list) else 0) // 16
            todo += same
            todo += [inner for _, inner in below]

    def _about_the_value(self, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        # What was looked at already is looked at again to find out what is left.
        times = 2 if "unevaluatedProperties" in schema or "unevaluatedItems" in schema else 1
        for _ in range(times):
            for name in _LISTS:
                yield from _schemas(schema.get(name))
            for name in _SAME_VALUE:
                yield from _schemas([schema.get(name)])
            for name in _MAPS:
                given = schema.get(name)
                yield from _schemas(list(given.values()) if isinstance(given, Mapping) else None)
            if "$ref" in schema:
                yield from _schemas([self._referred(schema["$ref"])])

    def _referred(self, reference: Any) -> Any:
        if not isinstance(reference, str):
            raise UnusableSchema("it has a `$ref` that is no text")
        base, _, fragment = reference.partition("#")
        if base and base != self._root.get("$id"):
            raise UnusableSchema("it refers to what is not in it, and nothing is fetched")
        if not fragment:
            return self._root
        if not fragment.startswith("/"):
            return self._anchored(fragment)
        found: Any = self._root
        for step in fragment[1:].split("/"):
            name = _unescaped(step)
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and len(name) < 6 and int(name) < len(found):
                found = found[int(name)]
            else:
                raise UnusableSchema("it refers to what is not in it")
        return found

    def _anchored(self, name: str) -> Mapping[str, Any]:
        if self._anchors is None:
            self._anchors = {}
            todo: list[Any] = [self._root]
            while todo:
                value = todo.pop()
                if isinstance(value, Mapping):
                    for keyword in ("$anchor", "$dynamicAnchor"):
                        if isinstance(value.get(keyword), str):
                            self._anchors[value[keyword]] = value
                todo += _inner(value)
        found = self._anchors.get(name)
        if found is None:
            raise UnusableSchema("it refers to what is not in it")
        return found

    def _in_order(self) -> dict[int, int]:
        """The places of all schemas in an order in which each comes before those held against the same value."""
        order: list[int] = []
        done: dict[int, bool] = {}
        for start in self._same:
            if start in done:
                continue
            ways = [(start, iter(self._same[start]))]
            done[start] = False
            while ways:
                at, further = ways[-1]
                following = next(further, None)
                if following is None:
                    ways.pop()
                    done[at] = True
                    order.append(at)
                elif done.get(id(following)) is False:
                    raise UnusableSchema("it refers to itself without end")
                elif id(following) not in done:
                    done[id(following)] = False
                    ways.append((id(following), iter(self._same[id(following)])))
        return {at: place for place, at in enumerate(reversed(order))}

    def _counted(self) -> tuple[list[int], bool]:
        """How often a value is looked at, level by level, and whether there are more levels."""
        here = self._closed({id(self._root): 1})
        levels = [self._weighed(here)]
        if levels[0] > MOST_LOOKS:
            raise UnusableSchema(f"it looks more than {MOST_LOOKS} times at one value")
        while len(levels) < DEEPEST:
            looks, here = self._into(here)
            if not here:
                return levels, False
            if looks > MOST_LOOKS:
                return levels, True
            levels.append(looks)
        return levels, True

    def _into(self, here: Mapping[int, int]) -> tuple[int, dict[int, int]]:
        """What is looked at one level further down, and how often one value is. Of ways into different members only
        those into one lead to one value."""
        by_label: defaultdict[_Label, dict[int, int]] = defaultdict(dict)
        for at, times in here.items():
            for label, inner in self._below[at]:
                found = by_label[label]
                found[id(inner)] = found.get(id(inner), 0) + times
        into = self._closed(by_label.pop(None, {}))
        most: dict[int, int] = {}
        looks = 0
        for found in by_label.values():
            closed = self._closed(found)
            looks = max(looks, self._weighed(closed))
            for at, times in closed.items():
                most[at] = max(most.get(at, 0), times)
        looks += self._weighed(into)
        for at, times in most.items():
            into[at] = into.get(at, 0) + times
        return looks, into

    def _weighed(self, here: Mapping[int, int]) -> int:
        return sum(self._weight[at] * times for at, times in here.items())

    def _closed(self, begun: Mapping[int, int]) -> dict[int, int]:
        """These schemas and all that they hold against the same value."""
        here = dict(begun)
        waiting = [(self._order[at], at) for at in here]
        heapq.heapify(waiting)
        while waiting:
            _, at = heapq.heappop(waiting)
            self._steps += 1 + len(self._same[at])
            if self._steps > _MOST_STEPS:
                raise UnusableSchema("it is too entangled")
            for inner in self._same[at]:
                if id(inner) not in here:
                    here[id(inner)] = 0
                    heapq.heappush(waiting, (self._order[id(inner)], id(inner)))
                here[id(inner)] += here[at]
        return here


def _about_what_is_in_it(schema: Mapping[str, Any]) -> Iterator[tuple[_Label, Mapping[str, Any]]]:
    members = schema.get("properties")
    if isinstance(members, Mapping):
        for name, inner in members.items():
            yield from ((name, each) for each in _schemas([inner]))
    patterns = schema.get("patternProperties")
    if isinstance(patterns, Mapping):
        yield from ((None, each) for each in _schemas(list(patterns.values())))
    for name in _BELOW:
        yield from ((None, each) for each in _schemas([schema.get(name)]))
    for name in ("items", "prefixItems"):
        given = schema.get(name)
        if isinstance(given, list):
            yield from ((place, each) for place, inner in enumerate(given) for each in _schemas([inner]))
        else:
            yield from ((None, each) for each in _schemas([given]))


def _schemas(given: object) -> Iterator[Mapping[str, Any]]:
    """Those of a list that are schemas and not `true` or `false`, which cost nothing."""
    if isinstance(given, list):
        yield from (each for each in given if isinstance(each, Mapping))


def _unescaped(step: str) -> str:
    return unquote(step).replace("~1", "/").replace("~0", "~")
