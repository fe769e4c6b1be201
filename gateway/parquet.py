"""The cost ledger as a Parquet file, for those who analyse it elsewhere. Needs the extra `parquet`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow  # type: ignore[import-untyped]  # compiled, without stubs
import pyarrow.parquet  # type: ignore[import-untyped]

from gateway.spend import COLUMNS, MONEY
from policies.budgets import METRICS

_USD: Final = pyarrow.decimal128(38, 9)
"""Dollars to the nano-dollar: what readers take for money, exact however much is summed."""


def write(path: Path, group_by: Sequence[str], pages: Iterable[Iterable[Mapping[str, Any]]]) -> int:
    """Writes rows as `gateway.spend` has them, a row group a page, and returns how many. Raises OSError.

    `day` is a date, other dimensions are texts, `cost_usd` and `tool_cost_usd` decimal128(38, 9), counts int64; nothing
    is null.
    """
    fields = [pyarrow.field(name, pyarrow.date32() if name == "day" else pyarrow.string(), False) for name in group_by]
    fields += [pyarrow.field(COLUMNS[name], _USD if name in MONEY else pyarrow.int64(), False) for name in METRICS]
    schema = pyarrow.schema(fields)
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for page in pages:
            rows = [_typed(row) for row in page]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def _typed(row: Mapping[str, Any]) -> dict[str, Any]:
    typed: dict[str, Any] = {
        COLUMNS.get(name, name): _dollars(value) if name in MONEY else value for name, value in row.items()
    }
    if "day" in typed:
        typed["day"] = date.fromisoformat(typed["day"])
    return typed


def _dollars(amount: int) -> Decimal:
    return Decimal(amount).scaleb(-9)
