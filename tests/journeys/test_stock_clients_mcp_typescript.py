"""The official TypeScript MCP clients, whose URL is the gateway's: both generations of them, in both eras.

Each goes through everything once, in one process (`tests/support/node/journey.mjs`); the tests look at what each step
has come to. The clients know nothing of a gateway: they have its URL, and its key among their headers.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.support import node
from tests.support.everything import everything
from tests.support.process import Gateway, serving

pytestmark = pytest.mark.skipif(node.NODE is None, reason="Node 22 and MCP clients are not installed; see make node")

AGENT_KEY = "typist-77ab20"
POLICY = """
package weighbridge

default decision := {"decision": "DENY", "explanation": "Nobody adds numbers here."}

decision := {"decision": "ALLOW"} if input.call.operation != "add"
"""
CLIENTS = {"v2 auto": "modern", "v2 legacy": "legacy", "v1": "legacy"}
"""Client and how it negotiates -> the era in which it then speaks."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("typescript")
    policy = folder / "no-sums.rego"
    policy.write_text(POLICY, encoding="utf-8")
    with everything(folder / "everything.log") as url:
        config: dict[str, Any] = {
            "ledger": {"path": "ledger"},
            "policy": {"paths": [str(policy)]},
            "agents": [{"name": "typist", "key": AGENT_KEY}],
            "tools": [{"name": "everything", "kind": "mcp", "url": url}],
        }
        with serving(config, folder) as gateway:
            yield gateway


class Journey:
    """What each step of one client's journey has come to."""

    def __init__(self, client: str, steps: Mapping[str, Any]) -> None:
        self.client = client
        self.era = CLIENTS[client]
        self.steps = steps

    def of(self, step: str) -> Any:
        found = self.steps.get(step, {"error": f"never came to it: {self.steps['connected']}"})
        assert "error" not in found, f"{self.client}: {step}: {found}"
        return found.get("value")


@pytest.fixture(scope="module", params=CLIENTS)
def journey(gateway: Gateway, request: pytest.FixtureRequest) -> Journey:
    done = node.run(node.SCRIPTS / "journey.mjs", request.param, f"{gateway.url}/mcp/everything", AGENT_KEY)
    assert done.stdout.startswith("{"), f"{request.param} ended with {done.returncode}: {done.stderr}"
    return Journey(request.param, json.loads(done.stdout))


@pytest.fixture
def modern(journey: Journey) -> bool:
    return journey.era == "modern"


def test_it_connects_in_its_own_era(journey: Journey, modern: bool) -> None:
    assert journey.of("connect") == {
        "era": journey.era,
        "version": "2026-07-28" if modern else "2025-11-25",
        "server": "everything",
    }


def test_it_is_shown_what_it_may_use_and_nothing_else(journey: Journey) -> None:
    lists = journey.of("lists")
    assert {"echo", "test_simple_text", "linger"} <= set(lists["tools"])
    assert "add" not in lists["tools"], "the policy never allows it"
    assert set(lists["resources"]) == {"test://static-text", "test://static-binary", "test://watched-resource"}
    assert lists["templates"] == ["test://template/{id}/data"]
    assert "test_prompt_with_arguments" in lists["prompts"]


def test_a_call_is_answered_with_content_of_every_kind(journey: Journey) -> None:
    assert journey.of("call") == {"echo": "grüezi", "mixed": "Multiple content types test: image resource"}


def test_calls_at_the_same_time_get_each_their_own_answer(journey: Journey) -> None:
    assert journey.of("many") == [str(number) for number in range(20)]


def test_a_tool_that_fails_says_so(journey: Journey) -> None:
    assert journey.of("failure") == {"isError": True, "said": "Error executing tool test_error_handling"}


def test_a_refusal_is_a_result_that_a_model_can_read(journey: Journey) -> None:
    refused = journey.of("refusal")
    assert refused["isError"] is True
    assert "Nobody adds numbers here." in refused["said"]


def test_arguments_that_the_tool_does_not_take_are_refused_before_it_sees_them(journey: Journey) -> None:
    refused = journey.of("arguments")
    told = json.dumps(refused)
    assert "said" in told, "which argument it is"
    assert "pydantic" not in told, "nothing that the server itself would have said"


def test_it_hears_of_progress(journey: Journey) -> None:
    assert journey.of("progress") == {"said": "done", "reports": [0, 50, 100]}


def test_a_call_that_it_cancels_is_cancelled_at_the_server(journey: Journey) -> None:
    assert journey.of("cancel") == {"gaveUp": True, "fate": "cancelled"}


def test_its_user_is_asked(journey: Journey, modern: bool) -> None:
    answered = "Hello, Ada!" if modern else 'User response: action=accept, content={"response":"Ada"}'
    assert journey.of("elicitation") == answered


def test_its_model_is_asked(journey: Journey, modern: bool) -> None:
    answered = "The model says: about What is the capital of France?" if modern else "LLM response: about rain"
    assert journey.of("sampling") == answered


def test_it_can_be_asked_several_times_within_one_call(journey: Journey, modern: bool) -> None:
    assert journey.of("rounds") == ("Ada likes Ada." if modern else None)


def test_it_reads_resources(journey: Journey) -> None:
    read = journey.of("resources")
    assert (read["text"], read["numbered"]) == ("This is the content of the static text resource.", "7")
    assert read["binary"] > 0


def test_it_gets_prompts(journey: Journey) -> None:
    assert journey.of("prompts") == "Prompt with arguments: arg1='a', arg2='b'"


def test_it_has_arguments_completed(journey: Journey) -> None:
    assert journey.of("completion") == ["paris", "park", "party"]


def test_it_hears_what_a_tool_logs(journey: Journey, modern: bool) -> None:
    lines = ["Tool execution started", "Tool processing data", "Tool execution completed"]
    assert journey.of("logging") == (None if modern else lines)


def test_it_hears_of_other_tools(journey: Journey) -> None:
    assert journey.of("changes") == "heard"


def test_its_pings_are_answered(journey: Journey, modern: bool) -> None:
    assert journey.of("ping") == (None if modern else {})


def test_it_comes_back_for_the_answer_when_its_stream_has_ended(journey: Journey, modern: bool) -> None:
    assert journey.of("reconnect") == (None if modern else "Reconnection test completed")


def test_it_ends_its_session_and_begins_another(journey: Journey, modern: bool) -> None:
    assert journey.of("again") == {"echo": "again", "another": not modern}


def test_every_decision_on_its_calls_is_in_the_record(journey: Journey, gateway: Gateway) -> None:
    files = sorted((gateway.folder / "ledger").glob("*.jsonl"))
    lines = [json.loads(line) for each in files for line in each.read_text(encoding="utf-8").splitlines()]
    decided = {(line.get("operation"), line.get("decision")) for line in lines if "decision" in line}
    wanted = {("echo", "ALLOW"), ("add", "DENY"), ("resources/read", "ALLOW"), ("prompts/get", "ALLOW")}
    assert wanted <= decided, decided


def test_the_log_of_the_gateway_has_no_surprise(journey: Journey, gateway: Gateway) -> None:
    assert "Traceback" not in gateway.stderr()
