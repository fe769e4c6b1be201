"""The policy's input: the contract with those who write policies, rendered by splicing what is already JSON.

    {"agent": {"name", "tenant", "roles", "autonomy_tier", "state"},
     "call": {"kind", "protocol", "target", "operation", "stream", "session", "arguments"},
     "budgets": [...], "approval": {...}, "time": {"unix_ns", "utc"}}

A field that does not apply is absent, never null: a rule `not input.approval` would be passed by a null.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal

import orjson

from policies.errors import InputRefused

Kind = Literal["llm", "tool", "message", "environment"]

_LONGEST_CACHED: Final = 256


@dataclass(slots=True)
class Question:
    """One call as it is put before the policy, in parts: an engine renders of them what its policy can read.

    `agent`, `budgets` and `approval` are JSON texts, already checked. `body` is the call's arguments as JSON text and
    `arguments` the same, parsed. `now_ns` is in Unix nanoseconds.
    """

    agent: bytes
    kind: Kind
    protocol: str
    target: str
    operation: str
    stream: bool | None
    session: str | None
    body: bytes = field(repr=False)
    arguments: Mapping[str, Any] = field(repr=False)
    now_ns: int
    budgets: bytes | None = None
    approval: bytes | None = None

    def document(self) -> bytes:
        """The whole input as JSON text in UTF-8. Raises InputRefused."""
        return self.with_arguments(self.body)

    def with_arguments(self, arguments: bytes | None) -> bytes:
        """The same with other arguments (JSON text), or without them. Raises InputRefused."""
        return render(
            self.agent,
            self.kind,
            self.protocol,
            self.target,
            self.operation,
            self.stream,
            arguments,
            self.session,
            self.now_ns,
            self.budgets,
            self.approval,
        )


def agent_fragment(name: str, tenant: str, roles: Sequence[str], autonomy_tier: int, state: str) -> bytes:
    """The `agent` object as JSON text: made once per agent and configuration."""
    return orjson.dumps(
        {"name": name, "tenant": tenant, "roles": list(roles), "autonomy_tier": autonomy_tier, "state": state}
    )


def render(
    agent: bytes,
    kind: Kind,
    protocol: str,
    target: str,
    operation: str,
    stream: bool | None,
    arguments: bytes | None,
    session: str | None,
    now_ns: int,
    budgets: bytes | None = None,
    approval: bytes | None = None,
) -> bytes:
    """The whole input as JSON text in UTF-8.

    An empty `target` is none, as in a call that only lists models, and is left out.
    `agent`, `arguments`, `budgets` and `approval` are JSON texts, already checked, and go in as they are (empty
    arguments as an object without members, None not at all); `target`, `operation` and `session` are anyone's text.
    `now_ns` is in Unix nanoseconds. Raises InputRefused for a text that UTF-8 cannot hold (a lone surrogate).
    """
    long = len(target) + len(operation) > _LONGEST_CACHED
    begun = (_call.__wrapped__ if long else _call)(kind, protocol, target, operation, stream)
    parts = [b'{"agent":', agent, begun]
    if session is not None:
        parts += (b',"session":', json_text(session))
    if arguments is not None:
        parts += (b',"arguments":', arguments or b"{}")
    parts.append(b"}")
    if budgets is not None:
        parts += (b',"budgets":', budgets)
    if approval is not None:
        parts += (b',"approval":', approval)
    parts += (time_member(now_ns), b"}")
    return b"".join(parts)


def time_member(now_ns: int) -> bytes:
    """The input's `time`, with its name and a comma before, at `now_ns` (Unix nanoseconds)."""
    return b',"time":{"unix_ns":%d,"utc":"%bZ"}' % (now_ns, second_in_utc(now_ns // 1_000_000_000))


@lru_cache(maxsize=1024)
def _call(kind: str, protocol: str, target: str, operation: str, stream: bool | None) -> bytes:
    """The call without what is in it, not closed yet. Models and operations repeat; what is long was chosen by the
    caller and would only fill the cache."""
    parts = [b',"call":{"kind":', orjson.dumps(kind), b',"protocol":', orjson.dumps(protocol)]
    if target:
        parts += (b',"target":', json_text(target))
    parts += (b',"operation":', json_text(operation))
    if stream is not None:
        parts.append(b',"stream":true' if stream else b',"stream":false')
    return b"".join(parts)


def json_text(text: str) -> bytes:
    """A text as JSON. Raises InputRefused for what UTF-8 cannot hold."""
    try:
        return orjson.dumps(text)
    except TypeError:
        raise InputRefused("The call holds a text that is not valid Unicode.") from None


@lru_cache(maxsize=4)
def second_in_utc(second: int) -> bytes:
    """A second of Unix time as RFC 3339 writes it, but for the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
