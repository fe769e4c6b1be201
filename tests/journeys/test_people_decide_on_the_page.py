"""People decide on held calls in a real browser: with and without scripts, by keyboard, on a phone, and live."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from gateway.approval_view import lines, parsed
from policies.approvals import Approval, State
from policies.binding import changes
from tests.support.browser import CHROMIUM, browsing, window
from tests.support.console import SECOND, TOKENS, Offices, open_offices, visiting
from tests.support.door import door
from tests.support.process import ROOT, serving_beside
from tests.support.standins import OPENAI_KEY, running_standins

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; `make chromium` installs it"),
    pytest.mark.asyncio(loop_scope="module"),
]

PICTURES: Final = ROOT / "var" / "console"
"""Where what a person has seen is kept."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Offices]:
    async with open_offices(tmp_path_factory.mktemp("offices")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def offices(shared: Offices) -> Offices:
    """Those of all tests here, in which nothing waits any more."""
    await shared.clear()
    return shared


@asynccontextmanager
async def at(
    browser: Browser, offices: Offices, name: str, path: str = "/", *expected: str, **context: Any
) -> AsyncIterator[Page]:
    """A window of somebody who has logged in before, at a page; `expected` are errors that a test provokes."""
    async with visiting(offices, name) as visitor, window(browser, offices.url, *expected, **context) as page:
        (cookie,) = visitor.client.cookies.jar
        await page.context.add_cookies(
            [
                {
                    "name": cookie.name,
                    "value": cookie.value or "",
                    "domain": "127.0.0.1",
                    "path": "/console",
                    "httpOnly": True,
                    "sameSite": "Strict",
                }
            ]
        )
        await page.goto(path)
        await expect(page.get_by_role("button", name="Log out")).to_be_visible()
        yield page


async def log_in(page: Page, name: str) -> None:
    await page.get_by_label("Your token").fill(TOKENS[name])
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()


def place(approval: Approval) -> str:
    return f"/approvals/{approval.id}"


async def test_a_wrong_token_opens_nothing_and_the_right_one_the_list(browser: Browser, offices: Offices) -> None:
    await offices.held()
    async with window(browser, offices.url, "401 (Unauthorized)") as page:
        await page.goto("/")
        await page.get_by_label("Your token").fill("not-a-token-here")
        await page.get_by_label("Your token").press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("Nobody here has this token.")
        await expect(page.get_by_label("Your token")).to_have_value("")
        await page.get_by_label("Your token").fill(TOKENS["dana"])
        await page.get_by_label("Your token").press("Enter")
        await expect(page.get_by_text("1 call waits for people, 1 for you.")).to_be_visible()
        assert await page.evaluate("document.cookie") == ""


async def test_a_link_in_a_message_leads_through_the_login_to_its_call(browser: Browser, offices: Offices) -> None:
    held = await offices.held()
    async with window(browser, offices.url) as page:
        await page.goto(place(held))
        await log_in(page, "dana")
        await expect(page).to_have_url(f"{offices.url}/console/approvals/{held.id}")
        await expect(page.get_by_role("heading", level=1)).to_have_text("bot wants chat on gpt-4o")


async def test_a_link_from_elsewhere_finds_who_is_logged_in(browser: Browser, offices: Offices) -> None:
    held = await offices.held()

    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(door(page_of(f'<a href="{offices.url}{place(held)}">look</a>')))
        elsewhere = f"http://localhost:{port}"
        context = await browser.new_context()
        stack.push_async_callback(context.close)
        page = await context.new_page()
        await page.goto(offices.url)
        await log_in(page, "dana")
        for path in (place(held), f"/console/approvals/{held.id}"):
            await page.goto(elsewhere)
            await page.evaluate("path => document.querySelector('a').href = path", f"{offices.url}{path}")
            await page.get_by_role("link", name="look").click()
            await expect(page.get_by_role("heading", level=1)).to_have_text("bot wants chat on gpt-4o")


async def test_a_yes_is_given_with_one_press_and_recorded(browser: Browser, offices: Offices) -> None:
    held = await offices.held()
    async with at(browser, offices, "dana") as page:
        await page.get_by_role("link", name="chat on gpt-4o").click()
        await page.get_by_label("Comment").first.fill("as agreed")
        await page.get_by_role("button", name="Approve", exact=True).click()
        await expect(page.get_by_text("Your yes is recorded.")).to_be_visible()
        await expect(page.locator("#standing")).to_contain_text("Approved")
        await expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    after = await offices.now(held)
    assert [(vote.person, vote.yes, vote.comment) for vote in after.votes] == [("dana", True, "as agreed")]


async def test_a_no_has_a_word_for_the_agent(browser: Browser, offices: Offices) -> None:
    held = await offices.held()
    async with at(browser, offices, "dana", place(held)) as page:
        await page.locator("#comment").fill("not this customer")
        await page.get_by_role("button", name="Deny").click()
        await expect(page.locator("#standing")).to_contain_text("Reason: not this customer")
    after = await offices.now(held)
    assert (after.state, after.reason) == (State.DENIED, "not this customer")


async def test_two_people_fill_two_slots_and_each_sees_the_other_at_once(browser: Browser, offices: Offices) -> None:
    held = await offices.held(needs=("finance", "security"))
    async with (
        at(browser, offices, "dana", place(held)) as danas,
        at(browser, offices, "sam", place(held)) as sams,
        at(browser, offices, "kim", place(held)) as kims,
    ):
        for page in (danas, sams, kims):
            await expect(page.get_by_role("img", name="live", exact=True)).to_be_visible()
        await sams.locator("#comment").fill("half a thought")
        await danas.get_by_role("button", name="Approve", exact=True).click()
        await expect(sams.locator("#standing")).to_contain_text("dana said yes")
        await expect(sams.locator("#standing")).to_contain_text("Still missing: security (sam)")
        await expect(sams.locator("#news")).to_contain_text("dana has said yes")
        await expect(sams.locator("#comment")).to_have_value("half a thought")
        await sams.get_by_role("button", name="Approve", exact=True).click()
        for page in (danas, kims):
            await expect(page.locator("#standing")).to_contain_text("Approved")
        await expect(kims.locator("#decide")).not_to_contain_text("you have none of these roles")
    assert (await offices.now(held)).state is State.APPROVED


async def test_nobody_without_the_role_is_offered_a_button(browser: Browser, offices: Offices) -> None:
    held = await offices.held()
    async with at(browser, offices, "kim", place(held)) as page:
        await expect(page.locator("#decide")).to_contain_text("This needs finance; you have none of these roles.")
        await expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)


