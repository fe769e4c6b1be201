"""What a server answers to `tools/list` and its like: the items, and the same answer with fewer of them.

An answer that was made for one agent must not be kept for another one: so it is private, and is asked for again soon.
Source: MCP 2026-07-28, server/utilities/caching and pagination; 2025-11-25, server/utilities/pagination.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

LONGEST_TTL: Final = 60_000
"""Milliseconds for which a client may keep a list."""


class Kind(NamedTuple):
    """What is listed: the member of the result that has it, what names an item, and the call that a list leads to."""

    member: str
    key: str
    act: str
    argument: str


KINDS: Final[Mapping[str, Kind]] = {
    "tools/list": Kind("tools", "name", "tools/call", "name"),
    "resources/list": Kind("resources", "uri", "resources/read", "uri"),
    "resources/templates/list": Kind("resourceTemplates", "uriTemplate", "resources/read", "uri"),
    "prompts/list": Kind("prompts", "name", "prompts/get", "name"),
}
"""Methods that list what can be asked for."""


class UnreadableList(ValueError):
    """A server has answered something else than what it was asked for."""


@dataclass(slots=True)
class Listed:
    """One page. `items` are the objects in it that have a name, in their order."""

    message: dict[str, Any]
    kind: Kind
    items: Sequence[Mapping[str, Any]]

    def name(self, item: Mapping[str, Any]) -> str:
        return str(item[self.kind.key])

    @property
    def cursor(self) -> object:
        """Where the next page begins, None at the end."""
        return self.message["result"].get("nextCursor")

    def shown(self, items: Iterable[Mapping[str, Any]], *, modern: bool) -> bytes:
        """The same answer with these items alone."""
        result = {**self.message["result"], self.kind.member: list(items)}
        ttl = result.get("ttlMs")
        if ttl is not None or modern:
            result["ttlMs"] = min(ttl, LONGEST_TTL) if isinstance(ttl, int | float) and ttl > 0 else 0
        if modern or "cacheScope" in result:
            result["cacheScope"] = "private"
        return orjson.dumps({**self.message, "result": result})


def read(method: str, message: bytes) -> Listed | None:
    """A page of a list; None for an answer without a result, an error. Raises UnreadableList."""
    kind = KINDS[method]
    try:
        told = orjson.loads(message)
    except orjson.JSONDecodeError:
        raise UnreadableList("its answer is no JSON") from None
    if not isinstance(told, dict):
        raise UnreadableList("its answer is no object")
    result = told.get("result")
    if result is None:
        return None
    if not isinstance(result, dict) or not isinstance(result.get(kind.member), list):
        raise UnreadableList(f"its answer has no `{kind.member}`")
    items = [item for item in result[kind.member] if isinstance(item, dict) and isinstance(item.get(kind.key), str)]
    return Listed(told, kind, items)
