"""The `weighbridge budgets` commands: how budgets stand, another limit for one, and what was spent, from a shell."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from gateway.logs import printable
from gateway.remote import Refused, as_json, ask, takes_admin
from gateway.spend import GROUPS, csv_of, row_of
from gateway.terminal import MISTAKEN, OK, UNUSABLE, columns, complain, whole
from policies.budgets import DIMENSIONS

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

_BAR: Final = 20
_PAGE: Final = 10_000
"""Rows of the cost ledger in one answer."""
_MOST_USD: Final = 9_000_000


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `budgets` and its commands."""
    below = commands.add_parser("budgets", help="what may be spent, and what was").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = below.add_parser("list", help="how budgets stand, the fullest first")
    command.add_argument("node", nargs="?", metavar="NODE", help="only those of this node, with its last sessions")
    command.add_argument("--session", metavar="S", help="how the node's budget for sessions stands in this one")
    takes_admin(command)
    command.add_argument("--exit-code", action="store_true", help="exit 1 when one is at its warning, or exhausted")
    command.set_defaults(run=show)

    command = below.add_parser("set", help="put another limit in place of a configured one")
    command.add_argument("--limit", type=_dollars, required=True, metavar="USD", help="US dollars in one window")
    _takes_budget(command)
    command.set_defaults(run=change)

    command = below.add_parser("reset", help="let the configured limit hold again")
    _takes_budget(command)
    command.set_defaults(run=change, limit=None)

    command = below.add_parser("spend", help="what was spent, from the cost ledger")
    groups = ", ".join(GROUPS)
    command.add_argument(
        "--group-by", default="day", metavar="A,B", help=f"any of {groups} (default day); '' for one sum"
    )
    command.add_argument("--from", dest="since", metavar="DAY", help="the first day (default: the first of the month)")
    command.add_argument("--to", dest="until", metavar="DAY", help="the last day (default: today, UTC)")
    command.add_argument("--month", metavar="MONTH", help="in place of both, as 2026-11")
    command.add_argument(
        "--where", type=_filter, action="append", default=[], metavar="K=V", help="only what has this value; repeatable"
    )
    command.add_argument("-n", "--rows", type=_count, default=50, metavar="N", help="rows of the table (default 50)")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--csv", type=Path, metavar="FILE", help="all rows as CSV; - is standard output")
    form.add_argument("--parquet", type=Path, metavar="FILE", help="all rows as Parquet; needs weighbridge[parquet]")
    takes_admin(command, form)
    command.set_defaults(run=spend)


def _takes_budget(command: argparse.ArgumentParser) -> None:
    command.add_argument("node", metavar="NODE", help="a tenant, or tenant/team, or tenant/agent")
    command.add_argument("--window", choices=["session", "day", "month"], help="where the node has several budgets")
    command.add_argument("--comment", default="", metavar="TEXT", help="why, for the record")
    takes_admin(command)


def show(given: argparse.Namespace) -> int:
    if given.session is not None and given.node is None:
        complain("--session: name the node, too.")
        return UNUSABLE
    try:
        if given.node is not None:
            query = f"?{urlencode({'session': given.session})}" if given.session is not None else ""
            told = ask(given.admin, "GET", f"{_place(given.node)}{query}", exact=True)
        else:
            told = _all(given.admin, "/budgets", {})
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    items, sessions = told["items"], told.get("sessions", [])
    if given.json:
        print(as_json(told))
    elif not items:
        print("No budgets are configured.")
    else:
        for line in table(sorted(items, key=_fullest_first)):
            print(printable(line))
        if sessions:
            print("\nsessions, the last one first")
            for line in table(sessions):
                print(printable(line))
    near = any(each["state"] != "ok" for each in [*items, *sessions])
    return MISTAKEN if given.exit_code and near else OK


def change(given: argparse.Namespace) -> int:
    body: dict[str, Any] = {"limit_usd": given.limit, "comment": given.comment}
    if given.window is not None:
        body["window"] = given.window
    try:
        told = ask(given.admin, "PUT", _place(given.node), body, exact=True)
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    else:
        for line in table([told]):
            print(printable(line))
    return OK


def spend(given: argparse.Namespace) -> int:
    query = {"group_by": given.group_by, "page_size": str(_PAGE), **dict(given.where)}
    query |= {name: day for name, day in (("from", given.since), ("to", given.until), ("month", given.month)) if day}
    group_by = given.group_by.split(",") if given.group_by else []
    try:
        if given.csv is not None or given.parquet is not None:
            return _export(given, group_by, _pages(given.admin, "/spend", query))
        told = _all(given.admin, "/spend", query)
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    else:
        for line in sums(told, given.rows):
            print(printable(line))
    return OK


def _export(given: argparse.Namespace, group_by: Sequence[str], pages: Iterator[dict[str, Any]]) -> int:
    rows = ([row_of(each) for each in page["items"]] for page in pages)
    if given.csv is not None and str(given.csv) == "-":
        for number, page in enumerate(rows):
            print(csv_of(group_by, page, head=number == 0), end="")
        return OK
    if given.csv is not None:
        with whole(given.csv) as file, file.open("w", encoding="utf-8", newline="") as opened:
            count = 0
            for number, page in enumerate(rows):
                opened.write(csv_of(group_by, page, head=number == 0))
                count += len(page)
    else:
        try:
            from gateway.parquet import write
        except ModuleNotFoundError:
            complain("Parquet is written by pyarrow, which is not installed: pip install 'weighbridge[parquet]'")
            return UNUSABLE
        with whole(given.parquet) as file:
            count = write(file, group_by, rows)
    print(printable(f"{count} rows in {given.csv or given.parquet}"))
    return OK


