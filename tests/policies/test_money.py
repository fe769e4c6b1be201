"""Money: exact sums, limits that never grow and costs that never shrink by being written down."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.money import MOST, NANO, nano, nano_up, usd, usd_text

dollars = st.decimals(min_value=0, max_value=9_000_000, allow_nan=False, places=12)


@pytest.mark.parametrize(
    ("written", "down", "up"),
    [
        (0, 0, 0),
        (5, 5 * NANO, 5 * NANO),
        (0.1, 100_000_000, 100_000_000),
        (0.1 + 0.2, 300_000_000, 300_000_001),
        (1e-9, 1, 1),
        (1.5e-9, 1, 2),
        (1e-12, 0, 1),
        (9_000_000, 9_000_000 * NANO, 9_000_000 * NANO),
        (Decimal("0.0000000019"), 1, 2),
    ],
)
def test_a_limit_is_rounded_down_and_a_cost_up(written: float | Decimal, down: int, up: int) -> None:
    assert (nano(written), nano_up(written)) == (down, up)


@given(dollars)
def test_rounding_moves_an_amount_by_less_than_a_nano_dollar(amount: Decimal) -> None:
    exact = amount * NANO
    assert exact - 1 < nano(amount) <= exact <= nano_up(amount) < exact + 1


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00"),
        (1_500_000_000, "1.50"),
        (250, "0.00000025"),
        (1, "0.000000001"),
        (-20_000_000, "-0.02"),
        (12_345_678_901, "12.345678901"),
        (10**18, "1000000000.00"),
    ],
)
def test_dollars_are_written_out_with_no_digit_lost(amount: int, text: str) -> None:
    assert usd_text(amount) == text


@given(st.integers(-MOST, MOST))
def test_what_is_written_out_is_read_back_as_the_same_amount(amount: int) -> None:
    text = usd_text(amount)
    assert Decimal(text) * NANO == amount
    assert "e" not in text.lower()
    assert len(text.partition(".")[2]) >= 2


@given(st.integers(0, 10**15))
def test_ordinary_amounts_survive_json(amount: int) -> None:
    """Up to a million dollars."""
    assert round(usd(amount) * NANO) == amount


def test_the_largest_limit_that_can_be_configured_is_counted_exactly() -> None:
    assert nano(9_000_000) <= MOST
    assert float(MOST) == MOST
