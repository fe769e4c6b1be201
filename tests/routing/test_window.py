"""`routing.window`: the literal error rate over a window, with a minimum of calls."""

from hypothesis import given
from hypothesis import strategies as st

from routing import window
from routing.evidence import Units


def test_the_rate_says_nothing_before_there_are_calls_enough() -> None:
    assert not window.exceeded(199, 199, 0.01, 200)
    assert window.exceeded(200, 3, 0.01, 200)
    assert not window.exceeded(200, 2, 0.01, 200), "at the limit is within it"


def test_what_is_older_than_the_window_is_forgotten() -> None:
    cells: tuple[window.Cell, ...] = ()
    for at in range(0, 600, 10):
        cells = window.after(cells, at, Units(10, 1, 5, 0), {"connect": 1}, 300)
    seen = window.total(cells)
    assert seen.counted == Units(300, 30, 150, 0)
    assert seen.classes == {"connect": 30}
    assert seen.at == 300
    assert window.total(window.after(cells, 5000, Units(1, 0, 0, 0), {}, 300)).counted == Units(1, 0, 0, 0)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=200), st.sampled_from([10, 60, 300, 3600, 86_400 * 14]))
def test_it_holds_the_window_and_at_most_a_sixtieth_more_in_few_cells(gaps: list[int], seconds: int) -> None:
    cells: tuple[window.Cell, ...] = ()
    at, ats = 0, list[int]()
    for gap in gaps:
        at += 10 * (gap + 1)
        ats.append(at)
        cells = window.after(cells, at, Units(1, 0, 0, 0), {}, seconds)
    held = window.total(cells).counted.calls
    width = -(-seconds // 600) * 10
    assert sum(each + 10 > at + 10 - seconds for each in ats) <= held
    assert held <= sum(each >= at + 10 - seconds - width for each in ats)
    assert len(cells) <= 61 + 1
