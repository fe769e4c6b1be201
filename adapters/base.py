"""The one shape in which a call of any protocol reaches the policy, and the promises an adapter makes about it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import orjson

Headers = list[tuple[bytes, bytes]]
Kind = Literal["llm", "tool", "message", "environment"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of a protocol on the data plane.

    `path` is where agents call it; `suffix` is what follows the target's base URL. An endpoint that is `answered_here`
    needs no target: the gateway knows the answer. One that is `free` costs nothing, whoever answers. What is made at
    one that `keeps` can be referred to in later calls, as long as these go to the same target. What comes to one that
    `passes` is the protocol's own (a handshake, a question for news): nobody decides on it. `method` is `*` where a
    protocol has a use for several.
    """

    operation: str
    method: str
    path: str
    suffix: str = ""
    streams: bool = False
    answered_here: bool = False
    free: bool = False
    keeps: bool = False
    passes: bool = False


@dataclass(slots=True)
class AgentCall:
    """What an agent asks: `body` in bytes, as policy and target get it, and `arguments`, the same parsed.

    `stream` is None where the question does not arise. `wants_usage` is False when the agent streams without asking
    for token counts, which the gateway then asks for itself and keeps to itself.
    """

    kind: Kind
    protocol: str
    target: str
    operation: str
    stream: bool | None
    arguments: dict[str, Any] = field(repr=False)
    body: bytes = field(repr=False)
    endpoint: Endpoint
    wants_usage: bool = True


@dataclass(slots=True)
class ToolCall(AgentCall):
    """A call of a tool, whose protocol wraps the arguments in something more: `body` has the arguments alone.

    `kept` is what people are shown and approve, and what the call can be read from again; `headers` are those of the
    request that are part of it.
    """

    kept: bytes = field(default=b"", repr=False)
    headers: Headers = field(default_factory=list, repr=False)
    query: bytes = b""
    definition: str = ""
    """SHA-256 of the tool's definition, as its server gives it; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A "no" on its way to an agent: the HTTP status, the code of the contract, words a model can act on.

    `retry` tells clients whether the same call may succeed later; `retry_after` when, in seconds.
    """

    status: int
    code: str
    message: str
    call_id: str
    retry: bool = False
    retry_after: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts for programs, told beside the message under a name each."""
    breach: "Breach | None" = None
    """What the call has against the rules of its protocol, where that has a number of its own for it."""


class Breach(NamedTuple):
    """A JSON-RPC error: its code, the HTTP status that belongs to it, and what a program may want to know of it."""

    code: int
    status: int
    data: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Usage:
    """What one call has used. `input_tokens` includes cached tokens and those of audio and images, `output_tokens`
    includes reasoning and audio, `cache_write_tokens` those that are kept for an hour.

    `estimated` says that nobody has reported it: the gateway has counted what passed. The searches are those that the
    target itself has made. `tier` is the target's word for the terms it bills by, empty for the usual ones.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    estimated: bool = False
    cache_write_1h_tokens: int = 0
    web_searches: int = 0
    file_searches: int = 0
    tier: str = ""


class Size(NamedTuple):
    """What a call can grow to, in tokens.

    `input_tokens` is an upper bound of what its body holds, of which `unwritten` are for what does not stand in it as a
    text, images for example; `open_ended` says that more can be read than that: a stored conversation, a document
    behind a URL, what a tool of the target's own finds. `answers` are made side by side, each of at most
    `output_tokens`: None where the call sets no limit, 0 where answers are not made of tokens. `searches` is how many
    the target itself may make; `tier` are the terms that the call asks for, empty for the usual ones. A call that
    `outlasts` its connection is worked on when nobody waits for it any more.
    """

    input_tokens: int
    open_ended: bool
    answers: int
    output_tokens: int | None
    searches: int = 0
    tier: str = ""
    unwritten: int = 0
    outlasts: bool = False


size_of: Callable[[tuple[int, bool, int, int | None, int, str, int, bool]], Size] = partial(tuple.__new__, Size)
"""A Size of all its fields. Every call has one, and the class's own constructor costs several times as much."""


class Limited(Protocol):
    """A limit on calls or tokens a minute; `policies.limits.Limit` is one."""

    @property
    def most(self) -> int: ...


class Allowance(Protocol):
    """What is left of a limit; `policies.limits.Standing` is one. `resets_in` is in seconds, until all of it is free
    again."""

    @property
    def limit(self) -> Limited: ...
    @property
    def remaining(self) -> int: ...
    @property
    def resets_in(self) -> float: ...


