"""The console's pages as programs see them: who gets in, which forms are taken, and what is shown. In a browser, see
tests/journeys/test_people_decide_on_the_page.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import yaml

from config.settings import PersonSettings
from gateway.console import guard, login, recent, view
from gateway.console.login import Sessions, Tries
from gateway.console.pending import Held, in_order
from gateway.identity import People
from policies.approvals import State
from tests.gateway.state.approvals_suite import approval, call
from tests.support.console import TOKENS, Offices, Visitor, open_offices, visiting

STYLE = Path(view.__file__).parent / "static" / "style.css"


@pytest.fixture
async def offices(tmp_path: Path) -> AsyncIterator[Offices]:
    async with open_offices(tmp_path) as found:
        yield found


@pytest.fixture
async def dana(offices: Offices) -> AsyncIterator[Visitor]:
    async with visiting(offices, "dana") as visitor:
        yield visitor


def people(**tokens: str) -> People:
    return People(PersonSettings.model_validate({"name": name, "token": token}) for name, token in tokens.items())


# Who gets in


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


async def test_too_many_wrong_tokens_make_an_address_wait(offices: Offices) -> None:
    async with visiting(offices) as visitor:
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


async def test_who_is_taken_out_of_the_configuration_is_out_at_once(offices: Offices, dana: Visitor) -> None:
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


def test_a_session_lasts_for_half_a_day_and_each_person_has_few() -> None:
    now = 0.0
    sessions, who = Sessions(lambda: now), people(dana="danas-own-token", sam="sams-own-token")
    assert sessions.begin(who, "nobodys-token") is None
    assert sessions.begin(who, "tökén-of-nobody") is None
    first = sessions.begin(who, "danas-own-token")
    assert first is not None
    found = sessions.of(first.id, who)
    assert found is not None
    assert found[1].name == "dana"
    now = login.LASTS
    assert sessions.of(first.id, who) is None
    many = [sessions.begin(who, "danas-own-token") for _ in range(25)]
    other = sessions.begin(who, "sams-own-token")
    assert len(sessions) == 21
    assert many[-1] is not None
    assert other is not None
    assert sessions.of(many[-1].id, who) is not None
    assert sessions.of(other.id, people(dana="danas-own-token")) is None
    assert sessions.of(None, who) is None
    assert "danas-own-token" not in repr(many)


def test_tries_are_counted_by_whose_address_it_is() -> None:
    now = 0.0
    tries = Tries(lambda: now)
    for number in range(login.MOST_TRIES):
        assert tries.pause("2001:db8::1") == 0
        tries.failed(f"2001:db8::{number}")
    assert tries.pause("2001:db8::ffff") == login.WITHIN
    assert tries.pause("2001:db8:0:1::1") == tries.pause("192.0.2.1") == tries.pause("") == 0
    now = login.WITHIN
    assert tries.pause("2001:db8::1") == 0
    for _ in range(login.MOST_TRIES):
        tries.failed("::ffff:192.0.2.1")
    assert tries.pause("::ffff:192.0.2.2") == 0


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("127.0.0.1:8081", True),
        ("[::1]:8081", True),
        ("10.1.2.3", True),
        ("localhost:8081", True),
        ("gate.internal", True),
        ("gate.internal:443", True),
        ("evil.example", False),
        ("gate.internal.evil.example", False),
        ("localhost.evil.example", False),
        ("gate.internal@evil.example", False),
        ("evil.example/127.0.0.1", False),
        ("[::1", False),
        ("localhost:x", False),
        ("", False),
        (None, False),
    ],
)
def test_only_names_that_are_ours_are_answered_to(host: str | None, answers: bool) -> None:
    assert guard.answers_to(host, {"gate.internal"}) is answers


async def test_a_name_that_leads_here_by_somebody_elses_doing_gets_nothing(offices: Offices, dana: Visitor) -> None:
    for path in ("/", "/console/login", "/console/approvals", "/console/events", "/console/console.js"):
        answer = await dana.see(path, host="rebound.evil.example")
        assert answer.status_code == 421
        assert "dana" not in answer.text


# Which forms are taken


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({"sec-fetch-site": "same-origin", "origin": "null"}, True),
        ({"sec-fetch-site": "same-origin", "origin": "http://gate:1"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://gate:1"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "null"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://gate:1"}, True),
        ({"origin": "https://console.example"}, True),
        ({"origin": "http://gate:2"}, False),
        ({"origin": "http://gate"}, False),
        ({"origin": "file://"}, False),
        ({"origin": "http://[gate"}, False),
        ({}, True),
    ],
)
def test_a_form_comes_from_our_pages(headers: dict[str, str], ours: bool) -> None:
    assert guard.is_ours({"host": "gate:1", **headers}, "https://console.example/x") is ours


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
    assert (await dana.send(path, comment="x" * 1_100_000)).status_code == 413
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
    shown = (await dana.see(f"/console/approvals/{held.id}")).text
    assert "Nothing was done. This needs security; you have none of these roles." in shown
    assert "Nothing was done" not in (await dana.see(f"/console/approvals/{held.id}")).text, "it is told once"
    no_word = await offices.held()
    await dana.send(f"/console/approvals/{no_word.id}/deny", comment="  \n ")
    assert (await offices.now(no_word)).state is State.PENDING
    await dana.send(f"/console/approvals/{no_word.id}/approve", comment="zero\u200bwidth <b>")
    shown = (await dana.see(f"/console/approvals/{no_word.id}")).text
    assert "printable characters" in shown
    assert "width &lt;b&gt;</textarea>" in shown


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
    assert (grant.where, grant.max_uses, grant.max_cost, grant.session) == ({"/to": "ada"}, 2, 500_000_000, None)


# What is shown


async def test_what_is_not_there_is_a_page_that_says_so(offices: Offices, dana: Visitor) -> None:
    for path in ("apr_1", "apr_00000000000000000000000009", "..%2f..%2fetc", "<script>"):
        answer = await dana.see(f"/console/approvals/{path}")
        assert answer.status_code == 404
        assert "<script>" not in answer.text


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


def test_only_the_end_of_a_long_ledger_is_read(tmp_path: Path) -> None:
    def line(**facts: object) -> str:
        return (
            json.dumps({"record": "outcome", "tenant": "acme", "agent": "bot", **facts}, separators=(",", ":")) + "\n"
        )

    path = tmp_path / "calls.jsonl"
    assert list(recent.calls_of(path, "acme", "bot", None)) == []
    lines = [line(call=number, filler="x" * 1000) for number in range(2000)]
    path.write_text("".join([*lines, "no record\n", line(call="other", session="s"), '{"record":"outcome","cut']))
    found = [each["call"] for each in recent.calls_of(path, "acme", "bot", None)]
    assert found == list(range(1999, 1989, -1))
    assert [each["call"] for each in recent.calls_of(path, "acme", "bot", "s")] == ["other"]


def test_ones_own_calls_come_first_and_the_most_urgent_of_them_before_the_others() -> None:
    held = [Held(approval(id=f"apr_{number}", decide_by=by), "") for number, by in enumerate([30, 10, 20, 10])]
    mine = {"apr_0", "apr_2"}
    found = in_order(held, lambda each: each.id in mine)
    assert [(each.approval.id, own) for each, own in found] == [
        ("apr_2", True),
        ("apr_0", True),
        ("apr_1", False),
        ("apr_3", False),
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (7 * 86_400 + 3600, "7 d 1 h")],
)
def test_the_time_that_is_left_is_said_in_two_units(seconds: float, said: str) -> None:
    assert view.left(seconds) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p\u0430ypal", ["U+0430 CYRILLIC SMALL LETTER A"]),
        ("\uff50aypal", ["U+FF50 FULLWIDTH LATIN SMALL LETTER P"]),
        ("größer, naïve, Ελλάδα, Москва, 東京, שלום", []),
        ("paypal", []),
    ],
)
def test_words_of_two_alphabets_are_pointed_out(text: str, said: list[str]) -> None:
    assert [each.partition(" has ")[2] for each in view.look_alikes([text])] == said


def test_what_runs_from_right_to_left_stays_within_its_own_text() -> None:
    assert view.in_pieces('"a": "b",') == '"a": "b",'
    assert view.in_pieces('  "א": "ב \\" 1",') == [
        ("  ", False),
        ('"א"', True),
        (": ", False),
        ('"ב \\" 1"', True),
        (",", False),
    ]
    assert view.in_pieces("|   א 1") == [("| ", False), ("  א 1", True)]


def test_arguments_can_be_changed_to_the_digit_and_with_everything_in_them_seen() -> None:
    body = '{"n":1.0,"big":1e2,"t":"a\u200b\u202e\\u0000 é שלום e\u0301"}'.encode()
    text = view.editable(approval(call=call(body=body)))
    assert text is not None
    assert '"n": 1.0,\n  "big": 1e2' in text
    assert "a\\u200b\\u202e\\u0000 é שלום e\u0301" in text
    assert view.differences(body, text.encode()) == []
    for other in (b"[1]", b"", b'{"a":"' + b"x" * view.LONGEST_EDITED + b'"}'):
        assert view.editable(approval(call=call(body=other))) is None
    assert view.editable(approval(call=call(headers=(), body=b"a=1"))) is None


def test_a_body_that_is_no_json_is_shown_too() -> None:
    plain = approval(call=call(headers=((b"content-type", b"text/plain"),), body="a\u202e\nb".encode()))
    assert (view.body_of(plain).kind, view.body_of(plain).lines) == ("text", ['"a\\u{202e}\\n', '| b"'])
    assert view.body_of(replace(plain, call=replace(plain.call, body=b"\xff\x00"))).kind == "base64"
    assert view.body_of(replace(plain, call=replace(plain.call, body=b""))).kind == "none"


def test_a_grant_is_about_the_arguments_that_are_ticked() -> None:
    held = approval(call=call(body=b'{"a/b":1,"c~":{"x":[1,2]},"":null}'))
    assert view.members(held) == [("/a~1b", "1"), ("/c~0", '{"x":[1,2]}'), ("/", "null")]
    assert list(view.pinned(held, ["/c~0", "/none"])) == ["/c~0"]
    assert list(view.pinned(held, ["/a~1b", "/c~0", "/"])) == [""]
    assert view.pinned(held, []) == {}


def test_who_could_fill_an_empty_slot_is_named() -> None:
    held = approval(needs=("finance", "security"), requesters=("ada",))
    names = [("ada", ["finance"]), ("ben", ["finance"]), ("cy", [])]
    assert view.still_wanted(held, iter(names)) == [("finance", ["ben"]), ("security", [])]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out_as_far_as_wcag_wants(scheme: str) -> None:
    """2.2, success criterion 1.4.3: text by 4.5 to 1; 1.4.11: the edges of fields by 3 to 1."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", blocks[scheme == "dark"]))
    for text, ground in (
        *((text, ground) for text in ("ink", "soft", "link", "go", "no", "mine") for ground in ("page", "raised")),
        *((text, ground) for text in ("ink", "link") for ground in ("bad", "good")),
        ("go-ink", "go"),
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, f"{text} on {ground}"


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(each * 2 for each in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


async def test_the_stream_of_news_is_for_who_is_logged_in_and_ends_with_the_session(offices: Offices) -> None:
    async with visiting(offices, "dana") as dana, dana.client.stream("GET", "/console/events") as events:
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


async def following(lines: AsyncIterator[str]) -> str:
    """The next line that is not empty."""
    return await anext(line async for line in lines if line)
