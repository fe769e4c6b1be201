"""The `weighbridge routes` commands: how routes and their arms do, their weights, the rollout, and a report."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from gateway import readable
from gateway.logs import printable
from gateway.readable import Number
from gateway.remote import Refused, as_json, ask, takes_admin
from gateway.report import report_page
from gateway.terminal import MISTAKEN, OK, UNUSABLE, columns, complain, whole
from routing.phrases import odds

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

_STEPS: Final = ("start", "pause", "resume", "promote", "abort")
_HALTED: Final = frozenset({"PAUSED", "ROLLED_BACK"})
_ANSWERS: Final = {"go": "go", "no_go": "no-go", "not_enough_data": "not enough data"}


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds `routes` and its commands."""
    below = commands.add_parser("routes", help="where calls go, and how they fare there").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = below.add_parser("list", help="all routes with their arms, weights and figures")
    command.add_argument("--window", metavar="TIME", help="how far back figures go, as 1h or 7d")
    command.add_argument("--exit-code", action="store_true", help="exit 1 when an arm that has a weight is not well")
    takes_admin(command)
    command.set_defaults(run=show)

    command = below.add_parser("weights", help="give a route's arms other weights, from the next call on")
    command.add_argument("route", metavar="ROUTE")
    command.add_argument("weights", type=_weight, nargs="+", metavar="TARGET=WEIGHT", help="100 together")
    command.add_argument("--comment", metavar="TEXT", help="why, for the record")
    takes_admin(command)
    command.set_defaults(run=weigh)

    command = below.add_parser("rollout", help="how a canary's rollout stands, and what is to become of it")
    command.add_argument("route", metavar="ROUTE")
    command.add_argument("step", choices=[*_STEPS, "status"], metavar="|".join([*_STEPS, "status"]))
    command.add_argument("--comment", metavar="TEXT", help="why, for the record")
    command.add_argument("--exit-code", action="store_true", help="exit 1 when it has stopped, or ought to")
    takes_admin(command)
    command.set_defaults(run=roll)

    command = below.add_parser("report", help="a page for people who decide: go or no-go, with charts")
    command.add_argument("route", metavar="ROUTE")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="HTML; - is standard output")
    command.add_argument("--window", metavar="TIME", help="how far back figures go, as 1h or 7d")
    command.add_argument("--added-p95-ms", metavar="MS", help="what an arm may add to the latency, else 150")
    for name, what in (("saving", "save of the cost per call, else 20%%"), ("availability", "answer, else 99.5%%")):
        command.add_argument(f"--{name}", type=_share, metavar="SHARE", help=f"what an arm has to {what}")
    command.add_argument("--exit-code", action="store_true", help="exit 1 unless every arm with a weight is a go")
    takes_admin(command)
    command.set_defaults(run=report)


def show(given: argparse.Namespace) -> int:
    try:
        with _understood(given.admin):
            told = _all(given.admin, _asked(given, "window"))
            items = told["items"]
            said = _said(given, told, table, items) if items or given.json else ["No routes are configured."]
            ill = given.exit_code and any(
                arm["weight"] > 0 and arm["health"] != "ok" for route in items for arm in route["arms"]
            )
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    print(*said, sep="\n")
    return MISTAKEN if ill else OK


def weigh(given: argparse.Namespace) -> int:
    weights = dict(given.weights)
    if len(weights) < len(given.weights):
        complain("A target is named more than once.")
        return UNUSABLE
    body = {"weights": weights} | ({"comment": given.comment} if given.comment is not None else {})
    try:
        told = ask(given.admin, "PUT", f"{_place(given.route)}/weights", body, exact=True)
        with _understood(given.admin):
            said = _said(given, told, table, [told])
            warning = told.get("warning")
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    print(*said, sep="\n")
    if warning:
        complain(printable(warning))
    return OK


