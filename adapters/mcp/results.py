"""What a server answers to a call that was decided on: whether it tells of a failure, and the same with less in it.

A tool's result often says the same twice: as a text for models and as `structuredContent` for programs. What must not
be seen in the one must not be seen in the other. Source: MCP 2025-11-25 and 2026-07-28, server/tools, structured
content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from adapters.body import parse, places, splice
from adapters.errors import MalformedCall
from adapters.mcp.messages import McpCall

STARS: Final = "***"
_MARKS: Final = re.compile(rb'"isError"[ \t\r\n]*+:[ \t\r\n]*+true|"error"[ \t\r\n]*+:')
"""One of these stands in every answer that tells of a failure; few others are looked at more closely."""
_SHORTEST: Final = 3
"""Characters of a value that is looked for in texts: shorter ones stand everywhere."""


class Unredactable(ValueError):
    """It cannot be made certain that the result is without what must not be seen. The text says why."""


def failed(answer: bytes) -> bool:
    """Whether an answer says that the call has failed."""
    if _MARKS.search(answer) is None:
        return False
    message = parsed(answer)
    if message is None:
        return False
    result = message.get("result")
    return "error" in message or (isinstance(result, dict) and result.get("isError") is True)


def parsed(answer: bytes) -> dict[str, Any] | None:
    """An answer; None for what is none."""
    try:
        message = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return None
    return message if isinstance(message, dict) else None


def is_task(answer: bytes) -> bool:
    """Whether the answer only says where the result will be."""
    if b'"task"' not in answer:
        return False
    result = (parsed(answer) or {}).get("result")
    return isinstance(result, dict) and (result.get("resultType") == "task" or isinstance(result.get("task"), dict))


def told(answer: bytes) -> bytes | None:
    """The result as JSON text, an error as an object of that name; None for what is neither, and for what two readers
    might read differently."""
    try:
        message = parse(answer)
    except MalformedCall:
        return None
    if ("result" in message) == ("error" in message):
        return None
    name = "result" if "result" in message else "error"
    (span,) = places(answer, (name,))
    text = answer[slice(*span)]
    return text if name == "result" else b'{"error":%b}' % text


def withheld(call: McpCall, why: str, code: str, call_id: str, identity: bytes = b"") -> bytes:
    """An answer in place of one that must not be seen. `identity` is the JSON text of its id where that is not the
    call's."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": why}], "isError": True}
    about = {"code": code, "call": call_id}
    if call.method != "tools/call":
        error = {"code": 403, "message": why, "data": about}
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (identity or call.id, orjson.dumps(error))
    if call.era == "modern":
        result["resultType"] = "complete"
    result["_meta"] = {"weighbridge/refusal": about}
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (identity or call.id, orjson.dumps(result))


def redacted(answer: bytes, paths: Sequence[Sequence[str]]) -> bytes:
    """An answer without the values at `paths`, which lead into its result: stars are in their place, and nothing in
    `content` says the same any more.

    Raises Unredactable.
    """
    before = parsed(answer)
    after = answer
    for path in paths:
        if not path:
            raise Unredactable("the result as a whole can only be withheld")
        after = splice(after, places(after, ("result", *path)), orjson.dumps(STARS))
    message = parsed(after)
    if before is None or message is None or not isinstance(message.get("result"), dict):
        raise Unredactable("it is no result")
    was, result = before["result"], message["result"]
    structured = was.get("structuredContent")
    if structured is None:
        return orjson.dumps(message)
    if any(path[0] == "content" for path in paths) and structured == result.get("structuredContent"):
        raise Unredactable("a text of it is not to be seen, and `structuredContent` may say the same")
    if structured == result.get("structuredContent"):
        return orjson.dumps(message)
    hidden = set(_taken(structured, result.get("structuredContent")))
    if any(len(each) < _SHORTEST for each in hidden):
        raise Unredactable("a value is too short to be found again in its texts")
    shown, content = result.get("structuredContent"), result.get("content", [])
    if not isinstance(content, list):
        raise Unredactable("its content is no list of blocks")
    result["content"] = [_without(block, structured, shown, hidden) for block in content]
    return orjson.dumps(message)


def _without(block: Any, structured: Any, shown: Any, hidden: set[str]) -> Any:
    """A block of content without what is hidden: the same again becomes the same again, all else is given up."""
    if not isinstance(block, dict):
        raise Unredactable("its content is no list of blocks")
    text = block.get("text")
    if isinstance(text, str):
        try:
            if orjson.loads(text) == structured:
                return {**block, "text": orjson.dumps(shown).decode()}
        except orjson.JSONDecodeError:
            pass
    if any(_says(each, hidden) for each in _texts(block)):
        return {"type": "text", "text": STARS}
    return block


def _says(text: str, hidden: set[str]) -> bool:
    return any(each in text or orjson.dumps(each)[1:-1].decode() in text for each in hidden)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _taken(before: Any, after: Any) -> Iterator[str]:
    """The values that one has and the other has not, as they would stand in a text."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from _taken(value, after.get(name))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from _taken(one, other)
    elif before != after:
        yield from _leaves(before)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield orjson.dumps(value).decode()
