"""People decide on held calls over the admin API, on a gateway that holds them, and allow some beforehand."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from gateway.admin import approvals, news
from gateway.admin.approvals import ApprovalView
from gateway.admin.grants import GrantView
from policies import approvals as rules
from policies.approval_store import StoreUnavailable
from policies.approvals import State
from tests.support.bridge import HeldClock
from tests.support.held_calls import Held, holding, token, written
from tests.support.process import serving
from tests.support.redis_server import needs_redis, redis_server
from tests.support.stores import in_memory
from tests.support.target import Target, target

NOBODYS = "apr_01ARZ3NDEKTSV4RRFFQ69G5FAV"
CONTRACT = (
    "id state agent tenant protocol target operation arguments required_approvals votes risk_level explanation created"
    " decide_by use_by"
).split()


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


def arguments(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": "pay"}], "needs": ["finance"], **more}


def arguments_of(what: str) -> dict[str, Any]:
    """What a person sends to do this, besides a comment."""
    return {"arguments": arguments()} if what == "change" else {}


# --- what is held ----------------------------------------------------------------------------------------------------


async def test_a_held_call_is_shown_with_all_that_will_run(gateway: Held) -> None:
    held = await gateway.hold("finance", temperature=1.0, messages=[{"role": "user", "content": "pay \u202e now"}])
    shown = await gateway.get(f"/approvals/{held}")
    ApprovalView.model_validate({**shown, "estimated_cost_usd": 0})
    assert set(CONTRACT) <= set(shown) == set(ApprovalView.model_fields)
    assert (shown["id"], shown["state"], shown["agent"], shown["tenant"]) == (held, "pending", "support-bot", "acme")
    assert (shown["protocol"], shown["target"], shown["operation"]) == ("openai", "gpt-4o", "chat")
    assert shown["arguments"]["messages"] == [{"role": "user", "content": "pay \u202e now"}]
    assert (shown["required_approvals"], shown["missing_approvals"], shown["votes"]) == (["finance"], ["finance"], [])
    assert (shown["risk_level"], shown["explanation"]) == ("high", "Money would move.")
    assert (shown["method"], shown["path"], shown["session"]) == ("POST", "/v1/chat/completions", "s-1")
    assert shown["decide_by"] - shown["created"] == 3600
    assert (shown["use_by"], shown["changes"], shown["mine"]) == (None, None, False)
    assert (await gateway.get(f"/approvals/{held}", "finn"))["mine"] is True
    assert (await gateway.get("/approvals")) == {"items": [shown], "next": None}


async def test_numbers_are_shown_as_they_will_be_sent(gateway: Held) -> None:
    answer = await gateway.agent.post(
        "/v1/chat/completions",
        content=b'{"needs":["finance"],"model":"m","messages":[],"a":1.0,"b":1e2,"c":0.10,"d":-0}',
        headers={"authorization": "Bearer support-bots-own-key", "prefer": "respond-async"},
    )
    shown = await gateway.admin.get(answer.headers["location"], headers=token("sam"))
    assert '"a":1.0,"b":1e2,"c":0.10,"d":-0}' in shown.text


async def test_the_list_is_picked_from_and_comes_in_pages(gateway: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    money = await gateway.hold("finance", n=1)
    locks = await gateway.hold("security", n=2)
    two = await gateway.hold("finance", "security", n=3)
    theirs = await gateway.hold("finance", agent="other-bot", n=4)
    assert await gateway.listed() == [money, locks, two, theirs]
    assert await gateway.listed("?agent=other-bot") == await gateway.listed("?tenant=globex") == [theirs]
    assert await gateway.listed("?role=security") == [locks, two]
    assert await gateway.listed("?mine=true", "finn") == [money, two, theirs]
    assert await gateway.listed("?mine=true", "olga") == [theirs], "who owns an agent does not decide on its calls"
    await gateway.post(f"/approvals/{two}/approve", "finn")
    assert await gateway.listed("?role=finance") == [money, theirs], "that slot is filled"
    assert await gateway.listed("?mine=true", "fay") == [money, theirs], "another yes from finance brings it no nearer"
    await gateway.post(f"/approvals/{locks}/deny", "sean")
    assert await gateway.listed("?state=pending") == [money, two, theirs]
    assert await gateway.listed("?state=pending,denied&role=security") == [locks, two]
    pages: list[str] = []
    after = ""
    while True:
        page = await gateway.get(f"/approvals?page_size=1{after}")
        assert len(page["items"]) <= 1
        pages += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert pages == [money, locks, two, theirs]
    monkeypatch.setattr(approvals, "_MOST_BYTES", 1)
    assert len((await gateway.get("/approvals"))["items"]) == 1, "what is long comes one by one"
    monkeypatch.setattr(approvals, "_FIRST", 1)
    monkeypatch.setattr(approvals, "_MOST_LOOKED_AT", 1)
    page = await gateway.get("/approvals?agent=other-bot")
    assert (page["items"], page["next"]) == ([], money), "who looks for few is told how far was looked"


# --- a person's word -------------------------------------------------------------------------------------------------


async def test_a_yes_lets_the_identical_call_run_once_and_is_on_record(gateway: Held, model: Target) -> None:
    held = await gateway.hold("finance")
    shown = await gateway.post(f"/approvals/{held}/approve", "finn", comment="the invoice is real")
    assert (shown["state"], shown["missing_approvals"]) == ("approved", [])
    (vote,) = shown["votes"]
    assert (vote["person"], vote["approve"], vote["roles"], vote["comment"]) == (
        "finn",
        True,
        ["finance"],
        "the invoice is real",
    )
    assert shown["use_by"] - shown["changed"] == 900
    assert (await gateway.call(needs=["finance"])).status_code == 200
    assert len(gateway.ran(model)) == 1
    assert (await gateway.get(f"/approvals/{held}?wait=10"))["state"] == "done"
    (told,) = [each for each in gateway.recorded("approval") if each["event"] == "approved"]
    assert (told["who"], told["approval"], told["votes"][0]["person"]) == ("finn", held, "finn")


async def test_a_no_is_told_to_the_agent_with_its_reason(gateway: Held, model: Target) -> None:
    held = await gateway.hold("finance")
    assert (await gateway.post(f"/approvals/{held}/deny", "finn", comment="wrong account"))["state"] == "denied"
    answer = await gateway.call(needs=["finance"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "approval_denied")
    assert "A person has denied this call (wrong account)." in answer.json()["error"]["message"]
    assert gateway.ran(model) == []


async def test_two_roles_are_filled_by_two_people_and_one_no_is_enough(gateway: Held) -> None:
    held = await gateway.hold("finance", "security")
    assert (await gateway.post(f"/approvals/{held}/approve", "both"))["state"] == "pending"
    again = await gateway.post(f"/approvals/{held}/approve", "both", 409)
    assert again["detail"] == (
        "You have said yes already, and cannot take it back. A no of anybody else who may decide still denies the "
        "call, and `admin` can cancel it."
    )
    assert (await gateway.post(f"/approvals/{held}/deny", "sean"))["state"] == "denied"
    late = await gateway.post(f"/approvals/{held}/approve", "finn", 409)
    assert late["detail"] == "It is denied: there is nothing to decide any more."


ROLES = {
    "approve": {"finn": 200, "both": 200, "dana": 403, "sean": 403, "olga": 403, "sam": 403},
    "deny": {"finn": 200, "both": 200, "dana": 403, "sean": 403, "olga": 403, "sam": 403},
    "change": {"finn": 200, "both": 200, "dana": 403, "sean": 403, "olga": 403, "sam": 403},
    "cancel": {"finn": 403, "both": 403, "dana": 200, "sean": 403, "olga": 200, "sam": 403},
}
"""What is done to a call that needs `finance`, and the answer to each person; `olga` is the agent's owner."""


