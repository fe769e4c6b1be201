"""The command line: tables for people, JSON for scripts, exit codes that mean something, and no traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from gateway.cli import main
from gateway.ledger import FILE_NAME, FileLedger
from gateway.state import redis_check
from gateway.terminal import MISTAKEN, OK, UNUSABLE
from tests.support.exchanges import exchange
from tests.support.redis_server import needs_redis, redis_server

ALLOW = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW", "explanation": "fine"}\n'
TESTS = "package weighbridge_test\n\nimport rego.v1\n\nimport data.weighbridge\n\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "main.rego").write_text(ALLOW)
    path = tmp_path / "w.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "state": f"sqlite:///{tmp_path}/state.db",
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


def test_check_warns_of_tools_that_cannot_be_called_and_of_envelopes_that_are_of_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    envelope: dict[str, Any] = {
        "allowed_tools": {"nots": {"operations": {"add": {}}}, "notes": {"operations": {"add": {}}}}
    }
    (config.parent / "envelopes.yaml").write_text(yaml.safe_dump({"envelopes": {"a": envelope, "b": {}}}))
    (config.parent / "here").write_text("#!/bin/sh\n")
    (config.parent / "here").chmod(0o755)
    written = yaml.safe_load(config.read_text())
    written["policy"] = {"paths": ["main.rego", "envelopes.yaml"]}
    written["tools"] = [
        {"name": "notes", "kind": "mcp", "url": "http://127.0.0.1:9/mcp"},
        {"name": "crm", "kind": "http", "url": "http://127.0.0.1:7"},
        {"name": "files", "kind": "mcp", "command": ["nosuchprogram"]},
        {"name": "near", "kind": "mcp", "command": ["./here"], "directory": str(config.parent)},
        {"name": "shell", "kind": "mcp", "command": ["sh"], "definitions": "configured"},
    ]
    config.write_text(yaml.safe_dump(written))
    assert main(["check", "--config", str(config), "--json"]) == OK
    said = json.loads(capsys.readouterr().out)["warnings"]

    def one(text: str) -> str:
        (found,) = [each for each in said if text in each]
        return str(found)

    assert "nothing answers at 127.0.0.1:9" in one("tool notes:")
    assert "nothing answers at 127.0.0.1:7" in one("tool crm:")
    assert "'nosuchprogram' is not found" in one("tool files:")
    assert "no pins" in one("tools[4]")
    assert "envelopes.a.allowed_tools.nots" in one("Did you mean notes?")
    assert "no agent" in one("envelopes.b")
    assert not [each for each in said if "tool near" in each or "tool shell" in each]


def test_check_counts_envelopes_that_are_of_nobody_rather_than_name_them_all(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "envelopes.yaml").write_text(yaml.safe_dump({"envelopes": {f"b{n}": {} for n in range(5000)}}))
    written = yaml.safe_load(config.read_text())
    written["policy"] = {"paths": ["main.rego", "envelopes.yaml"]}
    config.write_text(yaml.safe_dump(written))
    assert main(["check", "--config", str(config), "--json"]) == OK
    said = [
        each
        for each in json.loads(capsys.readouterr().out)["warnings"]
        if "envelopes.b" in each or "envelopes: " in each
    ]
    assert len(said) == 10
    assert "4991 more" in said[-1]


def kept_at(config: Path, state: str) -> None:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "state": state}))


def test_check_warns_of_a_redis_server_that_is_away_without_its_password(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_check, "REACH", 0.3)
    kept_at(config, "redis://me:a-long-password@127.0.0.1:9/0")
    assert main(["check", "--config", str(config)]) == OK
    said = capsys.readouterr().out
    assert "state: redis://127.0.0.1:9/0 cannot be used" in said
    assert "the secret itself stands in the file" in said
    assert "a-long-password" not in said


@needs_redis
def test_check_warns_of_a_redis_server_that_would_forget_what_was_spent(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with redis_server(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        kept_at(config, server.url)
        assert main(["check", "--config", str(config)]) == OK
        said = capsys.readouterr().out
        assert f"state: 127.0.0.1:{server.port} evicts keys" in said
        assert "appendonly yes" in said
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.command("CONFIG", "SET", "appendonly", "yes")
        main(["check", "--config", str(config)])
        assert "state:" not in capsys.readouterr().out


def test_check_names_mistakes_with_file_and_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("kind: openai", "kind: opnai"))
    assert main(["check", "--config", str(config)]) == MISTAKEN
    assert f"{config}:" in capsys.readouterr().out


def test_check_names_mistakes_in_the_policy(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "main.rego").write_text(ALLOW + "\nbroken {\n")
    assert main(["check", "--config", str(config), "--json"]) == MISTAKEN
    (mistake,) = json.loads(capsys.readouterr().out)["mistakes"]
    assert "main.rego:7" in mistake


def test_check_warns_of_decisions_in_two_files(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "mine.rego").write_text(ALLOW.replace("}", "} if input.call.phase", 1))
    config.write_text(config.read_text().replace("- main.rego", "- main.rego\n  - mine.rego"))
    assert main(["check", "--config", str(config), "--json"]) == OK
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    (warning,) = (each for each in warnings if "mine.rego:5" in each)
    assert "for which both hold are refused" in warning


def with_a_trial(config: Path, rules: str, **more: object) -> None:
    (config.parent / "new.rego").write_text(rules)
    settings = yaml.safe_load(config.read_text())
    settings["policy"] |= {"shadow": {"paths": ["new.rego"]}, **more}
    config.write_text(yaml.safe_dump(settings))


def test_check_names_mistakes_in_the_policy_on_trial(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_a_trial(config, ALLOW + "\nbroken {\n")
    assert main(["check", "--config", str(config), "--json"]) == MISTAKEN
    (mistake,) = json.loads(capsys.readouterr().out)["mistakes"]
    assert "new.rego:7" in mistake


def test_check_asks_signatures_of_the_policy_on_trial_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_a_trial(config, ALLOW, keys=[{"id": "k", "algorithm": "HS256", "key": "k" * 40}])
    assert main(["check", "--config", str(config), "--json"]) == MISTAKEN
    mistakes = json.loads(capsys.readouterr().out)["mistakes"]
    assert [Path(each.partition(":")[0]).name for each in mistakes] == ["main.rego", "new.rego"]


def test_check_passes_a_sound_policy_on_trial(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_a_trial(config, ALLOW)
    assert main(["check", "--config", str(config)]) == OK
    assert "mistake" not in capsys.readouterr().out


def test_check_warns_of_an_opa_server_that_is_away_once_and_in_plain_words(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["policy"] = {"engine": "opa", "opa": {"url": "http://127.0.0.1:9"}}
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "gateway.cli", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (OK, "")
    assert "warning  policy: OPA at http://127.0.0.1:9: no connection: Connection refused." in done.stdout


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
        await ledger.intend(x)
        ledger.conclude(x)
    ledger.close()
    with ledger.path.open("ab") as file:
        file.write(b"garbage \xff\n[1]\n")
    assert main(["ledger", "tail", "--path", str(tmp_path), "-n", "2"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [x.id for x in calls[-2:]]
    assert main(["ledger", "tail", "--path", str(tmp_path), "--json", "--all"]) == OK
    assert [json.loads(line)["record"] for line in capsys.readouterr().out.splitlines()] == ["intent", "outcome"] * 5


async def test_ledger_tail_shows_when_a_decision_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = FileLedger(tmp_path)
    x = exchange()
    await ledger.intend(x)
    ledger.conclude(x)
    ledger.close()
    assert main(["ledger", "tail", "--path", str(tmp_path), "--all"]) == OK
    intent, outcome = capsys.readouterr().out.splitlines()
    taken = time.localtime(x.asked[-1].question.now_ns / 1e9)
    assert intent.split()[0] == time.strftime("%H:%M:%S", taken)
    assert outcome.split()[0] == time.strftime("%H:%M:%S", time.localtime(x.arrived_ns / 1e9))


def test_ledger_tail_keeps_a_long_kind_of_record_apart_from_its_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, b'{"record":"policy_difference","at":1,"call":"c"}', b'{"record":"reload","at":1,"who":"dana"}')
    assert main(["ledger", "tail", "--path", str(tmp_path)]) == OK
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()] == [
        ["policy_difference", "call=c"],
        ["reload", "who=dana"],
    ]


def test_ledger_tail_keeps_columns_apart_and_says_what_calls_have_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"record": "outcome", "at": 1, "call": "c" * 26, "agent": "a" * 40, "operation": "chat", "model": "m" * 40}
    call |= {"decision": "NEEDS_APPROVAL", "code": "ledger_unavailable", "target": "t" * 40, "seconds": 12345.6}
    call |= {"usage": {"input_tokens": 1234567, "output_tokens": 1234567}}
    written(tmp_path, orjson.dumps(call | {"cost_usd": 0.0000125}), orjson.dumps(call | {"unpriced": True}))
    assert main(["ledger", "tail", "--path", str(tmp_path)]) == OK
    priced, unpriced = capsys.readouterr().out.splitlines()
    assert priced.split()[1:] == [
        "c" * 26,
        "a" * 40,
        "chat",
        "m" * 40,
        "NEEDS_APPROVAL",
        "ledger_unavailable",
        "t" * 40,
        "12345600.0ms",
        "1234567+1234567",
        "$0.000013",
    ]
    assert unpriced.split()[-1] == "unpriced"


def test_ledger_tail_names_its_columns_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"record": "outcome", "at": 1, "call": "c" * 26, "seconds": 0.5, "code": "ok"}
    written(tmp_path, orjson.dumps(call | {"usage": {"input_tokens": 1, "output_tokens": 9}, "cost_usd": 1}))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["ledger", "tail", "--path", str(tmp_path)]) == OK
    heads, line = capsys.readouterr().out.splitlines()
    for head, cell in (("call", "cccc"), ("code", "ok"), ("took", "500.0ms"), ("in+out", "1+9"), ("cost", "$1.000000")):
        assert heads.index(head) == line.index(cell)
    assert main(["ledger", "tail", "--path", str(tmp_path), "--json"]) == OK
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_ledger_tail_keeps_what_people_write_in_its_own_fact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"record": "budget", "at": 1, "who": "dana", "comment": "due who=sam", "node": "acme/bot", "old_usd": "1"}
    written(tmp_path, orjson.dumps(record))
    assert main(["ledger", "tail", "--path", str(tmp_path)]) == OK
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith('budget  who=dana comment="due who=sam" node=acme/bot old_usd=1')


def test_ledger_tail_without_a_ledger_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "tail", "--path", str(tmp_path / "none")]) == UNUSABLE
    assert "there is no ledger here yet" in capsys.readouterr().err


def written(folder: Path, *lines: bytes) -> Path:
    (folder / FILE_NAME).write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


def test_a_path_cannot_write_to_the_operators_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"record": "outcome", "call": "c", "at": 1, "code": "unauthenticated", "path": "/x\n\x1b[31mforged\x07"}
    note = {"record": "reload", "who\n": "a\nb", "what": ["\u202e\n"]}
    written(tmp_path, orjson.dumps(record), orjson.dumps(note))
    assert main(["ledger", "tail", "--path", str(tmp_path)]) == OK
    shown = capsys.readouterr().out
    assert shown.count("\n") == 2
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "/x\\n\\x1b[31mforged" in shown


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"record":"outcome"}',
        b'{"record":"outcome","call":[],"at":1}',
        b'{"record":"outcome","call":"c","usage":"x"}',
        b'{"record":"outcome","call":"c","usage":{"input_tokens":[]},"seconds":[],"path":{},"code":null}',
        b'{"record":"outcome","call":"c","seconds":1e308,"cost_usd":-1e308}',
        b'{"record":"outcome","call":"c","cost_usd":' + b"9" * 400 + b"}",
        b'{"record":"outcome","call":"c","cost_usd":[true],"unpriced":"x"}',
        b'{"record":[],"at":[]}',
        b'{"record":"x","at":"y"}',
        b'{"record":"x","at":1e300}',
        b'{"record":"x","at":-1e300}',
        b'{"record":"x","deep":' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"record":"x","long":"' + b"x" * 3_000_000 + b'"}',
        b"\x00" * 3_000_000,
    ],
    ids=lambda line: line[:60].decode(),
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_line_that_is_no_record_does_not_stop_the_tail(
    line: bytes, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, line, b'{"record":"reload","at":1,"what":"policy"}')
    assert main(["ledger", "tail", "--path", str(tmp_path), *options]) == OK
    assert "policy" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("count", "shown"), [("0", []), ("1", ["c"]), ("2", ["b", "c"]), ("9", ["a", "b", "c"])])
def test_ledger_tail_shows_as_many_as_it_is_asked_for(
    count: str, shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, *(b'{"record":"outcome","call":"%c"}' % letter for letter in b"abc"))
    assert main(["ledger", "tail", "--path", str(tmp_path), "-n", count]) == OK
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == shown


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "", "9" * 5000])
def test_ledger_tail_of_no_number_of_lines_is_refused(
    count: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ledger", "tail", "--path", str(tmp_path), f"--lines={count}"])
    assert ended.value.code == UNUSABLE
    assert "write a number" in capsys.readouterr().err


def test_ledger_tail_follows_what_comes_even_into_another_file(tmp_path: Path) -> None:
    written(tmp_path, b'{"record":"outcome","call":"a"}')
    command = [sys.executable, "-m", "gateway.cli", "ledger", "tail", "--path", str(tmp_path), "--follow"]
    root = Path(__file__).parents[2]
    tail = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert tail.stdout is not None
    try:
        assert tail.stdout.readline().split()[1] == "a"
        with (tmp_path / FILE_NAME).open("a") as file:
            file.write('{"record":"outcome","call":"b"}\n{"record":"intent"}\n')
        assert tail.stdout.readline().split()[1] == "b"
        (tmp_path / FILE_NAME).rename(tmp_path / "moved")
        written(tmp_path, b'{"record":"outcome","call":"c"}')
        assert tail.stdout.readline().split()[1] == "c"
    finally:
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 130
        tail.stdout.close()


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    written(tmp_path, *[b'{"record":"outcome","call":"c"}'] * 5000)
    command = f"{sys.executable} -m gateway.cli ledger tail --path {tmp_path} -n 5000 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_what_a_terminal_cannot_show_is_shown_as_its_number(tmp_path: Path) -> None:
    written(tmp_path, '{"record":"x","what":"größe"}'.encode())
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "ledger", "tail", "--path", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.endswith("what=gr\\xf6\\xdfe\n")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["a folder", "a pipe", "a link to itself"],
)
def test_what_is_no_ledger_is_one_sentence(
    make: Callable[[Path], None], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / FILE_NAME)
    assert main(["ledger", "tail", "--path", str(tmp_path)]) == UNUSABLE
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [("check", "--config"), ("serve", "--config"), ("ledger", "tail", "--config"), ("ledger", "tail", "--path")],
    ids=" ".join,
)
def test_too_long_a_name_is_one_sentence(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "x" * 5000]) == UNUSABLE
    said = capsys.readouterr().err
    assert said.endswith(": File name too long.\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", [("check",), ("serve",), ("ledger", "tail"), ("policy", "test")], ids=" ".join)
def test_a_pipe_as_configuration_is_refused_and_not_waited_for(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "w.yaml")
    assert main([*command, "--config", str(tmp_path / "w.yaml")]) == MISTAKEN
    said = capsys.readouterr()
    assert "not a regular file" in said.out + said.err


def test_check_names_a_host_that_cannot_exist(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("127.0.0.1:9", f"{'a' * 70}.example"))
    assert main(["check", "--config", str(config)]) == MISTAKEN
    assert "targets[0].url" in capsys.readouterr().out
