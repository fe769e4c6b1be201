"""Runs OPA's own conformance cases on the embedded interpreter; as a program it is the child that may die of one.

The cases are read where `opa`'s module source is installed and are never part of this repository.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from policies.builtins import BOUNDED, SUPPLIED, TIMED
from policies.embedded import STOPS
from policies.interpreter import Clock, create


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one, where built, is ten times as fast
    """Reads YAML as OPA does: `on` and `yes` are texts."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in listed if tag != "tag:yaml.org,2002:bool"]
    for letter, listed in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+$"), list("-0123456789")
)
RECORD = Path(__file__).with_suffix(".yaml")
NOW_NS = 1_763_700_000_000_000_000
_DIED = "the process died"


@dataclass(frozen=True)
class Case:
    """One published case: what is asked of which modules, and the answer or error that is wanted."""

    group: str
    note: str
    told: dict[str, Any]


def published(version: str) -> Path | None:
    """Where the cases of an OPA version are: in the module cache, once `opa` was built from source."""
    go = shutil.which("go")
    if go is None:
        return None
    told = subprocess.run([go, "env", "GOMODCACHE"], capture_output=True, text=True, check=False)
    folder = Path(told.stdout.strip()) / f"github.com/open-policy-agent/opa@{version}" / "v1/test/cases/testdata/v1"
    return folder if folder.is_dir() else None


def cases(folder: Path) -> Iterator[Case]:
    """The cases below `testdata/v1`, in a stable order; a note that occurs again gets a number."""
    seen: dict[str, int] = {}
    for file in sorted(folder.rglob("*.yaml")):
        for told in yaml.load(file.read_bytes(), _Loader)["cases"]:
            note = told["note"]
            seen[note] = seen.get(note, 0) + 1
            shown = note if seen[note] == 1 else f"{note} #{seen[note]}"
            yield Case(file.relative_to(folder).parts[0], shown, told)


def outcome(case: Case) -> str:
    """Empty where the interpreter answers as OPA does, else in a few words what it did."""
    told = case.told
    wants_error = "want_error" in told or "want_error_code" in told
    try:
        found = _answers(told)
    except STOPS:
        raise
    except BaseException as error:
        return "" if wants_error else f"error: {_first(str(error))}"
    if wants_error:
        return f"answered {json.dumps(found)[:60]}, an error was wanted"
    wanted = told.get("want_result")
    if wanted is None:
        return "" if bool(found) == told.get("want_defined", True) else "answered" if found else "undefined"
    if _comparable(found, told) == _comparable(wanted, told):
        return ""
    return f"answered {json.dumps(found)[:160]}"


def _answers(told: dict[str, Any]) -> list[Any]:
    clock = Clock()
    clock.now_ns = NOW_NS
    interpreter: Any = create(clock)
    interpreter.set_policy_length_config(max_col=65_535, max_file_bytes=2**20, max_lines=20_000)
    for number, module in enumerate(told.get("modules", ())):
        interpreter.add_policy(f"m{number}.rego", _assigned(module))
    if told.get("data"):
        interpreter.add_data_json(json.dumps(told["data"]))
    query = _assigned(told["query"])
    if "input_term" in told:
        term = told["input_term"]
        query = "; ".join(f"{part} with input as {term}" for part in query.strip().split("; "))
    elif "input" in told:
        interpreter.set_input_json(json.dumps(told["input"]))
    found = orjson.loads(interpreter.eval_query_as_json(query))
    answers = []
    for result in found.get("result", ()):
        values = [each["value"] for each in result["expressions"]]
        if all(value is not False and value != "<undefined>" for value in values):
            answers.append(result.get("bindings", {}))
    return answers


_OURS = {name: arity for table in (BOUNDED, SUPPLIED, TIMED) for name, (arity, _) in table.items()}
_CALL = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(_OURS, reverse=True)))})\(")


def _assigned(rego: str) -> str:
    """`f(a, x)` of a builtin that is ours written `x = f(a)`: only stock ones take the first form."""
    at = 0
    while found := _CALL.search(rego, at):
        name, end, parts, start, depth, quote = found[0][:-1], found.end(), [], found.end(), 1, ""
        while depth and end < len(rego):
            letter = rego[end]
            if quote:
                if letter == "\\" and quote == '"':
                    end += 1
                elif letter == quote:
                    quote = ""
            elif letter in '"`':
                quote = letter
            elif letter in "([{":
                depth += 1
            elif letter in ")]}":
                depth -= 1
            if not quote and ((letter == "," and depth == 1) or not depth):
                parts.append(rego[start:end].strip())
                start = end + 1
            end += 1
        parts = [part for part in parts if part]
        at = found.end()
        if len(parts) == _OURS[name] + 1:
            rego = f"{rego[: found.start()]}{parts[-1]} = {name}({', '.join(parts[:-1])}){rego[end:]}"
            at = found.start() + len(parts[-1]) + 3 + len(name)
    return rego


def _comparable(answers: list[Any], told: dict[str, Any]) -> list[str]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): plain(inner) for name, inner in value.items()}
        if isinstance(value, list):
            inner = [plain(each) for each in value]
            return sorted(inner, key=_text) if told.get("sort_bindings") else inner
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    names = [name for answer in answers for name in answer]
    if told.get("ignore_generated_vars"):
        names = [name for name in names if not name.startswith("__")]
    return sorted(_text({name: plain(answer[name]) for name in answer if name in names}) for answer in answers)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _first(text: str) -> str:
    reason = re.search(r"^error: (.*)$", text, re.MULTILINE)
    return (reason[1] if reason else text.strip().partition("\n")[0])[:160]


