"""One MCP message of an agent becomes a call: a tool's name and arguments, or a method that is the protocol's own.

    legacy   2025-03-26 to 2025-11-25: `initialize`, sessions, a stream for the server's own messages
    modern   2026-07-28: no session; each request says its version and what its client can do in `_meta`

Sources: the MCP specification, basic/transports and basic/lifecycle of these revisions; JSON-RPC 2.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import orjson

from adapters.base import Breach, Endpoint, Headers, ToolCall
from adapters.body import find, parse, places, put_first, splice
from adapters.errors import MalformedCall, ProtocolBreach

PATH: Final = "/mcp/"
MODERN: Final = "2026-07-28"
LEGACY: Final = ("2025-03-26", "2025-06-18", "2025-11-25")

INVALID: Final = Breach(-32600, 400)
INVALID_PARAMS: Final = Breach(-32602, 400)
PARSE_ERROR: Final = Breach(-32700, 400)

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
    asked: Asked | None = None
    """Set where it was the gateway that has asked; `state` and `responses` are then those of before."""


def read(server: str, body: bytes, version: str, *, free: bool) -> McpCall:
    """The message in a POSTed body. `version` is what the header `MCP-Protocol-Version` says, empty for nothing.

    Raises ProtocolBreach, MalformedCall.
    """
    if body.lstrip()[:1] == b"[":
        raise ProtocolBreach("Send one JSON-RPC message at a time: batches are not taken.", INVALID)
    try:
        message = parse(body)
    except MalformedCall as error:
        raise ProtocolBreach(str(error), PARSE_ERROR) from None
    if message.get("jsonrpc") != "2.0":
        raise ProtocolBreach('The message is no JSON-RPC 2.0: `jsonrpc` must be "2.0".', INVALID)
    method, params = message.get("method"), message.get("params", {})
    if method is None and ("result" in message) != ("error" in message) and "id" in message:
        return _protocol(server, body, "", b"", "legacy" if version != MODERN else "modern", version)
    if not isinstance(method, str) or not method:
        raise ProtocolBreach("The message has no `method`, and is no answer either.", INVALID)
    if not isinstance(params, dict):
        raise ProtocolBreach("`params` must be an object.", INVALID)
    meta = params.get("_meta", {})
    if not isinstance(meta, dict):
        raise ProtocolBreach("`params._meta` must be an object.", INVALID_PARAMS)
    said = meta.get(_VERSION_KEY)
    era: Era = "modern" if said == MODERN or version == MODERN else "legacy"
    identity = b""
    if "id" in message:
        identifier = message["id"]
        if isinstance(identifier, bool) or not isinstance(identifier, str | int):
            raise ProtocolBreach("`id` must be a text or a whole number.", INVALID)
        identity = orjson.dumps(identifier)
    if method not in ACTS or not identity:
        return _protocol(server, body, method, identity, era, said or version)
    operation, arguments, raw = _act(method, params, body)
    abilities = meta.get(_ABILITIES_KEY)
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
        version=said or version,
        name=str(params.get(ACTS[method], "")) if ACTS[method] else "",
        progress=orjson.dumps(meta["progressToken"]) if "progressToken" in meta else b"",
        abilities=abilities if isinstance(abilities, dict) else {},
        state=state,
        responses=responses,
        headers=beside(state, responses),
    )


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


def onward(call: McpCall) -> bytes:
    """The message as its server gets it: as it came, but for arguments that were changed."""
    if not call.changed:
        return call.message
    if call.method == "tools/call":
        spans = places(call.message, ("params", "arguments"))
        if spans:
            return splice(call.message, spans, call.body)
        spans = places(call.message, ("params",))
        return splice(call.message, spans, put_first(call.message[slice(*spans[0])], "arguments", call.body))
    spans, params = places(call.message, ("params",)), call.body
    meta = places(call.message, ("params", "_meta"))
    if meta:
        params = put_first(params, "_meta", call.message[slice(*meta[0])])
    return splice(call.message, spans, params)


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
