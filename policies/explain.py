"""Why a decision was made: which branch of which rule answered, and on which other rules it stood.

The interpreter says what it evaluated, not what held. So every branch of the rules that the decision can reach is put
beside the policy once more, under a name of its own, and asked whether it holds for the same input: in a clone that is
thrown away afterwards, at the cost of a few decisions. The outline of the branches is taken from the syntax trees, in a
child process, once for each revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson

from policies import child
from policies.embedded import STOPS, EmbeddedEngine
from policies.engine import ENTRY
from policies.errors import PolicyError, Problem
from policies.interpreter import Clock, Interpreter, create
from policies.sources import Module, Sources
from policies.trees import TEXTS, Node, static, tagged

LARGEST: Final = 1024 * 1024
"""Characters of policy that are explained; with more, the interpreter takes too long to take in the branches."""
MOST_STEPS: Final = 40
LONGEST_VALUE: Final = 120
"""Rules that one explanation names; characters of JSON of a value that it shows."""

_PROBE: Final = "weighbridge_probe_"
_UNDEFINED: Final = '"<undefined>"'
_NOTHING: Final = (None, "[]", "{}")
"""Values of a rule that collects, when it has collected nothing."""
_ARGUMENTS: Final = ("input", "call", "arguments")
_TOLD_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Branch:
    """One way in which a rule gets its value. `probe` is the rule that asks for it alone, empty where none can."""

    file: str
    line: int
    probe: str
    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that the decision can reach: its branches in the order written, and the place of its default.

    `private` when its value may hold what the call's arguments hold. `collects` when all its branches count, not the
    first that holds.
    """

    branches: tuple[Branch, ...]
    is_function: bool
    collects: bool
    private: bool
    default: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Outline:
    """The rules by full name, and the modules that hold their probes."""

    rules: Mapping[str, Rule]
    probes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain objects, lists and texts, from which `from_json` makes the same again."""
        return {"rules": {name: asdict(rule) for name, rule in self.rules.items()}, "probes": list(self.probes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outline:
        """What `as_json` was made of."""
        return cls({name: _rule_from_json(rule) for name, rule in value["rules"].items()}, tuple(value["probes"]))


@dataclass(frozen=True, slots=True)
class Step:
    """A rule on the way to a decision, and where it got its value; one that has none has the line where it begins.

    `depth` counts from 0, the rule that is asked. `value` is JSON text, None where it is long or may come from the
    call's arguments. `holds` is None for a function, which has a value for each of its arguments.
    """

    name: str
    file: str
    lines: tuple[int, ...]
    depth: int
    holds: bool | None
    value: str | None

    def place(self) -> str:
        """File and lines, as an editor understands the first."""
        return f"{self.file}:{', '.join(map(str, self.lines))}"


async def outlined(engine: EmbeddedEngine, largest: int = LARGEST) -> Outline:
    """The outline of what an engine has loaded, made in a child process.

    Raises PolicyError, also for more than `largest` characters of policy, and EngineUnavailable.
    """
    interpreter, _ = engine.interpreter()
    modules = tuple(
        Module(each["path"], each["contents"]) for each in orjson.loads(orjson.loads(interpreter.get_policies()))
    )
    del interpreter  # it must not outlive the engine
    file = modules[0].name if modules else "policy"
    if sum(len(module.text) for module in modules) > largest:
        raise PolicyError([Problem(file, None, f"more than {largest} characters of policy are not explained here", "")])
    try:
        told = await child.run("explain", Sources(modules, (), {}, engine.revision, ()), _TOLD_SECONDS)
    except OSError as error:
        raise PolicyError([Problem(file, None, f"its rules cannot be read: {error.strerror}", "Try again.")]) from None
    outlines = [line["outline"] for line in told.lines if "outline" in line]
    if not outlines:
        raise PolicyError([Problem(file, None, f"reading its rules {told.failure or 'failed'}", "Try again.")])
    return Outline.from_json(outlines[0])


def main() -> None:
    """The child's side."""
    sources = child.receive()
    base = create(Clock())
    for module in sources.modules:
        base.add_policy(module.name, module.text)
    child.answer({"outline": outline(orjson.loads(base.get_ast_as_json())).as_json()})


