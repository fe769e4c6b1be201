"""A token that an agent shows becomes the agent that its issuer speaks of, or the call ends here.

Each token is checked once: signature, issuer, time and subject; what it is for, and its scopes, for each call. Nothing
of a token is kept but the SHA-256 by which it is known again. Sources: RFC 7519 and 9068 (tokens), RFC 8725 (what goes
wrong with them), RFC 8707 (resources).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from config.settings import OAuthSettings
from gateway.identity import Agent, Directory, Unauthenticated
from gateway.oauth.keys import Keys
from gateway.oauth.metadata import resource_of

_LONGEST: Final = 16 * 1024
_MOST: Final = 8192
"""Tokens that are remembered as checked."""

_LONGEST_TOLD: Final = 200
_MOST_TOLD: Final = 3
"""Of what a token says, as far as its holder is told it again: characters of a text, and texts."""

_TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/at+jwt", "application/jwt"})
"""What access tokens call themselves; others, such as logout tokens, are signed with the same keys."""

_SIGNATURES: Final = PyJWS(options={"enforce_minimum_key_length": True})


class ScopeMissing(Exception):
    """The token is good, and does not say that its agent may call."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says, as far as it matters. `expires` is in Unix seconds."""

    subject: str
    expires: float
    audiences: frozenset[str]
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Checked:
    agent: Agent
    claims: Claims
    keys: Keys
    generation: int


