"""What people's systems are told of held calls: signed, in order, until it is taken, and never for ever."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from config.secrets import Secret
from config.settings import AdminSettings, ApprovalSettings, PersonSettings, Settings, WebhookSettings
from gateway.holding import Holds
from gateway.notices import LEASE, LONGEST_BODY, PAUSES, Courier
from gateway.telemetry import Telemetry
from policies.approval_store import Message, StoreUnavailable
from policies.approvals import Approval
from tests.gateway.state.approvals_suite import EVER, HOUR, NOW, SECOND, approval, call
from tests.support.held_calls import KEY, holding, written
from tests.support.listener import Listener, listening
from tests.support.listener import Message as Told
from tests.support.process import serving_beside
from tests.support.register import Register
from tests.support.target import target

NEW, OLD = "whsec_bmV3IHNlY3JldCBvZiB0aGlzIHRlc3Q=", "whsec_b2xkIHNlY3JldCBvZiB0aGlzIHRlc3Q="
PEOPLE = {"dana": ("finance",), "fay": ("finance", "cfo"), "sean": ("security",), "olga": ("finance",)}
"""Their roles. `olga` is the owner of the agent."""


class Clock:
    """Unix nanoseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


class Outbox(Register):
    """A register that tells when something has come of a message, and can lose the word that one was taken."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.ended: list[str] = []
        self.put_off: list[tuple[str, int]] = []
        self.loses = 0
        self._news = asyncio.Event()

    async def delivered(self, message: str) -> None:
        if self.loses:
            self.loses -= 1
            self._news.set()
            raise StoreUnavailable("away")
        await super().delivered(message)
        self.ended.append(message)
        self._news.set()

    async def postponed(self, message: str, until: int) -> None:
        await super().postponed(message, until)
        self.put_off.append((message, until))
        self._news.set()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self._news.clear()
                await self._news.wait()


class Post:
    """A store with messages in it, couriers that have it in common, and what these have written to the ledger."""

    def __init__(self, listener: Listener) -> None:
        self.clock = Clock()
        self.store = Outbox(self.clock)
        self.listener = listener
        self.recorded: list[Mapping[str, Any]] = []
        self.couriers: list[Courier] = []
        self.holds = Holds(self.store, lambda kind, facts: None)

    def settings(self, **facts: Any) -> Settings:
        """With the webhook that a test says, and the escalation."""
        escalate_to = facts.pop("escalate_to", ())
        link = facts.pop("link", "https://gate.example/")
        wanted = {"url": Secret(self.listener.url), "secret": Secret(NEW), **facts}
        people = tuple(
            PersonSettings(name=name, token=Secret("a token of theirs"), roles=roles) for name, roles in PEOPLE.items()
        )
        told = ApprovalSettings(webhook=WebhookSettings(**wanted), link=link, escalate_to=escalate_to)
        settings = Settings(approvals=told, admin=AdminSettings(people=people))
        self.holds.under(settings)
        return settings

    def courier(self, settings: Settings | None = None, *, patience: float = 5.0, jitter: float = 0.5) -> Courier:
        it = Courier(self.store, self._note, patience=patience, jitter=lambda: jitter)
        it.under(settings or self.settings())
        self.couriers.append(it)
        return it

    def _note(self, kind: str, facts: Mapping[str, Any]) -> None:
        self.recorded.append({"record": kind, **facts})

    async def held(self, **facts: Any) -> Approval:
        """A call that people were asked about just now."""
        now = self.clock.now
        times = {"created": now, "decide_by": now + HOUR, "changed": now}
        fresh = approval(**{**times, "requesters": ("olga",), **facts})
        await self.store.open(fresh, [self.message(fresh, "approval.requested")])
        return fresh

    def message(self, of: Approval, what: str) -> Message:
        return Message(f"msg_{of.id}_{of.version}", what, of.id, {"version": of.version}, self.clock.now)

    async def carried(self, courier: Courier, count: int = 1) -> None:
        """Lets a courier take what there is, until something has come of so many messages."""
        before = len(self.store.ended) + len(self.store.put_off)
        await courier.carry()
        await self.store.until(lambda: len(self.store.ended) + len(self.store.put_off) >= before + count)
        await idle(courier)

    async def waiting(self) -> list[str]:
        """All that is in the store, whoever may have it."""
        return [each.id for each in await self.store.messages(EVER, 0, 1000)]


async def idle(courier: Courier) -> None:
    """Lets what has ended be put away."""
    async with asyncio.timeout(10):
        while courier.waiting["under_way"]:
            await asyncio.sleep(0)


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    async with listening() as listener:
        it = Post(listener)
        yield it
        for courier in it.couriers:
            await courier.end(within=0)


@asynccontextmanager
async def at_work(courier: Courier) -> AsyncIterator[Courier]:
    await courier.begin()
    try:
        yield courier
    finally:
        await courier.end(within=0.5)


def verified(message: Told, secret: str, now: int) -> None:
    """As the reference libraries of Standard Webhooks do it: the id, the time within five minutes, and one of the
    signatures."""
    identity, stamp = message.headers["webhook-id"], message.headers["webhook-timestamp"]
    assert abs(int(stamp) - now / SECOND) <= 300
    key = base64.b64decode(secret.removeprefix("whsec_"))
    wanted = base64.b64encode(
        hmac.new(key, b"%s.%s.%s" % (identity.encode(), stamp.encode(), message.body), hashlib.sha256).digest()
    )
    versions = [each.split(",", 1) for each in message.headers["webhook-signature"].split(" ")]
    assert any(version == "v1" and hmac.compare_digest(said.encode(), wanted) for version, said in versions)


async def test_a_held_call_is_told_with_all_that_will_run(post: Post) -> None:
    held = await post.held(call=call(body=b'{"amount": 1.0, "to": "gr\xc3\xb6\xc3\x9fer"}'))
    await post.carried(post.courier())
    (told,) = post.listener.messages
    verified(told, NEW, post.clock.now)
    assert told.headers["webhook-id"] == f"msg_{held.id}_1"
    assert told.facts["type"] == "approval.requested"
    assert told.facts["timestamp"] == "2025-11-21T04:40:00Z"
    data = told.facts["data"]
    assert b'"arguments":{"amount": 1.0, "to": "gr\xc3\xb6\xc3\x9fer"}' in told.body
    assert data["id"] == held.id
    assert data["link"] == f"https://gate.example/approvals/{held.id}"
    assert data["missing_approvals"] == ["finance"]
    assert data["may_decide"] == ["dana", "fay"]
    assert data["event"] == {"version": 1}
    assert await post.waiting() == []


async def test_while_secrets_are_changed_over_both_of_them_verify(post: Post) -> None:
    await post.held()
    await post.carried(post.courier(post.settings(previous_secret=Secret(OLD))))
    (told,) = post.listener.messages
    verified(told, NEW, post.clock.now)
    verified(told, OLD, post.clock.now)
    with pytest.raises(AssertionError):
        verified(told, "whsec_bm8gc2VjcmV0IG9mIHRoaXMgdGVzdA==", post.clock.now)


async def test_what_is_not_taken_is_tried_again_with_growing_pauses_and_then_given_up(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.listener.answers = [500]
    held, courier = await post.held(), post.courier()
    with caplog.at_level(logging.DEBUG):
        for number, pause in enumerate(PAUSES, 1):
            await post.carried(courier)
            assert post.store.put_off[-1] == (f"msg_{held.id}_1", post.clock.now + int(pause * SECOND))
            assert courier.counts["failed"] == number
            post.clock.advance(pause)
        await post.carried(courier)
    assert courier.counts == {"sent": 0, "failed": 9, "given_up": 1, "passed_over": 0, "unasked": 0}
    assert len({each.headers["webhook-id"] for each in post.listener.messages}) == 1
    assert len({each.headers["webhook-timestamp"] for each in post.listener.messages}) == 9
    assert await post.waiting() == []
    (noted,) = post.recorded
    assert noted["event"] == "untold"
    assert noted["approval"] == held.id
    assert (noted["tries"], noted["reason"], noted["agent"]) == (9, "it answers 500", "bot")
    assert [each.levelname for each in caplog.records if each.name == "weighbridge.notices"] == ["WARNING", "ERROR"]
    assert held.id in caplog.text
    said = caplog.text + repr(post.recorded)
    assert "/hook" not in said
    assert NEW not in said


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 4.0), (1.0, 6.0)])
async def test_gateways_that_fail_together_do_not_come_back_together(post: Post, jitter: float, pause: float) -> None:
    post.listener.answers = [500]
    await post.held()
    await post.carried(post.courier(jitter=jitter))
    assert post.store.put_off[-1][1] == post.clock.now + pause * SECOND


@pytest.mark.parametrize("fault", ["hangs", "redirects", "is nowhere"])
async def test_a_receiver_that_fails_is_tried_again(post: Post, fault: str) -> None:
    post.listener.answers = ["hangs" if fault == "hangs" else f"307 location: {post.listener.url}"]
    wanted = post.settings(url=Secret("http://127.0.0.1:9/hook")) if fault == "is nowhere" else post.settings()
    await post.held()
    courier = post.courier(wanted, patience=0.2)
    await post.carried(courier)
    assert courier.counts["failed"] == 1
    assert len(post.store.put_off) == 1
    assert len(post.listener.messages) == (0 if fault == "is nowhere" else 1)


@pytest.mark.parametrize("answer", ["taken, and talks on", "taken, and hangs"])
async def test_an_answer_without_an_end_is_one_that_was_taken(post: Post, answer: str) -> None:
    post.listener.answers = [answer]
    await post.held()
    courier = post.courier(patience=0.2 if "hangs" in answer else 30.0)
    await post.carried(courier)
    assert courier.counts["sent"] == 1
    assert courier.counts["failed"] == 0


async def test_a_receiver_that_is_gone_is_not_asked_again(post: Post) -> None:
    post.listener.answers = [410]
    await post.held()
    courier = post.courier()
    await post.carried(courier)
    assert courier.counts["given_up"] == 1
    assert post.recorded[0]["reason"] == "it answers 410"
    assert await post.waiting() == []


@pytest.mark.parametrize("asked", ["120", "Fri, 21 Nov 2025 04:42:00 GMT"])
async def test_a_receiver_that_asks_for_a_rest_gets_it(post: Post, asked: str) -> None:
    post.listener.answers = [f"429 retry-after: {asked}", 204]
    await post.held()
    courier = post.courier()
    await post.carried(courier)
    assert post.store.put_off[-1][1] == post.clock.now + 120 * SECOND
    await post.held()
    post.clock.advance(119)
    await courier.carry()
    assert courier.waiting == {"under_way": 0, "put_off": 1}
    post.clock.advance(1)
    await post.carried(courier, 2)
    assert courier.counts["sent"] == 2
    assert {each.headers["webhook-timestamp"] for each in post.listener.messages[1:]} == {str(NOW // SECOND + 120)}


async def test_messages_about_one_approval_come_in_their_order(post: Post) -> None:
    held = await post.held()
    post.clock.advance(1)
    await post.holds.vote(held.id, "sean", ["finance"], True)
    await post.carried(post.courier(), 2)
    assert [each.facts["type"] for each in post.listener.messages] == ["approval.requested", "approval.approved"]


async def test_what_follows_a_message_that_is_put_off_waits_for_it(post: Post) -> None:
    post.listener.answers = [500, 204]
    held, courier = await post.held(), post.courier()
    await post.carried(courier)
    await post.holds.vote(held.id, "dana", ["finance"], False, "No.")
    other = await post.held()
    await post.carried(courier, 2)
    assert [each.facts["data"]["id"] for each in post.listener.messages] == [held.id, other.id]
    post.clock.advance(6)
    await post.carried(courier, 2)
    said = [(each.facts["type"], each.facts["data"]["state"]) for each in post.listener.messages]
    assert said[2:] == [("approval.requested", "denied"), ("approval.denied", "denied")]
    assert courier.counts["failed"] == 1


async def test_a_late_message_says_what_has_become_of_the_call(post: Post) -> None:
    held = await post.held()
    await post.holds.vote(held.id, "dana", ["finance"], False, "Not this month.")
    await post.carried(post.courier(), 2)
    first = post.listener.messages[0].facts
    assert first["type"] == "approval.requested"
    assert first["data"]["state"] == "denied"
    assert first["data"]["reason"] == "Not this month."
    assert first["data"]["event"] == {"version": 1}
    assert "may_decide" not in first["data"]


async def test_where_nobody_wants_to_be_told_nothing_piles_up(post: Post) -> None:
    for _ in range(250):
        await post.held()
    courier = post.courier(Settings())
    while await courier.carry():
        pass
    assert await post.waiting() == []
    assert courier.counts["unasked"] == 250


async def test_two_gateways_tell_each_thing_once(post: Post) -> None:
    couriers = [post.courier(), post.courier()]
    ids = [(await post.held()).id for _ in range(60)]
    async with at_work(couriers[0]), at_work(couriers[1]):
        await post.store.until(lambda: len(post.store.ended) == 60)
    assert sorted(each.facts["data"]["id"] for each in post.listener.messages) == sorted(ids)
    assert sum(each.counts["sent"] for each in couriers) == 60
    assert all(each.counts["sent"] for each in couriers)


async def test_what_a_gateway_was_telling_when_it_died_another_one_tells_after_the_lease(post: Post) -> None:
    post.listener.answers = ["hangs", 204]
    held, dying, other = await post.held(), post.courier(), post.courier()
    await dying.carry()
    await post.listener.told(1)
    await dying.end(within=0)
    post.clock.advance(LEASE - 1)
    await other.carry()
    assert other.waiting["under_way"] == 0
    post.clock.advance(1)
    await post.carried(other)
    assert [each.headers["webhook-id"] for each in post.listener.messages] == [f"msg_{held.id}_1"] * 2


async def test_nothing_is_sent_on_a_lease_that_is_about_to_end(post: Post) -> None:
    """The first is taken so late that, of what comes after it, somebody else may be about to tell, too."""
    post.listener.answers = ["taken, and hangs"]
    held, courier = await post.held(), post.courier(patience=0.2)
    await post.holds.vote(held.id, "dana", ["finance"], False)
    await courier.carry()
    await post.listener.told(1)
    post.clock.advance(LEASE - 5)
    await post.store.until(lambda: post.store.ended)
    await idle(courier)
    assert len(post.listener.messages) == 1
    assert await post.waiting() == [f"msg_{held.id}_2"]


async def test_what_was_taken_is_not_sent_again_though_the_store_was_away(post: Post) -> None:
    post.store.loses = 1
    await post.held()
    courier = post.courier()
    await courier.carry()
    await post.store.until(lambda: not post.store.loses)
    await idle(courier)
    post.clock.advance(LEASE)
    await post.carried(courier)
    assert len(post.listener.messages) == 1
    assert await post.waiting() == []
    assert courier.counts["sent"] == 1


async def test_a_courier_outlives_a_store_that_is_away(post: Post) -> None:
    post.store.failure = "away"
    courier = post.courier()
    async with at_work(courier):
        post.store.failure = None
        await post.held()
        await post.store.until(lambda: post.store.ended)
    assert courier.counts["sent"] == 1


async def test_a_call_is_told_of_as_soon_as_it_is_held(post: Post) -> None:
    async with at_work(post.courier()) as courier:
        await post.held()
        await post.store.until(lambda: post.store.ended)
        await idle(courier)
        for _ in range(20):
            await asyncio.sleep(0)  # now it waits
        began = asyncio.get_running_loop().time()
        await post.held()
        await post.listener.told(2)
        assert asyncio.get_running_loop().time() - began < 0.9  # which is less than it takes until it looks by itself


async def test_an_edit_of_the_webhook_holds_for_what_waits(post: Post) -> None:
    post.listener.answers = ["503 retry-after: 300", 204]
    await post.held()
    courier = post.courier()
    await post.carried(courier)
    async with listening() as another:
        courier.under(post.settings(url=Secret(another.url), secret=Secret(OLD)))
        await post.held()
        await post.carried(courier)  # the rest was the other one's
        verified(another.messages[0], OLD, post.clock.now)
    assert len(post.listener.messages) == 1


async def test_of_long_arguments_a_message_has_the_beginning_and_says_so(post: Post) -> None:
    body = b'{"text": "' + "größer ".encode() * 20_000 + b'"}'
    await post.held(call=call(body=body))
    await post.carried(post.courier())
    (told,) = post.listener.messages
    data = told.facts["data"]
    assert data["arguments"] is None
    cut = data["not_in_full"]
    assert body.decode().startswith(cut["beginning"])
    assert LONGEST_BODY - 4 < len(cut["beginning"].encode()) <= LONGEST_BODY
    assert (cut["bytes"], cut["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert "Read the rest at the link" in cut["note"]
    assert len(told.body) < 2 * LONGEST_BODY


async def test_of_a_long_body_that_is_no_text_too(post: Post) -> None:
    body = bytes(range(256)) * 512
    await post.held(call=call(body=body, headers=((b"content-type", b"application/zip"),)))
    await post.carried(post.courier())
    cut = post.listener.messages[0].facts["data"]["not_in_full"]
    assert base64.b64decode(cut["beginning_base64"]) == body[:LONGEST_BODY]


async def test_reminders_say_who_is_missing_and_who_may_decide_instead(post: Post) -> None:
    settings = post.settings(escalate_to=("security",))
    held = await post.held(needs=("finance", "cfo"))
    await post.holds.vote(held.id, "dana", ["finance"], True)
    courier = post.courier(settings)
    await post.carried(courier, 2)
    for share in (0.5, 0.4):
        post.clock.advance(3600 * share)
        await post.holds.look()
        await post.carried(courier)
    _, vote, *reminders = [each.facts for each in post.listener.messages]
    assert vote["type"] == "approval.vote"
    assert vote["data"]["event"] == {"version": 2, "by": "dana"}
    assert vote["data"]["may_decide"] == ["fay"]
    assert [each["type"] for each in reminders] == ["approval.reminder"] * 2
    assert [each["data"]["reminder"] for each in reminders] == [1, 2]
    for each in reminders:
        assert each["data"]["missing_approvals"] == ["cfo"]
        assert each["data"]["escalated_to"] == ["security"]
        assert each["data"]["may_decide"] == ["fay", "sean"]


async def test_an_approval_that_is_forgotten_is_not_told_of(post: Post) -> None:
    held = await post.held()
    del post.store.kept[held.id]
    courier = post.courier()
    await post.carried(courier)
    assert courier.counts["given_up"] == 1
    assert post.listener.messages == []
    assert post.recorded[0]["approval"] == held.id


async def test_what_cannot_be_written_is_put_off_and_keeps_nobody_else_waiting(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = await post.held(), await post.held()
    post.store.kept[broken.id] = replace(broken, created=None)  # type: ignore[arg-type]
    courier = post.courier()
    await post.carried(courier, 2)
    assert [each.facts["data"]["id"] for each in post.listener.messages] == [other.id]
    assert post.store.put_off[0][0] == f"msg_{broken.id}_1"
    assert "failed in the gateway itself" in caplog.text


async def test_metrics_say_what_became_of_messages_and_how_many_wait(post: Post) -> None:
    post.listener.answers = [204, 500]
    telemetry = Telemetry()
    telemetry.courier = courier = post.courier()
    await post.held()
    await post.carried(courier)
    await post.held()
    await post.carried(courier)
    metrics = telemetry.render().decode()
    assert 'weighbridge_approval_messages_total{result="sent"} 1.0' in metrics
    assert 'weighbridge_approval_messages_total{result="failed"} 1.0' in metrics
    assert 'weighbridge_approval_messages_total{result="given_up"} 0.0' in metrics
    assert 'weighbridge_approval_messages_waiting{state="put_off"} 1.0' in metrics
    assert 'weighbridge_approval_messages_waiting{state="under_way"} 0.0' in metrics
    assert post.listener.url not in metrics


@pytest.mark.parametrize("gateways", [1, 3])
@pytest.mark.parametrize("seed", range(3))
async def test_in_any_weather_each_thing_is_taken_once_or_given_up_and_in_order(
    post: Post, gateways: int, seed: int
) -> None:
    chance = random.Random(seed)
    answers: list[int | str] = [chance.choice((204, 204, 500, "503 retry-after: 7", 410)) for _ in range(2000)]
    post.listener.answers = [*answers, 204]
    couriers = [post.courier(jitter=chance.random()) for _ in range(gateways)]
    for number in range(20):
        held = await post.held(needs=("finance", "security"))
        post.clock.advance(chance.random())
        await post.holds.vote(held.id, "dana", ["finance"], True)
        if number % 2:
            await post.holds.vote(held.id, "sean", ["security"], number % 4 == 1)
    while len(post.store.ended) < len(post.store.told):
        for courier in couriers:
            await courier.carry()
        for courier in couriers:
            await idle(courier)
        later = [until for _, until in post.store.put_off if until > post.clock.now]
        post.clock.now = min([post.clock.now + int(LEASE * SECOND), *later])
    tries: dict[str, list[tuple[int, int | str]]] = {}
    for each, answer in zip(post.listener.messages, answers, strict=False):
        tries.setdefault(each.headers["webhook-id"], []).append((int(each.headers["webhook-timestamp"]), answer))
    assert set(tries) == {each.id for each in post.store.told}
    for of_one in tries.values():
        *failed, (_, last) = of_one
        assert last in (204, 410) or len(of_one) == len(PAUSES) + 1
        assert not {204, 410} & {answer for _, answer in failed}
        assert all(second[0] - first[0] >= 4 for first, second in itertools.pairwise(of_one))
    if gateways == 1:
        ended: dict[str, list[int]] = {}
        for which in post.store.ended:
            _, approval_id, version = which.rsplit("_", 2)
            ended.setdefault(approval_id, []).append(int(version))
        assert all(versions == sorted(versions) for versions in ended.values())


async def test_a_channel_hears_of_the_question_and_of_the_end(post: Post) -> None:
    held = await post.held(needs=("finance", "security"))
    await post.holds.vote(held.id, "dana", ["finance"], True)
    await post.holds.vote(held.id, "sean", ["security"], True)
    courier = post.courier(post.settings(format="slack"))
    for _ in range(3):
        await post.carried(courier)
    assert [each.facts["text"] for each in post.listener.messages] == [f"Approved: acme/bot, by dana, sean ({held.id})"]
    verified(post.listener.messages[0], NEW, post.clock.now)
    assert courier.counts["sent"] == 1
    assert courier.counts["passed_over"] == 2


@pytest.mark.parametrize("format_", ["standard", "slack"])
async def test_nobody_is_asked_about_other_arguments_that_are_approved_already(post: Post, format_: str) -> None:
    fresh = await post.held(instead_of="apr_1")
    await post.holds.vote(fresh.id, "dana", ["finance"], True)
    courier = post.courier(post.settings(format=format_))
    while courier.counts["sent"] + courier.counts["passed_over"] < 2:
        await courier.carry()
        await idle(courier)
    (message,) = post.listener.messages
    assert b"requested" not in message.body
    assert courier.counts["passed_over"] == 1


async def test_a_channel_that_refuses_what_an_agent_has_written_is_told_without_it(post: Post) -> None:
    post.listener.answers = [400, 400, 200]
    await post.held()
    courier = post.courier(post.settings(format="slack"))
    for pause in PAUSES[:3]:
        await post.carried(courier)
        post.clock.advance(pause)
    first, second, third = [each.body for each in post.listener.messages]
    assert b"amount" in first
    assert b"amount" in second
    assert b"amount" not in third
    assert b"This is not all" in third
    assert courier.counts["sent"] == 1


async def test_a_gateway_tells_of_the_calls_it_holds_and_of_what_becomes_of_them(tmp_path: Path) -> None:
    async with listening() as listener, target() as model:
        webhook = {"url": listener.url, "secret": NEW}
        approvals = {"webhook": webhook, "link": "https://gate.example"}
        async with holding(written(tmp_path, model.url, approvals=approvals)) as gate:
            held = await gate.hold("finance", "security")
            await listener.told(1)
            await gate.post(f"/approvals/{held}/approve", "finn", comment="fine")
            await listener.told(2)
            await gate.post(f"/approvals/{held}/deny", "sean", comment="No.")
            told = await listener.told(3)
            metrics = (await gate.admin.get("/metrics")).text
    for each in told:
        verified(each, NEW, time.time_ns())
        assert each.facts["data"]["id"] == held
        assert each.facts["data"]["link"] == f"https://gate.example/approvals/{held}"
    assert [each.facts["type"] for each in told] == ["approval.requested", "approval.vote", "approval.denied"]
    assert told[0].facts["data"]["arguments"]["messages"] == [{"role": "user", "content": "pay"}]
    assert told[0].facts["data"]["may_decide"] == ["finn", "fay", "sean", "both"]
    assert told[2].facts["data"]["reason"] == "No."
    assert "weighbridge_approval_messages_total" in metrics


async def test_a_killed_gateway_tells_again_under_the_same_id_when_it_is_back(tmp_path: Path) -> None:
    async with listening() as listener, target() as model:
        listener.answers = ["hangs", 204]
        path = written(tmp_path, model.url, approvals={"webhook": {"url": listener.url}})
        config = yaml.safe_load(path.read_text())
        async with serving_beside(config, tmp_path) as gateway, httpx2.AsyncClient(base_url=gateway.url) as agent:
            headers = {"authorization": f"Bearer {KEY}", "prefer": "respond-async"}
            body = {"model": "gpt-4o", "messages": [], "needs": ["finance"]}
            answer = await agent.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 202
            await listener.told(1)
            os.kill(worker_of(gateway.pid), signal.SIGKILL)
            first, second = await listener.told(2)
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert second.facts["data"]["id"] == first.facts["data"]["id"]


def worker_of(supervisor: int) -> int:
    (worker,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return int(worker)
