"""Who may knock at `/mcp/`, by Host and Origin."""

import json
from typing import Any

import pytest

from gateway.mcp.doorway import Doorway, WrongHost, WrongOrigin
from tests.support.door import LISTEN, connected
from tests.support.gate import AUTHORIZED, gate

LOOPBACK, ELSEWHERE = "127.0.0.1", "10.1.2.3"
EVIL = "evil.example.com"


def doorway(resource: str | None = None, **listen: Any) -> Doorway:
    return Doorway(LISTEN.model_validate({"host": LOOPBACK, **listen}), resource)


def lets_in(name: str | None, local: str = LOOPBACK, origin: str | None = None, **listen: Any) -> bool:
    at = doorway(**listen)
    try:
        for _ in range(2):  # what was let in once is remembered
            at.check(name.encode() if name is not None else None, origin.encode() if origin else None, local)
    except WrongHost:
        return False
    return True


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080", "localhost."]
)
def test_loopback_is_reached_by_its_own_names(host: str) -> None:
    assert lets_in(host)


@pytest.mark.parametrize(
    "host",
    [EVIL, f"{EVIL}:8080", "evil", "gateway:8080", "10.1.2.3", "localhost.evil.example", "127.0.0.1.evil.example",
     "localhost@evil", "localhost:8080:1", "localhost:", "", " ", "localhost, evil", "[::1", "lo\xe7alhost", None],
)  # fmt: skip
def test_loopback_is_not_reached_by_any_other_name(host: str | None) -> None:
    assert not lets_in(host)


@pytest.mark.parametrize("local", [LOOPBACK, "::1", "127.0.1.1", "::ffff:127.0.0.1", ""])
def test_every_loopback_address_is_guarded_and_so_is_what_has_no_address(local: str) -> None:
    assert not lets_in(EVIL, local)


def test_where_no_names_are_configured_other_addresses_are_reached_by_any() -> None:
    assert lets_in("gateway:8080", ELSEWHERE)
    assert not lets_in("", ELSEWHERE), "but by one"


def test_configured_names_are_the_only_ones_at_every_address() -> None:
    for local in (LOOPBACK, ELSEWHERE):
        assert lets_in("gateway:8080", local, hosts=["Gateway"])
        assert lets_in("gateway", local, hosts=["gateway"])
        assert lets_in("localhost:8080", local, hosts=["gateway"]), "as when a port is published"
        assert not lets_in("other:8080", local, hosts=["gateway"])
    assert lets_in("gateway:80", hosts=["gateway:80"])
    assert not lets_in("gateway:81", hosts=["gateway:80"])


def test_the_addresses_that_are_listened_on_and_were_reached_are_names_too() -> None:
    assert lets_in("10.1.2.3:8080", ELSEWHERE, hosts=["gateway"])
    assert lets_in("127.0.1.1:8080", "127.0.1.1")
    assert lets_in("192.0.2.1", hosts=["gateway"], host="192.0.2.1")
    assert not lets_in("0.0.0.0", host="0.0.0.0")


def test_the_url_that_agents_know_it_by_is_its_name() -> None:
    at = doorway("https://gw.example.com:8443")
    at.check(b"gw.example.com:8443", None, LOOPBACK)
    with pytest.raises(WrongHost):
        at.check(b"gw.example.com", None, LOOPBACK)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("localhost:8080", "https://LOCALHOST:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost", "http://localhost"),
        ("127.0.0.1:8080", "https://app.example.com"),
        ("gateway", "https://app.example.com"),
    ],
)
def test_a_page_of_a_configured_site_or_of_the_gateway_at_localhost_may_call(host: str, origin: str) -> None:
    assert lets_in(host, ELSEWHERE, origin, origins=["https://App.example.com:443"])


@pytest.mark.parametrize(
    "origin",
    ["http://evil", f"http://{EVIL}:8080", "null", "http://localhost:3000", "http://app.example.com", "localhost:8080",
     "https://app.example.com.evil", "https://app.example.com/", "http://localhost:8080, http://evil", "file://"],
)  # fmt: skip
def test_no_other_page_may_call(origin: str) -> None:
    at = doorway(origins=["https://app.example.com"])
    with pytest.raises(WrongOrigin):
        at.check(b"localhost:8080", origin.encode(), LOOPBACK)


def test_a_name_of_the_gateways_own_is_no_site_unless_it_is_localhost() -> None:
    with pytest.raises(WrongOrigin):
        doorway().check(b"gateway", b"http://gateway", ELSEWHERE)


async def _asked(path: str, *lines: str) -> tuple[int, dict[bytes, bytes], bytes, list[Any]]:
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"f"}}'
    head = [f"POST {path} HTTP/1.1", f"content-length: {len(body)}", *lines]
    async with gate(tools=[{"name": "up", "kind": "mcp", "url": "http://127.0.0.1:9"}]) as g:
        async with connected(g.port) as client:
            await client.say("\r\n".join(head).encode() + b"\r\n\r\n" + body)
            status, headers, answer = await client.answer()
        return status, headers, answer, list(g.ledger.records)


async def test_a_host_of_somebody_else_is_misdirected_whoever_calls_and_is_on_record() -> None:
    for credential in (AUTHORIZED, "x-nothing: 1"):
        status, headers, body, records = await _asked("/mcp/up", f"host: {EVIL}", credential)
        assert status == 421
        error = json.loads(body)["error"]
        assert (json.loads(body)["jsonrpc"], error["data"]["code"]) == ("2.0", "malformed_call")
        assert "listen.hosts" in error["message"]
        assert EVIL.encode() not in body
        assert headers[b"x-weighbridge-call"]
        (record,) = [each for each in records if each["record"] == "outcome"]
        assert (record["code"], record["status"]) == ("malformed_call", 421)


async def test_a_page_of_somebody_else_is_forbidden() -> None:
    status, _, body, _ = await _asked("/mcp/up", "host: localhost", "origin: http://evil", AUTHORIZED)
    assert (status, json.loads(body)["error"]["data"]["code"]) == (403, "malformed_call")


async def test_two_hosts_are_one_too_many() -> None:
    status, _, _, _ = await _asked("/mcp/up", "host: localhost", f"host: {EVIL}", AUTHORIZED)
    assert status in (400, 421)
    status, _, _, _ = await _asked("/mcp/up", f"host: {EVIL}", "host: localhost", AUTHORIZED)
    assert status == 400


async def test_other_protocols_are_called_by_any_name() -> None:
    status, _, _, _ = await _asked("/v1/messages", f"host: {EVIL}", "origin: http://evil", AUTHORIZED)
    assert status not in (403, 421)
