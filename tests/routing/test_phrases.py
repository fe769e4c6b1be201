"""`routing.phrases`: numbers and times as people read them."""

import pytest

from routing.phrases import duration, listed, moment, odds, percent


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (listed([]), ""),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b or c"),
        (percent(0.0533), "5.33 %"),
        (percent(0.002), "0.2 %"),
        (odds(12_000.4), "12,000:1"),
        (odds(1e40), "more than 1,000,000:1"),
        (odds(0.0329), "1:30"),
        (odds(1e-9), "less than 1:1,000,000"),
        (odds(0.0), "less than 1:1,000,000"),
        (moment(1_763_730_300), "2025-11-21 13:05:00 UTC"),
        (duration(0.2), "1 s"),
        (duration(59), "59 s"),
        (duration(3599), "59 min"),
        (duration(7260), "2 h 1 min"),
        (duration(86_400), "1 d"),
        (duration(190_000), "2 d 4 h"),
    ],
)
def test_it_is_said_so(said: str, text: str) -> None:
    assert said == text
