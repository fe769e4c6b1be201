"""The machine a run is measured on: its cores, its memory, its name, as /proc tells them. Linux only."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")

CONTESTANT_CORE, LOAD_CORE = 0, 1
UPSTREAM_CORE = 2 if (os.cpu_count() or 1) > 2 else LOAD_CORE


def family(root: int) -> Iterator[int]:
    """The process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += parents.get(pid, ())


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; nothing for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def rss(root: int) -> int:
    """Resident bytes of a process and its descendants together; shared pages count in each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(fields[21]) * page for pid in family(root) if (fields := _stat(pid)))


def cpu_seconds(root: int) -> float:
    """User and system time of a process and its descendants so far."""
    return sum((int(fields[11]) + int(fields[12])) / _TICKS for pid in family(root) if (fields := _stat(pid)))


def settle(root: int, patience: float = 60.0) -> None:
    """Waits until a process family has nothing left to do: a slow one still works at calls that nobody awaits any more,
    on the core and at the upstream that are the next one's."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = cpu_seconds(root)
        time.sleep(_PAUSE)
        if cpu_seconds(root) - before <= _PAUSE * 0.1:
            return


_PAUSE = 0.2


def busy_seconds() -> dict[int, float]:
    """Per core: seconds not spent idle since the machine started; time stolen by the host is not counted as ours."""
    busy = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _wait, hard, soft = (int(number) / _TICKS for number in numbers[:7])
            busy[int(name[3:])] = user + nice + system + hard + soft
    return busy


def stolen_seconds() -> float:
    """Seconds that the host gave to others while this machine wanted them, over all cores."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / _TICKS


@dataclass(frozen=True, slots=True)
class Usage:
    """Shares of a core between two moments: the process family's own, all of core 0, all of core 1."""

    own: float
    core: float
    load_core: float


class Meter:
    """Reads the cores now, and once more at `stop`."""

    def __init__(self, root: int, clock: float) -> None:
        self._root, self._clock = root, clock
        self._own, self._busy = cpu_seconds(root), busy_seconds()

    def stop(self, clock: float) -> Usage:
        wall = max(clock - self._clock, 1e-9)
        busy = busy_seconds()
        shares = {core: (busy[core] - self._busy[core]) / wall for core in busy}
        own = (cpu_seconds(self._root) - self._own) / wall
        return Usage(own, shares[CONTESTANT_CORE], shares[LOAD_CORE])


def description() -> str:
    """Processor, cores, memory, kernel and interpreter, in one line."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{processor}, {os.cpu_count()} cores, {memory:.1f} GiB, {system}"


@contextlib.contextmanager
def on(core: int) -> Iterator[None]:
    """What is started within this block runs on one core, with all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(core: int) -> None:
    """Keeps this process on one core."""
    os.sched_setaffinity(0, {core})
