"""How agents stand, over the admin API and the command line, on a gateway that serves calls meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.assembly import assemble
from gateway.cli import main
from gateway.remote import TOKEN
from policies.approval_store import StoreUnavailable
from tests.support.exchanges import settings
from tests.support.held_calls import Held, holding, token, written
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
async def gateway(folder: Path, model: Target) -> AsyncIterator[Held]:
    async with holding(written(folder, model.url)) as it:
        yield it


async def put(gateway: Held, body: Any, who: str = "dana", agent: str = "support-bot", query: str = "") -> Any:
    content = body if isinstance(body, str) else json.dumps(body)
    return await gateway.admin.put(f"/agents/{agent}/state{query}", content=content, headers=token(who))


async def test_everybody_sees_how_agents_stand_and_a_change_is_on_record(gateway: Held) -> None:
    answer = await put(gateway, {"state": "paused", "reason": "runaway loop"})
    assert answer.status_code == 200, answer.text
    first, other = (await gateway.get("/agents"))["items"]
    since = first.pop("since")
    assert since.endswith("Z")
    assert first == {
        "name": "support-bot",
        "tenant": "acme",
        "team": None,
        "roles": [],
        "autonomy_tier": 0,
        "state": "paused",
        "reason": "runaway loop",
        "by": "dana",
        "calls": 0,
    }
    assert (other["name"], other["state"], other["reason"], other["by"], other["since"]) == (
        "other-bot",
        "active",
        "",
        None,
        None,
    )
    assert await gateway.get("/agents/support-bot") == answer.json() == {**first, "since": since}
    (record,) = gateway.recorded("agent")
    assert {name: value for name, value in record.items() if name not in ("record", "at")} == {
        "event": "paused",
        "who": "dana",
        "tenant": "acme",
        "agent": "support-bot",
        "old": "active",
        "reason": "runaway loop",
        "result": "ok",
    }


async def test_a_change_acts_on_the_next_call(gateway: Held, model: Target) -> None:
    assert (await gateway.call()).status_code == 200
    for state in ("paused", "quarantined"):
        await put(gateway, {"state": state, "reason": "looks odd"})
        refused = await gateway.call()
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, f"agent_{state}")
        assert "looks odd" in refused.json()["error"]["message"]
    assert (await gateway.call(agent="other-bot")).status_code == 200
    await put(gateway, {"state": "active"})
    assert (await gateway.call()).status_code == 200
    assert len(gateway.ran(model)) == 3


async def test_a_quarantine_outlives_the_gateway(folder: Path, model: Target) -> None:
    path = written(folder, model.url)
    async with holding(path) as gateway:
        await put(gateway, {"state": "quarantined"})
    async with holding(path) as gateway:
        assert (await gateway.call()).json()["error"]["code"] == "agent_quarantined"
        metrics = (await gateway.admin.get("/metrics")).text
        assert 'weighbridge_agents{state="quarantined"} 1.0' in metrics
        assert 'weighbridge_agents{state="active"} 1.0' in metrics


async def test_when_a_quarantine_is_answered_nothing_of_the_agent_waits(gateway: Held) -> None:
    ids = [await gateway.hold(n=number) for number in range(5)]
    others = await gateway.hold(agent="other-bot")
    await gateway.post(f"/approvals/{ids[0]}/approve", "finn")
    await put(gateway, {"state": "quarantined", "reason": "stolen key"})
    told = [await gateway.get(f"/approvals/{each}") for each in ids]
    assert [each["state"] for each in told] == ["revoked", *["cancelled"] * 4]
    assert {each["reason"] for each in told} == {"Its agent was quarantined: stolen key"}
    assert (await gateway.get(f"/approvals/{others}"))["state"] == "pending"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({}, "`state` is none of active, paused, quarantined."),
        ({"state": "stopped"}, "`state` is none of active, paused, quarantined."),
        ({"state": ["paused"]}, "`state` is none of active, paused, quarantined."),
        ({"state": "paused", "reason": 1}, "`reason` is no text of at most 500 printable characters."),
        ({"state": "paused", "reason": "x" * 501}, "`reason` is no text of at most 500 printable characters."),
        ({"state": "paused", "reason": "a\u202eb"}, "`reason` is no text of at most 500 printable characters."),
        ({"state": "paused", "why": "x"}, "There is no 'why' in this request. It takes state, reason."),
        ('{"state": "active", "state": "paused"}', "The body is no JSON object whose keys differ."),
        ("paused", "The body is no JSON object whose keys differ."),
    ],
)
async def test_a_change_that_is_not_understood_changes_nothing(gateway: Held, sent: Any, said: str) -> None:
    answer = await put(gateway, sent)
    assert (answer.status_code, answer.json()["detail"]) == (400, said)
    assert (await gateway.get("/agents/support-bot"))["by"] is None
    assert gateway.recorded("agent") == []


async def test_an_agent_is_found_by_its_name_and_its_tenant(gateway: Held) -> None:
    assert (await put(gateway, {"state": "paused"}, query="?tenant=acme")).status_code == 200
    assert (await put(gateway, {"state": "paused"}, query="?tenant=globex")).status_code == 404
    assert (await put(gateway, {"state": "paused"}, agent="nobody")).status_code == 404
    assert (await gateway.admin.get("/agents/nobody", headers=token("sam"))).status_code == 404
    assert [each["name"] for each in (await gateway.get("/agents?tenant=globex"))["items"]] == ["other-bot"]
    assert [each["name"] for each in (await gateway.get("/agents?state=paused"))["items"]] == ["support-bot"]
    assert (await gateway.admin.get("/agents?state=odd", headers=token("sam"))).status_code == 400


async def test_a_name_that_two_tenants_have_needs_the_tenant(gateway: Held) -> None:
    pipeline = gateway.app.pipeline
    agents = [{"name": "bot", "tenant": tenant, "key": f"{tenant}-own-key"} for tenant in ("acme", "globex")]
    people = [{"name": "dana", "token": "danas-own-token", "roles": ["admin"]}]
    pipeline.assembly = assemble(settings(agents=agents, admin={"people": people}), pipeline.assembly)
    answer = await put(gateway, {"state": "paused"}, agent="bot")
    assert (answer.status_code, answer.json()["detail"].rpartition(": ")[2]) == (409, "acme, globex.")
    assert (await put(gateway, {"state": "paused"}, agent="bot", query="?tenant=globex")).json()["tenant"] == "globex"


async def test_agents_are_listed_in_pages(gateway: Held) -> None:
    first = await gateway.get("/agents?page_size=1")
    assert ([each["name"] for each in first["items"]], first["next"]) == (["support-bot"], "acme/support-bot")
    rest = await gateway.get("/agents?page_size=1&after=acme/support-bot")
    assert ([each["name"] for each in rest["items"]], rest["next"]) == (["other-bot"], None)
    assert (await gateway.admin.get("/agents?after=acme/gone", headers=token("sam"))).status_code == 400


async def test_what_stops_an_agent_does_not_wait_for_the_ledger_and_what_lets_it_go_on_does(
    gateway: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.app.ledger, "failure", "no space left")
    assert (await put(gateway, {"state": "paused"})).status_code == 200
    assert (await put(gateway, {"state": "active"})).status_code == 503
    assert (await gateway.get("/agents/support-bot"))["state"] == "paused"


async def test_where_the_state_does_not_answer_a_stop_is_in_force_here_and_that_is_said(
    gateway: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = gateway.app.state.approvals

    async def away(*_: object) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "stand", away)
        answer = await put(gateway, {"state": "paused", "reason": "loop"})
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("The agent is stopped at this gateway. ")
        assert (await gateway.call()).json()["error"]["code"] == "agent_paused"
        answer = await put(gateway, {"state": "active"})
        assert answer.status_code == 503
        assert [each["result"] for each in gateway.recorded("agent")] == ["here", "unknown"]
    await gateway.app.standings.hear()
    assert (await store.standings())["acme", "support-bot"].state == "paused"


# --- the command line ------------------------------------------------------------------------------------------------


async def command(gateway: Held, *arguments: str) -> int:
    return await asyncio.to_thread(main, ["agents", *arguments, "--admin", gateway.address])


@pytest.fixture
def as_dana(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, TOKEN, "danas-own-token")


@pytest.mark.usefixtures("as_dana")
async def test_an_agent_is_stopped_and_resumed_from_a_shell(gateway: Held, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command(gateway, "list", "--exit-code") == 0
    assert await command(gateway, "pause", "support-bot", "--reason", "runaway loop") == 0
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == ["agent", "tenant", "team", "state", "calls", "since", "by", "reason"]
    assert line.startswith("support-bot  acme    -     paused      0  ")
    assert line.endswith("dana  runaway loop")
    assert (await gateway.call()).json()["error"]["code"] == "agent_paused"
    assert await command(gateway, "quarantine", "support-bot", "--tenant", "acme") == 0
    assert (await gateway.call()).json()["error"]["code"] == "agent_quarantined"
    assert await command(gateway, "list", "--exit-code") == 1
    assert await command(gateway, "list", "--state", "active", "--exit-code") == 0
    assert await command(gateway, "resume", "support-bot", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["name"], told["state"], told["by"]) == ("support-bot", "active", "dana")
    assert (await gateway.call()).status_code == 200


@pytest.mark.usefixtures("as_dana")
async def test_all_pages_are_listed_those_that_are_stopped_first(
    gateway: Held, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.agent_commands._PAGE", 1)
    await put(gateway, {"state": "paused"}, agent="other-bot")
    assert await command(gateway, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["agent", "other-bot", "support-bot"]
    assert await command(gateway, "list", "--json", "--tenant", "globex") == 0
    (only,) = json.loads(capsys.readouterr().out)["items"]
    assert only["state"] == "paused"
    assert await command(gateway, "list", "--tenant", "nobody") == 0
    assert capsys.readouterr().out == "There are no such agents.\n"


@pytest.mark.usefixtures("as_dana")
async def test_what_cannot_be_done_is_said_with_its_own_exit_code(
    gateway: Held, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await command(gateway, "pause", "nobody") == 2
    assert "There is no such agent" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, TOKEN, "sams-own-token")
    assert await command(gateway, "pause", "support-bot") == 2
    assert "needs the role `admin`" in capsys.readouterr().err
