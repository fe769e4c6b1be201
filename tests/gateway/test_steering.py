"""Routes on their courses: what people set and what rollouts find is in force here, on record, and told once."""

import asyncio
import gc
import logging
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import RolloutSettings
from gateway.steering import in_force, shares
from routing.course import BUCKET, HEAR, LEASE, Course
from routing.errors import NoRoute, StoreUnavailable, WeightsRefused
from routing.rollout import MoveRefused, State, Step, advance, draft, from_json, step, to_json
from tests.routing.buckets import CANARY, DAY, OTHER, START, bucket
from tests.support.bridge import PLAN, ROUTE, Bridge, Faulty, HeldClock, configured, kept
from tests.support.listener import listening
from tests.support.steps import longest_step
from tests.support.stores import in_memory

AS_CONFIGURED = {OTHER: 90.0, CANARY: 10.0}
PROMOTED: tuple[Step, ...] = ("start", "promote", "promote")
TAKEN_BACK = frozenset({CANARY})
WELL, ILL = ((50, 0), (450, 0)), ((50, 50), (450, 0))
"""(calls, errors) of the canary and of the other arm in a bucket."""
_plan = RolloutSettings.model_validate(dict(PLAN))


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
async def faulty(folder: Path, clock: HeldClock) -> AsyncIterator[Faulty]:
    async with kept(folder, clock) as routes:
        yield Faulty(routes, clock)


@pytest.fixture
async def bridge(faulty: Faulty, clock: HeldClock) -> AsyncIterator[Bridge]:
    """One that has heard the courses."""
    it = Bridge(faulty, clock)
    await it.steering.hear()
    yield it
    await it.webhooks.close(within=0)


# --- weights ---------------------------------------------------------------------------------------------------------


async def test_a_route_that_nobody_has_steered_goes_by_its_configuration(bridge: Bridge) -> None:
    assert bridge.weights == AS_CONFIGURED
    untouched = bridge.route.weights
    for _ in range(3):
        await bridge.steering.hear()
    assert bridge.route.weights is untouched, "what is known of them, as prices are, is not found out again"


async def test_weights_that_a_person_sets_are_in_force_when_they_are_set(bridge: Bridge) -> None:
    await bridge.steering.weigh(ROUTE, {OTHER: 70, CANARY: 30}, "dana", "the launch")
    assert bridge.weights == {OTHER: 70.0, CANARY: 30.0}
    assert dict(shares(bridge.route)) == {OTHER: 70.0, CANARY: 30.0}
    (record,) = bridge.told("weights")
    assert record == {
        "record": "weights",
        "event": "set",
        "who": "dana",
        "route": ROUTE,
        "old": AS_CONFIGURED,
        "new": {OTHER: 70.0, CANARY: 30.0},
        "comment": "the launch",
        "result": "ok",
    }
    await bridge.steering.weigh(ROUTE, {CANARY: 100}, "sam")
    assert bridge.weights == {OTHER: 0.0, CANARY: 100.0}
    assert bridge.told("weights")[1]["old"] == {OTHER: 70.0, CANARY: 30.0}


async def test_weights_that_are_none_are_refused_and_nothing_is_recorded(bridge: Bridge) -> None:
    for asked in ({OTHER: 70, CANARY: 20}, {OTHER: 100, "nobody": 0}, {OTHER: float("nan"), CANARY: 30}):
        with pytest.raises(WeightsRefused):
            await bridge.steering.weigh(ROUTE, asked, "dana")
    with pytest.raises(NoRoute):
        await bridge.steering.weigh("none", {OTHER: 100}, "dana")
    assert bridge.weights == AS_CONFIGURED
    assert bridge.told("weights") == []


async def test_the_next_gateway_at_the_same_state_begins_on_course(folder: Path, clock: HeldClock) -> None:
    async with kept(folder, clock) as routes:
        first = Bridge(Faulty(routes, clock), clock)
        await first.steering.hear()
        await first.steering.weigh(ROUTE, {OTHER: 40, CANARY: 60}, "dana")
        await first.steering.weigh("plain", {OTHER: 5, "claude": 95}, "dana")
    async with kept(folder, clock) as routes:
        second = Bridge(Faulty(routes, clock), clock)
        await second.steering.begin()
        assert second.weights == {OTHER: 40.0, CANARY: 60.0}
        plain = second.assembly.table.named("plain")
        assert plain is not None
        assert [arm.weight for arm in plain.arms] == [5.0, 95.0]
        await second.steering.end()


async def test_a_reload_keeps_the_course_and_other_configured_weights_end_it(bridge: Bridge) -> None:
    await bridge.steering.weigh(ROUTE, {OTHER: 40, CANARY: 60}, "dana")
    bridge.under(configured())
    assert bridge.weights == {OTHER: 40.0, CANARY: 60.0}, "from the first moment of the new route"
    bridge.under(configured(canary=20))
    assert bridge.weights == {OTHER: 80.0, CANARY: 20.0}
    await bridge.steering.hear()
    assert bridge.weights == {OTHER: 80.0, CANARY: 20.0}


async def test_weights_that_others_in_the_configuration_have_ended_do_not_come_back_with_it(bridge: Bridge) -> None:
    await bridge.steering.weigh(ROUTE, {OTHER: 50, CANARY: 50}, "dana")
    bridge.under(configured(canary=20))
    await bridge.beat()
    (_, ended) = bridge.told("weights")
    assert ended == {
        "record": "weights",
        "event": "ended",
        "who": "weighbridge",
        "route": ROUTE,
        "old": {OTHER: 50.0, CANARY: 50.0},
        "new": {OTHER: 80.0, CANARY: 20.0},
        "comment": "",
        "result": "ok",
    }
    bridge.under(configured())
    await bridge.beat()
    assert bridge.weights == AS_CONFIGURED
    assert len(bridge.told("weights")) == 2


