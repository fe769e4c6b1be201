"""What the admin API tells of a route: how its arms do, how its calls were split over time, and how its rollout stands.

The views of `GET /routes/{route}`, which `weighbridge routes report` makes a page of, and how they follow from figures.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field

from config.settings import RolloutSettings
from gateway.admin.operation import Usd, View
from gateway.mirroring import Compared
from routing.comparison import Added, Answer, Comparison, Finding, Question, Side, compare
from routing.figures import ArmFigures, Figures
from routing.health import Node, Pool, State
from routing.histogram import LONGEST, Histogram

_BINS_TO_TEN: Final = 20
"""Bins of a distribution from a duration to the tenfold."""

_EDGES: Final = tuple(
    edge for place in range(9 * _BINS_TO_TEN) if (edge := round(100 * 10 ** (place / _BINS_TO_TEN))) < LONGEST
)
"""Microseconds, from 100 on."""

_MOST_SLOTS: Final = 120
"""Slots of a timeline; more than the eye can tell apart are of no use."""

_STEPS: Final = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 7 * 86_400)
"""Seconds that a slot of a timeline can have."""


class Percentiles(View):
    """null where too little is known."""

    p50: float | None
    p95: float | None
    p99: float | None


class Bin(View):
    from_ms: float
    to_ms: float
    calls: int


class NodeView(View):
    """A node that gets no calls as a matter of course."""

    url: str
    state: Literal["ejected", "trying", "resting"] = Field(
        description="`trying`: one call is there to find out. `resting`: it answered with Retry-After."
    )
    why: str = Field(description="What it was ejected for, in words.")
    until: str | None = Field(description="When it is tried next, or has rested, UTC; null while it is tried.")


class ArmView(View):
    """One arm. Its figures are of the answer's window; those that nothing is known for are null."""

    target: str
    weight: float = Field(description="Its share of new sessions, from 0 to 100.")
    configured_weight: float | None = Field(
        default=None, description="What the file has in place of `weight`; null where it is the same."
    )
    model: str | None = Field(description="The name this target knows the model by; null for the caller's.")
    health: str = Field(description="`ok`, or what keeps its target from taking calls.")
    nodes_out: list[NodeView] = Field(description="Its target's nodes that get no calls now.")
    calls: int
    errors: int = Field(description="Calls that count as its errors.")
    errors_by_class: dict[str, int]
    rejected: int = Field(
        default=0,
        description="Calls it answered with that they are mistaken: 400, 404, 413, 422 and the like; no errors.",
    )
    error_rate: float | None = Field(description="The share of its calls, from 0 to 1.")
    availability: float | None = Field(description="The share of calls meant for it that it answered, from 0 to 1.")
    overflow: int = Field(description="Calls meant for it that another arm took: it was full or out of service.")
    p50_ms: float | None = Field(description="Latency to the end of the answer, of calls without an error.")
    p95_ms: float | None
    p99_ms: float | None
    first_token_ms: Percentiles = Field(description="Of streamed answers.")
    latency_ms: list[Bin] = Field(description="How latencies are distributed; bins without a call are left out.")
    tokens_per_second: float | None
    input_tokens: int
    output_tokens: int
    cost_usd: Usd | None = Field(description="Of all its calls whose price is known; null where none is.")
    cost_per_call_usd: Usd | None = Field(description="Of an answered call, with what failed ones have cost.")
    cost_per_mtok_usd: Usd | None = Field(description="Of a million tokens, input and output together.")

    @classmethod
    def of(
        cls,
        target: str,
        weight: float,
        model: str | None,
        health: str,
        figures: Figures,
        nodes_out: Sequence[NodeView] = (),
        configured: float | None = None,
    ) -> ArmView:
        percentiles = _percentiles(figures.latency)
        return cls(
            target=target,
            weight=weight,
            configured_weight=configured if configured != weight else None,
            model=model,
            health=health,
            nodes_out=list(nodes_out),
            calls=figures.calls,
            errors=figures.failed,
            errors_by_class=_by_frequency(figures.errors),
            rejected=figures.rejected,
            error_rate=figures.error_rate,
            availability=figures.availability,
            overflow=figures.overflow,
            p50_ms=percentiles.p50,
            p95_ms=percentiles.p95,
            p99_ms=percentiles.p99,
            first_token_ms=_percentiles(figures.first_token),
            latency_ms=_bins(figures.latency),
            tokens_per_second=_rounded(figures.tokens_per_second, 1),
            input_tokens=figures.input_tokens,
            output_tokens=figures.output_tokens,
            cost_usd=None if figures.unpriced else figures.cost,
            cost_per_call_usd=figures.cost_per_call,
            cost_per_mtok_usd=figures.cost_per_mtok,
        )


