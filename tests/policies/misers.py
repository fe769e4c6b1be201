"""Random policies about money, most of which is read behind guards: references into data without which a body fails."""

from __future__ import annotations

import random
from typing import Any, Final

DATA: Final[dict[str, Any]] = {
    "caps": {"a": {"cap": 5, "list": [1], "no": False}, "gpt": {"list": []}, "on": True},
    "words": ["a", "b", "tool"],
}
OVER_RULES: Final[dict[str, Any]] = {"weighbridge": {"own": {"cap": 1}, "computed": {"b": {"cap": 1}}}}
"""Data where the policy has rules."""

_NAMED: Final = ("input.agent.name", "input.agent.name", "input.call.target")
_OWN: Final = (
    "own := data.caps[input.agent.name]", "own := data.caps[named]", "own := data.caps.a if input.agent.name",
    'own := data.caps[input.agent.name] if input.call.target == "a"', "own := data.caps[input.call.target]",
    'own := data.caps[input.agent.name] if input.call.target == "a" else := data.caps.a',
    "default own := {}\n\nown := data.caps[input.agent.name]", "own.cap := data.caps[input.agent.name].cap",
    "own := data.caps[input.agent.name]\n\nown := data.caps.a if data.caps[input.agent.name].cap > 9",
    'own["cap"] := 1 if input.call.target == "a"\n\nown["list"] := data.caps[input.agent.name].list',
    "own := data.caps[input.agent.name] if input.budgets[0]", "own contains data.caps[input.agent.name].cap",
)  # fmt: skip
_COMPUTED: Final = (
    "computed[name] := data.caps[name] if some name in input.agent.roles", "computed := data.caps",
    "computed[name] := data.caps[name] if some name, _ in data.caps", 'computed[input.call.target] := {"cap": 1}',
    'computed[input.agent.name] := 1 if input.call.target == "a"', "computed := {named: {`cap`: spent}}",
)  # fmt: skip
_GUARDS: Final = (
    "data.caps[input.agent.name]", "data.caps[input.agent.name].cap", "data.caps[input.agent.name].cap",
    'data["caps"][input.agent.name]["cap"]', "data.caps[input.agent.name].no", "data.caps[named].cap", "own.cap", "own",
    "data.caps.on", "data.caps.off", "data.caps[input.agent.tenant]", "data.caps[input.agent.roles[0]].cap",
    "own[named]", "computed[input.agent.name]", "computed[input.agent.name].cap", "data.weighbridge.own.cap",
    "data.caps[input.call.target].cap", "data.caps[_].cap", "data.other[input.agent.name]", "data.caps[own.cap]",
    "data.caps[data.words[0]].cap", "data[input.agent.name]", "input.call.session",
    "data.weighbridge[input.agent.name]",
)  # fmt: skip
_MONEY: Final = (
    "input.budgets[0].posted_usd", "input.budgets[_].posted_usd", "input.call.estimated_cost_usd", "spent",
    "sum([each.posted_usd | some each in input.budgets])", "input.budgets[1].pending_usd", "data.weighbridge.spent",
    'object.get(input.call, "estimated_cost_usd", 0)', "[each | some each in input.budgets]", "input.budgets",
    "count({each.pending_usd | some each in input.budgets})", "(1 / input.budgets[0].pending_usd)",
    "input.budgets[0].state", "input.budgets[_].used_percent", "round(input.budgets[_].posted_usd)",
    "(1 / input.budgets[_].pending_usd)", "upper(input.budgets[0].posted_usd)", "over(1)", "guarded",
)  # fmt: skip
_WITHOUT_RULES: Final = _MONEY[:17]


