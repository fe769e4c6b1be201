"""What has to be in the data for a part of the policy to be evaluated at all: where it is not, nothing of it is read.

A body that asks for `data.envelopes[input.agent.name].cap` goes no further for an agent without one. Such a reference
is a guard of all that stands behind it, be it in other rules, as long as there is no way past it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from policies.trees import Names


@dataclass(frozen=True, slots=True)
class Guard:
    """A reference whose value follows from the data and the call's agent alone.

    `query` is it in full, as Rego; `asks` are the places below `data` that it looks at.
    """

    query: str
    asks: frozenset[Names]


Guards = frozenset[Guard]
"""Those that stand one behind the other: where one of them is undefined, nothing behind them all is evaluated."""

OPEN: Final[Guards] = frozenset()

_MOST_WAYS: Final = 8
"""Ways that are told apart. Of more, only the guards count that stand in all of them."""


def opened(ways: set[Guards], way: Guards) -> Guards | None:
    """Notes a way to some part of the policy, and returns it; None where it leads no further than those known.

    Of two ways, one of which has all guards of the other, only the other counts.
    """
    if any(known <= way for known in ways):
        return None
    ways.difference_update([known for known in ways if way <= known])
    ways.add(way)
    if len(ways) <= _MOST_WAYS:
        return way
    common = frozenset.intersection(*ways)
    ways.clear()
    ways.add(common)
    return common


def shut_with(ways: set[Guards], others: set[Guards]) -> bool:
    """Whether no way is left wherever none of the `others` is."""
    return all(any(other <= way for other in others) for way in ways)
