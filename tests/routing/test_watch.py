"""`routing.watch`: the verdict on a canary, and what it says of it."""

import random
from collections.abc import Iterable

import pytest

from config.settings import RolloutSettings
from routing.course import RAW_REJECTED, REJECTED, Bucket, counted
from routing.simulation import binomial
from routing.watch import Facts, Finding, Others, Terms, Verdict, Watch, begun, found, may_reject, taken, told, verdict
from tests.routing.buckets import CANARY, OTHER, START, bucket, plan, traffic


@pytest.mark.parametrize(
    ("above_limit", "worse", "others", "ruling"),
    [
        (True, True, Others.WELL, Verdict.ROLLBACK),
        (True, True, Others.FAILING, Verdict.ROLLBACK),
        (True, True, Others.UNCLEAR, Verdict.ROLLBACK),
        (True, False, Others.WELL, Verdict.ROLLBACK),
        (True, False, Others.ABSENT, Verdict.ROLLBACK),
        (True, False, Others.FAILING, Verdict.PAUSE),
        (True, False, Others.UNCLEAR, Verdict.HOLD),
        (False, True, Others.WELL, Verdict.PAUSE),
        (False, True, Others.FAILING, Verdict.PAUSE),
        (False, False, Others.WELL, Verdict.HOLD),
        (False, False, Others.FAILING, Verdict.HOLD),
        (False, False, Others.ABSENT, Verdict.HOLD),
    ],
)
def test_the_verdict_is_a_table(above_limit: bool, worse: bool, others: Others, ruling: Verdict) -> None:
    assert verdict(above_limit, worse, others) is ruling


def watched(settings: RolloutSettings, buckets: Iterable[Bucket], share: float = 10.0) -> tuple[Watch, Finding]:
    """The watch until there is a verdict, or after all buckets."""
    terms = Terms(settings.steps[0].max_error_rate, settings.alpha, settings.max_ratio)
    watch, finding = begun(START, terms, share, 1e6), Finding(Verdict.HOLD)
    for each in buckets:
        watch = taken(watch, settings, each, paused=False)
        finding = found(watch, settings, share, ("c-1", "c-2"))
        if finding.verdict is not Verdict.HOLD:
            break
    return watch, finding


def failing(seconds: int, mine: tuple[int, int], other: tuple[int, int], begin: int = START) -> list[Bucket]:
    return [bucket(at, mine, other) for at in range(begin, begin + seconds, 10)]


def test_a_canary_that_fails_alone_is_rolled_back_with_its_story() -> None:
    good, bad = failing(3600, (10, 0), (90, 0)), failing(600, (10, 5), (90, 0), START + 3600)
    _, finding = watched(plan(0.01), [*good, *bad])
    assert finding.verdict is Verdict.ROLLBACK
    assert finding.facts is not None
    assert finding.facts.since == START + 3600
    assert finding.facts.errors * 2 == finding.facts.calls
    assert finding.facts.odds is not None
    assert finding.facts.odds >= 100
    assert finding.facts.classes == (("connect", finding.facts.errors),)
    assert finding.facts.samples == ("c-1", "c-2")
    assert finding.text.startswith("parallax is taken back: since 2025-11-21 05:40:00 UTC, ")


def test_facts_are_told_in_a_sentence() -> None:
    facts = Facts(1_763_730_300, 17, 319, 17 / 319, 0.01, 12_000.4, 9, 2870, (("cut", 12), ("connect", 5)), ("01A",))
    assert told(facts) == (
        "since 2025-11-21 13:05:00 UTC, 17 of 319 calls failed, 5.33 % where 1 % may (evidence 12,000:1); "
        "of the other arms' 9 of 2,870, 0.314 %; cut 12, connect 5; for example 01A."
    )


def test_an_outage_of_all_arms_pauses() -> None:
    _, finding = watched(plan(0.01), failing(600, (10, 10), (90, 88)))
    assert (finding.verdict, finding.reason) == (Verdict.PAUSE, "common")
    assert "so do the other arms" in finding.text


