"""The policy's input: the contract with those who write policies, rendered by splicing what is already JSON.

    {"agent": {"name", "tenant", "roles", "autonomy_tier", "state"},
     "call": {"kind", "protocol", "target", "operation", "stream", "session", "arguments", "estimated_cost_usd",
              "phase", "result"},
     "budgets": [{"node", "window", "limit_usd", "posted_usd", "pending_usd", "used_percent", "state", "mode"}],
     "approval": {...}, "time": {"unix_ns", "utc"}}

A field that does not apply is absent, never null: a rule `not input.approval` would be passed by a null.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import orjson

from policies.errors import InputRefused
from policies.money import usd_text

if TYPE_CHECKING:
    from policies.budgets import Balance

Kind = Literal["llm", "tool", "message", "environment"]
Phase = Literal["list", "result"]
"""What is asked where it is not whether a call may be made: whether what could be called may be shown, and whether what
a tool has answered may be."""

_LONGEST_CACHED: Final = 256
_NO_BUDGETS: Final = b"[]"
_UNKNOWN: Final = b""


class Money(Protocol):
    """What can be told of a call's money before it runs. It is asked only where the policy reads it."""

    def budgets(self) -> bytes:
        """How the budgets stand that pay for the call, as `budgets_document` writes them."""
        ...

    def estimated_cost(self) -> int | None:
        """What the call may cost, in nano-dollars; None where the price is not known."""
        ...


@dataclass(slots=True)
class Question:
    """One call as it is put before the policy, in parts: an engine renders of them what its policy can read.

    `agent` and `approval` are JSON texts, already checked. `body` is the call's arguments as JSON text and `arguments`
    the same, parsed. `now_ns` is in Unix nanoseconds. `money` is None for a call that costs nobody anything; it is
    asked once, so that all who read it see the same, and the record what the policy saw. `result` is what a tool has
    answered, a JSON text.
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
    money: Money | None = None
    approval: bytes | None = None
    phase: Phase | None = None
    result: bytes | None = field(default=None, repr=False)
    _budgets: bytes | None = field(default=None, init=False, repr=False, compare=False)
    _estimated: bytes | None = field(default=None, init=False, repr=False, compare=False)
    """What `money` has told; None until it is asked."""

    def budgets(self) -> bytes | None:
        """The budgets that pay for the call as JSON text, None where there are none."""
        if self._budgets is None and self.money is not None:
            self._budgets = self.money.budgets()
        return None if self._budgets == _NO_BUDGETS else self._budgets

    def estimated_cost(self) -> bytes | None:
        """What the call may cost, in dollars as JSON text; None where nobody can tell."""
        if self._estimated is None and self.money is not None:
            cost = self.money.estimated_cost()
            self._estimated = _UNKNOWN if cost is None else usd_text(cost).encode()
        return self._estimated or None

    def document(self) -> bytes:
        """The whole input as JSON text in UTF-8. Raises InputRefused."""
        self.budgets()
        self.estimated_cost()
        return self._rendered(self.body, self.result)

    def recorded(self, arguments: bytes | None) -> bytes:
        """The same with other arguments (JSON text), or without them, without a result, and with money only as far as
        it was asked for. Raises InputRefused."""
        return self._rendered(arguments, None)

    def _rendered(self, arguments: bytes | None, result: bytes | None) -> bytes:
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
            None if self._budgets == _NO_BUDGETS else self._budgets,
            self.approval,
            self._estimated or None,
            self.phase,
            result,
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
    estimated_cost: bytes | None = None,
    phase: str | None = None,
    result: bytes | None = None,
) -> bytes:
    """The whole input as JSON text in UTF-8.

    An empty `target` is none, as in a call that only lists models, and is left out.
    `agent`, `arguments`, `budgets`, `approval`, `estimated_cost` (in dollars) and `result` are JSON texts, already
    checked, and go in as they are (empty arguments as an object without members, None not at all); `target`,
    `operation` and `session` are anyone's text. `now_ns` is in Unix nanoseconds. Raises InputRefused for a text that
    UTF-8 cannot hold (a lone surrogate).
    """
    long = len(target) + len(operation) > _LONGEST_CACHED
    begun = (_call.__wrapped__ if long else _call)(kind, protocol, target, operation, stream)
    parts = [b'{"agent":', agent, begun]
    if session is not None:
        parts += (b',"session":', json_text(session))
    if arguments is not None:
        parts += (b',"arguments":', arguments or b"{}")
    if estimated_cost is not None:
        parts += (b',"estimated_cost_usd":', estimated_cost)
    if phase is not None:
        parts += (b',"phase":', json_text(phase))
    if result is not None:
        parts += (b',"result":', result)
    parts.append(b"}")
    if budgets is not None:
        parts += (b',"budgets":', budgets)
    if approval is not None:
        parts += (b',"approval":', approval)
    parts += (time_member(now_ns), b"}")
    return b"".join(parts)


def budgets_document(balances: Iterable[Balance]) -> bytes:
    """The input's `budgets` as JSON text: amounts are decimal fractions of a dollar, exact and without exponent."""
    return b"[%b]" % b",".join(map(_budget, balances))


def _budget(balance: Balance) -> bytes:
    budget = balance.account.budget
    return (
        b'{"node":%b,"window":"%b","limit_usd":%b,"posted_usd":%b,"pending_usd":%b,"used_percent":%d,"state":"%b",'
        b'"mode":"%b"}'
    ) % (
        json_text(budget.node),
        budget.window.encode(),
        usd_text(balance.limit).encode(),
        usd_text(balance.posted).encode(),
        usd_text(balance.pending).encode(),
        balance.used_percent,
        balance.state.encode(),
        budget.mode.encode(),
    )


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
