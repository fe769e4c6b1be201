"""An OpenAPI document becomes a table of operations: which one a request is, what it is called, and what it may say.

Versions 3.0 and 3.1. Of a document only `paths` and what they refer to is read: where the tool is says the
configuration, not `servers`. Nothing outside of the document is ever fetched.
Sources: the OpenAPI Specification 3.0.4 and 3.1.1; JSON Schema 2020-12.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from adapters.body import without_case
from adapters.errors import MalformedCall
from adapters.mcp.schemas import Schema, UnusableSchema

METHODS: Final = ("get", "head", "options", "post", "put", "patch", "delete")

Place = tuple[str | int, ...]

_NAME: Final = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
_PARAMETER: Final = re.compile(r"\{([^{}/]+)\}")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,17})?(?:[eE][-+]?[0-9]{1,3})?")
_SCHEMAS: Final = "#/components/"
_JSON: Final = re.compile(r"(?:application|text)/(?:[^;, ]+\+)?json")
_FORM: Final = "application/x-www-form-urlencoded"
_DEEPEST: Final = 64


class Mistake(NamedTuple):
    """What is wrong with a document, and where."""

    place: Place
    message: str


class UnusableDocument(Exception):
    """A document from which no operations can be read. `mistakes` has all of them."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("; ".join(f"{pointer(each.place)}: {each.message}" for each in mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of the path or the query. `kind` is the one JSON type that its text stands for, empty for a text; `items`
    that of a list's items. A list is `joined` by commas, or repeats the name."""

    name: str
    where: str
    required: bool
    schema: Mapping[str, Any] = field(repr=False)
    kind: str = ""
    items: str = ""
    joined: bool = False
    about: str = ""

    def typed(self, value: str | list[str]) -> Any:
        """What the text in a request means; a text that means nothing of the kind stays one."""
        if self.kind != "array":
            return value if isinstance(value, list) else _typed(self.kind, value)
        texts = value if isinstance(value, list) else value.split(",") if self.joined else [value]
        return [_typed(self.items, each) for each in texts]


@dataclass(frozen=True, slots=True)
class Operation:
    """`name` is what policies know it by: its operationId, or else the method and the template of its path. `body` is
    the schema of its JSON body or form, None where it has none; `kinds` are the media types that it takes."""

    name: str
    method: str
    template: str
    summary: str
    description: str
    parameters: tuple[Parameter, ...]
    body: Mapping[str, Any] | None = field(repr=False)
    body_required: bool
    kinds: tuple[str, ...]
    has_id: bool = False
    components: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What its schemas refer to."""
    schema: Schema | None = field(default=None, repr=False)
    """What `{"path", "query", "body"}` of a call are held against."""

    spellings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Its arguments as some readers spell them, in no case, and as they are spelled."""

    @property
    def members(self) -> Mapping[str, Any] | None:
        """The properties of a body that is an object with its properties listed; None for any other."""
        properties = self.body.get("properties") if self.body is not None else None
        return properties if isinstance(properties, dict) else None

    @property
    def body_kind(self) -> str:
        """The media type in which arguments become a body: JSON where that is possible."""
        return next((kind for kind in self.kinds if _JSON.fullmatch(kind)), _FORM if _FORM in self.kinds else "")


