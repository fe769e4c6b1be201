"""`routing.outcomes`: what happened to a call has one class, and a class means one thing."""

import inspect
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import parallax
from gateway import carrier
from routing.outcomes import FIRST_TOKEN_LATE, OUTCOMES, SELF_HOSTED, Facts, Outcome, Stage, classify
from routing.target import KINDS

CARRIER_ERRORS = [
    name
    for name, each in inspect.getmembers(carrier, inspect.isclass)
    if issubclass(each, carrier.CarrierError) and each not in (carrier.CarrierError, carrier.CarrierTimeout)
]

TABLE: list[tuple[Facts, str]] = [
    (Facts("parallax", "begun", 200), "ok"),
    (Facts("openai", "begun", 204), "ok"),
    (Facts("parallax", "unsent", error="ConnectFailed"), "connect"),
    (Facts("openai", "unsent", error="ConnectTimeout"), "connect"),
    (Facts("openai", "unsent", error="TlsFailed"), "connect"),
    (Facts("openai", "unsent", error="TotalTimeout"), "connect"),
    (Facts("openai", "unsent"), "connect"),
    (Facts("parallax", "sent", error="ReplyBroken"), "reset"),
    (Facts("parallax", "sent", error="ReplyMalformed"), "protocol"),
    (Facts("parallax", "sent", error="FirstByteTimeout"), "first_token"),
    (Facts("parallax", "sent", error="IdleTimeout"), "first_token"),
    (Facts("parallax", "sent", error="TotalTimeout"), "first_token"),
    (Facts("parallax", "headed", 200, error=FIRST_TOKEN_LATE), "first_token"),
    (Facts("parallax", "headed", 200, error="IdleTimeout"), "first_token"),
    (Facts("parallax", "headed", 200, error="ReplyBroken"), "stream_cut"),
    (Facts("parallax", "begun", 200, error="ReplyBroken"), "stream_cut"),
    (Facts("parallax", "begun", 200, error="IdleTimeout"), "stalled"),
    (Facts("parallax", "begun", 200, error="TotalTimeout"), "overlong"),
    (Facts("parallax", "begun", 200, error="ValueError"), "protocol"),  # an event beyond all reason
    (Facts("parallax", "begun", 200, complete=False), "stream_cut"),
    (Facts("openai", "begun", 200, complete=False), "stream_cut"),
    (Facts("parallax", "headed", 200, hidden="stream_cut"), "stream_cut"),
    (Facts("parallax", "headed", 200, hidden="protocol"), "protocol"),
    (Facts("parallax", "headed", 400, hidden="status"), "rejected"),
    (Facts("parallax", "headed", 429, hidden="status"), "capacity"),
    (Facts("openai", "headed", 429, hidden="status"), "quota"),
    *((Facts(kind, "headed", status), "upstream_5xx") for kind in KINDS for status in (500, 502, 503, 504, 529, 408)),
    (Facts("parallax", "headed", 429), "capacity"),
    (Facts("openai", "headed", 429), "quota"),
    (Facts("anthropic", "headed", 429), "quota"),
    *((Facts(kind, "headed", status), "config") for kind in KINDS for status in (401, 402, 403, 407)),
    *((Facts(kind, "headed", status), "rejected") for kind in KINDS for status in (400, 409, 413, 422)),
    (Facts("parallax", "headed", 404), "config"),
    (Facts("parallax", "headed", 405), "config"),
    (Facts("openai", "headed", 404), "rejected"),  # of a model
    (Facts("openai", "begun", 503, error="ReplyBroken"), "upstream_5xx"),  # a refusal that breaks off is one
    (Facts("parallax", "headed", 500, hidden="stream_cut"), "stream_cut"),
    (Facts("parallax", "headed", 500, hidden="protocol"), "protocol"),
    (Facts("openai", "headed", 307), "protocol"),
    (Facts("openai", "headed", 799), "protocol"),
    (Facts("parallax", "capped"), "overflow"),
    (Facts("parallax", "begun", 200, complete=False, client_gone=True), "client_gone"),
    (Facts("parallax", "unsent", refused=True), "refused"),
    (Facts("parallax", "begun", 200, complete=False, refused=True, client_gone=True), "refused"),
]


