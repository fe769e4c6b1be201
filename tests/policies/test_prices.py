"""`policies.prices`: a cost is exact and never rounded down, and no cost exceeds the bound it was lent by."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices.types as genai
import pytest
from genai_prices.data import providers as PROVIDERS
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import Usage
from config.settings import PriceSettings, TargetSettings, ToolSettings
from policies import prices as module
from policies.prices import MOST_TOKENS, Price, Prices, Rates, configured, femto
from policies.published import Model, find, provider
from tests.support.process import ROOT

DOLLAR = 10**9
"""Nano-dollars; and femto-dollars for a token of those that cost a dollar a million."""


@dataclass
class Clock:
    now: float = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def price(**written: Any) -> Price:
    return configured(PriceSettings(**({"input_usd_per_mtok": 1, "output_usd_per_mtok": 10} | written)))


def target(
    name: str = "t", kind: Any = "openai", url: str = "https://api.openai.com/v1", **more: Any
) -> TargetSettings:
    return TargetSettings(name=name, kind=kind, url=url, **more)


# What is configured


def test_tokens_cost_what_is_written() -> None:
    assert price().cost(Usage(1_000_000, 1_000_000)) == 11 * DOLLAR
    assert price(input_usd_per_mtok=0.05, output_usd_per_mtok=0.1).cost(Usage(1000, 200)) == 70_000


def test_a_cost_is_rounded_up_once_and_not_for_each_token() -> None:
    cheap = price(input_usd_per_mtok=0.0001, output_usd_per_mtok=0)
    assert [cheap.cost(Usage(tokens, 0)) for tokens in (0, 1, 10, 11)] == [0, 1, 1, 2]
    assert cheap.bound(11, 0) == 2


def test_a_price_written_with_more_digits_than_a_rate_has_is_rounded_up() -> None:
    assert femto(Decimal("0.0833333333333333"), 10**6) == 83_333_334
    assert femto(0.1) == 10**14


def test_a_part_without_a_rate_of_its_own_costs_what_the_whole_does() -> None:
    whole = Usage(100, 100)
    parts = Usage(100, 100, 20, 20, 50, 20, 50, 20, cache_write_1h_tokens=10)
    assert price().cost(parts) == price().cost(whole)


@pytest.mark.parametrize(
    ("rate", "usage"),
    [
        ("cache_read_usd_per_mtok", Usage(100, 0, cache_read_tokens=40)),
        ("cache_write_usd_per_mtok", Usage(100, 0, cache_write_tokens=40)),
        ("cache_write_1h_usd_per_mtok", Usage(100, 0, cache_write_tokens=40, cache_write_1h_tokens=40)),
        ("audio_input_usd_per_mtok", Usage(100, 0, audio_input_tokens=40)),
        ("image_input_usd_per_mtok", Usage(100, 0, image_input_tokens=40)),
        ("reasoning_usd_per_mtok", Usage(0, 100, reasoning_tokens=40)),
        ("audio_output_usd_per_mtok", Usage(0, 100, audio_output_tokens=40)),
    ],
)
def test_a_part_with_a_rate_of_its_own_costs_that(rate: str, usage: Usage) -> None:
    assert price(output_usd_per_mtok=1, **{rate: 7}).cost(usage) == (60 + 40 * 7) * 1000
    assert price(output_usd_per_mtok=1, **{rate: 0}).cost(usage) == 60 * 1000


def test_what_a_cache_keeps_for_an_hour_costs_what_other_writes_do_unless_it_has_a_rate() -> None:
    usage = Usage(100, 0, cache_write_tokens=40, cache_write_1h_tokens=30)
    assert price(cache_write_usd_per_mtok=2).cost(usage) == (60 + 80) * 1000
    assert price(cache_write_usd_per_mtok=2, cache_write_1h_usd_per_mtok=4).cost(usage) == (60 + 20 + 120) * 1000


def test_parts_that_are_more_than_the_whole_are_not_charged_beyond_it() -> None:
    """Of tokens that are cached sound, nobody says how many there are: they count as sound, the dearer of the two."""
    dear = price(cache_read_usd_per_mtok=0.5, audio_input_usd_per_mtok=9, audio_output_usd_per_mtok=20)
    assert dear.cost(Usage(100, 0, cache_read_tokens=80, audio_input_tokens=60)) == (60 * 9_000 + 40 * 500)
    assert dear.cost(Usage(100, 0, audio_input_tokens=1000)) == 100 * 9_000
    assert dear.cost(Usage(0, 10, reasoning_tokens=10, audio_output_tokens=1000)) == 10 * 20_000


def test_a_tier_holds_for_all_tokens_of_a_call_above_it() -> None:
    tiered = price(
        cache_read_usd_per_mtok=0.5,
        tiers=[
            {"above_input_tokens": 100, "input_usd_per_mtok": 2, "output_usd_per_mtok": 20},
            {
                "above_input_tokens": 200,
                "input_usd_per_mtok": 3,
                "output_usd_per_mtok": 30,
                "cache_read_usd_per_mtok": 1,
            },
        ],
    )
    assert tiered.cost(Usage(100, 1)) == 110_000
    assert tiered.cost(Usage(101, 1)) == 222_000
    assert tiered.cost(Usage(101, 1, cache_read_tokens=100)) == 222_000, "a tier has its own rates, or none"
    assert tiered.cost(Usage(200, 1)) == 420_000
    assert tiered.cost(Usage(201, 1, cache_read_tokens=200)) == 233_000


def test_calls_and_searches_cost_what_is_written() -> None:
    dear = price(usd_per_call=0.01, usd_per_web_search=0.5)
    assert dear.cost(Usage(1, 0, web_searches=2)) == 1_000 + DOLLAR // 100 + DOLLAR
    assert dear.cost(Usage(0, 0, file_searches=2)) == DOLLAR // 100
    assert dear.bound(1, 0, searches=2) == 1_000 + DOLLAR // 100 + DOLLAR
    assert dear.bound(1, 0, calls=3) == 1_000 + 3 * DOLLAR // 100


def test_a_price_of_nothing_is_nothing() -> None:
    free = price(input_usd_per_mtok=0, output_usd_per_mtok=0)
    assert (free.cost(Usage(10**9, 10**9)), free.bound(10**9, 10**9)) == (0, 0)
    assert free.affords(0, 10**9) == MOST_TOKENS


# Bounds

RATE = st.none() | st.integers(0, 10**9)
RATES = st.builds(
    Rates.of,
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    cache_read=RATE,
    cache_write=RATE,
    cache_write_1h=RATE,
    audio_input=RATE,
    image_input=RATE,
    reasoning=RATE,
    audio_output=RATE,
)
COUNT = st.integers(0, 400)
TIERS = st.lists(st.tuples(COUNT, RATES), max_size=3, unique_by=lambda tier: tier[0]).map(
    lambda tiers: tuple(sorted(tiers, key=lambda tier: tier[0]))
)
FLAT = st.builds(Price, RATES, TIERS, st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
ANY_PRICE = st.builds(
    lambda price, perhaps, variants: replace(price, perhaps=tuple(perhaps), variants=variants),
    FLAT,
    st.lists(FLAT, max_size=2),
    st.dictionaries(st.sampled_from(["priority", "flex"]), FLAT, max_size=2),
)
USED = st.builds(
    Usage, *[COUNT] * 8, cache_write_1h_tokens=COUNT, web_searches=st.integers(0, 3), file_searches=st.integers(0, 3)
)


@given(ANY_PRICE, USED, COUNT, COUNT, st.integers(0, 3))
def test_no_usage_within_a_bound_costs_more_than_it(price: Price, usage: Usage, more: int, longer: int, n: int) -> None:
    searches = usage.web_searches + usage.file_searches
    bound = price.bound(usage.input_tokens + more, usage.output_tokens + longer, 1, searches + n)
    for each in (price, *price.perhaps):
        assert 0 <= each.cost(usage) <= bound


@given(ANY_PRICE, COUNT, COUNT, COUNT, COUNT, st.integers(1, 3), st.integers(0, 3))
def test_a_bound_never_falls(price: Price, given_: int, made: int, more: int, longer: int, calls: int, n: int) -> None:
    assert price.bound(given_, made) <= price.bound(given_ + more, made + longer, calls, n)


@given(ANY_PRICE, st.integers(0, 10**6), COUNT, st.integers(1, 5), st.integers(0, 2))
def test_what_an_amount_affords_is_the_most_whose_bound_is_within_it(
    price: Price, amount: int, input_tokens: int, answers: int, searches: int
) -> None:
    tokens = price.affords(amount, input_tokens, answers, searches)
    if tokens < 0:
        assert price.bound(input_tokens, 0, 1, searches) > amount
        return
    assert tokens % answers == 0
    assert price.bound(input_tokens, tokens, 1, searches) <= amount
    if tokens + answers <= MOST_TOKENS:
        assert price.bound(input_tokens, tokens + answers, 1, searches) > amount


def test_a_bound_takes_the_dearest_tier_that_a_shorter_input_may_fall_into() -> None:
    falling = price(tiers=[{"above_input_tokens": 100, "input_usd_per_mtok": 0.5, "output_usd_per_mtok": 20}])
    assert falling.bound(200, 1) == 200 * 1_000 + 20_000
    assert falling.bound(100, 1) == 100 * 1_000 + 10_000


# What is published


def models() -> Iterator[tuple[genai.Provider, genai.ModelInfo]]:
    for each in PROVIDERS:
        for info in each.models:
            yield each, info


NOW = Clock().now
PRICED = [(each, info, found) for each, info in models() if (found := Model(info).price(NOW)) is not None]
MEASURED = {
    "audio_hours",
    "input_audio_hours",
    "input_characters",
    "input_document_kpages",
    "input_annotated_document_kpages",
    "input_mchars",
    "input_text_messages_kcount",
    "input_video_mtok",
    "output_citation_mtok",
    "output_image_mtok",
    "output_video_mtok",
}
"""Units that no usage of ours counts."""


def test_most_published_models_have_a_price_and_the_others_are_sold_by_something_else_than_tokens() -> None:
    assert len(PRICED) > 2000
    unpriced = [(each, info) for each, info in models() if Model(info).price(NOW) is None]
    assert unpriced
    for each, info in unpriced:
        units = {key for key, value in vars(info.get_prices(datetime.fromtimestamp(NOW, UTC))).items() if value}
        assert not units or units & MEASURED, f"{each.id}/{info.id} is sold by {units}"
    names = {f"{each.id}/{info.id}" for each, info in unpriced}
    assert {"openai/whisper-1", "openai/tts-1", "perplexity/sonar-deep-research"} <= names
    assert not {name for name in names if name.startswith("anthropic/")}


PARTS = st.integers(0, 400_000)


@settings(max_examples=500)
@given(
    st.sampled_from(PRICED),
    PARTS,
    st.fixed_dictionaries(dict.fromkeys(("read", "written", "hour", "audio", "image", "thought", "spoken"), PARTS)),
    PARTS,
    st.integers(0, 5),
)
def test_a_published_model_costs_what_genai_prices_says(
    priced: tuple[genai.Provider, genai.ModelInfo, Price], plain: int, parts: dict[str, int], said: int, searches: int
) -> None:
    seller, info, found = priced
    units = {key for key, value in vars(info.get_prices(datetime.fromtimestamp(NOW, UTC))).items() if value is not None}
    if "output_mtok" not in units:
        said = parts["thought"] = parts["spoken"] = 0
    for name, unit in (("audio", "input_audio_mtok"), ("image", "input_image_mtok"), ("spoken", "output_audio_mtok")):
        if unit not in units:
            parts[name] = 0
    usage = Usage(
        input_tokens=plain + parts["read"] + parts["written"] + parts["hour"] + parts["audio"] + parts["image"],
        output_tokens=said + parts["thought"] + parts["spoken"],
        cache_read_tokens=parts["read"],
        cache_write_tokens=parts["written"] + parts["hour"],
        cache_write_1h_tokens=parts["hour"],
        reasoning_tokens=parts["thought"],
        audio_input_tokens=parts["audio"],
        audio_output_tokens=parts["spoken"],
        image_input_tokens=parts["image"],
        web_searches=searches,
        file_searches=searches,
    )
    theirs = genai.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        input_audio_tokens=usage.audio_input_tokens,
        input_image_tokens=usage.image_input_tokens,
        cache_audio_read_tokens=0,
        cache_image_read_tokens=0,
        output_reasoning_tokens=usage.reasoning_tokens,
        output_audio_tokens=usage.audio_output_tokens,
        web_searches=searches,
        storage_searches=searches,
    )
    expected = info.calc_price(theirs, seller, genai_request_timestamp=datetime.fromtimestamp(NOW, UTC)).total_price
    # Rates with more digits than ours have are rounded up, by less than a femto-dollar a token.
    assert 0 <= found.cost(usage) - expected * DOLLAR < 1 + Decimal(usage.input_tokens + usage.output_tokens) / 10**6
    assert found.cost(usage) <= found.bound(usage.input_tokens, usage.output_tokens, 1, 2 * searches)


def test_a_target_is_priced_by_its_url_else_by_its_kind() -> None:
    prices = Prices(
        [
            target("openai"),
            target("claude", "anthropic", "https://api.anthropic.com"),
            target("router", url="https://openrouter.ai/api/v1"),
            target("near", url="http://127.0.0.1:9000/v1"),
            target("azure", url="https://acme.openai.azure.com/openai/v1"),
            target("parallax", "parallax", "http://127.0.0.1:3001"),
        ],
        clock=Clock(),
    )
    own = prices.of("openai", "gpt-4o-mini")
    assert own is not None
    assert own.cost(Usage(1_000_000, 1_000_000)) == 750_000_000
    assert prices.of("near", "gpt-4o-mini") == own
    assert prices.of("claude", "claude-sonnet-4-5") is not None
    assert prices.of("claude", "gpt-4o-mini") is None
    assert prices.of("router", "anthropic/claude-sonnet-4.5") is not None
    assert prices.of("router", "gpt-99") is None
    # Azure sells OpenAI's models at OpenAI's prices, on terms of its own.
    sold = prices.of("azure", "gpt-5")
    assert sold is not None
    assert sold.variants == {}
    assert prices.of("parallax", "gpt-4o-mini") is None


def test_what_nobody_knows_is_unknown_and_not_free() -> None:
    prices = Prices([target()], clock=Clock())
    assert prices.of("t", "Qwen/Qwen3-0.6B") is None
    assert prices.of("nowhere", "gpt-4o-mini") is None
    assert prices.of("t", "whisper-1") is None
    assert prices.of("t", "omni-moderation-latest") is None, "the table has no price for it, which is not a price of 0"


def test_a_model_that_only_reads_does_not_answer_for_free() -> None:
    found = Prices([target()], clock=Clock()).of("t", "text-embedding-3-small")
    assert found is not None
    assert found.cost(Usage(1_000_000, 0)) == 20_000_000
    assert found.cost(Usage(0, 1_000_000)) == 20_000_000


def test_a_configured_price_holds_for_every_model_and_nothing_published_beside_it() -> None:
    prices = Prices([target(price=PriceSettings(input_usd_per_mtok=0, output_usd_per_mtok=1))], clock=Clock())
    assert (
        prices.of("t", "gpt-4o-mini")
        == prices.of("t", "anything")
        == price(input_usd_per_mtok=0, output_usd_per_mtok=1)
    )


def test_published_prices_are_not_read_where_all_prices_are_configured() -> None:
    """That takes a third of a second and ten megabytes."""
    code = """
