"""Operations of an OpenAPI document as tools: what they take, and the request that a call of one becomes."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from adapters.errors import MalformedCall
from adapters.mcp import offered
from adapters.mcp.offered import Request
from adapters.openapi import Operation, operations

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}


def operation(method: str = "post", template: str = "/a/{id}", **written: Any) -> Operation:
    found = {"operationId": "doIt", **written}
    (made,) = operations({"openapi": "3.1.0", "paths": {template: {method: found}}}).all
    return made


def body(schema: Any, kind: str = "application/json", *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {kind: {"schema": schema}}}


TITLED = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}, "n": {"type": "number"}}}


def test_parameters_and_members_of_the_body_are_arguments_side_by_side() -> None:
    made = operation(
        summary="Do it",
        description="Does it.",
        parameters=[_ID, {"name": "dry", "in": "query", "description": "Only look.", "schema": {"type": "boolean"}}],
        requestBody=body(TITLED),
    )
    tool = offered.definition(made)
    assert (tool["name"], tool["title"], tool["description"]) == ("doIt", "Do it", "Does it.")
    assert tool["inputSchema"] == {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "dry": {"type": "boolean", "description": "Only look."},
            "title": {"type": "string"},
            "n": {"type": "number"},
        },
        "required": ["id", "title"],
    }
    assert tool["annotations"]["readOnlyHint"] is False
    assert offered.request(made, {"id": 7, "dry": True, "title": "hi", "n": 1.5}) == Request(
        "POST", "/a/7", b"dry=true", b"application/json", b'{"title":"hi","n":1.5}'
    )


@pytest.mark.parametrize(
    "schema", [{"type": "array", "items": {"type": "string"}}, {"type": "object", "properties": {"id": {}}}]
)
def test_a_body_whose_members_are_not_listed_or_not_its_own_is_one_argument(schema: dict[str, Any]) -> None:
    made = operation(parameters=[_ID], requestBody=body(schema))
    properties = offered.definition(made)["inputSchema"]["properties"]
    assert properties == {"id": {"type": "integer"}, "body": schema}
    assert offered.request(made, {"id": 7, "body": ["x"]}).body == b'["x"]'


def test_forms_lists_and_joined_lists_are_written_as_the_document_says() -> None:
    several = {"type": "array", "items": {"type": "string"}}
    made = operation(
        parameters=[
            {"name": "tag", "in": "query", "schema": several},
            {"name": "ids", "in": "query", "explode": False, "schema": several},
        ],
        requestBody=body(
            {"type": "object", "properties": {"a": {}, "b": several}}, "application/x-www-form-urlencoded"
        ),
    )
    made_of = offered.request(made, {"id": "x y", "tag": ["a", "b"], "ids": ["1", "2"], "a": 1, "b": ["&", "="]})
    assert (made_of.path, made_of.query, made_of.body) == ("/a/x y", b"tag=a&tag=b&ids=1,2", b"a=1&b=%26&b=%3D")


def test_what_refers_to_components_brings_them_along() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}}
    (made,) = operations(
        {
            "openapi": "3.1.0",
            "paths": {"/a": {"post": {"operationId": "x", "requestBody": body({"$ref": "#/components/schemas/Node"})}}},
            "components": {"schemas": {"Node": node, "Other": {}}},
        }
    ).all
    schema = offered.definition(made)["inputSchema"]
    assert schema["components"] == {"schemas": {"Node": node}}
    assert schema["properties"] == node["properties"]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"id": ""}, {"id": "a/b"}, {"id": None}, {"id": {"a": 1}}, {"id": 1, "other": 2}, {"id": 1, "body": 2}],
)
def test_arguments_that_no_request_can_have_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(MalformedCall):
        offered.request(operation("get", parameters=[_ID]), arguments)


def test_a_value_of_the_path_that_looks_like_another_parameter_stays_a_value() -> None:
    made = operation("get", "/a/{id}/{b}")
    assert offered.request(made, {"id": "{b}", "b": "x"}).path == "/a/{b}/x"


@pytest.mark.parametrize(
    ("written", "fits"),
    [
        ({}, True),
        ({"operationId": "has space"}, False),
        ({"requestBody": body({}, "multipart/form-data")}, False),
        ({"requestBody": body({}, "multipart/form-data", required=False)}, True),
    ],
)
def test_only_what_json_arguments_can_call_is_offered(written: dict[str, Any], fits: bool) -> None:
    assert offered.offered(operation(**written)) == fits


@pytest.mark.parametrize(
    ("status", "kind", "said", "result"),
    [
        (
            200,
            "application/json",
            b'{"a":1}',
            {"content": [{"type": "text", "text": '{"a":1}'}], "isError": False, "structuredContent": {"a": 1}},
        ),
        (200, "application/json", b"[1]", {"content": [{"type": "text", "text": "[1]"}], "isError": False}),
        (200, "text/plain", b"hi", {"content": [{"type": "text", "text": "hi"}], "isError": False}),
        (204, "", b"", {"content": [{"type": "text", "text": "HTTP 204"}], "isError": False}),
        (404, "text/plain", b"none", {"content": [{"type": "text", "text": "HTTP 404\nnone"}], "isError": True}),
        (302, "", b"", {"content": [{"type": "text", "text": "HTTP 302"}], "isError": True}),
        (
            200,
            "image/png",
            b"\x89P",
            {
                "content": [{"type": "image", "data": base64.b64encode(b"\x89P").decode(), "mimeType": "image/png"}],
                "isError": False,
            },
        ),
        (
            200,
            "application/pdf",
            b"\xff\xfe\xfd",
            {
                "content": [{"type": "text", "text": "3 bytes of application/pdf, which are no text"}],
                "isError": False,
            },
        ),
    ],
)
def test_an_answer_becomes_a_result(status: int, kind: str, said: bytes, result: dict[str, Any]) -> None:
    assert offered.result(status, kind, said) == result
