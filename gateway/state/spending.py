"""A question about what was spent: which lines of the cost ledger it is about, and their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from policies.books import Line, Sums
from policies.budgets import DIMENSIONS, METRICS

_COST: Final = METRICS.index("cost")


class Spending:
    """What `policies.budgets.Store.spend` is asked, and its answer as far as it is known.

    Raises ValueError for dimensions that there are not.
    """

    def __init__(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> None:
        unknown = {*group_by, *where}.difference(DIMENSIONS)
        if unknown:
            raise ValueError(f"The cost ledger has no {', '.join(sorted(unknown))}.")
        self._tenants = frozenset(tenants)
        self._since = since
        self._until = until
        self._group_by = tuple(group_by)
        self._positions = tuple(map(DIMENSIONS.index, group_by))
        self._where = [(DIMENSIONS.index(name), value) for name, value in where.items()]
        self._sums: dict[tuple[str, ...], list[int]] = {}

    def query(self) -> tuple[str, Sequence[str]]:
        """The question in SQL, to a table `spent`: each row has the values of `group_by`, the METRICS, and how often
        2**31 comes to the cost: SQLite sums up in 64 bits, and targets say what they like.
        """
        values = [self._since, self._until, *self._tenants]
        sums = ["sum(cost & 2147483647)" if name == "cost" else f"sum({name})" for name in METRICS]
        query = (
            f"SELECT {', '.join((*self._group_by, *sums, 'sum(cost >> 31)'))} FROM spent "
            f"WHERE day BETWEEN ? AND ? AND tenant IN ({', '.join('?' * len(self._tenants))})"
        )
        for position, value in self._where:
            query += f" AND {DIMENSIONS[position]} = ?"
            values.append(value)
        if self._group_by:
            query += f" GROUP BY {', '.join(self._group_by)}"
        return query, values

    def answered(self, row: Sequence[Any]) -> None:
        """Takes a row of the query's answer."""
        group, (*sums, more) = row[: len(self._group_by)], row[len(self._group_by) :]
        if more is not None:  # the sum of nothing, where nothing is grouped
            sums[_COST] += more << 31
            self._add(tuple(group), sums)

    def consider(self, line: Line, sums: Sums) -> None:
        """Takes what is not in the table, if the question is about it."""
        if (
            line[1] in self._tenants
            and self._since <= line[0] <= self._until
            and all(line[position] == value for position, value in self._where)
        ):
            self._add(tuple([line[position] for position in self._positions]), sums)

    def whole(self, answer: Callable[[], Iterable[Sequence[Any]]]) -> list[Mapping[str, str | int]]:
        """Everything, with what the query's answer adds. For a thread: there may be many rows."""
        for row in answer():
            self.answered(row)
        return self.rows()

    def rows(self) -> list[Mapping[str, str | int]]:
        """The answer, ordered by group."""
        return [
            {**dict(zip(self._group_by, group, strict=True)), **dict(zip(METRICS, sums, strict=True))}
            for group, sums in sorted(self._sums.items())
        ]

    def _add(self, group: tuple[str, ...], sums: Sums) -> None:
        found = self._sums.setdefault(group, [0] * len(METRICS))
        for index, number in enumerate(sums):
            found[index] += number
