"""A call whose target fails is answered by another one before its client sees anything; and nothing that went wrong
behind a Parallax scheduler reaches a client as a success. With the stock `openai` client, streamed and not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from deploy.demo.parallax_like import BEHAVIOURS
from tests.support.exchanges import AGENT_KEY
from tests.support.gate import Gate, gate
from tests.support.parallax import Cluster, running_parallax
from tests.support.standins import ANTHROPIC_KEY, OPENAI_KEY, Standins, running_standins_here

MODEL = "gpt-4o-mini"
SOUND = frozenset({"answer", "routing-stalls", "slow-first-token"})
REFUSED = "node-refuses"
"""The call's own fault, by the node's word: nobody else is asked."""
BEGUN = frozenset({"node-dies", "node-breaks", "node-error-in-stream", "node-stalls"})
"""What goes wrong in the middle of a stream, where the client has seen its beginning."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_parallax(scale=0.0002) as cluster:
        yield cluster


@asynccontextmanager
async def gates(cluster: Cluster, hosted: Standins | None, **sections: Any) -> AsyncIterator[Gate]:
    """A gate whose calls are all meant for the cluster, and which has somebody else to ask if `hosted`."""
    timeouts = {"idle": 0.5, "first_token": 5.0}
    targets: list[Mapping[str, Any]] = [
        {"name": "own", "kind": "parallax", "url": cluster.url, "timeouts": timeouts, "health": {"failures": 1000}}
    ]
    arms: list[Mapping[str, Any]] = [{"target": "own", "weight": 100}]
    if hosted is not None:
        targets.append({"name": "hosted", "kind": "openai", "url": f"{hosted.openai_url}/v1", "key": OPENAI_KEY})
        arms.append({"target": "hosted", "weight": 0, "fallback": True})
    routes = [{"name": "chat", "models": ["*"], "arms": arms}]
    async with gate(targets=targets, routes=routes, **sections) as found:
        yield found


def client(found: Gate) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{found.port}/v1", api_key=AGENT_KEY, max_retries=0, timeout=20.0
    )


async def said(asking: openai.AsyncOpenAI, *, stream: bool) -> str:
    """The text of an answer that came to its end. Raises what the client raises."""
    messages: Any = [{"role": "user", "content": "Hello"}]
    if not stream:
        whole = await asking.chat.completions.create(model=MODEL, messages=messages)
        return whole.choices[0].message.content or ""
    text, finished = "", None
    async for chunk in await asking.chat.completions.create(model=MODEL, messages=messages, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finished = choice.finish_reason or finished
    assert finished is not None, "the stream just ended"
    return text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS - SOUND - {REFUSED}))
async def test_what_goes_wrong_behind_parallax_is_never_a_success(
    cluster: Cluster, behaviour: str, stream: bool
) -> None:
    cluster.standin.always(behaviour)
    try:
        async with gates(cluster, None) as found, client(found) as asking:
            with pytest.raises(openai.APIError):
                await said(asking, stream=stream)
            record = await found.ledger.outcome()
    finally:
        cluster.standin.forget()
    assert record["code"] in ("target_failed", "target_timeout") or record["status"] >= 400


@pytest.mark.parametrize(
    ("behaviour", "stream"),
    [
        *((behaviour, False) for behaviour in sorted(BEHAVIOURS - SOUND - {REFUSED})),
        *((behaviour, True) for behaviour in sorted(BEHAVIOURS - SOUND - {REFUSED} - BEGUN)),
    ],
)
async def test_another_arm_answers_before_the_client_has_seen_anything(
    cluster: Cluster, behaviour: str, stream: bool
) -> None:
    cluster.standin.always(behaviour)
    try:
        async with running_standins_here() as hosted, gates(cluster, hosted) as found, client(found) as asking:
            assert "stand-in" in await said(asking, stream=stream)
            record = await found.ledger.outcome()
    finally:
        cluster.standin.forget()
    assert (record["code"], record["status"], record["target"]) == ("ok", 200, "hosted")
    first, last = record["attempts"]
    assert (first["target"], last["target"], last["outcome"]) == ("own", "hosted", "ok")
    assert first["outcome"] not in ("ok", "rejected")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behaviour", sorted(SOUND))
