"""The `weighbridge approvals` commands: what waits for people, all that would run, a word on it, and grants."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import termios
import time
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

from gateway import readable
from gateway.approval_view import Number, json_text, lines, parsed, visible
from gateway.logs import printable
from gateway.remote import Refused, as_json, ask, follow, takes_admin
from gateway.terminal import MISTAKEN, OK, UNUSABLE, columns, complain

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

_ID: Final = re.compile("apr_[0-9A-Z]{26}", re.ASCII)
_SILENCE: Final = 45.0
"""Seconds without a sign of life after which a stream is begun anew."""
_AGAIN: Final = 2.0
"""Seconds until a gateway that does not answer is asked again."""
_LONGEST_WAIT: Final = 60.0
_EXCERPT: Final = 60


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `approvals` and its commands."""
    below = commands.add_parser("approvals", help="calls that people decide on").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = below.add_parser("list", help="what waits for people")
    command.add_argument("--state", default="pending", metavar="STATE", help="or several with commas; `all` for all")
    _takes_filter(command)
    command.add_argument("--exit-code", action="store_true", help="exit 1 when there is one")
    takes_admin(command)
    command.set_defaults(run=show_all)

    command = below.add_parser("show", help="one call, with all that would run")
    command.add_argument("id", metavar="ID")
    command.add_argument("--wait", type=_seconds, default=0.0, metavar="SECONDS", help="for people to decide, up to 60")
    command.add_argument("--exit-code", action="store_true", help="exit 1 unless it is approved, under way or done")
    takes_admin(command)
    command.set_defaults(run=show)

    for name, what in (("approve", "say yes"), ("deny", "say no, for all")):
        command = below.add_parser(name, help=what)
        command.add_argument("id", metavar="ID")
        _takes_word(command)
        command.set_defaults(run=say, word=name)

    command = below.add_parser("change", help="say yes to other arguments, of which the policy is asked again")
    command.add_argument("id", metavar="ID")
    command.add_argument(
        "--arguments", type=Path, required=True, metavar="FILE", help="all of them, as JSON; - is standard input"
    )
    _takes_word(command)
    command.set_defaults(run=change)

    command = below.add_parser("cancel", help="take back a call that is not decided, or a yes that is not used")
    command.add_argument("id", metavar="ID")
    command.add_argument("--comment", default="", metavar="TEXT", help="why, for the record")
    takes_admin(command)
    command.set_defaults(run=say, word="cancel", version=None)

    for name, what in (
        ("ran", "say that an unknown call has run"),
        ("not-run", "say that an unknown call has not run"),
    ):
        command = below.add_parser(name, help=what)
        command.add_argument("id", metavar="ID")
        command.add_argument("--comment", required=True, metavar="TEXT", help="how you know, for the record")
        takes_admin(command)
        command.set_defaults(run=say, word=name, version=None)

    command = below.add_parser("watch", help="show new ones as they come; at a terminal, ask what to do with each")
    _takes_filter(command)
    takes_admin(command)
    command.set_defaults(run=watch)

    command = below.add_parser("grant", help="allow calls beforehand")
    command.add_argument(
        "--from", dest="source", metavar="ID", help="an approval: the same call, unless said otherwise"
    )
    command.add_argument("--agent", metavar="NAME")
    command.add_argument("--tenant", metavar="T", help="whose agent it is, where several tenants have one")
    command.add_argument("--session", metavar="S", help="only in this one; '' for calls without a session only")
    command.add_argument("--all-sessions", action="store_true", help="with --from: in any session, and without one")
    command.add_argument("--protocol", metavar="P", help="as openai; can be left out for a tool without offer_as_mcp")
    command.add_argument("--target", metavar="NAME", help="the tool, or the model")
    command.add_argument("--operation", metavar="NAME")
    command.add_argument(
        "--where", action="append", metavar="/POINTER=VALUE", help="what an argument is: JSON, or a text; repeatable"
    )
    command.add_argument("--any-arguments", action="store_true", help="whatever they are")
    command.add_argument("--role", metavar="ROLE", help="the one whose word such calls need")
    command.add_argument("--for", dest="expires_in", required=True, metavar="TIME", help="as 15m or 1h")
    command.add_argument("--uses", type=_count, metavar="N", help="at most so many calls")
    command.add_argument("--cost", type=_dollars, metavar="USD", help="at most so much, as estimated")
    command.add_argument("--comment", default="", metavar="TEXT", help="why, for the record")
    takes_admin(command)
    command.set_defaults(run=grant)

    command = below.add_parser("grants", help="what is allowed beforehand")
    command.add_argument("--agent", metavar="NAME", help="only those of this agent")
    command.add_argument("--tenant", metavar="NAME", help="only those of this tenant")
    takes_admin(command)
    command.set_defaults(run=show_grants)

    command = below.add_parser("revoke", help="end a grant at once")
    command.add_argument("id", metavar="GRANT")
    takes_admin(command)
    command.set_defaults(run=revoke)


