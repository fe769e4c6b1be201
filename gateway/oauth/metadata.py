"""What a client is told that has to log in: where, for which resource, and with which scopes.

The documents are a function of the configuration and the path alone. Which servers there are is told to nobody who has
not logged in: a server that does not exist has a document, too. Sources: RFC 9728 (documents, challenges), RFC 6750
(errors), MCP 2026-07-28, basic/authorization.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

import orjson

from adapters.mcp.messages import PATH
from config.settings import NAME, OAuthSettings

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"

_SERVER: Final = re.compile(f"{re.escape(PATH)}({NAME})/?")


def resource_of(base: str, path: str) -> str:
    """The resource that is called at a path: one MCP server, or the gateway as a whole."""
    matched = _SERVER.fullmatch(path)
    return f"{base}{PATH}{matched[1]}" if matched else base


def document(settings: OAuthSettings, path: str) -> bytes | None:
    """The metadata at a path that begins with WELL_KNOWN, as JSON; None where there is none."""
    below = path.removeprefix(WELL_KNOWN)
    root = urlsplit(settings.resource).path
    below = below.removeprefix(root) if below == root or below.startswith(f"{root}/") else below
    if below not in ("", "/") and not _SERVER.fullmatch(below):
        return None
    said: dict[str, object] = {
        "resource": resource_of(settings.resource, below),
        "authorization_servers": [each.issuer for each in settings.issuers],
        "bearer_methods_supported": ["header"],
    }
    if settings.scopes:
        said["scopes_supported"] = list(settings.scopes)
    return orjson.dumps(said)


def challenge(settings: OAuthSettings | None, path: str, error: str = "", scopes: Collection[str] = ()) -> bytes:
    """The value of `WWW-Authenticate` for a call at `path`: `error` is a word of RFC 6750, empty where nothing was
    shown; `scopes` are those that the next token has to have."""
    if settings is None:
        return b"Bearer"
    parts = urlsplit(resource_of(settings.resource, path))
    said = [f'resource_metadata="{parts.scheme}://{parts.netloc}{WELL_KNOWN}{parts.path}"']
    if scopes:
        said.append(f'scope="{" ".join(scopes)}"')
    if error:
        said.append(f'error="{error}"')
    return f"Bearer {', '.join(said)}".encode("ascii")
