"""Questions to the cost ledger: what they mean, and answers that add up, whatever they are grouped by."""

import asyncio
import csv
import io
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import spend
from gateway.spend import COLUMNS, GROUPS, MOST_ROWS, Answer, Question, SpendRefused, csv_of, question
from gateway.state.embedded import EmbeddedStore
from policies.budgets import DIMENSIONS, METRICS, Spent, StoreUnavailable
from policies.money import usd_text
from tests.support.purse import NOW, Purse, spent
from tests.support.steps import longest_step

TODAY = "2026-11-21"
WORDS = st.text(max_size=8) | st.sampled_from(
    ["=1+1", "+1", "-1", "@a", "\t=1", "a;=b", "\uff1dx", "", '"', ",", "\r\n"]
)
LINES = st.lists(
    st.builds(
        Spent,
        day=st.dates(min_value=date(2026, 1, 1), max_value=date(2026, 12, 31)).map(str),
        **{name: WORDS for name in DIMENSIONS if name not in ("day", "tenant")},
        tenant=st.sampled_from(["acme", "globex"]),
        **{name: st.integers(0, 2**53) for name in METRICS},
    ),
    max_size=12,
)
GROUPINGS = st.lists(st.sampled_from(GROUPS), unique=True, max_size=len(GROUPS)).map(",".join)


async def asked(lines: Sequence[Spent], today: str = TODAY, **query: str) -> Answer:
    purse = Purse()
    purse.ledger = list(lines)
    return await spend.spent(purse, ["acme", "globex"], question(query, today))


# --- questions -------------------------------------------------------------------------------------------------------


def test_without_dates_a_question_is_about_this_month_by_day() -> None:
    assert question({}, TODAY) == Question("2026-11-01", "2026-11-21", ("day",), {})


@pytest.mark.parametrize(
    ("query", "since", "until"),
    [
        ({"from": "2026-10-05"}, "2026-10-05", "2026-11-21"),
        ({"to": "2026-10-05"}, "2026-10-01", "2026-10-05"),
        ({"from": "2026-12-24"}, "2026-12-24", "2026-12-24"),
        ({"from": "2024-02-29", "to": "2024-02-29"}, "2024-02-29", "2024-02-29"),
        ({"month": "2024-02"}, "2024-02-01", "2024-02-29"),
        ({"month": "2026-12"}, "2026-12-01", "2026-12-31"),
        ({"day": "2026-10-05"}, "2026-10-05", "2026-10-05"),
        ({"month": "2999-12"}, "2999-12-01", "2999-12-31"),
    ],
)
def test_dates_say_from_which_day_to_which(query: Mapping[str, str], since: str, until: str) -> None:
    found = question(query, TODAY)
    assert (found.since, found.until, found.where) == (since, until, {})


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"from": "2026-11-31"}, "`from` is '2026-11-31'. Write a day as 2026-11-21."),
        ({"from": "20261121"}, "Write a day"),
        ({"from": "2026-W47-6"}, "Write a day"),
        ({"to": "\u0662026-11-21"}, "Write a day"),
        ({"to": "0001-01-01"}, "Write a day"),
        ({"to": "9999-12-31"}, "Write a day"),
        ({"day": ""}, "Write a day"),
        ({"month": "2026-13"}, "`month` is '2026-13'. Write 2026-11."),
        ({"month": "2026-11-21"}, "Write 2026-11"),
        ({"month": "2026-11", "to": "2026-11-03"}, "Leave the other dates out"),
        ({"month": "2026-11", "day": "2026-11-03"}, "Leave the other dates out"),
        ({"from": "2026-11-05", "to": "2026-11-04"}, "`from` is after `to`"),
        ({"from": "2010-01-01"}, "too long"),
        ({"group_by": "agent,modle"}, "'modle' is nothing to group by. Take any of month, day,"),
        ({"group_by": "agent, model"}, "' model' is nothing to group by"),
        ({"group_by": "agent,agent"}, "names something twice"),
        ({"group_by": ","}, "'' is nothing to group by"),
    ],
)
def test_a_question_that_is_not_understood_is_told_how_to_be_asked(query: Mapping[str, str], said: str) -> None:
    with pytest.raises(SpendRefused) as refused:
        question(query, TODAY)
    assert said in str(refused.value)


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_what_was_spent_is_summed_by_what_is_asked_for_and_only_what_is_asked_for() -> None:
    lines = [
        spent("2026-11-01", 0.1, agent="one", model="a", input_tokens=5),
        spent("2026-11-02", 0.2, agent="one", model="a", input_tokens=7, tool_cost=3),
        spent("2026-11-02", 0.4, agent="one", model="b"),
        spent("2026-11-02", 0.8, agent="two", model="a", unpriced=1),
        spent("2026-10-31", 1.6, agent="one", model="a"),
        spent("2026-11-02", 3.2, agent="one", model="a", tenant="globex"),
    ]
    found = await asked(lines, group_by="model,agent", tenant="acme")
    assert [(row["model"], row["agent"], usd_text(row["cost"]), row["calls"]) for row in found.rows] == [
        ("a", "one", "0.30", 2),
        ("a", "two", "0.80", 1),
        ("b", "one", "0.40", 1),
    ]
    assert (found.rows[0]["input_tokens"], found.rows[0]["tool_cost"], found.rows[1]["unpriced"]) == (12, 3, 1)
    assert usd_text(found.total["cost"]) == "1.50"
    by_month = await asked(lines, group_by="month", **{"from": "2026-10-01"})
    assert [(row["month"], usd_text(row["cost"])) for row in by_month.rows] == [
        ("2026-10", "1.60"),
        ("2026-11", "4.70"),
    ]