def _takes_filter(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mine", action="store_true", help="only those that you can bring nearer to a yes")
    command.add_argument("--role", metavar="ROLE", help="only those that need somebody with this role")
    command.add_argument("--agent", metavar="NAME", help="only those of this agent")
    command.add_argument("--tenant", metavar="NAME", help="only those of this tenant")


def _takes_word(command: argparse.ArgumentParser) -> None:
    command.add_argument("--comment", default="", metavar="TEXT", help="for the record; a no is told to the agent")
    command.add_argument("--version", type=_count, metavar="N", help="only if it is still the one that was shown")
    takes_admin(command)


def show_all(given: argparse.Namespace) -> int:
    try:
        found = list(_pages(given.admin, "/approvals", _filter(given, given.state)))
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json({"items": found, "next": None}))
    elif not found:
        print("Nothing waits for people." if given.state == "pending" else "There is none.")
    else:
        _print(table(found, time.time()))
    return MISTAKEN if given.exit_code and found else OK


def show(given: argparse.Namespace) -> int:
    try:
        told = _one(given.admin, given.id)
        until = time.monotonic() + given.wait
        while told["state"] in ("pending", "consumed") and (left := until - time.monotonic()) > 0:
            told = _one(given.admin, given.id, wait=left, version=told["version"].text)
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    else:
        _print(page(told, time.time()))
    return MISTAKEN if given.exit_code and told["state"] not in ("approved", "consumed", "done") else OK


def say(given: argparse.Namespace) -> int:
    body: dict[str, Any] = {"comment": given.comment}
    if given.version is not None:
        body["version"] = given.version
    done = _did(given, given.word, body)
    if done == OK and given.word == "deny" and not given.comment:
        complain("You gave no reason (--comment): the agent is told that it may not, not why.")
    return done


def change(given: argparse.Namespace) -> int:
    try:
        text = sys.stdin.buffer.read() if str(given.arguments) == "-" else given.arguments.read_bytes()
        arguments = parsed(text)
    except ValueError as error:
        complain(f"{given.arguments}: is no JSON that all read the same ({error}).")
        return UNUSABLE
    body = {"arguments": arguments, "comment": given.comment}
    if given.version is not None:
        body["version"] = given.version
    return _did(given, "change", body)


def watch(given: argparse.Namespace) -> int:
    """Until it is interrupted. The stream is followed before the list is asked for, so that nothing falls between."""
    asks = sys.stdin.isatty() and sys.stdout.isatty() and not given.json
    seen: set[str] = set()
    follows = told = False
    while True:
        try:
            with follow(given.admin, "/approvals/stream", _SILENCE) as events:
                follows, told = True, False
                for name, facts in itertools.chain([("missed", {})], events):
                    if name == "missed":
                        for each in _pages(given.admin, "/approvals", _filter(given, "pending")):
                            _tell_new(given, each, seen, asks)
                    elif facts["state"] != "pending":
                        _tell_ended(given, facts, seen)
                    elif facts["id"] not in seen and _fits(given, each := _one(given.admin, facts["id"])):
                        _tell_new(given, each, seen, asks)
        except EOFError:
            return OK
        except Refused as refused:
            if not told:
                complain(str(refused))
            if not follows:
                return UNUSABLE
            told = True
        time.sleep(_AGAIN)


