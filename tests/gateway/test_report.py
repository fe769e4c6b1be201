"""The page about a route: well-formed HTML with every number of its input, and nothing of anybody else's making."""

import copy
import datetime
import functools
import re
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.report import report_page
from gateway.report_style import STYLE
from tests.support.route_told import told

NOW = datetime.datetime(2025, 11, 28, 9, 30, tzinfo=datetime.UTC)
VOID = {"meta", "br", "col"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><b>",
    "<!--",
    "&lt;i&gt;",
    "' onload='alert(1)",
    "https://evil.example/x.js",
    "a\x1b[31m\x00\r\nb",
    "abc\N{RIGHT-TO-LEFT OVERRIDE}def",
    "\N{ZERO WIDTH SPACE}",
    "x" * 300,
)


class Page(HTMLParser):
    """A page as its reader takes it. Raises AssertionError where an element is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shape: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        self.shape.append(f"{tag} {' '.join(name for name, _ in attrs)}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.shape.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, attribute: str) -> list[str | None]:
        return [given[attribute] for _, given in self.elements if attribute in given]


def numbers(facts: Any) -> Iterator[Decimal]:
    if isinstance(facts, dict):
        for value in facts.values():
            yield from numbers(value)
    elif isinstance(facts, list):
        for value in facts:
            yield from numbers(value)
    elif isinstance(facts, int | float | Decimal):
        yield Decimal(str(facts))


def small() -> dict[str, Any]:
    """A route with everything in it, and few slots."""
    route = copy.deepcopy(told())
    route["timeline"] = route["timeline"][::9]
    for arm in route["arms"]:
        arm["latency_ms"] = arm["latency_ms"][::5]
    return route


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_page(told(), NOW))


def test_every_number_of_the_input_is_in_the_page_with_all_its_digits(page: Page) -> None:
    route = told()
    shown = {Decimal(value) for value in page.having("value") if value is not None}
    rollout = route["rollout"]
    asked = [route["arms"], route["comparisons"], route["timeline"], rollout["plan"], rollout["weight"]]
    assert len(list(numbers(asked))) > 500
    assert set(numbers(asked)) <= shown
    for event in rollout["history"]:
        assert event["text"] in page.text
        assert set(numbers({**(event["facts"] or {}), "samples": []})) <= shown
    well = told(days=6.0)
    shown = {Decimal(str(value)) for value in Page(report_page(well, NOW)).having("value")}
    assert set(numbers(well["rollout"]["evidence"])) <= shown
    assert all(each["text"] in report_page(well, NOW) for each in well["rollout"]["missing"])


def test_a_mirror_is_told_with_both_sides_and_every_number() -> None:
    side = {"calls": 1234, "errors": 17, "errors_by_class": {"stream_cut": 12, "connect": 5}}
    times = {
        "p50_ms": 101.5,
        "p95_ms": 202.5,
        "p99_ms": 303.5,
        "first_token_ms": {"p50": 11.5, "p95": None, "p99": 33.5},
    }
    used = {"tokens_per_second": 88.5, "input_tokens": 45678, "output_tokens": 9876}
    cost = {"cost_usd": Decimal("1.25"), "cost_per_call_usd": Decimal("0.0011")}
    mirror = {
        "target": "<b>claude",
        "share": 0.05,
        "model": "haiku",
        "since": "2025-11-20T00:00:00Z",
        "dropped": 41,
        "unfit": 7,
        "both_good": 1200,
        "own_good": 19,
        "mirror_good": 9,
        "neither_good": 6,
        "saving_per_call": 0.315,
        "own": {**side, **times, **used, **cost},
        "mirror": {**side, **times, **used, **cost, "calls": 1233, "cost_per_call_usd": None},
        "added_ms": {"p50": 12.25, "p95": -8.5, "p99": None},
        "added_first_token_ms": {"p50": None, "p95": 3.75, "p99": 4.25},
    }
    page = Page(report_page({**told(), "mirror": mirror}, NOW))
    shown = {Decimal(str(value)) for value in page.having("value")}
    assert set(numbers(mirror)) <= shown
    assert "<b>claude" in page.text
    assert "12 stream_cut and 5 connect" in page.text
    assert "The mirror" not in Page(report_page(told(), NOW)).text


def test_a_director_can_read_the_answer_first() -> None:
    route = copy.deepcopy(told())
    (comparison,) = route["comparisons"]
    for answer, words in (("go", "Go"), ("no_go", "No-go"), ("not_enough_data", "Not enough data")):
        comparison["answer"] = answer
        page = Page(report_page(route, NOW))
        start = page.text.index("parallax in place of openai", page.text.index("Rolled back:"))
        assert re.match(rf"parallax in place of openai . {words} parallax is .* quicker", page.text[start:])
        assert start < page.text.index("Saving per call") < page.text.index("How long calls take")


def test_criteria_are_in_plain_words_with_what_is_missing() -> None:
    route = small()
    latency, saving, availability = route["comparisons"][0]["findings"]
    latency |= {"answer": "go", "value": 42, "low": 31.5, "high": 55, "limit": 150}
    saving |= {"answer": "no_go", "value": Decimal("0.1"), "low": 0.08, "high": 0.12}
    availability |= {"answer": "not_enough_data", "value": 0.9971, "missing": 1309, "missing_of": "parallax"}
    text = Page(report_page(route, NOW)).text
    assert "Added latency, 95th percentile ✓ Go +42 ms less than 150 ms +32 ms to +55 ms" in text
    assert "Saving per call ✕ No-go 10.0 % more than 20 % 8.00 % to 12.0 %" in text
    assert "Availability ? Not enough data : about 1,300 more calls to parallax 99.71 % more than 99.5 %" in text
    words = "is 42 ms slower at the 95th percentile, costs 10.0 % less per call than openai and has answered 99.71 %"
    assert words in text.replace(" , ", ", ")


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    text = report_page(told(), NOW)
    assert not re.search(r"(?i)https?:|//|url\((?!#)|@import|javascript:|data:|srcset|<script|<iframe|<link", text)
    assert not re.search(r"(?i)url\(|@import|expression", STYLE)
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "form", "base", "image", "use", "a"})
    assert not [name for _, given in page.elements for name in given if name.startswith("on") or name == "style"]
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in page.elements


POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def test_what_is_seen_can_be_heard(page: Page) -> None:
    ids = page.having("id")
    assert len(ids) == len(set(ids))
    charts = [given for tag, given in page.elements if tag == "svg" and "viewbox" in given and "role" in given]
    assert len(charts) == 5
    for chart in charts:
        assert chart["role"] == "img"
        assert set(str(chart["aria-labelledby"]).split()) <= set(ids)
    assert all(
        given.get("aria-hidden") == "true" for tag, given in page.elements if tag == "svg" and given not in charts
    )
    tables = [given for _, given in page.elements if given.get("class") == "table"]
    assert all(given["role"] == "region" and given["aria-label"] and given["tabindex"] == "0" for given in tables)
    assert [tag for tag, _ in page.elements].count("caption") == len(tables)
    assert ("html", {"lang": "en"}) in page.elements
    assert all("scope" in given for tag, given in page.elements if tag == "th")
    used = {str(value).removeprefix("url(#").removesuffix(")") for value in page.having("fill")}
    assert used <= set(ids)


def test_arms_are_told_apart_without_colours(page: Page) -> None:
    assert {"url(#fill-0)", "url(#fill-1)"} <= set(page.having("fill"))
    hatched = [given for tag, given in page.elements if tag == "path" and given.get("class") == "hatch"]
    assert len(hatched) == 5
    assert ".line.arm-1{stroke-dasharray" in STYLE


def test_rows_are_as_wide_as_their_heads() -> None:
    text = report_page(told(), NOW)
    for table in re.findall(r"<table>.*?</table>", text):
        widths = {len(re.findall("<t[hd][ >]", row)) for row in re.findall("<tr>.*?</tr>", table)}
        assert len(widths) == 1, table[:200]


def test_events_are_marked_and_explained_and_the_limit_is_drawn(page: Page) -> None:
    flags = [given for tag, given in page.elements if tag == "line" and str(given.get("class")).startswith("flag")]
    assert [given["class"] for given in flags] == ["flag", "flag", "flag grave"] * 2
    assert "Rolled back, canary at 0 %" in page.text
    limits = [str(given["d"]) for _, given in page.elements if given.get("class") == "limit"]
    assert len(limits) == 1
    assert limits[0].count("M") == 2, "1 %, then 0.5 %, then none"
    planned = [str(given["d"]) for _, given in page.elements if given.get("class") == "planned"]
    assert [path.count("M") for path in planned] == [3], "10 %, then 30 %, then 0"
    ends = ("PROMOTED", "complete", "Promoted for good, canary at 100 %"), ("DRAFT", "plan", "Plan edited")
    for state, what, words in ends:
        route = small()
        route["rollout"]["history"][0] |= {"state": state, "what": what, "step": 4 if state == "PROMOTED" else 0}
        assert words in Page(report_page(route, NOW)).text


def test_a_rollout_that_began_before_the_window_still_has_its_limit_drawn() -> None:
    route = copy.deepcopy(told(days=6.0))
    for event in route["rollout"]["history"]:
        event["at"] -= 30 * 86_400
    page = Page(report_page(route, NOW))
    assert [given.get("class") for _, given in page.elements].count("limit") == 1
    assert "What happened" not in page.text


def test_equal_input_makes_an_equal_page() -> None:
    assert report_page(told(), NOW) == report_page(copy.deepcopy(told()), NOW)
    elsewhere = NOW.astimezone(datetime.timezone(datetime.timedelta(hours=9)))
    assert report_page(told(), NOW) == report_page(told(), elsewhere)


# --- whoever chooses names -------------------------------------------------------------------------------------------


def _renamed(name: str) -> dict[str, Any]:
    """A route on which everything that somebody chooses is chosen badly."""
    route = small()
    canary = f"{name}."
    for arm in route["arms"]:
        arm["target"] = canary if arm["target"] == "parallax" else name
        arm["model"] = arm["health"] = name
        arm["errors_by_class"] = {name: 3}
    for slot in route["timeline"]:
        slot["arms"] = {canary if key == "parallax" else name: arm for key, arm in slot["arms"].items()}
    (comparison,) = route["comparisons"]
    comparison |= {"arm": canary, "baseline": name}
    for finding in comparison["findings"]:
        finding["missing_of"] = name
    route |= {"name": name, "models": [name, "gpt-4o-mini"], "baseline": name}
    rollout = route["rollout"]
    missing = {"what": name, "text": name, "amount": None}
    rollout |= {"canary": canary, "missing": [missing] * 2, "evidence": {name: name, "more": [name, {name: 3}]}}
    rollout["explanation"] = name
    for event in rollout["history"]:
        event |= {"by": name, "text": name, "facts": {name: name}}
    return route


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_a_name(name: str) -> None:
    page = Page(report_page(_renamed(name), NOW))
    assert page.shape == _friendly()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u200b\u202e]", report_page(_renamed(name), NOW))
    if name.isprintable():
        assert name in "".join(page.words)


@settings(max_examples=25)
@given(st.text(min_size=1))
def test_no_name_changes_what_a_page_is_made_of(name: str) -> None:
    assert Page(report_page(_renamed(name), NOW)).shape == _friendly()


@functools.cache
def _friendly() -> list[str]:
    return Page(report_page(_renamed("friendly"), NOW)).shape


# --- whatever is not known -------------------------------------------------------------------------------------------


def test_a_route_without_a_call_has_a_page() -> None:
    page = Page(report_page(told(days=0.0), NOW))
    assert "has not been measured yet" in page.text
    assert "There has been no call yet." in page.text
    assert "nan" not in page.text.lower().replace("explanation", "")


def test_a_price_that_is_not_known_is_named_and_no_cost_of_it_is_a_zero() -> None:
    route = small()
    (comparison,) = route["comparisons"]
    saving = comparison["findings"][1]
    saving |= {"answer": "not_enough_data", "value": None, "low": None, "high": None, "unpriced": ["parallax"]}
    comparison |= {"saving_per_call": None, "saving_per_mtok": None}
    comparison["month"] |= {"arm_usd": None, "saving_usd": None, "present_usd": None}
    route["arms"][1] |= {"cost_usd": None, "cost_per_call_usd": None, "cost_per_mtok_usd": None}
    text = Page(report_page(route, NOW)).text
    assert "? Not enough data : the price of parallax is not known ( targets[].price )" in text
    assert "Saving per call \N{EN DASH} the price of parallax is not known" in text
    assert re.search("as they were split [0-9,]+ \N{EN DASH} ", text)
    assert not re.search(r"\$0\.00(?![0-9])", text)


def test_a_route_without_streamed_answers_has_no_chart_of_first_tokens() -> None:
    route = small()
    for arm in route["arms"]:
        arm["first_token_ms"] = dict.fromkeys(("p50", "p95", "p99"))
    route["comparisons"][0]["added_first_token_ms"] = dict.fromkeys(("p50", "p95", "p99"))
    page = Page(report_page(route, NOW))
    assert "No answer was streamed, so there is no time to a first token." in page.text
    assert "First token, 95th percentile \N{EN DASH} no streamed answers of both yet" in page.text
    assert "50th, 95th and 99th percentile." not in page.text


def test_a_route_with_one_arm_and_no_rollout_has_a_page() -> None:
    route = small() | {"comparisons": [], "rollout": None, "baseline": None}
    route["arms"] = route["arms"][:1]
    for slot in route["timeline"]:
        slot["arms"].pop("parallax", None)
    page = Page(report_page(route, NOW))
    assert "no baseline to compare" in page.text
    assert "The rollout" not in page.text


def test_more_arms_than_styles_and_more_events_than_rows_have_a_page() -> None:
    route = small()
    canary = route["arms"][1]
    route["arms"] += [{**canary, "target": f"arm-{number}"} for number in range(7)]
    at = route["rollout"]["history"][0]
    route["rollout"]["history"] = [{**at, "what": "resume", "step": number % 9} for number in range(12)]
    page = Page(report_page(route, NOW))
    assert page.text.count("Resumed") >= 12
    assert "arm-6" in page.text


def test_a_rate_far_beyond_the_limit_is_said_at_the_edge_of_the_chart() -> None:
    route = small()
    route["timeline"][-1]["arms"]["openai"] = {"calls": 10, "errors": 10, "overflow": 0}
    text = Page(report_page(route, NOW)).text
    assert "100 %" in text[text.index("Error rate over time") : text.index("Errors by class")]


@pytest.mark.parametrize(
    "change",
    [
        {"arms": None},
        {"arms": [{}]},
        {"since": "soon"},
        {"comparisons": [{"answer": "perhaps"}]},
        {"timeline": [{"at": 3}]},
        {"rollout": {}},
        {"models": 3},
    ],
)
def test_what_is_not_told_of_a_route_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not what is told of a route|Invalid isoformat"):
        report_page(small() | change, NOW)


@pytest.mark.parametrize("number", [True, "7", float("nan"), float("inf")])
def test_what_is_no_number_is_refused(number: Any) -> None:
    route = small()
    route["arms"][0]["cost_usd"] = number
    with pytest.raises(ValueError, match="is no number"):
        report_page(route, NOW)