async def test_the_list_shows_what_comes_and_goes_and_keeps_the_focus(browser: Browser, offices: Offices) -> None:
    first = await offices.held()
    async with at(browser, offices, "dana") as page:
        await expect(page.get_by_role("img", name="live", exact=True)).to_be_visible()
        link = page.locator(f"#to-{first.id}")
        await link.focus()
        second = await offices.held(call={"operation": "embeddings"})
        await expect(page.get_by_role("link", name="embeddings on gpt-4o")).to_be_visible()
        await expect(page.locator("#news")).to_have_text("2 pending, 2 for you")
        await expect(link).to_be_focused()
        await expect(page).to_have_title("2 pending - Weighbridge")
        await offices.app.holds.vote(second.id, "dana", {"finance"}, False, "no")
        await expect(page.get_by_role("link", name="embeddings on gpt-4o")).to_have_count(0)


async def test_the_time_that_is_left_runs(browser: Browser, offices: Offices) -> None:
    held = await offices.held()
    async with at(browser, offices, "dana", place(held)) as page:
        await page.clock.install()
        await page.goto(f"/console/approvals/{held.id}")
        await expect(page.locator("#standing time")).to_have_text(re.compile("^59 min"))
        await page.clock.fast_forward("30:00")
        await expect(page.locator("#standing time")).to_have_text(re.compile("^29 min"))


