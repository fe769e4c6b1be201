"""Several MCP servers as one: whose a name is, what they can all promise, and each message as the other era has it.

    joined      server__tool, server__prompt; resources keep their URIs
    legacy      in front of a modern server, a message says its version and what its client can do in `_meta`
    modern      in front of a legacy server, it says neither, and what comes back is told to be complete

Sources: MCP 2025-11-25 and 2026-07-28, basic/lifecycle and server/tools.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from adapters.body import find, places, put_first, splice
from adapters.mcp.messages import MODERN, joined, raw_members

ALL: Final = "all"
"""The name under which all are served."""
SEPARATOR: Final = "__"
LONGEST: Final = 64
"""Characters of a joined name; there are models that take no longer ones."""

_SHORTENED: Final = re.compile(r".*_[0-9a-f]{8}", re.DOTALL)
_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
_ABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
_CLIENT: Final = "io.modelcontextprotocol/clientInfo"
_LEVEL: Final = "io.modelcontextprotocol/logLevel"
_OURS: Final = {"name": "weighbridge", "version": "1"}
_EXPRESSION: Final = re.compile(r"\{[^{}]*\}")

KINDS: Final = ("tools", "resources", "prompts", "completions", "logging")
"""What servers can offer, as far as it can be joined."""


def outward(server: str, name: str) -> str:
    """The name under which a tool or prompt of this server is shown. Too long a one ends in a hash of what it was."""
    whole = f"{server}{SEPARATOR}{name}"
    if len(whole) <= LONGEST:
        return whole
    return f"{whole[: LONGEST - 9]}_{hashlib.sha256(whole.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def naming(server: str, name: str) -> str:
    """For a model that has been told of a server's own names, and knows them as they are shown to it."""
    return f"At this URL names of {server} begin with {server}{SEPARATOR}: this one is {name}."


def parted(name: str) -> tuple[str, str] | None:
    """The server, and its own name for it; None where it has no server. No server's name has the separator in it, or
    ends as the separator begins."""
    server, separator, own = name.partition(SEPARATOR)
    return (server, own) if separator and server and own else None


def is_shortened(name: str) -> bool:
    """Whether the name may be one that was too long: then only the server's list says what it was."""
    return len(name) == LONGEST and _SHORTENED.fullmatch(name) is not None


def offers(capabilities: Sequence[Mapping[str, Any]], *, missing: bool, modern: bool) -> dict[str, Any]:
    """What all of these servers offer together. A kind is there if one of them has it, or if one is `missing`: nobody
    knows then. What is promised of a kind is what all promise that have it."""
    together: dict[str, Any] = {}
    for kind in KINDS:
        told = [each[kind] for each in capabilities if isinstance(each.get(kind), dict)]
        if told:
            promises = {} if modern else {key: True for key in told[0] if all(each.get(key) is True for each in told)}
            together[kind] = promises
        elif missing and kind in ("tools", "resources", "prompts"):
            together[kind] = {}
    return together


def directed(message: bytes, path: Sequence[str], name: str) -> bytes:
    """The message with this text at that path of it."""
    return splice(message, places(message, path), orjson.dumps(name))


def question(server: str, message: bytes) -> bytes:
    """What a server asks, under an id that says which server has asked."""
    span = find(message, "id")
    if span is None:
        return message
    return splice(message, [span], orjson.dumps(f"{server}:{message[slice(*span)].decode()}"))


def unasked(message: bytes, method: str) -> bytes:
    """What a server is answered whose question its client's era has no words for."""
    span = find(message, "id")
    identity = message[slice(*span)] if span is not None else b"null"
    if method == "ping":
        return b'{"jsonrpc":"2.0","id":%s,"result":{}}' % identity
    error = {"code": -32601, "message": "This client cannot be asked: its version has no such requests."}
    return b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (identity, orjson.dumps(error))


