"""The MCP server behind every contestant that carries tool calls: one tool, fixed answers, both eras.

`python -m benchmarks.mcp_upstream` prints `upstream: PORT` and serves until it is terminated, at whatever path. It
answers as a server of the Python SDK does: in the legacy era with a session and a stream of one event, in the modern
one with plain JSON. `GET /last` answers with the
last call that came.
"""

from typing import Any

import orjson

from benchmarks.mcp import ANSWER, LEGACY, MODERN, SERVER_SESSION, TOOL
from benchmarks.upstream import READY, Connection, ModelServer

_EVENTS, _JSON = "text/event-stream", "application/json"
_INFO = {"name": "benchmark", "version": "1.0"}
_ABILITIES: dict[str, object] = {"tools": {"listChanged": False}}
_COMPLETE: dict[str, object] = {
    "resultType": "complete",
    "_meta": {"io.modelcontextprotocol/serverInfo": _INFO},
}
_CACHE: dict[str, object] = {"ttlMs": 0, "cacheScope": "private"}
_SESSION_LINE = b"mcp-session-id: " + SERVER_SESSION
_TAKEN = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
_NO_STREAM = b"HTTP/1.1 405 Method Not Allowed\r\nallow: POST\r\ncontent-length: 0\r\n\r\n"
_CALLED = {"content": [{"type": "text", "text": ANSWER}], "isError": False}


def _whole(kind: str, status: str = "200 OK", more: bytes = b"") -> tuple[bytes, bytes]:
    """What stands before the length of an answer, and between that and the body."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: ".encode(), b"\r\n" + more + b"\r\n"


def _framed(head: tuple[bytes, bytes], body: bytes) -> bytes:
    return b"%s%d%s%s" % (head[0], len(body), head[1], body)


def _around(result: object) -> tuple[bytes, bytes]:
    """A JSON-RPC answer before and after the text of its id."""
    before, _, after = orjson.dumps({"jsonrpc": "2.0", "id": "?", "result": result}).partition(b'"?"')
    return before, after


_HEADS = {MODERN: _whole(_JSON), LEGACY: _whole(_EVENTS)}
_BEGUN = _whole(_EVENTS, more=_SESSION_LINE + b"\r\n")
_REFUSED = _whole(_JSON, "400 Bad Request")
_RESULTS = {MODERN: _around(_CALLED | _COMPLETE), LEGACY: _around(_CALLED)}


class McpServer(ModelServer):
    """The same connections with other answers."""

    without_length = _NO_STREAM

    def _answer(self, connection: Connection, request: bytes) -> None:
        start = connection.start
        message: dict[str, Any] = orjson.loads(request[start:])
        method, params = message.get("method"), message.get("params", {})
        if "id" not in message or method is None:
            self._send(connection, _TAKEN)
            return
        modern = "io.modelcontextprotocol/protocolVersion" in params.get("_meta", {})
        identity = orjson.dumps(message["id"])
        head = _HEADS[MODERN if modern else LEGACY]
        if method == "tools/call" and params.get("name") == TOOL["name"]:
            if not modern and _SESSION_LINE not in request[:start].lower():
                self._refuse(connection, identity, "Missing session ID")
                return
            self._last = request, start
            before, after = _RESULTS[MODERN if modern else LEGACY]
        else:
            result = _RARE.get(method)
            if result is None:
                self._refuse(connection, identity, f"{method} is not served")
                return
            before, after = _around(result | (_COMPLETE | _CACHE if modern else {}))
            if method == "initialize":
                head = _BEGUN
        body = before + identity + after
        self._send(connection, _framed(head, body if modern else b"event: message\r\ndata: %s\r\n\r\n" % body))

    def _refuse(self, connection: Connection, identity: bytes, why: str) -> None:
        error = {"code": -32600, "message": why}
        body = orjson.dumps({"jsonrpc": "2.0", "id": orjson.loads(identity), "error": error})
        self._send(connection, _framed(_REFUSED, body))


_RARE: dict[str, dict[str, Any]] = {
    "initialize": {"protocolVersion": LEGACY, "capabilities": _ABILITIES, "serverInfo": _INFO},
    "server/discover": {"supportedVersions": [MODERN, LEGACY], "capabilities": _ABILITIES},
    "tools/list": {"tools": [TOOL]},
    "ping": {},
}


if __name__ == "__main__":
    server = McpServer()
    print(f"{READY}{server.port}", flush=True)
    server.serve()
