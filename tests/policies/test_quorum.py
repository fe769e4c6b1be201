"""Whether people fill the slots of an approval, against all the ways there are to give slots to people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.quorum import missing

ROLES = ["finance", "security", "ops", "legal"]
roles = st.lists(st.sampled_from([*ROLES, "other"]), unique=True, max_size=5).map(tuple)
slots = st.lists(st.sampled_from(ROLES), max_size=4).map(tuple)
people = st.dictionaries(st.sampled_from(["dana", "sam", "kim", "lee", "max"]), roles, max_size=5)


def can_fill(slots: Sequence[str], people: Mapping[str, Sequence[str]]) -> bool:
    """Whether any way to give each slot a person of its own works."""
    return any(
        all(role in people[person] for role, person in zip(slots, chosen, strict=True))
        for chosen in permutations(people, len(slots))
    )


@given(slots, people)
def test_as_many_slots_are_filled_as_any_assignment_can(
    slots: tuple[str, ...], people: dict[str, Sequence[str]]
) -> None:
    empty = missing(slots, people)
    most = max(
        count for count in range(len(slots) + 1) if any(can_fill(some, people) for some in combinations(slots, count))
    )
    assert len(slots) - len(empty) == most
    filled = tuple((Counter(slots) - Counter(empty)).elements())
    assert len(filled) == most
    assert can_fill(filled, people)


@given(slots, people)
def test_what_is_missing_are_slots_in_their_order(slots: tuple[str, ...], people: dict[str, Sequence[str]]) -> None:
    rest = iter(slots)
    assert all(any(role == slot for slot in rest) for role in missing(slots, people))


@given(slots, people, st.randoms(use_true_random=False))
def test_who_spoke_first_does_not_matter_and_one_person_fills_at_most_one_slot(
    slots: tuple[str, ...], people: dict[str, Sequence[str]], chance: object
) -> None:
    order = list(people.items())
    chance.shuffle(order)  # type: ignore[attr-defined]  # hypothesis does not say what its randoms are
    empty = len(missing(slots, people))
    assert len(missing(slots, dict(order))) == empty
    for person in people:
        without = {other: roles for other, roles in people.items() if other != person}
        assert len(missing(slots, without)) in (empty, empty + 1)


@pytest.mark.parametrize(
    ("slots", "people", "empty"),
    [
        (["finance"], {}, ["finance"]),
        (["finance"], {"dana": ["security"]}, ["finance"]),
        (["finance"], {"dana": ["finance", "security"]}, []),
        (["finance", "security"], {"dana": ["finance", "security"]}, ["security"]),
        (["finance", "security"], {"dana": ["finance", "security"], "sam": ["finance"]}, []),
        (["finance", "finance"], {"dana": ["finance"]}, ["finance"]),
        (["finance", "finance"], {"dana": ["finance"], "sam": ["finance"]}, []),
        (["a", "b", "c"], {"x": ["a", "b"], "y": ["b", "c"], "z": ["a"]}, []),
        ([], {"dana": ["finance"]}, []),
        ([], {}, []),
    ],
)
def test_cases_that_people_think_of(slots: list[str], people: dict[str, list[str]], empty: list[str]) -> None:
    assert missing(slots, people) == tuple(empty)


def test_a_long_chain_of_people_who_have_to_move_is_found() -> None:
    slots = [f"r{index}" for index in range(16)]
    shifting = {f"p{index}": [slots[index], slots[index + 1]] for index in range(15)}
    assert missing(slots, {**shifting, "last": [slots[0]]}) == ()
