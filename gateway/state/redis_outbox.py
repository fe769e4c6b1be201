"""What has to happen at a Redis server, once, however often it has to be tried: what follows a call that is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from gateway.state.redis_scripts import Script
from gateway.state.redis_servers import NotAsked, RedisServers, Refused
from gateway.state.redis_wire import Reply, Unanswered
from policies.budgets import Account, StoreUnavailable

log = logging.getLogger("weighbridge.state")

MOST: Final = 100_000
"""Steps that wait at once; beyond that, further ones are lost."""

CLOSING: Final = 3.0
"""Seconds at the end in which what waits is to be carried out."""

_AT_ONCE: Final = 100
"""Steps of one tenant that are tried together."""

_TENANTS_AT_ONCE: Final = 100

_MOST_REFUSALS: Final = 100
"""Times that a server may refuse a step outright, which is a fault of somebody's and not a bad day."""

_LOST_FOR_SURE: Final = 50 * 60 * 1_000_000
"""Microseconds after a first attempt in which its traces are still there if it has succeeded. Scripts keep them longer
by as much as clocks and patience may differ."""


Words = tuple[Sequence[str], dict[str, Any]]
"""Keys of a script, and what it is asked."""


@dataclass(slots=True)
class Step:
    """Something that has to be carried out once. `words` makes what the script is given, but for `lost_until`, which is
    known when it is sent: a hundred thousand that wait should not be large.
    """

    tenant: str
    script: Script
    accounts: Sequence[Account]
    certain_until: int
    """Until when a server that knows nothing of the call can only have lost it, as far as nobody has tried yet."""
    words: Callable[[], Words]
    tried_at: int | None = None
    refusals: int = 0


class Outbox:
    """Sends steps at once, and those that fail again and again, in the order of their tenant."""

    def __init__(self, servers: RedisServers, done: Callable[[Step, list[Any]], None], most: int = MOST) -> None:
        """`done` is given each step and what the script has returned."""
        self.lost = 0
        """Steps that were given up."""
        self._servers = servers
        self._done = done
        self._most = most
        self._sent: set[asyncio.Future[Reply]] = set()
        self._waiting: dict[str, deque[Step]] = {}
        self._size = 0
        self._some = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return self._size

    def begin(self) -> None:
        """Begins to try again what has failed. Does nothing the second time."""
        if self._task is None:
            self._task = asyncio.create_task(self._retry(), name="outbox of the state")

    def put(self, step: Step) -> None:
        """Takes a step and returns at once."""
        if self._closed or self._size >= self._most:
            self._lose(step, "the gateway stops" if self._closed else f"{self._size} wait already")
            return
        self._size += 1
        if step.tenant in self._waiting or not self._servers.answers(step.tenant):
            self._keep(step)
            return
        try:
            sent = self._servers.ask(step.tenant, self._command(step))
        except Exception as error:
            log.error("a step of the state failed", exc_info=error)
            self._keep(step)
            return
        self._sent.add(sent)
        sent.add_done_callback(lambda sent: self._answered(step, sent))

    async def close(self, within: float = CLOSING) -> None:
        """Carries out what waits, as far as that is possible `within` so many seconds; the rest is lost."""
        if within > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    while self._size:
                        await asyncio.sleep(0.005)
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        left, self._waiting, self._size = self._waiting, {}, 0
        for step in [step for steps in left.values() for step in steps]:
            self._lose(step, "the gateway stops")

    def _command(self, step: Step) -> bytes:
        now = self._servers.clock.now_ns() // 1000
        lost_until = step.certain_until
        if step.tried_at is None:
            step.tried_at = now
        else:
            lost_until = min(lost_until, step.tried_at + _LOST_FOR_SURE)
        keys, ask = step.words()
        return step.script.call(keys, {**ask, "lost_until": lost_until})

    def _answered(self, step: Step, sent: asyncio.Future[Reply]) -> None:
        self._sent.discard(sent)
        reply = sent.result()
        if isinstance(reply, Exception):
            if isinstance(reply, Unanswered) and not reply.sent:
                step.tried_at = None
            self._keep(step)
        else:
            self._finish(step, reply)

    def _finish(self, step: Step, reply: list[Any]) -> None:
        self._size -= 1
        self._done(step, reply)

    def _keep(self, step: Step) -> None:
        self._waiting.setdefault(step.tenant, deque()).append(step)
        self._some.set()

    async def _retry(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            tenants = iter(list(self._waiting))
            while some := list(islice(tenants, _TENANTS_AT_ONCE)):
                await asyncio.gather(*(self._try_again(tenant) for tenant in some))
            if self._waiting:
                self._some.set()
                await asyncio.sleep(self._servers.pause)

    async def _try_again(self, tenant: str) -> None:
        """Tries what waits for one tenant, until all of it is done or something fails."""
        waiting = self._waiting[tenant]
        while waiting and self._servers.answers(tenant):
            batch = [waiting[i] for i in range(min(len(waiting), _AT_ONCE))]
            replies = await asyncio.gather(*(self._attempt(step) for step in batch))
            for _ in batch:
                waiting.popleft()
            failed = [step for step, reply in zip(batch, replies, strict=True) if reply is None]
            for step, reply in zip(batch, replies, strict=True):
                if reply is not None:
                    self._finish(step, reply)
            waiting.extendleft(reversed([step for step in failed if not self._hopeless(step)]))
            if failed:
                break
        if not waiting:
            del self._waiting[tenant]

    async def _attempt(self, step: Step) -> list[Any] | None:
        """What the script has returned; None where it failed. Whatever goes wrong, the step is tried again."""
        tried_at = step.tried_at
        try:
            return await self._servers.send(step.tenant, self._command(step), step.script)
        except Refused:
            step.refusals += 1
        except NotAsked:
            step.tried_at = tried_at
        except StoreUnavailable:
            pass
        except Exception as error:
            step.refusals += 1
            log.error("a step of the state failed", exc_info=error)
        return None

    def _hopeless(self, step: Step) -> bool:
        if step.refusals < _MOST_REFUSALS:
            return False
        self._size -= 1
        self._lose(step, "the server refuses it")
        return True

    def _lose(self, step: Step, reason: str) -> None:
        """What was lent to a call that is not settled is posted whole; a cost without a loan is not posted at all."""
        self.lost += 1
        if self.lost == 1 or self.lost % 1000 == 0:
            told = "%d steps of calls that are over were lost, the last one %s of tenant %s: %s"
            log.error(told, self.lost, step.script.name, step.tenant, reason)
