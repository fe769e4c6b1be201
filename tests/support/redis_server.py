"""Real Redis servers: one, or a cluster of three, started on free ports and ended by their process ids.

@needs_redis
def test_...(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        RedisUrl.parse(server.url)

`make test` installs `redis-server` where the system's package manager has it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.support.guard import guard

REDIS: Final = shutil.which("redis-server")
START_SECONDS: Final = 20.0  # a loaded machine starts slowly
STOP_SECONDS: Final = 10.0
_PORTS_TRIED: Final = 5
_NODES: Final = 3
_SLOTS: Final = 16384
_NODE_TIMEOUT: Final = 600_000
"""Milliseconds after which the nodes of a cluster give up one that does not answer, and the whole cluster for as long
again: more than any test needs. A machine under load may well keep one frozen for longer than the usual 15 seconds."""
_BUS: Final = 10_000
"""What the port of a node's bus is above its own."""

needs_redis: Final = pytest.mark.skipif(REDIS is None, reason="redis-server is not installed: the package redis-server")


@dataclass
class RedisServer:
    """One running server."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path
    arguments: Sequence[str] = ()
    guards: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def __post_init__(self) -> None:
        self.guards.enter_context(guard())(self.process.pid)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self, *words: str | int) -> Any:
        """The answer to one command of the tests' own."""
        return self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    @cached_property
    def _client(self) -> Redis:
        return Redis(port=self.port, protocol=2, decode_responses=True)

    def end(self) -> None:
        self._client.close()
        _end(self.process)
        self.guards.close()

    def freeze(self) -> None:
        """From now on it neither answers nor goes away."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def start(self) -> None:
        """Starts it again, at the same place and with the same files."""
        started = _start(self.folder, self.port, self.arguments)
        assert started is not None, (self.folder / "redis.log").read_text(errors="replace")[-2000:]
        self.process = started
        self.guards.close()
        self.guards.enter_context(guard())(started.pid)


@contextlib.contextmanager
def redis_server(folder: Path, *arguments: str) -> Iterator[RedisServer]:
    """Runs a server that keeps its files in `folder`; it persists nothing unless the arguments say so."""
    server = _started(folder, arguments)
    try:
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def redis_cluster(folder: Path) -> Iterator[list[RedisServer]]:
    """Runs a cluster of three nodes, each with a third of the slots."""
    with contextlib.ExitStack() as running:
        nodes = []
        for number in range(_NODES):
            place = folder / f"node{number}"
            place.mkdir()
            arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(_NODE_TIMEOUT))
            nodes.append(running.enter_context(redis_server(place, *arguments)))
        for number, node in enumerate(nodes):
            first, last = _SLOTS * number // _NODES, _SLOTS * (number + 1) // _NODES - 1
            node.command("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for known in nodes[:number]:
                node.command("CLUSTER", "MEET", "127.0.0.1", known.port)
        deadline = time.monotonic() + START_SECONDS
        while any("cluster_state:ok" not in node.command("CLUSTER", "INFO") for node in nodes) or any(
            len(node.command("CLUSTER", "SLOTS")) < _NODES for node in nodes
        ):
            assert time.monotonic() < deadline, nodes[0].command("CLUSTER", "INFO")
            time.sleep(0.02)
        yield nodes


def _started(folder: Path, arguments: Sequence[str]) -> RedisServer:
    for _ in range(_PORTS_TRIED):
        port = free_port()
        process = _start(folder, port, arguments)
        if process is not None:
            return RedisServer(port, process, folder, arguments)
    raise AssertionError(f"redis-server did not come up: {(folder / 'redis.log').read_text(errors='replace')[-2000:]}")


def _start(folder: Path, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """A process that answers; None when it ended first, as it does when somebody took the port."""
    assert REDIS is not None, "mark the test with needs_redis"
    command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "redis.log").open("ab") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C on the tests is for the tests, which then end it
        )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(RedisError), contextlib.closing(Redis(port=port, protocol=2)) as client:
            client.ping()
            return process
        time.sleep(0.005)
    _end(process)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(STOP_SECONDS)


def free_port() -> int:
    """One that is free, and so is that of a cluster's bus above it."""
    while True:
        with socket.socket() as bound, socket.socket() as bus:
            bound.bind(("127.0.0.1", 0))
            port = int(bound.getsockname()[1])
            if port + _BUS < 65536:
                with contextlib.suppress(OSError):
                    bus.bind(("127.0.0.1", port + _BUS))
                    return port
