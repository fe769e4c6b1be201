"""Random policies put to random calls: with only what they read and with decisions reused, they must decide as they do
afresh on the whole document.

`python -m tests.policies.fuzz_reads SECONDS [SEED]` goes on for so long and prints its figures.
"""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import jiter
import orjson

from policies.build import warm
from policies.decision import Decision
from policies.document import Kind, Phase, Question
from policies.embedded import EmbeddedEngine
from policies.errors import InputRefused, Undecided
from policies.interpreter import Clock, create
from policies.reads import KINDS, Reads, analyse
from tests.policies import misers
from tests.policies.misers import Miser
from tests.policies.support import Purse

_WORDS: Final = ("a", "b", "c", "tool", "llm", "max_tokens", "", "0", "a.b")
_FIELDS: Final = ("a", "b", "c", "max_tokens", "messages")
_ESCAPED: Final = (r"\u0061", r"a\u0062")
_ROOTS: Final = (
    "call.arguments", "call.arguments", "call.arguments", "call.arguments.a", "call.arguments.b", "call.target",
    "call.operation", "call.session", "call.stream", "call.kind", "call.protocol", "call", "agent", "agent.name",
    "agent.roles", "agent.autonomy_tier", "budgets", "approval", "approval.roles", "nothing", "call.phase",
    "call.result", "call.result.a",
)  # fmt: skip
_LIB: Final = ("one", "two", "three")
_IMPORTS: Final = {"c": "input.call as c", "agent": "input.agent", "one": "data.lib.one", "shelf": "data.lib as shelf"}
_SPELLINGS: Final = {
    "c": ('input["call"] as c', r'input["c\u0061ll"] as c', "input.call as c"),
    "agent": ('input["agent"]', r'input["\u0061gent"]'),
    "one": ('data.lib["one"]', r'data["l\u0069b"].one'),
    "shelf": ('data["lib"] as shelf', r'data["l\u0069b"] as shelf'),
}
"""The same imports, written less plainly."""
_TABLE: Final = {
    "table": {"a": {"b": 1, "c": [1, 2]}, "b": "c", "tool": {"a": True}, "gpt": {}},
    "words": ["a", "b", "tool"],
}


class MinusZero(int):
    """A zero that is written with a sign."""


@dataclass(slots=True)
class Figures:
    """What has been tried, so that one sees whether it was worth anything."""

    policies: int = 0
    broken: int = 0
    narrow: int = 0
    calls: int = 0
    decided: int = 0
    undecided: int = 0
    reused: int = 0
    guarded: int = 0
    shut: int = 0
    outside: int = 0
    inside: int = 0
    changed: int = 0
    differences: list[str] = field(default_factory=list)

    def text(self) -> str:
        return (
            f"{self.policies} policies ({self.broken} more did not load), {self.narrow} read less than everything, "
            f"{self.guarded} had guards before money; {self.shut} calls with money found them shut; "
            f"{self.calls} calls, {self.decided} decided, {self.undecided} not; {self.reused} decisions reused; "
            f"{self.outside} changes outside of what is read, {self.inside} inside, of which {self.changed} changed "
            f"the decision; {len(self.differences)} differences"
        )


