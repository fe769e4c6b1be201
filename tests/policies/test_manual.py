"""What docs/policy.md shows is true: its policies and envelopes load, its tables name what there is."""

import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies import data
from policies.budgets import Balance, Budget, Mode, account
from policies.build import build
from policies.builtins import BOUNDED, FORBIDDEN
from policies.decision import Effect, parse
from policies.document import budgets_document
from policies.engine import Engine
from policies.log_mask import apply
from policies.log_mask import read as read_masks
from policies.money import nano
from policies.obligations import Obligations
from policies.prove import prove
from policies.reads import KINDS
from policies.sources import read
from policies.testing import test
from tests.policies.support import NOW, ROOT, SHIPPED, llm, sources
from tests.support.engines import engine_on
from tests.support.opa import needs_opa, opa_server

_TEXT = (ROOT / "docs" / "policy.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _TEXT, re.DOTALL | re.MULTILINE)


async def test_its_envelopes_are_accepted_by_the_shipped_policy() -> None:
    text = next(text for text in blocks("yaml") if text.startswith(("#", "envelopes:")))
    envelopes, problems = data.read("envelopes.yaml", text.encode())
    assert problems == []
    shipped = read([SHIPPED])
    await prove(sources(*(module.text for module in shipped.modules), data=envelopes), 20)


async def test_its_policy_is_proven_and_its_test_passes() -> None:
    *_, policy, _, tests = blocks("rego")
    report = await test(sources(policy, tests=(tests,)), 20)
    await prove(sources(policy), 20)
    assert report.passed, report.text()


def refund(arguments: dict[str, Any], **call: Any) -> bytes:
    agent = {"name": "worker", "tenant": "acme", "roles": [], "autonomy_tier": 1, "state": "active"}
    said = {"kind": "tool", "protocol": "mcp", "target": "crm", "operation": "refund", "arguments": arguments}
    return orjson.dumps({"agent": agent, "call": {**said, **call}})


async def test_the_shipped_policy_and_a_rule_of_ones_own_decide_together_as_it_says(tmp_path: Path) -> None:
    (script,) = (text for text in blocks("sh") if "my-policy" in text)
    (tmp_path / "policies").symlink_to(ROOT / "policies")
    subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True)  # noqa: ASYNC221  # our own words
    *_, mine, _ = blocks("rego")
    (tmp_path / "my-policy" / "mine.rego").write_text(mine)
    granted: dict[str, Any] = {"envelopes": {"worker": {"allowed_tools": {"crm": {"operations": {"refund": {}}}}}}}
    (tmp_path / "envelopes.json").write_bytes(orjson.dumps(granted))
    together = read([tmp_path / "my-policy", tmp_path / "envelopes.json"])
    report = await test(together, 20)
    assert report.passed, report.text()
    proof = await prove(together, 20)
    engine, shipped = await build(together), await build(read([SHIPPED]))
    models, of_shipped = proof.reads.of("llm"), shipped.reads.of("llm")
    assert {each.path for each in models.reads} == {each.path for each in of_shipped.reads}
    assert models.unstable == of_shipped.unstable

    async def said(document: bytes) -> str:
        return (await engine.evaluate(document, NOW)).effect.name

    assert await said(refund({"amount": 100})) == "ALLOW"
    for arguments in ({"amount": 101}, {"amount": "1"}, {}):
        assert await said(refund(arguments)) == "NEEDS_APPROVAL"
    approved = {**orjson.loads(refund({"amount": 101})), "approval": {"id": "1", "roles": ["finance"]}}
    assert await said(orjson.dumps(approved)) == "ALLOW"
    assert await said(refund({"amount": 101}, target="wiki")) == "DENY"
    assert await said(refund({"method": "tools/list", "name": "refund"}, phase="list", operation="list")) == "ALLOW"
    result = {"structuredContent": {"card": "4111"}}
    told = await engine.evaluate(refund({}, operation="customer", phase="result", result=result), NOW)
    assert [edit.pointer for edit in told.obligations.redact] == ["/result/structuredContent/card"]
    assert not (await engine.evaluate(refund({}, phase="result", result=result), NOW)).obligations


