"""A tool that repeats the credential it was shown must not tell it to an agent, also where it is cut between pieces."""

from __future__ import annotations

from collections.abc import Sequence


class Concealer:
    """Masks secrets in a text that comes in pieces. Lengths stay."""

    __slots__ = ("_kept", "_secrets")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = [each for each in secrets if each]
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


def _begun(text: bytes, secret: bytes) -> int:
    """Where the longest end of the text begins that is a beginning of the secret."""
    at = max(0, len(text) - len(secret) + 1)
    while (at := text.find(secret[:1], at)) >= 0:
        if secret.startswith(text[at:]):
            return at
        at += 1
    return len(text)
