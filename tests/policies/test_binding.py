"""The binding: equal for what is the same call, and for nothing else."""

import dataclasses
import hashlib
import itertools
import json
import random
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from policies.approvals import HeldCall
from policies.binding import DEEPEST, Change, Unbindable, binding, canonical, changes, hold_key

CALL = HeldCall(
    tenant="acme",
    agent="support-bot",
    session="s-1",
    kind="tool",
    protocol="mcp",
    target="crm",
    operation="refund",
    method="POST",
    path="/mcp/crm",
    query=b"",
    headers=((b"content-type", b"application/json"), (b"x-region", b"eu")),
    body=b'{"order": "A-17", "amount": 12}',
    stream=False,
    definition="d1",
    cost=5,
)


def with_body(body: bytes | str, **other: Any) -> HeldCall:
    return dataclasses.replace(CALL, body=body.encode() if isinstance(body, str) else body, **other)


def plain(body: bytes, media_type: bytes | None) -> HeldCall:
    headers = () if media_type is None else ((b"Content-Type", media_type),)
    return with_body(body, protocol="http", headers=headers)


# What is another call

OTHERWISE: dict[str, Any] = {
    "tenant": ["Acme", "acme ", "", "a\u0301cme"],
    "agent": ["support", "support-bot2", ""],
    "kind": ["message"],
    "protocol": ["a2a", "http"],
    "target": ["crm2", "CRM"],
    "operation": ["refund_all", "Refund", ""],
    "method": ["PUT", "post"],
    "path": ["/mcp/crm/", "/mcp/crm%20", "/mcp"],
    "query": [b"dry_run=false", b"?", b"\xff"],
    "headers": [
        (),
        ((b"content-type", b"application/json"),),
        ((b"content-type", b"application/json"), (b"x-region", b"us")),
        ((b"content-type", b"application/json"), (b"x-regio", b"neu")),
        ((b"x-region", b"eu"), (b"content-type", b"application/json")),
        ((b"content-type", b"application/json"), (b"x-region", b"eu"), (b"x-region", b"eu")),
        ((b"content-type", b"application/json"), (b"x-region", b"eu\xff")),
    ],
    "body": [b"", b"{}", b'{"order": "A-17", "amount": 12.0}', b'{"order": "A-17", "amount": 13}', b"[]", b"null"],
    "definition": ["", "d2"],
}
NOT_BOUND = {"session", "stream", "cost", "arguments"}
"""`arguments` are read out of what is bound: path, query, headers and body."""


def test_no_field_of_a_call_is_forgotten() -> None:
    assert {field.name for field in dataclasses.fields(HeldCall)} == OTHERWISE.keys() | NOT_BOUND


def test_any_field_changed_alone_makes_another_binding_and_no_two_changes_the_same() -> None:
    calls = [CALL, *(dataclasses.replace(CALL, **{name: one}) for name, all_ in OTHERWISE.items() for one in all_)]
    assert len({binding(call) for call in calls}) == len(calls)


def test_text_cannot_move_from_one_field_into_the_next() -> None:
    fields = ["tenant", "agent", "kind", "protocol", "target", "operation", "method", "path", "definition"]
    nothing: dict[str, Any] = dict.fromkeys(fields, "")
    moved = [dataclasses.replace(CALL, **{**nothing, name: '","agent":"x'}) for name in fields]
    assert len({binding(call) for call in moved}) == len(fields)


def test_session_cost_and_the_wish_for_a_stream_are_not_what_is_approved() -> None:
    others: list[dict[str, Any]] = [{"session": None}, {"stream": True}, {"cost": None}]
    assert {binding(dataclasses.replace(CALL, **other)) for other in others} == {binding(CALL)}


@pytest.mark.parametrize(
    "line",
    [
        (b"x-stainless-retry-count", b"1"),
        (b"x-stainless-read-timeout", b"20.0"),
        (b"X-Stainless-Retry-Count", b"2"),
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        (b"tracestate", b"a=b"),
        (b"x-request-id", b"42"),
        (b"idempotency-key", b"another at every try"),
        (b"user-agent", b"curl/8"),
    ],
)
def test_what_tells_one_try_from_the_next_is_not_what_is_approved(line: tuple[bytes, bytes]) -> None:
    assert binding(dataclasses.replace(CALL, headers=(line, *CALL.headers))) == binding(CALL)


@pytest.mark.parametrize("name", [b"anthropic-beta", b"anthropic-version", b"openai-beta", b"x-stainles", b"x-other"])
def test_any_other_header_is(name: bytes) -> None:
    headers = [CALL.headers, (*CALL.headers, (name, b"1")), (*CALL.headers, (name, b"2"))]
    assert len({binding(dataclasses.replace(CALL, headers=lines)) for lines in headers}) == len(headers)


