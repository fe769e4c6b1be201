"""What a channel is told: within what Slack takes, all of it to be seen, and nothing of it markup."""

from __future__ import annotations

import hashlib
import html
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.slack import LONGEST_BODY, notice
from policies.approvals import Approval, State, Vote
from tests.gateway.state.approvals_suite import HOUR, NOW, SECOND, approval, call, in_state

LINK = "https://gate.example/approvals/apr_1"
HOSTILE = (
    "<!channel> <@U024BE7LH> <http://evil.example|click> *b* _i_ `c` ~s~ "
    "```\n> :boom: &amp; \u202etxt\u200b\u2066 \x1b[31m"
)


def said(of: Approval, what: str = "approval.requested", now: int = NOW, link: str | None = LINK) -> dict[str, Any]:
    found = notice(of, what, link=link, now=now)
    assert found is not None
    taken(found)
    return found


def taken(message: dict[str, Any]) -> None:
    """What Slack's reference says of what it takes, and what is reported of a whole message; raises where it does
    not."""
    assert set(message) == {"text", "blocks", "unfurl_links", "unfurl_media"}
    assert 0 < len(message["text"]) <= 3000
    assert len(message["blocks"]) <= 50
    assert len(orjson.dumps(message["blocks"]).decode()) <= 11_000
    for block in message["blocks"]:
        match block:
            case {"type": "header", "text": text}:
                plain(text, 150)
            case {"type": "section", "text": text}:
                plain(text, 3000)
            case {"type": "section", "fields": fields}:
                assert 1 <= len(fields) <= 10
                for each in fields:
                    plain(each, 2000)
            case {"type": "context", "elements": elements}:
                assert 1 <= len(elements) <= 10
                for each in elements:
                    plain(each, 3000)
            case {"type": "actions", "elements": [{"type": "button", "text": text, "url": url}]}:
                plain(text, 75)
                assert 0 < len(url) <= 3000
            case {"type": "rich_text", "elements": [{"type": "rich_text_preformatted", "elements": [element]}]}:
                assert set(element) == {"type", "text"}
                assert element["type"] == "text"
                assert 0 < len(html.escape(element["text"], quote=False)) <= 3000
            case _:
                raise AssertionError(f"Slack knows no such block: {block}")


def plain(text: dict[str, Any], most: int) -> None:
    assert text["type"] == "plain_text"
    assert text["emoji"] is False
    assert 0 < len(text["text"]) <= most


