"""Every example of docs/budgets.md, run in the order in which a reader would, and held against what is said of it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from config.load import load
from tests.support.demo import demonstration
from tests.support.process import ROOT

MANUAL = (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", MANUAL, flags=re.DOTALL)
TIMES = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}Z)?|(?<=month )\d{4}-\d{2}")


@dataclass
class Example:
    """A command and what the manual has it print."""

    command: str
    printed: str


def examples() -> Iterator[Example]:
    for kind, text in BLOCKS:
        if kind == "console":
            for first, more, printed in re.findall(r"^\$ (.*\n)((?:> .*\n)*)((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                yield Example(first + re.sub("^> ", "", more, flags=re.MULTILINE), printed)


def settled(text: str) -> str:
    """What a command prints, whenever it does, and whatever its lines end in."""
    return TIMES.sub("SOME DAY", text.replace("\r\n", "\n")).rstrip()


@pytest.mark.timeout(120)
def test_every_command_prints_what_the_manual_says(tmp_path: Path) -> None:
    found = list(examples())
    assert len(found) > 5
    with demonstration(tmp_path) as gateway:
        commands = tmp_path / "bin"
        commands.mkdir()
        command = commands / "weighbridge"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway.cli "$@" --admin {gateway.admin}\n')
        command.chmod(0o755)
        env = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "WEIGHBRIDGE_ADMIN_TOKEN": "demo-dana-token",
        }
        for each in found:
            here = each.command.replace("http://127.0.0.1:8080", gateway.url)
            here = here.replace("http://127.0.0.1:8081", gateway.admin)
            done = subprocess.run(["sh", "-c", here], env=env, cwd=tmp_path, capture_output=True, timeout=30)
            assert done.returncode == 0, (each.command, done.stderr.decode())
            assert settled(done.stdout.decode()) == settled(each.printed), each.command


def test_the_configuration_loads(tmp_path: Path) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "w.yaml").write_text(text)
    loaded = load(tmp_path / "w.yaml", {"SUPPORT_BOT_KEY": "key-of-support-bot"})
    assert len(loaded.settings.budgets) == len(yaml.safe_load(text)["budgets"])
