"""The stand-in model server behind every contestant: fixed answers, as fast as one thread can give them.

`python -m benchmarks.upstream` prints `upstream: PORT` and serves until it is terminated. `GET /last` answers with the
last request body that came, so that a run can be checked; everything else is a chat completion. It speaks to `epoll`
itself, without an event loop in between: what the upstream costs must not be what is measured.
"""

import select
import socket

from benchmarks.scenarios import LONG, SHORT, answer_body, answer_events

READY = "upstream: "

_JSON = answer_body()
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_JSON), _JSON)
_STREAMS = {
    events: [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
        *(b"%x\r\n%s\r\n" % (len(event), event) for event in answer_events(events)),
        b"0\r\n\r\n",
    ]
    for events in (LONG, SHORT)
}
_LENGTH_REQUIRED = b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\n\r\n"

_AT_ONCE = 262144
_EDGE = 2048
"""Bytes at either end of a body in which `stream` and `max_tokens` are looked for: they stand beside the messages."""


class Connection:
    """One client. Requests must state their length; one is answered before the next is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.unsent = b""
        """What the client has not taken yet."""
        self.stream: list[bytes] = []
        self.piece = 0
        """The stream that is under way, and its next piece."""
        self._pieces: list[bytes] = []
        self._size = 0
        self._wanted = 0

    def take(self, data: bytes) -> bytes | None:
        """A whole request, and where its body begins goes into `start`; None until the rest is here."""
        if self._pieces:
            self._keep(data)
            if self._size < self._wanted:
                return None
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = self._wanted = 0
        self.start = data.find(b"\r\n\r\n") + 4
        if self.start < 4:
            self._keep(data)
            return None
        head = data[: self.start - 2].lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 : head.find(b"\r", at + 17)]) if at >= 0 else -1
        if length >= 0 and len(data) < self.start + length:
            self._wanted = self.start + length
            self._keep(data)
            return None
        self.framed = length >= 0
        return data

    def _keep(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)


class ModelServer:
    """All connections. Each turn answers what has come and sends one piece more of each stream: a model does not send
    its answer at once."""

    without_length = _LENGTH_REQUIRED
    """The answer to a request that does not state the length of its body."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._streaming: set[Connection] = set()
        self._last: tuple[bytes, int] = b"", 0

    def serve(self) -> None:
        listener = self._listener.fileno()
        while True:
            for number, event in self._poll.poll(0 if self._streaming else -1):
                if number == listener:
                    self._accept()
                    continue
                connection = self._connections[number]
                try:
                    if event & select.EPOLLOUT:
                        self._send(connection, b"")
                    if event & ~select.EPOLLOUT:
                        self._hear(connection)
                except OSError:
                    self._drop(connection)
            for connection in tuple(self._streaming):
                if not connection.unsent:
                    try:
                        self._next_piece(connection)
                    except OSError:
                        self._drop(connection)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[sock.fileno()] = Connection(sock)
        self._poll.register(sock, select.EPOLLIN)

    def _hear(self, connection: Connection) -> None:
        data = connection.socket.recv(_AT_ONCE)
        if not data:
            self._drop(connection)
            return
        request = connection.take(data)
        if request is None:
            return
        if request.startswith(b"GET /last "):
            last, start = self._last
            self._send(
                connection, b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(last) - start) + last[start:]
            )
        elif not connection.framed:
            self._send(connection, self.without_length)
        else:
            self._answer(connection, request)

    def _answer(self, connection: Connection, request: bytes) -> None:
        """Answers a whole request, or begins to."""
        start = connection.start
        self._last = request, start
        stream = _stream(request[start : start + _EDGE] + request[max(start + _EDGE, len(request) - _EDGE) :])
        if stream:
            connection.stream, connection.piece = stream, 0
            self._streaming.add(connection)
        else:
            self._send(connection, _WHOLE)

    def _next_piece(self, connection: Connection) -> None:
        self._send(connection, connection.stream[connection.piece])
        connection.piece += 1
        if connection.piece == len(connection.stream):
            self._streaming.remove(connection)

    def _send(self, connection: Connection, data: bytes) -> None:
        waiting = connection.unsent
        try:
            sent = connection.socket.send(waiting + data if waiting else data)
        except BlockingIOError:
            sent = 0
        if sent < len(waiting) + len(data):
            connection.unsent = (waiting + data)[sent:]
            self._poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        elif waiting:
            connection.unsent = b""
            self._poll.modify(connection.socket, select.EPOLLIN)

    def _drop(self, connection: Connection) -> None:
        self._streaming.discard(connection)
        self._connections.pop(connection.socket.fileno(), None)
        connection.socket.close()


def _stream(text: bytes) -> list[bytes]:
    """What a request is streamed in answer, if it wants a stream. Peers write JSON with and without spaces."""
    if b'"stream":true' in text or b'"stream": true' in text:
        for events, stream in _STREAMS.items():
            if b'"max_tokens":%d' % events in text or b'"max_tokens": %d' % events in text:
                return stream
    return []


if __name__ == "__main__":
    server = ModelServer()
    print(f"{READY}{server.port}", flush=True)
    server.serve()
