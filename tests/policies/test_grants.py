"""What people allow beforehand: just that, and nothing that differs from it in anything."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.approvals import HeldCall, NotEntitled, Refused
from policies.grants import NO_SESSION, Grant, allows, check, still_valid

HOUR = 3_600_000_000_000
GRANT = Grant(
    id="grt_1",
    tenant="acme",
    agent="bot",
    session="s-1",
    protocol="mcp",
    target="crm",
    operation="refund",
    where={"/order": "A-17", "/lines/0/amount": 12, "/rate": 1.0, "/dry": False, "/note": None, "/tags": ["a", 1]},
    definition="d1",
    roles=("finance", "security"),
    by=("dana", "sam"),
    created=1000,
    expires=1000 + HOUR,
    max_uses=3,
    max_cost=100,
)
ARGUMENTS = {
    "order": "A-17",
    "lines": [{"amount": 12, "sku": 4}],
    "rate": 1.0,
    "dry": False,
    "note": None,
    "tags": ["a", 1],
    "more": "whatever",
}
CALL = HeldCall(
    tenant="acme",
    agent="bot",
    session="s-1",
    kind="tool",
    protocol="mcp",
    target="crm",
    operation="refund",
    method="POST",
    path="/mcp/crm",
    query=b"",
    headers=(),
    body=json.dumps(ARGUMENTS).encode(),
    stream=False,
    definition="d1",
    cost=5,
)
NEEDS = ("finance",)
MAKERS = {"dana": ["finance", "admin"], "sam": ["security"]}


def granted(grant: Grant = GRANT, call: HeldCall = CALL, arguments: Any = ARGUMENTS, needs: Any = NEEDS) -> bool:
    return allows(grant, call, arguments, needs, 2000)


def test_what_fits_in_everything_is_allowed() -> None:
    assert granted()
    assert granted(needs=("security",))
    assert granted(needs=("security", "finance"))


# Which calls


@pytest.mark.parametrize("name", ["tenant", "agent", "session", "protocol", "target", "operation", "definition"])
@pytest.mark.parametrize("value", ["", "other", "crm ", "ACME", "Bot", "d1 "])
def test_a_call_that_differs_in_one_field_is_not_allowed(name: str, value: str) -> None:
    assert not granted(call=replace(CALL, **{name: value}))  # type: ignore[arg-type]  # all of these are texts
    assert not granted(grant=replace(GRANT, **{name: value}))  # type: ignore[arg-type]


def test_a_grant_for_a_session_is_none_without_one_and_a_grant_that_names_none_is_for_all() -> None:
    assert not granted(call=replace(CALL, session=None))
    of_all = replace(GRANT, session=None)
    assert all(granted(of_all, replace(CALL, session=session)) for session in (None, "", "s-1", "s-2"))


def test_a_grant_for_calls_without_a_session_is_for_no_others() -> None:
    of_none = replace(GRANT, session=NO_SESSION)
    assert granted(of_none, replace(CALL, session=None))
    assert not granted(of_none)


def test_how_a_call_is_carried_is_said_by_its_operation() -> None:
    carried: dict[str, Any] = {
        "kind": "message",
        "method": "PUT",
        "path": "/",
        "query": b"a",
        "headers": ((b"a", b"b"),),
    }
    rest: dict[str, Any] = {"body": b"", "arguments": b"", "stream": True}
    assert granted(call=replace(CALL, **carried, **rest))
    looked_at = {"tenant", "agent", "session", "protocol", "target", "operation", "definition", "cost"}
    assert {field.name for field in fields(HeldCall)} == looked_at | carried.keys() | rest.keys()


# Arguments

OTHER_VALUES: dict[str, list[Any]] = {
    "/order": ["A-18", "a-17", "A-17 ", "", None, ["A-17"], {"": "A-17"}, 17],
    "/lines/0/amount": [12.0, 13, -12, "12", True, None, [12], 12.000000000000002],
    "/rate": [1, True, "1.0", 1.0000000000000002, -1.0, None],
    "/dry": [True, 0, 0.0, None, "false", "", []],
    "/note": [False, 0, "", "null", [], {}],
    "/tags": [["a", 1.0], ["a", True], [1, "a"], ["a"], ["a", 1, None], "a", {"0": "a", "1": 1}, []],
}


def at(arguments: Any, pointer: str, value: Any) -> Any:
    """Arguments with another value at a place."""
    copy = json.loads(json.dumps(arguments))
    inner = copy
    *names, last = pointer[1:].split("/")
    for name in names:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[int(last) if isinstance(inner, list) else last] = value
    return copy


@pytest.mark.parametrize(
    ("pointer", "value"), [(pointer, value) for pointer, values in OTHER_VALUES.items() for value in values]
)
def test_a_constrained_argument_has_to_be_exactly_that_value(pointer: str, value: Any) -> None:
    assert not granted(arguments=at(ARGUMENTS, pointer, value))
    assert granted(replace(GRANT, where={**GRANT.where, pointer: value}), arguments=at(ARGUMENTS, pointer, value))


@pytest.mark.parametrize("pointer", GRANT.where)
def test_a_constrained_argument_that_is_not_there_is_not_allowed(pointer: str) -> None:
    without = {name: value for name, value in ARGUMENTS.items() if name != pointer.split("/")[1]}
    assert not granted(arguments=without)


def test_zero_and_minus_zero_are_two_values() -> None:
    zero = replace(GRANT, where={"/x": 0.0})
    assert granted(zero, arguments={"x": 0.0})
    assert not granted(zero, arguments={"x": -0.0})
    assert not granted(zero, arguments={"x": 0})


@pytest.mark.parametrize(
    ("pointer", "arguments"),
    [
        ("/a/b", {"a/b": 1}),
        ("/a~1b", {"a": {"b": 1}}),
        ("/a~0b", {"a~0b": 1}),
        ("/a/0", {"a": "1"}),
        ("/a/-", {"a": [1]}),
        ("/a/00", {"a": [1]}),
        ("/a/-1", {"a": [1]}),
        ("/a/ 0", {"a": [1]}),
        ("/a/\u0660", {"a": [1]}),
        ("/a/1", {"a": [1]}),
        ("/a/9999999999", {"a": [1]}),
        ("/a/99999999999999999999999", {"a": [1]}),
        ("/a/*", {"a": [1]}),
        ("/*", {"a": 1}),
        ("a", {"a": 1}),
        ("#/a", {"a": 1}),
        ("/a~2", {"a~2": 1}),
        ("/a", None),
        ("/a", []),
        ("/a", 1),
        ("/A", {"a": 1}),
    ],
)
def test_a_pointer_points_only_where_rfc_6901_says(pointer: str, arguments: Any) -> None:
    assert not granted(replace(GRANT, where={pointer: 1}), arguments=arguments)


@pytest.mark.parametrize(
    ("pointer", "arguments"),
    [
        ("", 1),
        ("/", {"": 1}),
        ("/a~1b", {"a/b": 1}),
        ("/a~01", {"a~1": 1}),
        ("/0", {"0": 1}),
        ("/1", [0, 1]),
        ("/a//b", {"a": {"": {"b": 1}}}),
    ],
)
def test_a_pointer_points_where_rfc_6901_says(pointer: str, arguments: Any) -> None:
    assert granted(replace(GRANT, where={pointer: 1}), arguments=arguments)


values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 0.0, -0.0, 1.0, "", "0", "1", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["", "a", "0"]), inner, max_size=2),
    max_leaves=4,
)


@given(values, values)
def test_two_values_are_the_same_just_when_they_are_written_alike(one: Any, other: Any) -> None:
    alike = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert granted(replace(GRANT, where={"": one}), arguments=other) is alike
    assert granted(replace(GRANT, where={"/x": one}), arguments={"x": other, "y": one}) is alike


def test_a_pointer_does_not_point_into_a_text() -> None:
    assert not granted(replace(GRANT, where={"/a/0": "x"}), arguments={"a": "x"})


# Who would have to approve it


@pytest.mark.parametrize(
    ("roles", "needs", "allowed"),
    [
        (("finance",), ("finance",), True),
        (("finance", "finance"), ("finance", "finance"), True),
        (("finance", "finance"), ("finance",), True),
        (("finance",), ("finance", "finance"), False),
        (("finance", "security"), ("finance", "finance"), False),
        (("finance",), ("finance", "security"), False),
        (("finance",), ("Finance",), False),
        (("finance",), (), False),
        ((), (), False),
        ((), ("finance",), False),
    ],
)
def test_every_slot_that_is_needed_is_one_that_a_maker_fills(
    roles: tuple[str, ...], needs: tuple[str, ...], allowed: bool
) -> None:
    assert granted(replace(GRANT, roles=roles), needs=needs) is allowed


# How long, how often, for how much


@pytest.mark.parametrize("now", [GRANT.expires, GRANT.expires + 1, 10**20])
def test_a_grant_ends_when_its_time_is_over(now: int) -> None:
    assert allows(GRANT, CALL, ARGUMENTS, NEEDS, GRANT.expires - 1)
    assert not allows(GRANT, CALL, ARGUMENTS, NEEDS, now)
    assert not GRANT.lasts(now)


def test_a_grant_ends_with_its_last_use() -> None:
    assert granted(replace(GRANT, uses=2))
    assert not granted(replace(GRANT, uses=3))
    assert not granted(replace(GRANT, uses=4))
    assert granted(replace(GRANT, uses=10**9, max_uses=None))


def test_a_call_that_would_cost_more_than_is_left_is_not_allowed() -> None:
    assert granted(replace(GRANT, cost=95))
    assert not granted(replace(GRANT, cost=96))
    assert not granted(replace(GRANT, cost=100), replace(CALL, cost=0))
    assert granted(replace(GRANT, cost=10**9, max_cost=None))


def test_a_call_whose_cost_nobody_knows_is_none_for_a_limit_on_costs() -> None:
    unknown = replace(CALL, cost=None)
    assert not granted(call=unknown)
    assert granted(replace(GRANT, max_cost=None), unknown)


# All of it at once

names = st.sampled_from(["x", "y"])
held = st.builds(
    replace,
    st.just(CALL),
    tenant=names,
    agent=names,
    session=st.none() | names,
    protocol=names,
    target=names,
    operation=names,
    definition=names,
    cost=st.none() | st.integers(0, 3),
)
roles = st.lists(st.sampled_from(["f", "s"]), max_size=3).map(tuple)
arguments = st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=2)


@given(held, arguments, roles.filter(bool), st.integers(0, 9), st.data())
def test_a_grant_allows_nothing_that_any_one_thing_in_it_excludes(
    call: HeldCall, arguments: dict[str, Any], needs: tuple[str, ...], now: int, data: st.DataObject
) -> None:
    where = {f"/{name}": value for name, value in arguments.items() if data.draw(st.booleans())}
    fits = Grant(
        id="grt_1",
        tenant=call.tenant,
        agent=call.agent,
        session=data.draw(st.sampled_from([None, call.session])),
        protocol=call.protocol,
        target=call.target,
        operation=call.operation,
        where=where,
        definition=call.definition,
        roles=(*needs, *data.draw(roles)),
        by=("p",),
        created=0,
        expires=now + data.draw(st.integers(1, 9)),
        max_uses=data.draw(st.none() | st.integers(1, 3)),
        max_cost=None if call.cost is None else data.draw(st.none() | st.integers(call.cost + 1, 9)),
    )
    assert allows(fits, call, arguments, needs, now)
    worse: dict[str, list[Any]] = {
        "tenant": ["z"],
        "agent": ["z"],
        "session": ["z"],
        "protocol": ["z"],
        "target": ["z"],
        "operation": ["z"],
        "definition": ["z"],
        "where": [{**where, "/c": None}, {**where, "/a": {"not": "that"}}, {**where, "": {**arguments, "c": 1}}],
        "roles": [tuple((Counter(fits.roles) - Counter({role: fits.roles.count(role)})).elements()) for role in needs],
        "expires": [now, now - 1],
        "max_uses": [0],
        "max_cost": [0, (call.cost or 0) - 1] if call.cost != 0 else [0, -1],
    }
    name = data.draw(st.sampled_from(sorted(worse)))
    change: dict[str, Any] = {name: data.draw(st.sampled_from(worse[name]))}
    assert not allows(replace(fits, **change), call, arguments, needs, now)
    assert not allows(replace(fits, max_uses=1, uses=1), call, arguments, needs, now)
    assert not allows(replace(fits, max_cost=9, cost=10), call, arguments, needs, now)


# Whose word it stands on


@pytest.mark.parametrize(
    ("now", "valid"),
    [
        (MAKERS, True),
        ({"dana": ["finance", "security"], "sam": ["finance"]}, True),
        ({"dana": ["finance"], "sam": []}, False),
        ({"dana": ["finance", "security"]}, False),
        ({"dana": ["admin"], "sam": ["security"]}, False),
        ({"kim": ["finance"], "lee": ["security"]}, False),
        ({}, False),
    ],
)
def test_a_grant_stands_as_long_as_its_makers_fill_its_slots(now: Mapping[str, list[str]], valid: bool) -> None:
    assert still_valid(GRANT, now.get) is valid


# Making one


def make(grant: Grant = GRANT, makers: Mapping[str, list[str]] = MAKERS, **other: Any) -> None:
    given: dict[str, Any] = {"requesters": ["bot"], "longest": HOUR, "no_grant": False, **other}
    check(grant, makers, **given)


def test_people_who_fill_its_slots_make_a_grant() -> None:
    make()
    make(replace(GRANT, where={}))
    make(replace(GRANT, max_uses=None))
    make(replace(GRANT, max_cost=None))
    make(replace(GRANT, roles=("admin",), by=("dana",)), {"dana": ["admin", "finance"]})


def test_what_people_decide_on_each_time_is_never_allowed_beforehand() -> None:
    with pytest.raises(Refused, match="Calls of crm cannot be allowed beforehand"):
        make(no_grant=True)


@pytest.mark.parametrize("name", ["tenant", "agent", "protocol", "target", "operation"])
def test_a_grant_names_what_it_is_for(name: str) -> None:
    with pytest.raises(Refused, match="names one"):
        make(replace(GRANT, **{name: ""}))  # type: ignore[arg-type]  # all of these are texts


@pytest.mark.parametrize(
    ("roles", "by", "makers"),
    [
        (("finance", "security"), ("dana",), {"dana": ["finance", "security"]}),
        (("finance", "finance"), ("dana",), {"dana": ["finance"]}),
        (("finance", "finance"), ("dana", "sam"), MAKERS),
        (("finance",), ("dana",), {"dana": []}),
        (("finance",), ("dana",), {"dana": ["Finance"]}),
        (("finance",), (), {}),
        ((), ("dana",), {"dana": ["finance"]}),
        ((), (), {}),
        (("finance",), ("kim",), {"dana": ["finance"]}),
        (("finance",), ("dana", "kim"), {"dana": ["finance"]}),
        (("finance",), (), {"dana": ["finance"]}),
    ],
)
def test_a_grant_stands_for_no_role_that_no_person_of_its_own_fills(
    roles: tuple[str, ...], by: tuple[str, ...], makers: Mapping[str, list[str]]
) -> None:
    with pytest.raises(NotEntitled, match=r"You do not have the role|names those who make it"):
        make(replace(GRANT, roles=roles, by=by), makers)


def test_who_asks_for_calls_makes_no_grants_not_even_with_others() -> None:
    with pytest.raises(NotEntitled, match="You own bot, so others allow its calls"):
        make(requesters=["bot", "sam"])


@pytest.mark.parametrize("lasts", [0, -1, HOUR + 1, 10**20])
def test_a_grant_ends_in_the_time_there_is_for_grants(lasts: int) -> None:
    with pytest.raises(Refused, match="has to last for some time" if lasts <= 0 else "lasts for 1h at most"):
        make(replace(GRANT, expires=GRANT.created + lasts))


def test_a_grant_without_any_limit_is_none() -> None:
    with pytest.raises(Refused, match="needs a limit"):
        make(replace(GRANT, max_uses=None, max_cost=None))


@pytest.mark.parametrize("change", [{"max_uses": 0}, {"max_uses": -1}, {"max_cost": 0}, {"max_cost": -5}, {"uses": 1}])
def test_a_grant_that_allows_nothing_or_begins_used_is_none(change: dict[str, int]) -> None:
    with pytest.raises(Refused, match="begins with none"):
        make(replace(GRANT, **change))  # type: ignore[arg-type]  # all of these are numbers
    with pytest.raises(Refused, match="begins with none"):
        make(replace(GRANT, cost=-1))


@pytest.mark.parametrize("pointer", ["order", "#/order", "/a~2", "/~", " /a"])
def test_a_constraint_is_on_a_json_pointer(pointer: str) -> None:
    with pytest.raises(Refused, match="no JSON pointer"):
        make(replace(GRANT, where={pointer: 1}))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("-inf"),
        b"a",
        (1,),
        {1, 2},
        {1: 2},
        {"a": [float("inf")]},
        "\ud800",
        {"\udfff": 1},
        nested(129),
        nested(100_000),
    ],
)
def test_a_constraint_is_a_json_value(value: Any) -> None:
    with pytest.raises(Refused, match="no JSON value"):
        make(replace(GRANT, where={"/a": value}))


def test_any_json_value_can_be_a_constraint() -> None:
    make(replace(GRANT, where={"": {"a": [1, 1.5, None, True, "\U0001f600", {}], "b": nested(126)}, "/a~1b/0": -0.0}))