async def test_weights_are_ended_by_a_gateway_that_starts_with_others_configured(
    folder: Path, clock: HeldClock
) -> None:
    async with kept(folder, clock) as routes:
        first = Bridge(Faulty(routes, clock), clock)
        await first.beat()
        await first.steering.weigh(ROUTE, {OTHER: 50, CANARY: 50}, "dana")
        second = Bridge(Faulty(routes, clock), clock, configured(canary=20))
        await second.beat()
        assert [each["event"] for each in second.told("weights")] == ["ended"]
        await first.beat()
        assert first.weights == AS_CONFIGURED


async def test_gateways_whose_files_differ_do_not_end_in_turn_what_is_set_at_each_of_them(
    folder: Path, clock: HeldClock
) -> None:
    async with kept(folder, clock) as routes:
        old, new = (Bridge(Faulty(routes, clock), clock, configured(canary=share)) for share in (10, 20))
        for each in (old, new, old, new):
            await each.beat()
        await old.steering.weigh(ROUTE, {OTHER: 50, CANARY: 50}, "dana")
        for each in (new, old, new, old):
            await each.beat()
        assert (old.weights[CANARY], new.weights[CANARY]) == (50, 20)
        await new.steering.weigh(ROUTE, {OTHER: 40, CANARY: 60}, "sam")
        for each in (old, new, old, new):
            await each.beat()
        assert (old.weights[CANARY], new.weights[CANARY]) == (10, 60)
        assert [each["event"] for bridge in (old, new) for each in bridge.told("weights")] == ["set", "set"]


async def test_weights_that_cannot_be_ended_now_are_ended_later(bridge: Bridge, faulty: Faulty) -> None:
    await bridge.steering.weigh(ROUTE, {OTHER: 50, CANARY: 50}, "dana")
    faulty.read_only = True
    bridge.under(configured(canary=20))
    await bridge.beat()
    assert bridge.weights[CANARY] == 20
    faulty.read_only = False
    await bridge.beat()
    bridge.under(configured())
    await bridge.beat()
    assert bridge.weights == AS_CONFIGURED


async def test_the_arms_that_a_promoted_canary_has_left_no_weight_stand_by_for_it(bridge: Bridge) -> None:
    def order() -> list[str]:
        return [arm.target.name for arm in bridge.route.order("openai", "chat", 7)]

    for what in PROMOTED:
        await bridge.steering.move(ROUTE, what, "dana")
    assert (bridge.weights, order()) == ({OTHER: 0.0, CANARY: 100.0}, [CANARY, OTHER])
    bridge.clock.advance(365 * DAY)
    await bridge.beat()
    assert order() == [CANARY, OTHER], "and for as long as they are configured with weight"
    await bridge.steering.weigh(ROUTE, {CANARY: 100}, "dana")
    assert order() == [CANARY], "who gives an arm nothing by hand means it"
    arms = [{"target": OTHER, "weight": 90, "fallback": False}, {"target": CANARY, "weight": 10}]
    bridge.under(configured(arms=arms))
    assert order() == [CANARY]


async def test_who_promotes_without_evidence_is_on_record_with_what_was_missing(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL)
    await bridge.steering.move(ROUTE, "promote", "dana")
    record = bridge.told()[-1]
    assert [each.split(" ")[:2] for each in record["without_evidence"]] == [["9", "min"], ["needs", "~330"]]
    assert "without the evidence (9 min more at this step; needs ~330 more calls" in record["text"]


async def test_of_two_who_set_weights_at_once_both_do_one_after_the_other(bridge: Bridge) -> None:
    await asyncio.gather(
        *(bridge.steering.weigh(ROUTE, {OTHER: 100 - share, CANARY: share}, f"p{share}") for share in (20, 30, 40))
    )
    # Each is told once the store has answered it, and the last to be made may hear of that first.
    after = {str(each["old"]): each["new"] for each in bridge.told("weights")}
    weights = AS_CONFIGURED
    for _ in range(3):
        weights = after.pop(str(weights))
    assert not after
    assert bridge.weights == weights


async def test_weights_of_which_nobody_knows_whether_they_hold_are_on_record_as_that(
    bridge: Bridge, faulty: Faulty
) -> None:
    faulty.loses_answers = True
    with pytest.raises(StoreUnavailable):
        await bridge.steering.weigh(ROUTE, {OTHER: 40, CANARY: 60}, "dana")
    assert [each["result"] for each in bridge.told("weights")] == ["unknown"]
    await bridge.steering.hear()
    assert bridge.weights == {OTHER: 40.0, CANARY: 60.0}, "it was made"


# --- rollouts --------------------------------------------------------------------------------------------------------


async def test_a_rollout_is_a_draft_until_a_person_starts_it(bridge: Bridge) -> None:
    await bridge.traffic(*WELL, buckets=3)
    assert (bridge.state, bridge.weights) == ("DRAFT", AS_CONFIGURED)
    await bridge.steering.weigh(ROUTE, {OTHER: 60, CANARY: 40}, "dana")
    started = await bridge.steering.move(ROUTE, "start", "dana", "at last")
    assert (started.state, started.step) == (State.RUNNING, 1)
    assert bridge.weights == AS_CONFIGURED, "the weight of the first step"
    (record,) = bridge.told()
    assert (record["event"], record["who"], record["route"], record["comment"]) == ("start", "dana", ROUTE, "at last")
    assert record["text"] == "dana started the rollout: at last"
    assert bridge.steering.moves == {(ROUTE, "start"): 1}


