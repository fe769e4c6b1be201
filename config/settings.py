"""What the operator may write, one model a section: checked once, frozen, handed to every room that needs it.

Attribute names are the file's keys, and each description is the manual's sentence on it. Relations between sections
(an arm's target exists, no two agents share a name) are checked in `config.crosscheck`.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from decimal import Decimal, InvalidOperation
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from config.redis_url import RedisUrl
from config.secrets import Secret, checked_secret

Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Strict(False)]
"""A YAML list, kept as a tuple so that settings cannot be changed after they were checked."""

_SECONDS: Final = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_BYTES: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_AMOUNT: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})", re.ASCII)
_LONGEST_SECONDS: Final = 10 * 365 * 86400
_MOST_BYTES: Final = 2**40

_LABEL: Final = "[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_LONGEST_HOST: Final = 253
_LONGEST_SOCKET: Final = 103  # macOS ends there; Linux has four more
_AUTHORITY: Final = re.compile(r"(?:[^][:]+|\[[^][]+\])(?::[0-9]*)?")
"""A name or a bracketed address, and a port: the reading of a URL passes over what else stands beside them."""

RESERVED_HEADERS: Final = frozenset(
    {
        "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "cookie", "expect",
        "forwarded", "host", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade", "via", "x-http-method",
        "x-http-method-override", "x-method-override", "x-original-url", "x-real-ip", "x-rewrite-url",
    }
)  # fmt: skip
"""Headers that frame a request, say where it comes from, or make another request of it."""
RESERVED_PREFIXES: Final = ("x-forwarded-", "x-weighbridge-", "sec-", "proxy-")

LONGEST_JOINED: Final = 40
"""Characters of a server's name that stands before those of its tools: some models take names of 64 in all."""
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def mistaken(message: str, remedy: str) -> PydanticCustomError:
    """A validation error in our own words; neither text may contain what was written."""
    return PydanticCustomError("mistake", "{message}", {"message": message, "remedy": remedy})


def seconds(value: object) -> float:
    """`250ms`, `50s`, `15m`, `1h`, `14d` or a number -> seconds. Raises PydanticCustomError."""
    amount = _amount(value, {**_SECONDS, "": Decimal(1)})
    if amount is None or amount > _LONGEST_SECONDS:
        raise mistaken("is not a duration", "Write seconds as a number, or for example 250ms, 50s, 15m, 1h or 14d.")
    return float(amount)


def size(value: object) -> int:
    """`32MiB`, `64KiB`, `10MB` or an integer -> bytes. Raises PydanticCustomError."""
    amount = _amount(value, {unit: Decimal(factor) for unit, factor in _BYTES.items()})
    if amount is None or amount != amount.to_integral_value() or amount > _MOST_BYTES:
        raise mistaken("is not a size", "Write bytes as a whole number, or for example 64KiB, 32MiB or 10MB.")
    return int(amount)


def _amount(value: object, units: dict[str, Decimal]) -> Decimal | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return Decimal(value) if math.isfinite(value) and value >= 0 else None
    matched = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if matched is None or matched[2] not in units:
        return None
    try:
        return Decimal(matched[1]) * units[matched[2]]
    except InvalidOperation:
        return None


def _name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(NAME, value):
        raise mistaken(
            "is not a usable name",
            "Write 1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first.",
        )
    return value


