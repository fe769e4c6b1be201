"""Addresses that a tool's host may, and may not, lead to."""

from __future__ import annotations

import pytest

from gateway.tools.addresses import checker

_METADATA = ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
_HERE = ("127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", "0.1.2.3")
_LINK = ("169.254.1.1", "fe80::1", "fe80::1%eth0", "febf::1", "224.0.0.1", "ff02::1", "255.255.255.255")
_PRIVATE = ("10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd12::1")
_PUBLIC = ("93.184.216.34", "8.8.8.8", "2606:4700::1111", "172.32.0.1")


def allowed(address: str, *networks: str) -> bool:
    check = checker("crm.example", networks or None)
    assert check is not None
    return check(address)


@pytest.mark.parametrize("address", [*_METADATA, *_HERE, *_LINK])
def test_addresses_of_this_machine_of_one_link_and_of_metadata_are_never_meant(address: str) -> None:
    assert not allowed(address)
    assert not allowed(address, "public", "private")


@pytest.mark.parametrize("address", [*_PRIVATE, *_PUBLIC])
def test_other_addresses_are_where_tools_are(address: str) -> None:
    assert allowed(address)
    assert allowed(address, "public", "private")


def test_networks_narrow_where_a_tool_may_be() -> None:
    assert [address for address in (*_PRIVATE, *_PUBLIC) if allowed(address, "private")] == list(_PRIVATE)
    assert [address for address in (*_PRIVATE, *_PUBLIC) if allowed(address, "public")] == list(_PUBLIC)
    assert [address for address in _PRIVATE if allowed(address, "10.1.0.0/16")] == ["10.1.2.3"]
    assert [address for address in _PRIVATE if allowed(address, "fd12::/16")] == ["fd12::1"]


def test_a_network_that_is_written_opens_even_what_is_never_meant() -> None:
    assert allowed("127.0.0.1", "127.0.0.0/8")
    assert allowed("169.254.169.254", "169.254.169.254/32")
    assert not allowed("127.0.0.1", "10.0.0.0/8")


@pytest.mark.parametrize(
    "form",
    ["::ffff:{}", "64:ff9b::{}", "64:ff9b:1::{}", "::{}"],
)
def test_an_ipv4_address_within_an_ipv6_one_stands_for_itself(form: str) -> None:
    for inner in ("169.254.169.254", "127.0.0.1", "10.1.2.3", "93.184.216.34"):
        for networks in ((), ("public",), ("private",), ("10.0.0.0/8",)):
            assert allowed(form.format(inner), *networks) == allowed(inner, *networks), (inner, networks)


def test_tunnels_are_looked_through() -> None:
    assert not allowed("2002:7f00:1::1")  # 6to4 of 127.0.0.1
    assert not allowed("2002:a9fe:a9fe::")  # of 169.254.169.254
    assert not allowed("2001:0:4136:e378:8000:63bf:5601:5601")  # Teredo of 169.254.169.254
    assert not allowed("2002:a01:203::1", "public")


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "::1", "localhost"])
def test_an_address_in_the_configuration_is_the_operators_word(host: str) -> None:
    assert checker(host, None) is None


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "localhost.", "a.localhost"])
def test_other_ways_to_write_it_are_looked_at_like_names(host: str) -> None:
    check = checker(host, None)
    assert check is not None
    assert not check("127.0.0.1")


def test_what_is_no_address_is_not_allowed() -> None:
    assert not allowed("crm.example")
