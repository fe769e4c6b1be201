"""A tool that repeats the credential it was shown must not tell it to an agent, also where it is cut between pieces."""

from __future__ import annotations


class Concealer:
    """Masks a secret in a text that comes in pieces. The length stays; an empty secret is found nowhere."""

    __slots__ = ("_kept", "_mask", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._mask = b"*" * len(secret)
        self._kept = b""

    def feed(self, piece: bytes) -> bytes:
        """What may pass now: all but an end that the secret may begin with."""
        secret = self._secret
        if not secret:
            return piece
        text = self._kept + piece if self._kept else piece
        if secret in text:
            text = text.replace(secret, self._mask)
        cut = _begun(text, secret)
        self._kept = text[cut:]
        return text[:cut]

    def rest(self) -> bytes:
        """What was kept back, once nothing more comes."""
        rest, self._kept = self._kept, b""
        return rest


def _begun(text: bytes, secret: bytes) -> int:
    """Where the longest end of the text begins that is a beginning of the secret."""
    at = max(0, len(text) - len(secret) + 1)
    while (at := text.find(secret[:1], at)) >= 0:
        if secret.startswith(text[at:]):
            return at
        at += 1
    return len(text)
