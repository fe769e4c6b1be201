"""The composition root: settings become rooms, rooms become the pipeline, and edits become the next decision."""

import asyncio
import contextlib
import hashlib
import logging
import time
import traceback
from collections.abc import Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from config.errors import ConfigError, SecretMissing
from config.load import Loaded, load
from config.settings import BundleSettings, PolicySettings, Settings
from config.watch import changes
from gateway.assembly import assemble, retired
from gateway.collector import Collector
from gateway.decision_log import DecisionLog
from gateway.ledger import FileLedger
from gateway.opa import OpaLine
from gateway.pipeline import Pipeline
from gateway.telemetry import Telemetry
from gateway.trial import Trial, forget
from policies import load as policy
from policies.approvals import NobodyToAsk
from policies.budgets import Unbudgeted
from policies.engine import Engine
from policies.errors import PolicyError
from policies.fetch import News, news, recall, remember
from policies.history import History
from policies.sources import Fetched

log = logging.getLogger("weighbridge.app")

_CLOSING = 5.0
"""Seconds in which connections to targets have to be gone at the end."""

_AGAIN, _AGAIN_AT_MOST = 1.0, 60.0
"""Seconds after which a policy is loaded again that was refused for no fault of its own; each time twice as many."""

_NEEDS_RESTART = ("listen", "admin", "state", "ledger", "decision_log", "log")
"""Sections that are read when a process starts. Within them only what `_hot` leaves out can change while it runs."""


@dataclass(slots=True)
class Reload:
    """How the last attempt to load something ended. Times are seconds since the epoch; 0 is never."""

    loaded_at: float = 0.0
    tried_at: float = 0.0
    errors: tuple[str, ...] = ()
    count: int = 0

    def succeeded(self) -> None:
        self.loaded_at = self.tried_at = time.time()
        self.errors = ()
        self.count += 1

    def failed(self, errors: Iterable[str]) -> None:
        self.tried_at = time.time()
        self.errors = tuple(errors)


