"""What people's own systems are told: signed, beside the calls, and not for ever."""

import asyncio
import base64
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.secrets import Secret
from config.settings import WebhookSettings
from gateway import webhooks as sending_part
from gateway.webhooks import LONGEST_REST, Try, Webhooks, attempt, signature
from tests.gateway.test_carrier_tls import LOOPBACK, Authority
from tests.support.listener import Listener, listening

NOW = 1_763_700_000.5


def to(url: str, secret: str | None = None, **facts: Any) -> WebhookSettings:
    return WebhookSettings(url=Secret(url), secret=Secret(secret) if secret is not None else None, **facts)


@asynccontextmanager
async def sending(pauses: Sequence[float] = (0.01, 0.01), patience: float = 5.0) -> AsyncIterator[Webhooks]:
    it = Webhooks(pauses=pauses, patience=patience, clock=lambda: NOW)
    try:
        yield it
    finally:
        await it.close(within=0.5)


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)  # what is counted tells nobody


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening() as it:
        yield it


async def test_a_message_is_signed_as_standard_webhooks_are(listener: Listener) -> None:
    async with sending() as webhooks:
        webhooks.send(to(listener.url, "not in base64"), "rollout.abort", {"route": "chat", "text": "größer"})
        (message,) = await listener.told(1)
    assert message.path == "/hook"
    assert message.headers["content-type"] == "application/json"
    assert message.facts == {
        "type": "rollout.abort",
        "timestamp": "2025-11-21T04:40:00Z",
        "data": {"route": "chat", "text": "größer"},
    }
    identity, stamp = message.headers["webhook-id"], message.headers["webhook-timestamp"]
    assert stamp == "1763700000"
    signed = hmac.new(b"not in base64", f"{identity}.{stamp}.".encode() + message.body, hashlib.sha256).digest()
    assert message.headers["webhook-signature"] == "v1," + base64.b64encode(signed).decode()


def test_the_specifications_own_example_is_signed_as_it_says() -> None:
    """Standard Webhooks 1.0.0, the reference libraries' test."""
    signed = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_without_a_secret_nothing_is_signed(listener: Listener) -> None:
    async with sending() as webhooks:
        webhooks.send(to(listener.url), "rollout.start", {})
        (message,) = await listener.told(1)
    assert "webhook-signature" not in message.headers


async def test_what_is_not_taken_is_sent_again_under_the_same_id(listener: Listener) -> None:
    listener.answers = [500, 404, 200]
    async with sending() as webhooks:
        webhooks.send(to(listener.url, "secret"), "rollout.rollback", {"n": 1})
        first, *others = await listener.told(3)
        await until(lambda: webhooks.counts["sent"])
        assert webhooks.counts == {"sent": 1, "failed": 2, "given_up": 0}
    assert {each.headers["webhook-id"] for each in others} == {first.headers["webhook-id"]}
    assert {each.body for each in others} == {first.body}


