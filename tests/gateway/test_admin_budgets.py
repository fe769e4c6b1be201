"""Budgets over the admin API: how they stand, and another limit in place of a configured one."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from policies.budgets import Mode, Raised
from policies.money import NANO, nano, usd_text
from tests.support.office import BUDGETS, DANA, SAM, Office, open_office, written
from tests.support.purse import NOW

BOT = "/budgets/acme/support-bot"


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with open_office(tmp_path) as office:
        yield office


async def test_all_budgets_are_listed_with_what_is_spent_and_lent(office: Office) -> None:
    office.purse.use("acme/support-bot", "day", 1.2, pending=2.3)
    listed = await office.get("/budgets")
    assert listed["next"] is None
    assert [(each["node"], each["window"]) for each in listed["items"]] == [(b["node"], b["window"]) for b in BUDGETS]
    assert listed["items"][1] == {
        "node": "acme/support-bot",
        "window": "day",
        "window_id": "2026-11-21",
        "session": None,
        "mode": "strict",
        "limit_usd": 5.0,
        "configured_usd": 5.0,
        "posted_usd": 1.2,
        "pending_usd": 2.3,
        "used_percent": 70,
        "state": "ok",
        "resets_at": "2026-11-22T00:00:00Z",
        "raised": None,
        "sessions": None,
    }
    assert listed["items"][0]["resets_at"] == "2026-12-01T00:00:00Z"


async def test_amounts_are_written_with_the_digits_they_have(office: Office) -> None:
    office.purse.use("acme", "month", 0.1, pending=0.000000001)
    office.purse.use("globex", "day", 0.3)
    text = (await office.client.get("/budgets", headers=SAM)).text
    assert '"posted_usd":0.10,"pending_usd":0.000000001,' in text
    assert '"posted_usd":0.30,' in text
    largest = 9_000_000 * NANO - 1
    assert Decimal(repr(largest / NANO)) != Decimal(usd_text(largest)), "a binary fraction would not do"
    await office.purse.raise_limit(Raised("acme", "month", largest, nano(500), "dana", NOW))
    assert '"limit_usd":8999999.999999999,' in (await office.client.get("/budgets", headers=SAM)).text


async def test_a_budget_for_sessions_stands_in_the_list_as_its_fullest_session(office: Office) -> None:
    (unused,) = [each for each in (await office.get("/budgets"))["items"] if each["window"] == "session"]
    assert (unused["window_id"], unused["session"], unused["sessions"], unused["state"]) == (None, None, 0, "ok")
    for session, posted in (("calm", 0.01), ("busy", 0.09), ("new", 0.02)):
        office.purse.use("acme/support-bot", "session", posted, session=session)
    (fullest,) = [each for each in (await office.get("/budgets"))["items"] if each["window"] == "session"]
    assert (fullest["session"], fullest["sessions"], fullest["used_percent"]) == ("busy", 3, 90)
    assert (fullest["state"], fullest["resets_at"]) == ("warning", None)


async def test_a_node_is_asked_for_by_its_name_with_its_last_sessions(office: Office) -> None:
    office.purse.use("acme/support-bot", "session", 0.05, session="one")
    office.purse.use("acme/support-bot", "session", 0.02, session=None)
    shown = await office.get("/budgets/acme/support-bot")
    assert shown == await office.get("/budgets/acme%2Fsupport-bot")
    assert shown["node"] == "acme/support-bot"
    assert [each["window"] for each in shown["items"]] == ["day", "session"]
    assert [(each["session"], each["window_id"]) for each in shown["sessions"]] == [
        (None, "none-2026-11-21"),
        ("one", "=one"),
    ]


async def test_no_more_sessions_are_shown_than_the_last_hundred(office: Office) -> None:
    for number in range(120):
        office.purse.use("acme/support-bot", "session", 0.01, session=f"s-{number}")
    shown = await office.get(BOT)
    assert [each["session"] for each in shown["sessions"]] == [f"s-{number}" for number in range(119, 19, -1)]
    one = await office.get(f"{BOT}?session=s-3")
    assert [(each["session"], each["posted_usd"]) for each in one["sessions"]] == [("s-3", 0.01)]
    never = await office.get(f"{BOT}?session=never-seen")
    assert [(each["session"], each["posted_usd"], each["limit_usd"]) for each in never["sessions"]] == [
        ("never-seen", 0, 0.1)
    ]
    assert (await office.client.get("/budgets/globex?session=s-3", headers=SAM)).status_code == 404


async def test_what_has_no_budget_is_not_there_and_says_where_to_look(office: Office) -> None:
    for path in ("/budgets/nobody", "/budgets/acme/nobody", "/budgets/", f"{BOT}/"):
        answer = await office.client.get(path, headers=DANA)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        assert "GET /budgets" in answer.json()["detail"]
    answer = await office.put("/budgets/nobody", {"limit_usd": 1})
    assert answer.status_code == 404
    answer = await office.put("/budgets/globex", {"limit_usd": 1, "window": "month"})
    assert answer.status_code == 404
    assert answer.json()["detail"] == "There is no budget of globex for 'month', only for day."


async def test_a_limit_is_raised_for_as_long_as_the_configured_one_stands(office: Office, tmp_path: Path) -> None:
    answer = await office.put("/budgets/globex", '{"limit_usd": 0.7, "comment": "the launch"}')
    raised = answer.json()
    assert (raised["limit_usd"], raised["configured_usd"]) == (0.7, 0.3)
    assert raised["raised"] == {"by": "dana", "at": "2026-11-21T04:30:00Z", "comment": "the launch"}
    assert (await office.get("/budgets/globex"))["items"] == [raised]
    assert office.recorded()[-1].items() >= {
        ("event", "set"),
        ("who", "dana"),
        ("node", "globex"),
        ("window", "day"),
        ("old_usd", "0.30"),
        ("new_usd", "0.70"),
        ("comment", "the launch"),
        ("result", "ok"),
    }
    written(tmp_path, [*BUDGETS[:3], {**BUDGETS[3], "limit_usd": 0.4}])
    await office.app.reload_config("dana")
    (configured,) = (await office.get("/budgets/globex"))["items"]
    assert (configured["limit_usd"], configured["raised"]) == (0.4, None)


async def test_a_limit_is_lowered_and_then_as_configured_again(office: Office) -> None:
    office.purse.use("globex", "day", 0.2)
    lowered = (await office.put("/budgets/globex", {"limit_usd": 0})).json()
    assert (lowered["limit_usd"], lowered["used_percent"], lowered["state"]) == (0, 100, "exhausted")
    again = (await office.put("/budgets/globex", {"limit_usd": None, "comment": "over"})).json()
    assert (again["limit_usd"], again["raised"], again["state"]) == (0.3, None, "warning")
    assert [(each["event"], each["old_usd"], each["new_usd"]) for each in office.recorded()] == [
        ("set", "0.30", "0.00"),
        ("reset", "0.00", "0.30"),
    ]


async def test_the_window_is_said_where_a_node_has_several_budgets(office: Office) -> None:
    vague = await office.put(BOT, {"limit_usd": 1})
    assert vague.status_code == 400
    assert vague.json()["detail"] == "acme/support-bot has several budgets. Say which `window`: day, session."
    assert (await office.put(BOT, {"limit_usd": 1, "window": "session"})).json()["limit_usd"] == 1
    limits = {each["window"]: each["limit_usd"] for each in (await office.get(BOT))["items"]}
    assert limits == {"day": 5, "session": 1}


async def test_an_amount_is_taken_as_exactly_as_it_was_written(office: Office) -> None:
    for amount in ("0.1", "0.000000001", "8999999.999999999", "9e6", "1E-9", "0", "-0.0"):
        assert (await office.put("/budgets/acme", f'{{"limit_usd": {amount}}}')).status_code == 200
        (raised,) = await office.purse.raised("acme")
        assert raised.limit == Decimal(amount) * NANO


NO_CHANGES: list[str | bytes] = [
    "",
    "[]",
    "5",
    "{",
    "[" * 100_000,
    "{}",
    '{"limit_usd": "5"}',
    '{"limit_usd": true}',
    '{"limit_usd": [5]}',
    '{"limit_usd": NaN}',
    '{"limit_usd": Infinity}',
    '{"limit_usd": -0.01}',
    '{"limit_usd": 9000000.000000001}',
    '{"limit_usd": 1e999999999}',
    '{"limit_usd": 1e-10}',
    '{"limit_usd": 1e-999999999}',
    '{"limit_usd": 5, "limit_usd": 50}',
    '{"limit_usd": 5, "node": "globex"}',
    '{"limit_usd": 5, "window": 7}',
    '{"limit_usd": 5, "comment": null}',
    '{"limit_usd": 5, "comment": "\\u001b[31m"}',
    '{"limit_usd": 5, "comment": "\\ud800"}',
    json.dumps({"limit_usd": 5, "comment": "x" * 501}),
    b'{"limit_usd": 5, "comment": "\xff"}',
]


async def test_what_is_no_change_of_a_limit_is_refused_and_changes_nothing(office: Office) -> None:
    for body in NO_CHANGES:
        answer = await office.put("/budgets/globex", body)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), body
    assert await office.purse.raised("globex") == []
    assert office.recorded() == []


async def test_only_a_person_with_the_role_changes_a_limit(office: Office) -> None:
    answer = await office.put("/budgets/globex", {"limit_usd": 1}, **SAM)
    assert answer.status_code == 403
    assert await office.purse.raised("globex") == []


async def test_changes_made_at_once_are_recorded_one_after_the_other(office: Office) -> None:
    changes = [office.put("/budgets/globex", {"limit_usd": dollars}) for dollars in (1, 2, 3)]
    await asyncio.gather(*changes)
    recorded = office.recorded()
    assert {each["new_usd"] for each in recorded} == {"1.00", "2.00", "3.00"}
    assert [each["old_usd"] for each in recorded] == ["0.30", *(each["new_usd"] for each in recorded[:2])]


async def test_a_store_that_does_not_answer_is_told_and_what_may_have_happened_is_recorded(office: Office) -> None:
    office.purse.failure = "gone"
    for path in ("/budgets", BOT, f"{BOT}?session=x", "/spend"):
        assert (await office.client.get(path, headers=SAM)).status_code == 503
    assert (await office.put("/budgets/globex", {"limit_usd": 1})).status_code == 503
    assert office.recorded() == [], "it was not even tried"
    office.purse.failure = None
    office.purse.fail_writing = True
    answer = await office.put("/budgets/globex", {"limit_usd": 1})
    assert answer.status_code == 503
    assert "whether the limit has changed is not known" in answer.json()["detail"]
    assert [each["result"] for each in office.recorded()] == ["unknown"]


async def test_no_change_is_made_while_the_ledger_cannot_be_written(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if os.fstat(descriptor).st_ino == office.app.ledger.path.stat().st_ino:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    first = await office.put("/budgets/globex", {"limit_usd": 1})
    assert first.status_code == 503, "nobody knew that the disk was full"
    assert "The limit has changed" in first.json()["detail"]
    second = await office.put("/budgets/globex", {"limit_usd": 2})
    assert second.status_code == 503
    (raised,) = await office.purse.raised("globex")
    assert raised.limit == nano(1)
    monkeypatch.setattr(os, "write", write)
    office.app.ledger.note("mended", {})
    office.app.ledger.flush()
    assert [each["new_usd"] for each in office.recorded()] == ["1.00"]
    assert (await office.put("/budgets/globex", {"limit_usd": 2})).status_code == 200


async def test_a_long_list_comes_in_pages(office: Office, tmp_path: Path) -> None:
    listed: list[str] = []
    after = ""
    while True:
        page = await office.get(f"/budgets?page_size=3{after}")
        listed += [f"{each['node']}|{each['window']}" for each in page["items"]]
        assert len(page["items"]) <= 3
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert listed == [f"{each['node']}|{each['window']}" for each in BUDGETS]
    one = await office.get("/budgets?tenant=globex")
    assert [each["node"] for each in one["items"]] == ["globex"]


async def test_a_question_that_is_not_understood_is_refused(office: Office) -> None:
    sizes = [f"page_size={size}" for size in ("0", "1001", "x", "\u00b2", "-1")]
    for query in [*sizes, "after=gone", "tenent=acme", "tenant=a&tenant=b"]:
        answer = await office.client.get(f"/budgets?{query}", headers=SAM)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), query


async def test_a_method_that_a_path_does_not_have_is_told_those_it_has(office: Office) -> None:
    answer = await office.client.delete(BOT, headers=DANA)
    assert answer.status_code == 405
    assert {each.strip() for each in answer.headers["allow"].split(",")} == {"GET", "HEAD", "PUT"}


async def test_what_is_needed_to_change_a_limit_is_described(office: Office) -> None:
    described = await office.get("/openapi.json")
    put = described["paths"]["/budgets/{node}"]["put"]
    assert put["security"] == [{"token": ["admin"]}]
    assert put["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/LimitChange")
    schemas = described["components"]["schemas"]
    assert schemas["LimitChange"]["properties"]["limit_usd"]["anyOf"][0] == {"type": "number"}
    assert schemas["BudgetItem"]["properties"]["posted_usd"]["type"] == "number"
    assert schemas["BudgetItem"]["properties"]["mode"]["enum"] == [str(mode) for mode in Mode]
    names = [each["name"] for each in described["paths"]["/spend"]["get"]["parameters"]]
    assert {"group_by", "from", "to", "tenant", "tool", "format", "after"} <= set(names)
    assert set(described["paths"]["/spend"]["get"]["responses"]["200"]["content"]) == {"application/json", "text/csv"}
