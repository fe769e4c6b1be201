"""What the adapters of calls that no model answers have in common: nothing of them is counted in tokens."""

from collections.abc import Sequence
from typing import Final

from adapters.base import AgentCall, Allowance, Headers, Size, StreamMeter, Usage

_NOTHING: Final = Size(0, False, 1, 0)


class Untokened:
    """The part of `adapters.base.Adapter` that speaks of tokens, models and what targets keep of conversations."""

    def onward(self, call: AgentCall, model: str | None) -> bytes:
        return call.body

    def token_caps(self, call: AgentCall) -> Sequence[str]:
        return ()

    def size(self, call: AgentCall) -> Size:
        return _NOTHING

    def usage(self, call: AgentCall, answer: bytes) -> Usage | None:
        return None

    def counted(self, call: AgentCall, answer: bytes) -> int:
        return 0

    def referred(self, call: AgentCall) -> Sequence[str]:
        return ()

    def made(self, call: AgentCall, answer: bytes) -> Sequence[str]:
        return ()

    def meter(self, call: AgentCall) -> StreamMeter:
        raise NotImplementedError("no model answers this call")

    def limit_headers(self, calls: Allowance | None, tokens: Allowance | None, now_ns: int) -> Headers:
        return []

    def catalogue(self, models: Sequence[str], argument: str) -> bytes | None:
        return None
