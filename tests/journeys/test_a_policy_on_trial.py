"""An operator tries a new policy on live calls, promotes it, and sees a bad one go by itself."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.process import ROOT, Gateway, serving
from tests.support.standins import OPENAI_KEY, running_standins

AGENT_KEY = "the-agents-own-key"
TOKEN = "danas-trial-token"
OLD = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW", "explanation": "the old one"}\n'
NEW = OLD.replace("the old one", "the new one")
STRICT = """package weighbridge

import rego.v1

decision := {"decision": "ALLOW"} if {
	input.call.arguments.max_tokens <= 100
} else := {"decision": "DENY", "explanation": "Set max_tokens to at most 100."}
"""


@dataclass
class Desk:
    gateway: Gateway
    folder: Path

    def ask(self, max_tokens: int = 10) -> httpx2.Response:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": max_tokens}
        headers = {"authorization": f"Bearer {AGENT_KEY}"}
        return httpx2.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=headers)

    def run(self, *words: str, token: str = TOKEN, code: int = 0) -> str:
        """What `weighbridge policy ...` prints."""
        ended = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "policy", *words, "--admin", self.gateway.admin],
            cwd=ROOT,
            env={**os.environ, "WEIGHBRIDGE_ADMIN_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == code, ended.stderr
        return ended.stdout + ended.stderr

    def trial(self) -> Any:
        return json.loads(self.run("diff", "--json"))

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.folder / "ledger" / "calls.jsonl").read_text().splitlines()
        return [record for line in lines if (record := json.loads(line))["record"] == kind]


def configuration(folder: Path, openai_url: str) -> dict[str, Any]:
    people = [
        {"name": "dana", "token": TOKEN, "roles": ["admin"]},
        {"name": "sam", "token": "sams-trial-token", "roles": ["security"]},
    ]
    rollback = {"max_deny_change": 0.2, "min_calls": 5, "window": 10}
    return {
        "admin": {"people": people},
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": ["old.rego"], "shadow": {"paths": ["new.rego"], "rollback": rollback}},
        "agents": [{"name": "tried", "tenant": "acme", "key": AGENT_KEY}],
        "targets": [{"name": "openai", "kind": "openai", "url": f"{openai_url}/v1", "key": OPENAI_KEY}],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "openai"}]}],
    }


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "old.rego").write_text(OLD)
    (tmp_path / "new.rego").write_text(STRICT)
    with running_standins() as standins, serving(configuration(tmp_path, standins.openai_url), tmp_path) as gateway:
        yield Desk(gateway, tmp_path)


def test_differences_are_listed_and_change_nothing(desk: Desk) -> None:
    assert [desk.ask(tokens).status_code for tokens in (10, 1000)] == [200, 200]
    told = desk.run("diff")
    assert "2 calls (100 % of them), 1 differ" in told
    assert "ALLOW -> DENY" in told
    assert "Set max_tokens to at most 100." in told
    (record,) = desk.records("policy_difference")
    assert (record["agent"], record["configured"]["decision"], record["on_trial"]["decision"]) == (
        "tried",
        "ALLOW",
        "DENY",
    )
    assert record["call"] in {each["call"] for each in desk.records("outcome")}
    metrics = httpx2.get(f"{desk.gateway.admin}/metrics").text
    assert 'weighbridge_policy_compared_total{configured="ALLOW",on_trial="DENY"} 1' in metrics
    desk.run("diff", "--exit-code", code=1)


def test_a_promoted_policy_decides_the_next_call_and_a_bad_one_goes_by_itself(desk: Desk) -> None:
    assert "watching until" in desk.run("promote")
    assert desk.ask(1000).status_code == 403
    for _ in range(4):
        desk.ask(1000)
    assert desk.ask(1000).status_code == 200
    told = desk.run("diff")
    assert "rolled_back" in told
    assert "refuses 100.00% of the last 5 calls" in told
    counted, _, before = told.partition("not counted above:\n")
    assert "1 calls (100 % of them), 1 differ" in counted, "the one after it went"
    assert counted.count("ALLOW -> DENY") == 1
    assert before.count("ALLOW -> DENY") == 5
    assert [(each["event"], each["who"]) for each in desk.records("policy_trial")] == [
        ("promote", "dana"),
        ("depart", "weighbridge"),
    ]


def test_a_promotion_outlives_the_process_and_ends_with_a_command(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "new.rego").write_text(NEW)
    httpx2.post(f"{desk.gateway.admin}/policy/reload", headers={"authorization": f"Bearer {TOKEN}"})
    desk.run("promote")
    desk.gateway.stop()
    again = tmp_path / "again"
    again.mkdir()
    config = configuration(tmp_path, "http://127.0.0.1:9")
    config["policy"]["paths"] = [str(tmp_path / "old.rego")]
    config["policy"]["shadow"]["paths"] = [str(tmp_path / "new.rego")]
    with serving(config, again) as gateway:
        restarted = Desk(gateway, tmp_path)
        assert restarted.trial()["decides"] == "on_trial"
        assert "shadowing" in restarted.run("rollback")
        assert restarted.trial()["decides"] == "configured"
        assert "does nothing now" in restarted.run("rollback", code=2)


def test_only_an_admin_may_promote_and_whoever_may_not_is_told(desk: Desk) -> None:
    assert "role `admin`" in desk.run("promote", token="sams-trial-token", code=2)
    assert "does not know the token in WEIGHBRIDGE_ADMIN_TOKEN" in desk.run("promote", token="no-such-token", code=2)
    assert "Set WEIGHBRIDGE_ADMIN_TOKEN" in desk.run("promote", token="", code=2)
    assert "no HTTP header can carry" in desk.run("promote", token="of\ntwo lines", code=2)
    assert desk.trial()["decides"] == "configured"


def test_an_address_where_nothing_or_something_else_answers_is_named(desk: Desk) -> None:
    for admin, told in (
        ("http://127.0.0.1:9", "Nothing answers"),
        (desk.gateway.url, "no gateway's admin API"),
        ("nonsense", "is no address"),
        ("http://dana:hush@127.0.0.1:9", "must not carry a user"),
    ):
        elsewhere = Desk(desk.gateway, desk.folder)
        elsewhere.gateway = type(desk.gateway)(**{**vars(desk.gateway), "admin": admin})
        said = elsewhere.run("diff", code=2)
        assert told in said, admin
        assert "hush" not in said