class Miser:
    """Writes policies that tell all they see of a call's money."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._next = 0
        self._names: list[str] = []

    def policy(self) -> list[str]:
        """The files of one policy."""
        pick = self._chance
        texts = self._common()
        told = []
        for number in range(pick.randint(1, 3)):
            texts.append(self._rule(f"m{number}"))
            told.append(f"[seen | seen := m{number}]")
        answer = f'{{"decision": "ALLOW", "explanation": json.marshal([{", ".join(told)}])}}'
        texts.append(f"decision := {answer}\n")
        pick.shuffle(texts)
        files = ["package weighbridge\n\nimport rego.v1\n\n" + "\n".join(texts)]
        if pick.random() < 0.1:
            rule = pick.choice(
                ('b.cap := 1 if input.call.target == "a"', "c := 1", "b.cap := input.budgets[0].posted_usd")
            )
            files.append(f"package caps\n\nimport rego.v1\n\n{rule}\n")
        return files

    def _common(self) -> list[str]:
        """Rules that all others may refer to."""
        pick = self._chance
        guard, other = self._guard(), self._guard()
        return [
            f"named := {pick.choice(_NAMED)}\n",
            pick.choice(_OWN) + "\n",
            pick.choice(_COMPUTED) + "\n",
            "spent := sum([each.posted_usd | some each in input.budgets])\n",
            f"over(x) := {pick.choice(_WITHOUT_RULES)} if {{\n\t{guard}\n\t{pick.choice(_WITHOUT_RULES)} > x\n}}\n",
            f"guarded := spent if {{\n\t{pick.choice(_GUARDS)}\n}} else := 1 if {{\n\t{other}\n\tspent > 1\n}}\n",
        ]

    def _rule(self, name: str) -> str:
        pick = self._chance
        self._names = []
        statements = [self._guard() for _ in range(pick.choice((1, 1, 1, 2)))]
        statements += [self._reading() for _ in range(pick.choice((0, 1, 1, 2)))]
        if pick.random() < 0.3:
            more = ('input.call.kind == "tool"', "input.agent.name", f"{self._new()} := input.call.target", "some i")
            statements.insert(0, pick.choice(more))
        if pick.random() < 0.15:
            pick.shuffle(statements)
        body = "{\n\t" + "\n\t".join(statements) + "\n}"
        value = pick.choice((*_MONEY, *self._names, "1"))
        match pick.randint(0, 9):
            case 0:
                return f"{name} contains {value} if {body}\n"
            case 1:
                return f"{name}[input.agent.name] := {value} if {body}\n"
            case 2:
                return f"{name}[{pick.choice(_MONEY)}] := {value} if {body}\n"
            case 3:
                parameter = pick.choice(("own", "x", "cap"))
                argument = pick.choice(("input.agent", "data.caps[input.agent.name]", pick.choice(_MONEY)))
                return f"{name} := fun{name}({argument})\n\nfun{name}({parameter}) := {value} if {body}\n"
            case 4:
                return f"{name} := [{value} | {'; '.join(statements)}]\n".replace("\n\t", "; ")
            case 5:
                return f"default {name} := 0\n\n{name} := {value} if {body}\n"
            case 6 | 7:
                otherwise = pick.choice((f"{{\n\t{self._guard()}\n\t{self._reading()}\n}}", body))
                return f"{name} := {value} if {body} else := {pick.choice((*_MONEY, '2'))} if {otherwise}\n"
            case _:
                return f"{name} := {value} if {body}\n"

    def _guard(self) -> str:
        """A statement, or two, that may be a guard."""
        pick = self._chance
        reference = pick.choice(_GUARDS[:12] if pick.random() < 0.6 else _GUARDS)
        match pick.randint(0, 14):
            case 0 | 1:
                return f"{self._new()} := {reference}"
            case 2:
                return f"{reference} {pick.choice(('>', '==', '!='))} {pick.choice(('1', 'true', 'null'))}"
            case 3:
                return f"not {reference}"
            case 4:
                return f"some {self._new()} in {pick.choice((reference, 'data.caps[input.agent.name].list'))}"
            case 5:
                name = self._new()
                return f"{name} := data.caps[input.agent.name]\n\t{self._new()} := {name}.cap"
            case 6:
                name = self._new()
                return f"{name} := {pick.choice(_NAMED)}\n\tdata.caps[{name}].cap"
            case 7:
                name = self._new()
                first, then = f"{name} := data.caps[input.agent.name]", f"{name}.cap"
                return f"{then}\n\t{first}" if pick.random() < 0.3 else f"{first}\n\t{then}"
            case 8:
                return f"object.get({reference}, [], null) != null"
            case 9:
                return f"{reference} = {self._new()}"
            case 10:
                return f"count([1 | {reference}]) {pick.choice(('<', '=='))} 1"
            case _:
                return reference

    def _reading(self) -> str:
        """A statement that reads money, with a guard of its own or without."""
        pick = self._chance
        read = pick.choice(_MONEY)
        match pick.randint(0, 9):
            case 0 | 1:
                return f"{self._new()} := {read}"
            case 2:
                return f"not {read} > 0.5"
            case 3:
                inner = f"{self._guard()}; {read} > 0.5".replace("\n\t", "; ")
                return f"count([1 | {inner}]) < 1"
            case 4:
                domain = pick.choice(("input.budgets", "data.words", "[1]"))
                return f"every each in {domain} {{ {self._guard()}; {read} > 0.5 }}".replace("\n\t", "; ")
            case 5:
                return f"{self._new()} := [{read} | {self._guard()}]".replace("\n\t", "; ")
            case 6:
                return f"some {self._new()} in [{read}]"
            case _:
                return f"{read} {pick.choice(('<', '>', '!='))} {pick.choice(('0.5', '1', '0'))}"

    def _new(self) -> str:
        # Now and then a name that means something else already.
        self._next += 1
        name = f"x{self._next}"
        if self._chance.random() < 0.05:
            name = self._chance.choice((*self._names, "own", "named", "computed"))
        self._names.append(name)
        return name
