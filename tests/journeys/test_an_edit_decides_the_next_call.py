"""Editing policy, data and configuration under a running gateway."""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.support.process import Gateway, serving
from tests.support.standins import OPENAI_KEY, Standins, running_standins

AGENT_KEY = "edited-agents-own-key"
PERSON = {"authorization": "Bearer edited-persons-token"}
ALLOW = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW"}\n'
DENY = ALLOW.replace("ALLOW", "DENY")
WITHIN = 1.0
"""Seconds, as promised; see `eventually` for what a loaded machine is allowed."""


@dataclass
class Desk:
    """A running gateway and the files an operator edits."""

    gateway: Gateway
    rules: Path
    standins: Standins

    def ask(self, key: str = AGENT_KEY) -> int:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
        headers = {"authorization": f"Bearer {key}"}
        return httpx2.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=headers).status_code

    def admin(self, path: str) -> Any:
        return httpx2.get(f"{self.gateway.admin}{path}", headers=PERSON).json()

    def configuration(self) -> dict[str, Any]:
        read: dict[str, Any] = yaml.safe_load(self.gateway.config.read_text())
        return read

    def configure(self, **sections: Any) -> None:
        self.gateway.config.write_text(yaml.safe_dump({**self.configuration(), **sections}))


def agent(name: str, key: str) -> dict[str, str]:
    return {"name": name, "tenant": "acme", "key": key}


@pytest.fixture(scope="module")
def standins() -> Iterator[Standins]:
    with running_standins() as running:
        yield running


@pytest.fixture
def desk(standins: Standins, tmp_path: Path) -> Iterator[Desk]:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "main.rego").write_text(ALLOW)
    config = {
        "admin": {"people": [{"name": "dana", "token": "edited-persons-token", "roles": ["admin"]}]},
        "ledger": {"path": str(tmp_path / "ledger")},
        "policy": {"paths": ["rules"]},
        "agents": [agent("edited", AGENT_KEY)],
        "targets": [
            {"name": "openai", "kind": "openai", "url": standins.openai_url + "/v1", "key": OPENAI_KEY},
        ],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "openai"}]}],
    }
    with serving(config, tmp_path) as gateway:
        yield Desk(gateway, rules, standins)


