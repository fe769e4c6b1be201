"""`python -m benchmarks`: the comparison (without a command), decisions, choosing, lending, holding, soak, and more."""

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from benchmarks import choosing, compare, decisions, holding, lending, mcp, peers, profile, reload, soak, wrk
from benchmarks.children import ROOT, Children, StartFailed
from benchmarks.contestants import CONTESTANTS
from benchmarks.machine import CONTESTANT_CORE, LOAD_CORE, UPSTREAM_CORE, description, pin, stolen_seconds
from benchmarks.scenarios import SCENARIOS
from benchmarks.table import facts, replaced

DOCUMENT = ROOT / "docs" / "performance.md"

OK, FAILED, UNUSABLE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all went well, 1 when the soak grew, 2 when nothing could be measured."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        pin(LOAD_CORE)
        code: int = given.run(given)
    except (StartFailed, peers.InstallFailed, wrk.WrkMissing) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("\nstopped; everything that was started has been ended", file=sys.stderr)
        return 130
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {words}", file=sys.stderr, flush=True)


def _compare(given: argparse.Namespace) -> int:
    plan = compare.Plan(
        contestants=[*(name for name in CONTESTANTS if not CONTESTANTS[name].peer and name in given.contestants)]
        + [name for name in given.peers if name in CONTESTANTS],
        scenarios=given.scenarios,
        rounds=given.rounds,
        seconds=given.seconds,
        warm_up=given.warm_up,
        paced_seconds=given.paced_seconds,
    )
    load = wrk.present()
    if given.install:
        peers.install(given.peers, _say)
    _say(f"about {plan.minutes():.0f} minutes; Ctrl-C ends everything")
    stolen, began = stolen_seconds(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weighbridge-benchmarks-") as name, Children(Path(name)) as children:
        outcome = compare.run(plan, children, Path(name), _say)
    lost = (stolen_seconds() - stolen) / (time.monotonic() - began)
    pairs = {
        "command": f"`python -m benchmarks {shlex.join(sys.argv[1:])}`".replace(" `", "`"),
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{description()}; time taken by its host during the run: {lost:.1%} of a core",
        "cores": f"contestants on core {CONTESTANT_CORE}, load on core {LOAD_CORE}, upstream on core {UPSTREAM_CORE}",
        "load": f"{load}, {wrk.CONNECTIONS} connections, {plan.seconds:g} s after {plan.warm_up:g} s, medians of "
        f"{plan.rounds} interleaved rounds",
        "versions": ", ".join(f"{key} {value}" for key, value in compare.versions(plan.contestants).items()),
    }
    text = f"{facts(pairs)}\n\n{compare.report(outcome)}"
    print(text)
    if given.write:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), text))
        _say(f"written to {DOCUMENT.relative_to(ROOT)}")
    return OK


def _decisions(given: argparse.Namespace) -> int:
    stolen, began = stolen_seconds(), time.monotonic()
    table = decisions.run(given.count, _say)
    lost = (stolen_seconds() - stolen) / (time.monotonic() - began)
    cores = f"the engine or its client on core {LOAD_CORE}, OPA on core {CONTESTANT_CORE}"
    return _told("decisions", table, lost, cores, write=given.write)


def _choosing(given: argparse.Namespace) -> int:
    stolen, began = stolen_seconds(), time.monotonic()
    table = choosing.run(given.rounds)
    lost = (stolen_seconds() - stolen) / (time.monotonic() - began)
    return _told("choosing", table, lost, f"one process on core {LOAD_CORE}", write=given.write)


def _lending(given: argparse.Namespace) -> int:
    stolen, began = stolen_seconds(), time.monotonic()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lending-", dir=given.folder) as folder:
        table = lending.run(Path(folder), given.calls, given.seconds)
    lost = (stolen_seconds() - stolen) / (time.monotonic() - began)
    return _told("lending", table, lost, f"the gateway's part on core {LOAD_CORE}", write=given.write)


