"""Every example of docs/approvals.md, run in the order in which a reader would, and held against what is said of it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.admin import OPERATIONS
from gateway.admin.approvals import ApprovalView
from gateway.admin.grants import NewGrant
from policies.approvals import TRANSITIONS, State
from tests.support.demo import demonstration
from tests.support.process import ROOT

MANUAL = (ROOT / "docs" / "approvals.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", MANUAL, flags=re.DOTALL)
ID = re.compile(r"\b(?:apr_|grt_)?[0-9A-HJKMNP-TV-Z]{26}\b")
TOLD = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z|\b[0-9a-f]{64}\b|(?<=user-agent: ).*|\b5[89] min\b")


def examples() -> Iterator[tuple[str, str]]:
    """Commands, each with what the manual has it print."""
    for block in BLOCKS:
        for first, more, printed in re.findall(r"^\$ (.*\n)((?:> .*\n)*)((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            if not first.startswith(("make ", "export ")):
                yield first + re.sub("^> ", "", more, flags=re.MULTILINE), printed


@pytest.mark.timeout(120)
def test_every_command_prints_what_the_manual_says(tmp_path: Path) -> None:
    found = list(examples())
    assert len(found) > 8
    real: dict[str, str] = {}

    def known(name: re.Match[str]) -> str:
        return real[name[0]]

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
        for said, printed in found:
            here = ID.sub(known, said.replace("http://127.0.0.1:8080", gateway.url))
            done = subprocess.run(["sh", "-c", here], env=env, cwd=tmp_path, capture_output=True, timeout=30)
            assert done.returncode == 0, (said, done.stderr.decode())
            told = done.stdout.decode()
            real |= zip(ID.findall(printed), ID.findall(told), strict=True)
            assert TOLD.sub("-", ID.sub("-", told)) == TOLD.sub("-", ID.sub("-", printed)), said


def test_its_states_are_those_there_are_and_lead_where_it_says() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| .* \|(.*)\|$", MANUAL.partition("## States")[2].partition("## ")[0], re.MULTILINE
    )
    assert [name for name, _ in rows] == list(State)
    for name, then in rows:
        follows = {after.value for (before, _), after in TRANSITIONS.items() if before == name}
        assert set(re.findall(r"`(\w+)`", then)) == follows, name


def test_it_names_all_that_can_be_asked_and_all_that_is_told() -> None:
    told = MANUAL.partition("## The admin API")[2]
    for operation in OPERATIONS:
        if operation.path.startswith(("/approvals", "/grants")):
            last = operation.path.rpartition("/")[2]
            assert operation.path in told or f"`/{last}`" in told, operation.path
            assert operation.method in told
            for parameter in operation.query:
                assert re.search(rf"\b{parameter.name}\b", told), (operation.path, parameter.name)
    for name in ApprovalView.model_fields:
        assert f"`{name}`" in told, name
    for name, field in NewGrant.model_fields.items():
        assert f'"{field.alias or name}"' in told, name
