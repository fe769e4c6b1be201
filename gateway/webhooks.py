"""Tells people's own systems what has happened: signed POST requests, sent beside the calls, which never wait for them.

As Standard Webhooks 1.0.0 have them: `webhook-id`, the same at every try; `webhook-timestamp`; and `webhook-signature`,
`v1,` and the base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY`, once for each secret while these are changed over. The
body is {"type", "timestamp", "data"}, or a message for Slack. What nobody takes with a 2xx is tried a few times more
and then given up: the ledger has it. `attempt` makes one try, also for those who keep what they send until it is taken.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import logging
import secrets
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Final

import httpx2
import orjson

from config.errors import SecretMissing
from config.settings import WebhookSettings
from gateway import slack

log = logging.getLogger("weighbridge.webhooks")

PAUSES: Final = (1.0, 5.0, 25.0, 125.0)
"""Seconds between the tries of one message."""
CLOSING: Final = 3.0
"""Seconds at the end in which messages under way may arrive."""

PATIENCE: Final = 10.0
"""Seconds of one try."""
LONGEST_REST: Final = 6 * 3600.0
"""Seconds for which a receiver can ask to be left alone, at most."""

_MOST_WAITING: Final = 256
"""Messages under way; beyond that new ones are given up."""
_LONGEST_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are passed over before its connection is ended."""
_ENCODED: Final = "whsec_"
_GONE: Final = 410
"""The status by which a receiver says that it wants no messages any more."""


@dataclass(frozen=True, slots=True)
class Try:
    """What came of one try: `why` it was not taken, empty when it was. A receiver that is `gone` never will take it;
    `rest` is for how many seconds it wants to be left alone."""

    why: str = ""
    gone: bool = False
    rest: float = 0.0


class Webhooks:
    """Sends messages. `counts` has messages by what became of them: sent, given_up; and tries that failed."""

    def __init__(
        self,
        *,
        pauses: Sequence[float] = PAUSES,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives Unix seconds."""
        self.counts = {"sent": 0, "failed": 0, "given_up": 0}
        self._pauses = pauses
        self._patience = patience
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()

    def send(self, to: WebhookSettings, what: str, facts: Mapping[str, Any]) -> None:
        """Begins to send a message of the type `what`, in a running event loop. Returns at once and never raises."""
        if len(self._tasks) >= _MOST_WAITING:
            self._give_up(what, f"{_MOST_WAITING} others are under way")
            return
        try:
            if to.format == "slack":
                body = orjson.dumps(slack.told(what, facts), default=str)
            else:
                body = orjson.dumps({"type": what, "timestamp": moment(self._clock()), "data": facts}, default=str)
        except TypeError as error:  # what was counted or written elsewhere may hold anything
            self._give_up(what, f"it is no JSON ({error})")
            return
        task = asyncio.get_running_loop().create_task(self._deliver(to, what, body), name=f"webhook {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, within: float = CLOSING) -> None:
        """Lets messages under way arrive, as far as that is possible in so many seconds; nothing is tried again."""
        self._ending.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _deliver(self, to: WebhookSettings, what: str, body: bytes) -> None:
        """Tries until it is taken, or has been tried often enough."""
        message, came = f"msg_{secrets.token_hex(12)}", Try("it was not tried")
        try:
            for pause in (*self._pauses, None):
                came = await attempt(to, message, body, now=self._clock(), patience=self._patience)
                if not came.why:
                    self.counts["sent"] += 1
                    return
                self.counts["failed"] += 1
                if came.gone or pause is None or await self._ended(max(pause, came.rest)):
                    break
        except asyncio.CancelledError:
            self._give_up(what, "the gateway ends")
            raise
        except Exception as error:  # whatever it is, it is told without what it says: an address can be a secret
            came = Try(type(error).__name__)
        self._give_up(what, came.why)

    async def _ended(self, pause: float) -> bool:
        """Lets a pause pass; True as soon as the end comes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._ending.wait()
        return self._ending.is_set()

    def _give_up(self, what: str, why: str) -> None:
        self.counts["given_up"] += 1
        log.error("the webhook was not told of %s: %s; the ledger has it", what, why)


async def attempt(to: WebhookSettings, message: str, body: bytes, *, now: float, patience: float = PATIENCE) -> Try:
    """Sends a message once, under this id, at `now` in Unix seconds. What is told of a failure holds no secret."""
    status, rest = 0, 0.0
    try:
        url, stamp = httpx2.URL(to.url.reveal()), str(int(now))
        headers = {"content-type": "application/json", "webhook-id": message, "webhook-timestamp": stamp}
        signed = [
            signature(each.reveal(), message, stamp, body)
            for each in (to.secret, to.previous_secret)
            if each is not None
        ]
        if signed:
            headers["webhook-signature"] = " ".join(signed)
        if url.userinfo:
            headers["authorization"] = f"Basic {base64.b64encode(f'{url.username}:{url.password}'.encode()).decode()}"
        async with asyncio.timeout(patience):
            tls = await asyncio.to_thread(_tls) if url.scheme == "https" else False
            async with httpx2.AsyncHTTPTransport(verify=tls, trust_env=False) as wire:  # a client would log the address
                request = httpx2.Request("POST", url, content=body, headers=headers)
                async with contextlib.aclosing(await wire.handle_async_request(request)) as answer:
                    status, rest = answer.status_code, _rest(answer.headers.get("retry-after", ""), now)
                    await _passed_over(answer)
    except SecretMissing as error:
        return Try(str(error))
    except TimeoutError:
        if not status:
            return Try(f"it has not answered within {patience:g} s")
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        return Try("its address is none of http or https")
    except (httpx2.HTTPError, OSError) as error:
        if not status:
            return Try(f"it cannot be reached ({type(error).__name__})")
    return Try() if 200 <= status < 300 else Try(f"it answers {status}", status == _GONE, rest)


def moment(now: float) -> str:
    """Unix seconds as a message has them."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}"


def signature(secret: str, message: str, stamp: str, body: bytes) -> str:
    """What stands in `webhook-signature`: of the message's id, its timestamp in Unix seconds, and its body.

    A secret that begins with `whsec_` goes on with the key in base64; any other text is the key itself.
    """
    key = secret.encode()
    if secret.startswith(_ENCODED):
        with contextlib.suppress(binascii.Error, ValueError):
            key = base64.b64decode(secret.removeprefix(_ENCODED), validate=True)
    signed = hmac.digest(key, f"{message}.{stamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(signed).decode()}"


async def _passed_over(answer: httpx2.Response) -> None:
    size = 0
    async for piece in answer.aiter_raw():
        size += len(piece)
        if size > _LONGEST_ANSWER:
            return


def _rest(retry_after: str, now: float) -> float:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3); none where it has no sense."""
    try:
        seconds = (
            float(retry_after) if retry_after.isdecimal() else parsedate_to_datetime(retry_after).timestamp() - now
        )
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_REST)


@cache
def _tls() -> ssl.SSLContext:
    """Of this process: to read the authorities takes longer than a message."""
    return ssl.create_default_context()
