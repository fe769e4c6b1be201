"""Two arms, stock clients, and what an operator reads of it: figures of commands, page, API and metrics are true."""

import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.cli import main
from gateway.remote import TOKEN
from tests.journeys.test_a_gateway_starts_and_ends import until
from tests.support.parallax import Cluster, running_parallax
from tests.support.process import Gateway, serving
from tests.support.standins import ANTHROPIC_KEY, OPENAI_KEY, Standins, running_standins

KEY = "movers-own-key-51c2"
DANAS = "danas-own-token"
HELLO: Any = [{"role": "user", "content": "How many nodes are there?"}]
DEAR = {"input_usd_per_mtok": 2, "output_usd_per_mtok": 8}
CHEAP = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
SESSIONS = [f"s-{number}" for number in range(24)]


@pytest.fixture(scope="module")
def far_end() -> Iterator[tuple[Standins, Cluster]]:
    with running_standins() as standins, running_parallax(scale=0.01) as cluster:
        yield standins, cluster


def configuration(standins: Standins, cluster: Cluster, folder: Path) -> dict[str, Any]:
    (folder / "main.rego").write_text('package weighbridge\n\ndecision := {"decision": "ALLOW"}\n')
    hosted = {"name": "hosted", "kind": "openai", "url": f"{standins.openai_url}/v1", "key": OPENAI_KEY, "price": DEAR}
    claude = {"name": "claude", "kind": "anthropic", "url": standins.anthropic_url, "key": ANTHROPIC_KEY}
    return {
        "admin": {"people": [{"name": "dana", "token": DANAS, "roles": ["admin"]}]},
        "policy": {"paths": ["main.rego"]},
        "agents": [{"name": "mover", "tenant": "acme", "key": KEY}],
        "targets": [
            hosted,
            {"name": "own", "kind": "parallax", "url": cluster.url, "price": dict(CHEAP)},
            {**claude, "price": dict(CHEAP)},
        ],
        "routes": [
            {
                "name": "chat",
                "models": ["gpt-*"],
                "arms": [{"target": "hosted", "weight": 50}, {"target": "own", "weight": 50}],
                "rollout": {"canary": "own"},
                "mirror": {"target": "claude", "share": 1, "model": "claude-3-5-haiku-latest"},
            }
        ],
    }


