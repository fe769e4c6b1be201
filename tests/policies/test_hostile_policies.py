"""No policy text and no data ends the process that loads it, or keeps it waiting; `hostile` can try many more."""

from pathlib import Path

import pytest

from tests.policies.hostile import KINDS, decide, load, write

EACH = 2
"""Policies of each kind."""


@pytest.mark.parametrize("number", range(EACH * len(KINDS)))
async def test_it_is_refused_by_name_or_it_decides_in_time(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write(number, folder)
    accepted, wrong = await load(folder)
    assert wrong is None
    assert not accepted or decide(folder) is None