async def test_each_thing_is_for_those_who_may(gateway: Held) -> None:
    number = 0
    for what, people in ROLES.items():
        body: dict[str, Any] = {"arguments": arguments(n=-1)} if what == "change" else {}
        for who, status in people.items():
            held = await gateway.hold("finance", n=(number := number + 1))
            answer = await gateway.post(f"/approvals/{held}/{what}", who, status, **body)
            if status == 403:
                assert (await gateway.get(f"/approvals/{held}"))["version"] == 1
            if status == 403 and what != "cancel":
                asks = "You own support-bot, or did when the call was held: others decide on it."
                assert answer["detail"] == (
                    f"{asks if who == 'olga' else 'This needs finance; you have none of these roles.'} "
                    "Who can: finn, fay, both."
                )
            if what == "change" and status == 200:
                await gateway.post(f"/approvals/{answer['id']}/cancel", "dana")
        assert (await gateway.admin.post(f"/approvals/{held}/{what}")).status_code == 401
        agents = {"authorization": "Bearer support-bots-own-key"}
        assert (await gateway.admin.post(f"/approvals/{held}/{what}", headers=agents)).status_code == 401
    for path in ("/approvals", f"/approvals/{held}", "/approvals/stream", "/grants", "/grants/grt_x"):
        assert (await gateway.admin.get(path)).status_code == 401


async def test_whoever_has_seen_another_version_looks_again(gateway: Held) -> None:
    held = await gateway.hold("finance", "security")
    await gateway.post(f"/approvals/{held}/approve", "sean", version=1)
    for what in ("approve", "deny", "change"):
        refused = await gateway.post(f"/approvals/{held}/{what}", "finn", 409, version=1, **arguments_of(what))
        assert refused["detail"] == "It has changed since version 1: it is pending now, at 2."
    assert (await gateway.post(f"/approvals/{held}/approve", "finn", version=2))["state"] == "approved"


async def test_an_admin_takes_back_what_waits_and_what_is_not_used(gateway: Held, model: Target) -> None:
    waits, allowed = await gateway.hold("finance", n=1), await gateway.hold("finance", n=2)
    await gateway.post(f"/approvals/{allowed}/approve", "finn")
    assert (await gateway.post(f"/approvals/{waits}/cancel", "dana", comment="not needed"))["state"] == "cancelled"
    assert (await gateway.post(f"/approvals/{allowed}/cancel", "dana"))["state"] == "revoked"
    assert (await gateway.post(f"/approvals/{allowed}/cancel", "dana", 409))["detail"] == (
        "It is revoked: nobody can cancel it now."
    )
    assert (await gateway.call(needs=["finance"], n=2)).status_code == 202, "it is held anew"
    assert gateway.ran(model) == []
    for who in ("finn", "sam"):
        await gateway.post(f"/approvals/{waits}/cancel", who, 403)
    told = {each["event"]: each for each in gateway.recorded("approval")}
    assert (told["cancelled"]["who"], told["cancelled"]["reason"]) == ("dana", "not needed")
    assert (told["revoked"]["who"], told["revoked"]["reason"]) == ("dana", "dana has taken it back.")


