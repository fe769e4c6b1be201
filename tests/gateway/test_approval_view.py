"""What people see of a held call: all of it, whatever its text tries."""

import json
import re
import sys
import unicodedata
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.approval_view import (
    Number,
    arguments,
    json_text,
    lines,
    parsed,
    shown,
    shown_in_short,
    shown_to_agent,
    visible,
)
from gateway.logs import printable
from policies.approvals import State
from tests.gateway.state.approvals_suite import approval, call


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain text, 100 %", "plain text, 100 %"),
        ("Zahlung an Müller, 東京, שלום", "Zahlung an Müller, 東京, שלום"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("a\x1b[2K\x9b1A", "a\\u{1b}[2K\\u{9b}1A"),
        ("\x00\x07\x08\x7f", "\\u{0}\\u{7}\\u{8}\\u{7f}"),
        ("a\x0b\x0c\x85\u2028\u2029b", "a\\u{b}\\u{c}\\u{85}\\u{2028}\\u{2029}b"),
        ("pay \u202eyrollam\u202c \u2066x\u2069 \u200f\u061c", "pay \\u{202e}yrollam\\u{202c} \\u{2066}x\\u{2069} "
         "\\u{200f}\\u{61c}"),
        ("al\u200bice\u200c\u200d\u2060\ufeff\u00ad", "al\\u{200b}ice\\u{200c}\\u{200d}\\u{2060}\\u{feff}\\u{ad}"),
        ("a\u00a0b\u2003c\u3000d\u1680", "a\\u{a0}b\\u{2003}c\\u{3000}d\\u{1680}"),
        ("\u3164\u115f\u1160\uffa0\u2800\u034f", "\\u{3164}\\u{115f}\\u{1160}\\u{ffa0}\\u{2800}\\u{34f}"),
        ("a\ufe0fb\U000e0100\U000e0041", "a\\u{fe0f}b\\u{e0100}\\u{e0041}"),
        ("\ue000\U0010ffff\u0378", "\\u{e000}\\u{10ffff}\\u{378}"),
        ("half \ud800", "half \\u{d800}"),
        ("Z" + "\u0335" * 6, "Z" + "\u0335" * 3 + "\\u{335}" * 3),
        ("\u0301x", "\\u{301}x"),
        ("say \"no\"\u0338", "say \"no\"\\u{338}"),
        ("C:\\temp", "C:\\temp"),
        (" " * 5000 + "rm", "\\u{20*5000}rm"),
        ("a" * 101 + "\n" * 300 + "b", "\\u{61*101}\\u{a*300}b"),
    ],
)  # fmt: skip
def test_what_hides_or_moves_others_is_seen_as_what_it_is(text: str, seen: str) -> None:
    assert visible(text) == seen
    assert printable(visible(text)) == visible(text), "a terminal shows it as it is"


def test_every_character_that_unicode_has_no_shape_for_is_named() -> None:
    for number in (*range(0x30000), 0xE0001, 0xE01EF, 0xF0000, sys.maxunicode):  # between them there is nothing
        char = chr(number)
        kind = unicodedata.category(char)
        if kind[0] in "CZ" and char != " ":
            assert visible(char).startswith("\\"), hex(number)
        if char.isalnum() and kind[0] in "LN" and number not in (0x115F, 0x1160, 0x3164, 0xFFA0):
            assert visible(char) == char, hex(number)


def joined(shown: list[str]) -> str:
    """A value's lines, put together again."""
    text = ""
    for line in shown:
        text += line[2:].lstrip(" ") if line.startswith("| ") else line.lstrip(" ")
    return text


_PLAIN = st.text(st.sampled_from('ab" \\/{}[],:\n\tü|é0'), max_size=40)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | _PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_PLAIN, inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, st.integers(20, 60))
def test_lines_say_all_that_a_value_says_and_nothing_else(value: Any, width: int) -> None:
    shown = list(lines(parsed(json.dumps(value)), width))
    for line in shown:
        assert line.isprintable()
    # White space at an edge of a folded line cannot be told from its indent, so it is left out on both sides.
    assert re.sub(r"\s", "", joined(shown)) == re.sub(r"\s", "", json.dumps(value, ensure_ascii=False))


