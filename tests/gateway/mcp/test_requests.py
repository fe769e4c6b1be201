"""Questions of servers that people decide on, as many as they may be, and what their clients hear meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from gateway.mcp import requests
from policies.decision import Decision, Effect
from policies.obligations import NONE, Edit, Obligations
from tests.gateway.mcp.test_answers import JSON, STREAM, Front, answer, event, front, request, said
from tests.support.exchanges import ALLOWED
from tests.support.mcp_servers import Say
from tests.support.people import deciding
from tests.support.till import Turnstile

HELD = Decision(Effect.NEEDS_APPROVAL, None, ("admin",), "Somebody has to look.", NONE, "r1")
TAKEN: tuple[int, dict[str, str], bytes] = (202, {}, b"")


def question(identity: Any = "q", text: str = "What?") -> bytes:
    params = {"message": text, "requestedSchema": {"type": "object", "properties": {}}}
    return orjson.dumps({"jsonrpc": "2.0", "id": identity, "method": "elicitation/create", "params": params})


def held_back(document: Mapping[str, Any]) -> Decision:
    asked = document["call"]["operation"] == "elicitation/create" and "approval" not in document
    return HELD if asked else ALLOWED


async def asked(at: Front) -> Mapping[str, Any]:
    (found,) = [each for each in at.gate.ledger.outcomes() if each["operation"] == "elicitation/create"]
    return found


@pytest.mark.parametrize("yes", [True, False])
async def test_people_decide_on_a_question_and_what_does_not_wait_for_it_passes(yes: bool) -> None:
    passed = asyncio.Event()

    async def asking(say: Say) -> None:
        await say(event(question()))
        await say(event(b'{"jsonrpc":"2.0","method":"notifications/progress"}'))
        await passed.wait()
        await say(event(answer()))

    async with front((200, STREAM, asking), TAKEN, script=held_back) as at:
        async with deciding(at.gate.pipeline.holds, lambda _: yes, "dana", ("admin",)) as somebody:
            calling = asyncio.create_task(at.say(request()))
            (approval,) = await somebody.asked()
            assert (approval.call.target, approval.call.operation) == ("up", "elicitation/create")
            async with asyncio.timeout(10):
                while not [each for each in at.gate.ledger.outcomes() if each["operation"] == "elicitation/create"]:
                    await asyncio.sleep(0.01)
            passed.set()
            _, _, body = await calling
        methods = [each.get("method") for each in said(body)]
        assert ("elicitation/create" in methods) is yes
        assert methods[-1] is None
        assert "notifications/progress" in methods
        outcome = await asked(at)
        assert outcome["code"] == ("ok" if yes else "approval_denied")
        assert outcome["approval"] == approval.id
        if not yes:
            assert at.server.asked[1].message["error"]["data"]["code"] == "approval_denied"


async def test_what_the_policy_takes_out_of_a_question_does_not_reach_the_client() -> None:
    def redacting(document: Mapping[str, Any]) -> Decision:
        if document["call"]["operation"] != "elicitation/create":
            return ALLOWED
        edit = Edit("/arguments/message", ("arguments", "message"), b'"***"', False)
        return Decision(Effect.ALLOW, None, (), "", Obligations(redact=(edit,)), "r1")

    async with front(
        (200, STREAM, event(question(text="secret"), b"id: 5\n") + event(answer())), script=redacting
    ) as at:
        _, _, body = await at.say(request())
        assert (said(body)[0]["id"], said(body)[0]["params"]["message"]) == ("q", "***")
        assert body.startswith(b"id: 5\n")


async def test_a_server_that_asks_and_asks_is_answered_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST", 2)
    monkeypatch.setattr(requests, "IN_ORDER", 0.0)
    many = b"".join(event(question(number)) for number in range(5))

    async def asking(say: Say) -> None:
        await say(many)
        await asyncio.sleep(0.3)
        await say(event(answer()))

    async with front((200, STREAM, asking), TAKEN, script=held_back) as at:
        _, _, body = await at.say(request())
        refused = [each.message["id"] for each in at.server.asked[1:]]
        assert refused == [2, 3, 4]
        assert [each.get("method") for each in said(body)] == [None]


async def test_a_question_that_is_being_decided_on_ends_with_its_stream() -> None:
    async def asking(say: Say) -> None:
        await say(event(question()))
        await asyncio.sleep(0.2)
        await say(event(answer()))

    async with front((200, STREAM, asking), script=held_back) as at:
        _, _, body = await at.say(request())
        assert said(body)[-1]["id"] == 1
        assert (await asked(at))["code"] == "client_gone"


async def test_a_question_counts_as_a_call_of_its_agent() -> None:
    turnstile = Turnstile()

    def filling(document: Mapping[str, Any]) -> Decision:
        if document["call"]["operation"] == "elicitation/create":
            turnstile.refuses = 5.0
        return ALLOWED

    sections = {"limits": [{"node": "acme/support-bot", "calls_per_minute": 9}], "turnstile": turnstile}
    stream = (200, STREAM, event(question()) + event(answer()))
    async with front(stream, TAKEN, script=filling, sections=sections) as at:
        _, _, body = await at.say(request())
        assert said(body) == [orjson.loads(answer())]
        assert (await asked(at))["code"] == "rate_limited"
        assert at.server.asked[1].message["error"]["data"]["code"] == "rate_limited"


@pytest.mark.parametrize("asks", [[], "x", {"a": 1}, {"a": {}}, {"a": {"method": 1}}])
async def test_a_modern_server_that_asks_in_a_way_that_cannot_be_read_is_not_passed_on(asks: Any) -> None:
    result = {"resultType": "input_required", "inputRequests": asks}
    async with front((200, JSON, answer(result))) as at:
        _, _, body = await at.say(request(modern=True), modern=True)
        assert orjson.loads(body)["result"]["isError"]


async def test_what_a_modern_server_wants_to_be_kept_passes_as_it_is() -> None:
    result = {"resultType": "input_required", "requestState": "opaque \u00e9"}
    async with front((200, JSON, answer(result))) as at:
        _, _, body = await at.say(request(modern=True), modern=True)
        assert body == answer(result)
