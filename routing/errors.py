"""Why a call found no place to go."""

from typing import Final

GONE: Final = (
    "What this call refers to is kept by a target that takes no more calls. Send the conversation itself instead of a "
    "reference to an earlier answer, and without encrypted parts of one."
)
"""For a pinned call, whose place is gone: it would be invalid anywhere else."""


class NoRoute(Exception):
    """No route has a model pattern that matches, or no arm of the matching route can serve the operation."""


class WeightsRefused(Exception):
    """Weights that somebody asks for and that a route cannot have: the text says why, to a person."""


class NoHealthyTarget(Exception):
    """The route exists, but nothing on it can take a call now."""


class StoreUnavailable(Exception):
    """What gateways agree on cannot be asked or changed now; what was asked may or may not have happened."""
