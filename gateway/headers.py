"""Which headers pass the gate, in either direction: pure functions over lists of lower-cased names and values."""

from collections.abc import Iterable

from adapters.base import Headers

_ONWARD = frozenset(
    {
        b"accept",
        b"accept-language",
        b"anthropic-beta",
        b"anthropic-version",
        b"content-type",
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

_STAYS = frozenset(
    {
        b"alt-svc",
        b"connection",
        b"date",
        b"keep-alive",
        b"openai-organization",
        b"openai-project",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"set-cookie",
        b"strict-transport-security",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"via",
    }
)
"""What belongs to the connection between us and the target, or to the operator's account there."""


def onward(headers: Iterable[tuple[bytes, bytes]], credentials: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers that a target is sent. An unencoded answer is asked for, since its token counts must be readable."""
    kept = [line for line in headers if line[0] in _ONWARD or line[0].startswith(_ONWARD_PREFIX)]
    kept.append((b"accept-encoding", b"identity"))
    kept.extend(credentials)
    return kept


def homeward(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers of a target's answer that its agent is sent."""
    return [line for line in headers if line[0] not in _STAYS and not line[0].startswith(b"x-weighbridge-")]
