"""What an MCP request says twice: headers that repeat its body, so that whoever routes it need not read that.

In the modern era they have to be there and to say the same, or one who goes by the headers would let something through
that another one reads out of the body. In the legacy era there are none, and what looks like one is not heeded.
Source: MCP 2026-07-28, basic/transports, standard and custom request headers.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from adapters.base import Breach, Headers
from adapters.errors import ProtocolBreach

VERSION: Final = b"mcp-protocol-version"
METHOD: Final = b"mcp-method"
NAME: Final = b"mcp-name"
PARAMETER: Final = b"mcp-param-"

MISMATCH: Final = Breach(-32020, 400)

NAMED: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""Methods -> the member of `params` that `Mcp-Name` repeats."""

_AROUND: Final = b" \t"
"""What may stand around a header's value and is no part of it; the HTTP parser leaves it behind the value."""
_ROUTING: Final = frozenset({VERSION, METHOD, NAME})
_OPTIONAL: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
"""Where the header may be missing: an extension asks for it, and not every client knows that."""
_WRAPPED: Final = re.compile(rb"=\?base64\?(.*)\?=", re.DOTALL)
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,400}(\.0{1,400})?")
_KINDS: Final = frozenset({"string", "integer", "boolean"})
_MOST: Final = 2000
"""Places of a schema that are looked at."""


class Parameter(NamedTuple):
    """An argument that a tool's definition wants in a header, too: the header's name in lower case, where the argument
    stands, and its JSON type."""

    header: bytes
    path: tuple[str, ...]
    kind: str


def decoded(value: bytes) -> str | None:
    """What a header's value says; None for what cannot have been meant."""
    wrapped = _WRAPPED.fullmatch(value)
    if wrapped is None:
        return value.decode("latin-1")
    payload = wrapped.group(1)
    try:
        text = base64.b64decode(payload, validate=True)
        return text.decode() if base64.b64encode(text) == payload else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def encoded(text: str) -> bytes:
    """The same the other way round: as it is where a header can hold it."""
    if _PLAIN.fullmatch(text) and text == text.strip() and not _WRAPPED.fullmatch(text.encode()):
        return text.encode()
    return b"=?base64?%s?=" % base64.b64encode(text.encode("utf-8", "surrogatepass"))


def check(headers: Headers, method: str, version: str, name: object) -> None:
    """Holds the routing headers of a modern request against its body. Raises ProtocolBreach."""
    found: dict[bytes, bytes] = {}
    for key, value in headers:
        if key in _ROUTING:
            if key in found:
                raise ProtocolBreach(f"The header {_shown(key)} is given twice.", MISMATCH)
            found[key] = value.strip(_AROUND)
    for key, said in ((VERSION, version), (METHOD, method)):
        if key not in found or found[key].decode("latin-1") != said:
            raise ProtocolBreach(f"The header {_shown(key)} does not say what the message says.", MISMATCH)
    if method not in NAMED or not isinstance(name, str):
        return
    if NAME not in found:
        if method in _OPTIONAL:
            return
        raise ProtocolBreach("The header Mcp-Name is missing.", MISMATCH)
    if decoded(found[NAME]) != name:
        raise ProtocolBreach("The header Mcp-Name does not say what the message says.", MISMATCH)


def parameters(schema: object) -> tuple[Parameter, ...]:
    """The arguments that a tool's input schema marks with `x-mcp-header`.

    None where one of the marks is against the rules: clients leave such a tool out, and send no such headers.
    """
    found: dict[bytes, Parameter] = {}
    for count, (path, place) in enumerate(_places(schema)):
        if count >= _MOST:
            return ()
        if "x-mcp-header" not in place:
            continue
        token, kind = place["x-mcp-header"], place.get("type")
        if not path or not isinstance(token, str) or not isinstance(kind, str):
            return ()
        if not _TOKEN.fullmatch(token) or kind not in _KINDS:
            return ()
        header = PARAMETER + token.lower().encode()
        if header in found:
            return ()
        found[header] = Parameter(header, path, kind)
    return tuple(found.values())


def check_parameters(headers: Headers, wanted: Sequence[Parameter], arguments: Mapping[str, Any]) -> None:
    """Holds these headers against the arguments. Raises ProtocolBreach."""
    if not wanted:
        return
    names = {each.header for each in wanted}
    found: dict[bytes, bytes] = {}
    for key, value in headers:
        if key in names:
            if key in found:
                raise ProtocolBreach(f"The header {_shown(key)} is given twice.", MISMATCH)
            found[key] = value.strip(_AROUND)
    for each in wanted:
        argument = _at(arguments, each.path)
        text, said = _text(argument), found.get(each.header)
        if text is None:
            if said is not None:
                raise ProtocolBreach(f"The header {_shown(each.header)} repeats what is not there.", MISMATCH)
        elif said is None:
            raise ProtocolBreach(f"The header {_shown(each.header)} is missing.", MISMATCH)
        elif not _same(each.kind, argument, text, decoded(said)):
            raise ProtocolBreach(f"The header {_shown(each.header)} does not say what the arguments say.", MISMATCH)


def onward(
    headers: Headers, method: str, version: str, name: str, wanted: Sequence[Parameter], arguments: Mapping[str, Any]
) -> Headers:
    """The mirrors of a modern request as its server gets them: of what is sent, which may differ from what came."""
    lines = [(VERSION, version.encode("latin-1", "replace")), (METHOD, method.encode("latin-1", "replace"))]
    if name:
        lines.append((NAME, encoded(name)))
    names = {each.header for each in wanted}
    lines += [(key, value.strip(_AROUND)) for key, value in headers if key.startswith(PARAMETER) and key not in names]
    lines += [(each.header, encoded(text)) for each in wanted if (text := _text(_at(arguments, each.path))) is not None]
    return lines


def _places(schema: object) -> Iterator[tuple[tuple[str, ...] | None, Mapping[str, Any]]]:
    """Every place of a schema that is one itself, and the names that lead to it; None where other words than
    `properties` do."""
    left: list[tuple[tuple[str, ...] | None, object]] = [((), schema)]
    while left:
        path, place = left.pop()
        if not isinstance(place, dict):
            continue
        yield path, place
        for word, value in place.items():
            if word == "properties" and isinstance(value, dict):
                left += [((*path, name) if path is not None else None, below) for name, below in value.items()]
            elif word in _BELOW:
                left.append((None, value))
            elif word in _LISTS and isinstance(value, list):
                left += [(None, below) for below in value]
            elif word in _MAPS and isinstance(value, dict):
                left += [(None, below) for below in value.values()]


_BELOW: Final = frozenset(
    {
        "items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties",
        "not", "if", "then", "else", "contentSchema",
    }
)  # fmt: skip
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})


def _at(arguments: object, path: tuple[str, ...]) -> object:
    for name in path:
        if not isinstance(arguments, Mapping):
            return None
        arguments = arguments.get(name)
    return arguments


def _text(value: object) -> str | None:
    """A value as clients write it into a header; None for what has no place there."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError:  # more digits than Python writes
            return None
    return None


def _same(kind: str, value: object, text: str, said: str | None) -> bool:
    if said is None:
        return False
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if kind == "integer" and whole and not isinstance(value, bool) and _DECIMAL.fullmatch(said):
        assert isinstance(value, int | float)
        return int(said.partition(".")[0]) == int(value)
    return said == text


def _shown(name: bytes) -> str:
    shown = "-".join(part.capitalize() for part in name.decode("latin-1")[:80].split("-"))
    return shown.replace("Mcp-Protocol", "MCP-Protocol")


def version_in(headers: Headers) -> str:
    """The version that a request's header names; empty for none."""
    return next((value.strip(_AROUND).decode("latin-1") for name, value in headers if name == VERSION), "")
