"""How numbers and times of a rollout are said to people, in explanations that outlive the rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime


def listed(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def percent(share: float) -> str:
    """0.0532 -> `5.32 %`."""
    return f"{share * 100:.3g} %"


_MOST_ODDS = 1e6


def odds(evidence: float) -> str:
    """12000.4 -> `12,000:1`, and 0.0329 -> `1:30`; nothing beyond a million."""
    if evidence > _MOST_ODDS:
        return "more than 1,000,000:1"
    if evidence >= 1:
        return f"{evidence:,.0f}:1"
    return f"1:{1 / evidence:,.0f}" if evidence * _MOST_ODDS >= 1 else "less than 1:1,000,000"


def moment(at: int) -> str:
    """Unix seconds -> `2026-11-21 13:05:10 UTC`."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """190000 -> `2 d 4 h`; rounded down, but never to nothing."""
    left = max(1, math.ceil(seconds))
    days, hours, minutes = left // 86_400, left // 3600 % 24, left // 60 % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{left} s"