@pytest.mark.parametrize(("verb", "state"), [("ran", "done"), ("not-run", "revoked")])
async def test_an_admin_says_whether_an_unknown_call_ran(gateway: Held, verb: str, state: str) -> None:
    store = gateway.app.holds.store
    held = await gateway.hold("finance")
    await gateway.post(f"/approvals/{held}/approve", "finn")
    assert (
        "only where that is unknown"
        in (await gateway.post(f"/approvals/{held}/{verb}", "dana", 409, comment="x"))["detail"]
    )
    approved = await store.get(held)
    assert approved is not None
    claimed = rules.claimed(approved, "call-1", 1, store.now_ns())
    assert await store.replace(claimed)
    assert await store.replace(rules.moved(claimed, rules.Move.LOSE, store.now_ns(), "nobody knows"))
    await gateway.post(f"/approvals/{held}/{verb}", "finn", 403, comment="looked")
    await gateway.post(f"/approvals/{held}/{verb}", "dana", 409)
    told = await gateway.post(f"/approvals/{held}/{verb}", "dana", comment="looked at the books")
    assert told["state"] == state
    assert told["reason"].endswith(": looked at the books")
    assert gateway.recorded("approval")[-1]["who"] == "dana"


# --- other arguments -------------------------------------------------------------------------------------------------


async def test_a_person_approves_a_call_with_other_arguments(gateway: Held, model: Target) -> None:
    held = await gateway.hold("finance", amount=500, to="x")
    content = json.dumps({"arguments": arguments(amount=5), "comment": "less"}).replace('"amount": 5', '"amount": 5.0')
    answer = await gateway.admin.post(f"/approvals/{held}/change", content=content, headers=token("finn"))
    changed = answer.json()
    assert (answer.status_code, changed["state"], changed["instead_of"]) == (200, "approved", held)
    assert changed["changes"] == [
        {"pointer": "/amount", "old": "500", "new": "5.0"},
        {"pointer": "/to", "old": '"x"', "new": None},
    ]
    assert [each["comment"] for each in changed["votes"]] == ["less"]
    before = await gateway.get(f"/approvals/{held}")
    assert (before["state"], before["became"]) == ("superseded", changed["id"])
    assert (await gateway.get(f"/approvals/{changed['id']}"))["changes"] == changed["changes"]
    assert (await gateway.call(needs=["finance"], amount=500, to="x")).status_code == 200
    (ran,) = gateway.ran(model)
    assert b'"amount":5.0' in ran, "what runs is what was approved, not what was asked for"


async def test_other_arguments_may_be_for_others_to_approve_and_another_call(gateway: Held) -> None:
    held = await gateway.hold("finance")
    wanted = arguments(model="gpt-4o-mini", needs=["security"])
    changed = await gateway.post(f"/approvals/{held}/change", "finn", arguments=wanted)
    assert (changed["state"], changed["missing_approvals"], changed["votes"]) == ("pending", ["security"], [])
    assert (changed["target"], changed["arguments"]) == ("gpt-4o-mini", wanted)
    assert (await gateway.post(f"/approvals/{changed['id']}/approve", "sean"))["state"] == "approved"


async def test_other_arguments_that_cannot_be_are_refused_in_words(gateway: Held) -> None:
    held = await gateway.hold("finance")
    for sent, status, said in (
        (arguments(), 409, "These are the arguments that it has."),
        (arguments(forbidden=True), 409, "The policy denies the call with these arguments: Not that."),
        (arguments(stream=True), 409, "Whether the answer is streamed is its agent's to say."),
        ({"messages": []}, 400, "`model` must be the name of a model, as a string."),
        ({**arguments(), "model": 7}, 400, "`model` must be the name of a model, as a string."),
        ({**arguments(), "big": 2**60}, 400, "not every reader can hold the whole number"),
        ([], 400, "`arguments` are missing"),
        (None, 400, "`arguments` are missing"),
    ):
        refused = await gateway.post(f"/approvals/{held}/change", "finn", status, arguments=sent)
        assert said in refused["detail"]
    assert (await gateway.get(f"/approvals/{held}"))["state"] == "pending"


# --- what happens meanwhile ------------------------------------------------------------------------------------------