def run(folder: Path) -> dict[str, tuple[str, str]]:
    """Note -> group and outcome of every case, run in children, of which a case may kill one."""
    done: dict[str, tuple[str, str]] = {}
    listed = list(cases(folder))
    while len(done) < len(listed):
        child = subprocess.run(
            [sys.executable, "-m", "tests.policies.conformance", str(folder), str(len(done))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for line in child.stdout.splitlines():
            note, result = json.loads(line)
            done[note] = (listed[len(done)].group, result)
        if len(done) < len(listed):
            fatal = listed[len(done)]
            done[fatal.note] = (fatal.group, _DIED)
    return done


REASONS: tuple[tuple[str, str], ...] = (
    (r"may not be called", "refused on purpose: see FORBIDDEN in policies/builtins"),
    (r"^graphql\|.*could not find", "graphql.* is not supplied"),
    (r"^stringinterpolation\||^sprintf\|.*expecting `}`", 'no string interpolation ($"...")'),
    (r"^keywordrefs\|", "no words of the language as names of rules or packages"),
    (r"^logic_operators\||^negation\|", "no `and`, `or` and `not` with bodies (future.keywords, rego.v2)"),
    (r"could not find function providers\.aws", "providers.aws.* is not supplied"),
    (r"could not find function rego\.|rego\.parse_module|^regoparsemodule", "rego.* is not supplied"),
    (r"could not find function strings\.render_template", "strings.render_template is not supplied"),
    (
        r"could not find function crypto\.(x509\.parse_keypair|parse_private_keys)",
        "private keys are not shown to policies",
    ),
    (r"^walkbuiltin\|", "walk answers nothing with one argument; the linter asks for two"),
    (r"^aggregates\|", "`key, value in set` is always false"),
    (r"^refheads\|", "a member of a set cannot be asked for by a dot in a query"),
    (r"^globmatch\|", "an empty alternative of a glob matches nothing"),
    (r"^uuid\|", "uuid.parse refuses what OPA reads with strange brackets"),
    (r"yaml is_valid unreachable", "yaml.is_valid is stricter about what follows a document"),
    (r"could not find function test\.", "a builtin of OPA's own tests"),
    (r"^withkeyword\|", "a builtin cannot be put in the place of a function"),
    (r"^jsonschema\|", "json.match_schema and json.verify_schema tell errors in another form"),
    (
        r"type_error_nostrict|not string|invalid type|regex\.match bad RE|uuid-parse/negative|undefined builtin result",
        "an error, where OPA without strict builtin errors is undefined or false",
    ),
    (r"out of range|exponent|not an i64|max int64", "numbers beyond 64 bits"),
    (r"unhashable", "a set of arrays or objects does not reach a builtin that is ours"),
)
"""What is looked for in `group|note|outcome` of a case that fails, and why it does; the first that fits."""


def why(group: str, note: str, result: str) -> str:
    """The reason for a failure, in the words of the table."""
    told = f"{group}|{note}|{result}"
    return next((reason for pattern, reason in REASONS if re.search(pattern, told)), f"the interpreter: {result}")


def record(results: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The figures of every group and, by reason, the notes of the cases that fail."""
    groups: dict[str, list[int]] = {}
    failing: dict[str, list[str]] = {}
    for note, (group, result) in results.items():
        figures = groups.setdefault(group, [0, 0])
        figures[0] += not result
        figures[1] += 1
        if result:
            failing.setdefault(why(group, note, result), []).append(note)
    passed = sum(not result for _, result in results.values())
    return {
        "passed": passed,
        "cases": len(results),
        "groups": {group: f"{good} of {all_}" for group, (good, all_) in groups.items()},
        "failing": failing,
    }


def main() -> None:
    """The child's side: runs the cases from the given one on, a line for each. Without a number, records all anew."""
    if len(sys.argv) == 2:
        RECORD.write_text(
            yaml.safe_dump(record(run(Path(sys.argv[1]))), sort_keys=False, width=120, allow_unicode=True)
        )
        return
    folder, start = Path(sys.argv[1]), int(sys.argv[2])
    for case in list(cases(folder))[start:]:
        sys.stdout.write(json.dumps([case.note, outcome(case)]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