class StreamMeter(Protocol):
    """Watches one streamed reply go by, and says what may pass.

    Only whole events pass, so that an error event, or an end, can always be put behind what has passed.
    """

    usage: Usage | None
    """What the target has reported; with targets that report as they go, the truth so far."""
    complete: bool
    """True once the protocol's own sign of a finished answer was seen; a stream that ends without it was cut."""
    failed: bool
    """True once the target reported an error inside the stream."""
    pieces: int
    """Events so far that carried text. A token takes an event at least with nearly all servers, so there have been no
    fewer tokens than that."""
    said: int
    """Bytes of text in them, as UTF-8: content, reasoning, refusals, arguments of tool calls. Below 0 as long as it is
    the call's own text that is repeated."""
    stopped: bool
    """True after a `feed` that has stopped where `stop_beyond` says, until the next one."""

    @property
    def ended(self) -> bool:
        """True once the event has passed behind which clients read nothing: a finished answer may be without it."""
        ...

    @property
    def made(self) -> Sequence[str]:
        """As `Adapter.made`, of what has passed so far."""
        ...

    @property
    def produced(self) -> int:
        """Tokens so far, counted here: an estimate, for where nobody reports the truth."""
        ...

    def feed(self, piece: bytes) -> bytes:
        """Takes the next bytes of the target, returns those that go to the agent now (maybe none).

        Raises ValueError when one event grows beyond all reason, and GivenUp where the target ends what it has not
        finished with an event that clients take for the end of a whole answer.
        """
        ...

    def rest(self) -> bytes:
        """What may still pass when the target's stream has ended; to be called once, after the last `feed`.

        A last event that is whole but for its blank line counts, and passes with that line added: clients drop it
        otherwise. A torn one is dropped here, so that an error event can follow. Raises GivenUp as `feed` does.
        """
        ...

    def stop_beyond(self, pieces: int, said: int) -> None:
        """From now on `feed` stops behind the event with which there are more `pieces` or more `said` than this. What
        follows waits, neither counted nor noted, for the next `feed`, which may be of nothing.

        Whoever may want to `cut` the stream calls this before the first `feed`.
        """
        ...

    def cut(self) -> bytes:
        """Events that end what has passed as if it had reached its limit of tokens, so that stock clients see an
        answer that is short and nothing else; empty where the answer has ended by itself. Nothing passes after it."""
        ...

    def spent(self) -> Usage:
        """What the answer has cost so far: as reported where the target's last report covers all that has passed; else
        `estimated`, with what was reported of the input, and the output as counted here if that is more."""
        ...


OVERRIDES = ("n_predict",)
"""Members of which a protocol knows nothing, and by which a server of it goes in place of those that cap an answer's
tokens: llama.cpp's."""


class Adapter(Protocol):
    """One protocol: how its calls are read, and how it says no. No I/O."""

    @property
    def protocol(self) -> str: ...

    @property
    def endpoints(self) -> Sequence[Endpoint]: ...

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        """`argument` is what a path ending in `/` was followed by. Raises MalformedCall."""
        ...

    def edited(self, call: AgentCall, body: bytes) -> AgentCall:
        """The same call with other arguments, a JSON text. Raises MalformedCall."""
        ...

    def onward(self, call: AgentCall, model: str | None) -> bytes:
        """The body for a target that knows the model as `model`; only what must change differs from what came."""
        ...

    def token_caps(self, call: AgentCall) -> Sequence[str]:
        """The members of the arguments that can cap an answer's tokens, the one to add where there is none first;
        empty for a call that is not answered in tokens. OVERRIDES are not among them."""
        ...

    def size(self, call: AgentCall) -> Size:
        """How large the call can get, before anybody has counted."""
        ...

    def usage(self, call: AgentCall, answer: bytes) -> Usage | None:
        """Tokens reported in an unstreamed answer, or in the last few kilobytes of one; None where there are none."""
        ...

    def counted(self, call: AgentCall, answer: bytes) -> int:
        """Tokens of a whole unstreamed answer that came without their number, estimated from its texts."""
        ...

    def referred(self, call: AgentCall) -> Sequence[str]:
        """What the call brings back of what targets keep: names by which only the one that made them knows it. Asked
        at endpoints that keep something."""
        ...

    def made(self, call: AgentCall, answer: bytes) -> Sequence[str]:
        """The same of what an unstreamed answer hands out."""
        ...

    def meter(self, call: AgentCall) -> StreamMeter: ...

    def status(self, refusal: Refusal) -> int:
        """The HTTP status of a refusal: protocols that have an answer of their own for it send it with 200."""
        ...

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """Headers (with content type) and body of a refusal in the protocol's own shape."""
        ...

    def limit_headers(self, calls: Allowance | None, tokens: Allowance | None, now_ns: int) -> Headers:
        """How much is left of the limits on calls and on tokens a minute, as clients of this protocol are used to be
        told; nothing of one that is None. `now_ns` is the wall clock's."""
        ...

    def broken_stream(self, refusal: Refusal) -> bytes:
        """The event that tells an agent in the middle of a stream that no more will come."""
        ...

    def catalogue(self, models: Sequence[str], argument: str) -> bytes | None:
        """The answer of an endpoint that lists models, or of one model; None when `argument` is not among them."""
        ...


