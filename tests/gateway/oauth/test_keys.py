"""An issuer's keys: asked for when they are needed, and no oftener; kept while nobody answers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from config.settings import IssuerSettings
from gateway.identity import Directory
from gateway.oauth.keys import Keys, usable
from gateway.oauth.tokens import Tokens
from tests.gateway.oauth.test_tokens import AGENTS, NOW, refused, shown, tokens
from tests.support.authorization import AuthorizationServer, public_jwk, serving
from tests.support.exchanges import settings

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def server() -> AsyncIterator[AuthorizationServer]:
    async with serving() as each:
        yield each


@pytest.fixture
def clock() -> Clock:
    return Clock()


def issuer(server: AuthorizationServer, **said: Any) -> IssuerSettings:
    return IssuerSettings.model_validate({"issuer": server.issuer, "jwks_url": f"{server.issuer}/jwks", **said})


def keys(server: AuthorizationServer, clock: Clock) -> Keys:
    return Keys(issuer(server), 600.0, 30.0, clock)


async def settle(held: Keys) -> None:
    """Until nothing is asked for any more."""
    while held._task is not None:
        await asyncio.shield(held._task)


async def test_known_keys_are_found_without_asking(server: AuthorizationServer, clock: Clock) -> None:
    held = keys(server, clock)
    for _ in range(5):
        assert len(await held.find("rsa-1", "RS256")) == 1
        assert len(await held.find(None, "RS256")) == 1
    assert server.asked["/jwks"] == 1


async def test_all_who_need_a_key_at_once_wait_for_one_answer(server: AuthorizationServer, clock: Clock) -> None:
    held = keys(server, clock)
    server.open.clear()
    waiting = [asyncio.create_task(held.find("rsa-1", "RS256")) for _ in range(20)]
    await server.knocked.wait()
    waiting[0].cancel()
    server.open.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(each, list) and len(each) == 1 for each in found[1:])
    assert server.asked["/jwks"] == 1


async def test_an_unknown_key_is_asked_for_and_not_again_before_the_pause_is_over(
    server: AuthorizationServer, clock: Clock
) -> None:
    held = keys(server, clock)
    await held.find("rsa-1", "RS256")
    for _ in range(3):
        assert await held.find("rsa-2", "RS256") == []
    assert server.asked["/jwks"] == 1
    server.keys = ("rsa-1", "rsa-2")
    clock.now += 29.9
    assert await held.find("rsa-2", "RS256") == []
    clock.now += 0.1
    assert len(await held.find("rsa-2", "RS256")) == 1
    assert server.asked["/jwks"] == 2


async def test_tokens_go_on_through_a_rotation_and_end_with_their_key(
    server: AuthorizationServer, clock: Clock
) -> None:
    written = settings(
        agents=AGENTS,
        oauth={
            "resource": "https://gw.test",
            "issuers": [{"issuer": server.issuer, "jwks_url": f"{server.issuer}/jwks"}],
        },
    )
    assert written.oauth is not None
    at = Tokens(written.oauth, Directory(written.agents, written.oauth.issuers), clock=clock)
    (held,) = at._keys.values()
    old = server.token(now=NOW)
    await shown(at, old)
    server.keys = ("rsa-1", "rsa-2")
    new = server.token(now=NOW)
    clock.now += 30
    await shown(at, new)
    await shown(at, old)
    server.keys = ("rsa-2",)
    clock.now += 599
    await shown(at, old)
    await settle(held)
    assert server.asked["/jwks"] == 2
    clock.now += 1
    await shown(at, old)  # nobody waits for keys that are only due
    await settle(held)
    assert server.asked["/jwks"] == 3
    assert "not signed with a key" in await refused(at, old), "remembered or not"
    await shown(at, new)


@pytest.mark.parametrize(
    "answer",
    [
        {"keys": []},
        {"keys": {}},
        {},
        [],
        b"<html>",
        b"",
        b"null",
        {"keys": [1, {"kty": "RSA"}, {"kty": "RSA", "n": 1}]},
    ],
)
@pytest.mark.parametrize("status", [200, 500, 302])
async def test_the_last_keys_stay_while_the_server_gives_none(
    server: AuthorizationServer, clock: Clock, answer: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    held = keys(server, clock)
    await held.find("rsa-1", "RS256")
    server.status, server.answer = status, answer
    clock.now += 600
    with caplog.at_level(logging.INFO, "weighbridge.oauth"):
        held.keep_fresh()
        await settle(held)
        assert len(await held.find("rsa-1", "RS256")) == 1
        assert held.generation == 1
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        for _ in range(6):
            clock.now += 100
            held.keep_fresh()
            await settle(held)
        assert len(caplog.records) == 1, "one complaint is enough"
        server.status, server.answer = 200, None
        clock.now += 100
        held.keep_fresh()
        await settle(held)
    assert "can be had again" in caplog.text
    assert held.generation == 1, "they are the same"


async def test_a_server_that_is_down_is_asked_again_ever_more_rarely(server: AuthorizationServer, clock: Clock) -> None:
    held = keys(server, clock)
    server.status, server.answer = 503, {}
    asked: list[int] = []
    for second in range(100):
        clock.now = 1000.0 + second
        assert await held.find("rsa-1", "RS256") == []
        if server.asked["/jwks"] > len(asked):
            asked.append(second)
    assert asked == [0, 1, 3, 7, 15, 31, 61, 91]
    server.status, server.answer = 200, None
    clock.now += 30
    assert len(await held.find("rsa-1", "RS256")) == 1


async def test_a_call_does_not_wait_for_ever(
    server: AuthorizationServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.oauth.keys.PATIENCE", 0.05)
    server.open.clear()
    at = tokens(server)
    assert "cannot be checked now" in await refused(at, server.token(now=NOW))


async def test_where_nobody_listens_no_token_is_good(clock: Clock) -> None:
    nobody = AuthorizationServer("http://127.0.0.1:9")
    assert "cannot be checked now" in await refused(tokens(nobody), nobody.token(now=NOW))


async def test_an_answer_that_does_not_end_is_not_read(
    server: AuthorizationServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = {"keys": [public_jwk("rsa-1")], "padding": "x" * 600_000}
    assert await keys(server, clock).find("rsa-1", "RS256") == []
    assert "too long" in caplog.text


def test_private_halves_are_passed_over_and_unfit_keys_left_out() -> None:
    good = public_jwk("ec-1")
    broken = {**public_jwk("ec-2"), "x": "AA"}
    strange = [
        {**good, "kid": 7},
        {**good, "kty": "XX"},
        {**good, "crv": ["P-256"]},
        {**good, "key_ops": ["sign"]},
        None,
    ]
    found = usable(orjson.dumps({"keys": [{**good, "d": "AAAA"}, broken, *strange]}), ALGORITHMS)
    assert {name: [kid for kid, _ in each] for name, each in found.items() if each} == {"ES256": ["ec-1"]}


@pytest.mark.parametrize("document", [b"", b"[]", b'{"keys": 1}', b'{"keys": []}'])
def test_what_is_no_key_set_is_not_taken_for_one(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        usable(document, ALGORITHMS)


async def test_keys_can_stand_in_a_file_and_nobody_is_asked_for_them(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    (tmp_path / "keys.json").write_bytes(orjson.dumps(server.jwks))
    at = tokens(server, {"jwks_url": None, "jwks_file": str(tmp_path / "keys.json")})
    await shown(at, server.token(now=NOW))
    assert "not signed with a key" in await refused(at, server.token(key="rsa-2", now=NOW))
    assert server.asked["/jwks"] == 0
    (tmp_path / "keys.json").write_text('{"keys": [{}]}')
    with pytest.raises(OSError, match=r"keys\.json: it holds no key"):
        tokens(server, {"jwks_url": None, "jwks_file": str(tmp_path / "keys.json")})


async def test_a_reload_keeps_keys_that_are_asked_for_as_before_and_checks_tokens_anew(
    server: AuthorizationServer,
) -> None:
    def under(agents: list[dict[str, Any]], previous: Tokens | None, **said: Any) -> Tokens:
        issuers = [{"issuer": server.issuer, "jwks_url": f"{server.issuer}/jwks", **said}]
        written = settings(agents=agents, oauth={"resource": "https://gw.test", "issuers": issuers})
        assert written.oauth is not None
        return Tokens(written.oauth, Directory(written.agents, written.oauth.issuers), previous)

    token = server.token(now=NOW)
    first = under(AGENTS, None)
    await shown(first, token)
    server.status = 503
    second = under(AGENTS[1:], first)
    assert "nobody who is configured" in await refused(second, token), "the agent is gone, its token with it"
    third = under(AGENTS, second, algorithms=["RS256"])
    assert "cannot be checked now" in await refused(third, token), "other settings, other keys"
