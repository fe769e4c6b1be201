"""Two gateways on one Redis server: who stops an agent at one has stopped it at both, whatever becomes of Redis."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from gateway.remote import TOKEN as VARIABLE
from tests.journeys.test_a_gateway_starts_and_ends import until
from tests.journeys.test_budgets_hold import DIME, KEY, TOKEN, ask, configuration, outcomes, stands
from tests.support.process import ROOT, Gateway, serving
from tests.support.redis_server import needs_redis, redis_server
from tests.support.standins import Standins, running_standins

pytestmark = needs_redis

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def standins() -> Iterator[Standins]:
    with running_standins(slow=20.0) as running:
        yield running


@contextmanager
def gateway(url: str, standins: Standins, folder: Path) -> Iterator[Gateway]:
    folder.mkdir()
    config = configuration(standins, folder, DIME, {"node": "acme/bot", "window": "day", "limit_usd": 50})
    endless = {"name": "endless", "models": ["claude-endless"], "arms": [{"target": "claude", "model": "endless"}]}
    config["routes"].insert(0, endless)
    with serving(config | {"state": url}, folder) as running:
        yield running


def command(gateway: Gateway, *words: str) -> str:
    """What `weighbridge agents` says to an operator."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: TOKEN}
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "agents", *words, "--admin", gateway.admin],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def put(gateway: Gateway, state: str, reason: str = "") -> httpx2.Response:
    body = {"state": state, "reason": reason}
    return httpx2.put(f"{gateway.admin}/agents/bot/state", json=body, headers={"authorization": f"Bearer {TOKEN}"})


def within(seconds: float, true: Callable[[], bool]) -> None:
    """Another process hears of it in its own time; a busy machine gets half a second more."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds + 0.5
        time.sleep(0.02)


def code(answer: httpx2.Response) -> str:
    return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])


def test_an_agent_that_is_stopped_at_one_gateway_is_stopped_at_the_other_and_stock_clients_are_told(
    standins: Standins, tmp_path: Path
) -> None:
    with (
        redis_server(tmp_path) as redis,
        gateway(redis.url, standins, tmp_path / "one") as one,
        gateway(redis.url, standins, tmp_path / "two") as two,
        openai.OpenAI(base_url=f"{two.url}/v1", api_key=KEY) as gpt,
        anthropic.Anthropic(base_url=two.url, api_key=KEY) as claude,
    ):
        chunks = iter(gpt.chat.completions.create(model="endless", messages=HELLO, stream=True))
        events = iter(claude.messages.create(model="claude-endless", messages=HELLO, max_tokens=9999, stream=True))
        assert next(chunks).choices
        assert next(events).type == "message_start"

        answered = put(one, "quarantined", "it answers nobody")
        assert answered.status_code == 200, answered.text
        began = time.monotonic()
        with pytest.raises(openai.APIError, match="quarantined this agent: it answers nobody") as cut:
            for _ in chunks:
                pass
        assert cut.value.code == "agent_quarantined"
        with pytest.raises(anthropic.APIStatusError, match="quarantined this agent: it answers nobody"):
            for _ in events:
                pass
        assert time.monotonic() - began < 1.5  # of which half a second is the test's own, on a busy machine

        standins.forget()
        with pytest.raises(openai.PermissionDeniedError, match="it answers nobody") as refused:
            gpt.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
        assert refused.value.code == "agent_quarantined"
        with pytest.raises(anthropic.PermissionDeniedError, match="it answers nobody"):
            claude.messages.create(model="claude-x", messages=HELLO, max_tokens=9)
        assert (standins.openai.requests, standins.anthropic.requests) == ([], [])
        until(lambda: len(outcomes(two, 4)) == 4)  # each was asked once: their default retries have let it be
        assert {each["code"] for each in outcomes(two, 4)} == {"agent_quarantined"}
        until(lambda: stands(two)["pending_usd"] == 0)
        assert float(stands(two)["posted_usd"]) == pytest.approx(0.2)  # both streams were called for

        assert "quarantined" in command(two, "list")
        assert put(two, "active").status_code == 200
        within(1.0, lambda: code(ask(one)) == "ok")
        assert put(one, "paused", "lunch").status_code == 200
        assert code(ask(one)) == "agent_paused"
        within(1.0, lambda: code(ask(two)) == "agent_paused")


def test_a_redis_server_that_has_lost_everything_lifts_no_quarantine(standins: Standins, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis, gateway(redis.url, standins, tmp_path / "one") as one:
        assert put(one, "quarantined").status_code == 200
        redis.kill()
        assert code(ask(one)) == "agent_quarantined"
        with gateway(redis.url, standins, tmp_path / "two") as two:
            assert httpx2.get(f"{two.url}/readyz").status_code == 503
            assert "which agents are stopped is not known yet" in httpx2.get(f"{two.url}/readyz").text
            assert code(ask(two)) == "ledger_unavailable"
            redis.start()
            until(lambda: httpx2.get(f"{two.url}/readyz").status_code == 200)
            within(5.0, lambda: code(ask(two)) == "agent_quarantined")
            assert code(ask(one)) == "agent_quarantined"