def roll(given: argparse.Namespace) -> int:
    place = f"{_place(given.route)}/rollout"
    try:
        if given.step == "status":
            told = ask(given.admin, "GET", place, exact=True)
        else:
            body = {"comment": given.comment} if given.comment is not None else {}
            told = ask(given.admin, "POST", f"{place}/{given.step}", body, exact=True)
        with _understood(given.admin):
            said = _said(given, told, rollout, given.route, told)
            stopped = given.exit_code and (told["state"] in _HALTED or told["verdict"] in ("PAUSE", "ROLLBACK"))
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    print(*said, sep="\n")
    return MISTAKEN if stopped else OK


def report(given: argparse.Namespace) -> int:
    try:
        asked = _asked(given, "window", "added_p95_ms", "saving", "availability")
        told = ask(given.admin, "GET", f"{_place(given.route)}{_query(asked)}", exact=True)
        with _understood(given.admin):
            page = report_page(told, datetime.datetime.now(datetime.UTC))
            written = page.encode()
            said = _said(given, told, _answers, told, given.output)
            go = [each["answer"] == "go" for each in _judged(told)]
    except Refused as refused:
        complain(str(refused))
        return UNUSABLE
    on_screen = str(given.output) == "-"
    if given.json:
        print(*said, sep="\n")
    if on_screen:
        sys.stdout.write(page)
    elif given.output is not None:
        with whole(given.output) as file:
            file.write_bytes(written)
    if not given.json and not on_screen:
        print(*said, sep="\n")
    return MISTAKEN if given.exit_code and not (go and all(go)) else OK


def table(routes: Sequence[dict[str, Any]]) -> list[str]:
    """Routes as the admin API tells them, a line an arm, for a person."""
    head = ("route", "target", "weight", "model", "health", "calls", "errors", "p50", "p95", "p99", "first token p95")
    cells: list[Sequence[str]] = [(*head, "per call", "per Mtok")]
    for route in routes:
        for place, arm in enumerate(route["arms"]):
            cells.append(
                (
                    route["name"] if place == 0 else "",
                    arm["target"],
                    _weighs(arm),
                    arm["model"] if arm["model"] is not None else "as asked",
                    arm["health"],
                    readable.count(arm["calls"]),
                    _failed(arm),
                    *(_known(arm[name], readable.milliseconds) for name in ("p50_ms", "p95_ms", "p99_ms")),
                    _known(arm["first_token_ms"]["p95"], readable.milliseconds),
                    _known(arm["cost_per_call_usd"], readable.dollars),
                    _known(arm["cost_per_mtok_usd"], readable.dollars),
                )
            )
    return [*columns(cells, right={2, *range(5, 13)}), "", *_times(routes), *_out(routes)]


def _times(routes: Sequence[dict[str, Any]]) -> list[str]:
    """Of what time the figures are: in one line where it is the same for all routes."""
    times = {route["name"]: (_moment(route["since"]), _moment(route["until"])) for route in routes}
    if len(set(times.values())) == 1:
        [(since, until)] = set(times.values())
        return [f"Figures are of {since} to {until}."]
    return [f"Figures of {name} are of {since} to {until}." for name, (since, until) in times.items()]


def _out(routes: Sequence[dict[str, Any]]) -> list[str]:
    """The nodes that get no calls, a line each, however many routes they serve."""
    arms = [arm for route in routes for arm in route["arms"]]
    out = {(arm["target"], node["url"]): node for arm in arms for node in arm["nodes_out"]}
    lines = []
    for (target, url), node in out.items():
        until = f" until {node['until']}" if node["until"] is not None else ""
        lines.append(f"{target}: {url} is {node['state']}{until}: {node['why']}")
    return ["", *lines] if lines else []