def _node(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(f"{NAME}(/{NAME})?", value):
        raise mistaken("is not a node", "Write a tenant (acme), or a tenant and a team or agent (acme/support-bot).")
    return value


def _url(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    example = "Write for example http://127.0.0.1:9000 or https://api.example.com/v1."
    if parts.scheme not in ("http", "https") or not host or parts.port == 0:
        raise mistaken("is not an http or https URL", example)
    if not value.isascii() or not value.isprintable() or " " in value or "\\" in value:
        raise mistaken("has characters that a URL cannot have", example)
    if "@" in parts.netloc:
        raise mistaken("carries credentials", "Remove what stands before the @ and give them as key: env:NAME.")
    if "?" in value or "#" in value:
        raise mistaken("has a query or a fragment", "Write the base URL only; the call's path is added to it.")
    if not _is_host(host) or not _AUTHORITY.fullmatch(parts.netloc):
        raise mistaken("has a host that cannot exist", example)
    return value


def _whole_url(value: object) -> object:
    if isinstance(value, str) and ("?" in value or "#" in value):
        # Presigned ones have their secret in the query.
        remedy = "Write the URL without it, since URLs are logged; what grants access is given as token: env:NAME."
        raise mistaken("has a query or a fragment", remedy)
    return _url(value)


def _opa_url(value: object) -> object:
    if not isinstance(value, str) or not value.startswith("unix:"):
        return _url(value)
    example = "Write for example unix:///run/opa.sock."
    if not re.fullmatch(r"unix:///[!-~]+", value) or value.endswith("/"):
        raise mistaken("is not the URL of a Unix socket", example)
    if len(value.removeprefix("unix://")) > _LONGEST_SOCKET:
        raise mistaken("is longer than the path of a Unix socket can be", example)
    return value


def _called_host(value: object) -> object:
    if not isinstance(value, str):
        return value
    example = "Write for example gateway, gateway:8080 or mcp.example.com."
    try:
        parts = urlsplit(f"//{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise mistaken("is not the name of a host", example) from None
    if not host or port == 0 or not _is_host(host) or not _AUTHORITY.fullmatch(value) or set("/@?#") & set(value):
        raise mistaken("is not the name of a host", example)
    return value.lower().rstrip(".")


def _origin(value: object) -> object:
    """As browsers write it: in lower case, without a port that is the scheme's own."""
    if not isinstance(value, str):
        return value
    _url(value)
    parts = urlsplit(value.lower())
    if parts.path:
        raise mistaken("is more than an origin", "Write for example https://app.example.com, without a path.")
    own = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.removesuffix(f':{own}')}"


def _scope(value: object) -> object:
    # RFC 6749, 3.3: visible ASCII without quotes and backslashes.
    if isinstance(value, str) and not re.fullmatch(r"[!#-\[\]-~]{1,256}", value):
        raise mistaken("is not a scope", "Write one word for each scope, for example mcp:tools.")
    return value


def _is_host(host: str) -> bool:
    if ":" not in host:
        return len(host) <= _LONGEST_HOST and _HOST.fullmatch(host) is not None
    try:
        return "%" not in host and bool(IPv6Address(host))
    except ValueError:
        return False


def _input_path(value: object, info: ValidationInfo[Any]) -> object:
    return _absolute(value, (info.context or {}).get("folder"))


def _output_path(value: object) -> object:
    return _absolute(value, None)


def _absolute(value: object, start: Path | None) -> object:
    if not isinstance(value, str | Path):
        return value
    if not str(value).strip() or not str(value).isprintable():
        raise mistaken("is not a path", "Write the path of a file or folder.")
    path = (start or Path.cwd()).absolute() / value
    if ".." not in path.parts:
        return path
    plain = Path(os.path.normpath(path))
    # Up from a folder that is a link leads elsewhere than its name says.
    return plain if os.path.realpath(plain) == os.path.realpath(path) else path


def _state(value: object, info: ValidationInfo[Any]) -> object:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise mistaken("is not text", "Quote it.")
    if value.startswith(("env:", "file:")):
        return checked_secret(value, info)
    if value.startswith("redis"):
        try:
            url = RedisUrl.parse(value)
        except ValueError as error:
            reason = str(error)
        else:
            return checked_secret(value, info) if url.is_secret else value
        raise mistaken(reason, "Write for example redis://127.0.0.1:6379/0, or env:NAME for one with a password.")
    path = value.removeprefix("sqlite:///")
    if path == value or not path.strip("/ ") or not path.isprintable() or "?" in path or "#" in path:
        raise mistaken(
            "is not a place for state",
            "Write sqlite:///var/weighbridge.db (relative), sqlite:////srv/weighbridge.db (absolute), or "
            "redis://127.0.0.1:6379/0.",
        )
    return f"sqlite:///{_output_path(path)}"


def _pointer(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"(/([^/~]|~[01])*)+", value):
        raise mistaken("is not a JSON pointer", "Write for example /messages or /arguments/ssn.")
    return value


def _header_name(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}", value):
        raise mistaken("is not the name of a header", "Write for example x-api-version.")
    if (name := value.lower()) in RESERVED_HEADERS or name.startswith(RESERVED_PREFIXES):
        raise mistaken(
            "is a header of the connection, of the gateway or of proxies", "Leave it out: the gateway writes its own."
        )
    return name


def _parameter_name(value: object) -> object:
    if isinstance(value, str) and (not value.isprintable() or value != value.strip()):
        raise mistaken("is not the name of a parameter", "Write for example api_key, without spaces around it.")
    return value


def _path_pattern(value: object) -> object:
    if isinstance(value, str):
        segments = value.split("/")
        odd = any("**" in each and each != "**" for each in segments)
        if not re.fullmatch(r"(/[^/\\;?#%\x00-\x20\x7f]*)+", value) or odd or {".", ".."} & set(segments):
            raise mistaken("is not a pattern of paths", "Write for example /v2/tickets/* or /v2/**.")
    return value


def _network(value: object) -> object:
    if isinstance(value, str) and value not in ("public", "private"):
        try:
            ip_network(value)
        except ValueError:
            pass
        else:
            return value
        raise mistaken("is not a network", "Write public, private, or for example 10.1.0.0/16 or fd12::/32.")
    return value


def _digest(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[0-9a-f]{64}", value):
        raise mistaken("is no SHA-256", "Write its 64 hexadecimal digits, as `weighbridge tools list` tells them.")
    return value


def _word(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[^\x00]{1,4096}", value, re.DOTALL):
        raise mistaken("is no word of a command", "Write a program, and its arguments one by one.")
    return value


def _variable(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", value):
        raise mistaken("is not the name of an environment variable", "Write for example GITHUB_TOKEN.")
    return value


def _finite(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) < 1e15:
        raise mistaken("is not a usable number", "Write an ordinary finite number.")
    return value


Seconds = Annotated[float, BeforeValidator(seconds)]
"""A duration, in seconds."""
Bytes = Annotated[int, BeforeValidator(size)]
"""A size, in bytes."""
Name = Annotated[str, BeforeValidator(_name)]
Node = Annotated[str, BeforeValidator(_node)]
Url = Annotated[str, BeforeValidator(_url)]
"""A base URL, to which a path is added."""
WholeUrl = Annotated[str, BeforeValidator(_whole_url)]
"""A URL that is asked for as it is."""
OpaUrl = Annotated[str, BeforeValidator(_opa_url)]
CalledHost = Annotated[str, BeforeValidator(_called_host)]
"""A host as the Host header has it, in lower case; without a port, on any."""
WebOrigin = Annotated[str, BeforeValidator(_origin)]
"""What browsers call the site that a page belongs to."""
Scope = Annotated[str, BeforeValidator(_scope)]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures that are checked with a public key: there are none that one shared secret both makes and checks."""
Number = Annotated[float, BeforeValidator(_finite)]
Rate = Annotated[Number, Field(le=1_000_000)]
"""US dollars for something that is sold piece by piece or by the million."""
InputPath = Annotated[Path, BeforeValidator(_input_path)]
"""A file that is read; relative to the configuration file's folder, absolute once loaded."""
OutputPath = Annotated[Path, BeforeValidator(_output_path)]
"""A file that is written; relative to the working directory, absolute once loaded."""
Digest = Annotated[str, BeforeValidator(_digest)]
"""A SHA-256 in hexadecimal digits."""
Word = Annotated[str, BeforeValidator(_word)]
"""A word of a command line."""
Variable = Annotated[str, BeforeValidator(_variable)]
"""The name of an environment variable."""
HeaderName = Annotated[str, BeforeValidator(_header_name)]
"""The name of a header that is neither the connection's nor says who calls; in lower case once loaded."""
PathPattern = Annotated[str, BeforeValidator(_path_pattern)]
ParameterName = Annotated[str, Field(min_length=1, max_length=256), BeforeValidator(_parameter_name)]
"""The name of a parameter of a query."""
Network = Annotated[str, BeforeValidator(_network)]
"""`public`, `private`, or addresses as CIDR."""
Method = Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]
State = Annotated[str | Secret, BeforeValidator(_state)]
"""`sqlite:///PATH` or a Redis URL as text; a Secret where it is written env:NAME or file:PATH, or has credentials."""
Pointer = Annotated[str, BeforeValidator(_pointer)]
Text = Annotated[str, Field(min_length=1, max_length=256)]


class Section(BaseModel):
    """Common to all sections: no unknown keys, no silent conversions, no changes, and errors that repeat no input."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class AdminListenSettings(Section):
    """Where the admin API and the console are served."""

    host: Text = Field(
        default="127.0.0.1", description="Address to bind. Keep it on loopback or on an operators' network."
    )
    port: int = Field(default=8081, ge=0, le=65535, description="Port to bind; 0 takes any free one.")


class ListenSettings(Section):
    """Where agents connect, and what a connection may cost."""

    host: Text = Field(default="127.0.0.1", description="Address to bind; 0.0.0.0 or :: for all.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to bind; 0 takes any free one.")
    hosts: Several[CalledHost] = Field(
        default=(),
        description="Names by which agents reach /mcp/, as `gateway` or `gateway:8080`, beside localhost and `host`. "
        "With none written, any name will do at an address other than loopback (docs/identity.md).",
    )
    origins: Several[WebOrigin] = Field(
        default=(),
        description="Sites whose pages may call /mcp/, as `https://app.example.com`, beside the gateway's own at "
        "localhost.",
    )
    max_body: Bytes = Field(
        default=32 * 2**20, gt=0, description="Largest request body; a larger one is `body_too_large`."
    )
    max_header: Bytes = Field(
        default=64 * 2**10, ge=1024, description="Largest request head: request line and headers together."
    )
    header_timeout: Seconds = Field(default=10.0, gt=0, description="Time for a request's head to arrive.")
    body_timeout: Seconds = Field(default=60.0, gt=0, description="Time for a request's body to arrive.")
    write_timeout: Seconds = Field(
        default=60.0, gt=0, description="How long a client may leave a waiting piece of answer unread."
    )
    keep_alive: Seconds = Field(
        default=75.0, gt=0, description="How long an idle connection is kept for the next call."
    )
    max_connections: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Open connections of agents, all together."
    )
    drain: Seconds = Field(default=30.0, ge=0, description="On shutdown, how long calls under way may finish.")


class PersonSettings(Section):
    """Someone who may use the admin API and the console."""

    name: Name = Field(description="Recorded with everything this person changes or approves.")
    token: Secret = Field(description="Bearer token: `env:NAME`, `file:PATH` or a literal of at least 8 characters.")
    roles: Several[Name] = Field(default=(), description="What the person may decide; `admin` may change things.")


class AdminSettings(Section):
    """The admin listener, never on the data port."""

    listen: AdminListenSettings = Field(default=AdminListenSettings(), description="Where the admin API is served.")
    people: Several[PersonSettings] = Field(default=(), description="Who may use it; nobody when empty.")


class LedgerSettings(Section):
    """Where every call is recorded."""

    path: OutputPath = Field(
        default=Path("var/ledger"),
        validate_default=True,
        description="Folder of the records; relative to the working directory.",
    )
    mask: Several[Pointer] = Field(
        default=("/messages", "/system", "/prompt", "/input", "/instructions", "/tools", "/metadata"),
        description="JSON pointers into a call's arguments that are masked before they are recorded.",
    )


class DecisionLogSettings(Section):
    """Where decisions are uploaded to, beside the ledger, in the shape of OPA's decision log."""

    url: WholeUrl = Field(description="Where batches are POSTed: gzipped JSON arrays of events.")
    token: Secret | None = Field(
        default=None, description="Bearer token that it asks for: `env:NAME`, `file:PATH` or a literal."
    )
    ca: InputPath | None = Field(
        default=None, description="PEM file of the authorities its certificate may come from; the system's when absent."
    )
    max_delay: Seconds = Field(default=5.0, gt=0, le=3600, description="How long an event waits for others at most.")
    max_batch: Bytes = Field(
        default=1024 * 1024, ge=1024, le=64 * 1024 * 1024, description="Bytes of events in one upload, before gzip."
    )
    buffer: Bytes = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        le=1024 * 1024 * 1024,
        description="Bytes of events that wait while nobody takes them; beyond that the oldest are dropped.",
    )

    @model_validator(mode="after")
    def _holds_a_batch(self) -> Self:
        if self.buffer < self.max_batch:
            raise mistaken("buffer is less than max_batch", "Raise buffer, or lower max_batch.")
        return self


class OpaSettings(Section):
    """A separate Open Policy Agent server."""

    url: OpaUrl = Field(
        description="Base URL of the OPA server, with its base path if it has one, or `unix:///path/of/its/socket`."
    )
    timeout: Seconds = Field(default=0.25, gt=0, description="How long one decision may take; a later one is DENY.")
    token: Secret | None = Field(
        default=None, description="Bearer token that it asks for: `env:NAME`, `file:PATH` or a literal."
    )
    ca: InputPath | None = Field(
        default=None, description="PEM file of the authorities trusted for it alone; relative to this file's folder."
    )
    max_connections: int = Field(
        default=256, ge=1, le=100_000, description="Open connections to it, per worker process."
    )


class BundleKeySettings(Section):
    """A key that bundles have to be signed with."""

    id: Text = Field(description="The key's name: what a signature calls it (`kid`).")
    algorithm: Literal[
        "HS256",
        "HS384",
        "HS512",
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "EdDSA",
    ] = Field(default="RS256", description="The one algorithm it is used with; a signature by another is refused.")
    key: Secret = Field(
        description="PEM public key or certificate, as `file:PATH` or `env:NAME`; for the HS algorithms the secret, of "
        "32 bytes or more."
    )
    scope: Text | None = Field(default=None, description="What a signature must say it is for; nothing when absent.")


class BundleSettings(Section):
    """A server that publishes a bundle."""

    url: WholeUrl = Field(description="The bundle's URL.")
    token: Secret | None = Field(
        default=None, description="Sent to this server as `Authorization: Bearer`, and to no other."
    )
    poll: Seconds = Field(default=10.0, ge=0.05, description="How often to ask for a newer bundle.")
    long_poll: Seconds = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="How long the server may wait for news before it answers; 0 asks plainly.",
    )
    timeout: Seconds = Field(default=10.0, gt=0, description="How long one exchange may take, `long_poll` not counted.")
    ca: InputPath | None = Field(
        default=None,
        description="PEM file of the authorities trusted for this server alone; relative to this file's folder.",
    )


class RollbackSettings(Section):
    """When a promoted policy takes itself back: both rates are taken over the same calls, decided by both policies."""

    max_deny_change: Number = Field(
        default=0.01, ge=0, le=1, description="Tolerated difference in the share of calls refused, from 0 to 1."
    )
    max_approval_change: Number = Field(default=0.01, ge=0, le=1, description="The same for calls that need approval.")
    min_calls: int = Field(default=200, ge=1, le=1_000_000, description="Compared calls before the rates say anything.")
    window: int = Field(
        default=1000, ge=1, le=1_000_000, description="Last compared calls that the rates are taken over."
    )
    watch_for: Seconds = Field(default=3600.0, gt=0, description="How long a promoted policy is watched.")

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.min_calls > self.window:
            raise mistaken("min_calls is more than window", "Lower min_calls, or raise window.")
        return self


class ShadowSettings(Section):
    """A second policy set: asked beside the one that decides, never deciding, until somebody promotes it."""

    paths: Several[InputPath] = Field(
        min_length=1, description="Like `policy.paths`; always evaluated by the embedded engine."
    )
    share: Number = Field(default=100.0, ge=0, le=100, description="Per cent of calls that it is asked about, too.")
    rollback: RollbackSettings = Field(
        default=RollbackSettings(), description="When a promoted policy takes itself back."
    )


class PolicySettings(Section):
    """Which rules decide."""

    engine: Literal["embedded", "opa"] = Field(default="embedded", description="Who evaluates the Rego.")
    paths: Several[InputPath] = Field(
        default=(),
        description="`.rego` files, folders of them, data as YAML or JSON, or bundles (`.tar.gz`); relative to this "
        "file's folder. Without any, every call is refused.",
    )
    bundle: BundleSettings | None = Field(
        default=None, description="A bundle from a server, besides `paths` or instead of them."
    )
    keys: Several[BundleKeySettings] = Field(
        default=(), description="Where there are any, everything has to be a bundle that one of them signed."
    )
    opa: OpaSettings | None = Field(default=None, description="The OPA server, for `engine: opa`.")
    shadow: ShadowSettings | None = Field(
        default=None,
        description="A policy set on trial: compared with the one that decides, and promoted when it is good.",
    )
    reuse: bool = Field(
        default=True,
        description="Whether a decision is used again for a call in which all that the policy reads is the same; for "
        "`engine: embedded`.",
    )
    watchdog: Seconds = Field(
        default=5.0, gt=0, description="A decision that takes more processor time than this ends the worker process."
    )
    prove_timeout: Seconds = Field(
        default=15.0, gt=0, description="How long a new policy may take to prove itself before use."
    )

    @model_validator(mode="after")
    def _knows_whom_to_ask(self) -> Self:
        if self.engine == "opa" and self.opa is None:
            raise mistaken("has engine: opa, but no opa section", "Add for example opa: {url: http://127.0.0.1:8181}.")
        return self


class AgentSettings(Section):
    """Who may call, and as whom."""

    name: Name = Field(description="The agent's name in policies, records and metrics.")
    tenant: Name = Field(default="default", description="Whom the agent belongs to.")
    team: Name | None = Field(default=None, description="Its team within the tenant, for budgets and limits.")
    key: Secret | None = Field(
        default=None, description="The agent's key: `env:NAME`, `file:PATH` or a literal of at least 8 characters."
    )
    key_sha256: str | None = Field(
        default=None, description="Instead of `key`: the key's SHA-256 as 64 hexadecimal digits."
    )
    subject: Text | None = Field(
        default=None,
        description="Instead of a key or beside it: what tokens say of the agent, in the `claim` of their issuer.",
    )
    issuer: Url | None = Field(
        default=None, description="Which of `oauth.issuers` says so; it may be left out where there is one."
    )
    roles: Several[Name] = Field(default=(), description="Roles that policies may ask for.")
    autonomy_tier: int = Field(
        default=0,
        ge=0,
        le=10,
        description="How much the agent may do unattended; higher is more. With the shipped policy, 3 or more lets "
        "everything of `risk: high` and `critical` pass without a person.",
    )
    owner: Name | None = Field(
        default=None, description="The person whose agent it is, who therefore never decides on its calls."
    )

    @field_validator("key_sha256", mode="before")
    @classmethod
    def _is_a_digest(cls, value: object) -> object:
        if isinstance(value, str):
            if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
                raise mistaken("is not a SHA-256 digest", "Write its 64 hexadecimal digits.")
            return value.lower()
        return value

    @model_validator(mode="after")
    def _has_a_credential(self) -> Self:
        if self.key is not None and self.key_sha256 is not None:
            raise mistaken("has both key and key_sha256", "Give exactly one of them.")
        if self.key is None and self.key_sha256 is None and self.subject is None:
            raise mistaken("has neither key nor key_sha256", "Give exactly one of them, or the subject of its tokens.")
        if self.issuer is not None and self.subject is None:
            raise mistaken("has an issuer and no subject", "Give the subject of its tokens, or remove the issuer.")
        return self


class RateSettings(Section):
    """What tokens cost. A part without a rate of its own costs what the whole does that it is part of."""

    input_usd_per_mtok: Rate = Field(ge=0, description="US dollars for a million input tokens.")
    output_usd_per_mtok: Rate = Field(ge=0, description="US dollars for a million output tokens.")
    cache_read_usd_per_mtok: Rate | None = Field(
        default=None, ge=0, description="The same for input tokens that were read from a cache."
    )
    cache_write_usd_per_mtok: Rate | None = Field(
        default=None, ge=0, description="The same for input tokens that were written to a cache."
    )
    cache_write_1h_usd_per_mtok: Rate | None = Field(
        default=None, ge=0, description="The same for those that the cache keeps for an hour."
    )
    reasoning_usd_per_mtok: Rate | None = Field(
        default=None, ge=0, description="The same for output tokens that the model thinks in."
    )
    audio_input_usd_per_mtok: Rate | None = Field(
        default=None, ge=0, description="The same for input tokens that stand for sound."
    )
    audio_output_usd_per_mtok: Rate | None = Field(
        default=None, ge=0, description="The same for output tokens that stand for sound."
    )
    image_input_usd_per_mtok: Rate | None = Field(
        default=None, ge=0, description="The same for input tokens that stand for images."
    )


class TierSettings(RateSettings):
    """What all tokens of a call cost that has many input tokens."""

    above_input_tokens: int = Field(ge=1, le=10**9, description="Holds for calls with more input tokens than this.")


class PriceSettings(RateSettings):
    """What a target charges, for whatever model: nothing published is looked at any more."""

    usd_per_call: Rate = Field(default=0.0, ge=0, description="US dollars for a call, whatever its tokens.")
    usd_per_web_search: Rate = Field(
        default=0.0, ge=0, description="US dollars for a search of the web that the target makes for a call."
    )
    tiers: Several[TierSettings] = Field(
        default=(), description="Other rates for calls with many input tokens, fewest first."
    )

    @field_validator("tiers", mode="after")
    @classmethod
    def _rise(cls, tiers: tuple[TierSettings, ...]) -> tuple[TierSettings, ...]:
        starts = [each.above_input_tokens for each in tiers]
        if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
            raise mistaken("are not in order", "Give each tier a larger above_input_tokens than the one before.")
        return tiers


class ToolPriceSettings(Section):
    """What a tool charges."""

    usd_per_call: Rate = Field(ge=0, description="US dollars for a call.")


class TimeoutSettings(Section):
    """How long a target may take."""

    connect: Seconds = Field(default=5.0, gt=0, description="To accept a connection, TLS included.")
    first_byte: Seconds = Field(
        default=600.0, gt=0, description="From the request sent to the first byte of the answer."
    )
    first_token: Seconds = Field(
        default=30.0,
        gt=0,
        description="For streamed calls, from the request sent to the first event that holds some of the answer; give "
        "a target whose models think in silence more, for example 2m.",
    )
    idle: Seconds = Field(default=60.0, gt=0, description="Between two pieces of an answer.")
    total: Seconds = Field(default=1800.0, gt=0, description="For the whole exchange.")


class HealthSettings(Section):
    """When a node is given no calls for a while. A route always keeps a target with at least half its nodes in use."""

    failures: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Calls in a row that failed by the node's or the network's fault, after which it is ejected.",
    )
    dead_streams: int = Field(
        default=3, ge=1, le=1000, description="Streams broken off within ten seconds, after which it is ejected."
    )
    ejected_for: Seconds = Field(
        default=30.0,
        gt=0,
        description="How long the first time; then one call tries it. Twice as long each time that it fails again.",
    )
    ejected_at_most: Seconds = Field(
        default=300.0,
        gt=0,
        description="The longest time for which it is ejected, or left alone because it has asked for that.",
    )
    probe_every: Seconds = Field(
        default=10.0, ge=0, description="How often each node is asked whether it is well; 0 never asks."
    )
    probe_timeout: Seconds = Field(
        default=8.0, gt=0, description="How long that may take; Parallax is silent for 5s now and then, and well."
    )

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.ejected_at_most < self.ejected_for:
            raise mistaken("ejected_at_most is less than ejected_for", "Raise ejected_at_most, or lower ejected_for.")
        return self


class TargetSettings(Section):
    """A model server that completions can go to: one node of it, or several that are alike."""

    name: Name = Field(description="The target's name in routes, records and metrics.")
    kind: Literal["openai", "anthropic", "parallax"] = Field(description="Which API it speaks.")
    url: Url | None = Field(
        default=None,
        description="Base URL, without credentials, query or fragment. For `kind: openai` with its path, most often "
        "`/v1`; for `anthropic` and `parallax` without one: `/v1` is added.",
    )
    urls: Several[Url] = Field(
        default=(),
        max_length=256,
        description="Instead of `url`: the base URLs of its nodes, where there are several. A call goes to the one "
        "with the fewest under way.",
    )
    key: Secret | None = Field(default=None, description="Its API key, sent instead of the agent's own.")
    price: PriceSettings | None = Field(default=None, description="Its price, where it differs from the published one.")
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=10**9, description="Tokens of the longest answer that any of its models gives."
    )
    context_window: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Tokens that its models can read at most; what is published when absent.",
    )
    timeouts: TimeoutSettings = Field(default=TimeoutSettings(), description="How long it may take.")
    ca: InputPath | None = Field(
        default=None,
        description="PEM file of the authorities trusted for this target alone; relative to this file's folder.",
    )
    max_connections: int = Field(
        default=1024, ge=1, le=100_000, description="Open connections to each node, per worker process."
    )
    max_concurrent: int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        description="Calls under way at all its nodes together, per worker process; more go to the route's next arm.",
    )
    health: HealthSettings = Field(
        default=HealthSettings(), description="When a node of it is given no more calls for a while."
    )

    @property
    def nodes(self) -> tuple[str, ...]:
        """The base URLs of all its nodes, one at least."""
        return self.urls if self.url is None else (self.url,)

    @model_validator(mode="after")
    def _has_nodes(self) -> Self:
        if (self.url is None) == (not self.urls):
            found = "has neither url nor urls" if self.url is None else "has both url and urls"
            raise mistaken(found, "Give exactly one of them.")
        if len({each.rstrip("/") for each in self.urls}) < len(self.urls):
            raise mistaken("has a URL twice in urls", "Write each node once.")
        return self

    @model_validator(mode="after")
    def _needs_tls_for_a_ca(self) -> Self:
        if self.ca is not None and not all(each.lower().startswith("https:") for each in self.nodes):
            wrong = "has a ca but no https URL" if self.url is not None else "has a ca but a URL without https"
            raise mistaken(wrong, f"Write https:// in {'url' if self.url is not None else 'urls'}, or remove ca.")
        return self


