"""The composition root: settings become rooms, rooms become the pipeline, and edits become the next decision."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Self

from config.errors import ConfigError, SecretMissing
from config.load import Loaded, load
from config.settings import Settings
from config.watch import changes
from gateway.amendments import amendments, tell
from gateway.assembly import assemble, retired
from gateway.collector import Collector
from gateway.deciding import Deciding
from gateway.decision_log import DecisionLog
from gateway.errands import Errands
from gateway.holding import Holds
from gateway.ledger import FileLedger
from gateway.lending import Lender
from gateway.mcp.definitions import Definitions
from gateway.mcp.sessions import Seals
from gateway.mirroring import Mirrors
from gateway.notices import Courier
from gateway.pipeline import Pipeline
from gateway.probes import Node, Probes
from gateway.reload import Reload, Reloads, unforeseen
from gateway.standings import Standings
from gateway.state import file_of, open_state
from gateway.steering import Steering
from gateway.telemetry import Telemetry
from gateway.traffic import Traffic
from gateway.webhooks import Webhooks
from policies.budgets import StoreUnavailable

log = logging.getLogger("weighbridge.app")

_CLOSING = 5.0
"""Seconds in which connections to targets have to be gone at the end."""

_SESSIONS = "mcp_sessions"
_SEALED_WITHIN = 2.0
"""Seconds for which a start waits for the key of MCP sessions."""
_SEAL_AGAIN = 0.1
"""Seconds until it is asked for again where it could not be had."""

_NEEDS_RESTART = ("listen", "admin", "state", "ledger", "decision_log", "log")
"""Sections that are read when a process starts. Within them only what `_cold` leaves out can change while it runs."""


class App:
    """One running gateway: the pipeline, what it was built from, and the watch over those files.

    A reload is validate-then-swap: whatever is wrong with an edit, calls go on under the last good configuration and
    the last good policy.
    """

    def __init__(self, path: Path, loaded: Loaded, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` gives the Unix nanoseconds that the state goes by.

        Raises LedgerUnavailable, StateUnusable, SecretMissing, OSError.
        """
        self.path = path
        self.config = Reload()
        self.warnings = tuple(map(str, loaded.warnings))
        self.restart_needed: tuple[str, ...] = ()
        self.telemetry = Telemetry()
        self._started_with = loaded.settings
        self._files = loaded.files
        self.ending = asyncio.Event()
        """Set when the gateway is told to stop: what has no end of its own, and is no call, ends then."""
        self._stop = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._sealing: asyncio.Task[None] | None = None
        assembly = assemble(loaded.settings)
        upload, events = loaded.settings.decision_log, DecisionLog()
        self.collector = Collector(upload) if upload is not None else None
        self.ledger = FileLedger(
            loaded.settings.ledger.path, events, self.collector.take if self.collector is not None else None
        )
        place = loaded.settings.state
        place = place if isinstance(place, str) else place.reveal()
        self.state = open_state(place, clock)
        file = file_of(place)
        self._busy = [file.parent] if file is not None else []
        """Folders in which something is written all the time."""
        lender = self.telemetry.lender = Lender(self.state.budgets, self.state.limits)
        self.holds = Holds(self.state.approvals, self.ledger.note)
        self.holds.under(loaded.settings)
        self.courier = self.telemetry.courier = Courier(self.state.approvals, self.ledger.note)
        self.courier.under(loaded.settings)
        self.standings = self.telemetry.standings = Standings(self.state.approvals, self.holds)
        self.pipeline = Pipeline(
            assembly,
            None,
            holds=self.holds,
            standings=self.standings,
            lender=lender,
            ledger=self.ledger,
            events=events,
            telemetry=self.telemetry,
        )
        self.pipeline.seals = Seals(None)
        self.definitions = self.pipeline.definitions = Definitions(self.state.definitions, self.ledger.note, clock)
        self.standings.stopped = lambda whose: self.pipeline.assembly.toolbox.dismiss(whose)
        self.errands = Errands(self.holds, self.pipeline.make, self.pipeline.ready)
        fleet = self.telemetry.fleet = self.pipeline.attempts.fleet
        self.traffic = self.pipeline.traffic = self.telemetry.traffic = Traffic(self.state.routes, fleet=fleet)
        self.mirrors = Mirrors(self.state.budgets, fleet, self.ledger.note)
        self.pipeline.mirrors = self.telemetry.mirrors = self.mirrors
        self.probes = Probes(self._probed)
        self.webhooks = Webhooks()
        self.telemetry.webhooks = self.webhooks.counts
        self.steering = self.telemetry.steering = Steering(
            self.state.routes,
            self.ledger,
            self.webhooks,
            samples=self.traffic.samples,
            now_ns=self.state.budgets.now_ns,
        )
        self.steering.under(assembly)
        self._reloads = Reloads(self.telemetry, self.ledger)
        self.deciding = Deciding(loaded.settings.ledger.path, self.pipeline, self.telemetry, self.ledger, self._reloads)
        self.config.succeeded()
        self._reloads.record("config", "start", "ok", None)

    @property
    def settings(self) -> Settings:
        return self.pipeline.assembly.settings

    @property
    def unready(self) -> list[str]:
        """Why calls cannot be served now; empty when they can."""
        reasons = []
        if self.deciding.failure is not None:
            reasons.append(self.deciding.failure)
        if self.ledger.failure is not None:
            reasons.append("the ledger cannot be written")
        if self.state.budgets.failure is not None and self.pipeline.assembly.plan.hard:
            reasons.append("the state of budgets cannot be kept")
        if not self.standings.heard:
            reasons.append("which agents are stopped is not known yet")
        return reasons

    async def __aenter__(self) -> Self:
        if self.collector is not None:
            self.telemetry.uploaded = self.collector.counts
            self.collector.begin()
        self.state.begin()
        self._began = time.monotonic()
        self._sealing = asyncio.create_task(self._seal(), name="key of MCP sessions")
        await asyncio.wait([self._sealing], timeout=_SEALED_WITHIN)
        self.probes.watch(self.settings.targets)
        await self.steering.begin()
        await self.holds.begin()
        self.pipeline.claims.begin()
        self.errands.begin()
        await self.standings.begin()
        await self.definitions.begin()
        await self.courier.begin()
        await self.deciding.begin()
        self._watch = asyncio.create_task(self._watching(), name="watch over configuration and policy")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ending.set()
        self._stop.set()
        await self.errands.end(self.settings.listen.drain)
        await asyncio.gather(*filter(None, (self._watch, self._sealing)), return_exceptions=True)
        await self.deciding.end()
        await self.probes.close()
        await self.mirrors.close()
        try:
            async with asyncio.timeout(_CLOSING):
                lines = self.pipeline.assembly.lines.values()
                carriers = [carrier for line in lines for carrier in line.carriers]
                tools = self.pipeline.assembly.toolbox
                await asyncio.gather(tools.close(), *(carrier.close() for carrier in carriers))
        except TimeoutError:
            log.error("connections to targets and tools did not close in %.0f s", _CLOSING)
        if self.deciding.trial is not None:
            await self.deciding.trial.close()
        await self.steering.end()
        await self.standings.end()
        await self.definitions.end()
        await self.holds.end()
        await self.courier.end()
        await self.webhooks.close()
        await self.state.close()
        self.ledger.close()
        if self.collector is not None:
            await self.collector.close()
        await self.deciding.retire()

    async def _seal(self) -> None:
        """Gets the key with which the ids of MCP sessions are sealed, however long the server of the state takes."""
        told = False
        while not self._stop.is_set():
            try:
                self.pipeline.seals.use(await self.state.keys.key(_SESSIONS))
                return
            except StoreUnavailable as error:
                if not told and time.monotonic() > self._began + _SEALED_WITHIN:
                    log.warning("the key of MCP sessions cannot be read, so there are none for now: %s", error)
                    told = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SEAL_AGAIN):
                    await self._stop.wait()

    async def reload_config(self, who: str) -> None:
        """Loads the file again and swaps the assembly; whatever is wrong, nothing changes but `config.errors`."""
        async with self.deciding.lock:
            before = self.pipeline.assembly
            try:
                loaded = await asyncio.to_thread(load, self.path)
                after = await asyncio.to_thread(assemble, loaded.settings, before)  # reads certificates for each target
                amended = await asyncio.to_thread(amendments, before.settings, after.settings)
                self.probes.watch(after.settings.targets)  # the last that may refuse
            except ConfigError as error:
                self._files |= error.files
                self._refused(who, [str(mistake) for mistake in error.mistakes])
                return
            except (SecretMissing, OSError) as error:
                self._refused(who, [f"{self.path}: {error}"])
                return
            except Exception as error:
                self._refused(who, [f"{self.path}: {unforeseen(error)}"])
                return
            self.steering.under(after)  # before the first call goes by the new routes
            self.holds.under(after.settings)
            self.courier.under(after.settings)
            self.pipeline.assembly = after
            self._files = loaded.files
            self.warnings = tuple(map(str, loaded.warnings))
            self.restart_needed = _restart_needed(self._started_with, loaded.settings)
            for carrier in retired(before, after):
                carrier.retire()
            after.toolbox.succeed(before.toolbox)
            await self.deciding.trial_changed(before.settings.policy, after.settings.policy)
            self.config.succeeded()
            self._reloads.record("config", who, "ok", self.pipeline.engine)
            log.info("configuration loaded from %s", self.path)
            tell(self.ledger, who, amended)
            for section in self.restart_needed:
                log.warning("a change of `%s` takes effect at the next start", section)
        await self.deciding.changed(before.settings.policy, after.settings.policy, who)

    async def _watching(self) -> None:
        """Acts on edits until the end: a reload never raises, so that one edit's trouble does not hide the next."""
        async with aclosing(changes(self._watched, stop=self._stop, busy=self._busy)) as edits:
            async for edited in edits:
                if edited & {self.path, *self._files}:
                    await self.reload_config("edit")
                await self.deciding.edited(edited)

    def _probed(self, node: Node, well: bool, _: str) -> None:
        self.pipeline.attempts.fleet.probed(node.target, node.url, well, time.monotonic())

    def _watched(self) -> set[Path]:
        return {self.path, *self._files, *self.deciding.watched}

    def _refused(self, who: str, errors: list[str]) -> None:
        self._reloads.refused("config", who, self.config, errors, self.pipeline.engine, stays=True)


def _restart_needed(started_with: Settings, now: Settings) -> tuple[str, ...]:
    return tuple(section for section in _NEEDS_RESTART if _cold(started_with, section) != _cold(now, section))


def _cold(settings: Settings, section: str) -> object:
    """The part of a section that only a start reads."""
    match section:
        case "listen":
            return settings.listen.model_copy(update={"max_body": 0, "hosts": (), "origins": ()})
        case "admin":
            return settings.admin.listen
        case "ledger":
            return settings.ledger.path
        case _:
            return getattr(settings, section)
