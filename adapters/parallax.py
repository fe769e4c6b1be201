"""Finds the failures that targets hide behind a success, before an agent sees a byte of them. No I/O.

Parallax answers a streamed call with 200 before it asks a node, so that whatever goes wrong then comes as the body of
an event stream; stock clients take such a stream for an empty answer. Other servers do some of it as well, and put
errors into their first event, so all targets' answers are looked at alike. A stream is judged by its first event that
is more than a sign of life; a whole answer by whether it is one.

Source: GradientHQ/parallax 0.1.2, src/backend/server/{request_handler,openai_compat}.py, src/parallax/p2p/server.py.
"""

import base64
import binascii
import enum
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import orjson

from adapters.base import member
from adapters.meter import DONE, GIVEN_UP, json_object
from adapters.sse import Framing, events

MOST_HELD: Final = 64 * 1024
"""Bytes of a stream by which it has been judged."""

EVENTS: Final = b"text/event-stream"

Hidden = Literal["status", "stream_cut", "protocol"]


class Failure(NamedTuple):
    """An answer that says it succeeded and did not.

    `status` is the HTTP status that it should have had: what is hidden may tell, else 502. `kind` is what has happened:
    `status`, a refusal with that 4xx; `stream_cut`, a stream that is none or tells of an error; `protocol`, something
    that is no answer. `message` is for the operator, in the target's own words where it had some. `body` is an error
    in the protocol's own shape where the target wrote one, else empty.
    """

    status: int
    kind: Hidden
    message: str
    body: bytes = b""


class Sniffed(enum.Enum):
    """What there is to say of a stream that is no Failure."""

    UNDECIDED = enum.auto()
    SOUND = enum.auto()


UNDECIDED: Final = Sniffed.UNDECIDED
SOUND: Final = Sniffed.SOUND

Verdict = Sniffed | Failure

ENVELOPE: Final = "__parallax_http_response__"
_RAW_ERROR: Final = b"internal server error"
"""What Parallax writes where an exception has left it without anything else to say."""

_EDGE: Final = 2048
"""Bytes at either end of a long answer in which its own members stand."""
_OTHER_TYPE: Final = "the stream has another content type than a stream's"
_FIRST_ERROR: Final = "an error as the first event"
_NO_ANSWER: Final = "the stream ended without an answer"
_LONGEST_MESSAGE: Final = 300
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_BLANKS: Final = b" \t\r\n"
_CLOSED: Final = (b"}", b"}\n")
"""How nearly all JSON objects end."""
_BLANK: Final = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+")
_FIELD: Final = re.compile(rb"(?:\A|[\r\n])(?:data|event|id|retry)?:")
_NAME: Final = re.compile(rb"(?:\A|[\r\n])event: ?([^\r\n]*)")
_SIGN: Final = re.compile(rb'"(?:error|response\.failed)"(?!\s*:\s*null)')

