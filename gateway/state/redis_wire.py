"""One connection to one Redis server, shared by all who ask it: what they ask goes out as it comes, and the answers
arrive in the same order, so that a thousand calls at once need no thousand connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from gateway.state.redis_scripts import Scripts, packed

log = logging.getLogger("weighbridge.state")

PATIENCE: Final = 0.22
"""Seconds in which an answer has to come, the making of a connection included. With what the event loop may be late it
is less than the 250 ms that a call may be kept waiting."""

_GRACE: Final = 0.02
"""Seconds more, in case it was this process that was busy while the answer came."""

_CONNECTING: Final = 2.0
"""Seconds in which a connection has to be made by which nobody waits."""

PAUSE: Final = 0.2
"""Seconds between two attempts after a failure."""

SHORT_LIVED: Final = 1.0
"""Seconds: a connection that ends sooner is a failure, whoever has ended it."""

_OLDEST: Final = 7
"""The first version of Redis that keeps a script from beginning what it could not end."""

_HELLO: Final = packed("HELLO")


class Unanswered(Exception):
    """The server did not answer, or not in time: what it was asked may or may not have happened, if it was `sent`."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


Reply = Any
"""What a server has answered; ResponseError where that is an error, Unanswered where there was no answer."""


class Wire:
    """The connection to one server, made anew whenever it is lost.

    `failure` says why the server cannot be asked, None when it can. While there is one, whoever asks is told at once,
    and attempts to reach the server go on. A connection begins with the server's scripts and its time.
    """

    def __init__(
        self,
        address: tuple[str, int],
        connect: Callable[[tuple[str, int]], AbstractConnection],
        scripts: Scripts,
        *,
        heard: Callable[[int], None],
        patience: float = PATIENCE,
        pause: float = PAUSE,
    ) -> None:
        """`connect` gives a connection yet to be made; `heard` is told the server's time, in Unix microseconds."""
        self.address = address
        self.name = f"{address[0]}:{address[1]}"
        self.failure: str | None = None
        self.mode: str | None = None
        """`standalone` or `cluster`; None until the server has said it."""
        self.greeted = asyncio.Event()
        """Set while the server can be asked."""
        self._connect = connect
        self._scripts = scripts
        self._heard = heard
        self._patience = patience
        self._pause = pause
        self._asked: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._outgoing: list[bytes] = []
        self._some = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._late = False
        """Whether the oldest answer is overdue, but for what this process may be late itself."""
        self._limit: asyncio.Timeout | None = None
        self._reason: str | None = None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep(), name=f"connection to {self.name}")

    def ask(self, command: bytes) -> asyncio.Future[Reply]:
        """Sends a command. The future's result is a Reply, it never has an exception."""
        answer: asyncio.Future[Reply] = self._loop.create_future()
        if self.failure is not None:
            answer.set_result(Unanswered(self.failure, sent=False))
            return answer
        now = self._loop.time()
        self._asked.append((answer, now))
        self._outgoing.append(command)
        self._some.set()
        if self._alarm is None:
            self._alarm = self._loop.call_at(now + self._patience, self._watch)
        return answer

    def doubt(self, reason: str) -> None:
        """Gives the server up for now, because it does not answer, or says that it cannot do its work."""
        if self._limit is not None:
            self._reason = reason
            self._limit.reschedule(self._loop.time())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._lose("the gateway stops")
        if self._alarm is not None:
            self._alarm.cancel()

    async def _keep(self) -> None:
        while True:
            began = self._loop.time()
            try:
                await self._connection()
                reason = "the connection was closed"
            except TimeoutError:
                reason = "does not answer"
            except (RedisError, OSError, _Unfit) as error:
                reason = str(error)
            except Exception as error:
                reason = f"{type(error).__name__} while it was asked"
                log.error("the connection to %s failed", self.name, exc_info=error)
            ended_well = self._reason is None and self.greeted.is_set() and self._loop.time() - began > SHORT_LIVED
            reason, self._reason = self._reason or reason, None
            self.greeted.clear()
            if ended_well:
                self._lose(reason)
            else:
                self._fail(reason)
                await asyncio.sleep(self._pause)

    async def _connection(self) -> None:
        """One connection, from its beginning to its end. Raises TimeoutError, RedisError, OSError, _Unfit."""
        connection = self._connect(self.address)
        try:
            async with asyncio.timeout(_CONNECTING) as self._limit:
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._greet(connection)
            self._return()
            async with asyncio.timeout(None) as self._limit:
                await self._serve(connection)
        finally:
            self._limit = None
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def _greet(self, connection: AbstractConnection) -> None:
        """Learns what the server is, teaches it the scripts, asks it the time. Raises RedisError, OSError, _Unfit."""
        scripts = self._scripts.all()
        await connection.send_packed_command(
            [_HELLO, *(script.load() for script in scripts), self._scripts.tell.call((), {})], check_health=False
        )
        said = await connection.read_response()
        facts = dict(zip(said[::2], said[1::2], strict=False))
        version, mode = facts[b"version"].decode(), facts[b"mode"].decode()
        if mode == "sentinel":
            raise _Unfit("is a Sentinel; name the server that it watches")
        if int(version.partition(".")[0]) < _OLDEST:
            raise _Unfit(f"is Redis {version}; {_OLDEST}.0 or newer is needed")
        for _ in scripts:
            await connection.read_response()
        self._heard((await connection.read_response())[1])
        self.mode = mode

    async def _serve(self, connection: AbstractConnection) -> None:
        """Reads answers until there are no more. Raises RedisError, OSError."""
        writing = asyncio.create_task(self._write(connection), name=f"questions to {self.name}")
        try:
            while True:
                try:
                    reply = await connection.read_response()
                except ResponseError as error:
                    reply = error
                if not self._asked:
                    raise _Unfit("has answered what it was not asked")
                answer, _ = self._asked.popleft()
                self._late = False
                if not answer.done():
                    answer.set_result(reply)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            commands, self._outgoing = self._outgoing, []
            await connection.send_packed_command(commands, check_health=False)

    def _watch(self) -> None:
        """Gives the server up when the oldest answer is overdue."""
        self._alarm = None
        if not self._asked:
            return
        overdue = self._loop.time() - self._asked[0][1] - self._patience
        if overdue < 0:
            self._alarm = self._loop.call_later(-overdue, self._watch)
        elif not self._late:
            self._late = True
            self._alarm = self._loop.call_later(_GRACE, self._watch)
        else:
            self.doubt(f"did not answer in {self._patience + _GRACE:.2g} s")

    def _fail(self, reason: str) -> None:
        """From now on, whoever asks is told at once."""
        if self.failure is None:
            log.warning("the state's server %s cannot be asked: %s", self.name, reason)
        self.failure = reason
        self.greeted.clear()
        self._lose(reason)

    def _return(self) -> None:
        if self.failure is not None:
            log.warning("the state's server %s answers again", self.name)
        self.failure = None
        self.greeted.set()

    def _lose(self, reason: str) -> None:
        """Tells everybody who waits that there will be no answer."""
        self._late = False
        sent = len(self._asked) - len(self._outgoing)
        self._outgoing.clear()
        lost, self._asked = self._asked, deque()
        for number, (answer, _) in enumerate(lost):
            if not answer.done():
                answer.set_result(Unanswered(reason, sent=number < sent))


class _Unfit(Exception):
    """What answers cannot be used."""