def texts(message: dict[str, Any]) -> Iterator[str]:
    """Everything that people read."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, each in value.items():
                if key == "text" and isinstance(each, str):
                    yield each
                else:
                    yield from inside(each)
        elif isinstance(value, list):
            for each in value:
                yield from inside(each)

    yield from inside(message["blocks"])


def code(message: dict[str, Any]) -> str:
    """What stands in preformatted text."""
    found = [each for each in message["blocks"] if each["type"] == "rich_text"]
    return "\n".join(each["elements"][0]["elements"][0]["text"] for each in found)


def fields(message: dict[str, Any]) -> dict[str, str]:
    (found,) = [each["fields"] for each in message["blocks"] if "fields" in each]
    return dict(each["text"].split("\n", 1) for each in found)


def test_people_are_told_who_wants_what_and_why_until_when() -> None:
    asked = approval(call=call(cost=1_200_000, query=b"dry=0"), needs=("finance", "cfo"))
    message = said(asked, now=NOW + 600 * SECOND)
    assert message["text"] == f"Approval needed: acme/bot, needs finance, cfo ({asked.id})"
    assert message["blocks"][0]["text"]["text"] == "Approval needed: bot, POST /refunds"
    assert fields(message) == {
        "Agent": "acme/bot",
        "Session": "s-1",
        "Operation": "POST /refunds",
        "Target": "crm (http)",
        "Risk": "high",
        "Estimated cost": "$0.0012",
        "Needs": "finance, cfo",
        "Decide by": "2025-11-21 05:40:00 UTC, in 50 min",
    }
    assert "Why it is held: A refund of more than 50." in texts(message)
    assert code(message).split("\n") == [
        "POST /tools/crm/refunds?dry=0",
        "content-type: application/json",
        "{",
        '  "amount": 100',
        "}",
    ]
    *_, button, context = message["blocks"]
    assert button["elements"][0]["url"] == LINK
    assert [each["text"] for each in context["elements"]] == [
        f"weighbridge approvals show {asked.id}",
        "policy r-1",
        f"call {asked.binding}",
    ]


def test_without_a_link_there_is_no_button() -> None:
    assert [each["type"] for each in said(approval(), link=None)["blocks"]] == [
        "header", "section", "section", "rich_text", "context",
    ]  # fmt: skip


def test_nothing_that_somebody_else_has_written_is_markup_or_hidden() -> None:
    body = orjson.dumps({"text": HOSTILE, HOSTILE: 1})
    hostile = approval(
        call=call(
            target=HOSTILE,
            operation=HOSTILE,
            session=HOSTILE,
            path=f"/{HOSTILE}",
            query=HOSTILE.encode("utf-8"),
            body=body,
        ),
        explanation=HOSTILE,
        needs=(HOSTILE,),
        revision=HOSTILE,
        told=1,
        escalated=(HOSTILE,),
    )
    for what in ("approval.requested", "approval.reminder"):
        message = said(hostile, what)
        for text in (*texts(message), message["text"]):
            assert not {"\u202e", "\u200b", "\u2066", "\x1b"} & set(text)
        assert "<" not in message["text"]
        assert ">" not in message["text"]
        assert "&lt;!channel&gt;" in message["text"]
        assert "\\u{202e}txt\\u{200b}" in code(message)


def test_an_agents_words_are_in_no_notification() -> None:
    message = said(approval(call=call(operation="OPERATION", target="TARGET", session="SESSION"), explanation="WHY"))
    assert not any(word in message["text"] for word in ("OPERATION", "TARGET", "SESSION", "WHY"))


@pytest.mark.parametrize("size", [100, 3000, 9000, 20_000, LONGEST_BODY, LONGEST_BODY + 1, 1_000_000])
@pytest.mark.parametrize("char", ["a", "&", '"', "\\n", "ö", "\\u200b", "\U0001f600", "\\ud83d\\ude00"])
def test_whatever_its_arguments_are_a_message_is_taken_and_says_where_it_was_cut(size: int, char: str) -> None:
    unit = json.dumps(char)[1:-1] if char in '"' else char
    body = b'{"text": "' + (unit + ".").encode() * (size // (len(unit.encode()) + 1)) + b'"}'
    message = said(approval(call=call(body=body)))
    cut = [each for each in texts(message) if each.startswith("This is not all")]
    if code(message).endswith('"\n}') and size <= LONGEST_BODY:
        assert not cut
        assert size < 60_000
    else:
        assert cut == [
            f"This is not all: {len(body)} bytes in full, SHA-256 {hashlib.sha256(body).hexdigest()}. "
            "Read the rest before you decide."
        ]
        assert len(code(message)) > 1000
    assert size != 100 or not cut


def test_whatever_people_and_policies_say_a_message_is_taken() -> None:
    chance = random.Random(6)
    alphabet = 'ab &<>"\\\n\u202e\u200b\u0301ö\U0001f600'
    for number in range(100):
        text = "".join(chance.choices(alphabet, k=chance.choice((1, 50, 500, 5000, 20_000))))
        votes = tuple(Vote(f"person-{each}", True, ("finance",) * 16, NOW, text) for each in range(number % 17))
        fine = approval(
            call=call(operation=text, target=text, session=text, path=text, headers=((b"x", text.encode()),) * 3),
            explanation=text,
            reason=text,
            revision=text,
            needs=(text,) * 16,
            votes=votes,
            told=number % 3,
            escalated=(text,),
            state=(state := chance.choice([each for each in State if each not in (State.CONSUMED, State.DONE)])),
        )
        what = "approval.requested" if state is State.PENDING else f"approval.{state}"
        notice_ = notice(fine, what, link=LINK, now=NOW)
        assert notice_ is not None
        taken(notice_)


def test_a_reminder_says_who_is_missing_and_who_may_decide_instead() -> None:
    asked = approval(needs=("finance", "cfo"), told=1, escalated=("security",))
    asked = replace(asked, votes=(Vote("dana", True, ("finance",), NOW, "fine by me"),))
    message = said(asked, "approval.reminder", now=NOW + HOUR // 2)
    assert message["text"].startswith("Still to be decided: acme/bot, needs cfo")
    assert "cfo: nobody has filled this yet." in texts(message)
    assert "These roles may decide now, too: security." in texts(message)
    assert "dana says: fine by me" in texts(message)
    assert fields(message)["Still missing"] == "cfo"
    assert fields(message)["Votes"] == "dana: yes, as finance"
    assert code(message)


@pytest.mark.parametrize(
    ("state", "title"),
    [
        (State.APPROVED, "Approved"),
        (State.DENIED, "Denied"),
        (State.EXPIRED, "Nobody decided in time"),
        (State.CANCELLED, "Taken back"),
        (State.SUPERSEDED, "Goes on with other arguments"),
        (State.LAPSED, "Approved, and not used in time"),
        (State.REVOKED, "The approval was taken back"),
        (State.UNKNOWN, "It may have run: nobody knows what came of it"),
    ],
)
def test_the_end_is_told_with_what_led_to_it(state: State, title: str) -> None:
    asked = approval()
    ended = [asked, *in_state(asked, state)][-1]
    message = said(ended, f"approval.{state}")
    by = ", by dana" if state is State.APPROVED else ""
    assert message["text"] == f"{title}: acme/bot{by} ({asked.id})"
    assert message["blocks"][0]["text"]["text"] == f"{title}: bot, POST /refunds"
    assert not code(message)
    assert "Decide by" not in fields(message)
    assert ("Reason: so" in texts(message)) == (state not in (State.APPROVED,))


@pytest.mark.parametrize("what", ["approval.vote", "approval.consumed", "approval.done"])
def test_a_channel_hears_nothing_of_what_nobody_has_to_act_on(what: str) -> None:
    assert notice(approval(), what, link=LINK, now=NOW) is None


def test_nobody_is_asked_for_what_is_decided() -> None:
    asked = approval(told=1)
    ended = in_state(asked, State.DENIED)[-1]
    for what in ("approval.requested", "approval.reminder"):
        assert notice(ended, what, link=LINK, now=NOW) is None


def test_what_is_no_json_is_shown_too() -> None:
    text = (b"content-type", b"text/plain")
    assert '"pay now\\u{202e}"' in code(said(approval(call=call(headers=(text,), body="pay now\u202e".encode()))))
    assert "base64: /wD/" in code(said(approval(call=call(headers=(text,), body=b"\xff\x00\xff"))))
    form = code(said(approval(call=call(headers=(text,), body=b"a=b", arguments=b'{"id":1,"a":"b"}'))))
    assert '"id": 1,' in form
    assert '"a=b"' in form
    assert code(said(approval(call=call(headers=(), body=b"")))) == "POST /tools/crm/refunds"


def test_a_brief_message_has_no_word_of_what_the_agent_sends() -> None:
    message = notice(approval(), "approval.requested", link=LINK, now=NOW, brief=True)
    assert message is not None
    taken(message)
    assert not code(message)
    assert any(each.startswith("This is not all: 15 bytes in full") for each in texts(message))
