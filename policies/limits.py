"""May this call happen, by number: how many calls and tokens a minute, how many at once, how many in one session.

A rate is kept by the generic cell rate algorithm, as virtual scheduling (ITU-T I.371): it is known by its theoretical
arrival time (`tat`), when all that was taken so far will have drained away. What a call takes drains at the limit's
pace: `amount` of 60 a minute in `amount` seconds. A call is let in where, with it, no more than a whole minute is left
to drain, so a minute's worth may come at once. What a call took and did not use it gives back as far as that has not
drained yet; what it used beyond that is taken late, and later calls wait. What is let in within any S seconds is so

    at most limit * (1 + S / 60): calls, and tokens as far as they are known when the last of these calls is let in

unless that last one alone is larger than the whole limit.

Times are whole nanoseconds of the store's clock, of any epoch. A share of a minute is rounded down, so that a minute's
worth always fits into one. Both stores of gateway/state/ keep this rule, and tests hold it against aiolimiter's bucket,
which lets in the same but tells neither what remains nor when to come again, and takes nothing back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol

from config.settings import LimitSettings

What = Literal["calls_per_minute", "tokens_per_minute", "concurrent", "calls_per_session"]

MINUTE: Final = 60_000_000_000
"""In nanoseconds, as all times of a rate."""
MOST_OWED: Final = 60 * MINUTE
"""What takes longer to drain is forgotten: a target that reports nonsense must not stop an agent for good."""

SESSION_KEPT: Final = 86_400.0
"""Seconds after its last call at which a session is forgotten."""
COME_AGAIN: Final = 1.0
"""Seconds after which to look again whether a call has ended: nobody knows when one will."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One configured limit of one node. `key` names what it counts, in every store."""

    node: str
    what: What
    most: int
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.node}|{self.what}")


class Standing(NamedTuple):
    """How a limit stands: for the headers that clients look at.

    `resets_in` is in seconds, until all of it is free again; 0.0 where time alone frees nothing.
    """

    limit: Limit
    remaining: int
    resets_in: float


standing_of: Callable[[tuple[Limit, int, float]], Standing] = partial(tuple.__new__, Standing)
"""A Standing of all its fields. Every call makes some, and the class's own constructor costs several times as much."""


@dataclass(slots=True)
class Pass:
    """A call that was let in. Whoever holds it leaves with it, once.

    `standings` are its limits right afterwards, in their order.
    """

    call: str
    tenant: str
    limits: tuple[Limit, ...]
    session: str | None
    tokens: int
    standings: tuple[Standing, ...] = field(default=(), repr=False)


class LimitReached(Exception):
    """Too many. `retry_after` is in seconds, more than 0; None where waiting does not help (`calls_per_session`).

    Where several limits refuse, `limit` is the one that does so for longest. `standings` are those of all.
    """

    def __init__(self, limit: Limit, retry_after: float | None, standings: tuple[Standing, ...] = ()) -> None:
        super().__init__(f"{limit.node} {limit.what}")
        self.limit = limit
        self.retry_after = retry_after
        self.standings = standings


class LimitStore(Protocol):
    """Counts. All limits of a call are taken together or none is."""

    async def enter(self, call: str, tenant: str, limits: tuple[Limit, ...], session: str | None, tokens: int) -> Pass:
        """Lets a call in that will use about so many tokens. Raises LimitReached, StoreUnavailable.

        `session` is the one that the call counts in: see `session_of`. A call that is larger than `tokens_per_minute`
        on the whole is let in when all of it is free. Asked again for a call that is inside, it takes nothing.
        """
        ...

    def begin(self) -> None:
        """As of `policies.budgets.Store`."""
        ...

    async def close(self) -> None:
        """As of `policies.budgets.Store`."""
        ...

    def leave(self, held: Pass, tokens: int) -> None:
        """The call is over and has used `tokens`. Never raises, never waits; a second time it does nothing.

        `held` may be one that `enter` did not give, of a call of which it is not known whether it was let in.
        """
        ...


class LimitPlan:
    """The limits of one configuration."""

    def __init__(self, settings: Iterable[LimitSettings]) -> None:
        self._by_node: dict[str, tuple[Limit, ...]] = {each.node: tuple(_limits(each)) for each in settings}
        self._of: dict[tuple[str, str | None, str], tuple[Limit, ...]] = {}

    def of(self, tenant: str, team: str | None, agent: str) -> tuple[Limit, ...]:
        """The limits that hold for an agent's calls, from the tenant's down to its own."""
        found = self._of.get((tenant, team, agent))
        if found is None:
            nodes = [tenant, f"{tenant}/{team}", f"{tenant}/{agent}"] if team else [tenant, f"{tenant}/{agent}"]
            found = tuple(limit for node in nodes for limit in self._by_node.get(node, ()))
            self._of[tenant, team, agent] = found
        return found


def _limits(settings: LimitSettings) -> Sequence[Limit]:
    written: tuple[tuple[What, int | None], ...] = (
        ("calls_per_session", settings.calls_per_session),
        ("concurrent", settings.concurrent),
        ("calls_per_minute", settings.calls_per_minute),
        ("tokens_per_minute", settings.tokens_per_minute),
    )
    return [Limit(settings.node, what, most) for what, most in written if most is not None]


def session_of(session: str | None, agent: str, day: str) -> str:
    """The session that a call counts in. What an agent calls without one is one session a day (`2026-11-21`, UTC), so
    that leaving the header out is no way around a limit, and one agent's such calls are not counted as another's.
    """
    return f"={session}" if session is not None else f"none-{day}-{agent}"


def take(tat: int, now: int, amount: int, per_minute: int) -> tuple[int, int]:
    """Takes `amount`: gives the new `tat` and 0; or, where it does not fit, the old one and the time until it does.

    What is larger than the limit on the whole fits when all is free. Nothing at all always fits.
    """
    begins = tat if tat > now else now
    share = amount * MINUTE // per_minute
    after = begins + share
    if after - now > MINUTE:
        wait = (after - MINUTE if share < MINUTE else begins) - now
        if wait > 0 and amount:
            return tat, wait
        after = min(after, now + MOST_OWED)
    return after, 0


def remaining(tat: int, now: int, per_minute: int) -> int:
    """The most that `take` would let in at once, of what the limit is on the whole; 0 where it is overdrawn."""
    if tat <= now:
        return per_minute
    free = now + MINUTE - tat
    return ((free + 1) * per_minute - 1) // MINUTE if free >= 0 else 0


def correct(tat: int, given: int, mark: int, now: int, took: int, used: int, per_minute: int) -> tuple[int, int]:
    """What a call has really used, in place of what it took: the new `tat`, and the new `given`.

    `given` is the time that all calls together have given back so far; `mark` is `tat + given` as it was right after
    the call was let in. Of what was left to drain then, the call included, `mark - given - now` is at least left now,
    and at most so much of the call is given back. What has drained is nobody's any more: given back, it would let more
    than a minute's worth in at once.
    """
    more = used * MINUTE // per_minute - took * MINUTE // per_minute
    if more > 0:
        return min(max(tat, now) + more, now + MOST_OWED), given
    left = mark - given - now
    back = -more if left > -more else left
    return (tat - back, given + back) if back > 0 else (tat, given)
