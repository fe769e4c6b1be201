"""Runs the tests that policy authors write beside their policies: rules called `test_...` in `*_test.rego` files."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson

from policies import archive, child
from policies.errors import PolicyError, Problem
from policies.interpreter import Clock, Interpreter, create, problem
from policies.lint import rules, wide_lookups
from policies.pack import slices
from policies.sources import Sources

Outcome = Literal["pass", "fail", "error", "skipped"]
"""True, anything else, no answer because the evaluation failed, or not run."""

_COUNTED: Final[Mapping[Outcome, str]] = {"pass": "PASS", "fail": "FAIL", "error": "ERROR", "skipped": "SKIPPED"}
_PREFIX: Final = "test_"
_TODO: Final = "todo_test_"


@dataclass(frozen=True, slots=True)
class Result:
    """How one test ended. `detail` says why, where that is known; `seconds` is the time of its evaluation."""

    name: str
    file: str
    line: int
    outcome: Outcome
    seconds: float
    detail: str = ""

    def as_opa(self) -> dict[str, Any]:
        """As `opa test --format json` tells it. Source: OPA 1.22, v1/tester (Result)."""
        package, _, name = self.name.rpartition(".")
        told: dict[str, Any] = {
            "location": {"file": self.file, "row": self.line, "col": 1},
            "package": package,
            "name": name,
            "duration": int(self.seconds * 1e9),
        }
        if self.outcome in ("fail", "error"):
            told["fail"] = True
        if self.outcome == "error":
            told["error"] = {"message": self.detail}
        if self.outcome == "skipped":
            told["skip"] = True
        return told


@dataclass(frozen=True, slots=True)
class Covered:
    """The lines of one file (from 1) that were evaluated, and those that were not."""

    covered: tuple[int, ...]
    not_covered: tuple[int, ...]

    @property
    def percent(self) -> float:
        """100 for a file in which there is nothing to evaluate."""
        lines = len(self.covered) + len(self.not_covered)
        return 100.0 * len(self.covered) / lines if lines else 100.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of the policies the tests made the interpreter evaluate, by file; the tests themselves do not count."""

    files: Mapping[str, Covered]

    @property
    def percent(self) -> float:
        """Of all lines of all files."""
        return Covered(
            tuple(line for each in self.files.values() for line in each.covered),
            tuple(line for each in self.files.values() for line in each.not_covered),
        ).percent

    def as_opa(self) -> dict[str, Any]:
        """As `opa test --coverage --format json` tells it. Source: OPA 1.22, v1/cover (Report)."""
        files = {
            file: {
                "covered": list(_ranges(each.covered)),
                "not_covered": list(_ranges(each.not_covered)),
                "covered_lines": len(each.covered),
                "not_covered_lines": len(each.not_covered),
                "coverage": each.percent,
            }
            for file, each in self.files.items()
        }
        return {
            "files": files,
            "covered_lines": sum(len(each.covered) for each in self.files.values()),
            "not_covered_lines": sum(len(each.not_covered) for each in self.files.values()),
            "coverage": self.percent,
        }

    def text(self) -> str:
        """For people: a line for each file, with the lines that were not reached."""
        lines = []
        for file, each in self.files.items():
            left = ", ".join(_written(span) for span in _ranges(each.not_covered))
            lines.append(f"{each.percent:6.1f} %  {file}" + (f"  not reached: {left}" if left else ""))
        return "\n".join([*lines, f"{self.percent:6.1f} %  of all lines"])