class ArmSettings(Section):
    """One weighted side of a route."""

    target: Name = Field(description="The target's name.")
    weight: Number = Field(default=100.0, ge=0, le=100, description="Its share of the route's calls, in per cent.")
    model: Text | None = Field(
        default=None, description="The name this target knows the model by; the caller's when absent."
    )
    fallback: bool | None = Field(
        default=None,
        description="Whether it takes calls of other arms that could not: `true` always, at weight 0 too; `false` "
        "never; when absent, while its weight is above 0.",
    )


class RolloutStepSettings(Section):
    """One step of a canary's plan."""

    weight: Number = Field(gt=0, le=100, description="The canary's share during this step, in per cent.")
    hold: Seconds = Field(gt=0, description="How long the step lasts at least; time spent paused does not count.")
    max_error_rate: Number = Field(
        gt=0, lt=1, description="The highest tolerable share of failed calls: 0.01 is 1 per cent."
    )


class GateSettings(Section):
    """What a canary has to show besides few errors before its share grows. None of it ever rolls one back."""

    max_first_token: Seconds | None = Field(
        default=None, gt=0, description="A call whose first token comes later than this is slow; none is when absent."
    )
    max_slow_share: Number = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="The highest tolerable share of slow calls: 0.05 is about the 95th percentile.",
    )
    max_cost_ratio: Number | None = Field(
        default=None,
        gt=0,
        description="What a call that succeeds may cost at most, as a multiple of what it costs on the other arms. It "
        "takes a known price of each.",
    )
    max_overflow: Number = Field(
        default=0.01,
        ge=0,
        le=1,
        description="The highest tolerable share of the canary's calls that went elsewhere because it had no room.",
    )