def explain(engine: EmbeddedEngine, told: Outline, document: bytes, now_ns: int) -> tuple[Step, ...]:
    """The rules on which the decision stands, the one that answered first, each followed by those it rests on.

    Holds the thread for about four milliseconds per 100,000 characters of policy. `document` must be an input that the
    engine decides on; whatever goes wrong on the way is left out. Raises EngineUnavailable.
    """
    interpreter, clock = engine.interpreter()
    clock.now_ns = now_ns
    try:
        for number, text in enumerate(told.probes):
            interpreter.add_policy(f"{_PROBE}{number}", text)
        interpreter.set_input_json(document.decode())
    except STOPS:
        raise
    except BaseException:
        return ()
    return tuple(_steps(_Asker(interpreter), told.rules))


class _Asker:
    """Values of rules for one input, as JSON text; None for those without, and for those that fail."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    def value(self, name: str) -> str | None:
        try:
            result = self._interpreter.eval_rule_as_json(name)
        except STOPS:
            raise
        except BaseException:
            return None
        return None if result == _UNDEFINED else result


def _steps(asker: _Asker, rules: Mapping[str, Rule]) -> Iterator[Step]:
    seen = {ENTRY}
    todo = [(ENTRY, 0)]
    count = 0
    while todo and count < MOST_STEPS:
        name, depth = todo.pop()
        rule = rules.get(name)
        if rule is None:
            continue
        count += 1
        step, refs = _step(asker, name, rule, depth)
        yield step
        fresh = [ref for ref in refs if ref not in seen]
        seen.update(fresh)
        todo += [(ref, depth + 1) for ref in reversed(fresh)]


def _step(asker: _Asker, name: str, rule: Rule, depth: int) -> tuple[Step, Iterable[str]]:
    every = dict.fromkeys(ref for branch in rule.branches for ref in branch.refs)
    first = rule.branches[0] if rule.branches else None
    begins = (first.file, first.line) if first is not None else rule.default or ("", 0)
    if rule.is_function:
        return Step(name, begins[0], (begins[1],), depth, None, None), every
    value = asker.value(name)
    if value is None or (rule.collects and value in _NOTHING):
        # Why a rule has no value is for those who ask about that rule: each of its branches failed on its own.
        return Step(name, begins[0], (begins[1],), depth, False, None), ()
    held = _held(asker, rule, value)
    shown = None if rule.private else _short(value)
    if held:
        refs = dict.fromkeys(ref for branch in held for ref in branch.refs)
        lines = tuple(branch.line for branch in held if branch.file == held[0].file)
        return Step(name, held[0].file, lines, depth, True, shown), refs
    place = rule.default or begins
    return Step(name, place[0], (place[1],), depth, True, shown), every if rule.default is None else ()


def _held(asker: _Asker, rule: Rule, value: str) -> Sequence[Branch]:
    """The branches that gave the value: the only one there is, the first that gives it, or all that collect."""
    if len(rule.branches) == 1 and rule.default is None:
        return rule.branches
    probed = ((branch, asker.value(branch.probe)) for branch in rule.branches if branch.probe)
    if rule.collects:
        return [branch for branch, collected in probed if collected not in _NOTHING]
    return next(([branch] for branch, given in probed if given == value), [])


def _short(value: str) -> str | None:
    text = orjson.dumps(orjson.loads(value)).decode()
    return text if len(text) <= LONGEST_VALUE else None


def _rule_from_json(value: Mapping[str, Any]) -> Rule:
    branches = tuple(Branch(**{**branch, "refs": tuple(branch["refs"])}) for branch in value["branches"])
    default = tuple(value["default"]) if value["default"] is not None else None
    return Rule(**{**value, "branches": branches, "default": default})


# --- the outline -----------------------------------------------------------------------------------------------------


def outline(trees: Sequence[Node]) -> Outline:
    """The rules that the decision can reach, and their probes, from the syntax trees of all modules."""
    files = [_File(tree) for tree in trees]
    found: dict[str, _Found] = {}
    for file in files:
        for rule in file.rules():
            entry = found.setdefault(rule.name, _Found())
            entry.parts += rule.parts
            entry.is_function |= rule.is_function
            entry.collects |= rule.collects
            entry.default = entry.default or rule.default
    for entry in found.values():
        for part in entry.parts:
            part.refs = tuple(dict.fromkeys(name for path in part.paths if (name := _rule_of(path, found)) is not None))
    reached = _reached(found)
    rules: dict[str, Rule] = {}
    probes: dict[int, list[str]] = {}
    for name in reached:
        entry = found[name]
        branches = []
        for part in entry.parts:
            probe = ""
            if part.text and not entry.is_function and (len(entry.parts) > 1 or entry.default is not None):
                numbered = f"{_PROBE}rule_{sum(map(len, probes.values()))}"
                probes.setdefault(part.source, []).append(numbered + part.text)
                probe = f"{part.package}.{numbered}"
            branches.append(Branch(part.file, part.line, probe, part.refs))
        private = any(found[each].reads_arguments for each in _reached(found, name))
        rules[name] = Rule(tuple(branches), entry.is_function, entry.collects, private, entry.default)
    by_identity = {id(file): file for file in files}
    return Outline(rules, tuple(by_identity[key].head + "\n".join(texts) + "\n" for key, texts in probes.items()))


@dataclass(slots=True)
class _Part:
    """A branch as it stands in its file; `text` is its probe without the name, `source` says whose."""

    source: int
    package: str
    file: str
    line: int
    text: str
    paths: tuple[tuple[str, ...], ...]
    """What it refers to below `data`, as far as the names are written out."""
    reads_arguments: bool
    refs: tuple[str, ...] = ()


@dataclass(slots=True)
class _Found:
    name: str = ""
    parts: list[_Part] = field(default_factory=list)
    is_function: bool = False
    collects: bool = False
    default: tuple[str, int] | None = None

    @property
    def reads_arguments(self) -> bool:
        return any(part.reads_arguments for part in self.parts)


def _reached(found: Mapping[str, _Found], start: str = ENTRY) -> dict[str, None]:
    seen: dict[str, None] = {}
    todo = [start]
    while todo:
        name = todo.pop()
        if name in found and name not in seen:
            seen[name] = None
            todo += [ref for part in reversed(found[name].parts) for ref in reversed(part.refs)]
    return seen


def _rule_of(path: tuple[str, ...], found: Mapping[str, _Found]) -> str | None:
    """The rule that a reference is about: `data.a.b.c` may be a field of the rule `data.a.b`."""
    for length in range(len(path), 0, -1):
        name = ".".join(("data", *path[:length]))
        if name in found:
            return name
    return None


class _File:
    """One module: its package, its imports, and the text that spans point into."""

    def __init__(self, tree: Node) -> None:
        syntax = tree["ast"]
        self.name: str = tree["source"]["file"]
        self._text: bytes = tree["source"]["contents"].encode()
        self._rules: list[Node] = syntax["rules"]
        # The interpreter's spans of texts leave out the quotes, and so does whatever ends with a text.
        texts = (node for form, node in tagged(self._rules) if form in TEXTS)
        self._quotes = {node["span"]["end"] for node in texts}
        self._package = static(syntax["package"]["refr"])[0]
        self._aliases: dict[str, tuple[str, ...]] = {}
        imports = []
        for each in syntax["imports"]:
            imports.append(self._cut(each["span"]["start"], each["span"]["end"]))
            path = static(each["refr"])[0]
            if path[:1] == ("data",):
                alias = each.get("as")
                self._aliases[path[-1] if alias is None else self._cut(alias["start"], alias["end"])] = path[1:]
        package = syntax["package"]["span"]
        self.head = "\n".join([self._cut(package["start"], package["end"]), *imports, ""])

    def rules(self) -> Iterator[_Found]:
        for rule in self._rules:
            if "Default" in rule:
                inner = rule["Default"]
                name = self._full(static(inner["refr"])[0])
                yield _Found(name, default=(self.name, inner["span"]["line"]), is_function=bool(inner["args"]))
                continue
            spec = rule["Spec"]
            (form, head), *_ = spec["head"].items()
            base, plain = _base(head["refr"])
            found = _Found(self._full(static(base)[0]), is_function=form == "Func")
            found.collects = form == "Set" or not plain
            given = {name for each in head.get("args", ()) for name in _variables(each)}
            found.parts = list(self._parts(spec, head, base, given))
            yield found

    def _parts(self, spec: Node, head: Node, base: Node, given: set[str]) -> Iterator[_Part]:
        after = self._ends(base)
        head_end = spec["head"][next(iter(spec["head"]))]["span"]["end"]
        bodies = spec["bodies"]
        if not bodies:
            yield self._part(spec["span"], self._cut(after, spec["span"]["end"]), [head], given)
        for number, body in enumerate(bodies):
            span = body["span"]
            text = self._cut(span["start"], span["end"])
            if number == 0 and not body["is_else"]:
                yield self._part(spec["span"], f"{self._cut(after, head_end)} {text}", [head, body["query"]], given)
            else:
                text = text.removeprefix("else")
                yield self._part(span, text, [body["assign"], body["query"]], given)

    def _part(self, span: Mapping[str, int], text: str, trees: Sequence[Node], given: set[str]) -> _Part:
        local = given | {name for tree in trees for name in self._bound(tree)}
        paths: dict[tuple[str, ...], None] = {}
        reads_arguments = False
        for tree in trees:
            for names in _references(tree):
                if names[0] == "input":
                    reads_arguments |= names[:3] == _ARGUMENTS[: len(names[:3])]
                elif names[0] == "data":
                    paths[names[1:]] = None
                elif names[0] in self._aliases:
                    paths[self._aliases[names[0]] + names[1:]] = None
                elif names[0] not in local:
                    paths[self._package + names] = None
        package = ".".join(("data", *self._package))
        return _Part(id(self), package, self.name, span["line"], text, tuple(paths), reads_arguments)

    def _bound(self, tree: Node) -> Iterator[str]:
        """The variables that a branch itself gives values to."""
        for form, node in tagged(tree):
            if form == "AssignExpr" and node["op"] == "ColEq":
                yield from _variables(node["lhs"])
            elif form == "SomeIn":
                yield from (name for part in (node["key"], node["value"]) for name in _variables(part))
            elif form in ("SomeVars", "Every"):
                spans = node["vars"] if form == "SomeVars" else [node["key"], node["value"]]
                yield from (self._cut(span["start"], span["end"]) for span in spans if span)

    def _full(self, names: tuple[str, ...]) -> str:
        return ".".join(("data", *self._package, *names))

    def _ends(self, base: Node) -> int:
        (form, inner), *_ = base.items()
        return int(inner["field"][0]["end"] if form == "RefDot" else inner["span"]["end"])

    def _cut(self, start: int, end: int) -> str:
        return self._text[start : end + (end in self._quotes)].decode()


def _base(node: Node) -> tuple[Node, bool]:
    """A rule's name without what stands in brackets after it, and whether nothing does."""
    static = True
    while "RefBrack" in node:
        node, static = node["RefBrack"]["refr"], False
    return node, static


def _references(tree: Node) -> Iterator[tuple[str, ...]]:
    """The names of each reference once, not those of its parts again."""
    inner_parts: set[int] = set()
    for form, node in tagged(tree):
        if form not in ("Var", "RefDot", "RefBrack"):
            continue
        whole = id(node) not in inner_parts
        if form != "Var":
            inner_parts.update(id(part) for part in node["refr"].values())
        if whole and (names := static({form: node})[0]):
            yield names


def _variables(pattern: Node) -> Iterator[str]:
    for form, node in tagged(pattern):
        if form == "Var":
            yield node["value"]


def told(steps: Sequence[Step]) -> str:
    """An explanation for people, indented by what rests on what."""
    lines = []
    for step in steps:
        says = {True: "", False: " does not hold", None: " was asked"}[step.holds]
        value = f" = {step.value}" if step.value is not None else ""
        lines.append(f"{'  ' * step.depth}{step.name.removeprefix('data.')}{value}{says}  ({step.place()})")
    return "\n".join(lines)
