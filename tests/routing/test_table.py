"""`routing.table`: the first route that knows a model, and the arm that chance falls on."""

import random
import time
from collections import Counter
from fnmatch import fnmatchcase

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from config.settings import ArmSettings, RouteSettings
from routing.errors import NoRoute
from routing.table import Arm, Route, Table, table
from routing.target import Target
from tests.routing.places import place

OPENAI, PARALLAX, CLAUDE = place("openai", "openai"), place("parallax", "parallax"), place("claude", "anthropic")
ALMOST_ONE = 1 - 2**-53


def route(name: str, *models: str, arms: list[Arm] | None = None) -> Route:
    return Route(name, models, arms if arms is not None else [Arm(OPENAI, 100.0, None)])


letters = st.text(alphabet="ab*?[]!-.^$\\/\n", min_size=1, max_size=5)
names = st.text(alphabet="abAB.-^$\\/\n", min_size=1, max_size=5) | letters


@given(st.lists(st.lists(letters, min_size=1, max_size=4), max_size=6), names)
def test_the_first_route_with_a_matching_name_or_pattern_wins(routes: list[list[str]], model: str) -> None:
    compiled = Table([route(str(index), *models) for index, models in enumerate(routes)])
    first = next((i for i, models in enumerate(routes) if any(fnmatchcase(model, each) for each in models)), None)
    if first is None:
        with pytest.raises(NoRoute):
            compiled.match(model)
    else:
        assert compiled.match(model).name == str(first)


@pytest.mark.parametrize(
    ("model", "wins"),
    [
        ("gpt-4o-mini", "exact"),
        ("gpt-4o", "pattern"),
        ("GPT-4o", "rest"),
        ("gpt-4o-mini-2", "pattern"),
        ("o1", "digits"),
        ("o10", "rest"),
        ("Qwen/Qwen3-0.6B", "rest"),
    ],
)
def test_names_and_patterns_are_weighed_in_the_operators_order(model: str, wins: str) -> None:
    compiled = Table(
        [
            route("exact", "gpt-4o-mini"),
            route("pattern", "gpt-*"),
            route("shadowed", "gpt-4o", "gpt-4o-mini"),
            route("digits", "o[0-9]"),
            route("rest", "*"),
        ]
    )
    assert compiled.match(model).name == wins


@pytest.mark.parametrize("model", ["gpt-5", "", "gpt-4o-mini\n", " gpt-4o-mini", "GPT-4O-MINI"])
def test_a_model_that_no_route_knows_has_no_route(model: str) -> None:
    with pytest.raises(NoRoute, match="No route serves the model"):
        Table([route("chat", "gpt-4o-mini", "llama-?")]).match(model)


def test_an_empty_table_knows_nothing() -> None:
    with pytest.raises(NoRoute):
        Table([]).match("m")
    assert Table([]).names("openai") == []


@given(st.integers(0, 2**32), st.lists(st.integers(0, 100), min_size=2, max_size=5).filter(any))
def test_every_choice_falls_on_an_arm_with_weight(seed: int, weights: list[int]) -> None:
    chance = random.Random(seed)
    arms = [Arm(place(str(index), "openai"), float(weight), None) for index, weight in enumerate(weights)]
    balanced = route("chat", "m", arms=arms)
    for draw in (0.0, ALMOST_ONE, *(chance.random() for _ in range(50))):
        assert balanced.choose("openai", "chat", draw).weight > 0


@pytest.mark.parametrize("weights", [(90, 10), (50, 50), (1, 99), (70, 0, 30), (0.5, 99.5), (33.3, 33.3, 33.4)])
def test_arms_get_their_share_of_calls(weights: tuple[float, ...]) -> None:
    calls = 100_000
    chance = random.Random(1)
    arms = [Arm(place(str(index), "openai"), float(weight), None) for index, weight in enumerate(weights)]
    balanced = route("chat", "m", arms=arms)
    counted = Counter(balanced.choose("openai", "chat", chance.random()).target.name for _ in range(calls))
    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        deviation = (calls * share * (1 - share)) ** 0.5
        assert abs(counted[str(index)] - calls * share) <= 5 * deviation


@pytest.mark.parametrize(("chance", "chosen"), [(0.0, "a"), (0.2499, "a"), (0.25, "b"), (0.5, "c"), (0.99, "c")])
def test_an_arm_reaches_up_to_its_bound_and_not_onto_it(chance: float, chosen: str) -> None:
    arms = [Arm(place(name, "openai"), weight, None) for name, weight in [("a", 25.0), ("b", 25.0), ("c", 50.0)]]
    assert route("chat", "m", arms=arms).choose("openai", "chat", chance).target.name == chosen


@pytest.mark.parametrize(
    "weights", [(0.1,) * 10, (1e-9, 100.0), (100.0, 1e-9), (1 / 3, 1 / 3, 1 / 3), (5e-324, 5e-324), (0.0, 100.0, 0.0)]
)
def test_a_chance_just_below_one_falls_on_the_last_arm_that_can_be_chosen(weights: tuple[float, ...]) -> None:
    arms = [Arm(place(str(index), "openai"), weight, None) for index, weight in enumerate(weights)]
    chosen = route("chat", "m", arms=arms).choose("openai", "chat", ALMOST_ONE)
    assert chosen.weight > 0
    assert chosen is [arm for arm in arms if arm.weight > 0][-1] or weights[-1] == 1e-9


