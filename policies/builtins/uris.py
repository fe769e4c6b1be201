"""URIs (RFC 3986) taken apart as OPA does it, so that a policy and an OPA server see the same host."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from policies.builtins.arguments import text

LONGEST_URI: Final = 64 * 1024

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ASCII_ESCAPE: Final = re.compile(r"%(?!25)[0-7][0-9A-Fa-f]")
_USER: Final = re.compile(r"[A-Za-z0-9._:~!$&'()*+,;=%@-]*", re.ASCII)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:\[\]<>\"%-]|[^\x00-\x7f])*")
_ZONE: Final = re.compile(r"[A-Za-z0-9._~%-]*", re.ASCII)
_PORT: Final = re.compile(r"(?::[0-9]*)?", re.ASCII)
_IN_PATHS: Final = "$&+,/:;=@-_.~"


def uri_is_valid(value: Any) -> bool:
    """Whether it is a text, not empty, that can be taken apart."""
    try:
        return isinstance(value, str) and value != "" and uri_parse(value) is not None
    except ValueError:
        return False


def uri_parse(value: Any) -> dict[str, str]:
    """Its scheme, hostname, port, path (decoded) and raw_path, raw_query and fragment, as far as they are there."""
    text("uri.parse", value, longest=LONGEST_URI)
    rest, _, fragment = value.partition("#")
    if _CONTROL.search(value):
        raise _refused("a control character")
    found: dict[str, str] = {}
    scheme = _SCHEME.match(rest)
    if scheme:
        found["scheme"] = scheme[1].lower()
        rest = rest[scheme.end() :]
    elif rest.startswith(":"):
        raise _refused("no scheme before the colon")
    rest, _, query = rest.partition("?")
    if not scheme or rest.startswith("/"):
        if not scheme and ":" in rest.partition("/")[0]:
            raise _refused("a colon in its first segment")
        if rest.startswith("//") and (scheme or not rest.startswith("///")):
            authority, slash, path = rest[2:].partition("/")
            rest = slash + path
            found |= _authority(authority)
        found |= _path(rest)
    if query:
        found["raw_query"] = query
    if fragment:
        found["fragment"] = _decoded(fragment)
    return found


def _refused(what: str) -> ValueError:
    return ValueError(f"uri.parse was given a URI with {what}")


def _decoded(part: str) -> str:
    if _BAD_ESCAPE.search(part):
        raise _refused("an incomplete escape")
    return unquote_to_bytes(part).decode("utf-8", "replace")


def _path(raw: str) -> dict[str, str]:
    """`raw_path` differs from `path` where escapes were not those that the path needs."""
    path = _decoded(raw)
    if not path:
        return {}
    return {"path": path, "raw_path": path if quote(unquote_to_bytes(raw), safe=_IN_PATHS) == raw else raw}


def _authority(authority: str) -> dict[str, str]:
    user, at, host = authority.rpartition("@")
    if at and (not _USER.fullmatch(user) or _BAD_ESCAPE.search(user)):
        raise _refused("strange characters before its host")
    if host.startswith("["):
        inside, bracket, port = host[1:].rpartition("]")
        address, zone, name = inside.partition("%25")
        if not bracket or not _is_ipv6(address) or (zone and not _ZONE.fullmatch(name)):
            raise _refused("a bracket that holds no address")
        shown = _decoded(inside)
    else:
        shown, colon, number = host.partition(":")
        port = colon + number
        if not _HOST.fullmatch(shown) or "[" in shown or _ASCII_ESCAPE.search(shown):
            raise _refused("strange characters in its host")
        shown = _decoded(shown)
    if not _PORT.fullmatch(port):
        raise _refused("a port that is no number")
    return {name: part for name, part in (("hostname", shown), ("port", port[1:])) if part}


def _is_ipv6(address: str) -> bool:
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True
