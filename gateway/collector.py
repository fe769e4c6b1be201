"""Uploads decision log events in batches, as Open Policy Agent's own agents do, and never holds a call up for it.

`POST URL` with a gzipped JSON array. What a slow or absent collector does not take waits in a bounded buffer, whose
oldest events are dropped and counted: the ledger has them all. Source: OPA 1.22, v1/plugins/logs, Decision Log Service
API.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
from collections import deque
from typing import Final

import httpx2

from config.settings import DecisionLogSettings

log = logging.getLogger("weighbridge.collector")

CLOSING: Final = 5.0
"""Seconds at the end in which what still waits is to be delivered."""

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
"""Seconds of the first pause after a failure, which each further one doubles, and of the longest."""

_PATIENCE: Final = 10.0
"""Seconds in which a collector has to go on taking or answering."""

_SIGNS_OF_LIFE: Final = 3
"""How many times as long one upload may take in all: an answer may trickle."""

_LONGEST_ANSWER: Final = 64 * 1024
"""Bytes beyond the status that are read so that the connection can be used again."""

_TOO_LARGE: Final = 413


class Collector:
    """Where events are uploaded to. `counts` has events by what became of them: sent, dropped, failed.

    `failed` counts those of attempts that failed; they are tried again.
    """

    def __init__(
        self, settings: DecisionLogSettings, *, first_pause: float = _FIRST_PAUSE, patience: float = _PATIENCE
    ) -> None:
        """Raises SecretMissing, OSError, ssl.SSLError."""
        self.counts = {"sent": 0, "dropped": 0, "failed": 0}
        self._settings = settings
        self._first_pause = first_pause
        self._most = settings.max_batch
        self._patience = patience
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._some, self._enough = asyncio.Event(), asyncio.Event()
        self._ending = asyncio.Event()
        self._failing = False
        tls = ssl.create_default_context(cafile=str(settings.ca) if settings.ca is not None else None)
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        if settings.token is not None:
            headers["authorization"] = f"Bearer {settings.token.reveal()}"
        self._client = httpx2.AsyncClient(
            verify=tls, headers=headers, timeout=patience, trust_env=False, follow_redirects=False
        )
        self._task: asyncio.Task[None] | None = None

    def take(self, event: bytes) -> None:
        """Takes one event, a JSON text. Returns at once."""
        self._waiting.append(event)
        self._size += len(event)
        self._some.set()
        if self._size >= self._most:
            self._enough.set()
            while self._size > self._settings.buffer:
                self._size -= len(self._waiting.popleft())
                self.counts["dropped"] += 1

    def begin(self) -> None:
        """Starts to upload."""
        self._task = asyncio.create_task(self._upload(), name="upload of the decision log")

    async def close(self, within: float = CLOSING) -> None:
        """Delivers what waits, as far as that is possible `within` so many seconds; the rest is dropped."""
        self._ending.set()
        self._some.set()
        self._enough.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=within)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting:
            self.counts["dropped"] += len(self._waiting)
            log.error("%d decisions were not delivered to the collector; the ledger has them", len(self._waiting))
            self._waiting.clear()
        await self._client.aclose()

    async def _upload(self) -> None:
        while True:
            await self._some.wait()
            if not self._ending.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.max_delay):
                        await self._enough.wait()
            batch = self._batch()
            if batch:
                await self._deliver(batch)
            elif self._ending.is_set():
                return

    def _batch(self) -> list[bytes]:
        """The oldest events, as many as one upload may hold, or one that is longer by itself."""
        batch: list[bytes] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0]) <= self._most):
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        self._size -= size
        if not self._ending.is_set():
            if not self._waiting:
                self._some.clear()
            if self._size < self._most:
                self._enough.clear()
        return batch

    async def _deliver(self, batch: list[bytes]) -> None:
        """Tries until it succeeds. A batch that is given up because the end has come is put back, to be counted."""
        pause = self._first_pause
        try:
            while (status := await self._post(batch)) is None or not 200 <= status < 300:
                self.counts["failed"] += len(batch)
                if status == _TOO_LARGE:
                    batch = self._shortened(batch)
                    if not batch:
                        return
                    continue
                if not self._failing:
                    log.warning("the decision log's collector %s", "cannot be reached" if status is None else status)
                self._failing = True
                await self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except asyncio.CancelledError:
            self._put_back(batch)
            raise
        if self._failing:
            log.info("the decision log's collector takes events again")
        self._failing = False
        self.counts["sent"] += len(batch)
        self._most = min(2 * self._most, self._settings.max_batch)  # one long event has not made all of them long

    async def _rest(self, pause: float) -> None:
        """Waits; when the end comes meanwhile, for long enough to try a few times more."""
        if self._ending.is_set():
            await asyncio.sleep(self._first_pause)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._ending.wait()

    def _shortened(self, batch: list[bytes]) -> list[bytes]:
        """Half of a batch that was too large; nothing, where one event alone is."""
        if len(batch) == 1:
            self.counts["dropped"] += 1
            log.error("a decision is too large for the collector; the ledger has it")
            return []
        half = len(batch) // 2
        self._most = max(1, sum(map(len, batch[:half])))
        self._put_back(batch[half:])
        return batch[:half]

    def _put_back(self, events: list[bytes]) -> None:
        self._waiting.extendleft(reversed(events))
        self._size += sum(map(len, events))
        self._some.set()

    async def _post(self, batch: list[bytes]) -> int | None:
        """The collector's status; None where there was none."""
        content = await asyncio.to_thread(gzip.compress, b"[" + b",".join(batch) + b"]", 6)
        try:
            async with asyncio.timeout(_SIGNS_OF_LIFE * self._patience):
                async with self._client.stream("POST", self._settings.url, content=content) as answer:
                    await _passed_over(answer)
                    return answer.status_code
        except (httpx2.HTTPError, OSError):
            return None


async def _passed_over(answer: httpx2.Response) -> None:
    size = 0
    async for piece in answer.aiter_raw():
        size += len(piece)
        if size > _LONGEST_ANSWER:
            return
