"""Two gateways on one Redis server: they spend from one purse, and say no at once when it is out of reach."""

import asyncio
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.journeys.test_a_gateway_starts_and_ends import until
from tests.journeys.test_budgets_hold import DIME, KEY, ask, configuration, hello, outcomes, stands
from tests.support.process import serving
from tests.support.redis_server import needs_redis, redis_server
from tests.support.standins import Standins, running_standins

pytestmark = needs_redis


@pytest.fixture(scope="module")
def standins() -> Iterator[Standins]:
    with running_standins(slow=5.0) as running:
        yield running


def on(url: str, standins: Standins, folder: Path, budget: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir()
    return configuration(standins, folder, DIME, budget) | {"state": url}


def test_a_thousand_dimes_at_two_gateways_against_five_dollars_are_fifty(standins: Standins, tmp_path: Path) -> None:
    budget = {"node": "acme/bot", "window": "day", "limit_usd": 5}

    async def burst(urls: list[str]) -> list[str]:
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(limits=limits, timeout=60) as client:

            async def one(number: int) -> str:
                answer = await client.post(
                    f"{urls[number % 2]}/v1/chat/completions",
                    json=hello(),
                    headers={"authorization": f"Bearer {KEY}"},
                )
                return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

            return list(await asyncio.gather(*(one(number) for number in range(1000))))

    with (
        redis_server(tmp_path) as redis,
        serving(on(redis.url, standins, tmp_path / "one", budget), tmp_path / "one") as one,
        serving(on(redis.url, standins, tmp_path / "two", budget), tmp_path / "two") as two,
    ):
        ends = asyncio.run(burst([one.url, two.url]))
        assert ends.count("ok") == 50, {each: ends.count(each) for each in ends}
        assert set(ends) == {"ok", "budget_exhausted"}
        for gateway in (one, two):
            until(lambda gateway=gateway: stands(gateway)["pending_usd"] == 0)  # type: ignore[misc]
            assert stands(gateway)["posted_usd"] == 5


def test_without_redis_a_hard_budget_refuses_at_once_and_nothing_is_lost_or_doubled_on_its_return(
    standins: Standins, tmp_path: Path
) -> None:
    hard = {"node": "acme/bot", "window": "day", "limit_usd": 5}
    with (
        redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as redis,
        serving(on(redis.url, standins, tmp_path / "one", hard), tmp_path / "one") as gateway,
    ):
        for _ in range(3):
            assert ask(gateway).status_code == 200
        redis.kill()
        for _ in range(3):
            began = time.monotonic()
            refused = ask(gateway)
            assert time.monotonic() - began < 0.25 + 0.5  # the client's own time, on a busy machine
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_unavailable")
        assert httpx2.get(f"{gateway.url}/readyz").status_code == 503
        redis.start()
        until(lambda: httpx2.get(f"{gateway.url}/readyz").status_code == 200)
        assert ask(gateway).status_code == 200
        until(lambda: stands(gateway)["pending_usd"] == 0)
        assert stands(gateway)["posted_usd"] == Decimal("0.4")


def test_without_redis_a_soft_budget_lets_pass_and_is_told_afterwards(standins: Standins, tmp_path: Path) -> None:
    soft = {"node": "acme/bot", "window": "day", "limit_usd": 5, "mode": "soft"}
    with (
        redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as redis,
        serving(on(redis.url, standins, tmp_path / "one", soft), tmp_path / "one") as gateway,
    ):
        assert ask(gateway).status_code == 200
        redis.kill()
        until(lambda: says_that_nobody_knows(ask(gateway)))  # for a second, what was known last still counts
        redis.start()
        until(lambda: stands_if_it_can(gateway) == Decimal("0.1") * len(outcomes(gateway, 1)))


def says_that_nobody_knows(passed: httpx2.Response) -> bool:
    assert passed.status_code == 200
    return passed.headers.get("x-weighbridge-budget") == "acme/bot day unknown"


def stands_if_it_can(gateway: Any) -> Decimal | None:
    try:
        found: Decimal = stands(gateway)["posted_usd"]
    except AssertionError:
        return None
    return found
