"""A process that lends and settles as fast as it can and tells each step, to be killed; see test_embedded_crashes.

python -m tests.support.lender FILE GENERATION [STATEMENT NUMBER]

Kills itself right before the NUMBERth statement that begins with STATEMENT, where these are given.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import uvloop

from gateway.state import embedded, journal
from policies.budgets import Short
from tests.support.stores import ask, budget, paying, spent

LIMIT = 200_000
EVERY = paying(budget("acme", LIMIT), budget("acme/bot", LIMIT))
AMOUNT = 40
AT_ONCE = 8


def cost(call: str) -> int:
    """What a call costs in truth."""
    return zlib.crc32(call.encode()) % AMOUNT


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def die_at(statement: str, number: int) -> Callable[[str], None]:
    left = number

    def trace(executed: str) -> None:
        nonlocal left
        left -= executed.startswith(statement)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return trace


async def main(path: Path, generation: str, statement: str = "", number: str = "0") -> None:
    embedded._CHECKPOINT_EVERY = 0.0  # type: ignore[misc]
    journal.FOLDED_AT_ONCE = 20  # type: ignore[misc]
    store = embedded.EmbeddedStore(path, fold_every=0.001)
    if statement:
        for connection in store._journal._connections:
            connection.set_trace_callback(die_at(statement, int(number)))
    numbers = iter(range(10**9))

    async def lend() -> None:
        for each in numbers:
            call = f"{generation}-{each}"
            tell("asks", call)
            try:
                loan = await store.reserve(ask(call, EVERY, AMOUNT))
            except Short:
                tell("refused", call)
                await asyncio.sleep(0.001)
                continue
            tell("lent", call)
            if each % 5 == 0:
                await asyncio.sleep(0.002)
            if each % 11 == 0:
                continue  # it runs for longer than its process
            if each % 3 == 0:
                store.void(loan)
                tell("voided", call)
            else:
                store.settle(loan, cost(call), [spent(cost(call), session=call)])
                tell("settled", call)

    await asyncio.gather(*(lend() for _ in range(AT_ONCE)))


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), *sys.argv[2:]))
