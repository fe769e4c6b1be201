"""What a yes may demand and what it makes of a call: other bytes stay as they are, and in doubt the answer is no."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import registry
from adapters.base import AgentCall
from gateway import obligations, trace
from gateway.exchange import Exchange
from gateway.obligations import Fulfilled, Unfulfilled
from policies.masks import Mask
from policies.obligations import Obligations, read
from tests.support.exchanges import exchange

CHAT: Mapping[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


def call(body: bytes, path: str = "/v1/chat/completions", headers: Mapping[bytes, bytes] | None = None) -> Exchange:
    x = exchange()
    x.adapter = registry.speaking(path, path.startswith("/v1/messages"))
    endpoint, argument = registry.endpoint(x.adapter, "POST", path)
    x.call = x.adapter.read(endpoint, body, argument)
    x.own = dict(headers or {})
    return x


def fulfil(x: Exchange, demanded: Obligations) -> tuple[AgentCall, Fulfilled]:
    return asyncio.run(obligations.fulfil(x, demanded))


def sent(x: Exchange, **obligations: Any) -> bytes:
    """The body after one round of these obligations."""
    return fulfil(x, read(obligations))[0].body


def chat(**more: Any) -> bytes:
    return orjson.dumps({**CHAT, **more})


def done(x: Exchange, obligations: Obligations) -> Fulfilled:
    return fulfil(x, obligations)[1]


@pytest.mark.parametrize(
    ("path", "body", "member", "value"),
    [
        ("/v1/chat/completions", chat(), "max_completion_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens=100), "max_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens=20), "max_tokens", 20),
        ("/v1/chat/completions", chat(max_completion_tokens=51), "max_completion_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens=None), "max_completion_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens=-1), "max_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens="9"), "max_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens=True), "max_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens=1e9), "max_tokens", 50),
        ("/v1/chat/completions", chat(max_tokens=9, n_predict=60), "n_predict", 50),
        ("/v1/chat/completions", chat(max_tokens=9, n_predict=-1), "n_predict", 50),
        ("/v1/chat/completions", chat(n_predict=60), "max_completion_tokens", 50),
        ("/v1/chat/completions", chat(n_predict=9), "max_completion_tokens", 50),
        ("/v1/chat/completions", chat(n_predict=9), "n_predict", 9),
        ("/v1/embeddings", b'{"model":"m","input":"a","n_predict":60}', "n_predict", 60),
        ("/v1/completions", b'{"model":"m","prompt":"a"}', "max_tokens", 50),
        ("/v1/responses", b'{"model":"m","input":"a"}', "max_output_tokens", 50),
        ("/v1/responses", b'{"model":"m","input":"a","max_output_tokens":7}', "max_output_tokens", 7),
        ("/v1/messages", b'{"model":"m","messages":[],"max_tokens":1000}', "max_tokens", 50),
        ("/v1/messages", b'{"model":"m","messages":[]}', "max_tokens", 50),
    ],
)
def test_tokens_are_capped_in_the_calls_own_member_and_never_raised(
    path: str, body: bytes, member: str, value: int
) -> None:
    assert orjson.loads(sent(call(body, path), max_tokens=50))[member] == value


def test_both_members_are_capped_where_a_call_has_both() -> None:
    body = orjson.loads(sent(call(chat(max_tokens=90, max_completion_tokens=60)), max_tokens=50))
    assert (body["max_tokens"], body["max_completion_tokens"]) == (50, 50)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"model":"m","input":"a"}'),
        ("/v1/messages/count_tokens", b'{"model":"m","messages":[]}'),
    ],
)
def test_a_call_that_is_not_answered_in_tokens_is_within_any_cap(path: str, body: bytes) -> None:
    x = call(body, path)
    after, made = fulfil(x, read({"max_tokens": 5}))
    assert after is x.call
    assert made.facts() == {}


def test_what_nobody_demanded_keeps_its_bytes() -> None:
    body = b'{ "model" : "gpt-4o-mini",\n "messages":[ {"role":"user","content":"a\\u0041", "ssn" : 1} ],"x":1.10 }'
    assert sent(call(body), redact=["/arguments/messages/*/ssn"]) == body.replace(b'"ssn" : 1', b'"ssn" : "***"')
    assert sent(call(body), replace={"/arguments/x": {"a": 2}}) == body.replace(b"1.10", b'{"a":2}')


@pytest.mark.parametrize(
    ("pointer", "body", "after"),
    [
        ("/arguments/ssn", {"ssn": "1"}, {"ssn": "***"}),
        ("/arguments/ssn", {"ssn": {"a": [1]}}, {"ssn": "***"}),
        ("/arguments/ssn", {"other": 1}, {"other": 1}),
        ("/arguments/a/b", {"a": {"b": 1, "c": 2}}, {"a": {"b": "***", "c": 2}}),
        ("/arguments/a/1", {"a": [1, [2], 3]}, {"a": [1, "***", 3]}),
        ("/arguments/a/9", {"a": [1]}, {"a": [1]}),
        ("/arguments/a/01", {"a": [1, 2]}, {"a": [1, 2]}),
        ("/arguments/a/*", {"a": [[], {}, ""]}, {"a": ["***"] * 3}),
        ("/arguments/*/s", {"a": {"s": 1}, "b": [{"s": 1}], "c": {"s": 2}}, None),
        ("/arguments/a~1b/~0", {"a/b": {"~": 1}}, {"a/b": {"~": "***"}}),
        ("/arguments/", {"": 1}, {"": "***"}),
        ('/arguments/a"b\\', {'a"b\\': 1}, {'a"b\\': "***"}),
    ],
)
def test_redaction_finds_what_its_pointer_says_and_nothing_else(pointer: str, body: Any, after: Any) -> None:
    if after is None:
        after = {"a": {"s": "***"}, "b": [{"s": 1}], "c": {"s": "***"}}
    assert orjson.loads(sent(call(chat(**body)), redact=[pointer])) == {**CHAT, **after}


@pytest.mark.parametrize(
    ("pointer", "body", "after"),
    [
        ("/arguments/base", {"base": "main"}, {"base": "develop"}),
        ("/arguments/base", {}, {"base": "develop"}),
        ("/arguments/a/base", {"a": {}}, {"a": {"base": "develop"}}),
        ("/arguments/a/*/base", {"a": [{}, {"base": 1}]}, {"a": [{"base": "develop"}] * 2}),
        ("/arguments/a/*/base", {"a": []}, {"a": []}),
        ("/arguments/a/0", {"a": [1, 2]}, {"a": ["develop", 2]}),
        ("/arguments/a/*", {"a": [1, 2]}, {"a": ["develop", "develop"]}),
        ('/arguments/q"q', {}, {'q"q': "develop"}),
    ],
)
def test_a_replacement_is_there_afterwards_whether_or_not_something_was(pointer: str, body: Any, after: Any) -> None:
    assert orjson.loads(sent(call(chat(**body)), replace={pointer: "develop"})) == {**CHAT, **after}


@pytest.mark.parametrize(
    ("obligations", "told"),
    [
        ({"sing": 3}, "`sing`"),
        ({"redact": ["/target"]}, "/arguments"),
        ({"redact": ["/arguments"]}, "/arguments"),
        ({"redact": ["/arguments/messages"]}, "no call of this protocol"),
        ({"replace": {"/arguments/a/b": 1}}, "no such place"),
        ({"replace": {"/arguments/messages/7": 1}}, "no such place"),
        ({"replace": {"/arguments/model/x": 1}}, "no such place"),
        ({"replace": {"/arguments/MODEL": "b"}}, "no call of this protocol"),
        ({"replace": {"/arguments/model": 5}}, "no call of this protocol"),
        ({"headers": {"Authorization": "Bearer x"}}, "authorization"),
        ({"headers": {"x-api-key": "x"}}, "x-api-key"),
        ({"headers": {"connection": "x"}}, "connection"),
        ({"headers": {"Content-Length": "1"}}, "content-length"),
        ({"headers": {"x-weighbridge-call": "1"}}, "x-weighbridge-call"),
        ({"route": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_fulfilled_is_refused_by_name(obligations: dict[str, Any], told: str) -> None:
    with pytest.raises(Unfulfilled, match="`") as caught:
        fulfil(call(chat()), read(obligations))
    assert told in str(caught.value)


def test_the_record_names_what_was_madeand_no_value() -> None:
    x = call(chat(ssn="1-2", base="main"))
    made = done(
        x,
        read(
            {
                "max_tokens": 5,
                "redact": ["/arguments/ssn", "/arguments/absent"],
                "replace": {"/arguments/base": "develop"},
                "headers": {"X-Team": "a team"},
                "sample": True,
            }
        ),
    )
    assert made.facts() == {
        "replace": ["/arguments/base"],
        "redact": ["/arguments/ssn"],
        "max_tokens": ["/arguments/max_completion_tokens"],
        "headers": ["x-team"],
        "sample": True,
    }
    assert "a team" not in repr(made)


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def test_a_sampled_trace_is_the_callers_own_with_its_flag_set() -> None:
    made = done(call(chat(), headers={b"traceparent": PARENT}), read({"sample": True}))
    assert made.headers == [(b"traceparent", PARENT[:-2] + b"01")]


@pytest.mark.parametrize(
    "parent", [b"", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-00", PARENT + b"-x", b"ff" + PARENT[2:]]
)
def test_a_trace_is_begun_where_the_caller_has_none_that_is_valid(parent: bytes) -> None:
    made = done(call(chat(), headers={b"traceparent": parent}), read({"sample": True}))
    begun = trace.read(made.headers[0][1])
    assert begun is not None
    assert begun.flags == 1
    assert begun.header() != parent


names = st.sampled_from(["a", "b", "*", "0", "1", "", 'q"', "~"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
pointers = st.lists(names, min_size=1, max_size=3).map(
    lambda path: "/arguments/" + "/".join(name.replace("~", "~0") for name in path)
)


@given(
    st.dictionaries(names, values, max_size=4),
    st.lists(pointers, max_size=3),
    st.dictionaries(pointers, values, max_size=2),
    st.none() | st.integers(1, 9),
)
def test_one_round_of_edits_leaves_nothing_to_do(
    more: dict[str, Any], redact: list[str], replace: dict[str, Any], most: int | None
) -> None:
    obligations = read({"redact": redact, "replace": replace, **({"max_tokens": most} if most else {})})
    x = call(chat(**more))
    try:
        x.call, x.fulfilled = fulfil(x, obligations)
        after, _ = fulfil(x, obligations)
    except Unfulfilled:
        return
    assert orjson.loads(after.body) == after.arguments
    assert after is x.call


@given(st.dictionaries(names, values, max_size=4), st.lists(pointers, min_size=1, max_size=3))
def test_what_is_redacted_is_gone_wherever_the_masks_of_records_would_find_it(
    more: dict[str, Any], redact: list[str]
) -> None:
    """The ledger's mask is a second reading of the same pointers, over values instead of bytes."""
    arguments = {**CHAT, **more}
    expected: Any = arguments
    for pointer in redact:
        expected, _ = Mask([pointer.removeprefix("/arguments")]).apply(expected)
    try:
        body = sent(call(orjson.dumps(arguments)), redact=redact)
    except Unfulfilled:
        return
    assert orjson.loads(body) == expected


async def test_others_go_on_while_a_large_body_is_edited() -> None:
    x = call(chat(a=[{"s": 1}] * 40_000))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    await obligations.fulfil(x, read({"redact": ["/arguments/a/*/s", "/arguments/a/*/t", "/arguments/b"]}))
    beside.cancel()
    assert turns >= 3
