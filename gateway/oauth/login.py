"""Who is calling, by a key or by a token; and what those are told who do not show one."""

from __future__ import annotations

import hashlib
from typing import Final

from config.settings import OAuthSettings
from gateway.identity import Agent, Directory, Unauthenticated, shown
from gateway.oauth.metadata import challenge, document
from gateway.oauth.tokens import ScopeMissing, Tokens

_LOG_IN: Final = (
    "The call shows neither a token nor a key. Log in where the header WWW-Authenticate leads to, and send the token "
    "as `Authorization: Bearer TOKEN`; or send a key in the same way."
)


class Login:
    """The door of one configuration. Without `oauth` there are keys alone."""

    def __init__(self, directory: Directory, settings: OAuthSettings | None, previous: Login | None = None) -> None:
        """Raises as `Tokens` does."""
        self._directory = directory
        self._settings = settings
        self._tokens = None
        if settings is not None:
            self._tokens = Tokens(settings, directory, previous._tokens if previous is not None else None)

    async def identify(self, authorization: bytes | None, api_key: bytes | None, path: str, now: float) -> Agent:
        """The agent that calls at `path`, at `now` in Unix seconds. Raises Unauthenticated, ScopeMissing."""
        try:
            key = shown(authorization, api_key)
        except Unauthenticated as error:
            if error.shown or self._settings is None:
                raise
            raise Unauthenticated(_LOG_IN) from None
        digest = hashlib.sha256(key).digest()
        agent = self._directory.holder(digest)
        if agent is not None:
            return agent
        # A token stands in the header that is made for it, and has three parts.
        if self._tokens is None or not authorization or key.count(b".") != 2:
            raise Unauthenticated("The key is not known here. Ask the operator of this gateway for one.", shown=True)
        return await self._tokens.identify(key, digest, path, now)

    def challenge(self, path: str, error: Exception) -> bytes:
        """`WWW-Authenticate` for a call that `error` has ended."""
        settings = self._settings
        scopes = settings.scopes if settings is not None else ()
        if isinstance(error, ScopeMissing):
            return challenge(settings, path, "insufficient_scope", scopes)
        return challenge(settings, path, "invalid_token" if getattr(error, "shown", False) else "", scopes)

    def document(self, path: str) -> bytes | None:
        """The metadata of a protected resource, as `gateway.oauth.metadata.document`; None without `oauth`."""
        return document(self._settings, path) if self._settings is not None else None
