"""Where a shared state is kept: the URL of a Redis server or cluster, read strictly and shown without its password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote

SCHEMES: Final = ("redis", "rediss", "redis+cluster", "rediss+cluster")
"""With the second s the connection is encrypted; with +cluster the server has to be a cluster, and several of its nodes
may be named."""

_URL: Final = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<credentials>[^@/?#]*)@)?(?P<servers>[^@/?#]+)(?:/(?P<database>[0-9]{0,4}))?"
    r"(?:\?(?P<query>[^#]*))?"
)
_SERVER: Final = re.compile(r"(?:(?P<host>[^][:,\s]{1,253})|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\])(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A Redis server, or a few nodes of a cluster, and how to be let in. Its repr has no password."""

    servers: tuple[tuple[str, int], ...]
    tls: bool = False
    cluster: bool = False
    """Whether only a cluster will do; without it, what the server says decides."""
    database: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    """The authorities that vouch for the server, a PEM file; the system's when None."""

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """Raises ValueError, whose words go before a place's name and never repeat what was written."""
        parts = _URL.fullmatch(text)
        if parts is None or parts["scheme"] not in SCHEMES or not text.isprintable() or " " in text:
            raise ValueError("is not the URL of a Redis server")
        cluster = parts["scheme"].endswith("+cluster")
        servers = tuple(_server(each) for each in parts["servers"].split(","))
        if len(servers) > 1 and not cluster:
            raise ValueError("names several servers, which only a cluster's nodes can be")
        database = int(parts["database"] or 0)
        if cluster and database:
            raise ValueError("names a database, of which a cluster has only 0")
        username, _, password = (parts["credentials"] or "").partition(":")
        tls = parts["scheme"].startswith("rediss")
        return cls(
            servers,
            tls,
            cluster,
            database,
            unquote(username) or None,
            unquote(password) or None,
            _authorities(parts["query"], tls),
        )

    @property
    def is_secret(self) -> bool:
        """Whether the URL says more than everybody may know."""
        return self.username is not None or self.password is not None

    def __str__(self) -> str:
        """The URL without its credentials."""
        scheme = ("rediss" if self.tls else "redis") + ("+cluster" if self.cluster else "")
        servers = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers)
        return f"{scheme}://{servers}" + ("" if self.cluster else f"/{self.database}")


def _server(text: str) -> tuple[str, int]:
    parts = _SERVER.fullmatch(text)
    port = int(parts["port"] or _DEFAULT_PORT) if parts is not None else 0
    if parts is None or not 0 < port < 65536:
        raise ValueError("names no server")
    return parts["host"] or parts["v6"], port


def _authorities(query: str | None, tls: bool) -> Path | None:
    if not query:
        return None
    given = parse_qsl(query, keep_blank_values=True)
    if [name for name, _ in given] != ["ssl_ca_certs"] or not tls:
        raise ValueError("has a query; only rediss:// knows one, ?ssl_ca_certs=/path/of/authorities.pem")
    path = Path(given[0][1])
    if not path.is_absolute():
        raise ValueError("names its authorities by a path that is not absolute")
    return path
