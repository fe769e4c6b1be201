"""Streams of the OpenAI API as they pass: chat completions, completions, responses."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import orjson

from adapters.base import AgentCall, Usage, member, whole
from adapters.errors import GivenUp
from adapters.handles import made
from adapters.likeness import TEXT
from adapters.meter import A_TEXT, DONE, GIVEN_UP, Meter, before_value, json_object, tokens_of
from adapters.sse import data

Reads = Callable[[Mapping[str, Any], Mapping[str, Any]], Usage | None]
"""Turns a `usage`, and the answer around it, into one of ours."""

_IN_COMMON: Final = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
"""What all chunks of a completion's stream say."""
_MOST_ANSWERS: Final = 1024
"""Answers of one stream that are ended one by one, whatever number a call names."""

# Most chunks carry these members as null; only a value matters.
_COMPLETIONS_SIGNS: Final = (
    re.compile(rb'"usage"(?!\s*:\s*null)'),
    re.compile(rb'"finish_reason"(?!\s*:\s*null)'),
    re.compile(rb'"error"(?!\s*:\s*null)'),
    re.compile(rb"\[DONE\]"),
)
_RESPONSES_SIGNS: Final = (
    re.compile(rb'"response\.(?:completed|incomplete|failed)"'),
    re.compile(rb'"error"(?!\s*:\s*null)'),
)
_RESPONSES_SIGNS_TO_CUT: Final = (
    re.compile(
        rb'"response\.(?:created|queued|in_progress|completed|incomplete|failed|output_item\.(?:added|done)'
        rb'|(?:content|reasoning_summary)_part\.(?:added|done))"'
    ),
    _RESPONSES_SIGNS[1],
)


_STRING: Final = b'"' + TEXT + b'"?+'


def _inside(depth: int) -> bytes:
    """A pattern for what stands in a JSON object or array, brackets to some depth in it; it ends where that ends."""
    inner = _STRING if depth == 0 else rb"(?:" + _STRING + rb"|[\[{]" + _inside(depth - 1) + rb"[\]}]?+)"
    return rb'[^"\[\]{}\r\n]*+(?:' + inner + rb'[^"\[\]{}\r\n]*+)*+'


# What nearly all deltas are comes first: a text alone, a piece of a tool call's arguments. Any other is taken whole,
# and taking it always succeeds, or looking for the next one would go over the same bytes again. Only a delta counts:
# some servers repeat all that has been said in every chunk, beside it.
_DELTA: Final = re.compile(
    before_value(b"delta")
    + rb"\{(?:"
    + before_value(b"content")
    + A_TEXT
    + rb'"\}|"tool_calls":\[\{"index":\d++,"function":\{"arguments":'
    + A_TEXT
    + rb'"\}\}\]\}|('
    + _inside(6)
    + rb"))"
)
_IN_DELTA: Final = re.compile(
    before_value(rb"(?:content|reasoning(?:_content)?|refusal|arguments|input|text|thinking|transcript)") + A_TEXT
)
_NOT_SAID: Final = b'"annotations"'
"""What follows this in a delta is quoted from elsewhere."""