class App:
    """One running gateway: the pipeline, what it was built from, and the watch over those files.

    A reload is validate-then-swap: whatever is wrong with an edit, calls go on under the last good configuration and
    the last good policy.
    """

    def __init__(self, path: Path, loaded: Loaded) -> None:
        """Raises LedgerUnavailable, SecretMissing, OSError."""
        self.path = path
        self.config = Reload()
        self.policy = Reload()
        self.shadow = Reload()
        self.engine: Engine | None = None
        """Of the configured policy; it decides, unless the one on trial was promoted."""
        self.fallen_back = False
        """Whether `engine` is of a revision kept from before, because the configured policy could not be loaded."""
        self.history = History(loaded.settings.ledger.path / "policies")
        self._kept_bundles = loaded.settings.ledger.path / "bundles"
        self.trial: Trial | None = None
        self.warnings = tuple(map(str, loaded.warnings))
        self.restart_needed: tuple[str, ...] = ()
        self.telemetry = Telemetry()
        self._started_with = loaded.settings
        self._files = loaded.files
        self._lock = asyncio.Lock()
        self._stop = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._again: asyncio.Task[None] | None = None
        self._lacking = 0
        self._fetched: Fetched | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._keys = _digest_of_keys(loaded.settings.policy)
        assembly = assemble(loaded.settings)
        upload, events = loaded.settings.decision_log, DecisionLog()
        self.collector = Collector(upload) if upload is not None else None
        self.ledger = FileLedger(
            loaded.settings.ledger.path, events, self.collector.take if self.collector is not None else None
        )
        self.pipeline = Pipeline(
            assembly,
            None,
            approvals=NobodyToAsk(),
            budgets=Unbudgeted(),
            ledger=self.ledger,
            events=events,
            telemetry=self.telemetry,
        )
        self.config.succeeded()
        self._record("config", "start", "ok")

    @property
    def settings(self) -> Settings:
        return self.pipeline.assembly.settings

    @property
    def unready(self) -> list[str]:
        """Why calls cannot be served now; empty when they can."""
        reasons = []
        if self.pipeline.engine is None:
            promoted = self.trial is not None and self.trial.stage.promoted
            reasons.append("the promoted policy is not loaded" if promoted else "no policy is loaded")
        elif self.pipeline.engine.failure is not None:
            reasons.append(f"the policy cannot be asked: {self.pipeline.engine.failure}")
        if self.ledger.failure is not None:
            reasons.append("the ledger cannot be written")
        return reasons

    async def __aenter__(self) -> Self:
        if self.collector is not None:
            self.telemetry.uploaded = self.collector.counts
            self.collector.begin()
        self._begin_trial()
        if not await self._ask_for_bundles():
            await self.reload_policy("start")
        await self.reload_shadow("start")
        self._watch = asyncio.create_task(self._watching(), name="watch over configuration and policy")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        if self._watch is not None:
            await asyncio.wait([self._watch])
        if self._again is not None:
            await asyncio.wait([self._again])
        await self._stop_asking()
        try:
            async with asyncio.timeout(_CLOSING):
                await asyncio.gather(*(line.carrier.close() for line in self.pipeline.assembly.lines.values()))
        except TimeoutError:
            log.error("connections to targets did not close in %.0f s", _CLOSING)
        if self.trial is not None:
            await self.trial.close()
        self.ledger.close()
        if self.collector is not None:
            await self.collector.close()
        # An engine has to end in the thread that made it; the garbage collector may run in any.
        for engine in (self.engine, self.trial.on_trial if self.trial is not None else None):
            if engine is not None:
                await engine.retire()
        self.pipeline.engine = self.pipeline.trial = self.engine = self.trial = None

    async def reload_config(self, who: str) -> None:
        """Loads the file again and swaps the assembly; whatever is wrong, nothing changes but `config.errors`."""
        async with self._lock:
            before = self.pipeline.assembly
            try:
                loaded = await asyncio.to_thread(load, self.path)
                after = await asyncio.to_thread(assemble, loaded.settings, before)  # reads certificates for each target
            except ConfigError as error:
                self._files |= error.files
                self._refused("config", who, self.config, [str(mistake) for mistake in error.mistakes])
                return
            except (SecretMissing, OSError) as error:
                self._refused("config", who, self.config, [f"{self.path}: {error}"])
                return
            except Exception as error:
                self._refused("config", who, self.config, [f"{self.path}: {_unforeseen(error)}"])
                return
            self.pipeline.assembly = after
            self._files = loaded.files
            self.warnings = tuple(map(str, loaded.warnings))
            self.restart_needed = _restart_needed(self._started_with, loaded.settings)
            for carrier in retired(before, after):
                carrier.retire()
            await self._trial_settings_changed(before.settings.policy, after.settings.policy)
            self.config.succeeded()
            self._record("config", who, "ok")
            log.info("configuration loaded from %s", self.path)
            for section in self.restart_needed:
                log.warning("a change of `%s` takes effect at the next start", section)
        await self._policy_settings_changed(before.settings.policy, after.settings.policy, who)

    async def _trial_settings_changed(self, before: PolicySettings, after: PolicySettings) -> None:
        """Ends a trial of other settings and begins the one that is configured now. The caller holds the lock."""
        if before.shadow == after.shadow and before.paths == after.paths:
            return
        on_trial, promoted, gone = None, False, None
        if self.trial is not None:
            await self.trial.close()
            on_trial, promoted = self.trial.on_trial, self.trial.stage.promoted
        if promoted and on_trial is not None and _sources(before) != _sources(after):
            # Until what is configured now is loaded, the promoted policy goes on deciding, and not the one that it
            # took the place of.
            gone, self.engine, on_trial = self.engine, on_trial, None
        elif _shadow_paths(before) != _shadow_paths(after):
            gone, on_trial = on_trial, None
        self._begin_trial(on_trial)
        if gone is not None:
            await gone.retire()

    async def _policy_settings_changed(self, before: PolicySettings, after: PolicySettings, who: str) -> None:
        keys, self._keys = self._keys, _digest_of_keys(after)
        others_sign = keys != self._keys or before.keys != after.keys
        moved = (before.bundle, before.engine) != (after.bundle, after.engine)
        coming = moved and await self._ask_for_bundles()
        if not coming and (_without_shadow(before) != _without_shadow(after) or others_sign):
            await self.reload_policy(who)
        if others_sign or (self.trial is not None and self.trial.on_trial is None):
            await self.reload_shadow(who)

    async def reload_policy(self, who: str) -> None:
        """Reads, proves and builds the policy anew, then swaps it; whatever is wrong, the last good one stays."""
        async with self._lock:
            engine = await self._loaded("policy", who, self.policy, self.settings.policy)
            if engine is None:
                await self._fall_back(who)
                return
            before, self.engine = self.engine, engine
            self.fallen_back = False
            self._engines_changed(self.trial.on_trial if self.trial is not None else None)
            self.policy.succeeded()
            self._record("policy", who, "ok")
            log.info("policy %s is loaded", engine.revision[:12])
            if self.history.failure is not None:
                log.error("policy %s is not kept for the next start: %s", engine.revision[:12], self.history.failure)
            if before is not None:
                await before.retire()

    async def _fall_back(self, who: str) -> None:
        """Where no policy was loaded since the start, lets the one decide that was the last to be put to use before.

        Not where policies have to be signed: what was kept is not, and anyone might have written it.
        """
        settings, kept = self.settings.policy, self.history.newest()
        configured = settings.engine == "embedded" and (settings.paths or settings.bundle is not None)
        if self.engine is not None or not configured or settings.keys or kept is None:
            return
        try:
            engine = await policy.again(settings, kept)
        except PolicyError as error:
            for problem in error.problems:
                log.error("the last good policy cannot be loaded either: %s", problem)
            return
        except Exception as error:
            log.error("the last good policy cannot be loaded either: %s", _unforeseen(error))
            return
        self.engine, self.fallen_back = engine, True
        self._engines_changed(self.trial.on_trial if self.trial is not None else None)
        self._record("policy", who, "last good")
        log.error("policy %s decides, the last good one before this start: correct the policy", engine.revision[:12])

    async def reload_shadow(self, who: str) -> None:
        """The same for the policy on trial, where there is one."""
        async with self._lock:
            shadow = self.settings.policy.shadow
            if shadow is None or self.trial is None:
                return
            settings = self.settings.policy.model_copy(
                update={"engine": "embedded", "paths": shadow.paths, "bundle": None}
            )
            engine = await self._loaded("shadow policy", who, self.shadow, settings)
            if engine is None:
                return
            before = self.trial.on_trial
            self._engines_changed(engine)
            self.shadow.succeeded()
            self._record("shadow policy", who, "ok")
            log.info("policy %s is on trial", engine.revision[:12])
            if before is not None:
                await before.retire()

    async def _ask_for_bundles(self) -> bool:
        """Begins to ask the server that the settings name; True when there is one, and its bundle will be loaded."""
        await self._stop_asking()
        settings = self.settings.policy
        if settings.bundle is None or settings.engine != "embedded":
            return False
        self._hearing = asyncio.create_task(self._hear(settings.bundle), name="bundles from a server")
        return True

    async def _stop_asking(self) -> None:
        hearing, self._hearing, self._fetched = self._hearing, None, None
        if hearing is not None:
            hearing.cancel()
            await asyncio.wait([hearing])

    async def _hear(self, settings: BundleSettings) -> None:
        """Loads every new bundle. What goes wrong on the way is told once, until something else does."""
        async with aclosing(news(settings)) as heard:
            async for said in heard:
                try:
                    await self._heard(settings, said)
                except Exception as error:  # out of threads, perhaps; what comes next must be heard all the same
                    self._refused("policy", "bundle server", self.policy, [_unforeseen(error)])

    async def _heard(self, settings: BundleSettings, said: News) -> None:
        if isinstance(said, Fetched):
            self._fetched = said
            await self.reload_policy("bundle server")
            if not self.policy.errors:
                await asyncio.to_thread(remember, self._kept_bundles, said)
        elif said is not None and self.policy.errors != (str(said),):
            if self.engine is None and self.settings.policy.keys:
                await self._recall(settings)
            self._refused("policy", "bundle server", self.policy, [str(said)])
            async with self._lock:
                await self._fall_back("bundle server")

    async def _recall(self, settings: BundleSettings) -> None:
        """Loads what the server sent before this start, with its signature, which is verified again."""
        self._fetched = await asyncio.to_thread(recall, self._kept_bundles, settings)
        if self._fetched is not None:
            await self.reload_policy("last bundle")
            self.fallen_back = self.engine is not None
        if not self.fallen_back:
            self._fetched = None

    async def _loaded(self, what: str, who: str, reload: Reload, settings: PolicySettings) -> Engine | None:
        try:
            engine = await policy.load(
                settings,
                opa=OpaLine,
                fetched=self._fetched if settings.bundle else None,
                history=self.history if reload is self.policy else None,
            )
        except PolicyError as error:
            self._refused(what, who, reload, [str(problem) for problem in error.problems])
            if error.transient:
                self._load_again()
        except Exception as error:
            self._refused(what, who, reload, [_unforeseen(error)])
        else:
            self._lacking = 0
            return engine
        return None

    def _load_again(self) -> None:
        """Has everything loaded again later: the machine lacked something, which no edit will tell us it has again."""
        if self._again is None or self._again.done() or self._again is asyncio.current_task():
            wait = min(_AGAIN * 2**self._lacking, _AGAIN_AT_MOST)
            self._lacking += 1
            self._again = asyncio.create_task(self._after(wait), name="loading again what was refused for lack")

    async def _after(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        if not self._stop.is_set() and self.policy.errors:
            await self.reload_policy("retry")
        if not self._stop.is_set() and self.shadow.errors:
            await self.reload_shadow("retry")

    def _begin_trial(self, on_trial: Engine | None = None) -> None:
        """Makes the trial that the settings want, where its engine is not at hand with that still to come."""
        settings = self.settings.policy
        file = self.settings.ledger.path / "policies" / "trial.json"
        self.trial = None
        if settings.shadow is not None:
            self.trial = Trial(settings.shadow, settings.paths, file, note=self.ledger.note, swap=self._let_decide)
        else:
            forget(file)
        self.pipeline.trial = self.trial
        self._engines_changed(on_trial)

    def _engines_changed(self, on_trial: Engine | None) -> None:
        if self.trial is not None:
            self.trial.replace(configured=self.engine, on_trial=on_trial)
            self.telemetry.compared = self.trial.counts
        else:
            self._let_decide(self.engine)

    def _let_decide(self, engine: Engine | None) -> None:
        self.pipeline.engine = engine
        self.telemetry.revision = engine.revision if engine is not None else ""

    def _refused(self, what: str, who: str, reload: Reload, errors: list[str]) -> None:
        reload.failed(errors)
        self._record(what, who, "refused")
        stays = "the last good one stays" if reload.count or self.fallen_back else "none is loaded"
        for error in errors:
            log.error("%s refused, %s: %s", what, stays, error)

    def _record(self, what: str, who: str, result: str) -> None:
        self.telemetry.reloads[what, result] += 1
        revision = self.pipeline.engine.revision if self.pipeline.engine is not None else None
        self.ledger.note("reload", {"what": what, "who": who, "result": result, "revision": revision})

    async def _watching(self) -> None:
        """Acts on edits until the end: a reload never raises, so that one edit's trouble does not hide the next."""
        async with aclosing(changes(self._watched, stop=self._stop)) as edits:
            async for edited in edits:
                if edited & {self.path, *self._files}:
                    await self.reload_config("edit")
                if edited & {*self.settings.policy.paths}:
                    await self.reload_policy("edit")
                if edited & {*_shadow_paths(self.settings.policy)}:
                    await self.reload_shadow("edit")

    def _watched(self) -> set[Path]:
        policy = self.settings.policy
        return {self.path, *self._files, *policy.paths, *_shadow_paths(policy)}


def _digest_of_keys(settings: PolicySettings) -> bytes:
    """Changes when a key does, also one whose file was replaced. A key that is missing is told when it is needed."""
    digest = hashlib.sha256()
    for key in settings.keys:
        with contextlib.suppress(SecretMissing):
            digest.update(hashlib.sha256(key.key.reveal_text().encode()).digest())
    return digest.digest()


def _without_shadow(settings: PolicySettings) -> PolicySettings:
    return settings.model_copy(update={"shadow": None})


def _sources(settings: PolicySettings) -> tuple[object, ...]:
    """Where the configured policy comes from."""
    return settings.engine, settings.paths, settings.bundle, settings.opa


def _shadow_paths(settings: PolicySettings) -> tuple[Path, ...]:
    return settings.shadow.paths if settings.shadow is not None else ()


def _unforeseen(error: Exception) -> str:
    """What failed and where. Not the error's text: nobody has made sure that it holds no secret."""
    frames = traceback.extract_tb(error.__traceback__)
    where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:])
    return f"loading failed unexpectedly with {type(error).__name__} ({where})"


def _restart_needed(started_with: Settings, now: Settings) -> tuple[str, ...]:
    return tuple(section for section in _NEEDS_RESTART if _cold(started_with, section) != _cold(now, section))


def _cold(settings: Settings, section: str) -> object:
    """The part of a section that only a start reads."""
    match section:
        case "listen":
            return settings.listen.model_copy(update={"max_body": 0})
        case "admin":
            return settings.admin.listen
        case "ledger":
            return settings.ledger.path
        case _:
            return getattr(settings, section)
