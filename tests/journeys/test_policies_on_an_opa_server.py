"""An operator has a real OPA decide: it goes, comes back, changes its mind, and the gateway keeps up."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.support.opa import needs_opa, opa_server
from tests.support.process import ROOT, Gateway, serving
from tests.support.standins import OPENAI_KEY, running_standins

pytestmark = needs_opa

AGENT_KEY = "the-agents-own-key"
TOKEN = "danas-opa-token"
OPA_TOKEN = "the-token-that-opa-asks-for"
DANA = {"authorization": f"Bearer {TOKEN}"}
ALLOW = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW"} if input.agent.name == "a"\n'
DENY = ALLOW.replace('"ALLOW"', '"DENY", "explanation": "Not here."')
SLOW = (
    "package weighbridge\n\nimport rego.v1\n\n"
    'decision := {"decision": "ALLOW"} if count([1 | some x in many; some y in many; x > y]) > 0\n\n'
    "many := numbers.range(1, 3000)\n"
)
ONLY_WITH_TOKEN = f"""package system.authz

import rego.v1

default allow := false

allow if input.identity == "{OPA_TOKEN}"
"""


def configured(opa: str, standin: str) -> dict[str, Any]:
    return {
        "admin": {"people": [{"name": "dana", "token": TOKEN, "roles": ["admin"]}]},
        "ledger": {"path": "ledger"},
        "policy": {"engine": "opa", "opa": {"url": opa, "token": OPA_TOKEN}},
        "agents": [{"name": "a", "key": AGENT_KEY}],
        "targets": [{"name": "openai", "kind": "openai", "url": f"{standin}/v1", "key": OPENAI_KEY}],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "openai"}]}],
    }


def ask(gateway: Gateway) -> httpx2.Response:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {AGENT_KEY}"}
    return httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)


def shown(gateway: Gateway) -> Any:
    return httpx2.get(f"{gateway.admin}/policy", headers=DANA).json()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_opa_server_decides_goes_and_comes_back(tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "p.rego").write_text(ALLOW)
    (policies / "authz.rego").write_text(ONLY_WITH_TOKEN)
    protected = ("--authentication=token", "--authorization=basic")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "gateway"
    folder.mkdir()
    with running_standins() as standins:
        with serving(configured(f"http://127.0.0.1:{port}", standins.openai_url), folder) as gateway:
            refused = ask(gateway)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "policy_unavailable")
            assert str(port) not in refused.text
            ready = httpx2.get(f"{gateway.admin}/readyz")
            assert ready.status_code == 503
            assert "Connection refused" in ready.text
            with opa_server(policies, arguments=protected, port=port, token=OPA_TOKEN) as opa:
                until(lambda: httpx2.get(f"{gateway.admin}/readyz").status_code == 200)
                assert ask(gateway).status_code == 200
                first = shown(gateway)
                assert (first["engine"], first["url"], first["failure"]) == ("opa", opa.url, None)
                listed = opa.call("GET", "/v1/policies")["result"]
                name = next(each["id"] for each in listed if each["id"].endswith("/p.rego"))
                opa.put_policy(name, DENY)
                assert ask(gateway).json()["error"]["code"] == "policy_denied"
                httpx2.post(f"{gateway.admin}/policy/reload", headers=DANA)  # looks at the server anew
                assert shown(gateway)["revision"] != first["revision"]
                opa.put_policy(name, SLOW)
                began = time.monotonic()
                assert ask(gateway).json()["error"]["code"] == "policy_unavailable"
                assert time.monotonic() - began < 2
            assert ask(gateway).json()["error"]["code"] == "policy_unavailable"
            until(lambda: httpx2.get(f"{gateway.admin}/readyz").status_code == 503)
            with opa_server(policies, arguments=protected, port=port, token=OPA_TOKEN):
                until(lambda: httpx2.get(f"{gateway.admin}/readyz").status_code == 200)
                assert ask(gateway).status_code == 200
                assert shown(gateway)["revision"] == first["revision"]
            assert OPA_TOKEN not in gateway.stderr()
    assert OPA_TOKEN not in (folder / "ledger" / "calls.jsonl").read_text()


def test_the_commands_ask_the_opa_server(tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(ALLOW)
    (tmp_path / "input.json").write_text('{"agent": {"name": "a"}}')
    with opa_server(tmp_path / "p.rego") as opa:
        config = tmp_path / "weighbridge.yaml"
        config.write_text(yaml.safe_dump(configured(f"unix://{opa.socket}", "http://127.0.0.1:9")))
        told = command(tmp_path, "policy", "eval", "input.json", "--config", str(config), "--json")
        assert json.loads(told.stdout)["decision"] == "ALLOW", told.stderr
        checked = command(tmp_path, "check", "--config", str(config), "--json")
        assert not any("policy:" in each for each in json.loads(checked.stdout)["warnings"])
    told = command(tmp_path, "policy", "eval", "input.json", "--config", str(config))
    assert told.returncode != 0
    assert "No such file or directory" in told.stderr
    checked = command(tmp_path, "check", "--config", str(config), "--json")
    assert checked.returncode == 0
    assert any("policy: OPA at unix://" in each for each in json.loads(checked.stdout)["warnings"])
