"""What all commands share: how they end, where their complaints go, and how they read the configuration."""

from __future__ import annotations

import sys
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
