"""One MCP message of an agent becomes a call: a tool's name and arguments, or a method that is the protocol's own.

    legacy   2025-03-26 to 2025-11-25: `initialize`, sessions, a stream for the server's own messages
    modern   2026-07-28: no session; each request says its version and what its client can do in `_meta`

Sources: the MCP specification, basic/transports and basic/lifecycle of these revisions; JSON-RPC 2.0.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import orjson

from adapters.base import Breach, Endpoint, Headers, ToolCall
from adapters.body import check_spelling, find, parse, places, put_first, splice
from adapters.errors import MalformedCall, ProtocolBreach
from adapters.mcp import mirrors

PATH: Final = "/mcp/"
MODERN: Final = "2026-07-28"
LEGACY: Final = ("2025-03-26", "2025-06-18", "2025-11-25")
_HANDSHAKE: Final = ("", "2024-11-05", *LEGACY)
"""What the header `MCP-Protocol-Version` may say in the legacy era. With all else the request is a modern one, of a
version that its server knows or refuses."""

INVALID: Final = Breach(-32600, 400)
INVALID_PARAMS: Final = Breach(-32602, 400)
PARSE_ERROR: Final = Breach(-32700, 400)
NO_SESSION: Final = Breach(-32600, 404)
"""The client has to begin a new one."""

_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_ABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"

FREE: Final = Endpoint("call", "*", PATH, free=True)
PAID: Final = Endpoint("call", "*", PATH)
PROTOCOL: Final = Endpoint("protocol", "*", PATH, free=True, passes=True)

ACTS: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "resources/read": "uri",
    "prompts/get": "name",
    "completion/complete": "",
    "sampling/createMessage": "",
    "elicitation/create": "",
}
"""Methods that are decided on -> the member of `params` that `Mcp-Name` has to repeat, empty for none. All others are
the protocol's own."""

_BUT_LETTERS: Final = re.compile(r"[^A-Za-z]+")
_ALIKE: Final = {_BUT_LETTERS.sub("", method).lower(): method for method in ACTS}

QUESTIONS: Final = frozenset({"sampling/createMessage", "elicitation/create"})
"""What servers ask of clients that is decided on; `roots/list` and `ping` pass."""

LISTENS: Final = "subscriptions/listen"
"""The modern method whose answer is a stream without an end of its own."""

_MEMBERS: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_PARAMS: Final = frozenset({"name", "arguments", "uri", "_meta"})

_KEPT_ABILITIES: Final = ("elicitation", "sampling", "roots", "tasks")
_LONGEST_ABILITIES: Final = 1024
_LONGEST_ID: Final = 4096
"""Bits of a number: what takes long to be written is none."""

Era = Literal["legacy", "modern"]


ASKS: Final = frozenset({"tools/call", "resources/read", "prompts/get"})
"""Methods whose answer can be a question (2026-07-28, basic/patterns/mrtr): the client sends the same again, with what
it was told to keep and what it answers."""
_BEYOND: Final = re.compile(r"[^\x00-\x7f]")
STATE: Final = "requestState"
RESPONSES: Final = "inputResponses"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the gateway itself has asked for before, as the client gives it back: for which call (`key`), until when (in
    Unix seconds) and for how many times (`round`, from 1). `went` says whether its user went where they were led."""

    key: str
    until: int
    round: int
    went: bool


@dataclass(slots=True)
class McpCall(ToolCall):
    """One message. `message` is what came, whole; `method` its JSON-RPC method, empty for an answer to a question of
    the server's; `id` the JSON text of its id, empty for what is not answered. `name` is what the client calls the
    tool, the resource or the prompt. `progress` is the JSON text of the token by which it wants to hear of progress."""

    message: bytes = field(default=b"", repr=False)
    method: str = ""
    id: bytes = b""
    era: Era = "legacy"
    version: str = ""
    name: str = ""
    progress: bytes = b""
    abilities: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the client says that it can do, where each request says so."""
    changed: bool = False
    """Whether the arguments are others than those in `message`."""
    state: str = ""
    """What the client was told to keep by who has asked it something; empty for nothing."""
    responses: bytes = b""
    """The JSON text of what it answers, empty for nothing."""
    session: str = ""
    """Of the legacy era: the session's own id, as records name it, and `upstream`, its server's id for it."""
    upstream: str = ""
    trace: str = ""
    """The `traceparent` in `_meta`."""
    asked: Asked | None = None
    """Set where it was the gateway that has asked; `state` and `responses` are then those of before."""