class WebhookSettings(Section):
    """An address that is told of what happens, by signed POST requests."""

    url: Secret = Field(description="Address, as a secret: webhook addresses often carry a token.")
    secret: Secret | None = Field(
        default=None,
        description="Signs what is sent, as Standard Webhooks do: `whsec_` and base64, or any other text.",
    )
    previous_secret: Secret | None = Field(
        default=None, description="Signs it, too, while receivers are changed over to a new `secret`."
    )
    format: Literal["standard", "slack"] = Field(
        default="standard", description="Facts for programs, or a message as Slack's incoming webhooks take it."
    )


class RolloutSettings(Section):
    """How a canary grows, and what takes it back."""

    canary: Name = Field(
        description="The arm (its target's name) that is on trial. Until somebody starts the rollout it has its own "
        "weight, and nobody judges it: give it 0, unless it is to have calls."
    )
    steps: Several[RolloutStepSettings] = Field(
        default=(
            RolloutStepSettings(weight=10.0, hold=14 * 86400.0, max_error_rate=0.01),
            RolloutStepSettings(weight=30.0, hold=21 * 86400.0, max_error_rate=0.005),
            RolloutStepSettings(weight=50.0, hold=21 * 86400.0, max_error_rate=0.003),
            RolloutStepSettings(weight=80.0, hold=28 * 86400.0, max_error_rate=0.002),
        ),
        min_length=1,
        description="The steps, first to last, each with a larger weight; by default 10, 30, 50 and 80 per cent for "
        "14, 21, 21 and 28 days (84 together), with 1, 0.5, 0.3 and 0.2 per cent of failed calls.",
    )
    promoted_weight: Number = Field(
        default=100.0, gt=0, le=100, description="The canary's share once the last step is passed, in per cent."
    )
    watch_for: Seconds = Field(
        default=14 * 86400.0,
        ge=0,
        description="How long it is watched after that, by the last step's limit, and still taken back.",
    )
    mode: Literal["evidence", "window"] = Field(
        default="evidence",
        description="What takes the canary back: `evidence` that its error rate is above the limit, however much "
        "traffic there is; or, to the letter, the error rate over a `window`.",
    )
    window: Seconds = Field(default=3600.0, ge=10, description="For `mode: window`: the time the rate is taken over.")
    min_calls: int = Field(
        default=500, ge=1, le=10**9, description="For `mode: window`: calls before the rate says anything."
    )
    alpha: Number = Field(
        default=0.01,
        ge=1e-6,
        le=0.5,
        description="For `mode: evidence`: the largest probability, in each step, that a canary within its limit is "
        "taken back. Halved at every new start after a rollback.",
    )
    max_ratio: Number = Field(
        default=1.25,
        ge=1,
        le=1000,
        description="For `mode: evidence`: how many times the other arms' error rate the canary's may be before the "
        "rollout pauses.",
    )
    strict_absolute: bool = Field(
        default=False,
        description="Whether the canary's own error rate alone takes it back, also when other arms fail as it does.",
    )
    approval: Several[Name] | None = Field(
        default=None,
        min_length=1,
        description="Roles of which somebody has to promote each step; when absent, the rollout promotes by itself.",
    )
    gates: GateSettings = Field(
        default=GateSettings(), description="What the canary has to show besides few errors before it is promoted."
    )
    webhook: WebhookSettings | None = Field(
        default=None, description="Who is told of what happens to it; `approvals.webhook` when absent."
    )

    @field_validator("steps", mode="after")
    @classmethod
    def _rise(cls, steps: tuple[RolloutStepSettings, ...]) -> tuple[RolloutStepSettings, ...]:
        if any(later.weight <= earlier.weight for earlier, later in itertools.pairwise(steps)):
            raise mistaken("are not in order", "Give each step a larger weight than the one before.")
        return steps

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.promoted_weight < self.steps[-1].weight:
            raise mistaken(
                "has a promoted_weight below its last step", "Raise promoted_weight, or lower the last step's weight."
            )
        return self


