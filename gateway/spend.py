"""What was spent, and by whom: questions to the cost ledger, and its answers as rows, JSON and CSV.

An answer is made of rows: the dimensions that it is grouped by, each a text, and all METRICS, each an integer, of money
in nano-dollars. Rows are in the order of their dimensions, so that an answer can be had in pages: the next one begins
after the last row of the one before, however much was spent in between.
"""

from __future__ import annotations

import asyncio
import base64
import bisect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import orjson

from policies.budgets import DIMENSIONS, METRICS, Store
from policies.money import NANO, usd_text

GROUPS: Final = ("month", *DIMENSIONS)
"""What rows can be grouped by."""

MONEY: Final = ("cost", "tool_cost")
COLUMNS: Final[Mapping[str, str]] = {name: f"{name}_usd" if name in MONEY else name for name in METRICS}
"""Metrics -> what they are called where amounts are dollars."""

MOST_ROWS: Final = 100_000
"""Rows of an answer, all its pages together."""
_MOST_DAYS: Final = 3_660
_SLICE: Final = 31
"""Days that the store is asked about at once; a single one where each session makes a row."""
_QUICK: Final = 1000
"""Rows that are worked on without leaving the event loop."""

_FORMULA: Final = re.compile(r"(^|[;\t\r\n])(?= *[=+\-@\uff0b\uff0d\uff1d\uff20])")
"""Where a spreadsheet might begin to read a formula: at the beginning, or after what it may take for a cell's end."""


class SpendRefused(Exception):
    """A question that is not understood, or whose answer would be too long. The text says what to ask instead."""


@dataclass(frozen=True, slots=True)
class Question:
    """From the day `since` to the day `until` inclusive, summed by `group_by`, and only what has the values `where`."""

    since: str
    until: str
    group_by: tuple[str, ...]
    where: Mapping[str, str]


Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """All rows of a question, in the order of their dimensions, and their sum."""

    question: Question
    rows: list[Row]
    total: Row

    def page(self, most: int, after: str | None) -> tuple[list[Row], str | None]:
        """At most so many rows from where the page before ended, and what `after` of the next one is; None at the end.

        Raises SpendRefused.
        """
        begin = bisect.bisect_right(self.rows, self._unfolded(after), key=self._key) if after is not None else 0
        rows = self.rows[begin : begin + most]
        more = begin + most < len(self.rows)
        return rows, _folded(self._key(rows[-1])) if more else None

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(row[name] for name in self.question.group_by)

    def _unfolded(self, after: str) -> tuple[str, ...]:
        try:
            key = orjson.loads(base64.b64decode(after + "=" * (-len(after) % 4), altchars=b"-_", validate=True))
        except ValueError:
            key = None
        count = len(self.question.group_by)
        if not isinstance(key, list) or len(key) != count or not all(isinstance(each, str) for each in key):
            raise SpendRefused("`after` is not what `next` of a page of this question said.")
        return tuple(key)


