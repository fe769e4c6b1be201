"""`routing.rollout`: how a canary grows, and how it is taken back."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import RolloutSettings
from routing.course import SET_BACK, Bucket
from routing.phrases import moment
from routing.rollout import (
    TRANSITIONS,
    Event,
    MoveRefused,
    Rollout,
    State,
    Step,
    advance,
    draft,
    from_json,
    missing,
    set_back,
    standing,
    step,
    to_json,
    weights,
)
from routing.watch import Verdict
from tests.routing.buckets import DAY, PLAN, START, bucket, plan, traffic

CONFIGURED = {"openai": 90.0, "parallax": 10.0}
STEPS: tuple[Step, ...] = ("start", "pause", "resume", "promote", "abort")


def started(plan: RolloutSettings, now: int = START) -> Rollout:
    return step(draft(plan), "start", "dana", now)


def at_step(plan: RolloutSettings, number: int, now: int = START) -> Rollout:
    rollout = started(plan, now)
    for _ in range(number - 1):
        rollout = step(rollout, "promote", "dana", now)
    return rollout


def played(rollout: Rollout, plan: RolloutSettings, buckets: Iterable[Bucket]) -> tuple[Rollout, list[Event]]:
    """After buckets that are looked at one by one, as they close."""
    events: list[Event] = []
    for each in buckets:
        rollout, happened = advance(rollout, plan, [each], each.at + 10, ["c-7"])
        events += happened
    return rollout, events


def good(at: int, seconds: int) -> list[Bucket]:
    return [bucket(begin, (10, 0), (90, 0)) for begin in range(at, at + seconds, 10)]


def down(at: int, seconds: int) -> list[Bucket]:
    return [bucket(begin, (10, 10), (90, 0)) for begin in range(at, at + seconds, 10)]


def test_a_good_canary_goes_through_all_steps_by_itself() -> None:
    mine = plan(0.01, 0.005, hold=600)
    rollout, events = played(started(mine), mine, good(START, 3600))
    assert [(each.what, each.by, each.step) for each in events] == [
        ("promote", "weighbridge", 2),
        ("complete", "weighbridge", 2),
    ]
    assert rollout.state is State.PROMOTED
    assert events[0].at == START + 600
    assert events[0].text == "Step 1 of 2 is passed: 0 of 600 calls failed, 0 % where 1 % may."
    assert events[1].at == START + 600 + 770, "the second step lasts until there are calls enough"
    assert weights(rollout, mine, CONFIGURED) == {"openai": 0.0, "parallax": 100.0}


def test_without_calls_a_step_is_held_for_ever() -> None:
    rollout, events = advance(started(PLAN), PLAN, [], START + 1000 * DAY)
    assert events == []
    assert (rollout.state, rollout.verdict) == (State.RUNNING, Verdict.HOLD)
    rollout, events = advance(rollout, PLAN, good(START, 300), START + 1000 * DAY)
    assert events == []
    assert [each.what for each in missing(rollout, PLAN, START + 1000 * DAY)] == ["calls"]


def test_a_failing_canary_is_taken_back_and_gets_no_more_calls() -> None:
    rollout, _ = played(started(PLAN), PLAN, good(START, 3600))
    rollout, events = played(rollout, PLAN, down(START + 3600, 60))
    assert [(each.what, each.verdict) for each in events] == [("rollback", Verdict.ROLLBACK)]
    assert rollout.state is State.ROLLED_BACK
    assert weights(rollout, PLAN, CONFIGURED) == {"openai": 100.0, "parallax": 0.0}
    facts = events[0].facts
    assert facts is not None
    assert (facts.since, facts.errors, facts.samples) == (START + 3600, facts.calls, ("c-7",))
    assert events[0].at <= START + 3620
    again, events = played(rollout, PLAN, good(START + 3660, 86_400))
    assert events == []
    assert again.state is State.ROLLED_BACK, "only a person starts it again"


def test_after_a_rollback_a_person_starts_at_the_first_step_with_half_the_alpha() -> None:
    rollout, _ = played(at_step(PLAN, 3), PLAN, down(START, 60))
    assert (rollout.state, rollout.step) == (State.ROLLED_BACK, 3)
    for what in ("pause", "resume", "promote", "abort"):
        with pytest.raises(MoveRefused, match=r"ROLLED_BACK: it cannot be \w+ now, only started\."):
            step(rollout, what, "dana", START + 100)
    rollout = step(rollout, "start", "dana", START + 100)
    assert (rollout.state, rollout.step, rollout.tries) == (State.RUNNING, 1, 2)
    rollout, _ = played(rollout, PLAN, good(START + 100, 60))
    assert rollout.watch is not None
    assert rollout.watch.terms.alpha == 0.005
    assert rollout.watch.terms.limit == 0.01


def test_a_promoted_canary_is_watched_for_a_while_and_still_taken_back() -> None:
    mine = plan(0.01, hold=600, watch_for=3600.0)
    promoted, _ = played(started(mine), mine, good(START, 600))
    assert promoted.state is State.PROMOTED
    early, _ = played(promoted, mine, down(START + 600, 60))
    assert early.state is State.ROLLED_BACK
    assert step(early, "start", "dana", START + 700).tries == 2
    late, events = played(promoted, mine, down(START + 600 + 3600, 600))
    assert (late.state, events) == (State.PROMOTED, [])


@pytest.mark.parametrize(("state", "what"), [(state, what) for state in State for what in STEPS])
def test_a_person_may_do_what_the_table_says_and_nothing_else(state: State, what: Step) -> None:
    rollout = Rollout("parallax", 4, state=state, step=1)
    if (state, what) in TRANSITIONS:
        moved = step(rollout, what, "dana", START)
        assert moved.state is TRANSITIONS[state, what]
        assert moved.history[-1].by == "dana"
    else:
        with pytest.raises(MoveRefused, match=f"The rollout is {state}: it cannot be .* now, only .*"):
            step(rollout, what, "dana", START)


def test_a_person_who_promotes_is_recorded_with_what_was_known() -> None:
    rollout, _ = played(started(PLAN), PLAN, good(START, 60))
    rollout = step(rollout, "promote", "dana", START + 60)
    assert rollout.history[-1].text == "dana promoted step 1 of 4; the verdict was HOLD."
    assert rollout.history[-1].facts is not None
    assert rollout.history[-1].facts.calls == 60
    assert weights(rollout, PLAN, CONFIGURED) == {"openai": 70.0, "parallax": 30.0}
    for _ in range(3):
        rollout = step(rollout, "promote", "dana", START + 60)
    assert rollout.state is State.PROMOTED


def test_a_promotion_that_lacks_evidence_says_so_wherever_it_is_told() -> None:
    rollout, _ = played(started(PLAN), PLAN, good(START, 60))
    lacking = missing(rollout, PLAN, START + 60)
    rollout = step(rollout, "promote", "dana", START + 60, "the launch", lacking)
    assert rollout.history[-1].without_evidence == ("13 d 23 h more at this step", lacking[1].text)
    assert rollout.history[-1].text == (
        f"dana promoted step 1 of 4 without the evidence (13 d 23 h more at this step; {lacking[1].text}); "
        "the verdict was HOLD: the launch"
    )
    told = standing(rollout, PLAN, START + 60)["history"][0]
    assert told["without_evidence"] == ["13 d 23 h more at this step", lacking[1].text]
    assert from_json(json.loads(json.dumps(to_json(rollout)))) == rollout


def test_where_a_persons_word_is_wanted_the_rollout_waits_for_it_and_says_so_once() -> None:
    mine = plan(0.01, 0.005, approval=["finance"])
    rollout, events = played(started(mine), mine, good(START, 3600))
    assert [each.what for each in events] == ["ready"]
    assert events[0].text.endswith("It waits for somebody with the role finance to promote it.")
    assert (rollout.state, rollout.verdict, rollout.step) == (State.RUNNING, Verdict.PROMOTE, 1)
    rollout = step(rollout, "promote", "sam", START + 3600)
    assert (rollout.step, rollout.history[-1].text) == (2, "sam promoted step 1 of 2.")


def test_time_and_calls_while_paused_do_not_count() -> None:
    mine = plan(0.01, hold=600)
    rollout, _ = played(started(mine), mine, good(START, 300))
    rollout = step(rollout, "pause", "dana", START + 300)
    assert weights(rollout, mine, CONFIGURED)["parallax"] == 10.0, "the canary keeps its share"
    rollout, events = played(rollout, mine, good(START + 300, 6000))
    assert events == []
    assert missing(rollout, mine, START + 6300)[0].amount == 300
    rollout = step(rollout, "resume", "dana", START + 6300)
    rollout, events = played(rollout, mine, good(START + 6300, 290))
    assert events == []
    rollout, events = played(rollout, mine, good(START + 6590, 10))
    assert [each.what for each in events] == ["complete"]
    assert events[0].facts is not None
    assert events[0].facts.calls == 600


def test_a_paused_canary_is_still_taken_back() -> None:
    rollout = step(started(PLAN), "pause", "dana", START)
    rollout, _ = played(rollout, PLAN, down(START, 60))
    assert rollout.state is State.ROLLED_BACK


def test_who_resumes_a_canary_that_is_the_worse_arm_is_not_asked_again_in_this_step() -> None:
    worse = [bucket(at, (30, at // 10 % 10 == 0), (270, 0)) for at in range(START, START + 28_800, 10)]
    rollout, events = played(started(PLAN), PLAN, worse[:1440])
    assert [each.what for each in events] == ["pause"]
    rollout = step(rollout, "resume", "dana", START + 14_400)
    rollout, events = played(rollout, PLAN, worse[1440:])
    assert (rollout.state, events) == (State.RUNNING, [])


def away(at: int, seconds: int, calls: int = 10) -> list[Bucket]:
    return [bucket(begin, (0, 0), (100, 0), absent=calls) for begin in range(at, at + seconds, 10)]


def test_a_canary_that_is_out_of_service_pauses_and_is_not_taken_back() -> None:
    rollout, _ = played(started(PLAN), PLAN, good(START, 300))
    rollout, events = played(rollout, PLAN, away(START + 300, 20))
    assert (rollout.state, events) == (State.RUNNING, [])
    rollout, events = played(rollout, PLAN, away(START + 320, 600))
    assert [(each.what, each.at) for each in events] == [("pause", START + 330)]
    assert events[0].text == (
        f"parallax is out of service since {moment(START + 300)}: 30 calls that fell to it were taken by others."
    )
    assert rollout.state is State.PAUSED


def test_who_resumes_a_canary_that_was_out_of_service_is_paused_by_new_buckets_alone() -> None:
    rollout, _ = played(started(PLAN), PLAN, away(START, 300))
    rollout = step(rollout, "resume", "dana", START + 305)
    rollout, events = played(rollout, PLAN, away(START + 300, 30))
    assert (rollout.state, events) == (State.RUNNING, []), "the first was begun before the person looked"
    rollout, events = played(rollout, PLAN, away(START + 330, 10))
    assert [each.what for each in events] == ["pause"]


def test_a_call_of_its_own_shows_that_a_canary_is_there_and_a_bucket_without_any_shows_nothing() -> None:
    gone = away(START, 60)
    for number in (2, 5):
        gone[number] = bucket(gone[number].at, (1, 0), (99, 0), absent=9)
    rollout, events = played(started(PLAN), PLAN, gone)
    assert (rollout.state, events) == (State.RUNNING, [])
    few = [bucket(at, (0, 0), (5, 0), absent=at % 60 == START % 60) for at in range(START, START + 130, 10)]
    rollout, events = played(started(PLAN), PLAN, few)
    assert [(each.what, each.at) for each in events] == [("pause", START + 130)]


def test_a_verdict_names_failed_calls_of_whichever_gateway_has_seen_them() -> None:
    failed: dict[str, Any] = {f"sample:01KA{number}": 1 for number in range(9)}
    rollout, _ = advance(started(PLAN), PLAN, [bucket(START, (50, 50), (450, 0), **failed)], START + 10)
    assert rollout.state is State.ROLLED_BACK
    facts = rollout.history[-1].facts
    assert facts is not None
    assert facts.samples == ("01KA4", "01KA5", "01KA6", "01KA7", "01KA8")


def test_the_ids_of_failed_calls_do_not_pile_up() -> None:
    mine = plan(0.9, 0.9)
    buckets = []
    for at in range(START, START + 6000, 10):
        failed: dict[str, Any] = {f"sample:01KA{at}": 1}
        buckets.append(bucket(at, (50, 1), (450, 5), **failed))
    rollout, _ = played(step(started(mine), "pause", "dana", START), mine, buckets)
    rollout = step(rollout, "resume", "dana", START + 6000)
    rollout, _ = played(rollout, mine, [each._replace(at=each.at + 6000) for each in buckets[:50]])
    assert len(json.dumps(to_json(rollout))) < 8000


def test_a_suspicion_that_is_not_cleared_up_keeps_a_step_from_being_passed() -> None:
    mine = plan(0.01, 0.01, 0.01, 0.01, hold=600)
    rollout, _ = played(at_step(mine, 4), mine, good(START, 590))
    rollout, events = advance(rollout, mine, [bucket(START + 590, (6, 6))], START + 600)
    assert events == []
    assert rollout.step == 4


@pytest.mark.parametrize("mode", ["evidence", "window"])
def test_a_clock_that_went_back_by_a_day_hides_no_failing_canary(mode: str) -> None:
    mine = plan(0.01, 0.005, mode=mode, min_calls=10)
    rollout, _ = played(started(mine, START + DAY), mine, good(START + DAY, 300))
    assert set_back(rollout, rollout.cursor - SET_BACK) is rollout, "buckets bear as much as that"
    rollout = set_back(rollout, START + 5)
    assert set_back(rollout, START + 5) is rollout
    rollout, events = played(rollout, mine, [bucket(START, (20, 20), (180, 0))])
    assert [each.what for each in events] == ["rollback"]
    assert events[0].facts is not None
    assert events[0].facts.since <= START


def test_an_edited_limit_begins_with_its_own_evidence() -> None:
    rollout, _ = played(started(PLAN), PLAN, good(START, 600))
    edited = plan(0.02, hold=14 * DAY)
    rollout, events = advance(rollout, edited, good(START + 600, 20), START + 620)
    assert [each.what for each in events] == ["plan"]
    assert rollout.watch is not None
    assert rollout.watch.terms.limit == 0.02
    assert rollout.watch.mine["calls"] == 20


def test_another_canary_has_everything_to_show_yet() -> None:
    rollout = at_step(PLAN, 3)
    edited = RolloutSettings(canary="openai")
    assert weights(rollout, edited, CONFIGURED) == CONFIGURED
    rollout, events = advance(rollout, edited, [], START + 10)
    assert (rollout.state, rollout.canary) == (State.DRAFT, "openai")
    assert [each.what for each in events] == ["plan"]


def test_a_plan_with_fewer_steps_keeps_the_last() -> None:
    rollout, _ = advance(at_step(PLAN, 4), plan(0.01, 0.005), [], START)
    assert (rollout.step, rollout.steps) == (2, 2)
    assert weights(rollout, plan(0.01, 0.005), CONFIGURED)["parallax"] == 30.0


@given(
    st.dictionaries(st.sampled_from(["openai", "claude", "other"]), st.floats(0, 100), min_size=1),
    st.sampled_from([1, 2, 3, 4]),
)
def test_the_other_arms_keep_their_proportions(others: dict[str, float], number: int) -> None:
    found = weights(at_step(PLAN, number), PLAN, {**others, "parallax": 3.0})
    assert found["parallax"] == PLAN.steps[number - 1].weight
    assert sum(found.values()) == pytest.approx(100)
    for one in others:
        for two in others:
            if any(others.values()):
                assert found[one] * others[two] == pytest.approx(found[two] * others[one])


def test_before_it_begins_the_weights_are_those_configured() -> None:
    assert weights(draft(PLAN), PLAN, CONFIGURED) == CONFIGURED


counts = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (max(pair), min(pair)))
streams = st.lists(st.tuples(st.integers(1, 60), counts, counts), min_size=1, max_size=25)


def drawn(stream: list[tuple[int, tuple[int, int], tuple[int, int]]]) -> list[Bucket]:
    found, at = [], START
    for gap, mine, theirs in stream:
        at += 10 * gap
        found.append(bucket(at, mine, theirs))
    return found


@settings(max_examples=60)
@given(streams, st.lists(st.integers(1, 7), min_size=25, max_size=25), st.sampled_from(["evidence", "window"]))
def test_whoever_looks_and_however_often_finds_the_same(
    stream: list[tuple[int, tuple[int, int], tuple[int, int]]], sizes: list[int], mode: str
) -> None:
    mine = plan(0.01, 0.005, mode=mode, min_calls=50)
    buckets = drawn(stream)
    one, events = played(started(mine), mine, buckets)
    other, others_events, rest = started(mine), list[Event](), list(buckets)
    for size in sizes:
        part = rest[:size]
        if not part:
            break
        # Two who look at the same time, and one who looks at what was seen before: state is written down in between.
        read = from_json(json.loads(json.dumps(to_json(other))))
        assert read == other
        other, happened = advance(read, mine, [*buckets[:3], *part][-len(part) - 3 :], part[-1].at + 10, ["c-7"])
        others_events += happened
        rest = rest[size:]
    assert (other, others_events) == (one, events)
    same, nothing = advance(other, mine, buckets, buckets[-1].at + 10)
    assert same is other
    assert nothing == []


@settings(max_examples=60)
@given(streams, st.lists(st.sampled_from(STEPS), max_size=25))
def test_the_canarys_share_grows_by_a_promotion_or_a_person_alone(
    stream: list[tuple[int, tuple[int, int], tuple[int, int]]], asked: list[Step]
) -> None:
    mine = plan(0.3, 0.2, 0.1, hold=60, approval=["admin"])
    rollout = started(mine)
    for number, each in enumerate(drawn(stream)):
        before = weights(rollout, mine, CONFIGURED)["parallax"]
        rollout, _ = advance(rollout, mine, [each], each.at + 10)
        assert weights(rollout, mine, CONFIGURED)["parallax"] <= before
        back = rollout.state is State.ROLLED_BACK
        try:
            rollout = step(rollout, asked[number % len(asked)] if asked else "pause", "dana", each.at + 10)
        except MoveRefused:
            continue
        assert not back or rollout.step == 1
        assert json.loads(json.dumps(standing(rollout, mine, each.at + 10)))["state"] == rollout.state


def test_the_state_stays_small_enough_to_be_written_every_ten_seconds() -> None:
    rng = random.Random(1)
    rollout, _ = played(started(PLAN), PLAN, traffic(rng, START, 3 * 3600, 12.0, 0.1, 0.005, 0.004))
    assert len(json.dumps(to_json(rollout))) < 8000


def test_a_step_is_told_of_since_it_began_whatever_bucket_that_was_in() -> None:
    rollout, _ = played(started(PLAN, START + 7), PLAN, [bucket(START, (10, 1), (90, 0))])
    assert standing(rollout, PLAN, START + 10)["evidence"]["so_far"]["since"] == START + 7
    assert standing(rollout, PLAN, START + 10)["evidence"]["suspected"]["since"] == START + 7
    rollout, _ = played(started(PLAN, START + 7), PLAN, good(START, 300))
    rollout = step(rollout, "pause", "dana", START + 303)
    rollout, _ = played(rollout, PLAN, good(START + 300, 60))
    rollout = step(rollout, "resume", "dana", START + 365)
    rollout, _ = played(rollout, PLAN, good(START + 360, 60))
    found = standing(rollout, PLAN, START + 420)["evidence"]["so_far"]
    assert (found["since"], found["calls"]) == (START + 7, 350), "all that is counted, but for the pause"


def test_once_a_promoted_canary_is_not_watched_any_more_its_standing_says_so() -> None:
    mine = plan(0.01, watch_for=3600)
    rollout, _ = played(at_step(mine, 1), mine, good(START, 60))
    rollout = step(rollout, "promote", "dana", START + 60)
    rollout, _ = played(rollout, mine, good(START + 60, 60))
    before = standing(rollout, mine, START + 3659)
    assert before["unjudged_since"] is None
    assert before["evidence"]["so_far"]["calls"] == 60
    after = standing(rollout, mine, START + 3660)
    assert (after["unjudged_since"], after["evidence"]) == (START + 3660, None)


def test_a_canary_that_rejects_everything_is_paused_and_not_promoted() -> None:
    def answered(at: int, rejected: int) -> Bucket:
        (each,) = good(at, 10)
        return Bucket(at, {**each.counts, "parallax|rejected": rejected, "parallax|raw_rejected": rejected})

    mine = plan(0.01, hold=600)
    rollout, events = played(started(mine), mine, [answered(at, 10) for at in range(START, START + 1200, 10)])
    assert [(each.what, each.verdict) for each in events] == [("pause", Verdict.PAUSE)]
    assert "rejects what others take: " in events[0].text
    rollout = step(rollout, "resume", "dana", START + 1200)
    still, events = played(rollout, mine, [answered(at, 10) for at in range(START + 1200, START + 1800, 10)])
    assert [each.what for each in events] == ["pause"]
    assert "rejected" in [each.what for each in missing(still, mine, START + 1800)]
    _, events = played(rollout, mine, [answered(at, 1) for at in range(START + 1200, START + 2400, 10)])
    assert [each.what for each in events] == ["complete"], "a person knows that it rejects a few more"


def test_what_is_told_of_evidence_can_be_read() -> None:
    rollout, _ = played(started(PLAN), PLAN, good(START, 86_400))
    found = standing(rollout, PLAN, START + 86_400)["evidence"]
    assert found["below_limit"] == 1e6, "nobody can tell more of it apart"
    assert found["worse_than_others"] == found["rejects_more_than_others"] == 0.0


def test_what_is_no_rollouts_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state"):
        from_json({"canary": "parallax", "steps": 4, "state": "GONE"})


def test_how_it_stands_can_be_told() -> None:
    rollout, _ = played(started(PLAN), PLAN, [*good(START, 3600), bucket(START + 3600, (10, 1), (90, 0))])
    found = standing(rollout, PLAN, START + 3610)
    assert (found["state"], found["verdict"], found["step"], found["steps"], found["weight"]) == (
        "RUNNING",
        "HOLD",
        1,
        4,
        10.0,
    )
    assert found["evidence"]["so_far"]["calls"] == 3610
    assert found["evidence"]["suspected"]["since"] == START + 3600
    assert found["evidence"]["below_limit"] > 20
    assert [each["what"] for each in found["missing"]] == ["time"]
    assert found["missing"][0]["text"] == "13 d 22 h more at this step"
    assert [each["what"] for each in found["history"]] == ["start"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("per_day", [10_000, 100_000, 1_000_000])
def test_an_outage_common_to_all_arms_pauses_and_is_no_rollback(number: int, per_day: int) -> None:
    rng, pace, limit = random.Random(number * per_day), per_day / 8640, PLAN.steps[number - 1].max_error_rate
    share = PLAN.steps[number - 1].weight / 100
    found: Counter[str] = Counter()
    for _ in range(4):
        rollout = at_step(PLAN, number)
        healthy = list(traffic(rng, START, 900, pace, share, limit / 2, limit / 2))
        outage = list(traffic(rng, START + 900, 900, pace, share, 1.0, 1.0))
        after = list(traffic(rng, START + 1800, 900, pace, share, limit / 2, limit / 2))
        rollout, events = played(rollout, PLAN, [*healthy, *outage, *after])
        assert [each.what for each in events] == ["pause"]
        found[rollout.reason] += 1
    assert found == {"common": 4}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_canary_that_fails_altogether_is_taken_back_before_fifteen_calls_have_failed(number: int) -> None:
    rng, limit = random.Random(number), PLAN.steps[number - 1].max_error_rate
    share = PLAN.steps[number - 1].weight / 100
    played_through = 0
    for _ in range(15):
        healthy = list(traffic(rng, START, 1800, 4.0, share, limit / 2, limit / 2))
        outage = list(traffic(rng, START + 1800, 900, 4.0, share, 1.0, limit / 2))
        rollout, _ = played(at_step(PLAN, number), PLAN, healthy)
        if rollout.state is not State.RUNNING:
            continue
        failed = 0
        for each in outage:
            failed += each.counts.get("parallax|raw_errors", 0)
            rollout, events = advance(rollout, PLAN, [each], each.at + 10)
            if any(event.what == "rollback" for event in events):
                break
        assert rollout.state is State.ROLLED_BACK
        assert failed < 15
        played_through += 1
    assert played_through >= 12