def grant(given: argparse.Namespace) -> int:
    wanted = {
        "from": given.source,
        "agent": given.agent,
        "tenant": given.tenant,
        "session": given.session,
        "protocol": given.protocol,
        "target": given.target,
        "operation": given.operation,
        "role": given.role,
        "expires_in": given.expires_in,
        "max_uses": given.uses,
        "max_cost_usd": given.cost,
        "comment": given.comment or None,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    if given.all_sessions:
        body["session"] = None
    try:
        if given.any_arguments:
            body["any_arguments"] = True
        elif given.source is None and given.where is None:
            raise Refused("For which arguments? Write --where /POINTER=VALUE, or --any-arguments.")
        if given.where is not None:
            body["where"] = _constraints(given.where)
        told = ask(given.admin, "POST", "/grants", body, verbatim=True)
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    else:
        _print(grants([told], time.time()))
    return OK


def show_grants(given: argparse.Namespace) -> int:
    asked = {name: value for name in ("agent", "tenant") if (value := getattr(given, name)) is not None}
    try:
        found = list(_pages(given.admin, "/grants", asked))
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json({"items": found, "next": None}))
    elif not found:
        print("Nothing is allowed beforehand.")
    else:
        _print(grants(found, time.time()))
    return OK


def revoke(given: argparse.Namespace) -> int:
    try:
        told = ask(given.admin, "DELETE", f"/grants/{quote(given.id, safe='')}")
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    print(as_json(told) if given.json else printable(f"{told['id']} is no more."))
    return OK


# What people are shown


def table(found: Iterable[dict[str, Any]], now: float) -> list[str]:
    """Approvals as the admin API tells them, a line each."""
    cells: list[Sequence[str]] = [("id", "state", "left", "agent", "target", "operation", "risk", "needs", "why")]
    for each in found:
        cells.append(
            (
                each["id"],
                each["state"],
                _left(each, now),
                _short(f"{each['tenant']}/{each['agent']}"),
                _short(each["target"]),
                _short(each["operation"]),
                each["risk_level"] or "-",
                _short(_needs(each)),
                _short(each["explanation"]),
            )
        )
    return columns(cells, right={2})


def page(told: dict[str, Any], now: float) -> Iterator[str]:
    """One approval, with all that would run, or has."""
    left = _left(told, now)
    yield f"{told['id']}  {told['state']}{f', {left} left' if left != '-' else ''}"
    stream = ", streamed" if told["stream"] is True else ""
    query = f"?{told['query']}" if told["query"] else ""
    facts: list[tuple[str, str]] = [
        ("who asks", f"{told['agent']} of {told['tenant']}"),
        ("session", told["session"] if told["session"] is not None else "-"),
        ("what", f"{told['operation']} of {told['target']} ({told['protocol']}{stream})"),
        ("sent as", f"{told['method']} {told['path']}{query}"),
        *(("header", f"{name}: {value}") for name, value in told["headers"]),
        ("why held", told["explanation"] or "-"),
        ("before", told["earlier"]),
        ("risk", told["risk_level"] or "-"),
        ("cost", _usd(told["estimated_cost_usd"])),
        ("needs", _needs(told)),
        *(("said", _vote(each)) for each in told["votes"]),
        ("reason", told["reason"]),
        ("held", _moment(told["created"])),
        ("decide by", _moment(told["decide_by"])),
        ("use by", _moment(told["use_by"])),
        ("policy", told["policy"]),
        ("binding", told["binding"]),
        ("call", told["call"]),
        ("used by", told["used_by"] or ""),
        ("instead of", told["instead_of"] or ""),
        ("became", told["became"] or ""),
        ("version", told["version"].text),
    ]
    yield from columns([(name, visible(value)) for name, value in facts if value], right=set())
    if told["changes"] is not None:
        yield ""
        yield "changed by a person"
        for each in told["changes"]:
            yield f"  {visible(each['pointer']) or '(all)'}"
            for sign, value in (("-", each["old"]), ("+", each["new"])):
                if value is not None:
                    yield from (f"  {sign} {line}" for line in lines(parsed(value)))
    yield ""
    if told["arguments"] is not None:
        yield "arguments"
        yield from lines(told["arguments"])
    if told["body"] is not None:
        yield "body, a text"
        yield from lines(told["body"])
    elif told["body_base64"] is not None:
        yield "body, in base64"
        yield from lines(told["body_base64"])
    elif told["arguments"] is None:
        yield "no arguments"


