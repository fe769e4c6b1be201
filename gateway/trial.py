"""A policy set on trial: asked after each call, never deciding until a person promotes it, turned back by itself.

What has been promoted survives a restart: the stage stands in a file before it takes effect, and after it only where
the effect is to turn back, which must not wait for a disk.
"""

import asyncio
import dataclasses
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from config.settings import ShadowSettings
from gateway.exchange import Asked, Exchange
from policies.engine import Engine
from policies.shadow import TRANSITIONS, Comparison, Event, Stage, Verdict, differ, other_verdict, verdict

log = logging.getLogger("weighbridge.trial")

_RECENT: Final = 100
"""Differences that are kept to be shown."""
_RECORDED_A_MINUTE: Final = 60
"""Differences that are written into the ledger; all are counted."""
_LONGEST_WATCH: Final = 365 * 86400.0
"""Seconds that a timer is set for."""


_SAID: Final = {
    Event.PROMOTE: "%s promoted the policy on trial: %s decides now, and is watched",
    Event.ROLL_BACK: "%s rolled the promoted policy back: %s, the configured one, decides again",
}
"""What the log says of a person's decision, with the person and the revision that decides after it."""


class TrialRefused(Exception):
    """The trial is not at a point where this can be done. The text says what can."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One call on which the two policies differ."""

    at: float
    """Seconds since the epoch."""
    call: str
    agent: str
    tenant: str
    kind: str
    target: str
    operation: str
    configured: Verdict
    on_trial: Verdict

    def facts(self) -> dict[str, Any]:
        """As it is recorded and shown."""
        return {
            "call": self.call,
            "agent": self.agent,
            "tenant": self.tenant,
            "kind": self.kind,
            "target": self.target,
            "operation": self.operation,
            "configured": _said(self.configured),
            "on_trial": _said(self.on_trial),
        }


def _said(by: Verdict) -> dict[str, Any]:
    return {"decision": by.effect, "explanation": by.explanation, "revision": by.revision}