def test_identical_calls_of_one_session_are_one_call_and_those_of_two_are_two() -> None:
    sessions = [None, "", "null", "s-1", "s-2"]
    calls = [dataclasses.replace(CALL, session=session) for session in sessions]
    keys = {hold_key(call, binding(call)) for call in calls}
    assert len(keys) == len(sessions)
    assert hold_key(CALL, binding(CALL)) in keys
    assert hold_key(CALL, "another") not in keys


# Bodies: a place in a document, and what stands there

VALUES = [
    *("null", "true", "false", "[]", "{}", "[[]]", "[{}]", '[""]', '{"":[]}', '{"":{}}', '{"":null}', "[null]"),
    *('""', '" "', '"null"', '"true"', '"0"', '"1"', '"1.0"', '"[]"', '"{}"', '"a"', '"A"', '"\u00e9"', '"e\u0301"'),
    *('"\\u0000"', '"\\n"', '"\\\\n"', '"\\""', '"/"', '"~1"', '"\U0001f600"', '"\ufeff"', '"\u202e"', '"\\u007f"'),
    *("0", "-0", "0.0", "-0.0", "0e0", "0e1", "-0e-1", "0.00", "1e-400", "-1e-400", "5e-324", "4e-324"),
    *("1", "-1", "1.0", "1.00", "1e0", "1E0", "1e+0", "1e-0", "1e00", "10e-1", "0.1e1", "1.0e0"),
    *("100", "1e2", "1E2", "1e+2", "1E+2", "1e02", "100.0", "10e1", "1.1", "1.10", "11e-1", "1.1000000000000001"),
    *("0.1", "0.10", "1e-1", "0.1000000000000000055511151231257827", "0.100000000000000005", "0.30000000000000004"),
    *("9007199254740991", "-9007199254740991", "9007199254740991.0", "9007199254740992.0", "9007199254740993.0"),
    *("1e21", "1e+21", "1E21", "1000000000000000000000.0", "1e-7", "0.0000001", "1e-6", "0.000001", "1e308"),
    *("[1]", "[1.0]", "[1,2]", "[2,1]", "[1,[2]]", "[[1],2]", "[[1,2]]", "[12]", '["1"]', "[true]", "[1,2,2]"),
    *('{"a":1}', '{"a":1.0}', '{"a":"1"}', '{"A":1}', '{"a":1,"b":2}', '{"a":2,"b":1}', '{"a":{"b":1}}', '{"a/b":1}'),
    *('{"0":1}', '{"1":0}', '{"a":[1]}', '{"a":{"0":1}}', '{"a":{"0":1.0}}', '{"a":[1.0]}', '{"a":{"/0":1.0}}'),
    *('{"a/b":1.0,"a":{"b":1}}', '{"a/b":1,"a":{"b":1.0}}', '{"a~1b":1.0,"a/b":1}', '{"a~1b":1,"a/b":1.0}'),
    *('{"a~1b":1.0}', '{"a/b":1.0}', '{"numbers":{"/a":"1.0"},"a":1}', '{"bytes":""}', '{"arguments":1}'),
]
"""JSON texts of which no two mean the same, though RFC 8785 writes many of them alike."""

