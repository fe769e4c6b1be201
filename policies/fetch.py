"""Bundles from an HTTP server: asked for again and again, fetched when they are new, given on as they came.

The exchange is that of OPA's bundle service API: a conditional GET, and long polls where the server holds them. A
server shows that by the content type `application/vnd.openpolicyagent.bundles`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import random
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import httpx2

from config.errors import SecretMissing
from config.settings import BundleSettings
from policies.archive import LARGEST_PACKED
from policies.errors import PolicyError, Problem
from policies.sources import Fetched

LONG_POLLS: Final = "application/vnd.openpolicyagent.bundles"
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
"""Seconds of the first pause after a failure, which each further failure doubles, and of the longest."""
_BREATH: Final = 1.0
_BREATH_AFTER_NEWS: Final = 0.25
"""Seconds from one long poll to the next, for servers that answer at once although they have promised to wait."""
_LONGEST_ETAG: Final = 1024


class Server:
    """One bundle's server, and what it said last."""

    def __init__(self, settings: BundleSettings) -> None:
        self.settings = settings
        self.etag: str | None = None
        self.long_polls = settings.long_poll > 0
        self._last: bytes | None = None
        """The digest of what it sent last."""
        self._client: httpx2.AsyncClient | None = None

    async def ask(self) -> Fetched | None:
        """The bundle if it is another than the last one, else None. With long polls, that may take a while.

        Raises PolicyError; the next question is then for the bundle whatever it is.
        """
        wait = self.settings.long_poll if self.long_polls and self.etag is not None else 0.0
        try:
            async with asyncio.timeout(self.settings.timeout + wait):
                return await self._exchange(wait)
        except TimeoutError:
            raise self._failed(f"did not answer within {self.settings.timeout + wait:g} s") from None
        except SecretMissing as missing:
            raise self._failed(f"cannot be asked: policy.bundle.token ({missing.reference}) {missing.reason}") from None
        except (httpx2.HTTPError, ssl.SSLError, OSError) as error:
            raise self._failed(f"cannot be reached: {_told(error)}") from None
        except PolicyError:
            raise
        except Exception as error:
            # Whatever it is, the server has to be asked again.
            raise self._failed(f"cannot be asked ({type(error).__name__})") from None

    async def close(self) -> None:
        """Ends its connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _exchange(self, wait: float) -> Fetched | None:
        if self._client is None:
            self._client = await asyncio.to_thread(_client, self.settings)  # reads some hundred certificates
        async with self._client.stream("GET", self.settings.url, headers=self._headers(wait)) as answer:
            if answer.status_code == 304 and self.etag is not None:
                return None
            if answer.status_code != 200:
                raise self._failed(_refusal(answer.status_code))
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise self._failed("sends the bundle in a content encoding, which was not asked for")
            content = bytearray()
            async for piece in answer.aiter_raw():
                content += piece
                if len(content) > LARGEST_PACKED:
                    raise self._failed(f"sends more than {LARGEST_PACKED} bytes")
            etag = answer.headers.get("etag")
            self.etag = etag if etag and len(etag) <= _LONGEST_ETAG and etag.isascii() else None
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()
            self.long_polls = self.settings.long_poll > 0 and kind == LONG_POLLS
        # Without an ETag the whole comes each time. Loaded again for nothing, it would end what has been learned of it.
        last, self._last = self._last, await asyncio.to_thread(_digest, content)
        return Fetched(self.settings.url, bytes(content)) if self._last != last else None

    def _headers(self, wait: float) -> dict[str, str]:
        # The archive is to arrive as it is: nobody but us inflates it, and only up to a limit.
        headers = {
            "accept-encoding": "identity",
            "prefer": "modes=snapshot" + (f";wait={math.ceil(wait)}" if wait else ""),
        }
        if self.etag is not None:
            headers["if-none-match"] = self.etag
        if self.settings.token is not None:
            headers["authorization"] = f"Bearer {self.settings.token.reveal()}"
        return headers

    def _failed(self, message: str) -> PolicyError:
        self.etag = self._last = None
        remedy = "Check policy.bundle and the server; it is asked again by and by."
        return PolicyError([Problem(self.settings.url, None, message, remedy)])


News = Fetched | Problem | None
"""A new bundle, what went wrong, or that nothing has changed."""


async def news(settings: BundleSettings) -> AsyncGenerator[News, None]:
    """What the server says, as often as the settings want it asked, until the caller stops listening."""
    server = Server(settings)
    failures = 0
    try:
        while True:
            began = time.monotonic()
            said: News
            try:
                said = await server.ask()
                failures = 0
            except PolicyError as error:
                said = error.problems[0]
                failures += 1
            yield said
            await asyncio.sleep(_pause(server, failures, said is None, time.monotonic() - began))
    finally:
        await server.close()


async def once(settings: BundleSettings) -> Fetched:
    """The bundle as it is now. Raises PolicyError."""
    async with aclosing(news(settings)) as heard:
        said = await anext(heard)
    if isinstance(said, Fetched):
        return said
    assert said is not None, "nothing was known before"
    raise PolicyError([said])


def remember(folder: Path, fetched: Fetched) -> None:
    """Keeps a bundle as it came, where the disk lets us: for a start while its server is away. Blocks on the disk."""
    kept = folder / _file_of(fetched.name)
    unfinished = folder / f".{kept.name}.{os.getpid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(fetched.content)
            unfinished.replace(kept)
        finally:
            unfinished.unlink(missing_ok=True)


def recall(folder: Path, settings: BundleSettings) -> Fetched | None:
    """What was kept of this server's bundle. Blocks on the disk. Only a signature says that nobody has changed it."""
    kept = folder / _file_of(settings.url)
    try:
        with kept.open("rb") as stream:
            return Fetched(settings.url, stream.read(LARGEST_PACKED + 1))
    except OSError:
        return None


def _file_of(url: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.bundle"


def _digest(content: bytearray) -> bytes:
    return hashlib.sha256(content).digest()


def _pause(server: Server, failures: int, unchanged: bool, took: float) -> float:
    """Seconds until the next question, never the same for all gateways that began together."""
    if failures:
        longest = max(LONGEST_PAUSE, server.settings.poll)
        return min(longest, FIRST_PAUSE * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)
    if server.long_polls and server.etag is not None:
        return max(0.0, (_BREATH if unchanged else _BREATH_AFTER_NEWS) - took)
    return server.settings.poll * random.uniform(0.9, 1.1)


def _client(settings: BundleSettings) -> httpx2.AsyncClient:
    """Goes where it was told to and nowhere else: no redirects, and nothing of the environment's proxies and netrc."""
    tls = ssl.create_default_context(cafile=str(settings.ca) if settings.ca is not None else None)
    return httpx2.AsyncClient(verify=tls, follow_redirects=False, trust_env=False, timeout=None)


def _refusal(status: int) -> str:
    if status in (401, 403):
        return f"answers {status}: it does not accept policy.bundle.token"
    if 300 <= status < 400:
        return f"answers {status}: it points elsewhere, where nobody is followed"
    return f"answers {status}"


def _told(error: Exception) -> str:
    """What the network says; it knows no secret, which are in headers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).strip().rstrip(".") or type(error).__name__
