"""What is wrong with policies before any is evaluated: read from their syntax trees, told with file, line and remedy.

The interpreter finds an unknown function only when a call reaches it, lets data replace a rule of the same path, and
ends the process when a function calls itself. Here they are mistakes like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from policies import negation
from policies.builtins import FORBIDDEN, LITERAL, SUPPLIED, TIMED
from policies.capabilities import arities
from policies.engine import ENTRY
from policies.errors import Problem
from policies.interpreter import sprintf_is_bounded
from policies.trees import TEXTS, Node, static, tagged

Path = tuple[str, ...]
"""Where a rule or value stands below `data`."""

_ENTRY: Final[Path] = tuple(ENTRY.split("."))[1:]
_KEYWORDS: Final = frozenset(
    "as contains data default else every false if import in input not null package some true with".split()
)
_MOST_ROUNDS: Final = 16
_IMPORTS: Final = frozenset(
    [("rego", "v1"), *(("future", "keywords", word) for word in ("contains", "every", "if", "in"))]
)
"""What may be imported besides data and input. All other words of the future are none to the interpreter."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: by what name, resolved below `data` where a rule of ours is meant."""

    name: str
    target: Path | None
    line: int
    params: Sequence[Node]


@dataclass(slots=True)
class _Module:
    file: str
    package: Path
    line: int
    source: bytes
    aliases: dict[str, Path]
    inputs: dict[str, Path]
    foreign: list[tuple[str, int]]
    rules: list[_Rule] = field(default_factory=list)


@dataclass(slots=True)
class _Rule:
    path: Path
    line: int
    is_function: bool
    tree: Node


def lint(trees: Sequence[Node], data: Mapping[str, Any], builtins: Collection[str]) -> list[Problem]:
    """The problems of policies, given their trees, the data they will stand beside, and the builtins there are."""
    modules = [_module(tree) for tree in trees]
    functions = {rule.path for module in modules for rule in module.rules if rule.is_function}
    packages = {module.package for module in modules}
    known = _known(modules, data)
    problems: list[Problem] = []
    graph: dict[Path, set[Path]] = {}
    places: dict[Path, tuple[str, int]] = {}
    for module in modules:
        problems += _names(module, builtins)
        problems += _overlap(module, data)
        for rule in module.rules:
            places.setdefault(rule.path, (module.file, rule.line))
            for call in _calls(module, rule, functions):
                if call.target is not None:
                    graph.setdefault(rule.path, set()).add(call.target)
                problems += _judged(module, call, known.functions, builtins)
            problems += _lookups(module, rule, packages)
            problems += _replaced(module, rule)
            problems += _negations(module, rule, known, data)
    problems += _conflicts(modules)
    for path in sorted(functions & graph.keys()):
        if path in _reachable(path, graph, functions):
            file, line = places[path]
            message = f"the function `{'.'.join(path)}` calls itself"
            problems.append(Problem(file, line, message, "Recursion ends the process; write it without."))
    if not any(rule.path[: len(_ENTRY)] == _ENTRY for module in modules for rule in module.rules):
        file = modules[0].file if modules else "policy"
        remedy = f"Write the rule `{_ENTRY[-1]}` in package {'.'.join(_ENTRY[:-1])}."
        problems.append(Problem(file, None, f"no file defines {ENTRY}, which every call is decided by", remedy))
    return problems


def wide_lookups(trees: Sequence[Node]) -> list[Problem]:
    """Lookups in whole packages: slow where calls are decided, and under `with`, as in tests, answered wrongly."""
    modules = [_module(tree) for tree in trees]
    packages = {module.package for module in modules}
    return [problem for module in modules for rule in module.rules for problem in _lookups(module, rule, packages)]


def scattered(trees: Sequence[Node]) -> list[Problem]:
    """The files besides the first in which calls are decided: two rules may well hold at once, and then nothing is."""
    found: dict[str, int] = {}
    for module in map(_module, trees):
        for rule in module.rules:
            if rule.path == _ENTRY and _shape(rule.tree)[0] != "Default":
                found.setdefault(module.file, rule.line)
    if not found:
        return []
    (earlier, at), *others = found.items()
    message = f"`{_ENTRY[-1]}` is written here and at {earlier}:{at}; calls for which both hold are refused"
    remedy = "Let the one ask the other (docs/policy.md, The shipped policy and a rule of your own)."
    return [Problem(file, line, message, remedy) for file, line in others]


def rules(trees: Sequence[Node]) -> list[tuple[str, str, int]]:
    """File, full name and line of every rule, each name once a file, in the order written."""
    found: dict[tuple[str, Path], int] = {}
    for tree in trees:
        module = _module(tree)
        for rule in module.rules:
            found.setdefault((module.file, rule.path), rule.line)
    return [(file, ".".join(("data", *path)), line) for (file, path), line in found.items()]