import subprocess
import sys
from config.settings import PriceSettings, TargetSettings
from policies.prices import Prices
settings = TargetSettings(name="t", kind="openai", url="https://api.openai.com/v1", context_window=9,
    price=PriceSettings(input_usd_per_mtok=1, output_usd_per_mtok=1))
prices = Prices([settings])
assert prices.of("t", "gpt-4o-mini") and prices.context("t", "gpt-4o-mini") == 9
assert "genai_prices" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_terms_that_a_target_bills_by_decide_what_is_charged() -> None:
    found = Prices([target()], clock=Clock()).of("t", "gpt-5")
    assert found is not None
    usage = Usage(1_000_000, 1_000_000)
    assert found.cost(usage) == 11_250_000_000
    assert found.cost(replace(usage, tier="priority")) == 22_500_000_000
    assert found.cost(replace(usage, tier="flex")) == 5_625_000_000
    assert found.cost(replace(usage, tier="on_demand")) == found.cost(usage)


def test_the_bound_of_a_call_on_other_terms_also_holds_where_the_target_bills_it_as_usual() -> None:
    found = Prices([target()], clock=Clock()).of("t", "gpt-5")
    assert found is not None
    tokens = (1_000_000, 1_000_000)
    assert found.on("").bound(*tokens) == found.on("scale").bound(*tokens) == found.bound(*tokens) == 11_250_000_000
    assert found.on("priority").bound(*tokens) == 22_500_000_000
    assert found.on("flex").bound(*tokens) == 11_250_000_000


