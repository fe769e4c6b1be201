"""A secret in a text that comes in pieces is masked wherever it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tools.conceal import Concealer

SECRET = b"abacabad"


@given(st.lists(st.binary(max_size=6) | st.sampled_from([SECRET, b"abac", b"abad", b"a", b"b", SECRET[:-1]])))
def test_it_is_masked_as_in_the_whole_text_and_nothing_else_changes(pieces: list[bytes]) -> None:
    concealer = Concealer([SECRET])
    shown = b"".join([*(concealer.feed(each) for each in pieces), concealer.rest()])
    whole = b"".join(pieces)
    assert shown == whole.replace(SECRET, b"*" * len(SECRET))


def test_only_what_may_begin_it_is_kept_back() -> None:
    concealer = Concealer([SECRET])
    assert concealer.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert concealer.feed(b"data: aba") == b"data: "
    assert concealer.feed(b"x") == b"abax"
    assert concealer.rest() == b""


def test_without_a_secret_everything_passes() -> None:
    assert Concealer([b""]).feed(b"anything") == b"anything"


def test_several_secrets_are_masked_side_by_side() -> None:
    concealer = Concealer([b"first-one", b"second-one"])
    assert concealer.feed(b"first-one, sec") == b"*********, "
    assert concealer.whole(b"ond-one!") == b"**********!"


@pytest.mark.parametrize(
    "spelled",
    [
        rb"ab/c+d&e==f",
        rb"ab%2Fc%2Bd%26e%3D%3Df",
        rb"ab/c%2Bd%26e%3D%3Df",
        rb"ab%2fc%2bd%26e%3d%3df",
        rb"ab\/c+d&e==f",
        rb"ab/c+d\u0026e==f",
        rb"ab/c\u002Bd\u0026e==f",
        rb"ab/c+d&amp;e==f",
    ],
)
def test_it_is_masked_as_urls_and_json_and_pages_spell_it(spelled: bytes) -> None:
    concealer = Concealer([b"ab/c+d&e==f"])
    assert concealer.whole(b'{"url":"/?key=' + spelled + b'"}') == b'{"url":"/?key=' + b"*" * len(spelled) + b'"}'
