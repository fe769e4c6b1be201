"""Tool calls of MCP as they are measured: what counts as a right answer, and what is asked."""

import json

import pytest

from benchmarks import mcp
from benchmarks.scenarios import COUNT


def result(text: str, **more: object) -> bytes:
    return json.dumps(
        {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": text}], **more}}
    ).encode()


@pytest.mark.parametrize("name", mcp.SCENARIOS)
def test_a_call_has_a_kilobyte_and_a_number_of_its_own(name: str) -> None:
    body = mcp.SCENARIOS[name].body
    assert len(body) == 1024
    assert body.count(COUNT.encode()) == (2 if name == "new" else 1), (
        "in its id, and in arguments that are new each time"
    )
    assert json.loads(body)["params"]["name"] == mcp.TOOL["name"]


@pytest.mark.parametrize("frame", [b"%s", b"event: message\r\ndata: %s\r\n\r\n"], ids=["JSON", "an event"])
def test_an_answer_is_right_when_it_says_what_the_upstream_said(frame: bytes) -> None:
    scenario = mcp.SCENARIOS["legacy"]
    assert scenario.mistake(200, frame % result(mcp.ANSWER, isError=False)) == ""
    assert scenario.mistake(200, frame % result("else")) == "the result's text is not what the upstream sent"
    assert scenario.mistake(200, frame % result("no", isError=True)) == "the tool failed: no"
    assert scenario.mistake(200, frame % b"{}").startswith("not a tool's result")
    assert scenario.mistake(404, b"nothing").startswith("status 404")


def test_what_arrives_is_the_tool_by_its_own_name_with_the_arguments_that_were_sent() -> None:
    asked = mcp.asked_of("contextforge", mcp.SCENARIOS["legacy"])
    assert json.loads(asked.body)["params"]["name"] == "catalogue-look-up"
    assert asked.arrived(mcp.SCENARIOS["legacy"].body) == ""
    assert asked.arrived(asked.body) == "the upstream received another call than was sent"
    assert asked.arrived(b"") == "the upstream received something that is no call"
