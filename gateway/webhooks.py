"""Tells people's own systems what has happened: signed POST requests, sent beside the calls, which never wait for them.

As Standard Webhooks 1.0.0 have them: `webhook-id`, the same at every try; `webhook-timestamp`; and `webhook-signature`,
`v1,` and the base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY`. The body is {"type", "timestamp", "data"}. What nobody
takes with a 2xx is tried a few times more and then given up: the ledger has it.
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
from datetime import UTC, datetime
from typing import Any, Final

import httpx2
import orjson

from config.errors import SecretMissing
from config.settings import WebhookSettings

log = logging.getLogger("weighbridge.webhooks")

PAUSES: Final = (1.0, 5.0, 25.0, 125.0)
"""Seconds between the tries of one message."""
CLOSING: Final = 3.0
"""Seconds at the end in which messages under way may arrive."""

_PATIENCE: Final = 10.0
"""Seconds of one try."""
_MOST_WAITING: Final = 256
"""Messages under way; beyond that new ones are given up."""
_LONGEST_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are passed over before its connection is ended."""
_ENCODED: Final = "whsec_"


class Webhooks:
    """Sends messages. `counts` has messages by what became of them: sent, given_up; and tries that failed."""

    def __init__(
        self,
        *,
        pauses: Sequence[float] = PAUSES,
        patience: float = _PATIENCE,
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
        now = self._clock()
        moment = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}"
        try:
            body = orjson.dumps({"type": what, "timestamp": moment, "data": facts}, default=str)
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
        message, came = f"msg_{secrets.token_hex(12)}", "it was not tried"
        try:
            for pause in (*self._pauses, None):
                came = await self._try(to, message, body)
                if not came:
                    self.counts["sent"] += 1
                    return
                self.counts["failed"] += 1
                if pause is None or await self._ended(pause):
                    break
        except asyncio.CancelledError:
            self._give_up(what, "the gateway ends")
            raise
        except Exception as error:  # whatever it is, it is told without what it says: an address can be a secret
            came = type(error).__name__
        self._give_up(what, came)

    async def _try(self, to: WebhookSettings, message: str, body: bytes) -> str:
        """Why it was not taken; empty when it was."""
        status = 0
        try:
            url, stamp = to.url.reveal(), str(int(self._clock()))
            headers = {"content-type": "application/json", "webhook-id": message, "webhook-timestamp": stamp}
            if to.secret is not None:
                headers["webhook-signature"] = signature(to.secret.reveal(), message, stamp, body)
            async with asyncio.timeout(self._patience):
                tls = await asyncio.to_thread(ssl.create_default_context) if url.startswith("https:") else False
                async with (
                    httpx2.AsyncClient(verify=tls, timeout=None, trust_env=False, follow_redirects=False) as client,
                    client.stream("POST", url, content=body, headers=headers) as answer,
                ):
                    status = answer.status_code
                    await _passed_over(answer)
        except SecretMissing as error:
            return str(error)
        except TimeoutError:
            if not status:
                return f"it has not answered within {self._patience:g} s"
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
            return "its address is none of http or https"
        except (httpx2.HTTPError, OSError) as error:
            if not status:
                return f"it cannot be reached ({type(error).__name__})"
        return "" if 200 <= status < 300 else f"it answers {status}"

    async def _ended(self, pause: float) -> bool:
        """Lets a pause pass; True as soon as the end comes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._ending.wait()
        return self._ending.is_set()

    def _give_up(self, what: str, why: str) -> None:
        self.counts["given_up"] += 1
        log.error("the webhook was not told of %s: %s; the ledger has it", what, why)


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
