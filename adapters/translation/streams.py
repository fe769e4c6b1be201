"""Streams of a target as those of the other protocol, event by event."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from adapters.anthropic import Anthropic
from adapters.base import AgentCall, Usage, member
from adapters.errors import GivenUp
from adapters.meter import DONE, json_object
from adapters.openai import OpenAI
from adapters.sse import Framing, data, events
from adapters.translation.answers import (
    as_message_error,
    chat_counts,
    chat_error,
    declined,
    ended,
    finish_reason,
    message_counts,
    stop_reason,
    tool_id,
)
from adapters.translation.reading import Json, written
from adapters.translation.words import ANTHROPIC_ERRORS_IN_STREAMS, error_type

_OPENAI: Final = OpenAI()
_ANTHROPIC: Final = Anthropic()
_COMMENT: Final = b": ping\n\n"
_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_COLON: Final = ord(":")
_STOP: Final = ("stop_reason", "stop_details")


class _Converter:
    """What both directions have in common: whole events in, whole events out."""

    __slots__ = ("_framing", "_over", "call")

    ALIVE: bytes
    """Says nothing but that the stream still goes."""

    def __init__(self, call: AgentCall) -> None:
        self.call = call
        self._framing = Framing()
        self._over = False
        """Nothing follows an error, or the end."""

    def feed(self, piece: bytes) -> bytes:
        run = self._framing.whole(piece)
        if not run:
            return b""
        told = []
        for start, _, said in events(run):
            if self._over:
                break
            if said:
                told.append(self.convert(said))
            elif run[start] == _COLON:
                told.append(self.ALIVE)
        return b"".join(told)

    def rest(self) -> bytes:
        _, torn = self._framing.rest()
        said = data(torn)
        if self._over or not (said.startswith(DONE) or json_object(said)):
            return b""
        return self.convert(said)

    def convert(self, said: bytes) -> bytes:
        """What one event's data is in the other protocol. Raises ValueError."""
        raise NotImplementedError