async def test_what_is_over_cannot_be_decided_any_more(browser: Browser, tmp_path: Path) -> None:
    passed = 0
    async with open_offices(tmp_path, clock=lambda: time.time_ns() + passed) as offices:
        held = await offices.held()
        async with at(browser, offices, "dana", place(held)) as page:
            await expect(page.get_by_role("img", name="live", exact=True)).to_be_visible()
            passed = 3601 * SECOND
            await expect(page.locator("#standing")).to_contain_text("Expired")
            await expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)


HOSTILE: Final = {
    "markup": {"</code><script>alert(1)</script>": '"><img src=x onerror=alert(2)>{{ 7*7 }}', "x": "&lt;b&gt;<!--"},
    "directions": {"amount": "\u202e001\u202c", "\u2066to\u2069": "ada\u200b@example.com\u200f", "hebrew": "שלום"},
    "terminal": {"note": "\x1b[2J\x1b[31mred\x07\x00\x9b2K", "line": "a\r\nb\tc\u2028d"},
    "long": {"text": "x y " * 250_000},
    "keys": {f"key-{number}": number for number in range(10_000)},
    "look-alikes": {"to": "p\u0430ypal", "blank": "\u3164\u2800\u00a0", "zalgo": "a" + "\u0301" * 50},
}


@pytest.mark.parametrize("which", HOSTILE)
async def test_whatever_arguments_say_is_shown_in_full_and_does_nothing(
    browser: Browser, offices: Offices, which: str
) -> None:
    body = json.dumps(HOSTILE[which], ensure_ascii=False).encode()
    held = await offices.held(body, call={"session": "<b>s</b>\u202e"}, explanation="<script>alert(3)</script>\u200b")
    async with at(browser, offices, "dana", place(held)) as page:
        shown = await page.locator(".exact .line").all_text_contents()
        assert [line.removesuffix("\n") for line in shown] == list(lines(parsed(body)))
        assert not any(
            re.search("[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", line)
            for line in shown
        )
        assert await page.locator("script").count() == 1, "ours"
        assert await page.locator("main img, main b").count() == 0
        await expect(page.get_by_text("<script>alert(3)</script>\\u{200b}")).to_be_visible()
        twice = page.get_by_text("Look twice")
        await expect(twice).to_have_count(1 if which == "look-alikes" else 0)
        if which == "look-alikes":
            await expect(page.get_by_role("note")).to_contain_text("U+0430 CYRILLIC SMALL LETTER A")
        await page.get_by_role("button", name="Approve", exact=True).click()
        await expect(page.locator("#standing")).to_contain_text("Approved")


async def test_everything_is_done_with_the_keyboard_and_enter_in_a_comment_decides_nothing(
    browser: Browser, offices: Offices
) -> None:
    held = await offices.held()
    async with window(browser, offices.url) as page:
        await page.goto("/")
        await expect(page.get_by_label("Your token")).to_be_focused()
        await page.keyboard.type(TOKENS["dana"])
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Approvals")).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await reach(page, f"#to-{held.id}")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("bot wants chat")
        await reach(page, "#comment")
        await page.keyboard.type("one")
        await page.keyboard.press("Enter")
        await page.keyboard.type("two")
        await expect(page.locator("#comment")).to_have_value("one\ntwo")
        await reach(page, "#decide summary")
        await page.keyboard.press("Enter")
        await reach(page, "#arguments")
        await page.keyboard.press("Escape")
        await expect(page.locator("#decide summary").first).to_be_focused()
        await expect(page.locator("#arguments")).to_be_hidden()
        assert (await offices.now(held)).votes == (), "nothing is decided by the way"
        await reach(page, "#approve", key="Shift+Tab")
        outline = await page.locator("#approve").evaluate("button => getComputedStyle(button).outlineStyle")
        assert outline == "solid", "where the focus is can be seen"
        await page.keyboard.press("Space")
        await expect(page.locator("#standing")).to_contain_text("Approved")
    assert (await offices.now(held)).votes[0].comment == "one two"


