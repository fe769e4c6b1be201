"""`adapters.body`: bodies are read strictly, and changed without touching a byte that nobody meant to change."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.body import HEAVIEST, balance, check_spelling, find, parse, put_first, replace, weight
from adapters.errors import MalformedCall

KEYS = ("model", "stream_options", "include_usage")

texts = st.text(alphabet=st.sampled_from('ab"\\{}[],: \n\u00e9\U0001f600') | st.characters(exclude_categories=["Cs"]))
keys = st.sampled_from([*KEYS, "models", 'x"model', '"model"', '{"model":', "mod\\u0065l", ""]) | texts
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | texts | st.sampled_from(['"model":1', "\\", '\\"', '"model": {"model":"']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(keys, values, max_size=6)
spaces = st.text(alphabet=" \t\r\n", max_size=3)


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A random JSON object as some strange but honest writer would write it."""

    def space() -> str:
        return draw(spaces)

    def string(text: str) -> str:
        style = draw(st.integers(0, 2))
        if style == 2:
            units = text.encode("utf-16-be")
            return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)) + '"'
        return json.dumps(text, ensure_ascii=style == 0)

    def write(value: Any) -> str:
        match value:
            case dict():
                members = [f"{space()}{string(k)}{space()}:{space()}{write(v)}{space()}" for k, v in value.items()]
                return "{" + (",".join(members) or space()) + "}"
            case list():
                return "[" + (",".join(space() + write(item) + space() for item in value) or space()) + "]"
            case str():
                return string(value)
            case _:
                return json.dumps(value)

    return (space() + write(draw(objects)) + space()).encode()


@given(written(), st.sampled_from(KEYS), st.sampled_from([b'"x"', b"true", b'{"include_usage":true}']))
def test_a_replaced_member_is_the_only_thing_that_changes(body: bytes, key: str, value: bytes) -> None:
    before = json.loads(body)
    after = replace(body, key, value)
    assert json.loads(after) == before | {key: json.loads(value)}
    span = find(body, key)
    if span is None:
        assert key not in before
        opening = body.index(b"{") + 1
        assert after[:opening] == body[:opening]
        assert after.endswith(body[opening:])
    else:
        start, end = span
        assert json.loads(body[start:end]) == before[key]
        assert after == body[:start] + value + body[end:]


@given(written(), st.sampled_from(KEYS), st.booleans())
def test_a_member_of_a_long_body_is_found_wherever_it_stands(body: bytes, key: str, before: bool) -> None:
    """Long bodies are searched from their end first; what is found there must be the same member."""
    long = b'"padding":[{"model":"%s"},{}]' % (b'\\"model\\":' * 500)
    opening, closing = body.index(b"{") + 1, body.rindex(b"}")
    inner = body[opening:closing]
    comma = b"," if inner.strip() else b""
    body = b"{" + (long + comma + inner if before else inner + comma + long) + b"}"
    value = json.loads(body)
    span = find(body, key)
    assert (span is not None) == (key in value)
    if span is not None:
        assert json.loads(body[span[0] : span[1]]) == value[key]


@pytest.mark.parametrize(
    "last", [{'x"model': 1}, {"x": {"model": 1}}, {"x": [{"model": 1}]}, {"x": '"model":1'}, {"x": "model", "y": 1}]
)
def test_what_only_looks_like_a_member_near_the_end_of_a_long_body_is_none(last: dict[str, Any]) -> None:
    long = {"padding": "x" * 5000}
    assert find(json.dumps(long | last).encode(), "model") is None
    body = json.dumps({"model": "m"} | long | last).encode()
    assert replace(body, "model", b'"l"') == body.replace(b'"m"', b'"l"', 1)


@pytest.mark.parametrize("key", ['a":1,"b', "a\\", "ä", ""])
def test_a_key_that_looks_like_more_than_one_is_itself_alone(key: str) -> None:
    long = {"padding": "x" * 5000, "a": 1, "b": 2}
    body = json.dumps(long, separators=(",", ":")).encode()
    assert find(body, key) is None
    assert json.loads(replace(body, key, b"3")) == long | {key: 3}
    assert json.loads(replace(replace(body, key, b"3"), key, b"4")) == long | {key: 4}


