"""The policy commands: what authors and operators are shown, and the exit codes that scripts rely on."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from config.load import load
from gateway.admin import admin_app
from gateway.app import App
from gateway.cli import main
from gateway.policy_commands import NOT_FOUND
from gateway.terminal import MISTAKEN, OK, UNUSABLE
from tests.support.door import door
from tests.support.opa import OPA, needs_opa

RULES = """package weighbridge

import rego.v1

decision := {"decision": "DENY", "explanation": why} if {
	why
} else := {"decision": "ALLOW"}

why := "Secrets stay here." if "secret" in texts

why := "Ask for less." if input.call.arguments.max_tokens > limit

limit := 100

texts contains message.content if some message in input.call.arguments.messages
"""
TESTS = """package weighbridge_test

import rego.v1

asking(tokens) := {"call": {"arguments": {"max_tokens": tokens}}}

test_less_is_allowed if data.weighbridge.decision.decision == "ALLOW" with input as asking(100)

test_more_is_denied if data.weighbridge.decision.decision == "DENY" with input as asking(101)

todo_test_secrets if false
"""
DANA = {"authorization": "Bearer danas-own-token"}
Said = Callable[[], tuple[str, str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "main.rego").write_text(RULES)
    (tmp_path / "rules" / "main_test.rego").write_text(TESTS)
    path = tmp_path / "w.yaml"
    settings = {
        "admin": {"people": [{"name": "dana", "token": "danas-own-token", "roles": ["admin"]}]},
        "state": f"sqlite:///{tmp_path}/state.db",
        "ledger": {"path": str(tmp_path / "ledger"), "mask": ["/messages/*/content"]},
        "policy": {"paths": ["rules"]},
        "agents": [{"name": "support-bot", "tenant": "acme", "key": "support-bots-own-key"}],
        "targets": [{"name": "t", "kind": "openai", "url": "http://127.0.0.1:9/v1"}],
        "routes": [{"name": "r", "models": ["*"], "arms": [{"target": "t"}]}],
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def both() -> tuple[str, str]:
        out, err = capsys.readouterr()
        return out, err

    return both


def asked(config: Path, **arguments: Any) -> str:
    file = config.parent / "input.json"
    file.write_text(json.dumps({"call": {"kind": "llm", "arguments": arguments}}))
    return str(file)


# --- eval ------------------------------------------------------------------------------------------------------------


def test_eval_shows_the_rules_that_decided_with_file_and_line(config: Path, said: Said) -> None:
    assert main(["policy", "eval", asked(config, max_tokens=500), "--config", str(config)]) == OK
    out, _ = said()
    rules = config.parent / "rules" / "main.rego"
    assert "decision            DENY" in out
    assert f"weighbridge.decision  ({rules}:5)" in out
    assert f"    weighbridge.why  ({rules}:11)" in out
    assert f"      weighbridge.limit = 100  ({rules}:13)" in out


def test_eval_tells_scripts_the_same(config: Path, said: Said) -> None:
    assert main(["policy", "eval", asked(config, max_tokens=5), "--config", str(config), "--json"]) == OK
    told = json.loads(said()[0])
    assert told["decision"] == "ALLOW"
    assert [(rule["name"], rule["lines"], rule["holds"]) for rule in told["rules"]] == [
        ("data.weighbridge.decision", [7], True)
    ]
    assert "input.call.arguments.max_tokens" in told["reads"]
    assert told["unstable"] == []
    assert told["input"]["call"]["arguments"] == {"max_tokens": 5}


def test_eval_shows_an_input_as_it_would_be_recorded(config: Path, said: Said) -> None:
    file = asked(config, messages=[{"content": "hunter2"}])
    for options in ([], ["--json"]):
        assert main(["policy", "eval", file, "--config", str(config), *options]) == OK
        out, err = said()
        assert "***" in out
        assert "hunter2" not in out + err


CAPPING = """package weighbridge

import rego.v1

decision := {"decision": "DENY"} if dear else := {"decision": "ALLOW"}

