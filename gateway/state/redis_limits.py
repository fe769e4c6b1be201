"""Limits that several gateways share: calls and tokens, counted on a Redis server or cluster.

A call that was let in holds a pass, which its gateway renews: a minute after a gateway is gone, the places of its calls
are free again. All keys of a tenant have its name as their hash tag:

    wb:{t:acme}:pass:CALL           hash  what the call took
    wb:{t:acme}:limit:NODE|WHAT     hash  tat, given: a rate; or
                                    zset  call -> when its lease is over: calls at the same time
    wb:{t:acme}:limit:NODE|calls_per_session|SESSION   hash  calls, used
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from gateway.state.redis_outbox import CLOSING, Outbox, Step, Words
from gateway.state.redis_servers import RedisServers, tag
from policies.budgets import LEASE, RENEW, StoreUnavailable
from policies.limits import COME_AGAIN, SESSION_KEPT, Limit, LimitReached, Pass, Standing, remaining
from policies.money import MOST

log = logging.getLogger("weighbridge.state")

MOST_LEAVING: Final = 10_000
"""Calls that are over and have not been let out yet; of more than that, the places are free again a minute later."""

_MICRO: Final = 1_000_000
_LEASE: Final = int(LEASE * _MICRO)
_PASS_KEPT: Final = int(LEASE * 1000)
_KEPT: Final = 8 * 86_400 * 1000
"""Milliseconds for which counters are kept that nobody uses: longer than any call is under way, for what it gives back
is measured against what all have given back since it came."""

_MOST_RENEWED: Final = 200


class RedisLimits:
    """Implements `policies.limits.LimitStore`.

    `enter` answers within 250 ms or raises StoreUnavailable; after that it does at once, until the server was reached
    again. Whoever lets calls pass then counts none of them: all is as it was when the server is back.
    """

    def __init__(self, servers: RedisServers) -> None:
        """`servers` are closed by whoever has made them, after this."""
        self.outbox = Outbox(servers, lambda step, reply: None, MOST_LEAVING)
        self._servers = servers
        self._scripts = servers.scripts
        self.inside: dict[str, Pass] = {}
        """The calls that this gateway has let in and that have not left."""
        self._tending: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins to renew what is held. Needs a running event loop."""
        if self._tending is None:
            self._servers.begin()
            self.outbox.begin()
            self._tending = asyncio.create_task(self._tend(), name="places of the limits")

    async def enter(self, call: str, tenant: str, limits: tuple[Limit, ...], session: str | None, tokens: int) -> Pass:
        held = Pass(call, tenant, limits, session, tokens)
        if not limits:
            return held
        self.begin()
        ask = {
            "call": call,
            "tokens": min(tokens, MOST),
            "lease": _LEASE,
            "pass_kept": _PASS_KEPT,
            "come_again": int(COME_AGAIN * _MICRO),
            "session_over": int(SESSION_KEPT * _MICRO),
            "kept": _KEPT,
            "limits": _facts(limits),
        }
        try:
            reply = await self._servers.run(tenant, self._scripts.enter, _keys(held), ask)
        except asyncio.CancelledError:
            self.leave(held, 0)
            raise
        status, now, waits, counts = reply
        self._servers.clock.heard(now)
        held.standings = tuple(map(_standing, limits, counts, [now] * len(limits)))
        if status == b"REACHED":
            longest = -1 if -1 in waits else max(waits)
            retry_after = longest / _MICRO if longest >= 0 else None
            raise LimitReached(limits[waits.index(longest)], retry_after, held.standings)
        self.inside[call] = held
        return held

    def leave(self, held: Pass, tokens: int) -> None:
        self.inside.pop(held.call, None)
        if held.limits:
            self.begin()
            words = partial(_leaving, held, min(tokens, MOST))
            self.outbox.put(Step(held.tenant, self._scripts.leave, (), MOST, words))

    async def close(self, within: float = CLOSING) -> None:
        """Lets out who has left, as far as that is possible `within` so many seconds."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])
        await self.outbox.close(within)

    async def renew(self) -> None:
        """Renews the passes of all calls that are inside, as far as servers answer."""
        of_tenants: dict[str, list[Pass]] = defaultdict(list)
        for held in self.inside.values():
            of_tenants[held.tenant].append(held)
        for tenant, passes in of_tenants.items():
            with contextlib.suppress(StoreUnavailable):
                for start in range(0, len(passes), _MOST_RENEWED):
                    keys: list[str] = []
                    renewed = [_renewed(held, keys) for held in passes[start : start + _MOST_RENEWED]]
                    ask = {"lease": _LEASE, "pass_kept": _PASS_KEPT, "kept": _KEPT, "passes": renewed}
                    await self._servers.run(tenant, self._scripts.stay, keys, ask)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(RENEW)
            try:
                await self.renew()
            except Exception as error:
                log.error("the places of calls were not renewed", exc_info=error)


def _leaving(held: Pass, tokens: int) -> Words:
    return _keys(held), {"call": held.call, "tokens": tokens, "kept": _KEPT, "limits": _facts(held.limits)}


def _keys(held: Pass) -> list[str]:
    """Those of a pass and of its limits, in their order."""
    key = tag(held.tenant)
    return [f"{key}pass:{held.call}", *(_counter(key, limit, held.session) for limit in held.limits)]


def _counter(key: str, limit: Limit, session: str | None) -> str:
    return f"{key}limit:{limit.key}" + (f"|{session}" if limit.what == "calls_per_session" else "")


def _facts(limits: Sequence[Limit]) -> list[dict[str, Any]]:
    return [{"key": limit.key, "what": limit.what, "most": limit.most} for limit in limits]


def _renewed(held: Pass, keys: list[str]) -> dict[str, Any]:
    """What a script has to know of a pass. Its keys are added to `keys`."""
    own, *counters = _keys(held)
    keys.append(own)
    place = len(keys)
    keys += [key for key, limit in zip(counters, held.limits, strict=True) if limit.what == "concurrent"]
    return {"call": held.call, "key": place, "places": list(range(place + 1, len(keys) + 1))}


def _standing(limit: Limit, count: int, now: int) -> Standing:
    """`count` is in calls; for rates it is the theoretical arrival time, in microseconds as `now`."""
    if limit.what in ("concurrent", "calls_per_session"):
        return Standing(limit, max(limit.most - count, 0), 0.0)
    return Standing(limit, remaining(count * 1000, now * 1000, limit.most), max(count - now, 0) / _MICRO)
