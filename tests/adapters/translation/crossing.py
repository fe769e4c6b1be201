"""A gateway's part in a translated call over real sockets: the agent's bytes in, and out the target's."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from adapters.errors import MalformedCall
from adapters.registry import endpoint, speaking
from adapters.translation import translation
from deploy.demo.standin import Events, Json
from tests.adapters.translation.support import LONGEST

Answer = Callable[[dict[str, Any]], Json | Events]


class Crossing:
    """Answers every call by what its target of the other protocol says, whose `asked` are remembered.

    A stream leaves in pieces of `step` bytes of the target's, whatever stands in them.
    """

    def __init__(self) -> None:
        crossing = self
        self.answer: Answer = lambda _: Json({}, 500)
        self.asked: list[dict[str, Any]] = []
        self.step = 7

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                crossing.cross(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def cross(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        adapter = speaking(handler.path, "anthropic-version" in handler.headers)
        found, argument = endpoint(adapter, "POST", handler.path)
        other = "anthropic" if adapter.protocol == "openai" else "openai"
        way = translation(adapter.protocol, found.operation, other)
        assert way is not None
        try:
            call = adapter.read(found, body, argument)
            sent = way.request(call, "target-model", LONGEST)
        except MalformedCall as error:
            error_type = {"type": "invalid_request_error", "message": str(error)}
            self._whole(handler, 400, orjson.dumps({"type": "error", "error": error_type}))
            return
        self.asked.append(orjson.loads(sent))
        said = self.answer(self.asked[-1])
        if isinstance(said, Json):
            self._whole(handler, said.status, way.answer(call, said.status, orjson.dumps(said.document)))
            return
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        converter, meter = way.stream(call), adapter.meter(call)
        stream = b"".join(said.frames)
        pieces = [stream[at : at + self.step] for at in range(0, len(stream), self.step)]
        for told in (
            *(meter.feed(converter.feed(piece)) for piece in pieces),
            meter.feed(converter.rest()),
            meter.rest(),
        ):
            if told:
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(told), told))
        handler.wfile.write(b"0\r\n\r\n")

    def _whole(self, handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
