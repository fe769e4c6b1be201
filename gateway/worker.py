"""The process that serves: two listeners in one event loop, both ended by the same signal, watched by a supervisor."""

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from config.errors import ConfigError, SecretMissing
from config.load import load
from gateway.admin import admin_app
from gateway.admin.health import ready
from gateway.app import App
from gateway.asking_after import PATH, ask_after
from gateway.ledger import LedgerUnavailable
from gateway.logs import configure
from gateway.oauth.metadata import WELL_KNOWN
from gateway.server import server
from gateway.state import StateUnusable
from policies.watchdog import Watchdog

log = logging.getLogger("weighbridge.worker")

READY = b"ready\n"

MISTAKEN, UNUSABLE, LEDGER_HELD = 1, 2, 3
"""Exit codes of a worker that could not start: the configuration has mistakes; the machine does not give what is
needed; another worker, which may be about to end, writes the ledger."""

_YOUNG_OBJECTS = 20_000
"""Objects that live at once before the garbage collector looks for cycles among the new ones: a call makes dozens and
no cycle, so that with Python's own 700 it would look once for every twenty calls in flight, and find nothing."""


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
                case path if path.startswith(WELL_KNOWN):
                    await _metadata(pipeline.assembly.login.document(path), scope["method"], send)
                case path if path.startswith(PATH):
                    await ask_after(pipeline, scope, send)
                case _:
                    await pipeline(scope, receive, send)

    return serve


async def _metadata(document: bytes | None, method: str, send: Any) -> None:
    """Where clients log in. It is for everybody, pages of any site among them; who has no key has to find it."""
    if document is None:
        await _plain(send, 404, b'{"error":"nothing is protected by OAuth here"}')
    elif method in ("GET", "HEAD"):
        await _plain(send, 200, document, [(b"access-control-allow-origin", b"*"), (b"cache-control", b"max-age=60")])
    else:
        await _plain(send, 405, b'{"error":"ask with GET"}', [(b"allow", b"GET, HEAD")])


async def _plain(send: Any, status: int, body: bytes, others: Sequence[tuple[bytes, bytes]] = ()) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *others]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def work(path: Path, data: socket.socket, admin: socket.socket, supervisor: socket.socket) -> None:
    """Serves until a signal, or until the supervisor is gone.

    Raises ConfigError, LedgerUnavailable, StateUnusable, SecretMissing, OSError when it cannot start.
    """
    loaded = load(path)
    configure(loaded.settings.log.level, loaded.settings.log.format)
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    watchdog = Watchdog(loaded.settings.policy.watchdog)
    async with App(path, loaded) as app:
        servers = [server(data_app(app), loaded.settings.listen), server(admin_app(app), loaded.settings.listen)]

        def stop() -> None:
            app.ending.set()
            app.holds.let_go()
            app.pipeline.let_go()
            for each in servers:
                each.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        watchdog.start()
        # What a start leaves behind stays. Looking through all of it again would hold calls up for 25 ms each time.
        gc.collect()
        gc.freeze()
        try:
            async with asyncio.TaskGroup() as serving:
                for each, sock in zip(servers, (data, admin), strict=True):
                    serving.create_task(each.serve([sock]))
                for each in servers:
                    await each.listening.wait()
                supervisor.setblocking(False)
                loop.add_reader(supervisor, stop)
                with contextlib.suppress(OSError):  # a supervisor that is gone is what the reader sees
                    supervisor.send(READY)
        finally:
            loop.remove_reader(supervisor)
            watchdog.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.worker")
    parser.add_argument("--config", type=Path, required=True)
    for name in ("data", "admin", "supervisor"):
        parser.add_argument(f"--{name}", type=int, required=True, help="an open file descriptor")
    parser.add_argument("--log-level", default="info", help="until the configuration is read")
    parser.add_argument("--log-format", default="text", help="until the configuration is read")
    given = parser.parse_args()
    # The file may have mistakes by now, and they have to be told in the form that the log is read in.
    configure(given.log_level, given.log_format)
    data, admin, supervisor = (socket.socket(fileno=number) for number in (given.data, given.admin, given.supervisor))
    try:
        uvloop.run(work(given.config, data, admin, supervisor))
    except ConfigError as error:
        for mistake in error.mistakes:
            log.error("%s", mistake)
        return MISTAKEN
    except SecretMissing as error:
        log.error("%s", error)
        return MISTAKEN
    except LedgerUnavailable as error:
        log.error("the ledger cannot be had: %s", error)
        return LEDGER_HELD if isinstance(error.__context__, BlockingIOError) else UNUSABLE
    except StateUnusable as error:
        log.error("the state cannot be had: %s", error)
        return LEDGER_HELD if error.held else UNUSABLE
    except OSError as error:
        log.error("the gateway cannot start: %s", error)
        return UNUSABLE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