class RetrySettings(Section):
    """When a call that failed is tried at another node or arm. That is only done before the agent got a byte."""

    attempts: int = Field(
        default=3, ge=1, le=10, description="Attempts for one call, the first included; 1 never tries again."
    )
    share: Number = Field(
        default=0.2,
        ge=0,
        le=1,
        description="How many second attempts there may be for each call, from 0 to 1, and besides them ten a second; "
        "0 is none at all.",
    )


class MirrorSettings(Section):
    """A second place that some of the calls are sent to as well; nobody gets its answers."""

    target: Name = Field(description="The target's name.")
    share: Number = Field(ge=0, le=1, description="The share of calls that are copied: 0.05 is 5 per cent.")
    model: Text | None = Field(
        default=None, description="The name this target knows the model by; the caller's when absent."
    )


class RouteSettings(Section):
    """Which calls go where; the first route that matches wins."""

    name: Name = Field(description="The route's name in records, metrics and the admin API.")
    models: Several[Text] = Field(
        min_length=1, description="Model names, or shell patterns of them (`*`, `?`, `[seq]`), compared case by case."
    )
    arms: Several[ArmSettings] = Field(min_length=1, description="Where its calls go, by weight.")
    rollout: RolloutSettings | None = Field(default=None, description="The canary's plan.")
    retry: RetrySettings = Field(default=RetrySettings(), description="When a failed call is tried elsewhere.")
    mirror: MirrorSettings | None = Field(default=None, description="Where some of its calls are copied to.")

    @field_validator("arms", mode="after")
    @classmethod
    def _weighs_something(cls, arms: tuple[ArmSettings, ...]) -> tuple[ArmSettings, ...]:
        if not any(arm.weight for arm in arms):
            raise mistaken("all weights are 0", "Give at least one arm a weight above 0.")
        return arms

    @model_validator(mode="after")
    def _can_be_taken_back(self) -> Self:
        if self.rollout is not None and len(self.arms) < 2:
            raise mistaken(
                "has a rollout but only one arm", "Add the arm that calls go to when the canary is taken back."
            )
        return self