def eventually(true: Callable[[], bool], within: float = WITHIN) -> None:
    """Polls from outside, as an agent would; three times the promise is allowed where other tests share the cores."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < 3 * within, "the edit was not in force in time"
        time.sleep(0.02)  # the next call is the only event an agent has


def test_an_edited_rule_decides_the_next_call_within_a_second(desk: Desk) -> None:
    assert desk.ask() == 200
    before = desk.admin("/policy")["revision"]
    (desk.rules / "main.rego").write_text(DENY)
    eventually(lambda: desk.ask() == 403)
    assert desk.admin("/policy")["revision"] != before
    (desk.rules / "main.rego").write_text(ALLOW)
    eventually(lambda: desk.ask() == 200)
    assert desk.admin("/policy")["revision"] == before


@pytest.mark.parametrize(
    "broken",
    [
        "package weighbridge\n\ndecision := {",
        "\x00\xff garbage",
        'package weighbridge\nimport rego.v1\ndecision := {"decision": "ALLOW"} if f(1)\nf(x) := f(x + 1)\n',
        "package elsewhere\n",
        "# " + "x" * 20_000_000,
    ],
    ids=["does not parse", "garbage", "recursion", "no decision", "20 MB"],
)
def test_a_bad_rule_is_reported_and_the_last_good_one_stays(desk: Desk, broken: str) -> None:
    good = desk.admin("/policy")["revision"]
    (desk.rules / "main.rego").write_text(broken, encoding="latin-1")
    eventually(lambda: bool(desk.admin("/policy")["loading"]["errors"]), within=5.0)
    assert desk.ask() == 200
    shown = desk.admin("/policy")
    assert shown["revision"] == good
    assert "main.rego" in shown["loading"]["errors"][0]
    assert (
        'weighbridge_reloads_total{result="refused",what="policy"} 1'
        in httpx2.get(f"{desk.gateway.admin}/metrics").text
    )
    assert "policy refused, the last good one stays" in desk.gateway.stderr()
    (desk.rules / "main.rego").write_text(DENY)
    eventually(lambda: desk.ask() == 403)
    assert desk.admin("/policy")["loading"]["errors"] == []


def test_a_new_file_in_the_policy_folder_counts(desk: Desk) -> None:
    (desk.rules / "more.rego").write_text("package weighbridge\nimport rego.v1\ndecision := 7 if false\nx := 1\n")
    before = desk.admin("/policy")["revision"]
    eventually(lambda: desk.admin("/policy")["revision"] != before or desk.admin("/policy")["loading"]["tried_at"] > 0)
    assert desk.ask() == 200


def test_an_agent_added_to_the_file_may_call_and_one_removed_may_not(desk: Desk) -> None:
    assert desk.ask("key-of-a-newcomer") == 401
    desk.configure(agents=[agent("newcomer", "key-of-a-newcomer")])
    eventually(lambda: desk.ask("key-of-a-newcomer") == 200)
    assert desk.ask() == 401


def test_a_mistake_in_the_configuration_changes_nothing(desk: Desk) -> None:
    good = desk.gateway.config.read_text()
    desk.gateway.config.write_text(good + "\nunheard_of: 1\n")
    eventually(lambda: bool(desk.admin("/config")["loading"]["errors"]))
    (error,) = desk.admin("/config")["loading"]["errors"]
    assert "unheard_of" in error
    assert "weighbridge.yaml:" in error
    assert desk.ask() == 200
    desk.gateway.config.write_text(good)
    eventually(lambda: desk.admin("/config")["loading"]["errors"] == [])


def test_an_edit_is_seen_after_one_with_a_host_that_cannot_exist(desk: Desk) -> None:
    good = desk.gateway.config.read_text()
    desk.gateway.config.write_text(good.replace(desk.standins.openai_url, "http://ho!st:1"))
    eventually(lambda: bool(desk.admin("/config")["loading"]["errors"]))
    (error,) = desk.admin("/config")["loading"]["errors"]
    assert "targets[0].url" in error
    desk.gateway.config.write_text(good + "# mended\n")
    eventually(lambda: desk.admin("/config")["loading"]["errors"] == [])
    assert desk.ask() == 200


def test_an_edit_is_seen_after_one_that_came_when_files_ran_out(desk: Desk) -> None:
    (worker,) = map(int, Path(f"/proc/{desk.gateway.pid}/task/{desk.gateway.pid}/children").read_text().split())
    before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
    # Enough for the policy's files, not for the pipes to the child that proves them.
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 2, before[1]))
    (desk.rules / "main.rego").write_text(ALLOW + "# one\n")
    eventually(lambda: "policy refused, the last good one stays" in desk.gateway.stderr())
    resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
    assert desk.ask() == 200
    (desk.rules / "main.rego").write_text(DENY)
    eventually(lambda: desk.ask() == 403)
    assert "Traceback" not in desk.gateway.stderr()


def test_what_only_a_start_reads_is_reported(desk: Desk) -> None:
    desk.configure(log={"level": "debug"})
    eventually(lambda: desk.admin("/config")["restart_needed"] == ["log"])


def test_calls_go_on_while_everything_is_reloaded(desk: Desk) -> None:
    with httpx2.Client() as client:
        for turn in range(10):
            (desk.rules / "main.rego").write_text(ALLOW + f"# {turn}\n")
            desk.configure(limits=[] if turn % 2 else [{"node": "acme", "calls_per_minute": 600}])
            for _ in range(20):
                answer = client.post(
                    f"{desk.gateway.url}/v1/chat/completions",
                    json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]},
                    headers={"authorization": f"Bearer {AGENT_KEY}"},
                )
                assert answer.status_code == 200
