"""What the gateway itself shows to a tool: a key of the configuration, or a token that it gets by client credentials.

What an agent has shown to the gateway goes to nobody. Sources: RFC 6749, 4.4 and 5 (client credentials), 2.3.1 (how a
client shows its secret); RFC 8707 (for which resource).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import quote

import httpx2
import orjson

from adapters.base import Headers
from config.errors import SecretMissing
from config.settings import LoginSettings, ToolSettings
from gateway.problems import TargetFailed

log = logging.getLogger("weighbridge.oauth")

_PATIENCE: Final = 5.0
"""Seconds in which a token has to be there, and so the longest that a call waits for one."""

_PAUSE: Final = 1.0
"""Seconds after a failure, or after a new token, in which no other is asked for because of one."""

_LARGEST: Final = 64 * 1024
_UNSAID: Final = 300.0
"""Seconds that a token is taken to last that does not say so."""

_MARGIN: Final = 30.0
"""Seconds before its end from which a token is not used any more; of a short one, a tenth of its time."""

_LEAST_SECRET: Final = 8
"""Characters of the shortest credential that is looked for in answers."""

_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_ERRORS: Final = frozenset(
    {"invalid_client", "invalid_grant", "invalid_request", "invalid_scope", "invalid_target", "unauthorized_client",
     "unsupported_grant_type"}
)  # fmt: skip
"""Words of RFC 6749 and RFC 8707 for a refusal; nothing else that a server says is repeated."""


class Credential(Protocol):
    """What is shown to one tool."""

    @property
    def secrets(self) -> Sequence[bytes]:
        """What no agent may see in an answer. Short ones are not among them: they stand in any text."""
        ...

    async def lines(self) -> Headers:
        """The headers that a request carries for it. Raises TargetFailed where it cannot be had."""
        ...

    async def renewed(self, refused: Headers) -> Headers | None:
        """Others in place of those that the tool has refused with 401; None where there are none."""
        ...


def credential(settings: ToolSettings) -> Credential:
    """Raises SecretMissing."""
    if settings.oauth is not None:
        return ClientCredentials(settings.name, settings.oauth)
    key = settings.key
    return Fixed([(b"authorization", b"Bearer " + key.reveal().encode("latin-1"))] if key is not None else [])


class Fixed:
    """What stands in the configuration; nothing, where nothing does."""

    def __init__(self, lines: Headers) -> None:
        self._lines = lines
        self.secrets = _secrets(lines)

    async def lines(self) -> Headers:
        return self._lines

    async def renewed(self, refused: Headers) -> Headers | None:
        return None


class _NoToken(Exception):
    """The authorization server gives none. The message is for agents, too."""


class ClientCredentials:
    """A token for one tool, kept until shortly before its end. However many calls need one, it is asked for once."""

    def __init__(self, tool: str, settings: LoginSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._tool, self._settings, self._clock = tool, settings, clock
        self._tls: ssl.SSLContext | bool = (
            ssl.create_default_context() if settings.token_url.startswith("https:") else False
        )
        self._lines: Headers = []
        self.secrets: tuple[bytes, ...] = ()
        self._until = 0.0
        self._got_at: float | None = None
        self._failure: tuple[float, str] | None = None
        """Until when nobody asks again, and why."""
        self._task: asyncio.Task[None] | None = None

    async def lines(self) -> Headers:
        if self._lines and self._clock() < self._until:
            return self._lines
        return await self._fetched()

    async def renewed(self, refused: Headers) -> Headers | None:
        if self._lines is refused:
            if self._got_at is not None and self._clock() - self._got_at < _PAUSE and self._task is None:
                return None  # it is new, and another one would fare no better
            self._lines = []
        try:
            return await self.lines()
        except TargetFailed:
            return None

    async def _fetched(self) -> Headers:
        if self._failure is None or self._clock() >= self._failure[0] or self._task is not None:
            if self._task is None:
                self._task = asyncio.create_task(self._fetch(), name=f"token for {self._tool}")
            await asyncio.shield(self._task)
        if self._failure is not None:
            raise TargetFailed(f"The gateway cannot log in at the tool server {self._tool}: {self._failure[1]}.")
        return self._lines

    async def _fetch(self) -> None:
        try:
            try:
                async with asyncio.timeout(_PATIENCE):
                    status, body = await self._asked()
                token, lifetime = _granted(status, body)
            finally:
                self._task = None
        except (_NoToken, httpx2.HTTPError, OSError, TimeoutError, SecretMissing) as error:
            why = str(error) if isinstance(error, _NoToken) else "its authorization server does not answer"
            if isinstance(error, SecretMissing):
                why = "its secret cannot be had"
            if self._failure is None:
                log.error("no token for the tool %s: %s (%s)", self._tool, why, type(error).__name__)
            self._failure = (self._clock() + _PAUSE, why)
        else:
            self._failure = None
            self._got_at = self._clock()
            self._until = self._got_at + lifetime - min(_MARGIN, lifetime / 10)
            self._lines = [(b"authorization", b"Bearer " + token.encode("ascii"))]
            self.secrets = (
                *_secrets(self._lines),
                *self.secrets[:1],
            )  # answers to calls with the last one may come yet

    async def _asked(self) -> tuple[int, bytes]:
        settings = self._settings
        secret = settings.client_secret.reveal()
        form = {"grant_type": "client_credentials"}
        headers = {"accept": "application/json"}
        if settings.method == "basic":
            pair = f"{quote(settings.client_id, safe='')}:{quote(secret, safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": settings.client_id, "client_secret": secret}
        if settings.scope:
            form["scope"] = " ".join(settings.scope)
        if settings.resource is not None:
            form["resource"] = settings.resource
        async with (
            httpx2.AsyncClient(verify=self._tls, timeout=_PATIENCE, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", settings.token_url, data=form, headers=headers) as answer,
        ):
            pieces, size = [], 0
            async for piece in answer.aiter_bytes():
                size += len(piece)
                if size > _LARGEST:
                    raise _NoToken("what its authorization server answers is too long")
                pieces.append(piece)
            return answer.status_code, b"".join(pieces)


def _secrets(lines: Headers) -> tuple[bytes, ...]:
    return tuple(key for _, value in lines if len(key := value.removeprefix(b"Bearer ")) >= _LEAST_SECRET)


def _granted(status: int, body: bytes) -> tuple[str, float]:
    """A token, and for how many seconds it lasts. Raises _NoToken."""
    try:
        parsed: Any = orjson.loads(body)
    except ValueError:
        parsed = None
    said = parsed if isinstance(parsed, dict) else {}
    if status != 200:
        error = said.get("error")
        word = f" ({error})" if isinstance(error, str) and error in _ERRORS else ""
        raise _NoToken(f"its authorization server answers {status}{word}")
    token, kind = said.get("access_token"), said.get("token_type")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise _NoToken("its authorization server answers without a token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise _NoToken("its authorization server answers with a token of another kind")
    try:
        lifetime = float(said.get("expires_in", _UNSAID))
    except (TypeError, ValueError):
        lifetime = _UNSAID
    return token, lifetime if 0 < lifetime < 10**9 else _UNSAID
