"""What the linter finds, each with its line, and what it must let pass."""

import textwrap
from typing import Any

import orjson
import pytest

from policies.errors import Problem
from policies.interpreter import Clock, builtins, create
from policies.lint import lint, scattered

_ENTRY = 'decision := {"decision": "ALLOW"}'


def problems(*texts: str, data: dict[str, Any] | None = None, entry: bool = True) -> list[Problem]:
    interpreter = create(Clock())
    if entry:
        interpreter.add_policy("entry.rego", f"package weighbridge\n{_ENTRY}")
    for number, text in enumerate(texts):
        interpreter.add_policy(f"p{number}.rego", textwrap.dedent(text))
    return lint(orjson.loads(interpreter.get_ast_as_json()), data or {}, builtins())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("x := http.send({})", "`http.send` may not be called"),
        ("x := [y | y := opa.runtime()]", "`opa.runtime` may not be called"),
        ("x if { not rand.intn(`a`, 5) == 1 }", "`rand.intn` may not be called"),
        ("x if { every y in [1] { net.lookup_ip_addr(input.a)[y] } }", "`net.lookup_ip_addr` may not be called"),
        ("x := 1 if false else := uuid.rfc4122(`a`)", "`uuid.rfc4122` may not be called"),
        ("x := {`a`: {graph.reachable_paths({}, [])}}", "`graph.reachable_paths` may not be called"),
        ("default x := false\nx if yaml.unmarshal(input.y)", "`yaml.unmarshal` may not be called"),
        ("x := nosuch(1)", "there is no function `nosuch`"),
        ("x := graphql.is_valid(input.q, input.s)", "there is no function `graphql.is_valid`"),
        ("x := data.other.f(1)", "there is no function `data.other.f`"),
        ("x := data.weighbridge.decision(1)", "there is no function `data.weighbridge.decision`"),
        ("import data.other\nx := other.f(1)", "there is no function `other.f`"),
        ("x := sprintf(input.format, [1])", "argument 1 of `sprintf` is not a text written out here"),
        ("x := sprintf(`%9999999d`, [1])", "a width in the format of `sprintf` is too large"),
        ("x := sprintf(`%5.99999s`, [1])", "a width in the format of `sprintf` is too large"),
        ("x := sprintf(`%*d`, [9, 1])", "a width in the format of `sprintf` is too large"),
        ("x := concat(input.a, input.b)", "argument 1 of `concat` is not a text written out here"),
        ("x := regex.replace(input.a, `b`, input.c)", "argument 3 of `regex.replace` is not a text written out here"),
        ("f(y) := f(y)", "the function `p.f` calls itself"),
        ("f(y) := g(y)\ng(y) := [z | z := f(y)]", "the function `p.f` calls itself"),
        ("f(y) := data.p.f(y)", "the function `p.f` calls itself"),
        ('f(y) := data.p["f"](y)', "the function `p.f` calls itself"),
        ("import data.p as me\nf(y) := me.f(y)", "the function `p.f` calls itself"),
        ("import data.p.f as again\nf(y) := again(y)", "the function `p.f` calls itself"),
        ("a.f(y) := a.f(y)", "the function `p.a.f` calls itself"),
        ("f(y) := 1 if y == 0 else := f(y - 1)", "the function `p.f` calls itself"),
        ("x := data[input.name]", "this looks rules up in all of `data`"),
        ("x := data", "this looks rules up in all of `data`"),
        ("x := data.p", "this looks rules up in all of `data.p`"),
        ("x := data.p[input.name]", "this looks rules up in all of `data.p`"),
        ("x := [y | some y in data.weighbridge]", "this looks rules up in all of `data.weighbridge`"),
        ("import data.weighbridge as w\nx := w[input.name]", "this looks rules up in all of `data.weighbridge`"),
        ("import data.weighbridge\nx := weighbridge.decision", "goes through the import of a whole package"),
        ("f(y) := y\nx := y if { y := f(1) with f as count }", "`with` may only give input or data another value"),
        ("x := y if { y := count([]) with data.a as data.p.f }", "`with` may only give input or data another value"),
        ("count(y) := y", "the function `count` has the name of a builtin"),
        ("x := startswith(`a`)", "`startswith` takes 2 arguments, not 1"),
        ("x := count([], 1, 2)", "`count` takes 1 argument, not 3"),
        ("x := y if io.jwt.decode(input.t, y)", "`io.jwt.decode` takes 1 argument, not 2"),
        ("f(y) := y\nx := f(1, 2, 3)", "`f` takes 1 argument, not 3"),
        ("x := [p | [p, v] := walk(input)]", "`walk` with one argument gives nothing here"),
        ("import future.keywords\nx := 1", "`future.keywords` cannot be imported"),
        ("import future.keywords.not\nx := 1", "`future.keywords.not` cannot be imported"),
        ("import rego.v2\nx := 1", "`rego.v2` cannot be imported"),
        ("x if not startswith(input.call.target, `a`)", "where `input.call.target` is undefined"),
        ("x if { some c in input.list; not c.name in {`a`} }", "where `c.name` is undefined"),
        ("x if not f(g(1)) == 1\nf(y) := y\ng(y) := y if y > 1", "where `g(1)` is undefined"),
        ("x if not f(y)\nf(z) := z\ny := input.a", "where `y` is undefined"),
        ("x if not data.limits.most > 5", "where `data.limits.most` is undefined"),
        ("x if not input.a[input.b]", "where `input.b` is undefined"),
        ("f(a) := 1\nf := 2", "`p.f` is written in ways that conflict, here and at line"),
        ("f(a) := 1\nf(a, b) := 2", "`p.f` is written in ways that conflict, here and at line"),
        ("x contains 1\nx := 2", "`p.x` is written in ways that conflict, here and at line"),
        ("x := 1\nx[y] := 2 if y := `a`", "`p.x` is written in ways that conflict, here and at line"),
        ("default f := 1\nf(a) := a", "`p.f` is written in ways that conflict, here and at line"),
        ("default x := 1\ndefault x := 2", "`p.x` has several defaults"),
        ("default x := input.y\nx := 1", "the default of `p.x` has to be looked up"),
        ("default x := count([])\nx := 1", "the default of `p.x` has to be looked up"),
        ("q.r := 1\nq := {`r`: 2}", "`p.q.r` stands below `p.q`, which has a value of its own"),
        ("contains := 1", "a rule is called `contains`, a word of the language"),
        ("import data.other as input\nx := 1", "an import is called `input`, a word of the language"),
    ],
)
def test_a_mistake_is_found(rule: str, message: str) -> None:
    found = problems(f"package p\n{rule}\n")
    assert message in " | ".join(each.message for each in found)
    assert all(each.file == "p0.rego" and each.line is not None and each.remedy for each in found)


