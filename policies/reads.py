"""What a policy can read of its input, found in its syntax trees: only that is put before it, and decides what may be
reused.

Everything here errs on one side. A read that cannot happen costs a few bytes; a read that was overlooked would let one
call's decision pass for another's. So whatever is not understood reads the whole input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from policies.builtins import NONDETERMINISTIC
from policies.engine import ENTRY
from policies.guards import OPEN, Guard, Guards, opened, shut_with
from policies.trees import Names, Node, tagged

Path = tuple[str | None, ...]
"""Where a value stands in the input; None is any member of an object or list."""

KINDS: Final = ("llm", "tool", "message", "environment")
"""The kinds of call that policies are known to tell apart. Reads are told for each, and for any other."""
OTHER: Final = "other"

MOST: Final = 200
"""Places that are told apart for one kind of call."""

_MOST_REASONS: Final = 20
_MOST_VISITS: Final = 8
"""How often rules are looked at, on average, each time behind other guards."""
COARSE_MONEY: Final = frozenset({"node", "window", "limit_usd", "mode", "state", "used_percent"})
"""What of a budget stays the same from call to call, or nearly: the rest is exact money, new after every call."""

BUDGETS: Final[Path] = ("budgets",)
ESTIMATE: Final[Path] = ("call", "estimated_cost_usd")

_ENTRY: Final[Names] = tuple(ENTRY.split("."))[1:]
_SHAPE: Final = frozenset({"is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string"})
_REFERENCES: Final = frozenset({"Var", "RefDot", "RefBrack"})
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "ArithExpr": ("lhs", "rhs"),
    "AssignExpr": ("lhs", "rhs"),
    "BinExpr": ("lhs", "rhs"),
    "BoolExpr": ("lhs", "rhs"),
    "Membership": ("key", "value", "collection"),
    "UnaryExpr": ("expr",),
}
"""The operands of the expressions that have a fixed number of them."""
_SCALARS: Final = frozenset({"Null", "Bool", "Number", "String", "RawString"})


class _Strange(Exception):
    """Something in a rule whose reads are not understood. Says what, in words for the policy's author."""

    def __init__(self, why: str, line: int) -> None:
        super().__init__(why)
        self.why = why
        self.line = line


@dataclass(frozen=True, slots=True)
class Read:
    """One place of the input that a policy reads, and the first line of the policy that does.

    `whole` is false where only presence and type matter: whether it is there, and an object.
    """

    path: Path
    whole: bool
    file: str
    line: int

    def __str__(self) -> str:
        return shown(self.path) if self.whole else f"{shown(self.path)} (whether it is there)"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why decisions are not reused, and where the policy says so."""

    why: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}"


@dataclass(frozen=True, slots=True)
class KindReads:
    """What is read to decide calls of one kind.

    `reads` are sorted, none within another. Decisions are never reused when there is a reason in `unstable`, and not
    for calls that have money when there is one in `money`, unless the `guards` are shut for the call's agent.

    They are, where of each list in `guards` one reference at least is undefined. Then `otherwise` is what is read: it
    has no exact money in it. References are Rego, and depend on the data and the call's agent alone.
    """

    reads: tuple[Read, ...]
    unstable: tuple[Reason, ...] = ()
    money: tuple[Reason, ...] = ()
    guards: tuple[tuple[str, ...], ...] = ()
    otherwise: tuple[Read, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether the whole input is read."""
        return any(read.whole and not read.path for read in self.reads)