class Author:
    """Writes policies. A rule refers only to those after it, so that none refers to itself."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._rules: list[str] = []
        self._functions: list[tuple[str, int]] = []
        self._lib: tuple[str, ...] = ()
        self._imported: tuple[str, ...] = ()
        self._names: list[str] = []
        self._next = 0
        self._wild = chance.random() < 0.25
        self._timed = chance.random() < 0.1

    def policy(self) -> list[str]:
        """The files of one policy."""
        pick = self._chance
        shelf = (
            pick.choice(('data["lib"]', r'data["\u006cib"]')).removeprefix("data") if pick.random() < 0.05 else "lib"
        )
        library = f"package {shelf}\n\nimport rego.v1\n\n" + "\n".join(self._rule(name, 2) for name in _LIB)
        self._rules, self._functions, self._lib = [], [], _LIB
        self._imported = tuple(name for name in _IMPORTS if pick.random() < 0.5)
        count = pick.randint(0, 5)
        texts = []
        for number in reversed(range(count)):
            if pick.random() < 0.35:
                name, arity = f"f{number}", pick.randint(1, 2)
                texts.append(self._function(name, arity))
                self._functions.append((name, arity))
            else:
                name = f"r{number}"
                texts.append(self._rule(name, 3))
                self._rules.append(name)
        texts.append(self._decision())
        pick.shuffle(texts)
        written = {
            name: pick.choice(_SPELLINGS[name]) if pick.random() < 0.05 else _IMPORTS[name] for name in self._imported
        }
        imports = "".join(f"import {each}\n" for each in written.values())
        cut = pick.randint(0, len(texts))
        head = f"package weighbridge\n\nimport rego.v1\n{imports}\n"
        # The interpreter lets a file use the imports of another file of its package.
        other = "package weighbridge\n\nimport rego.v1\n" + (imports if pick.random() < 0.7 else "") + "\n"
        return [head + "\n".join(texts[:cut]), other + "\n".join(texts[cut:]), library]

    def _decision(self) -> str:
        pick = self._chance
        text = 'default decision := {"decision": "DENY"}\n\n'
        for number in range(pick.randint(1, 3)):
            self._names = []
            body = self._body(2)
            effect = pick.choice(("ALLOW", "DENY", "NEEDS_APPROVAL"))
            answer = f'{{"decision": "{effect}", "explanation": json.marshal({self._expression(3)})}}'
            text += f"decision := {answer} if {body}" if not number else f" else := {answer} if {body}"
        if pick.random() < 0.8:
            # What is not there makes an empty list, so that much of what is read is also seen.
            self._names = []
            seen = ", ".join(f"[seen{number} | seen{number} := {self._expression(2)}]" for number in range(4))
            text += f' else := {{"decision": "DENY", "explanation": json.marshal([{seen}])}}'
        return text + "\n"

    def _rule(self, name: str, depth: int) -> str:
        pick = self._chance
        self._names = []
        body = self._body(depth)
        match pick.randint(0, 8):
            case 7:
                return f"{name}[{self._expression(1)}][{self._expression(1)}] := {self._expression(2)} if {body}\n"
            case 8:
                return f"{name}[{self._expression(1)}] contains {self._expression(2)} if {body}\n"
            case 0:
                return f"{name} contains {self._expression(2)} if {body}\n"
            case 1:
                return f"{name}[{self._expression(1)}] := {self._expression(2)} if {body}\n"
            case 2:
                self._names = []
                return f"{name} := {self._expression(depth)}\n"
            case 3:
                return f"{name} if {body}\n"
            case _:
                text = f"{name} := {self._expression(2)} if {body}"
                while pick.random() < 0.4:
                    self._names = []
                    body = self._body(depth)
                    text += f" else := {self._expression(2)} if {body}"
                if pick.random() < 0.2:
                    text = f"default {name} := {self._literal()}\n\n{text}"
                return text + "\n"

    def _function(self, name: str, arity: int) -> str:
        pick = self._chance
        patterns = []
        self._names = []
        for number in range(arity):
            variable = f"p{number}"
            pattern = pick.choice((variable, variable, variable, f'{{"a": {variable}}}', f"[{variable}, _]"))
            patterns.append(pattern)
            self._names.append(variable)
        given = ", ".join(patterns)
        kept = list(self._names)
        body = self._body(2)
        text = f"{name}({given}) := {self._expression(2)} if {body}"
        if pick.random() < 0.1:
            text = f"default {name}({', '.join('_' * arity)}) := {self._literal()}\n\n{text}"
        if pick.random() < 0.4:
            self._names = kept
            body = self._body(2)
            text += f" else := {self._expression(2)} if {body}"
        return text + "\n"

    def _body(self, depth: int) -> str:
        pick = self._chance
        statements = []
        if pick.random() < 0.45:
            statements.append(self._guard())
            if pick.random() < 0.2:
                statements.append(self._guard())
        for _ in range(pick.randint(0 if statements else 1, 3)):
            statements.append(self._statement(depth))
        if pick.random() < 0.1:
            pick.shuffle(statements)
        return "{\n\t" + "\n\t".join(statements) + "\n}"

    def _guard(self) -> str:
        pick = self._chance
        kind = pick.choice(KINDS)
        text = pick.choice(
            (
                f'input.call.kind == "{kind}"', f'input.call.kind != "{kind}"', f'"{kind}" == input.call.kind',
                f'input.call.kind in {{"{kind}", "tool"}}', f'input.call.kind in ["{kind}"]',
                f'not input.call.kind == "{kind}"', f'not input.call.kind in {{"{kind}", "llm"}}',
                f'not input.call.kind != "{kind}"', 'input.call.kind == "dance"', f'input["call"].kind == "{kind}"',
            )
        )  # fmt: skip
        return str(text)

    def _statement(self, depth: int) -> str:
        pick = self._chance
        match pick.randint(0, 13) if not (self._wild and pick.random() < 0.15) else 10:
            case 0 | 1:
                value = self._expression(depth - 1)
                return f"{self._new()} := {value}"
            case 2:
                return f"not {self._expression(depth - 1)}"
            case 3:
                source = self._collection(depth)
                return f"some {self._new()} in {source}"
            case 4:
                source = self._collection(depth)
                return f"some {self._new()}, {self._new()} in {source}"
            case 5:
                source = self._collection(depth)
                before = list(self._names)
                variable = f"{self._new()}, {self._new()}" if pick.random() < 0.3 else self._new()
                inner = self._statement(1) if depth > 1 and pick.random() < 0.5 else f"{self._names[-1]}.a"
                self._names = before
                return f"every {variable} in {source} {{ {inner} }}"
            case 6:
                source = self._path()
                return f"[{self._new()}, {self._new()}] = {source}"
            case 7:
                source = self._path()
                return f'{{"a": {self._new()}}} := {source}' if pick.random() < 0.5 else f"{source} = {self._new()}"
            case 8:
                variable = self._new()
                return f"some {variable}; {self._path()}[{variable}]"
            case 9:
                operator = pick.choice(("==", "!=", "<", ">=", "in"))
                return f"{self._expression(depth - 1)} {operator} {self._expression(depth - 1)}"
            case 10 if self._wild:
                change = pick.choice(("input.call.kind", "input.call.arguments", "data.table", "input"))
                return f"{self._expression(depth - 1)} with {change} as {self._expression(1)}"
            case 11:
                source = self._collection(depth)
                return f"walk({source}, [{self._new()}, {self._new()}])"
            case _:
                return self._expression(depth - 1)

    def _new(self) -> str:
        # Now and then a name that is in use already, in the same body or as that of a rule.
        self._next += 1
        name = f"x{self._next}"
        if self._wild and self._chance.random() < 0.1:
            name = self._chance.choice((*self._names, "r1", "agent", "c"))
        self._names.append(name)
        return name

    def _collection(self, depth: int) -> str:
        return self._path() if self._chance.random() < 0.7 else self._expression(depth - 1)

    def _path(self) -> str:
        pick = self._chance
        text = "input." + pick.choice(_ROOTS)
        if pick.random() < 0.15 and self._names:
            text = pick.choice(self._names)
        elif pick.random() < 0.2 and {"c", "agent"} & {*self._imported}:
            text = pick.choice(
                [each for each in ("c", "c.arguments", "agent", "agent.name") if each.split(".")[0] in self._imported]
            )
        elif self._wild and pick.random() < 0.1:
            text = pick.choice(("input", "input.time", "input[input.call.target]"))
        for _ in range(pick.choice((0, 0, 1, 1, 2))):
            text += self._step()
        return text

    def _step(self) -> str:
        pick = self._chance
        match pick.randint(0, 9):
            case 0:
                return f'["{pick.choice(_FIELDS)}"]'
            case 1:
                return "[_]"
            case 2:
                return f"[{pick.randint(0, 2)}]"
            case 3 if self._names:
                return f"[{pick.choice(self._names)}]"
            case 4:
                return f"[input.call.{pick.choice(('target', 'operation'))}]"
            case 5:
                return f'["{pick.choice(("a.b", "", "0", *_ESCAPED))}"]'
            case _:
                return f".{pick.choice((*_FIELDS, 'state', 'node', 'posted_usd'))}"

    def _expression(self, depth: int) -> str:
        pick = self._chance
        if depth <= 0:
            return self._path() if pick.random() < 0.6 else self._atom()
        match pick.randint(0, 15):
            case 0:
                return f"[{self._expression(depth - 1)}, {self._expression(depth - 1)}]"
            case 1:
                return f'{{"a": {self._expression(depth - 1)}, "b": {self._atom()}}}'
            case 2:
                return f"{{{self._expression(depth - 1)}}}"
            case 3 | 4:
                return self._comprehension(depth)
            case 5 | 6:
                return self._builtin(depth)
            case 7 if self._functions:
                name, arity = pick.choice(self._functions)
                return f"{name}({', '.join(self._expression(depth - 1) for _ in range(arity))})"
            case 8:
                return f"({self._expression(depth - 1)} {pick.choice(('+', '*', '-'))} {self._atom()})"
            case 9 | 10:
                return self._atom()
            case _:
                return self._path()

    def _comprehension(self, depth: int) -> str:
        pick = self._chance
        before = list(self._names)
        source = self._collection(depth)
        key, value = self._new(), self._new()
        more = f"; {self._statement(1)}" if pick.random() < 0.4 else ""
        term = pick.choice((value, f"{value}.a", key, self._expression(1)))
        binding = pick.choice(
            (
                f"some {key}, {value} in {source}",
                f"{value} := {source}[{key}]",
                f"some {value} in {source}; {key} := {value}",
            )
        )
        if binding.startswith(f"{value} :="):
            binding = f"some {key}; {binding}"
        text = pick.choice(
            (f"[{term} | {binding}{more}]", f"{{{term} | {binding}{more}}}", f"{{{key}: {term} | {binding}{more}}}")
        )
        self._names = before
        return str(text)

    def _builtin(self, depth: int) -> str:
        pick = self._chance
        one = self._expression(depth - 1)
        match pick.randint(0, 16):
            case 13:
                name = pick.choice(("filter", "remove"))
                return f'json.{name}({self._path()}, ["a", "arguments/a", "b/0"])'
            case 14:
                return f'json.patch({self._path()}, [{{"op": "add", "path": "z", "value": {one}}}])'
            case 15:
                return f"{{{self._literal()}: {one}}}[{self._path()}]"
            case 16:
                return f'{{"a": {self._path()}}}["a"].b'
            case 0:
                return f"count({one})"
            case 1 | 2:
                path = pick.choice(('"a"', '"b"', '["arguments", "a"]', '["a", "b"]', '["b", 0]', "[]", '"max_tokens"'))
                if pick.random() < 0.2:
                    path = pick.choice((one, "input.call.target", f'["arguments", {one}]', r'"\u0061"', "`a`"))
                base = pick.choice(("input.call", "input.call.arguments", "input.call.arguments.a", one))
                return f"object.get({base}, {path}, {self._atom()})"
            case 3 | 4:
                kind = pick.choice(("object", "array", "string", "number", "boolean", "null"))
                return f"is_{kind}({self._path()})"
            case 5:
                return f"upper({one})"
            case 6:
                return f"json.marshal({one})"
            case 7:
                return f"object.keys({self._path()})"
            case 8:
                return f"to_number({one})"
            case 9:
                return f"array.concat({one}, {one})"
            case 10 if self._wild:
                return "time.now_ns()"
            case 11:
                return f"object.union({self._path()}, {{}})"
            case _:
                return f'sprintf("%v", [{one}])'

    def _atom(self) -> str:
        pick = self._chance
        if self._timed and pick.random() < 0.2:
            return pick.choice(("time.now_ns()", "input.time.unix_ns", "input.time"))
        match pick.randint(0, 7):
            case 0 if self._names:
                return pick.choice(self._names)
            case 1 | 2 if self._rules:
                name = pick.choice(self._rules)
                return pick.choice((name, name, f"{name}.a", f"data.weighbridge.{name}", f"{name}[_]"))
            case 3 if self._lib:
                name = pick.choice(self._lib)
                known = {"one": "one", "shelf": f"shelf.{name}"}
                imported = [known[each] for each in self._imported if each in known]
                return pick.choice((f"data.lib.{name}", *imported, "data.lib", f"data.lib[{self._path()}]"))
            case 4:
                return pick.choice((f"data.table[{self._path()}]", "data.table.a", f"data.table.a[{self._path()}]"))
            case _:
                return self._literal()

    def _literal(self) -> str:
        return str(self._chance.choice(("0", "1", "2.5", "true", "false", "null", '"a"', '"b"', '"tool"', "[]", "{}")))


class Caller:
    """Makes calls, and calls that differ from others in one place."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._written: dict[bytes, Any] = {}

    def value(self, depth: int = 3) -> Any:
        pick = self._chance
        match pick.randint(0, 9 if depth else 5):
            case 0 | 1:
                return pick.choice(_WORDS)
            case 2:
                return pick.choice((0, MinusZero(), 1, 2, 100, -1, 2**53 + 1, 2**63, 2**64, 10**30))
            case 3:
                return pick.choice((0.5, 1.0, -0.0, 1e300, 1e-7)) if pick.random() < 0.97 else float("inf")
            case 4:
                return pick.choice((True, False))
            case 5:
                return None
            case 6 | 7:
                return {pick.choice((*_FIELDS, *_WORDS)): self.value(depth - 1) for _ in range(pick.randint(0, 4))}
            case _:
                return [self.value(depth - 1) for _ in range(pick.randint(0, 3))]

    def arguments(self) -> dict[str, Any]:
        names = [name for name in _FIELDS if self._chance.random() < 0.7]
        return {name: self.value() for name in (*names, *(_ESCAPED if self._chance.random() < 0.2 else ()))}

    def agent(self) -> bytes:
        pick = self._chance
        return orjson.dumps(
            {
                "name": pick.choice(("a", "b", "gpt")),
                "tenant": "acme",
                "roles": pick.choice(([], ["a"], ["b", "tool"])),
                "autonomy_tier": pick.randint(0, 3),
                "state": pick.choice(("active", "paused")),
            }
        )

    def money(self) -> Purse | None:
        pick = self._chance
        if pick.random() < 0.4:
            return None
        budgets = [
            {
                "node": pick.choice("ab"),
                "posted_usd": pick.choice((pick.random(), pick.random(), 0, "a")),
                "pending_usd": pick.choice((pick.random(), 0)),
                "used_percent": pick.choice((20, 80)),
                "state": pick.choice(("ok", "warning")),
                "a": pick.choice("ab"),
            }
            for _ in range(pick.randint(0, 2))
        ]
        return Purse(orjson.dumps(budgets), pick.choice((None, pick.randint(0, 10**9))))

    def approval(self) -> bytes | None:
        pick = self._chance
        return None if pick.random() < 0.7 else orjson.dumps({"id": pick.choice("ab"), "roles": ["a"], "a": {"b": 1}})

    def call(self) -> Question:
        pick = self._chance
        kind: Kind = pick.choice(KINDS)
        body, arguments = self._sent(self.arguments())
        return Question(
            self.agent(), kind, pick.choice(("mcp", "openai")), pick.choice(_WORDS), pick.choice(_WORDS),
            pick.choice((None, True, False)), pick.choice((None, "s", "a")), body, arguments,
            pick.randint(0, 2**60), self.money(), self.approval(), *self.phase(),
        )  # fmt: skip

    def phase(self) -> tuple[Phase | None, bytes | None]:
        pick = self._chance
        phase: Phase | None = pick.choice((None, None, None, "list", "result"))
        return phase, self._sent(self.arguments())[0] if phase == "result" else None

    def changed(self, call: Question, *, mostly_money: bool) -> Question:
        """The same call but for one thing, the time aside, which is always another."""
        pick = self._chance
        other = self.call()
        name = pick.choice(
            (
                "agent",
                "target",
                "operation",
                "stream",
                "session",
                "money",
                "approval",
                "protocol",
                "phase",
                *["arguments"] * 8,
            )
        )
        if mostly_money and pick.random() < 0.7:
            name = "money"
        if name == "phase":
            return replace(call, now_ns=other.now_ns, phase=other.phase, result=other.result)
        if name != "arguments":
            return replace(call, now_ns=other.now_ns, **{name: getattr(other, name)})
        written = copy.deepcopy(self._written[call.body])
        inner: Any = written
        while pick.random() < 0.5:
            inside = [
                each for each in (inner.values() if isinstance(inner, dict) else inner) if isinstance(each, dict | list)
            ]
            if not inside:
                break
            inner = pick.choice(inside)
        if isinstance(inner, list):
            inner[pick.randrange(len(inner) + 1) :] = [self.value(1)]
        elif inner and pick.random() < 0.3:
            inner.pop(pick.choice(list(inner)))
        else:
            inner[pick.choice(_FIELDS)] = self.value(1)
        body, arguments = self._sent(written)
        return replace(call, now_ns=other.now_ns, body=body, arguments=arguments)

    def _sent(self, written: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """The body of a call, and what the gateway makes of it."""
        body = text(written)
        self._written[body] = written
        return body, jiter.from_json(body, allow_inf_nan=False)


def text(arguments: Any) -> bytes:
    """As JSON, with numbers that only some readers take: the arguments as a caller may have written them."""
    if isinstance(arguments, dict):
        return b"{%b}" % b", ".join(b"%b: %b" % (orjson.dumps(key), text(value)) for key, value in arguments.items())
    if isinstance(arguments, list):
        return b"[%b]" % b",".join(map(text, arguments))
    if isinstance(arguments, float) and arguments in (float("inf"), 0.0):
        return b"1e999" if arguments else b"-0.0"
    if isinstance(arguments, MinusZero):
        return b"-0"
    if isinstance(arguments, int) and not isinstance(arguments, bool):
        return b"%d" % arguments
    return orjson.dumps(arguments)


def engine_of(texts: list[str], data: Mapping[str, Any] = _TABLE) -> EmbeddedEngine:
    """An engine as it is built for a proven policy. Raises what the interpreter raises."""
    clock = Clock()
    base = create(clock)
    for number, policy in enumerate(texts):
        base.add_policy(f"p{number}.rego", policy)
    base.add_data_json(orjson.dumps(data).decode())
    reads = analyse(orjson.loads(base.get_ast_as_json()))
    assert Reads.from_json(orjson.loads(orjson.dumps(reads.as_json()))) == reads
    warm(base)
    return EmbeddedEngine(base, clock, "r", reads=reads)


def reused(engine: EmbeddedEngine, call: Question) -> Decision | str:
    """What the engine decides as it decides calls."""
    try:
        engine.decide(call).send(None)
    except StopIteration as ended:
        decision: Decision = ended.value
        return decision
    except (Undecided, InputRefused) as error:
        return type(error).__name__
    raise AssertionError("it waited for something")


def afresh(engine: EmbeddedEngine, call: Question, *, as_recorded: bool = False) -> Decision | str:
    """What it decides on the whole document, or on what a record would have of it."""
    try:
        return engine.answer(call.recorded(call.body) if as_recorded else call.document(), call.now_ns)
    except (Undecided, InputRefused) as error:
        return type(error).__name__


def try_policy(seed: int, figures: Figures, *, calls: int = 6, changes: int = 4) -> None:
    """One random policy, some calls and some changes of each; what differs is told in `figures`."""
    chance = random.Random(seed)
    miserly = chance.random() < 0.3
    texts = Miser(chance).policy() if miserly else Author(chance).policy()
    over_rules = misers.OVER_RULES if chance.random() < 0.1 else {}
    caller = Caller(chance)
    try:
        engine = engine_of(texts, misers.DATA | over_rules if miserly else _TABLE)
    except RuntimeError:
        figures.broken += 1
        return
    figures.policies += 1
    figures.narrow += any(not engine.reads.of(kind).everything for kind in KINDS)
    figures.guarded += any(engine.reads.of(kind).guards for kind in KINDS)
    before: dict[str, Decision | str] = {}
    for _ in range(calls):
        call = caller.call()
        for number in range(changes + 1):
            asked = caller.changed(call, mostly_money=miserly) if number else call
            whole, part = afresh(engine, replace(asked)), reused(engine, asked)
            # What a tool has answered is not recorded.
            recorded = asked.money is not None and asked.result is None
            again = afresh(engine, asked, as_recorded=True) if recorded else whole
            figures.calls += 1
            figures.shut += asked.money is not None and engine._ways[asked.kind].shut.get(asked.agent, False)
            figures.decided += isinstance(whole, Decision)
            figures.undecided += not isinstance(whole, Decision)
            # A number that nobody can read is refused only where it is read.
            if not whole == part == again and whole != "InputRefused":
                told = b"".join(f"--- {text}\n".encode() for text in texts)
                figures.differences.append(
                    f"seed {seed}\n{told.decode()}\n{asked.document().decode()}\n{whole}\n{part}\n{again}"
                )
                return
            if not number:
                before = {"whole": whole}
                continue
            way = engine._ways[call.kind]
            same = way.project(call) == way.project(asked) is not None
            figures.outside += same
            figures.inside += not same
            figures.changed += whole != before["whole"] and not same
    figures.reused += engine.reuse.hits


def main() -> None:
    """The long way."""
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    figures, ends = Figures(), time.monotonic() + seconds
    first = seed
    while time.monotonic() < ends and len(figures.differences) < 5:
        try_policy(seed, figures)
        seed += 1
    sys.stdout.write("\n\n".join((f"seeds {first} to {seed - 1}: {figures.text()}", *figures.differences, "")))
    sys.exit(1 if figures.differences else 0)


if __name__ == "__main__":
    main()
