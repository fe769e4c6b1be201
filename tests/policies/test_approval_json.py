"""What the stores write: it is read back equal, and whatever is no such object is not read."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import approval_json
from policies.approval_store import Answer, Message, Standing
from policies.approvals import Approval, HeldCall, State, Vote
from policies.grants import Grant

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
words = st.lists(texts, max_size=3).map(tuple)
times = st.integers(0, 2**63)
headers = st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=6)), max_size=3).map(tuple)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(
    HeldCall,
    tenant=texts,
    agent=texts,
    session=st.none() | texts,
    kind=texts,
    protocol=texts,
    target=texts,
    operation=texts,
    method=texts,
    path=texts,
    query=st.binary(max_size=9),
    headers=headers,
    body=st.binary(max_size=30),
    stream=st.booleans(),
    definition=texts,
    cost=st.none() | st.integers(0),
)
votes = st.lists(st.builds(Vote, texts, st.booleans(), words, times, texts), max_size=3).map(tuple)
approvals = st.builds(
    Approval,
    id=texts,
    version=st.integers(1),
    state=st.sampled_from(State),
    call=calls,
    call_id=texts,
    binding=texts,
    key=texts,
    needs=words,
    requesters=words,
    risk_level=st.none() | texts,
    explanation=texts,
    revision=texts,
    created=times,
    decide_by=times,
    use_within=times,
    use_by=st.none() | times,
    votes=votes,
    changed=times,
    reason=texts,
    instead_of=st.none() | texts,
    became=st.none() | texts,
    claimed_by=st.none() | texts,
    lease_until=st.none() | times,
    told=st.integers(0, 2),
    escalated=words,
)
grants = st.builds(
    Grant,
    id=texts,
    tenant=texts,
    agent=texts,
    session=st.none() | texts,
    protocol=texts,
    target=texts,
    operation=texts,
    where=st.dictionaries(texts, values, max_size=3),
    definition=texts,
    roles=words,
    by=words,
    created=times,
    expires=times,
    max_uses=st.none() | st.integers(0),
    max_cost=st.none() | st.integers(0),
    uses=st.integers(0),
    cost=st.integers(0),
    comment=texts,
)
answers = st.builds(Answer, st.integers(100, 599), headers, st.binary(max_size=30))
messages = st.builds(Message, texts, texts, texts, st.dictionaries(texts, values, max_size=3), times, st.integers(0))
standings = st.builds(Standing, texts, texts, texts, times, st.integers(0))

Forms = tuple[str, Callable[[Any], bytes], Callable[[bytes], Any]]


def forms(name: str) -> Forms:
    return name, getattr(approval_json, f"{name}_to_json"), getattr(approval_json, f"{name}_from_json")


all_kinds = st.one_of(
    *(
        kind.map(lambda value, name=name: (forms(name), value))  # type: ignore[misc]  # a default fixes the name
        for name, kind in {
            "approval": approvals,
            "grant": grants,
            "answer": answers,
            "message": messages,
            "standing": standings,
        }.items()
    )
)


@given(all_kinds)
def test_what_is_written_is_read_back_equal_and_of_the_same_types(written: tuple[Forms, Any]) -> None:
    (_, to_json, from_json), value = written
    again = from_json(to_json(value))
    assert again == value
    assert repr(again) == repr(value)  # tells 1 from 1.0 and from True


@given(all_kinds, st.data())
def test_an_object_with_a_member_more_or_a_needed_one_less_or_of_another_type_is_refused(
    written: tuple[Forms, Any], data: st.DataObject
) -> None:
    (_, to_json, from_json), value = written
    members = json.loads(to_json(value))
    with pytest.raises(ValueError, match="unknown"):
        from_json(json.dumps({**members, "else": 1}).encode())
    name = data.draw(st.sampled_from(sorted(_NEEDED[type(value)])))
    with pytest.raises(ValueError, match="lacking"):
        from_json(json.dumps({key: item for key, item in members.items() if key != name}).encode())
    with pytest.raises(ValueError, match=" is no "):
        from_json(json.dumps({**members, name: 1.5}).encode())


_NEEDED: dict[type, set[str]] = {
    Approval: {"id", "version", "call", "binding", "needs", "created"},
    Grant: {"id", "tenant", "where", "roles", "by", "expires"},
    Answer: {"status", "headers", "body"},
    Message: {"id", "what", "facts", "at"},
    Standing: {"state", "reason", "epoch"},
}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b'{"state":',
        b"[" * 100_000,
        b'{"state":"active","reason":"","by":"","at":true,"epoch":1}',
        b'{"state":"active","reason":"","by":"","at":1.0,"epoch":1}',
        b'{"state":"active","reason":"","by":"","at":NaN,"epoch":1}',
        b'{"state":"active","reason":null,"by":"","at":1,"epoch":1}',
    ],
)
def test_what_is_no_such_object_is_refused(text: bytes) -> None:
    for name in ("approval", "grant", "answer", "message", "standing"):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, stores know only this
            forms(name)[2](text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", "\ud800", 1e400])
def test_values_that_json_does_not_have_are_not_written(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, stores know only this
        approval_json.message_to_json(Message("m", "opened", "apr_1", {"value": value}, 1))


@pytest.mark.parametrize(
    "headers",
    ['[["YQ=="]]', '[["YQ==","YQ==","YQ=="]]', '[["a","YQ=="]]', '[["%","YQ=="]]', "[[1,2]]", '["ab"]', '{"a":"b"}'],
)
def test_headers_that_are_no_pairs_of_bytes_are_refused(headers: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, stores know only this
        approval_json.answer_from_json(f'{{"status":200,"headers":{headers},"body":""}}')


def test_a_number_too_large_to_be_one_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        approval_json.message_from_json('{"id":"m","what":"opened","approval":"apr_1","facts":{"value":1e999},"at":1}')


def test_what_has_its_default_is_left_out_so_that_an_older_gateway_reads_what_it_knows() -> None:
    message = Message("m", "opened", "apr_1", {}, 1)
    assert b"tries" not in approval_json.message_to_json(message)
    assert b'"tries":1' in approval_json.message_to_json(Message("m", "opened", "apr_1", {}, 1, tries=1))