def _module(tree: Node) -> _Module:
    syntax = tree["ast"]
    package = static(syntax["package"]["refr"])[0]
    text = tree["source"]["contents"].encode()
    module = _Module(tree["source"]["file"], package, syntax["package"]["span"]["line"], text, {}, {}, [])
    for each in syntax["imports"]:
        path, _ = static(each["refr"])
        alias = each.get("as")
        name = path[-1] if path and alias is None else text[alias["start"] : alias["end"]].decode() if alias else ""
        if path[:1] == ("data",):
            module.aliases[name] = path[1:]
        elif path[:1] == ("input",):
            module.inputs[name] = path
        elif path not in _IMPORTS:
            module.foreign.append((".".join(path), each["span"]["line"]))
    for rule in syntax["rules"]:
        module.rules.append(_rule(package, rule))
    return module


def _rule(package: Path, rule: Node) -> _Rule:
    if "Default" in rule:
        inner = rule["Default"]
        return _Rule(package + static(inner["refr"])[0], inner["span"]["line"], bool(inner["args"]), rule)
    inner = rule["Spec"]
    (form, head), *_ = inner["head"].items()
    return _Rule(package + static(head["refr"])[0], inner["span"]["line"], form == "Func", rule)


def _calls(module: _Module, rule: _Rule, functions: Collection[Path]) -> Iterator[_Call]:
    for form, node in tagged(rule.tree):
        if form == "Call":
            names, whole = static(node["fcn"])
            target = _resolved(module, names, functions)
            name = ".".join(names) if whole else ""
            yield _Call(name, target, node["span"]["line"], node["params"])


def _resolved(module: _Module, names: Path, functions: Collection[Path]) -> Path | None:
    if names[:1] == ("data",):
        return names[1:]
    if module.package + names in functions:
        return module.package + names
    if names and names[0] in module.aliases:
        return module.aliases[names[0]] + names[1:]
    return None


def _judged(
    module: _Module, call: _Call, functions: Mapping[Path, int], builtins: Collection[str]
) -> Iterator[Problem]:
    def at_call(message: str, remedy: str) -> Problem:
        return Problem(module.file, call.line, message, remedy)

    if not call.name:
        yield at_call("the name of the function called is computed", "Write the name out.")
    elif call.target is not None:
        if call.target not in functions:
            yield at_call(f"there is no function `{call.name}`", "Correct the name, or add the file that defines it.")
        elif not functions[call.target] <= len(call.params) <= functions[call.target] + 1:
            yield at_call(*_miscounted(call, functions[call.target]))
    elif call.name in FORBIDDEN:
        yield at_call(f"`{call.name}` may not be called", _sentence(FORBIDDEN[call.name][1]))
    elif call.name not in builtins:
        remedy = "Correct the name; docs/policy.md lists what the embedded engine lacks."
        yield at_call(f"there is no function `{call.name}`", remedy)
    elif call.name == "walk" and len(call.params) == 1:
        yield at_call("`walk` with one argument gives nothing here", "Write walk(value, [path, part]).")
    elif not _is_counted(call):
        yield at_call(*_miscounted(call, arities()[call.name]))
    elif call.name in LITERAL:
        position, why = LITERAL[call.name]
        (kind, value), *_ = call.params[position].items() if position < len(call.params) else [("", {})]
        if kind not in TEXTS:
            message = f"argument {position + 1} of `{call.name}` is not a text written out here"
            yield at_call(message, f"Write it out: {why}.")
        elif call.name == "sprintf" and not sprintf_is_bounded(value["value"]):
            yield at_call("a width in the format of `sprintf` is too large", "Keep it below 1000.")


def _is_counted(call: _Call) -> bool:
    """Whether a builtin gets the arguments it takes; the interpreter's own also take a name for the result."""
    expected = arities().get(call.name)
    more = 0 if call.name in SUPPLIED or call.name in TIMED else 1
    return expected is None or expected <= len(call.params) <= expected + more


def _miscounted(call: _Call, expected: int) -> tuple[str, str]:
    takes = "1 argument" if expected == 1 else f"{expected} arguments"
    return f"`{call.name}` takes {takes}, not {len(call.params)}", "Correct the call; a result is assigned with `:=`."


