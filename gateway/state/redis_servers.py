"""Which Redis server keeps a tenant: the only one there is, or the node of a cluster that has the tenant's slot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

from config.redis_url import RedisUrl
from gateway.state.redis_scripts import Script, Scripts, packed
from gateway.state.redis_wire import PATIENCE, PAUSE, Reply, Unanswered, Wire
from policies.budgets import StoreUnavailable

log = logging.getLogger("weighbridge.state")

Address = tuple[str, int]

_SLOTS: Final = 16384
_HOPS: Final = 5
"""Times that a question is asked elsewhere, as a cluster says, or again, because a server lacks the script."""

_REARRANGING: Final = 0.02
"""Seconds after which a question is asked again whose keys a cluster is just moving."""

_MAP_EVERY: Final = 0.5
"""Seconds between two looks at a cluster's map while it is not known, or one of its servers does not answer."""

_MAP_REST: Final = 0.05
"""Seconds at least from a wish to look at it again to the look: many wish at once."""

_ASKING: Final = packed("ASKING")
_MAP: Final = packed("CLUSTER", "SLOTS")

_CANNOT: Final = (ReadOnlyError, OutOfMemoryError, ClusterDownError)
_CANNOT_WORDS: Final = ("MISCONF", "NOREPLICAS")
"""Errors of a server that cannot do its work now, whatever it is asked."""


class NotAsked(StoreUnavailable):
    """The server was not asked at all, so that nothing has happened."""


class Refused(StoreUnavailable):
    """The server is there and refuses what it is asked: somebody has made a mistake."""


