"""Pages of lists, with all items and with fewer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.mcp.lists import KINDS, LONGEST_TTL, UnreadableList, read


def page(**result: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": "a", "result": {"_meta": {"x": 1}, **result}})


@pytest.mark.parametrize("method", KINDS)
def test_the_same_page_with_fewer_items_keeps_all_else(method: str) -> None:
    kind = KINDS[method]
    items = [{kind.key: each, "description": each} for each in ("a", "b", "c")]
    listed = read(method, page(**{kind.member: items, "nextCursor": "n"}))
    assert listed is not None
    assert [listed.name(each) for each in listed.items] == ["a", "b", "c"]
    told = orjson.loads(listed.shown([items[1]], modern=False))
    assert told == {
        "jsonrpc": "2.0", "id": "a", "result": {"_meta": {"x": 1}, kind.member: [items[1]], "nextCursor": "n"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "modern", "ttl", "scope"),
    [
        ({"ttlMs": 10**9, "cacheScope": "public"}, True, LONGEST_TTL, "private"),
        ({"ttlMs": 5}, True, 5, "private"),
        ({}, True, 0, "private"),
        ({"ttlMs": -1}, True, 0, "private"),
        ({"ttlMs": "long"}, True, 0, "private"),
        ({"ttlMs": 10**9, "cacheScope": "public"}, False, LONGEST_TTL, "private"),
        ({}, False, None, None),
    ],
)
def test_it_is_private_and_not_kept_for_long(given: dict[str, Any], modern: bool, ttl: object, scope: object) -> None:
    listed = read("tools/list", page(tools=[], **given))
    assert listed is not None
    result = orjson.loads(listed.shown([], modern=modern))["result"]
    assert (result.get("ttlMs"), result.get("cacheScope")) == (ttl, scope)


def test_items_without_a_name_are_left_out() -> None:
    listed = read("tools/list", page(tools=[1, None, {}, {"name": 1}, {"name": "a"}]))
    assert listed is not None
    assert [each["name"] for each in listed.items] == ["a"]


def test_an_error_is_no_page() -> None:
    assert read("tools/list", b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}') is None


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", page(), page(tools={}), b'{"result":[]}', b'{"result":7}'])
def test_what_is_no_list_is_told_to_be_none(answer: bytes) -> None:
    with pytest.raises(UnreadableList):
        read("tools/list", answer)
