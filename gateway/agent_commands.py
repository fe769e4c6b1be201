"""The `weighbridge agents` commands: how agents stand, and a person's word that stops one, from a shell."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote, urlencode

from gateway.logs import printable
from gateway.remote import Refused, as_json, ask, takes_admin
from gateway.terminal import MISTAKEN, OK, UNUSABLE, columns, complain

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

_STATES: Final = {
    "pause": ("paused", "refuse an agent's calls for now; those that people decide on wait"),
    "resume": ("active", "let an agent's calls in again"),
    "quarantine": ("quarantined", "refuse an agent's calls, cut those under way, and take back those that wait"),
}
"""What is said, how the agent stands after it, and what that means."""
_PAGE: Final = 1000


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `agents` and its commands."""
    below = commands.add_parser("agents", help="how agents stand, and the switch that stops one").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = below.add_parser("list", help="all agents, those that are stopped first")
    command.add_argument("--tenant", metavar="T", help="only those of this tenant")
    command.add_argument("--state", choices=[state for state, _ in _STATES.values()], help="only those that stand so")
    command.add_argument("--exit-code", action="store_true", help="exit 1 when one of them is stopped")
    takes_admin(command)
    command.set_defaults(run=show)

    for word, (state, meaning) in _STATES.items():
        command = below.add_parser(word, help=meaning)
        command.add_argument("name", metavar="NAME")
        command.add_argument("--tenant", metavar="T", help="whose agent it is, where several tenants have one")
        command.add_argument("--reason", default="", metavar="TEXT", help="why, for the agent and the record")
        takes_admin(command)
        command.set_defaults(run=change, state=state)


def show(given: argparse.Namespace) -> int:
    query = {name: value for name in ("tenant", "state") if (value := getattr(given, name)) is not None}
    try:
        *_, last = pages = list(_pages(given.admin, query))
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    told = {**last, "items": list(itertools.chain.from_iterable(page["items"] for page in pages))}
    items = told["items"]
    if given.json:
        print(as_json(told))
    elif not items:
        print("There are no such agents." if query else "No agents are configured.")
    else:
        _print(sorted(items, key=lambda agent: agent["state"] == "active"))
    return MISTAKEN if given.exit_code and any(each["state"] != "active" for each in items) else OK


def change(given: argparse.Namespace) -> int:
    where = f"?{urlencode({'tenant': given.tenant})}" if given.tenant is not None else ""
    path = f"/agents/{quote(given.name, safe='')}/state{where}"
    try:
        told = ask(given.admin, "PUT", path, {"state": given.state, "reason": given.reason})
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    else:
        _print([told])
    return OK


def _pages(admin: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
    asked, after = {**query, "page_size": str(_PAGE)}, None
    while True:
        page = ask(admin, "GET", f"/agents?{urlencode(asked | ({'after': after} if after is not None else {}))}")
        yield page
        after = page["next"]
        if after is None:
            return


def table(agents: Iterable[dict[str, Any]]) -> list[str]:
    """Agents as the admin API tells them, as lines for a person."""
    cells = [["agent", "tenant", "team", "state", "calls", "since", "by", "reason"]]
    for each in agents:
        words = (each["name"], each["tenant"], each["team"] or "-", each["state"], str(each["calls"]))
        cells.append([*words, each["since"] or "-", each["by"] or "-", each["reason"]])
    return columns(cells, right={4})


def _print(agents: Iterable[dict[str, Any]]) -> None:
    for line in table(agents):
        print(printable(line))