async def test_a_start_knows_the_traffic_of_the_day_before(bridge: Bridge) -> None:
    await bridge.traffic(*WELL, buckets=6)
    started = await bridge.steering.move(ROUTE, "start", "dana")
    assert started.pace == pytest.approx(50)


async def test_what_the_state_of_a_rollout_does_not_allow_is_refused(bridge: Bridge) -> None:
    with pytest.raises(MoveRefused, match="DRAFT"):
        await bridge.steering.move(ROUTE, "promote", "dana")
    with pytest.raises(NoRoute, match="no rollout"):
        await bridge.steering.move("plain", "start", "dana")
    with pytest.raises(NoRoute, match="no such route"):
        await bridge.steering.move("none", "start", "dana")
    assert bridge.told() == []


async def test_an_aborted_canary_takes_no_call_until_a_person_starts_again(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.steering.move(ROUTE, "abort", "sam")
    assert (bridge.weights, bridge.barred) == ({OTHER: 100.0, CANARY: 0.0}, TAKEN_BACK)
    bridge.under(configured(canary=50))
    assert (bridge.weights, bridge.barred) == ({OTHER: 100.0, CANARY: 0.0}, TAKEN_BACK), "whatever is configured"
    await bridge.traffic(*WELL, buckets=70)
    assert bridge.state == "ROLLED_BACK"
    await bridge.steering.move(ROUTE, "start", "dana")
    assert (bridge.weights, bridge.barred) == (AS_CONFIGURED, frozenset())


async def test_a_failing_canary_is_taken_back_when_the_bucket_is_closed(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL, buckets=30)
    with caplog.at_level(logging.WARNING, "weighbridge.routes"):
        await bridge.traffic(*ILL)
    assert (bridge.weights, bridge.barred) == ({OTHER: 100.0, CANARY: 0.0}, TAKEN_BACK)
    record = bridge.told()[-1]
    assert (record["event"], record["who"], record["verdict"]) == ("rollback", "weighbridge", "ROLLBACK")
    facts = record["facts"]
    assert (facts["errors"], facts["calls"], facts["other_errors"]) == (50, 50, 0)
    assert facts["samples"] == ["call-1", "call-2"]
    assert facts["classes"] == {"connect": 50}
    assert record["text"] in caplog.text
    assert bridge.steering.moves[ROUTE, "rollback"] == 1


async def test_a_clock_that_jumps_ahead_by_years_is_no_reason_to_look_through_all_of_them(
    bridge: Bridge, faulty: Faulty
) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL)
    bridge.clock.advance(1000 * DAY)
    asked = faulty.asked
    await bridge.traffic(*WELL)
    assert faulty.asked - asked < 1000
    await bridge.traffic(*ILL)
    assert bridge.barred == TAKEN_BACK


async def test_a_canary_that_fails_after_the_clock_was_set_back_by_a_day_is_taken_back(bridge: Bridge) -> None:
    bridge.clock.advance(DAY)
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL, buckets=30)
    bridge.clock.advance(-DAY)
    await bridge.traffic(*ILL, buckets=3)
    assert (bridge.weights, bridge.barred) == ({OTHER: 100.0, CANARY: 0.0}, TAKEN_BACK)


async def test_an_outage_of_both_arms_pauses_and_takes_nobody_back(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL, buckets=30)
    await bridge.traffic((50, 50), (450, 450))
    assert bridge.state == "PAUSED"
    assert (bridge.weights, bridge.barred) == (AS_CONFIGURED, frozenset())
    assert bridge.told()[-1]["event"] == "pause"


async def test_a_canary_that_others_stand_in_for_is_paused_and_who_resumes_it_looks_anew(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL)

    async def away(buckets: int) -> str:
        for _ in range(buckets):
            bridge.store.count(ROUTE, bucket(0, (0, 0), (500, 0), absent=50).counts)
            await bridge.traffic((0, 0), (0, 0))
        return bridge.state

    assert await away(2) == "RUNNING"
    assert await away(1) == "PAUSED"
    assert "150 calls that fell to it were taken by others" in bridge.told()[-1]["text"]
    assert (bridge.told()[-1]["event"], bridge.weights) == ("pause", AS_CONFIGURED)
    await bridge.steering.move(ROUTE, "resume", "dana")
    await bridge.traffic((0, 0), (0, 0))
    assert bridge.state == "RUNNING"
    assert await away(2) == "RUNNING"
    assert await away(1) == "PAUSED"


async def test_a_good_canary_grows_by_itself(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL, buckets=61)
    assert bridge.weights == {OTHER: 70.0, CANARY: 30.0}
    await bridge.traffic((150, 0), (350, 0), buckets=61)
    assert (bridge.state, bridge.weights) == ("PROMOTED", {OTHER: 0.0, CANARY: 100.0})
    assert [each["event"] for each in bridge.told()] == ["start", "promote", "complete"]