def _place(node: str) -> str:
    return f"/budgets/{quote(node, safe='')}"


def _pages(admin: str, path: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The answers to a question, until the last. Raises Refused."""
    after: dict[str, str] = {}
    while True:
        told = ask(admin, "GET", f"{path}?{urlencode({**query, **after})}", exact=True)
        yield told
        if told["next"] is None:
            return
        after = {"after": told["next"]}


def _all(admin: str, path: str, query: dict[str, str]) -> dict[str, Any]:
    """All pages as one answer. Raises Refused."""
    *_, last = pages = list(_pages(admin, path, query))
    return {**last, "items": list(itertools.chain.from_iterable(page["items"] for page in pages))}


def _fullest_first(budget: dict[str, Any]) -> tuple[bool, int]:
    return budget["state"] != "exhausted", -budget["used_percent"]


def table(budgets: Iterable[dict[str, Any]]) -> list[str]:
    """Budgets as the admin API tells them, as lines for a person."""
    cells = [["", "", "budget", "window", "spent", "lent", "limit", "mode", "state", ""]]
    for each in budgets:
        amounts = each["posted_usd"], each["pending_usd"], each["limit_usd"]
        share = _bar(*amounts), f"{each['used_percent']} %"
        cells.append(
            [*share, each["node"], _window(each), *map(_usd, amounts), each["mode"], each["state"], _set(each)]
        )
    return columns(cells, right={1, 4, 5, 6})


def sums(told: dict[str, Any], most: int) -> list[str]:
    """What was spent, as lines for a person: in the order of time where it is grouped by it, else the dearest first."""
    rows, whole, group_by = told["items"], told["total"], told["group_by"]
    if not {"day", "month"} & set(group_by[:1]):
        rows = sorted(rows, key=lambda row: row["cost_usd"], reverse=True)
    cells = [["", "", "USD", *group_by, "calls", "tokens in", "cached", "tokens out"]]
    for row in (*rows[:most], {**dict.fromkeys(group_by, "all"), **whole}):
        cost = row["cost_usd"]
        share = int(cost * 100 / whole["cost_usd"]) if whole["cost_usd"] else 0
        named = [row[name] or "-" for name in group_by]
        counts = [str(row[name]) for name in ("calls", "input_tokens", "cached_tokens", "output_tokens")]
        bar = _bar(cost, 0, whole["cost_usd"]) if whole["cost_usd"] else ""
        cells.append([bar, f"{share} %", _usd(cost), *named, *counts])
    width = len(cells[0])
    lines = columns(cells, right={1, 2, *range(width - 4, width)})
    if len(rows) > most:
        left = sum((row["cost_usd"] for row in rows[most:]), Decimal(0))
        lines.insert(-1, f"... and {len(rows) - most} more of {_usd(left)} USD together; -n shows more, --csv all")
    if whole["unpriced"]:
        lines.append(f"{whole['unpriced']} calls are not in the sum: the price of their model is not known")
    return [f"{told['from']} to {told['to']} (UTC)", *lines]


def _bar(spent: Any, lent: Any, limit: Any) -> str:
    """`[######++............]`: spent, lent, left."""
    if not limit:
        return f"[{'#' * _BAR}]"
    used = min(_BAR, int((spent + lent) * _BAR / limit))
    done = min(used, int(spent * _BAR / limit))
    return f"[{'#' * done}{'+' * (used - done)}{'.' * (_BAR - used)}]"


def _window(budget: dict[str, Any]) -> str:
    if budget["window"] != "session":
        return f"{budget['window']} {budget['window_id']}"
    if budget["window_id"] is None:
        return "session (none yet)"
    name = budget["session"] if budget["session"] is not None else "without a name"
    others = f" (fullest of {budget['sessions']})" if budget.get("sessions") else ""
    return f"session {name[:40]}{others}"


def _set(budget: dict[str, Any]) -> str:
    """Who has set its limit, where a person has."""
    by = budget["raised"]
    if by is None:
        return ""
    because = f": {by['comment']}" if by["comment"] else ""
    return f"(was {_usd(budget['configured_usd'])}, set by {by['by']} {by['at']}{because})"


def _usd(amount: Any) -> str:
    """Dollars for people: cents, or as many places as tell something."""
    amount = Decimal(amount)
    if 0 < amount < Decimal("0.0001"):
        return "<0.0001"
    return f"{amount:.2f}" if amount == round(amount, 2) else f"{amount:.4f}"


def _dollars(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,9})?", text, re.ASCII) or Decimal(text) > _MOST_USD:
        raise argparse.ArgumentTypeError(f"write US dollars from 0 to {_MOST_USD}, as 10 or 0.25")
    return Decimal(text)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError("write a number from 0 to 999999999")
    return int(text)


def _filter(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or name not in DIMENSIONS:
        raise argparse.ArgumentTypeError(f"write NAME=VALUE, where NAME is one of {', '.join(DIMENSIONS)}")
    return name, value
