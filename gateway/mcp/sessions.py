"""Ids of MCP sessions that any gateway can read: what has to be known of a session stands, sealed, in its id.

An id names the server's own session, which is nobody's business outside, and for whom it was made: shown by another
agent, or at another server, it is unknown. Source: MCP 2025-11-25, basic/transports, session management.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from typing import Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE: Final = 12
_LONGEST: Final = 8192


@dataclass(frozen=True, slots=True)
class Session:
    """`server`, `tenant` and `agent` are those that it was made for; `upstream` is the server's own id, empty where it
    gave none; `version` the protocol's, as it was agreed on."""

    server: str
    tenant: str
    agent: str
    upstream: str
    version: str
    id: str = ""
    """Of the session itself, as the record and budgets name it."""
    abilities: bytes = b"{}"
    """What the client has said that it can do, as JSON text."""


class SealsUnavailable(Exception):
    """The key of the sealed ids cannot be had: nobody's session can be told from a forged one."""


class Seals:
    """Makes ids, and reads them; without a key yet, neither."""

    def __init__(self, key: bytes | None) -> None:
        """`key` has 32 bytes."""
        self._key = AESGCM(key) if key is not None else None

    def use(self, key: bytes) -> None:
        """From now on this is the key."""
        self._key = AESGCM(key)

    def check(self) -> None:
        """Raises SealsUnavailable."""
        _ = self._cipher

    @property
    def _cipher(self) -> AESGCM:
        if self._key is None:
            raise SealsUnavailable("The key of MCP sessions cannot be read, so no session can be begun or continued.")
        return self._key

    def sealed(self, session: Session) -> str:
        """Visible ASCII, as the protocol wants ids to be. Raises SealsUnavailable."""
        nonce = os.urandom(_NONCE)
        text = orjson.dumps(
            [session.server, session.tenant, session.agent, session.upstream, session.version, session.id,
             session.abilities.decode()]
        )  # fmt: skip
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, text, None)).rstrip(b"=").decode()

    def opened(self, identity: str) -> Session | None:
        """None for what was not made here, or with another key. Raises SealsUnavailable."""
        cipher = self._cipher
        if len(identity) > _LONGEST:
            return None
        try:
            sealed = base64.urlsafe_b64decode(identity.encode("ascii") + b"=" * (-len(identity) % 4))
            text = cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
        except (ValueError, binascii.Error, InvalidTag):
            return None
        server, tenant, agent, upstream, version, name, abilities = orjson.loads(text)
        return Session(server, tenant, agent, upstream, version, name, abilities.encode())

    def sealed_text(self, text: bytes, purpose: bytes) -> str:
        """Something else that clients keep for the gateway; what was sealed for one purpose does not pass for another.
        Raises SealsUnavailable."""
        nonce = os.urandom(_NONCE)
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, text, purpose)).rstrip(b"=").decode()

    def text(self, sealed: str, purpose: bytes) -> bytes | None:
        """None for what was not made here for this purpose, or with another key. Raises SealsUnavailable."""
        cipher = self._cipher
        try:
            found = base64.urlsafe_b64decode(sealed.encode("ascii") + b"=" * (-len(sealed) % 4))
            return cipher.decrypt(found[:_NONCE], found[_NONCE:], purpose)
        except (ValueError, binascii.Error, InvalidTag):
            return None
