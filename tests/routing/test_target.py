"""`routing.target`: what a target serves, and the key that opens it and is seen nowhere."""

from pathlib import Path

import pytest

from config.errors import SecretMissing
from routing.target import KINDS
from tests.routing.places import place

KEY = "sk-very-secret-key"


@pytest.mark.parametrize(
    ("kind", "credentials"),
    [
        ("openai", ((b"authorization", b"Bearer " + KEY.encode()),)),
        ("parallax", ((b"authorization", b"Bearer " + KEY.encode()),)),
        ("anthropic", ((b"x-api-key", KEY.encode()),)),
    ],
)
def test_a_target_is_shown_its_key_as_its_kind_wants_it(
    kind: str, credentials: tuple[tuple[bytes, bytes], ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TARGET_KEY", KEY)
    (tmp_path / "key").write_text(KEY)
    for written in (KEY, "env:TARGET_KEY", f"file:{tmp_path}/key"):
        assert place("t", kind, key=written).credentials == credentials


def test_a_target_without_a_key_is_shown_none() -> None:
    assert place("t", "openai").credentials == ()


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_about_a_target_shows_its_key(kind: str) -> None:
    found = place("t", kind, key=KEY)
    for text in (repr(found), str(found), f"{found}", repr([found]), repr(found.settings)):
        assert KEY not in text
        assert "Bearer" not in text


@pytest.mark.parametrize("key", ["env:NO_SUCH_VARIABLE_HERE", "two\r\nlines: x", "caf\u20ac"])
def test_a_key_that_cannot_be_had_or_sent_is_named_without_being_shown(key: str) -> None:
    with pytest.raises(SecretMissing) as missing:
        place("t", "openai", key=key)
    assert "lines" not in str(missing.value)
    assert "\u20ac" not in str(missing.value)


@pytest.mark.parametrize(
    ("kind", "serves"),
    [
        (
            "openai",
            {*(("openai", o) for o in ("chat", "completions", "embeddings", "responses")), ("anthropic", "messages")},
        ),
        ("parallax", {("openai", "chat"), ("anthropic", "messages")}),
        ("anthropic", {("anthropic", "messages"), ("anthropic", "count_tokens"), ("openai", "chat")}),
    ],
)
def test_a_target_serves_the_operations_of_its_kind_and_what_can_be_translated_into_them(
    kind: str, serves: set[tuple[str, str]]
) -> None:
    found = place("t", kind)
    asked = {
        (protocol, operation)
        for protocol in ("openai", "anthropic", "mcp")
        for operation in ("chat", "completions", "embeddings", "responses", "messages", "count_tokens", "models", "")
    }
    assert {each for each in asked if found.serves(*each)} == serves