def grants(found: Iterable[dict[str, Any]], now: float) -> list[str]:
    """Grants as the admin API tells them."""
    cells: list[Sequence[str]] = [
        ("id", "agent", "session", "target", "operation", "where", "role", "left", "uses", "cost", "by", "why")
    ]
    for each in found:
        uses, cost = each["uses"].text, _usd(each["cost_usd"])
        cells.append(
            (
                each["id"],
                _short(f"{each['tenant']}/{each['agent']}"),
                (_short(each["session"]) or "none") if each["session"] is not None else "all",
                _short(each["target"]),
                _short(each["operation"]),
                _where(each["where"]),
                ", ".join(map(visible, each["roles"])),
                _length(_number(each["expires"]) - now),
                f"{uses} of {each['max_uses'].text}" if each["max_uses"] is not None else uses,
                f"{cost} of {_usd(each['max_cost_usd'])}" if each["max_cost_usd"] is not None else cost,
                ", ".join(map(visible, each["by"])),
                _short(each["comment"]),
            )
        )
    return columns(cells, right={7})


def _left(told: dict[str, Any], now: float) -> str:
    until = {"pending": told["decide_by"], "approved": told["use_by"]}.get(told["state"])
    return _length(_number(until) - now) if until is not None else "-"


def _needs(told: dict[str, Any]) -> str:
    missing = list(told["missing_approvals"])
    said = []
    for role in told["required_approvals"]:
        if role in missing:
            missing.remove(role)
            said.append(f"{role} (nobody has it)" if role in told["lacking_roles"] else role)
        else:
            said.append(f"{role} (given)")
    return ", ".join(said)


def _vote(vote: dict[str, Any]) -> str:
    because = f": {vote['comment']}" if vote["comment"] else ""
    word = "yes" if vote["approve"] else "no"
    return f"{vote['person']} said {word} as {', '.join(vote['roles'])}, {_moment(vote['at'])}{because}"


def _where(where: dict[str, Any]) -> str:
    if not where:
        return "any"
    if set(where) == {""}:
        return "exactly one call"
    return _short(", ".join(f"{pointer}={json_text(value).decode()}" for pointer, value in where.items()))


def _short(text: str) -> str:
    """What fits into a cell; `show` has all."""
    return visible(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}...")


def _number(value: Number) -> float:
    return float(value.text)


def _moment(at: Number | None) -> str:
    return f"{readable.instant(_number(at)):%Y-%m-%dT%H:%M:%SZ}" if at is not None else ""


def _usd(amount: Number | None) -> str:
    return readable.dollars(Decimal(amount.text)) if amount is not None else "not known"


