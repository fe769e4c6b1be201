"""`routing.table`: the first route that knows a model, and the arms of it that a session comes to."""

import itertools
import random
import time
from collections import Counter
from fnmatch import fnmatchcase
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from config.settings import ArmSettings, RouteSettings
from routing.errors import NoRoute, WeightsRefused
from routing.table import POINTS, Arm, Route, Table, sticky_key, table
from routing.target import Target
from tests.routing.places import place

OPENAI, PARALLAX, CLAUDE = place("openai", "openai"), place("parallax", "parallax"), place("claude", "anthropic")


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


points = st.integers(0, POINTS - 1)
some_weights = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 5.0, 10.0, 33.3, 50.0, 90.0, 100.0]) | st.floats(0, 100), min_size=2, max_size=6
).filter(lambda weights: any(weight > 0 for weight in weights))


def weighted(*weights: float) -> Route:
    """A route whose arms are called a, b, c ..."""
    return route("chat", "m", arms=[Arm(place("abcdef"[i], "openai"), each, None) for i, each in enumerate(weights)])


def first(balanced: Route, point: int) -> str:
    return balanced.order("openai", "chat", point)[0].target.name


def sessions(balanced: Route, many: int) -> list[str]:
    """The arms that so many sessions come to."""
    keys = (sticky_key("acme", "bot", f"session-{number}") for number in range(many))
    return [first(balanced, balanced.point(key)) for key in keys if key is not None]


@given(some_weights, points)
def test_every_arm_with_weight_is_tried_once_and_no_other(weights: list[float], point: int) -> None:
    order = [arm.target.name for arm in weighted(*weights).order("openai", "chat", point)]
    assert sorted(order) == ["abcdef"[index] for index, weight in enumerate(weights) if weight > 0]


@pytest.mark.parametrize(
    "weights", [(90, 10), (50, 50), (1, 99), (70, 0, 30), (0.5, 99.5), (33.3, 33.3, 33.4), (10, 20, 30, 40)]
)
def test_sessions_are_split_by_the_weights_within_one_per_cent(weights: tuple[float, ...]) -> None:
    many = 20_000
    counted = Counter(sessions(weighted(*weights), many))
    for index, weight in enumerate(weights):
        assert abs(counted["abcdef"[index]] / many - weight / sum(weights)) < 0.01


def test_what_chance_decides_is_split_alike() -> None:
    chance = random.Random(1)
    counted = Counter(first(weighted(70, 20, 10), int(chance.random() * POINTS)) for _ in range(20_000))
    assert abs(counted["a"] / 20_000 - 0.7) < 0.01
    assert abs(counted["b"] / 20_000 - 0.2) < 0.01


def test_the_calls_of_an_arm_that_cannot_take_them_go_to_the_others_by_their_weights() -> None:
    balanced = weighted(60, 30, 10)
    chance = random.Random(1)
    orders = [balanced.order("openai", "chat", chance.getrandbits(64)) for _ in range(30_000)]
    seconds = Counter(order[1].target.name for order in orders if order[0].target.name == "a")
    assert abs(seconds["b"] / seconds.total() - 0.75) < 0.01
    assert orders[0] == balanced.order("openai", "chat", random.Random(1).getrandbits(64))


@given(some_weights, st.integers(0, 5), st.floats(0, 1), st.lists(points, min_size=20, max_size=20))
def test_raising_one_weight_takes_no_session_from_that_arm(
    weights: list[float], which: int, lowered: float, falls: list[int]
) -> None:
    which %= len(weights)
    before = weighted(*weights)
    after = weighted(*(100.0 if i == which else each * lowered for i, each in enumerate(weights)))
    for point in falls:
        if first(before, point) == "abcdef"[which]:
            assert first(after, point) == "abcdef"[which]


@given(
    st.lists(st.integers(1, 100), min_size=2, max_size=5),
    st.lists(st.integers(0, 100), min_size=2, max_size=6, unique=True),
    st.lists(points, min_size=20, max_size=20),
)
def test_as_a_canary_grows_sessions_only_ever_move_to_it(others: list[int], steps: list[int], falls: list[int]) -> None:
    """The others keep their proportions, which powers of two leave exact."""
    routes = [
        weighted(0.0 if step == 0 else 2.0 ** (index - 3), *map(float, others))
        for index, step in enumerate(sorted(steps))
    ]
    for point in falls:
        arms = [first(each, point) for each in routes]
        moves = [(old, new) for old, new in itertools.pairwise(arms) if old != new]
        assert len(moves) <= 1
        assert all(new == "a" for _, new in moves)