class SlotArm(View):
    calls: int
    errors: int
    overflow: int


class SlotView(View):
    at: str = Field(description="When it begins, UTC.")
    seconds: int
    arms: dict[str, SlotArm] = Field(description="By target; arms without a call are left out.")


class StepView(View):
    weight: float
    hold: float = Field(description="Seconds that it lasts at least.")
    max_error_rate: float


class EventView(View):
    """What has happened to a rollout. State, step and verdict are those afterwards."""

    at: int = Field(description="When, in seconds since the epoch.")
    what: str = Field(description="A move, `ready` (a person has to promote it) or `plan` (it was edited).")
    by: str = Field(description="The person; `weighbridge` where the rollout did it itself.")
    state: str
    step: int
    verdict: str
    text: str = Field(description="What happened and why, in words.")
    facts: dict[str, Any] | None = Field(description="How many of how many calls failed, and which.")
    without_evidence: list[str] = Field(
        default_factory=list, description="What was missing when a person promoted nevertheless."
    )


class MissingView(View):
    what: str
    text: str
    amount: float | None = Field(description="Seconds or calls; null where nobody can say.")


class RolloutView(View):
    canary: str
    state: Literal["DRAFT", "RUNNING", "PAUSED", "PROMOTED", "ROLLED_BACK"]
    step: int = Field(description="From 1 to `steps`; 0 before the first start.")
    steps: int
    weight: float | None = Field(description="The canary's share, from 0 to 100; null where it is as configured.")
    verdict: Literal["HOLD", "PROMOTE", "PAUSE", "ROLLBACK"]
    since: int = Field(description="When that came to be, in seconds since the epoch.")
    unjudged_since: int | None = Field(
        default=None, description="Since when nobody judges it, `watch_for` being over; null while it is, or may be."
    )
    health: str | None = Field(default=None, description="Of the canary's target at this gateway, as an arm's.")
    explanation: str
    evidence: dict[str, Any] | None = Field(
        description="Odds to one, a million at most, and the counts behind them: docs/rollouts.md."
    )
    missing: list[MissingView] = Field(description="What a promotion still takes.")
    history: list[EventView] = Field(description="The latest first.")
    plan: list[StepView]
    promoted_weight: float = Field(description="The canary's share once the last step is passed.")

    @classmethod
    def of(cls, standing: Mapping[str, Any], plan: RolloutSettings, health: str | None = None) -> RolloutView:
        """From what `routing.rollout.standing` tells, and the health of the canary's target."""
        steps = [
            StepView(weight=each.weight, hold=each.hold, max_error_rate=each.max_error_rate) for each in plan.steps
        ]
        return cls(**standing, health=health, plan=steps, promoted_weight=plan.promoted_weight)


class AddedView(View):
    """Milliseconds that the arm's percentiles are above the baseline's."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, added: Added) -> AddedView:
        return cls(p50=_milliseconds(added.p50), p95=_milliseconds(added.p95), p99=_milliseconds(added.p99))


class FindingView(View):
    """The answer to one question. Values are milliseconds for `added_p95_ms`, else shares from 0 to 1."""

    question: Literal["added_p95_ms", "saving", "availability"]
    limit: float
    answer: Answer
    value: float | None
    low: float | None = Field(description="The value lies between this and `high` with 95 % confidence.")
    high: float | None
    missing: int | None = Field(description="About how many more calls an answer takes; null where that is not known.")
    missing_of: str | None = Field(description="The target that they are missing of.")
    unpriced: list[str] = Field(description="Targets of unknown price: no number of calls answers, `price` does.")

    @classmethod
    def of(cls, finding: Finding, names: Mapping[Side, str]) -> FindingView:
        in_time = finding.question is Question.ADDED_P95
        shown = _milliseconds if in_time else _share
        limit = shown(finding.limit)
        assert limit is not None
        return cls(
            question="added_p95_ms" if in_time else "saving" if finding.question is Question.SAVING else "availability",
            limit=limit,
            answer=finding.answer,
            value=shown(finding.value),
            low=shown(finding.low),
            high=shown(finding.high),
            missing=finding.missing,
            missing_of=names[finding.of] if finding.missing is not None else None,
            unpriced=[names[each] for each in finding.unpriced],
        )


class MonthView(View):
    """What 30 days of the route's present calls cost; null where a cost is not known."""

    calls: int
    baseline_usd: Usd | None = Field(description="Were all of them the baseline's.")
    arm_usd: Usd | None = Field(description="Were all of them the arm's.")
    saving_usd: Usd | None = Field(description="Between the two.")
    present_usd: Usd | None = Field(description="As they were split among the arms.")


