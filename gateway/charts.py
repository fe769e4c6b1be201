"""Charts of a report, as SVG inside HTML: drawn from plain numbers, read without a script, and without colours, too.

A chart is a figure with a title, a description for those who do not see it, and nothing that its table lacks. Arms are
told apart by hatching, dashes and shapes as well as by colour; a style sheet gives the classes their colours.
"""

from __future__ import annotations

import datetime
import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.logs import printable

WIDTH: Final = 960
_LEFT: Final = 64
_RIGHT: Final = 24
_NAMES: Final = 130
"""What names of arms have room in."""
STYLES: Final = 6
"""Arms that are told apart; what is beyond begins with the first again."""

_FLAG_ROWS: Final = 3
_DAY: Final = 86_400
_TICKS: Final = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY, 28 * _DAY)


class Html(str):
    """Text that is HTML already; all other text is escaped where it becomes part of it."""


def element(name: str, /, *children: str | None, **attributes: object) -> Html:
    """`class_` is `class`, and `stroke_width` is `stroke-width`. Attributes that are None, and such children, are not
    there."""
    given = "".join(
        f' {key.strip("_").replace("_", "-")}="{escaped(_written(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = together(*children)
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{inner}</{name}>")


_VOID: Final = frozenset({"meta", "br", "col"})


def together(*parts: str | None) -> Html:
    return Html("".join(part if isinstance(part, Html) else escaped(part) for part in parts if part is not None))


def escaped(text: str) -> Html:
    """Also what could hide, reorder or break lines shows as its number: names are chosen by agents and operators."""
    return Html(html.escape(printable(" ".join(text.split()) if not text.isprintable() else text)))


def _written(value: object) -> str:
    """Coordinates to a hundredth, so that equal charts are equal texts."""
    if isinstance(value, float):
        return f"{round(value, 2) + 0.0:g}" if abs(value) < 1e5 else f"{value:.0f}"
    return str(value)


@dataclass(frozen=True, slots=True)
class Described:
    """What is said of a chart: `key` makes its ids."""

    key: str
    title: str
    text: str


def drawing(described: Described, height: float, *parts: str) -> Html:
    """An SVG image of the usual width."""
    title, text = f"{described.key}-title", f"{described.key}-text"
    return element(
        "div",
        element(
            "svg",
            element("title", described.title, id=title),
            element("desc", described.text, id=text),
            *parts,
            viewBox=f"0 0 {WIDTH} {_written(float(height))}",
            role="img",
            aria_labelledby=f"{title} {text}",
        ),
        class_="chart",
    )


def hatchings() -> Html:
    """The fills of arms, once for all charts of a page."""
    marks = (
        "",
        "M0 8L8 0M-2 2L2 -2M6 10L10 6",
        "M2 2h2v2h-2zM6 6h2v2h-2z",
        "M0 4H8",
        "M4 0V8",
        "M0 0L8 8M0 8L8 0",
    )
    patterns = [
        element(
            "pattern",
            element("rect", width=8, height=8, class_=f"ground arm-{style}"),
            element("path", d=mark, class_="hatch") if mark else None,
            id=f"fill-{style}",
            width=8,
            height=8,
            patternUnits="userSpaceOnUse",
        )
        for style, mark in enumerate(marks)
    ]
    return element("svg", element("defs", *patterns), width=0, height=0, class_="hidden", aria_hidden="true")


def swatch(style: int) -> Html:
    """What stands for an arm in keys and tables."""
    return element(
        "svg",
        element("rect", width=16, height=12, rx=2, fill=f"url(#fill-{style})", class_="swatch"),
        viewBox="0 0 16 12",
        class_="key",
        aria_hidden="true",
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Html:
    return element("text", text, x=x, y=y, class_=kind or None, text_anchor=anchor if anchor != "start" else None)


def _line(x: float, y: float, to_x: float, to_y: float, kind: str) -> Html:
    return element("line", x1=x, y1=y, x2=to_x, y2=to_y, class_=kind)


def _marker(shape: int, x: float, y: float, kind: str, size: float = 5) -> Html:
    """Circle, diamond, triangle, square."""
    if shape == 0:
        return element("circle", cx=x, cy=y, r=size, class_=kind)
    points = (
        ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        ((0, -1.2), (1.2, 1), (-1.2, 1)),
        ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    )[(shape - 1) % 3]
    return element(
        "polygon", points=" ".join(f"{_written(x + a * size)},{_written(y + b * size)}" for a, b in points), class_=kind
    )


# --- how long calls take ---------------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """So many from one duration to another, in milliseconds."""

    low: float
    high: float
    calls: int


@dataclass(frozen=True, slots=True)
class Durations:
    """How long calls to one arm take. `marks` are percentiles, in milliseconds; None where one is not known."""

    name: str
    style: int
    bars: Sequence[Bar]
    marks: Sequence[tuple[str, float | None]]


def distributions(described: Described, arms: Sequence[Durations], shown: Callable[[float], str]) -> Html:
    """A histogram an arm, above each other on one logarithmic axis, with percentiles marked."""
    ends = [end for arm in arms for bar in arm.bars for end in (bar.low, bar.high)]
    ends += [value for arm in arms for _, value in arm.marks if value is not None]
    low = max(min(ends, default=1.0), 0.05)
    high = max(max(ends, default=1000.0), low * 2)
    left, right = _NAMES, WIDTH - 96  # beyond, the last percentile's words have their place
    ratio = (right - left) / math.log(high / low)

    def x(value: float) -> float:
        return left + ratio * math.log(max(value, low) / low)

    panel, head = 84, 46
    height = len(arms) * (panel + head) + 34
    bottom = height - 30
    parts: list[str] = []
    for tick in _decades(low, high):
        parts.append(_line(x(tick), 8, x(tick), bottom, "grid"))
        parts.append(_text(x(tick), bottom + 18, shown(tick), "tick", "middle"))
    for number, arm in enumerate(arms):
        base = (number + 1) * (panel + head)
        most = max((bar.calls for bar in arm.bars), default=1)
        parts.append(_text(0, base - panel + 10, _short(arm.name), "name"))
        for bar in arm.bars:
            tall = max(1.0, panel * bar.calls / most)
            parts.append(
                element(
                    "rect",
                    element("title", f"{arm.name}: {bar.calls:,} calls from {shown(bar.low)} to {shown(bar.high)}"),
                    x=x(bar.low),
                    y=base - tall,
                    width=max(0.8, x(bar.high) - x(bar.low) - 0.8),
                    height=tall,
                    fill=f"url(#fill-{arm.style})",
                )
            )
        parts.append(_line(left, base, right, base, "axis"))
        for row, (mark, value) in enumerate(arm.marks):
            if value is None:
                continue
            at, top = x(value), base - panel - 4 - 13 * (len(arm.marks) - 1 - row)
            parts.append(_line(at, top - 8, at, base, f"mark mark-{row}"))
            parts.append(_text(at + 4, top, f"{mark} {shown(value)}", "value"))
    return drawing(described, height, *parts)


def ranges(described: Described, arms: Sequence[Durations], shown: Callable[[float], str]) -> Html:
    """A line an arm from its lowest to its highest mark, with a shape for each, on one axis from 0."""
    most = max((value for arm in arms for _, value in arm.marks if value is not None), default=1.0) or 1.0
    ticks = _rounds(most)
    left, right = _NAMES + 20, WIDTH - _RIGHT - 16
    row = 56
    height = len(arms) * row + 40
    bottom = height - 30

    def x(value: float) -> float:
        return left + (right - left) * value / max(ticks[-1], most)

    parts: list[str] = []
    for tick in ticks:
        parts.append(_line(x(tick), 4, x(tick), bottom, "grid"))
        parts.append(_text(x(tick), bottom + 18, shown(tick) if tick else "0", "tick", "middle"))
    for number, arm in enumerate(arms):
        y = number * row + 34
        parts.append(_text(0, y + 4, _short(arm.name), "name"))
        known = [(shape, mark, value) for shape, (mark, value) in enumerate(arm.marks) if value is not None]
        if not known:
            parts.append(_text(left, y + 4, "not known", "value"))
            continue
        parts.append(_line(x(known[0][2]), y, x(known[-1][2]), y, f"range arm-{arm.style}"))
        free = 0.0
        for shape, mark, value in known:
            parts.append(_marker(shape, x(value), y, f"point arm-{arm.style}"))
            label = f"{mark} {shown(value)}"
            wide = 6.6 * len(label)
            at = min(max(x(value) - wide / 2, free, left - 4), WIDTH - wide)
            parts.append(_text(at, y - 12, label, "value"))
            free = at + wide + 10
    return drawing(described, height, *parts)


# --- what calls cost -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Amount:
    """`text` is what is said of it, at the end of its bar."""

    name: str
    style: int
    value: float | None
    text: str


def amounts(described: Described, panels: Sequence[tuple[str, Sequence[Amount]]]) -> Html:
    """Bars from 0, beside each other for each panel, which has a scale of its own."""
    row, gap = 34, 40
    wide = (WIDTH - gap * (len(panels) - 1)) / len(panels)
    parts: list[str] = []
    for number, (title, bars) in enumerate(panels):
        start = number * (wide + gap)
        parts.append(_text(start, 16, title, "head"))
        most = max((bar.value or 0 for bar in bars), default=0) or 1
        longest = wide - _NAMES - 150
        for place, bar in enumerate(bars):
            y = 32 + place * row
            parts.append(_text(start, y + 15, _short(bar.name), "name"))
            length = longest * (bar.value or 0) / most
            if bar.value is not None:
                parts.append(
                    element(
                        "rect",
                        element("title", f"{bar.name}: {bar.text}"),
                        x=start + _NAMES,
                        y=y,
                        width=max(1.0, length),
                        height=22,
                        rx=2,
                        fill=f"url(#fill-{bar.style})",
                    )
                )
            parts.append(_text(start + _NAMES + 8 + length, y + 15, bar.text, "value"))
        base = 32 + len(bars) * row
        parts.append(_line(start + _NAMES, 26, start + _NAMES, base - 6, "axis"))
    return drawing(described, 32 + max((len(bars) for _, bars in panels), default=0) * row + 4, *parts)


# --- what happened when ----------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """From one moment to another, in seconds since the epoch: a value for each arm, None where it has none, and what
    is said of all."""

    start: int
    end: int
    values: Sequence[float | None]
    volume: int
    text: str


class Event(NamedTuple):
    """A numbered moment; `grave` for one that took calls away."""

    at: int
    number: int
    text: str
    grave: bool


class Level(NamedTuple):
    """A value that holds from one moment to another."""

    start: int
    end: int
    value: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What charts over time share. `names` and `styles` are of the arms, in the order of the spans' values."""

    names: Sequence[str]
    styles: Sequence[int]
    spans: Sequence[Span]
    events: Sequence[Event]
    start: int
    end: int

    def x(self, at: float) -> float:
        share = (min(max(at, self.start), self.end) - self.start) / max(1, self.end - self.start)
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * share

    def when(self, bottom: float) -> Iterator[Html]:
        """The axis of time."""
        length = self.end - self.start
        step = next((each for each in _TICKS if length / each <= 9), max(_TICKS[-1], length // 8))
        yield _line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis")
        for at in range(-(-self.start // step) * step, self.end + 1, step):
            yield _line(self.x(at), bottom, self.x(at), bottom + 5, "axis")
            moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
            label = f"{moment.day} {moment:%b}" if step >= _DAY or at % _DAY == 0 else f"{moment:%H:%M}"
            yield _text(self.x(at), bottom + 19, label, "tick", "middle")

    def _rows(self) -> list[int]:
        """In which row above the chart each event has its number: close ones step aside."""
        ends, rows = [-math.inf] * _FLAG_ROWS, []
        for event in self.events:
            x = self.x(event.at)
            rows.append(next((row for row in range(_FLAG_ROWS) if ends[row] <= x - 10), 0))
            ends[rows[-1]] = x + 10
        return rows

    @property
    def top(self) -> float:
        """Where the chart begins, below the numbers of the events."""
        return 16.0 + 20.0 * (max(self._rows(), default=-1) + 1)

    def flags(self, bottom: float) -> Iterator[Html]:
        """The events, each with its number above the chart."""
        for event, row in zip(self.events, self._rows(), strict=True):
            x, y, kind = self.x(event.at), self.top - 8 - row * 20, "flag grave" if event.grave else "flag"
            yield _line(x, y, x, bottom, kind)
            badge = _marker(3, x, y - 6, kind, 9) if event.grave else _marker(0, x, y - 6, kind, 9)
            number = _text(x, y - 2, str(event.number), "number", "middle")
            yield element("g", element("title", event.text), badge, number)


def shares(described: Described, timeline: Timeline, planned: Sequence[Level]) -> Html:
    """Who took which share of the calls, the first arm at the bottom; how many they were, below. A dashed line is what
    the first arm was meant to take."""
    top = timeline.top
    bottom, floor = top + 200, top + 268
    parts: list[str] = []
    for percent in (0, 25, 50, 75, 100):
        y = bottom - (bottom - top) * percent / 100
        parts.append(_line(_LEFT, y, WIDTH - _RIGHT, y, "grid"))
        parts.append(_text(_LEFT - 8, y + 4, f"{percent}\u00a0%", "tick", "end"))
    below = [0.0] * len(timeline.spans)
    for arm, (name, style) in enumerate(zip(timeline.names, timeline.styles, strict=True)):
        shape: list[str] = []
        for place, span in enumerate(timeline.spans):
            share = span.values[arm] or 0.0
            if share:
                low, high = (bottom - (bottom - top) * min(1.0, each) for each in (below[place], below[place] + share))
                start, end = (_written(timeline.x(each)) for each in (span.start, span.end))
                shape.append(f"M{start} {_written(low)}V{_written(high)}H{end}V{_written(low)}Z")
            below[place] += share
        if shape:
            parts.append(element("path", element("title", name), d="".join(shape), fill=f"url(#fill-{style})"))
    parts += _levels(timeline, planned, lambda share: bottom - (bottom - top) * share, "planned", "planned")
    most = max((span.volume for span in timeline.spans), default=0) or 1
    parts.append(_text(_LEFT - 8, floor - 24, f"{most:,}", "tick", "end"))
    parts.append(_text(_LEFT - 8, floor, "calls", "tick", "end"))
    for span in timeline.spans:
        left, right = timeline.x(span.start), timeline.x(span.end)
        tall = 36 * span.volume / most
        parts.append(
            element("rect", x=left, y=floor - tall, width=max(0.6, right - left - 0.6), height=tall, class_="volume")
        )
        parts.append(
            element(
                "rect",
                element("title", span.text),
                x=left,
                y=top,
                width=max(0.6, right - left),
                height=floor - top,
                class_="hover",
            )
        )
    parts += timeline.when(floor)
    parts += timeline.flags(bottom)
    return drawing(described, floor + 28, *parts)


def rates(
    described: Described,
    timeline: Timeline,
    limits: Sequence[Level],
    shown: Callable[[float], str],
    ticked: Callable[[float], str],
) -> Html:
    """The error rate of each arm, and the limit. What is far above the limit is drawn at the upper edge, with its
    value; `ticked` is for the round values of the axis."""
    top = timeline.top + 6
    bottom = top + 210
    values = [value for span in timeline.spans for value in span.values if value is not None]
    highest = max(values, default=0.0)
    limit = max((level.value for level in limits), default=0.0)
    wanted = max(limit * 1.6, min(highest, limit * 6) if limit else highest, 0.002)
    ticks = _rounds(wanted)
    most = max(ticks[-1], wanted)

    def y(value: float) -> float:
        return bottom - (bottom - top) * min(value, most) / most

    parts: list[str] = []
    for tick in ticks:
        parts.append(_line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid"))
        parts.append(_text(_LEFT - 8, y(tick) + 4, ticked(tick), "tick", "end"))
    parts += _levels(timeline, limits, y, "limit", "limit")
    for arm, (name, style) in enumerate(zip(timeline.names, timeline.styles, strict=True)):
        path: list[str] = []
        beyond: list[tuple[float, float]] = []
        last: Span | None = None
        for span in timeline.spans:
            value = span.values[arm]
            if value is None:
                last = None
                continue
            middle = timeline.x((span.start + span.end) / 2)
            joined = last is not None and span.start - last.end <= last.end - last.start
            path.append(f"{'L' if joined else 'M'}{_written(middle)} {_written(y(value))}")
            if not joined:
                path.append(f"h{_written(0.01)}")
            if value > most:
                beyond.append((middle, value))
            last = span
        if path:
            parts.append(element("path", element("title", name), d="".join(path), class_=f"line arm-{style}"))
        for place, (x, rate) in enumerate(beyond):
            parts.append(_marker(2, x, top - 2, f"point arm-{style}", 5))
            if place == 0 or rate > beyond[place - 1][1] * 1.5:
                parts.append(_text(x + 9, top + 12, shown(rate), "value"))
    for span in timeline.spans:
        left, right = timeline.x(span.start), timeline.x(span.end)
        title = element("title", span.text)
        parts.append(
            element("rect", title, x=left, y=top, width=max(0.6, right - left), height=bottom - top, class_="hover")
        )
    parts += timeline.when(bottom)
    parts += timeline.flags(bottom)
    return drawing(described, bottom + 28, *parts)


def _levels(
    timeline: Timeline, levels: Sequence[Level], y: Callable[[float], float], kind: str, called: str
) -> Iterator[Html]:
    path = "".join(
        f"M{_written(timeline.x(level.start))} {_written(y(level.value))}H{_written(timeline.x(level.end))}"
        for level in levels
    )
    if path:
        yield element("path", element("title", called), d=path, class_=kind)
        last = levels[-1]
        yield _text(timeline.x(last.start) + 6, y(last.value) - 6, called, f"value {kind}-name")


# --- axes ------------------------------------------------------------------------------------------------------------


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... within the bounds; only powers of ten where those are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    leading = (1, 2, 5) if last - first <= 4 else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in leading]
    return [tick for tick in ticks if low <= tick <= high]


def _rounds(most: float) -> list[float]:
    """Some four round numbers from 0 to `most` or a little above it."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(digit * power for digit in (1, 2, 2.5, 5, 10) if most / (digit * power) <= 5)
    return [round(step * place, 12) for place in range(math.ceil(most / step - 1e-9) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:14]}…"