@given(written())
def test_an_honest_body_is_read_as_the_standard_reader_reads_it(body: bytes) -> None:
    assert parse(body) == json.loads(body)


@given(written())
def test_a_whole_object_opens_as_many_brackets_as_it_closes(body: bytes) -> None:
    assert balance(body) == 0
    assert balance(body[body.index(b"{") + 1 :]) == -1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a":1,"a":1}', "the key 'a' is given twice"),
        (b'{"x":[{"deep":{"a":1,"\\u0061":2}}]}', "the key 'a' is given twice"),
        (b'{"model":"cheap","mod\\u0065l":"dear"}', "the key 'model' is given twice"),
        (b'{"a":NaN}', "line 1"),
        (b'{"a":[-Infinity]}', "line 1"),
        (b'{"a":Infinity}', "line 1"),
        (b'{"a":"\\ud800"}', "hex escape"),
        (b'{"a":"\\ud800\\u0041"}', "surrogate"),
        (b'{"a":"\\udc00"}', "surrogate"),
        (b'{"\\udfff":1}', "surrogate"),
        (b'{"a":"\xed\xa0\x80"}', "unicode"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
        (b'{"a":"\xff"}', "unicode"),
        ('{"a":1}'.encode("utf-16"), "line 1 column 1"),
        (b"{} {}", "trailing"),
        (b"{}x", "trailing"),
        (b"{}\x00", "trailing"),
        (b'{"a":1,}', "trailing comma"),
        (b'{"a":01}', "number"),
        (b'{"a":"\n"}', "control character"),
        (b"{'a':1}", "key"),
        (b"", "EOF"),
        (b" \n", "EOF"),
        (b'{"a":', "EOF"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion limit"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "recursion limit"),
        (b'{"a":' + b"9" * 100_000 + b"}", "number out of range"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"1", "must be a JSON object"),
    ],
)
def test_a_body_that_two_readers_could_read_differently_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(MalformedCall) as refused:
        parse(body)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 220


@pytest.mark.parametrize("secret", ["sk-secret" * 1000, "\n\x1b[31mERROR forged line", "\u202eevil"])
def test_a_refusal_shows_at_most_an_excerpt_of_the_body_on_one_printable_line(secret: str) -> None:
    body = json.dumps({"a": 1})[:-1] + "," + ",".join([json.dumps(secret) + ":1"] * 2) + "}"
    with pytest.raises(MalformedCall) as refused:
        parse(body.encode())
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 220
    assert len(secret) < 100 or secret[:60] not in message


