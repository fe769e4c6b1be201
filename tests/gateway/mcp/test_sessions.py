"""Names of sessions that every gateway with the key can read, and that nobody can make or change."""

from __future__ import annotations

import base64

import pytest

from gateway.mcp.sessions import Seals, SealsUnavailable, Session

KEY = bytes(range(32))
SESSION = Session("up", "acme", "bot", "the-servers-own-id", "2025-11-25", "01X", b'{"elicitation":{}}')


def test_another_gateway_with_the_key_reads_what_one_has_made() -> None:
    assert Seals(KEY).opened(Seals(KEY).sealed(SESSION)) == SESSION


def test_a_name_is_visible_ascii_and_says_nothing() -> None:
    name = Seals(KEY).sealed(SESSION)
    assert all("!" <= char <= "~" for char in name)
    assert "the-servers" not in name
    assert b"the-servers" not in base64.urlsafe_b64decode(name + "=" * (-len(name) % 4))


def test_no_two_names_are_the_same() -> None:
    seals = Seals(KEY)
    assert seals.sealed(SESSION) != seals.sealed(SESSION)


def test_what_was_made_with_another_key_is_unknown() -> None:
    assert Seals(bytes(32)).opened(Seals(KEY).sealed(SESSION)) is None


def test_a_name_that_was_changed_in_any_place_is_unknown() -> None:
    seals = Seals(KEY)
    name = seals.sealed(SESSION)
    for place in range(len(name) - 1):
        assert seals.opened(name[:place] + ("A" if name[place] != "A" else "B") + name[place + 1 :]) is None


@pytest.mark.parametrize("name", ["", "x", "no such session", "\u00e9" * 40, "A" * 40, "A" * 100_000, "=" * 40, "\n"])
def test_what_was_never_a_name_is_unknown(name: str) -> None:
    assert Seals(KEY).opened(name) is None


def test_without_a_key_nothing_is_made_and_nothing_is_read() -> None:
    seals = Seals(None)
    with pytest.raises(SealsUnavailable):
        seals.sealed(SESSION)
    with pytest.raises(SealsUnavailable):
        seals.opened("A" * 40)
    seals.use(KEY)
    assert seals.opened(seals.sealed(SESSION)) == SESSION
