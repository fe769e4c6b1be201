"""A policy on trial never decides before it is promoted, and goes by itself when it decides otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from config.settings import ShadowSettings
from gateway.exchange import Asked, Exchange
from gateway.trial import Trial, TrialRefused
from policies.decision import Decision, Effect
from policies.document import Question
from policies.engine import Engine
from policies.errors import EngineUnavailable, Undecided
from policies.obligations import read
from policies.shadow import Stage
from tests.policies.support import NOW
from tests.support.exchanges import ALLOWED, exchange
from tests.support.gate import ScriptedEngine

PATHS: Final = (Path("/etc/weighbridge/policy"),)
DENIED: Final = dataclasses.replace(ALLOWED, effect=Effect.DENY)


class Numbered(ScriptedEngine):
    """An engine with a revision of its own, which its decisions carry."""

    def __init__(self, revision: str, script: Decision | Exception = ALLOWED) -> None:
        super().__init__(dataclasses.replace(script, revision=revision) if isinstance(script, Decision) else script)
        self.revision = revision


@dataclasses.dataclass
class Bench:
    """A trial on a desk: what it put in charge, what it noted, and the time that it believes it is."""

    file: Path
    settings: ShadowSettings
    notes: list[tuple[str, Mapping[str, Any]]] = dataclasses.field(default_factory=list)
    deciding: list[Engine | None] = dataclasses.field(default_factory=list)
    swapped: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    now: float = 1000.0

    def _swap(self, engine: Engine | None) -> None:
        self.deciding.append(engine)
        self.swapped.set()

    def trial(self, paths: tuple[Path, ...] = PATHS) -> Trial:
        return Trial(
            self.settings,
            paths,
            self.file,
            note=lambda kind, facts: self.notes.append((kind, facts)),
            swap=self._swap,
            now=lambda: self.now,
            chance=lambda: 0.5,
        )

    @asynccontextmanager
    async def running(self, old: Engine, new: Engine, paths: tuple[Path, ...] = PATHS) -> AsyncIterator[Trial]:
        trial = self.trial(paths)
        trial.replace(configured=old, on_trial=new)
        try:
            yield trial
        finally:
            await trial.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    rollback = {"max_deny_change": 0.1, "min_calls": 5, "window": 10, "watch_for": 3600.0}
    settings = ShadowSettings.model_validate(
        {"paths": ["/etc/weighbridge/next"], "rollback": rollback}, context={"folder": tmp_path}
    )
    return Bench(tmp_path / "kept" / "trial.json", settings)


async def call(trial: Trial) -> Exchange:
    """One call as the pipeline leaves it: decided by whoever decides, then considered."""
    x = exchange()
    assert x.agent is not None
    assert x.call is not None
    question = Question(
        x.agent.fragment, "llm", "openai", x.call.target, "chat", False, None, x.call.body, x.call.arguments, NOW
    )
    assert trial.deciding is not None
    asked = Asked(question, None, trial.deciding.revision, trial.deciding)
    x.asked = [asked]
    with contextlib.suppress(Undecided, EngineUnavailable):
        asked.decision = await trial.deciding.decide(question)
    await trial.consider(x)
    return x


async def test_the_configured_policy_decides_and_its_shadow_is_only_counted(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new", DENIED)
    async with bench.running(old, new) as trial:
        for _ in range(20):
            await call(trial)
        assert bench.deciding == [old]
        assert trial.counts == {("ALLOW", "DENY"): 20}
        assert (trial.stage, trial.comparison.differences) == (Stage.SHADOWING, 20)


async def test_a_difference_is_recorded_with_both_verdicts_and_agreement_is_not(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new")
    async with bench.running(old, new) as trial:
        await call(trial)
        assert bench.notes == []
        new.script = dataclasses.replace(DENIED, explanation="Not any more.", revision="new")
        x = await call(trial)
        ((kind, facts),) = bench.notes
        assert (kind, facts["call"], facts["agent"]) == ("policy_difference", x.id, "support-bot")
        assert facts["configured"] == {"decision": "ALLOW", "explanation": "", "revision": "old"}
        assert facts["on_trial"] == {"decision": "DENY", "explanation": "Not any more.", "revision": "new"}
        assert [each.call for each in trial.recent] == [x.id]


async def test_records_of_differences_are_bounded_and_their_count_is_not(bench: Bench) -> None:
    async with bench.running(Numbered("old"), Numbered("new", DENIED)) as trial:
        for _ in range(200):
            await call(trial)
        assert (len(bench.notes), len(trial.recent), trial.comparison.differences) == (60, 100, 200)
        bench.now += 60
        await call(trial)
        assert len(bench.notes) == 61


@pytest.mark.parametrize(("share", "asked"), [(0.0, 0), (50.0, 0), (50.1, 3), (100.0, 3)])
async def test_only_its_share_of_the_calls_is_put_before_the_shadow(bench: Bench, share: float, asked: int) -> None:
    bench.settings = bench.settings.model_copy(update={"share": share})
    new = Numbered("new")
    async with bench.running(Numbered("old"), new) as trial:
        for _ in range(3):
            await call(trial)
    assert len(new.documents) == asked


async def test_a_shadow_that_cannot_decide_counts_as_a_refusal(bench: Bench) -> None:
    async with bench.running(Numbered("old"), Numbered("new", Undecided())) as trial:
        await call(trial)
        assert trial.counts == {("ALLOW", "UNDECIDED"): 1}


async def test_a_shadow_that_breaks_breaks_no_call(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async with bench.running(Numbered("old"), Numbered("new", RuntimeError("a bug"))) as trial:
        await call(trial)
        assert trial.comparison.calls == 0
    assert "does not decide failed" in caplog.text


async def test_promotion_is_durable_and_then_the_policy_on_trial_decides(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new")
    async with bench.running(old, new) as trial:
        await trial.promote("dana")
        assert (trial.stage, trial.deciding, bench.deciding[-1]) == (Stage.WATCHING, new, new)
        assert orjson.loads(bench.file.read_bytes())["stage"] == "watching"
        ((kind, facts),) = bench.notes
        assert (kind, facts["event"], facts["who"], facts["on_trial"]) == ("policy_trial", "promote", "dana", "new")


async def test_only_the_revision_that_was_looked_at_is_promoted(bench: Bench) -> None:
    async with bench.running(Numbered("old"), Numbered("abcdef012345")) as trial:
        with pytest.raises(TrialRefused, match="of revision abcdef012345 by now"):
            await trial.promote("dana", "abcde1")
        assert not trial.stage.promoted
        await trial.promote("dana", "ABCDEF")
        assert trial.stage.promoted


async def test_a_promotion_that_cannot_be_kept_does_not_happen(bench: Bench) -> None:
    bench.file.parent.parent.joinpath("kept").write_text("a file where the folder should be")
    old = Numbered("old")
    async with bench.running(old, Numbered("new")) as trial:
        with pytest.raises(OSError, match="exists"):
            await trial.promote("dana")
        assert (trial.stage, trial.deciding) == (Stage.SHADOWING, old)
        assert bench.notes == []


@pytest.mark.parametrize("effect", [Effect.DENY, Effect.NEEDS_APPROVAL])
async def test_a_promoted_policy_that_departs_is_turned_back_at_once_and_stays_back(
    bench: Bench, effect: Effect
) -> None:
    old, new = Numbered("old"), Numbered("new", dataclasses.replace(ALLOWED, effect=effect))
    async with bench.running(old, new) as trial:
        await trial.promote("dana")
        for _ in range(5):
            assert trial.deciding is new
            await call(trial)
        assert (trial.stage, trial.deciding, bench.deciding[-1]) == (Stage.ROLLED_BACK, old, old)
        assert "100.00% of the last 5 calls" in trial.reason
        event = [facts for kind, facts in bench.notes if kind == "policy_trial"][-1]
        assert (event["event"], event["who"], event["stage"]) == ("depart", "weighbridge", "rolled_back")
        for _ in range(20):
            await call(trial)
        assert trial.deciding is old
    assert orjson.loads(bench.file.read_bytes())["stage"] == "rolled_back"
    async with bench.running(old, new) as after_restart:
        assert (after_restart.stage, after_restart.deciding) == (Stage.ROLLED_BACK, old)


async def test_turning_back_does_not_wait_for_a_disk_that_refuses(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new", DENIED)
    async with bench.running(old, new) as trial:
        await trial.promote("dana")
        bench.file.unlink()
        bench.file.with_name(bench.file.name + ".new").mkdir()
        for _ in range(5):
            await call(trial)
        assert trial.deciding is old


async def test_what_was_refused_before_the_promotion_does_not_count_against_it(bench: Bench) -> None:
    new = Numbered("new", DENIED)
    async with bench.running(Numbered("old"), new) as trial:
        for _ in range(50):
            await call(trial)
        new.script = dataclasses.replace(ALLOWED, revision="new")
        await trial.promote("dana")
        for _ in range(50):
            await call(trial)
        assert trial.stage is Stage.WATCHING


async def test_a_promoted_policy_that_agrees_is_kept_when_the_watch_is_over(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(
        update={"rollback": bench.settings.rollback.model_copy(update={"watch_for": 0.01})}
    )
    new = Numbered("new")
    async with bench.running(Numbered("old"), new) as trial:
        await trial.promote("dana")
        for _ in range(bench.settings.rollback.min_calls):
            await call(trial)
        bench.swapped.clear()
        if trial.stage is Stage.WATCHING:
            await asyncio.wait_for(bench.swapped.wait(), 10)
        assert (trial.stage, trial.deciding) == (Stage.KEPT, new)
        new.script = dataclasses.replace(DENIED, revision="new")
        for _ in range(50):
            await call(trial)
        assert trial.deciding is new
        await trial.roll_back("dana")
        assert trial.stage is Stage.SHADOWING


async def test_a_watch_in_which_nothing_was_compared_goes_on_until_something_was(bench: Bench) -> None:
    async with bench.running(Numbered("old"), Numbered("new")) as trial:
        await trial.promote("dana")
        bench.now = trial.until + 1
        trial._time_is_over()
        stages = []
        for _ in range(bench.settings.rollback.min_calls):
            stages.append(trial.stage)
            await call(trial)
        assert {*stages} == {Stage.WATCHING}
        assert trial.stage is Stage.KEPT


@pytest.mark.parametrize(("promote", "then"), [(True, "promote"), (False, "roll_back")])
async def test_what_does_nothing_now_is_refused(bench: Bench, promote: bool, then: str) -> None:
    async with bench.running(Numbered("old"), Numbered("new")) as trial:
        if promote:
            await trial.promote("dana")
        stage = trial.stage
        with pytest.raises(TrialRefused, match=str(stage)):
            await getattr(trial, then)("dana")
        assert trial.stage is stage


async def test_a_policy_that_cannot_decide_is_not_promoted(bench: Bench) -> None:
    new = Numbered("new")
    new.failure = "the OPA server does not answer"
    async with bench.running(Numbered("old"), new) as trial:
        with pytest.raises(TrialRefused, match="cannot decide"):
            await trial.promote("dana")


async def test_without_a_share_there_is_no_promotion_because_nothing_could_turn_it_back(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"share": 0.0})
    async with bench.running(Numbered("old"), Numbered("new")) as trial:
        with pytest.raises(TrialRefused, match="share is 0"):
            await trial.promote("dana")


async def test_a_restart_goes_on_where_it_stopped_and_other_paths_begin_anew(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new")
    async with bench.running(old, new) as trial:
        await trial.promote("dana")
    async with bench.running(old, new) as again:
        assert (again.stage, again.deciding) == (Stage.WATCHING, new)
    async with bench.running(old, new, paths=(Path("/etc/weighbridge/other"),)) as other:
        assert (other.stage, other.deciding) == (Stage.SHADOWING, old)


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"stage": "promoted"}', b'{"stage": 5}', b"\xff"])
async def test_a_damaged_file_leaves_the_configured_policy_deciding(bench: Bench, kept: bytes) -> None:
    bench.file.parent.mkdir()
    bench.file.write_bytes(kept)
    old = Numbered("old")
    async with bench.running(old, Numbered("new")) as trial:
        assert trial.deciding is old


async def test_a_call_decided_before_an_edit_is_not_compared_after_it(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new")
    async with bench.running(old, new) as trial:
        x = await call(trial)
        trial.replace(configured=Numbered("edited"), on_trial=new)
        await trial.consider(x)
        assert trial.comparison.calls == 0


async def test_a_policy_that_would_leave_in_what_the_other_takes_out_differs(bench: Bench) -> None:
    """Both allow the call as it was changed: the difference is in what they say of the call as it came."""
    redacting = dataclasses.replace(ALLOWED, obligations=read({"redact": ["/arguments/ssn"]}))

    class Redacting(Numbered):
        async def decide(self, question: Question) -> Decision:
            decision = redacting if "ssn" in question.arguments else ALLOWED
            return dataclasses.replace(decision, revision=self.revision)

    async with bench.running(Redacting("old"), Numbered("new")) as trial:
        x = exchange(arguments={"model": "m", "messages": [], "ssn": "123"})
        came = x.asked[-1].question
        changed = dataclasses.replace(came, arguments={"model": "m"}, body=b'{"model":"m"}')
        x.asked = [
            Asked(question, dataclasses.replace(decision, revision="old"), "old", None)
            for question, decision in ((came, redacting), (changed, ALLOWED))
        ]
        await trial.consider(x)
        assert (trial.comparison.calls, trial.comparison.differences) == (1, 1)


async def test_a_policy_that_denies_what_the_other_has_changed_differs(bench: Bench) -> None:
    class Strict(Numbered):
        async def decide(self, question: Question) -> Decision:
            return DENIED if "ssn" not in question.arguments else dataclasses.replace(ALLOWED, revision="new")

    async with bench.running(Numbered("old"), Strict("new")) as trial:
        x = exchange(arguments={"model": "m", "messages": [], "ssn": "123"})
        came = x.asked[-1].question
        decision = dataclasses.replace(ALLOWED, revision="old")
        changed = dataclasses.replace(came, arguments={"model": "m"}, body=b'{"model":"m"}')
        x.asked = [Asked(came, decision, "old", None), Asked(changed, decision, "old", None)]
        await trial.consider(x)
        assert trial.counts == {("ALLOW", "DENY"): 1}


async def test_a_server_that_is_away_turns_no_policy_back(bench: Bench) -> None:
    old, new = Numbered("old", EngineUnavailable("Not now.", "OPA is away")), Numbered("new")
    async with bench.running(old, new) as trial:
        await trial.promote("dana")
        for _ in range(20):
            await call(trial)
        assert (trial.stage, trial.deciding, trial.comparison.calls) == (Stage.WATCHING, new, 0)


async def test_what_was_refused_because_nobody_could_be_asked_is_no_difference(bench: Bench) -> None:
    old = Numbered("old", Undecided())
    async with bench.running(old, Numbered("new")) as trial:
        await call(trial)
        assert trial.comparison.differences == 1
        old.failure = "OPA is away"
        await call(trial)
        assert trial.comparison.calls == 1


@pytest.mark.parametrize("which", ["old", "new"])
async def test_where_a_policy_has_a_say_in_the_record_nothing_it_wrote_is_recorded(bench: Bench, which: str) -> None:
    old, new = (Numbered(name, dataclasses.replace(DENIED, explanation="The number 123.")) for name in ("old", "new"))
    old.script = dataclasses.replace(ALLOWED, explanation="The number 123.", revision="old")
    async with bench.running(old, new) as trial:
        x = await call(trial)
        new.masks = which == "new"
        x.asked[0].masks = which == "old"
        bench.notes.clear()
        await trial.consider(x)
        ((_, facts),) = bench.notes
        assert "123" not in str(facts)
        assert facts["on_trial"]["decision"] == "DENY"
        assert "123" not in str(trial.recent[-1].facts())


async def test_the_same_revision_loaded_again_goes_on_being_compared(bench: Bench) -> None:
    async with bench.running(Numbered("old"), Numbered("new", DENIED)) as trial:
        await call(trial)
        trial.replace(configured=Numbered("old"), on_trial=Numbered("new", DENIED))
        await call(trial)
        assert trial.comparison.calls == 2
        trial.replace(configured=Numbered("old"), on_trial=Numbered("newer", DENIED))
        assert trial.comparison.calls == 0


async def test_a_promotion_under_way_takes_effect_before_the_trial_ends_and_none_does_after(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new")
    async with bench.running(old, new) as trial:
        promoting = asyncio.create_task(trial.promote("dana"))
        while not trial._lock.locked():
            await asyncio.sleep(0)
        await trial.close()
        await promoting
        assert trial.stage is Stage.WATCHING
        bench.deciding.clear()
        with pytest.raises(TrialRefused, match="has ended"):
            await trial.roll_back("dana")
        await call(trial)
        assert (bench.deciding, trial.comparison.calls) == ([], 0)


async def test_whoever_asked_for_a_promotion_may_leave_and_it_is_whole(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new")
    async with bench.running(old, new) as trial:
        promoting = asyncio.create_task(trial.promote("dana"))
        while not trial._lock.locked():
            await asyncio.sleep(0)
        promoting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await promoting
    assert (trial.stage, orjson.loads(bench.file.read_bytes())["stage"]) == (Stage.WATCHING, "watching")
    assert [facts["event"] for _, facts in bench.notes] == ["promote"]


async def test_a_promotion_that_was_kept_only_in_part_is_not_taken_up_after_a_restart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is in its place, and the folder cannot be made durable: whoever promoted was told that nothing was."""
    sync, refusals = os.fsync, [False, True]

    def fails_once(descriptor: int) -> None:
        if refusals and refusals.pop(0):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    old, new = Numbered("old"), Numbered("new")
    monkeypatch.setattr(os, "fsync", fails_once)
    async with bench.running(old, new) as trial:
        with pytest.raises(OSError, match="Input/output"):
            await trial.promote("dana")
        assert trial.deciding is old
    async with bench.running(old, new) as again:
        assert (again.stage, again.deciding) == (Stage.SHADOWING, old)


async def test_a_promotion_ends_with_its_trial_and_not_only_until_the_same_paths_come_back(bench: Bench) -> None:
    old, new = Numbered("old"), Numbered("new")
    async with bench.running(old, new) as trial:
        await trial.promote("dana")
    async with bench.running(old, new, paths=(Path("/etc/weighbridge/other"),)):
        pass
    async with bench.running(old, new) as back:
        assert (back.stage, back.deciding) == (Stage.SHADOWING, old)


async def test_a_watch_may_be_as_long_as_can_be_written(bench: Bench) -> None:
    rollback = bench.settings.rollback.model_copy(update={"watch_for": 1e300})
    bench.settings = bench.settings.model_copy(update={"rollback": rollback})
    async with bench.running(Numbered("old"), Numbered("new")) as trial:
        await trial.promote("dana")
        assert trial.stage is Stage.WATCHING
    async with bench.running(Numbered("old"), Numbered("new")) as again:
        assert again.stage is Stage.WATCHING