async def test_what_was_counted_while_nobody_judged_is_taken_in_a_little_at_a_time(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.traffic(*WELL)
    for _ in range(500):
        bridge.store.count(ROUTE, bucket(0, *WELL).counts)
        await bridge.store.flush()
        bridge.clock.advance(BUCKET)
    async with longest_step() as longest:
        await bridge.steering.judge()
    assert bridge.steering.rollout(ROUTE)[0].cursor == START + 501 * BUCKET - BUCKET
    assert longest.seconds < 0.1


async def test_a_change_whose_answer_was_lost_is_told_once_it_is_known_to_be_made(
    bridge: Bridge, faulty: Faulty
) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    faulty.loses_answers = True
    await bridge.traffic(*ILL)
    assert [each["event"] for each in bridge.told()] == ["start"]
    faulty.loses_answers = False
    await bridge.steering.judge()
    await bridge.steering.judge()
    assert [each["event"] for each in bridge.told()] == ["start", "rollback"]
    assert faulty.tried[-1] == faulty.tried[-2], "the same change, tried again"
    assert bridge.barred == {CANARY}


async def test_an_edited_plan_with_another_canary_begins_as_a_draft(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.steering.move(ROUTE, "abort", "dana")
    bridge.under(configured({**PLAN, "canary": OTHER}))
    assert (bridge.weights, bridge.barred) == (AS_CONFIGURED, frozenset())
    await bridge.steering.judge()
    assert bridge.state == "DRAFT"
    assert bridge.told()[-1]["event"] == "plan"
    await bridge.steering.move(ROUTE, "start", "dana")
    assert bridge.weights == {OTHER: 10.0, CANARY: 90.0}


async def test_the_listener_is_told_of_what_happens(faulty: Faulty, clock: HeldClock) -> None:
    async with listening() as listener:
        plan = {**PLAN, "webhook": {"url": listener.url, "secret": "signed-with-this"}}
        bridge = Bridge(faulty, clock, configured(plan))
        await bridge.steering.hear()
        await bridge.steering.move(ROUTE, "start", "dana")
        await listener.told(1)
        await bridge.traffic(*ILL)
        start, rollback = await listener.told(2)
        await bridge.webhooks.close()
    assert (start.facts["type"], start.facts["data"]["by"]) == ("rollout.start", "dana")
    assert rollback.facts["type"] == "rollout.rollback"
    data = rollback.facts["data"]
    assert (data["route"], data["state"], data["facts"]["errors"]) == (ROUTE, "ROLLED_BACK", 50)
    assert rollback.headers["webhook-signature"].startswith("v1,")


# --- who has the say -------------------------------------------------------------------------------------------------


async def test_a_rollout_under_way_decides_on_the_weights(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    with pytest.raises(MoveRefused, match=r"RUNNING.* take `rollout` out of the route"):
        await bridge.steering.weigh(ROUTE, {OTHER: 50, CANARY: 50}, "sam")
    await bridge.steering.move(ROUTE, "pause", "dana")
    with pytest.raises(MoveRefused, match="PAUSED"):
        await bridge.steering.weigh(ROUTE, AS_CONFIGURED, "sam")
    assert bridge.told("weights") == []


async def test_no_weight_brings_a_canary_back_that_was_taken_back(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.steering.move(ROUTE, "abort", "dana")
    with pytest.raises(MoveRefused, match="`start` begins its rollout again"):
        await bridge.steering.weigh(ROUTE, {OTHER: 50, CANARY: 50}, "sam")
    await bridge.steering.weigh(ROUTE, {OTHER: 100}, "sam")
    assert (bridge.weights, bridge.barred) == ({OTHER: 100.0, CANARY: 0.0}, TAKEN_BACK)


async def test_a_promoted_canary_keeps_the_weight_that_the_plan_gives_it(bridge: Bridge) -> None:
    for what in PROMOTED:
        await bridge.steering.move(ROUTE, what, "dana")
    assert bridge.state == "PROMOTED"
    with pytest.raises(MoveRefused, match="promoted_weight"):
        await bridge.steering.weigh(ROUTE, {OTHER: 50, CANARY: 50}, "sam")
    await bridge.steering.weigh(ROUTE, {CANARY: 100}, "sam")


# --- a state that does not answer ------------------------------------------------------------------------------------


async def test_until_the_courses_are_heard_a_canary_has_no_new_sessions(faulty: Faulty, clock: HeldClock) -> None:
    faulty.refuses = True
    bridge = Bridge(faulty, clock)
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}
    with pytest.raises(StoreUnavailable):
        await bridge.steering.hear()
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}
    with pytest.raises(StoreUnavailable, match="not known here yet"):
        bridge.steering.rollout(ROUTE)
    assert list(bridge.steering.rollouts) == []
    faulty.refuses = False
    await bridge.steering.hear()
    assert bridge.weights == AS_CONFIGURED


@pytest.mark.parametrize("moves", [(), ("start",), ("start", "pause"), ("start", "promote", "promote")])
async def test_a_canary_has_no_new_sessions_once_the_lease_is_over(
    bridge: Bridge, faulty: Faulty, moves: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    for what in moves:
        await bridge.steering.move(ROUTE, what, "dana")
    await bridge.steering.hear()
    before = bridge.weights
    faulty.refuses = True

    async def heard_in_vain(seconds: float) -> None:
        bridge.clock.advance(seconds)
        with pytest.raises(StoreUnavailable):
            await bridge.steering.hear()

    await heard_in_vain(LEASE)
    assert bridge.weights == before, "what is known stays in force"
    with caplog.at_level(logging.WARNING, "weighbridge.routes"):
        caplog.clear()
        await heard_in_vain(0.5)
        await heard_in_vain(0.5)
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}
    assert bridge.barred == frozenset(), "who is bound to it goes on"
    assert len(caplog.messages) == 1
    faulty.refuses = False
    await bridge.steering.hear()
    assert bridge.weights == before


async def test_a_canary_has_no_new_sessions_once_nothing_can_be_told_of_it_any_more(
    bridge: Bridge, faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    before = bridge.weights
    faulty.read_only = True  # a full server, or the copy of one, answers what it is asked and takes nothing

    async def told_in_vain(seconds: float) -> None:
        bridge.clock.advance(seconds)
        with pytest.raises(StoreUnavailable):
            await bridge.steering.flush()
        await bridge.steering.hear()

    await told_in_vain(0.0)
    await told_in_vain(LEASE)
    assert (bridge.weights, bridge.steering.trouble(ROUTE)) == (before, None)
    with caplog.at_level(logging.WARNING, "weighbridge.routes"):
        await told_in_vain(1.0)
        await told_in_vain(1.0)
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}
    assert bridge.barred == frozenset(), "who is bound to it goes on"
    assert len(caplog.messages) == 1
    assert "no new sessions" in (bridge.steering.trouble(ROUTE) or "")
    assert bridge.steering.trouble("plain") is None
    faulty.read_only = False
    await bridge.steering.flush()
    await bridge.steering.hear()
    assert (bridge.weights, bridge.steering.trouble(ROUTE)) == (before, None)


async def test_a_canary_that_was_promoted_long_ago_needs_no_lease(bridge: Bridge, faulty: Faulty) -> None:
    for what in PROMOTED:
        await bridge.steering.move(ROUTE, what, "dana")
    bridge.clock.advance(15 * DAY)
    faulty.refuses = True
    with pytest.raises(StoreUnavailable):
        await bridge.steering.hear()
    assert bridge.weights == {OTHER: 0.0, CANARY: 100.0}


async def test_a_lapsed_lease_is_noticed_by_routes_of_a_reload_as_well(bridge: Bridge, faulty: Faulty) -> None:
    faulty.refuses = True
    bridge.clock.advance(LEASE + 1)
    bridge.under(configured())
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}


async def test_weights_that_a_person_has_set_need_no_lease(bridge: Bridge, faulty: Faulty) -> None:
    await bridge.steering.weigh("plain", {OTHER: 20, "claude": 80}, "dana")
    faulty.refuses = True
    bridge.clock.advance(LEASE + 1)
    with pytest.raises(StoreUnavailable):
        await bridge.steering.hear()
    plain = bridge.assembly.table.named("plain")
    assert plain is not None
    assert [arm.weight for arm in plain.arms] == [20.0, 80.0]


async def test_a_step_that_nobody_knows_of_whether_it_was_made_is_on_record_as_that(
    bridge: Bridge, faulty: Faulty
) -> None:
    faulty.refuses = True
    with pytest.raises(StoreUnavailable):
        await bridge.steering.move(ROUTE, "start", "dana")
    assert bridge.told() == [], "it was not even tried"
    faulty.refuses = False
    await bridge.steering.move(ROUTE, "start", "dana")
    faulty.refuses = True
    with pytest.raises(StoreUnavailable):
        await bridge.steering.move(ROUTE, "abort", "dana")
    assert [(each["event"], each["result"]) for each in bridge.told()] == [("start", "ok"), ("abort", "unknown")]
    assert bridge.steering.moves == {(ROUTE, "start"): 1}


async def test_a_state_that_cannot_be_read_gives_a_canary_nothing(bridge: Bridge, faulty: Faulty) -> None:
    assert await faulty.steer(ROUTE, Course(1, rollout={"state": "FLYING"}), 0)
    await bridge.steering.hear()
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}
    for ask in (lambda: bridge.steering.move(ROUTE, "start", "dana"), lambda: bridge.steering.weigh(ROUTE, {}, "dana")):
        with pytest.raises((StoreUnavailable, WeightsRefused)):
            await ask()
    with pytest.raises(StoreUnavailable, match="another version"):
        bridge.steering.rollout(ROUTE)
    assert list(bridge.steering.rollouts) == []
    await bridge.steering.judge()


