"""Which definitions of tools may be used: those that were seen first, or that a person has accepted since.

    unknown   --seen-->     accepted        by nobody: the first definition is taken as it comes
    accepted  --changed-->  changed         hidden and refused, whoever asks
    changed   --accept-->   accepted        by a person, for this one definition
    any       --refuse-->   refused         by a person, for every definition of the tool
    refused   --accept-->   accepted

A server can change what its tools say of themselves whenever it likes, and models act on that. Keeping these words is
the work of a store; what follows from them is worked out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import orjson

Word = Literal["accepted", "refused"]
Standing = Literal["accepted", "unknown", "changed", "refused"]
"""How a definition stands."""

LONGEST_DIGEST: Final = 64


@dataclass(frozen=True, slots=True)
class Pin:
    """What holds for one tool of one server. `digest` is that of the definition it was said of; `by` is the person who
    said so, empty where nobody did and it was seen first; `at` is in Unix nanoseconds."""

    server: str
    tool: str
    word: Word
    digest: str
    by: str
    at: int


def standing(pin: Pin | None, digest: str) -> Standing:
    """How a definition stands by what is kept of its tool."""
    if pin is None:
        return "unknown"
    if pin.word == "refused":
        return "refused"
    return "accepted" if pin.digest == digest else "changed"


def written(pin: Pin) -> str:
    """What is kept of a pin beside its server and its tool."""
    return orjson.dumps([pin.word, pin.digest, pin.by, pin.at]).decode()


def read(server: str, tool: str, text: str | bytes) -> Pin:
    """The same, read again. What is none refuses the tool: nobody knows what was said of it."""
    try:
        word, digest, by, at = orjson.loads(text)
        if word in ("accepted", "refused") and all(isinstance(each, str) for each in (digest, by)) and type(at) is int:
            return Pin(server, tool, word, digest, by, at)
    except (ValueError, TypeError):
        pass
    return Pin(server, tool, "refused", "", "", 0)


class StoreUnavailable(Exception):
    """What is kept of definitions cannot be read, or it is not certain that something is kept now."""


class DefinitionStore(Protocol):
    """Keeps pins, each with the text of the definition that it was said of.

    What it answers is durable. All gateways of one state see the same: `shared` says whether there may be others, who
    have to look for what has changed. Methods raise StoreUnavailable.
    """

    shared: bool

    async def versions(self) -> Mapping[str, int]:
        """For each server that has pins a number, which is another one after each change of them."""
        ...

    async def pins(self, server: str) -> list[Pin]:
        """All pins of a server."""
        ...

    async def first(self, server: str, seen: Sequence[tuple[Pin, bytes]]) -> list[Pin]:
        """Pins tools that have none, with the texts of their definitions. The pins of all of these tools as they are
        now: of two who see a tool at the same time, one was first."""
        ...

    async def change(self, pin: Pin, text: bytes, before: Pin | None) -> bool:
        """Sets a pin in place of `before`; False where another one holds by now."""
        ...

    async def text(self, server: str, tool: str) -> bytes | None:
        """The text of the definition that was said of last."""
        ...
