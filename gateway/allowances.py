"""How near an agent is to its limits, as it is told with every answer."""

from collections.abc import Iterable

from adapters.base import Adapter, Headers
from policies.limits import Standing


def limit_headers(adapter: Adapter, standings: Iterable[Standing], now_ns: int) -> Headers:
    """The headers of its protocol for limits that stand so; none where there are no limits by the minute.

    Where several nodes limit the same, the one that has the least left. `now_ns` is the wall clock's.
    """
    calls: Standing | None = None
    tokens: Standing | None = None
    for each in standings:
        what = each.limit.what
        if what == "calls_per_minute":
            if calls is None or each.remaining < calls.remaining:
                calls = each
        elif what == "tokens_per_minute" and (tokens is None or each.remaining < tokens.remaining):
            tokens = each
    if calls is None and tokens is None:
        return []
    return adapter.limit_headers(calls, tokens, now_ns)