class _Completions(Meter):
    """Usage comes in a chunk of its own, without choices, when asked for; some targets report it in every chunk.

    A stream is finished when each of its answers has a finish reason, or at the target's [DONE].
    """

    __slots__ = ("_answers", "_base", "_ended", "_finished", "_reads", "_usage_told")

    SIGNS = SIGNS_TO_CUT = _COMPLETIONS_SIGNS
    OBJECT: ClassVar[str]

    def __init__(self, call: AgentCall, reads: Reads) -> None:
        super().__init__(call, keep=call.wants_usage)
        self._reads = reads
        self._answers = answers(call.arguments)
        self._finished: set[int] = set()
        self._ended = False
        self._usage_told = False
        self._base: dict[str, Any] = {}
        """What the chunks of this stream have in common."""

    @property
    def ended(self) -> bool:
        return self._ended

    def note(self, said: bytes) -> bool:
        if said.startswith(DONE):
            self.complete = self._ended = True
        if self._ended:
            return False
        chunk = json_object(said)
        choices = chunk.get("choices")
        if chunk.get("error"):
            self.failed = True
            return False
        if chunk.get("object") == "error":
            raise GivenUp("an error that clients take for a chunk")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and (reason := choice.get("finish_reason")):
                if isinstance(reason, str) and reason in GIVEN_UP:
                    raise GivenUp("an answer that the target has given up")
                self._finished.add(whole(choice.get("index")))
        if len(self._finished) >= self._answers:
            self.complete = True
        self.reported(self._reads(member(chunk, "usage"), chunk))
        if isinstance(chunk.get("usage"), dict) and not choices:
            self._usage_told = True
            return True
        return False

    def _look(self, run: bytes) -> bytes:
        if self._may_cut and not self._base:
            self._find_base(run)
        return super()._look(run)

    def saw(self, run: bytes, texts: Sequence[bytes]) -> None:
        if not self._base:
            self._find_base(run)

    def _find_base(self, run: bytes) -> None:
        """Some streams begin with an event that is none of the answer's, and has no id."""
        for line in run.splitlines():
            chunk = json_object(data(line))
            if chunk.get("id"):
                self._base = {name: chunk[name] for name in _IN_COMMON if isinstance(chunk.get(name), str | int)}
                return

    def cut(self) -> bytes:
        if self._ended:
            return b""
        return b"".join(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in self._last_chunks()) + b"data: [DONE]\n\n"

    def ending(self) -> dict[str, Any]:
        """What the last chunk of an answer says beside its index and its finish reason."""
        raise NotImplementedError

    def _last_chunks(self) -> Iterator[dict[str, Any]]:
        base = {"id": "", "object": self.OBJECT, "created": 0, "model": self.call.target, **self._base}
        for index in range(min(self._answers, _MOST_ANSWERS)):
            if index not in self._finished:
                choice = {"index": index, **self.ending(), "logprobs": None, "finish_reason": "length"}
                yield {**base, "choices": [choice]}
        if self._keep and not self._usage_told:
            read, written = _counts(self)
            counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            yield {**base, "choices": [], "usage": counts}


class ChatMeter(_Completions):
    """Streams of chat completions."""

    OBJECT = "chat.completion.chunk"

    def texts(self, run: bytes) -> Sequence[bytes]:
        found: list[bytes] = []
        for content, arguments, other in _DELTA.findall(run):
            if text := content or arguments:
                found.append(text)
            else:
                found += _IN_DELTA.findall(other.partition(_NOT_SAID)[0])
        return found

    def ending(self) -> dict[str, Any]:
        return {"delta": {}}


class CompletionsMeter(_Completions):
    """Streams of the legacy completions."""

    OBJECT = "text_completion"
    _TEXT = re.compile(before_value(b"text") + A_TEXT)

    def __init__(self, call: AgentCall, reads: Reads) -> None:
        super().__init__(call, reads)
        if call.arguments.get("echo"):  # every answer begins with its prompt, which is no longer than the body
            self.said = -len(call.body) * self._answers

    def texts(self, run: bytes) -> Sequence[bytes]:
        return self._TEXT.findall(run)

    def ending(self) -> dict[str, Any]:
        return {"text": ""}


_AUDIO: Final = re.compile(before_value(b"type") + rb'"response\.audio\.delta"')
_SEQUENCE_NUMBER: Final = re.compile(before_value(b"sequence_number") + rb"(\d{1,15})(?!\d)")
_LIFECYCLE: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_WRITTEN_TO: Final[Mapping[str, str]] = {
    "function_call": "arguments",
    "mcp_call": "arguments",
    "custom_tool_call": "input",
    "code_interpreter_call": "code",
}
"""Type of an output item -> its member that grows by deltas, where it has no parts that do."""


