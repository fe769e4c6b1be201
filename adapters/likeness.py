"""Events that differ from an earlier one of their stream in their text alone, as nearly all do: told at a glance.

Looking into an event takes microseconds, comparing it with its predecessor a fraction of one.
"""

import re
from typing import Final

import orjson

TEXT: Final = rb'[^"\\\r\n]*+(?:\\[^\r\n][^"\\\r\n]*+)*+'
"""What stands between the quotes of a JSON string. It ends with its line, and so within its event, whatever comes."""

_PLAIN: Final = re.compile(rb'[^"\\\r\n]++').match
_ESCAPED: Final = re.compile(rb'(?!")' + TEXT).match
_DIGITS: Final = re.compile(rb"\d++").match
_NUMBER: Final = re.compile(rb'"sequence_number":(\d++)').search
# OpenAI and Anthropic pad their events, against those who guess texts from the lengths of packets.
_PADDED: Final = re.compile(rb' *+(?:,"obfuscation":"[^"\\\r\n]*+")?+\}\n\n').match
_PATIENCE: Final = 4
_LONGEST: Final = 4096
"""Bytes of an event that others are compared with."""


class Likeness:
    """What the events of one stream have in common: all that stands before their text and after it.

    Two events that are alike say the same but for the text, the number they may have, and padding. An event that others
    are compared with has one text; it has been looked into, and nothing else was found in it.
    """

    __slots__ = ("_after", "_before", "_ending", "_numbered", "_patience", "hopeless")

    def __init__(self) -> None:
        self.hopeless = False
        """Whether several events in a row were all different."""
        self._before = b""
        self._numbered = b""
        """What stands between the number and the text, where there is one; then `_before` ends before the number."""
        self._after = self._ending = b""
        """What stands behind the text: up to the padding, and to the end."""
        self._patience = _PATIENCE

    def learn(self, event: bytes, text: bytes) -> None:
        """Takes an event to compare others with, whose only text is `text`, as it stands there."""
        self._patience -= 1
        self.hopeless = not self._patience
        self._before = b""
        quoted = b'"%b"' % text
        start = event.find(quoted)
        if start < 0 or event.find(quoted, start + 1) >= 0 or len(event) > _LONGEST:
            return
        start, end = start + 1, start + 1 + len(text)
        tail = event[end:]
        padding = tail.rfind(b',"obfuscation":"')
        if padding < 0:
            padding = len(tail.removesuffix(b"}\n\n").rstrip(b" "))
        if (padded := _PADDED(tail, padding)) is None or padded.end() < len(tail):
            return
        self._after, self._ending = tail[:padding], tail
        self._before, self._numbered = event[:start], b""
        if number := _NUMBER(event, 0, start):
            self._before, self._numbered = event[: number.start(1)], event[number.end() : start]

    def follow(self, run: bytes, position: int, texts: list[bytes] | None = None) -> tuple[int, int, int]:
        """(end, count, size): of the events from `position` on that are alike, where they end, how many they are, and
        the bytes of their texts. `texts` is given them, as they stand there."""
        before = self._before
        count = size = 0
        if not before:
            return position, 0, 0
        numbered, after, ending = self._numbered, self._after, self._ending
        while run.startswith(before, position):
            start = position + len(before)
            if numbered:
                number = _DIGITS(run, start)
                if number is None or not run.startswith(numbered, number.end()):
                    break
                start = number.end() + len(numbered)
            text = _PLAIN(run, start)
            if text is not None and run.startswith(ending, end := text.end()):
                position = end + len(ending)
                size += end - start
            else:
                if text is None or not run.startswith(after, text.end()):
                    text = _ESCAPED(run, start)
                    if text is None or not run.startswith(after, text.end()):
                        break
                if run.startswith(ending, end := text.end()):
                    position = end + len(ending)
                elif padding := _PADDED(run, end + len(after)):
                    position = padding.end()
                else:
                    break
                size += length(text.group())
            count += 1
            if texts is not None:
                texts.append(text.group())
        if count:
            self._patience = _PATIENCE
        return position, count, size


def length(text: bytes) -> int:
    """Bytes of a JSON string's content without its escapes; where these are wrong, about so many."""
    if b"\\" not in text:
        return len(text)
    if b"\\u" not in text:  # each escape is two bytes for one
        return len(text) - text.count(b"\\") + text.count(b"\\\\")
    try:
        return len(orjson.loads(b'"%b"' % text).encode())
    except orjson.JSONDecodeError:
        return len(text)
