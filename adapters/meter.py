"""Watches a streamed answer go by: what it cost, whether it was finished, whether the target gave up on it."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import orjson

from adapters.base import Usage
from adapters.sse import Framing, data, events

DONE = b"[DONE]"

Watch: TypeAlias = "Callable[[Meter, bytes], bool]"
"""Notes in the meter what one event's data says. True when the event is the answer to a question that only the gateway
asked."""


class Meter:
    """A StreamMeter that looks closely only at events with a sign that matters, and lets all others just pass.

    `signs` are patterns over whole events. They begin with a literal, because that is what makes them fast, and most
    hold a quote, which in a text that a model writes would be escaped. A sign that means nothing costs a closer look
    and nothing else, since what counts is the parsed event.
    """

    __slots__ = ("_framing", "_keep", "_signs", "_watch", "complete", "failed", "usage")

    def __init__(self, signs: Sequence[re.Pattern[bytes]], watch: Watch, *, keep: bool = True) -> None:
        """`keep` is False when events that only the gateway asked for are kept from the agent."""
        self._framing = Framing()
        self._signs = tuple(sign.search for sign in signs)
        self._watch = watch
        self._keep = keep
        self.usage: Usage | None = None
        self.complete = False
        self.failed = False

    def feed(self, piece: bytes) -> bytes:
        run = self._framing.whole(piece)
        for search in self._signs:
            if search(run) is not None:
                return self._watched(run)
        return run

    def rest(self) -> bytes:
        empty, torn = self._framing.rest()
        said = data(torn)
        if not said.startswith(DONE) and not json_object(said):
            return empty
        return self._watched(empty + torn + b"\n\n")

    def _watched(self, run: bytes) -> bytes:
        private = [(start, end) for start, end, said in events(run) if said and self._watch(self, said)]
        if self._keep or not private:
            return run
        kept, position = [], 0
        for start, end in private:
            kept.append(run[position:start])
            position = end
        return b"".join([*kept, run[position:]])


def json_object(said: bytes) -> Mapping[str, Any]:
    """The JSON object that an event's data is; empty for anything else."""
    try:
        value = orjson.loads(said)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
