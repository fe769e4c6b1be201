"""Tells the operator's log of calls that the policy could not decide: a place of it once a minute, whatever is sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from policies.errors import Undecided

log = logging.getLogger("weighbridge.decisions")

_QUIET: Final = 60.0
"""Seconds for which the same failure is not told again."""
_MOST: Final = 1000
"""Failures that are kept apart."""


class Failures:
    """Failures of one process's policies, by what is recorded of them; that holds no value of a call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._told: dict[str, float] = {}

    def tell(self, call: str, error: Undecided) -> None:
        """One line of the log, unless the same failure had one within the last minute."""
        now = self._clock()
        if now - self._told.get(error.recorded, -_QUIET) < _QUIET:
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[error.recorded] = now
        log.warning("call %s: the policy could not decide it, so it was refused: %s", call, error.recorded)