def test_others_that_were_a_little_above_the_limit_for_days_do_not_excuse_a_canary_that_fails_now() -> None:
    before = [bucket(at, (10, 0), (90, at % 20 // 10 * 4)) for at in range(START, START + 86_400, 10)]
    watch, finding = watched(plan(0.01), before)
    assert finding.verdict is Verdict.HOLD
    assert watch.others.evidence >= watch.terms.enough
    _, finding = watched(plan(0.01), [*before, *failing(600, (10, 10), (90, 2), START + 86_400)])
    assert finding.verdict is Verdict.ROLLBACK


def test_until_the_other_arms_calls_tell_the_verdict_waits_but_not_for_long() -> None:
    alone = [bucket(START + 10 * number, (1, 1)) for number in range(20)]
    _, finding = watched(plan(0.01), alone[:11], share=80.0)
    assert finding == Finding(Verdict.HOLD, "limit")
    _, finding = watched(plan(0.01), [*alone[:6], bucket(START + 60, (0, 0), (2, 0))], share=80.0)
    assert finding.verdict is Verdict.ROLLBACK
    _, finding = watched(plan(0.01), [*alone[:6], bucket(START + 60, (0, 0), (2, 2))], share=80.0)
    assert finding.verdict is not Verdict.ROLLBACK
    watch, finding = watched(plan(0.01), alone, share=80.0)
    assert finding.verdict is Verdict.ROLLBACK
    assert watch.mine["calls"] < 15


@pytest.mark.parametrize("settings", [plan(0.01, strict_absolute=True), plan(0.01)])
def test_where_the_others_are_not_to_be_asked_the_limit_alone_decides(settings: RolloutSettings) -> None:
    share = 10.0 if settings.strict_absolute else 96.0
    _, finding = watched(settings, failing(600, (10, 10), (4, 4)), share)
    assert finding.verdict is Verdict.ROLLBACK


def test_a_canary_within_its_limit_but_much_worse_than_the_others_pauses() -> None:
    buckets = [bucket(at, (30, at // 10 % 10 == 0), (270, 0)) for at in range(START, START + 14_400, 10)]
    watch, finding = watched(plan(0.01), buckets)
    assert (finding.verdict, finding.reason) == (Verdict.PAUSE, "ratio")
    assert "more than 1.25 times as often" in finding.text
    assert found(watch, plan(0.01), 10.0, (), ratio_accepted=True).verdict is Verdict.HOLD
    _, finding = watched(plan(0.01, max_ratio=100), buckets)
    assert finding.verdict is Verdict.HOLD


def test_five_refusals_of_its_credentials_in_a_row_pause() -> None:
    one = [bucket(START + 10 * number, (1, 1), (9, 9), kind="config") for number in range(5)]
    _, finding = watched(plan(0.1), one[:4])
    assert finding.verdict is Verdict.HOLD
    _, finding = watched(plan(0.1), one)
    assert (finding.verdict, finding.reason) == (Verdict.PAUSE, "config")
    _, finding = watched(plan(0.1), [*one[:4], bucket(START + 40, (9, 0)), *one[:4]])
    assert finding.verdict is Verdict.HOLD


def test_one_agent_that_tries_again_and_again_convicts_nobody() -> None:
    loops = [bucket(at, (30, 20), (90, 0), repeated=20 - (at % 60 == 0)) for at in range(START, START + 1800, 10)]
    _, finding = watched(plan(0.05, max_ratio=1000), loops)
    assert finding.verdict is Verdict.HOLD
    _, finding = watched(plan(0.05), failing(1800, (30, 20), (90, 0)))
    assert finding.verdict is Verdict.ROLLBACK


def test_the_window_counts_to_the_letter() -> None:
    settings = plan(0.01, mode="window", window=300, min_calls=200)
    _, finding = watched(settings, failing(190, (10, 10), (90, 0)))
    assert finding.verdict is Verdict.HOLD, "too few calls"
    _, finding = watched(settings, failing(200, (10, 10), (90, 0)))
    assert finding.verdict is Verdict.ROLLBACK
    assert finding.facts is not None
    assert finding.facts[1:6] == (200, 200, 1.0, 0.01, None)
    _, finding = watched(settings, failing(200, (10, 10), (90, 90)))
    assert (finding.verdict, finding.reason) == (Verdict.PAUSE, "common")


def test_what_all_arms_suffer_now_and_then_does_not_make_the_canary_the_worse_one() -> None:
    rng, settings, began = random.Random(3), plan(0.01), START
    terms = Terms(0.01, 0.01, 1.25)
    watch = begun(START, terms, 10.0, 1e6)
    for number in range(40):
        rate = 0.6 if number % 4 == 3 else 0.003
        for each in traffic(rng, began, 180, 12.0, 0.1, rate, rate):
            watch = taken(watch, settings, each, paused=False)
            assert watch.ratio.evidence < terms.enough
        began += 180
    assert watch.canary.evidence >= terms.enough


def rejecting(seconds: int, mine: tuple[int, int], other: tuple[int, int], begin: int = START) -> list[Bucket]:
    """(calls, rejected ones) of both arms in each bucket; none of them is repeated."""
    found = []
    for each in failing(seconds, (mine[0], 0), (other[0], 0), begin):
        counts = dict(each.counts)
        for arm, rejected in ((CANARY, mine[1]), (OTHER, other[1])):
            counts |= {counted(arm, REJECTED): rejected, counted(arm, RAW_REJECTED): rejected}
        found.append(Bucket(each.at, counts))
    return found


@pytest.mark.parametrize("mode", ["evidence", "window"])
def test_a_canary_that_rejects_what_the_others_take_pauses_with_a_reason_of_its_own(mode: str) -> None:
    watch, finding = watched(plan(0.01, mode=mode), rejecting(600, (10, 10), (90, 0)))
    assert (finding.verdict, finding.reason) == (Verdict.PAUSE, "rejected")
    assert watch.rejected.calls <= 80, "it takes little more than a minute"
    assert finding.text.startswith(
        "parallax rejects what others take: 70 of 70 calls, where the other arms have rejected 0 of 630; evidence "
    )
    assert finding.facts is not None
    assert (finding.facts.errors, finding.facts.classes) == (70, (("rejected", 70),))


def test_calls_that_every_arm_rejects_are_the_callers_mistake() -> None:
    rng = random.Random(7)
    for rate in (0.05, 0.5, 1.0):
        buckets = []
        for at in range(START, START + 7200, 10):
            mine, other = binomial(rng, 10, rate), binomial(rng, 90, rate)
            buckets += rejecting(10, (10, mine), (90, other), at)
        watch, finding = watched(plan(0.01), buckets)
        assert finding.verdict is Verdict.HOLD
        assert not may_reject(watch, 10.0)


def test_a_canary_that_rejects_nearly_everything_may_not_grow_long_before_that_is_known() -> None:
    watch, finding = watched(plan(0.01), rejecting(20, (2, 2), (9, 0)))
    assert not may_reject(watch, 10.0), "four calls may be anybody's mistake"
    watch, finding = watched(plan(0.01), rejecting(30, (2, 2), (9, 0)))
    assert finding.verdict is Verdict.HOLD
    assert may_reject(watch, 10.0)
    watch, _ = watched(plan(0.01), rejecting(20, (20, 20), (0, 0)), share=100.0)
    assert may_reject(watch, 100.0), "nor where there is nobody to compare it with"


def test_who_has_accepted_that_a_canary_rejects_more_has_not_accepted_that_it_rejects_everything() -> None:
    some, _ = watched(plan(0.01), rejecting(7200, (10, 3), (90, 0)))
    assert found(some, plan(0.01), 10.0, ()).reason == "rejected"
    assert found(some, plan(0.01), 10.0, (), rejections_accepted=True).verdict is Verdict.HOLD
    assert not may_reject(some, 10.0, accepted=True)
    every, _ = watched(plan(0.01), rejecting(600, (10, 10), (90, 0)))
    assert found(every, plan(0.01), 10.0, (), rejections_accepted=True).verdict is Verdict.PAUSE


def test_an_agent_that_repeats_a_rejected_call_says_it_once() -> None:
    loops = [
        Bucket(at, {"parallax|calls": 30, "parallax|rejected": at == START, "parallax|raw_rejected": 25})
        for at in range(START, START + 3600, 10)
    ]
    others = [Bucket(each.at, {**each.counts, "openai|calls": 90}) for each in loops]
    _, finding = watched(plan(0.01), others)
    assert finding.verdict is Verdict.HOLD


def test_a_canary_whose_key_is_refused_is_taken_back_with_a_hint_to_its_key() -> None:
    _, finding = watched(plan(0.01), [bucket(START, (88, 88), (90, 0), kind="config")])
    assert finding.verdict is Verdict.ROLLBACK
    assert finding.text.endswith("It refused 88 calls in a row for their credentials: check its key.")
