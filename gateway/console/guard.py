"""What a browser may do with the console's pages, and which requests come from them."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


def answers_to(host: str | None, names: Collection[str]) -> bool:
    """Whether a Host header is one that the listener answers to: an address, `localhost`, or one of the names.

    Any other name may be somebody else's, who lets it lead here to have a browser take these pages for theirs.
    """
    name = _hostname(host)
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name in names
    return True


def is_ours(headers: Mapping[str, str], link: str | None) -> bool:
    """Whether a request that changes something may come from one of our pages, as far as the browser tells.

    `link` is where people reach the listener, which can have another name than the one a proxy asks for. A browser
    that is asked to tell pages nothing of each other says `null` for an origin: then its other word has to do, and
    where it has none, the form's token.
    """
    site = headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = headers.get("origin", "null")
    if origin == "null":
        return True
    try:
        parts = urlsplit(origin)
        ours = {headers.get("host", "").lower(), urlsplit(link).netloc.lower() if link else ""}
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() in ours - {""}


def is_encrypted(scheme: str, host: str | None, link: str | None) -> bool:
    """Whether the browser's connection is encrypted: here, or by what stands before the listener under its name."""
    return scheme == "https" or (link is not None and link.startswith("https:") and _hostname(host) == name_in(link))


def name_in(link: str) -> str | None:
    return urlsplit(link).hostname


def _hostname(host: str | None) -> str | None:
    if not host or any(char in host for char in "/@?# \\"):
        return None
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname
