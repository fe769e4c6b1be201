"""A plain HTTP tool's request becomes a call: its method and path, and what it says as arguments, in one flat object.

    query      each parameter; one that is there several times is a list
    body       JSON: the members of an object, anything else as `body`; a form: its fields
               what is neither, as `body`: {"sha256", "bytes", "content_type"}
    path       the parameters of the path's template, where an OpenAPI document has one

What the tool gets is written from what was read here, so that it reads the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from adapters import urls
from adapters.base import AgentCall, Endpoint, Headers, Refusal, ToolCall
from adapters.body import check_spelling, members, parse, put_first
from adapters.errors import MalformedCall
from adapters.openapi import Described
from adapters.untokened import Untokened
from adapters.urls import Pairs

PATH: Final = "/tools/"
FREE: Final = Endpoint("call", "*", PATH, free=True)
PAID: Final = Endpoint("call", "*", PATH)

Shape = Literal["none", "members", "value", "form", "opaque"]
"""What a body is: nothing, a JSON object, other JSON, a form, or what only its hash is known of."""

_REFUSAL: Final[Headers] = [(b"content-type", b"application/json")]
_JSON: Final = re.compile(r"(?:application|text)/(?:[^;, ]+\+)?json")
_FORM: Final = "application/x-www-form-urlencoded"
_CHARSET: Final = re.compile(r"""[;\s]charset\s*=\s*["']?([^"';\s]*)""", re.IGNORECASE)
_BEFORE_JSON: Final = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"
"""What may stand before a JSON text, in any encoding that some readers guess."""
_ODD: Final = re.compile(r"[. \[]")
_METHODS: Final = frozenset({"_method", "x-http-method", "x-http-method-override", "x-method-override"})
"""Arguments that Rails, Laravel, Symfony and others take for the method, where they are sent by POST."""
_METHOD_PART: Final = re.compile(rb"""\bname\s*=\s*["']?_method\b""", re.IGNORECASE)
_NO_NAMES: Final[frozenset[str]] = frozenset()


@dataclass(slots=True)
class HttpCall(ToolCall):
    """One request. `kept` is its body as it is sent; `path` is below the tool's base URL, begins with a slash and is
    decoded. `query` is written anew from `parameters`."""

    method: str = ""
    path: str = ""
    shape: Shape = "none"
    parameters: Pairs = ()
    fields: Pairs = ()
    described: Described | None = None
    """What an OpenAPI document says of it."""


def read(
    tool: str,
    method: str,
    path: str,
    query: bytes,
    headers: Headers,
    body: bytes,
    described: Described | None = None,
    *,
    free: bool,
) -> HttpCall:
    """The call that a request is. `path` is decoded and checked; `headers` are those that go on with it, a content type
    among them where there is a body. Raises MalformedCall."""
    content_type = _content_type(headers)
    shape, said, kept, fields = _said(body, content_type)
    parameters = urls.pairs(query, "query") if query else ()
    spoken = dict(_values(parameters))
    in_path: Mapping[str, Any] = {}
    if described is not None:
        in_path = described.in_path
        spoken = described.typed(spoken)
        if shape == "form":
            said = described.typed_fields(said)
        in_body = said if shape in ("members", "form") else said.get("body")
        described.check(spoken, in_body, _kind(content_type, shape), len(query) + len(kept))
    arguments, text = said, kept
    if shape == "value":
        text = b'{"body":%s}' % kept
    elif shape != "members":
        text = orjson.dumps(said)
    for extra in (spoken, in_path):
        if not extra:
            continue
        arguments = dict(arguments)
        for name, value in extra.items():
            if name not in arguments:
                arguments[name] = value
                text = put_first(text, name, orjson.dumps(value))
            elif arguments[name] != value or type(arguments[name]) is not type(value):
                raise MalformedCall(f"The argument {_excerpt(name)} is given in two places, with different values.")
    if arguments:
        check_spelling(arguments, _NO_NAMES)
        _check_names((*parameters, *fields), arguments, method)
    operation = described.name if described is not None else f"{method} {path}"
    return HttpCall(
        "tool", "http", tool, operation, None, arguments, text, FREE if free else PAID,
        kept=kept, headers=headers, query=urls.written(parameters), method=method, path=path, shape=shape,
        parameters=parameters, fields=fields, described=described,
    )  # fmt: skip


def edited(call: HttpCall, body: bytes) -> HttpCall:
    """The same call with other arguments, each where it came from; new ones in the body where it can have them, else in
    the query. Raises MalformedCall."""
    if body == call.body:
        return call
    wanted = parse(body)
    texts = dict(members(body))
    in_query = {name for name, _ in call.parameters}
    in_path = call.described.in_path if call.described is not None else {}
    for name, value in in_path.items():
        if name not in wanted or wanted[name] != value:
            raise MalformedCall(f"The argument {_excerpt(name)} stands in the path, which stays as it is.")
    elsewhere = in_query | set(in_path)
    has_members = call.shape in ("members", "form")
    new = [name for name in wanted if name not in call.arguments]
    kept = call.kept
    if call.shape == "members":
        old = {name for name, _ in members(call.kept)}
        kept = _object((name, text) for name, text in texts.items() if name in old or name not in elsewhere)
    elif call.shape == "form":
        kept = urls.written(_changed(call, call.fields, wanted, new))
    elif call.shape == "value":
        kept = texts.get("body", b"")
    elif call.shape == "opaque" and wanted.get("body") != call.arguments.get("body"):
        raise MalformedCall("The body is known by its hash alone; nothing in it can be changed.")
    parameters = _changed(call, call.parameters, wanted, [] if has_members else new)
    other = read(
        call.target, call.method, call.path, urls.written(parameters), call.headers, kept, call.described,
        free=call.endpoint.free,
    )  # fmt: skip
    if other.arguments != wanted:
        raise MalformedCall("An argument would be another one where it stands: a query and a form have texts alone.")
    return other


def is_json(kind: str) -> bool:
    """Whether a media type, in lower case and without parameters, is one of JSON texts."""
    return _JSON.fullmatch(kind) is not None


class Http(Untokened):
    """Plain HTTP: any method and path below a tool's base URL."""

    protocol = "http"
    endpoints: tuple[Endpoint, ...] = (FREE,)

    def read(self, endpoint: Endpoint, body: bytes, argument: str) -> AgentCall:
        raise MalformedCall("A request is read where its tool is known.")

    def edited(self, call: AgentCall, body: bytes) -> AgentCall:
        assert isinstance(call, HttpCall), "whoever speaks plain HTTP makes such calls"
        return edited(call, body)

    def status(self, refusal: Refusal) -> int:
        return refusal.status

    def refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        headers = _REFUSAL if refusal.retry else [*_REFUSAL, (b"x-should-retry", b"false")]
        return headers, orjson.dumps(_error(refusal))

    def broken_stream(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(_error(refusal)) + b"\n\n"


def _error(refusal: Refusal) -> Mapping[str, Any]:
    error = {"message": refusal.message, "type": refusal.code, "param": None, "code": refusal.code}
    return {"error": {**refusal.details, **error}}


def _check_names(texts: Pairs, arguments: Mapping[str, Any], method: str) -> None:
    """Refuses names of the query and the form that some servers take for one with another argument's, and an argument
    that makes another method of the request's. Raises MalformedCall."""
    for name in arguments:
        if name.lower() in _METHODS and str(arguments[name]).upper() != method:
            raise MalformedCall(f"Some servers take the argument {_excerpt(name)} for the method; send the real one.")
    odd = {name for name, _ in texts if _ODD.search(name)}
    if not odd:
        return
    whole: dict[str, str] = {}
    for name in sorted(arguments, key=lambda name: "[" in name):
        in_brackets = "[" in name and "]" in name
        other = whole.get(urls.plain(name), name) if in_brackets else whole.setdefault(urls.plain(name), name)
        if other != name and (name in odd or other in odd):
            raise MalformedCall(f"The parameters {_excerpt(other)} and {_excerpt(name)} are one to some servers.")


def _content_type(headers: Headers) -> str:
    found = [value for name, value in headers if name == b"content-type"]
    if len(found) > 1:
        raise MalformedCall("The request has two content types. Send one.")
    return found[0].decode("latin-1") if found else ""


def _kind(content_type: str, shape: Shape) -> str:
    """The media type, in lower case and without parameters; empty without a body."""
    return "" if shape == "none" else content_type.partition(";")[0].strip().lower()


def _said(body: bytes, content_type: str) -> tuple[Shape, dict[str, Any], bytes, Pairs]:
    """What a body is and says, the body as it is sent, and the fields of a form."""
    if not body:
        return "none", {}, b"", ()
    kind = content_type.partition(";")[0].strip().lower()
    if not kind or "," in content_type:
        raise MalformedCall("The body has no content type that can be relied on; say what it is.")
    charset = _CHARSET.search(content_type)
    if charset is not None and _CHARSET.search(content_type, charset.end()) is not None:
        raise MalformedCall("The content type has two charsets. Send one.")
    if _JSON.fullmatch(kind):
        if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
            raise MalformedCall("The body says that it is no UTF-8; JSON is.")
        if body.lstrip()[:1] == b"{":
            return "members", parse(body), body, ()
        said = parse(b'{"body":%s}' % body)
        if said.keys() != {"body"}:
            raise MalformedCall("The body is not JSON.")
        return "value", said, body, ()
    if kind == _FORM:
        if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
            raise MalformedCall("The form says that it is no UTF-8.")
        fields = urls.pairs(body, "form")
        return "form", dict(_values(fields)), urls.written(fields), fields
    if body.lstrip(_BEFORE_JSON)[:1] in (b"{", b"["):
        raise MalformedCall("The body looks like JSON and says that it is not. Send it as application/json.")
    if kind.startswith("multipart/") and _METHOD_PART.search(body):
        raise MalformedCall("The body has a part `_method`, which some servers take for the method.")
    digest = hashlib.sha256(body).hexdigest()
    return "opaque", {"body": {"sha256": digest, "bytes": len(body), "content_type": content_type}}, body, ()


def _values(found: Pairs) -> Iterable[tuple[str, str | list[str]]]:
    """A text for each name; a list for one that is there several times."""
    several: dict[str, str | list[str]] = {}
    for name, value in found:
        before = several.get(name)
        if before is None:
            several[name] = value or ""
        elif isinstance(before, list):
            before.append(value or "")
        else:
            several[name] = [before, value or ""]
    return several.items()


def _changed(call: HttpCall, found: Pairs, wanted: Mapping[str, Any], new: list[str]) -> Pairs:
    """The pairs with the values that are wanted: unchanged ones as they came, new names at the end."""
    changed: list[tuple[str, str | None]] = []
    done: set[str] = set()
    for name, value in found:
        if name in wanted and wanted[name] == call.arguments[name]:
            changed.append((name, value))
        elif name in wanted and name not in done:
            changed += [(name, text) for text in _texts(call, name, wanted[name])]
        done.add(name)
    for name in new:
        changed += [(name, text) for text in _texts(call, name, wanted[name])]
    return tuple(changed)


def _texts(call: HttpCall, name: str, value: Any) -> list[str]:
    """A value as a query or a form has it."""
    if isinstance(value, list) and call.described is not None and call.described.joins(name):
        return [",".join(_text(name, each) for each in value)]
    return [_text(name, each) for each in value] if isinstance(value, list) else [_text(name, value)]


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict | list):
        raise MalformedCall(f"The argument {_excerpt(name)} cannot be that where it stands, in the query or in a form.")
    return orjson.dumps(value).decode()


def _object(found: Iterable[tuple[str, bytes]]) -> bytes:
    return b"{" + b",".join(orjson.dumps(name) + b":" + text for name, text in found) + b"}"


def _excerpt(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:40] + "...")