def test_anthropics_fast_mode_and_its_searches_have_prices() -> None:
    found = Prices([target("c", "anthropic", "https://api.anthropic.com")], clock=Clock()).of("c", "claude-opus-4-8")
    assert found is not None
    assert found.cost(Usage(0, 1_000_000)) == 25 * DOLLAR
    assert found.cost(Usage(0, 1_000_000, tier="fast")) == 50 * DOLLAR
    assert found.cost(Usage(0, 0, web_searches=3)) == 30_000_000
    assert found.cost(Usage(1_000_000, 0, cache_write_tokens=1_000_000, cache_write_1h_tokens=1_000_000)) == 10 * DOLLAR


def conditional(*prices: tuple[genai.StartDateConstraint | genai.TimeOfDateConstraint | None, int]) -> Model:
    """A model whose input costs so many dollars when a constraint holds."""
    return Model(
        genai.ModelInfo(
            "m",
            genai.ClauseEquals("m"),
            prices=[
                genai.ConditionalPrice(
                    constraint, prices=genai.ModelPrice(input_mtok=Decimal(usd), output_mtok=Decimal(usd))
                )
                for constraint, usd in prices
            ],
        )
    )


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


BY_DAY = genai.TimeOfDateConstraint(datetime(1, 1, 1, 9).time(), datetime(1, 1, 1, 18).time())
FROM_DECEMBER = genai.StartDateConstraint(datetime(2026, 12, 1).date())


