"""What holds for routes beyond their configuration, and what was counted at them, shared by several gateways: on a
Redis server or cluster.

    wb:{t:}:courses                hash  route -> EPOCH:GATEWAY:JSON, all courses, read twice a second
    wb:{t:ROUTE}:bucket:AT         hash  ARM|WHAT -> count; three days
    wb:{t:ROUTE}:newest            text  the bucket into which was counted last; three days
    wb:{t:ROUTE}:flushed:GATEWAY   text  number of the gateway's last flush that was counted; three days

The keys of a route have its name as their hash tag, as those of a tenant have the tenant's. Nothing is published: all
gateways look at the courses twice a second.

How durable an answered step is, the server's configuration decides; see redis.py. After a failover the last steps may
be gone. A course that a gateway has heard of stays in force there and is written again, so that no rollback un-happens;
where a change of the same epoch was made meanwhile by one that had not heard of it, that one holds. What was counted in
the last moments before is missing from its buckets, and so is that it was: nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.state.redis_servers import NotAsked, RedisServers, tag
from gateway.state.routes import Counts, read, written
from policies import budgets
from routing.course import BUCKET, KEPT, LAST_EPOCH, LEASE, SET_BACK, Bucket, Course, behind, unusable
from routing.errors import StoreUnavailable

log = logging.getLogger("weighbridge.state")

CLOSING: Final = 1.0
"""Seconds at the end in which what was counted is to be flushed."""

_COURSES: Final = f"{tag('')}courses"

_EPOCH: Final = re.compile(rb"([0-9]{1,4000}):")
"""As the script reads it, how a course begins."""

_PAGE: Final = 360
"""Buckets that are read together, an hour's."""

_REPEATED: Final = (KEPT - 3600) * 1_000_000_000
"""Nanoseconds after its first attempt in which it is known of a flush whether it was counted."""


@dataclass(slots=True)
class _Flush:
    """Counts that are sent as one, until they are counted. `tried_ns` is when they may have arrived first."""

    number: int
    counts: Mapping[str, int]
    tried_ns: int | None = None


