"""The far end of a call's journey when no real model server is wanted: what the stand-ins share.

A stand-in is an ASGI app around a `Dialect`, a table of pure functions from a request's JSON to a `Reply`. It checks
that the gateway's own key arrived, remembers what it received and sent, and lets the model's name pick a misbehaviour:

    fail-500 fail-429 fail-400   an error in the provider's own shape
    cut-stream                   the connection dies in the middle of the answer
    no-done                      a stream ends cleanly, without its terminal event
    short-stream                 a stream ends cleanly in the middle of the answer
    error-in-stream              a stream breaks off with the provider's error event
    slow-first-byte              nothing is sent for `slow` seconds
    endless                      a stream goes on until the client leaves
    trickle                      the answer arrives in pieces of a few bytes that respect no event's border
    ignores-max-tokens           the answer has a thousand words, whatever the call allows
    big-events                   the same as far as the call allows, fifty words an event where it streams
    no-usage                     nobody is told how many tokens there were

Several at once are joined by `+`: `endless+big-events+no-usage`.
"""

import asyncio
import hashlib
import re
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

Document = dict[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CREATED = 1763700000  # answers are deterministic, their time too
TRICKLE_BYTES = 48
TRICKLE_SECONDS = 0.001
ENDLESS_SECONDS = 0.01
LONG_WORDS = 1000
WORDS_AN_EVENT = 50


class ClientGone(Exception):
    """The peer closed the connection before its answer was complete."""


@dataclass(frozen=True)
class Fault:
    """Why a request is refused: the provider's words for it, and its status."""

    status: int
    kind: str
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A handler cannot answer this request; carries the fault to tell the client."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True)
class Json:
    """An answer in one piece."""

    document: Document
    status: int = 200


@dataclass(frozen=True)
class Events:
    """A streamed answer: whole server-sent events, the last of which is the terminal one."""

    frames: tuple[bytes, ...]


Reply = Json | Events
Answer = Callable[[Document], Reply]


@dataclass(frozen=True)
class Dialect:
    """What makes a stand-in speak one provider's API."""

    answers: Mapping[tuple[str, str], Answer]  # (method, path) -> what answers it
    faults: Mapping[str, Fault]  # by situation: unauthenticated, not_found, method, malformed, fail-*
    error_document: Callable[[Fault, str], Document]  # (fault, request id)
    error_event: Callable[[str], bytes]  # (path) -> the event that breaks off a stream
    request_id_header: str
    check_headers: Callable[[Mapping[str, str]], None] = lambda headers: None  # raises Refused


@dataclass
class Seen:
    """One request as it arrived, and what was sent back for it."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]  # names in lower case, in the order of arrival
    body: bytes
    status: int = 0
    sent: bytearray = field(default_factory=bytearray)  # the body sent back, without transfer coding
    finished: bool = False  # the whole answer was handed to the connection
    client_gone: bool = False
    over: threading.Event = field(default_factory=threading.Event)  # set when nothing more will happen to it

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        return next((value for known, value in self.headers if known == name), None)

    def json(self) -> Any:
        return orjson.loads(self.body)


class Standin:
    """An ASGI app that answers like a model server, deterministically.

    `key` is the only credential it accepts, as a bearer token or in `x-api-key`; with None a call must carry none, so
    that a key which should have stayed behind is noticed. `pace` is the pause between streamed events and `slow` the
    silence of the model `slow-first-byte`, both in seconds. `requests` is what it has received, but for those by which
    gateways find out whether it is well, `probes`: they ask which models there are.
    """

    def __init__(self, dialect: Dialect, key: str | None, *, pace: float = 0.0, slow: float = 5.0) -> None:
        self.requests: list[Seen] = []
        self.probes: list[Seen] = []
        self._dialect = dialect
        self._key = key
        self._pace = pace
        self._slow = slow

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            seen = await read_request(scope, receive)
        except ClientGone:
            return
        (self.probes if (seen.method, seen.path) == ("GET", "/v1/models") else self.requests).append(seen)
        request_id = _request_id(seen)
        connection = Connection(seen, receive, send)
        reply: Reply | Fault
        try:
            reply, asked_for = self._answer(seen)
        except Refused as refused:
            reply, asked_for = refused.fault, frozenset()
        try:
            await self._send(reply, asked_for, request_id, connection)
        except ClientGone:
            seen.client_gone = True
        finally:
            seen.over.set()

    def _answer(self, seen: Seen) -> tuple[Reply, frozenset[str]]:
        """The reply to a request and the misbehaviours its model's name asks for. Raises Refused."""
        dialect = self._dialect
        headers = dict(reversed(seen.headers))
        if _credential(headers) != self._key:
            raise Refused(dialect.faults["unauthenticated"])
        answer = dialect.answers.get((seen.method, seen.path))
        if answer is None:
            known_path = any(path == seen.path for _, path in dialect.answers)
            raise Refused(dialect.faults["method" if known_path else "not_found"])
        dialect.check_headers(headers)
        document: Document = {}
        if seen.method == "POST":
            try:
                document = orjson.loads(seen.body)
            except orjson.JSONDecodeError:
                raise Refused(dialect.faults["malformed"]) from None
            if not isinstance(document, dict):
                raise Refused(dialect.faults["malformed"])
        model = document.get("model", "")
        if isinstance(model, str) and model.startswith("fail-") and model in dialect.faults:
            raise Refused(dialect.faults[model])
        return answer(document), behaviours(model)

    async def _send(
        self, reply: Reply | Fault, asked_for: frozenset[str], request_id: str, connection: "Connection"
    ) -> None:
        headers = {self._dialect.request_id_header: request_id}
        if "slow-first-byte" in asked_for:
            await connection.pause(self._slow)
        if isinstance(reply, Events):
            frames = list(reply.frames)
            if "no-done" in asked_for:
                frames = frames[:-1]
            elif "short-stream" in asked_for:
                frames = frames[: len(frames) // 2]
            elif "error-in-stream" in asked_for:
                frames = [*frames[: len(frames) // 2], self._dialect.error_event(connection.seen.path)]
            elif "cut-stream" in asked_for:
                half = len(frames) // 2
                frames = [*frames[:half], frames[half][: len(frames[half]) // 2]]
            elif "trickle" in asked_for:
                frames = _pieces(b"".join(frames))
            await connection.start(200, headers | {"content-type": "text/event-stream; charset=utf-8"})
            middle = len(frames) // 2
            for frame in frames[:middle] if "endless" in asked_for else frames:
                await connection.write(frame)
                await connection.pause(TRICKLE_SECONDS if "trickle" in asked_for else self._pace)
            while "endless" in asked_for:
                await connection.write(frames[middle])
                await connection.pause(ENDLESS_SECONDS)
        else:
            if isinstance(reply, Fault):
                status, document = reply.status, self._dialect.error_document(reply, request_id)
                headers |= dict(reply.headers)
            else:
                status, document = reply.status, reply.document
            body = orjson.dumps(document)
            headers |= {"content-type": "application/json", "content-length": str(len(body))}
            await connection.start(status, headers)
            if "cut-stream" in asked_for:
                body = body[: len(body) // 2]
            for piece in _pieces(body) if "trickle" in asked_for else [body]:
                await connection.write(piece)
                await connection.pause(TRICKLE_SECONDS if "trickle" in asked_for else 0.0)
        if "cut-stream" not in asked_for:  # an answer left unfinished makes the server drop the connection
            await connection.finish()


class Connection:
    """The client's end of one exchange; everything written is remembered."""

    def __init__(self, seen: Seen, receive: Receive, send: Send) -> None:
        self.seen = seen
        self._receive = receive
        self._send = send

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.seen.status = status
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def write(self, piece: bytes) -> None:
        self.seen.sent += piece
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self.seen.finished = True

    async def pause(self, seconds: float) -> None:
        """Wait, unless the client leaves meanwhile. Raises ClientGone."""
        if seconds <= 0:
            return
        try:
            # The request was read to its end: the only thing that can still arrive is the client's departure.
            await asyncio.wait_for(self._receive(), seconds)
        except TimeoutError:
            return
        raise ClientGone


async def read_request(scope: MutableMapping[str, Any], receive: Receive) -> Seen:
    """One request to its end. Raises ClientGone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return Seen(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]),
        body=bytes(body),
    )


def _credential(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" and token else headers.get("x-api-key")


def _request_id(seen: Seen) -> str:
    return "req_" + hashlib.sha256(seen.path.encode() + seen.body).hexdigest()[:24]


def _pieces(whole: bytes) -> list[bytes]:
    return [whole[at : at + TRICKLE_BYTES] for at in range(0, len(whole), TRICKLE_BYTES)]


def identifier(prefix: str, document: Document) -> str:
    """The same request always gets the same identifier."""
    return prefix + hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]


def event(document: Document, name: str | None = None) -> bytes:
    """One server-sent event."""
    data = b"data: " + orjson.dumps(document) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data


def words(text: str) -> list[str]:
    """The text in pieces of one word each, white space kept: joined they are the text again."""
    return re.findall(r"\s*\S+\s*", text)


def count_tokens(content: Any) -> int:
    """A token is a word here. Counts every text inside a content: a string, parts, or messages with contents."""
    if isinstance(content, str):
        return len(content.split())
    if isinstance(content, list):
        return sum(count_tokens(part) for part in content)
    if isinstance(content, dict):
        return sum(count_tokens(content[name]) for name in ("content", "text", "output", "input") if name in content)
    return 0


def text_of(content: Any) -> str:
    """The text of a content that is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def behaviours(model: Any) -> frozenset[str]:
    """What a model's name asks for."""
    return frozenset(model.split("+")) if isinstance(model, str) else frozenset()


def say(model: str, asked: str, limit: int | None) -> tuple[str, bool]:
    """What a stand-in says in at most `limit` words, and whether something was cut off: enough of the question to see
    that it arrived, and little more unless the model's name asks for that."""
    heard = " ".join(asked.split()[:12])
    text = f"This is the stand-in for {model}. You said: {heard}"
    asked_for = behaviours(model)
    if asked_for & {"ignores-max-tokens", "big-events"}:
        said = text.split()
        text = " ".join((said * (LONG_WORDS // len(said) + 1))[:LONG_WORDS])
    return cut_to(text, None if "ignores-max-tokens" in asked_for else limit)


def in_events(model: str, text: str) -> list[str]:
    """The pieces of a text that a stream's events carry."""
    pieces = words(text)
    if "big-events" not in behaviours(model):
        return pieces
    return ["".join(pieces[at : at + WORDS_AN_EVENT]) for at in range(0, len(pieces), WORDS_AN_EVENT)]


def tells_usage(model: str) -> bool:
    """Whether a model reports how many tokens there were."""
    return "no-usage" not in behaviours(model)


def cut_to(text: str, limit: int | None) -> tuple[str, bool]:
    """At most `limit` words of a text, and whether something was cut off."""
    pieces = words(text)
    if limit is None or len(pieces) <= limit:
        return text, False
    return "".join(pieces[:limit]).rstrip(), True


def arguments_for(schema: Any) -> Document:
    """Arguments a tool with this JSON schema would accept: something for each property."""
    example = {"string": "stand-in", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return {name: example.get(about.get("type", "string"), "stand-in") for name, about in properties.items()}


def mentions_tool(text: str) -> bool:
    """Whether a question asks for a tool, by using the word."""
    return re.search(r"\btools?\b", text, re.IGNORECASE) is not None
