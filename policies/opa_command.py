"""The `opa` command, where it is installed: a second opinion on the tests of a policy that may have to run there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from policies.errors import PolicyError, Problem
from policies.testing import Outcome, Report, Result

_PLACE: Final = Path(".tools/bin/opa")
"""Below the current folder, where `make opa` puts it."""
_FAILED_TESTS: Final = 2
"""The code with which `opa test` ends when tests did not pass."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One test on which the engines do not agree: what came of it on each, None where it was not found."""

    name: str
    file: str
    line: int
    embedded: Outcome | None
    opa: Outcome | None

    def __str__(self) -> str:
        told = {None: "is not found", "pass": "passes", "fail": "fails", "error": "fails", "skipped": "is skipped"}
        here, there = told[self.embedded], told[self.opa]
        return f"{self.file}:{self.line}: {self.name} {here} on the embedded engine and {there} on opa."


def find() -> Path | None:
    """The `opa` to ask: on PATH, else the one built for the current folder."""
    found = shutil.which("opa")
    if found:
        return Path(found)
    return _PLACE.resolve() if os.access(_PLACE, os.X_OK) and _PLACE.is_file() else None


async def run_tests(
    opa: Path,
    report: Report,
    timeout: float,  # noqa: ASYNC109  # opa is ended then
    *,
    run: str = "",
) -> tuple[Result, ...]:
    """The results of the same tests on `opa`: those in the bundle of `report`. May take `timeout` seconds.

    Raises PolicyError when opa refuses the policies, and OSError when it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="weighbridge-") as folder:
        bundle = Path(folder) / "bundle.tar.gz"
        bundle.write_bytes(report.bundle)
        arguments = ["test", "--bundle", str(bundle), "--format", "json", "--timeout", f"{timeout}s"]
        arguments += ["--run", run] if run else []
        process = await asyncio.create_subprocess_exec(
            opa,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout):
                said, complained = await process.communicate()
        except TimeoutError:
            raise PolicyError(
                [Problem("opa", None, f"did not finish within {timeout:g} s", "Give it more time.")]
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
    if process.returncode not in (0, _FAILED_TESTS) or not said.strip():
        what = _named((complained or said).decode(errors="replace").strip(), report, str(bundle))
        raise PolicyError([Problem("opa", None, f"refuses these policies: {what}".rstrip("."), "Correct them.")])
    return tuple(_result(each, report.files) for each in orjson.loads(said) or ())


def differences(embedded: tuple[Result, ...], opa: tuple[Result, ...]) -> list[Difference]:
    """The tests that pass, or are run, on one engine only."""
    there = {result.name: result for result in opa}
    here = {result.name: result for result in embedded}
    found = []
    for name, result in {**there, **here}.items():
        ours = here[name].outcome if name in here else None
        theirs = there[name].outcome if name in there else None
        if _counts(ours) != _counts(theirs):
            found.append(Difference(name, result.file, result.line, ours, theirs))
    return found


def _counts(outcome: Outcome | None) -> str | None:
    return "fail" if outcome == "error" else outcome


def _result(told: Mapping[str, Any], files: tuple[str, ...]) -> Result:
    outcome: Outcome = "pass"
    if told.get("skip"):
        outcome = "skipped"
    elif told.get("error"):
        outcome = "error"
    elif told.get("fail"):
        outcome = "fail"
    at = told["location"]
    number = Path(at["file"]).stem
    file = files[int(number)] if number.isdecimal() and int(number) < len(files) else at["file"]
    error = told.get("error") or {}
    detail = error.get("message", "") if isinstance(error, dict) else str(error)
    return Result(f"{told['package']}.{told['name']}", file, at["row"], outcome, told["duration"] / 1e9, detail)


def _named(text: str, report: Report, bundle: str) -> str:
    """What opa says, with the names of files as their author knows them."""
    for number, file in reversed(list(enumerate(report.files))):
        for name in (f"{bundle}:/{number}.rego", f"{bundle}/{number}.rego", f"/{number}.rego", f"{number}.rego"):
            text = text.replace(name, file)
    return text