class ResponsesMeter(Meter):
    """Streams of responses.

    What a `.done` event says was said by deltas before. The last event of a stream repeats the whole output: where the
    stream may be cut, the finished items are kept for it, and the text of the one that is being written.
    """

    __slots__ = ("_index", "_item", "_items", "_last", "_list", "_made", "_part", "_reads", "_response", "_text")

    _TEXT = re.compile(before_value(b"delta") + A_TEXT)
    KEEPS_TEXT = True
    SIGNS = _RESPONSES_SIGNS
    SIGNS_TO_CUT = _RESPONSES_SIGNS_TO_CUT

    def __init__(self, call: AgentCall, reads: Reads) -> None:
        super().__init__(call)
        self._reads = reads
        self._made: Sequence[str] = ()
        self._response: Mapping[str, Any] = {}
        self._items: list[Mapping[str, Any]] = []
        self._item: dict[str, Any] | None = None
        self._index = 0
        self._part: dict[str, Any] | None = None
        self._list = "content"
        """The member of the open item that the open part belongs to."""
        self._text = bytearray()
        """Of the open part or item, as a JSON string's content."""
        self._last = b""
        """The events that passed last."""

    @property
    def made(self) -> Sequence[str]:
        """Those of the last event, which repeats the whole; of a stream that was cut, what its first one told."""
        return self._made or made(self._response)

    def texts(self, run: bytes) -> Sequence[bytes]:
        found = self._TEXT.findall(run)
        if found and _AUDIO.search(run) is not None:  # sound, in base64
            return [text for line in run.splitlines() if not _AUDIO.search(line) for text in self._TEXT.findall(line)]
        return found

    def feed(self, piece: bytes) -> bytes:
        run = super().feed(piece)
        if run and self._may_cut:
            self._last = run
        return run

    def saw(self, run: bytes, texts: Sequence[bytes]) -> None:
        for text in texts:
            self._text += text

    def note(self, said: bytes) -> bool:
        event = json_object(said)
        kind = event.get("type")
        if type(kind) is not str:
            kind = ""
        if kind in _TERMINAL:
            self.complete = True
            self.failed = kind == "response.failed"
            response = member(event, "response")
            self._made = made(response)
            self.reported(self._reads(member(response, "usage"), response))
        elif kind == "error" or event.get("error"):
            self.failed = True
        elif self._may_cut:
            self._keep_track(kind, event)
        return False

    def _keep_track(self, kind: str, event: Mapping[str, Any]) -> None:
        """Keeps what the output is made of so far. Items, and parts of them, are written one after the other."""
        if kind in _LIFECYCLE:
            self._response = member(event, "response")
        elif kind == "response.output_item.added":
            self._finish_item()
            self._item = dict(member(event, "item"))
            self._index = whole(event.get("output_index"))
        elif kind == "response.output_item.done":
            self._items.append(member(event, "item"))
            self._item = self._part = None
            self._text.clear()
        elif kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
            self._finish_part()
            self._part = dict(member(event, "part"))
            self._list = "content" if kind == "response.content_part.added" else "summary"
        elif kind in ("response.content_part.done", "response.reasoning_summary_part.done"):
            self._part = dict(member(event, "part"))
            self._text.clear()
            self._finish_part()

    def _finish_part(self) -> None:
        text, self._text = _unquoted(self._text), bytearray()
        item, part, self._part = self._item, self._part, None
        if item is None:
            return
        if part is not None:
            if text:
                part["refusal" if part.get("type") == "refusal" else "text"] = text
            before = item.get(self._list)
            item[self._list] = [*(before if isinstance(before, list) else ()), part]
        elif text and (name := _WRITTEN_TO.get(str(item.get("type")))):
            item[name] = text

    def _finish_item(self) -> None:
        self._finish_part()
        if self._item is not None:
            self._items.append({**self._item, "status": "incomplete"})
            self._item = None

    def cut(self) -> bytes:
        if self.complete:
            return b""
        opened = self._item is not None
        self._finish_item()
        try:
            return self._end(opened)
        except TypeError:  # nested deeper than what can be written
            self._items, self._response = [], {}
            return self._end(False)

    def _end(self, opened: bool) -> bytes:
        """The last events; where an item was open, it is the last one."""
        ends: list[dict[str, Any]] = []
        if opened:
            ends.append({"type": "response.output_item.done", "output_index": self._index, "item": self._items[-1]})
        read, written = _counts(self)
        response = {
            "object": "response",
            "model": self.call.target,
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": self._items,
            "usage": {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + written,
            },
        }
        ends.append({"type": "response.incomplete", "response": response})
        numbers = _SEQUENCE_NUMBER.findall(self._last)
        following = int(numbers[-1]) + 1 if numbers else 0
        return b"".join(
            b"event: %b\ndata: %b\n\n" % (end["type"].encode(), orjson.dumps({**end, "sequence_number": number}))
            for number, end in enumerate(ends, following)
        )


def _unquoted(text: bytearray) -> str:
    try:
        said = orjson.loads(b'"' + text + b'"')
    except orjson.JSONDecodeError:
        return text.decode(errors="replace")
    return said if isinstance(said, str) else ""


def _counts(meter: Meter) -> tuple[int, int]:
    """(input, output) tokens to tell an agent whose stream is cut; what nobody has reported is estimated."""
    usage = meter.spent()
    return usage.input_tokens or tokens_of(len(meter.call.body)), usage.output_tokens


def answers(arguments: Mapping[str, Any]) -> int:
    """How many answers one stream interleaves: `n` for every prompt. A prompt is a text, or a list of tokens."""
    prompt = arguments.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (whole(arguments.get("n")) or 1)