class RedisRoutes:
    """Implements `routing.course.RouteStore`.

    What is asked is answered within 250 ms or raises StoreUnavailable; after that it does at once, until the server was
    reached again in the background.
    """

    shared: Final = True

    def __init__(self, servers: RedisServers, monotonic: Callable[[], int] = time.monotonic_ns) -> None:
        """`servers` are closed by whoever has made them, after this. `monotonic` gives nanoseconds."""
        self._servers = servers
        self._scripts = servers.scripts
        self._monotonic = monotonic
        self._gateway = secrets.token_hex(8)
        """This one, in this life."""
        self._heard_ns = monotonic() - int(LEASE * 1_000_000_000) - 1
        self._courses: dict[str, Course] = {}
        self._kept: dict[str, bytes] = {}
        """The same as they are kept."""
        self._counts = Counts()
        self._flushes = 0
        self._flushing = asyncio.Lock()
        self._sent: dict[str, _Flush] = {}
        """The flush of each route of which it is not known that it was counted."""

    @property
    def failure(self) -> str | None:
        return self._servers.failure

    @property
    def heard_ns(self) -> int:
        return self._heard_ns

    def begin(self) -> None:
        self._servers.begin()

    async def courses(self) -> Mapping[str, Course]:
        self.begin()
        asked = self._monotonic()
        try:
            found = await self._servers.command("", "HGETALL", _COURSES)
        except budgets.StoreUnavailable as error:
            raise StoreUnavailable(str(error)) from None
        told: dict[str, Course] = {}
        kept: dict[str, bytes] = {}
        for name, value in zip(found[::2], found[1::2], strict=True):
            route = name.decode(errors="replace")
            told[route] = self._courses[route] if self._kept.get(route) == value else _told(value)
            kept[route] = value
        lost = behind(self._courses, told)
        self._kept = kept | {route: self._kept[route] for route in lost}
        self._courses = heard = told | lost
        self._heard_ns = asked
        for route in lost:
            await self._write_again(route)
        return dict(heard)

    async def steer(self, route: str, course: Course, expected_epoch: int) -> bool:
        value = f"{course.epoch}:{self._gateway}:{written(course, expected_epoch)}"
        if not await self._set(route, value, course.epoch, expected_epoch):
            return False
        known = self._courses.get(route)
        if known is None or known.epoch < course.epoch:
            self._kept[route] = value.encode()
            self._courses[route] = _read(self._kept[route])
        return True

    def count(self, route: str, counts: Mapping[str, int]) -> None:
        self._counts.add(route, counts)

    async def flush(self) -> None:
        self.begin()
        async with self._flushing:
            failed = await asyncio.gather(*map(self._send, list(self._sent)))
            begun = []
            for route, counts in self._counts.take().items():
                if route in self._sent:
                    self._counts.add(route, counts)
                else:
                    self._flushes += 1
                    self._sent[route] = _Flush(self._flushes, counts)
                    begun.append(route)
            failed += await asyncio.gather(*map(self._send, begun))
        if reasons := [each for each in failed if each is not None]:
            raise StoreUnavailable(reasons[0])

    async def buckets(self, route: str, since: int, until: int) -> list[Bucket]:
        self.begin()
        key = tag(route)
        found = []
        at = -(-max(since, 0) // BUCKET) * BUCKET
        while at < until:
            times = list(range(at, min(until, at + _PAGE * BUCKET), BUCKET))
            ask = {"times": times, "width": BUCKET, "set_back": SET_BACK}
            keys = [f"{key}newest", *(f"{key}bucket:{each}" for each in times)]
            try:
                _, now, open_at, some = await self._servers.run(route, self._scripts.counted, keys, ask)
            except budgets.StoreUnavailable as error:
                raise StoreUnavailable(str(error)) from None
            self._servers.clock.heard(now)
            found += [Bucket(each, _counts(counts)) for each, counts in some]
            at = max(times[-1] + BUCKET, open_at - KEPT - BUCKET)
            if at >= open_at:
                break
        return found

    async def close(self, within: float = CLOSING) -> None:
        """As of the protocol; `within` is how many seconds it may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._counts or self._sent:
                    try:
                        await self.flush()
                    except StoreUnavailable:
                        await asyncio.sleep(0.02)
        if self._counts or self._sent:
            log.error("what was counted at routes last is lost: %s", self.failure)

    async def _send(self, route: str) -> str | None:
        """Has the flush of a route counted. Why that is not certain; None when it is."""
        flush = self._sent[route]
        key = tag(route)
        keys = [f"{key}flushed:{self._gateway}", f"{key}newest"]
        ask = {
            "flush": flush.number,
            "counts": list(flush.counts.items()),
            "buckets": f"{key}bucket:",
            "width": BUCKET,
            "set_back": SET_BACK,
            "kept": KEPT,
        }
        tried, now = flush.tried_ns, self._monotonic()
        if tried is not None and now - tried > _REPEATED:
            log.error("what was counted at the route %s is given up: it may be counted already", route)
            del self._sent[route]
            return None
        flush.tried_ns = now if tried is None else tried
        try:
            _, told, _ = await self._servers.run(route, self._scripts.flush, keys, ask)
        except NotAsked as error:
            flush.tried_ns = tried
            return str(error)
        except budgets.StoreUnavailable as error:
            return str(error)
        self._servers.clock.heard(told)
        del self._sent[route]
        return None

    async def _set(self, route: str, value: str, epoch: int, expected: int | None) -> bool:
        self.begin()
        ask: dict[str, Any] = {"route": route, "course": value, "epoch": epoch}
        if expected is not None:
            ask["expected"] = expected
        try:
            status, now = await self._servers.run("", self._scripts.steer, [_COURSES], ask)
        except budgets.StoreUnavailable as error:
            raise StoreUnavailable(str(error)) from None
        self._servers.clock.heard(now)
        return bool(status == b"OK")

    async def _write_again(self, route: str) -> None:
        """Tells the server what it has lost. Where that fails, the next look finds it lost once more."""
        epoch = self._courses[route].epoch
        log.warning("the state's server has lost the course of the route %s: epoch %d is written again", route, epoch)
        with contextlib.suppress(StoreUnavailable):
            await self._set(route, self._kept[route].decode(), epoch, None)


def _told(value: bytes) -> Course:
    """What anybody may have written: where it is no course, one that cannot be used, in its place."""
    try:
        return _read(value)
    except ValueError as error:
        told = _EPOCH.match(value)
        epoch = min(int(told[1]), LAST_EPOCH) if told is not None else 0
        return unusable(epoch, f"it cannot be read: {error}")


def _read(value: bytes) -> Course:
    """Raises ValueError."""
    epoch, _, text = value.split(b":", 2)
    course = read(text)
    if course.epoch != int(epoch):
        raise ValueError(f"its epoch is {int(epoch)} and {course.epoch}")
    return course


def _counts(said: list[bytes]) -> dict[str, int]:
    return {key.decode(): int(number) for key, number in zip(said[::2], said[1::2], strict=True)}