@pytest.mark.parametrize(
    "rule",
    [
        "f(y) := y + 1\nx := f(f(1))",
        "f(y) := g(y)\ng(y) := y\nx := f(g(f(1)))",
        "limit := f(1)\nf(y) := z if { limit := y; z := limit }",
        "x := data.envelopes[input.agent.name]",
        "x := [y | some y in data.envelopes]",
        "import data.envelopes\nx := envelopes[input.agent.name]",
        "import data.weighbridge.decision\nx := decision",
        "x := data.weighbridge.decision",
        "x := y if { y := data.weighbridge.decision with input as {} with data.envelopes as {} }",
        "x := y if { y := data.weighbridge.decision with input.a as input.b }",
        "x := sprintf(`%05d %s %v %%  %-10.3f`, [1, 2, 3, 4])",
        "x := numbers.range(1, 5)",
        "x := replace(input.a, `b`, input.c)",
        "x if { print(`hello`); trace(`hello`) }",
        "import input.call\nx := call.kind",
        "default x := {`a`: [1, -2, `b`]}\nx := 1 if input.x",
        "default f(_) := 1\nf(a) := a",
        "x[y] := 1 if y := `a`\nx.b := 2",
        "x.a := 1\nx.b := 2",
        "x := 1 if input.x\nx := 2 if not input.x",
        "x := y if count([], y)",
        "f(y) := y\nx := z if f(1, z)",
        "x := [p | walk(input, [p, _])]",
        "x if not input.call.target",
        "x if not input.call.target == `a`",
        "x if not startswith(input.agent.name, `a`)",
        "x if { target := input.call.target; not startswith(target, `a`) }",
        "x if { input.call.target; not startswith(input.call.target, `a`) }",
        "x if not startswith(object.get(input.call, `target`, ``), `a`)",
        "x if not input.agent.state in allowed\nallowed := {`active`}",
        "x if not f(input.agent.name)\nf(y) if y == `a`",
        "x if not f(g(1)) == 1\nf(y) := y\ng(y) := y + 1",
        "x if not count(names) > 1\nnames := [y | some y in input.names]",
        "x if not count(names) > 1\nnames contains y if some y in input.names",
        "x if not limit > 1\ndefault limit := 5\nlimit := input.limit",
        "x contains c.name if { some c in input.list; not startswith(c.name, `a`) }",
    ],
)
def test_what_is_right_passes(rule: str) -> None:
    assert problems(f"package p\nimport rego.v1\n{rule}\n") == []


