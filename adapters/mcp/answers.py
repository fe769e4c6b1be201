"""How the gateway itself answers an MCP message: a refusal that the model sees, or a JSON-RPC error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from adapters.base import AgentCall, Endpoint, Headers, Refusal
from adapters.errors import MalformedCall
from adapters.mcp.messages import FREE, McpCall, edited, unread
from adapters.untokened import Untokened

_JSON: Final[Headers] = [(b"content-type", b"application/json")]
_BEFORE_THE_MESSAGE: Final = frozenset({401, 404, 405, 408, 413, 421})
"""Statuses that clients act on by themselves, or that say that no message was read."""


class Mcp(Untokened):
    """MCP before a message is read; `Answering` is the same with one to answer."""

    protocol = "mcp"
    endpoints: tuple[Endpoint, ...] = (FREE,)

    def __init__(self, call: McpCall | None = None, waits: bytes = b"", hint: str = "") -> None:
        """`waits` is the member of a message that says, in the client's own words, that its call waits for people,
        `hint` what a refusal by the policy needs besides to be understood."""
        self._call = call
        self._waits = waits
        self._hint = hint

    def answering(self, call: McpCall) -> Mcp:
        """The adapter of the exchange that this message began."""
        return Mcp(call)

    def answering_to(self, identity: bytes) -> Mcp:
        """The same for a message of which only its id could be read, a JSON text."""
        return Mcp(unread(identity))

    def waiting(self, said: bytes) -> Mcp:
        """The same, where that a call waits is told by this member of a message."""
        return Mcp(self._call, said, self._hint)

    def hinting(self, said: str) -> Mcp:
        """The same, where a refusal by the policy ends in these words."""
        return Mcp(self._call, self._waits, said)

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        raise MalformedCall("A message is read where its server is known.")

    def edited(self, call: AgentCall, body: bytes) -> AgentCall:
        assert isinstance(call, McpCall), "whoever speaks MCP makes such calls"
        return edited(call, body)

    def status(self, refusal: Refusal) -> int:
        if refusal.breach is not None:
            return refusal.breach.status
        if self._call is None or not self._call.id or refusal.status in _BEFORE_THE_MESSAGE:
            return refusal.status
        return 200

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        return _JSON, self._message(refusal)

    def broken_stream(self, refusal: Refusal) -> bytes:
        return b"event: message\ndata: " + self._message(refusal) + b"\n\n"

    def _message(self, refusal: Refusal) -> bytes:
        call = self._call
        if self._hint and refusal.code == "policy_denied" and refusal.breach is None:
            refusal = replace(refusal, message=f"{refusal.message} {self._hint}")
        identity = call.id if call is not None and call.id else b"null"
        if self._waits and refusal.code == "approval_pending":
            return b'{"jsonrpc":"2.0","id":%s,%s}' % (identity, self._waits)
        if call is not None and call.method == "tools/call" and refusal.breach is None:
            result = refused(refusal, modern=call.era == "modern")
            return b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (identity, orjson.dumps(result))
        about = _about(refusal)
        error: dict[str, Any] = {"code": refusal.status, "message": refusal.message, "data": about}
        if refusal.breach is not None:
            error["code"] = refusal.breach.code
            if refusal.breach.data is not None:
                error["data"] = refusal.breach.data
        return b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (identity, orjson.dumps(error))


def refused(refusal: Refusal, *, modern: bool) -> dict[str, Any]:
    """The result of a tool's call that was refused: the model reads its text."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": refusal.message}], "isError": True}
    if modern:
        result["resultType"] = "complete"
    return {**result, "_meta": {"weighbridge/refusal": _about(refusal)}}


def _about(refusal: Refusal) -> Mapping[str, Any]:
    return {"code": refusal.code, "call": refusal.call_id, **refusal.details}
