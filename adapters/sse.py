"""Server-sent events as they pass: where an event ends, and what its data says (WHATWG HTML, section 9.2). No I/O."""

import re
from collections.abc import Iterator
from typing import Final

LONGEST_EVENT: Final = 8 * 1024 * 1024
"""Bytes; a target that never ends its event is a fault, not a reason to run out of memory."""

# An event ends where a line end follows a line end, and each may be \n, \r or \r\n. A \n behind \r\r belongs to it, but
# may as well open the next event, where it is one more empty line: so every end is known by its first two or three
# bytes, except that \n\r waits to see whether it becomes \n\r\n.
_END: Final = re.compile(rb"\n\n|\n\r\n|\r\r|\n\r(?=[^\n])")
_END_IN_RUN: Final = re.compile(rb"\n\n|\n\r\n|\r\r|\n\r(?!\n)")
_USUAL_ENDS: Final = (b"\n\n", b"\n\r\n")
_LINE_ENDS: Final = b"\r\n"
_ONE_LINE: Final = bytes.maketrans(_LINE_ENDS, b"  ")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Framing:
    """Cuts a stream into runs of whole events, holding back the beginning of the next one."""

    __slots__ = ("_held", "_longest")

    def __init__(self, longest: int = LONGEST_EVENT) -> None:
        self._held = bytearray()
        self._longest = longest

    def whole(self, piece: bytes) -> bytes:
        """All events that `piece` completes. Raises ValueError when more than `longest` bytes belong to the next."""
        held = self._held
        if not held and piece.endswith(_USUAL_ENDS):
            return piece
        seen = max(0, len(held) - 2)
        held += piece
        if held.find(b"\r", seen) < 0:
            cut = held.rfind(b"\n\n", seen) + 2
            cut = 0 if cut < 2 else cut
        else:
            cut = max((end.end() for end in _END.finditer(held, seen)), default=0)
        if len(held) - cut > self._longest:
            raise ValueError(f"an event of more than {self._longest} bytes")
        run = bytes(held[:cut])
        del held[:cut]
        return run

    def rest(self) -> tuple[bytes, bytes]:
        """What is held when the stream has ended: empty lines, and the beginning of an event that nothing will end."""
        held = bytes(self._held)
        self._held.clear()
        torn = held.lstrip(_LINE_ENDS)
        return held[: len(held) - len(torn)], torn


def events(run: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, data) of each event in a run of whole events; empty lines before an event are no part of it."""
    start = 0
    for ending in _END_IN_RUN.finditer(run):
        end = ending.end()
        event = run[start:end].lstrip(_LINE_ENDS)
        yield end - len(event), end, data(event)
        start = end


def data(event: bytes) -> bytes:
    """The data of one event: its `data:` lines without the field name, joined by line feeds; empty when it has none.

    A stream may open with a byte order mark.
    """
    lines = event.removeprefix(_BYTE_ORDER_MARK).splitlines()
    return b"\n".join([line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")])


def with_data(event: bytes, said: bytes) -> bytes:
    """The same event with other data, a JSON text; its id, its name and all else stay as they came."""
    kept: list[bytes] = []
    place: int | None = None
    for line in event.splitlines():
        if line.removeprefix(_BYTE_ORDER_MARK).startswith(b"data:"):
            place = len(kept) if place is None else place
        elif line:
            kept.append(line)
    kept.insert(len(kept) if place is None else place, b"data: " + said.translate(_ONE_LINE))
    return b"\n".join(kept) + b"\n\n"
