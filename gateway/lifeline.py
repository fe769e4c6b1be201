"""What may end a call before its time: the agent leaves, its body does not come, the gateway is stopped."""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

Gone = Callable[[type[Exception]], None]


class ClientGone(Exception):
    """The agent closed its connection. Nobody is left to answer; the record is still written."""


class BodyTooSlow(Exception):
    """The body did not arrive in `listen.body_timeout`."""


class Stopping(Exception):
    """The gateway is being stopped, and the time in which calls under way may finish is over."""


class Door(Protocol):
    """The connection a call came in on, as far as the call needs to know it."""

    hangup: Gone | None
    """Called at most once, from the event loop, when the agent is gone or too slow."""
    task: asyncio.Task[None] | None
    """The task that carries the call which began last."""

    def abort(self) -> None:
        """Drops the connection: the only honest end of a body whose length was already promised."""


class NoDoor:
    """Stands in where a call did not come through our front door."""

    hangup: Gone | None = None
    task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """Nothing to drop."""


class Lifeline:
    """Cancels the task that carries one call, once, and remembers why."""

    __slots__ = ("_alone", "_door", "_task", "left", "reason")

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        self._door: Door = scope.get("door") or NoDoor()
        self._task = self._door.task or asyncio.current_task()
        self._door.hangup = self.cut
        self.reason: type[Exception] | Exception | None = None
        self._alone = False
        self.left = False
        """Whether the agent is gone from a call that goes on without it."""

    def go_on_alone(self) -> None:
        """From here on the call comes to its end though its agent leaves: others may wait for its answer."""
        self._alone = True

    def cut(self, reason: type[Exception] | Exception) -> None:
        if reason is ClientGone and self._alone:
            self.left = True
            return
        if self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()

    def abort(self) -> None:
        self._door.abort()

    def release(self) -> None:
        """From here on nothing can end the call any more."""
        self._door.hangup = None
        self._task = None

    def caught(self) -> Exception:
        """Why the task was cancelled. A cancellation that is not of this lifeline's making comes from the server."""
        if self._task is not None:
            self._task.uncancel()
        reason = self.reason
        if reason is None:
            return Stopping("The gateway is being stopped.")
        return reason() if isinstance(reason, type) else reason
