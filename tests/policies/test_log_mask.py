"""`data.system.log.mask`: what it takes out of an event, and what is no mask."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.build import build
from policies.log_mask import apply, follow, read
from tests.policies.support import rego, sources
from tests.support.engines import on_opa
from tests.support.opa import needs_opa


def event() -> dict[str, Any]:
    return {"input": {"a": {"b": [1, 2, 3], "c d": 4}, "s": "x"}, "result": {"decision": "ALLOW"}, "masked": ["/x"]}


@pytest.mark.parametrize(
    ("mask", "path", "left", "erased", "masked"),
    [
        ("/input/a/b", "input.a", {"c d": 4}, ["/input/a/b"], []),
        ("/input/a/b/1", "input.a.b", [1, 3], ["/input/a/b/1"], []),
        ("/input/a/c%20d", "input.a", {"b": [1, 2, 3]}, ["/input/a/c%20d"], []),
        ("/input/a/b/7", "input.a.b", [1, 2, 3], [], []),
        ("/input/a/nothing/here", "input.a.b", [1, 2, 3], [], []),
        ("/input/s/x", "input.s", "x", [], []),
        ("/result/decision", "result", {}, ["/result/decision"], []),
        ("/nd_builtin_cache/x", "input.s", "x", [], []),
        ({"op": "remove", "path": "/input/s"}, "input.a.b", [1, 2, 3], ["/input/s"], []),
        ({"op": "upsert", "path": "/input/s", "value": None}, "input.s", None, [], ["/input/s"]),
        ({"op": "upsert", "path": "/input/a/b/0", "value": "*"}, "input.a.b", ["*", 2, 3], [], ["/input/a/b/0"]),
        ({"op": "upsert", "path": "/input/n/m", "value": 1}, "input.n", {"m": 1}, [], ["/input/n/m"]),
        ({"op": "upsert", "path": "/input/s/x", "value": 1}, "input.s", "x", [], []),
        ({"op": "upsert", "path": "/input", "value": {"q": 1}}, "input", {"q": 1}, [], ["/input"]),
    ],
)
def test_a_mask_removes_or_overwrites_what_it_points_at(
    mask: Any, path: str, left: Any, erased: list[str], masked: list[str]
) -> None:
    told = event()
    apply(read([mask]), told)
    found: Any = told
    for name in path.split("."):
        found = found[name]
    assert found == left
    assert told.get("erased", []) == erased
    assert told["masked"] == ["/x", *masked]


def test_a_whole_part_can_be_removed() -> None:
    told = event()
    apply(read(["/input", "/input/a"]), told)
    assert "input" not in told
    assert told["erased"] == ["/input"]


@pytest.mark.parametrize(
    "value",
    [
        "/input",
        {"/input": 1},
        [5],
        ["input/a"],
        [""],
        ["/labels/id"],
        [{"op": "replace", "path": "/input/a"}],
        [{"path": "/input/a"}],
        [{"op": "remove"}],
    ],
)
def test_what_is_no_mask_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match="mask"):
        read(value)


def test_undefined_masks_nothing() -> None:
    assert read(None) == []


async def test_the_embedded_engine_evaluates_the_rule_where_there_is_one() -> None:
    decides = rego('decision := {"decision": "ALLOW"}')
    plain = await build(sources(decides))
    assert not plain.masks
    masking = await build(
        sources(decides, rego('mask contains "/input/s" if input.input.call.kind == "llm"', "system.log"))
    )
    assert masking.masks
    assert await masking.mask(orjson.dumps({"input": {"call": {"kind": "llm"}}})) == ["/input/s"]
    assert await masking.mask(b"{}") == []


@needs_opa
@pytest.mark.parametrize("masking", [True, False])
def test_an_opa_server_is_asked_only_where_it_has_such_a_package(masking: bool, tmp_path: Path) -> None:
    (tmp_path / "main.rego").write_text(rego('decision := {"decision": "ALLOW"}'))
    if masking:
        text = rego('mask contains "/input/s" if input.input.call.kind == "llm"', "system.log")
        (tmp_path / "mask.rego").write_text(text)
    with on_opa(tmp_path) as it:
        assert it.engine.masks == masking
        said = it.runner.run(it.engine.mask(b'{"input":{"call":{"kind":"llm"}}}'))
        assert said == (["/input/s"] if masking else None)


def test_what_a_record_hides_of_a_result_is_hidden_of_another_one() -> None:
    record = {
        "result": {"decision": "DENY", "explanation": "(withheld)", "approvals": ["b"]},
        "erased": ["/result/risk_level", "/result/approvals/0", "/input/call", 5],
        "masked": ["/result/explanation", "/result/obligations/headers/x"],
    }
    event: dict[str, Any] = {
        "result": {"decision": "ALLOW", "explanation": "secret", "risk_level": "high", "approvals": ["b"]},
        "input": {"call": 1},
        "erased": ["/result/approvals/0"],
    }
    follow(record, event)
    assert event["result"] == {"decision": "ALLOW", "explanation": "(withheld)", "approvals": ["b"]}
    assert event["input"] == {"call": 1}


def test_a_record_that_hides_the_whole_result_leaves_nothing_of_another_one() -> None:
    event: dict[str, Any] = {"result": {"decision": "ALLOW"}}
    follow({"erased": ["/result"]}, event)
    assert event == {}
    event = {"result": {"decision": "ALLOW"}}
    follow({"masked": ["/result"], "result": "(withheld)"}, event)
    assert event == {"result": "(withheld)"}