def rollout(route: str, told: dict[str, Any]) -> list[str]:
    """A rollout as the admin API tells it, for a person; what happened last is the last line."""
    where = f", step {told['step']} of {told['steps']}" if told["step"] else ""
    weight = f", at {readable.percent(told['weight'])}" if told["weight"] is not None else ""
    if told["state"] == "DRAFT":
        weight = ": it has its configured weight, and nobody judges it before `start`"
    facts: list[Sequence[str]] = [("verdict", told["verdict"])]
    if told.get("unjudged_since") is not None:
        facts.append(("judged", f"no more, since {_moment(told['unjudged_since'])}: `routes list` tells how it does"))
    if told.get("health") not in (None, "ok"):
        facts.append(("health", f"{told['health']}, at this gateway"))
    facts += [("missing", each["text"]) for each in told["missing"]]
    facts += _evidence(told["evidence"] or {})
    state = told["state"].replace("_", " ").lower()
    if told["state"] == "ROLLED_BACK":
        state += next((f" by {each['by']}" for each in told["history"] if each["what"] in ("rollback", "abort")), "")
    lines = [f"{route}: canary {told['canary']}, {state}{where}{weight}"]
    lines += columns(facts, right=set())
    if told["history"]:
        happened = [(_moment(each["at"]), each["by"], each["text"]) for each in reversed(told["history"])]
        lines += ["", *columns(happened, right=set())]
    return lines


_ODDS: Final = {
    "above_limit": ("fails above the limit", "needed", "is enough"),
    "others_above_limit": ("the others fail, too", "needed", "is enough"),
    "worse_than_others": ("fails more than the others", "needed", "pauses it"),
    "rejects_more_than_others": ("rejects more than the others", "needed", "pauses it"),
    "below_limit": ("is below the limit", "needed_to_promote", "is enough to promote"),
}
"""What each of the odds is for, which other number is enough, and for what."""


def _evidence(evidence: dict[str, Any]) -> Iterator[Sequence[str]]:
    """A line a piece; docs/rollouts.md says what each is."""
    for name, value in evidence.items():
        if value is None or name in ("needed", "needed_to_promote"):
            continue
        if name == "limit":
            yield "limit", f"{readable.limit(value)} of its calls may fail"
        elif name in _ODDS:
            called, enough, for_what = _ODDS[name]
            beyond = f"; {odds(float(evidence[enough]))} {for_what}" if enough in evidence else ""
            yield called, f"{odds(float(value))}{beyond}"
        else:
            yield name.replace("_", " "), _told(value)


def answer(comparison: dict[str, Any]) -> str:
    """A comparison in one line."""
    findings = ", ".join(_found(each) for each in comparison["findings"])
    return f"{comparison['arm']} in place of {comparison['baseline']}: {_ANSWERS[comparison['answer']]} ({findings})"


def _found(finding: dict[str, Any]) -> str:
    """The answer to one question, and what is missing where there is none."""
    told = f"{finding['question'].removesuffix('_ms').replace('_', ' ')} {_ANSWERS[finding['answer']]}"
    if finding["unpriced"]:
        return f"{told}: the price of {' and '.join(finding['unpriced'])} is not known, see targets[].price"
    if finding["missing"] is None:
        return told
    return f"{told}: about {readable.roughly(finding['missing'])} more calls to {finding['missing_of']}"


