"""Which headers pass the gate, in either direction: pure functions over lists of lower-cased names and values."""

from collections.abc import Iterable

from adapters.base import Headers

_ONWARD = frozenset(
    {
        b"accept",
        b"accept-language",
        b"anthropic-beta",
        b"anthropic-version",
        b"idempotency-key",
        b"openai-beta",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-request-id",
    }
)
"""What targets need to know of a request. All else stays here: keys, cookies, addresses, internal names."""

_ONWARD_PREFIX = b"x-stainless-"
"""The SDKs' own description of themselves, which providers log."""

_ALWAYS: Headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
"""The body was read as JSON, so a target must not take it for anything else; its answer must be readable, for its token
counts."""

_PARAMETERS = frozenset({b"beta"})
"""Query parameters that targets are sent: the Anthropic SDK's switch. The policy sees no query, so no other passes."""

_STAYS = frozenset(
    {
        b"alt-svc",
        b"clear-site-data",
        b"connection",
        b"date",
        b"keep-alive",
        b"location",
        b"openai-organization",
        b"openai-project",
        b"proxy-authenticate",
        b"proxy-connection",
        b"refresh",
        b"server",
        b"set-cookie",
        b"set-cookie2",
        b"strict-transport-security",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"via",
        b"www-authenticate",
    }
)
"""What belongs to the connection between us and the target, or to the operator's account there."""


def onward(
    headers: Iterable[tuple[bytes, bytes]], credentials: Iterable[tuple[bytes, bytes]], demanded: Headers | None = None
) -> Headers:
    """The headers that a target is sent: what it may know of the request, and what is true of every one.

    Those that the policy `demanded` stand in place of the agent's of the same name.
    """
    kept = [line for line in headers if line[0] in _ONWARD or line[0].startswith(_ONWARD_PREFIX)]
    if demanded:
        kept = replaced(kept, demanded)
    kept.extend(_ALWAYS)
    kept.extend(credentials)
    return kept


def meaningful(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Those of a request's headers that go on and are no credential: what a held call is sent with later."""
    return [line for line in headers if line[0] in _ONWARD or line[0].startswith(_ONWARD_PREFIX)]


def homeward(headers: Headers) -> Headers:
    """The headers of a target's answer that its agent is sent."""
    kept: Headers = []
    hops: set[bytes] = set()
    for line in headers:
        name = line[0]
        if name not in _STAYS:
            if not name.startswith(b"x-weighbridge-"):
                kept.append(line)
        elif name == b"connection" and line[1] != b"keep-alive":
            hops.update(token.strip().lower() for token in line[1].split(b","))
    return [line for line in kept if line[0] not in hops] if hops else kept


def replaced(headers: Headers, own: Headers) -> Headers:
    """`own` in place of the lines of the same names."""
    names = dict(own)
    kept = []
    for line in headers:  # every answer comes by: a comprehension would be one more call for each
        if line[0] not in names:
            kept.append(line)
    kept += own
    return kept


def parameters(query: bytes) -> bytes:
    """The part of a query string that targets are sent."""
    return b"&".join(each for each in query.split(b"&") if each.partition(b"=")[0] in _PARAMETERS)