async def test_whoever_waits_hears_of_a_change_at_once(gateway: Held) -> None:
    held = await gateway.hold("finance", "security")
    waits = asyncio.create_task(gateway.get(f"/approvals/{held}?wait=30&version=1"))
    while not gateway.app.holds.waiting:
        await asyncio.sleep(0.001)
    await gateway.post(f"/approvals/{held}/approve", "finn")
    async with asyncio.timeout(10):
        assert (await waits)["missing_approvals"] == ["security"]
        assert (await gateway.get(f"/approvals/{held}?wait=30&version=1"))["version"] == 2, "that has changed already"
        assert (await gateway.get(f"/approvals/{held}?wait=0.01"))["version"] == 2, "the time is over"
        given = await gateway.hold("finance", n=1)
        await gateway.post(f"/approvals/{given}/approve", "finn")
        assert (await gateway.get(f"/approvals/{given}?wait=30"))["state"] == "approved", "that is what is waited for"
        uses = asyncio.create_task(gateway.get(f"/approvals/{given}?wait=30&version=2"))
        assert (await gateway.call(needs=["finance"], n=1)).status_code == 200
        assert (await uses)["version"] > 2
        await gateway.post(f"/approvals/{held}/deny", "sean")
        assert (await gateway.get(f"/approvals/{held}?wait=30"))["state"] == "denied", "nothing more will come"


async def test_nobody_who_waits_holds_up_the_end_of_a_gateway(gateway: Held) -> None:
    held = await gateway.hold("finance")
    waits = asyncio.create_task(gateway.get(f"/approvals/{held}?wait=30"))
    follows = asyncio.create_task(gateway.admin.get("/approvals/stream", headers=token("sam")))
    while not gateway.app.holds.waiting:
        await asyncio.sleep(0.001)
    gateway.app.ending.set()
    async with asyncio.timeout(3):
        assert (await waits)["state"] == "pending"
        assert (await follows).text.startswith(": following\n\n")


def test_a_gateway_that_is_told_to_stop_does_not_wait_for_those_who_follow(tmp_path: Path) -> None:
    config = yaml.safe_load(written(tmp_path, "http://127.0.0.1:9").read_text())
    config |= {"listen": {"port": 0, "drain": 15}, "policy": {"paths": [str(tmp_path / "main.rego")]}}
    config["admin"]["listen"] = {"port": 0}
    with serving(config, tmp_path) as process, httpx2.Client(verify=False) as client:
        with client.stream("GET", f"{process.admin}/approvals/stream", headers=token("sam")) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": following"
            process.process.terminate()
            assert process.process.wait(10) == 0
            assert list(lines) == [""]


def test_a_gateway_that_is_told_to_stop_does_not_wait_for_calls_that_people_have_not_decided(tmp_path: Path) -> None:
    config = yaml.safe_load(written(tmp_path, "http://127.0.0.1:9").read_text())
    config |= {"listen": {"port": 0, "drain": 15}, "policy": {"paths": [str(tmp_path / "main.rego")]}}
    config["admin"]["listen"] = {"port": 0}
    wanted = {"model": "gpt-4o", "messages": [{"role": "user", "content": "pay"}], "needs": ["finance"]}
    with serving(config, tmp_path) as process, httpx2.Client(verify=False) as client:
        with ThreadPoolExecutor(1) as agent:
            call = agent.submit(
                client.post,
                f"{process.url}/v1/chat/completions",
                json=wanted,
                headers={"authorization": "Bearer support-bots-own-key"},
                timeout=30,
            )
            with httpx2.Client(verify=False) as people:
                until = time.monotonic() + 10
                while not people.get(f"{process.admin}/approvals", headers=token("sam")).json()["items"]:
                    assert time.monotonic() < until
            process.process.terminate()
            assert process.process.wait(10) == 0
            assert (call.result().status_code, call.result().json()["error"]["code"]) == (403, "approval_pending")


class Feed:
    """A client that follows: its events, one by one."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._lines = answer.aiter_lines()

    async def next(self) -> tuple[str, Any]:
        """An event's name and facts, or a comment, as soon as one comes."""
        found: dict[str, str] = {}
        async with asyncio.timeout(10):
            async for line in self._lines:
                if not line:
                    break
                name, _, value = line.partition(":")
                found[name] = value.strip()
        if "event" in found:
            return found["event"], json.loads(found["data"])
        return "comment", found.get("")


async def test_consoles_follow_what_happens_to_all_approvals(gateway: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "_SIGN_OF_LIFE", 0.05)
    async with gateway.admin.stream("GET", "/approvals/stream", headers=token("sam")) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        feed = Feed(answer)
        assert await feed.next() == ("comment", "following")
        assert await feed.next() == ("comment", "nothing new")
        held = await gateway.hold("finance", secret="x" * 100)
        name, facts = await feed.next()
        while name == "comment":
            name, facts = await feed.next()
        assert (name, facts["id"], facts["state"], facts["version"]) == ("approval", held, "pending", 1)
        assert "arguments" not in facts
        await gateway.post(f"/approvals/{held}/deny", "finn")
        while name != "approval" or facts["version"] == 1:
            name, facts = await feed.next()
        assert (facts["state"], facts["missing_approvals"]) == ("denied", ["finance"])
    head = await gateway.admin.head("/approvals/stream", headers=token("sam"))
    assert (head.status_code, head.content) == (200, b"")


async def test_who_follows_too_slowly_is_told_that_something_was_missed() -> None:
    follower = news.Follower()
    for number in range(300):
        follower.tell(b"%d" % number)
    assert await follower.next(1) == news.MISSED
    assert await follower.next(1) == b"257"
    follower.tell(news.MISSED)
    follower.tell(news.MISSED)
    told = [await follower.next(0) for _ in range(45)]
    assert told.count(news.MISSED) == 1
    assert told[-1] is None


