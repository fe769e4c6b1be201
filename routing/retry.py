"""Whether a call that failed is sent again, and to whom: only before the agent got a byte, and within a budget.

What a failure is worth stands in `routing.outcomes`. Beyond that: an attempt costs money, and a target that is down is
not helped by more calls. So attempts are few, and retries in all a share of calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from routing.outcomes import Outcome, Retry
from routing.table import Arm

ALWAYS: Final = 10.0
"""Retries in a second that the budget always has: with few calls, a share of them is none."""
MEMORY: Final = 10.0
"""Seconds in which what the budget has and nobody needs becomes a third (1/e)."""

_LONGEST: Final = 86_400.0
_GRAIN: Final = MEMORY / 100
"""Seconds in which what calls put aside is taken to have come at once."""


class RetryBudget:
    """What a route's calls put aside for retries, each `share` of one.

    Until any moment there were at most `share` of the calls, `ALWAYS` a second, and ALWAYS * MEMORY retries; after a
    while without any, what can come at once is what the last MEMORY seconds have put aside. Times are seconds of a
    monotonic clock.
    """

    __slots__ = ("_at", "_balance", "share")

    def __init__(self, share: float, now: float) -> None:
        """`share` is from 0 to 1; with 0 there are no retries."""
        self.share = share
        self._balance = ALWAYS * MEMORY if share > 0 else 0.0
        self._at = now

    def called(self, now: float) -> None:
        """A call has come: its first attempt."""
        if now - self._at > _GRAIN:
            self._pass(now)
        self._balance += self.share

    def spend(self, now: float) -> bool:
        """Takes one retry; False where there is none."""
        self._pass(now)
        if self._balance < 1:
            return False
        self._balance -= 1
        return True

    def returned(self) -> None:
        """A retry that was taken, maybe by other settings, has not been made."""
        self._balance += 1 if self.share > 0 else 0

    def _pass(self, now: float) -> None:
        elapsed = now - self._at
        if elapsed > 0:
            left = math.exp(-elapsed / MEMORY)
            level = ALWAYS * MEMORY if self.share > 0 else 0.0
            # What flows in while the rest drains: the balance goes to its level, and never over it by waiting.
            self._balance = level + (self._balance - level) * left
            self._at = now


def again(
    outcome: Outcome, *, made: int, attempts: int, begun: bool, acted: bool, repeatable: bool, pinned: bool
) -> Retry:
    """Who else may be tried, `made` attempts of at most `attempts` having failed: nobody, a node or an arm.

    `begun` is whether the agent was sent a byte. `acted` is whether the target may have acted on the call; then only a
    `repeatable` one is sent again: what a model writes is paid for twice and harms nobody, what a tool does may. A
    `pinned` call, or one that refers to something a target keeps, has no other place.
    """
    if begun or pinned or made >= attempts or (acted and not repeatable):
        return "no"
    return outcome.retry


def remaining(arms: Sequence[Arm], index: int, retry: Retry) -> Sequence[Arm]:
    """The arms that are left to try after a failure on the one at `index`."""
    return arms[index:] if retry == "node" else arms[index + 1 :] if retry == "arm" else ()


def retry_after(after_ms: str | None, after: str | None, now: float) -> float | None:
    """Seconds for which a target wants to be left alone, by its headers `retry-after-ms` and `retry-after`.

    At most a day; None where neither can be understood (RFC 9110 section 10.2.3). `now` is the wall clock's, in Unix
    seconds.
    """
    for text, factor in ((after_ms, 0.001), (after, 1.0)):
        seconds = _number(text)
        if seconds is not None:
            return min(seconds * factor, _LONGEST)
    if after is None:
        return None
    try:
        date = parsedate_to_datetime(after)
        moment = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(moment - now, 0.0), _LONGEST)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None and text.isascii() else math.nan
    except ValueError:
        return None
    return number if number >= 0 else None
