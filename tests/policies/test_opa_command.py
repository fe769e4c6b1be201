"""The tests of a policy on `opa` as well: what differs between the engines is told, test by test."""

from pathlib import Path

import pytest

from policies import testing
from policies.errors import PolicyError
from policies.opa_command import Difference, differences, find, run_tests
from policies.sources import Sources, read
from policies.testing import Outcome, Result
from tests.policies.support import SHIPPED, rego, sources
from tests.support.opa import OPA, needs_opa

_POLICY = rego('decision := {"decision": "ALLOW"} if input.yes')


async def both(policies: Sources, run: str = "") -> tuple[tuple[Result, ...], tuple[Result, ...]]:
    assert OPA is not None
    report = await testing.test(policies, 20, run=run, bundle=True)
    return report.results, await run_tests(OPA, report, 60, run=run)


def outcomes(results: tuple[Result, ...]) -> dict[str, Outcome]:
    return {result.name.rpartition(".")[2]: result.outcome for result in results}


@needs_opa
async def test_the_shipped_policies_and_the_library_are_the_same_on_both() -> None:
    here, there = await both(read([SHIPPED]))
    assert differences(here, there) == []
    assert len(there) == len(here) >= 60
    assert {result.outcome for result in there} == {"pass"}


@needs_opa
async def test_a_test_that_passes_on_one_engine_only_is_a_difference() -> None:
    tests = rego(
        """
        test_same if true
        test_wrong_on_both if false
        test_broken_on_both if 1 / data.some.zero
        todo_test_later if true
        test_fractions if 0.1 + 0.2 == 0.3
        """,
        "t",
    )
    here, there = await both(sources(_POLICY, tests=(tests,), data={"some": {"zero": 0}}))
    assert outcomes(there)["todo_test_later"] == "skipped"
    (difference,) = differences(here, there)
    assert difference == Difference("data.t.test_fractions", "policy0_test.rego", 9, "fail", "pass")
    assert str(difference) == (
        "policy0_test.rego:9: data.t.test_fractions fails on the embedded engine and passes on opa."
    )


@needs_opa
async def test_only_tests_that_are_asked_for_are_run_on_either() -> None:
    tests = rego("test_one := true\ntest_two := true", "t")
    here, there = await both(sources(_POLICY, tests=(tests,)), run="test_one$")
    assert outcomes(here) == outcomes(there) == {"test_one": "pass"}


@needs_opa
async def test_policies_that_opa_refuses_are_refused_with_their_own_names() -> None:
    policy = rego('decision := {"decision": "ALLOW"}\nwrong if count(1, 2, 3) == 4')
    report = await testing.test(sources(policy, tests=(rego("test_it := true", "t"),)), 20, bundle=True)
    assert OPA is not None
    with pytest.raises(PolicyError, match=r"opa: refuses these policies: .*policy0\.rego:6"):
        await run_tests(OPA, report, 60)


async def test_an_opa_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    slow = tmp_path / "opa"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    report = await testing.test(sources(_POLICY, tests=(rego("test_it := true", "t"),)), 20, bundle=True)
    with pytest.raises(PolicyError, match=r"did not finish within 0\.1 s"):
        await run_tests(slow, report, 0.1)


def test_opa_is_found_on_the_path_before_the_one_built_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find() is None
    built, installed = tmp_path / ".tools" / "bin" / "opa", tmp_path / "bin" / "opa"
    for each in (built, installed):
        each.parent.mkdir(parents=True)
    built.write_text("#!/bin/sh\n")
    assert find() is None, "it is no program"
    built.chmod(0o755)
    assert find() == built
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    assert find() == installed


def result(outcome: Outcome) -> Result:
    return Result("data.t.test_it", "t_test.rego", 3, outcome, 0.0)


@pytest.mark.parametrize(
    ("here", "there", "differs"),
    [
        ("pass", "pass", False),
        ("fail", "error", False),
        ("skipped", "skipped", False),
        ("pass", "error", True),
        ("fail", "pass", True),
        ("skipped", "pass", True),
        (None, "pass", True),
        ("fail", None, True),
    ],
)
def test_failing_and_breaking_are_the_same_and_everything_else_is_not(
    here: Outcome | None, there: Outcome | None, differs: bool
) -> None:
    found = differences((result(here),) if here else (), (result(there),) if there else ())
    assert bool(found) is differs
    assert all("data.t.test_it" in str(each) for each in found)