def _state(**more: Any) -> dict[str, Any]:
    return {**to_json(step(draft(_plan), "start", "dana", START)), **more}


def _watched(**more: Any) -> dict[str, Any]:
    state, _ = advance(step(draft(_plan), "start", "dana", START), _plan, [bucket(START, *WELL)], START + BUCKET)
    kept = to_json(state)
    return {**kept, "watch": {**kept["watch"], **more}}


_SAID = {"at": START, "what": "pause", "by": "dana", "state": "PAUSED", "step": 1, "verdict": "HOLD", "text": "So."}


@pytest.mark.parametrize(
    "kept",
    [
        {"weights": {OTHER: "most", CANARY: "few"}, "instead_of": AS_CONFIGURED},
        {"weights": {OTHER: -1.0, CANARY: 101.0}, "instead_of": AS_CONFIGURED},
        {"weights": {OTHER: True, CANARY: 1.0}, "instead_of": AS_CONFIGURED},
        {"weights": {OTHER: 0.0, CANARY: 0.0}, "instead_of": AS_CONFIGURED},
        {"weights": [10, 90], "instead_of": AS_CONFIGURED},
        {"weights": {OTHER: 1e308, CANARY: 1e308}, "instead_of": AS_CONFIGURED},
        {"weights": 7},
        {"rollout": 7},
        {"rollout": [7]},
        {"rollout": _state(step="far")},
        {"rollout": _state(watch={"began": 0})},
        {"rollout": _watched(canary={"spacing": 25, "starts": 10, "trials": 50, "money": [0.0]})},
        {"rollout": _watched(ratio={"spacing": 0, "starts": 0, "trials": 50, "money": []}, minute=-1, pooled=[9] * 4)},
        {"rollout": _watched(terms=[0.01, 0.0, 1.25])},
        {"rollout": _watched(canary={"spacing": 25, "starts": 10, "trials": 50, "money": [1e5] * 9})},
        {"rollout": _state(state="PAUSED", moved=-(10**400), began=10**400)},
        {"rollout": _state(state="RUNNING", step=1, moved=10**30)},
        {"rollout": _state(history=[{**_SAID, "at": 10**30}])},
        {"rollout": _state(history=[{**_SAID, "text": "\ud800"}])},
        {"by": 7},
        {"at": "noon"},
    ],
    ids=lambda each: repr(each)[:60],
)
async def test_what_is_kept_of_one_route_and_cannot_be_used_fails_no_call_and_harms_no_other(
    bridge: Bridge, faulty: Faulty, caplog: pytest.LogCaptureFixture, kept: dict[str, Any]
) -> None:
    assert await faulty.steer(ROUTE, Course(1, **kept), 0)
    halves = {OTHER: 50.0, "claude": 50.0}
    assert await faulty.steer("plain", Course(1, weights={OTHER: 5.0, "claude": 95.0}, instead_of=halves), 0)
    for _ in range(3):
        await bridge.beat()
        bridge.clock.advance(BUCKET)
    bridge.under(configured())
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}
    assert [arm.target.name for arm in bridge.route.order("openai", "chat", 7)] == [OTHER]
    plain = bridge.assembly.table.named("plain")
    assert plain is not None
    assert [arm.weight for arm in plain.arms] == [5.0, 95.0]
    trouble = bridge.steering.trouble(ROUTE)
    assert trouble is not None
    assert caplog.text.count(trouble) == 1, "once"
    assert bridge.steering.trouble("plain") is None
    with pytest.raises(StoreUnavailable):
        bridge.steering.rollout(ROUTE)
    assert (await faulty.courses())[ROUTE].epoch == 1, "nobody takes the place of what a newer version may have written"


