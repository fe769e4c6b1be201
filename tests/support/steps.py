"""How long a task holds the event loop at a time: what all other calls wait for meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Step:
    """Seconds of this thread's processor time, so that a busy machine makes none longer."""

    seconds: float = 0.0


@asynccontextmanager
async def longest_step() -> AsyncIterator[Step]:
    """The longest turn of the event loop in the block."""
    step = Step()

    async def turns() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            step.seconds = max(step.seconds, time.thread_time() - began)

    watching = asyncio.create_task(turns())
    await asyncio.sleep(0)
    try:
        yield step
    finally:
        for _ in range(2):  # the last turn counts as well
            await asyncio.sleep(0)
        watching.cancel()
