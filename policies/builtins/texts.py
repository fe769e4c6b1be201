"""Builtins about texts, numbers and arrays: stock ones given a limit or an answer where they fail, and missing ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

from policies.builtins.arguments import LONGEST_TEXT, text, whole

LONGEST_RANGE: Final = 10_000
MOST_SHIFT: Final = 63
LONGEST_GLOB: Final = 128
MOST_TRIMMED: Final = 256


def numbers_range(start: Any, stop: Any) -> list[int]:
    return numbers_range_step(start, stop, 1)


def numbers_range_step(start: Any, stop: Any, step: Any) -> list[int]:
    whole("numbers.range", start, stop, step)
    if step <= 0:
        raise ValueError("numbers.range takes a positive step")
    if abs(stop - start) // step >= LONGEST_RANGE:
        raise ValueError(f"a range has at most {LONGEST_RANGE} numbers")
    return list(range(start, stop + 1, step) if start <= stop else range(start, stop - 1, -step))


def bits_lsh(number: Any, places: Any) -> int:
    whole("bits.lsh", number, places)
    if not 0 <= places <= MOST_SHIFT or number.bit_length() + places > MOST_SHIFT:
        raise ValueError(f"bits.lsh gives at most {MOST_SHIFT} bits")
    return int(number << places)


def strings_count(searched: Any, part: Any) -> int:
    text("strings.count", searched, part)
    return int(searched.count(part))


def replace(searched: Any, old: Any, new: Any) -> str:
    text("replace", searched, old, new)
    if not old:
        raise ValueError("replace takes a second text that is not empty")
    if len(searched) + searched.count(old) * (len(new) - len(old)) > LONGEST_TEXT:
        raise ValueError(f"replace gives at most {LONGEST_TEXT} characters")
    return str(searched.replace(old, new))


def trim(builtin: str, cut: Callable[[str, str], str]) -> Callable[[Any, Any], str]:
    """The builtin of that name, which cuts `characters` off a text: it compares each with all of them."""

    def trimmed(value: Any, characters: Any) -> str:
        text(builtin, value, longest=sys.maxsize)
        text(builtin, characters, longest=MOST_TRIMMED)
        return str(cut(value, characters))

    return trimmed


def strings_replace_n(patterns: Any, searched: Any) -> str:
    if not isinstance(patterns, dict):
        raise ValueError("strings.replace_n takes an object of texts")
    # At each place of the text the first pattern that fits wins; what was put in is not looked at again.
    text("strings.replace_n", searched, *patterns, *patterns.values())
    ordered = sorted(patterns.items())
    if not ordered:
        return str(searched)
    # An empty pattern fits before every character and at the end, besides what fits there.
    if len(searched) + (len(searched) + 1) * max(len(new) for _, new in ordered) > 2 * LONGEST_TEXT:
        raise ValueError(f"strings.replace_n gives at most {LONGEST_TEXT} characters")
    return re.sub("|".join(re.escape(old) for old, _ in ordered), lambda found: patterns[found[0]], searched)


def strings_split_n(whole_text: Any, delimiter: Any, most: Any) -> list[str]:
    """The first `most` parts, or, where it is negative, the last."""
    text("strings.split_n", whole_text, delimiter)
    whole("strings.split_n", most)
    parts = whole_text.split(delimiter) if delimiter else list(whole_text)
    return parts[:most] if most >= 0 else parts[max(0, len(parts) + most) :]


def array_flatten(array: Any) -> list[Any]:
    if not isinstance(array, list):
        raise ValueError("array.flatten takes an array")
    return [inner for each in array for inner in (each if isinstance(each, list) else [each])]


_Ranges = tuple[tuple[str, str], ...]
_ANY: Final[_Ranges] = (("\0", "\U0010ffff"),)


def regex_globs_match(one: Any, other: Any) -> bool:
    """Whether some text matches both globs (of characters, `.`, `[a-z]`, `*`, `+` and `\\`)."""
    text("regex.globs_match", one, other, longest=LONGEST_GLOB)
    first, second = _glob(one), _glob(other)
    # Pairs of places reached together; in each, what may repeat or be left out may also be passed over.
    seen = {(0, 0)}
    todo = [(0, 0)]
    while todo:
        here, there = todo.pop()
        if here == len(first) and there == len(second):
            return True
        reached = []
        if here < len(first) and first[here][2]:
            reached.append((here + 1, there))
        if there < len(second) and second[there][2]:
            reached.append((here, there + 1))
        if here < len(first) and there < len(second) and _meet(first[here][0], second[there][0]):
            ways = [(here + 1, there + 1)]
            if first[here][1]:
                ways.append((here, there + 1))
            if second[there][1]:
                ways.append((here + 1, there))
            reached += ways
        for pair in reached:
            if pair not in seen:
                seen.add(pair)
                todo.append(pair)
    return False


def _meet(one: _Ranges, other: _Ranges) -> bool:
    return any(low <= end and start <= high for low, high in one for start, end in other)


def _glob(glob: str) -> list[tuple[_Ranges, bool, bool]]:
    """Steps: the characters that fit, whether they may repeat, whether there may be none.

    `x+` becomes a step that must be taken and one that may repeat or be left out.
    """
    steps: list[tuple[_Ranges, bool, bool]] = []
    at = 0
    while at < len(glob):
        at, fits = _unit(glob, at)
        flag = glob[at] if at < len(glob) else ""
        if flag == "*":
            steps.append((fits, True, True))
        elif flag == "+":
            steps += [(fits, False, False), (fits, True, True)]
        else:
            steps.append((fits, False, False))
        at += flag in ("*", "+")
    return steps


def _unit(glob: str, at: int) -> tuple[int, _Ranges]:
    found = _UNIT.match(glob, at)
    if not found:
        raise ValueError(f"regex.globs_match takes globs; there is none from character {at + 1} on")
    if found[0] == ".":
        return found.end(), _ANY
    if found["set"] is None:
        literal = found[0][-1]
        return found.end(), ((literal, literal),)
    ranges = []
    for each in _RANGE.finditer(found["set"]):
        low, high = each["low"][-1], (each["high"] or each["low"])[-1]
        if high < low:
            raise ValueError("regex.globs_match takes ranges that go upwards")
        ranges.append((low, high))
    return found.end(), tuple(ranges)


_UNIT: Final = re.compile(r"\\.|\[(?P<set>(?:(?:\\.|[^\]\\-])(?:-(?:\\.|[^\]\\-]))?)*)\]|[^\[\]*+\\]", re.DOTALL)
_RANGE: Final = re.compile(r"(?P<low>\\.|[^\\])(?:-(?P<high>\\.|[^\\]))?", re.DOTALL)


_AMOUNT: Final = re.compile(r"(?P<number>[-+]?[0-9.]+(?:[eE][-+]?[0-9]{1,2}(?![0-9]))?)(?P<unit>[A-Za-z]*)", re.ASCII)
_DECIMAL: Final = {letter: 1000 ** (power + 1) for power, letter in enumerate("kmgtpe")}
_BINARY: Final = {f"{letter}i": 1024 ** (power + 1) for power, letter in enumerate("kmgtpe")}
_BYTES: Final = {"": 1} | _DECIMAL | _BINARY | {f"{unit}b": size for unit, size in (_DECIMAL | _BINARY).items()}
LONGEST_AMOUNT: Final = 64
LARGEST_AMOUNT: Final = 2**64


def units_parse(amount: Any) -> int | float:
    """A number with a decimal (`k`, `M`, ..) or binary (`Ki`, `Mi`, ..) unit; `m` is a thousandth, `M` a million."""
    number, unit = _amount("units.parse", amount)
    if unit == "m":
        return _numeral("units.parse", number / 1000)
    factor = (_DECIMAL | _BINARY | {"": 1}).get(unit.lower())
    if factor is None:
        raise ValueError("units.parse was given a unit it does not know")
    return _numeral("units.parse", number * factor)


def units_parse_bytes(amount: Any) -> int:
    """A number of bytes with a decimal (`kB`, `MB`, ..) or binary (`KiB`, `MiB`, ..) unit, cut to a whole number."""
    number, unit = _amount("units.parse_bytes", amount)
    factor = _BYTES.get(unit.lower())
    if factor is None:
        raise ValueError("units.parse_bytes was given a unit it does not know")
    return int(_numeral("units.parse_bytes", Fraction(int(number * factor))))


def _amount(builtin: str, amount: Any) -> tuple[Fraction, str]:
    text(builtin, amount, longest=LONGEST_AMOUNT)
    found = _AMOUNT.fullmatch(amount.replace('"', ""))
    digits = found["number"] if found else ""
    if not found or digits.lower().partition("e")[0].count(".") > 1 or not digits.strip("+-."):
        raise ValueError(f"{builtin} takes a number and a unit such as 10Mi, its exponent of at most two digits")
    return Fraction(digits.rstrip(".")), found["unit"]


def _numeral(builtin: str, number: Fraction) -> int | float:
    """Whole numbers exactly, others to ten places."""
    if abs(number) >= LARGEST_AMOUNT:
        raise ValueError(f"{builtin} gives numbers below 2^64, beyond which they are not exact")
    return int(number) if number.denominator == 1 else float(round(number, 10))
