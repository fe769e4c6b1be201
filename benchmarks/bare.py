"""The floor: the gateway's server and the gateway's carrier, and nothing in between.

`python -m benchmarks.bare UPSTREAM_PORT` prints `bare: PORT` and serves until it is terminated.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvloop

from config.settings import ListenSettings
from gateway.carrier import Carrier, Limits, Origin
from gateway.server import server

READY = "bare: "

_OF_THE_CONNECTION = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"te", b"trailer", b"upgrade")
)
_OURS_TO_WRITE = frozenset((b"transfer-encoding", b"connection", b"keep-alive"))

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class PassThrough:
    """An ASGI application that sends every request on and every answer back, piece by piece."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            pieces = [body]
            while message.get("more_body"):
                message = await receive()
                pieces.append(message.get("body", b""))
            body = b"".join(pieces)
        headers = [line for line in scope["headers"] if line[0] not in _OF_THE_CONNECTION]
        reply = await self._carrier.send(scope["method"].encode(), scope["raw_path"], headers, body)
        try:
            kept = [line for line in reply.headers if line[0] not in _OURS_TO_WRITE]
            await send({"type": "http.response.start", "status": reply.status, "headers": kept})
            piece = await reply.read()
            while piece and not reply.complete:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await reply.read()
            await send({"type": "http.response.body", "body": piece})
        finally:
            reply.close()


async def serve(upstream: int) -> None:
    carrier = Carrier(Origin("http", "127.0.0.1", upstream), limits=Limits(connections=1024))
    built = server(PassThrough(carrier), ListenSettings(drain=1.0))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, built.stop)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    print(f"{READY}{listener.getsockname()[1]}", flush=True)
    await built.serve([listener])
    await carrier.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
