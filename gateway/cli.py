"""The `weighbridge` command: everything an operator does from a shell."""

import argparse
import asyncio
import contextlib
import io
import json
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.load import Loaded
from config.redis_url import SCHEMES, RedisUrl
from config.secrets import Secret
from config.settings import PolicySettings
from gateway import (
    agent_commands,
    approval_commands,
    budget_commands,
    bundle_commands,
    foresight,
    policy_commands,
    route_commands,
    tool_commands,
    trial_commands,
)
from gateway.carrier import Origin
from gateway.ledger import FILE_NAME
from gateway.logs import configure, printable
from gateway.opa import OpaLine
from gateway.reader import Reader
from gateway.records import DECISIONS
from gateway.state import redis_check
from gateway.supervise import AddressUnavailable, Supervisor
from gateway.terminal import MISTAKEN, OK, UNUSABLE, complain, configuration
from gateway.tools import operations
from policies import load as policy
from policies.embedded import EmbeddedEngine
from policies.errors import PolicyError
from policies.lint import scattered
from policies.sources import read

_GLANCE = 0.2
"""Seconds between two glances at a ledger that is followed."""

_HEADS = ("time", "call", "agent", "operation", "model", "decision", "code", "target", "took", "in+out", "cost")
_WIDTHS = (8, 26, 16, 12, 20, 14, 18, 16, 9, 10, 0)
"""What `ledger tail` shows of a call, its tokens as those it sent and those it got, and how wide at least."""