@pytest.mark.parametrize(
    ("model", "now", "cost", "bound"),
    [
        (conditional((None, 1), (BY_DAY, 4)), "2026-11-21T03:00+00:00", 1, 1),
        (conditional((None, 1), (BY_DAY, 4)), "2026-11-21T08:59+00:00", 1, 4),
        (conditional((None, 1), (BY_DAY, 4)), "2026-11-21T12:00+00:00", 4, 4),
        (conditional((None, 1), (BY_DAY, 4)), "2026-11-21T17:59+00:00", 4, 4),
        (conditional((None, 4), (BY_DAY, 1)), "2026-11-21T17:59+00:00", 1, 4),
        (conditional((None, 4), (FROM_DECEMBER, 1)), "2026-11-30T23:59+00:00", 4, 4),
        (conditional((None, 4), (FROM_DECEMBER, 1)), "2026-12-01T00:00+00:00", 1, 1),
        (conditional((None, 1), (FROM_DECEMBER, 4)), "2026-11-30T20:00+00:00", 1, 1),
        (conditional((None, 1), (FROM_DECEMBER, 4)), "2026-11-30T22:00+00:00", 1, 4),
    ],
)
def test_a_price_that_changes_is_charged_as_it_stands_and_lent_as_it_may_stand_soon(
    model: Model, now: str, cost: int, bound: int
) -> None:
    found = model.price(at(now))
    assert found is not None
    assert found.cost(Usage(1_000_000, 0)) == cost * DOLLAR
    assert found.bound(1_000_000, 0) == bound * DOLLAR