@dataclass(frozen=True, slots=True)
class Report:
    """All results, in the order of the files. `coverage` where it was asked for.

    `bundle` holds policies, tests and data as they were read, for another engine to run the same; `files` are the names
    of its modules, which are called by their number.
    """

    results: tuple[Result, ...]
    coverage: Coverage | None = None
    bundle: bytes = b""
    files: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there were tests and all that were not skipped were true."""
        run = [result for result in self.results if result.outcome != "skipped"]
        return bool(run) and all(result.outcome == "pass" for result in run)

    def text(self, *, verbose: bool = False) -> str:
        """What `opa test` would print: the tests that did not pass (`verbose`: all), and a count of each outcome."""
        lines: list[str] = []
        for result in self.results:
            if result.outcome == "pass" and not verbose:
                continue
            lines.append(f"{result.file}:{result.line}:")
            took = "" if result.outcome == "skipped" else f" ({result.seconds * 1e3:.3f}ms)"
            lines.append(f"{result.name}: {_COUNTED[result.outcome]}{took}")
            if result.detail:
                lines += ["", *(f"  {line}" for line in result.detail.split("\n")), ""]
        if lines:
            lines.append("-" * 80)
        total = len(self.results)
        for outcome, word in _COUNTED.items():
            count = sum(result.outcome == outcome for result in self.results)
            if count or (outcome == "pass" and not total):
                lines.append(f"{word}: {count}/{total}")
        return "\n".join(lines)


def _ranges(lines: Iterable[int]) -> Iterator[dict[str, dict[str, int]]]:
    first = last = 0
    for line in (*sorted(lines), 0):
        if line != last + 1 or not first:
            if first:
                yield {"start": {"row": first}, "end": {"row": last}}
            first = line
        last = line


def _written(span: Mapping[str, Mapping[str, int]]) -> str:
    first, last = span["start"]["row"], span["end"]["row"]
    return str(first) if first == last else f"{first}-{last}"


async def test(
    origin: child.Origin,
    timeout: float,  # noqa: ASYNC109  # the child is killed then, and the tests judged by that
    *,
    run: str = "",  # noqa: PT028  # it is no test of ours
    coverage: bool = False,  # noqa: PT028
    bundle: bool = False,  # noqa: PT028
) -> Report:
    """Runs every test whose full name the regular expression `run` finds something in, in a child process that may take
    `timeout` seconds after reading; with coverage, and with the bundle, where they are wanted.

    Raises PolicyError where none could run, OSError where no child could be started.
    """
    told = await child.run("testing", origin, timeout, (run, "coverage" * coverage, "bundle" * bundle))
    problems = [Problem(**line["problem"]) for line in told.lines if "problem" in line]
    results = [Result(**line["result"]) for line in told.lines if "result" in line]
    if told.failure is not None and not problems:
        running: list[Any] = next((line["at"] for line in reversed(told.lines) if "at" in line), [])
        if not running:
            remedy = child.ONE_VERSION if told.astray else "Check the policy."
            problems = [Problem(child.place(origin), None, f"the test run {told.failure} before any test", remedy)]
        else:
            name, file, line_number = running
            results.append(Result(name, file, line_number, "error", 0.0, f"the test run {told.failure} here"))
    if problems:
        raise PolicyError(problems)
    covered = next((Coverage(_covered(line["coverage"])) for line in told.lines if "coverage" in line), None)
    files: list[str] = next((line["files"] for line in told.lines if "files" in line), [])
    return Report(tuple(results), covered, told.contents[0] if told.contents else b"", tuple(files))


test.__test__ = False  # type: ignore[attr-defined]  # pytest must not take it for one of its own


def _covered(files: Mapping[str, Mapping[str, list[int]]]) -> dict[str, Covered]:
    return {file: Covered(tuple(each["covered"]), tuple(each["not_covered"])) for file, each in sorted(files.items())}


def main() -> None:
    """The child's side."""
    pattern, coverage, bundle = sys.argv[1:]
    sources = child.receive()
    if bundle:
        _hand_over(sources)
    for line in _run(sources, re.compile(pattern), coverage != ""):
        child.answer(line)


def _hand_over(sources: Sources) -> None:
    modules = (*sources.modules, *sources.tests)
    members: dict[str, bytes | memoryview] = {"data.json": orjson.dumps(sources.data)}
    members |= {f"{number}.rego": module.text.encode() for number, module in enumerate(modules)}
    child.answer({"files": [module.name for module in modules]})
    child.hand(archive.pack(members, level=1))


def _run(sources: Sources, pattern: re.Pattern[str], coverage: bool) -> Iterator[dict[str, Any]]:
    base = create(Clock())
    broken = False
    for module in (*sources.modules, *sources.tests):
        try:
            base.add_policy(module.name, module.text)
        except BaseException as error:
            broken = True
            yield {"problem": asdict(problem(error, module.name, "Correct it."))}
    if broken:
        return
    trees = orjson.loads(base.get_ast_as_json())
    for each in wide_lookups(trees):
        broken = True
        yield {"problem": asdict(each)}
    if broken:
        return
    for text in slices(sources.data):
        base.add_data_json(text)
    files = {module.name for module in sources.tests}
    found = [
        (file, name, line)
        for file, name, line in rules(trees)
        if file in files and name.rpartition(".")[2].startswith((_PREFIX, _TODO)) and pattern.search(name)
    ]
    covering = base.clone()
    covering.set_enable_coverage(coverage)
    for file, name, line in found:
        if name.rpartition(".")[2].startswith(_TODO):
            yield {"result": asdict(Result(name, file, line, "skipped", 0.0))}
            continue
        yield {"at": [name, file, line]}
        yield {"result": asdict(_result(base.clone(), file, name, line))}
        if coverage:
            _result(covering, file, name, line)
    if coverage:
        told = orjson.loads(covering.get_coverage_report_as_json())["files"]
        yield {"coverage": {each["path"]: each for each in told if each["path"] not in files}}


def _result(interpreter: Interpreter, file: str, name: str, line: int) -> Result:
    began = time.perf_counter()
    outcome: Outcome = "error"
    detail = ""
    try:
        value = interpreter.eval_rule_as_json(name)
    except BaseException as error:
        detail = str(problem(error, file, ""))
    else:
        outcome = "pass" if value == "true" else "fail"
        if value.startswith("{"):
            detail = "This has a result for each of several names; only opa can tell which of them are missing."
    return Result(name, file, line, outcome, time.perf_counter() - began, detail)
