"""Ends this process when a policy does not come to an end: an evaluation holds every thread, so nothing else can."""

from __future__ import annotations

import asyncio
import faulthandler
import signal

RUNAWAY = signal.SIGPROF
"""The signal that ends a process whose policy did not come to an end."""

_BEATS: int = 4
"""Heartbeats in the time allowed."""


class Watchdog:
    """While the event loop runs, it beats; `seconds` of processor time without a beat print the stack and end the
    process with `RUNAWAY`.

    The kernel counts and ends, which takes no thread and no lock of ours. It counts processor time, because a process
    that was stopped, or whose machine was, has done nothing wrong. The supervisor starts another. One per process,
    because the timer is the process's own.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts watching the running event loop."""
        self._loop = asyncio.get_running_loop()
        # What it chains to is the signal's own meaning: the end of the process.
        faulthandler.register(RUNAWAY, chain=True)
        self.beat()

    def beat(self) -> None:
        """The loop is alive: the time allowed begins anew."""
        if self._next is not None:
            self._next.cancel()
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        self._next = self._loop.call_later(self._seconds / _BEATS, self.beat)

    def stop(self) -> None:
        """Stops watching; does nothing when it does not watch."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.unregister(RUNAWAY)
