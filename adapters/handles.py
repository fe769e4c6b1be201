"""What a call refers to that only the target which made it has: ids of responses and conversations, encrypted parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from adapters.base import member

MOST: Final = 1024
"""Handles of one call's or one answer's items: as many as anybody could mean. Who writes a hundred thousand of them
shall not have every other agent's forgotten, nor everybody wait while they are looked up."""
_ENCRYPTED: Final = "encrypted_content"


def referred(arguments: Mapping[str, Any]) -> Sequence[str]:
    """The handles that a call of the responses API brings back, in the order in which it names them: of items the last
    MOST, since the last one decides."""
    named = [*_texts(arguments.get("previous_response_id")), *_conversation(arguments)]
    found: list[str] = []
    items = arguments.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            if item.get("type") == "item_reference":
                found += _texts(item.get("id"))
            found += _texts(item.get(_ENCRYPTED))
    return named + found[-MOST:]


def made(response: Mapping[str, Any]) -> Sequence[str]:
    """The handles that a response hands out, MOST at most: a later call may bring back any of them."""
    found = [*_texts(response.get("id")), *_conversation(response)]
    output = response.get("output")
    for item in output if isinstance(output, list) else ():
        if isinstance(item, dict):
            found += [*_texts(item.get("id")), *_texts(item.get(_ENCRYPTED))]
    return found[:MOST]


def _conversation(document: Mapping[str, Any]) -> Iterator[str]:
    """An id, or an object that has one."""
    yield from _texts(document.get("conversation"))
    yield from _texts(member(document, "conversation").get("id"))


def _texts(value: object) -> Sequence[str]:
    return (value,) if isinstance(value, str) and value else ()
