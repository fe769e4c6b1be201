"""The capabilities file lists what the embedded engine knows; with it a real OPA refuses what would only run there."""

import subprocess
from pathlib import Path

import orjson
import pytest

from policies.builtins import BOUNDED, FORBIDDEN, SUPPLIED, TIMED
from policies.capabilities import FILE, arities, current, written
from policies.interpreter import Clock, builtins, create
from policies.lint import lint
from tests.support.opa import OPA, ROOT, needs_opa


def test_it_lists_no_builtin_that_is_forbidden_or_missing() -> None:
    listed = {each["name"] for each in orjson.loads(FILE.read_bytes())["builtins"] if "infix" not in each}
    assert not listed & FORBIDDEN.keys()
    assert {name for name in listed if not name.startswith("internal.")} - {"assign", "eq"} <= builtins()


def test_what_is_ours_takes_as_many_arguments_as_opa_declares() -> None:
    ours = {name: arity for table in (BOUNDED, SUPPLIED, TIMED) for name, (arity, _) in table.items()}
    assert ours == {name: arities()[name] for name in ours}


@needs_opa
def test_it_is_that_of_the_installed_opa() -> None:
    assert FILE.read_bytes() == written(current(str(OPA))), "run `python -m policies.capabilities OPA`"


def accepted_by_opa(path: Path) -> bool:
    told = subprocess.run(
        [str(OPA), "check", "--capabilities", str(FILE), str(path)], capture_output=True, check=False, text=True
    )
    return told.returncode == 0


def accepted_here(text: str) -> bool:
    interpreter = create(Clock())
    try:
        interpreter.add_policy("entry.rego", 'package weighbridge\ndecision := {"decision": "ALLOW"}')
        interpreter.add_policy("p.rego", text)
        interpreter.set_input_json("{}")
        return lint(orjson.loads(interpreter.get_ast_as_json()), {}, builtins()) == []
    except RuntimeError:
        return False


@needs_opa
@pytest.mark.parametrize(
    ("rego", "accepted"),
    [
        ("x := http.send({})", False),
        ("x := rand.intn(`a`, 5)", False),
        ("x := yaml.unmarshal(input.text)", False),
        ("x := graphql.is_valid(input.query, input.schema)", False),
        ("x := nosuch(1)", False),
        ('x := $"hello {input.name}"', False),
        ("if.x := 1", False),
        ("import future.keywords.not\nx := 1", False),
        ("import rego.v2\nx := 1", False),
        ("x := startswith(`a`)", False),
        ("x := io.jwt.decode(input.token)", True),
        ("x := io.jwt.decode_verify(input.token, {`cert`: data.keys})[0]", True),
        ("x := crypto.sha256(input.text)", True),
        ("x := units.parse(input.size) > 5", True),
        ("x if { some i, v in input.list; v > i }", True),
        ("x if every v in input.list { v > 1 }", True),
        ("x contains path if { walk(input, [path, _]) }", True),
        ("f(y) := y.z\nx := f(input) if { print(input); not input.a }", True),
    ],
)
def test_opa_with_it_and_our_linter_agree(rego: str, accepted: bool, tmp_path: Path) -> None:
    text = f"package p\n{rego}\n"
    (tmp_path / "p.rego").write_text(text)
    assert (accepted_by_opa(tmp_path / "p.rego"), accepted_here(text)) == (accepted, accepted)


@needs_opa
def test_opa_with_it_accepts_the_shipped_policies() -> None:
    assert accepted_by_opa(ROOT / "policies" / "rego")
