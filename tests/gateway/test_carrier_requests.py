"""What the carrier refuses to write, and how it reads a target's URL: nothing here opens a connection."""

from __future__ import annotations

import asyncio

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.carrier import REFUSED_HEADERS, Carrier, CarrierError, Origin

ORIGIN = Origin("http", "target", 8000)


def written(method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> bytes | None:
    """The bytes of a request, or None when it was refused."""
    try:
        return Carrier(ORIGIN)._head(method, path, headers, body)
    except ValueError:
        return None


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\r\n", b"\0", b"\x01", b"\x7f", b"a\r\nx: y"])
def test_control_characters_are_refused_wherever_they_stand(bad: bytes) -> None:
    assert written(b"GET" + bad, b"/", []) is None
    assert written(b"GET", b"/" + bad, []) is None
    assert written(b"GET", b"/", [(b"x" + bad, b"y")]) is None
    assert written(b"GET", b"/", [(b"x", b"y" + bad + b"z")]) is None
    assert written(b"GET", b"/", [(b"x", b"y"), (b"x", bad)], b"body") is None


@pytest.mark.parametrize("method", [b"", b"GET ", b"G T", b"GET:", b"CONNECT", b"G\xe9T", b"GET / HTTP/1.1"])
def test_a_method_that_is_no_token_or_makes_a_tunnel_is_refused(method: bytes) -> None:
    assert written(method, b"/", []) is None


@pytest.mark.parametrize(
    "path", [b"", b"x", b"/a b", b"/\xe9", b"/#x", b"http://other/", b"//a\tb", b"/a HTTP/1.1", b"**"]
)
def test_a_path_that_is_no_origin_form_is_refused(path: bytes) -> None:
    assert written(b"GET", path, []) is None


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a: b", b" a", b"a ", b"a\t", b"(a)", b"n\xe9"])
def test_a_header_name_that_is_no_token_is_refused(name: bytes) -> None:
    assert written(b"GET", b"/", [(name, b"x")]) is None


@pytest.mark.parametrize("name", sorted(REFUSED_HEADERS))
def test_headers_that_frame_the_message_are_refused_in_any_case(name: bytes) -> None:
    for spelling in (name, name.upper(), name.title()):
        assert written(b"POST", b"/", [(spelling, b"1")], b"x") is None
        assert written(b"POST", b"/", [(spelling, b"1")], b"x") is None  # a refusal is not remembered as checked


async def test_a_refused_request_reaches_nobody_and_says_nothing_of_its_values() -> None:
    carrier = Carrier(Origin("http", "127.0.0.1", 1))
    with pytest.raises(ValueError, match="control character") as caught:
        await carrier.send(b"GET", b"/", [(b"authorization", b"hunter2\r\nx: y")])
    assert "hunter2" not in str(caught.value)
    assert carrier.statistics().open == carrier.statistics().waiting == 0


def test_the_host_is_the_origins_own() -> None:
    for origin, host in [
        (Origin("http", "target", 80), b"target"),
        (Origin("https", "target", 443), b"target"),
        (Origin("http", "target", 443), b"target:443"),
        (Origin("http", "::1", 8000), b"[::1]:8000"),
    ]:
        assert Carrier(origin)._head(b"GET", b"/", [], b"") == b"GET / HTTP/1.1\r\nhost: " + host + b"\r\n\r\n"


def test_a_carrier_remembers_only_so_many_header_names() -> None:
    carrier = Carrier(ORIGIN)
    for number in range(3000):
        carrier._head(b"GET", b"/", [(b"x-%d" % number, b"")], b"")
    from gateway import carrier as module

    assert len(module._checked_names) <= 1024


def test_a_carrier_remembers_only_so_many_heads_and_none_that_is_long() -> None:
    carrier = Carrier(ORIGIN)
    for number in range(600):
        carrier._head(b"POST", b"/%d" % number, [(b"x-a", b"a" * 1000)], b"")
    carrier._head(b"POST", b"/long", [(b"x-a", b"a" * 5000)], b"")
    assert len(carrier._heads) <= 256
    assert max(map(len, carrier._heads.values())) < 4096


_PARTS = st.tuples(
    st.sampled_from([b"GET", b"POST", b"G T"]),
    st.sampled_from([b"/", b"/a", b"/a b"]),
    st.lists(st.tuples(st.sampled_from([b"x", b"xy", b"Host"]), st.sampled_from([b"", b"y", b"yz", b"\r\nx: y"]))),
    st.sampled_from([b"", b"a", b"a" * 65536, b"a" * 65537]),
)


@settings(max_examples=200, deadline=None)
@given(requests=st.lists(_PARTS, max_size=12))
def test_what_a_carrier_remembers_of_requests_changes_no_request(
    requests: list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]],
) -> None:
    carrier = Carrier(ORIGIN)
    for request in requests * 2:
        try:
            head: bytes | None = carrier._head(*request)
        except ValueError:
            head = None
        assert head == written(*request)