def test_a_model_that_will_soon_be_sold_by_the_hour_has_no_price() -> None:
    model = conditional((None, 1))
    model.info.prices = [
        *([model.info.prices] if isinstance(model.info.prices, genai.ModelPrice) else model.info.prices),
        genai.ConditionalPrice(FROM_DECEMBER, prices=genai.ModelPrice(audio_hours=Decimal(1))),
    ]
    assert model.price(at("2026-11-30T12:00+00:00")) is not None
    assert model.price(at("2026-11-30T23:00+00:00")) is None


def test_a_price_by_the_time_of_day_is_looked_up_again_when_it_changes() -> None:
    clock = Clock(at("2026-11-21T00:59+00:00"))
    prices = Prices([target(url="https://api.deepseek.com")], clock=clock)
    night = prices.of("t", "deepseek-flash")
    clock.now = at("2026-11-21T00:59:59+00:00")
    assert prices.of("t", "deepseek-flash") is night
    clock.now = at("2026-11-21T01:00+00:00")
    day = prices.of("t", "deepseek-flash")
    assert night is not None
    assert day is not None
    assert day.cost(Usage(1_000_000, 0)) == 300_000_000
    assert night.cost(Usage(1_000_000, 0)) < day.cost(Usage(1_000_000, 0)) <= night.bound(1_000_000, 0)


