"""Weights and rollouts over the admin API and the command line, on a gateway that serves calls meanwhile."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.remote import TOKEN
from routing.course import BUCKET, Course
from routing.errors import StoreUnavailable
from tests.support.bridge import HeldClock
from tests.support.listener import listening
from tests.support.steered import DANA, FINN, ROLLOUT, SAM, Steered, steered, written
from tests.support.stores import in_memory
from tests.support.target import Target, target


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
async def model() -> AsyncIterator[Target]:
    async with target() as it:
        yield it


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def gateway(folder: Path, model: Target, clock: HeldClock) -> AsyncIterator[Steered]:
    async with steered(written(folder, model.url), clock) as it:
        yield it


async def closed_bucket(gateway: Steered, clock: HeldClock) -> None:
    """What was counted so far is judged."""
    await gateway.app.steering.flush()
    clock.advance(BUCKET)
    await gateway.app.steering.judge()


async def test_a_route_that_does_not_go_by_what_is_kept_says_why(gateway: Steered) -> None:
    store = gateway.app.steering._store
    assert (await gateway.admin.get("/routes/chat", headers=SAM)).json()["trouble"] is None
    assert await store.steer("chat", Course(1, weights={"hosted": -1.0}, instead_of={"hosted": 90.0, "own": 10.0}), 0)
    await gateway.app.steering.hear()
    assert await gateway.calls(20) == {"hosted": 20}
    shown = (await gateway.admin.get("/routes/chat", headers=SAM)).json()
    assert "its weights are none" in shown["trouble"]
    assert "own gets no new sessions" in shown["trouble"]
    assert shown["rollout"] is None
    refused = await gateway.admin.get("/routes/chat/rollout", headers=SAM)
    assert (refused.status_code, "its weights are none" in refused.text) == (503, True)


# --- weights ---------------------------------------------------------------------------------------------------------


async def test_weights_act_on_the_next_call(gateway: Steered) -> None:
    answer = await gateway.weigh(0, 100, comment="the hosted one is down")
    assert answer.status_code == 200, answer.text
    assert [(arm["target"], arm["weight"]) for arm in answer.json()["arms"]] == [("hosted", 0), ("own", 100)]
    assert await gateway.call("s-1") == "own"
    assert (await gateway.weigh(100, 0)).status_code == 200
    assert await gateway.call("s-1") == "hosted"
    shown = (await gateway.admin.get("/routes/chat", headers=SAM)).json()
    assert [(arm["target"], arm["weight"]) for arm in shown["arms"]] == [("hosted", 100), ("own", 0)]
    first, second = gateway.recorded("weights")
    assert (first["who"], first["old"], first["new"], first["comment"], first["result"]) == (
        "dana",
        {"hosted": 90.0, "own": 10.0},
        {"hosted": 0.0, "own": 100.0},
        "the hosted one is down",
        "ok",
    )
    assert second["old"] == first["new"]


async def test_weights_that_are_not_the_files_are_marked_and_those_that_leave_an_arm_alone_warned_of(
    gateway: Steered,
) -> None:
    told = (await gateway.weigh(70, 30)).json()
    assert [(arm["weight"], arm["configured_weight"]) for arm in told["arms"]] == [(70, 90), (30, 10)]
    assert told["warning"] is None
    told = (await gateway.weigh(0, 100)).json()
    assert told["warning"].startswith("When own fails, no other arm takes its calls.")
    told = (await gateway.weigh(90, 10)).json()
    assert [arm["configured_weight"] for arm in told["arms"]] == [None, None]


async def test_who_promotes_without_evidence_is_told_what_was_missing(gateway: Steered) -> None:
    await gateway.step("start")
    told = (await gateway.step("promote")).json()
    assert told["history"][0]["without_evidence"] == ["10 min more at this step", "needs ~380 more calls"]
    assert told["explanation"].startswith("dana promoted step 1 of 2 without the evidence (10 min more at this step; ")
    assert told["health"] == "ok"
    told = (await gateway.step("promote")).json()
    assert (told["state"], told["unjudged_since"]) == ("PROMOTED", None)
    assert (await gateway.admin.get("/routes/chat", headers=SAM)).json()["warning"] is None, "the other arm stands by"


async def test_an_arm_that_is_not_named_gets_nothing(gateway: Steered) -> None:
    answer = await gateway.admin.put("/routes/chat/weights", json={"weights": {"own": 100}}, headers=DANA)
    assert [(arm["target"], arm["weight"]) for arm in answer.json()["arms"]] == [("hosted", 0), ("own", 100)]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"weights": {"hosted": 70, "own": 20}}, "The weights add up to 90, not to 100."),
        ({"weights": {"hosted": 70, "ours": 30}}, "'ours' is no arm of this route; its arms are hosted, own."),
        ({"weights": {"hosted": 170, "own": -70}}, "The weight of hosted is not a number from 0 to 100."),
        ({"weights": {"hosted": "70", "own": 30}}, "The weight of hosted is not a number from 0 to 100."),
        ({"weights": {"hosted": True, "own": 99}}, "The weight of hosted is not a number from 0 to 100."),
        ({"weights": {}}, "The weights add up to 0, not to 100."),
        ({"weights": [70, 30]}, "`weights` are missing."),
        ({}, "`weights` are missing."),
        ({"weights": {"own": 100}, "wieghts": {}}, "There is no 'wieghts' in this change. It takes weights, comment."),
        ({"weights": {"own": 100}, "comment": "a\nb"}, "`comment` is no text of at most 500 printable characters."),
        ({"weights": {"own": 100}, "comment": "x" * 501}, "`comment` is no text of at most 500 printable characters."),
        ([], "The body is no JSON object."),
        ('{"weights": {"own": 100, "own": 0, "hosted": 100}}', "The body is no JSON object whose keys differ."),
        ('{"weights": {"own": NaN, "hosted": 100}}', "The weight of own is not a number from 0 to 100."),
        ('{"weights": {"own": 1e999, "hosted": 100}}', "The weight of own is not a number from 0 to 100."),
        ("{", "The body is no JSON object whose keys differ."),
        ("[" * 100_000, "The body is no JSON object whose keys differ."),
    ],
)
async def test_weights_that_cannot_be_are_refused_in_words(gateway: Steered, sent: Any, said: str) -> None:
    content = sent if isinstance(sent, str) else json.dumps(sent)
    answer = await gateway.admin.put("/routes/chat/weights", content=content, headers=DANA)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert said in answer.json()["detail"]
    assert gateway.recorded("weights") == []


async def test_only_who_may_change_budgets_may_change_weights(gateway: Steered) -> None:
    for who in (SAM, FINN):
        assert (await gateway.weigh(0, 100, who)).status_code == 403
    assert (await gateway.weigh(0, 100, {})).status_code == 401
    answer = await gateway.admin.put("/routes/none/weights", json={"weights": {"own": 100}}, headers=DANA)
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no such route. There are: chat.")


async def test_weights_outlive_a_restart_and_end_with_other_configured_ones(folder: Path, model: Target) -> None:
    path = written(folder, model.url)
    async with steered(path) as first:
        assert (await first.weigh(0, 100)).status_code == 200
    async with steered(path) as second:
        assert await second.call("s-1") == "own"
        await second.app.reload_config("dana")
        assert await second.call("s-1") == "own", "a reload of the same is no change"
        written(folder, model.url, weights=(100, 0))
        await second.app.reload_config("dana")
        assert await second.call("s-1") == "hosted"


async def test_nothing_is_changed_that_cannot_be_recorded(gateway: Steered) -> None:
    await gateway.step("start")
    ledger = gateway.app.ledger
    ledger.failure = "full"
    assert (await gateway.weigh(0, 100)).status_code == 503
    assert (await gateway.step("resume")).status_code == 503
    assert (await gateway.step("abort")).status_code == 200, "what is taken from a canary does not wait for a disk"
    ledger.failure = None
    assert [each["event"] for each in gateway.recorded("rollout")] == ["start", "abort"]


async def test_a_state_that_does_not_answer_is_told_as_what_it_is(
    gateway: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> bool:
        raise StoreUnavailable("out of reach")

    with monkeypatch.context() as patch:
        patch.setattr(gateway.app.state.routes, "steer", silent)
        for answer in (await gateway.weigh(0, 100), await gateway.step("start")):
            assert answer.status_code == 503
            assert "not known" in answer.json()["detail"]
    assert [each["result"] for each in gateway.recorded("weights")] == ["unknown"]
    assert [each["result"] for each in gateway.recorded("rollout")] == ["unknown"]


# --- rollouts --------------------------------------------------------------------------------------------------------


async def test_a_rollout_waits_for_a_person(gateway: Steered) -> None:
    shown = await gateway.rollout()
    assert (shown["state"], shown["step"], shown["weight"], shown["history"]) == ("DRAFT", 0, None, [])
    assert [(each["weight"], each["hold"]) for each in shown["plan"]] == [(50, 600), (80, 600)]
    answer = await gateway.step("start", comment="the new nodes are up")
    assert answer.status_code == 200, answer.text
    assert answer.json() == await gateway.rollout()
    shown = answer.json()
    assert (shown["state"], shown["step"], shown["weight"], shown["verdict"]) == ("RUNNING", 1, 50, "HOLD")
    assert [each["what"] for each in shown["missing"]] == ["time", "calls"]
    assert shown["explanation"] == "dana started the rollout: the new nodes are up"
    split = await gateway.calls(60)
    assert 15 <= split["own"] <= 45
    whole = (await gateway.admin.get("/routes/chat", headers=SAM)).json()
    assert whole["rollout"]["state"] == "RUNNING"
    (record,) = gateway.recorded("rollout")
    assert (record["who"], record["event"], record["comment"]) == ("dana", "start", "the new nodes are up")


async def test_a_body_is_not_needed_for_a_step(gateway: Steered) -> None:
    answer = await gateway.admin.post("/routes/chat/rollout/start", headers=DANA)
    assert answer.status_code == 200
    answer = await gateway.admin.post("/routes/chat/rollout/pause", content="[]", headers=DANA)
    assert answer.status_code == 400


async def test_a_step_that_cannot_be_taken_now_is_refused_with_those_that_can(gateway: Steered) -> None:
    answer = await gateway.step("resume")
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert answer.json()["detail"] == "The rollout is DRAFT: it cannot be resumed now, only started."
    assert (await gateway.step("forward")).status_code == 404
    assert gateway.recorded("rollout") == []


async def test_weights_are_the_rollouts_while_it_is_under_way(gateway: Steered) -> None:
    await gateway.step("start")
    answer = await gateway.weigh(90, 10)
    assert answer.status_code == 409
    out = "take `rollout` out of the route's configuration"
    assert out in answer.json()["detail"]
    await gateway.step("abort")
    answer = await gateway.weigh(90, 10)
    assert answer.status_code == 409
    assert out in answer.json()["detail"]
    assert (await gateway.weigh(100, 0)).status_code == 200


async def test_promoting_is_for_those_whom_the_plan_names(folder: Path, model: Target, clock: HeldClock) -> None:
    path = written(folder, model.url, rollout={**ROLLOUT, "approval": ["finance"]})
    async with steered(path, clock) as gateway:
        await gateway.step("start")
        answer = await gateway.step("promote")
        assert answer.status_code == 403
        assert answer.json()["detail"] == "To promote this rollout needs the role `finance`, which dana lacks."
        assert (await gateway.step("promote", SAM)).status_code == 403
        assert (await gateway.step("pause", FINN)).status_code == 403
        answer = await gateway.step("promote", FINN)
        assert (answer.status_code, answer.json()["step"]) == (200, 2)
    assert (await _promoted_by_an_administrator(folder, model)).status_code == 200


async def _promoted_by_an_administrator(folder: Path, model: Target) -> Any:
    async with steered(written(folder / "other", model.url)) as gateway:
        await gateway.step("start")
        assert (await gateway.step("promote", FINN)).status_code == 403
        return await gateway.step("promote")


async def test_a_route_without_a_rollout_has_none_to_show(folder: Path, model: Target) -> None:
    async with steered(written(folder, model.url, rollout=None)) as gateway:
        for answer in (
            await gateway.admin.get("/routes/chat/rollout", headers=SAM),
            await gateway.step("start"),
        ):
            assert answer.status_code == 404
            assert "has no rollout" in answer.json()["detail"]
        assert (await gateway.admin.get("/routes/none/rollout", headers=SAM)).status_code == 404


async def test_a_canary_that_is_down_is_taken_back_and_agents_see_nothing_of_it(
    folder: Path, model: Target, clock: HeldClock
) -> None:
    async with listening() as listener:
        webhook = {"url": listener.url, "secret": "signed-with-this"}
        path = written(folder, model.url, canary=f"{model.url}/reset", approvals={"webhook": webhook})
        async with steered(path, clock) as gateway:
            await gateway.step("start")
            assert await gateway.calls(60) == {"hosted": 60}, "others take the calls that it cannot"
            await closed_bucket(gateway, clock)
            shown = await gateway.rollout()
            assert (shown["state"], shown["verdict"], shown["weight"]) == ("ROLLED_BACK", "ROLLBACK", 0)
            assert shown["explanation"].startswith("own is taken back: since ")
            facts = shown["history"][0]["facts"]
            assert facts["errors"] >= 5
            assert facts["classes"] == {"reset": facts["errors"]}
            assert facts["samples"]
            outcomes = {each["call"]: each for each in gateway.recorded("outcome")}
            assert {outcomes[each]["attempts"][0]["target"] for each in facts["samples"]} == {"own"}
            _, record = gateway.recorded("rollout")
            assert (record["who"], record["event"], record["facts"]) == ("weighbridge", "rollback", facts)
            metrics = (await gateway.admin.get("/metrics")).text
            assert 'weighbridge_rollout{route="chat",state="ROLLED_BACK"} 1.0' in metrics
            assert 'weighbridge_rollout_moves_total{move="rollback",route="chat"} 1.0' in metrics
            assert 'weighbridge_route_weight{route="chat",target="own"} 0.0' in metrics
            told = [each.facts["type"] for each in await listener.told(2)]
            assert sorted(told) == ["rollout.rollback", "rollout.start"]
            before = len(model.received)
            assert await gateway.calls(40, "later") == {"hosted": 40}
            assert [each.path for each in model.received[before:] if each.path.startswith("/reset") and each.body] == []


async def test_a_canary_that_answers_404_to_every_call_is_paused_and_looks_well_nowhere(
    folder: Path, model: Target, clock: HeldClock
) -> None:
    path = written(folder, model.url, canary=f"{model.url}/status-404")
    async with steered(path, clock) as gateway:
        await gateway.step("start")
        for minute in range(2):
            for number in range(30):
                await gateway.asked(f"s-{minute}-{number}")
            await closed_bucket(gateway, clock)
            clock.advance(60)
        shown = await gateway.rollout()
        assert (shown["state"], shown["verdict"]) == ("PAUSED", "PAUSE")
        assert re.match(
            r"own rejects what others take: (\d+) of \1 calls, where the other arms have rejected 0 of \d+; evidence ",
            shown["explanation"],
        )
        assert "rejected" in [each["what"] for each in shown["missing"]]
        route = (await gateway.admin.get("/routes/chat", headers=SAM)).json()
        own = route["arms"][1]
        assert (own["errors"], own["rejected"], own["availability"]) == (0, own["calls"], None)
        findings = {each["question"]: each for each in route["comparisons"][0]["findings"]}
        assert findings["availability"]["value"] in (None, 0.0)
        assert findings["availability"]["answer"] != "go"


async def test_a_rollout_goes_on_after_a_restart(folder: Path, model: Target, clock: HeldClock) -> None:
    path = written(folder, model.url)
    async with steered(path, clock) as first:
        await first.step("start")
        await first.calls(20)
        await closed_bucket(first, clock)
    async with steered(path, clock) as second:
        shown = await second.rollout()
        assert (shown["state"], shown["weight"]) == ("RUNNING", 50)
        assert shown["evidence"]["so_far"]["calls"] > 0
        await second.step("abort")
    async with steered(path, clock) as third:
        assert await third.calls(20) == {"hosted": 20}, "from the first call on"


# --- the command line ------------------------------------------------------------------------------------------------


async def test_the_commands_do_what_the_admin_api_does(
    gateway: Steered, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "danas-own-token")

    async def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, ["routes", *words, "--admin", gateway.address])
        return code, *capsys.readouterr()

    code, said, _ = await run("weights", "chat", "hosted=25", "own=75", "--comment", "more")
    assert code == 0
    assert "75 %" in said
    assert gateway.recorded("weights")[0]["comment"] == "more"
    code, said, _ = await run("rollout", "chat", "status")
    assert (code, "chat: canary own, draft" in said) == (0, True)
    code, said, _ = await run("rollout", "chat", "start")
    assert (code, "running, step 1 of 2, at 50 %" in said) == (0, True)
    code, _, complained = await run("weights", "chat", "hosted=100")
    assert code == 2
    assert "take `rollout` out" in complained
    code, said, _ = await run("rollout", "chat", "abort", "--comment", "too slow", "--exit-code")
    assert (code, "rolled back" in said) == (1, True)
    assert said.splitlines()[-1].endswith("dana aborted the rollout: too slow")
    assert os.environ[TOKEN] == "danas-own-token"
