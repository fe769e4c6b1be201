"""Numbers for people: few digits, the unit, and never something that means another thing."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import readable


@pytest.mark.parametrize(
    ("shown", "value", "text"),
    [
        (readable.count, 0, "0"),
        (readable.count, 1234567, "1,234,567"),
        (readable.roughly, 99, "99"),
        (readable.roughly, 1309, "1,300"),
        (readable.roughly, 566266, "570,000"),
        (readable.share, 0, "0 %"),
        (readable.share, 1, "100 %"),
        (readable.share, 0.628, "62.8 %"),
        (readable.share, -0.628, "-62.8 %"),
        (readable.share, 0.0526, "5.26 %"),
        (readable.share, 0.00031, "0.031 %"),
        (readable.share, 0.9952, "99.52 %"),
        (readable.share, 0.99973, "99.973 %"),
        (readable.share, 0.9999999, "99.999990 %"),
        (readable.share, Decimal("1.5"), "150.0 %"),
        (readable.limit, 0.995, "99.5 %"),
        (readable.limit, Decimal("0.2"), "20 %"),
        (readable.percent, 32.5, "32.5 %"),
        (readable.change, -0.7471, "-74.7 %"),
        (readable.change, 1.5, "+150.0 %"),
        (readable.milliseconds, 0.424, "0.42 ms"),
        (readable.milliseconds, 4.24, "4.24 ms"),
        (readable.milliseconds, 42.4, "42 ms"),
        (readable.milliseconds, 999, "999 ms"),
        (readable.milliseconds, 999.7, "1 s"),
        (readable.milliseconds, 1240, "1.24 s"),
        (readable.milliseconds, 83_400, "83.4 s"),
        (readable.milliseconds, 750_000, "12.5 min"),
        (readable.milliseconds, Decimal(-117), "-117 ms"),
        (readable.added_ms, 42, "+42 ms"),
        (readable.added_ms, 0, "0 ms"),
        (readable.added_ms, -42, "-42 ms"),
        (readable.dollars, 0, "$0.00"),
        (readable.dollars, Decimal("0.000425123"), "$0.000425"),
        (readable.dollars, Decimal("0.000000001"), "$0.00000000100"),
        (readable.dollars, 0.5, "$0.500"),
        (readable.dollars, 1.239, "$1.24"),
        (readable.dollars, 12345.6, "$12,346"),
        (readable.dollars, Decimal("-25.17"), "-$25.17"),
        (readable.length, 60, "1 minute"),
        (readable.length, 14 * 86400, "14 days"),
        (readable.length, 90, "90 seconds"),
        (readable.plain, 12400.0, "12,400"),
        (readable.plain, 0.16037, "0.1604"),
        (readable.plain, 1.5e-9, "1.5e-09"),
        (readable.tenths, 87.31, "87.3"),
        (readable.tenths, 1234.5, "1,234"),
    ],
)
def test_a_number_is_shown_as_people_write_it(shown: Any, value: Any, text: str) -> None:
    assert shown(value).replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-") == text


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_only_all_is_100_per_cent_and_only_nothing_0(part: int, whole: int) -> None:
    text = readable.share(min(part, whole) / whole)
    number = float(text.removesuffix("\N{NO-BREAK SPACE}%"))
    assert (number == 0, number == 100) == (part == 0, part >= whole)
    assert number / 100 == pytest.approx(min(part, whole) / whole, rel=0.05)


@given(st.decimals(0, 10**9, places=9))
def test_money_is_right_to_three_digits_or_a_cent(amount: Decimal) -> None:
    shown = Decimal(readable.dollars(amount).removeprefix("$").replace(",", ""))
    assert abs(shown - amount) <= max(amount / 200, Decimal(0)) or abs(shown - amount) <= Decimal("0.005") <= amount


@pytest.mark.parametrize("value", [True, "7", None, float("nan"), float("inf"), Decimal("NaN")])
def test_what_is_no_number_is_none(value: Any) -> None:
    with pytest.raises(TypeError):
        readable.exact(value)
