"""The `weighbridge tools` commands: what MCP servers say of their tools, and a person's word on it, from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote, urlencode

from gateway.approval_view import lines, parsed, visible
from gateway.logs import printable
from gateway.remote import Refused, as_json, ask, takes_admin
from gateway.terminal import MISTAKEN, OK, UNUSABLE, columns, complain

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

_SHORT: Final = 12
_ORDER: Final = {"unknown": 1, "accepted": 2}
"""What a person need not look at comes last."""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `tools` and its commands."""
    below = commands.add_parser(
        "tools", help="what MCP servers say of their tools, and what agents may use"
    ).add_subparsers(required=True, metavar="COMMAND")
    command = below.add_parser("list", help="all tools, those that agents may not use first")
    command.add_argument("--server", metavar="S", help="only those of this server")
    command.add_argument("--pins", action="store_true", help="as `pins` for the configuration")
    command.add_argument("--exit-code", action="store_true", help="exit 1 when agents may not use one of them")
    takes_admin(command)
    command.set_defaults(run=show_all)

    command = below.add_parser("show", help="one tool: its definition, and what has changed since it was accepted")
    command.add_argument("server", metavar="SERVER")
    command.add_argument("tool", metavar="TOOL")
    takes_admin(command)
    command.set_defaults(run=show)

    command = below.add_parser(
        "accept", help="let agents use a tool by the definition that it has now; shows it first, and asks"
    )
    command.add_argument("server", metavar="SERVER")
    command.add_argument("tool", metavar="TOOL")
    command.add_argument(
        "--definition", metavar="SHA", help="do not ask: this is the one that was read, as `tools show` shows it"
    )
    takes_admin(command)
    command.set_defaults(run=accept)

    command = below.add_parser("refuse", help="hide a tool from agents, whatever it says of itself")
    command.add_argument("server", metavar="SERVER")
    command.add_argument("tool", metavar="TOOL")
    takes_admin(command)
    command.set_defaults(run=refuse)


def show_all(given: argparse.Namespace) -> int:
    where = f"?{urlencode({'server': given.server})}" if given.server is not None else ""
    try:
        told = ask(given.admin, "GET", f"/tools{where}")
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    items = told["items"]
    if given.json:
        print(as_json(told))
    elif given.pins:
        for each in items:
            if each["definition"] is not None:
                print(printable(f"- {{tool: {_quoted(each['tool'])}, sha256: {each['definition']}}}"))
    elif not items:
        print("There are no such tools.")
    else:
        for line in table(sorted(items, key=lambda each: _ORDER.get(each["standing"], 0))):
            print(printable(line))
    for server in told["silent"]:
        complain(f"{server} does not say which tools it has; the log of the gateway says why")
    shut = any(each["standing"] not in ("accepted", "unknown") for each in items)
    return MISTAKEN if given.exit_code and shut else OK


def show(given: argparse.Namespace) -> int:
    try:
        told = ask(given.admin, "GET", _path(given))
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    else:
        _print(detail(told))
    return OK


def accept(given: argparse.Namespace) -> int:
    """Of the definition that was read, and of no other one."""
    definition = given.definition
    if definition is None:
        try:
            told = ask(given.admin, "GET", _path(given))
        except Refused as refused:
            complain(str(refused))
            return UNUSABLE
        if not given.json:
            _print(detail(told))
        definition = told["definition"]
        if definition is None:
            complain("There is no definition of this tool that could be accepted.")
            return MISTAKEN
        if not _wanted(definition):
            return MISTAKEN
    return _say(given, "accept", {"definition": definition})


def refuse(given: argparse.Namespace) -> int:
    return _say(given, "refuse", {})


def _say(given: argparse.Namespace, word: str, said: dict[str, str]) -> int:
    try:
        told = ask(given.admin, "POST", f"{_path(given)}/{word}", said)
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    else:
        _print(table([told]))
    return OK


def table(tools: Iterable[dict[str, Any]]) -> list[str]:
    """Tools as the admin API tells them, as lines for a person."""
    cells = [["server", "tool", "standing", "definition", "since", "by", ""]]
    for each in tools:
        words = (each["server"], each["tool"], each["standing"], (each["definition"] or "-")[:_SHORT])
        cells.append([*words, each["since"] or "-", each["by"] or "-", each["why"] or ""])
    return columns(cells, right=set())


def detail(told: dict[str, Any]) -> list[str]:
    """One tool: all of its definition, and all that differs, with nothing hidden in it."""
    told_of = table([told])
    if told["now"] is not None:
        told_of += ["", f"definition {told['definition']}", *lines(told["now"])]
    if told["before"] is not None and told["changes"]:
        told_of += ["", "what has changed since it was accepted"]
        for each in told["changes"]:
            told_of.append(f"  {visible(each['pointer']) or '/'}")
            for sign, value in (("-", each["old"]), ("+", each["new"])):
                if value is not None:
                    told_of += [f"    {sign} {line}" for line in lines(parsed(value))]
    return told_of


def _wanted(definition: str) -> bool:
    if not sys.stdin.isatty():
        complain(f"Nobody is there to be asked. Where you have read it, say --definition {definition}")
        return False
    return input("Accept this definition? [y/N] ").strip().lower() in ("y", "yes")


def _path(given: argparse.Namespace) -> str:
    return f"/tools/{quote(given.server, safe='')}/{quote(given.tool, safe='')}"


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(printable(line))