def _holding(given: argparse.Namespace) -> int:
    stolen, began = stolen_seconds(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weighbridge-holding-") as name, Children(Path(name)) as children:
        table = holding.run(children, Path(name), given.calls, given.seconds, given.words, _say)
    lost = (stolen_seconds() - stolen) / (time.monotonic() - began)
    cores = f"the gateway on core {CONTESTANT_CORE}, its agents and people on core {LOAD_CORE}"
    return _told("holding", table, lost, cores, write=given.write)


def _told(command: str, table: str, lost: float, cores: str, *, write: bool) -> int:
    """Prints a command's table with what it was measured on, and puts it into its place in the document."""
    pairs = {
        "command": f"`python -m benchmarks {command}`",
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{description()}; time taken by its host during the run: {lost:.1%} of a core",
        "cores": cores,
    }
    text = f"{facts(pairs)}\n\n{table}"
    print(text)
    if write:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), text, command))
        _say(f"written to {DOCUMENT.relative_to(ROOT)}")
    return OK


def _soak(given: argparse.Namespace) -> int:
    wrk.present()
    with tempfile.TemporaryDirectory(prefix="weighbridge-soak-") as name, Children(Path(name)) as children:
        verdict = soak.run(children, Path(name), given.minutes, given.contestant, given.scenarios, _say)
    print(verdict)
    return OK if verdict.flat else FAILED


