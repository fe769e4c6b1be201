"""`weighbridge budgets`: what people are shown, what scripts get, and the exit codes that both rely on."""

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]  # compiled, without stubs
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest

from gateway import budget_commands
from gateway.cli import main
from gateway.remote import TOKEN
from gateway.terminal import MISTAKEN, OK, UNUSABLE
from tests.support.office import BUDGETS, open_office
from tests.support.purse import Purse, spent


class Shell:
    """A terminal on the machine of a running gateway."""

    def __init__(self, purse: Purse, admin: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.purse, self._admin, self._capsys = purse, admin, capsys
        self.code = OK
        self.said = self.complained = ""

    async def run(self, *words: str) -> int:
        self._capsys.readouterr()
        self.code = await asyncio.to_thread(main, ["budgets", *words, "--admin", self._admin])
        self.said, self.complained = self._capsys.readouterr()
        return self.code

    async def json(self, *words: str) -> Any:
        assert await self.run(*words, "--json") == OK, self.complained
        return json.loads(self.said, parse_float=Decimal)


@pytest.fixture
async def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shell]:
    monkeypatch.setenv(TOKEN, "danas-own-token")
    async with open_office(tmp_path) as office:
        yield Shell(office.purse, office.url, capsys)


# --- list ------------------------------------------------------------------------------------------------------------


async def test_list_shows_the_fullest_budget_first_with_what_is_spent_and_lent(shell: Shell) -> None:
    shell.purse.use("acme/support-bot", "day", 2, pending=1)
    shell.purse.use("globex", "day", 0.4)
    assert await shell.run("list") == OK
    head, first, second, third, fourth = shell.said.splitlines()
    assert head.split() == ["budget", "window", "spent", "lent", "limit", "mode", "state"]
    assert first.split() == "[####################] 133 % globex day 2026-11-21 0.40 0.00 0.30 soft exhausted".split()
    assert second.startswith("[########++++........]   60 %  acme/support-bot  day 2026-11-21 ")
    assert "acme              month 2026-11" in third
    assert "session (none yet)" in fourth


async def test_list_of_a_node_shows_its_sessions_and_who_has_set_its_limits(shell: Shell) -> None:
    for session in ("one", "t\x1b[31m"):
        shell.purse.use("acme/support-bot", "session", 0.05, session=session)
    await shell.run("set", "acme/support-bot", "--window", "session", "--limit", "0.2", "--comment", "the launch")
    assert await shell.run("list", "acme/support-bot") == OK
    assert "(was 0.10, set by dana 2026-11-21T04:30:00Z: the launch)" in shell.said
    sessions = shell.said.partition("sessions, the last one first\n")[2]
    assert [line[30:].split()[1:3] for line in sessions.splitlines()[1:]] == [
        ["session", "t\\x1b[31m"],
        ["session", "one"],
    ]
    assert await shell.run("list", "acme/support-bot", "--session", "one") == OK
    assert "x1b" not in shell.said.partition("sessions, the last one first\n")[2]


async def test_list_can_tell_a_script_that_a_budget_is_nearly_used_up(shell: Shell) -> None:
    assert await shell.run("list", "--exit-code") == OK
    shell.purse.use("acme", "month", 400)
    assert await shell.run("list", "--exit-code") == MISTAKEN
    assert "warning" in shell.said
    assert await shell.run("list", "globex", "--exit-code") == OK


async def test_list_tells_scripts_the_same_with_every_digit(shell: Shell) -> None:
    shell.purse.use("globex", "day", 0.1, pending=0.000000001)
    (globex,) = [each for each in (await shell.json("list"))["items"] if each["node"] == "globex"]
    assert (globex["posted_usd"], globex["pending_usd"]) == (Decimal("0.1"), Decimal("0.000000001"))
    assert '"pending_usd":0.000000001,' in shell.said


