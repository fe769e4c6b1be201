"""How an MCP client hears that its call waits for people, in the words that it has said it understands.

    TASK       2026-07-28 with the extension `io.modelcontextprotocol/tasks`: a task, and the client asks after it
    PAGE       2026-07-28 with `elicitation.url`: an `input_required` result that leads its user to the approval's page
    PAGE_ERROR 2025-11-25 with `elicitation.url`: the error -32042 that does the same, once the call has waited
    WORDS      everything else: an `isError` result whose text says how to come back, once the call has waited

Sources: MCP 2026-07-28, basic/patterns/mrtr and client/elicitation; 2025-11-25, client/elicitation; SEP-2663.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import orjson

from adapters.base import Breach, Headers
from adapters.body import parse, put_first
from adapters.mcp.messages import (
    ACTS,
    ASKS,
    INVALID_PARAMS,
    MODERN,
    RESPONSES,
    STATE,
    McpCall,
    joined,
    raw_members,
    read,
)

TASKS: Final = "io.modelcontextprotocol/tasks"
TASK_METHODS: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
QUESTION: Final = "approval"
"""The key of the gateway's one question among `inputRequests`."""
REPEATED: Final = "weighbridge/repeated"
MOST_EVENT: Final = 1024 * 1024
"""Bytes of the longest event that stock clients read."""
PAGE_NEEDED: Final = -32042

NO_SUCH_TASK: Final = INVALID_PARAMS
NO_TASKS: Final = Breach(-32021, 400, {"requiredCapabilities": {"extensions": {TASKS: {}}}})

_ABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"
_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_INFO_KEY: Final = "io.modelcontextprotocol/clientInfo"
_BESIDE: Final[Mapping[bytes, str]] = {b"request-state": STATE, b"input-responses": RESPONSES}
_NOBODY: Final = orjson.dumps(
    {_VERSION_KEY: MODERN, _INFO_KEY: {"name": "weighbridge", "version": "0"}, _ABILITIES_KEY: {}}
)
"""`_meta` of a call behind which there is no client any more."""


class Way(enum.Enum):
    """In which words a client is told."""

    TASK = "task"
    PAGE = "page"
    PAGE_ERROR = "page error"
    WORDS = "words"


def way(call: McpCall, page: bool) -> Way:
    """`page` says whether there is a page to lead people to."""
    elicits = page and isinstance(_member(_member(call.abilities, "elicitation"), "url"), dict)
    if call.era == "modern":
        if call.method == "tools/call" and knows_tasks(call.abilities):
            return Way.TASK
        return Way.PAGE if elicits and call.method in ASKS else Way.WORDS
    return Way.PAGE_ERROR if elicits and call.version == "2025-11-25" else Way.WORDS


def knows_tasks(abilities: Mapping[str, Any]) -> bool:
    """Whether a client of 2026-07-28 declares the extension."""
    return isinstance(_member(_member(abilities, "extensions"), TASKS), dict)


# What a held call is answered with: one member of a JSON-RPC message each


def input_required(message: str, url: str, state: str) -> bytes:
    """The question that leads the client's user to a page, and what the client has to give back."""
    params = {"mode": "url", "message": message, "url": url}
    question = {"method": "elicitation/create", "params": params}
    return _member_text("result", {"resultType": "input_required", "inputRequests": {QUESTION: question}, STATE: state})


def page_needed(message: str, url: str, approval: str) -> bytes:
    """The error that does the same; what the agent is told anyway is its message."""
    elicitation = {"mode": "url", "elicitationId": approval, "url": url, "message": message}
    return _member_text("error", {"code": PAGE_NEEDED, "message": message, "data": {"elicitations": [elicitation]}})


def went(responses: bytes) -> bool:
    """Whether the client's user let themselves be led to the page; silence is no refusal."""
    answer = _member(orjson.loads(responses), QUESTION) if responses else {}
    return _member(answer, "action") not in ("decline", "cancel")


def task(facts: Mapping[str, Any], kind: str) -> bytes:
    """A task as it is given (`kind` is `task`) or told of (`complete`)."""
    return _member_text("result", {"resultType": kind, **facts})


def nothing() -> bytes:
    """An acknowledgement."""
    return _member_text("result", {"resultType": "complete"})


# What a client hears meanwhile


