"""The admin API as it describes itself: OpenAPI 3.1 of the table of operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.admin.operation import Operation, Problem, View


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for each in (*(view for operation in operations for view in (operation.answer, operation.takes)), Problem):
        if each is not None:
            schema = each.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[each.__name__] = schema
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _description(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Weighbridge admin API", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _description(operation: Operation) -> dict[str, Any]:
    forms = dict(_content("application/json", operation.answer))
    if operation.also is not None:
        forms.update(_content(operation.also, None))
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": {"description": "OK", "content": forms},
            "default": {"description": "A problem", "content": _content("application/problem+json", Problem)},
        },
        "security": [] if operation.open else [{"token": [operation.role] if operation.role is not None else []}],
    }
    if operation.role is not None:
        described["description"] = f"Needs the role `{operation.role}`."
    parameters = [
        {"name": part.strip("{}"), "in": "path", "required": True, "schema": {"type": "string"}}
        for part in operation.path.split("/")
        if part.startswith("{")
    ]
    parameters += [
        {"name": each.name, "in": "query", "description": each.summary, "schema": {"type": "string"}}
        for each in operation.query
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.takes is not None:
        described["requestBody"] = {"required": True, "content": _content("application/json", operation.takes)}
    return described


def _content(media: str, view: type[View] | None) -> Mapping[str, Any]:
    return {media: {"schema": {"$ref": f"#/components/schemas/{view.__name__}"} if view else {}}}
