"""The literal rule for a canary, for those whom an auditor asks for it: its error rate over a window, to the letter.

It takes back healthy canaries now and then, the more often the shorter the window: `routing.simulation` says how often.
The window moves on in sixtieths of itself, so that it is as small in the state of a long window as in that of a short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from routing.course import BUCKET
from routing.evidence import Units, added

_CELLS: Final = 60


class Cell(NamedTuple):
    """A part of the window that began `at`, in Unix seconds: calls and errors, and the canary's errors by class."""

    at: int
    counted: Units
    classes: Mapping[str, int]


def after(
    cells: tuple[Cell, ...], at: int, counted: Units, classes: Mapping[str, int], seconds: float
) -> tuple[Cell, ...]:
    """The window of so many seconds after a bucket that began `at`."""
    width = math.ceil(seconds / _CELLS / BUCKET) * BUCKET
    begin = at - at % width
    kept = tuple(each for each in cells if each.at + width > at + BUCKET - seconds)
    if kept and kept[-1].at >= begin:
        last = kept[-1]
        return (*kept[:-1], Cell(last.at, last.counted.plus(counted), added(last.classes, classes)))
    return (*kept, Cell(begin, counted, classes))


def total(cells: tuple[Cell, ...]) -> Cell:
    """All that the window holds, as one; it began at 0 where it is empty."""
    counted, classes = Units(), dict[str, int]()
    for each in cells:
        counted, classes = counted.plus(each.counted), added(classes, each.classes)
    return Cell(cells[0].at if cells else 0, counted, classes)


def exceeded(calls: int, errors: int, limit: float, min_calls: int) -> bool:
    """Whether the rate is above the limit, where there are calls enough to say so."""
    return calls >= min_calls and errors > limit * calls
