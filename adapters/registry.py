"""Every protocol the gateway speaks, and which one a path belongs to."""

from collections.abc import Mapping, Sequence
from typing import Final

from adapters.anthropic import Anthropic
from adapters.base import Adapter, Endpoint
from adapters.errors import MethodNotAllowed, UnknownEndpoint
from adapters.http import Http
from adapters.mcp.answers import Mcp
from adapters.openai import OpenAI

OPENAI: Final = OpenAI()
ANTHROPIC: Final = Anthropic()
HTTP: Final = Http()
MCP: Final = Mcp()
ADAPTERS: Sequence[Adapter] = (OPENAI, ANTHROPIC, HTTP, MCP)

_BY_PATH: Mapping[str, Mapping[Adapter, Endpoint]] = {
    path: {adapter: endpoint for adapter in ADAPTERS for endpoint in adapter.endpoints if endpoint.path == path}
    for path in {endpoint.path for adapter in ADAPTERS for endpoint in adapter.endpoints}
}
_OPEN_ENDED = tuple(path for path in _BY_PATH if path.endswith("/"))


def speaking(path: str, anthropic_version: bool) -> Adapter:
    """The protocol of a call, for better or worse: also what refusals are written in, whatever becomes of the call.

    Where a path belongs to both protocols, or to none, an `anthropic-version` header tells them apart.
    """
    owners, _ = _served(path)
    if len(owners) == 1:
        return next(iter(owners))
    return ANTHROPIC if anthropic_version or path.startswith("/v1/messages/") else OPENAI


def endpoint(adapter: Adapter, method: str, path: str) -> tuple[Endpoint, str]:
    """The adapter's endpoint at `path`, and what followed an open-ended path.

    Raises UnknownEndpoint, MethodNotAllowed.
    """
    owners, argument = _served(path)
    found = owners.get(adapter)
    if found is None:
        raise UnknownEndpoint(f"Nothing is served at {path[:200]!r}.")
    if found.method not in (method, "*"):
        raise MethodNotAllowed(found.method)
    return found, argument


def _served(path: str) -> tuple[Mapping[Adapter, Endpoint], str]:
    """Who serves `path`, and what follows it where it is open-ended."""
    served = _BY_PATH.get(path)
    if served is not None:
        return served, ""
    for opening in _OPEN_ENDED:
        if path.startswith(opening):
            return _BY_PATH[opening], path[len(opening) :]
    return {}, ""