@dataclass(frozen=True, slots=True)
class Described:
    """An operation, and what the path of one request says for its parameters."""

    operation: Operation
    in_path: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.operation.name

    def typed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The query's texts as what they mean."""
        known = {each.name: each for each in self.operation.parameters if each.where == "query"}
        return {name: known[name].typed(value) if name in known else value for name, value in values.items()}

    def typed_fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A form's texts as what they mean."""
        members = self.operation.members or {}
        typed = {}
        for name, value in values.items():
            kind, items = _kinds(members.get(name, {}))
            typed[name] = Parameter(name, "form", False, {}, kind, items).typed(value)
        return typed

    def joins(self, name: str) -> bool:
        """Whether a list of this name is one text in the query."""
        return any(each.joined and each.name == name for each in self.operation.parameters if each.where == "query")

    def check(self, query: Mapping[str, Any], body: Any, kind: str, size: int) -> None:
        """Refuses what the document does not allow. `kind` is the body's media type, empty for no body; what is no JSON
        and no form is not looked into. `size` is about that of all that is said, in bytes. Raises MalformedCall."""
        operation = self.operation
        for each in operation.parameters:
            if each.required and each.name not in (self.in_path if each.where == "path" else query):
                raise MalformedCall(f"{operation.name} needs the {each.where} parameter `{each.name}`.")
        for name in (*query, *(body if isinstance(body, dict) else ())):
            known = operation.spellings.get(without_case(name), name)
            if known != name and name not in operation.spellings.values():
                raise MalformedCall(f"{operation.name} has `{known}`, which must be spelled so.")
        said: dict[str, Any] = {"path": self.in_path, "query": query}
        if not kind:
            if operation.body_required:
                raise MalformedCall(f"{operation.name} needs a body: {', '.join(operation.kinds)}.")
        elif operation.kinds and not any(_covers(each, kind) for each in operation.kinds):
            raise MalformedCall(f"{operation.name} takes {', '.join(operation.kinds)} as its body, not {kind[:80]}.")
        elif _JSON.fullmatch(kind) or kind == _FORM:
            said["body"] = body
        if operation.schema is not None and (mistakes := operation.schema.mistakes(said, size)):
            raise MalformedCall(f"This is not what {operation.name} takes: {'; '.join(mistakes)}.")


class Operations:
    """The operations of one document."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.all = operations
        self._plain = {(each.method, each.template): each for each in operations if "{" not in each.template}
        self._templates: dict[tuple[str, int], list[tuple[re.Pattern[str], Operation, tuple[Parameter | str, ...]]]]
        self._templates = {}
        for each in sorted((each for each in operations if "{" in each.template), key=_literal_first):
            by_name = {one.name: one for one in each.parameters if one.where == "path"}
            names = tuple(by_name.get(name, name) for name in _PARAMETER.findall(each.template))
            pattern = re.compile(_pattern(each.template))
            self._templates.setdefault((each.method, each.template.count("/")), []).append((pattern, each, names))

    def find(self, method: str, path: str) -> Described | None:
        """The operation that a request is; a template with a literal where another has a parameter goes first."""
        plain = self._plain.get((method, path))
        if plain is not None:
            return Described(plain, {})
        for pattern, operation, parameters in self._templates.get((method, path.count("/")), ()):
            matched = pattern.fullmatch(path)
            if matched is not None:
                said: dict[str, Any] = {}
                for each, text in zip(parameters, matched.groups(), strict=True):
                    if isinstance(each, Parameter):
                        said[each.name] = each.typed(text)
                    else:
                        said[each] = text
                return Described(operation, said)
        return None

    def named(self, name: str) -> Operation | None:
        return next((each for each in self.all if each.name == name), None)


def operations(document: Any) -> Operations:
    """The table of a document that was parsed. Raises UnusableDocument."""
    reading = _Reading(document)
    found = list(reading.operations())
    if reading.mistakes:
        raise UnusableDocument(reading.mistakes)
    return Operations(found)


def pointer(place: Place) -> str:
    """A place as a JSON Pointer."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in place) or "/"