def _conflicts(modules: Sequence[_Module]) -> Iterator[Problem]:
    """Rules of one name that cannot be one rule: the interpreter would quietly take one of them."""
    first: dict[Path, tuple[str, int, str, int]] = {}
    complete: set[Path] = set()
    defaults: set[Path] = set()
    written = [(module, rule, *_shape(rule.tree)) for module in modules for rule in module.rules]
    for module, rule, kind, arguments, _ in written:
        at, name = (module.file, rule.line), ".".join(rule.path)
        if kind == "Default":
            if rule.path in defaults:
                yield Problem(*at, f"`{name}` has several defaults", "Keep one.")
            defaults.add(rule.path)
            if not _is_written_out(rule.tree["Default"]["value"]):
                yield Problem(*at, f"the default of `{name}` has to be looked up", "Write its value out.")
        shape = "function" if rule.is_function else "partial" if kind == "Set" else "complete"
        if shape == "complete":
            complete.add(rule.path)
        takes = len(arguments) if rule.is_function else 0
        before = first.setdefault(rule.path, (shape, takes, *at))
        if before[:2] != (shape, takes):
            place = f"line {before[3]}" if before[2] == module.file else f"{before[2]}:{before[3]}"
            message = f"`{name}` is written in ways that conflict, here and at {place}"
            yield Problem(*at, message, "Let it be a rule, a set or object, or a function of so many arguments.")
    for module, rule, *_ in written:
        above = next((rule.path[:end] for end in range(1, len(rule.path)) if rule.path[:end] in complete), None)
        if above is not None:
            message = f"`{'.'.join(rule.path)}` stands below `{'.'.join(above)}`, which has a value of its own"
            yield Problem(module.file, rule.line, message, "Rename one of them.")