async def test_what_only_takes_its_time_is_answered_where_it_was_meant_to(
    cluster: Cluster, behaviour: str, stream: bool
) -> None:
    cluster.standin.will(behaviour)
    async with running_standins_here() as hosted, gates(cluster, hosted) as found, client(found) as asking:
        assert await said(asking, stream=stream)
        record = await found.ledger.outcome()
    assert (record["code"], record["target"]) == ("ok", "own")
    assert "attempts" not in record


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_a_node_rejects_is_nobody_elses(cluster: Cluster, stream: bool) -> None:
    cluster.standin.will(REFUSED)
    async with running_standins_here() as hosted, gates(cluster, hosted) as found, client(found) as asking:
        with pytest.raises(openai.BadRequestError):
            await said(asking, stream=stream)
        record = await found.ledger.outcome()
        assert hosted.openai.requests == []
    assert (record["status"], record["target"]) == (400, "own")


async def test_every_attempt_is_paid_for_and_a_call_counts_once(cluster: Cluster) -> None:
    cluster.standin.will("node-unreachable")
    sections: dict[str, Any] = {
        "budgets": [{"node": "acme/support-bot", "window": "day", "limit_usd": 5}],
    }
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    async with running_standins_here() as hosted:
        targets = [
            {"name": "own", "kind": "parallax", "url": cluster.url, "price": price},
            {"name": "hosted", "kind": "openai", "url": f"{hosted.openai_url}/v1", "key": OPENAI_KEY, "price": price},
        ]
        arms = [{"target": "own", "weight": 100}, {"target": "hosted", "weight": 0, "fallback": True}]
        routes = [{"name": "chat", "models": ["*"], "arms": arms}]
        async with gate(targets=targets, routes=routes, **sections) as found, client(found) as asking:
            assert await said(asking, stream=True)
            record = await found.ledger.outcome()
            assert [each.target for each in found.till.ledger] == ["own", "hosted"]
            assert [each.calls for each in found.till.ledger] == [1, 0]
            assert sum(each.cost for each in found.till.ledger) == sum(found.till.over.values())
            assert not any(found.till.pending.values())
    assert record["attempts"][0]["outcome"] == "stream_cut"


async def test_a_second_attempt_that_nobody_pays_for_is_not_made(cluster: Cluster) -> None:
    cluster.standin.will("node-unreachable")
    async with running_standins_here() as hosted:
        price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
        targets = [
            {"name": "own", "kind": "parallax", "url": cluster.url, "price": price},
            {"name": "hosted", "kind": "openai", "url": f"{hosted.openai_url}/v1", "key": OPENAI_KEY, "price": price},
        ]
        arms = [{"target": "own", "weight": 100}, {"target": "hosted", "weight": 0, "fallback": True}]
        routes = [{"name": "chat", "models": ["*"], "arms": arms}]
        budgets = [{"node": "acme/support-bot", "window": "day", "limit_usd": 5}]
        async with gate(targets=targets, routes=routes, budgets=budgets) as found, client(found) as asking:
            found.till.lend_no_more = True
            with pytest.raises(openai.APIError):
                await said(asking, stream=True)
            assert hosted.openai.requests == []
            assert [each.target for each in found.till.ledger] == ["own"]


async def test_an_agent_of_one_protocol_is_served_by_a_target_of_the_other(cluster: Cluster) -> None:
    async with running_standins_here() as standins:
        targets = [{"name": "claude", "kind": "anthropic", "url": standins.anthropic_url, "key": ANTHROPIC_KEY}]
        routes = [{"name": "chat", "models": ["*"], "arms": [{"target": "claude", "model": "claude-sonnet-4-5"}]}]
        async with gate(targets=targets, routes=routes) as found, client(found) as asking:
            for stream in (False, True):
                assert "stand-in" in await said(asking, stream=stream)
            assert {seen.path for seen in standins.anthropic.requests} == {"/v1/messages"}
            usage = [record["usage"] for record in found.ledger.outcomes()]
            assert all(each["input_tokens"] and each["output_tokens"] for each in usage)


async def test_a_stream_that_does_not_begin_in_time_is_begun_elsewhere() -> None:
    with running_parallax(scale=1.0) as slow:
        slow.standin.will("slow-first-token")
        async with running_standins_here() as hosted:
            targets = [
                {"name": "own", "kind": "parallax", "url": slow.url, "timeouts": {"first_token": 0.2}},
                {"name": "hosted", "kind": "openai", "url": f"{hosted.openai_url}/v1", "key": OPENAI_KEY},
            ]
            arms = [{"target": "own", "weight": 100}, {"target": "hosted", "weight": 0, "fallback": True}]
            routes = [{"name": "chat", "models": ["*"], "arms": arms}]
            async with gate(targets=targets, routes=routes) as found, client(found) as asking:
                assert "stand-in" in await said(asking, stream=True)
                record = await found.ledger.outcome()
    assert [each["outcome"] for each in record["attempts"]] == ["first_token", "ok"]


