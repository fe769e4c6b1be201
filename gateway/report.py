"""One page about a route, for people who decide: go or no-go, and the charts and tables behind it, in a single file.

It is made of what `GET /routes/{route}` answers, and can be kept, sent and printed: it loads nothing, runs nothing, and
says the same to those who do not see it. Equal answers make equal pages.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from gateway import readable
from gateway.charts import (
    STYLES,
    Amount,
    Bar,
    Described,
    Durations,
    Event,
    Html,
    Level,
    Span,
    Timeline,
    amounts,
    distributions,
    element,
    hatchings,
    ranges,
    rates,
    shares,
    swatch,
    together,
)
from gateway.readable import Number
from gateway.report_style import STYLE

Facts = Mapping[str, Any]

_NOT_KNOWN: Final = "\N{EN DASH}"

_ANSWERS: Final[Mapping[str, tuple[str, str, str]]] = {
    "go": ("go", "\N{CHECK MARK}", "Go"),
    "no_go": ("no-go", "\N{MULTIPLICATION X}", "No-go"),
    "not_enough_data": ("open", "?", "Not enough data"),
}
"""Answer -> its style, its sign, its words."""

_QUESTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "added_p95_ms": ("Added latency, 95th percentile", "less than"),
    "saving": ("Saving per call", "more than"),
    "availability": ("Availability", "more than"),
}
"""Question -> what it is called, and on which side of its limit an arm has to be."""

_HAPPENED: Final[Mapping[str, str]] = {
    "start": "Started",
    "promote": "Promoted",
    "complete": "Promoted for good",
    "pause": "Paused",
    "resume": "Resumed",
    "rollback": "Rolled back",
    "abort": "Aborted",
    "ready": "Ready for the next step",
    "plan": "Plan edited",
}
_GRAVE: Final = frozenset({"pause", "rollback", "abort"})
"""Events that took calls from the canary, or keep others from it."""

_HALTED: Final[Mapping[str, str]] = {"PAUSED": "Paused", "ROLLED_BACK": "Rolled back"}

_VERDICTS: Final[Mapping[str, str]] = {
    "HOLD": "go on as it is",
    "PROMOTE": "ready for the next step",
    "PAUSE": "wait for a person",
    "ROLLBACK": "take the canary back",
}

_EVIDENCE: Final[Mapping[str, tuple[str, Callable[[Number], str]]]] = {
    "since": ("Since", readable.moment),
    "rate": ("Error rate", readable.share),
    "limit": ("Limit", readable.limit),
    "odds": ("Odds", readable.odds),
    "above_limit": ("Odds that it is above the limit", readable.odds),
    "others_above_limit": ("Odds that the others are, too", readable.odds),
    "worse_than_others": ("Odds that it is worse than the others", readable.odds),
    "rejects_more_than_others": ("Odds that it rejects more than the others", readable.odds),
    "needed": ("Odds that are enough to act", readable.odds),
    "below_limit": ("Odds that it is below the limit", readable.odds),
    "needed_to_promote": ("Odds that are enough to promote", readable.odds),
}
"""What a rollout's evidence is called, and how it is written; all else by its name, as a plain number."""


def report_page(route: Facts, made_at: datetime.datetime) -> str:
    """The page as HTML. Raises ValueError where `route` is not what the admin API tells of a route."""
    try:
        return _page(route, made_at)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"is not what is told of a route ({type(error).__name__}: {error})") from error


def _page(route: Facts, made_at: datetime.datetime) -> str:
    styles = {arm["target"]: number % STYLES for number, arm in enumerate(route["arms"])}
    title = f"Route {route['name']}"
    sections = [
        _halted(route["rollout"]) if route["rollout"] is not None else None,
        *(_comparison(each) for each in route["comparisons"]),
        *([_nothing_compared(route)] if not route["comparisons"] else []),
        _rollout(route["rollout"]) if route["rollout"] is not None else None,
        _latency(route, styles),
        _cost(route, styles),
        *_over_time(route, styles),
        _arms(route, styles),
        _mirror(route["mirror"]) if route["mirror"] is not None else None,
        _notes(),
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}: report"),
        element("style", Html(STYLE)),
    )
    calls = sum(arm["calls"] for arm in route["arms"])
    header = element(
        "header",
        element("h1", "Route ", _name(route["name"])),
        element(
            "p",
            _data(calls, readable.count),
            " calls from ",
            _time(route["since"]),
            " to ",
            _time(route["until"]),
            ", for ",
            _listed([_name(model) for model in route["models"]]),
            ".",
        ),
        element("p", "Made ", _time(made_at.astimezone(datetime.UTC).isoformat()), ". All times are UTC.", class_="by"),
    )
    body = element("body", hatchings(), element("main", header, *sections))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


