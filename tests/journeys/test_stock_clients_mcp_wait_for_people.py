"""The stock MCP client, in both eras and with all that it can do, whose calls people decide on: in a second, after the
hold, or never. Each ends with one execution at the server, and with the right result or the right words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest
from mcp.shared.exceptions import MCPError

from policies.approvals import State
from tests.support.bank import LINK, staged, text

MODES: Final = ("auto", "legacy")
PATIENT: Final[Mapping[str, Any]] = {"hold_for": "30s", "hold_streams_for": "30s"}
SHORT: Final[Mapping[str, Any]] = {"hold_for": "0.3s", "hold_streams_for": "0.3s"}


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_a_person_allows_soon_is_answered_as_if_nothing_had_been(mode: str) -> None:
    async with staged(**PATIENT) as stage, stage.client(mode) as client:
        asking = asyncio.create_task(client.call_tool("pay", {"amount": 7}))
        await stage.decide(True, 1.0)
        result = await asyncio.wait_for(asking, 5)
        assert (text(result), result.is_error) == ("paid 7, payment 1", False)
        await stage.over()
        assert stage.bank.paid == [7]


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_waits_for_long_hears_comments_and_then_the_answer(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.mcp.waiting.COMMENT_EVERY", 0.1)
    async with staged(**PATIENT) as stage, stage.client(mode) as client:
        asking = asyncio.create_task(client.call_tool("pay", {"amount": 7}))
        await stage.decide(True, 0.35)
        assert text(await asyncio.wait_for(asking, 5)) == "paid 7, payment 1"
        assert stage.bank.paid == [7]


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_a_person_denies_tells_the_model_what_they_said(mode: str) -> None:
    async with staged(**PATIENT) as stage, stage.client(mode) as client:
        asking = asyncio.create_task(client.call_tool("pay", {"amount": 7}))
        await stage.decide(False, 0.1)
        result = await asyncio.wait_for(asking, 5)
        assert result.is_error
        assert "A person has denied this call (Not this one.)" in text(result)
        assert (stage.bank.paid, stage.state) == ([], State.DENIED)


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_is_allowed_after_the_hold_runs_when_it_is_made_again_by_a_client_that_connects_anew(
    mode: str,
) -> None:
    async with staged(**SHORT) as stage:
        async with stage.client(mode) as client:
            result = await client.call_tool("pay", {"amount": 7})
            assert result.is_error
            assert f"held for finance as {stage.id}" in text(result)
            assert "repeat the identical call" in text(result)
            assert result.meta is not None
            refusal = result.meta["weighbridge/refusal"]
            assert (refusal["code"], refusal["approval"]) == ("approval_pending", stage.id)
        await stage.decide(True)
        assert stage.bank.paid == [], "nothing runs without a caller"
        async with stage.client(mode) as client:
            assert text(await client.call_tool("pay", {"amount": 7})) == "paid 7, payment 1"
            await stage.over()
            again = await client.call_tool("pay", {"amount": 7})
            assert text(again) == "paid 7, payment 1", "a repetition is told the same"
        async with stage.client(MODES[mode == "auto"]) as other:
            assert text(await other.call_tool("pay", {"amount": 7})) == "paid 7, payment 1", "in either era"
        assert stage.bank.paid == [7]


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_wants_to_hear_of_progress_does_while_it_waits(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.mcp.waiting.COMMENT_EVERY", 0.2)
    heard: list[tuple[float, str | None]] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async with staged(hold_for="0.1s", hold_streams_for="30s") as stage, stage.client(mode) as client:
        asking = asyncio.create_task(client.call_tool("pay", {"amount": 7}, progress_callback=progress))
        await stage.decide(True, 0.5)
        assert text(await asyncio.wait_for(asking, 5)) == "paid 7, payment 1"
        assert len(heard) == 2
        assert heard[0][0] < heard[1][0]
        assert heard[0][1] == f"Held for finance as {stage.id}."
        assert stage.bank.paid == [7]


async def test_a_client_of_the_later_era_leads_its_user_to_the_page_and_gets_the_answer_there() -> None:
    async with staged(LINK, **PATIENT) as stage, stage.client("auto", leads=True) as client:
        asking = asyncio.create_task(client.call_tool("pay", {"amount": 7}))
        await stage.decide(True, 1.0)
        assert text(await asyncio.wait_for(asking, 5)) == "paid 7, payment 1"
        (led,) = stage.led
        assert (led.mode, led.url) == ("url", f"{LINK}/approvals/{stage.id}")
        assert "support-bot wants to call pay of bank" in led.message
        assert "finance" in led.message
        assert stage.bank.paid == [7]


async def test_a_client_whose_user_does_not_want_to_be_led_there_votes_for_nothing_by_that() -> None:
    async with staged(LINK, **PATIENT) as stage, stage.client("auto", leads=True) as client:
        stage.answer = "decline"
        result = await asyncio.wait_for(client.call_tool("pay", {"amount": 7}), 5)
        assert result.is_error
        assert "held for finance" in text(result)
        assert (len(stage.led), stage.state, stage.bank.paid) == (1, State.PENDING, [])
        await stage.decide(True)
        assert text(await client.call_tool("pay", {"amount": 7})) == "paid 7, payment 1"


async def test_a_client_that_nobody_decides_for_is_led_there_a_few_times_and_then_told_how_to_come_back() -> None:
    async with staged(LINK, hold_for="0.2s") as stage, stage.client("auto", leads=True) as client:
        result = await asyncio.wait_for(client.call_tool("pay", {"amount": 7}), 10)
        assert result.is_error
        assert "repeat the identical call" in text(result)
        assert (len(stage.led), stage.state, stage.bank.paid) == (3, State.PENDING, [])
        assert len(stage.store.kept) == 1


async def test_a_client_of_the_earlier_era_that_could_lead_its_user_is_told_where_once_it_has_waited() -> None:
    async with staged(LINK, **SHORT) as stage, stage.client("legacy", leads=True) as client:
        with pytest.raises(MCPError, match="held for finance") as raised:
            await client.call_tool("pay", {"amount": 7})
        assert raised.value.error.code == -32042
        (elicitation,) = raised.value.error.data["elicitations"]
        assert elicitation["url"] == f"{LINK}/approvals/{stage.id}"
        assert (elicitation["mode"], elicitation["elicitationId"]) == ("url", stage.id)
        await stage.decide(True)
        assert text(await client.call_tool("pay", {"amount": 7})) == "paid 7, payment 1"


@pytest.mark.parametrize("mode", MODES)
async def test_without_an_address_of_the_page_nobody_is_led_anywhere(mode: str) -> None:
    async with staged(**SHORT) as stage, stage.client(mode, leads=True) as client:
        result = await client.call_tool("pay", {"amount": 7})
        assert result.is_error
        assert stage.led == []


@pytest.mark.parametrize("mode", MODES)
async def test_ten_clients_that_want_the_same_ask_once_and_get_the_same(mode: str) -> None:
    async with staged(**PATIENT) as stage, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(stage.client(mode)) for _ in range(5)]
        asking = [asyncio.create_task(each.call_tool("pay", {"amount": 7})) for each in clients for _ in range(2)]
        await stage.decide(True, 0.3)
        assert {text(await each) for each in asking} == {"paid 7, payment 1"}
        assert stage.bank.paid == [7]
        assert [each.what for each in stage.store.told].count("approval.requested") == 1


@pytest.mark.parametrize("mode", MODES)
async def test_other_arguments_are_another_call(mode: str) -> None:
    async with staged(**SHORT) as stage, stage.client(mode) as client:
        await client.call_tool("pay", {"amount": 7})
        await stage.decide(True)
        result = await client.call_tool("pay", {"amount": 8})
        assert result.is_error
        assert len(stage.store.kept) == 2
        assert stage.bank.paid == []