async def reach(page: Page, selector: str, key: str = "Tab") -> None:
    """Moves the focus on until it is there."""
    for _ in range(40):
        await page.keyboard.press(key)
        if await page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached")


async def test_without_scripts_all_of_it_works_by_loading_pages(browser: Browser, offices: Offices) -> None:
    held = await offices.held(needs=("finance", "security"))
    async with window(browser, offices.url, java_script_enabled=False) as page:
        await page.goto(place(held))
        await log_in(page, "dana")
        await expect(page.get_by_text("not live")).to_have_count(0)
        await expect(page.get_by_role("img", name="not live: load the page again for news")).to_be_visible()
        await page.get_by_role("button", name="Approve", exact=True).click()
        await expect(page.locator("#standing")).to_contain_text("dana said yes")
        await offices.app.holds.vote(held.id, "sam", {"security"}, True)
        await page.reload()
        await expect(page.locator("#standing")).to_contain_text("Approved")
        await page.get_by_role("button", name="Log out").click()
        await page.goto(place(held))
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_shows_everything_in_its_width(browser: Browser, offices: Offices, scheme: Any) -> None:
    body = json.dumps({"to": "a" * 300, "text": "Ein sehr langer Satz. " * 40, "amount": 100.5}).encode()
    long = {"target": "t" * 90, "operation": "POST /" + "very-long/" * 12, "session": "s" * 120}
    held = await offices.held(body, call=long, risk_level="critical", needs=("finance", "security"))
    await offices.app.holds.vote(held.id, "sam", {"security"}, True, "w" * 200)
    PICTURES.mkdir(parents=True, exist_ok=True)
    phone = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    async with at(browser, offices, "dana", "/", **phone) as page:
        for name, path in (("list", "/console/approvals"), ("call", f"/console/approvals/{held.id}")):
            await page.goto(path)
            await page.screenshot(path=PICTURES / f"phone-{name}-{scheme}.png", full_page=True)
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320, (
                f"the {name} needs no scrolling aside"
            )
        for button in await page.get_by_role("button").all():
            if await button.is_visible():
                box = await button.bounding_box()
                assert box is not None
                assert min(box["width"], box["height"]) >= 44, "a finger hits it"
        await page.get_by_role("button", name="Approve", exact=True).tap()
        await expect(page.locator("#standing")).to_contain_text("Approved")


async def test_a_thousand_calls_that_wait_are_listed_by_deadline_with_ones_own_first(
    browser: Browser, tmp_path: Path
) -> None:
    async with open_offices(tmp_path) as offices:
        now = offices.app.holds.store.now_ns()
        held = await asyncio.gather(
            *(
                offices.held(
                    b'{"number":%d}' % number,
                    needs=("security",) if number % 2 else ("finance",),
                    decide_by=now + (5000 - number) * SECOND,
                )
                for number in range(1000)
            )
        )
        async with at(browser, offices, "dana") as page:
            await expect(page.get_by_text("1000 calls wait for people, 500 for you.")).to_be_visible()
            ids = await page.locator(".card").evaluate_all("cards => cards.map(card => card.id)")
            assert ids == [each.id for each in held[998:798:-2]]
            await page.get_by_role("link", name="Next").click()
            await expect(page.get_by_text("Page 2 of 10")).to_be_visible()
            await expect(page.get_by_role("img", name="live", exact=True)).to_be_visible()
            await offices.app.holds.vote(held[998].id, "dana", {"finance"}, True)
            await expect(page.locator("#news")).to_have_text("999 pending, 499 for you")


