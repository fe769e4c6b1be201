"""Ends this process when a policy does not come to an end: an evaluation holds every thread, so nothing else can."""

from __future__ import annotations

import asyncio
import faulthandler

_BEATS: int = 4
"""Heartbeats in the time allowed."""


class Watchdog:
    """While the event loop runs, it beats; when it stands still for `seconds`, the process prints its stack and ends.

    The supervisor starts another. One per process, because the timer underneath is the process's own.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts watching the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.beat()

    def beat(self) -> None:
        """The loop is alive: the time allowed begins anew."""
        if self._next is not None:
            self._next.cancel()
        faulthandler.dump_traceback_later(self._seconds, exit=True)
        self._next = self._loop.call_later(self._seconds / _BEATS, self.beat)

    def stop(self) -> None:
        """Stops watching; does nothing when it does not watch."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
            faulthandler.cancel_dump_traceback_later()
