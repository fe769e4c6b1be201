"""What all commands share: how they end, where their complaints go, how they read the configuration and show tables."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Final

from config.errors import ConfigError, Mistake
from config.load import Loaded, load
from gateway.logs import printable

OK: Final = 0
MISTAKEN: Final = 1
UNUSABLE: Final = 2
"""Exit codes: all well; what was checked has mistakes; the command itself could not be carried out."""


def complain(text: str) -> None:
    """Tells the person at the terminal, line by line, whatever the text holds."""
    for line in text.split("\n"):
        print(printable(line), file=sys.stderr)


def configuration(path: Path, *, resolve: bool = True) -> Loaded:
    """Raises ConfigError, also for a pipe, which might keep its reader waiting for ever."""
    if path.is_fifo() or path.is_char_device() or path.is_socket():
        raise ConfigError([Mistake(path, 0, 0, "", "is not a regular file", "Name a file.")], frozenset())
    return load(path, resolve=resolve)


def columns(cells: Sequence[Sequence[str]], right: Set[int]) -> list[str]:
    """Lines of cells, aligned; to the right those whose numbers are given."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        placed = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(placed).rstrip())
    return lines


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Where to write what becomes `file` once it is whole; what is there stays until then. Raises OSError."""
    place = file.resolve()
    if place.exists() and not place.is_file():
        yield place  # a pipe or a device keeps nothing that could be half
        return
    beside = place.with_name(f"{place.name}.partial")
    try:
        yield beside
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)