async def test_other_arguments_are_shown_before_they_are_sent_and_then_the_policy_decides(
    browser: Browser, offices: Offices
) -> None:
    said = {"model": "gpt-4o", "messages": [{"role": "user", "content": "refund 100\u200b"}], "max_tokens": 100}
    held = await offices.held(json.dumps(said, ensure_ascii=False).encode(), needs=("finance", "security"))
    async with at(browser, offices, "dana", place(held)) as page:
        await page.get_by_text("Approve it with other arguments").click()
        text = await page.locator("#arguments").input_value()
        assert "refund 100\\u200b" in text, "what cannot be seen is written so that it can"
        await page.locator("#arguments").fill(text.replace("refund 100\\u200b", "refund 50"))
        await page.locator("#change-comment").fill("half of it")
        await page.get_by_role("button", name="Show what would change").click()
        row = page.get_by_role("row").nth(1)
        await expect(row.get_by_role("rowheader")).to_have_text("/messages/0/content")
        await expect(row.locator("del")).to_have_text('"refund 100\\u{200b}"')
        await expect(row.locator("ins")).to_have_text('"refund 50"')
        assert (await offices.now(held)).state is State.PENDING, "nothing is done yet"
        await page.get_by_role("button", name="Approve with these arguments").click()
        await expect(page.get_by_text("Your yes to these arguments is recorded.")).to_be_visible()
        await expect(page.get_by_role("heading", name="Changed by a person")).to_be_visible()
        before = await offices.now(held)
        assert before.state is State.SUPERSEDED
        assert before.became is not None
        await expect(page).to_have_url(f"{offices.url}/console/approvals/{before.became}")
    after = await offices.app.holds.store.get(before.became)
    assert after is not None
    assert [each.pointer for each in changes(held.call.body, after.call.body)] == ["/messages/0/content"]
    assert [(vote.person, vote.comment) for vote in after.votes] == [("dana", "half of it")]


async def test_arguments_that_are_no_json_are_told_and_not_lost(browser: Browser, offices: Offices) -> None:
    held = await offices.held()
    async with at(browser, offices, "dana", place(held), "400 (Bad Request)") as page:
        for text, wrong in (
            ("{'a': 1}", "no JSON object"),
            ('{"to": "ada", "amount": 100}', "the arguments that it has"),
        ):
            await page.goto(f"/console/approvals/{held.id}")
            await page.get_by_text("Approve it with other arguments").click()
            await page.locator("#arguments").fill(text)
            async with page.expect_response("**/change"):
                await page.get_by_role("button", name="Show what would change").click()
            await expect(page.get_by_role("alert")).to_contain_text(wrong)
            await expect(page.locator("#arguments")).to_have_value(text)


async def test_such_calls_are_allowed_for_an_hour_and_no_longer_when_somebody_ends_it(
    browser: Browser, offices: Offices
) -> None:
    held = await offices.held()
    async with at(browser, offices, "dana", place(held)) as page:
        await page.get_by_text("Allow such calls for some time").click()
        await page.get_by_role("checkbox", name="/amount is 100").uncheck()
        await page.get_by_label("At most so many calls").fill("3")
        await page.get_by_role("button", name="Allow them").click()
        await expect(page.get_by_text("Such calls are allowed from now on")).to_be_visible()
        (grant,) = await offices.app.holds.store.grants()
        assert (grant.agent, grant.session, grant.where, grant.max_uses) == ("bot", "s-1", {"/to": "ada"}, 3)
        assert grant.expires - grant.created == 3600 * SECOND
        await page.get_by_role("link", name="Grants").click()
        await expect(page.get_by_text("1 of 3")).to_be_visible()
        await page.get_by_role("button", name="End it now").click()
        await expect(page.get_by_text("Ended: nothing more is allowed by it.")).to_be_visible()
    assert await offices.app.holds.store.grants() == []


