"""Asks every node of every target now and then whether it is well, beside the calls and never as one of them.

    kind        asked                       well
    parallax    GET /cluster/status_json    when its data.status is `available`
    openai      GET /models                 with any answer below 500
    anthropic   GET /v1/models              with any answer below 500

A Parallax node that knows no cluster is asked as an OpenAI API is. What a node says of itself holds at once; that it
says nothing, or fails, holds after a few times in a row: a Parallax scheduler stands still for five seconds now and
then, and is well. A refusal of our key or of the path is no sign of ill health, but the operator's to mend: calls will
be refused as well, so it is told to the log, once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

import httpx2

from adapters.base import member
from adapters.meter import json_object
from config.settings import TargetSettings
from routing.target import target

log = logging.getLogger("weighbridge.probes")

LEAST_PAUSE: Final = 10.0
"""Seconds: no node is asked more often, whatever is configured."""
FAILURES: Final = 3
"""Probes in a row that have to fail before it is said."""

_JITTER: Final = 0.2
"""The share by which a pause may be longer, so that many gateways do not ask at the same moment."""
_LONGEST_ANSWER: Final = 1024 * 1024
"""Bytes of a status that are read: it lists all nodes of a cluster."""


class Node(NamedTuple):
    """One node of a target: the target's name and the node's base URL."""

    target: str
    url: str


class Found(NamedTuple):
    """What one probe has found.

    `what` is `available`, `alive`, `config` or `not_found` for a node that is well, else `waiting` or another status
    that it gives itself, `status N`, `timeout`, `unreachable` or `broken`. `sure` is whether it holds at once.
    """

    ok: bool
    what: str
    sure: bool = False


Probed = Callable[[Node, bool, str], None]
"""Is told of each node after each probe whether it is well, and why; not yet of the first failures in a row."""


class Probes:
    """One task per node while the gateway runs. A reload `watch`es anew and leaves the nodes that stay alone."""

    def __init__(
        self,
        probed: Probed,
        *,
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`clock` gives seconds, `rest` lets them pass, `chance` is uniform in [0, 1)."""
        self._probed = probed
        self._clock = clock
        self._rest = rest
        self._chance = chance
        self._tasks: dict[Node, tuple[TargetSettings, asyncio.Task[None]]] = {}
        self._asked_at: dict[Node, float] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._trusted: dict[Path | None, ssl.SSLContext] = {}
        self._reading = asyncio.Lock()

    def watch(self, targets: Iterable[TargetSettings]) -> None:
        """From now on the nodes of `targets` are asked, and no others.

        Raises SecretMissing, before anything has changed, for a key that cannot be had.
        """
        wanted = {Node(each.name, url): each for each in targets if each.health.probe_every for url in each.nodes}
        new = {
            node: _Asking(node, settings)
            for node, settings in wanted.items()
            if node not in self._tasks or self._tasks[node][0] != settings
        }
        for node in [node for node in self._tasks if node not in wanted or node in new]:
            task = self._tasks.pop(node)[1]
            task.cancel()
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        now = self._clock()
        self._asked_at = {node: at for node, at in self._asked_at.items() if node in wanted or now - at < LEAST_PAUSE}
        self._trusted.clear()
        for node, asking in new.items():
            task = asyncio.create_task(self._watch(asking), name=f"probes of {node.target} at {node.url}")
            self._tasks[node] = wanted[node], task

    async def close(self) -> None:
        """Ends all probes, those under way too."""
        tasks = [*(task for _, task in self._tasks.values()), *self._leaving]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, asking: _Asking) -> None:
        node, failed, well = asking.node, 0, True
        every = max(LEAST_PAUSE, asking.settings.health.probe_every)
        if (due := self._asked_at.get(node, -math.inf) + LEAST_PAUSE - self._clock()) > 0:
            await self._rest(due)
        try:
            client = asking.client(await self._trust(node, asking.settings.ca))
        except (OSError, ssl.SSLError) as error:
            log.error("target %s is not probed: its ca cannot be used: %s", node.target, error)
            return
        async with client:
            while True:
                self._asked_at[node] = self._clock()
                try:
                    found = await asking.ask(client)
                    failed = 0 if found.ok else failed + 1
                    if found.ok or found.sure or failed >= FAILURES:
                        if found.ok is not well:
                            well = found.ok
                            _tell_of_health(node, found)
                        self._probed(node, found.ok, found.what)
                except Exception:  # one probe's trouble here must not be the last one's
                    log.exception("a probe of %s failed in the gateway itself", node.url)
                await self._rest(every * (1 + _JITTER * self._chance()))

    async def _trust(self, node: Node, ca: Path | None) -> ssl.SSLContext | None:
        """Authorities are read once for all nodes, and in a thread: it takes a while."""
        if not node.url.lower().startswith("https:"):
            return None
        async with self._reading:
            if ca not in self._trusted:
                cafile = str(ca) if ca is not None else None
                self._trusted[ca] = await asyncio.to_thread(ssl.create_default_context, cafile=cafile)
            return self._trusted[ca]


