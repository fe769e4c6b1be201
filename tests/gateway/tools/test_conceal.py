"""A secret in a text that comes in pieces is masked wherever it is cut."""

from __future__ import annotations

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
