"""Who owns an agent, and which tools take no grants, is asked of the configuration of now: for every word and every
use, not only when a call is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.held_calls import Held, holding, written
from tests.support.stores import in_memory
from tests.support.target import Target, target

GRANT: dict[str, Any] = {
    "agent": "support-bot",
    "protocol": "openai",
    "target": "gpt-4o",
    "operation": "chat",
    "expires_in": "1h",
    "max_uses": 9,
    "where": {},
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as quick:
        yield quick


@pytest.fixture
async def model() -> AsyncIterator[Target]:
    async with target() as it:
        yield it


@pytest.fixture
async def gateway(folder: Path, model: Target) -> AsyncIterator[Held]:
    async with holding(written(folder, model.url)) as it:
        yield it


async def owned_by(gateway: Held, owner: str) -> None:
    """From now on this person is the one whom `support-bot` works for."""
    await edited(gateway, "agents", lambda agents: agents[0].update(owner=owner))


async def edited(gateway: Held, section: str, edit: Any) -> None:
    config = yaml.safe_load(gateway.app.path.read_text())
    edit(config[section])
    gateway.app.path.write_text(yaml.safe_dump(config))
    await gateway.app.reload_config("test")
    assert not gateway.app.config.errors


async def granted(gateway: Held) -> None:
    await gateway.post("/grants", "finn", **GRANT)
    async with asyncio.timeout(10):
        while not gateway.app.holds._grants:
            await asyncio.sleep(0.001)


async def test_whoever_has_become_the_owner_decides_no_more(gateway: Held, model: Target) -> None:
    held = await gateway.hold("finance")
    assert (await gateway.get(f"/approvals/{held}", "finn"))["mine"]
    await owned_by(gateway, "finn")
    assert not (await gateway.get(f"/approvals/{held}", "finn"))["mine"]
    for what in ("approve", "deny"):
        await gateway.post(f"/approvals/{held}/{what}", "finn", 403)
    await gateway.post(f"/approvals/{held}/change", "finn", 403, arguments={"model": "gpt-4o", "messages": []})
    assert (await gateway.get(f"/approvals/{held}"))["votes"] == []
    await gateway.post(f"/approvals/{held}/approve", "olga", 403)  # she was, when it was asked for
    await gateway.post(f"/approvals/{held}/approve", "fay")
    assert (await gateway.call(needs=["finance"])).status_code == 200
    assert len(gateway.ran(model)) == 1


async def test_the_word_of_somebody_who_has_become_the_owner_is_worth_nothing_any_more(
    gateway: Held, model: Target
) -> None:
    held = await gateway.hold("finance")
    await gateway.post(f"/approvals/{held}/approve", "finn")
    await owned_by(gateway, "finn")
    answer = await gateway.call(needs=["finance"])
    assert (answer.status_code, gateway.ran(model)) == (403, [])
    assert (await gateway.get(f"/approvals/{held}"))["state"] == "revoked"


async def test_a_grant_of_somebody_who_has_become_the_owner_allows_nothing_any_more(
    gateway: Held, model: Target
) -> None:
    await granted(gateway)
    await owned_by(gateway, "finn")
    assert (await gateway.call(needs=["finance"])).status_code == 202
    assert gateway.ran(model) == []


async def test_a_tool_that_takes_no_grants_any_more_has_none(gateway: Held, model: Target) -> None:
    await granted(gateway)
    marked = {"name": "gpt-4o", "kind": "http", "url": "http://127.0.0.1:9", "no_grant": True}
    await edited(gateway, "tools", lambda tools: tools.append(marked))
    assert (await gateway.call(needs=["finance"])).status_code == 202
    assert gateway.ran(model) == []