class _Asking:
    """How one node is asked, and what the log was told of it."""

    def __init__(self, node: Node, settings: TargetSettings) -> None:
        """Raises SecretMissing."""
        self.node = node
        self.settings = settings
        self._told: set[str] = set()
        own = target(settings)
        self._models = f"{node.url.rstrip('/')}{own.kind.root}/models"
        self._headers = [(b"accept", b"application/json"), (b"accept-encoding", b"identity"), *own.credentials]
        if settings.kind == "anthropic":
            self._headers.append((b"anthropic-version", b"2023-06-01"))

    def client(self, tls: ssl.SSLContext | None) -> httpx2.AsyncClient:
        """What asks: with a connection of its own each time, since whether there is one is a part of the question."""
        return httpx2.AsyncClient(
            verify=tls or False,
            headers=self._headers,
            timeout=None,  # of each probe as a whole
            trust_env=False,
            follow_redirects=False,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def ask(self, client: httpx2.AsyncClient) -> Found:
        """One probe; never raises for what a node does."""
        try:
            async with asyncio.timeout(self.settings.health.probe_timeout):
                found = await self._ask(client)
        except TimeoutError:
            found = Found(False, "timeout")
        except httpx2.ConnectError:
            found = Found(False, "unreachable")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
            found = Found(False, "broken")
        self._tell(found.what)
        return found

    async def _ask(self, client: httpx2.AsyncClient) -> Found:
        if self.settings.kind == "parallax":
            async with client.stream("GET", self.node.url.rstrip("/") + "/cluster/status_json") as answer:
                if not _elsewhere(answer.status_code):
                    return _ready(answer.status_code, await _beginning(answer))
        async with client.stream("GET", self._models) as answer:
            return _alive(answer.status_code)

    def _tell(self, what: str) -> None:
        """Tells the log what the operator has to mend, once."""
        if what in self._told:
            return
        self._told.add(what)
        if what == "config":
            log.warning("target %s: the probe of %s is refused: is its key right?", self.node.target, self.node.url)
        elif what == "not_found":
            log.warning("target %s: nothing answers the probe of %s: is its URL right?", *self.node)


def _tell_of_health(node: Node, found: Found) -> None:
    if found.ok:
        log.info("target %s: %s is well again", *node)
    else:
        log.warning("target %s: %s is not well: %s", *node, found.what)


async def _beginning(answer: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > _LONGEST_ANSWER:
            break
    return bytes(body)


def _ready(status: int, answer: bytes) -> Found:
    """What a Parallax scheduler says of its cluster."""
    if status in (401, 403):  # of something in front of it
        return Found(True, "config")
    if status != 200:
        return Found(False, f"status {status}")
    match member(json_object(answer), "data").get("status"):
        case "available":
            return Found(True, "available")
        case "waiting" | "rebalancing" | "failed" as said:
            return Found(False, said, sure=True)
        case _:
            return Found(False, "broken")


def _alive(status: int) -> Found:
    if status in (401, 403):
        return Found(True, "config")
    if _elsewhere(status):
        return Found(True, "not_found")
    return Found(status < 500, "alive" if status < 500 else f"status {status}")


def _elsewhere(status: int) -> bool:
    """Whether what was asked for is not at this path."""
    return status in (404, 405) or 300 <= status <= 399
