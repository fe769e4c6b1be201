"""The soak: constant load on the gateway with everything on, and its memory sampled until a slope can be told."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import wrk
from benchmarks.children import Children
from benchmarks.compare import Say, checked, start_upstream
from benchmarks.contestants import CONTESTANTS
from benchmarks.machine import rss
from benchmarks.scenarios import SCENARIOS
from benchmarks.table import slope

EVERY = 5.0
"""Seconds between samples."""

FLAT = 100.0
"""KiB a minute up to which memory counts as flat: 6 MiB an hour is within what allocators and logs breathe."""

WARM_UP = 0.25
"""Share of the samples that is left out at the beginning: pools, caches and the allocator fill up first."""

FEWEST = 18
"""Samples after the warm-up from which a slope is told, which makes two minutes the shortest soak."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """KiB a minute after the warm-up, with the figures it rests on; `mistake` says why it does not count."""

    slope: float
    first_mib: float
    last_mib: float
    samples: int
    calls: int
    mistake: str = ""

    @property
    def flat(self) -> bool:
        return not self.mistake and self.slope <= FLAT

    def __str__(self) -> str:
        if self.mistake:
            return f"soak: INVALID: {self.mistake}"
        word = "flat" if self.flat else "GROWING"
        return (
            f"soak: {word}: {self.slope:+.1f} KiB/min (flat is up to {FLAT:g}) over {self.samples} samples after "
            f"warm-up, {self.first_mib:.1f} > {self.last_mib:.1f} MiB, {self.calls} calls"
        )


def judge(points: Sequence[tuple[float, int]], calls: int, mistake: str = "") -> Verdict:
    """Points are (seconds, bytes), warm-up included."""
    kept = points[int(len(points) * WARM_UP) :]
    if mistake or len(kept) < FEWEST:
        return Verdict(0, 0, 0, len(kept), calls, mistake or f"{len(kept)} samples tell no slope; soak for longer")
    rise = slope([(seconds / 60, size / 1024) for seconds, size in kept])
    return Verdict(rise, kept[0][1] / 2**20, kept[-1][1] / 2**20, len(kept), calls)


def run(
    children: Children, folder: Path, minutes: float, contestant: str, scenarios: Sequence[str], say: Say
) -> Verdict:
    """Loads one contestant with the scenarios in turn. Raises StartFailed."""
    _, upstream = start_upstream(children)
    running = CONTESTANTS[contestant].start(children, folder, upstream)
    scripts = {}
    for name in scenarios:
        if mistake := checked(running, SCENARIOS[name], upstream):
            return judge([], 0, f"{name}: {mistake}")
        scripts[name] = wrk.script(folder, running, SCENARIOS[name])
    points: list[tuple[float, int]] = []
    calls = 0
    start = time.monotonic()
    while (now := time.monotonic() - start) < minutes * 60:
        name = scenarios[len(points) % len(scenarios)]
        load = wrk.run(running.port, scripts[name], EVERY)
        calls += load.requests
        if mistake := load.mistake(SCENARIOS[name].shortest()):
            return judge(points, calls, f"{name} after {now:.0f} s: {mistake}")
        points.append((time.monotonic() - start, rss(running.child.pid)))
        say(f"{points[-1][0]:5.0f} s  {points[-1][1] / 2**20:7.1f} MiB  {load.rate:7.0f} calls/s  {name}")
    return judge(points, calls)
