"""How near an agent is to its limits, as it is told with every answer."""

from collections.abc import Iterable

from adapters.base import Adapter, Allowance, Headers
from policies.limits import Standing


def limit_headers(adapter: Adapter, standings: Iterable[Standing], now_ns: int) -> Headers:
    """The headers of its protocol for limits that stand so; none where there are no limits by the minute.

    Where several nodes limit the same, the one that has the least left. `now_ns` is the wall clock's.
    """
    calls: Standing | None = None
    tokens: Standing | None = None
    for each in standings:
        if each.limit.what == "calls_per_minute":
            if calls is None or each.remaining < calls.remaining:
                calls = each
        elif each.limit.what == "tokens_per_minute" and (tokens is None or each.remaining < tokens.remaining):
            tokens = each
    if calls is None and tokens is None:
        return []
    return adapter.limit_headers(_allowance(calls), _allowance(tokens), now_ns)


def _allowance(standing: Standing | None) -> Allowance | None:
    return Allowance(standing.limit.most, standing.remaining, standing.resets_in) if standing is not None else None
