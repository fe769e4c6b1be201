"""Tests that stand beside policies: run in a child process, told like `opa test` tells them."""

import pytest

from policies.errors import PolicyError
from policies.sources import read
from policies.testing import Report, test
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
        ("test_mocked", "pass", 10),
    ]
    assert not report.passed
    text = report.text()
    assert text.splitlines()[0] == "policy0_test.rego:"
    assert "data.weighbridge_test.test_wrong: FAIL" in text
    assert "divide by zero" in text
    assert text.splitlines()[-3:] == ["PASS: 2/6", "FAIL: 3/6", "ERROR: 1/6"]
    assert "test_right: PASS" in report.text(verbose=True)
    assert "test_right" not in text


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
