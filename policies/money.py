"""Money as integers: nano-dollars, in which sums are exact and comparisons mean what they say."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final

NANO: Final = 10**9
"""Nano-dollars of a dollar."""

MOST: Final = 2**53 - 1
"""The largest amount, some nine million dollars: the scripts of a Redis server count in binary fractions, which are
exact up to there."""


def nano(usd: float | Decimal) -> int:
    """Dollars -> nano-dollars, rounded down: a limit never becomes more than was written."""
    return int((Decimal(str(usd)) * NANO).to_integral_value(ROUND_FLOOR))


def nano_up(usd: float | Decimal) -> int:
    """Dollars -> nano-dollars, rounded up: a cost never becomes less than it is."""
    return int((Decimal(str(usd)) * NANO).to_integral_value(ROUND_CEILING))


def usd(amount: int) -> float:
    """Nano-dollars -> dollars, for JSON."""
    return amount / NANO


def usd_text(amount: int) -> str:
    """Nano-dollars -> dollars as a decimal text without an exponent: 1500000000 -> `1.50`, 250 -> `0.00000025`."""
    text = f"{amount:010d}" if amount >= 0 else f"-{-amount:010d}"
    return f"{text[:-9]}.{text[-9:-7]}{text[-7:].rstrip('0')}"
