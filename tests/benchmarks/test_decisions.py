"""The measurement of decisions: every row decides the same call by the same policy."""

import asyncio
import itertools
import os

import pytest

from benchmarks import decisions
from benchmarks.decisions import questions, run
from tests.support.opa import OPA


def test_each_agent_asks_in_turn() -> None:
    asked = [question.document() for question in itertools.islice(questions(3), 6)]
    assert [b"agent-%d" % (number % 3) in document for number, document in enumerate(asked)] == [True] * 6


def test_the_table_has_a_row_for_each_engine_and_number_of_envelopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "AGENTS", (3, 5))
    for core in ("LOAD_CORE", "CONTESTANT_CORE"):  # which a machine with one core has, too
        monkeypatch.setattr(decisions, core, min(os.sched_getaffinity(0)))
    said: list[str] = []
    table = run(20, said.append)
    rows = [line for line in table.splitlines() if line.startswith(("| embedded", "| OPA"))]
    assert len(rows) == len(said) == (8 if OPA is not None else 4)
    assert all("| 20 " in row for row in rows)


def test_a_refused_call_is_no_measurement() -> None:
    class Refusing:
        async def decide(self, question: object) -> object:
            return type("Decision", (), {"effect": "DENY"})()

    with pytest.raises(AssertionError):
        asyncio.run(decisions.timed(Refusing(), 1, 0, 1))  # type: ignore[arg-type]  # it only ever decides