_STATUSES: Final[Mapping[str, int]] = {
    "badrequesterror": 400,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "authenticationerror": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permissiondeniederror": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "notfounderror": 404,
    "request_too_large": 413,
    "unprocessableentityerror": 422,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "ratelimiterror": 429,
    "api_error": 500,
    "internalservererror": 500,
    "server_error": 500,
    "server_unavailable": 503,
    "serviceunavailableerror": 503,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The `code` or `type` of an error, in lower case -> the status that it comes with where none is hidden: words of
OpenAI, Anthropic, Parallax and vLLM."""


class Sniffer:
    """Judges one streamed answer by its beginning.

    Feed it what comes until it has a verdict, which stays; then `held` is all that has come, for whoever reads on. It
    decides with the first event that is whole and no mere sign of life, and within MOST_HELD bytes in any case. An
    answer of another status than 2xx hides nothing.
    """

    __slots__ = ("_framing", "_held", "_judged", "_may_hide", "_protocol", "_verdict", "_wrong_type")

    def __init__(self, protocol: str, status: int, content_type: bytes) -> None:
        """`protocol` is the target's, `openai` or `anthropic`; `content_type` is in lower case, without parameters."""
        self._protocol = protocol
        self._verdict: Verdict = UNDECIDED
        self._may_hide = 200 <= status <= 299
        self._wrong_type = content_type != EVENTS
        self._framing = Framing()
        self._held = bytearray()
        self._judged = 0
        """Bytes of signs of life."""

    @property
    def held(self) -> bytes:
        return bytes(self._held)

    def feed(self, piece: bytes) -> Verdict:
        """Takes the next bytes of the target."""
        if self._verdict is UNDECIDED:
            self._held += piece
            self._verdict = self._look(piece) if self._may_hide else SOUND
        return self._verdict

    def end(self) -> Sniffed | Failure:
        """The verdict over a stream that has ended; never UNDECIDED."""
        if self._verdict is UNDECIDED:
            self._verdict = self._last_look() if self._may_hide else SOUND
        return self._verdict

    def _look(self, piece: bytes) -> Verdict:
        begun = self._begun()
        if begun.startswith((b"{", b"[")):
            return self._json()
        if self._wrong_type and begun and not _BYTE_ORDER_MARK.startswith(begun):
            return Failure(502, "protocol", _OTHER_TYPE)
        run = self._framing.whole(piece)
        for start, end, data in events(run):
            verdict = _opened(self._protocol, _name(run[start:end]), data)
            if verdict is not UNDECIDED:
                return verdict
        if run:
            self._judged += len(run)
            begun = self._begun()
            if begun.startswith((b"{", b"[")):
                return self._json()
        if begun.startswith(_RAW_ERROR):
            return Failure(500, "stream_cut", "Internal server error")
        if len(self._held) < MOST_HELD:
            return UNDECIDED
        if _FIELD.search(self._held):
            return SOUND  # a long event, or many signs of life: a stream all the same
        return Failure(502, "stream_cut", "the stream has no events")

    def _begun(self) -> bytes:
        """The first bytes of what has not been judged."""
        blank = _BLANK.match(self._held, self._judged)
        start = blank.end() if blank else self._judged
        return bytes(self._held[start : start + len(_RAW_ERROR)])

    def _json(self) -> Verdict:
        """A JSON text where events should be: what it says is awaited."""
        kind: Hidden = "protocol" if self._wrong_type else "stream_cut"
        said = bytes(self._held[self._judged :]).removeprefix(_BYTE_ORDER_MARK).strip(_BLANKS)
        if said.endswith((b"}", b"]")) and (document := _document(said)) is not None:
            return _failure(document, said, kind, "a JSON text in place of a stream")
        if len(self._held) >= MOST_HELD:
            return Failure(502, kind, "a long JSON text in place of a stream")
        return UNDECIDED

    def _last_look(self) -> Verdict:
        rest = bytes(self._held[self._judged :]).removeprefix(_BYTE_ORDER_MARK).strip(_BLANKS)
        if self._wrong_type:
            return Failure(502, "protocol", _OTHER_TYPE)
        if rest.startswith((b"{", b"[")):
            return Failure(502, "stream_cut", "a torn JSON text in place of a stream")
        for _, _, data in events(rest + b"\n\n") if rest else ():
            # An event that is whole but for its blank line counts.
            if data.startswith(DONE) or _document(data):
                verdict = _opened(self._protocol, _name(rest), data)
                if verdict is not UNDECIDED:
                    return verdict
        return Failure(502, "stream_cut", "the stream ended before it began" if not rest else "the stream has no event")


def hidden(operation: str, status: int, content_type: bytes, body: bytes) -> Failure | None:
    """What is wrong with a whole answer that says it succeeded; None where nothing is, or where it does not say so.

    `operation` is the adapter's word for what was asked, `content_type` is in lower case, without parameters. An
    answer is not parsed where a look at its bytes is enough.
    """
    if not 200 <= status <= 299:
        return None
    is_json = content_type.endswith(b"json")
    ends = body if len(body) <= 2 * _EDGE else body[:_EDGE] + body[-_EDGE:]
    if is_json and body.endswith(_CLOSED) and _finished(operation, body) and not _may_tell(ends):
        return None
    document = _document(body)
    if document is None:
        if body.strip(_BLANKS).startswith(_RAW_ERROR):
            return Failure(500, "protocol", "Internal server error")
        return Failure(502, "protocol", "the answer is not a JSON object")
    if document.get("error") or ENVELOPE in document or "error" in (document.get("type"), document.get("object")):
        return _failure(document, body, "protocol", "an error in place of an answer")
    if (broken := _broken(document)) is not None:
        return _failure(broken, b"", "protocol", "an answer that was given up")
    if not is_json:
        return Failure(502, "protocol", "the answer has another content type than JSON")
    if body.lstrip(_BLANKS).startswith(b"["):
        return Failure(502, "protocol", "the answer is not a JSON object")
    return None if _says_something(operation, document) else _failure(document, b"", "protocol", "the answer is empty")


_FINISHED: Final[Mapping[str, tuple[bytes, re.Pattern[bytes]]]] = {
    "chat": (b'"finish_reason"', re.compile(rb'\s*:\s*"(?!error"|abort")[a-z]')),
    "completions": (b'"finish_reason"', re.compile(rb'\s*:\s*"(?!error"|abort")[a-z]')),
    "responses": (b'"status"', re.compile(rb'\s*:\s*"(?:completed|incomplete|queued|in_progress)"')),
    "embeddings": (b'"data"', re.compile(rb"\s*:\s*\[")),
    "messages": (b'"stop_reason"', re.compile(rb'\s*:\s*"[a-z]')),
    "count_tokens": (b'"input_tokens"', re.compile(rb"\s*:\s*\d")),
}
"""By operation: a member that only an answer has that got as far as its end, and what follows its name there. In texts
that a model writes quotes are escaped."""

_SAID: Final = ("content", "tool_calls", "function_call", "refusal", "reasoning_content", "reasoning", "audio")


def _finished(operation: str, body: bytes) -> bool:
    known = _FINISHED.get(operation)
    if known is None:
        return False
    name, value = known
    at = body.rfind(name)
    return at >= 0 and value.match(body, at + len(name)) is not None


def _says_something(operation: str, document: Mapping[str, Any]) -> bool:
    match operation:
        case "chat" | "completions":
            choices = document.get("choices")
            return isinstance(choices, list) and any(map(_chosen, choices))
        case "messages":
            return bool(document.get("content") or document.get("stop_reason"))
        case "responses":
            return document.get("status") != "failed" and bool(document.get("output") or document.get("status"))
        case "embeddings":
            return isinstance(document.get("data"), list)
        case "count_tokens":
            return isinstance(document.get("input_tokens"), int)
    return True


def _broken(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first of a completion's answers that was given up."""
    choices = document.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason in GIVEN_UP:
                return choice
    return None


def _chosen(choice: object) -> bool:
    """Whether one of a completion's answers says something, or says why it does not."""
    if not isinstance(choice, dict):
        return False
    message = choice.get("message")
    said = isinstance(message, dict) and any(message.get(name) for name in _SAID)
    return bool(said or choice.get("text") or choice.get("finish_reason"))


def _opened(protocol: str, name: bytes, data: bytes) -> Verdict:
    """What one event says of the stream that it opens."""
    said = data.strip(_BLANKS)
    if name == b"error":
        document = _document(said)
        if document is None:
            return Failure(502, "stream_cut", said.decode(errors="replace")[:_LONGEST_MESSAGE] or _FIRST_ERROR)
        return _failure(document, said, "stream_cut", _FIRST_ERROR)
    if not said:
        return UNDECIDED
    if said.startswith(DONE):
        return Failure(502, "protocol", _NO_ANSWER)
    if not said.startswith(b"{"):
        return Failure(502, "stream_cut", "the first event is not a JSON object")
    if protocol == "anthropic":
        if b'"ping"' in said and json_object(said).get("type") == "ping":
            return UNDECIDED
        if name == b"message_stop":
            return Failure(502, "protocol", _NO_ANSWER)
    if not _may_tell(said):
        return _named(protocol, name)
    event = json_object(said)
    kind = event.get("type")
    if kind == "response.failed":
        return _failure(member(event, "response"), b"", "stream_cut", "the response failed")
    if event.get("error") or "error" in (kind, event.get("object")):
        return _failure(event, said, "stream_cut", _FIRST_ERROR)
    return _named(protocol, name)


def _named(protocol: str, name: bytes) -> Verdict:
    """Clients of Anthropic's pass over events without a name: all of a stream, where a server writes none."""
    if protocol == "anthropic" and not name:
        return Failure(502, "protocol", "the first event has no name, without which clients do not see it")
    return SOUND


def _may_tell(said: bytes) -> bool:
    """Whether there can be an error in an event, or in an answer. Most are without, so that is what is quick."""
    return (b'"error"' in said or b'"response.failed"' in said) and _SIGN.search(said) is not None


def _name(event: bytes) -> bytes:
    found = _NAME.search(event.removeprefix(_BYTE_ORDER_MARK)) if b"event:" in event else None
    return found[1] if found else b""


def _document(said: bytes) -> dict[str, Any] | None:
    """A JSON object, or the only one of an array, as some servers write errors; None for anything else."""
    try:
        value = orjson.loads(said)
    except orjson.JSONDecodeError:
        return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else None


def _failure(document: Mapping[str, Any], said: bytes, kind: Hidden, otherwise: str) -> Failure:
    """What an error says. `said` is the text it was read from, `otherwise` the message where it has none of its own."""
    status: int | None = None
    if document.get(ENVELOPE) is True:
        status = _as_status(document.get("status_code")) or 502
        said = _unwrapped(document.get("body_base64"))
        document = _document(said) or {}
    error = document.get("error")
    status = status or _told(error) or _told(document) or 502
    if 400 <= status <= 499:
        kind = "status"
    return Failure(status, kind, (_worded(error) or _worded(document))[:_LONGEST_MESSAGE] or otherwise, _error(said))


def _error(said: bytes) -> bytes:
    """`said`, where it is an error as stock clients read one."""
    return said if isinstance(json_object(said).get("error"), dict) else b""


def _worded(error: object) -> str:
    """What an error, or the object around it, says in words."""
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""


def _told(error: object) -> int | None:
    """The HTTP status that an error names, as a number or as a word."""
    if isinstance(error, str):
        return _STATUSES.get(error.lower())
    if not isinstance(error, Mapping):
        return None
    for name in ("code", "status", "status_code", "type"):
        value = error.get(name)
        status = _as_status(value)
        if isinstance(value, str):
            status = int(value) if re.fullmatch("[45][0-9][0-9]", value) else _STATUSES.get(value.lower())
        if status is not None:
            return status
    return None


def _as_status(value: object) -> int | None:
    return value if type(value) is int and 400 <= value <= 599 else None


def _unwrapped(body: object) -> bytes:
    try:
        return base64.b64decode(body, validate=True).strip(_BLANKS) if isinstance(body, str) else b""
    except (binascii.Error, ValueError):
        return b""