# --- go or no-go -----------------------------------------------------------------------------------------------------


def _comparison(comparison: Facts) -> Html:
    arm, baseline = comparison["arm"], comparison["baseline"]
    style, sign, words = _ANSWERS[comparison["answer"]]
    rows = [_finding(each) for each in comparison["findings"]]
    month, added, first = comparison["month"], comparison["added_ms"], comparison["added_first_token_ms"]
    verdict = element(
        "p",
        element("span", sign, class_="sign", aria_hidden="true"),
        element("strong", words),
        element("span", _in_words(comparison), class_="words"),
        class_=f"verdict {style}",
    )
    tiles = element(
        "dl",
        _tile(
            "Saving per call",
            _data(comparison["saving_per_call"], readable.share),
            _dearer(comparison, "saving_per_call"),
        ),
        _tile(
            "Saving per million tokens",
            _data(comparison["saving_per_mtok"], readable.share),
            _dearer(comparison, "saving_per_mtok"),
        ),
        _tile(
            "Saving in 30 days",
            _data(month["saving_usd"], readable.dollars),
            together("if all calls went to ", _name(arm), ", as against all to ", _name(baseline)),
        ),
        _tile(
            "First token, 95th percentile",
            _data(first["p95"], readable.added_ms),
            together("against ", _name(baseline)) if first["p95"] is not None else "no streamed answers of both yet",
        ),
        class_="tiles",
    )
    thirty = _table(
        "What 30 days of the present calls cost",
        ("Where the calls go", "Calls", "Cost"),
        [
            (
                together("all to ", _name(baseline)),
                _data(month["calls"], readable.count),
                _data(month["baseline_usd"], readable.dollars),
            ),
            (
                together("all to ", _name(arm)),
                _data(month["calls"], readable.count),
                _data(month["arm_usd"], readable.dollars),
            ),
            (
                "as they were split",
                _data(month["calls"], readable.count),
                _data(month["present_usd"], readable.dollars),
            ),
        ],
    )
    apart = _table(
        "Latency added to the baseline",
        ("", "50th percentile", "95th percentile", "99th percentile"),
        [
            ("to the end of the answer", *(_data(added[each], readable.added_ms) for each in ("p50", "p95", "p99"))),
            ("to the first token", *(_data(first[each], readable.added_ms) for each in ("p50", "p95", "p99"))),
        ],
    )
    return _section(
        together(_name(arm), " in place of ", _name(baseline)),
        verdict,
        _table(
            "The criteria, one by one",
            ("Criterion", "Answer", "Measured", "Wanted", "With 95\N{NO-BREAK SPACE}% confidence"),
            rows,
            words=(0, 1),
        ),
        tiles,
        element("div", thirty, apart, class_="pair"),
    )


def _finding(finding: Facts) -> tuple[str, ...]:
    called, than = _QUESTIONS[finding["question"]]
    in_time = finding["question"] == "added_p95_ms"
    limit, shown = (readable.milliseconds, readable.added_ms) if in_time else (readable.limit, readable.share)
    style, sign, words = _ANSWERS[finding["answer"]]
    between = (
        together(_data(finding["low"], shown), " to ", _data(finding["high"], shown))
        if finding["low"] is not None
        else _NOT_KNOWN
    )
    answer = [element("span", sign, class_=f"sign {style}", aria_hidden="true"), element("strong", words)]
    if finding["missing"] is not None:
        more = together(
            ": about ", _data(finding["missing"], readable.roughly), " more calls to ", _name(finding["missing_of"])
        )
        answer.append(more)
    if finding["unpriced"]:
        answer.append(together(": ", _no_price(finding)))
    wanted = together(than, " ", _data(finding["limit"], limit))
    return called, together(*answer), _data(finding["value"], shown), wanted, between


