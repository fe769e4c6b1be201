"""A bundle from a server: when it is asked for, what is sent along, and every way in which it does not come."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from config.settings import BundleSettings
from policies import fetch
from policies.errors import PolicyError, Problem
from policies.fetch import Server, news, once, recall, remember
from policies.sources import Fetched
from tests.policies.bundles import bundle
from tests.support.bundle_server import BundleServer, bundle_server
from tests.support.steps import longest_step

ONE, TWO = bundle(revision="1"), bundle(revision="2")


@pytest.fixture
async def server() -> AsyncIterator[BundleServer]:
    async with bundle_server() as running:
        running.content = ONE
        yield running


def settings(server: BundleServer, path: str = "/bundle.tar.gz", **more: Any) -> BundleSettings:
    return BundleSettings.model_validate({"url": server.address + path, "poll": 0.05, **more})


async def failure(asked: BundleSettings) -> Problem:
    with pytest.raises(PolicyError) as caught:
        await once(asked)
    (only,) = caught.value.problems
    assert only.file == asked.url
    return only


async def test_a_bundle_is_fetched_as_it_is(server: BundleServer) -> None:
    found = await once(settings(server))
    assert (found.name, found.content) == (server.address + "/bundle.tar.gz", ONE)
    sent = server.requests[0].headers
    assert (sent["accept-encoding"], sent["prefer"]) == ("identity", "modes=snapshot")
    assert "authorization" not in sent
    assert "if-none-match" not in sent


async def test_only_a_new_bundle_is_fetched_again(server: BundleServer) -> None:
    async with aclosing(news(settings(server))) as heard:
        assert await anext(heard) == Fetched(server.address + "/bundle.tar.gz", ONE)
        assert await anext(heard) is None
        assert await anext(heard) is None
        await server.publish(TWO)
        assert await anext(heard) == Fetched(server.address + "/bundle.tar.gz", TWO)
        assert await anext(heard) is None
    assert [request.headers.get("if-none-match") for request in server.requests][:2] == [None, _etag(server, ONE)]


def _etag(server: BundleServer, content: bytes) -> str:
    other = BundleServer()
    other.content = content
    return other.etag


async def test_a_server_without_etags_sends_the_whole_each_time_and_only_another_is_news(server: BundleServer) -> None:
    async with aclosing(news(settings(server, "/plain"))) as heard:
        assert await anext(heard) == Fetched(server.address + "/plain", ONE)
        assert await anext(heard) is None
        await server.publish(TWO)
        assert await anext(heard) == Fetched(server.address + "/plain", TWO)
        assert await anext(heard) is None
        await server.publish(ONE)
        assert await anext(heard) == Fetched(server.address + "/plain", ONE)


async def test_asking_for_the_first_time_holds_nobody_up(server: BundleServer) -> None:
    """The trusted authorities are read then, which takes twenty milliseconds."""
    asked = Server(settings(server))
    async with longest_step() as step:
        assert isinstance(await asked.ask(), Fetched)
    await asked.close()
    assert step.seconds < 0.015


async def test_a_long_poll_brings_a_new_bundle_at_once(server: BundleServer) -> None:
    server.holds = True
    async with aclosing(news(settings(server, poll=60, long_poll=30))) as heard:
        assert isinstance(await anext(heard), Fetched)
        waiting = asyncio.ensure_future(anext(heard))
        await server.asked(2)
        assert server.requests[1].headers["prefer"] == "modes=snapshot;wait=30"
        assert not waiting.done()
        began = time.monotonic()
        await server.publish(TWO)
        assert await waiting == Fetched(server.address + "/bundle.tar.gz", TWO)
        assert time.monotonic() - began < 5


async def test_a_long_poll_may_end_without_news(server: BundleServer) -> None:
    server.holds = True
    async with aclosing(news(settings(server, poll=60, long_poll=1, timeout=5))) as heard:
        assert isinstance(await anext(heard), Fetched)
        assert await anext(heard) is None
        assert server.requests[1].wait == 1


async def test_a_server_that_does_not_hold_long_polls_is_polled(server: BundleServer) -> None:
    async with aclosing(news(settings(server, long_poll=30))) as heard:
        assert isinstance(await anext(heard), Fetched)
        assert await anext(heard) is None
    assert server.requests[1].wait == 0


async def test_the_token_goes_to_this_server_alone(server: BundleServer) -> None:
    server.token = "a-token-nobody-knows"
    assert "answers 401" in (await failure(settings(server))).message
    found = await once(settings(server, token=server.token))
    assert found.content == ONE
    async with bundle_server() as other:
        other.content = TWO
        server.elsewhere = other.address + "/bundle.tar.gz"
        told = await failure(settings(server, "/redirect", token=server.token))
        assert "points elsewhere" in told.message
        assert other.requests == []
    assert server.token not in str(told)


async def test_a_token_that_is_missing_is_named(server: BundleServer) -> None:
    told = await failure(settings(server, token="env:A_NAME_THAT_NOBODY_SET"))
    assert "policy.bundle.token (env:A_NAME_THAT_NOBODY_SET)" in told.message
    assert server.requests == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/status/404", "answers 404"),
        ("/status/403", "does not accept policy.bundle.token"),
        ("/status/500", "answers 500"),
        ("/status/204", "answers 204"),
        ("/status/304", "answers 304"),
        ("/encoded", "content encoding"),
        ("/cut", "cannot be reached"),
        ("/endless", "more than 33554432 bytes"),
        ("/silent", "did not answer within 0.5 s"),
    ],
)
async def test_what_is_no_bundle_is_told(server: BundleServer, path: str, message: str) -> None:
    # A generous deadline for the one that sends as fast as it can, a short one for the one that never does.
    timeout = 0.5 if path == "/silent" else 10
    assert message in (await failure(settings(server, path, timeout=timeout))).message


async def test_a_server_that_is_not_there_is_told() -> None:
    async with bundle_server() as gone:
        address = gone
    assert "cannot be reached" in (await failure(settings(address))).message


async def test_the_environments_proxies_are_not_asked(server: BundleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert (await once(settings(server))).content == ONE


async def test_a_server_is_asked_again_after_a_failure(server: BundleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.01)
    server.token = "somebody-elses-token"
    async with aclosing(news(settings(server))) as heard:
        first, second = await anext(heard), await anext(heard)
        assert isinstance(first, Problem)
        assert first == second
        server.token = None
        assert isinstance(await anext(heard), Fetched)
        assert await anext(heard) is None
        server.token = "somebody-elses-token"
        assert isinstance(await anext(heard), Problem)
        server.token = None
        assert isinstance(await anext(heard), Fetched), "after a failure nothing is taken to be known"


def test_a_bundle_is_kept_for_its_own_server_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "bundles"
    here, there = (BundleSettings.model_validate({"url": f"http://127.0.0.1:{port}/b.tar.gz"}) for port in (1, 2))
    assert recall(folder, here) is None
    for content in (ONE, TWO):
        remember(folder, Fetched(here.url, content))
        assert recall(folder, here) == Fetched(here.url, content)
    assert recall(folder, there) is None
    (kept,) = folder.iterdir()
    assert (kept.stat().st_mode & 0o077, folder.stat().st_mode & 0o077) == (0, 0)


def test_a_bundle_that_cannot_be_kept_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = BundleSettings.model_validate({"url": "http://127.0.0.1:1/b.tar.gz"})
    remember(tmp_path / "file", Fetched(settings.url, ONE))
    assert recall(tmp_path / "file", settings) is None


def test_pauses_grow_with_failures_and_never_fall_together() -> None:
    asked = Server(BundleSettings.model_validate({"url": "http://127.0.0.1:1", "poll": 10}))
    for failures, most in ((1, 0.5), (2, 1.0), (5, 8.0), (8, 60.0), (1000, 60.0)):
        pauses = {fetch._pause(asked, failures, False, 0.0) for _ in range(20)}
        assert all(most / 2 <= pause <= most for pause in pauses)
        assert len(pauses) > 1
    assert all(9 <= fetch._pause(asked, 0, True, 0.0) <= 11 for _ in range(20))


async def test_a_held_question_that_is_answered_at_once_does_not_become_a_storm(server: BundleServer) -> None:
    """A server that promises to hold long polls, and answers each at once that nothing has changed."""
    asked = Server(settings(server, long_poll=30, poll=60))
    server.holds = True
    assert isinstance(await asked.ask(), Fetched)
    assert fetch._pause(asked, 0, True, 0.01) == pytest.approx(0.99)
    assert fetch._pause(asked, 0, True, 30.0) == 0
    assert fetch._pause(asked, 0, False, 0.01) == pytest.approx(0.24), "nor one that always has another"
    assert fetch._pause(asked, 0, False, 30.0) == 0
    await asked.close()
