"""Every example of the README, run as a reader would run it."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.load import load
from gateway.cli import _parser
from tests.support.demo import demonstration
from tests.support.process import ROOT, Gateway

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language: str, containing: str = "") -> list[str]:
    found = [text for kind, text in BLOCKS if kind == language and containing in text]
    assert found, f"the README has no {language} example with {containing!r}"
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with demonstration(tmp_path_factory.mktemp("readme")) as gateway:
        yield gateway


def here(text: str, gateway: Gateway) -> str:
    return text.replace("http://127.0.0.1:8080", gateway.url)


def test_the_curl_lines_do_what_is_said_of_them(demo: Gateway) -> None:
    allowed, refused, held, found = (
        json.loads(subprocess.run(["sh", "-ec", here(text, demo)], capture_output=True, check=True, timeout=20).stdout)
        for text in blocks("sh", "curl")
    )
    assert allowed["choices"][0]["message"]["content"]
    assert refused["error"]["code"] == "policy_denied"
    assert held["error"]["code"] == "approval_pending"
    assert [each["id"] for each in found["items"]] == [1]


@pytest.mark.parametrize("library", ["openai", "anthropic"])
def test_the_python_examples_print_an_answer(demo: Gateway, library: str) -> None:
    (text,) = blocks("python", f"from {library} ")
    done = subprocess.run([sys.executable, "-c", here(text, demo)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout


def test_the_mcp_example_lists_tools_and_calls_one(demo: Gateway) -> None:
    (text,) = blocks("python", "from mcp.client ")
    done = subprocess.run([sys.executable, "-c", here(text, demo)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['searchTickets', 'getTicket', 'refund']"), done.stdout
    assert "Invoice is wrong" in done.stdout


def test_the_configuration_loads(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "w.yaml").write_text(text)
    loaded = load(tmp_path / "w.yaml", {"SUPPORT_BOT_KEY": "key-of-support-bot", "OPENAI_API_KEY": "key-of-openai"})
    assert loaded.warnings == []


def test_the_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [line for text in blocks("sh") for line in text.splitlines()]
    ours = [line for line in lines if line.startswith(("make ", "weighbridge "))]
    assert ours
    for program, *arguments in (shlex.split(line, comments=True) for line in ours):
        if program == "make":
            assert f"\n{arguments[0]}:" in makefile
        else:
            _parser().parse_args(arguments)


@pytest.mark.parametrize("document", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