@pytest.mark.parametrize("fault", ["refuses", "hangs", "redirects", "is nowhere", "is no address"])
async def test_what_nobody_takes_is_given_up_and_the_log_does_not_say_where_it_went(
    listener: Listener, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers: dict[str, int | str] = {"hangs": "hangs", "redirects": 307}
    listener.answers = [answers.get(fault, 403)]
    url = {"is nowhere": "http://127.0.0.1:9/hidden", "is no address": "mailto:hidden"}.get(fault, listener.url)
    async with sending(patience=0.2) as webhooks:
        with caplog.at_level(logging.DEBUG):
            webhooks.send(to(url), "rollout.pause", {})
            await until(lambda: webhooks.counts["given_up"])
        assert webhooks.counts == {"sent": 0, "failed": 3, "given_up": 1}
    (said,) = [each.getMessage() for each in caplog.records if each.name == "weighbridge.webhooks"]
    assert said.startswith("the webhook was not told of rollout.pause: it")
    assert "hidden" not in caplog.text
    assert "/hook" not in caplog.text


async def test_what_is_taken_is_not_sent_again_because_the_answer_has_no_end(listener: Listener) -> None:
    listener.answers = ["taken, and hangs"]
    async with sending(patience=0.2) as webhooks:
        webhooks.send(to(listener.url), "rollout.abort", {})
        await until(lambda: any(webhooks.counts.values()))
    assert webhooks.counts == {"sent": 1, "failed": 0, "given_up": 0}
    assert len(listener.messages) == 1


@pytest.mark.parametrize("told", ["\ud800", 2**64, {1: 1}], ids=["no text", "no number of JSON's", "no key of JSON's"])
async def test_what_cannot_be_put_in_words_is_given_up_and_harms_nobody(
    caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    async with sending() as webhooks:
        webhooks.send(to("http://127.0.0.1:9"), "rollout.abort", {"text": told})
    assert webhooks.counts == {"sent": 0, "failed": 0, "given_up": 1}
    assert "rollout.abort" in caplog.text


async def test_a_secret_that_is_gone_is_told_by_its_reference(caplog: pytest.LogCaptureFixture) -> None:
    gone = WebhookSettings(url=Secret("env:NO_SUCH_HOOK", environ={}))
    async with sending(pauses=()) as webhooks:
        webhooks.send(gone, "rollout.pause", {})
        await until(lambda: webhooks.counts["given_up"])
    assert "NO_SUCH_HOOK" in caplog.text


async def test_the_end_does_not_wait_for_tries_to_come(listener: Listener) -> None:
    listener.answers = [500]
    webhooks = Webhooks(pauses=(3600.0,))
    webhooks.send(to(listener.url), "rollout.pause", {})
    await listener.told(1)
    async with asyncio.timeout(2):
        await webhooks.close()
    assert webhooks.counts == {"sent": 0, "failed": 1, "given_up": 1}


async def test_the_end_waits_a_little_for_one_that_hangs(listener: Listener) -> None:
    listener.answers = ["hangs"]
    webhooks = Webhooks()
    webhooks.send(to(listener.url), "rollout.pause", {})
    await listener.told(1)
    async with asyncio.timeout(2):
        await webhooks.close(within=0.05)
    assert webhooks.counts["given_up"] == 1


async def test_no_more_than_so_many_are_under_way(listener: Listener) -> None:
    listener.answers = ["hangs"]
    webhooks = Webhooks()
    for number in range(300):
        webhooks.send(to("http://127.0.0.1:9"), "rollout.pause", {"n": number})
    assert webhooks.counts["given_up"] == 300 - 256
    await webhooks.close(within=0)


async def test_while_secrets_are_changed_over_both_of_them_sign(listener: Listener) -> None:
    async with sending() as webhooks:
        webhooks.send(to(listener.url, "new", previous_secret=Secret("old")), "rollout.start", {})
        (message,) = await listener.told(1)
    identity, stamp = message.headers["webhook-id"], message.headers["webhook-timestamp"]
    wanted = [signature(secret, identity, stamp, message.body) for secret in ("new", "old")]
    assert message.headers["webhook-signature"].split(" ") == wanted


async def test_a_receiver_that_is_gone_is_not_asked_again(listener: Listener) -> None:
    listener.answers = [410]
    async with sending() as webhooks:
        webhooks.send(to(listener.url), "rollout.pause", {})
        await until(lambda: webhooks.counts["given_up"])
        assert webhooks.counts == {"sent": 0, "failed": 1, "given_up": 1}


async def test_who_stands_in_the_address_is_told_as_a_header(listener: Listener) -> None:
    async with sending() as webhooks:
        webhooks.send(to(listener.url.replace("://", "://gate:p%40ss@")), "rollout.pause", {})
        (message,) = await listener.told(1)
    assert message.headers["authorization"] == "Basic " + base64.b64encode(b"gate:p@ss").decode()
    assert "gate" not in message.headers["host"]


@pytest.mark.parametrize(
    ("retry_after", "rest"),
    [
        ("7", 7.0),
        ("Fri, 21 Nov 2025 04:40:30 GMT", 29.5),
        ("Fri, 21 Nov 2025 04:00:00 GMT", 0.0),
        ("999999999999999999", LONGEST_REST),
        ("soon", 0.0),
        ("-5", 0.0),
    ],
)
async def test_a_receiver_says_for_how_long_it_wants_to_be_left_alone(
    listener: Listener, retry_after: str, rest: float
) -> None:
    listener.answers = [f"503 retry-after: {retry_after}"]
    assert await attempt(to(listener.url), "msg_1", b"{}", now=NOW) == Try("it answers 503", rest=rest)


async def test_a_channel_is_told_of_a_rollout_in_words(listener: Listener) -> None:
    async with sending() as webhooks:
        facts = {"route": "chat", "text": "parallax is taken back: <!here> 17 of 319 calls failed"}
        webhooks.send(to(listener.url, format="slack"), "rollout.rollback", facts)
        (message,) = await listener.told(1)
    header, section = message.facts["blocks"]
    assert header["text"]["text"] == message.facts["text"] == "rollout.rollback: chat"
    assert section["text"] == {"type": "plain_text", "text": facts["text"], "emoji": False}


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_receiver_is_told_only_where_its_certificate_is_trusted(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "trusted.pem").write_text(authority.pem())
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    sending_part._tls.cache_clear()
    try:
        async with listening(authority.server(LOOPBACK)) as listener:
            came = await attempt(to(listener.url), "msg_1", b"{}", now=NOW)
            assert came == (Try() if trusted else Try("it cannot be reached (ConnectError)"))
            assert len(listener.messages) == trusted
    finally:
        sending_part._tls.cache_clear()
