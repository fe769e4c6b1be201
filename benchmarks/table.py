"""The arithmetic of a run: medians, ratios taken within a round, slopes, and the tables people read. No I/O."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run of one contestant: calls a second, milliseconds, shares of a core (1.0 is all of it), bytes.

    `invalid` says why the run does not count; its figures are then not used.
    """

    rate: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    own: float = 0.0
    core: float = 0.0
    load_core: float = 0.0
    rss_before: int = 0
    rss_after: int = 0
    invalid: str = ""

    def per_core(self) -> float:
        """Calls for each second of a core that the contestant used itself: it compares those the load cannot fill."""
        return self.rate / self.own if self.own else 0.0

    def per_second(self) -> float:
        return self.rate


Measure = Callable[[Sample], float]


@dataclass(slots=True)
class Results:
    """Samples of one scenario: contestant -> one sample a round, in the order of the rounds."""

    scenario: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, contestant: str, sample: Sample) -> None:
        self.samples.setdefault(contestant, []).append(sample)

    def invalid(self, contestant: str) -> str:
        """Why this contestant's row does not count, or nothing."""
        return next((sample.invalid for sample in self.samples.get(contestant, ()) if sample.invalid), "")

    def median(self, contestant: str, of: Measure = Sample.per_second) -> float | None:
        if contestant not in self.samples or self.invalid(contestant):
            return None
        return statistics.median(of(sample) for sample in self.samples[contestant])

    def ratio(self, contestant: str, base: str, of: Measure = Sample.per_second) -> float | None:
        """The median of the rounds' ratios: what slowed a whole round down slowed both sides of its ratio."""
        if self.median(contestant, of) is None or not self.median(base, of):
            return None
        pairs = zip(self.samples[contestant], self.samples[base], strict=False)
        return statistics.median(of(ours) / of(theirs) for ours, theirs in pairs)


BUSY = 0.9
"""Share of its core from which on a contestant counts as limited by that core."""

OTHERS = 0.1
"""Share of a core that others may use before a row says so: the run was then not on a quiet machine."""

HEAD = (
    "contestant",
    "calls/s",
    "of envoy",
    "of bare",
    "calls/core s",
    "p50 ms",
    "p99 ms",
    "core 0 own/all",
    "core 1",
    "RSS MiB before > after",
    "note",
)


def rows(results: Results, bases: Sequence[str] = ("envoy", "bare")) -> list[list[str]]:
    """One row a contestant, under HEAD."""
    table = []
    for contestant, samples in results.samples.items():
        reason = results.invalid(contestant)
        if reason:
            table.append([contestant, *["-"] * (len(HEAD) - 2), invalid(reason)])
            continue
        own = statistics.median(sample.own for sample in samples)
        core = statistics.median(sample.core for sample in samples)
        table.append(
            [
                contestant,
                number(results.median(contestant)),
                *(number(results.ratio(contestant, base)) for base in bases),
                number(results.median(contestant, Sample.per_core)),
                number(statistics.median(sample.p50 for sample in samples)),
                number(statistics.median(sample.p99 for sample in samples)),
                f"{own:.0%} / {core:.0%}",
                f"{statistics.median(sample.load_core for sample in samples):.0%}",
                f"{samples[0].rss_before / 2**20:.0f} > {samples[-1].rss_after / 2**20:.0f}",
                _note(own, core),
            ]
        )
    return table


def _note(own: float, core: float) -> str:
    """What to think of before the row is believed."""
    if core - own > OTHERS:
        return "others used its core"
    return "" if own >= BUSY else "not limited by its core"


def invalid(reason: str) -> str:
    """The reason's first line, as much of it as a table bears."""
    line = reason.strip().split("\n", 1)[0].replace("|", "/")
    return f"INVALID: {line if len(line) <= _LONGEST else line[: _LONGEST - 1] + '…'}"


_LONGEST = 90


def number(value: float | None) -> str:
    """Three digits that mean something: 12345, 123, 12.3, 1.23, 0.123."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, min(digits, 3))}f}"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table that reads well as text too: columns as wide as their widest cell, numbers to the right."""
    lines = [list(head), *(list(row) for row in body)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    last = len(head) - 1

    def cell(text: str, column: int) -> str:
        return text.ljust(widths[column]) if column in (0, last) else text.rjust(widths[column])

    shown = ["| " + " | ".join(cell(text, column) for column, text in enumerate(line)) + " |" for line in lines]
    rule = ["-" * width if column in (0, last) else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([shown[0], "|" + "|".join(f" {dashes} " for dashes in rule) + "|", *shown[1:]])


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that a run has to reach (or stay under), or cannot say."""

    words: str
    value: float | None
    bound: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.bound if self.at_most else self.value >= self.bound) else "MISSED"


GOAL_HEAD = ("goal", "wanted", "measured", "verdict")


def goal_rows(goals: Iterable[Goal]) -> list[list[str]]:
    return [
        [goal.words, f"{'<=' if goal.at_most else '>='} {goal.bound:g}", number(goal.value), goal.verdict]
        for goal in goals
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares through (x, y). Raises ValueError where the points have fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope takes two different moments")
    middle_x = statistics.fmean(x for x, _ in points)
    middle_y = statistics.fmean(y for _, y in points)
    across = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / across


BEGIN, END = "<!-- written by python -m benchmarks -->", "<!-- end of what python -m benchmarks writes -->"


def replaced(document: str, generated: str, command: str = "") -> str:
    """The document with the part between the two markers of a command replaced.

    Raises ValueError where a marker is missing.
    """
    begin_mark, end_mark = (mark.replace("benchmarks", f"benchmarks {command}".rstrip()) for mark in (BEGIN, END))
    before, begin, rest = document.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"the document has lost its markers: {begin_mark} ... {end_mark}")
    return f"{before}{begin}\n\n{generated.strip()}\n\n{end}{after}"


def facts(pairs: Mapping[str, str]) -> str:
    """A list of `- name: value` lines."""
    return "\n".join(f"- {name}: {value}" for name, value in pairs.items())