def era_of(version: str) -> Era:
    """By what the header `MCP-Protocol-Version` says, empty for nothing."""
    return "legacy" if version in _HANDSHAKE else "modern"


def read(server: str, body: bytes, version: str, *, free: bool) -> McpCall:
    """The message in a POSTed body. `version` is what the header `MCP-Protocol-Version` says, empty for nothing.

    A modern message is checked for what its `_meta` has to say; see `mirrors.check` for its headers. Raises
    ProtocolBreach, MalformedCall.
    """
    if body.lstrip()[:1] == b"[":
        raise ProtocolBreach("Send one JSON-RPC message at a time: batches are not taken.", INVALID)
    try:
        message = parse(body)
    except MalformedCall as error:
        raise ProtocolBreach(str(error), PARSE_ERROR) from None
    said = identity(message.get("id"))
    if "id" in message and not said:
        raise ProtocolBreach("`id` must be a text or a whole number.", INVALID)
    try:
        return _read(server, body, message, version, said, free=free)
    except ProtocolBreach as error:
        if "method" in message:
            error.id = said
        raise


def passes_for(method: str, known: Container[str]) -> bool:
    """Whether a method is none of the known ones, and a careless reader takes it for one of them."""
    return (
        method not in known and _ALIKE.get(_BUT_LETTERS.sub("", unicodedata.normalize("NFKC", method)).lower()) in known
    )