async def test_weights_that_a_person_sets_take_the_place_of_those_that_are_none(
    bridge: Bridge, faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    assert await faulty.steer(ROUTE, Course(1, weights={OTHER: -1.0}, instead_of=AS_CONFIGURED), 0)
    await bridge.steering.hear()
    with caplog.at_level(logging.INFO, "weighbridge.routes"):
        await bridge.steering.weigh(ROUTE, {OTHER: 70, CANARY: 30}, "dana")
    assert (bridge.weights, bridge.steering.trouble(ROUTE)) == ({OTHER: 70.0, CANARY: 30.0}, None)
    assert "again" in caplog.text


# --- gateways with different plans -----------------------------------------------------------------------------------


async def _beats(clock: HeldClock, *gateways: Bridge, buckets: int = 12) -> None:
    """Calls go on, and all gateways look and judge."""
    for _ in range(buckets):
        gateways[0].store.count(ROUTE, bucket(0, *WELL).counts)
        await gateways[0].store.flush()
        clock.advance(BUCKET)
        for each in gateways:
            await each.beat()


async def test_of_two_gateways_with_different_canaries_the_one_loaded_last_has_its_way_once(
    bridge: Bridge, faulty: Faulty, clock: HeldClock, caplog: pytest.LogCaptureFixture
) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await _beats(clock, bridge, buckets=2)
    newer = Bridge(faulty, clock, configured({**PLAN, "canary": OTHER}))
    await _beats(clock, bridge, newer)
    assert newer.steering.rollout(ROUTE)[0].canary == OTHER
    assert (newer.state, newer.weights) == ("DRAFT", AS_CONFIGURED)
    assert bridge.weights == {OTHER: 100.0, CANARY: 0.0}
    assert bridge.state == "DRAFT", "what another canary has passed says nothing of this one"
    told = [each["event"] for each in (*bridge.told(), *newer.told())]
    assert told == ["start", "plan"]
    trouble = bridge.steering.trouble(ROUTE)
    assert trouble is not None
    assert OTHER in trouble
    assert caplog.text.count(trouble) == 1
    with pytest.raises(MoveRefused, match=f"is of {OTHER}"):
        await bridge.steering.move(ROUTE, "abort", "dana")
    await newer.steering.move(ROUTE, "start", "dana")
    await _beats(clock, bridge, newer)
    assert (newer.state, newer.weights) == ("RUNNING", {OTHER: 10.0, CANARY: 90.0})
    tried = len(faulty.tried)
    await _beats(clock, bridge, newer)
    assert len(faulty.tried) - tried == 12, "only one of them judges"
    bridge.under(configured({**PLAN, "canary": OTHER}))
    await _beats(clock, bridge, newer, buckets=1)
    assert (bridge.weights, bridge.steering.trouble(ROUTE)) == (newer.weights, None)


async def test_a_person_may_start_the_rollout_of_a_plan_that_gave_way(
    bridge: Bridge, faulty: Faulty, clock: HeldClock
) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    newer = Bridge(faulty, clock, configured({**PLAN, "canary": OTHER}))
    await _beats(clock, bridge, newer)
    await bridge.steering.move(ROUTE, "start", "dana")
    await _beats(clock, bridge, newer)
    assert (bridge.state, bridge.weights) == ("RUNNING", AS_CONFIGURED)
    assert newer.weights == {OTHER: 0.0, CANARY: 100.0}, "and now it is the other one that gives way"


@pytest.mark.parametrize("edit", [{"steps": PLAN["steps"][:1]}, {"alpha": 0.02}], ids=["steps", "alpha"])
async def test_gateways_whose_plans_differ_in_steps_or_limits_do_not_take_turns_in_beginning_anew(
    bridge: Bridge, faulty: Faulty, clock: HeldClock, edit: dict[str, Any]
) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    await _beats(clock, bridge, buckets=2)
    newer = Bridge(faulty, clock, configured({**PLAN, **edit}))
    await _beats(clock, bridge, newer, buckets=1)
    tried = len(faulty.tried)
    await _beats(clock, bridge, newer)
    assert len(faulty.tried) - tried == 12
    assert newer.steering.rollout(ROUTE)[0].history[1:] == bridge.steering.rollout(ROUTE)[0].history[1:]
    assert len(newer.steering.rollout(ROUTE)[0].history) <= 2
    assert (bridge.weights, newer.weights) == ({OTHER: 100.0, CANARY: 0.0}, AS_CONFIGURED)
    newer.store.count(ROUTE, bucket(0, *ILL).counts)
    await _beats(clock, bridge, newer, bridge, buckets=1)
    assert (bridge.barred, newer.barred) == (TAKEN_BACK, TAKEN_BACK)


async def test_a_plan_that_is_loaded_again_begins_nothing_anew_but_a_restart_and_an_edit_do(
    bridge: Bridge, faulty: Faulty, clock: HeldClock
) -> None:
    others = configured({**PLAN, "canary": OTHER})
    newer = Bridge(faulty, clock, others)
    await bridge.steering.move(ROUTE, "start", "dana")
    await _beats(clock, bridge, newer)
    assert newer.steering.rollout(ROUTE)[0].canary == OTHER
    for _ in range(5):
        bridge.under(configured())
        await _beats(clock, bridge, newer, buckets=1)
    assert [each["event"] for each in bridge.told()] == ["start"]
    restarted = Bridge(faulty, clock)
    await _beats(clock, restarted, newer, buckets=5)
    assert [each["event"] for each in (*restarted.told(), *newer.told())] == ["plan", "plan"]
    assert (restarted.weights, newer.weights) == (AS_CONFIGURED, {OTHER: 0.0, CANARY: 100.0})


async def test_what_goes_on_beside_the_calls_ends_and_does_not_stop_at_a_trouble(
    faulty: Faulty, clock: HeldClock, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = Bridge(faulty, clock)
    await bridge.steering.begin()
    assert bridge.weights == AS_CONFIGURED
    assert await faulty.steer(ROUTE, Course(1, weights={OTHER: 1.0, CANARY: 99.0}, instead_of=AS_CONFIGURED), 0)
    async with asyncio.timeout(5):
        while bridge.weights != {OTHER: 1.0, CANARY: 99.0}:
            await asyncio.sleep(0.02)  # it is heard by a task of its own
    bridge.failed = None  # type: ignore[assignment]  # and now the gateway itself has a trouble that nobody foresees
    await bridge.steering.move(ROUTE, "start", "dana")
    clock.advance(BUCKET)
    await bridge.steering.judge()
    await bridge.steering.judge()
    assert bridge.steering._tasks
    await bridge.steering.end()
    assert bridge.steering._tasks == []


async def test_a_call_that_began_before_a_reload_hears_of_a_rollback_as_well(bridge: Bridge) -> None:
    await bridge.steering.move(ROUTE, "start", "dana")
    began_with, route = bridge.assembly, bridge.route
    bridge.under(configured(canary=20))
    bridge.under(configured(canary=30))
    await bridge.steering.move(ROUTE, "abort", "dana")
    assert began_with.table.named(ROUTE) is route
    assert (route.weights.barred, route.arms[1].weight) == (TAKEN_BACK, 0.0)
    await bridge.steering.move(ROUTE, "start", "dana")
    assert (route.weights.barred, route.arms[1].weight) == (frozenset(), 10.0)


async def test_routes_of_earlier_reloads_are_forgotten_with_their_calls(bridge: Bridge) -> None:
    gone = [weakref.ref(bridge.route)]
    for canary in range(20, 30):
        bridge.under(configured(canary=canary))
        gone.append(weakref.ref(bridge.route))
    gc.collect()
    assert [each() for each in gone[:-1]] == [None] * 10


@pytest.mark.parametrize("heard_before", [True, False])
async def test_a_canary_of_which_nothing_is_heard_stands_in_for_no_other_arm(
    faulty: Faulty, clock: HeldClock, heard_before: bool
) -> None:
    arms = [{"target": OTHER, "weight": 90}, {"target": CANARY, "weight": 10, "fallback": True}]
    bridge = Bridge(faulty, clock, configured(arms=arms))
    if heard_before:
        await bridge.steering.hear()
        assert set(bridge.route.weights.takers) == {OTHER, CANARY}
    faulty.refuses = True
    clock.advance(LEASE + 1)
    with pytest.raises(StoreUnavailable):
        await bridge.steering.hear()
    assert bridge.route.weights.takers == [OTHER]
    pinned = bridge.route.weights.pinned(CANARY, "openai", "chat")
    assert pinned.target.name == CANARY, "who is bound to it goes on"
    faulty.refuses = False
    await bridge.steering.hear()
    assert set(bridge.route.weights.takers) == {OTHER, CANARY}
    await bridge.steering.move(ROUTE, "start", "dana")
    await bridge.steering.move(ROUTE, "abort", "dana")
    assert bridge.route.weights.takers == [OTHER]


# --- several gateways, any weather -----------------------------------------------------------------------------------

_weather = [
    st.tuples(st.just("pass"), st.sampled_from([0.5, 5.0, 12.0])),
    st.tuples(st.sampled_from(["cut", "mend", "reload"]), st.integers(0, 2)),
]
_deeds = [
    st.tuples(st.sampled_from(["start", "pause", "resume", "promote", "abort"]), st.integers(0, 2)),
    st.tuples(st.sampled_from(["well", "ill"]), st.just(0)),
]


def _ended_badly(
    before: list[tuple[str, Any]], cut: set[int], deed: str, after: list[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """Whatever was before, the canary is taken back while some gateways cannot hear it."""
    begun = [("mend", 0), ("mend", 1), ("mend", 2), ("pass", 0.5), ("abort", 0), ("start", 0), ("pass", 0.5)]
    return [*before, *begun, *(("cut", each) for each in sorted(cut)), (deed, 0), ("pass", 12.0), *after]


_actions = st.builds(
    _ended_badly,
    st.lists(st.one_of(*_weather, *_deeds), max_size=6),
    st.sets(st.integers(1, 2)),
    st.sampled_from(["abort", "ill"]),
    st.lists(st.one_of(*_weather), max_size=6),
)


@settings(max_examples=25, deadline=None)
@given(actions=_actions)
def test_a_canary_that_was_taken_back_has_no_new_session_anywhere_once_a_lease_has_passed(
    actions: list[tuple[str, Any]],
) -> None:
    """And whoever hears goes by what there is to hear."""

    async def played(folder: Path) -> None:
        clock, taken_back = HeldClock(), None
        async with kept(folder, clock) as shared:
            stores = [Faulty(shared, clock) for _ in range(3)]
            gateways = [Bridge(store, clock) for store in stores]
            for what, which in [("pass", 0.5), *actions, ("pass", 20.0)]:
                if what == "pass":
                    for _ in range(round(which / HEAR)):
                        clock.advance(HEAR)
                        for each in gateways:
                            await each.beat()
                elif what in ("cut", "mend"):
                    stores[which].refuses = what == "cut"
                elif what in ("well", "ill"):
                    shared.count(ROUTE, bucket(0, *(WELL if what == "well" else ILL)).counts)
                    await shared.flush()
                elif what == "reload":
                    gateways[which].under(configured())
                else:
                    with suppress(StoreUnavailable, MoveRefused):
                        await gateways[which].steering.move(ROUTE, what, "dana")
                known = (await shared.courses()).get(ROUTE)
                state = from_json(known.rollout) if known is not None and known.rollout is not None else draft(_plan)
                if state.state is not State.ROLLED_BACK:
                    taken_back = None
                elif taken_back is None:
                    taken_back = clock.now_ns()
                elif clock.now_ns() - taken_back > (LEASE + HEAR) * 10**9:
                    assert {each.weights[CANARY] for each in gateways} == {0.0}
                for store, each in zip(stores, gateways, strict=True):
                    if what == "pass" and not store.refuses:
                        await each.beat()  # one that came after it may have been first
                        assert (each.weights, each.barred) == in_force(AS_CONFIGURED, known, _plan, state, leased=True)

    with in_memory(Path(tempfile.gettempdir())) as folder:
        asyncio.run(played(folder))


# --- pure ------------------------------------------------------------------------------------------------------------

_weights = st.integers(0, 100).map(float)
_arms = st.fixed_dictionaries({CANARY: _weights, OTHER: _weights, "claude": _weights}).filter(lambda w: any(w.values()))
_states = st.sampled_from([(), ("start",), ("start", "pause"), ("start", "promote", "promote"), ("start", "abort")])


@given(configured=_arms, steered=st.none() | _arms, moves=_states, leased=st.booleans(), readable=st.booleans())
def test_somebody_takes_the_calls_and_a_canary_only_what_it_may(
    configured: dict[str, float], steered: dict[str, float] | None, moves: tuple[Any, ...], leased: bool, readable: bool
) -> None:
    state = draft(_plan)
    for number, what in enumerate(moves):
        state = step(state, what, "dana", START + number)
    known = Course(1, weights=steered, instead_of=configured if steered is not None else None, rollout=to_json(state))
    weights, barred = in_force(configured, known, _plan, state if readable else None, leased=leased)
    assert weights.keys() == configured.keys()
    assert sum(weights.values()) > 0
    if state.state is State.ROLLED_BACK and readable:
        assert barred == {CANARY}
        assert weights[CANARY] == 0
    else:
        assert barred == frozenset()
    if not leased or not readable:
        assert weights[CANARY] == 0
    elif state.state is State.DRAFT:
        assert weights == (steered if steered is not None else configured)
    elif state.state is not State.ROLLED_BACK:
        assert weights[CANARY] == pytest.approx(100.0 if state.state is State.PROMOTED else 10.0)
        assert sum(weights.values()) == pytest.approx(100)


@given(configured=_arms, moves=_states)
def test_without_a_plan_the_configuration_has_its_way_whatever_is_kept(
    configured: dict[str, float], moves: tuple[Any, ...]
) -> None:
    state = draft(_plan)
    for number, what in enumerate(moves):
        state = step(state, what, "dana", START + number)
    known = Course(1, rollout=to_json(state))
    assert in_force(configured, known, None, None, leased=False) == (configured, frozenset())
    assert in_force(configured, replace(known, weights={CANARY: 100.0}, instead_of={}), None, None, leased=True) == (
        configured,
        frozenset(),
    )
