"""The command line: tables for people, JSON for scripts, exit codes that mean something, and no traceback."""

import json
from pathlib import Path

import pytest
import yaml

from gateway.cli import MISTAKEN, OK, UNUSABLE, main
from gateway.ledger import FileLedger
from tests.support.exchanges import exchange

ALLOW = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW", "explanation": "fine"}\n'
TESTS = "package weighbridge_test\n\nimport rego.v1\n\nimport data.weighbridge\n\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "main.rego").write_text(ALLOW)
    path = tmp_path / "w.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "ledger": {"path": str(tmp_path / "ledger")},
                "policy": {"paths": ["main.rego"]},
                "agents": [{"name": "a", "key": "agents-own-key"}],
                "targets": [{"name": "t", "kind": "openai", "url": "http://127.0.0.1:9/v1"}],
                "routes": [{"name": "r", "models": ["*"], "arms": [{"target": "t"}]}],
            }
        )
    )
    return path


def test_check_passes_a_good_configuration_and_warns_of_what_is_down(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--config", str(config)]) == OK
    said = capsys.readouterr().out
    assert "ok       " in said
    assert "target t: nothing answers at 127.0.0.1:9" in said
    assert "agents-own-key" not in said


def test_check_names_mistakes_with_file_and_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("kind: openai", "kind: opnai"))
    assert main(["check", "--config", str(config)]) == MISTAKEN
    assert f"{config}:" in capsys.readouterr().out


def test_check_names_mistakes_in_the_policy(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "main.rego").write_text(ALLOW + "\nbroken {\n")
    assert main(["check", "--config", str(config), "--json"]) == MISTAKEN
    (mistake,) = json.loads(capsys.readouterr().out)["mistakes"]
    assert "main.rego:7" in mistake


def test_a_missing_configuration_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(tmp_path / "none.yaml")]) == MISTAKEN
    assert "cannot be read" in capsys.readouterr().out


def test_policy_eval_shows_the_decision(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "input.json").write_text("{}")
    assert main(["policy", "eval", str(tmp_path / "input.json"), "--config", str(config)]) == OK
    assert "ALLOW" in capsys.readouterr().out
    rules = str(config.parent / "main.rego")
    assert main(["policy", "eval", str(tmp_path / "input.json"), "--policy", rules, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["decision"] == "ALLOW"


@pytest.mark.parametrize("written", ["{", "[", "\x00", '{"a": "\\ud800"}'])
def test_policy_eval_refuses_what_is_no_input(
    config: Path, tmp_path: Path, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "input.json").write_text(written)
    assert main(["policy", "eval", str(tmp_path / "input.json"), "--config", str(config)]) == MISTAKEN
    assert "Traceback" not in capsys.readouterr().out


def test_policy_eval_without_its_input_is_unusable(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "eval", "no-such-file", "--config", str(config)]) == UNUSABLE
    assert "no-such-file" in capsys.readouterr().err


@pytest.mark.parametrize(("rule", "code"), [("test_it if true", OK), ("test_it if false", MISTAKEN)])
def test_policy_test_fails_when_a_test_fails(
    config: Path, rule: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "main_test.rego").write_text(TESTS + rule + "\n")
    assert main(["policy", "test", str(config.parent)]) == code
    assert ("PASS: 1/1" if code == OK else "FAIL: 1/1") in capsys.readouterr().out


def test_policy_test_without_tests_is_not_a_pass(config: Path) -> None:
    assert main(["policy", "test", str(config.parent / "main.rego")]) == MISTAKEN


async def test_ledger_tail_shows_the_last_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = FileLedger(tmp_path)
    calls = [exchange() for _ in range(5)]
    for x in calls:
        ledger.intend(x)
        ledger.conclude(x)
    ledger.close()
    with ledger.path.open("ab") as file:
        file.write(b"garbage \xff\n[1]\n")
    assert main(["ledger", "tail", "--path", str(tmp_path), "-n", "2"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [x.id for x in calls[-2:]]
    assert main(["ledger", "tail", "--path", str(tmp_path), "--json", "--all"]) == OK
    assert [json.loads(line)["record"] for line in capsys.readouterr().out.splitlines()] == ["intent", "outcome"] * 5


def test_ledger_tail_without_a_ledger_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "tail", "--path", str(tmp_path / "none")]) == UNUSABLE
    assert "there is no ledger here yet" in capsys.readouterr().err
