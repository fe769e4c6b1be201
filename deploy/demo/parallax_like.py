"""A stand-in for a Parallax cluster: its scheduler (port 3001) or a chat node of it (port 3002), failures included.

    python -m deploy.demo.parallax_like --port 18103 [--chat-node] [--scale 0.1]

It says what Parallax says, when Parallax says it, behind the statuses that Parallax says it with: most of its failures
come as 200. It speaks to nobody, so what the cluster and its nodes would do is picked by name: for the next calls with
`will`, until further notice with `always`, or by a call for itself, in `vllm_xargs.standin`:

    answer                          as it should
    not-ready                       503 at once: no full pipeline
    routing-stalls                  5 s of standing still, for everybody, then the answer
    routing-not-ready               5 s of standing still, for everybody, then 503
    routing-error                   500 at once
    full                            95 s of silence, then 429 without Retry-After
    forwarding-fails                90 s of silence, then 502; where the call streams, 200 and a connection that drops
    node-refuses                    the node's own 400: where the call streams, its body under status 200
    node-fails                      the node's own 500, in the same way
    node-unreachable                502: where the call streams, in an envelope under status 200
    node-error                      200 and the bytes `internal server error`
    node-says-nothing               a stream that ends as soon as it has begun
    node-dies                       a stream that just ends in the middle; unstreamed as forwarding-fails
    node-breaks                     a stream in the middle of which that envelope comes
    node-error-in-stream            a stream in the middle of which those bytes come
    node-stalls                     a stream that is silent from its middle on: 600 s, then that envelope
    slow-first-token                headers at once, then 60 s of silence, then the answer

All times are multiplied by `scale`. What a chat node passes on has lost its status: 503 and 429 are 200, too.

Source: GradientHQ/parallax 0.1.2, src/backend/main.py, src/backend/server, src/parallax/p2p/server.py.
"""

import argparse
import asyncio
import base64
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from deploy.demo.models import PACE_SECONDS, serve
from deploy.demo.standin import (
    CREATED,
    ClientGone,
    Connection,
    Document,
    Receive,
    Seen,
    Send,
    arguments_for,
    count_tokens,
    event,
    identifier,
    mentions_tool,
    read_request,
    say,
    text_of,
    words,
)

MODEL = "Qwen/Qwen3-0.6B"

ROUTING_SECONDS: Final = 5.0
"""For which the scheduler stands still while it has not decided on a route."""
FULL_SECONDS: Final = 5.0
ROUTING_ATTEMPTS: Final = 20
"""Of finding a place, with FULL_SECONDS between each two."""
FORWARDING_SECONDS: Final = 10.0
FORWARDING_ATTEMPTS: Final = 10
NODE_SECONDS: Final = 600.0
"""After which a node's silence is given up."""
STATUS_SECONDS: Final = 1.0
"""Between two lines of the cluster's status."""
CHAT_NODE_TICKS: Final = 60
"""Lines after which a chat node ends its status."""
SILENT_SECONDS: Final = 60.0

BEHAVIOURS: Final = frozenset(
    """
    answer not-ready routing-stalls routing-not-ready routing-error full forwarding-fails node-refuses node-fails
    node-unreachable node-error node-says-nothing node-dies node-breaks node-error-in-stream node-stalls
    slow-first-token
    """.split()
)

RAW_ERROR: Final = b"internal server error"
DONE: Final = b"data: [DONE]\n\n"
_UNDELIVERED: Final = frozenset({"forwarding-fails", "node-dies", "node-says-nothing"})
"""What leaves an unstreamed call without an answer, so that it is forwarded again."""
_STREAM_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class Dropped(Exception):
    """The server fails inside an answer that it has begun, so that its connection is closed."""


@dataclass(frozen=True)
class Whole:
    """An answer in one piece."""

    status: int
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True)
class Streamed:
    """A streamed answer: bytes to send, seconds to be silent. Its iterator may raise Dropped."""

    script: Iterator[bytes | float]