def identity(value: object) -> bytes:
    """The id of a message as JSON text; empty for what is none. Whole numbers may be of any size."""
    if isinstance(value, str):
        return orjson.dumps(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= _LONGEST_ID:
        return b"%d" % value
    return b""


def _read(
    server: str, body: bytes, message: Mapping[str, Any], version: str, identity: bytes, *, free: bool
) -> McpCall:
    if message.get("jsonrpc") != "2.0":
        raise ProtocolBreach('The message is no JSON-RPC 2.0: `jsonrpc` must be "2.0".', INVALID)
    method, params, era = message.get("method"), message.get("params", {}), era_of(version)
    try:
        check_spelling(message, _MEMBERS)
        if isinstance(params, dict):
            check_spelling(params, _PARAMS)
    except MalformedCall as error:
        raise ProtocolBreach(str(error), INVALID) from None
    if method is None and ("result" in message) != ("error" in message) and identity:
        if era == "modern":
            raise ProtocolBreach("In this version servers ask nothing that a message could answer.", INVALID)
        return _protocol(server, body, "", b"", era, version)
    if not isinstance(method, str) or not method:
        raise ProtocolBreach("The message has no `method`, and is no answer either.", INVALID)
    if passes_for(method, ACTS):
        raise ProtocolBreach("The method is almost that of a call, and some readers take it for one.", INVALID)
    if method in ACTS and not identity:
        raise ProtocolBreach(f"{method} needs an `id`: it is a call, and no notification.", INVALID)
    if not isinstance(params, dict):
        raise ProtocolBreach("`params` must be an object.", INVALID)
    meta = params.get("_meta", {})
    if not isinstance(meta, dict):
        raise ProtocolBreach("`params._meta` must be an object.", INVALID_PARAMS)
    said, abilities, trace = meta.get(_VERSION_KEY, version), meta.get(_ABILITIES_KEY), meta.get("traceparent")
    if era == "modern" and identity:
        _check_meta(meta)
    elif said != version and said not in _HANDSHAKE:
        raise ProtocolBreach("The header MCP-Protocol-Version does not say what the message says.", mirrors.MISMATCH)
    if method not in ACTS:
        call = _protocol(server, body, method, identity, era, said if identity else version)
        call.name = _named(method, params)
        call.abilities = abilities if isinstance(abilities, dict) else {}
        call.trace = trace if isinstance(trace, str) else ""
        return call
    operation, arguments, raw = _act(method, params, body)
    state, responses = _kept(params, body) if era == "modern" and method in ASKS else ("", b"")
    return McpCall(
        "tool",
        "mcp",
        server,
        operation,
        None,
        arguments,
        raw,
        FREE if free else PAID,
        kept=raw,
        message=body,
        method=method,
        id=identity,
        era=era,
        version=said,
        name=_named(method, params),
        progress=orjson.dumps(meta["progressToken"]) if "progressToken" in meta else b"",
        abilities=abilities if isinstance(abilities, dict) else {},
        trace=trace if isinstance(trace, str) else "",
        state=state,
        responses=responses,
        headers=beside(state, responses),
    )


def unread(identity: bytes) -> McpCall:
    """A message of which only its id could be read."""
    return _protocol("", b"", "", identity, "legacy", "")


def abilities_kept(call: McpCall) -> bytes:
    """What stands in the name of a session of what its client can do, as JSON text: names do not get long."""
    known = {name: call.abilities[name] for name in _KEPT_ABILITIES if isinstance(call.abilities.get(name), dict)}
    text = orjson.dumps(known)
    return text if len(text) <= _LONGEST_ABILITIES else b"{}"


def initializes(call: McpCall) -> Mapping[str, Any]:
    """What the client of an `initialize` says that it can do."""
    params = orjson.loads(call.message).get("params")
    said = params.get("capabilities") if isinstance(params, dict) else None
    return said if isinstance(said, dict) else {}


def question(server: str, message: Mapping[str, Any], data: bytes, outer: McpCall) -> McpCall:
    """What a server asks of its client, within a call or in a stream of its own, as a call of its own: `message` is the
    parsed `data`. Raises ProtocolBreach."""
    method, params = message["method"], message.get("params", {})
    if not isinstance(params, dict):
        raise ProtocolBreach("`params` must be an object.", INVALID)
    said = {key: value for key, value in params.items() if key != "_meta"}
    raw = orjson.dumps(said)
    return McpCall(
        "tool", "mcp", server, method, None, said, raw, FREE,
        kept=raw, message=data, method=method,
        id=identity(message.get("id")),
        era=outer.era, version=outer.version, session=outer.session, upstream=outer.upstream,
    )  # fmt: skip


def beside(state: str, responses: bytes) -> Headers:
    """What a call says beside its arguments, as part of what people approve: an answer to its server's question."""
    lines: Headers = []
    if state:
        lines.append((b"request-state", _in_ascii(orjson.dumps(state))))
    if responses:
        lines.append((b"input-responses", _in_ascii(responses)))
    return lines


def _in_ascii(text: bytes) -> bytes:
    """The same JSON text without a character beyond ASCII: headers are shown byte by byte."""
    return text if text.isascii() else _BEYOND.sub(lambda found: json.dumps(found[0])[1:-1], text.decode()).encode()


def with_kept(call: McpCall, state: str, responses: bytes, asked: Asked | None = None) -> McpCall:
    """The same call with another `state` and other `responses` in its message; `asked` is kept beside them."""
    (span,) = places(call.message, ("params",))
    params = call.message[slice(*span)]
    members = {name: value for name, value in raw_members(params).items() if name not in (STATE, RESPONSES)}
    if state:
        members[STATE] = orjson.dumps(state)
    if responses:
        members[RESPONSES] = responses
    message = splice(call.message, [span], joined(members))
    return replace(
        call, message=message, state=state, responses=responses, headers=beside(state, responses), asked=asked
    )


def raw_members(text: bytes) -> dict[str, bytes]:
    """The members of a JSON object by name, each as the JSON text that it came as."""
    return {name: text[slice(*span)] for name in orjson.loads(text) if (span := find(text, name)) is not None}


def joined(members: Mapping[str, bytes]) -> bytes:
    """An object of JSON texts."""
    return b"{%s}" % b",".join(orjson.dumps(name) + b":" + value for name, value in members.items())


def bare(server: str, method: str, era: Era, version: str) -> McpCall:
    """A request without a message: GET for the server's stream, DELETE for the end of a session."""
    return _protocol(server, b"", method, b"", era, version)


def edited(call: McpCall, body: bytes) -> McpCall:
    """The same call with other arguments. Raises MalformedCall."""
    if body == call.body:
        return call
    return replace(call, body=body, kept=body, arguments=parse(body), changed=True)


def onward(call: McpCall, trace: Mapping[str, str] | None = None) -> bytes:
    """The message as its server gets it: as it came, but for arguments that were changed, and for the members of
    `trace`, which stand in its `_meta` then."""
    message = _changed(call) if call.changed else call.message
    for name, value in (trace or {}).items():
        message = _with_meta(message, name, orjson.dumps(value))
    return message


def _changed(call: McpCall) -> bytes:
    spans = places(call.message, ("params",))
    params = call.message[slice(*spans[0])] if spans else b"{}"
    if call.method == "tools/call":
        there = places(params, ("arguments",))
        changed = splice(params, there, call.body) if there else put_first(params, "arguments", call.body)
    else:
        members = raw_members(params)
        kept: dict[str, bytes] = {name: members[name] for name in ("_meta", STATE, RESPONSES) if name in members}
        changed = joined({**raw_members(call.body), **kept})
    return splice(call.message, spans, changed) if spans else put_first(call.message, "params", changed)


def _with_meta(message: bytes, name: str, text: bytes) -> bytes:
    """The message with this member in its `_meta`, which it may not have yet."""
    if there := places(message, ("params", "_meta", name)):
        return splice(message, there, text)
    inside = b"{%s:%s}" % (orjson.dumps(name), text)
    if spans := places(message, ("params", "_meta")):
        return splice(message, spans, put_first(message[slice(*spans[0])], name, text))
    if spans := places(message, ("params",)):
        return splice(message, spans, put_first(message[slice(*spans[0])], "_meta", inside))
    return put_first(message, "params", b'{"_meta":%s}' % inside)


def _check_meta(meta: Mapping[str, Any]) -> None:
    missing = [key for key in (_VERSION_KEY, _ABILITIES_KEY) if key not in meta]
    if missing:
        raise ProtocolBreach(f"`params._meta` lacks {' and '.join(missing)}.", INVALID_PARAMS)
    if not isinstance(meta[_VERSION_KEY], str):
        raise ProtocolBreach(f"`{_VERSION_KEY}` must be a text.", INVALID_PARAMS)


def _named(method: str, params: Mapping[str, Any]) -> str:
    """What `Mcp-Name` has to repeat; empty for nothing."""
    name = params.get(mirrors.NAMED.get(method, ""))
    return name if isinstance(name, str) else ""


def _protocol(server: str, body: bytes, method: str, identity: bytes, era: Era, version: str) -> McpCall:
    return McpCall(
        "tool", "mcp", server, method or "answer", None, {}, b"{}", PROTOCOL,
        message=body, method=method, id=identity, era=era, version=version,
    )  # fmt: skip


def _act(method: str, params: Mapping[str, Any], body: bytes) -> tuple[str, dict[str, Any], bytes]:
    """The operation as policies name it, its arguments, and the same as the JSON text that came."""
    if method == "tools/call":
        name, arguments = params.get("name"), params.get("arguments", {})
        if not isinstance(name, str) or not name:
            raise ProtocolBreach("`params.name` must be the name of a tool.", INVALID_PARAMS)
        if name in ACTS:  # a policy that grants the method must not grant a tool that took its name
            raise ProtocolBreach("A tool cannot have the name of a method.", INVALID_PARAMS)
        if not isinstance(arguments, dict):
            raise ProtocolBreach("`params.arguments` must be an object.", INVALID_PARAMS)
        spans = places(body, ("params", "arguments"))
        return name, arguments, body[slice(*spans[0])] if spans else b"{}"
    said = {key: value for key, value in params.items() if key not in ("_meta", STATE, RESPONSES)}
    return method, said, orjson.dumps(said)


def _kept(params: Mapping[str, Any], body: bytes) -> tuple[str, bytes]:
    """What the client was told to keep, and what it answers. Raises ProtocolBreach."""
    state, responses = params.get(STATE, ""), params.get(RESPONSES)
    if not isinstance(state, str):
        raise ProtocolBreach("`params.requestState` must be a text.", INVALID_PARAMS)
    if responses is None:
        return state, b""
    if not isinstance(responses, dict):
        raise ProtocolBreach("`params.inputResponses` must be an object.", INVALID_PARAMS)
    (span,) = places(body, ("params", RESPONSES))
    return state, body[slice(*span)]
