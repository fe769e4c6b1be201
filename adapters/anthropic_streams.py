"""Streams of the Anthropic API as they pass: messages."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from adapters.base import AgentCall, Usage, member
from adapters.meter import A_TEXT, SPACE, Meter, before_value, json_object

_SIGNS: Final = (re.compile(rb'"message_(?:start|delta|stop)"'), re.compile(rb'"error"'))
_DELTA: Final = re.compile(
    before_value(b"delta")
    + rb"\{(?:"
    + SPACE
    + before_value(b"type")
    + rb'"[a-z_]*+"'
    + SPACE
    + rb",)?+"
    + SPACE
    + before_value(rb"(?:text|thinking|partial_json|content)")
    + A_TEXT
)
"""A delta that carries text, which is one member of it. Citations and signatures have texts of others."""
_INPUT_COUNTS: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class MessagesMeter(Meter):
    """Usage starts in message_start and ends in message_delta, whose counts are cumulative."""

    __slots__ = ("_counts", "_open", "_reads", "_reason_told")

    SIGNS = _SIGNS
    SIGNS_TO_CUT = (*_SIGNS, re.compile(rb'"content_block_st(?:art|op)"'))

    def __init__(self, call: AgentCall, reads: Callable[[Mapping[str, Any]], Usage | None]) -> None:
        """`reads` turns a reported `usage` into one of ours."""
        super().__init__(call)
        self._reads = reads
        self._counts: dict[str, Any] = {}
        self._open: dict[int, None] = {}
        """Indices of the content blocks that have begun and not ended."""
        self._reason_told = False

    def texts(self, run: bytes) -> Sequence[bytes]:
        return _DELTA.findall(run)

    def note(self, said: bytes) -> bool:
        event = json_object(said)
        match event:
            case {"type": "message_start", "message": {"usage": dict(reported)}}:
                self._counts.update(reported)
                self.reported(self._reads(self._counts), covers=False)
            case {"type": "message_delta"}:
                self._reason_told = self._reason_told or bool(member(event, "delta").get("stop_reason"))
                if counts := member(event, "usage"):
                    # Some servers repeat only a part of the counts here and send the others as null or 0.
                    self._counts.update({name: count for name, count in counts.items() if count})
                    self.reported(self._reads(self._counts))
            case {"type": "message_stop"}:
                self.complete = True
            case {"type": "error"}:
                self.failed = True
            case {"type": "content_block_start", "index": int(index)}:
                self._open[index] = None
            case {"type": "content_block_stop", "index": int(index)}:
                self._open.pop(index, None)
        return False

    def cut(self) -> bytes:
        if self.complete:
            return b""
        ends: list[dict[str, Any]] = [{"type": "content_block_stop", "index": index} for index in self._open]
        if not self._reason_told:
            counts = {name: self._counts[name] for name in _INPUT_COUNTS if isinstance(self._counts.get(name), int)}
            counts["output_tokens"] = self.spent().output_tokens
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            ends.append({"type": "message_delta", "delta": delta, "usage": counts})
        ends.append({"type": "message_stop"})
        return b"".join(b"event: %b\ndata: %b\n\n" % (end["type"].encode(), orjson.dumps(end)) for end in ends)