@dataclass(frozen=True, slots=True)
class Reads:
    """What a policy reads, by `input.call.kind`; under OTHER for a kind that is none of KINDS."""

    kinds: Mapping[str, KindReads]

    def of(self, kind: str) -> KindReads:
        """What is read to decide calls of this kind."""
        return self.kinds.get(kind) or self.kinds[OTHER]

    def as_json(self) -> dict[str, Any]:
        """Plain objects, lists and texts, from which `from_json` makes the same again."""
        return {kind: asdict(reads) for kind, reads in self.kinds.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reads:
        """What `as_json` was made of."""
        return cls({kind: _kind_from_json(reads) for kind, reads in value.items()})

    def text(self) -> str:
        """For people: what is read, and whether decisions can be reused, for each kind."""
        return "\n".join(line for kind in KINDS for line in _told(kind, self.of(kind)))


def everything(why: str, file: str = "policy", line: int = 1) -> Reads:
    """The whole input is read, whatever the kind, and no decision is reused."""
    whole = KindReads((Read((), True, file, line),), (Reason(why, file, line),))
    return Reads(dict.fromkeys((*KINDS, OTHER), whole))


def shown(path: Path) -> str:
    """As one would write it in Rego, any member as `*`."""
    return "input" + "".join(".*" if step is None else _step(step) for step in path)


def analyse(trees: Sequence[Node]) -> Reads:
    """What the policy of these syntax trees reads. Raises nothing: what is not understood reads everything."""
    try:
        for tree in trees:
            if (line := _written_with_escapes(tree)) is not None:
                why = "a name of a package or an import is written with an escape"
                return everything(why, tree["source"]["file"], line)
        policy = _Policy(trees)
        return Reads({kind: policy.reads(kind) for kind in (*KINDS, OTHER)})
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return everything("what this policy reads could not be found out", _first_file(trees))


def minimal(reads: Iterable[Read]) -> tuple[Read, ...]:
    """Without those that stand within another, sorted, each path once."""
    found: dict[Path, Read] = {}
    for read in sorted(reads, key=lambda read: (read.file, read.line)):
        known = found.get(read.path)
        if known is None or (read.whole and not known.whole):
            found[read.path] = read
    whole = {path for path, read in found.items() if read.whole}
    above = {path[:length] for path in found for length in range(len(path))}
    kept = [
        read
        for path, read in found.items()
        if not any(path[:length] in whole for length in range(len(path))) and (read.whole or path not in above)
    ]
    return tuple(sorted(kept, key=lambda read: [(step is None, step or "") for step in read.path]))


def _coarse(reads: tuple[Read, ...]) -> tuple[Read, ...]:
    """The same or more, but in MOST places or fewer: nobody gains from leaving out what is read in hundreds."""
    depth = max((len(read.path) for read in reads), default=0)
    while len(reads) > MOST:
        depth -= 1
        cut = (replace(read, path=read.path[:depth], whole=True) if len(read.path) > depth else read for read in reads)
        reads = minimal(cut)
    return reads


@dataclass(slots=True)
class _Found:
    """What one part of a rule reads: places of the input, other rules, and what changes from call to call."""

    reads: list[tuple[Read, Guards]] = field(default_factory=list)
    rules: dict[tuple[Names, Guards], None] = field(default_factory=dict)
    changing: list[Reason] = field(default_factory=list)
    """Both with the guards that stand before them within the part; what changes is told as if there were none."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a rule, for which kinds of call it is evaluated, and behind which guards."""

    runs_for: Callable[[str], bool]
    found: _Found
    behind: Guards = OPEN


@dataclass(frozen=True, slots=True)
class _Rule:
    """`path` is its whole name below `data`, `root` the same up to the rule's own first name."""

    path: Names
    root: Names
    parts: tuple[_Part, ...]


@dataclass(slots=True)
class _Package:
    """What names mean in all files of one package: the interpreter lets imports of one file hold in the others."""

    imports: dict[str, list[Node]] = field(default_factory=dict)
    rules: set[str] = field(default_factory=set)


class _Policy:
    """All rules, each read once; then followed from the entry for one kind after the other."""

    def __init__(self, trees: Sequence[Node]) -> None:
        packages: dict[Names, _Package] = {}
        functions: set[Names] = set()
        for tree in trees:
            syntax = tree["ast"]
            source = _Source(tree)
            name = source.static(syntax["package"]["refr"])
            package = packages.setdefault(name, _Package())
            for each in syntax["imports"]:
                alias = each.get("as")
                path = source.static(each["refr"])
                package.imports.setdefault(path[-1] if alias is None else source.text(alias), []).append(each["refr"])
            for rule in syntax["rules"]:
                head = _head(rule)
                path = source.static(head["refr"])
                package.rules.update(path[:1])
                if "args" in head:
                    functions.add(name + path)
        self._rules: list[_Rule] = []
        self._at: dict[Names, list[int]] = {}
        self._below: dict[Names, list[int]] = {}
        self._known: dict[Names, frozenset[int]] = {}
        for tree in trees:
            source = _Source(tree)
            name = source.static(tree["ast"]["package"]["refr"])
            reader = _Reader(source, name, packages[name], functions)
            self._rules += (reader.rule(rule) for rule in tree["ast"]["rules"])
        for number, rule in enumerate(self._rules):
            path = _parted(rule.path)
            # Who asks for one part of a rule has all others evaluated, though not their values.
            for where in {path, _parted(rule.root)}:
                self._at.setdefault(where, []).append(number)
            for length in range(len(path)):
                self._below.setdefault(path[:length], []).append(number)

    def reads(self, kind: str) -> KindReads:
        reads, changing = self._followed(kind, guarded=True)
        kept = _coarse(minimal(reads))
        told = KindReads(kept, (*changing, *_time(kept))[:_MOST_REASONS], tuple(_money(kept))[:_MOST_REASONS])
        return replace(told, **_shut(reads)) if told.money else told

    def _followed(self, kind: str, *, guarded: bool) -> tuple[dict[Read, set[Guards]], dict[Reason, None]]:
        """What calls of a kind read, with the ways that lead to it, and what changes from call to call.

        Unless `guarded`, all guards are taken to be open; so they are where rules are reached by too many ways.
        """
        reads: dict[Read, set[Guards]] = {}
        changing: dict[Reason, None] = {}
        asked: dict[Names, set[Guards]] = {_ENTRY: {OPEN}}
        reached: dict[int, set[Guards]] = {}
        todo = [(_ENTRY, OPEN)]
        visits = _MOST_VISITS * len(self._rules)
        while todo:
            names, arrived = todo.pop()
            for number in self._touched(names):
                way = opened(reached.setdefault(number, set()), arrived)
                if way is None:
                    continue
                visits -= 1
                if visits < 0:
                    return self._followed(kind, guarded=False)
                for part in self._rules[number].parts:
                    if not part.runs_for(kind):
                        continue
                    changing |= dict.fromkeys(part.found.changing)
                    for read, behind in part.found.reads:
                        past = self._past(way, part.behind | behind) if guarded else OPEN
                        opened(reads.setdefault(read, set()), past)
                    for other, behind in part.found.rules:
                        past = self._past(way, part.behind | behind) if guarded else OPEN
                        on = opened(asked.setdefault(other, set()), past)
                        if on is not None:
                            todo.append((other, on))
        return reads, changing

    def _past(self, way: Guards, behind: Guards) -> Guards:
        """The same way further on, past those guards whose value follows from the data and the call's agent, be it
        through other rules."""
        varying = self._varying
        return way | {
            guard for guard in behind if all(varying.isdisjoint(self._touched(names)) for names in guard.asks)
        }

    @cached_property
    def _varying(self) -> set[int]:
        """The rules that look at more than the data and the call's agent, or at others that do."""
        asking: dict[int, set[int]] = {}
        todo = []
        for number, rule in enumerate(self._rules):
            for part in rule.parts:
                if part.found.changing or any(read.path[:1] != ("agent",) for read, _ in part.found.reads):
                    todo.append(number)
                for names, _ in part.found.rules:
                    for other in self._touched(names):
                        asking.setdefault(other, set()).add(number)
        found: set[int] = set()
        while todo:
            number = todo.pop()
            if number not in found:
                found.add(number)
                todo += asking.get(number, ())
        return found

    def _touched(self, asked: Names) -> frozenset[int]:
        """The rules that are evaluated when one looks up what stands there: those below it, those that it is within,
        and the other parts of those."""
        known = self._known.get(asked)
        if known is None:
            path = _parted(asked)
            touched = set(self._below.get(path, ()))
            for length in range(len(path) + 1):
                touched.update(self._at.get(path[:length], ()))
            known = self._known[asked] = frozenset(touched)
        return known


def _parted(names: Names) -> Names:
    """A dot within a name parts it in two, as it does for the interpreter."""
    return tuple(".".join(names).split(".")) if names else ()


class _Source:
    """One file's tree: the texts and lines that its nodes point to."""

    def __init__(self, tree: Node) -> None:
        self.file: str = tree["source"]["file"]
        self._text: bytes = tree["source"]["contents"].encode()

    def text(self, span: Mapping[str, int]) -> str:
        """What the file says there."""
        return self._text[span["start"] : span["end"]].decode()

    def key(self, index: Node) -> str | None:
        """The key that an index spells out; None for a computed one, and for one with escapes, to be safe."""
        if "String" not in index:
            return None
        node = index["String"]
        return None if "\\" in self.text(node["span"]) else str(node["value"])

    def static(self, node: Node) -> Names:
        """The names a reference is made of, up to the first computed one."""
        root, steps = self.taken_apart(node)
        names = [root["Var"]["value"]] if "Var" in root else []
        for step, _ in steps:
            if step is None or not names:
                break
            names.append(step)
        return tuple(names)

    def taken_apart(self, node: Node) -> tuple[Node, list[tuple[str | None, Node]]]:
        """What a reference begins with, and its steps: a name, or None and the index that computes it."""
        steps: list[tuple[str | None, Node]] = []
        while True:
            if "RefDot" in node:
                inner = node["RefDot"]
                steps.append((inner["field"][1], None))
            elif "RefBrack" in node:
                inner = node["RefBrack"]
                steps.append((self.key(inner["index"]), inner["index"]))
            else:
                return node, steps[::-1]
            node = inner["refr"]


class _Reader:
    """Reads the rules of one file."""

    def __init__(self, source: _Source, name: Names, package: _Package, functions: set[Names]) -> None:
        self._source = source
        self._name = name
        self._package = package
        self._functions = functions

    def rule(self, tree: Node) -> _Rule:
        head = _head(tree)
        names = self._source.static(head["refr"])
        path, root = self._name + names, self._name + names[:1]
        try:
            return _Rule(path, root, tuple(self._parts(tree, head)))
        except _Strange as strange:
            found = _Found([(Read((), True, self._source.file, strange.line), OPEN)])
            found.changing.append(Reason(strange.why, self._source.file, strange.line))
            return _Rule(path, root, (_Part(_always, found),))

    def _parts(self, tree: Node, head: Node) -> Iterator[_Part]:
        bodies = tree["Spec"]["bodies"] if "Spec" in tree else []
        arguments = head.get("args", [])
        answers = list(_answers(tree, head))
        # What a rule answers sees the names of whichever body has passed.
        seen = [[body, *answers] for body in bodies]
        scopes = [_Scope(self._source, self._package, arguments, [each]) for each in seen]
        all_bodies = (
            scopes[0] if len(scopes) == 1 else _Scope(self._source, self._package, arguments, seen or [answers])
        )
        line = _line(tree)
        beside = self._walk(all_bodies, line)
        # The name of the rule may hold keys, and they are evaluated whether or not a body is.
        for _, index in self._source.taken_apart(head["refr"])[1]:
            if index is not None:
                beside.use(index)
        for argument in arguments:
            beside.use(argument)
        yield _Part(_always, beside.found)
        answer = self._walk(all_bodies, line)
        for expression in answers:
            answer.use(expression)
        if not bodies:
            yield _Part(_always, answer.found)
        for body, scope in zip(bodies, scopes, strict=True):
            runs_for = _passing_kinds(body["query"]["stmts"])
            statements = body["query"]["stmts"]
            known = _leading(statements)
            asked = self._walk(scope, line)
            asked.query(statements[:known])
            yield _Part(_always, asked.found)
            within = self._walk(scope, line)
            own = [body["assign"]["value"]] if body["assign"] is not None else []
            passed = within.query(statements[known:], own)
            yield _Part(runs_for, within.found)
            # An `else` without a value of its own may answer with the head's, a partial rule's body always does.
            if not own:
                yield _Part(runs_for, answer.found, passed)

    def _walk(self, scope: _Scope, line: int) -> _Walk:
        return _Walk(self._source, self._name, self._package, self._functions, scope, line)


class _Scope:
    """Which names within a body stand for a part of the input, told without regard to order.

    A name counts only when it is given its value in one place: what else could it be compared with there?
    """

    def __init__(
        self, source: _Source, package: _Package, arguments: Sequence[Node], bodies: Sequence[Sequence[Node]]
    ) -> None:
        self._source = source
        self._package = package
        self._given: dict[str, list[tuple[Node, Path]]] = {}
        self._bound: set[str] = set()
        times: dict[str, int] = {}
        for name in (name for argument in arguments for name in _variables(argument)):
            times[name] = times.get(name, 0) + 1
        for body in bodies:
            # Two bodies never see each other's names.
            here = dict(times)
            given: dict[str, tuple[Node, Path]] = {}
            for name, origin in self._bindings(body):
                here[name] = here.get(name, 0) + 1
                if origin is not None:
                    given[name] = origin
            self._bound.update(here)
            for name in here:
                if name in ("input", "data"):
                    raise _Strange(f"a variable is called `{name}`", _line(list(body)))
            for name, origin in given.items():
                if here[name] == 1 and name not in package.rules and name not in package.imports and name != "_":
                    self._given.setdefault(name, []).append(origin)
        self._known: dict[str, list[Path]] = {}

    def stands_for(self, name: str) -> list[Path]:
        """The places of the input that a variable may stand for."""
        known = self._known.get(name)
        if known is None:
            # Within its own definition a name stands for nothing: `x := x.y` does not evaluate.
            self._known[name] = known = []
            known += (path for node, rest in self._given.get(name, ()) for path in self.paths(node, rest))
        return known

    def paths(self, node: Node, rest: Path = ()) -> list[Path]:
        """The places of the input that a reference may name, and `rest` below them; none when it names others."""
        root, steps = self._source.taken_apart(node)
        if "Var" not in root:
            return []
        name = root["Var"]["value"]
        below = (*(step for step, _ in steps), *rest)
        if name == "input":
            return [below]
        found = [path + below for path in self.stands_for(name)]
        if name in self._package.imports:
            for imported in self._package.imports[name]:
                path = self._source_of(imported)
                found += [path[1:] + below] if path[:1] == ("input",) else []
        return found

    def given(self, name: str) -> bool:
        return name in self._given

    def binds(self, name: str) -> bool:
        """Whether this is a variable anywhere within the body."""
        return name in self._bound

    def _source_of(self, imported: Node) -> Names:
        root, steps = self._source.taken_apart(imported)
        names = tuple(step for step, _ in steps if step is not None)
        return (root["Var"]["value"], *names)

    def _bindings(self, body: Sequence[Node]) -> Iterator[tuple[str, tuple[Node, Path] | None]]:
        """Every variable that a body gives a value, and what reference it is given, where it is one."""
        for form, node in tagged(body):
            if form == "AssignExpr":
                plain = node["op"] == "ColEq" and "Var" in node["lhs"] and _is_reference(node["rhs"])
                if plain:
                    yield node["lhs"]["Var"]["value"], (node["rhs"], ())
                else:
                    sides = ("lhs",) if node["op"] == "ColEq" else ("lhs", "rhs")
                    yield from ((name, None) for side in sides for name in _variables(node[side]))
            elif form == "SomeVars":
                yield from ((self._source.text(span), None) for span in node["vars"])
            elif form == "SomeIn":
                if node["key"] is not None:
                    yield from ((name, None) for name in _variables(node["key"]))
                if "Var" in node["value"] and _is_reference(node["collection"]):
                    yield node["value"]["Var"]["value"], (node["collection"], (None,))
                else:
                    yield from ((name, None) for name in _variables(node["value"]))
            elif form == "Every":
                if node["key"] is not None:
                    yield self._source.text(node["key"]), None
                domain = (node["domain"], (None,)) if _is_reference(node["domain"]) else None
                yield self._source.text(node["value"]), domain


@dataclass(frozen=True, slots=True)
class _Firm:
    """A reference that is the same for all calls of an agent, in full; `asks` as those of a guard, none for a part of
    the input."""

    query: str
    asks: frozenset[Names]


class _Walk:
    """Follows one part of a rule, noting in `found` what it reads."""

    def __init__(
        self, source: _Source, name: Names, package: _Package, functions: set[Names], scope: _Scope, line: int
    ) -> None:
        self.found = _Found()
        self._source = source
        self._name = name
        self._package = package
        self._functions = functions
        self._scope = scope
        self._line = line
        self._behind: Guards = OPEN
        self._firm: dict[str, _Firm] = {}

    def query(self, statements: Iterable[Node], answers: Iterable[Node] = ()) -> Guards:
        """All statements, then what is answered where they hold. Returns the guards among the statements."""
        behind, firm = self._behind, self._firm
        for statement in statements:
            self._line = statement["span"]["line"]
            if statement.get("with_mods"):
                raise _Strange("`with` gives the input or data another value", self._line)
            ((form, literal),) = statement["literal"].items()
            if form in ("Expr", "NotExpr"):
                self._statement(literal["expr"])
            elif form == "SomeIn":
                for part in ("key", "value"):
                    if literal[part] is not None and "Var" not in literal[part]:
                        self.use(literal[part])
                self._gone_through(literal["value"], literal["collection"])
            elif form == "Every":
                value = {"Var": {"value": self._source.text(literal["value"])}}
                self._gone_through(value, literal["domain"])
                self.query(literal["query"]["stmts"])
            elif form != "SomeVars":
                raise _Strange("a statement is of a kind not known here", self._line)
            self._passed(form, literal)
        for answer in answers:
            self.use(answer)
        passed = self._behind - behind
        self._behind, self._firm = behind, firm
        return passed

    def _passed(self, form: str, literal: Node) -> None:
        """Notes what a statement is to those after it: a guard, or a name for a part of one.

        Only statements that the interpreter evaluates where they stand count: those that use no variables but names
        which such statements before them have given. What stands after them is evaluated after them, or not at all.
        """
        if form == "SomeIn":
            plain = all(part is None or "Var" in part for part in (literal["key"], literal["value"]))
            name, reference = None, literal["collection"] if plain else None
        elif form == "Expr":
            name, reference = _asked_for(literal["expr"])
        else:
            return
        firm = self._firmly(reference) if reference is not None and _is_reference(reference) else None
        if firm is None or not (name is None or self._scope.given(name)):
            return
        if firm.asks:
            self._behind |= {Guard(firm.query, firm.asks)}
        if name is not None:
            self._firm = {**self._firm, name: firm}

    def _firmly(self, node: Node) -> _Firm | None:
        """A reference that may be firm, in full; None for one that is not, or is not understood."""
        root, steps = self._source.taken_apart(node)
        if "Var" not in root:
            return None
        name = root["Var"]["value"]
        if name == "input":
            path = tuple(step for step, _ in steps)
            return _Firm(shown(path), frozenset()) if path[:1] == ("agent",) and None not in path else None
        asks: set[Names] = set()
        if name == "data":
            query = "data"
            asks.add(self._source.static(node)[1:])
        elif name in self._firm:
            query = self._firm[name].query
            asks |= self._firm[name].asks
        elif name in self._package.rules and name not in self._package.imports and not self._scope.binds(name):
            query = "data" + "".join(map(_step, (*self._name, name)))
            asks.add(self._name + self._source.static(node))
        else:
            return None
        for step, index in steps:
            if step is not None:
                query += _step(step)
                continue
            inner = self._firmly(index) if _is_reference(index) else None
            if inner is None:
                return None
            query += f"[{inner.query}]"
            asks |= inner.asks
        return _Firm(query, frozenset(asks))

    def use(self, node: Node) -> None:
        """An expression whose value may be looked at in any way."""
        ((form, inner),) = node.items()
        if form in _SCALARS:
            return
        if isinstance(inner, Mapping) and "span" in inner:
            self._line = inner["span"]["line"]
        if form in _REFERENCES:
            self._reference(node, (), whole=True)
        elif form == "AssignExpr" and self._is_alias(inner["op"], inner["lhs"], inner["rhs"]):
            self._reference(inner["rhs"], (), whole=False)
        elif form == "Call":
            self._call(inner)
        elif form in _PARTS:
            for part in _PARTS[form]:
                if inner.get(part) is not None:
                    self.use(inner[part])
        elif form in ("Array", "Set"):
            for item in inner["items"]:
                self.use(item)
        elif form == "Object":
            for _, key, value in inner["fields"]:
                self.use(key)
                self.use(value)
        elif form in ("ArrayCompr", "SetCompr", "ObjectCompr"):
            self.query(inner["query"]["stmts"], [inner[part] for part in ("term", "key", "value") if part in inner])
        else:
            raise _Strange("an expression is of a kind not known here", self._line)

    def _statement(self, expression: Node) -> None:
        if _is_reference(expression):
            # Only false and what is not there fail; an object passes whatever is in it.
            self._reference(expression, (), whole=False)
        else:
            self.use(expression)

    def _gone_through(self, value: Node, collection: Node) -> None:
        """Members of a collection get a name, and what is read of them is seen where the name is used."""
        if not _is_reference(collection):
            self.use(collection)
        elif "Var" in value and (self._scope.given(value["Var"]["value"]) or value["Var"]["value"] == "_"):
            self._reference(collection, (None,), whole=False)
        else:
            self._reference(collection, (), whole=True)

    def _is_alias(self, operator: str, left: Node, right: Node) -> bool:
        if operator != "ColEq" or "Var" not in left or not _is_reference(right):
            return False
        name = left["Var"]["value"]
        return name == "_" or (self._scope.given(name) and bool(self._scope.paths(right)))

    def _reference(self, node: Node, rest: Path, *, whole: bool) -> None:
        root, steps = self._source.taken_apart(node)
        for step, index in steps:
            if step is None:
                self.use(index)
        if "Var" not in root:
            self.use(root)
            return
        name = root["Var"]["value"]
        for path in self._scope.paths(node, rest):
            self._read(path, whole)
        if name == "input":
            return
        names = self._source.static(node)
        if name == "data":
            self._ask(names[1:])
            return
        self._ask(self._name + names)
        for imported in self._package.imports.get(name, ()):
            path = self._source.static(imported)
            if path[:1] == ("data",):
                # What an import names is evaluated whole, whatever of it is then looked at.
                self._ask(path[1:])

    def _call(self, call: Node) -> None:
        names = self._source.static(call["fcn"])
        root, steps = self._source.taken_apart(call["fcn"])
        if "Var" not in root or any(step is None for step, _ in steps):
            raise _Strange("the name of a function is computed", self._line)
        ours = self._followed(names)
        builtin = ".".join(names)
        if builtin in NONDETERMINISTIC:
            self.found.changing.append(Reason(f"`{builtin}` changes by itself", self._source.file, self._line))
        parameters = call["params"]
        if not ours and builtin in _SHAPE and len(parameters) == 1 and _is_reference(parameters[0]):
            self._reference(parameters[0], (), whole=False)
            return
        if not ours and builtin == "object.get" and len(parameters) == 3 and _is_reference(parameters[0]):
            rest = _literal_path(parameters[1])
            if rest is not None:
                self._reference(parameters[0], (), whole=False)
                self._reference(parameters[0], rest, whole=True)
                self.use(parameters[2])
                return
        for parameter in parameters:
            self.use(parameter)

    def _followed(self, names: Names) -> bool:
        """Notes the functions of ours that a name may mean; whether there is one."""
        meant = [names[1:]] if names[:1] == ("data",) else [self._name + names]
        for imported in self._package.imports.get(names[0], ()):
            path = self._source.static(imported)
            if path[:1] == ("data",):
                meant.append(path[1:] + names[1:])
        for each in meant:
            self._ask(each)
        return any(each in self._functions for each in meant)

    def _ask(self, names: Names) -> None:
        self.found.rules[names, self._behind] = None

    def _read(self, path: Path, whole: bool) -> None:
        # Whatever is looked up by a computed name in the input itself may be any of its parts.
        if path[:1] == (None,):
            path, whole = (), True
        self.found.reads.append((Read(path, whole, self._source.file, self._line), self._behind))


def _written_with_escapes(tree: Node) -> int | None:
    """The line of a package or import whose name does not stand in the file as it is; None for none.

    All other references to it would have to be matched with what the interpreter makes of the escapes.
    """
    source = _Source(tree)
    for each in (tree["ast"]["package"], *tree["ast"]["imports"]):
        root, steps = source.taken_apart(each["refr"])
        if "Var" not in root or any(step is None for step, _ in steps):
            return int(each["span"]["line"])
    return None


def _head(rule: Node) -> Node:
    """The part of a rule that has its name: with `args` for a function, `assign` or `key` for what it answers."""
    if "Default" in rule:
        default = rule["Default"]
        return default if default["args"] else {key: value for key, value in default.items() if key != "args"}
    ((_, head),) = rule["Spec"]["head"].items()
    return head


def _answers(tree: Node, head: Node) -> Iterator[Node]:
    """What a rule's head answers, or the default."""
    if "Default" in tree:
        yield tree["Default"]["value"]
    if head.get("assign") is not None:
        yield head["assign"]["value"]
    if head.get("key") is not None:
        yield head["key"]


def _asked_for(expression: Node) -> tuple[str | None, Node | None]:
    """The reference that a statement fails without, and the variable that it becomes, where there is one: `x := a.b`,
    `a.b`, or `a.b` compared with a number, a text, or the like."""
    ((form, inner),) = expression.items()
    if form == "AssignExpr" and inner["op"] == "ColEq" and "Var" in inner["lhs"]:
        return inner["lhs"]["Var"]["value"], inner["rhs"]
    if form == "BoolExpr":
        for one, other in ((inner["lhs"], inner["rhs"]), (inner["rhs"], inner["lhs"])):
            if not other.keys() - _SCALARS:
                return None, one
    return None, expression


def _line(node: Node) -> int:
    """The first line that a part of a tree tells; its own for a rule."""
    todo = [node]
    while todo:
        each = todo.pop()
        if isinstance(each, Mapping):
            if "span" in each:
                return int(each["span"]["line"])
            todo += reversed(list(each.values()))
        elif isinstance(each, list):
            todo += reversed(each)
    return 1


def _is_reference(node: Node) -> bool:
    return not _REFERENCES.isdisjoint(node)


def _variables(pattern: Node) -> Iterator[str]:
    """The variables that a pattern may give a value: those that stand in it by themselves."""
    ((form, inner),) = pattern.items()
    if form == "Var":
        yield inner["value"]
    elif form in ("Array", "Set"):
        yield from (name for item in inner["items"] for name in _variables(item))
    elif form == "Object":
        yield from (name for _, key, value in inner["fields"] for part in (key, value) for name in _variables(part))


def _literal_path(node: Node) -> Path | None:
    """The path that the second argument of `object.get` spells out."""
    if "String" in node:
        return (node["String"]["value"],)
    if "Array" in node and all("String" in item for item in node["Array"]["items"]):
        return tuple(item["String"]["value"] for item in node["Array"]["items"])
    return None


def _always(_: str) -> bool:
    return True


def _leading(statements: Sequence[Node]) -> int:
    """How many statements at the beginning ask for the kind of the call and for nothing else.

    They use no variable, so the interpreter evaluates them in this order and before all others, and goes no further
    when one is false: not even to what would be an error.
    """
    for number, statement in enumerate(statements):
        if _passing(statement) is None:
            return number
    return len(statements)


def _passing_kinds(statements: Sequence[Node]) -> Callable[[str], bool]:
    """For which kinds a body is evaluated beyond its leading statements."""
    tests = [_passing(statement) for statement in statements[: _leading(statements)]]
    passing = [kinds for kinds in tests if kinds is not None]
    return lambda kind: kind == OTHER or all(kind in kinds for kinds in passing)


def _passing(statement: Node) -> frozenset[str] | None:
    """The kinds of call that a statement lets pass; None for a statement about anything else."""
    if statement.get("with_mods"):
        return None
    ((form, literal),) = statement["literal"].items()
    if form not in ("Expr", "NotExpr"):
        return None
    ((operator, inner),) = literal["expr"].items()
    if operator == "BoolExpr" and inner["op"] in ("Eq", "Ne"):
        wanted = _kinds_beside(inner["lhs"], inner["rhs"])
        negated = inner["op"] == "Ne"
    elif operator == "Membership" and inner.get("key") is None and _is_kind(inner["value"]):
        wanted = _listed(inner["collection"])
        negated = False
    else:
        return None
    if wanted is None:
        return None
    return frozenset(kind for kind in KINDS if (kind in wanted) is (negated is (form == "NotExpr")))


def _kinds_beside(left: Node, right: Node) -> frozenset[str] | None:
    for one, other in ((left, right), (right, left)):
        if _is_kind(one) and "String" in other:
            return frozenset({other["String"]["value"]})
    return None


def _listed(collection: Node) -> frozenset[str] | None:
    for form in ("Set", "Array"):
        if form in collection and all("String" in item for item in collection[form]["items"]):
            return frozenset(item["String"]["value"] for item in collection[form]["items"])
    return None


def _is_kind(node: Node) -> bool:
    """Whether this is `input.call.kind`, written so."""
    for name in ("kind", "call"):
        if "RefDot" not in node or node["RefDot"]["field"][1] != name:
            return False
        node = node["RefDot"]["refr"]
    return "Var" in node and node["Var"]["value"] == "input"


def _time(reads: Iterable[Read]) -> Iterator[Reason]:
    for read in reads:
        if not read.path:
            if read.whole:
                yield Reason("it reads the whole input, the time included", read.file, read.line)
        elif read.path[0] == "time":
            yield Reason(f"it reads `{shown(read.path)}`", read.file, read.line)


def _money(reads: Iterable[Read]) -> Iterator[Reason]:
    """Exact money: whatever of a budget is not known to be coarse, and what the call may cost.

    Who reads the whole call reads all that its cost follows from, too, so that nothing varies for the cost alone.
    """
    for read in reads:
        if read.path[:2] == ESTIMATE and read.whole:
            yield Reason(f"it reads `{shown(read.path)}`, which is another with every prompt", read.file, read.line)
        if read.path[:1] != BUDGETS:
            continue
        below = read.path[1:]
        if len(below) < 2 and not read.whole:
            continue
        if len(below) < 2 or below[1] not in COARSE_MONEY:
            yield Reason(f"it reads `{shown(read.path)}`, which holds exact money", read.file, read.line)


def _shut(reads: Mapping[Read, set[Guards]]) -> dict[str, Any]:
    """Fields of KindReads: which guards keep all exact money from being read, and what is read where they do; none
    where there is no such place."""
    exact = {read: ways for read, ways in reads.items() if any(_money([read]))}
    shut: set[Guards] = set()
    for ways in exact.values():
        for way in ways:
            opened(shut, way)
    if not shut or OPEN in shut:
        return {}
    left = [
        read
        for read, ways in reads.items()
        if not ((read.path[:1] == BUDGETS or read.path[:2] == ESTIMATE) and shut_with(ways, shut))
    ]
    otherwise = _coarse(minimal(left))
    if any(_money(otherwise)):
        return {}
    guards = sorted(tuple(sorted(guard.query for guard in way)) for way in shut)
    return {"guards": tuple(guards), "otherwise": otherwise}


def _told(kind: str, reads: KindReads) -> Iterator[str]:
    yield f"calls of kind {kind}"
    yield "  read " + ("nothing of the input" if not reads.reads else ", ".join(map(str, reads.reads)))
    if reads.unstable:
        yield "  decisions are not reused:"
        yield from (f"    {reason}" for reason in reads.unstable)
    elif reads.money:
        yield from _reused_without(reads.guards)
        yield from (f"    {reason}" for reason in reads.money)
    else:
        yield "  decisions are reused"


def _reused_without(guards: Iterable[Sequence[str]]) -> Iterator[str]:
    told = " and without ".join(" or ".join(f"`{query}`" for query in way) for way in guards)
    agents = f"agents without {told}, and for " if told else ""
    yield f"  decisions are reused for {agents}calls without budgets and price; for others not:"


def _kind_from_json(value: Mapping[str, Any]) -> KindReads:
    return KindReads(
        _reads_from_json(value["reads"]),
        tuple(Reason(**each) for each in value["unstable"]),
        tuple(Reason(**each) for each in value["money"]),
        tuple(tuple(each) for each in value["guards"]),
        _reads_from_json(value["otherwise"]),
    )


def _reads_from_json(value: Iterable[Mapping[str, Any]]) -> tuple[Read, ...]:
    return tuple(Read(tuple(each["path"]), each["whole"], each["file"], each["line"]) for each in value)


def _step(step: str) -> str:
    return f".{step}" if step.isidentifier() and step.isascii() else f'["{step}"]'


def _first_file(trees: Sequence[Node]) -> str:
    try:
        return str(trees[0]["source"]["file"])
    except (LookupError, TypeError):
        return "policy"