def page_of(html: str) -> Any:
    """A site of somebody else."""

    async def site(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": html.encode()})

    return site


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["another port", "another site"])
async def test_another_page_can_neither_decide_nor_be_clicked_through(
    browser: Browser, offices: Offices, host: str
) -> None:
    held = await offices.held()
    target = f"{offices.url}/console/approvals/{held.id}"
    html = f'<form method="post" action="{target}/approve"><button>Win</button></form><iframe src="{target}"></iframe>'
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(door(page_of(html)))
        context = await browser.new_context()
        stack.push_async_callback(context.close)
        page = await context.new_page()
        await page.goto(offices.url)
        await log_in(page, "dana")
        (cookie,) = await context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/console")

        async with page.expect_event("console", lambda said: "frame-ancestors" in said.text):
            await page.goto(f"http://{host}:{port}/")
        assert [await frame.locator("#approve").count() for frame in page.frames[1:]] == [0], "nothing to be clicked"
        async with page.expect_response(f"{target}/approve") as answered:
            await page.get_by_role("button", name="Win").click()
        assert (await answered.value).status in (303, 403)
        fetched = "url => fetch(url, {credentials: 'include'}).then(() => 'read', () => 'refused')"
        await page.goto(f"http://{host}:{port}/")
        assert await page.evaluate(fetched, target) == "refused"
    assert (await offices.now(held)).votes == ()


async def test_who_logs_out_in_one_window_is_asked_again_in_the_other(browser: Browser, offices: Offices) -> None:
    await offices.held()
    async with at(browser, offices, "dana") as page:
        other = await page.context.new_page()
        await other.goto("/console/approvals")
        await expect(other.get_by_role("img", name="live", exact=True)).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        await offices.held(call={"operation": "embeddings"})
        await expect(other.get_by_role("heading", name="Log in")).to_be_visible()


async def test_a_call_waits_until_somebody_presses_approve_and_then_runs(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "hold.rego").write_text(
        "package weighbridge\n\nimport rego.v1\n\n"
        'decision := {"decision": "ALLOW"} if input.approval\n'
        'else := {"decision": "NEEDS_APPROVAL", "required_approvals": ["finance"], "explanation": "people first"}\n'
    )
    with running_standins() as standins:
        config = {
            "admin": {"people": [{"name": "dana", "token": TOKENS["dana"], "roles": ["finance"]}]},
            "policy": {"paths": [str(tmp_path / "hold.rego")]},
            "agents": [{"name": "bot", "tenant": "acme", "key": "bots-own-key"}],
            "targets": [{"name": "big", "kind": "openai", "url": f"{standins.openai_url}/v1", "key": OPENAI_KEY}],
            "routes": [{"name": "chat", "models": ["gpt-*"], "arms": [{"target": "big"}]}],
        }
        async with (
            serving_beside(config, tmp_path) as gateway,
            window(browser, gateway.admin, "ERR_CONNECTION_REFUSED") as page,
            httpx2.AsyncClient(base_url=gateway.url, timeout=50) as agent,
        ):
            await page.goto("/")
            await log_in(page, "dana")
            await expect(page.get_by_role("img", name="live", exact=True)).to_be_visible()
            call = asyncio.create_task(
                agent.post(
                    "/v1/chat/completions",
                    json={"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]},
                    headers={"authorization": "Bearer bots-own-key"},
                )
            )
            await page.get_by_role("link", name="chat on gpt-4o-mini").click()
            await expect(page.locator(".exact")).to_contain_text('"content": "hello"')
            assert not call.done()
            await page.get_by_role("button", name="Approve", exact=True).click()
            answer = await call
            assert answer.status_code == 200, answer.text
            await expect(page.locator("#standing")).to_contain_text("Done")
            await asyncio.to_thread(gateway.stop)  # whoever has a page open does not hold it up
            await expect(page.get_by_role("img", name="not live")).to_be_visible()
