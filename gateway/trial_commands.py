"""The `weighbridge policy diff`, `promote` and `rollback` commands: a policy on trial, from a shell."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any
from urllib.parse import quote

from gateway.logs import printable
from gateway.remote import Refused, ask, takes_admin
from gateway.terminal import MISTAKEN, OK, UNUSABLE, complain

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the commands to those of `policy`."""
    command = commands.add_parser("diff", help="how the policy on trial differs from the configured one")
    takes_admin(command)
    command.add_argument("--exit-code", action="store_true", help="exit 1 when there are differences")
    command.set_defaults(run=diff)
    command = commands.add_parser("promote", help="let the policy on trial decide, and watch it")
    takes_admin(command)
    command.add_argument("--revision", default="", metavar="R", help="only if its revision begins so (see diff)")
    command.set_defaults(run=promote)
    command = commands.add_parser("rollback", help="let the configured policy decide again")
    takes_admin(command)
    command.set_defaults(run=rollback)


def diff(given: argparse.Namespace) -> int:
    return _shown(given, "GET", "/policy/shadow", recent=True)


def promote(given: argparse.Namespace) -> int:
    return _shown(given, "POST", f"/policy/promote?revision={quote(given.revision)}", recent=False)


def rollback(given: argparse.Namespace) -> int:
    return _shown(given, "POST", "/policy/rollback", recent=False)


def _shown(given: argparse.Namespace, method: str, path: str, *, recent: bool) -> int:
    try:
        facts = ask(given.admin, method, path)
    except Refused as error:
        complain(str(error))
        return UNUSABLE
    if given.json:
        print(json.dumps(facts))
    else:
        for line in text(facts, recent=recent):
            print(printable(line))
    return MISTAKEN if getattr(given, "exit_code", False) and facts["differences"] else OK


def text(facts: dict[str, Any], *, recent: bool) -> list[str]:
    """The admin API's answer as lines for a person."""
    lines = [f"stage       {facts['stage']}{_watched(facts)}"]
    if facts["reason"]:
        lines.append(f"because     {facts['reason']}")
    for name in ("configured", "on_trial"):
        decides = "decides" if facts["decides"] == name else "is asked, too"
        side = facts[name]
        lines.append(f"{name:<12}{(side['revision'] or 'not loaded')[:12]:<14}{decides:<15}{' '.join(side['files'])}")
        lines += [f"            {error}" for error in side["loading"]["errors"]]
    compared, differences = facts["compared"], facts["differences"]
    lines.append(f"compared    {compared} calls ({facts['share']:g} % of them), {differences} differ")
    lines += [
        f"  {pair['configured']:<15} -> {pair['on_trial']:<15} {pair['calls']:>9}"
        for pair in facts["pairs"]
        if pair["configured"] != pair["on_trial"]
    ]
    if recent:
        counted = [_difference(each) for each in facts["recent"] if each["at"] > facts["since"]]
        before = [_difference(each) for each in facts["recent"] if each["at"] <= facts["since"]]
        lines += ["", *counted] if counted else []
        lines += ["", "before the last change of policies or stage, and not counted above:", *before] if before else []
    return lines


def _watched(facts: dict[str, Any]) -> str:
    if facts["stage"] != "watching":
        return ""
    return f" until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(facts['until']))}"


def _difference(each: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(each["at"]))
    words = f"{each['configured']['decision']} -> {each['on_trial']['decision']}"
    why = each["on_trial"]["explanation"] or each["configured"]["explanation"]
    called = " ".join(part for part in (each["operation"], each["target"]) if part)
    return f"{at}  {each['call']}  {each['agent']:<16}  {called:<28}  {words:<26}  {why}".rstrip()
