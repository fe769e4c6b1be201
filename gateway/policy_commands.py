"""The `weighbridge policy` commands: what policy authors try, test and ask from a shell."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from config.errors import ConfigError
from config.settings import LedgerSettings, PolicySettings
from gateway.explanations import Again, Explained, Explainer, Recorded, Verdict, recorded, replayable
from gateway.ledger import FILE_NAME
from gateway.logs import printable
from gateway.opa import OpaLine
from gateway.terminal import MISTAKEN, OK, UNUSABLE, complain, configuration
from policies import load as policy
from policies import opa_command, sources, testing
from policies.embedded import EmbeddedEngine
from policies.engine import Engine
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided
from policies.explain import told
from policies.history import History
from policies.masks import Mask

NOT_FOUND: Final = 3
"""Exit code: there is no such call in the ledger."""

_PROVE: Final = 30.0
"""Seconds in which a policy given on the command line has to prove itself."""

_LONGEST_INPUT: Final = 600
"""Characters of an input that are shown to people; --json shows all."""

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def add(commands: Commands[argparse.ArgumentParser]) -> Commands[argparse.ArgumentParser]:
    """Adds `policy` to the commands, and returns what takes its own subcommands."""
    rules = commands.add_parser("policy", help="try, test and explain policies").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = rules.add_parser("eval", help="the decision on an input, and the rules that made it")
    command.add_argument("input", type=Path, metavar="INPUT.json", help="the input as JSON; - for standard input")
    _takes_policy(command, "--policy", dest="paths", action="append", default=[])
    command.set_defaults(run=evaluate)

    command = rules.add_parser("test", help="run test_ rules of *_test.rego files")
    _takes_policy(command, "paths", nargs="*")
    command.add_argument("-v", "--verbose", action="store_true", help="show tests that pass, too")
    command.add_argument(
        "-r", "--run", dest="only", type=_pattern, default="", metavar="REGEX", help="only tests it finds"
    )
    command.add_argument("--coverage", action="store_true", help="which lines of the policies the tests reach")
    command.add_argument("--threshold", type=float, metavar="N", help="fail below so many per cent of the lines")
    command.add_argument(
        "--engine", choices=("embedded", "opa", "both"), help="default: both where opa is installed, else embedded"
    )
    command.add_argument("--format", choices=("pretty", "json"), default="pretty", help="json: as `opa test` tells it")
    command.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for all tests (default 60)")
    command.set_defaults(run=test)

    command = rules.add_parser("explain", help="why a call was decided so; without a call, what the policy reads")
    command.add_argument("call", nargs="?", metavar="CALL_ID", help="what x-weighbridge-call said")
    command.add_argument("--ledger", type=Path, metavar="PATH", help="the ledger's folder, instead of the configured")
    _takes_policy(command, "--policy", dest="paths", action="append", default=[])
    command.set_defaults(run=explain)
    return rules


def evaluate(given: argparse.Namespace) -> int:
    """The decision of a policy on an input, as the gateway would take it, and the rules that made it."""
    try:
        text = (sys.stdin.buffer.read() if str(given.input) == "-" else given.input.read_bytes()) or b"{}"
        found = asyncio.run(_explained(_policy(given), text, time.time_ns()))
    except PolicyError as error:
        return _refused(error)
    except OSError as error:
        complain(f"{given.input}: {error.strerror}.")
        return UNUSABLE
    except (InputRefused, EngineUnavailable) as error:
        complain(f"{error} {error.internal}".rstrip())
        return MISTAKEN
    shown = _masked(text, _ledger(given).mask)
    if given.json:
        print(json.dumps({**_facts(found), "input": shown}))
    else:
        _show(_facts(found), found)
        _say("input", _cut(json.dumps(shown, ensure_ascii=False)))
    if found.decision is None:
        complain(str(Undecided(found.failure)) + f" {found.failure}")
        return MISTAKEN
    return OK


def test(given: argparse.Namespace) -> int:
    """Runs the `test_` rules of `*_test.rego` files, on the embedded engine and, where it is installed, on opa."""
    opa = opa_command.find()
    engine = given.engine or ("both" if opa is not None else "embedded")
    if engine != "embedded" and opa is None:
        complain("opa is not installed: there is none on PATH and none in .tools/bin.")
        return UNUSABLE
    coverage = given.coverage or given.threshold is not None
    try:
        settings = _policy(given)
        if settings.engine == "opa" and not settings.paths:
            complain(f"{given.config}: `policy.engine` is opa, so it names no policy files here. Name their folder.")
            return UNUSABLE
        places = policy.places(settings)
        report = asyncio.run(
            testing.test(
                sources.read(places.paths, places.keys),
                given.timeout,
                run=given.only,
                coverage=coverage,
                bundle=engine != "embedded",
            )
        )
        there: tuple[testing.Result, ...] = ()
        if opa is not None and engine != "embedded":
            there = asyncio.run(opa_command.run_tests(opa, report, given.timeout, run=given.only))
    except PolicyError as error:
        return _refused(error)
    differences = opa_command.differences(report.results, there) if engine == "both" else []
    if engine == "opa":
        report = testing.Report(there, report.coverage)
    if given.json or given.format == "json":
        print(json.dumps(report.coverage.as_opa() if report.coverage else [each.as_opa() for each in report.results]))
    else:
        print(_printable(report.text(verbose=given.verbose)))
        if report.coverage is not None:
            print(_printable(report.coverage.text()))
        if engine == "both" and report.results and not differences:
            print(printable(f"The same on {opa}."))
    if not report.results:
        complain(
            f"No test matches {given.only!r}." if given.only else "There are no tests: no test_ rules in *_test.rego."
        )
    for difference in differences:
        complain(str(difference))
    enough = True
    if given.threshold is not None and report.coverage is not None and report.coverage.percent < given.threshold:
        complain(
            f"Code coverage threshold not met: got {report.coverage.percent:.2f} instead of {given.threshold:.2f}."
        )
        enough = False
    return OK if report.passed and not differences and enough else MISTAKEN


def explain(given: argparse.Namespace) -> int:
    """Why a call was decided so. Without a call: what the policy reads, and whether its decisions can be reused."""
    try:
        if given.call is None:
            return _what_is_read(given)
        folder = given.ledger if given.ledger is not None else _ledger(given).path
        file = folder / FILE_NAME if folder.is_dir() else folder
        before = recorded(file, given.call)
        if before is None:
            complain(f"{file}: there is no call {given.call} here.")
            return NOT_FOUND
        return asyncio.run(_explain_call(given, before, History(file.parent / "policies")))
    except PolicyError as error:
        return _refused(error)


async def _explain_call(given: argparse.Namespace, before: Recorded, history: History) -> int:
    result = before.event.get("result")
    facts: dict[str, Any] = {
        "call": given.call,
        "code": before.code,
        "reasons": list(before.reasons),
        "timestamp": before.event.get("timestamp"),
        "recorded": result if isinstance(result, dict) else None,
        "revision": before.revision or None,
        "input": before.event.get("input"),
        "missing": before.missing,
        "again": None,
        "verdict": "cannot be told",
        "note": "",
    }
    question = replayable(before)
    now: Again | None = None
    if not before.event:
        facts["note"] = "No policy was asked: the call was refused before."
    elif question is None:
        facts["note"] = "The input was not recorded, so it cannot be decided on again."
    else:
        engine, facts["note"] = await _engine_of(given, before.revision, history)
        if engine is not None:
            try:
                now = await Explainer().again(engine, before, *question)
            except (InputRefused, EngineUnavailable) as error:
                facts["note"] = f"{error} {error.internal}".rstrip()
            finally:
                await engine.retire()
    if now is not None:
        facts["again"], facts["verdict"] = _again(now), now.verdict
    if given.json:
        print(json.dumps(facts))
    else:
        _show_call(facts, before, now)
    return MISTAKEN if facts["verdict"] == "differs" else OK


async def _engine_of(given: argparse.Namespace, revision: str, history: History) -> tuple[Engine | None, str]:
    """The policy that decided, or the one there is now; and what is to be said about it."""
    kept = history.find(revision)
    if kept is not None:
        return await policy.again(PolicySettings(prove_timeout=_PROVE), kept), ""
    try:
        engine = await policy.load(_policy(given), opa=OpaLine)
    except PolicyError as error:
        return None, f"The policy that decided is not kept any more, and there is no other: {error.problems[0]}"
    except ConfigError:
        return None, "The policy that decided is not kept any more. Name one with --policy or --config."
    if engine.revision == revision:
        return engine, ""
    return engine, "The policy that decided is not kept any more; this is the one that there is now."


def _what_is_read(given: argparse.Namespace) -> int:
    engine = asyncio.run(policy.load(_policy(given), opa=OpaLine))
    if not isinstance(engine, EmbeddedEngine):
        complain("An OPA server decides: it is given the whole input, and every decision is taken afresh.")
        return OK
    if given.json:
        print(json.dumps({"revision": engine.revision, "reads": engine.reads.as_json()}))
    else:
        _say("revision", engine.revision)
        print(_printable(engine.reads.text()))
    return OK


def _show_call(facts: Mapping[str, Any], before: Recorded, now: Again | None) -> None:
    _say("call", str(facts["call"]))
    _say("ended with", before.code or "it is under way")
    for reason in before.reasons:
        _say("because", reason)
    if before.event:
        _say("decided at", str(facts["timestamp"]))
        _say("revision", before.revision or "none")
        for name, value in (facts["recorded"] or {}).items():
            _say(name, value if isinstance(value, str) else json.dumps(value))
        error = before.event.get("error")
        if isinstance(error, dict):
            _say("no decision", str(error.get("message", "")))
        if facts["input"] is not None:
            _say("input", _cut(json.dumps(facts["input"], ensure_ascii=False)))
        if before.missing:
            _say("not recorded", ", ".join(before.missing))
    if facts["note"]:
        print(printable(facts["note"]))
    if now is not None:
        answer: Verdict = facts["verdict"]
        again = str(now.result.get("decision")) if now.result is not None else f"no decision ({now.failure})"
        said = _FAILED if answer == "same" and now.result is None else _SAID[answer]
        print(printable(said.format(again=again)))
        _show_rules(now.explained)


_SAID: Final[Mapping[Verdict, str]] = {
    "same": "Decided again on the recorded input, the answer is the same. It stands on:",
    "differs": "Decided again on the recorded input, the answer is another: {again}. It stands on:",
    "cannot be told": "Decided again on what was recorded, the answer is {again}. What was masked or left out may be "
    "what the decision stood on, so this need not be why:",
}
_FAILED: Final = "Decided again on the recorded input, it fails the same way. It stands on:"


def _show(facts: Mapping[str, Any], found: Explained) -> None:
    for name, value in facts.items():
        if name not in ("rules", "unknown", "reads", "unstable") and value not in (None, [], {}, ""):
            _say(name, ", ".join(value) if isinstance(value, list) else str(value))
    _say("not reused", "; ".join(found.unstable))
    print("because")
    _show_rules(found)


def _show_rules(found: Explained) -> None:
    if found.unknown:
        print(printable(f"  {found.unknown}"))
    if found.rules:
        print(_printable(_indented(told(found.rules))))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _printable(text: str) -> str:
    """Lines for a terminal, whatever names and values policies have."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _say(name: str, value: str) -> None:
    if value:
        print(printable(f"{name:<19} {value}"))