def test_words_that_the_language_now_has_may_be_imported() -> None:
    assert problems("package p\nimport future.keywords.in\nimport future.keywords.every\nx := 1\n") == []


def test_lines_are_those_of_the_file() -> None:
    (found,) = problems("package p\n\n\nx if {\n  true\n  http.send({})\n}\n")
    assert str(found).startswith("p0.rego:6: `http.send` may not be called. A decision must not wait for the network")


def test_functions_of_several_files_that_call_each_other_are_found() -> None:
    found = problems("package a\nf(x) := data.b.f(x)\n", "package b\nf(x) := data.a.f(x)\n")
    assert {(each.file, each.message) for each in found} == {
        ("p0.rego", "the function `a.f` calls itself"),
        ("p1.rego", "the function `b.f` calls itself"),
    }


def test_a_function_of_another_file_of_the_package_is_known() -> None:
    assert problems("package a\nx := f(1)\n", "package a\nf(x) := x\n") == []


def test_the_rule_that_decides_must_be_there() -> None:
    (found,) = problems("package p\ndecision := 1\n", entry=False)
    assert "no file defines data.weighbridge.decision" in found.message


@pytest.mark.parametrize(
    ("data", "clash"),
    [
        ({"p": {"x": 1}}, False),
        ({"p": 1}, True),
        ({"p": {"q": {}}}, True),
        ({"p": {"q": {"x": 5}}}, True),
        ({"p": {"q": None}}, True),
        ({"p": [1]}, True),
        ({"q": 1, "x": 2}, False),
    ],
)
def test_data_in_the_place_of_a_package_is_found(data: dict[str, Any], clash: bool) -> None:
    found = problems("package p.q\nx := 1\n", data=data)
    assert bool(found) is clash
    assert all("take the place of this package's rules" in each.message for each in found)


@pytest.mark.parametrize(
    ("mine", "lines"),
    [
        ('package weighbridge\nx := 1\ndecision := {"decision": "DENY"} if input.a\ndecision := 1 if input.b', [3]),
        ('package weighbridge\ndefault decision := {"decision": "DENY"}', []),
        ('package other\ndecision := {"decision": "DENY"} if input.a', []),
    ],
)
def test_decisions_in_a_second_file_are_told_once(mine: str, lines: list[int]) -> None:
    interpreter = create(Clock())
    interpreter.add_policy("entry.rego", f"package weighbridge\n{_ENTRY}")
    interpreter.add_policy("mine.rego", f"{mine}\n")
    found = scattered(orjson.loads(interpreter.get_ast_as_json()))
    assert [(each.file, each.line) for each in found] == [("mine.rego", line) for line in lines]
    assert all("here and at entry.rego:2" in each.message for each in found)


def test_where_nothing_decides_nothing_is_scattered() -> None:
    assert scattered([]) == []
