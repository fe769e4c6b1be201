"""The operations of an OpenAPI document as tools of MCP: how they are described, called, and what their answers become.

A tool's arguments are the parameters of path and query and the members of the body, flat in one object, as the policy
sees those of the same request at /tools/. A body that is no object with listed members is the argument `body`.
Source: MCP 2025-11-25 and 2026-07-28, server/tools.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from adapters import urls
from adapters.errors import MalformedCall
from adapters.http import is_json
from adapters.openapi import Operation

_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_FORM: Final = "application/x-www-form-urlencoded"
_BODY: Final = "body"
_BOUND: Final = re.compile(r"\{([^{}/]+)\}")


class Request(NamedTuple):
    """What an operation's arguments are as a request. `path` is decoded; `kind` is empty where there is no body."""

    method: str
    path: str
    query: bytes
    kind: bytes
    body: bytes


def offered(operation: Operation) -> bool:
    """Whether an operation can be called with JSON arguments, and has a name that tools may have."""
    fits = operation.has_id and _NAME.fullmatch(operation.name) is not None
    return fits and (bool(operation.body_kind) or not operation.body_required)


def definition(operation: Operation) -> dict[str, Any]:
    """An operation as `tools/list` has it."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    for each in operation.parameters:
        properties[each.name] = {**each.schema, "description": each.about} if each.about else dict(each.schema)
        if each.required:
            required.append(each.name)
    for name in _BOUND.findall(operation.template):
        if name not in properties:
            properties[name], required = {"type": "string"}, [*required, name]
    members = _members(operation)
    if members is not None:
        properties |= members
        wanted = (operation.body or {}).get("required")
        if operation.body_required and isinstance(wanted, list):
            required += [name for name in wanted if name in members and name not in required]
    elif operation.body_kind:
        properties[_BODY] = operation.body if operation.body is not None else {}
        if operation.body_required:
            required.append(_BODY)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if members is None:
        schema["additionalProperties"] = False
    if operation.components:
        schema["components"] = operation.components
    tool: dict[str, Any] = {
        "name": operation.name,
        "description": operation.description or operation.summary or f"{operation.method} {operation.template}",
        "inputSchema": schema,
        "annotations": {
            "readOnlyHint": operation.method in ("GET", "HEAD", "OPTIONS"),
            "destructiveHint": operation.method not in ("GET", "HEAD", "OPTIONS"),
            "idempotentHint": operation.method not in ("POST", "PATCH"),
            "openWorldHint": True,
        },
    }
    if operation.summary:
        tool["title"] = operation.summary
    return tool


def request(operation: Operation, arguments: Mapping[str, Any]) -> Request:
    """Raises MalformedCall for arguments that no request can have."""
    left = dict(arguments)
    bound = _BOUND.findall(operation.template)
    for name in bound:
        if name not in left:
            raise MalformedCall(f"{operation.name} needs the argument `{name}`.")
    segments = {name: _segment(name, left.pop(name)) for name in bound}
    path = _BOUND.sub(lambda matched: segments[matched[1]], operation.template)
    pairs: list[tuple[str, str | None]] = []
    for each in operation.parameters:
        if each.where != "query" or each.name not in left:
            continue
        value = left.pop(each.name)
        texts = [_text(each.name, one) for one in value] if isinstance(value, list) else [_text(each.name, value)]
        pairs += [(each.name, ",".join(texts))] if each.joined else [(each.name, text) for text in texts]
    query = urls.written(pairs)
    if _members(operation) is None:
        if left.keys() - {_BODY} or (left and not operation.body_kind):
            raise MalformedCall(f"{operation.name} takes no argument `{next(iter(left))[:40]}`.")
        if not left:
            return Request(operation.method, path, query, b"", b"")
        value = left[_BODY]
    elif not left and not operation.body_required:
        return Request(operation.method, path, query, b"", b"")
    else:
        value = left
    if operation.body_kind != _FORM:
        return Request(operation.method, path, query, operation.body_kind.encode(), orjson.dumps(value))
    if not isinstance(value, dict):
        raise MalformedCall(f"{operation.name} takes a form, which has fields.")
    fields = [(name, _text(name, one)) for name, given in value.items() for one in _several(given)]
    return Request(operation.method, path, query, _FORM.encode(), urls.written(fields))


def result(status: int, kind: str, body: bytes) -> dict[str, Any]:
    """An answer as the result of `tools/call`."""
    found: dict[str, Any] = {"content": [], "isError": status >= 300}
    if is_json(kind) and body:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict) and status < 300:
            found["structuredContent"] = value
    try:
        text = body.decode()
    except UnicodeDecodeError:
        if kind.startswith("image/") and status < 300:
            found["content"] = [{"type": "image", "data": base64.b64encode(body).decode(), "mimeType": kind}]
            return found
        text = f"{len(body)} bytes of {kind or 'an unknown kind'}, which are no text"
    if status >= 300:
        text = f"HTTP {status}\n{text}".rstrip()
    found["content"] = [{"type": "text", "text": text or f"HTTP {status}"}]
    return found


def _members(operation: Operation) -> Mapping[str, Any] | None:
    """Those of the body that are arguments of their own; None where the body is one argument, or there is none."""
    members = operation.members
    names = {each.name for each in operation.parameters} | set(_BOUND.findall(operation.template))
    if members is None or not operation.body_kind or names & members.keys():
        return None
    return members


def _segment(name: str, value: Any) -> str:
    text = ",".join(_text(name, each) for each in value) if isinstance(value, list) else _text(name, value)
    # A slash would make two segments of it, and what is encoded twice is refused: nobody could read it for certain.
    if not text or "/" in text:
        raise MalformedCall(f"The argument `{name[:40]}` stands in the path, and cannot be empty or have a slash.")
    return text


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict | list):
        raise MalformedCall(f"The argument `{name[:40]}` has to be a text or a number where it stands.")
    return orjson.dumps(value).decode()