dear if {
	cap := data.caps[input.agent.name]
	some budget in input.budgets
	budget.posted_usd > cap
}
"""


@pytest.mark.parametrize(
    ("document", "reused"),
    [
        ({"agent": {"name": "a"}, "budgets": [{"posted_usd": 1}]}, False),
        ({"agent": {"name": "a"}, "call": {"kind": "llm", "estimated_cost_usd": 1}}, False),
        ({"agent": {"name": "a"}}, True),
        ({"agent": {"name": "b"}, "budgets": [{"posted_usd": 1}]}, True),
        ({"budgets": [{"posted_usd": 1}]}, True),
    ],
)
def test_eval_says_whether_the_money_of_a_call_keeps_its_decision_from_being_reused(
    tmp_path: Path, said: Said, document: dict[str, Any], reused: bool
) -> None:
    (tmp_path / "main.rego").write_text(CAPPING)
    (tmp_path / "caps.yaml").write_text("caps: {a: 5}\n")
    (tmp_path / "input.json").write_text(json.dumps({"call": {"kind": "llm"}, **document}))
    assert main(["policy", "eval", str(tmp_path / "input.json"), "--policy", str(tmp_path)]) == OK
    assert ("not reused" in said()[0]) is not reused
    assert main(["policy", "explain", "--policy", str(tmp_path)]) == OK
    assert "decisions are reused for agents without `data.caps[input.agent.name]`, and for calls without" in said()[0]


def test_eval_of_a_policy_that_does_not_decide_says_so(config: Path, said: Said) -> None:
    rules = config.parent / "odd.rego"
    rules.write_text('package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW"} if input.never\n')
    assert main(["policy", "eval", asked(config), "--policy", str(rules)]) == MISTAKEN
    out, err = said()
    assert "the decision is undefined" in err
    assert f"weighbridge.decision does not hold  ({rules}:5)" in out


def test_eval_takes_paths_as_they_are_typed(config: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    assert main(["policy", "eval", asked(config), "--policy", "rules"]) == OK
    assert "weighbridge.decision  (rules/main.rego:7)" in said()[0].replace(' = {"decision":"ALLOW"}', "")


# --- test ------------------------------------------------------------------------------------------------------------


def test_test_tells_what_it_ran_and_what_it_skipped(config: Path, said: Said) -> None:
    assert main(["policy", "test", "--config", str(config), "--engine", "embedded", "-v"]) == OK
    out, _ = said()
    assert "data.weighbridge_test.test_less_is_allowed: PASS" in out
    assert "data.weighbridge_test.todo_test_secrets: SKIPPED" in out
    assert out.splitlines()[-2:] == ["PASS: 2/3", "SKIPPED: 1/3"]


def test_test_moves_no_cursor_whatever_files_and_values_are_called(tmp_path: Path, said: Said) -> None:
    (tmp_path / "p.rego").write_text(RULES)
    text = 'package t_test\n\ntest_it if 1 + input.x == 2 with input as {"x": "\\u001b[31m\\u202e"}\n'
    (tmp_path / "a\x1b[31m_test.rego").write_text(text)
    main(["policy", "test", str(tmp_path), "--engine", "embedded", "--coverage"])
    out = said()[0]
    assert "test_it" in out
    assert all(line.isprintable() for line in out.split("\n"))


def test_test_runs_only_what_is_asked_for(config: Path, said: Said) -> None:
    arguments = ["policy", "test", "--config", str(config), "--engine", "embedded"]
    assert main([*arguments, "--run", "more_is"]) == OK
    assert "PASS: 1/1" in said()[0]
    assert main([*arguments, "-r", "nothing_like_it"]) == MISTAKEN
    with pytest.raises(SystemExit):
        main([*arguments, "-r", "("])


@pytest.mark.parametrize("options", [(), ("--engine", "embedded"), ("--format", "json")], ids=" ".join)
def test_test_that_finds_no_test_says_so(config: Path, said: Said, options: tuple[str, ...]) -> None:
    arguments = ["policy", "test", "--config", str(config), *options]
    assert main([*arguments, "-r", "nosuch"]) == MISTAKEN
    out, err = said()
    assert "No test matches 'nosuch'." in err
    assert "The same" not in out
    (config.parent / "rules" / "main_test.rego").unlink()
    assert main(arguments) == MISTAKEN
    assert "There are no tests" in said()[1]


def test_test_of_a_configuration_with_an_opa_server_asks_for_files(config: Path, said: Said) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["policy"] = {"engine": "opa", "opa": {"url": "http://127.0.0.1:9"}}
    config.write_text(yaml.safe_dump(settings))
    assert main(["policy", "test", "--config", str(config)]) == UNUSABLE
    assert "`policy.engine` is opa" in said()[1]


def test_test_shows_coverage_and_fails_below_a_threshold(config: Path, said: Said) -> None:
    arguments = ["policy", "test", "--config", str(config), "--engine", "embedded"]
    assert main([*arguments, "--coverage"]) == OK
    out, _ = said()
    assert f"%  {config.parent / 'rules' / 'main.rego'}" in out
    assert main([*arguments, "--threshold", "100"]) == OK
    said()
    assert main([*arguments, "--threshold", "99.9", "--run", "less_is"]) == MISTAKEN
    assert "Code coverage threshold not met: got " in said()[1]
    assert main([*arguments, "--coverage", "--format", "json"]) == OK
    told = json.loads(said()[0])
    (file,) = told["files"].values()
    assert {"covered", "not_covered", "covered_lines", "not_covered_lines", "coverage"} == set(file)


def test_test_tells_scripts_what_opa_would(config: Path, said: Said) -> None:
    assert main(["policy", "test", "--config", str(config), "--engine", "embedded", "--json"]) == OK
    told = json.loads(said()[0])
    assert [(each["package"], each["name"], each.get("skip", False)) for each in told] == [
        ("data.weighbridge_test", "test_less_is_allowed", False),
        ("data.weighbridge_test", "test_more_is_denied", False),
        ("data.weighbridge_test", "todo_test_secrets", True),
    ]


def test_test_on_opa_without_opa_is_unusable(
    config: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["policy", "test", "--config", str(config), "--engine", "both"]) == UNUSABLE
    assert "opa is not installed" in said()[1]
    assert main(["policy", "test", "--config", str(config)]) == OK


@needs_opa
def test_test_asks_opa_too_and_fails_where_it_does_not_agree(
    config: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OPA is not None
    monkeypatch.setenv("PATH", str(OPA.parent))
    assert main(["policy", "test", "--config", str(config)]) == OK
    assert f"The same on {OPA}." in said()[0]
    with (config.parent / "rules" / "main_test.rego").open("a") as file:
        file.write("\ntest_sums if 0.1 + 0.2 != 0.3\n")
    assert main(["policy", "test", "--config", str(config)]) == MISTAKEN
    assert "data.weighbridge_test.test_sums passes on the embedded engine and fails on opa." in said()[1]
    assert main(["policy", "test", "--config", str(config), "--engine", "embedded"]) == OK
    assert main(["policy", "test", "--config", str(config), "--engine", "opa"]) == MISTAKEN


# --- explain ---------------------------------------------------------------------------------------------------------


async def refused(config: Path) -> dict[str, str]:
    """The ids of calls to a gateway with this configuration, most of which it refuses, by what they are about."""
    made: dict[str, str] = {}
    app = App(config, load(config))
    async with app, door(app.pipeline) as port, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for name, changes, key in (
            ("greedy", {"max_tokens": 500}, "support-bots-own-key"),
            ("secret", {"messages": [{"role": "user", "content": "secret"}]}, "support-bots-own-key"),
            ("stranger", {}, "nobodys-key"),
        ):
            answer = await client.post(
                "/v1/chat/completions",
                json={"model": "m", "messages": [], **changes},
                headers={"authorization": f"Bearer {key}"},
            )
            made[name] = answer.headers["x-weighbridge-call"]
    return made


@pytest.fixture
async def calls(config: Path) -> dict[str, str]:
    return await refused(config)


async def explained(config: Path, call: str, *options: str) -> int:
    return await asyncio.to_thread(main, ["policy", "explain", call, "--config", str(config), *options])


async def test_explain_shows_a_refusal_as_it_was_and_why(config: Path, calls: dict[str, str], said: Said) -> None:
    assert await explained(config, calls["greedy"]) == OK
    out, _ = said()
    assert "ended with          policy_denied" in out
    assert "explanation         Ask for less." in out
    assert '"max_tokens": 500' in out
    assert "Decided again on the recorded input, the answer is the same. It stands on:" in out
    assert f"weighbridge.why  ({config.parent}/rules/main.rego:11)" in out
    assert await explained(config, calls["greedy"], "--json") == OK
    told = json.loads(said()[0])
    assert told["verdict"] == "same"
    assert told["recorded"] == {"decision": "DENY", "explanation": "Ask for less."}
    assert told["again"]["revision"] == told["revision"]
    assert [rule["name"] for rule in told["again"]["rules"]][:2] == [
        "data.weighbridge.decision",
        "data.weighbridge.why",
    ]


async def test_explain_does_not_pretend_where_something_was_masked(
    config: Path, calls: dict[str, str], said: Said
) -> None:
    assert await explained(config, calls["secret"]) == OK
    out, _ = said()
    assert "explanation         Secrets stay here." in out
    assert "not recorded        /input/call/arguments/messages/*/content" in out
    assert "What was masked or left out may be what the decision stood on" in out
    assert "secret" not in out.replace("Secrets", "")


@pytest.fixture
def masking_all(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["ledger"]["mask"] = ["/messages"]
    config.write_text(yaml.safe_dump(settings))


@pytest.mark.usefixtures("masking_all")
async def test_explain_says_why_nothing_came_of_what_was_masked(config: Path, said: Said) -> None:
    made = await refused(config)
    assert await explained(config, made["greedy"]) == OK
    out = said()[0]
    assert "main.rego:15: `some .. in collection` expects array/set/object)" in out
    assert "\n\n" not in out


async def test_explain_uses_the_policy_that_decided(config: Path, calls: dict[str, str], said: Said) -> None:
    rules = config.parent / "rules" / "main.rego"
    rules.write_text(rules.read_text().replace("limit := 100", "limit := 1000"))
    assert await explained(config, calls["greedy"], "--json") == OK
    told = json.loads(said()[0])
    assert (told["verdict"], told["note"]) == ("same", "")


async def test_explain_says_when_only_another_policy_is_left(config: Path, calls: dict[str, str], said: Said) -> None:
    for kept in (config.parent / "ledger" / "policies").iterdir():
        kept.unlink()
    rules = config.parent / "rules" / "main.rego"
    rules.write_text(rules.read_text().replace("limit := 100", "limit := 1000"))
    assert await explained(config, calls["greedy"]) == MISTAKEN
    out, _ = said()
    assert "The policy that decided is not kept any more; this is the one that there is now." in out
    assert "Decided again on the recorded input, the answer is another: ALLOW." in out


async def test_explain_of_a_ledger_alone_shows_what_was_recorded(
    config: Path, calls: dict[str, str], said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    alone = ["policy", "explain", calls["greedy"], "--ledger", "ledger"]
    assert await asyncio.to_thread(main, alone) == OK
    assert "the answer is the same" in said()[0]
    for kept in (config.parent / "ledger" / "policies").iterdir():
        kept.unlink()
    assert await asyncio.to_thread(main, alone) == OK
    out, _ = said()
    assert "Ask for less." in out
    assert "Name one with --policy or --config." in out


async def test_explain_of_a_call_that_no_policy_saw(config: Path, calls: dict[str, str], said: Said) -> None:
    assert await explained(config, calls["stranger"]) == OK
    out, _ = said()
    assert "unauthenticated" in out
    assert "No policy was asked" in out


async def test_explain_of_a_call_that_is_not_there(config: Path, calls: dict[str, str], said: Said) -> None:
    assert await explained(config, "01ABC") == NOT_FOUND
    assert "there is no call 01ABC here" in said()[1]


def test_explain_without_a_ledger_is_unusable(config: Path, said: Said) -> None:
    assert main(["policy", "explain", "01ABC", "--config", str(config)]) == UNUSABLE
    assert "No such file" in said()[1]


def test_explain_without_a_call_says_what_is_read(config: Path, said: Said) -> None:
    assert main(["policy", "explain", "--config", str(config)]) == OK
    out, _ = said()
    assert "input.call.arguments.max_tokens" in out
    assert main(["policy", "explain", "--policy", str(config.parent / "rules"), "--json"]) == OK
    assert set(json.loads(said()[0])["reads"]) >= {"llm", "tool"}


def test_what_is_not_recorded_is_listed_once(tmp_path: Path, config: Path, said: Said) -> None:
    twice = {"erased": ["/input/call/arguments/x"], "masked": ["/input/call/arguments/x"] * 2}
    record = {"record": "decision", "call": "C1", "result": {"decision": "DENY"}, "input": {}, **twice}
    (tmp_path / "calls.jsonl").write_text(json.dumps(record) + "\n")
    main(["policy", "explain", "C1", "--ledger", str(tmp_path), "--config", str(config)])
    assert said()[0].count("/input/call/arguments/x") == 1


SECRETIVE = """package weighbridge

