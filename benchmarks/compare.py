"""The comparison: all contestants in front of one upstream, one measured at a time, in turns, so that drift cancels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import httpx2

from benchmarks import pace, peers, wrk
from benchmarks.children import PYTHON, Child, Children, StartFailed
from benchmarks.contestants import CONTESTANTS, Running
from benchmarks.machine import UPSTREAM_CORE, Meter, rss, settle
from benchmarks.scenarios import LONG, SCENARIOS, SHORT, Scenario
from benchmarks.table import GOAL_HEAD, HEAD, Goal, Results, Sample, goal_rows, invalid, markdown, number, rows
from benchmarks.upstream import READY

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does. `seconds` are timed after `warm_up`, for each contestant, scenario and round."""

    contestants: Sequence[str]
    scenarios: Sequence[str]
    rounds: int = 3
    seconds: float = 10
    warm_up: float = 3
    rate: float = 500
    stream_rate: float = 50
    paced_seconds: float = 20

    def minutes(self) -> float:
        turns = len(self.contestants) * self.rounds
        each = len(self.scenarios) * (self.seconds + self.warm_up)
        return (turns * each + (len(self.contestants) + 1) * 2 * self.paced_seconds) / 60


@dataclass(slots=True)
class Paced:
    """Latencies at a fixed rate: contestant -> latencies, and the upstream's own under `direct`."""

    title: str
    rate: float
    latencies: dict[str, pace.Latencies] = field(default_factory=dict)

    def added_p99(self, contestant: str) -> float | None:
        """Milliseconds that a contestant adds to the upstream's own p99."""
        pair = [self.latencies.get(name) for name in (contestant, "direct")]
        if any(each is None or each.mistake or not each.whole for each in pair):
            return None
        ours, theirs = (each.p99() for each in pair if each is not None)
        return ours - theirs


@dataclass(slots=True)
class Outcome:
    """All that a run found."""

    results: list[Results]
    paced: list[Paced]
    absent: dict[str, str]

    def of(self, scenario: str) -> Results:
        return next((each for each in self.results if each.scenario == scenario), Results(scenario))


def start_upstream(children: Children, module: str = "benchmarks.upstream") -> tuple[Child, int]:
    """Raises StartFailed."""
    child, told = children.start("upstream", [PYTHON, "-m", module], core=UPSTREAM_CORE, ready=READY)
    return child, int(told)


def checked(running: Running, scenario: Scenario, upstream: int) -> str:
    """What is wrong with one call of the scenario, from its answer back to what the upstream got; or nothing."""
    headers = {
        "content-type": "application/json",
        **({"authorization": f"Bearer {running.keys[0]}"} if running.keys[0] else {}),
        **dict((*running.headers, *scenario.headers)),
    }
    if scenario.in_session and running.sessions[0]:
        headers[wrk.SESSION] = running.sessions[0]
    try:
        with httpx2.Client(timeout=60, trust_env=False) as client:
            url = f"http://127.0.0.1:{running.port}{running.path}"
            answer = client.post(url, content=scenario.body, headers=headers)
            mistake = scenario.mistake(answer.status_code, answer.content)
            missing = [name for name, value in running.expects if answer.headers.get(name) != value]
            arrived = client.get(f"http://127.0.0.1:{upstream}/last").content
    except httpx2.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if missing and not mistake:
        mistake = f"the answer lacks {', '.join(missing)}"
    return mistake or scenario.arrived(arrived)


def timed(running: Running, scenario: Scenario, lua: Path, plan: Plan, upstream: int) -> Sample:
    """One checked, warmed and timed run."""
    mistake = checked(running, scenario, upstream)
    if mistake:
        return Sample(invalid=mistake)
    before, recorded = rss(running.child.pid), running.recorded()
    warmed = wrk.run(running.port, lua, plan.warm_up).requests
    while 0 < warmed < len(running.keys) + 2 * wrk.CONNECTIONS:
        # Each run of the load begins with the first agent again, so one that comes to the last has to be long enough.
        warmed = wrk.run(running.port, lua, plan.warm_up * len(running.keys) / warmed * 1.5).requests
    meter = Meter(running.child.pid, time.perf_counter())
    report = wrk.run(running.port, lua, plan.seconds)
    usage = meter.stop(time.perf_counter())
    mistake = report.mistake(scenario.shortest())
    calls, lines = warmed + report.requests, running.recorded() - recorded
    if running.ledger is not None and lines < calls and not mistake:
        mistake = f"{calls} calls left {lines} lines in the ledger"
    return Sample(
        rate=report.rate,
        p50=report.p50,
        p99=report.p99,
        own=usage.own,
        core=usage.core,
        load_core=usage.load_core,
        rss_before=before,
        rss_after=rss(running.child.pid),
        invalid=mistake,
    )