@pytest.mark.parametrize(("facts", "name"), TABLE)
def test_what_happened_has_one_class(facts: Facts, name: str) -> None:
    assert classify(facts).name == name


def test_every_class_happens() -> None:
    assert {name for _, name in TABLE} == set(OUTCOMES)


@pytest.mark.parametrize(("error", "stage"), list(product(CARRIER_ERRORS, ("unsent", "sent", "headed", "begun"))))
def test_every_error_of_the_carrier_is_an_error_of_the_arm_at_every_stage(error: str, stage: Stage) -> None:
    for kind in KINDS:
        found = classify(Facts(kind, stage, error=error))
        assert found.error(kind)
        assert (found.name == "protocol") == (error == "ReplyMalformed"), "the name is known"


@pytest.mark.parametrize("hidden", get_args(parallax.Hidden))
def test_every_word_of_the_sniffers_is_known(hidden: str) -> None:
    assert classify(Facts("parallax", "headed", 400, hidden=hidden)).name == (
        "rejected" if hidden == "status" else hidden
    )


@pytest.mark.parametrize(
    ("name", "self_hosted", "hosted"),
    [
        ("ok", False, False),
        ("connect", True, True),
        ("reset", True, True),
        ("upstream_5xx", True, True),
        ("capacity", True, True),
        ("quota", False, False),
        ("first_token", True, True),
        ("stream_cut", True, True),
        ("stalled", True, True),
        ("overlong", True, True),
        ("protocol", True, True),
        ("rejected", False, False),
        ("config", True, True),
        ("overflow", False, False),
        ("client_gone", False, False),
        ("refused", False, False),
    ],
)
def test_what_counts_as_an_error(name: str, self_hosted: bool, hosted: bool) -> None:
    outcome = OUTCOMES[name]
    assert outcome.error("parallax") == self_hosted
    assert outcome.error("openai") == hosted
    assert outcome.error("anthropic") == hosted


def test_what_the_arm_has_no_part_in_is_not_counted() -> None:
    assert {each.name for each in OUTCOMES.values() if not each.counted} == {"overflow", "client_gone", "refused"}


def test_only_what_was_seen_here_ejects_a_node() -> None:
    ejecting = {each.name: each.ejects for each in OUTCOMES.values() if each.ejects}
    assert ejecting == {
        "connect": "failure",
        "reset": "failure",
        "first_token": "failure",
        "stream_cut": "dead_stream",
        "stalled": "dead_stream",
    }


def test_what_another_node_would_say_too_is_tried_at_another_arm() -> None:
    assert {each.name for each in OUTCOMES.values() if each.retry == "arm"} == {"quota", "config", "overflow"}
    assert {each.name for each in OUTCOMES.values() if each.retry == "no"} == {
        "ok",
        "rejected",
        "overlong",
        "client_gone",
        "refused",
    }


def test_the_names_of_classes_are_words_for_metrics() -> None:
    assert all(name == each.name and name.isidentifier() for name, each in OUTCOMES.items())
    assert set(KINDS) >= SELF_HOSTED


def facts() -> st.SearchStrategy[Facts]:
    return st.builds(
        Facts,
        st.sampled_from([*KINDS]),
        st.sampled_from(get_args(Stage)),
        st.none() | st.integers(0, 999),
        st.sampled_from(["", "ValueError", FIRST_TOKEN_LATE, *CARRIER_ERRORS]),
        st.sampled_from(["", *get_args(parallax.Hidden)]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    )


@given(facts())
def test_every_call_has_a_class_and_no_failure_is_a_success(given: Facts) -> None:
    found = classify(given)
    assert isinstance(found, Outcome)
    if found.name == "ok":
        assert given.status is not None
        assert 200 <= given.status <= 299
        assert given.complete
        assert not given.error
        assert not given.hidden


@given(facts())
def test_whom_the_client_left_or_the_gateway_refused_is_never_blamed(given: Facts) -> None:
    for excused in (given._replace(client_gone=True), given._replace(refused=True)):
        found = classify(excused)
        assert not found.counted
        assert not found.ejects
        assert not found.error(given.kind)