class Parsed:
    """What a strict server reads from the bytes."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.messages = 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


@settings(max_examples=400, deadline=None)
@given(
    path=st.binary(max_size=12).map(lambda tail: b"/" + tail),
    headers=st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=4)
    | st.lists(st.tuples(st.sampled_from([b"x-a", b"Accept", b"x-b"]), st.binary(max_size=12)), max_size=4),
    body=st.binary(max_size=20),
)
def test_what_is_written_is_read_by_a_server_as_exactly_one_request_with_exactly_these_parts(
    path: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    data = written(b"POST", path, headers, body)
    if data is None:
        return
    parsed = Parsed(data)
    assert (parsed.messages, parsed.method, parsed.url, parsed.body) == (1, b"POST", path, body)
    stripped = [(name, value.strip(b" \t")) for name, value in headers]
    own = [(b"host", b"target:8000"), (b"content-length", b"%d" % len(body))]
    assert [(name, value.strip(b" \t")) for name, value in parsed.headers] == [own[0], *stripped, own[1]]


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://127.0.0.1:3001", Origin("http", "127.0.0.1", 3001), ""),
        ("http://Target/", Origin("http", "target", 80), ""),
        ("HTTPS://api.openai.com/v1", Origin("https", "api.openai.com", 443), "/v1"),
        ("https://api.openai.com:8443/v1/", Origin("https", "api.openai.com", 8443), "/v1"),
        ("http://[::1]:9/x/y", Origin("http", "::1", 9), "/x/y"),
        ("http://b\u00fccher.example", Origin("http", "xn--bcher-kva.example", 80), ""),
        ("http://model_server:80", Origin("http", "model_server", 80), ""),
        ("unix:///run/opa.sock", Origin("http", "localhost", 80, "/run/opa.sock"), ""),
    ],
)
def test_a_url_is_split_into_origin_and_base_path(url: str, origin: Origin, path: str) -> None:
    assert Origin.parse(url) == (origin, path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "target:80",
        "ftp://target",
        "http://",
        "http:///x",
        "http://target:99999",
        "http://target:x",
        "http://user:hunter2@target",
        "http://hunter2@target",
        "http://target/?key=hunter2",
        "http://target/#x",
        "http://tar get",
        "http://target/a b",
        "http://target/\u00e9",
        "http://[::1",
        "http://-x-",
        "http://a%0d%0ab",
        "unix://run/opa.sock",
    ],
)
def test_a_url_that_is_no_target_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Origin.parse(url)
    assert "hunter2" not in str(caught.value)


def test_a_carrier_can_be_made_before_the_loop_runs() -> None:
    carrier = Carrier(Origin("http", "127.0.0.1", 1))

    async def use() -> None:
        with pytest.raises(CarrierError):
            await carrier.send(b"GET", b"/", [])
        await carrier.close()

    asyncio.run(use())