def test_every_published_change_of_the_day_falls_on_a_quarter_of_an_hour() -> None:
    times = [
        moment
        for _, info in models()
        if not isinstance(info.prices, genai.ModelPrice)
        for each in info.prices
        if isinstance(each.constraint, genai.TimeOfDateConstraint)
        for moment in (each.constraint.start_time, each.constraint.end_time)
    ]
    assert times
    assert all(moment.minute % 15 == moment.second == 0 for moment in times)


def test_what_callers_ask_for_is_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 8)
    prices = Prices([target()], clock=Clock())
    for index in range(30):
        assert prices.of("t", f"made-up-{index}") is None
    assert len(prices._models) <= 8
    assert len(prices._found) <= 8
    assert prices.of("t", "gpt-4o-mini") is not None


def test_the_table_finds_a_model_by_any_name_that_its_provider_takes() -> None:
    openai = provider("https://api.openai.com/v1", "openai")
    assert openai is not None
    dated, tuned = find(openai, "gpt-4o-mini-2024-07-18"), find(openai, "ft:gpt-4o-mini-2024-07-18:acme::abc")
    assert dated is not None
    assert tuned is not None
    assert dated.info.id == "gpt-4o-mini"
    assert tuned.info.id != dated.info.id
    assert provider("http://127.0.0.1:3001", "parallax") is None


# Beside prices


def test_how_much_a_model_reads_is_what_is_configured_else_what_is_published() -> None:
    prices = Prices([target(), target("s", context_window=32_768)], clock=Clock())
    assert prices.context("t", "gpt-4o-mini") == 128_000
    assert prices.context("s", "gpt-4o-mini") == 32_768
    assert prices.context("t", "made-up") is None
    assert prices.context("nowhere", "gpt-4o-mini") is None


def test_how_long_answers_can_be_is_only_known_where_it_is_configured() -> None:
    prices = Prices([target(), target("s", max_output_tokens=4096)], clock=Clock())
    assert prices.longest("s", "any") == 4096
    assert prices.longest("t", "gpt-4o-mini") is None
    assert prices.longest("nowhere", "gpt-4o-mini") is None


def test_a_tool_costs_what_a_call_of_it_does() -> None:
    tools = [
        ToolSettings(name="crm", kind="http", url="http://127.0.0.1:1", price={"usd_per_call": 0.01}),  # type: ignore[arg-type]
        ToolSettings(name="git", kind="mcp", url="http://127.0.0.1:2"),
    ]
    prices = Prices([], tools)
    crm = prices.tool("crm")
    assert crm is not None
    assert crm.cost(Usage()) == crm.bound(0, 0) == DOLLAR // 100
    assert prices.tool("git") is None
    assert prices.tool("nothing") is None