def answer(message: bytes) -> tuple[str, bytes] | None:
    """Whose question a client answers, and the answer under the server's own id; None for an id that was never given
    out."""
    span = find(message, "id")
    if span is None:
        return None
    said = orjson.loads(message[slice(*span)])
    server, colon, identity = said.partition(":") if isinstance(said, str) else ("", "", "")
    try:
        if not colon or isinstance(orjson.loads(identity), dict | list):
            return None
    except orjson.JSONDecodeError:
        return None
    return server, splice(message, [span], identity.encode())


def to_modern(message: bytes, abilities: Mapping[str, Any]) -> bytes:
    """A legacy request as a modern server wants it."""
    own = {_VERSION: MODERN, _ABILITIES: dict(abilities), _CLIENT: _OURS}
    params = places(message, ("params",))
    if not params:
        return put_first(message, "params", orjson.dumps({"_meta": own}))
    text = message[slice(*params[0])]
    meta = places(text, ("_meta",))
    if meta:
        members = raw_members(text[slice(*meta[0])]) | {key: orjson.dumps(value) for key, value in own.items()}
        text = splice(text, meta, joined(members))
    else:
        text = put_first(text, "_meta", orjson.dumps(own))
    return splice(message, params, text)


def to_legacy(message: bytes) -> bytes:
    """A modern request as a legacy server wants it."""
    spans = places(message, ("params", "_meta"))
    if not spans:
        return message
    members = raw_members(message[slice(*spans[0])])
    for key in (_VERSION, _ABILITIES, _CLIENT, _LEVEL):
        members.pop(key, None)
    return splice(message, spans, joined(members))


def from_legacy(message: bytes) -> bytes:
    """A legacy server's answer as a modern client wants it."""
    spans = places(message, ("result",))
    if not spans or message[slice(*spans[0])][:1] != b"{":
        return message
    if kind := places(message, ("result", "resultType")):  # no word of its era: whatever it says, it asks for nothing
        return splice(message, kind, b'"complete"')
    return splice(message, spans, put_first(message[slice(*spans[0])], "resultType", b'"complete"'))


def from_modern(message: bytes) -> bytes:
    """A modern server's answer as a legacy client wants it. A question is none: such a client could not answer it."""
    spans = places(message, ("result",))
    if not spans or message[slice(*spans[0])][:1] != b"{":
        return message
    members = raw_members(message[slice(*spans[0])])
    kind = members.pop("resultType", b'"complete"')
    if orjson.loads(kind) == "complete":
        return splice(message, spans, joined(members))
    span = find(message, "id")
    identity = message[slice(*span)] if span is not None else b"null"
    error = {"code": -32603, "message": "The server asks for something that this client's version has no words for."}
    return b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (identity, orjson.dumps(error))


def likeness(template: str, uri: str) -> int:
    """How many characters of a URI template stand in a URI that it can be expanded to; -1 for one that it cannot."""
    first, *rest = _EXPRESSION.split(template)
    if not rest:
        return len(first) if template == uri else -1
    *between, last = rest
    if not uri.startswith(first) or not uri.endswith(last) or len(uri) < len(first) + len(last):
        return -1
    position, end = len(first), len(uri) - len(last)
    for literal in between:
        position = uri.find(literal, position, end) + len(literal)
        if position < len(literal):
            return -1
    return len(first) + len(last) + sum(map(len, between))


def request(method: str, params: Mapping[str, Any], *, modern: bool, abilities: Mapping[str, Any]) -> bytes:
    """A request of the gateway's own."""
    said = {**params}
    if modern:
        said["_meta"] = {_VERSION: MODERN, _ABILITIES: dict(abilities), _CLIENT: _OURS}
    return orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": said})


def missing(names: Iterable[str]) -> dict[str, Any]:
    """The `_meta` of an answer in which these servers have no part."""
    absent = list(names)
    return {"_meta": {"weighbridge/missing": absent}} if absent else {}
