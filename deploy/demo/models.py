"""Stand-in model servers, and a tool, as one program: what targets point at when no real server is wanted.

    python -m deploy.demo.models --openai-port 18101 --anthropic-port 18102 --crm-port 18104

prints one line, `stand-ins: openai URL anthropic URL crm URL`, once all answer, and ends on SIGTERM, on SIGINT, or with
the program that started it if that one holds the other end of its standard input. The keys they demand come from the
environment, STANDIN_OPENAI_KEY, STANDIN_ANTHROPIC_KEY and STANDIN_CRM_KEY; empty, no key may be sent at all.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import uvicorn

from deploy.demo.anthropic_like import anthropic_standin
from deploy.demo.openai_like import openai_standin
from deploy.demo.standin import App
from deploy.demo.tool_like import tool_standin

PACE_SECONDS = 0.03  # so that a person sees a stream being one
BUSY_PORT = 98  # exit code


class StandinServer(uvicorn.Server):
    """Serves one stand-in on an already bound socket, in the running loop.

    It leaves signals to whoever runs it; `ready` is set once it answers; `stop()` makes `serve` return.
    """

    def __init__(self, app: App) -> None:
        # Nothing is logged: a stand-in that drops connections on request would fill the log with complaints.
        config = uvicorn.Config(
            app, lifespan="off", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        config.load()
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    def stop(self) -> None:
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError where the port is taken."""
    # Only of sockets that say TCP does asyncio switch Nagle's algorithm off: a second write would wait for 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


def _all(openai_port: int, anthropic_port: int, crm_port: int) -> list[tuple[str, App, int]]:
    openai_key = os.environ.get("STANDIN_OPENAI_KEY", "standin-openai-key") or None
    anthropic_key = os.environ.get("STANDIN_ANTHROPIC_KEY", "standin-anthropic-key") or None
    return [
        ("openai", openai_standin(openai_key, pace=PACE_SECONDS), openai_port),
        ("anthropic", anthropic_standin(anthropic_key, pace=PACE_SECONDS), anthropic_port),
        ("crm", tool_standin(os.environ.get("STANDIN_CRM_KEY", "standin-crm-key") or None), crm_port),
    ]


async def serve(standins: Sequence[tuple[str, App, int]], *, watch_stdin: bool) -> int:
    """Runs stand-ins, each with its name and its port, until told to stop. Returns 0, or 98 where a port is taken."""
    listeners: list[socket.socket] = []
    try:
        for _, _, port in standins:
            listeners.append(bound("127.0.0.1", port))
    except OSError as error:
        sys.stderr.write(f"stand-ins: cannot listen on 127.0.0.1:{port}: {os.strerror(error.errno or 0)}\n")
        for listener in listeners:
            listener.close()
        return BUSY_PORT
    servers = [StandinServer(standin) for _, standin, _ in standins]

    def stop() -> None:
        for server in servers:
            server.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if watch_stdin:

        def starter_gone() -> None:
            if not os.read(sys.stdin.fileno(), 1024):
                loop.remove_reader(sys.stdin.fileno())
                stop()

        loop.add_reader(sys.stdin.fileno(), starter_gone)
    async with asyncio.TaskGroup() as running:
        for server, listener in zip(servers, listeners, strict=True):
            running.create_task(server.serve([listener]))
        for server in servers:
            await server.ready.wait()
        named = " ".join(
            f"{name} {url_of(listener)}" for (name, _, _), listener in zip(standins, listeners, strict=True)
        )
        sys.stdout.write(f"stand-ins: {named}\n")
        sys.stdout.flush()
    return 0


def main() -> int:
    """Runs until told to stop. Returns 0, or 98 where a port is taken."""
    parser = argparse.ArgumentParser(description="Stand-in model servers that need no key and no network.")
    parser.add_argument("--openai-port", type=int, default=18101)
    parser.add_argument("--anthropic-port", type=int, default=18102)
    parser.add_argument("--crm-port", type=int, default=18104)
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the program that started this one")
    given = parser.parse_args()
    standins = _all(given.openai_port, given.anthropic_port, given.crm_port)
    return asyncio.run(serve(standins, watch_stdin=given.until_stdin_closes))


if __name__ == "__main__":
    sys.exit(main())
