"""Whether people can fill the slots of an approval: a person fills one slot, though they may have several roles."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def missing(slots: Sequence[str], people: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The slots that stay empty when as many as possible are filled, in order.

    `people` are those who said yes, with their roles. Each slot wants a person with that role, and no person fills two:
    a maximum matching of people to slots, by augmenting paths (Kuhn 1955).
    """
    filled: dict[int, str] = {}

    def place(person: str, tried: set[int]) -> bool:
        for index, role in enumerate(slots):
            if index in tried or role not in people[person]:
                continue
            tried.add(index)
            if index not in filled or place(filled[index], tried):
                filled[index] = person
                return True
        return False

    for person in people:
        place(person, set())
    return tuple(role for index, role in enumerate(slots) if index not in filled)
