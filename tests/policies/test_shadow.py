"""A policy on trial is compared call by call, and turned back when it departs from the one before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import RollbackSettings
from policies.decision import Decision, Effect, parse
from policies.document import Question, agent_fragment
from policies.errors import EngineUnavailable, InputRefused, Undecided
from policies.shadow import (
    TRANSITIONS,
    UNDECIDED,
    Comparison,
    Event,
    Stage,
    Verdict,
    differ,
    other_verdict,
    verdict,
)
from tests.policies.support import NOW, engine

EFFECTS: Final = (*map(str, Effect), UNDECIDED)
LIMITS: Final = RollbackSettings(max_deny_change=0.1, max_approval_change=0.2, min_calls=10, window=20)

effects = st.sampled_from(EFFECTS)


def said(effect: str) -> Verdict:
    return Verdict(effect, (), "", "r")


def question() -> Question:
    agent = agent_fragment("support-bot", "acme", ["support"], 2, "active")
    return Question(agent, "llm", "openai", "gpt-4o-mini", "chat", False, None, b"{}", {}, NOW)


def test_every_stage_can_be_left_and_the_table_names_nothing_else() -> None:
    assert {stage for stage, _ in TRANSITIONS} == set(Stage)
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_only_a_person_promotes_and_a_rolled_back_policy_does_not_come_back_by_itself() -> None:
    for (stage, event), after in TRANSITIONS.items():
        if after.promoted and not stage.promoted:
            assert event is Event.PROMOTE
        if event in (Event.DEPART, Event.TIME_OVER):
            assert stage is Stage.WATCHING


@pytest.mark.parametrize("stage", [Stage.WATCHING, Stage.KEPT])
def test_whatever_was_promoted_can_be_rolled_back(stage: Stage) -> None:
    assert not TRANSITIONS[stage, Event.ROLL_BACK].promoted


def test_another_word_or_other_conditions_are_a_difference_and_other_wording_is_none() -> None:
    plain = parse('{"decision": "ALLOW", "explanation": "one way to say it"}', "r1")
    assert not differ(verdict(plain, "r1"), verdict(dataclasses.replace(plain, explanation="another"), "r2"))
    for other in (
        '{"decision": "DENY"}',
        '{"decision": "NEEDS_APPROVAL"}',
        '{"decision": "ALLOW", "risk_level": "high"}',
        '{"decision": "ALLOW", "required_approvals": ["finance"]}',
        '{"decision": "ALLOW", "obligations": {"max_tokens": 5}}',
    ):
        assert differ(verdict(plain, "r1"), verdict(parse(other, "r2"), "r2")), other
    assert differ(verdict(plain, "r1"), verdict(None, "r2"))


def test_two_refusals_are_the_same_whatever_else_they_say() -> None:
    one = verdict(parse('{"decision": "DENY", "risk_level": "low"}', "r1"), "r1")
    assert not differ(one, verdict(parse('{"decision": "DENY", "risk_level": "high"}', "r2"), "r2"))


@given(st.lists(st.tuples(effects, effects), max_size=60), st.integers(1, 25))
def test_the_rates_are_those_of_the_last_calls_and_the_counts_those_of_all(
    calls: list[tuple[str, str]], window: int
) -> None:
    comparison = Comparison(window)
    for one, other in calls:
        assert comparison.add(said(one), said(other)) == (one != other)
    last = calls[-window:]
    rates = comparison.rates()
    assert comparison.calls == sum(comparison.pairs.values()) == len(calls)
    assert comparison.differences == sum(one != other for one, other in calls)
    assert rates.calls == len(last)
    for share, side, words in (
        (rates.denied, 0, ("DENY", UNDECIDED)),
        (rates.denied_on_trial, 1, ("DENY", UNDECIDED)),
        (rates.held, 0, ("NEEDS_APPROVAL",)),
        (rates.held_on_trial, 1, ("NEEDS_APPROVAL",)),
    ):
        assert share == (sum(pair[side] in words for pair in last) / len(last) if last else 0.0)


def compared(*calls: tuple[int, str, str]) -> Comparison:
    comparison = Comparison(LIMITS.window)
    for times, one, other in calls:
        for _ in range(times):
            comparison.add(said(one), said(other))
    return comparison


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ([(20, "ALLOW", "ALLOW")], ""),
        ([(18, "ALLOW", "ALLOW"), (2, "ALLOW", "DENY")], ""),
        ([(17, "ALLOW", "ALLOW"), (3, "ALLOW", "DENY")], "refuses 15.00%"),
        ([(17, "ALLOW", "ALLOW"), (3, "DENY", "ALLOW")], "refuses 0.00%"),
        ([(17, "ALLOW", "ALLOW"), (3, "ALLOW", UNDECIDED)], "refuses 15.00%"),
        ([(16, "ALLOW", "ALLOW"), (4, "ALLOW", "NEEDS_APPROVAL")], ""),
        ([(15, "ALLOW", "ALLOW"), (5, "ALLOW", "NEEDS_APPROVAL")], "holds 25.00%"),
        ([(10, "ALLOW", "DENY"), (10, "DENY", "ALLOW")], ""),
        ([(9, "ALLOW", "DENY")], ""),
        ([(10, "ALLOW", "DENY")], "refuses 100.00%"),
        ([(1000, "ALLOW", "ALLOW"), (3, "ALLOW", "DENY")], "refuses 15.00%"),
    ],
)
def test_a_departure_beyond_the_limit_is_told_and_one_within_is_not(
    calls: list[tuple[int, str, str]], says: str
) -> None:
    departure = compared(*calls).departure(LIMITS)
    assert bool(departure) == bool(says)
    assert says in departure


async def test_the_other_policy_answers_the_same_question() -> None:
    made = await engine('decision := {"decision": "NEEDS_APPROVAL", "explanation": input.call.target}')
    answer = await other_verdict(made, question())
    assert answer is not None
    assert (answer.effect, answer.explanation, answer.revision) == ("NEEDS_APPROVAL", "gpt-4o-mini", made.revision)


class Failing:
    """An engine that cannot decide, each way in which it may not be able to."""

    revision = "r2"
    failure: str | None = None
    bundles: Mapping[str, str] = {}

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def decide(self, question: Question) -> Decision:
        raise self.error

    async def evaluate(self, document: bytes, now_ns: int) -> Decision:
        raise self.error

    masks = False

    async def mask(self, event: bytes) -> Any:
        raise self.error

    async def retire(self) -> None:
        return None


async def test_a_policy_that_nobody_can_ask_says_nothing() -> None:
    assert await other_verdict(Failing(EngineUnavailable("no")), question()) is None


@pytest.mark.parametrize("error", [Undecided(), InputRefused("no")])
async def test_a_policy_that_cannot_decide_refuses(error: Exception) -> None:
    answer = await other_verdict(Failing(error), question())
    assert answer is not None
    assert (answer.effect, answer.refuses) == (UNDECIDED, True)
