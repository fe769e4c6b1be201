"""Runs the tests that policy authors write beside their policies: rules called `test_...` in `*_test.rego` files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson

from policies import child
from policies.errors import PolicyError, Problem
from policies.interpreter import Clock, create, problem
from policies.lint import rules, wide_lookups
from policies.pack import slices
from policies.sources import Sources

Outcome = Literal["pass", "fail", "error"]
"""True, anything else, or no answer because the evaluation failed."""

_PREFIX: Final = "test_"


@dataclass(frozen=True, slots=True)
class Result:
    """How one test ended. `detail` says why an `error` is one; `seconds` is the time of its evaluation."""

    name: str
    file: str
    line: int
    outcome: Outcome
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All results, in the order of the files."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether there were tests and all were true."""
        return bool(self.results) and all(result.outcome == "pass" for result in self.results)

    def text(self, *, verbose: bool = False) -> str:
        """What `opa test` would print: the tests that did not pass (`verbose`: all), and a count of each outcome."""
        lines: list[str] = []
        file = None
        for result in self.results:
            if result.outcome == "pass" and not verbose:
                continue
            if result.file != file:
                file = result.file
                lines.append(f"{file}:")
            lines.append(f"{result.name}: {result.outcome.upper()} ({result.seconds * 1e3:.3f}ms) line {result.line}")
            if result.detail:
                lines.append(f"  {result.detail}")
        if lines:
            lines.append("-" * 80)
        total = len(self.results)
        for outcome in ("pass", "fail", "error"):
            count = sum(result.outcome == outcome for result in self.results)
            if count or (outcome == "pass" and not total):
                lines.append(f"{outcome.upper()}: {count}/{total}")
        return "\n".join(lines)


async def test(
    origin: child.Origin,
    timeout: float,  # noqa: ASYNC109  # the child is killed then, and the tests judged by that
) -> Report:
    """Runs every test in a child process that may take `timeout` seconds after reading.

    Raises PolicyError where none could run, OSError where no child could be started.
    """
    told = await child.run("testing", origin, timeout)
    problems = [Problem(**line["problem"]) for line in told.lines if "problem" in line]
    results = [Result(**line["result"]) for line in told.lines if "result" in line]
    if told.failure is not None and not problems:
        running: list[Any] = next((line["at"] for line in reversed(told.lines) if "at" in line), [])
        if not running:
            problems = [
                Problem(child.place(origin), None, f"the test run {told.failure} before any test", "Check the policy.")
            ]
        else:
            name, file, line_number = running
            results.append(Result(name, file, line_number, "error", 0.0, f"the test run {told.failure} here"))
    if problems:
        raise PolicyError(problems)
    return Report(tuple(results))


test.__test__ = False  # type: ignore[attr-defined]  # pytest must not take it for one of its own


def main() -> None:
    """The child's side."""
    for line in _run(child.receive()):
        child.answer(line)


def _run(sources: Sources) -> Iterator[dict[str, Any]]:
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
    for file, name, line in rules(trees):
        if file not in files or not name.rpartition(".")[2].startswith(_PREFIX):
            continue
        yield {"at": [name, file, line]}
        began = time.perf_counter()
        outcome: Outcome = "error"
        detail = ""
        try:
            outcome = "pass" if base.clone().eval_rule_as_json(name) == "true" else "fail"
        except BaseException as error:
            detail = str(problem(error, file, ""))
        yield {"result": asdict(Result(name, file, line, outcome, time.perf_counter() - began, detail))}
