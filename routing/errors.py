"""Why a call found no place to go."""


class NoRoute(Exception):
    """No route has a model pattern that matches, or no arm of the matching route can serve the operation."""


class NoHealthyTarget(Exception):
    """The route exists, but nothing on it can take a call now."""


class StoreUnavailable(Exception):
    """What gateways agree on cannot be asked or changed now; what was asked may or may not have happened."""