class ServerClock:
    """The servers' time, told by the local clock and what the servers say of it: `now_ns` is what they would say.

    What a server said is older when it arrives, by as much as it took; so what makes the time latest is right, unless
    the local clock was set meanwhile.
    """

    _LONGEST_TRIP: Final = 1_000_000_000

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` gives Unix nanoseconds."""
        self._clock = clock
        self._ahead: int | None = None

    def now_ns(self) -> int:
        return self._clock() + (self._ahead or 0)

    def heard(self, said: int) -> None:
        """`said` is in Unix microseconds."""
        ahead = said * 1000 - self._clock()
        if self._ahead is None or not self._ahead - self._LONGEST_TRIP < ahead <= self._ahead:
            self._ahead = ahead


class RedisServers:
    """The servers of one state, each with one connection.

    `failure` says why one of them cannot be asked, None when all can.
    """

    def __init__(
        self,
        url: RedisUrl,
        *,
        clock: Callable[[], int] = time.time_ns,
        scripts: Scripts | None = None,
        patience: float = PATIENCE,
        pause: float = PAUSE,
    ) -> None:
        self.url = url
        self.scripts = scripts or Scripts()
        self.clock = ServerClock(clock)
        self.pause = pause
        self._patience = patience
        self._wires: dict[Address, Wire] = {}
        self._slots: list[Address | None] = []
        """The owner of each slot of a cluster; empty where there is none, or it is not known yet."""
        self._owners: frozenset[Address] = frozenset()
        self._slot_of: dict[str, int] = {}
        self._mapping: asyncio.Task[None] | None = None
        self._remap = asyncio.Event()
        self._closed = False

    @property
    def failure(self) -> str | None:
        if self._owners:
            owners = [self._wires[address] for address in self._owners]
            return next((f"{wire.name}: {wire.failure}" for wire in owners if wire.failure is not None), None)
        wires = list(self._wires.values())
        if not any(wire.greeted.is_set() for wire in wires):
            return next(
                (f"{wire.name}: {wire.failure}" for wire in wires if wire.failure is not None), "not reached yet"
            )
        if any(wire.mode == "cluster" for wire in wires):
            return "it is not known yet which node of the cluster keeps what"
        return None

    def begin(self) -> None:
        """Begins to connect. Does nothing the second time, or when it was closed. Needs a running event loop."""
        if self._mapping is None and not self._closed:
            for address in self.url.servers:
                self._wire_to(address)
            self._mapping = asyncio.create_task(self._keep_map(), name="map of the state's servers")

    async def close(self) -> None:
        self._closed = True
        if self._mapping is not None:
            self._mapping.cancel()
            await asyncio.wait([self._mapping])
        wires, self._wires = self._wires, {}
        await asyncio.gather(*(wire.close() for wire in wires.values()))

    def ask(self, tenant: str, command: bytes) -> asyncio.Future[Reply]:
        """Sends a command to the tenant's server, once."""
        return self._wire(tenant).ask(command)

    def answers(self, tenant: str) -> bool:
        """Whether there is a use in asking the tenant's server now."""
        return not self._closed and self._wire(tenant).failure is None

    async def send(self, tenant: str, command: bytes, script: Script) -> list[Any]:
        """Runs a script's command at the tenant's server. Gives what it returns. Raises StoreUnavailable, Refused."""
        reply: list[Any] = await self._answered(self._wire(tenant), command, script)
        return reply

    async def run(
        self, tenant: str, script: Script, keys: Sequence[str], ask: dict[str, Any], bulk: bytes | None = None
    ) -> list[Any]:
        """Runs a script at the tenant's server and gives what it returns. Raises StoreUnavailable."""
        return await self.send(tenant, script.call(keys, ask, bulk), script)

    async def command(self, tenant: str, *words: str | int) -> Any:
        """Runs a command on keys of the tenant. Raises StoreUnavailable."""
        return await self._answered(self._wire(tenant), packed(*words))

    def connection(self, tenant: str) -> AbstractConnection:
        """A connection of one's own to the tenant's server, yet to be made. Raises StoreUnavailable."""
        wire = self._wire(tenant)
        if wire.failure is not None:
            raise NotAsked(f"{wire.name}: {wire.failure}")
        return self._connection(wire.address)

    async def each(self, command: bytes) -> list[tuple[str, Any]]:
        """What every server that can be asked answers to a command, with its name; errors left out."""
        asked = [(wire.name, wire.ask(command)) for wire in self._wires.values() if wire.greeted.is_set()]
        replies = [(name, await answer) for name, answer in asked]
        return [(name, reply) for name, reply in replies if not isinstance(reply, Exception)]

    async def tell(self) -> None:
        """Asks every server the time: one that is gone without a word is found out, and clocks do not drift apart."""
        for _, (_, said) in await self.each(self.scripts.tell.call((), {})):
            self.clock.heard(said)

    async def _answered(self, wire: Wire, command: bytes, script: Script | None = None) -> Any:
        answer = wire.ask(command)
        for _ in range(_HOPS):
            reply = await answer
            if not isinstance(reply, Exception):
                return reply
            if isinstance(reply, Unanswered):
                self._remap.set()
                raise (StoreUnavailable if reply.sent else NotAsked)(f"{wire.name}: {reply}")
            if isinstance(reply, NoScriptError) and script is not None:
                wire.ask(script.load())
            elif isinstance(reply, TryAgainError):
                await asyncio.sleep(_REARRANGING)
            elif isinstance(reply, AskError):
                there = (reply.host or wire.address[0], reply.port)
                wire = self._wire_to(there)
                if isinstance(reply, MovedError):
                    self._moved(reply.slot_id, there)
                else:
                    wire.ask(_ASKING)
            else:
                raise self._unable(wire, reply)
            answer = wire.ask(command)
        raise StoreUnavailable(f"{wire.name}: sends questions round in circles")

    def _unable(self, wire: Wire, error: Exception) -> StoreUnavailable:
        reason = str(error)
        if isinstance(error, _CANNOT) or reason.startswith(_CANNOT_WORDS):
            wire.doubt(reason)
            self._remap.set()
            return StoreUnavailable(f"{wire.name}: {reason}")
        log.error("the state's server %s refuses what it is asked: %s", wire.name, reason)
        return Refused(f"{wire.name}: {reason}")

    def _wire(self, tenant: str) -> Wire:
        """Raises StoreUnavailable after the end."""
        if self._closed:
            raise NotAsked("the gateway stops")
        self.begin()
        if self._slots:
            slot = self._slot_of.get(tenant)
            if slot is None:
                slot = self._slot_of[tenant] = key_slot(tag(tenant).encode())
            if (owner := self._slots[slot]) is not None:
                return self._wire_to(owner)
        wires = self._wires.values()
        return next((wire for wire in wires if wire.greeted.is_set()), next(iter(wires)))

    def _wire_to(self, address: Address) -> Wire:
        wire = self._wires.get(address)
        if wire is None:
            wire = self._wires[address] = Wire(
                address,
                self._connection,
                self.scripts,
                heard=self._reached,
                patience=self._patience,
                pause=self.pause,
            )
        return wire

    def _connection(self, address: Address) -> AbstractConnection:
        """A connection that is not made yet and never tries twice by itself."""
        known: dict[str, Any] = {
            "host": address[0],
            "port": address[1],
            "db": self.url.database,
            "username": self.url.username,
            "password": self.url.password,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "client_name": "weighbridge",
            "driver_info": None,
        }
        if not self.url.tls:
            return Connection(**known)
        return SSLConnection(**known, ssl_ca_certs=str(self.url.ca) if self.url.ca is not None else None)

    def _reached(self, said: int) -> None:
        self.clock.heard(said)
        self._remap.set()

    def _moved(self, slot: int, to: Address) -> None:
        if self._slots:
            self._slots[slot] = to
        self._remap.set()

    async def _keep_map(self) -> None:
        """Knows which node of a cluster has which slots, as long as there is one."""
        while True:
            self._remap.clear()
            if await self._learn_map():
                await self._remap.wait()
                await asyncio.sleep(_MAP_REST)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_MAP_EVERY):
                        await self._remap.wait()

    async def _learn_map(self) -> bool:
        """Whether there is nothing more to be learnt for now."""
        for wire in [each for each in self._wires.values() if each.greeted.is_set()]:
            if wire.mode == "cluster":
                reply = await wire.ask(_MAP)
                if isinstance(reply, list) and reply:
                    return await self._follow(wire, reply)
            elif not self.url.cluster:
                return True
            else:
                wire.doubt("is no node of a cluster")
        return False

    async def _follow(self, told_by: Wire, ranges: list[Any]) -> bool:
        """Takes a map over. Whether all of its servers can be asked."""
        slots: list[Address | None] = [None] * _SLOTS
        for first, last, owner, *_ in ranges:
            host = (owner[0] or b"").decode() or told_by.address[0]
            slots[first : last + 1] = [(host, int(owner[1]))] * (last + 1 - first)
        self._slots = slots
        self._owners = frozenset(address for address in slots if address is not None)
        wires = [self._wire_to(address) for address in self._owners]
        gone = [self._wires.pop(each) for each in self._wires.keys() - self._owners - set(self.url.servers)]
        await asyncio.gather(*(wire.close() for wire in gone))
        return all(wire.failure is None for wire in wires)


def tag(tenant: str) -> str:
    """How all keys of a tenant begin: what stands in braces decides the slot, so all of them are in one."""
    return f"wb:{{t:{tenant}}}:"
