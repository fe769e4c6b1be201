"""Where a route's calls go beyond its configuration, and what its arms have met with: the seam at which all gateways
that share one state agree on both.

A route's course is what people and its rollout have made of it. Every change is a compare and set that makes the epoch
one larger, so that of two who would change the same course only one does. Counts are flushed each second into buckets
of ten seconds by the store's clock: nothing ever arrives late in a bucket that is closed, and whatever is worked out
from closed buckets comes out the same at every gateway.

That a canary gets new sessions is a lease: a gateway that has not heard the courses for 15 seconds may not know of a
rollback. See docs/rollouts.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

CALLS: Final = "calls"
"""Logical calls that have come to an end here."""
ERRORS: Final = "errors"
"""Those that failed: one of a session and minute."""
RAW_ERRORS: Final = "raw_errors"
"""Those that failed, every one."""
REJECTED: Final = "rejected"
"""Those that were answered with that the call is mistaken: one of a session and hour."""
RAW_REJECTED: Final = "raw_rejected"
"""Those that were answered so, every one."""
SLOW: Final = "slow"
"""Those whose first token came too late."""
OVERFLOW: Final = "overflow"
"""Those that were meant for this arm and went to another, because it had no room."""
ABSENT: Final = "absent"
"""Those that were meant for this arm and went to another, because probes find it out of service."""
COST: Final = "cost"
"""What they have cost, in nano-dollars."""
UNPRICED: Final = "unpriced"
"""Those that were answered, and of which nobody knows what they have cost."""
OUTPUT_TOKENS: Final = "output_tokens"
ERROR: Final = "error:"
"""Before a class of errors: every one of that class."""
SAMPLE: Final = "sample:"
"""Before the id of a call that failed: a few of each arm that is on trial."""

BUCKET: Final = 10
"""Seconds of a bucket; each begins at a multiple of it."""
FLUSH: Final = 1.0
"""Seconds between two flushes."""
HEAR: Final = 0.5
"""Seconds between two looks at the courses, so that a change acts everywhere within a second."""
LEASE: Final = 15.0
"""Seconds after which what was heard of the courses does not allow a canary new sessions any more."""
KEPT: Final = 3 * 86_400
"""Seconds for which closed buckets are kept."""

LAST_EPOCH: Final = 2**53 - 1
"""The largest that every store can tell from the next."""

SET_BACK: Final = 60
"""Seconds by which a clock may go back while what is counted still goes into the newest bucket."""


_MOST: Final = 1e9
"""The largest weight that is taken for one."""


class Bucket(NamedTuple):
    """What was counted at one route in ten seconds from `at`, in Unix seconds. The keys are those of `counted`."""

    at: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Course:
    """What holds for one route beyond its configuration, since its last change.

    `weights` are by target; None where they are as configured. They hold for as long as the configured ones are
    `instead_of`: whoever writes others into the configuration has the last word. `rollout` is the state of the route's
    rollout, a JSON document that belongs to it. `by` is who has made the change, `at` when, in Unix nanoseconds.

    It is kept as JSON: texts, numbers, lists, mappings with texts as keys.

    `trouble` says why what is kept cannot be used, and is not kept itself. There are no weights then, and a rollout
    that cannot be used either is an empty one.
    """

    epoch: int
    weights: Mapping[str, float] | None = None
    instead_of: Mapping[str, float] | None = None
    rollout: Mapping[str, Any] | None = None
    by: str = ""
    at: int = 0
    comment: str = ""
    trouble: str = ""


class RouteStore(Protocol):
    """Keeps courses, and counts.

    Somebody has to await `courses` every HEAR seconds and `flush` every FLUSH seconds, each by itself.
    """

    @property
    def shared(self) -> bool:
        """Whether other gateways keep theirs at the same place."""
        ...

    @property
    def failure(self) -> str | None:
        """Why it cannot be asked; None when it can."""
        ...

    @property
    def heard_ns(self) -> int:
        """The last moment of which the courses are known, by `time.monotonic_ns`. See `lapsed`."""
        ...

    def begin(self) -> None:
        """Begins to connect, in a running event loop. What is asked earlier begins it, too."""
        ...

    async def courses(self) -> Mapping[str, Course]:
        """The courses of all routes that have one, by route. Raises StoreUnavailable.

        None ever goes back: one that the store has lost is told as it was, and is written there again. See `behind`.
        """
        ...

    async def steer(self, route: str, course: Course, expected_epoch: int) -> bool:
        """Sets the course of a route whose epoch is the expected one, 0 where it has none yet. It is durable when this
        returns True. False when somebody else was first: nothing has changed then.

        The same change tried again by the same gateway is made once, and True. Raises StoreUnavailable, after which it
        may be made or not; ValueError where the course's epoch is not the next one.
        """
        ...

    def count(self, route: str, counts: Mapping[str, int]) -> None:
        """Adds to what is flushed next: keys as of `counted`, numbers from 0. Never waits, and never raises."""
        ...

    async def flush(self) -> None:
        """Brings what was counted into the buckets of now; each count once, however often it has to be tried.

        Raises StoreUnavailable where some of it has to be tried again: the next flush does.
        """
        ...

    async def buckets(self, route: str, since: int, until: int) -> list[Bucket]:
        """Those that are closed and have something in them, in order, with since <= at < until, in Unix seconds.

        Raises StoreUnavailable.
        """
        ...

    async def close(self) -> None:
        """Flushes what is left, as far as that is possible in a few seconds. The store cannot be used afterwards."""
        ...


def counted(arm: str, what: str) -> str:
    """The key of a count: the arm by its target's name, and one of the words of this module."""
    return f"{arm}|{what}"


