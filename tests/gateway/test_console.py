"""The console's pages as programs see them: who gets in, which forms are taken, and what is shown. In a browser, see
tests/journeys/test_people_decide_on_the_page.py.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
import yaml

from gateway.console import login
from policies.approvals import State
from tests.support.console import TOKENS, Offices, Visitor, open_offices, visiting
from tests.support.register import Register

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Offices]:
    async with open_offices(tmp_path_factory.mktemp("offices")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def offices(shared: Offices) -> Offices:
    """Those of all tests here, in which nothing waits any more."""
    await shared.clear()
    return shared


@pytest_asyncio.fixture(loop_scope="module")
async def dana(offices: Offices) -> AsyncIterator[Visitor]:
    async with visiting(offices, "dana") as visitor:
        yield visitor


async def test_every_answer_forbids_what_a_page_of_ours_does_not_need(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    paths = ["/", "/console/login", "/console/style.css", "/console/none", "/console/approvals", "/console/grants"]
    for path in [*paths, f"/approvals/{held.id}", f"/console/approvals/{held.id}", "/console/approvals?state=x"]:
        headers = (await dana.see(path)).headers
        policy = headers["content-security-policy"]
        for part in ("default-src 'none'", "script-src 'self'", "form-action 'self'", "frame-ancestors 'none'"):
            assert part in policy.split("; "), path
        assert "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers["cache-control"] == "no-store"


async def test_programs_get_what_they_got_before_at_the_same_paths(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    shows = {"authorization": f"Bearer {TOKENS['dana']}"}
    for headers in (shows, {**shows, "accept": "text/html"}, {**shows, "accept": "application/json"}):
        for path in (f"/approvals/{held.id}", "/approvals"):
            answer = await dana.client.get(path, headers=headers)
            assert answer.headers["content-type"] == "application/json"
    refused = await dana.client.get(f"/approvals/{held.id}", headers={"accept": "application/json"})
    assert refused.status_code == 401, "the console's session is none of the API's"


async def test_a_page_asks_who_it_is_that_looks(offices: Offices) -> None:
    async with visiting(offices) as visitor:
        for path in ("/console/approvals", "/console/grants", "/console/approvals/apr_1"):
            answer = await visitor.see(path)
            assert (answer.status_code, answer.headers["location"]) == (303, f"/console/login?to={path}")
        for path in ("/console/logout", "/console/approvals/apr_1/approve", "/console/grants/grt_1/revoke"):
            answer = await visitor.send(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/console/login?to=/console/approvals")
        assert (await visitor.see("/console/events")).status_code == 401


async def test_nobody_is_led_astray_after_the_login(offices: Offices) -> None:
    elsewhere = ["https://evil.example/", "//evil.example", "/\\evil.example", "/console/../x", "/approvals/x"]
    for place in (*elsewhere, "/console/login", "/console/logout", "/console/x?to=1"):
        async with visiting(offices) as visitor:
            assert (await visitor.log_in("dana", place)).headers["location"] == "/console/approvals", place


async def test_the_cookie_is_for_our_pages_alone(offices: Offices, tmp_path: Path) -> None:
    async with visiting(offices) as visitor:
        said = (await visitor.log_in("dana")).headers.get_list("set-cookie")[0].lower()
        assert all(part in said for part in ("httponly", "samesite=strict", "path=/console"))
        assert "secure" not in said, "a browser would not send it over plain HTTP"
    (tmp_path / "other").mkdir()
    link = {"link": "https://gate.example/desk"}
    async with open_offices(tmp_path / "other", approvals=link) as encrypted, visiting(encrypted) as visitor:
        answer = await visitor.see("/console/login", host="gate.example")
        assert "; secure" in answer.headers["set-cookie"].lower()


async def test_too_many_wrong_tokens_make_an_address_wait(tmp_path: Path) -> None:
    async with open_offices(tmp_path) as offices, visiting(offices) as visitor:
        for _ in range(login.MOST_TRIES):
            assert (await visitor.log_in("wrong-token")).status_code == 401
        answer = await visitor.log_in("dana")
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 60


async def test_a_login_form_is_only_taken_from_the_browser_that_was_given_it(offices: Offices) -> None:
    async with visiting(offices) as visitor:
        await visitor.see("/console/login")
        visitor.client.cookies.clear()
        assert (await visitor.send("/console/login", token=TOKENS["dana"])).status_code == 403


async def test_who_is_taken_out_of_the_configuration_is_out_at_once(tmp_path: Path) -> None:
    async with open_offices(tmp_path) as offices, visiting(offices, "dana") as dana:
        config = yaml.safe_load(offices.path.read_text())
        config["admin"]["people"][0]["token"] = "danas-next-token"
        offices.path.write_text(yaml.safe_dump(config))
        await offices.app.reload_config("test")
        assert (await dana.see("/console/approvals")).status_code == 303
        assert (await dana.log_in("danas-next-token")).status_code == 303
        assert (await dana.see("/console/approvals")).status_code == 200


async def test_who_logs_out_is_out(offices: Offices, dana: Visitor) -> None:
    cookies = dict(dana.client.cookies)
    await dana.send("/console/logout")
    dana.client.cookies.update(cookies)
    assert (await dana.see("/console/approvals")).status_code == 303, "the cookie alone is worth nothing"


async def test_a_name_that_leads_here_by_somebody_elses_doing_gets_nothing(offices: Offices, dana: Visitor) -> None:
    for path in ("/", "/console/login", "/console/approvals", "/console/events", "/console/console.js"):
        answer = await dana.see(path, host="rebound.evil.example")
        assert answer.status_code == 421
        assert "dana" not in answer.text


async def test_a_form_without_the_sessions_own_token_does_nothing(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    path = f"/console/approvals/{held.id}/approve"
    async with visiting(offices, "dana") as other:
        for form in ("", "x", other.form, "ü"):
            assert (await dana.send(path, form=form)).status_code == 403
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}):
        assert (await dana.send(path, headers=headers)).status_code == 403
    told = {"sec-fetch-site": "same-origin", "content-type": "application/json"}
    assert (await dana.client.post(path, content=b"{}", headers=told)).status_code == 415
    assert (await dana.send(path, comment="x" * 1_600_000)).status_code == 413
    assert (await dana.send(path, {f"x{number}": "" for number in range(200)})).status_code == 400
    assert (await offices.now(held)).votes == ()
    assert (await dana.send(path)).status_code == 303
    assert (await offices.now(held)).state is State.APPROVED


async def test_nothing_is_done_by_a_link(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    for path in (f"/console/approvals/{held.id}/approve", "/console/logout", "/console/grants/x/revoke"):
        assert (await dana.see(path)).status_code in (404, 405)
    assert (await dana.see("/console/approvals")).status_code == 200
    assert (await offices.now(held)).votes == ()


async def test_what_the_rules_refuse_is_told_and_the_comment_kept(offices: Offices, dana: Visitor) -> None:
    held = await offices.held(needs=("security",))
    assert (await dana.send(f"/console/approvals/{held.id}/approve", comment="a <b> c")).status_code == 303
    for looks in ("1", "2"):  # an open page that only brings itself up to date takes it from nobody
        await dana.see("/console/approvals", **{"x-weighbridge-live": looks})
    shown = (await dana.see(f"/console/approvals/{held.id}")).text
    assert "Nothing was done. This needs security; you have none of these roles." in shown
    assert "Nothing was done" not in (await dana.see(f"/console/approvals/{held.id}")).text, "it is told once"
    no_word = await offices.held()
    await dana.send(f"/console/approvals/{no_word.id}/approve", comment="zero\u200bwidth <b>")
    shown = (await dana.see(f"/console/approvals/{no_word.id}")).text
    assert "printable characters" in shown
    assert "width &lt;b&gt;</textarea>" in shown


async def test_a_no_without_a_word_is_a_no_and_the_page_says_what_that_means(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    await dana.send(f"/console/approvals/{held.id}/deny", comment="  \n ")
    after = await offices.now(held)
    assert (after.state, after.reason) == (State.DENIED, "")
    assert "the agent is told that it may not, not why" in (await dana.see(f"/console/approvals/{held.id}")).text


async def test_what_has_ended_is_listed_with_how_the_latest_first(offices: Offices, dana: Visitor) -> None:
    now = offices.app.holds.store.now_ns()
    states = (State.DENIED, State.EXPIRED, State.CANCELLED, State.DONE, State.SUPERSEDED, State.LAPSED, State.REVOKED)
    ended = [
        await offices.held(state=state, reason=f"because {place}", changed=now + place)
        for place, state in enumerate(states)
    ]
    waits = await offices.held()
    shown = (await dana.see("/console/approvals?state=ended")).text
    places = [shown.index(f'id="{each.id}"') for each in ended]
    assert places == sorted(places, reverse=True)
    assert "<strong>Denied</strong>: <bdi>because 0</bdi>" in shown
    assert waits.id not in shown


async def test_an_id_that_nobody_knows_is_said_to_be_none(offices: Offices, dana: Visitor) -> None:
    answer = await dana.see("/approvals/apr_nope")
    assert (answer.status_code, "No approval has this id" in answer.text) == (404, True)


async def test_a_grant_for_a_call_without_a_session_is_for_such_calls(offices: Offices, dana: Visitor) -> None:
    held = await offices.held(call={"session": None})
    assert "only calls without a session" in (await dana.see(f"/console/approvals/{held.id}")).text
    for said in ("this", "all"):
        await dana.send(f"/console/approvals/{held.id}/grant", {"for": "1h"}, uses="2", session=said)
    assert [each.session for each in await offices.app.holds.store.grants()] == ["", None]
    assert "only calls without one" in (await dana.see("/console/grants")).text


async def test_only_an_admin_takes_calls_back(offices: Offices, dana: Visitor) -> None:
    held = await offices.held(needs=("security",))
    async with visiting(offices, "sam") as sam:
        await sam.send(f"/console/approvals/{held.id}/cancel")
        assert "needs the role `admin`" in (await sam.see(f"/console/approvals/{held.id}")).text
    await dana.send(f"/console/approvals/{held.id}/cancel", comment="not now")
    after = await offices.now(held)
    assert (after.state, after.reason) == (State.CANCELLED, "not now")


async def test_a_grant_takes_numbers_and_nothing_else(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    path = f"/console/approvals/{held.id}/grant"
    for uses, cost in (("1,2", ""), ('1,"x":1', ""), ("0", ""), ("1", "1e3"), ("1", "-1"), ("", "")):
        await dana.send(path, {"for": "1h"}, uses=uses, cost=cost)
        assert await offices.app.holds.store.grants() == []
    await dana.send(path, {"for": "15m"}, uses="2", cost="0.5", pinned="/to")
    (grant,) = await offices.app.holds.store.grants()
    assert (grant.where, grant.max_uses, grant.max_cost, grant.session) == ({"/to": "ada"}, 2, 500_000_000, "s-1")


async def test_what_is_not_there_is_a_page_that_says_so(offices: Offices, dana: Visitor) -> None:
    for path in ("apr_1", "apr_0000000000000000000000ZZZZ", "..%2f..%2fetc", "<script>"):
        answer = await dana.see(f"/console/approvals/{path}")
        assert answer.status_code == 404
        assert "<script>" not in answer.text


async def test_calls_of_which_nobody_knows_whether_they_ran_are_pointed_out(offices: Offices, dana: Visitor) -> None:
    assert "nobody knows" not in (await dana.see("/console/approvals")).text
    held = await offices.held(state=State.UNKNOWN, reason="The connection failed.")
    assert "Of 1 call nobody knows" in (await dana.see("/console/approvals")).text
    assert held.id in (await dana.see("/console/approvals?state=unknown")).text
    shown = (await dana.see(f"/console/approvals/{held.id}")).text
    assert "it may have run" in shown
    assert 'id="approve"' not in shown


@pytest.mark.parametrize(("verb", "state"), [("ran", State.DONE), ("not-run", State.REVOKED)])
async def test_an_admin_says_of_an_unknown_call_whether_it_ran(
    offices: Offices, dana: Visitor, verb: str, state: State
) -> None:
    held = await offices.held(state=State.UNKNOWN, reason="The connection failed.")
    assert f"/console/approvals/{held.id}/{verb}" in (await dana.see(f"/console/approvals/{held.id}")).text
    await dana.send(f"/console/approvals/{held.id}/{verb}", comment="looked at the books")
    after = await offices.app.holds.store.get(held.id)
    assert after is not None
    assert after.state is state


async def test_people_are_shown_what_is_known_of_the_identical_call_before(offices: Offices, dana: Visitor) -> None:
    held = await offices.held(earlier="An identical call may have run: apr_1.", needs=("treasurer",))
    shown = (await dana.see(f"/console/approvals/{held.id}")).text
    assert "An identical call may have run: apr_1." in shown
    assert "Nobody has the role treasurer" in shown


async def test_a_state_that_does_not_answer_is_said_to_be_away(tmp_path: Path) -> None:
    register = Register()
    async with open_offices(tmp_path, register) as offices, visiting(offices, "dana") as dana:
        held = await offices.held()
        register.failure = "it is away"
        for path in ("/console/approvals", f"/console/approvals/{held.id}", "/console/grants"):
            answer = await dana.see(path)
            assert (answer.status_code, "The state does not answer" in answer.text) == (503, True)
        assert (await dana.send(f"/console/approvals/{held.id}/approve")).status_code == 303
        register.failure = None
        shown = (await dana.see(f"/console/approvals/{held.id}")).text
        assert "whether anything has changed is not known" in shown


async def test_what_the_ledger_cannot_take_is_not_allowed(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    offices.app.ledger.failure = "the disk is full"
    await dana.send(f"/console/approvals/{held.id}/approve")
    assert "what is not on record is not done" in (await dana.see(f"/console/approvals/{held.id}")).text
    assert (await offices.now(held)).state is State.PENDING
    offices.app.ledger.failure = None


async def test_earlier_calls_of_the_session_are_told_from_the_ledger(offices: Offices, dana: Visitor) -> None:
    held = await offices.held()
    for number, session in enumerate(["s-1", "s-2", "s-1"]):
        facts = {"call": f"c{number}", "at": 1_763_700_000_000_000_000, "agent": "bot", "tenant": "acme"}
        offices.app.ledger.note(
            "outcome",
            {**facts, "session": session, "operation": f"op-{number}", "code": "policy_denied", "status": 403},
        )
    offices.app.ledger.flush()
    shown = (await dana.see(f"/console/approvals/{held.id}")).text
    assert shown.index("op-2") < shown.index("op-0")
    assert "op-1" not in shown
    assert "policy_denied (403)" in shown


async def test_the_stream_of_news_is_for_who_is_logged_in_and_ends_with_the_session(offices: Offices) -> None:
    async with visiting(offices, "dana") as dana, dana.client.stream("GET", await news_of(dana)) as events:
        lines = events.aiter_lines()
        assert await anext(lines) == "retry: 1000"
        held = await offices.held()
        assert [await following(lines), await following(lines)][0] == "event: approval"
        async with httpx2.AsyncClient(base_url=offices.url, cookies=dana.client.cookies) as other:
            left = await other.post(
                "/console/logout", data={"form": dana.form}, headers={"sec-fetch-site": "same-origin"}
            )
            assert left.status_code == 303
        await offices.app.holds.vote(held.id, "dana", {"finance"}, True)
        assert [line async for line in lines if line] == [], "nothing is told any more"


async def test_what_has_happened_before_a_page_began_to_follow_is_not_lost(offices: Offices, dana: Visitor) -> None:
    place = await news_of(dana)
    await offices.held()
    async with dana.client.stream("GET", place) as events:
        lines = events.aiter_lines()
        assert [await following(lines), await following(lines)] == ["retry: 1000", "event: missed"]


async def news_of(visitor: Visitor) -> str:
    """Where the list, as it is now, would follow what happens."""
    seen = re.search('data-seen="([0-9]+)"', (await visitor.see("/console/approvals")).text)
    assert seen is not None
    return f"/console/events?seen={seen[1]}"


async def following(lines: AsyncIterator[str]) -> str:
    """The next line that is not empty."""
    return await anext(line async for line in lines if line)