class _Reading:
    """One walk through a document, which goes on past mistakes."""

    def __init__(self, document: Any) -> None:
        self._document = document if isinstance(document, dict) else {}
        self._components = self._section(self._document, "components")
        self._dialect_3_0 = False
        self._converted: dict[str, Any] = {}
        self.mistakes: list[Mistake] = []

    def operations(self) -> Iterator[Operation]:
        version = self._document.get("openapi")
        if not isinstance(version, str | float) or not str(version).startswith(("3.0", "3.1")):
            self._wrong(("openapi",), "is not 3.0 or 3.1: this is no OpenAPI document that can be read")
            return
        self._dialect_3_0 = str(version).startswith("3.0")
        paths = self._document.get("paths")
        if not isinstance(paths, dict) or not paths:
            self._wrong(("paths",), "has no operations")
            return
        ids: dict[str, Place] = {}
        shapes: dict[tuple[str, str], Place] = {}
        for template, item in paths.items():
            at: Place = ("paths", template)
            if str(template).startswith("x-"):
                continue
            if not re.fullmatch(r"(/[^/\\;?#]*)+", template) or re.search("[{}]", _PARAMETER.sub("", template)):
                self._wrong(at, "is not a path: write for example /tickets/{id}")
                continue
            at, item = self._resolved(at, item)
            if not isinstance(item, dict):
                self._wrong(at, "has no operations")
                continue
            for method in METHODS:
                if method not in item:
                    continue
                place = (*at, method)
                operation = self._operation(place, item[method], template, item.get("parameters"), (*at, "parameters"))
                if operation is None:
                    continue
                shape = (method, _PARAMETER.sub("{}", template))
                if shape in shapes:
                    self._wrong(place, f"answers the same requests as {pointer(shapes[shape])}")
                if operation.name in ids:
                    self._wrong((*place, "operationId"), f"is also the name of {pointer(ids[operation.name])}")
                shapes.setdefault(shape, place)
                ids.setdefault(operation.name, place)
                yield operation

    def _operation(self, at: Place, written: Any, template: str, shared: Any, shared_at: Place) -> Operation | None:
        if not isinstance(written, dict):
            self._wrong(at, "is not an operation")
            return None
        method = str(at[-1]).upper()
        name = written.get("operationId")
        if name is not None and (not isinstance(name, str) or not _NAME.fullmatch(name)):
            self._wrong((*at, "operationId"), "is not a name: write 1 to 128 visible ASCII characters")
            return None
        parameters: dict[tuple[str, str], Parameter] = {}
        for place, each in (
            *self._listed(shared, shared_at),
            *self._listed(written.get("parameters"), (*at, "parameters")),
        ):
            found = self._parameter(place, each)
            if found is not None:
                parameters[found.where, found.name] = found
        in_template = _PARAMETER.findall(template)
        for (where, said), _ in parameters.items():
            if where == "path" and said not in in_template:
                self._wrong((*at, "parameters"), f"has the path parameter {said[:40]!r}, which is not in the path")
        if len(set(in_template)) < len(in_template):
            self._wrong(at[:-1], "has a parameter twice")
        body, required, kinds = self._body((*at, "requestBody"), written.get("requestBody"))
        used = tuple(parameters.values())
        text = [value if isinstance(value := written.get(key), str) else "" for key in ("summary", "description")]
        sides: dict[str, Any] = {
            where: {"properties": {each.name: each.schema for each in used if each.where == where}}
            for where in ("path", "query")
        }
        if body is not None:
            sides["body"] = body
        listed = body.get("properties") if body is not None else None
        names = [*(each.name for each in used), *(listed if isinstance(listed, dict) else ())]
        components = self._needed(sides)
        try:
            schema = Schema({"properties": sides, "components": components})
        except UnusableSchema as error:
            self._wrong(at, f"takes what cannot be checked: {error}")
            return None
        return Operation(
            name or f"{method} {template}", method, template, text[0], text[1], used, body, required, kinds,
            name is not None, components, schema, {without_case(each): each for each in names},
        )  # fmt: skip

    def _parameter(self, at: Place, written: Any) -> Parameter | None:
        at, written = self._resolved(at, written)
        if not isinstance(written, dict):
            self._wrong(at, "is not a parameter")
            return None
        name, where = written.get("name"), written.get("in")
        if not isinstance(name, str) or not name or where not in ("path", "query", "header", "cookie"):
            self._wrong(at, "needs a name, and `in`: path, query, header or cookie")
            return None
        if where in ("header", "cookie"):  # no arguments: which headers pass says the configuration
            return None
        content = written.get("content")
        if isinstance(content, dict) or written.get("style") == "deepObject":
            return Parameter(name, where, bool(written.get("required")), {})
        schema = self._schema((*at, "schema"), written.get("schema", {}))
        kind, items = _kinds(self._shallow(schema))
        joined = where == "path" or written.get("explode", written.get("style", "form") == "form") is False
        about = written.get("description")
        required = where == "path" or bool(written.get("required"))
        return Parameter(name, where, required, schema, kind, items, joined, about if isinstance(about, str) else "")

    def _body(self, at: Place, written: Any) -> tuple[Mapping[str, Any] | None, bool, tuple[str, ...]]:
        if written is None:
            return None, False, ()
        at, written = self._resolved(at, written)
        content = written.get("content") if isinstance(written, dict) else None
        if not isinstance(content, dict) or not content:
            self._wrong(at, "has no content")
            return None, False, ()
        kinds = tuple(str(kind).partition(";")[0].strip().lower() for kind in content)
        for kind, media in content.items():
            plain = kind.partition(";")[0].strip().lower()
            if (_JSON.fullmatch(plain) or plain == _FORM) and isinstance(media, dict) and "schema" in media:
                place = (*at, "content", kind, "schema")
                schema = self._schema(place, media["schema"])
                return self._opened(schema), bool(written.get("required")), kinds
        return None, bool(written.get("required")), kinds

    def _resolved(self, at: Place, written: Any) -> tuple[Place, Any]:
        """What stands at the end of a chain of references."""
        for _ in range(8):
            reference = written.get("$ref") if isinstance(written, dict) else None
            if reference is None:
                return at, written
            if not isinstance(reference, str) or not reference.startswith("#/"):
                self._wrong((*at, "$ref"), "refers to another document; put it into this one")
                return at, None
            place: Place = tuple(part.replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/"))
            target: Any = self._document
            for part in place:
                target = target.get(part) if isinstance(target, dict) else None
            if target is None:
                self._wrong((*at, "$ref"), "refers to nothing")
                return at, None
            at, written = place, target
        self._wrong((*at, "$ref"), "refers in a circle")
        return at, None

    def _schema(self, at: Place, written: Any, depth: int = 0) -> dict[str, Any]:
        """A schema as JSON Schema 2020-12 has it; references stay, and what they name is converted once."""
        if written is True or written is None:
            return {}
        if not isinstance(written, dict) or depth > _DEEPEST:
            self._wrong(at, "is not a schema, or nests too deep")
            return {}
        converted: dict[str, Any] = {}
        for key, value in written.items():
            place = (*at, key)
            if key == "$ref":
                self._refer(place, value)
                converted[key] = value
            elif key in ("properties", "patternProperties", "$defs", "dependentSchemas") and isinstance(value, dict):
                converted[key] = {name: self._sub((*place, name), each, depth) for name, each in value.items()}
            elif key in ("allOf", "anyOf", "oneOf", "prefixItems") and isinstance(value, list):
                converted[key] = [self._sub((*place, index), each, depth) for index, each in enumerate(value)]
            elif key in ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"):
                converted[key] = self._sub(place, value, depth)
            elif key in ("$id", "$schema", "$anchor", "$dynamicAnchor", "$dynamicRef"):
                if key == "$dynamicRef":
                    self._wrong(place, "is not supported")
            else:
                converted[key] = value
        return _from_3_0(converted) if self._dialect_3_0 else converted

    def _sub(self, at: Place, written: Any, depth: int) -> Any:
        return written if isinstance(written, bool) else self._schema(at, written, depth + 1)

    def _refer(self, at: Place, reference: Any) -> None:
        if not isinstance(reference, str) or not reference.startswith(_SCHEMAS) or reference.count("/") != 3:
            self._wrong(at, "refers to something else than #/components/schemas/NAME of this document")
            return
        if reference in self._converted:
            return
        section, name = (part.replace("~1", "/").replace("~0", "~") for part in reference.split("/")[2:])
        target = self._section(self._components, section).get(name)
        if target is None:
            self._wrong(at, "refers to nothing")
            return
        self._converted[reference] = {}  # a schema may refer to itself
        self._converted[reference] = self._schema(("components", section, name), target)

    def _opened(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema whose properties can be listed: what a mere reference leads to."""
        return self._shallow(schema) if set(schema) == {"$ref"} else schema

    def _shallow(self, schema: dict[str, Any]) -> dict[str, Any]:
        for _ in range(8):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or reference not in self._converted:
                return schema
            schema = self._converted[reference]
        return schema

    def _needed(self, schema: Any) -> dict[str, Any]:
        """The components that a schema refers to, from one end to the other."""
        needed: set[str] = set()
        waiting = list(_references(schema))
        components: dict[str, dict[str, Any]] = {}
        while waiting:
            reference = waiting.pop()
            if reference in needed or reference not in self._converted:
                continue
            needed.add(reference)
            section, name = (part.replace("~1", "/").replace("~0", "~") for part in reference.split("/")[2:])
            components.setdefault(section, {})[name] = self._converted[reference]
            waiting += _references(self._converted[reference])
        return components

    def _listed(self, written: Any, at: Place) -> list[tuple[Place, Any]]:
        if written is None:
            return []
        if not isinstance(written, list):
            self._wrong(at, "is not a list")
            return []
        return [((*at, index), each) for index, each in enumerate(written)]

    def _section(self, around: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        found = around.get(name)
        return found if isinstance(found, dict) else {}

    def _wrong(self, at: Place, message: str) -> None:
        if len(self.mistakes) < 50:
            self.mistakes.append(Mistake(at, message))


def _from_3_0(schema: dict[str, Any]) -> dict[str, Any]:
    """What 3.0 says in words of its own."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        said = schema.get(exclusive)
        if isinstance(said, bool):
            del schema[exclusive]
            if said and bound in schema:
                schema[exclusive] = schema.pop(bound)
    if schema.pop("nullable", False) is True:
        if isinstance(schema.get("type"), str):
            schema["type"] = [schema["type"], "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
    for unknown in ("example", "discriminator", "xml", "externalDocs"):
        schema.pop(unknown, None)
    return schema


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in ("enum", "const", "default", "examples"):
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _kinds(schema: Any) -> tuple[str, str]:
    """The one type of a schema, and of a list's items; empty for texts, and where there are several."""
    schema = schema if isinstance(schema, dict) else {}
    said = schema.get("type")
    types = (
        [said] if isinstance(said, str) else [each for each in said if each != "null"] if isinstance(said, list) else []
    )
    kind = types[0] if len(types) == 1 and types[0] in ("integer", "number", "boolean", "array") else ""
    return kind, _kinds(schema.get("items"))[0] if kind == "array" else ""


def _typed(kind: str, text: str) -> Any:
    if kind == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "number" and _NUMBER.fullmatch(text):
        return orjson.loads(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def _literal_first(operation: Operation) -> tuple[tuple[int, str], ...]:
    return tuple(
        (2 if _PARAMETER.fullmatch(segment) else 1 if "{" in segment else 0, segment)
        for segment in operation.template.split("/")
    )


def _pattern(template: str) -> str:
    """A template as a regular expression, in which a parameter ends where what follows it begins first. That is tried
    once: paths are for agents to write, and with each parameter that could end elsewhere the tries would multiply."""
    return "/".join(map(_segment, template.split("/")))


def _segment(written: str) -> str:
    first, *others = re.split(r"\{[^{}/]+\}", written)
    if not others:
        return re.escape(first)
    inner = "".join(f"(?>([^/]+?){re.escape(each)})" for each in others[:-1])
    return f"{re.escape(first)}{inner}([^/]+?){re.escape(others[-1])}"


def _covers(wanted: str, kind: str) -> bool:
    return wanted in (kind, "*/*") or (wanted.endswith("/*") and kind.startswith(wanted[:-1]))
