"""Money through a whole gateway: stock clients, a real process, the console's own figures, and kill -9."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import orjson
import pytest

from tests.journeys.test_a_gateway_starts_and_ends import children, until
from tests.support.process import Gateway, serving
from tests.support.standins import ANTHROPIC_KEY, OPENAI_KEY, Standins, running_standins

KEY = "spenders-own-key-71f3"
TOKEN = "treasurers-own-token"
ALLOW = 'package weighbridge\n\nimport rego.v1\n\ndecision := {"decision": "ALLOW"}\n'
DIME = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0, "usd_per_call": 0.10}
BY_LENGTH = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 1000}
"""A tenth of a cent for each token of an answer."""


@pytest.fixture(scope="module")
def standins() -> Iterator[Standins]:
    with running_standins(slow=5.0) as running:
        yield running


def configuration(standins: Standins, folder: Path, price: dict[str, Any], *budgets: dict[str, Any]) -> dict[str, Any]:
    (folder / "main.rego").write_text(ALLOW)
    claude = {"name": "claude", "kind": "anthropic", "url": standins.anthropic_url, "key": ANTHROPIC_KEY}
    return {
        "admin": {"people": [{"name": "tess", "token": TOKEN, "roles": ["admin"]}]},
        "policy": {"paths": ["main.rego"]},
        "agents": [{"name": "bot", "tenant": "acme", "team": "desk", "key": KEY}],
        "targets": [
            {
                "name": "gpt",
                "kind": "openai",
                "url": standins.openai_url + "/v1",
                "key": OPENAI_KEY,
                "price": dict(price),
            },
            {**claude, "price": dict(price)},
        ],
        "routes": [
            {"name": "claude", "models": ["claude-*"], "arms": [{"target": "claude"}]},
            {
                "name": "wordy",
                "models": ["wordy-claude"],
                "arms": [{"target": "claude", "model": "ignores-max-tokens"}],
            },
            {"name": "chat", "models": ["*"], "arms": [{"target": "gpt"}]},
        ],
        "budgets": list(budgets),
    }


def stands(gateway: Gateway, node: str = "acme/bot") -> dict[str, Any]:
    """The node's first budget, as its people see it; amounts exact."""
    answer = httpx2.get(f"{gateway.admin}/budgets/{node}", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(answer.text, parse_float=Decimal)["items"][0]
    return found


def outcomes(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """So many, once they are there: who has got the last event of a stream has its answer a moment before."""
    ledger = gateway.folder / "var" / "ledger" / "calls.jsonl"

    def recorded() -> list[dict[str, Any]]:
        lines = ledger.read_bytes().splitlines(keepends=True)
        whole = [orjson.loads(line) for line in lines if line.endswith(b"\n")]
        return [each for each in whole if each["record"] == "outcome"]

    until(lambda: len(recorded()) >= count)
    return recorded()


def hello(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], **more}


def ask(gateway: Gateway, **more: Any) -> httpx2.Response:
    return httpx2.post(
        f"{gateway.url}/v1/chat/completions",
        json=hello(**more),
        headers={"authorization": f"Bearer {KEY}"},
        timeout=20,
    )


def test_a_thousand_dimes_at_once_against_five_dollars_are_fifty(standins: Standins, tmp_path: Path) -> None:
    budget = {"node": "acme/bot", "window": "day", "limit_usd": 5}

    async def burst(url: str) -> list[str]:
        limits = httpx2.Limits(max_connections=250)
        async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

            async def one() -> str:
                answer = await client.post(
                    "/v1/chat/completions", json=hello(), headers={"authorization": f"Bearer {KEY}"}
                )
                return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

            return list(await asyncio.gather(*(one() for _ in range(1000))))

    with serving(configuration(standins, tmp_path, DIME, budget), tmp_path) as gateway:
        ends = asyncio.run(burst(gateway.url))
        assert ends.count("ok") == 50
        assert ends.count("budget_exhausted") == 950
        found = stands(gateway)
        assert (found["posted_usd"], found["pending_usd"]) == (5, 0)
        assert found["state"] == "exhausted"


def test_a_model_that_ignores_max_tokens_is_cut_at_what_was_lent(standins: Standins, tmp_path: Path) -> None:
    budget = {"node": "acme/bot", "window": "day", "limit_usd": 5, "mode": "strict"}
    with serving(configuration(standins, tmp_path, BY_LENGTH, budget), tmp_path) as gateway:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
            stream = client.chat.completions.create(
                model="ignores-max-tokens",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=20,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
        text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
        assert [each.choices[0].finish_reason for each in chunks if each.choices][-1] == "length"
        assert 15 <= len(text.split()) <= 22
        (record,) = outcomes(gateway, 1)
        assert record["usage"]["estimated"] is True
        assert 20 <= record["usage"]["output_tokens"] <= 40
        assert "cut" in record["detail"]
        assert stands(gateway)["posted_usd"] == Decimal(str(record["cost_usd"]))


@pytest.mark.parametrize("model", ["ignores-max-tokens", "wordy-claude"])
def test_a_stream_that_no_budget_pays_for_any_longer_ends_as_if_it_were_long_enough(
    standins: Standins, tmp_path: Path, model: str
) -> None:
    budget = {"node": "acme/bot", "window": "day", "limit_usd": 0.6}
    with serving(configuration(standins, tmp_path, BY_LENGTH, budget), tmp_path) as gateway:
        if model == "wordy-claude":
            with anthropic.Anthropic(base_url=gateway.url, api_key=KEY, max_retries=0) as claude:
                with claude.messages.stream(
                    model=model, max_tokens=4000, messages=[{"role": "user", "content": "hello"}]
                ) as spoken:
                    text, ended = spoken.get_final_text(), spoken.get_final_message().stop_reason
                assert ended == "max_tokens"
        else:
            with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
                chunks = list(
                    client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": "hello"}], stream=True
                    )
                )
            text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
            assert chunks[-1].choices[0].finish_reason == "length"
        assert 300 <= len(text.split()) <= 650
        (record,) = outcomes(gateway, 1)
        assert record["code"] == "budget_exhausted"
        found = stands(gateway)
        assert found["pending_usd"] == 0
        assert Decimal("0.3") <= found["posted_usd"] <= Decimal("0.61")


def test_what_was_spent_survives_kill_9_and_what_was_under_way_is_paid(standins: Standins, tmp_path: Path) -> None:
    budget = {"node": "acme/bot", "window": "day", "limit_usd": 50}
    with serving(configuration(standins, tmp_path, BY_LENGTH, budget), tmp_path) as gateway:
        for _ in range(5):
            assert ask(gateway, max_tokens=30).status_code == 200
        with httpx2.stream(
            "POST",
            f"{gateway.url}/v1/chat/completions",
            json=hello(model="endless", stream=True, max_tokens=1000),
            headers={"authorization": f"Bearer {KEY}"},
            timeout=20,
        ) as endless:
            events = endless.iter_raw()
            next(events)
            before = stands(gateway)
            assert before["pending_usd"] > 0
            (worker,) = children(gateway.pid)
            os.kill(worker, signal.SIGKILL)
            until(lambda: children(gateway.pid) not in ([], [worker]))
        assert ask(gateway, max_tokens=30).status_code == 200  # the listener stays, so this waits for the next worker
        after = stands(gateway)
        assert after["pending_usd"] == 0
        costs = [Decimal(str(each["cost_usd"])) for each in outcomes(gateway, 6)]
        assert sum(costs[:5]) == before["posted_usd"]
        assert after["posted_usd"] == before["posted_usd"] + before["pending_usd"] + costs[5]


def test_a_raised_budget_lets_the_next_call_pass(standins: Standins, tmp_path: Path) -> None:
    budget = {"node": "acme/desk", "window": "month", "limit_usd": 0.10}
    with serving(configuration(standins, tmp_path, DIME, budget), tmp_path) as gateway:
        assert ask(gateway).status_code == 200
        refused = ask(gateway)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "insufficient_quota"
        assert "acme/desk" in refused.json()["error"]["message"]
        raised = httpx2.put(
            f"{gateway.admin}/budgets/acme/desk",
            json={"window": "month", "limit_usd": 0.2, "comment": "the fair is on"},
            headers={"authorization": f"Bearer {TOKEN}"},
        )
        assert raised.status_code == 200, raised.text
        assert ask(gateway).status_code == 200
        assert stands(gateway, "acme/desk")["posted_usd"] == Decimal("0.2")
        noted = list((gateway.folder / "var" / "ledger" / "calls.jsonl").read_text().splitlines())
        assert any('"tess"' in each and "the fair is on" in each for each in noted)
