"""The `weighbridge policy` commands: what policy authors try, test and ask from a shell."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from config.settings import PolicySettings
from gateway.logs import printable
from gateway.opa import OpaLine
from gateway.terminal import MISTAKEN, OK, UNUSABLE, complain, configuration
from policies import load as policy
from policies import sources, testing
from policies.decision import Decision
from policies.errors import EngineUnavailable, InputRefused, PolicyError, Undecided

_PROVE: Final = 30.0
"""Seconds in which a policy given on the command line has to prove itself."""

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def add(commands: Commands[argparse.ArgumentParser]) -> Commands[argparse.ArgumentParser]:
    """Adds `policy` to the commands, and returns what takes its own subcommands."""
    rules = commands.add_parser("policy", help="try, test and explain policies").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = rules.add_parser("eval", help="the decision on an input")
    command.add_argument("input", type=Path, metavar="INPUT.json", help="the input as JSON; - for standard input")
    _takes_policy(command, "--policy", dest="paths", action="append", default=[])
    command.set_defaults(run=evaluate)
    command = rules.add_parser("test", help="run test_ rules of *_test.rego files")
    _takes_policy(command, "paths", nargs="*")
    command.add_argument("-v", "--verbose", action="store_true", help="show tests that pass, too")
    command.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for all tests (default 60)")
    command.set_defaults(run=test)
    return rules


def evaluate(given: argparse.Namespace) -> int:
    """The decision of a policy on an input, as the gateway would take it."""
    try:
        text = (sys.stdin.buffer.read() if str(given.input) == "-" else given.input.read_bytes()) or b"{}"
        decision = asyncio.run(_decided(_policy(given), text))
    except PolicyError as error:
        complain("\n".join(map(str, error.problems)))
        return MISTAKEN
    except OSError as error:
        complain(f"{given.input}: {error.strerror}.")
        return UNUSABLE
    except (InputRefused, Undecided, EngineUnavailable) as error:
        complain(f"{error} {error.internal}".rstrip())
        return MISTAKEN
    facts = {
        "decision": decision.effect,
        "risk_level": decision.risk_level,
        "required_approvals": list(decision.required_approvals),
        "explanation": decision.explanation,
        "obligations": decision.obligations.facts(),
        "revision": decision.revision,
    }
    if given.json:
        print(json.dumps(facts))
        return OK
    for name, value in facts.items():
        if value not in (None, [], {}, ""):
            print(printable(f"{name:<19} {', '.join(value) if isinstance(value, list) else value}"))
    return OK


def test(given: argparse.Namespace) -> int:
    """Runs the `test_` rules of `*_test.rego` files."""
    try:
        report = asyncio.run(testing.test(sources.read(_policy(given).paths), given.timeout))
    except PolicyError as error:
        complain("\n".join(map(str, error.problems)))
        return MISTAKEN
    if given.json:
        print(json.dumps([dataclasses.asdict(result) for result in report.results]))
    else:
        print(report.text(verbose=given.verbose))
    return OK if report.passed else MISTAKEN


def _policy(given: argparse.Namespace) -> PolicySettings:
    """What the command line names, with the paths as they were typed; otherwise what the configuration does."""
    paths: list[Path] = given.paths
    settings = PolicySettings() if paths else configuration(given.config, resolve=False).settings.policy
    return settings.model_copy(update={"paths": tuple(paths) or settings.paths, "prove_timeout": _PROVE})


async def _decided(settings: PolicySettings, document: bytes) -> Decision:
    engine = await policy.load(settings, opa=OpaLine)
    try:
        return await engine.evaluate(document, time.time_ns())
    finally:
        await engine.retire()


def _takes_policy(command: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    text = "a .rego file, a folder, or data as YAML or JSON"
    command.add_argument(*names, type=Path, metavar="PATH", help=text, **options)
    command.add_argument(
        "--config", type=Path, default=Path("weighbridge.yaml"), metavar="FILE", help="or take its paths"
    )
    command.add_argument("--json", action="store_true", help="for scripts")