async def test_what_has_no_session_can_be_asked_for() -> None:
    lines = [spent(cost=1), spent(cost=2, session="s")]
    assert (await asked(lines, group_by="", session="")).total["cost"] == lines[0].cost
    assert (await asked([], group_by="")).rows == []


async def test_a_tenant_that_is_configured_no_more_can_still_be_asked_for() -> None:
    line = spent(cost=1, tenant="gone")
    assert (await asked([line])).rows == []
    assert (await asked([line], tenant="gone")).total["cost"] == line.cost


@given(LINES, GROUPINGS)
async def test_every_grouping_adds_up_to_the_same(lines: list[Spent], group_by: str) -> None:
    found = await asked(lines, group_by=group_by, **{"from": "2026-01-01", "to": "2026-12-31"})
    keys = [tuple(row[name] for name in found.question.group_by) for row in found.rows]
    assert keys == sorted(set(keys))
    for name in METRICS:
        assert found.total[name] == sum(getattr(line, name) for line in lines) == sum(row[name] for row in found.rows)
    expected: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        facts = {**{name: getattr(line, name) for name in DIMENSIONS}, "month": line.day[:7]}
        expected[tuple(facts[name] for name in found.question.group_by)] += line.cost
    assert {key: row["cost"] for key, row in zip(keys, found.rows, strict=True)} == dict(expected)


@given(LINES, GROUPINGS, st.integers(1, 4))
async def test_pages_together_are_the_answer_though_more_is_spent_meanwhile(
    lines: list[Spent], group_by: str, most: int
) -> None:
    query = {"group_by": group_by, "from": "2026-01-01", "to": "2026-12-31"}
    seen: list[Any] = []
    after = None
    grown = list(lines)
    while True:
        rows, after = (await asked(grown, **query)).page(most, after)
        seen += [tuple(row[name] for name in question(query, TODAY).group_by) for row in rows]
        if after is None:
            break
        grown += lines[:1]
    whole = await asked(lines, **query)
    assert seen == [tuple(row[name] for name in whole.question.group_by) for row in whole.rows]


