"""The limits of a gateway that is one process: calls and tokens, counted in memory.

After a restart all of them are free again.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from operator import itemgetter
from typing import Final

from policies.limits import (
    COME_AGAIN,
    SESSION_KEPT,
    Limit,
    LimitReached,
    Pass,
    Standing,
    correct,
    remaining,
    standing_of,
    take,
)

MOST_SESSIONS: Final = 100_000
"""Sessions in which calls are counted; beyond that, the one used longest ago is forgotten. Agents name sessions as they
like, so there has to be an end; a session that goes in circles is used all the time, and stays."""

_SECOND: Final = 1_000_000_000
_KEPT: Final = int(SESSION_KEPT * _SECOND)


class EmbeddedLimits:
    """Implements `policies.limits.LimitStore` for one event loop. `clock` gives nanoseconds and never goes back.

    No step awaits anything, so each is atomic. A call is inside until it leaves; none outlives this process.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, most_sessions: int = MOST_SESSIONS) -> None:
        self._clock = clock
        self._rates: dict[str, _Rate] = {}  # as many as were ever configured, like `_running`
        self._running: dict[str, int] = {}
        self._sessions = _Sessions(most_sessions)
        self._inside: dict[str, tuple[Pass, list[Limit], list[tuple[_Rate, int, int]]]] = {}
        """By call: its pass, what counts it while it runs, and (rate of tokens, its mark, limit)."""

    def begin(self) -> None:
        """Memory is there."""

    async def close(self) -> None:
        """Nothing is kept."""

    async def enter(self, call: str, tenant: str, limits: tuple[Limit, ...], session: str | None, tokens: int) -> Pass:
        inside = self._inside.get(call)
        if inside is not None:
            return inside[0]
        now = self._clock()
        places: list[Limit] = []
        counts: list[tuple[Limit, int]] = []
        taken: list[tuple[Limit, _Rate, int]] = []
        for limit in limits:
            what, most = limit.what, limit.most
            if what == "concurrent":
                full = self._running.get(limit.key, 0) >= most
                places.append(limit)
            elif what == "calls_per_session":
                calls = self._sessions.calls(limit.key, session, now)
                full = calls >= most
                counts.append((limit, calls + 1))
            else:
                rate = self._rates.get(limit.key) or self._begun(limit.key)
                after, wait = take(rate.tat, now, tokens if what == "tokens_per_minute" else 1, most)
                full = wait > 0
                taken.append((limit, rate, after))
            if full:
                raise self._reached(limits, session, tokens, now)
        standings: list[Standing] = []
        marks: list[tuple[_Rate, int, int]] = []
        for limit, rate, tat in taken:
            rate.tat = tat
            most = limit.most
            if limit.what == "tokens_per_minute":
                marks.append((rate, tat + rate.given, most))
            standings.append(standing_of((limit, remaining(tat, now, most), (tat - now) / _SECOND)))
        for limit in places:
            running = self._running[limit.key] = self._running.get(limit.key, 0) + 1
            standings.append(standing_of((limit, limit.most - running, 0.0)))
        for limit, calls in counts:
            self._sessions.put(limit.key, session, calls, now)
            standings.append(standing_of((limit, limit.most - calls, 0.0)))
        entered = Pass(call, tenant, limits, session, tokens, tuple(standings))
        self._inside[call] = (entered, places, marks)
        return entered

    def leave(self, held: Pass, tokens: int) -> None:
        inside = self._inside.pop(held.call, None)
        if inside is None:
            return
        entered, places, marks = inside
        for limit in places:
            self._running[limit.key] -= 1
        if marks and tokens != entered.tokens:
            now = self._clock()
            for rate, mark, most in marks:
                rate.tat, rate.given = correct(rate.tat, rate.given, mark, now, entered.tokens, tokens, most)

    def _begun(self, key: str) -> _Rate:
        rate = self._rates[key] = _Rate()
        return rate

    def _reached(self, limits: tuple[Limit, ...], session: str | None, tokens: int, now: int) -> LimitReached:
        """The refusal, of which `enter` knows only that there is one."""
        waits: list[tuple[float, Limit]] = []
        standings: list[Standing] = []
        for limit in limits:
            wait = resets_in = 0.0
            match limit.what:
                case "concurrent":
                    left = limit.most - self._running.get(limit.key, 0)
                    wait = 0.0 if left > 0 else COME_AGAIN
                case "calls_per_session":
                    left = limit.most - self._sessions.calls(limit.key, session, now)
                    wait = 0.0 if left > 0 else math.inf
                case "calls_per_minute" | "tokens_per_minute" as what:
                    tat = self._rates[limit.key].tat if limit.key in self._rates else now
                    left = remaining(tat, now, limit.most)
                    amount = tokens if what == "tokens_per_minute" else 1
                    wait = take(tat, now, amount, limit.most)[1] / _SECOND
                    resets_in = max(tat - now, 0) / _SECOND
            waits.append((wait, limit))
            standings.append(Standing(limit, max(left, 0), resets_in))
        wait, limit = max(waits, key=itemgetter(0))
        return LimitReached(limit, wait if wait < math.inf else None, tuple(standings))


class _Rate:
    """What there is to know of a rate: see `policies.limits`."""

    __slots__ = ("given", "tat")

    def __init__(self) -> None:
        self.tat = 0
        self.given = 0


class _Sessions:
    """How many calls there were in each session; those of all limits are together, with one bound on their number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: OrderedDict[tuple[str, str | None], tuple[int, int]] = OrderedDict()
        """(calls, when the last one came), the one longest ago first."""

    def calls(self, key: str, session: str | None, now: int) -> int:
        calls, last = self._seen.get((key, session), (0, now))
        return calls if now - last < _KEPT else 0

    def put(self, key: str, session: str | None, calls: int, now: int) -> None:
        seen = self._seen
        seen[key, session] = (calls, now)
        seen.move_to_end((key, session))
        for _ in range(2):  # faster than they come, so that what is to be forgotten does not stay for long
            if len(seen) > self._most or now - next(iter(seen.values()))[1] >= _KEPT:
                seen.popitem(last=False)