def _folded(key: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=")


def question(asked: Mapping[str, str], today: str) -> Question:
    """Reads a query: `group_by`, `from`, `to`, and any dimension as a filter. Raises SpendRefused."""
    where = {name: asked[name] for name in DIMENSIONS if name in asked}
    since, until = _days(asked, today)
    where.pop("day", None)
    written = asked.get("group_by", "day")
    group_by = tuple(written.split(",")) if written else ()
    unknown = next((name for name in group_by if name not in GROUPS), None)
    if unknown is not None:
        raise SpendRefused(f"{_quoted(unknown)} is nothing to group by. Take any of {', '.join(GROUPS)}.")
    if len(set(group_by)) < len(group_by):
        raise SpendRefused("`group_by` names something twice.")
    return Question(since.isoformat(), until.isoformat(), group_by, where)


def _days(asked: Mapping[str, str], today: str) -> tuple[date, date]:
    """First and last day of a question; this month's where it names none."""
    named = [name for name in ("day", "month") if name in asked]
    if named:
        if len(named) > 1 or "from" in asked or "to" in asked:
            raise SpendRefused(f"`{named[0]}` says from when to when already. Leave the other dates out.")
        if named[0] == "day":
            return _day("day", asked["day"]), _day("day", asked["day"])
        first = _day("month", asked["month"], "-01")
        return first, _end_of_month(first)
    if "from" in asked:
        since = _day("from", asked["from"])
        until = _day("to", asked["to"]) if "to" in asked else max(since, date.fromisoformat(today))
    else:
        until = _day("to", asked.get("to", today))
        since = until.replace(day=1)
    if since > until:
        raise SpendRefused("`from` is after `to`.")
    if (until - since).days >= _MOST_DAYS:
        raise SpendRefused(f"From {since} to {until} is too long. Ask for at most {_MOST_DAYS} days.")
    return since, until


def _day(name: str, written: str, rest: str = "") -> date:
    try:
        if re.fullmatch(r"2[0-9]{3}-[0-9]{2}-[0-9]{2}", written + rest, re.ASCII):
            return date.fromisoformat(written + rest)
    except ValueError:
        pass
    raise SpendRefused(f"`{name}` is {_quoted(written)}. Write {'2026-11' if rest else 'a day as 2026-11-21'}.")


def _end_of_month(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)


def _quoted(text: str) -> str:
    return repr(text[:64])


async def spent(store: Store, tenants: Iterable[str], asked: Question) -> Answer:
    """Asks the cost ledger. Raises SpendRefused, StoreUnavailable.

    The store is asked about some days at a time, so that an answer that would be too long never grows.
    """
    tenants = [asked.where["tenant"]] if "tenant" in asked.where else sorted(set(tenants))
    kept = tuple(dict.fromkeys("day" if name == "month" else name for name in asked.group_by))
    sums: dict[tuple[str, ...], list[int]] = {}
    for since, until in _slices(asked, 1 if "session" in kept else _SLICE):
        rows = await store.spend(tenants, since, until, kept, asked.where)
        await aside(len(rows), _add, sums, rows, asked.group_by)
        if len(sums) > MOST_ROWS:
            raise SpendRefused(f"The answer has more than {MOST_ROWS} rows. Ask for fewer days, or group by less.")
    answer: Answer = await aside(len(sums), _answer, asked, sums)
    return answer


async def aside(size: int, work: Any, *arguments: Any) -> Any:
    """Long work is done in a thread, where it does not hold up calls."""
    return work(*arguments) if size <= _QUICK else await asyncio.to_thread(work, *arguments)


def _slices(asked: Question, days: int) -> Iterator[tuple[str, str]]:
    since, until = date.fromisoformat(asked.since), date.fromisoformat(asked.until)
    while since <= until:
        last = min(until, since + timedelta(days=days - 1))
        yield since.isoformat(), last.isoformat()
        since = last + timedelta(days=1)


def _add(
    sums: dict[tuple[str, ...], list[int]], rows: Iterable[Mapping[str, str | int]], group_by: Sequence[str]
) -> None:
    for row in rows:
        key = tuple(str(row["day"])[:7] if name == "month" else str(row[name]) for name in group_by)
        metrics = [int(row[name]) for name in METRICS]
        before = sums.get(key)
        sums[key] = [one + other for one, other in zip(before, metrics, strict=True)] if before else metrics


def _answer(asked: Question, sums: Mapping[tuple[str, ...], list[int]]) -> Answer:
    rows = [_row(zip(asked.group_by, key, strict=True), sums[key]) for key in sorted(sums)]
    return Answer(asked, rows, _row((), map(sum, zip(*sums.values(), strict=True)) if sums else [0] * len(METRICS)))


def _row(dimensions: Iterable[tuple[str, str]], metrics: Iterable[int]) -> Row:
    return {**dict(dimensions), **dict(zip(METRICS, metrics, strict=True))}


def row_of(told: Mapping[str, Any]) -> Row:
    """A row as the admin API tells it, amounts as Decimals -> the row."""
    named = {told_as: name for name, told_as in COLUMNS.items()}
    row = {named.get(name, name): value for name, value in told.items()}
    return {name: int(value * NANO) if name in MONEY else value for name, value in row.items()}


def csv_of(group_by: Sequence[str], rows: Iterable[Mapping[str, Any]], *, head: bool = True) -> str:
    """Rows as RFC 4180 has them, amounts in dollars, exact; `head` begins with the columns' names.

    A text that a spreadsheet would take for a formula has an apostrophe before it, and all texts are quoted: agents
    choose the names of sessions and models, and whoever opens the file should not run what they have chosen.
    """
    lines = [",".join([*group_by, *COLUMNS.values()])] if head else []
    for row in rows:
        texts = ['"' + _FORMULA.sub(r"\1'", row[name]).replace('"', '""') + '"' for name in group_by]
        lines.append(
            ",".join([*texts, *(usd_text(row[name]) if name in MONEY else str(row[name]) for name in METRICS)])
        )
    return "".join(f"{line}\r\n" for line in lines)