SPELLED = st.sampled_from(VALUES)
keys = st.sampled_from(
    ["a", "b", "0", "1", "", "/", "~", "a/b", "\u00e9", "\ufb33", "\U0001f600", "numbers"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
numbers = st.integers(-(2**53) + 1, 2**53 - 1).map(str) | st.floats(allow_nan=False, allow_infinity=False).map(repr)


class Document:
    """A JSON text as a tree, whose leaves are JSON texts."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def text(self, chance: random.Random | None = None) -> str:
        """The document; with a chance, in any order of keys, with any white space and any escapes."""

        def space() -> str:
            return chance.choice(["", " ", "\n\t", "\r"]) if chance else ""

        def name(key: str) -> str:
            if chance is None or chance.random() < 0.5:
                return json.dumps(key, ensure_ascii=chance is None)
            pairs = key.encode("utf-16-be")
            return '"' + "".join(f"\\u{pairs[at : at + 2].hex()}" for at in range(0, len(pairs), 2)) + '"'

        def written(node: Any) -> str:
            if isinstance(node, dict):
                members = list(node.items())
                if chance:
                    chance.shuffle(members)
                inner = ",".join(f"{space()}{name(key)}{space()}:{written(value)}" for key, value in members)
                return f"{space()}{{{inner}{space()}}}"
            if isinstance(node, list):
                return f"{space()}[{','.join(map(written, node))}{space()}]"
            return f"{space()}{node}{space()}"

        return written(self.tree)

    def places(self) -> list[tuple[Any, ...]]:
        """The path of every leaf and every inner node."""
        found: list[tuple[Any, ...]] = []

        def walk(node: Any, path: tuple[Any, ...]) -> None:
            found.append(path)
            if isinstance(node, dict):
                for key, value in node.items():
                    walk(value, (*path, key))
            elif isinstance(node, list):
                for index, value in enumerate(node):
                    walk(value, (*path, index))

        walk(self.tree, ())
        return found

    def put(self, path: tuple[Any, ...], leaf: str) -> "Document":
        def copied(node: Any, rest: tuple[Any, ...]) -> Any:
            if not rest:
                return leaf
            inner = dict(node) if isinstance(node, dict) else list(node)
            inner[rest[0]] = copied(node[rest[0]], rest[1:])
            return inner

        return Document(copied(self.tree, path))


documents = st.recursive(
    SPELLED | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
).map(Document)


def meaning(text: str) -> Any:
    """What a text says, with numbers as they are spelled."""
    return json.loads(text, parse_int=lambda digits: ("number", digits), parse_float=lambda digits: ("number", digits))


def bound(document: Document) -> str:
    return binding(with_body(document.text()))


def test_no_two_different_values_are_bound_alike_at_the_top() -> None:
    assert len({binding(with_body(value)) for value in VALUES}) == len(VALUES)


@given(documents, st.data())
def test_no_two_different_values_are_bound_alike_at_any_place(document: Document, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(document.places()))
    assert len({bound(document.put(place, value)) for value in VALUES}) == len(VALUES)


@given(documents, SPELLED | numbers, st.data())
def test_a_document_changed_at_any_one_place_is_another_call(
    document: Document, value: str, data: st.DataObject
) -> None:
    changed = document.put(data.draw(st.sampled_from(document.places())), value)
    same = meaning(changed.text()) == meaning(document.text())
    assert (bound(changed) == bound(document)) is same
    assert (changes(document.text().encode(), changed.text().encode()) == []) is same


@given(documents, documents)
def test_two_documents_are_the_same_call_just_when_they_mean_the_same(one: Document, other: Document) -> None:
    same = meaning(one.text()) == meaning(other.text())
    assert (bound(one) == bound(other)) is same
    assert (changes(one.text().encode(), other.text().encode()) == []) is same


@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_keys_white_space_and_escapes_do_not_matter(document: Document, chance: random.Random) -> None:
    otherwise = document.text(chance)
    assert binding(with_body(otherwise)) == bound(document)
    assert changes(document.text().encode(), otherwise.encode()) == []


def test_every_member_lost_moved_or_renamed_makes_another_call() -> None:
    bodies = ['{"a":1,"b":2}', '{"a":1}', '{"b":2}', '{"a":2,"b":1}', '{"a":1,"B":2}', '{"a":1,"b":2,"c":null}']
    assert len({binding(with_body(body)) for body in bodies}) == len(bodies)


# RFC 8785


@given(documents)
def test_what_is_hashed_is_the_canonical_form(document: Document) -> None:
    text = document.text()
    form = canonical(with_body(text))
    parsed = json.loads(form, parse_int=float)
    assert rfc8785.dumps(parsed) == form
    assert parsed["arguments"] == json.loads(text)
    assert binding(with_body(text)) == hashlib.sha256(b"weighbridge-approval/1\n" + form).hexdigest()


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=9,
    )
)
def test_a_document_without_odd_numbers_is_hashed_as_the_canonicaliser_alone_would(value: Any) -> None:
    form = canonical(with_body(json.dumps(value)))
    assert b'"arguments":' + rfc8785.dumps(value) + b"," in form
    assert b'"numbers":{}' in form


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_the_number_samples_of_rfc_8785_come_out_as_its_appendix_b_has_them(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    arguments = canonical(with_body(f"[{float(number)!r}]"))
    assert f'"arguments":[{text}],'.encode() in arguments


def test_keys_are_sorted_as_in_section_3_2_3_of_rfc_8785() -> None:
    body = (
        r'{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",'
        r' "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",'
        r' "\u00f6": "Latin Small Letter O With Diaeresis"}'
    )
    arguments = json.loads(canonical(with_body(body)))["arguments"]
    assert list(arguments.values()) == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


def test_the_binding_is_the_same_in_every_version_that_says_1() -> None:
    assert binding(CALL) == "a16a065a00aa9216cdb4ec28b64559d989b556e3d9441a140bd5e979afb235fe"


# What is no JSON


def test_a_body_that_is_no_json_is_bound_byte_by_byte() -> None:
    bodies = [b"", b" ", b"a=1&b=2", b"b=2&a=1", b"\xff\xfe", b'{"a":1,"b":2}', b'{"b":2,"a":1}', b'{"a":1,"a":2}']
    assert len({binding(plain(body, b"text/plain")) for body in bodies}) == len(bodies)


def test_no_json_is_bound_like_bytes_that_are_none() -> None:
    form = plain(b'{"a":1}', b"application/x-www-form-urlencoded")
    digest = hashlib.sha256(form.body).hexdigest()
    forgeries = [f'{{"bytes":"{digest}"}}', f'"{digest}"', '{"a":1}', f'{{"arguments":{{}},"bytes":"{digest}"}}']
    bindings = {binding(dataclasses.replace(form, body=body.encode(), protocol="mcp")) for body in forgeries}
    assert binding(dataclasses.replace(form, protocol="mcp", body=b"1")) not in bindings
    assert len({binding(form), *bindings}) == len(forgeries) + 1
    assert f'"bytes":"{digest}"'.encode() in canonical(form)
    assert b'"arguments"' not in canonical(form)


@pytest.mark.parametrize(
    "media_type",
    [
        b"application/json",
        b" Application/JSON ",
        b"application/json; charset=utf-8",
        b"application/json;charset=utf-16",
        b"application/problem+json",
        b"text/json",
        b"application/json, text/plain",
    ],
)
def test_a_plain_call_that_says_it_is_json_has_to_be(media_type: bytes) -> None:
    assert binding(plain(b'{"a":1,"b":2}', media_type)) == binding(plain(b'{"b":2,"a":1}', media_type))
    for body in (b"", b'{"a":1,"a":2}', b"{", b"\xff"):
        with pytest.raises(Unbindable):
            binding(plain(body, media_type))


def test_a_plain_call_that_says_json_in_one_of_two_lines_has_to_be() -> None:
    lines = ((b"content-type", b"text/plain"), (b"content-type", b"application/json"))
    with pytest.raises(Unbindable, match="twice"):
        binding(dataclasses.replace(CALL, protocol="http", headers=lines, body=b'{"a":1,"a":2}'))


@pytest.mark.parametrize("media_type", [None, b"", b"text/csv", b"application/x-ndjson", b"application/jsonl", b"json"])
def test_a_plain_call_that_does_not_say_so_need_not_be_json(media_type: bytes | None) -> None:
    assert binding(plain(b'{"a":1,"b":2}', media_type)) != binding(plain(b'{"b":2,"a":1}', media_type))


def test_a_call_without_a_body_can_be_approved() -> None:
    assert binding(with_body(b"", method="GET")) != binding(with_body(b"", method="DELETE"))


# What cannot be approved


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"to":"alice","to":"mallory"}', "the key 'to' twice"),
        (b'{"to":"alice","t\\u006f":"alice"}', "the key 'to' twice"),
        (b'[{"a":{"b":1,"c":2,"b":1}}]', "the key 'b' twice"),
        (b'{"":1,"":1}', "the key '' twice"),
        (b'{"%b":1,"%b":2}' % (b"k" * 99, b"k" * 99), "the key '" + "k" * 40 + "...' twice"),
        (b"NaN", "NaN, which is no JSON"),
        (b'{"a":Infinity}', "Infinity, which is no JSON"),
        (b"[-Infinity]", "-Infinity, which is no JSON"),
        (b"1e309", "no reader can hold the number 1e309"),
        (b"[-1e999]", "no reader can hold"),
        (b"9007199254740992", "the whole number 9007199254740992"),
        (b"-9007199254740992", "send it as a text"),
        (b"9007199254740993", "send it as a text"),
        (b'{"a":[12345678901234567890]}', "send it as a text"),
        (b"1" * 5000, "the whole number " + "1" * 40 + " in"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'["\\udc00\\ud800"]', "half of a surrogate pair"),
        (b'{"\\ud83d":1}', "half of a surrogate pair"),
        (b'{"a":"\xff"}', "no UTF-8"),
        (b'"\xed\xa0\x80"', "no UTF-8"),
        ('{"a":1}'.encode("utf-16"), "no UTF-8"),
        ('{"a":1}'.encode("utf-16-le"), "no JSON"),
        (b"\xef\xbb\xbf{}", "no JSON"),
        (b"[" * 129 + b"]" * 129, "deeper than 128 levels"),
        (b'{"a":' * 129 + b"1" + b"}" * 129, "deeper than 128 levels"),
        (b"[" * 1_000_000, "deeper than 128 levels"),
        (b" ", "no JSON"),
        (b"{", "no JSON"),
        (b"{}{}", "no JSON"),
        (b"{'a':1}", "no JSON"),
        (b'{"a":1,}', "no JSON"),
        (b"[01]", "no JSON"),
        (b"[1.]", "no JSON"),
        (b"[.5]", "no JSON"),
        (b"[+1]", "no JSON"),
        ("[\u0661]".encode(), "no JSON"),
        (b'"\n"', "no JSON"),
        (b'"\\x"', "no JSON"),
        (b"true false", "no JSON"),
    ],
)
def test_a_call_of_which_two_readers_could_differ_cannot_be_approved(body: bytes, why: str) -> None:
    with pytest.raises(Unbindable) as refused:
        binding(with_body(body))
    assert str(refused.value).startswith("Nobody can be asked to approve this call: ")
    assert why in str(refused.value)
    assert len(str(refused.value)) < 200
    for pair in ((body, b"{}"), (b"{}", body)):
        with pytest.raises(Unbindable):
            changes(*pair)


def test_what_nests_as_deep_as_allowed_can_be_approved() -> None:
    assert binding(with_body("[" * DEEPEST + "]" * DEEPEST)) != binding(
        with_body("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))
    )


@pytest.mark.parametrize("name", ["tenant", "agent", "target", "operation", "path", "definition"])
def test_a_name_that_is_no_unicode_cannot_be_approved(name: str) -> None:
    other: dict[str, Any] = {name: "a\ud800"}
    with pytest.raises(Unbindable, match="no Unicode"):
        binding(dataclasses.replace(CALL, **other))


def test_a_session_that_is_no_unicode_cannot_be_held() -> None:
    with pytest.raises(Unbindable, match="session"):
        hold_key(dataclasses.replace(CALL, session="\ud800"), "b")


# What people are shown as different


def test_changes_name_every_place_and_show_numbers_as_they_came() -> None:
    before = (
        b'{"to": "alice", "amount": 1, "tags": ["a", "b", "c"], "deep": {"x/y~z": [1.10]}, "gone": {"a": [1.0, 2]}}'
    )
    after = b'{"amount": 1.0, "to": "mallory", "tags": ["a", "c"], "deep": {"x/y~z": [1.1]}, "new": null}'
    assert changes(before, after) == [
        Change("/to", '"alice"', '"mallory"'),
        Change("/amount", "1", "1.0"),
        Change("/tags/1", '"b"', '"c"'),
        Change("/tags/2", '"c"', None),
        Change("/deep/x~1y~0z/0", "1.10", "1.1"),
        Change("/gone", '{"a": [1.0, 2]}', None),
        Change("/new", None, "null"),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [("[]", "{}"), ("{}", "null"), ("true", "1"), ("false", "0"), ('"1"', "1"), ("-0", "0"), ("null", '"null"')],
)
def test_values_of_two_kinds_differ_as_a_whole(before: str, after: str) -> None:
    assert changes(before.encode(), after.encode()) == [Change("", before, after)]


@given(documents, documents)
def test_changes_are_those_that_make_the_one_into_the_other(one: Document, other: Document) -> None:
    before, after = one.text(), other.text()
    made = meaning(before)
    found = changes(before.encode(), after.encode())
    for change in [*filter(set_, found), *reversed([change for change in found if not set_(change)])]:
        made = put(made, change.pointer, None if change.new is None else (meaning(change.new),))
        assert change.old != change.new
    assert made == meaning(after)


def set_(change: Change) -> bool:
    return change.new is not None


def put(value: Any, pointer: str, new: tuple[Any] | None) -> Any:
    """A value with another one at a place, or with nothing."""
    if not pointer:
        assert new is not None
        return new[0]
    names = [name.replace("~1", "/").replace("~0", "~") for name in pointer[1:].split("/")]
    inner = value
    for name in names[:-1]:
        inner = inner[int(name) if isinstance(inner, list) else name]
    name = names[-1]
    if isinstance(inner, list):
        inner[int(name) : int(name) + 1] = [] if new is None else [new[0]]
    elif new is None:
        del inner[name]
    else:
        inner[name] = new[0]
    return value


def test_every_pair_of_values_differs_in_what_people_are_shown() -> None:
    for one, other in itertools.combinations(VALUES, 2):
        assert changes(one.encode(), other.encode()), (one, other)
