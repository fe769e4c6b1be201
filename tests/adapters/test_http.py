"""Plain HTTP: what a request says as arguments, and how changed ones get back to where they came from."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, urlencode

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import http
from adapters.base import Headers
from adapters.errors import MalformedCall
from adapters.http import Http, HttpCall
from adapters.openapi import operations

JSON: Headers = [(b"content-type", b"application/json")]
FORM: Headers = [(b"content-type", b"application/x-www-form-urlencoded")]
DOCUMENT = {
    "openapi": "3.1.0",
    "paths": {
        "/tickets/{id}": {
            "patch": {
                "operationId": "changeTicket",
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}},
                    {"name": "limit", "in": "query", "schema": {"type": "integer", "maximum": 10}},
                    {"name": "tag", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {
                        "name": "ids",
                        "in": "query",
                        "explode": False,
                        "schema": {"type": "array", "items": {"type": "integer"}},
                    },
                ],
                "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
            }
        }
    },
}


def read(
    method: str = "POST", path: str = "/v2/tickets", query: bytes = b"", headers: Headers = JSON, body: bytes = b""
) -> HttpCall:
    return http.read("crm", method, path, query, headers, body, free=True)


def described(query: bytes = b"", body: bytes = b"", path: str = "/tickets/42") -> HttpCall:
    found = operations(DOCUMENT).find("PATCH", path)
    return http.read("crm", "PATCH", path, query, JSON, body, found, free=True)


def test_a_request_is_a_call_of_its_tool_with_the_members_of_its_body_as_arguments() -> None:
    body = b'{"title": "hi", "n": 1.0}'
    call = read(body=body)
    assert (call.kind, call.protocol, call.target, call.operation) == ("tool", "http", "crm", "POST /v2/tickets")
    assert call.arguments == {"title": "hi", "n": 1.0}
    assert call.body is call.kept is body


def test_parameters_of_the_query_stand_beside_the_members_of_the_body() -> None:
    call = read(query=b"dry&tag=a&tag=b", body=b'{"n": 1e2}')
    assert call.arguments == {"dry": "", "tag": ["a", "b"], "n": 100.0}
    assert orjson.loads(call.body) == call.arguments
    assert b"1e2" in call.body
    assert call.kept == b'{"n": 1e2}'
    assert call.query == b"dry&tag=a&tag=b"


def test_a_form_is_read_as_arguments_and_sent_as_it_was_read() -> None:
    call = read(headers=FORM, body=b"a=1+2&b=x;c=3&b=y")
    assert call.arguments == {"a": "1 2", "b": ["x;c=3", "y"]}
    assert call.kept == b"a=1%202&b=x%3Bc%3D3&b=y"


def test_json_that_is_no_object_is_one_argument() -> None:
    call = read(body=b" [1, 2.50]")
    assert call.arguments == {"body": [1, 2.5]}
    assert call.body == b'{"body": [1, 2.50]}'
    assert call.kept == b" [1, 2.50]"


def test_of_other_bodies_the_hash_the_length_and_the_type_are_known() -> None:
    call = read(headers=[(b"content-type", b"image/png")], body=b"\x89PNG")
    digest = hashlib.sha256(b"\x89PNG").hexdigest()
    assert call.arguments == {"body": {"sha256": digest, "bytes": 4, "content_type": "image/png"}}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([], b'{"a": 1}'),
        ([(b"content-type", b"text/plain")], b'{"a": 1}'),
        ([(b"content-type", b"text/plain")], b'\xef\xbb\xbf {"a": 1}'),
        ([(b"content-type", b"application/octet-stream")], '{"a": 1}'.encode("utf-16")),
        ([(b"content-type", b"application/json; charset=utf-16")], '{"a": 1}'.encode("utf-16")),
        ([(b"content-type", b"application/json"), (b"content-type", b"text/plain")], b"{}"),
        ([(b"content-type", b"application/json, text/plain")], b"{}"),
        (JSON, b'{"a": 1, "a": 2}'),
        (JSON, b'1, "x": 2'),
        (JSON, b"1} {"),
        (JSON, b"NaN"),
        (JSON, b'{"amount": 1, "Amount": 2}'),
        (FORM, b"a=%ff"),
        ([(b"content-type", b"application/x-www-form-urlencoded; charset=latin-1")], b"a=1"),
    ],
)
def test_a_body_that_somebody_could_read_otherwise_is_refused(headers: Headers, body: bytes) -> None:
    with pytest.raises(MalformedCall):
        read(headers=headers, body=body)


@pytest.mark.parametrize(
    ("query", "body"), [(b"a=1", b'{"a": 2}'), (b"a=1", b'{"a": 1}'), (b"A=1", b'{"a": "1"}'), (b"a=1&A=2", b"")]
)
def test_an_argument_in_two_places_must_be_the_same(query: bytes, body: bytes) -> None:
    with pytest.raises(MalformedCall):
        read(query=query, body=body)
    assert read(query=b"a=1", body=b'{"a": "1"}').arguments == {"a": "1"}


def test_the_parameters_of_a_described_path_are_arguments_too_and_texts_are_what_they_mean() -> None:
    call = described(b"limit=5&tag=x&ids=1,2", b'{"title": "hi"}')
    assert call.operation == "changeTicket"
    assert call.arguments == {"id": 42, "limit": 5, "tag": ["x"], "ids": [1, 2], "title": "hi"}


def test_an_argument_that_contradicts_the_path_is_refused() -> None:
    with pytest.raises(MalformedCall, match="two places"):
        described(body=b'{"id": 43}')


@pytest.mark.parametrize("query", [b"limit=11", b"limit=05", b"limit=x", b"limit=1&limit=2", b"ids=1,x"])
def test_arguments_that_the_document_does_not_allow_are_refused(query: bytes) -> None:
    with pytest.raises(MalformedCall, match="changeTicket"):
        described(query)


def edited(call: HttpCall, **arguments: Any) -> HttpCall:
    wanted = {name: value for name, value in (call.arguments | arguments).items() if value is not ...}
    other = Http().edited(call, orjson.dumps(wanted))
    assert isinstance(other, HttpCall)
    assert other.arguments == wanted
    return other


def test_changed_arguments_go_back_to_where_they_came_from() -> None:
    call = read(query=b"a=1&flag&b=x", body=b'{"n": 1.0, "m": [1e2]}')
    other = edited(call, a="2", n=5)
    assert other.query == b"a=2&flag&b=x"
    assert other.kept == b'{"n":5,"m":[100.0]}'
    assert (other.method, other.path, other.operation) == (call.method, call.path, call.operation)


def test_new_arguments_go_into_the_body_or_else_into_the_query() -> None:
    assert edited(read(body=b"{}"), extra=1).kept == b'{"extra":1}'
    assert edited(read(headers=FORM, body=b"a=1"), extra="x").kept == b"a=1&extra=x"
    assert edited(read("GET", query=b"a=1"), extra="x y").query == b"a=1&extra=x%20y"


def test_arguments_can_be_taken_away() -> None:
    other = edited(read(query=b"a=1&b=2", body=b'{"n":1,"m":2}'), a=..., n=...)
    assert (other.query, other.kept) == (b"b=2", b'{"m":2}')


def test_an_argument_that_stands_in_both_places_changes_in_both() -> None:
    other = edited(read(query=b"a=1", body=b'{"a":"1"}'), a="2")
    assert (other.query, other.kept) == (b"a=2", b'{"a":"2"}')


def test_lists_become_repeated_parameters() -> None:
    assert edited(read("GET", query=b"t=1&u=2&t=3"), t=["x", "y", "z"]).query == b"t=x&t=y&t=z&u=2"
    assert edited(described(b"ids=1,2"), ids=[3, 4]).query == b"ids=3,4"


def test_a_typed_argument_of_the_query_can_be_another_number() -> None:
    assert edited(described(b"limit=5"), limit=7).query == b"limit=7"


def test_json_that_is_no_object_can_be_replaced() -> None:
    assert edited(read(body=b"[1]"), body=[2]).kept == b"[2]"


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        (read("GET", query=b"a=1"), {"a": 2}),
        (read("GET", query=b"a=1"), {"a": None}),
        (read("GET", query=b"a=1"), {"a": {"b": 1}}),
        (read(headers=FORM, body=b"a=1"), {"a": [1]}),
        (read(headers=[(b"content-type", b"image/png")], body=b"\x89PNG"), {"body": "other"}),
        (described(), {"id": 43}),
        (described(b"limit=5"), {"limit": 11}),
    ],
)
def test_an_argument_that_cannot_stand_where_it_came_from_is_refused(call: HttpCall, changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedCall):
        Http().edited(call, orjson.dumps(call.arguments | changes))


def test_a_call_that_nobody_changed_is_the_same_object() -> None:
    call = read(body=b'{"a": 1}')
    assert Http().edited(call, call.body) is call


_NAMES = st.text(st.sampled_from("abAB_é%&=+; []"), min_size=1, max_size=4)
_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=4))


@given(
    st.lists(st.tuples(_NAMES, st.text(max_size=4)), max_size=4),
    st.dictionaries(_NAMES, st.one_of(_VALUES, st.lists(_VALUES, max_size=2)), max_size=4),
    st.sampled_from(["json", "form", "none"]),
)
def test_what_the_policy_sees_is_what_stands_in_the_request(
    query: list[tuple[str, str]], members: dict[str, Any], kind: str
) -> None:
    body = {"json": json.dumps(members), "form": urlencode(members, doseq=True), "none": ""}[kind].encode()
    try:
        call = read(query=urlencode(query).encode(), headers=FORM if kind == "form" else JSON, body=body)
    except MalformedCall:
        return
    said: dict[str, Any] = dict(json.loads(call.kept)) if kind == "json" else {}
    texts = [call.query.decode(), call.kept.decode() if kind == "form" else ""]
    for text in texts:
        for name, values in parse_qs(text, keep_blank_values=True).items():
            said[name] = values if len(values) > 1 else values[0]
    assert call.arguments == said == orjson.loads(call.body)
    again = http.read("crm", call.method, call.path, call.query, call.headers, call.kept, free=True)
    assert (again.arguments, again.query, again.kept) == (call.arguments, call.query, call.kept)


@given(
    st.binary(max_size=40), st.binary(max_size=40), st.sampled_from([JSON, FORM, [(b"content-type", b"text/plain")]])
)
def test_any_bytes_are_a_call_or_refused(query: bytes, body: bytes, headers: Headers) -> None:
    try:
        call = read(query=query, headers=headers, body=body)
    except MalformedCall:
        return
    assert orjson.loads(call.body) == call.arguments


@pytest.mark.parametrize(
    ("query", "headers", "body"),
    [
        (b"amount=1&amount[]=1000", JSON, b""),
        (b"amount[]=1000", JSON, b'{"amount":1}'),
        (b"amount=1", FORM, b"amount[x]=1000"),
        (b"user_id=1&user.id=2", JSON, b""),
        (b"user_id=1&user+id=2", JSON, b""),
        (b"user_id=1&user[id=2", JSON, b""),
        (b"%20amount=1000", JSON, b""),
        (b"user_id=1&User.ID[]=2", JSON, b""),
    ],
)
def test_parameters_that_are_one_to_some_servers_are_refused(query: bytes, headers: Headers, body: bytes) -> None:
    with pytest.raises(MalformedCall):
        read(query=query, headers=headers, body=body)


@pytest.mark.parametrize("query", [b"page[size]=1&page[number]=2", b"a[]=1&a[]=2", b"a.b=1&a.c=2", b"a.b=1&a.b=2"])
def test_names_with_brackets_and_dots_are_names(query: bytes) -> None:
    assert read(query=query).arguments


PART = b'--b\r\ncontent-disposition: form-data; name="_method"\r\n\r\nDELETE\r\n--b--'


@pytest.mark.parametrize(
    ("query", "headers", "body"),
    [
        (b"_method=DELETE", JSON, b""),
        (b"", FORM, b"_METHOD=delete"),
        (b"", JSON, b'{"_method":["DELETE"]}'),
        (b"x-http-method-override=PUT", JSON, b""),
        (b"", [(b"content-type", b"multipart/form-data; boundary=b")], PART),
    ],
)
def test_an_argument_does_not_make_another_method(query: bytes, headers: Headers, body: bytes) -> None:
    with pytest.raises(MalformedCall, match="for the method"):
        read(query=query, headers=headers, body=body)


def test_an_argument_may_say_the_method_that_it_is() -> None:
    assert read(query=b"_method=post").arguments == {"_method": "post"}


@pytest.mark.parametrize(
    "kind", [b"multipart/form-data; boundary=b", b"application/json; charset=utf-8; charset=utf-7"]
)
def test_json_that_says_two_things_of_itself_is_refused(kind: bytes) -> None:
    with pytest.raises(MalformedCall):
        read(headers=[(b"content-type", kind)], body=b'{"amount":1}')


def test_arguments_of_a_document_are_spelled_as_it_spells_them() -> None:
    found = operations(DOCUMENT).find("PATCH", "/tickets/7")
    assert found is not None
    with pytest.raises(MalformedCall, match="`limit`"):
        http.read("crm", "PATCH", "/tickets/7", b"Limit=5000", JSON, b"", found, free=True)