@pytest.mark.parametrize(
    ("protocol", "operation", "able"),
    [
        ("openai", "chat", {"openai", "parallax"}),
        ("openai", "completions", {"openai"}),
        ("openai", "embeddings", {"openai"}),
        ("openai", "responses", {"openai"}),
        ("anthropic", "messages", {"claude"}),
        ("anthropic", "count_tokens", {"claude"}),
    ],
)
def test_only_arms_that_serve_the_operation_take_part(protocol: str, operation: str, able: set[str]) -> None:
    chance = random.Random(1)
    arms = [Arm(OPENAI, 1.0, None), Arm(PARALLAX, 98.0, None), Arm(CLAUDE, 1.0, None)]
    mixed = route("chat", "m", arms=arms)
    chosen = {mixed.choose(protocol, operation, chance.random()).target.name for _ in range(2000)}
    assert chosen == able


def test_an_operation_that_no_arm_serves_has_no_route() -> None:
    for arms in ([Arm(PARALLAX, 100.0, None)], [Arm(OPENAI, 0.0, None), Arm(PARALLAX, 100.0, None)]):
        for _ in range(2):
            with pytest.raises(NoRoute, match="Route 'chat' has no target that serves embeddings"):
                route("chat", "m", arms=arms).choose("openai", "embeddings", 0.5)


def test_an_arm_knows_the_model_by_its_own_name() -> None:
    settings = RouteSettings(
        name="chat",
        models=("gpt-4o-mini",),
        arms=(
            ArmSettings(target="openai", weight=50),
            ArmSettings(target="parallax", weight=50, model="Qwen/Qwen3-0.6B"),
        ),
    )
    found = table([settings], {"openai": OPENAI, "parallax": PARALLAX}).match("gpt-4o-mini")
    assert [found.choose("openai", "chat", chance).model for chance in (0.0, ALMOST_ONE)] == [None, "Qwen/Qwen3-0.6B"]
    assert [arm.target for arm in found.arms] == [OPENAI, PARALLAX]


def test_a_catalogue_keeps_the_operators_order_without_duplicates_and_wildcards() -> None:
    compiled = Table([route("b", "zeta", "alpha", "llama-*"), route("a", "alpha", "beta", "zeta", "b?", "[x]")])
    assert compiled.names("openai") == ["zeta", "alpha", "beta"]
    assert compiled.names("anthropic") == []


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "c", "a*", "?"]), min_size=1),
            st.lists(st.tuples(st.sampled_from([OPENAI, PARALLAX, CLAUDE]), st.sampled_from([0.0, 1.0])), min_size=1),
        ),
        max_size=5,
    ),
    st.sampled_from(["openai", "anthropic"]),
)
def test_a_catalogue_lists_the_models_that_can_be_called(
    routes: list[tuple[list[str], list[tuple[Target, float]]]], protocol: str
) -> None:
    compiled = Table(
        [
            route(str(index), *models, arms=[Arm(target, weight, None) for target, weight in arms])
            for index, (models, arms) in enumerate(routes)
        ]
    )
    operation = {"openai": "chat", "anthropic": "messages"}[protocol]

    def callable_by_name(model: str) -> bool:
        try:
            compiled.match(model).choose(protocol, operation, 0.5)
        except NoRoute:
            return False
        return any(model in models for models, _ in routes)

    assert set(compiled.names(protocol)) == {model for model in "abc" if callable_by_name(model)}


@given(st.text(alphabet="ab*", min_size=20, max_size=60))
def test_no_pattern_makes_a_long_name_expensive(pattern: str) -> None:
    assume("*" in pattern)
    compiled = Table([route("r", pattern + "z")])
    began = time.perf_counter()
    for _ in range(3):
        with pytest.raises(NoRoute):
            compiled.match("a" * 256)
    assert time.perf_counter() - began < 1.0


def test_finding_a_way_through_a_hundred_routes_costs_microseconds_at_most() -> None:
    """The bound is loose for busy machines; on a quiet one it takes less than a microsecond."""
    arms = [Arm(OPENAI, 90.0, None), Arm(PARALLAX, 10.0, None)]
    compiled = Table([route(f"r{index}", f"model-{index}", arms=arms) for index in range(100)])

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            compiled.match("model-99").choose("openai", "chat", 0.5)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(10)) < 0.005


def test_what_was_matched_before_is_matched_alike() -> None:
    routes = Table([route("one", "gpt-*"), route("two", "*")])
    for _ in range(2):
        assert [routes.match(model).name for model in ("gpt-4o", "claude", "gpt-4o")] == ["one", "two", "one"]
    for number in range(3_000):
        routes.match(f"model-{number}")
    assert len(routes._matched) <= 1024
    assert routes.match("gpt-4o").name == "one"
