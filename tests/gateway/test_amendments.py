"""An edit that changes what may be spent leaves as much of a trace as a person's command does."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.load import load
from config.settings import Settings
from gateway.amendments import Amendment, amendments, tell
from gateway.app import App
from tests.support.gate import MemoryLedger

BOT = {"node": "acme/bot", "window": "day", "limit_usd": 0.5}


def settings(folder: Path, **sections: Any) -> Settings:
    own = {
        "policy": {"paths": ["main.rego"]},
        "agents": [{"name": "bot", "tenant": "acme", "key": "key-of-the-bot"}],
        "ledger": {"path": str(folder / "ledger")},
        "state": f"sqlite:///{folder}/state.db",
    }
    (folder / "w.yaml").write_text(yaml.safe_dump({**own, **sections}))
    (folder / "main.rego").write_text('package weighbridge\n\ndecision := {"decision": "ALLOW"}\n')
    return load(folder / "w.yaml").settings


def changed(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> list[Amendment]:
    return amendments(settings(folder, **before), settings(folder, **after))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([BOT], [{**BOT, "limit_usd": 0.01}], "0.01 USD adaptive, was 0.50 USD adaptive"),
        ([BOT], [{**BOT, "mode": "shadow"}], "0.50 USD shadow, was 0.50 USD adaptive"),
        ([BOT], [], "none, was 0.50 USD adaptive"),
        ([], [BOT], "0.50 USD adaptive, was none"),
    ],
)
def test_another_limit_or_mode_is_told_and_so_is_a_budget_that_comes_or_goes(
    before: list[Any], after: list[Any], said: str, tmp_path: Path
) -> None:
    [found] = changed(tmp_path, {"budgets": before}, {"budgets": after})
    assert (found.kind, found.text) == ("budget", f"the budget of acme/bot, day: {said}")


def test_another_window_is_another_budget(tmp_path: Path) -> None:
    gone, new = changed(tmp_path, {"budgets": [BOT]}, {"budgets": [{**BOT, "window": "month"}]})
    assert [each.facts["window"] for each in (gone, new)] == ["day", "month"]
    assert (gone.facts["new_usd"], new.facts["old_usd"]) == (None, None)


def test_what_stays_is_not_told_wherever_it_stands(tmp_path: Path) -> None:
    tenant = {"node": "acme", "window": "month", "limit_usd": 5}
    limit = {"node": "acme", "concurrent": 5}
    before, after = {"budgets": [BOT, tenant], "limits": [limit]}, {"budgets": [tenant, BOT], "limits": [limit]}
    assert changed(tmp_path, before, after) == []


def test_limits_are_told_one_by_one(tmp_path: Path) -> None:
    before = {"limits": [{"node": "acme", "concurrent": 5, "calls_per_minute": 60, "calls_per_session": 7}]}
    after = {"limits": [{"node": "acme", "concurrent": 6, "tokens_per_minute": 1000, "calls_per_session": 7}]}
    assert [each.text for each in changed(tmp_path, before, after)] == [
        "the limit of acme, calls_per_minute: none, was 60",
        "the limit of acme, concurrent: 6, was 5",
        "the limit of acme, tokens_per_minute: 1000, was none",
    ]


def test_prices_are_told_of_targets_that_stay(tmp_path: Path) -> None:
    one = {"name": "one", "kind": "openai", "url": "https://one.example/v1"}
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    [found] = changed(tmp_path, {"targets": [one]}, {"targets": [{**one, "price": price}, {**one, "name": "two"}]})
    assert found.facts == {"target": "one", "old": "published", "new": price}
    assert changed(tmp_path, {"targets": [one]}, {"targets": []}) == []


async def test_an_edit_is_in_the_ledger_and_in_the_log_the_latter_not_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agents = [{"name": f"bot-{n}", "tenant": "acme", "key": f"key-of-bot-{n}"} for n in range(50)]
    budgets = [{**BOT, "node": f"acme/bot-{n}"} for n in range(50)]
    settings(tmp_path, agents=agents, budgets=budgets)
    async with App(tmp_path / "w.yaml", load(tmp_path / "w.yaml")) as app:
        settings(tmp_path, agents=agents)
        with caplog.at_level(logging.WARNING, logger="weighbridge.budgets"):
            await app.reload_config("edit")
    lines = (json.loads(line) for line in (tmp_path / "ledger" / "calls.jsonl").read_text().splitlines())
    notes = [each for each in lines if each["record"] == "budget"]
    assert [each["node"] for each in notes] == [each["node"] for each in budgets]
    first = notes[0]
    assert (first["event"], first["who"], first["old_usd"], first["new_usd"]) == ("configured", "edit", "0.50", None)
    said = [each.getMessage() for each in caplog.records if each.name == "weighbridge.budgets"]
    assert (len(said), said[-1]) == (21, "30 more budgets, limits, prices and weights have changed: the ledger has all")


def test_other_weights_of_a_route_are_told_with_those_before(tmp_path: Path) -> None:
    targets = [{"name": name, "kind": "openai", "url": "http://127.0.0.1:9"} for name in ("hosted", "own")]

    def weighed(hosted: float, own: float) -> dict[str, Any]:
        arms = [{"target": "hosted", "weight": hosted}, {"target": "own", "weight": own}]
        return {"targets": targets, "routes": [{"name": "chat", "models": ["gpt-*"], "arms": arms}]}

    [found] = changed(tmp_path, weighed(90, 10), weighed(70, 30))
    assert (found.kind, found.text) == ("weights", "the configured weights of route chat: hosted 70, own 30")
    assert found.facts["old"] == {"hosted": 90.0, "own": 10.0}
    assert changed(tmp_path, weighed(70, 30), weighed(70, 30)) == []
    assert changed(tmp_path, {}, weighed(70, 30)) == [], "a route that comes has no weights before"


def test_other_weights_are_told_where_routes_are(caplog: pytest.LogCaptureFixture) -> None:
    changed = [Amendment("weights", {"route": "chat"}, "the configured weights of route chat: own 30")]
    with caplog.at_level(logging.WARNING):
        tell(MemoryLedger(), "the configuration", changed)
    assert [each.name for each in caplog.records] == ["weighbridge.routes"]
