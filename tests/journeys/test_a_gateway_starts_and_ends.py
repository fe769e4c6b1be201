"""Starting, stopping, dying: what an operator's init system sees."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from tests.support.process import ROOT, serving
from tests.support.standins import OPENAI_KEY, Standins, running_standins

AGENT_KEY = "living-agents-own-key"
ALLOW = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW"}\n'
SPINS = """package weighbridge

import rego.v1

default decision := {"decision": "ALLOW"}

decision := {"decision": "DENY"} if {
    input.call.target == "spin"
    xs := numbers.range(1, 3000)
    count([1 | some a in xs; some b in xs; some c in xs; a + b + c < 0]) > 0
}
"""


@pytest.fixture(scope="module")
def standins() -> Iterator[Standins]:
    with running_standins(slow=1.0) as running:
        yield running


def configuration(standins: Standins, folder: Path, policy: str = ALLOW, **sections: Any) -> dict[str, Any]:
    (folder / "main.rego").write_text(policy)
    return {
        "ledger": {"path": str(folder / "ledger")},
        "policy": {"paths": ["main.rego"], "watchdog": "1s"},
        "agents": [{"name": "living", "tenant": "acme", "key": AGENT_KEY}],
        "targets": [{"name": "openai", "kind": "openai", "url": standins.openai_url + "/v1", "key": OPENAI_KEY}],
        "routes": [{"name": "chat", "models": ["*"], "arms": [{"target": "openai"}]}],
        **sections,
    }


def ask(url: str, model: str = "gpt-4o-mini") -> int:
    return httpx2.post(
        f"{url}/v1/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": "hello"}]},
        headers={"authorization": f"Bearer {AGENT_KEY}"},
        timeout=20,
    ).status_code


def until(true: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < 20
        time.sleep(0.02)  # another process's end is not an event of ours


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def records(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "ledger" / "calls.jsonl").read_bytes().splitlines()]


def test_a_worker_that_is_killed_is_replaced_and_its_calls_are_visible(standins: Standins, tmp_path: Path) -> None:
    with serving(configuration(standins, tmp_path), tmp_path) as gateway:
        assert ask(gateway.url) == 200
        (worker,) = children(gateway.pid)
        with pytest.raises(httpx2.HTTPError):
            killed_while_asking(gateway.url, worker, tmp_path)
        assert ask(gateway.url) == 200
        assert children(gateway.pid) != [worker]
    calls = [record["record"] for record in records(tmp_path) if record["record"] != "reload"]
    assert calls == ["intent", "outcome", "intent", "intent", "outcome"]


def killed_while_asking(url: str, worker: int, folder: Path) -> None:
    def kill() -> None:
        until(lambda: sum(record["record"] == "intent" for record in records(folder)) == 2)
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ask(url, "slow-first-byte")
    finally:
        killer.join()


def test_a_policy_that_spins_ends_the_worker_and_others_are_served_again(standins: Standins, tmp_path: Path) -> None:
    with serving(configuration(standins, tmp_path, SPINS), tmp_path) as gateway:
        assert ask(gateway.url) == 200
        with pytest.raises(httpx2.HTTPError):
            ask(gateway.url, "spin")
        assert ask(gateway.url) == 200
        assert "the worker ended because a decision took more processor time" in gateway.stderr()


def test_a_gateway_that_was_stopped_for_longer_than_a_decision_may_take_goes_on(
    standins: Standins, tmp_path: Path
) -> None:
    with serving(configuration(standins, tmp_path), tmp_path) as gateway:
        (worker,) = children(gateway.pid)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(1.5)  # the passing of time is what is tested
        os.kill(worker, signal.SIGCONT)
        assert ask(gateway.url) == 200
        assert children(gateway.pid) == [worker]


def test_a_worker_started_again_tells_mistakes_of_the_file_until_they_are_mended(
    standins: Standins, tmp_path: Path
) -> None:
    with serving(configuration(standins, tmp_path, log={"format": "json"}), tmp_path) as gateway:
        good = gateway.config.read_text()
        (worker,) = children(gateway.pid)
        gateway.config.write_text(good + "unheard_of: 1\n")
        os.kill(worker, signal.SIGKILL)
        until(lambda: "the worker ended with 1" in gateway.stderr())
        gateway.config.write_text(good)
        assert ask(gateway.url) == 200
        said = [orjson.loads(line)["message"] for line in gateway.stderr().splitlines()]
        assert any("unheard_of: has an unknown key" in message for message in said)


def test_a_worker_without_its_supervisor_stops(standins: Standins, tmp_path: Path) -> None:
    with serving(configuration(standins, tmp_path), tmp_path) as gateway:
        (worker,) = children(gateway.pid)
        os.kill(gateway.pid, signal.SIGKILL)
        gateway.process.wait()
        until(lambda: gone(worker))
        gateway.process.returncode = 0


def test_a_gateway_waits_for_the_ledger_of_one_whose_calls_are_not_over(standins: Standins, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    ledger = {"path": str(tmp_path / "ledger")}
    for folder in (old, new):
        folder.mkdir()
    config = configuration(standins, old, listen={"drain": "15s"}, ledger=ledger)
    config["targets"][0]["url"] = silent_target(holder := socket.socket())
    with holder, serving(config, old) as first:
        (worker,) = children(first.pid)
        caller = threading.Thread(target=lambda: ask(first.url))
        caller.start()
        until(lambda: any(record["record"] == "intent" for record in records(tmp_path)))
        os.kill(first.pid, signal.SIGKILL)
        first.process.wait()
        first.process.returncode = 0
        ender = threading.Thread(target=lambda: end_when_held(new, holder))
        ender.start()
        with serving(configuration(standins, new, ledger=ledger), new) as second:
            assert gone(worker)
            assert ask(second.url) == 200
            assert "another process writes here" in second.stderr()
            assert "Traceback" not in second.stderr()
        caller.join()
        ender.join()


def end_when_held(folder: Path, holder: socket.socket) -> None:
    """Ends the calls that wait for `holder` once the gateway in `folder` has found the ledger held."""
    log = folder / "log" / "weighbridge.stderr"
    until(lambda: log.exists() and "another process writes here" in log.read_text())
    holder.close()


def test_a_call_under_way_is_finished_before_the_gateway_stops(standins: Standins, tmp_path: Path) -> None:
    answers: list[int] = []
    with serving(configuration(standins, tmp_path), tmp_path) as gateway:
        caller = threading.Thread(target=lambda: answers.append(ask(gateway.url, "slow-first-byte")))
        caller.start()
        until(
            lambda: (
                (tmp_path / "ledger" / "calls.jsonl").exists()
                and any(r["record"] == "intent" for r in records(tmp_path))
            )
        )
        gateway.stop()
        caller.join()
    assert answers == [200]


def test_an_unfinished_call_is_cut_after_the_drain_and_recorded(standins: Standins, tmp_path: Path) -> None:
    answers: list[int] = []
    config = configuration(standins, tmp_path, listen={"drain": "1s"})
    config["targets"][0]["url"] = silent_target(holder := socket.socket())
    with holder, serving(config, tmp_path) as gateway:
        caller = threading.Thread(target=lambda: answers.append(ask(gateway.url)))
        caller.start()
        until(lambda: any(record["record"] == "intent" for record in records(tmp_path)))
        gateway.stop()
        caller.join()
    assert answers == [503]
    assert [record["code"] for record in records(tmp_path) if record["record"] == "outcome"] == ["stopped"]


def silent_target(holder: socket.socket) -> str:
    holder.bind(("127.0.0.1", 0))
    holder.listen(5)
    return f"http://127.0.0.1:{holder.getsockname()[1]}/v1"


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_mistaken_configuration_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("agents: 5\nunheard_of: 1\n")
    done = run("serve", "--config", "w.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "w.yaml:1: agents" in done.stderr
    assert "w.yaml:2: unheard_of" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_busy_port_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "w.yaml").write_text(
            f"listen: {{port: {taken.getsockname()[1]}}}\nadmin: {{listen: {{port: 0}}}}\n"
        )
        done = run("serve", "--config", "w.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be listened on: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ledger_that_cannot_be_had_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "w.yaml").write_text(
        "listen: {port: 0}\nadmin: {listen: {port: 0}}\nledger: {path: file/ledger}\nlog: {format: json}\n"
    )
    done = run("serve", "--config", "w.yaml", cwd=tmp_path)
    assert done.returncode == 2
    *_, last = map(orjson.loads, done.stderr.splitlines())
    assert last["message"].endswith("file/ledger/calls.jsonl: Not a directory.")


def test_a_ca_without_certificates_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing\n")
    (tmp_path / "w.yaml").write_text(
        "targets:\n  - {name: t, kind: openai, url: https://127.0.0.1, ca: ca.pem}\n"
        "routes: [{name: r, models: ['*'], arms: [{target: t}]}]\n"
    )
    done = run("serve", "--config", "w.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "w.yaml:2: targets[0].ca: holds no certificates" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateway_without_a_usable_policy_says_it_is_not_ready_and_refuses(standins: Standins, tmp_path: Path) -> None:
    with serving(configuration(standins, tmp_path, "package broken {"), tmp_path) as gateway:
        ready = httpx2.get(f"{gateway.url}/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["no policy is loaded"])
        assert httpx2.get(f"{gateway.url}/healthz").status_code == 200
        assert ask(gateway.url) == 403
        (tmp_path / "main.rego").write_text(ALLOW)
        until(lambda: httpx2.get(f"{gateway.url}/readyz").status_code == 200)
        assert ask(gateway.url) == 200


def test_several_workers_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("admin: {listen: {port: 0}}\nlisten: {port: 0}\n")
    done = run("serve", "--config", "w.yaml", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "several gateways" in done.stderr


FORCED = """import os, sys
from pathlib import Path
from tests.support.process import serving

with serving(sys.argv[1], Path(sys.argv[2])) as gateway:
    print(gateway.pid, flush=True)
    os._exit(3)
"""


def test_no_gateway_of_a_test_outlives_a_run_that_is_ended_by_force(standins: Standins, tmp_path: Path) -> None:
    """As a test's timeout ends it, which asks nobody."""
    config = {**configuration(standins, tmp_path), "listen": {"port": 0}}
    config["admin"] = {"listen": {"port": 0}}
    run = subprocess.run(
        [sys.executable, "-c", FORCED, orjson.dumps(config).decode(), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=40,
        check=False,
    )
    assert run.returncode == 3
    pid = int(run.stdout)
    try:
        until(lambda: gone(pid))
    finally:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)
