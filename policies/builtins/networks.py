"""Builtins about networks that the interpreter lacks, on the standard library's addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any, Final

from policies.builtins.arguments import text

MOST_NETWORKS: Final = 2_000
MOST_PAIRS: Final = 10_000
MOST_ADDRESSES: Final = 4_096

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_CIDR: Final = re.compile(r"[0-9A-Fa-f:.]{1,45}/[0-9]{1,3}", re.ASCII)
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]{1,45}", re.ASCII)


def cidr_intersects(one: Any, other: Any) -> bool:
    text("net.cidr_intersects", one, other)
    first, second = _network("net.cidr_intersects", one), _network("net.cidr_intersects", other)
    return first.version == second.version and first.overlaps(second)


def cidr_contains_matches(cidrs: Any, others: Any) -> set[tuple[Any, Any]]:
    """The pairs of keys whose first network contains the second network or address."""
    name = "net.cidr_contains_matches"
    first, second = list(_listed(name, cidrs)), list(_listed(name, others))
    if len(first) * len(second) > MOST_PAIRS:
        raise ValueError(f"{name} compares at most {MOST_PAIRS} pairs")
    if not first or not second:
        return set()
    outer = [(key, _network(name, value)) for key, value in first]
    inner = [(key, _network(name, value, address=True)) for key, value in second]
    return {(key, other) for key, network in outer for other, part in inner if _contains(network, part)}


def cidr_merge(networks: Any) -> set[str]:
    """The fewest networks that hold exactly the addresses of the given ones."""
    name = "net.cidr_merge"
    if not isinstance(networks, list | set):
        raise ValueError(f"{name} takes an array or a set of texts")
    if len(networks) > MOST_NETWORKS:
        raise ValueError(f"{name} takes at most {MOST_NETWORKS} networks")
    text(name, *networks)
    found = {_classful(name, each) if _ADDRESS.fullmatch(each) else _network(name, each) for each in networks}
    # Both families together, so that ::/0 holds IPv4 as well.
    return {str(_plain(each)) for each in ipaddress.collapse_addresses(_mapped(each) for each in found)}


def cidr_expand(cidr: Any) -> set[str]:
    """All addresses of a network of at most MOST_ADDRESSES."""
    text("net.cidr_expand", cidr)
    network = _network("net.cidr_expand", cidr)
    if network.num_addresses > MOST_ADDRESSES:
        raise ValueError(f"net.cidr_expand gives at most {MOST_ADDRESSES} addresses; use net.cidr_contains")
    return {str(address) for address in network}


def _contains(network: Network, part: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(part, ipaddress.IPv4Network) and part.subnet_of(network)
    return isinstance(part, ipaddress.IPv6Network) and part.subnet_of(network)


def _listed(builtin: str, value: Any) -> Iterator[tuple[Any, str]]:
    """Keys and networks of a text (its own key), an array (by position), a set (by itself) or an object."""
    if isinstance(value, str):
        pairs: list[tuple[Any, Any]] = [(value, value)]
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    elif isinstance(value, set):
        pairs = [(each, each) for each in value]
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        raise ValueError(f"{builtin} takes a text, or an array, set or object of texts")
    if len(pairs) > MOST_NETWORKS:
        raise ValueError(f"{builtin} takes at most {MOST_NETWORKS} networks")
    for key, each in pairs:
        first = each[0] if isinstance(each, list | tuple) and each else each
        text(builtin, first)
        yield key, first


def _network(builtin: str, value: str, *, address: bool = False) -> Network:
    """A CIDR, or where allowed an address as the network of it alone. Raises ValueError."""
    try:
        if address and _ADDRESS.fullmatch(value):
            return _plain(ipaddress.ip_network(value))
        if _CIDR.fullmatch(value):
            return _plain(ipaddress.ip_network(value, strict=False))
    except ValueError:
        pass
    raise ValueError(f"{builtin} was given what is no network such as 10.0.0.0/8")


def _plain(network: Network) -> Network:
    """IPv4 networks written as IPv6 are what they mean."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _mapped(network: Network) -> ipaddress.IPv6Network:
    if isinstance(network, ipaddress.IPv6Network):
        return network
    address = int(_MAPPED.network_address) | int(network.network_address)
    return ipaddress.IPv6Network((address, network.prefixlen + 96))


def _classful(builtin: str, value: str) -> Network:
    """An IPv4 address without a prefix stands for the network of its class (RFC 791), as in OPA."""
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{builtin} was given what is no network such as 10.0.0.0/8") from None
    if isinstance(found, ipaddress.IPv6Address):
        raise ValueError(f"{builtin} needs a prefix length with an IPv6 address")
    first = int(found) >> 24
    length = 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 32
    return ipaddress.IPv4Network((int(found), length), strict=False)
