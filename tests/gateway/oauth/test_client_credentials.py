"""The gateway's own login at a tool: a token, asked for once, kept while it lasts, and told to nobody else."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from config.settings import LoginSettings, ToolSettings
from gateway.oauth.client_credentials import ClientCredentials, credential
from gateway.problems import TargetFailed
from tests.gateway.oauth.test_keys import Clock
from tests.support.authorization import AuthorizationServer, serving

SECRET = "bots:secret/ä"


@pytest.fixture
async def server() -> AsyncIterator[AuthorizationServer]:
    async with serving() as each:
        yield each


@pytest.fixture
def clock() -> Clock:
    return Clock()


def login(server: AuthorizationServer, clock: Clock, **said: Any) -> ClientCredentials:
    written = {"token_url": f"{server.issuer}/token", "client_id": "bots-client", "client_secret": SECRET, **said}
    return ClientCredentials("github", LoginSettings.model_validate(written), clock)


@pytest.mark.parametrize("method", ["basic", "post"])
async def test_a_token_is_asked_for_as_both_ways_have_it(
    server: AuthorizationServer, clock: Clock, method: str
) -> None:
    at = login(server, clock, method=method, scope=["a", "b"], resource="https://mcp.test/mcp")
    ((name, value),) = await at.lines()
    assert name == b"authorization"
    assert value.startswith(b"Bearer ey")
    (form,) = server.forms
    shown = {"client_id": "bots-client", "client_secret": SECRET} if method == "post" else {}
    assert form == {
        "grant_type": "client_credentials", "scope": "a b", "resource": "https://mcp.test/mcp", **shown
    }  # fmt: skip


async def test_a_token_is_kept_until_shortly_before_its_end(server: AuthorizationServer, clock: Clock) -> None:
    at = login(server, clock)
    first = await at.lines()
    clock.now += 269.9
    assert await at.lines() is first
    clock.now += 0.1
    assert await at.lines() != first
    assert server.asked["/token"] == 2


async def test_one_that_does_not_say_for_how_long_is_asked_for_again_after_some_time(
    server: AuthorizationServer, clock: Clock
) -> None:
    server.lifetime = None
    at = login(server, clock)
    await at.lines()
    clock.now += 200
    await at.lines()
    assert server.asked["/token"] == 1
    clock.now += 100
    await at.lines()
    assert server.asked["/token"] == 2


async def test_all_calls_wait_for_the_same_token_and_one_that_leaves_takes_it_from_nobody(
    server: AuthorizationServer, clock: Clock
) -> None:
    at = login(server, clock)
    server.open.clear()
    waiting = [asyncio.create_task(at.lines()) for _ in range(20)]
    await server.knocked.wait()
    waiting[0].cancel()
    server.open.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(each is found[1] for each in found[1:])
    assert server.asked["/token"] == 1


async def test_a_refused_token_is_replaced_once_for_all_who_had_it(server: AuthorizationServer, clock: Clock) -> None:
    at = login(server, clock)
    refused = await at.lines()
    clock.now += 10
    fresh = await asyncio.gather(*(at.renewed(refused) for _ in range(10)))
    assert all(each is fresh[0] for each in fresh)
    assert fresh[0] != refused
    assert server.asked["/token"] == 2
    assert fresh[0] is not None
    assert await at.renewed(fresh[0]) is None, "a new one that is refused is not the one that is wrong"
    assert server.asked["/token"] == 2


async def test_where_no_other_can_be_had_the_refusal_stands(server: AuthorizationServer, clock: Clock) -> None:
    at = login(server, clock)
    refused = await at.lines()
    clock.now += 10
    server.status = 500
    assert await at.renewed(refused) is None


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (400, {"error": "invalid_scope"}, r"answers 400 \(invalid_scope\)"),
        (401, {"error": f"your secret {SECRET} is wrong"}, r"answers 401\."),
        (500, b"<html>", r"answers 500\."),
        (302, b"", r"answers 302\."),
        (200, b"<html>", "without a token"),
        (200, {"access_token": "", "token_type": "Bearer"}, "without a token"),
        (200, {"access_token": "a\r\nx: y", "token_type": "Bearer"}, "without a token"),
        (200, {"access_token": "abc", "token_type": "mac"}, "of another kind"),
        (200, {"access_token": "abc"}, "of another kind"),
        (200, b"x" * 70_000, "too long"),
        (200, [1], "without a token"),
    ],
)
async def test_a_login_that_fails_is_told_in_words_that_give_nothing_away(
    server: AuthorizationServer, clock: Clock, status: int, answer: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.status, server.answer = status, answer
    at = login(server, clock)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            with pytest.raises(TargetFailed, match=told) as error:
                await at.lines()
    assert "github" in str(error.value)
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("weighbridge")]
    assert len(logged) == 1
    for text in (str(error.value), *logged):
        assert SECRET not in text
        assert server.issuer not in text
    assert server.asked["/token"] == 1, "asked again only after a pause"
    server.status, server.answer = 200, None
    clock.now += 1
    assert await at.lines()


async def test_a_wrong_secret_is_told_and_not_repeated(server: AuthorizationServer, clock: Clock) -> None:
    with pytest.raises(TargetFailed, match=r"answers 401 \(invalid_client\)") as error:
        await login(server, clock, client_secret="not-the-secret").lines()
    assert "not-the-secret" not in str(error.value)


async def test_a_server_that_does_not_answer_is_given_up(
    server: AuthorizationServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.oauth.client_credentials._PATIENCE", 0.05)
    server.open.clear()
    with pytest.raises(TargetFailed, match="does not answer"):
        await login(server, clock).lines()
    with pytest.raises(TargetFailed, match="does not answer"):
        await login(server, clock, token_url="http://127.0.0.1:9/token").lines()


async def test_a_secret_that_is_gone_is_a_failed_login(server: AuthorizationServer, clock: Clock) -> None:
    with pytest.raises(TargetFailed, match="secret cannot be had"):
        await login(server, clock, client_secret="env:NO_SUCH_VARIABLE_ANYWHERE").lines()


async def test_a_key_of_the_configuration_is_shown_as_it_is() -> None:
    tool = {"name": "github", "kind": "mcp", "url": "http://127.0.0.1:9"}
    assert await credential(ToolSettings.model_validate(tool)).lines() == []
    own = credential(ToolSettings.model_validate({**tool, "key": "tools-own-key"}))
    lines = await own.lines()
    assert lines == [(b"authorization", b"Bearer tools-own-key")]
    assert await own.renewed(lines) is None
