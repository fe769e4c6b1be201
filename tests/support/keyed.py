"""A door before a gateway for clients that cannot show a key: it adds the key's header, and passes all else untouched.

Host and Origin stay the client's own. Connections are not shared: one from a client is one to the gateway, and ends
with it on either side.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Final

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


@contextlib.contextmanager
def keyed(port: int, key: str) -> Iterator[int]:
    """The port of a door before `port` of this machine, until the block ends."""
    added = f"authorization: Bearer {key}\r\n".encode()
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(*work: object) -> None:
        thread = threading.Thread(target=work[0], args=work[1:], daemon=True)  # type: ignore[arg-type]
        threads.append(thread)
        thread.start()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            onward = socket.create_connection(("127.0.0.1", port))
            connections.extend((client, onward))
            start(_requests, client, onward, added)
            start(_answers, onward, client)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        start(accept)
        try:
            yield listener.getsockname()[1]
        finally:
            _end(listener)
            for each in connections:
                _end(each)
            for thread in threads:
                thread.join(10)


def _requests(client: socket.socket, onward: socket.socket, added: bytes) -> None:
    """Heads get the line, bodies pass."""
    held = b""
    with contextlib.suppress(OSError):
        while True:
            while b"\r\n\r\n" not in held:
                piece = client.recv(65536)
                if not piece:
                    raise ConnectionResetError
                held += piece
            head, _, held = held.partition(b"\r\n\r\n")
            first, _, rest = head.partition(b"\r\n")
            if _CHUNKED.search(head + b"\r\n"):
                raise ConnectionResetError  # nobody has sent one yet
            length = _LENGTH.search(head + b"\r\n")
            left = int(length[1]) if length else 0
            onward.sendall(first + b"\r\n" + added + rest + b"\r\n\r\n" + held[:left])
            left, held = left - len(held[:left]), held[left:]
            while left:
                piece = client.recv(min(left, 65536))
                if not piece:
                    raise ConnectionResetError
                onward.sendall(piece)
                left -= len(piece)
    _end(onward)


def _answers(onward: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := onward.recv(65536):
            client.sendall(piece)
    _end(client)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