class Trial:
    """Two engines and which of them decides. `note` records something; `swap` puts an engine in charge of calls."""

    def __init__(
        self,
        settings: ShadowSettings,
        paths: Sequence[Path],
        file: Path,
        *,
        note: Callable[[str, Mapping[str, Any]], None],
        swap: Callable[[Engine | None], None],
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`paths` are the configured policy's; a stage that was kept for other paths is not taken up again."""
        self.settings = settings
        self.configured: Engine | None = None
        self.on_trial: Engine | None = None
        self.stage = Stage.SHADOWING
        self.reason = ""
        self.until = 0.0
        """When the watch ends, seconds since the epoch."""
        self.promoted = ""
        """The revision that decided last of the promoted ones."""
        self.comparison = Comparison(settings.rollback.window)
        self.since = now()
        """When `comparison` began, seconds since the epoch. What is `recent` may be older."""
        self.recent: deque[Difference] = deque(maxlen=_RECENT)
        self.counts: dict[tuple[str, str], int] = {}
        """All calls compared since the start, by (word of the configured policy, word of the one on trial)."""
        self._sets = {"configured": [str(path) for path in paths], "on_trial": [str(path) for path in settings.paths]}
        self._file = file
        self._note, self._swap, self._now, self._chance = note, swap, now, chance
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self._minute, self._recorded = 0, 0
        self._take_up(paths)

    @property
    def deciding(self) -> Engine | None:
        return self.on_trial if self.stage.promoted else self.configured

    @property
    def other(self) -> Engine | None:
        return self.configured if self.stage.promoted else self.on_trial

    def replace(self, *, configured: Engine | None, on_trial: Engine | None) -> None:
        """Takes new engines, of either set or both. What was compared before says nothing about other revisions."""
        before = _revision(self.configured), _revision(self.on_trial)
        self.configured, self.on_trial = configured, on_trial
        if None in before or before != (_revision(configured), _revision(on_trial)):
            self._begin_anew()
        if self.stage.promoted and on_trial is not None and on_trial.revision != self.promoted:
            self.promoted = on_trial.revision
            self._later(self._keep_stage())
        self._swap(self.deciding)

    async def promote(self, who: str, revision: str = "") -> None:
        """The policy on trial decides from now on, and is watched. Raises TrialRefused, OSError.

        `revision` is how the one that is meant begins: a newer one, that nobody has looked at, is not promoted then.
        """
        if self.on_trial is None or self.on_trial.failure is not None:
            raise TrialRefused("The policy on trial cannot decide; `weighbridge policy diff` says why.")
        if not self.settings.share:
            raise TrialRefused("policy.shadow.share is 0, so a promoted policy could not turn back. Set it above 0.")
        await self._decided(Event.PROMOTE, who, "", revision)

    async def roll_back(self, who: str, reason: str = "") -> None:
        """The configured policy decides again. Raises TrialRefused, OSError."""
        await self._decided(Event.ROLL_BACK, who, reason)

    async def consider(self, x: Exchange) -> None:
        """Asks the other policy about a call that is over. Costs its caller nothing, and never raises."""
        other, deciding = self.other, self.deciding
        if other is None or deciding is None or not x.asked or self._chance() * 100 >= self.settings.share:
            return
        if any(asked.revision != deciding.revision for asked in x.asked):
            return  # decided before the last change, so the two verdicts would not be of these two policies
        # The call as it came and as it was changed: where the one that decides has something taken out, only the first
        # question shows that the other would leave it in.
        for asked in x.asked:
            decided = verdict(asked.decision, asked.revision)
            if asked.decision is None and deciding.failure is not None:
                return  # what could not be asked has no opinion
            try:
                otherwise = await other_verdict(other, asked.question)
            except Exception:
                log.exception("the policy that does not decide failed on call %s", x.id)
                return
            if otherwise is None or self._ended or other is not self.other or deciding is not self.deciding:
                return
            pair = (otherwise, decided) if self.stage.promoted else (decided, otherwise)
            if differ(*pair):
                break
        words = (pair[0].effect, pair[1].effect)
        self.counts[words] = self.counts.get(words, 0) + 1
        if self.comparison.add(*pair):
            self._keep(x, asked, *pair, wordless=asked.masks or other.masks)
        if self.stage is Stage.WATCHING:
            if reason := self.comparison.departure(self.settings.rollback):
                self._depart(reason)
            elif self._now() >= self.until:
                self._time_is_over()

    async def close(self) -> None:
        """Ends the trial here, once what is under way is done; the stage stays as it was kept."""
        async with self._lock:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _depart(self, reason: str) -> None:
        self._move(Event.DEPART, reason)
        log.error("the promoted policy is rolled back: %s", reason)
        self._tell(Event.DEPART, "weighbridge")
        self._later(self._keep_stage())

    async def _decided(self, event: Event, who: str, reason: str, revision: str = "") -> None:
        # Whoever asked may be gone before it is kept; then it takes effect all the same, and nothing is between.
        await asyncio.shield(self._later(self._decide(event, who, reason, revision)))

    async def _decide(self, event: Event, who: str, reason: str, revision: str) -> None:
        async with self._lock:
            if self._ended:
                raise TrialRefused("The trial has ended: the configuration has changed. Look again.")
            if (self.stage, event) not in TRANSITIONS:
                raise TrialRefused(f"The trial is {self.stage}; {event} does nothing now.")
            self._is_meant(revision)
            before = (self.stage, self.reason, self.until)
            try:
                await asyncio.to_thread(_write, self._file, self._after(event, reason))
            except OSError:
                self._later(self._keep_stage())  # it may be there, and must not be taken up again
                raise
            if (self.stage, self.reason, self.until) != before:
                raise TrialRefused(f"The trial has become {self.stage} meanwhile: {self.reason}.")
            try:
                self._is_meant(revision)
            except TrialRefused:
                self._later(self._keep_stage())
                raise
            self._move(event, reason)
            self._tell(event, who)
            log.warning(_SAID[event], who, (_revision(self.deciding) or "none")[:12])

    def _is_meant(self, revision: str) -> None:
        now = _revision(self.on_trial) or ""
        if not now.startswith(revision.lower()):
            raise TrialRefused(f"The policy on trial is of revision {now[:12]} by now. Look at it, and promote that.")

    def _after(self, event: Event, reason: str) -> dict[str, Any]:
        stage = TRANSITIONS[self.stage, event]
        until = self._now() + self.settings.rollback.watch_for if event is Event.PROMOTE else 0.0
        promoted = _revision(self.on_trial) or "" if event is Event.PROMOTE else self.promoted
        return {**self._sets, "stage": stage, "reason": reason, "until": until, "promoted": promoted}

    def _move(self, event: Event, reason: str) -> None:
        kept = self._after(event, reason)
        self.stage, self.reason, self.until = kept["stage"], reason, kept["until"]
        self.promoted = kept["promoted"]
        self._begin_anew()
        self._watch()
        self._swap(self.deciding)

    def _tell(self, event: Event, who: str) -> None:
        revisions = {"configured": _revision(self.configured), "on_trial": _revision(self.on_trial)}
        self._note(
            "policy_trial", {"event": event, "who": who, "stage": self.stage, "reason": self.reason, **revisions}
        )

    def _begin_anew(self) -> None:
        self.comparison = Comparison(self.settings.rollback.window)
        self.since = self._now()

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.stage is Stage.WATCHING:
            loop = asyncio.get_running_loop()
            left = min(max(0.0, self.until - self._now()), _LONGEST_WATCH)
            self._timer = loop.call_later(left, self._time_is_over)

    def _time_is_over(self) -> None:
        # Time alone proves nothing: the watch goes on until enough calls were compared.
        if self.stage is not Stage.WATCHING or self.comparison.calls < self.settings.rollback.min_calls:
            return
        self._move(Event.TIME_OVER, "")
        log.info("the watch over the promoted policy is over: it is kept")
        self._tell(Event.TIME_OVER, "weighbridge")
        self._later(self._keep_stage())

    def _keep(self, x: Exchange, asked: Asked, configured: Verdict, on_trial: Verdict, *, wordless: bool) -> None:
        """`wordless` leaves out what the policies wrote: one of them has a say in what is recorded."""
        question, agent = asked.question, x.agent
        if wordless:
            configured, on_trial = (dataclasses.replace(each, explanation="") for each in (configured, on_trial))
        difference = Difference(
            self._now(),
            x.id,
            agent.name if agent is not None else "",
            agent.tenant if agent is not None else "",
            question.kind,
            question.target[:256],
            question.operation[:256],
            configured,
            on_trial,
        )
        self.recent.append(difference)
        minute = int(difference.at // 60)
        if minute != self._minute:
            self._minute, self._recorded = minute, 0
        if self._recorded < _RECORDED_A_MINUTE:
            self._recorded += 1
            self._note("policy_difference", difference.facts())

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep_stage(self) -> None:
        async with self._lock:
            kept = {**self._sets, "stage": self.stage, "reason": self.reason, "until": self.until}
            kept["promoted"] = self.promoted
            try:
                await asyncio.to_thread(_write, self._file, kept)
            except OSError as error:
                log.error("the stage of the policy on trial could not be kept: %s", error.strerror)

    def _take_up(self, paths: Sequence[Path]) -> None:
        """Goes on where the last process stopped, if the trial is still that of the same paths."""
        try:
            kept = orjson.loads(self._file.read_bytes())
            stage, reason, until = Stage(kept["stage"]), str(kept["reason"]), float(kept["until"])
            promoted = str(kept.get("promoted", ""))
            same = {name: kept[name] for name in self._sets} == self._sets
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            log.error("%s cannot be read, so the configured policy decides", self._file)
            return
        if same:
            self.stage, self.reason, self.until, self.promoted = stage, reason, until, promoted
            self._watch()
        else:
            forget(self._file, paths)


def _revision(engine: Engine | None) -> str | None:
    return engine.revision if engine is not None else None


def forget(file: Path, paths: Sequence[Path]) -> None:
    """Removes the stage that was kept of a trial that is configured no more. `paths` are the configured policy's now.

    Otherwise whatever stands at the same paths one day would decide by the promotion of what stood there before.
    """
    try:
        kept = orjson.loads(file.read_bytes())
        promoted, final = Stage(kept["stage"]).promoted, kept["on_trial"] == [str(path) for path in paths]
    except (OSError, ValueError, KeyError, TypeError):
        promoted = final = False
    try:
        file.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        log.error("%s cannot be removed (%s), and may count for a trial of the same paths", file, error.strerror)
        return
    if not promoted:
        log.info("the trial has ended: it is configured no more")
    elif final:
        log.info("the trial has ended: what was promoted is the configured policy now")
    else:
        log.warning("the trial has ended with a policy promoted that is not the configured one: it decides no more")


def _write(file: Path, kept: Mapping[str, Any]) -> None:
    """Durable before it returns: content, then name, then folder. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, orjson.dumps(kept, option=orjson.OPT_APPEND_NEWLINE))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(new, file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