class ChatConverter(_Converter):
    """Messages, as streamed by Anthropic, to chat completion chunks made at `now`, in Unix seconds.

    The finish reason is told where the message stops, and not before: it is the sign of a finished answer there.
    """

    __slots__ = ("_before", "_counts", "_now", "_stop", "_tools", "_wordless")

    ALIVE = _COMMENT

    def __init__(self, call: AgentCall, now: int) -> None:
        super().__init__(call)
        self._now = now
        self._before = b""
        """What all chunks begin with; empty before the first."""
        self._counts: Json = {}
        self._stop: Json = {}
        self._tools: dict[object, int] = {}
        """Index of a tool's block -> the number of its call."""
        self._wordless: set[object] = set()
        """Indices of tools' blocks that are open and have said nothing."""

    def convert(self, said: bytes) -> bytes:
        if said.startswith(DONE):  # some servers that are like Anthropic's end with it
            return b""
        event = orjson.loads(said)
        if type(event) is not dict:
            raise ValueError("an event that is no object")
        kind = event.get("type")
        if kind == "content_block_delta":  # nearly all are
            return self._delta(event)
        match kind:
            case "content_block_start":
                return self._start_of_block(event)
            case "content_block_stop":
                return self._end_of_block(event)
            case "message_start":
                return self._start(member(event, "message"))
            case "message_delta":
                told = member(event, "delta")
                self._stop |= {name: told[name] for name in _STOP if told.get(name) is not None}
                # Some servers repeat only a part of the counts here and send the others as null or 0.
                self._counts.update({name: count for name, count in member(event, "usage").items() if count})
                return b""
            case "message_stop":
                return self._end()
            case "ping":
                return _COMMENT
            case "error":
                self._over = True
                return _chunk(chat_error(said, 500))
            case _:
                return b""

    def _start(self, message: Mapping[str, Any]) -> bytes:
        if self._before:
            return b""
        self._counts.update(member(message, "usage"))
        name, model = message.get("id"), message.get("model")
        head = {
            "id": name if type(name) is str else "",
            "object": "chat.completion.chunk",
            "created": self._now,
            "model": model if type(model) is str else self.call.target,
        }
        self._before = b"data: " + orjson.dumps(head)[:-1] + b',"choices":[{"index":0,"delta":'
        return self._told(b'{"role":"assistant","content":""}')

    def _told(self, delta: bytes, finish: bytes = b"null") -> bytes:
        begun = b"" if self._before else self._start({})
        return begun + self._before + delta + b',"logprobs":null,"finish_reason":' + finish + b"}]}\n\n"

    def _delta(self, event: Mapping[str, Any]) -> bytes:
        delta = event.get("delta")
        if type(delta) is dict and delta.get("type") == "text_delta" and type(text := delta.get("text")) is str:
            return self._told(b'{"content":' + orjson.dumps(text) + b"}") if text else b""
        match delta:
            case {"type": "thinking_delta", "thinking": str(text)}:
                return self._told(b'{"reasoning_content":%b}' % orjson.dumps(text)) if text else b""
            case {"type": "input_json_delta", "partial_json": str(text)}:
                return self._arguments(event.get("index"), text) if text else b""
            case {"type": "signature_delta" | "citations_delta"}:
                return b""
            case _:
                raise ValueError("a delta that has no counterpart")

    def _arguments(self, index: object, text: str) -> bytes:
        number = self._tools.get(index) if type(index) is int else None
        if number is None:
            raise ValueError("arguments of no tool")
        self._wordless.discard(index)
        function = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}'
        return self._told(function % (number, orjson.dumps(text)))

    def _start_of_block(self, event: Mapping[str, Any]) -> bytes:
        index = event.get("index")
        match event.get("content_block"):
            case {"type": "text", "text": str(text)}:
                return self._told(b'{"content":%b}' % orjson.dumps(text)) if text else b""
            case {"type": "thinking", "thinking": str(text)}:
                return self._told(b'{"reasoning_content":%b}' % orjson.dumps(text)) if text else b""
            case {"type": "redacted_thinking"}:
                return b""
            case {"type": "tool_use", "id": str(call_id), "name": str(name), **more} if type(index) is int:
                if index in self._tools:
                    raise ValueError("two blocks of the same number")
                number = self._tools[index] = len(self._tools)
                given = more.get("input")
                arguments = written(given).decode() if isinstance(given, dict) and given else ""
                if not arguments:
                    self._wordless.add(index)
                function = {"name": name, "arguments": arguments}
                called = {"index": number, "id": call_id, "type": "function", "function": function}
                return self._told(orjson.dumps({"tool_calls": [called]}))
            case _:
                raise ValueError("a block that has no counterpart")

    def _end_of_block(self, event: Mapping[str, Any]) -> bytes:
        """Clients of OpenAI's read the arguments of a tool as JSON, and so even none must be some."""
        index = event.get("index")
        return self._arguments(index, "{}") if type(index) is int and index in self._wordless else b""

    def _end(self) -> bytes:
        self._over = True
        told = b""
        if (why := declined(self._stop)) is not None:
            told = self._told(b'{"refusal":%b}' % orjson.dumps(why))
        told += self._told(b"{}", orjson.dumps(finish_reason(self._stop.get("stop_reason"))))
        if (usage := _ANTHROPIC.usage(self.call, written({"usage": self._counts}))) is not None:
            # All chunks begin alike, up to the choices.
            head = self._before[: self._before.rindex(b',"choices":[')]
            told += b'%b,"choices":[],"usage":%b}\n\n' % (head, orjson.dumps(chat_counts(usage)))
        return told + b"data: [DONE]\n\n"