class CredentialSettings(Section):
    """What the gateway shows a plain HTTP tool in place of the agent's own key, where that is no bearer token."""

    header: HeaderName | None = Field(default=None, description="The header that it stands in.")
    query: ParameterName | None = Field(default=None, description="Or the query parameter.")
    value: Secret = Field(description="The credential itself; it is masked where the tool's answers repeat it.")

    @model_validator(mode="after")
    def _stands_somewhere(self) -> Self:
        if (self.header is None) == (self.query is None):
            raise mistaken("does not say where it stands", "Write one of header: NAME and query: NAME.")
        return self


_MCP_ONLY: Final[tuple[str, ...]] = ("check_arguments", "definitions", "pins", "accepted_by", "server_tasks")
"""Settings of a tool that mean nothing where it is plain HTTP."""
_HTTP_ONLY: Final[tuple[str, ...]] = (
    "methods", "paths", "headers", "credential", "largest_request", "concurrent", "retries", "openapi",
    "only_described", "offer_as_mcp",
)  # fmt: skip
"""Settings of a tool that mean nothing where it speaks MCP."""


class VariableSettings(Section):
    """A variable of a local server's environment."""

    name: Variable = Field(description="For example GITHUB_TOKEN.")
    value: Secret = Field(description="`env:NAME`, `file:PATH` or the value itself; it never reaches the log.")


_MCP_TIMEOUT: Final = 300.0
"""Seconds: what the stock Python client waits for the beginning of an answer."""

_COMMAND_ONLY: Final[tuple[str, ...]] = ("env", "directory", "shared", "memory", "count", "restart", "session_idle")
"""Settings of a tool that mean nothing where it is at a URL."""


class LoginSettings(Section):
    """How the gateway itself logs in at a tool: OAuth 2.0 client credentials (RFC 6749, 4.4)."""

    token_url: WholeUrl = Field(description="The authorization server's token endpoint.")
    client_id: Text = Field(description="The gateway's name there.")
    client_secret: Secret = Field(description="Its password: `env:NAME`, `file:PATH` or a literal.")
    method: Literal["basic", "post"] = Field(
        default="basic", description="Where both stand: in the Authorization header, or in the form."
    )
    scope: Several[Scope] = Field(default=(), description="What is asked for; the client's usual scopes when empty.")
    resource: Url | None = Field(
        default=None, description="For which resource (RFC 8707); MCP servers want their own URL here."
    )


class PinSettings(Section):
    """The definition of one tool of an MCP server, as somebody has read it and found it good."""

    tool: Text = Field(description="The tool's name, as its server says it.")
    sha256: Digest = Field(description="The SHA-256 of its definition, as `weighbridge tools list --pins` tells it.")


