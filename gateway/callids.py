"""Names a call as it arrives: a ULID, 26 characters that sort by the time of arrival and say nothing else.

Source: github.com/ulid/spec. Ten characters hold the milliseconds since the epoch, sixteen are random, all in
Crockford's base 32, most significant first.
"""

import os

_ALPHABET = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BY_BYTE = bytes(_ALPHABET[byte % 32] for byte in range(256))
"""Turns a random byte into a random character: 256 is a multiple of 32, so all are as likely."""

_RANDOM = 16
_AT_ONCE = 256
"""Names whose random part is made at once: asking the operating system costs more than the rest of the name."""


class CallIds:
    """Makes one name after the other. Not to be carried over a fork, after which two would make the same ones."""

    __slots__ = ("_began", "_epoch", "_noise", "_used")

    def __init__(self) -> None:
        self._epoch = -1
        """What is in `_began`: milliseconds since 1970, divided by 1024."""
        self._began = ""
        self._noise = ""
        self._used = 0

    def next(self, now_ns: int) -> str:
        """The name of a call that arrived at `now_ns`, in Unix nanoseconds."""
        epoch, millisecond = divmod(now_ns // 1_000_000, 1024)
        if epoch != self._epoch:
            self._epoch, self._began = epoch, _characters(epoch, 8)
        start = self._used
        if start == len(self._noise):
            start, self._noise = 0, os.urandom(_RANDOM * _AT_ONCE).translate(_BY_BYTE).decode("ascii")
        self._used = start + _RANDOM
        return self._began + _LAST_TWO[millisecond] + self._noise[start : start + _RANDOM]


def since(name: str) -> int | None:
    """The millisecond in a ULID, in Unix nanoseconds; None for what is none."""
    places = [_ALPHABET.find(char) for char in name.encode()]
    if len(places) != 26 or min(places) < 0:
        return None
    return sum(place << 5 * power for power, place in enumerate(reversed(places[:10]))) * 1_000_000


def _characters(number: int, count: int) -> str:
    return bytes(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(count))).decode("ascii")


_LAST_TWO = [_characters(millisecond, 2) for millisecond in range(1024)]