async def test_list_of_many_budgets_is_whole(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = budget_commands._all
    monkeypatch.setattr(budget_commands, "_all", lambda admin, path, query: pages(admin, path, {"page_size": "1"}))
    assert [each["node"] for each in (await shell.json("list"))["items"]] == [each["node"] for each in BUDGETS]


# --- set, reset ------------------------------------------------------------------------------------------------------


async def test_set_and_reset_show_what_holds_now(shell: Shell) -> None:
    assert await shell.run("set", "globex", "--limit", "0.123456789", "--comment", "why not") == OK
    assert "(was 0.30, set by dana 2026-11-21T04:30:00Z: why not)" in shell.said
    (raised,) = await shell.purse.raised("globex")
    assert raised.limit == 123_456_789
    assert await shell.run("reset", "globex") == OK
    assert "set by" not in shell.said
    assert await shell.purse.raised("globex") == []
    assert (await shell.json("set", "globex", "--limit", "7"))["limit_usd"] == 7


async def test_what_cannot_be_set_is_said_in_one_line(shell: Shell) -> None:
    for words, said in (
        (["nobody", "--limit", "1"], "There is no budget of 'nobody'."),
        (["acme/support-bot", "--limit", "1"], "Say which `window`: day, session."),
        (["globex", "--limit", "1", "--comment", "x" * 501], "`comment` is no text"),
    ):
        assert await shell.run("set", *words) == UNUSABLE
        assert said in shell.complained
        assert shell.said == ""
    shell.purse.failure = "gone"
    for command in (["set", "globex", "--limit", "1"], ["reset", "globex"], ["list"], ["list", "globex"], ["spend"]):
        assert await shell.run(*command) == UNUSABLE
        assert shell.complained == "The store of budgets does not answer. Ask again later.\n"


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["set", "acme", "--limit", amount]
            for amount in ("-1", "1e3", "nan", "9000000.1", "1_0", "0.0000000001", "")
        ),
        ["set", "acme"],
        ["set", "acme", "--limit", "1", "--window", "year"],
        ["spend", "--where", "agent"],
        ["spend", "--where", "format=csv"],
        ["spend", "--csv", "a", "--parquet", "b"],
        ["spend", "--csv", "a", "--json"],
        ["spend", "-n", "-1"],
        ["list", "--session", "s"],
    ],
    ids=" ".join,
)
def test_what_is_written_wrongly_is_not_sent(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(["budgets", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == UNUSABLE
    assert capsys.readouterr().err


# --- spend -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spending(shell: Shell) -> Shell:
    shell.purse.ledger = [
        spent("2026-11-20", 1, agent="a-bot", session="=1+1", input_tokens=5),
        spent("2026-11-20", 2, agent="b-bot"),
        spent("2026-11-21", 0.5, agent="a-bot", unpriced=1),
        spent("2026-10-01", 0.000000001, agent="a-bot", tenant="globex"),
    ]
    return shell


async def test_spend_shows_what_is_dearest_first_and_days_in_their_order(spending: Shell) -> None:
    assert await spending.run("spend", "--group-by", "agent") == OK
    period, head, first, second, total, unpriced = spending.said.splitlines()
    assert period == "2026-11-01 to 2026-11-21 (UTC)"
    assert head.split() == ["USD", "agent", "calls", "tokens", "in", "cached", "tokens", "out"]
    assert first.startswith("[###########.........]   57 %  2.00  b-bot")
    assert second.startswith("[########............]   42 %  1.50  a-bot")
    assert total.startswith("[####################]  100 %  3.50  all")
    assert unpriced.startswith("1 calls are not in the sum")
    assert await spending.run("spend") == OK
    assert [line.split()[-5] for line in spending.said.splitlines()[2:5]] == ["2026-11-20", "2026-11-21", "all"]


async def test_spend_takes_filters_and_dates(spending: Shell) -> None:
    told = await spending.json(
        "spend",
        "--group-by",
        "",
        "--where",
        "agent=a-bot",
        "--where",
        "tenant=acme",
        "--from",
        "2026-11-20",
        "--to",
        "2026-11-20",
    )
    assert told["total"]["cost_usd"] == 1
    assert (await spending.json("spend", "--month", "2026-10"))["total"]["cost_usd"] == Decimal("0.000000001")
    assert await spending.run("spend", "--month", "2026-10", "--group-by", "agent") == OK
    assert "<0.0001" in spending.said
    assert await spending.run("spend", "--from", "tomorrow") == UNUSABLE
    assert "Write a day as 2026-11-21." in spending.complained
    assert await spending.run("spend", "--month", "2026-09", "--group-by", "agent,model") == OK
    assert spending.said.splitlines()[-1].split() == ["0", "%", "0.00", "all", "all", "0", "0", "0", "0"]


async def test_a_table_ends_and_says_what_it_leaves_out(spending: Shell) -> None:
    spending.purse.ledger = [spent(cost=1, session=f"s-{number}") for number in range(60)]
    assert await spending.run("spend", "--group-by", "session", "-n", "2") == OK
    assert len(spending.said.splitlines()) == 6
    assert "... and 58 more of 58.00 USD together" in spending.said


@pytest.fixture
def many(spending: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """An answer of several pages."""
    monkeypatch.setattr(budget_commands, "_PAGE", 2)
    spending.purse.ledger += [spent(cost=0.25, agent=f"c-{number}") for number in range(5)]
    return spending


async def test_csv_has_all_rows_under_one_head(many: Shell, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    assert await many.run("spend", "--group-by", "agent,session", "--csv", str(file)) == OK
    assert many.said == f"8 rows in {file}\n"
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened, strict=True))
    assert [(row["agent"], row["session"], row["cost_usd"]) for row in rows[:3]] == [
        ("a-bot", "", "0.50"),
        ("a-bot", "'=1+1", "1.00"),
        ("b-bot", "", "2.00"),
    ]
    assert len(rows) == 8
    assert await many.run("spend", "--group-by", "agent,session", "--csv", "-") == OK
    assert many.said.encode() == file.read_bytes()


async def test_parquet_has_types(many: Shell, tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    assert (
        await many.run("spend", "--group-by", "day,month,agent", "--parquet", str(file), "--from", "2026-10-01") == OK
    )
    table = pyarrow.parquet.read_table(file)
    types = {field.name: str(field.type) for field in table.schema}
    amounts = dict.fromkeys(("cost_usd", "tool_cost_usd"), "decimal128(38, 9)")
    counts = dict.fromkeys(("calls", "input_tokens", "output_tokens", "cached_tokens", "unpriced"), "int64")
    assert types == {"day": "date32[day]", "month": "string", "agent": "string", **counts, **amounts}
    rows = table.to_pylist()
    assert rows[0] == {
        "day": date(2026, 10, 1),
        "month": "2026-10",
        "agent": "a-bot",
        **dict.fromkeys(counts, 0),
        "calls": 1,
        "cost_usd": Decimal("0.000000001"),
        "tool_cost_usd": 0,
    }
    assert sum(row["cost_usd"] for row in rows) == Decimal("4.750000001")
    assert many.said == f"{len(rows)} rows in {file}\n"


async def test_an_empty_export_still_has_its_columns(spending: Shell, tmp_path: Path) -> None:
    assert await spending.run("spend", "--month", "2026-01", "--parquet", str(tmp_path / "p")) == OK
    assert pyarrow.parquet.read_table(tmp_path / "p").num_rows == 0
    assert await spending.run("spend", "--month", "2026-01", "--csv", str(tmp_path / "c")) == OK
    assert (tmp_path / "c").read_text().startswith("day,calls,")


@pytest.mark.parametrize("form", ["--csv", "--parquet"])
async def test_an_export_is_whole_or_not_there(many: Shell, tmp_path: Path, form: str) -> None:
    (tmp_path / "exports").mkdir()
    file = tmp_path / "exports" / "spend"
    file.write_text("last month's")
    many.purse.answers = 1
    assert await many.run("spend", "--group-by", "agent", form, str(file)) == UNUSABLE
    assert many.complained == "The store of budgets does not answer. Ask again later.\n"
    assert file.read_text() == "last month's"
    assert os.listdir(tmp_path / "exports") == ["spend"]


async def test_an_export_into_nowhere_is_told(spending: Shell, tmp_path: Path) -> None:
    for form in ("--csv", "--parquet"):
        assert await spending.run("spend", form, str(tmp_path / "no" / "such")) == UNUSABLE
        assert "No such file or directory" in spending.complained


async def test_an_export_replaces_what_a_link_leads_to_and_writes_through_a_pipe(
    spending: Shell, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert await spending.run("spend", "--csv", str(tmp_path / "link")) == OK
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reading = asyncio.create_task(asyncio.to_thread((tmp_path / "pipe").read_bytes))
    assert await spending.run("spend", "--csv", str(tmp_path / "pipe")) == OK
    assert await reading == (tmp_path / "real").read_bytes()
    assert (tmp_path / "pipe").is_fifo()


async def test_without_pyarrow_parquet_says_what_to_install(
    spending: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "gateway.parquet", raising=False)
    assert await spending.run("spend", "--parquet", str(tmp_path / "p")) == UNUSABLE
    assert "pip install 'weighbridge[parquet]'" in spending.complained
    assert not (tmp_path / "p").exists()


def test_pyarrow_is_loaded_by_nobody_who_does_not_export() -> None:
    program = "import sys, gateway.cli; assert 'pyarrow' not in sys.modules and 'gateway.parquet' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