async def test_followers_are_told_where_the_state_cannot_tell_what_changed(
    gateway: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await gateway.hold("finance")
    async with gateway.admin.stream("GET", "/approvals/stream", headers=token("sam")) as answer:
        feed = Feed(answer)
        await feed.next()

        async def silent(_: str) -> None:
            raise StoreUnavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(gateway.app.holds.store, "get", silent)
            for listener in gateway.app.holds.store._listeners:  # type: ignore[attr-defined]  # as the store does
                listener([held, "grt_x"])
            assert await feed.next() == ("missed", {})
        monkeypatch.setattr(news, "_MOST_CHANGED", 1)
        for listener in gateway.app.holds.store._listeners:  # type: ignore[attr-defined]
            listener([held, NOBODYS])
        assert await feed.next() == ("missed", {})


async def test_a_person_who_may_no_longer_ask_follows_no_more(
    gateway: Held, folder: Path, model: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals, "_SIGN_OF_LIFE", 0.05)
    monkeypatch.setattr(news, "MOST_FOLLOWERS", 1)
    async with gateway.admin.stream("GET", "/approvals/stream", headers=token("sam")) as answer:
        feed = Feed(answer)
        await feed.next()
        full = await gateway.admin.get("/approvals/stream", headers=token("dana"))
        assert (full.status_code, full.json()["detail"][:9]) == (503, "1 clients")
        people = [{"name": "dana", "token": "danas-own-token", "roles": ["admin"]}]
        written(folder, model.url, admin={"people": people})
        await gateway.app.reload_config("test")
        while await feed.next() != ("comment", None):
            pass


@needs_redis
async def test_gateways_that_share_a_state_share_approvals_their_news_and_grants(folder: Path, model: Target) -> None:
    with redis_server(folder) as server:
        places = [folder / name for name in ("one", "two")]
        for place in places:
            place.mkdir()
        paths = [written(place, model.url, state=server.url) for place in places]
        async with holding(paths[0]) as one, holding(paths[1]) as two:
            async with two.admin.stream("GET", "/approvals/stream", headers=token("sam")) as answer:
                feed = Feed(answer)
                await feed.next()
                held = await one.hold("finance")
                name, facts = await feed.next()
                while name != "approval":  # what may have been missed before it was there
                    name, facts = await feed.next()
                assert (facts["id"], facts["state"]) == (held, "pending")
                waits = asyncio.create_task(two.get(f"/approvals/{held}?wait=30&version=1"))
                while not two.app.holds.waiting:
                    await asyncio.sleep(0.001)
                await one.post(f"/approvals/{held}/approve", "finn")
                async with asyncio.timeout(10):
                    assert (await waits)["state"] == "approved"
                assert (await two.call(needs=["finance"])).status_code == 200
            made = await one.post("/grants", "finn", **GRANT)
            await known(two, 1)
            assert (await two.call(needs=["finance"], n=1)).status_code == 200
            assert await one.end_grant(made["id"], "finn") == 200
            assert (await two.call(needs=["finance"], n=2)).status_code == 202, "it ends at once"


# --- trouble ---------------------------------------------------------------------------------------------------------


async def test_what_allows_something_waits_for_the_ledger_and_what_forbids_does_not(gateway: Held) -> None:
    held = await gateway.hold("finance")
    gateway.app.ledger.failure = "full"
    for what in ("approve", "change"):
        refused = await gateway.post(f"/approvals/{held}/{what}", "finn", 503, **arguments_of(what))
        assert refused["detail"] == "The ledger cannot be written, and what is not on record is not done."
    await gateway.post("/grants", "finn", 503, **GRANT)
    assert (await gateway.post(f"/approvals/{held}/deny", "finn"))["state"] == "denied"


async def test_a_state_that_does_not_answer_is_told_as_what_it_is(
    gateway: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await gateway.hold("finance")
    made = await gateway.post("/grants", "finn", **GRANT)

    async def silent(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("out of reach")

    store = gateway.app.holds.store
    with monkeypatch.context() as patch:
        for name in ("get", "listed", "replace", "grant", "revoke"):
            patch.setattr(store, name, silent)
        for path in ("/approvals", f"/approvals/{held}", f"/approvals/{held}?wait=1"):
            assert (await gateway.get(path, status=503))["detail"] == "The state does not answer. Ask again later."
        for what in ("approve", "deny", "cancel"):
            refused = await gateway.post(f"/approvals/{held}/{what}", "finn" if what != "cancel" else "dana", 503)
            assert "whether anything has changed is not known" in refused["detail"]
        assert "GET /grants tells" in (await gateway.post("/grants", "finn", 503, **GRANT))["detail"]
        assert await gateway.end_grant(made["id"], "finn") == 503
        patch.setattr(store, "grants", silent)
        assert (await gateway.admin.get("/grants", headers=token("sam"))).status_code == 503
    assert [each["result"] for each in gateway.recorded("grant")] == ["ok", "unknown", "unknown"]


STRANGE: list[tuple[str, str, Any]] = [
    ("GET", "/approvals?state=", None),
    ("GET", "/approvals?state=open", None),
    ("GET", "/approvals?state=pending&state=denied", None),
    ("GET", "/approvals?mine=yes", None),
    ("GET", "/approvals?page_size=0", None),
    ("GET", "/approvals?page_size=501", None),
    ("GET", "/approvals?after=x", None),
    ("GET", "/approvals?stat=pending", None),
    ("GET", "/approvals?tenant=%00%F0%9F%92%A9%ff", None),
    ("GET", "/approvals?agent=%7B%7D%0A", None),
    ("GET", "/approvals/stream?x=1", None),
    ("GET", "/approvals/%00", None),
    ("GET", "/approvals/..%2F..", None),
    ("GET", "/approvals/" + "x" * 5000, None),
    ("GET", "/approvals/" + NOBODYS.lower(), None),
    ("GET", f"/approvals/{NOBODYS}", None),
    ("GET", f"/approvals/{NOBODYS}?wait=-1", None),
    ("GET", f"/approvals/{NOBODYS}?wait=1e9", None),
    ("GET", f"/approvals/{NOBODYS}?version=0", None),
    ("PUT", f"/approvals/{NOBODYS}", b""),
    ("DELETE", "/approvals", None),
    ("GET", "/grants?after=%ff&page_size=1000", None),
    ("GET", "/grants?page_size=x", None),
    ("GET", "/grants/%00", None),
    ("DELETE", "/grants/grt_x", None),
    ("PATCH", "/grants", b"{}"),
]
BODIES: list[bytes] = [
    b"{",
    b"[]",
    b"7",
    b"null",
    b"\xff\xfe{\x00}\x00",
    b'{"comment": 7}',
    b'{"comment": "a\\nb"}',
    b'{"comment": "' + b"x" * 501 + b'"}',
    b'{"comment": "\\ud800"}',
    b'{"comment": "x", "comment": "y"}',
    b'{"\\ud800": 1}',
    b'{"version": 1.0}',
    b'{"version": "1"}',
    b'{"version": 1' + b"0" * 5000 + b"}",
    b'{"version": NaN}',
    b'{"arguments": "x"}',
    b'{"arguments": {"a": "\\ud800"}}',
    b'{"arguments": {"a": 1' + b"0" * 5000 + b"}}",
    b'{"arguments": {"a": 1e999}, "expires_in": 1e999999999}',
    b'{"arguments": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
    b"[" * 100_000,
    b'{"where": {"": NaN}}',
    b'{"agent": "support-bot", "target": "t", "operation": "o", "protocol": "p", "expires_in": 1e99999999}',
    b'{"from": "apr_"}',
    b'{"from": 7}',
    b'{"from": "' + NOBODYS.encode() + b'"}',
    b"x" * 1_200_000,
]


async def test_no_strange_request_is_more_than_a_problem(gateway: Held) -> None:
    held = await gateway.hold("finance")
    wanted = [*STRANGE]
    for path in (f"/approvals/{held}/approve", f"/approvals/{held}/deny", f"/approvals/{held}/change", "/grants"):
        wanted += [("POST", path, each) for each in BODIES]
    wanted += [("POST", f"/approvals/{NOBODYS}/{what}", b"{}") for what in ("approve", "deny", "cancel")]
    for method, path, content in wanted:
        answer = await gateway.admin.request(method, path, content=content, headers=token("finn"))
        problem = answer.headers["content-type"] == "application/problem+json"
        assert problem or (answer.status_code == 200 and method == "GET"), (method, path, content)
        assert answer.status_code < 500, (method, path, content, answer.text)
    assert (await gateway.get(f"/approvals/{held}"))["version"] == 1
    assert await gateway.get("/grants") == {"items": [], "next": None}


# --- allowed beforehand ----------------------------------------------------------------------------------------------

GRANT: dict[str, Any] = {
    "agent": "support-bot",
    "tenant": "acme",
    "protocol": "openai",
    "target": "gpt-4o",
    "operation": "chat",
    "where": {},
    "expires_in": "1h",
    "max_uses": 2,
}


def of(approval: str) -> dict[str, Any]:
    """Takes a grant's facts from an approval."""
    return {"from": approval}


async def known(gateway: Held, count: int) -> None:
    """This gateway goes by so many grants."""
    async with asyncio.timeout(10):
        while len(gateway.app.holds._grants) != count:
            await asyncio.sleep(0.001)


async def test_calls_that_are_allowed_beforehand_are_not_held(gateway: Held, model: Target) -> None:
    made = await gateway.post("/grants", "finn", **{**GRANT, "where": {"/to": "vendor"}}, comment="month's end")
    GrantView.model_validate({**made, "cost_usd": 0})
    assert set(made) == set(GrantView.model_fields)
    assert (made["by"], made["roles"], made["session"], made["uses"]) == (["finn"], ["finance"], None, 0)
    assert made["expires"] - made["created"] == 3600
    await known(gateway, 1)
    assert (await gateway.call(needs=["finance"], to="vendor")).status_code == 200
    assert (await gateway.call(needs=["finance"], to="mallory")).status_code == 202
    assert (await gateway.call(needs=["security"], to="vendor")).status_code == 202, "that is for others to allow"
    assert (await gateway.call(needs=["finance", "security"], to="vendor")).status_code == 202
    assert (await gateway.call(needs=["finance"], to="vendor", agent="other-bot")).status_code == 202
    assert (await gateway.get(f"/grants/{made['id']}"))["uses"] == 1
    assert (await gateway.call(needs=["finance"], to="vendor", session="s-2")).status_code == 200
    assert (await gateway.call(needs=["finance"], to="vendor", session="s-3")).status_code == 202, "it is used up"
    assert len(gateway.ran(model)) == 2
    assert await gateway.get("/grants") == {"items": [], "next": None}
    (record,) = gateway.recorded("grant")
    assert (record["event"], record["who"], record["grant"], record["where"], record["comment"]) == (
        "made",
        "finn",
        made["id"],
        {"/to": "vendor"},
        "month's end",
    )


async def test_a_grant_ends_at_once_when_it_is_taken_back(gateway: Held) -> None:
    made = await gateway.post("/grants", "finn", **GRANT)
    await known(gateway, 1)
    assert (await gateway.call(needs=["finance"])).status_code == 200
    for who, status in (("sam", 403), ("sean", 403), ("fay", 200), ("dana", 404)):
        assert await gateway.end_grant(made["id"], who) == status, who
    assert (await gateway.call(needs=["finance"], session="s-2")).status_code == 202
    assert [(each["event"], each["who"]) for each in gateway.recorded("grant")] == [
        ("made", "finn"),
        ("revoked", "fay"),
    ]


async def test_a_grant_from_an_approval_is_for_that_very_call_unless_it_says_more(gateway: Held) -> None:
    held = await gateway.hold("finance", amount=5)
    made = await gateway.post("/grants", "finn", **of(held), expires_in=600, max_uses=9)
    assert (made["agent"], made["target"], made["operation"], made["session"]) == (
        "support-bot",
        "gpt-4o",
        "chat",
        "s-1",
    )
    assert made["where"] == {"": (await gateway.get(f"/approvals/{held}"))["arguments"]}
    await known(gateway, 1)
    assert (await gateway.call(needs=["finance"], amount=5)).status_code == 200
    assert (await gateway.call(needs=["finance"], amount=6)).status_code == 202
    assert (await gateway.call(needs=["finance"], amount=5, session="s-2")).status_code == 202
    wider: dict[str, Any] = {"from": held, "session": None, "where": {}, "expires_in": 600, "max_cost_usd": 0.5}
    assert (await gateway.post("/grants", "finn", **wider))["max_cost_usd"] == 0.5
    locks = await gateway.hold("security")
    made = await gateway.post("/grants", "both", **of(locks), expires_in=600, max_uses=1)
    assert made["roles"] == ["security"], "what such calls need, of the roles that its maker has"
    for more in ({"role": "finance"}, {"target": "gpt-4"}, {"tenant": "globex"}):
        await gateway.post("/grants", "both", 400, **of(locks), expires_in=600, max_uses=1, **more)
    two = await gateway.hold("finance", "security")
    refused = await gateway.post("/grants", "both", 403, **of(two), expires_in=600, max_uses=9)
    assert refused["detail"] == (
        "Such calls need finance, security, each from a person of its own: nobody allows them alone."
    )


async def test_a_grant_from_a_call_that_waits_lets_it_go_and_is_used_by_that(gateway: Held, model: Target) -> None:
    held = await gateway.hold("finance", amount=5)
    other = await gateway.hold("finance", amount=6)
    made = await gateway.post("/grants", "finn", **of(held), expires_in=600, max_uses=1)
    assert made["uses"] == 1
    assert (await gateway.call(needs=["finance"], amount=5)).status_code == 200
    assert (await gateway.get(f"/approvals/{held}"))["votes"][0]["comment"] == f"by the grant {made['id']}"
    assert (await gateway.call(needs=["finance"], amount=5)).status_code == 202, "it is used up"
    assert (await gateway.get(f"/approvals/{other}"))["state"] == "pending", "another call"
    assert len(gateway.ran(model)) == 1


async def test_a_grant_from_a_call_without_a_session_is_for_calls_without_one(gateway: Held) -> None:
    held = await gateway.hold("finance", amount=5, session=None)
    made = await gateway.post("/grants", "finn", **of(held), expires_in=600, max_uses=9)
    assert made["session"] == ""
    await known(gateway, 1)
    assert (await gateway.call(needs=["finance"], amount=5, session=None)).status_code == 200
    assert (await gateway.call(needs=["finance"], amount=5, session="s-2")).status_code == 202
    wanted: dict[str, Any] = {**GRANT, "session": ""}
    assert (await gateway.post("/grants", "finn", **wanted))["session"] == ""


async def test_arguments_that_are_masked_in_the_ledger_are_so_in_the_record_of_a_grant(gateway: Held) -> None:
    held = await gateway.hold("finance", amount=5)
    await gateway.post("/grants", "finn", **of(held), expires_in=600, max_uses=9)
    await gateway.post("/grants", "finn", **{**GRANT, "where": {"/messages/0/content": "secret", "/amount": 7}})
    first, second = gateway.recorded("grant")
    assert (first["from"], first["where"][""]["messages"], first["where"][""]["amount"]) == (held, "***", 5)
    assert second["where"] == {"/messages/0/content": "***", "/amount": 7}


async def test_where_a_policy_masks_records_the_record_of_a_grant_has_no_values(folder: Path, model: Target) -> None:
    (folder / "mask.rego").write_text('package system.log\n\nmask contains "/input/call/arguments/to"\n')
    async with holding(written(folder, model.url, policy={"paths": ["main.rego", "mask.rego"]})) as gateway:
        await gateway.post("/grants", "finn", **{**GRANT, "where": {"/to": "vendor"}})
        assert [each["where"] for each in gateway.recorded("grant")] == [{"/to": "***"}]


async def test_what_may_be_allowed_beforehand_and_by_whom(gateway: Held) -> None:
    for who, more, status, said in (
        ("sam", {}, 400, "`role` is missing: the one whose word such calls need. You have none."),
        ("both", {}, 400, "`role` is missing"),
        ("both", {"role": "security"}, 200, ""),
        ("finn", {"role": "security"}, 403, "You do not have the role security."),
        ("olga", {"role": "finance"}, 403, "You own support-bot, so others allow its calls."),
        ("finn", {"expires_in": "9h"}, 400, "A grant lasts for 8h at most (`approvals.longest_grant`)."),
        ("finn", {"expires_in": 0}, 400, "A grant has to last for some time."),
        ("finn", {"expires_in": "soon"}, 400, "`expires_in` is no duration"),
        ("finn", {"expires_in": None}, 400, "`expires_in` is no duration"),
        ("finn", {"max_uses": None}, 400, "A grant needs a limit"),
        ("finn", {"max_uses": 0}, 400, "`max_uses` is no whole number"),
        ("finn", {"max_uses": 1.5}, 400, "`max_uses` is no whole number"),
        ("finn", {"max_cost_usd": 0}, 400, "`max_cost_usd` is no number above 0"),
        ("finn", {"max_cost_usd": "5"}, 400, "`max_cost_usd` is no number above 0"),
        (
            "finn",
            {"where": None},
            400,
            "For which arguments? Give their values in `where`, or `any_arguments`",
        ),
        ("finn", {"where": None, "any_arguments": False}, 400, "For which arguments?"),
        ("finn", {"where": None, "any_arguments": True}, 200, ""),
        ("finn", {"where": {"/to": "vendor"}, "any_arguments": True}, 400, "exclude each other"),
        ("finn", {"any_arguments": "yes"}, 400, "`any_arguments` is neither true nor false."),
        ("finn", {"where": []}, 400, "`where` is no object"),
        ("finn", {"where": {"amount": 5}}, 400, "'amount' is no JSON pointer"),
        ("finn", {"agent": "nobody"}, 400, "There is no agent 'nobody' of 'acme'."),
        ("finn", {"tenant": "globex"}, 400, "There is no agent 'support-bot' of 'globex'."),
        ("finn", {"tenant": None}, 200, ""),
        ("finn", {"agent": ""}, 400, "`agent` is no text of 1 to 256"),
        ("finn", {"target": None}, 400, "A grant names `agent`, `target` and `operation`"),
        ("finn", {"protocol": None}, 400, "`protocol` is missing"),
        ("finn", {"protocol": None, "target": "github", "operation": "resources/read"}, 200, ""),
        ("finn", {"target": "vault"}, 400, "Calls of vault cannot be allowed beforehand"),
        ("finn", {"comment": "a\nb"}, 400, "`comment` is no text"),
        ("finn", {"uses": 1}, 400, "There is no 'uses' in this request. It takes from, agent,"),
    ):
        wanted: dict[str, Any] = {**GRANT, **more}
        answer = await gateway.post("/grants", who, status, **wanted)
        assert said in answer.get("detail", "")
        if status == 200:
            assert await gateway.end_grant(answer["id"], who) == 200
    assert (await gateway.get("/grants"))["items"] == []


async def test_grants_are_listed_in_pages_and_while_they_last(folder: Path, model: Target) -> None:
    clock = HeldClock()
    async with holding(written(folder, model.url), clock) as gateway:
        made = []
        for number in range(3):
            made.append((await gateway.post("/grants", "finn", **{**GRANT, "expires_in": 60 + number}))["id"])
            clock.advance(1)
        page = await gateway.get("/grants?page_size=2")
        assert ([each["id"] for each in page["items"]], page["next"]) == (made[:2], made[1])
        assert [each["id"] for each in (await gateway.get(f"/grants?after={made[1]}"))["items"]] == made[2:]
        assert (await gateway.get("/grants?agent=other-bot"))["items"] == []
        assert (await gateway.get("/grants?tenant=globex"))["items"] == []
        clock.advance(58)
        assert [each["id"] for each in (await gateway.get("/grants"))["items"]] == made[1:]
        await gateway.get(f"/grants/{made[0]}", status=404)


async def test_what_time_has_made_of_an_approval_is_shown(folder: Path, model: Target) -> None:
    clock = HeldClock()
    async with holding(written(folder, model.url), clock) as gateway:
        held = await gateway.hold("finance")
        clock.advance(3600)
        assert (await gateway.get(f"/approvals/{held}"))["state"] == State.EXPIRED
        refused = await gateway.post(f"/approvals/{held}/approve", "finn", 409)
        assert refused["detail"] == "It is expired: there is nothing to decide any more."
