"""The public keys of one authorization server, with which the tokens of agents are checked.

They are asked for when a token needs one that is not known, and again after `oauth.refresh`; calls with known keys wait
for nobody. What was had last stays while the server does not answer. Sources: RFC 7517 (keys), RFC 7518 (algorithms).
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import httpx2
import orjson
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from config.settings import IssuerSettings

log = logging.getLogger("weighbridge.oauth")

PATIENCE: Final = 5.0
"""Seconds in which the keys have to be there, and so the longest that a call waits for them."""

_LARGEST: Final = 512 * 1024
_MOST_KEYS: Final = 100
_FIRST_PAUSE: Final = 1.0
"""Seconds after a first failure; each further one doubles them, up to the usual pause."""

_PUBLIC: Final = frozenset({"kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y"})
_FAMILIES: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""A key's type and curve -> the algorithms that it is good for."""

Usable = Mapping[str, list[tuple[str | None, PyJWK]]]
"""An algorithm -> the keys that check it, each with its id."""


def usable(document: bytes, algorithms: Collection[str]) -> Usable:
    """The keys of a JWK set that check signatures by one of the algorithms. Others are passed over.

    A key is bound to its algorithm here: which one a token names does not decide how its signature is checked. Raises
    ValueError for what is no JWK set, or holds no such key.
    """
    parsed = orjson.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no JWK set")
    found: dict[str, list[tuple[str | None, PyJWK]]] = {}
    for key in listed[:_MOST_KEYS]:
        if (
            not isinstance(key, dict)
            or key.get("use", "sig") != "sig"
            or "verify" not in key.get("key_ops", ["verify"])
        ):
            continue
        kid = key.get("kid")
        if kid is not None and not isinstance(kid, str):
            continue
        public = {name: value for name, value in key.items() if name in _PUBLIC}
        for algorithm in _good_for(public, algorithms):
            try:
                found.setdefault(algorithm, []).append((kid, PyJWK(public, algorithm)))
            except (PyJWTError, ValueError, TypeError, KeyError):
                break
    if not any(found.values()):
        raise ValueError("it holds no key that is of use")
    return found


def _good_for(key: Mapping[str, Any], algorithms: Collection[str]) -> list[str]:
    curve = key.get("crv")
    family = _FAMILIES.get((str(key.get("kty")), curve if isinstance(curve, str) else None), ())
    said = key.get("alg")
    return [each for each in family if each in algorithms and said in (None, each)]


class Keys:
    """The keys of one issuer. `generation` grows when they have changed: what was checked before has to be again."""

    def __init__(
        self,
        settings: IssuerSettings,
        refresh: float,
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refresh` and `pause` are in seconds. Raises OSError, ssl.SSLError for files that are of no use."""
        self.settings = settings
        self.generation = 0
        self._refresh, self._pause, self._clock = refresh, pause, clock
        self._usable: Usable = {}
        self._document = b""
        self._failures = 0
        self._next = self._due = -math.inf
        """When they may be asked for again, and when they are to be."""
        self._task: asyncio.Task[None] | None = None
        self._tls: ssl.SSLContext | bool = False
        if settings.jwks_file is not None:
            self._next = self._due = math.inf
            try:
                self._take(settings.jwks_file.read_bytes())
            except ValueError as error:
                raise OSError(f"{settings.jwks_file}: {error}") from None
        elif settings.jwks_url is not None and settings.jwks_url.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=str(settings.ca) if settings.ca is not None else None)

    def like(self, settings: IssuerSettings, refresh: float, pause: float) -> bool:
        """Whether these are the keys that such settings would ask for."""
        return settings.jwks_file is None and (settings, refresh, pause) == (self.settings, self._refresh, self._pause)

    async def find(self, kid: str | None, algorithm: str) -> list[PyJWK]:
        """The keys that a token may be signed with, as a rule one; asks the issuer where there is none."""
        found = self._fitting(kid, algorithm)
        if not found:
            self._ask()
            if self._task is not None:
                await asyncio.shield(self._task)
                found = self._fitting(kid, algorithm)
        return found

    def keep_fresh(self) -> None:
        """Has them asked for again where it is time, and does not wait for that."""
        if self._clock() >= self._due:
            self._ask()

    @property
    def known(self) -> bool:
        """Whether there are any."""
        return bool(self._usable)

    def _fitting(self, kid: str | None, algorithm: str) -> list[PyJWK]:
        keys = self._usable.get(algorithm, [])
        if kid is None:
            # Without a name it could be any, so there must not be two.
            return [keys[0][1]] if len(keys) == 1 else []
        return [key for name, key in keys if name == kid]

    def _ask(self) -> None:
        if self._task is None and self._clock() >= self._next:
            self._task = asyncio.create_task(self._fetch(), name=f"keys of {self.settings.issuer}")

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                self._take(await self._got())
        except Exception as error:
            self._failures += 1
            self._next = self._due = self._clock() + min(self._pause, _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
            why = str(error) if isinstance(error, ValueError) else type(error).__name__
            tell = log.error if self._failures == 1 else log.debug
            tell("the keys of %s cannot be had from %s: %s", self.settings.issuer, self.settings.jwks_url, why)
        else:
            if self._failures:
                log.info("the keys of %s can be had again", self.settings.issuer)
            self._failures = 0
            now = self._clock()
            self._next, self._due = now + self._pause, now + self._refresh
        finally:
            self._task = None

    async def _got(self) -> bytes:
        url = self.settings.jwks_url
        assert url is not None, "keys in a file are never fetched"
        async with (
            httpx2.AsyncClient(verify=self._tls, timeout=PATIENCE, trust_env=False, follow_redirects=False) as client,
            client.stream("GET", url, headers={"accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"it answered {answer.status_code}")
            pieces, size = [], 0
            async for piece in answer.aiter_bytes():
                size += len(piece)
                if size > _LARGEST:
                    raise ValueError("the answer is too long")
                pieces.append(piece)
            return b"".join(pieces)

    def _take(self, document: bytes) -> None:
        """Raises ValueError."""
        if document != self._document:
            self._usable = usable(document, self.settings.algorithms)
            self._document = document
            self.generation += 1