class MessagesConverter(_Converter):
    """Chat completion chunks to messages, as streamed by Anthropic.

    A message is closed at [DONE], or where a stream that has told its finish reason ends without it: token counts come
    between the two. Blocks follow one another there, so one that begins closes the one before.
    """

    __slots__ = (
        "_answer_id",
        "_finish",
        "_head",
        "_index",
        "_kind",
        "_refused",
        "_seen",
        "_started",
        "_tool",
        "_usage",
    )

    ALIVE = _PING

    def __init__(self, call: AgentCall) -> None:
        super().__init__(call)
        self._started = False
        self._answer_id = ""
        self._index = -1
        """Of the last block."""
        self._kind = ""
        """Of the open block: text, thinking, tool_use; empty while none is open."""
        self._head = b""
        """What deltas of the open block begin with, up to their text."""
        self._tool: object = None
        """What the target calls the tool call that is being written."""
        self._seen: set[object] = set()
        """What it has called all of them so far."""
        self._finish: Mapping[str, Any] = {}
        """The choice with the finish reason."""
        self._refused = False
        self._usage: Usage | None = None

    def convert(self, said: bytes) -> bytes:
        if said.startswith(DONE):
            if self._started and self._index < 0 and not self._finish:
                raise GivenUp("an end without an answer")
            return self._end() if self._started else b""
        chunk = orjson.loads(said)
        if type(chunk) is not dict:
            raise ValueError("an event that is no object")
        if error := chunk.get("error"):
            self._over = True
            return _event("error", _error(said, error))
        if chunk.get("object") == "error":
            raise GivenUp("an error that is written like a chunk")
        if chunk.get("usage"):
            self._usage = _OPENAI.usage(self.call, said) or self._usage
        choices = chunk.get("choices")
        if not choices:
            return b""
        choice = choices[0] if type(choices) is list else None
        if type(choice) is not dict:
            raise ValueError("a choice that is no object")
        begun = b"" if self._started else self._start(chunk)
        if choice.get("index"):  # only one answer was asked for
            return begun
        delta = choice.get("delta")
        if type(delta) is dict:
            begun += self._delta(delta)
        elif delta is not None:
            raise ValueError("a delta that is no object")
        if ended(choice):
            self._finish = choice
        return begun

    def rest(self) -> bytes:
        told = super().rest()
        return told if self._over or not self._finish else told + self._end()

    def _start(self, chunk: Mapping[str, Any]) -> bytes:
        self._started = True
        name, model = chunk.get("id"), chunk.get("model")
        self._answer_id = name if type(name) is str else ""
        message: Json = {
            "id": self._answer_id,
            "type": "message",
            "role": "assistant",
            "model": model if type(model) is str else self.call.target,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": message_counts(self._usage or Usage()),
        }
        return _event("message_start", {"type": "message_start", "message": message})

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        told = b""
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            told += self._text("thinking", thought)
        if content := delta.get("content"):
            told += self._text("text", content)
        if refusal := delta.get("refusal"):
            self._refused = True
            told += self._text("text", refusal)
        if calls := delta.get("tool_calls"):
            if type(calls) is not list:
                raise ValueError("tool calls that are no list")
            for each in calls:
                told += self._call(each)
        return told

    def _text(self, kind: str, text: object) -> bytes:
        if type(text) is not str:
            raise ValueError("a text that is none")
        begun = b""
        if self._kind != kind:
            block = {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}
            begun = self._open(kind, block, f'"type":"{kind}_delta","{kind}":')
        return b"%b%b%b}}\n\n" % (begun, self._head, orjson.dumps(text))

    def _call(self, called: object) -> bytes:
        if type(called) is not dict:
            raise ValueError("a tool call that is no object")
        function = member(called, "function")
        number, call_id = called.get("index"), called.get("id")
        # Some servers do not number their calls; then an id begins a new one.
        key: object = number if type(number) is int else (call_id if type(call_id) is str and call_id else self._tool)
        begun = b""
        if self._kind != "tool_use" or key != self._tool:
            if key in self._seen or key is None:
                raise ValueError("tool calls that are written at the same time")
            name = function.get("name")
            if type(name) is not str or not name:
                raise ValueError("a tool call without a name")
            given = tool_id(call_id, self._answer_id, len(self._seen))
            self._seen.add(key)
            self._tool = key
            block = {"type": "tool_use", "id": given, "name": name, "input": {}}
            begun = self._open("tool_use", block, '"type":"input_json_delta","partial_json":')
        arguments = function.get("arguments")
        if not arguments:
            return begun
        if type(arguments) is not str:
            raise ValueError("arguments that are no text")
        return b"%b%b%b}}\n\n" % (begun, self._head, orjson.dumps(arguments))

    def _open(self, kind: str, block: Json, head: str) -> bytes:
        closed = self._close()
        self._kind = kind
        self._index += 1
        self._head = (
            f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._index},"delta":{{{head}'
        ).encode()
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return closed + _event("content_block_start", start)

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        self._kind = ""
        return _event("content_block_stop", {"type": "content_block_stop", "index": self._index})

    def _end(self) -> bytes:
        self._over = True
        reason, sequence = stop_reason(self.call, self._finish, bool(self._seen), self._refused)
        return b"".join(
            (
                self._close(),
                _event(
                    "message_delta",
                    {
                        "type": "message_delta",
                        "delta": {"stop_reason": reason, "stop_sequence": sequence},
                        "usage": message_counts(self._usage or Usage()),
                    },
                ),
                _event("message_stop", {"type": "message_stop"}),
            )
        )


def _chunk(value: Json) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)


def _event(name: str, value: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(value))


def _error(said: bytes, error: object) -> Json:
    """An error inside of a stream: the status that goes with it is what some servers give as its code."""
    told = member({"error": error}, "error")
    code, kind = told.get("code"), told.get("type")
    status = code if type(code) is int and 400 <= code <= 599 else 0
    known = ANTHROPIC_ERRORS_IN_STREAMS.get(kind) if type(kind) is str else None
    message = error if type(error) is str else told.get("message")
    if type(message) is not str or not message:
        message = "The target reported an error inside its stream."
    return as_message_error(message[:2000], error_type(status) if status else known or "api_error", code)
