"""How a definition stands by what is kept of its tool."""

from __future__ import annotations

import pytest

from policies.definitions import Pin, read, standing, written

ONE, OTHER = "a" * 64, "b" * 64


def pin(word: str, digest: str = ONE) -> Pin:
    return Pin("github", "echo", word, digest, "dana", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kept", "digest", "stands"),
    [
        (None, ONE, "unknown"),
        (pin("accepted"), ONE, "accepted"),
        (pin("accepted"), OTHER, "changed"),
        (pin("refused"), ONE, "refused"),
        (pin("refused"), OTHER, "refused"),
    ],
)
def test_a_definition_stands_by_the_word_on_its_tool(kept: Pin | None, digest: str, stands: str) -> None:
    assert standing(kept, digest) == stands


@pytest.mark.parametrize("kept", [pin("accepted"), pin("refused", "")])
def test_a_pin_is_read_as_it_was_written(kept: Pin) -> None:
    assert read("github", "echo", written(kept)) == kept


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'["accepted"]', b'["yes","a","b",1]', b'["accepted","a","b","1"]']
)
def test_what_is_no_pin_refuses_its_tool(text: bytes) -> None:
    assert standing(read("github", "echo", text), ONE) == "refused"
