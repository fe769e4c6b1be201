"""OPA's own cases, in the version that the tests run: what passes, and what is known to fail and why, is on record.

`tests/policies/conformance.yaml` is written anew by `python -m tests.policies.conformance FOLDER`.
"""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.policies.conformance import RECORD, published, record, run
from tests.support.opa import ROOT


def pinned() -> str:
    """The version of OPA that the Makefile builds."""
    found = re.search(r"opa-(v[0-9.]+)\.stamp", (ROOT / "Makefile").read_text())
    assert found
    return found[1]


CASES: Final[Path | None] = published(pinned())


@pytest.fixture(scope="module")
def recorded() -> Any:
    return yaml.safe_load(RECORD.read_text())


@pytest.mark.timeout(180)  # two seconds of work, on a machine with nothing else to do
@pytest.mark.skipif(CASES is None, reason="OPA's source is not installed: `make opa` brings it where Go is")
def test_opas_cases_pass_but_for_those_on_record(recorded: Any) -> None:
    assert CASES is not None
    results = run(CASES)
    found = record(results)
    expected = {note for notes in recorded["failing"].values() for note in notes}
    failing = {note: result for note, (_, result) in results.items() if result}
    assert {note: failing[note] for note in failing.keys() - expected} == {}, "these passed before"
    assert expected - failing.keys() == set(), "these pass now: record them"
    assert found == recorded


def test_every_failure_on_record_has_a_reason(recorded: Any) -> None:
    assert [reason for reason in recorded["failing"] if reason.startswith("the interpreter:")] == []
    assert recorded["cases"] - recorded["passed"] == sum(map(len, recorded["failing"].values()))


@pytest.mark.parametrize("room", ["io.jwt", "crypto hashes and hmac", "networks"])
def test_what_is_supplied_passes_whole_groups(room: str, recorded: Any) -> None:
    begins = {"io.jwt": "jwt", "crypto hashes and hmac": "cryptohmac", "networks": "netcidrmerge"}[room]
    groups = {name: figures for name, figures in recorded["groups"].items() if name.startswith(begins)}
    assert groups
    assert all(figures.split(" of ")[0] == figures.split(" of ")[1] for figures in groups.values())