def _in_words(comparison: Facts) -> Html:
    """One sentence that can be read out."""
    arm, baseline = _name(comparison["arm"]), _name(comparison["baseline"])
    told: list[Html] = []
    for finding in comparison["findings"]:
        value = finding["value"]
        if value is None:
            continue
        if finding["question"] == "saving":
            less = value >= 0
            told.append(
                together(
                    "costs ", readable.share(abs(value)), " less" if less else " more", " per call than ", baseline
                )
            )
        elif finding["question"] == "availability":
            told.append(together("has answered ", readable.share(value), " of its calls"))
        else:
            slower = "slower" if value >= 0 else "quicker"
            told.append(together("is ", readable.milliseconds(abs(value)), f" {slower} at the 95th percentile"))
    if not told:
        return together(arm, " has not been measured yet.")
    return together(arm, " ", _listed(told), ".")


def _dearer(comparison: Facts, saving: str) -> str:
    value = comparison[saving]
    if value is None:
        finding = next((each for each in comparison["findings"] if each["unpriced"]), None)
        return _no_price(finding) if finding is not None else "no priced calls of both yet"
    return "of what the baseline costs" if value >= 0 else "it costs more than the baseline"


def _no_price(finding: Facts) -> Html:
    names = [_name(each) for each in finding["unpriced"]]
    return together("the price of ", _listed(names), " is not known (", element("code", "targets[].price"), ")")


def _nothing_compared(route: Facts) -> Html:
    return _section(
        "Nothing to compare",
        element(
            "p", "This route has a single arm, or no baseline to compare its arms with, so there is no go or no-go."
        ),
    )


# --- the rollout -----------------------------------------------------------------------------------------------------


def _halted(rollout: Facts) -> Html | None:
    """What nobody must overlook: that the rollout does not go on, and why."""
    if rollout["state"] not in _HALTED:
        return None
    return element(
        "p",
        element("strong", _HALTED[rollout["state"]], ": "),
        together(_name(rollout["canary"]), ", ", _time(rollout["since"]), ". ", rollout["explanation"]),
        class_="halted",
        role="note",
    )


def _rollout(rollout: Facts) -> Html:
    step, verdict, evidence = rollout["step"], rollout["verdict"], rollout["evidence"] or {}
    where = f", step {readable.count(step)} of {readable.count(rollout['steps'])}" if step else ""
    missing = [together(each["text"]) for each in rollout["missing"]]
    facts: list[Html | None] = [
        _fact("Canary", _name(rollout["canary"])),
        _fact("State", together(_lower(rollout["state"]), where)),
        _fact("Its share of new sessions", _data(rollout["weight"], readable.percent)),
        _fact("Verdict", together(element("strong", verdict), f", {_VERDICTS[verdict]}")),
        _fact("Missing for a promotion", _listed(missing)) if missing else None,
        *(_fact(*_told(name, value)) for name, value in evidence.items() if value is not None),
    ]
    plan = _table(
        "The plan",
        ("Step", "Canary\N{RIGHT SINGLE QUOTATION MARK}s share", "Lasts at least", "Error rate below", ""),
        [
            (
                str(number),
                _data(each["weight"], readable.percent),
                _data(each["hold"], readable.length),
                _data(each["max_error_rate"], readable.limit),
                element("strong", "now") if number == step and rollout["state"] in ("RUNNING", "PAUSED") else "",
            )
            for number, each in enumerate(rollout["plan"], 1)
        ],
    )
    after = element("p", "After the last step: ", _data(rollout["promoted_weight"], readable.percent), class_="by")
    return _section(
        "The rollout", element("div", element("dl", *facts, class_="facts"), element("div", plan, after), class_="pair")
    )


def _told(name: str, value: Any) -> tuple[str, Html]:
    """A piece of evidence: what it is called, and what it says."""
    if name in _EVIDENCE and isinstance(value, int | float | Decimal):
        called, shown = _EVIDENCE[name]
        return called, together(_data(value, shown))
    inner = _evidence(value)
    return _worded(name), together("(", inner, ")") if isinstance(value, Mapping) else inner


