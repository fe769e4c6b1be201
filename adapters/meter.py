"""Watches a streamed answer go by: how much of it there is, what it cost, whether it was finished or given up.

What is common to all protocols stands here; each has a `Meter` of its own that knows what its events mean, and how a
stream is ended before its time.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, ClassVar, Final

import jiter
import orjson

from adapters.base import AgentCall, Usage
from adapters.likeness import TEXT, Likeness, length
from adapters.sse import Framing, data, events

DONE: Final = b"[DONE]"
GIVEN_UP: Final = frozenset({"abort", "error"})
"""Finish reasons of completions that were not finished: vLLM's, and so Parallax's, when a node of a pipeline is gone;
routers of other APIs say the second one. Source: GradientHQ/parallax, src/parallax/server/engine_core_protocol.py."""
_BYTES_A_TOKEN: Final = 4
"""Of text, on average: English with most tokenizers. Other languages have more bytes a token, code has fewer."""
_WITHOUT_BOUND: Final = 2**63
_DIFFERENT: Final = 8
"""Events of one run that are looked at each for itself, in the hope that those behind are like them. It takes longer
than to look at all of a run at once."""
_SHORTEST: Final = 8
"""Bytes, and fewer than any event that carries text can have."""

SPACE: Final = rb"[ \t]*+"
A_TEXT: Final = rb'"(?!")(' + TEXT + b")"
"""A JSON string that is not empty, without its closing quote."""


def before_value(name: bytes) -> bytes:
    """A pattern for a member of an object up to its value; `name` is a pattern too."""
    return b'"' + name + b'"' + SPACE + b":" + SPACE


class Meter:
    """A StreamMeter that looks closely only at events with a sign that matters, and lets all others just pass.

    `SIGNS` are patterns over whole events. They begin with a literal, because that is what makes them fast, and most
    hold a quote, which in a text that a model writes would be escaped. A sign that means nothing costs a closer look
    and nothing else, since what counts is the parsed event.

    Texts are found by a pattern as well. Every match of it is within one line and every byte is looked at a fixed
    number of times, so the time is linear in what comes, whatever that is.
    """

    __slots__ = (
        "_covered",
        "_framing",
        "_keep",
        "_likeness",
        "_may_cut",
        "_most_pieces",
        "_most_said",
        "_signs",
        "_waiting",
        "call",
        "complete",
        "failed",
        "pieces",
        "said",
        "stopped",
        "usage",
    )

    SIGNS: ClassVar[Sequence[re.Pattern[bytes]]]
    SIGNS_TO_CUT: ClassVar[Sequence[re.Pattern[bytes]]]
    """Those of a stream that may be cut, whose state has to be known."""

    KEEPS_TEXT: ClassVar = False
    """Whether `saw` wants to know of every text."""

    def __init__(self, call: AgentCall, *, keep: bool = True) -> None:
        """`keep` is False when events that only the gateway asked for are kept from the agent."""
        self.call = call
        self.usage: Usage | None = None
        self.complete = False
        self.failed = False
        self.pieces = 0
        self.said = 0
        self.stopped = False
        self._keep = keep
        self._framing = Framing()
        self._likeness = Likeness()
        self._signs = tuple(sign.search for sign in self.SIGNS)
        self._covered = -1
        """The pieces there were when the target reported last."""
        self._may_cut = False
        self._most_pieces = self._most_said = _WITHOUT_BOUND
        self._waiting = b""

    @property
    def ended(self) -> bool:
        return self.complete

    @property
    def made(self) -> Sequence[str]:
        return ()

    @property
    def produced(self) -> int:
        return max(self.pieces, tokens_of(self.said))

    def feed(self, piece: bytes) -> bytes:
        run = self._framing.whole(piece)
        if self._may_cut:
            self.stopped = False
            if self._waiting:
                run, self._waiting = self._waiting + run, b""
            size = len(run)
            if self.said + size > self._most_said or self.pieces + size // _SHORTEST > self._most_pieces:
                return self._carefully(run)
        likeness = self._likeness
        if likeness.hopeless:
            return self._look(run)
        if self._may_cut:
            end = self._follow(run, 0)
        else:
            end, count, bytes_said = likeness.follow(run, 0)
            self.pieces += count
            self.said += bytes_said
        if end == len(run):
            return run
        passed = [run[:end]]
        for _ in range(_DIFFERENT):
            border = run.find(b"\n\n", end) + 2
            if border < 2 or border == len(run) or likeness.hopeless:
                break
            passed.append(self._look(run[end:border]))
            end = self._follow(run, border)
            passed.append(run[border:end])
        if not end:
            return self._look(run)
        if end < len(run):
            passed.append(self._look(run[end:]))
        return b"".join(passed)

    def rest(self) -> bytes:
        empty, torn = self._framing.rest()
        said = data(torn)
        if not said.startswith(DONE) and not json_object(said):
            return empty
        return self._one_by_one(empty + torn + b"\n\n")

    def stop_beyond(self, pieces: int, said: int) -> None:
        self._most_pieces, self._most_said = pieces, said
        if not self._may_cut:
            self._may_cut = True
            self._signs = tuple(sign.search for sign in self.SIGNS_TO_CUT)

    def spent(self) -> Usage:
        usage = self.usage
        if usage is None:
            return Usage(output_tokens=self.produced, estimated=True)
        if self._covered == self.pieces and (usage.output_tokens or not self.pieces):
            return usage
        return dataclasses.replace(usage, output_tokens=max(usage.output_tokens, self.produced), estimated=True)

    # What a protocol's own meter says.

    def texts(self, run: bytes) -> Sequence[bytes]:
        """The texts in a run of events, as JSON strings without quotes, none of them empty."""
        raise NotImplementedError

    def note(self, said: bytes) -> bool:
        """Notes what one event's data says. True when it is the answer to a question that only the gateway asked."""
        raise NotImplementedError

    def saw(self, run: bytes, texts: Sequence[bytes]) -> None:
        """Notes texts, and the events whose data they stand in, where the stream may be cut. It is told of the first,
        and of others where the protocol KEEPS_TEXT."""

    def cut(self) -> bytes:
        raise NotImplementedError

    def reported(self, usage: Usage | None, *, covers: bool = True) -> None:
        """Notes what the target has reported, if anything; `covers` is False where it has not counted the answer."""
        if usage is not None:
            self.usage = usage
            if covers:
                self._covered = self.pieces

    def _follow(self, run: bytes, position: int) -> int:
        """Counts the events that are like an earlier one; where they end."""
        texts: list[bytes] | None = [] if self._may_cut and self.KEEPS_TEXT else None
        end, count, size = self._likeness.follow(run, position, texts)
        if count:
            self.pieces += count
            self.said += size
            if texts:
                self.saw(run[position:end], texts)
        return end

    def _look(self, run: bytes) -> bytes:
        """Looks into events; what passes of them."""
        for search in self._signs:
            if search(run) is not None:
                return self._one_by_one(run)
        texts = self._count(run)
        if len(texts) == 1 and not self._likeness.hopeless:
            self._likeness.learn(run, texts[0])
        return run

    def _carefully(self, run: bytes) -> bytes:
        """A run in which the stream may have to stop: what is like an earlier event is counted before it passes."""
        passed: list[bytes] = []
        position, whole = 0, len(run)
        different = 0 if b"\r" not in run else _DIFFERENT
        while position < whole and different < _DIFFERENT and not self._likeness.hopeless:
            different += 1
            texts: list[bytes] | None = [] if self.KEEPS_TEXT else None
            end, count, size = self._likeness.follow(run, position, texts)
            if self.pieces + count > self._most_pieces or self.said + size > self._most_said:
                break
            if count:
                self.pieces += count
                self.said += size
                if texts:
                    self.saw(run[position:end], texts)
                passed.append(run[position:end])
                position, different = end, 0
            border = run.find(b"\n\n", position) + 2
            if border < 2:
                break
            passed.append(self._look(run[position:border]))
            position = border
            if self.pieces > self._most_pieces or self.said > self._most_said:
                self.stopped = True
                self._waiting = run[position:]
                return b"".join(passed)
        if position < whole:
            passed.append(self._one_by_one(run[position:]))
        return b"".join(passed)

    def _one_by_one(self, run: bytes) -> bytes:
        kept, position = [], 0
        for start, end, said in events(run):
            self._count(run[start:end])
            if said and self.note(said) and not self._keep:
                kept.append(run[position:start])
                position = end
            if self.pieces > self._most_pieces or self.said > self._most_said:
                self.stopped = True
                self._waiting = run[end:]
                run = run[:end]
                break
        return b"".join([*kept, run[position:]]) if kept else run

    def _count(self, run: bytes) -> Sequence[bytes]:
        """Counts the texts of some events, and returns them."""
        found = self.texts(run)
        if len(found) < 2:
            if found:
                self._add(run, found)
            return found
        for line in run.splitlines():  # nobody spreads the data of an event over several
            if texts := self.texts(line):
                self._add(line, texts)
        return found

    def _add(self, event: bytes, texts: Sequence[bytes]) -> None:
        self.pieces += 1
        # Some servers send the same text under two names.
        self.said += length(texts[0]) if len(texts) == 1 else sum(map(length, dict.fromkeys(texts)))
        if self._may_cut:
            self.saw(event, texts)


def tokens_of(size: int) -> int:
    """So many bytes of text, in tokens: an estimate."""
    return -(-size // _BYTES_A_TOKEN) if size > 0 else 0


def bytes_of(tokens: int) -> int:
    """The most bytes of text that are taken for so many tokens."""
    return tokens * _BYTES_A_TOKEN


def told_in(value: object, names: Set[str], foreign: Set[str]) -> Iterator[str]:
    """The texts that stand under these `names` anywhere in a JSON value, but for what is below a `foreign` name."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as members:
                for name, member in members.items():
                    if name in foreign:
                        continue
                    if isinstance(member, str):
                        if name in names:
                            yield member
                    else:
                        waiting.append(member)
            case list() as elements:
                waiting += elements


def json_object(said: bytes) -> Mapping[str, Any]:
    """The JSON object that an event's data is; empty for anything else."""
    try:
        value = orjson.loads(said)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def beginning(said: bytes) -> Mapping[str, Any]:
    """What is whole of a JSON object of which only the beginning is at hand; empty for anything else."""
    try:
        value = jiter.from_json(said, partial_mode=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
