"""The cost ledger over the admin API, as JSON, in pages, and as CSV."""

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from policies.money import NANO
from tests.support.office import SAM, Office, open_office
from tests.support.purse import spent


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with open_office(tmp_path) as office:
        office.purse.ledger = [
            spent("2026-11-20", 0.1, model="gpt-4o", input_tokens=1000, output_tokens=20, cached_tokens=600),
            spent("2026-11-21", 0.2, session="=cmd|' /C calc'!A0"),
            spent("2026-11-21", 0.000000001, agent="intern-bot", tenant="globex", tool="crm", tool_cost=1, calls=0),
            spent("2026-10-31", 7, unpriced=1),
        ]
        yield office


async def test_without_a_question_it_is_this_month_by_day(office: Office) -> None:
    told = await office.get("/spend")
    assert (told["from"], told["to"], told["group_by"], told["next"]) == ("2026-11-01", "2026-11-21", ["day"], None)
    assert told["items"][0] == {
        "day": "2026-11-20",
        "calls": 1,
        "input_tokens": 1000,
        "output_tokens": 20,
        "cached_tokens": 600,
        "cost_usd": 0.1,
        "tool_cost_usd": 0,
        "unpriced": 0,
    }
    assert '"cost_usd":0.200000001,' in (await office.client.get("/spend", headers=SAM)).text
    assert told["total"]["cost_usd"] == 0.300000001


async def test_it_is_grouped_and_filtered_by_any_dimension(office: Office) -> None:
    told = await office.get("/spend?group_by=tenant,model&from=2026-10-01&to=2026-11-20&agent=support-bot")
    assert [(row["tenant"], row["model"], row["cost_usd"]) for row in told["items"]] == [
        ("acme", "gpt-4o", 0.1),
        ("acme", "gpt-4o-mini", 7),
    ]
    assert [row["unpriced"] for row in told["items"]] == [0, 1]
    tools = await office.get("/spend?group_by=tool&tool=crm")
    assert [(row["tool"], row["tool_cost_usd"], row["calls"]) for row in tools["items"]] == [("crm", 1 / NANO, 0)]
    assert (await office.get("/spend?month=2026-10&group_by="))["total"]["cost_usd"] == 7


async def test_a_long_answer_comes_in_pages_that_all_tell_the_sum(office: Office) -> None:
    office.purse.ledger += [spent(cost=0.01, session=f"s-{number:04}") for number in range(1500)]
    query = "/spend?group_by=session&day=2026-11-21&tenant=acme"
    first = await office.get(query)
    rest = await office.get(f"{query}&after={first['next']}")
    assert [len(page["items"]) for page in (first, rest)] == [1000, 501]
    assert first["total"] == rest["total"]
    assert rest["next"] is None
    seen = [row["session"] for row in first["items"] + rest["items"]]
    assert seen == sorted({"=cmd|' /C calc'!A0", *(f"s-{number:04}" for number in range(1500))})


@pytest.mark.parametrize(
    ("query", "accept"),
    [
        ("?format=csv&group_by=session", "application/json"),
        ("?group_by=session", "text/csv"),
        ("?group_by=session", "text/html;q=0.2, Text/CSV;header=present;q=0.9, application/json;q=0.5"),
    ],
)
async def test_spreadsheets_get_csv(office: Office, query: str, accept: str) -> None:
    answer = await office.client.get(f"/spend{query}", headers={**SAM, "accept": accept})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="spend-2026-11-01-2026-11-21.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text, newline=""), strict=True))
    assert [(row["session"], row["cost_usd"]) for row in rows] == [
        ("", "0.100000001"),
        ("'=cmd|' /C calc'!A0", "0.20"),
    ]


async def test_whoever_does_not_ask_for_csv_gets_json(office: Office) -> None:
    for accept in (
        "*/*",
        "text/csv;q=0.1, */*",
        "application/json, text/csv;q=0.5",
        "text/csv;q=x",
        "text/csv;q=0",
        "",
    ):
        answer = await office.client.get("/spend", headers={**SAM, "accept": accept})
        assert answer.headers["content-type"] == "application/json", accept
    answer = await office.client.get("/spend?format=json", headers={**SAM, "accept": "text/csv"})
    assert answer.headers["content-type"] == "application/json"


async def test_a_question_that_is_not_understood_is_refused(office: Office) -> None:
    for query in (
        "group_by=agents",
        "from=yesterday",
        "agnet=x",
        "group_by=agent&group_by=model",
        "format=xml",
        "format=csv&after=x",
        "format=csv&page_size=5",
        "page_size=10001",
        "after=x",
    ):
        answer = await office.client.get(f"/spend?{query}", headers=SAM)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), query
