"""Tests that stand beside policies: run in a child process, told like `opa test` tells them."""

import pytest

from policies.errors import PolicyError
from policies.sources import read
from policies.testing import Coverage, Covered, Report, test
from tests.policies.support import SHIPPED, rego, sources

_POLICY = rego('decision := {"decision": "ALLOW"} if input.yes')


async def test_the_shipped_policy_keeps_its_promises() -> None:
    report = await test(read([SHIPPED]), 20)
    assert report.passed, report.text()
    assert len(report.results) >= 20


async def test_each_test_passes_fails_or_errs() -> None:
    tests = rego(
        """
        test_right if data.weighbridge.decision.decision == "ALLOW" with input as {"yes": true}
        test_wrong if data.weighbridge.decision with input as {}
        test_false := false
        test_number := 5
        test_broken if 1 / data.zero
        todo_test_later if false
        test_mocked if count([1, 2]) == 7 with count as seven
        seven(_) := 7
        no_test if false
        """,
        "weighbridge_test",
    )
    report = await test(sources(_POLICY, tests=(tests,), data={"zero": 0}), 10)
    assert [(result.name.rpartition(".")[2], result.outcome, result.line) for result in report.results] == [
        ("test_right", "pass", 5),
        ("test_wrong", "fail", 6),
        ("test_false", "fail", 7),
        ("test_number", "fail", 8),
        ("test_broken", "error", 9),
        ("todo_test_later", "skipped", 10),
        ("test_mocked", "pass", 11),
    ]
    assert not report.passed
    text = report.text()
    assert text.splitlines()[0] == "policy0_test.rego:6:"
    assert "data.weighbridge_test.test_wrong: FAIL" in text
    assert "divide by zero" in text
    assert text.splitlines()[-4:] == ["PASS: 2/7", "FAIL: 3/7", "ERROR: 1/7", "SKIPPED: 1/7"]
    assert "data.weighbridge_test.todo_test_later: SKIPPED" in text
    assert "test_right: PASS" in report.text(verbose=True)
    assert "test_right" not in text


async def test_results_are_told_as_opa_tells_them() -> None:
    tests = rego("test_yes := true\ntest_no if false\ntodo_test_later := true\ntest_broken if 1 / data.zero", "a.b")
    report = await test(sources(_POLICY, tests=(tests,), data={"zero": 0}), 10)
    told = [result.as_opa() for result in report.results]
    assert [each.pop("duration") >= 0 for each in told] == [True] * 4
    at = {"file": "policy0_test.rego", "col": 1}
    assert told == [
        {"location": {**at, "row": 5}, "package": "data.a.b", "name": "test_yes"},
        {"location": {**at, "row": 6}, "package": "data.a.b", "name": "test_no", "fail": True},
        {"location": {**at, "row": 7}, "package": "data.a.b", "name": "todo_test_later", "skip": True},
        {
            "location": {**at, "row": 8},
            "package": "data.a.b",
            "name": "test_broken",
            "fail": True,
            "error": {"message": "policy0_test.rego:8: divide by zero."},
        },
    ]


async def test_what_is_skipped_is_no_pass() -> None:
    report = await test(sources(_POLICY, tests=(rego("todo_test_later := true", "t"),)), 10)
    assert [result.outcome for result in report.results] == ["skipped"]
    assert not report.passed


async def test_only_tests_that_are_asked_for_are_run() -> None:
    tests = rego("test_one := true\ntest_two := true\ntest_other if false", "t")
    report = await test(sources(_POLICY, tests=(tests,)), 10, run="t\\.test_(one|two)$")
    assert [result.name for result in report.results] == ["data.t.test_one", "data.t.test_two"]
    assert report.passed


async def test_a_test_with_results_for_several_names_is_not_taken_for_a_pass() -> None:
    tests = rego("test_each[name] if some name in [`a`, `b`]", "t")
    (result,) = (await test(sources(_POLICY, tests=(tests,)), 10)).results
    assert result.outcome == "fail"
    assert "only opa" in result.detail


_BRANCHES = rego(
    """
    decision := {"decision": word}
    word := "ALLOW" if {
        input.a
        input.b
    }
    unused if {
        input.c
    }
    """
)


async def test_coverage_is_of_the_lines_that_were_evaluated() -> None:
    tests = rego("test_it if not data.weighbridge.word with input as {}", "t")
    report = await test(sources(_BRANCHES, tests=(tests,)), 10, coverage=True)
    assert report.coverage is not None
    (file,) = report.coverage.files
    covered = report.coverage.files[file]
    assert file == "policy0.rego", "tests do not count"
    assert 7 in covered.covered
    assert {8, 11} <= set(covered.not_covered)
    assert 0 < report.coverage.percent < 100
    told = report.coverage.as_opa()
    assert told["coverage"] == report.coverage.percent
    assert told["files"][file]["covered_lines"] == len(covered.covered)
    assert {"start": {"row": 7}, "end": {"row": 7}} in told["files"][file]["covered"]
    assert "policy0.rego  not reached: " in report.coverage.text()


async def test_tests_of_the_shipped_policies_reach_nearly_every_line() -> None:
    report = await test(read([SHIPPED]), 20, coverage=True)
    assert report.coverage is not None
    assert report.coverage.percent > 95, report.coverage.text()


def test_lines_are_told_as_ranges() -> None:
    told = Coverage({"f": Covered((1, 2, 3, 7, 9, 10), ())}).as_opa()
    spans = [(each["start"]["row"], each["end"]["row"]) for each in told["files"]["f"]["covered"]]
    assert spans == [(1, 3), (7, 7), (9, 10)]
    assert Covered((), ()).percent == 100


async def test_tests_of_rules_in_the_serving_files_do_not_count() -> None:
    report = await test(sources(rego('decision := {"decision": "ALLOW"}\ntest_me := true')), 10)
    assert report == Report(())
    assert not report.passed
    assert report.text() == "PASS: 0/0"


async def test_a_test_that_kills_or_stalls_the_interpreter_is_named() -> None:
    recursion = rego("test_fine := true\nf(x) := f(x)\ntest_recursion if f(1)", "t")
    endless = rego(
        """
        test_fine := true
        test_endless if { some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a < b - 9998 }
        """,
        "t",
    )
    for text, name, why in (
        (recursion, "data.t.test_recursion", "crashed"),
        (endless, "data.t.test_endless", "did not finish"),
    ):
        report = await test(sources(_POLICY, tests=(text,)), 2)
        assert [result.outcome for result in report.results] == ["pass", "error"]
        assert report.results[-1].name == name
        assert why in report.results[-1].detail


async def test_tests_that_do_not_parse_are_refused_with_their_line() -> None:
    with pytest.raises(PolicyError) as caught:
        await test(sources(_POLICY, tests=("package t\n\nbroken :=\n",)), 10)
    (problem,) = caught.value.problems
    assert problem.file == "policy0_test.rego"
    assert problem.line in (3, 4)


async def test_a_lookup_that_would_answer_wrongly_is_refused() -> None:
    tests = "package t\nimport rego.v1\nimport data.weighbridge\ntest_a if weighbridge.decision with input as {}\n"
    with pytest.raises(PolicyError, match="import of a whole package"):
        await test(sources(_POLICY, tests=(tests,)), 10)