@given(
    some_weights,
    st.lists(st.floats(0, 100), min_size=6, max_size=6),
    st.lists(points, min_size=20, max_size=20),
)
def test_a_session_only_moves_to_an_arm_that_has_grown_in_proportion_to_the_one_it_leaves(
    weights: list[float], changed: list[float], falls: list[int]
) -> None:
    after = dict(zip("abcdef", changed[: len(weights)], strict=False))
    assume(any(after.values()))
    balanced = weighted(*weights)
    olds = [first(balanced, point) for point in falls]
    before = {arm.target.name: arm.weight for arm in balanced.arms}
    balanced.weigh(after)
    for point, old in zip(falls, olds, strict=True):
        new = first(balanced, point)
        if new != old:
            grown = Fraction(after[new]) * Fraction(before[old]) - Fraction(after[old]) * Fraction(before[new])
            assert grown > 0


def test_a_split_keeps_its_sessions_through_all_steps_of_a_rollout_and_back() -> None:
    balanced = weighted(90, 10)
    canary: set[int] = set()
    start = sessions(balanced, 2000)
    for step in (10, 30, 50, 80, 100):
        balanced.weigh({"a": 100.0 - step, "b": float(step)})
        reached = {number for number, arm in enumerate(sessions(balanced, 2000)) if arm == "b"}
        assert canary <= reached
        canary = reached
    assert len(canary) == 2000
    balanced.weigh(balanced.configured)
    assert sessions(balanced, 2000) == start


def test_an_arm_that_is_added_or_moved_takes_sessions_only_for_itself() -> None:
    before = sessions(weighted(60, 40), 2000)
    arms = [Arm(place(name, "openai"), weight, None) for name, weight in (("c", 20.0), ("b", 40.0), ("a", 60.0))]
    after = sessions(route("chat", "m", arms=arms), 2000)
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"c"}


def test_the_same_session_comes_to_the_same_arm_in_every_process_for_ever() -> None:
    """These are written down: another hash would move all sessions of all who upgrade."""
    balanced = weighted(50, 30, 20)
    assert balanced.point(b"acme\0session-1") == 1633366379131063342
    assert "".join(sessions(balanced, 24)) == "babaaaaaaabcbbcaacacaaaa"


def test_routes_tenants_and_salts_split_their_sessions_each_in_its_own_way() -> None:
    arms = [Arm(OPENAI, 50.0, None), Arm(PARALLAX, 50.0, None)]
    routes = [Route("one", ["m"], arms), Route("two", ["m"], arms), Route("one", ["m"], arms, b"salt")]
    splits = [sessions(each, 1000) for each in routes]
    other = [sticky_key("other", "bot", f"session-{number}") for number in range(1000)]
    splits.append([first(routes[0], routes[0].point(key)) for key in other if key is not None])
    for one, two in itertools.combinations(splits, 2):
        alike = sum(a == b for a, b in zip(one, two, strict=True))
        assert 400 < alike < 600


def test_a_session_is_one_whoever_calls_in_it_and_other_conversations_are_told_apart_by_how_they_begin() -> None:
    assert sticky_key("acme", "a", "s") == sticky_key("acme", "b", "s", ("hello",))
    assert sticky_key("acme", "a", "s") != sticky_key("other", "a", "s")
    assert sticky_key("acme", "a", None) is None
    told = [
        sticky_key("acme", "a", None, opening)
        for opening in [
            ("x",),
            ("y",),
            ("x", "y"),
            ("xy",),
            ("", "xy"),
            ("x" * 9999,),
            ("x" * 9998 + "y",),
            ("\ud800",),
        ]
    ]
    told += [sticky_key("acme", "b", None, ("x",)), sticky_key("acme", "a", "x"), sticky_key("acme", "", "a\0001 x")]
    assert None not in told
    assert len(set(told)) == len(told)
    assert sticky_key("acme", "a", None, ("long" * 999,)) == sticky_key("acme", "a", None, ("long" * 999,))