def weighed(value: Any) -> int:
    """The weight of a value beside its own 1, from the value itself instead of its text."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    keys = 3 * len(value) if isinstance(value, dict) else 0
    return keys + sum(1 + weighed(item) for item in inner) + (not value)


@given(written())
def test_a_body_weighs_what_its_keys_and_values_do(body: bytes) -> None:
    assert weight(body) == weighed(json.loads(body))


def containing(value: bytes) -> bytes:
    return b'{"model":"m","messages":[' + value + b"]}"


LARGE = 30 * 2**20


@pytest.mark.parametrize(
    "value",
    [
        b",".join([b"[" * 100 + b"]" * 100] * 150_000),
        b"{" + b",".join(b'"%d":1' % number for number in range(2_600_000)) + b"}",
        b"1," * (LARGE // 2) + b"1",
        b'"",' * (LARGE // 3) + b"1",
        b'"' + b'\\\\\\",' * (LARGE // 10) + b'",' + b'"",' * (LARGE // 5) + b"1",
        b"[],{}," * (LARGE // 6) + b"1",
        b'{"a":{"b":1}},' * (LARGE // 14) + b"1",
        b"," * LARGE,
        b'"' + b'",' * (LARGE // 2),
    ],
    ids=["brackets", "keys", "numbers", "strings", "escapes", "nothing", "objects", "no JSON", "torn"],
)
def test_a_body_of_countless_values_is_refused_before_it_is_read(value: bytes) -> None:
    body = containing(value)
    began = time.process_time()
    with pytest.raises(MalformedCall, match="too many JSON keys and values: more than 320000"):
        parse(body)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("value", "count"), [(b"1", HEAVIEST), (b"[1]", HEAVIEST // 2), (b"[]", HEAVIEST // 2), (b'{"a":1}', HEAVIEST // 5)]
)
def test_no_body_is_so_dense_that_its_weight_goes_unnoticed(value: bytes, count: int) -> None:
    parse(containing(b",".join([value] * (count - 10))))
    with pytest.raises(MalformedCall, match="too many"):
        parse(containing(b",".join([value] * count)))


@pytest.mark.parametrize("text", ["So, he said: {yes}, [no]; ", '{"key": [1, 2, "\\\\"]},\n'])
def test_a_long_text_is_read_however_much_it_looks_like_json(text: str) -> None:
    content = text * (LARGE * 4 // 5 // len(text))
    body = containing(json.dumps(content).encode())
    assert len(body) > LARGE * 3 // 4
    assert parse(body)["messages"] == [content]


def test_the_longest_list_of_tokens_that_can_be_embedded_is_read() -> None:
    tokens = [list(range(146)) for _ in range(2048)]
    assert parse(json.dumps({"model": "m", "input": tokens}).encode())["input"] == tokens


MEMBERS = frozenset(["model", "messages", "input", "max_tokens"])


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["model", "Model"], "The key 'Model' must be spelled 'model'"),
        (["MODEL"], "The key 'MODEL' must be spelled 'model'"),
        (["Max_Tokens"], "must be spelled 'max_tokens'"),
        (["me\u017fsages"], "must be spelled 'messages'"),
        (["max_to\u212aens"], "must be spelled 'max_tokens'"),
        (["\u0131nput"], "must be spelled 'input'"),
        (["\u0130nput"], "must be spelled 'input'"),
        (["model", "extension", "Extension"], "The keys 'Extension' and 'extension' differ only in letter case"),
        (["x" * 1000, "X" * 1000], "differ only in letter case"),
        (["\u00e9\u202e", "\u00c9\u202e"], "differ only in letter case"),
    ],
)
def test_keys_that_some_reader_takes_for_one_are_refused(keys: list[str], reason: str) -> None:
    with pytest.raises(MalformedCall) as refused:
        check_spelling(dict.fromkeys(keys), MEMBERS)
    message = str(refused.value)
    assert reason in message
    assert message.isprintable()
    assert len(message) < 220


@pytest.mark.parametrize(
    "keys", [[], ["model", "max_tokens"], ["model", "Extension"], ["models", "\u00e9", "", "max-tokens", "1"]]
)
def test_keys_that_nobody_takes_for_another_pass(keys: list[str]) -> None:
    check_spelling(dict.fromkeys(keys), MEMBERS)


def test_a_new_first_member_takes_a_comma_only_where_others_follow() -> None:
    assert put_first(b" { }", "a", b"1") == b' {"a":1 }'
    assert put_first(b'{\n"b":2}', "a", b"1") == b'{"a":1,\n"b":2}'


@pytest.mark.parametrize(
    "text", [b'"a' * 50_000, b'\\"' * 50_000, b'"' + b'\\"' * 50_000, b" " * 100_000, b"[" * 100_000]
)
def test_brackets_are_balanced_in_a_time_that_no_text_can_stretch(text: bytes) -> None:
    began = time.process_time()
    assert balance(text) in (0, 100_000)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("first", [True, False])
def test_renaming_the_model_of_a_long_body_costs_far_less_than_reading_it(first: bool) -> None:
    """The bound is loose for busy machines; where the model stands first or last it takes tens of microseconds."""
    messages = {"messages": [{"role": "user", "content": 'so "much" text\n' * 12} for _ in range(900)]}
    model = {"model": "gpt-4o-mini"}
    body = json.dumps(model | messages if first else messages | model).encode()
    assert len(body) > 200_000

    def seconds() -> float:
        began = time.perf_counter()
        replace(body, "model", b'"llama"')
        return time.perf_counter() - began

    assert min(seconds() for _ in range(20)) < 0.001
