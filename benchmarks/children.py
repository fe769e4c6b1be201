"""Processes of a run: started on one core, known by their ids, ended by them, whatever ends the run."""

import contextlib
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.machine import family, on

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0
"""Seconds a contestant may take to be ready; the slowest peer imports for half a minute."""


class StartFailed(Exception):
    """A process ended or stayed silent instead of becoming ready; the message has its last words."""


class Child:
    """One running process and what it writes."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], words: Path) -> None:
        self.name = name
        self.process = process
        self.words = words

    @property
    def pid(self) -> int:
        return self.process.pid

    def last_words(self, size: int = 1500) -> str:
        return self.words.read_bytes()[-size:].decode(errors="replace")

    def stop(self, patience: float = 10.0) -> None:
        """Asks the process to end, then ends it and every descendant it still has."""
        if self.process.poll() is not None:
            return
        handles = [handle for pid in family(self.pid) if (handle := _handle(pid)) is not None]
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], patience)
            os.close(handle)
        self.process.wait()


def _handle(pid: int) -> int | None:
    """A file descriptor for a process: unlike its id, it cannot come to mean another one."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


class Children:
    """All processes of a run; a `with` block ends them in reverse order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            child.stop()

    def adopt(self, child: Child) -> None:
        """Takes over a process that somebody else started."""
        self._children.append(child)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        core: int,
        ready: str | int,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[Child, str]:
        """Starts a process on a core and waits until it is ready: it prints a line that begins with `ready`, or it
        accepts connections on the port `ready`. Returns it with the rest of that line. `environment` replaces ours.
        Raises StartFailed.
        """
        words = self.folder / f"{name}.log"
        with words.open("wb") as log, on(core):
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)} if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if isinstance(ready, str) else log,
                stderr=log,
                # Ctrl-C is for the run, which then ends each of its children itself.
                start_new_session=True,
            )
        child = Child(name, process, words)
        self.adopt(child)
        told = self._await_line(child, ready) if isinstance(ready, str) else self._await_port(child, ready)
        if told is None:
            child.stop()
            raise StartFailed(f"{name} did not start. Its last words:\n{child.last_words()}")
        return child, told

    def _await_line(self, child: Child, ready: str) -> str | None:
        lines: queue.Queue[str | None] = queue.Queue()

        def listen() -> None:
            assert child.process.stdout is not None
            with child.process.stdout as output:
                for line in output:
                    lines.put(line.decode(errors="replace").rstrip("\n"))
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        for line in _until(time.monotonic() + PATIENCE, lines):
            if line.startswith(ready):
                return line[len(ready) :]
        return None

    def _await_port(self, child: Child, port: int) -> str | None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and child.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return ""
            time.sleep(0.1)
        return None


def _until(deadline: float, lines: "queue.Queue[str | None]") -> Iterator[str]:
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return
        if line is None:
            return
        yield line


def free_port() -> int:
    """A port that nobody listens on now, for programs that cannot pick one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PYTHON = sys.executable
