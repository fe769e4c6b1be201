"""`routing.health`: a node that fails gets no calls for a while, and never the last place that a route has."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import HealthSettings
from routing.errors import NoRoute
from routing.health import STEPS, Event, Fleet, Node, Pick, State
from routing.outcomes import OUTCOMES
from routing.table import Arm, Route
from tests.routing.places import place

OK, DOWN, CUT, GONE, FULL = (OUTCOMES[name] for name in ("ok", "connect", "stream_cut", "client_gone", "capacity"))


class Scene:
    """A fleet under one route, and a clock that the test holds. Targets are `name: nodes`."""

    def __init__(self, *nodes: int, most: int | None = None, weights: Sequence[float] = ()) -> None:
        targets = [
            place("abc"[index], "openai", url=None, urls=tuple(url("abc"[index], n) for n in range(many)))
            for index, many in enumerate(nodes)
        ]
        if most is not None:
            targets = [place(t.name, "openai", url=None, urls=t.settings.urls, max_concurrent=most) for t in targets]
        shares = weights or [100.0] * len(targets)
        self.route = Route("chat", ["m"], [Arm(t, w, None) for t, w in zip(targets, shares, strict=True)])
        self.targets = targets
        self.told: list[tuple[str, State, str]] = []
        self.fleet = Fleet(lambda node: self.told.append((node.url, node.state, node.why)))
        self.fleet.under([t.settings for t in targets], [self.route])
        self.now = 1000.0

    def arms(self, names: str) -> list[Arm]:
        return [arm for name in names for arm in self.route.arms if arm.target.name == name]

    def pick(self, names: str = "a", tried: Sequence[Node] = ()) -> Pick:
        found = self.fleet.pick(self.arms(names), self.now, tried)
        assert found is not None
        return found

    def call(self, outcome: str, names: str = "a", status: int | None = None) -> Pick:
        """One call from beginning to end."""
        pick = self.pick(names)
        self.fleet.ended(pick, OUTCOMES[outcome], self.now, status)
        return pick

    def nodes(self, name: str) -> Sequence[Node]:
        return self.fleet.pools[name].nodes

    def states(self, name: str = "a") -> list[State]:
        return [node.state for node in self.nodes(name)]

    def fell(self, name: str = "a", times: int = 5) -> Node:
        """Lets the one node of a target fail as often as it takes."""
        for _ in range(times):
            self.call("connect", name)
        return self.nodes(name)[0]


def url(target: str, number: int) -> str:
    return f"http://{target}{number}"


def test_every_step_leads_to_a_state_from_which_calls_can_come_back() -> None:
    assert {state for state, _ in STEPS} == set(State)
    reached = {State.EJECTED}
    for _ in State:
        reached |= {after for (before, _), after in STEPS.items() if before in reached}
    assert State.USED in reached
    assert {event for _, event in STEPS} == set(Event)


def test_calls_go_to_the_node_with_the_fewest_under_way_and_in_turn_where_they_are_equal() -> None:
    scene = Scene(3)
    first = [scene.pick() for _ in range(3)]
    assert len({pick.node.url for pick in first}) == 3
    scene.fleet.ended(first[1], OK, scene.now)
    assert scene.pick().node is first[1].node
    again = [scene.pick().node for _ in range(3)]
    assert len({node.url for node in again}) == 3
    assert [node.in_flight for node in scene.nodes("a")] == [2, 2, 2]


def test_five_failures_in_a_row_eject_a_node_and_a_success_between_them_does_not() -> None:
    scene = Scene(1, 1)
    for outcome in ["connect"] * 4 + ["ok"] + ["connect"] * 4:
        scene.call(outcome)
    assert scene.states() == [State.USED]
    scene.call("reset")
    assert scene.states() == [State.EJECTED]
    assert scene.pick("ab").node.target == "b"


def test_a_node_that_is_used_no_more_is_told_of_once_and_so_is_its_return() -> None:
    scene = Scene(1, 1)
    node = scene.fell()
    why = "5 calls in a row failed, the last one as `connect`"
    assert scene.told == [(url("a", 0), State.EJECTED, why)]
    scene.now = node.due
    scene.call("connect")
    assert (node.state, node.why) == (State.EJECTED, why)
    scene.now = node.due
    scene.call("ok")
    assert scene.told[1:] == [(url("a", 0), State.USED, "")]
    assert node.since - node.out_since == 30 + 60


def test_what_a_node_is_ejected_for_is_told() -> None:
    streams, probed = Scene(1, 1), Scene(1, 1)
    for _ in range(3):
        streams.call("stream_cut")
    assert [why for _, _, why in streams.told] == ["3 streams were broken off within 10 s"]
    for _ in range(2):
        probed.fleet.probed("a", url("a", 0), False, probed.now)
    assert [why for _, _, why in probed.told] == ["a probe has found it unwell"]


@pytest.mark.parametrize(
    ("outcome", "status", "ejects"),
    [
        ("connect", None, True),
        ("reset", None, True),
        ("first_token", None, True),
        ("upstream_5xx", 502, True),
        ("upstream_5xx", 503, True),
        ("upstream_5xx", 504, True),
        ("upstream_5xx", 500, False),
        ("capacity", 429, False),
        ("quota", 429, False),
        ("rejected", 400, False),
        ("client_gone", None, False),
        ("ok", 200, False),
    ],
)
def test_only_failures_of_the_node_or_the_way_to_it_eject_it(outcome: str, status: int | None, ejects: bool) -> None:
    scene = Scene(1, 1)
    for _ in range(20):
        scene.call(outcome, status=status)
    assert scene.states() == [State.EJECTED if ejects else State.USED]


def test_a_call_that_says_nothing_of_the_node_does_not_end_a_row_of_failures() -> None:
    scene = Scene(1, 1)
    for outcome in ["connect", "client_gone"] * 5:
        scene.call(outcome)
    assert scene.states() == [State.EJECTED]


def test_three_streams_that_die_within_ten_seconds_eject_a_node_whatever_else_it_serves() -> None:
    for pause, ejected in ((6.0, False), (4.9, True)):
        scene = Scene(1, 1)
        for _ in range(3):
            scene.call("stream_cut")
            scene.call("ok", "ab")
            scene.now += pause
        assert scene.states() == [State.EJECTED if ejected else State.USED]


def test_after_its_time_one_call_tries_an_ejected_node() -> None:
    scene = Scene(1, 1)
    node = scene.fell()
    scene.now += 29.9
    assert scene.pick("ab").node.target == "b"
    scene.now += 0.2
    trial = scene.pick("ab")
    assert trial.node is node
    assert trial.trial
    assert scene.pick("ab").node.target == "b"
    scene.fleet.ended(trial, OK, scene.now)
    assert scene.states() == [State.USED]
    assert scene.pick("ab").node is node


def test_a_call_that_failed_elsewhere_tries_nothing_out_as_long_as_there_is_something_else() -> None:
    scene = Scene(2, 1)
    tried = scene.nodes("b")[0]
    for _ in range(10):
        pick = scene.pick()
        scene.fleet.ended(pick, DOWN if pick.node is scene.nodes("a")[0] else OK, scene.now)
    assert scene.states() == [State.EJECTED, State.USED]
    scene.now += 60
    assert scene.pick("a", [tried]).node is scene.nodes("a")[1]
    assert scene.pick("a").node is scene.nodes("a")[0]


def test_each_ejection_that_follows_another_is_twice_as_long_up_to_the_longest() -> None:
    scene = Scene(1, 1)
    node = scene.fell()
    lengths = []
    for _ in range(7):
        lengths.append(node.due - scene.now)
        scene.now = node.due
        scene.call("connect", "ab")
    assert lengths == [30, 60, 120, 240, 300, 300, 300]
    scene.now = node.due
    scene.call("ok", "ab")
    scene.now += 299
    scene.fell()
    assert node.due - scene.now == 300
    scene.now = node.due
    scene.call("ok", "ab")
    scene.now += 300
    scene.fell()
    assert node.due - scene.now == 30


def test_a_stream_on_trial_lets_others_in_with_its_first_token() -> None:
    scene = Scene(1, 1)
    node = scene.fell()
    scene.now = node.due
    trial = scene.pick("ab")
    scene.fleet.answered(trial, scene.now)
    assert scene.pick("ab").node is node
    scene.fleet.ended(trial, CUT, scene.now)
    assert scene.states() == [State.USED]
    assert node.failures == 1


def test_a_trial_that_its_agent_leaves_is_followed_by_another() -> None:
    scene = Scene(1, 1)
    node = scene.fell()
    scene.now = node.due
    scene.call("client_gone", "ab")
    assert scene.states() == [State.EJECTED]
    assert scene.pick("ab").trial


def test_a_call_from_before_the_ejection_decides_nothing() -> None:
    scene = Scene(1, 1)
    old = [scene.pick(), scene.pick()]
    node = scene.fell()
    due = node.due
    scene.fleet.ended(old[0], OK, scene.now)
    assert scene.states() == [State.EJECTED]
    scene.now = due
    trial = scene.pick("ab")
    scene.fleet.ended(old[1], DOWN, scene.now)
    assert scene.states() == [State.TRYING]
    scene.fleet.ended(trial, OK, scene.now)
    assert scene.states() == [State.USED]


def test_the_only_node_of_the_only_arm_stays_in_use() -> None:
    scene = Scene(1)
    scene.fell(times=50)
    assert scene.states() == [State.USED]
    scene.fleet.probed("a", url("a", 0), False, scene.now)
    assert scene.states() == [State.USED]


def test_of_a_targets_nodes_at_most_half_go_when_there_is_nothing_beside_it() -> None:
    for many in range(1, 7):
        scene = Scene(many)
        for _ in range(200):
            scene.call("connect")
        assert scene.states().count(State.USED) == (many + 1) // 2


def test_a_target_goes_as_a_whole_where_another_arm_is_well_and_not_where_that_has_no_weight() -> None:
    scene = Scene(3, 1)
    for _ in range(50):
        scene.call("connect", "a")
    assert scene.states() == [State.EJECTED] * 3
    scene.fell("b", 50)
    assert scene.states("b") == [State.USED]
    scene = Scene(3, 1, weights=[100, 0])
    for _ in range(50):
        scene.call("connect", "a")
    assert scene.states().count(State.USED) == 2


def test_weights_count_as_they_are_at_the_moment() -> None:
    scene = Scene(1, 1)
    scene.route.weigh({"a": 100.0})
    scene.fell(times=20)
    assert scene.states() == [State.USED]
    scene.route.weigh({"a": 90.0, "b": 10.0})
    scene.call("connect")
    assert scene.states() == [State.EJECTED]


def test_where_everything_is_ejected_or_rests_a_first_attempt_is_made_all_the_same() -> None:
    scene = Scene(1, 1)
    node = scene.fell()
    pick = scene.pick("a")
    assert pick.node is node
    assert pick.trial
    due = node.due
    scene.fleet.ended(pick, DOWN, scene.now)
    assert node.due == due, "what is tried before its time makes nothing longer"
    assert scene.fleet.pick(scene.arms("a"), scene.now, [scene.nodes("b")[0]]) is None
    resting = scene.pick("b")
    scene.fleet.asks_for_rest(resting, 20, scene.now)
    scene.fleet.ended(resting, OUTCOMES["quota"], scene.now)
    assert scene.pick("ab").node.target == "b", "one that rests says more than one that is down"
    scene.fleet.ended(scene.pick("a"), OK, scene.now)
    assert scene.states() == [State.USED]


def test_a_node_that_asks_for_rest_gets_none_until_then_and_never_for_longer_than_an_ejection() -> None:
    for seconds, rest in ((20.0, 20.0), (86_400.0, 300.0), (-5.0, 0.0)):
        scene = Scene(1, 1)
        pick = scene.call("capacity", status=429)
        scene.fleet.asks_for_rest(pick, seconds, scene.now)
        if rest:
            scene.now += rest - 0.1
            assert scene.pick("ab").node.target == "b"
            scene.now += 0.2
        assert scene.pick("ab").node.target == "a"


def test_a_probe_ejects_and_brings_back_but_not_what_calls_have_ejected() -> None:
    scene = Scene(1, 1)
    for well, state in ((False, State.EJECTED), (True, State.USED)):
        scene.fleet.probed("a", url("a", 0), well, scene.now)
        assert scene.states() == [state]
    node = scene.fell()
    scene.fleet.probed("a", url("a", 0), True, scene.now)
    assert scene.states() == [State.EJECTED]
    scene.now = node.due - 1
    scene.fleet.probed("a", url("a", 0), False, scene.now)
    assert node.due == scene.now + 30, "nothing is tried while probes find it unwell"
    scene.fleet.probed("x", url("a", 0), False, scene.now)
    scene.fleet.probed("a", "http://elsewhere", False, scene.now)


def test_a_full_target_lets_calls_over_to_the_next_arm_and_counts_them() -> None:
    scene = Scene(2, 1, most=2)
    inside = [scene.pick("ab") for _ in range(2)]
    over = [scene.pick("ab") for _ in range(2)]
    assert [(pick.node.target, pick.index, pick.overflow) for pick in inside] == [("a", 0, False)] * 2
    assert [(pick.node.target, pick.index, pick.overflow) for pick in over] == [("b", 1, True)] * 2
    assert scene.fleet.pick(scene.arms("ab"), scene.now) is None
    assert scene.fleet.pools["a"].overflowed == 3
    scene.fleet.ended(inside[0], FULL, scene.now)
    assert scene.pick("ab").node.target == "a"


def test_a_pinned_call_goes_to_its_node_or_nowhere() -> None:
    scene = Scene(2, 1, most=2)
    arm = scene.arms("a")[0]
    for number in (0, 0):
        pick = scene.fleet.pinned(arm, url("a", number), scene.now)
        assert pick is not None
        assert pick.node.url == url("a", number)
    assert scene.fleet.pinned(arm, url("a", 1), scene.now) is None, "it is full"
    with pytest.raises(NoRoute, match="Send the conversation itself"):
        scene.fleet.pinned(arm, "http://removed", scene.now)
    scene = Scene(1, 1)
    arm = scene.arms("a")[0]
    node = scene.fell()
    assert scene.fleet.pinned(arm, None, scene.now) is None
    scene.now = node.due
    assert scene.fleet.pinned(arm, None, scene.now) is not None


def test_a_reload_keeps_what_is_known_of_the_nodes_that_stay() -> None:
    scene = Scene(2, 1)
    held = scene.pick()
    scene.fleet.probed("a", url("a", 0), False, scene.now)
    stays = scene.nodes("a")[0]
    changed = place("a", "openai", url=None, urls=(url("a", 0), url("a", 7)), max_concurrent=1)
    scene.fleet.under([changed.settings, scene.targets[1].settings], [scene.route])
    assert scene.nodes("a")[0] is stays
    assert stays.state is State.EJECTED
    assert scene.fleet.pick(scene.arms("a"), scene.now) is None, "the call under way counts"
    scene.fleet.under([scene.targets[1].settings], [])
    for _ in range(2):
        scene.fleet.ended(held, DOWN, scene.now)
    assert (held.node.in_flight, held.pool.in_flight) == (0, 0)
    scene.fleet.probed("a", url("a", 0), True, scene.now)


ENDS = ["ok", "connect", "connect", "connect", "stream_cut", "capacity", "client_gone"]
moves = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(["a", "ab", "ba", "bca", "c", "cb"]), st.sampled_from(ENDS)),
        st.tuples(st.just("fall"), st.sampled_from("abc"), st.integers(1, 40)),
        st.tuples(st.just("begin"), st.sampled_from(["a", "ab", "bca", "c"]), st.none()),
        st.tuples(st.just("end"), st.none(), st.sampled_from(ENDS)),
        st.tuples(st.just("probe"), st.sampled_from("abc"), st.tuples(st.integers(0, 3), st.booleans())),
        st.tuples(st.just("rest"), st.sampled_from("abc"), st.floats(0, 1000)),
        st.tuples(st.just("wait"), st.none(), st.sampled_from([0.1, 1.0, 5.0, 10.0, 30.0, 100.0, 400.0])),
    ),
    max_size=60,
)


@given(st.lists(st.integers(1, 5), min_size=3, max_size=3), moves, st.sampled_from([None, 1, 3]))
def test_whatever_happens_a_route_keeps_a_place_and_a_node_comes_back(
    sizes: list[int], sequence: list[tuple[str, str | None, object]], most: int | None
) -> None:
    scene = Scene(*sizes, most=most)
    fleet, begun = scene.fleet, list[Pick]()

    def attempt(names: str, outcome: str) -> None:
        pick = fleet.pick(scene.arms(names), scene.now)
        if pick is None:
            assert any(fleet.pools[name].full for name in names)
            assert not any(
                node.takes(scene.now) for name in names if not fleet.pools[name].full for node in scene.nodes(name)
            )
        else:
            fleet.ended(pick, OUTCOMES[outcome], scene.now)

    for move, where, what in sequence:
        match move, where, what:
            case "call", str(names), str(outcome):
                attempt(names, outcome)
            case "fall", str(name), int(times):
                for _ in range(times):
                    attempt(name, "connect")
            case "begin", str(names), _:
                if (pick := fleet.pick(scene.arms(names), scene.now)) is not None:
                    begun.append(pick)
            case "end", _, str(outcome):
                if begun:
                    fleet.ended(begun.pop(0), OUTCOMES[outcome], scene.now)
            case "probe", str(name), (int(number), bool(well)):
                fleet.probed(name, url(name, number), well, scene.now)
            case "rest", str(name), float(seconds):
                if begun:
                    fleet.asks_for_rest(begun[-1], seconds, scene.now)
            case "wait", _, float(seconds):
                scene.now += seconds
        assert any(2 * scene.states(name).count(State.USED) >= len(scene.nodes(name)) for name in "abc")
        for name, pool in fleet.pools.items():
            assert most is None or pool.in_flight <= most
            assert pool.in_flight == sum(node.in_flight for node in pool.nodes)
            assert pool.in_flight == sum(pick.node.target == name for pick in begun)
            for node in pool.nodes:
                assert node.due <= scene.now + 300
                assert node.rests_until <= scene.now + 300
    for pick in begun:
        fleet.ended(pick, GONE, scene.now)
    assert all(node.in_flight == 0 for pool in fleet.pools.values() for node in pool.nodes)
    scene.now += HealthSettings().ejected_at_most
    for name in "abc":
        for _ in range(20):
            attempt(name, "ok")
    assert all(state is State.USED for name in "abc" for state in scene.states(name))


def test_finding_a_node_costs_microseconds_at_most() -> None:
    """The bound is loose for busy machines."""
    scene = Scene(2, 1)
    arms = scene.arms("ab")

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            pick = scene.fleet.pick(arms, scene.now)
            assert pick is not None
            scene.fleet.ended(pick, OK, scene.now)
        return time.perf_counter() - began

    assert min(itertools.starmap(seconds, [()] * 10)) < 0.025
