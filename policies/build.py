"""From proven policies to a warmed engine, in slices, so that calls go on meanwhile."""

from __future__ import annotations

import asyncio
from typing import Final

import orjson

from policies.embedded import STOPS, EmbeddedEngine
from policies.engine import ENTRY
from policies.errors import PolicyError
from policies.interpreter import Clock, Interpreter, create, problem
from policies.pack import Packed, pack
from policies.reads import Reads, analyse
from policies.sources import Sources

RUNG: Final = 256 * 1024
"""Bytes of data that are freed at once when the engine retires: about a millisecond of work."""
WIDEST: Final = 20_000
"""Keys of an object that is copied for a rung; more take longer than what the rung is to save."""


async def build(policies: Packed | Sources, reads: Reads | None = None, *, reuse: bool = True) -> EmbeddedEngine:
    """An engine for these policies, warmed. They must have been proven: what kills an interpreter kills this process.

    `reads` is what they read, found out here where it is not given; `reuse` whether decisions may be used again.
    Gives way to other work between modules and slices of data. Raises PolicyError.
    """
    packed = pack(policies) if isinstance(policies, Sources) else policies
    clock = Clock()
    base = create(clock, [module.text for module in packed.modules])
    for module in packed.modules:
        try:
            base.add_policy(module.name, module.text)
        except STOPS:
            raise
        except BaseException as error:
            raise PolicyError([problem(error, module.name, "Correct the policy.")]) from None
        await asyncio.sleep(0)
    # Clones share what was there when they were made. Freed from the last to the first, each frees only what came
    # after the one before it, where dropping a single interpreter would free all data in one go.
    rungs: list[Interpreter] = []
    since = 0
    for text in packed.slices:
        base.add_data_json(text)
        since += len(text)
        if since >= RUNG and packed.widest <= WIDEST:
            rungs.append(base.clone())
            since = 0
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    warm(base)
    await asyncio.sleep(0)
    if reads is None:
        reads = analyse(orjson.loads(base.get_ast_as_json()))
    return EmbeddedEngine(base, clock, packed.revision, rungs, reads=reads, reuse=reuse, bundles=packed.bundles)


def warm(base: Interpreter) -> None:
    """Evaluates once on the empty input: a clone of an interpreter that never evaluated takes twice as long."""
    base.set_input_json("{}")
    try:
        base.eval_rule_as_json(ENTRY)
    except STOPS:
        raise
    except BaseException:  # a policy may well fail on no input; proving has judged it
        pass
