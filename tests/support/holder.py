"""A process that has calls approved, runs and answers them as fast as it can and tells each step, to be killed; see
test_embedded_approval_crashes.

python -m tests.support.holder FILE GENERATION [STATEMENT NUMBER]

Kills itself right before the NUMBERth statement that begins with STATEMENT, where these are given.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import uvloop

from gateway.state import approvals, embedded
from policies.approval_store import Answer
from policies.approvals import Approval, claimed, finished, superseded
from tests.gateway.state.approvals_suite import LEASE, NOW, SECOND, approval, approved, grant, message
from tests.support.lender import die_at, tell

AT_ONCE = 6


def held(which: str) -> Approval:
    """The call of this name, as it is held."""
    return approval(id=f"apr_{which}", call_id=f"call of {which}", key=f"key of {which}", binding=which)


def life(which: str) -> list[Approval]:
    """Its versions, one after the other."""
    first = held(which)
    given = approved(first)
    claim = claimed(given, f"call of {which}", LEASE, NOW + 2 * SECOND)
    return [first, given, claim, finished(claim, claim.call_id, NOW + 3 * SECOND)]


def answer(which: str) -> Answer:
    return Answer(200, (), f"answer of {which}".encode())


async def main(path: Path, generation: str, statement: str = "", number: str = "0") -> None:
    embedded._CHECKPOINT_EVERY = 0.0  # type: ignore[misc]
    budgets = embedded.EmbeddedStore(path, fold_every=0.001)
    store = approvals.EmbeddedApprovals(budgets, lambda: NOW)
    if statement:
        for connection in budgets.journal._connections:
            connection.set_trace_callback(die_at(statement, int(number)))
    numbers = iter(range(10**9))
    allowed = replace(grant(), id=f"grt_{generation}")
    await store.grant(allowed)
    tell("granted", generation)

    async def hold() -> None:
        for each in numbers:
            which = f"{generation}-{each:06d}"
            first, *others = life(which)
            tell("tries", which, 1)
            await store.open(first, [message(id=f"msg_{which}-1")])
            tell("done", which, 1)
            if each % 7 == 0:
                fresh = replace(held(f"{which}-b"), instead_of=first.id)
                tell("tries", which, "superseded")
                await store.supersede(superseded(first, fresh, NOW), fresh, [message(id=f"msg_{which}-b")])
                tell("done", which, "superseded")
                continue
            for after in others:
                if each % 5 == 0 and after.version == 3:
                    break  # it waits for longer than its process lives
                tell("tries", which, after.version)
                note = message(id=f"msg_{which}-{after.version}")
                await store.replace(after, [note], answer=answer(which) if after.version == 4 else None)
                tell("done", which, after.version)
            await store.use(allowed.id, which, 1)
            tell("used", which)
            await store.delivered(f"msg_{which}-1")
            tell("delivered", which)

    await asyncio.gather(*(hold() for _ in range(AT_ONCE)))


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), *sys.argv[2:]))
