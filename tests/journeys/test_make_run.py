"""What `make run` executes, from the first line it prints to the end of the last process it started."""

import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.support.process import ROOT

START_SECONDS = 40.0
STOP_SECONDS = 30.0
LAST_LINE = "Ctrl-C stops all."


@dataclass
class Demo:
    """A running demonstration, what it has printed so far, and the page of things to try."""

    process: "subprocess.Popen[str]"
    folder: Path
    printed: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    page: threading.Event = field(default_factory=threading.Event)

    @property
    def text(self) -> str:
        return "".join(self.printed)

    def commands(self) -> list[str]:
        """The lines of the page that a shell takes, in order."""
        return [line.strip() for line in self.text.splitlines() if line.startswith(("    curl ", "    for "))]

    def addresses(self) -> tuple[str, str]:
        """Where agents call, and where people do."""
        found = re.search(r"Agents call (http://\S+), people look after it at (http://\S+)\.\n", self.text)
        assert found is not None, self.text
        return found[1], found[2]

    def pids(self) -> dict[str, int]:
        return {name: int(pid) for name, pid in re.findall(r"(\S+) \(pid (\d+)\)", self.text)}

    def wait(self) -> int:
        """Until it has ended and all its words were read."""
        code = self.process.wait(STOP_SECONDS)
        for reader in threading.enumerate():
            if reader.name.startswith("demo-"):
                reader.join()
        return code


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what the demonstration uses, on free ports, to be edited at will."""
    shutil.copytree(ROOT / "policies" / "rego", tmp_path / "policies" / "rego")
    shutil.copytree(ROOT / "config" / "examples", tmp_path / "config" / "examples")
    config = tmp_path / "config" / "examples" / "demo.yaml"
    text = config.read_text(encoding="utf-8")
    for port, free in zip((8080, 8081, 18101, 18102, 18103, 18104), free_ports(6), strict=True):
        text, count = re.subn(rf"\b{port}\b", str(free), text)
        assert count == 1, f"{port} stands {count} times in demo.yaml"
    config.write_text(text, encoding="utf-8")
    return tmp_path


@contextmanager
def started(folder: Path) -> Iterator[Demo]:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.demo.run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    demo = Demo(process, folder)

    def read_printed() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            demo.printed.append(line)
            if LAST_LINE in line:
                demo.page.set()
        demo.page.set()

    def read_complaints() -> None:
        assert process.stderr is not None
        demo.complaints.extend(process.stderr)

    readers = [
        threading.Thread(target=read_printed, name="demo-stdout"),
        threading.Thread(target=read_complaints, name="demo-stderr"),
    ]
    for reader in readers:
        reader.start()
    try:
        yield demo
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
            for reader in readers:
                reader.join()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@contextmanager
def running(folder: Path) -> Iterator[Demo]:
    """A demonstration that has printed its page."""
    with started(folder) as demo:
        assert demo.page.wait(START_SECONDS), demo.text
        assert LAST_LINE in demo.text, demo.text + "".join(demo.complaints)
        yield demo


def shell(command: str) -> str:
    """What a command prints when a person pastes it."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=30)
    assert done.returncode == 0, (command, done.stderr.decode())
    return done.stdout.decode()