_REACH = 3.0
"""Seconds in which a target has to accept a connection to count as reachable."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = given.run(given)
    except ConfigError as error:
        complain(str(error))
        return MISTAKEN
    except BrokenPipeError:
        # Whoever read has left; what is still buffered for them must not be an error when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        complain(f"{place}{error.strerror or type(error).__name__}.")
        return UNUSABLE
    except KeyboardInterrupt:
        return 130
    return code


def serve(given: argparse.Namespace) -> int:
    if given.workers != 1:
        complain("--workers: this version has one; start several gateways and let a Redis server keep their `state`.")
        return UNUSABLE
    loaded = configuration(given.config)
    configure(loaded.settings.log.level, loaded.settings.log.format)
    for warning in loaded.warnings:
        logging.getLogger("weighbridge.config").warning("%s", warning)
    try:
        supervisor = Supervisor(given.config.resolve(), loaded.settings)
    except AddressUnavailable as error:
        complain(f"{error} Free the address, or write another under `listen` or `admin.listen`.")
        return UNUSABLE
    return supervisor.run()


def check(given: argparse.Namespace) -> int:
    """Configuration, policies (the one on trial, too), reachability, places to write to, prices.

    A target or a tool that is down is a warning: it may be up when calls come. So is a file that cannot be written: the
    gateway may run as somebody else.
    """
    # What keeps an engine from deciding is among the warnings; said as it happens, it would be said twice.
    logging.basicConfig(handlers=[logging.NullHandler()])
    mistakes: list[str] = []
    warnings: list[str] = []
    try:
        loaded = configuration(given.config)
    except ConfigError as error:
        mistakes = [str(mistake) for mistake in error.mistakes]
    else:
        warnings = [str(warning) for warning in loaded.warnings]
        mistakes += [str(mistake) for mistake in operations.mistakes(loaded.settings.tools)]
        for settings in (loaded.settings.policy, policy.on_trial(loaded.settings.policy)):
            if settings is None:
                continue
            try:
                warnings += asyncio.run(_undecided(settings))
                told = _pointless(loaded, settings)
                warnings += [each for each in told if each not in warnings]
            except PolicyError as error:
                told = [str(problem) for problem in error.problems]
                mistakes += [each for each in told if each not in mistakes]
        warnings += asyncio.run(_unreachable(loaded))
        warnings += asyncio.run(_state(loaded.settings.state))
        warnings += foresight.unfound(loaded.settings)
        warnings += [*foresight.unwritable(loaded.settings), *map(str, foresight.unpriced(loaded))]
    if given.json:
        print(json.dumps({"ok": not mistakes, "mistakes": mistakes, "warnings": warnings}))
        return MISTAKEN if mistakes else OK
    for mistake in mistakes:
        print(printable(f"mistake  {mistake}"))
    for warning in warnings:
        print(printable(f"warning  {warning}"))
    if not mistakes:
        print(printable(f"ok       {given.config}"))
    return MISTAKEN if mistakes else OK


async def _undecided(settings: PolicySettings) -> list[str]:
    """Loads the policies. What keeps a loaded one from deciding is a warning, too, be it of some calls only. Raises
    PolicyError."""
    engine = await policy.load(settings, opa=OpaLine)
    failure, doubts = engine.failure, []
    if isinstance(engine, EmbeddedEngine):
        trees = json.loads(engine.interpreter()[0].get_ast_as_json())
        doubts = [str(each) for each in scattered(trees)]
    await engine.retire()
    return [f"policy: {failure}.", *doubts] if failure is not None else doubts


def _pointless(loaded: Loaded, settings: PolicySettings) -> list[str]:
    """Envelopes that are of nothing here, of policies that load. Raises PolicyError."""
    if settings.engine == "opa" or not settings.paths:
        return []
    places = policy.places(settings)
    return list(foresight.pointless(loaded.settings, read(places.paths, places.keys)))


async def _unreachable(loaded: Loaded) -> list[str]:
    async def reach(what: str, url: str) -> str | None:
        origin, _ = Origin.parse(url)
        try:
            async with asyncio.timeout(_REACH):
                _, writer = await asyncio.open_connection(origin.host, origin.port)
        except (OSError, TimeoutError):
            return f"{what}: nothing answers at {origin.host}:{origin.port}."
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return None

    asked = [(f"target {target.name}", url) for target in loaded.settings.targets for url in target.nodes]
    asked += [(f"tool {tool.name}", tool.url) for tool in loaded.settings.tools if tool.url]
    answers = await asyncio.gather(*(reach(*each) for each in asked))
    return [answer for answer in answers if answer is not None]


async def _state(place: str | Secret) -> list[str]:
    """What speaks against the servers of the state."""
    url = place if isinstance(place, str) else place.reveal()
    return await redis_check.complaints(RedisUrl.parse(url)) if url.startswith(SCHEMES) else []


def tail(given: argparse.Namespace) -> int:
    """The last records, and with --follow those that come."""
    path = given.path if given.path is not None else configuration(given.config, resolve=False).settings.ledger.path
    path = path / FILE_NAME if path.is_dir() else path
    shown: Callable[[dict[str, Any]], str] = _as_json if given.json else _row
    try:
        reader = Reader(path)
    except FileNotFoundError:
        complain(f"{path}: there is no ledger here yet.")
        return UNUSABLE
    with contextlib.ExitStack() as opened:
        opened.enter_context(reader)
        if not given.json and sys.stdout.isatty():  # whoever counts lines in a pipe gets records alone
            print(_aligned(_HEADS), flush=True)
        for record in deque(_wanted(reader, given), maxlen=given.lines):
            print(shown(record), flush=True)
        while given.follow:
            time.sleep(_GLANCE)
            replaced = not reader.is_at(path)
            for record in _wanted(reader, given):
                print(shown(record), flush=True)
            if replaced:
                with contextlib.suppress(FileNotFoundError):
                    reader = opened.enter_context(Reader(path))
    return OK


def _wanted(records: Iterable[dict[str, Any]], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    return (record for record in records if given.all or record.get("record") not in DECISIONS)


def _row(record: dict[str, Any]) -> str:
    """One line for a person, whatever the record holds: a file can be damaged, and callers choose what is in it."""
    if record.get("record") in DECISIONS:
        record = _decided(record)
    at = _time_of_day(record.get("at"))
    if record.get("record") not in (*DECISIONS, "outcome"):
        facts = " ".join(f"{key}={_fact(value)}" for key, value in record.items() if key not in ("record", "at"))
        return printable(f"{at}  {_cell(record.get('record', '?')):<7} {facts}")
    seconds, usage = record.get("seconds"), record.get("usage")
    tokens = ""
    if isinstance(usage, dict):
        tokens = f"{_cell(usage.get('input_tokens', 0))}+{_cell(usage.get('output_tokens', 0))}"
    cost = "unpriced" if record.get("unpriced") is True else _dollars(record.get("cost_usd"))
    return _aligned(
        (
            at,
            _cell(record.get("call")),
            _cell(record.get("agent")),
            _cell(record.get("operation") or record.get("path")),
            _cell(record.get("model")),
            _cell(record.get("decision")),
            _cell(record.get("code", record.get("record"))),
            _cell(record.get("target")),
            f"{seconds * 1000:.1f}ms" if isinstance(seconds, float) else "",
            tokens,
            cost,
        )
    )


def _aligned(cells: Sequence[str]) -> str:
    return "  ".join(f"{printable(text):<{width}}" for text, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _decided(event: dict[str, Any]) -> dict[str, Any]:
    """What a decision log event and an outcome both tell, under the outcome's names."""
    question, result = event.get("input"), event.get("result")
    question = question if isinstance(question, dict) else {}
    call, asked_at = question.get("call"), question.get("time")
    return {
        "record": event["record"],
        "call": event.get("call"),
        "at": asked_at.get("unix_ns") if isinstance(asked_at, dict) else None,
        "agent": event.get("requested_by"),
        "operation": call.get("operation") if isinstance(call, dict) else None,
        "model": call.get("target") if isinstance(call, dict) else None,
        "decision": result.get("decision") if isinstance(result, dict) else None,
    }


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else _as_json(value)