class ParallaxStandin:
    """An ASGI app that answers like a Parallax scheduler, or, as `chat_node`, like a chat node in front of one.

    `model` is the one that the cluster runs, whatever is asked for; None before there is one. `scale` multiplies all
    of Parallax's times, `pace` is the pause between streamed events in seconds. `capacity` is how many calls it takes
    at a time, None for any number. It does not answer anybody while it stands still, so it wants a loop of its own.

    `requests` is what it has received, `forwarded` what a node would have got of it, `cancellations` counts the streams
    that a node was told to give up because their client had left: clients of unstreamed calls leave unnoticed.
    """

    def __init__(
        self,
        model: str | None = MODEL,
        *,
        scale: float = 1.0,
        pace: float = 0.0,
        capacity: int | None = None,
        chat_node: bool = False,
    ) -> None:
        self.model = model
        self.available = True
        self.capacity = capacity
        self.requests: list[Seen] = []
        self.forwarded: list[Document] = []
        self.cancellations = 0
        self._scale = scale
        self._pace = pace
        self._chat_node = chat_node
        self._running = 0
        self._next: deque[str] = deque()
        self._usual = "answer"

    def will(self, *behaviours: str) -> None:
        """What becomes of the next calls, one each. Raises ValueError for a name that it does not know."""
        self._next.extend(map(_known, behaviours))

    def always(self, behaviour: str) -> None:
        """What becomes of every call that nothing else is said about. Raises ValueError as above."""
        self._usual = _known(behaviour)

    def forget(self) -> None:
        """Start a test anew: available, answering, with nothing remembered."""
        self.available, self.cancellations, self._usual = True, 0, "answer"
        for each in (self.requests, self.forwarded, self._next):
            each.clear()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            seen = await read_request(dict(scope), receive)
        except ClientGone:
            return
        self.requests.append(seen)
        connection = Connection(seen, receive, send)
        try:
            await self._serve(seen, connection, receive)
        except ClientGone:
            seen.client_gone = True
        except Dropped:
            pass  # an answer left unfinished makes the server drop the connection
        finally:
            seen.over.set()

    async def _serve(self, seen: Seen, connection: Connection, receive: Receive) -> None:
        match seen.method, seen.path:
            case "POST", "/v1/chat/completions":
                await self._send(await self._chat(seen), connection, receive)
            case "GET", "/cluster/status":
                await self._send_stream(self._statuses(), "application/x-ndjson", connection, receive)
            case method, path if not self._chat_node and (answer := self._administer(method, path, seen)) is not None:
                await self._send_whole(answer, connection)
            case "GET" | "HEAD", "/":
                await self._send_whole(Whole(200, b"<!doctype html><title>Parallax</title>", "text/html"), connection)
            case "GET" | "HEAD", _:  # the scheduler's pages are mounted at its root and take what no route has
                await self._send_whole(_json({"detail": "Not Found"}, 404), connection)
            case _:
                await self._send_whole(_json({"detail": "Method Not Allowed"}, 405), connection)

    def _administer(self, method: str, path: str, seen: Seen) -> Whole | None:
        """What a scheduler answers beside calls; it asks nobody who they are."""
        match method, path:
            case "GET", "/v1/models":
                card = {"id": self.model, "object": "model", "created": 0, "owned_by": "parallax"}
                return _json({"object": "list", "data": [card] if self.model else []})
            case "GET", "/cluster/status_json":
                return _json(self._status())
            case "GET", "/model/list":
                return _json({"type": "model_list", "data": [{"name": MODEL, "vram_gb": 2}]})
            case "GET", "/node/join/command":
                return _json({"type": "node_join_command", "data": self._status()["data"]["node_join_command"]})
            case "POST", "/scheduler/init":
                wanted = json.loads(seen.body)
                if wanted.get("model_name") is None:
                    return _json({"type": "scheduler_init", "error": "model_name is required"}, 400)
                self.model = wanted["model_name"]
                return _json({"type": "scheduler_init", "data": wanted})
            case "POST", "/weight/refit":
                return _json({"type": "weight_refit", "data": None})
        return None

    def _status(self) -> Document:
        state = "available" if self.available else "waiting"
        node = {"node_id": "12D3KooWStandin", "status": state, "gpu_num": 1, "gpu_name": "stand-in", "gpu_memory": 24}
        return {
            "type": "cluster_status",
            "data": {
                "status": state,
                "model_name": self.model,
                "init_nodes_num": 1,
                "node_join_command": {"command": "parallax join"},
                "node_list": [node],
                "need_more_nodes": not self.available,
                "max_running_request": self.capacity or 0,
            },
        }

    def _statuses(self) -> Iterator[bytes | float]:
        """The status once a second: without end, or of a chat node a minute long."""
        told = 0
        while not self._chat_node or told < CHAT_NODE_TICKS:
            if self._chat_node:
                yield STATUS_SECONDS * self._scale
            yield orjson.dumps(self._status()) + b"\n"
            yield STATUS_SECONDS * self._scale
            told += 1

    async def _chat(self, seen: Seen) -> Whole | Streamed:
        try:
            asked = json.loads(seen.body)
        except ValueError:
            if self._chat_node:
                return Whole(500, b"Internal Server Error", "text/plain; charset=utf-8")
            return _error("Invalid request body", 400, "invalid_request_error")
        if not isinstance(asked, dict):
            return _error("Request body must be a JSON object", 400, "invalid_request_error")
        behaviour = self._behaviour(asked)
        if not self._chat_node:
            return await self._schedule(asked, behaviour)
        if behaviour == "node-error" and not asked.get("stream"):
            return _json({"error": "Internal server error"}, 500)
        answer = await self._schedule(asked, behaviour)
        if isinstance(answer, Streamed):
            return answer
        if asked.get("stream"):
            return Streamed(iter([answer.body]))
        try:
            return _json(json.loads(answer.body))
        except ValueError:
            return _json({"error": "Internal server error"}, 500)

    def _behaviour(self, asked: Document) -> str:
        arguments = asked.get("vllm_xargs")
        wanted = arguments.get("standin") if isinstance(arguments, dict) else None
        if wanted in BEHAVIOURS:
            return str(wanted)
        return self._next.popleft() if self._next else self._usual

    async def _schedule(self, asked: Document, behaviour: str) -> Whole | Streamed:
        """What the scheduler makes of a call."""
        if not self.available or behaviour == "not-ready":
            return _error("Server is not ready", 503, "server_unavailable", "server_not_ready")
        if behaviour == "routing-error":
            return _error("Get routing table error", 500, "server_error", "routing_table_error")
        if behaviour in ("routing-stalls", "routing-not-ready"):
            self._stand_still(ROUTING_SECONDS)
        if behaviour == "routing-not-ready":
            return _error("Routing pipelines not ready", 503, "server_unavailable", "routing_not_ready")
        attempts = 1
        while behaviour == "full" or (self.capacity is not None and self._running >= self.capacity):
            if attempts == ROUTING_ATTEMPTS:
                said = "All pipelines are busy or not ready. Please retry later."
                return _error(said, 429, "rate_limit_error", "rate_limit_exceeded")
            await asyncio.sleep(FULL_SECONDS * self._scale)
            attempts += 1
        forwarded = self._forwarded(asked)
        self.forwarded.append(forwarded)
        if asked.get("stream"):
            return Streamed(self._stream(forwarded, behaviour))
        self._running += 1
        try:
            return await self._whole(forwarded, behaviour)
        finally:
            self._running -= 1

    def _stand_still(self, seconds: float) -> None:
        """The scheduler sleeps inside its event loop: it answers nothing meanwhile, not even how it is."""
        time.sleep(seconds * self._scale)

    def _forwarded(self, asked: Document) -> Document:
        """A call as the node gets it."""
        request = identifier("", asked)
        given = asked.get("vllm_xargs")
        arguments = {**given} if isinstance(given, dict) else {}
        arguments["parallax_routing_table"] = ["12D3KooWStandin"]
        arguments["parallax_scheduler_request_id"] = request
        kept = {name: value for name, value in asked.items() if name not in ("rid", "routing_table")}
        return {
            **kept,
            "request_id": asked.get("request_id") or request,
            "model": self.model,
            "vllm_xargs": arguments,
        }

    async def _whole(self, asked: Document, behaviour: str) -> Whole:
        if behaviour in _UNDELIVERED:
            await asyncio.sleep((FORWARDING_ATTEMPTS - 1) * FORWARDING_SECONDS * self._scale)
            return _error("Downstream request failed", 502, "upstream_error")
        match behaviour:
            case "node-refuses":
                return Whole(400, NODE_REFUSES)
            case "node-fails":
                return Whole(500, NODE_FAILS)
            case "node-unreachable" | "node-breaks" | "node-stalls":
                if behaviour == "node-stalls":
                    await asyncio.sleep(NODE_SECONDS * self._scale)
                return Whole(502, NODE_LOST)
            case "node-error" | "node-error-in-stream":
                return Whole(200, RAW_ERROR)
            case "slow-first-token":
                await asyncio.sleep(SILENT_SECONDS * self._scale)
        return _json(answer(asked))

    def _stream(self, asked: Document, behaviour: str) -> Iterator[bytes | float]:
        """What comes of a node's stream. It has begun, with its headers, before the node is even asked."""
        match behaviour:
            case "forwarding-fails":
                raise Dropped
            case "node-refuses":
                yield NODE_REFUSES
                return
            case "node-fails":
                yield NODE_FAILS
                return
            case "node-unreachable":
                yield envelope(502, NODE_LOST)
                return
            case "node-error":
                yield RAW_ERROR
                return
            case "node-says-nothing":
                return
            case "slow-first-token":
                yield SILENT_SECONDS * self._scale
        frames = chunks(asked)
        ends_early = behaviour in ("node-dies", "node-breaks", "node-error-in-stream", "node-stalls")
        for frame in frames[: len(frames) // 2] if ends_early else frames:
            yield frame
            yield self._pace
        match behaviour:
            case "node-stalls":
                yield NODE_SECONDS * self._scale
                yield envelope(502, NODE_LOST)
            case "node-breaks":
                yield envelope(502, NODE_LOST)
            case "node-error-in-stream":
                yield RAW_ERROR

    def _cross_origin(self, seen: Seen) -> dict[str, str]:
        if self._chat_node or seen.header("origin") is None:
            return {}
        return {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}

    async def _send(self, answer: Whole | Streamed, connection: Connection, receive: Receive) -> None:
        if isinstance(answer, Whole):
            await self._send_whole(answer, connection)
            return
        self._running += 1
        try:
            await self._send_stream(answer.script, "text/event-stream; charset=utf-8", connection, receive)
        except ClientGone:
            self.cancellations += 1
            raise
        finally:
            self._running -= 1

    async def _send_whole(self, answer: Whole, connection: Connection) -> None:
        headers = {"content-type": answer.content_type, "content-length": str(len(answer.body))}
        await connection.start(answer.status, headers | self._cross_origin(connection.seen))
        if connection.seen.method != "HEAD":
            await connection.write(answer.body)
        await connection.finish()

    async def _send_stream(
        self, script: Iterator[bytes | float], content_type: str, connection: Connection, receive: Receive
    ) -> None:
        headers = {**_STREAM_HEADERS, "content-type": content_type}
        await connection.start(200, headers | self._cross_origin(connection.seen))
        gone = asyncio.ensure_future(receive())  # the request was read to its end: only the departure can still come
        try:
            for part in script:
                if isinstance(part, bytes):
                    await connection.write(part)
                else:
                    await asyncio.wait({gone}, timeout=part)
                if gone.done():
                    raise ClientGone
            await connection.finish()
        finally:
            gone.cancel()


def answer(asked: Document) -> Document:
    """What a node answers to an unstreamed call."""
    said, tool, finish, tokens = _said(asked)
    message: Document = {"role": "assistant", "reasoning_content": None, "content": said, "tool_calls": []}
    if tool is not None:
        message |= {"content": None, "tool_calls": [tool]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    return _base(asked, "chat.completion") | {"choices": [choice], "usage": _usage(asked, tokens)}


def chunks(asked: Document) -> list[bytes]:
    """The events of a node's stream, [DONE] included."""
    said, tool, finish, tokens = _said(asked)
    deltas: list[Document] = [{"role": "assistant", "content": ""}]
    if tool is not None:
        function, arguments = tool["function"], tool["function"]["arguments"]
        deltas.append({"tool_calls": [{**tool, "index": 0, "function": {**function, "arguments": ""}}]})
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in words(arguments)]
    else:
        deltas += [{"content": piece} for piece in words(said)]
    base = _base(asked, "chat.completion.chunk")
    choices: list[Document] = []
    for delta in deltas:
        choices.append({"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})
    choices.append({"index": 0, "delta": {"content": ""}, "logprobs": None, "finish_reason": finish})
    frames = [event(base | {"choices": [choice]}) for choice in choices]
    options = asked.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        frames.append(event(base | {"choices": [], "usage": _usage(asked, tokens)}))
    return [*frames, DONE]


def envelope(status: int, body: bytes) -> bytes:
    """How a node hands an HTTP answer to the scheduler, which passes it on in streams without looking."""
    wrapped = {
        "__parallax_http_response__": True,
        "status_code": status,
        "content_type": "application/json",
        "body_base64": base64.b64encode(body).decode(),
    }
    return orjson.dumps(wrapped)


def _said(asked: Document) -> tuple[str, Document | None, str, int]:
    """(text, tool call, finish reason, tokens) of an answer."""
    messages = asked.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages and isinstance(messages[-1], dict) else {}
    question = text_of(last.get("content"))
    tools = asked.get("tools")
    if isinstance(tools, list) and tools and last.get("role") == "user" and mentions_tool(question):
        offered = tools[0].get("function", tools[0])
        arguments = orjson.dumps(arguments_for(offered.get("parameters"))).decode()
        function = {"name": offered["name"], "arguments": arguments}
        tool = {"id": identifier("chatcmpl-tool-", asked), "type": "function", "function": function}
        return "", tool, "tool_calls", len(words(arguments))
    limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
    said, cut = say(str(asked.get("model")), question, limit)
    return said, None, "length" if cut else "stop", len(words(said))


def _base(asked: Document, kind: str) -> Document:
    return {"id": identifier("chatcmpl-", asked), "object": kind, "created": CREATED, "model": asked.get("model")}


def _usage(asked: Document, tokens: int) -> Document:
    read = count_tokens(asked.get("messages"))
    return {
        "prompt_tokens": read,
        "total_tokens": read + tokens,
        "completion_tokens": tokens,
        "prompt_tokens_details": None,
    }


def _error_document(message: str, kind: str, code: str | int | None = None) -> Document:
    return {"error": {"message": message, "type": kind, "param": None, "code": code or kind}}


def _error(message: str, status: int, kind: str, code: str | None = None) -> Whole:
    return _json(_error_document(message, kind, code), status)


def _json(document: Document, status: int = 200) -> Whole:
    return Whole(status, orjson.dumps(document))


def _known(behaviour: str) -> str:
    if behaviour not in BEHAVIOURS:
        raise ValueError(f"the stand-in has no behaviour {behaviour!r}")
    return behaviour


_TOO_LONG: Final = "This model's maximum context length is 4096 tokens. However, your request has more input tokens."
NODE_REFUSES: Final = orjson.dumps(_error_document(_TOO_LONG, "BadRequestError", 400))
NODE_FAILS: Final = orjson.dumps(_error_document("EngineCore encountered an issue.", "InternalServerError", 500))
NODE_LOST: Final = orjson.dumps(_error_document("Internal server error", "upstream_error"))


def main() -> int:
    """Runs until told to stop. Returns 0, or 98 where the port is taken."""
    parser = argparse.ArgumentParser(description="A stand-in for a Parallax cluster: no GPU, no network.")
    parser.add_argument("--port", type=int, default=18103)
    parser.add_argument("--model", default=MODEL, help="what the cluster runs, whatever is asked for")
    parser.add_argument("--scale", type=float, default=1.0, help="what Parallax's times are multiplied by")
    parser.add_argument("--capacity", type=int, help="calls at a time; any number when absent")
    parser.add_argument("--chat-node", action="store_true", help="answer like a chat node instead of the scheduler")
    parser.add_argument("--always", default="answer", choices=sorted(BEHAVIOURS), help="what becomes of every call")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the program that started this one")
    given = parser.parse_args()
    standin = ParallaxStandin(
        given.model, scale=given.scale, pace=PACE_SECONDS, capacity=given.capacity, chat_node=given.chat_node
    )
    standin.always(given.always)
    return asyncio.run(serve([("parallax", standin, given.port)], watch_stdin=given.until_stdin_closes))


if __name__ == "__main__":
    sys.exit(main())