def _evidence(value: Any) -> Html:
    """Whatever its shape is."""
    if isinstance(value, Mapping):
        told = [_told(str(name), each) for name, each in value.items() if each not in (None, [], {})]
        return _listed([together(f"{called[:1].lower()}{called[1:]} ", text) for called, text in told])
    if isinstance(value, list | tuple):
        return _listed([_evidence(each) for each in value])
    if isinstance(value, bool) or value is None:
        return together({True: "yes", False: "no", None: _NOT_KNOWN}[value])
    if isinstance(value, int | float | Decimal):
        return together(_data(value, readable.plain))
    return together(str(value))


def _worded(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _lower(state: str) -> str:
    return state.replace("_", " ").lower()


# --- how long, how dear ----------------------------------------------------------------------------------------------


def _latency(route: Facts, styles: Mapping[str, int]) -> Html:
    arms = route["arms"]
    ends = [_durations(arm, styles, {each: arm[f"{each}_ms"] for each in ("p50", "p95", "p99")}) for arm in arms]
    firsts = [_durations(arm, styles, arm["first_token_ms"]) for arm in arms]
    streamed = any(arm["first_token_ms"][each] is not None for arm in arms for each in ("p50", "p95", "p99"))
    told = [together(_spoken(arm["target"], [arm[f"{each}_ms"] for each in ("p50", "p95", "p99")])) for arm in arms]
    rows = [
        (
            _arm(arm, styles),
            *(_data(arm[f"{each}_ms"], readable.milliseconds) for each in ("p50", "p95", "p99")),
            *(_data(arm["first_token_ms"][each], readable.milliseconds) for each in ("p50", "p95", "p99")),
            _data(arm["tokens_per_second"], readable.tenths),
        )
        for arm in arms
    ]
    bins = [
        (
            _arm(arm, styles),
            _data(each["from_ms"], readable.milliseconds),
            _data(each["to_ms"], readable.milliseconds),
            _data(each["calls"], readable.count),
        )
        for arm in arms
        for each in arm["latency_ms"]
    ]
    return _section(
        "How long calls take",
        _figure(
            "Time to the end of the answer. Each arm has its own height; the axis is logarithmic.",
            distributions(Described("latency", "Latency of each arm", " ".join(told)), ends, readable.milliseconds),
        ),
        _figure(
            "Time to the first token of streamed answers.",
            ranges(
                Described("first-token", "Time to the first token of each arm", "50th, 95th and 99th percentile."),
                firsts,
                readable.milliseconds,
            ),
        )
        if streamed
        else element("p", "No answer was streamed, so there is no time to a first token."),
        _table(
            "Percentiles",
            ("Arm", "p50", "p95", "p99", "First token p50", "First token p95", "First token p99", "Tokens per second"),
            rows,
        ),
        _folded("Latency, bin by bin", _table("Calls by latency", ("Arm", "From", "To", "Calls"), bins)),
    )


def _durations(arm: Facts, styles: Mapping[str, int], marks: Facts) -> Durations:
    bars = [Bar(float(each["from_ms"]), float(each["to_ms"]), each["calls"]) for each in arm["latency_ms"]]
    told = [(each, float(marks[each]) if marks[each] is not None else None) for each in ("p50", "p95", "p99")]
    return Durations(arm["target"], styles[arm["target"]], bars, told)


def _spoken(name: str, values: Sequence[Number | None]) -> str:
    half, most, _ = (readable.or_unknown(value, readable.milliseconds) for value in values)
    return f"{name}: half of the calls within {half}, 95 % within {most}."


def _cost(route: Facts, styles: Mapping[str, int]) -> Html:
    arms = route["arms"]
    baseline = next((arm for arm in arms if arm["target"] == route["baseline"]), None)
    panels = []
    for title, key in (("Per call", "cost_per_call_usd"), ("Per million tokens", "cost_per_mtok_usd")):
        bars = []
        for arm in arms:
            value, against = arm[key], baseline[key] if baseline is not None else None
            text = readable.or_unknown(value, readable.dollars)
            if value is not None and against and arm is not baseline:
                text += f" ({readable.change(value / against - 1)})"
            bars.append(Amount(arm["target"], styles[arm["target"]], float(value) if value is not None else None, text))
        panels.append((title, bars))
    rows = [
        (
            _arm(arm, styles),
            _data(arm["cost_per_call_usd"], readable.dollars),
            _data(arm["cost_per_mtok_usd"], readable.dollars),
            _data(arm["input_tokens"], readable.count),
            _data(arm["output_tokens"], readable.count),
            _data(arm["cost_usd"], readable.dollars),
        )
        for arm in arms
    ]
    spoken = " ".join(f"{bar.name}: {bar.text} {title.lower()}." for title, bars in panels for bar in bars)
    return _section(
        "What calls cost",
        _figure(
            "Of an answered call, with what failed ones have cost; and of a million tokens, input and output together.",
            amounts(Described("cost", "Cost of each arm", spoken), panels),
        ),
        _table(
            "Costs",
            ("Arm", "Per call", "Per million tokens", "Tokens in", "Tokens out", "All its calls"),
            rows,
        ),
    )


# --- over time -------------------------------------------------------------------------------------------------------


def _over_time(route: Facts, styles: Mapping[str, int]) -> Iterable[Html]:
    slots, rollout = route["timeline"], route["rollout"]
    if not slots:
        yield _section("Over time", element("p", "There has been no call yet."))
        return
    history = sorted(rollout["history"], key=lambda each: each["at"]) if rollout is not None else []
    canary = rollout["canary"] if rollout is not None else None
    # The arm that grows is at the bottom, where its share can be read off the axis.
    names = sorted(styles, key=lambda name: name != canary)
    start = min(readable.epoch(route["since"]), readable.epoch(slots[0]["at"]))
    start = max(start, readable.epoch(slots[0]["at"]) - 3 * slots[0]["seconds"])
    end = max(readable.epoch(slots[-1]["at"]) + slots[-1]["seconds"], start + 60)
    within = [each for each in history if start <= readable.epoch(each["at"]) <= end]
    events = [
        Event(readable.epoch(each["at"]), number, f"{number}. {_happened(each, rollout or {})}", each["what"] in _GRAVE)
        for number, each in enumerate(within, 1)
    ]
    colours = [styles[name] for name in names]
    planned, limits = _planned(rollout, history, start, end)
    split = Timeline(names, colours, [_span(each, names, _of_traffic) for each in slots], events, start, end)
    yield _section(
        "Who took the calls",
        _key(names, styles),
        _figure(
            "Each arm\N{RIGHT SINGLE QUOTATION MARK}s share of the calls, and how many calls there were."
            + (" The dashed line is the share that the rollout meant the canary to have." if planned else ""),
            shares(
                Described("shares", "Share of the calls over time", _spoken_shares(names, slots)),
                split,
                planned,
            ),
        ),
        _events(within, len(history), rollout),
        _folded(
            "Calls, slot by slot",
            _table(
                "Calls over time",
                ("From", "Lasts", *(heading for name in names for heading in (f"{name}: calls", "share", "overflow"))),
                [_slot(each, names) for each in slots],
            ),
        ),
    )
    failures = Timeline(names, colours, [_span(each, names, _failing) for each in slots], events, start, end)
    classes = _classes(route["arms"])
    yield _section(
        "Errors",
        _key(names, styles),
        _figure(
            "The share of each arm\N{RIGHT SINGLE QUOTATION MARK}s calls that failed."
            + (" The thick dashed line is the rollout\N{RIGHT SINGLE QUOTATION MARK}s limit." if limits else "")
            + " A triangle at the upper edge stands for a value beyond it.",
            rates(
                Described("errors", "Error rate over time", _spoken_errors(route["arms"])),
                failures,
                limits,
                readable.share,
                readable.limit,
            ),
        ),
        _table(
            "Errors by class",
            ("Arm", "Calls", "Errors", "Error rate", *classes),
            [
                (
                    _arm(arm, styles),
                    _data(arm["calls"], readable.count),
                    _data(arm["errors"], readable.count),
                    _data(arm["error_rate"], readable.share),
                    *(_data(arm["errors_by_class"].get(each, 0), readable.count) for each in classes),
                )
                for arm in route["arms"]
            ],
        ),
        _folded(
            "Errors, slot by slot",
            _table(
                "Errors over time",
                ("From", "Lasts", *(heading for name in names for heading in (f"{name}: errors", "error rate"))),
                [_failed_slot(each, names) for each in slots],
            ),
        ),
    )


def _classes(arms: Sequence[Facts]) -> list[str]:
    """All classes of errors, the most frequent first."""
    found: dict[str, int] = {}
    for arm in arms:
        for name, count in arm["errors_by_class"].items():
            found[name] = found.get(name, 0) + count
    return sorted(found, key=lambda name: (-found[name], name))


def _of_traffic(slot: Facts, name: str) -> float | None:
    calls = sum(arm["calls"] for arm in slot["arms"].values())
    return slot["arms"][name]["calls"] / calls if calls and name in slot["arms"] else None


def _failing(slot: Facts, name: str) -> float | None:
    arm = slot["arms"].get(name)
    return arm["errors"] / arm["calls"] if arm is not None and arm["calls"] else None


def _span(slot: Facts, names: Sequence[str], value: Callable[[Facts, str], float | None]) -> Span:
    at = readable.epoch(slot["at"])
    values = [value(slot, name) for name in names]
    told = [
        f"{name} {readable.share(each)} ({_failures(slot['arms'][name])})"
        for name, each in zip(names, values, strict=True)
        if each is not None
    ]
    calls = sum(arm["calls"] for arm in slot["arms"].values())
    return Span(
        at, at + slot["seconds"], values, calls, f"{readable.moment(slot['at'])}: {', '.join(told) or 'no calls'}"
    )


def _failures(arm: Facts) -> str:
    return f"{arm['errors']:,} of {arm['calls']:,} calls failed"


def _slot(slot: Facts, names: Sequence[str]) -> tuple[str, ...]:
    cells: list[str] = [_time(slot["at"]), _data(slot["seconds"], readable.length)]
    for name in names:
        arm = slot["arms"].get(name)
        cells += (
            [
                _data(arm["calls"], readable.count),
                readable.or_unknown(_of_traffic(slot, name), readable.share),
                _data(arm["overflow"], readable.count),
            ]
            if arm is not None
            else [_NOT_KNOWN] * 3
        )
    return tuple(cells)


def _failed_slot(slot: Facts, names: Sequence[str]) -> tuple[str, ...]:
    cells: list[str] = [_time(slot["at"]), _data(slot["seconds"], readable.length)]
    for name in names:
        arm = slot["arms"].get(name)
        cells += (
            [_data(arm["errors"], readable.count), readable.or_unknown(_failing(slot, name), readable.share)]
            if arm is not None
            else [_NOT_KNOWN] * 2
        )
    return tuple(cells)


def _levels(history: Sequence[Facts], start: int, end: int, value: Callable[[Facts], Number | None]) -> list[Level]:
    """What held from each event to the next."""
    found: list[Level] = []
    for place, each in enumerate(history):
        until = readable.epoch(history[place + 1]["at"]) if place + 1 < len(history) else end
        since, until, level = max(readable.epoch(each["at"]), start), min(until, end), value(each)
        if level is None or until <= since:
            continue
        if found and found[-1].end == since and found[-1].value == level:
            found[-1] = Level(found[-1].start, until, float(level))
        else:
            found.append(Level(since, until, float(level)))
    return found


def _planned(rollout: Facts | None, history: Sequence[Facts], start: int, end: int) -> tuple[list[Level], list[Level]]:
    """The share that the canary was meant to have, and its limit, by the plan as it is now."""
    if rollout is None:
        return [], []

    def limit(event: Facts) -> Number | None:
        step = _step(event, rollout) if event["state"] in ("RUNNING", "PAUSED", "PROMOTED") else None
        return step["max_error_rate"] if step is not None else None

    def share(event: Facts) -> Number | None:
        weight = _weight(event, rollout)
        return float(weight) / 100 if weight is not None else None

    return _levels(history, start, end, share), _levels(history, start, end, limit)


def _step(event: Facts, rollout: Facts) -> Facts | None:
    number, plan = event["step"], rollout["plan"]
    step: Facts | None = plan[number - 1] if 0 < number <= len(plan) else None
    return step


def _weight(event: Facts, rollout: Facts) -> Number | None:
    """The canary's share after an event; None where it is as configured."""
    if event["state"] == "ROLLED_BACK":
        return 0
    if event["state"] == "PROMOTED":
        promoted: Number = rollout["promoted_weight"]
        return promoted
    step = _step(event, rollout)
    return step["weight"] if step is not None else None


def _happened(event: Facts, rollout: Facts) -> str:
    words, weight = _HAPPENED.get(event["what"], _worded(event["what"])), _weight(event, rollout)
    return words + (f", canary at {readable.percent(weight)}" if weight is not None else "")


def _events(within: Sequence[Facts], of: int, rollout: Facts | None) -> Html | None:
    if not within or rollout is None:
        return None
    items = [
        element(
            "li",
            _time(each["at"]),
            " ",
            element("strong", _happened(each, rollout), class_="grave" if each["what"] in _GRAVE else None),
            together(": ", each["text"]),
            element("div", _evidence(each["facts"]), class_="evidence") if each["facts"] else None,
        )
        for each in within
    ]
    return together(
        element("h3", "What happened"),
        element("ol", *items, class_="events"),
        element("p", f"{of - len(within)} events were at other times.") if of > len(within) else None,
    )


def _spoken_shares(names: Sequence[str], slots: Sequence[Facts]) -> str:
    first, last = (
        " and ".join(f"{name} {readable.or_unknown(_of_traffic(slot, name) or 0.0, readable.share)}" for name in names)
        for slot in (slots[0], slots[-1])
    )
    return f"At first {first}; at last {last}."


def _spoken_errors(arms: Sequence[Facts]) -> str:
    return " ".join(
        f"{arm['target']}: {readable.or_unknown(arm['error_rate'], readable.share)} of all calls failed."
        for arm in arms
    )


# --- all numbers -----------------------------------------------------------------------------------------------------


def _arms(route: Facts, styles: Mapping[str, int]) -> Html:
    rows = [
        (
            _arm(arm, styles),
            together(arm["model"]) if arm["model"] is not None else "as asked",
            together(arm["health"].replace("_", " ")),
            _data(arm["weight"], readable.percent),
            _data(arm["calls"], readable.count),
            together(_data(arm["errors"], readable.count), *_rejected(arm)),
            _data(arm["availability"], readable.share),
            _data(arm["overflow"], readable.count),
        )
        for arm in route["arms"]
    ]
    return _section(
        "The arms",
        _table(
            "How the arms stand",
            ("Arm", "Model", "Health", "Weight now", "Calls", "Errors", "Availability", "Overflow"),
            rows,
            words=(0, 1, 2),
        ),
    )


def _rejected(arm: Facts) -> Sequence[Html | str]:
    """What stands beside its errors: the calls that it has answered with that they are mistaken."""
    return (", ", _data(arm["rejected"], readable.count), " rejected") if arm.get("rejected") else ()


def _mirror(mirror: Facts) -> Html:
    """Calls that were copied to a second target, and how its answers compare with the route's own."""
    sides = [("the route itself", mirror["own"]), (_name(mirror["target"]), mirror["mirror"])]
    model = (" as ", _name(mirror["model"])) if mirror["model"] is not None else ()
    added, first = mirror["added_ms"], mirror["added_first_token_ms"]
    return _section(
        "The mirror",
        element(
            "p",
            _data(mirror["share"], readable.share),
            " of the calls, since ",
            _time(mirror["since"]),
            ", were sent to ",
            _name(mirror["target"]),
            *model,
            " as well, and nobody got its answers. Not copied: ",
            _data(mirror["dropped"], readable.count),
            " because too many copies were under way or nothing took them, and ",
            _data(mirror["unfit"], readable.count),
            " that its protocol has no words for. Saving per call: ",
            _data(mirror["saving_per_call"], readable.share),
            ".",
        ),
        element(
            "div",
            _table(
                "Who answered well",
                ("Both", "Only the route", "Only the mirror", "Neither"),
                [tuple(_data(mirror[f"{who}_good"], readable.count) for who in ("both", "own", "mirror", "neither"))],
                words=(),
            ),
            _table(
                "Latency that the mirror adds",
                ("", "50th percentile", "95th percentile", "99th percentile"),
                [
                    (what, *(_data(by[each], readable.added_ms) for each in ("p50", "p95", "p99")))
                    for what, by in (("to the end of the answer", added), ("to the first token", first))
                ],
            ),
            class_="pair",
        ),
        _table(
            "Both sides of the copied calls",
            ("", "Calls", "Errors", "p50", "p95", "p99", "First token p50", "p95", "p99", "Tokens a second"),
            [
                (
                    name,
                    _data(side["calls"], readable.count),
                    _failed_calls(side),
                    *(_data(side[f"{each}_ms"], readable.milliseconds) for each in ("p50", "p95", "p99")),
                    *(_data(side["first_token_ms"][each], readable.milliseconds) for each in ("p50", "p95", "p99")),
                    _data(side["tokens_per_second"], readable.tenths),
                )
                for name, side in sides
            ],
        ),
        _table(
            "What they cost",
            ("", "Per call", "Tokens in", "Tokens out", "All of them"),
            [
                (
                    name,
                    _data(side["cost_per_call_usd"], readable.dollars),
                    _data(side["input_tokens"], readable.count),
                    _data(side["output_tokens"], readable.count),
                    _data(side["cost_usd"], readable.dollars),
                )
                for name, side in sides
            ],
        ),
    )


def _failed_calls(side: Facts) -> Html:
    classes = [together(_data(count, readable.count), f" {name}") for name, count in side["errors_by_class"].items()]
    told = together(" (", _listed(classes), ")") if classes else None
    return together(_data(side["errors"], readable.count), told)


def _notes() -> Html:
    items = (
        "A call counts once, on the arm that it ended on or failed on. Latency is that of calls that did not fail.",
        "Percentiles come from histograms and are within 3.2\N{NO-BREAK SPACE}% of the exact ones.",
        "Availability is the share of calls meant for an arm that it answered. Those that overflowed to another arm, "
        "because it was full or out of service, were not answered by it.",
        "A criterion is answered once the whole interval in which its value lies with 95\N{NO-BREAK SPACE}% confidence "
        "is on one side of the limit. Until then there is not enough data.",
        "What 30 days cost is what calls have cost here, times the calls that 30 days like this would have. Where the "
        "price of an arm is not known, neither is a cost that it has part in.",
    )
    return _section("How these numbers are made", element("ul", *(element("li", each) for each in items)))


# --- parts of the page -----------------------------------------------------------------------------------------------


def _section(title: str, *parts: str | None) -> Html:
    return element("section", element("h2", title), *parts)


def _figure(caption: str, chart: Html) -> Html:
    return element("figure", chart, element("figcaption", caption))


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> Html:
    """In a box of its own that can be scrolled, also by keyboard. `words` are the columns that are no numbers."""
    kinds = [None if column in words else "n" for column in range(len(head))]
    columns = [element("th", title, scope="col", class_=kind) for title, kind in zip(head, kinds, strict=True)]
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    table = element(
        "table", element("caption", caption), element("thead", element("tr", *columns)), element("tbody", *lines)
    )
    return element("div", table, class_="table", role="region", aria_label=caption, tabindex=0)


def _folded(summary: str, *parts: str) -> Html:
    return element("details", element("summary", summary), *parts)


def _tile(name: str, value: str, text: str) -> Html:
    return element("div", element("dt", name), element("dd", value, class_="big"), element("dd", text))


def _fact(name: str, value: str) -> Html:
    return element("div", element("dt", name), element("dd", value))


def _key(names: Sequence[str], styles: Mapping[str, int]) -> Html:
    return element("ul", *(element("li", swatch(styles[name]), _name(name)) for name in names), class_="legend")


def _arm(arm: Facts, styles: Mapping[str, int]) -> Html:
    return together(swatch(styles[arm["target"]]), _name(arm["target"]))


def _name(name: str) -> Html:
    """What somebody has chosen: set apart, so that it does not read as ours, nor change the order of what follows."""
    return element("bdi", name)


def _listed(parts: Sequence[str]) -> Html:
    *most, last = parts or (_NOT_KNOWN,)
    joined = [piece for part in most for piece in (part, ", ")]
    return together(*joined[:-1], " and " if most else None, last)


def _data(value: Number | None, shown: Callable[[Number], str]) -> str:
    """A number as people read it, with all its digits for programs."""
    if value is None:
        return _NOT_KNOWN
    return element("data", shown(value), value=f"{readable.exact(value):f}")


def _time(at: str | Number) -> Html:
    return element("time", readable.moment(at), datetime=f"{readable.instant(at):%Y-%m-%dT%H:%M:%SZ}")
