"""What docs/policy-library.md shows is true: each module stops what it says, in these words, on both engines."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies import data
from policies.build import build
from policies.decision import parse
from policies.embedded import EmbeddedEngine
from policies.errors import PolicyError
from policies.prove import prove
from policies.sources import Module, Sources, read
from tests.policies.support import NOW, ROOT, SHIPPED, rego
from tests.support.opa import OPA, needs_opa, opa_server

LIBRARY = SHIPPED / "library"
_TEXT = (ROOT / "docs" / "policy-library.md").read_text()
_SECTIONS = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", _TEXT, re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """One section: the settings, an input, and the answer of the module."""

    module: str
    settings: dict[str, Any]
    document: bytes
    answer: dict[str, Any]

    @property
    def rule(self) -> str:
        return f"data.library.{self.module}.{'deny' if self.answer['decision'] == 'DENY' else 'hold'}"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def example(module: str, text: str) -> Example:
    (settings,) = blocks(text, "yaml")
    document, answer = blocks(text, "json")
    value, problems = data.read("settings.yaml", settings.encode())
    assert problems == []
    return Example(module, value, orjson.dumps(orjson.loads(document)), orjson.loads(answer))


EXAMPLES = [example(name, text) for name, text in _SECTIONS if name.islower()]
SETTINGS = {key: value for each in EXAMPLES for key, value in each.settings["library_settings"].items()}
COMPLETE = next(text for text in blocks(_TEXT, "rego"))


def beside(policy: str, values: dict[str, Any]) -> Sources:
    library = read([LIBRARY])
    return Sources((Module("mine.rego", policy), *library.modules), (), values, "0" * 64, ())


@pytest.fixture
async def complete() -> EmbeddedEngine:
    return await build(beside(COMPLETE, {"library_settings": SETTINGS}))


def test_every_module_has_a_section() -> None:
    support = {"approval", "problems", "settings"}
    modules = {path.stem for path in LIBRARY.glob("*.rego") if not path.stem.endswith("_test")} - support
    assert {each.module for each in EXAMPLES} == modules
    assert all(f"[`{module}`](#{module})" in _TEXT for module in modules)


@pytest.mark.parametrize("shown", EXAMPLES, ids=lambda each: each.module)
async def test_a_module_stops_what_its_section_shows(shown: Example) -> None:
    engine = await build(beside(rego(f"decision := {shown.rule}"), shown.settings))
    decision = await engine.evaluate(shown.document, NOW)
    assert orjson.loads(orjson.dumps(decision.facts())) == shown.answer


@needs_opa
def test_an_opa_server_stops_the_same(tmp_path: Path) -> None:
    modules = [path for path in LIBRARY.glob("*.rego") if not path.stem.endswith("_test")]
    mine = tmp_path / "mine.rego"
    mine.write_text(COMPLETE)
    with opa_server(mine, *modules) as opa:
        opa.put_data({"library_settings": SETTINGS})
        for shown in EXAMPLES:
            body = b'{"input":%b}' % shown.document
            told = opa.call("POST", f"/v1/data/{shown.rule.removeprefix('data.').replace('.', '/')}", body)
            assert told["result"] == shown.answer, shown.module
            if shown.module != "working_hours":
                told = opa.call("POST", "/v1/data/weighbridge/decision?strict-builtin-errors=true", body)
                assert told["result"] == shown.answer, shown.module


async def test_the_complete_policy_is_proven_and_stops_what_its_modules_stop(complete: EmbeddedEngine) -> None:
    await prove(beside(COMPLETE, {"library_settings": SETTINGS}), 20)
    for shown in EXAMPLES:
        if shown.module != "working_hours":
            decision = await complete.evaluate(shown.document, NOW)
            assert orjson.loads(orjson.dumps(decision.facts())) == shown.answer


async def test_the_complete_policy_allows_what_no_module_stops(complete: EmbeddedEngine) -> None:
    agent = {"name": "support-bot", "tenant": "acme", "roles": [], "state": "active"}
    llm = {"agent": agent, "call": {"kind": "llm", "target": "gpt-4o-mini", "operation": "chat", "arguments": {}}}
    tool = {"agent": agent, "call": {"kind": "tool", "target": "crm", "operation": "list", "arguments": {}}}
    for document in (llm, tool):
        assert (await complete.evaluate(orjson.dumps(document), NOW)).effect == "ALLOW"
        paused = {**document, "agent": {**agent, "state": "paused"}}
        assert (await complete.evaluate(orjson.dumps(paused), NOW)).effect == "DENY"


async def test_one_approval_does_for_every_hold_of_the_complete_policy() -> None:
    chaining = {**SETTINGS["chaining"], "approvals": ["security"]}
    engine = await build(beside(COMPLETE, {"library_settings": {**SETTINGS, "chaining": chaining}}))
    shown = {each.module: orjson.loads(each.document) for each in EXAMPLES}
    document = {**shown["chaining"], "budgets": shown["spend"]["budgets"]}
    decision = await engine.evaluate(orjson.dumps(document), NOW)
    assert decision.required_approvals == ("finance", "security")
    for roles, effect in ((["finance"], "NEEDS_APPROVAL"), (["security", "finance"], "ALLOW")):
        document["approval"] = {"id": "01J", "roles": roles}
        assert (await engine.evaluate(orjson.dumps(document), NOW)).effect == effect


async def test_decisions_are_reused_unless_the_time_is_asked(complete: EmbeddedEngine) -> None:
    assert [complete.reads.of(kind).unstable for kind in ("llm", "tool")] == [(), ()]
    assert [complete.reads.of(kind).money for kind in ("llm", "tool")] == [(), ()]
    by_the_clock = await build(beside(rego("decision := data.library.working_hours.deny"), {}))
    assert by_the_clock.reads.of("tool").unstable


async def test_the_library_beside_the_shipped_policy_changes_no_decision_and_reads_nothing_more() -> None:
    with_library = read([SHIPPED])
    without = tuple(module for module in with_library.modules if "/library/" not in module.name)
    assert len(without) == 2
    beside_it, alone = [
        await build(Sources(modules, (), {}, "0" * 64, ())) for modules in (with_library.modules, without)
    ]
    assert beside_it.reads == alone.reads


@pytest.mark.parametrize("settings", [{"spend": {"tresholds": []}}, {"egress": {"hosts": ["https://a.example"]}}])
async def test_settings_that_are_misspelt_refuse_the_policy(settings: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"library_settings\.(spend|egress)"):
        await prove(beside(COMPLETE, {"library_settings": settings}), 20)


async def test_a_misspelt_setting_is_told_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "p.rego").write_text(rego('decision := {"decision": "DENY"}'))
    (tmp_path / "library.yaml").write_text("library_settings: {models: {tennants: {}}, spend: 5}\n")
    with pytest.raises(PolicyError) as caught:
        await prove(read([tmp_path, LIBRARY]), 20)
    file = tmp_path / "library.yaml"
    assert [str(each) for each in caught.value.problems] == [
        f"{file}: library_settings.models.tennants: there is no such field; there are roles, tenants. "
        "Correct the data.",
        f"{file}: library_settings.spend: is not an object. Correct the data.",
    ]


def test_answers_are_decisions() -> None:
    for shown in EXAMPLES:
        assert parse(orjson.dumps(shown.answer), "").explanation


@needs_opa
@pytest.mark.parametrize("command", [("check", "--strict"), ("fmt", "--list", "--fail")], ids=lambda each: each[0])
def test_opa_finds_nothing_to_say_about_what_ships(command: tuple[str, ...]) -> None:
    assert OPA is not None
    done = subprocess.run([OPA, *command, SHIPPED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
