"""What arms meet with: which calls count, on which arm, as what, and for how long they are remembered."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Usage
from gateway.traffic import FORGOTTEN, SAMPLES, Traffic
from routing.health import Fleet, State
from routing.outcomes import OUTCOMES
from tests.support.tried import BEGAN, NOON, TARGETS, Counted, Try, routes, tried

USAGE = Usage(input_tokens=100, output_tokens=20)
CANARY = {"canary": "parallax", "gates": {"max_first_token": 0.5}}


@pytest.fixture
def store() -> Counted:
    return Counted()


@pytest.fixture
def traffic(store: Counted) -> Traffic:
    return Traffic(store, NOON - 60)


def test_a_good_call_is_counted_with_what_it_took_and_cost(traffic: Traffic, store: Counted) -> None:
    under = routes()
    traffic.observe(tried(under, Try("openai", took=2.0, first=0.4, cost=500, usage=USAGE), stream=True))
    figures = traffic.figures("chat")["openai"].total
    assert (figures.calls, figures.failed, figures.cost, figures.output_tokens) == (1, 0, 500, 20)
    assert figures.latency.percentile(50) == pytest.approx(2e6, rel=0.032)
    assert figures.first_token.percentile(50) == pytest.approx(0.4e6, rel=0.032)
    assert store.sums["chat"] == {"openai|calls": 1, "openai|cost": 500, "openai|output_tokens": 20}
    assert traffic.figures("chat")["parallax"].total.calls == 0


def test_a_call_counts_in_the_minute_in_which_it_ended(traffic: Traffic) -> None:
    traffic.observe(tried(routes(), Try("openai", took=90.0), at=NOON))
    (slot,) = traffic.figures("chat")["openai"].slots()
    assert slot.start == NOON + 60


def test_tries_in_a_row_on_one_arm_are_one_call_that_ends_as_the_last_one_does(
    traffic: Traffic, store: Counted
) -> None:
    under = routes()
    traffic.observe(tried(under, Try("parallax", "connect", 0.5), Try("parallax", took=1.5, cost=7, usage=USAGE)))
    figures = traffic.figures("chat")["parallax"].total
    assert (figures.calls, figures.failed) == (1, 0)
    assert figures.latency.percentile(50) == pytest.approx(2e6, rel=0.032), "an agent has waited for both"
    assert store.sums["chat"] == {"parallax|calls": 1, "parallax|cost": 7, "parallax|output_tokens": 20}
    (met,) = [each for each in traffic.met() if each.target == "parallax"]
    assert met.attempts == {"connect": 1, "ok": 1}
    assert dict(traffic.retries()) == {"chat": 1}


def test_a_call_that_another_arm_made_good_is_the_first_ones_failure_and_the_other_ones_success(
    traffic: Traffic, store: Counted
) -> None:
    call = tried(routes(), Try("parallax", "stream_cut", cost=3, usage=USAGE), Try("openai", cost=9, usage=USAGE))
    traffic.observe(call)
    canary, baseline = (traffic.figures("chat")[name].total for name in ("parallax", "openai"))
    assert (canary.calls, canary.errors, canary.cost) == (1, {"stream_cut": 1}, 3)
    assert (baseline.calls, baseline.failed, baseline.cost) == (1, 0, 9)
    assert canary.latency.total == 0
    counts = store.sums["chat"]
    assert (counts["parallax|calls"], counts["parallax|errors"], counts["parallax|raw_errors"]) == (1, 1, 1)
    assert counts["parallax|error:stream_cut"] == counts["openai|calls"] == 1
    assert "openai|errors" not in counts


@pytest.mark.parametrize(
    "outcome", [each for each in OUTCOMES.values() if not each.counted], ids=lambda each: each.name
)
def test_what_the_arm_has_no_part_in_is_no_call_of_it(traffic: Traffic, store: Counted, outcome: object) -> None:
    name = getattr(outcome, "name", "")
    traffic.observe(tried(routes(), Try("parallax", "connect"), Try("parallax", name)))
    assert traffic.figures("chat")["parallax"].total.calls == 0
    assert store.sums == {}
    assert {met.target: met.attempts for met in traffic.met()}["parallax"] == {"connect": 1, name: 1}


def test_a_full_node_of_ours_has_failed_and_a_used_up_quota_of_a_providers_has_not(
    traffic: Traffic, store: Counted
) -> None:
    under = routes()
    traffic.observe(tried(under, Try("parallax", "capacity", 0.01)))
    traffic.observe(tried(under, Try("openai", "quota", 0.01)))
    traffic.observe(tried(under, Try("openai", took=1.0, cost=5, usage=USAGE)))
    assert traffic.figures("chat")["parallax"].total.errors == {"capacity": 1}
    hosted = traffic.figures("chat")["openai"].total
    assert (hosted.calls, hosted.failed) == (2, 0)
    assert hosted.latency.total == 1, "a refusal that comes at once does not make an arm quick"
    assert hosted.cost_per_call == 5, "nor cheap"
    assert store.sums["chat"]["openai|calls"] == 2


def test_a_quota_that_is_used_up_for_more_than_ten_minutes_is_an_error_until_something_else_is_answered(
    traffic: Traffic, store: Counted
) -> None:
    under = routes()

    def errors(outcome: str, minute: float) -> int:
        traffic.observe(tried(under, Try("openai", outcome, 0.01), at=NOON + 60 * minute, session=f"s-{minute}"))
        return store.sums["chat"].get("openai|error:quota", 0)

    assert [errors("quota", minute) for minute in (0, 5, 9.9)] == [0, 0, 0]
    assert errors("connect", 10) == 0
    assert [errors("quota", minute) for minute in (10.5, 11)] == [1, 2], "no connection is no answer"
    assert errors("ok", 12) == 2
    assert [errors("quota", minute) for minute in (13, 22, 24)] == [2, 2, 3]
    assert errors("rejected", 25) == 3
    assert [errors("quota", minute) for minute in (26, 35)] == [3, 3]
    assert store.sums["chat"]["openai|raw_errors"] == 4


def test_failures_of_one_session_in_one_minute_are_one_error_and_every_call_counts(
    traffic: Traffic, store: Counted
) -> None:
    under = routes()
    for second in (0, 10, 20, 70):
        traffic.observe(tried(under, Try("parallax", "connect", 0.1), at=NOON + second, session="s-1"))
    traffic.observe(tried(under, Try("parallax", "connect", 0.1), at=NOON + 71, session="s-2"))
    counts = store.sums["chat"]
    assert (counts["parallax|calls"], counts["parallax|raw_errors"], counts["parallax|errors"]) == (5, 5, 3)
    assert traffic.figures("chat")["parallax"].total.failed == 5


def test_without_a_session_only_a_repetition_that_says_so_is_one(traffic: Traffic, store: Counted) -> None:
    under = routes()
    again = [(b"x-stainless-retry-count", b"1")]
    first = [(b"x-stainless-retry-count", b"0")]
    for headers in (first, again, again, first):
        traffic.observe(tried(under, Try("parallax", "connect", 0.1), headers=headers))
    traffic.observe(tried(under, Try("parallax", "connect", 0.1), headers=again, said="something else"))
    counts = store.sums["chat"]
    assert (counts["parallax|raw_errors"], counts["parallax|errors"]) == (5, 3)


def test_a_rejected_call_is_no_error_and_counts_apart_once_a_session_and_hour(traffic: Traffic, store: Counted) -> None:
    under = routes()
    for session, minute in (("s-1", 0), ("s-1", 1), ("s-2", 2), ("s-1", 61)):
        traffic.observe(tried(under, Try("parallax", "rejected", 0.1), at=NOON + 60 * minute, session=session))
    for said in ("hello", "hello", "something else"):
        traffic.observe(tried(under, Try("parallax", "rejected", 0.1), at=NOON + 3700, said=said))
    counts = store.sums["chat"]
    assert (counts["parallax|calls"], counts["parallax|raw_rejected"], counts["parallax|rejected"]) == (7, 7, 5)
    assert "parallax|errors" not in counts
    figures = traffic.figures("chat")["parallax"].total
    assert (figures.calls, figures.failed, figures.rejected, figures.availability) == (7, 0, 7, None)


def test_a_late_first_token_is_slow_where_a_rollout_has_such_a_gate(traffic: Traffic, store: Counted) -> None:
    plain, gated = routes(), routes(rollout=CANARY)
    for under, first, stream in ((plain, 0.9, True), (gated, 0.4, True), (gated, 0.9, False), (gated, 0.9, True)):
        traffic.observe(tried(under, Try("parallax", took=2.0, first=first), stream=stream))
    assert store.sums["chat"]["parallax|slow"] == 1
    assert store.sums["chat"]["parallax|calls"] == 4


@pytest.mark.parametrize(
    ("state", "ejections", "for_seconds", "by_probe", "down"),
    [
        (State.USED, 3, 60, False, False),
        (State.EJECTED, 1, 10, False, False),  # it may have been a moment's failure
        (State.TRYING, 1, 0, False, False),
        (State.EJECTED, 2, 0, False, True),  # it has failed the call that tried it
        (State.TRYING, 2, 0, False, True),
        (State.EJECTED, 1, 31, False, True),  # nobody has tried it since
        (State.EJECTED, 1, 31, True, False),  # it is a probe that says so: no call has failed
    ],
)
def test_a_call_that_an_arm_is_spared_because_it_is_down_is_an_error_to_the_evidence(
    store: Counted, state: State, ejections: int, for_seconds: float, by_probe: bool, down: bool
) -> None:
    under, fleet = routes(), Fleet()
    fleet.under(under.settings.targets, under.table.routes)
    traffic = Traffic(store, NOON - 60, fleet)
    (node,) = fleet.pools["parallax"].nodes
    node.state, node.ejections, node.by_probe, node.since = state, ejections, by_probe, BEGAN + 1 - for_seconds
    for session in ("one", "one", "two"):
        traffic.observe(tried(under, Try("openai"), meant="parallax", session=session))
    mine = {key: number for key, number in store.sums["chat"].items() if key.startswith("parallax|")}
    counts = {"parallax|calls": 3, "parallax|errors": 2, "parallax|raw_errors": 3, "parallax|error:ejected": 3}
    assert mine == (counts if down else {"parallax|absent": 3} if by_probe else {})
    figures = traffic.figures("chat")["parallax"].total
    assert (figures.calls, figures.overflow) == (0, 3), "to people it is what it is"
    assert store.sums["chat"]["openai|calls"] == 3


@pytest.mark.parametrize(
    ("states", "resting", "absent"),
    [
        ([(State.EJECTED, True), (State.EJECTED, True)], False, True),
        ([(State.EJECTED, True), (State.EJECTED, False)], False, True),
        ([(State.EJECTED, True), (State.TRYING, True)], False, True),
        ([(State.EJECTED, True), (State.USED, False)], True, False),  # what has asked for a rest is in service
        ([(State.EJECTED, False), (State.EJECTED, False)], False, False),  # whether it is down will show
    ],
)
def test_a_call_that_an_arm_is_spared_because_of_probes_is_counted_as_that_and_is_no_error(
    store: Counted, states: Sequence[tuple[State, bool]], resting: bool, absent: bool
) -> None:
    targets = [*TARGETS[:1], {"name": "parallax", "kind": "parallax", "urls": ["http://a:1", "http://b:1"]}]
    under, fleet = routes(targets=targets), Fleet()
    fleet.under(under.settings.targets, under.table.routes)
    traffic = Traffic(store, NOON - 60, fleet)
    for node, (state, by_probe) in zip(fleet.pools["parallax"].nodes, states, strict=True):
        node.state, node.by_probe, node.ejections, node.since = state, by_probe, 1, BEGAN
        node.rests_until = BEGAN + 60 if resting else 0.0
    for _ in range(2):
        traffic.observe(tried(under, Try("openai"), meant="parallax"))
    mine = {key: number for key, number in store.sums["chat"].items() if key.startswith("parallax|")}
    assert mine == ({"parallax|absent": 2} if absent else {})
    traffic.observe(tried(under, Try("openai"), meant="parallax", full=True))
    assert store.sums["chat"].get("parallax|absent", 0) == mine.get("parallax|absent", 0), "it was full"


@pytest.mark.parametrize("full", [True, False])
def test_a_call_that_another_arm_took_is_an_overflow_of_the_one_it_was_meant_for(
    traffic: Traffic, store: Counted, full: bool
) -> None:
    under = routes()
    traffic.observe(tried(under, Try("openai"), meant="parallax", full=full))
    traffic.observe(tried(under, Try("openai", "connect"), Try("parallax"), meant="parallax", full=full))
    canary = traffic.figures("chat")["parallax"].total
    assert (canary.calls, canary.overflow, canary.availability) == (1, 2, 1 / 3)
    assert store.sums["chat"].get("parallax|overflow", 0) == (2 if full else 0), "only what had no room is evidence"
    assert [met.overflow for met in traffic.met()] == [0, 2]


def test_a_call_that_only_counts_tokens_does_not_make_an_arm_quick(traffic: Traffic) -> None:
    x = tried(routes(), Try("openai", took=0.001))
    assert x.call is not None
    x.call.endpoint = replace(x.call.endpoint, free=True)
    traffic.observe(x)
    figures = traffic.figures("chat")["openai"].total
    assert (figures.calls, figures.latency.total, figures.priced) == (1, 0, 0)


def test_a_call_that_nobody_had_room_for_was_not_answered_by_the_arm_it_was_meant_for(traffic: Traffic) -> None:
    x = tried(routes(), meant="parallax")
    x.code = "no_healthy_target"
    traffic.observe(x)
    assert traffic.figures("chat")["parallax"].total.overflow == 1


def test_a_price_that_nobody_knows_is_not_zero(traffic: Traffic, store: Counted) -> None:
    under = routes(arms=[{"target": "claude", "model": "none-such"}, {"target": "openai"}])
    x = tried(under, Try("claude", "connect", usage=USAGE), Try("openai", cost=4, usage=USAGE))
    x.unpriced = True
    traffic.observe(x)
    assert traffic.figures("chat")["claude"].total.cost_per_call is None
    y = tried(under, Try("claude", usage=USAGE))
    y.unpriced = True
    traffic.observe(y)
    assert (traffic.figures("chat")["claude"].total.calls, traffic.figures("chat")["claude"].total.priced) == (2, 0)
    assert traffic.figures("chat")["openai"].total.cost_per_call == 4
    assert store.sums["chat"]["claude|unpriced"] == 1, "of the calls that it has answered"
    assert "openai|unpriced" not in store.sums["chat"]


def test_the_canarys_last_failed_calls_are_remembered_the_latest_last(traffic: Traffic) -> None:
    under = routes(rollout=CANARY)
    assert traffic.samples("chat") == ()
    failed = [tried(under, Try("parallax", "connect"), session=f"s-{number}") for number in range(SAMPLES + 3)]
    for number, x in enumerate(failed):
        x.id = f"01KA{number}"
        traffic.observe(x)
    traffic.observe(tried(under, Try("openai", "connect")))
    traffic.observe(tried(under, Try("parallax")))
    assert traffic.samples("chat") == [x.id for x in failed[-SAMPLES:]]


def test_a_few_failed_calls_of_a_canary_in_a_bucket_are_told_to_all_gateways(traffic: Traffic, store: Counted) -> None:
    under = routes(rollout=CANARY)

    def told(second: int, target: str = "parallax") -> list[str]:
        x = tried(under, Try(target, "connect", 0.0), at=NOON + second, session=f"s-{second}")
        x.id = f"01KA{second:02}"
        traffic.observe(x)
        return [key for key in store.sums["chat"] if "|sample:" in key]

    assert told(0, "openai") == []
    for second in range(1, 9):
        found = told(second)
    assert found == ["parallax|sample:01KA01", "parallax|sample:01KA02"]
    assert told(11) == [*found, "parallax|sample:01KA11"]


def test_figures_outlive_reloads_and_arms_that_are_gone_are_forgotten_a_day_later(traffic: Traffic) -> None:
    before = routes()
    traffic.observe(tried(before, Try("parallax")))
    traffic.observe(tried(before, Try("openai")))
    after = routes(arms=[{"target": "openai"}, {"target": "claude"}])
    traffic.observe(tried(after, Try("openai"), at=NOON + FORGOTTEN - 10))
    assert traffic.figures("chat")["openai"].total.calls == 2
    assert traffic.figures("chat")["parallax"].total.calls == 1
    traffic.observe(tried(before, Try("parallax"), at=NOON + 5))  # it was under way when the other one came
    later = routes(name="other")
    traffic.observe(tried(later, Try("openai"), at=NOON + 3 * FORGOTTEN))
    assert traffic.figures("chat") == {}
    assert traffic.figures("other")["openai"].total.calls == 1


def test_a_route_with_one_arm_has_figures_and_no_evidence(traffic: Traffic, store: Counted) -> None:
    traffic.observe(tried(routes(arms=[{"target": "openai"}]), Try("openai")))
    assert traffic.figures("chat")["openai"].total.calls == 1
    assert store.sums == {}


def test_a_call_that_went_nowhere_counts_nowhere(traffic: Traffic, store: Counted) -> None:
    x = tried(routes())
    x.route = None
    traffic.observe(x)
    assert traffic.figures("chat") == {}
    assert (store.sums, list(traffic.met())) == ({}, [])


def test_what_cannot_be_counted_is_logged_and_ends_nothing(
    traffic: Traffic, store: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    x = tried(routes(), Try("openai"))
    x.route = None
    traffic.observe(x)
    assert f"call {x.id} could not be counted" in caplog.text
    assert store.sums == {}


TRIES = st.lists(
    st.builds(
        Try,
        st.sampled_from(["openai", "parallax", "claude"]),
        st.sampled_from(list(OUTCOMES)),
        st.floats(0.001, 5),
        st.none() | st.floats(0, 6),
        st.integers(0, 10**9),
        st.none() | st.just(USAGE),
    ),
    min_size=1,
    max_size=5,
)


@given(st.lists(st.tuples(TRIES, st.sampled_from([None, "s-1", "s-2"]), st.integers(0, 200)), max_size=12))
def test_errors_are_never_more_than_failures_nor_these_more_than_calls(
    calls: Sequence[tuple[list[Try], str | None, int]],
) -> None:
    store = Counted()
    traffic, under = Traffic(store, NOON), THREE_ARMS
    for tries, session, second in calls:
        traffic.observe(tried(under, *tries, at=NOON + second, session=session, stream=second % 2 == 0))
    counts = store.sums["chat"]
    for name, figures in traffic.figures("chat").items():
        calls_of, raw, errors = (counts.get(f"{name}|{what}", 0) for what in ("calls", "raw_errors", "errors"))
        assert calls_of >= raw >= errors >= (raw > 0)
        assert (figures.total.calls, figures.total.failed) == (calls_of, raw)
        assert sum(number for key, number in counts.items() if key.startswith(f"{name}|error:")) == raw
    attempted = sum(sum(met.attempts.values()) for met in traffic.met())
    assert attempted == sum(len(tries) for tries, _, _ in calls)


THREE_ARMS = routes(arms=[{"target": name} for name in ("openai", "parallax", "claude")])
