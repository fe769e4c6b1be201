"""Policies replaced under load: whether a call is lost, whether one is decided by two revisions, and what it costs."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fleet, wrk
from benchmarks.children import PYTHON, Children
from benchmarks.compare import Say, checked, start_upstream
from benchmarks.contestants import Running
from benchmarks.machine import CONTESTANT_CORE
from benchmarks.scenarios import SCENARIOS
from benchmarks.table import markdown, number

AGENTS = (10, 10_000)
_SAID = "Within the agent's envelope."
"""What the shipped policy says of a call it allows; each of its versions here says it with a number."""
_SCENARIO = SCENARIOS["small"]


@dataclass(frozen=True, slots=True)
class Row:
    """One run: `revisions` decided calls, `mixed` of which were seen with the words of more than one version."""

    agents: int
    reloads: int
    revisions: int
    calls: int
    recorded: int
    mixed: int
    rate: float
    p50: float
    p99: float
    mistake: str


HEAD = (
    "envelopes",
    "policy",
    "calls/s",
    "p50 ms",
    "p99 ms",
    "calls",
    "recorded",
    "revisions that decided",
    "mixed",
    "note",
)


def run(children: Children, folder: Path, seconds: float, say: Say) -> str:
    """The table of all runs. Raises StartFailed."""
    _, upstream = start_upstream(children)
    rows = []
    for agents in AGENTS:
        for swapping in (False, True):
            own = folder / f"{agents}-{'swapped' if swapping else 'left'}"
            own.mkdir()
            rows.append(_row(children, own, agents, upstream, seconds, swapping=swapping, say=say))
    return markdown(HEAD, [_cells(row) for row in rows])


def _row(
    children: Children, folder: Path, agents: int, upstream: int, seconds: float, *, swapping: bool, say: Say
) -> Row:
    policy = folder / "rego"
    shutil.copytree(fleet.POLICY, policy, ignore=shutil.ignore_patterns("*_test.rego", "library"))
    config = fleet.write(folder, agents, upstream, policy=(policy,))
    command = [PYTHON, "-m", "gateway.cli", "serve", "--config", str(config)]
    child, told = children.start(folder.name, command, core=CONTESTANT_CORE, ready="weighbridge: agents ")
    port = int(told.split(" ", 1)[0].rpartition(":")[2])
    expects = (("x-weighbridge-decision", "ALLOW"),)
    running = Running(child, port, fleet.keys(agents), expects=expects, ledger=folder / "ledger")
    mistake = checked(running, _SCENARIO, upstream)
    lua = wrk.script(folder, running, _SCENARIO)
    stop = threading.Event()
    swaps = threading.Thread(target=_swap, args=(policy / "weighbridge.rego", stop))
    before = len(list(_records(folder)))
    if swapping:
        swaps.start()
    try:
        report = wrk.run(port, lua, seconds)
    finally:
        stop.set()
        if swapping:
            swaps.join()
    child.stop()
    records = list(_records(folder))[before:]
    reloads = sum(record["record"] == "reload" and record["result"] == "ok" for record in records)
    words: dict[str, Counter[str]] = {}
    for record in records:
        if record["record"] == "intent":
            result = record["result"]
            revision = record["bundles"]["weighbridge"]["revision"]
            words.setdefault(revision, Counter())[result["explanation"]] += 1
    mixed = sum(sum(said.values()) - max(said.values()) for said in words.values())
    done = sum(record["record"] == "outcome" and record["code"] == "ok" for record in records)
    row = Row(
        agents,
        reloads,
        len(words),
        report.requests,
        done,
        mixed,
        report.rate,
        report.p50,
        report.p99,
        mistake or report.mistake(_SCENARIO.shortest()),
    )
    say(f"{agents} envelopes, {reloads} reloads: {row.rate:.0f} calls/s, p99 {row.p99:.1f} ms, {mixed} mixed")
    return row


def _swap(file: Path, stop: threading.Event) -> None:
    """Replaces the policy every second, whether or not the last one has been loaded by then."""
    text = file.read_text()
    number = 0
    while not stop.wait(1.0):
        number += 1
        new = file.with_name(".new")
        new.write_text(text.replace(_SAID, f"{_SAID[:-1]} (version {number})."))
        new.replace(file)


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / "ledger" / "calls.jsonl").open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _cells(row: Row) -> list[str]:
    policy = f"replaced each second, {row.reloads} loaded" if row.reloads else "left alone"
    # wrk ends in the middle of its last calls, which are recorded and which it does not count.
    lost = max(0, row.calls - row.recorded)
    note = row.mistake or (f"{lost} lost" if lost else "")
    figures = (row.rate, row.p50, row.p99)
    return [
        f"{row.agents:,}",
        policy,
        *map(number, figures),
        f"{row.calls:,}",
        f"{row.recorded:,}",
        str(row.revisions),
        str(row.mixed),
        note,
    ]
