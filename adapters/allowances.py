"""How much of its limits an agent has left, in the headers that its SDK's users know."""

from functools import lru_cache
from math import ceil
from time import gmtime, strftime

from adapters.base import Allowance, Headers

_SECOND = 1_000_000_000


def openai_headers(calls: Allowance | None, tokens: Allowance | None, now_ns: int) -> Headers:
    """Whole numbers, and durations until all is free again: `20ms`, `1s`, `6m0s`."""
    headers: Headers = []
    if calls is not None:
        headers += (
            (b"x-ratelimit-limit-requests", b"%d" % calls.limit.most),
            (b"x-ratelimit-remaining-requests", b"%d" % calls.remaining),
            (b"x-ratelimit-reset-requests", duration(calls.resets_in)),
        )
    if tokens is not None:
        headers += (
            (b"x-ratelimit-limit-tokens", b"%d" % tokens.limit.most),
            (b"x-ratelimit-remaining-tokens", b"%d" % tokens.remaining),
            (b"x-ratelimit-reset-tokens", duration(tokens.resets_in)),
        )
    return headers


def anthropic_headers(calls: Allowance | None, tokens: Allowance | None, now_ns: int) -> Headers:
    """Whole numbers, and the time when all is free again, to the second: `2026-11-21T04:40:00Z`."""
    headers: Headers = []
    if calls is not None:
        headers += (
            (b"anthropic-ratelimit-requests-limit", b"%d" % calls.limit.most),
            (b"anthropic-ratelimit-requests-remaining", b"%d" % calls.remaining),
            (b"anthropic-ratelimit-requests-reset", _moment(calls.resets_in, now_ns)),
        )
    if tokens is not None:
        headers += (
            (b"anthropic-ratelimit-tokens-limit", b"%d" % tokens.limit.most),
            (b"anthropic-ratelimit-tokens-remaining", b"%d" % tokens.remaining),
            (b"anthropic-ratelimit-tokens-reset", _moment(tokens.resets_in, now_ns)),
        )
    return headers


def duration(seconds: float) -> bytes:
    """Rounded up to milliseconds below a second, and to whole seconds from there on."""
    if 0 < seconds <= 0.999:
        return b"%dms" % ceil(seconds * 1000)
    minutes, rest = divmod(ceil(seconds), 60)
    if not minutes:
        return b"%ds" % rest
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, rest) if hours else b"%dm%ds" % (minutes, rest)


def _moment(resets_in: float, now_ns: int) -> bytes:
    return _second(-(-(now_ns + int(resets_in * _SECOND)) // _SECOND))


@lru_cache(256)
def _second(second: int) -> bytes:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(second)).encode()
