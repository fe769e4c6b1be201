"""The trace that a call belongs to, as W3C Trace Context writes it in `traceparent`: pure functions."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Trace:
    """`trace_id` (32 hexadecimal digits), the `span_id` of the caller (16), and the flags."""

    trace_id: str
    span_id: str
    flags: int

    def sampled(self) -> Trace:
        return Trace(self.trace_id, self.span_id, self.flags | _SAMPLED)

    def header(self) -> bytes:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}".encode()


def read(traceparent: bytes | None) -> Trace | None:
    """What a `traceparent` says; None for none, and for one that the specification wants ignored."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more) or not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return Trace(trace_id.decode(), span_id.decode(), int(flags, 16))


def begin() -> Trace:
    """A trace that begins here."""
    return Trace(secrets.token_hex(16), secrets.token_hex(8), 0)