class Tokens:
    """Those of all issuers of one configuration."""

    def __init__(
        self,
        settings: OAuthSettings,
        directory: Directory,
        previous: Tokens | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Keys that `previous` has are kept, where they are asked for in the same way; tokens are checked anew.

        Raises OSError, ssl.SSLError for files that are of no use.
        """
        self.settings = settings
        self._directory = directory
        self._keys: dict[str, Keys] = {}
        for issuer in settings.issuers:
            before = previous._keys.get(issuer.issuer) if previous is not None else None
            if before is None or not before.like(issuer, settings.refresh, settings.refresh_pause):
                before = Keys(issuer, settings.refresh, settings.refresh_pause, clock)
            self._keys[issuer.issuer] = before
        self._scopes = frozenset(settings.scopes)
        self._everywhere = frozenset({_canonical(settings.resource), *settings.audiences})
        self._checked: dict[bytes, _Checked] = {}

    async def identify(self, token: bytes, digest: bytes, path: str, now: float) -> Agent:
        """The agent of a token that is shown at `path` at `now`, in Unix seconds. `digest` is the token's SHA-256.

        Raises Unauthenticated, ScopeMissing.
        """
        checked = self._checked.get(digest)
        if checked is None or now >= checked.claims.expires or checked.generation != checked.keys.generation:
            self._checked.pop(digest, None)
            checked = await self._check(token, now)
            if now < checked.claims.expires:
                if len(self._checked) >= _MOST:
                    del self._checked[next(iter(self._checked))]
                self._checked[digest] = checked
        checked.keys.keep_fresh()
        claims = checked.claims
        if self._everywhere.isdisjoint(claims.audiences):
            resource = resource_of(self.settings.resource, path)
            if _canonical(resource) not in claims.audiences:
                raise Unauthenticated(_for_another(claims.audiences, resource), shown=True)
        if not self._scopes <= claims.scopes:
            missing = ", ".join(sorted(self._scopes - claims.scopes))
            raise ScopeMissing(f"The token does not have a scope that is needed here: {missing}.")
        return checked.agent

    async def _check(self, token: bytes, now: float) -> _Checked:
        """Raises Unauthenticated."""
        header, body = _read(token)
        named = body.get("iss")
        keys = self._keys.get(named) if isinstance(named, str) else None
        if keys is None:
            raise Unauthenticated("The token is of an issuer that is not trusted here.", shown=True)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in keys.settings.algorithms:
            raise Unauthenticated("The token is not signed in a way that is taken here.", shown=True)
        if kid is not None and not isinstance(kid, str):
            raise Unauthenticated("The token cannot be read.", shown=True)
        if str(header.get("typ", "")).lower() not in _TYPES:
            raise Unauthenticated("The token is not an access token.", shown=True)
        found = await keys.find(kid, algorithm)
        if not found and not keys.known:
            raise Unauthenticated("The token cannot be checked now: the keys of its issuer cannot be had.", shown=True)
        for key in found:
            try:
                verified = _SIGNATURES.decode_complete(token, key, [algorithm])
            except (PyJWTError, ValueError, TypeError):
                continue
            claims = claimed(orjson.loads(verified["payload"]), keys.settings.claim, now, self.settings.leeway)
            agent = self._directory.logged_in(keys.settings.issuer, claims.subject)
            if agent is None:
                whose = f"Its {keys.settings.claim} is {claims.subject[:_LONGEST_TOLD]!r}"
                remedy = "an operator can write that as the `subject` of an agent"
                raise Unauthenticated(f"The token is of nobody who is configured here. {whose}: {remedy}.", shown=True)
            return _Checked(agent, claims, keys, keys.generation)
        raise Unauthenticated("The token is not signed with a key of its issuer.", shown=True)


def claimed(body: Mapping[str, Any], claim: str, now: float, leeway: float) -> Claims:
    """What a token says whose signature is good. Raises Unauthenticated where it is not valid at `now`, or does not say
    whose it is."""
    expires, begins, issued = _time(body, "exp"), _time(body, "nbf"), _time(body, "iat")
    if expires is None or now >= expires + leeway:
        raise Unauthenticated("The token has expired.", shown=True)
    if max(begins or 0.0, issued or 0.0) > now + leeway:
        raise Unauthenticated("The token is not valid yet.", shown=True)
    subject = body.get(claim)
    if not isinstance(subject, str) or not subject:
        raise Unauthenticated("The token does not say whose it is.", shown=True)
    audiences = frozenset(map(_canonical, _texts(body.get("aud")))) | frozenset(_texts(body.get("aud")))
    scopes = frozenset(
        scope for name in ("scope", "scp") for text in _texts(body.get(name)) for scope in text.split(" ") if scope
    )
    return Claims(subject, expires, audiences, scopes)


def _for_another(audiences: frozenset[str], resource: str) -> str:
    """What a token is refused with that is good elsewhere. Its holder can read in it what it is for."""
    named = sorted({_canonical(each) for each in audiences})
    whom = ", ".join(repr(each[:_LONGEST_TOLD]) for each in named[:_MOST_TOLD]) or "it names no audience"
    return f"The token is for somebody else ({whom}): get one for the resource {resource}."


def _read(token: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Header and body of what may be a token, neither of them to be believed yet. Raises Unauthenticated."""
    parts = token.split(b".")
    if len(parts) == 3 and len(token) <= _LONGEST:
        try:
            header, body = (orjson.loads(_decoded(part)) for part in parts[:2])
        except (ValueError, binascii.Error):
            header = body = None
        if isinstance(header, dict) and isinstance(body, dict):
            return header, body
    raise Unauthenticated("The token cannot be read.", shown=True)


def _decoded(part: bytes) -> bytes:
    return base64.b64decode(part + b"=" * (-len(part) % 4), b"-_", validate=True)


def _time(body: Mapping[str, Any], name: str) -> float | None:
    """Raises Unauthenticated."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthenticated("The token cannot be read.", shown=True)
    return float(value)


def _texts(value: object) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [each for each in listed if isinstance(each, str) and each]


def _canonical(resource: str) -> str:
    """A resource as it is compared: scheme and host in lower case, no slash at the end."""
    try:
        parts = urlsplit(resource)
    except ValueError:
        return resource
    if not parts.scheme or not parts.netloc:
        return resource
    return parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower()).geturl().rstrip("/")
