"""Events that pass with other data, and events that are too long to pass."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sse import Framing, data, events, with_data


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b"data: old\n\n", b"data: new\n\n"),
        (b"event: message\ndata: old\n\n", b"event: message\ndata: new\n\n"),
        (b"id: 7\ndata: o\ndata: ld\nretry: 5\n\n", b"id: 7\ndata: new\nretry: 5\n\n"),
        (b"id: 7\r\ndata:old\r\n\r\n", b"id: 7\ndata: new\n\n"),
        (b": a comment\rdata: old\r\r", b": a comment\ndata: new\n\n"),
        (b"\xef\xbb\xbfdata: old\n\n", b"data: new\n\n"),
        (b"id: 7\n\n", b"id: 7\ndata: new\n\n"),
    ],
)
def test_an_event_with_other_data_keeps_all_else(event: bytes, expected: bytes) -> None:
    assert with_data(event, b"new") == expected


@given(st.dictionaries(st.text(), st.text() | st.integers(0, 9), max_size=4))
def test_json_of_any_shape_comes_out_as_the_same_json(value: dict[str, object]) -> None:
    event = with_data(b"event: message\ndata: {}\n\n", orjson.dumps(value, option=orjson.OPT_INDENT_2))
    ((start, end, said),) = events(event)
    assert (start, end) == (0, len(event))
    assert orjson.loads(said) == value


def test_lines_of_data_are_one_text() -> None:
    assert data(b'data: {"a":\ndata: 1}\n\n') == b'{"a":\n1}'


def test_an_event_that_does_not_end_is_held_up_to_its_bound() -> None:
    framing = Framing(10)
    assert framing.whole(b"data: abc\n") == b""
    with pytest.raises(ValueError, match="more than 10 bytes"):
        framing.whole(b"d")