@given(st.text(max_size=200))
def test_no_text_makes_a_line_of_its_own(text: str) -> None:
    shown = list(lines({"a": text, "b": 1}, 40))
    assert shown[0] == "{"
    assert shown[-2:] == ['  "b": 1', "}"]
    for line in shown[2:-2]:
        assert line.startswith("|   ")
    assert all(line.isprintable() for line in shown)


def test_a_text_with_line_ends_goes_on_in_lines_of_its_own() -> None:
    value = parsed('{"content": "first\\nsecond\\n\\nthird \\\\n no end", "n": [1.0, 1e2, -0, {}, [], null, true]}')
    assert list(lines(value)) == [
        "{",
        '  "content": "first\\n',
        "|   second\\n\\n",
        '|   third \\\\n no end",',
        '  "n": [',
        "    1.0,",
        "    1e2,",
        "    -0,",
        "    {},",
        "    [],",
        "    null,",
        "    true",
        "  ]",
        "}",
    ]


def test_a_long_text_is_folded_and_no_escape_is_cut() -> None:
    (first, *more) = lines("ab" * 30 + "\u202e" * 20, 20)
    assert first == '"' + "ab" * 9 + "a"
    assert all(line.startswith("| ") and len(line) <= 22 for line in more)
    assert re.fullmatch(r'"(ab){30}(\\u\{202e\}){20}"', joined([first, *more]))
    for width in (20, 21):
        folded = lines("e\u0301" * 30, width)
        assert all(not line.startswith("| \u0301") for line in folded), "a mark stays with its letter"


def test_texts_that_two_readers_could_read_differently_are_none() -> None:
    for text in ('{"a": 1, "a": 2}', "NaN", "[Infinity]", "[" * 100_000, "{", b"\xff", b"\xff\xfe1\x00"):
        with pytest.raises(ValueError, match=r"it |Expecting|decode"):
            parsed(text)
    assert parsed("[1, 1.0]") == [Number("1"), Number("1.0")] != [Number("1.0"), Number("1")]
    assert json_text(parsed('{"a":[1.0,1e400,-0,"\\u00e9"]}')) == '{"a":[1.0,1e400,-0,"é"]}'.encode()
    with pytest.raises(TypeError):
        json_text({"a": "\ud800"})


def test_arguments_are_shown_to_the_digit_and_bodies_that_are_none_as_they_are() -> None:
    held = approval(call=call(body=b'{"a":1.0, "b": 1e2}'))
    assert b'"arguments":{"a":1.0, "b": 1e2}' in orjson.dumps(shown(held))
    assert arguments(held) == {"a": Number("1.0"), "b": Number("1e2")}
    for body, text, base64 in ((b'{"a":1,"a":2}', '{"a":1,"a":2}', None), (b"\xff", None, "/w=="), (b"", None, None)):
        odd = replace(held, call=replace(held.call, protocol="http", headers=(), body=body))
        facts = shown(odd)
        assert (facts["arguments"], facts["body"], facts["body_base64"]) == (None, text, base64)
        assert arguments(odd) is None


def test_an_agent_has_nobody_to_wait_for_once_people_are_not_asked_any_more() -> None:
    held = approval(needs=("finance", "security"))
    assert shown_to_agent(held)["missing_approvals"] == ["finance", "security"]
    for state in State:
        if state is not State.PENDING:
            assert shown_to_agent(approval(state=state))["missing_approvals"] == []


def test_agents_are_not_told_who_has_said_what_and_followers_not_what_can_be_long() -> None:
    held = approval()
    for facts in (shown_to_agent(held), shown_in_short(held)):
        assert not {"votes", "arguments", "headers", "body"} & set(facts)
        assert facts == {name: shown(held)[name] for name in facts if name != "estimated_cost_usd"} | {
            name: facts[name] for name in facts if name == "estimated_cost_usd"
        }
