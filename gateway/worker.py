"""The process that serves: two listeners in one event loop, both ended by the same signal, watched by a supervisor."""

import argparse
import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvloop
from policies.watchdog import Watchdog

from config.load import load
from gateway.admin import admin_app, ready
from gateway.app import App
from gateway.logs import configure
from gateway.server import server

log = logging.getLogger("weighbridge.worker")

READY = b"ready\n"


def data_app(app: App) -> Callable[..., Awaitable[None]]:
    """The data plane: liveness and readiness, and everything else is a call."""
    pipeline = app.pipeline

    async def serve(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            match scope["path"]:
                case "/healthz":
                    await _plain(send, 200, b'{"status":"ok"}')
                case "/readyz":
                    answer = ready(app)
                    await _plain(send, answer.status_code, bytes(answer.body))
                case _:
                    await pipeline(scope, receive, send)

    return serve


async def _plain(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def work(path: Path, data: socket.socket, admin: socket.socket, supervisor: socket.socket) -> None:
    """Serves until a signal, or until the supervisor is gone. Raises ConfigError, LedgerUnavailable, SecretMissing."""
    loaded = load(path)
    configure(loaded.settings.log.level, loaded.settings.log.format)
    watchdog = Watchdog(loaded.settings.policy.watchdog)
    async with App(path, loaded) as app:
        servers = [server(data_app(app), loaded.settings.listen), server(admin_app(app), loaded.settings.listen)]

        def stop() -> None:
            for each in servers:
                each.should_exit = True

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        watchdog.start()
        try:
            async with asyncio.TaskGroup() as serving:
                for each, sock in zip(servers, (data, admin), strict=True):
                    serving.create_task(each.serve([sock]))
                for each in servers:
                    await each.listening.wait()
                supervisor.setblocking(False)
                loop.add_reader(supervisor, stop)
                supervisor.send(READY)
        finally:
            loop.remove_reader(supervisor)
            watchdog.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.worker")
    parser.add_argument("--config", type=Path, required=True)
    for name in ("data", "admin", "supervisor"):
        parser.add_argument(f"--{name}", type=int, required=True, help="an open file descriptor")
    given = parser.parse_args()
    data, admin, supervisor = (socket.socket(fileno=number) for number in (given.data, given.admin, given.supervisor))
    uvloop.run(work(given.config, data, admin, supervisor))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