@pytest.mark.parametrize(
    ("fallbacks", "orders"),
    [
        ((None, None, None), {"ab", "ba"}),
        ((None, None, True), {"abc", "bac"}),
        ((None, False, True), {"ac", "bac"}),
        ((False, False, None), {"a", "b"}),
        ((True, True, False), {"ab", "ba"}),
    ],
)
def test_an_arm_takes_what_another_could_not_only_where_it_is_a_fallback(
    fallbacks: tuple[bool | None, ...], orders: set[str]
) -> None:
    arms = [
        Arm(place(name, "openai"), weight, None, fallback)
        for name, weight, fallback in zip("abc", (50.0, 50.0, 0.0), fallbacks, strict=True)
    ]
    balanced = route("chat", "m", arms=arms)
    chance = random.Random(1)
    found = {
        "".join(arm.target.name for arm in balanced.order("openai", "chat", chance.getrandbits(64))) for _ in range(99)
    }
    assert found == orders
    assert {arm.target.name for arm in balanced.able("openai", "chat")} == set("".join(orders))


def test_a_fallback_takes_the_calls_that_no_arm_with_weight_serves() -> None:
    mixed = route("chat", "m", arms=[Arm(PARALLAX, 100.0, None), Arm(OPENAI, 0.0, None, True)])
    assert mixed.order("openai", "embeddings", 1) == (mixed.arms[1],)
    assert mixed.serves("openai", "embeddings")


@pytest.mark.parametrize(
    "weights", [(0.1,) * 6, (1e-9, 100.0), (100.0, 1e-9), (1 / 3, 1 / 3, 1 / 3), (5e-324, 5e-324), (0.0, 100.0, 0.0)]
)
def test_extreme_weights_and_points_choose_an_arm_with_weight(weights: tuple[float, ...]) -> None:
    for point in (0, 1, POINTS - 1, *random.Random(1).sample(range(2**62), 50)):
        assert weighted(*weights).order("openai", "chat", point)[0].weight > 0


@pytest.mark.parametrize(
    ("protocol", "operation", "able"),
    [
        ("openai", "completions", {"openai"}),
        ("openai", "embeddings", {"openai"}),
        ("openai", "responses", {"openai"}),
        ("anthropic", "count_tokens", {"claude"}),
    ],
)
def test_only_arms_that_serve_the_operation_take_part(protocol: str, operation: str, able: set[str]) -> None:
    chance = random.Random(1)
    arms = [Arm(OPENAI, 1.0, None), Arm(PARALLAX, 98.0, None), Arm(CLAUDE, 1.0, None)]
    mixed = route("chat", "m", arms=arms)
    found = {arm.target.name for _ in range(50) for arm in mixed.order(protocol, operation, chance.getrandbits(64))}
    assert found == able


def test_an_operation_that_no_arm_serves_has_no_route() -> None:
    for arms in ([Arm(PARALLAX, 100.0, None)], [Arm(OPENAI, 0.0, None), Arm(PARALLAX, 100.0, None)]):
        for _ in range(2):
            with pytest.raises(NoRoute, match="Route 'chat' has no target that serves embeddings"):
                route("chat", "m", arms=arms).order("openai", "embeddings", 5)


def test_other_weights_act_on_the_next_call_and_a_call_may_keep_those_it_began_with() -> None:
    balanced = weighted(100, 0)
    kept = balanced.weights
    balanced.weigh(balanced.checked({"b": 100}))
    assert first(balanced, 7) == "b"
    assert kept.order("openai", "chat", 7)[0].target.name == "a"
    assert [(arm.target.name, arm.weight) for arm in balanced.arms] == [("a", 0.0), ("b", 100.0)]
    assert balanced.configured == {"a": 100.0, "b": 0.0}


@pytest.mark.parametrize(
    ("fallback", "order"), [(None, ["own", "hosted"]), (False, ["own"]), (True, ["own", "hosted"])]
)
def test_an_arm_that_stands_by_takes_what_the_one_with_all_weight_cannot(
    fallback: bool | None, order: list[str]
) -> None:
    arms = [Arm(place("hosted", "openai"), 90.0, None, fallback), Arm(place("own", "openai"), 10.0, None)]
    balanced = route("chat", "m", arms=arms)
    balanced.weigh({"own": 100.0}, standing_by={"hosted"})
    assert [arm.target.name for arm in balanced.order("openai", "chat", 7)] == order
    assert balanced.weights.alone == ([] if len(order) > 1 else ["own"])
    balanced.weigh({"own": 100.0})
    assert len(balanced.order("openai", "chat", 7)) == (2 if fallback else 1)


@pytest.mark.parametrize(
    ("weights", "fallbacks", "alone"),
    [
        ((50, 50), (None, None), []),
        ((100, 0), (None, None), ["a"]),
        ((100, 0), (None, True), []),
        ((50, 50), (None, False), ["a"]),
        ((50, 50), (False, False), ["a", "b"]),
    ],
)
def test_whose_calls_have_nowhere_else_to_go_can_be_told(
    weights: tuple[float, ...], fallbacks: tuple[bool | None, ...], alone: list[str]
) -> None:
    arms = [
        Arm(place(name, "openai"), weight, None, fallback)
        for name, weight, fallback in zip("ab", weights, fallbacks, strict=True)
    ]
    assert route("chat", "m", arms=arms).weights.alone == alone


