"""A policy on trial while the configuration changes: what decides was always promoted or configured."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx2
import orjson
import pytest
import yaml

from config.load import load
from gateway.admin import admin_app
from gateway.app import App
from policies.bundle import build, sign
from policies.embedded import EmbeddedEngine
from policies.engine import Engine
from policies.errors import EngineUnavailable
from policies.shadow import Stage
from policies.signatures import SigningKey
from tests.policies.support import NOW, llm
from tests.support.door import door

RULE: Final = 'package weighbridge\n\ndecision := {"decision": "ALLOW"}\n'
DANA: Final = {"name": "dana", "token": "danas-own-token", "roles": ["admin"]}
SHADOW: Final = {"paths": ["new.rego"]}


class Desk:
    """A folder with policies `old`, `new` and `other`, and a configuration that is written and loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "w.yaml"
        for name in ("old", "new", "other"):
            (folder / f"{name}.rego").write_text(f"{RULE}# {name}\n")
        self.write({"paths": ["old.rego"], "shadow": SHADOW})

    def write(self, policy: Mapping[str, Any]) -> None:
        ledger, state = {"path": str(self.folder / "ledger")}, f"sqlite:///{self.folder}/state.db"
        # In place of the old one at once, and never seen by the watch before the test has it loaded.
        beside = self.folder / "beside"
        beside.write_text(
            yaml.safe_dump({"admin": {"people": [DANA]}, "ledger": ledger, "policy": policy, "state": state})
        )
        beside.replace(self.file)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
async def app(desk: Desk) -> AsyncIterator[App]:
    async with App(desk.file, load(desk.file)) as app:
        yield app


async def fit(engine: Engine | None) -> None:
    """Asks an engine, which one that has retired would not stand."""
    assert engine is not None
    await engine.evaluate(llm(), NOW)


async def test_a_trial_may_end_while_its_policy_is_being_loaded(app: App, desk: Desk) -> None:
    loading = asyncio.create_task(app.deciding.reload_shadow("dana"))
    await asyncio.sleep(0)
    desk.write({"paths": ["old.rego"]})
    await app.reload_config("dana")
    await loading
    assert app.deciding.trial is None
    assert app.pipeline.engine is app.deciding.engine
    await fit(app.deciding.engine)


async def test_a_trial_that_begins_anew_while_its_policy_is_being_loaded_gets_the_new_one(app: App, desk: Desk) -> None:
    loading = asyncio.create_task(app.deciding.reload_shadow("dana"))
    await asyncio.sleep(0)
    desk.write({"paths": ["old.rego"], "shadow": {**SHADOW, "share": 50}})
    await asyncio.gather(app.reload_config("dana"), loading)
    assert app.deciding.trial is not None
    assert app.deciding.trial.settings.share == 50
    await fit(app.deciding.trial.on_trial)


async def test_a_promotion_that_meets_a_change_leaves_an_engine_in_charge_that_decides(app: App, desk: Desk) -> None:
    trial = app.deciding.trial
    assert trial is not None
    desk.write({"paths": ["old.rego"]})
    await asyncio.gather(app.reload_config("dana"), trial.promote("dana"), return_exceptions=True)
    assert app.deciding.trial is None
    assert app.pipeline.engine is app.deciding.engine
    await fit(app.deciding.engine)


async def test_a_promotion_ends_with_its_trial_though_the_same_paths_come_back(app: App, desk: Desk) -> None:
    assert app.deciding.trial is not None
    await app.deciding.trial.promote("dana")
    desk.write({"paths": ["old.rego"]})
    await app.reload_config("dana")
    desk.write({"paths": ["old.rego"], "shadow": SHADOW})
    await app.reload_config("dana")
    assert app.deciding.trial is not None
    assert app.deciding.trial.stage is Stage.SHADOWING
    assert app.pipeline.engine is app.deciding.engine
    await fit(app.deciding.trial.on_trial)


async def test_a_promotion_does_not_outlive_a_start_without_its_trial(desk: Desk) -> None:
    async with App(desk.file, load(desk.file)) as app:
        assert app.deciding.trial is not None
        await app.deciding.trial.promote("dana")
    desk.write({"paths": ["old.rego"]})
    async with App(desk.file, load(desk.file)) as without:
        assert without.pipeline.engine is without.deciding.engine
    desk.write({"paths": ["old.rego"], "shadow": SHADOW})
    async with App(desk.file, load(desk.file)) as again:
        assert again.deciding.trial is not None
        assert again.deciding.trial.stage is Stage.SHADOWING