import rego.v1

decision := {"decision": "DENY", "explanation": "Bearer one", "obligations": duties} if input.call.kind == "llm"

duties := {"headers": {"authorization": token}, "replace": {"/arguments/user": token}}

token := "Bearer two"
"""
WITHHOLDING = """package system.log

import rego.v1

mask contains {"op": "upsert", "path": "/result/explanation", "value": "(withheld)"}
"""


@pytest.mark.parametrize("has_mask", [True, False])
async def test_what_the_record_withholds_is_not_to_be_had_by_asking_again(
    config: Path, said: Said, has_mask: bool
) -> None:
    rules = config.parent / "rules"
    (rules / "main.rego").write_text(SECRETIVE)
    if has_mask:
        (rules / "mask.rego").write_text(WITHHOLDING)
    call = (await refused(config))["greedy"]
    everything = []
    async with App(config, load(config)) as app, door(admin_app(app)) as port:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=DANA) as client:
            told = (await client.get(f"/policy/explain/{call}")).json()
            everything.append(json.dumps(told))
    assert await explained(config, call, "--json") == OK
    everything.append(said()[0])
    assert await explained(config, call) == OK
    everything.append(said()[0])
    for text in everything:
        assert "Bearer two" not in text
        assert ("Bearer one" in text) is not has_mask
    for answer in (told, json.loads(everything[1])):
        assert answer["verdict"] == "same"
        assert answer["again"]["explanation"] == answer["recorded"]["explanation"]
        assert answer["again"]["obligations"] == answer["recorded"]["obligations"]
        assert answer["again"]["rules"][0]["name"] == "data.weighbridge.decision"
    assert "weighbridge.token  (" in everything[2]


async def test_what_the_policy_of_then_withheld_stays_withheld_under_another(config: Path, said: Said) -> None:
    rules = config.parent / "rules"
    (rules / "main.rego").write_text(SECRETIVE)
    (rules / "mask.rego").write_text(WITHHOLDING)
    call = (await refused(config))["greedy"]
    for kept in (config.parent / "ledger" / "policies").iterdir():
        kept.unlink()
    (rules / "mask.rego").unlink()
    for options in ([], ["--json"]):
        assert await explained(config, call, *options) == OK
        assert "Bearer" not in said()[0]


async def test_a_mask_that_fails_leaves_the_word_alone(config: Path, said: Said) -> None:
    rules = config.parent / "rules"
    (rules / "main.rego").write_text(SECRETIVE)
    call = (await refused(config))["greedy"]
    for kept in (config.parent / "ledger" / "policies").iterdir():
        kept.unlink()
    (rules / "mask.rego").write_text("package system.log\n\nmask := 1 / (count(input.result) - 3)\n")
    await explained(config, call, "--json")
    again = json.loads(said()[0])["again"]
    assert again["decision"] == "DENY"
    assert not again.keys() & {"explanation", "obligations"}


@pytest.mark.parametrize(
    ("obligations", "reason"),
    [('{"pray": true}', "pray"), ('{"route": "nowhere"}', "nowhere")],
    ids=["unknown", "no such route"],
)
async def test_explain_says_why_the_gateway_refused_what_the_policy_allows(
    config: Path, said: Said, obligations: str, reason: str
) -> None:
    text = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW", "obligations": %s}\n'
    (config.parent / "rules" / "main_test.rego").unlink()
    (config.parent / "rules" / "main.rego").write_text(text % obligations)
    call = (await refused(config))["greedy"]
    assert await explained(config, call) == OK
    out = said()[0]
    assert "ended with          policy_denied\nbecause             The policy allows this only with obligations" in out
    assert reason in out
    async with App(config, load(config)) as app, door(admin_app(app)) as port:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=DANA) as client:
            told = (await client.get(f"/policy/explain/{call}")).json()
    assert reason in told["reasons"][0]


CONFLICTING = """package weighbridge

