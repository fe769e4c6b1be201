"""Numbers and times as people read them: few digits, the unit, never rounded to something that means another thing."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Final

Number = int | float | Decimal

_MINUS: Final = "\N{MINUS SIGN}"
_SPACE: Final = "\N{NO-BREAK SPACE}"


def or_unknown(value: Number | None, shown: Callable[[Number], str]) -> str:
    return shown(value) if value is not None else "not known"


def exact(value: Number) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(f"{value!r} is no number")
    digits = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not digits.is_finite():
        raise TypeError(f"{value!r} is no number")
    return digits


def count(value: Number) -> str:
    return f"{exact(value):,f}"


def tenths(value: Number) -> str:
    return f"{value:,.1f}" if abs(float(value)) < 100 else f"{value:,.0f}"


def plain(value: Number) -> str:
    """A number of unknown kind: four digits, and all of an integer."""
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.4g}" if 0.0001 <= abs(float(value)) < 100_000 else f"{value:.3g}"


def share(value: Number) -> str:
    """0.99973 -> `99.973 %`: as many places as tell it from 0 and from 100 %, and never rounded to either."""
    size = abs(exact(value)) * 100
    apart = min(size, abs(100 - size))
    places = 0 if not apart else 1 if apart >= 10 else 2 if apart >= Decimal("0.1") else min(9, 1 - apart.adjusted())
    return f"{_MINUS if value < 0 else ''}{size:,.{places}f}{_SPACE}%"


def percent(value: Number) -> str:
    """What is in per cent already, as somebody has written it."""
    return f"{float(value):.10g}{_SPACE}%"


def limit(value: Number) -> str:
    """A share that somebody has written: 0.995 -> `99.5 %`."""
    return percent(exact(value) * 100)


def roughly(value: Number) -> str:
    """A count that is only estimated: two digits of it, or all of a small one."""
    digits = exact(value)
    return count(round(digits, 1 - digits.adjusted()) if digits >= 100 else digits)


def change(value: Number) -> str:
    """By which share something is more or less: -0.628 -> `-62.8 %`, with a true minus sign."""
    return f"{_MINUS if value < 0 else '+'}{abs(float(value)) * 100:.1f}{_SPACE}%"


def milliseconds(value: Number) -> str:
    """Milliseconds -> `0.42 ms`, `42 ms`, `1.24 s`, `12.5 min`."""
    size, sign = abs(float(value)), _MINUS if value < 0 else ""
    number, unit = (size, "ms") if size < 999.5 else (size / 1e3, "s") if size < 99_950 else (size / 6e4, "min")
    places = 0 if number >= (9.95 if unit == "ms" else 99.95) else 1 if number >= 9.995 else 2
    text = f"{number:.{places}f}"
    return f"{sign}{text.rstrip('0').rstrip('.') if places else text}{_SPACE}{unit}"


def added_ms(value: Number) -> str:
    return f"+{milliseconds(value)}" if value > 0 else milliseconds(value)


def dollars(value: Number) -> str:
    """Dollars -> `$12,345`, `$1.24`, `$0.000425`: cents, or three digits of what is less."""
    amount = exact(value)
    sign, amount = (_MINUS, -amount) if amount < 0 else ("", amount)
    if amount >= 1000:
        return f"{sign}${amount:,.0f}"
    if amount >= 1 or not amount:
        return f"{sign}${amount:.2f}"
    return f"{sign}${amount:.{max(2, 2 - amount.adjusted())}f}"


def length(seconds: Number) -> str:
    for unit, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit and seconds % unit == 0:
            number = int(seconds // unit)
            return f"{number:,}{_SPACE}{name}{'s' if number != 1 else ''}"
    return f"{plain(seconds)}{_SPACE}seconds"


def odds(value: Number) -> str:
    """Odds to one: 12000.4 -> `12,000 to 1`."""
    if value > 1_000_000:
        return "more than 1,000,000 to 1"
    return f"{f'{value:,.0f}' if value >= 10 else f'{value:.2g}'} to 1"


def instant(at: str | Number) -> datetime.datetime:
    """Of seconds since the epoch, or a moment as ISO 8601 writes it. Raises ValueError."""
    if not isinstance(at, str):
        return datetime.datetime.fromtimestamp(int(exact(at)), datetime.UTC)
    when = datetime.datetime.fromisoformat(at)
    return when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when.astimezone(datetime.UTC)


def epoch(at: str | Number) -> int:
    return int(instant(at).timestamp())


def moment(at: str | Number) -> str:
    when = instant(at)
    return f"{when.day} {when:%B %Y, %H:%M}"
