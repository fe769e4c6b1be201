"""A call's name is a ULID as github.com/ulid/spec has it."""

import re
import time
from collections import Counter

import pytest

from gateway.callids import CallIds, since

_ULID = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")
MILLISECOND = 1_000_000


@pytest.mark.parametrize(
    ("milliseconds", "characters"),
    [
        (1469918176385, "01ARYZ6S41"),  # the specification's own example
        (0, "0000000000"),
        (31, "000000000Z"),
        (32, "0000000010"),
        (2**48 - 1, "7ZZZZZZZZZ"),  # the last one there is
    ],
)
def test_a_name_begins_with_its_millisecond(milliseconds: int, characters: str) -> None:
    assert CallIds().next(milliseconds * MILLISECOND + 999_999)[:10] == characters


def test_names_are_ulids_and_none_comes_twice() -> None:
    ids = CallIds()
    names = [ids.next(time.time_ns()) for _ in range(2_000)]
    assert all(_ULID.fullmatch(name) for name in names)
    assert len({name[10:] for name in names}) == len(names)


def test_names_sort_by_the_millisecond_in_which_calls_arrived() -> None:
    ids = CallIds()
    begin = time.time_ns()
    names = [ids.next(begin + step * MILLISECOND) for step in range(2_000)]
    assert sorted(names) == names


def test_every_character_is_as_likely_at_every_random_place() -> None:
    ids = CallIds()
    places = zip(*(ids.next(0)[10:] for _ in range(3_200)), strict=True)
    for counts in map(Counter, places):
        assert len(counts) == 32
        assert max(counts.values()) < 200, "100 are due; twice as many come up once in many billions of runs"


def test_two_processes_never_agree() -> None:
    assert CallIds().next(0) != CallIds().next(0)


@pytest.mark.parametrize("at", [0, 1_000_000, 1_763_700_000_123_000_000, (2**48 - 1) * 1_000_000])
def test_the_millisecond_of_a_name_can_be_read_from_it(at: int) -> None:
    assert since(CallIds().next(at)) == at
    assert since(CallIds().next(at + 999_999)) == at


@pytest.mark.parametrize("name", ["", "1", "0" * 25, "0" * 27, "l" * 26, "I" * 26, "\u0660" * 26])
def test_what_is_no_name_of_a_call_has_no_time(name: str) -> None:
    assert since(name) is None
