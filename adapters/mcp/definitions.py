"""What a tool's definition is: the part of it that people accept, as one hash, and what makes a definition unfit.

    SHA-256(the RFC 8785 form of {name, title, description, inputSchema, outputSchema, annotations}, as far as given)

A model acts on these words, so whoever changes them changes what an agent does. Source: MCP, server/tools, of all
revisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import rfc8785

MEMBERS: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
LARGEST: Final = 512 * 1024
"""Bytes of a definition."""
LONGEST_NAME: Final = 256
"""Characters; the protocol recommends at most 128."""


class UnusableDefinition(ValueError):
    """This is no definition that anybody could accept. The text says why."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One tool's. `text` is its canonical form, of which `digest` is the SHA-256 in hexadecimal digits."""

    name: str
    text: bytes = field(repr=False)
    digest: str
    members: Mapping[str, Any] = field(repr=False, compare=False)


def read(item: Mapping[str, Any]) -> Definition:
    """The definition of an item of `tools/list`, whose name is `sound`. Raises UnusableDefinition."""
    members = {name: item[name] for name in MEMBERS if item.get(name) is not None}
    if not isinstance(members.get("inputSchema"), Mapping):
        raise UnusableDefinition("it has no input schema")
    try:
        text = rfc8785.dumps(members)
    except (ValueError, RecursionError):
        raise UnusableDefinition("it holds numbers or texts that cannot be told apart for certain") from None
    if len(text) > LARGEST:
        raise UnusableDefinition(f"it has more than {LARGEST} bytes")
    return Definition(item["name"], text, hashlib.sha256(text).hexdigest(), members)


def sound(name: object) -> bool:
    """Whether something can be called so: no name that shows as another one, or as none."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()