def _cut(text: str) -> str:
    return (
        text if len(text) <= _LONGEST_INPUT else f"{text[:_LONGEST_INPUT]} ... ({len(text)} characters; --json has all)"
    )


def _facts(found: Explained) -> dict[str, Any]:
    decision = found.decision
    answer: dict[str, Any] = {"decision": None, "failure": found.failure}
    if decision is not None:
        answer = {
            "decision": decision.effect,
            "risk_level": decision.risk_level,
            "required_approvals": list(decision.required_approvals),
            "explanation": decision.explanation,
            "obligations": decision.obligations.facts(),
            "revision": decision.revision,
        }
    return {**answer, **_why(found)}


def _again(now: Again) -> dict[str, Any]:
    return {
        **(now.result if now.result is not None else {"decision": None}),
        "failure": now.failure,
        "revision": now.revision,
        **_why(now.explained),
    }


def _why(found: Explained) -> dict[str, Any]:
    return {
        "rules": [asdict(step) for step in found.rules],
        "unknown": found.unknown,
        "reads": list(found.reads),
        "unstable": list(found.unstable),
    }


def _masked(document: bytes, pointers: Sequence[str]) -> Any:
    """The input as it would be recorded."""
    whole: Any = orjson.loads(document)
    call: Any = whole.get("call") if isinstance(whole, dict) else None
    arguments = call.get("arguments") if isinstance(call, dict) else None
    if isinstance(arguments, dict):
        call["arguments"], _ = Mask(pointers).apply(arguments)
    return whole


