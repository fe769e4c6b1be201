"""What docs/policy.md shows is true: its policies and envelopes load, its tables name what there is."""

import re
from dataclasses import fields
from typing import Any

import orjson
import pytest

from policies import data
from policies.build import build
from policies.builtins import BOUNDED, FORBIDDEN
from policies.decision import parse
from policies.log_mask import apply
from policies.log_mask import read as read_masks
from policies.obligations import Obligations
from policies.prove import prove
from policies.sources import read
from policies.testing import test
from tests.policies.support import NOW, ROOT, SHIPPED, llm, sources

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
    _, _, policy, tests = blocks("rego")
    report = await test(sources(policy, tests=(tests,)), 20)
    await prove(sources(policy), 20)
    assert report.passed, report.text()


async def test_its_obligations_and_masks_do_what_it_says() -> None:
    obliging, masking, *_ = blocks("rego")
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


@pytest.mark.parametrize("name", [field.name for field in fields(Obligations) if field.name != "unknown"])
def test_every_obligation_is_explained(name: str) -> None:
    assert f'| `"{name}": ' in _TEXT


def test_its_answer_is_a_decision_and_its_input_is_json() -> None:
    document, answer = blocks("json")
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
