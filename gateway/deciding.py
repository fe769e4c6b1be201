"""Which policy decides: it is loaded, fetched, kept, put on trial, and swapped between two calls.

Whatever is wrong with an edit, calls go on under the last good policy; when in doubt under none, which refuses them.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Set
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

from config.errors import SecretMissing
from config.settings import BundleSettings, PolicySettings
from gateway.ledger import Ledger
from gateway.opa import OpaLine
from gateway.pipeline import Pipeline
from gateway.reload import Reload, Reloads, unforeseen
from gateway.telemetry import Telemetry
from gateway.trial import Trial, forget
from policies import load as policy
from policies.engine import Engine
from policies.errors import PolicyError
from policies.fetch import News, news, recall, remember
from policies.history import ON_TRIAL, History, Kept
from policies.sources import Fetched

log = logging.getLogger("weighbridge.deciding")

_AGAIN: Final = 1.0
_AGAIN_AT_MOST: Final = 60.0
"""Seconds after which a policy is loaded again that was refused for no fault of its own; each time twice as many."""


class Deciding:
    """The configured policy and the one on trial, and which of the two the pipeline asks.

    `lock` is held while anything is loaded, the configuration included: what is put to use belongs together.
    """

    def __init__(
        self, folder: Path, pipeline: Pipeline, telemetry: Telemetry, ledger: Ledger, reloads: Reloads
    ) -> None:
        """`folder` is the ledger's, where policies and the trial's stage are kept."""
        self.lock = asyncio.Lock()
        self.loading = Reload()
        self.loading_shadow = Reload()
        self.engine: Engine | None = None
        """Of the configured policy; it decides, unless the one on trial was promoted."""
        self.fallen_back = False
        """Whether `engine` is of a revision kept from before, because the configured policy could not be loaded."""
        self.fallen_back_on_trial = False
        """The same of the policy on trial, which only falls back where it was promoted."""
        self.history = History(folder / "policies")
        self._history_on_trial = History(folder / "policies" / ON_TRIAL)
        self.trial: Trial | None = None
        self._folder = folder
        self._kept_bundles = folder / "bundles"
        self._pipeline, self._telemetry, self._ledger, self._reloads = pipeline, telemetry, ledger, reloads
        self._stop = asyncio.Event()
        self._again: asyncio.Task[None] | None = None
        self._lacking = 0
        self._fetched: Fetched | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._keys = _digest_of_keys(self.settings)

    @property
    def settings(self) -> PolicySettings:
        return self._pipeline.assembly.settings.policy

    @property
    def watched(self) -> set[Path]:
        """The files and folders whose change is an edit of a policy."""
        return {*self.settings.paths, *_shadow_paths(self.settings)}

    @property
    def promoted(self) -> bool:
        """Whether the policy on trial is the one that decides."""
        return self.trial is not None and self.trial.stage.promoted

    @property
    def failure(self) -> str | None:
        """Why calls cannot be decided now, for the operator; None when they can."""
        engine = self._pipeline.engine
        if engine is None:
            return "the promoted policy is not loaded" if self.promoted else "no policy is loaded"
        return f"the policy cannot be asked: {engine.failure}" if engine.failure is not None else None

    async def begin(self) -> None:
        """Loads what is configured, and begins to listen for bundles."""
        self._begin_trial()
        if not await self._ask_for_bundles():
            await self.reload("start")
        await self.reload_shadow("start")

    async def end(self) -> None:
        """Ends everything that might still load something. What decides goes on deciding."""
        self._stop.set()
        if self._again is not None:
            await asyncio.wait([self._again])
        await self._stop_asking()

    async def retire(self) -> None:
        """Ends the engines, in the thread that made them; the garbage collector may run in any."""
        for engine in (self.engine, self.trial.on_trial if self.trial is not None else None):
            if engine is not None:
                await engine.retire()
        self._pipeline.engine = self._pipeline.trial = self.engine = self.trial = None

    async def edited(self, files: Set[Path]) -> None:
        """Loads again what these files belong to."""
        if files & {*self.settings.paths}:
            await self.reload("edit")
        if files & {*_shadow_paths(self.settings)}:
            await self.reload_shadow("edit")

    async def reload(self, who: str) -> None:
        """Reads, proves and builds the policy anew, then swaps it; whatever is wrong, the last good one stays."""
        async with self.lock:
            engine = await self._loaded("policy", who, self.loading, self.settings)
            if engine is None:
                await self._fall_back(who)
                return
            before, self.engine = self.engine, engine
            self.fallen_back = False
            self._engines_changed(self.trial.on_trial if self.trial is not None else None)
            self.loading.succeeded()
            self._reloads.record("policy", who, "ok", engine)
            _tell_of(engine, self.settings)
            if self.history.failure is not None:
                log.error("policy %s is not kept for the next start: %s", engine.revision[:12], self.history.failure)
            if before is not None:
                await before.retire()

    async def reload_shadow(self, who: str) -> None:
        """The same for the policy on trial, where there is one."""
        async with self.lock:
            settings = policy.on_trial(self.settings)
            if settings is None or self.trial is None:
                return
            engine = await self._loaded("shadow policy", who, self.loading_shadow, settings)
            if engine is None:
                await self._fall_back_on_trial(who, settings)
                return
            before = self.trial.on_trial
            self.fallen_back_on_trial = False
            self._engines_changed(engine)
            self.loading_shadow.succeeded()
            self._reloads.record("shadow policy", who, "ok", engine)
            log.info("policy %s is on trial", engine.revision[:12])
            if before is not None:
                await before.retire()

    async def trial_changed(self, before: PolicySettings, after: PolicySettings) -> None:
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
            self.fallen_back = self.fallen_back_on_trial
        elif _shadow_paths(before) != _shadow_paths(after):
            gone, on_trial = on_trial, None
        self._begin_trial(on_trial)
        if gone is not None:
            await gone.retire()

    async def changed(self, before: PolicySettings, after: PolicySettings, who: str) -> None:
        """Loads whatever else of the policy's settings now says otherwise, after `trial_changed`."""
        keys, self._keys = self._keys, _digest_of_keys(after)
        others_sign = keys != self._keys or before.keys != after.keys
        moved = (before.bundle, before.engine) != (after.bundle, after.engine)
        coming = moved and await self._ask_for_bundles()
        if not coming and (_without_shadow(before) != _without_shadow(after) or others_sign):
            await self.reload(who)
        if others_sign or (self.trial is not None and self.trial.on_trial is None):
            await self.reload_shadow(who)

    async def _fall_back(self, who: str) -> None:
        """Where no policy was loaded since the start, lets the one decide that was the last to be put to use before.

        Not where policies have to be signed: what was kept is not, and anyone might have written it.
        """
        settings = self.settings
        configured = settings.engine == "embedded" and (settings.paths or settings.bundle is not None)
        if self.engine is not None or not configured:
            return
        engine = await self._last_good(settings, self.history.newest())
        if engine is None:
            return
        self.engine, self.fallen_back = engine, True
        self._engines_changed(self.trial.on_trial if self.trial is not None else None)
        self._reloads.record("policy", who, "last good", engine)
        log.error("policy %s decides, the last good one before this start: correct the policy", engine.revision[:12])

    async def _fall_back_on_trial(self, who: str, settings: PolicySettings) -> None:
        """The same for a promoted policy: no call is decided by the one that it took the place of."""
        trial = self.trial
        if trial is None or trial.on_trial is not None or not self.promoted:
            return
        engine = await self._last_good(settings, self._history_on_trial.find(trial.promoted))
        if engine is None:
            return
        if not trial.stage.promoted:  # rolled back meanwhile
            await engine.retire()
            return
        self.fallen_back_on_trial = True
        self._engines_changed(engine)
        self._reloads.record("shadow policy", who, "last good", engine)
        log.error(
            "the promoted policy %s decides, the last good one before this start: correct the policy",
            engine.revision[:12],
        )

    async def _last_good(self, settings: PolicySettings, kept: Kept | None) -> Engine | None:
        if settings.keys or kept is None:
            return None
        try:
            return await policy.again(settings, kept)
        except PolicyError as error:
            for problem in error.problems:
                log.error("the last good policy cannot be loaded either: %s", problem)
        except Exception as error:
            log.error("the last good policy cannot be loaded either: %s", unforeseen(error))
        return None

    async def _ask_for_bundles(self) -> bool:
        """Begins to ask the server that the settings name; True when there is one, and its bundle will be loaded."""
        await self._stop_asking()
        settings = self.settings
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
                    self._refused("policy", "bundle server", self.loading, [unforeseen(error)])

    async def _heard(self, settings: BundleSettings, said: News) -> None:
        if isinstance(said, Fetched):
            self._fetched = said
            await self.reload("bundle server")
            if not self.loading.errors:
                await asyncio.to_thread(remember, self._kept_bundles, said)
        elif said is not None and self.loading.errors != (str(said),):
            if self.engine is None and self.settings.keys:
                await self._recall(settings)
            self._refused("policy", "bundle server", self.loading, [str(said)])
            async with self.lock:
                await self._fall_back("bundle server")

    async def _recall(self, settings: BundleSettings) -> None:
        """Loads what the server sent before this start, with its signature, which is verified again."""
        self._fetched = await asyncio.to_thread(recall, self._kept_bundles, settings)
        if self._fetched is not None:
            await self.reload("last bundle")
            self.fallen_back = self.engine is not None
        if not self.fallen_back:
            self._fetched = None

    async def _loaded(self, what: str, who: str, reload: Reload, settings: PolicySettings) -> Engine | None:
        try:
            engine = await policy.load(
                settings,
                opa=OpaLine,
                fetched=self._fetched if settings.bundle else None,
                history=self.history if reload is self.loading else self._history_on_trial,
            )
        except PolicyError as error:
            self._refused(what, who, reload, [str(problem) for problem in error.problems])
            if error.transient:
                self._load_again()
        except Exception as error:
            self._refused(what, who, reload, [unforeseen(error)])
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
        if not self._stop.is_set() and self.loading.errors:
            await self.reload("retry")
        if not self._stop.is_set() and self.loading_shadow.errors:
            await self.reload_shadow("retry")

    def _begin_trial(self, on_trial: Engine | None = None) -> None:
        """Makes the trial that the settings want, where its engine is not at hand with that still to come."""
        settings = self.settings
        file = self._folder / "policies" / "trial.json"
        self.trial = None
        self.fallen_back_on_trial = self.fallen_back_on_trial and on_trial is not None
        if settings.shadow is not None:
            self.trial = Trial(settings.shadow, settings.paths, file, note=self._ledger.note, swap=self._let_decide)
        else:
            forget(file, settings.paths)
        self._pipeline.trial = self.trial
        self._engines_changed(on_trial)

    def _engines_changed(self, on_trial: Engine | None) -> None:
        if self.trial is not None:
            self.trial.replace(configured=self.engine, on_trial=on_trial)
            self._telemetry.compared = self.trial.counts
        else:
            self._let_decide(self.engine)

    def _let_decide(self, engine: Engine | None) -> None:
        self._pipeline.engine = engine

    def _refused(self, what: str, who: str, reload: Reload, errors: list[str]) -> None:
        engine, fallen_back = self.engine, self.fallen_back
        if reload is self.loading_shadow:
            engine, fallen_back = self.trial.on_trial if self.trial is not None else None, self.fallen_back_on_trial
        self._reloads.refused(what, who, reload, errors, engine, stays=reload.count > 0 or fallen_back)


def _tell_of(engine: Engine, settings: PolicySettings) -> None:
    if settings.engine == "embedded":
        log.info("policy %s is loaded", engine.revision[:12])
    elif engine.failure is None:
        log.info("an OPA server decides, by policy %s", engine.revision[:12])
    else:
        log.warning("an OPA server is to decide, and cannot yet: %s", engine.failure)


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