class ComparisonView(View):
    """One arm against the baseline."""

    arm: str
    baseline: str
    answer: Answer
    findings: list[FindingView]
    saving_per_call: float | None = Field(description="The share of the baseline's cost; below 0 where it costs more.")
    saving_per_mtok: float | None
    added_ms: AddedView
    added_first_token_ms: AddedView
    month: MonthView

    @classmethod
    def of(cls, arm: str, baseline: str, comparison: Comparison) -> ComparisonView:
        names = {Side.ARM: arm, Side.BASELINE: baseline}
        month = comparison.month
        return cls(
            arm=arm,
            baseline=baseline,
            answer=comparison.answer,
            findings=[FindingView.of(each, names) for each in comparison.findings],
            saving_per_call=_share(comparison.saving_per_call),
            saving_per_mtok=_share(comparison.saving_per_mtok),
            added_ms=AddedView.of(comparison.latency),
            added_first_token_ms=AddedView.of(comparison.first_token),
            month=MonthView(
                calls=month.calls,
                baseline_usd=month.baseline,
                arm_usd=month.arm,
                saving_usd=month.saving,
                present_usd=month.present,
            ),
        )


class MirrorSideView(View):
    """One side of the calls that were mirrored."""

    calls: int
    errors: int
    errors_by_class: dict[str, int]
    p50_ms: float | None = Field(description="Latency to the end of the answer, of calls without an error.")
    p95_ms: float | None
    p99_ms: float | None
    first_token_ms: Percentiles = Field(description="Of streamed answers.")
    tokens_per_second: float | None
    input_tokens: int
    output_tokens: int
    cost_usd: Usd | None = Field(description="Of all its calls whose price is known; null where none is.")
    cost_per_call_usd: Usd | None = Field(description="Of an answered call, with what failed ones have cost.")

    @classmethod
    def of(cls, figures: Figures) -> MirrorSideView:
        percentiles = _percentiles(figures.latency)
        return cls(
            calls=figures.calls,
            errors=figures.failed,
            errors_by_class=_by_frequency(figures.errors),
            p50_ms=percentiles.p50,
            p95_ms=percentiles.p95,
            p99_ms=percentiles.p99,
            first_token_ms=_percentiles(figures.first_token),
            tokens_per_second=_rounded(figures.tokens_per_second, 1),
            input_tokens=figures.input_tokens,
            output_tokens=figures.output_tokens,
            cost_usd=None if figures.unpriced else figures.cost,
            cost_per_call_usd=figures.cost_per_call,
        )


class MirrorView(View):
    """Calls that were copied to a second target, and how its answers compare with the route's own."""

    target: str
    share: float = Field(description="The share of the route's calls that are copied, from 0 to 1.")
    model: str | None = Field(description="The name this target knows the model by; null for the caller's.")
    since: str = Field(description="When the first call was copied, UTC.")
    dropped: int = Field(description="Calls not copied because too many copies were under way, or nothing took them.")
    unfit: int = Field(description="Calls that cannot be put in the words of this target's protocol.")
    both_good: int = Field(description="Calls that were answered well by both sides.")
    own_good: int = Field(description="Calls that only the route's own arm answered well.")
    mirror_good: int = Field(description="Calls that only the mirror answered well.")
    neither_good: int
    own: MirrorSideView = Field(description="The route's own answers to the calls that were copied.")
    mirror: MirrorSideView
    added_ms: AddedView
    added_first_token_ms: AddedView
    saving_per_call: float | None = Field(description="The share of the route's own cost; below 0 where it costs more.")

    @classmethod
    def of(cls, compared: Compared) -> MirrorView:
        own, mirrored, pairs = compared.own.total, compared.mirrored.total, compared.pairs
        comparison = compare(mirrored, own, seconds=0.0)
        return cls(
            target=compared.settings.target,
            share=compared.settings.share,
            model=compared.settings.model,
            since=utc(compared.since),
            dropped=compared.dropped,
            unfit=compared.unfit,
            both_good=pairs.get((True, True), 0),
            own_good=pairs.get((True, False), 0),
            mirror_good=pairs.get((False, True), 0),
            neither_good=pairs.get((False, False), 0),
            own=MirrorSideView.of(own),
            mirror=MirrorSideView.of(mirrored),
            added_ms=AddedView.of(comparison.latency),
            added_first_token_ms=AddedView.of(comparison.first_token),
            saving_per_call=_share(comparison.saving_per_call),
        )


