"""Keeps a worker serving: holds the listening sockets, starts the process that uses them, and starts it again.

A worker that a runaway policy has stopped ends itself (`policies.watchdog`); connections that come meanwhile wait in
the sockets' queues, which outlive it.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from config.settings import Settings
from gateway.worker import LEDGER_HELD, READY, UNUSABLE
from policies.watchdog import RUNAWAY

log = logging.getLogger("weighbridge.supervise")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_LAST_WORDS = 10.0
"""Seconds after the drain in which a worker that was told to stop has to be gone."""

_STEADY = 60.0
"""Seconds a worker has to have served for its end to count as a first one."""


class AddressUnavailable(Exception):
    """A listener's address cannot be bound."""


def bind(host: str, port: int) -> socket.socket:
    """Raises AddressUnavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AddressUnavailable(f"{host}:{port} cannot be listened on: {error.strerror}.") from None
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Supervisor:
    """One worker at a time."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Raises AddressUnavailable."""
        self._path = path
        self._log = settings.log
        self._data = bind(settings.listen.host, settings.listen.port)
        self._admin = bind(settings.admin.listen.host, settings.admin.listen.port)
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._grace = settings.listen.drain + _LAST_WORDS
        self._bell, self._ringer = socket.socketpair()

    def run(self) -> int:
        """Serves until told to stop. The exit code is 0 then, or the worker's when it could not even start.

        The worker of a supervisor that was killed writes the ledger until its calls are over, so a first worker that
        finds the ledger held is tried again for as long as that may take.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        announced, pause, patience = False, _FIRST_PAUSE, time.monotonic() + self._grace
        while True:
            started = time.monotonic()
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    worker = self._start(theirs)
                ready = ours.recv(len(READY)) == READY
                if ready and not announced:
                    announced = True
                    print(self._announcement(), flush=True)  # noqa: T201  # scripts wait for this line
                code = self._await_end(worker)
            if self._told_to_stop():
                return 0
            if not announced and (code != LEDGER_HELD or time.monotonic() > patience):
                return UNUSABLE if code == LEDGER_HELD else code or 1
            pause = _FIRST_PAUSE if time.monotonic() - started > _STEADY else min(pause * 2, _LONGEST_PAUSE)
            log.error("the worker ended %s; the next one starts in %.1f s", _how(code), pause)
            select.select([self._bell], [], [], pause)
            if self._told_to_stop():
                return 0

    def _announcement(self) -> str:
        return f"weighbridge: agents {url(self._data)} admin {url(self._admin)}"

    def _start(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        inherited = {"data": self._data, "admin": self._admin, "supervisor": theirs}
        command = [sys.executable, "-m", "gateway.worker", "--config", str(self._path)]
        for name, each in inherited.items():
            command += [f"--{name}", str(each.fileno())]
        command += ["--log-level", self._log.level, "--log-format", self._log.format]
        self._worker = subprocess.Popen(
            command, pass_fds=[each.fileno() for each in inherited.values()], start_new_session=True
        )
        if self._told_to_stop():
            self._worker.terminate()
        return self._worker

    def _await_end(self, worker: subprocess.Popen[bytes]) -> int:
        """The exit code. A worker that was told to stop and does not is killed: all it has to keep is in the ledger."""
        ended = os.pidfd_open(worker.pid)
        try:
            select.select([ended, self._bell.fileno()], [], [])
            return worker.wait(self._grace if self._told_to_stop() else None)
        except subprocess.TimeoutExpired:
            log.error("the worker did not stop in %.0f s and is killed", self._grace)
            worker.kill()
            return worker.wait()
        finally:
            os.close(ended)

    def _told_to_stop(self) -> bool:
        return self._stopping

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._ringer.send(b".")
        if self._worker is not None and self._worker.poll() is None:
            self._worker.terminate()


def _how(code: int) -> str:
    if code == -RUNAWAY:
        return "because a decision took more processor time than policy.watchdog allows"
    return f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with {code}"