@pytest.mark.parametrize("after", ["", "x", "!!!", "WyJhIiwiYiJd", "eyJhIjoxfQ", "WzFd", "\u00e9"])
async def test_a_page_begins_nowhere_but_where_one_ended(after: str) -> None:
    answer = await asked([spent(cost=1)])
    with pytest.raises(SpendRefused):
        answer.page(10, after)


class Crowded(Purse):
    """Every day has so many sessions that nobody could read about them all."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    async def spend(
        self, tenants: Sequence[str], since: str, until: str, group_by: Sequence[str], where: Mapping[str, str]
    ) -> list[Mapping[str, str | int]]:
        self.asked += 1
        names = (f"{since}-{number}" for number in range(MOST_ROWS // 3 + 1))
        return [{"session": name, **dict.fromkeys(METRICS, 1)} for name in names]


async def test_an_answer_that_would_be_too_long_is_refused_before_it_has_grown() -> None:
    store = Crowded()
    with pytest.raises(SpendRefused, match="more than 100000 rows"):
        await spend.spent(store, ["acme"], question({"group_by": "session"}, TODAY))
    assert store.asked == 3


async def test_long_work_is_not_done_in_the_event_loop() -> None:
    assert await spend.aside(1000, threading.get_ident) == threading.get_ident()
    assert await spend.aside(1001, threading.get_ident) != threading.get_ident()


async def test_a_long_answer_holds_up_no_call(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "state.db", lambda: NOW)
    for number in range(10_000):
        store.post(f"call-{number}", "acme", (), 1, [spent(session=f"s-{number}")])
    await asyncio.sleep(0)
    await store.close()
    store = EmbeddedStore(tmp_path / "state.db", lambda: NOW)
    async with longest_step() as step:
        answer = await spend.spent(store, ["acme"], question({"group_by": "session"}, TODAY))
    await store.close()
    assert len(answer.rows) == 10_000
    assert step.seconds < 0.03


async def test_that_the_store_does_not_answer_is_not_hidden() -> None:
    store = Purse()
    store.failure = "gone"
    with pytest.raises(StoreUnavailable):
        await spend.spent(store, ["acme"], question({}, TODAY))


# --- CSV -------------------------------------------------------------------------------------------------------------


@given(LINES, GROUPINGS)
async def test_csv_says_the_same_and_no_cell_is_a_formula(lines: list[Spent], group_by: str) -> None:
    found = await asked(lines, group_by=group_by, **{"from": "2026-01-01", "to": "2026-12-31"})
    names = found.question.group_by
    text = csv_of(names, found.rows)
    head, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert head == [*names, *COLUMNS.values()]
    assert len(rows) == len(found.rows)
    for cells, row in zip(rows, found.rows, strict=True):
        for name, cell in zip(head, cells, strict=True):
            if name in names:
                assert cell.replace("'", "") == row[name].replace("'", "")
                assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\uff0b", "\uff0d", "\uff1d", "\uff20"))
        cost = cells[head.index("cost_usd")]
        assert Decimal(cost) * 10**9 == row["cost"]
        assert [int(cells[head.index(name)]) for name in ("calls", "unpriced")] == [row["calls"], row["unpriced"]]


def test_csv_is_as_rfc_4180_has_it() -> None:
    row = {"agent": 'a"b', "session": "=HYPERLINK(1);=2", **dict.fromkeys(METRICS, 1), "cost": 1_500_000_000}
    assert csv_of(["agent", "session"], [row]) == (
        "agent,session,calls,input_tokens,output_tokens,cached_tokens,cost_usd,tool_cost_usd,unpriced\r\n"
        '"a""b","\'=HYPERLINK(1);\'=2",1,1,1,1,1.50,0.000000001,1\r\n'
    )
    assert csv_of([], []).count("\r\n") == 1
    assert csv_of([], [], head=False) == ""
