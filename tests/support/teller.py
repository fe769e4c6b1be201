"""A process that steers a route and flushes what it counts as fast as it can and tells each step, to be killed; see
test_embedded_routes.

python -m tests.support.teller FILE
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from gateway.state import embedded
from gateway.state.routes import EmbeddedRoutes
from routing.course import CALLS, ERRORS, Course, counted

ROUTE = "chat"
BEGINS = 1_763_700_000
AFTER = BEGINS + 10**6
"""Unix seconds when all of its buckets are closed."""


def tell(word: str) -> None:
    os.write(1, word.encode() + b"\n")


async def main(path: Path) -> None:
    embedded._CHECKPOINT_EVERY = 0.0  # type: ignore[misc]
    now = BEGINS * 10**9

    def clock() -> int:
        nonlocal now
        now += 10**9
        return now

    store = EmbeddedRoutes(embedded.EmbeddedStore(path, fold_every=0.001), clock)
    while True:
        store.count(ROUTE, {counted("parallax", CALLS): 1, counted("parallax", ERRORS): 1})
        tell("flushes")
        await store.flush()
        tell("flushed")
        known = (await store.courses()).get(ROUTE, Course(0))
        tell("steers")
        await store.steer(ROUTE, Course(known.epoch + 1), known.epoch)
        tell("steered")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
