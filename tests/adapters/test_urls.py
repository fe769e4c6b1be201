"""Paths and queries: whatever passes has one reading, and is written so that nobody finds another."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import urls
from adapters.errors import MalformedCall


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v2/tickets", "/v2/tickets/", "/v2/tickets/42", "/.well-known/x", "/a..b", "/~me/a.b", "/100%", "/a b",
        "/Müller", "/日本", "/a,b=c:d@e", "/...a",
    ],
)  # fmt: skip
def test_paths_that_everybody_reads_alike_pass(path: str) -> None:
    urls.check_path(path)
    assert unquote(urls.encoded(path)) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/..", "dots"),
        ("/a/../b", "dots"),
        ("/a/./b", "dots"),
        ("/a/...", "dots"),
        ("/a/.. ", "dots"),
        ("/a//b", "empty segment"),
        ("//evil.example/a", "empty segment"),
        ("/a;v=1/b", "semicolon"),
        ("/a\\b", "backslash"),
        ("/a?b", "encoded ?"),
        ("/a#b", "encoded #"),
        ("/a%2fb", "encoded twice"),
        ("/a%2e%2e/b", "encoded twice"),
        ("/a\0b", "nobody sees"),
        ("/a\r\nb", "nobody sees"),
        ("/a\u202eb", "nobody sees"),
        ("/a\ufffdb", "no UTF-8"),
        ("/a\uff0fb", "take for a slash"),
        ("/\uff0e\uff0e/b", "take for a slash"),
        ("/a\u2026/b", "take for a slash"),
        ("/\u2024\u2024/b", "take for a slash"),
    ],
)
def test_paths_that_servers_read_differently_are_refused(path: str, why: str) -> None:
    with pytest.raises(MalformedCall, match=re.escape(why)):
        urls.check_path(path)


@pytest.mark.parametrize("raw", [b"/a%2fb", b"/a%2Fb", b"/a%", b"/a%2", b"/a%zz", b"/%2e%2e%2f"])
def test_what_decoding_would_hide_is_refused_as_it_came(raw: bytes) -> None:
    with pytest.raises(MalformedCall):
        urls.check_raw(raw)


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        (b"a=1&b=2", (("a", "1"), ("b", "2"))),
        (b"a=1&a=2", (("a", "1"), ("a", "2"))),
        (b"flag&a=", (("flag", None), ("a", ""))),
        (b"&&a=1&", (("a", "1"),)),
        (b"a=x+y%20z%2Bw", (("a", "x y z+w"),)),
        (b"a=b=c", (("a", "b=c"),)),
        (b"q=%C3%BC;x=1", (("q", "ü;x=1"),)),
        (b"a%5B%5D=1", (("a[]", "1"),)),
    ],
)
def test_a_query_is_read_as_pairs(query: bytes, pairs: urls.Pairs) -> None:
    assert urls.pairs(query, "query") == pairs


@pytest.mark.parametrize(
    "query", [b"a=%", b"a=%zz", b"a=%ff", b"a=%00", b"=1", b"%0a=1", b"\xff=1", b"&".join([b"a"] * 1001)]
)
def test_a_query_that_cannot_be_relied_on_is_refused(query: bytes) -> None:
    with pytest.raises(MalformedCall):
        urls.pairs(query, "query")


def test_what_some_servers_split_at_is_written_so_that_none_does() -> None:
    assert urls.written(urls.pairs(b"a=1;b=2", "query")) == b"a=1%3Bb%3D2"


@given(st.binary(max_size=60))
def test_any_query_is_refused_or_reads_the_same_to_all(query: bytes) -> None:
    try:
        pairs = urls.pairs(query, "query")
    except MalformedCall:
        return
    text = urls.written(pairs)
    assert urls.pairs(text, "query") == pairs
    assert re.fullmatch(rb"[!-~]*", text)
    plain = [(name, value or "") for name, value in pairs]
    assert parse_qsl(text.decode(), keep_blank_values=True) == plain


@given(st.text(alphabet=st.sampled_from("ab./\\;%2eE fF5cC\0?#é\uff0f\u2024\u202e ~"), max_size=20))
def test_any_path_is_refused_or_stays_what_it_was(text: str) -> None:
    path = "/" + text
    try:
        urls.check_path(path)
    except MalformedCall:
        return
    encoded = urls.encoded(path)
    assert unquote(encoded) == path
    assert re.fullmatch(r"/[!-~]*", encoded)
    assert not {"..", "."} & set(encoded.split("/"))
    assert not re.search(r"[;\\?#]|//|%(2f|2e|5c|00|3b)", encoded, re.IGNORECASE)
