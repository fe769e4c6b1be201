"""Who may knock at `/mcp/`: under one of the gateway's own names, and not from the page of a stranger's site.

A site that somebody has open in a browser can let its name lead to that machine's own loopback address, and its scripts
then speak to whatever listens there: DNS rebinding. The browser says so all the same: the Host is the site's. Where a
gateway is reached at another address than loopback, nobody can know by which names, so that they count only once they
are configured; what a browser sends from there has an Origin. Source: MCP 2025-11-25, basic/transports, security.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from config.settings import ListenSettings

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_-])?)\.?(?::([0-9]{1,5}))?")
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ANY: Final = frozenset({"0.0.0.0", "::"})
_REMEMBERED: Final = 1024


class WrongHost(Exception):
    """The request is for a host that is not this gateway, as far as the gateway knows."""


class WrongOrigin(Exception):
    """The request comes from a web page that may not call this gateway."""


class Doorway:
    """The check of Host and Origin under one configuration."""

    def __init__(self, listen: ListenSettings, resource: str | None = None) -> None:
        """`resource` is the URL that agents know the gateway by, where one is configured."""
        self._exact = bool(listen.hosts)
        names = {*_LOCAL, *listen.hosts}
        if listen.host not in _ANY:
            names.add(_bracketed(listen.host.lower()))
        if resource is not None:
            names.add(urlsplit(resource).netloc.lower())
        self._names = frozenset(names)
        self._origins = frozenset(listen.origins)
        self._welcome: set[tuple[bytes | None, bytes | None, str]] = set()

    def check(self, host: bytes | None, origin: bytes | None, local: str) -> None:
        """`local` is the address that the request came to, empty where that is none. Raises WrongHost, WrongOrigin."""
        visitor = (host, origin, local)
        if visitor in self._welcome:
            return
        name, port = _read(host)
        if not name or not self._is_ours(name, port, local):
            raise WrongHost("The Host of this request is none of the names that this gateway is reached by.")
        if origin is not None and not self._may_call(origin, name, port):
            raise WrongOrigin("Pages of this Origin may not call this gateway.")
        if len(self._welcome) >= _REMEMBERED:
            self._welcome.clear()
        self._welcome.add(visitor)

    def _is_ours(self, name: str, port: str, local: str) -> bool:
        if name in self._names or f"{name}:{port}" in self._names or name == _bracketed(local):
            return True
        return not self._exact and not _is_loopback(local)

    def _may_call(self, origin: bytes, name: str, port: str) -> bool:
        site = origin.decode("latin-1").lower()
        if site in self._origins:
            return True
        own = f"{name}:{port}" if port else name
        return name in _LOCAL and site in (f"http://{own}", f"https://{own}")


def _read(host: bytes | None) -> tuple[str, str]:
    """Name and port of a Host, in lower case; the name is empty where it cannot be one."""
    matched = _HOST.fullmatch((host or b"").decode("latin-1").lower())
    return (matched[1], matched[2] or "") if matched else ("", "")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_loopback(local: str) -> bool:
    """True also of what is no address, as where a Unix socket was connected to."""
    try:
        address = ipaddress.ip_address(local)
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