def ask_as_intern(agents: str) -> httpx2.Response:
    body = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"authorization": "Bearer demo-intern-key"}
    return httpx2.post(f"{agents}/v1/chat/completions", headers=headers, json=body, trust_env=False)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_over(url: str) -> bool:
    """Whether nobody listens there any more, at the latest a little later."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            httpx2.get(f"{url}/healthz", trust_env=False)
        except httpx2.TransportError:
            return True
    return False


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_on_the_page_works_as_it_is_printed(folder: Path) -> None:
    with running(folder) as demo:
        said = [shell(command) for command in demo.commands()]
    chat, streamed, message, denied, held, waiting, allowed, answered, stopped, resumed, *more = said[:-2]
    dozen, budgets, spend, raised, halved, arms, compared, *rollout = more
    policy, metrics = said[-2:]
    assert chat.startswith("HTTP/1.1 200")
    assert "You said: Hello" in chat
    assert streamed.endswith("data: [DONE]\n\n")
    assert message.startswith("HTTP/1.1 200")
    assert '"type":"message"' in message
    assert denied.startswith("HTTP/1.1 403")
    assert '"code":"policy_denied"' in denied
    assert held.startswith("HTTP/1.1 202")
    assert '"code":"approval_pending"' in held
    assert [each["state"] for each in json.loads(waiting)["items"]] == ["pending"]
    assert json.loads(allowed)["state"] == "approved"
    assert answered.startswith("HTTP/1.1 200")
    assert [json.loads(each)["state"] for each in (stopped, resumed)] == ["quarantined", "active"]
    assert re.fullmatch(r"(200 ){6,13}(429 )+", dozen)
    (batch,) = [each for each in json.loads(budgets)["items"] if each["node"] == "acme/batch-bot"]
    assert batch["used_percent"] > 50
    assert [row["agent"] for row in json.loads(spend)["items"]] == [
        "batch-bot",
        "intern-bot",
        "support-bot",
        "support-bot",
    ]
    assert json.loads(raised)["limit_usd"] == 1
    assert [arm["weight"] for arm in json.loads(halved)["arms"]] == [50, 50]
    assert re.fullmatch(r"((openai|parallax)-stand-in ){6}", arms)
    calls = {arm["target"]: arm["calls"] for arm in json.loads(compared)["arms"]}
    assert calls["parallax-stand-in"] == arms.count("parallax")
    started, shared, standing, aborted, found, nothing, held, waiting = rollout
    assert (json.loads(started)["state"], json.loads(started)["weight"]) == ("RUNNING", 20)
    assert re.fullmatch(r"((anthropic|parallax)-stand-in ){9}", shared)
    assert {each["what"] for each in json.loads(standing)["missing"]} == {"time", "calls"}
    assert (json.loads(aborted)["state"], json.loads(aborted)["weight"]) == ("ROLLED_BACK", 0)
    assert [each["id"] for each in json.loads(found)["items"]] == [1]
    assert json.loads(nothing)["error"]["code"] == "no_route"
    assert json.loads(held)["error"]["code"] == "approval_pending"
    assert [each["operation"] for each in json.loads(waiting)["items"]] == ["refund"]
    assert json.loads(policy)["engine"] == "embedded"
    assert "weighbridge_" in metrics


def test_an_edited_envelope_changes_the_next_decision(folder: Path) -> None:
    with running(folder) as demo:
        agents, _ = demo.addresses()
        assert ask_as_intern(agents).status_code == 403
        envelopes = folder / "config" / "examples" / "envelopes.yaml"
        document = yaml.safe_load(envelopes.read_text(encoding="utf-8"))
        document["envelopes"]["intern-bot"] = copy.deepcopy(document["envelopes"]["support-bot"])
        envelopes.write_text(yaml.safe_dump(document), encoding="utf-8")
        edited = time.monotonic()
        while ask_as_intern(agents).status_code != 200:
            assert time.monotonic() - edited < 10, demo.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_quietly(folder: Path, number: signal.Signals) -> None:
    with running(folder) as demo:
        agents, admin = demo.addresses()
        pids = demo.pids()
        assert set(pids) == {"stand-ins", "cluster", "gateway"}
        demo.process.send_signal(number)
        assert demo.wait() == 0
    assert "Traceback" not in demo.text
    assert demo.complaints == []
    assert not any(alive(pid) for pid in pids.values())
    for url in (agents, admin):
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(url, trust_env=False)


def test_a_signal_while_it_is_still_starting_ends_everything_too(folder: Path) -> None:
    with started(folder) as demo:
        deadline = time.monotonic() + START_SECONDS
        while not demo.pids():
            assert time.monotonic() < deadline, demo.text
            demo.page.wait(0.02)
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait() == 0
    assert "Traceback" not in demo.text
    assert demo.complaints == []
    assert not any(alive(pid) for pid in demo.pids().values())


@pytest.mark.parametrize("name", ["stand-ins", "cluster", "gateway"])
def test_a_part_that_dies_takes_the_rest_along_and_is_named(folder: Path, name: str) -> None:
    with running(folder) as demo:
        agents, _ = demo.addresses()
        os.kill(demo.pids()[name], signal.SIGKILL)
        assert demo.wait() == 1
    assert demo.complaints[0].startswith(f"{name}: ended by signal 9, so all was stopped.")
    assert not any(alive(pid) for pid in demo.pids().values())
    assert is_over(agents), "what the dead part had started itself ends too"


def test_a_taken_port_is_named_in_one_sentence(folder: Path) -> None:
    config = folder / "config" / "examples" / "demo.yaml"
    port = yaml.safe_load(config.read_text(encoding="utf-8"))["admin"]["listen"]["port"]
    with socket.create_server(("127.0.0.1", port)), started(folder) as demo:
        assert demo.wait() == 98
    assert demo.printed == []
    assert len(demo.complaints) == 1
    assert demo.complaints[0].startswith(f"Port {port} on 127.0.0.1 cannot be used (Address already in use)")


def test_a_mistake_in_the_configuration_is_told_with_its_line(folder: Path) -> None:
    config = folder / "config" / "examples" / "demo.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "\nrouts: []\n", encoding="utf-8")
    with started(folder) as demo:
        assert demo.wait() == 2
    said = "".join(demo.complaints)
    assert f"demo.yaml:{len(config.read_text(encoding='utf-8').splitlines())}: " in said
    assert "Did you mean routes?" in said
    assert "Traceback" not in said