async def _explained(settings: PolicySettings, document: bytes, now_ns: int) -> Explained:
    engine = await policy.load(settings, opa=OpaLine)
    try:
        return await Explainer().explain(engine, document, now_ns)
    finally:
        await engine.retire()


def _refused(error: PolicyError) -> int:
    complain("\n".join(map(str, error.problems)))
    return MISTAKEN


def _policy(given: argparse.Namespace) -> PolicySettings:
    """What the command line names, with the paths as they were typed; otherwise what the configuration does."""
    paths: list[Path] = given.paths
    settings = PolicySettings() if paths else configuration(given.config, resolve=False).settings.policy
    return settings.model_copy(update={"paths": tuple(paths) or settings.paths, "prove_timeout": _PROVE})


def _ledger(given: argparse.Namespace) -> LedgerSettings:
    """The configured ledger; the default where policies are named and there is no configuration."""
    if given.paths and not os.path.exists(given.config):
        return LedgerSettings()
    return configuration(given.config, resolve=False).settings.ledger


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"is no regular expression: {error}") from None
    if "\0" in text:
        raise argparse.ArgumentTypeError("is no regular expression: it holds a zero byte")
    return text


def _takes_policy(command: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    text = "a .rego file, a folder, data as YAML or JSON, or a bundle"
    command.add_argument(*names, type=Path, metavar="PATH", help=text, **options)
    command.add_argument(
        "--config", type=Path, default=Path("weighbridge.yaml"), metavar="FILE", help="or take its paths"
    )
    command.add_argument("--json", action="store_true", help="for scripts")
