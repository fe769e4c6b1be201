"""Server-sent events as they pass: where an event ends, and what its data says (WHATWG HTML, section 9.2). No I/O."""

import re
from collections.abc import Iterator

_BLANK_LINES = (b"\n\n", b"\n\r\n", b"\r\r")
_END_OF_EVENT = re.compile(rb"\n\n|\n\r\n|\r\r|\r\n\r\n")
LONGEST_EVENT = 8 * 1024 * 1024
"""Bytes; a target that never ends its event is a fault, not a reason to run out of memory."""


class Framing:
    """Cuts a stream into runs of whole events, holding back the beginning of the next one."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def whole(self, piece: bytes) -> bytes:
        """All events that `piece` completes. Raises ValueError when one event is over LONGEST_EVENT bytes."""
        held = self._held
        if not held and piece.endswith(b"\n\n"):
            return piece
        seen = max(0, len(held) - 3)
        held += piece
        cut = max((at + len(mark) for mark in _BLANK_LINES if (at := held.rfind(mark, seen)) >= 0), default=0)
        if len(held) - cut > LONGEST_EVENT:
            raise ValueError(f"an event of more than {LONGEST_EVENT} bytes")
        run = bytes(held[:cut])
        del held[:cut]
        return run


def events(run: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, data) of each event in a run of whole events; `data` is the event's data lines, joined."""
    start = 0
    for ending in _END_OF_EVENT.finditer(run):
        end = ending.end()
        yield start, end, data(run[start:end])
        start = end


def data(event: bytes) -> bytes:
    """The data of one event: its `data:` lines without the field name, joined by line feeds."""
    lines = [
        line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")
    ]
    return b"\n".join(lines)
