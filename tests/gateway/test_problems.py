"""Every error has its row, and the words are the contract's."""

import pytest

from adapters.errors import MalformedCall
from gateway.problems import PROBLEMS, UNEXPECTED, refusal_for

CONTRACT = {
    "unauthenticated": 401,
    "policy_denied": 403,
    "policy_unavailable": 403,
    "approval_pending": 403,
    "no_route": 404,
    "no_healthy_target": 503,
    "target_timeout": 504,
    "target_failed": 502,
    "body_too_large": 413,
    "ledger_unavailable": 503,
    "budget_exhausted": 429,
    "budget_contended": 429,
    "unpriced_model": 403,
    "rate_limited": 429,
}


@pytest.mark.parametrize(("code", "status"), CONTRACT.items())
def test_codes_have_the_contracts_status(code: str, status: int) -> None:
    assert {problem.status for problem in PROBLEMS.values() if problem.code == code} == {status}


def test_what_cannot_succeed_by_repetition_is_not_to_be_retried() -> None:
    repeated = {problem.code for problem in PROBLEMS.values() if problem.retry and problem.status < 500}
    assert repeated == {"budget_contended", "rate_limited"}


def test_a_refusal_says_what_happened_and_what_to_do() -> None:
    refusal = refusal_for(MalformedCall("`model` must be a string."), "01X")
    assert refusal.message == "`model` must be a string. Correct the call; repeating it unchanged will not help."


def test_an_unexpected_error_is_never_quoted() -> None:
    refusal = refusal_for(RuntimeError("secret"), "01X")
    assert (refusal.status, refusal.code) == (UNEXPECTED.status, UNEXPECTED.code)
    assert "secret" not in refusal.message
