"""OpenAPI documents: which operation a request is, what it may say, and what is wrong with a document."""

from __future__ import annotations

import time
from typing import Any

import pytest

from adapters.errors import MalformedCall
from adapters.openapi import Described, Operations, UnusableDocument, operations, pointer


def document(paths: dict[str, Any], version: str = "3.1.0", **sections: Any) -> dict[str, Any]:
    return {"openapi": version, "info": {"title": "t", "version": "1"}, "paths": paths, **sections}


def named(*templates: str) -> Operations:
    return operations(document({each: {"get": {"operationId": each}} for each in templates}))


def found(table: Operations, method: str, path: str) -> Described:
    described = table.find(method, path)
    assert described is not None, path
    return described


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/tickets", "/tickets"),
        ("/tickets/mine", "/tickets/mine"),
        ("/tickets/42", "/tickets/{id}"),
        ("/tickets/42/notes", "/tickets/{id}/notes"),
        ("/tickets/mine/notes", "/tickets/mine/{what}"),
        ("/files/a.json", "/files/{name}.json"),
        ("/files/a.txt", "/files/{name}"),
        ("/tickets/", None),
        ("/tickets/42/", None),
        ("/tickets/42/notes/1", None),
        ("/Tickets", None),
    ],
)
def test_a_literal_goes_before_a_parameter_and_nothing_matches_by_half(path: str, template: str | None) -> None:
    table = named(
        "/tickets/{id}", "/tickets/{id}/notes", "/tickets/mine/{what}", "/tickets/mine", "/tickets", "/files/{name}",
        "/files/{name}.json",
    )  # fmt: skip
    described = table.find("GET", path)
    assert (described.name if described is not None else None) == template
    assert table.find("POST", path) is None


def test_an_operation_without_an_id_is_called_by_its_method_and_template() -> None:
    table = operations(document({"/a/{b}": {"get": {}}}))
    described = found(table, "GET", "/a/x y")
    assert (described.name, described.in_path) == ("GET /a/{b}", {"b": "x y"})


def test_parameters_of_a_path_hold_for_all_its_operations_unless_they_say_otherwise() -> None:
    shared = {"name": "b", "in": "path", "required": True, "schema": {"type": "integer"}}
    own = {**shared, "schema": {"type": "string"}}
    table = operations(document({"/a/{b}": {"parameters": [shared], "get": {}, "put": {"parameters": [own]}}}))
    assert found(table, "GET", "/a/5").in_path == {"b": 5}
    assert found(table, "PUT", "/a/5").in_path == {"b": "5"}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("integer", "5", 5), ("integer", "-5", -5), ("integer", "05", "05"), ("integer", "5.0", "5.0"),
        ("integer", "\uff19", "\uff19"), ("integer", "9" * 30, "9" * 30),
        ("number", "5", 5), ("number", "5.50", 5.5), ("number", "1e3", 1000.0),
        ("number", "NaN", "NaN"), ("boolean", "true", True), ("boolean", "True", "True"), ("string", "5", "5"),
        (["integer", "null"], "5", 5), (["integer", "string"], "5", "5"), (None, "5", "5"),
    ],
)  # fmt: skip
def test_a_text_is_what_its_type_makes_of_it_if_there_is_no_other_reading(kind: Any, text: str, value: Any) -> None:
    parameter = {"name": "q", "in": "query", "schema": {"type": kind} if kind else {}}
    table = operations(document({"/a": {"get": {"parameters": [parameter]}}}))
    assert found(table, "GET", "/a").typed({"q": text, "other": "1"}) == {"q": value, "other": "1"}


def check(operation: dict[str, Any], query: Any = None, body: Any = None, kind: str = "", **sections: Any) -> None:
    version = sections.pop("version", "3.1.0")
    described = found(operations(document({"/a": {"post": operation}}, version, **sections)), "POST", "/a")
    described.check(query or {}, body, kind, 100)


def test_what_the_document_wants_has_to_be_there() -> None:
    needs = {"parameters": [{"name": "q", "in": "query", "required": True}]}
    check(needs, {"q": "1"})
    with pytest.raises(MalformedCall, match="needs the query parameter `q`"):
        check(needs)
    with pytest.raises(MalformedCall, match="needs a body: application/json"):
        check({"requestBody": {"required": True, "content": {"application/json": {}}}})
    check({"requestBody": {"content": {"application/json": {}}}})


