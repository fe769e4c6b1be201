"""A plain HTTP tool's request becomes a call: its method and path, and what it says as arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from adapters.base import AgentCall, Endpoint, Headers, Refusal, ToolCall
from adapters.errors import MalformedCall
from adapters.untokened import Untokened

PATH: Final = "/tools/"
FREE: Final = Endpoint("call", "*", PATH, free=True)
PAID: Final = Endpoint("call", "*", PATH)

_JSON: Final[Headers] = [(b"content-type", b"application/json")]


@dataclass(slots=True)
class HttpCall(ToolCall):
    """One request. `kept` is its body as it came; `path` is below the tool's base URL and begins with a slash."""

    method: str = ""
    path: str = ""


class Http(Untokened):
    """Plain HTTP: any method and path below a tool's base URL."""

    protocol = "http"
    endpoints: tuple[Endpoint, ...] = (FREE,)

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        raise MalformedCall("A request is read where its tool is known.")

    def edited(self, call: AgentCall, body: bytes) -> AgentCall:
        raise NotImplementedError

    def status(self, refusal: Refusal) -> int:
        return refusal.status

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        headers = _JSON if refusal.retry else [*_JSON, (b"x-should-retry", b"false")]
        return headers, orjson.dumps(_error(refusal))

    def broken_stream(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(_error(refusal)) + b"\n\n"


def _error(refusal: Refusal) -> Mapping[str, Any]:
    error = {"message": refusal.message, "type": refusal.code, "param": None, "code": refusal.code}
    return {"error": {**refusal.details, **error}}