def weights(course: Course | None, configured: Mapping[str, float]) -> Mapping[str, float]:
    """The weights that are in force, by target."""
    if course is None or course.weights is None or course.instead_of != configured:
        return configured
    if course.weights.keys() != configured.keys():
        return configured
    return course.weights


def unusable(epoch: int, trouble: str) -> Course:
    """What stands for a course of which nothing can be used."""
    return Course(epoch, rollout={}, trouble=trouble)


def checked(facts: Mapping[str, Any]) -> Course:
    """A course of what was kept of it by name, whoever has written it. Raises ValueError where it has no epoch.

    Whatever else is not as it has to be is the course's `trouble`.
    """
    epoch = facts.get("epoch")
    if type(epoch) is not int or not 0 <= epoch <= LAST_EPOCH:
        raise ValueError(f"its epoch is no number from 0 to {LAST_EPOCH:,}")
    weights, rollout = facts.get("weights"), facts.get("rollout")
    by, at, comment = facts.get("by", ""), facts.get("at", 0), facts.get("comment", "")
    trouble = ""
    if not (isinstance(by, str) and type(at) is int and isinstance(comment, str)):
        trouble = "it does not say who has made it, and when"
    if weights is not None and not _are_weights(weights):
        trouble = "its weights are none"
    if rollout is not None and not isinstance(rollout, Mapping):
        trouble, rollout = "its rollout is none", {}
    if trouble:
        return Course(epoch, rollout=rollout, trouble=trouble)
    return Course(epoch, weights, facts.get("instead_of"), rollout, by, at, comment)


def _are_weights(found: object) -> bool:
    """Whether these are numbers from 0, by target, and one is above it."""
    if not isinstance(found, Mapping) or not all(
        type(each) in (int, float) and 0 <= each <= _MOST for each in found.values()
    ):
        return False
    return math.fsum(found.values()) > 0


def lapsed(heard_ns: int, now_ns: int) -> bool:
    """Whether the lease is over: new sessions must not go to a canary until the courses are heard again."""
    return now_ns - heard_ns > LEASE * 1_000_000_000


def behind(known: Mapping[str, Course], told: Mapping[str, Course]) -> dict[str, Course]:
    """The courses that a store has lost: those `known` of which an earlier epoch is `told`, or none.

    A server that takes over from another lacks what that was told last. What is known stays in force, so that no
    rollback un-happens, and has to be written again. One of which nothing can be used is no loss: who deletes it means
    to be rid of it.
    """
    return {
        route: course
        for route, course in known.items()
        if ((other := told.get(route)) is None or other.epoch < course.epoch)
        and not (course.trouble and course == unusable(course.epoch, course.trouble))
    }


def bucket_at(now: int, newest: int) -> int:
    """The bucket into which is counted at `now`, where `newest` was the last one; all in Unix seconds.

    A clock that goes back a little does not open a bucket again that was closed.
    """
    at = now - now % BUCKET
    return newest if at < newest <= now + SET_BACK else at
