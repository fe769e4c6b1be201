"""Carries the policy's questions to an OPA server: our own carrier, below the server's base path, with its token."""

import ssl
import time
from typing import Final

from config.errors import SecretMissing
from config.secrets import Secret
from config.settings import OpaSettings
from gateway.carrier import Carrier, CarrierError, Limits, Origin, Timeouts
from policies.opa import Reply, unavailable

_PATIENCE: Final = Timeouts(connect=5.0, first_byte=10.0, idle=10.0, total=30.0)
"""For looks at the server. A decision's deadline is the engine's own, and shorter."""

_TOKEN_KEPT: Final = 1.0
"""Seconds after which the token is read again: those that are mounted as files are replaced while they are in use."""


class OpaLine:
    """See `policies.opa.Line`. Bound to the event loop of its first question."""

    def __init__(self, settings: OpaSettings) -> None:
        """Raises OSError or ssl.SSLError for a CA file that cannot be used."""
        origin, self._base = Origin.parse(settings.url)
        tls = None
        if origin.scheme == "https":
            tls = ssl.create_default_context(cafile=str(settings.ca) if settings.ca is not None else None)
        limits = Limits(connections=settings.max_connections)
        self._carrier = Carrier(origin, timeouts=_PATIENCE, limits=limits, tls=tls)
        self._token: Secret | None = settings.token
        self._headers: list[tuple[bytes, bytes]] = []
        self._read_at = float("-inf")

    async def ask(self, path: str, body: bytes | None, most: int) -> Reply:
        """See `policies.opa.Line`."""
        method = b"GET" if body is None else b"POST"
        target = f"{self._base}{path}".encode("ascii")
        try:
            reply = await self._carrier.send(method, target, self._headers_now(), body or b"", repeatable=True)
            try:
                pieces, size = [], 0
                while piece := await reply.read():
                    pieces.append(piece)
                    size += len(piece)
                    if size > most:
                        raise unavailable(f"OPA's answer is longer than {most} bytes")
                    if reply.complete:
                        break
            finally:
                reply.close()
        except CarrierError as error:
            raise unavailable(f"OPA at {error}") from None
        except SecretMissing as missing:
            raise unavailable(f"policy.opa.token ({missing.reference}) {missing.reason}") from None
        return Reply(reply.status, b"".join(pieces))

    async def close(self) -> None:
        """See `policies.opa.Line`."""
        await self._carrier.close()

    def _headers_now(self) -> list[tuple[bytes, bytes]]:
        now = time.monotonic()
        if now - self._read_at > _TOKEN_KEPT:
            headers = [(b"content-type", b"application/json")]
            if self._token is not None:
                headers.append((b"authorization", b"Bearer " + self._token.reveal().encode("latin-1")))
            self._headers = headers
            self._read_at = now
        return self._headers
