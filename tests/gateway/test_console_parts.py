"""What the console's pages are made of: names and forms that are ours, sessions, and an approval as it is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from config.settings import PersonSettings
from gateway.callids import CallIds
from gateway.console import guard, login, recent, view
from gateway.console.login import Sessions, Tries
from gateway.console.pending import ENOUGH, Held, Pending, in_order
from gateway.identity import People
from policies.approvals import State
from tests.gateway.state.approvals_suite import NOW, SECOND, approval, call
from tests.support.register import Register

STYLE = Path(view.__file__).parent / "static" / "style.css"


def people(**tokens: str) -> People:
    return People(PersonSettings.model_validate({"name": name, "token": token}) for name, token in tokens.items())


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
    assert view.editable(approval(call=call(body=b'{"a":"\x7f"}'))) == '{\n  "a": "\\u007f"\n}'
    for other in (b"[1]", b"", b'{"a":"' + b"x" * view.LONGEST_EDITED + b'"}'):
        assert view.editable(approval(call=call(body=other))) is None
    assert view.editable(approval(call=call(headers=(), body=b"a=1"))) is None


def test_a_body_that_is_no_json_is_shown_too() -> None:
    plain = approval(call=call(headers=((b"content-type", b"text/plain"),), body="a\u202e\nb".encode()))
    assert (view.body_of(plain).kind, view.body_of(plain).lines) == ("text", ['"a\\u{202e}\\n', '| b"'])
    assert view.body_of(replace(plain, call=replace(plain.call, body=b"\xff\x00"))).kind == "base64"
    assert view.body_of(replace(plain, call=replace(plain.call, body=b""))).kind == "none"
    form = view.body_of(replace(plain, call=replace(plain.call, body=b"a=b", arguments=b'{"id":1,"a":"b"}')))
    assert (form.kind, form.size) == ("json", 3)
    assert form.lines == ["{", '  "id": 1,', '  "a": "b"', "}", "The body, as it is sent:", '"a=b"']
    only = view.body_of(replace(plain, call=replace(plain.call, body=b"", arguments=b'{"id":1}')))
    assert (only.kind, only.lines) == ("json", ["{", '  "id": 1', "}"])


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


@pytest.mark.parametrize("apart", [1, 60, 7200])
async def test_of_what_has_ended_the_last_are_found_however_much_there_is(apart: int) -> None:
    ids, store, made = CallIds(), Register(lambda: NOW), []
    for number in range(ENOUGH * 3):
        at = NOW - (number + 1) * apart * SECOND
        ended = approval(id=f"apr_{ids.next(at)}", created=at, changed=at, state=State.DONE)
        store.kept[ended.id] = ended
        made.append(ended.id)
    assert [each.approval.id for each in await Pending(store).ended()] == made[:ENOUGH]


async def test_few_that_have_ended_are_all_found() -> None:
    store = Register(lambda: NOW)
    ended, waits = approval(state=State.EXPIRED), approval()
    store.kept |= {each.id: each for each in (ended, waits)}
    assert [each.approval.id for each in await Pending(store).ended()] == [ended.id]