class RouteSummary(View):
    name: str
    models: list[str]
    since: str = Field(description="What the figures are of begins here, UTC.")
    until: str
    arms: list[ArmView]


class RouteSummaries(View):
    items: list[RouteSummary]
    next: str | None = None


class RouteView(RouteSummary):
    baseline: str | None = Field(description="The target that the others are compared with; null where there is none.")
    comparisons: list[ComparisonView]
    timeline: list[SlotView] = Field(description="The oldest first; slots without a call are left out.")
    rollout: RolloutView | None
    trouble: str | None = Field(
        default=None, description="Why it does not go by what people or its rollout have set; null where it does."
    )
    mirror: MirrorView | None = Field(
        default=None, description="null where calls are not copied, and before the first one is."
    )
    warning: str | None = Field(
        default=None, description="Whose calls no other arm takes when it fails, where there are several; else null."
    )


def stranded(alone: Sequence[str]) -> str | None:
    """What is to be said of arms whose calls have nowhere else to go."""
    if not alone:
        return None
    return (
        f"When {' or '.join(alone)} fails, no other arm takes its calls. Give another one weight, or write "
        "`fallback: true` at it."
    )


def health(pool: Pool, now: float) -> str:
    """`ok`, or what keeps a target from taking calls, at a time of the monotonic clock."""
    nodes = pool.nodes
    out = [node for node in nodes if not node.takes(now)]
    if not out:
        unwell = sum(node.unwell for node in nodes)
        if pool.full:
            return "full"
        return _of_nodes(unwell, len(nodes), "unwell") if unwell else "ok"
    if len(out) < len(nodes):
        return _of_nodes(len(out), len(nodes), "out of use")
    if all(node.state is State.USED for node in nodes):
        return "resting"
    return "trying" if any(node.state is State.TRYING for node in nodes) else "ejected"


def nodes_out(pool: Pool, now: float, at: float) -> list[NodeView]:
    """A target's nodes that get no calls at a time of the monotonic clock; `at` is the same since the epoch."""
    return [_out(node, now, at) for node in pool.nodes if not node.takes(now)]


def _out(node: Node, now: float, at: float) -> NodeView:
    if node.state is State.USED:
        rested = utc(at + node.rests_until - now)
        return NodeView(url=node.url, state="resting", why="it asked to be left alone", until=rested)
    if node.state is State.TRYING:
        return NodeView(url=node.url, state="trying", why=node.why, until=None)
    return NodeView(url=node.url, state="ejected", why=node.why, until=utc(at + max(node.due - now, 0.0)))


def _of_nodes(some: int, number: int, how: str) -> str:
    return how if some == number else f"{some} of {number} nodes {how}"


def timeline(arms: Mapping[str, ArmFigures], since: float, until: float) -> list[SlotView]:
    """The calls of the arms by target over a span of time, in seconds since the epoch, in as many slots as can be
    told apart."""
    step = next((each for each in _STEPS if (until - since) / each <= _MOST_SLOTS), _STEPS[-1])
    found: dict[tuple[int, int], dict[str, SlotArm]] = {}
    for target, figures in arms.items():
        for start, seconds, each in figures.timeline(since, until, step):
            told = SlotArm(calls=each.calls, errors=each.failed, overflow=each.overflow)
            found.setdefault((start, seconds), {})[target] = told
    return [SlotView(at=utc(at), seconds=seconds, arms=told) for (at, seconds), told in sorted(found.items())]


def utc(seconds: float) -> str:
    """Seconds since the epoch -> `2026-11-21T04:40:00Z`."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _by_frequency(errors: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(errors.items(), key=lambda each: (-each[1], each[0])))


def _percentiles(histogram: Histogram) -> Percentiles:
    p50, p95, p99 = (histogram.percentile(each) for each in (50, 95, 99))
    return Percentiles(p50=_thousandth(p50), p95=_thousandth(p95), p99=_thousandth(p99))


def _bins(histogram: Histogram) -> list[Bin]:
    edges: Sequence[int] = (0, *_EDGES, LONGEST)
    counts = histogram.rebinned(edges[1:-1])
    return [
        Bin(from_ms=edges[place] / 1000, to_ms=edges[place + 1] / 1000, calls=count)
        for place, count in enumerate(counts)
        if count
    ]


def _thousandth(microseconds: int | None) -> float | None:
    return microseconds / 1000 if microseconds is not None else None


def _milliseconds(seconds: float | None) -> float | None:
    return _rounded(seconds * 1000 if seconds is not None else None, 3)


def _share(share: float | None) -> float | None:
    return _rounded(share, 6)


def _rounded(value: float | None, places: int) -> float | None:
    return round(value, places) if value is not None else None