def test_a_body_is_held_against_its_schema_whatever_that_refers_to() -> None:
    node = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/components/schemas/Node"}},
        },
    }
    shared: dict[str, Any] = {
        "schemas": {"Node": node},
        "requestBodies": {"N": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Node"}}}}},
    }
    operation = {"operationId": "plant", "requestBody": {"$ref": "#/components/requestBodies/N"}}
    check(operation, body={"name": "a", "children": [{"name": "b"}]}, kind="application/json", components=shared)
    with pytest.raises(MalformedCall, match=r"plant takes: at /body/children/0"):
        check(operation, body={"name": "a", "children": [{}]}, kind="application/json", components=shared)


def test_a_body_of_a_kind_that_the_operation_does_not_take_is_refused() -> None:
    takes: dict[str, Any] = {"requestBody": {"content": {"application/json": {}, "image/*": {}}}}
    for kind in ("application/json", "image/png"):
        check(takes, kind=kind)
    with pytest.raises(MalformedCall, match="takes application/json, image/"):
        check(takes, kind="text/xml")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "nullable": True}, None, 5),
        ({"type": "string", "enum": ["a"], "nullable": True}, None, "b"),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, 4, 3),
        ({"type": "integer", "maximum": 3, "exclusiveMaximum": False}, 3, 4),
    ],
)
def test_what_3_0_says_in_words_of_its_own_is_understood(schema: dict[str, Any], good: Any, bad: Any) -> None:
    body = {"type": "object", "properties": {"a": schema}}
    operation = {"requestBody": {"content": {"application/json": {"schema": body}}}}
    check(operation, body={"a": good}, kind="application/json", version="3.0.3")
    with pytest.raises(MalformedCall):
        check(operation, body={"a": bad}, kind="application/json", version="3.0.3")


_BODY = "/paths/~1a/post/requestBody"


def _body(schema: Any) -> dict[str, Any]:
    return {"/a": {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}}


@pytest.mark.parametrize(
    ("written", "place", "message"),
    [
        ({"swagger": "2.0"}, "/openapi", "not 3.0 or 3.1"),
        ([], "/openapi", "not 3.0 or 3.1"),
        (document({}), "/paths", "has no operations"),
        (document({"a": {}}), "/paths/a", "is not a path"),
        (document({"/a/{b": {}}), "/paths/~1a~1{b", "is not a path"),
        (document({"/a": {"get": []}}), "/paths/~1a/get", "is not an operation"),
        (document({"/a": {"get": {"operationId": "a\n"}}}), "/paths/~1a/get/operationId", "is not a name"),
        (
            document({"/a": {"get": {"operationId": "x"}}, "/b": {"get": {"operationId": "x"}}}),
            "/paths/~1b/get/operationId",
            "is also the name of /paths/~1a/get",
        ),
        (document({"/a/{b}": {"get": {}}, "/a/{c}": {"get": {}}}), "/paths/~1a~1{c}/get", "answers the same requests"),
        (document({"/a": {"get": {"parameters": [{"in": "query"}]}}}), "/paths/~1a/get/parameters/0", "needs a name"),
        (
            document({"/a": {"get": {"parameters": [{"name": "b", "in": "path"}]}}}),
            "/paths/~1a/get/parameters",
            "which is not in the path",
        ),
        (
            document({"/a": {"get": {"parameters": [{"$ref": "other.yaml#/b"}]}}}),
            "/paths/~1a/get/parameters/0/$ref",
            "refers to another document",
        ),
        (document({"/a": {"$ref": "#/paths/~1a"}}), "/paths/~1a/$ref", "refers in a circle"),
        (document(_body({"$ref": "http://evil.example/s"})), f"{_BODY}/content/application~1json/schema/$ref", "else"),
        (
            document(_body({"$ref": "#/components/schemas/No"})),
            f"{_BODY}/content/application~1json/schema/$ref",
            "nothing",
        ),
        (document(_body({"type": "strin"})), "/paths/~1a/post", "cannot be checked"),
        (document(_body({"pattern": "("})), "/paths/~1a/post", "cannot be checked"),
        (document(_body(5)), f"{_BODY}/content/application~1json/schema", "is not a schema"),
        (document({"/a": {"post": {"requestBody": {}}}}), _BODY, "has no content"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_document_is_told_with_its_place(written: Any, place: str, message: str) -> None:
    with pytest.raises(UnusableDocument) as caught:
        operations(written)
    assert any(pointer(each.place) == place and message in each.message for each in caught.value.mistakes), str(
        caught.value
    )


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UnusableDocument) as caught:
        operations(document({"a": {}, "/b": {"get": 5}, "/c": {"get": {"operationId": ""}}}))
    assert len(caught.value.mistakes) == 3


def test_no_path_takes_long_to_be_found_in_no_template() -> None:
    table = operations({"openapi": "3.1.0", "paths": {"/t/{x}-{y}-{z}.json": {"get": {"operationId": "tile"}}}})
    found = table.find("GET", "/t/1-2-3-4.json")
    assert found is not None
    assert found.in_path == {"x": "1", "y": "2", "z": "3-4"}
    began = time.process_time()
    assert table.find("GET", "/t/" + "-" * 16_000) is None
    assert time.process_time() - began < 1
