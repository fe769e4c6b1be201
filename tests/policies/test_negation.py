"""What the linter lets pass is negated alike by both engines; what parts them it names. A real OPA is the judge."""

import subprocess
from pathlib import Path

import orjson

from policies.interpreter import Clock, builtins, create
from policies.lint import lint
from tests.support.opa import OPA, needs_opa

EXPRESSIONS = """
input.x == 1 | 1 == input.x | input.x != 1 | input.x > 1 | count(input.x) == 1 | startswith(input.x, "a") | f(input.x)
f(input.x.y) | f(input["x"]) | f(data.m.x) | f(data.p.undef) | f(undef) | input.x in [1] | 1 in input.x | input.x
undef | f(g(input.x)) | f([input.x]) | f({"a": input.x}) | h(input.x) == 1 | h(input.x) > 1 | h(5) > 1 | f(input.x + 1)
input.o[input.x] | data.m[input.x] | data.m[input.x].y == 1 | f(data.m[input.x]) | input.x == input.y | f(h(5))
f(object.get(input, "x", 1)) | f(1) | input.x + 1 == 2 | count([1 | input.x]) == 1 | f([y | y := input.x]) | h(5) == 1
f(count(input.x)) | two(1, input.x) | lower(input.x) == "a" | data.p.h(input.x) == 1 | f({input.x}) | constant > 7
[input.x] == [1] | {"a": input.x} == {"a": 1} | f(null) | f(set) | f(data.m.k.y) | data.m.k.y > 4 | f(given) | f(-1)
"""
RULES = """
f(a) if a == input.one
f(a) if a == input.two
g(a) := a
h(a) := a if a == input.one
two(a, b) if a == b
undef := 1 if input.x
constant := 5
set contains 1 if input.x
default given := 2
given := input.x
"""


@needs_opa
def test_a_negation_that_passes_the_linter_means_the_same_on_both_engines(tmp_path: Path) -> None:
    expressions = [each.strip() for line in EXPRESSIONS.strip().splitlines() for each in line.split(" | ")]
    # An expression that holds the separator stands in one piece again.
    expressions = _joined(expressions)
    module = "package p\n" + "".join(f"r{n} if not {each}\n" for n, each in enumerate(expressions)) + RULES
    given, data = {"o": {"a": 1}}, {"m": {"k": {"y": 1}}}
    (tmp_path / "p.rego").write_text(module)
    (tmp_path / "d.json").write_bytes(orjson.dumps(data))
    told = subprocess.run(
        [str(OPA), "eval", "--strict-builtin-errors", "--stdin-input", "--format", "raw", "-d", tmp_path, "data.p"],
        input=orjson.dumps(given),
        capture_output=True,
        check=True,
    )
    theirs = orjson.loads(told.stdout)
    interpreter = create(Clock())
    interpreter.add_policy("p.rego", module)
    interpreter.add_data_json(orjson.dumps(data).decode())
    interpreter.set_input_json(orjson.dumps(given).decode())
    lines = {each.line for each in lint(orjson.loads(interpreter.get_ast_as_json()), data, builtins())}
    parted, named = set(), set()
    for number, expression in enumerate(expressions):
        ours = orjson.loads(interpreter.eval_rule_as_json(f"data.p.r{number}"))
        if (ours is True) != (theirs.get(f"r{number}") is True):
            parted.add(expression)
        if number + 2 in lines:
            named.add(expression)
    assert len(parted) > 20
    assert named == parted


def _joined(pieces: list[str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and joined[-1].count("[") > joined[-1].count("]"):
            joined[-1] += f" | {piece}"
        else:
            joined.append(piece)
    return joined
