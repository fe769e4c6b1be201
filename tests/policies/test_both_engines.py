"""One contract, two engines: every policy here is decided in process and by a real OPA, and both must say the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any, Final

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import testing
from policies.decision import parse
from policies.errors import InputRefused, Undecided
from policies.sources import Places
from tests.policies import test_common_case as common_case
from tests.policies.support import SHIPPED, rego
from tests.support.engines import OnOpa, Outcome, on_both, on_opa, outcome
from tests.support.opa import OPA, OpaServer, needs_opa, opa_server

pytestmark = needs_opa

DECIDING: Final = (SHIPPED / "weighbridge.rego", SHIPPED / "envelopes.rego")


@pytest.fixture(scope="module")
def server() -> Iterator[OpaServer]:
    with opa_server() as running:
        yield running


@pytest.fixture(scope="module")
def shipped() -> Iterator[OnOpa]:
    """With the shipped policy and without envelopes."""
    with on_opa(*DECIDING) as running:
        yield running


def allow(explanation: str) -> Outcome:
    return {"decision": "ALLOW", "explanation": explanation}


DENY: Final[Outcome] = {"decision": "DENY"}
DEFAULT: Final = 'default decision := {"decision": "DENY"}\n\n'
ALLOWED_IF: Final = DEFAULT + 'decision := {"decision": "ALLOW", "explanation": "yes"} if '
YES: Final = allow("yes")

# What docs/policy.md promises: (rules, input, outcome).
PROMISES: Final[dict[str, tuple[str, object, Outcome]]] = {
    "a decision with everything": (
        'decision := {"decision": "NEEDS_APPROVAL", "risk_level": "high", "required_approvals": ["finance", "ops"],'
        ' "explanation": "Wait.", "unknown": 1}',
        {},
        {
            "decision": "NEEDS_APPROVAL",
            "risk_level": "high",
            "required_approvals": ("finance", "ops"),
            "explanation": "Wait.",
        },
    ),
    "obligations": (
        'decision := {"decision": "ALLOW", "obligations": {"max_tokens": 5, "headers": {"x-team": "a"}}}',
        {},
        {"decision": "ALLOW", "obligations": {"max_tokens": 5, "headers": {"x-team": "a"}}},
    ),
    "no rule applies": ('decision := {"decision": "ALLOW"} if input.x', {}, Undecided),
    "the rule is not there": ('other := {"decision": "ALLOW"}', {}, Undecided),
    "null": ("decision := null", {}, Undecided),
    "a text": ('decision := "ALLOW"', {}, Undecided),
    "another word": ('decision := {"decision": "allow"}', {}, Undecided),
    "no word": ('decision := {"explanation": "yes"}', {}, Undecided),
    "a mistyped field": ('decision := {"decision": "ALLOW", "required_approvals": "ops"}', {}, Undecided),
    "a set where a list is wanted": (
        'decision := {"decision": "NEEDS_APPROVAL", "required_approvals": {"b", "a"}}',
        {},
        {"decision": "NEEDS_APPROVAL", "required_approvals": ("a", "b")},
    ),
    "a malformed obligation": ('decision := {"decision": "ALLOW", "obligations": {"max_tokens": "5"}}', {}, Undecided),
    "too long an answer": (
        'decision := {"decision": "ALLOW", "explanation": concat("", [input.x | some _ in numbers.range(1, 8000)])}',
        {"x": "0123456789"},
        Undecided,
    ),
    "two rules that conflict": (
        'decision := {"decision": "ALLOW"} if input.a\n\ndecision := {"decision": "DENY"} if input.b',
        {"a": 1, "b": 1},
        Undecided,
    ),
    "two rules that agree": (
        'decision := {"decision": "DENY"} if input.a\n\ndecision := {"decision": "DENY"} if input.b',
        {"a": 1, "b": 1},
        DENY,
    ),
    "a builtin that fails, although there is a default": (
        ALLOWED_IF + "to_number(input.x) > 3",
        {"x": "many"},
        Undecided,
    ),
    "a builtin given another type": (ALLOWED_IF + 'contains(input.x, "a")', {"x": 1}, Undecided),
    "arithmetic with a text": (ALLOWED_IF + "input.x + 1 > 1", {"x": "a"}, Undecided),
    "a guard before a builtin": (ALLOWED_IF + "{ input.y == 1; to_number(input.x) > 3 }", {"x": "many"}, DENY),
    "a division by zero": (ALLOWED_IF + "1 / input.x > 0", {"x": 0}, Undecided),
    "a default": (ALLOWED_IF + "input.x", {}, DENY),
    "a null is there": (ALLOWED_IF + "input.x == null", {"x": None}, YES),
    "a null is not true enough to be wrong": (ALLOWED_IF + "not input.x == null", {}, YES),
    "no approval": (ALLOWED_IF + "not input.approval", {}, YES),
    "an approval of null counts as one": (ALLOWED_IF + "not input.approval", {"approval": None}, DENY),
    "false is not there": (ALLOWED_IF + "not input.x", {"x": False}, YES),
    "null is less than any number": (ALLOWED_IF + "input.x > 50", {"x": None}, DENY),
    "any text is more than any number": (ALLOWED_IF + "input.x >= 3", {"x": "3"}, YES),
    "any list is more than any text": (ALLOWED_IF + 'input.x > "z"', {"x": []}, YES),
    "true is less than any number": (ALLOWED_IF + "input.x < 0", {"x": True}, YES),
    "a text is no number": (ALLOWED_IF + "is_number(input.x)", {"x": "3"}, DENY),
    "1 is 1.0": (ALLOWED_IF + "input.x == 1", b'{"x": 1.0}', YES),
    "1e2 is 100": (ALLOWED_IF + "input.x == 100", b'{"x": 1e2}', YES),
    "1 is not true": (ALLOWED_IF + "input.x == true", {"x": 1}, DENY),
    "64 bits are exact": (ALLOWED_IF + "input.x == 18446744073709551615", {"x": 2**64 - 1}, YES),
    "64 bits with a sign are exact": (ALLOWED_IF + "input.x == -9223372036854775808", {"x": -(2**63)}, YES),
    "2^64 + 1 is 2^64": (
        ALLOWED_IF + "input.x == input.y",
        b'{"x": 18446744073709551617, "y": 18446744073709551616}',
        YES,
    ),
    "1e-400 is 0": (ALLOWED_IF + "input.x == 0", b'{"x": 1e-400}', YES),
    "1e308 is a number": (ALLOWED_IF + "input.x > 1", b'{"x": 1e308}', YES),
    "1e999 is refused": (ALLOWED_IF + "true", b'{"x": 1e999}', InputRefused),
    "400 digits are refused": (ALLOWED_IF + "true", b'{"x": %b}' % (b"9" * 400), InputRefused),
    "126 levels are accepted": (ALLOWED_IF + "true", b'{"x": %b}' % (b"[" * 126 + b"]" * 126), YES),
    "128 levels are refused": (ALLOWED_IF + "true", b'{"x": %b}' % (b"[" * 127 + b"]" * 127), InputRefused),
    "brackets in a text are no levels": (ALLOWED_IF + "count(input.x) == 500", {"x": "[" * 500}, YES),
    "half a surrogate is refused": (ALLOWED_IF + "true", b'{"x": "\\ud800"}', InputRefused),
    "bytes that are no text are refused": (ALLOWED_IF + "true", b'{"x": "\xff"}', InputRefused),
    "what is no JSON is refused": (ALLOWED_IF + "true", b'{"x": }', InputRefused),
    "of two equal keys the last one counts": (ALLOWED_IF + 'input.x == "b"', b'{"x": "a", "x": "b"}', YES),
    "an input that is no object": (ALLOWED_IF + "input[0] == 1", b"[1]", YES),
    "texts are compared as they are": (ALLOWED_IF + 'input.x == "\u00e9"', {"x": "e\u0301"}, DENY),
    "every over nothing": (ALLOWED_IF + "every x in input.x { x > 5 }", {"x": []}, YES),
    "every": (ALLOWED_IF + "every x in input.x { x > 5 }", {"x": [6, 5]}, DENY),
    "every over what is absent": (ALLOWED_IF + "every x in input.x { x > 5 }", {}, DENY),
    "some": (ALLOWED_IF + "{ some x in input.x; x > 5 }", {"x": [1, 6]}, YES),
    "some key": (ALLOWED_IF + 'some "a", 1 in input.x', {"x": {"a": 1}}, YES),
    "in": (ALLOWED_IF + "input.x in [1, 2]", {"x": 2}, YES),
    "in a set": (ALLOWED_IF + "input.x in {1, 2}", {"x": 3}, DENY),
    "else": (
        'decision := {"decision": "DENY"} if input.x > 5 else := {"decision": "ALLOW", "explanation": "yes"}',
        {"x": 1},
        YES,
    ),
    "the first that applies": (
        'decision := {"decision": "DENY"} if input.x else := {"decision": "ALLOW"} if true',
        {"x": 1},
        DENY,
    ),
    "functions": (ALLOWED_IF + "f(input.x)\n\nf(x) if x > 5", {"x": 6}, YES),
    "a function of what is absent": (ALLOWED_IF + "f(input.x)\n\nf(_) := true", {}, DENY),
    "a function without an answer": (ALLOWED_IF + "not f(input.x)\n\nf(x) if x > 5", {"x": 1}, YES),
    "sets": (
        ALLOWED_IF + "count(wrong) == 0\n\nwrong contains x if { some x in input.x; not x in data.known }",
        {"x": ["a", "b"]},
        YES,
    ),
    "objects": (
        ALLOWED_IF + "by[input.x] == 2\n\nby[name] := number if some name, number in data.numbers",
        {"x": "b"},
        YES,
    ),
    "data by name": (ALLOWED_IF + "data.known[_] == input.x", {"x": "b"}, YES),
    "data that is not there": (ALLOWED_IF + "data.nowhere[input.x]", {"x": "b"}, DENY),
    "comprehensions": (ALLOWED_IF + "[y | some x in input.x; y := x * 2] == [2, 4]", {"x": [1, 2]}, YES),
    "with input": (ALLOWED_IF + 'inner with input as {"y": 1}\n\ninner if input.y == 1', {"x": 1}, YES),
    "time as it is given": (ALLOWED_IF + "input.time.unix_ns == 5", {"time": {"unix_ns": 5}}, YES),
}  # fmt: skip
DATA: Final[dict[str, Any]] = {"known": ["a", "b"], "numbers": {"a": 1, "b": 2}}


@pytest.mark.parametrize("name", PROMISES)
async def test_both_engines_keep_the_promise(server: OpaServer, name: str) -> None:
    rules, given_input, expected = PROMISES[name]
    document = given_input if isinstance(given_input, bytes) else orjson.dumps(given_input)
    here, there = await on_both(server, rego(rules), DATA, document)
    assert (here, there) == (expected, expected)


# Builtins that policies use: (expression, input.x, its value as JSON; None where both refuse to go on).
UNDECIDED: Final = None
EXPRESSIONS: Final[list[tuple[str, object, str | None]]] = [
    ("abs(-3)", 0, "3"),
    ("7 / 2", 0, "3.5"),
    ("7 % 3", 0, "1"),
    ("-7 % 3", 0, "-1"),
    ("7.5 % 3", 0, UNDECIDED),
    ("round(2.5)", 0, "3"),
    ("round(-2.5)", 0, "-3"),
    ("ceil(2.1) + floor(-2.1)", 0, "0"),
    ("round(input.x * 1000000)", 0.29, "290000"),
    ("sum([1, 2.5])", 0, "3.5"),
    ("max([1, 3])", 0, "3"),
    ("max([])", 0, UNDECIDED),
    ("min({3, 1})", 0, "1"),
    ("format_int(input.x, 10)", 10.9, '"10"'),
    ("format_int(255, 16)", 0, '"ff"'),
    ("to_number(input.x)", "12.5", "12.5"),
    ("to_number(input.x)", "abc", UNDECIDED),
    ("to_number(input.x)", "", UNDECIDED),
    ("to_number(input.x)", "0x10", UNDECIDED),
    ("to_number(input.x)", None, "0"),
    ("to_number(input.x)", [1], UNDECIDED),
    ("to_number(input.x)", True, "1"),
    ("numbers.range(4, 1)", 0, "[4,3,2,1]"),
    ("bits.and(6, 3)", 0, "2"),
    ('sprintf("%d %s %v %v", [1, "a", {"b": 1}, [1, 2]])', 0, '"1 a {\\"b\\": 1} [1, 2]"'),
    ('sprintf("%.2f %05d %x", [1.005, 42, 255])', 0, '"1.00 00042 ff"'),
    ("concat(\",\", {input.x, \"a\"})", "b", '"a,b"'),
    ('split(input.x, ",")', "a,b,", '["a","b",""]'),
    ("substring(input.x, 1, 3)", "h\u00e9llo", '"\u00e9ll"'),
    ("substring(input.x, -1, 2)", "abc", UNDECIDED),
    ('indexof(input.x, "l")', "h\u00e9llo", "2"),
    ("count(input.x)", "h\u00e9llo", "5"),
    ("lower(input.x)", "\u00c0\u00c9", '"\u00e0\u00e9"'),
    ("trim_space(input.x)", " a\t\n", '"a"'),
    ('replace(input.x, "a", "b")', "aaa", '"bbb"'),
    ('contains(input.x, "")', "abc", "true"),
    ('strings.any_prefix_match(input.x, ["x", "ab"])', "abc", "true"),
    ('glob.match("llama-*", null, input.x)', "llama-3.1/8b", "true"),
    ('glob.match("llama-*", [], input.x)', "llama-3.1/8b", "false"),
    ('glob.match("*.example.com", ["."], input.x)', "a.b.example.com", "false"),
    ('glob.match("*.example.com", [], input.x)', "a.b.example.com", "false"),
    ('glob.match("**.example.com", ["."], input.x)', "a.b.example.com", "true"),
    ('glob.match("*.example.com", null, input.x)', "a.b.example.com", "true"),
    ('glob.match("{a,b}c", [], input.x)', "bc", "true"),
    ('glob.match("[!a]c", [], input.x)', "ac", "false"),
    ('glob.match("a?c", [], input.x)', "abc", "true"),
    ('regex.match("^[a-z]+$", input.x)', "abc\n", "false"),
    ('regex.match("(?i)ABC", input.x)', "abc", "true"),
    ("regex.match(input.x, \"a\")", "(", UNDECIDED),
    ("regex.match(input.x, \"a\")", "(?=a)", UNDECIDED),
    ('regex.find_n("a.", input.x, -1)', "abac", '["ab","ac"]'),
    ('object.get(input, ["x", "b"], 7)', {"b": None}, "null"),
    ('object.get(input, ["x", "c"], 7)', {"b": None}, "7"),
    ('object.union({"a": {"b": 1}}, {"a": {"c": 2}})', 0, '{"a":{"b":1,"c":2}}'),
    ('object.remove(input.x, ["a"])', {"a": 1, "b": 2}, '{"b":2}'),
    ("object.keys(input.x)", {"b": 1, "a": 2}, '["a","b"]'),
    ("array.slice([1, 2, 3], 1, 5)", 0, "[2,3]"),
    ("sort([each | some each in input.x])", [3, "a", None, True, {}, [], 1.5, -1], '[null,true,-1,1.5,3,"a",[],{}]'),
    ("{each | some each in input.x}", [3, 1, 2, 3, "b"], '[1,2,3,"b"]'),
    ("{1, 2} & {2, 3}", 0, "[2]"),
    ("{1, 2} - {2}", 0, "[1]"),
    ("[path | walk(input.x, [path, _])]", {"a": [1]}, '[[],["a"],["a",0]]'),
    ("json.unmarshal(input.x)", "[1,", UNDECIDED),
    ("json.unmarshal(input.x).a", '{"a": 2}', "2"),
    ('json.filter(input.x, ["a/b"])', {"a": {"b": 1, "c": 2}}, '{"a":{"b":1}}'),
    ("base64.decode(input.x)", "w6k=", '"\u00e9"'),
    ("base64.decode(input.x)", "!", UNDECIDED),
    ("urlquery.encode(input.x)", "a b&c", '"a+b%26c"'),
    ("net.cidr_contains(\"10.0.0.0/8\", input.x)", "10.1.2.3", "true"),
    ("net.cidr_contains(\"10.0.0.0/8\", input.x)", "11.1.2.3", "false"),
    ("net.cidr_contains(\"10.0.0.0/8\", input.x)", "x", UNDECIDED),
    ("semver.compare(input.x, \"1.10.0\")", "1.2.0", "-1"),
    ("time.parse_rfc3339_ns(input.x)", "2026-11-21T04:40:00Z", "1795236000000000000"),
    ("time.weekday(input.x)", 1_763_700_000_000_000_000, '"Friday"'),
    ('time.clock([input.x, "Europe/Paris"])', 1_763_700_000_000_000_000, "[5,40,0]"),
    ('time.clock([input.x, "Nowhere"])', 1_763_700_000_000_000_000, UNDECIDED),
    ("time.add_date(input.x, 0, 1, 0)", 1_763_700_000_000_000_000, "1766292000000000000"),
    ("type_name(input.x)", None, '"null"'),
    ("is_object(input.x)", {}, "true"),
    ("input.x[0]", [1], "1"),
    ("input.x[-1]", [1], UNDECIDED),
    ('input.x["0"]', [1], UNDECIDED),
    ("input.x", "\u00e4\x00\U0001f600", '"\u00e4\\u0000\U0001f600"'),
]  # fmt: skip


def saying(expression: str) -> str:
    return rego(f'decision := {{"decision": "ALLOW", "explanation": json.marshal(value)}}\n\nvalue := {expression}')


@pytest.mark.parametrize(
    ("expression", "given_input", "value"), EXPRESSIONS, ids=[f"{each[0]} of {each[1]!a}" for each in EXPRESSIONS]
)
async def test_both_engines_compute_the_same(
    server: OpaServer, expression: str, given_input: object, value: str | None
) -> None:
    here, there = await on_both(server, saying(expression), {}, orjson.dumps({"x": given_input}))
    assert here == there == (Undecided if value is None else allow(value))


# Where they differ, as docs/policy.md says: (expression, input.x, embedded, OPA). When one changes, so must the manual.
DIFFERENCES: Final[list[tuple[str, object, str | None, str | None]]] = [
    ("0.1 + 0.2", 0, "0.30000000000000004", "0.3"),
    ("1 / 3", 0, "0.3333333333333333", "0.33333333333333333334"),
    ("input.x + 1", 2**64 - 1, "1.8446744073709552e+19", "18446744073709551616"),
    ("input.x", 1.0, "1", "1.0"),
    ("input.x", "<&>", '"<&>"', '"\\u003c\\u0026\\u003e"'),
    ("upper(input.x)", "stra\u00dfe", '"STRASSE"', '"STRA\u00dfE"'),
    ("count(input.x)", "\U0001f44d", "2", "1"),
    ('regex.match(`^\\d$`, input.x)', "\u0663", "true", "false"),
    ('regex.match(`^\\w$`, input.x)', "\u00e9", "true", "false"),
    ("to_number(input.x)", " 1", "1", UNDECIDED),
    ('sprintf("%d", [input.x])', 1.5, UNDECIDED, '"%!d(float64=1.5)"'),
    ('sprintf("%s", [input.x])', 1, '"1"', '"%!s(int64=1)"'),
    ("json.unmarshal(input.x)", "1e999", UNDECIDED, "1e999"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "given_input", "here", "there"),
    DIFFERENCES,
    ids=[f"{each[0]} of {each[1]!a}" for each in DIFFERENCES],
)
async def test_a_difference_is_what_the_manual_says(
    server: OpaServer, expression: str, given_input: object, here: str | None, there: str | None
) -> None:
    expected = tuple(Undecided if value is None else allow(value) for value in (here, there))
    assert await on_both(server, saying(expression), {}, orjson.dumps({"x": given_input})) == expected


# The same for whole policies: (rules, input, embedded, OPA).
DIVERGENCES: Final[dict[str, tuple[str, object, Outcome, Outcome]]] = {
    "not of a function of what is absent": (
        ALLOWED_IF + "not forbidden(input.x)\n\nforbidden(x) if x > 5",
        {},
        YES,
        DENY,
    ),
    "an error in a rule that OPA's index passes over": (
        ALLOWED_IF + "{ to_number(input.x) > 3; input.y == 1 }",
        {"x": "many"},
        Undecided,
        DENY,
    ),
    "a text function that OPA looks up in its index": (
        ALLOWED_IF + 'startswith(input.x, "a")',
        {"x": 1},
        Undecided,
        DENY,
    ),
    "some in what is no collection": (ALLOWED_IF + "some _ in input.x", {"x": 1}, Undecided, DENY),
}


@pytest.mark.parametrize("name", DIVERGENCES)
async def test_a_divergence_is_what_the_manual_says(server: OpaServer, name: str) -> None:
    rules, given_input, here, there = DIVERGENCES[name]
    assert await on_both(server, rego(rules), {}, orjson.dumps(given_input)) == (here, there)


# The shipped policies.


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["llm", "tool", "message", "environment"]), common_case.changes)
def test_the_shipped_policy_decides_alike_whatever_envelope_and_call(
    shipped: OnOpa, kind: str, changed: list[tuple[tuple[str, ...], object]]
) -> None:
    whole = common_case.common(kind)
    for path, value in changed:
        common_case.change(whole, path, value)
    envelopes, document = whole.get("envelopes", {}), orjson.dumps(whole.get("input", {}))
    shipped.server.put_data({"envelopes": envelopes})
    if common_case.accepted(envelopes):
        here = common_case.decided(common_case.WHOLE, envelopes, document)
        there = outcome(shipped, document)
        assert there == (Undecided if here == "undecided" else parse(orjson.dumps(here), "").facts())
    else:
        assert shipped.server.call("GET", "/v1/data/weighbridge/problems")["result"]


async def test_the_tests_beside_the_shipped_policies_end_alike() -> None:
    assert OPA is not None
    told = subprocess.run(  # noqa: ASYNC221  # nothing else runs in this loop
        [OPA, "test", "--format", "json", SHIPPED], capture_output=True, check=False, timeout=60
    )
    by_opa = {
        f"{each['package']}.{each['name']}": "fail" if each.get("fail") else "error" if "error" in each else "pass"
        for each in orjson.loads(told.stdout)
    }
    report = await testing.test(Places((SHIPPED,)), 60)
    assert {each.name: each.outcome for each in report.results} == by_opa
    assert len(by_opa) > 20
    assert told.returncode == 0


def test_opa_has_nothing_against_the_shipped_policies() -> None:
    assert OPA is not None
    told = subprocess.run([OPA, "check", "--strict", SHIPPED], capture_output=True, text=True, check=False, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")