def _fact(value: object) -> str:
    """A cell that is told from the next fact, whatever people have written."""
    cell = _cell(value)
    return cell if cell != value or re.fullmatch(r"[^\s\"=]+", cell) else _as_json(cell)


def _dollars(amount: object) -> str:
    return f"${amount:.6f}" if isinstance(amount, int | float) else ""


def _as_json(value: object) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return '"(nests too deep to be shown)"'


def _time_of_day(at: object) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(float(str(at)) / 1e9))
    except (ValueError, OverflowError, OSError):
        return "--:--:--"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="weighbridge", description="The gate between AI agents and what they touch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="serve agents and the admin API")
    _takes_config(command)
    command.add_argument("--workers", type=int, default=1, metavar="N", help="worker processes (this version: 1)")
    command.set_defaults(run=serve)

    command = commands.add_parser("check", help="check configuration, policies and reachability")
    _takes_config(command)
    command.add_argument("--json", action="store_true", help="for scripts")
    command.set_defaults(run=check)

    rules = policy_commands.add(commands)
    bundle_commands.add(rules)
    trial_commands.add(rules)
    budget_commands.add(commands)
    route_commands.add(commands)
    approval_commands.add(commands)
    agent_commands.add(commands)
    tool_commands.add(commands)

    ledger = commands.add_parser("ledger", help="read the record").add_subparsers(required=True, metavar="COMMAND")
    command = ledger.add_parser("tail", help="show the last records")
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument("--config", type=Path, metavar="FILE", help="the gateway's configuration")
    place.add_argument("--path", type=Path, help="the ledger's folder or file")
    command.add_argument("-n", "--lines", type=_count, default=20, metavar="N", help="how many (default 20)")
    command.add_argument("-f", "--follow", action="store_true", help="go on with new ones")
    command.add_argument("--all", action="store_true", help="decisions too, not only outcomes")
    command.add_argument("--json", action="store_true", help="whole records, one JSON object a line")
    command.set_defaults(run=tail)
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise argparse.ArgumentTypeError("write a number from 0 to 999999999")
    return int(text)


def _takes_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, required=True, metavar="FILE", help="the YAML configuration")


if __name__ == "__main__":
    raise SystemExit(main())
