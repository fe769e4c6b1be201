"""Load at a fixed rate: each call has its moment, and its latency counts from then, however late it could be sent.

That way a contestant that stalls is charged for every call that would have come meanwhile. One thread and `select`,
because event loops round their timers to milliseconds.
"""

import itertools
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httptools

from benchmarks.scenarios import PATH, Scenario
from benchmarks.table import quantile

MOST_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds from a call's moment: to the first byte of the answer's body, and to its end; one entry a call."""

    first: list[float]
    whole: list[float]
    mistake: str = ""

    def p50(self) -> float:
        return quantile(self.whole, 0.50)

    def p99(self) -> float:
        return quantile(self.whole, 0.99)

    def first_p50(self) -> float:
        return quantile(self.first, 0.50)

    def first_p99(self) -> float:
        return quantile(self.first, 0.99)


class Connection:
    """One keep-alive connection, and the answer that is coming in on it. Also its parser's target."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._begin()

    def _begin(self) -> None:
        self.first: float | None = None
        self.done = False
        self.body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def fileno(self) -> int:
        return self.socket.fileno()

    def ask(self, request: bytes, due: float) -> None:
        self._begin()
        self.due = due
        self.socket.sendall(request)

    def hear(self) -> None:
        """Takes in what has come. Raises ConnectionError when the peer is gone before the answer is whole."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("closed before the answer was whole")
        self._parser.feed_data(data)

    @property
    def status(self) -> int:
        return self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.first is None:
            self.first = time.perf_counter()
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.done = True


def requests(scenario: Scenario, keys: Sequence[str], headers: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """The scenario's request for ever, with one agent's key after the other."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    for key in itertools.cycle(keys):
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {key}\r\n{lines}Content-Length: {len(scenario.body)}\r\n\r\n"
        )
        yield head.encode() + scenario.body


def run(port: int, source: Iterator[bytes], scenario: Scenario, rate: float, seconds: float) -> Latencies:
    """Sends `rate` calls a second for so long, checks every answer, and waits for the last of them."""
    first: list[float] = []
    whole: list[float] = []
    idle: list[Connection] = [Connection(port)]
    busy: set[Connection] = set()
    start = time.perf_counter()
    total = round(rate * seconds)
    sent = 0
    mistake = ""
    try:
        while (sent < total or busy) and not mistake:
            now = time.perf_counter()
            while sent < total and start + sent / rate <= now:
                if not idle:
                    if len(busy) >= MOST_CONNECTIONS:
                        return Latencies(
                            first, whole, f"{MOST_CONNECTIONS} calls under way: {rate:g} a second are too many"
                        )
                    idle.append(Connection(port))
                connection = idle.pop()
                connection.ask(next(source), start + sent / rate)
                busy.add(connection)
                sent += 1
            wait = max(0.0, start + sent / rate - time.perf_counter()) if sent < total else 60.0
            ready, _, _ = select.select(list(busy), [], [], wait)
            if not ready and sent >= total:
                mistake = "an answer took more than 60 s"
            for connection in ready:
                connection.hear()
                if connection.done:
                    ended = time.perf_counter()
                    body = b"".join(connection.body)
                    mistake = mistake or scenario.mistake(connection.status, body)
                    first.append(((connection.first or ended) - connection.due) * 1e3)
                    whole.append((ended - connection.due) * 1e3)
                    busy.remove(connection)
                    idle.append(connection)
    except OSError as error:
        mistake = mistake or f"{type(error).__name__}: {error}"
    finally:
        for connection in (*idle, *busy):
            connection.socket.close()
    return Latencies(first, whole, mistake)