import rego.v1

default decision := {"decision": "DENY"}

decision := {"decision": "ALLOW"} if input.call.arguments.max_tokens > 5

decision := {"decision": "DENY"} if input.call.arguments.max_tokens == 500
"""


async def test_explain_of_a_policy_that_failed_says_where_and_that_it_fails_again(config: Path, said: Said) -> None:
    rules = config.parent / "rules" / "main.rego"
    rules.write_text(CONFLICTING)
    call = (await refused(config))["greedy"]
    assert await explained(config, call) == OK
    out = said()[0]
    assert f"no decision         {rules}:9: rule conflicts with the rule at line 7\n" in out
    assert "it fails the same way" in out
    assert "need not be why" not in out
    assert out.count("conflicts") == 1
    assert "\n\n" not in out
    evaluation = ["policy", "eval", asked(config, max_tokens=500), "--config", str(config)]
    assert await asyncio.to_thread(main, evaluation) == MISTAKEN
    out, err = said()
    assert f"{rules}:9: rule conflicts with the rule at line 7" in out + err
    assert "-->" not in out + err


# --- the same over the admin API -------------------------------------------------------------------------------------


async def test_people_with_a_token_are_told_the_same_but_no_values(config: Path, calls: dict[str, str]) -> None:
    async with App(config, load(config)) as app, door(admin_app(app)) as port:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=DANA) as client:
            told = (await client.get(f"/policy/explain/{calls['greedy']}")).json()
            assert told["verdict"] == "same"
            assert told["code"] == "policy_denied"
            assert told["again"]["rules"][1] == {
                "name": "data.weighbridge.why",
                "file": str(config.parent / "rules" / "main.rego"),
                "lines": [11],
                "depth": 1,
                "holds": True,
            }
            masked = (await client.get(f"/policy/explain/{calls['secret']}")).json()
            assert masked["verdict"] == "cannot be told"
            assert masked["missing"] == ["/input/call/arguments/messages/*/content"]
            stranger = (await client.get(f"/policy/explain/{calls['stranger']}")).json()
            assert (stranger["again"], stranger["code"]) == (None, "unauthenticated")
            assert (await client.get("/policy/explain/01ABC")).status_code == 404

            again = (await client.post("/policy/evaluate", json=told["input"])).json()
            assert again["rules"] == told["again"]["rules"]
            assert "input.call.arguments.max_tokens" in again["reads"]
            everything = json.dumps([told, masked, again])
            assert "Secrets stay here." in everything
            assert '"secret"' not in everything
            assert "value" not in told["again"]["rules"][0]


@pytest.mark.parametrize("damage", [{"erased": None}, {"masked": 5}, {"erased": [1, {}], "masked": {"a": 1}}], ids=str)
def test_explain_of_a_damaged_record_shows_what_there_is(
    tmp_path: Path, config: Path, said: Said, damage: dict[str, Any]
) -> None:
    record = {"record": "decision", "call": "C1", "result": {"decision": "DENY"}, "input": {}, **damage}
    (tmp_path / "calls.jsonl").write_text(json.dumps(record) + "\n")
    main(["policy", "explain", "C1", "--ledger", str(tmp_path), "--config", str(config)])
    assert "DENY" in said()[0]
