"""May this call happen, by number: how many calls and tokens a minute, how many at once, how many in one session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from config.settings import LimitSettings

What = Literal["calls_per_minute", "tokens_per_minute", "concurrent", "calls_per_session"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One configured limit of one node."""

    node: str
    what: What
    most: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a limit stands right after a call was let in: for the headers that clients look at.

    `resets_in` is in seconds, until all of it is free again; 0.0 where time alone frees nothing.
    """

    limit: Limit
    remaining: int
    resets_in: float


@dataclass(slots=True)
class Pass:
    """A call that was let in. Whoever holds it leaves with it, once."""

    call: str
    tenant: str
    limits: tuple[Limit, ...]
    session: str | None
    tokens: int
    standings: tuple[Standing, ...] = field(default=(), repr=False)


class LimitReached(Exception):
    """Too many. `retry_after` is in seconds; None where waiting does not help (`calls_per_session`)."""

    def __init__(self, limit: Limit, retry_after: float | None) -> None:
        super().__init__(f"{limit.node} {limit.what}")
        self.limit = limit
        self.retry_after = retry_after


class LimitStore(Protocol):
    """Counts. All limits of a call are taken together or none is."""

    async def enter(self, call: str, tenant: str, limits: tuple[Limit, ...], session: str | None, tokens: int) -> Pass:
        """Lets a call in that will use about so many tokens. Raises LimitReached, StoreUnavailable.

        A call that is larger than `tokens_per_minute` on the whole is let in when all of it is free.
        """
        ...

    def leave(self, held: Pass, tokens: int) -> None:
        """The call is over and has used `tokens`. Never raises, never waits; a second time it does nothing."""
        ...


class LimitPlan:
    """The limits of one configuration."""

    def __init__(self, settings: Iterable[LimitSettings]) -> None:
        self._by_node: dict[str, tuple[Limit, ...]] = {each.node: tuple(_limits(each)) for each in settings}

    def of(self, tenant: str, team: str | None, agent: str) -> tuple[Limit, ...]:
        """The limits that hold for an agent's calls, from the tenant's down to its own."""
        nodes = [tenant, f"{tenant}/{team}", f"{tenant}/{agent}"] if team else [tenant, f"{tenant}/{agent}"]
        return tuple(limit for node in nodes for limit in self._by_node.get(node, ()))


def _limits(settings: LimitSettings) -> Sequence[Limit]:
    written: tuple[tuple[What, int | None], ...] = (
        ("calls_per_session", settings.calls_per_session),
        ("concurrent", settings.concurrent),
        ("calls_per_minute", settings.calls_per_minute),
        ("tokens_per_minute", settings.tokens_per_minute),
    )
    return [Limit(settings.node, what, most) for what, most in written if most is not None]
