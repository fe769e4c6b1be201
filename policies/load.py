"""From the operator's settings to an engine that may be put to use: read, proven in a child process, built, warmed."""

from __future__ import annotations

from config.settings import PolicySettings
from policies.build import build
from policies.engine import Engine
from policies.errors import PolicyError, Problem
from policies.prove import prove


async def load(settings: PolicySettings) -> Engine:
    """An engine for the policies that `settings` name, bound to the calling thread and its event loop.

    Raises PolicyError; whatever served before is untouched.
    """
    match settings.engine:
        case "embedded":
            return await _embedded(settings)
        case "opa":
            raise PolicyError([Problem("policy", None, "an OPA server cannot be asked yet", "Write engine: embedded.")])


async def _embedded(settings: PolicySettings) -> Engine:
    """Holds the event loop up for a few milliseconds at a time."""
    proof = await prove(settings.paths, settings.prove_timeout)
    return await build(proof.packed)
