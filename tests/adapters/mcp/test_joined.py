"""Names of joined servers, what they promise together, and messages between the eras."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.mcp import joined

SERVERS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", fullmatch=True).filter(
    lambda name: "__" not in name and not name.endswith("_")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(server=SERVERS, name=st.text(min_size=1, max_size=100))
def test_a_joined_name_leads_back_to_its_server_and_is_never_too_long(server: str, name: str) -> None:
    shown = joined.outward(server, name)
    assert len(shown) <= joined.LONGEST
    parted = joined.parted(shown)
    assert parted is not None
    assert parted[0] == server
    assert parted[1] == name or joined.is_shortened(shown)


@given(
    one=st.tuples(SERVERS, st.text(min_size=1, max_size=80)), two=st.tuples(SERVERS, st.text(min_size=1, max_size=80))
)
def test_two_names_are_never_shown_as_one(one: tuple[str, str], two: tuple[str, str]) -> None:
    assert one == two or joined.outward(*one) != joined.outward(*two)


@pytest.mark.parametrize("name", ["echo", "__echo", "server__", "", "server_echo"])
def test_what_has_no_server_before_it_is_no_joined_name(name: str) -> None:
    assert joined.parted(name) is None


@pytest.mark.parametrize(
    ("capabilities", "missing", "together"),
    [
        ([], False, {}),
        ([], True, {"tools": {}, "resources": {}, "prompts": {}}),
        ([{"tools": {"listChanged": True}}, {"prompts": {}}], False, {"tools": {"listChanged": True}, "prompts": {}}),
        (
            [{"tools": {"listChanged": True}}, {"tools": {"listChanged": False}, "logging": {}}],
            False,
            {"tools": {}, "logging": {}},
        ),
        (
            [{"resources": {"subscribe": True, "listChanged": True}}, {"resources": {"subscribe": True}}],
            False,
            {"resources": {"subscribe": True}},
        ),
        ([{"tasks": {}, "experimental": {"x": {}}}], False, {}),
    ],
)
def test_a_kind_is_offered_if_one_has_it_and_promised_what_all_promise(
    capabilities: list[dict[str, Any]], missing: bool, together: dict[str, Any]
) -> None:
    assert joined.offers(capabilities, missing=missing, modern=False) == together


@given(params=st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3), token=st.none() | st.integers(0, 99))
def test_a_request_survives_the_way_to_the_other_era_and_back(params: dict[str, Any] | None, token: int | None) -> None:
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": "tools/call"}
    if params is not None:
        message["params"] = {key: value for key, value in params.items() if key != "_meta"}
        if token is not None:
            message["params"]["_meta"] = {"progressToken": token}
    there = joined.to_modern(orjson.dumps(message), {"sampling": {}})
    meta = orjson.loads(there)["params"]["_meta"]
    assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    assert meta["io.modelcontextprotocol/clientCapabilities"] == {"sampling": {}}
    back = orjson.loads(joined.to_legacy(there))
    left = back["params"].pop("_meta")
    assert left == (message.get("params", {}).pop("_meta", {}))
    assert back["params"] == message.get("params", {})


@given(result=st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_an_answer_of_the_other_era_says_whether_it_is_complete(result: dict[str, Any]) -> None:
    result.pop("resultType", None)
    message = {"jsonrpc": "2.0", "id": "x", "result": result}
    modern = joined.from_legacy(orjson.dumps(message))
    assert orjson.loads(modern)["result"] == {**result, "resultType": "complete"}
    assert orjson.loads(joined.from_modern(modern)) == message


@pytest.mark.parametrize("kind", ["input_required", "task", None, {}])
def test_a_legacy_server_has_no_other_kind_of_result(kind: object) -> None:
    asks = {"resultType": kind, "inputRequests": {"a": {"method": "elicitation/create", "params": {}}}}
    modern = joined.from_legacy(orjson.dumps({"jsonrpc": "2.0", "id": "x", "result": asks}))
    assert orjson.loads(modern)["result"]["resultType"] == "complete"


def test_what_a_legacy_client_could_not_answer_is_an_error_for_it() -> None:
    asked = {"jsonrpc": "2.0", "id": "x", "result": {"resultType": "input_required", "inputRequests": {}}}
    told = orjson.loads(joined.from_modern(orjson.dumps(asked)))
    assert told["id"] == "x"
    assert told["error"]["code"] == -32603


@pytest.mark.parametrize("identity", [5, "five", "a:b", "\u00e9"])
def test_a_question_comes_back_to_the_server_that_has_asked_it(identity: object) -> None:
    asked = joined.question("git.hub", orjson.dumps({"jsonrpc": "2.0", "id": identity, "method": "ping"}))
    said = {"jsonrpc": "2.0", "id": orjson.loads(asked)["id"], "result": {}}
    found = joined.answer(orjson.dumps(said))
    assert found is not None
    server, message = found
    assert server == "git.hub"
    assert orjson.loads(message) == {"jsonrpc": "2.0", "id": identity, "result": {}}


@pytest.mark.parametrize("identity", [5, "x", "server:", 'server:{"a":1}', "server:[1]", "server:oops"])
def test_an_answer_to_nothing_that_was_asked_is_nobodys(identity: object) -> None:
    assert joined.answer(orjson.dumps({"jsonrpc": "2.0", "id": identity, "result": {}})) is None


@pytest.mark.parametrize(
    ("template", "uri", "characters"),
    [
        ("memo://{name}", "memo://today", 7),
        ("memo://{name}", "memos://today", -1),
        ("memo://{name}/text", "memo://today/text", 12),
        ("memo://{name}/text", "memo://today/sound", -1),
        ("memo://{a}/of/{b}", "memo://x/of/y", 11),
        ("memo://{a}/of/{b}", "memo://x/by/y", -1),
        ("memo://fixed", "memo://fixed", 12),
        ("{+any}", "whatever", 0),
        ("ab{x}ba", "aba", -1),
    ],
)
def test_a_template_is_as_like_a_uri_as_it_has_characters_in_it(template: str, uri: str, characters: int) -> None:
    assert joined.likeness(template, uri) == characters


def test_a_template_of_many_expressions_is_looked_at_once() -> None:
    assert joined.likeness("{a}" * 20_000 + "b", "a" * 20_000) == -1
