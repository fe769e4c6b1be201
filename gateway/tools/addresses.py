"""Where the host of a tool may be: the last look at an address before a connection is made to it.

A name is whatever its zone says at the moment, so it is not the name that is checked but each address that it leads to,
and the connection is made to that very address. An address, or `localhost`, in the configuration is the operator's own
word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NEVER: Final[tuple[Network, ...]] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host on this network
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, and most clouds' metadata
            "100.100.100.200/32",  # metadata
            "168.63.129.16/32",  # metadata
            "192.0.0.192/32",  # metadata
            "224.0.0.0/4",  # multicast
            "255.255.255.255/32",
            "::/128",
            "::1/128",
            "fe80::/10",
            "fec0::/10",  # site-local, of old
            "ff00::/8",
            "fd00:ec2::254/128",  # metadata
            "fd20:ce::254/128",  # metadata
        ),
    )
)
"""What nothing but a network that is written in the configuration opens."""

_PRIVATE: Final[tuple[Network, ...]] = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
_TRANSLATED: Final[tuple[IPv6Network, ...]] = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
"""NAT64: the last 32 bits are an IPv4 address (RFC 6052, RFC 8215)."""
_COMPATIBLE: Final = IPv6Network("::/96")
"""IPv4-compatible addresses, of old."""


def checker(host: str, networks: Sequence[str] | None) -> Callable[[str], bool] | None:
    """Whether a connection may be made to an address that `host` leads to; None where nothing is to be checked."""
    if host == "localhost" or _literal(host):
        return None
    words = frozenset(networks or ()) & {"public", "private"}
    written = [ip_network(each) for each in networks or () if each not in words]

    def allowed(text: str) -> bool:
        try:
            address = ip_address(text.partition("%")[0])
        except ValueError:
            return False
        return all(_allowed(each, networks is not None, words, written) for each in _looked_through(address))

    return allowed


def _literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _allowed(address: Address, narrowed: bool, words: frozenset[str], written: Sequence[Network]) -> bool:
    if any(address in network for network in written):
        return True
    if any(address in network for network in _NEVER) or address.is_multicast or address.is_unspecified:
        return False
    if not narrowed:
        return True
    private = any(address in network for network in _PRIVATE)
    return private if "private" in words and private else "public" in words and address.is_global


def _looked_through(address: Address) -> list[Address]:
    """Every address that a packet to this one may end at: those of IPv4 that stand within IPv6 stand for themselves."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if any(address in network for network in _TRANSLATED):
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    if address in _COMPATIBLE and int(address) > 0xFFFF:
        return [IPv4Address(int(address))]
    return [address]
