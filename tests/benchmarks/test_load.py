"""The load and what it is aimed at, over real sockets."""

import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import pace
from benchmarks.children import PYTHON, Children, StartFailed
from benchmarks.machine import rss
from benchmarks.scenarios import SCENARIOS, answer_body
from benchmarks.upstream import READY

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(answer_body()), answer_body())


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[int]:
    with Children(tmp_path) as children:
        _, told = children.start("upstream", [PYTHON, "-m", "benchmarks.upstream"], core=0, ready=READY)
        yield int(told)


class StallsOnce:
    """A model server that answers each call at once, but for one, before which it does nothing for `seconds`: one
    thread serves all connections, so everybody waits."""

    def __init__(self, seconds: float, at: int) -> None:
        self._seconds, self._at = seconds, at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._turn = threading.Lock()
        self._calls = itertools.count()
        self._stalled = threading.Event()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        size = len(next(pace.requests(SCENARIOS["small"], ["key"], ())))
        with sock:
            while len(sock.recv(size, socket.MSG_WAITALL)) == size:
                with self._turn:
                    if next(self._calls) == self._at:
                        self._stalled.wait(self._seconds)
                    sock.sendall(ANSWER)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_upstream_answers_every_scenario_rightly(upstream: int, name: str) -> None:
    scenario = SCENARIOS[name]
    latencies = pace.run(upstream, pace.requests(scenario, ["key"], ()), scenario, rate=100, seconds=0.2)
    assert latencies.mistake == ""
    assert len(latencies.whole) == 20
    assert all(0 < first <= whole for first, whole in zip(latencies.first, latencies.whole, strict=True))
    with socket.create_connection(("127.0.0.1", upstream)) as sock:
        sock.sendall(b"GET /last HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while not received.endswith(scenario.body):
            piece = sock.recv(65536)
            assert piece, "the upstream remembers the last request's body"
            received += piece


def test_the_upstream_takes_a_request_byte_by_byte(upstream: int) -> None:
    request = next(pace.requests(SCENARIOS["small"], ["key"], ()))
    with socket.create_connection(("127.0.0.1", upstream)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(request)):
            sock.sendall(request[position : position + 1])
        received = b""
        while not received.endswith(answer_body()):
            piece = sock.recv(65536)
            assert piece, "the answer comes whole"
            received += piece


def test_the_upstream_refuses_a_request_without_a_length(upstream: int) -> None:
    with socket.create_connection(("127.0.0.1", upstream)) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 411 ")


def test_a_stall_is_charged_to_every_call_that_would_have_come_meanwhile() -> None:
    server = StallsOnce(seconds=0.5, at=10)
    try:
        source = pace.requests(SCENARIOS["small"], ["key"], ())
        latencies = pace.run(server.port, source, SCENARIOS["small"], rate=100, seconds=1.0)
    finally:
        server.close()
    assert latencies.mistake == ""
    assert len(latencies.whole) == 100
    slow = [latency for latency in latencies.whole if latency > 100]
    assert 35 <= len(slow) <= 60, "about fifty calls fell into the stall, forty of them more than 0.1 s before its end"
    assert max(latencies.whole) >= 500


def test_an_answer_that_is_not_what_was_asked_for_ends_the_run(upstream: int) -> None:
    whole, stream = SCENARIOS["small"], SCENARIOS["stream"]
    latencies = pace.run(upstream, pace.requests(whole, ["key"], ()), stream, rate=100, seconds=1.0)
    assert latencies.mistake == "the stream does not end with [DONE]"
    assert len(latencies.whole) < 100


def test_a_child_that_ends_instead_of_serving_is_reported_with_its_last_words(tmp_path: Path) -> None:
    command = [PYTHON, "-c", "raise SystemExit('no bridge here')"]
    with Children(tmp_path) as children, pytest.raises(StartFailed, match="no bridge here"):
        children.start("broken", command, core=0, ready="ready")


def test_children_and_their_children_end_with_the_run(tmp_path: Path) -> None:
    # The grandchild ignores the polite signal, as a supervisor's worker might.
    text = (
        "import subprocess, sys, signal\n"
        "wait = 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()'\n"
        "with subprocess.Popen([sys.executable, '-c', wait], stdout=subprocess.PIPE) as child:\n"
        "    child.stdout.readline()\n"
        "    print('ready', child.pid, flush=True)\n"
    )
    with Children(tmp_path) as children:
        child, told = children.start("parent", [PYTHON, "-c", text], core=0, ready="ready ")
        assert rss(child.pid) > rss(int(told)) > 2**20
    assert not Path(f"/proc/{child.pid}").exists()
    state = Path(f"/proc/{told.strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