def _tools(given: argparse.Namespace) -> int:
    load = wrk.present()
    if given.install:
        peers.install(mcp.PEERS, _say)
    names, scenarios = list(mcp.CONTESTANTS), list(mcp.SCENARIOS)
    plan = compare.Plan(names, scenarios, given.rounds, given.seconds, given.warm_up, paced_seconds=0)
    _say(f"about {plan.minutes():.0f} minutes; Ctrl-C ends everything")
    stolen, began = stolen_seconds(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weighbridge-tools-") as name, Children(Path(name)) as children:
        table = mcp.run(plan, children, Path(name), _say)
    lost = (stolen_seconds() - stolen) / (time.monotonic() - began)
    cores = (
        f"contestants on core {CONTESTANT_CORE}, load on core {LOAD_CORE} ({load}, {wrk.CONNECTIONS} connections, "
        f"{plan.seconds:g} s after {plan.warm_up:g} s, medians of {plan.rounds} interleaved rounds), "
        f"upstream on core {UPSTREAM_CORE}"
    )
    return _told("tools", table, lost, cores, write=given.write)


def _reload(given: argparse.Namespace) -> int:
    wrk.present()
    stolen, began = stolen_seconds(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weighbridge-reload-") as name, Children(Path(name)) as children:
        table = reload.run(children, Path(name), given.seconds, _say)
    lost = (stolen_seconds() - stolen) / (time.monotonic() - began)
    cores = f"the gateway, with the child that proves a policy, on core {CONTESTANT_CORE}, load on core {LOAD_CORE}"
    return _told("reload", table, lost, cores, write=given.write)


def _profile(given: argparse.Namespace) -> int:
    wrk.present()
    with tempfile.TemporaryDirectory(prefix="weighbridge-profile-") as name, Children(Path(name)) as children:
        print(profile.run(children, Path(name), given.scenario, given.seconds, _say))
    return OK


def _install(given: argparse.Namespace) -> int:
    wrk.present()
    peers.install(given.peers, _say)
    return OK


def _several(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """An argparse type: names between commas, each of them known."""

    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name}: choose from {', '.join(choices)}")
        return names

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    ours = [name for name in CONTESTANTS if not CONTESTANTS[name].peer]
    parser.add_argument("--contestants", type=_several(ours), default=ours, help=f"of ours: {','.join(ours)}")
    _takes_peers(parser)
    parser.add_argument("--install", action="store_true", help="install the peers that are missing first")
    _takes_scenarios(parser, list(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=10, help="timed seconds each (default 10)")
    parser.add_argument("--warm-up", type=float, default=3, help="seconds of load before those (default 3)")
    parser.add_argument(
        "--paced-seconds", type=float, default=20, help="seconds at a fixed rate, 0 for none (default 20)"
    )
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave docs/performance.md alone")
    parser.set_defaults(run=_compare)
    commands = parser.add_subparsers(metavar="COMMAND")

    command = commands.add_parser("soak", help="watch the gateway's memory under constant load")
    command.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    command.add_argument("--contestant", choices=ours, default="all-on", help="who (default all-on)")
    _takes_scenarios(command, ["small", "stream"])
    command.set_defaults(run=_soak)

    command = commands.add_parser("decisions", help="how long one decision takes, embedded and on an OPA server")
    command.add_argument("--count", type=int, default=20_000, help="decisions of each kind (default 20000)")
    command.add_argument("--no-write", dest="write", action="store_false", help="leave docs/performance.md alone")
    command.set_defaults(run=_decisions)

    command = commands.add_parser("choosing", help="what a call's way costs: an arm, a node, what is counted of it")
    command.add_argument("--rounds", type=int, default=200, help="rounds of a thousand calls each (default 200)")
    command.add_argument("--no-write", dest="write", action="store_false", help="leave docs/performance.md alone")
    command.set_defaults(run=_choosing)

    command = commands.add_parser("lending", help="what a call's money costs: borrowed, settled, journalled")
    command.add_argument("--calls", type=int, default=100_000, help="calls of each row (default 100000)")
    command.add_argument("--seconds", type=float, default=20.0, help="how long turns are timed (default 20)")
    command.add_argument("--folder", type=Path, default=Path("var"), help="the file system that is written to")
    command.add_argument("--no-write", dest="write", action="store_false", help="leave docs/performance.md alone")
    command.set_defaults(run=_lending)

    command = commands.add_parser(
        "holding", help="calls that wait for people: memory, idle CPU, how soon a word counts"
    )
    command.add_argument("--calls", type=int, default=10_000, help="held at once (default 10000)")
    command.add_argument("--seconds", type=float, default=20.0, help="watched while nothing happens (default 20)")
    command.add_argument("--words", type=int, default=200, help="decisions that are timed (default 200)")
    command.add_argument("--no-write", dest="write", action="store_false", help="leave docs/performance.md alone")
    command.set_defaults(run=_holding)

    command = commands.add_parser("reload", help="replace the policy under load: calls lost, revisions mixed, latency")
    command.add_argument("--seconds", type=float, default=20, help="of load in each run (default 20)")
    command.add_argument("--no-write", dest="write", action="store_false", help="leave docs/performance.md alone")
    command.set_defaults(run=_reload)

    command = commands.add_parser("tools", help="tool calls of MCP: bare, everything on, and another gateway")
    command.add_argument("--install", action="store_true", help="install the other gateway first")
    command.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    command.add_argument("--seconds", type=float, default=10, help="timed in each round (default 10)")
    command.add_argument("--warm-up", type=float, default=3, help="before that (default 3)")
    command.add_argument("--no-write", dest="write", action="store_false", help="leave docs/performance.md alone")
    command.set_defaults(run=_tools)

    command = commands.add_parser("profile", help="show where the gateway spends its time")
    command.add_argument(
        "--scenario", choices=[*SCENARIOS, *mcp.SCENARIOS], default="small", help="under which load (default small)"
    )
    command.add_argument("--seconds", type=float, default=5, help="for how long (default 5)")
    command.set_defaults(run=_profile)

    command = commands.add_parser("install", help="install the peers and wrk")
    _takes_peers(command)
    command.set_defaults(run=_install)
    return parser


def _takes_peers(parser: argparse.ArgumentParser) -> None:
    known = [name for name in peers.PEERS if name not in mcp.PEERS]
    parser.add_argument("--peers", type=_several(known), default=known, help=f"of others: {','.join(known)}")


def _takes_scenarios(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    parser.add_argument("--scenarios", type=_several(list(SCENARIOS)), default=default, help=",".join(SCENARIOS))


if __name__ == "__main__":
    raise SystemExit(main())
