"""The cost ledger, summed as it is asked for, as JSON and as CSV."""

from __future__ import annotations

from typing import Final

import orjson
from pydantic import ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.admin.operation import AFTER, Operation, Parameter, Usd, View, Visit, asking, exact, page_size
from gateway.spend import COLUMNS, GROUPS, MONEY, MOST_ROWS, Answer, Row, SpendRefused, aside, csv_of, question, spent
from policies.budgets import DIMENSIONS, window_id

_CSV: Final = "text/csv"
_PAGE: Final = 1000
_LONGEST_PAGE: Final = 10_000


class SumView(View):
    """What a number of calls have used and cost."""

    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int = Field(description="Those of the input that were read from a cache.")
    cost_usd: Usd
    tool_cost_usd: Usd = Field(description="The part of the cost that is of tools.")
    unpriced: int = Field(description="Calls whose price is not known, which have no cost here.")


class SpendRow(SumView):
    """The dimensions of `group_by`, and the sum. A text is empty where none applies."""

    month: str | None = None
    day: str | None = Field(default=None, description="The UTC day on which the call was admitted.")
    tenant: str | None = None
    team: str | None = None
    agent: str | None = None
    session: str | None = None
    model: str | None = None
    target: str | None = None
    tool: str | None = None


class SpendView(View):
    model_config = ConfigDict(populate_by_name=True)

    since: str = Field(alias="from", description="The first day.")
    until: str = Field(alias="to", description="The last day.")
    group_by: list[str]
    items: list[SpendRow] = Field(description="In the order of their dimensions.")
    total: SumView = Field(description="Of all rows, not only of this page.")
    next: str | None = Field(description="`after` of the next page; null at the end.")


async def spend(visit: Visit) -> Response:
    asked, app = visit.query, visit.app
    as_csv = _wants_csv(asked.get("format"), visit.request.headers.get("accept", ""))
    if as_csv and ("after" in asked or "page_size" in asked):
        raise HTTPException(400, "CSV comes as a whole. Leave `after` and `page_size` out.")
    most = page_size(asked, _PAGE, _LONGEST_PAGE)
    store = app.state.budgets
    tenants = {each.tenant for each in app.settings.agents}
    tenants.update(each.node.partition("/")[0] for each in app.settings.budgets)
    try:
        with asking():
            answer = await spent(store, tenants, question(asked, window_id("day", store.now_ns(), None)))
        if as_csv:
            return await _csv(answer)
        rows, more = answer.page(most, asked.get("after"))
    except SpendRefused as refused:
        raise HTTPException(400, str(refused)) from None
    return Response(await aside(len(rows), _json, answer, rows, more), media_type="application/json")


def _json(answer: Answer, rows: list[Row], more: str | None) -> bytes:
    asked = answer.question
    return orjson.dumps(
        {
            "from": asked.since,
            "to": asked.until,
            "group_by": asked.group_by,
            "items": [_dollars(row) for row in rows],
            "total": _dollars(answer.total),
            "next": more,
        }
    )


def _dollars(row: Row) -> Row:
    return {COLUMNS.get(name, name): exact(value) if name in MONEY else value for name, value in row.items()}


async def _csv(answer: Answer) -> Response:
    asked = answer.question
    text = await aside(len(answer.rows), csv_of, asked.group_by, answer.rows)
    return Response(
        text,
        media_type=f"{_CSV}; charset=utf-8; header=present",
        headers={"content-disposition": f'attachment; filename="spend-{asked.since}-{asked.until}.csv"'},
    )


def _wants_csv(form: str | None, accept: str) -> bool:
    """Raises HTTPException."""
    if form is None:
        return _weight(accept, _CSV) > max(_weight(accept, each) for each in ("application/json", "*/*"))
    if form not in ("json", "csv"):
        raise HTTPException(400, "`format` is json or csv.")
    return form == "csv"


def _weight(accept: str, media: str) -> float:
    """How much an Accept header wants a media type that it names; 0 where it does not."""
    for wanted in accept.lower().split(","):
        name, *parameters = (part.strip() for part in wanted.split(";"))
        if name == media:
            weights = [each.removeprefix("q=") for each in parameters if each.startswith("q=")]
            try:
                return float(weights[0]) if weights else 1.0
            except ValueError:
                return 0.0
    return 0.0


OPERATIONS = (
    Operation(
        "GET",
        "/spend",
        f"What was spent: sums of the cost ledger, at most {MOST_ROWS} rows.",
        SpendView,
        spend,
        query=(
            Parameter("group_by", f"Any of {', '.join(GROUPS)}, with commas between; `day` when absent."),
            Parameter("from", "The first day, as 2026-11-01; the first of the month when absent."),
            Parameter("to", "The last day; today (UTC) when absent."),
            Parameter("month", "In place of `from` and `to`, as 2026-11."),
            *(Parameter(name, f"Only what is of this {name}.") for name in DIMENSIONS),
            Parameter("format", "`json` or `csv`; as `Accept` says when absent."),
            Parameter("page_size", f"How many rows at most, up to {_LONGEST_PAGE}; {_PAGE} when absent."),
            AFTER,
        ),
        also=_CSV,
    ),
)
