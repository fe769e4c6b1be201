"""Local MCP servers of a real gateway process: they serve its agents, and nothing of them outlives it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.process import Gateway, serving

KEY, TOKEN = "the-agents-own-key", "danas-own-token"
SERVER = str(Path(__file__).parents[1] / "support" / "stdio_server.py")
HELLO: dict[str, Any] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "c", "version": "1"},
}
ALLOW = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW"}\n'


def configuration(folder: Path, *modes: str) -> dict[str, Any]:
    (folder / "policy").mkdir()
    (folder / "policy" / "allow.rego").write_text(ALLOW)
    command = [sys.executable, "-I", "-S", SERVER, "children", *modes]
    return {
        "agents": [{"name": "bot", "tenant": "acme", "key": KEY}],
        "admin": {"people": [{"name": "dana", "token": TOKEN, "roles": ["admin"]}]},
        "policy": {"paths": [str(folder / "policy")]},
        "tools": [{"name": "local", "kind": "mcp", "command": command, "definitions": "any"}],
    }


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {KEY}", "accept": "application/json, text/event-stream"}
    with httpx2.Client(headers=headers, timeout=20) as client:
        yield client


def asked(http: httpx2.Client, gateway: Gateway, method: str, session: str = "", **params: Any) -> httpx2.Response:
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return http.post(f"{gateway.url}/mcp/local", json=message, headers={"mcp-session-id": session} if session else {})


def begun(http: httpx2.Client, gateway: Gateway) -> str:
    answer = asked(http, gateway, "initialize", **HELLO)
    assert answer.status_code == 200, answer.text + gateway.tail()
    return str(answer.headers["mcp-session-id"])


def family(http: httpx2.Client, gateway: Gateway, session: str) -> set[int]:
    """The server's process, those that it has started, one in a session of its own, and its keeper."""
    answer = asked(http, gateway, "tools/call", session, name="whoami", arguments={})
    pid = int(answer.json()["result"]["content"][0]["text"])
    keeper = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    found = {pid, keeper}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((each / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.add(int(each.name))
    assert len(found) == 4
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()}


def gone(pids: set[int], within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pids)


def test_a_gateway_that_is_killed_leaves_no_process_of_its_servers(tmp_path: Path, http: httpx2.Client) -> None:
    with serving(configuration(tmp_path, "stubborn"), tmp_path) as gateway:
        pids = family(http, gateway, begun(http, gateway))
        keepers = [pid for pid in pids if b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        worker = int(Path(f"/proc/{keepers[0]}/stat").read_bytes().rpartition(b")")[2].split()[1])
        os.kill(worker, signal.SIGKILL)
        assert gone(pids)


def test_a_gateway_that_stops_ends_its_servers_first(tmp_path: Path, http: httpx2.Client) -> None:
    with serving(configuration(tmp_path, "stubborn"), tmp_path) as gateway:
        pids = family(http, gateway, begun(http, gateway))
        http.close()
        gateway.stop()
        assert not alive(pids)


def test_an_agent_that_is_quarantined_loses_its_servers_and_a_reload_those_that_changed(
    tmp_path: Path, http: httpx2.Client
) -> None:
    with serving(configuration(tmp_path), tmp_path) as gateway:
        first = family(http, gateway, begun(http, gateway))
        text = gateway.config.read_text()
        gateway.config.write_text(text.replace("- children", "- children\n  - again"))
        assert gone(first), gateway.tail()
        second = family(http, gateway, begun(http, gateway))
        state = f"{gateway.admin}/agents/bot/state?tenant=acme"
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = httpx2.put(state, json={"state": "quarantined", "reason": "test"}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert gone(second), gateway.tail()
