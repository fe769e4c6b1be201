"""Stands between the gateway and one local MCP server: a program of its own, which leaves nothing of the server behind.

The gateway runs this file by its path, in a session of its own; it imports nothing but the standard library. The
server inherits standard input, output and error, so that not a byte goes through here. What the keeper is there for:

    the gateway dies, be it by kill -9        the kernel tells the keeper (PR_SET_PDEATHSIG), which ends the server
    the server ends                           what it has started is killed, and the keeper ends as the server did
    the keeper is told to end (SIGTERM)       SIGTERM for the server, and SIGKILL for all that is left a little later
    the keeper itself is killed               the kernel kills the server; what the server had started is left alone

What the server has started is found whatever it does, be it with a session of its own: orphans below the keeper become
its children (PR_SET_CHILD_SUBREAPER). Sources: prctl(2), setrlimit(2), credentials(7).
"""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator

_PDEATHSIG, _SUBREAPER = 1, 36
_TOLD = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_ROUNDS = 200
"""Looks for what is left: something that starts more than it is killed would be followed for ever."""

NOT_STARTED = 127


def _prctl(option: int, value: int) -> None:
    try:
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
    except (OSError, AttributeError):  # no Linux: the gateway's own end of the pipes has to do
        return


def _children() -> Iterator[int]:
    """All processes below this one."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            parents.setdefault(parent, []).append(int(name))
    found = [os.getpid()]
    for each in found:
        found += parents.get(each, ())
    yield from found[1:]


def _reap() -> dict[int, int]:
    """Those that have ended -> how."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def _kill_all() -> None:
    for _ in range(_ROUNDS):
        left = list(_children())
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(0.01)


def _server(command: list[str], memory: int, parent: int) -> None:
    """Becomes the server; returns only where it cannot."""
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(NOT_STARTED)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # What is reserved and not used does not count, unlike with RLIMIT_AS, under which no JavaScript engine starts.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())


def keep(gateway: int, memory: int, grace: float, command: list[str]) -> int:
    """The exit code. `gateway` is the process that all ends with; `memory` in bytes, `grace` in seconds."""
    watched = {*_TOLD, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    _prctl(_PDEATHSIG, signal.SIGTERM)
    _prctl(_SUBREAPER, 1)
    if os.getppid() != gateway:
        return NOT_STARTED
    me = os.getpid()
    server = os.fork()
    if server == 0:
        _server(command, memory, me)
        os._exit(NOT_STARTED)
    # The gateway has to see when the server closes its own.
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    until: float | None = None
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        told = signal.sigwaitinfo(watched) if left is None else signal.sigtimedwait(watched, left)
        ended = _reap()
        if server in ended:
            _kill_all()
            code = os.waitstatus_to_exitcode(ended[server])
            return code if code >= 0 else 128 - code
        if told is None:
            _kill_all()
            return 128 + signal.SIGKILL
        if told.si_signo in _TOLD and until is None:
            until = time.monotonic() + grace
            for pid in _children():
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    continue


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
