"""From the operator's settings to an engine that may be put to use: read, proven in a child process, built, warmed."""

from __future__ import annotations

from collections.abc import Callable

from config.settings import OpaSettings, PolicySettings
from policies.build import build
from policies.engine import Engine
from policies.errors import PolicyError, Problem
from policies.opa import Line, OpaEngine
from policies.prove import prove


async def load(settings: PolicySettings, *, opa: Callable[[OpaSettings], Line] | None = None) -> Engine:
    """An engine for the policies that `settings` name, bound to the calling thread and its event loop.

    `opa` makes the way to an OPA server, for those who may ask one. An engine that asks it is given out whether it
    answers or not: see its `failure`. Raises PolicyError; whatever served before is untouched.
    """
    match settings.engine:
        case "embedded":
            return await _embedded(settings)
        case "opa":
            if opa is None or settings.opa is None:
                raise PolicyError([Problem("policy", None, "an OPA server is not asked here", "Name policy files.")])
            return await _asking(settings.opa, opa)


async def _embedded(settings: PolicySettings) -> Engine:
    """Holds the event loop up for a few milliseconds at a time."""
    proof = await prove(settings.paths, settings.prove_timeout)
    return await build(proof.packed, proof.reads, reuse=settings.reuse)


async def _asking(settings: OpaSettings, opa: Callable[[OpaSettings], Line]) -> Engine:
    try:
        line = opa(settings)
    except OSError as error:
        message = f"its authorities cannot be used: {error.strerror or type(error).__name__}"
        raise PolicyError([Problem("policy.opa.ca", None, message, "Name a PEM file.")]) from None
    engine = OpaEngine(line, timeout=settings.timeout)
    await engine.begin()
    return engine
