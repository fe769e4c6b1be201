"""Every protocol the gateway speaks, and which one a path belongs to."""

from collections.abc import Mapping, Sequence
from typing import Final

from adapters.anthropic import Anthropic
from adapters.base import Adapter, Endpoint
from adapters.errors import MethodNotAllowed, UnknownEndpoint
from adapters.openai import OpenAI

OPENAI: Final = OpenAI()
ANTHROPIC: Final = Anthropic()
ADAPTERS: Sequence[Adapter] = (OPENAI, ANTHROPIC)

_BY_PATH: Mapping[str, Sequence[tuple[Adapter, Endpoint]]] = {
    path: tuple((adapter, endpoint) for adapter in ADAPTERS for endpoint in adapter.endpoints if endpoint.path == path)
    for path in {endpoint.path for adapter in ADAPTERS for endpoint in adapter.endpoints}
}
_OPEN_ENDED = tuple(path for path in _BY_PATH if path.endswith("/"))


def speaking(path: str, anthropic_version: bool) -> Adapter:
    """The protocol to refuse in, whatever becomes of the call. Paths nobody knows are answered as OpenAI would."""
    if path.startswith("/v1/messages") or anthropic_version:
        return ANTHROPIC
    return OPENAI


def endpoint(adapter: Adapter, method: str, path: str) -> tuple[Endpoint, str]:
    """The adapter's endpoint at `path`, and what followed an open-ended path. Raises UnknownEndpoint, MethodNotAllowed."""
    argument = ""
    choices = _BY_PATH.get(path)
    if choices is None:
        opening = next((opening for opening in _OPEN_ENDED if path.startswith(opening)), None)
        if opening is None:
            raise UnknownEndpoint(f"Nothing is served at {path[:200]!r}.")
        choices, argument = _BY_PATH[opening], path[len(opening) :]
    for owner, found in choices:
        if owner is adapter:
            if found.method != method:
                raise MethodNotAllowed(found.method)
            return found, argument
    raise UnknownEndpoint(f"{path[:200]!r} is not part of the {adapter.protocol} API.")