def _judged(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons that decide whether it is a go: arms that only stand by at weight 0 do not, where others do."""
    canary = told["rollout"]["canary"] if told["rollout"] is not None else None
    weighty = {arm["target"] for arm in told["arms"] if arm["weight"] > 0} | {canary}
    comparisons: list[dict[str, Any]] = told["comparisons"]
    return [each for each in comparisons if each["arm"] in weighty] or comparisons


def _weighs(arm: dict[str, Any]) -> str:
    """An arm's weight, and what the file has in its place."""
    written = arm.get("configured_weight")
    return readable.percent(arm["weight"]) + (f" (file: {readable.percent(written)})" if written is not None else "")


def _failed(arm: dict[str, Any]) -> str:
    """An arm's errors, and the calls that it has rejected, which are none."""
    rejected = arm.get("rejected")
    return _of(arm["errors"], arm["error_rate"]) + (f", {readable.count(rejected)} rejected" if rejected else "")


def _of(count: Number, share: Number | None) -> str:
    return readable.count(count) + (f" ({readable.share(share)})" if share is not None and count else "")


def _known(value: Number | None, shown: Any) -> str:
    text: str = shown(value) if value is not None else "-"
    return text


def _told(value: Any) -> str:
    """A piece of evidence, whatever its shape."""
    if isinstance(value, dict):
        if {"since", "errors", "calls"} <= value.keys():
            return _counted(value)
        told = ((name.replace("_", " "), each) for name, each in value.items() if each not in (None, [], {}))
        return ", ".join(f"{name} {_told(each)}" for name, each in told)
    if isinstance(value, list):
        return " ".join(map(_told, value))
    return readable.plain(value) if isinstance(value, int | float | Decimal) else str(value)


def _counted(facts: dict[str, Any]) -> str:
    """How many calls have failed since when, as a rollout's facts have it."""
    rate = f" ({readable.share(facts['rate'])})" if facts["errors"] and facts.get("rate") is not None else ""
    told = [
        f"since {_moment(facts['since'])}, {readable.count(facts['errors'])} of {readable.count(facts['calls'])} calls "
        f"failed{rate}"
    ]
    if facts.get("other_calls"):
        others = f"{readable.count(facts['other_errors'])} of {readable.count(facts['other_calls'])}"
        told.append(f"of the other arms' {others}")
    if facts.get("classes"):
        told.append(_told(facts["classes"]))
    if facts.get("samples"):
        told.append(f"for example {_told(facts['samples'])}")
    return "; ".join(told)


def _moment(at: str | Number) -> str:
    return f"{readable.instant(at):%Y-%m-%dT%H:%M:%SZ}"


def _answers(told: dict[str, Any], output: Path | None) -> list[str]:
    judged = _judged(told)
    lines = [
        answer(each) + ("" if each in judged else ". It stands by at weight 0, and is not asked for a go.")
        for each in told["comparisons"]
    ]
    if not lines:
        lines = [f"{told['name']}: there is nothing to compare, so no go. It has one arm, or none but the canary."]
    return lines if output is None else [*lines, f"The report is in {output}"]


def _said(given: argparse.Namespace, told: dict[str, Any], made: Callable[..., list[str]], *of: Any) -> list[str]:
    """An answer as lines: for scripts as it came, for people as `made` makes them."""
    if given.json:
        return [as_json(told)]
    return [printable(line.replace("\N{NO-BREAK SPACE}", " ")) for line in made(*of)]


@contextlib.contextmanager
def _understood(admin: str) -> Iterator[None]:
    """While an answer is made out. Raises Refused where it is not what a gateway of this version tells."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        why = error.__cause__ or error
        raise Refused(
            f"What the gateway at {admin} answers cannot be made out ({type(why).__name__}: {why}). "
            "Is it of another version?"
        ) from error


def _place(route: str) -> str:
    return f"/routes/{quote(route, safe='')}"


def _asked(given: argparse.Namespace, *names: str) -> dict[str, str]:
    """Those of these parameters that were given."""
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def _query(parameters: dict[str, str]) -> str:
    return f"?{urlencode(parameters)}" if parameters else ""


def _all(admin: str, asked: dict[str, str]) -> dict[str, Any]:
    """All pages as one answer. Raises Refused, and ValueError where they have no end."""
    pages, places, after = [], set[str](), _query(asked)
    while True:
        pages.append(ask(admin, "GET", f"/routes{after}", exact=True))
        if pages[-1]["next"] is None:
            return {**pages[-1], "items": list(itertools.chain.from_iterable(page["items"] for page in pages))}
        after = _query({**asked, "after": pages[-1]["next"]})
        if after in places:
            raise ValueError("the pages of its list have no end")
        places.add(after)


def _share(text: str) -> str:
    """`20%` or `0.2` -> `0.2`, as the gateway takes it."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", number, re.ASCII):
        share = Decimal(number) / (100 if percent else 1)
        if share <= 1:
            return f"{share:f}"
    raise argparse.ArgumentTypeError("write a share as 20% or 0.2")


def _weight(text: str) -> tuple[str, Decimal]:
    target, found, weight = text.rpartition("=")
    if not found or not target or not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", weight, re.ASCII):
        raise argparse.ArgumentTypeError("write TARGET=WEIGHT, with a weight from 0 to 100, as openai=70")
    if Decimal(weight) > 100:
        raise argparse.ArgumentTypeError("a weight is at most 100")
    return target, Decimal(weight)