class Operator:
    """Somebody with the commands, the API and the metrics of a running gateway."""

    def __init__(self, gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
        self._gateway, self._capsys = gateway, capsys

    def run(self, *words: str) -> str:
        self._capsys.readouterr()
        assert main(["routes", *words, "--admin", self._gateway.admin]) == 0
        return self._capsys.readouterr().out

    def route(self) -> dict[str, Any]:
        answer = httpx2.get(f"{self._gateway.admin}/routes/chat", headers={"authorization": f"Bearer {DANAS}"})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = json.loads(answer.text, parse_float=Decimal)
        return told

    def metric(self, name: str, *labels: str) -> float | None:
        families = text_string_to_metric_families(httpx2.get(f"{self._gateway.admin}/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return next((sample.value for sample in samples if set(sample.labels.values()) == set(labels)), None)


@pytest.fixture
def gateway(far_end: tuple[Standins, Cluster], tmp_path: Path) -> Iterator[Gateway]:
    standins, cluster = far_end
    standins.forget()
    cluster.standin.forget()
    # A rollout that has not begun leaves the weights as they are configured.
    with serving(configuration(standins, cluster, tmp_path), tmp_path) as gateway:
        yield gateway


def test_figures_of_every_kind_are_those_of_the_calls_that_were_made(
    gateway: Gateway,
    far_end: tuple[Standins, Cluster],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TOKEN, DANAS)
    standins, cluster = far_end
    homes: dict[str, str] = {}
    spent = dict.fromkeys(("hosted", "own"), Decimal(0))
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:

        def call(session: str) -> str:
            raw = client.chat.completions.with_raw_response.create(
                model="gpt-4o-mini", messages=HELLO, extra_headers={"x-weighbridge-session": session}
            )
            usage, target = raw.parse().usage, raw.headers["x-weighbridge-target"]
            assert usage is not None
            rates = DEAR if target == "hosted" else CHEAP
            spent[target] += usage.prompt_tokens * rates["input_usd_per_mtok"]
            spent[target] += usage.completion_tokens * rates["output_usd_per_mtok"]
            return target

        for session in SESSIONS:
            homes[session] = call(session)
        streamed = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True)
        assert [chunk for chunk in streamed if chunk.choices]
        failing = [session for session, home in homes.items() if home == "own"][:2]
        for session in failing:
            cluster.standin.will("node-error")
            assert call(session) == "hosted", "the agent sees nothing of it"

    calls = Counter(homes.values())
    operator = Operator(gateway, capsys)
    route = operator.route()
    hosted, own = route["arms"]
    on_hosted = len(standins.openai.requests)
    on_own = sum(seen.path == "/v1/chat/completions" for seen in cluster.standin.requests)
    assert (hosted["target"], hosted["calls"], hosted["errors"], hosted["health"]) == ("hosted", on_hosted, 0, "ok")
    assert (own["target"], own["calls"], own["errors"], own["health"]) == ("own", on_own, 2, "ok")
    assert on_hosted + on_own == len(SESSIONS) + 1 + 2 * len(failing)
    assert min(calls.values()) > 4, "both arms had calls"
    streamed_on = hosted if hosted["first_token_ms"]["p50"] is not None else own
    assert streamed_on["first_token_ms"]["p50"] <= streamed_on["p99_ms"]
    if streamed_on is own:
        assert hosted["cost_usd"] * 10**6 == spent["hosted"]
    assert hosted["cost_usd"] > own["cost_usd"] > 0
    assert (route["baseline"], route["comparisons"][0]["arm"]) == ("hosted", "own")
    assert sum(slot["arms"].get("own", {}).get("calls", 0) for slot in route["timeline"]) == on_own

    listed = json.loads(operator.run("list", "--json"), parse_float=Decimal)
    assert listed["items"][0]["arms"] == route["arms"]
    _, first, second, *_ = operator.run("list").splitlines()
    assert first.split()[:2] == ["chat", "hosted"]
    assert {str(on_own), "2"} <= set(second.split())

    page = tmp_path / "chat.html"
    assert "own in place of hosted" in operator.run("report", "chat", "-o", str(page))
    written = page.read_text()
    assert f'<data value="{on_hosted + on_own}">{on_hosted + on_own}</data> calls from' in written
    for arm in (hosted, own):
        assert f'<data value="{arm["cost_usd"]:f}">' in written
        assert f'<data value="{arm["p95_ms"]:f}">' in written

    assert operator.metric("weighbridge_attempts_total", "chat", "hosted", "ok") == on_hosted
    assert operator.metric("weighbridge_attempts_total", "chat", "own", "ok") == on_own - 2
    assert operator.metric("weighbridge_retries_total", "chat") == 2
    assert operator.metric("weighbridge_nodes", "own", "used") == 1
    assert operator.metric("weighbridge_target_in_flight", "own") == 0


def test_a_mirror_is_compared_and_what_it_costs_is_told_apart(
    gateway: Gateway,
    far_end: tuple[Standins, Cluster],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TOKEN, DANAS)
    standins, _ = far_end
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        for stream in (False, True):
            answer = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=stream)
            if stream:
                assert [chunk for chunk in answer if chunk]
    operator = Operator(gateway, capsys)
    until(lambda: operator.metric("weighbridge_mirrored_total", "chat", "claude", "compared") == 2)
    mirror = operator.route()["mirror"]
    page = tmp_path / "chat.html"
    operator.run("report", "chat", "-o", str(page))
    assert "The mirror" in page.read_text()
    assert (mirror["both_good"], mirror["dropped"], mirror["unfit"]) == (2, 0, 0)
    assert mirror["own"]["calls"] == mirror["mirror"]["calls"] == 2
    assert mirror["mirror"]["output_tokens"] > 0
    assert {seen.path for seen in standins.anthropic.requests} == {"/v1/messages"}
    asked = {"group_by": "target"}
    spend = httpx2.get(f"{gateway.admin}/spend", params=asked, headers={"authorization": f"Bearer {DANAS}"})
    rows = {row["target"]: row for row in json.loads(spend.text, parse_float=Decimal)["items"]}
    assert (rows["claude"]["calls"], rows["claude"]["cost_usd"]) == (0, mirror["mirror"]["cost_usd"])
    assert sum(row["calls"] for row in rows.values()) == 2
    lines = (gateway.folder / "var" / "ledger" / "calls.jsonl").read_text().splitlines()
    notes = [record for record in map(json.loads, lines) if record["record"] == "mirror"]
    assert {note["mirror"]["outcome"] for note in notes} == {"ok"}
    assert len(notes) == 2