async def test_its_obligations_and_masks_do_what_it_says() -> None:
    _, obliging, masking, *_ = blocks("rego")
    await prove(sources(obliging, masking), 20)
    engine = await build(sources(obliging, masking))
    low, high = engine.answer(llm(tier=1), NOW), engine.answer(llm(tier=3), NOW)
    assert (low.obligations.max_tokens, low.obligations.headers) == (512, (("x-team", "acme"),))
    assert not high.obligations
    event: dict[str, Any] = {
        "input": {"agent": {"tenant": "clinic"}, "call": {"arguments": {"user": "u"}}},
        "result": {},
    }
    apply(read_masks(await engine.mask(orjson.dumps(event))), event)
    assert event["input"]["call"] == {"arguments": {}}
    assert event["result"] == {"explanation": "(withheld)"}


async def asked_for_approval(engine: Engine) -> None:
    """What the chapter on money says of its example, on this engine."""
    whole = orjson.loads(blocks("json")[1])
    decision = await engine.evaluate(orjson.dumps(whole), NOW)
    assert decision.effect is Effect.NEEDS_APPROVAL
    assert decision.required_approvals == ("finance",)
    assert decision.explanation.startswith("acme has used 80 per cent of its budget")
    approved = {**whole, "approval": {"id": "01A", "roles": ["finance"], "approvers": ["dana"]}}
    tenants, own = whole["budgets"]
    for calm in (
        approved,
        {**whole, "budgets": [own]},
        {**whole, "budgets": [{**tenants, "mode": "shadow"}, own]},
        {**whole, "budgets": [{**tenants, "used_percent": 79}, own]},
        {name: value for name, value in whole.items() if name != "budgets"},
    ):
        assert (await engine.evaluate(orjson.dumps(calm), NOW)).effect is Effect.ALLOW


async def test_its_policy_asks_people_before_a_budget_is_used_up_and_its_decisions_are_reused() -> None:
    policy = sources(blocks("rego")[0])
    proof = await prove(policy, 20)
    assert {(proof.reads.of(kind).unstable, proof.reads.of(kind).money) for kind in KINDS} == {((), ())}
    await asked_for_approval(await build(policy))


@needs_opa
async def test_an_opa_server_asks_them_too(tmp_path: Path) -> None:
    (tmp_path / "policy.rego").write_text(blocks("rego")[0])
    with opa_server(tmp_path / "policy.rego") as server:
        engine = engine_on(server)
        await engine.begin()
        await asked_for_approval(engine)
        await engine.retire()


def test_its_budgets_are_told_as_the_gateway_tells_them() -> None:
    shown = orjson.loads(blocks("json")[1])["budgets"]
    balances = [
        Balance(account(Budget(each["node"], each["window"], nano(each["limit_usd"]), Mode(each["mode"])), NOW, None),
                *(nano(each[name]) for name in ("limit_usd", "posted_usd", "pending_usd")))
        for each in shown
    ]  # fmt: skip
    told = orjson.loads(budgets_document(balances))
    assert told == shown
    assert [list(each) for each in told] == [list(each) for each in shown]


async def test_it_says_of_the_shipped_policy_when_decisions_are_reused() -> None:
    reads = (await build(read([SHIPPED]))).reads
    told = {line for line in reads.text().splitlines() if line.startswith("  decisions are")}
    assert len(told) == 1
    assert told.pop() in _TEXT


@pytest.mark.parametrize("name", [field.name for field in fields(Obligations) if field.name != "unknown"])
def test_every_obligation_is_explained(name: str) -> None:
    assert f'| `"{name}": ' in _TEXT


def test_its_answer_is_a_decision_and_its_input_is_json() -> None:
    document, _, answer = blocks("json")
    assert set(orjson.loads(document)) == {"agent", "call", "time"}
    assert parse(answer, "").risk_level == "high"


@pytest.mark.parametrize("name", [*FORBIDDEN, *(name for name in BOUNDED if name != "strings.count")])
def test_every_builtin_that_is_refused_or_bounded_is_named(name: str) -> None:
    assert f"`{name}`" in _TEXT


def test_every_field_of_an_envelope_is_explained() -> None:
    schema = (SHIPPED / "envelopes.rego").read_text()
    names = re.findall(r'^\t"(\w+)": "\w+",$', schema, re.MULTILINE)
    assert len(names) >= 17
    assert [name for name in names if f"`{name}`" not in _TEXT] == []


async def test_the_number_of_tests_it_shows_is_the_number_there_is() -> None:
    report = await test(read([SHIPPED]), 20)
    assert report.text() in _TEXT