def _is_written_out(value: Node) -> bool:
    return negation.is_defined(value, lambda names, whole: True, lambda call: True) and not any(
        form == "Call" for form, _ in tagged([value])
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """The rules there are: which always have a value, and how many arguments functions take."""

    rules: set[Path]
    defined: set[Path]
    functions: dict[Path, int]
    total: set[Path]


def _known(modules: Sequence[_Module], data: Mapping[str, Any]) -> _Known:
    known = _Known(set(), set(), {}, set())
    given: list[tuple[_Module, _Rule, Node]] = []
    for module in modules:
        for rule in module.rules:
            kind, arguments, value = _shape(rule.tree)
            if rule.is_function:
                known.functions.setdefault(rule.path, len(arguments))
            else:
                known.rules.add(rule.path)
            if kind in ("Default", "Set"):
                (known.total if rule.is_function else known.defined).add(rule.path)
            elif value is not None:
                given.append((module, rule, value))
    # A value may be that of other rules, so what is known of these settles in rounds.
    for _ in range(_MOST_ROUNDS):
        waiting = []
        for module, rule, value in given:
            if negation.is_defined(value, *_judges(module, known, data)):
                (known.total if rule.is_function else known.defined).add(rule.path)
            else:
                waiting.append((module, rule, value))
        if len(waiting) == len(given):
            break
        given = waiting
    return known


def _shape(tree: Node) -> tuple[str, Sequence[Node], Node | None]:
    """The kind of head, the arguments, and the value of a rule that has no body: it holds whatever is asked."""
    if "Default" in tree:
        return "Default", tree["Default"]["args"], None
    spec = tree["Spec"]
    ((form, head),) = spec["head"].items()
    arguments = head.get("args", ())
    if form == "Compr" and not static(head["refr"])[1]:
        return "Set", arguments, None
    assigned = head.get("assign")
    is_open = not spec["bodies"] and assigned and all("Var" in each for each in arguments)
    return form, arguments, assigned["value"] if is_open else None


def _judges(
    module: _Module, known: _Known, data: Mapping[str, Any]
) -> tuple[Callable[[Path, bool], bool], Callable[[Node], bool]]:
    """Whether a reference, given its names and whether these are all of it, or a call may be undefined."""

    def may_be_undefined(names: Path, whole: bool) -> bool:
        if not names:
            return True
        if names[0] == "input" or names[0] in module.inputs:
            path = (*module.inputs.get(names[0], ("input",)), *names[1:])
            return not whole or path not in negation.ALWAYS_THERE
        below = _below_data(module, names)
        if below is None and module.package + names[:1] in known.rules:
            below = module.package + names
        if below is None:
            return len(names) > 1 or not whole
        if any(below[:length] in known.rules for length in range(1, len(below) + 1)):
            return not whole or below not in known.defined
        here: Any = data
        for name in below:
            if not isinstance(here, Mapping) or name not in here:
                return True
            here = here[name]
        return not whole

    def may_fail(call: Node) -> bool:
        target = _resolved(module, static(call["fcn"])[0], known.functions)
        return target is not None and target not in known.total

    return may_be_undefined, may_fail


def _negations(module: _Module, rule: _Rule, known: _Known, data: Mapping[str, Any]) -> Iterator[Problem]:
    for line, text in negation.parting(rule.tree, module.source, *_judges(module, known, data)):
        message = f"where `{text}` is undefined, this `not` says yes here and nothing on an OPA server"
        yield Problem(module.file, line, message, "Bind it in a line before (`value := ...`), or use object.get.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _lookups(module: _Module, rule: _Rule, packages: set[Path]) -> Iterator[Problem]:
    """References to whole packages, or into packages by a computed name: each evaluates every rule there is."""
    inner_parts: set[int] = set()
    for form, node in tagged(rule.tree):
        if form == "Call":
            _skip(node["fcn"], inner_parts)
            continue
        if form not in ("Var", "RefDot", "RefBrack") or id(node) in inner_parts:
            continue
        chain = {form: node}
        _skip(chain, inner_parts)
        names, _ = static(chain)
        path = _below_data(module, names)
        if names[:1] != ("data",) and len(names) > 1 and module.aliases.get(names[0]) in packages:
            yield Problem(
                module.file,
                node["span"]["line"],
                f"`{'.'.join(names)}` goes through the import of a whole package, which evaluates all its rules",
                f"Write `data.{'.'.join(path or ())}`, or import that.",
            )
        elif path is not None and any(package[: len(path)] == path for package in packages):
            shown = ".".join(("data", *path))
            yield Problem(
                module.file,
                node["span"]["line"],
                f"this looks rules up in all of `{shown}`, which evaluates every one of them",
                "Name the rule in full, and keep what is looked up by name in data.",
            )


def _below_data(module: _Module, names: Path) -> Path | None:
    if names[:1] == ("data",):
        return names[1:]
    if names and names[0] in module.aliases:
        return module.aliases[names[0]] + names[1:]
    return None


def _skip(node: Node, inner_parts: set[int]) -> None:
    """Notes the parts of a reference, so that `data.a.b` is not read again as `data.a` and `data`."""
    while True:
        (form, inner), *_ = node.items()
        if form not in ("Var", "RefDot", "RefBrack"):
            return
        inner_parts.add(id(inner))
        if form == "Var":
            return
        node = inner["refr"]


def _replaced(module: _Module, rule: _Rule) -> Iterator[Problem]:
    """`with` may replace input and data; a replaced function could be made to call itself."""
    todo: list[Node] = [rule.tree]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            todo += node.values()
            for change in node.get("with_mods", ()):
                names, _ = static(change["refr"])
                if names[:1] not in (("input",), ("data",)) or _is_name(change["as"]):
                    line = change["span"]["line"] if "span" in change else rule.line
                    message = "`with` may only give input or data another value, not another rule or function"
                    yield Problem(module.file, line, message, "Replace functions in tests only.")


def _is_name(node: Node) -> bool:
    names, _ = static(node)
    return bool(names) and names[0] != "input"


def _names(module: _Module, builtins: Collection[str]) -> Iterator[Problem]:
    for imported, line in module.foreign:
        remedy = "Import data, input or rego.v1."
        yield Problem(module.file, line, f"`{imported}` cannot be imported", remedy)
    for alias in module.aliases.keys() & _KEYWORDS:
        yield Problem(module.file, module.line, f"an import is called `{alias}`, a word of the language", "Rename it.")
    for rule in module.rules:
        name = rule.path[len(module.package) :]
        if name and name[0] in _KEYWORDS:
            message = f"a rule is called `{name[0]}`, a word of the language"
            yield Problem(module.file, rule.line, message, "Rename it.")
        elif rule.is_function and ".".join(name) in builtins:
            message = f"the function `{'.'.join(name)}` has the name of a builtin"
            yield Problem(module.file, rule.line, message, "Rename it.")


def _overlap(module: _Module, data: Mapping[str, Any]) -> Iterator[Problem]:
    """Data at a package's path would silently take the place of its rules."""
    here: Any = data
    for depth, name in enumerate(module.package):
        if not isinstance(here, Mapping):
            break
        if name not in here:
            return
        here = here[name]
        if depth == len(module.package) - 1:
            break
    shown = ".".join(module.package)
    message = f"the data also holds `{shown}`, and would take the place of this package's rules"
    yield Problem(module.file, module.line, message, "Rename the package or the key in the data.")


def _reachable(start: Path, graph: Mapping[Path, set[Path]], functions: set[Path]) -> set[Path]:
    seen: set[Path] = set()
    todo = list(graph.get(start, ()))
    while todo:
        each = todo.pop()
        if each not in seen and each in functions:
            seen.add(each)
            todo += graph.get(each, ())
    return seen