def run(plan: Plan, children: Children, folder: Path, say: Say) -> Outcome:
    """Starts everybody, measures in turns, and returns what was found. Raises StartFailed for the upstream."""
    _, upstream = start_upstream(children)
    running: dict[str, Running] = {}
    absent: dict[str, str] = {}
    for name in plan.contestants:
        contestant = CONTESTANTS[name]
        if contestant.peer and not peers.installed(contestant.peer):
            absent[name] = "not installed (use --install)"
            continue
        say(f"starting {name} ...")
        try:
            running[name] = contestant.start(children, folder, upstream)
        except StartFailed as error:
            absent[name] = str(error)
            say(str(error))
    outcome = Outcome([Results(name) for name in plan.scenarios], [], absent)
    scripts = {
        (name, scenario): wrk.script(folder, each, SCENARIOS[scenario])
        for name, each in running.items()
        for scenario in plan.scenarios
    }
    for turn in range(1, plan.rounds + 1):
        for results in outcome.results:
            scenario = SCENARIOS[results.scenario]
            for name, each in running.items():
                sample = timed(each, scenario, scripts[name, scenario.name], plan, upstream)
                settle(each.child.pid)
                results.add(name, sample)
                shown = invalid(sample.invalid) if sample.invalid else f"{number(sample.rate)} calls/s"
                say(f"round {turn}/{plan.rounds}  {scenario.name:<7} {name:<11} {shown}")
    if plan.paced_seconds:
        outcome.paced = _paced(plan, running, upstream, say)
    return outcome


def _paced(plan: Plan, running: dict[str, Running], upstream: int, say: Say) -> list[Paced]:
    direct = ("direct", upstream, ["any-key"], ())
    found = []
    for name, rate in (("small", plan.rate), ("stream", plan.stream_rate)):
        if name not in plan.scenarios:
            continue
        scenario, paced = SCENARIOS[name], Paced(SCENARIOS[name].title, rate)
        found.append(paced)
        for who, port, keys, headers in (direct, *((n, r.port, r.keys, r.headers) for n, r in running.items())):
            source = pace.requests(scenario, keys, headers)
            warm = pace.run(port, source, scenario, rate, min(2.0, plan.paced_seconds))
            # Who cannot keep up in two seconds would only pile calls up for longer.
            latencies = warm if warm.mistake else pace.run(port, source, scenario, rate, plan.paced_seconds)
            paced.latencies[who] = latencies
            if who in running:
                settle(running[who].child.pid)
            shown = latencies.mistake or f"p50 {number(latencies.p50())} ms, p99 {number(latencies.p99())} ms"
            say(f"{rate:g} calls/s  {scenario.name:<7} {who:<11} {shown}")
    return found


_PACED_HEAD = ("contestant", "first p50 ms", "first p99 ms", "p50 ms", "p99 ms", "added p99 ms", "note")


def _paced_rows(paced: Paced) -> list[list[str]]:
    table = []
    for name, latencies in paced.latencies.items():
        if latencies.mistake:
            table.append([name, *["-"] * 5, invalid(latencies.mistake)])
            continue
        figures = (latencies.first_p50(), latencies.first_p99(), latencies.p50(), latencies.p99())
        added = paced.added_p99(name) if name != "direct" else None
        table.append([name, *map(number, figures), number(added), "the upstream alone" if name == "direct" else ""])
    return table


def goals(outcome: Outcome) -> list[Goal]:
    """The performance budget, measured."""
    small, stream, long = (outcome.of(name) for name in ("small", "stream", "long"))
    added = next((paced.added_p99("all-on") for paced in outcome.paced if paced.latencies and paced.rate >= 500), None)
    return [
        Goal("bare, of Envoy", small.ratio("bare", "envoy"), 0.6),
        Goal("everything on, of Envoy", small.ratio("all-on", "envoy"), 0.5),
        Goal("every decision evaluated afresh, of Envoy", small.ratio("all-on-afresh", "envoy"), 0.2),
        Goal("everything on, times LiteLLM", small.ratio("all-on", "litellm"), 45),
        Goal("everything on, times Portkey", small.ratio("all-on", "portkey"), 5),
        Goal(f"{SHORT} events with everything on, of bare", stream.ratio("all-on", "bare"), 0.8),
        Goal(f"{LONG} events with everything on, of bare", long.ratio("all-on", "bare"), 0.8),
        Goal("the same for each second of its core", long.ratio("all-on", "bare", of=Sample.per_core), 0.8),
        Goal("10,000 agents, of 10 agents", small.ratio("all-on-10k", "all-on"), 0.9),
        Goal("added p99 at 500 calls/s, ms", added, 2.0, at_most=True),
    ]


def report(outcome: Outcome) -> str:
    """The run's tables as Markdown."""
    parts = ["### Goals", markdown(GOAL_HEAD, goal_rows(goals(outcome)))]
    for results in outcome.results:
        parts += [f"### {_capital(SCENARIOS[results.scenario].title)}", markdown(HEAD, rows(results))]
    for paced in outcome.paced:
        title = f"### {_capital(paced.title)}, {paced.rate:g} a second"
        parts += [title, markdown(_PACED_HEAD, _paced_rows(paced))]
    if outcome.absent:
        reasons = (f"- {name}: {reason.splitlines()[0]}" for name, reason in outcome.absent.items())
        parts += ["### Not measured", "\n".join(reasons)]
    return "\n\n".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def versions(contestants: Sequence[str]) -> dict[str, str]:
    """What took part, by version."""
    ours = ("uvicorn", "uvloop", "httptools", "gordon-to-regorus")
    found = {name: metadata.version(name) for name in ours}
    for name in contestants:
        peer = CONTESTANTS[name].peer
        if peer:
            found[peers.PEERS[peer].package] = peers.PEERS[peer].version
    if "portkey" in contestants:
        found["node"] = peers.node()
    return found
