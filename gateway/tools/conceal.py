"""A tool that repeats the credential it was shown must not tell it to an agent, also where it is cut between pieces."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import quote, quote_plus

_ALWAYS_THE_SAME: Final = re.compile(rb"[A-Za-z0-9_.~-]*")
_IN_QUERY: Final = "/:,@*~"
"""What some leave as it is where they encode a query, as `adapters.urls` does."""


class Concealer:
    """Masks secrets in a text that comes in pieces, also as URLs, JSON and HTML spell them. Lengths stay."""

    __slots__ = ("_kept", "_secrets")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = [spelled for each in secrets if each for spelled in spellings(each)]
        self._kept = b""

    def feed(self, piece: bytes) -> bytes:
        """What may pass now: all but an end that a secret may begin with."""
        if not self._secrets:
            return piece
        text = self._kept + piece if self._kept else piece
        cut = len(text)
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, b"*" * len(secret))
        for secret in self._secrets:
            cut = min(cut, _begun(text, secret))
        self._kept = text[cut:]
        return text[:cut]

    def rest(self) -> bytes:
        """What was kept back, once nothing more comes."""
        rest, self._kept = self._kept, b""
        return rest

    def whole(self, text: bytes) -> bytes:
        """All of a text that comes in one piece."""
        return self.feed(text) + self.rest()


@lru_cache(maxsize=256)
def spellings(secret: bytes) -> tuple[bytes, ...]:
    """A secret as it stands in what repeats it: as it is, in a URL, in JSON, in a page. The longest is first, so that
    none is cut short by another."""
    if _ALWAYS_THE_SAME.fullmatch(secret):
        return (secret,)
    text = secret.decode("latin-1")
    urls = {quote(text, safe=_IN_QUERY, encoding="latin-1"), quote(text, safe="", encoding="latin-1")}
    urls |= {quote(text, safe="/", encoding="latin-1"), quote_plus(text, encoding="latin-1")}
    urls |= {re.sub("%..", lambda byte: byte[0].lower(), each) for each in urls}
    plain = json.dumps(text)[1:-1]
    gos = plain.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
    dotnets = gos.replace("+", r"\u002B")
    texts = {plain, gos, dotnets, html.escape(text), *urls}
    texts |= {each.replace("/", r"\/") for each in texts}
    found = {secret, *(each.encode("latin-1") for each in texts)}
    return tuple(sorted(found, key=len, reverse=True))


def _begun(text: bytes, secret: bytes) -> int:
    """Where the longest end of the text begins that is a beginning of the secret."""
    at = max(0, len(text) - len(secret) + 1)
    while (at := text.find(secret[:1], at)) >= 0:
        if secret.startswith(text[at:]):
            return at
        at += 1
    return len(text)