def progress(token: bytes, step: int, message: str) -> bytes:
    """An event that tells of the `step`th sign of life, for a client that gave a token.

    Progress must increase, and that of the tool itself comes after: so it is counted in millionths.
    """
    said = orjson.dumps(message)
    return (
        b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,'
        b'"progress":%d.%06d,"message":%s}}\n\n'
    ) % (token, step // 1_000_000, step % 1_000_000, said)


def takes_events(headers: Headers) -> bool:
    """Whether the client can be answered with a stream of events, as the protocol wants every client to."""
    accepted = b",".join(value for name, value in headers if name == b"accept").lower()
    return b"text/event-stream" in accepted or b"*/*" in accepted or b"text/*" in accepted


def takes_json(headers: Headers) -> bool:
    """Whether it can be answered with one JSON text."""
    accepted = b",".join(value for name, value in headers if name == b"accept").lower()
    return not accepted or b"application/json" in accepted or b"*/*" in accepted or b"application/*" in accepted


def event(message: bytes) -> bytes:
    """A JSON text as one event: line ends in it are white space, which cannot stand in an event's line."""
    return b"event: message\ndata: %s\n\n" % message.replace(b"\r", b" ").replace(b"\n", b" ")


# What came of a call, for the identical ones


def outcome(message: bytes, identity: bytes) -> bytes | None:
    """`{"result": ...}` or `{"error": ...}` of the response with this id, as it came; None for any other message."""
    try:
        said = orjson.loads(message)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(said, dict) or "method" in said or "id" not in said:
        return None
    if said["id"] != orjson.loads(identity) or ("result" in said) == ("error" in said):
        return None
    name = "result" if "result" in said else "error"
    return joined({name: raw_members(message)[name]})


def again(call: McpCall, kept: bytes, approval: str) -> bytes:
    """The response to `call` that says what `outcome` has kept, as the call's revision has it. A result's `_meta` says
    by which approval it was got: nothing has run for this one."""
    ((name, text),) = raw_members(kept).items()
    if name == "result":
        members = raw_members(_of_era(call, text))
        before = members.get("_meta", b"{}")
        about = raw_members(before) if isinstance(orjson.loads(before), dict) else {}
        about[REPEATED] = orjson.dumps({"approval": approval})
        text = joined({**members, "_meta": joined(about)})
    return response(call, b'"%s":%s' % (name.encode(), text))


def response(call: McpCall, member: bytes) -> bytes:
    """The JSON-RPC response to a call with this one member."""
    return b'{"jsonrpc":"2.0","id":%s,%s}' % (call.id or b"null", member)


def too_long(call: McpCall, size: int) -> bytes:
    """In place of an answer that stock clients would not read: none that is streamed may be so long."""
    words = f"This call has run, and its answer of {size} bytes is too long for the stream that you waited by."
    if call.method != "tools/call":
        return _member_text("error", {"code": 502, "message": words})
    said: dict[str, Any] = {"content": [{"type": "text", "text": words}], "isError": True}
    return _member_text("result", said if call.era == "legacy" else {**said, "resultType": "complete"})


def _of_era(call: McpCall, result: bytes) -> bytes:
    """Only since 2026-07-28 a result says what kind of one it is."""
    value = orjson.loads(result)
    kind = value.get("resultType")
    if call.era == "modern":
        return result if kind is not None else put_first(result, "resultType", b'"complete"')
    if kind is None:
        return result
    if kind != "complete":
        return orjson.dumps(
            {
                "content": [
                    {"type": "text", "text": "This call has run, and its server asks for more, in a later revision "
                     "of the protocol than yours. Do not repeat it."}
                ],
                "isError": True,
            }
        )  # fmt: skip
    return joined({name: text for name, text in raw_members(result).items() if name != "resultType"})


# A call that nobody makes by a request


def restored(
    server: str, operation: str, kept: bytes, headers: Headers, identity: str, *, definition: str, free: bool
) -> McpCall:
    """A held call out of what people have seen of it, as a message of 2026-07-28 whose client can do nothing.

    Raises MalformedCall.
    """
    beside = {name: value for name, value in headers if name in _BESIDE}
    method = operation if operation in ACTS else "tools/call"
    parse(kept)
    members = raw_members(kept) if method != "tools/call" else {"name": orjson.dumps(operation), "arguments": kept}
    members |= {_BESIDE[name]: value for name, value in beside.items()}
    members["_meta"] = _NOBODY
    message = b'{"jsonrpc":"2.0","id":%s,"method":%s,"params":%s}' % (
        orjson.dumps(identity),
        orjson.dumps(method),
        joined(members),
    )
    call = read(server, message, MODERN, free=free)
    call.definition = definition
    return call


def _member(mapping: Any, name: str) -> Any:
    return mapping.get(name, None) if isinstance(mapping, dict) else None


def _member_text(name: str, value: Mapping[str, Any]) -> bytes:
    return b'"%s":%s' % (name.encode(), orjson.dumps(value))