ERROR_TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""What both OpenAI and Anthropic call errors of these statuses."""


def refusal_headers(refusal: Refusal, request_id: bytes) -> Headers:
    """Both SDKs repeat a call that failed with 408, 409, 429 or 5xx, unless they are told not to.

    `request_id` is the header in which they look for what to call the exchange in their exceptions.
    """
    headers = [(b"content-type", b"application/json"), (request_id, refusal.call_id.encode())]
    return headers if refusal.retry else [*headers, (b"x-should-retry", b"false")]


MOST_TOKENS = 10**9
"""No call has as many. A target that reports more makes no sense, and must not use a budget up beyond all that can be
made good again; sums of billions of such numbers still fit the 64 bits that a record can hold."""


def whole(value: object) -> int:
    """A token count as targets report it, at most 10**9: anything but a non-negative integer counts as none."""
    if type(value) is not int or value <= 0:
        return 0
    return value if value <= MOST_TOKENS else MOST_TOKENS


def member(mapping: object, key: str) -> Mapping[str, Any]:
    """A nested object of a target's answer, empty when it is missing or something else."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return value if isinstance(value, dict) else {}


_SHORT = 8192
"""Bytes of an answer that is parsed sooner than its end is looked at."""
_TAIL = 4096
"""Bytes at the end of a longer one in which its usage is looked for first: parsing megabytes takes milliseconds."""

# Strings and brackets of a JSON text that is read backwards, where a quote is part of a text if a backslash follows.
# A string may be torn where the text begins. Every match is tried once and succeeds, so the time is linear.
_BACKWARDS = re.compile(rb'"[^"]*+(?:"\\[^"]*+)*+"?|[{}\[\]]')
_USAGE_BACKWARDS = b'"egasu"'
_COLON_BACKWARDS = re.compile(rb"\s*+:\s*+")


def reported_usage(answer: bytes) -> Mapping[str, Any]:
    """The `usage` member of an answer, or of its tail where the beginning is missing; empty when there is none."""
    short = len(answer) <= _SHORT
    if not short and (usage := _usage_in_tail(answer[-_TAIL:])):
        return usage
    try:
        parsed = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return _usage_in_tail(answer[-_TAIL:]) if short else {}
    found = parsed.get("usage") if type(parsed) is dict else None
    return found if type(found) is dict else {}


def _usage_in_tail(tail: bytes) -> Mapping[str, Any]:
    """The last `usage` that is an object and a member of the answer itself.

    Where the tail begins, inside of a text or not, nobody knows; its end is where the answer ends. So it is read from
    there, and one look is enough.
    """
    if b'"usage"' not in tail:
        return {}
    backwards = tail[::-1]
    depth = closed = opened = 0
    for found in _BACKWARDS.finditer(backwards):
        token = found.group()
        if token in (b"}", b"]"):
            depth += 1
            if depth == 2:
                closed = found.start()
        elif token in (b"{", b"["):
            depth -= 1
            if depth == 1:
                opened = found.end()
            elif depth == 0:
                break
        elif token == _USAGE_BACKWARDS and depth == 1 and _COLON_BACKWARDS.fullmatch(backwards, opened, found.start()):
            size = len(tail)
            if found.end() == size:  # the quote may be part of a text, with its backslash cut off
                break
            try:
                return member({"usage": orjson.loads(tail[size - opened : size - closed])}, "usage")
            except orjson.JSONDecodeError:
                break
    return {}