CLOSED = "http://127.0.0.1:9"


async def test_every_node_is_tried_and_then_the_next_arm_and_the_agent_hears_of_the_last_one() -> None:
    targets = [
        {"name": "own", "kind": "parallax", "urls": [CLOSED, f"{CLOSED}/other"]},
        {"name": "hosted", "kind": "openai", "url": f"{CLOSED}/v1"},
    ]
    arms = [{"target": "own", "weight": 100}, {"target": "hosted", "weight": 0, "fallback": True}]
    routes = [{"name": "chat", "models": ["*"], "arms": arms}]
    async with gate(targets=targets, routes=routes) as found, client(found) as asking:
        with pytest.raises(openai.InternalServerError, match="cannot be reached"):
            await said(asking, stream=False)
        record = await found.ledger.outcome()
    assert [each["target"] for each in record["attempts"]] == ["own", "own", "hosted"]
    assert len({each["node"] for each in record["attempts"]}) == 3
    assert {each["outcome"] for each in record["attempts"]} == {"connect"}
    assert "cost_usd" not in record


@pytest.mark.parametrize("retry", [{"attempts": 1}, {"share": 0}])
async def test_an_operator_can_do_without_second_attempts(cluster: Cluster, retry: Mapping[str, float]) -> None:
    cluster.standin.will("not-ready")
    async with running_standins_here() as hosted:
        targets = [
            {"name": "own", "kind": "parallax", "url": cluster.url},
            {"name": "hosted", "kind": "openai", "url": f"{hosted.openai_url}/v1", "key": OPENAI_KEY},
        ]
        arms = [{"target": "own", "weight": 100}, {"target": "hosted", "weight": 0, "fallback": True}]
        routes = [{"name": "chat", "models": ["*"], "arms": arms, "retry": retry}]
        async with gate(targets=targets, routes=routes) as found, client(found) as asking:
            with pytest.raises(openai.InternalServerError):
                await said(asking, stream=False)
            assert hosted.openai.requests == []


async def test_no_call_fails_over_to_a_target_that_was_taken_back(cluster: Cluster) -> None:
    cluster.standin.will("routing-not-ready")
    async with running_standins_here() as hosted, gates(cluster, hosted) as found, client(found) as asking:
        (route,) = found.pipeline.assembly.table.routes
        route.weigh({"own": 100.0, "hosted": 0.0}, barred={"hosted"})
        with pytest.raises(openai.InternalServerError):
            await said(asking, stream=False)
        assert hosted.openai.requests == []


async def test_what_one_targets_protocol_has_no_words_for_goes_to_an_arm_that_has() -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    async with running_standins_here() as standins:
        targets = [
            {"name": "claude", "kind": "anthropic", "url": standins.anthropic_url, "key": ANTHROPIC_KEY},
            {"name": "hosted", "kind": "openai", "url": f"{standins.openai_url}/v1", "key": OPENAI_KEY},
        ]
        arms = [{"target": "claude", "weight": 100, "model": "claude-sonnet-4-5"}, {"target": "hosted", "weight": 0}]
        for fallback, status in ((True, 200), (False, 400)):
            routes = [{"name": "chat", "models": ["*"], "arms": [arms[0], {**arms[1], "fallback": fallback}]}]
            async with gate(targets=targets, routes=routes) as found, client(found) as asking:
                if status == 200:
                    assert len((await asking.chat.completions.create(model=MODEL, messages=messages, n=2)).choices)
                else:
                    with pytest.raises(openai.BadRequestError, match="n"):
                        await asking.chat.completions.create(model=MODEL, messages=messages, n=2)
                assert (await found.ledger.outcome())["status"] == status
    assert standins.anthropic.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_of_another_protocol_reads_in_its_own_what_a_node_rejects(
    cluster: Cluster, stream: bool
) -> None:
    cluster.standin.will(REFUSED)
    async with (
        gates(cluster, None) as found,
        anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{found.port}", api_key=AGENT_KEY, max_retries=0, timeout=20.0
        ) as asking,
    ):
        with pytest.raises(anthropic.BadRequestError) as refused:
            await asking.messages.create(
                model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hello"}], stream=stream
            )
    body = refused.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
