"""Whatever agents, targets and operators do, every nano-dollar is accounted for: some rounds of what `weather` does for
as long as one likes."""

from pathlib import Path

import pytest

from tests.gateway.weather import Figures, rounds


@pytest.mark.parametrize("seed", [1, 11, 13, 19, 21, 23])
async def test_no_weather_loses_or_makes_money(seed: int, tmp_path: Path) -> None:
    figures = Figures()
    await rounds([seed], figures, 0.0, tmp_path, seed)
    assert figures.wrong == []
    assert figures.rounds == 1
    assert figures.calls > 50