BROKEN: Final = "package weighbridge\ndecision := ]\n"


async def broken_after_its_promotion(desk: Desk) -> str:
    """Promotes the policy on trial, ends the gateway, breaks the policy's file. The revision that was promoted."""
    async with App(desk.file, load(desk.file)) as app:
        assert app.deciding.trial is not None
        assert app.deciding.trial.on_trial is not None
        await app.deciding.trial.promote("dana")
        promoted = app.deciding.trial.on_trial.revision
    (desk.folder / "new.rego").write_text(BROKEN)
    return promoted


async def test_a_promoted_policy_that_cannot_be_loaded_at_a_start_falls_back_on_its_own_last_good_revision(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    promoted = await broken_after_its_promotion(desk)
    async with App(desk.file, load(desk.file)) as after:
        assert after.pipeline.engine is not None
        assert after.pipeline.engine.revision == promoted
        assert after.unready == []
        assert after.deciding.loading_shadow.errors
        assert (after.deciding.fallen_back, after.deciding.fallen_back_on_trial) == (False, True)
        assert f"the promoted policy {promoted[:12]} decides, the last good one before this start" in caplog.text
        await fit(after.pipeline.engine)
        (desk.folder / "new.rego").write_text(f"{RULE}# mended\n")
        await after.deciding.reload_shadow("dana")
        assert after.pipeline.engine.revision != promoted
        assert not after.deciding.fallen_back_on_trial
        await fit(after.pipeline.engine)


async def answered(app: App, path: str) -> Any:
    """What the admin API tells Dana."""
    async with door(admin_app(app)) as port, httpx2.AsyncClient() as client:
        headers = {"authorization": f"Bearer {DANA['token']}"}
        return (await client.get(f"http://127.0.0.1:{port}{path}", headers=headers)).json()


async def test_what_is_fallen_back_on_is_shown_with_what_was_wrong(desk: Desk) -> None:
    promoted = await broken_after_its_promotion(desk)
    async with App(desk.file, load(desk.file)) as after:
        shadow, policy = await answered(after, "/policy/shadow"), await answered(after, "/policy")
    assert (shadow["on_trial"]["fallen_back"], shadow["configured"]["fallen_back"]) == (True, False)
    assert "new.rego:2" in shadow["on_trial"]["loading"]["errors"][0]
    assert (policy["revision"], policy["fallen_back"]) == (promoted, True)


async def test_the_policy_that_is_shown_is_the_one_that_decides_in_all_it_says(app: App, desk: Desk) -> None:
    trial = app.deciding.trial
    assert trial is not None
    assert trial.on_trial is not None
    assert trial.configured is not None
    before = await answered(app, "/policy")
    await trial.promote("dana")
    after = await answered(app, "/policy")
    assert [before[key] for key in ("decides", "revision", "files")] == [
        "configured",
        trial.configured.revision,
        [str(desk.folder / "old.rego")],
    ]
    assert [after[key] for key in ("decides", "revision", "files")] == [
        "on_trial",
        trial.on_trial.revision,
        [str(desk.folder / "new.rego")],
    ]


async def test_a_reload_is_recorded_with_the_revision_of_what_was_loaded(desk: Desk) -> None:
    async with App(desk.file, load(desk.file)) as app:
        trial = app.deciding.trial
        assert trial is not None
        assert trial.on_trial is not None
        assert trial.configured is not None
        revisions = {"policy": trial.configured.revision, "shadow policy": trial.on_trial.revision}
        await trial.promote("dana")
        (desk.folder / "new.rego").write_text(BROKEN)
        await app.deciding.reload("dana")
        await app.deciding.reload_shadow("dana")
    records = [orjson.loads(line) for line in app.ledger.path.read_bytes().splitlines()]
    reloads = [each for each in records if each["record"] == "reload" and each["what"] in revisions]
    told = {(each["what"], each["result"]) for each in reloads}
    assert told == {("policy", "ok"), ("shadow policy", "ok"), ("shadow policy", "refused")}
    assert [each["revision"] for each in reloads] == [revisions[each["what"]] for each in reloads]


async def test_a_policy_on_trial_that_was_not_promoted_falls_back_on_nothing(desk: Desk) -> None:
    async with App(desk.file, load(desk.file)):
        pass
    (desk.folder / "new.rego").write_text(BROKEN)
    async with App(desk.file, load(desk.file)) as after:
        assert after.deciding.trial is not None
        assert after.deciding.trial.on_trial is None
        assert not after.deciding.fallen_back_on_trial


async def test_a_promoted_policy_that_must_be_signed_is_not_fallen_back_on(desk: Desk) -> None:
    key = "k" * 40
    for name in ("old", "new"):
        packed = build({"main.rego": f"{RULE}# {name}\n"}, {}, name)
        (desk.folder / f"{name}.tar.gz").write_bytes(sign(packed, name, SigningKey("k", "HS256", key)))
    keys = [{"id": "k", "algorithm": "HS256", "key": key}]
    desk.write({"paths": ["old.tar.gz"], "shadow": {"paths": ["new.tar.gz"]}, "keys": keys})
    async with App(desk.file, load(desk.file)) as app:
        assert app.deciding.trial is not None
        await app.deciding.trial.promote("dana")
    (desk.folder / "new.tar.gz").write_bytes(build({"main.rego": RULE}, {}, "new"))
    async with App(desk.file, load(desk.file)) as after:
        assert after.pipeline.engine is None
        assert after.unready == ["the promoted policy is not loaded"]


async def test_a_promoted_policy_falls_back_on_no_revision_that_was_never_promoted(desk: Desk) -> None:
    async with App(desk.file, load(desk.file)) as app:
        (desk.folder / "new.rego").write_text(f"{RULE}# newer\n")
        await app.deciding.reload_shadow("dana")
    promoted = await broken_after_its_promotion(desk)
    folder = desk.folder / "ledger" / "policies" / "trial"
    (folder / f"{promoted}.tar.gz").unlink()
    assert list(folder.iterdir()), "another revision is kept"
    async with App(desk.file, load(desk.file)) as after:
        assert after.pipeline.engine is None


async def test_an_edit_of_a_promoted_policy_is_what_is_fallen_back_on(desk: Desk) -> None:
    async with App(desk.file, load(desk.file)) as app:
        assert app.deciding.trial is not None
        await app.deciding.trial.promote("dana")
        (desk.folder / "new.rego").write_text(f"{RULE}# newer\n")
        await app.deciding.reload_shadow("dana")
        assert app.deciding.trial.on_trial is not None
        edited = app.deciding.trial.on_trial.revision
    (desk.folder / "new.rego").write_text(BROKEN)
    async with App(desk.file, load(desk.file)) as after:
        assert after.pipeline.engine is not None
        assert after.pipeline.engine.revision == edited


async def test_a_promoted_policy_of_which_nothing_is_kept_refuses_calls_until_it_can_be_loaded_or_is_rolled_back(
    desk: Desk,
) -> None:
    await broken_after_its_promotion(desk)
    shutil.rmtree(desk.folder / "ledger" / "policies" / "trial")
    async with App(desk.file, load(desk.file)) as after:
        assert after.pipeline.engine is None
        assert after.unready == ["the promoted policy is not loaded"]
        await after.deciding.reload("dana")
        assert after.pipeline.engine is None
        assert after.deciding.trial is not None
        await after.deciding.trial.roll_back("dana")
        assert after.pipeline.engine is after.deciding.engine
        await fit(after.deciding.engine)
        assert after.unready == []


@pytest.mark.parametrize(
    "final",
    [{"paths": ["new.rego"]}, {"paths": ["new.rego"], "shadow": SHADOW}, {"paths": ["new.rego"], "shadow": None}],
)
async def test_between_a_promotion_and_its_being_made_final_the_old_policy_never_decides(
    app: App, desk: Desk, final: Mapping[str, Any]
) -> None:
    assert app.deciding.trial is not None
    assert app.deciding.engine is not None
    old = app.deciding.engine.revision
    await app.deciding.trial.promote("dana")
    desk.write({name: value for name, value in final.items() if value is not None})
    loading = asyncio.create_task(app.reload_config("dana"))
    seen = set()
    while not loading.done():
        seen.add(app.pipeline.engine.revision if app.pipeline.engine is not None else None)
        await asyncio.sleep(0)
    await loading
    assert old not in seen
    assert None not in seen
    assert app.pipeline.engine is app.deciding.engine
    await fit(app.deciding.engine)
    if app.deciding.trial is not None:
        assert app.deciding.trial.on_trial is not app.deciding.engine
        await fit(app.deciding.trial.on_trial)


@pytest.mark.parametrize(
    ("after", "level", "said"),
    [
        ({"paths": ["new.rego"]}, "INFO", "what was promoted is the configured policy now"),
        ({"paths": ["new.rego"], "shadow": {"paths": ["other.rego"]}}, "INFO", "what was promoted is the configured"),
        ({"paths": ["old.rego"]}, "WARNING", "the trial has ended with a policy promoted that is not the configured"),
    ],
)
async def test_the_end_of_a_promotion_is_a_warning_unless_it_was_made_final(
    app: App, desk: Desk, caplog: pytest.LogCaptureFixture, after: Mapping[str, Any], level: str, said: str
) -> None:
    assert app.deciding.trial is not None
    await app.deciding.trial.promote("dana")
    caplog.clear()
    desk.write(after)
    with caplog.at_level("INFO"):
        await app.reload_config("dana")
    told = [(each.levelname, each.message) for each in caplog.records if each.name == "weighbridge.trial"]
    assert [(shown, said in message) for shown, message in told] == [(level, True)]


async def test_promoting_and_rolling_back_are_logged_in_sentences(app: App, caplog: pytest.LogCaptureFixture) -> None:
    trial = app.deciding.trial
    assert trial is not None
    assert trial.on_trial is not None
    assert trial.configured is not None
    new, old = trial.on_trial.revision[:12], trial.configured.revision[:12]
    await trial.promote("dana")
    await trial.roll_back("dana")
    assert [each.message for each in caplog.records if each.name == "weighbridge.trial"] == [
        f"dana promoted the policy on trial: {new} decides now, and is watched",
        f"dana rolled the promoted policy back: {old}, the configured one, decides again",
    ]


async def test_where_what_is_made_final_cannot_be_loaded_the_promoted_policy_stays(app: App, desk: Desk) -> None:
    assert app.deciding.trial is not None
    promoted = app.deciding.trial.on_trial
    await app.deciding.trial.promote("dana")
    (desk.folder / "broken.rego").write_text("package weighbridge\ndecision := ]\n")
    desk.write({"paths": ["broken.rego"]})
    await app.reload_config("dana")
    assert app.deciding.loading.errors
    assert app.pipeline.engine is app.deciding.engine is promoted
    await fit(promoted)


async def test_another_policy_on_trial_is_not_asked_before_it_is_loaded(app: App, desk: Desk) -> None:
    assert app.deciding.trial is not None
    before = app.deciding.trial.on_trial
    assert isinstance(before, EmbeddedEngine)
    desk.write({"paths": ["old.rego"], "shadow": {"paths": ["other.rego"]}})
    loading = asyncio.create_task(app.reload_config("dana"))
    seen = set()
    while not loading.done():
        if app.deciding.trial is not None and app.deciding.trial.settings.paths[0].name == "other.rego":
            seen.add(app.deciding.trial.on_trial)
        await asyncio.sleep(0)
    await loading
    assert before not in seen
    assert app.deciding.trial is not None
    await fit(app.deciding.trial.on_trial)
    with pytest.raises(EngineUnavailable, match="retired"):
        await before.evaluate(llm(), NOW)


async def test_a_key_that_is_replaced_is_asked_of_the_policy_on_trial_too(desk: Desk) -> None:
    key, another = "k" * 40, "a" * 40
    (desk.folder / "key").write_text(key)
    for name in ("old", "new"):
        packed = build({"main.rego": f"{RULE}# {name}\n"}, {}, name)
        signed = sign(packed, name, SigningKey("k", "HS256", key))
        (desk.folder / f"{name}.tar.gz").write_bytes(signed)
    policy = {"paths": ["old.tar.gz"], "shadow": {"paths": ["new.tar.gz"]}}
    keys = [{"id": "k", "algorithm": "HS256", "key": "file:key"}]
    desk.write({**policy, "keys": keys})
    async with App(desk.file, load(desk.file)) as app:
        assert (app.deciding.loading.errors, app.deciding.loading_shadow.errors) == ((), ())
        (desk.folder / "key").write_text(another)
        await app.reload_config("dana")
        for reload in (app.deciding.loading, app.deciding.loading_shadow):
            (error,) = reload.errors
            assert "was not signed with the key `k`" in error


async def test_nothing_is_left_of_loads_that_overlap(app: App) -> None:
    """A dozen reloads of both sets at once: at the end, what decides and what is on trial can be asked."""
    reloads = [
        reload("dana")
        for _ in range(3)
        for reload in (app.deciding.reload, app.deciding.reload_shadow, app.reload_config)
    ]
    await asyncio.gather(*reloads)
    assert app.deciding.trial is not None
    await fit(app.deciding.engine)
    await fit(app.deciding.trial.on_trial)
    assert app.pipeline.engine is app.deciding.engine
    assert (app.deciding.loading.errors, app.deciding.loading_shadow.errors, app.config.errors) == ((), (), ())