def test_an_arm_that_is_barred_takes_no_call_at_all() -> None:
    arms = [Arm(OPENAI, 90.0, None), Arm(PARALLAX, 10.0, None, True)]
    balanced = route("chat", "m", arms=arms)
    balanced.weigh({"openai": 90.0, "parallax": 10.0}, {"parallax"})
    assert all(balanced.order("openai", "chat", point * 2**50) == (balanced.arms[0],) for point in range(2000))
    with pytest.raises(NoRoute, match="kept by a target that takes no more calls"):
        balanced.weights.pinned("parallax", "openai", "chat")
    balanced.weigh({"openai": 90.0, "parallax": 10.0})
    assert len(balanced.order("openai", "chat", 1)) == 2


def test_a_pinned_call_goes_to_its_target_at_weight_0_and_nowhere_when_that_is_gone() -> None:
    balanced = route("chat", "m", arms=[Arm(OPENAI, 0.0, "other"), Arm(PARALLAX, 100.0, None)])
    assert balanced.weights.pinned("openai", "openai", "responses").model == "other"
    for target, operation in (("removed", "chat"), ("parallax", "responses")):
        with pytest.raises(NoRoute, match="Send the conversation itself"):
            balanced.weights.pinned(target, "openai", operation)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"a": 70, "x": 30}, "'x' is no arm of this route; its arms are a, b"),
        ({"a": 70, "b": 20}, "add up to 90, not to 100"),
        ({}, "add up to 0"),
        ({"a": 110, "b": -10}, "weight of a is not a number from 0 to 100"),
        ({"a": 100, "b": -0.5}, "weight of b"),
        ({"a": True, "b": 99}, "weight of a"),
        ({"a": "100"}, "weight of a"),
        ({"a": None, "b": 100}, "weight of a"),
        ({"a": float("nan"), "b": 100}, "weight of a"),
        ({"a": float("inf")}, "weight of a"),
    ],
)
def test_weights_that_a_route_cannot_have_are_refused_in_words(asked: dict[str, object], why: str) -> None:
    with pytest.raises(WeightsRefused) as refused:
        weighted(50, 50).checked(asked)
    assert why in str(refused.value)


def test_weights_may_be_fractions_and_those_not_named_are_0() -> None:
    assert weighted(1, 1, 1, 1).checked({"a": 33.3, "b": 33.3, "c": 33.4}) == {"a": 33.3, "b": 33.3, "c": 33.4, "d": 0}


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
    assert {arm.model for arm in found.order("openai", "chat", 0)} == {None, "Qwen/Qwen3-0.6B"}
    assert [arm.target for arm in found.arms] == [OPENAI, PARALLAX]


def test_a_catalogue_keeps_the_operators_order_without_duplicates_and_wildcards() -> None:
    compiled = Table([route("b", "zeta", "alpha", "llama-*"), route("a", "alpha", "beta", "zeta", "b?", "[x]")])
    assert compiled.names("openai") == ["zeta", "alpha", "beta"]
    assert compiled.names("anthropic") == ["zeta", "alpha", "beta"]
    assert compiled.names("mcp") == []


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
            compiled.match(model).order(protocol, operation, 0)
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
    """The bounds are loose for busy machines: on a quiet one it is 3 us with a session, for two arms."""
    arms = [Arm(OPENAI, 90.0, None), Arm(PARALLAX, 10.0, None)]
    compiled = Table([route(f"r{index}", f"model-{index}", arms=arms) for index in range(100)])

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            found = compiled.match("model-99")
            found.order("openai", "chat", found.point(sticky_key("acme", "bot", "a-session-of-some-kind") or b""))
        return time.perf_counter() - began

    assert min(seconds() for _ in range(10)) < 0.025


def test_what_was_matched_before_is_matched_alike() -> None:
    routes = Table([route("one", "gpt-*"), route("two", "*")])
    for _ in range(2):
        assert [routes.match(model).name for model in ("gpt-4o", "claude", "gpt-4o")] == ["one", "two", "one"]
    for number in range(3_000):
        routes.match(f"model-{number}")
    assert len(routes._matched) <= 1024
    assert routes.match("gpt-4o").name == "one"