def _length(seconds: float) -> str:
    """`41 s`, `12 min`, `3 h 20 min`: rounded down, for what is left must not seem more."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _tell_new(given: argparse.Namespace, told: dict[str, Any], seen: set[str], asks: bool) -> None:
    if told["id"] in seen:
        return
    seen.add(told["id"])
    if given.json:
        print(as_json(told), flush=True)
        return
    _print([*page(told, time.time()), ""])
    sys.stdout.flush()
    if asks and told["mine"]:
        _decide(given, told)


def _tell_ended(given: argparse.Namespace, facts: dict[str, Any], seen: set[str]) -> None:
    if facts["id"] not in seen:
        return
    seen.discard(facts["id"])
    if given.json:
        print(as_json(facts), flush=True)
        return
    because = f" ({facts['reason']})" if facts["reason"] else ""
    print(printable(visible(f"{facts['id']} is {facts['state']}{because}")), flush=True)


def _decide(given: argparse.Namespace, told: dict[str, Any]) -> None:
    """Asks the person at the terminal, again where something has changed meanwhile. Raises EOFError, Refused."""
    while told["state"] == "pending" and told["mine"]:
        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before this was shown is no word on it
        answer = input("approve it? [y]es, [n]o, Enter to leave it: ").strip().lower()
        if answer == "":
            return
        if answer not in ("y", "yes", "n", "no"):
            continue
        word = "approve" if answer.startswith("y") else "deny"
        body = {"comment": input("comment: ").strip(), "version": int(told["version"].text)}
        try:
            _print([_outcome(ask(given.admin, "POST", f"{_place(told['id'])}/{word}", body, verbatim=True)), ""])
            return
        except Refused as refused:
            complain(str(refused))
        told = _one(given.admin, told["id"])
        _print([*page(told, time.time()), ""])


def _did(given: argparse.Namespace, what: str, body: dict[str, Any]) -> int:
    try:
        told = ask(given.admin, "POST", f"{_place(given.id)}/{what}", body, verbatim=True)
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    if given.json:
        print(as_json(told))
    elif told["changes"] is not None:
        _print(page(told, time.time()))
    else:
        _print([_outcome(told)])
    return OK


def _outcome(told: dict[str, Any]) -> str:
    missing = ", ".join(told["missing_approvals"])
    waits = f", and still needs {missing}" if told["state"] == "pending" else ""
    return visible(f"{told['id']} is {told['state']}{waits}.")


def _one(admin: str, name: str, *, wait: float = 0.0, version: str = "") -> dict[str, Any]:
    waits = min(wait, _LONGEST_WAIT)
    query = f"?wait={waits:.3f}&version={version}" if wait else ""
    return ask(admin, "GET", f"{_place(name)}{query}", verbatim=True, patience=waits + 30.0)


def _pages(admin: str, path: str, asked: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What there is, page after page. Raises Refused."""
    while True:
        told = ask(admin, "GET", f"{path}?{urlencode(asked)}", verbatim=True)
        yield from told["items"]
        if told["next"] is None:
            return
        asked = {**asked, "after": told["next"]}


def _filter(given: argparse.Namespace, state: str) -> dict[str, str]:
    asked = {name: value for name in ("role", "agent", "tenant") if (value := getattr(given, name)) is not None}
    if state != "all":
        asked["state"] = state
    return asked | ({"mine": "true"} if given.mine else {})


def _fits(given: argparse.Namespace, told: dict[str, Any]) -> bool:
    """Whether the list, asked as `_filter` says, would have it."""
    return (
        told["state"] == "pending"
        and given.agent in (None, told["agent"])
        and given.tenant in (None, told["tenant"])
        and (given.role is None or given.role in told["missing_approvals"])
        and (told["mine"] or not given.mine)
    )


def _print(told: Iterable[str]) -> None:
    for line in told:
        print(printable(line.replace("\N{NO-BREAK SPACE}", " ")))


def _place(name: str) -> str:
    """Raises Refused for what is no approval's id."""
    if not _ID.fullmatch(name):
        raise Refused(f"{name[:64]!r} is no approval's id; `weighbridge approvals list` shows them.")
    return f"/approvals/{quote(name, safe='')}"


def _constraints(written: Iterable[str]) -> dict[str, Any]:
    """Raises Refused."""
    found: dict[str, Any] = {}
    for each in written:
        pointer, equals, text = each.partition("=")
        if not equals or (pointer and not pointer.startswith("/")):
            raise Refused(f"{each[:64]!r} is no constraint. Write /POINTER=VALUE, as /base=main or /amount=5.")
        if pointer in found:
            raise Refused(f"{pointer[:64]!r} stands twice: no call can have two values there.")
        found[pointer] = _value(pointer, text)
    return found


def _value(pointer: str, text: str) -> Any:
    """JSON, or else the text itself, of which the person is told. Raises Refused for what was meant to be JSON."""
    try:
        return orjson.Fragment(json_text(parsed(text)))
    except ValueError as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise Refused(f"The value of {pointer[:64]!r} is no JSON that all read the same ({error}).") from None
    complain(f"{pointer[:64]} is to be the text {json_text(text).decode()}.")
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", text, re.ASCII) or float(text) > _LONGEST_WAIT:
        raise argparse.ArgumentTypeError("write seconds from 0 to 60")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError("write a number from 1 to 999999999")
    return int(text)


def _dollars(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,9})?", text, re.ASCII) or not Decimal(text):
        raise argparse.ArgumentTypeError("write US dollars above 0, as 10 or 0.25")
    return Decimal(text)