class ToolSettings(Section):
    """A tool server."""

    name: Name = Field(description="The tool's name in URLs and policies.")
    kind: Literal["mcp", "http"] = Field(description="MCP, or plain HTTP.")
    url: Url = Field(default="", description="Base URL: Streamable HTTP where it speaks MCP.")
    command: Several[Word] = Field(
        default=(),
        description="In place of `url`: a local MCP server that the gateway starts, as a program and its arguments, "
        "and speaks to over its standard input and output.",
    )
    env: Several[VariableSettings] = Field(
        default=(),
        description="Its environment, beside a PATH, a HOME and LANG: nothing of the gateway's own; command.",
    )
    directory: InputPath | None = Field(
        default=None, description="The folder it is started in; the gateway's own when absent; command."
    )
    shared: bool = Field(
        default=False,
        description="Whether one child serves all agents; otherwise each session has its own, and each agent whose "
        "client knows no sessions; command.",
    )
    memory: Bytes = Field(
        default=2 * 2**30, ge=16 * 2**20, description="Data that each of its processes may have; command."
    )
    count: int = Field(default=32, ge=1, le=10_000, description="Children at the same time, for each worker; command.")
    restart: Seconds = Field(
        default=30.0,
        gt=0,
        description="Longest pause before a server that keeps ending is started again: at once the first time, then "
        "after half a second, and twice as long each time; command.",
    )
    session_idle: Seconds = Field(
        default=1800.0,
        gt=0,
        description="After which a child ends that nothing was asked of and whose client does not listen; command.",
    )
    joined: bool = Field(default=True, description="Whether it is one of those at /mcp/all; MCP.")
    lists_within: Seconds = Field(
        default=5.0,
        gt=0,
        description="How long /mcp/all waits for what it offers and what it lists; later, the others are shown without "
        "it; MCP.",
    )
    key: Secret | None = Field(default=None, description="Bearer token sent to it.")
    oauth: LoginSettings | None = Field(
        default=None, description="Where the gateway gets a bearer token for it, in place of `key`."
    )
    timeout: Seconds = Field(
        default=8.0,
        gt=0,
        description="For the beginning of an answer; for plain HTTP, for all of it. 5m where it speaks MCP and nothing "
        "is said: slow tools begin late.",
    )
    idle: Seconds = Field(default=300.0, gt=0, description="Between two pieces of a streamed answer.")
    longest: Seconds = Field(default=1800.0, gt=0, description="For a whole streamed answer.")
    price: ToolPriceSettings | None = Field(default=None, description="Its price; free of charge when absent.")
    no_grant: bool = Field(
        default=False,
        description="Whether people decide on each of its calls: none can be allowed beforehand.",
    )
    networks: Several[Network] | None = Field(
        default=None,
        min_length=1,
        description="Where the host of `url` may be: `public`, `private` (RFC 1918, shared and unique local addresses) "
        "and networks such as 10.1.0.0/16. Absent: anywhere but at addresses of this machine, of one link only, and of "
        "clouds' metadata services, which only a network written here allows. Looked at with every connection; an "
        "address or `localhost` in `url` is taken as it is.",
    )
    methods: Several[Method] = Field(
        default=("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"),
        min_length=1,
        description="Methods that agents may use; plain HTTP.",
    )
    paths: Several[PathPattern] = Field(
        default=("/**",),
        min_length=1,
        description="Paths below `url` that agents may use: `*` stands for any characters of one segment, a segment "
        "`**` for any number of segments; plain HTTP.",
    )
    headers: Several[HeaderName] = Field(
        default=(),
        description="Headers of agents that pass beside the usual ones (docs/tools.md); plain HTTP.",
    )
    credential: CredentialSettings | None = Field(
        default=None, description="What is shown to it in place of `key`; plain HTTP."
    )
    largest_answer: Bytes = Field(
        default=16 * 2**20,
        gt=0,
        description="Of an answer; of a stream of plain HTTP, all its events.",
    )
    largest_event: Bytes = Field(
        default=8 * 2**20,
        gt=0,
        description="Of one event of a stream; MCP. Many clients take no more than 1 MiB.",
    )
    largest_request: Bytes | None = Field(
        default=None, gt=0, description="Of a body sent to it; `listen.max_body` when absent; plain HTTP."
    )
    concurrent: int = Field(
        default=64, ge=1, le=10_000, description="Calls of it at the same time, for each worker; plain HTTP."
    )
    retries: int = Field(
        default=1,
        ge=0,
        le=5,
        description="How often a call is sent again that failed before it was answered, where that cannot do it twice: "
        "GET, HEAD and OPTIONS, and PUT and DELETE of which nothing was sent; plain HTTP.",
    )
    openapi: InputPath | None = Field(
        default=None,
        description="An OpenAPI 3.0 or 3.1 document, YAML or JSON, which names its operations and says what they take; "
        "plain HTTP.",
    )
    only_described: bool = Field(
        default=False, description="Whether calls of operations that `openapi` does not have are refused; plain HTTP."
    )
    offer_as_mcp: bool = Field(
        default=False, description="Whether the operations of `openapi` are tools at /mcp/NAME as well; plain HTTP."
    )

    check_arguments: Literal["strict", "lenient", "off"] = Field(
        default="strict",
        description="Whether the arguments of a call are held against the tool's own input schema before the policy is "
        "asked. `strict` refuses calls of a tool whose schema nothing can be held against, `lenient` lets those pass; "
        "MCP.",
    )
    definitions: Literal["first_seen", "configured", "any"] = Field(
        default="first_seen",
        description="Which definitions of its tools (names, descriptions, schemas) agents are shown and may call: "
        "`first_seen` whatever is seen first, new tools too (trust on first use), until it changes, and again once a "
        "person accepts the change; `configured` those in `pins`, for production; "
        "`any` whatever the server says; MCP.",
    )
    pins: Several[PinSettings] = Field(
        default=(),
        description="The definitions that agents may be shown, with definitions: configured.",
    )
    accepted_by: Name = Field(
        default="admin", description="The role that a person needs to accept or refuse a tool's definition; MCP."
    )
    server_tasks: Literal["refused", "carried"] = Field(
        default="refused",
        description="Whether tasks that the server itself keeps (`tasks/get` and its like) are carried. The server "
        "knows all agents by one credential, so what one agent has begun any other agent of it can read and "
        "cancel; MCP.",
    )
    results: Literal["passed", "checked"] = Field(
        default="passed",
        description="Whether the policy is asked a second time with what the tool has answered, which it can withhold "
        "or redact.",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_its_kinds_patience(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "mcp":
            return {"timeout": _MCP_TIMEOUT, **data}
        return data

    @field_validator("headers", mode="after")
    @classmethod
    def _are_no_keys(cls, headers: tuple[str, ...]) -> tuple[str, ...]:
        if {"authorization", "x-api-key"} & set(headers):
            raise mistaken(
                "lets an agent's key of this gateway pass", "Give the tool a key of its own, as key or credential."
            )
        return headers

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        written = self.model_fields_set
        if self.url and self.command:
            raise mistaken("has url and command", "Keep one of them: url for a server, command for one to start.")
        if not self.url and not self.command:
            raise mistaken("does not say where it is", "Write one of url: URL and command: [PROGRAM, ARGUMENT, ...].")
        if self.kind == "http" and self.command:
            raise mistaken("has a command and kind http", "Write kind: mcp, or give it a url.")
        if self.url and (foreign := [name for name in _COMMAND_ONLY if name in written]):
            raise mistaken(f"{foreign[0]} is for tools with a command", "Remove it, or write command in place of url.")
        speaks_mcp = self.kind == "mcp" or self.offer_as_mcp
        if speaks_mcp and self.name == "all":
            raise mistaken("has the name under which all MCP servers are joined", "Rename it.")
        if speaks_mcp and self.joined and ("__" in self.name or self.name.endswith("_")):
            raise mistaken("has a name that cannot stand before two underscores", "Rename it, or write joined: false.")
        if speaks_mcp and self.joined and len(self.name) > LONGEST_JOINED:
            raise mistaken(
                "has a name too long to stand before those of its tools", "Rename it, or write joined: false."
            )
        if self.kind == "mcp" and (foreign := [name for name in _HTTP_ONLY if name in written]):
            raise mistaken(f"{foreign[0]} is for tools of kind http", "Remove it, or write kind: http.")
        if (
            self.kind == "http"
            and not self.offer_as_mcp
            and (foreign := [each for each in _MCP_ONLY if each in written])
        ):
            raise mistaken(f"{foreign[0]} is for tools of kind mcp", "Remove it, or write kind: mcp.")
        if self.pins and self.definitions != "configured":
            raise mistaken("has pins that nothing is held against", "Write definitions: configured, or remove them.")
        if self.key is not None and self.credential is not None:
            raise mistaken("has a key and a credential", "Keep one of them.")
        if self.oauth is not None and (self.key is not None or self.credential is not None or self.command):
            raise mistaken("has oauth beside another credential or a command", "Keep one of them.")
        if self.credential is not None and self.credential.header in self.headers:
            raise mistaken("lets agents write the header of its credential", "Remove it from headers.")
        if self.openapi is None and (self.only_described or self.offer_as_mcp):
            name = "only_described" if self.only_described else "offer_as_mcp"
            raise mistaken(f"has {name} and no openapi", "Name the document, as openapi: FILE.")
        return self


class IssuerSettings(Section):
    """An authorization server whose tokens agents may show."""

    issuer: Url = Field(description="As its tokens name it (`iss`), letter by letter.")
    jwks_url: WholeUrl | None = Field(default=None, description="Where its public keys are, as a JWK set.")
    jwks_file: InputPath | None = Field(default=None, description="Instead of `jwks_url`: a file that holds them.")
    ca: InputPath | None = Field(
        default=None,
        description="PEM file of the authorities that the certificate of `jwks_url` may come from; the system's when "
        "absent.",
    )
    algorithms: Several[Algorithm] = Field(
        default=("RS256", "PS256", "ES256", "EdDSA"),
        min_length=1,
        description="How its tokens may be signed: any of RS, PS and ES with 256, 384 or 512, and EdDSA.",
    )
    claim: Text = Field(
        default="sub", description="The member of its tokens that names the agent, for example `client_id` or `azp`."
    )

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise mistaken("does not say where its keys are", "Give exactly one of jwks_url and jwks_file.")
        return self


class OAuthSettings(Section):
    """Tokens that agents may show in place of a key: the gateway is an OAuth 2.0 resource server."""

    resource: Url = Field(
        description="Where agents reach the gateway, as https://gateway.example.com. Tokens are for this, or for one "
        "MCP server below it, as https://gateway.example.com/mcp/github."
    )
    issuers: Several[IssuerSettings] = Field(min_length=1, description="Who issues them.")
    audiences: Several[Text] = Field(
        default=(),
        description="What else tokens may be for (`aud`): of authorization servers that know no resources.",
    )
    scopes: Several[Scope] = Field(default=(), description="Scopes that each token must have.")
    leeway: Seconds = Field(default=30.0, ge=0, le=300, description="How far clocks may differ.")
    refresh: Seconds = Field(default=600.0, ge=1, description="After which keys are asked for again.")
    refresh_pause: Seconds = Field(
        default=30.0, ge=1, description="How often at most they are asked for because a token has an unknown one."
    )

    @field_validator("resource", mode="after")
    @classmethod
    def _has_no_slash(cls, resource: str) -> str:
        return resource.rstrip("/")


class PeerSettings(Section):
    """Another agent, spoken to over A2A."""

    name: Name = Field(description="The peer's name in URLs and policies.")
    url: Url = Field(description="Base URL.")
    key: Secret | None = Field(default=None, description="Bearer token sent to it.")


class EnvironmentSettings(Section):
    """An OpenEnv environment."""

    name: Name = Field(description="The environment's name in URLs and policies.")
    url: Url = Field(description="Base URL.")
    key: Secret | None = Field(default=None, description="Bearer token sent to it.")


class BudgetSettings(Section):
    """How much a tenant, a team or an agent may spend in a window."""

    node: Node = Field(description="`tenant`, `tenant/team` or `tenant/agent`.")
    window: Literal["session", "day", "month"] = Field(
        description="One session, or a calendar day or month in UTC; what an agent calls without a session is one "
        "session a day."
    )
    limit_usd: Number = Field(ge=0, le=9_000_000, description="US dollars in one window.")
    mode: Literal["strict", "adaptive", "soft", "shadow"] = Field(
        default="adaptive",
        description="What happens near the limit: `strict` lends the worst case, `adaptive` lends as an answer grows, "
        "`soft` only warns, `shadow` only counts.",
    )
    warn_at: Number = Field(default=80.0, ge=0, le=100, description="Per cent of the limit from where it is `warning`.")


class LimitSettings(Section):
    """How fast a tenant, a team or an agent may call."""

    node: Node = Field(description="`tenant`, `tenant/team` or `tenant/agent`.")
    calls_per_minute: int | None = Field(default=None, ge=1, le=10**9, description="Calls in a minute.")
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=10**12, description="Tokens in a minute, those of calls and of answers together."
    )
    concurrent: int | None = Field(default=None, ge=1, le=10**6, description="Calls at the same time.")
    calls_per_session: int | None = Field(
        default=None, ge=1, le=10**9, description="Calls in one session: what ends an agent that goes in circles."
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        limits = (self.calls_per_minute, self.tokens_per_minute, self.concurrent, self.calls_per_session)
        if all(limit is None for limit in limits):
            raise mistaken(
                "limits nothing", "Give calls_per_minute, tokens_per_minute, concurrent or calls_per_session."
            )
        return self


class ApprovalSettings(Section):
    """How long people have, and how long their word holds."""

    decide_within: Seconds = Field(default=3600.0, gt=0, description="Time to decide; then the approval expires.")
    use_within: Seconds = Field(default=900.0, gt=0, description="Time to use an approval once given.")
    hold_for: Seconds = Field(default=50.0, ge=0, description="How long a held call's connection waits for the answer.")
    hold_streams_for: Seconds = Field(
        default=1800.0, ge=0, description="The same for streams, which are kept alive by comments meanwhile."
    )
    webhook: WebhookSettings | None = Field(default=None, description="Who is told of a held call.")
    escalate_to: Several[Name] = Field(
        default=(), description="Roles that may fill any slot once half of the time to decide is over."
    )
    longest_grant: Seconds = Field(
        default=28_800.0, gt=0, description="For how long calls can be allowed beforehand, at most."
    )
    link: Url | None = Field(
        default=None, description="Where people reach the admin listener; messages link to `LINK/approvals/ID`."
    )


class LogSettings(Section):
    """What the gateway says about itself."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important level written."
    )
    format: Literal["text", "json"] = Field(default="text", description="Lines for people or for machines.")


class Settings(Section):
    """The whole file."""

    listen: ListenSettings = Field(default=ListenSettings(), description="The data plane: where agents connect.")
    admin: AdminSettings = Field(default=AdminSettings(), description="The admin listener and who may use it.")
    state: State = Field(
        default="sqlite:///var/weighbridge.db",
        validate_default=True,
        description="Where counters and approvals are kept: `sqlite:///PATH` (relative to the working directory) for "
        "one process, or `redis://HOST:PORT/0` for several (`rediss://` encrypted, `redis+cluster://A:6379,B:6379` a "
        "cluster). With a password, write the whole URL as a secret: `env:NAME` or `file:PATH`.",
    )
    ledger: LedgerSettings = Field(default_factory=lambda: LedgerSettings(), description="Where calls are recorded.")
    decision_log: DecisionLogSettings | None = Field(
        default=None, description="Where decisions are uploaded to; nowhere when absent."
    )
    policy: PolicySettings = Field(default=PolicySettings(), description="Which rules decide.")
    agents: Several[AgentSettings] = Field(default=(), description="Who may call.")
    oauth: OAuthSettings | None = Field(
        default=None, description="Tokens that agents may show in place of a key; none when absent."
    )
    targets: Several[TargetSettings] = Field(default=(), description="Where completions can go.")
    routes: Several[RouteSettings] = Field(default=(), description="Which calls go where; the first match wins.")
    tools: Several[ToolSettings] = Field(default=(), description="Tool servers.")
    peers: Several[PeerSettings] = Field(default=(), description="Other agents, spoken to over A2A.")
    environments: Several[EnvironmentSettings] = Field(default=(), description="OpenEnv environments.")
    budgets: Several[BudgetSettings] = Field(default=(), description="How much may be spent.")
    limits: Several[LimitSettings] = Field(default=(), description="How fast calls may come.")
    approvals: ApprovalSettings = Field(default=ApprovalSettings(), description="How people decide on held calls.")
    log: LogSettings = Field(default=LogSettings(), description="What the gateway says about itself.")
